"""A whole network on a small image in one call: an interpreter of `fastrf.kernels.tables`.

Of a small image, most of a layer's time would go into finding out in Python what to call. Here a
layer costs about a microsecond and its pixels. One primitive, `_combine`, does the arithmetic:
weighted sums of contiguous rows, which LLVM turns into vector code. Rows are first summed along the
outer axes into one padded line, then along the last axis from that line into the result.

Where an image is cut or trimmed, only its window moves; its rows stay where they are. Sums are of
nonnegative numbers alone, as everywhere in the direct engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastrf.kernels import tables
from fastrf.kernels.tables import (
    BY,
    DENSE,
    DILATION,
    DIVISOR,
    EVERYTHING,
    EXPONENT,
    GLOBAL,
    KERNEL,
    KIND,
    LO,
    MANTISSA,
    OPERATION,
    REST,
    REST_EXPONENT,
    SCALE,
    SINKS,
    SIZE,
    SPREAD,
    STRIDE,
    SUM,
    TABLE,
    TAPS,
    TO,
    WINDOW,
    A,
    B,
)
from numpy.typing import NDArray

from ._compile import helper, kernel
from ._layout import SMALLEST_NORMAL, Floats

# More equal taps than this are summed by doubling windows, which costs their logarithm
# (bench/bench_small.py, a Sapphire Rapids Xeon with 2 cores).
_LONG = 6


# Multiplications and additions after which a call returns, so that Ctrl-C is seen: some 0.1 s.
_CALL = 1 << 27

# What a slot holds is a row of integers: where its first pixel lies in the arena, the distances
# between its planes and rows, its window's origin and shape, and the exponent that its pixels are
# to be multiplied with.

_OFFSET, _STEP, _ORIGIN, _SHAPE, _BITS = 0, 1, 3, 6, 9
_SLOT_COLUMNS = 10

# More exponents than float32 has.
_SINGLE_BIAS = 126


# --- rows -----------------------------------------------------------------------------------


@helper
def _clear(y, at, n):  # type: ignore[no-untyped-def]
    """Positions and lengths are unsigned here: signed ones could count from the end, and the test
    for that keeps LLVM from making vectors. A slice would do, but counts its references."""
    begin = np.uint64(at)
    for j in range(np.uint64(n)):
        y[begin + j] = 0


@helper
def _copy(y, at, n, out, to):  # type: ignore[no-untyped-def]
    first, begin = np.uint64(at), np.uint64(to)
    for j in range(np.uint64(n)):
        out[begin + j] = y[first + j]


@helper
def _flush(y, at, n, tiny):  # type: ignore[no-untyped-def]
    begin = np.uint64(at)
    for j in range(np.uint64(n)):
        v = y[begin + j]
        y[begin + j] = 0 if v < tiny else v


@helper
def _combine(y, at, weights, first, count, out, to, n):  # type: ignore[no-untyped-def]
    """``out[to + j] = Σ_{e<count} weights[first + e]·y[at[first + e] + j]`` for j < n."""
    if count <= 0:
        _clear(out, to, n)
        return
    begin, length = np.uint64(to), np.uint64(n)
    few = (count - 1) % 3 + 1
    a, wa = np.uint64(at[first]), weights[first]
    if few == 1:
        for j in range(length):
            out[begin + j] = wa * y[a + j]
    else:
        b, wb = np.uint64(at[first + 1]), weights[first + 1]
        if few == 2:
            for j in range(length):
                out[begin + j] = wa * y[a + j] + wb * y[b + j]
        else:
            c, wc = np.uint64(at[first + 2]), weights[first + 2]
            for j in range(length):
                out[begin + j] = wa * y[a + j] + wb * y[b + j] + wc * y[c + j]
    for e in range(first + few, first + count, 3):
        a, wa = np.uint64(at[e]), weights[e]
        b, wb = np.uint64(at[e + 1]), weights[e + 1]
        c, wc = np.uint64(at[e + 2]), weights[e + 2]
        for j in range(length):
            out[begin + j] += wa * y[a + j] + wb * y[b + j] + wc * y[c + j]


@helper
def _doubled(lines, size, k, lag):  # type: ignore[no-untyped-def]
    """Where in `lines` there is then ``Σ_{t<k} lines[i − t·lag]`` for (k − 1)·lag ≤ i < size.

    `lines` holds the line and room for two more. Windows of twice the length, or one more, are
    sums of two or three shorter ones.
    """
    at, ones = np.empty(3, np.int64), np.ones(3, lines.dtype)
    now, length, bit, none = np.int64(0), np.int64(1), np.int64(1), np.int64(0)
    while 2 * bit <= k:
        bit *= 2
    while bit > 1:
        bit //= 2
        more = (k // bit) % 2
        after = size if now != size else 2 * size
        begin = (2 * length + more - 1) * lag
        at[0], at[1], at[2] = now + begin, now + begin - length * lag, begin - 2 * length * lag
        _combine(lines, at, ones, none, 2 + more, lines, after + begin, size - begin)
        now, length = after, 2 * length + more
    return now


# --- windows --------------------------------------------------------------------------------


@helper
def _reach(axis, starts, first, n):  # type: ignore[no-untyped-def]
    """First pixel and number of the pixels of x that ``first … first + n − 1`` of y reach."""
    kind, k, stride = axis[KIND], axis[KERNEL], axis[STRIDE]
    dilation, lo, size = axis[DILATION], axis[LO], axis[SIZE]
    span = dilation * (k - 1)
    if kind == WINDOW:
        return first * stride - lo, (n - 1) * stride + span + 1
    if kind == SPREAD:
        start = -((span - lo - first) // stride)
        return start, (first + n - 1 + lo) // stride - start + 1
    if kind == TABLE:
        begin, end = 1 << 62, -(1 << 62)
        for o in range(first, first + n):
            at = starts[lo + o % stride] + dilation * (o // stride)
            begin, end = min(begin, at), max(end, at + k)
        if size >= 0:
            begin, end = max(begin, 0), min(end, size)
        return begin, end - begin
    return np.int64(0), size


@helper
def _connections(axis, starts, first, n, start, size):  # type: ignore[no-untyped-def]
    """Which y's reach each of ``start … start + size − 1`` of x, and by which taps.

    Those of x's i-th are number begin[i] … end[i] − 1 of the y's (counted from `first`) and taps.
    """
    kind, k, stride = axis[KIND], axis[KERNEL], axis[STRIDE]
    dilation, lo = axis[DILATION], axis[LO]
    begin, end = np.empty(size, np.int64), np.empty(size, np.int64)
    y, tap = np.empty(max(n, size) * k, np.int64), np.empty(max(n, size) * k, np.int64)
    found = np.int64(0)
    if kind == EVERYTHING:
        for o in range(n):
            y[o], tap[o] = o, 0
        for i in range(size):
            begin[i], end[i] = 0, n
        return begin, end, y, tap
    if kind == TABLE:
        _clear(begin, 0, size)
        for o in range(first, first + n):
            at = starts[lo + o % stride] + dilation * (o // stride) - start
            for m in range(max(0, -at), min(k, size - at)):
                begin[at + m] += 1
        for i in range(size):
            count = begin[i]
            begin[i] = end[i] = found
            found += count
        for o in range(first, first + n):
            at = starts[lo + o % stride] + dilation * (o // stride) - start
            for m in range(max(0, -at), min(k, size - at)):
                y[end[at + m]], tap[end[at + m]] = o - first, o % stride * k + m
                end[at + m] += 1
        return begin, end, y, tap
    for i in range(size):
        begin[i] = found
        for m in range(k):
            if kind == WINDOW:
                at = start + i + lo - m * dilation
                o = at // stride if stride > 1 else at
                if o * stride != at:
                    continue
            else:
                o = (start + i) * stride + m * dilation - lo
            o -= first
            if 0 <= o < n:
                y[found], tap[found] = o, m
                found += 1
        end[i] = found
    return begin, end, y, tap


@helper
def _weight(taps, at, tap):  # type: ignore[no-untyped-def]
    return taps[at + tap] if at >= 0 else taps.dtype.type(1)


# --- one transposed map ---------------------------------------------------------------------


@helper
def _phases(axis):  # type: ignore[no-untyped-def]
    """The taps of a `WINDOW` that meet each of the pixels 0 … stride − 1, and those after them.

    Those of phase p are number begin[p] … begin[p + 1] − 1 of the taps, which read `back` pixels
    before.
    """
    k, stride, dilation = axis[KERNEL], axis[STRIDE], axis[DILATION]
    if axis[KIND] != WINDOW:
        stride = np.int64(0)
    begin = np.empty(stride + 1, np.int64)
    back, tap = np.empty(k, np.int64), np.empty(k, np.int64)
    found = np.int64(0)
    for p in range(stride):
        begin[p] = found
        for m in range(k):
            if m * dilation % stride == p:
                back[found], tap[found] = m * dilation // stride, m
                found += 1
    begin[stride] = found
    return begin, back, tap


@helper
def _across(  # type: ignore[no-untyped-def]
    y, at, base, rows, axis, shift, taps, begin, back, tap, places, weights, out, to, n, phase
):
    """The last axis: a row of the result from one or more rows of y, zero at both ends.

    The r-th row of y begins at at[r] and has the taps from base[r] on (from −1: all 1). `shift` is
    where a `SPREAD` begins in y; `begin`, `back` and `tap` are the `_phases` of a `WINDOW`.
    `places`, `weights` and `phase` are to work in.
    """
    kind, k, stride, dilation = axis[KIND], axis[KERNEL], axis[STRIDE], axis[DILATION]
    if kind == SPREAD:
        _clear(out, to, n)
        for r in range(rows):
            for m in range(k):
                weight = _weight(taps, base[r], m)
                first = at[r] + shift + m * dilation
                for i in range(n):
                    out[to + i] += weight * y[first + i * stride]
        return
    line, at_line, none = out, to, np.int64(0)
    if stride > 1:
        line, at_line = phase, none
    for p in range(min(stride, n)):
        count = np.int64(0)
        for e in range(begin[p], begin[p + 1]):
            for r in range(rows):
                places[count] = at[r] - back[e]
                weights[count] = _weight(taps, base[r], tap[e])
                count += 1
        few = (n - p + stride - 1) // stride
        _combine(y, places, weights, none, count, line, at_line, few)
        if stride > 1:
            first, step = np.uint64(to + p), np.uint64(stride)
            for i in range(np.uint64(few)):
                out[first + i * step] = phase[i]


@helper
def _sparse(y, at, begin, end, index, tap, taps, base, out, to, n):  # type: ignore[no-untyped-def]
    """The last axis, pixel by pixel."""
    for i in range(n):
        if i > 0 and begin[i] == begin[i - 1] and end[i] == end[i - 1]:
            out[to + i] = out[to + i - 1]
            continue
        total = out.dtype.type(0)
        for e in range(begin[i], end[i]):
            total += _weight(taps, base, tap[e]) * y[at + index[e]]
        out[to + i] = total


@helper
def _is_pointwise(axis):  # type: ignore[no-untyped-def]
    return axis[KIND] == WINDOW and axis[KERNEL] == 1 and axis[STRIDE] == 1


@helper
def _is_long(axis):  # type: ignore[no-untyped-def]
    one = axis[KIND] == WINDOW and axis[STRIDE] == 1 and axis[TAPS] < 0
    return one and axis[KERNEL] > _LONG


@helper
def _padding(axis):  # type: ignore[no-untyped-def]
    """Zeros that `_across` reads before and after a row."""
    return axis[DILATION] * (axis[KERNEL] - 1) + axis[STRIDE] + 1


@helper
def _move_dense(move, starts, taps, arena, source, result, work, tiny):  # type: ignore[no-untyped-def]
    """Taps that are no product."""
    target = result[_OFFSET]
    first, second, last = move[0], move[1], move[2]
    n0, n1, n2 = source[_SHAPE], source[_SHAPE + 1], source[_SHAPE + 2]
    pad = _padding(last)
    pitch = n2 + 2 * pad
    for i in range(n0):
        for j in range(n1):
            to = work + (i * n1 + j) * pitch
            _clear(arena, to, pitch)
            _copy(
                arena,
                source[_OFFSET] + i * source[_STEP] + j * source[_STEP + 1],
                n2,
                arena,
                to + pad,
            )
    begin0, end0, y0, tap0 = _connections(
        first, starts, source[_ORIGIN], n0, result[_ORIGIN], result[_SHAPE]
    )
    begin1, end1, y1, tap1 = _connections(
        second, starts, source[_ORIGIN + 1], n1, result[_ORIGIN + 1], result[_SHAPE + 1]
    )
    k1, k2 = second[KERNEL], last[KERNEL]
    at = np.empty(first[KERNEL] * k1, np.int64)
    base = np.empty(first[KERNEL] * k1, np.int64)
    begin2, back, tap2 = _phases(last)
    places, weights = np.empty(at.size * k2, np.int64), np.empty(at.size * k2, arena.dtype)
    phase = np.empty(result[_SHAPE + 2], arena.dtype)
    shift = result[_ORIGIN + 2] * last[STRIDE] - last[LO] - source[_ORIGIN + 2]
    for i in range(result[_SHAPE]):
        for j in range(result[_SHAPE + 1]):
            rows = np.int64(0)
            for e in range(begin0[i], end0[i]):
                for f in range(begin1[j], end1[j]):
                    at[rows] = work + (y0[e] * n1 + y1[f]) * pitch + pad
                    base[rows] = last[TAPS] + (tap0[e] * k1 + tap1[f]) * k2
                    rows += 1
            to = target + (i * result[_SHAPE + 1] + j) * result[_SHAPE + 2]
            _across(
                arena,
                at,
                base,
                rows,
                last,
                shift,
                taps,
                begin2,
                back,
                tap2,
                places,
                weights,
                arena,
                to,
                result[_SHAPE + 2],
                phase,
            )
            _flush(arena, to, result[_SHAPE + 2], tiny)


@helper
def _move(move, starts, taps, arena, source, result, work, tiny):  # type: ignore[no-untyped-def]
    """Axis by axis; the last two in one pass."""
    target = result[_OFFSET]
    first, second, last = move[0], move[1], move[2]
    n0, n1, n2 = source[_SHAPE], source[_SHAPE + 1], source[_SHAPE + 2]
    offset, step0, step1 = source[_OFFSET], source[_STEP], source[_STEP + 1]
    if not _is_pointwise(first):
        begin, end, y, tap = _connections(
            first, starts, source[_ORIGIN], n0, result[_ORIGIN], result[_SHAPE]
        )
        at, weights = np.empty(y.size, np.int64), np.empty(y.size, arena.dtype)
        for i in range(result[_SHAPE]):
            for j in range(n1):
                for e in range(begin[i], end[i]):
                    at[e] = offset + y[e] * step0 + j * step1
                    weights[e] = _weight(taps, first[TAPS], tap[e])
                to = work + (i * n1 + j) * n2
                count = end[i] - begin[i]
                _combine(arena, at, weights, begin[i], count, arena, to, n2)
                _flush(arena, to, n2, tiny)
        offset, step0, step1 = work, n1 * n2, n2
    n = result[_SHAPE + 2]
    begin, end, y, tap = _connections(
        second, starts, source[_ORIGIN + 1], n1, result[_ORIGIN + 1], result[_SHAPE + 1]
    )
    at, weights = np.empty(y.size, np.int64), np.empty(y.size, arena.dtype)
    # The line between the axes, with zeros at both ends, and room for two more.
    pointwise, long = _is_pointwise(last), _is_long(last)
    sparse = last[KIND] == TABLE or last[KIND] == EVERYTHING
    pad = 0 if pointwise or sparse else _padding(last)
    size = n2 + 2 * pad
    line = np.empty(size * (3 if long else 1), arena.dtype)
    _clear(line, 0, line.size)
    phase = np.empty(n if last[STRIDE] > 1 else 0, arena.dtype)
    begin2, end2, y2, tap2 = begin, end, y, tap
    if sparse:
        begin2, end2, y2, tap2 = _connections(
            last, starts, source[_ORIGIN + 2], n2, result[_ORIGIN + 2], n
        )
    shift = result[_ORIGIN + 2] * last[STRIDE] - last[LO] - source[_ORIGIN + 2]
    here, base, one = np.empty(1, np.int64), np.empty(1, np.int64), np.int64(1)
    here[0], base[0] = pad, last[TAPS]
    parts, back, tap_of = _phases(last)
    places, across = np.empty(back.size, np.int64), np.empty(back.size, arena.dtype)
    # Long sums of rows go by doubling, too, over a plane in one line.
    tall = _is_long(second)
    above = second[DILATION] * (second[KERNEL] - 1)
    length = (n1 + 2 * above) * n2
    plane = np.empty(3 * length if tall else 0, arena.dtype)
    _clear(plane, 0, plane.size)
    middle, at_middle = (arena, target) if pointwise else (line, pad)
    for p in range(result[_SHAPE]):
        tops = np.int64(0)
        if tall:
            for j in range(n1):
                start = offset + p * step0 + j * step1
                _copy(arena, start, n2, plane, (above + j) * n2)
            tops = _doubled(plane, length, second[KERNEL], second[DILATION] * n2) + above * n2
        for i in range(result[_SHAPE + 1]):
            to = target + (p * result[_SHAPE + 1] + i) * n
            b, count = begin[i], end[i] - begin[i]
            if i > 0 and b == begin[i - 1] and end[i] == end[i - 1]:
                _copy(arena, to - n, n, arena, to)
                continue
            if pointwise:
                at_middle = to
            if tall:
                _copy(plane, tops + i * n2, n2, middle, at_middle)
            else:
                for e in range(b, b + count):
                    at[e] = offset + p * step0 + y[e] * step1
                    weights[e] = _weight(taps, second[TAPS], tap[e])
                _combine(arena, at, weights, b, count, middle, at_middle, n2)
            if not pointwise:
                if tiny > 0:
                    _flush(line, pad, n2, tiny)
                if sparse:
                    _sparse(line, pad, begin2, end2, y2, tap2, taps, last[TAPS], arena, to, n)
                elif long:
                    now = _doubled(line, size, last[KERNEL], last[DILATION]) + pad
                    _copy(line, now, n, arena, to)
                else:
                    _across(
                        line,
                        here,
                        base,
                        one,
                        last,
                        shift,
                        taps,
                        parts,
                        back,
                        tap_of,
                        places,
                        across,
                        arena,
                        to,
                        n,
                        phase,
                    )
            if tiny > 0:
                _flush(arena, to, n, tiny)


# --- images ---------------------------------------------------------------------------------


@helper
def _total(pixels, at, step0, step1, n0, n1, n2):  # type: ignore[no-untyped-def]
    """The sum of a box, in float64."""
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    for i in range(n0):
        for j in range(n1):
            # Four sums at a time, since each waits for its last addition.
            start = at + i * step0 + j * step1
            whole = start + n2 // 4 * 4
            for x in range(start, whole, 4):
                a += pixels[x]
                b += pixels[x + 1]
                c += pixels[x + 2]
                d += pixels[x + 3]
            for x in range(whole, start + n2):
                a += pixels[x]
    return (a + b) + (c + d)


@helper
def _step(image, axis):  # type: ignore[no-untyped-def]
    return np.int64(1) if axis == 2 else image[_STEP + axis]


@helper
def _slab(pixels, image, axis, begin, end):  # type: ignore[no-untyped-def]
    """The sum of a slab across an axis."""
    n0, n1, n2 = image[_SHAPE], image[_SHAPE + 1], image[_SHAPE + 2]
    at = image[_OFFSET] + begin * _step(image, axis)
    if axis == 0:
        n0 = end - begin
    elif axis == 1:
        n1 = end - begin
    else:
        n2 = end - begin
    return _total(pixels, at, image[_STEP], image[_STEP + 1], n0, n1, n2)


@helper
def _is_blank(pixels, image, axis, begin):  # type: ignore[no-untyped-def]
    """Whether a slab of one pixel across an axis is all 0."""
    n0, n1, n2 = image[_SHAPE], image[_SHAPE + 1], image[_SHAPE + 2]
    at = image[_OFFSET] + begin * _step(image, axis)
    if axis == 0:
        n0 = 1
    elif axis == 1:
        n1 = 1
    else:
        n2 = 1
    for i in range(n0):
        for j in range(n1):
            start = at + i * image[_STEP] + j * image[_STEP + 1]
            for x in range(start, start + n2):
                if pixels[x] != 0:
                    return False
    return True


@helper
def _cut(image, axis, begin, end):  # type: ignore[no-untyped-def]
    """Leave begin … end − 1 of an axis."""
    image[_OFFSET] += begin * _step(image, axis)
    image[_ORIGIN + axis] += begin
    image[_SHAPE + axis] = end - begin


@helper
def _trim(pixels, image):  # type: ignore[no-untyped-def]
    """Cut off borders that are all 0; False where nothing is left."""
    for axis in range(3):
        n = image[_SHAPE + axis]
        begin, end = np.int64(0), n
        while begin < end and _is_blank(pixels, image, axis, begin):
            begin += 1
        while begin < end and _is_blank(pixels, image, axis, end - 1):
            end -= 1
        if begin == end:
            return False
        if end - begin < n:
            _cut(image, axis, begin, end)
    return True


@helper
def _rescale(pixels, patterns, image, peak, growth, room, tiny):  # type: ignore[no-untyped-def]
    """The largest pixel near the top of the headroom, or as far below it as growth asks.

    Returns log2 of a bound of the largest pixel. Nonnegative numbers are ordered as the integers of
    the same bits are, of which LLVM finds the maximum in vectors.
    """
    top, limit, most, digits, bias = room
    largest = patterns.dtype.type(0)
    n2 = np.uint64(image[_SHAPE + 2])
    for i in range(image[_SHAPE]):
        for j in range(image[_SHAPE + 1]):
            at = np.uint64(image[_OFFSET] + i * image[_STEP] + j * image[_STEP + 1])
            for x in range(n2):
                largest = max(largest, patterns[at + x])
    if largest == 0:
        return peak  # all of it lay in the gaps of a transposed convolution
    peak = float((largest >> digits) - bias)
    shift = math.floor(min(float(top), limit - growth) - peak)
    if 0 <= shift <= 32:
        return peak
    shift = min(shift, most)
    factor = pixels.dtype.type(math.ldexp(1.0, shift))
    for i in range(image[_SHAPE]):
        for j in range(image[_SHAPE + 1]):
            at = np.uint64(image[_OFFSET] + i * image[_STEP] + j * image[_STEP + 1])
            for x in range(n2):
                v = pixels[at + x] * factor
                pixels[at + x] = 0 if v < tiny else v
    image[_BITS] -= shift
    return peak + shift


@helper
def _pixels_of(image):  # type: ignore[no-untyped-def]
    return image[_SHAPE] * image[_SHAPE + 1] * image[_SHAPE + 2]


@helper
def _taps_of(move, dense):  # type: ignore[no-untyped-def]
    """How often about a pixel is written: no less than once an axis."""
    first, second, last = move[0, KERNEL], move[1, KERNEL], move[2, KERNEL]
    return first * second * last if dense else 3 + first + second + last


@helper
def _settle(image, target, origin, shape):  # type: ignore[no-untyped-def]
    """A fresh image of this window from the arena's pixel `target` on."""
    image[_OFFSET], image[_BITS] = target, 0
    image[_STEP], image[_STEP + 1] = shape[1] * shape[2], shape[2]
    for axis in range(3):
        image[_ORIGIN + axis], image[_SHAPE + axis] = origin[axis], shape[axis]


