"""fastrf.metrics against closed forms, exact rational arithmetic and slow loops."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from fastrf import metrics
from fastrf.errors import InputError

T = 1 - 0.9545

# 64 roundings of 1.1e-16: the pairwise sums here have at most 30 levels, and the few products and
# quotients after them add less than as many again.
SUM_RTOL = 64 * 2.0**-53


def outer(*vectors):
    """Separable image of any dimension."""
    image = np.array(1.0)
    for vector in vectors:
        image = np.multiply.outer(image, np.asarray(vector, np.float64))
    return image


def chain(n, kernel=3):
    """Profile of n uniform layers, sum 1."""
    line = np.ones(1)
    for _ in range(n):
        line = np.convolve(line, np.full(kernel, 1 / kernel))
    return line


def gaussian(sigma, center, n):
    return np.exp(-((np.arange(n) - center) ** 2) / (2 * sigma**2))


def noise(shape, seed=7):
    """Positive integers: their sums are exact, so the loops below can be too."""
    return np.random.default_rng(seed).integers(1, 1000, shape).astype(np.float64)


def exact_moments(image):
    """Mean, covariance and fourth central moments as fractions, by a loop over pixels."""
    axes = range(image.ndim)
    points = [(index, Fraction(float(image[index]))) for index in np.ndindex(image.shape)]
    total = sum(v for _, v in points)
    mean = [sum(i[a] * v for i, v in points) / total for a in axes]
    cov = [
        [sum((i[a] - mean[a]) * (i[b] - mean[b]) * v for i, v in points) / total for b in axes]
        for a in axes
    ]
    fourth = [sum((i[a] - mean[a]) ** 4 * v for i, v in points) / total for a in axes]
    return mean, cov, fourth


SHAPES = [(9,), (1,), (7, 10), (1, 6), (5, 4, 6)]


# -- location and spread --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", ["float64", "float32", "int32"])
def test_moments_match_exact_fractions(shape, dtype):
    image = noise(shape)
    mean, cov, fourth = exact_moments(image)
    given = image.astype(dtype)
    origin = tuple(range(-3, -3 + len(shape)))
    np.testing.assert_allclose(
        metrics.mean(given, origin),
        [float(m + o) for m, o in zip(mean, origin, strict=True)],
        rtol=0,
        atol=SUM_RTOL * max(shape),  # an absolute error: of a sum of distances up to the width
    )
    sigma = [math.sqrt(cov[a][a]) for a in range(len(shape))]
    np.testing.assert_allclose(metrics.std(given), sigma, rtol=SUM_RTOL)
    np.testing.assert_allclose(
        metrics.covariance(given),
        np.array(cov, np.float64),
        rtol=0,
        atol=SUM_RTOL * max(shape) ** 2,  # entries beside the diagonal cancel
    )
    if min(shape) > 1:
        expected = [float(fourth[a] / cov[a][a] ** 2 - 3) for a in range(len(shape))]
        # μ₄/μ₂² ≤ 10 here; the subtraction of 3 leaves its absolute error.
        np.testing.assert_allclose(metrics.kurtosis(given), expected, rtol=0, atol=10 * SUM_RTOL)


def test_moments_keep_their_digits_far_from_the_origin_and_on_large_images():
    """A narrow field in a corner of a wide image: Σx² − μ² would lose eight digits of 16."""
    line = np.zeros(20000)
    line[-9:-2] = chain(3)
    image = outer(line, chain(3))
    origin = (10**6, -(10**6))
    # 20000 − 6 is 4.5 decimal digits: an absolute error of an ulp or two of the distances.
    assert metrics.mean(image, origin) == pytest.approx(
        (10**6 + 19994, 3 - 10**6), rel=0, abs=4 * math.ulp(1.02e6)
    )
    np.testing.assert_allclose(metrics.std(image), math.sqrt(2), rtol=1e-13)


def test_mean_near_the_origin_keeps_its_digits():
    """Σ x·p over indices from 0 would be right to an ulp of 10000, 1.8e-12, only."""
    line = np.zeros(20001)
    line[9999:10002] = 3, 2, 1
    assert metrics.mean(line, (-10000,)) == pytest.approx((-1 / 3,), rel=SUM_RTOL, abs=0)


@pytest.mark.parametrize(("n", "kernel"), [(1, 2), (1, 7), (4, 3), (25, 3), (6, 4), (100, 5)])
def test_chain_has_luos_sigma_and_the_kurtosis_of_its_cumulants(n, kernel):
    image = outer(chain(n, kernel), chain(2, 3))
    sigma = math.sqrt(n * (kernel**2 - 1) / 12)  # Luo et al., eq. 11
    excess = -1.2 * (kernel**2 + 1) / ((kernel**2 - 1) * n)
    assert metrics.std(image)[0] == pytest.approx(sigma, rel=1e-13, abs=0)
    assert metrics.kurtosis(image)[0] == pytest.approx(excess, abs=1e-12)
    assert metrics.mean(image)[0] == pytest.approx(n * (kernel - 1) / 2, rel=1e-14, abs=0)


def test_delta_has_no_spread():
    image = np.zeros((5, 6))
    image[1, 4] = 3
    assert metrics.mean(image, (10, 20)) == (11, 24)
    assert metrics.std(image) == (0, 0)
    assert not metrics.covariance(image).any()


def test_covariance_of_two_pixels_on_the_diagonal():
    image = np.zeros((3, 5))
    image[0, 0] = image[2, 4] = 0.25
    np.testing.assert_array_equal(metrics.covariance(image), [[1, 2], [2, 4]])


# -- one-dimensional views ------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_profile_is_the_normalised_marginal(shape):
    image = noise(shape)
    for axis in range(-len(shape), len(shape)):
        expected = [
            math.fsum(np.take(image, i, axis=axis).ravel()) / math.fsum(image.ravel())
            for i in range(shape[axis])
        ]
        np.testing.assert_allclose(metrics.profile(image, axis), expected, rtol=SUM_RTOL)


def test_cut_is_proportional_to_the_profile_only_on_separable_images():
    plain = outer(chain(6), chain(6))
    wide = outer(chain(40), chain(40))
    ratio = metrics.cut(plain, 0, (6, 6)) / metrics.profile(plain, 0)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-13)
    residual = wide.copy()
    residual[34:47, 34:47] += plain
    # Equal masses of variance 2n/3 in the profile; in the cut each weighs by its central value.
    near, far = chain(6)[6], chain(40)[40]
    narrower = math.sqrt((6 * near + 40 * far) / (near + far) * 2 / 3)
    np.testing.assert_allclose(metrics.std(residual), math.sqrt(46 / 3), rtol=1e-13)
    assert metrics.std(metrics.cut(residual, 0, (40, 40))) == pytest.approx(
        (narrower,), rel=1e-13, abs=0
    )
    assert narrower < 0.9 * math.sqrt(46 / 3)


def test_cut_between_pixels_is_the_mean_of_the_adjacent_lines():
    image = noise((4, 6, 5))
    np.testing.assert_allclose(metrics.cut(image, 1, (2, 0, 3)), image[2, :, 3], rtol=0)
    np.testing.assert_allclose(
        metrics.cut(image, 1, (1.5, 0, 3)), (image[1, :, 3] + image[2, :, 3]) / 2, rtol=SUM_RTOL
    )
    np.testing.assert_allclose(
        metrics.cut(image, -1, (1.5, 2.25, 0)),
        (0.75 * (image[1, 2] + image[2, 2]) + 0.25 * (image[1, 3] + image[2, 3])) / 2,
        rtol=SUM_RTOL,
    )
    peak = np.unravel_index(image.argmax(), image.shape)
    np.testing.assert_array_equal(metrics.cut(image, 0), image[:, peak[1], peak[2]])


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_fwhm_of_a_box_is_its_length(n):
    image = outer(np.ones(n), np.pad(np.ones(4), 3), [1.0])
    assert metrics.fwhm(image) == (n, 4, 1)


def test_fwhm_of_a_triangle_is_exact_and_gaps_do_not_cut_it_short():
    triangle = np.array([1.0, 2, 3, 4, 3, 2, 1])
    assert metrics.fwhm(triangle) == (4,)
    assert metrics.width_at(triangle, 0.25) == (6,)
    assert metrics.fwhm(np.array([0, 3.0, 0, 4, 0, 3, 0])) == pytest.approx(
        (4 + 2 / 3,), rel=1e-15, abs=0
    )


@pytest.mark.parametrize("sigma", [1.0, 1.5, 4.0, 20.0])
@pytest.mark.parametrize(("shift", "bound"), [(0.0, 0.1), (0.5, 0.4)])
def test_fwhm_of_a_gaussian(sigma, shift, bound):
    """Leading order: a chord adds f″/(8 f′) a side, 0.082/σ; a peak between pixels 0.21/σ more."""
    n = 2 * math.ceil(6 * sigma) + 1
    line = gaussian(sigma, n // 2 + shift, n)
    excess = metrics.fwhm(line)[0] - 2 * math.sqrt(2 * math.log(2)) * sigma
    assert 0 < excess < bound / sigma


# -- Luo et al. -----------------------------------------------------------------------------------


def count_loop(image, kind, threshold, reference):
    value = math.sqrt if kind == "amplitude" else float
    return sum(value(v) > threshold * reference for v in image.ravel().tolist())


@pytest.mark.parametrize("kind", ["amplitude", "variance"])
@pytest.mark.parametrize("shape", [(31,), (21, 32), (13, 11, 12)])
def test_luo_size_of_a_gaussian_counts_a_disc(kind, shape):
    """The counted pixels are those with |x| < √(2 ln(1/t))·σ, √2 times as far on the amplitude."""
    sigma = 1.3
    center = [n // 2 for n in shape]
    image = outer(*(gaussian(sigma, c, n) for c, n in zip(center, shape, strict=True)))
    limit = 2 * math.log(1 / T) * sigma**2 * (2 if kind == "amplitude" else 1)
    inside = sum(
        sum((i - c) ** 2 for i, c in zip(index, center, strict=True)) < limit
        for index in np.ndindex(*shape)
    )
    assert inside > 3
    side = metrics.luo_size(image, kind)
    assert side == pytest.approx(inside ** (1 / len(shape)), rel=1e-15, abs=0)
    assert metrics.luo_size(image, kind, center=center) == side


@pytest.mark.parametrize("kind", ["amplitude", "variance"])
@pytest.mark.parametrize("threshold", [T, 0.3, 0.9])
@pytest.mark.parametrize("center", [(5, 4), (5.5, 4), (4.5, 3.5)])
def test_luo_size_at_any_parity_matches_a_loop(kind, threshold, center):
    image = noise((11, 9))
    root = np.sqrt if kind == "amplitude" else np.positive
    adjacent = itertools.product(*({math.floor(c), math.ceil(c)} for c in center))
    reference = np.mean([root(image[index]) for index in adjacent])
    count = count_loop(image, kind, threshold, reference)
    assert metrics.luo_size(image, kind, threshold, center) == math.sqrt(count)


def test_luo_size_is_exact_on_boxes():
    assert metrics.luo_size(np.ones(7)) == 7
    assert metrics.luo_size(np.ones((6, 6)), center=(2.5, 2.5)) == 6
    assert metrics.luo_size(np.ones((5, 5, 5))) == 5  # 125 ** (1/3) is not
    at_threshold = np.array([0.5, 1.0, 0.75])  # greater than, not equal
    assert metrics.luo_size(at_threshold, "variance", 0.5) == 2


def test_luo_slopes_of_plain_chains():
    """Luo et al., Figure 2, for n = 5, 10, …, 40: the digits that the design states."""
    depths = range(5, 41, 5)
    slopes = {}
    for kind in ("amplitude", "variance"):
        sizes, ratios = [], []
        for n in depths:
            image = outer(chain(n), chain(n))
            sizes.append(metrics.luo_size(image, kind, center=(n, n)))
            ratios.append(metrics.trf_ratio(sizes[-1], image.shape))
        slopes[kind] = metrics.slope_fit(depths, sizes), metrics.slope_fit(depths, ratios)
    # Half a unit of the last printed digit; the counts are integers, so nothing else is uncertain.
    assert slopes["amplitude"] == pytest.approx((0.536, -0.426), rel=0, abs=5e-4)
    assert slopes["variance"] == pytest.approx((0.481, -0.481), rel=0, abs=5e-4)


def test_slope_of_a_power_law_is_its_exponent():
    depths = [1, 2, 3, 10, 50]
    assert metrics.slope_fit(depths, [4 * n**0.7 for n in depths]) == pytest.approx(
        0.7, rel=1e-14, abs=0
    )
    assert metrics.slope_fit([1, 2], [8, 4]) == pytest.approx(-1, rel=1e-14, abs=0)


def test_trf_ratio_takes_the_square_of_equal_area():
    assert metrics.trf_ratio(6, 12) == 0.5
    assert metrics.trf_ratio(6, (4, 9)) == pytest.approx(1, rel=1e-15, abs=0)
    assert metrics.trf_ratio(3, (2, 4, 27)) == pytest.approx(0.5, rel=1e-15, abs=0)


# -- sets that hold a share -----------------------------------------------------------------------


def square_loop(image, share, center):
    """Grow a square by one pixel at a time until it holds the share (exact: integer pixels)."""
    total = Fraction(float(image.sum()))
    for side in range(1, 100):
        held = [
            index
            for index in np.ndindex(image.shape)
            if all(abs(i - c) + 0.5 <= side / 2 for i, c in zip(index, center, strict=True))
        ]
        if sum(Fraction(float(image[i])) for i in held) >= Fraction(share) * total:
            return tuple(
                sum(abs(i - c) + 0.5 <= side / 2 for i in range(-100, 200)) for c in center
            )
    raise AssertionError("no square holds the share")


@pytest.mark.parametrize("share", [0.2, 0.3, 0.5, 0.99])
@pytest.mark.parametrize(
    ("shape", "center"),
    [
        ((12,), (5,)),
        ((12,), (5.5,)),
        ((9, 9), (4, 4)),
        ((8, 10), (3.5, 4.5)),
        ((9, 8), (4, 3.5)),
        ((9, 9), (0, 7)),
        ((9, 9), (-1.5, 4.5)),
        ((5, 6, 4), (2, 2, 2)),
    ],
)
def test_area_square_matches_a_loop(share, shape, center):
    image = noise(shape)
    sides = square_loop(image, share, center)
    assert metrics.area_square(image, share, center) == sides
    extent = [n + 2 for n in shape]
    assert metrics.area_ratio(image, share, center, extent) == pytest.approx(
        math.prod(sides) / math.prod(extent), rel=1e-15, abs=0
    )


def test_area_square_of_boxes():
    delta = np.zeros((7, 7))
    delta[2, 3] = 1
    assert metrics.area_square(delta, 0.99) == (1, 1)
    assert metrics.area_square(delta, 0.99, (2.5, 3.5)) == (2, 2)
    assert metrics.area_square(delta, 0.01, (3, 3)) == (3, 3)
    # The share is reached exactly, and 0.36·100 tenths do not sum to a round number.
    uniform = np.full((10, 10), 0.1)
    assert metrics.area_square(uniform, 0.36, (4.5, 4.5)) == (6, 6)
    assert metrics.area_square(uniform, 0.361, (4.5, 4.5)) == (8, 8)
    assert metrics.area_ratio(uniform, 0.64, (4.5, 4.5), (20, 16)) == 0.2


def test_square_side_is_continuous():
    uniform = np.full((10, 10), 0.1)
    for share in (0.01, 0.25, 0.3, 0.361, 0.999):
        # The search stops at 2⁻⁴⁰ of a pixel.
        side = metrics.square_side(uniform, share, (4.5, 4.5))
        assert side == pytest.approx(10 * math.sqrt(share), abs=2.0**-39)
        ratio = metrics.area_ratio(uniform, share, (4.5, 4.5), (10, 10), subpixel=True)
        assert ratio == pytest.approx(share, abs=20 * 2.0**-39)
    assert metrics.square_side(np.ones(1), 0.5) == pytest.approx(0.5, abs=2.0**-39)
    assert metrics.square_side(np.ones((3, 3, 3)), 0.5, (1, 1, 1)) == pytest.approx(
        3 * 0.5 ** (1 / 3), abs=2.0**-39
    )
    assert metrics.square_side(np.ones(4), 0.5, (0.25,)) == pytest.approx(2.5, abs=2.0**-39)


@pytest.mark.parametrize("sigma", [3.0, 6.0, 24.0])
def test_square_side_tends_to_that_of_the_gaussian(sigma):
    """P(|x| ≤ s/2)² = t. The midpoint rule moves the edge at h by h/24σ², and the constant density
    in the pixel that the edge crosses by h/8σ² at most: together 1/6σ² of the side."""
    share, n = 0.5, 16 * int(sigma) + 1
    line = gaussian(sigma, n // 2, n)
    z = 1.0517959  # erf(z/√2)² = 0.5
    assert math.erf(z / math.sqrt(2)) ** 2 == pytest.approx(share, abs=1e-6)
    side = metrics.square_side(outer(line, line), share, (n // 2, n // 2))
    assert side == pytest.approx(2 * z * sigma, rel=1 / (6 * sigma**2), abs=0)


def test_area_ratio_log_is_the_published_script():
    """get_rectangle of erf/analyze_erf.py, in its own words of squares 2i + 1 about shape // 2."""
    image = 30 * outer(gaussian(6, 20, 41), gaussian(6, 20, 41)) + 0.01 * noise((41, 41))
    scores = np.log10(image + 1)
    scores /= scores.max()
    for share in (0.2, 0.3, 0.5, 0.99):
        side = next(
            2 * i + 1
            for i in range(1, 21)
            if scores[20 - i : 21 + i, 20 - i : 21 + i].sum() / scores.sum() > share
        )
        assert metrics.area_ratio_log(image, share, (20, 20), (41, 41)) == pytest.approx(
            (side / 41) ** 2, rel=1e-15, abs=0
        )


