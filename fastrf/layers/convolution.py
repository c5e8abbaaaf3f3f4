"""Convolutions with random weights, and the fully connected layer, which can be one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np

from fastrf.errors import InputError
from fastrf.layers.base import Layer
from fastrf.layers.borders import PADDING_MODES, PaddingMode, bordered
from fastrf.layers.checks import (
    channel_count,
    checked,
    checked_size,
    choice,
    group_count,
    normalised_taps,
    paddings,
    per_axis,
    positive,
    whole_per_axis,
)
from fastrf.layers.windows import Windowed
from fastrf.maps import Everything, Size, SpatialMap, SpatialTaps, Spread, factor


@dataclass(frozen=True)
class _Convolution(Windowed):
    channels: int | None = checked(channel_count, None, kw_only=True)
    groups: int | Literal["depthwise"] = checked(group_count, 1, kw_only=True)
    gain: float = checked(positive, 1.0, kw_only=True)
    taps: Any = field(default=None, kw_only=True)

    def _bound(self, ndim: int) -> Self:
        owner, channels, groups = type(self).__name__, self.channels, self.groups
        if channels is not None and groups != "depthwise" and channels % groups:
            raise InputError(f"{owner}: groups={groups} must divide channels={channels}")
        if self.taps is None:
            return self
        return replace(self, taps=normalised_taps(owner, self.taps, self.kernel))

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        if self.channels is None and self.groups == "depthwise":
            return channels[0]
        return self.channels

    def _spatial_taps(self) -> SpatialTaps:
        return None if self.taps is None else factor(np.asarray(self.taps, dtype=np.float64))


@dataclass(frozen=True)
class Conv(_Convolution):
    """Convolution with independent zero-mean random weights.

    Args:
        kernel, stride, dilation: whole numbers of at least 1, or one per axis.
        padding: a number or a name, see `fastrf.layers`.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        channels: output channels; needed only where channels part ways (concat, slices).
        groups: number of channel groups, or "depthwise" (one group per input channel).
        gain: Σ v, the gradient variance of one output unit summed over all taps.
        taps: relative variances of the taps, an array of shape `kernel`; None: all equal.
    """

    padding_mode: PaddingMode = checked(choice(*PADDING_MODES), "zeros", kw_only=True)

    def _bound(self, ndim: int) -> Self:
        padding = self._settled_padding()
        unpadded = all(pad == (0, 0) for pad in padding)
        mode = "zeros" if unpadded else self.padding_mode
        return replace(super()._bound(ndim), padding=padding, padding_mode=mode)

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        before, inner, pads = bordered(self.padding_mode, self._pads(size), size, ndim)
        axes = self._windows(pads)
        out = self._size_out(inner, pads)
        return (*before, SpatialMap(axes, "random", self.gain, self._spatial_taps(), inner, out))


@dataclass(frozen=True)
class ConvTranspose(_Convolution):
    """Transposed convolution with independent zero-mean random weights.

    `padding` crops the output (PyTorch's convention); the output has
    ``(n−1)·stride + d(k−1) + 1 − lo − hi + output_padding`` pixels. `gain` is Σ v over the
    taps; each output reads only about 1/stride of them per axis, so a transposed convolution
    that keeps the variance (He et al. 2015) states a gain of Π stride.
    """

    padding: Any = per_axis(paddings(("valid",)), 0)
    output_padding: Any = per_axis(whole_per_axis(0), 0, kw_only=True)

    def _bound(self, ndim: int) -> Self:
        for extra, s, d in zip(self.output_padding, self.stride, self.dilation, strict=True):
            if extra >= max(s, d):
                raise InputError(
                    f"ConvTranspose: output_padding={extra} must be smaller than the stride {s} "
                    f"or the dilation {d}"
                )
        return replace(super()._bound(ndim), padding=self._settled_padding())

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        window = (self.kernel, self.stride, self.dilation, self.padding)
        axes = tuple(Spread(k, s, d, lo) for k, s, d, (lo, _) in zip(*window, strict=True))
        out = None
        if size is not None:
            ends = zip(size, axes, self.padding, self.output_padding, strict=True)
            out = checked_size(
                "ConvTranspose",
                size,
                tuple((n - 1) * a.stride + a.span + 1 - sum(p) + extra for n, a, p, extra in ends),
                f"crop less (padding={self.padding})",
            )
        return (SpatialMap(axes, "random", self.gain, self._spatial_taps(), size, out),)


@dataclass(frozen=True)
class FullyConnected(Layer):
    """A fully connected layer: one output position that reads the whole map.

    Args:
        channels: output channels.
        map_size: kernel of the convolution that the layer is when the network runs on larger
            inputs; it then keeps its spatial extent.
        gain: Σ v, as in `Conv`.
    """

    channels: int | None = checked(channel_count, None)
    map_size: Any = per_axis(whole_per_axis(1), None)
    gain: float = checked(positive, 1.0, kw_only=True)

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        return self.channels

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        if self.map_size is not None:
            return Conv(self.map_size, gain=self.gain).bind(ndim).maps(size, ndim)
        out = None if size is None else (1,) * ndim
        return (SpatialMap((Everything(),) * ndim, "random", self.gain, None, size, out),)
