"""What the measures are given: shares, axes, centres, extents; and what they refuse."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from fastrf.errors import InputError
from fastrf.images import Image

T = TypeVar("T")

Center = Sequence[float] | None
"""A position in the indices of the image array; None is the first maximum in C order."""

# A set holds a share when its mass reaches it up to rounding. The mass of up to 10⁸ pixels, summed
# in blocks, is right to 2·10⁴ roundings of 1.1e-16; without this allowance a box of a uniform
# image whose mass equals the share exactly would be taken or passed over by chance.
ROUNDING = 2.5e-12


def defined(measure: Callable[[], T]) -> T | None:
    """A figure, or None where the image has none: sizes that compare with the centre have none of a
    field with a hole there."""
    try:
        return measure()
    except InputError:
        return None


def core_at(image: Image, center: Center) -> tuple[Image, tuple[float, ...]]:
    """The core of an image, and where `center` lies in it.

    What it leaves out is far below the allowance for rounding (`ROUNDING`).
    """
    position = position_of(image, center)
    core, corner = image.core
    return core, tuple(c - first for c, first in zip(position, corner, strict=True))


def fraction_of(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise InputError(
            f"{name} is {value}: it lies strictly between 0 and 1; give 0.5 for one half"
        )
    return float(value)


def axis_of(image: Image, axis: int) -> int:
    if not isinstance(axis, int | np.integer) or not -image.ndim <= axis < image.ndim:
        raise InputError(
            f"axis is {axis}: the image has {image.ndim} axes; give one of 0 … {image.ndim - 1}"
        )
    return range(image.ndim)[axis]


def per_axis(name: str, values: Sequence[float], ndim: int | None = None) -> tuple[float, ...]:
    if ndim is not None and len(values) != ndim:
        raise InputError(
            f"{name} is {tuple(values)}: it has one value for each of the image's {ndim} axes; "
            f"give {ndim}"
        )
    numbers = tuple(float(v) for v in values)
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{name} is {tuple(values)}: its values are finite; give pixels")
    return numbers


def area_of(extent: Sequence[float], ndim: int) -> float:
    sides = per_axis("extent", extent, ndim)
    if not all(side > 0 for side in sides):
        raise InputError(
            f"extent is {tuple(extent)}: sides are positive; give the input size or field.size"
        )
    return math.prod(sides)


def position_of(image: Image, center: Center) -> tuple[float, ...]:
    if center is None:
        return tuple(map(float, image.peak()))
    return per_axis("center", center, image.ndim)