@helper
def _add(pixels, image, factor, again, sum_, tiny):  # type: ignore[no-untyped-def]
    """Add factor·again·image to the image `sum_`, whose window holds its window."""
    n2 = image[_SHAPE + 2]
    for i in range(image[_SHAPE]):
        for j in range(image[_SHAPE + 1]):
            at = image[_OFFSET] + i * image[_STEP] + j * image[_STEP + 1]
            to = sum_[_OFFSET] + image[_ORIGIN + 2] - sum_[_ORIGIN + 2]
            to += (image[_ORIGIN] + i - sum_[_ORIGIN]) * sum_[_STEP]
            to += (image[_ORIGIN + 1] + j - sum_[_ORIGIN + 1]) * sum_[_STEP + 1]
            first, begin = np.uint64(at), np.uint64(to)
            for x in range(np.uint64(n2)):
                v = pixels[begin + x] + again * (factor * pixels[first + x])
                pixels[begin + x] = 0 if v < tiny else v


@helper
def _unite(a, b, image, target):  # type: ignore[no-untyped-def]
    """A fresh image from `target` on, of the smallest window that holds those of a and b."""
    origin, shape = np.empty(3, np.int64), np.empty(3, np.int64)
    for axis in range(3):
        start = min(a[_ORIGIN + axis], b[_ORIGIN + axis])
        end = max(
            a[_ORIGIN + axis] + a[_SHAPE + axis],
            b[_ORIGIN + axis] + b[_SHAPE + axis],
        )
        origin[axis], shape[axis] = start, end - start
    _settle(image, target, origin, shape)


