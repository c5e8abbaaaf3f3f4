"""One-dimensional views: the marginal, the line through the centre, and its width."""

from __future__ import annotations

import numpy as np

from fastrf.arrays import Array, on_host
from fastrf.errors import InputError
from fastrf.exchange import in_kind
from fastrf.images import Image, image_of, where_the_image_lives
from fastrf.metrics.given import Center, axis_of, fraction_of, position_of
from fastrf.metrics.regions import interpolation


@where_the_image_lives
def profile(image: Array | Image, axis: int) -> Array:
    """Marginal along `axis`: the sum over all other axes, normalised to sum 1.

    It is the distribution of the mass along one axis, the one whose mean, variance and kurtosis
    the other functions report, and in theory it does not depend on the layers along other axes.
    `cut` is the other common choice, the values on one line through the centre. For a separable
    image (a plain chain) the two are proportional; for a sum of separable images (residual
    networks, merges) they are not, and the cut, which misses the tails beside the line, is the
    narrower one.

    Returns a float64 array of shape (image.shape[axis],) on the image's device.
    """
    seen = image_of(image)
    return in_kind(seen.profile(axis_of(seen, axis)).copy(), image)


@where_the_image_lives
def cut(image: Array | Image, axis: int, center: Center = None) -> Array:
    """Values along `axis` on the line through `center`, on the image's own scale.

    Between pixels the line is interpolated linearly: at a half-integer centre it is the mean of
    the adjacent lines. Returns a float64 array of shape (image.shape[axis],) on the image's
    device. See `profile` for the difference to the marginal.
    """
    seen = image_of(image)
    along = axis_of(seen, axis)
    position = position_of(seen, center)
    ends = enumerate(zip(seen.shape, position, strict=True))
    weights = [None if a == along else interpolation(n, c) for a, (n, c) in ends]
    return in_kind(seen.contracted(weights), image)


@where_the_image_lives
def width_at(image: Array | Image, level: float, center: Center = None) -> tuple[float, ...]:
    """Full width per axis, in pixels, at `level` times the maximum of the cut through `center`.

    The cut is interpolated linearly between pixels and continued by zero beyond the image; the
    width runs between its outermost crossings of level·max, so the gaps of a dilated lattice
    do not cut it short. n equal pixels have width n at level ½, a single one has width 1.
    `level` lies in (0, 1) and applies to the image as given: with level = LUO_THRESHOLD² on the
    variance this is the continuous counterpart of `luo_size` along each axis.
    """
    image = image_of(image)
    fraction = fraction_of("level", level)
    return tuple(_width(on_host(cut(image, a, center)), fraction, a) for a in range(image.ndim))


@where_the_image_lives
def fwhm(image: Array | Image, center: Center = None) -> tuple[float, ...]:
    """Full width at half maximum per axis, in pixels, of the cut through `center`: `width_at` ½.

    A Gaussian has 2√(2 ln 2)·σ = 2.3548·σ; on the grid 0.1/σ pixels more where its peak is a
    pixel and 0.4/σ more where the peak lies between two, at the most.
    """
    return width_at(image, 0.5, center)


def _width(line: np.ndarray, level: float, axis: int) -> float:
    """Distance between the outermost points where the interpolated line crosses level·max."""
    limit = level * line.max()
    if limit == 0:
        raise InputError(
            f"the cut along axis {axis} is zero everywhere: a width needs a maximum; use "
            "std, or fastrf.metrics.fwhm with another center (None: the maximum)"
        )
    padded = np.zeros(len(line) + 2)
    padded[1:-1] = line
    above = np.flatnonzero(padded >= limit)
    first, last = int(above[0]), int(above[-1])
    rise = (padded[first] - limit) / (padded[first] - padded[first - 1])
    fall = (padded[last] - limit) / (padded[last] - padded[last + 1])
    return float(last - first + rise + fall)
