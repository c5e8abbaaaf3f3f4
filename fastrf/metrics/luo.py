"""The measures of Luo et al. 2016: size by a threshold, its slope and its ratio to the TRF."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fastrf.arrays import Array
from fastrf.errors import InputError
from fastrf.images import Image, image_of, where_the_image_lives
from fastrf.metrics.given import Center, fraction_of, per_axis, position_of
from fastrf.metrics.levels import volume_above
from fastrf.metrics.moments import profiles_of
from fastrf.metrics.regions import interpolation

LUO_THRESHOLD = 1 - 0.9545
"""Luo et al. 2016, §3.1: pixels above (1 − 95.45%) of the centre belong to the ERF."""

FILLS = "the ERF fills the image: its sizes are cut off by the border, not by the network"
"""The warning of a field whose sizes say more about the image than about the unit."""


@where_the_image_lives
def luo_size(
    image: Array | Image,
    kind: str = "amplitude",
    threshold: float = LUO_THRESHOLD,
    center: Center = None,
    *,
    subpixel: bool = False,
) -> float:
    """ERF side of Luo et al. 2016 (§3.1): count^(1/ndim) of the pixels above threshold·centre.

    A pixel counts when its value is greater than (1 − 0.9545) times the value at the centre; in
    2-D the size is the square root of the count. `image` is the variance; kind="amplitude"
    compares its square root, the root mean square gradient, and kind="variance" the image itself.
    For a Gaussian variance of deviation σ the counted disc has the radius
    √(2 ln(1/threshold))·σ = 2.486·σ on the variance and √2 times that, 3.516·σ, on the amplitude.

    The value at a centre between pixels is the linear interpolation of the compared values: at a
    half-integer centre, the mean of the 2, 4 or 8 adjacent pixels.

    On plain chains of n = 5, 10, 15, …, 40 layers of 3×3 (unbounded, equal taps), fitted with
    `slope_fit` against n: the side grows with slope 0.536 and its ratio to the theoretical size
    2n + 1 falls with −0.426 on the amplitude; 0.481 and −0.481 on the variance. The paper reports
    0.56 and −0.43.

    With `subpixel` the length, area or volume in which the interpolated values exceed the threshold
    stands in for the count (linear between pixel centres, falling to zero within one pixel beyond
    the image): the measure then varies continuously with the image. At a threshold this low it
    is up to one pixel more than the count where the image ends abruptly, and equal to it but for
    its jumps where it fades.

    Raises InputError for another kind, a threshold outside (0, 1) or a centre of value zero.
    """
    image = image_of(image)
    if kind not in ("amplitude", "variance"):
        raise InputError(
            f"kind is {kind!r}: Luo's size compares gradients or their squares; "
            "give 'amplitude' or 'variance'"
        )
    level = fraction_of("threshold", threshold)
    position = position_of(image, center)
    # The image around the centre: a pixel, or the 2, 4 or 8 that it lies between.
    ends = [interpolation(n, c) for n, c in zip(image.shape, position, strict=True)]
    *lines, columns = np.meshgrid(*(f + np.arange(len(w)) for f, w in ends), indexing="ij")
    rows = np.ravel_multi_index(lines, image.shape[:-1]) if lines else np.zeros_like(columns)
    near = image.at(rows.ravel(), columns.ravel()).reshape(columns.shape)
    # √v > t·r and v > (t·r)² count the same pixels; the second takes no root of the image.
    value = near if kind == "variance" else np.sqrt(near)
    for _, weights in reversed(ends):
        value = value @ weights
    limit = level * float(value) if kind == "variance" else (level * float(value)) ** 2
    if limit == 0:
        raise InputError(
            f"center {position} has value zero: Luo's size compares with the centre; use "
            "smallest_set, or fastrf.metrics.luo_size with another center (None: the maximum)"
        )
    if subpixel:
        amplitude = kind == "amplitude"
        compared = math.sqrt(limit) if amplitude else limit
        return _root(volume_above(image, compared, amplitude=amplitude), image.ndim)
    return _root(image.count_above(limit), image.ndim)


def slope_fit(depths: Sequence[float], sizes: Sequence[float]) -> float:
    """Slope of the least-squares line through (log depth, log size): Luo et al. 2016, Figure 2.

    Sizes that grow like depth^q have slope q. Raises InputError for unequal lengths, values that
    are not positive and fewer than two distinct depths.
    """
    x, y = np.asarray(depths, np.float64), np.asarray(sizes, np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(np.unique(x)) < 2:
        raise InputError(
            f"depths and sizes have shapes {x.shape} and {y.shape}: a slope needs two lists of one "
            "length with two distinct depths; give one size for each depth"
        )
    if not (np.all(x > 0) and np.all(y > 0) and np.all(np.isfinite(x * y))):
        raise InputError(
            f"depths {x.tolist()} or sizes {y.tolist()} hold a value without a logarithm: "
            "both are positive and finite; leave depth 0 out"
        )
    u, v = np.log(x), np.log(y)
    u -= u.mean()
    return float(u @ v / (u @ u))


def trf_ratio(size: float, trf_size: float | Sequence[float]) -> float:
    """`size` divided by the side of the theoretical receptive field (Luo et al. 2016, Figure 2).

    With one `trf_size` per axis, the side is their geometric mean: that of the square (cube) of
    the same area, as the side of `luo_size` is that of its pixel count.
    """
    sides = per_axis("trf_size", np.atleast_1d(np.asarray(trf_size, np.float64)).tolist())
    if not all(side > 0 for side in sides):
        raise InputError(f"trf_size is {trf_size}: sizes are positive; give field.size")
    return float(size) / math.prod(sides) ** (1 / len(sides))


@where_the_image_lives
def fills(
    image: Array | Image,
    origin: Sequence[int],
    input_size: Sequence[int],
    threshold: float = LUO_THRESHOLD**2,
) -> bool:
    """Whether the ERF fills the input, so that its sizes say more about the input than the unit.

    True when, along some axis, the profile at the first or the last pixel of the *input* is above
    `threshold` times its maximum. The default is Luo's (1 − 0.9545) on the amplitude, squared for
    the variance: the level at which `luo_size` would count pixels beyond the border. An edge of
    the image that is not a border of the input is the end of the receptive field and never counts.

    Raises InputError where the image reaches beyond the input.
    """
    image = image_of(image)
    level = fraction_of("threshold", threshold)
    profiles = profiles_of(image)
    starts = per_axis("origin", origin, image.ndim)
    sizes = per_axis("input_size", input_size, image.ndim)
    filled = False
    for p, start, size in zip(profiles, starts, sizes, strict=True):
        if start < 0 or start + len(p) > size:
            raise InputError(
                f"image of shape {image.shape} at origin {tuple(origin)} reaches beyond the input "
                f"{tuple(input_size)}: this measure is of an image within its input; compute the "
                "field with that input_size"
            )
        limit = level * p.max()
        filled |= start == 0 and p[0] > limit
        filled |= start + len(p) == size and p[-1] > limit
    return bool(filled)


def _root(count: float, ndim: int) -> float:
    """count^(1/ndim), exact for perfect powers."""
    return (float(count), math.sqrt(count), math.cbrt(count))[ndim - 1]
