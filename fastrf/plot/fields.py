"""The image of an effective receptive field, with its sizes drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter
from numpy.typing import ArrayLike, NDArray

from fastrf.erf import ERF
from fastrf.errors import InputError
from fastrf.exchange import hosted
from fastrf.plot import style
from fastrf.plot.panels import DECADES, SCALES, color_bar, draw_field
from fastrf.plot.scene import SHARES, Scene, with_margin
from fastrf.plot.sections import draw_sections
from fastrf.plot.style import Theme, ThemeName, Width

Scale = Literal["both", "linear", "log"]


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
