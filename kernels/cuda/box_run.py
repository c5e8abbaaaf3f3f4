"""Runs of layers of equal taps, many layers in one sum."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from fastrf.kernels._checks import Floats, check_floats, check_positive, per_axis
from fastrf.kernels.cpu._runs import Axes, check_narrow
from numpy.typing import NDArray

from ._geometry import beside, blocks, elements, empty, suffix
from ._module import Properties, launch, properties
from ._runs import marches, run

Integers = Sequence[int] | NDArray[np.int64]

# Results that a thread makes at a time, as in the source.
_EACH = 9
# A sum grows up to so many taps. In float64, 32 layers of 3 taps: memory then needs a small part of
# the time of the arithmetic, and two blocks still share a processor's memory.
_TAPS = 65
# Patches of EACH results that a block makes in one step; the first that leaves room for two blocks
# a processor is taken, otherwise the first that leaves room for one.
_PATCHES = (288, 144, 72, 36, 18, 9, 1)
_STEP = 18  # rows
_MOST = 65_535  # blocks along y and z
_RESERVED = 1024  # bytes of shared memory that every block needs beside its own


class _Tile(NamedTuple):
    """A block's geometry: groups of EACH columns, rows a step, blocks a processor, bytes."""

    groups: int
    height: int
    resident: int
    shared: int


@cache
def _coefficients(k: int, layers: int) -> NDArray[np.float64]:
    """Of (1 + z + … + z^(k−1))^layers; whole numbers, exact below 2^53."""
    row = np.ones(1)
    for _ in range(layers):
        row = np.convolve(row, np.ones(k))
    return row


@cache
def box_depth(k: Axes, dtype: np.dtype[Any]) -> int:
    """Layers that one sweep takes: as many as have coefficients that the dtype holds exactly."""
    exact = 2 ** (np.finfo(dtype).nmant + 1)
    widest = max(k)
    depth = 1
    while (depth + 1) * (widest - 1) < _TAPS and _coefficients(widest, depth + 1).max() <= exact:
        depth += 1
        if widest == 1:
            return _TAPS  # nothing happens in any number of layers
    return depth


def _tile(
    t1: int, t2: int, rows: int, columns: int, itemsize: int, device: Properties
) -> _Tile | None:
    """The geometry of sums over t1 rows and t2 columns; None where they leave too little room."""
    for resident in (2, 1):
        room = min(device.shared_per_block, device.shared_per_processor // resident - _RESERVED)
        for patches in _PATCHES:
            height = min(_STEP, rows, patches)
            groups = min(blocks(columns, _EACH), max(1, patches // height))
            width = groups * _EACH
            pitch = width + blocks(t2, 32) * 32
            held = t1 + t2 + height * pitch + (height + t1 - 1) * width
            # Both axes at once pay as long as a strip does not read more beside itself than in it.
            wide_enough = t1 == 1 or t2 == 1 or width >= min(t2 - 1, columns)
            if held * itemsize <= room and wide_enough:
                return _Tile(groups, height, resident, held * itemsize)
    return None


def _sum(y: Floats, taps1: Floats, taps2: Floats, first: Axes, out: Floats) -> None:
    """Sums along the last two axes in one launch, or in two where one block cannot hold both."""
    if len(taps1) == 1 and out.shape[0] > out.shape[1]:
        # Nothing is summed down the rows: march along the longer of the two axes.
        y, out = y.transpose(1, 0, 2), out.transpose(1, 0, 2)
        first = (first[1], first[0], first[2])
    device = properties()
    planes, rows, columns = out.shape
    t1, t2 = len(taps1), len(taps2)
    tile = _tile(t1, t2, rows, columns, out.itemsize, device)
    if tile is None:
        one = np.ones(1)
        middle = empty(out, (planes, rows + t1 - 1, columns))
        _sum(y, one, taps2, first, middle)
        _sum(middle, taps1, one, (0, 0, 0), out)
        return
    strips = blocks(columns, tile.groups * _EACH)
    resident = device.processors * tile.resident
    number, _ = marches(rows, t1 - 1, strips * planes, resident)
    march = blocks(rows, min(number, _MOST))
    threads = min(384, blocks(tile.height * tile.groups, 32) * 32)
    down = beside(taps1, out, out.dtype)
    along = down if taps2 is taps1 else beside(taps2, out, out.dtype)  # mostly the same: one copy
    launch(
        "box_run.cu",
        f"box_run_{suffix(out.dtype)}",
        (strips, blocks(rows, march), min(planes, _MOST)),
        (threads, 1, 1),
        [
            *elements(y),
            *(np.int64(at) for at in first),
            down,
            np.int32(t1),
            along,
            np.int32(t2),
            *elements(out),
            *map(np.int32, (tile.groups, tile.height, march)),
        ],
        tile.shared,
    )


def _sweep(k: Axes, y: Floats, layers: int, first: Axes, out: Floats) -> None:
    taps0, taps1, taps2 = (_coefficients(n, layers) for n in k)
    if len(taps0) == 1:
        _sum(y, taps1, taps2, first, out)
        return
    # Along the last two axes in the planes of y that there are, then along the first.
    begin = max(0, first[0])
    planes = min(y.shape[0], first[0] + out.shape[0] + len(taps0) - 1) - begin
    if planes <= 0:
        out[...] = 0
        return
    middle = empty(out, (planes, *out.shape[1:]))
    _sum(y, taps1, taps2, (begin, first[1], first[2]), middle)
    across, result = middle.transpose(1, 0, 2), out.transpose(1, 0, 2)
    _sum(across, taps0, np.ones(1), (0, first[0] - begin, 0), result)


def box_run(y: Floats, k: Integers, count: int, lo: Integers, out: Floats) -> None:
    """See ``fastrf.kernels.spec.KERNELS["box_run"]``."""
    check_floats(y=y, out=out)
    sizes, offset = per_axis(k), per_axis(lo)
    check_positive(k=sizes, count=count)
    check_narrow("k", sizes, "transposed_box")
    depth = box_depth(sizes, out.dtype)
    run(y, sizes, count, depth, offset, out, partial(_sweep, sizes))
