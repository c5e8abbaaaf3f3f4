"""The fields of all maps of one chain on an image, in one batch.

On an image a field depends on where its unit is, so that no two maps of a chain share a pass, and
each is followed to the input by itself: n maps take n²/2 layers. Planned and called one by one,
layers cost far more than the few pixels of a profile. Where the layers are separable windows, a
field is an outer product of profiles (as in `factored`), which one call of the kernel
`chain_profiles` makes for all maps.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import mul
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf.device import Device
from fastrf.engine import channelwise, cost, covariance, terms
from fastrf.engine.direct import Propagated
from fastrf.engine.forecast import Forecast
from fastrf.engine.scaled import ONE, Scaled
from fastrf.engine.windows import Span
from fastrf.kernels import load
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import SpatialMap, Window

Whole = NDArray[np.int64]

FEWEST = 16
"""Maps from which on a batch is worth it."""

MOST_COLUMNS = 1 << 20
"""Layers that one call of the kernel is given at most, but for a single deeper map (48 MB)."""

MOST_PIXELS = 1 << 22
"""Pixels of the profiles of one call, but for a single wider one (32 MB)."""

MOST_CELLS = 1 << 28
"""Pixels of all images of one call, about: it cannot be interrupted, and takes a third of a second.
"""


@dataclass(frozen=True, slots=True)
class Prefixes:
    """The maps that a chain leads to, each the end of a shorter chain.

    Attributes:
        nodes: the maps, from the input up.
        depths: moving layers below each.
        masses: gain of each, on an image without borders.
        operations: linear operations below each.
        lines: per axis the layers, as the rows of the kernel, from the input up.
        taps: the taps of all of them.
        spans: per axis each map's window of the input, shape (2, maps): first pixel and number.
        units: per axis each map's unit.
    """

    nodes: tuple[str, ...]
    depths: Whole
    masses: tuple[Scaled, ...]
    operations: tuple[int, ...]
    lines: tuple[Whole, ...]
    taps: NDArray[np.float64]
    spans: tuple[Whole, ...]
    units: tuple[Whole, ...]

    def support(self, number: int) -> tuple[Span, ...]:
        """The window of a map's field."""
        return tuple((int(s[0, number]), int(s[1, number])) for s in self.spans)

    def forecasts(self, dtype: np.dtype[Any]) -> dict[str, Forecast]:
        """What each field takes."""
        found = {}
        for number, node in enumerate(self.nodes):
            support = self.support(number)
            counts = tuple(count for _, count in support)
            depth, pixels = int(self.depths[number]), math.prod(counts)
            cells = depth * sum(counts)
            formed = terms.formed_bytes(counts, 1, dtype)
            found[node] = Forecast(
                self.operations[number],
                support,
                cells + pixels,
                cost.POINTWISE_SECONDS,
                1e-9 * (cells * cost.BOX_NANOSECONDS + pixels * cost.WRITE_NANOSECONDS),
                8 * sum(counts) + formed,
                pixels,
                formed=formed,
            )
        return found

    @property
    def working(self) -> int:
        """Bytes of the largest call of the kernel beside its results."""
        widest = max(int(s[1].max()) for s in self.spans)
        layers = min(max(MOST_COLUMNS, int(self.depths.max())), int(self.depths.sum()))
        return 2 * 6 * 8 * layers + 8 * min(max(MOST_PIXELS, widest), widest * len(self.nodes))

    def fields(self, dtype: np.dtype[Any], place: Device) -> Iterator[tuple[str, Propagated]]:
        """The field of each map; those of which nothing arrives are left out."""
        made: list[_Lines] = []
        for axis in range(len(self.lines)):
            alike = (b for b in range(axis) if self._alike(axis, b))
            twin = next(alike, None)
            made.append(self._along(axis) if twin is None else made[twin])
        kernels = load(place.name)
        for number, node in enumerate(self.nodes):
            own = [lines[number] for lines in made]
            if any(line is None for line in own):
                continue
            lines = [line for line in own if line is not None]
            factors = tuple(
                terms.Factor(line.pixels[None], line.pixels.size, False) for line in lines
            )
            start = tuple(line.start for line in lines)
            image = terms.FactoredImage(np.ones(1), factors, start, dtype, kernels, place.xp)
            image = terms.trimmed(image)
            mass = reduce(mul, (line.mass for line in lines), self.masses[number])
            held = math.prod(1 - line.lost for line in lines)
            yield node, Propagated(image, image.origin, mass, 1 - held, 0.0)

    def _alike(self, a: int, b: int) -> bool:
        return (
            np.array_equal(self.lines[a], self.lines[b])
            and np.array_equal(self.spans[a], self.spans[b])
            and np.array_equal(self.units[a], self.units[b])
        )

    def _along(self, axis: int) -> _Lines:
        kernel = load("cpu").chain_profiles
        starts, counts = self.spans[axis]
        found: _Lines = []
        for first, last in _parts(self.depths, counts):
            depths = self.depths[first:last]
            offsets = np.concatenate([[0], np.cumsum(depths)])
            at = np.arange(int(offsets[-1])) - np.repeat(offsets[:-1], depths)
            rows = np.empty((last - first, int(counts[first:last].max())))
            lost, exponents = np.empty(last - first), np.empty(last - first, np.int64)
            kernel(
                offsets, self.lines[axis][:, at], self.taps, self.units[axis][first:last],
                starts[first:last], lost, exponents, rows,
            )  # fmt: skip
            for number, row in enumerate(rows):
                (seen,) = np.nonzero(row)
                if not len(seen):
                    found.append(None)
                    continue
                pixels = row[seen[0] : seen[-1] + 1]
                total = float(pixels.sum())  # of these alone, whatever is in the same call
                start = int(starts[first + number] + seen[0])
                mass = Scaled.of(total, int(exponents[number]))
                found.append(_Line(pixels / total, start, mass, float(lost[number])))
        return found


