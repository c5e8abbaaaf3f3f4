"""Pooling: over windows, adaptive and global."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from fastrf.layers.base import Layer
from fastrf.layers.checks import Pair, check_room, checked, choice, flag, per_axis, whole_per_axis
from fastrf.layers.windows import Windowed
from fastrf.maps import AxisMap, Everything, Kind, Size, SpatialMap, Table, Window

PoolMode = Literal["avg", "max"]
_KIND: dict[PoolMode, Kind] = {"avg": "fixed", "max": "routing"}
# (indices of pixels, one row per window; how many pixels there are; padding) → variances of taps
_BorderTaps = Callable[[NDArray[np.int64], int, Pair], NDArray[np.float64]]


# --- windows --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Pool(Windowed):
    stride: Any = per_axis(whole_per_axis(1), None)
    ceil_mode: bool = checked(flag, False, kw_only=True)

    def _bound(self, ndim: int) -> Self:
        settled = self if self.stride is not None else replace(self, stride=self.kernel)
        return replace(settled, padding=settled._settled_padding())

    def _pool_maps(
        self, size: Size | None, kind: Kind, border: bool, border_taps: _BorderTaps
    ) -> tuple[SpatialMap, ...]:
        """The map of the pool.

        Args:
            size: size of the map that is read.
            kind: "routing" or "fixed".
            border: whether windows that meet the padding weigh their taps differently.
            border_taps: how windows that meet the border weigh them.
        """
        pads = self._pads(size)
        out = self._size_out(size, pads, self.ceil_mode)
        axes: list[AxisMap] = []
        gain = 1.0
        window = (self.kernel, self.stride, self.dilation, pads)
        for axis, (k, s, d, pad) in enumerate(zip(*window, strict=True)):
            inner = Window(k, s, d, pad[0])
            if size is not None and out is not None:
                n, m = size[axis], out[axis]
                if _meets_border(inner, n, m, pad, border):
                    axes.append(self._border_table(inner, n, m, pad, border_taps))
                    continue
            axes.append(inner)
            gain *= 1 / k if kind == "fixed" else 1.0
        return (SpatialMap(tuple(axes), kind, gain, None, size, out),)

    def _border_table(
        self, window: Window, n: int, out: int, pad: Pair, border_taps: _BorderTaps
    ) -> Table:
        remedy = "give a smaller input_size or kernel"
        check_room(type(self).__name__, out, window.span + 1, remedy)
        starts = np.arange(out, dtype=np.int64) * window.stride - window.lo
        offsets = np.arange(window.kernel) * window.dilation
        taps = np.zeros((out, window.span + 1))
        taps[:, offsets] = border_taps(starts[:, None] + offsets, n, pad)
        return Table(starts, taps)


def _meets_border(window: Window, n: int, out: int, pad: Pair, border: bool) -> bool:
    """Whether some window's weights differ from the inner ones'."""
    last = (out - 1) * window.stride + window.span - window.lo
    if last >= n + pad[1]:
        return True  # ceil mode: the last window leaves the padded map
    return border and (window.lo > 0 or last >= n)


def _routing_taps(index: NDArray[np.int64], n: int, _pad: Pair) -> NDArray[np.float64]:
    return _share((index >= 0) & (index < n))


def _share(valid: NDArray[np.bool_]) -> NDArray[np.float64]:
    """1/(number of valid taps) on the valid taps of each row."""
    return np.where(valid, 1.0 / np.maximum(valid.sum(axis=1, keepdims=True), 1), 0.0)


@dataclass(frozen=True)
class MaxPool(_Pool):
    """Max-pooling; it routes: each of the k valid taps of a window gets the gradient with 1/k.

    Args:
        kernel, dilation: as in `Conv`.
        stride: default: the kernel.
        padding: a number or a name, see `fastrf.layers`; padding never wins, so it gets nothing.
        ceil_mode: the last window may reach beyond the padding (PyTorch's rule).
    """

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        return self._pool_maps(size, "routing", True, _routing_taps)


@dataclass(frozen=True)
class AvgPool(_Pool):
    """Average pooling: fixed coefficients, whose squares carry the variance.

    Args:
        kernel, stride, dilation, padding, ceil_mode: as in `MaxPool`.
        count_include_pad: whether padding counts in the divisor (PyTorch's default).
    """

    count_include_pad: bool = checked(flag, True, kw_only=True)

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        return self._pool_maps(size, "fixed", not self.count_include_pad, self._border_taps)

    def _border_taps(self, index: NDArray[np.int64], n: int, pad: Pair) -> NDArray[np.float64]:
        valid = (index >= 0) & (index < n)
        if not self.count_include_pad:
            return _share(valid) ** 2
        # What reaches beyond the padding (ceil mode) does not count in PyTorch's divisor.
        counted = (index >= -pad[0]) & (index < n + pad[1])
        return np.where(valid, 1.0 / np.maximum(counted.sum(axis=1, keepdims=True), 1), 0.0) ** 2


# --- adaptive and global --------------------------------------------------------------------


@dataclass(frozen=True)
class AdaptivePool(Layer):
    """Adaptive pooling to `output_size` pixels: windows ⌊o·n/m⌋ … ⌈(o+1)·n/m⌉ (PyTorch's rule).

    Its windows depend on the size of the map, so on the unbounded grid the map counts as
    having lost its spatial extent here.
    """

    output_size: Any = per_axis(whole_per_axis(1), 1)
    mode: PoolMode = checked(choice("avg", "max"), "avg")

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        kind = _KIND[self.mode]
        if size is None:
            return (SpatialMap((Everything(),) * ndim, kind),)
        axes: list[AxisMap] = []
        gain = 1.0
        for n, m in zip(size, self.output_size, strict=True):
            axes.append(Everything() if m == 1 else _adaptive_table(n, m, kind))
            gain *= 1 / n if m == 1 and kind == "fixed" else 1.0
        return (SpatialMap(tuple(axes), kind, gain, None, size, self.output_size),)


def _adaptive_table(n: int, m: int, kind: Kind) -> Table:
    check_room("AdaptivePool", m, -(-n // m) + 1, "give a smaller input_size or output_size")
    o = np.arange(m, dtype=np.int64)
    starts, stops = o * n // m, -(-(o + 1) * n // m)
    counts = (stops - starts)[:, None]
    taps = np.where(np.arange(counts.max()) < counts, 1.0 / counts, 0.0)
    return Table(starts, taps**2 if kind == "fixed" else taps)


@dataclass(frozen=True)
class GlobalPool(Layer):
    """Global pooling: one output that reads the whole map."""

    mode: PoolMode = checked(choice("avg", "max"), "avg")

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        kind = _KIND[self.mode]
        gain = 1 / math.prod(size) if size is not None and kind == "fixed" else 1.0
        out = None if size is None else (1,) * ndim
        return (SpatialMap((Everything(),) * ndim, kind, gain, None, size, out),)
