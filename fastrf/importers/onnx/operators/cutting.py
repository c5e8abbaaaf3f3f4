"""Cutting maps apart and joining them: Slice, Split, Gather, Concat."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fastrf.importers.cutting import Cut, cut, cut_pixels, picked
from fastrf.importers.failing import refuse
from fastrf.importers.joining import joined, with_constants
from fastrf.importers.layout import CHANNEL, Const, Map, Value, size
from fastrf.importers.onnx.op import Op, handles
from fastrf.importers.operator import Result
from fastrf.layers import Layer

_TO_END = 2**31 - 1
"""Least end of a slice that exporters write for "to the end"."""


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
    places = [op.axis(axis, len(x.axes)) for axis in axes]
    for start, end, axis, step in zip(starts, ends, places, steps, strict=True):
        count = size((after.axes or ())[axis])
        if count is None:
            piece = _open_cut(after, axis, start, end, step)
        elif step < 0:
            refuse("runs backwards")
        else:
            piece = cut(after, axis, range(count)[start:end:step])
        layers += piece.layers
        after = piece.after
    return replace(after, node=op.chain(x, *layers).node)


def _open_cut(x: Map, axis: int, start: int, end: int, step: int) -> Cut:
    """A slice of a spatial axis of unknown size, where its ends do not depend on that size."""
    assert x.axes is not None
    digits = x.axes[axis]
    to_end = end >= _TO_END
    if (start, step) == (0, 1) and to_end:
        return Cut([], x)
    label = digits[0].label
    whole = label > CHANNEL and digits == x.whole(label)
    if not whole or start < 0 or step < 1 or not (to_end or end < 0):
        refuse("cuts an axis of unknown size; export with a fixed size, or give input_size")
    return Cut(cut_pixels(x, label, start, 0 if to_end else -end, step), x)


@handles("Split")
def _split(op: Op) -> Result:
    x = op.x
    outputs = list(op.proto.output)
    if x.axes is None:
        return [replace(x, shape=shape) for shape in op.shapes]
    axis = op.axis(op.attr("axis", 0), len(x.axes))
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
        piece = cut(x, axis, range(start, start + count))
        start += count
        if name:
            own = name if len(outputs) > 1 else ""
            parts.append(replace(piece.after, node=op.chain(x, *piece.layers, name=own).node))
        else:
            parts.append(Const(None))
    return parts


# --- gathering ------------------------------------------------------------------------------


@handles("Gather")
def _gather(op: Op) -> Result:
    x = op.x
    if x.axes is None:
        return replace(x, shape=op.shape)
    axis = op.axis(op.attr("axis", 0), len(x.axes))
    indices = op.operand(1, "indices")
    scalar = isinstance(indices, int)
    if not scalar and (np.ndim(indices) != 1 or not indices):
        refuse(f"gathers with indices of shape {np.shape(indices)}")
    count = size(x.axes[axis])
    if count is None:
        refuse("gathers from an axis of unknown size; give input_size")
    places = [i + count if i < 0 else i for i in ([indices] if scalar else indices)]
    if not all(0 <= i < count for i in places):
        op.fail(f"an index is outside 0 … {count - 1}")
    after = picked(op, x, axis, places)
    if not scalar:
        return after
    return replace(after, axes=tuple(a for p, a in enumerate(after.axes or ()) if p != axis))


@handles("GatherElements GatherND ScatterElements ScatterND Scatter")
def _scattered(op: Op) -> Result:
    refuse(
        "reads or writes at single places; cut with slices, and build tensors with Concat or Pad"
    )


@handles("TopK NonZero Unique NonMaxSuppression Compress")
def _picked_by_value(op: Op) -> Result:
    refuse(f"orders or picks elements by their values; take the maps before it{op.cutting}")


@handles("CumSum CumProd ReverseSequence")
def _along(op: Op) -> Result:
    refuse("adds up along an axis, or turns it round, so that no window says what it reads")


# --- joining --------------------------------------------------------------------------------


@handles("Concat")
def _concat(op: Op) -> Result:
    parts = [v for v in op.inputs if not (isinstance(v, Const) and v.shape and 0 in v.shape)]
    maps = [op.standard(v) if v.axes is None else v for v in parts if isinstance(v, Map)]
    first = maps[0]
    if len(parts) == 1:
        return op.chain(first)
    assert first.axes is not None
    axis = op.axis(op.attr("axis", 1), len(first.axes))
    if len(maps) < len(parts):
        found = with_constants(op, [v for v in parts if v is not None], axis)
        if found is None:
            refuse("joins a map with a constant along neither its channels nor a spatial axis")
        return found
    return joined(op, maps, axis)
