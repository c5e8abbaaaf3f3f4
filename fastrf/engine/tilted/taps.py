"""Maps tilted by θ: taps times e^{θ·m}, normalised, and the part that all algebras share.

A tilted tap vector is again a nonnegative tap vector with a gain, so that the algebras are those of
`transfer` with an array of windows in front.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastrf.engine.series import signature
from fastrf.engine.transfer import Jump
from fastrf.maps import SpatialMap, Window

Array = NDArray[Any]
Indices = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Taps:
    """Taps at every θ, times e^{θ·m} and normalised.

    Attributes:
        log: ln of their sum at every θ, counted from the tap `nearest`: shape (windows,).
        nearest: number of the tap nearest to their mean, (windows, axes).
        weights: shape (windows, k_1, …).
    """

    log: Array
    nearest: Indices
    weights: Array

    @staticmethod
    def of(taps: Array, x: Array) -> Taps:
        """Taps of shape (k_1, …) at x = θ·spacing of shape (windows, axes)."""
        axes = range(taps.ndim)
        with np.errstate(divide="ignore"):
            exponents = np.log(taps)[None]
        for a, k in enumerate(taps.shape):
            own = x[:, a : a + 1] * np.arange(k)
            exponents = exponents + own.reshape(-1, *(k if b == a else 1 for b in axes))
        inner = tuple(a + 1 for a in axes)
        top = exponents.max(axis=inner, keepdims=True)
        weights = np.exp(exponents - top)
        total = weights.sum(axis=inner, keepdims=True)
        weights /= total
        found = Taps((top + np.log(total)).ravel(), np.zeros(x.shape, np.int64), weights)
        means = [found.line(a) @ np.arange(k) for a, k in enumerate(taps.shape)]
        nearest = np.rint(np.stack(means, axis=1)).astype(np.int64)
        log = found.log - (x * nearest).sum(axis=1)
        # Near 0 without loss of digits: ten thousand equal layers multiply it by as much.
        moved = sum(
            (x[:, a : a + 1] * (np.arange(k) - nearest[:, a : a + 1])).reshape(
                -1, *(k if b == a else 1 for b in axes)
            )
            for a, k in enumerate(taps.shape)
        )
        with np.errstate(over="ignore", invalid="ignore"):
            above = (taps * np.expm1(moved)).sum(axis=inner)
            small = np.abs(above) < 0.5
            log = np.where(small, np.log1p(np.where(small, above, 0.0)), log)
        return Taps(log, nearest, weights)

    def line(self, axis: int) -> Array:
        """The weights along one axis, summed over the others: (windows, k)."""
        others = tuple(a + 1 for a in range(self.weights.ndim - 1) if a != axis)
        total: Array = self.weights.sum(axis=others) if others else self.weights
        return total

    def around(self) -> Array:
        """The weights at places 1−k … k−1 from the nearest tap: (windows, 2·k_1 − 1, …)."""
        kernel = self.weights.shape[1:]
        axes = range(len(kernel))
        found = np.zeros((len(self.weights), *(2 * k - 1 for k in kernel)))
        index: list[Any] = [np.arange(len(found)).reshape(-1, *(1 for _ in axes))]
        for a, k in enumerate(kernel):
            place = np.arange(k) - self.nearest[:, a : a + 1] + k - 1
            index.append(place.reshape(-1, *(k if b == a else 1 for b in axes)))
        found[tuple(index)] = self.weights
        return found


class Value(Protocol):
    """What the algebras combine; ln F is in it."""

    @property
    def log(self) -> Array:
        """ln F, counted from some centre: shape (windows,)."""

    def _replace(self, *, log: Array = ...) -> Self:
        """The value with another logarithm."""


T = TypeVar("T", bound=Value)

KEPT_MAPS = 16
"""Tilted maps that are kept for the next layer of their kind; those of large grids are large."""


class Tilts(ABC, Generic[T]):
    """Maps tilted by an array of θ, shape (windows, axes).

    θ has 24 significant bits, so that θ·pixels is exact, and with it the part of a pixel's
    logarithm that is large. Values are counted from a centre near their mean, each window its
    own: the logarithms that are left are what a pixel is below the mass, and nothing cancels.
    """

    def __init__(self, theta: Array) -> None:
        self.theta = theta.astype(np.float32).astype(np.float64)
        self._known: dict[Any, T] = {}

    def of(self, move: SpatialMap, jump: Jump) -> T:
        alone = replace(move, gain=1.0)
        key = (signature(alone), jump)
        if key not in self._known:
            if len(self._known) >= KEPT_MAPS:
                self._known.clear()
            self._known[key] = self._tilted(alone, jump)
        value = self._known[key]
        return value if move.gain == 1 else value._replace(log=value.log + math.log(move.gain))

    def _tilted(self, move: SpatialMap, jump: Jump) -> T:
        """The value of a map of gain 1."""
        axes = windows_of(move)
        spacing = tuple(j * a.dilation for j, a in zip(jump, axes, strict=True))
        if isinstance(move.taps, np.ndarray):
            parts = [Taps.of(move.taps, self.theta * spacing)]
        else:
            lines = (move.axis_taps(a) for a in range(len(axes)))
            parts = [
                Taps.of(
                    np.full(w.kernel, 1 / w.kernel) if taps is None else taps,
                    self.theta[:, a : a + 1] * spacing[a],
                )
                for a, (w, taps) in enumerate(zip(axes, lines, strict=True))
            ]
        first = np.array([j * a.lo for j, a in zip(jump, axes, strict=True)])
        centre = np.concatenate([p.nearest for p in parts], axis=1) * np.array(spacing) - first
        log = sum((p.log for p in parts), np.zeros(len(self.theta)))
        return self._from(log, centre, parts, spacing)

    @abstractmethod
    def _from(
        self, log: Array, centre: Indices, parts: Sequence[Taps], spacing: Sequence[int]
    ) -> T:
        """The value of taps: one part per axis where they are a product, else one in all."""

    def start(self) -> tuple[Array, Indices]:
        """Logarithm and centre of F = 1."""
        return np.zeros(len(self.theta)), np.zeros(self.theta.shape, dtype=np.int64)

    def mixture(
        self, terms: Sequence[tuple[float, Array, Indices]]
    ) -> tuple[Array, Indices, Array]:
        """Logarithm and centre of Σ share·e^log, and each summand's part: (terms, windows)."""
        first = terms[0][2]
        logs = np.stack(
            [
                log + math.log(share) + ((centre - first) * self.theta).sum(axis=1)
                for share, log, centre in terms
            ]
        )
        largest = logs.argmax(axis=0)
        weights = np.exp(logs - logs.max(axis=0))
        total = weights.sum(axis=0)
        centre = np.stack([c for _, _, c in terms])[largest, np.arange(len(first))]
        log = logs.max(axis=0) + np.log(total) - ((centre - first) * self.theta).sum(axis=1)
        return log, centre, weights / total


def shared(share: float, value: T) -> T:
    """share·value."""
    return value if share == 1 else value._replace(log=value.log + math.log(share))


def windows_of(move: SpatialMap) -> list[Window]:
    """The axes of a map that has a transfer function."""
    return [a for a in move.axes if isinstance(a, Window)]
