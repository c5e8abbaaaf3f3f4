"""What the engine with covariances will do: as `forecast`, with the lags of each plane.

The walk follows windows and lags backwards as `correlated` does, with what it holds beside each
other: stacks of planes, the one that goes into a map, what the map works on and what comes out.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastrf.engine import cost
from fastrf.engine.chains import chains
from fastrf.engine.coefficients import Term, terms
from fastrf.engine.coherence import (
    Coherence,
    Lags,
    Pair,
    below,
    coherence_of,
    kinds_of,
    mean_share,
    united_lags,
)
from fastrf.engine.cost import dtype_factor
from fastrf.engine.forecast import Forecast
from fastrf.engine.reach import Reach, marginal, merged, pixels_of, transposed
from fastrf.engine.rehearsal import Rehearsal, Survey, pass_cost
from fastrf.engine.scaled import Headroom
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import Kind, SpatialMap, Window

POOLED = 5 / 4
"""Buffers of the direct engine are a quarter larger than what they were made for."""

_ROW_BYTES = 5 * 8
"""For each lag and pixel above and each tap: coefficients, where they meet and whether they do."""

_BUFFERS = 17 / 16
"""With what kernels hold beside their arguments: rows in float64, whatever the image's type."""

_ROOM = 1 << 15
"""Bytes of all that is no array."""

PASSED_SECONDS = 120e-6
"""Python's share of an operation: lags, stacks and their sums."""

MIXED_SECONDS = 120e-6
"""Python's share of one lag of a mixture along an axis."""


def of_correlated(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    dtype: np.dtype[Any],
    tail: float | None,
    tol: float = 0.0,
) -> Forecast:
    """What `correlated.propagate_correlated` will do, whatever `tol` is. Its memory is an upper
    bound where all pixels of the windows have values, as they do but in far tails."""
    key = ("correlated survey", node, unit, input_node, dtype, tail)

    def make() -> Forecast:
        return _Survey(graph, node, unit, input_node, dtype, tail).forecast()

    return graph.lately(key, make)


@dataclass(frozen=True, slots=True)
class _Held:
    """A plane's stack; planes that hand on all they have share one `array`."""

    reach: tuple[Reach, ...]
    lags: Lags
    array: int


@dataclass(slots=True)
class _Peak:
    """Values that are held at the fullest moment."""

    stacks: dict[int, _Held] = field(default_factory=dict)
    sizes: dict[int, int] = field(default_factory=dict)
    most: int = 1

    def note(self, beside: int = 0) -> None:
        arrays = {held.array for held in self.stacks.values()}
        self.most = max(self.most, beside + sum(self.sizes[a] for a in arrays))

    def new(self, size: int) -> int:
        self.sizes[len(self.sizes)] = size
        return len(self.sizes) - 1


