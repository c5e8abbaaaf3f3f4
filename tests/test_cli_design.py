"""The commands `advice` and `design`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fastrf as rf
from fastrf import cli


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of one run in this process."""
    code = cli.main(list(arguments))
    return code, *capsys.readouterr()


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)


def test_advice_json_has_the_attributes_of_the_result(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "advice", "resnet18", "--input-size", "32", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    expected = rf.advice(rf.zoo.resnet18(), input_size=32)
    assert set(found) == set(expected.to_dict())
    assert found["covered"] == list(expected.covered)
    assert found["tiles"]["halo"] == [[217, 186], [217, 186]]
    assert found["tiles"]["smaller"]["0.01"] == [list(p) for p in expected.tiles.smaller[0.01]]
    assert [c["std"] for c in found["changes"]] == [c.std for c in expected.changes]


@pytest.mark.parametrize("width", [60, 100])
def test_advice_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = run(capsys, "advice", "unet(2)", "--output", "bottom")
    assert code == 0
    assert max(map(len, out.splitlines())) <= width
    assert "bottom.conv2" in out
    assert "what would widen it" in out


def test_design_json_and_table(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["design", "--target-erf", "20", "--size", "std", "--stride", "4", "--count", "2"]
    expected = rf.design(20, size="std", stride=4, count=2)
    code, out, err = run(capsys, *line, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == expected.to_dict()
    code, out, err = run(capsys, *line)
    assert (code, err) == (0, "")
    for found in expected:
        assert f"{found.erf:.4g}" in out
        assert f"depth {found.parameters['depth']}" in out


def test_design_where_nothing_fits(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(
        capsys, "design", "--target-trf", "500:", "--stride", "1", "--budget", "layers=2"
    )
    assert code == 1
    assert "nothing fits" in out
    assert "NO" in out


def test_design_in_a_space(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text("[parameters]\ndepth = {from = 1, to = 9}\nkernel = [3]\n")
    code, out, _ = run(
        capsys, "design", "--target-trf", "9:13", "--space", str(path), "--budget", "50", "--json"
    )
    assert code == 0
    assert [d["parameters"]["depth"] for d in json.loads(out)["designs"]] == [4, 5]


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("design", "nothing is asked for"),
        ("design --target-erf ten", "--target-erf 'ten'"),
        ("design --target-erf 9:5", "target_erf=(9.0, 5.0)"),
        ("design --target-erf :", "target_erf=(None, None)"),
        ("design --target-erf 9 --budget much", "--budget 'much'"),
        ("design --target-erf 9 --budget flops=3", "'flops'"),
        ("design --target-erf 9 --size area", "area"),
        ("design --target-erf 9 --stride 3", "stride=3"),
        ("design --target-erf 9 --space absent.toml", "absent.toml"),
        ("design --target-erf 9 --device tpu", "tpu"),
        ("advice resnet5", "resnet5"),
        ("advice vgg16 --input-size 16", "input_size"),
        ("advice resnet50 --output nowhere", "nowhere"),
    ],
)
def test_bad_input_is_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    line: str,
    named: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *line.split())
    assert (code, out) == (2, "")
    assert err.startswith("fastrf: error: ")
    assert err.count("\n") == 1
    assert named in err
