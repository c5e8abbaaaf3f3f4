"""What an engine's work will be: its operations, window, time and memory, without an array.

Layer by layer that is what a walk over windows alone finds (`rehearsal`); where the network has a
transfer function, its algebra gives the window of a thousand equal layers at the cost of one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastrf.engine import cost, factored, spectral
from fastrf.engine.cost import Costs, dtype_factor
from fastrf.engine.memory import room_for
from fastrf.engine.projections import of_each, projections
from fastrf.engine.reach import tail_nats
from fastrf.engine.rehearsal import Survey, survey
from fastrf.engine.scaled import Headroom
from fastrf.engine.terms import block_bytes, formed_bytes, pieces
from fastrf.engine.threads import TILE_CELLS
from fastrf.engine.transfer import transfer_function
from fastrf.engine.windows import Span
from fastrf.lowering import PlaneGraph


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one engine's work is expected to be.

    Attributes:
        operations: linear operations between the unit and the input.
        support: upper bound of the image's window on the input, (first, pixels) per axis.
        cells: pixel updates, upper bound.
        fixed: seconds that do not depend on the number of workers.
        shared: seconds of one worker, which several share.
        memory: peak memory in bytes on one thread, with that of all pixels.
        largest: pixels of the largest image.
        at_once: whether the direct engine had better take all layers in one call.
        formed: the part of `memory` that is taken only when pixels are asked for, of engines that
            leave factors.
        walked, each: bytes before the result is made, and what each thread but the first adds to
            them, of engines whose threads take memory of their own,
        finish, finish_each: and the same from then on.
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
    walked: int = 0
    each: int = 0
    finish: int = 0
    finish_each: int = 0

    @property
    def working(self) -> int:
        """Peak memory in bytes, without pixels that are formed when asked for."""
        return self.memory - self.formed

    def memory_on(self, workers: int) -> int:
        """Peak memory in bytes on so many threads."""
        if not self.walked:
            return self.memory
        more = workers - 1
        return max(self.walked + more * self.each, self.finish + more * self.finish_each)

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
    return _of_survey(survey(graph, node, unit, input_node, dtype, tail))


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
    whole, and no call takes all layers. In the time of the CPU, as all forecasts; with a buffer for
    what kernels hold on that device."""
    found = survey(graph, node, unit, input_node, dtype, tail, seen=False)
    more = dtype.itemsize * room_for(found.largest)
    return _of_survey(replace(found, walked=found.walked + more, finish=found.finish + more))


def _of_survey(found: Survey) -> Forecast:
    return Forecast(
        found.operations,
        found.support,
        found.cells,
        found.fixed,
        found.shared,
        max(found.walked, found.finish),
        found.largest,
        found.at_once,
        walked=found.walked,
        each=found.each,
        finish=found.finish,
    )


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
        surveys = [
            survey(line, node, (u,), input_node, dtype, of_each(graph, tail))
            for line, u in zip(projections(graph), unit, strict=True)
        ]
        return of_lines(surveys, dtype)
    rank = factored.rank(graph, node, input_node)
    nats = min(-Headroom.of(dtype).low * math.log(2), tail_nats(tail, graph.ndim))
    place = [u * j for u, j in zip(unit, function.jump(node), strict=True)]
    spans = factored.visible(graph, node, input_node, nats)
    support = tuple((first + p, count) for (first, count), p in zip(spans, place, strict=True))
    pixels = math.prod(count for _, count in spans)
    rows = rank * sum(count for _, count in spans)
    factor = dtype_factor(dtype)
    terms = min(rank, cost.TERMS_THAT_COUNT) if rank > 1 and graph.ndim > 1 else 0
    held, mirrored = factored.tables(graph, node, input_node)
    making = factored.making(graph, node, input_node)
    shape = tuple(count for _, count in spans)
    formed = formed_bytes(shape, rank, dtype, mirrored)
    form = pixels * (cost.WRITE_NANOSECONDS * factor + terms * cost.TERM_NANOSECONDS)
    if terms:
        form += 1e9 * cost.PIECE_SECONDS * pieces(shape, mirrored)
    # A few of each axis' length: bounds, sums, and the profiles of a single term.
    lines = (8 + (dtype.itemsize if graph.ndim > 1 else 0)) * sum(count for _, count in spans)
    return Forecast(
        len(function.operations),
        support,
        pixels + rows,
        cost.PROFILES_SECONDS + len(function.distinct) * cost.WALK_SECONDS,
        1e-9 * (form + rows * cost.ROW_NANOSECONDS)
        + factored.making_seconds(graph, node, input_node),
        cost.FIELD_BYTES + max(held + making, held + lines + formed),
        pixels,
        formed=max(0, lines + formed - max(making, lines)),
        walked=cost.FIELD_BYTES + held + making,
        each=making if rank > 1 else 0,
        finish=cost.FIELD_BYTES + held + lines + formed,
        finish_each=block_bytes(shape, mirrored) if terms and pixels >= 2 * TILE_CELLS else 0,
    )


