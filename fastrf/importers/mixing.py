"""What mixes whole axes of a tensor: products with constant weights, reductions, statistics."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Literal

from fastrf.importers.failing import refuse
from fastrf.importers.layout import BATCH, CHANNEL, Map, Shape, size
from fastrf.importers.operator import Operator
from fastrf.layers import Activation, Attention, Conv, FullyConnected, GlobalPool, Layer, Norm


def contracted(op: Operator, x: Map, axis: int, out: int | None) -> Map:
    """A map times constant weights: the tensor's axis becomes `out` new channels (None: none)."""
    if x.axes is None:
        after = op.chain(x, Activation(op.type.lower(), gain=1.0))
        return replace(after, shape=op.shape)
    digits = x.axes[axis]
    whole_map = x.holds_grid(digits) and x.holds(digits, CHANNEL)
    if any(d.label == BATCH for d in digits):
        refuse("mixes the batch")
    if whole_map or (x.pixels == (1,) * op.ndim and digits == x.whole(CHANNEL)):
        layer: Layer = FullyConnected(channels=out or 1)
        extent: Shape = (out or 1, *(1,) * op.ndim)
    elif digits == x.whole(CHANNEL):
        layer, extent = Conv(1, channels=out or 1), (out or 1, *x.pixels)
    elif (
        x.holds_grid(digits)
        and len(digits) == sum(n != 1 for n in x.pixels)
        and out == size(digits)
    ):
        return op.chain(x, Attention())
    else:
        refuse(f"mixes a part of the channels or positions of a tensor of shape {x.dims}")
    after = replace(op.chain(x, layer), extent=extent)
    axes = x.put(axis, after.whole(CHANNEL))
    if out is None:
        axes = tuple(a for p, a in enumerate(axes) if p != axis)
    return replace(after, axes=axes)


def reduced(op: Operator, x: Map, gone: Collection[int], mean: bool, keep: bool) -> Map:
    """A map reduced over the axes `gone` of a tensor.

    Args:
        mean: the reduction reads every pixel alike; otherwise it routes, as a maximum does.
        keep: the axes stay, with one index.
    """
    assert x.axes is not None
    digits = tuple(d for p in gone for d in x.axes[p])
    layers: list[Layer] = []
    extent = x.extent
    if x.reads_grid([digits]):
        layers.append(GlobalPool("avg" if mean else "max"))
        extent = (extent[CHANNEL], *(1,) * op.ndim)
    if any(d.label == CHANNEL for d in digits):
        if not x.holds(digits, CHANNEL):
            refuse("reduces a part of the channels")
        layers.append(Conv(1, channels=1))
        extent = (1, *extent[1:])
    left = [() if p in gone else axis for p, axis in enumerate(x.axes) if keep or p not in gone]
    return replace(op.chain(x, *layers), extent=extent, axes=tuple(left))


def normalised(op: Operator, x: Map, positions: Sequence[int]) -> Map:
    """A normalisation with statistics over the given axes of the tensor."""
    if x.axes is None:
        return op.chain(x, Norm("channel"))
    axes = [x.axes[p] for p in positions]
    digits = tuple(d for axis in axes for d in axis)
    statistics: Literal["channel", "instance", "layer", "group"] = "channel"
    if x.reads_grid(axes):
        channels = any(d.label == CHANNEL for d in digits)
        statistics = "instance"
        if channels or x.extent[CHANNEL] == 1:
            statistics = "layer" if x.holds(digits, CHANNEL) else "group"
    return op.chain(x, Norm(statistics))
