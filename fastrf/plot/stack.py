"""Units and taps of a stack of layers along one axis, as in WaveNet's figures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fastrf.analytic.geometry import ReceptiveField
from fastrf.errors import InputError
from fastrf.lowering import Operation, PlaneGraph, lower
from fastrf.maps import AxisMap, Spread, Table, Window
from fastrf.plot import style
from fastrf.plot.scene import with_margin
from fastrf.plot.style import Theme, ThemeName, Width

MOST_PIXELS, MOST_ROWS = 160, 40
"""What a page has room for: input pixels of a cone, and layers."""

_MARGIN = 0.25
_LEAST_MARGIN = 3

Unit = tuple[int, int]
"""A plane's number and an index along the axis."""


def stack_figure(
    field: ReceptiveField,
    unit: Any = "center",
    *,
    axis: int = -1,
    align: Literal["auto", "center", "index"] = "auto",
    width: Width = "full",
    theme: ThemeName = "light",
) -> Figure:
    """Units as dots, taps as lines, one row a layer, and the cone of one unit.

    The picture of dilated, causal and transposed stacks in van den Oord et al., "WaveNet" (2016),
    figures 2 and 3. Rows are layers that move pixels along the axis, the input at the bottom;
    layers in parallel share a row, and what passes a row by is a longer line. Rows show the units
    around the cone, which ends at the map's borders where the input's size is known.

    Args:
        field: ``receptive_field(net)``, of a map whose units see at most 160 pixels.
        unit: "center" (unit 0 on the unbounded grid), or one index per axis.
        axis: which axis of the network to draw.
        align: where a unit's dot is: "center", at the centre of its receptive field (by the first
            way to the input, where several differ); "index", at its index times its stride, as
            causal stacks are drawn, whose units stand above the last pixel that they read;
            "auto", the latter for stacks in which all layers are causal, else the former.
        width, theme: as in `fastrf.plot`.

    Raises:
        InputError: an unknown axis, or a cone that is too large to draw.
    """
    colors, across = style.theme_of(theme), style.inches(width)
    ndim = len(field.size)
    if type(axis) is not int or not -ndim <= axis < ndim:
        raise InputError(f"axis={axis!r} must be one of 0 … {ndim - 1}")
    style.choice("align", align, ("auto", "center", "index"))
    axis %= ndim
    return _draw(_stack(field, unit, axis, align), field, axis, across, colors)


# --- what is connected ----------------------------------------------------------------------


@dataclass
class _Stack:
    """Rows of units and the lines between them.

    Attributes:
        names: what each row is called, the input first.
        dots: unit → (position in input pixels, row), with the units around the cone.
        cone: the units that the chosen one depends on.
        lines: pairs of a unit and one that it reads.
        unit: the chosen one.
    """

    names: list[str]
    unit: Unit
    dots: dict[Unit, tuple[float, int]] = field(default_factory=dict)
    cone: set[Unit] = field(default_factory=set)
    lines: list[tuple[Unit, Unit]] = field(default_factory=list)


class _Frame:
    """Where the units of a plane are: position of unit 0 and distance of neighbours, in pixels."""

    def __init__(self, start: float, jump: float, row: int) -> None:
        self.start, self.jump, self.row = start, jump, row

    def at(self, index: int) -> float:
        return self.start + index * self.jump


def _stack(found: ReceptiveField, unit: Any, axis: int, align: str) -> _Stack:
    size = None if found.input_size is None else {found.input: found.input_size}
    inputs = found.network.inputs
    if size is not None and len(inputs) > 1:
        size = {name: found.input_size for name in inputs if found.input_size is not None}
    graph = lower(found.network, size)
    if found.unbounded_by:
        raise InputError(
            f"units of {found.node!r} see everything, by {', '.join(found.unbounded_by)}; choose "
            "an output= below"
        )
    operations = graph.between(found.node, found.input)
    maps = [m.axes[axis] for op in operations for m in op.maps]
    by_index = align == "index" or (align == "auto" and _is_causal(maps))
    frames = _frames(graph, operations, found.input, axis, by_index)
    names = _row_names(found.input, operations, frames)
    (last,) = graph.planes_of[found.node][:1]
    index = graph.unit_index(found.node, unit)[axis]
    stack = _Stack(names, (last, index))
    low, high = (found.box(unit) or ((0, 0),) * (axis + 1))[axis]
    if high - low + 1 > MOST_PIXELS or len(names) - 1 > MOST_ROWS:
        raise InputError(
            f"the cone of {found.node!r} has {high - low + 1} pixels and {len(names) - 1} rows; "
            f"at most {MOST_PIXELS} and {MOST_ROWS} can be told apart: give a lower output= or a "
            "smaller stack"
        )
    limits = {p: _limit(graph, p, axis) for p in frames}
    _grow_cone(stack, operations, limits, axis)
    _add_units(stack, operations, frames, limits, axis, (low, high))
    return stack


