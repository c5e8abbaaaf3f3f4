"""Where each tilted image is: the pixels that it serves, its period, and the frequencies that
matter."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastrf.engine.spectral import EPS
from fastrf.engine.tilted.frequencies import Moduli, Ring
from fastrf.engine.tilted.moments import TiltedMoments, moments
from fastrf.engine.tilted.taps import Array, Indices
from fastrf.engine.transfer import SLAB, Extent, TransferFunction

ALIASING = 8.0
"""What a period may fold into a pixel, in ε of half of the tilted image's peak at most: no more
than `rounding_floor` itself, which is log2(N) ≥ 4 times ε of the peak. Pixels are taken from
2·floor/tol on, so that both together stay below tol."""


@dataclass(frozen=True, slots=True)
class Windows:
    """Tilted images that are to be computed.

    Attributes:
        tilted: their moments.
        theta: shape (windows, axes).
        patches: pixels that each may serve: (windows, axes, 2), first and last.
        periods: lengths of the FFT that suffice: (windows, axes).
        peaks: lower bounds of the tilted images' peaks.
    """

    theta: Array
    tilted: TiltedMoments
    patches: Indices
    periods: Indices
    peaks: Array


def measured(function: TransferFunction, extent: Extent, theta: Array, reach: float) -> Windows:
    """Patches and periods, by Chernoff's bound on each tilted image.

    Args:
        function: of the image.
        extent: its theoretical field.
        theta: shape (windows, axes).
        reach: how far below its own peak a window serves pixels, in nats.
    """
    _, tilted = moments(function, theta)
    deviation = np.sqrt(np.maximum(tilted.variance, 0.0)) + 1e-3
    count, ndim = theta.shape
    push = 3 * np.exp2(np.arange(8) / 2)
    # θ moved along one axis at a time, either way: (windows, axes, ways, pushes, axes).
    size = push / deviation[:, :, None, None]
    moves = size * np.array([-1.0, 1.0])[:, None]
    moved = np.broadcast_to(theta[:, None, None, None], (*moves.shape, ndim)).copy()
    for a in range(ndim):
        moved[:, a, :, :, a] += moves[:, a]
    flat, beyond = moments(function, moved.reshape(-1, ndim))
    own = flat.reshape(moved.shape)
    shift = beyond.centre.reshape(moved.shape) - tilted.centre[:, None, None, None]
    log = beyond.log.reshape(moves.shape) - tilted.log[:, None, None, None]
    log = log + (own * shift).sum(axis=-1)
    size = np.abs(
        np.stack([own[:, a, :, :, a] for a in range(ndim)], axis=1) - theta[:, :, None, None]
    )
    ends = np.array(extent)

    def window(nats: Array) -> Indices:
        """Pixels outside which each tilted image holds less than e^−nats."""
        depth = nats[:, None, None, None] + math.log(2 * ndim)
        far = np.floor(((log + depth) / size).min(axis=-1) + 1e-6).astype(np.int64)
        edges = tilted.centre[:, :, None] + far * np.array([-1, 1])
        clipped: Indices = np.clip(edges, ends[:, :1], ends[:, 1:])
        return clipped

    half = window(np.full(count, math.log(2)))
    peaks = 0.5 / (half[:, :, 1] - half[:, :, 0] + 1).prod(axis=1)
    free = window(-np.log(ALIASING * EPS * peaks))
    patches = window(np.full(count, reach - math.log(2 * ndim)))
    periods = np.maximum(patches[:, :, 1] - free[:, :, 0], free[:, :, 1] - patches[:, :, 0]) + 1
    return Windows(theta, tilted, patches, periods, peaks)


def wanted_frequencies(function: TransferFunction, found: Windows) -> list[list[Indices]]:
    """Per window and axis, the frequencies that matter."""
    # Some windows at a time, of many frequencies.
    step = max(1, SLAB // (int(found.periods.max()) // 2 + 1))
    kept = []
    for start in range(0, len(found.theta), step):
        kept += _wanted(function, found, slice(start, start + step))
    return kept


def _wanted(function: TransferFunction, found: Windows, some: slice) -> list[list[Indices]]:
    """Those of some of the windows."""
    ndim = function.graph.ndim
    rings = []
    for a in range(ndim):
        period = found.periods[some, a : a + 1]
        index = np.arange(period.max() // 2 + 1)[None]
        rings.append(Ring(period, np.where(index <= period // 2, index, 0)))
    modulus = function(Moduli(found.theta[some], rings))
    kept = []
    for b, peak in enumerate(found.peaks[some]):
        row = []
        for a, period in enumerate(found.periods[some][b].tolist()):
            half = period // 2 + 1
            used = np.flatnonzero(modulus.bounds[a][b, :half] >= EPS / 8 * peak)
            if a < ndim - 1:
                mirrored = period - used[(used > 0) & (2 * used < period)]
                used = np.concatenate([used, mirrored[::-1]])
            row.append(used)
        kept.append(row)
    return kept
