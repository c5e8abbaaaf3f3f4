"""Ctrl-C stops a long computation, whichever; nothing is corrupted, and the next call is as before.

The child computes one thing over and over; the parent sends SIGINT while it does. Order and outcome
are asserted here; how soon it stops is measured by bench/interrupt.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fastrf.kernels._shield import is_busy, out_of_reach
from fastrf.kernels.cpu import _translate
from fastrf.kernels.cpu._compile import kernel

from fastrf.engine.threads import PIECE, Threads

CHILD = r"""
import signal, sys, tempfile, traceback
signal.alarm(240)  # should it hang
import numpy as np
import fastrf as rf

JOBS = {}

def job(make):
    JOBS[make.__name__] = make
    return make

def reference():
    net = rf.Sequential(rf.Conv(3, padding=1), *[rf.Residual(rf.Conv(3, padding=1))] * 4)
    found = [rf.erf(net, input_size=20), rf.erf(net, method="factored"), rf.erf(rf.zoo.plain(40))]
    return b"".join(f.to_numpy().tobytes() for f in found)

@job
def at_once():
    net = rf.Sequential(*[rf.Conv(3, padding=1)] * 4000)
    return lambda: rf.erf(net, input_size=200, method="direct")

@job
def by_layers():
    net = rf.zoo.plain(1500)
    return lambda: rf.erf(net, method="direct", workers=2)

@job
def factored():
    net = rf.Sequential(*[rf.Residual(rf.Conv(3, padding=1), rf.Conv(3, padding=1))] * 1000)
    return lambda: rf.erf(net, method="factored", workers=2).image

@job
def spectral():
    blocks = [rf.Residual(rf.Conv(3, padding=1), rf.Conv(5, padding=2)) for _ in range(300)]
    net = rf.Sequential(*blocks)
    return lambda: rf.erf(net, method="spectral", accuracy="absolute", workers=2)

@job
def check():
    net = rf.zoo.plain(100)
    return lambda: rf.check(net)

@job
def sweep():
    space = rf.Space({"name": "s", "ndim": 2, "parameters": {"depth": {"from": 1, "to": 60},
                      "kernel": [3, 4, 5], "rate": [1, 2], "dilation": "rate"}})
    def run():
        with tempfile.TemporaryDirectory() as folder:
            rf.sweep(space, folder + "/s.db", workers=0, progress=False).close()
    return run

@job
def empirical():
    import torch
    torch.set_num_threads(1)
    module = torch.nn.Sequential(*[torch.nn.Conv2d(4, 4, 3, padding=1) for _ in range(6)])
    # With what the first call imports: Python itself drops an interrupt that meets the end of an
    # import (a callback of its import locks, in which exceptions are ignored).
    rf.empirical(module, (1, 4, 48, 48), draws=2)
    return lambda: rf.empirical(module, (1, 4, 48, 48), draws=400)

before = reference()
for name in sys.argv[1:]:
    work = JOBS[name]()
    try:
        print(f"begun {name}", flush=True)
        while True:
            work()
    except KeyboardInterrupt as error:
        inside = any("/fastrf/" in f.filename or "/kernels/" in f.filename
                     for f in traceback.extract_tb(error.__traceback__))
        del error
    print("stopped", name, inside, reference() == before, flush=True)
"""


def interrupted(*jobs: str) -> list[list[str]]:
    """What the child says of each job, which gets one SIGINT a while after it has begun."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, "-W", "error", "-c", CHILD, *jobs],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        said = []
        for name in jobs:
            begun = child.stdout.readline()
            assert begun == f"begun {name}\n", begun + child.stderr.read()
            try:
                child.wait(0.3)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGINT)
            said.append(child.stdout.readline().split())
        _, errors = child.communicate(timeout=30)
    assert child.returncode == 0, errors
    return said


def test_ctrl_c_stops_every_engine_and_the_next_call_gives_the_same_bits():
    jobs = ("at_once", "by_layers", "factored", "spectral", "check", "sweep")
    assert interrupted(*jobs) == [["stopped", job, "True", "True"] for job in jobs]


def test_ctrl_c_leaves_a_compilation_to_its_end():
    """Broken off anywhere it would leave a compiler that compiles nothing more."""
    go_on, done = threading.Event(), threading.Event()

    def compilation() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        go_on.wait(30)
        done.set()

    with pytest.raises(KeyboardInterrupt):
        out_of_reach(compilation, leave=True)
    assert not done.is_set()
    assert is_busy()
    go_on.set()
    assert done.wait(30)


def test_ctrl_c_waits_for_no_kernel(monkeypatch):
    go_on, done = threading.Event(), threading.Event()

    def compilation(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        go_on.wait(30)
        done.set()

    def nothing(_: float) -> None: ...

    monkeypatch.setattr(_translate, "machine_code", compilation)
    compiled = kernel(nothing)
    if compiled is nothing:
        pytest.skip("kernels run as Python")
    with pytest.raises(KeyboardInterrupt):
        compiled(1.0)
    assert not done.is_set()
    go_on.set()
    assert done.wait(30)


def test_ctrl_c_breaks_off_no_import():
    done = []

    def load() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        done.append(1)
        return 1

    with pytest.raises(KeyboardInterrupt):
        out_of_reach(load, leave=False)
    assert done
    assert out_of_reach(lambda: 7, leave=False) == 7
    with pytest.raises(ZeroDivisionError):
        out_of_reach(lambda: 1 // 0, leave=True)


def test_ctrl_c_stops_the_other_threads_too():
    """What has not begun does not begin, and what has is waited for."""
    begun, ended = [], []

    def piece(i: int) -> None:
        begun.append(i)
        if i == 3:
            raise KeyboardInterrupt
        time.sleep(0.01)
        ended.append(i)

    with pytest.raises(KeyboardInterrupt), Threads(2) as threads:
        threads.each(1000, 1 << 30, piece)
    assert len(begun) <= 6
    assert sorted([*ended, 3]) == sorted(begun)


def test_long_calls_are_cut_into_pieces():
    """However few threads there are; the same pieces whatever the timing."""
    parts: list[tuple[int, int]] = []
    with Threads(1) as threads:
        threads.cut(100, 10 * PIECE, lambda a, b: parts.append((a, b)), work=2)
    assert parts == [(5 * i, 5 * i + 5) for i in range(20)]
    parts.clear()
    with Threads(0) as gpu:
        gpu.cut(100, 10 * PIECE, lambda a, b: parts.append((a, b)), work=2)
    assert parts == [(0, 100)]


def test_ctrl_c_stops_a_measurement():
    pytest.importorskip("torch")
    assert interrupted("empirical") == [["stopped", "empirical", "True", "True"]]
