"""How receptive fields grow from layer to layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

from fastrf.erf import ERF
from fastrf.errors import InputError
from fastrf.metrics.given import defined
from fastrf.plot import style
from fastrf.plot.style import Theme, ThemeName, Width

# Deeper networks are measured at so many layers, evenly; more would not be told apart.
_MOST_POINTS = 120
# From this ratio of the largest to the smallest size on, sizes are on a logarithmic axis.
_LOG_FROM = 30


class _Point(NamedTuple):
    """A layer: its number in topological order, its name and its sizes along one axis or all."""

    number: int
    name: str
    trf: float | None
    luo: float | None
    fwhm: float | None
    sigma: float


def growth_figure(
    fields: Mapping[str, ERF], *, width: Width = "full", theme: ThemeName = "light"
) -> Figure:
    """Sizes of TRF and ERF against the layers, and below them the ratio of the two.

    Sizes are sides in input pixels, geometric means over the axes: the TRF's, Luo et al.'s size,
    the full width at half maximum, and the standard deviation σ. Layers that move no pixel have
    the sizes of the layer below and are left out; of more than 120 layers, 120 are shown.

    Args:
        fields: the field of every layer, as ``fastrf.erf(net, layers="all")`` returns them.
        width, theme: as in `fastrf.plot`.

    Raises:
        InputError: there are no fields, or they are of several networks.
    """
    colors, across = style.theme_of(theme), style.inches(width)
    points = _points(fields)
    last = list(fields.values())[-1]
    figure = style.blank(across, 1.9 + 0.26 * across, colors)
    name = f"{last.network.name}: " if last.network.name else ""
    where = "" if last.input_size is None else f" on {style.times(last.input_size)} pixels"
    style.title(figure, colors, f"{name}receptive fields of {len(fields)} layers{where}")
    sizes, ratio = figure.subplots(2, 1, sharex=True, height_ratios=[2.2, 1])
    style.dress(sizes, colors, grid=True)
    style.dress(ratio, colors, grid=True)
    handles = _draw_sizes(sizes, points, colors)
    known = [(p.number, p.luo / p.trf) for p in points if p.trf and p.luo]
    ratio.plot(
        [number for number, _ in known],
        [share for _, share in known],
        color=colors.erf,
        linewidth=1.3,
        marker=_marker(points),
        markersize=2.5,
    )
    ratio.set_ylim(0, max([1.0, *(share for _, share in known)]) * 1.08)
    ratio.set_yticks([0, 0.5, 1], labels=["0", "½", "1"])
    ratio.set_ylabel("Luo / TRF")
    style.legend(figure, handles, colors)
    _name_layers(figure, ratio, points, last, colors)
    return figure


def _points(fields: Mapping[str, ERF]) -> list[_Point]:
    if not fields:
        raise InputError('there are no fields; give those of fastrf.erf(net, layers="all")')
    last = list(fields.values())[-1]
    if any(erf.network is not last.network for erf in fields.values()):
        raise InputError(
            'the fields are of several networks; give those of one fastrf.erf(net, layers="all")'
        )
    table = {row.name: row for row in last.field.layers}
    moving, before = [], None
    for number, (name, erf) in enumerate(fields.items(), 1):
        # Layers that move no pixel share the image of the layer below.
        if erf.values is not before and name in table:
            moving.append((number, name, erf))
        before = erf.values
    keep = np.unique(np.linspace(0, len(moving) - 1, min(len(moving), _MOST_POINTS)).round())
    points = []
    for i in keep.astype(int):
        number, name, erf = moving[i]
        points.append(
            _Point(
                number,
                name,
                _mean(table[name].size),
                defined(erf.luo_size),
                defined(partial(_width, erf)),
                _mean(erf.std) or 0.0,
            )
        )
    return points


def _width(erf: ERF) -> float:
    return _mean(erf.fwhm) or 0.0


def _mean(values: Sequence[float | None]) -> float | None:
    """The geometric mean; None where an axis is unbounded."""
    known = [float(v) for v in values if v is not None]
    return math.prod(known) ** (1 / len(known)) if len(known) == len(values) else None


def _marker(points: Sequence[_Point]) -> str:
    return "o" if len(points) <= 60 else ""


def _draw_sizes(panel: Axes, points: Sequence[_Point], theme: Theme) -> list[Any]:
    handles: list[Any] = []
    curves = (
        ("TRF", "trf", theme.trf, "-"),
        ("Luo's size of the ERF", "luo", theme.erf, "-"),
        ("full width at half maximum", "fwhm", theme.second, "--"),
        ("σ", "sigma", theme.third, ":"),
    )
    values: list[float] = []
    for label, name, color, line in curves:
        own = [(p.number, value) for p in points if (value := getattr(p, name))]
        values += [value for _, value in own]
        handles += panel.plot(
            [number for number, _ in own],
            [value for _, value in own],
            color=color,
            linestyle=line,
            linewidth=1.3,
            marker=_marker(points),
            markersize=2.5,
            label=label,
        )
    if max(values) > _LOG_FROM * min(values):
        panel.set_yscale("log")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    else:
        panel.set_ylim(0, None)
        panel.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
    panel.set_ylabel("input pixels")
    return handles


def _name_layers(
    figure: Figure, panel: Axes, points: Sequence[_Point], last: ERF, theme: Theme
) -> None:
    """Names end points, or layers where there are none, as many as there is room for."""
    ends = {node: name for name, node in last.network.endpoints.items()}
    numbers = {p.name: p.number for p in points}
    named = [(numbers[p.name], ends.get(p.name, p.name)) for p in points]
    panel.set_xlim(points[0].number - 0.5, points[-1].number + 0.5)
    style.arrange(figure)
    # Slanted names need about a line's height each; the last layer is always named.
    left, right = panel.get_xlim()
    points_each = panel.get_window_extent().width / figure.dpi * 72 / (right - left)
    chosen = [named[-1]]
    for number, name in reversed(named):
        if (chosen[-1][0] - number) * points_each >= 1.5 * style.SMALL:
            chosen.append((number, name))
    chosen.reverse()
    panel.xaxis.set_major_locator(FixedLocator([number for number, _ in chosen]))
    panel.set_xticklabels(
        [style.shortened(figure, name, 0.9 * figure.dpi, style.SMALL) for _, name in chosen],
        rotation=45,
        ha="right",
        rotation_mode="anchor",
        color=theme.ink,
    )
