"""Runs of layers of equal taps, a block of layers at a time.

``count`` layers of k equal taps are, along one axis, one sum with the coefficients of
(1 + z + … + z^(k−1))^count for taps. Up to ``_TAPS`` of them, that costs as many operations as the
layers one by one, and no loads and stores in between: a vector is loaded once for eight
results and all taps (``_vectors.sum_rows``), and the image passes through memory once for all
layers of a *sweep*. The coefficients are integers that the dtype holds exactly, so that the error
is no larger than that of the layers one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from ._compile import kernel
from ._layout import (
    SMALLEST_NORMAL,
    Floats,
    check_floats,
    check_positive,
    has_rows,
    memory,
    per_axis,
    target,
    with_rows,
)
from ._runs import BLOCK, VECTOR_BYTES, sum_rows, sum_turned, turn

Integers = Sequence[int] | NDArray[np.int64]

_TAPS = 40
_WIDTH = 64
_ROWS = 512
_PLANES = 64
_VOLUME_ROWS = 64


@kernel
def _place(source, stride, rows, columns, out, to, out_stride):  # type: ignore[no-untyped-def]
    """Copy the part of an incomplete block that belongs to the result."""
    for r in range(rows):
        for c in range(columns):
            out[to + r * out_stride + c] = source[r * stride + c]


@kernel
def _clear(out, to, stride, rows, columns):  # type: ignore[no-untyped-def]
    for r in range(rows):
        out[to + r * stride : to + r * stride + columns] = 0


@kernel
def _copy_rows(y, plane, stride, n_rows, n_columns, row, column, rows, columns, out, to, out_stride):  # type: ignore[no-untyped-def]
    """A window of one plane of y from ``row, column`` on; zero where y has no elements."""
    left = min(max(0, -column), columns)
    right = max(left, min(columns, n_columns - column))
    for r in range(rows):
        at = to + r * out_stride
        if 0 <= row + r < n_rows and left < right:
            begin = plane + (row + r) * stride + column
            out[at : at + left] = 0
            out[at + left : at + right] = y[begin + left : begin + right]
            out[at + right : at + columns] = 0
        else:
            out[at : at + columns] = 0


@kernel
def _sweep(  # type: ignore[no-untyped-def]
    y, y_strides, y_shape, taps0, taps1, taps2, first, out, out_strides, out_shape, tile, work, tiny
):
    k0, k1, k2 = taps0.size, taps1.size, taps2.size
    planes_tile, rows_tile, width = tile
    lanes = VECTOR_BYTES // y.itemsize
    nothing = 0.0
    # The parts of the workspace: see _workspace.
    wide = (width + k2 - 1 + BLOCK - 1) // BLOCK * BLOCK
    padded = work[: lanes * wide]
    turned = work[lanes * wide : 2 * lanes * wide]
    edge = work[2 * lanes * wide : 2 * lanes * wide + BLOCK * lanes]
    rows_held = (rows_tile + BLOCK - 1) // BLOCK * BLOCK
    middle_rows = (rows_held + k1 - 1 + lanes - 1) // lanes * lanes
    middle = work[2 * lanes * wide + BLOCK * lanes :]
    volume = middle[middle_rows * width :]
    plane_step = rows_held * width

    for c0 in range(0, out_shape[2], width):
        columns = min(width, out_shape[2] - c0)
        vectors = (columns + lanes - 1) // lanes
        read = (vectors * lanes + k2 - 1 + BLOCK - 1) // BLOCK * BLOCK
        column = c0 + first[2]
        inside = column >= 0 and column + read <= y_shape[2]
        for b0 in range(0, out_shape[1], rows_tile):
            rows = min(rows_tile, out_shape[1] - b0)
            needed = (rows + BLOCK - 1) // BLOCK * BLOCK + k1 - 1
            for a0 in range(0, out_shape[0], planes_tile):
                planes = min(planes_tile, out_shape[0] - a0)
                for p in range(planes + k0 - 1):
                    plane = a0 + first[0] + p
                    to = (a0 + p) * out_strides[0] + b0 * out_strides[1] + c0
                    if not 0 <= plane < y_shape[0]:
                        if k0 > 1:
                            volume[p * plane_step : (p + 1) * plane_step] = 0
                        else:
                            _clear(out, to, out_strides[1], rows, columns)
                        continue
                    # Sums along the last axis.
                    for r in range(0, needed, lanes):
                        row = b0 + first[1] + r
                        if row + lanes <= 0 or row >= y_shape[1]:
                            middle[r * width : (r + lanes) * width] = 0
                            continue
                        whole = inside and row >= 0 and row + lanes <= y_shape[1]
                        at = plane * y_strides[0] + row * y_strides[1] + column
                        if k2 == 1 or not whole:
                            aim, aim_step = (middle, width) if k2 == 1 else (padded, wide)
                            _copy_rows(
                                y, plane * y_strides[0], y_strides[1], y_shape[1], y_shape[2],
                                row, column, lanes, vectors * lanes if k2 == 1 else read,
                                aim, r * width if k2 == 1 else 0, aim_step,
                            )
                        if k2 == 1:
                            continue
                        for c in range(0, read, BLOCK):
                            if whole:
                                turn(y, at + c, y_strides[1], turned, c * lanes)
                            else:
                                turn(padded, c, wide, turned, c * lanes)
                        for c in range(0, vectors * lanes, BLOCK):
                            sum_turned(
                                turned, c * lanes, taps2, k2, middle, r * width + c, width
                            )
                    # Sums along the middle axis.
                    for r in range(0, rows, BLOCK):
                        for v in range(vectors):
                            c = v * lanes
                            if k0 > 1:
                                sum_rows(
                                    middle, r * width + c, width, taps1, k1,
                                    volume, p * plane_step + r * width + c, width, nothing,
                                )
                            elif r + BLOCK <= rows and c + lanes <= columns:
                                sum_rows(
                                    middle, r * width + c, width, taps1, k1,
                                    out, to + r * out_strides[1] + c, out_strides[1], tiny,
                                )
                            else:
                                sum_rows(
                                    middle, r * width + c, width, taps1, k1, edge, 0, lanes, tiny
                                )
                                _place(
                                    edge, lanes, min(BLOCK, rows - r), min(lanes, columns - c),
                                    out, to + r * out_strides[1] + c, out_strides[1],
                                )
                if k0 == 1:
                    continue
                # Sums along the first axis.
                for r in range(rows):
                    for p in range(0, planes, BLOCK):
                        to = (a0 + p) * out_strides[0] + (b0 + r) * out_strides[1] + c0
                        for v in range(vectors):
                            c = v * lanes
                            at = p * plane_step + r * width + c
                            if p + BLOCK <= planes and c + lanes <= columns:
                                sum_rows(
                                    volume, at, plane_step, taps0, k0,
                                    out, to + c, out_strides[0], tiny,
                                )
                            else:
                                sum_rows(
                                    volume, at, plane_step, taps0, k0, edge, 0, lanes, tiny
                                )
                                _place(
                                    edge, lanes, min(BLOCK, planes - p), min(lanes, columns - c),
                                    out, to + c, out_strides[0],
                                )


def _workspace(dtype, taps, tile):
    lanes = VECTOR_BYTES // dtype.itemsize
    k0, k1, k2 = (t.size for t in taps)
    planes, rows, width = tile
    wide = -(-(width + k2 - 1) // BLOCK) * BLOCK
    held = -(-rows // BLOCK) * BLOCK
    middle = -(-(held + k1 - 1) // lanes) * lanes
    volume = (-(-planes // BLOCK) * BLOCK + k0 - 1) * held * width if k0 > 1 else 0
    size = 2 * lanes * wide + BLOCK * lanes + middle * width + volume
    memory_ = np.empty(size + lanes, dtype)
    return memory_[-memory_.ctypes.data % VECTOR_BYTES // dtype.itemsize :][:size]


@cache
def coefficients(k, layers):
    row = [1]
    for _ in range(layers):
        row = [sum(row[max(0, i - k + 1) : i + 1]) for i in range(len(row) + k - 1)]
    return row


@cache
def floats(k, n, dtype):
    return np.array(coefficients(k, n), dtype)


@cache
def depth(k, dtype, most):
    d = 1
    p = np.finfo(dtype).nmant + 1
    while 2 * d * (max(k) - 1) < most and max(max(coefficients(n, 2 * d)) for n in k) <= 2**p and d < 64:
        d *= 2
    return d


def sweep(y, taps, first, out, tile):
    with target(out, has_rows(out)) as sink:
        flat, *steps = memory(with_rows(y))
        to, *to_steps = memory(sink)
        _sweep(
            flat, tuple(steps), y.shape, *taps, first, to, tuple(to_steps), sink.shape, tile,
            _workspace(out.dtype, taps, tile), SMALLEST_NORMAL[out.dtype],
        )


def box_run(y: Floats, k: Integers, count: int, lo: Integers, out: Floats) -> None:
    """See ``fastrf.kernels.spec.KERNELS["box_run"]``."""
    check_floats(y=y, out=out)
    k, lo = per_axis(k), per_axis(lo)
    check_positive(k=k, count=count)
    if y.size == 0 or out.size == 0:
        out[...] = 0
        return
    most = depth(k, out.dtype, _TAPS)
    sweeps = -(-count // most)
    layers = [count // sweeps + (s < count % sweeps) for s in range(sweeps)]
    rest, begin = count, (0, 0, 0)  # of y on the full grid of what is done so far
    for n in layers:
        rest -= n
        taps = tuple(floats(w, n, out.dtype) for w in k)
        ahead = [rest * (w - 1) for w in k]
        full = [b0 + ny + n * (w - 1) for b0, ny, w in zip(begin, y.shape, k)]
        start = [max(b, l - a) for b, l, a in zip(begin, lo, ahead)]
        stop = [min(f, l + m) for f, l, m in zip(full, lo, out.shape)]
        if rest == 0:
            start, stop = lo, [l + m for l, m in zip(lo, out.shape)]
        shape = [e - s for s, e in zip(start, stop)]
        if min(shape) <= 0:
            out[...] = 0
            return
        to = out if rest == 0 else np.empty(shape, out.dtype)
        first = tuple(s - b - t.size + 1 for s, b, t in zip(start, begin, taps))
        planes, rows = (1 << 30, _ROWS) if k[0] == 1 else (_PLANES, _VOLUME_ROWS)
        tile = (min(planes, -(-to.shape[0])), min(rows, to.shape[1]), _WIDTH * 8 // out.itemsize)
        sweep(y, taps, first, to, tile)
        y, begin = to, tuple(start)