def test_area_ratio_log_depends_on_the_scale_and_area_ratio_does_not():
    image = outer(gaussian(5, 20, 41), gaussian(5, 20, 41))
    place = (0.9, (20, 20), (41, 41))
    plain = metrics.area_ratio(image, *place)
    assert metrics.area_ratio(1e6 * image, *place) == plain
    assert metrics.area_ratio_log(1e6 * image, *place) > 1.5 * plain
    assert metrics.area_ratio_log(1e-9 * image, *place) == plain


def disc_loop(image, center):
    """Mass by quarter-pixel-exact squared distance."""
    mass: dict[float, float] = {}
    for index in np.ndindex(image.shape):
        key = sum((i - c) ** 2 for i, c in zip(index, center, strict=True))
        mass[key] = mass.get(key, 0) + float(image[index])
    return mass


@pytest.mark.parametrize(
    ("shape", "center"),
    [((9,), (4,)), ((8,), (3.5,)), ((7, 8), (3, 3.5)), ((6, 6), (1.25, 9)), ((4, 5, 3), (2, 2, 1))],
)
def test_radial_mass_matches_a_loop(shape, center):
    image = noise(shape)
    mass = disc_loop(image, center)
    squared = sorted(mass)
    radii, cumulative = metrics.radial_mass(image, center)
    np.testing.assert_allclose(radii, np.sqrt(squared), rtol=2.0**-52)
    running = np.array([sum(mass[q] for q in squared[: i + 1]) for i in range(len(squared))])
    np.testing.assert_allclose(cumulative, running / image.sum(), rtol=SUM_RTOL)
    assert cumulative[-1] == 1
    for share in (0.1, 0.5, 0.95):
        reached = next(q for q, m in zip(squared, running, strict=True) if m >= share * image.sum())
        radius = metrics.radius_of_mass(image, share, center)
        assert radius == pytest.approx(math.sqrt(reached), rel=2.0**-52, abs=0)


