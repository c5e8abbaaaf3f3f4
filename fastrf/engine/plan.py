"""The planner: chooses the engine and foretells its work, without touching an array."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastrf.device import Device
from fastrf.engine import cost
from fastrf.engine.factored import obstacle, projected
from fastrf.engine.scaled import Headroom
from fastrf.engine.threads import TILE_CELLS
from fastrf.engine.windows import Span, reached, united
from fastrf.errors import InputError, PlanError
from fastrf.lowering import PlaneGraph
from fastrf.maps import AxisMap, Everything, SpatialMap, Spread, Table, Window

METHODS = ("direct", "factored")
"""The engines at hand. Both add nonnegative numbers only, so both are right pixel by pixel."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be computed, how, and what it is expected to cost. `print(plan)` explains it.

    Attributes:
        node, unit, input: where the gradient starts and which input it is followed to.
        method: the engine, "direct" or "factored".
        reason: why this engine.
        accuracy: "relative": every pixel to a few ulp per layer (relative to itself).
        device, dtype, workers: what it runs on.
        operations: linear operations between the unit and the input.
        support: upper bound of the image's window on the input, (first, pixels) per axis.
        cells: pixel updates, upper bound.
        seconds: predicted time, compilation not counted.
        memory: predicted peak memory in bytes.
    """

    node: str
    unit: tuple[int, ...]
    input: str
    method: str
    reason: str
    accuracy: str
    device: str
    dtype: str
    workers: int
    operations: int
    support: tuple[Span, ...]
    cells: int
    seconds: float
    memory: int
    tail: float | None
    notes: tuple[str, ...] = field(default=())

    def __str__(self) -> str:
        window = " × ".join(str(count) for _, count in self.support)
        first = ", ".join(str(start) for start, _ in self.support)
        lines = [
            f"Plan: unit {self.unit} of {self.node!r} → {self.input!r}",
            f"  engine   {self.method}: {self.reason}",
            f"  accuracy {self.accuracy} (right pixel by pixel)",
            f"  device   {self.device}, {self.dtype}, workers {self.workers}",
            f"  work     {self.operations} operations, at most {self.cells:.3g} pixel updates",
            f"  image    at most {window} pixels from ({first})",
            f"  expected {self.seconds:.2g} s, {self.memory / 2**20:.3g} MiB",
        ]
        if self.tail is not None:
            lines.append(f"  tail     up to {self.tail:g} of the mass may be dropped")
        lines.extend(f"  note     {note}" for note in self.notes)
        return "\n".join(lines)


def make_plan(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    *,
    device: Device,
    dtype: Any = "float64",
    method: str = "auto",
    accuracy: str = "auto",
    tol: float = 1e-12,
    tail: float | None = None,
    workers: int | None = None,
    memory_limit: int | None = None,
) -> Plan:
    """Chooses the engine and foretells time and memory.

    Raises:
        InputError: an option has a value that does not exist or does not fit the network.
        PlanError: the computation would not fit into `memory_limit` bytes.
    """
    dtype = _checked_dtype(dtype)
    _check_options(method, accuracy, tol, tail, workers, memory_limit)
    why_not = obstacle(graph, node, input_node)
    if method == "factored" and why_not is not None:
        raise InputError(
            f"method='factored' needs a chain of separable layers, but {why_not}; "
            f"use method='direct' or 'auto'"
        )
    if method == "auto":
        method = "direct" if why_not is not None else "factored"
        reason = why_not or "a chain of separable layers is an outer product of profiles"
    else:
        reason = "asked for"
    if method == "factored":
        surveys = [
            _survey(projected(graph, axis), node, (unit[axis],), input_node, dtype)
            for axis in range(graph.ndim)
        ]
    else:
        surveys = [_survey(graph, node, unit, input_node, dtype)]
    support = tuple(span for s in surveys for span in s.support)
    pixels = math.prod(max(count, 0) for _, count in support)
    most = max(s.largest for s in surveys)
    workers = workers or min(_cores(), max(1, most // TILE_CELLS))
    factor = cost.FLOAT32_FACTOR if dtype == np.float32 else 1.0
    work = sum(s.nanoseconds for s in surveys) * factor / workers
    seconds = sum(s.operations for s in surveys) * cost.OPERATION_SECONDS + 1e-9 * (
        work + pixels * cost.WRITE_NANOSECONDS * factor
    )
    # The result, and beside it what the engine holds at its fullest moment, with the free buffers
    # of its pool; a buffer is a quarter larger than what it was made for.
    pooled = max(5 * (s.held + 2 * s.largest) // 4 for s in surveys)
    memory = (2 * pixels + pooled) * dtype.itemsize
    plan = Plan(
        node,
        unit,
        input_node,
        method,
        reason,
        "relative",
        device.name,
        dtype.name,
        workers,
        surveys[0].operations,
        support,
        sum(s.cells for s in surveys) + (pixels if method == "factored" else 0),
        seconds,
        memory,
        tail,
        () if device.reason == "asked for" else (device.reason,),
    )
    limit = memory_limit if memory_limit is not None else _free_memory() // 2
    if memory > limit:
        raise PlanError(
            f"the plan needs about {memory / 2**20:.3g} MiB, more than the limit of "
            f"{limit / 2**20:.3g} MiB (memory_limit, by default half of what is free); "
            f"raise memory_limit, or use tail=, dtype='float32' or an input_size"
        )
    return plan


def _checked_dtype(dtype: Any) -> np.dtype[Any]:
    found: np.dtype[Any]
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if found not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise InputError(f"dtype={dtype!r} is not possible; give 'float64' or 'float32'")
    return found


def _check_options(
    method: str,
    accuracy: str,
    tol: float,
    tail: float | None,
    workers: int | None,
    memory_limit: int | None,
) -> None:
    if method not in ("auto", *METHODS):
        raise InputError(f"method={method!r} is unknown; choose one of auto, {', '.join(METHODS)}")
    if accuracy not in ("auto", "relative", "absolute"):
        raise InputError(
            f"accuracy={accuracy!r} is unknown; choose one of auto, relative, absolute"
        )
    if not _is_number(tol) or not 0 < tol < 1:
        raise InputError(f"tol={tol!r} must lie between 0 and 1")
    if tail is not None and (not _is_number(tail) or not 0 < tail < 1):
        raise InputError(f"tail={tail!r} must lie between 0 and 1, or be None")
    for name, value in (("workers", workers), ("memory_limit", memory_limit)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise InputError(f"{name}={value!r} must be a whole number of at least 1, or None")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_memory() -> int:
    """Memory that can be taken without swapping, in bytes; 4 GiB where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 4 << 30


