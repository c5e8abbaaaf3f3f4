"""One panel of a field: an image or a section of one, with its sizes drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Rectangle
from numpy.typing import NDArray

from fastrf.plot import style
from fastrf.plot.scene import SHARES, Interval, Scene, ellipse, with_margin
from fastrf.plot.style import Theme

SCALES = {"both": ("linear", "log"), "linear": ("linear",), "log": ("log",)}

DECADES = 12
"""Most powers of ten that the logarithmic scale shows below the peak."""

# More blocks than this along an axis are finer than a PNG's dots across a column.
_MOST_BLOCKS = 700
# A panel is at most so many times as long as it is wide; its pixels then are no squares.
_MOST_LENGTH = 3.0
# Where a deviation is a smaller share of the panel, lines would cover what they are about.
_LEAST_SIGMA = 0.02
_CONTOURS: tuple[Literal["-", "--", ":"], ...] = ("-", "--", ":")


def draw_field(
    panel: Axes,
    scene: Scene,
    pair: tuple[int, int],
    kind: str,
    theme: Theme,
    heading: str,
    background: NDArray[Any] | None = None,
) -> list[Any]:
    """Draws a 2-D image, or a section of a 3-D one through the centre of the unit's TRF.

    Args:
        panel: where to; its colour-mapped image becomes ``panel.images[-1]``.
        scene: the field.
        pair: the vertical and the horizontal axis.
        kind: "linear" or "log".
        theme, heading: the figure's colours, the panel's title.
        background: an image to lie under it.

    Returns:
        Handles of a legend.
    """
    erf = scene.erf
    style.dress(panel, theme, heading, face=theme.panel)
    window = [scene.whole(axis) for axis in pair] if kind == "log" else scene.near(pair)
    if background is not None:
        rows, columns = background.shape[:2]
        extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
        panel.imshow(background, cmap="gray", extent=extent, aspect="auto")
        inside = [(-0.5, rows - 0.5), (-0.5, columns - 0.5)]
        window = [(min(a, c), max(b, d)) for (a, b), (c, d) in zip(window, inside, strict=True)]
    _draw_image(panel, scene, pair, kind, theme, see_through=background is not None)
    handles = _frames(panel, scene, pair)
    if all(
        erf.std[axis] > _LEAST_SIGMA * (high - low)
        for axis, (low, high) in zip(pair, window, strict=True)
    ):
        handles += _deviation(panel, scene, pair)
        handles += _outlines(panel, scene, pair)
    set_window(panel, window)
    return handles


def set_window(panel: Axes, window: Sequence[Interval]) -> None:
    """Limits and proportions; pixels are squares where that is not too long a strip."""
    (top, bottom), (left, right) = (with_margin(w) for w in window)
    panel.set_xlim(left, right)
    panel.set_ylim(bottom, top)
    ratio = (bottom - top) / (right - left)
    panel.set_aspect("auto")
    panel.set_box_aspect(min(max(ratio, 1 / _MOST_LENGTH), _MOST_LENGTH))
    style.pixel_ticks(panel.xaxis)
    style.pixel_ticks(panel.yaxis)


def _section(scene: Scene, image: NDArray[Any], pair: tuple[int, int]) -> NDArray[Any]:
    """The image along `pair`, through the unit's centre along the axis that is left."""
    if image.ndim == 2:
        return image
    (across,) = set(range(image.ndim)) - set(pair)
    at = section_at(scene, across) - scene.erf.origin[across]
    section: NDArray[Any] = image.take(at, axis=across)
    return section if pair[0] < pair[1] else section.T


def section_at(scene: Scene, axis: int) -> int:
    """The pixel at the unit's centre, within the image."""
    low, high = scene.erf.box[axis]
    return int(min(max(round(scene.erf.center[axis]), low), high))


def _colors(theme: Theme) -> Colormap:
    from matplotlib import colormaps

    return colormaps["viridis"].with_extremes(bad=theme.panel, under=colormaps["viridis"](0.0))


def _draw_image(
    panel: Axes, scene: Scene, pair: tuple[int, int], kind: str, theme: Theme, see_through: bool
) -> None:
    section = np.asarray(_section(scene, scene.image, pair), np.float64) / scene.peak
    shown, sides = style.blocked(section, _MOST_BLOCKS)
    positive = shown[shown > 0]
    if kind == "log":
        floor = max(float(positive.min(initial=1.0)), 10.0**-DECADES)
        norm: Normalize = LogNorm(floor if floor < 1 else 0.1, 1.0)
    else:
        norm = Normalize(0.0, 1.0)
    top, left = (scene.edges(axis)[0] for axis in pair)
    bottom, right = (
        low + side * n for low, side, n in zip((top, left), sides, shown.shape, strict=True)
    )
    panel.imshow(
        np.ma.masked_less_equal(shown, 0.0) if kind == "log" else shown,
        extent=(left, right, bottom, top),
        norm=norm,
        cmap=_colors(theme),
        # Over a picture what holds nothing is clear, and the peak is not.
        alpha=0.85 * np.clip(norm(shown).filled(0), 0, 1) ** 0.5 if see_through else None,
        interpolation="nearest",
        aspect="auto",
    )


