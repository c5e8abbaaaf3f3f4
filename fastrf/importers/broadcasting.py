"""Tensors that take the rank or the pixels of others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fastrf.importers.failing import refuse
from fastrf.importers.layout import CHANNEL, Map, Shape, size
from fastrf.importers.operator import Operator
from fastrf.importers.spelling import spell
from fastrf.layers import Upsample


def enlarged(x: Map, shapes: Sequence[Shape], alone: bool) -> Map:
    """The map with the rank that constants of these shapes give it.

    Args:
        alone: no other map can give it more pixels; then the constants must not.
    """
    if x.axes is None:
        return x
    rank = max([len(s) for s in shapes], default=0)
    axes = ((),) * (rank - len(x.axes)) + x.axes
    if alone:
        for shape in shapes:
            for count, axis in zip(reversed(shape), reversed(axes), strict=False):
                if count not in (None, 1) and not axis:
                    refuse(f"spreads a tensor of shape {x.dims} over a constant of {shape}")
    return replace(x, axes=axes)


def over_channels(op: Operator, x: Map, shapes: Sequence[Shape]) -> Map:
    """A map of one channel with as many as constants of these shapes have numbers along its axis
    (a variance over channels times a scale of each)."""
    if x.axes is None or x.extent[CHANNEL] != 1 or len(x.axes) != op.ndim + 2:
        return x
    if x.is_standard:
        place = 1
    elif x.axes[1:] == (*x.standard[2:], ()):
        place = len(x.axes) - 1
    else:
        return x
    behind = len(x.axes) - place
    counts = [s[-behind] for s in shapes if len(s) >= behind]
    count = max((n for n in counts if n is not None), default=1)
    if count == 1:
        return x
    many = copied(op, replace(x, axes=x.standard), count)
    return replace(many, axes=(*x.axes[:place], many.whole(CHANNEL), *x.axes[place + 1 :]))


def expanded(op: Operator, x: Map, target: Shape) -> Map:
    """The map with its axes of size 1 repeated to the shape `target`: pixels or the channel."""
    if x.axes is None:
        return replace(op.chain(x), shape=op.shape)
    rank = max(len(target), len(x.axes))
    target = (1,) * (rank - len(target)) + target
    axes = ((),) * (rank - len(x.axes)) + x.axes
    if all(n in (1, size(axis)) for n, axis in zip(target, axes, strict=True)):
        return replace(op.chain(x), axes=axes)
    x = op.standard(x)
    others = zip((target[0], *target[2:]), (x.batch, *x.pixels), strict=True)
    if x.extent[CHANNEL] == 1 and all(n in (1, own) for n, own in others):
        return copied(op, x, target[1])
    outer = zip(target, (x.batch, x.extent[CHANNEL]), strict=False)
    if x.pixels != (1,) * op.ndim or any(n not in (1, own) for n, own in outer):
        refuse(f"expands a tensor of shape {x.dims} to {target}")
    return op.grid(x, Upsample(size=spell(target[2:])))


def copied(op: Operator, x: Map, times: int | None) -> Map:
    """A map (N, C, spatial…) with all of its channels repeated."""
    channels = x.extent[CHANNEL]
    if times is None or channels is None:
        refuse("repeats channels of an unknown number")
    node = op.copies(x.node, times)
    after = replace(op.chain(replace(x, node=node)), extent=(channels * times, *x.pixels))
    return replace(after, axes=after.standard)
