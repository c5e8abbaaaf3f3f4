"""The layers a network is made of: frozen dataclasses that lower to primitive axis maps.

Every size is per axis. A plain number means the same on every axis; a tuple gives one value per
axis (``kernel=(3, 5)``). Padding is a number, one number or one ``(lo, hi)`` pair per axis, or a
name:

* ``"valid"``: none. ``"same"``: PyTorch's rule (needs stride 1; the odd pixel goes to the end).
* ``"same_upper"``: TensorFlow's SAME and ONNX's SAME_UPPER: the output has ⌈n/stride⌉ pixels,
  so with a stride the padding depends on the size of the map; ``"same_lower"``: the same with
  the odd pixel at the beginning. On the unbounded grid the size counts as divisible by the stride.
* ``"causal"``: d(k−1) at the beginning, nothing at the end.

`Layer.bind` fixes the number of axes: it checks every value and spells each one out per axis.
`Layer.maps` lowers a bound layer to `SpatialMap`s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from fractions import Fraction
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from fastrf.errors import InputError
from fastrf.maps import (
    IDENTITY,
    AxisMap,
    Everything,
    Kind,
    Size,
    SpatialMap,
    Spread,
    Table,
    Window,
    factor,
)

Pair = tuple[int, int]
PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
NAMED_PADDING = ("valid", "same", "same_upper", "same_lower", "causal")

E_SIGMA_PRIME_SQUARED = {"relu": 0.5, "identity": 1.0}
"""E[σ′(z)²] for z symmetric about 0 (Luo et al. 2016 print 1/4 for ReLU, which is Var[σ′])."""


# --- fields ---------------------------------------------------------------------------------


def _per_axis(default: Any = ..., minimum: int = 1) -> Any:
    metadata = {"rule": "integer", "minimum": minimum}
    return field(metadata=metadata) if default is ... else field(default=default, metadata=metadata)


def _padding(default: Any = 0) -> Any:
    return field(default=default, metadata={"rule": "padding"})


def _is_int(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _integers(owner: str, name: str, value: Any, ndim: int, minimum: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * ndim
    if len(values) != ndim:
        raise InputError(
            f"{owner}: {name}={value!r} has {len(values)} values for {ndim} axes; "
            f"give one number, or one per axis"
        )
    for v in values:
        if not _is_int(v) or v < minimum:
            raise InputError(
                f"{owner}: {name}={value!r} must be a whole number of at least {minimum} per axis"
            )
    return tuple(int(v) for v in values)


def _pairs(owner: str, value: Any, ndim: int, minimum: int | None) -> tuple[Pair | str, ...]:
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * ndim
    if len(values) != ndim:
        raise InputError(
            f"{owner}: padding={value!r} has {len(values)} values for {ndim} axes; give one "
            f"number, or one number or (lo, hi) pair per axis"
        )
    result: list[Pair | str] = []
    for v in values:
        if isinstance(v, str):
            if v not in NAMED_PADDING:
                raise InputError(
                    f"{owner}: padding={v!r} is unknown; the names are {', '.join(NAMED_PADDING)}"
                )
            result.append(v)
            continue
        pair = tuple(v) if isinstance(v, tuple | list) else (v, v)
        if len(pair) != 2 or not all(_is_int(p) for p in pair):
            raise InputError(
                f"{owner}: padding={value!r} must hold whole numbers or (lo, hi) pairs"
            )
        if minimum is not None and min(pair) < minimum:
            raise InputError(
                f"{owner}: padding={value!r} must be at least {minimum}; use Crop to cut pixels off"
            )
        result.append((int(pair[0]), int(pair[1])))
    return tuple(result)


def _choice(owner: str, name: str, value: Any, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(
            f"{owner}: {name}={value!r} is unknown; choose one of {', '.join(choices)}"
        )


def _positive(owner: str, name: str, value: Any) -> None:
    ok = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not ok or not math.isfinite(value) or value <= 0:
        raise InputError(f"{owner}: {name}={value!r} must be a finite number above 0")


def _count(owner: str, name: str, value: Any) -> None:
    if value is not None and (not _is_int(value) or value < 1):
        raise InputError(f"{owner}: {name}={value!r} must be a whole number of at least 1, or None")


def _nested(value: Any) -> Any:
    """Arrays and lists as nested tuples of floats, which hash and compare."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    return tuple(_nested(v) for v in value) if isinstance(value, list | tuple) else float(value)


