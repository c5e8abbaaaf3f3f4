"""What the host functions share: arguments of launches, and their grids.

Arrays are NumPy's or CuPy's alike: the functions of NumPy that are called on them hand CuPy's on to
CuPy (``__array_function__``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from fastrf.kernels._checks import Floats
from numpy.typing import ArrayLike, DTypeLike, NDArray

THREADS = 256
"""Threads of a block that makes one element a thread."""

_MOST = 65_535  # blocks along y and z


def suffix(dtype: np.dtype[Any]) -> str:
    """How the names of the kernels of a dtype end."""
    return f"f{8 * dtype.itemsize}"


def integers(values: Iterable[int]) -> list[np.int64]:
    """Parameters of the type ``i64``."""
    return [np.int64(value) for value in values]


def _has_steps(array: Floats) -> bool:
    """Whether no axis runs backwards, and neighbours are whole elements apart."""
    return all(step >= 0 and step % array.itemsize == 0 for step in array.strides)


def readable(array: Floats) -> Floats:
    """The array itself where kernels take its layout, otherwise a copy."""
    return array if _has_steps(array) else array.copy(order="C")


@contextmanager
def writable(out: Floats) -> Iterator[Floats]:
    """``out`` itself where kernels take its layout, otherwise a copy that is copied back."""
    if _has_steps(out):
        yield out
        return
    scratch = out.copy(order="C")
    yield scratch
    out[...] = scratch


def steps(array: Floats) -> list[np.int64]:
    """Distances between neighbours along each axis, in elements."""
    return integers(step // array.itemsize for step in array.strides)


def elements(array: Floats) -> list[Any]:
    """An array as most kernels take it: itself, its steps, its shape."""
    return [array, *steps(array), *integers(array.shape)]


def empty(like: Floats, shape: Sequence[int], dtype: DTypeLike | None = None) -> Floats:
    """An array on the same device, and of the same dtype where none is given."""
    return np.empty_like(like, dtype=dtype, shape=tuple(shape), order="C")


def beside(values: ArrayLike, like: Floats, dtype: DTypeLike | None = None) -> Any:
    """``values`` as a contiguous array on the device of another."""
    array = np.asarray(values, dtype=dtype, like=like)
    # Not by np.ascontiguousarray, which does not hand CuPy's arrays on to CuPy.
    return array if array.flags.c_contiguous else array.copy(order="C")


_ALIGNED = 16


def together(arrays: Sequence[NDArray[Any]], like: Floats) -> list[Any]:
    """NumPy's arrays as contiguous ones on the device of another, by a single transfer.

    One without elements has a place nevertheless, so that its pointer points at something.
    """
    places, size = [], 0
    for array in arrays:
        places.append(size)
        size += blocks(max(1, array.nbytes), _ALIGNED) * _ALIGNED
    whole = np.zeros(size, np.uint8)
    for array, place in zip(arrays, places, strict=True):
        content = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        whole[place : place + len(content)] = content
    held = beside(whole, like)
    return [
        held[place : place + max(array.nbytes, array.itemsize)].view(array.dtype)[: array.size]
        for array, place in zip(arrays, places, strict=True)
    ]


def blocks(size: int, each: int) -> int:
    """Of ``each`` elements, as many as ``size`` elements fill."""
    return -(-size // each)


def one_each(shape: Sequence[int]) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Grid and block of a kernel that makes one element of a 3-D array a thread.

    Threads run along the last axis; where that is short, on along the middle one, so that a warp
    still covers neighbouring memory. Kernels loop over rows and planes beyond the grid.
    """
    planes, rows, columns = shape
    wide = min(THREADS, 1 << max(0, columns - 1).bit_length())
    high = THREADS // wide
    grid = (blocks(columns, wide), min(blocks(rows, high), _MOST), min(planes, _MOST))
    return grid, (wide, high, 1)


_ROOM = 32 * 1024


def room_for_taps(taps: Floats) -> int:
    """Bytes of shared memory for all taps; 0 where they are so many that few blocks would fit."""
    return taps.nbytes if taps.nbytes <= _ROOM else 0
