"""Figures of effective receptive fields, with matplotlib (the extra ``plot``).

`erf_figure` draws and `save` writes; neither touches matplotlib.pyplot, its windows or its
settings, so both are safe in a notebook, a server or a thread.

Colours: the images use viridis, whose lightness rises evenly and which colour-blind readers tell
apart; lines use Okabe and Ito's palette (2008).
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastrf.errors import InputError, MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

    from fastrf.erf import ERF

FORMATS = (".png", ".svg", ".pdf")

SHARES = (0.5, 0.9, 0.99)
"""Shares of the mass whose smallest sets are outlined."""

DECADES = 12
"""Most powers of ten that the logarithmic scale shows below the peak."""

_BLUE, _ORANGE, _SKY, _PINK = "#0072B2", "#E69F00", "#56B4E9", "#CC79A7"
_SCALES = {"both": ("linear", "log"), "linear": ("linear",), "log": ("log",)}
_AXIS_NAMES = {1: ("x",), 2: ("y", "x"), 3: ("z", "y", "x")}
_PANEL = 4.2
"""Inches per panel."""


def erf_figure(erf: ERF, scale: Literal["both", "linear", "log"] = "both") -> Figure:
    """The field with its sizes, in input pixels.

    Above, the variance image per scale: all of it in 1-D and 2-D, in 3-D three sections through
    the unit's centre. With it the box of the theoretical receptive field, the ellipse of one
    standard deviation, and the outlines of the smallest sets that hold 50, 90 and 99 % of the
    mass. Below, each axis' profile (the mass summed over the other axes) and the Gaussian of the
    same mean and σ. In 1-D the profile is the image.

    Raises:
        InputError: `scale` is unknown.
        MissingExtra: matplotlib is not installed.
    """
    if scale not in _SCALES:
        raise InputError(f"scale={scale!r} is unknown; choose one of {', '.join(_SCALES)}")
    require()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.gridspec import GridSpec

    scales = _SCALES[scale]
    image = erf.to_numpy()
    ndim = image.ndim
    pairs: list[tuple[int, int]] = [] if ndim == 1 else [(0, 1)] if ndim == 2 else _SECTIONS
    # Images: a row of sections per scale in 3-D, one row of scales in 2-D. Profiles: a row below.
    image_rows = 0 if ndim == 1 else 1 if ndim == 2 else len(scales)
    image_columns = len(scales) if ndim == 2 else len(pairs)
    profile_rows = len(scales) if ndim < 3 else 1
    columns = math.lcm(max(image_columns, 1), ndim)
    figure = Figure(
        figsize=(
            _PANEL * 1.25 * max(image_columns, ndim, 2 if ndim == 1 else 1),
            _PANEL * image_rows + _PANEL * 0.62 * profile_rows + 0.9,
        ),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    grid = GridSpec(
        image_rows + profile_rows,
        columns,
        figure=figure,
        height_ratios=[1.0] * image_rows + [0.62] * profile_rows,
    )
    figure.suptitle(_title(erf))
    span = columns // max(image_columns, 1)
    for row, chosen in enumerate(_image_panels(scales, pairs)):
        for column, (pair, kind) in enumerate(chosen):
            panel = figure.add_subplot(grid[row, column * span : (column + 1) * span])
            _draw_image(figure, panel, erf, image, pair, kind)
    _draw_profiles(figure, grid, erf, image_rows, scales if ndim < 3 else scales[-1:], columns)
    return figure


def save(
    erf: ERF, path: str | os.PathLike[str], scale: Literal["both", "linear", "log"] = "both"
) -> None:
    """Writes `erf_figure` to a ``.png``, ``.svg`` or ``.pdf`` file.

    Raises:
        InputError: another suffix, an unknown `scale`, or the file cannot be written.
        MissingExtra: matplotlib is not installed.
    """
    check_path(path)
    figure = erf_figure(erf, scale)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}") from None


def check_path(path: str | os.PathLike[str]) -> None:
    """Raises what `save` would raise before it draws: an unknown suffix, or no matplotlib."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(
            f"a figure cannot be written as {suffix!r} ({str(path)!r}); "
            f"name the file {', '.join(FORMATS)}"
        )
    require()