@helper
def _reach_all(move, starts, image, origin, shape):  # type: ignore[no-untyped-def]
    """The window that a map's axes reach, into origin and shape; False where it is empty."""
    found = True
    for axis in range(3):
        first, n = image[_ORIGIN + axis], image[_SHAPE + axis]
        origin[axis], shape[axis] = _reach(move[axis], starts, first, n)
        found = found and shape[axis] > 0
    return found


# --- numbers --------------------------------------------------------------------------------


@helper
def _normalise(numbers, i):  # type: ignore[no-untyped-def]
    """A number is (mantissa, exponent), as `fastrf.engine.scaled.Scaled`."""
    mantissa, exponent = math.frexp(numbers[i, 0])
    numbers[i, 0] = mantissa
    numbers[i, 1] += exponent


@helper
def _increase(number, mantissa, exponent):  # type: ignore[no-untyped-def]
    """Add mantissa·2^exponent to the first of an array of numbers."""
    if mantissa == 0:
        return
    top = max(exponent, number[0, 1]) if number[0, 0] != 0 else exponent
    own = math.ldexp(number[0, 0], int(max(number[0, 1] - top, -2000.0)))
    number[0, 0] = own + math.ldexp(mantissa, int(max(exponent - top, -2000.0)))
    number[0, 1] = top
    _normalise(number, 0)


