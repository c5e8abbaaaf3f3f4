"""Padding and resizing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from fastrf.importers.failing import refuse
from fastrf.importers.layout import CHANNEL, Shape, known
from fastrf.importers.onnx.op import Op, handles, handles_sets
from fastrf.importers.operator import Result
from fastrf.importers.padding import more_channels, padded
from fastrf.importers.spelling import spell
from fastrf.layers import Crop, Layer, Pad, Upsample

_PAD_MODES = {"constant": "zeros", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@handles("Pad")
def _pad(op: Op) -> Result:
    x = op.x if op.x.axes is not None else op.standard(op.x)
    pads = op.operand(1, "pads", op.attr("paddings"))
    rank = len(x.axes or ())
    axes = op.operand(3, "axes") or list(range(rank))
    ends = {op.axis(a, rank): (pads[i], pads[len(axes) + i]) for i, a in enumerate(axes)}
    pairs = {axis: pair for axis, pair in ends.items() if any(pair)}
    mode: Any = _PAD_MODES[op.choice(*("mode", *_PAD_MODES))]
    if [(x.axes or ())[p] for p in pairs] == [x.whole(CHANNEL)] and mode == "zeros":
        ((axis, pair),) = pairs.items()
        return more_channels(op, x, axis, *pair)
    if any(d.label < 1 for axis in pairs for d in (x.axes or ())[axis]):
        refuse(f"pads the batch or a part of the channels of a tensor of shape {x.dims}")
    return padded(op, x, pairs, mode)


@handles_sets("Resize Upsample")
def _resize(op: Op) -> Result:
    x = op.standard(op.x)
    old = op.type == "Upsample" or op.version < 11
    rank = op.ndim + 2
    axes = [op.axis(a, rank) for a in op.attr("axes") or range(rank)]
    scales = op.operand(1 if old else 2, "scales")
    sizes = None if old or op.input(3) is None else op.operand(3, "sizes")
    scale: list[Fraction | None] = [Fraction(1)] * rank
    out: list[int | None] = list(x.dims or ())
    if scales:
        for axis, value in zip(axes, scales, strict=True):
            factor = scale[axis] = _fraction(value)
            n = out[axis]
            out[axis] = None if n is None else math.floor(n * factor)
    elif sizes:
        pairs = [(out[axis], m) for axis, m in zip(axes, sizes, strict=True)]
        ratios = [None if n is None else Fraction(m, n) for n, m in pairs]
        policy = op.choice("keep_aspect_ratio_policy", "stretch", "not_larger", "not_smaller")
        if policy != "stretch":
            sure = known(ratios)
            if sure is None:
                refuse("keeps the aspect ratio of a map of unknown size; give input_size")
            ratios = [(min if policy == "not_larger" else max)(sure)] * len(axes)
        for axis, ratio, (n, m) in zip(axes, ratios, pairs, strict=True):
            scale[axis] = ratio
            stretched = policy == "stretch" or n is None or ratio is None
            out[axis] = m if stretched else math.floor((n or 0) * (ratio or 0) + _HALF)
    else:
        refuse("states neither scales nor sizes")
    if scale[0] != 1 or scale[1] != 1:
        refuse("resizes the batch or the channels")
    rule = _rule(op, old)
    if all(s == 1 for s in scale):
        return op.chain(x)
    return op.grid(x, *_upsampled(op, rule, scale[2:], x.pixels, out[2:]))


def _fraction(value: float) -> Fraction:
    """A float32 scale as the fraction that was meant."""
    if not math.isfinite(value) or value <= 0:
        refuse(f"has a scale of {value}")
    fraction = Fraction(value).limit_denominator(1024)
    if np.float32(float(fraction)) != np.float32(value):
        refuse(f"scales by {value}, which is no fraction with a denominator up to 1024")
    return fraction


def _rule(op: Op, old: bool) -> tuple[Any, Any, str]:
    """Mode, coordinates and rounding of a resize."""
    mode = op.choice("mode", "nearest", "linear", "cubic")
    if old:
        return mode, "asymmetric", "floor"
    coordinates = op.choice("coordinate_transformation_mode", "half_pixel", *_COORDINATES)
    rounding = op.choice("nearest_mode", "round_prefer_floor", *_ROUNDINGS)
    if coordinates == "tf_crop_and_resize":
        refuse(f"resizes with {coordinates} coordinates")
    return mode, coordinates, rounding


def _upsampled(
    op: Op,
    rule: tuple[Any, Any, str],
    scale: Sequence[Fraction | None],
    size: Shape,
    out: Sequence[int | None],
) -> list[Layer]:
    """The resize with exactly ONNX's coordinates; others are refused.

    Where a size is rounded up, the scale still says where its pixels lie: the map then goes on
    behind its edge, as far as the last of them reads.
    """
    axes = list(zip(scale, size, out, strict=True))
    short = [None not in axis and _scaled(axis[1], axis[0]) < (axis[2] or 0) for axis in axes]
    if not any(short):
        return _upsample(op, rule, scale, size, out)
    if op.flag("exclude_outside"):
        refuse("keeps the aspect ratio, rounds a size up and excludes what is outside")
    longer = tuple(n if n is None else n + more for n, more in zip(size, short, strict=True))
    more = [m if s is None or n is None else _scaled(n, s)
            for (s, _, m), n in zip(axes, longer, strict=True)]  # fmt: skip
    cut = [(0, (have or 0) - (m or 0)) for have, m in zip(more, out, strict=True)]
    pad = Pad(spell([(0, int(add)) for add in short]), "replicate")
    return [pad, *_upsample(op, rule, scale, longer, more), Crop(spell(cut))]


def _scaled(n: int | None, scale: Fraction | None) -> int:
    return math.floor((n or 0) * (scale or 0))


def _upsample(
    op: Op,
    rule: tuple[Any, Any, str],
    scale: Sequence[Fraction | None],
    size: Shape,
    out: Sequence[int | None],
) -> list[Layer]:
    mode, coordinates, rounding = rule
    factors = known(scale)
    if factors is not None:
        given = {"scale": spell([_whole(s) for s in factors])}
    elif mode == "nearest":
        refuse("resizes a map of unknown size to a fixed one; give input_size")
    else:
        given = {"size": spell(list(out))}
    axes = [a for a in zip(scale, size, out, strict=True) if a[0] != 1]
    if mode == "nearest":
        names = [_nearest(coordinates, rounding, s, n, m) for s, n, m in axes if s is not None]
        modes: tuple[Literal["nearest", "nearest-exact"], ...] = ("nearest", "nearest-exact")
        for name in modes:
            if all(name in own for own in names):
                return [Upsample(mode=name, **given)]
        if factors is None:
            refuse(f"rounds {coordinates} coordinates by {rounding}")
        return _moved(coordinates, rounding, factors, size, out)
    if coordinates == "pytorch_half_pixel" and all(
        (m is not None and m > 1) or n == 1 for _, n, m in axes
    ):
        coordinates = "half_pixel"
    if coordinates == "half_pixel_symmetric" and all(
        s is None or (n is not None and (n * s).denominator == 1) for s, n, _ in axes
    ):
        coordinates = "half_pixel"
    if coordinates not in ("half_pixel", "align_corners", "asymmetric"):
        refuse(f"resizes with {coordinates} coordinates")
    upsample = Upsample(
        mode=mode,
        coordinates=coordinates,
        antialias=op.flag("antialias"),
        a=float(op.attr("cubic_coeff_a", -0.75)) if mode == "cubic" else None,
        outside="excluded" if op.flag("exclude_outside") else "edge",
        **given,
    )
    return [upsample]


def _moved(
    coordinates: str,
    rounding: str,
    scale: Sequence[Fraction],
    size: Shape,
    out: Sequence[int | None],
) -> list[Layer]:
    """A nearest resize whose pixels lie some beside those of fastrf's: by whole pixels of the
    result for whole scales, and of the map for its every k-th pixel."""
    before, behind = [0] * len(scale), [0] * len(scale)
    for axis, (s, n, m) in enumerate(zip(scale, size, out, strict=True)):
        if s == 1 or "nearest" in _nearest(coordinates, rounding, s, n, m):
            continue
        shifts, own = (behind, s.numerator) if s.denominator == 1 else (before, s.denominator)
        fitting = [
            shift
            for shift in sorted(range(-own, own + 1), key=abs)
            if "nearest" in _nearest(coordinates, rounding, s, n, m, shift)
        ]
        if 1 not in (s.numerator, s.denominator) or not fitting:
            refuse(
                f"rounds {coordinates} coordinates by {rounding} where it scales by {s}, which is "
                f"no shift of a resize that fastrf knows; export with "
                f"coordinate_transformation_mode='asymmetric' and nearest_mode='floor'"
            )
        shifts[axis] = fitting[0]
    return [*_shift(before), Upsample(spell([_whole(s) for s in scale])), *_shift(behind)]


def _shift(pixels: Sequence[int]) -> list[Layer]:
    """Layers that move a map to the left, and repeat its edge on the right (or the other way)."""
    if not any(pixels):
        return []
    pad = [(max(-n, 0), max(n, 0)) for n in pixels]
    return [Pad(spell(pad), "replicate"), Crop(spell([pair[::-1] for pair in pad]))]


def _whole(scale: Fraction) -> int | Fraction:
    return scale.numerator if scale.denominator == 1 else scale


_COORDINATES = (
    "asymmetric",
    "align_corners",
    "pytorch_half_pixel",
    "half_pixel_symmetric",
    "tf_half_pixel_for_nn",
    "tf_crop_and_resize",
)

_COMPARED = 4096
"""Most rows of a resize that are compared one by one."""

_HALF = Fraction(1, 2)

_ROUNDINGS: Mapping[str, Callable[[Fraction], int]] = {
    "floor": math.floor,
    "ceil": math.ceil,
    "round_prefer_floor": lambda x: math.ceil(x - _HALF),
    "round_prefer_ceil": lambda x: math.floor(x + _HALF),
}


def _position(
    coordinates: str, scale: Fraction, n: int | None, m: int | None, rows: int
) -> Callable[[int], Fraction] | None:
    """Where an output pixel lies on the input, by ONNX's rule; None where that needs the size."""
    if coordinates == "asymmetric":
        return lambda o: o / scale
    if coordinates == "tf_half_pixel_for_nn":
        return lambda o: (o + _HALF) / scale
    if coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and m != 1):
        return lambda o: (o + _HALF) / scale - _HALF
    if n is None:
        return None
    if coordinates == "pytorch_half_pixel":
        return lambda o: Fraction(0)
    if coordinates == "align_corners":
        return lambda o: Fraction(o * (n - 1), max(rows - 1, 1))
    if coordinates == "half_pixel_symmetric":
        shift = Fraction(n, 2) * (1 - Fraction(rows) / (n * scale))
        return lambda o: shift + (o + _HALF) / scale - _HALF
    return None


