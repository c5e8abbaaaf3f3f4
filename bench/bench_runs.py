"""Runs of layers: cell updates per second, against the processor's bound and the layers one by one.

    pytest bench/bench_runs.py --benchmark-group-by=group --benchmark-columns=min,ops

A cell update is one pixel of one layer. Processor time of one core, so that other programs count
little; read the figures as ratios within one run. ``test_bound`` is the most multiply-adds a second
that the processor reaches in registers; a run of k × k equal taps needs 2(k − 1) of them for a cell
update, one of general taps k². ``extra_info`` has all of these.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from fastrf.kernels import load
from fastrf.kernels.cpu._compile import kernel
from fastrf.kernels.cpu._runs import BLOCK, VECTOR_BYTES, _scratch, _sum_block
from fastrf.kernels.cpu.box_run import box_depth

pytestmark = pytest.mark.benchmark(timer=time.thread_time, min_rounds=7, max_time=0.5)

DTYPES = ("float32", "float64")


@kernel
def _blocks(repetitions, count, like):
    """One block after the other from the first-level cache, each vector loaded for eight sums."""
    lanes = VECTOR_BYTES // like.itemsize
    source = _scratch((count + BLOCK) * lanes, like)
    taps, out = _scratch(count, like), _scratch(BLOCK * lanes, like)
    source[:], taps[:] = 1, 1
    lines = np.zeros(1, np.int64)
    for _ in range(repetitions):
        _sum_block(source, 0, lanes, lines, taps, count, out, 0, lanes, 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_bound(benchmark, dtype):
    benchmark.group = f"bound {dtype}"
    repetitions, count = 2000, 256
    like = np.zeros(1, dtype)
    _blocks(1, count, like)
    benchmark(_blocks, repetitions, count, like)
    work = repetitions * count * BLOCK * VECTOR_BYTES // like.itemsize
    record(benchmark, multiply_adds=work)


def record(benchmark, **amounts):
    if benchmark.stats is not None:  # --benchmark-disable
        seconds = benchmark.stats.stats.min
        benchmark.extra_info["case"] = benchmark.name
        for name, amount in amounts.items():
            benchmark.extra_info[f"{name}_per_second"] = amount / seconds


def measure(benchmark, name, shape, k, count, dtype, y=None):
    """A window of the result as large as the image, its middle."""
    y = np.ones(shape, dtype) if y is None else y
    out = np.empty(shape, dtype)
    lo = [count * (n - 1) // 2 for n in k]
    second = k if name == "box_run" else np.full(k, 1 / np.prod(k), dtype)
    call = getattr(load(), name)
    call(y, second, count, lo, out)  # compile, and touch every page
    benchmark(call, y, second, count, lo, out)
    cells = y.size * count
    adds = sum(n - 1 for n in k) if name == "box_run" else int(np.prod(k))
    record(benchmark, updates=cells, multiply_adds=cells * adds)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [2, 3, 5, 7])
@pytest.mark.parametrize("size", [256, 512, 1024, 2048])
def test_box_run(benchmark, size, k, dtype):
    benchmark.group = f"box_run {k}×{k} {dtype}"
    depth = box_depth((1, k, k), np.dtype(dtype))
    measure(benchmark, "box_run", (1, size, size), (1, k, k), depth, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 128, 200])
def test_box_run_3d(benchmark, size, dtype):
    benchmark.group = f"box_run 3×3×3 {dtype}"
    depth = box_depth((3, 3, 3), np.dtype(dtype))
    measure(benchmark, "box_run", (size,) * 3, (3, 3, 3), depth, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("k", "count"), [(3, 16), (5, 8), (7, 5), (31, 1)])
@pytest.mark.parametrize("size", [256, 512, 1024, 2048])
def test_conv_run(benchmark, size, k, count, dtype):
    benchmark.group = f"conv_run {k}×{k} {dtype}"
    measure(benchmark, "conv_run", (1, size, size), (1, k, k), count, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["box_run", "conv_run"])
@pytest.mark.parametrize("spread", [0, 1])
def test_tails(benchmark, name, spread, dtype):
    """An image down to the least that a layer keeps, zero outside, against a flat one: the ratio
    shows what subnormal sums cost."""
    benchmark.group = f"tails {name} {dtype}"
    size = 1024
    x = np.linspace(-1, 1, size)
    radius = np.maximum(np.abs(x), np.abs(x)[:, None])
    lowest = 9 * float(np.finfo(dtype).smallest_normal)  # what layers of 3 × 3 taps keep
    y = np.exp(spread * 1.5 * np.log(lowest) * radius).astype(dtype)
    y[y < lowest] = 0
    measure(benchmark, name, (1, size, size), (1, 3, 3), 16, dtype, y[None])


@pytest.mark.parametrize("algorithm", ["run", "passes"])
@pytest.mark.parametrize("k", [3, 7, 15, 31, 41, 51, 65, 101])
def test_box_crossover(benchmark, k, algorithm):
    """One layer of k × k equal taps: where box_run stops being cheaper than transposed_box."""
    benchmark.group = f"crossover k={k} float64"
    n = 1024
    if algorithm == "run":
        measure(benchmark, "box_run", (1, n, n), (1, k, k), 1, "float64")
        return
    y, rows, out = np.ones((1, n, n)), np.empty((1, n, n)), np.empty((n, n, 1))
    box = load().transposed_box

    def passes():
        box(y, k, 1, 1, k // 2, rows)
        box(rows.reshape(n, n, 1), k, 1, 1, k // 2, out)

    passes()
    benchmark(passes)
    record(benchmark, updates=y.size)
