"""Runs of layers of equal taps, many layers in one sum.

``count`` layers of k equal taps along an axis are one sum, whose taps are the coefficients of
(1 + z + … + z^(k−1))^count. It has as many operations as the layers one by one, count·(k−1) + 1,
and no loads and stores in between. The coefficients are integers that the dtype holds exactly and
begin with 1, so the sum has no more roundings than the layers one by one, count·(k−1); and none is
below 1, so that normal numbers never give a subnormal one.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._layout import SMALLEST_NORMAL, Floats, check_floats, check_positive, per_axis
from ._runs import Axes, box_sweep, check_narrow, run, side_by_side

Integers = Sequence[int] | NDArray[np.int64]

# A sum grows up to so many taps: beyond, memory traffic no longer matters, and the rows that a tile
# reads in addition cost more. Measured with bench/bench_runs.py (test_box_run), 17 to 65, on one
# core of an Intel Xeon (AVX-512, 48 KiB and 2 MiB of cache); so were the tiles.
_TAPS = 65
_TAPS_VOLUME = 33
# Rows of a tile; what is summed along its last axis fits the second-level cache (1.1 MB).
_ROWS = 1024
_VOLUME_TILE = (64, 64)


@cache
def _coefficients(k: int, layers: int) -> tuple[int, ...]:
    """Of (1 + z + … + z^(k−1))^layers."""
    row = [1]
    for _ in range(layers):
        row = [sum(row[max(0, i - k + 1) : i + 1]) for i in range(len(row) + k - 1)]
    return tuple(row)


@cache
def _taps(k: int, layers: int, dtype: np.dtype[Any]) -> Floats:
    return np.array(_coefficients(k, layers), dtype)


@cache
def box_depth(k: Axes, dtype: np.dtype[Any]) -> int:
    """Layers that one sweep takes: a power of two, as the loops over taps are unrolled by one."""
    exact = 2 ** (np.finfo(dtype).nmant + 1)
    most = _TAPS if k[0] == 1 else _TAPS_VOLUME
    depth = 1
    while 2 * depth * max(1, max(k) - 1) < most and all(
        max(_coefficients(n, 2 * depth)) <= exact for n in k
    ):
        depth *= 2
    return depth


def _sweep(
    k: Axes,
    dtype: np.dtype[Any],
    y: Floats,
    steps: Axes,
    shape: Axes,
    layers: int,
    first: Axes,
    out: Floats,
    out_steps: Axes,
    out_shape: Axes,
) -> None:
    planes, rows = _VOLUME_TILE if k[0] > 1 else (1, _ROWS)
    tile = (min(planes, out_shape[0]), min(rows, out_shape[1]))
    taps = (_taps(n, layers, dtype) for n in k)
    box_sweep(
        y, steps, shape, *taps, first, out, out_steps, out_shape, tile, SMALLEST_NORMAL[dtype]
    )


def box_run(y: Floats, k: Integers, count: int, lo: Integers, out: Floats) -> None:
    """See ``fastrf.kernels.spec.KERNELS["box_run"]``."""
    check_floats(y=y, out=out)
    sizes, offset = per_axis(k), per_axis(lo)
    check_positive(k=sizes, count=count)
    check_narrow("k", sizes, "transposed_box")
    depth = box_depth(sizes, out.dtype)
    with side_by_side(y, sizes, count, offset, out) as (source, sizes, offset, sink):
        run(source, sizes, count, depth, offset, sink, partial(_sweep, sizes, out.dtype))
