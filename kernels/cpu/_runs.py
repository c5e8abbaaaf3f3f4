"""Runs of layers in few passes through memory: the algorithms of both run kernels.

A *vector* is ``VECTOR_BYTES`` of neighbours, a *block* ``BLOCK`` vectors of results, one above the
other: what stays in registers while taps pass over it (`_vectors`).

Compiled code here reads sources at and after the position of the result,
``out[i] = Σ_{t<k} taps[t]·y[first + i + t]`` on every axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ._compile import emitted, kernel
from ._layout import BLOCK, VECTOR_BYTES, Floats, has_rows, memory, target, with_rows

# Rows of a tile in memory; constants, so that distances between rows are, too (as a variable, the
# distance takes a tenth of conv_run's speed). An odd number of cache lines spreads rows over all
# sets of a cache, where many of them are read at a time; no difference of two rows of a block is
# within three lines of a multiple of 4 KiB, where a load would wait for an earlier row's store.
# Columns that fit go to the narrow rows, which touch fewer pages.
BOX_ROW_BYTES = 1024
CONV_ROW_BYTES = 157 * 64
CONV_NARROW_ROW_BYTES = 29 * 64

_elements = emitted("elements")
_sum_blocks = emitted("sum_blocks")
_sum_turned = emitted("sum_turned")
_turn = emitted("turn")
_copy = emitted("copy")
_lowest = emitted("lowest")


@kernel
def _rounded(count, unit):  # type: ignore[no-untyped-def]
    return (count + unit - 1) // unit * unit


@kernel
def _scratch(count, like):  # type: ignore[no-untyped-def]
    """Memory that begins with a cache line, so that no vector of a row straddles two."""
    spare = _elements(like, VECTOR_BYTES)
    array = np.empty(count + spare, like.dtype)
    first = -array.ctypes.data % VECTOR_BYTES // like.itemsize
    return array[first : first + count]


@kernel
def _window(y, at, stride, shape, first, rows, columns, out, to, out_stride):  # type: ignore[no-untyped-def]
    """Copy a window of one plane of y, of ``shape``, from ``first`` on; zero beyond the plane."""
    left = min(max(0, -first[1]), columns)
    right = max(left, min(columns, shape[1] - first[1]))
    for r in range(rows):
        row = out[to + r * out_stride : to + r * out_stride + columns]
        if 0 <= first[0] + r < shape[0]:
            begin = at + (first[0] + r) * stride + first[1]
            row[:left] = 0
            _copy(y, begin + left, out, to + r * out_stride + left, right - left)
            row[right:] = 0
        else:
            row[:] = 0


@kernel
def _sum_tile(  # type: ignore[no-untyped-def]
    f, at, stride, lines, taps, count, out, to, out_stride, begin, end, columns, edge, tiny
):
    """``_sum_block`` over rows ``begin`` to ``end`` and ``columns`` columns, counted from ``at``.

    A block that reaches beyond them goes to ``edge``, and from there its part in them to ``out``.
    """
    lanes = _elements(f, VECTOR_BYTES)
    for r in range(begin // BLOCK * BLOCK, end, BLOCK):
        row, out_row = at + r * stride, to + r * out_stride
        whole = columns // lanes * lanes if r >= begin and r + BLOCK <= end else 0
        _sum_blocks(
            f, row, stride, lines, taps, count, out, out_row, out_stride, whole // lanes, tiny
        )
        for c in range(whole, columns, lanes):
            _sum_blocks(f, row + c, stride, lines, taps, count, edge, 0, lanes, 1, tiny)
            for i in range(max(0, begin - r), min(BLOCK, end - r)):
                for j in range(c, min(c + lanes, columns)):
                    out[out_row + i * out_stride + j] = edge[i * lanes + j - c]


@kernel
def _sum_columns(  # type: ignore[no-untyped-def]
    y, at, stride, shape, first, rows, columns, taps, out, width, padded, vectors
):
    """Sums along the last axis: ``rows`` rows of ``columns`` columns of one plane, whole blocks.

    Neighbours share a vector, and shifted vectors, which straddle two cache lines, are slow to
    load. So ``lanes`` rows at a time are transposed into columns of vectors, summed as columns, and
    transposed back.
    """
    lanes = _elements(y, VECTOR_BYTES)
    reads = _rounded(columns + taps.size - 1, BLOCK)
    column = first[1]
    for r in range(0, rows, lanes):
        row, to = first[0] + r, r * width
        if row + lanes <= 0 or row >= shape[0]:
            out[to : to + lanes * width] = 0
            continue
        if taps.size == 1:
            _window(y, at, stride, shape, (row, column), lanes, columns, out, to, width)
            continue
        if row >= 0 and row + lanes <= shape[0] and column >= 0 and column + reads <= shape[1]:
            for c in range(0, reads, BLOCK):
                _turn(y, at + row * stride + column + c, stride, vectors, c * lanes)
        else:
            _window(y, at, stride, shape, (row, column), lanes, reads, padded, 0, reads)
            for c in range(0, reads, BLOCK):
                _turn(padded, c, reads, vectors, c * lanes)
        for c in range(0, columns, BLOCK):
            _sum_turned(vectors, c * lanes, taps, taps.size, out, to + c, width)


@kernel
def box_sweep(  # type: ignore[no-untyped-def]
    y, y_strides, y_shape, taps0, taps1, taps2, first, out, out_strides, out_shape, tile, tiny
):
    """One sum along every axis, the last first, tile by tile.

    A tile is ``tile[0]`` planes of ``tile[1]`` rows. The sums along the last axis lie in
    ``middle``, those along the last two, where there is a third, in ``volume``.
    """
    k0, k1, k2 = taps0.size, taps1.size, taps2.size
    lanes, width = _elements(y, VECTOR_BYTES), _elements(y, BOX_ROW_BYTES)
    rows_held = _rounded(tile[1], BLOCK)
    plane_step = rows_held * width
    reads = _rounded(width + k2 - 1, BLOCK)
    padded, vectors = _scratch(lanes * reads, y), _scratch(lanes * reads, y)
    edge = _scratch(BLOCK * lanes, y)
    middle = _scratch(_rounded(rows_held + k1 - 1, lanes) * width, y)
    volume = _scratch((_rounded(tile[0], BLOCK) + k0 - 1) * plane_step if k0 > 1 else 0, y)
    line = np.zeros(1, np.int64)

    for c0 in range(0, out_shape[2], width):
        columns = min(width, out_shape[2] - c0)
        full = _rounded(columns, lanes)
        for b0 in range(0, out_shape[1], tile[1]):
            rows = min(tile[1], out_shape[1] - b0)
            corner = (b0 + first[1], c0 + first[2])
            for a0 in range(0, out_shape[0], tile[0]):
                planes = min(tile[0], out_shape[0] - a0)
                to = a0 * out_strides[0] + b0 * out_strides[1] + c0
                for p in range(planes + k0 - 1):
                    plane = a0 + first[0] + p
                    if 0 <= plane < y_shape[0]:
                        _sum_columns(
                            y,
                            plane * y_strides[0],
                            y_strides[1],
                            y_shape[1:],
                            corner,
                            _rounded(rows, BLOCK) + k1 - 1,
                            full,
                            taps2,
                            middle,
                            width,
                            padded,
                            vectors,
                        )
                    else:
                        middle[:] = 0
                    if k0 > 1:
                        _sum_tile(
                            middle,
                            0,
                            width,
                            line,
                            taps1,
                            k1,
                            volume,
                            p * plane_step,
                            width,
                            0,
                            _rounded(rows, BLOCK),
                            full,
                            edge,
                            0,
                        )
                    else:
                        _sum_tile(
                            middle,
                            0,
                            width,
                            line,
                            taps1,
                            k1,
                            out,
                            to + p * out_strides[0],
                            out_strides[1],
                            0,
                            rows,
                            columns,
                            edge,
                            tiny,
                        )
                for r in range(rows if k0 > 1 else 0):
                    _sum_tile(
                        volume,
                        r * width,
                        plane_step,
                        line,
                        taps0,
                        k0,
                        out,
                        to + r * out_strides[1],
                        out_strides[0],
                        0,
                        planes,
                        columns,
                        edge,
                        tiny,
                    )


@kernel
def _fresh_rows(y, y_strides, y_shape, first, planes, columns, out, to, plane_step, row_step):  # type: ignore[no-untyped-def]
    """Copy BLOCK rows of whole vectors of some planes of y, from ``first`` on; zero beyond y.

    Returns the least positive number in them; infinity where there is none.
    """
    vectors = columns // _elements(y, VECTOR_BYTES)
    least = y.dtype.type(np.inf)
    for p in range(planes):
        plane, at = first[0] + p, to + p * plane_step
        shape = (y_shape[1] if 0 <= plane < y_shape[0] else 0, y_shape[2])
        _window(
            y,
            plane * y_strides[0],
            y_strides[1],
            shape,
            first[1:],
            BLOCK,
            columns,
            out,
            at,
            row_step,
        )
        for r in range(BLOCK):
            least = min(least, _lowest(out, at + r * row_step, vectors))
    return least


@kernel
def conv_sweep(  # type: ignore[no-untyped-def]
    y, y_strides, y_shape, taps, k, layers, first, out, out_strides, out_shape, tile, tiny, safe
):
    """``layers`` equal layers, one after the other in place; ``taps`` has the middle axis last.

    A tile is ``tile[0]`` planes of a strip of columns, which passes through a window of rows. BLOCK
    rows at a time go through all layers, each k − 1 rows behind the layer before, so that a layer
    reads what the one before has just left in the cache; after ``tile[1]`` rows, a multiple of
    BLOCK, the window moves. In place, because a result depends on nothing before its own position.

    Results below ``tiny`` are 0. Where all that a block of rows depends on is ``safe`` or more, or
    0, no layer's result can be, and none is compared.
    """
    lanes = _elements(y, VECTOR_BYTES)
    wide, narrow = _elements(y, CONV_ROW_BYTES), _elements(y, CONV_NARROW_ROW_BYTES)
    width = wide if out_shape[2] + layers * (k[2] - 1) + 2 * lanes > narrow else narrow
    behind = k[1] - 1
    lag = layers * behind
    plane_step = (tile[1] + lag) * width
    # Whole vectors are read at and after a result's position.
    most = (width - layers * (k[2] - 1)) // lanes * lanes - lanes
    strips = (out_shape[2] + most - 1) // most
    strip = _rounded((out_shape[2] + strips - 1) // strips, lanes)
    reach = _rounded(_rounded(strip + (layers - 1) * (k[2] - 1), lanes) + k[2] - 1, lanes)
    planes_held = tile[0] + layers * (k[0] - 1)
    held = _scratch(planes_held * plane_step, y)
    # Sums of what precedes the first row are discarded, but subnormal ones are slow.
    for p in range(planes_held):
        for r in range(lag):
            held[p * plane_step + r * width : p * plane_step + r * width + reach] = 0
    least = np.empty(_rounded(out_shape[1] + lag, BLOCK) // BLOCK, y.dtype)
    lines = np.empty(k[0] * k[2], np.int64)
    for m0 in range(k[0]):
        for m2 in range(k[2]):
            lines[m0 * k[2] + m2] = m0 * plane_step + m2

    for a0 in range(0, out_shape[0], tile[0]):
        planes = min(tile[0], out_shape[0] - a0)
        for c0 in range(0, out_shape[2], strip):
            columns = min(strip, out_shape[2] - c0)
            for begin in range(0, out_shape[1] + lag, tile[1]):
                # Row 0 of the window is row begin − lag of this tile, in all layers.
                for p in range(planes_held):
                    to = p * plane_step
                    _copy(held, to + tile[1] * width, held, to, lag * width)
                for b in range(0, min(tile[1], out_shape[1] + lag - begin), BLOCK):
                    corner = (a0 + first[0], begin + b + first[1], c0 + first[2])
                    last = (begin + b) // BLOCK
                    least[last] = _fresh_rows(
                        y,
                        y_strides,
                        y_shape,
                        corner,
                        planes + layers * (k[0] - 1),
                        reach,
                        held,
                        (lag + b) * width,
                        plane_step,
                        width,
                    )
                    limit = tiny
                    if least[max(0, last - _rounded(lag, BLOCK) // BLOCK) : last + 1].min() >= safe:
                        limit = y.dtype.type(0)
                    for layer in range(1, layers + 1):
                        left = layers - layer
                        row = begin + b - layer * behind
                        # Nothing but the part of the result that is needed and not zero.
                        if row <= -BLOCK or row >= out_shape[1] + left * behind:
                            continue
                        if corner[1] <= -BLOCK or corner[1] - layer * behind >= y_shape[1]:
                            continue
                        c = max(0, -corner[2] - layer * (k[2] - 1)) // lanes * lanes
                        end = min(columns + left * (k[2] - 1), y_shape[2] - corner[2])
                        blocks = _rounded(max(0, end - c), lanes) // lanes
                        p0 = max(0, -corner[0] - layer * (k[0] - 1))
                        p1 = min(planes + left * (k[0] - 1), y_shape[0] - corner[0])
                        for p in range(p0, p1):
                            at = p * plane_step + (b + left * behind) * width + c
                            if width == wide:
                                _sum_blocks(
                                    held, at, wide, lines, taps, k[1], held, at, wide, blocks, limit
                                )
                            else:
                                _sum_blocks(
                                    held,
                                    at,
                                    narrow,
                                    lines,
                                    taps,
                                    k[1],
                                    held,
                                    at,
                                    narrow,
                                    blocks,
                                    limit,
                                )
                    row = begin + b - lag
                    for p in range(planes):
                        for r in range(max(0, -row), min(BLOCK, out_shape[1] - row)):
                            at = p * plane_step + (b + r) * width
                            to = (a0 + p) * out_strides[0] + (row + r) * out_strides[1] + c0
                            _copy(held, at, out, to, columns)


Sweep = Callable[..., None]
Axes = tuple[int, int, int]

# A row of a tile holds the columns that this many taps reach, in either dtype.
_WIDEST = 257


def check_narrow(name: str, k: Axes, instead: str) -> None:
    """Refuse kernels that leave no room for results in a tile."""
    if max(k) > _WIDEST:
        raise ValueError(
            f"{name} is {k}; runs take at most {_WIDEST} taps along an axis: use {instead}"
        )


# A line is cut into at most so many pieces, which narrow rows hold, and into fewer where pieces
# would be less than _LONG times what they reach beyond their ends; not at all where they would be
# less than half of that reach. Measured with bench/bench_runs.py (test_line) on one core of a
# Sapphire Rapids Xeon: lines of 10,000 pixels and more take a third of the time or less; copies to
# and from the pieces are most of what is left where a call has few layers.
_PIECES = 192
_LONG = 4


@contextmanager
def side_by_side(
    y: Floats, k: Axes, count: int, lo: Axes, out: Floats
) -> Iterator[tuple[Floats, Axes, Axes, Floats]]:
    """Another run with the same sums, whose result becomes ``out``, where y is a single line.

    A line alone would leave all but one of the rows of a block empty. Its pieces, each with what it
    reads beyond its ends, are the columns of an image. Anything else is left as it is.
    """
    (_, _, size), reach = out.shape, count * (k[2] - 1)
    lanes = VECTOR_BYTES // out.itemsize
    pieces = min(_PIECES, max(lanes, size // (_LONG * max(1, reach)) // lanes * lanes))
    length = -(-size // pieces)
    line = y.shape[:2] == out.shape[:2] == k[:2] == (1, 1) and lo[:2] == (0, 0)
    if not line or 2 * length < reach or size < lanes:
        yield y, k, lo, out
        return
    begin, held = lo[2] - reach, np.zeros(pieces * length + reach, out.dtype)
    a, b = max(0, begin), min(y.size, begin + held.size)
    held[max(0, a - begin) : max(0, b - begin)] = y[0, 0, a : max(a, b)]
    step = held.itemsize
    columns = as_strided(held, (1, length + reach, pieces), (0, step, length * step))
    result = np.empty((1, length, pieces), out.dtype)
    yield np.ascontiguousarray(columns), (1, k[2], 1), (0, reach, 0), result
    out[0, 0] = result[0].T.reshape(-1)[:size]


def run(y: Floats, k: Axes, count: int, depth: int, lo: Axes, out: Floats, sweep: Sweep) -> None:
    """``count`` layers in sweeps of at most ``depth``, each over the window that the rest needs.

    ``sweep(source, strides, shape, layers, first, out, strides, shape)`` applies some layers to
    flat memory. How many each sweep takes depends on ``count`` and ``depth`` alone, so that a tile
    has the bits of the whole.
    """
    if y.size == 0 or out.size == 0:
        out[...] = 0
        return
    sweeps = -(-count // depth)
    begin, rest = (0, 0, 0), count  # the index of y's first element on the full result so far
    with target(out, has_rows(out)) as result:
        y = with_rows(y)
        for s in range(sweeps):
            layers = count // sweeps + (s < count % sweeps)
            rest -= layers
            if rest:
                start, shape = _window_of(y.shape, begin, k, layers, rest, lo, out.shape)
                if min(shape) <= 0:
                    out[...] = 0
                    return
                to = np.empty(shape, out.dtype)
            else:
                start, to = lo, result
            first = tuple(a - b - layers * (w - 1) for a, b, w in zip(start, begin, k, strict=True))
            source, *steps = memory(y)
            sink, *to_steps = memory(to)
            sweep(source, tuple(steps), y.shape, layers, first, sink, tuple(to_steps), to.shape)
            y, begin = to, start


def _window_of(
    size: Axes, begin: Axes, k: Axes, layers: int, rest: int, lo: Axes, shape: Axes
) -> tuple[Axes, Axes]:
    """Start and shape of the part of an intermediate result that is needed and not zero."""
    ends = [
        (max(b, o - rest * (w - 1)), min(b + n + layers * (w - 1), o + m))
        for b, n, w, o, m in zip(begin, size, k, lo, shape, strict=True)
    ]
    starts, shapes = zip(*((a, b - a) for a, b in ends), strict=True)
    return starts, shapes
