"""A GPU that fails on the way, by the stand-in: a clear error, and the next call works."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import fake_cupy
import numpy as np
import pytest
from fastrf.kernels import KERNELS
from fastrf.kernels.cuda import _module
from shim.standin import StandIn

import fastrf as rf
from fastrf import device
from fastrf.errors import (
    DeviceError,
    DeviceLostError,
    KernelError,
    OutOfMemoryError,
    PlanError,
)


class CUDARuntimeError(RuntimeError):
    """CuPy's, by its name."""


class CupyOutOfMemoryError(MemoryError):
    """cupy.cuda.memory.OutOfMemoryError."""


@pytest.fixture
def gpu(standin: Callable[..., StandIn], monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A machine with a GPU, which is the stand-in."""
    xp, _ = fake_cupy.install(monkeypatch, standin())
    monkeypatch.setattr(device, "_look", lambda: device._Found(xp=xp, count=1))
    told = (8 << 30, 16 << 30)
    pool = type("Pool", (), {"free_bytes": lambda self: 0})
    monkeypatch.setattr(xp, "get_default_memory_pool", pool, raising=False)
    monkeypatch.setattr(xp.cuda.runtime, "memGetInfo", lambda: told, raising=False)
    attributes = {"MemoryClockRate": 3_201_000, "GlobalMemoryBusWidth": 6144}
    monkeypatch.setattr(fake_cupy._Device, "attributes", attributes, raising=False)
    return xp


def field() -> Any:
    net = rf.Sequential(*[rf.Conv(3, padding=1)] * 6, ndim=1)
    return rf.erf(net, device="cuda", method="direct", input_size=12)


def failing(monkeypatch: pytest.MonkeyPatch, at: int, error: Exception) -> list[str]:
    """Lets the launch of that number fail."""
    launched: list[str] = []

    def function(self: Any, source: Any, name: str) -> Any:
        kernel = plain(self, source, name)

        def launch(*arguments: Any) -> None:
            launched.append(name)
            if len(launched) == at:
                raise error
            kernel(*arguments)

        return launch

    plain = fake_cupy.Backend.function
    monkeypatch.setattr(fake_cupy.Backend, "function", function)
    return launched


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("at", [1, 2])
def test_a_device_lost_in_mid_run(monkeypatch, at):
    expected = field().to_numpy()
    lost = CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")
    launched = failing(monkeypatch, at, lost)
    with pytest.raises(DeviceLostError, match=r"'cuda:0' failed on the way .*new process") as found:
        field()
    assert isinstance(found.value, DeviceError)
    assert found.value.__cause__ is lost
    assert len(launched) == at  # nothing more was tried
    np.testing.assert_array_equal(field().to_numpy(), expected)


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    "error",
    [
        CupyOutOfMemoryError("Out of memory allocating 512 bytes (allocated so far: 0 bytes)."),
        CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"),
    ],
    ids=["CuPy's pool", "the driver"],
)
def test_a_gpu_out_of_memory(monkeypatch, error):
    expected = field().to_numpy()
    failing(monkeypatch, 2, error)
    with pytest.raises(OutOfMemoryError, match=r"memory ran out on 'cuda:0' .*dtype='float32'"):
        field()
    np.testing.assert_array_equal(field().to_numpy(), expected)


@pytest.mark.usefixtures("gpu")
def test_a_cuda_source_that_does_not_compile(monkeypatch):
    expected = field().to_numpy()
    failing(monkeypatch, 1, _module.CompilationError("box_run.cu does not compile: error: no"))
    with pytest.raises(KernelError, match=r"does not compile for 'cuda:0' .*constraints.txt"):
        field()
    np.testing.assert_array_equal(field().to_numpy(), expected)


@pytest.mark.parametrize("method", ["direct", "factored", "spectral"])
def test_what_does_not_fit_is_refused_before_anything_starts(gpu, monkeypatch, method):
    """Neither a launch nor an array: the plan says no, for what is free and for what was asked."""
    launched = failing(monkeypatch, 0, RuntimeError("not to be launched"))

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("nothing is to be allocated")

    for name in ("empty", "full", "zeros", "asarray"):
        monkeypatch.setattr(gpu, name, refuse, raising=False)
    # Terms that no chain reduces: their profiles alone are more.
    blocks = [rf.Residual(rf.Conv(k, padding=k // 2)) for k in (3, 5)] * 30
    net = rf.Sequential(*blocks, ndim=2)
    options: dict[str, Any] = {"device": "cuda", "method": method}
    needed = rf.plan(net, **options).working
    for limit in (needed - 1, needed // 3):
        with pytest.raises(PlanError, match=r"the plan needs about .* more than the limit of"):
            rf.erf(net, memory_limit=limit, **options)
    monkeypatch.setattr(gpu.cuda.runtime, "memGetInfo", lambda: (needed, 16 << 30))
    with pytest.raises(PlanError, match="by default half of what is free"):
        rf.erf(net, **options)
    assert launched == []


@pytest.mark.usefixtures("gpu")
def test_warmup_of_a_gpu(monkeypatch, tmp_path):
    """Every kernel of the GPU is called in every dtype, on arrays of the device."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    done = rf.warmup("cuda")
    expected = {
        ("cuda:0", k.name, dtype.name)
        for k in KERNELS.values()
        for dtype in k.dtypes
        if k.devices is None or "cuda" in k.devices
    }
    assert {(k.device, k.kernel, k.dtype) for k in done.kernels} == expected
    assert done.folders == {"cuda:0": str(tmp_path / "fastrf" / "cuda")}