# --- the walk -------------------------------------------------------------------------------


@kernel
def _measure(  # type: ignore[no-untyped-def]
    code, maps, kinds, starts, slot_of, entry, seeds, unit, needs
):
    """Pixels that each slot needs at most, into `needs`: the walk, on windows alone."""
    images = np.zeros((needs.size, _SLOT_COLUMNS), np.int64)
    held = np.zeros(slot_of.size, np.bool_)
    origin, shape, none = np.empty(3, np.int64), np.ones(3, np.int64), np.int64(0)
    for v in seeds:
        _settle(images[slot_of[v]], none, unit, shape)
        held[v], needs[slot_of[v]] = True, 1
    for at in range(entry, len(code)):
        what, to, a, b = code[at, OPERATION], code[at, TO], code[at, A], code[at, B]
        image, slot = images[slot_of[to]], slot_of[to]
        if what == SUM:
            held[to] = held[a] or held[b]
            if held[to]:
                one, other = a if held[a] else b, b if held[b] else a
                _unite(images[slot_of[one]], images[slot_of[other]], image, none)
                needs[slot] = max(needs[slot], _pixels_of(image))
            continue
        held[to] = held[to] or held[a]
        if not held[a] or what == SCALE:
            continue
        if what == GLOBAL:
            return
        source, move = images[slot_of[a]], maps[code[at, BY]]
        n0, n1, n2 = source[_SHAPE], source[_SHAPE + 1], source[_SHAPE + 2]
        held[to] = _reach_all(move, starts, source, origin, shape)
        if not held[to]:
            continue
        needs[slot] = max(needs[slot], shape[0] * shape[1] * shape[2])
        if kinds[code[at, BY], DENSE] >= 0:
            needs[b] = max(needs[b], n0 * n1 * (n2 + 2 * _padding(move[2])))
        elif b >= 0:
            needs[b] = max(needs[b], shape[0] * n1 * n2)
        _settle(image, none, origin, shape)
        for axis in range(3):
            size = move[axis, SIZE]
            if size >= 0:
                begin = max(-origin[axis], 0)
                end = min(size - origin[axis], shape[axis])
                _cut(image, axis, begin, end)
                held[to] = held[to] and end > begin


