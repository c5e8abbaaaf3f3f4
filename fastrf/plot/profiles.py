"""Profiles of an effective receptive field beside the smooth curves that approximate them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from fastrf.analytic.approximations import ripple, saddlepoint
from fastrf.analytic.chain import Step, cumulants
from fastrf.erf import ERF
from fastrf.lowering import PlaneGraph, lower
from fastrf.maps import Window as Taps
from fastrf.plot import style
from fastrf.plot.panels import DECADES, SCALES
from fastrf.plot.scene import Interval, Scene, with_margin
from fastrf.plot.style import Theme, ThemeName, Width

# A chain whose neighbouring pixels differ by more has no smooth form.
_RIPPLE = 0.05
# Profiles of fewer pixels show them as dots.
_DOTS = 60
_FINE = 400


def profile_figure(
    erf: ERF,
    scale: Literal["both", "linear", "log"] = "both",
    *,
    width: Width = "full",
    theme: ThemeName = "light",
) -> Figure:
    """Each axis' profile, the mass summed over the other axes, with what approximates it.

    The Gaussian of the same mean and deviation (Luo et al. 2016, section 2.2) is always drawn. The
    saddlepoint approximation (`fastrf.analytic.approximations.saddlepoint`) is drawn where it
    applies: the network is a chain of windows of independent weights, no gradient is lost at
    borders, and the lattice of its strides and dilations has no stripes.

    Args:
        erf: the field.
        scale: "linear", "log" or "both".
        width, theme: as in `fastrf.plot`.

    Raises:
        InputError: an unknown option.
    """
    style.choice("scale", scale, tuple(SCALES))
    colors, across = style.theme_of(theme), style.inches(width)
    scene = Scene(erf)
    rows = len(SCALES[scale])
    figure = style.blank(across, rows * (0.9 + 0.12 * across) + 0.7, colors)
    style.title(figure, colors, scene.heading, scene.facts)
    panels = figure.subplots(rows, scene.ndim, squeeze=False)
    handles: dict[str, Any] = {}
    for axis in range(scene.ndim):
        curves = _curves(scene, axis)
        for row, kind in zip(panels, SCALES[scale], strict=True):
            drawn = _draw(row[axis], scene, axis, kind, curves, colors)
            handles |= {h.get_label(): h for h in drawn}
        panels[-1][axis].set_xlabel(f"{scene.names[axis]} (input pixels)")
    for row in panels:
        row[0].set_ylabel("mass per pixel")
    style.legend(figure, list(handles.values()), colors)
    return figure


Curve = tuple[str, np.ndarray, np.ndarray]
"""Label, positions and values."""


def _curves(scene: Scene, axis: int) -> list[Curve]:
    """The smooth curves that belong to a profile."""
    erf = scene.erf
    mean, sigma = erf.mean[axis], erf.std[axis]
    if sigma == 0:
        return []
    first, last = erf.box[axis]
    # Each pixel, and as many places between two as make the curves smooth.
    parts = -(-_FINE // (last - first + 1))
    x = first + np.arange((last - first) * parts + 1) / parts
    with np.errstate(under="ignore"):
        p = np.exp(-(((x - mean) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi))
    curves = [("Gaussian of the same mean and σ", x, p)]
    steps = chain_steps(erf, axis)
    if steps and cumulants(steps, 2)[1] > 0 and ripple(steps) <= _RIPPLE:
        # At its ends the support has exact values, and within a pixel of them a density has none.
        low, high = scene.trf[axis]
        inner = x[(low + 1 <= x) & (x <= high - 1)]
        x = np.concatenate([[low], inner, [high]])
        p = saddlepoint(x - (low + high) / 2, steps).p
        curves.append(("saddlepoint approximation", x, p))
    return curves


def chain_steps(erf: ERF, axis: int) -> tuple[Step, ...] | None:
    """The layers below a unit along one axis, where the formulas of a chain apply to its field.

    None where ways part or meet, a layer is no window of independent weights or of an average
    without overlap, taps are no product, or gradient was lost at a border or may have been (a
    measured field does not know).
    """
    if erf.lost_mass != 0:
        return None
    graph = lower(erf.network, erf.input_sizes, ignore_global=erf.ignore_global)
    operations = graph.between(erf.node, erf.input)
    if not _is_path(graph, erf) or any(len(op.sources) > 1 for op in operations):
        return None
    jump, steps = 1, []
    for spatial in (m for op in operations for m in op.maps):
        window = spatial.axes[axis]
        fixed = spatial.kind == "fixed" and spatial.overlaps
        if fixed or not isinstance(window, Taps) or not spatial.separable:
            return None
        taps = spatial.axis_taps(axis)
        if window.kernel > 1:
            weights = None if taps is None else tuple(map(float, taps))
            steps.append(Step(window.kernel, jump, window.dilation, weights))
        jump *= window.stride
    return tuple(steps)


def _is_path(graph: PlaneGraph, erf: ERF) -> bool:
    """Whether each plane on the way is written once and read once."""
    operations = graph.between(erf.node, erf.input)
    read = [q for op in operations for q, _ in op.sources]
    written = [p for op in operations for p, _ in op.targets]
    return len(set(read)) == len(read) and len(set(written)) == len(written)


def _draw(
    panel: Axes, scene: Scene, axis: int, kind: str, curves: Sequence[Curve], theme: Theme
) -> list[Any]:
    style.dress(panel, theme, grid=True)
    profile = np.asarray(scene.erf.profile(axis), np.float64)
    pixels = scene.erf.origin[axis] + np.arange(len(profile))
    peak = float(profile.max())
    window: Interval = scene.whole(axis) if kind == "log" else scene.near([axis])[0]
    if kind == "log":
        positive = profile[profile > 0]
        panel.set_yscale("log")
        panel.yaxis.set_minor_formatter(NullFormatter())
        panel.set_ylim(max(float(positive.min()) / 3, peak * 10.0**-DECADES), peak * 3)
        shown = np.where(profile > 0, profile, np.nan)
    else:
        panel.set_ylim(0.0, peak * 1.12)
        shown = profile
    low, high = scene.trf[axis]
    handles: list[Any] = [
        panel.axvspan(low - 0.5, high + 0.5, color=theme.trf, alpha=0.12, lw=0, label="TRF")
    ]
    handles += panel.plot(
        pixels,
        shown,
        color=theme.erf,
        linewidth=1.4,
        marker="." if len(profile) <= _DOTS else "",
        markersize=3.5,
        label="ERF",
    )
    for (label, x, p), dashes, color in zip(
        curves, ((4, 2), (1, 1.2)), (theme.ink, theme.trf), strict=False
    ):
        (line,) = panel.plot(x, np.where(p > 0, p, np.nan), color=color, lw=1.0, label=label)
        line.set_dashes(dashes)
        handles.append(line)
    panel.set_xlim(*with_margin(window))
    style.pixel_ticks(panel.xaxis)
    return handles