def test_radius_of_a_gaussian():
    """σ√(−2 ln(1 − t)) within a pixel: the disc's edge runs through pixels."""
    image = outer(gaussian(8, 60, 121), gaussian(8, 60, 121))
    for share in (0.1, 0.5, 0.9, 0.99):
        assert metrics.radius_of_mass(image, share) == pytest.approx(
            8 * math.sqrt(-2 * math.log(1 - share)), abs=0.5
        )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.999])
def test_smallest_set_matches_a_loop(shape, share):
    image = noise(shape)
    goal = Fraction(share) * Fraction(float(image.sum()))
    held, count = Fraction(0), 0
    for value in sorted(image.ravel().tolist(), reverse=True):
        if held + Fraction(value) >= goal:
            break
        held, count = held + Fraction(value), count + 1
    assert metrics.smallest_set(image, share) == count + 1
    area = float(count + (goal - held) / Fraction(value))
    assert metrics.smallest_set_area(image, share) == pytest.approx(area, rel=1e-12, abs=0)


def test_smallest_set_of_boxes_and_holes():
    # 56 tenths, summed one way or another, are not 0.56 of the sum of a hundred.
    assert metrics.smallest_set(np.full((10, 10), 0.1), 0.56) == 56
    assert metrics.smallest_set_area(np.full((10, 10), 0.1), 0.365) == pytest.approx(
        36.5, rel=1e-13, abs=0
    )
    lattice = np.zeros((9, 9))
    lattice[::4, ::4] = 1
    assert metrics.smallest_set(lattice, 0.99) == 9