@helper
def _lower(pixels, patterns, images, slot, peaks, growth, room, tiny):  # type: ignore[no-untyped-def]
    """Make room for the pixels of a slot to grow by 2^growth."""
    if peaks[slot] + growth > room[1]:
        peaks[slot] = _rescale(pixels, patterns, images[slot], peaks[slot], growth, room, tiny)


@helper
def _sum(  # type: ignore[no-untyped-def]
    pixels, patterns, images, peaks, scales, slot_of, homes, to, a, b, room, tiny
):
    """The value `to` becomes a + b."""
    slot = slot_of[to]
    both = scales[a, 0] > 0 and scales[b, 0] > 0
    if scales[a, 0] == 0:
        a = b
    elif not both:
        b = a
    if scales[a, 0] == 0:
        return
    largest = scales[a, 1] + images[slot_of[a], _BITS] + peaks[slot_of[a]]
    if scales[b, 1] + images[slot_of[b], _BITS] + peaks[slot_of[b]] > largest:
        a, b = b, a
    own, other = slot_of[a], slot_of[b]
    _lower(pixels, patterns, images, own, peaks, 1.0, room, tiny)
    _unite(images[own], images[other], images[slot], homes[slot])
    _clear(pixels, homes[slot], _pixels_of(images[slot]))
    one = pixels.dtype.type(1)
    _add(pixels, images[own], one, one, images[slot], tiny)
    images[slot, _BITS], peaks[slot] = images[own, _BITS], peaks[own]
    scales[to, 0], scales[to, 1] = scales[a, 0], scales[a, 1]
    if both:
        # In two factors where one would be no normal number.
        order = scales[b, 1] + images[other, _BITS] - scales[a, 1] - images[own, _BITS]
        most, bias, shift = room[2], room[4], 0
        if order < 3 - bias:
            shift = -most
        elif order > bias - 3:
            shift = most
        order = max(order - shift, -1100.0)
        first = math.ldexp(1.0, shift)
        second = math.ldexp(scales[b, 0] / scales[a, 0], int(order))
        factor, again = pixels.dtype.type(first), pixels.dtype.type(second)
        _add(pixels, images[other], factor, again, images[slot], tiny)
        # Both mantissas are between 0.5 and 1.
        peaks[slot] = max(peaks[slot], peaks[other] + shift + order + 1) + 1
        if not _trim(pixels, images[slot]):
            scales[to, 0] = 0


