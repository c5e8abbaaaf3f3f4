"""Buffers that are used again: which, and how many are kept."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastrf.engine.memory import KEPT, Pool, room_for


def size(array: NDArray[np.float64]) -> int:
    """Of the buffer that an array lies in."""
    assert array.base is not None
    return int(array.base.size)


def test_the_smallest_free_buffer_that_fits_is_used_again() -> None:
    pool = Pool(np.float64)
    taken = [pool.take((n,)) for n in (1000, 10, 100)]
    assert [size(array) for array, _ in taken] == [room_for(n) for n in (1000, 10, 100)]
    taken.clear()
    array, lease = pool.take((3, 20))
    assert (array.shape, array.dtype, size(array)) == ((3, 20), np.float64, room_for(100))
    array[:] = 7
    other, _ = pool.take((60,))  # that one is not free
    assert size(other) == room_for(1000)
    assert not np.shares_memory(array, other)
    del lease
    again, _ = pool.take((room_for(100),))
    assert size(again) == room_for(100)


def test_the_largest_free_buffers_are_kept() -> None:
    pool = Pool(np.float32)
    sizes = [40, 10, 60, 30, 20, 50][: KEPT + 2]
    taken = [pool.take((n,)) for n in sizes]
    taken.clear()
    found = [pool.take((1,)) for _ in range(KEPT)]
    kept = sorted(map(room_for, sizes))[-KEPT:]
    assert [size(array) for array, _ in found] == kept
    fresh, _ = pool.take((1,))
    assert size(fresh) == room_for(1)


def test_nothing_is_free_after_a_clearing() -> None:
    pool = Pool(np.float64)
    pool.take((50,))
    pool.clear()
    array, _ = pool.take((2,))
    assert size(array) == room_for(2)
