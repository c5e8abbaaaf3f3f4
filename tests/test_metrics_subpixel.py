"""Measures that vary continuously, against exact fractions and slow loops over pixels."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from test_metrics import T, gaussian, noise, outer

import fastrf as rf
from fastrf import metrics
from fastrf.erf import erf
from fastrf.images import image_of
from fastrf.metrics.levels import _share_above, volume_above

EPS = 2.0**-52


# -- Luo's size ------------------------------------------------------------------------------------


def share_above(values, limit):
    """Share of a simplex above a limit: Σ (v_i − L)₊^d / Π_{j≠i} (v_i − v_j), exactly.

    The integral of a truncated power against the B-spline of the values (Curry and Schoenberg); it
    takes distinct values.
    """
    total = Fraction(0)
    for i, v in enumerate(values):
        if v > limit:
            others = math.prod(v - w for j, w in enumerate(values) if j != i)
            total += (v - limit) ** (len(values) - 1) / others
    return total


def cell_simplices(corner):
    """The simplices of a cell by their definition: `corner` maps a tuple of 0 and 1 to a value."""
    ndim = len(next(iter(corner)))
    mean = {}
    for face in itertools.product((0, 1, None), repeat=ndim):
        own = [
            v
            for c, v in corner.items()
            if all(f in (None, b) for f, b in zip(face, c, strict=True))
        ]
        mean[face] = sum(own) / len(own)
    # From an edge over its faces to the whole cell: one axis is freed at a time. The first is the
    # edge itself, with both of its ends.
    for free in itertools.permutations(range(ndim)):
        for fixed in itertools.product((0, 1), repeat=ndim - 1):
            rest = dict(zip(free[1:], fixed, strict=True))
            ends = [tuple(rest.get(a, bit) for a in range(ndim)) for bit in (0, 1)]
            chain = [corner[end] for end in ends]
            for step in range(2, ndim + 1):
                freed = set(free[:step])
                chain.append(mean[tuple(None if a in freed else rest[a] for a in range(ndim))])
            yield chain


def volume_loop(values, limit):
    """`values` maps indices to fractions; 0 elsewhere."""
    ndim = len(next(iter(values)))
    lows = [min(i[a] for i in values) - 1 for a in range(ndim)]
    highs = [max(i[a] for i in values) for a in range(ndim)]
    total = Fraction(0)
    for cell in itertools.product(*(range(a, b + 1) for a, b in zip(lows, highs, strict=True))):
        corner = {
            bits: values.get(tuple(c + b for c, b in zip(cell, bits, strict=True)), Fraction(0))
            for bits in itertools.product((0, 1), repeat=ndim)
        }
        if min(corner.values()) > limit:
            total += 1
        elif max(corner.values()) > limit:
            # Distinct values by a hair, which moves the share by no more than about a hair.
            hair = Fraction(1, 10**12)
            simplices = [[v + n * hair for n, v in enumerate(s)] for s in cell_simplices(corner)]
            total += sum(share_above(s, limit) for s in simplices) / len(simplices)
    return float(total)


@pytest.mark.parametrize("shape", [(9,), (1,), (6, 7), (1, 4), (3, 4, 3), (1, 1, 1)])
@pytest.mark.parametrize("threshold", [T, 0.3, 0.9])
def test_luo_size_matches_exact_fractions(shape, threshold):
    """The hairs, 1e-12 each, move a share by 1e-12 over the differences of the values (1 or more
    here, but for the middles of faces, means of 4 or 8 of them: 1/8), d at a time."""
    image = noise(shape)
    center = tuple(n // 2 for n in shape)
    limit = Fraction(threshold) * Fraction(float(image[center]))
    volume = volume_loop({i: Fraction(float(image[i])) for i in np.ndindex(shape)}, limit)
    found = metrics.luo_size(image, "variance", threshold, center, subpixel=True)
    assert found ** len(shape) == pytest.approx(volume, rel=1e-9)
    # The amplitude of squares is what was just measured.
    found = metrics.luo_size(image**2, "amplitude", threshold, center, subpixel=True)
    assert found ** len(shape) == pytest.approx(volume, rel=1e-9)


@pytest.mark.parametrize("sigma", [2.0, 5.0, 9.0])
def test_luo_size_of_a_gaussian_has_its_area(sigma):
    """π·(2.486 σ)² on the variance. Interpolating the convex flank linearly moves the level set
    outwards by f″/(8 |f′|) a cell at most: with x = 2.486 σ that is (x²/σ² − 1)/(8 x) pixels."""
    reach = math.sqrt(2 * math.log(1 / T))
    n = 2 * math.ceil(5 * sigma) + 1
    image = outer(gaussian(sigma, n // 2, n), gaussian(sigma, n // 2, n))
    found = metrics.luo_size(image, "variance", subpixel=True) / math.sqrt(math.pi)
    shift = (reach**2 - 1) / (8 * reach * sigma)
    assert reach * sigma < found < reach * sigma + shift


def test_luo_size_varies_smoothly_where_the_count_jumps():
    sigmas = np.linspace(3.0, 3.2, 41)
    images = [outer(gaussian(s, 20, 41), gaussian(s, 20, 41)) for s in sigmas]
    counts = np.array([metrics.luo_size(image) for image in images])
    smooth = np.array([metrics.luo_size(image, subpixel=True) for image in images])
    expected = np.diff(sigmas).mean() * math.sqrt(2 * math.log(1 / T) * 2) * math.sqrt(math.pi)
    assert np.diff(counts).min() == 0
    assert np.diff(counts).max() > 3 * expected
    # The level passes through cells of different slopes: a tenth of the step, no more.
    np.testing.assert_allclose(np.diff(smooth), expected, rtol=0.1)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_luo_size_of_factors_is_that_of_their_pixels(ndim, monkeypatch):
    """They are formed some rows at a time, and cells lie between two of these pieces, too."""
    monkeypatch.setattr("fastrf.engine.terms.LARGEST_BLOCK", 30)
    branch = rf.Residual(rf.Conv(3, padding=1))
    net = rf.Sequential(*[branch if ndim == 2 else rf.Conv(3)] * 4, ndim=ndim)
    field = erf(net, method="factored")
    assert not isinstance(field.values, np.ndarray)
    center = tuple((n - 1) / 2 for n in field.shape)
    given = metrics.luo_size(field.values, center=center, subpixel=True)
    expected = metrics.luo_size(field.image, center=center, subpixel=True)
    # The pixels agree to some roundings; a level set moves with them, over slopes of about 1.
    assert given == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("amplitude", [True, False])
def test_nothing_exceeds_what_is_above_the_largest(amplitude):
    image = image_of(noise((5, 6)))
    largest = float(np.sqrt(image.array.max()) if amplitude else image.array.max())
    assert volume_above(image, largest * (1 - 1e-3), amplitude=amplitude) > 0
    assert volume_above(image, largest * (1 + 1e-3), amplitude=amplitude) == 0
    assert volume_above(image, 100 * float(image.array.sum()), amplitude=amplitude) == 0


def test_luo_size_keeps_the_symmetries_of_the_grid():
    image = noise((4, 5, 3))
    center = (1, 2, 1)
    given = metrics.luo_size(image, threshold=0.4, center=center, subpixel=True)
    for axes in itertools.permutations(range(3)):
        turned = image.transpose(axes)[::-1]
        moved = tuple(center[a] for a in axes)
        moved = (turned.shape[0] - 1 - moved[0], *moved[1:])
        found = metrics.luo_size(turned, threshold=0.4, center=moved, subpixel=True)
        assert found == pytest.approx(given, rel=64 * EPS)


# -- the radius of a ball --------------------------------------------------------------------------


def radius_loop(image, center, share):
    """Pixels of a wide grid by distance, in exact fractions; the last shell in part."""
    shells = {}
    reach = 2 * max(image.shape)
    at = [Fraction(c) for c in center]
    for index in itertools.product(*(range(-reach, n + reach) for n in image.shape)):
        squared = sum((i - c) ** 2 for i, c in zip(index, at, strict=True))
        inside = all(0 <= i < n for i, n in zip(index, image.shape, strict=True))
        count, mass = shells.get(squared, (0, 0))
        shells[squared] = (count + 1, mass + (int(image[index]) if inside else 0))
    goal, volume = Fraction(share) * int(image.sum()), Fraction(0)
    for _, (count, mass) in sorted(shells.items()):
        if mass and goal <= mass:
            volume += goal / mass * count
            break
        goal, volume = goal - mass, volume + count
    unit = {1: 2, 2: math.pi, 3: 4 * math.pi / 3}[image.ndim]
    return (float(volume) / unit) ** (1 / image.ndim)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(
    ("shape", "center"),
    [
        ((9,), (4,)),
        ((8,), (1.5,)),
        ((6, 7), (2.5, 3)),
        ((5, 5), (-1, 2.25)),
        ((3, 4, 3), (1, 1.5, 1)),
    ],
)
def test_radius_matches_a_loop(shape, center, share):
    image = noise(shape)
    found = metrics.radius_of_mass(image, share, center, subpixel=True)
    assert found == pytest.approx(radius_loop(image, center, share), rel=1e-11)


def test_radius_of_a_gaussian_without_jumps():
    """σ·√(−2 ln(1 − share)): a disc's boundary of pixels leaves a part in 2r of it at most."""
    for sigma in (4.0, 4.1, 4.2):
        image = outer(gaussian(sigma, 30, 61), gaussian(sigma, 30, 61))
        for share in (0.3, 0.5, 0.9):
            expected = sigma * math.sqrt(-2 * math.log(1 - share))
            found = metrics.radius_of_mass(image, share, (30, 30), subpixel=True)
            assert found == pytest.approx(expected, rel=1 / (2 * expected) / 4)


