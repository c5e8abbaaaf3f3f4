"""The figure of a comparison: what was computed, what was measured, and how far apart they are.

Needs matplotlib (the extra ``plot``); touches neither pyplot nor any setting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastrf.comparison import Comparison, Pair, compare
from fastrf.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fastrf.erf import ERF

_BLUE, _ORANGE = "#0072B2", "#D55E00"
_NAMES = {1: ("x",), 2: ("y", "x"), 3: ("z", "y", "x")}

_DECADES = 8
"""Most powers of ten below the peak that the images show."""

_SHOWN = 1e-4
"""Profiles' ratios are drawn where theory has more than this share of its peak."""


def comparison_figure(theory: ERF, experiment: ERF, width: float = 10.0) -> Figure:
    """A computed field beside a measured one, in input pixels.

    In 2-D first the images, on one logarithmic scale, and every pixel's z, (measured −
    computed)/standard error, cut off at the bound that the comparison holds the largest to. Then
    along each axis both profiles (the mass summed over the other axes), the measured one with a
    band of two standard errors, and their ratio.

    Args:
        theory, experiment: as `compare` takes them.
        width: inches.

    Raises:
        InputError: as `compare`.
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra(
            'figures need the package matplotlib; pip install "fastrf[plot]"'
        ) from None
    found = compare(theory, experiment)
    pair = Pair.of(theory, experiment)
    ndim = pair.theory.ndim
    tall = [0.32 * width] if ndim == 2 else []
    lines = [0.24 * width, 0.15 * width]
    figure = Figure(figsize=(width, sum(tall) + sum(lines) + 0.9), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(_title(theory, found), fontsize="medium")
    parts = figure.subfigures(1 + len(tall), 1, height_ratios=[*tall, sum(lines)], squeeze=False)
    if tall:
        _draw_images(parts[0, 0], pair, found)
    grid = parts[-1, 0].subplots(
        2, ndim, squeeze=False, sharex="col", gridspec_kw={"height_ratios": lines}
    )
    for axis in range(ndim):
        name = _NAMES[ndim][axis]
        _draw_profiles(grid[0, axis], grid[1, axis], pair, axis, name)
    parts[-1, 0].legend(
        *grid[0, 0].get_legend_handles_labels(),
        loc="outside lower center",
        ncols=2,
        fontsize="small",
        frameon=False,
    )
    return figure


def _title(theory: ERF, found: Comparison) -> str:
    where = ", ".join(map(str, found.unit))
    name = f"{theory.network.name}: " if theory.network.name else ""
    verdict = "agree" if found else "disagree"
    return (
        f"{name}unit ({where}) of {theory.node}: theory and {found.draws:,} draws {verdict}\n"
        f"largest |z| {abs(found.largest):.2f} of {found.pixels} pixels (bound {found.bound:.2f}), "
        f"Σz² {found.chi_square:.0f} for {found.pixels} ± {found.spread:.0f} "
        f"(p = {found.p_value:.2g})"
    )


def _draw_images(figure: Any, pair: Pair, found: Comparison) -> None:
    from matplotlib.colors import LogNorm, Normalize

    panels = figure.subplots(1, 3)
    (top, left), (rows, columns) = pair.origin, pair.theory.shape
    extent = (left - 0.5, left + columns - 0.5, top + rows - 0.5, top - 0.5)
    peak = float(max(pair.theory.max(), pair.experiment.max()))
    positive = pair.theory[pair.theory > 0]
    floor = max(float(positive.min()), peak * 10.0**-_DECADES)
    shared = LogNorm(min(floor, peak / 10), peak)
    shown: list[tuple[str, NDArray[np.float64], Normalize, str]] = [
        ("theory", pair.theory, shared, "viridis"),
        ("experiment", pair.experiment, shared, "viridis"),
        ("z", pair.scores, Normalize(-found.bound, found.bound), "RdBu_r"),
    ]
    for panel, (title, image, norm, colors) in zip(panels, shown, strict=True):
        masked = np.ma.masked_where(pair.theory + pair.experiment <= 0, image)
        if norm is shared:
            masked = np.ma.masked_less_equal(image, 0.0)
        panel.set_facecolor("0.92")
        drawn = panel.imshow(
            masked, extent=extent, norm=norm, cmap=colors, interpolation="nearest", aspect="equal"
        )
        panel.set_title(title, fontsize="medium")
        panel.set_xlabel("x (input pixels)")
        if title == "experiment":
            bar = figure.colorbar(drawn, ax=panels[:2], shrink=0.72)
            bar.set_label("gradient variance per pixel")
        elif title == "z":
            bar = figure.colorbar(drawn, ax=panel, shrink=0.72, extend="both")
            bar.set_label("(measured − computed)/standard error")
    panels[0].set_ylabel("y (input pixels)")


def _draw_profiles(above: Axes, below: Axes, pair: Pair, axis: int, name: str) -> None:
    others = tuple(a for a in range(pair.theory.ndim) if a != axis)
    theory, measured = pair.theory.sum(others), pair.experiment.sum(others)
    error = _error(pair.groups.sum(tuple(a + 1 for a in others)))
    pixels = pair.origin[axis] + np.arange(len(theory))
    peak = float(theory.max())
    many = len(pixels) > 60
    above.plot(pixels, theory, color=_BLUE, linewidth=1.4, label="theory")
    above.fill_between(
        pixels,
        measured - 2 * error,
        measured + 2 * error,
        color=_ORANGE,
        alpha=0.3,
        linewidth=0,
        label="experiment, ± 2 standard errors",
    )
    above.plot(
        pixels, measured, color=_ORANGE, linestyle="", marker=".", markersize=3 if many else 5
    )
    above.set_ylim(0, 1.12 * max(peak, float(measured.max())))
    above.set_ylabel("mass per pixel")

    seen = theory > _SHOWN * peak
    ratio, band = measured[seen] / theory[seen], 2 * error[seen] / theory[seen]
    below.axhline(1, color=_BLUE, linewidth=1.4)
    below.fill_between(
        pixels[seen], ratio - band, ratio + band, color=_ORANGE, alpha=0.3, linewidth=0
    )
    below.plot(
        pixels[seen], ratio, color=_ORANGE, linestyle="", marker=".", markersize=3 if many else 5
    )
    # The core decides on the scale; where next to nothing was measured the band runs out of it.
    core = theory[seen] > 0.01 * peak
    reach = float(np.max(np.abs(ratio[core] - 1) + band[core]))
    reach = min(max(1.4 * reach, 0.02), 1.0)
    below.set_ylim(1 - reach, 1 + reach)
    below.set_xlabel(f"{name} (input pixels)")
    below.set_ylabel("experiment / theory")
    for panel in (above, below):
        panel.grid(True, color="0.9", linewidth=0.6)
        panel.spines[["top", "right"]].set_visible(False)


def _error(groups: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard error of the profile that the groups' shares add up to, by the jackknife."""
    rest = groups.sum(0) - groups
    rest /= rest.sum(1, keepdims=True)
    count = len(groups)
    spread = ((rest - rest.mean(0)) ** 2).sum(0)
    error: NDArray[np.float64] = np.sqrt((count - 1) / count * spread)
    return error
