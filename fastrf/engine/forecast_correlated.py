"""What the engine with covariances will do: as `forecast`, with the lags of each plane.

The walk follows windows and lags backwards as `correlated` does, with what it holds beside each
other: stacks of planes, the one that goes into a map, what the map works on and what comes out.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from fastrf.engine import cost, scratch
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
    stands_still,
    united_lags,
)
from fastrf.engine.cost import dtype_factor
from fastrf.engine.forecast import Forecast, of_lines
from fastrf.engine.lag_mixing import takes_at_once
from fastrf.engine.projections import of_each, projections
from fastrf.engine.reach import Reach, marginal, merged, pixels_of, transposed
from fastrf.engine.rehearsal import Rehearsal, Survey, correlate_cost, pass_cost
from fastrf.engine.scaled import Headroom
from fastrf.engine.stack import held_of
from fastrf.engine.windows import reached
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import Kind, SpatialMap, Window

_MEET_BYTES, _KEPT_BYTES = 8 + 8 + 1, 2 * 8
"""For each lag and pixel above and each tap that meet a lag: coefficients, where they meet and
whether they do. For each lag and pixel, what is kept of which pixels these are, and where; it takes
half as much more to find that out, before anything meets."""

_OPERATION_BYTES = 128
"""What Python holds of an operation: lags, coefficients of a line, and what was lost. Of the 959 of
densenet121 on 160 pixels tracemalloc saw 137 KiB beside arrays of 1.00 MiB when they were at their
fullest (CPython 3.11, 2026-11-28)."""

_SOME = 16
"""Pixels of which some read coefficients of either sign, where any does."""

_ROOM = 1 << 16
"""Bytes of all that is no array."""

KEPT_WALKS = 1024
"""Walks from where they narrow to one plane to the input that are kept with a graph: some ten for
each map of a network are the same as those of the maps below."""

PASSED_SECONDS = 15e-6
"""Python's share of an operation: lags, stacks and their sums."""

MIXED_SECONDS = 120e-6
"""Python's share of one lag of a mixture along an axis; of all of them at once, and then"""

MIRRORED_SECONDS = 5e-6
"""of one lag that is another's mirror image,"""

PICKED_SECONDS = 12e-6
"""of each of them."""


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


def of_projected(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    dtype: np.dtype[Any],
    tail: float | None,
    tol: float = 0.0,
) -> Forecast:
    """What `projections.propagate_projected` will do, whatever `tol` is."""
    found = [
        of_correlated(line, node, (u,), input_node, dtype, of_each(graph, tail))
        for line, u in zip(projections(graph), unit, strict=True)
    ]
    return of_lines(found, dtype)


@dataclass(frozen=True, slots=True)
class _Held:
    """A plane's stack; planes that hand on all they have share one `array`. Of one that is `signed`
    values may be negative."""

    reach: tuple[Reach, ...]
    lags: Lags
    array: int
    signed: bool = False


@dataclass(frozen=True, slots=True)
class _Walked:
    """What a walk to the input counts.

    Attributes:
        calls, nanoseconds: time of calls in seconds, and of cells;
        cells, largest, each: as of `Forecast`.
        most: values that are held at the fullest moment of the walk with covariances.
        images: pixels on all planes where it ends, and
        lower: what the direct engine does from there on.
    """

    calls: float
    cells: int
    nanoseconds: float
    largest: int
    each: int
    most: int
    images: int
    lower: Survey

    def behind(
        self, calls: float, cells: int, nanoseconds: float, largest: int, each: int, most: int
    ) -> _Walked:
        """The walk that has counted so much when this one begins."""
        return _Walked(
            calls + self.calls,
            cells + self.cells,
            nanoseconds + self.nanoseconds,
            max(largest, self.largest),
            max(each, self.each),
            max(most, self.most),
            self.images,
            self.lower,
        )


