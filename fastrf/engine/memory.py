"""Buffers that are used again, so that a layer does not pay for fresh pages every time."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

KEPT = 4
"""Free buffers kept. A layer has two images at work; merges and shortcuts hold a few more."""


def room_for(count: int) -> int:
    """Pixels of a fresh buffer. Images grow layer by layer: room for a few layers saves most
    allocations."""
    return count + count // 4


class Lease:
    """The right to a buffer; whoever holds an image of it holds its lease.

    The buffer goes back to the pool when the last holder lets go (CPython frees at once).
    """

    __slots__ = ("_pool", "buffer")

    def __init__(self, pool: Pool, buffer: NDArray[Any]) -> None:
        self._pool, self.buffer = pool, buffer

    def __del__(self) -> None:
        self._pool.put_back(self.buffer)


class Pool:
    """Flat buffers of one dtype, in the memory of one array namespace."""

    def __init__(self, dtype: Any, xp: Any = np) -> None:
        self.dtype, self._xp = np.dtype(dtype), xp
        self._free: list[NDArray[Any]] = []

    def take(self, shape: tuple[int, ...]) -> tuple[NDArray[Any], Lease]:
        """An uninitialised C-contiguous array of this shape, and its lease."""
        count = math.prod(shape)
        fitting = [b for b in self._free if b.size >= count]
        if fitting:
            best = min(fitting, key=lambda b: b.size)
            self._free = [b for b in self._free if b is not best]
        else:
            best = self._xp.empty(room_for(count), dtype=self.dtype)
        return best[:count].reshape(shape), Lease(self, best)

    def put_back(self, buffer: NDArray[Any]) -> None:
        self._free.append(buffer)
        if len(self._free) > KEPT:
            self._free = sorted(self._free, key=lambda b: b.size)[-KEPT:]

    def clear(self) -> None:
        """Lets go of all buffers that are free."""
        self._free.clear()
