"""Sums and products of maps and constants, with broadcasting, also on its own (expand)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from fastrf.errors import UnsupportedOperator
from fastrf.importers.broadcasting import copied, enlarged, expanded, over_channels
from fastrf.importers.cutting import refastened
from fastrf.importers.failing import refuse
from fastrf.importers.layout import BATCH, CHANNEL, Const, Map, size
from fastrf.importers.operator import Result
from fastrf.importers.spelling import spell
from fastrf.importers.torch.op import Op, handles
from fastrf.importers.weighting import factors_of
from fastrf.layers import Activation, Add, ChannelShuffle, Conv, Norm, Scale, Upsample

_PRODUCTS = (
    "mul", "multiply", "div", "divide", "true_divide", "floor_divide", "pow", "float_power",
    "fmod", "remainder", "bitwise_and", "logical_and", "__and__", "addcmul", "addcdiv", "copysign",
)  # fmt: skip


@handles(
    "add sub rsub subtract mul multiply div divide true_divide floor_divide pow float_power fmod "
    "remainder maximum minimum fmax fmin atan2 arctan2 hypot logaddexp lerp addcmul addcdiv eq ne "
    "gt ge lt le greater less where bitwise_and bitwise_or bitwise_xor logical_and logical_or "
    "logical_xor __and__ __or__ __xor__ xlogy copysign complex polar"
)
def arithmetic(op: Op) -> Result:
    shapes = [v.shape for v in op.inputs if isinstance(v, Const) and v.shape is not None]
    maps = [enlarged(x, shapes, alone=False) for x in op.maps]
    if len(maps) == 1:
        maps = [enlarged(over_channels(op, maps[0], shapes), shapes, alone=True)]
    factors = _factors(op)
    if len(maps) == 1:
        factor = factors[0]
        learned = _learned(op, maps[0])
        if learned is not None:
            norm = op.weighting.scaled(Norm("none"), learned)
            return op.chain(maps[0], norm)
        if factor == 1:
            return op.chain(maps[0], Activation(op.type, gain=1.0))
        return op.scaled(maps[0], factor)
    scaled = [
        replace(x, node=op.emit(Scale(factor), x.node, part="scale")) if factor != 1 else x
        for x, factor in zip(maps, factors, strict=True)
    ]
    if op.type in ("mul", "multiply"):
        return op.multiplied(scaled)
    return op.merge(scaled, op.weighting.product() if op.type in _PRODUCTS else Add())


def _learned(op: Op, x: Map) -> NDArray[Any] | None:
    """What a tensor of known numbers multiplies a map by, where weights are read: a vector where it
    depends on the channel alone."""
    name = "other" if isinstance(op.get("self"), Map) else "self"
    divides = op.type in ("div", "divide", "true_divide")
    if op.type not in ("mul", "multiply") and not (divides and name == "other"):
        return None
    array = op.learned(name)
    if array is None:
        return None
    return factors_of(x, array, divides=divides)


def _factors(op: Op) -> list[float]:
    """By what constants a sum, a difference or a product with a number multiplies its maps."""
    factors = [1.0] * len(op.maps)
    alpha = op.arguments.get("alpha", 1)
    if op.type in ("add", "sub", "subtract") and isinstance(op.get("other"), Map):
        factors[-1] = float(alpha if op.type == "add" else -alpha)
    elif op.type == "rsub" and isinstance(op.get("self"), Map):
        factors[0] = -float(alpha)
    elif op.type in ("mul", "multiply", "div", "divide", "true_divide"):
        number = op.get("other")
        if isinstance(number, int | float) and number and len(factors) == 1:
            rounded = op.arguments.get("rounding_mode") is not None
            factors[0] = 1.0 if rounded else float(number) ** (1 if "mul" in op.type else -1)
    return factors


@handles("neg negative")
def _negative(op: Op) -> Result:
    return op.chain(op.x, Scale(-1.0))


@handles("expand expand_as broadcast_to")
def expand(op: Op) -> Result:
    """The map where it can be spread, as a new digit of its channels where it has some elsewhere;
    else as it is, which the arithmetic behind it broadcasts."""
    x = op.x
    try:
        return expanded(op, x, op.size)
    except UnsupportedOperator:
        if x.axes is None:
            raise
    x = enlarged(x, [op.size], alone=False)
    dims = x.dims or ()
    if x.pixels == (1,) * op.ndim and len(dims) > op.ndim + 2 and x.extent[CHANNEL] != 1:
        x = _over_grid(op, x)
        dims = x.dims or ()
    grown = [p for p, (n, m) in enumerate(zip(dims, op.size, strict=True)) if n != m]
    if len(grown) != 1 or x.extent[CHANNEL] == 1 or x.pixels == (1,) * op.ndim:
        return x
    (axis,) = grown
    count, channels = op.size[axis], x.extent[CHANNEL] or 1
    layer = Conv(1, channels=channels * count, groups="depthwise")
    return replace(refastened(x, axis, count), node=op.chain(x, layer).node)


def _over_grid(op: Op, x: Map) -> Map:
    """One pixel spread over the last axes of the result, where it has none of its own there."""
    pixels, own = op.size[-op.ndim :], (x.axes or ())[-op.ndim :]
    if any(own):
        return x
    node = op.emit(Upsample(size=spell(pixels)), x.node, part="spread")
    after = replace(x, node=node, extent=(x.extent[CHANNEL], *pixels))
    return replace(after, axes=((x.axes or ())[: -op.ndim] + after.standard[2:]))


@handles("repeat tile")
def _repeat(op: Op) -> Result:
    x = op.x
    repeats = list(op.get("repeats", "dims"))
    if x.axes is not None:
        repeats = [1] * (len(x.axes) - len(repeats)) + repeats
        axes = ((),) * (len(repeats) - len(x.axes)) + x.axes
        if all(n == 1 or not axis for n, axis in zip(repeats, axes, strict=True)):
            return expanded(op, replace(x, axes=axes), op.size)
        others = [n for p, n in enumerate(repeats) if p != 1]
        if x.is_standard and len(axes) == len(x.axes) and set(others) == {1}:
            return copied(op, x, repeats[1])
    refuse(f"repeats a tensor of shape {x.dims} {repeats} times")


@handles("repeat_interleave")
def _repeat_interleave(op: Op) -> Result:
    x, repeats = op.x, op["repeats"]
    if not isinstance(repeats, int) or op["dim"] is None or x.axes is None:
        refuse("repeats its elements by numbers that are no constant, or without an axis")
    (axis,) = op.axes_of(x, op["dim"])
    if repeats == 1:
        return x
    digits = x.axes[axis]
    label = digits[0].label if digits else BATCH
    if x.is_standard and axis == 1:
        own = copied(op, x, repeats)
        return replace(own, node=op.chain(own, ChannelShuffle(repeats)).node)
    if label < 1 or digits != x.whole(label):
        refuse("repeats the elements of an axis that is no axis of the map")
    return _spread(op, x, axis, label, repeats)


def _spread(op: Op, x: Map, axis: int, label: int, times: int) -> Map:
    scale = [1] * op.ndim
    scale[label - 1] = times
    after = x.resized(label, (size(x.whole(label)) or 1) * times, axis)
    return replace(after, node=op.chain(x, Upsample(spell(scale))).node)
