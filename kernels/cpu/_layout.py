"""Views and strides: what stands, with the checks, between a caller's arrays and compiled code.

Compiled code gets every array as one flat contiguous piece of memory and the element strides of its
first two axes. A tile of an image and a whole image then share one compiled specialisation, and
every row is a contiguous slice that LLVM can vectorise over.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from fastrf.kernels._checks import Floats, check_floats, check_positive, check_same, per_axis
from numpy.lib.stride_tricks import as_strided

__all__ = [
    "BLOCK",
    "SMALLEST_NORMAL",
    "VECTOR_BYTES",
    "Floats",
    "check_floats",
    "check_positive",
    "check_same",
    "has_planes",
    "has_rows",
    "memory",
    "per_axis",
    "target",
    "with_planes",
    "with_rows",
]


# Eight independent sums hide the latency (4 cycles) of two multiply-adds a cycle.
BLOCK = 8
VECTOR_BYTES = 64


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
