"""Sums and products of maps and constants, with broadcasting, also on its own (Expand, Tile)."""

from __future__ import annotations

import numpy as np

from fastrf.importers.broadcasting import enlarged, expanded
from fastrf.importers.failing import refuse
from fastrf.importers.layout import Const, Map
from fastrf.importers.onnx.op import Op, handles
from fastrf.importers.operator import Result
from fastrf.importers.weighting import factors_of
from fastrf.layers import Activation, Add, Norm

_PRODUCTS = ("Mul", "Div", "Pow", "Mod", "And", "BitwiseAnd")


@handles(
    "Add Sub Mul Div Sum Max Min Mean Pow Mod And Or Xor Equal Greater GreaterOrEqual Less "
    "LessOrEqual Where BitwiseAnd BitwiseOr BitwiseXor"
)
def _arithmetic(op: Op) -> Result:
    shapes = [v.shape for v in op.inputs if isinstance(v, Const) and v.shape is not None]
    maps = [enlarged(x, shapes, alone=len(op.maps) == 1) for x in op.maps]
    if len(maps) > 1:
        return op.merge(maps, op.weighting.product() if op.type in _PRODUCTS else Add())
    divides = op.type == "Div"
    if op.type == "Mul" or (divides and isinstance(op.inputs[0], Map)):
        learned = op.learned(1 if isinstance(op.inputs[0], Map) else 0)
        if learned is not None:
            factors = factors_of(maps[0], learned, divides=divides)
            return op.chain(maps[0], op.weighting.scaled(Norm("batch"), factors))
    return op.chain(maps[0], Activation(op.type.lower(), gain=1.0))


@handles("Expand")
def _expand(op: Op) -> Result:
    return expanded(op, op.x, tuple(op.operand(1, "shape")))


@handles("Tile")
def _tile(op: Op) -> Result:
    repeats = op.operand(1, "repeats")
    if set(np.ravel(repeats)) != {1}:
        refuse(f"repeats the map {repeats} times")
    return op.chain(op.x)
