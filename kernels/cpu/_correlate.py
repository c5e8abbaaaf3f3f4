"""Sums of taps times pixels, row by row: the algorithm of both convolution kernels.

One relation covers a transposed convolution and its adjoint. Output i and source o are joined by
tap m where, on every axis,

    up·o + m·dilation = down·i + lo.

The transposed convolution has ``up = stride, down = 1``; the gather has ``up = 1, down = stride``
with its taps reversed. Along the last axis the outputs fall into ``up`` phases (a polyphase
decomposition), and within one phase every tap is a shifted contiguous row.
"""

from __future__ import annotations

import numpy as np

from ._compile import kernel
from ._layout import SMALLEST_NORMAL, Floats, has_planes, has_rows, memory, target, with_rows

# Elements of an output row that are finished before the next ones are begun: the partial sums stay
# in the first-level cache (8 KiB of float64) while all taps pass over them.
_CHUNK = 1024

Axes = tuple[int, int, int]


@kernel
def _add_one(total, begin, count, y, source, weight, t, offset, step):  # type: ignore[no-untyped-def]
    """Add one shifted row, as the functions below add three and nine, with the same rounding.

    Every position is unsigned: a signed one could be negative, which in Python counts from the end,
    and the test for that keeps LLVM from vectorising.
    """
    a, wa = np.uint64(source[t] + offset), weight[t]
    if step == 1:  # a loop of its own, because only unit steps vectorise
        for i in range(count):
            total[begin + i] += wa * y[a + i]
    else:
        for i in range(count):
            total[begin + i] += wa * y[a + i * step]


@kernel
def _add_three(total, begin, count, y, source, weight, t, offset, step):  # type: ignore[no-untyped-def]
    a, wa = np.uint64(source[t] + offset), weight[t]
    b, wb = np.uint64(source[t + 1] + offset), weight[t + 1]
    c, wc = np.uint64(source[t + 2] + offset), weight[t + 2]
    if step == 1:
        for i in range(count):
            v = total[begin + i]
            v += wa * y[a + i]
            v += wb * y[b + i]
            v += wc * y[c + i]
            total[begin + i] = v
    else:
        for i in range(count):
            at = i * step
            v = total[begin + i]
            v += wa * y[a + at]
            v += wb * y[b + at]
            v += wc * y[c + at]
            total[begin + i] = v


@kernel
def _add_nine(total, begin, count, y, source, weight, t, offset, step):  # type: ignore[no-untyped-def]
    a, wa = np.uint64(source[t] + offset), weight[t]
    b, wb = np.uint64(source[t + 1] + offset), weight[t + 1]
    c, wc = np.uint64(source[t + 2] + offset), weight[t + 2]
    d, wd = np.uint64(source[t + 3] + offset), weight[t + 3]
    e, we = np.uint64(source[t + 4] + offset), weight[t + 4]
    f, wf = np.uint64(source[t + 5] + offset), weight[t + 5]
    g, wg = np.uint64(source[t + 6] + offset), weight[t + 6]
    h, wh = np.uint64(source[t + 7] + offset), weight[t + 7]
    k, wk = np.uint64(source[t + 8] + offset), weight[t + 8]
    if step == 1:
        for i in range(count):
            v = total[begin + i]
            v += wa * y[a + i]
            v += wb * y[b + i]
            v += wc * y[c + i]
            v += wd * y[d + i]
            v += we * y[e + i]
            v += wf * y[f + i]
            v += wg * y[g + i]
            v += wh * y[h + i]
            v += wk * y[k + i]
            total[begin + i] = v
    else:
        for i in range(count):
            at = i * step
            v = total[begin + i]
            v += wa * y[a + at]
            v += wb * y[b + at]
            v += wc * y[c + at]
            v += wd * y[d + at]
            v += we * y[e + at]
            v += wf * y[f + at]
            v += wg * y[g + at]
            v += wh * y[h + at]
            v += wk * y[k + at]
            total[begin + i] = v


@kernel
def _store(total, count, out, a, step, tiny):  # type: ignore[no-untyped-def]
    if step == 1:
        for i in range(count):
            v = total[i]
            out[a + i] = 0 if v < tiny else v
    else:
        for i in range(count):
            v = total[i]
            out[a + i * step] = 0 if v < tiny else v


@kernel
def _source(i, m, up, down, dilation, lo, size):  # type: ignore[no-untyped-def]
    """The o that meets output i at tap m on one axis, or −1."""
    scaled = down * i + lo - m * dilation
    if up > 1:  # divisions are slow enough to be seen in short rows
        if scaled % up != 0:
            return -1
        scaled //= up
    return scaled if 0 <= scaled < size else -1


