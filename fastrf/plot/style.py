"""What all figures share: widths, fonts, colours in light and dark, legends, files.

Nothing here reads or changes matplotlib.pyplot or its settings: every size and colour is set on
the artist itself, so figures look the same in a notebook, a server or a thread.

Colours tell apart for colour-blind readers: lines use Okabe and Ito's palette (2008), lighter
members of it on dark paper; images use viridis, whose lightness rises evenly.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, MaxNLocator

from fastrf.errors import InputError, printable

COLUMN = 3.4
"""Inches across one column of a paper set in two."""

FULL = 7.0
"""Inches across the page."""

FORMATS = (".png", ".svg", ".pdf")

DPI = 200
"""Dots per inch of a PNG: 680 across a column."""

AXIS_NAMES = {1: ("x",), 2: ("y", "x"), 3: ("z", "y", "x")}

TEXT, SMALL = 7.0, 6.0
"""Points: titles and labels; ticks, legends and what stands inside a panel."""

Width: TypeAlias = Literal["column", "full"] | float
ThemeName: TypeAlias = Literal["light", "dark"]


@dataclass(frozen=True)
class Theme:
    """Colours by what they are for."""

    paper: str
    ink: str
    muted: str
    rule: str
    panel: str
    erf: str
    trf: str
    second: str
    third: str


LIGHT = Theme(
    paper="#ffffff",
    ink="#1a1a1a",
    muted="#5f6368",
    rule="#d5d8dc",
    panel="#f1f3f4",
    erf="#0072B2",
    trf="#D55E00",
    second="#009E73",
    third="#CC79A7",
)
DARK = Theme(
    paper="#15181d",
    ink="#e8eaed",
    muted="#a5abb3",
    rule="#3c424a",
    panel="#22272e",
    erf="#56B4E9",
    trf="#E69F00",
    second="#2BC79A",
    third="#E39AC4",
)
_THEMES = {"light": LIGHT, "dark": DARK}

# On top of an image the paper does not matter.
ON_IMAGE_TRF, ON_IMAGE_SIGMA, ON_IMAGE_LINE, HALO = "#F0A500", "#FF9BD2", "#ffffff", "#10131a"


def halo(line: float, rim: float = 0.5) -> list[Any]:
    """A dark rim that keeps a light line of this width readable on any colour."""
    return [withStroke(linewidth=line + 2 * rim, foreground=HALO)]


def theme_of(name: str) -> Theme:
    """The theme called `name`."""
    if name not in _THEMES:
        raise InputError(f"theme={name!r} is unknown; choose one of {', '.join(_THEMES)}")
    return _THEMES[name]


def inches(width: Width) -> float:
    """A figure's width in inches."""
    named = {"column": COLUMN, "full": FULL}
    value: Any = named.get(width, width) if isinstance(width, str) else width
    if isinstance(value, str | bool) or not 1 <= value <= 100:
        raise InputError(
            f"width={width!r} is no width; give 'column' ({COLUMN} in), 'full' ({FULL} in) or "
            "inches from 1 to 100"
        )
    return float(value)


def choice(name: str, value: str, known: Sequence[str]) -> str:
    """`value`, one of `known`."""
    if value not in known:
        raise InputError(f"{name}={value!r} is unknown; choose one of {', '.join(known)}")
    return value


def blank(width: float, height: float, theme: Theme, *, free: bool = False) -> Figure:
    """An empty figure; panels are laid out side by side, or wherever they are put if `free`."""
    # Inches, and shares of a panel, between panels.
    layout = ConstrainedLayoutEngine(w_pad=0.03, h_pad=0.03, wspace=0.03, hspace=0.03)
    figure = Figure(figsize=(width, height), facecolor=theme.paper, layout=None if free else layout)
    FigureCanvasAgg(figure)
    return figure


def dress(
    panel: Axes,
    theme: Theme,
    heading: str = "",
    *,
    grid: bool = False,
    face: str | None = None,
) -> None:
    """Sets a panel's title, colours, line widths and font sizes; labels come afterwards."""
    panel.set_title(heading, color=theme.ink, fontsize=TEXT, pad=3)
    panel.set_facecolor(theme.paper if face is None else face)
    for spine in panel.spines.values():
        spine.set(color=theme.muted, linewidth=0.6)
    panel.tick_params(
        which="both",
        colors=theme.muted,
        labelcolor=theme.ink,
        labelsize=SMALL,
        width=0.6,
        length=2.5,
        pad=2,
    )
    panel.tick_params(which="minor", length=1.5)
    for axis in (panel.xaxis, panel.yaxis):
        axis.label.set(color=theme.ink, fontsize=TEXT)
        axis.labelpad = 2
        axis.get_offset_text().set(color=theme.ink, fontsize=SMALL)
    if grid:
        panel.grid(True, color=theme.rule, linewidth=0.4)
        panel.set_axisbelow(True)


