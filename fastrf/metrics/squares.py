"""Centred squares that hold a share of the mass, and RepLKNet's area ratios."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from fastrf.arrays import Array, along, namespace, on_host
from fastrf.images import Image, image_of, where_the_image_lives
from fastrf.metrics.given import ROUNDING, Center, area_of, core_at, fraction_of, position_of
from fastrf.metrics.regions import covering_side, inside, overlap, sides

SHARES = (0.2, 0.3, 0.5, 0.99)
"""Shares t of the mass for which RepLKNet (Ding et al. 2022) reports the area ratio r(t)."""

# square_side searches on a grid of 2⁻⁴⁰ (9e-13) pixels: finer than the masses it compares.
_SUBPIXEL_BITS = 40


@where_the_image_lives
def area_square(image: Array | Image, share: float, center: Center = None) -> tuple[int, ...]:
    """Sides, in whole pixels per axis, of the smallest centred square that holds `share`.

    The pixels that lie wholly inside the square (line, cube) of side s about `center` hold the
    share, and those of s − 1 do not. An axis whose centre is a pixel has an odd side and one whose
    centre lies between two pixels an even one; with both kinds of axes they differ by one. The
    square is not cut off at the image: what reaches beyond holds no mass.

    Raises InputError for a share outside (0, 1).
    """
    image, position = core_at(image_of(image), center)
    goal = fraction_of("share", share) * (1 - ROUNDING) * image.total

    def mass(side: int) -> float:
        ends = zip(image.shape, position, strict=True)
        return image.mass([inside(n, c, side / 2) for n, c in ends])

    return sides(bisect_left(range(covering_side(image, position)), goal, key=mass), position)


@where_the_image_lives
def square_side(image: Array | Image, share: float, center: Center = None) -> float:
    """Side in pixels of the centred square that holds exactly `share`: `area_square`, continuous.

    The mass of a pixel is spread evenly over its unit square, so a pixel counts by its part inside
    and the side varies continuously with the image. Resolution 1e-12 pixels.

    Raises InputError for a share outside (0, 1).
    """
    image, position = core_at(image_of(image), center)
    goal = fraction_of("share", share) * image.total

    def mass(step: int) -> float:
        half = math.ldexp(step, -_SUBPIXEL_BITS - 1)
        ends = zip(image.shape, position, strict=True)
        return float(image.contracted([overlap(n, c, half) for n, c in ends]))

    steps = covering_side(image, position) << _SUBPIXEL_BITS
    return math.ldexp(bisect_left(range(steps), goal, key=mass), -_SUBPIXEL_BITS)


@where_the_image_lives
def area_ratio(
    image: Array | Image,
    share: float,
    center: Center,
    extent: Sequence[float],
    *,
    subpixel: bool = False,
) -> float:
    """RepLKNet's high-contribution area ratio r(t): area of the `share` square over the extent's.

    The area of `area_square` (of `square_side` with subpixel=True) divided by the product of
    `extent`, the sides per axis of the input (as the paper does, for t = 20, 30, 50, 99%) or of
    the theoretical receptive field. Taken on the image as it is; `area_ratio_log` is the variant
    that the authors' script prints. The square is not cut off at the extent, so the ratio of a
    unit far from the middle may exceed 1.

    Source: Ding et al. 2022, appendix on effective receptive fields.
    """
    image = image_of(image)
    whole = area_of(extent, image.ndim)
    if subpixel:
        return float(square_side(image, share, center) ** image.ndim / whole)
    return math.prod(area_square(image, share, center)) / whole


@where_the_image_lives
def area_ratio_log(
    image: Array | Image, share: float, center: Center, extent: Sequence[float]
) -> float:
    """`area_ratio` of log₁₀(A + 1), as RepLKNet's published script does. NOT invariant to scale.

    The logarithm lifts the tails by an amount that depends on the scale of A, so numbers compare
    only among images made alike. The authors' A is the gradient of the summed ReLU of the central
    output unit with respect to an input of 1024 × 1024 pixels, clipped at zero, summed over the
    input's channels and averaged over 50 images: never normalised before the logarithm, and
    divided by its maximum only after it, which changes no ratio. Give that raw image. One that is
    normalised to sum 1 has A ≪ 1, where log₁₀(A + 1) ≈ A/ln 10 and the result is `area_ratio`'s.

    The script differs in three details: its centre is index shape // 2, its squares start at side
    3, and a square must hold more than the share, not at least the share.

    Source: Ding et al. 2022 and its repository, DingXiaoH/RepLKNet-pytorch, erf/analyze_erf.py.
    """
    image = image_of(image)
    whole = area_of(extent, image.ndim)
    fraction = fraction_of("share", share)
    position = position_of(image, center)
    # The least side of a square that a pixel lies wholly inside, and the scores at each.
    least = [
        np.ceil(2 * abs(np.arange(n) - c)).astype(np.int64) + 1
        for n, c in zip(image.shape, position, strict=True)
    ]
    scores = np.zeros(max(int(side.max()) for side in least) + 1)
    for first, block in image.blocks():
        xp = namespace(block)
        side = xp.zeros((1,) * image.ndim, dtype=np.int64)
        for axis, own in enumerate([least[0][first : first + len(block)], *least[1:]]):
            side = xp.maximum(side, along(xp.asarray(own), axis, image.ndim))
        logs = xp.log1p(xp.asarray(block, dtype=xp.float64))
        scores += on_host(xp.bincount(side.ravel(), logs.ravel(), len(scores)))
    held = np.cumsum(scores)
    side = int(np.searchsorted(held, fraction * (1 - ROUNDING) * held[-1]))
    return math.prod(sides(side, position)) / whole