@kernel
def _correlate(  # type: ignore[no-untyped-def]
    y, y_strides, y_shape, taps, up, down, dilation, lo, out, out_strides, out_shape, tiny
):
    k0, k1, k2 = taps.shape
    weights = taps.ravel()
    up2, step = up[2], down[2]
    columns = out_shape[2]

    # The last axis, the same for every row. In phase r, output q·up + r meets source q·step + shift
    # for q in [begin, end).
    phases = min(up2, columns)
    first = np.zeros(phases + 1, np.int64)
    tap = np.empty(k2, np.int64)
    shift = np.empty(k2, np.int64)
    begin = np.empty(k2, np.int64)
    end = np.empty(k2, np.int64)
    n = 0
    for r in range(phases):
        for m in range(k2):
            scaled = r * step + lo[2] - m * dilation[2]
            if scaled % up2 == 0:
                tap[n] = m
                shift[n] = scaled // up2
                begin[n] = max(0, -(shift[n] // step))
                end[n] = -((shift[n] - y_shape[2]) // step)
                n += 1
        first[r + 1] = n

    row_source = np.empty(k0 * k1, np.int64)
    row_tap = np.empty(k0 * k1, np.int64)
    source = np.empty(weights.size, np.int64)
    weight = np.empty(weights.size, taps.dtype)
    term_begin = np.empty(weights.size, np.int64)
    term_end = np.empty(weights.size, np.int64)
    total = np.empty(min(columns, _CHUNK), out.dtype)

    for i0 in range(out_shape[0]):
        for i1 in range(out_shape[1]):
            rows = 0
            for m0 in range(k0):
                o0 = _source(i0, m0, up[0], down[0], dilation[0], lo[0], y_shape[0])
                if o0 < 0:
                    continue
                for m1 in range(k1):
                    o1 = _source(i1, m1, up[1], down[1], dilation[1], lo[1], y_shape[1])
                    if o1 >= 0:
                        row_source[rows] = o0 * y_strides[0] + o1 * y_strides[1]
                        row_tap[rows] = (m0 * k1 + m1) * k2
                        rows += 1

            row_out = i0 * out_strides[0] + i1 * out_strides[1]
            for r in range(phases):
                terms = 0
                for row in range(rows):
                    for j in range(first[r], first[r + 1]):
                        source[terms] = row_source[row] + shift[j]
                        weight[terms] = weights[row_tap[row] + tap[j]]
                        term_begin[terms] = begin[j]
                        term_end[terms] = end[j]
                        terms += 1

                count = (columns - r + up2 - 1) // up2
                for q0 in range(0, count, _CHUNK):
                    q1 = min(q0 + _CHUNK, count)
                    total[: q1 - q0] = 0
                    t = 0
                    while t < terms:
                        size = 9 if t + 9 <= terms else 3 if t + 3 <= terms else 1
                        # The columns that all taps of the group reach, and their edges one by one.
                        inner0, inner1 = q0, q1
                        for u in range(t, t + size):
                            inner0 = max(inner0, term_begin[u])
                            inner1 = min(inner1, term_end[u])
                        if size == 1 or inner1 <= inner0:
                            inner0 = inner1 = q1
                        for u in range(t, t + size):
                            for edge0, edge1 in ((q0, inner0), (inner1, q1)):
                                a0, a1 = max(edge0, term_begin[u]), min(edge1, term_end[u])
                                if a0 < a1:
                                    _add_one(
                                        total,
                                        np.uint64(a0 - q0),
                                        np.uint64(a1 - a0),
                                        y,
                                        source,
                                        weight,
                                        u,
                                        a0 * step,
                                        np.uint64(step),
                                    )
                        if inner0 < inner1:
                            add = (
                                total,
                                np.uint64(inner0 - q0),
                                np.uint64(inner1 - inner0),
                                y,
                                source,
                                weight,
                                t,
                                inner0 * step,
                                np.uint64(step),
                            )
                            if size == 9:
                                _add_nine(*add)
                            else:
                                _add_three(*add)
                        t += size
                    _store(
                        total,
                        np.uint64(q1 - q0),
                        out,
                        np.uint64(row_out + r + q0 * up2),
                        np.uint64(up2),
                        tiny,
                    )


def _merge(
    y: Floats, taps: Floats, up: Axes, down: Axes, dilation: Axes, lo: Axes, out: Floats
) -> tuple[Floats, Floats, Axes, Axes, Axes, Axes, Floats]:
    """Fold the last axis into the middle one where no tap acts on it and memory allows.

    Rows of one or a few elements would leave the vector units idle; over the folded axis the same
    taps are a convolution whose dilation is counted in elements.
    """
    (a, b, c), (n0, n1, n2) = y.shape, out.shape
    idle = taps.shape[2] == up[2] == down[2] == 1 and lo[2] == 0 and c == n2
    unstrided = up[1] == down[1] == 1
    if not (idle and (c == 1 or unstrided) and has_planes(y) and has_planes(out)):
        return y, taps, up, down, dilation, lo, out
    return (
        y.reshape(a, 1, b * c),
        taps.reshape(taps.shape[0], 1, taps.shape[1]),
        (up[0], 1, up[1]),
        (down[0], 1, down[1]),
        (dilation[0], 1, dilation[1] * c),
        (lo[0], 0, lo[1] * c),
        out.reshape(n0, 1, n1 * n2),
    )


def correlate(
    y: Floats, taps: Floats, up: Axes, down: Axes, dilation: Axes, lo: Axes, out: Floats
) -> None:
    """Fill ``out[i] = Σ taps[m]·y[o]`` over all o, m with ``up·o + m·dilation = down·i + lo``.

    On every axis at least one of ``up`` and ``down`` is 1. ``y``, ``taps`` and ``out`` are 3-D, of
    one float dtype and any layout; ``out`` does not overlap the others.
    """
    if y.size == 0 or out.size == 0 or taps.size == 0:
        out[...] = 0
        return
    with target(out, has_rows(out)) as with_rows_out:
        y, taps, up, down, dilation, lo, to = _merge(
            with_rows(y), taps, up, down, dilation, lo, with_rows_out
        )
        source, *y_strides = memory(y)
        sink, *out_strides = memory(to)
        _correlate(
            source,
            tuple(y_strides),
            y.shape,
            np.ascontiguousarray(taps),
            up,
            down,
            dilation,
            lo,
            sink,
            tuple(out_strides),
            to.shape,
            SMALLEST_NORMAL[out.dtype],
        )