def test_smallest_set_of_a_gaussian():
    """−2πσ² ln(1 − t): the area of the disc; the lattice count is less than its perimeter off."""
    image = outer(gaussian(8, 60, 121), gaussian(8, 60, 121))
    for share in (0.5, 0.9):
        area = -2 * math.pi * 64 * math.log(1 - share)
        count = metrics.smallest_set(image, share)
        assert abs(count - area) < math.sqrt(4 * math.pi * area)
        assert count - 1 < metrics.smallest_set_area(image, share) <= count


# -- shape ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_gaussian_distance_is_zero_on_gaussians_and_falls_with_depth(ndim):
    exact = outer(*[gaussian(2.0 + a / 2, 20, 41) for a in range(ndim)])
    # The image ends at 6.7σ or more, where 1e-10 of the mass and less is cut off.
    assert metrics.gaussian_distance(exact) < 1e-9
    distances = [metrics.gaussian_distance(outer(*[chain(n)] * ndim)) for n in (2, 8, 32)]
    assert distances[0] > 3 * distances[1] > 9 * distances[2]


def test_gaussian_distance_of_a_tilted_gaussian_is_zero():
    y, x = np.mgrid[-30:31, -30:31]
    precision = np.linalg.inv([[9.0, 5.0], [5.0, 8.0]])
    image = np.exp(
        -(precision[0, 0] * y**2 + 2 * precision[0, 1] * x * y + precision[1, 1] * x**2) / 2
    )
    assert metrics.gaussian_distance(image) < 1e-9
    np.testing.assert_allclose(metrics.covariance(image), [[9, 5], [5, 8]], rtol=1e-9)


