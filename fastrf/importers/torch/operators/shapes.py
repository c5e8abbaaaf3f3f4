"""Reshapes, transposes and shuffles."""

from __future__ import annotations

from dataclasses import replace

from fastrf.importers.failing import refuse
from fastrf.importers.layout import Axis, regroup
from fastrf.importers.operator import Result
from fastrf.importers.shuffles import moved
from fastrf.importers.torch.op import Op, handles
from fastrf.layers import ChannelShuffle, PixelShuffle, PixelUnshuffle


@handles(
    "view reshape _unsafe_view view_as reshape_as flatten unflatten squeeze unsqueeze ravel "
    "resize_as _reshape_alias atleast_1d atleast_2d atleast_3d"
)
def _reshape(op: Op) -> Result:
    """All of them keep the order of the elements: the result's shape says everything."""
    x = op.x
    if x.axes is None:
        return replace(x, shape=op.size)
    axes = regroup(x.axes, op.size)
    if axes is None:
        refuse(f"reshapes {x.dims} to {op.size} across axes that mean different things")
    return moved(op, x, axes)


def _reordered(op: Op, order: list[int]) -> Result:
    x = op.x
    if x.axes is None:
        return replace(x, shape=op.size)
    axes: tuple[Axis, ...] = tuple(x.axes[p] for p in order)
    return moved(op, x, axes)


@handles("permute")
def _permute(op: Op) -> Result:
    return _reordered(op, op.axes_of(op.x, op["dims"]))


@handles("transpose swapaxes swapdims")
def _transpose(op: Op) -> Result:
    a, b = op.axes_of(op.x, [op.get("dim0", "axis0"), op.get("dim1", "axis1")])
    order = list(range(len(op.size)))
    order[a], order[b] = b, a
    return _reordered(op, order)


@handles("t numpy_T adjoint mT mH matrix_H")
def _reversed_last(op: Op) -> Result:
    order = list(range(len(op.size)))
    if op.type == "numpy_T":
        return _reordered(op, order[::-1])
    return _reordered(op, [*order[:-2], *order[:-3:-1]])


@handles("movedim moveaxis")
def _movedim(op: Op) -> Result:
    x = op.x
    source, target = op.axes_of(x, op["source"]), op.axes_of(x, op["destination"])
    order = [p for p in range(len(op.size)) if p not in source]
    for place, axis in sorted(zip(target, source, strict=True)):
        order.insert(place, axis)
    return _reordered(op, order)


@handles("pixel_shuffle")
def _pixel_shuffle(op: Op) -> Result:
    return op.grid(op.x, PixelShuffle(op["upscale_factor"]))


@handles("pixel_unshuffle")
def _pixel_unshuffle(op: Op) -> Result:
    return op.grid(op.x, PixelUnshuffle(op["downscale_factor"]))


@handles("channel_shuffle native_channel_shuffle")
def _channel_shuffle(op: Op) -> Result:
    return op.grid(op.x, ChannelShuffle(op["groups"]))
