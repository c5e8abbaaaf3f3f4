"""Padding of tensor axes, whatever their order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fastrf.importers.failing import refuse
from fastrf.importers.layout import BATCH, CHANNEL, Map
from fastrf.importers.operator import Operator
from fastrf.importers.spelling import uncropped
from fastrf.layers import Concat, Conv, Layer, Pad, Scale

NOTHING = 2.0**-50
"""Factor of what stands for channels of zeros: its square, which multiplies variances, is far below
the rounding of what they are added to, also where a scheme draws weights behind it."""


def spatial_label(x: Map, axis: int) -> int:
    """The spatial axis of the map (1, 2, 3) that an axis of the tensor is."""
    assert x.axes is not None
    digits = x.axes[axis]
    label = digits[0].label if digits else _one_pixel_label(x, axis)
    if label < 1 or digits != x.whole(label):
        refuse(f"changes the size of an axis of a tensor of shape {x.dims} that is none of the map")
    return label


def _one_pixel_label(x: Map, axis: int) -> int:
    """An axis of one pixel is known by its place alone."""
    return axis - 1 if x.is_standard and x.axes is not None and len(x.axes) > 2 else BATCH


def padded(op: Operator, x: Map, pairs: dict[int, tuple[int, int]], mode: Any) -> Map:
    """The map with pixels added at (or, where negative, cut off) both ends of tensor axes."""
    amounts: list[tuple[int, int]] = [(0, 0)] * op.ndim
    after = x
    for axis, (low, high) in pairs.items():
        label = spatial_label(x, axis)
        amounts[label - 1] = (low, high)
        count = x.extent[label]
        after = after.resized(label, None if count is None else count + low + high, axis)
    cut, left = uncropped(amounts)
    layers: list[Layer] = [*cut, *([Pad(left, mode)] if left != 0 else [])]
    return replace(after, node=op.chain(x, *layers).node)


def zeros(op: Operator, x: Map, axis: int, channels: int) -> Map:
    """A map laid out like x, whose channels are the tensor's axis, of so many channels of zeros (or
    of any constants)."""
    node = op.emit(Scale(NOTHING), x.node, part="nothing")
    node = op.emit(Conv(1, channels=channels), node, part="zeros")
    return replace(x.resized(CHANNEL, channels, axis), node=node)


def more_channels(op: Operator, x: Map, axis: int, before: int, behind: int) -> Map:
    """A map with channels of zeros before and behind its own (the shortcut of CIFAR's ResNets)."""
    if min(before, behind) < 0:
        refuse("cuts channels off by padding; cut them off with a slice")
    parts = [zeros(op, x, axis, before)] if before else []
    parts += [x, *([zeros(op, x, axis, behind)] if behind else [])]
    count = x.extent[CHANNEL]
    after = x.resized(CHANNEL, None if count is None else count + before + behind, axis)
    return replace(after, node=op.emit(Concat(), *(part.node for part in parts)))
