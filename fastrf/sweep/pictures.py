"""Pictures of a sweep's table: curves over depth, ratios with slopes, heat maps, small multiples.

Every function takes a table (a store, a list of mappings such as its `query` gives, a pandas or
polars DataFrame, an Arrow table, or columns by name), names the columns to show, and returns a
matplotlib figure of the width of a journal's column. None touches pyplot, its windows or its
settings. Colours and marks are those of Okabe and Ito's palette (2008) and of cividis, which
colour-blind readers tell apart, and curves differ by mark and dash as well.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrf import metrics
from fastrf.errors import InputError, printable
from fastrf.plot import require
from fastrf.sweep.expressions import nearest

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 3.5
"""Inches, a journal's column; sizes of text are chosen for it."""

MOST_CURVES = 8
"""Most curves of one picture: there are no more colours that everybody tells apart."""

_PALETTE = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7"),
    *("#E69F00", "#56B4E9", "#000000", "#999933"),
)
_MARKS = "os^Dv<>P"
_DASHES = ("-", "--", "-.", ":")
_SMALL, _TEXT = 7, 8


def growth_curves(
    table: Any, x: str = "depth", y: str | Sequence[str] = "std_0", by: Sequence[str] | str = ()
) -> Figure:
    """Sizes over depth: one curve for each column of `y` and each combination of `by`.

    Args:
        table: see the module's text.
        x: the column along the horizontal axis.
        y: one column or several, all in the same unit.
        by: columns that tell curves apart.

    Raises:
        InputError: a column is missing, a point has several rows that nothing tells apart, or
            there are more than 8 curves.
        MissingExtra: matplotlib is not installed.
    """
    names = [y] if isinstance(y, str) else list(y)
    curves = _curves(table, x, names, by)
    figure, axes = _figure(legend=len(curves))
    for style, (label, points) in zip(_STYLES, curves.items(), strict=False):
        axes.plot(*zip(*points, strict=True), **style, label=label)
    axes.set(xlabel=_text(x), ylabel=_text(f"{', '.join(names)} (pixels)"))
    axes.set_ylim(bottom=0)
    _finish(figure, axes, legend=len(curves) > 1)
    return figure


def ratio_curves(
    table: Any, x: str = "depth", y: str = "ratio", by: Sequence[str] | str = ()
) -> Figure:
    """A ratio over depth, both on logarithmic scales, with the fitted slope of every curve.

    The slope is that of `metrics.slope_fit`: Luo et al. 2016 (Figure 2) find that the size grows
    like depth^0.5 and its ratio to the theoretical field falls like depth^−0.5. Arguments and
    errors as for `growth_curves`; x and y have to be positive.
    """
    curves = _curves(table, x, [y], by)
    figure, axes = _figure(legend=len(curves))
    for style, (label, points) in zip(_STYLES, curves.items(), strict=False):
        where, values = (np.array(c, dtype=np.float64) for c in zip(*points, strict=True))
        named = label
        if len(points) > 1:
            slope = metrics.slope_fit(where.tolist(), values.tolist())
            named = f"{label}: slope {slope:.3f}".replace("-", "−")
            # The least-squares line goes through the mean of the logarithms.
            at, level = np.log(where).mean(), np.log(values).mean()
            line = np.exp(level + slope * (np.log(where) - at))
            axes.plot(where, line, color=style["color"], linewidth=0.8)
        axes.plot(where, values, **{**style, "linestyle": "none"}, label=named)
    axes.set(xlabel=_text(x), ylabel=_text(y), xscale="log", yscale="log")
    _plain_ticks(axes)
    _finish(figure, axes, legend=True)
    return figure


