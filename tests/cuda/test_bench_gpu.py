"""The script for a machine with a GPU, at tiny sizes on the stand-in: every row is made, and kept
whatever becomes of the others."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_cupy
import numpy as np
import pytest
from test_engines_direct import gpu as machine
from test_engines_direct import xp as device_arrays

from bench import gpu as script
from bench import record
from bench.supervised import supervised, told
from fastrf import benchmark
from fastrf.benchmark import Sizes
from fastrf.device import resolve

gpu, xp = machine, device_arrays

CASES = Sizes(6, 3, 5, 4, 64, 1, 20, 5, seconds=0.0, patience=60.0)
TINY = script.Scale(
    side=40,
    layers=3,
    plains=((4, 1e9), (6, 0.0)),
    factored=12,
    reduced={2: (40, 60), 3: (8, 20)},
    decomposed=(40, 12),
    peer=20,
    chains=5,
    depth=3,
    copied=8000,
    budget=0.0,
    cases=CASES,
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark.machine, "GPU_COUNT", 2)
    monkeypatch.setattr(benchmark.machine, "CPU_COUNT", 2)
    monkeypatch.setattr(record, "rounds_for", lambda *_: 1)


@pytest.fixture
def lab(gpu: ModuleType, tmp_path: Path) -> script.Lab:
    if gpu is not fake_cupy:
        pytest.skip("sizes are for the stand-in")
    return script.Lab(resolve("cuda"), TINY, tmp_path)


def all_rows(lab: script.Lab, part: str = "") -> dict[str, dict[str, Any]]:
    """Every row: behind one that fails, the next begins anew."""
    left = {name: row for name, row in script.rows_of(lab.scale).items() if part in name}
    found: dict[str, dict[str, Any]] = {}
    while left:
        for row in script.made(lab, left):
            found[row["row"]] = row
        left = {name: row for name, row in left.items() if name not in found}
    return found


def test_every_row_is_made(lab: script.Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for row in ("tests", "sanitized"):
        monkeypatch.setattr(script, row, lambda *_: {"met": True})
    rows = all_rows(lab)
    json.dumps(rows)
    failed = {name: row["failed"] for name, row in rows.items() if "failed" in row}
    # What is not here; all else works.
    assert all(name.startswith(("cupyx", "cuDNN")) for name in failed), failed
    assert len(failed) == 4
    assert list(rows)[:3] == ["device", "kernel tests", "limits"]
    assert rows["plain(4, 3), layer by layer"]["met"] is True
    assert rows["plain(6, 3), layer by layer"]["met"] is False
    assert rows["plain(6, 3), layer by layer"]["pixels"] == 13**2
    for name, row in rows.items():
        if "target" in row:
            (figure,) = row["target"]
            assert row[figure] > 0, name
            assert row["first_call_seconds"] > 0
            assert 0 <= row["error"] <= row["error_bound"] < 0.01, name
    assert rows["factored image, a residual stack, float64"]["terms"] > 1
    for ndim in (2, 3):
        for dtype in script.DTYPES:
            row = rows[f"reduced terms, {ndim}-D, {dtype}"]
            assert row["reductions"] > 1
            assert row["times"] > 0
            assert 0 <= row["error"] <= row["error_bound"] < 1e-5
    assert 0 < rows["decompositions"]["svd_error"] < 1e-13
    cases = [row for name, row in rows.items() if name.startswith("fastrf bench: ")]
    assert len(cases) == 6
    assert all(row["ok"] is True for row in cases)
    assert {m["device"] for row in cases for m in row["measurements"]} == {"cpu", "cuda:0"}


@pytest.mark.parametrize(
    ("row", "kernel"),
    [
        ("dense, general taps, 40², float32", "conv_run"),
        ("dense, equal taps, 40², float64", "box_run"),
        ("plain(4, 3), layer by layer", "box_run"),
        ("factored image, one term, float64", "outer_product"),
        ("factored image, a residual stack, float32", "sum_of_terms"),
        ("sweep, float64", "grown_profiles"),
    ],
)
def test_what_is_wrong_is_not_timed(
    lab: script.Lab, monkeypatch: pytest.MonkeyPatch, row: str, kernel: str
) -> None:
    """One pixel of a kernel's result, by a tenth."""
    right = getattr(lab.kernels, kernel)

    def wrong(*arguments: Any) -> None:
        right(*arguments)
        out = arguments[-1].held
        out.reshape(-1)[out.size // 2 + (out.shape[-1] // 2 if out.ndim > 1 else 0)] *= 1.1

    monkeypatch.setattr(lab.kernels, kernel, wrong)
    found = all_rows(lab, row)[row]
    assert found["failed"].startswith("WrongResult: an error of 0."), found


@pytest.mark.parametrize(
    ("row", "error"),
    [("reduced terms, 2-D, float64", "ToleranceError"), ("decompositions", "WrongResult")],
)
def test_wrong_decompositions_are_not_timed(
    lab: script.Lab, monkeypatch: pytest.MonkeyPatch, row: str, error: str
) -> None:
    right = lab.xp.linalg.svd

    def wrong(*arguments: Any, **options: Any) -> Any:
        u, s, vt = right(*arguments, **options)
        return u * 1.001, s, vt

    monkeypatch.setattr(lab.xp.linalg, "svd", wrong)
    assert all_rows(lab, row)[row]["failed"].startswith(error)


def test_errors_that_are_no_numbers() -> None:
    with pytest.raises(script.WrongResult, match="an error of nan, where 1 is the bound"):
        script.agreement(np.ones(2), np.array([1, np.nan]), 1.0)


def test_a_row_that_fails_is_the_last_of_its_process(
    lab: script.Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise MemoryError("8\nbytes")

    monkeypatch.setattr(script, "tests", lambda *_: {"met": True})
    monkeypatch.setattr(script, "dense", broken)
    rows = list(script.made(lab, script.rows_of(replace(TINY, plains=()))))
    assert rows[-1] == {
        "row": "dense, general taps, 40², float64",
        "failed": "MemoryError: 8 bytes",
    }


# --- the process that keeps them --------------------------------------------------------------

ROWS = {
    "a": "told([{'row': 'a', 'seconds': 1.0}])",
    "fails": "told([{'row': 'fails', 'failed': 'CUDADriverError'}]); sys.exit()",
    "dies": "print('Illegal instruction', flush=True); os.abort()",
    "hangs": "print('begun', flush=True); subprocess.run(['sleep', '600'])",
    "b": "told([{'row': 'b', 'seconds': 2.0}])",
}


def start(names: Sequence[str]) -> list[str]:
    """A process that does what `ROWS` has for each name."""
    lines = ["import os, subprocess, sys", "from bench.supervised import told"]
    return [sys.executable, "-c", "\n".join([*lines, *(ROWS[name] for name in names)])]


def limit(name: str) -> float:
    return 2.0 if name == "hangs" else 60.0


def test_rows_outlive_the_processes_that_make_them() -> None:
    names = ["a", "fails", "a", "dies", "b", "hangs", "b"]
    rows = list(supervised(names, start, limit, 120))
    assert [row["row"] for row in rows] == names
    assert [row.get("seconds") for row in rows] == [1.0, None, 1.0, None, 2.0, None, 2.0]
    fails, dies, hangs = (row for row in rows if "failed" in row)
    assert fails == {"row": "fails", "failed": "CUDADriverError"}
    assert dies["failed"] == "the process ended with -6"
    assert dies["said"][0] == "Illegal instruction"
    assert hangs["failed"] == "not done after 2 s"
    assert hangs["said"] == ["begun"]


def test_rows_without_time() -> None:
    rows = list(supervised(["a", "hangs", "b"], start, lambda _: 60.0, 2.5))
    assert rows[0]["seconds"] == 1.0
    assert rows[1]["failed"].startswith("not done after")
    assert rows[2] == {"row": "b", "failed": "no time was left"}


def test_what_is_made_is_written_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, seen = tmp_path / "gpu.json", []

    def rows() -> Any:
        for number in range(3):
            yield {"row": str(number)}
            seen.append(json.loads(path.read_text("utf-8"))["results"])

    kept = script.keep(rows(), path, record.document("gpu", []))
    assert [len(results) for results in seen] == [1, 2, 3]
    assert seen[-1] == kept == [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert list(tmp_path.iterdir()) == [path]


def test_without_a_device_nothing_else_is_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a whole, in the processes of the real run."""
    assert script.main(["--device", "cuda:77", "--out", str(tmp_path), "--seconds", "100"]) == 1
    (path,) = tmp_path.glob("gpu-*.json")
    (row,) = json.loads(path.read_text("utf-8"))["results"]
    assert row["row"] == "device"
    assert row["failed"].startswith("DeviceError: device='cuda:77' cannot be used")
    assert "limits" not in capsys.readouterr().out


def test_tests_that_are_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What they say is kept where they fail, and where they are stopped."""
    lab: Any = type("Lab", (), {"folder": tmp_path})
    monkeypatch.setitem(script.LIMITS, "some tests", 2.0)
    command: Callable[[str], list[str]] = lambda code: [sys.executable, "-u", "-c", code]  # noqa: E731
    found = script.tests(lab, "some tests", command("print('1 failed'); raise SystemExit(1)"))
    assert (found["met"], found["said"]) == (False, ["1 failed"])
    for said, met in (("3 passed, 1 skipped in 2.00s", True), ("108 skipped in 9.20s", False)):
        assert script.tests(lab, "some tests", command(f"print({said!r})"))["met"] is met
    late = "import time; print('begun'); time.sleep(60)"
    found = script.tests(lab, "some tests", command(late))
    assert (found["met"], found["said"]) == (False, ["begun"])
    assert found["stopped"] == "not done after 2 s"
    assert (tmp_path / "gpu-some-tests.txt").read_text("utf-8") == "begun\n"


def test_the_tests_of_a_gpu_are_found() -> None:
    places = script.other_tests()
    assert places == ["tests/cuda", f"--ignore={script.KERNEL_TESTS}", "tests/test_metrics.py"]
    assert (script.ROOT / script.KERNEL_TESTS).is_file()


def test_rows_are_told_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    told([{"row": "a"}, {"row": "b\n"}])
    assert capsys.readouterr().out == 'row: {"row": "a"}\nrow: {"row": "b\\n"}\n'
