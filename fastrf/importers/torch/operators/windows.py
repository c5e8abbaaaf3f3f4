"""Convolutions, pooling, unfolding."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fastrf.importers.failing import refuse
from fastrf.importers.layout import CHANNEL, Const, Digit, Map, join, known
from fastrf.importers.operator import Result
from fastrf.importers.spelling import spell
from fastrf.importers.torch.op import Op, handles, handles_sets
from fastrf.layers import (
    AdaptivePool,
    AvgPool,
    ChannelShuffle,
    Concat,
    Conv,
    ConvTranspose,
    Crop,
    Filter,
    GlobalPool,
    Layer,
    MaxPool,
    Pad,
    PixelShuffle,
    PixelUnshuffle,
)

# --- convolutions ---------------------------------------------------------------------------


def _pairs(values: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple((n, n) for n in values)


def _weights(op: Op) -> Const:
    """The weights, which have two axes more than the grid."""
    weight = op.weight("weight")
    if len(weight.shape or ()) != op.ndim + 2:
        refuse(f"has weights of shape {weight.shape} in a network of {op.ndim} axes")
    return weight


def _groups(op: Op, x: Map) -> Any:
    groups = op["groups"]
    return "depthwise" if groups > 1 and groups == x.extent[CHANNEL] else groups


def _taps(weight: Const, reads: int) -> dict[str, Any]:
    """Variances of the taps of weights that are a buffer (a blur, say): their mean squares; nothing
    of weights that are learned.

    Args:
        reads: channels that one output channel reads.
    """
    if weight.array is None or weight.learned:
        return {}
    squares = np.square(weight.array.astype(np.float64)).mean(axis=(0, 1))
    gain = float(squares.sum()) * reads
    return {"taps": squares.tolist(), "gain": gain} if math.isfinite(gain) and gain > 0 else {}


@handles_sets("conv1d conv2d conv3d convolution _convolution")
def _conv(op: Op) -> Result:
    if op.arguments.get("transposed"):
        return _conv_transpose(op)
    if op.x.pixels == (1,) * op.ndim and op.x.dims == op.shape and not op.x.is_standard:
        # Along the channels of one pixel (efficient channel attention).
        return op.chain(op.x, Conv(1, channels=op.x.extent[CHANNEL]))
    if isinstance(op["weight"], Map):
        return _computed_weights(op)
    weight = _weights(op)
    channels, reads, *kernel = known(weight.shape or ()) or ()
    x = op.standard(op.x)
    padding = op["padding"]
    window = {
        "kernel": spell(kernel),
        "stride": spell(op.per_axis("stride")),
        "dilation": spell(op.per_axis("dilation")),
        "padding": padding if isinstance(padding, str) else spell(_pairs(op.per_axis("padding"))),
    }
    kernel_of_all = _filter(weight, channels, op["groups"])
    if kernel_of_all is not None:
        return op.grid(x, Filter(**window, weights=kernel_of_all))
    taps = _taps(weight, reads)
    layer = Conv(**window, channels=channels, groups=_groups(op, x), **taps)
    return op.grid(x, layer if taps else op.weighted(layer, weight))


def _computed_weights(op: Op) -> Result:
    """Weights mixed from a few sets by one pixel of another map (conditional convolution): a
    convolution whose result that pixel scales."""
    x, weight = op.standard(op.x), op["weight"]
    channels, _, *kernel = weight.dims or op.size
    if weight.pixels != (1,) * op.ndim or len(kernel) != op.ndim:
        refuse("computes its weights from a map")
    padding = op["padding"]
    layer = Conv(
        spell(kernel),
        stride=spell(op.per_axis("stride")),
        dilation=spell(op.per_axis("dilation")),
        padding=padding if isinstance(padding, str) else spell(_pairs(op.per_axis("padding"))),
        channels=channels,
        groups=_groups(op, x),
    )
    after = op.grid(x, layer)
    scale = op.emit(Conv(1, channels=1), weight.node, part="weights")
    return replace(after, node=op.emit(op.weighting.product(), after.node, scale, part="weighted"))


def _filter(weight: Const, channels: int, groups: int) -> list[Any] | None:
    """The kernel of known weights that filter every channel alike."""
    kernels = weight.array
    if kernels is None or weight.learned or groups != channels or kernels.shape[1] != 1:
        return None
    if not np.isfinite(kernels).all() or not kernels.any() or (kernels != kernels[:1]).any():
        return None
    kernel: list[Any] = kernels[0, 0].tolist()
    return kernel


@handles_sets("conv_transpose1d conv_transpose2d conv_transpose3d")
def _conv_transpose(op: Op) -> Result:
    weight = _weights(op)
    before, per_group, *kernel = known(weight.shape or ()) or ()
    x = op.standard(op.x)
    stride = op.per_axis("stride")
    taps = _taps(weight, before // op["groups"])
    values = {"gain": float(math.prod(stride)), **taps}
    layer = ConvTranspose(
        spell(kernel),
        stride=spell(stride),
        dilation=spell(op.per_axis("dilation")),
        padding=spell(_pairs(op.per_axis("padding"))),
        output_padding=spell(op.per_axis("output_padding")),
        channels=per_group * op["groups"],
        groups=_groups(op, x),
        **values,
    )
    return op.grid(x, layer if taps else op.weighted(layer, weight))


# --- pooling --------------------------------------------------------------------------------


def _window(op: Op) -> dict[str, Any]:
    kernel = op.per_axis("kernel_size")
    return {
        "kernel": spell(kernel),
        "stride": spell(op.per_axis("stride", kernel)),
        "padding": spell(_pairs(op.per_axis("padding", 0))),
        "ceil_mode": bool(op["ceil_mode"]),
    }


@handles_sets(
    "max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices "
    "max_pool3d_with_indices"
)
def _max_pool(op: Op) -> Result:
    dilation = spell(op.per_axis("dilation", 1))
    return op.grid(op.standard(op.x), MaxPool(**_window(op), dilation=dilation))


@handles_sets("avg_pool1d avg_pool2d avg_pool3d")
def _avg_pool(op: Op) -> Result:
    window = _window(op)
    # With a divisor of its own a window divides by it wherever it lies.
    counted = bool(op["count_include_pad"]) or op.get("divisor_override") is not None
    return op.grid(op.x, AvgPool(**window, count_include_pad=counted or window["padding"] == 0))


@handles_sets(
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d "
    "adaptive_max_pool2d adaptive_max_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d"
)
def _adaptive_pool(op: Op) -> Result:
    mode: Any = "max" if "max" in op.type else "avg"
    out = op.size[2:]
    whole = max(out) == 1
    layer: Layer = GlobalPool(mode) if whole else AdaptivePool(spell(out), mode)
    return op.grid(op.x, layer)


@handles("fractional_max_pool2d fractional_max_pool3d")
def _fractional(op: Op) -> Result:
    refuse("draws its windows at random at every call; pool with fixed or adaptive windows")


@handles("max_unpool2d max_unpool3d")
def _max_unpool(op: Op) -> Result:
    refuse(
        "puts values back where the data had them, apart from or together with those of its "
        "pooling; for the region that its windows read, put nearest upsampling in its place"
    )


@handles("grid_sampler grid_sampler_2d grid_sampler_3d deform_conv2d")
def _sampled(op: Op) -> Result:
    refuse("reads at positions that the data decide, which no receptive field of the layers says")


# --- spectra --------------------------------------------------------------------------------


@handles("stft")
def _stft(op: Op) -> Result:
    """A convolution with the waves of a window; a complex number counts as one channel."""
    x = op.x
    if op.ndim != 1 or x.axes is None or len(x.axes) != 2 or x.axes[1] != x.whole(1):
        refuse(f"reads a tensor of shape {x.dims}, which holds no signals (N, T)")
    if op.get("center"):
        refuse("pads its signal; pad it before, and call it with center=False")
    length = op["n_fft"]
    window, inner = op.get("window"), op.get("win_length") or length
    bins = length if op.get("onesided") is False else length // 2 + 1
    signals = x.extent[CHANNEL] or 1
    layer = Conv(
        inner,
        stride=op.get("hop_length") or length // 4,
        channels=signals * bins,
        groups="depthwise" if signals > 1 else 1,
    )
    if not op.weighting.compensated:
        curve = window.array if isinstance(window, Const) else np.ones(inner)
        # |cos| and |sin| of a wave together have the window's squares.
        waves = None if curve is None else Const.of(np.tile(curve, (signals * bins, 1, 1)))
        layer = replace(op.weighting, init=None, trained=True).weighted(layer, waves, 1)
    outside = (length - inner) // 2
    crop = [Crop((((outside, length - inner - outside)),))] if inner < length else []
    after = op.grid(replace(x, axes=x.standard), *crop, layer)
    batch = tuple(replace(d, step=bins) if d.label == CHANNEL else d for d in x.axes[0])
    return replace(after, axes=(batch, join([Digit(CHANNEL, bins)]), after.whole(1)))


# --- windows as channels --------------------------------------------------------------------


@handles("im2col")
def _unfold(op: Op) -> Result:
    """Channel c·k + tap is channel c of the map at that tap of the window (k taps)."""
    x = op.standard(op.x)
    kernel, stride = op.per_axis("kernel_size"), op.per_axis("stride")
    dilation, padding = op.per_axis("dilation"), op.per_axis("padding")
    channels = x.extent[CHANNEL] or 1
    taps = math.prod(kernel)
    if kernel == stride and max(dilation) == 1 and max(padding) == 0:
        after = op.grid(_cropped(op, x, kernel), PixelUnshuffle(spell(kernel)))
    else:
        after = _shifted_copies(op, x, kernel, stride, dilation, padding)
    pixels = tuple(
        (n + 2 * p - d * (k - 1) - 1) // s + 1 if n is not None else None
        for n, k, s, d, p in zip(x.pixels, kernel, stride, dilation, padding, strict=True)
    )
    after = replace(after, extent=(channels * taps, *pixels))
    batch, channel, *grid = after.standard
    return replace(after, axes=(batch, channel, tuple(d for axis in grid for d in axis)))


def _cropped(op: Op, x: Map, block: Sequence[int]) -> Map:
    """The map without the pixels behind its last whole block."""
    rest = [(n or 0) % b for n, b in zip(x.pixels, block, strict=True)]
    if not any(rest):
        return x
    node = op.emit(Crop(tuple((0, r) for r in rest)), x.node, part="crop")
    pixels = tuple((n or 0) - r for n, r in zip(x.pixels, rest, strict=True))
    after = replace(x, node=node, extent=(x.extent[CHANNEL], *pixels))
    return replace(after, axes=after.standard)


def _shifted_copies(
    op: Op,
    x: Map,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    padding: Sequence[int],
) -> Map:
    node = op.emit(Pad(spell(_pairs(padding))), x.node, part="pad") if any(padding) else x.node
    copies = []
    for tap in itertools.product(*map(range, kernel)):
        cut = [(t * d, (k - 1 - t) * d) for t, d, k in zip(tap, dilation, kernel, strict=True)]
        copy = op.emit(Crop(spell(cut)), node, part="tap") if any(map(any, cut)) else node
        if max(stride) > 1:
            copy = op.emit(MaxPool(1, stride=spell(stride)), copy, part="stride")
        copies.append(copy)
    node = op.emit(Concat(), *copies, part="taps")
    return replace(x, node=op.emit(ChannelShuffle(len(copies)), node))


@handles("col2im")
def _fold(op: Op) -> Result:
    """Windows that do not overlap put side by side."""
    x = op.x
    kernel, stride = op.per_axis("kernel_size"), op.per_axis("stride")
    dilation, padding = op.per_axis("dilation"), op.per_axis("padding")
    if kernel != stride or max(dilation) > 1 or max(padding) > 0:
        refuse("adds up windows that overlap or leave gaps")
    if x.axes is None or len(x.axes) != 3 or not x.holds_grid(x.axes[2]):
        refuse(f"folds a tensor of shape {x.dims}, whose last axis is not the grid of the map")
    if x.axes[1] != x.whole(CHANNEL):
        refuse(f"folds a tensor of shape {x.dims}, whose second axis is not the channels")
    return op.grid(replace(x, axes=x.standard), PixelShuffle(spell(kernel)))
