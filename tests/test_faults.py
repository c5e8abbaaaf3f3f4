"""The machine fails on the way: a clear error, what is finished is kept, and the next call works.

A killed worker and a killed coordinator are in test_sweep (the tests named "kill"), a GPU that
fails in tests/cuda/test_faults_cuda.py.
"""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from fastrf.kernels import load
from fastrf.kernels.cpu._compile import kernel
from sweeping import table

import fastrf as rf
from fastrf.engine import threads
from fastrf.engine.memory import Pool
from fastrf.errors import FastrfError, KernelError, OutOfMemoryError


def deep() -> rf.Network:
    """Too large an image for one call, so that it goes layer by layer."""
    return rf.zoo.plain(12, 65)


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets so many buffers be had, and the next not."""

    def install(buffers: int) -> list[weakref.ref[Any]]:
        left, taken = [buffers], []

        def take(self: Pool, shape: tuple[int, ...]) -> Any:
            left[0] -= 1
            if left[0] == -1:
                raise MemoryError("Unable to allocate 7.0 GiB")
            array, lease = plain(self, shape)
            taken.append(weakref.ref(lease.buffer))
            return array, lease

        monkeypatch.setattr(Pool, "take", take)
        return taken

    plain = Pool.take
    return install


def test_out_of_memory_says_so_and_frees_what_it_had(short_of_memory, monkeypatch):
    expected = rf.erf(deep(), method="direct").to_numpy()
    net = deep()
    taken = short_of_memory(4)
    with pytest.raises(
        OutOfMemoryError, match=r"memory ran out on 'cpu' \(.*7.0 GiB\).*tail="
    ) as at:
        rf.erf(net, method="direct")
    assert isinstance(at.value, FastrfError)
    assert isinstance(at.value, MemoryError)
    assert len(taken) == 4
    gc.collect()
    assert not any(buffer() is not None for buffer in taken)  # though the error is still held
    monkeypatch.undo()
    np.testing.assert_array_equal(rf.erf(net, method="direct").to_numpy(), expected)


def test_out_of_memory_keeps_the_finished_fields_of_all_layers(short_of_memory, monkeypatch):
    net = rf.Sequential(*[rf.Conv(5, padding=2)] * 6)
    # With a tail to drop, small images go layer by layer, too.
    options: dict[str, Any] = {"input_size": 40, "method": "direct", "tail": 1e-300}
    taken = short_of_memory(1 << 30)
    every = rf.erf(net, layers="all", **options)
    short_of_memory(len(taken) // 2)
    with pytest.raises(OutOfMemoryError) as at:
        rf.erf(net, layers="all", **options)
    monkeypatch.undo()
    finished = at.value.finished
    assert 0 < len(finished) < len(every)
    for node, erf in finished.items():
        assert erf.to_numpy().tobytes() == every[node].to_numpy().tobytes()
        assert erf.std == every[node].std


def test_out_of_memory_in_a_check_is_a_line_of_its_table(short_of_memory):
    net = deep()
    short_of_memory(4)
    report = rf.check(net)
    assert any("memory ran out" in reason for reason in report.skipped)
    assert report.rows


def test_out_of_memory_in_a_sweep_is_the_row_of_its_network(short_of_memory, monkeypatch, tmp_path):
    nets = [rf.zoo.resnet18(), _large_graph(), rf.zoo.resnet34()]
    options: dict[str, Any] = {"workers": 0, "progress": False, "method": "direct"}
    with rf.sweep(nets, tmp_path / "right.db", **options) as store:
        expected = table(store)
    short_of_memory(4)
    with rf.sweep(nets, tmp_path / "s.db", **options) as store:
        said = [row["error"] for row in store.query()]
    assert [bool(error) for error in said] == [False, True, False]
    assert said[1].startswith("OutOfMemoryError: memory ran out on 'cpu'")
    monkeypatch.undo()
    with rf.sweep(nets, tmp_path / "s.db", retry_errors=True, **options) as store:
        assert table(store) == expected


def _large_graph() -> rf.Network:
    return rf.Sequential(rf.Residual(rf.Conv(65, padding=32)), *[rf.Conv(65, padding=32)] * 12)


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux alone")
def test_out_of_memory_for_real():
    """With little address space left; afterwards the same process computes the same bits."""
    code = (
        "import resource, fastrf as rf\n"
        "small = lambda: rf.erf(rf.zoo.resnet18(), input_size=64).to_numpy().tobytes()\n"
        "large = lambda: rf.erf(rf.zoo.plain(2500), method='direct', memory_limit=1 << 40)\n"
        "rf.erf(rf.zoo.plain(300), method='direct')\n"
        "before = small()\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "free = resource.getrlimit(resource.RLIMIT_AS)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (100 << 20), free[1]))\n"
        "for _ in range(2):\n"
        "    try:\n"
        "        large()\n"
        "    except rf.errors.OutOfMemoryError as error:\n"
        "        kept = error\n"
        "    else:\n"
        "        raise SystemExit('it fitted')\n"
        "    assert small() == before\n"
        "print(kept)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "memory ran out on 'cpu'" in done.stdout


def test_a_kernel_that_does_not_compile(monkeypatch):
    net, kernels = deep(), load("cpu")
    expected = rf.erf(net, method="direct").to_numpy()

    @kernel
    def wrong(y):  # type: ignore[no-untyped-def]
        y.nothing_of_that_name = 1

    monkeypatch.setattr(kernels, "transposed_box", lambda y, *_: wrong(y))
    with pytest.raises(KernelError, match=r"does not compile for 'cpu' \(TypingError.*constraints"):
        rf.erf(net, method="direct")
    monkeypatch.undo()
    np.testing.assert_array_equal(rf.erf(net, method="direct").to_numpy(), expected)


def test_what_is_no_fault_of_the_machine_is_not_called_one(monkeypatch):
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("a mistake of fastrf")

    monkeypatch.setattr(load("cpu"), "transposed_box", broken)
    with pytest.raises(ZeroDivisionError, match="a mistake of fastrf"):
        rf.erf(deep(), method="direct")


def test_errors_travel_between_processes():
    error = OutOfMemoryError("memory ran out")
    assert str(pickle.loads(pickle.dumps(error))) == "memory ran out"
    assert error.finished == {}


def test_a_process_without_threads_computes_alone(monkeypatch):
    """Where the system gives no more of them."""
    monkeypatch.setattr(threads, "TILE_CELLS", 64)
    net = rf.zoo.plain(12)
    expected = rf.erf(net, method="direct", workers=3, tail=1e-300).to_numpy()

    def refused(self: Any) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refused)
    found = rf.erf(net, method="direct", workers=3, tail=1e-300).to_numpy()
    np.testing.assert_array_equal(found, expected)
