"""Cutting maps apart and joining them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fastrf.importers.cutting import cut, picked
from fastrf.importers.failing import refuse
from fastrf.importers.joining import joined, side_by_side, sizes, stacked, stacks, with_constants
from fastrf.importers.layout import (
    CHANNEL,
    Const,
    Map,
    Value,
)
from fastrf.importers.operator import Result
from fastrf.importers.torch.op import Op, handles


def _kept(op: Op, x: Map, axis: int, kept: range, name: str = "") -> Map:
    if x.axes is None:
        shape = x.shape or ()
        return replace(x, shape=(*shape[:axis], len(kept), *shape[axis + 1 :]))
    found = cut(x, axis, kept)
    if not found.layers:
        return found.after
    return replace(found.after, node=op.chain(x, *found.layers, name=name).node)


def _without(x: Map, axis: int) -> Map:
    """The map without an axis of one index."""
    if x.axes is None:
        shape = x.shape or ()
        return replace(x, shape=(*shape[:axis], *shape[axis + 1 :]))
    return replace(x, axes=tuple(a for p, a in enumerate(x.axes) if p != axis))


def _axis(op: Op) -> tuple[Map, int, int]:
    """The map, the axis that `dim` means, and its size."""
    x = op.x
    dims = x.dims or ()
    axis = op["dim"] % len(dims)
    return x, axis, dims[axis] or 0


# --- cutting --------------------------------------------------------------------------------


@handles("slice")
def _slice(op: Op) -> Result:
    x, axis, count = _axis(op)
    return _kept(op, x, axis, range(count)[op["start"] : op["end"] : op["step"]])


@handles("narrow")
def _narrow(op: Op) -> Result:
    x, axis, count = _axis(op)
    start = op["start"] % count
    return _kept(op, x, axis, range(start, start + op["length"]))


@handles("select")
def _select(op: Op) -> Result:
    x, axis, count = _axis(op)
    index = op["index"] % count
    return _without(_kept(op, x, axis, range(index, index + 1)), axis)


@handles("unbind")
def _unbind(op: Op) -> Result:
    x, axis, count = _axis(op)
    parts = [_kept(op, x, axis, range(i, i + 1), f"{op.name}.{i}") for i in range(count)]
    return [_without(part, axis) for part in parts]


@handles(
    "split split_with_sizes chunk tensor_split unsafe_split unsafe_chunk unsafe_split_with_sizes"
)
def _split(op: Op) -> Result:
    x, axis, _ = _axis(op)
    parts: list[Value] = []
    start = 0
    for i, shape in enumerate(op.shapes):
        count = (shape or ())[axis] or 0
        parts.append(_kept(op, x, axis, range(start, start + count), f"{op.name}.{i}"))
        start += count
    return parts


@handles("glu")
def _gated(op: Op) -> Result:
    """The first half of an axis times the sigmoid of the second."""
    x, axis, count = _axis(op)
    value = _kept(op, x, axis, range(count // 2), f"{op.name}.value")
    gate = _kept(op, x, axis, range(count // 2, count), f"{op.name}.gate")
    if x.axes is None:
        return value
    return op.merge([value, gate], op.weighting.product())


@handles("index_select")
def _index_select(op: Op) -> Result:
    x, axis, count = _axis(op)
    return _at(op, x, axis, op["index"], count)


@handles("index")
def _index(op: Op) -> Result:
    """A tensor indexed by a list of whole numbers along one axis."""
    x = op.x
    given = {axis: index for axis, index in enumerate(op["indices"]) if index is not None}
    if len(given) != 1:
        refuse("is indexed by tensors along several axes")
    ((axis, index),) = given.items()
    return _at(op, x, axis, index, (x.dims or ())[axis] or 0)


def _at(op: Op, x: Map, axis: int, index: object, count: int) -> Map:
    if not isinstance(index, Const):
        refuse("reads at places that the data decide")
    if index.array is None or index.array.ndim != 1 or index.array.dtype == np.bool_:
        refuse("is indexed by a tensor whose values are not known; index with slices or numbers")
    if x.axes is None:
        return replace(x, shape=op.size)
    return picked(op, x, axis, [int(i) % count for i in index.array])


# --- joining --------------------------------------------------------------------------------


@handles("cat concat concatenate")
def _cat(op: Op) -> Result:
    parts = [v for v in op.inputs if v is not None and 0 not in sizes(v)]
    return _joined(op, parts, op.get("dim", "axis") or 0)


@handles("stack")
def _stack(op: Op) -> Result:
    """The parts have a new axis of size 1 each, along which they are joined."""
    axis = op["dim"] % len(op.size)
    return _joined(op, [_with_axis(v, axis) for v in op.inputs if v is not None], axis)


def _with_axis(value: Value, axis: int) -> Value:
    dims = sizes(value)
    shape = (*dims[:axis], 1, *dims[axis:])
    if isinstance(value, Const):
        return Const(shape)
    if value.axes is None:
        return replace(value, shape=shape)
    return replace(value, axes=(*value.axes[:axis], (), *value.axes[axis:]))


def _joined(op: Op, parts: Sequence[Value], dim: int) -> Map:
    maps = [v for v in parts if isinstance(v, Map)]
    axis = dim % len(op.size)
    if any(x.axes is None for x in maps):
        return op.attend(maps)
    if len(parts) == 1:
        return maps[0]
    first = maps[0]
    assert first.axes is not None
    digits = [(x.axes or ())[axis] for x in maps]
    if len(maps) < len(parts):
        found = with_constants(op, parts, axis)
        if found is None and all(d.label == CHANNEL for own in digits for d in own):
            refuse("joins some of a map's channels with a constant")
        # A class token or registers beside the positions are no grid any more, and only attention
        # reads such tokens.
        return op.attend(maps) if found is None else found
    if all(d.label == CHANNEL for own in digits for d in own) and stacks(maps, axis):
        return stacked(op, maps, axis)
    if any(d.label == CHANNEL for own in digits for d in own):
        return joined(op, maps, axis)
    if len({d.label for own in digits for d in own}) > 1:
        return op.attend(maps)  # a token of the mean beside the positions
    return side_by_side(op, parts, axis)
