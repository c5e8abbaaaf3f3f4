"""What one pass over all layers will be: each layer's part in it, by each engine."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from typing import Any

import numpy as np

from fastrf.engine import cost, factored
from fastrf.engine.coherence import coherence_of_all
from fastrf.engine.factored import Polynomial, Polynomials
from fastrf.engine.forecast import Forecast
from fastrf.engine.reach import Reach, Reaches
from fastrf.engine.rehearsal import correlate_cost
from fastrf.engine.scaled import Headroom
from fastrf.engine.terms import formed_bytes
from fastrf.engine.transfer import TransferFunction
from fastrf.engine.upward_correlated import carried
from fastrf.engine.windows import Span
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import SpatialMap, Window

LAYER_SECONDS = 100e-6
"""Python's share of one layer of a pass: windows, bookkeeping, the result (plain(1000, 3) in
bench_all_layers, one core of a Sapphire Rapids Xeon)."""


class Outlook:
    """What is known beforehand of the fields of one unit on every map below a node.

    Args:
        function: the node's, without an obstacle.
        unit: the same index on every map.
        dtype: of the images.
        tail: share of the mass that may be dropped from the outside.
    """

    def __init__(
        self,
        function: TransferFunction,
        unit: tuple[int, ...],
        dtype: np.dtype[Any],
        tail: float | None,
    ) -> None:
        self.function, self.unit, self.dtype, self.tail = function, unit, dtype, tail
        self.ndim = function.graph.ndim

    @property
    def nodes(self) -> list[str]:
        """The maps, in topological order."""
        return list(self._reaches)

    @cached_property
    def expanded(self) -> tuple[Polynomials, dict[str, Polynomial]] | str:
        """The images as polynomials, or why the factored engine does not serve all of them."""
        return factored.expanded_all(self.function)

    @property
    def rank(self) -> int | None:
        """Most separable terms of any map; None where the factored engine does not serve all."""
        if isinstance(self.expanded, str):
            return None
        return max(len(value.weights) for value in self.expanded[1].values())

    @cached_property
    def _reaches(self) -> dict[str, tuple[Reach, ...]]:
        return dict(self.function.each(Reaches(self.ndim)))

    @cached_property
    def _operations(self) -> Mapping[str, list[Operation]]:
        """Each map's own operations."""
        pieces = groupby(self.function.operations, key=lambda op: op.node)
        return {node: list(own) for node, own in pieces}

    @cached_property
    def _depths(self) -> dict[str, int]:
        return operations_below(self.function.graph, self.function.operations)

    @cached_property
    def _spans(self) -> dict[str, tuple[Span, ...]]:
        nats = -Headroom.of(self.dtype).low * math.log(2)
        if self.tail is not None:
            nats = min(nats, math.log(2 * self.ndim / self.tail))
        return {node: _within(reach, nats) for node, reach in self._reaches.items()}

    @cached_property
    def factored(self) -> dict[str, Forecast]:
        """Each map's part of `factored.factor_all`; its pixels are formed when asked for."""
        assert not isinstance(self.expanded, str)
        values, found = self.expanded[1], {}
        for node, spans in self._spans.items():
            rank = len(values[node].weights)
            pixels, length = _pixels(spans), sum(count for _, count in spans)
            terms = min(rank, cost.TERMS_THAT_COUNT) if rank > 1 < self.ndim else 0
            form = pixels * (cost.WRITE_NANOSECONDS * self._factor + terms * cost.TERM_NANOSECONDS)
            # Equally spaced terms are a piece of the largest map's.
            rows = 1 if values[node].step is not None else rank
            seconds = 1e-9 * (form + rows * length * cost.ROW_NANOSECONDS)
            formed = formed_bytes(tuple(count for _, count in spans), rank, self.dtype)
            memory = 8 * (rank + 3 * rows * length) + formed
            forecast = self._forecast(node, rank * length, seconds, memory)
            found[node] = replace(forecast, formed=formed)
        return found

    @cached_property
    def direct(self) -> dict[str, Forecast]:
        """Each map's part of `upward.propagate_upward`."""
        return {node: self._dense(node) for node in self._spans}

    def _dense(self, node: str, lags: int = 1) -> Forecast:
        pixels, own = _pixels(self._spans[node]), self._operations[node]
        read = sum(len(op.sources) for op in own)
        columns = self._spans[node][-1][1]
        passes = sum(_pass_nanoseconds(m, columns) for op in own for m in op.maps)
        fresh = passes or read > 1
        work = lags * (passes + (read * cost.BOX_NANOSECONDS if read > 1 else 0))
        work += 2 * cost.WRITE_NANOSECONDS if fresh else 0
        memory = pixels * self.dtype.itemsize if fresh else 0
        cells = lags * pixels * (1 + read if fresh else 0)
        return self._forecast(node, cells, 1e-9 * pixels * work, memory)

    @cached_property
    def correlated(self) -> dict[str, Forecast]:
        """Each map's part of `upward_correlated.propagate_upward_correlated`; the last one's has
        the memory of the images that are at work at the fullest moment, in float64."""
        graph, last = self.function.graph, self.function.node
        coherence = coherence_of_all(graph, last, self.function.input_node)
        pending = Counter(q for op in self.function.operations for q, _ in op.sources)
        held: dict[int, int] = {}
        found, most = {}, 0
        for node, own in self._operations.items():
            lags = max(len(carried(coherence, p, self.ndim)) for p in graph.planes_of[node])
            found[node] = self._dense(node, lags)
            for p in graph.planes_of[node]:
                held[p] = _pixels(self._spans[node]) * len(carried(coherence, p, self.ndim))
            # Beside them those that were added up last, and two that are being made: along the
            # first axis, and before it is cut to its size.
            most = max(most, sum(held.values()) + (lags + 2) * _pixels(self._spans[node]))
            for q, _ in (source for op in own for source in op.sources):
                pending[q] -= 1
                if not pending[q]:
                    held.pop(q, None)
        found[last] = replace(found[last], memory=found[last].memory + 8 * most)
        return found

    @cached_property
    def unseen(self) -> dict[str, Forecast]:
        """As `direct`, on a device whose values nobody looks at: a layer is at work on whole
        windows, three of them in float64, before its result is trimmed."""
        whole = {node: math.prod(r.span[1] for r in reach) for node, reach in self._reaches.items()}
        widest, found = max(whole, key=lambda node: whole[node]), dict(self.direct)
        forecast = found[widest]
        found[widest] = replace(forecast, memory=forecast.memory + 3 * 8 * whole[widest])
        return found

    def spectral(self, tol: float) -> dict[str, Forecast]:
        """Each map's part of `spectral.propagate_all`."""
        found = {}
        for node, reach in self._reaches.items():
            nats = math.log(4 * _pixels(tuple(r.span for r in reach)) / tol)
            grid = _pixels(_within(reach, nats))
            work = math.log2(grid + 1) * cost.FFT_NANOSECONDS + cost.WRITE_NANOSECONDS
            work += 2 * len(self._operations[node]) * cost.FREQUENCY_NANOSECONDS
            found[node] = self._forecast(node, grid, 1e-9 * grid * work, 8 * grid)
        return found

    def _forecast(self, node: str, cells: int, seconds: float, memory: int) -> Forecast:
        jump = self.function.jump(node)
        place = [u * j for u, j in zip(self.unit, jump, strict=True)]
        spans = self._spans[node]
        support = tuple((first + p, count) for (first, count), p in zip(spans, place, strict=True))
        depth = self._depths[node]
        return Forecast(depth, support, cells, LAYER_SECONDS, seconds, memory, _pixels(spans))

    @property
    def _factor(self) -> float:
        return cost.FLOAT32_FACTOR if self.dtype == np.float32 else 1.0