# --- survey ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Reach:
    """What one axis of a plane's image can occupy.

    Attributes:
        span: the window that the maps allow.
        centre: interval that holds the mean of every path.
        proxy: variance of a Gaussian whose tails bound every path's (Hoeffding 1963: positions
            within a span w add w²/4); infinite where no bound is known.
    """

    span: Span
    centre: tuple[float, float]
    proxy: float

    def within(self, nats: float) -> Span:
        """The part of the window outside which every value is below e^−nats of the mass."""
        if math.isinf(self.proxy):
            return self.span
        radius = math.sqrt(2 * self.proxy * nats) + 1
        start = max(self.span[0], math.floor(self.centre[0] - radius))
        stop = min(self.span[0] + self.span[1], math.ceil(self.centre[1] + radius) + 1)
        return start, stop - start

    def merged(self, other: _Reach) -> _Reach:
        centre = (min(self.centre[0], other.centre[0]), max(self.centre[1], other.centre[1]))
        return _Reach(united(self.span, other.span), centre, max(self.proxy, other.proxy))


@dataclass(frozen=True, slots=True)
class _Survey:
    operations: int
    cells: int
    nanoseconds: float
    largest: int
    held: int
    support: tuple[Span, ...]


def _survey(
    graph: PlaneGraph, node: str, unit: tuple[int, ...], input_node: str, dtype: np.dtype[Any]
) -> _Survey:
    """Walks the windows backwards as the direct engine will walk the images."""
    room = Headroom.of(dtype)
    trimmed, final = (room.top - room.low) * math.log(2), -room.low * math.log(2)
    operations = graph.between(node, input_node)
    reaches: dict[int, tuple[_Reach, ...]] = {
        p: tuple(_Reach((u, 1), (u, u), 0.0) for u in unit) for p in graph.planes_of[node]
    }
    live = dict.fromkeys(reaches, 1)
    cells, nanoseconds, largest, held = 0, 0.0, 1, 1
    done: str | None = None
    for op in reversed(operations):
        if done not in (None, op.node):
            for p in graph.planes_of[done or ""]:
                live.pop(p, None)
        done = op.node
        targets = [reaches[p] for p, _ in op.targets if p in reaches]
        if not targets:
            continue
        merged = targets[0]
        for more in targets[1:]:
            merged = tuple(a.merged(b) for a, b in zip(merged, more, strict=True))
        reach: tuple[_Reach, ...] | None = merged
        work = _Work(trimmed)
        for move in reversed(op.maps):
            reach = None if reach is None else work.transpose(move, reach)
        if reach is None:
            continue
        count = _pixels(reach, trimmed)
        for q, _ in op.sources:
            if q in reaches:
                reaches[q] = tuple(a.merged(b) for a, b in zip(reaches[q], reach, strict=True))
                cells += count
                nanoseconds += count * cost.BOX_NANOSECONDS
            else:
                reaches[q] = reach
            live[q] = _pixels(reaches[q], trimmed)
        cells += work.cells
        nanoseconds += work.nanoseconds
        largest = max(largest, work.largest, count)
        held = max(held, sum(live.values()) + 2 * work.largest)
    ends = [reaches[p] for p in graph.planes_of[input_node] if p in reaches]
    support = ends[0] if ends else ()
    for more in ends[1:]:
        support = tuple(a.merged(b) for a, b in zip(support, more, strict=True))
    spans = tuple(r.within(final) for r in support)
    return _Survey(len(operations), cells, nanoseconds, largest, held, spans)