def test_gaussian_distance_of_two_pixels():
    """p = (½, 0, ½), variance 1: g ∝ (e^−½, 1, e^−½), so the distance is g's middle."""
    middle = 1 / (1 + 2 * math.exp(-0.5))
    assert metrics.gaussian_distance(np.array([3.0, 0, 3])) == pytest.approx(
        middle, rel=1e-14, abs=0
    )


def test_fills_only_at_borders_of_the_input():
    wide = np.ones((5, 5))
    assert metrics.fills(wide, (0, 10), (30, 30))
    assert metrics.fills(wide, (10, 25), (30, 30))
    assert not metrics.fills(wide, (10, 10), (30, 30))
    assert not metrics.fills(wide, (1, 24), (30, 30))
    narrow = outer(gaussian(1, 10, 21), gaussian(1, 10, 21))
    assert not metrics.fills(narrow, (0, 0), (21, 21))
    clipped = narrow[8:]
    assert metrics.fills(clipped, (0, 0), (13, 21))
    assert not metrics.fills(clipped, (0, 0), (13, 21), threshold=0.2)


def test_fills_agrees_with_luos_amplitude_threshold():
    """On a separable image the border counts when its amplitude is above 1 − 0.9545."""
    for value, expected in ((T**2 * 1.01, True), (T**2 * 0.99, False)):
        line = np.array([value, 0.5, 1, 0.5, value])
        assert metrics.fills(line, (0,), (5,)) is expected
        assert (metrics.luo_size(line) == 5) is expected


