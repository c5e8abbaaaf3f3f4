"""The outer product of two profiles: the image of a chain of separable layers."""

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
)


@kernel
def _outer_product(y, x, out, stride, tiny):  # type: ignore[no-untyped-def]
    """Rows of ``out`` lie ``stride`` elements apart.

    A product below the smallest normal number costs the processor a hundred times one above it,
    even where it is 0 in the end. So each row is computed only from the first to the last element
    of x that can give more; with a profile that falls towards its ends, that is all of them. From
    one row of a profile to the next these places move little, so they are walked to.
    """
    n = x.size
    zero = out.dtype.type(0)
    rise, fall = np.empty_like(x), np.empty_like(x)  # largest element so far, from either end
    rise[0], fall[n - 1] = x[0], x[n - 1]
    for j in range(1, n):
        rise[j] = x[j] if x[j] > rise[j - 1] else rise[j - 1]
        fall[n - 1 - j] = x[n - 1 - j] if x[n - 1 - j] > fall[n - j] else fall[n - j]
    first, last = 0, n
    for i in range(y.size):
        row = out[i * stride : i * stride + n]
        value = y[i]
        # The quotient's rounding may let one subnormal product in, which the loop then drops.
        limit = tiny / value if value > tiny else out.dtype.type(1) + tiny
        if value != value:
            limit = zero
        while first > 0 and rise[first - 1] >= limit:
            first -= 1
        while first < n and rise[first] < limit:
            first += 1
        while last < n and fall[last] >= limit:
            last += 1
        while last > 0 and fall[last - 1] < limit:
            last -= 1
        row[:first] = zero
        for j in range(first, last):
            v = value * x[j]
            row[j] = zero if v < tiny else v
        row[max(first, last) :] = zero


def outer_product(y: Floats, x: Floats, out: Floats) -> None:
    """See ``fastrf.kernels.spec.KERNELS["outer_product"]``."""
    check_floats(y=y, x=x, out=out)
    check_same("lengths of y and x and shape of out", (*y.shape, *x.shape), out.shape)
    if out.size == 0:
        return
    rows = out[None]
    with target(rows, has_rows(rows)) as whole:
        flat, _, stride = memory(whole)
        _outer_product(
            np.ascontiguousarray(y),
            np.ascontiguousarray(x),
            flat,
            stride,
            SMALLEST_NORMAL[out.dtype],
        )