class _Survey:
    def __init__(
        self,
        graph: PlaneGraph,
        node: str,
        unit: tuple[int, ...],
        input_node: str,
        dtype: np.dtype[Any],
        tail: float | None,
    ) -> None:
        self.graph, self.node, self.input_node = graph, node, input_node
        self.dtype, self.tail = dtype, tail
        self.coherence: Coherence = coherence_of(graph, node, input_node)
        self.operations = graph.between(node, input_node)
        room = Headroom.of(dtype)
        self.trimmed = (room.top - room.low) * math.log(2)
        self.calls, self.cells, self.nanoseconds, self.largest = 0.0, 0, 0.0, 1
        self.peak, self.signed = _Peak(), False
        self.unpaired = dict(self.coherence.pairs)
        self.pending = Counter(pair.above for s in self.coherence.pairs.values() for pair in s)
        self.pending.update(p for op in self.operations for p, _ in op.targets)
        alone = (frozenset((0,)),) * graph.ndim
        for p in graph.planes_of[node]:
            reach = tuple(Reach((u, 1), (u, u), 0.0) for u in unit)
            self.peak.stacks[p] = _Held(reach, alone, self.peak.new(1))

    def forecast(self) -> Forecast:
        concerned = (n for n, op in enumerate(self.operations) if self.coherence.concerns(op))
        split = next(concerned, len(self.operations))
        for op in reversed(self.operations[split:]):
            self._pass(op)
        for q in sorted(self.unpaired, reverse=True):
            self._complete(q)
        stacks = self.peak.stacks
        images = {p: pixels_of(held.reach, self.trimmed) for p, held in stacks.items()}
        self.peak.note(sum(images.values()))
        lower = self._lower(split)
        upper = math.ceil(_BUFFERS * self.peak.most * self.dtype.itemsize)
        held = sum(images.values()) * self.dtype.itemsize
        factor = dtype_factor(self.dtype)
        return Forecast(
            len(self.operations),
            lower.support,
            self.cells + lower.cells,
            self.calls + lower.fixed,
            1e-9 * factor * self.nanoseconds + lower.shared,
            max(upper, held + max(lower.walked, lower.finish)) + _ROOM,
            max(self.largest, lower.largest),
            walked=max(upper, held + lower.walked) + _ROOM,
            each=lower.each,
            finish=held + lower.finish + _ROOM,
        )

    # --- with covariances -------------------------------------------------------------------

    def _pass(self, op: Operation) -> None:
        found: _Held | None = None
        for p, _ in op.targets:
            self._complete(p)
            if p in self.peak.stacks:
                found = self._added(found, self.peak.stacks[p])
            self._release(p)
        if found is None:
            return
        kinds = kinds_of(self.graph, op)
        inside = self.coherence.inside(op, kinds)
        if not inside:
            return
        entered = self._size(found)
        self.calls += PASSED_SECONDS
        if mean_share(self.graph, op) < 1 and _count(found.lags) > 1:
            self._work(entered, cost.BOX_NANOSECONDS)
            self.peak.note(2 * entered)
        held = found
        for number in range(len(op.maps) - 1, -1, -1):
            moved = self._moved(kinds[number], op.maps[number], held, inside[number], entered)
            if moved is None:
                return
            held = moved
        for q, _ in op.sources:
            if q not in self.coherence.lags:
                continue
            part = self._picked(held, self.coherence.lags[q])
            self.peak.stacks[q] = self._added(self.peak.stacks.get(q), part)

    def _release(self, plane: int) -> None:
        self.pending[plane] -= 1
        if not self.pending[plane]:
            self.peak.stacks.pop(plane, None)

    def _complete(self, plane: int) -> None:
        for pair in self.unpaired.pop(plane, ()):
            held = self.peak.stacks.get(pair.above)
            if held is not None:
                self._pair(pair, held)
            self._release(pair.above)

    def _pair(self, pair: Pair, held: _Held) -> None:
        self.signed |= pair.factor < 0
        for a, b in pair.both_orders():
            reach = merged(self._behind(a, held.reach), self._behind(b, held.reach))
            wanted = self.coherence.lags[pair.below]
            found = self._mixed(held, a, b, reach, wanted, self._size(held))
            own = _Held(found.reach, wanted, self.peak.new(self._size(found)))
            self.peak.stacks[pair.below] = self._added(self.peak.stacks.get(pair.below), own)

    def _behind(self, way: Term, reach: tuple[Reach, ...]) -> tuple[Reach, ...]:
        """What a deterministic way reaches."""
        for stages in zip(*(reversed(line.stages) for line in way), strict=True):
            sizes = tuple(stage.size_in for stage in stages if stage.size_in is not None)
            move = SpatialMap(tuple(s.axis for s in stages), "fixed", size_in=sizes or None)
            reach = _Passes(self.trimmed).transpose(move, reach) or reach
        return reach

    def _moved(
        self, kind: Kind, move: SpatialMap, held: _Held, wanted: Lags, entered: int
    ) -> _Held | None:
        """What a map hands back."""
        work = _Passes(self.trimmed)
        reach = work.transpose(move, held.reach)
        if reach is None:
            return None
        self.signed |= move.coefficients is not None
        if kind == "random" or (kind == "routing" and _count(held.lags) == 1):
            own = below(kind, move, held.lags, wanted)
            kept = self._size(held) // _count(held.lags) * _count(own)
            taken = kept if _count(own) < _count(held.lags) else 0
            count = _count(own) * (3 if self.signed else 1)
            self.peak.note(entered + taken + count * work.beside)
            self.calls += cost.OPERATION_SECONDS * len(held.reach)
            self.cells += _count(own) * work.cells
            self.nanoseconds += _count(own) * work.nanoseconds
            found = _Held(reach, own, self.peak.new(_count(own) * pixels_of(reach, self.trimmed)))
        else:
            found = held
            own_terms = terms((move,), self.graph.ndim)
            for a, b in itertools.product(own_terms, own_terms):
                found = self._mixed(held, a, b, reach, wanted, entered)
            size = self._size(found)
            if len(own_terms) > 1 or kind == "routing":
                self.peak.note(entered + 3 * size)
        # Scaled, or cut off at a border: the old one, the new one and which values are too small.
        size = self._size(found)
        self._work(size, 2 * cost.BOX_NANOSECONDS)
        self.peak.note(entered + 2 * size + size // self.dtype.itemsize)
        self.largest = max(self.largest, size)
        return found

    def _mixed(
        self, held: _Held, a: Term, b: Term, reach: tuple[Reach, ...], wanted: Lags, entered: int
    ) -> _Held:
        """As `_Correlated._mixed`."""
        lags, at = held.lags, held.reach
        size = self._size(held)
        for axis in range(len(at)):
            above, read = lags[axis], at[axis].within(self.trimmed)[1]
            lags = (*lags[:axis], wanted[axis], *lags[axis + 1 :])
            at = (*at[:axis], reach[axis], *at[axis + 1 :])
            out = _count(lags) * pixels_of(at, self.trimmed)
            # Copies, where lags are not in the order that is asked for.
            flat = size if len(at) > 1 < len(above) else 0
            copied = out if len(wanted[axis]) > 1 < _count(lags[:axis]) else 0
            taps = max(line[axis].rows(0, 1)[1].shape[1] for line in (a, b))
            rows = _ROW_BYTES * len(above) * read * taps // self.dtype.itemsize
            # Of either sign: what is positive and what is negative of what is read, and one lag.
            signs = 2 * size + out // len(wanted[axis]) if self.signed else 0
            # Along the first axis, what is read is what entered.
            before = entered if axis else 0
            self.peak.note(before + size + flat + out + max(copied, signs) + rows)
            self.calls += len(wanted[axis]) * MIXED_SECONDS
            self._work(out * taps, cost.TABLE_NANOSECONDS * (4 if self.signed else 1))
            size = out
        return _Held(at, wanted, self.peak.new(size))

    def _picked(self, held: _Held, lags: Lags) -> _Held:
        own = tuple(a & b for a, b in zip(held.lags, lags, strict=True))
        if own == held.lags:
            return held
        return _Held(
            held.reach, own, self.peak.new(self._size(held) // _count(held.lags) * _count(own))
        )

    def _added(self, a: _Held | None, b: _Held) -> _Held:
        if a is None:
            return b
        lags, reach = united_lags(a.lags, b.lags), merged(a.reach, b.reach)
        size = _count(lags) * pixels_of(reach, self.trimmed)
        self.peak.note(2 * size + self._size(b))
        self.calls += cost.POINTWISE_SECONDS
        self._work(size, 2 * cost.BOX_NANOSECONDS)
        return _Held(reach, lags, self.peak.new(size))

    def _size(self, held: _Held) -> int:
        return self.peak.sizes[held.array]

    def _work(self, cells: int, nanoseconds: float) -> None:
        self.cells += cells
        self.nanoseconds += cells * nanoseconds

    # --- variances alone --------------------------------------------------------------------

    def _lower(self, split: int) -> Survey:
        """The direct engine's walk from here to the input."""
        walk = Rehearsal(self.graph, self.node, self.input_node, self.dtype, self.tail)
        for p, held in self.peak.stacks.items():
            walk.hold(p, held.reach)
        below = set(map(id, self.operations[:split]))
        pieces = (tuple(op for op in chain if id(op) in below) for chain in chains(self.operations))
        walk.follow([piece for piece in pieces if piece])
        return walk.finished()


class _Passes:
    """Counts the pixels and the time of one map's passes: `beside` is the most pixels that a pass
    reads, if another one wrote them, and writes."""

    def __init__(self, nats: float) -> None:
        self.nats, self.cells, self.beside, self.nanoseconds = nats, 0, 0, 0.0

    def transpose(self, move: SpatialMap, reach: tuple[Reach, ...]) -> tuple[Reach, ...] | None:
        """What the transposed map reaches; None where that is padding alone."""
        sizes = move.size_in or (None,) * len(reach)
        places = zip(move.axes, reach, sizes, strict=True)
        new = tuple(transposed(a, r, n, marginal(move, i)) for i, (a, r, n) in enumerate(places))
        if any(r.span[1] <= 0 for r in new):
            return None
        if isinstance(move.taps, np.ndarray):
            self._count(pixels_of(new, self.nats), move.taps.size * cost.TAP_NANOSECONDS)
            return new
        before = 0
        for i, axis in enumerate(move.axes):
            if not (isinstance(axis, Window) and axis.kernel == axis.stride == 1):
                pixels = pixels_of((*new[: i + 1], *reach[i + 1 :]), self.nats)
                self._count(pixels, pass_cost(axis, move.axis_taps(i)))
                before, self.beside = pixels, max(self.beside, before + pixels)
        return new

    def _count(self, pixels: int, nanoseconds: float) -> None:
        self.cells += pixels
        self.nanoseconds += pixels * nanoseconds
        self.beside = max(self.beside, pixels)


def _count(lags: Lags) -> int:
    return math.prod(map(len, lags))
