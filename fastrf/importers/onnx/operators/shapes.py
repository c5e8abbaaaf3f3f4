"""Reshapes, transposes and the shuffles that they amount to; the operators that read shapes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from fastrf.importers.onnx.failing import refuse
from fastrf.importers.onnx.folding import shape_of
from fastrf.importers.onnx.layout import (
    BATCH,
    CHANNEL,
    Axis,
    Const,
    Map,
    Shape,
    join,
    product,
    regroup,
    size,
)
from fastrf.importers.onnx.op import Op, Result, handles
from fastrf.importers.onnx.operators.spelling import spell
from fastrf.layers import ChannelShuffle, Layer, PixelShuffle, PixelUnshuffle

# --- reading shapes -------------------------------------------------------------------------


@handles("Shape")
def _shape(op: Op) -> Result:
    dims = op.x.dims
    return Const(op.shape) if dims is None else shape_of(op, dims)


@handles("Size")
def _size(op: Op) -> Result:
    count = None if op.x.dims is None else product(op.x.dims)
    return Const((), None if count is None else np.array(count, np.int64))


# --- shuffles -------------------------------------------------------------------------------


def _moved(op: Op, axes: tuple[Axis, ...]) -> Map:
    """The operator's map with its digits moved; shuffles that this completes become nodes."""
    x = op.x
    moved = replace(x, axes=tuple(join(axis) for axis in axes))
    if len(axes) != op.ndim + 2 or moved.is_standard or any(d.label != BATCH for d in axes[0]):
        return moved
    layers = _shuffles(moved)
    if layers is None:
        return moved
    extent = moved.extent
    for layer in layers:
        bound = layer.bind(op.ndim)
        pixels = extent[1:]
        if isinstance(bound, PixelShuffle):
            pixels = tuple(n * f for n, f in zip(pixels, bound.factor, strict=True) if n)
        elif isinstance(bound, PixelUnshuffle):
            pixels = tuple(n // f for n, f in zip(pixels, bound.factor, strict=True) if n)
        extent = (bound.output_channels([extent[0]]), *pixels)
    after = replace(op.chain(x, *layers), extent=extent)
    return replace(after, axes=(axes[0], *after.standard[1:]))


def _shuffles(x: Map) -> list[Layer] | None:
    """The shuffles that bring a map's digits into the order (N, C, spatial…), if some do."""
    assert x.axes is not None
    first, rest = x.axes[1], x.axes[2:]
    if None in x.extent:
        return None
    channels = x.whole(CHANNEL)
    if rest == x.standard[2:]:
        return _rotation(first, channels)
    if all(d.label == CHANNEL for d in first):
        return _depth_to_space(x, first, rest)
    # Space to depth: the channels get the fast digits of every spatial axis, in order.
    fast = [d for d in first if d.label != CHANNEL]
    factors = []
    for label, axis in enumerate(rest, 1):
        own = tuple(d for d in fast if d.label == label)
        if join((*axis, *own)) != x.whole(label) or any(d.label != label for d in axis):
            return None
        factors.append(size(own) or 1)
    own_channels = tuple(d for d in first if d.label == CHANNEL)
    if own_channels != channels or [d.label for d in fast] != sorted({d.label for d in fast}):
        return None
    layers: list[Layer] = [PixelUnshuffle(spell(factors))]
    if first == (*channels, *fast):
        return layers
    if first == (*fast, *channels):
        return [*layers, ChannelShuffle(x.extent[0] or 1)]
    return None


def _depth_to_space(x: Map, first: Axis, rest: tuple[Axis, ...]) -> list[Layer] | None:
    """As `_shuffles`, where spatial axes end with the channels' digit of the finer grid."""
    inner = [tuple(d for d in axis if d.label == CHANNEL) for axis in rest]
    grid = zip(rest, x.standard[2:], inner, strict=True)
    if any(axis != (*coarse, *fine) for axis, coarse, fine in grid):
        return None
    before = _rotation((*first, *(d for fine in inner for d in fine)), x.whole(CHANNEL))
    factor = spell([size(fine) for fine in inner])
    return None if before is None else [*before, PixelShuffle(factor)]


def _rotation(digits: Axis, whole: Axis) -> list[Layer] | None:
    """The channel shuffle behind which digits are the whole index; [] where they are already."""
    digits = join(digits)
    if digits == whole:
        return []
    if len(digits) == 2 and join(digits[::-1]) == whole:
        return [ChannelShuffle(digits[1].size or 1)]
    return None


@handles("DepthToSpace")
def _pixel_shuffle(op: Op) -> Result:
    block = op.attr("blocksize")
    shuffle = [] if op.attr("mode", "DCR") == "CRD" else [ChannelShuffle(block**op.ndim)]
    return op.grid(op.x, *shuffle, PixelShuffle(block))


@handles("SpaceToDepth")
def _pixel_unshuffle(op: Op) -> Result:
    x = op.standard(op.x)
    unshuffle = PixelUnshuffle(op.attr("blocksize"))
    channels = x.extent[CHANNEL]
    if channels is None:
        refuse("orders channels whose number is unknown")
    return op.grid(x, unshuffle, *([ChannelShuffle(channels)] if channels > 1 else []))


# --- reshapes and transposes ----------------------------------------------------------------


@handles("Reshape")
def _reshape(op: Op) -> Result:
    x = op.x
    target = _reshape_target(op)
    if x.axes is None:
        return replace(x, shape=op.shape or _resolved(x.shape, target))
    axes = None if target is None else regroup(x.axes, target)
    if axes is None:
        refuse(
            f"reshapes {x.dims} to {target or 'an unknown shape'}; "
            f"export with fixed sizes, or give input_size"
        )
    return _moved(op, axes)


def _reshape_target(op: Op) -> Shape | None:
    value = op.input(1)
    if isinstance(value, Const) and value.array is not None:
        counts = [int(n) for n in value.array.ravel()]
    else:
        counts = op.attr("shape")
    if counts is None:
        return op.shape
    dims = op.x.dims
    target: list[int | None] = []
    for position, count in enumerate(counts):
        copied = count == 0 and not op.attr("allowzero", 0)
        if copied and dims is not None and position < len(dims):
            target.append(dims[position])
        else:
            target.append(None if count == -1 else count)
    return op.shape if target.count(None) > 1 else tuple(target)


def _resolved(dims: Shape | None, target: Shape | None) -> Shape | None:
    """A reshape's target with its one open size worked out, where the old shape is known."""
    count = None if dims is None else product(dims)
    if target is None or count is None or target.count(None) != 1:
        return target
    rest = max(math.prod(n for n in target if n is not None), 1)
    return tuple(count // rest if n is None else n for n in target)


@handles("Flatten")
def _flatten(op: Op) -> Result:
    x = op.x
    if x.axes is None:
        return replace(x, shape=op.shape)
    axis = op.attr("axis", 1)
    axis += len(x.axes) if axis < 0 else 0
    halves = (x.axes[:axis], x.axes[axis:])
    return _moved(op, tuple(tuple(d for a in half for d in a) for half in halves))


@handles("Transpose")
def _transpose(op: Op) -> Result:
    x = op.x
    if x.axes is None:
        return replace(x, shape=op.shape)
    order = op.attr("perm") or list(range(len(x.axes)))[::-1]
    if sorted(order) != list(range(len(x.axes))):
        op.fail(f"perm={order} is no order of its axes")
    return _moved(op, tuple(x.axes[p] for p in order))


@handles("Squeeze")
def _squeeze(op: Op) -> Result:
    x = op.x
    if x.axes is None:
        return replace(x, shape=op.shape)
    axes = op.operand(1, "axes")
    rank = len(x.axes)
    gone = {p for p, a in enumerate(x.axes) if not a} if axes is None else {a % rank for a in axes}
    if any(x.axes[p] for p in gone):
        refuse(f"squeezes axes {sorted(gone)} of a tensor of shape {x.dims}")
    return _moved(op, tuple(a for p, a in enumerate(x.axes) if p not in gone))


@handles("Unsqueeze")
def _unsqueeze(op: Op) -> Result:
    x = op.x
    if x.axes is None:
        return replace(x, shape=op.shape)
    added = op.operand(1, "axes", [])
    rank = len(x.axes) + len(added)
    places = {a % rank for a in added}
    old = iter(x.axes)
    return _moved(op, tuple(() if p in places else next(old, ()) for p in range(rank)))
