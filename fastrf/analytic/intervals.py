"""Sets of whole numbers as sorted inclusive intervals, and how the axis maps move them.

Along one axis a region is an `IntervalSet`: disjoint intervals ``(first, last)`` in ascending
order that do not touch each other, so equal sets are equal tuples and a gap between two intervals
is a hole. `pull` goes from a map to what it reads (a unit's region), `push` from a map to what
reads it (the units that see a pixel); one is the other's inverse relation. Nothing is cut off at
a map's borders here, `clip` does that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain, pairwise
from typing import NoReturn, TypeAlias

import numpy as np

from fastrf.errors import InputError
from fastrf.maps import AxisMap, Everything, Spread, Table, Window

Interval: TypeAlias = tuple[int, int]
IntervalSet: TypeAlias = tuple[Interval, ...]

EMPTY: IntervalSet = ()

EVERYWHERE: IntervalSet = ((-math.inf, math.inf),)  # type: ignore[assignment]
"""What a global layer reads on the unbounded grid; the only set with infinite ends."""

MAX_INTERVALS = 200_000
"""Sets of more intervals are refused: a hundred MB of Python integers, and a few seconds."""

_AT_WORK = 8
"""So many times more may be found on the way to such a set, before those that touch are joined."""

_MOST_ROWS = 2**25
"""Most taps of a table that one region reads."""


def union(*sets: IntervalSet) -> IntervalSet:
    """All members of the given sets."""
    found = [s for s in sets if s]
    if len(found) == 1:
        return found[0]
    return _joined(chain.from_iterable(found))


def _joined(intervals: Iterable[Interval]) -> IntervalSet:
    """Intervals in any order, sorted, with those that overlap or touch made one."""
    result: list[Interval] = []
    for first, last in sorted(intervals):
        if result and first <= result[-1][1] + 1:
            if last > result[-1][1]:
                result[-1] = (result[-1][0], last)
        else:
            result.append((first, last))
    if len(result) > MAX_INTERVALS:
        _refuse(len(result))
    return tuple(result)


def _refuse(count: int) -> NoReturn:
    raise InputError(
        f"a region has {count} separate intervals along one axis; fastrf follows up to "
        f"{MAX_INTERVALS}; choose smaller dilations or strides"
    )


def _check_room(found: int, more: int) -> None:
    """Refuses what would be made in vain."""
    if found + more > _AT_WORK * MAX_INTERVALS:
        _refuse(found + more)


def _as_set(intervals: list[Interval]) -> IntervalSet:
    return tuple(intervals) if len(intervals) < 2 else _joined(intervals)


def contains(outer: IntervalSet, inner: IntervalSet) -> bool:
    """Whether every member of `inner` is one of `outer`."""
    if outer == inner:
        return True
    at = iter(outer)
    reach = next(at, None)
    for first, last in inner:
        while reach is not None and reach[1] < last:
            reach = next(at, None)
        if reach is None or first < reach[0]:
            return False
    return True


def clipped(region: IntervalSet, size: int) -> IntervalSet:
    """The members among 0 … size−1."""
    if not region or (region[0][0] >= 0 and region[-1][1] < size):
        return region
    return tuple(
        (max(first, 0), min(last, size - 1)) for first, last in region if last >= 0 and first < size
    )


def gaps(region: IntervalSet) -> IntervalSet:
    """What lies between the members but is none of them."""
    return tuple((a[1] + 1, b[0] - 1) for a, b in pairwise(region))


def pull(axis: AxisMap, region: IntervalSet, size_in: int | None) -> IntervalSet:
    """The indices of x that the indices `region` of y read.

    Args:
        axis: the map from x to y.
        region: indices of y.
        size_in: size of x, which a global map reads all of; None: unbounded.
    """
    if isinstance(axis, Everything):
        return _whole(region, size_in)
    if not region or region == EVERYWHERE:
        return region
    if isinstance(axis, Window):
        return _gather(region, axis)
    if isinstance(axis, Spread):
        return _scatter(region, axis)
    return _read_rows(region, axis)


def push(axis: AxisMap, region: IntervalSet, size_out: int | None) -> IntervalSet:
    """The indices of y that read one of the indices `region` of x; see `pull`."""
    if isinstance(axis, Everything):
        return _whole(region, size_out)
    if not region or region == EVERYWHERE:
        return region
    if isinstance(axis, Window):
        return _scatter(region, axis)
    if isinstance(axis, Spread):
        return _gather(region, axis)
    return _reading_rows(region, axis)


def _whole(region: IntervalSet, size: int | None) -> IntervalSet:
    if not region:
        return EMPTY
    return EVERYWHERE if size is None else ((0, size - 1),)


def _gather(region: IntervalSet, taps: Window | Spread) -> IntervalSet:
    """{o·s + m·d − lo : o in the region, 0 ≤ m < k}."""
    k, s, d, lo, span = taps.kernel, taps.stride, taps.dilation, taps.lo, taps.span
    if k == s == 1:
        return tuple((a - lo, b - lo) for a, b in region) if lo else region
    found: list[Interval] = []
    for a, b in region:
        first, last = a * s - lo, b * s - lo
        if s == 1 or a == b:
            # A run of b − a + 1 pixels, repeated every d pixels.
            if k == 1 or b - a + 1 >= d:
                found.append((first, last + span))
            else:
                _check_room(len(found), k)
                found.extend((first + m * d, last + m * d) for m in range(k))
        elif d == 1 or k == 1:
            # A run of k pixels, repeated every s pixels.
            if k >= s:
                found.append((first, last + span))
            else:
                _check_room(len(found), b - a + 1)
                found.extend((i, i + k - 1) for i in range(first, last + 1, s))
        else:
            _check_room(len(found), (b - a + 1) * k)
            points = {i + m * d for i in range(first, last + 1, s) for m in range(k)}
            found.extend((i, i) for i in points)
    return _as_set(found)


def _scatter(region: IntervalSet, taps: Window | Spread) -> IntervalSet:
    """{o : o·s + m·d − lo in the region for some 0 ≤ m < k}."""
    k, s, d, lo, span = taps.kernel, taps.stride, taps.dilation, taps.lo, taps.span
    found: list[Interval] = []
    for a, b in region:
        # The places a + lo − m·d … b + lo − m·d; their multiples of s are the o·s looked for.
        dense = b - a + 1 >= d
        _check_room(len(found), 0 if dense else k)
        for m in (0,) if dense else range(k):
            low = a + lo - (span if dense else m * d)
            first, last = -(-low // s), (b + lo - m * d) // s
            if first <= last:
                found.append((first, last))
    return _as_set(found)


def _read_rows(region: IntervalSet, table: Table) -> IntervalSet:
    found: list[Interval] = []
    for a, b in region:
        if (b - a + 1) * table.taps.shape[1] > _MOST_ROWS:
            _refuse(b - a + 1)
        starts, taps = table.rows(a, b - a + 1)
        rows, offsets = np.nonzero(taps)
        i = np.unique(starts[rows] + offsets)
        ends = np.flatnonzero(np.diff(i) > 1)
        firsts, lasts = i[np.append(0, ends + 1)], i[np.append(ends, -1)]
        _check_room(len(found), len(firsts))
        found.extend(zip(firsts.tolist(), lasts.tolist(), strict=True))
    return _as_set(found)


def _reading_rows(region: IntervalSet, table: Table) -> IntervalSet:
    rows, offsets = np.nonzero(table.taps)
    reads = list(zip(rows.tolist(), (table.starts[rows] + offsets).tolist(), strict=True))
    period, advance = table.period, table.advance
    found: list[Interval] = []
    for a, b in region:
        for row, i in reads:
            if not advance:
                turns = range(a <= i <= b)
            else:
                turns = range(-((i - a) // advance), (b - i) // advance + 1)
            _check_room(len(found), len(turns))
            found.extend((turn * period + row,) * 2 for turn in turns)
    return _as_set(found)
