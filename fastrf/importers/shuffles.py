"""Moving the digits of a tensor's axes, and the shuffles that this amounts to."""

from __future__ import annotations

import itertools
from dataclasses import replace

from fastrf.importers.layout import BATCH, CHANNEL, Axis, Map, Shape, join, known, size
from fastrf.importers.operator import Operator
from fastrf.importers.spelling import spell
from fastrf.layers import (
    ChannelShuffle,
    Concat,
    Crop,
    Layer,
    MaxPool,
    PixelShuffle,
    PixelUnshuffle,
)


def moved(op: Operator, x: Map, axes: tuple[Axis, ...]) -> Map:
    """A map with its digits moved; shuffles that this completes become nodes.

    The channels may be any axis behind the batch (channels first, channels last).
    """
    after = replace(x, axes=tuple(join(axis) for axis in axes))
    if len(axes) != op.ndim + 2 or any(d.label != BATCH for d in axes[0]):
        return after
    # All of a map in its last axis is a row of a table, not one pixel with the channels last.
    table = not any(axes[1:-1]) and len(axes) > 2
    last = len(axes) - table
    orders = [[0, p, *(q for q in range(1, len(axes)) if q != p)] for p in range(1, last)]
    first = [replace(after, axes=tuple(axes[q] for q in order)) for order in orders]
    if any(x.is_standard for x in first):
        return after
    for order, candidate in zip(orders, first, strict=True):
        shuffled = _shuffled(op, candidate)
        if shuffled is not None:
            own = shuffled.axes or ()
            return replace(shuffled, axes=tuple(own[order.index(q)] for q in range(len(axes))))
    return after


def _shuffled(op: Operator, x: Map) -> Map | None:
    """A map whose digits are brought into the order (N, C, spatial…) by nodes, if some do."""
    layers = _shuffles(x)
    if layers is None:
        return _strided_parts(op, x)
    extent = x.extent
    for layer in layers:
        bound = layer.bind(op.ndim)
        pixels = extent[1:]
        if isinstance(bound, PixelShuffle):
            pixels = tuple(n * f for n, f in zip(pixels, bound.factor, strict=True) if n)
        elif isinstance(bound, PixelUnshuffle):
            pixels = tuple(n // f for n, f in zip(pixels, bound.factor, strict=True) if n)
        extent = (bound.output_channels([extent[0]]), *pixels)
    return _standing(x, op.chain(x, *layers).node, extent)


def _standing(x: Map, node: str, extent: Shape) -> Map:
    assert x.axes is not None
    after = replace(x, node=node, extent=extent)
    return replace(after, axes=(x.axes[0], *after.standard[1:]))


def _strided_parts(op: Operator, x: Map) -> Map | None:
    """Space to depth with the phases before the channels, in any order (patch merging)."""
    assert x.axes is not None
    first, rest = x.axes[1], x.axes[2:]
    fast = [d for d in first if d.label > CHANNEL]
    labels = [d.label for d in fast]
    if (
        None in x.extent
        or not fast
        or first != (*fast, *x.whole(CHANNEL))
        or len(set(labels)) < len(labels)
        or any(d.label == BATCH or d.step != 1 for d in fast)
    ):
        return None
    stride = [1] * op.ndim
    for d in fast:
        stride[d.label - 1] = d.size or 1
    for label, axis in enumerate(rest, 1):
        own = tuple(d for d in fast if d.label == label)
        if join((*axis, *own)) != x.whole(label) or any(d.label != label for d in axis):
            return None
    parts = []
    for phases in itertools.product(*(range(d.size or 1) for d in fast)):
        cut = [(0, 0)] * op.ndim
        for label, phase in zip(labels, phases, strict=True):
            cut[label - 1] = (phase, stride[label - 1] - 1 - phase)
        shifted = op.emit(Crop(spell(cut)), x.node, part="phase")
        parts.append(op.emit(MaxPool(1, stride=spell(stride)), shifted, part="stride"))
    pixels = tuple((n or 1) // s for n, s in zip(x.pixels, stride, strict=True))
    extent = ((x.extent[CHANNEL] or 1) * len(parts), *pixels)
    return _standing(x, op.emit(Concat(), *parts), extent)


def _shuffles(x: Map) -> list[Layer] | None:
    """The shuffles that bring a map's digits into the order (N, C, spatial…), if some do."""
    assert x.axes is not None
    first, rest = x.axes[1], x.axes[2:]
    if None in x.extent:
        return None
    channels = x.whole(CHANNEL)
    if rest == x.standard[2:]:
        return _rotation(first, channels)
    if all(d.label == CHANNEL for d in first):
        # The channels of one pixel in a table are no grid.
        return None if max(known(x.pixels) or (2,)) == 1 else _depth_to_space(x, first, rest)
    # Space to depth: the channels get the fast digits of every spatial axis, in order.
    fast = [d for d in first if d.label != CHANNEL]
    factors = []
    for label, axis in enumerate(rest, 1):
        own = tuple(d for d in fast if d.label == label)
        if join((*axis, *own)) != x.whole(label) or any(d.label != label for d in axis):
            return None
        factors.append(size(own) or 1)
    own_channels = tuple(d for d in first if d.label == CHANNEL)
    if own_channels != channels or [d.label for d in fast] != sorted({d.label for d in fast}):
        return None
    layers: list[Layer] = [PixelUnshuffle(spell(factors))]
    if first == (*channels, *fast):
        return layers
    if first == (*fast, *channels):
        return [*layers, ChannelShuffle(x.extent[0] or 1)]
    return None


def _depth_to_space(x: Map, first: Axis, rest: tuple[Axis, ...]) -> list[Layer] | None:
    """As `_shuffles`, where spatial axes end with the channels' digit of the finer grid."""
    inner = [tuple(d for d in axis if d.label == CHANNEL) for axis in rest]
    grid = zip(rest, x.standard[2:], inner, strict=True)
    if any(axis != (*coarse, *fine) for axis, coarse, fine in grid):
        return None
    before = _rotation((*first, *(d for fine in inner for d in fine)), x.whole(CHANNEL))
    factor = spell([size(fine) for fine in inner])
    return None if before is None else [*before, PixelShuffle(factor)]


def _rotation(digits: Axis, whole: Axis) -> list[Layer] | None:
    """The channel shuffle behind which digits are the whole index; [] where they are already."""
    digits = join(digits)
    if digits == whole:
        return []
    if len(digits) == 2 and join(digits[::-1]) == whole:
        return [ChannelShuffle(digits[1].size or 1)]
    return None
