"""Runs of layers of the same general taps, several layers a pass through memory."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ._layout import SMALLEST_NORMAL, Floats, check_floats, check_positive, per_axis
from ._runs import Axes, check_narrow, conv_sweep, run

Integers = Sequence[int] | NDArray[np.int64]

# Rows or columns that the layers of a sweep use up between them; and the planes of a tile, and the
# rows by which it advances. Measured with bench/bench_runs.py (test_conv_run) on one core of an
# Intel Xeon (AVX-512, 48 KiB and 2 MiB of cache).
_BORDER = 32
_TILE = (1, 128)
_VOLUME_BORDER = 8
_VOLUME_TILE = (32, 16)


def _least(taps: Floats) -> Any:
    """What a layer keeps: results that have no subnormal product with any tap.

    A sum that passes through subnormal numbers takes a hundred times as long. Taps of no weight
    (below eps²) do not count.
    """
    limits = np.finfo(taps.dtype)
    smallest = taps.min(where=taps > limits.eps**2, initial=1)
    return SMALLEST_NORMAL[taps.dtype] / smallest


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
    least = _least(taps)
    conv_sweep(y, steps, shape, taps, k, layers, first, out, out_steps, out_shape, tile, least)


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
    run(y, k, count, depth, offset, out, partial(_sweep, flat, k))
