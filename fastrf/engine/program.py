"""Programs: a network's whole way back to an input, as tables that one compiled call follows.

What the direct engine does to an image depends on the network alone; where the image lies and how
large its pixels are is found on the way. So a graph is translated once, for all of its maps and
units, into the tables of `fastrf.kernels.tables`, and the kernel ``walk`` follows them from
wherever a unit is. Nothing here touches a pixel.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf.engine import threads
from fastrf.engine.scaled import ONE, ZERO, Scaled
from fastrf.kernels import tables
from fastrf.kernels.tables import Tables
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import AxisMap, Everything, SpatialMap, Spread, Table, Window

AXES = 3
"""The kernels' grids have three axes; a network's are the last of them."""

POINTWISE = [tables.WINDOW, 1, 1, 1, 0, -1, -1]
"""The columns of an axis on which nothing happens."""

TILES_IN_ONE_CALL = 4
"""Images of up to so many tiles (of `threads.TILE_CELLS`; 512² pixels) go through all layers in one
call of a kernel, on one thread, where the plan finds that quicker: many equal layers without a
border go in sweeps, which save more. So do threads, of larger images (bench/bench_small.py)."""


def fits_one_call(largest: int, tail: float | None) -> bool:
    """Whether images of up to so many pixels may go through all layers in one call, on a device
    that has the kernel for it. That drops no tails."""
    return tail is None and largest <= TILES_IN_ONE_CALL * threads.TILE_CELLS


# --- gains ----------------------------------------------------------------------------------


def mean_gain(move: SpatialMap) -> float:
    """Gain of a map for gradient far from every border, averaged over the phases of a stride."""
    gain = move.gain
    for axis in move.axes:
        if isinstance(axis, Spread):
            gain /= axis.stride
        elif isinstance(axis, Table):
            gain *= float(axis.taps.sum()) / axis.period
    return gain


def mean_gains(graph: PlaneGraph, input_node: str) -> list[Scaled]:
    """Per plane, the mean gain of all paths from it to the input together; 0 where none leads."""
    return graph.once(("mean gains", input_node), lambda: _gains(graph, input_node))


def _gains(graph: PlaneGraph, input_node: str) -> list[Scaled]:
    gains = [ZERO] * len(graph.planes)
    for p in graph.planes_of[input_node]:
        gains[p] = ONE
    for op in graph.operations:
        gain = gain_below(gains, op)
        if gain.mantissa:
            gain = gain * (op.gain * math.prod(mean_gain(m) for m in op.maps))
            for p, share in op.targets:
                gains[p] = gains[p] + gain * share
    return gains


def gain_below(gains: list[Scaled], op: Operation) -> Scaled:
    """Mean gain from what an operation hands back to the input."""
    return _sum(gains[q] * share for q, share in op.sources)


def _sum(values: Iterable[Scaled]) -> Scaled:
    return sum(values, ZERO)


# --- programs -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Entry:
    """Where the way back from a map begins.

    Attributes:
        instruction: its first instruction.
        seeds: values that hold the unit.
        shares: what part of its gradient each of them holds.
    """

    instruction: int
    seeds: NDArray[np.int64]
    shares: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Program:
    """All ways back to one input.

    Attributes:
        tables: with taps of float64.
        entries: by node; nodes that no path leads to are missing.
        stops: node of each instruction that reads the whole of an unbounded grid.
        casts: the tables by dtype.
    """

    tables: Tables
    entries: dict[str, Entry]
    stops: dict[int, str]
    casts: dict[np.dtype[Any], Tables] = field(default_factory=dict)

    def of_dtype(self, dtype: np.dtype[Any]) -> Tables:
        """The tables with taps of this dtype."""
        if dtype not in self.casts:
            self.casts[dtype] = replace(self.tables, taps=self.tables.taps.astype(dtype))
        return self.casts[dtype]


def program_of(graph: PlaneGraph, input_node: str) -> Program:
    """The program of a graph, made at the first call."""
    return graph.once(("program", input_node), lambda: _Compiler(graph, input_node).program())


class _Compiler:
    """Writes the instructions and shares out the slots."""

    def __init__(self, graph: PlaneGraph, input_node: str) -> None:
        self.graph, self.input_node = graph, input_node
        self.gains = mean_gains(graph, input_node)
        self.code: list[tuple[int, int, int, int, int]] = []
        self.factors: list[tuple[float, float, float, float, float]] = []
        self.maps = _Maps(graph.ndim)
        self.slot_of: list[int] = []
        self.holders: list[int] = []  # per slot, the values in use that are in it
        self.value_of: dict[int, int] = {}  # by plane
        self.entries: dict[str, Entry] = {}
        self.stops: dict[int, str] = {}

    def program(self) -> Program:
        operations = [
            op for op in self.graph.operations if any(self.gains[q].mantissa for q, _ in op.sources)
        ]
        pending = Counter(p for op in operations for p, _ in op.targets)
        for op in reversed(operations):
            if op.node not in self.entries:
                self._enter(op.node)
            value = self._follow(op, self._gradient(op))
            for q, share in op.sources:
                if value is not None and self.gains[q].mantissa:
                    self._hand(q, value, Scaled.of(share))
            if value is not None:
                self._drop(value)
            for p, _ in op.targets:
                pending[p] -= 1
                if not pending[p]:
                    self._drop(self.value_of.pop(p))
        self._enter(self.input_node)
        first, *others = (self.value_of[p] for p in self.graph.planes_of[self.input_node])
        result = reduce(self._added, others, first)
        own = Tables(
            np.array(self.code, np.int64).reshape(-1, 5),
            np.array(self.factors, np.float64).reshape(-1, 5),
            np.array(self.maps.axes, np.int64).reshape(-1, AXES, len(POINTWISE)),
            np.array(self.maps.kinds, np.int64).reshape(-1, 2),
            np.array(self.maps.starts, np.int64),
            np.array(self.maps.taps, np.float64),
            np.array(self.slot_of, np.int64),
            len(self.holders),
            result,
        )
        return Program(own, self.entries, self.stops)

    def _enter(self, node: str) -> None:
        """Here begins the way back from `node`; a unit on it is in all of its planes."""
        planes = self.graph.planes_of[node]
        for p in planes:
            if p not in self.value_of:
                self.value_of[p] = self._value(self._free_slot())
        self.entries[node] = Entry(
            len(self.code),
            np.array([self.value_of[p] for p in planes], np.int64),
            np.array([self.graph.planes[p].share for p in planes], np.float64),
        )

    def _gradient(self, op: Operation) -> int:
        """What enters an operation."""
        found = None
        for p, share in op.targets:
            value = self._scaled(self.value_of[p], Scaled.of(share))
            found = value if found is None else self._added(found, value)
        assert found is not None
        return found

    def _follow(self, op: Operation, value: int) -> int | None:
        """What leaves it; None where that would be unbounded."""
        if not op.maps:
            return self._replaced(value, self._scaled(value, Scaled.of(op.gain)))
        gain, below = Scaled.of(op.gain), gain_below(self.gains, op)
        for i in range(len(op.maps) - 1, -1, -1):
            move, rest = op.maps[i], below
            if move.is_global and move.size_in is None:
                self.stops[len(self.code)] = op.node
                self._write(tables.GLOBAL, value, value)
                self._drop(value)
                return None
            for m in op.maps[:i]:
                rest = rest * mean_gain(m)
            value = self._moved(value, move, gain * move.gain, rest)
            gain = ONE
        return value

    def _hand(self, plane: int, value: int, share: Scaled) -> None:
        """Adds to what a plane holds."""
        # A unit on one plane must not be seen on another: no two of them hold one value.
        held = value in self.value_of.values()
        value = self._copied(value, share) if held else self._scaled(value, share)
        if plane in self.value_of:
            value = self._added(self.value_of[plane], value)
        self.value_of[plane] = value

    # Each of these takes values and hands back a new one, held once.

    def _scaled(self, value: int, factor: Scaled) -> int:
        if factor == ONE:
            self.holders[self.slot_of[value]] += 1
            return value
        return self._copied(value, factor)

    def _copied(self, value: int, factor: Scaled) -> int:
        found = self._value(self.slot_of[value])
        self._write(tables.SCALE, found, value, factor=factor)
        return found

    def _added(self, a: int, b: int) -> int:
        found = self._value(self._free_slot())
        self._write(tables.SUM, found, a, b)
        self._drop(a)
        return self._replaced(b, found)

    def _moved(self, value: int, move: SpatialMap, gain: Scaled, rest: Scaled) -> int:
        number, in_two_steps, divisor = self.maps.number(move)
        found = self._value(self._free_slot())
        work = self._free_slot() if in_two_steps else -1
        self._write(tables.MOVE, found, value, work, number, gain, divisor, rest)
        return self._replaced(value, found)

    def _replaced(self, old: int, new: int) -> int:
        self._drop(old)
        return new

    def _value(self, slot: int) -> int:
        self.slot_of.append(slot)
        self.holders[slot] += 1
        return len(self.slot_of) - 1

    def _drop(self, value: int) -> None:
        self.holders[self.slot_of[value]] -= 1

    def _free_slot(self) -> int:
        if 0 not in self.holders:
            self.holders.append(0)
        return self.holders.index(0)

    def _write(
        self,
        operation: int,
        to: int,
        a: int,
        b: int = -1,
        by: int = -1,
        factor: Scaled = ONE,
        divisor: float = 1.0,
        rest: Scaled = ONE,
    ) -> None:
        self.code.append((operation, to, a, b, by))
        self.factors.append(
            (factor.mantissa, factor.exponent, divisor, rest.mantissa, rest.exponent)
        )


class _Maps:
    """The rows of `Tables.maps` and `Tables.kinds`, and the taps and starts that they point to."""

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim
        self.axes: list[list[list[int]]] = []
        self.kinds: list[tuple[int, int]] = []
        self.starts: list[int] = []
        self.taps: list[float] = []
        self.known: dict[int, tuple[int, bool, float]] = {}

    def number(self, move: SpatialMap) -> tuple[int, bool, float]:
        """A map's number, whether it needs a slot to work in, and what its sums of weight 1 are
        to be divided by."""
        # The graph keeps its maps, so that no other one has the same id.
        if id(move) not in self.known:
            self.known[id(move)] = self._add(move)
        return self.known[id(move)]

    def _add(self, move: SpatialMap) -> tuple[int, bool, float]:
        dense = isinstance(move.taps, np.ndarray)
        begin = self._keep(move.taps) if isinstance(move.taps, np.ndarray) else -1
        axes, divisor = [POINTWISE] * (AXES - self.ndim), 1.0
        for i, axis in enumerate(move.axes):
            size = -1 if move.size_in is None else move.size_in[i]
            columns, weight = self._axis(axis, size, None if dense else move.axis_taps(i))
            if dense:
                columns[tables.TAPS] = begin
            else:
                divisor *= weight
            axes.append(columns)
        # Sums of a Window with equal taps are never below their largest addend; all else can be.
        sinks = move.taps is not None or any(isinstance(a, Spread | Table) for a in move.axes)
        self.axes.append(axes)
        self.kinds.append((begin, int(sinks)))
        in_two_steps = dense or axes[0][: tables.DILATION] != POINTWISE[: tables.DILATION]
        return len(self.axes) - 1, in_two_steps, divisor

    def _axis(self, axis: AxisMap, size: int, taps: Any) -> tuple[list[int], float]:
        """An axis' columns, and the number of equal taps of a sum."""
        if isinstance(axis, Everything):
            return [tables.EVERYTHING, 1, 1, 1, 0, size, -1], float(size)
        if isinstance(axis, Table):
            lo = len(self.starts)
            self.starts += axis.starts.tolist()
            k, period = axis.taps.shape[1], axis.period
            return [tables.TABLE, k, period, axis.advance, lo, size, self._keep(axis.taps)], 1.0
        kind = tables.WINDOW if isinstance(axis, Window) else tables.SPREAD
        begin = -1 if taps is None else self._keep(taps)
        columns = [kind, axis.kernel, axis.stride, axis.dilation, axis.lo, size, begin]
        return columns, float(axis.kernel) if taps is None else 1.0

    def _keep(self, taps: NDArray[np.float64]) -> int:
        begin = len(self.taps)
        self.taps += taps.ravel().tolist()
        return begin