@helper
def _lose(pixels, image, move, mantissa, exponent, lost):  # type: ignore[no-untyped-def]
    """Cut off what fell into padding and add it, times a number, to `lost`; False where all did."""
    for axis in range(3):
        n, size = image[_SHAPE + axis], move[axis, SIZE]
        if size < 0:
            continue
        begin = min(max(-image[_ORIGIN + axis], 0), n)
        end = max(min(size - image[_ORIGIN + axis], n), begin)
        gone = 0.0
        if begin > 0:
            gone += _slab(pixels, image, axis, begin - begin, begin)
        if end < n:
            gone += _slab(pixels, image, axis, end, n)
        part, order = math.frexp(gone)
        _increase(lost, part * mantissa, exponent + order)
        _cut(image, axis, begin, end)
        if begin == end:
            return False
    return True


@helper
def _is_outside(image, move):  # type: ignore[no-untyped-def]
    for axis in range(3):
        start, size = image[_ORIGIN + axis], move[axis, SIZE]
        if size >= 0 and (start < 0 or start + image[_SHAPE + axis] > size):
            return True
    return False


@helper
def _growth(move, dense, image):  # type: ignore[no-untyped-def]
    """log2 of the factor by which the largest pixel can grow: the weights of one sum."""
    growth = 0.0
    for axis in range(3):
        if move[axis, KIND] == TABLE or move[axis, KIND] == EVERYTHING:
            growth += math.log2(image[_SHAPE + axis])
        elif move[axis, TAPS] < 0 and move[axis, KERNEL] > 1 and not dense:
            growth += math.log2(move[axis, KERNEL])
    return growth


