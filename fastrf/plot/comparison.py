"""Theory beside experiment: what was computed, what was measured, and how far apart they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fastrf.comparison import Comparison, Pair, compare
from fastrf.erf import ERF
from fastrf.plot import style
from fastrf.plot.style import Theme, ThemeName, Width

_DECADES = 8
"""Most powers of ten below the peak that the images show."""

_SHOWN = 1e-4
"""Profiles' ratios are drawn where theory has more than this share of its peak."""

# Profiles of more pixels have smaller dots.
_MANY = 60


def comparison_figure(
    theory: ERF, experiment: ERF, *, width: Width = "full", theme: ThemeName = "light"
) -> Figure:
    """A computed field beside a measured one, in input pixels.

    In 2-D first the images, on one logarithmic scale, and every pixel's z, (measured −
    computed)/standard error, cut off at the bound that the comparison holds the largest to. Then
    along each axis both profiles (the mass summed over the other axes), the measured one with a
    band of two standard errors, and their ratio.

    Args:
        theory, experiment: as `compare` takes them.
        width, theme: as in `fastrf.plot`.

    Raises:
        InputError: an unknown option, or as `compare`.
    """
    colors, across = style.theme_of(theme), style.inches(width)
    found = compare(theory, experiment)
    pair = Pair.of(theory, experiment)
    ndim = pair.theory.ndim
    images = 1 if ndim == 2 else 0
    heights = [across / 3] * images + [0.7 + 0.09 * across, 0.5 + 0.06 * across]
    figure = style.blank(across, sum(heights) + 1.0 + 0.5 * images, colors)
    style.title(figure, colors, *_title(theory, found))
    # Three images in a row, and one profile an axis: their columns have no common width.
    grid = figure.add_gridspec(len(heights), 3 * ndim, height_ratios=heights)
    if images:
        places = [grid[0, column * ndim : (column + 1) * ndim] for column in range(3)]
        _draw_images(figure, [figure.add_subplot(p) for p in places], pair, found, colors)
    handles: list[Any] = []
    for axis in range(ndim):
        columns = slice(3 * axis, 3 * axis + 3)
        above = figure.add_subplot(grid[images, columns])
        below = figure.add_subplot(grid[images + 1, columns], sharex=above)
        handles = _draw_profiles(above, below, pair, axis, colors)
        below.set_xlabel(f"{style.AXIS_NAMES[ndim][axis]} (input pixels)")
        if axis == 0:
            above.set_ylabel("mass per pixel")
            below.set_ylabel("ratio")
    style.legend(figure, handles, colors)
    return figure


def _title(theory: ERF, found: Comparison) -> tuple[str, str, str]:
    where = ", ".join(map(str, found.unit))
    name = f"{theory.network.name}: " if theory.network.name else ""
    verdict = "agree" if found else "disagree"
    return (
        f"{name}unit ({where}) of {theory.node}: theory and {found.draws:,} draws {verdict}",
        f"largest |z| {abs(found.largest):.2f} of {found.pixels} pixels (bound {found.bound:.2f})",
        f"Σz² {found.chi_square:.0f} for {found.pixels} ± {found.spread:.0f} "
        f"(p = {found.p_value:.2g})",
    )


