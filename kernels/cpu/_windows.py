"""Sums over windows at a cost that hardly depends on the window: the algorithm of both boxes.

Van Herk (1992) and Gil and Werman (1993), with sums in place of maxima: cut the axis into blocks as
long as the window. A window then meets at most two blocks, and its sum is a suffix sum of the first
plus a prefix sum of the second. Only sums of nonnegative numbers occur; a running difference would
cost fewer operations and all relative accuracy in the tails.

Where the elements of a window are too close together for that to vectorise, windows are doubled
instead, which costs the logarithm of the window.

Blocks are counted from the first element of y, whatever part of the result is asked for, and
doubling adds in an order of its own, so a tile has the same bits as the same part of a whole.
"""

from __future__ import annotations

from math import gcd

import numpy as np

from ._compile import kernel
from ._correlate import correlate
from ._layout import SMALLEST_NORMAL, Floats, has_planes, memory, target, with_planes

# Windows of up to so many elements are cheaper to sum one by one than by blocks, and, for short
# lags, than by doubling. Measured as the crossover in bench/bench_kernels.py
# (test_box_crossover) on one core of an Intel Xeon (Sapphire Rapids, 2.6 GHz).
DIRECT_COUNT = 5
DIRECT_COUNT_SHORT_LAG = 16

# Elements of the suffix sums held at a time: 1 MiB of float64, within the second-level cache. Wide
# pieces keep the cost of a long window at that of a short one.
_SUFFIX_ELEMENTS = 131072
# Shorter lags leave no row to vectorise over; doubling vectorises whatever the lag.
_SHORT_LAG = 16
# Elements that doubling takes at a time: its buffers stay in the first-level cache.
_PIECE = 1024
# Elements of window sums made before they are handed out to a strided result.
_CHUNK = 16384


@kernel
def _doubled(f, lag, count, start, out, tiny):  # type: ignore[no-untyped-def]
    """``out[j] = Σ_{t<count} f[start + j − t·lag]`` by doubling, for lags of a few elements.

    Windows of 1, 2, 4, … elements, each the sum of two of the ones before, and the result joined
    from those in the binary expansion of ``count``.
    """
    reach = (count - 1) * lag
    piece = min(out.size, max(_PIECE, 2 * reach))
    windows = np.empty(reach + piece, f.dtype)
    doubles = np.empty(reach + piece, f.dtype)
    for j in range(0, out.size, piece):
        total = out[j : min(j + piece, out.size)]
        base = start + j - reach
        size = reach + total.size
        a = min(max(0, -base), size)
        b = max(a, min(size, f.size - base))
        windows[:a] = 0
        windows[a:b] = f[base + a : base + b]
        windows[b:size] = 0
        total[:] = 0
        length, joined = 1, 0
        while True:
            if count & length:
                back = reach - joined * lag
                source = windows[back : back + total.size]
                for i in range(total.size):
                    total[i] += source[i]
                joined += length
            if joined == count:
                break
            shift = length * lag
            head = windows[shift:size]
            tail = windows[: size - shift]
            target = doubles[shift:size]
            for i in range(target.size):
                target[i] = head[i] + tail[i]
            # Positions that reach back beyond the buffer: no window of the result reads them.
            doubles[:shift] = 0
            windows, doubles = doubles, windows
            length *= 2
        for i in range(total.size):
            v = total[i]
            total[i] = 0 if v < tiny else v


@kernel
def _add_row(total, total_at, above, above_at, f, at, n, w):  # type: ignore[no-untyped-def]
    """One row of sums from the row above it and n elements of f; the rest of f is zero there."""
    for i in range(n):
        total[total_at + i] = above[above_at + i] + f[at + i]
    for i in range(n, w):
        total[total_at + i] = above[above_at + i]


@kernel
def _join(prefix, suffix, suffix_at, begin, n, out, at, tiny):  # type: ignore[no-untyped-def]
    for i in range(n):
        v = prefix[begin + i] + suffix[suffix_at + i]
        out[at + i] = 0 if v < tiny else v


