"""The coefficients of deterministic maps, row by row, along one axis and over several maps.

What a fixed layer hands back is Σ_o c[o, i]·g[o]: of two of its pixels' gradients, the covariance
is Σ_{o,o′} c[o, i]·c[o′, i′]·Cov(g[o], g[o′]), for which the variances of taps do not suffice.
Behind max-pooling, whose routes count as drawn independently, the covariances of different windows
pass with the mean of a route, which is its probability.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from fastrf.errors import PlanError
from fastrf.maps import AxisMap, Everything, SpatialMap, Spread, Table, Window

Floats = NDArray[np.float64]
Rows = tuple[NDArray[np.int64], Floats]
"""First index read, (n), and coefficients from there on, (n, K), of n neighbouring outputs."""


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """One map along one axis.

    Attributes:
        axis: the map.
        weights: coefficients: of a window's pixels, gaps of a dilation included; of a table, as
            its taps; of `Everything`, one for all.
        size_in, size_out: pixels read and written, or None on the unbounded grid.
    """

    axis: AxisMap
    weights: Floats
    size_in: int | None
    size_out: int | None

    def rows(self, first: int, count: int) -> Rows:
        """The rows of the outputs first … first+count−1; off the map they are zero."""
        o = np.arange(first, first + count)
        if isinstance(self.axis, Window):
            starts = o * self.axis.stride - self.axis.lo
            taps = np.broadcast_to(self.weights, (count, len(self.weights)))
        elif isinstance(self.axis, Spread):
            starts = -((self.axis.span - self.axis.lo - o) // self.axis.stride)
            back = np.arange(self.axis.span // self.axis.stride + 1) * self.axis.stride
            at = (o + self.axis.lo - starts * self.axis.stride)[:, None] - back
            taps = np.where(at < 0, 0.0, self.weights[at])
        elif isinstance(self.axis, Table):
            turn, phase = np.divmod(o, self.axis.period)
            starts, taps = self.axis.starts[phase] + self.axis.advance * turn, self.weights[phase]
        else:
            assert self.size_in is not None
            starts, taps = np.zeros(count, np.int64), np.full((count, self.size_in), self.weights)
        if self.size_out is not None and (first < 0 or first + count > self.size_out):
            taps = np.where(((o >= 0) & (o < self.size_out))[:, None], taps, 0.0)
        return starts, taps

    @property
    def ratio(self) -> tuple[int, int]:
        """Pixels read and pixels written in one period, on the unbounded grid."""
        if isinstance(self.axis, Window):
            return self.axis.stride, 1
        if isinstance(self.axis, Spread):
            return 1, self.axis.stride
        assert isinstance(self.axis, Table)
        return self.axis.advance, self.axis.period


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """Maps that follow each other, along one axis: those next to the input first. With none, each
    pixel reads itself."""

    stages: tuple[Stage, ...] = ()

    def rows(self, first: int, count: int, clip: bool = True) -> Rows:
        """The rows of the last map's outputs on the first map's input; `clip` sets to zero what
        falls off it. What falls off a map in between is lost."""
        _check_room(count, 1)
        starts, taps = np.arange(first, first + count), np.ones((count, 1))
        for number in range(len(self.stages) - 1, -1, -1):
            starts, taps = _before(starts, taps, self.stages[number])
            size = self.stages[number].size_in
            if size is not None and (clip or number):
                at = starts[:, None] + np.arange(taps.shape[1])
                taps = np.where((at >= 0) & (at < size), taps, 0.0)
        return starts, taps

    def outputs(self, reach: int) -> tuple[int, int]:
        """First and number of outputs that show every case of two outputs that read pixels up to
        `reach` apart."""
        if self.stages and self.stages[-1].size_out is not None:
            return 0, self.stages[-1].size_out
        read, written = 1, 1
        for stage in self.stages:
            p, q = stage.ratio
            read, written = read * p, written * q
        width = self.rows(0, written)[1].shape[1]
        around = ((width + abs(reach)) // read + 2) * written
        return -around, 2 * around + written


MOST_COEFFICIENTS = 1 << 25
"""Most numbers in the rows of a line: 256 MB, beside which as much again is at work."""


def _check_room(outputs: int, taps: int) -> None:
    """Refuses rows before they are made: they are needed for a plan already."""
    if outputs * taps > MOST_COEFFICIENTS:
        raise PlanError(
            f"fixed layers of {taps} taps on {outputs} pixels correlate gradients: more than the "
            f"{MOST_COEFFICIENTS} coefficients that are followed; give a smaller input_size or "
            f"smaller windows"
        )


def _before(starts: NDArray[np.int64], taps: Floats, stage: Stage) -> Rows:
    """The rows `starts`, `taps` on what a stage writes, as rows on what it reads."""
    if not len(starts):
        return starts, taps
    low = int(starts.min())
    count = int(starts.max()) + taps.shape[1] - low
    inner, weights = stage.rows(low, count)
    at = starts[:, None] - low + np.arange(taps.shape[1])
    begins = inner[at]
    first = begins.min(axis=1)
    width = int((begins - first[:, None]).max()) + weights.shape[1]
    _check_room(len(starts), width)
    found = np.zeros((len(starts), width))
    row = np.arange(len(starts))[:, None]
    for m in range(taps.shape[1]):
        column = (begins[:, m] - first)[:, None] + np.arange(weights.shape[1])
        found[row, column] += taps[:, m, None] * weights[at[:, m]]
    return first, found


# --- what meets what ------------------------------------------------------------------------

_NOBODY = np.iinfo(np.int64).max // 4
"""The first output that reads a pixel that none reads; the last one is as far on the other side."""

_AT_ONCE = 1 << 18
"""Pairs of lags and pixels that are looked at at once."""


class Meetings:
    """Which outputs of two lines read pixels a lag apart. Each lag is looked at once: a chain of
    equal layers asks for a few more at each of them."""

    def __init__(self, a: Line, b: Line) -> None:
        self._lines = a, b
        self._known: dict[int, range] = {}

    def at(self, lags: Iterable[int]) -> dict[int, range]:
        """For each lag, the o′ − o for which outputs o of the first line and o′ of the second read
        pixels that far apart, and all between them; lags at which none do are left out."""
        lags = tuple(lags)
        new = [t for t in lags if t not in self._known]
        if new:
            self._known |= dict.fromkeys(new, range(0)) | _meetings(*self._lines, new)
        return {t: met for t in lags if (met := self._known[t])}


def _meetings(a: Line, b: Line, lags: Sequence[int]) -> dict[int, range]:
    """Those of `Meetings.at`, of at least one lag."""
    reach = max(map(abs, lags))
    reads = [_reads(line, reach) for line in (a, b)]
    if not all(i.size for _, i in reads):
        return {}
    low = min(int(i.min()) for _, i in reads) - reach
    count = max(int(i.max()) for _, i in reads) + reach + 1 - low
    (first_a, last_a), (first_b, last_b) = (_ends(o, i - low, count) for o, i in reads)
    # Those of b at pixel i + lag, a row for each lag. A pixel that nobody reads is out of all
    # bounds, so that no mask is needed: 200 lags of a pool took 4.3 ms one by one, and take 1.8.
    firsts = sliding_window_view(np.pad(first_b, reach, constant_values=_NOBODY), count)
    lasts = sliding_window_view(np.pad(last_b, reach, constant_values=-_NOBODY), count)
    found: dict[int, range] = {}
    step = max(1, _AT_ONCE // count)
    for part in (lags[n : n + step] for n in range(0, len(lags), step)):
        rows = np.array(part) + reach
        least = (firsts[rows] - last_a).min(axis=1)
        most = (lasts[rows] - first_a).max(axis=1)
        found |= {
            lag: range(a, b + 1)
            for lag, a, b in zip(part, least.tolist(), most.tolist(), strict=True)
            if a <= b
        }
    return found


def _reads(line: Line, reach: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Outputs and the pixels that they read, in pairs."""
    first, count = line.outputs(reach)
    starts, taps = line.rows(first, count)
    o, m = np.nonzero(taps)
    return o + first, starts[o] + m


