"""Every kernel of the specification against the naive loops, and what engines rely on besides.

Tolerances: a kernel's own bound from the specification, plus that of the oracle, which sums the
same terms in float64 one after the other.
"""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import product
from typing import Any, NamedTuple

import naive
import numpy as np
import pytest
from fastrf.kernels import KERNELS

from fastrf import kernels
from fastrf.analytic.polynomial import extended_binomial

DTYPES = (np.float32, np.float64)
CONVOLUTIONS = ("transposed_conv", "strided_gather")
BOXES = ("transposed_box", "gather_box")


class Case(NamedTuple):
    """One call: everything but the arrays' contents."""

    source: tuple[int, int, int]
    target: tuple[int, int, int]
    parameters: dict[str, Any]
    terms: int  # the most that any element of the result sums


def conv_case(source, taps, target, stride=(1, 1, 1), dilation=(1, 1, 1), lo=(0, 0, 0)):
    parameters = {"taps": taps, "stride": stride, "dilation": dilation, "lo": lo}
    return Case(source, target, parameters, math.prod(taps))


def box_case(source, target, k, stride=1, dilation=1, lo=0):
    return Case(source, target, {"k": k, "stride": stride, "dilation": dilation, "lo": lo}, k)


def table_case(source, target, starts, count):
    terms = max(
        sum(start <= i < start + count for start in starts) for i in range(-20, target[1] + 20)
    )
    return Case(source, target, {"starts": starts, "taps": (source[1], count)}, terms)


