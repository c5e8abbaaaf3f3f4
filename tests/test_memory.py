"""Planned memory against what is allocated: NumPy tells tracemalloc of every array.

Networks are known beforehand, so that nothing is counted that stays with them. What a system calls
resident is less where pages are never touched (`bench.memory`).
"""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest

import fastrf as rf
from fastrf.engine.memory import Pool, room_for

MIB = 1 << 20


def residual(blocks: int, kernels: tuple[Any, ...] = (3,), ndim: int = 2) -> rf.Network:
    layers = [rf.Conv(kernels[i % len(kernels)], padding="same") for i in range(blocks)]
    return rf.Sequential(*map(rf.Residual, layers), ndim=ndim)


def peak_and_plan(network: rf.Network, options: dict[str, Any]) -> tuple[int, int, str]:
    """Bytes at the fullest moment of a field and its pixels, the plan's, and its engine."""
    _ = rf.erf(network, workers=1, **options).image  # compiles, lowers
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        field = rf.erf(network, workers=1, **options)
        _ = field.image
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return peak - before, field.plan.memory, field.plan.engine


FACTORED: dict[str, tuple[rf.Network, dict[str, Any]]] = {
    "chain": (rf.zoo.plain(1000, 3), {}),
    "residual": (rf.zoo.residual(1000, convs=1), {}),
    "two layers a block": (rf.zoo.residual(1000), {}),
    "anisotropic": (residual(900, ((3, 5),)), {}),
    "volume": (rf.zoo.plain(70, 3, ndim=3), {}),
    "volume of terms": (residual(70, ndim=3), {}),
    "line by line": (
        rf.Sequential(rf.Conv(3, stride=2, padding=1), *[rf.Conv(3, padding=1)] * 500),
        {"input_size": 1700},
    ),
}


@pytest.mark.parametrize("options", [{"tail": 1e-12}, {"dtype": "float32"}])
def test_where_little_is_cut_off(options: dict[str, Any]) -> None:
    """Chernoff's bound lies a little outside of the last pixel that is seen."""
    peak, plan, _ = peak_and_plan(rf.zoo.plain(150, 31), options)
    assert peak > 17 * MIB
    assert peak <= plan <= 1.2 * peak


@pytest.mark.parametrize("name", FACTORED)
def test_factored_images(name: str) -> None:
    peak, plan, engine = peak_and_plan(*FACTORED[name])
    assert engine == "factored"
    assert peak >= 17 * MIB
    assert peak <= plan <= 1.1 * peak


TERMS: dict[str, tuple[rf.Network, dict[str, Any], str, float]] = {
    # Without the border of the image that no pixel is seen in, which no plan knows of.
    "powers at a border": (rf.zoo.residual(1000), {"input_size": 224}, "powers", 1.1),
    "powers on a large map": (residual(400), {"input_size": 900}, "powers", 1.4),
    "reduced": (residual(20, (3, 5)), {"input_size": 600, "tol": 1e-9}, "recompressed", 2.0),
    "a reduced volume": (
        residual(14, (3, 5), ndim=3),
        {"input_size": 84, "tol": 1e-9},
        "recompressed",
        2.0,
    ),
}


@pytest.mark.parametrize("name", TERMS)
def test_terms(name: str) -> None:
    network, options, expected, most = TERMS[name]
    given = {"method": "factored", "accuracy": "absolute"} | options
    peak, plan, engine = peak_and_plan(network, given)
    assert engine == expected
    assert peak <= plan <= most * peak


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("size", [224, 672])
def test_covariances_above_a_stem(size: int, dtype: str) -> None:
    """The last layer's image is scaled where it is, whether or not its values call for it."""
    options = {"input_size": size, "dtype": dtype}
    peak, plan, engine = peak_and_plan(rf.zoo.get("densenet121"), options)
    assert engine == "correlated"
    assert max(plan, peak) > MIB
    assert peak <= 1.1 * plan
    # In float32 the image may end before its support does.
    assert plan <= (1.1 if dtype == "float64" else 1.2) * peak


LAPLACE = rf.Filter(3, padding=1, weights=((0.0, -1, 0), (-1, 4, -1), (0, -1, 0)))
SOBEL = rf.Filter(3, padding=1, weights=((-1.0, 0, 1), (-2, 0, 2), (-1, 0, 1)))


@pytest.mark.parametrize(
    "fixed", [[LAPLACE] * 2, [LAPLACE] * 3, [SOBEL] * 2], ids=["two", "three", "a product"]
)
def test_filters_of_either_sign(fixed: list[rf.Filter]) -> None:
    """Lags that a line of taps meets: of a filter that is no product, some lines are one tap."""
    net = rf.Sequential(rf.Conv(7, 4, padding=3), *fixed, *[rf.Conv(5, padding=2)] * 40)
    peak, plan, engine = peak_and_plan(net, {"input_size": 700})
    assert engine == "cancelling"
    assert peak <= 1.1 * plan
    assert plan <= 1.1 * peak


def test_of_the_buffers_that_are_free_the_smallest_that_fits_is_taken() -> None:
    pool = Pool("float64")
    leases = [pool.take((n,))[1] for n in (5000, 300, 40)]
    large, middle, small = (lease.buffer for lease in leases)
    leases.clear()
    assert [len(b) for b in (large, middle, small)] == [room_for(n) for n in (5000, 300, 40)]
    for count, expected in ((30, small), (200, middle), (len(middle) + 1, large)):
        array, lease = pool.take((count,))
        assert array.shape == (count,)
        assert lease.buffer is expected
        del array, lease
