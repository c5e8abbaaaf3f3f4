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
from fastrf.layers import Layer, Upsample

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
        policy = op.choice("keep_aspect_ratio_policy", "stretch", "not_larger", "not_smaller")
        if op.shape is not None and policy != "stretch":
            sizes = [op.shape[axis] for axis in axes]
        for axis, m in zip(axes, sizes, strict=True):
            n = out[axis]
            scale[axis] = None if n is None or m is None else Fraction(m, n)
            out[axis] = m
    else:
        refuse("states neither scales nor sizes")
    if scale[0] != 1 or scale[1] != 1:
        refuse("resizes the batch or the channels")
    rule = _rule(op, old)
    if all(s == 1 for s in scale):
        return op.chain(x)
    return op.grid(x, _upsample(op, rule, scale[2:], x.pixels, out[2:]))


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
    if coordinates.startswith("tf_"):
        refuse(f"resizes with {coordinates} coordinates")
    return mode, coordinates, rounding


def _upsample(
    op: Op,
    rule: tuple[Any, Any, str],
    scale: Sequence[Fraction | None],
    size: Shape,
    out: Sequence[int | None],
) -> Layer:
    """The resize with exactly ONNX's coordinates; others are refused."""
    mode, coordinates, rounding = rule
    factors = known(scale)
    if factors is not None:
        given = {"scale": spell([s.numerator if s.denominator == 1 else s for s in factors])}
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
                return Upsample(mode=name, **given)
        refuse(f"rounds {coordinates} coordinates by {rounding}")
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
    return Upsample(
        mode=mode,
        coordinates=coordinates,
        antialias=op.flag("antialias"),
        a=float(op.attr("cubic_coeff_a", -0.75)) if mode == "cubic" else None,
        outside="excluded" if op.flag("exclude_outside") else "edge",
        **given,
    )


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
    coordinates: str, rounding: str, scale: Fraction, n: int | None, m: int | None
) -> set[str]:
    """Which of fastrf's nearest modes read the same pixels as ONNX's coordinates and rounding."""
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
    own: Mapping[str, Callable[[int], int]] = {
        "nearest": lambda o: math.floor(o / scale),
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