def test_radius_varies_smoothly_where_the_steps_jump():
    sigmas = np.linspace(3.0, 3.6, 61)
    images = [outer(gaussian(s, 20, 41), gaussian(s, 20, 41)) for s in sigmas]
    steps = np.diff([metrics.radius_of_mass(i, 0.5, (20, 20)) for i in images])
    smooth = np.diff([metrics.radius_of_mass(i, 0.5, (20, 20), subpixel=True) for i in images])
    assert steps.min() == 0
    assert smooth.min() > 0
    assert smooth.max() < steps.max() / 3


def test_radius_in_a_uniform_box_is_the_ball_of_its_share():
    image = np.ones((201, 201))
    # 0.2 of 201² pixels, all about the centre: a disc of exactly that area.
    found = metrics.radius_of_mass(image, 0.2, (100, 100), subpixel=True)
    assert found == pytest.approx(math.sqrt(0.2 * 201**2 / math.pi), rel=1e-12)


@pytest.mark.parametrize("corners", [3, 4])
def test_a_plain_at_the_level_is_not_above_it(corners: int) -> None:
    """Without a warning of what its formulas, which are not used there, make of it."""
    values = np.array([[2.0, 2.0, 1.0]] * corners)
    assert _share_above(values, 2.0).tolist() == [0.0, 0.0, 0.0]
    assert _share_above(values, 1.0).tolist() == [1.0, 1.0, 0.0]
