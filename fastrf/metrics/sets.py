"""The smallest sets of pixels that hold a share of the mass."""

from __future__ import annotations

from fastrf.arrays import Array
from fastrf.images import Image, image_of, where_the_image_lives
from fastrf.metrics.given import ROUNDING, fraction_of


@where_the_image_lives
def smallest_set(image: Array | Image, share: float) -> int:
    """Number of pixels in the smallest set that holds `share` of the mass.

    The brightest pixels, as many as it takes (the highest-density region). It needs no centre and
    follows any shape, holes and several lobes included: count^(1/ndim) is a side that compares
    with `luo_size`, and no square or disc that holds the share has fewer pixels.
    """
    image, _ = image_of(image).core
    whole, _, _ = image.brightest(fraction_of("share", share) * (1 - ROUNDING) * image.total)
    return whole + 1


@where_the_image_lives
def smallest_set_area(image: Array | Image, share: float) -> float:
    """Area of the smallest set that holds exactly `share`: `smallest_set`, continuous.

    The last pixel counts by the part of its mass that is needed to reach the share.
    """
    image, _ = image_of(image).core
    goal = fraction_of("share", share) * image.total
    whole, held, value = image.brightest(goal)
    return whole + (goal - held) / value
