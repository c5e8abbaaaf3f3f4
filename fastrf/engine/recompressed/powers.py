"""Powers of one transposed map, applied to terms: what a stack of equal layers needs of pixels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cached_property, reduce
from operator import add
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrf.arrays import namespace
from fastrf.engine.recompressed.lowrank import Number, Terms, fetched, rounding, single
from fastrf.engine.recompressed.maps import (
    AxisOperator,
    Floats,
    Products,
    Spans,
    axis_operator,
    brought,
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

    @property
    def connections(self) -> int:
        """Most entries of the matrices, all axes together."""
        found = 0
        for vectors, axis, y, x in zip(
            self.taps.vectors, self.move.axes, self.y, self.x, strict=True
        ):
            if isinstance(axis, Everything):
                each = x[1]
            else:
                each = axis.taps.shape[1] if isinstance(axis, Table) else axis.kernel
            found += len(vectors) * y[1] * each
        return found

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
    def loses(self) -> bool:
        """Whether anything can fall into padding."""
        bounded = self.move.size_in is not None
        return bounded and any(bool(a.lost.any()) for axis in self.operators for a in axis)

    @cached_property
    def matrices(self) -> Matrices:
        """Those of the host."""
        return Matrices(self, np)


class Matrices:
    """What a passage multiplies terms with: matrices, weights and sums in one namespace.

    Those of the host stay with the passage; those of a device are brought there for a field, and
    go with it.
    """

    def __init__(self, passage: Passage, xp: Any) -> None:
        self.passage, self.xp = passage, xp

    @cached_property
    def operators(self) -> tuple[tuple[AxisOperator, ...], ...]:
        """As of the passage."""
        own = self.passage.operators
        return own if self.xp is np else tuple(tuple(a.on(self.xp) for a in axis) for axis in own)

    @cached_property
    def stacked(self) -> tuple[Any, int]:
        """The matrices of all axes in one, a block each, and how often it can be applied to numbers
        near 1 before they underflow; of a separable map."""
        if self.xp is not np:
            matrix, steps = self.passage.matrices.stacked
            return brought(matrix, self.xp), steps
        from scipy.sparse import block_diag

        axes = [own for (own,) in self.operators]
        matrix = block_diag([a.matrix for a in axes], "csr")
        matrix.sum_duplicates()
        return matrix, min(a.steps for a in axes)

    @cached_property
    def ends(self) -> tuple[Floats, Floats]:
        """`AxisOperator.kept` and `lost` for the columns of `stacked`, a row an axis."""
        axes = [own for (own,) in self.passage.operators]
        ends = np.cumsum([0, *(len(a.kept) for a in axes)]).tolist()
        kept, lost = (np.zeros((len(axes), ends[-1])) for _ in range(2))
        for number, (a, start, stop) in enumerate(zip(axes, ends[:-1], ends[1:], strict=True)):
            kept[number, start:stop], lost[number, start:stop] = a.kept, a.lost
        return self.xp.asarray(kept), self.xp.asarray(lost)

    @cached_property
    def _taps(self) -> Floats:
        """The weights of the products of vectors that the taps are the sum of."""
        own: Floats = self.xp.asarray(self.passage.taps.weights)
        return own

    def moved(self, terms: Terms, value: float = 1.0) -> Terms:
        """The transposed map of an image times a value."""
        factors = [
            self.xp.concatenate([a(f) for a in axis], axis=1)
            for axis, f in zip(self.operators, terms.factors, strict=True)
        ]
        return Terms(tuple(factors), self._weights(terms) * value)

    def moved_absolutely(self, terms: Terms, value: float = 1.0) -> Terms:
        """As `moved`, of the absolute values of all numbers: no pixel that rounds is above it."""
        factors = [
            self.xp.concatenate([a.absolute @ np.abs(f) for a in axis], axis=1)
            for axis, f in zip(self.operators, terms.factors, strict=True)
        ]
        return Terms(tuple(factors), np.abs(self._weights(terms)) * value)

    def lost(self, terms: Terms) -> Number:
        """Sum of what falls into padding of the transposed map of an image."""
        parts = []
        for axis, f in zip(self.operators, terms.factors, strict=True):
            kept = self.xp.concatenate([own.kept @ f for own in axis])
            parts.append((kept, self.xp.concatenate([own.lost @ f for own in axis])))
        return single(_fallen(Terms(terms.factors, self._weights(terms)), parts))

    def _weights(self, terms: Terms) -> Floats:
        """The weights of the columns that the map makes of those of an image."""
        found: Floats
        if self._taps.ndim == 1 and terms.diagonal:
            found = (self._taps[:, None] * terms.weights).ravel()
        elif self._taps.ndim == 1:  # the 1 of a single product
            found = terms.weights
        else:
            found = self.xp.kron(self._taps, terms.core)
        return found


def _fallen(terms: Terms, parts: Sequence[tuple[Floats, Floats]]) -> Floats:
    """The sum over the weights of Π (kept + lost) − Π kept over the axes, without a difference."""
    kept = [own for own, _ in parts]
    lost = [own for _, own in parts]
    both = [own + other for own, other in parts]
    own = [
        terms.contracted([*kept[:axis], one, *both[axis + 1 :]]) for axis, one in enumerate(lost)
    ]
    return reduce(add, own)


def _addends(axis: AxisMap, pixels: int) -> int:
    """Most products that one pixel behind a transposed map is the sum of."""
    return pixels if isinstance(axis, Table | Everything) else min(axis.kernel, pixels)


class Powers:
    """T^0, T^1, … of a block of terms, as far as they have been asked for.

    The factors of all axes lie below each other, under one matrix with a block an axis: a power is
    one call. They are kept near 1; `exponents` says by which powers of two they were raised.
    """

    def __init__(self, terms: Terms, step: Matrices) -> None:
        self.terms, self.step = terms, step
        self.ends = np.cumsum([0, *terms.shape]).tolist()
        # A core may have fewer columns along one axis than along another: the rest is 0.
        self.columns = [f.shape[1] for f in terms.factors]
        widest = max(self.columns)
        spare = [((0, 0), (0, widest - columns)) for columns in self.columns]
        self.factors = [terms.xp.concatenate(list(map(terms.xp.pad, terms.factors, spare)))]
        self.exponents = [(0,) * len(terms.factors)]

    def lost(self, booked: Floats) -> tuple[Number, int]:
        """What falls into padding where T is applied to ``Σ_j booked[j]·T^j`` of the block, as a
        number and log2 of its factor."""
        used = np.flatnonzero(booked)
        if not used.size:
            return 0.0, 0
        first, stop = int(used[0]), int(used[-1]) + 1
        mantissas, exponents = self.values(first, booked[first:stop])
        top = int(exponents.max())
        lowered = np.ldexp(mantissas, np.maximum(exponents - top, -2000))
        total: Number = 0.0
        xp, (kept, lost) = self.terms.xp, self.step.ends
        for start in range(0, len(lowered), TOGETHER):
            piece = lowered[start : start + TOGETHER]
            some = self.factors[first + start : first + start + len(piece)]
            # Shape (axes, powers, columns).
            held, fallen = (xp.stack([own @ f for f in some], axis=1) for own in (kept, lost))
            parts = [
                (a[:, :count], b[:, :count])
                for a, b, count in zip(held, fallen, self.columns, strict=True)
            ]
            total = total + single(xp.asarray(piece) @ _fallen(self.terms, parts))
        return total, top

    def values(self, first: int, values: Floats) -> tuple[Floats, Integers]:
        """What powers are multiplied by, near 1, and the exponents that it lacks: the host's."""
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
        xp, found = self.terms.xp, []
        for start, end in itertools.pairwise(self.ends):
            table = xp.stack([f[start:end] for f in self.factors[first:stop]], axis=1)
            if xp is np:
                # Subnormal numbers slow a CPU's matrix product down a hundred times.
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
                near, shifts = raised(self._split(factors, 0))
                factors = self.terms.xp.concatenate(near)
                exponents = tuple(map(add, exponents, shifts))
            self.factors.append(factors)
            self.exponents.append(exponents)

    def _split(self, array: Floats, along: int) -> tuple[Floats, ...]:
        return tuple(self.terms.xp.split(array, self.ends[1:-1], axis=along))


