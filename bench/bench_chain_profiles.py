"""Chains per second of the batched kernel, beside NumPy's convolution chain by chain.

    pytest bench/bench_chain_profiles.py --benchmark-columns=median,ops

Every benchmark records ``chains_per_second`` and ``updates_per_second``, one pixel of one layer
each, and ``additions_per_second``: k − 1 for every update of a layer of k equal taps, which bound
the kernel while a profile stays in the first-level cache. Compilation is outside of the timing.
The cases are those of `fastrf bench`, and a clipped map, where every layer loses some.
"""

from __future__ import annotations

import numpy as np
import pytest

from fastrf.benchmark.cases import Chains
from fastrf.device import resolve

CHAINS = 2000
DTYPES = ("float64", "float32")


def noted(benchmark, case):
    """Rates beside the times."""
    if benchmark.stats is None:  # --benchmark-disable
        return
    seconds = benchmark.stats.stats.median
    kernels = case.layers[0].reshape(CHAINS, -1)[:, ::-1]
    benchmark.extra_info["chains_per_second"] = CHAINS / seconds
    benchmark.extra_info["updates_per_second"] = int(case.widths.sum()) / seconds
    benchmark.extra_info["additions_per_second"] = (
        int(((kernels - 1) * case.widths).sum()) / seconds
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("depth", [10, 100])
def test_unbounded(benchmark, depth, workers, dtype):
    benchmark.group = f"{CHAINS} chains of {depth} layers"
    case = Chains(CHAINS, depth)
    call = case.call(resolve("cpu"), np.dtype(dtype), workers)
    call()
    benchmark(call)
    noted(benchmark, case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_clipped(benchmark, dtype):
    benchmark.group = f"{CHAINS} chains of 100 layers"
    case = Chains(CHAINS, 100)
    case.layers[4] = 64
    case.units[:], case.starts[:], case.columns = 5, 0, 64
    call = case.call(resolve("cpu"), np.dtype(dtype), 1)
    call()
    benchmark(call)
    if benchmark.stats is not None:
        benchmark.extra_info["chains_per_second"] = CHAINS / benchmark.stats.stats.median


@pytest.mark.parametrize("depth", [10, 100])
def test_numpy(benchmark, depth):
    """`numpy.convolve`, layer by layer and chain by chain, with subnormal tails as they come."""
    benchmark.group = f"{CHAINS} chains of {depth} layers"
    case = Chains(CHAINS, depth)
    (peer,) = case.peers.values()
    benchmark.pedantic(lambda: list(peer(np.dtype(np.float64), "cpu")), rounds=3)
    noted(benchmark, case)