def _normalised_taps(
    owner: str, taps: Any, kernel: tuple[int, ...], kernel_name: str = "kernel"
) -> Any:
    try:
        array = np.asarray(taps, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{owner}: taps must be an array of numbers of shape {kernel}") from None
    if array.shape != kernel:
        raise InputError(
            f"{owner}: taps of shape {array.shape} do not fit {kernel_name}={kernel}; "
            f"give one variance per tap"
        )
    if not np.all(np.isfinite(array)) or array.min() < 0 or array.sum() <= 0:
        raise InputError(f"{owner}: taps must be finite variances of at least 0, not all 0")
    return None if np.all(array == array.flat[0]) else _nested(array / array.sum())


# --- sizes ----------------------------------------------------------------------------------


def _resolve(name: Pair | str, kernel: int, stride: int, dilation: int, size: int | None) -> Pair:
    """A padding of one axis as (lo, hi); the size matters for the SAME rules only."""
    span = dilation * (kernel - 1)
    if not isinstance(name, str):
        return name
    if name == "valid":
        return (0, 0)
    if name == "causal":
        return (span, 0)
    if name == "same":
        return (span // 2, span - span // 2)
    # TensorFlow: total = max((⌈n/s⌉ − 1)·s + d(k−1) + 1 − n, 0); s | n on the unbounded grid.
    remainder = size % stride or stride if size is not None else stride
    total = max(span + 1 - remainder, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if name == "same_upper" else (large, small)


def _window_count(
    owner: str, size: int, pad: Pair, kernel: int, stride: int, dilation: int, ceil_mode: bool
) -> int:
    room = size + sum(pad) - dilation * (kernel - 1) - 1
    if room < 0:
        raise InputError(
            f"{owner}: a map of {size} pixels with padding {pad} is smaller than the kernel's "
            f"extent {dilation * (kernel - 1) + 1}; give a larger input_size or more padding"
        )
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    # A window that would start in the padding behind the map is dropped (PyTorch, ONNX).
    if ceil_mode and (count - 1) * stride >= size + pad[0]:
        count -= 1
    return count


# --- the base -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """Base of all layers. A layer without further fields passes every pixel on."""

    inputs: ClassVar[tuple[int, int | None]] = (1, 1)
    """Least and greatest number of maps that the layer reads (None: no limit)."""

    @property
    def kind(self) -> str:
        """The lower-case name used for automatic node names and in tables."""
        return type(self).__name__.lower()

    def bind(self, ndim: int) -> Self:
        """This layer for `ndim` axes: every value checked and spelled out per axis.

        Raises:
            InputError: a value breaks a rule; the message says which and the remedy.
        """
        owner, changes = type(self).__name__, {}
        for f in fields(self):
            value, rule = getattr(self, f.name), f.metadata.get("rule")
            if rule == "integer" and value is not None:
                changes[f.name] = _integers(owner, f.name, value, ndim, f.metadata["minimum"])
            elif rule == "padding":
                changes[f.name] = _pairs(owner, value, ndim, f.metadata.get("minimum", 0))
            elif f.name in ("channels", "groups") and value != "depthwise":
                _count(owner, f.name, value)
            elif f.name == "gain" and value is not None:
                _positive(owner, f.name, value)
        bound = replace(self, **changes)
        return bound._bound(ndim)

    def _bound(self, ndim: int) -> Self:
        """Checks and simplifications beyond one field; called by `bind`."""
        return self

    @property
    def implied_ndim(self) -> int | None:
        """The number of axes that a per-axis tuple of this layer implies, if there is one."""
        for f in fields(self):
            value = getattr(self, f.name)
            if f.metadata.get("rule") and isinstance(value, tuple | list):
                return len(value)
        return None

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        """Channels of the output map, given those of the maps read (None: not known)."""
        return channels[0]

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        """The primitive maps from input to output, in forward order; () where nothing moves.

        Args:
            size: size of the map that is read, or None on the unbounded grid.
        """
        return ()

    @property
    def pointwise_gain(self) -> float:
        """Gain of a layer that moves nothing."""
        return 1.0


def _sized(
    axes: Sequence[AxisMap], kind: Kind, gain: float, size: Size | None, out: Size | None, taps: Any
) -> SpatialMap:
    return SpatialMap(tuple(axes), kind, gain, taps, size, out)


@dataclass(frozen=True)
class Input(Layer):
    """The network's input map, with its number of channels where channels matter."""

    inputs: ClassVar[tuple[int, int | None]] = (0, 0)
    channels: int | None = None

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        return self.channels


@dataclass(frozen=True)
class Identity(Layer):
    """Passes its input on."""


# --- convolutions ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Convolution(Layer):
    kernel: Any = _per_axis()
    stride: Any = _per_axis(1)
    dilation: Any = _per_axis(1)
    padding: Any = _padding()

    channels: int | None = field(default=None, kw_only=True)
    groups: int | Literal["depthwise"] = field(default=1, kw_only=True)
    gain: float = field(default=1.0, kw_only=True)
    taps: Any = field(default=None, kw_only=True)

    def _bound(self, ndim: int) -> Self:
        taps = self.taps
        if taps is not None:
            taps = _normalised_taps(type(self).__name__, taps, self.kernel)
        channels, groups = self.channels, self.groups
        if channels is not None and groups != "depthwise" and channels % groups:
            raise InputError(
                f"{type(self).__name__}: groups={groups} must divide channels={channels}"
            )
        return replace(self, taps=taps)

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        if self.channels is None and self.groups == "depthwise":
            return channels[0]
        return self.channels

    def _spatial_taps(self) -> Any:
        return None if self.taps is None else factor(np.asarray(self.taps, dtype=np.float64))


@dataclass(frozen=True)
class Conv(_Convolution):
    """Convolution with independent zero-mean random weights.

    Args:
        kernel, stride, dilation: whole numbers of at least 1, or one per axis.
        padding: see the module's text.
        padding_mode: "zeros", "reflect", "replicate" or "circular".
        channels: output channels; needed only where channels part ways (concat, slices).
        groups: number of channel groups, or "depthwise" (one group per input channel).
        gain: Σ v, the gradient variance of one output unit summed over all taps.
        taps: relative variances of the taps, an array of shape `kernel`; None: all equal.
    """

    padding_mode: PaddingMode = field(default="zeros", kw_only=True)

    def _bound(self, ndim: int) -> Self:
        _choice("Conv", "padding_mode", self.padding_mode, get_args(PaddingMode))
        padding = []
        for pad, k, s, d in zip(self.padding, self.kernel, self.stride, self.dilation, strict=True):
            if pad == "same" and s > 1:
                raise InputError(
                    f"Conv: padding='same' (PyTorch's rule) needs stride 1, got {s}; "
                    f"use 'same_upper' for TensorFlow's rule"
                )
            sized = isinstance(pad, str) and pad.startswith("same_") and s > 1
            padding.append(pad if sized else _resolve(pad, k, s, d, None))
        mode = "zeros" if all(p == (0, 0) for p in padding) else self.padding_mode
        return super(Conv, replace(self, padding=tuple(padding), padding_mode=mode))._bound(ndim)

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        pads = _resolved_padding(self, size)
        before: tuple[SpatialMap, ...] = ()
        inner = size
        if size is not None and self.padding_mode != "zeros":
            before = Pad(pads, mode=self.padding_mode).bind(ndim).maps(size, ndim)
            inner, pads = before[0].size_out, ((0, 0),) * ndim
        out = _window_sizes("Conv", inner, pads, self.kernel, self.stride, self.dilation)
        axes = [
            Window(k, s, d, p[0])
            for k, s, d, p in zip(self.kernel, self.stride, self.dilation, pads, strict=True)
        ]
        return (*before, _sized(axes, "random", self.gain, inner, out, self._spatial_taps()))


def _resolved_padding(layer: Any, size: Size | None) -> tuple[Pair, ...]:
    sizes: Sequence[int | None] = (None,) * len(layer.kernel) if size is None else size
    dilations = getattr(layer, "dilation", (1,) * len(layer.kernel))
    return tuple(
        _resolve(*args)
        for args in zip(layer.padding, layer.kernel, layer.stride, dilations, sizes, strict=True)
    )


def _window_sizes(
    owner: str,
    size: Size | None,
    pads: Sequence[Pair],
    kernel: Size,
    stride: Size,
    dilation: Size,
    ceil_mode: bool = False,
) -> Size | None:
    if size is None:
        return None
    return tuple(
        _window_count(owner, *args, ceil_mode)
        for args in zip(size, pads, kernel, stride, dilation, strict=True)
    )


@dataclass(frozen=True)
class ConvTranspose(_Convolution):
    """Transposed convolution with independent zero-mean random weights.

    `padding` crops the output (PyTorch's convention); the output has
    ``(n−1)·stride + d(k−1) + 1 − lo − hi + output_padding`` pixels. `gain` is Σ v over the
    taps; each output reads only about 1/stride of them per axis, so a transposed convolution
    that keeps the variance (He et al. 2015) states a gain of Π stride.
    """

    output_padding: Any = field(default=0, kw_only=True, metadata={"rule": "integer", "minimum": 0})

    def _bound(self, ndim: int) -> Self:
        if any(isinstance(p, str) and p != "valid" for p in self.padding):
            raise InputError(
                f"ConvTranspose: padding={self.padding!r} must be numbers here; "
                f"a transposed convolution crops what its padding says"
            )
        padding = tuple((0, 0) if p == "valid" else p for p in self.padding)
        for extra, s, d in zip(self.output_padding, self.stride, self.dilation, strict=True):
            if extra >= max(s, d):
                raise InputError(
                    f"ConvTranspose: output_padding={extra} must be smaller than the stride {s} "
                    f"or the dilation {d}"
                )
        return super(ConvTranspose, replace(self, padding=padding))._bound(ndim)

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        axes = [
            Spread(k, s, d, p[0])
            for k, s, d, p in zip(
                self.kernel, self.stride, self.dilation, self.padding, strict=True
            )
        ]
        out = None
        if size is not None:
            out = tuple(
                (n - 1) * a.stride + a.span + 1 - sum(p) + extra
                for n, a, p, extra in zip(
                    size, axes, self.padding, self.output_padding, strict=True
                )
            )
            if min(out) < 1:
                raise InputError(
                    f"ConvTranspose: a map of {size} pixels shrinks to {out}; "
                    f"crop less (padding={self.padding})"
                )
        return (_sized(axes, "random", self.gain, size, out, self._spatial_taps()),)


# --- pooling --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pool(Layer):
    kernel: Any = _per_axis()
    stride: Any = _per_axis(None)
    dilation: Any = _per_axis(1)
    padding: Any = _padding()
    ceil_mode: bool = field(default=False, kw_only=True)

    def _bound(self, ndim: int) -> Self:
        if self.stride is None:
            return replace(self, stride=self.kernel)._bound(ndim)
        padding = []
        for pad, k, s, d in zip(self.padding, self.kernel, self.stride, self.dilation, strict=True):
            if pad == "same" and s > 1:
                raise InputError(
                    f"{type(self).__name__}: padding='same' needs stride 1, got {s}; "
                    f"use 'same_upper' for TensorFlow's rule"
                )
            sized = isinstance(pad, str) and pad.startswith("same_") and s > 1
            padding.append(pad if sized else _resolve(pad, k, s, d, None))
        return replace(self, padding=tuple(padding))

    def _pool_maps(self, size: Size | None, kind: Kind, border: bool) -> tuple[SpatialMap, ...]:
        pads = _resolved_padding(self, size)
        owner = type(self).__name__
        out = _window_sizes(
            owner, size, pads, self.kernel, self.stride, self.dilation, self.ceil_mode
        )
        axes: list[AxisMap] = []
        gain = 1.0
        for axis, (k, s, d, pad) in enumerate(
            zip(self.kernel, self.stride, self.dilation, pads, strict=True)
        ):
            window = Window(k, s, d, pad[0])
            n = None if size is None else size[axis]
            if (
                n is not None
                and out is not None
                and self._meets_border(window, n, out[axis], pad, border)
            ):
                axes.append(self._border_table(window, n, out[axis], pad))
            else:
                axes.append(window)
                gain *= 1 / k if kind == "fixed" else 1.0
        return (_sized(axes, kind, gain, size, out, None),)

    @staticmethod
    def _meets_border(window: Window, n: int, out: int, pad: Pair, border: bool) -> bool:
        """Whether some window's weights differ from the inner ones'."""
        last = (out - 1) * window.stride + window.span - window.lo
        if last >= n + pad[1]:
            return True  # ceil mode: the last window leaves the padded map
        return border and (window.lo > 0 or last >= n)

    def _border_table(self, window: Window, n: int, out: int, pad: Pair) -> Table:
        starts = np.arange(out, dtype=np.int64) * window.stride - window.lo
        offsets = np.arange(window.kernel) * window.dilation
        index = starts[:, None] + offsets
        taps = np.zeros((out, window.span + 1))
        taps[:, offsets] = self._border_taps(index, n, pad)
        return Table(starts, taps)

    def _border_taps(self, index: NDArray[np.int64], n: int, pad: Pair) -> NDArray[np.float64]:
        raise TypeError(f"{type(self).__name__} has no taps at the border")


def _share(valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """1/(number of valid taps) on the valid taps of each row."""
    return valid / np.maximum(valid.sum(axis=1, keepdims=True), 1)


@dataclass(frozen=True)
class MaxPool(_Pool):
    """Max-pooling; it routes: each of the k valid taps of a window gets the gradient with 1/k.

    Args:
        kernel, dilation: as in `Conv`.
        stride: default: the kernel.
        padding: see the module's text; padding never wins, so it gets nothing.
        ceil_mode: the last window may reach beyond the padding (PyTorch's rule).
    """

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        return self._pool_maps(size, "routing", border=True)

    def _border_taps(self, index: NDArray[np.int64], n: int, pad: Pair) -> NDArray[np.float64]:
        return _share((index >= 0) & (index < n))


@dataclass(frozen=True)
class AvgPool(_Pool):
    """Average pooling: fixed coefficients, whose squares carry the variance.

    Args:
        kernel, stride, dilation, padding, ceil_mode: as in `MaxPool`.
        count_include_pad: whether padding counts in the divisor (PyTorch's default).
    """

    count_include_pad: bool = field(default=True, kw_only=True)

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        return self._pool_maps(size, "fixed", border=not self.count_include_pad)

    def _border_taps(self, index: NDArray[np.int64], n: int, pad: Pair) -> NDArray[np.float64]:
        valid = (index >= 0) & (index < n)
        if not self.count_include_pad:
            return _share(valid) ** 2
        # What reaches beyond the padding (ceil mode) does not count in PyTorch's divisor.
        counted = (index >= -pad[0]) & (index < n + pad[1])
        return np.where(valid, 1.0 / np.maximum(counted.sum(axis=1, keepdims=True), 1), 0.0) ** 2


@dataclass(frozen=True)
class AdaptivePool(Layer):
    """Adaptive pooling to `output_size` pixels: windows ⌊o·n/m⌋ … ⌈(o+1)·n/m⌉ (PyTorch's rule).

    Its windows depend on the size of the map, so on the unbounded grid the map counts as
    having lost its spatial extent here.
    """

    output_size: Any = _per_axis(1)
    mode: Literal["avg", "max"] = "avg"

    def _bound(self, ndim: int) -> Self:
        _choice("AdaptivePool", "mode", self.mode, ("avg", "max"))
        return self

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        kind: Kind = "fixed" if self.mode == "avg" else "routing"
        if size is None:
            return (_sized([Everything()] * ndim, kind, 1.0, None, None, None),)
        tables = [_adaptive_table(n, m, kind) for n, m in zip(size, self.output_size, strict=True)]
        return (_sized(tables, kind, 1.0, size, self.output_size, None),)


def _adaptive_table(n: int, m: int, kind: Kind) -> Table:
    o = np.arange(m, dtype=np.int64)
    starts, stops = o * n // m, -(-(o + 1) * n // m)
    counts = (stops - starts)[:, None]
    taps = np.where(np.arange(counts.max()) < counts, 1.0 / counts, 0.0)
    return Table(starts, taps**2 if kind == "fixed" else taps)


# --- global layers --------------------------------------------------------------------------


@dataclass(frozen=True)
class GlobalPool(Layer):
    """Global pooling: one output that reads the whole map."""

    mode: Literal["avg", "max"] = "avg"

    def _bound(self, ndim: int) -> Self:
        _choice("GlobalPool", "mode", self.mode, ("avg", "max"))
        return self

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        kind: Kind = "fixed" if self.mode == "avg" else "routing"
        gain = 1 / math.prod(size) if size is not None and kind == "fixed" else 1.0
        out = None if size is None else (1,) * ndim
        return (_sized([Everything()] * ndim, kind, gain, size, out, None),)


@dataclass(frozen=True)
class FullyConnected(Layer):
    """A fully connected layer: one output position that reads the whole map.

    With `map_size` it is the convolution with that kernel which a fully connected layer is
    when the network runs on larger inputs; it then keeps its spatial extent.
    """

    channels: int | None = None
    map_size: Any = _per_axis(None)
    gain: float = field(default=1.0, kw_only=True)

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        return self.channels

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        if self.map_size is not None:
            return Conv(self.map_size, gain=self.gain).bind(ndim).maps(size, ndim)
        out = None if size is None else (1,) * ndim
        return (_sized([Everything()] * ndim, "random", self.gain, size, out, None),)


@dataclass(frozen=True)
class Attention(Layer):
    """Attention over positions (or any operator in which each output reads the whole map)."""

    gain: float = field(default=1.0, kw_only=True)

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        return (_sized([Everything()] * ndim, "random", self.gain, size, size, None),)


@dataclass(frozen=True)
class SqueezeExcite(Layer):
    """Squeeze-and-excitation: a gate computed from the global average multiplies the map.

    The direct path has gain 1. Through the gate a unit reads the whole map: an average with
    coefficients 1/N gives each of the N pixels the variance 1/N².
    """


@dataclass(frozen=True)
class Norm(Layer):
    """Normalisation.

    `kind_` "batch" (statistics fixed, as at inference), "channel" (over channels only, as
    ConvNeXt's layer norm) and "lrn" move nothing. "batch_train", "layer", "group" and
    "instance" normalise with statistics of the whole map: each output reads every pixel.
    """

    statistics: Literal["batch", "channel", "lrn", "batch_train", "layer", "group", "instance"] = (
        "batch"
    )
    gain: float = field(default=1.0, kw_only=True)

    def _bound(self, ndim: int) -> Self:
        names = ("batch", "channel", "lrn", "batch_train", "layer", "group", "instance")
        _choice("Norm", "statistics", self.statistics, names)
        return self

    @property
    def whole_map(self) -> bool:
        """Whether the statistics are taken over the whole map."""
        return self.statistics not in ("batch", "channel", "lrn")

    @property
    def pointwise_gain(self) -> float:
        return self.gain


# --- resizing -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Upsample(Layer):
    """Resizing by a rational scale, or to a given size (fixed coefficients).

    Args:
        scale: number above 0 or one per axis: int, "p/q" or Fraction (floats are taken as the
            nearest fraction with a denominator up to 1024).
        size: output size instead of a scale; needs a known input size.
        mode: "nearest" (⌊o/scale⌋, PyTorch), "nearest-exact" (pixel centres), "linear".
        coordinates: for "linear": "half_pixel" (PyTorch's align_corners=False), "align_corners"
            or "asymmetric" (o/scale).
    """

    scale: Any = None
    mode: Literal["nearest", "nearest-exact", "linear"] = "nearest"
    size: Any = field(default=None, kw_only=True, metadata={"rule": "integer", "minimum": 1})
    coordinates: Literal["half_pixel", "align_corners", "asymmetric"] = field(
        default="half_pixel", kw_only=True
    )

    @property
    def implied_ndim(self) -> int | None:
        return len(self.scale) if isinstance(self.scale, tuple | list) else super().implied_ndim

    def _bound(self, ndim: int) -> Self:
        _choice("Upsample", "mode", self.mode, ("nearest", "nearest-exact", "linear"))
        _choice(
            "Upsample",
            "coordinates",
            self.coordinates,
            ("half_pixel", "align_corners", "asymmetric"),
        )
        if (self.scale is None) == (self.size is None):
            raise InputError("Upsample: give either scale or size, and not both")
        coordinates = self.coordinates if self.mode == "linear" else "half_pixel"
        if self.scale is None:
            return replace(self, coordinates=coordinates)
        values = self.scale if isinstance(self.scale, tuple | list) else (self.scale,) * ndim
        if len(values) != ndim:
            raise InputError(
                f"Upsample: scale={self.scale!r} has {len(values)} values for {ndim} axes"
            )
        return replace(
            self, scale=tuple(_fraction("scale", v) for v in values), coordinates=coordinates
        )

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        if size is None:
            if self.scale is None:
                raise InputError(
                    f"Upsample: size={self.size} needs a known input size; give input_size, "
                    f"or scale instead of size"
                )
            if self.coordinates == "align_corners":
                raise InputError(
                    "Upsample: align_corners stretches with the size of the map; give input_size"
                )
            return (
                self._resize([self._axis(s, None, s.numerator) for s in self.scale], None, None),
            )
        out, axes = [], []
        for axis, n in enumerate(size):
            m = self.size[axis] if self.scale is None else int(n * self.scale[axis])
            if m < 1:
                raise InputError(f"Upsample: a map of {n} pixels shrinks to {m}; scale it less")
            out.append(m)
            axes.append(
                self._axis(Fraction(m, n) if self.scale is None else self.scale[axis], n, m)
            )
        return (self._resize(axes, size, tuple(out)),)

    @staticmethod
    def _resize(axes: Sequence[AxisMap], size: Size | None, out: Size | None) -> SpatialMap:
        gain = math.prod(a.kernel if isinstance(a, Spread) else 1 for a in axes)
        return _sized(axes, "fixed", float(gain), size, out, None)

    def _axis(self, scale: Fraction, n: int | None, rows: int) -> AxisMap:
        if scale.denominator == 1 and self.mode != "linear":
            return Spread(scale.numerator, scale.numerator)
        return self._table(scale, n, rows)

    def _table(self, scale: Fraction, n: int | None, rows: int) -> Table:
        """Rows o = 0 … rows−1, clamped to n pixels, or one period of the unbounded grid."""
        starts = np.zeros(rows, dtype=np.int64)
        taps = np.zeros((rows, 2 if self.mode == "linear" else 1))
        for o in range(rows):
            if self.mode == "nearest":
                at = Fraction(math.floor(o / scale))
            elif self.mode == "nearest-exact":
                at = Fraction(math.floor((o + Fraction(1, 2)) / scale))
            elif self.coordinates == "half_pixel":
                at = (o + Fraction(1, 2)) / scale - Fraction(1, 2)
            elif self.coordinates == "align_corners":
                at = Fraction(o * ((n or 1) - 1), max(rows - 1, 1))
            else:
                at = o / scale
            if n is not None:
                at = min(max(at, Fraction(0)), Fraction(n - 1))
            left = math.floor(at)
            weight = float(at - left)
            starts[o] = left
            taps[o, 0] = (1 - weight) ** 2
            if self.mode == "linear":
                taps[o, 1] = weight**2
        return Table(starts, taps, 0 if n is not None else scale.denominator)


def _fraction(name: str, value: Any) -> Fraction:
    try:
        if isinstance(value, float):
            result = Fraction(value).limit_denominator(1024)
        else:
            result = Fraction(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        raise InputError(f"Upsample: {name}={value!r} is not a number") from None
    if result <= 0:
        raise InputError(f"Upsample: {name}={value!r} must be above 0")
    return result


@dataclass(frozen=True)
class PixelShuffle(Layer):
    """Depth to space: channel c·f² + phase becomes pixel phase of channel c (PyTorch's order)."""

    factor: Any = _per_axis()

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        if channels[0] is None:
            return None
        block = math.prod(self.factor)
        if channels[0] % block:
            raise InputError(
                f"PixelShuffle: factor={self.factor} needs channels divisible by {block}, "
                f"got {channels[0]}"
            )
        return channels[0] // block

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        out = None if size is None else tuple(n * f for n, f in zip(size, self.factor, strict=True))
        axes = [Spread(f, f) for f in self.factor]
        return (_sized(axes, "routing", float(math.prod(self.factor)), size, out, None),)


@dataclass(frozen=True)
class PixelUnshuffle(Layer):
    """Space to depth, the inverse of `PixelShuffle`."""

    factor: Any = _per_axis()

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        return None if channels[0] is None else channels[0] * math.prod(self.factor)

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        if size is not None and any(n % f for n, f in zip(size, self.factor, strict=True)):
            raise InputError(
                f"PixelUnshuffle: factor={self.factor} must divide the map size {size}"
            )
        out = (
            None if size is None else tuple(n // f for n, f in zip(size, self.factor, strict=True))
        )
        axes = [Window(f, f) for f in self.factor]
        return (_sized(axes, "routing", 1.0, size, out, None),)


# --- padding and cropping -------------------------------------------------------------------


@dataclass(frozen=True)
class Pad(Layer):
    """Padding: "zeros", "reflect" (without the edge pixel), "replicate" or "circular"."""

    padding: Any = _padding()
    mode: PaddingMode = "zeros"

    def _bound(self, ndim: int) -> Self:
        _choice("Pad", "mode", self.mode, get_args(PaddingMode))
        if any(isinstance(p, str) for p in self.padding):
            raise InputError(
                f"Pad: padding={self.padding!r} must be numbers; a name needs a kernel"
            )
        return self

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        if size is None or self.mode == "zeros":
            return _shift(size, [(p[0], p[1]) for p in self.padding])
        out = tuple(n + sum(p) for n, p in zip(size, self.padding, strict=True))
        axes = [_border(self.mode, n, p) for n, p in zip(size, self.padding, strict=True)]
        return (_sized(axes, "fixed", 1.0, size, out, None),)


@dataclass(frozen=True)
class Crop(Layer):
    """Cuts pixels off: a number, or one number or (lo, hi) pair per axis."""

    amount: Any = field(default=0, metadata={"rule": "padding"})

    def _bound(self, ndim: int) -> Self:
        if any(isinstance(p, str) for p in self.amount):
            raise InputError(f"Crop: amount={self.amount!r} must be numbers")
        return self

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        return _shift(size, [(-p[0], -p[1]) for p in self.amount])


def _shift(size: Size | None, pads: Sequence[Pair]) -> tuple[SpatialMap, ...]:
    out = None if size is None else tuple(n + sum(p) for n, p in zip(size, pads, strict=True))
    if out is not None and min(out) < 1:
        raise InputError(f"Crop: a map of {size} pixels shrinks to {out}; crop less")
    return (_sized([Window(lo=p[0]) for p in pads], "fixed", 1.0, size, out, None),)


def _border(mode: PaddingMode, n: int, pad: Pair) -> AxisMap:
    if pad == (0, 0):
        return IDENTITY
    index = np.arange(-pad[0], n + pad[1])
    if mode == "replicate":
        index = index.clip(0, n - 1)
    elif mode == "circular":
        if max(pad) > n:
            raise InputError(f"Pad: circular padding {pad} must not exceed the map size {n}")
        index = index % n
    else:
        if max(pad) >= n:
            raise InputError(f"Pad: reflect padding {pad} must be smaller than the map size {n}")
        index = np.abs(index)
        index = np.where(index >= n, 2 * (n - 1) - index, index)
    return Table(index.astype(np.int64), np.ones((len(index), 1)))


# --- pointwise layers -----------------------------------------------------------------------


@dataclass(frozen=True)
class Activation(Layer):
    """An activation: a pointwise gain E[σ′(z)²].

    The default gain is 1/2 for "relu" and 1 for "identity" and everything else, which then
    counts as compensated by the initialisation. Luo et al. 2016 (§2.2) print 1/4 for ReLU,
    which is Var[σ′]; a constant factor leaves the image as it is.
    """

    function: str = "relu"
    gain: float | None = field(default=None, kw_only=True)

    @property
    def kind(self) -> str:
        return self.function

    @property
    def pointwise_gain(self) -> float:
        if self.gain is not None:
            return self.gain
        return E_SIGMA_PRIME_SQUARED.get(self.function, 1.0)


@dataclass(frozen=True)
class Dropout(Layer):
    """Dropout in training: each unit is kept with 1−p and scaled by 1/(1−p): gain 1/(1−p)."""

    p: float = 0.5

    def _bound(self, ndim: int) -> Self:
        ok = isinstance(self.p, int | float) and not isinstance(self.p, bool) and 0 <= self.p < 1
        if not ok:
            raise InputError(f"Dropout: p={self.p!r} must be at least 0 and below 1")
        return self

    @property
    def pointwise_gain(self) -> float:
        return 1 / (1 - self.p)


# --- merges and channels --------------------------------------------------------------------


@dataclass(frozen=True)
class Add(Layer):
    """Sum of maps (a map of one position or of one channel is broadcast)."""

    inputs: ClassVar[tuple[int, int | None]] = (1, None)

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        known = {c for c in channels if c is not None}
        wide = known - {1} or known
        if len(wide) > 1:
            raise InputError(
                f"{type(self).__name__}: the maps read have {sorted(known)} channels; "
                f"they must be equal"
            )
        return None if None in channels and not known - {1} else next(iter(wide), None)


@dataclass(frozen=True)
class Multiply(Add):
    """Product of maps: the gradient of each factor passes with gain 1."""


@dataclass(frozen=True)
class Concat(Layer):
    """Concatenation along the channels."""

    inputs: ClassVar[tuple[int, int | None]] = (1, None)

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        return None if None in channels else sum(c for c in channels if c is not None)


@dataclass(frozen=True)
class ChannelSlice(Layer):
    """Channels start … stop−1, every `step`-th (a split is one slice per part)."""

    start: int = 0
    stop: int | None = None
    step: int = 1

    def _bound(self, ndim: int) -> Self:
        _count("ChannelSlice", "step", self.step)
        return self

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        if channels[0] is None:
            raise InputError(
                "ChannelSlice: the number of channels must be known; "
                "give channels= to Input or to the layers before"
            )
        count = len(range(channels[0])[self.start : self.stop : self.step])
        if not count:
            raise InputError(
                f"ChannelSlice: {self.start}:{self.stop}:{self.step} takes none of the "
                f"{channels[0]} channels"
            )
        return count


@dataclass(frozen=True)
class ChannelShuffle(Layer):
    """ShuffleNet's shuffle: channels as a (groups, C/groups) table, transposed."""

    groups: int = 1

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        if channels[0] is not None and channels[0] % self.groups:
            raise InputError(
                f"ChannelShuffle: groups={self.groups} must divide the {channels[0]} channels"
            )
        return channels[0]


LAYERS: dict[str, type[Layer]] = {
    cls.__name__: cls
    for cls in (
        Input,
        Identity,
        Conv,
        ConvTranspose,
        MaxPool,
        AvgPool,
        AdaptivePool,
        GlobalPool,
        FullyConnected,
        Attention,
        SqueezeExcite,
        Norm,
        Upsample,
        PixelShuffle,
        PixelUnshuffle,
        Pad,
        Crop,
        Activation,
        Dropout,
        Add,
        Multiply,
        Concat,
        ChannelSlice,
        ChannelShuffle,
    )
}
"""Every layer by the name that Python, files and the command line share."""
