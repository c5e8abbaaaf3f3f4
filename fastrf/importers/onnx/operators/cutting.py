"""Cutting maps apart and joining them: Slice, Split, Gather, Concat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from fastrf.importers.onnx.failing import refuse
from fastrf.importers.onnx.layout import (
    BATCH,
    CHANNEL,
    Const,
    Digit,
    Map,
    Value,
    broadcast,
    join,
    size,
    total,
)
from fastrf.importers.onnx.op import Op, Result, handles
from fastrf.importers.onnx.operators.spelling import spell
from fastrf.layers import ChannelSlice, Concat, Crop, Layer, MaxPool

_TO_END = 2**31 - 1
"""Least end of a slice that exporters write for "to the end"."""


@dataclass(frozen=True, slots=True)
class _Cut:
    """The layers that keep a range of one axis of a tensor, and the map behind them."""

    layers: list[Layer]
    after: Map


def _cut(x: Map, axis: int, kept: range) -> _Cut:
    """Keeps the indices `kept` of a tensor's axis."""
    assert x.axes is not None
    digits = x.axes[axis]
    count = size(digits)
    if count is not None and kept == range(count):
        return _Cut([], x)
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
    layers = _cut_pixels(x, label, kept[0], count - 1 - kept[-1], step)
    return _Cut(layers, x.resized(label, len(kept), axis))


def _cut_pixels(x: Map, label: int, low: int, high: int, step: int) -> list[Layer]:
    """Layers that take pixels off both ends of a spatial axis, and then keep every step-th."""
    amount = [(0, 0)] * len(x.pixels)
    stride = [1] * len(x.pixels)
    amount[label - 1], stride[label - 1] = (low, high), step
    layers: list[Layer] = [Crop(spell(amount))] if low or high else []
    return [*layers, MaxPool(1, stride=spell(stride))] if step > 1 else layers


