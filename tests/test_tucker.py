"""Volumes in the Tucker form: what the measures see of factors against what they see of pixels.

Pixels and factors differ by what is put to 0, and by the roundings of both: some hundred of them,
of sums whose terms may cancel a few times their size.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest

import fastrf as rf
from fastrf.engine.recompressed.tucker import TuckerImage
from fastrf.images import Pixels

CLOSE = 1e-13
"""Of the total or of the peak."""


def volume(ndim: int = 3) -> rf.Network:
    layers = [rf.Conv(k, padding="same") for k in (3, 5) * 7]
    return rf.Sequential(*map(rf.Residual, layers), ndim=ndim)


def field(**options: Any) -> rf.ERF:
    given: dict[str, Any] = {"input_size": (17, 22, 30), "unit": (3, 11, 25)}
    return rf.erf(volume(), method="factored", accuracy="absolute", tol=1e-10, **(given | options))


@pytest.fixture(scope="module")
def image() -> TuckerImage:
    found = field().values
    assert isinstance(found, TuckerImage)
    return found


@pytest.fixture(scope="module")
def pixels(image: TuckerImage) -> Pixels:
    return Pixels(image.pixels())


def test_sums(image: TuckerImage, pixels: Pixels) -> None:
    assert image.shape == pixels.shape
    assert image.total == pytest.approx(1, abs=CLOSE)
    assert image.nbytes == 8 * (image.terms.weights.size + sum(f.size for f in image.terms.factors))
    for axis in range(3):
        np.testing.assert_allclose(image.profile(axis), pixels.profile(axis), atol=CLOSE)
        assert image.profile(axis).min() >= 0
        assert float(image.profile(axis).sum()) == pytest.approx(1, abs=CLOSE)
    x, y = (np.arange(n) - n / 3 for n in image.shape[:2])
    # A product of distances up to 12 and 15.
    assert image.joint_moment(0, 1, x, y) == pytest.approx(
        pixels.joint_moment(0, 1, x, y), abs=180 * CLOSE
    )


@pytest.mark.parametrize(
    "weights",
    [
        [(2, np.arange(5.0)), (0, np.ones(22)), (7, np.linspace(1, 0, 11))],
        [(2, np.arange(5.0)), None, (7, np.linspace(1, 0, 11))],
        [(0, np.ones(17)), (3, np.ones(4)), None],
    ],
)
def test_contracted(image: TuckerImage, pixels: Pixels, weights: Any) -> None:
    np.testing.assert_allclose(
        image.contracted(weights), pixels.contracted(weights), atol=5 * CLOSE
    )


def test_boxes(image: TuckerImage, pixels: Pixels) -> None:
    some, none = [(2, 9), (10, 12), (20, 30)], [(4, 4), (1, 9), (2, 3)]
    for box in ([(0, 17), (0, 22), (0, 30)], some, none):
        assert image.mass(box) == pytest.approx(pixels.mass(box), abs=CLOSE)
    part = image.cropped(some)
    assert part.origin == tuple(o + f for o, f in zip(image.origin, (2, 10, 20), strict=True))
    assert part.total == pytest.approx(pixels.mass(some), abs=CLOSE)
    assert part.normalised().total == pytest.approx(1, abs=CLOSE)
    core, first = image.core
    whole = [(f, f + n) for f, n in zip(first, core.shape, strict=True)]
    assert pixels.mass(whole) == pytest.approx(1, abs=CLOSE)


def test_lines_and_places(
    image: TuckerImage, pixels: Pixels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastrf.engine.recompressed.tucker.BLOCK", 2000)
    lines = 17 * 22
    first = np.arange(lines) % 7
    stop = first + np.arange(lines) % 23
    assert image.on_lines(first, stop) == pytest.approx(pixels.on_lines(first, stop), abs=CLOSE)
    rows, columns = np.arange(0, lines, 5), np.arange(0, lines, 5) % 30
    peak = float(pixels.array.max())
    np.testing.assert_allclose(image.at(rows, columns), pixels.at(rows, columns), atol=CLOSE * peak)
    blocks = list(image.blocks())
    assert len(blocks) > 2
    np.testing.assert_allclose(
        np.concatenate([block for _, block in blocks]), pixels.array, atol=CLOSE * peak
    )


def test_bright_pixels(image: TuckerImage, pixels: Pixels) -> None:
    peak = float(pixels.array.max())
    assert image.peak() == pixels.peak()
    assert image.brightest_seen <= peak * (1 + CLOSE)
    assert image.count_above(0.3 * peak) == pixels.count_above(0.3 * peak)
    assert image.brightest(0.5)[0] == pixels.brightest(0.5)[0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_pixels(image: TuckerImage, dtype: str) -> None:
    found = field(dtype=dtype)
    assert found.image.dtype == dtype
    assert found.image is found.image
    assert found.image.min() >= 0
    out = np.empty(image.shape, dtype)
    found.values.form(out)
    np.testing.assert_array_equal(out, found.image)


def test_figures_form_no_pixel(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(self: Any) -> None:
        raise AssertionError("the volume was formed")

    found = field()
    whole = rf.erf(volume(), input_size=(17, 22, 30), unit=(3, 11, 25), method="direct")
    monkeypatch.setattr(TuckerImage, "_formed", forbidden)
    for name in ("mean", "std", "covariance", "kurtosis", "fwhm"):
        # Moments up to the fourth of distances up to 30 pixels.
        np.testing.assert_allclose(getattr(found, name), getattr(whole, name), rtol=1e-9)
    assert found.area_ratio(0.5) == pytest.approx(whole.area_ratio(0.5), rel=1e-12)
    monkeypatch.undo()
    assert found.luo_size() == whole.luo_size()


def test_the_tail_is_dropped_from_the_factors() -> None:
    found = field(tail=0.01)
    whole = field()
    assert 0 < found.dropped_mass <= 0.01
    assert np.prod(found.values.shape) < np.prod(whole.values.shape)
    start = [a - b for a, b in zip(found.origin, whole.origin, strict=True)]
    part = whole.image[
        tuple(slice(s, s + n) for s, n in zip(start, found.image.shape, strict=True))
    ]
    np.testing.assert_allclose(found.image, part / part.sum(), atol=CLOSE * found.image.max())


def test_copies(image: TuckerImage) -> None:
    for other in (copy.deepcopy(image), pickle.loads(pickle.dumps(image))):
        np.testing.assert_array_equal(other.pixels(), image.pixels())
        assert other.xp is np