@helper
def _finish(pixels, patterns, images, slot, peaks, room, tiny):  # type: ignore[no-untyped-def]
    """Normalise the image of a slot, trim it, and return its former sum."""
    image = images[slot]
    if room[4] > _SINGLE_BIAS:
        bits = math.log2(_pixels_of(image))
        _lower(pixels, patterns, images, slot, peaks, bits, room, tiny)
    none, n2 = np.int64(0), np.uint64(image[_SHAPE + 2])
    total = _slab(pixels, image, none, none, image[_SHAPE])
    for i in range(image[_SHAPE]):
        for j in range(image[_SHAPE + 1]):
            first = np.uint64(image[_OFFSET] + i * image[_STEP] + j * image[_STEP + 1])
            for x in range(n2):
                v = pixels.dtype.type(pixels[first + x] / total)
                pixels[first + x] = 0 if v < tiny else v
    if not _trim(pixels, image):
        image[_SHAPE] = 0
    return total


@kernel
def _walk(  # type: ignore[no-untyped-def]
    code,
    factors,
    maps,
    kinds,
    starts,
    taps,
    slot_of,
    entry,
    begin,
    seeds,
    shares,
    unit,
    result,
    homes,
    arena,
    patterns,
    room,
    tiny,
    scales,
    peaks,
    images,
    figures,
):
    """Follow the seeds, from instruction `begin` on, as far towards the input as one call goes.

    Returns the instruction to go on with; the number of instructions when all is done, and −1 − i
    where instruction i cannot be done. `scales`, of mantissa 0 where a value holds nothing, `peaks`
    and `images` hold what the next call needs. The result is left, normalised, in its slot (of
    shape 0 where there is nothing), its mass before that and what was lost in `figures`.
    """
    origin, shape = np.empty(3, np.int64), np.ones(3, np.int64)
    done = 0
    for s in range(seeds.size if begin == entry else 0):
        slot = slot_of[seeds[s]]
        _settle(images[slot], homes[slot], unit, shape)
        arena[homes[slot]], peaks[slot] = math.ldexp(1.0, room[0]), room[0]
        scales[seeds[s], 0], scales[seeds[s], 1] = shares[s], -room[0]
        _normalise(scales, seeds[s])
    for at in range(begin, len(code)):
        if done > _CALL:
            return at
        what, to, a, b = code[at, OPERATION], code[at, TO], code[at, A], code[at, B]
        if what == SUM:
            _sum(arena, patterns, images, peaks, scales, slot_of, homes, to, a, b, room, tiny)
            continue
        if scales[a, 0] == 0:
            continue
        if what == GLOBAL:
            return -1 - at
        scales[to, 0] = scales[a, 0] * factors[at, MANTISSA] / factors[at, DIVISOR]
        scales[to, 1] = scales[a, 1] + factors[at, EXPONENT]
        _normalise(scales, to)
        if what == SCALE:
            continue
        by, own, slot = code[at, BY], slot_of[a], slot_of[to]
        move, dense, sinks = maps[by], kinds[by, DENSE] >= 0, kinds[by, SINKS] == 1
        if not _reach_all(move, starts, images[own], origin, shape):
            scales[to, 0] = 0
            continue
        growth = _growth(move, dense, images[own])
        _lower(arena, patterns, images, own, peaks, growth, room, tiny)
        _settle(images[slot], homes[slot], origin, shape)
        images[slot, _BITS], peaks[slot] = images[own, _BITS], peaks[own] + growth
        work = homes[b]
        done += _pixels_of(images[slot]) * _taps_of(move, dense)
        if dense:
            _move_dense(move, starts, taps, arena, images[own], images[slot], work, tiny)
        else:
            least = tiny if sinks else arena.dtype.type(0)
            _move(move, starts, taps, arena, images[own], images[slot], work, least)
        if _is_outside(images[slot], move):
            # Sums of float32 are added in float64, which has room for them.
            bits = math.log2(_pixels_of(images[slot])) if room[4] > _SINGLE_BIAS else 0.0
            _lower(arena, patterns, images, slot, peaks, bits, room, tiny)
            mantissa = scales[to, 0] * factors[at, REST]
            exponent = scales[to, 1] + factors[at, REST_EXPONENT] + images[slot, _BITS]
            if not _lose(arena, images[slot], move, mantissa, exponent, figures[1:]):
                scales[to, 0] = 0
                continue
            sinks = True
        if not _trim(arena, images[slot]):
            scales[to, 0] = 0
        elif sinks:
            image = images[slot]
            peaks[slot] = _rescale(arena, patterns, image, peaks[slot], 0.0, room, tiny)
    slot = slot_of[result]
    if scales[result, 0] == 0:
        images[slot, _SHAPE] = 0
        return len(code)
    total = _finish(arena, patterns, images, slot, peaks, room, tiny)
    figures[0, 0] = total * scales[result, 0]
    figures[0, 1] = scales[result, 1] + images[slot, _BITS]
    return len(code)