def heat_map(table: Any, x: str, y: str, value: str, *, log: bool = False) -> Figure:
    """One figure of the table over two parameters, as a grid of coloured cells.

    Args:
        table: see the module's text; where a cell has no row it stays empty.
        x, y: the parameters along the axes, numbers or texts.
        value: the column shown as a colour; printed in the cells where they are few.
        log: a logarithmic scale of colours.

    Raises:
        InputError: a column is missing, or several rows that differ elsewhere fall into one cell.
        MissingExtra: matplotlib is not installed.
    """
    rows = records(table, (x, y, value))
    columns, lines = (_ordered(row[name] for row in rows) for name in (x, y))
    grid = np.full((len(lines), len(columns)), np.nan)
    for row in rows:
        cell = lines.index(_key(row[y])), columns.index(_key(row[x]))
        if not np.isnan(grid[cell]) and grid[cell] != row[value]:
            raise InputError(
                f"several rows have {x}={row[x]!r} and {y}={row[y]!r} and differ in {value}; "
                f"select one value of the other parameters first"
            )
        grid[cell] = np.nan if row[value] is None else row[value]
    require()
    from matplotlib.colors import LogNorm, Normalize

    shown = grid[np.isfinite(grid)]
    if not shown.size or (log and shown.min() <= 0):
        raise InputError(f"{value} has no {'positive ' if log else ''}numbers; nothing to colour")
    norm = (LogNorm if log else Normalize)(float(shown.min()), float(shown.max()))
    figure, axes = _figure(height=min(3.6, max(2.2, 0.9 + 0.24 * len(lines))))
    image = axes.imshow(grid, origin="lower", aspect="auto", cmap="cividis", norm=norm)
    _label_cells(axes, "x", columns)
    _label_cells(axes, "y", lines)
    axes.set(xlabel=_text(x), ylabel=_text(y))
    if len(columns) <= 8 and len(lines) <= 12:
        for (line, column), number in np.ndenumerate(grid):
            if np.isfinite(number):
                colour = "black" if norm(number) > 0.55 else "white"
                axes.text(
                    column, line, f"{number:.3g}", color=colour, ha="center", va="center",
                    fontsize=6,
                )  # fmt: skip
    bar = figure.colorbar(image, ax=axes)
    bar.set_label(_text(value), fontsize=_TEXT)
    bar.ax.tick_params(labelsize=_SMALL)
    _finish(figure, axes, legend=False, grid=False)
    return figure


