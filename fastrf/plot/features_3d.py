"""Feature maps at one size, stacked above the input (Dang Ha The Hien 2017)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Polygon

from fastrf.analytic.geometry import ReceptiveField
from fastrf.errors import InputError
from fastrf.plot import style
from fastrf.plot.features import Layer, describe, drawn, heading, layers_of, window_of
from fastrf.plot.scene import Interval, with_margin
from fastrf.plot.style import Theme, ThemeName, Width

# A step down the image goes so far to the left and down, in steps across: a view from the front,
# above and to the right.
_SHEAR, _TILT = 0.55, 0.42
# Between two planes, in heights of a plane as drawn.
_GAP = 0.62
_COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def features_3d_figure(
    field: ReceptiveField,
    layers: Sequence[str] | None = None,
    unit: Any = "center",
    *,
    axes: tuple[int, int] | None = None,
    width: Width = "column",
    theme: ThemeName = "light",
) -> Figure:
    """The maps of `features_figure` stacked above the input, first layer lowest.

    Every feature stands above its centre on the input. In each map one feature is pointed out in
    the layer's colour, and so is the box of its field on the input; lines lead from the feature of
    the uppermost map to the corners of its box.

    Arguments and errors as for `features_figure`; the field has two axes or more.
    """
    colors, across = style.theme_of(theme), style.inches(width)
    shown = drawn(field, axes)
    if len(shown) < 2:
        raise InputError(
            "a stack of maps has two axes or more, this field has 1; use features_figure"
        )
    chosen = layers_of(field, layers, unit, shown)
    window = [with_margin(w) for w in window_of(field, chosen, shown)]
    view = _View(window)
    top = view.levels(len(chosen))
    figure = style.blank(across, across * top / view.width * 0.72 + 0.4, colors)
    style.title(figure, colors, heading(field))
    panel = figure.subplots()
    panel.set_axis_off()
    assert field.input_size is not None
    size = [field.input_size[axis] for axis in shown]
    _draw_plane(panel, view, 0, size, colors)
    for level, layer in enumerate(chosen, 1):
        color = _COLORS[(level - 1) % len(_COLORS)]
        (y0, y1), (x0, x1) = ((a - 0.5, b + 0.5) for a, b in layer.box)
        corners = [(y0, x0), (y0, x1), (y1, x1), (y1, x0)]
        footprint = [view.at(y, x, 0) for y, x in corners]
        panel.add_patch(Polygon(footprint, closed=True, fill=False, edgecolor=color, lw=1.2))
        if level == len(chosen):
            panel.add_patch(Polygon(footprint, closed=True, facecolor=color, alpha=0.15, lw=0))
            tip = view.above(layer.center, level)
            for corner in footprint:
                panel.plot(*zip(tip, corner, strict=True), color=color, lw=0.6, ls="--", zorder=2)
    for level, layer in enumerate(chosen, 1):
        _draw_plane(panel, view, level, size, colors)
        _draw_features(panel, view, level, layer, _COLORS[(level - 1) % len(_COLORS)], colors)
    panel.set_xlim(view.left, view.right)
    panel.set_ylim(-0.02 * top, top)
    panel.set_aspect("equal")
    _label(figure, panel, view, chosen, shown, colors)
    return figure


class _View:
    """Positions on the input and levels of the stack as places on the paper."""

    def __init__(self, window: Sequence[Interval]) -> None:
        (self.y0, self.y1), (self.x0, self.x1) = window
        depth = self.y1 - self.y0
        self.rise = _GAP * _TILT * depth + 0.12 * (self.x1 - self.x0)
        self.left = self.x0 - 0.01 * (self.x1 - self.x0)
        self.right = self.x1 + _SHEAR * depth

    @property
    def width(self) -> float:
        return self.right - self.left

    def levels(self, count: int) -> float:
        """Height of a stack of so many planes above the input."""
        return count * self.rise + _TILT * (self.y1 - self.y0)

    def at(self, y: Any, x: Any, level: int) -> tuple[Any, Any]:
        back = self.y1 - y
        return x + _SHEAR * back, level * self.rise + _TILT * back

    def above(self, center: Sequence[float], level: int) -> tuple[float, float]:
        y, x = center
        return x + _SHEAR * (self.y1 - y), level * self.rise + _TILT * (self.y1 - y)


def _draw_plane(panel: Axes, view: _View, level: int, size: Sequence[int], theme: Theme) -> None:
    height, width = size
    corners = [(-0.5, -0.5), (-0.5, width - 0.5), (height - 0.5, width - 0.5), (height - 0.5, -0.5)]
    panel.add_patch(
        Polygon(
            [view.at(y, x, level) for y, x in corners],
            closed=True,
            facecolor=theme.panel,
            alpha=1.0 if level == 0 else 0.72,
            edgecolor=theme.muted,
            lw=0.6,
            zorder=0 if level == 0 else 2 + level,
        )
    )


def _draw_features(
    panel: Axes, view: _View, level: int, layer: Layer, color: str, theme: Theme
) -> None:
    y, x = np.meshgrid(*layer.centers, indexing="ij")
    dot = min(max(26 / max(len(layer.centers[0]), len(layer.centers[1])), 0.35), 3.0)
    panel.plot(
        *view.at(y.ravel(), x.ravel(), level),
        "o",
        color=theme.ink,
        alpha=0.75,
        markersize=dot,
        markeredgewidth=0,
        zorder=2.2 + level,
        rasterized=x.size > 4000,
    )
    panel.plot(
        *view.above(layer.center, level),
        "o",
        color=color,
        markersize=max(dot, 3) + 1,
        markeredgecolor=theme.paper,
        markeredgewidth=0.6,
        zorder=2.4 + level,
    )


def _label(
    figure: Figure,
    panel: Axes,
    view: _View,
    chosen: Sequence[Layer],
    axes: Sequence[int],
    theme: Theme,
) -> None:
    """What each plane is, in the legend's order: uppermost first."""
    from matplotlib.lines import Line2D

    handles = []
    for number, layer in reversed(list(enumerate(chosen))):
        label = f"{layer.row.name}: {describe(layer, axes)}"
        handles.append(
            Line2D(
                [],
                [],
                color=_COLORS[number % len(_COLORS)],
                marker="o",
                markersize=4,
                lw=1.2,
                label=style.shortened(figure, label, 0.85 * figure.bbox.width, style.SMALL),
            )
        )
    handles.append(Line2D([], [], color=theme.muted, lw=0.6, label="lowest plane: the input"))
    style.legend(figure, handles, theme)
