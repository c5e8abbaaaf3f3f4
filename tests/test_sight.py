"""What is known of an image's values without looking at them, against every pixel's own sum."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest

from fastrf.engine.scaled import ONE, ZERO, Headroom, Scaled
from fastrf.engine.sight import DeviceSight, log2_of_sum, trimmed
from fastrf.maps import SpatialMap, Spread, Table, Window

SIGHT = DeviceSight(np)
RNG = np.random.default_rng(8)


def shares(axis: Window | Spread, taps: Any, span: tuple[int, int], size: Any) -> list[float]:
    """Of each pixel of y, the weights that lead to pixels 0 … size − 1 of x, or to any."""
    found = []
    for o in range(span[0], span[0] + span[1]):
        reads = 0.0
        for m, weight in enumerate(taps):
            if isinstance(axis, Window):
                i, rest = o * axis.stride + m * axis.dilation - axis.lo, 0
            else:
                i, rest = divmod(o + axis.lo - m * axis.dilation, axis.stride)
            reads += weight * (rest == 0 and (size is None or 0 <= i < size))
        found.append(reads)
    return found


WINDOWS = [
    (Window(k, s, d, lo), (first, count), size)
    for k, s, d, lo in [(3, 1, 1, 1), (4, 2, 1, 0), (3, 3, 2, 2), (5, 1, 1, 4), (1, 2, 1, 0)]
    for first, count, size in [(0, 4, 12), (0, 9, 9), (2, 3, 30), (0, 2, 3), (-2, 4, 9), (5, 6, 11)]
]


@pytest.mark.parametrize("equal", [True, False])
@pytest.mark.parametrize(("axis", "span", "size"), WINDOWS)
def test_what_reaches_the_map(axis: Window, span: tuple[int, int], size: int, equal: bool) -> None:
    """Exactly, but where a window is wider than the map: then it is a lower bound."""
    taps = np.ones(axis.kernel) if equal else RNG.random(axis.kernel)
    taps /= taps.sum()
    move = SpatialMap((axis,), "random", 1.0, None if equal else (taps,), (size,), None)
    least = min(shares(axis, taps, span, size))
    found = SIGHT.kept(move, [span])
    if axis.span < size:
        expected = math.log2(least) if least else -math.inf
        assert found == pytest.approx(expected, abs=1e-12)
    else:
        assert 2.0**found <= least * (1 + 1e-12)


def test_what_reaches_the_map_through_taps_that_are_no_product() -> None:
    taps = RNG.random((3, 4))
    axes = (Window(3, 1, 1, 1), Window(4, 2, 1, 3))
    move = SpatialMap(axes, "random", 1.0, taps, (9, 20), None)
    spans = [(0, 9), (0, 4)]
    least = min(
        sum(
            taps[m, n]
            for m, n in np.ndindex(3, 4)
            if 0 <= o + m - 1 < 9 and 0 <= 2 * p + n - 3 < 20
        )
        for o, p in itertools.product(range(9), range(4))
    )
    assert SIGHT.kept(move, spans) == pytest.approx(math.log2(least))


@pytest.mark.parametrize(("span", "known"), [((-2, 4), False), ((0, 9), True), ((4, 9), False)])
def test_what_reaches_the_map_of_a_transposed_convolution(
    span: tuple[int, int], known: bool
) -> None:
    """All of it, or nothing is known."""
    axis, size = Spread(3, 2, 1, 1), 5
    move = SpatialMap((axis,), "random", 1.0, None, (size,), None)
    assert SIGHT.kept(move, [span]) == (0.0 if known else -math.inf)


@pytest.mark.parametrize("count", [1, 2, 9])
def test_the_least_that_a_pixel_meets(count: int) -> None:
    axis, taps = Spread(5, 3, 2, 1), RNG.random(5)
    for own in (taps, None):
        weights = np.ones(5) if own is None else own
        least = min(shares(axis, weights, (4, count), None))
        assert SIGHT.least(axis, own, (4, count)) == pytest.approx(math.log2(least))
    table = Table(np.arange(4), RNG.random((4, 3)))
    least = table.taps[1:4].sum(axis=1).min()
    assert SIGHT.least(table, None, (1, 3)) == pytest.approx(math.log2(least))
    assert SIGHT.least(Spread(1, 2), None, (0, 2)) == -math.inf  # between the pixels


def test_trimmed_arrays() -> None:
    array = np.zeros((4, 5))
    array[1:3, 2:4] = [[1, 0], [0, 2]]
    found, origin = trimmed(array, (-3, 7))
    assert found.tolist() == [[1, 0], [0, 2]]
    assert origin == (-2, 9)
    nothing, _ = trimmed(np.zeros((2, 3)), (0, 0))
    assert nothing.size == 0
    assert SIGHT.finished(array, (-3, 7), [array.sum()])[1:] == ((-2, 9), [3.0])


def test_numbers_with_an_exponent() -> None:
    large = Scaled.of(3.0, 5000)
    assert (ZERO.log(), ONE.log()) == (-math.inf, 0.0)
    assert large.log() == pytest.approx(math.log(3) + 5000 * math.log(2))
    assert (large * large).over(large * 2.0) == math.inf
    assert (large * 4.0).over(large) == 4.0
    assert large.over(large * large) == 0.0
    assert ZERO.over(large) == 0.0
    assert (large / 3.0) == Scaled.of(1.0, 5000)
    assert large + ZERO == ZERO + large == large
    assert large + ONE == large
    assert (large + large).over(large) == 2.0
    assert Scaled.of(1.0, -1070).over(ONE) == 2.0**-1070


def test_sums_of_logarithms() -> None:
    assert log2_of_sum(3.0, 3.0) == 4.0
    assert log2_of_sum(-math.inf, 5.0) == log2_of_sum(5.0, -math.inf) == 5.0
    assert log2_of_sum(-math.inf, -math.inf) == -math.inf


def test_where_peaks_are_looked_at() -> None:
    """Only where what is known leaves more room than is given away."""
    room = Headroom.of(np.dtype("float64"))
    array = np.array([2.0, 1.0, 0.5, 0.5])
    # The largest of four values of sum 2^mass is between 2^(mass − 2) and 2^mass.
    near = room.slack - 3.0
    assert SIGHT.bounds(array, 2.0 + near, 2.0, room) == (2.0 + near, 2.0)
    assert SIGHT.bounds(array, 3.0 + room.slack, 2.0, room) == (1.0, 1.0)
    assert SIGHT.bounds(np.zeros(4), 3.0 + room.slack, 2.0, room) == (-math.inf, -math.inf)
    assert SIGHT.has_sunk(array, room.top - room.slack, room)
    assert not SIGHT.has_sunk(array, room.top + 2.0, room)
