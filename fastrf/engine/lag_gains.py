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
from collections.abc import Hashable
from dataclasses import replace

import numpy as np

from fastrf.engine.coherence import Pair, coherence_of_any, is_endless, kinds_of
from fastrf.engine.lag_algebra import Floats, Gains, summed, through, through_ways
from fastrf.engine.scaled import Scaled
from fastrf.engine.stack import in_order
from fastrf.lowering import Operation, PlaneGraph
from fastrf.meanfield.slopes import slopes_of


def of_held(gains: Gains, lags: tuple[tuple[int, ...], ...]) -> Floats:
    """Gains of lags of which those beyond the first along the first axis stand for their negatives,
    too, times 1/scale."""
    found = gains.at(lags).copy()
    found[1:] *= 2
    return found


def lag_gains(graph: PlaneGraph, node: str, input_node: str) -> LagGains:
    """The gains of all planes that an input leads to, found at the first call. At lags that fields
    of maps without a spatial extent have alone, only if `node` is one."""
    key = ("lag gains", input_node, node in graph.collapsed)
    return graph.once(key, lambda: LagGains(graph, node, input_node))


class LagGains:
    """The gains of all planes that an input leads to, at all lags that the field of a map has
    there."""

    def __init__(self, graph: PlaneGraph, node: str, input_node: str) -> None:
        self.graph, self.coherence = graph, coherence_of_any(graph, node, input_node)
        self.slopes = slopes_of(graph, node, input_node)
        alone = (frozenset((0,)),) * graph.ndim
        one = np.ones((1,) * graph.ndim)
        self.planes = {p: Gains(alone, one, Scaled.of(1.0)) for p in graph.planes_of[input_node]}
        self.read: dict[int, list[Gains]] = {}
        self._held: dict[Hashable, tuple[Floats, Scaled] | None] = {}
        self.pairs: dict[int, list[Pair]] = {}
        for pair in itertools.chain.from_iterable(self.coherence.pairs.values()):
            self.pairs.setdefault(pair.above, []).append(pair)
        for op in graph.operations:
            if not is_endless(op):
                self._follow(op)

    def of(
        self, op: Operation, number: int, lags: tuple[tuple[int, ...], ...]
    ) -> tuple[Floats, Scaled] | None:
        """Those of what an operation's map reads, at lags of which each stands for its negative,
        too (`Stack`), as numbers and their factor; None where nothing of it reaches the input."""
        key = id(op), number, lags
        if key not in self._held:
            found = self.read.get(id(op))
            own = None if found is None else (of_held(found[number], lags), found[number].scale)
            self._held[key] = own
        return self._held[key]

    def _follow(self, op: Operation) -> None:
        for q, _ in op.sources:
            self._complete(q)
        kinds = kinds_of(self.graph, op)
        inside = self.coherence.inside(op, kinds)
        read = [self.planes[q].times(s) for q, s in op.sources if q in self.planes]
        if not inside or not read:
            return
        gains = summed(inside[0], read)
        found = []
        for kind, move, above in zip(kinds, op.maps, inside[1:], strict=True):
            found.append(gains)
            gains = through(kind, move, gains, above)
        self.read[id(op)] = found
        shares = self.slopes.passed(self.graph, op, tuple(map(in_order, gains.lags)))
        if shares is not None:
            gains = replace(gains, array=gains.array * shares)
        for p, part in op.targets:
            own = [gains.times(op.gain * part), *filter(None, [self.planes.get(p)])]
            if p in self.coherence.lags:
                self.planes[p] = summed(self.coherence.lags[p], own)

    def _complete(self, plane: int) -> None:
        """Adds what deterministic ways that meet in a plane have in common."""
        for pair in self.pairs.pop(plane, ()) if plane in self.planes else ():
            below, lags = self.planes[pair.below], self.coherence.lags[plane]
            found = [self.planes[plane]]
            for a, b in pair.both_orders():
                found.append(through_ways(a, b, below, lags).times(pair.factor))
            self.planes[plane] = summed(lags, found)
