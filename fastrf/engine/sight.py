"""What the engines know of the values that they compute, and what it costs to know more.

In the host's memory values are there to be looked at: images are trimmed by what is in them and
scaled by their largest value. To look at what a GPU computes is to wait for it, with nothing queued
behind: there the engines go by bounds that follow from the maps alone, keep the whole windows
(zeros and subnormal numbers cost a GPU nothing), and look only where the bounds have drifted so far
apart that values might leave the range of their type.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastrf.arrays import on_host
from fastrf.engine.scaled import Headroom
from fastrf.engine.windows import Span
from fastrf.maps import AxisMap, SpatialMap, Spread, Table, Window

Array = NDArray[Any]


class Sight(Protocol):
    """How an engine learns of its images.

    A bound that is given or taken is a power of two: `peak` of the largest value from above,
    `mass` of the sum of all values from below.

    Attributes:
        xp: the array namespace.
        patience: powers of two by which a largest value may lie below the top of the headroom
            once it is known.
    """

    xp: Any
    patience: int

    def trimmed(self, array: Array, origin: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
        """The array without border slabs that are known to be zero."""

    def least(self, axis: Spread | Table, taps: Array | None, span: Span) -> float:
        """The least that a pixel of y hands on along an axis, −∞ where that is not known."""

    def kept(self, move: SpatialMap, spans: Sequence[Span]) -> float:
        """The least share that a pixel of y hands on to the map, and not to its padding."""

    def has_sunk(self, array: Array, mass: float, room: Headroom) -> bool:
        """Whether the largest value may lie too far below the top of the headroom."""

    def bounds(self, array: Array, peak: float, mass: float, room: Headroom) -> tuple[float, float]:
        """Peak and mass, near enough to what they bound; −∞ where all values are known to be 0."""

    def constant(self, values: Array) -> Array:
        """Weights as an array that kernels read."""

    def read(self, *values: Any) -> list[NDArray[np.float64]]:
        """Arrays of any shape in the host's memory, in one transfer."""

    def finished(
        self, array: Array, origin: tuple[int, ...], sums: Sequence[Any]
    ) -> tuple[Array, tuple[int, ...], list[float]]:
        """A result, trimmed and contiguous, where it begins, and sums as numbers."""


def sight_of(xp: Any) -> Sight:
    """That of arrays of a namespace, NumPy or CuPy."""
    return HostSight() if xp is np else DeviceSight(xp)


