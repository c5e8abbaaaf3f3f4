"""Runs of layers against the naive loops, layer by layer, and against whole numbers.

Tolerances: a kernel's own bound from the specification, plus the oracle's, which does the same
layers in float64; for float64 they are equal.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

import naive
import numpy as np
import pytest
from fastrf.kernels import KERNELS, load
from fastrf.kernels.cpu.box_run import box_depth

from fastrf.analytic.polynomial import extended_binomial

DTYPES = (np.float32, np.float64)
RUNS = ("box_run", "conv_run")


class Case(NamedTuple):
    source: tuple[int, int, int]
    k: tuple[int, int, int]
    count: int
    lo: tuple[int, int, int]
    target: tuple[int, int, int]


def whole(source, k, count):
    """All that a run reaches."""
    target = tuple(n + count * (w - 1) for n, w in zip(source, k, strict=True))
    return Case(source, k, count, (0, 0, 0), target)


CASES = [
    # One pixel; rows, columns and planes alone; taps that do nothing.
    whole((1, 1, 1), (1, 1, 1), 1),
    whole((1, 1, 1), (1, 3, 3), 7),
    whole((1, 1, 50), (1, 1, 3), 9),
    whole((1, 50, 1), (1, 4, 1), 5),
    whole((50, 1, 1), (2, 1, 1), 5),
    whole((3, 5, 7), (1, 1, 1), 4),
    # Fewer rows and columns than a block has; odd numbers of both; taps that outnumber the array.
    whole((1, 3, 5), (1, 3, 3), 1),
    whole((1, 7, 19), (1, 5, 2), 3),
    whole((1, 37, 23), (1, 3, 7), 11),
    whole((1, 3, 4), (1, 9, 31), 2),
    whole((1, 2, 3), (1, 70, 1), 1),
    whole((2, 9, 17), (1, 3, 3), 4),
    whole((5, 6, 7), (3, 3, 3), 3),
    whole((4, 9, 5), (2, 1, 4), 9),
    # More layers than one sweep takes.
    whole((1, 3, 2), (1, 3, 2), 40),
    whole((1, 2, 5), (1, 2, 7), 13),
    whole((2, 2, 2), (3, 2, 2), 19),
    # Larger than a tile along each axis in turn.
    whole((1, 1050, 9), (1, 3, 3), 2),
    whole((1, 9, 1250), (1, 3, 3), 2),
    whole((1, 9, 2550), (1, 3, 3), 2),
    whole((1, 75, 1300), (1, 3, 2), 5),
    whole((70, 3, 9), (3, 2, 2), 2),
    whole((3, 70, 9), (3, 3, 1), 2),
    # A part of the result; one beyond it on all sides; several sweeps of a part.
    Case((1, 20, 20), (1, 3, 3), 3, (0, 5, 9), (1, 11, 13)),
    Case((2, 5, 6), (2, 3, 4), 2, (-1, -4, -3), (5, 17, 21)),
    Case((1, 9, 30), (1, 3, 2), 40, (0, 30, 33), (1, 9, 20)),
    # Lines in pieces: all of the result, a part of it, and more.
    whole((1, 1, 3000), (1, 1, 5), 7),
    Case((1, 1, 3000), (1, 1, 6), 2, (0, 0, 1001), (1, 1, 703)),
    Case((1, 1, 500), (1, 1, 3), 9, (0, 0, -300), (1, 1, 1201)),
    # Nothing reached, and nothing at all.
    Case((1, 1, 500), (1, 1, 3), 9, (0, 0, 600), (1, 1, 300)),
    Case((1, 5, 5), (1, 3, 3), 2, (0, 100, 0), (1, 4, 9)),
    Case((1, 5, 5), (1, 3, 3), 70, (0, 0, -1000), (1, 4, 9)),
    Case((1, 0, 5), (1, 3, 3), 2, (0, 0, 0), (1, 4, 9)),
    Case((1, 5, 5), (1, 3, 3), 2, (0, 0, 0), (1, 0, 9)),
    # All layers together reach farther than a tile is wide.
    whole((1, 2, 3), (1, 1, 257), 5),
]


def fill(shape, dtype, seed=0):
    """Positive numbers over ten decades."""
    return (10.0 ** np.random.default_rng(seed).uniform(-10, 0, shape)).astype(dtype)


def layer(name, k, dtype):
    """The second argument; taps of sum 1 at most."""
    if name == "box_run":
        return k
    taps = fill(k, dtype, seed=1)
    return taps / dtype(2 * taps.sum())


def run(name, case, dtype, y=None, out=None):
    y = fill(case.source, dtype) if y is None else y
    out = np.full(case.target, np.nan, dtype) if out is None else out
    call = getattr(load(), name)
    assert call(y, layer(name, case.k, dtype), case.count, case.lo, out) is None
    return out


def oracle(name, case, dtype, y=None):
    out = np.full(case.target, np.nan)
    y = fill(case.source, dtype) if y is None else y
    getattr(naive, name)(y, layer(name, case.k, dtype), case.count, case.lo, out)
    return out


def bounds(name, case, dtype):
    """Relative and absolute: every layer of taps, of sum 1 at most, may drop so much of a pixel."""
    tolerance = KERNELS[name].tolerance
    terms = case.count * math.prod(case.k)
    exact = tolerance(np.float64, case.count * math.prod(case.k))
    if name == "box_run":
        terms = 1 + case.count * sum(n - 1 for n in case.k)
        return {"rtol": tolerance(dtype, terms) + exact, "atol": 0}
    least = float(np.finfo(dtype).smallest_normal) / float(layer(name, case.k, dtype).min())
    return {"rtol": tolerance(dtype, terms) + exact, "atol": case.count * least}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("name", RUNS)
def test_agrees_with_naive_layers(name, case, dtype):
    np.testing.assert_allclose(
        run(name, case, dtype), oracle(name, case, dtype), **bounds(name, case, dtype)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("name", RUNS)
def test_tiles_have_the_bits_of_the_whole(name, axis, dtype):
    """Results do not depend on how the callers share the image out over threads."""
    for case in CASES:
        out = np.full([n + 2 for n in case.target], np.nan, dtype)
        inner = out[1:-1, 1:-1, 1:-1]
        step = max(1, -(-case.target[axis] // 3))
        for a in range(0, case.target[axis], step):
            tile = np.moveaxis(np.moveaxis(inner, axis, 0)[a : a + step], 0, axis)
            lo = tuple(n + a * (d == axis) for d, n in enumerate(case.lo))
            run(name, case._replace(lo=lo), dtype, out=tile)
        np.testing.assert_array_equal(inner, run(name, case, dtype))
        inner[...] = np.nan
        assert np.isnan(out).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RUNS)
def test_layout_does_not_change_the_bits(name, dtype):
    for case in (CASES[8], CASES[12], CASES[14]):
        for axis in range(3):
            # Every other element of `axis`, an axis in reverse, and Fortran order.
            y = np.zeros([n * (1 + (a == axis)) for a, n in enumerate(case.source)], dtype)
            y = np.moveaxis(np.moveaxis(y, axis, 0)[::2], 0, axis)
            y[...] = fill(case.source, dtype)
            y.flags.writeable = dtype is np.float64  # read-only is a type of its own to Numba
            out = np.flip(np.full(case.target, np.nan, dtype, order="F"), axis)
            np.testing.assert_array_equal(run(name, case, dtype, y, out), run(name, case, dtype))


@pytest.mark.parametrize(("dtype", "layers"), [(np.float64, 400), (np.float32, 70)])
def test_tails_are_right_pixel_by_pixel(dtype, layers):
    """Trinomial coefficients, from 1 to 1.7e189 in float64, one after the other and in one run.

    A layer of three equal taps is two additions, two roundings; n layers are n times that.
    """
    exact = [1]
    for _ in range(layers):
        exact = [sum(exact[max(0, i - 2) : i + 1]) for i in range(len(exact) + 2)]
    out = np.empty((1, 1, 2 * layers + 1), dtype)
    load().box_run(np.ones((1, 1, 1), dtype), (1, 1, 3), layers, (0, 0, 0), out)
    error = Fraction(2 * layers) * Fraction(float(np.finfo(dtype).eps)) / 2
    error /= 1 - error
    assert max(exact) > (1e189 if dtype is np.float64 else 1e32)
    for value, integer in zip(out[0, 0].tolist(), exact, strict=True):
        assert abs(Fraction(value) - integer) <= error * integer


@pytest.mark.parametrize("dtype", DTYPES)
def test_whole_numbers_stay_whole(dtype):
    """Up to the depth of one sweep no tap is rounded: a pixel gives the product of two rows."""
    for k in range(2, 12):
        depth = box_depth((1, k, k), np.dtype(dtype))
        n = depth * (k - 1) + 1
        row, square = np.empty((1, 1, n), dtype), np.empty((1, n, n), dtype)
        one = np.ones((1, 1, 1), dtype)
        load().box_run(one, (1, 1, k), depth, (0, 0, 0), row)
        load().box_run(one, (1, k, k), depth, (0, 0, 0), square)
        assert row.sum(dtype=np.float64) == float(k**depth)
        assert row.max() <= 2.0 ** (np.finfo(dtype).nmant + 1)
        np.testing.assert_array_equal(square[0], np.outer(row, row))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RUNS)
def test_subnormal_results_are_zero(name, dtype):
    """Of subnormal sums nothing is stored; a normal sum of subnormal numbers is."""
    tiny = float(np.finfo(dtype).smallest_normal)
    y = np.full((1, 9, 20), tiny / 2, dtype)
    out, expected = np.full((1, 9, 22), np.nan, dtype), np.empty((1, 9, 22))
    taps = np.ones((1, 1, 3), dtype) if name == "conv_run" else (1, 1, 3)
    getattr(load(), name)(y, taps, 1, (0, 0, 0), out)
    getattr(naive, name)(y, taps, 1, (0, 0, 0), expected)
    assert (expected == tiny / 2).any()
    assert (expected >= tiny).any()
    # A few multiples of tiny/2: no rounding anywhere.
    np.testing.assert_array_equal(out, np.where(expected < tiny, 0, expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_drop_what_would_have_subnormal_products(dtype):
    """A pixel is handed down while it is at least the smallest normal number over the least tap."""
    tiny = np.finfo(dtype).smallest_normal
    taps = np.array([[[0.5, 0, 0.25]]], dtype)
    y = np.array([[[16 * tiny, 0, 0, 0, 0, 8 * tiny]]], dtype)
    for layers, expected in (
        (1, [8, 0, 4, 0, 0, 4, 0, 0]),
        (2, [4, 0, 4, 0, 0, 0, 0, 0, 0, 0]),
    ):
        out = np.full((1, 1, len(expected)), np.nan, dtype)
        load().conv_run(y, taps, layers, (0, 0, 0), out)
        np.testing.assert_array_equal(out[0, 0], np.array(expected, dtype) * tiny)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layers", [1, 3, 7])
@pytest.mark.parametrize("bits", range(-2, 4))
def test_the_limit_holds_where_results_are_compared_and_where_they_need_not_be(bits, layers, dtype):
    """Layers keep 2^3 times the smallest normal number; the last corner of the result is a pixel
    times 2^(−3·layers), from that limit times 2^bits on. One bit above, nothing is compared."""
    least = 8 * np.finfo(dtype).smallest_normal
    taps = np.array([[[0.5, 0.25], [0.125, 0.125]]], dtype)
    y = np.zeros((1, 30, 40), dtype)
    y[0, 20, 30] = np.ldexp(least, 3 * layers + bits)
    out = np.full((1, 30 + layers, 40 + layers), np.nan, dtype)
    load().conv_run(y, taps, layers, (0, 0, 0), out)
    assert out[0, 20 + layers, 30 + layers] == (np.ldexp(least, bits) if bits >= 0 else 0)
    assert ((out == 0) | (out >= least)).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_bands_of_rows_are_compared_where_only_some_are_tiny(dtype):
    """A row of the least that a layer keeps, far from rows of 1 and among them."""
    least = 9 * np.finfo(dtype).smallest_normal
    taps = np.full((1, 3, 3), 1 / 9, dtype)
    y = np.ones((1, 150, 40), dtype)
    y[0, 60:90] = 0
    y[0, 75], y[0, 20] = least, least
    whole_out = np.full((1, 158, 48), np.nan, dtype)
    load().conv_run(y, taps, 4, (0, 0, 0), whole_out)
    assert ((whole_out == 0) | (whole_out >= least / 2)).all()
    assert (whole_out[0, 79] == 0).all()
    rows = np.full((1, 1, 48), np.nan, dtype)
    for r in range(158):
        load().conv_run(y, taps, 4, (0, r, 0), rows)
        np.testing.assert_array_equal(rows[0, 0], whole_out[0, r])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RUNS)
def test_nan_is_not_swallowed_and_stays_in_its_field(name, dtype):
    case = whole((2, 20, 30), (1, 3, 3), 3)
    y = fill(case.source, dtype)
    y[1, 7, 11] = np.nan
    expected = np.isnan(oracle(name, case, dtype, y))
    assert expected.sum() == 49
    np.testing.assert_array_equal(np.isnan(run(name, case, dtype, y)), expected)


@pytest.mark.parametrize("name", RUNS)
def test_impossible_runs_are_refused(name):
    call, y, out = getattr(load(), name), np.ones((1, 5, 5)), np.ones((1, 9, 9))
    second = layer(name, (1, 3, 3), np.float64)
    with pytest.raises(ValueError, match="count is 0; it has to be at least 1"):
        call(y, second, 0, (0, 0, 0), out)
    with pytest.raises(TypeError, match=r"all arrays .* float32, or all are float64"):
        call(y.astype(np.float32), second, 2, (0, 0, 0), out)
    empty, wide = (1, 0, 3), (1, 3, 258)
    if name == "conv_run":
        empty, wide = np.ones(empty), np.ones(wide)
    with pytest.raises(ValueError, match="it has to be at least 1"):
        call(y, empty, 2, (0, 0, 0), out)
    with pytest.raises(ValueError, match=r"at most 257 taps .* use transposed_(box|conv)"):
        call(y, wide, 2, (0, 0, 0), out)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RUNS)
def test_the_widest_taps_fit(name, dtype):
    case = whole((1, 3, 300), (1, 1, 257), 1)
    np.testing.assert_allclose(
        run(name, case, dtype), oracle(name, case, dtype), **bounds(name, case, dtype)
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "k", [(1, 3, 3), (1, 1, 2), (1, 2, 9), (1, 9, 2), (3, 3, 3), (3, 1, 12), (1, 1, 200)]
)
def test_box_runs_grow_while_their_coefficients_are_exact_and_few(k, dtype):
    """Doubling ends with 65 taps, 33 in volumes, or where a coefficient is no number any more."""
    most = 65 if k[0] == 1 else 33

    def fits(layers):
        largest = max(max(extended_binomial(layers, n)) for n in k)
        return layers * (max(k) - 1) < most and largest <= 2 ** (np.finfo(dtype).nmant + 1)

    depth = box_depth(k, np.dtype(dtype))
    assert depth == 1 or fits(depth)
    assert not fits(2 * depth)
