"""What the CPU's kernels hold beside their arguments, in bytes.

Where a kernel works in memory of its own, that is a few tiles a thread, which counts beside images
of a few MiB. The sizes are those of the kernels' sources (`kernels.cpu`), and tests hold every
forecast against what is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from fastrf.engine.chains import Layer
from fastrf.engine.threads import TILE_CELLS
from fastrf.maps import AxisMap, Table, Window

VECTOR, ROW = 64, 1024
"""Bytes of a vector and of a row of a tile of `box_run`,"""

ROWS, VOLUME = 1024, 64
"""its rows, and its planes and rows in a volume."""

WIDE, NARROW = 157 * 64, 29 * 64
"""Bytes of a row of a tile of `conv_run`,"""

STRIP, STRIP_3D, PLANES, SWEEP, SWEEP_3D = 64, 16, 32, 64, 8
"""its rows, in planes and volumes, planes of a volume, and pixels that a sweep of it grows by."""

PIECES, LONG = 192, 4
"""Most pieces of a line, and how many times what they reach beyond their ends they are long."""

SUFFIX, PIECE, CHUNK, DIRECT, SHORT = 131072, 1024, 16384, 5, 16
"""Elements, and window lengths, of the kernels for sums of equal taps along an axis."""


def parts(shape: Sequence[int], workers: int) -> int:
    """Threads that share an image."""
    return max(1, min(workers, math.prod(shape) // TILE_CELLS, shape[0]))


def of_sweep(layer: Layer, layers: int, shape: Sequence[int], size: int, workers: int) -> int:
    """Of a run of layers whose result has this shape, of pixels of so many bytes."""
    k = layer.kernel
    taps = [layers * (n - 1) + 1 for n in k]
    if len(shape) == 1:
        return _line(layer, layers, shape[0], size)
    count = parts(shape, workers)
    tile = (-(-shape[0] // count), *shape[1:])
    if layer.taps is None:
        return count * _box_tile(tile, taps, size)
    return count * _conv_tile(tile, k, layers, size, grows=count == 1)


def _line(layer: Layer, layers: int, count: int, size: int) -> int:
    """Of a run along a line, whose pieces are the columns of an image."""
    (k,), lanes = layer.kernel, VECTOR // size
    reach = layers * (k - 1)
    pieces = min(PIECES, max(lanes, count // (LONG * max(1, reach)) // lanes * lanes))
    length = -(-count // pieces)
    if 2 * length < reach or count < lanes:
        tile = (1, count)
        own = _box_tile(tile, (1, reach + 1), size)
        return own if layer.taps is None else _conv_tile(tile, (1, k), layers, size)
    # The pieces, once more as columns, and what comes out, once more in order.
    whole = (pieces * length + reach) + pieces * (length + reach) + pieces * length
    depth = max(1, SWEEP // max(1, k - 1))
    sweeps = -(-layers // depth)
    own_layers = -(-layers // sweeps)
    if layer.taps is None:
        own = _box_tile((length, pieces), (own_layers * (k - 1) + 1, 1), size)
        own += min(sweeps - 1, 2) * size * pieces * length
    else:
        own = _conv_tile((length, pieces), (k, 1), layers, size)
    return size * whole + own


def _box_tile(shape: Sequence[int], taps: Sequence[int], size: int) -> int:
    lanes, width = VECTOR // size, ROW // size
    reads = _rounded(width + taps[-1] - 1, 8)
    lines = 2 * lanes * reads * size
    if len(shape) == 2:
        rows = _rounded(min(ROWS, shape[0]), 8)
        return lines + _rounded(rows + taps[0] - 1, lanes) * ROW
    planes, rows = (_rounded(min(VOLUME, n), 8) for n in shape[:2])
    middle = _rounded(rows + taps[1] - 1, lanes) * ROW
    return lines + middle + (planes + taps[0] - 1) * rows * ROW


def _conv_tile(
    shape: Sequence[int], k: tuple[int, ...], layers: int, size: int, grows: bool = False
) -> int:
    """A tile, and what lies between two sweeps; of an image that `grows`, that is smaller."""
    volume = len(shape) == 3
    depth = max(1, (SWEEP_3D if volume else SWEEP) // max(1, max(k) - 1))
    sweeps = -(-layers // depth)
    own = -(-layers // sweeps)
    lanes = VECTOR // size
    wide = shape[-1] + own * (k[-1] - 1) + 2 * lanes > NARROW // size
    rows = (STRIP_3D if volume else STRIP) + own * (k[-2] - 1)
    row = WIDE if wide else NARROW

    def at_work(last: int) -> int:
        """In one of the last sweeps, which reads what the one before has written."""
        back = [(last + n) * (layers // sweeps) * grows for n in (0, 1)]
        sides = [[n - b * (w - 1) for n, w in zip(shape, k, strict=True)] for b in back]
        planes = min(PLANES, sides[0][0]) + own * (k[0] - 1) if volume else 1
        between = math.prod(sides[1]) + (math.prod(sides[0]) if last else 0)
        return planes * rows * row + size * between * (sweeps > last + 1)

    return max(at_work(0), at_work(1) if sweeps > 2 else 0)


def of_pass(axis: AxisMap, taps: Any, shape: Sequence[int], at: int, size: int) -> int:
    """Of a layer along one axis, whose result has this shape, on one thread."""
    if isinstance(axis, Table):
        columns: int = axis.taps.shape[1]
        return (8 + size) * columns * shape[at]
    if not isinstance(axis, Window) or taps is not None:
        return 0
    width = math.prod(shape[at + 1 :])
    if axis.stride > 1:
        common = math.gcd(axis.stride, axis.dilation)
        count = axis.kernel // (axis.stride // common)
        few = SHORT if axis.dilation // common * width < SHORT else DIRECT
        if -(-axis.kernel * common // axis.stride) <= few or not count:
            return 0
        block = count * (axis.dilation // common)
        chunk = max(1, CHUNK // (block * width)) * block
        some = width * min(chunk, shape[at] // axis.stride + block)
        return size * some + _sums(count, axis.dilation // common * width, some, size)
    lag = axis.dilation * width
    if axis.kernel <= (DIRECT if lag >= SHORT else SHORT):
        return 0
    # A window is no longer than what it is of; then come pixels that hold all of that.
    whole, spread = width * shape[at], axis.kernel * lag
    rows = min(axis.kernel, -(-(whole - spread + lag) // lag))
    return _sums(rows, lag, max(rows * lag, whole - spread), size)


def _sums(count: int, lag: int, length: int, size: int) -> int:
    """Of sums of `count` elements that lie `lag` apart, of which the longest piece has so many."""
    if lag < SHORT:
        reach = (count - 1) * lag
        return 2 * size * (reach + min(length, max(PIECE, 2 * reach)))
    return size * (count + 2) * min(lag, max(SHORT, SUFFIX // count))


def _rounded(count: int, unit: int) -> int:
    return -(-count // unit) * unit