def _limit(graph: PlaneGraph, plane: int, axis: int) -> int | None:
    size = graph.sizes[graph.planes[plane].node]
    return None if size is None else size[axis]


def _frames(
    graph: PlaneGraph, operations: Sequence[Operation], source: str, axis: int, by_index: bool
) -> dict[int, _Frame]:
    """The place of every plane's units; rows count the layers that move pixels below."""
    frames = {p: _Frame(0.0, 1.0, 0) for p in graph.planes_of[source]}
    for op in operations:
        maps = [m.axes[axis] for m in op.maps]
        moves = any(m != Window() for m in maps)
        for plane, _ in op.sources:
            if plane not in frames:
                continue
            below = frames[plane]
            start, jump = below.start, below.jump
            for m in maps:
                shift, jump = _after(m, jump)
                start += 0.0 if by_index else shift
            for target, _ in op.targets:
                row = below.row + moves
                if target not in frames:
                    frames[target] = _Frame(start, jump, row)
                else:
                    frames[target].row = max(frames[target].row, row)
    return frames


def _is_causal(maps: Sequence[AxisMap]) -> bool:
    """Whether every output reads its own index last, and some read others."""
    return any(m != Window() for m in maps) and all(
        isinstance(m, Window) and m.lo == m.span for m in maps
    )


def _after(m: AxisMap, jump: float) -> tuple[float, float]:
    """How far an axis map moves the centre of unit 0, and the distance of neighbours behind it."""
    if isinstance(m, Window):
        return (m.span / 2 - m.lo) * jump, jump * m.stride
    if isinstance(m, Spread):
        # Tap m of unit 0 lands on m·d − lo; the middle tap's is above its centre.
        return (m.lo - m.span / 2) * jump / m.stride, jump / m.stride
    assert isinstance(m, Table), "global layers were refused"
    rows = range(m.period)
    centers = [_table_center(m, row) for row in rows]
    advance = m.advance / m.period if m.advance else _slope(centers)
    first = float(np.mean([c - advance * row for row, c in zip(rows, centers, strict=True)]))
    return first * jump, jump * advance


def _table_center(m: Table, row: int) -> float:
    used = np.flatnonzero(m.taps[row] > 0)
    return float(m.starts[row] + (used[0] + used[-1]) / 2)


def _slope(centers: Sequence[float]) -> float:
    return (centers[-1] - centers[0]) / (len(centers) - 1) if len(centers) > 1 else 1.0


def _row_names(
    source: str, operations: Sequence[Operation], frames: dict[int, _Frame]
) -> list[str]:
    """Per row the first layer that moves pixels into it."""
    names: dict[int, str] = {0: source}
    for op in operations:
        for target, _ in op.targets:
            if target in frames:
                names.setdefault(frames[target].row, op.node)
    return [names[row] for row in range(max(names) + 1)]


def _reads(op: Operation, index: int, axis: int) -> list[int]:
    """The indices along the axis that output `index` of an operation reads."""
    found = {index}
    for spatial in reversed(op.maps):
        found = {i for o in found for i in _read_by(spatial.axes[axis], o)}
    return sorted(found)


