"""Feature maps at one size: every feature at its centre on the input (Dang Ha The Hien 2017)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from numpy.typing import NDArray

from fastrf.analytic.geometry import LayerField, ReceptiveField
from fastrf.errors import InputError
from fastrf.plot import style
from fastrf.plot.scene import Interval, with_margin
from fastrf.plot.style import Theme, ThemeName, Width

Box = tuple[tuple[int, int], ...]

# So many layers are chosen where none are named, and so many boxes are drawn besides the unit's.
_LAYERS, _BOXES = 6, 36


@dataclass(frozen=True)
class Layer:
    """A layer's features along the axes that are drawn.

    Attributes:
        row: its row of the table.
        centers: positions of the features per axis, in input pixel indices.
        unit: the one that is pointed out.
        box: its first and last pixel per axis.
        boxes: those of all features, where they are few.
    """

    row: LayerField
    centers: tuple[NDArray[np.float64], ...]
    unit: tuple[int, ...]
    box: Box
    boxes: tuple[Box, ...]

    @property
    def center(self) -> tuple[float, ...]:
        return tuple(float(c[u]) for c, u in zip(self.centers, self.unit, strict=True))


def features_figure(
    field: ReceptiveField,
    layers: Sequence[str] | None = None,
    unit: Any = "center",
    *,
    axes: tuple[int, int] | None = None,
    width: Width = "full",
    theme: ThemeName = "light",
) -> Figure:
    """Every feature of some layers at the centre of its receptive field, all on the input's scale.

    The fixed-size picture of Dang Ha The Hien, "A guide to receptive field arithmetic for
    convolutional neural networks" (2017): a map of fewer features is not drawn smaller but
    sparser. One feature is pointed out in each map, with the box of its receptive field; where a
    map has at most 36 features, the boxes of all are drawn. A network along one axis has its
    layers one above the other.

    Args:
        field: ``receptive_field(net, input_size=…)``; features are counted on maps of known size.
        layers: names of nodes or end points below `field.node`. Default: the network's end
            points, or else the last layer before each change of the map size, six at most.
        unit: "center" of each map, or one index per axis.
        axes: the two axes to draw, vertical and horizontal, of three; default: the last two.
        width, theme: as in `fastrf.plot`.

    Raises:
        InputError: no input size, an unknown layer, or one whose features see no box.
    """
    colors, across = style.theme_of(theme), style.inches(width)
    drawn_axes = drawn(field, axes)
    chosen = layers_of(field, layers, unit, drawn_axes)
    if len(drawn_axes) == 1:
        return _rows(field, chosen, across, colors)
    return _maps(field, chosen, drawn_axes, across, colors)


def drawn(field: ReceptiveField, axes: tuple[int, int] | None) -> tuple[int, ...]:
    """The axes that a figure shows: one, or two."""
    if field.input_size is None:
        raise InputError(
            "features are counted on maps of known size, and the grid is unbounded; give input_size"
        )
    ndim = len(field.input_size)
    if axes is None:
        return tuple(range(ndim))[-2:]
    if len(set(axes)) != 2 or not all(0 <= axis < ndim for axis in axes):
        raise InputError(f"axes={axes!r} must be two different ones of 0 … {ndim - 1}")
    return tuple(axes)


def layers_of(
    field: ReceptiveField, names: Sequence[str] | None, unit: Any, axes: tuple[int, ...]
) -> list[Layer]:
    """The layers that a figure shows."""
    table = {row.name: row for row in field.layers}
    if names is None:
        rows = _default_rows(field, table)
    else:
        rows = []
        for name in names:
            node = field.network.resolve(name)
            if node not in table:
                raise InputError(f"{name!r} is an input; name layers")
            rows.append(table[node])
    if not rows:
        raise InputError("layers=() names none; give at least one, or leave it out")
    return [_layer(field, row, unit, axes) for row in rows]


def _default_rows(field: ReceptiveField, table: dict[str, LayerField]) -> list[LayerField]:
    below, stack = {field.node}, [field.node]
    while stack:
        for source in field.network.nodes[stack.pop()].inputs:
            if source not in below:
                below.add(source)
                stack.append(source)
    usable = [
        row
        for row in table.values()
        if row.name in below and all(row.size) and not any(row.unbounded)
    ]
    ends = set(field.network.endpoints.values())
    rows = [row for row in usable if row.name in ends]
    if len(rows) < 2:
        runs = groupby(usable, key=lambda row: row.shape)
        rows = [list(run)[-1] for _, run in runs]
    keep = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), _LAYERS)).round().astype(int))
    return [rows[i] for i in keep]


def _layer(field: ReceptiveField, row: LayerField, unit: Any, axes: tuple[int, ...]) -> Layer:
    own = replace(field, node=row.name, map_size=row.shape)
    assert row.shape is not None
    box = own.box(unit)
    if box is None or not all(math.isfinite(end) for ends in box for end in ends):
        raise InputError(
            f"the unit {unit!r} of {row.name!r} sees no box of the input; choose another layer"
        )
    index = tuple(n // 2 for n in row.shape) if isinstance(unit, str) else _index(unit, len(box))
    regular = own.aligned and max(own.period) == 1
    centers = []
    for axis in axes:
        count = row.shape[axis]
        if regular:
            first, jump = row.center[axis], row.stride[axis]
            assert first is not None
            assert jump is not None
            centers.append(np.array([float(first + i * jump) for i in range(count)]))
        else:
            # Several phases, or paths that do not line up: each unit by itself.
            ends = [_ends(own, row.shape, axis, i) for i in range(count)]
            centers.append(np.array([(a + b) / 2 for a, b in ends]))
    boxes: tuple[Box, ...] = ()
    if math.prod(row.shape[axis] for axis in axes) <= _BOXES:
        ranges = [[_ends(own, row.shape, axis, i) for i in range(row.shape[axis])] for axis in axes]
        boxes = tuple(
            (first, second) if len(axes) == 2 else (first,)
            for first in ranges[0]
            for second in (ranges[1] if len(axes) == 2 else [(0, 0)])
        )
    return Layer(
        row,
        tuple(centers),
        tuple(index[axis] for axis in axes),
        tuple((int(a), int(b)) for a, b in (box[axis] for axis in axes)),
        boxes,
    )


def _index(unit: Any, ndim: int) -> tuple[int, ...]:
    return tuple(map(int, unit)) if np.ndim(unit) else (int(unit),) * ndim


def _ends(field: ReceptiveField, shape: Sequence[int], axis: int, index: int) -> tuple[int, int]:
    """First and last pixel along an axis of the unit `index` there, central along the others."""
    unit = [n // 2 for n in shape]
    unit[axis] = index
    box = field.box(tuple(unit))
    # A phase that sees nothing has no centre either.
    return box[axis] if box is not None else (np.nan, np.nan)  # type: ignore[return-value]


def describe(layer: Layer, axes: Sequence[int]) -> str:
    """A layer's map, jump and TRF in a line."""
    row = layer.row
    assert row.shape is not None
    stride, size = (style.brief([v[a] for a in axes]) for v in (row.stride, row.size))
    return f"map {style.times([row.shape[a] for a in axes])}, stride {stride}, TRF {size}"


