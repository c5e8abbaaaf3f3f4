"""Convolutions and pooling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf.importers.failing import refuse
from fastrf.importers.layout import BATCH, CHANNEL, Const, Digit, Map, join
from fastrf.importers.onnx.op import Op, handles
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


@handles("Conv ConvInteger QLinearConv")
def _conv(op: Op) -> Result:
    shape = _weights(op, 3 if op.type == "QLinearConv" else 1)
    x = op.standard(op.x)
    values, padding = _windows(op, _kernel_shape(op, shape))
    before, left = uncropped(padding)
    layer = Conv(**values, padding=left, channels=shape[0], groups=_groups(op, x))
    return op.grid(x, *before, op.weighted(layer, _kernel(op)))


@handles("ConvTranspose")
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


@handles("MaxPool AveragePool LpPool")
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