def require() -> None:
    """Raises `MissingExtra` where matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtra(
            'figures need the package matplotlib; pip install "fastrf[plot]"'
        ) from None


_SECTIONS = [(1, 2), (0, 2), (0, 1)]
"""(vertical, horizontal) axes of the orthogonal sections in 3-D."""


def _image_panels(
    scales: Sequence[str], pairs: Sequence[tuple[int, int]]
) -> list[list[tuple[tuple[int, int], str]]]:
    """Rows of (axes, scale)."""
    if len(pairs) <= 1:
        return [[(pair, kind) for kind in scales] for pair in pairs]
    return [[(pair, kind) for pair in pairs] for kind in scales]


def _title(erf: ERF) -> str:
    where = ", ".join(map(str, erf.unit))
    where = f"({where})" if len(erf.unit) > 1 else where
    name = f"{erf.network.name}: " if erf.network.name else ""
    spread = ", ".join(f"{s:.4g}" for s in erf.std)
    size = " × ".join(f"{high - low + 1:d}" for low, high in _trf_box(erf))
    return (
        f"{name}effective receptive field of unit {where} of {erf.node}\n"
        f"σ = {spread} pixels, TRF {size}"
    )


def _trf_box(erf: ERF) -> list[tuple[int, int]]:
    """The theoretical field's box; the image's own where the unit has none that is bounded."""
    box = erf.field.box(erf.unit)
    if box is None or not all(math.isfinite(end) for ends in box for end in ends):
        box = erf.box
    return [(int(low), int(high)) for low, high in box]


def _draw_image(
    figure: Figure,
    panel: Axes,
    erf: ERF,
    image: NDArray[Any],
    pair: tuple[int, int],
    kind: str,
) -> None:
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.lines import Line2D
    from matplotlib.patches import Ellipse, Rectangle

    names = _AXIS_NAMES[image.ndim]
    section, place = _section(erf, image, pair)
    peak = float(section.max())
    positive = section[section > 0]
    # A section far from the mass may hold none; a plain grey then says so.
    if kind == "log" and positive.size:
        floor = max(float(positive.min()), peak * 10.0**-DECADES)
        norm: Normalize = LogNorm(floor if floor < peak else peak / 10, peak)
        shown = np.ma.masked_less_equal(section, 0.0)
    else:
        norm = Normalize(0.0, peak or 1.0)
        shown = np.ma.asarray(section)
    (y0, y1), (x0, x1) = ((erf.box[a][0] - 0.5, erf.box[a][1] + 0.5) for a in pair)
    panel.set_facecolor("0.92")
    drawn = panel.imshow(
        shown,
        extent=(x0, x1, y1, y0),
        norm=norm,
        cmap="viridis",
        interpolation="nearest",
        aspect="equal",
    )
    below = positive.size and float(positive.min()) < float(norm.vmin or 0.0)
    # Beside the panel itself: the panel is square and may be smaller than its place.
    bar = figure.colorbar(
        drawn, cax=panel.inset_axes((1.04, 0.0, 0.04, 1.0)), extend="min" if below else "neither"
    )
    bar.set_label(f"gradient variance per {'pixel' if image.ndim == 2 else 'voxel'}")

    lines: list[Any] = []
    styles: tuple[tuple[Literal["-", "--", ":"], float], ...] = (
        ("-", 1.4),
        ("--", 1.2),
        (":", 1.4),
    )
    if min(section.shape) > 1 and peak > 0:
        smooth = _smoothed(erf, image)
        outlined, _ = _section(erf, smooth, pair)
        levels = [_level(smooth, share) for share in SHARES]
        rows = np.arange(erf.box[pair[0]][0], erf.box[pair[0]][1] + 1)
        cols = np.arange(erf.box[pair[1]][0], erf.box[pair[1]][1] + 1)
        for share, level, (style, width) in zip(SHARES, levels, styles, strict=True):
            if float(outlined.min()) < level < float(outlined.max()):
                panel.contour(
                    cols,
                    rows,
                    outlined,
                    [level],
                    colors="white",
                    linestyles=style,
                    linewidths=width,
                )
                label = f"{share:.0%} of the mass"
                lines.append(Line2D([], [], color="white", linestyle=style, lw=width, label=label))
    box = _trf_box(erf)
    (top, bottom), (left, right) = (box[a] for a in pair)
    frame = Rectangle(
        (left - 0.5, top - 0.5),
        right - left + 1,
        bottom - top + 1,
        fill=False,
        edgecolor=_ORANGE,
        linewidth=1.6,
        label="TRF",
    )
    panel.add_patch(frame)
    across, down, angle = _ellipse(erf.covariance[np.ix_(pair, pair)])
    ellipse = Ellipse(
        (erf.mean[pair[1]], erf.mean[pair[0]]),
        2 * across,
        2 * down,
        angle=angle,
        fill=False,
        edgecolor=_PINK,
        linewidth=1.8,
        label="1 σ",
    )
    panel.add_patch(ellipse)
    _limits(panel, (x0, x1), (y1, y0), (left - 0.5, right + 0.5), (bottom + 0.5, top - 0.5))
    panel.set_xlabel(f"{names[pair[1]]} (input pixels)")
    panel.set_ylabel(f"{names[pair[0]]} (input pixels)")
    panel.set_title(f"{kind} scale{place}", fontsize="medium")
    legend = panel.legend(
        handles=[*lines, frame, ellipse],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.16),
        ncols=3,
        fontsize="small",
        facecolor="0.45",
        labelcolor="white",
        framealpha=1.0,
    )
    legend.set_in_layout(True)


def _section(erf: ERF, image: NDArray[Any], pair: tuple[int, int]) -> tuple[NDArray[Any], str]:
    """The image's section along `pair` through the unit's centre, and where it lies."""
    if image.ndim == 2:
        return image, ""
    names = _AXIS_NAMES[image.ndim]
    (across,) = set(range(image.ndim)) - set(pair)
    at = min(max(round(erf.center[across]), erf.box[across][0]), erf.box[across][1])
    return image.take(at - erf.origin[across], axis=across), f", {names[across]} = {at}"


def _smoothed(erf: ERF, image: NDArray[Any]) -> NDArray[np.float64]:
    """The image averaged over one stride: strides leave a pattern of their own period."""
    from scipy.ndimage import uniform_filter

    width = [math.ceil(s) if s else 1 for s in erf.field.stride]
    return np.asarray(uniform_filter(image.astype(np.float64), width, mode="nearest"))


def _level(image: NDArray[Any], share: float) -> float:
    """The value of the least bright pixel in the smallest set that holds `share`."""
    values = np.sort(image, axis=None)[::-1].astype(np.float64)
    total = np.cumsum(values)
    return float(values[min(int(np.searchsorted(total, share * total[-1])), len(values) - 1)])


def _ellipse(covariance: NDArray[np.float64]) -> tuple[float, float, float]:
    """Half axes of the 1 σ ellipse of a (vertical, horizontal) covariance, and its angle.

    The angle turns the first half axis from the horizontal, in degrees.
    """
    values, vectors = np.linalg.eigh(covariance[::-1, ::-1])
    minor, major = np.sqrt(np.maximum(values, 0.0))
    return float(major), float(minor), math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))


def _limits(
    panel: Axes,
    x: tuple[float, float],
    y: tuple[float, float],
    box_x: tuple[float, float],
    box_y: tuple[float, float],
) -> None:
    """Shows image and TRF box with a margin; a box far larger than the image is cut."""
    for set_limits, image, box in ((panel.set_xlim, x, box_x), (panel.set_ylim, y, box_y)):
        sign = 1 if image[1] > image[0] else -1
        extent = abs(image[1] - image[0])
        low = max(min(sign * image[0], sign * box[0]), sign * image[0] - extent)
        high = min(max(sign * image[1], sign * box[1]), sign * image[1] + extent)
        margin = 0.03 * (high - low)
        set_limits(sign * (low - margin), sign * (high + margin))


def _draw_profiles(
    figure: Figure,
    grid: GridSpec,
    erf: ERF,
    first_row: int,
    scales: Sequence[str],
    columns: int,
) -> None:
    ndim = len(erf.origin)
    names = _AXIS_NAMES[ndim]
    span = columns // ndim
    for row, kind in enumerate(scales):
        for axis in range(ndim):
            cell = grid[first_row + row, axis * span : (axis + 1) * span]
            _draw_profile(figure.add_subplot(cell), erf, axis, names[axis], kind)


def _draw_profile(panel: Axes, erf: ERF, axis: int, name: str, kind: str) -> None:
    profile = np.asarray(erf.profile(axis), dtype=np.float64)
    pixels = erf.origin[axis] + np.arange(len(profile))
    peak = float(profile.max())
    mean, sigma = erf.mean[axis], erf.std[axis]
    if kind == "log":
        panel.set_yscale("log")
        positive = profile[profile > 0]
        panel.set_ylim(max(float(positive.min()) / 3, peak * 10.0**-DECADES), peak * 3)
        drawn = np.where(profile > 0, profile, np.nan)
    else:
        panel.set_ylim(0.0, peak * 1.12)
        drawn = profile
    marker = "." if len(profile) <= 40 else ""
    panel.plot(pixels, drawn, color=_BLUE, linewidth=1.6, marker=marker, label="ERF")
    if sigma > 0:
        fine = np.linspace(pixels[0], pixels[-1], max(400, len(pixels)))
        gaussian = np.exp(-0.5 * ((fine - mean) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
        label = f"Gaussian, σ = {sigma:.4g}"
        panel.plot(fine, gaussian, color="black", linestyle="--", linewidth=1.0, label=label)
    low, high = _trf_box(erf)[axis]
    extent = len(profile)
    left = max(min(low - 0.5, pixels[0] - 0.5), pixels[0] - extent)
    right = min(max(high + 0.5, pixels[-1] + 0.5), pixels[-1] + extent)
    margin = 0.03 * (right - left)
    panel.set_xlim(left - margin, right + margin)
    panel.axvspan(low - 0.5, high + 0.5, color=_ORANGE, alpha=0.15, linewidth=0, label="TRF")
    panel.set_xlabel(f"{name} (input pixels)")
    panel.set_ylabel("mass per pixel")
    panel.set_title(f"profile, {kind} scale", fontsize="medium")
    panel.grid(True, color="0.85", linewidth=0.6)
    panel.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.24), ncols=3, fontsize="small", frameon=False
    )
