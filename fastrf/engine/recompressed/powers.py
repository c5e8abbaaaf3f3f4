"""Powers of one transposed map, applied to terms: what a stack of equal layers needs of pixels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrf.engine.recompressed.lowrank import Terms, rounding
from fastrf.engine.recompressed.maps import (
    AxisOperator,
    Floats,
    Products,
    Spans,
    axis_operator,
    products,
)
from fastrf.maps import AxisMap, Everything, SpatialMap, Table, Window

Integers = NDArray[np.int64]

TOGETHER = 64
"""Powers, or pixels, that are looked at at a time where no more than a look is needed."""

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
    def taps(self) -> Products:
        """The taps as a sum of products of one vector an axis."""
        return products(self.move)

    @cached_property
    def operators(self) -> tuple[tuple[AxisOperator, ...], ...]:
        """Per axis, one matrix for each of the vectors."""
        sizes = self.move.size_in or (None,) * len(self.y)
        return tuple(
            tuple(axis_operator(axis, own, y, x, size) for own in vectors)
            for vectors, axis, y, x, size in zip(
                self.taps.vectors, self.move.axes, self.y, self.x, sizes, strict=True
            )
        )

    @cached_property
    def inexact(self) -> float:
        """Σ|error| of the taps, where they are a sum of products."""
        taps = self.move.taps
        if not isinstance(taps, np.ndarray):
            return 0.0
        parts = self.taps.terms()
        rounded = rounding(parts.roundings + 1) * float(parts.absolute().form().sum())
        return float(np.abs(taps - parts.form()).sum()) + rounded

    @cached_property
    def stacked(self) -> tuple[Any, int]:
        """The matrices of all axes in one, a block each, and how often it can be applied to numbers
        near 1 before they underflow; of a separable map."""
        from scipy.sparse import block_diag

        axes = [own for (own,) in self.operators]
        return block_diag([a.matrix for a in axes], "csr"), min(a.steps for a in axes)

    @cached_property
    def ends(self) -> tuple[Floats, Floats]:
        """`AxisOperator.kept` and `lost` for the columns of `stacked`, a row an axis."""
        axes = [own for (own,) in self.operators]
        ends = np.cumsum([0, *(len(a.kept) for a in axes)]).tolist()
        kept, lost = (np.zeros((len(axes), ends[-1])) for _ in range(2))
        for number, (a, start, stop) in enumerate(zip(axes, ends[:-1], ends[1:], strict=True)):
            kept[number, start:stop], lost[number, start:stop] = a.kept, a.lost
        return kept, lost

    @cached_property
    def loses(self) -> bool:
        """Whether anything can fall into padding."""
        bounded = self.move.size_in is not None
        return bounded and any(bool(a.lost.any()) for axis in self.operators for a in axis)

    def moved(self, terms: Terms, value: float = 1.0) -> Terms:
        """The transposed map of an image times a value."""
        factors = [
            np.concatenate([a(f) for a in axis], axis=1)
            for axis, f in zip(self.operators, terms.factors, strict=True)
        ]
        return Terms(tuple(factors), self._weights(terms) * value)

    def moved_absolutely(self, terms: Terms, value: float = 1.0) -> Terms:
        """As `moved`, of the absolute values of all numbers: no pixel that rounds is above it."""
        factors = [
            np.concatenate([a.absolute @ np.abs(f) for a in axis], axis=1)
            for axis, f in zip(self.operators, terms.factors, strict=True)
        ]
        return Terms(tuple(factors), np.abs(self._weights(terms)) * value)

    def lost(self, terms: Terms) -> float:
        """Sum of what falls into padding of the transposed map of an image."""
        parts = []
        for axis, f in zip(self.operators, terms.factors, strict=True):
            kept = np.concatenate([own.kept @ f for own in axis])
            parts.append((kept, np.concatenate([own.lost @ f for own in axis])))
        return _fallen(Terms(terms.factors, self._weights(terms)), parts).item()

    def _weights(self, terms: Terms) -> Floats:
        """The weights of the columns that the map makes of those of an image."""
        own = self.taps.weights
        if own.ndim == 1 and terms.diagonal:
            return np.multiply.outer(own, terms.weights).ravel()
        if own.ndim == 1:  # the 1 of a single product
            return terms.weights
        return np.kron(own, terms.core).astype(np.float64, copy=False)


def _fallen(terms: Terms, parts: Sequence[tuple[Floats, Floats]]) -> Floats:
    """The sum over the weights of Π (kept + lost) − Π kept over the axes, without a difference."""
    kept = [own for own, _ in parts]
    lost = [own for _, own in parts]
    both = [own + other for own, other in parts]
    own = [
        terms.contracted([*kept[:axis], one, *both[axis + 1 :]]) for axis, one in enumerate(lost)
    ]
    return np.asarray(np.sum(own, axis=0))


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
        # A core may have fewer columns along one axis than along another: the rest is 0.
        self.columns = [f.shape[1] for f in terms.factors]
        widest = max(self.columns)
        spare = [((0, 0), (0, widest - columns)) for columns in self.columns]
        self.factors = [np.concatenate(list(map(np.pad, terms.factors, spare)))]
        self.exponents = [(0,) * len(terms.factors)]

    def lost(self, booked: Floats) -> tuple[float, int]:
        """What falls into padding where T is applied to ``Σ_j booked[j]·T^j`` of the block, as a
        number and log2 of its factor."""
        used = np.flatnonzero(booked)
        if not used.size:
            return 0.0, 0
        first, stop = int(used[0]), int(used[-1]) + 1
        mantissas, exponents = self.values(first, booked[first:stop])
        top = int(exponents.max())
        lowered = np.ldexp(mantissas, np.maximum(exponents - top, -2000))
        total = 0.0
        kept, lost = self.step.ends
        for start in range(0, len(lowered), TOGETHER):
            piece = lowered[start : start + TOGETHER]
            some = self.factors[first + start : first + start + len(piece)]
            # Shape (axes, powers, columns).
            held, fallen = (np.stack([own @ f for f in some], axis=1) for own in (kept, lost))
            parts = [
                (a[:, :count], b[:, :count])
                for a, b, count in zip(held, fallen, self.columns, strict=True)
            ]
            total += float(piece @ _fallen(self.terms, parts))
        return total, top

    def values(self, first: int, values: Floats) -> tuple[Floats, Integers]:
        """What powers are multiplied by, near 1, and the exponents that it lacks."""
        stop = first + len(values)
        self._extend(stop)
        mantissas, own = np.frexp(values)
        exponents = own.astype(np.int64) - np.array(self.exponents[first:stop]).sum(axis=1)
        # A value of 0 is no term, whatever its power has shrunk to.
        exponents[values == 0] = _NOTHING
        return mantissas, exponents

    def beside(self, first: int, stop: int) -> tuple[Floats, ...]:
        """The factors of the powers first … stop−1 side by side, shape (pixels, powers·columns) an
        axis."""
        found = []
        for start, end in itertools.pairwise(self.ends):
            table = np.stack([f[start:end] for f in self.factors[first:stop]], axis=1)
            # Subnormal numbers slow a matrix product down a hundred times.
            for rows in np.split(table, range(TOGETHER, len(table), TOGETHER)):
                rows[np.abs(rows) < _TINY] = 0
            found.append(table.reshape(end - start, -1))
        return tuple(found)

    def alone(self, power: int) -> tuple[Floats, ...]:
        """The factors of one power, an axis each."""
        parts = zip(self._split(self.factors[power], 0), self.columns, strict=True)
        return tuple(own[:, :columns] for own, columns in parts)

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


class Weighted(NamedTuple):
    """Terms whose weights lack a power of two.

    Attributes:
        factors, weights: as of `Terms`.
        exponents: log2 of what the weights lack, one for all or one a term.
    """

    factors: tuple[Floats, ...]
    weights: Floats
    exponents: Integers

    def lowered(self, top: int) -> Terms:
        """The terms over 2^top."""
        weights = np.ldexp(self.weights, np.maximum(self.exponents - top, -2000))
        return Terms(self.factors, weights)


class Block:
    """An image, terms·2^exponent, and its powers under each map that is applied to it again and
    again.

    Attributes:
        signed: whether a factor has ever been negative.
    """

    def __init__(self, terms: Terms, exponent: int = 0, *, signed: bool = False) -> None:
        self.terms, self.exponent, self.signed = terms, exponent, signed
        self._powers: dict[int, Powers] = {}

    @cached_property
    def absolute(self) -> Block:
        """The image with all signs dropped: what bounds the rounding of whatever is made of it."""
        return Block(self.terms.absolute(), self.exponent) if self.signed else self

    def under(self, step: Passage) -> Powers:
        if id(step) not in self._powers:
            self._powers[id(step)] = Powers(self.terms, step)
        return self._powers[id(step)]

    def weighted(self, step: Passage | None, first: int, values: Floats) -> list[Weighted]:
        """``Σ_j values[j]·step^(first + j)`` of the image; with a core, one part a power."""
        if step is None:
            value, exponent = math.frexp(float(values[0]))
            exponents = np.array(exponent + self.exponent)
            return [Weighted(self.terms.factors, self.terms.weights * value, exponents)]
        powers, used = self.under(step), np.flatnonzero(values)
        start, stop = int(used[0]), int(used[-1]) + 1
        mantissas, exponents = powers.values(first + start, values[start:stop])
        exponents += self.exponent
        weights = np.multiply.outer(mantissas, self.terms.weights)
        if not self.terms.diagonal:
            return [
                Weighted(powers.alone(first + start + j), own, exponents[j])
                for j, own in enumerate(weights)
            ]
        beside = powers.beside(first + start, first + stop)
        return [Weighted(beside, weights.ravel(), np.repeat(exponents, weights.shape[1]))]
