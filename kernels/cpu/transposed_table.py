"""The transposed convolution along one axis with taps of their own for every source."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ._compile import kernel
from ._layout import (
    SMALLEST_NORMAL,
    Floats,
    check_floats,
    check_same,
    has_planes,
    memory,
    target,
    with_planes,
)

# Columns that are finished before the next ones are begun: the few rows that neighbouring sources
# share stay in the first-level cache.
_CHUNK = 1024


@kernel
def _transposed_table(  # type: ignore[no-untyped-def]
    y, y_step, n, width, starts, taps, out, out_step, n_out, planes, tiny
):
    count = taps.shape[1]
    for p in range(planes):
        to = out[p * out_step : p * out_step + n_out * width]
        to[:] = 0
        if width == 1:
            for o in range(n):
                value = y[p * y_step + o]
                start = starts[o]
                for m in range(max(0, -start), min(count, n_out - start)):
                    to[start + m] += taps[o, m] * value
        else:
            for column in range(0, width, _CHUNK):
                w = min(_CHUNK, width - column)
                for o in range(n):
                    at = p * y_step + o * width + column
                    source = y[at : at + w]
                    start = starts[o]
                    for m in range(max(0, -start), min(count, n_out - start)):
                        tap = taps[o, m]
                        at = (start + m) * width + column
                        row = to[at : at + w]
                        for q in range(w):
                            row[q] += tap * source[q]
        for x in range(to.size):
            v = to[x]
            to[x] = 0 if v < tiny else v


def transposed_table(y: Floats, starts: NDArray[np.int64], taps: Floats, out: Floats) -> None:
    """See ``fastrf.kernels.spec.KERNELS["transposed_table"]``."""
    check_floats(y=y, taps=taps, out=out)
    check_same("first and last axis of y and out", y.shape[::2], out.shape[::2])
    check_same("lengths of y, starts and taps", (y.shape[1],) * 2, (len(starts), len(taps)))
    if y.size == 0 or out.size == 0:
        out[...] = 0
        return
    with target(out, has_planes(out)) as planes_out:
        source, y_step, _ = memory(with_planes(y))
        sink, out_step, _ = memory(planes_out)
        planes, n, width = y.shape
        _transposed_table(
            source,
            y_step,
            n,
            width,
            np.ascontiguousarray(starts, np.int64),
            np.ascontiguousarray(taps),
            sink,
            out_step,
            out.shape[1],
            planes,
            SMALLEST_NORMAL[out.dtype],
        )