@dataclass(frozen=True, slots=True)
class _Line:
    """A map's field along one axis: pixels of sum 1 and the first one's index, what arrived per
    unit of what a layer without borders would hand on, and the share that was lost."""

    pixels: NDArray[np.float64]
    start: int
    mass: Scaled
    lost: float


_Lines = list[_Line | None]


def _parts(depths: Whole, counts: Whole) -> Iterator[tuple[int, int]]:
    """Maps that one call serves: first, and the one behind the last."""
    first, columns, widest = 0, 0, 0
    for number, (depth, count) in enumerate(zip(depths.tolist(), counts.tolist(), strict=True)):
        columns, widest = columns + depth, max(widest, count)
        full = columns > MOST_COLUMNS or widest * (number + 1 - first) > MOST_PIXELS
        if (full or columns * widest > MOST_CELLS) and number > first:
            yield first, number
            first, columns, widest = number, depth, count
    yield first, len(depths)


def prefixes(
    graph: PlaneGraph,
    last: str,
    input_node: str,
    operations: Sequence[Operation],
    wanted: Mapping[str, tuple[int, ...]],
) -> Prefixes | None:
    """The maps of a chain that begins at the input, of a graph on an image; None where they are too
    few, or what they are is not for variances of profiles alone to say.

    Args:
        last: the map above all of them.
        operations: those between the input and `last`.
        wanted: the units of the maps whose fields are asked for.
    """
    if graph.input_size is None or len(graph.planes_of[input_node]) != 1:
        return None
    if channelwise.needed(graph, last, input_node) or covariance.needed(graph, last, input_node):
        return None
    reads = Counter(q for op in operations for q, _ in op.sources)
    writes = Counter(p for op in operations for p, _ in op.targets)
    plane, mass = graph.planes_of[input_node][0], ONE
    moves: list[SpatialMap] = []
    ends: list[tuple[str, int, Scaled, int]] = []
    for number, op in enumerate(operations, 1):
        if [q for q, _ in op.sources] != [plane] or reads[plane] > 1 or len(op.targets) > 1:
            break
        if writes[op.targets[0][0]] > 1 or len(graph.planes_of[op.node]) > 1:
            break
        if not all(m.separable and all(isinstance(a, Window) for a in m.axes) for m in op.maps):
            break
        plane = op.targets[0][0]
        mass = mass * (op.gain * op.sources[0][1] * op.targets[0][1])
        for move in op.maps:
            mass = mass * move.gain
        moves += op.maps
        if op.node in wanted and any(map(_moves, op.maps)):
            ends.append((op.node, len(moves), mass, number))
    if len(ends) < FEWEST:
        return None
    taps, lines = _packed(moves, graph.ndim)
    depths = np.array([depth for _, depth, *_ in ends], np.int64)
    units = [np.array([wanted[node][axis] for node, *_ in ends]) for axis in range(graph.ndim)]
    spans = [_windows(line, depths, own) for line, own in zip(lines, units, strict=True)]
    seen = np.logical_and.reduce([span[1] > 0 for span in spans])
    kept = [end for end, there in zip(ends, seen.tolist(), strict=True) if there]
    if len(kept) < FEWEST:
        return None
    return Prefixes(
        nodes=tuple(node for node, *_ in kept),
        depths=depths[seen],
        masses=tuple(mass for _, _, mass, _ in kept),
        operations=tuple(number for *_, number in kept),
        lines=tuple(lines),
        taps=taps,
        spans=tuple(span[:, seen] for span in spans),
        units=tuple(own[seen] for own in units),
    )


def _moves(move: SpatialMap) -> bool:
    """Whether a map of windows hands any pixel on to another place, or to several."""
    return any(isinstance(a, Window) and (a.kernel, a.stride, a.lo) != (1, 1, 0) for a in move.axes)


def _packed(moves: Sequence[SpatialMap], ndim: int) -> tuple[NDArray[np.float64], list[Whole]]:
    """All taps that are not equal, and per axis the rows of the kernel `chain_profiles`."""
    pool: list[NDArray[np.float64]] = []
    places: dict[int, int] = {}
    used = 0
    lines = []
    for axis in range(ndim):
        rows = []
        for move in moves:
            window, own, place = move.axes[axis], move.axis_taps(axis), -1
            assert isinstance(window, Window)
            assert move.size_in is not None
            if own is not None:
                if id(own) not in places:
                    places[id(own)] = used
                    pool.append(own)
                    used += len(own)
                place = places[id(own)]
            size = move.size_in[axis]
            rows.append((window.kernel, window.stride, window.dilation, window.lo, size, place))
        lines.append(np.array(rows, np.int64).T)
    return np.concatenate([*pool, np.zeros(0)]), lines


def _windows(line: Whole, depths: Whole, units: Whole) -> Whole:
    """What each map's unit sees of the input, shape (2, maps); all maps go down together."""
    begin, count = units.astype(np.int64), np.ones(len(units), np.int64)
    for depth in range(int(depths[-1]) - 1, -1, -1):
        own = slice(int(np.searchsorted(depths, depth, side="right")), None)
        k, s, d, lo, size, _ = line[:, depth].tolist()
        first = begin[own] * s - lo
        behind = first + (count[own] - 1) * s + (k - 1) * d + 1
        begin[own] = np.maximum(first, 0)
        # A window that was empty stays so.
        count[own] = np.where(count[own] > 0, np.minimum(behind, size) - begin[own], 0)
    return np.stack([begin, count])
