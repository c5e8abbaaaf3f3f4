"""Multiply-adds in registers alone: the most that a core can do, which benchmarks measure by."""

from __future__ import annotations

from typing import Any

import numpy as np

from ._compile import emitted, kernel
from ._layout import BLOCK, VECTOR_BYTES, Floats

_in_registers = emitted("in_registers")


@kernel
def _multiply_adds(out, count):  # type: ignore[no-untyped-def]
    _in_registers(out, count)


def vector(dtype: np.dtype[Any]) -> Floats:
    """What `multiply_adds` works on: one vector of factors, which keep sums near 1."""
    return np.full(VECTOR_BYTES // dtype.itemsize, 0.5, dtype)


def multiply_adds(out: Floats, count: int) -> int:
    """Does ``count`` multiply-adds with each number of the sums, and says how many that were."""
    _multiply_adds(out, count)
    return count * 2 * BLOCK * len(out)
