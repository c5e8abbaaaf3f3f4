"""Cutting a tensor along one of its axes, and picking indices of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from fastrf.importers.failing import refuse
from fastrf.importers.layout import BATCH, CHANNEL, Digit, Map, join, size
from fastrf.importers.operator import Operator
from fastrf.importers.spelling import spell
from fastrf.layers import ChannelShuffle, ChannelSlice, Concat, Crop, Layer, MaxPool


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
