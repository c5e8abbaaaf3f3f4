"""Sums over windows at a cost that does not depend on the window; windows.cu has the algorithm."""

from __future__ import annotations

from math import gcd

import numpy as np
from fastrf.kernels._checks import Floats

from ._geometry import (
    THREADS,
    blocks,
    elements,
    empty,
    integers,
    one_each,
    readable,
    steps,
    suffix,
    writable,
)
from ._module import launch

_SOURCE = "windows.cu"

# Windows of up to so many elements are summed one by one: a load from the first-level cache for
# each, against seven accesses of memory for the two blocks. By count, not by measurement.
_DIRECT_COUNT = 16
# Elements of a block's rows that a warp reads in whole cache lines.
_WIDE = 32
# Bytes of a piece in shared memory, twice: some blocks a processor still run at a time.
_PIECE_BYTES = 16 * 1024
_MOST = 65_535


def windows(y: Floats, k: int, up: int, down: int, dilation: int, lo: int, out: Floats) -> None:
    """Fill ``out[p, i, q] = Σ y[p, o, q]`` over o, m < k with ``up·o + m·dilation = down·i + lo``.

    ``up`` or ``down`` is 1. ``y`` and ``out`` are (P, n, Q), of one float dtype and any layout;
    ``out`` does not overlap ``y``.
    """
    if y.size == 0 or out.size == 0:
        out[...] = 0
        return
    common = gcd(up, dilation)
    apart, lag = up // common, dilation // common
    count, extra = divmod(k, apart)
    inverse = pow(lag, -1, apart)
    relation = integers((up, down, dilation, lo, common, inverse, apart, lag, count, extra))
    kind, n = suffix(y.dtype), np.int64(y.shape[1])
    y = readable(y)
    name, sums = "window_direct", []
    # All windows are made by blocks, of which a strided gather takes one in `down`.
    if count > _DIRECT_COUNT * down:
        name, sums = "window_join", _sums(y, lag, count)
    with writable(out) as to:
        arguments = [y, *steps(y), *sums, n, *relation, *elements(to)]
        launch(_SOURCE, f"{name}_{kind}", *one_each(out.shape), arguments)


def _sums(y: Floats, lag: int, count: int) -> list[Floats]:
    """Sums of y from the beginning and from the end of blocks of count rows, lag apart."""
    planes, rows, columns = y.shape
    lag = min(lag, rows)
    count = min(count, blocks(rows, lag))  # a longer block than a line is the whole line
    prefix, suffix_sums = empty(y, y.shape), empty(y, y.shape)
    arguments = [y, *steps(y), prefix, suffix_sums, *integers((*y.shape, lag, count))]
    width = lag * columns
    pieces = _PIECE_BYTES // (2 * (count * width | 1) * y.itemsize)
    if width < _WIDE and pieces:
        pieces = min(pieces, blocks(rows * columns, count * width))
        threads = min(THREADS, blocks(2 * pieces * width, 32) * 32)
        launch(
            _SOURCE,
            f"window_sums_narrow_{suffix(y.dtype)}",
            (blocks(rows * columns, pieces * count * width), min(planes, _MOST), 1),
            (threads, 1, 1),
            [*arguments, np.int32(pieces)],
            2 * pieces * (count * width | 1) * y.itemsize,
        )
        return [prefix, suffix_sums]
    number = blocks(rows, lag * count)
    launch(
        _SOURCE,
        f"window_sums_wide_{suffix(y.dtype)}",
        (blocks(number * width, THREADS), min(planes, _MOST), 1),
        (THREADS, 1, 1),
        [*arguments, np.int64(number)],
    )
    return [prefix, suffix_sums]
