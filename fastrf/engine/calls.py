"""The fields of all maps of a network on a small image, each in one call of the kernel ``walk``.

On an image each map's unit is followed to the input by itself (`layers`). One compiled call takes
a microsecond or two for an operation, but the rehearsal that a plan rests on some two hundred: of n
maps planned one by one, n²/2 rehearsed operations are all that is waited for. So one rehearsal
stands for all: that of the last map with windows as large as the maps themselves, which no unit's
exceed. Its memory bounds that of the others, which take time in proportion to their operations.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fastrf.engine import channelwise, cost, covariance
from fastrf.engine.chains import chains
from fastrf.engine.forecast import Forecast
from fastrf.engine.reach import Reach
from fastrf.engine.rehearsal import Rehearsal, Survey
from fastrf.engine.windows import Span
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import AxisMap, Window

FEWEST = 16
"""Maps from which on it is worth it."""

PLANNED_SECONDS = 100e-6
"""What planning an operation takes, at least: where computing one takes longer, each map's plan may
look for a quicker engine."""

Line = tuple[int, int, int] | None
"""j, a, b: unit u reads pixels j·u + a to j·u + b of an axis; None: maybe all of them."""


def calls(
    graph: PlaneGraph,
    last: str,
    input_node: str,
    operations: Sequence[Operation],
    wanted: Mapping[str, tuple[int, ...]],
    depths: Mapping[str, int],
    dtype: np.dtype[Any],
) -> dict[str, Forecast]:
    """What each of the maps takes in one call, memory and windows at most; empty where some had
    better be computed in another way.

    Args:
        operations: those between the input and `last`, in order.
        wanted: units of the maps that are followed to the input by themselves.
        depths: operations below each.
    """
    if graph.input_size is None:
        return {}
    if channelwise.needed(graph, last, input_node) or covariance.needed(graph, last, input_node):
        return {}
    whole = _whole(graph, last, input_node, dtype)
    if not whole.at_once or whole.fixed > PLANNED_SECONDS * whole.operations:
        return {}
    each = (whole.fixed - cost.CALL_SECONDS) / whole.operations
    lines = graph.once(("lines", last, input_node), lambda: _lines(graph, operations, input_node))
    found = {}
    for node, unit in wanted.items():
        count = depths[node]
        support = tuple(
            _seen(lines, graph.planes_of[node], axis, u, n)
            for axis, (u, n) in enumerate(zip(unit, graph.input_size, strict=True))
        )
        found[node] = Forecast(
            count,
            support,
            math.ceil(whole.cells * count / whole.operations),
            cost.CALL_SECONDS + count * each,
            0.0,
            max(whole.walked, whole.finish),
            whole.largest,
            True,
        )
    return found


def _whole(graph: PlaneGraph, last: str, input_node: str, dtype: np.dtype[Any]) -> Survey:
    """The rehearsal of the last map, all of it at once."""

    def make() -> Survey:
        walk = Rehearsal(graph, last, input_node, dtype, None)
        size = graph.sizes[last] or ()
        for p in graph.planes_of[last]:
            walk.hold(p, tuple(Reach((0, n), (0.0, n - 1.0), 0.0) for n in size))
        walk.follow(tuple(chains(graph.between(last, input_node))))
        return walk.finished()

    return graph.lately(("whole survey", last, input_node, dtype), make)


# --- windows --------------------------------------------------------------------------------


def _lines(
    graph: PlaneGraph, operations: Sequence[Operation], input_node: str
) -> dict[int, tuple[Line, ...]]:
    """By plane and axis, what units read of the input."""
    found: dict[int, tuple[Line, ...]] = dict.fromkeys(
        graph.planes_of[input_node], ((1, 0, 0),) * graph.ndim
    )
    for op in operations:
        read = [found[q] for q, _ in op.sources if q in found]
        lines = tuple(_hull(along) for along in zip(*read, strict=True))
        for move in op.maps:
            lines = tuple(map(_behind, lines, move.axes))
        for p, _ in op.targets:
            old = found.get(p)
            both = lines if old is None else tuple(map(_hull, zip(old, lines, strict=True)))
            found[p] = both
    return found


def _hull(lines: Sequence[Line]) -> Line:
    known = [line for line in lines if line is not None]
    if len(known) < len(lines) or len({j for j, _, _ in known}) > 1:
        return None
    return known[0][0], min(a for _, a, _ in known), max(b for _, _, b in known)


def _behind(line: Line, axis: AxisMap) -> Line:
    if line is None or not isinstance(axis, Window):
        return None
    j, a, b = line
    return j * axis.stride, a - j * axis.lo, b + j * (axis.span - axis.lo)


def _seen(
    lines: Mapping[int, Sequence[Line]], planes: Sequence[int], axis: int, unit: int, size: int
) -> Span:
    line = _hull([lines[p][axis] for p in planes if p in lines])
    if line is None:
        return 0, size
    j, a, b = line
    first, behind = max(j * unit + a, 0), min(j * unit + b + 1, size)
    return first, max(behind - first, 0)
