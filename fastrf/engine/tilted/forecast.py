"""What the tilted engine's work will be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastrf.engine import transfer
from fastrf.engine.forecast import Forecast
from fastrf.engine.spectral import (
    BLOCK,
    ELIDED,
    EPS,
    Window,
    looked_at,
    values_held,
    window_and_periods,
    windows,
)
from fastrf.engine.threads import TILE_CELLS
from fastrf.engine.tilted.moments import FEWEST, Moments, taps_of
from fastrf.engine.tilted.nodes import DEPTH, STEPS, TINY
from fastrf.engine.tilted.search import balanced
from fastrf.engine.tilted.symmetries import Symmetries, Symmetry, groups
from fastrf.engine.transfer import (
    SLAB,
    SLAB_BYTES,
    Frequencies,
    TransferFunction,
    transfer_function,
)
from fastrf.lowering import PlaneGraph

SEARCH_SECONDS = 6e-3
"""Choosing the windows (bench/limits.py). The other constants were measured with
bench/bench_tilted.py on one core of a Sapphire Rapids Xeon with 2 cores."""

PASSES_SECONDS = 1.2e-3
"""The eight walks over one distinct operation, without what the following count."""

NODE_NANOSECONDS = 400.0
"""One θ of the grid and one distinct operation."""

WAVE_NANOSECONDS = 60.0
"""One frequency of one window and one distinct operation."""

SINE_NANOSECONDS = 10.0
"""One frequency of one window and one tap, while those that matter are found; what short kernels
take is in `PASSES_SECONDS`."""

PIXEL_NANOSECONDS = 70.0
"""One pixel of the result: transformed, scaled, unfolded, normalised."""


WIDER, MORE = 16, 4
"""Most frequencies of a window over those of the image itself, and most windows over those that a
Gaussian would need, in any network tried: the memory is an upper bound by these."""

ROOM_BYTES = 1 << 16
"""What is at work besides arrays that grow: moments of windows, Python's own."""


