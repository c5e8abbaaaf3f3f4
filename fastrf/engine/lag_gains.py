"""What a covariance at each lag hands to the input, summed over all pixels, far from borders.

What arrives at the input is linear in a plane's covariances: Σ_τ G(τ)·Σ_i Cov(g[i], g[i + τ]), with
gains G(τ) that follow from those of the maps below as the images of `upward_correlated` do, pixels
left out. G(0) alone, of planes below which variances suffice, is `program.mean_gains`. Where a map
treats pixels differently (phases of a transposed convolution, borders of a table) G is their mean.

So a covariance of which a pixel falls into padding takes G(τ) of it along, and what has been lost
and what arrives add up to what would arrive without borders. Where coefficients are negative G may
be too: covariances that would have cancelled variances are then a loss below 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fastrf.engine.coefficients import Line, Stage, Term, terms
from fastrf.engine.coherence import Lags, Pair, coherence_of, kinds_of, lag_above, mean_share
from fastrf.engine.scaled import ZERO, Scaled
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import AxisMap, Kind, SpatialMap, Spread, Table, Window

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Gains:
    """G at all combinations of lags per axis: value = array · scale."""

    lags: Lags
    array: Floats
    scale: Scaled

    def at(self, lags: Sequence[Sequence[int]]) -> Floats:
        """Those of some lags, times 1/scale; 0 where they are not known."""
        found = np.pad(self.array, [(0, 1)] * self.array.ndim)
        for axis, (own, asked) in enumerate(zip(self.lags, lags, strict=True)):
            place = {t: n for n, t in enumerate(sorted(own))}
            found = found.take([place.get(t, len(own)) for t in asked], axis=axis)
        return found

    def times(self, factor: float) -> Gains:
        return replace(self, scale=self.scale * factor)


def lag_gains(graph: PlaneGraph, node: str, input_node: str) -> LagGains:
    """The gains of all planes between a map and an input, found at the first call."""
    return graph.once(("lag gains", node, input_node), lambda: LagGains(graph, node, input_node))


class LagGains:
    """The gains of all planes between a map and an input."""

    def __init__(self, graph: PlaneGraph, node: str, input_node: str) -> None:
        self.graph, self.coherence = graph, coherence_of(graph, node, input_node)
        alone = (frozenset((0,)),) * graph.ndim
        one = np.ones((1,) * graph.ndim)
        self.planes = {p: Gains(alone, one, Scaled.of(1.0)) for p in graph.planes_of[input_node]}
        self.read: dict[int, list[Gains]] = {}
        self.pairs: dict[int, list[Pair]] = {}
        for pair in itertools.chain.from_iterable(self.coherence.pairs.values()):
            self.pairs.setdefault(pair.above, []).append(pair)
        for op in graph.between(node, input_node):
            self._follow(op)

    def of(self, op: Operation, number: int) -> Gains | None:
        """Those of what an operation's map reads; None where nothing of it reaches the input."""
        found = self.read.get(id(op))
        return None if found is None else found[number]

    def _follow(self, op: Operation) -> None:
        for q, _ in op.sources:
            self._complete(q)
        kinds = kinds_of(self.graph, op)
        inside = self.coherence.inside(op, kinds)
        read = [self.planes[q].times(s) for q, s in op.sources if q in self.planes]
        if not inside or not read:
            return
        gains = _sum(inside[0], read)
        found = []
        for kind, move, above in zip(kinds, op.maps, inside[1:], strict=True):
            found.append(gains)
            gains = _through(kind, move, gains, above)
        self.read[id(op)] = found
        share = mean_share(self.graph, op)
        if share < 1:
            array = gains.array * share
            here = tuple(sorted(axis).index(0) for axis in gains.lags)
            array[here] = gains.array[here]
            gains = replace(gains, array=array)
        for p, part in op.targets:
            own = [gains.times(op.gain * part), *filter(None, [self.planes.get(p)])]
            if p in self.coherence.lags:
                self.planes[p] = _sum(self.coherence.lags[p], own)

    def _complete(self, plane: int) -> None:
        """Adds what deterministic ways that meet in a plane have in common."""
        for pair in self.pairs.pop(plane, ()) if plane in self.planes else ():
            below, lags = self.planes[pair.below], self.coherence.lags[plane]
            found = [self.planes[plane]]
            for a, b in pair.both_orders():
                found.append(through_ways(a, b, below, lags).times(pair.factor))
            self.planes[plane] = _sum(lags, found)