def _cut_channels(x: Map, axis: int, kept: range) -> _Cut:
    assert x.axes is not None
    digits, channels = x.axes[axis], x.extent[CHANNEL]
    assert channels is not None
    step = kept.step if len(kept) > 1 else 1
    if digits == x.whole(CHANNEL):
        layer = ChannelSlice(kept[0], kept[-1] + 1, step)
        return _Cut([layer], x.resized(CHANNEL, len(kept), axis))
    digit = digits[0]
    if len(digits) == 1 and step == 1 and (digit.size or 0) * digit.step == channels:
        # The slowest digit: a run of channels, such as one of query, key and value.
        layer = ChannelSlice(kept[0] * digit.step, (kept[-1] + 1) * digit.step)
        after = replace(x, extent=(len(kept) * digit.step, *x.pixels))
        own = join([Digit(CHANNEL, len(kept), digit.step)])
        return _Cut([layer], replace(after, axes=x.put(axis, own)))
    if len(digits) == 1 and digit.step == 1 and len(kept) == 1:
        # The fastest digit: every size-th channel; the other digits count in larger steps.
        every = digit.size or 1
        layer = ChannelSlice(kept[0], None, every)
        axes = tuple(
            tuple(replace(d, step=d.step // every) if d.label == CHANNEL else d for d in a)
            for a in x.put(axis, ())
        )
        return _Cut([layer], replace(x, extent=(channels // every, *x.pixels), axes=axes))
    refuse(f"cuts {kept} out of channels laid out as {x.dims}")


# --- slices ---------------------------------------------------------------------------------


@handles("Slice")
def _slice(op: Op) -> Result:
    x = op.x
    if x.axes is None:
        return replace(x, shape=op.shape)
    starts, ends = op.operand(1, "starts"), op.operand(2, "ends")
    axes = op.operand(3, "axes") or list(range(len(starts)))
    steps = op.operand(4, "steps") or [1] * len(starts)
    layers: list[Layer] = []
    after = x
    places = [axis % len(x.axes) for axis in axes]
    for start, end, axis, step in zip(starts, ends, places, steps, strict=True):
        count = size((after.axes or ())[axis])
        if count is None:
            cut = _open_cut(after, axis, start, end, step)
        elif step < 0:
            refuse("runs backwards")
        else:
            cut = _cut(after, axis, range(count)[start:end:step])
        layers += cut.layers
        after = cut.after
    return replace(after, node=op.chain(x, *layers).node)


def _open_cut(x: Map, axis: int, start: int, end: int, step: int) -> _Cut:
    """A slice of a spatial axis of unknown size, where its ends do not depend on that size."""
    assert x.axes is not None
    digits = x.axes[axis]
    to_end = end >= _TO_END
    if (start, step) == (0, 1) and to_end:
        return _Cut([], x)
    label = digits[0].label
    whole = label > CHANNEL and digits == x.whole(label)
    if not whole or start < 0 or step < 1 or not (to_end or end < 0):
        refuse("cuts an axis of unknown size; export with a fixed size, or give input_size")
    return _Cut(_cut_pixels(x, label, start, 0 if to_end else -end, step), x)


@handles("Split")
def _split(op: Op) -> Result:
    x = op.x
    outputs = list(op.proto.output)
    if x.axes is None:
        return [replace(x, shape=shape) for shape in op.shapes]
    axis = op.attr("axis", 0) % len(x.axes)
    counts = op.operand(1, "split")
    if counts is None:
        whole = size(x.axes[axis])
        if whole is None:
            refuse("splits an axis of unknown size; give input_size")
        part = -(-whole // len(outputs))
        counts = [min(part, whole - part * i) for i in range(len(outputs))]
    parts: list[Value] = []
    start = 0
    for name, count in zip(outputs, counts, strict=False):
        cut = _cut(x, axis, range(start, start + count))
        start += count
        if name:
            own = name if len(outputs) > 1 else ""
            parts.append(replace(cut.after, node=op.chain(x, *cut.layers, name=own).node))
        else:
            parts.append(Const(None))
    return parts


# --- gathering ------------------------------------------------------------------------------


@handles("Gather")
def _gather(op: Op) -> Result:
    x = op.x
    if x.axes is None:
        return replace(x, shape=op.shape)
    axis = op.attr("axis", 0) % len(x.axes)
    indices = op.operand(1, "indices")
    scalar = isinstance(indices, int)
    if not scalar and (np.ndim(indices) != 1 or not indices):
        refuse(f"gathers with indices of shape {np.shape(indices)}")
    count = size(x.axes[axis])
    if count is None:
        refuse("gathers from an axis of unknown size; give input_size")
    picked = [i + count if i < 0 else i for i in ([indices] if scalar else indices)]
    if not all(0 <= i < count for i in picked):
        op.fail(f"an index is outside 0 … {count - 1}")
    runs = list(_runs(picked))
    if len(runs) == 1:
        cut = _cut(x, axis, runs[0])
        after = replace(cut.after, node=op.chain(x, *cut.layers).node)
    else:
        if x.axes[axis] != x.whole(CHANNEL):
            refuse("gathers single positions")
        pieces = [op.emit(_cut(x, axis, run).layers[0], x.node, part="part") for run in runs]
        after = x.resized(CHANNEL, len(picked), axis)
        after = replace(after, node=op.emit(Concat(), *pieces))
    if not scalar:
        return after
    return replace(after, axes=tuple(a for p, a in enumerate(after.axes or ()) if p != axis))


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


# --- joining --------------------------------------------------------------------------------


@handles("Concat")
def _concat(op: Op) -> Result:
    parts = [v for v in op.inputs if not (isinstance(v, Const) and v.shape and 0 in v.shape)]
    maps = [op.standard(v) if v.axes is None else v for v in parts if isinstance(v, Map)]
    if len(maps) < len(parts):
        refuse("joins a map with a constant")
    first = maps[0]
    if len(maps) == 1:
        return op.chain(first)
    assert first.axes is not None
    axis = op.attr("axis", 1) % len(first.axes)
    for x in maps:
        if x.axes is None or len(x.axes) != len(first.axes) or x.axes[axis] != x.whole(CHANNEL):
            refuse(
                "joins maps along a spatial axis or some of the channels; "
                "only whole channels can be joined"
            )
        broadcast(first.put(axis, ()), x.put(axis, ()))  # refused where the other axes differ
    channels = total([x.extent[CHANNEL] for x in maps])
    after = first.resized(CHANNEL, channels, axis)
    return replace(after, node=op.emit(Concat(), *(x.node for x in maps)))