def raised(factors: Sequence[Floats]) -> tuple[list[Floats], list[int]]:
    """Factors times the powers of two that put their largest entries near 1, and those powers'
    log2. A device is waited for, once for all."""
    xp = namespace(factors[0])
    tops = fetched(*(np.abs(f).max() for f in factors))
    shifts = [-math.frexp(float(top))[1] if top else 0 for top in tops]
    shifts = [0 if -8 <= shift <= 8 else shift for shift in shifts]
    near = [xp.ldexp(f, shift) if shift else f for f, shift in zip(factors, shifts, strict=True)]
    return near, shifts


class Weighted(NamedTuple):
    """Terms whose weights lack a power of two.

    Attributes:
        factors, weights: as of `Terms`.
        exponents: log2 of what the weights lack, one for all or one a term; the host's.
    """

    factors: tuple[Floats, ...]
    weights: Floats
    exponents: Integers

    def lowered(self, top: int) -> Terms:
        """The terms over 2^top."""
        xp = namespace(self.weights)
        shifts = xp.asarray(np.maximum(self.exponents - top, -2000))
        return Terms(self.factors, xp.ldexp(self.weights, shifts))


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

    def under(self, step: Matrices) -> Powers:
        if id(step) not in self._powers:
            self._powers[id(step)] = Powers(self.terms, step)
        return self._powers[id(step)]

    def weighted(self, step: Matrices | None, first: int, values: Floats) -> list[Weighted]:
        """``Σ_j values[j]·step^(first + j)`` of the image; with a core, one part a power."""
        if step is None:
            value, exponent = math.frexp(float(values[0]))
            exponents = np.array(exponent + self.exponent)
            return [Weighted(self.terms.factors, self.terms.weights * value, exponents)]
        powers, used = self.under(step), np.flatnonzero(values)
        start, stop = int(used[0]), int(used[-1]) + 1
        mantissas, exponents = powers.values(first + start, values[start:stop])
        exponents += self.exponent
        own = self.terms.weights
        weights = self.terms.xp.asarray(mantissas).reshape(-1, *(1,) * own.ndim) * own
        if not self.terms.diagonal:
            return [
                Weighted(powers.alone(first + start + j), weights[j], exponents[j])
                for j in range(len(weights))
            ]
        beside = powers.beside(first + start, first + stop)
        return [Weighted(beside, weights.ravel(), np.repeat(exponents, weights.shape[1]))]
