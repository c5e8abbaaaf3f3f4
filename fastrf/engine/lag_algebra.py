"""Numbers for every lag, and what maps make of them: far from borders, pixels left out.

A covariance of a map's gradient at the lag τ comes from those of the maps above it; what it hands
on to the input, in sum, from those below (`lag_gains`); second moments of the forward signal obey
the same recursion (`forward`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastrf.engine.coefficients import Line, Stage, Term, terms
from fastrf.engine.coherence import Lags, lag_above
from fastrf.engine.scaled import ZERO, Scaled
from fastrf.maps import AxisMap, Kind, SpatialMap, Spread, Table, Window

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Gains:
    """A number for every combination of lags per axis: value = array · scale."""

    lags: Lags
    array: Floats
    scale: Scaled

    def at(self, lags: Sequence[Sequence[int]]) -> Floats:
        """Those of some lags, times 1/scale; 0 where they are not known."""
        if all(sorted(own) == list(asked) for own, asked in zip(self.lags, lags, strict=True)):
            return self.array
        found = np.zeros([count + 1 for count in self.array.shape])
        found[tuple(map(slice, self.array.shape))] = self.array
        for axis, (own, asked) in enumerate(zip(self.lags, lags, strict=True)):
            place = {t: n for n, t in enumerate(sorted(own))}
            found = found.take([place.get(t, len(own)) for t in asked], axis=axis)
        return found

    def times(self, factor: float) -> Gains:
        return replace(self, scale=self.scale * factor)


def summed(lags: Lags, parts: Sequence[Gains]) -> Gains:
    scale = max(parts, key=lambda part: part.scale.exponent).scale
    own = [sorted(axis) for axis in lags]
    array = np.zeros(tuple(map(len, own)))
    for part in parts:
        there = part.array if part.lags == lags else part.at(own)
        array += part.scale.over(scale) * there
    largest = float(np.abs(array).max())
    if not largest:
        return Gains(lags, array, ZERO)
    return Gains(lags, array / largest, scale * largest)


def through(kind: Kind, move: SpatialMap, below: Gains, above: Lags) -> Gains:
    """The gains of what a map writes."""
    alone = all(len(axis) == 1 for axis in (*below.lags, *above))
    if kind == "random" or (alone and not move.overlaps):
        array = below.array
        for number, (axis, up, down) in enumerate(zip(move.axes, above, below.lags, strict=True)):
            array = _handed(axis, sorted(up), sorted(down), array, number)
        return Gains(above, array, below.scale).times(move.gain)
    own = terms((unbounded(move),), len(above))
    if kind == "fixed":
        pairs = itertools.product(own, own)
        return summed(above, [mixed(a, b, below, above) for a, b in pairs])
    (chances,) = own
    apart = mixed(chances, chances, below, above)
    # One of a window's pixels gets all: their covariances are none of one and the same window.
    alike = through("random", move, below, above)
    own_lags = [sorted(axis) for axis in above]
    here = tuple(axis.index(0) for axis in own_lags)
    others, variances = apart.array.copy(), np.zeros_like(apart.array)
    others[here] = 0
    variances[here] = alike.at(own_lags)[here]
    return summed(above, [replace(apart, array=others), replace(alike, array=variances)])


def unbounded(move: SpatialMap) -> SpatialMap:
    """The map far from its borders, where it has such a place."""
    if all(isinstance(axis, Window | Spread) for axis in move.axes):
        return replace(move, size_in=None, size_out=None)
    return move


def through_ways(a: Term, b: Term, below: Gains, above: Lags) -> Gains:
    """What two deterministic ways, far from borders, make of the gains of the plane where they
    part."""
    return mixed(far_inside(a), far_inside(b), below, above)


def far_inside(term: Term) -> Term:
    """A way far from borders, where it has such a place."""
    return tuple(
        line
        if any(not isinstance(stage.axis, Window | Spread) for stage in line.stages)
        else Line(tuple(replace(s, size_in=None, size_out=None) for s in line.stages))
        for line in term
    )


def _handed(
    axis: AxisMap, above: Sequence[int], below: Sequence[int], array: Floats, number: int
) -> Floats:
    """Along one axis, what a map with weights makes of each lag of what it reads: another's, or
    nothing."""
    mean = 1.0
    if isinstance(axis, Spread):
        mean = 1 / axis.stride
    elif isinstance(axis, Table):
        mean = float(axis.taps.sum()) / axis.period
    places = {lag_above(axis, t): n for n, t in enumerate(below)}
    handed = [n for n, t in enumerate(above) if t in places]
    found = np.zeros((*array.shape[:number], len(above), *array.shape[number + 1 :]))
    read = array.take([places[above[n]] for n in handed], axis=number)
    found[(slice(None),) * number + (handed,)] = mean * read
    return found


def mixed(a: Term, b: Term, below: Gains, above: Lags) -> Gains:
    matrices = [
        _met(x, y, sorted(up), sorted(down))
        for x, y, up, down in zip(a, b, above, below.lags, strict=True)
    ]
    return _applied(matrices, below, above)


def _applied(matrices: Iterable[Floats], below: Gains, above: Lags) -> Gains:
    array = below.array
    for axis, matrix in enumerate(matrices):
        array = np.moveaxis(np.tensordot(matrix, array, (1, axis)), 0, axis)
    return Gains(above, array, below.scale)


def _met(a: Line, b: Line, above: Sequence[int], below: Sequence[int]) -> Floats:
    """Σ a[o, i]·b[o + τ, i + λ] over all i, on the average over o; of shape (τ, λ)."""
    count = math.lcm(*(math.prod(map(_phases, line.stages)) for line in (a, b)))
    starts, taps = a.rows(0, count, clip=False)
    begins, others = b.rows(above[0], above[-1] - above[0] + count, clip=False)
    lags, meets = np.array(below), np.array(above) - above[0]
    found = np.zeros((len(above), len(below)))
    for o, m in zip(*np.nonzero(taps), strict=True):
        read = begins[meets + o, None] + np.arange(others.shape[1]) - (starts[o] + m)
        place = np.searchsorted(lags, read).clip(max=len(lags) - 1)
        t, n = np.nonzero(lags[place] == read)  # a lag stands once in a row
        found[t, place[t, n]] += taps[o, m] * others[meets[t] + o, n]
    return found / count


def _phases(stage: Stage) -> int:
    """Outputs in one period."""
    if isinstance(stage.axis, Spread):
        return stage.axis.stride
    return stage.axis.period if isinstance(stage.axis, Table) else 1
