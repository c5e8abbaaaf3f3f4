"""Cell updates per second of every kernel, and the crossover of the two box algorithms.

    pytest bench/bench_kernels.py --benchmark-group-by=group --benchmark-columns=median,ops

Every benchmark records ``updates_per_second``: elements of the larger of source and result, by the
median time of one call, on one core. Compilation is outside the timing. Read the groups as ratios
within one run: a box flat over k, a large image no slower per cell than one in the cache.
"""

from __future__ import annotations

import numpy as np
import pytest
from fastrf.kernels import load
from fastrf.kernels.cpu import _windows

DTYPES = ("float32", "float64")
ONE = (1, 1, 1)


def measure(benchmark, name, y, out, *values):
    call = getattr(load(), name)
    call(y, *values, out)  # compile, and touch every page
    benchmark(call, y, *values, out)
    if benchmark.stats is not None:  # --benchmark-disable
        cells = max(y.size, out.size)
        benchmark.extra_info["updates_per_second"] = cells / benchmark.stats.stats.median


def image(shape, dtype, seed=0):
    return np.random.default_rng(seed).random(shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [64, 512, 1024, 2048])
@pytest.mark.parametrize("name", ["transposed_conv", "strided_gather"])
def test_convolution_3x3(benchmark, name, size, dtype):
    benchmark.group = f"3×3 {dtype}"
    y, taps = image((1, size, size), dtype), np.full((1, 3, 3), 1 / 9, dtype)
    measure(benchmark, name, y, np.empty_like(y), taps, ONE, ONE, (0, 1, 1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["transposed_conv", "strided_gather"])
def test_convolution_3x3_stride_2(benchmark, name, dtype):
    benchmark.group = f"3×3 stride 2 {dtype}"
    small, large = image((1, 512, 512), dtype), image((1, 1024, 1024), dtype)
    y, out = (small, large) if name == "transposed_conv" else (large, small)
    taps = np.full((1, 3, 3), 1 / 9, dtype)
    measure(benchmark, name, y, out, taps, (1, 2, 2), ONE, (0, 1, 1))


@pytest.mark.parametrize(
    ("shape", "taps"),
    [
        ((1, 1024, 1024), (1, 7, 7)),
        ((64, 64, 64), (3, 3, 3)),
        ((16, 4096, 1), (1, 3, 1)),
        ((1, 4096, 16), (1, 3, 1)),
        ((16, 1, 4096), (1, 1, 3)),
    ],
)
def test_convolution_shapes(benchmark, shape, taps):
    benchmark.group = "convolution, other shapes, float64"
    lo = tuple(k // 2 for k in taps)
    y = image(shape, "float64")
    weights = np.full(taps, 1 / np.prod(taps))
    measure(benchmark, "transposed_conv", y, np.empty_like(y), weights, ONE, ONE, lo)


@pytest.mark.parametrize("k", [3, 7, 31, 101])
@pytest.mark.parametrize("shape", [(1, 1024, 1024), (64, 256, 64), (1024, 1024, 1)], ids=str)
@pytest.mark.parametrize("name", ["transposed_box", "gather_box"])
def test_box_is_flat_over_k(benchmark, name, shape, k):
    benchmark.group = f"{name} {shape} float64"
    y = image(shape, "float64")
    measure(benchmark, name, y, np.empty_like(y), k, 1, 1, k // 2)


@pytest.mark.parametrize("k", [3, 7, 31, 101])
@pytest.mark.parametrize("name", ["transposed_box", "gather_box"])
def test_box_stride_2_is_flat_over_k(benchmark, name, k):
    benchmark.group = f"{name} stride 2 float64"
    small, large = image((1, 512, 1024), "float64"), image((1, 1024, 1024), "float64")
    y, out = (small, large) if name == "transposed_box" else (large, small)
    measure(benchmark, name, y, out, k, 2, 1, k // 2)


@pytest.mark.parametrize("algorithm", ["direct", "windows"])
@pytest.mark.parametrize("k", [3, 4, 5, 6, 8, 16, 24, 32])
@pytest.mark.parametrize("shape", [(1, 1024, 1024), (1024, 1024, 1)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_box_crossover(benchmark, monkeypatch, shape, k, algorithm, dtype):
    """Where ``windows`` passes ``direct`` is what the constants of ``_windows`` say."""
    benchmark.group = f"crossover {shape} {dtype} k={k}"
    limit = k if algorithm == "direct" else 1
    monkeypatch.setattr(_windows, "DIRECT_COUNT", limit)
    monkeypatch.setattr(_windows, "DIRECT_COUNT_SHORT_LAG", limit)
    y = image(shape, dtype)
    measure(benchmark, "transposed_box", y, np.empty_like(y), k, 1, 1, k // 2)


@pytest.mark.parametrize("shape", [(1, 512, 1024), (64, 512, 1)], ids=str)
def test_table(benchmark, shape):
    """Bilinear upsampling by two: two taps a source, backwards."""
    benchmark.group = "table float64"
    y = image(shape, "float64")
    out = np.empty((shape[0], shape[1] // 2 + 1, shape[2]))
    starts = np.arange(shape[1], dtype=np.int64) // 2
    measure(benchmark, "transposed_table", y, out, starts, image((shape[1], 2), "float64"))