def pixel_ticks(axis: Any, most: int = 5) -> None:
    """Few, round, whole ticks; call it once the limits are set."""
    low, high = sorted(axis.get_view_interval())
    if high - low < most:
        axis.set_major_locator(FixedLocator(range(math.ceil(low), math.floor(high) + 1)))
    else:
        axis.set_major_locator(MaxNLocator(nbins=most, steps=[1, 2, 5, 10], integer=True))


def legend(figure: Figure, handles: Sequence[Any], theme: Theme) -> None:
    """A legend below all panels, in as many columns as the figure's width has room for."""
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    for columns in range(len(handles), 0, -1):
        made = figure.legend(
            handles=list(handles),
            loc="outside lower center",
            ncols=columns,
            fontsize=SMALL,
            frameon=False,
            labelcolor=theme.ink,
            handlelength=1.8,
            columnspacing=1.2,
            handletextpad=0.5,
            borderpad=0.2,
        )
        if columns == 1 or made.get_window_extent(renderer).width < 0.94 * figure.bbox.width:
            return
        made.remove()


def title(figure: Figure, theme: Theme, *lines: str) -> None:
    """A title above all panels: each line shortened in its middle to what the width holds."""
    text = figure.suptitle("", fontsize=TEXT, color=theme.ink, linespacing=1.3)
    text.set_text("\n".join(shortened(figure, line, 0.97 * figure.bbox.width) for line in lines))


def shortened(figure: Figure, line: str, room: float, size: float = TEXT) -> str:
    """`line`, with … in its middle where it is longer than `room` dots at `size` points; text for
    Matplotlib, which does not take its dollars for mathematics."""
    line = printable(line)
    probe = figure.text(0, 0, line, fontsize=size, parse_math=False)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    kept = len(line)
    while kept > 4 and probe.get_window_extent(renderer).width > room:
        kept -= max(1, kept // 20)
        head = math.ceil(kept / 2)
        probe.set_text(f"{line[:head]}…{line[len(line) - (kept - head) :]}")
    result: str = plain(probe.get_text())
    probe.remove()
    return result


def plain(text: str) -> str:
    """`text` as Matplotlib draws it unchanged, without mathematics."""
    return text.replace("$", r"\$")


def arrange(figure: Figure) -> None:
    """Places the panels, as drawing would."""
    engine = figure.get_layout_engine()
    assert engine is not None
    engine.execute(figure)


def fit_height(figure: Figure, panels: Iterable[Axes]) -> None:
    """Makes the figure as high as panels of fixed proportions need at the width that they got.

    `panels` are the topmost panel of each row, whose heights add up.
    """
    panels = list(panels)
    for _ in range(2):
        arrange(figure)
        missing = 0.0
        for panel in panels:
            place = panel.get_position(original=True)
            ratio = panel.get_box_aspect()
            assert ratio is not None
            width, height = place.width * figure.bbox.width, place.height * figure.bbox.height
            missing += ratio * width - height
        size = figure.get_size_inches()
        figure.set_size_inches(size[0], max(size[1] + missing / figure.dpi, 0.8))


def save(figure: Figure, path: str | os.PathLike[str], dpi: float = DPI) -> None:
    """Writes a figure to a ``.png``, ``.svg`` or ``.pdf`` file.

    Args:
        figure: what one of the figure functions returned.
        path: where to; the suffix says the format.
        dpi: dots per inch of a PNG and of the images inside the others.

    Raises:
        InputError: another suffix, or the file cannot be written.
    """
    from fastrf.plot import check_path

    check_path(path)
    if not isinstance(figure, Figure):
        raise InputError(
            f"a {type(figure).__name__} is no figure; draw one first, as with "
            "fastrf.plot.erf_figure(erf)"
        )
    try:
        figure.savefig(Path(path), dpi=dpi)
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}") from None


def number(value: Any) -> str:
    """A number as people write it: whole, a fraction, or four digits."""
    if value is None:
        return "∞"
    return str(value) if not isinstance(value, float) else f"{value:.4g}"


def times(values: Sequence[Any]) -> str:
    """One value per axis: "7 × 5"."""
    return " × ".join(map(number, values))


def brief(values: Sequence[Any]) -> str:
    """One value per axis, or one for all: "7 × 5", "7"."""
    return times(values[:1] if len(set(values)) == 1 else values)


def blocked(image: np.ndarray, most: int) -> tuple[np.ndarray, tuple[int, ...]]:
    """The image averaged over blocks, so that no axis has more than `most` of them; their sides.

    The last block of an axis is filled up with its mean of fewer pixels.
    """
    sides = tuple(max(1, math.ceil(n / most)) for n in image.shape)
    for axis, side in enumerate(sides):
        if side > 1:
            starts = np.arange(0, image.shape[axis], side)
            counts = np.diff([*starts, image.shape[axis]])
            shape = [-1 if a == axis else 1 for a in range(image.ndim)]
            image = np.add.reduceat(image, starts, axis=axis) / counts.reshape(shape)
    return image, sides