CONV_CASES = [
    conv_case((1, 1, 1), (1, 1, 1), (1, 1, 1)),
    conv_case((1, 6, 7), (1, 3, 3), (1, 6, 7), lo=(0, 1, 1)),
    conv_case((1, 5, 6), (1, 3, 3), (1, 11, 13), (1, 2, 2), lo=(0, 1, 1)),
    conv_case((1, 11, 13), (1, 3, 3), (1, 5, 6), (1, 2, 2), lo=(0, 1, 1)),
    conv_case((2, 3, 4), (2, 3, 2), (4, 6, 8), (2, 1, 3), (1, 2, 2), (1, -2, 3)),
    conv_case((4, 3, 5), (3, 3, 3), (4, 3, 5), lo=(1, 1, 1)),
    # Even taps; taps that outnumber the array; stride and dilation with a common divisor.
    conv_case((1, 5, 5), (1, 4, 2), (1, 6, 7), lo=(0, 2, 1)),
    conv_case((1, 2, 3), (1, 5, 9), (1, 4, 4), lo=(0, 2, 4)),
    conv_case((1, 7, 8), (1, 3, 4), (1, 16, 17), (1, 4, 2), (1, 2, 4), (0, 3, 5)),
    conv_case((1, 16, 17), (1, 3, 4), (1, 4, 5), (1, 4, 2), (1, 2, 4), (0, 3, 5)),
    # The crop leaves nothing, on either side, or one corner.
    conv_case((1, 4, 4), (1, 3, 3), (1, 5, 5), lo=(0, 0, 1000)),
    conv_case((1, 4, 4), (1, 3, 3), (1, 5, 5), lo=(0, -1000, 0)),
    conv_case((1, 4, 4), (1, 3, 3), (1, 5, 5), lo=(0, 5, -4)),
    # Empty images.
    conv_case((1, 0, 4), (1, 3, 3), (1, 5, 5)),
    conv_case((1, 4, 4), (1, 3, 3), (1, 5, 0)),
    conv_case((1, 4, 4), (1, 0, 3), (1, 5, 5)),  # no taps
    # One axis at a time, in the last, the middle and the first place.
    conv_case((3, 1, 40), (1, 1, 5), (3, 1, 40), lo=(0, 0, 2)),
    conv_case((3, 40, 1), (1, 5, 1), (3, 44, 1), dilation=(1, 3, 1), lo=(0, 2, 0)),
    conv_case((3, 20, 1), (1, 5, 1), (3, 44, 1), stride=(1, 2, 1), lo=(0, 2, 0)),
    conv_case((2, 9, 4), (1, 5, 1), (2, 9, 4), lo=(0, -1, 0)),
    conv_case((9, 2, 4), (5, 1, 1), (9, 2, 4), lo=(2, 0, 0)),
    # Longer than the piece of a row that is finished at a time.
    conv_case((1, 1, 1500), (1, 1, 4), (1, 1, 1500), dilation=(1, 1, 2), lo=(0, 0, 3)),
]
# Window lengths on both sides of every switch between direct sums, doubling (short rows) and blocks
# (long rows), and windows longer than the array.
BOX_CASES = [
    *(
        box_case((2, 30, columns), (2, 33, columns), k, lo=k // 2)
        for columns, k in product((1, 3, 20), (1, 2, 3, 7, 16, 17, 29, 31, 47))
    ),
    *(
        box_case((1, 30, columns), (1, 61, columns), k, stride, dilation, lo)
        for columns, k, (stride, dilation), lo in product(
            (1, 20), (4, 29, 80), ((2, 1), (1, 3), (4, 2), (6, 9)), (-3, 17)
        )
    ),
    # Windows of one element more and one less in turn, and a dilation that is not its own inverse.
    *(box_case((1, 60, columns), (1, 190, columns), 93, 5, 2, 40) for columns in (1, 3, 20)),
    # Empty overlaps on either side, far away, and nothing at all.
    box_case((1, 10, 2), (1, 10, 2), 31, lo=10_000),
    box_case((1, 10, 2), (1, 10, 2), 31, lo=-10_000),
    box_case((1, 10, 20), (1, 10, 20), 1_000_000_000, lo=999_999_995),
    box_case((1, 10, 20), (1, 10, 20), 1_000_000_000, lo=5),
    box_case((1, 0, 2), (1, 10, 2), 31),
    box_case((1, 10, 2), (1, 0, 2), 31),
    box_case((0, 10, 2), (0, 10, 2), 31),
]
TABLE_CASES = [
    table_case((1, 1, 1), (1, 1, 1), (0,), 1),
    table_case((2, 4, 3), (2, 9, 3), (0, 2, 4, 6), 3),
    table_case((2, 4, 1), (2, 9, 1), (0, 2, 4, 6), 3),
    table_case((1, 5, 2), (1, 6, 2), (3, -2, 5, 0, 3), 2),  # neither sorted nor inside
    table_case((1, 3, 2), (1, 4, 2), (-9, 9, 4), 3),
    table_case((1, 2, 1100), (1, 4, 1100), (0, 1), 3),
    table_case((1, 0, 2), (1, 4, 2), (), 3),
]
CASES = {
    **dict.fromkeys(CONVOLUTIONS, CONV_CASES),
    **dict.fromkeys(BOXES, BOX_CASES),
    "transposed_table": TABLE_CASES,
}
CALLS = [(name, case) for name, cases in CASES.items() for case in cases]
# Kernels that change `out` instead of filling it, or that take no 3-D image; they have tests of
# their own.
OTHERS = {
    "accumulate",
    "box_power",
    "outer_product",
    "sum_of_terms",
    "box_run",
    "conv_run",
    "chain_profiles",
    "grown_profiles",
    "chain_figures",
    "walk",
}


def fill(shape, dtype, seed=0):
    """Positive numbers over ten decades."""
    return (10.0 ** np.random.default_rng(seed).uniform(-10, 0, shape)).astype(dtype)


def arguments(name, case, dtype):
    """The arguments of a call in order, but for the first and the last."""
    values = dict(case.parameters)
    if "taps" in values:
        values["taps"] = fill(values["taps"], dtype, seed=1)
    if "starts" in values:
        values["starts"] = np.array(values["starts"], np.int64)
    return [values[key] for key in KERNELS[name].arguments[1:-1]]


def run(name, case, dtype, y=None, out=None, device="cpu"):
    y = fill(case.source, dtype) if y is None else y
    out = np.full(case.target, np.nan, dtype) if out is None else out
    call = getattr(kernels.load(device), name)
    assert call(y, *arguments(name, case, dtype), out) is None
    return out


def oracle(name, case, dtype):
    """The naive result, in float64 whatever the dtype of the inputs."""
    out = np.full(case.target, np.nan)
    values = arguments(name, case, dtype)
    if name in BOXES and case.parameters["k"] > 1000:
        return far_box(name, case, dtype)
    getattr(naive, name)(fill(case.source, dtype), *values, out)
    return out


def far_box(name, case, dtype):
    """A window too long to loop over its taps: loop over its one or two ends instead."""
    y = fill(case.source, dtype).astype(np.float64)
    k, lo, out = case.parameters["k"], case.parameters["lo"], np.empty(case.target)
    for i in range(out.shape[1]):
        first = i + lo - k + 1 if name == "transposed_box" else i - lo
        out[:, i] = y[:, max(0, first) : max(0, first + k)].sum(axis=1)
    return out


def bound(name, case, dtype):
    terms = min(case.terms, max(1, math.prod(case.source)))
    return KERNELS[name].tolerance(dtype, terms) + KERNELS[name].tolerance(np.float64, terms)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "case"), CALLS)
