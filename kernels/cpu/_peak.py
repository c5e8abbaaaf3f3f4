"""Multiply-adds in registers alone: the most that a core can do, which benchmarks measure by.

As many independent sums as hide the latency of a multiply-add, and nothing that has to be loaded.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from ._compile import kernel
from ._layout import Floats
from ._runs import VECTOR_BYTES, _emitted, _Vectors

# Twice what hides the latency (4 cycles) of two multiply-adds a cycle.
_SUMS = 16


@_emitted
def _in_registers(typing, out, count):  # type: ignore[no-untyped-def]
    """``count`` multiply-adds to each of the sums."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        array, repetitions = values
        v = _Vectors(context, builder, signature.args[0].dtype)
        at = v.pointer(signature.args[0], array, ir.Constant(ir.IntType(64), 0))
        factor = v.load(at, v.lanes)
        sums = v.variables([factor] * _SUMS)
        with cgutils.for_range(builder, repetitions):
            v.assign(sums, [v.multiply_add(x, factor, factor) for x in v.values(sums)])
        total = v.zero
        for x in v.values(sums):
            total = v.multiply_add(x, factor, total)
        v.store(total, at)
        return context.get_dummy_value()

    return types.void(out, types.int64), generate


@kernel
def _multiply_adds(out, count):  # type: ignore[no-untyped-def]
    _in_registers(out, count)


def vector(dtype: np.dtype[Any]) -> Floats:
    """What `multiply_adds` works on: one vector of factors, which keep sums near 1."""
    return np.full(VECTOR_BYTES // dtype.itemsize, 0.5, dtype)


def multiply_adds(out: Floats, count: int) -> int:
    """Does ``count`` multiply-adds with each number of the sums, and says how many that were."""
    _multiply_adds(out, count)
    return count * _SUMS * len(out)
