"""What the tilted engine's work will be."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastrf.engine import transfer
from fastrf.engine.forecast import Forecast
from fastrf.engine.spectral import BLOCK, EPS, window_and_periods, windows
from fastrf.engine.tilted.moments import Moments
from fastrf.engine.tilted.nodes import DEPTH, STEPS, TINY
from fastrf.engine.tilted.symmetries import Symmetries, groups
from fastrf.engine.transfer import Frequencies, TransferFunction, transfer_function
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

PIXEL_NANOSECONDS = 70.0
"""One pixel of the result: transformed, scaled, unfolded, normalised."""


CHUNK_BYTES = 100
"""What is at work for one frequency of the windows that are transformed together,"""

ROOM_BYTES = 1 << 18
"""and besides. How many windows there will be is a guess: so is the memory, to a factor of 2."""


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
    distinct = sum(len(stage.operations) for stage, _ in function.groups) or len(
        function.operations
    )
    pixels = math.prod(count for _, count in support)
    # In the end the image, its half before the last axis is unfolded, and what was computed.
    parts = 2 ** sum(symmetry.mirrored)
    finish = 8 * pixels + (4 * pixels if parts > 1 else 0) + 9 * pixels // parts
    # Of a chunk of windows F, its parts, the numbers that are transformed and what comes out.
    chunk = min(max(BLOCK, waves), 4 * int(points) + 1)
    work = CHUNK_BYTES * chunk + 9 * pixels // parts
    return Forecast(
        len(function.operations),
        support,
        int(points * distinct) + pixels,
        SEARCH_SECONDS + distinct * (PASSES_SECONDS + 1e-9 * nodes * NODE_NANOSECONDS),
        1e-9 * (points * distinct * WAVE_NANOSECONDS + pixels * PIXEL_NANOSECONDS),
        int(max(finish, work)) + ROOM_BYTES,
        pixels,
    )


def _waves(function: TransferFunction, axis: int, period: int) -> int:
    """Frequencies of one axis at which the image itself, θ = 0, has anything: like each window."""
    half = Frequencies(period, np.arange(period // 2 + 1))
    bound = function(transfer.Moduli(axis, half)).bound
    return 2 * int(np.count_nonzero(bound >= EPS**1.25))
