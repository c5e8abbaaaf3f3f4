"""The script for a machine with a GPU, at tiny sizes on the stand-in: every row is made."""

from __future__ import annotations

import json
from types import ModuleType

import fake_cupy
import pytest
from test_engines_direct import gpu as machine
from test_engines_direct import xp as device_arrays

from bench import gpu as script
from bench import record
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


def test_every_row_is_made(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    if gpu is not fake_cupy:
        pytest.skip("sizes are for the stand-in")
    rows = script.run(resolve("cuda"), TINY, 600, with_tests=False)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    failed = {row["row"]: row["failed"] for row in rows if "failed" in row}
    # What is not here; all else works.
    assert all(name.startswith(("cupyx", "cuDNN")) for name in failed), failed
    assert len(failed) == 4
    by_name = {row["row"]: row for row in rows}
    assert by_name["plain(4, 3), layer by layer"]["met"] is True
    assert by_name["plain(6, 3), layer by layer"]["met"] is False
    assert by_name["plain(6, 3), layer by layer"]["pixels"] == 13**2
    for name, row in by_name.items():
        if "target" in row:
            (figure,) = row["target"]
            assert row[figure] > 0, name
            assert row["first_call_seconds"] > 0
    assert by_name["factored image, a residual stack, float64"]["terms"] > 1
    assert by_name["fastrf bench"]["ok"] is True


def test_a_row_that_fails_and_no_time(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise MemoryError("8 bytes")

    monkeypatch.setattr(script, "sweep", broken)
    rows = script.run(resolve("cuda"), TINY, 600, with_tests=False, names="sweep")
    assert [row["row"] for row in rows] == ["device", "sweep, float64", "sweep, float32"]
    assert rows[1]["failed"] == "MemoryError: 8 bytes"
    rows = script.run(resolve("cuda"), TINY, -1, with_tests=False, names="limits")
    assert {row["failed"] for row in rows} == {"no time was left"}
