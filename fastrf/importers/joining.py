"""Joining tensors along one of their axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastrf.importers.failing import refuse
from fastrf.importers.layout import (
    BATCH,
    CHANNEL,
    Axis,
    Digit,
    Map,
    Value,
    broadcast,
    join,
    size,
    total,
)
from fastrf.importers.operator import Operator
from fastrf.importers.padding import padded, spatial_label, zeros
from fastrf.layers import Add, Concat, Crop, Identity

# --- whole channels, or a new axis ----------------------------------------------------------


def _wrapped(op: Operator, x: Map, pieces: Sequence[Map], axis: int) -> Map | None:
    """Circular padding, spelled as a map with its own far ends joined to it on one axis; None where
    pieces are anything else."""
    digits = (x.axes or ())[axis]
    label = digits[0].label if digits else BATCH
    count = size(digits)
    if label <= CHANNEL or digits != x.whole(label) or count is None:
        return None
    cuts = [_ends_cut(op, piece, x, label) for piece in pieces]
    middle = 1 if len(cuts) == 3 else 0 if cuts[0] == (0, 0) else len(cuts) - 1
    before, behind = cuts[:middle], cuts[middle + 1 :]
    if cuts[middle] != (0, 0) or len(before) > 1 or len(behind) > 1:
        return None
    low = [count - ends[0] for ends in before if ends is not None and ends[1] == 0]
    high = [count - ends[1] for ends in behind if ends is not None and ends[0] == 0]
    if len(low) < len(before) or len(high) < len(behind):
        return None
    return padded(op, x, {axis: (sum(low), sum(high))}, "circular")


def _ends_cut(op: Operator, piece: Map, x: Map, label: int) -> tuple[int, int] | None:
    """By how many pixels of a spatial axis a map is shorter than x at both ends; None where it is
    none that is cut out of x along that axis alone."""
    name = piece.node
    while name != x.node and isinstance(op.node(name).layer, Identity):
        (name,) = op.node(name).inputs
    if name == x.node:
        return 0, 0
    node = op.node(name)
    if not isinstance(node.layer, Crop) or node.inputs != (x.node,):
        return None
    amounts = list(node.layer.bind(op.ndim).amount)
    ends: tuple[int, int] = amounts.pop(label - 1)
    return None if any(map(any, amounts)) else ends


def joined(op: Operator, maps: Sequence[Map], axis: int) -> Map:
    """Maps joined along an axis of whole channels, a spatial axis, or a new one."""
    first = maps[0]
    assert first.axes is not None
    around = next((p for x in maps if (p := _wrapped(op, x, maps, axis)) is not None), None)
    if around is not None:
        return around
    if in_space(maps, axis):
        return side_by_side(op, maps, axis)
    if all(x.axes and len(x.axes) == len(first.axes) and not x.axes[axis] for x in maps) and (
        len(first.axes) > op.ndim + 2 and stacks(maps, axis)
    ):
        return stacked(op, maps, axis)
    for x in maps:
        if x.axes is None or len(x.axes) != len(first.axes) or x.axes[axis] != x.whole(CHANNEL):
            refuse(
                f"joins maps of shapes {first.dims} and {x.dims} along axis {axis}, which counts "
                f"neither whole channels nor one spatial axis; take the maps before it{op.cutting}"
            )
        broadcast(first.put(axis, ()), x.put(axis, ()))  # refused where the other axes differ
    channels = total([x.extent[CHANNEL] for x in maps])
    after = first.resized(CHANNEL, channels, axis)
    return replace(after, node=op.emit(Concat(), *(x.node for x in maps)))


def stacks(maps: Sequence[Map], axis: int) -> bool:
    """Whether the axis holds the slowest digit of the channels, or none of them."""
    for x in maps:
        digits, channels = (x.axes or ())[axis], x.extent[CHANNEL] or 1
        fast = join([d for p, a in enumerate(x.axes or ()) if p != axis for d in a
                     if d.label == CHANNEL])  # fmt: skip
        count = size(digits) or 1
        rest = channels // count
        slow: Axis = () if count == 1 else (Digit(CHANNEL, count, rest),)
        if digits != slow or fast != (() if rest == 1 else (Digit(CHANNEL, rest),)):
            return False
    return True


def stacked(op: Operator, maps: Sequence[Map], axis: int) -> Map:
    """Maps joined along the slowest digit of their channels (all of it, or a new axis)."""
    first = maps[0]
    assert first.axes is not None
    for x in maps:
        broadcast(first.put(axis, ()), x.put(axis, ()))  # refused where the other axes differ
        if x.pixels != first.pixels:
            refuse(f"joins maps of {first.pixels} and {x.pixels} pixels")
    counts = [size((x.axes or ())[axis]) or 1 for x in maps]
    rest = (first.extent[CHANNEL] or 1) // counts[0]
    channels = total([x.extent[CHANNEL] for x in maps])
    after = replace(first, extent=(channels, *first.pixels))
    own = join([Digit(CHANNEL, sum(counts), rest)])
    after = replace(after, axes=after.put(axis, own))
    return replace(after, node=op.emit(Concat(), *(x.node for x in maps)))


# --- a spatial axis, and constants ----------------------------------------------------------


def in_space(maps: Sequence[Map], axis: int) -> bool:
    """Whether the axis is the same spatial axis of all maps."""
    labels = {d.label for x in maps for d in (x.axes or ())[axis]}
    return len(labels) == 1 and min(labels) > CHANNEL


def side_by_side(op: Operator, parts: Sequence[Value], axis: int) -> Map:
    """Maps and constants joined along a spatial axis: each map padded with zeros to the whole, and
    added up."""
    counts = [sizes(part)[axis] for part in parts]
    if None in counts:
        refuse("joins maps of unknown size along a spatial axis; give input_size")
    before, whole = 0, sum(n or 0 for n in counts)
    placed: list[Map] = []
    for part, count in zip(parts, counts, strict=True):
        if isinstance(part, Map):
            spatial_label(part, axis)
            pair = (before, whole - before - (count or 0))
            placed.append(padded(op, part, {axis: pair}, "zeros"))
        before += count or 0
    return op.merge(placed, Add()) if len(placed) > 1 else placed[0]


def with_constants(op: Operator, parts: Sequence[Value], axis: int) -> Map | None:
    """Maps joined with constants, which stand for zeros: along a spatial axis or the channels; None
    where they are joined along anything else."""
    maps = [part for part in parts if isinstance(part, Map)]
    if in_space(maps, axis):
        return side_by_side(op, parts, axis)
    first = maps[0]
    if any(x.axes is None or x.axes[axis] != x.whole(CHANNEL) for x in maps):
        return None
    whole: list[Map] = []
    for part in parts:
        if isinstance(part, Map):
            whole.append(part)
        elif sizes(part)[axis] is None:
            refuse("joins channels of a map with a constant of unknown size")
        else:
            whole.append(zeros(op, first, axis, sizes(part)[axis] or 0))
    return joined(op, whole, axis)


def sizes(value: Value) -> tuple[int | None, ...]:
    """The shape of a value; refused where not even the number of axes is known."""
    found = value.dims if isinstance(value, Map) else value.shape
    if found is None:
        refuse("joins a tensor of unknown shape; run onnx.shape_inference and save again")
    return found