def _draw_images(
    figure: Figure, panels: list[Axes], pair: Pair, found: Comparison, theme: Theme
) -> None:
    from matplotlib import colormaps

    (top, left), (rows, columns) = pair.origin, pair.theory.shape
    extent = (left - 0.5, left + columns - 0.5, top + rows - 0.5, top - 0.5)
    peak = float(max(pair.theory.max(), pair.experiment.max()))
    least = float(pair.theory[pair.theory > 0].min()) / peak
    shared = LogNorm(min(max(least, 10.0**-_DECADES), 0.1), 1.0)
    shown: list[tuple[str, NDArray[np.float64], Normalize, str]] = [
        ("theory", pair.theory / peak, shared, "viridis"),
        ("experiment", pair.experiment / peak, shared, "viridis"),
        ("z", pair.scores, Normalize(-found.bound, found.bound), "RdBu_r"),
    ]
    for panel, (name, image, norm, map_name) in zip(panels, shown, strict=True):
        masked = np.ma.masked_where(pair.theory + pair.experiment <= 0, image)
        if norm is shared:
            masked = np.ma.masked_less_equal(image, 0.0)
        style.dress(panel, theme, name, face=theme.panel)
        drawn = panel.imshow(
            masked,
            extent=extent,
            norm=norm,
            cmap=colormaps[map_name].with_extremes(bad=theme.panel),
            interpolation="nearest",
            aspect="equal",
        )
        style.pixel_ticks(panel.xaxis, 4)
        style.pixel_ticks(panel.yaxis, 4)
        panel.set_xlabel("x (input pixels)")
        bar = figure.colorbar(
            drawn,
            ax=panel,
            location="bottom",
            fraction=0.07,
            pad=0.02,
            aspect=15,
            extend="both" if name == "z" else "neither",
        )
        style.dress(bar.ax, theme)
        bar.outline.set(edgecolor=theme.muted, linewidth=0.6)
        bar.set_label("standard errors" if name == "z" else "variance / peak")
        if norm is shared:
            decades = -int(np.floor(np.log10(float(shared.vmin or 0.1))))
            step = max(1, -(-decades // 3))
            ends = [10.0**-d for d in range(0, decades + 1, step)]
            bar.set_ticks([end for end in ends if end >= float(shared.vmin or 0.1)])
            bar.minorticks_off()
    panels[0].set_ylabel("y (input pixels)")


def _draw_profiles(above: Axes, below: Axes, pair: Pair, axis: int, theme: Theme) -> list[Any]:
    others = tuple(a for a in range(pair.theory.ndim) if a != axis)
    theory, measured = pair.theory.sum(others), pair.experiment.sum(others)
    error = _error(pair.groups.sum(tuple(a + 1 for a in others)))
    pixels = pair.origin[axis] + np.arange(len(theory))
    for panel in (above, below):
        style.dress(panel, theme, grid=True)
    dots: dict[str, Any] = {
        "color": theme.trf,
        "linestyle": "none",
        "marker": ".",
        "markersize": 2 if len(pixels) > _MANY else 4,
    }
    band: dict[str, Any] = {"color": theme.trf, "alpha": 0.3, "linewidth": 0}
    handles: list[Any] = above.plot(pixels, theory, color=theme.erf, linewidth=1.3, label="theory")
    above.fill_between(pixels, measured - 2 * error, measured + 2 * error, **band)
    handles += above.plot(pixels, measured, label="experiment, ± 2 standard errors", **dots)
    above.set_ylim(0, 1.05 * max(float(theory.max()), float((measured + 2 * error).max())))
    above.tick_params(labelbottom=False)

    seen = theory > _SHOWN * float(theory.max())
    ratio, reach = measured[seen] / theory[seen], 2 * error[seen] / theory[seen]
    below.axhline(1, color=theme.erf, linewidth=1.3)
    below.fill_between(pixels[seen], ratio - reach, ratio + reach, **band)
    below.plot(pixels[seen], ratio, **dots)
    # The core decides on the scale; where next to nothing was measured the band runs out of it.
    core = theory[seen] > 0.01 * float(theory.max())
    widest = float(np.max(np.abs(ratio[core] - 1) + reach[core]))
    widest = min(max(1.4 * widest, 0.02), 1.0)
    below.set_ylim(1 - widest, 1 + widest)
    style.pixel_ticks(below.xaxis)
    return handles


def _error(groups: NDArray[np.float64]) -> NDArray[np.float64]:
    """Standard error of the profile that the groups' shares add up to, by the jackknife."""
    rest = groups.sum(0) - groups
    rest /= rest.sum(1, keepdims=True)
    count = len(groups)
    spread = ((rest - rest.mean(0)) ** 2).sum(0)
    error: NDArray[np.float64] = np.sqrt((count - 1) / count * spread)
    return error
