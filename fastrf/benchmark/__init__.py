"""CPU against GPU against what users would use instead: the same cases, measured in one run.

Six cases: a large unbounded image, a residual stack, many units of a clipped image, dense layers of
general taps, a volume, and a sweep of chains. A measurement is the whole verb on a network that it
has seen before, with its pixels; what the first call takes beyond that (lowering, planning,
compiling or loading kernels) is apart. Every result is compared with the CPU's in float64.

The other libraries are used as one would at first: a convolution per layer, on an image that grows
with the layers, subnormal numbers flushed to zero.
"""

from __future__ import annotations

from collections.abc import Callable

from fastrf.benchmark.cases import cases_of
from fastrf.benchmark.machine import machine_of
from fastrf.benchmark.measuring import Run
from fastrf.benchmark.results import QUICK, Benchmark, Measurement, Sizes
from fastrf.check import DTYPES
from fastrf.device import gpu_at_hand, resolve
from fastrf.engine.plan import checked_dtype

__all__ = ["QUICK", "Benchmark", "Measurement", "Sizes", "benchmark"]


def benchmark(
    *,
    sizes: Sizes | None = None,
    device: str = "auto",
    dtype: str | None = None,
    workers: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Benchmark:
    """Measures all cases.

    Args:
        sizes: how large they are; default: `Sizes()`. `QUICK` takes seconds.
        device: "cpu", "cuda" or "cuda:N"; "auto": the CPU and, where there is one, the GPU.
        dtype: "float64" or "float32"; default: both.
        workers: threads on the CPU; default: as many as pay.
        progress: called with the share of the measurements that are made.

    Raises:
        InputError: an argument has a value that does not exist.
        DeviceError: the device that was named cannot be used.
    """
    sizes = sizes or Sizes()
    dtypes = DTYPES if dtype is None else (checked_dtype(dtype).name,)
    found = [resolve(device)]
    missing = None
    if device == "auto":
        missing = gpu_at_hand()
        found = [resolve("cpu")] if missing else [resolve("cpu"), resolve("cuda")]
    cases = cases_of(sizes)
    run = Run(sizes, workers)
    made: list[Measurement] = []
    for number, case in enumerate(cases):
        for where in found:
            for name in dtypes:
                made.extend(run.measure(case, where, name))
        if missing is not None:
            made.extend(
                Measurement(case.name, "cuda", name, "fastrf", not_measured=missing)
                for name in dtypes
            )
        if progress is not None:
            progress((number + 1) / len(cases))
    described = {case.name: case.description for case in cases}
    return Benchmark(machine_of(found, missing), sizes, described, tuple(made))
