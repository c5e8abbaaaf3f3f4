"""Multiply-adds in registers alone: the most that a device can do, which benchmarks measure by."""

from __future__ import annotations

from fastrf.kernels._checks import Floats

from ._geometry import THREADS, integers, suffix
from ._module import launch, properties

# As in the source.
_SUMS = 8


def threads() -> int:
    """Threads that fill the current device: what `multiply_adds` needs elements for."""
    device = properties()
    return device.processors * (device.threads_per_processor // THREADS) * THREADS


def multiply_adds(out: Floats, count: int) -> int:
    """Does ``count`` multiply-adds with each sum of a thread for every element of ``out``, a
    multiple of a block's threads; says how many that are. Does not wait for them."""
    launch(
        "peak.cu",
        f"multiply_adds_{suffix(out.dtype)}",
        (len(out) // THREADS, 1, 1),
        (THREADS, 1, 1),
        [out.dtype.type(0.5), out, *integers([count])],
    )
    return count * _SUMS * len(out)
