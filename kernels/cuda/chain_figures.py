"""Sizes of many images that are outer products of profiles: one block a line, then one a chain."""

from __future__ import annotations

import numpy as np
from fastrf.kernels._checks import Floats
from fastrf.kernels.cpu.chain_figures import (
    FAR,
    FLOOR,
    NEGLIGIBLE,
    ROUNDING,
    check_figures,
)
from numpy.typing import NDArray

from ._geometry import empty, steps, suffix, together, writable
from ._module import launch, properties

Integers = NDArray[np.int64]

# A block has a thread for so many pixels of a line, and at most so many warps, as in the source; a
# chain's has so many threads, whatever it is.
_EACH = 4
_MOST_WARPS = 16
_THREADS = 128
# Blocks a processor of a launch whose lines are sorted in global memory.
_LONG_BLOCKS = 2
# What a pixel that is sorted takes: a key and its index.
_SORTED = 12

PER_PIXEL, PER_LINE = 5, 7
"""Numbers of float64 that lines leave for the chains."""


def chain_figures(
    pixels: Floats,
    places: Integers,
    counts: Integers,
    lines: Integers,
    at: Floats,
    threshold: float,
    shares: Floats,
    moments: Floats,
    out: Floats,
) -> None:
    """See ``fastrf.kernels.spec.KERNELS["chain_figures"]``."""
    check_figures(pixels, places, counts, lines, at, shares, moments, out)
    if not len(counts):
        return
    kind, device = suffix(out.dtype), properties()
    begins = np.cumsum(counts) - counts
    rooms = 1 << np.ceil(np.log2(counts)).astype(np.int64)
    # How a line is measured depends on it alone, so that its figures do.
    fits = _SORTED * rooms + 8 * _MOST_WARPS <= device.shared_per_block
    warps = np.where(fits, np.clip(rooms // (32 * _EACH), 1, _MOST_WARPS), _MOST_WARPS)
    classes = np.where(fits, rooms, 0)
    order = np.argsort(classes, kind="stable")
    firsts = np.unique(classes[order], return_index=True)[1]
    held_places, held_counts, held_begins, held_lines, held_at, held_shares, held_order = together(
        [
            *(np.asarray(a, np.int64) for a in (places, counts, begins, lines)),
            np.asarray(at),
            np.asarray(shares),
            order,
        ],
        out,
    )
    lengths = [np.int64(len(counts)), np.int64(counts.sum())]
    work = empty(out, (PER_PIXEL * int(counts.sum()) + PER_LINE * len(counts),), np.float64)
    described = [pixels, *steps(pixels), held_places, held_counts, held_begins]
    with writable(moments) as to:
        for first, end in zip(firsts, [*firsts[1:], len(order)], strict=True):
            line, count = order[end - 1], int(end - first)
            own, room = int(warps[line]), int(rooms[line])
            grid, shared, scratch = count, 8 * own + _SORTED * room, work
            if not fits[line]:
                room = int(rooms[order[first:end]].max())
                grid, shared = min(count, _LONG_BLOCKS * device.processors), 8 * own
                scratch = empty(out, (grid * (room + (room + 1) // 2),), np.float64)
            launch(
                "chain_figures.cu",
                f"measure_lines_{kind}",
                (grid, 1, 1),
                (32 * own, 1, 1),
                [
                    held_order[first:end],
                    np.int64(count),
                    *lengths,
                    *described,
                    work,
                    to,
                    *steps(to),
                    np.float64(NEGLIGIBLE),
                    np.float64(FAR),
                    np.float64(FLOOR),
                    np.int64(room),
                    np.int32(fits[line]),
                    scratch,
                ],
                shared,
            )
    if not lines.size:
        return
    with writable(out) as to:
        launch(
            "chain_figures.cu",
            f"chain_figures_{len(lines)}_{kind}",
            (lines.shape[1], 1, 1),
            (_THREADS, 1, 1),
            [
                np.int64(lines.shape[1]),
                *lengths,
                *described,
                held_lines,
                held_at,
                np.float64(threshold),
                np.int32(len(shares)),
                held_shares,
                np.float64(1 - ROUNDING),
                work,
                to,
                *steps(to),
            ],
            8 * (_THREADS // 32),
        )