def of_tilted(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    dtype: np.dtype[Any],
    tail: float | None,
    tol: float,
) -> Forecast:
    """What `propagate_tilted` will do, for a field without an obstacle.

    The windows are counted as if the image were a Gaussian of its own deviations: an ellipsoid of
    √(2·nats) of them, cut where the theoretical field ends.
    """
    function = transfer_function(graph, node, input_node)
    ndim = graph.ndim
    box = windows(function, tail or TINY)
    _, periods = window_and_periods(function, None, EPS)
    place = [u * j for u, j in zip(unit, function.jump(node), strict=True)]
    support = tuple((lo + p, hi - lo + 1) for (lo, hi), p in zip(box, place, strict=True))
    symmetry = function(Symmetries(ndim))
    folds = 2 ** sum(symmetry.mirrored) * math.prod(math.factorial(n) for n in groups(symmetry))
    variance = function(Moments(np.zeros((1, ndim)))).variance[0]
    radii = np.array([count for _, count in support]) / 2 / np.sqrt(variance + 1e-3)
    radii = np.minimum(radii, math.sqrt(2 * DEPTH))
    ball = math.pi ** (ndim / 2) / math.gamma(ndim / 2 + 1)
    reach = math.sqrt(2 * math.log(tol / (40 * EPS)))
    # Of each ellipsoid that a window holds, about the cube in it is its own.
    many = max(1.0, ball * float(np.prod(radii * math.sqrt(ndim) / (2 * reach)))) + 2 * ndim
    nodes = ball * float(np.prod(radii / STEPS[ndim] + 1)) / folds
    waves = math.prod(_waves(function, a, n) for a, n in enumerate(periods)) / 2
    points = max(1.0, many / folds) * waves
    distinct = len(function.distinct)
    pixels = math.prod(count for _, count in support)
    walked, each, finish = _memories(
        function, box, symmetry, dtype, tail, waves, many / folds, periods
    )
    # Sines, of all windows and the frequencies of every axis, and taps.
    sines = (many / folds + 1) * sum(n // 2 + 1 for n in periods)
    sines *= sum(taps_of(m) for op in function.distinct for m in op.maps)
    return Forecast(
        len(function.operations),
        support,
        int(points * distinct) + pixels,
        SEARCH_SECONDS
        + distinct * (PASSES_SECONDS + 1e-9 * nodes * NODE_NANOSECONDS)
        + 1e-9 * sines * SINE_NANOSECONDS,
        1e-9 * (points * distinct * WAVE_NANOSECONDS + pixels * PIXEL_NANOSECONDS),
        max(walked, finish),
        pixels,
        walked=walked,
        each=each,
        finish=finish,
    )


def _waves(function: TransferFunction, axis: int, period: int) -> int:
    """Frequencies of one axis at which the image itself, θ = 0, has anything: like each window."""
    length = period // 2 + 1
    half = Frequencies(period, looked_at(length))
    bound = function(transfer.Moduli(axis, half)).bound
    return 2 * int(np.count_nonzero(bound >= EPS**1.25)) * length // half.index.size


def _memories(
    function: TransferFunction,
    box: Sequence[Window],
    symmetry: Symmetry,
    dtype: np.dtype[Any],
    tail: float | None,
    waves: float,
    count: float,
    periods: Sequence[int],
) -> tuple[int, int, int]:
    """Bytes at the fullest moment while windows are computed, what each further thread adds to
    them, and bytes while the image is made of them.

    Args:
        box: the pixels that are wanted.
        waves: frequencies of the image itself.
        count: windows that there may be.
        periods: of the image itself, which are those of the widest window.
    """
    # Which windows there will be is not known: these have no more frequencies than their period,
    # nor, as far as has been seen, than a few times those of the image.
    waves = min(math.prod(periods) / 2, WIDER * waves)
    shared = (max(count, 1.0) + 1) * waves >= 2 * TILE_CELLS  # fewer frequencies are one thread's
    count = MORE * (count + 1)
    shapes = []  # of the part that is computed, of the image, and of what of it is visible
    for a, window in enumerate(box):
        centre, mirrored = symmetry.centre[a], symmetry.mirrored[a]
        low, high = balanced(window, centre) if mirrored else window
        shapes.append((high - (-(-centre // 2) if mirrored else low) + 1, high - low + 1))
    part, whole = (math.prod(side) for side in zip(*shapes, strict=True))
    seen = whole
    if dtype.itemsize < 8:
        least = float(np.finfo(dtype).smallest_normal)
        seen = math.prod(hi - lo + 1 for lo, hi in windows(function, max(tail or 0.0, least)))
    # What is computed, whether it is known, and whether it can be seen.
    held = 10 * part
    sample = [Frequencies(n, np.zeros(1, np.int64)) for n in periods]
    joint = not function(transfer.Waves(sample)).separable
    chunk = 16 * max(waves, min(BLOCK, count * waves))
    # And a product, with what it is made of where arrays are small.
    live = values_held(function) + (1 if chunk >= ELIDED else 2) if joint else 2
    evaluated = live * min(chunk, 16 * BLOCK) + (chunk if waves > BLOCK else 0)
    # One window's numbers, once more times a phase, then its pixels and which of them are right.
    sides = [min(n, side) for n, (side, _) in zip(periods, shapes, strict=True)]
    patch = 9 * math.prod(sides)
    transformed = chunk + 2 * 16 * waves + 16 * math.prod(sides[:-1]) * (periods[-1] // 2 + 1)
    own = max(evaluated, transformed + max(1.0, chunk / 16 / waves) * patch)
    # Frequencies of some windows, and their bounds; taps at every θ.
    taps = max((taps_of(m) for op in function.distinct for m in op.maps), default=1)
    lines = min(count, max(1, SLAB // (max(periods) // 2 + 1))) * (max(periods) // 2 + 1)
    slab = SLAB_BYTES * min(max(SLAB, lines), taps * lines)
    bounds = held + (16 + 24 * len(periods)) * lines + slab
    theta = 6 * 8 * taps * max(FEWEST, SLAB // taps)
    # Unfolded, the image beside its half; then in a narrower type, and which are too small.
    mirrored = any(symmetry.mirrored)
    unfolded = held + 8 * seen * (1.5 if mirrored else 1.0)
    narrow = dtype.itemsize if dtype.itemsize < 8 else 0
    last = (0 if mirrored else 8 * part) + (8 + max(narrow, 1)) * seen
    walked = max(held + own, bounds, theta)
    return (
        int(walked) + ROOM_BYTES,
        int(own) if shared else 0,
        int(max(unfolded, last)) + ROOM_BYTES,
    )
