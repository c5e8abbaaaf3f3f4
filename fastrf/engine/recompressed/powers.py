"""Powers of one transposed map, applied to terms: what a stack of equal layers needs of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf.engine.recompressed.lowrank import Terms
from fastrf.engine.recompressed.maps import AxisOperator, Floats, Spans, axis_operator, products
from fastrf.maps import AxisMap, Everything, SpatialMap, Table, Window

Integers = NDArray[np.int64]

_TINY = float(np.finfo(np.float64).smallest_normal)

_NOTHING = -(1 << 40)
# An exponent below all others.


class Passage:
    """A transposed map between two windows.

    Attributes:
        move: the map.
        y, x: windows of what it writes and of what it reads.
        identity: whether pixels stay where they are.
        square: whether its powers exist: one separable map of a window onto itself.
    """

    def __init__(self, move: SpatialMap, y: Spans, x: Spans) -> None:
        self.move, self.y, self.x = move, y, x
        self.identity = y == x and all(a == Window() for a in move.axes)
        self.square = y == x and move.separable
        self.roundings = sum(
            _addends(axis, n) + 1 for axis, (_, n) in zip(move.axes, y, strict=True)
        )

    @cached_property
    def products(self) -> list[tuple[Floats | None, ...]]:
        """The taps as a sum of products of one vector an axis."""
        return products(self.move)

    @cached_property
    def operators(self) -> list[tuple[AxisOperator, ...]]:
        """One matrix an axis, for each product that the taps are a sum of."""
        sizes = self.move.size_in or (None,) * len(self.y)
        return [
            tuple(map(axis_operator, self.move.axes, taps, self.y, self.x, sizes))
            for taps in self.products
        ]

    @cached_property
    def inexact(self) -> float:
        """Σ|error| of the taps, where they are a sum of products."""
        taps = self.move.taps
        if not isinstance(taps, np.ndarray):
            return 0.0
        parts = [np.multiply.outer(np.asarray(a), np.asarray(b)) for a, b in self.products]
        return float(np.abs(taps - sum(parts)).sum())

    @cached_property
    def stacked(self) -> tuple[Any, int]:
        """The matrices of all axes in one, a block each, and how often it can be applied to numbers
        near 1 before they underflow; of a separable map."""
        from scipy.sparse import block_diag

        (axes,) = self.operators
        return block_diag([a.matrix for a in axes], "csr"), min(a.steps for a in axes)

    @cached_property
    def loses(self) -> bool:
        """Whether anything can fall into padding."""
        bounded = self.move.size_in is not None
        return bounded and any(bool(a.lost.any()) for axes in self.operators for a in axes)

    def lost(self, terms: Terms) -> float:
        """Sum of what falls into padding of the transposed map of an image."""
        total = 0.0
        for axes in self.operators:
            ends = zip(axes, terms.factors, strict=True)
            fallen = _fallen([(a.kept @ f, a.lost @ f) for a, f in ends])
            total += float(terms.weights @ fallen)
        return total


def _fallen(parts: Sequence[tuple[Floats, Floats]]) -> Floats:
    """Π (kept + lost) − Π kept over the axes, without a difference."""
    (kept, lost), *others = parts
    for more, less in others:
        kept, lost = kept * more, lost * (more + less) + kept * less
    return lost


def _addends(axis: AxisMap, pixels: int) -> int:
    """Most products that one pixel behind a transposed map is the sum of."""
    return pixels if isinstance(axis, Table | Everything) else min(axis.kernel, pixels)


class Powers:
    """T^0, T^1, … of a block of terms, as far as they have been asked for.

    The factors of all axes lie below each other, under one matrix with a block an axis: a power is
    one call. They are kept near 1; `exponents` says by which powers of two they were raised.
    """

    def __init__(self, terms: Terms, step: Passage) -> None:
        self.terms, self.step = terms, step
        self.ends = np.cumsum([0, *terms.shape]).tolist()
        self.factors = [np.concatenate(terms.factors)]
        self.exponents = [(0,) * len(terms.factors)]

    def lost(self, booked: Floats) -> tuple[float, int]:
        """What falls into padding where T is applied to ``Σ_j booked[j]·T^j`` of the block, as a
        number and log2 of its factor."""
        used = np.flatnonzero(booked)
        if not used.size:
            return 0.0, 0
        first, stop = int(used[0]), int(used[-1]) + 1
        weights, exponents = self.weights(first, booked[first:stop])
        top = int(exponents.max())
        table = np.stack(self.factors[first:stop])
        (axes,) = self.step.operators
        ends = zip(axes, self._split(table, 1), strict=True)
        parts = [(np.matmul(a.kept, own), np.matmul(a.lost, own)) for a, own in ends]
        lowered = np.ldexp(weights, np.maximum(exponents - top, -2000))
        return float((lowered * _fallen(parts)).sum()), top

    def weights(self, first: int, values: Floats) -> tuple[Floats, Integers]:
        """Weights of the terms of powers times values, near 1, and the exponents that they lack;
        both of shape (powers, terms)."""
        stop = first + len(values)
        self._extend(stop)
        mantissas, own = np.frexp(values)
        exponents = own.astype(np.int64) - np.array(self.exponents[first:stop]).sum(axis=1)
        # A value of 0 is no term, whatever its power has shrunk to.
        exponents[values == 0] = _NOTHING
        weights = np.multiply.outer(mantissas, self.terms.weights)
        return weights, np.broadcast_to(exponents[:, None], weights.shape)

    def stacked(self, first: int, stop: int) -> tuple[Floats, ...]:
        """The factors of the powers first … stop−1, shape (pixels, powers·terms) an axis."""
        table = np.stack(self.factors[first:stop])
        # Subnormal numbers slow a matrix product down a hundred times.
        table[np.abs(table) < _TINY] = 0
        return self._split(table.transpose(1, 0, 2).reshape(self.ends[-1], -1), 0)

    def _extend(self, count: int) -> None:
        matrix, steps = self.step.stacked
        while len(self.factors) < count:
            factors, exponents = matrix @ self.factors[-1], self.exponents[-1]
            if len(self.factors) % steps == 0:
                pairs = [raised(f) for f in self._split(factors, 0)]
                factors = np.concatenate([f for f, _ in pairs])
                exponents = tuple(e + s for e, (_, s) in zip(exponents, pairs, strict=True))
            self.factors.append(factors)
            self.exponents.append(exponents)

    def _split(self, array: Floats, along: int) -> tuple[Floats, ...]:
        return tuple(np.split(array, self.ends[1:-1], axis=along))


def raised(factor: Floats) -> tuple[Floats, int]:
    """A factor times the power of two that puts its largest entry near 1, and that power's log2."""
    top = float(np.abs(factor).max(initial=0.0))
    shift = -math.frexp(top)[1] if top else 0
    return (factor, 0) if -8 <= shift <= 8 else (np.ldexp(factor, shift), shift)


class Block:
    """An image, terms·2^exponent, and its powers under each map that is applied to it again and
    again."""

    def __init__(self, terms: Terms, exponent: int = 0) -> None:
        self.terms, self.exponent = terms, exponent
        self._powers: dict[int, Powers] = {}

    def under(self, step: Passage) -> Powers:
        if id(step) not in self._powers:
            self._powers[id(step)] = Powers(self.terms, step)
        return self._powers[id(step)]

    def weighted(
        self, step: Passage | None, first: int, values: Floats
    ) -> tuple[tuple[Floats, ...], Floats, Integers]:
        """``Σ_j values[j]·step^(first + j)`` of the image: factors, weights near those of the
        terms, and the exponents that the weights lack."""
        if step is None:
            value, exponent = math.frexp(float(values[0]))
            weights = self.terms.weights * value
            exponents = np.full(len(weights), exponent + self.exponent, np.int64)
            return self.terms.factors, weights, exponents
        powers, used = self.under(step), np.flatnonzero(values)
        start, stop = int(used[0]), int(used[-1]) + 1
        weights, exponents = powers.weights(first + start, values[start:stop])
        factors = powers.stacked(first + start, first + stop)
        return factors, weights.ravel(), exponents.ravel() + self.exponent
