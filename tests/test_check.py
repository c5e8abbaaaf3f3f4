"""`fastrf.check`: passes on every network, and sees a planted fault in each kernel."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import graphs
import numpy as np
import pytest

import fastrf as rf
from fastrf import kernels
from fastrf.cli import main
from fastrf.errors import InputError

CASES = dict(graphs.cases())

# One network that runs every kernel: equal and unequal taps, both ways, a table and a merge.
MIXED = rf.Sequential(
    rf.Conv(5, padding=2),
    rf.Conv(3, padding=1, taps=[1, 2, 4]),
    rf.ConvTranspose(4, stride=2, padding=1),
    rf.ConvTranspose(3, stride=2, padding=1, taps=[1, 3, 2]),
    rf.Upsample(2, "linear"),
    rf.Residual(rf.Conv(3, padding=1), rf.Conv(7, padding=3)),
    rf.Conv(3, stride=4, padding=1),
    ndim=1,
    name="mixed",
)

# And one that runs the kernels for many layers at once: equal taps, and taps that are no product.
RUNS = rf.Sequential(
    rf.Conv(3, padding=1),
    rf.Conv(3, padding=1),
    *[rf.Conv(2, taps=[[1, 2], [3, 5]])] * 3,
    name="runs",
)
RUN_KERNELS = ("box_run", "conv_run")


@pytest.mark.parametrize("name", CASES)
def test_every_case_agrees(name: str) -> None:
    graph = CASES[name]
    report = rf.check(graph.network(), input_size=graph.size)
    assert report, str(report)
    # Unit 0 of an unbounded grid may lie in the gaps of a transposed convolution: it is reported.
    empty = [reason for reason in report.skipped if "sees nothing" in reason]
    assert {row.grid for row in report.rows} >= (set() if empty else {"unbounded"})


def test_a_kernel_that_hands_nothing_on_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*arguments: Any) -> None:
        arguments[-1][...] = 0

    monkeypatch.setattr(kernels.load("cpu"), "box_run", nothing)
    report = rf.check(rf.zoo.cifar_resnet(1))
    assert not report
    assert any(row.quantity == "the field is not empty" for row in report.rows)


@pytest.mark.parametrize(
    "net",
    [
        rf.zoo.plain(50, 3),
        rf.zoo.unet(3, 2),
        rf.zoo.wavenet(1),
        rf.zoo.cifar_resnet(3),
        rf.Sequential(*[rf.Residual(rf.Conv(3, padding=1))] * 5, ndim=1),
        rf.Sequential(rf.Conv([2, 3], taps=np.arange(6).reshape(2, 3)), rf.MaxPool(2)),
        rf.Sequential(rf.Conv((3, 1)), rf.Conv((2, 1))),
        rf.Sequential(rf.Conv((3, 1, 2)), rf.AvgPool((1, 2, 2)), rf.Conv(2)),
        MIXED,
    ],
    ids=lambda net: net.name or repr(net),
)
def test_more_networks_agree(net: rf.Network) -> None:
    report = rf.check(net)
    assert report, str(report)
    assert report.ok
    assert {row.dtype for row in report.rows} == {"float64", "float32"}
    assert all(math.isfinite(row.error) for row in report.rows)


def test_what_is_compared() -> None:
    report = rf.check(rf.zoo.plain(5, 3), input_size=20)
    engines = {row.engine for row in report.rows}
    assert engines >= {"direct", "factored", "both"}
    words = {row.quantity.split(",")[0].split("/")[0].strip() for row in report.rows}
    assert {"log_gain", "mean", "covariance", "kurtosis", "profiles", "lost_mass"} <= words
    exact = [row for row in report.rows if "exact integers" in row.quantity]
    assert all(row.grid == "unbounded" for row in exact)
    assert "20×20" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


def test_integers_are_for_chains_alone() -> None:
    """Layers side by side are no product of polynomials."""
    report = rf.check(rf.Sequential(rf.Residual(rf.Conv(3, padding=1)), rf.Conv(3), ndim=1))
    assert report
    assert not [row for row in report.rows if "exact integers" in row.quantity]


def test_a_unit_is_checked_where_it_exists() -> None:
    report = rf.check(rf.Sequential(rf.Conv(3, padding=1), ndim=1), unit=0, input_size=9)
    assert report
    assert {row.grid for row in report.rows} == {"9"}


def test_global_layers() -> None:
    net = rf.Sequential(rf.Conv(3, padding=1), rf.SqueezeExcite(), rf.Conv(3, padding=1), ndim=1)
    report = rf.check(net)
    assert report, str(report)
    assert any("squeezeexcite1" in reason for reason in report.skipped)
    assert {row.grid for row in report.rows} == {"32"}
    assert rf.check(net, ignore_global=True).skipped == ()


@pytest.mark.parametrize("value", [0, "8", (8, 8)])
def test_bad_size(value: Any) -> None:
    with pytest.raises(InputError, match="input_size"):
        rf.check(rf.Sequential(rf.Conv(3), ndim=1), input_size=value)


# --- planted faults -------------------------------------------------------------------------


def _shifted(kernel: Callable[..., None]) -> Callable[..., None]:
    """Off by one pixel along the tiled axis."""

    def faulty(*arguments: Any) -> None:
        kernel(*arguments)
        out = arguments[-1]
        out[...] = np.roll(out.copy(), 1, axis=1)

    return faulty


def _last_dropped(kernel: Callable[..., None]) -> Callable[..., None]:
    """The last pixel that holds something is missing."""

    def faulty(*arguments: Any) -> None:
        kernel(*arguments)
        out = arguments[-1]
        row = np.flatnonzero(out.any(axis=(0, 2)))
        if row.size > 1:
            out[:, row[-1]] = 0

    return faulty


def _tap_dropped(kernel: Callable[..., None]) -> Callable[..., None]:
    """One tap too few: of a box its last, of given taps the last too."""

    def faulty(y: Any, taps: Any, *arguments: Any) -> None:
        if isinstance(taps, int):
            kernel(y, max(taps - 1, 1), *arguments)
            return
        fewer = taps.copy()
        if fewer.ndim == 3 and fewer.size > 1:
            fewer[..., -1, :] = 0
        kernel(y, fewer, *arguments)

    return faulty


def _inexact(kernel: Callable[..., None]) -> Callable[..., None]:
    """A relative error of 1e-3 in one pixel, far too small to see in a plot."""

    def faulty(*arguments: Any) -> None:
        kernel(*arguments)
        out = arguments[-1]
        out.flat[out.argmax()] *= 1.001

    return faulty


def _halved(kernel: Callable[..., None]) -> Callable[..., None]:
    """Adds half of what it is told to add."""
    return lambda y, factor, out: kernel(y, factor / 2, out)


FAULTS = [
    ("transposed_box", _shifted),
    ("transposed_box", _last_dropped),
    ("transposed_box", _tap_dropped),
    ("transposed_box", _inexact),
    ("gather_box", _shifted),
    ("gather_box", _last_dropped),
    ("gather_box", _tap_dropped),
    ("gather_box", _inexact),
    ("transposed_conv", _shifted),
    ("transposed_conv", _tap_dropped),
    ("transposed_conv", _inexact),
    ("strided_gather", _shifted),
    ("strided_gather", _tap_dropped),
    ("strided_gather", _inexact),
    ("transposed_table", _shifted),
    ("transposed_table", _last_dropped),
    ("transposed_table", _inexact),
    ("accumulate", _halved),
    ("accumulate", _inexact),
    ("box_run", _shifted),
    ("box_run", _last_dropped),
    ("box_run", _inexact),
    ("conv_run", _shifted),
    ("conv_run", _last_dropped),
    ("conv_run", _tap_dropped),
    ("conv_run", _inexact),
]


def test_the_network_is_sound() -> None:
    assert rf.check(MIXED)
    assert rf.check(RUNS)


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_planted_fault(
    name: str, fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = kernels.load("cpu")
    monkeypatch.setattr(loaded, name, fault(getattr(loaded, name)))
    report = rf.check(RUNS if name in RUN_KERNELS else MIXED)
    assert not report
    assert "FAIL" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["ok"] is False


def test_every_kernel_of_the_direct_engine_has_a_fault() -> None:
    known = {name for name, _ in FAULTS}
    used: set[str] = set()
    loaded = kernels.load("cpu")
    with pytest.MonkeyPatch.context() as patch:
        for name in kernels.KERNELS:
            kernel = getattr(loaded, name)

            def watched(*arguments: Any, name: str = name, kernel: Any = kernel) -> None:
                used.add(name)
                kernel(*arguments)

            patch.setattr(loaded, name, watched)
        rf.erf(MIXED, method="direct")
        rf.erf(RUNS, method="direct")
    assert used == known


def test_fault_through_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "plain(6, 3)", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    loaded = kernels.load("cpu")
    monkeypatch.setattr(loaded, "box_run", _last_dropped(loaded.box_run))
    assert main(["check", "plain(6, 3)", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
