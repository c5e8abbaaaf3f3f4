"""Runs of layers of the same general taps, several layers a pass through memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._layout import SMALLEST_NORMAL, Floats, check_floats, check_positive, per_axis
from ._runs import Axes, check_narrow, conv_sweep, run, side_by_side

Integers = Sequence[int] | NDArray[np.int64]

# Rows or columns that the layers of a sweep use up between them; and the planes of a tile, and the
# rows by which its window moves. Measured with bench/bench_runs.py (test_conv_run) on one core of a
# Sapphire Rapids Xeon (48 KiB and 2 MiB of cache); see there for what bounds them.
_BORDER = 64
_TILE = (1, 64)
_VOLUME_BORDER = 8
_VOLUME_TILE = (32, 16)


def _limits(taps: Floats, layers: int) -> tuple[Any, Any]:
    """What a layer keeps, and from where on positive sources leave all of ``layers`` layers above.

    A layer keeps results that have no subnormal product with any tap: a sum that passes through
    subnormal numbers takes a hundred times as long. Taps of no weight (below eps²) do not count. A
    positive result is at least the least source times the least tap, of whatever weight, but for
    roundings, which together take less than half of it.
    """
    limits = np.finfo(taps.dtype)
    keeps = SMALLEST_NORMAL[taps.dtype] / taps.min(where=taps > limits.eps**2, initial=1)
    bits = math.log2(keeps) - layers * math.log2(taps.min(where=taps > 0, initial=1)) + 1
    safe = 2.0 ** math.ceil(bits) if bits <= limits.maxexp - 1 else math.inf
    return keeps, taps.dtype.type(safe)


def _sweep(
    taps: Floats,
    k: Axes,
    y: Floats,
    steps: Axes,
    shape: Axes,
    layers: int,
    first: Axes,
    out: Floats,
    out_steps: Axes,
    out_shape: Axes,
) -> None:
    planes, rows = _TILE if k[0] == 1 else _VOLUME_TILE
    tile = (min(planes, out_shape[0]), rows)
    limits = _limits(taps, layers)
    conv_sweep(y, steps, shape, taps, k, layers, first, out, out_steps, out_shape, tile, *limits)


def conv_run(y: Floats, taps: Floats, count: int, lo: Integers, out: Floats) -> None:
    """See ``fastrf.kernels.spec.KERNELS["conv_run"]``."""
    check_floats(y=y, taps=taps, out=out)
    k, offset = per_axis(taps.shape), per_axis(lo)
    check_positive(taps=k, count=count)
    check_narrow("taps.shape", k, "transposed_conv")
    border = _BORDER if k[0] == 1 else _VOLUME_BORDER
    depth = max(1, border // max(1, max(k) - 1))
    # Sources after the result's position, so the taps backwards; the middle axis last.
    flat = np.ascontiguousarray(taps[::-1, ::-1, ::-1].transpose(0, 2, 1)).reshape(-1)
    with side_by_side(y, k, count, offset, out) as (source, k, offset, sink):
        run(source, k, count, depth, offset, sink, partial(_sweep, flat, k))
