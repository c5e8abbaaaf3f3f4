"""What an engine's work will be: its operations, window, time and memory, without an array.

`Reach` says what an image can occupy. Layer by layer (`direct`) it is carried backwards as the
engine will carry images; where the network has a transfer function, its algebra gives the reach of
a thousand equal layers at the cost of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np

from fastrf.engine import cost, factored, spectral
from fastrf.engine.chains import run_lengths
from fastrf.engine.cost import Costs
from fastrf.engine.direct import fits_one_call
from fastrf.engine.scaled import Headroom
from fastrf.engine.terms import formed_bytes
from fastrf.engine.threads import TILE_CELLS
from fastrf.engine.transfer import Jump, transfer_function
from fastrf.engine.windows import Span, reached, united
from fastrf.lowering import PlaneGraph
from fastrf.maps import AxisMap, Everything, SpatialMap, Spread, Table, Window


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one engine's work is expected to be.

    Attributes:
        operations: linear operations between the unit and the input.
        support: upper bound of the image's window on the input, (first, pixels) per axis.
        cells: pixel updates, upper bound.
        fixed: seconds that do not depend on the number of workers.
        shared: seconds of one worker, which several share.
        memory: peak memory in bytes, with that of all pixels.
        largest: pixels of the largest image.
        at_once: whether the direct engine had better take all layers in one call.
        formed: the part of `memory` that is taken only when pixels are asked for, of engines that
            leave factors.
    """

    operations: int
    support: tuple[Span, ...]
    cells: int
    fixed: float
    shared: float
    memory: int
    largest: int
    at_once: bool = False
    formed: int = 0

    @property
    def working(self) -> int:
        """Peak memory in bytes, without pixels that are formed when asked for."""
        return self.memory - self.formed

    def on(self, costs: Costs) -> Forecast:
        """The same work on a device of these costs."""
        return replace(self, fixed=costs.fixed * self.fixed, shared=costs.shared * self.shared)

    def workers(self, cores: int) -> int:
        """Workers that pay."""
        return min(cores, max(1, self.largest // TILE_CELLS))

    def seconds(self, workers: int) -> float:
        return self.fixed + self.shared / workers


def of_direct(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    dtype: np.dtype[Any],
    tail: float | None,
    tol: float = 0.0,
) -> Forecast:
    """What `direct.propagate` will do, whatever `tol` is."""
    return _of_surveys([_survey(graph, node, unit, input_node, dtype, tail)], dtype)


def of_direct_unseen(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    dtype: np.dtype[Any],
    tail: float | None,
    tol: float = 0.0,
) -> Forecast:
    """As `of_direct`, on a device whose values nobody looks at (`sight.DeviceSight`): windows are
    whole, and no call takes all layers. In the time of the CPU, as all forecasts."""
    survey = _survey(graph, node, unit, input_node, dtype, tail, seen=False)
    forecast = _of_surveys([survey], dtype)
    # The result is divided by its sum, in float64, before it is trimmed.
    return replace(forecast, memory=forecast.memory + survey.largest * (8 + dtype.itemsize))


def of_factored(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    dtype: np.dtype[Any],
    tail: float | None,
    tol: float = 0.0,
) -> Forecast:
    """What `factored.propagate_factored` will do, for a field without an obstacle, whatever `tol`
    is."""
    function = transfer_function(graph, node, input_node)
    if function.obstacle is not None or not function.operations:
        lines = [factored.projected(graph, axis) for axis in range(graph.ndim)]
        surveys = [
            _survey(line, node, (u,), input_node, dtype, tail)
            for line, u in zip(lines, unit, strict=True)
        ]
        forecast = _of_surveys(surveys, dtype)
        # Lines are short against the image, of which nothing is there but the result.
        held = max(_pooled(s) for s in surveys) * dtype.itemsize
        formed = formed_bytes(tuple(n for _, n in forecast.support), 1, dtype)
        return replace(forecast, memory=cost.FIELD_BYTES + held + formed, formed=formed)
    rank = factored.rank(graph, node, input_node)
    nats = min(-Headroom.of(dtype).low * math.log(2), tail_nats(tail, graph.ndim))
    place = [u * j for u, j in zip(unit, function.jump(node), strict=True)]
    spans = factored.visible(graph, node, input_node, nats)
    support = tuple((first + p, count) for (first, count), p in zip(spans, place, strict=True))
    pixels = math.prod(count for _, count in spans)
    rows = rank * sum(count for _, count in spans)
    factor = dtype_factor(dtype)
    terms = min(rank, cost.TERMS_THAT_COUNT) if rank > 1 and graph.ndim > 1 else 0
    formed = formed_bytes(tuple(count for _, count in spans), rank, dtype)
    form = pixels * (cost.WRITE_NANOSECONDS * factor + terms * cost.TERM_NANOSECONDS)
    return Forecast(
        len(function.operations),
        support,
        pixels + rows,
        cost.PROFILES_SECONDS
        + len(function.operations) * cost.WALK_SECONDS
        + (rank - 1) * cost.TERM_SECONDS,
        1e-9 * (form + rows * cost.ROW_NANOSECONDS),
        cost.FIELD_BYTES + factored.table_bytes(graph, node, input_node) + formed,
        pixels,
        formed=formed,
    )


def of_spectral(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    dtype: np.dtype[Any],
    tail: float | None,
    tol: float,
) -> Forecast:
    """What `spectral.propagate_spectral` will do, for a field without an obstacle."""
    function = transfer_function(graph, node, input_node)
    windows, periods = spectral.window_and_periods(function, tail, tol)
    place = [u * j for u, j in zip(unit, function.jump(node), strict=True)]
    support = tuple(
        (first + p, last - first + 1) for (first, last), p in zip(windows, place, strict=True)
    )
    pixels = math.prod(count for _, count in support)
    grid = math.prod(periods)
    distinct = sum(len(stage.operations) for stage, _ in function.groups) or len(
        function.operations
    )
    transform = grid * (math.log2(grid + 1) * cost.FFT_NANOSECONDS + cost.WRITE_NANOSECONDS)
    return Forecast(
        len(function.operations),
        support,
        grid * (distinct + 1),
        len(function.operations) * cost.WALK_SECONDS + 1e-3,
        1e-9 * (transform + grid * distinct * cost.FREQUENCY_NANOSECONDS),
        16 * grid + 16 * pixels,
        pixels,
    )


def _of_surveys(surveys: Sequence[_Survey], dtype: np.dtype[Any]) -> Forecast:
    support = tuple(span for s in surveys for span in s.support)
    pixels = math.prod(max(count, 0) for _, count in support)
    factor = dtype_factor(dtype)
    # The result, and beside it what the engine holds at its fullest moment, with the free buffers
    # of its pool; a buffer is a quarter larger than what it was made for (`_pooled`).
    pooled = max(map(_pooled, surveys))
    return Forecast(
        surveys[0].operations,
        support,
        sum(s.cells for s in surveys) + (pixels if len(surveys) > 1 else 0),
        sum(s.calls for s in surveys),
        1e-9 * factor * (sum(s.nanoseconds for s in surveys) + pixels * cost.WRITE_NANOSECONDS),
        (2 * pixels + pooled) * dtype.itemsize,
        max(pixels if len(surveys) > 1 else 1, *(s.largest for s in surveys)),
        all(s.at_once for s in surveys),
    )


def _pooled(survey: _Survey) -> int:
    return 5 * (survey.held + 2 * survey.largest) // 4


def dtype_factor(dtype: np.dtype[Any]) -> float:
    return cost.FLOAT32_FACTOR if dtype == np.float32 else 1.0


# --- reach ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reach:
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
        if math.isinf(self.proxy) or math.isinf(nats):
            return self.span
        radius = math.sqrt(2 * self.proxy * nats) + 1
        start = max(self.span[0], math.floor(self.centre[0] - radius))
        stop = min(self.span[0] + self.span[1], math.ceil(self.centre[1] + radius) + 1)
        return start, stop - start

    def followed(self, other: Reach) -> Reach:
        """Of the sum of two positions that are independent of each other."""
        span = (self.span[0] + other.span[0], self.span[1] + other.span[1] - 1)
        centre = (self.centre[0] + other.centre[0], self.centre[1] + other.centre[1])
        return Reach(span, centre, self.proxy + other.proxy)

    def merged(self, other: Reach) -> Reach:
        centre = (min(self.centre[0], other.centre[0]), max(self.centre[1], other.centre[1]))
        return Reach(united(self.span, other.span), centre, max(self.proxy, other.proxy))


class Reaches:
    """The algebra (`transfer.Algebra`) of reaches, on the input grid, of unit 0."""

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim

    def one(self) -> tuple[Reach, ...]:
        return (Reach((0, 1), (0.0, 0.0), 0.0),) * self.ndim

    def of(self, move: SpatialMap, jump: Jump) -> tuple[Reach, ...]:
        found = []
        for i, (axis, j) in enumerate(zip(move.axes, jump, strict=True)):
            assert isinstance(axis, Window)
            centre = j * (_mean_tap(axis, _marginal(move, i)) - axis.lo)
            span = (-j * axis.lo, j * axis.span + 1)
            found.append(Reach(span, (centre, centre), (j * axis.span) ** 2 / 4))
        return tuple(found)

    def mixed(self, terms: Sequence[tuple[float, tuple[Reach, ...]]]) -> tuple[Reach, ...]:
        return reduce(merged, (reach for _, reach in terms))

    def times(self, a: tuple[Reach, ...], b: tuple[Reach, ...]) -> tuple[Reach, ...]:
        return tuple(x.followed(y) for x, y in zip(a, b, strict=True))

    def power(self, a: tuple[Reach, ...], n: int) -> tuple[Reach, ...]:
        return tuple(
            Reach(
                (n * r.span[0], n * (r.span[1] - 1) + 1),
                (n * r.centre[0], n * r.centre[1]),
                n * r.proxy,
            )
            for r in a
        )


def merged(a: tuple[Reach, ...], b: tuple[Reach, ...]) -> tuple[Reach, ...]:
    return tuple(x.merged(y) for x, y in zip(a, b, strict=True))


# --- layer by layer -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Survey:
    operations: int
    calls: float
    cells: int
    nanoseconds: float
    largest: int
    held: int
    support: tuple[Span, ...]
    at_once: bool


def tail_nats(tail: float | None, parts: int) -> float:
    """Beyond so many nats a Gaussian bound leaves less than what each of 2·parts sides may drop."""
    return math.inf if tail is None else math.log(2 * parts / tail)


def _survey(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    dtype: np.dtype[Any],
    tail: float | None,
    seen: bool = True,
) -> _Survey:
    """Walks the windows backwards as the direct engine will walk the images, which it trims where
    their values are `seen`."""
    key = ("survey", node, unit, input_node, dtype, tail, seen)
    return graph.lately(key, lambda: _walked(graph, node, unit, input_node, dtype, tail, seen))


def _walked(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    dtype: np.dtype[Any],
    tail: float | None,
    seen: bool,
) -> _Survey:
    room = Headroom.of(dtype)
    operations = graph.between(node, input_node)
    dropped = tail_nats(tail, graph.ndim * max(len(operations), 1))
    trimmed = min((room.top - room.low) * math.log(2) if seen else math.inf, dropped)
    final = min(-room.low * math.log(2), dropped)
    runs = run_lengths(operations)
    reaches: dict[int, tuple[Reach, ...]] = {
        p: tuple(Reach((u, 1), (u, u), 0.0) for u in unit) for p in graph.planes_of[node]
    }
    live = dict.fromkeys(reaches, 1)
    calls, cells, nanoseconds, alone, largest, held = 0.0, 0, 0.0, 0.0, 1, 1
    done: str | None = None
    idle, latest = Work(trimmed, 0), _Latest()
    counted: tuple[Reach, ...] = ()
    count = 0
    for op in reversed(operations):
        if done not in (None, op.node):
            for p in graph.planes_of[done or ""]:
                live.pop(p, None)
        done = op.node
        targets = [reaches[p] for p, _ in op.targets if p in reaches]
        if not targets:
            continue
        reach: tuple[Reach, ...] | None = reduce(merged, targets)
        if not op.maps:
            work = idle
        else:
            # Deep in a network windows fill the maps, and equal layers are equal work.
            moves, given = tuple(map(id, op.maps)), (reach, runs.get(id(op), 0))
            before = latest.get(moves)
            if before is not None and before[0] == given:
                _, work, reach = before
            else:
                work = Work(trimmed, given[1])
                for move in reversed(op.maps):
                    reach = None if reach is None else work.transpose(move, reach)
                latest[moves] = given, work, reach
        if reach is None:
            continue
        calls += work.calls * cost.OPERATION_SECONDS if op.maps else cost.POINTWISE_SECONDS
        if reach != counted:
            counted, count = reach, pixels_of(reach, trimmed)
        for q, _ in op.sources:
            if q in reaches:
                reaches[q] = merged(reaches[q], reach)
                cells += count
                nanoseconds += count * cost.BOX_NANOSECONDS
                alone += count * cost.BOX_NANOSECONDS
                live[q] = pixels_of(reaches[q], trimmed)
            else:
                reaches[q], live[q] = reach, count
        cells += work.cells
        nanoseconds += work.nanoseconds
        alone += work.alone
        largest = max(largest, work.largest, count)
        held = max(held, sum(live.values()) + 2 * work.largest)
    ends = [reaches[p] for p in graph.planes_of[input_node] if p in reaches]
    spans = tuple(r.within(final) for r in reduce(merged, ends)) if ends else ()
    if graph.ndim == 3:
        # A sweep over a volume keeps what it has summed along two axes, padded to whole vectors.
        held += largest + 2 * TILE_CELLS
    # In one call there are no threads and no sweeps.
    at_once = cost.CALL_SECONDS + len(operations) * cost.INSTRUCTION_SECONDS + 1e-9 * alone
    quicker = seen and fits_one_call(largest, tail) and at_once < calls + 1e-9 * nanoseconds
    if quicker:
        calls, nanoseconds = at_once, 0.0
    return _Survey(
        len(operations), calls, cells, nanoseconds, largest, held, spans, at_once=quicker
    )


_Latest = dict[tuple[int, ...], tuple[Any, "Work", tuple[Reach, ...] | None]]
"""By the ids of an operation's maps, the last window that they were given, the work and the window
that came of it."""


def pixels_of(reach: tuple[Reach, ...], nats: float) -> int:
    return math.prod(max(r.within(nats)[1], 0) for r in reach)


class Work:
    """Counts the pixels and the time of one operation's passes; `alone` is without sweeps, and
    `beside` the most pixels that a pass reads, if another one wrote them, and writes."""

    def __init__(self, nats: float, run: int) -> None:
        self.nats, self.run = nats, run
        self.calls, self.cells, self.largest, self.beside = 1.0, 0, 1, 0
        self.nanoseconds, self.alone = 0.0, 0.0

    def transpose(self, move: SpatialMap, reach: tuple[Reach, ...]) -> tuple[Reach, ...] | None:
        """What the transposed map reaches; None where that is padding alone."""
        sizes = move.size_in or (None,) * len(reach)
        new = tuple(
            _transposed(axis, r, n, _marginal(move, i))
            for i, (axis, r, n) in enumerate(zip(move.axes, reach, sizes, strict=True))
        )
        if any(r.span[1] <= 0 for r in new):
            return None
        grown = all(
            isinstance(a, Window) and n.span[1] == r.span[1] + a.kernel - 1
            for a, n, r in zip(move.axes, new, reach, strict=True)
        )
        if grown and (self.run > 1 or (self.run and move.taps is None and len(new) > 1)):
            self._count(pixels_of(new, self.nats), _run_cost(move, self.run), _alone_cost(move))
            self.calls = 1 / self.run
            return new
        if isinstance(move.taps, np.ndarray):
            self._count(pixels_of(new, self.nats), move.taps.size * cost.TAP_NANOSECONDS)
            return new
        before = 0
        for i, axis in enumerate(move.axes):
            if not (isinstance(axis, Window) and axis.kernel == axis.stride == 1):
                pixels = pixels_of((*new[: i + 1], *reach[i + 1 :]), self.nats)
                self._count(pixels, _pass_cost(axis, move.axis_taps(i)))
                before, self.beside = pixels, max(self.beside, before + pixels)
        return new

    def _count(self, pixels: int, nanoseconds: float, alone: float | None = None) -> None:
        self.cells += pixels
        self.nanoseconds += pixels * nanoseconds
        self.alone += pixels * (nanoseconds if alone is None else alone)
        self.largest = max(self.largest, pixels)
        self.beside = max(self.beside, pixels)


def _run_cost(move: SpatialMap, layers: int) -> float:
    """One pixel of one layer of a sweep of `layers`."""
    if move.taps is not None:
        taps = move.taps.size if isinstance(move.taps, np.ndarray) else 1
        return cost.SWEEP_NANOSECONDS / layers + taps * cost.RUN_TAP_NANOSECONDS
    windows = [a for a in move.axes if isinstance(a, Window) and a.kernel > 1]
    taps = sum(layers * (a.kernel - 1) + 1 for a in windows)
    return (cost.SWEEP_NANOSECONDS + taps * cost.RUN_TAP_NANOSECONDS) / layers


def _alone_cost(move: SpatialMap) -> float:
    """One pixel of such a layer where all layers go in one call."""
    if isinstance(move.taps, np.ndarray):
        return cost.PASS_NANOSECONDS + move.taps.size * cost.ALONE_TAP_NANOSECONDS
    taps = sum(a.kernel for a in move.axes if isinstance(a, Window) and a.kernel > 1)
    return cost.PASS_NANOSECONDS + taps * cost.ALONE_TAP_NANOSECONDS


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


def _mean_tap(window: Window, taps: Any) -> float:
    """Mean distance of a window's taps from the first one, in pixels of x."""
    if taps is None:
        return window.span / 2
    return float(taps @ np.arange(window.kernel)) * window.dilation


def _transposed(axis: AxisMap, reach: Reach, size: int | None, taps: Any) -> Reach:
    if isinstance(axis, Everything) and size is None:
        return reach  # the engine refuses it with the layer's name
    whole, span = reached(axis, reach.span, size)
    low, high = reach.centre
    if span != whole:
        # What a border leaves over has moments of its own, and little mass to measure it by.
        return Reach(span, (low, high), math.inf)
    if isinstance(axis, Window):
        shift, factor = _mean_tap(axis, taps) - axis.lo, float(axis.stride)
        width = float(axis.span)
        centre = (low * factor + shift, high * factor + shift)
        return Reach(span, centre, reach.proxy * factor**2 + width**2 / 4)
    phases = axis.stride // math.gcd(axis.stride, axis.dilation) if isinstance(axis, Spread) else 0
    if isinstance(axis, Spread) and (phases == 1 or (taps is None and axis.kernel % phases == 0)):
        # Taps of one phase only; which ones depends on the position, so the centre is a range.
        # Phases that pass different masses would tilt the distribution: no bound for them.
        width = (axis.span + axis.stride) / axis.stride
        centre = ((low + axis.lo - axis.span) / axis.stride, (high + axis.lo) / axis.stride)
        return Reach(span, centre, reach.proxy / axis.stride**2 + width**2 / 4)
    return Reach(span, (span[0], span[0] + span[1]), math.inf)