class HostSight:
    """Values are there to be looked at, and no bound is asked for."""

    xp: Any = np
    patience = 32

    def trimmed(self, array: Array, origin: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
        return trimmed(array, origin)

    def least(self, axis: Spread | Table, taps: Array | None, span: Span) -> float:
        return -math.inf

    def kept(self, move: SpatialMap, spans: Sequence[Span]) -> float:
        return -math.inf

    def has_sunk(self, array: Array, mass: float, room: Headroom) -> bool:
        return True

    def bounds(self, array: Array, peak: float, mass: float, room: Headroom) -> tuple[float, float]:
        largest = _log2(float(array.max()))
        return largest, largest

    def constant(self, values: Array) -> Array:
        return values

    def read(self, *values: Any) -> list[NDArray[np.float64]]:
        return [np.asarray(value, np.float64) for value in values]

    def finished(
        self, array: Array, origin: tuple[int, ...], sums: Sequence[Any]
    ) -> tuple[Array, tuple[int, ...], list[float]]:
        array, origin = trimmed(array, origin)
        return np.ascontiguousarray(array), origin, [float(value) for value in sums]


class DeviceSight:
    """Values are computed elsewhere and later; `read` alone waits for them.

    Args:
        xp: the array namespace.
    """

    patience = 0

    def __init__(self, xp: Any) -> None:
        self.xp = xp
        self._constants: dict[tuple[Any, ...], Array] = {}

    def trimmed(self, array: Array, origin: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
        return array, origin

    def least(self, axis: Spread | Table, taps: Array | None, span: Span) -> float:
        if isinstance(axis, Table):
            return _log2(float(axis.rows(*span)[1].sum(axis=1).min()))
        return _log2(_least_phase(axis, taps, span))

    def kept(self, move: SpatialMap, spans: Sequence[Span]) -> float:
        sizes = move.size_in or (None,) * len(spans)
        pieces = [_pieces(*along) for along in zip(move.axes, spans, sizes, strict=True)]
        if isinstance(move.taps, np.ndarray):
            if any(piece is None for piece in pieces):
                return -math.inf
            parts = [piece or [slice(None)] for piece in pieces]
            return _log2(float(min(move.taps[part].sum() for part in product(*parts))))
        total = 0.0
        for number, (axis, piece) in enumerate(zip(move.axes, pieces, strict=True)):
            if piece is None:
                return -math.inf
            if piece and isinstance(axis, Window):
                taps = move.axis_taps(number)
                taps = np.full(axis.kernel, 1 / axis.kernel) if taps is None else taps
                total += _log2(min(float(taps[part].sum()) for part in piece))
        return total

    def has_sunk(self, array: Array, mass: float, room: Headroom) -> bool:
        return mass - math.log2(array.size) < room.top - room.slack

    def bounds(self, array: Array, peak: float, mass: float, room: Headroom) -> tuple[float, float]:
        if peak - (mass - math.log2(array.size)) <= room.slack:
            return peak, mass
        (largest,) = self.read(array.max())  # waits
        return (_log2(float(largest)),) * 2

    def constant(self, values: Array) -> Array:
        key = (values.dtype, values.shape, values.tobytes())
        if key not in self._constants:
            self._constants[key] = self.xp.asarray(values)
        return self._constants[key]

    def read(self, *values: Any) -> list[NDArray[np.float64]]:
        flat = [value.reshape(-1).astype(np.float64, copy=False) for value in values]
        whole = on_host(self.xp.concatenate(flat))
        ends = np.cumsum([value.size for value in values])[:-1]
        pieces: list[NDArray[np.float64]] = np.split(whole, ends)
        return [piece.reshape(value.shape) for piece, value in zip(pieces, values, strict=True)]

    def finished(
        self, array: Array, origin: tuple[int, ...], sums: Sequence[Any]
    ) -> tuple[Array, tuple[int, ...], list[float]]:
        used = [_used(array, axis) for axis in range(array.ndim)]
        found = self.read(*used, *sums)  # waits
        ends = [_ends(flags) for flags in found[: len(used)]]
        array = self.xp.ascontiguousarray(array[tuple(slice(*pair) for pair in ends)])
        origin = tuple(o + first for o, (first, _) in zip(origin, ends, strict=True))
        return array, origin, [float(value) for value in found[len(used) :]]


# --- bounds ---------------------------------------------------------------------------------


def log2_of_sum(a: float, b: float) -> float:
    """log2(2^a + 2^b)."""
    low, high = min(a, b), max(a, b)
    return high if low == -math.inf else high + math.log2(1 + 2.0 ** (low - high))


def _log2(value: float) -> float:
    return math.log2(value) if value > 0 else -math.inf


def _least_phase(axis: Spread, taps: Array | None, span: Span) -> float:
    """The least sum of the weights that a pixel of y meets: only taps of its phase of the stride
    lead to a pixel of x. Equal taps weigh 1 each."""
    weights = np.ones(axis.kernel) if taps is None else taps
    first, count = span
    places = np.arange(first, first + min(count, axis.stride))[:, None] + axis.lo
    meets = (places - np.arange(axis.kernel) * axis.dilation) % axis.stride == 0
    return float((meets * weights).sum(axis=1).min())


def _pieces(axis: AxisMap, span: Span, size: int | None) -> list[slice] | None:
    """The fewest taps that lead from any pixel of y to the map along one axis, as one part of the
    kernel or the worse of two; nothing where all do, and None where that is not known."""
    if size is None or not isinstance(axis, Window | Spread):  # the others read the map alone
        return []
    first, last = span[0], span[0] + span[1] - 1
    if isinstance(axis, Spread):
        low = -(-(first + axis.lo - axis.span) // axis.stride)
        return [] if low >= 0 and (last + axis.lo) // axis.stride < size else None
    before = axis.lo - first * axis.stride
    behind = last * axis.stride - axis.lo + axis.span - (size - 1)
    left, right = (min(max(0, -(-n // axis.dilation)), axis.kernel) for n in (before, behind))
    if left == right == 0:
        return []
    if axis.span < size:  # no pixel of y reaches beyond both ends
        return [slice(left, None), slice(0, axis.kernel - right)]
    return [slice(left, max(left, axis.kernel - right))]


# --- windows of arrays ----------------------------------------------------------------------


def trimmed(array: Array, origin: tuple[int, ...]) -> tuple[Array, tuple[int, ...]]:
    """The array without border slabs that are all zero."""
    for axis in range(array.ndim):
        count = array.shape[axis]
        if count and array[slab(axis, 0, 1)].any() and array[slab(axis, count - 1, count)].any():
            continue
        first, last = _ends(_used(array, axis))
        array = array[slab(axis, first, last)]
        origin = (*origin[:axis], origin[axis] + first, *origin[axis + 1 :])
    return array, origin


def slab(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    """The part start … stop−1 along one axis."""
    return (slice(None),) * axis + (slice(start, stop),)


def profile(array: Array, axis: int) -> Array:
    """The sums over all other axes."""
    others = _others(array, axis)
    return array.sum(axis=others, dtype=np.float64) if others else array


def _used(array: Array, axis: int) -> Any:
    """Whether anything is not 0, along an axis."""
    others = _others(array, axis)
    return array.any(axis=others) if others else np.not_equal(array, 0)


def _others(array: Array, axis: int) -> tuple[int, ...]:
    return tuple(a for a in range(array.ndim) if a != axis)


def _ends(used: NDArray[Any]) -> tuple[int, int]:
    """The first index that is used, and the one behind the last."""
    found = np.flatnonzero(used)
    return (int(found[0]), int(found[-1]) + 1) if found.size else (0, 0)
