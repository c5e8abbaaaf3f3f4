"""The fuzzers' corpus, replayed: no input of a stranger raises anything but a `FastrfError`."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx")

from fuzz.targets import CORPUS, TARGETS, check

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", TARGETS)
def test_corpus(name: str) -> None:
    kept = sorted((CORPUS / name).iterdir())
    assert kept, "every door has inputs that are kept"
    for path in kept:
        check(name, path.read_bytes())


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_taken(name: str) -> None:
    """The fuzzers begin with inputs that their doors accept, at least one of them."""
    for seed in TARGETS[name].seeds():
        TARGETS[name].run(seed)


@pytest.mark.parametrize("name", TARGETS)
def test_cut_off(name: str) -> None:
    """Every seed, cut off at twenty places."""
    for seed in TARGETS[name].seeds():
        for cut in range(0, len(seed), max(1, len(seed) // 20)):
            check(name, seed[:cut])


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")
def test_the_fuzzer_runs() -> None:
    line = [sys.executable, "-m", "tests.fuzz", "--runs", "200", "--seconds", "20", "expression"]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "expression" in done.stdout
