"""Resizing with fixed coefficients, and pixel shuffles."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from fastrf.errors import InputError
from fastrf.layers.base import Layer
from fastrf.layers.checks import (
    check_room,
    checked,
    checked_size,
    choice,
    flag,
    keys_parameter,
    per_axis,
    scales,
    whole_per_axis,
)
from fastrf.maps import IDENTITY, AxisMap, Size, SpatialMap, Spread, Table, Window


@dataclass(frozen=True)
class Upsample(Layer):
    """Resizing by a rational scale, or to a given size (fixed coefficients).

    Args:
        scale: number above 0 or one per axis: int, "p/q" or Fraction (floats are taken as the
            nearest fraction with a denominator up to 1024).
        size: output size instead of a scale; needs a known input size.
        mode: "nearest" (⌊o/scale⌋, PyTorch), "nearest-exact" (pixel centres), "linear", "cubic"
            (Keys' cubic convolution, 1981).
        coordinates: for "linear" and "cubic": "half_pixel" (PyTorch's align_corners=False),
            "align_corners" or "asymmetric" (o/scale).
        antialias: for "linear" and "cubic": stretch the kernel to the output's pixels where the
            map gets smaller.
        a: Keys' parameter; default: −3/4, with `antialias` −1/2, as in PyTorch.
        outside: what taps beyond the map count for: its "edge", or nothing ("excluded"; the
            others are scaled up to sum 1). Default: "edge", with `antialias` "excluded", as in
            PyTorch.
    """

    scale: Any = per_axis(scales, None)
    mode: Literal["nearest", "nearest-exact", "linear", "cubic"] = checked(
        choice("nearest", "nearest-exact", "linear", "cubic"), "nearest"
    )
    size: Any = per_axis(whole_per_axis(1), None, kw_only=True)
    coordinates: Literal["half_pixel", "align_corners", "asymmetric"] = checked(
        choice("half_pixel", "align_corners", "asymmetric"), "half_pixel", kw_only=True
    )
    antialias: bool = checked(flag, False, kw_only=True)
    a: float | None = checked(keys_parameter, None, kw_only=True)
    outside: Literal["edge", "excluded"] | None = checked(
        choice("edge", "excluded"), None, kw_only=True
    )

    def _bound(self, ndim: int) -> Self:
        if (self.scale is None) == (self.size is None):
            raise InputError("Upsample: give either scale or size, and not both")
        if not self._interpolates:
            return replace(self, coordinates="half_pixel", antialias=False, a=None, outside=None)
        a = None if self.mode == "linear" else (-0.5 if self.antialias else -0.75)
        outside: Literal["edge", "excluded"] = "excluded" if self.antialias else "edge"
        return replace(
            self,
            a=a if self.a is None or self.mode == "linear" else self.a,
            outside=self.outside or outside,
        )

    @property
    def _interpolates(self) -> bool:
        return self.mode in ("linear", "cubic")

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        if size is None:
            return (self._unbounded(),)
        out = self.size
        if out is None:
            out = tuple(int(n * scale) for n, scale in zip(size, self.scale, strict=True))
        out = checked_size("Upsample", size, out, "scale it less")
        scales = [Fraction(m, n) for n, m in zip(size, out, strict=True)]
        if self.scale is not None:
            scales = self.scale
        axes = [self._axis(*axis) for axis in zip(scales, size, out, strict=True)]
        return (_resize(axes, size, out),)

    def _unbounded(self) -> SpatialMap:
        if self.scale is None:
            raise InputError(
                f"Upsample: size={self.size} needs a known input size; give input_size, "
                f"or scale instead of size"
            )
        if self.coordinates == "align_corners":
            raise InputError(
                "Upsample: align_corners stretches with the size of the map; give input_size"
            )
        return _resize([self._axis(s, None, s.numerator) for s in self.scale], None, None)

    def _axis(self, scale: Fraction, n: int | None, rows: int) -> AxisMap:
        if scale == 1:
            return IDENTITY
        if scale.denominator == 1 and not self._interpolates:
            return Spread(scale.numerator, scale.numerator)
        return self._table(scale, n, rows)

    def _table(self, scale: Fraction, n: int | None, rows: int) -> Table:
        """Rows o = 0 … rows−1, clamped to n pixels, or one period of the unbounded grid."""
        p, q = scale.numerator, scale.denominator
        width = 1
        if self._interpolates:
            reach = 1 if self.mode == "linear" else 2
            stretch = max(1 / scale, Fraction(1)) if self.antialias else Fraction(1)
            width = math.ceil(2 * reach * stretch)
        check_room("Upsample", rows, width, "give a smaller input_size, or scale less")
        o = np.arange(rows, dtype=np.int64)
        # The position that output o reads, as an exact fraction of whole numbers.
        if self.mode == "nearest-exact":
            above, below = (2 * o + 1) * q, 2 * p  # (o + 1/2)/scale
        elif self._interpolates and self.coordinates == "half_pixel":
            above, below = (2 * o + 1) * q - p, 2 * p  # (o + 1/2)/scale − 1/2
        elif self._interpolates and self.coordinates == "align_corners" and n is not None:
            above, below = o * (n - 1), max(rows - 1, 1)
        else:
            above, below = o * q, p  # o/scale
        if self._interpolates:
            stretch = max(1 / scale, Fraction(1)) if self.antialias else Fraction(1)
            kernel = _Kernel(stretch, self.a, self.outside == "excluded")
            return kernel.table(above, below, n, q)
        if n is not None:
            above = above.clip(0, (n - 1) * below)
        return Table(above // below, np.ones((rows, 1)), 0 if n is not None else q)


@dataclass(frozen=True, slots=True)
class _Kernel:
    """An interpolation kernel.

    Attributes:
        stretch: pixels per unit of the kernel's argument, at least 1.
        a: parameter of Keys' cubic, which reaches 2 units to either side; None: the triangle,
            which reaches 1.
        excluded: whether taps beyond the map count for nothing, and not for its edge.
    """

    stretch: Fraction
    a: float | None
    excluded: bool

    def table(self, above: NDArray[np.int64], below: int, n: int | None, advance: int) -> Table:
        """The taps at the positions above/below of a map of n pixels (None: of any)."""
        reach, whole = self.stretch * (1 if self.a is None else 2), self.stretch.denominator
        first = (above * reach.denominator - reach.numerator * below) // (
            below * reach.denominator
        ) + 1
        read = first[:, None] + np.arange(math.ceil(2 * reach))
        distance = np.abs(read * below - above[:, None]) * whole
        weights = self._at(distance, below * self.stretch.numerator)
        if n is not None and self.excluded:
            weights = np.where((read >= 0) & (read < n), weights, 0.0)
        if self.stretch > 1 or self.excluded:
            weights = weights / weights.sum(axis=1, keepdims=True)
        starts = first
        if n is not None:
            # Taps beyond the map are added to its edge pixels.
            taps = read.clip(0, n - 1)
            starts = np.ascontiguousarray(taps[:, 0])
            folded = np.zeros_like(weights)
            np.add.at(folded, (np.arange(len(taps))[:, None], taps - starts[:, None]), weights)
            weights = folded
        negative = self.a is not None and weights.min() < 0
        return Table(
            starts, weights**2, 0 if n is not None else advance, weights if negative else None
        )

    def _at(self, distance: NDArray[np.int64], unit: int) -> NDArray[np.float64]:
        """The kernel at distance/unit."""
        if self.a is None:
            # From whole numbers: 1 − distance would lose digits where that is near 1.
            return (unit - distance).clip(0) / unit
        d, a = distance / unit, self.a
        near = (a + 2) * d**3 - (a + 3) * d**2 + 1
        far = a * (d**3 - 5 * d**2 + 8 * d - 4)
        found: NDArray[np.float64] = np.where(d <= 1, near, np.where(d < 2, far, 0.0))
        return found


def _resize(axes: Sequence[AxisMap], size: Size | None, out: Size | None) -> SpatialMap:
    gain = math.prod(a.kernel if isinstance(a, Spread) else 1 for a in axes)
    return SpatialMap(tuple(axes), "fixed", float(gain), None, size, out)


@dataclass(frozen=True)
class PixelShuffle(Layer):
    """Depth to space: channel c·f² + phase becomes pixel phase of channel c (PyTorch's order)."""

    factor: Any = per_axis(whole_per_axis(1))

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        if channels[0] is None:
            return None
        block: int = math.prod(self.factor)
        if channels[0] % block:
            raise InputError(
                f"PixelShuffle: factor={self.factor} needs channels divisible by {block}, "
                f"got {channels[0]}"
            )
        return channels[0] // block

    def told(self, channels: int | None) -> int | None:
        return None if channels is None else channels * math.prod(self.factor)

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        axes = tuple(Spread(f, f) for f in self.factor)
        out = None
        if size is not None:
            out = tuple(n * f for n, f in zip(size, self.factor, strict=True))
            out = checked_size("PixelShuffle", size, out, "")
        return (SpatialMap(axes, "routing", float(math.prod(self.factor)), None, size, out),)


@dataclass(frozen=True)
class PixelUnshuffle(Layer):
    """Space to depth, the inverse of `PixelShuffle`."""

    factor: Any = per_axis(whole_per_axis(1))

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        return None if channels[0] is None else channels[0] * math.prod(self.factor)

    def told(self, channels: int | None) -> int | None:
        return None if channels is None else channels // math.prod(self.factor) or None

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        axes = tuple(Window(f, f) for f in self.factor)
        out = None
        if size is not None:
            if any(n % f for n, f in zip(size, self.factor, strict=True)):
                raise InputError(
                    f"PixelUnshuffle: factor={self.factor} must divide the map size {size}; "
                    f"choose another input_size, or Pad before"
                )
            out = tuple(n // f for n, f in zip(size, self.factor, strict=True))
        return (SpatialMap(axes, "routing", 1.0, None, size, out),)
