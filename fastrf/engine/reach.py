"""What one plane's image can occupy, along each axis: windows with bounds of what lies outside.

`Reach` is carried backwards through maps (`transposed`), as images will be; where a network has a
transfer function, the algebra `Reaches` gives the reach of a thousand equal layers at the cost of
one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from fastrf.engine.transfer import Jump
from fastrf.engine.windows import Span, reached, united
from fastrf.maps import AxisMap, Everything, SpatialMap, Spread, Window


@dataclass(frozen=True, slots=True)
class Reach:
    """What one axis of a plane's image can occupy.

    Attributes:
        span: the window that the maps allow.
        centre: interval that holds the mean of every path.
        proxy: variance of a Gaussian whose tails bound every path's; infinite where no bound is
            known. Positions within a span w add w²/4 (Hoeffding 1963), k equally likely ones,
            d apart, their own variance d²(k² − 1)/12: the logarithm of their generating function,
            Σ log(1 + θ²/a²) over its zeros ia, is at most Σ θ²/a².
    """

    span: Span
    centre: tuple[float, float]
    proxy: float

    def within(self, nats: float) -> Span:
        """The part of the window outside which every value is below e^−nats of the mass."""
        if math.isinf(self.proxy) or math.isinf(nats):
            return self.span
        radius = math.sqrt(2 * self.proxy * nats) + 1
        start = max(self.span[0], math.floor(self.centre[0] - radius))
        stop = min(self.span[0] + self.span[1], math.ceil(self.centre[1] + radius) + 1)
        return start, stop - start

    def followed(self, other: Reach) -> Reach:
        """Of the sum of two positions that are independent of each other."""
        span = (self.span[0] + other.span[0], self.span[1] + other.span[1] - 1)
        centre = (self.centre[0] + other.centre[0], self.centre[1] + other.centre[1])
        return Reach(span, centre, self.proxy + other.proxy)

    def behind(self, window: Window, taps: Any, layers: int) -> Reach:
        """Of what so many equal layers without stride hand back, which no border cuts off."""
        first, count = self.span
        shift = layers * (_mean_tap(window, taps) - window.lo)
        centre = (self.centre[0] + shift, self.centre[1] + shift)
        span = (first - layers * window.lo, count + layers * window.span)
        return Reach(span, centre, self.proxy + layers * _proxy(window, taps))

    def merged(self, other: Reach) -> Reach:
        centre = (min(self.centre[0], other.centre[0]), max(self.centre[1], other.centre[1]))
        return Reach(united(self.span, other.span), centre, max(self.proxy, other.proxy))


class Reaches:
    """The algebra (`transfer.Algebra`) of reaches, on the input grid, of unit 0."""

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim

    def one(self) -> tuple[Reach, ...]:
        return (Reach((0, 1), (0.0, 0.0), 0.0),) * self.ndim

    def of(self, move: SpatialMap, jump: Jump) -> tuple[Reach, ...]:
        found = []
        for i, (axis, j) in enumerate(zip(move.axes, jump, strict=True)):
            assert isinstance(axis, Window)
            centre = j * (_mean_tap(axis, marginal(move, i)) - axis.lo)
            span = (-j * axis.lo, j * axis.span + 1)
            found.append(Reach(span, (centre, centre), j * j * _proxy(axis, marginal(move, i))))
        return tuple(found)

    def mixed(self, terms: Sequence[tuple[float, tuple[Reach, ...]]]) -> tuple[Reach, ...]:
        return reduce(merged, (reach for _, reach in terms))

    def times(self, a: tuple[Reach, ...], b: tuple[Reach, ...]) -> tuple[Reach, ...]:
        return tuple(x.followed(y) for x, y in zip(a, b, strict=True))

    def power(self, a: tuple[Reach, ...], n: int) -> tuple[Reach, ...]:
        return tuple(
            Reach(
                (n * r.span[0], n * (r.span[1] - 1) + 1),
                (n * r.centre[0], n * r.centre[1]),
                n * r.proxy,
            )
            for r in a
        )


def merged(a: tuple[Reach, ...], b: tuple[Reach, ...]) -> tuple[Reach, ...]:
    found: list[Reach] = []
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        alike = i and x is a[i - 1] and y is b[i - 1]
        found.append(found[-1] if alike else x.merged(y))
    return tuple(found)


def tail_nats(tail: float | None, parts: int) -> float:
    """Beyond so many nats a Gaussian bound leaves less than what each of 2·parts sides may drop."""
    return math.inf if tail is None else math.log(2 * parts / tail)


def pixels_of(reach: tuple[Reach, ...], nats: float) -> int:
    return math.prod([max(r.within(nats)[1], 0) for r in reach])


# --- one map ---------------------------------------------------------------------------------


def marginal(move: SpatialMap, axis: int) -> Any:
    """The variances of the taps along one axis (sum 1), None where all are equal."""
    if isinstance(move.taps, np.ndarray):
        return move.taps.sum(axis=tuple(a for a in range(move.taps.ndim) if a != axis))
    return move.axis_taps(axis)


def _mean_tap(window: Window, taps: Any) -> float:
    """Mean distance of a window's taps from the first one, in pixels of x."""
    if taps is None:
        return window.span / 2
    return float(taps @ np.arange(window.kernel)) * window.dilation


def _proxy(window: Window, taps: Any) -> float:
    """What a window's taps add to `Reach.proxy`."""
    if taps is None:
        return window.dilation**2 * (window.kernel**2 - 1) / 12
    return window.span**2 / 4


def transposed(axis: AxisMap, reach: Reach, size: int | None, taps: Any) -> Reach:
    if isinstance(axis, Everything) and size is None:
        return reach  # the engine refuses it with the layer's name
    whole, span = reached(axis, reach.span, size)
    low, high = reach.centre
    if span != whole:
        # What a border leaves over has moments of its own, and little mass to measure it by.
        return Reach(span, (low, high), math.inf)
    if isinstance(axis, Window):
        shift, factor = _mean_tap(axis, taps) - axis.lo, float(axis.stride)
        centre = (low * factor + shift, high * factor + shift)
        return Reach(span, centre, reach.proxy * factor**2 + _proxy(axis, taps))
    phases = axis.stride // math.gcd(axis.stride, axis.dilation) if isinstance(axis, Spread) else 0
    if isinstance(axis, Spread) and (phases == 1 or (taps is None and axis.kernel % phases == 0)):
        # Taps of one phase only; which ones depends on the position, so the centre is a range.
        # Phases that pass different masses would tilt the distribution: no bound for them.
        width = (axis.span + axis.stride) / axis.stride
        centre = ((low + axis.lo - axis.span) / axis.stride, (high + axis.lo) / axis.stride)
        return Reach(span, centre, reach.proxy / axis.stride**2 + width**2 / 4)
    return Reach(span, (span[0], span[0] + span[1]), math.inf)