def image_grid(
    images: Mapping[str, Any] | Sequence[Any], *, columns: int = 3, amplitude: bool = True
) -> Figure:
    """Small multiples of ERF images, all at the same scale, so that their sizes compare.

    Args:
        images: `ERF` results or 2-D arrays (variances); a mapping gives their titles. Each is
            drawn relative to its own peak, about its centre of mass.
        columns: images per row.
        amplitude: show square roots, as Luo et al. 2016 do.

    Raises:
        InputError: there is no image, or one is not 2-D.
        MissingExtra: matplotlib is not installed.
    """
    named = images if isinstance(images, Mapping) else dict.fromkeys(range(len(images)))
    given = list(images.values()) if isinstance(images, Mapping) else list(images)
    arrays = [np.asarray(v.to_numpy() if hasattr(v, "to_numpy") else v) for v in given]
    if not arrays or any(array.ndim != 2 or not array.any() for array in arrays):
        raise InputError("small multiples show 2-D images that are not all 0; give at least one")
    if type(columns) is not int or columns < 1:
        raise InputError(f"columns={columns!r} must be a whole number of at least 1")
    require()
    columns = min(columns, len(arrays))
    lines = -(-len(arrays) // columns)
    side = WIDTH / columns
    figure, panels = _figure(height=lines * (side + 0.2) + 0.35, shape=(lines, columns))
    reach = max(_reach(array) for array in arrays)
    image = None
    for panel, array, title in zip(panels.flat, arrays, named, strict=False):
        shown = np.sqrt(array / array.max()) if amplitude else array / array.max()
        middle = [float(m) for m in metrics.mean(array)]
        (top, left), (high, wide) = middle, array.shape
        extent = (-left - 0.5, wide - left - 0.5, high - top - 0.5, -top - 0.5)
        image = panel.imshow(
            shown, extent=extent, cmap="cividis", vmin=0, vmax=1, interpolation="nearest"
        )
        panel.set(xlim=(-reach, reach), ylim=(reach, -reach), facecolor="#00224e")
        if isinstance(images, Mapping):
            panel.set_title(_text(title), fontsize=_TEXT)
    for panel in panels.flat:
        panel.tick_params(labelsize=6)
        panel.label_outer()
    for panel in list(panels.flat)[len(arrays) :]:
        panel.set_axis_off()
    assert image is not None
    bar = figure.colorbar(image, ax=panels, orientation="horizontal", shrink=0.7, aspect=40)
    what = "√variance" if amplitude else "variance"
    bar.set_label(f"{what} over its peak; axes in input pixels", fontsize=_SMALL)
    bar.ax.tick_params(labelsize=6)
    return figure


def records(table: Any, needed: Iterable[str] = ()) -> list[dict[str, Any]]:
    """A table as a list of rows, those left out that have an `error`.

    Raises:
        InputError: it is no table, it has no rows, or a needed column is missing.
    """
    from fastrf.sweep.store import Store

    if isinstance(table, Store):
        rows: list[Any] = table.query()
    elif hasattr(table, "to_pylist"):  # Arrow
        rows = table.to_pylist()
    elif hasattr(table, "to_dicts"):  # polars
        rows = table.to_dicts()
    elif hasattr(table, "to_dict") and hasattr(table, "columns"):  # pandas
        rows = table.to_dict("records")
    elif isinstance(table, Mapping):
        columns = zip(*table.values(), strict=True)
        rows = [dict(zip(table, values, strict=True)) for values in columns]
    elif isinstance(table, Iterable) and not isinstance(table, str):
        rows = [dict(row) if isinstance(row, Mapping) else row for row in table]
    else:
        rows = [None]
    if not all(isinstance(row, dict) for row in rows):
        raise InputError(
            f"{type(table).__name__} is no table; give a store, a list of mappings or a data frame"
        )
    rows = [row for row in rows if not _said(row.get("error"))]
    if not rows:
        raise InputError("the table has no rows without an error; there is nothing to draw")
    for name in needed:
        if name not in rows[0]:
            raise InputError(f"the table has no column {name!r}; {nearest(name, rows[0])}")
    return rows


def _said(error: Any) -> bool:
    """Whether a row's error is one; pandas has NaN where there is none."""
    return error is not None and error == error and error != ""


# --- curves ---------------------------------------------------------------------------------


def _curves(
    table: Any, x: str, names: Sequence[str], by: Sequence[str] | str
) -> dict[str, list[tuple[float, float]]]:
    """Label → points (x, y) in order of x."""
    groups = [by] if isinstance(by, str) else list(by)
    rows = records(table, (x, *names, *groups))
    curves: dict[str, dict[float, float]] = {}
    for row in rows:
        own = ", ".join(f"{name} {row[name]}" for name in groups)
        for name in names:
            label = _text(", ".join(filter(None, (own, name if len(names) > 1 or not own else ""))))
            if row[name] is None or row[name] != row[name]:
                continue
            points = curves.setdefault(label, {})
            if points.setdefault(row[x], row[name]) != row[name]:
                raise InputError(
                    f"several rows have {x}={row[x]!r}{f' and {own}' if own else ''} and differ "
                    f"in {name}; name in by= what tells them apart, or select rows first"
                )
    if len(curves) > MOST_CURVES:
        raise InputError(
            f"there are {len(curves)} curves, more than the {MOST_CURVES} that can be told "
            f"apart; select rows first"
        )
    if not curves:
        raise InputError(f"{', '.join(names)} has no values; there is nothing to draw")
    return {label: sorted(points.items()) for label, points in curves.items()}


_STYLES: tuple[dict[str, Any], ...] = tuple(
    {"color": colour, "marker": mark, "linestyle": dash, "markersize": 3, "linewidth": 1.2}
    for colour, mark, dash in zip(_PALETTE, _MARKS, cycle(_DASHES), strict=False)
)


# --- figures --------------------------------------------------------------------------------


def _figure(
    *, height: float = 2.4, legend: int = 0, shape: tuple[int, int] | None = None
) -> tuple[Figure, Any]:
    require()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = 0 if legend < 2 else -(-legend // 2)
    figure = Figure(figsize=(WIDTH, height + 0.16 * rows), dpi=200, layout="constrained")
    FigureCanvasAgg(figure)
    if shape is None:
        return figure, figure.add_subplot()
    return figure, figure.subplots(*shape, sharex=True, sharey=True, squeeze=False)


def _finish(figure: Figure, axes: Axes, *, legend: bool, grid: bool = True) -> None:
    axes.tick_params(labelsize=_SMALL, which="both")
    axes.xaxis.label.set_fontsize(_TEXT)
    axes.yaxis.label.set_fontsize(_TEXT)
    if grid:
        axes.grid(True, color="0.88", linewidth=0.5)
        axes.set_axisbelow(True)
    if legend:
        longest = max(len(text) for text in axes.get_legend_handles_labels()[1])
        figure.legend(
            loc="outside lower center", ncols=1 if longest > 24 else 2, fontsize=6, frameon=False
        )


def _plain_ticks(axes: Axes) -> None:
    """A few ticks in every decade, written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 3.0, 5.0, 7.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())


def _text(value: Any) -> str:
    """As Matplotlib draws it, which takes no dollars of it for mathematics."""
    return printable(str(value)).replace("$", r"\$")


def _key(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _ordered(values: Iterable[Any]) -> list[Any]:
    """The distinct values, numbers in order of size."""
    found = list(dict.fromkeys(map(_key, values)))
    numbers = all(isinstance(v, int | float | np.number) for v in found)
    return sorted(found) if numbers else found


def _label_cells(axes: Axes, which: str, values: Sequence[Any]) -> None:
    every = math.ceil(len(values) / 12)
    places = range(0, len(values), every)
    texts = [f"{values[n]:g}" if isinstance(values[n], float) else _text(values[n]) for n in places]
    getattr(axes, f"set_{which}ticks")(list(places), texts)


def _reach(array: np.ndarray) -> float:
    """Pixels from the centre within which an image is drawn: four standard deviations, or all."""
    spread = max(metrics.std(array))
    return float(max(2.5, min(4.0 * spread + 1.0, max(array.shape) / 2)))
