"""Reshapes, transposes and the shuffles that they amount to; the operators that read shapes."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from fastrf.importers.failing import refuse
from fastrf.importers.layout import CHANNEL, Const, Shape, product, regroup
from fastrf.importers.onnx.folding import shape_of
from fastrf.importers.onnx.op import Op, handles
from fastrf.importers.operator import Result
from fastrf.importers.shuffles import moved
from fastrf.layers import ChannelShuffle, PixelShuffle, PixelUnshuffle

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


@handles("DepthToSpace")
def _pixel_shuffle(op: Op) -> Result:
    block = op.attr("blocksize")
    shuffle = [] if op.choice("mode", "DCR", "CRD") == "CRD" else [ChannelShuffle(block**op.ndim)]
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
        shape = _resolved(x.shape, target)
        return replace(x, shape=op.shape if shape is None or None in shape else shape)
    axes = None if target is None else regroup(x.axes, target)
    if axes is None:
        refuse(
            f"reshapes {x.dims} to {target or 'an unknown shape'}; "
            f"export with fixed sizes, or give input_size"
        )
    return moved(op, x, axes)


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
        copied = count == 0 and not op.flag("allowzero")
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
    axis = axis if axis == len(x.axes) else op.axis(axis, len(x.axes))
    halves = (x.axes[:axis], x.axes[axis:])
    return moved(op, x, tuple(tuple(d for a in half for d in a) for half in halves))


@handles("Transpose")
def _transpose(op: Op) -> Result:
    x = op.x
    if x.axes is None:
        return replace(x, shape=op.shape)
    order = op.attr("perm") or list(range(len(x.axes)))[::-1]
    if len(order) != len(x.axes):
        refuse(f"orders {len(order)} axes of a tensor of shape {x.dims}")
    if sorted(order) != list(range(len(x.axes))):
        op.fail(f"perm={order} is no order of its axes")
    return moved(op, x, tuple(x.axes[p] for p in order))


@handles("Squeeze")
def _squeeze(op: Op) -> Result:
    x = op.x
    if x.axes is None:
        return replace(x, shape=op.shape)
    axes = op.operand(1, "axes")
    rank = len(x.axes)
    given = range(rank) if axes is None else {op.axis(a, rank) for a in axes}
    gone = {p for p in given if axes is not None or not x.axes[p]}
    if any(x.axes[p] for p in gone):
        refuse(f"squeezes axes {sorted(gone)} of a tensor of shape {x.dims}")
    return moved(op, x, tuple(a for p, a in enumerate(x.axes) if p not in gone))


@handles("Unsqueeze")
def _unsqueeze(op: Op) -> Result:
    x = op.x
    if x.axes is None:
        return replace(x, shape=op.shape)
    added = op.operand(1, "axes", [])
    rank = len(x.axes) + len(added)
    places = {op.axis(a, rank) for a in added}
    old = iter(x.axes)
    return moved(op, x, tuple(() if p in places else next(old, ()) for p in range(rank)))