@dataclass(frozen=True, slots=True)
class Walked:
    """What a walk leaves.

    Attributes:
        image: normalised, without blank borders, 3-D; of no pixels where nothing arrived.
        origin: where its first pixel lies on the input.
        mass: (mantissa, exponent) of the sum before it was normalised.
        lost: the same of what fell into padding, weighted with the mean gain to the input.
        stopped: number of the `GLOBAL` instruction that could not be done, or −1.
    """

    image: Floats
    origin: tuple[int, int, int]
    mass: tuple[float, int]
    lost: tuple[float, int]
    stopped: int


# The headroom of `fastrf.engine.scaled`, and how to read exponents from bits: the bits of the
# fraction, and what exponents are counted from, less 1.
_PATTERNS = {np.dtype(np.float32): (np.int32, 23, 126), np.dtype(np.float64): (np.int64, 52, 1022)}


def walk(
    program: tables.Tables,
    entry: int,
    seeds: NDArray[np.int64],
    shares: NDArray[np.float64],
    unit: NDArray[np.int64],
    headroom: tuple[int, int, int],
) -> Walked:
    """See ``fastrf.kernels.spec.KERNELS["walk"]``."""
    dtype = program.taps.dtype
    pattern, digits, bias = _PATTERNS[dtype]
    code, maps, kinds = program.instructions, program.maps, program.kinds
    starts, slot_of = program.starts, program.slot_of
    needs = np.zeros(program.slots, np.int64)
    _measure(code, maps, kinds, starts, slot_of, entry, seeds, unit, needs)
    homes = np.zeros(program.slots, np.int64)
    np.cumsum(needs[:-1], out=homes[1:])
    arena = np.empty(int(needs.sum()), dtype)
    images = np.zeros((program.slots, _SLOT_COLUMNS), np.int64)
    figures = np.zeros((2, 2))
    scales, peaks = np.zeros((slot_of.size, 2)), np.zeros(program.slots)
    at, goes_on = entry, True
    while goes_on:  # Python sees to signals between two calls
        at = _walk(
            code,
            program.factors,
            maps,
            kinds,
            starts,
            program.taps,
            slot_of,
            entry,
            at,
            seeds,
            shares,
            unit,
            program.result,
            homes,
            arena,
            arena.view(pattern),
            (*headroom, digits, bias),
            SMALLEST_NORMAL[dtype],
            scales,
            peaks,
            images,
            figures,
        )
        goes_on = 0 <= at < len(code)
    stopped = -1 - at if at < 0 else -1
    image = images[slot_of[program.result]].tolist()
    first, *steps = image[:_ORIGIN]
    shape = tuple(image[_SHAPE : _SHAPE + 3])
    pixels: Any = np.empty((0, 0, 0), dtype)
    if stopped < 0 and min(shape) > 0:
        strides = [arena.itemsize * step for step in (*steps, 1)]
        pixels = np.ndarray(shape, dtype, arena, first * arena.itemsize, strides).copy()
    origin = tuple(image[_ORIGIN : _ORIGIN + 3])
    mass, lost = ((float(m), int(e)) for m, e in figures)
    return Walked(pixels, origin, mass, lost, int(stopped))
