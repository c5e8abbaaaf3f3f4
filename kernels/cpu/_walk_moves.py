"""One transposed map of a walk, from the rows of one image to those of another.

One primitive, `_combine`, does the arithmetic: weighted sums of contiguous rows, which LLVM turns
into vector code. Rows are first summed along the outer axes into one padded line, then along the
last axis from that line into the result.
"""

from __future__ import annotations

import numpy as np
from fastrf.kernels.tables import (
    DILATION,
    EVERYTHING,
    KERNEL,
    KIND,
    LO,
    SIZE,
    SPREAD,
    STRIDE,
    TABLE,
    TAPS,
    WINDOW,
)

from ._compile import kernel
from ._walk_slots import OFFSET, ORIGIN, SHAPE, STEP

# More equal taps than this are summed by doubling windows, which costs their logarithm
# (bench/bench_small.py, a Sapphire Rapids Xeon with 2 cores).
_LONG = 6


# --- rows -----------------------------------------------------------------------------------


@kernel
def clear(y, at, n):  # type: ignore[no-untyped-def]
    """Positions and lengths are unsigned here: signed ones could count from the end, and the test
    for that keeps LLVM from making vectors. A slice would do, but counts its references."""
    begin = np.uint64(at)
    for j in range(np.uint64(n)):
        y[begin + j] = 0


@kernel
def _copy(y, at, n, out, to):  # type: ignore[no-untyped-def]
    first, begin = np.uint64(at), np.uint64(to)
    for j in range(np.uint64(n)):
        out[begin + j] = y[first + j]


@kernel
def _flush(y, at, n, tiny):  # type: ignore[no-untyped-def]
    begin = np.uint64(at)
    for j in range(np.uint64(n)):
        v = y[begin + j]
        y[begin + j] = 0 if v < tiny else v


@kernel
def _combine(y, at, weights, first, count, out, to, n):  # type: ignore[no-untyped-def]
    """``out[to + j] = Σ_{e<count} weights[first + e]·y[at[first + e] + j]`` for j < n."""
    if count <= 0:
        clear(out, to, n)
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


@kernel
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


@kernel
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


@kernel
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
        clear(begin, 0, size)
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


@kernel
def _weight(taps, at, tap):  # type: ignore[no-untyped-def]
    return taps[at + tap] if at >= 0 else taps.dtype.type(1)


# --- one transposed map ---------------------------------------------------------------------


@kernel
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


@kernel
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
        clear(out, to, n)
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


@kernel
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


@kernel
def _is_pointwise(axis):  # type: ignore[no-untyped-def]
    return axis[KIND] == WINDOW and axis[KERNEL] == 1 and axis[STRIDE] == 1


@kernel
def _is_long(axis):  # type: ignore[no-untyped-def]
    one = axis[KIND] == WINDOW and axis[STRIDE] == 1 and axis[TAPS] < 0
    return one and axis[KERNEL] > _LONG


@kernel
def padding(axis):  # type: ignore[no-untyped-def]
    """Zeros that `_across` reads before and after a row."""
    return axis[DILATION] * (axis[KERNEL] - 1) + axis[STRIDE] + 1


@kernel
def move_dense(move, starts, taps, arena, source, result, work, tiny):  # type: ignore[no-untyped-def]
    """Taps that are no product."""
    target = result[OFFSET]
    first, second, last = move[0], move[1], move[2]
    n0, n1, n2 = source[SHAPE], source[SHAPE + 1], source[SHAPE + 2]
    pad = padding(last)
    pitch = n2 + 2 * pad
    for i in range(n0):
        for j in range(n1):
            to = work + (i * n1 + j) * pitch
            clear(arena, to, pitch)
            _copy(
                arena,
                source[OFFSET] + i * source[STEP] + j * source[STEP + 1],
                n2,
                arena,
                to + pad,
            )
    begin0, end0, y0, tap0 = _connections(
        first, starts, source[ORIGIN], n0, result[ORIGIN], result[SHAPE]
    )
    begin1, end1, y1, tap1 = _connections(
        second, starts, source[ORIGIN + 1], n1, result[ORIGIN + 1], result[SHAPE + 1]
    )
    k1, k2 = second[KERNEL], last[KERNEL]
    at = np.empty(first[KERNEL] * k1, np.int64)
    base = np.empty(first[KERNEL] * k1, np.int64)
    begin2, back, tap2 = _phases(last)
    places, weights = np.empty(at.size * k2, np.int64), np.empty(at.size * k2, arena.dtype)
    phase = np.empty(result[SHAPE + 2], arena.dtype)
    shift = result[ORIGIN + 2] * last[STRIDE] - last[LO] - source[ORIGIN + 2]
    for i in range(result[SHAPE]):
        for j in range(result[SHAPE + 1]):
            rows = np.int64(0)
            for e in range(begin0[i], end0[i]):
                for f in range(begin1[j], end1[j]):
                    at[rows] = work + (y0[e] * n1 + y1[f]) * pitch + pad
                    base[rows] = last[TAPS] + (tap0[e] * k1 + tap1[f]) * k2
                    rows += 1
            to = target + (i * result[SHAPE + 1] + j) * result[SHAPE + 2]
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
                result[SHAPE + 2],
                phase,
            )
            _flush(arena, to, result[SHAPE + 2], tiny)


