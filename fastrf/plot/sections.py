"""Three orthogonal sections of a field in 3-D, laid out as a builder's plan and elevations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpecFromSubplotSpec

from fastrf.erf import ERF
from fastrf.errors import InputError
from fastrf.plot import style
from fastrf.plot.panels import SCALES, color_bar, draw_field, section_at
from fastrf.plot.scene import Scene, with_margin
from fastrf.plot.style import Theme, ThemeName, Width

# (vertical, horizontal) axis and place of each section: y against x, z to its right, z below it.
_PLACES = (((1, 2), (0, 0)), ((1, 0), (0, 1)), ((0, 2), (1, 0)))


def sections_figure(
    erf: ERF,
    scale: Literal["both", "linear", "log"] = "linear",
    *,
    width: Width = "column",
    theme: ThemeName = "light",
) -> Figure:
    """Three orthogonal sections of a 3-D field through the centre of the unit's TRF.

    y against x, and beside them z to the same scale, so that a position can be followed from one
    section to the next. Lines, colours and scales are those of `erf_figure`; outlines are those
    of the sets in 3-D, cut by the section.

    Args:
        erf: a field of 3 axes.
        scale: "linear", "log", or "both", one beside the other.
        width, theme: as in `fastrf.plot`.

    Raises:
        InputError: an unknown option, or a field of fewer axes.
    """
    style.choice("scale", scale, tuple(SCALES))
    if erf.values.ndim != 3:
        raise InputError(
            f"this field has {erf.values.ndim} axes, sections are of 3; use erf_figure"
        )
    return draw_sections(erf, SCALES[scale], style.inches(width), style.theme_of(theme))


def draw_sections(erf: ERF, scales: Sequence[str], width: float, theme: Theme) -> Figure:
    """`sections_figure`, its options resolved."""
    scene = Scene(erf)
    figure = style.blank(width, 2 * width, theme)
    style.title(figure, theme, scene.heading, scene.facts)
    # Two blocks stand side by side where each has the room of a column.
    rows = 1 if width >= len(scales) * style.COLUMN else len(scales)
    outer = figure.add_gridspec(rows, -(-len(scales) // rows))
    handles: list[Any] = []
    tops = []
    for number, kind in enumerate(scales):
        windows = [scene.whole(a) for a in range(3)] if kind == "log" else scene.near(range(3))
        depth, height, breadth = (b - a for a, b in map(with_margin, windows))
        grid = GridSpecFromSubplotSpec(
            2,
            2,
            outer[number % rows, number // rows],
            width_ratios=[breadth, depth],
            height_ratios=[height, depth],
        )
        panels = {}
        for pair, place in _PLACES:
            panel = panels[place] = figure.add_subplot(grid[place])
            (across,) = {0, 1, 2} - set(pair)
            heading = f"{scene.names[across]} = {section_at(scene, across)}"
            drawn = draw_field(panel, scene, pair, kind, theme, heading)
            handles = max(handles, drawn, key=len)
            panel.set_xlabel(f"{scene.names[pair[1]]} (input pixels)")
            panel.set_ylabel(f"{scene.names[pair[0]]} (input pixels)")
        color_bar(figure, panels[1, 0], panels[0, 0].images[-1], theme)
        if number < rows:
            tops += [panels[0, 0], panels[1, 0]]
    style.legend(figure, handles, theme)
    style.fit_height(figure, tops)
    return figure
