"""A block of a sum of separable terms: a matrix product of nonnegative numbers."""

from __future__ import annotations

import numpy as np

from ._compile import kernel
from ._layout import (
    SMALLEST_NORMAL,
    Floats,
    check_floats,
    check_same,
    has_rows,
    memory,
    target,
    with_rows,
)

# Columns worked on at a time: eight rows of x and one of out stay in the first-level cache.
_COLUMNS = 256


@kernel
def _add_eight(out, c0, c1, c2, c3, c4, c5, c6, c7, x, step):  # type: ignore[no-untyped-def]
    n = out.size
    x0, x1 = x[:n], x[step : step + n]
    x2, x3 = x[2 * step : 2 * step + n], x[3 * step : 3 * step + n]
    x4, x5 = x[4 * step : 4 * step + n], x[5 * step : 5 * step + n]
    x6, x7 = x[6 * step : 6 * step + n], x[7 * step : 7 * step + n]
    for j in range(n):
        out[j] += (
            (c0 * x0[j] + c1 * x1[j])
            + (c2 * x2[j] + c3 * x3[j])
            + ((c4 * x4[j] + c5 * x5[j]) + (c6 * x6[j] + c7 * x7[j]))
        )


@kernel
def _add_one(out, c0, x):  # type: ignore[no-untyped-def]
    for j in range(out.size):
        out[j] += c0 * x[j]


@kernel
def _sum_of_terms(weights, y, y_step, x, x_step, scale, out, out_step, shape, tiny):  # type: ignore[no-untyped-def]
    rows, columns = shape
    terms = weights.size
    zero = out.dtype.type(0)
    c = np.empty((8, rows), out.dtype)
    for i in range(rows):
        out[i * out_step : i * out_step + columns] = zero
    for t in range(0, terms, 8):
        few = min(8, terms - t)
        for u in range(few):
            w = weights[t + u]
            for i in range(rows):
                v = w * y[(t + u) * y_step + i]
                c[u, i] = zero if v < tiny else v
        for j in range(0, columns, _COLUMNS):
            n = min(_COLUMNS, columns - j)
            for i in range(rows):
                to = out[i * out_step + j : i * out_step + j + n]
                at = t * x_step + j
                if few == 8:
                    _add_eight(
                        to,
                        c[0, i],
                        c[1, i],
                        c[2, i],
                        c[3, i],
                        c[4, i],
                        c[5, i],
                        c[6, i],
                        c[7, i],
                        x[at:],
                        x_step,
                    )
                else:
                    for u in range(few):
                        _add_one(to, c[u, i], x[at + u * x_step : at + u * x_step + n])
    for i in range(rows):
        to = out[i * out_step : i * out_step + columns]
        for j in range(columns):
            v = to[j] * scale
            to[j] = zero if v < tiny else v


def sum_of_terms(weights: Floats, y: Floats, x: Floats, exponent: int, out: Floats) -> None:
    """See ``fastrf.kernels.spec.KERNELS["sum_of_terms"]``."""
    check_floats(weights=weights, y=y, x=x, out=out)
    check_same("terms of weights, y and x", (len(weights),) * 2, (len(y), len(x)))
    check_same("columns of y and x and shape of out", (y.shape[1], x.shape[1]), out.shape)
    if out.size == 0:
        return
    rows = out[None]
    with target(rows, has_rows(rows)) as whole:
        source, _, y_step = memory(with_rows(y[None]))
        line, _, x_step = memory(with_rows(x[None]))
        sink, _, out_step = memory(whole)
        _sum_of_terms(
            np.ascontiguousarray(weights),
            source,
            y_step,
            line,
            x_step,
            out.dtype.type(2.0**exponent),
            sink,
            out_step,
            out.shape,
            SMALLEST_NORMAL[out.dtype],
        )