# -- every measure --------------------------------------------------------------------------------

MEASURES = {
    "mean": lambda image: metrics.mean(image, (3, -4)),
    "covariance": metrics.covariance,
    "std": metrics.std,
    "kurtosis": metrics.kurtosis,
    "profile": lambda image: metrics.profile(image, 0),
    "fwhm": metrics.fwhm,
    "width_at": lambda image: metrics.width_at(image, 0.1, (8.5, 11)),
    "luo amplitude": lambda image: metrics.luo_size(image, center=(8.5, 10.5)),
    "luo variance": lambda image: metrics.luo_size(image, "variance"),
    "luo subpixel": lambda image: metrics.luo_size(image, center=(8.5, 10.5), subpixel=True),
    "area_square": lambda image: metrics.area_square(image, 0.5, (8, 11)),
    "square_side": lambda image: metrics.square_side(image, 0.5, (8, 11)),
    "area_ratio": lambda image: metrics.area_ratio(image, 0.5, (8, 11), (30, 40)),
    "radial_mass": lambda image: metrics.radial_mass(image, (8, 11))[1],
    "radius_of_mass": lambda image: metrics.radius_of_mass(image, 0.6),
    "radius subpixel": lambda image: metrics.radius_of_mass(image, 0.6, (8.5, 11), subpixel=True),
    "smallest_set": lambda image: metrics.smallest_set(image, 0.7),
    "smallest_set_area": lambda image: metrics.smallest_set_area(image, 0.7),
    "gaussian_distance": metrics.gaussian_distance,
    "fills": lambda image: metrics.fills(image, (0, 0), (18, 22)),
}


