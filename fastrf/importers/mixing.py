"""What mixes whole axes of a tensor: products with constant weights, reductions, statistics."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fastrf.importers.failing import refuse
from fastrf.importers.layout import BATCH, CHANNEL, Axis, Const, Map, Shape, known, size
from fastrf.importers.operator import Operator
from fastrf.importers.spelling import spell
from fastrf.layers import (
    Activation,
    AdaptivePool,
    Add,
    Attention,
    ChannelSlice,
    Conv,
    FullyConnected,
    GlobalPool,
    Layer,
)


def contracted(
    op: Operator, x: Map, axis: int, out: int | None, matrix: NDArray[Any] | None = None
) -> Map:
    """A map times constant weights: the tensor's axis becomes `out` new channels (None: none).

    Args:
        matrix: the weights (out, axis), where they are known.
    """
    if x.axes is None:
        after = op.chain(x, Activation(op.type.lower(), gain=1.0))
        return replace(after, shape=op.shape)
    digits = x.axes[axis]
    whole_map = x.holds_grid(digits) and x.holds(digits, CHANNEL)
    if any(d.label == BATCH for d in digits):
        refuse("mixes the batch")
    if whole_map or (x.pixels == (1,) * op.ndim and digits == x.whole(CHANNEL)):
        kernel = _over_map(x, digits, matrix)
        layer: Layer = op.weighted(FullyConnected(channels=out or 1), kernel)
        extent: Shape = (out or 1, *(1,) * op.ndim)
    elif digits == x.whole(CHANNEL):
        layer = op.weighted(Conv(1, channels=out or 1), kernel_of(op, matrix))
        extent = (out or 1, *x.pixels)
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


def matrix_of(weights: NDArray[Any] | None) -> NDArray[Any] | None:
    """Known weights as one matrix (out, in), where they are that; a vector has one output."""
    if weights is None or weights.ndim == 0 or weights.size != math.prod(weights.shape[-2:]):
        return None
    return weights.reshape(weights.shape[-2:] if weights.ndim > 1 else (1, -1))


def turned(weights: NDArray[Any] | None) -> NDArray[Any] | None:
    """As `matrix_of`, of weights (in, out)."""
    matrix = matrix_of(weights)
    return matrix if matrix is None or weights is None or weights.ndim == 1 else matrix.T


def kernel_of(op: Operator, matrix: NDArray[Any] | None, groups: int = 1) -> Const | None:
    """The weights of a convolution with one tap by the same matrix (out, in) in every group."""
    if matrix is None:
        return None
    return Const.of(np.tile(matrix, (groups, 1)).reshape(-1, matrix.shape[1], *(1,) * op.ndim))


def _over_map(x: Map, digits: Axis, matrix: NDArray[Any] | None) -> Const | None:
    """Weights (out, axis) as (out, channels, *pixels)."""
    sizes = known(tuple(d.size for d in digits))
    if matrix is None or sizes is None:
        return None
    # Slowest digits first within each label put its index together again.
    order = sorted(range(len(digits)), key=lambda i: (digits[i].label, -digits[i].step))
    tensor = matrix.reshape(len(matrix), *sizes).transpose(0, *(i + 1 for i in order))
    return Const.of(tensor.reshape(len(matrix), *(n or 1 for n in x.extent)))


def reduced(op: Operator, x: Map, gone: Collection[int], mean: bool, keep: bool) -> Map:
    """A map reduced over the axes `gone` of a tensor.

    Args:
        mean: the reduction reads every pixel alike; otherwise it routes, as a maximum does.
        keep: the axes stay, with one index.
    """
    assert x.axes is not None
    digits = tuple(d for p in gone for d in x.axes[p])
    spatial = {d.label for d in digits if d.label > CHANNEL}
    if spatial and min(d.label for d in digits) > CHANNEL and not x.holds_grid(digits):
        return _rows_reduced(op, x, gone, spatial, mean, keep)
    layers: list[Layer] = []
    extent = x.extent
    if x.reads_grid([digits]):
        layers.append(GlobalPool("avg" if mean else "max"))
        extent = (extent[CHANNEL], *(1,) * op.ndim)
    if any(d.label == CHANNEL for d in digits):
        if not x.holds(digits, CHANNEL):
            added = None if layers else added_parts(op, x, gone, keep)
            if added is None:
                refuse("reduces a part of the channels")
            return added
        layers.append(Conv(1, channels=1))
        extent = (1, *extent[1:])
    return replace(op.chain(x, *layers), extent=extent, axes=left(x, gone, keep))


def _rows_reduced(
    op: Operator,
    x: Map,
    gone: Collection[int],
    spatial: Collection[int],
    mean: bool,
    keep: bool,
) -> Map:
    """Some of the spatial axes as a whole: adaptive pooling to one pixel along them."""
    if any((x.axes or ())[p] not in ((), *(x.whole(label) for label in spatial)) for p in gone):
        refuse("works along a part of a spatial axis")
    pixels = tuple(1 if label in spatial else n for label, n in enumerate(x.pixels, 1))
    layer = AdaptivePool(spell(pixels), "avg" if mean else "max")
    after = replace(op.chain(x, layer), extent=(x.extent[CHANNEL], *pixels))
    return replace(after, axes=left(x, gone, keep))


def left(x: Map, gone: Collection[int], keep: bool) -> tuple[Axis, ...]:
    """The axes of a tensor behind a reduction."""
    return tuple(
        () if p in gone else axis for p, axis in enumerate(x.axes or ()) if keep or p not in gone
    )


def added_parts(op: Operator, x: Map, gone: Collection[int], keep: bool) -> Map | None:
    """The slices of channels that their slowest digit counts, added up, where an axis is that
    digit (a sum over stacked maps); else None."""
    channels = x.extent[CHANNEL] or 1
    digits = [d for p in gone for d in (x.axes or ())[p]]
    if len(digits) != 1 or (digits[0].size or 1) * digits[0].step != channels:
        return None
    step = digits[0].step
    parts = [
        op.emit(ChannelSlice(start, start + step), x.node, part="part")
        for start in range(0, channels, step)
    ]
    after = replace(x, node=op.emit(Add(), *parts), extent=(step, *x.pixels))
    return replace(after, axes=left(x, gone, keep))


def normalised(
    op: Operator, x: Map, positions: Sequence[int], factors: NDArray[Any] | None = None
) -> Map:
    """A normalisation with statistics over the given axes of the tensor.

    Args:
        factors: its affine scale, where that is known.
    """
    if factors is not None and factors.shape != x.extent[:1]:
        factors = factors.reshape(1, -1)
    if x.axes is None:
        return op.chain(x, op.weighting.norm("channel", factors))
    axes = [x.axes[p] for p in positions]
    digits = tuple(d for axis in axes for d in axis)
    statistics: Literal["channel", "instance", "layer", "group"] = "channel"
    if x.reads_grid(axes):
        channels = any(d.label == CHANNEL for d in digits)
        statistics = "instance"
        if channels or x.extent[CHANNEL] == 1:
            statistics = "layer" if x.holds(digits, CHANNEL) else "group"
    return op.chain(x, op.weighting.norm(statistics, factors))
