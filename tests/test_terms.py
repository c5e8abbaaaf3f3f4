"""Sums of separable terms: the pixels against plain sums, the measures against `metrics`."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fastrf.kernels import load

from fastrf import metrics
from fastrf.engine.terms import BLOCK, FEW_TERMS, Factor, FactoredImage, count_above, shift_of

RNG_SEED = 7


def gaussians(count: int, length: int, wide: float) -> np.ndarray:
    """Symmetric profiles of growing width about the middle, of sum 1."""
    x = np.arange(length) - (length - 1) / 2
    sigma = np.linspace(1, wide, count)[:, None]
    rows = np.exp(-0.5 * (x / sigma) ** 2)
    rows[rows < 1e-300] = 0
    return rows / rows.sum(axis=1, keepdims=True)


def build(weights, rows, mirrored, dtype=np.float64, origin=None):
    """A factored image from weights of sum 1 and one table of rows of sum 1 per axis."""
    ndim, top = len(rows), 2.0 ** shift_of(len(weights), len(rows))
    shared: dict[int, Factor] = {}
    factors = tuple(
        shared.setdefault(
            id(table),
            Factor(
                table[:, : (table.shape[1] + 1) // 2] * top if half else table * top,
                table.shape[1],
                half,
            ),
        )
        for table, half in zip(rows, mirrored, strict=True)
    )
    origin = origin or tuple(range(-3, -3 + ndim))
    return FactoredImage(np.asarray(weights) * top, factors, origin, np.dtype(dtype), load())


def plain_sum(weights, rows):
    """The image, term by term."""
    letters = "xyz"[: len(rows)]
    sums = ",".join(f"t{c}" for c in letters)
    return np.einsum(f"t,{sums}->{letters}", weights, *rows, optimize=False)


def cases():
    """(name, weights, rows, mirrored): every dimension, alike axes or not, odd and even lengths."""
    rng = np.random.default_rng(RNG_SEED)

    def shares(count):
        values = rng.random(count)
        return values / values.sum()

    def lopsided(count, length):
        rows = rng.random((count, length)) ** 8
        return rows / rows.sum(axis=1, keepdims=True)

    square = gaussians(5, 31, 4)
    many = gaussians(FEW_TERMS + 40, 2 * BLOCK + 61, 30)
    even = gaussians(3, 40, 5)
    return [
        ("one term, 1-D", np.ones(1), [lopsided(1, 9)], [False]),
        ("one term, 2-D", np.ones(1), [gaussians(1, 31, 1), lopsided(1, 12)], [True, False]),
        ("one term, 3-D", np.ones(1), [lopsided(1, n) for n in (5, 7, 6)], [False] * 3),
        ("1-D", shares(5), [square], [True]),
        ("alike", shares(5), [square, square], [True, True]),
        ("even", shares(3), [even, gaussians(3, 21, 2)], [True, True]),
        ("lopsided", shares(4), [lopsided(4, 17), lopsided(4, 23)], [False, False]),
        ("half", shares(3), [even, lopsided(3, 8)], [True, False]),
        ("many", shares(len(many)), [many, many], [True, True]),
        ("many, unlike", shares(len(many)), [many, gaussians(len(many), 64, 9)], [True, True]),
        ("3-D", shares(5), [square, square, gaussians(5, 12, 2)], [True, True, True]),
    ]


CASES = [pytest.param(*case[1:], id=case[0]) for case in cases()]
TWO_D = [pytest.param(*case[1:], id=case[0]) for case in cases() if len(case[2]) == 2]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(("weights", "rows", "mirrored"), CASES)
def test_pixels_are_the_sum_of_the_terms(weights, rows, mirrored, workers):
    """Nonnegative sums of T terms of d + 1 factors: γ_{T+d+1} relative on either side (Higham
    2002, §3.1), and 2^−58 of terms left out. Pixels below 1e-290 may differ by what the rows lose
    where a subnormal number appears."""
    image = build(weights, rows, mirrored)
    expected = plain_sum(weights, rows)
    bound = 2 * (len(weights) + len(rows) + 2) * np.finfo(float).eps
    np.testing.assert_allclose(image.form(workers=workers), expected, rtol=bound, atol=1e-290)


@pytest.mark.parametrize(("weights", "rows", "mirrored"), CASES)
def test_single_precision_is_the_rounded_image(weights, rows, mirrored):
    image, expected = build(weights, rows, mirrored, np.float32).form(), plain_sum(weights, rows)
    tiny = np.finfo(np.float32).smallest_normal
    assert image.dtype == np.float32
    # One rounding a factor and one a product for a single term, one in all for more.
    bound = 2 * len(rows) * np.finfo(np.float32).eps
    seen = expected > tiny * (1 + bound)
    np.testing.assert_allclose(image[seen], expected[seen], rtol=bound)
    assert not image[expected < tiny * (1 - bound)].any()
    assert not ((image > 0) & (image < tiny)).any()


def test_the_smallest_pixels_are_right_and_no_subnormal_is_formed():
    """Two terms of very unequal weight and width: pixels down to the smallest normal number."""
    rows = np.zeros((2, 41))
    rows[0] = 2.0 ** -(40.0 * abs(np.arange(41) - 20))
    rows[1] = 2.0 ** -(1.0 * abs(np.arange(41) - 20))
    weights = np.array([1.0, 2.0**-990])
    image = build(weights, [rows, rows], [True, True]).form()
    scaled = plain_sum(weights * 2.0**600, [rows, rows])  # far above every subnormal number
    tiny = np.finfo(float).smallest_normal
    expected = np.where(scaled >= 2.0**600 * tiny, scaled, 0) * 2.0**-600
    assert ((expected > 0) & (expected < 1e-307)).any()
    assert (expected == 0).any()
    # Sums of two powers of two that differ in more than 53 binary orders, or fit: two roundings.
    np.testing.assert_allclose(image, expected, rtol=2 * np.finfo(float).eps, atol=0)


def test_terms_that_do_not_matter_are_left_out_and_no_others():
    """Forming by blocks with and without the choice of terms gives the same pixels."""
    count = FEW_TERMS + 104
    rows = gaussians(count, 401, 8.3)
    weights = np.exp(-0.5 * ((np.arange(count) - 90) / 9.0) ** 2)
    weights[weights < 1e-290] = 0
    weights /= weights.sum()
    image = build(weights, [rows, rows], [True, True]).form()
    expected = plain_sum(weights, [rows, rows])
    seen = expected > 1e-280
    assert expected[seen].min() < 1e-250
    bound = 2 * (count + 4) * np.finfo(float).eps
    np.testing.assert_allclose(image[seen], expected[seen], rtol=bound)


@pytest.mark.parametrize(("weights", "rows", "mirrored"), CASES)
def test_profiles_are_those_of_the_image(weights, rows, mirrored):
    """Both sides sum N^d nonnegative numbers with at most N + T roundings a sum."""
    image = build(weights, rows, mirrored)
    pixels = image.form()
    bound = 4 * (max(pixels.shape) + len(weights)) * np.finfo(float).eps
    for axis in range(image.ndim):
        expected = metrics.profile(pixels, axis)
        np.testing.assert_allclose(image.profile(axis), expected, rtol=bound, atol=1e-290)
    assert image.shape == pixels.shape
    assert image.total == pytest.approx(1, rel=bound)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_count_above_is_exact_on_ties(ndim):
    """Products of small whole numbers: the limit is met exactly, over and over."""
    rng = np.random.default_rng(RNG_SEED)
    lines = [rng.integers(0, 7, 23).astype(float) for _ in range(ndim)]
    product = np.ones(())
    for line in lines:
        product = np.multiply.outer(product, line)
    for limit in range(40):
        assert count_above(lines, float(limit)) == int((product > limit).sum())


@pytest.mark.parametrize(("weights", "rows", "mirrored"), TWO_D)
@pytest.mark.parametrize("margins", [(2, 2), (1, 3)])
def test_a_crop_is_a_part_of_the_image(weights, rows, mirrored, margins):
    image = build(weights, rows, mirrored)
    whole = image.form()
    box = [(margins[0], n - margins[1]) for n in image.shape]
    part = image.cropped(box)
    expected = whole[tuple(slice(*ends) for ends in box)]
    bound = 8 * (len(weights) + 4) * np.finfo(float).eps
    np.testing.assert_allclose(part.form(), expected, rtol=bound, atol=1e-290)
    assert part.origin == tuple(o + margins[0] for o in image.origin)
    assert part.total == pytest.approx(expected.sum(), rel=image.size * bound)
    again = part.normalised()
    np.testing.assert_allclose(again.form(), expected / part.total, rtol=2 * bound, atol=1e-290)
    assert math.isclose(again.total, 1, rel_tol=image.size * bound)


@pytest.mark.parametrize(("weights", "rows", "mirrored"), CASES)
def test_bounds_hold(weights, rows, mirrored):
    image = build(weights, rows, mirrored)
    pixels = image.form()
    for axis in range(image.ndim):
        others = tuple(a for a in range(image.ndim) if a != axis)
        peak = pixels.max(axis=others)
        assert np.all(image.bounds(axis) >= peak * (1 - 1e-13))