def smooth():
    """Anisotropic, off centre, of even size, with no two pixels alike."""
    image = outer(gaussian(2.2, 8.3, 18), gaussian(3.1, 10.8, 22))
    return image * (1 + 0.01 * noise((18, 22)) / 1000)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_scale_does_not_matter(name, scale, dtype):
    # A power of two: the scaled image has the same digits, and none of its pixels is subnormal.
    factor = 2.0 ** round(math.log2(scale))
    image = smooth().astype(dtype)
    image[image < 1e-7] = 0
    scaled = image * np.asarray(factor, dtype)
    np.testing.assert_allclose(MEASURES[name](scaled), MEASURES[name](image), rtol=1e-12)


@pytest.mark.parametrize("name", MEASURES)
def test_float32_is_computed_in_float64(name):
    image = smooth().astype(np.float32)
    np.testing.assert_allclose(
        MEASURES[name](image), MEASURES[name](image.astype(np.float64)), rtol=1e-12
    )


@pytest.mark.parametrize("name", MEASURES)
def test_memory_layout_does_not_matter(name):
    image = smooth()
    padded = np.zeros((36, 22))
    padded[::2] = image
    given = MEASURES[name](image)
    for same in (np.asfortranarray(image), padded[::2], np.flip(np.flip(image).copy())):
        before = same.copy()
        np.testing.assert_allclose(MEASURES[name](same), given, rtol=1e-12)
        np.testing.assert_array_equal(same, before)


@pytest.mark.gpu
@pytest.mark.parametrize("name", MEASURES)
def test_cupy_agrees_with_numpy(name):
    cupy = pytest.importorskip("cupy")
    if not cupy.cuda.is_available():
        pytest.skip("no CUDA device")
    result = MEASURES[name](cupy.asarray(smooth()))
    if isinstance(result, cupy.ndarray):
        result = result.get()
    np.testing.assert_allclose(result, MEASURES[name](smooth()), rtol=1e-12)


# -- what is refused ------------------------------------------------------------------------------

BAD_IMAGES = {
    "zero everywhere": np.zeros((3, 3)),
    "values from -1.0": np.array([1.0, -1.0]),
    "values from nan": np.array([1.0, np.nan]),
    "to inf": np.array([1.0, np.inf]),
    "0 dimensions|shape \\(\\)": np.array(1.0),
    "shape \\(1, 1, 1, 1\\)": np.ones((1, 1, 1, 1)),
    "shape \\(0, 3\\)": np.ones((0, 3)),
    "dtype complex": np.ones(3, complex),
    "is a list": [1.0, 2.0],
}