def _nearest(
    coordinates: str,
    rounding: str,
    scale: Fraction,
    n: int | None,
    m: int | None,
    shift: int = 0,
) -> set[str]:
    """Which of fastrf's nearest modes read the same pixels as ONNX's coordinates and rounding.

    Args:
        shift: by how many pixels (of the result, or of the map where that gets smaller) fastrf's
            lie farther behind.
    """
    # Rows beyond the first period of scale.numerator repeat it; on small maps all are compared,
    # because the ends are clamped and two coordinate rules depend on the size.
    sized = n is not None and m is not None and m <= _COMPARED
    rows = m if sized and m is not None else scale.numerator
    if rows > _COMPARED or rounding not in _ROUNDINGS:
        return set()
    at = _position(coordinates, scale, n if sized else None, m, rows)
    if at is None:
        return set()
    read = [_ROUNDINGS[rounding](at(row)) for row in range(rows)]
    after, before = (shift, 0) if scale > 1 else (0, shift)
    own: Mapping[str, Callable[[int], int]] = {
        "nearest": lambda o: math.floor((o + after) / scale) + before,
        "nearest-exact": lambda o: math.floor((o + _HALF) / scale),
    }
    top = n - 1 if sized and n is not None else math.inf
    low = 0 if sized else -math.inf

    def pixel(index: int) -> float:
        return min(max(index, low), top)

    return {
        name
        for name, reads in own.items()
        if all(pixel(reads(row)) == pixel(index) for row, index in enumerate(read))
    }
