"""Cutting a tensor along one of its axes, picking indices of it, and joining tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fastrf.importers.failing import refuse
from fastrf.importers.layout import BATCH, CHANNEL, Axis, Digit, Map, broadcast, join, size, total
from fastrf.importers.operator import Operator
from fastrf.importers.padding import padded
from fastrf.importers.spelling import spell
from fastrf.layers import ChannelShuffle, ChannelSlice, Concat, Crop, Identity, Layer, MaxPool


@dataclass(frozen=True, slots=True)
class Cut:
    """The layers that keep a range of one axis of a tensor, and the map behind them."""

    layers: list[Layer]
    after: Map


def cut(x: Map, axis: int, kept: range) -> Cut:
    """Keeps the indices `kept` of a tensor's axis."""
    assert x.axes is not None
    digits = x.axes[axis]
    count = size(digits)
    if count is not None and kept == range(count):
        return Cut([], x)
    if not len(kept) or kept.step < 1:
        refuse(f"keeps {kept} of an axis of {count}")
    if any(d.label == BATCH for d in digits) or count is None:
        refuse("cuts the batch, or an axis of unknown size; give input_size")
    if all(d.label == CHANNEL for d in digits):
        return _cut_channels(x, axis, kept)
    label = digits[0].label
    if digits != x.whole(label):
        refuse(f"cuts an axis of a tensor of shape {x.dims} that is no axis of the map")
    step = kept.step if len(kept) > 1 else 1
    layers = cut_pixels(x, label, kept[0], count - 1 - kept[-1], step)
    return Cut(layers, x.resized(label, len(kept), axis))


def cut_pixels(x: Map, label: int, low: int, high: int, step: int) -> list[Layer]:
    """Layers that take pixels off both ends of a spatial axis, and then keep every step-th."""
    amount = [(0, 0)] * len(x.pixels)
    stride = [1] * len(x.pixels)
    amount[label - 1], stride[label - 1] = (low, high), step
    layers: list[Layer] = [Crop(spell(amount))] if low or high else []
    return [*layers, MaxPool(1, stride=spell(stride))] if step > 1 else layers


def _cut_channels(x: Map, axis: int, kept: range) -> Cut:
    assert x.axes is not None
    digits, channels = x.axes[axis], x.extent[CHANNEL]
    assert channels is not None
    step = kept.step if len(kept) > 1 else 1
    if digits == x.whole(CHANNEL):
        layer = ChannelSlice(kept[0], kept[-1] + 1, step)
        return Cut([layer], x.resized(CHANNEL, len(kept), axis))
    digit = digits[0]
    if len(digits) == 1 and step == 1 and (digit.size or 0) * digit.step == channels:
        # The slowest digit: a run of channels, such as one of query, key and value.
        layer = ChannelSlice(kept[0] * digit.step, (kept[-1] + 1) * digit.step)
        after = replace(x, extent=(len(kept) * digit.step, *x.pixels))
        own = join([Digit(CHANNEL, len(kept), digit.step)])
        return Cut([layer], replace(after, axes=x.put(axis, own)))
    if len(digits) == 1 and digit.step == 1 and len(kept) == 1:
        # The fastest digit: every size-th channel; the other digits count in larger steps.
        every = digit.size or 1
        layer = ChannelSlice(kept[0], None, every)
        axes = tuple(
            tuple(replace(d, step=d.step // every) if d.label == CHANNEL else d for d in a)
            for a in x.put(axis, ())
        )
        return Cut([layer], replace(x, extent=(channels // every, *x.pixels), axes=axes))
    slow = channels // (digit.size or 1)
    if len(digits) == 1 and digit.step == 1 and step == 1 and only_slower(x, axis, digit.size or 1):
        # A run of the fastest digit, such as the queries of all heads: a slice of the channels
        # once that digit is the slowest.
        count = len(kept)
        layers: list[Layer] = [
            ChannelShuffle(slow),
            ChannelSlice(kept[0] * slow, (kept[-1] + 1) * slow),
            ChannelShuffle(count),
        ]
        return Cut(layers, refastened(x, axis, count))
    refuse(f"cuts {kept} out of channels laid out as {x.dims}")


def only_slower(x: Map, axis: int, count: int) -> bool:
    """Whether the channels' digits on other axes count in steps of at least `count`."""
    others = [d for p, a in enumerate(x.axes or ()) if p != axis for d in a]
    return all(d.step >= count for d in others if d.label == CHANNEL)


def refastened(x: Map, axis: int, count: int) -> Map:
    """The map whose channels' fastest digit, which is the tensor's axis, has `count` values."""
    assert x.axes is not None
    old = size(x.axes[axis]) or 1
    axes = tuple(
        tuple(replace(d, step=d.step // old * count) if d.label == CHANNEL else d for d in a)
        for a in x.axes
    )
    own = join([Digit(CHANNEL, count)])
    extent = ((x.extent[CHANNEL] or 1) // old * count, *x.pixels)
    return replace(x, extent=extent, axes=(*axes[:axis], own, *axes[axis + 1 :]))


def picked(op: Operator, x: Map, axis: int, indices: Sequence[int]) -> Map:
    """The map with these indices of a tensor's axis, in their order."""
    assert x.axes is not None
    runs = list(_runs(indices))
    if len(runs) == 1:
        kept = cut(x, axis, runs[0])
        return replace(kept.after, node=op.chain(x, *kept.layers).node)
    if x.axes[axis] != x.whole(CHANNEL):
        refuse("gathers single positions")
    pieces = [op.emit(cut(x, axis, run).layers[0], x.node, part="part") for run in runs]
    after = x.resized(CHANNEL, len(indices), axis)
    return replace(after, node=op.emit(Concat(), *pieces))


def _runs(indices: Sequence[int]) -> Iterator[range]:
    """Indices as the longest rising arithmetic runs, one behind the other."""
    start = 0
    while start < len(indices):
        stop = start + 1
        step = max(indices[stop] - indices[start], 1) if stop < len(indices) else 1
        while stop < len(indices) and indices[stop] - indices[stop - 1] == step:
            stop += 1
        yield range(indices[start], indices[stop - 1] + 1, step)
        start = stop


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
    """Maps joined along an axis of whole channels, or a new one."""
    first = maps[0]
    assert first.axes is not None
    around = next((p for x in maps if (p := _wrapped(op, x, maps, axis)) is not None), None)
    if around is not None:
        return around
    if all(x.axes and len(x.axes) == len(first.axes) and not x.axes[axis] for x in maps) and (
        len(first.axes) > op.ndim + 2 and stacks(maps, axis)
    ):
        return stacked(op, maps, axis)
    for x in maps:
        if x.axes is None or len(x.axes) != len(first.axes) or x.axes[axis] != x.whole(CHANNEL):
            refuse(
                "joins maps along a spatial axis or some of the channels; only whole channels can "
                "be joined: cut out the part before it (onnx.utils.extract_model)"
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
