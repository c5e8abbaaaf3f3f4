"""Sums and products of maps and constants, with broadcasting, also on its own (Expand, Tile)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastrf.importers.broadcasting import copied, enlarged, expanded, over_channels
from fastrf.importers.failing import refuse
from fastrf.importers.layout import Const, Map
from fastrf.importers.onnx.op import Op, handles
from fastrf.importers.operator import Result
from fastrf.importers.weighting import factors_of
from fastrf.layers import Activation, Add, Norm, Scale

_PRODUCTS = ("Mul", "Div", "Pow", "Mod", "And", "BitwiseAnd")


@handles(
    "Add Sub Mul Div Sum Max Min Mean Pow Mod And Or Xor Equal Greater GreaterOrEqual Less "
    "LessOrEqual Where BitwiseAnd BitwiseOr BitwiseXor"
)
def _arithmetic(op: Op) -> Result:
    shapes = [v.shape for v in op.inputs if isinstance(v, Const) and v.shape is not None]
    maps = [enlarged(x, shapes, alone=False) for x in op.maps]
    if len(maps) == 1:
        maps = [enlarged(over_channels(op, maps[0], shapes), shapes, alone=True)]
    if len(maps) > 1:
        return _merged(op, maps)
    factor = _factor(op)
    if factor is not None:
        return op.scaled(maps[0], factor)
    divides = op.type == "Div"
    if op.type == "Mul" or (divides and isinstance(op.inputs[0], Map)):
        learned = op.learned(1 if isinstance(op.inputs[0], Map) else 0)
        if learned is not None:
            factors = factors_of(maps[0], learned, divides=divides)
            return op.chain(maps[0], op.weighting.scaled(Norm("none"), factors))
    return op.chain(maps[0], Activation(op.type.lower(), gain=1.0))


def _merged(op: Op, maps: Sequence[Map]) -> Map:
    if op.type == "Mul":
        return op.multiplied(maps)
    if op.type in _PRODUCTS:
        return op.merge(maps, op.weighting.product())
    factor = {"Sub": -1.0, "Mean": 1 / len(maps)}.get(op.type)
    if factor is None:
        return op.merge(maps, Add())
    kept, scaled = (maps[:1], maps[1:]) if op.type == "Sub" else ([], maps)
    layer = Scale(factor)
    scaled = [replace(x, node=op.emit(layer, x.node, part="scale")) for x in scaled]
    return op.merge([*kept, *scaled], Add())


def _factor(op: Op) -> float | None:
    """What a product with a number, or a number that a map is subtracted from, multiplies a map by;
    None of other operators, and of 1."""
    first, second = (*op.inputs, None)[:2]
    if op.type == "Sub" and isinstance(second, Map):
        return -1.0
    if op.type == "Mul" or (op.type == "Div" and isinstance(first, Map)):
        number = second if isinstance(first, Map) else first
        if isinstance(number, Const) and number.array is not None and number.array.size == 1:
            factor = float(number.array.ravel()[0])
            with np.errstate(divide="ignore"):
                factor = float(1 / np.float64(factor)) if op.type == "Div" else factor
            return None if factor == 1 else factor
    return None


@handles("Expand")
def _expand(op: Op) -> Result:
    return expanded(op, op.x, tuple(op.operand(1, "shape")))


@handles("Tile")
def _tile(op: Op) -> Result:
    repeats = op.operand(1, "repeats")
    if set(np.ravel(repeats)) != {1}:
        if op.x.is_standard and len(repeats) > 1 and set(repeats[:1] + repeats[2:]) == {1}:
            return copied(op, op.x, repeats[1])
        refuse(f"repeats the map {repeats} times")
    return op.chain(op.x)
