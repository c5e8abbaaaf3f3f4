"""Convolutions with random weights, and the fully connected layer, which can be one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np

from fastrf.errors import InputError
from fastrf.initialisation import DELTA, delta_taps, scheme_gain
from fastrf.layers.base import Layer
from fastrf.layers.borders import PADDING_MODES, PaddingMode, bordered
from fastrf.layers.checks import (
    TRAINED,
    channel_count,
    check_room,
    checked,
    checked_size,
    choice,
    group_count,
    normalised_taps,
    of_axes,
    paddings,
    per_axis,
    positive,
    scheme,
    whole_per_axis,
)
from fastrf.layers.weights import MUTED, as_weights, derived
from fastrf.layers.windows import Windowed
from fastrf.maps import Everything, Size, SpatialMap, SpatialTaps, Spread, factor


@dataclass(frozen=True)
class _Convolution(Windowed):
    channels: int | None = checked(channel_count, None, kw_only=True)
    groups: int | Literal["depthwise"] = checked(group_count, 1, kw_only=True)
    gain: float = checked(positive, 1.0, kw_only=True)
    taps: Any = field(default=None, kw_only=True)
    init: str | None = checked(scheme, None, kw_only=True)
    weights: Any = field(default=None, kw_only=True)

    transposed: ClassVar[bool] = False

    def _bound(self, ndim: int) -> Self:
        owner, bound = type(self).__name__, self
        if self.weights is not None:
            bound = self._with_weights()
        elif self.taps is not None:
            if self.init == DELTA:
                raise InputError(
                    f"{owner}: init={DELTA!r} puts all at the centre tap; leave out taps, or "
                    f"choose another init"
                )
            bound = replace(self, taps=normalised_taps(owner, self.taps, self.kernel))
        channels, groups = bound.channels, bound.groups
        if channels is not None and groups != "depthwise" and channels % groups:
            raise InputError(f"{owner}: groups={groups} must divide channels={channels}")
        return bound

    def _with_weights(self) -> Self:
        """With the gain and the taps that the weights have on average over the channels."""
        owner, own = type(self).__name__, as_weights(self.weights)
        if self.init is not None:
            raise InputError(f"{owner}: init={self.init!r} draws weights; leave it out, or weights")
        if own.shape[2:] != self.kernel or len(own.shape) < 3:
            rule = "(channels, channels read / groups, *kernel)"
            if self.transposed:
                rule = "(channels read, channels / groups, *kernel)"
            raise InputError(
                f"{owner}: weights of shape {own.shape} do not fit kernel={self.kernel}; give "
                f"{rule}, as PyTorch's layer has them{of_axes(len(own.shape) - 2, self.kernel)}"
            )
        first, second = own.shape[:2]
        # A row of a depthwise layer is a group or, of several per channel, a part of one.
        groups = self.groups if isinstance(self.groups, int) else first
        channels, reads = (second * groups, first) if self.transposed else (first, second * groups)
        if self.channels not in (None, channels) or channels % groups or reads % groups:
            raise InputError(
                f"{owner}: weights of shape {own.shape} do not fit channels={self.channels} and "
                f"groups={self.groups}; they write {channels} channels"
            )
        squares = own.squares().mean(axis=(0, 1))
        gain = float(squares.sum()) * (reads // groups) or MUTED
        taps = normalised_taps(owner, squares, self.kernel) if squares.any() else None
        if self.taps is not None and normalised_taps(owner, self.taps, self.kernel) != taps:
            raise InputError(f"{owner}: weights have taps of their own; leave out taps, or weights")
        return replace(
            self, weights=own, channels=channels, gain=derived(owner, self.gain, gain), taps=taps
        )

    def initialised(self, scheme: str) -> Self:
        trained = self.weights is not None or self.init == TRAINED
        taps = None if trained or scheme == DELTA else self.taps
        return replace(
            self, init=scheme, gain=1.0, taps=taps, weights=None, channels=self._channels_written()
        )

    def _channels_written(self) -> int | None:
        """Channels that the layer states, or its weights."""
        if self.weights is None or self.channels is not None:
            return self.channels
        first, second = as_weights(self.weights).shape[:2]
        if not self.transposed:
            return first
        return second * (self.groups if isinstance(self.groups, int) else first)

    @property
    def depends_on_network(self) -> bool:
        return self.init not in (None, TRAINED)

    def drawn(self, reads: int | None, writes: int | None) -> Self:
        """The layer with the gain and the taps that its `init` gives it.

        Args:
            reads, writes: channels of the maps read and written; None: not known.

        Raises:
            InputError: the scheme needs channels that are not known.
        """
        if self.init is None:
            return self
        groups = self.groups if isinstance(self.groups, int) else reads or 1
        count = math.prod(self.kernel)
        own = scheme_gain(self.init, reads, writes, groups, count, transposed=self.transposed)
        taps = self.taps
        if self.init == DELTA:
            check_room(type(self).__name__, 1, math.prod(self.kernel), "give a smaller kernel")
            taps = normalised_taps(type(self).__name__, delta_taps(self.kernel), self.kernel)
        return replace(self, init=None, gain=self.gain * own, taps=taps)

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        if self.channels is None and self.groups == "depthwise":
            return channels[0]
        return self.channels

    @property
    def channels_read(self) -> int | None:
        if self.weights is None:
            return None
        first, second = self.weights.shape[:2]
        # A depthwise layer has one filter per channel, unless the network says that it has several.
        own = self.transposed or self.groups == "depthwise"
        return int(first if own else second * self.groups)

    def told(self, channels: int | None) -> int | None:
        keeps = self.channels is None and self.groups == "depthwise"
        return channels if keeps else self.channels_read

    @property
    def fits_fewer(self) -> bool:
        return self.weights is not None and not self.transposed and self.groups == "depthwise"

    def fits(self, channels: int) -> bool:
        if not self.fits_fewer:
            return super().fits(channels)
        # Filters of one channel each, one or several of every channel.
        first, second = self.weights.shape[:2]
        return bool(second == 1 and first % channels == 0)

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
        gain: Σ v, the gradient variance of one output unit summed over all taps; with an `init` a
            factor of what that gives.
        taps: relative variances of the taps, an array of shape `kernel`, or a pattern of Luo et al.
            2016, §4: "corner", "centre-light" (see `fastrf.initialisation`); None: all equal.
        init: how the weights are drawn: "he", "he-fan-out", "lecun", "glorot", "pytorch",
            "orthogonal" or "delta-orthogonal" (see `fastrf.initialisation`).
        weights: the weights themselves, an array (channels, channels read / groups, *kernel):
            gain and taps are then their mean squares, and fields follow them channel by channel.
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
    that keeps the variance (He et al. 2015) states a gain of Π stride. `weights` have the shape
    (channels read, channels / groups, *kernel).
    """

    transposed: ClassVar[bool] = True

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
        init: as in `Conv`; "delta-orthogonal" is "orthogonal" here.
        weights: an array (channels, channels read, *pixels of the map), instead of `gain`.
    """

    channels: int | None = checked(channel_count, None)
    map_size: Any = per_axis(whole_per_axis(1), None)
    gain: float = checked(positive, 1.0, kw_only=True)
    init: str | None = checked(scheme, None, kw_only=True)
    weights: Any = field(default=None, kw_only=True)

    def _bound(self, ndim: int) -> Self:
        if self.weights is None:
            return self
        own = as_weights(self.weights)
        if self.init is not None:
            raise InputError(
                f"FullyConnected: init={self.init!r} draws weights; leave it out, or weights"
            )
        if len(own.shape) != ndim + 2:
            raise InputError(
                f"FullyConnected: weights of shape {own.shape} must be (channels, channels read, "
                f"*pixels of the map); reshape them, to one pixel per axis behind global pooling"
            )
        if self.channels not in (None, own.shape[0]) or self.map_size not in (None, own.shape[2:]):
            raise InputError(
                f"FullyConnected: weights of shape {own.shape} do not fit channels={self.channels} "
                f"and map_size={self.map_size}"
            )
        gain = float(own.squares().sum()) / own.shape[0] or MUTED
        gain = derived("FullyConnected", self.gain, gain)
        return replace(self, weights=own, channels=own.shape[0], gain=gain)

    def initialised(self, scheme: str) -> Self:
        channels = self.channels
        if self.weights is not None and channels is None:
            channels = as_weights(self.weights).shape[0]
        return replace(self, init=scheme, gain=1.0, weights=None, channels=channels)

    @property
    def depends_on_network(self) -> bool:
        return self.init not in (None, TRAINED)

    def drawn(self, reads: int | None, writes: int | None, pixels: int) -> Self:
        """As `Conv.drawn`, over a map of so many pixels."""
        if self.init is None:
            return self
        named = "orthogonal" if self.init == DELTA else self.init
        own = scheme_gain(named, None if reads is None else reads * pixels, writes, 1, 1)
        return replace(self, init=None, gain=self.gain * own)

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        return self.channels

    @property
    def channels_read(self) -> int | None:
        return None if self.weights is None else int(self.weights.shape[1])

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        if self.map_size is not None:
            return Conv(self.map_size, gain=self.gain).bind(ndim).maps(size, ndim)
        out = None if size is None else (1,) * ndim
        return (SpatialMap((Everything(),) * ndim, "random", self.gain, None, size, out),)