def color_bar(figure: Figure, panel: Axes, image: Any, theme: Theme) -> None:
    """A bar below the panel, as long as the panel is wide."""
    ratio = panel.get_box_aspect()
    assert ratio is not None
    norm, log = image.norm, isinstance(image.norm, LogNorm)
    values = np.ma.compressed(image.get_array())
    under = log and values.size > 0 and float(values.min()) < norm.vmin
    bar = figure.colorbar(
        image,
        ax=panel,
        location="bottom",
        # As long as the panel is wide, and a 20th of that high.
        fraction=0.05 / ratio,
        pad=0.02,
        aspect=20,
        extend="min" if under else "neither",
    )
    style.dress(bar.ax, theme)
    bar.outline.set(edgecolor=theme.muted, linewidth=0.6)
    bar.set_label("variance / peak")
    if log:
        decades = -int(np.floor(np.log10(norm.vmin)))
        step = max(1, -(-decades // 4))
        bar.set_ticks([10.0**-d for d in range(0, decades + 1, step) if 10.0**-d >= norm.vmin])
        bar.minorticks_off()
    else:
        bar.set_ticks([0, 0.25, 0.5, 0.75, 1], labels=["0", "¼", "½", "¾", "1"])


def _outlines(panel: Axes, scene: Scene, pair: tuple[int, int]) -> list[Any]:
    section = _section(scene, scene.smooth, pair)
    if min(section.shape) < 2:
        return []
    section, sides = style.blocked(section, _MOST_BLOCKS)
    rows, columns = (
        scene.edges(axis)[0] + side * (np.arange(n) + 0.5)
        for axis, side, n in zip(pair, sides, section.shape, strict=True)
    )
    handles = []
    for share, level, line in zip(SHARES, scene.levels, _CONTOURS, strict=True):
        if float(section.min()) < level < float(section.max()):
            drawn = panel.contour(
                columns,
                rows,
                section,
                [level],
                colors=style.ON_IMAGE_LINE,
                linestyles=line,
                linewidths=0.9,
            )
            drawn.set(path_effects=style.halo(0.9))
        label = f"{share:.0%} of the mass"
        proxy = Line2D([], [], color=style.ON_IMAGE_LINE, linestyle=line, lw=0.9, label=label)
        proxy.set_path_effects(style.halo(0.9))
        handles.append(proxy)
    return handles


def _frames(panel: Axes, scene: Scene, pair: tuple[int, int]) -> list[Any]:
    (top, bottom), (left, right) = (scene.trf[axis] for axis in pair)
    frame = Rectangle(
        (left - 0.5, top - 0.5),
        right - left + 1,
        bottom - top + 1,
        fill=False,
        edgecolor=style.ON_IMAGE_TRF,
        linewidth=1.1,
        label=scene.trf_label,
        path_effects=style.halo(1.1, 0.3),
    )
    panel.add_patch(frame)
    size = scene.erf.input_size
    if size is None:
        return [frame]
    border = Rectangle(
        (-0.5, -0.5),
        size[pair[1]],
        size[pair[0]],
        fill=False,
        edgecolor=style.ON_IMAGE_LINE,
        linewidth=0.8,
        linestyle=(0, (4, 2)),
        label=f"input {style.times(size)}",
        path_effects=style.halo(0.8),
    )
    panel.add_patch(border)
    return [frame, border]


def _deviation(panel: Axes, scene: Scene, pair: tuple[int, int]) -> list[Any]:
    erf = scene.erf
    across, down, angle = ellipse(erf.covariance[np.ix_(pair, pair)])
    mean = erf.mean[pair[1]], erf.mean[pair[0]]
    curve = Ellipse(
        mean,
        2 * across,
        2 * down,
        angle=angle,
        fill=False,
        edgecolor=style.ON_IMAGE_SIGMA,
        linewidth=1.1,
        label="1 σ about the centre",
        path_effects=style.halo(1.1, 0.3),
    )
    panel.add_patch(curve)
    (center,) = panel.plot(
        *mean,
        marker="+",
        markersize=5,
        markeredgewidth=1.1,
        linestyle="none",
        color=style.ON_IMAGE_SIGMA,
        label="centre of mass",
        path_effects=style.halo(1.1, 0.3),
    )
    return [curve, center]
