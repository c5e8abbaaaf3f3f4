"""Checks of a kernel's arguments, the same on every device.

They read shapes and dtypes alone, so that NumPy's and CuPy's arrays pass alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .spec import DTYPES

Floats = NDArray[np.floating[Any]]


def per_axis(values: Sequence[int] | NDArray[np.int64]) -> tuple[int, int, int]:
    """Three Python integers, whatever sequence of three integers they came as."""
    first, second, third = values
    return int(first), int(second), int(third)


def check_floats(**arrays: Floats) -> None:
    """Refuse dtypes that compiled code would silently widen."""
    dtypes = {array.dtype for array in arrays.values()}
    if len(dtypes) > 1 or not dtypes <= {*DTYPES}:
        found = {name: array.dtype.name for name, array in arrays.items()}
        raise TypeError(
            f"got dtypes {found}; all arrays of a kernel call are float32, or all are float64: "
            "convert them with astype"
        )


def check_same(what: str, first: object, second: object) -> None:
    """Refuse two shapes, or parts of shapes, that a kernel needs to be equal."""
    if first != second:
        raise ValueError(
            f"{what} are {first} and {second}; a kernel needs them equal: allocate out to match"
        )


def check_positive(**values: int | tuple[int, ...]) -> None:
    """Refuse a stride, dilation or number of taps below 1."""
    for name, value in values.items():
        if min(value if isinstance(value, tuple) else (value,)) < 1:
            raise ValueError(f"{name} is {value}; it has to be at least 1: check the layer")