@pytest.mark.parametrize("message", BAD_IMAGES)
@pytest.mark.parametrize(
    "measure",
    [
        metrics.mean,
        metrics.covariance,
        metrics.std,
        metrics.kurtosis,
        lambda image: metrics.profile(image, 0),
        lambda image: metrics.cut(image, 0),
        metrics.fwhm,
        metrics.luo_size,
        lambda image: metrics.area_square(image, 0.5),
        lambda image: metrics.square_side(image, 0.5),
        lambda image: metrics.area_ratio_log(image, 0.5, None, (3, 3)),
        metrics.radial_mass,
        lambda image: metrics.smallest_set(image, 0.5),
        lambda image: metrics.smallest_set_area(image, 0.5),
        metrics.gaussian_distance,
        lambda image: metrics.fills(image, (0, 0), (3, 3)),
    ],
)
def test_images_that_are_none_are_refused(message, measure):
    with pytest.raises(InputError, match=message):
        measure(BAD_IMAGES[message])


BOX = np.ones((3, 3))
RING = np.array([[1.0, 1, 1], [1, 0, 1], [1, 1, 1]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.area_square(BOX, 0.0), "share is 0.0"),
        (lambda: metrics.area_ratio(BOX, 50, None, (3, 3)), "share is 50.*0.5 for one half"),
        (lambda: metrics.square_side(BOX, 1.0), "share is 1.0"),
        (lambda: metrics.radius_of_mass(BOX, -0.1), "share is -0.1"),
        (lambda: metrics.smallest_set(BOX, math.nan), "share is nan"),
        (lambda: metrics.smallest_set_area(BOX, 1.5), "share is 1.5"),
        (lambda: metrics.luo_size(BOX, "rms"), "kind is 'rms'.*'amplitude' or 'variance'"),
        (lambda: metrics.luo_size(BOX, threshold=2), "threshold is 2"),
        (lambda: metrics.luo_size(BOX, center=(1,)), r"center is \(1,\).*give 2"),
        (lambda: metrics.luo_size(BOX, center=(1, math.inf)), "center is .*finite"),
        (lambda: metrics.luo_size(RING, center=(1, 1)), "value zero"),
        (lambda: metrics.luo_size(BOX, center=(9, 9)), "value zero"),
        (lambda: metrics.fwhm(BOX, (9, 9)), "zero everywhere"),
        (lambda: metrics.width_at(BOX, 1), "level is 1"),
        (lambda: metrics.profile(BOX, 2), "axis is 2"),
        (lambda: metrics.mean(BOX, (0, 0, 0)), "origin is .*give 2"),
        (lambda: metrics.kurtosis(np.ones((3, 1))), "axis 1"),
        (lambda: metrics.gaussian_distance(np.eye(3)), "singular"),
        (lambda: metrics.gaussian_distance(np.ones((3, 1))), "singular"),
        (lambda: metrics.area_ratio(BOX, 0.5, None, (3, 0)), "extent is .*positive"),
        (lambda: metrics.trf_ratio(2, (3, 0)), "trf_size is .*positive"),
        (lambda: metrics.fills(BOX, (-1, 0), (9, 9)), "reaches beyond the input"),
        (lambda: metrics.fills(BOX, (0, 7), (9, 9)), "reaches beyond the input"),
        (lambda: metrics.slope_fit([1, 2], [1, 2, 3]), "shapes"),
        (lambda: metrics.slope_fit([2, 2], [1, 2]), "two distinct depths"),
        (lambda: metrics.slope_fit([0, 2], [1, 2]), "logarithm"),
        (lambda: metrics.slope_fit([1, 2], [1, math.nan]), "logarithm"),
    ],
)
def test_measures_that_do_not_apply_say_why(call, message):
    with pytest.raises(InputError, match=message) as refusal:
        call()
    assert "\n" not in str(refusal.value)
    assert ";" in str(refusal.value), "value and rule; remedy"
