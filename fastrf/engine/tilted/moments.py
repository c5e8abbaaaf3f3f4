"""Masses, means and variances of tilted images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastrf.engine.tilted.taps import Array, Indices, Taps, Tilts, shared, windows_of
from fastrf.engine.transfer import SLAB, TransferFunction
from fastrf.maps import SpatialMap


class TiltedMoments(NamedTuple):
    """Tilted images: ln F(e^θ) = log + θ·centre, and per axis mean (from the centre) and
    variance. Shapes (windows,) and (windows, axes)."""

    log: Array
    centre: Indices
    mean: Array
    variance: Array


FEWEST = 64
"""θ at least that are looked at at a time: a walk over a network costs as much as some hundred."""


def moments(function: TransferFunction, theta: Array) -> tuple[Array, TiltedMoments]:
    """θ as `Tilts` rounds it and the moments there, of shape (θ, axes); of large kernels some θ at
    a time."""
    widest = max((taps_of(m) for op in function.distinct for m in op.maps), default=1)
    step = max(FEWEST, SLAB // widest)
    walks = [Moments(theta[at : at + step]) for at in range(0, len(theta), step)]
    found = [function(walk) for walk in walks]
    if len(found) == 1:
        return walks[0].theta, found[0]
    parts = (np.concatenate(own) for own in zip(*found, strict=True))
    return np.concatenate([walk.theta for walk in walks]), TiltedMoments(*parts)


def taps_of(move: SpatialMap) -> int:
    """Numbers that tilted taps of a map take at one θ."""
    kernels = [w.kernel for w in windows_of(move)]
    return math.prod(kernels) if isinstance(move.taps, np.ndarray) else max(kernels)


class Moments(Tilts[TiltedMoments]):
    """The algebra (`transfer.Algebra`) of tilted images' masses, means and variances."""

    def one(self) -> TiltedMoments:
        zero = np.zeros(self.theta.shape)
        return TiltedMoments(*self.start(), zero, zero)

    def _from(
        self, log: Array, centre: Indices, parts: Sequence[Taps], spacing: Sequence[int]
    ) -> TiltedMoments:
        mean, variance = np.zeros(self.theta.shape), np.zeros(self.theta.shape)
        for a, h in enumerate(spacing):
            own, b = (parts[a], 0) if len(parts) > 1 else (parts[0], a)
            line = own.line(b)
            place = h * (np.arange(line.shape[1]) - own.nearest[:, b : b + 1])
            mean[:, a] = (line * place).sum(axis=1)
            variance[:, a] = (line * place**2).sum(axis=1) - mean[:, a] ** 2
        return TiltedMoments(log, centre, mean, variance)

    def mixed(self, terms: Sequence[tuple[float, TiltedMoments]]) -> TiltedMoments:
        if len(terms) == 1:
            return shared(*terms[0])
        log, centre, parts = self.mixture([(share, m.log, m.centre) for share, m in terms])
        mean, square = np.zeros(self.theta.shape), np.zeros(self.theta.shape)
        for part, (_, m) in zip(parts[:, :, None], terms, strict=True):
            own = m.mean + (m.centre - centre)
            mean = mean + part * own
            square = square + part * (m.variance + own**2)
        return TiltedMoments(log, centre, mean, square - mean**2)

    def times(self, a: TiltedMoments, b: TiltedMoments) -> TiltedMoments:
        return TiltedMoments(*(x + y for x, y in zip(a, b, strict=True)))

    def power(self, a: TiltedMoments, n: int) -> TiltedMoments:
        return TiltedMoments(*(n * x for x in a))
