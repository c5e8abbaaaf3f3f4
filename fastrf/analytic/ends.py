"""First and last pixel that a unit sees along one axis, as functions of the unit's index.

`Ends` is a periodic sequence on top of a slope, the jump: one phase for chains of convolutions,
a few below upsampling. `after` takes it through one axis map, from what the units of x see to
what those of y see; `united` joins the paths into a merge.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fastrf.errors import InputError
from fastrf.maps import AxisMap, Everything, Spread, Table, Window

Number: TypeAlias = int | Fraction
"""An exact value: an int where it is whole, else a `Fraction`."""

MAX_PERIOD = 1 << 16
"""Decoders of more phases are refused; each layer of the table costs time in proportion."""


def exact(numerator: int | Fraction, denominator: int = 1) -> Number:
    """numerator/denominator as a `Number`."""
    value = Fraction(numerator, denominator)
    return value.numerator if value.denominator == 1 else value


class Ends(NamedTuple):
    """First and last pixel seen by unit u: ``advance·(u div q) + firsts[u mod q]``, same for lasts.

    q is the number of phases; the jump is advance/q. A phase that sees nothing is None. An
    advance of 0 marks what every unit sees alike, the region of a global layer.
    """

    advance: int
    firsts: tuple[int | None, ...]
    lasts: tuple[int | None, ...]

    @property
    def stride(self) -> Number:
        return exact(self.advance, len(self.firsts))

    @property
    def center(self) -> Number:
        """Centre of unit 0's region after the jumps are taken off, the mean over the phases.

        With one phase this is −P + (r−1)/2. With several, a transposed convolution or a resize
        by half-pixel centres gives what its recurrence with the mean tap gives.
        """
        if len(self.firsts) == 1:
            return exact((self.firsts[0] or 0) + (self.lasts[0] or 0), 2)
        q = len(self.firsts)
        seen = [
            Fraction(a + b, 2) - Fraction(p * self.advance, q)
            for p, (a, b) in enumerate(zip(self.firsts, self.lasts, strict=True))
            if a is not None and b is not None
        ]
        return exact(sum(seen, Fraction(0)) / max(len(seen), 1))

    @property
    def size(self) -> int:
        """The largest region over the phases."""
        spans = zip(self.firsts, self.lasts, strict=True)
        return max((b - a + 1 for a, b in spans if a is not None and b is not None), default=0)

    def at(self, unit: int) -> tuple[int | None, int | None]:
        """First and last pixel that `unit` sees."""
        turn, phase = divmod(unit, len(self.firsts))
        shift, first, last = self.advance * turn, self.firsts[phase], self.lasts[phase]
        return None if first is None else first + shift, None if last is None else last + shift


AxisEnds: TypeAlias = tuple[Ends, ...]
"""The paths into a plane along one axis, united: one `Ends` per jump; () where there is no path."""

State: TypeAlias = tuple[AxisEnds, ...]
"""One `AxisEnds` per axis."""

PIXEL: AxisEnds = (Ends(1, (0,), (0,)),)
"""An input pixel sees itself."""


def least(values: Iterable[int | None]) -> int | None:
    return min((v for v in values if v is not None), default=None)


def greatest(values: Iterable[int | None]) -> int | None:
    return max((v for v in values if v is not None), default=None)


def _joined_ends(a: Ends, b: Ends) -> Ends:
    """The union of two regions of the same jump."""
    q = math.lcm(len(a.firsts), len(b.firsts))
    _check_period(q)
    units = range(q)
    return Ends(
        a.advance * (q // len(a.firsts)),
        tuple(least((a.at(u)[0], b.at(u)[0])) for u in units),
        tuple(greatest((a.at(u)[1], b.at(u)[1])) for u in units),
    )


def united(a: AxisEnds, b: AxisEnds) -> AxisEnds:
    """The ends of two ways into one plane; those of the same jump become one."""
    if a == b or not b:
        return a
    if not a:
        return b
    result = list(a)
    for new in b:
        for i, old in enumerate(result):
            if new.advance * len(old.firsts) == old.advance * len(new.firsts):
                result[i] = _joined_ends(old, new)
                break
        else:
            result.append(new)
    return tuple(result)


def unite(states: Iterable[State]) -> State:
    """Regions united axis by axis."""
    result: State | None = None
    for state in states:
        result = state if result is None else tuple(map(united, result, state))
    assert result is not None
    return result


def _check_period(q: int) -> None:
    if q > MAX_PERIOD:
        raise InputError(
            f"the map has {q} phases (units whose regions differ in more than their place); "
            f"fastrf follows up to {MAX_PERIOD}; choose upsampling factors with a smaller "
            f"common multiple"
        )


def after(axis: AxisMap, ends: AxisEnds, size_in: int | None) -> AxisEnds:
    """The ends seen by the units of y, given those of x."""
    if not ends:
        return ends
    if isinstance(axis, Everything):
        whole = over_map(ends, size_in)
        return () if whole.firsts[0] is None else (whole,)
    result: list[Ends] = []
    for e in ends:
        if not e.advance:
            # What every unit of x sees, every unit of y sees.
            result.append(e)
        elif isinstance(axis, Window):
            result.append(_after_window(axis, e))
        elif isinstance(axis, Spread):
            result.append(_after_spread(axis, e))
        else:
            result.append(_after_table(axis, e))
    return tuple(e for e in result if e.firsts != (None,) * len(e.firsts))


def over_map(ends: AxisEnds, size: int | None) -> Ends:
    """The ends of what units 0 … size−1 see together; infinite on the unbounded grid (None)."""
    if size is None:
        infinite: Any = math.inf
        return Ends(0, (-infinite,), (infinite,))
    first: list[int | None] = []
    last: list[int | None] = []
    for e in ends:
        # Ends rise by `advance` per period: the extremes lie in the first and the last period.
        q = len(e.firsts)
        first += [e.at(u)[0] for u in range(min(q, size))]
        last += [e.at(u)[1] for u in range(max(size - q, 0), size)]
    return Ends(0, (least(first),), (greatest(last),))


def _after_window(w: Window, e: Ends) -> Ends:
    advance, q = e.advance, len(e.firsts)
    first, last = e.firsts[0], e.lasts[0]
    if q == 1 and first is not None and last is not None:
        # r_out = r_in + d(k−1)·j_in, start_out = start_in + (d(k−1)/2 − lo)·j_in.
        ends = (first - w.lo * advance,), (last + (w.span - w.lo) * advance,)
        return Ends(advance * w.stride, *ends)
    phases = q // math.gcd(q, w.stride)
    # Taps that meet the same phase of x lie q/gcd(q, d) apart; the outermost of them decide.
    few = range(min(w.kernel, q // math.gcd(q, w.dilation)))
    starts = [o * w.stride - w.lo for o in range(phases)]
    return Ends(
        advance * w.stride * phases // q,
        tuple(least(e.at(i + m * w.dilation)[0] for m in few) for i in starts),
        tuple(greatest(e.at(i + w.span - m * w.dilation)[1] for m in few) for i in starts),
    )


def _after_spread(t: Spread, e: Ends) -> Ends:
    s, q = t.stride, len(e.firsts)
    phases = s * q
    _check_period(phases)
    step = s // math.gcd(s, t.dilation)
    # Unit j reads x[(j + lo − m·d)/s] for the taps m that divide: every step-th from the first.
    first_tap = {m * t.dilation % s: m for m in range(min(step, t.kernel))}
    firsts: list[int | None] = []
    lasts: list[int | None] = []
    for j in range(phases):
        m = first_tap.get((j + t.lo) % s)
        if m is None:
            firsts.append(None)
            lasts.append(None)
            continue
        count = (t.kernel - 1 - m) // step + 1
        # In descending order and at equal distances: q at either end meet all phases of x.
        reads = [(j + t.lo - (m + i * step) * t.dilation) // s for i in range(count)]
        firsts.append(least(e.at(o)[0] for o in reads[-q:]))
        lasts.append(greatest(e.at(o)[1] for o in reads[:q]))
    return Ends(e.advance, tuple(firsts), tuple(lasts))


def _after_table(t: Table, e: Ends) -> Ends:
    q = len(e.firsts)
    turns = q // math.gcd(q, t.advance)
    phases = t.period * turns
    _check_period(phases)
    starts, taps = t.rows(0, phases)
    firsts: list[int | None] = []
    lasts: list[int | None] = []
    for start, row in zip(starts.tolist(), taps, strict=True):
        reads = [start + m for m in np.flatnonzero(row).tolist()]
        firsts.append(least(e.at(i)[0] for i in reads))
        lasts.append(greatest(e.at(i)[1] for i in reads))
    return Ends(e.advance * t.advance * turns // q, tuple(firsts), tuple(lasts))
