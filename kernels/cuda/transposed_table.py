"""The transposed convolution along one axis with taps of their own for every source."""

from __future__ import annotations

import numpy as np
from fastrf.kernels._checks import Floats, check_floats, check_same
from numpy.typing import NDArray

from ._geometry import (
    beside,
    elements,
    empty,
    integers,
    one_each,
    readable,
    steps,
    suffix,
    writable,
)
from ._module import launch

# Threads that look for the sources of one target.
_SEARCHERS = 128
_MOST = 65_535


def transposed_table(y: Floats, starts: NDArray[np.int64], taps: Floats, out: Floats) -> None:
    """See ``fastrf.kernels.spec.KERNELS["transposed_table"]``."""
    check_floats(y=y, taps=taps, out=out)
    check_same("first and last axis of y and out", y.shape[::2], out.shape[::2])
    check_same("lengths of y, starts and taps", (y.shape[1],) * 2, (len(starts), len(taps)))
    if y.size == 0 or taps.size == 0 or out.size == 0:
        out[...] = 0
        return
    first = beside(starts, y, np.int64)
    n, rows, count = y.shape[1], out.shape[1], taps.shape[1]
    reach = empty(y, (2 * rows,), np.int64)
    threads = min(_SEARCHERS, 1 << max(0, n - 1).bit_length())
    launch(
        "transposed_table.cu",
        "transposed_table_reach_i64",
        (min(rows, _MOST), 1, 1),
        (threads, 1, 1),
        [first, *integers((n, count)), reach, np.int64(rows)],
        2 * threads * reach.itemsize,
    )
    y = readable(y)
    with writable(out) as to:
        launch(
            "transposed_table.cu",
            f"transposed_table_{suffix(out.dtype)}",
            *one_each(out.shape),
            [y, *steps(y), first, beside(taps, y), np.int64(count), reach, *elements(to)],
        )
