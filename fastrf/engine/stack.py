"""Covariances of a plane's gradient at several lags, as one array, and sums of such stacks.

R_−τ[i] = R_τ[i − τ], so that of both one is held: lags along the first axis are not negative. Along
the others there is with each lag its negative.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastrf.arrays import Array
from fastrf.engine.coherence import Lags
from fastrf.engine.scaled import Headroom, Scaled
from fastrf.engine.sight import log2_of_sum
from fastrf.engine.windows import Span, united


@dataclass(frozen=True, slots=True)
class Stack:
    """Covariances of a plane's gradient: value = array · scale.

    Attributes:
        array: Cov(g[i], g[i + τ]), of shape (lags per axis …, pixels per axis …), contiguous; 0
            where i or i + τ is off the window.
        lags: τ of each index of the first axes, ascending.
        origin: i of the first pixel, per axis.
        scale: factor of all values.
        peak: upper bound of log2 of the largest absolute value in `array`.
        signed: whether values may be negative.
    """

    array: Array
    lags: tuple[tuple[int, ...], ...]
    origin: tuple[int, ...]
    scale: Scaled
    peak: float
    signed: bool = False

    @property
    def ndim(self) -> int:
        return len(self.lags)

    @property
    def spans(self) -> list[Span]:
        return list(zip(self.origin, self.array.shape[self.ndim :], strict=True))

    @property
    def existing(self) -> Lags:
        return tuple(map(frozenset, self.lags))

    @property
    def here(self) -> tuple[int, ...]:
        """Where lag 0 is."""
        return tuple(axis.index(0) for axis in self.lags)

    @property
    def is_alone(self) -> bool:
        """Whether lag 0 is all there is."""
        return all(len(axis) == 1 for axis in self.lags)

    def times(self, factor: float) -> Stack:
        if factor == 1:
            return self
        # Not `replace`, which took a fifth of the time where small maps are followed.
        scale = self.scale * factor
        return Stack(self.array, self.lags, self.origin, scale, self.peak, self.signed)

    def whole(self, xp: Any) -> Stack:
        """With the other lags beside those that are held."""
        held, ndim, pixels = self.lags[0], self.ndim, self.array.shape[self.ndim :]
        if len(held) == 1:
            return self
        others = len(held) - 1
        array = xp.zeros((others + len(held), *self.array.shape[1:]), self.array.dtype)
        array[others:] = self.array
        beyond = [axis[::-1] for axis in self.lags[1:]]  # in this order their negatives ascend
        for at in np.ndindex(others, *self.array.shape[1:ndim]):
            lag = [held[others - at[0]], *(axis[n] for axis, n in zip(beyond, at[1:], strict=True))]
            source = (
                others - at[0],
                *(len(axis) - 1 - n for axis, n in zip(beyond, at[1:], strict=True)),
            )
            to, of = zip(*map(_moved, lag, pixels), strict=True)
            array[(*at, *to)] = self.array[(*source, *of)]
        lags = (*(-t for t in held[:0:-1]), *held)
        return replace(self, array=array, lags=(lags, *self.lags[1:]))

    def begun(self, axis: int, start: int) -> Stack:
        """The same, with another first pixel along one axis."""
        origin = (*self.origin[:axis], start, *self.origin[axis + 1 :])
        return Stack(self.array, self.lags, origin, self.scale, self.peak, self.signed)

    def picked(self, lags: Lags) -> Stack:
        """The same with no other lags than these."""
        array, own = self.array, list(self.lags)
        for axis, (have, some) in enumerate(zip(self.lags, lags, strict=True)):
            if not some.issuperset(have):
                own[axis] = tuple(t for t in have if t in some)
                array = array.take([have.index(t) for t in own[axis]], axis=axis)
        return self if array is self.array else replace(self, array=array, lags=tuple(own))


def _moved(by: int, count: int) -> tuple[slice, slice]:
    """Where so many pixels come to when they move, and which of them, of those that stay among
    them."""
    return slice(max(by, 0), max(count + min(by, 0), 0)), slice(max(-by, 0), max(count - by, 0))


def held_of(lags: Lags) -> Lags:
    """Those lags that are held."""
    return (frozenset(t for t in lags[0] if t >= 0), *lags[1:])


def in_order(lags: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(lags))


class Sums:
    """Sums and scales of stacks of one dtype.

    Args:
        dtype: of their arrays.
        xp: the namespace of their arrays. What is looked at on a GPU is waited for: after each
            layer that moves pixels, and where a bound comes close to the type's range.
    """

    def __init__(self, dtype: np.dtype[Any], xp: Any) -> None:
        self.dtype, self.xp, self.room = dtype, xp, Headroom.of(dtype)

    def sum(self, a: Stack | None, b: Stack) -> Stack:
        """The sum of two stacks of one plane, on the smallest window that holds both."""
        if a is None:
            return b
        if b.scale.exponent + b.peak > a.scale.exponent + a.peak:
            a, b = b, a
        a = self.lowered(a, 1.0)
        ratio = self.dtype.type(b.scale.over(a.scale))
        # Of many like stacks the bound grows with the logarithm of their number: by 1 at each, room
        # would run out.
        peak = log2_of_sum(a.peak, b.peak + math.log2(ratio)) if ratio else a.peak
        lags, origin = a.lags, a.origin
        if lags == b.lags and origin == b.origin and a.array.shape == b.array.shape:
            out = b.array * ratio
            out += a.array
            return Stack(out, lags, origin, a.scale, peak, a.signed or b.signed)
        spans = [united(x, y) for x, y in zip(a.spans, b.spans, strict=True)]
        lags = tuple(in_order({*x, *y}) for x, y in zip(a.lags, b.lags, strict=True))
        out = self.xp.zeros((*map(len, lags), *(count for _, count in spans)), self.dtype)
        for part, factor in ((a, None), (b, ratio)):
            values = part.array if factor is None else part.array * factor
            window = tuple(
                slice(x[0] - s[0], x[0] - s[0] + x[1])
                for x, s in zip(part.spans, spans, strict=True)
            )
            for to, source in _places(part.lags, lags):
                out[(*to, *window)] += values[source]
        origin = tuple(start for start, _ in spans)
        return Stack(out, lags, origin, a.scale, peak, a.signed or b.signed)

    def lowered(self, stack: Stack, growth: float) -> Stack:
        """The stack with room for its values to grow by 2^growth."""
        return stack if stack.peak + growth <= self.room.limit else self.steady(stack, growth)

    def steady(self, stack: Stack, growth: float = 0.0, *, fresh: bool = False) -> Stack:
        """The stack with its largest value near the top of the headroom, or as far below it as
        room for growth asks; in the same array where that is `fresh`, nobody else's."""
        largest = float(stack.array.max())
        if stack.signed:
            largest = max(largest, -float(stack.array.min()))
        if not largest:
            return stack
        peak = math.log2(largest)
        shift = math.floor(min(self.room.top, self.room.limit - growth) - peak)
        if 0 <= shift <= 16:
            return Stack(stack.array, stack.lags, stack.origin, stack.scale, peak, stack.signed)
        array = self.xp.ldexp(stack.array, shift, out=stack.array if fresh else None)
        tiny = np.finfo(self.dtype).tiny
        small = array < tiny
        if stack.signed:
            small &= array > -tiny
        array[small] = 0
        scale = stack.scale * Scaled.of(1.0, -shift)
        return replace(stack, array=array, scale=scale, peak=peak + shift)


def _places(
    own: Sequence[Sequence[int]], whole: Sequence[Sequence[int]]
) -> list[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Where lags are among others: as one slice per axis, or, where they are not equally far
    apart, one by one."""
    at = [[w.index(t) for t in o] for o, w in zip(own, whole, strict=True)]
    slices = []
    for places in at:
        step = places[1] - places[0] if len(places) > 1 else 1
        if places == list(range(places[0], places[-1] + 1, step)):
            slices.append(slice(places[0], places[-1] + 1, step))
    if len(slices) == len(at):
        return [(tuple(slices), ())]
    numbers = [range(len(places)) for places in at]
    one_by_one = itertools.product(*numbers)
    return [(tuple(p[n] for p, n in zip(at, ns, strict=True)), ns) for ns in one_by_one]
