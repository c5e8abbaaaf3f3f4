"""Which pixels a unit sees: exactly, and nothing but that."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrf.engine.tilted.taps import windows_of
from fastrf.engine.transfer import Jump, squared_up
from fastrf.maps import SpatialMap

Lattice = tuple[tuple[int, int, int], ...] | None
"""Per axis first and last exponent and the step between them (0 for one alone); None: irregular."""


class Lattices:
    """The algebra of supports that are, exactly, every s-th pixel of a box."""

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim

    def one(self) -> Lattice:
        return ((0, 0, 0),) * self.ndim

    def of(self, move: SpatialMap, jump: Jump) -> Lattice:
        taps = move.taps if isinstance(move.taps, tuple) else (move.taps,)
        if any(t is not None and not np.all(t > 0) for t in taps):
            return None
        axes = windows_of(move)
        return tuple(
            (-j * a.lo, j * (a.span - a.lo), j * a.dilation if a.kernel > 1 else 0)
            for a, j in zip(axes, jump, strict=True)
        )

    def mixed(self, terms: Sequence[tuple[float, Lattice]]) -> Lattice:
        lattices = [lattice for _, lattice in terms]
        if any(x is None for x in lattices):
            return None
        return next((x for x in lattices if all(_holds(x, y) for y in lattices)), None)

    def times(self, a: Lattice, b: Lattice) -> Lattice:
        if a is None or b is None:
            return None
        found = []
        for one, other in zip(a, b, strict=True):
            fine, coarse = sorted((one, other), key=lambda x: x[2])
            (lo, hi, step), (first, last, stride) = fine, coarse
            if step and (stride % step or hi - lo + step < stride):
                return None
            found.append((lo + first, hi + last, step or stride))
        return tuple(found)

    def power(self, a: Lattice, n: int) -> Lattice:
        return None if a is None else tuple((n * lo, n * hi, step) for lo, hi, step in a)


def _holds(a: Lattice, b: Lattice) -> bool:
    assert a is not None
    assert b is not None
    return all(
        lo <= first and last <= hi and not any(x % step if step else x for x in (first - lo, s))
        for (lo, hi, step), (first, last, s) in zip(a, b, strict=True)
    )


class Support(NamedTuple):
    """Which pixels are seen: `seen[i]` is pixel first + i."""

    seen: NDArray[np.bool_]
    first: tuple[int, ...]


FEW = 64
"""Pixels of a support that are added to another one by one; more take an FFT."""


class Supports:
    """The algebra of supports, pixel by pixel."""

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim

    def one(self) -> Support:
        return Support(np.ones((1,) * self.ndim, dtype=np.bool_), (0,) * self.ndim)

    def of(self, move: SpatialMap, jump: Jump) -> Support:
        axes = windows_of(move)
        seen = np.zeros([j * a.span + 1 for a, j in zip(axes, jump, strict=True)], dtype=np.bool_)
        steps = tuple(slice(None, None, j * a.dilation) for a, j in zip(axes, jump, strict=True))
        if isinstance(move.taps, np.ndarray):
            seen[steps] = move.taps > 0
        else:
            lines = (move.axis_taps(a) for a in range(self.ndim))
            own = [
                np.ones(w.kernel, dtype=np.bool_) if t is None else t > 0
                for w, t in zip(axes, lines, strict=True)
            ]
            seen[steps] = reduce(np.multiply.outer, own)
        return Support(seen, tuple(-j * a.lo for a, j in zip(axes, jump, strict=True)))

    def mixed(self, terms: Sequence[tuple[float, Support]]) -> Support:
        supports = [s for _, s in terms]
        first = np.min([s.first for s in supports], axis=0)
        last = np.max([np.add(s.first, s.seen.shape) for s in supports], axis=0)
        seen = np.zeros(last - first, dtype=np.bool_)
        for s in supports:
            seen[part(s.seen.shape, np.subtract(s.first, first))] |= s.seen
        return Support(seen, tuple(first.tolist()))

    def times(self, a: Support, b: Support) -> Support:
        few, many = sorted((a, b), key=lambda s: np.count_nonzero(s.seen))
        shape = [p + q - 1 for p, q in zip(a.seen.shape, b.seen.shape, strict=True)]
        if np.count_nonzero(few.seen) <= FEW:
            seen = np.zeros(shape, dtype=np.bool_)
            for place in np.argwhere(few.seen):
                seen[part(many.seen.shape, place)] |= many.seen
        else:
            from scipy.signal import fftconvolve

            # Counts of at least 1, against a rounding of some ε·√(pixels of a · pixels of b).
            seen = fftconvolve(a.seen.astype(float), b.seen.astype(float)) > 0.5
        return Support(seen, tuple(p + q for p, q in zip(a.first, b.first, strict=True)))

    def power(self, a: Support, n: int) -> Support:
        return squared_up(self, a, n)


def part(shape: Sequence[int], start: Any) -> tuple[Any, ...]:
    return tuple(slice(s, s + n) for s, n in zip(start, shape, strict=True))