def _read_by(m: AxisMap, o: int) -> Iterable[int]:
    if isinstance(m, Window):
        return [o * m.stride + tap * m.dilation - m.lo for tap in range(m.kernel)]
    if isinstance(m, Spread):
        places = [o + m.lo - tap * m.dilation for tap in range(m.kernel)]
        return [place // m.stride for place in places if place % m.stride == 0]
    assert isinstance(m, Table), "global layers were refused"
    if not m.advance and not 0 <= o < m.period:
        return []
    (start,), (taps,) = m.rows(o, 1)
    return [int(start) + int(tap) for tap in np.flatnonzero(taps > 0)]


def _inside(index: int, limit: int | None) -> bool:
    return limit is None or 0 <= index < limit


def _grow_cone(
    stack: _Stack, operations: Sequence[Operation], limits: dict[int, int | None], axis: int
) -> None:
    stack.cone.add(stack.unit)
    by_plane: dict[int, set[int]] = {stack.unit[0]: {stack.unit[1]}}
    for op in reversed(operations):
        outputs = set().union(*(by_plane.get(target, set()) for target, _ in op.targets))
        read = {i for o in outputs for i in _reads(op, o, axis)}
        for plane, _ in op.sources:
            if plane in limits:
                kept = {i for i in read if _inside(i, limits[plane])}
                by_plane.setdefault(plane, set()).update(kept)
                stack.cone.update((plane, i) for i in kept)


def _add_units(
    stack: _Stack,
    operations: Sequence[Operation],
    frames: dict[int, _Frame],
    limits: dict[int, int | None],
    axis: int,
    box: tuple[int, int],
) -> None:
    """The units around the cone, and the lines between all of them."""
    positions = [frames[p].at(i) for p, i in stack.cone] + [*map(float, box)]
    margin = max(_LEAST_MARGIN, _MARGIN * (max(positions) - min(positions)))
    low, high = min(positions) - margin, max(positions) + margin
    for plane, frame in frames.items():
        first, last = sorted(((low - frame.start) / frame.jump, (high - frame.start) / frame.jump))
        for index in range(int(np.ceil(first)), int(np.floor(last)) + 1):
            if _inside(index, limits[plane]):
                stack.dots[plane, index] = frame.at(index), frame.row
    for op in operations:
        for target, _ in op.targets:
            if target not in frames:
                continue
            for plane, index in [unit for unit in stack.dots if unit[0] == target]:
                for i in _reads(op, index, axis):
                    for source, _ in op.sources:
                        if (source, i) in stack.dots:
                            stack.lines.append(((plane, index), (source, i)))


# --- the picture ----------------------------------------------------------------------------


def _draw(stack: _Stack, found: ReceptiveField, axis: int, width: float, theme: Theme) -> Figure:
    rows = len(stack.names)
    figure = style.blank(width, min(max(0.42 * rows + 0.8, 1.4), 9.0), theme)
    name = f"{found.network.name}: " if found.network.name else ""
    sees = len({i for p, i in stack.cone if stack.dots.get((p, i), (0.0, -1))[1] == 0})
    pixels = "pixel" if sees == 1 else "pixels"
    style.title(
        figure, theme, f"{name}unit {stack.unit[1]} of {found.node} reads {sees} input {pixels}"
    )
    panel = figure.subplots()
    style.dress(panel, theme)
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    faint: set[tuple[tuple[float, int], tuple[float, int]]] = set()
    bright: set[tuple[tuple[float, int], tuple[float, int]]] = set()
    for reader, read in stack.lines:
        ends = stack.dots[reader], stack.dots[read]
        if ends[0] != ends[1]:
            (bright if {reader, read} <= stack.cone else faint).add(ends)
    faint -= bright
    panel.add_collection(LineCollection(sorted(faint), colors=theme.rule, linewidths=0.5))
    panel.add_collection(LineCollection(sorted(bright), colors=theme.trf, linewidths=0.9, zorder=3))
    lit = {stack.dots[u] for u in stack.cone if u in stack.dots}
    other = set(stack.dots.values()) - lit
    xs = [x for x, _ in stack.dots.values()]
    span = max(xs) - min(xs) + 1
    dot = min(max(0.5 * 72 * 0.85 * width / span, 1.0), 5.0)
    look: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": dot}
    panel.plot(*_columns(other), color=theme.paper, mec=theme.muted, mew=0.5, zorder=4, **look)
    panel.plot(*_columns(lit), color=theme.trf, mew=0, zorder=5, **look)
    panel.plot(
        *_columns([stack.dots[stack.unit]]),
        color=theme.erf,
        mew=0,
        zorder=6,
        **look | {"markersize": dot + 2},
    )
    panel.set_xlim(*with_margin((min(xs) - 0.5, max(xs) + 0.5), 0.01))
    panel.set_ylim(-0.4, rows - 0.6)
    style.pixel_ticks(panel.xaxis, 9)
    room = 0.28 * figure.bbox.width
    panel.set_yticks(
        range(rows),
        labels=[style.shortened(figure, text, room, style.SMALL) for text in stack.names],
    )
    panel.tick_params(axis="y", length=0)
    panel.set_xlabel(f"{style.AXIS_NAMES[len(found.size)][axis]} (input pixels)")
    proxies = [
        Line2D([], [], color=theme.erf, marker="o", markersize=4, lw=0, label="the unit"),
        Line2D([], [], color=theme.trf, marker="o", markersize=3, lw=0.9, label="what it reads"),
        Line2D(
            [],
            [],
            color=theme.rule,
            marker="o",
            mfc=theme.paper,
            mec=theme.muted,
            mew=0.5,
            markersize=3,
            lw=0.5,
            label="other units",
        ),
    ]
    style.legend(figure, proxies, theme)
    return figure


def _columns(places: Iterable[tuple[float, int]]) -> tuple[list[float], list[int]]:
    ordered = sorted(places)
    return [x for x, _ in ordered], [row for _, row in ordered]