@kernel
def _blocks_rows(f, lag, count, start, out, tiny):  # type: ignore[no-untyped-def]
    """The same by blocks, for long lags: every step adds rows of up to ``lag`` elements."""
    width = min(lag, max(_SHORT_LAG, _SUFFIX_ELEMENTS // count))
    zero = np.uint64(0)
    prefix = np.empty(width, f.dtype)
    # Row r is the sum of rows r and up of the block before; the row after the last stays zero.
    suffix = np.zeros((count + 1) * width, f.dtype)
    row0 = start // lag
    row1 = (start + out.size - 1) // lag
    for column in range(0, lag, width):
        w = min(width, lag - column)
        for b in range(row0 // count, row1 // count + 1):
            r0 = max(0, row0 - b * count)
            r1 = min(count - 1, row1 - b * count)
            for r in range(count - 1, r0, -1):
                at = ((b - 1) * count + r) * lag + column
                n = min(w, max(0, f.size - at)) if at >= 0 else 0
                _add_row(
                    suffix,
                    np.uint64(r * width),
                    suffix,
                    np.uint64((r + 1) * width),
                    f,
                    np.uint64(max(at, 0)),
                    np.uint64(n),
                    np.uint64(w),
                )
            prefix[:] = 0
            for r in range(r1 + 1):
                at = (b * count + r) * lag + column
                n = min(w, max(0, f.size - at))
                _add_row(prefix, zero, prefix, zero, f, np.uint64(at), np.uint64(n), np.uint64(w))
                if r >= r0:
                    z0 = max(0, start - at)
                    z1 = min(w, start + out.size - at)
                    if z0 < z1:
                        _join(
                            prefix,
                            suffix,
                            np.uint64((r + 1) * width + z0),
                            np.uint64(z0),
                            np.uint64(z1 - z0),
                            out,
                            np.uint64(at + z0 - start),
                            tiny,
                        )


@kernel
def _blocks(f, lag, count, start, out, tiny):  # type: ignore[no-untyped-def]
    """Either of the two, on the part of ``out`` that any window of f reaches; zero elsewhere."""
    lead = min(max(0, -start), out.size)
    stop = max(lead, min(out.size, f.size + (count - 1) * lag - start))
    out[:lead] = 0
    out[stop:] = 0
    if lead < stop:
        if lag < _SHORT_LAG:
            _doubled(f, lag, count, start + lead, out[lead:stop], tiny)
        else:
            _blocks_rows(f, lag, count, start + lead, out[lead:stop], tiny)


@kernel
def _window_sums(f, lag, count, start, out, tiny):  # type: ignore[no-untyped-def]
    """``out[j] = Σ_{t<count} f[start + j − t·lag]``; f is zero outside its ends."""
    # A window longer than f: while it grows into f it is one of `rows` elements, then it holds all
    # of f, then it is one of `rows` elements again, further back. No block is longer than f.
    rows = min(count, (f.size + lag - 1) // lag)
    grown = rows * lag
    full = count * lag
    a = min(max(0, grown - start), out.size)
    b = min(max(a, full - start), out.size)
    everything = np.empty(lag if a < b else 0, f.dtype)
    # One call in a loop, because LLVM inlines it, and compiles it as often as it is written.
    for to, first in (
        (out[:a], start),
        (everything, grown - lag),
        (out[b:], start + b - (full - grown)),
    ):
        _blocks(f, lag, rows, first, to, tiny)
    for j in range(a, b):
        out[j] = everything[(start + j) % lag]


@kernel
def _place(sums, sums_at, sums_step, out, out_at, out_step, rows, width, tiny):  # type: ignore[no-untyped-def]
    """Copy ``rows`` rows of ``width`` elements, ``*_step`` elements apart."""
    if width == 1:
        for j in range(rows):
            v = sums[sums_at + j * sums_step]
            out[out_at + j * out_step] = 0 if v < tiny else v
        return
    for j in range(rows):
        source = sums[sums_at + j * sums_step : sums_at + j * sums_step + width]
        target = out[out_at + j * out_step : out_at + j * out_step + width]
        for q in range(width):
            v = source[q]
            target[q] = 0 if v < tiny else v


@kernel
def _unit_stride(  # type: ignore[no-untyped-def]
    y, y_step, n, width, k, dilation, lo, out, out_step, n_out, planes, tiny
):
    for p in range(planes):
        f = y[p * y_step : p * y_step + n * width]
        to = out[p * out_step : p * out_step + n_out * width]
        _window_sums(f, dilation * width, k, lo * width, to, tiny)


@kernel
def _strided(  # type: ignore[no-untyped-def]
    y, y_step, n, width, k, up, down, dilation, lo, out, out_step, n_out, planes, common, tiny
):
    # Dividing up·o + m·dilation = down·i + lo by the common divisor leaves, for every i that the
    # divisor reaches, one tap m0 < up/common with a solution; the other taps are up/common apart,
    # and their o's dilation/common apart. Numbering each solution by the o of its first tap m0, the
    # last of its window: `count` elements, one more where m0 < extra.
    taps_apart = up // common
    lag = dilation // common * width
    count = k // taps_apart
    extra = k % taps_apart
    # The windows that end in rows [row0, row1) of y are all that touch y and out.
    row0 = max(0, -((dilation * (taps_apart - 1) - lo) // up)) if down == 1 else max(0, lo)
    row1 = min(n + count * (dilation // common), (down * (n_out - 1) + lo) // up + 1)
    block = count * (dilation // common)
    chunk = max(1, _CHUNK // (block * width)) * block
    sums = np.empty(max(0, min(chunk, row1 - row0)) * width, y.dtype)
    nothing = y.dtype.type(0)
    for p in range(planes):
        f = y[p * y_step : p * y_step + n * width]
        to = out[p * out_step : p * out_step + n_out * width]
        to[:] = 0
        for begin in range(row0, row1, chunk):
            end = min(begin + chunk, row1)
            part = sums[: (end - begin) * width]
            _window_sums(f, lag, count, begin * width, part, nothing)
            if down > 1:
                i0 = max(0, -((lo - begin) // down))
                i1 = min(n_out, -((lo - end) // down))
                at = down * i0 + lo - begin
                _place(part, at * width, down * width, to, i0 * width, width, i1 - i0, width, tiny)
                continue
            for longer in range(2):
                if longer:
                    # The one element further back that the longer windows hold.
                    back = begin * width - count * lag
                    a = min(max(0, -back), part.size)
                    b = max(a, min(part.size, f.size - back))
                    for j in range(a, b):
                        part[j] += f[back + j]
                for m0 in range(0 if longer else extra, extra if longer else taps_apart):
                    shift = dilation * m0 - lo
                    first = max(begin, -(shift // up))
                    last = min(end, (n_out - 1 - shift) // up + 1)
                    _place(
                        part,
                        (first - begin) * width,
                        width,
                        to,
                        (up * first + shift) * width,
                        up * width,
                        last - first,
                        width,
                        tiny,
                    )


def windows(y: Floats, k: int, up: int, down: int, dilation: int, lo: int, out: Floats) -> None:
    """Fill ``out[p, i, q] = Σ y[p, o, q]`` over o, m < k with ``up·o + m·dilation = down·i + lo``.

    ``up`` or ``down`` is 1. ``y`` and ``out`` are (P, n, Q), of one float dtype and any layout;
    ``out`` does not overlap ``y``.
    """
    if y.size == 0 or out.size == 0:
        out[...] = 0
        return
    common = gcd(up, dilation)
    # Summed one by one, a window costs as much as it is long; the other ways cost nearly the same
    # for any length, but make all windows, of which a strided gather takes one in `down`.
    short = dilation // common * y.shape[2] < _SHORT_LAG
    longest = DIRECT_COUNT_SHORT_LAG if short else DIRECT_COUNT
    if -(-k * common // up) <= longest * down:
        ones = np.ones((1, k, 1), y.dtype)
        correlate(y, ones, (1, up, 1), (1, down, 1), (1, dilation, 1), (0, lo, 0), out)
        return
    with target(out, has_planes(out)) as planes_out:
        source, y_step, _ = memory(with_planes(y))
        sink, out_step, _ = memory(planes_out)
        (planes, n, width), n_out = y.shape, out.shape[1]
        tiny = SMALLEST_NORMAL[out.dtype]
        if up == down == 1:
            _unit_stride(
                source, y_step, n, width, k, dilation, lo, sink, out_step, n_out, planes, tiny
            )
        else:
            _strided(
                source,
                y_step,
                n,
                width,
                k,
                up,
                down,
                dilation,
                lo,
                sink,
                out_step,
                n_out,
                planes,
                common,
                tiny,
            )
