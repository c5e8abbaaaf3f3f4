"""Arrays of NumPy and CuPy alike: whose they are, and sums of which little is lost to rounding."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import numpy as np

Array = Any  # a NumPy or a CuPy array: they share no base class that a type checker knows


def library(array: Array) -> str:
    """The package that an array is of: "numpy" or "cupy"."""
    return type(array).__module__.partition(".")[0]


def namespace(array: Array) -> ModuleType:
    """The functions for an array: those of NumPy, or of CuPy, which is loaded where one of its
    arrays is here."""
    return np if isinstance(array, np.ndarray) else sys.modules[library(array)]


def on_its_device(array: Array) -> AbstractContextManager[Any]:
    """While it is entered, CuPy computes on the device of `array`; for what is not CuPy's it
    does nothing.

    CuPy makes what it computes on the current device, and may refuse arrays of another one.
    """
    device: AbstractContextManager[Any] = nullcontext()
    if library(array) == "cupy":
        device = array.device
    return device


def on_host(array: Array) -> np.ndarray:
    """An array as NumPy's; one on a GPU is waited for and copied."""
    return array if isinstance(array, np.ndarray) else np.asarray(array.get())


def along(vector: Array, axis: int, ndim: int) -> Array:
    """`vector` as an array of `ndim` dimensions that broadcasts along `axis`."""
    return vector.reshape([-1 if a == axis else 1 for a in range(ndim)])


def outer_sum(xp: ModuleType, vectors: Sequence[Array]) -> Array:
    """Σ of one vector an axis at every index."""
    total = xp.zeros((1,) * len(vectors))
    for axis, vector in enumerate(vectors):
        total = total + along(vector, axis, len(vectors))
    return total


def spelled_out(first: np.ndarray, stop: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The ranges first[i] … stop[i]−1 one after the other: i, and the number itself."""
    counts = stop - first
    before = np.cumsum(counts) - counts
    return (
        np.repeat(np.arange(len(counts)), counts),
        np.arange(int(counts.sum())) + np.repeat(first - before, counts),
    )


WIDENED = 8192
"""Numbers that NumPy widens at once; it sums such pieces pairwise, and one after the other."""


def _pairwise_sum(block: Array, axis: int) -> Array:
    """Sum over `axis` in float64 with ⌈log₂ n⌉ roundings, or 19 more than ⌈log₂(n/128)⌉.

    `sum` is pairwise along contiguous axes alone, by blocks of 128 with eight sums of 16 each: down
    the columns it rounds n times.
    """
    xp = namespace(block)
    lines = xp is np and block.strides[axis] == block.itemsize
    if lines and (block.dtype == np.float64 or block.shape[axis] <= WIDENED):
        return block.sum(axis=axis, dtype=np.float64)
    block = xp.moveaxis(block, axis, 0)
    n = block.shape[0]
    if n > 1:
        rest, n = n, (n + 1) // 2
        half = block[:n].astype(xp.float64)
        half[: rest - n] += block[n:]
        block = half
    while n > 1:
        rest, n = n, (n + 1) // 2
        block[: rest - n] += block[n:rest]
    return xp.asarray(block[0], dtype=xp.float64)


def marginal_sum(image: Array, keep: tuple[int, ...]) -> Array:
    """Sum over all axes but `keep` (ascending), in float64."""
    for axis in reversed(range(image.ndim)):
        if axis not in keep:
            image = _pairwise_sum(image, axis)
    return namespace(image).asarray(image, dtype=np.float64)


def sum_of(image: Array) -> float:
    """Sum of all elements."""
    return float(marginal_sum(image, ()))


def running_sums(values: Array) -> Array:
    """Running sums of a vector, in float64, with at most 2√n roundings instead of n.

    Sums run along the rows of a square and then over the rows. A row starts from the very number
    that the one before it ended with, so the result never falls for nonnegative values.
    """
    xp = namespace(values)
    width = math.isqrt(values.size - 1) + 1
    table = xp.zeros((-(-values.size // width), width))
    table.ravel()[: values.size] = values
    table = xp.cumsum(table, axis=1)
    table[1:] += xp.cumsum(table[:-1, -1])[:, None]
    return table.ravel()[: values.size]