def operations_below(graph: PlaneGraph, operations: Sequence[Operation]) -> dict[str, int]:
    """For every node that the operations write, how many of them its field passes."""
    below: dict[str, int] = {}  # sets of operations, as bits
    for number, op in enumerate(operations):
        known = below.get(op.node)
        if known is None:
            known = 0
            for name in graph.network.nodes[op.node].inputs:
                known |= below.get(name, 0)
        below[op.node] = known | 1 << number
    return {node: bits.bit_count() for node, bits in below.items()}


def _within(reach: tuple[Reach, ...], nats: float) -> tuple[Span, ...]:
    return tuple(r.within(nats) for r in reach)


def _pixels(spans: tuple[Span, ...]) -> int:
    return math.prod(count for _, count in spans)


def _pass_nanoseconds(move: SpatialMap, columns: int) -> float:
    """One pixel of one layer, in rows of so many."""
    if isinstance(move.taps, np.ndarray):
        pixel, row = correlate_cost(move.taps.size)
        return pixel + row / max(columns, 1)
    widths = [a.kernel if isinstance(a, Window) else 1 for a in move.axes]
    taps = [move.axis_taps(a) for a in range(len(widths))]
    return sum(
        cost.BOX_NANOSECONDS if own is None else k * cost.TAP_NANOSECONDS
        for k, own in zip(widths, taps, strict=True)
        if k > 1
    )
