"""Tilted transfer functions at z = e^{θ−iω}: their moduli, and themselves."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import NamedTuple

import numpy as np

from fastrf.engine.spectral import EPS
from fastrf.engine.tilted.taps import Array, Indices, Taps, Tilts, shared
from fastrf.engine.transfer import SLAB, compose, squared_up


@dataclass(slots=True)
class Ring:
    """The frequencies of one axis, 2π·index/period, each window its own.

    Attributes:
        period: shape (windows, 1).
        index: shape (windows, frequencies); short rows are filled up with 0.
    """

    period: Indices
    index: Indices
    _defects: dict[tuple[int, int, int], Array] = field(default_factory=dict)

    def defect(self, pixels: Indices) -> Array:
        """1 − z^pixels, accurate where it is small, for `pixels` of shape (windows, …, 1)."""
        shape = (-1, *(1,) * (pixels.ndim - 2))
        period = self.period.reshape(*shape, 1)
        half = period // 2
        turns = (self.index.reshape(*shape, self.index.shape[1]) * pixels + half) % period - half
        angle = turns * (2 * math.pi / period)
        return 2 * np.sin(angle / 2) ** 2 + 1j * np.sin(angle)

    def defects(self, spacing: int, first: int, stop: int) -> Array:
        """1 − z^p of p = first·spacing … (stop − 1)·spacing: (windows, stop − first,
        frequencies)."""
        return self.defect((np.arange(first, stop) * spacing)[None, :, None])

    def kept_defects(self, spacing: int, first: int, stop: int) -> Array:
        """As `defects`, for layers of other taps too, which read the same."""
        key = (spacing, first, stop)
        if key not in self._defects:
            self._defects[key] = self.defects(*key)
        return self._defects[key]

    def sums(self, weights: Array, spacing: int, first: int) -> Array:
        """Σ_m weights[…, m]·(1 − z^p) of p = (first + m)·spacing, for weights of shape (windows,
        lines, taps): (windows, lines, frequencies). Some taps at a time, of long kernels."""
        count = weights.shape[-1]
        step = max(1, SLAB // max(1, self.index.size))
        total: Array
        if step >= count:
            total = weights @ self.kept_defects(spacing, first, first + count)
            return total
        total = weights[..., :step] @ self.defects(spacing, first, first + step)
        for at in range(step, count, step):
            stop = min(at + step, count)
            total += weights[..., at:stop] @ self.defects(spacing, first + at, first + stop)
        return total


class Modulus(NamedTuple):
    """|F(e^{θ−iω})| ≤ e^{log + θ·centre} · bounds[a], whatever the frequencies on the axes ≠ a."""

    log: Array
    centre: Indices
    bounds: tuple[Array, ...]


class Moduli(Tilts[Modulus]):
    """An upper bound of tilted |F| along each axis; compare `transfer.Moduli`."""

    ROUNDING = 4 * EPS

    def __init__(self, theta: Array, rings: Sequence[Ring]) -> None:
        super().__init__(theta)
        self.rings = rings

    def one(self) -> Modulus:
        return Modulus(*self.start(), tuple(np.ones(r.index.shape) for r in self.rings))

    def _from(
        self, log: Array, centre: Indices, parts: Sequence[Taps], spacing: Sequence[int]
    ) -> Modulus:
        bounds = []
        for a, (ring, h) in enumerate(zip(self.rings, spacing, strict=True)):
            own, b = (parts[a], 0) if len(parts) > 1 else (parts[0], a)
            lines = np.moveaxis(own.weights, 1 + b, -1)
            lines = lines.reshape(len(lines), -1, lines.shape[-1])
            # From the first tap on: the modulus knows no centre.
            waves = lines.sum(axis=-1, keepdims=True) - ring.sums(lines, h, 0)
            bounds.append(np.minimum(np.abs(waves).sum(axis=1) + self.ROUNDING, 1.0))
        return Modulus(log, centre, tuple(bounds))

    def mixed(self, terms: Sequence[tuple[float, Modulus]]) -> Modulus:
        if len(terms) == 1:
            return shared(*terms[0])
        log, centre, parts = self.mixture([(share, m.log, m.centre) for share, m in terms])
        bounds = tuple(
            np.asarray(
                sum(p * m.bounds[a] for p, (_, m) in zip(parts[:, :, None], terms, strict=True))
            )
            for a in range(len(self.rings))
        )
        return Modulus(log, centre, bounds)

    def times(self, a: Modulus, b: Modulus) -> Modulus:
        bounds = tuple(p * q for p, q in zip(a.bounds, b.bounds, strict=True))
        return Modulus(a.log + b.log, a.centre + b.centre, bounds)

    def power(self, a: Modulus, n: int) -> Modulus:
        return Modulus(n * a.log, n * a.centre, tuple(b**n for b in a.bounds))


class Wave(NamedTuple):
    """F(e^{θ−iω}) = e^{log + θ·centre} · z^centre · Π_parts (1 − part), z = e^{−iω}.

    Attributes:
        log, centre: shapes (windows,) and (windows, axes).
        parts: as of `transfer.Wave`, with the windows in front.
    """

    log: Array
    centre: Indices
    parts: tuple[Array | None, ...]


class Waves(Tilts[Wave]):
    """F at z = e^{θ−iω}, all windows in one walk; compare `transfer.Waves`."""

    def __init__(self, theta: Array, rings: Sequence[Ring]) -> None:
        super().__init__(theta)
        self.rings = rings

    def one(self) -> Wave:
        return Wave(*self.start(), (None,) * (len(self.rings) + 1))

    def _from(
        self, log: Array, centre: Indices, parts: Sequence[Taps], spacing: Sequence[int]
    ) -> Wave:
        found: list[Array | None] = [None] * (len(self.rings) + 1)
        if len(parts) == len(self.rings):
            for a, (ring, h, own) in enumerate(zip(self.rings, spacing, parts, strict=True)):
                kernel = own.weights.shape[1]
                if kernel > 1:
                    defect = ring.sums(own.around()[:, None], h, 1 - kernel)
                    found[a] = self._along(defect[:, 0], a)
        else:
            kernels = parts[0].weights.shape[1:]
            defects = [
                ring.kept_defects(h, 1 - k, k)
                for ring, h, k in zip(self.rings, spacing, kernels, strict=True)
            ]
            found[-1] = _dense_defect(parts[0].around(), defects)
        return Wave(log, centre, tuple(found))

    def mixed(self, terms: Sequence[tuple[float, Wave]]) -> Wave:
        alone = (None,) * len(self.rings)
        if len(terms) == 1:
            only = shared(*terms[0])
            if only.parts[-1] is None:
                return only
            # Whoever reads this plane needs its parts together: once here, not once for each.
            return only._replace(parts=(*alone, reduce(compose, only.parts)))
        log, centre, weights = self.mixture([(share, w.log, w.centre) for share, w in terms])
        defect: Array | None = None
        for weight, (_, wave) in zip(weights, terms, strict=True):
            own = reduce(compose, (*self._moved(wave.centre - centre), *wave.parts), None)
            if own is not None:
                own = weight.reshape(-1, *(1,) * len(self.rings)) * own
                defect = own if defect is None else defect + own
        return Wave(log, centre, (*alone, defect))

    def times(self, a: Wave, b: Wave) -> Wave:
        parts = tuple(compose(p, q) for p, q in zip(a.parts, b.parts, strict=True))
        return Wave(a.log + b.log, a.centre + b.centre, parts)

    def power(self, a: Wave, n: int) -> Wave:
        powered = squared_up(self, a, n)
        return powered._replace(log=n * a.log)

    def _moved(self, pixels: Indices) -> Iterator[Array | None]:
        for a, ring in enumerate(self.rings):
            moved = pixels[:, a : a + 1]
            yield self._along(ring.defect(moved), a) if moved.any() else None

    def _along(self, values: Array, axis: int) -> Array:
        ndim = len(self.rings)
        return values.reshape(len(values), *(-1 if a == axis else 1 for a in range(ndim)))


def _dense_defect(weights: Array, defects: Sequence[Array]) -> Array:
    """`transfer._dense_defect` with the windows in front: weights of shape (windows, …)."""
    own, *rest = defects
    if not rest:
        return (weights[:, None] @ own)[:, 0]
    inner = np.stack([_dense_defect(weights[:, m], rest) for m in range(weights.shape[1])], axis=1)
    alone = weights.sum(axis=tuple(range(2, weights.ndim)))
    shape = (len(own), own.shape[2], *inner.shape[2:])
    cross = own.transpose(0, 2, 1) @ inner.reshape(*inner.shape[:2], -1)
    first = (alone[:, None] @ own).reshape(len(own), -1, *(1,) * len(rest))
    result: Array = first + inner.sum(axis=1)[:, None] - cross.reshape(shape)
    return result
