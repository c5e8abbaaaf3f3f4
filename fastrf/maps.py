"""Primitive axis maps: the few linear maps that every layer lowers to (all indices per axis).

A layer reads a map x and writes a map y. Along one axis it is one of

=============  ==============================================================================
`Window`       ``y[o] = Σ_m w[m] · x[o·stride + m·dilation − lo]``  (convolution, pooling, padding)
`Spread`       ``y[o·stride + m·dilation − lo] += w[m] · x[o]``  (transposed convolution)
`Table`        ``y[o] = Σ_m w[o][m] · x[start(o) + m]``, periodic in o  (resizing, borders)
`Everything`   each y reads every x  (global pooling, attention)
=============  ==============================================================================

A `SpatialMap` joins one axis map per axis with the variances v of its taps. What reads x at
indices outside 0 … n−1 reads padding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["random", "routing", "fixed"]
"""How a map's weights behave: independent zero-mean random; routed to one of the taps
(max-pooling); or fixed coefficients, whose squares the taps are (average pooling, resizing)."""

Size = tuple[int, ...]

SpatialTaps = tuple[NDArray[np.float64] | None, ...] | NDArray[np.float64] | None
"""Relative variances of a kernel's taps: all equal (None), a product with one vector per axis
(None on an axis of equal taps), or one array of the kernel's shape."""


@dataclass(frozen=True, slots=True)
class Window:
    """``y[o] = Σ_{m<kernel} w[m] · x[o·stride + m·dilation − lo]``."""

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    lo: int = 0

    @property
    def span(self) -> int:
        """Distance from the first tap to the last one, in pixels of x."""
        return self.dilation * (self.kernel - 1)


@dataclass(frozen=True, slots=True)
class Spread:
    """``y[o·stride + m·dilation − lo] += w[m] · x[o]``: the transpose of a `Window`."""

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    lo: int = 0

    @property
    def span(self) -> int:
        """Distance from the first tap to the last one, in pixels of y."""
        return self.dilation * (self.kernel - 1)


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """``y[o] = Σ_m taps[p, m] · x[starts[p] + advance·(o div P) + m]`` with ``p = o mod P``.

    P = len(starts) is the period. On a map of known size P is the size of y, so each output has
    its own row; on the unbounded grid a table describes a resize by the rational P/advance.
    `taps` holds variances, not coefficients; a tap of 0 is no connection. `coefficients` are what
    fixed taps are squares of, where some of them are negative; None: the nonnegative roots.
    """

    starts: NDArray[np.int64]
    taps: NDArray[np.float64]
    advance: int = 0
    coefficients: NDArray[np.float64] | None = None

    @property
    def period(self) -> int:
        """Number of rows after which the table repeats, moved on by `advance`."""
        return len(self.starts)

    def rows(self, first: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Starts and taps of the outputs first … first+count−1."""
        o = np.arange(first, first + count)
        turn, phase = np.divmod(o, self.period)
        return self.starts[phase] + self.advance * turn, self.taps[phase]


@dataclass(frozen=True, slots=True)
class Everything:
    """Each output reads every input, with equal variance."""


AxisMap = Window | Spread | Table | Everything

IDENTITY = Window()


@dataclass(frozen=True, slots=True, eq=False)
class SpatialMap:
    """One axis map per axis, and the variances of the taps.

    Attributes:
        axes: one `AxisMap` per axis.
        kind: how the weights behave, see `Kind`.
        gain: Σ v, the variance summed over all taps of one output (for a `Spread`: of one
            input). Rows of a `Table` carry their own sums; `gain` multiplies them.
        taps: None for equal taps; a tuple with one vector per axis (each of sum 1, None on an
            axis of equal taps or a `Table`) for a product; or one array of shape `kernel`,
            of sum 1, for taps that are no product.
        size_in, size_out: map sizes, or None on the unbounded grid.
        coefficients: what the taps of a fixed map are squares of, where some of them are
            negative, in the form of `taps` (each vector or array with squares of sum 1); None:
            the nonnegative roots.
    """

    axes: tuple[AxisMap, ...]
    kind: Kind = "random"
    gain: float = 1.0
    taps: SpatialTaps = None
    size_in: Size | None = None
    size_out: Size | None = None
    coefficients: SpatialTaps = None

    @property
    def is_global(self) -> bool:
        """True where an output reads the whole input along some axis."""
        return any(isinstance(axis, Everything) for axis in self.axes)

    @property
    def overlaps(self) -> bool:
        """True where an input pixel is read by more than one output pixel."""
        return any(_overlaps(axis) for axis in self.axes)

    @property
    def correlates(self) -> bool:
        """True where an output pixel reads more than one input pixel, so that fixed
        coefficients hand one gradient to several pixels."""
        return any(_spreads(axis) for axis in self.axes)

    @property
    def separable(self) -> bool:
        """True where the taps are a product of one vector per axis."""
        return not isinstance(self.taps, np.ndarray)

    def axis_taps(self, axis: int) -> NDArray[np.float64] | None:
        """The variances along one axis of a separable map (sum 1), None where all are equal."""
        if isinstance(self.taps, np.ndarray):
            raise TypeError("taps that are no product have no taps along one axis")
        return None if self.taps is None else self.taps[axis]


def _overlaps(axis: AxisMap) -> bool:
    if isinstance(axis, Window):
        # Outputs o and o + t meet at taps m and m − t·s/g (steps of d/g outputs, g = gcd(s, d)).
        return axis.kernel > axis.stride // math.gcd(axis.stride, axis.dilation)
    if isinstance(axis, Spread):
        return axis.kernel > 1
    if isinstance(axis, Everything):
        return True
    starts, taps = axis.rows(0, axis.period + (axis.period if axis.advance else 0))
    hit = (starts[:, None] + np.arange(taps.shape[1]))[taps > 0]
    return len(np.unique(hit)) < len(hit)


def _spreads(axis: AxisMap) -> bool:
    if isinstance(axis, Spread):
        # Taps m and m′ meet in one output when they differ by s/g steps, g = gcd(s, d).
        return axis.kernel > axis.stride // math.gcd(axis.stride, axis.dilation)
    if isinstance(axis, Table):
        return bool(np.any((axis.taps > 0).sum(axis=1) > 1))
    return isinstance(axis, Everything) or axis.kernel > 1


def factor(taps: NDArray[np.float64]) -> SpatialTaps:
    """The simplest form of the variances `taps` (of sum 1): equal, a product, or as they are.

    A product is recognised to 4 ulp per factor, the rounding of forming it.
    """
    if np.all(taps == taps.flat[0]):
        return None
    total = float(taps.sum())
    marginals: list[NDArray[np.float64]] = []
    for axis in range(taps.ndim):
        others = tuple(a for a in range(taps.ndim) if a != axis)
        marginals.append(taps.sum(axis=others) / total)
    product: NDArray[np.float64] = np.ones(())
    for vector in marginals:
        product = np.multiply.outer(product, vector)
    bound = 4 * taps.ndim * max(taps.shape) * np.finfo(np.float64).eps
    if np.all(np.abs(product * total - taps) <= bound * taps):
        return tuple(None if np.all(v == v[0]) else v for v in marginals)
    whole: NDArray[np.float64] = taps / total
    return whole