def of_lines(surveys: Sequence[Survey | Forecast], dtype: np.dtype[Any]) -> Forecast:
    """Of an outer product of what is computed along each axis, once for axes that are alike: those
    have one survey."""
    distinct = {id(found): found for found in surveys}.values()
    first = [next(axis for axis, s in enumerate(surveys) if s is found) for found in distinct]
    support = tuple(span for found in surveys for span in found.support)
    shape = tuple(max(count, 0) for _, count in support)
    pixels, formed = math.prod(shape), formed_bytes(shape, 1, dtype)
    # One line after the other; then all, in float64 and in the image's type, if that is another,
    # of which it is looked where they can be seen.
    walks = [max(found.walked, found.finish) for found in distinct]
    before = [dtype.itemsize * sum(shape[:axis]) for axis in first]
    lines = (8 + (dtype.itemsize if dtype.itemsize < 8 else 0)) * sum(shape)
    longest = max(shape, default=0)
    working = max(lines + 9 * longest, *map(sum, zip(walks, before, strict=True)))
    # And the first once more, weighted.
    memory = max(working, 8 * sum(shape) + 8 * longest + formed)
    return Forecast(
        surveys[0].operations,
        support,
        sum(found.cells for found in distinct) + (pixels if len(surveys) > 1 else 0),
        cost.PROFILES_SECONDS + sum(found.fixed for found in distinct),
        sum(found.shared for found in distinct)
        + 1e-9 * dtype_factor(dtype) * pixels * cost.WRITE_NANOSECONDS,
        memory + len(surveys) * cost.FIELD_BYTES,
        pixels,
        formed=memory - working,
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
    found = spectral.outlook(function, tail, tol, dtype)
    place = [u * j for u, j in zip(unit, function.jump(node), strict=True)]
    support = tuple(
        (first + p, last - first + 1) for (first, last), p in zip(found.windows, place, strict=True)
    )
    pixels = math.prod(count for _, count in support)
    distinct = len(function.distinct)
    stages = math.log2(found.grid + 1)
    nanoseconds = found.grid * stages * cost.FFT_NANOSECONDS
    nanoseconds += found.lines + found.points * function.joint * cost.FREQUENCY_NANOSECONDS
    nanoseconds += 3 * pixels * cost.WRITE_NANOSECONDS
    return Forecast(
        len(function.operations),
        support,
        found.points * distinct + found.grid,
        (1 + graph.ndim) * cost.WAVES_SECONDS + distinct * (cost.WALK_SECONDS + cost.WAVE_SECONDS),
        1e-9 * nanoseconds,
        max(found.walked, found.finish) + cost.FIELD_BYTES,
        pixels,
        walked=found.walked + cost.FIELD_BYTES,
        each=found.each,
        finish=found.finish + cost.FIELD_BYTES,
    )
