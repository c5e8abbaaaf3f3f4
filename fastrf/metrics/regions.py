"""Lines and squares around a centre, as the pixels that they hold along one axis."""

from __future__ import annotations

import math

import numpy as np

from fastrf.images import Image, Stretch


def interpolation(n: int, c: float) -> Stretch:
    """Linear interpolation at `c` between n pixels, zero beyond them."""
    first = math.floor(c)
    weights = {i: 1 - abs(i - c) for i in (first, first + 1) if 0 <= i < n and abs(i - c) < 1}
    return min(weights, default=0), np.array(list(weights.values()))


def inside(n: int, c: float, half: float) -> tuple[int, int]:
    """The pixels that lie wholly within `half` of `c`: first and last + 1."""
    first, stop = math.ceil(c - half + 0.5), math.floor(c + half - 0.5) + 1
    first = min(max(first, 0), n)
    return first, min(max(stop, first), n)


def overlap(n: int, c: float, half: float) -> Stretch:
    """The part of each unit pixel that lies within `half` of `c`."""
    first, stop = max(math.floor(c - half + 0.5), 0), min(math.ceil(c + half + 0.5), n)
    i = np.arange(first, max(stop, first))
    length = np.minimum(i + 0.5, c + half) - np.maximum(i - 0.5, c - half)
    return first, np.clip(length, 0, 1)


def covering_side(image: Image, position: tuple[float, ...]) -> int:
    """A whole side whose centred square covers the image, with room to spare."""
    reach = max(max(c + 1, n - c) for c, n in zip(position, image.shape, strict=True))
    return 2 * math.ceil(reach) + 1


def sides(side: int, position: tuple[float, ...]) -> tuple[int, ...]:
    """How many pixels a centred square of whole side holds along each axis."""
    half = (side - 1) / 2
    return tuple(math.floor(c + half) - math.ceil(c - half) + 1 for c in position)
