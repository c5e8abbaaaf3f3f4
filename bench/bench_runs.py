"""Runs of layers: cell updates per second, against the processor's bound and the layers one by one.

    pytest bench/bench_runs.py --benchmark-group-by=group --benchmark-columns=min,ops

A cell update is one pixel of one layer, of an image that grows with every layer; what tiles compute
twice does not count. Processor time of one core, so that other programs count little; read the
figures as ratios within one run. ``test_bound`` is the most multiply-adds a second that the
processor reaches in registers; a run of k × k equal taps needs 2(k − 1) of them for a cell update,
one of general taps k². ``extra_info`` has all of these, and a ``share`` of the bound.

What bounds ``conv_run`` with 3 × 3 taps, in shares of that bound (Sapphire Rapids Xeon, 2 cores; 8
rows of one vector are 72 multiply-adds, 36 cycles; 32 layers on 1024² float64 pixels):

    0.93  aligned loads only;
    0.78  two of three loads straddle two cache lines, at shifted columns (0.81 with 12 or 16 rows
          at a time; 0.74 where results are compared with what a layer keeps, 0.70 where each vector
          is compared and selected on its own);
    0.73  rows and columns around the tile;
    0.62  10 cycles a cache line to and from the third-level cache, once a sweep. Prefetches, a line
          for every block, did not help: they took as long as they saved.

A whole tile that goes through one layer after the other, from the second-level cache, reaches 0.44.
Rows cut into pieces, each a vector behind the layer before, so that 8 of them fit the first-level
cache, are no faster than whole rows (0.71 for both). Float32 is 0.02 to 0.04 below these figures on
1024², where its rows have half as many vectors, and the same on 2048².
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from fastrf.kernels import load
from fastrf.kernels.cpu._peak import multiply_adds, vector
from fastrf.kernels.cpu.box_run import box_depth

pytestmark = pytest.mark.benchmark(timer=time.thread_time, min_rounds=7, max_time=0.5)

DTYPES = ("float32", "float64")

REPETITIONS = 400_000

BOUNDS: dict[str, float] = {}
"""Multiply-adds a second in registers, by dtype, as measured in this run."""


def bound(dtype):
    """The best of some measurements, the first time."""
    if dtype not in BOUNDS:
        out, best = vector(np.dtype(dtype)), np.inf
        for _ in range(50):
            start = time.thread_time()
            count = multiply_adds(out, REPETITIONS)
            best = min(best, time.thread_time() - start)
        BOUNDS[dtype] = count / best
    return BOUNDS[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_bound(benchmark, dtype):
    benchmark.group = f"bound {dtype}"
    out = vector(np.dtype(dtype))
    count = multiply_adds(out, REPETITIONS)
    benchmark(multiply_adds, out, REPETITIONS)
    record(benchmark, multiply_adds=count)


def record(benchmark, **amounts):
    if benchmark.stats is not None:  # --benchmark-disable
        seconds = benchmark.stats.stats.min
        benchmark.extra_info["case"] = benchmark.name
        for name, amount in amounts.items():
            benchmark.extra_info[f"{name}_per_second"] = amount / seconds


def measure(benchmark, name, shape, k, count, dtype, y=None):
    """All that an image grows to."""
    y = np.ones(shape, dtype) if y is None else y
    sizes = [[n + i * (m - 1) for n, m in zip(shape, k, strict=True)] for i in range(1, count + 1)]
    out = np.empty(sizes[-1], dtype)
    second = k if name == "box_run" else np.full(k, 1 / np.prod(k), dtype)
    call = getattr(load(), name)
    call(y, second, count, (0, 0, 0), out)  # compile, and touch every page
    benchmark(call, y, second, count, (0, 0, 0), out)
    cells = sum(int(np.prod(size)) for size in sizes)
    adds = sum(n - 1 for n in k) if name == "box_run" else int(np.prod(k))
    record(benchmark, updates=cells, multiply_adds=cells * adds)
    if benchmark.stats is not None:
        share = benchmark.extra_info["multiply_adds_per_second"] / bound(dtype)
        benchmark.extra_info["share"] = share


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
@pytest.mark.parametrize(("k", "count"), [(3, 32), (5, 16), (7, 8), (31, 2)])
@pytest.mark.parametrize("size", [256, 512, 1024, 2048])
def test_conv_run(benchmark, size, k, count, dtype):
    benchmark.group = f"conv_run {k}×{k} {dtype}"
    measure(benchmark, "conv_run", (1, size, size), (1, k, k), count, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 128])
def test_conv_run_3d(benchmark, size, dtype):
    benchmark.group = f"conv_run 3×3×3 {dtype}"
    measure(benchmark, "conv_run", (size,) * 3, (3, 3, 3), 4, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("algorithm", ["box_run", "conv_run", "transposed_box", "transposed_conv"])
@pytest.mark.parametrize("k", [3, 5, 9, 11, 17, 33, 65, 129])
@pytest.mark.parametrize("size", [2_000, 65_536])
def test_line(benchmark, size, k, algorithm, dtype):
    """As many layers along a line as reach 64 pixels, and one by its own kernel."""
    benchmark.group = f"line of {size}, k={k} {dtype}"
    if algorithm.endswith("run"):
        measure(benchmark, algorithm, (1, 1, size), (1, 1, k), max(1, 64 // (k - 1)), dtype)
        return
    y, out = np.ones((1, size, 1), dtype), np.empty((1, size + k - 1, 1), dtype)
    if algorithm == "transposed_box":
        arguments = (y, k, 1, 1, 0, out)
    else:
        taps = np.full((1, k, 1), 1 / k, dtype)
        arguments = (y, taps, (1, 1, 1), (1, 1, 1), (0, 0, 0), out)
    call = getattr(load(), algorithm)
    call(*arguments)
    benchmark(call, *arguments)
    record(benchmark, updates=out.size)


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
