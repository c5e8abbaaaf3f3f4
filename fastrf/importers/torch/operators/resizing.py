"""Padding, rolling and resizing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

from fastrf.importers.cutting import picked
from fastrf.importers.failing import refuse
from fastrf.importers.layout import CHANNEL, Map, known
from fastrf.importers.operator import Result
from fastrf.importers.padding import more_channels, padded, spatial_label
from fastrf.importers.spelling import spell
from fastrf.importers.torch.op import Op, handles, handles_sets
from fastrf.layers import Crop, Pad, Upsample

_MODES = {
    "constant": "zeros", "reflect": "reflect", "replicate": "replicate", "circular": "circular"
}  # fmt: skip


@handles("pad constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d")
def _pad(op: Op) -> Result:
    return _padded_from_the_end(op, _MODES[op.get("mode") or "constant"])


@handles("replication_pad1d replication_pad2d replication_pad3d")
def _replication_pad(op: Op) -> Result:
    return _padded_from_the_end(op, "replicate")


def _padded_from_the_end(op: Op, mode: str) -> Result:
    x = op.x
    pads = op.get("pad", "padding")
    if x.axes is None:
        return replace(op.chain(x), shape=op.size)
    pairs = {}
    for i, pair in enumerate(zip(pads[::2], pads[1::2], strict=True)):
        if any(pair):
            pairs[len(x.axes) - 1 - i] = pair
    if list(pairs) == [1] and mode == "zeros" and x.is_standard:
        return more_channels(op, x, 1, *pairs[1])
    if any(d.label < 1 for axis in pairs for d in x.axes[axis]):
        refuse(f"pads the batch or a part of the channels of a tensor of shape {x.dims}")
    if op.type.startswith("reflection"):
        mode = "reflect"
    return padded(op, x, pairs, mode) if pairs else x


@handles("roll")
def _roll(op: Op) -> Result:
    """Circular padding at one end, cut off at the other."""
    x = op.x
    if x.axes is None:
        return x
    if not op["dims"]:
        refuse("rolls the flattened tensor")
    shifts = op["shifts"] if isinstance(op["shifts"], list) else [op["shifts"]]
    low, cut = [(0, 0)] * op.ndim, [(0, 0)] * op.ndim
    after = x
    for shift, axis in zip(shifts, op.axes_of(x, op["dims"]), strict=True):
        count = op.size[axis]
        forward = shift % count
        if all(d.label == CHANNEL for d in x.axes[axis]):
            after = picked(op, after, axis, [(i - forward) % count for i in range(count)])
        elif forward:
            label = spatial_label(x, axis)
            back = forward > count // 2
            low[label - 1] = (0, count - forward) if back else (forward, 0)
            cut[label - 1] = low[label - 1][::-1]
    if low == [(0, 0)] * op.ndim:
        return after
    return op.chain(after, Pad(spell(low), "circular"), Crop(spell(cut)))


# --- resizing -------------------------------------------------------------------------------


@handles_sets(
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
    "_upsample_nearest_exact2d _upsample_nearest_exact3d"
)
def _nearest(op: Op) -> Result:
    mode: Literal["nearest", "nearest-exact"] = "nearest-exact" if "exact" in op.type else "nearest"
    return _resized(op, mode, "half_pixel")


@handles_sets("upsample_linear1d upsample_bilinear2d upsample_trilinear3d _upsample_bilinear2d_aa")
def _linear(op: Op) -> Result:
    return _interpolated(op, "linear")


@handles_sets("upsample_bicubic2d _upsample_bicubic2d_aa")
def _cubic(op: Op) -> Result:
    return _interpolated(op, "cubic")


def _interpolated(op: Op, mode: Literal["linear", "cubic"]) -> Map:
    antialias = op.type.endswith("_aa")
    if op["align_corners"] and antialias:
        # PyTorch then stretches as if corners were aligned, and samples as if they were not.
        refuse("aligns corners and smooths (antialias=True); resize with align_corners=False")
    return _resized(op, mode, "align_corners" if op["align_corners"] else "half_pixel", antialias)


def _resized(op: Op, mode: Any, coordinates: Any, antialias: bool = False) -> Map:
    x = op.standard(op.x)
    scale = _scales(op, x)
    if all(s == 1 for s in scale):
        return op.chain(x)
    if coordinates == "align_corners":
        return op.grid(x, Upsample(size=spell(op.size[2:]), mode=mode, coordinates=coordinates))
    whole = spell([s.numerator if s.denominator == 1 else s for s in scale])
    return op.grid(x, Upsample(whole, mode, coordinates=coordinates, antialias=antialias))


def _scales(op: Op, x: Map) -> list[Fraction]:
    """Output pixels per input pixel: what the call states, else the ratio of the sizes."""
    stated = op.get("scale_factors") or _numbered(op)
    ratios = [Fraction(m, n or 1) for m, n in zip(op.size[2:], x.pixels, strict=True)]
    if not stated:
        return ratios
    found = [_fraction(value) for value in stated]
    # A scale that gives another size would not be the one that PyTorch resizes with.
    sizes = zip(found, op.size[2:], x.pixels, strict=True)
    return [s if int(s * (n or 1)) == m else Fraction(m, n or 1) for s, m, n in sizes]


def _numbered(op: Op) -> Sequence[float] | None:
    names = ("scales",) if op.ndim == 1 else ("scales_d", "scales_h", "scales_w")[-op.ndim :]
    return known([op.arguments.get(name) for name in names])


def _fraction(value: float) -> Fraction:
    """A scale as the fraction that was meant."""
    fraction = Fraction(value).limit_denominator(1024)
    if abs(fraction - Fraction(value)) > Fraction(value) / 2**40:
        refuse(f"scales by {value}, which is no fraction with a denominator up to 1024")
    return fraction
