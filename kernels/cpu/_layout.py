"""Views, strides and argument checks: what stands between a caller's arrays and compiled code.

Compiled code gets every array as one flat contiguous piece of memory and the element strides of its
first two axes. A tile of an image and a whole image then share one compiled specialisation, and
every row is a contiguous slice that LLVM can vectorise over.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]


def has_rows(array: Floats) -> bool:
    """Whether the last axis is contiguous and no axis runs backwards."""
    size = array.itemsize
    return (array.strides[2] == size or array.shape[2] == 1) and all(
        step >= 0 and step % size == 0 for step in array.strides
    )


def has_planes(array: Floats) -> bool:
    """Whether the last two axes together are contiguous, as in a tile of a contiguous array."""
    _, rows, columns = array.shape
    return has_rows(array) and (rows == 1 or array.strides[1] == columns * array.itemsize)


def with_rows(array: Floats) -> Floats:
    """The array itself where its rows are contiguous, otherwise a contiguous copy."""
    return array if has_rows(array) else np.ascontiguousarray(array)


def with_planes(array: Floats) -> Floats:
    """The array itself where its planes are contiguous, otherwise a contiguous copy."""
    return array if has_planes(array) else np.ascontiguousarray(array)


@contextmanager
def target(out: Floats, fits: bool) -> Iterator[Floats]:
    """``out`` itself where its layout fits, otherwise a scratch array that is copied to it."""
    if fits:
        yield out
        return
    scratch = np.empty(out.shape, out.dtype)
    yield scratch
    out[...] = scratch


def memory(array: Floats) -> tuple[Floats, int, int]:
    """The memory of an array with rows: flat, and the element strides of axes 0 and 1."""
    _, rows, columns = array.shape
    if array.flags.c_contiguous:
        return array.reshape(-1), rows * columns, columns
    steps = [step // array.itemsize for step in array.strides[:2]]
    span = sum((n - 1) * step for n, step in zip(array.shape, steps, strict=False)) + columns
    return as_strided(array, (span,), (array.itemsize,)), steps[0], steps[1]


# The smallest normal number, in the dtype itself so that compiled code never widens.
SMALLEST_NORMAL = {
    np.dtype(kind): np.finfo(kind).smallest_normal for kind in (np.float32, np.float64)
}


def per_axis(values: Sequence[int] | NDArray[np.int64]) -> tuple[int, int, int]:
    """Three Python integers, whatever sequence of three integers they came as."""
    first, second, third = values
    return int(first), int(second), int(third)


def check_floats(**arrays: Floats) -> None:
    """Refuse dtypes that compiled code would silently widen."""
    dtypes = {array.dtype for array in arrays.values()}
    if len(dtypes) > 1 or not dtypes <= SMALLEST_NORMAL.keys():
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
