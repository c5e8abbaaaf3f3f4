"""The image of an effective receptive field, with its sizes drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Ellipse, Patch, Rectangle
from matplotlib.ticker import NullFormatter
from numpy.typing import ArrayLike, NDArray

from fastrf.erf import ERF
from fastrf.errors import InputError
from fastrf.exchange import hosted
from fastrf.plot import style
from fastrf.plot.scene import SHARES, Interval, Scene, ellipse, with_margin
from fastrf.plot.style import Theme, ThemeName, Width

Scale = Literal["both", "linear", "log"]
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


def erf_figure(
    erf: ERF,
    scale: Scale = "both",
    *,
    background: ArrayLike | None = None,
    width: Width = "full",
    theme: ThemeName = "light",
) -> Figure:
    """The image of a field in linear and logarithmic scale, with its sizes.

    With it the box of the theoretical receptive field, the border of the input where its size is
    known, the centre of mass, the ellipse of one standard deviation, and the outlines of the
    smallest sets that hold 50, 90 and 99 % of the mass (of the image averaged over one stride).
    Values are relative to the peak. The linear panel shows a part where the TRF is far larger
    than what can be seen in it.

    In 1-D the pixels are bars, shaded by those sets. In 3-D this is `sections_figure`, twice.

    Args:
        erf: the field.
        scale: "linear", "log" or "both".
        background: the input, of shape (height, width), or (…, 3 or 4) for colours, over which a
            2-D field is laid. Its first pixel is input index 0.
        width, theme: as in `fastrf.plot`.

    Raises:
        InputError: an unknown option, or a background that does not fit.
    """
    style.choice("scale", scale, tuple(SCALES))
    colors, across = style.theme_of(theme), style.inches(width)
    if erf.values.ndim == 3:
        if background is not None:
            raise InputError("background= lies under a field of 2 axes; this one has 3")
        from fastrf.plot.sections import draw_sections

        return draw_sections(erf, SCALES[scale], across, colors)
    scene = Scene(erf)
    if scene.ndim == 1:
        if background is not None:
            raise InputError("background= lies under a field of 2 axes; this one has 1")
        return _bars(scene, SCALES[scale], across, colors)
    under = None if background is None else _background(background, erf)
    figure = style.blank(across, across / 2, colors)
    style.title(figure, colors, scene.heading, scene.facts)
    panels = list(np.ravel(figure.subplots(1, len(SCALES[scale]))))
    handles: list[Any] = []
    for panel, kind in zip(panels, SCALES[scale], strict=True):
        drawn = draw_field(panel, scene, (0, 1), kind, colors, f"{NAMES[kind]} scale", under)
        handles = max(handles, drawn, key=len)
        color_bar(figure, panel, panel.images[-1], colors)
        panel.set_xlabel("x (input pixels)")
    panels[0].set_ylabel("y (input pixels)")
    style.legend(figure, handles, colors)
    style.fit_height(figure, panels[:1])
    return figure


NAMES = {"linear": "linear", "log": "logarithmic"}


def _background(given: ArrayLike, erf: ERF) -> NDArray[Any]:
    image = hosted(given)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (3, 4)):
        raise InputError(
            f"background has shape {image.shape}; it is (height, width), (height, width, 3) or "
            "(height, width, 4)"
        )
    if erf.input_size is not None and image.shape[:2] != erf.input_size:
        raise InputError(
            f"background has {image.shape[:2]} pixels, but the input has {erf.input_size}; give "
            "the image that the network sees"
        )
    return image


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


# --- in 1-D ---------------------------------------------------------------------------------


def _bars(scene: Scene, scales: Sequence[str], width: float, theme: Theme) -> Figure:
    figure = style.blank(width, 0.36 * width * len(scales) ** 0.7 + 0.9, theme)
    style.title(figure, theme, scene.heading, scene.facts)
    panels = list(np.ravel(figure.subplots(len(scales), 1)))
    for panel, kind in zip(panels, scales, strict=True):
        handles = _draw_bars(panel, scene, kind, theme)
        panel.set_ylabel("mass per pixel")
        panel.set_xlabel("x (input pixels)")
    style.legend(figure, handles, theme)
    return figure


_TINTS = (1.0, 0.6, 0.35)


def _draw_bars(panel: Axes, scene: Scene, kind: str, theme: Theme) -> list[Any]:
    erf, peak = scene.erf, scene.peak
    style.dress(panel, theme, grid=True)
    window = scene.whole(0) if kind == "log" else scene.near([0])[0]
    values = np.asarray(scene.image, np.float64)
    first, last = scene.edges(0)
    edges = np.linspace(first, last, len(values) + 1)
    if kind == "log":
        positive = values[values > 0]
        floor = max(float(positive.min()) / 3, peak * 10.0**-DECADES)
        panel.set_yscale("log")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_ylim(floor, peak * 3)
    else:
        floor = 0.0
        panel.set_ylim(0.0, peak * 1.1)
    handles: list[Any] = []
    low, high = scene.trf[0]
    handles.append(
        panel.axvspan(
            low - 0.5, high + 0.5, color=theme.trf, alpha=0.12, lw=0, label=scene.trf_label
        )
    )
    panel.stairs(
        values, edges, baseline=floor, fill=True, color=theme.erf, alpha=0.2, lw=0, label="ERF"
    )
    for share, level, tint in reversed(list(zip(SHARES, scene.levels, _TINTS, strict=True))):
        inside = np.where(scene.smooth >= level, values, floor)
        panel.stairs(inside, edges, baseline=floor, fill=True, color=theme.paper, lw=0)
        panel.stairs(inside, edges, baseline=floor, fill=True, color=theme.erf, alpha=tint, lw=0)
        handles.append(
            Patch(facecolor=theme.erf, alpha=tint, lw=0, label=f"{share:.0%} of the mass")
        )
    mean, sigma = erf.mean[0], erf.std[0]
    handles.append(panel.axvline(mean, color=theme.ink, linewidth=0.9, label="centre of mass"))
    if sigma > 0:
        for side in (mean - sigma, mean + sigma):
            line = panel.axvline(
                side, color=theme.ink, linewidth=0.8, linestyle="--", label="1 σ from it"
            )
        handles.append(line)
    panel.set_xlim(*with_margin(window))
    style.pixel_ticks(panel.xaxis, 9)
    return handles
