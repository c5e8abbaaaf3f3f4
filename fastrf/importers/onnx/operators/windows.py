"""Convolutions and pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import wraps
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf.importers.failing import refuse
from fastrf.importers.layout import BATCH, CHANNEL, Const, Digit, Map, Value, join, known
from fastrf.importers.onnx.op import Handler, Op, handles, handles_sets
from fastrf.importers.operator import Result
from fastrf.importers.spelling import spell, uncropped
from fastrf.layers import AvgPool, Conv, ConvTranspose, GlobalPool, Layer, MaxPool


def _windows(op: Op, kernel: Sequence[int]) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """kernel, stride and dilation as a layer takes them, and the padding per axis."""
    rank = len(kernel)
    stride = op.counts("strides", [1] * rank, 1)
    dilation = op.counts("dilations", [1] * rank, 1)
    auto = op.choice("auto_pad", "NOTSET", "VALID", "SAME_UPPER", "SAME_LOWER")
    padding: tuple[Any, ...]
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        padding = (auto.lower(),) * rank
    elif auto == "VALID":
        padding = ((0, 0),) * rank
    else:
        pads = op.counts("pads", [0] * 2 * rank)
        padding = tuple(zip(pads[:rank], pads[rank:], strict=False))
    values = {"kernel": spell(kernel), "stride": spell(stride), "dilation": spell(dilation)}
    return values, padding


# --- axes of one element ----------------------------------------------------------------------


def _lined(handler: Handler) -> Handler:
    """A handler that takes windows of more axes than the maps have, too: signals are often written
    as images of one row (all of Keras's are)."""

    @wraps(handler)
    def handled(op: Op) -> Result:
        gone = _rows(op)
        if not gone:
            return handler(op)
        after = handler(_without(op, gone))
        assert isinstance(after, Map)
        axes = list(after.axes or ())
        for place in gone:
            axes.insert(2 + place, ())
        return replace(after, axes=tuple(axes))

    return handled


def _rows(op: Op) -> list[int]:
    """The window's axes that are none of the map: they have one element, and it reads no more."""
    x, weights = op.inputs[0], op.input(1)
    kernel = op.attr("kernel_shape")
    if kernel is None and isinstance(weights, Const) and weights.shape is not None:
        kernel = list(weights.shape[2:])
    rank = len(kernel or ())
    if not isinstance(x, Map) or x.axes is None or len(x.axes) != rank + 2 or rank <= op.ndim:
        return []
    pads = op.counts("pads", [0] * 2 * rank)
    found = [
        i
        for i, k in enumerate(kernel)
        if k == 1 and not x.axes[2 + i] and pads[i] == pads[i + rank] == 0
    ]
    return found[: rank - op.ndim] if len(found) >= rank - op.ndim else []


def _without(op: Op, gone: Sequence[int]) -> Op:
    """The operator without some of its window's axes."""
    x = op.inputs[0]
    assert isinstance(x, Map)
    assert x.axes is not None
    rank = len(x.axes) - 2
    proto = type(op.proto)()
    proto.CopyFrom(op.proto)
    for attribute in proto.attribute:
        values = list(attribute.ints)
        # An output_shape may begin with the batch and the channels.
        left = max(len(values) - rank, 0) if attribute.name == "output_shape" else 0
        kept = [n for i, n in enumerate(values[left:]) if i % rank not in gone]
        attribute.ints[:] = values[:left] + kept
    axes = tuple(a for p, a in enumerate(x.axes) if p - 2 not in gone)
    inputs: list[Value | None] = [replace(x, axes=axes), *op.inputs[1:]]
    for i, value in enumerate(inputs):
        if isinstance(value, Const) and value.shape is not None and len(value.shape) == rank + 2:
            shape = tuple(n for p, n in enumerate(value.shape) if p - 2 not in gone)
            sizes, array = known(shape), value.array
            if array is not None and sizes is not None:
                array = array.reshape(sizes)
            inputs[i] = replace(value, shape=shape, array=array)
    return op.with_inputs(proto, inputs)


# --- convolutions ---------------------------------------------------------------------------


def _weights(op: Op, index: int) -> tuple[int, ...]:
    """The shape of the weights, which have two axes more than the grid."""
    shape = op.weight_shape(index)
    if len(shape) != op.ndim + 2:
        refuse(f"has weights of shape {shape} in a network of {op.ndim} axes")
    return shape


def _kernel_shape(op: Op, weights: Sequence[int]) -> list[int]:
    """The kernel, which the weights tell too."""
    kernel = op.counts("kernel_shape", weights[2:])
    if kernel != list(weights[2:]):
        op.fail(f"kernel_shape={kernel} is not that of its weights, {weights}; correct the model")
    return kernel


def _kernel(op: Op) -> Const | None:
    """The weights of a convolution; those of quantised ones are not read."""
    value = op.input(1)
    if op.type in ("Conv", "ConvTranspose") and isinstance(value, Const):
        return value
    return None


def _groups(op: Op, x: Map) -> Any:
    groups = op.attr("group", 1)
    return "depthwise" if groups > 1 and groups == x.extent[CHANNEL] else groups


@handles_sets("Conv ConvInteger QLinearConv")
@_lined
def _conv(op: Op) -> Result:
    shape = _weights(op, 3 if op.type == "QLinearConv" else 1)
    x = op.standard(op.x)
    values, padding = _windows(op, _kernel_shape(op, shape))
    before, left = uncropped(padding)
    layer = Conv(**values, padding=left, channels=shape[0], groups=_groups(op, x))
    return op.grid(x, *before, op.weighted(layer, _kernel(op)))


@handles_sets("ConvTranspose")
@_lined
def _conv_transpose(op: Op) -> Result:
    shape = _weights(op, 1)
    x = op.standard(op.x)
    values, padding = _windows(op, _kernel_shape(op, shape))
    strides = op.counts("strides", [1] * op.ndim, 1)
    extra = op.counts("output_padding", [0] * op.ndim, 0)
    if op.attr("output_shape") or isinstance(padding[0], str):
        padding, extra = _transposed_padding(op, x, shape[2:], strides, extra)
    if min(map(min, padding)) < 0:
        refuse(f"has pads {padding} below 0")
    layer = ConvTranspose(
        **values,
        padding=spell(padding),
        output_padding=spell(extra),
        channels=shape[1] * op.attr("group", 1),
        groups=_groups(op, x),
        gain=float(math.prod(strides)),
    )
    return op.grid(x, op.weighted(layer, _kernel(op)))


def _transposed_padding(
    op: Op, x: Map, kernel: Sequence[int], strides: Sequence[int], extra: Sequence[int]
) -> tuple[tuple[Any, ...], list[int]]:
    """Padding and output padding for a stated output size (the operator's equations).

    An odd pixel goes to the end for SAME_UPPER and to the beginning otherwise.
    """
    dilations = op.counts("dilations", [1] * len(kernel), 1)
    wanted = op.attr("output_shape")
    wanted = wanted[-len(kernel) :] if wanted else [None] * len(kernel)
    padding, more = [], []
    for n, k, s, d, e, out in zip(x.pixels, kernel, strides, dilations, extra, wanted, strict=True):
        if out is None:
            total = e + d * (k - 1) + 1 - s
            if total < 0:
                # ONNX's text wants n·s pixels here, its shape inference fewer.
                refuse(f"has SAME padding with a stride {s} above its kernel's extent")
        elif n is None:
            refuse("states its output_shape for a map of unknown size; give input_size")
        else:
            total = s * (n - 1) + e + d * (k - 1) + 1 - out
        more.append(e + max(-total, 0))
        total = max(total, 0)
        small, large = total // 2, total - total // 2
        padding.append((small, large) if op.attr("auto_pad") == "SAME_UPPER" else (large, small))
    return tuple(padding), more


# --- spectra --------------------------------------------------------------------------------


@handles("STFT")
def _stft(op: Op) -> Result:
    """A convolution with the waves of a window, real and imaginary parts beside each other."""
    x = op.x
    window = op.input(2)
    stated = None if window is None else op.weight_shape(2)[0]
    length = op.operand(3, "frame_length", stated)
    if length is None or stated not in (None, length):
        refuse(f"has frames of {length} and a window of {stated}; pad the window with zeros")
    bins = length // 2 + 1 if op.flag("onesided", 1) else length
    if op.ndim != 1 or x.extent[CHANNEL] != 1 or not x.holds_grid((x.axes or ((), ()))[1]):
        refuse(f"reads a tensor of shape {x.dims}, which is no real signal (N, T) or (N, T, 1)")
    layer = Conv(length, stride=op.operand(1, "frame_step"), channels=2 * bins)
    if not op.weighting.compensated:
        curve = window.array if isinstance(window, Const) else np.ones(length)
        waves = None if curve is None else _waves(curve, length, bins)
        layer = replace(op.weighting, init=None, trained=True).weighted(layer, waves, 1)
    after = op.grid(replace(x, axes=x.standard), layer)
    parts = (Digit(CHANNEL, bins, 2),), (Digit(CHANNEL, 2),)
    return replace(after, axes=(after.whole(BATCH), after.whole(1), *map(join, parts)))


def _waves(window: NDArray[Any], length: int, bins: int) -> Const:
    """cos and −sin of every frequency under a window."""
    phase = 2 * np.pi * np.outer(np.arange(bins), np.arange(length)) / length
    waves = np.stack([np.cos(phase), -np.sin(phase)], axis=1) * window
    return Const.of(waves.reshape(2 * bins, 1, length))


# --- pooling --------------------------------------------------------------------------------


@handles_sets("MaxPool AveragePool LpPool")
@_lined
def _pool(op: Op) -> Result:
    kernel = op.attr("kernel_shape")
    if not kernel or len(kernel) != op.ndim:
        refuse(f"has a kernel of shape {kernel} in a network of {op.ndim} axes")
    values, padding = _windows(op, kernel)
    before, left = uncropped(padding)
    ceil = op.flag("ceil_mode")
    x = op.standard(op.x)
    layer: Layer
    plain = not before and left == 0 and values["dilation"] == 1
    if plain and _is_global(op, x, tuple(kernel)):
        layer = GlobalPool("avg" if op.type == "AveragePool" else "max")
    elif op.type == "AveragePool":
        # Without padding the two ways of counting agree; fastrf's default is then written.
        counted = op.flag("count_include_pad") or left == 0
        layer = AvgPool(**values, padding=left, ceil_mode=ceil, count_include_pad=counted)
    else:
        layer = MaxPool(**values, padding=left, ceil_mode=ceil)
    return op.grid(x, *before, layer)


def _is_global(op: Op, x: Map, kernel: tuple[int, ...]) -> bool:
    """Whether a plain window is the whole map, and what it makes is no map any more.

    Where the one pixel is joined with that of a strided branch (the last reduction of a network
    for small images), the window stays: on the unbounded grid both branches are then maps.
    """
    return kernel == x.pixels and max(kernel) > 1 and not op.graph.joins_pixels(op.proto.output[0])


@handles("GlobalAveragePool GlobalMaxPool GlobalLpPool")
def _global_pool(op: Op) -> Result:
    return op.grid(op.x, GlobalPool("avg" if op.type == "GlobalAveragePool" else "max"))


# --- positions that the data decide ---------------------------------------------------------


@handles("MaxUnpool")
def _max_unpool(op: Op) -> Result:
    refuse(
        "puts values back where the data had them, apart from or together with those of its "
        "pooling; for the region that its windows read, put Resize (nearest) in its place"
    )


@handles("GridSample RoiAlign MaxRoiPool DeformConv")
def _sampled(op: Op) -> Result:
    refuse(
        f"reads at positions that the data decide, which no receptive field of the layers says; "
        f"state a window for it with fastrf.importers.register('ai.onnx::{op.type}')"
    )