def _ends(
    o: NDArray[np.int64], i: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First and last output that reads each of `count` pixels; first > last where none does."""
    first, last = np.full(count, _NOBODY), np.full(count, -_NOBODY)
    np.minimum.at(first, i, o)
    np.maximum.at(last, i, o)
    return first, last


# --- maps -----------------------------------------------------------------------------------

Term = tuple[Line, ...]
"""One line per axis, whose product is a map."""


def terms(maps: Sequence[SpatialMap], ndim: int) -> tuple[Term, ...]:
    """The coefficients of deterministic maps that follow each other, as a sum of products."""
    return tuple(
        tuple(Line(tuple(part[axis] for part in parts)) for axis in range(ndim))
        for parts in itertools.product(*(_terms(m) for m in maps))
    )


def _terms(move: SpatialMap) -> list[tuple[Stage, ...]]:
    weights = _weights(move)
    if not isinstance(weights, np.ndarray):
        return [_stages(move, weights)]
    rows = itertools.product(*(range(n) for n in weights.shape[:-1]))
    unit = [np.eye(n) for n in weights.shape[:-1]]
    return [
        _stages(move, (*(unit[axis][at] for axis, at in enumerate(row)), weights[row]))
        for row in rows
        if weights[row].any()
    ]


def _weights(move: SpatialMap) -> Floats | tuple[Floats, ...]:
    """Coefficients (of max-pooling, probabilities) of all taps, or of each axis' taps."""
    mean = move.kind == "routing"
    total = move.gain if mean else math.sqrt(move.gain)
    if isinstance(move.taps, np.ndarray):
        if move.coefficients is None:
            return total * (move.taps if mean else np.sqrt(move.taps))
        assert isinstance(move.coefficients, np.ndarray)
        return total * move.coefficients
    if isinstance(move.coefficients, np.ndarray):
        return total * move.coefficients
    vectors = []
    for number, axis in enumerate(move.axes):
        given = None if move.coefficients is None else move.coefficients[number]
        taps = _axis_taps(move, number, axis)
        if isinstance(axis, Table) and axis.coefficients is not None:
            given = axis.coefficients
        vectors.append(given if given is not None else taps if mean else np.sqrt(taps))
    vectors[0] = vectors[0] * total
    return tuple(vectors)


def _axis_taps(move: SpatialMap, number: int, axis: AxisMap) -> Floats:
    if isinstance(axis, Table):
        return axis.taps
    if isinstance(axis, Everything):
        assert move.size_in is not None
        return np.full(1, 1 / move.size_in[number])
    given = move.axis_taps(number)
    return np.full(axis.kernel, 1 / axis.kernel) if given is None else given


def _stages(move: SpatialMap, weights: Sequence[Floats]) -> tuple[Stage, ...]:
    found = []
    for number, (axis, given) in enumerate(zip(move.axes, weights, strict=True)):
        spaced = given
        if isinstance(axis, Window | Spread):
            spaced = np.zeros(axis.span + 1)
            spaced[:: axis.dilation] = given
        sizes = (None if s is None else s[number] for s in (move.size_in, move.size_out))
        found.append(Stage(axis, spaced, *sizes))
    return tuple(found)