@kernel
def move_image(move, starts, taps, arena, source, result, work, tiny):  # type: ignore[no-untyped-def]
    """Axis by axis; the last two in one pass."""
    target = result[OFFSET]
    first, second, last = move[0], move[1], move[2]
    n0, n1, n2 = source[SHAPE], source[SHAPE + 1], source[SHAPE + 2]
    offset, step0, step1 = source[OFFSET], source[STEP], source[STEP + 1]
    if not _is_pointwise(first):
        begin, end, y, tap = _connections(
            first, starts, source[ORIGIN], n0, result[ORIGIN], result[SHAPE]
        )
        at, weights = np.empty(y.size, np.int64), np.empty(y.size, arena.dtype)
        for i in range(result[SHAPE]):
            for j in range(n1):
                for e in range(begin[i], end[i]):
                    at[e] = offset + y[e] * step0 + j * step1
                    weights[e] = _weight(taps, first[TAPS], tap[e])
                to = work + (i * n1 + j) * n2
                count = end[i] - begin[i]
                _combine(arena, at, weights, begin[i], count, arena, to, n2)
                _flush(arena, to, n2, tiny)
        offset, step0, step1 = work, n1 * n2, n2
    n = result[SHAPE + 2]
    begin, end, y, tap = _connections(
        second, starts, source[ORIGIN + 1], n1, result[ORIGIN + 1], result[SHAPE + 1]
    )
    at, weights = np.empty(y.size, np.int64), np.empty(y.size, arena.dtype)
    # The line between the axes, with zeros at both ends, and room for two more.
    pointwise, long = _is_pointwise(last), _is_long(last)
    sparse = last[KIND] == TABLE or last[KIND] == EVERYTHING
    pad = 0 if pointwise or sparse else padding(last)
    size = n2 + 2 * pad
    line = np.empty(size * (3 if long else 1), arena.dtype)
    clear(line, 0, line.size)
    phase = np.empty(n if last[STRIDE] > 1 else 0, arena.dtype)
    begin2, end2, y2, tap2 = begin, end, y, tap
    if sparse:
        begin2, end2, y2, tap2 = _connections(
            last, starts, source[ORIGIN + 2], n2, result[ORIGIN + 2], n
        )
    shift = result[ORIGIN + 2] * last[STRIDE] - last[LO] - source[ORIGIN + 2]
    here, base, one = np.empty(1, np.int64), np.empty(1, np.int64), np.int64(1)
    here[0], base[0] = pad, last[TAPS]
    parts, back, tap_of = _phases(last)
    places, across = np.empty(back.size, np.int64), np.empty(back.size, arena.dtype)
    # Long sums of rows go by doubling, too, over a plane in one line.
    tall = _is_long(second)
    above = second[DILATION] * (second[KERNEL] - 1)
    length = (n1 + 2 * above) * n2
    plane = np.empty(3 * length if tall else 0, arena.dtype)
    clear(plane, 0, plane.size)
    middle, at_middle = (arena, target) if pointwise else (line, pad)
    for p in range(result[SHAPE]):
        tops = np.int64(0)
        if tall:
            for j in range(n1):
                start = offset + p * step0 + j * step1
                _copy(arena, start, n2, plane, (above + j) * n2)
            tops = _doubled(plane, length, second[KERNEL], second[DILATION] * n2) + above * n2
        for i in range(result[SHAPE + 1]):
            to = target + (p * result[SHAPE + 1] + i) * n
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


@kernel
def reach_all(move, starts, image, origin, shape):  # type: ignore[no-untyped-def]
    """The window that a map's axes reach, into origin and shape; False where it is empty."""
    found = True
    for axis in range(3):
        first, n = image[ORIGIN + axis], image[SHAPE + axis]
        origin[axis], shape[axis] = _reach(move[axis], starts, first, n)
        found = found and shape[axis] > 0
    return found
