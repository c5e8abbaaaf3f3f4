"""Sums and products of maps and constants, with broadcasting, also on its own (Expand, Tile)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastrf.importers.onnx.failing import refuse
from fastrf.importers.onnx.layout import CHANNEL, Const, Map, Shape, size
from fastrf.importers.onnx.op import Op, Result, handles
from fastrf.importers.onnx.operators.spelling import spell
from fastrf.layers import Activation, Add, Multiply, Upsample

_PRODUCTS = ("Mul", "Div", "Pow", "Mod", "And", "BitwiseAnd")


@handles(
    "Add Sub Mul Div Sum Max Min Mean Pow Mod And Or Xor Equal Greater GreaterOrEqual Less "
    "LessOrEqual Where BitwiseAnd BitwiseOr BitwiseXor"
)
def _arithmetic(op: Op) -> Result:
    maps = [_enlarged(op, x) for x in op.maps]
    if len(maps) > 1:
        return op.merge(maps, Multiply() if op.type in _PRODUCTS else Add())
    return op.chain(maps[0], Activation(op.type.lower(), gain=1.0))


def _enlarged(op: Op, x: Map) -> Map:
    """The map with the rank that constants give it; they must not give it more pixels."""
    if x.axes is None:
        return x
    shapes = [v.shape for v in op.inputs if isinstance(v, Const) and v.shape is not None]
    rank = max([len(s) for s in shapes], default=0)
    axes = ((),) * (rank - len(x.axes)) + x.axes
    if len(op.maps) == 1:
        for shape in shapes:
            for count, axis in zip(reversed(shape), reversed(axes), strict=False):
                if count not in (None, 1) and not axis:
                    refuse(f"spreads a tensor of shape {x.dims} over a constant of {shape}")
    return replace(x, axes=axes)


@handles("Expand")
def _expand(op: Op) -> Result:
    x = op.x
    target: Shape = tuple(op.operand(1, "shape"))
    if x.axes is None:
        return replace(op.chain(x), shape=op.shape)
    rank = max(len(target), len(x.axes))
    target = (1,) * (rank - len(target)) + target
    axes = ((),) * (rank - len(x.axes)) + x.axes
    if all(n in (1, size(axis)) for n, axis in zip(target, axes, strict=True)):
        return replace(op.chain(x), axes=axes)
    x = op.standard(x)
    outer = zip(target, (x.batch, x.extent[CHANNEL]), strict=False)
    if x.pixels != (1,) * op.ndim or any(n not in (1, own) for n, own in outer):
        refuse(f"expands a tensor of shape {x.dims} to {target}")
    return op.grid(x, Upsample(size=spell(target[2:])))


@handles("Tile")
def _tile(op: Op) -> Result:
    repeats = op.operand(1, "repeats")
    if set(np.ravel(repeats)) != {1}:
        refuse(f"repeats the map {repeats} times")
    return op.chain(op.x)