@dataclass(slots=True)
class _Peak:
    """Values that are held at the fullest moment.

    Attributes:
        stacks: by plane; `put` and `pop` change them.
        work: what is at work beside.
        sizes: of all arrays so far.
        holders: by array, the planes that hold it.
        total: values of what planes hold.
    """

    stacks: dict[int, _Held] = field(default_factory=dict)
    work: list[_Held] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    holders: Counter[int] = field(default_factory=Counter)
    total: int = 0
    most: int = 1

    def note(self, beside: int = 0) -> None:
        """Notes what planes hold, and what is at work, with so many values beside."""
        others = {held.array for held in self.work if not self.holders[held.array]}
        self.most = max(self.most, beside + self.total + sum(self.sizes[a] for a in others))

    def new(self, size: int) -> int:
        self.sizes.append(size)
        return len(self.sizes) - 1

    def put(self, plane: int, held: _Held) -> None:
        if not self.holders[held.array]:
            self.total += self.sizes[held.array]
        self.holders[held.array] += 1
        self.pop(plane)
        self.stacks[plane] = held

    def pop(self, plane: int) -> None:
        if plane in self.stacks:
            array = self.stacks.pop(plane).array
            self.holders[array] -= 1
            if not self.holders[array]:
                self.total -= self.sizes[array]


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
        self.each = 0
        self.peak = _Peak()
        self.unpaired = dict(self.coherence.pairs)
        self.pending = Counter(pair.above for s in self.coherence.pairs.values() for pair in s)
        self.pending.update(p for op in self.operations for p, _ in op.targets)
        # Planes that what has been passed reads, and what has not writes.
        self.ends, self.open = {*graph.planes_of[input_node]}, {*graph.planes_of[node]}
        alone = (frozenset((0,)),) * graph.ndim
        for p in graph.planes_of[node]:
            reach = tuple(Reach((u, 1), (u, u), 0.0) for u in unit)
            self.peak.put(p, _Held(reach, alone, self.peak.new(1)))

    def forecast(self) -> Forecast:
        walked = self._walked()
        lower, size = walked.lower, self.dtype.itemsize
        upper, held = walked.most * size, walked.images * size
        factor = dtype_factor(self.dtype)
        room = _ROOM + _OPERATION_BYTES * len(self.operations)
        return Forecast(
            len(self.operations),
            lower.support,
            walked.cells + lower.cells,
            walked.calls + lower.fixed,
            1e-9 * factor * walked.nanoseconds + lower.shared,
            max(upper, held + max(lower.walked, lower.finish)) + room,
            max(walked.largest, lower.largest),
            walked=max(upper, held + lower.walked) + room,
            each=max(walked.each, lower.each),
            finish=held + lower.finish + room,
        )

    def _walked(self) -> _Walked:
        """All the way to the input. Where it narrows to one plane the rest is the same for all maps
        above, however they came there: it is walked once, and added up from the input on."""
        concerned = (n for n, op in enumerate(self.operations) if self.coherence.concerns(op))
        split = next(concerned, len(self.operations))
        known: dict[Hashable, _Walked] = self.graph.once(
            ("correlated walks", self.input_node, self.dtype), dict
        )
        parts: list[tuple[Hashable, tuple[Any, ...]]] = []
        rest: _Walked | None = None
        for number in range(len(self.operations) - 1, split - 1, -1):
            self._pass(self.operations[number])
            narrow = self._narrow()
            if narrow is not None:
                parts.append((narrow, self._counted()))
                rest = known.get(narrow)
                if rest is not None:
                    break
        if rest is None:
            for q in sorted(self.unpaired, reverse=True):
                self._complete(q)
            stacks = self.peak.stacks.values()
            images = sum(pixels_of(held.reach, self.trimmed) for held in stacks)
            self.peak.note(images)
            lower = self._lower(split)
            rest = _Walked(*self._counted(), images, lower)
        for narrow, counted in reversed(parts):
            if len(known) >= KEPT_WALKS:
                known.clear()
            known[narrow] = rest
            rest = rest.behind(*counted)
        return rest

    def _narrow(self) -> Hashable | None:
        """What the rest of the walk depends on, where all ways that are left begin on one plane."""
        if len(self.open) > 1 or self.tail is not None:  # which depends on the whole way
            return None
        (p,) = self.open
        held, node = self.peak.stacks.get(p), self.graph.planes[p].node
        if held is None or len(self.peak.stacks) > 1 or len(self.graph.planes_of[node]) > 1:
            return None
        # Without a bound on what lies outside, no centre is asked for.
        reach = tuple(r.span if math.isinf(r.proxy) else r for r in held.reach)
        return p, self.coherence.lags[p], held.lags, self._size(held), reach, held.signed

    def _counted(self) -> tuple[float, int, float, int, int, int]:
        """What has been counted since this was asked last."""
        own = (self.calls, self.cells, self.nanoseconds, self.largest, self.each, self.peak.most)
        self.calls, self.cells, self.nanoseconds, self.largest, self.each = 0.0, 0, 0.0, 1, 0
        self.peak.most = 1
        return own

    # --- with covariances -------------------------------------------------------------------

    def _pass(self, op: Operation) -> None:
        found: _Held | None = None
        for p, _ in op.targets:
            if p in self.unpaired:
                self._complete(p)
            held = self.peak.stacks.get(p)
            if held is not None:
                found = self._added(found, held)
                self.peak.work = [found]
            self._release(p)
        self.open.update(q for q, _ in op.sources if self.pending[q] or q in self.ends)
        if found is not None:
            self._follow(op, found)
        self.peak.work = []

    def _follow(self, op: Operation, found: _Held) -> None:
        """As `_Correlated._behind`, and what planes get of it."""
        self.calls += PASSED_SECONDS
        if _count(found.lags) > 1 and mean_share(self.graph, op) < 1:
            self._work(self._size(found), cost.BOX_NANOSECONDS)
            passed = replace(found, array=self.peak.new(self._size(found)))
            self.peak.work = [found, passed]
            self.peak.note()
            found = passed  # in place of what was read
        held = found
        kinds = kinds_of(self.graph, op)
        inside = self.coherence.inside(op, kinds) if kinds else []
        for number in range(len(inside) - 2, -1, -1):
            self.peak.work = [found, held]
            moved = self._moved(kinds[number], op.maps[number], held, inside[number])
            if moved is None:
                return
            held = moved
        self.peak.work = [found, held]
        for q, _ in op.sources:
            if q not in self.coherence.lags:
                continue
            part = self._picked(held, self.coherence.lags[q])
            self.peak.work = [found, held, part]
            self.peak.put(q, self._added(self.peak.stacks.get(q), part))

    def _release(self, plane: int) -> None:
        self.pending[plane] -= 1
        if not self.pending[plane]:
            self.peak.pop(plane)
            self.open.discard(plane)

    def _complete(self, plane: int) -> None:
        for pair in self.unpaired.pop(plane, ()):
            held = self.peak.stacks.get(pair.above)
            if held is not None:
                self._pair(pair, held)
            self._release(pair.above)

    def _pair(self, pair: Pair, held: _Held) -> None:
        for a, b in pair.both_orders():
            reach = self._behind(a, held.reach)
            wanted = self.coherence.lags[pair.below]
            before = self.peak.work
            self.peak.work = [*before, held]
            found = self._mixed(held, a, b, reach, wanted)
            self.peak.work = [*before, held, found]
            if pair.factor < 0:
                self.peak.note(self._size(found))
                found = replace(found, signed=True)
            self.peak.put(pair.below, self._added(self.peak.stacks.get(pair.below), found))
            self.peak.work = before

    def _behind(self, way: Term, reach: tuple[Reach, ...]) -> tuple[Reach, ...]:
        """What a deterministic way reaches."""
        for stages in zip(*(reversed(line.stages) for line in way), strict=True):
            sizes = tuple(stage.size_in for stage in stages if stage.size_in is not None)
            move = SpatialMap(tuple(s.axis for s in stages), "fixed", size_in=sizes or None)
            reach = _Passes(self.trimmed).transpose(move, reach) or reach
        return reach

    def _moved(self, kind: Kind, move: SpatialMap, held: _Held, wanted: Lags) -> _Held | None:
        """What a map hands back."""
        if stands_still(kind, move):
            return self._picked(held, wanted)
        work, before = _Passes(self.trimmed), self.peak.work
        reach = work.transpose(move, held.reach)
        if reach is None:
            return None
        if kind == "fixed":
            found = self._fixed(move, held, reach, wanted)
        elif kind == "routing":
            found = self._routing(move, held, reach, wanted, work)
        else:
            found = self._random(move, held, reach, wanted, work)
        size = self._size(found)
        self._work(size, 2 * cost.BOX_NANOSECONDS)
        # Scaled in its place, and which values are too small; where a border cuts some off, copies
        # along one axis after the other.
        flags = size * (2 if found.signed else 1) // self.dtype.itemsize
        whole = _count(found.lags) * math.prod(work.whole)
        cut = whole + size * (2 if work.cuts > 1 else 1) if work.cuts else 0
        self.peak.work = before
        self.peak.note(max(size + flags, cut))
        self.largest = max(self.largest, size)
        return found

    def _random(
        self, move: SpatialMap, held: _Held, reach: tuple[Reach, ...], wanted: Lags, work: _Passes
    ) -> _Held:
        """As `_Correlated._random`."""
        own = below("random", move, held.lags, wanted)
        pixels = self._size(held) // _count(held.lags)
        # Lags that are taken are a copy, axis by axis.
        taken, lags = 0, held.lags
        for axis, some in enumerate(own):
            if len(some) < len(lags[axis]):
                lags = (*lags[:axis], some, *lags[axis + 1 :])
                self.peak.note(taken + _count(lags) * pixels)
                taken = _count(lags) * pixels
        for read, written, scratch_bytes in work.passes:
            # The first pass reads what is taken, the others what the one before has written.
            first = (read, written) == work.passes[0][:2]
            before = taken + (0 if first else _count(own) * read)
            # Of either sign: what is positive or negative of what is read, and written.
            signs = (read + written) if held.signed else 0
            kernel = scratch_bytes // self.dtype.itemsize
            self.peak.note(before + _count(own) * (written + signs) + kernel)
        self.calls += cost.OPERATION_SECONDS * len(held.reach)
        self.cells += _count(own) * work.cells
        self.nanoseconds += _count(own) * work.nanoseconds
        size = _count(own) * pixels_of(reach, self.trimmed)
        return _Held(reach, own, self.peak.new(size), held.signed)

    def _fixed(
        self, move: SpatialMap, held: _Held, reach: tuple[Reach, ...], wanted: Lags
    ) -> _Held:
        """What every two terms of a map hand back, added up; each has its own window."""
        own, before = terms((move,), self.graph.ndim), self.peak.work
        found: _Held | None = None
        for a, b in itertools.product(own, own):
            part = self._mixed(held, a, b, reach, wanted)
            self.peak.work = [*self.peak.work, part]
            found = self._added(found, part, alike=False)
            self.peak.work = [*before, found]
        assert found is not None
        return found

    def _routing(
        self, move: SpatialMap, held: _Held, reach: tuple[Reach, ...], wanted: Lags, work: _Passes
    ) -> _Held:
        """What one window's route hands back, and those of two, which read a copy of the rest."""
        before = self.peak.work
        picked = self._picked(held, (frozenset((0,)),) * len(held.lags))
        alone = self._random(move, picked, reach, wanted, work)
        if picked is held:
            return alone
        others = replace(held, array=self.peak.new(self._size(held)))
        (chances,) = terms((move,), self.graph.ndim)
        self.peak.work = [*before, alone, others]
        common = self._mixed(others, chances, chances, reach, wanted)
        return self._added(common, alone)  # takes less than what they have in common

    def _mixed(
        self, held: _Held, a: Term, b: Term, reach: tuple[Reach, ...], wanted: Lags
    ) -> _Held:
        """As `_Correlated._mixed`."""
        lags, at, wanted = held.lags, held.reach, held_of(wanted)
        size, mirrored = self._size(held), len(held.lags[0]) > 1
        if mirrored:
            lags = (lags[0] | {-t for t in lags[0]}, *lags[1:])
            size = size // len(held.lags[0]) * len(lags[0])
            self.peak.note(size)
            self._work(size, cost.BOX_NANOSECONDS)
            self.calls += MIRRORED_SECONDS * _count(lags) / 2
            held = replace(held, lags=lags, array=self.peak.new(size))
        signed = held.signed
        for axis in range(len(at)):
            above, read = lags[axis], at[axis].within(self.trimmed)[1]
            lags = (*lags[:axis], wanted[axis], *lags[axis + 1 :])
            at = (*at[:axis], reach[axis], *at[axis + 1 :])
            out = _count(lags) * pixels_of(at, self.trimmed)
            # Copies, where lags are not in the order that is asked for.
            flat = size if len(at) > 1 < len(above) else 0
            copied = out if len(wanted[axis]) > 1 < _count(lags[:axis]) else 0
            coefficients = [line[axis].rows(0, _SOME)[1] for line in (a, b)]
            first, second = (rows.shape[1] for rows in coefficients)
            signed = signed or any(rows.min() < 0 for rows in coefficients)
            # Of one of the two, zeros at both ends are left out.
            used = np.flatnonzero(coefficients[0].any(axis=0))
            first = int(used[-1] - used[0]) + 1 if used.size else first
            length, around = at[axis].within(self.trimmed)[1], max(above) - min(above)
            beside = size // (len(above) * read)
            if takes_at_once(read, around, len(wanted[axis]), first + second, beside):
                # All pairs of outputs; of pixels and outputs; of pixels.
                wide = read + around
                pairs, half = beside * read * wide, beside * length * wide
                both = beside * length * (length + around * length // read)
                # Of either sign: parts of what is read, one of them negated, and what is summed.
                working = max(pairs + half, half + both)
                if signed:
                    working = max(3 * pairs + 2 * half, 3 * half + 2 * both)
                self.calls += MIXED_SECONDS + len(wanted[axis]) * PICKED_SECONDS
                products = half * first + both * second
            else:
                taps = max(first, second)
                # Each lag meets those above that are less than the taps of both apart from it: more
                # of them where there are several outputs a pixel.
                apart = (first + second - 1) * max(1.0, read / max(1, length - taps + 1))
                meet = min(len(above), int(apart))
                size_of = self.dtype.itemsize
                met = (_MEET_BYTES * taps + 8) * meet * read + (8 + size_of) * taps * length
                rows = _KEPT_BYTES * len(above) * read
                rows += max(met, rows // 2)
                # Coefficients of all outputs, and where they begin.
                rows += 8 * ((1 + first) * read + (1 + second) * (read + around))
                # Of either sign: parts of what is read, and one lag.
                some = size // len(above) * meet
                signs = 2 * some + out // len(wanted[axis]) if signed else 0
                working = signs + rows // size_of
                self.each = max(self.each, met + signs * size_of)
                self.calls += len(wanted[axis]) * MIXED_SECONDS
                products = out * taps
            # Along the first axis, what is read may be what entered, and held.
            before = size if axis or mirrored else 0
            self.peak.note(before + flat + out + max(copied, working))
            self._work(products, cost.TABLE_NANOSECONDS * (4 if signed else 1))
            size = out
        return _Held(at, wanted, self.peak.new(size), signed)

    def _picked(self, held: _Held, lags: Lags) -> _Held:
        if all(some.issuperset(have) for have, some in zip(held.lags, lags, strict=True)):
            return held
        own = tuple(a & b for a, b in zip(held.lags, lags, strict=True))
        size = self._size(held) // _count(held.lags) * _count(own)
        return replace(held, lags=own, array=self.peak.new(size))

    def _added(self, a: _Held | None, b: _Held, alike: bool = True) -> _Held:
        """As `stack.Sums.sum`, of stacks whose windows and lags may be `alike`."""
        if a is None:
            return b
        lags = a.lags if a.lags == b.lags else united_lags(a.lags, b.lags)
        if a.reach == b.reach and lags is a.lags:
            reach, size = a.reach, self._size(a)
        else:
            reach = merged(a.reach, b.reach)
            size = _count(lags) * pixels_of(reach, self.trimmed)
        # The sum; and where windows or lags differ, the second part times a factor.
        alike = alike and size == self._size(a) == self._size(b)
        self.peak.note(size + (0 if alike else self._size(b)))
        self.calls += cost.POINTWISE_SECONDS
        self._work(size, 2 * cost.BOX_NANOSECONDS)
        return _Held(reach, lags, self.peak.new(size), a.signed or b.signed)

    def _size(self, held: _Held) -> int:
        return self.peak.sizes[held.array]

    def _work(self, cells: int, nanoseconds: float) -> None:
        self.cells += cells
        self.nanoseconds += cells * nanoseconds

    # --- variances alone --------------------------------------------------------------------

    def _lower(self, split: int) -> Survey:
        """The direct engine's walk from here to the input."""
        where = (self.graph, self.node, self.input_node)
        walk = Rehearsal(*where, self.dtype, self.tail, one_call=False)
        for p, held in self.peak.stacks.items():
            walk.hold(p, held.reach)
        below = set(map(id, self.operations[:split]))
        pieces = (tuple(op for op in chain if id(op) in below) for chain in chains(self.operations))
        walk.follow([piece for piece in pieces if piece])
        return walk.finished()


class _Passes:
    """Counts the pixels and the time of one map's passes.

    Attributes:
        passes: pixels that each reads and writes, and bytes that its kernel holds beside.
        whole: pixels per axis of the window that is reached, and
        cuts: the axes along which some of it is padding.
    """

    def __init__(self, nats: float) -> None:
        self.nats, self.cells, self.nanoseconds = nats, 0, 0.0
        self.passes: list[tuple[int, int, int]] = []
        self.whole, self.cuts = [0], 0

    def transpose(self, move: SpatialMap, reach: tuple[Reach, ...]) -> tuple[Reach, ...] | None:
        """What the transposed map reaches; None where that is padding alone."""
        sizes = move.size_in or (None,) * len(reach)
        places = list(zip(move.axes, reach, sizes, strict=True))
        new = tuple(transposed(a, r, n, marginal(move, i)) for i, (a, r, n) in enumerate(places))
        if any(r.span[1] <= 0 for r in new):
            return None
        spans = [r.within(self.nats) for r in reach]
        shape = [count for _, count in spans]
        ends = [reached(a, s, n) for (a, _, n), s in zip(places, spans, strict=True)]
        self.whole = [max(all_of[1], 0) for all_of, _ in ends]
        self.cuts = sum(all_of != inside for all_of, inside in ends)
        if isinstance(move.taps, np.ndarray):
            read, written = math.prod(shape), math.prod(self.whole)
            pixel, row = correlate_cost(move.taps.size)
            self._count(written, pixel)
            self.nanoseconds += math.prod(self.whole[:-1]) * row
            self.passes.append((read, written, 0))
            return new
        for i, axis in enumerate(move.axes):
            if not (isinstance(axis, Window) and axis.kernel == axis.stride == 1):
                taps, read = move.axis_taps(i), math.prod(shape)
                shape[i] = self.whole[i]
                written = math.prod(shape)
                self._count(written, pass_cost(axis, taps))
                self.passes.append((read, written, scratch.of_pass(axis, taps, shape, i, 8)))
        return new

    def _count(self, pixels: int, nanoseconds: float) -> None:
        self.cells += pixels
        self.nanoseconds += pixels * nanoseconds


def _count(lags: Lags) -> int:
    return math.prod(map(len, lags))
