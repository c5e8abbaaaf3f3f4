"""Fields whose unit's centre lies in a gap, where nothing arrives: Luo's size, which compares with
the centre, and widths of cuts through it are not defined; all else is."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import fastrf as rf
from fastrf import metrics
from fastrf.cli import main
from fastrf.errors import InputError

DARK = rf.Conv(2, dilation=3)
"""Four pixels at the corners of 4 × 4."""

NET = rf.Sequential(rf.Conv(2, dilation=5), rf.Conv(3), rf.Conv(3), name="gap")
"""The fields of the first two layers are dark at their centres, the last one's is not."""


@pytest.fixture
def file(tmp_path: Path) -> str:
    rf.save(rf.Sequential(DARK, name="gap"), tmp_path / "gap.toml")
    return str(tmp_path / "gap.toml")


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_what_is_not_defined_is_null() -> None:
    erf = rf.erf(DARK)
    assert np.count_nonzero(erf.image) == 4
    found = erf.to_dict()
    assert found["luo_size"] == {"amplitude": None, "variance": None}
    assert (found["fwhm"], found["ratio"]) == (None, None)
    assert (found["std"], found["area_ratio"]["0.5"]) == ([1.5, 1.5], 1)
    # The remedies that the errors name.
    with pytest.raises(InputError, match=r"smallest_set, or fastrf\.metrics\.luo_size with"):
        erf.luo_size()
    with pytest.raises(InputError, match=r"std, or fastrf\.metrics\.fwhm with another center"):
        _ = erf.fwhm
    assert erf.smallest_set(0.99) == 4
    assert metrics.luo_size(erf.image, center=None) == 2
    assert metrics.fwhm(erf.image, center=None) == (4, 4)


def test_the_command_says_so_and_goes_on(file: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "erf", file)
    assert "Luo's size        undefined" in text
    assert "FWHM              undefined" in text
    assert "σ                 (1.5, 1.5) pixels" in text
    assert json.loads(said(capsys, "erf", file, "--json"))["ratio"] is None
    _, row = said(capsys, "erf", file, "--layers", "all").splitlines()
    assert row.split() == ["conv1", "4", "1.5", "–", "–", "0", "0"]


def test_figures_and_reports_leave_it_out(tmp_path: Path) -> None:
    fields = rf.erf(NET, layers="all")
    figure = rf.plot.growth_figure(fields)
    lines = {line.get_label(): line.get_xdata() for line in figure.axes[0].lines}
    assert [len(lines[name]) for name in ("TRF", "Luo's size of the ERF", "σ")] == [3, 1, 3]
    assert len(figure.axes[1].lines[0].get_xdata()) == 1
    rf.plot.graph_figure(rf.receptive_field(NET), fields)
    rf.report(rf.Sequential(DARK, name="gap"), tmp_path / "gap.html")
    assert "Luo" in (tmp_path / "gap.html").read_text()


def test_design_passes_over_it() -> None:
    space = {"parameters": {"depth": [1, 2], "kernel": 2, "dilation": 3}}
    for size in ("luo", "fwhm"):
        found = rf.design(target_erf=(1, 10), size=size, space=space)
        assert [d.parameters["depth"] for d in found] == [2]
    assert not rf.design(target_erf=3, space={**space, "where": ["depth == 1"]})


def test_comparisons_leave_out_its_row() -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 2, dilation=3))
    options = {"draws": 64, "initialise": "unit"}
    measured = rf.empirical(module, (1, 1, 9, 9), **options)
    compared = rf.compare(rf.erf(measured.network, input_size=9), measured)
    names = [row.name for row in compared.rows]
    assert "std, axis 0" in names
    assert not {"luo_size", "fwhm, axis 0"} & set(names)
    assert compared
