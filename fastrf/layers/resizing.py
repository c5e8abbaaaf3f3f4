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
from fastrf.layers.checks import checked, checked_size, choice, per_axis, scales, whole_per_axis
from fastrf.maps import IDENTITY, AxisMap, Size, SpatialMap, Spread, Table, Window


@dataclass(frozen=True)
class Upsample(Layer):
    """Resizing by a rational scale, or to a given size (fixed coefficients).

    Args:
        scale: number above 0 or one per axis: int, "p/q" or Fraction (floats are taken as the
            nearest fraction with a denominator up to 1024).
        size: output size instead of a scale; needs a known input size.
        mode: "nearest" (⌊o/scale⌋, PyTorch), "nearest-exact" (pixel centres), "linear", "cubic"
            (Keys' kernel with a = −3/4, as in PyTorch).
        coordinates: for "linear" and "cubic": "half_pixel" (PyTorch's align_corners=False),
            "align_corners" or "asymmetric" (o/scale).
    """

    scale: Any = per_axis(scales, None)
    mode: Literal["nearest", "nearest-exact", "linear", "cubic"] = checked(
        choice("nearest", "nearest-exact", "linear", "cubic"), "nearest"
    )
    size: Any = per_axis(whole_per_axis(1), None, kw_only=True)
    coordinates: Literal["half_pixel", "align_corners", "asymmetric"] = checked(
        choice("half_pixel", "align_corners", "asymmetric"), "half_pixel", kw_only=True
    )

    def _bound(self, ndim: int) -> Self:
        if (self.scale is None) == (self.size is None):
            raise InputError("Upsample: give either scale or size, and not both")
        return self if self._interpolates else replace(self, coordinates="half_pixel")

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
        if self.mode == "cubic":
            return _cubic(above, below, n, q)
        if n is not None:
            above = above.clip(0, (n - 1) * below)
        starts = above // below
        if self.mode != "linear":
            return Table(starts, np.ones((rows, 1)), 0 if n is not None else q)
        # Both weights from whole numbers: 1 − right would lose digits where right is near 1.
        right = above - starts * below
        weights = np.stack([below - right, right], axis=1) / below
        return Table(starts, weights**2, 0 if n is not None else q)


def _cubic(above: NDArray[np.int64], below: int, n: int | None, advance: int) -> Table:
    """Keys' cubic convolution (1981) at the positions above/below, with a = −3/4: taps that fall
    off the map are added to its edge pixels."""
    starts = above // below - 1
    t = (above - (starts + 1) * below) / below
    a = -0.75
    near, far = ([(a + 2) * d**3 - (a + 3) * d**2 + 1 for d in (t, 1 - t)]), (t + 1, 2 - t)
    outer = [a * (d**3 - 5 * d**2 + 8 * d - 4) for d in far]
    weights = np.stack([outer[0], *near, outer[1]], axis=1)
    if n is None:
        return Table(starts, weights**2, advance, weights)
    taps = (starts[:, None] + np.arange(4)).clip(0, n - 1)
    starts = np.ascontiguousarray(taps[:, 0])
    folded = np.zeros_like(weights)
    np.add.at(folded, (np.arange(len(taps))[:, None], taps - starts[:, None]), weights)
    return Table(starts, folded**2, 0, folded)


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