def test_agrees_with_naive_loops(name, case, dtype):
    np.testing.assert_allclose(
        run(name, case, dtype), oracle(name, case, dtype), rtol=bound(name, case, dtype), atol=0
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_layout_does_not_change_the_bits(name, dtype):
    for case in CASES[name]:
        whole = run(name, case, dtype)
        for axis in range(3):
            # Every other element of `axis`, an axis in reverse, and Fortran order.
            y = np.zeros([n * (1 + (a == axis)) for a, n in enumerate(case.source)], dtype)
            y = np.moveaxis(np.moveaxis(y, axis, 0)[::2], 0, axis)
            y[...] = fill(case.source, dtype)
            y.flags.writeable = dtype is np.float64  # read-only is a type of its own to Numba
            out = np.full(case.target, np.nan, dtype, order="F")
            out = np.flip(out, axis)
            np.testing.assert_array_equal(run(name, case, dtype, y, out), whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_tiles_have_the_bits_of_the_whole(name, dtype):
    """Results do not depend on how the callers share the image out over threads."""
    call = getattr(kernels.load(), name)
    for case in CASES[name]:
        whole = run(name, case, dtype)
        values = arguments(name, case, dtype)
        padded = np.full([n + 2 for n in case.target[:2]] + [case.target[2]], np.nan, dtype)
        out = padded[1:-1, 1:-1]
        keys = KERNELS[name].arguments[1:-1]
        for a in range(0, case.target[1], 4):
            tile = list(values)
            if name == "transposed_table":
                tile[0] = values[0] - a
            else:
                at, stride = keys.index("lo"), values[keys.index("stride")]
                step = np.array([0, 1, 0]) if name in CONVOLUTIONS else 1
                forward = step if name.startswith("transposed") else -np.asarray(stride) * step
                moved = np.asarray(values[at]) + a * forward
                tile[at] = moved if name in CONVOLUTIONS else int(moved)
            call(fill(case.source, dtype), *tile, out[:, a : a + 4])
        np.testing.assert_array_equal(out, whole)
        assert np.isnan(padded[[0, -1]]).all()
        assert np.isnan(padded[:, [0, -1]]).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", [CONVOLUTIONS, BOXES])
def test_gather_is_the_adjoint(names, dtype):
    """⟨T y, x⟩ = ⟨y, G x⟩ exactly, up to the two kernels' bounds: all terms are nonnegative."""
    for case in CASES[names[0]]:
        y, x = fill(case.source, dtype), fill(case.target, dtype, seed=2)
        scattered = run(names[0], case, dtype, y)
        gathered = run(names[1], case._replace(source=case.target, target=case.source), dtype, x)
        left = math.fsum((scattered.astype(np.float64) * x).ravel())
        right = math.fsum((gathered.astype(np.float64) * y).ravel())
        terms = min(case.terms, max(1, x.size, y.size))
        # fsum rounds once; each of its addends was rounded once, in float64.
        error = sum(KERNELS[name].tolerance(dtype, terms) for name in names)
        assert left == pytest.approx(right, rel=error + 4 * np.finfo(np.float64).eps, abs=0)


SUBNORMAL_CASES = [
    *(
        (name, box_case((1, 61, columns), (1, 120, columns), k, stride))
        for name, columns, k, stride in product(BOXES, (1, 20), (3, 40), (1, 2))
    ),
    *(
        (name, conv_case((1, 2, 9), (1, 1, 3), (1, 2, 20), stride=(1, 1, stride)))
        for name, stride in product(CONVOLUTIONS, (1, 2))
    ),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("name", "case"), SUBNORMAL_CASES)
def test_subnormal_results_are_zero(name, case, dtype):
    """Of subnormal sums nothing is stored; a normal sum of subnormal numbers is."""
    tiny = float(np.finfo(dtype).smallest_normal)
    y = np.full(case.source, tiny / 2, dtype)
    values = [
        np.ones_like(value) if key == "taps" else value
        for key, value in zip(
            KERNELS[name].arguments[1:-1], arguments(name, case, dtype), strict=True
        )
    ]
    out, expected = np.full(case.target, np.nan, dtype), np.empty(case.target)
    getattr(kernels.load(), name)(y, *values, out)
    getattr(naive, name)(y, *values, expected)
    assert (expected == tiny / 2).any()
    assert (expected >= tiny).any()
    # A few multiples of tiny/2: no rounding anywhere.
    np.testing.assert_array_equal(out, np.where(expected < tiny, 0, expected))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("columns", [1, 20])
def test_subnormal_results_of_a_table_are_zero(columns, dtype):
    tiny = np.finfo(dtype).smallest_normal
    y = np.full((1, 3, columns), tiny, dtype)
    out = np.full((1, 4, columns), np.nan, dtype)
    taps = np.full((3, 2), 0.5, dtype)
    kernels.load().transposed_table(y, np.arange(3), taps, out)
    np.testing.assert_array_equal(out[0, :, 0], [0, tiny, tiny, 0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_nan_is_not_swallowed(name, dtype):
    case = box_case((2, 30, 20), (2, 33, 20), 31, lo=15) if name in BOXES else CASES[name][1]
    y = fill(case.source, dtype)
    y[0, y.shape[1] // 2, 0] = np.nan
    expected = np.empty(case.target)
    getattr(naive, name)(y, *arguments(name, case, dtype), expected)
    assert np.isnan(expected).any()
    np.testing.assert_array_equal(np.isnan(run(name, case, dtype, y)), np.isnan(expected))


@pytest.mark.parametrize("blocks", [False, True], ids=["direct", "blocks"])
@pytest.mark.parametrize("columns", [1, 20])
def test_tails_are_right_pixel_by_pixel(columns, blocks):
    """Many layers of equal taps against the exact integers, which running differences would lose.

    400 layers of three taps are the trinomial coefficients, from 1 to 1.7e189. A layer of k taps
    is a sum of k terms, k − 1 roundings; n layers are n times that.
    """
    k, layers = (31, 100) if blocks else (3, 400)
    image, exact = np.zeros((1, 1, columns)), [1]
    image[...] = 1
    for _ in range(layers):
        grown = np.empty((1, image.shape[1] + k - 1, columns))
        kernels.load().transposed_box(image, k, 1, 1, 0, grown)
        image = grown
        running, sums = 0, []
        for i in range(len(exact) + k - 1):
            running += exact[i] if i < len(exact) else 0
            running -= exact[i - k] if i >= k else 0
            sums.append(running)
        exact = sums
    unit_roundoff = Fraction(1, 2**53)
    error = layers * (k - 1) * unit_roundoff
    error /= 1 - error
    assert min(exact) / max(exact) < (1e-140 if blocks else 1e-188)
    for pixel, integer in zip(image[0].tolist(), exact, strict=True):
        assert all(abs(Fraction(value) - integer) <= error * integer for value in pixel)


ACCUMULATED_PARTS = {
    "whole": (slice(None),) * 3,
    "rows": (slice(1, 3), slice(2, 7)),
    "columns": (slice(None), slice(None), slice(2, 5)),
    "every other column": (slice(None), slice(None), slice(0, None, 2)),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("part", ACCUMULATED_PARTS.values(), ids=ACCUMULATED_PARTS)
def test_accumulate_adds_a_scaled_image_to_a_part_of_another(dtype, part):
    whole = fill((4, 9, 7), dtype, seed=1)
    y = fill(whole[part].shape, dtype)
    factor = dtype(0.3)
    expected = whole.astype(np.float64)
    naive.accumulate(y, factor, expected[part])
    kernels.load().accumulate(y, factor, whole[part])
    np.testing.assert_allclose(
        whole,
        expected,
        rtol=sum(KERNELS["accumulate"].tolerance(t, 2) for t in (dtype, np.float64)),
        atol=0,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_accumulate_flushes_subnormals_and_keeps_nan(dtype):
    tiny = np.finfo(dtype).smallest_normal
    out = np.array([[[tiny / 2, np.nan, tiny, 1.0]]], dtype)
    kernels.load().accumulate(np.array([[[tiny / 4, 1.0, 0.0, np.nan]]], dtype), 1.0, out)
    np.testing.assert_array_equal(out[0, 0], np.array([0, np.nan, tiny, np.nan], dtype))


POWERS = [(0, 3), (1, 1), (1, 5), (2, 2), (40, 3), (31, 4), (12, 31), (3, 101), (300, 2)]
# Numbers of ways beyond 2^300, where what is summed up is brought down.
POWERS += [(350, 3), (700, 2), (70, 31)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("n", "k"), POWERS)
def test_box_power_agrees_with_whole_numbers(n, k, dtype):
    length = n * (k - 1) + 1
    # Powers of two as large as the dtype allows: nothing of these powers is cut off.
    top = 900 if dtype is np.float64 else 120
    expected = np.empty(length)
    naive.box_power(n, k, top, expected)
    expected[expected < np.finfo(dtype).smallest_normal] = 0
    for count in {length, (length + 1) // 2, 1}:
        out = np.full(2 * count, np.nan, dtype)
        kernels.load().box_power(n, k, top, out[:count])
        # The oracle rounds once.
        bound = KERNELS["box_power"].tolerance(dtype, k) + KERNELS["box_power"].tolerance(float, 1)
        np.testing.assert_allclose(out[:count], expected[:count], rtol=bound, atol=0)
        assert np.isnan(out[count:]).all()
        strided = np.full(2 * count, np.nan, dtype)
        kernels.load().box_power(n, k, top, strided[::2])
        np.testing.assert_array_equal(strided[::2], out[:count])


@pytest.mark.parametrize(("k", "measured"), [(31, 66), (101, 250), (255, 971)])
def test_the_bound_of_powers_is_near_what_was_measured(k, measured):
    """Roundings; a bound far above would let through what is wrong."""
    assert measured <= KERNELS["box_power"].rounding(k) <= 10 * measured


@pytest.mark.parametrize(("n", "k"), [(3000, 2), (2000, 3), (1000, 7), (200, 31)])
def test_box_power_is_right_far_below_the_smallest_double(n, k):
    """Coefficients are compared as whole numbers; below 2^−1982 of the sum they are cut off."""
    top, total = 960, k**n
    coefficients = extended_binomial(n, k)
    out = np.empty(len(coefficients))
    kernels.load().box_power(n, k, top, out)
    bound, below = KERNELS["box_power"].tolerance(np.float64, k).as_integer_ratio()
    seen = 0
    for i in range(0, len(out) // 2 + 1, 37):
        exact = coefficients[i] << top
        if exact << 1022 < total:
            assert out[i] == 0
            continue
        seen += 1
        value, parts = float(out[i]).as_integer_ratio()
        assert abs(value * total - exact * parts) * below <= bound * exact * parts
    assert seen > 25
    np.testing.assert_array_equal(out, out[::-1])


def test_impossible_powers_are_refused():
    power = kernels.load().box_power
    with pytest.raises(ValueError, match=r"out has shape \(8,\); a power has 7 coefficients"):
        power(3, 3, 0, np.empty(8))
    with pytest.raises(ValueError, match="k is 0; it has to be at least 1"):
        power(3, 0, 0, np.empty(1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 7), (30, 1), (1, 40), (0, 3), (3, 0)])
def test_outer_product_agrees_with_naive_loops(m, n, dtype):
    y, x = fill(m, dtype), fill(n, dtype, seed=1)
    expected = np.empty((m, n))
    naive.outer_product(y, x, expected)
    for out in (np.full((m, n), np.nan, dtype), np.full((n, m), np.nan, dtype).T):
        kernels.load().outer_product(y, x, out)
        tolerance = KERNELS["outer_product"].tolerance
        np.testing.assert_allclose(out, expected, rtol=tolerance(dtype, 1) + tolerance(float, 1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_outer_product_flushes_subnormals_and_keeps_nan(dtype):
    """Vectors whose products lie on both sides of the smallest normal number, in no order."""
    tiny = np.finfo(dtype).smallest_normal
    x = np.random.default_rng(5).permutation(dtype(2.0) ** np.arange(-40, 0)).astype(dtype)
    x[7] = 0
    y = np.array([tiny, tiny * 2**20, tiny * 2**45, 1, 0], dtype)
    out = np.full((len(y), len(x)), np.nan, dtype)
    kernels.load().outer_product(y, x, out)
    # Products of powers of two are exact, in float64 and above the least subnormal number.
    expected = np.multiply.outer(y.astype(np.longdouble), x.astype(np.longdouble))
    np.testing.assert_array_equal(out, np.where(expected < tiny, 0, expected).astype(dtype))
    assert (out == 0).any()
    assert (out >= tiny).any()
    kernels.load().outer_product(np.array([np.nan, 1], dtype), x, out[:2])
    assert np.isnan(out[0]).all()
    assert not np.isnan(out[1]).any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("terms", "m", "n"), [(1, 1, 1), (8, 3, 5), (21, 6, 300), (7, 4, 2), (0, 2, 2), (9, 0, 3)]
)
def test_sum_of_terms_agrees_with_naive_loops(terms, m, n, dtype):
    weights, y, x = fill(terms, dtype), fill((terms, m), dtype, 1), fill((terms, n), dtype, 2)
    expected = np.empty((m, n))
    naive.sum_of_terms(weights, y, x, 3, expected)
    bound = sum(KERNELS["sum_of_terms"].tolerance(t, terms) for t in (dtype, float))
    whole = np.full((m, n), np.nan, dtype)
    kernels.load().sum_of_terms(weights, y, x, 3, whole)
    np.testing.assert_allclose(whole, expected, rtol=bound, atol=0)
    if m:
        # A part of wider arrays, and transposed ones: the same bits.
        part = np.full((n, m), np.nan, dtype).T
        wide = np.pad(x, ((0, 0), (2, 3)), constant_values=np.nan)
        kernels.load().sum_of_terms(weights, np.asfortranarray(y), wide[:, 2:-3], 3, part)
        np.testing.assert_array_equal(part, whole)


@pytest.mark.parametrize("dtype", DTYPES)
def test_sum_of_terms_flushes_subnormals_and_keeps_nan(dtype):
    tiny = np.finfo(dtype).smallest_normal
    y, x = np.array([[1, 2, np.nan]], dtype), np.array([[1, 0.5]], dtype)
    out = np.empty((3, 2), dtype)
    kernels.load().sum_of_terms(np.ones(1, dtype), y, x, int(np.log2(tiny)), out)
    np.testing.assert_array_equal(out, np.array([[tiny, 0], [2 * tiny, tiny], [np.nan] * 2], dtype))


def test_sums_of_unequal_terms_are_refused():
    with pytest.raises(ValueError, match=r"terms of weights, y and x are \(3, 3\) and \(3, 2\)"):
        kernels.load().sum_of_terms(
            np.ones(3), np.ones((3, 2)), np.ones((2, 4)), 0, np.empty((2, 4))
        )


def test_every_kernel_is_tested():
    assert set(KERNELS) == set(CASES) | OTHERS


@pytest.mark.parametrize("name", KERNELS)
def test_specification_matches_the_code(name):
    function = getattr(kernels.load(), name)
    code = function.__code__
    assert code.co_varnames[: code.co_argcount] == KERNELS[name].arguments
    assert function.__name__ == name == KERNELS[name].name
    assert set(KERNELS[name].dtypes) == {np.dtype(dtype) for dtype in DTYPES}


def test_load_is_shared_and_replaceable(monkeypatch):
    called = []
    monkeypatch.setattr(kernels.load("cpu"), "transposed_box", lambda *a: called.append(a))
    kernels.load("cpu").transposed_box(1, 2)
    assert called == [(1, 2)]


def test_load_refuses_unknown_devices():
    with pytest.raises(ValueError, match=r"device is 'tpu'; kernels exist for 'cpu'.*pass one"):
        kernels.load("tpu")


def test_load_refuses_a_missing_kernel(monkeypatch):
    missing = replace(KERNELS["accumulate"], name="no_such_kernel")
    monkeypatch.setattr(kernels, "KERNELS", {**KERNELS, "no_such_kernel": missing})
    with pytest.raises(ModuleNotFoundError, match="no_such_kernel"):
        kernels._load("cpu")


def test_import_loads_no_compiler():
    script = "import sys, fastrf.kernels; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


@pytest.mark.parametrize("name", CASES)
def test_mixed_and_integer_dtypes_are_refused(name):
    case = CASES[name][1]
    for dtype in (np.float32, np.int64):
        y = np.ones(case.source, dtype)
        with pytest.raises(TypeError, match=r"all arrays .* float32, or all are float64"):
            run(name, case, np.float64, y)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_impossible_steps_are_refused(name):
    call, y = getattr(kernels.load(), name), np.ones((1, 5, 5))
    for zero in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        for what, steps in (("stride", (zero, (1, 1, 1))), ("dilation", ((1, 1, 1), zero))):
            with pytest.raises(ValueError, match=rf"{what} is \(.*0.*\); it has to be at least"):
                call(y, np.ones((1, 1, 1)), *steps, (0, 0, 0), y.copy())


def _plane(*shape):
    return np.ones(shape)


# One small call of each, with all floating arrays as float64.
DOORS = {
    "transposed_conv": (_plane(1, 2, 2), _plane(1, 1, 1), (1,) * 3, (1,) * 3, (0,) * 3),
    "strided_gather": (_plane(1, 2, 2), _plane(1, 1, 1), (1,) * 3, (1,) * 3, (0,) * 3),
    "transposed_box": (_plane(1, 2, 2), 1, 1, 1, 0),
    "gather_box": (_plane(1, 2, 2), 1, 1, 1, 0),
    "transposed_table": (_plane(1, 2, 2), np.arange(2), _plane(2, 1)),
    "accumulate": (_plane(1, 2, 2), 1.0),
    "box_power": (1, 2, 0),
    "outer_product": (_plane(2), _plane(2)),
    "sum_of_terms": (_plane(3), _plane(3, 2), _plane(3, 2), 0),
    "box_run": (_plane(1, 2, 2), (1, 1, 1), 1, (0, 0, 0)),
    "conv_run": (_plane(1, 2, 2), _plane(1, 1, 1), 1, (0, 0, 0)),
}


@pytest.mark.parametrize("name", DOORS)
def test_every_array_has_the_dtype_of_the_others(name):
    call = getattr(kernels.load(), name)
    out = {"box_power": _plane(2), "outer_product": _plane(2, 2), "sum_of_terms": _plane(2, 2)}
    values = [*DOORS[name], out.get(name, _plane(1, 2, 2))]
    call(*values)
    floats = [i for i, v in enumerate(values) if getattr(v, "dtype", None) == np.float64]
    for odd in floats:
        for dtype in (np.float32, np.float16, np.int64):
            if len(floats) == 1 and dtype is np.float32:
                continue
            mixed = [v.astype(dtype) if i == odd else v for i, v in enumerate(values)]
            with pytest.raises(TypeError, match=r"all arrays .* float32, or all are float64"):
                call(*mixed)


@pytest.mark.parametrize("name", BOXES)
def test_impossible_boxes_are_refused(name):
    y = np.ones((2, 5, 3))
    call = getattr(kernels.load(), name)
    with pytest.raises(ValueError, match="first and last axis of y and out"):
        call(y, 3, 1, 1, 0, np.ones((2, 5, 4)))
    with pytest.raises(ValueError, match="k is 0; it has to be at least 1"):
        call(y, 0, 1, 1, 0, np.ones((2, 5, 3)))