def window_of(
    field: ReceptiveField, chosen: Sequence[Layer], axes: Sequence[int]
) -> list[Interval]:
    """The input and all boxes that are pointed out, per axis."""
    assert field.input_size is not None
    spans = []
    for place, axis in enumerate(axes):
        low = min([0, *(layer.box[place][0] for layer in chosen)])
        high = max([field.input_size[axis] - 1, *(layer.box[place][1] for layer in chosen)])
        spans.append((low - 0.5, high + 0.5))
    return spans


def heading(field: ReceptiveField) -> str:
    assert field.input_size is not None
    name = f"{field.network.name}: " if field.network.name else ""
    return f"{name}features on the input, {style.times(field.input_size)}"


def _maps(
    field: ReceptiveField, chosen: Sequence[Layer], axes: Sequence[int], width: float, theme: Theme
) -> Figure:
    assert field.input_size is not None
    most = (4 if len(chosen) == 4 else 3) if width > style.COLUMN else 2
    columns = min(len(chosen), most)
    rows = -(-len(chosen) // columns)
    figure = style.blank(width, width * rows / columns + 0.8, theme)
    style.title(figure, theme, heading(field))
    panels = np.ravel(figure.subplots(rows, columns, squeeze=False))
    window = window_of(field, chosen, axes)
    names = style.AXIS_NAMES[len(field.input_size)]
    room = 0.97 * figure.bbox.width / columns
    for number, panel in enumerate(panels):
        if number >= len(chosen):
            panel.remove()
            continue
        layer = chosen[number]
        lines = [layer.row.name, describe(layer, axes)]
        style.dress(panel, theme, "\n".join(style.shortened(figure, t, 0.88 * room) for t in lines))
        panel.title.set_fontsize(style.SMALL)
        _draw_map(panel, layer, [field.input_size[axis] for axis in axes], theme)
        _limits(panel, window)
        if number % columns == 0:
            panel.set_ylabel(f"{names[axes[0]]} (input pixels)")
        else:
            panel.tick_params(labelleft=False)
        if number + columns >= len(chosen):
            panel.set_xlabel(f"{names[axes[1]]} (input pixels)")
        else:
            panel.tick_params(labelbottom=False)
    style.legend(figure, _handles(theme, any(layer.boxes for layer in chosen)), theme)
    style.fit_height(figure, list(panels)[::columns])
    return figure


def _limits(panel: Axes, window: Sequence[Interval]) -> None:
    (top, bottom), (left, right) = (with_margin(w) for w in window)
    panel.set_xlim(left, right)
    panel.set_ylim(bottom, top)
    panel.set_box_aspect((bottom - top) / (right - left))
    style.pixel_ticks(panel.xaxis)
    style.pixel_ticks(panel.yaxis)


def _draw_map(panel: Axes, layer: Layer, size: Sequence[int], theme: Theme) -> None:
    height, width = size
    panel.add_patch(
        Rectangle((-0.5, -0.5), width, height, facecolor=theme.panel, edgecolor=theme.muted, lw=0.6)
    )
    for box in layer.boxes:
        if not np.isnan(box).any():
            panel.add_patch(_frame(box, fill=False, edgecolor=theme.trf, alpha=0.35, lw=0.5))
    panel.add_patch(_frame(layer.box, facecolor=theme.trf, alpha=0.2, lw=0))
    panel.add_patch(_frame(layer.box, fill=False, edgecolor=theme.trf, lw=1.2))
    x, y = np.meshgrid(layer.centers[1], layer.centers[0])
    # As large as leaves half of the way to the next dot, on a panel of about 1.6 inches.
    gap = 110 / max(len(layer.centers[0]), len(layer.centers[1]), 1)
    dot = min(max(0.35 * gap, 0.4), 3.5)
    panel.plot(
        x.ravel(),
        y.ravel(),
        "o",
        color=theme.erf,
        markersize=dot,
        markeredgewidth=0,
        rasterized=x.size > 4000,
    )
    panel.plot(
        layer.center[1],
        layer.center[0],
        "o",
        color=theme.trf,
        markersize=max(dot, 2.5) + 1,
        markeredgecolor=theme.paper,
        markeredgewidth=0.6,
    )


def _frame(box: Box, **look: Any) -> Rectangle:
    (top, bottom), (left, right) = box
    return Rectangle((left - 0.5, top - 0.5), right - left + 1, bottom - top + 1, **look)


def _handles(theme: Theme, boxes: bool) -> list[Any]:
    found: list[Any] = [
        Line2D([], [], color=theme.erf, marker="o", markersize=3, lw=0, label="feature"),
        Line2D([], [], color=theme.trf, marker="o", markersize=4, lw=0, label="one of them"),
        Patch(facecolor="none", edgecolor=theme.trf, lw=1.2, label="its TRF"),
        Patch(facecolor=theme.panel, edgecolor=theme.muted, lw=0.6, label="input"),
    ]
    if boxes:
        others = Patch(facecolor="none", edgecolor=theme.trf, alpha=0.35, lw=0.5)
        others.set_label("TRFs of all, where they are few")
        found.insert(3, others)
    return found


def _rows(field: ReceptiveField, chosen: Sequence[Layer], width: float, theme: Theme) -> Figure:
    """Layers of one axis, one above the other, the input at the bottom."""
    assert field.input_size is not None
    figure = style.blank(width, 0.34 * (len(chosen) + 1) + 0.9, theme)
    style.title(figure, theme, heading(field))
    panel = figure.subplots()
    style.dress(panel, theme)
    (size,) = field.input_size
    ((left, right),) = window_of(field, chosen, (0,))
    panel.add_patch(
        Rectangle((-0.5, -0.2), size, 0.4, facecolor=theme.panel, edgecolor=theme.muted, lw=0.6)
    )
    dot = min(max(0.35 * 72 * 0.8 * width / size, 1.4), 4.0)
    for level, layer in enumerate(chosen, 1):
        (low, high), (x,) = layer.box[0], layer.centers
        panel.fill_between(
            [low - 0.5, high + 0.5], level - 0.24, level + 0.24, color=theme.trf, alpha=0.25, lw=0
        )
        panel.plot(x, np.full(len(x), level), "o", color=theme.erf, markersize=dot, mew=0)
        panel.plot(
            layer.center[0],
            level,
            "o",
            color=theme.trf,
            markersize=max(dot, 2.5) + 1,
            markeredgecolor=theme.paper,
            markeredgewidth=0.6,
        )
    panel.set_xlim(*with_margin((left, right)))
    panel.set_ylim(-0.5, len(chosen) + 0.5)
    style.pixel_ticks(panel.xaxis, 9)
    labels = ["input", *(layer.row.name for layer in chosen)]
    room = 0.3 * figure.bbox.width
    panel.set_yticks(
        range(len(labels)),
        labels=[style.shortened(figure, label, room, style.SMALL) for label in labels],
    )
    panel.set_xlabel("x (input pixels)")
    handles = _handles(theme, False)
    handles[2] = Patch(facecolor=theme.trf, alpha=0.25, lw=0, label="its TRF")
    style.legend(figure, handles, theme)
    return figure