def _pixels(reach: tuple[_Reach, ...], nats: float) -> int:
    return math.prod(max(r.within(nats)[1], 0) for r in reach)


class _Work:
    """Counts the pixels and the time of one operation's passes."""

    def __init__(self, nats: float) -> None:
        self.nats = nats
        self.cells, self.nanoseconds, self.largest = 0, 0.0, 1

    def transpose(self, move: SpatialMap, reach: tuple[_Reach, ...]) -> tuple[_Reach, ...] | None:
        """What the transposed map reaches; None where that is padding alone."""
        sizes = move.size_in or (None,) * len(reach)
        new = tuple(
            _transposed(axis, r, n, _marginal(move, i))
            for i, (axis, r, n) in enumerate(zip(move.axes, reach, sizes, strict=True))
        )
        if any(r.span[1] <= 0 for r in new):
            return None
        if isinstance(move.taps, np.ndarray):
            self._count(_pixels(new, self.nats), move.taps.size * cost.TAP_NANOSECONDS)
            return new
        for i, axis in enumerate(move.axes):
            if not (isinstance(axis, Window) and axis.kernel == axis.stride == 1):
                pixels = _pixels((*new[: i + 1], *reach[i + 1 :]), self.nats)
                self._count(pixels, _pass_cost(axis, move.axis_taps(i)))
        return new

    def _count(self, pixels: int, nanoseconds: float) -> None:
        self.cells += pixels
        self.nanoseconds += pixels * nanoseconds
        self.largest = max(self.largest, pixels)


def _pass_cost(axis: AxisMap, taps: Any) -> float:
    if isinstance(axis, Table):
        return int(axis.taps.shape[1]) * cost.TABLE_NANOSECONDS
    if taps is not None:
        return len(taps) * cost.TAP_NANOSECONDS
    return cost.BOX_NANOSECONDS


def _marginal(move: SpatialMap, axis: int) -> Any:
    """The variances of the taps along one axis (sum 1), None where all are equal."""
    if isinstance(move.taps, np.ndarray):
        return move.taps.sum(axis=tuple(a for a in range(move.taps.ndim) if a != axis))
    return move.axis_taps(axis)


def _transposed(axis: AxisMap, reach: _Reach, size: int | None, taps: Any) -> _Reach:
    if isinstance(axis, Everything) and size is None:
        return reach  # the engine refuses it with the layer's name
    whole, span = reached(axis, reach.span, size)
    low, high = reach.centre
    if span != whole:
        # What a border leaves over has moments of its own, and little mass to measure it by.
        return _Reach(span, (low, high), math.inf)
    if isinstance(axis, Window):
        mean = (
            axis.span / 2 if taps is None else float(taps @ np.arange(axis.kernel)) * axis.dilation
        )
        shift, factor, width = mean - axis.lo, float(axis.stride), float(axis.span)
        centre = (low * factor + shift, high * factor + shift)
        return _Reach(span, centre, reach.proxy * factor**2 + width**2 / 4)
    phases = axis.stride // math.gcd(axis.stride, axis.dilation) if isinstance(axis, Spread) else 0
    if isinstance(axis, Spread) and (phases == 1 or (taps is None and axis.kernel % phases == 0)):
        # Taps of one phase only; which ones depends on the position, so the centre is a range.
        # Phases that pass different masses would tilt the distribution: no bound for them.
        width = (axis.span + axis.stride) / axis.stride
        centre = ((low + axis.lo - axis.span) / axis.stride, (high + axis.lo) / axis.stride)
        return _Reach(span, centre, reach.proxy / axis.stride**2 + width**2 / 4)
    return _Reach(span, (span[0], span[0] + span[1]), math.inf)
