"""Every measure of an image in factors against the measure of its pixels, which are not formed."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
from test_terms import build, cases

import fastrf as rf
from fastrf import metrics
from fastrf.engine import terms
from fastrf.engine.terms import FactoredImage, brightest
from fastrf.images import Pixels
from fastrf.metrics.regions import overlap

EPS = float(np.finfo(float).eps)
SHARES = (0.05, 0.5, 0.99, 0.9999)
THRESHOLD = metrics.LUO_THRESHOLD


def bound_of(image):
    """Both sides add at most N^d nonnegative numbers of T terms, the dense one pairwise and the
    factored one axis by axis: N + T + d roundings each, of numbers with d + 1 factors."""
    return 4 * (max(image.shape) + image.rank + image.ndim) * EPS


def central(image, shifted=0.0):
    return tuple((n - 1) / 2 + shifted for n in image.shape)


@pytest.fixture(params=cases(), ids=lambda case: case[0])
def pair(request):
    """An image in factors, and its pixels."""
    _, *parts = request.param
    image = build(*parts)
    return image, image.form()


# -- measures -------------------------------------------------------------------------------------


def test_moments(pair):
    image, pixels = pair
    bound = bound_of(image)
    given, expected = metrics.mean(image, image.origin), metrics.mean(pixels, image.origin)
    # Of distances up to N from the middle.
    assert given == pytest.approx(expected, rel=0, abs=bound * max(image.shape))
    # A variance sums squares of distances whose mean is off by the above.
    assert metrics.std(image) == pytest.approx(metrics.std(pixels), rel=10 * bound, abs=0)
    # μ₄/μ₂² is at most 100 here: the kurtosis has that much of the bounds of both.
    assert metrics.kurtosis(image) == pytest.approx(metrics.kurtosis(pixels), abs=1000 * bound)
    sigma = np.multiply.outer(metrics.std(image), metrics.std(image))
    difference = abs(metrics.covariance(image) - metrics.covariance(pixels))
    # An entry beside the diagonal sums products up to N²/4 where σ_a·σ_b is above (N/30)².
    assert np.all(difference <= 300 * bound * sigma)


def test_profiles_and_cuts(pair):
    image, pixels = pair
    bound = bound_of(image)
    for axis in range(-image.ndim, image.ndim):
        expected = metrics.profile(pixels, axis)
        np.testing.assert_allclose(metrics.profile(image, axis), expected, rtol=bound, atol=1e-290)
        for shifted in (0.0, 0.25, 0.5):
            center = central(image, shifted)
            expected = metrics.cut(pixels, axis, center)
            given = metrics.cut(image, axis, center)
            np.testing.assert_allclose(given, expected, rtol=bound, atol=1e-290)
    outside = [-3.0] * image.ndim
    if image.ndim > 1:
        assert not metrics.cut(image, 0, outside).any()


@pytest.mark.parametrize("level", [0.5, 0.01])
def test_widths(pair, level):
    """A crossing lies between two pixels, at a quotient of differences: of values a factor of 3
    apart and more where it counts, so that a relative error grows tenfold at most."""
    image, _ = pair
    center = central(image)
    given, expected = (metrics.width_at(i, level, center) for i in pair)
    assert given == pytest.approx(expected, rel=1000 * bound_of(image), abs=0)
    assert metrics.fwhm(image, center) == metrics.width_at(image, 0.5, center)


@pytest.mark.parametrize("kind", ["amplitude", "variance"])
@pytest.mark.parametrize("shifted", [0.0, 0.25, 1.0])
def test_luo_size(pair, kind, shifted):
    """A count: no pixel of these images is within a rounding of the limit."""
    image, pixels = pair
    center = central(image, shifted)
    for threshold in (THRESHOLD, 0.3, 1e-9):
        given = metrics.luo_size(image, kind, threshold, center)
        assert given == metrics.luo_size(pixels, kind, threshold, center)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("shifted", [0.0, 0.25, 3.5, -11.0])
def test_squares_and_balls(pair, share, shifted):
    """Whole numbers and distances of pixels: no mass here is within a rounding of the share."""
    image, pixels = pair
    center = central(image, shifted)
    assert metrics.area_square(image, share, center) == metrics.area_square(pixels, share, center)
    extent = (10,) * image.ndim
    given = metrics.area_ratio(image, share, center, extent)
    assert given == metrics.area_ratio(pixels, share, center, extent)
    # The search stops at 2⁻⁴⁰ of a pixel, which holds 1 at most along each axis.
    half = metrics.square_side(image, share, center) / 2
    ends = zip(image.shape, center, strict=True)
    inside = Pixels(pixels).contracted([overlap(n, c, half) for n, c in ends])
    assert inside == pytest.approx(share, rel=0, abs=bound_of(image) + image.ndim * 2.0**-39)
    assert metrics.radius_of_mass(image, share, center) == pytest.approx(
        metrics.radius_of_mass(pixels, share, center), rel=4 * EPS, abs=0
    )


@pytest.mark.parametrize("share", SHARES)
def test_smallest_sets(pair, share):
    image, pixels = pair
    assert metrics.smallest_set(image, share) == metrics.smallest_set(pixels, share)
    # The part of the last pixel is a difference of two sums over its value.
    area = metrics.smallest_set_area(pixels, share)
    last = np.sort(pixels.ravel())[-math.ceil(area)]
    given = metrics.smallest_set_area(image, share)
    assert given == pytest.approx(area, rel=0, abs=bound_of(image) / last + 4 * EPS * area)


def test_area_ratio_log(pair):
    image, pixels = pair
    place = (0.9, central(image), (10,) * image.ndim)
    assert metrics.area_ratio_log(image, *place) == metrics.area_ratio_log(pixels, *place)


def test_radial_mass(pair):
    image, _ = pair
    for center in (central(image), central(image, 0.3)):
        (radii, mass), (expected_radii, expected) = (metrics.radial_mass(i, center) for i in pair)
        np.testing.assert_allclose(radii, expected_radii, rtol=4 * EPS)
        # Sums of up to N^d pixels, most at the far radii: N roundings of a running sum and more.
        np.testing.assert_allclose(mass, expected, rtol=16 * bound_of(image))


def plain_distance(pixels):
    """½ Σ |p − g| over every pixel, from the definition."""
    p = pixels / pixels.sum()
    x = np.stack([i.ravel() for i in np.indices(p.shape)])
    x = x - (x * p.ravel()).sum(axis=1, keepdims=True)
    precision = np.linalg.inv(np.atleast_2d((x * p.ravel()) @ x.T))
    g = np.exp(-0.5 * np.einsum("ai,ab,bi->i", x, precision, x))
    return 0.5 * abs(p.ravel() - g / g.sum()).sum()


def test_gaussian_distance(pair):
    """Differences of numbers of sum 1, whose exponents are right to 1e-13 where they count, and
    the mass left out."""
    image, pixels = pair
    expected = pytest.approx(plain_distance(pixels), rel=0, abs=1e-12)
    assert metrics.gaussian_distance(image) == expected
    assert metrics.gaussian_distance(pixels) == expected


def test_gaussian_distance_where_one_of_the_two_has_long_tails():
    """A box has none and its Gaussian has; so has a peak on a floor that the Gaussian misses."""
    rows = np.zeros((2, 401))
    rows[0, 180:221] = 1 / 41
    box = build([1.0], [rows[:1], rows[:1]], [True, True])
    rows[1] = 1 / 401
    floor = build([1 - 1e-6, 1e-6], [rows, rows], [True, True])
    for image in (box, floor):
        distance = metrics.gaussian_distance(image)
        assert distance == pytest.approx(plain_distance(image.form()), rel=0, abs=1e-12)


def test_centers_default_to_the_first_maximum(pair):
    image, pixels = pair
    place = np.unravel_index(pixels.argmax(), pixels.shape)
    assert image.peak() == tuple(int(i) for i in place)
    assert metrics.luo_size(image) == metrics.luo_size(pixels)
    assert metrics.area_square(image, 0.5) == metrics.area_square(pixels, 0.5)


@pytest.mark.parametrize("clipped", [False, True])
def test_fills(pair, clipped):
    image, pixels = pair
    if clipped:
        box = [((n + 1) // 2, n) for n in image.shape]
        image, pixels = image.cropped(box), pixels[tuple(slice(*ends) for ends in box)]
    for sizes in (image.shape, tuple(n + 3 for n in image.shape)):
        for threshold in (0.1, THRESHOLD**2):
            where = ((0,) * image.ndim, sizes, threshold)
            assert metrics.fills(image, *where) == metrics.fills(pixels, *where)


# -- blocks and searches --------------------------------------------------------------------------


def test_measures_by_blocks_are_those_at_once(pair, monkeypatch):
    image, pixels = pair
    monkeypatch.setattr(terms, "LARGEST_BLOCK", 50)
    blocks = list(image.blocks())
    assert image.shape[0] < 50 or len(blocks) > 1
    np.testing.assert_allclose(
        np.concatenate([block for _, block in blocks]), pixels, rtol=bound_of(image), atol=1e-290
    )
    test_gaussian_distance(pair)
    test_radial_mass(pair)
    test_area_ratio_log(pair)
    test_luo_size(pair, "variance", 0.0)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("few", [0, 4])
def test_brightest_is_exact_on_ties(ndim, few, monkeypatch):
    """Products of small whole numbers, whose sums are exact: many equal pixels."""
    monkeypatch.setattr(terms, "FEW_PIXELS", few)
    lines = [np.random.default_rng(ndim).integers(0, 5, 14).astype(float) for _ in range(ndim)]
    pixels = np.ones(())
    for line in lines:
        pixels = np.multiply.outer(pixels, line)
    dense = Pixels(pixels)
    for goal in np.linspace(0.5, pixels.sum() - 0.5, 60):
        assert brightest(lines, goal) == dense.brightest(goal)


def test_the_brightest_pixels_may_lie_where_few_of_them_are_expected():
    """A narrow peak on a wide floor that holds the mass: the search goes on to the floor."""
    rows = np.full((2, 61), 1 / 61)
    rows[1] = 0
    rows[1, 30] = 1
    image = build([0.9, 0.1], [rows, rows], [True, True])
    pixels = image.form()
    for share in (0.05, 0.2, 0.7):
        assert metrics.smallest_set(image, share) == metrics.smallest_set(pixels, share)
    flat = build([0.5, 0.5], [rows[:1].repeat(2, axis=0)] * 2, [True, True])
    assert metrics.smallest_set(flat, 0.5) == math.ceil(61 * 61 / 2)


def test_the_core_holds_the_mass(pair):
    image, pixels = pair
    core, corner = image.core
    box = tuple(slice(i, i + n) for i, n in zip(corner, core.shape, strict=True))
    inside = pixels[box]
    assert inside.sum() >= pixels.sum() * (1 - 2.0**-50)
    assert np.abs(core.form() - inside).sum() <= 2.0**-50 + bound_of(image)


# -- fields ---------------------------------------------------------------------------------------

# Deep enough that nine deviations are far less than the field.
NETWORKS = ["plain(200, 3)", "plain(200, 3, ndim=1)", "plain(100, 3, ndim=3)"]
NETWORKS += ["residual(150)", "residual(150, ndim=1)", "residual(60, ndim=3)"]


def everything(field):
    """Every figure of a field, as plain values."""
    figures = field.to_dict()
    figures["radii"] = [field.radius_of_mass(share) for share in SHARES]
    figures["sets"] = [field.smallest_set(share) for share in SHARES]
    figures["gaussian"] = field.gaussian_distance
    figures["profiles"] = [field.profile(axis).tolist() for axis in range(len(field.shape))]
    return figures


@pytest.mark.parametrize("name", NETWORKS)
def test_no_figure_of_a_field_forms_its_image(name, monkeypatch):
    field = rf.erf(rf.zoo.get(name), method="factored")
    assert isinstance(field.values, FactoredImage)
    whole, form = field.values.size, FactoredImage.form

    def parts_only(image, out=None, workers=1):
        assert image.size < whole, "the image is formed"
        return form(image, out, workers)

    monkeypatch.setattr(FactoredImage, "form", parts_only)
    everything(field)
    with pytest.raises(AssertionError, match="the image is formed"):
        _ = field.image


@pytest.mark.parametrize("name", ["plain(60, 3)", "plain(30, 3, ndim=1)", "plain(9, 3, ndim=3)"])
def test_no_pixel_of_an_outer_product_is_formed_for_the_figures(name, monkeypatch):
    """A field of a chain is measured on its profiles; around the centre a pixel is formed."""
    form = FactoredImage.form

    def pixel_only(image, out=None, workers=1):
        assert image.size == 1
        return form(image, out, workers)

    field = rf.erf(rf.zoo.get(name))
    monkeypatch.setattr(FactoredImage, "form", pixel_only)
    field.to_dict()


@pytest.mark.parametrize("size", [None, 40])
def test_fields_of_factors_and_of_pixels_have_the_same_figures(size):
    """Anisotropic, off centre, at a border: the factored engine against the direct one."""
    layers = [rf.Conv((3, 5), padding=(1, 2))] * 8 + [rf.Conv(3, stride=(2, 1), padding=1)]
    net = rf.Sequential(*layers)
    unit = "center" if size is None else (2, 5)
    one, other = (rf.erf(net, unit=unit, input_size=size, method=m) for m in ("factored", "direct"))
    assert isinstance(one.values, FactoredImage)
    for name, value in everything(one).items():
        expected = everything(other)[name]
        if name not in ("plan", "profiles"):
            # 1e-12: the engines' own agreement, a few ulp a layer, grown by widths and moments.
            flat = np.asarray(list(value.values()) if isinstance(value, dict) else value)
            wanted = list(expected.values()) if isinstance(expected, dict) else expected
            if flat.dtype.kind in "fi":
                np.testing.assert_allclose(flat, wanted, rtol=1e-12, atol=1e-12)
            else:
                assert value == expected


def test_a_field_that_was_measured_can_be_copied():
    """What an image remembers of its measures goes with it."""
    field = rf.erf(rf.zoo.get("residual(20)"))
    figures = everything(field)
    again = copy.deepcopy(field.values)
    assert metrics.std(again) == field.std
    assert metrics.luo_size(again, center=field._at) == figures["luo_size"]["amplitude"]