def _sum(lags: Lags, parts: Sequence[Gains]) -> Gains:
    scale = max(parts, key=lambda part: part.scale.exponent).scale
    own = [sorted(axis) for axis in lags]
    array = np.zeros(tuple(map(len, own)))
    for part in parts:
        array += part.scale.over(scale) * part.at(own)
    largest = float(np.abs(array).max())
    if not largest:
        return Gains(lags, array, ZERO)
    return Gains(lags, array / largest, scale * largest)


def _through(kind: Kind, move: SpatialMap, below: Gains, above: Lags) -> Gains:
    """The gains of what a map writes."""
    alone = all(len(axis) == 1 for axis in (*below.lags, *above))
    if kind == "random" or (alone and not move.overlaps):
        matrices = [
            _random(axis, sorted(up), sorted(down))
            for axis, up, down in zip(move.axes, above, below.lags, strict=True)
        ]
        return _applied(matrices, below, above).times(move.gain)
    own = terms((_unbounded(move),), len(above))
    if kind == "fixed":
        pairs = itertools.product(own, own)
        return _sum(above, [_mixed(a, b, below, above) for a, b in pairs])
    (chances,) = own
    mixed = _mixed(chances, chances, below, above)
    # One of a window's pixels gets all: their covariances are none of one and the same window.
    alike = _through("random", move, below, above)
    own_lags = [sorted(axis) for axis in above]
    here = tuple(axis.index(0) for axis in own_lags)
    others, variances = mixed.array.copy(), np.zeros_like(mixed.array)
    others[here] = 0
    variances[here] = alike.at(own_lags)[here]
    return _sum(above, [replace(mixed, array=others), replace(alike, array=variances)])


def _unbounded(move: SpatialMap) -> SpatialMap:
    """The map far from its borders, where it has such a place."""
    if all(isinstance(axis, Window | Spread) for axis in move.axes):
        return replace(move, size_in=None, size_out=None)
    return move


def through_ways(a: Term, b: Term, below: Gains, above: Lags) -> Gains:
    """What two deterministic ways, far from borders, make of the gains of the plane where they
    part."""
    return _mixed(far_inside(a), far_inside(b), below, above)


def far_inside(term: Term) -> Term:
    """A way far from borders, where it has such a place."""
    return tuple(
        line
        if any(not isinstance(stage.axis, Window | Spread) for stage in line.stages)
        else Line(tuple(replace(s, size_in=None, size_out=None) for s in line.stages))
        for line in term
    )


def _random(axis: AxisMap, above: Sequence[int], below: Sequence[int]) -> Floats:
    mean = 1.0
    if isinstance(axis, Spread):
        mean = 1 / axis.stride
    elif isinstance(axis, Table):
        mean = float(axis.taps.sum()) / axis.period
    asked = [lag_above(axis, t) for t in below]
    return np.array([[mean if t == up else 0.0 for t in asked] for up in above])


def _mixed(a: Term, b: Term, below: Gains, above: Lags) -> Gains:
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
    found = np.zeros((len(above), len(below)))
    for number, t in enumerate(above):
        begins, others = b.rows(t, count, clip=False)
        for place, lag in enumerate(below):
            at = (starts - begins + lag)[:, None] + np.arange(taps.shape[1])
            inside = (at >= 0) & (at < others.shape[1])
            there = np.take_along_axis(others, at.clip(0, others.shape[1] - 1), axis=1)
            found[number, place] = (taps * np.where(inside, there, 0.0)).sum() / count
    return found


def _phases(stage: Stage) -> int:
    """Outputs in one period."""
    if isinstance(stage.axis, Spread):
        return stage.axis.stride
    return stage.axis.period if isinstance(stage.axis, Table) else 1
