"""Theoretical receptive fields: size, stride, padding and centre of every layer, exact regions.

Two questions, two passes over the lowered graph:

* The **table** of all layers comes from one pass from the input up. Per plane and axis it carries
  the first and the last input pixel that unit u sees, as a function of u: `Ends`, a periodic
  sequence on top of a slope, the jump. Decoders have a few phases; merges of paths with different
  jumps have one `Ends` per jump, and the region is their union.
* The **region** of one unit, holes included, comes from a walk back from that unit with sets of
  indices, cut to every map on the way where it is asked for (`clip`). The units that see a pixel
  come from the same walk in the other direction.

The table and the unclipped regions describe the layers' unbounded extension, as in Dang Ha The
Hien, "A guide to receptive field arithmetic for convolutional neural networks" (2017), and
Araujo, Norris and Sim, "Computing receptive fields of convolutional neural networks", Distill
(2019): padding only shifts, so regions may reach beyond the image.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from itertools import groupby
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np

from fastrf.analytic.ends import (
    PIXEL,
    AxisEnds,
    Number,
    State,
    after,
    exact,
    greatest,
    least,
    over_map,
    unite,
    united,
)
from fastrf.analytic.intervals import (
    EMPTY,
    IntervalSet,
    clipped,
    contains,
    gaps,
    pull,
    push,
    union,
)
from fastrf.errors import EmptyFieldError, InputError
from fastrf.layers import AdaptivePool, AvgPool, Conv, Filter, Layer, MaxPool, Pad, Upsample
from fastrf.lowering import Operation, PlaneGraph, lower
from fastrf.maps import AxisMap, Everything, Size, SpatialMap, Table
from fastrf.network import Network, as_network

Box: TypeAlias = tuple[tuple[int, int], ...]
"""(first, last) pixel per axis, both included; infinite below a global layer on no known size."""

MAX_PRODUCTS = 16
"""Products whose union a walk keeps apart on one plane; more are joined axis by axis.

Joined, the projections stay what they are, unless a path below loses one axis to a border or to
an unread phase and keeps another; they then bound the region."""


# --- the two published conventions ----------------------------------------------------------


class Dang(NamedTuple):
    """Dang Ha The Hien's parameters of a map, one value per axis.

    Attributes:
        n: number of units, None on the unbounded grid.
        j: jump, the distance of neighbouring units in input pixels.
        r: size of the receptive field in input pixels.
        start: centre of unit 0's field, where the first pixel's centre lies at 0.5.
    """

    n: tuple[int, ...] | None
    j: tuple[Number | None, ...]
    r: tuple[int | None, ...]
    start: tuple[Number | None, ...]


class Distill(NamedTuple):
    """The parameters of Araujo, Norris and Sim, one value per axis.

    Attributes:
        r: size of the receptive field in input pixels.
        S: effective stride.
        P: effective padding: unit 0's field begins P pixels before the image.
        u, v: first and last pixel seen by a range of units; pixels count from 0.
    """

    r: tuple[int | None, ...]
    S: tuple[Number | None, ...]
    P: tuple[Number | None, ...]
    u: tuple[Number | None, ...]
    v: tuple[Number | None, ...]


def dang_from_distill(distill: Distill, n: tuple[int, ...] | None = None) -> Dang:
    """`distill` in Dang Ha The Hien's convention: ``start = −P + (r − 1)/2 + 1/2``.

    Args:
        distill: parameters of a map.
        n: number of units per axis, which Distill's parameters do not hold.
    """
    start = _per_axis(lambda r, p: exact(r - 2 * p, 2), distill.r, distill.P)
    return Dang(n, distill.S, distill.r, start)


def distill_from_dang(
    dang: Dang, first: Sequence[int] | None = None, last: Sequence[int] | None = None
) -> Distill:
    """`dang` in Distill's convention: ``P = r/2 − start``.

    Args:
        dang: parameters of a map.
        first, last: range of units per axis whose region u … v is; default: all units, or
            unit 0 on the unbounded grid. ``u = −P + first·S``, ``v = −P + last·S + r − 1``.
    """
    zeros = (0,) * len(dang.r)
    begin = zeros if first is None else tuple(first)
    if last is not None:
        end = tuple(last)
    else:
        end = begin if dang.n is None else tuple(n - 1 for n in dang.n)
    padding = _per_axis(lambda r, start: exact(r - 2 * start, 2), dang.r, dang.start)
    u = _per_axis(lambda p, s, o: exact(o * s - p), padding, dang.j, begin)
    v = _per_axis(lambda p, s, o, r: exact(o * s - p + r - 1), padding, dang.j, end, dang.r)
    return Distill(dang.r, dang.j, padding, u, v)


def _per_axis(rule: Callable[..., Any], *values: Sequence[Any]) -> tuple[Any, ...]:
    """`rule` on each axis; None where one of its arguments has no value there."""
    return tuple(None if None in v else rule(*v) for v in zip(*values, strict=True))


# --- layers beyond their borders ------------------------------------------------------------


def extended(maps: tuple[SpatialMap, ...], layer: Layer) -> tuple[SpatialMap, ...]:
    """`maps` of a layer, lowered for a map of known size, continued beyond the map's borders.

    Only tables know borders: padding that mirrors, windows that leave the map, clamped resizes.
    """
    if not any(isinstance(axis, Table) for m in maps for axis in m.axes):
        return maps
    size, out = maps[0].size_in, maps[-1].size_out
    if size is None or out is None:
        return maps
    ndim = len(size)
    if isinstance(layer, Conv | Filter):
        return replace(layer, padding_mode="zeros").maps(size, ndim)
    if isinstance(layer, Pad):
        return replace(layer, mode="zeros").maps(size, ndim)
    if isinstance(layer, MaxPool | AvgPool):
        (tables,) = maps
        return (replace(tables, axes=layer.windows(size)),)
    if isinstance(layer, Upsample):
        return _extended_upsample(layer, size, out)
    assert isinstance(layer, AdaptivePool), f"{type(layer).__name__} has no rule beyond its borders"
    (tables,) = maps
    # ⌊o·n/m⌋ … ⌈(o+1)·n/m⌉ moves by n when o moves by m.
    axes = tuple(
        replace(t, advance=n) if isinstance(t, Table) else t
        for t, n in zip(tables.axes, size, strict=True)
    )
    return (replace(tables, axes=axes),)


def _extended_upsample(layer: Upsample, size: Size, out: Size) -> tuple[SpatialMap, ...]:
    scale = layer.scale
    if scale is None:
        scale = tuple(Fraction(m, n) for n, m in zip(size, out, strict=True))
    coordinates = layer.coordinates
    if coordinates == "align_corners":
        # o·(n−1)/(m−1): the grid o/scale of a scale that fits the corners.
        coordinates = "asymmetric"
        scale = tuple(
            Fraction(m - 1, n - 1) if min(m, n) > 1 else Fraction(m, n)
            for n, m in zip(size, out, strict=True)
        )
    free = replace(layer, scale=scale, size=None, coordinates=coordinates)
    return free.maps(None, len(size))


# --- the pass from the input up -------------------------------------------------------------


class Path(NamedTuple):
    """One way into a merge: the node it comes from, its jump and its centre along one axis.

    A path that is misaligned itself and mixes jumps appears once per jump.
    """

    source: str
    stride: Number
    center: Number


class Misalignment(NamedTuple):
    """A merge whose paths differ in stride or centre along one axis."""

    node: str
    axis: int
    paths: tuple[Path, ...]


@dataclass(slots=True)
class _Pass:
    """What the pass from the input up finds."""

    maps: list[tuple[SpatialMap, ...]] = field(default_factory=list)
    """The extended maps of each operation."""
    planes: list[State] = field(default_factory=list)
    nodes: dict[str, State] = field(default_factory=dict)
    aligned: dict[str, bool] = field(default_factory=dict)
    misaligned: dict[str, list[Misalignment]] = field(default_factory=dict)


def _ascend(graph: PlaneGraph, source: str) -> _Pass:
    """The ends of every plane and node, as seen on the input map `source`."""
    nothing: State = ((),) * graph.ndim
    found = _Pass(planes=[nothing] * len(graph.planes))
    plane_aligned = [True] * len(graph.planes)
    for name in graph.network.inputs:
        found.nodes[name] = (PIXEL,) * graph.ndim if name == source else nothing
        found.aligned[name] = True
        for plane in graph.planes_of[name]:
            found.planes[plane] = found.nodes[name]
    for name, operations in groupby(graph.operations, key=lambda op: op.node):
        ways: dict[str, State] = {}
        writers: dict[int, set[str]] = {}
        layer = graph.network.nodes[name].layer
        for op in operations:
            maps = extended(op.maps, layer)
            found.maps.append(maps)
            state = unite(found.planes[q] for q, _ in op.sources)
            for spatial in maps:
                state = _after_map(spatial, state)
            if () in state:
                # Where one axis sees nothing, no pixel is seen.
                state = nothing
            way = graph.planes[op.sources[0][0]].node
            ways[way] = tuple(map(united, ways[way], state)) if way in ways else state
            aligned = all(plane_aligned[q] for q, _ in op.sources)
            if len(op.sources) > 1:
                # Planes that met no merge on their own meet here.
                aligned = aligned and way not in found.misaligned
            for p, _ in op.targets:
                writers.setdefault(p, set()).add(way)
                found.planes[p] = tuple(map(united, found.planes[p], state))
                plane_aligned[p] = plane_aligned[p] and aligned
        reports = _compare(name, ways)
        if reports:
            found.misaligned[name] = reports
            for p, sources in writers.items():
                plane_aligned[p] = plane_aligned[p] and len(sources) == 1
        found.nodes[name] = unite(ways.values())
        found.aligned[name] = not reports and all(plane_aligned[p] for p in writers)
    for name in graph.network.nodes:
        # A node that only global paths lead to has no operations where they are left out.
        found.nodes.setdefault(name, nothing)
        found.aligned.setdefault(name, True)
    return found


def _after_map(spatial: SpatialMap, state: State) -> State:
    size = spatial.size_in
    result: list[AxisEnds] = []
    for a, (axis, ends) in enumerate(zip(spatial.axes, state, strict=True)):
        same = a > 0 and ends == state[0] and axis == spatial.axes[0]
        if same and (size is None or size[a] == size[0]):
            result.append(result[0])
        else:
            result.append(after(axis, ends, None if size is None else size[a]))
    return tuple(result)


def _compare(node: str, ways: Mapping[str, State]) -> list[Misalignment]:
    """The axes on which the ways into a node differ in stride or centre.

    Paths through a global layer have neither and are left out.
    """
    if len(ways) < 2:
        return []
    reports = []
    for axis in range(len(next(iter(ways.values())))):
        paths = {
            way: tuple((e.stride, e.center) for e in state[axis] if e.advance)
            for way, state in ways.items()
        }
        if len({frozenset(p) for p in paths.values() if p}) > 1:
            listed = tuple(Path(way, *frame) for way, p in paths.items() for frame in p)
            reports.append(Misalignment(node, axis, listed))
    return reports


class _AxisField(NamedTuple):
    size: int | None
    stride: Number | None
    padding: Number | None
    center: Number | None
    unbounded: bool


def _axis_field(ends: AxisEnds, unit: int) -> _AxisField:
    moving = [e for e in ends if e.advance]
    unbounded = len(moving) < len(ends)
    if not moving:
        return _AxisField(None if unbounded else 0, None, None, None, unbounded)
    if len(moving) == 1:
        size, stride, center = moving[0].size, moving[0].stride, moving[0].center
    else:
        at = [e.at(unit) for e in moving]
        first, last = least(a for a, _ in at) or 0, greatest(b for _, b in at) or 0
        size, stride = last - first + 1, max(e.stride for e in moving)
        center = exact(first + last - 2 * unit * stride, 2)
    padding = exact(size - 1 - 2 * center, 2)
    return _AxisField(
        None if unbounded else size, stride, None if unbounded else padding, center, unbounded
    )


# --- walks with sets of indices -------------------------------------------------------------

Product: TypeAlias = tuple[IntervalSet, ...]
"""A set of indices per axis; their product is a set of pixels. None of them is empty."""


def _add(products: list[Product], new: Product) -> None:
    """Adds a product to a union, in place, as few products as hold the same pixels."""
    for i, old in enumerate(products):
        differing = [a for a, (x, y) in enumerate(zip(old, new, strict=True)) if x != y]
        if all(contains(old[a], new[a]) for a in differing):
            return
        if len(differing) == 1 or all(contains(new[a], old[a]) for a in differing):
            del products[i]
            _add(products, tuple(map(union, old, new)))
            return
    products.append(new)
    if len(products) > MAX_PRODUCTS:
        products[:] = [tuple(map(union, *products))]


def _walk(
    graph: PlaneGraph,
    maps: Sequence[tuple[SpatialMap, ...]],
    seeds: Mapping[int, Product],
    direction: Literal["back", "up"],
    clip: bool,
) -> list[list[Product]]:
    """Follows sets of indices from plane to plane, to what they read or to what reads them.

    Args:
        maps: the maps of each operation.
        seeds: plane → where to begin.
        direction: "back" to what is read, "up" to what reads.
        clip: cut the sets to every map on the way; the maps must be of known size.

    Returns:
        The products reached on each plane.
    """
    reached: list[list[Product]] = [[] for _ in graph.planes]
    for plane, product in seeds.items():
        reached[plane].append(product)
    back = direction == "back"
    step = pull if back else push
    order: Iterator[tuple[Operation, tuple[SpatialMap, ...]]] = zip(
        reversed(graph.operations) if back else graph.operations,
        reversed(maps) if back else maps,
        strict=True,
    )
    for op, spatials in order:
        begins, arrives = (op.targets, op.sources) if back else (op.sources, op.targets)
        products: list[Product] = []
        for plane, _ in begins:
            for product in reached[plane]:
                _add(products, product)
        for spatial in reversed(spatials) if back else spatials:
            size = spatial.size_in if back else spatial.size_out
            moved: list[Product] = []
            for product in products:
                there = _step(step, spatial.axes, product, size, clip)
                if EMPTY not in there:
                    _add(moved, there)
            products = moved
        for plane, _ in arrives:
            for product in products:
                _add(reached[plane], product)
    return reached


def _step(
    step: Callable[[AxisMap, IntervalSet, int | None], IntervalSet],
    axes: Sequence[AxisMap],
    product: Product,
    size: Size | None,
    clip: bool,
) -> Product:
    if size is None:
        return tuple(step(a, x, None) for a, x in zip(axes, product, strict=True))
    there = (step(a, x, n) for a, x, n in zip(axes, product, size, strict=True))
    return tuple(clipped(x, n) for x, n in zip(there, size, strict=True)) if clip else tuple(there)


def _projections(products: Sequence[Product], ndim: int) -> Product:
    return tuple(union(*(p[axis] for p in products)) for axis in range(ndim))


# --- results --------------------------------------------------------------------------------


class LayerField(NamedTuple):
    """One layer's row of the receptive-field table; every field but the flags is per axis.

    Attributes:
        name, op: the layer's name and kind.
        shape: size of its map, None on the unbounded grid.
        size: r, None on an axis where a global layer makes it unbounded, 0 where no path leads
            to the input.
        stride: the jump S.
        padding: Distill's P; None where `size` is None or 0.
        start: centre of unit 0, pixel centres at half-integers (Dang Ha The Hien).
        center: centre of unit 0 in pixel indices, −P + (r−1)/2 (Distill).
        aligned: whether every path into every merge below gives the same stride and centre.
        unbounded: per axis, whether a global layer makes the region unbounded.
    """

    name: str
    op: str
    shape: tuple[int, ...] | None
    size: tuple[int | None, ...]
    stride: tuple[Number | None, ...]
    padding: tuple[Number | None, ...]
    start: tuple[Number | None, ...]
    center: tuple[Number | None, ...]
    aligned: bool
    unbounded: tuple[bool, ...]


class LayerTable(tuple[LayerField, ...]):
    """`LayerField` records of every layer, in topological order."""

    __slots__ = ()

    def to_dicts(self) -> list[dict[str, Any]]:
        """One dictionary per layer, with `LayerField`'s names."""
        return [row._asdict() for row in self]

    def named(self, name: str) -> LayerField:
        """The row of the layer called `name`.

        Raises:
            InputError: no layer has that name.
        """
        for row in self:
            if row.name == name:
                return row
        raise InputError(f"no layer is called {name!r}; see the names of its rows")


@dataclass(frozen=True, eq=False, repr=False)
class ReceptiveField:
    """The theoretical receptive field of one map on one input; made by `receptive_field`.

    Sizes and positions are in input pixels, one value per axis, an int where it is whole and
    else a `Fraction`. Where a merge is not `aligned`, or a decoder has several phases
    (`period`), one number per axis cannot say it all; these attributes then mean:

    * several phases: `size` is the largest over the phases, `stride` the mean distance of
      neighbouring units, `center` the mean of the units' centres less u·stride.
    * paths of equal stride and different centres: the same, of the union.
    * paths of different strides: `size` and the position are those of the central unit (unit 0
      on the unbounded grid), `stride` is the largest one.

    `box`, `intervals` and `units_seeing` are exact per unit in all these cases. In two and three
    dimensions a region is a union of products of index sets; intervals and units are given per
    axis, as projections of that union, which bound it: on a branching graph the product of the
    projections may hold pixels that are not in the region.

    Attributes:
        network: the network, with its number of axes fixed.
        node: name of the output map.
        input: name of the input map.
        input_size: its pixels per axis, None on the unbounded grid.
        map_size: the output map's units per axis, None on the unbounded grid.
        assumptions: what was assumed where the network does not say.
    """

    network: Network
    node: str
    input: str
    input_size: Size | None
    map_size: Size | None
    assumptions: tuple[str, ...]
    _graph: PlaneGraph
    _pass: _Pass

    # -- one number per axis --

    @cached_property
    def _field(self) -> LayerField:
        return self._layer(self.node)

    @property
    def size(self) -> tuple[int | None, ...]:
        """r, the number of pixels from the first to the last one seen; None where unbounded."""
        return self._field.size

    @property
    def stride(self) -> tuple[Number | None, ...]:
        """S (Dang Ha The Hien's jump j): how far the region moves from one unit to the next."""
        return self._field.stride

    @property
    def padding(self) -> tuple[Number | None, ...]:
        """P: how many pixels before the image the region of unit 0 begins."""
        return self._field.padding

    @property
    def start(self) -> tuple[Number | None, ...]:
        """Centre of unit 0's region, pixel centres at half-integers (Dang Ha The Hien)."""
        return self._field.start

    @property
    def center(self) -> tuple[Number | None, ...]:
        """Centre of unit 0's region in pixel indices, −P + (r−1)/2: `start` less 1/2."""
        return self._field.center

    @property
    def dang(self) -> Dang:
        """n, j, r and start of Dang Ha The Hien (2017)."""
        return Dang(self.map_size, self.stride, self.size, self.start)

    @property
    def distill(self) -> Distill:
        """r, S, P, u and v of Araujo, Norris and Sim (2019), u … v seen by the whole map."""
        return distill_from_dang(self.dang)

    @property
    def period(self) -> tuple[int, ...]:
        """Number of phases: units this far apart have equal regions but for a shift."""
        state = self._pass.nodes[self.node]
        return tuple(math.lcm(*(len(e.firsts) for e in ends)) for ends in state)

    @property
    def ends(self) -> State:
        """First and last pixel of every unit's box, per axis: what `box` says, as functions of the
        unit's index, one `Ends` per jump; () where the input is not seen."""
        return self._pass.nodes[self.node]

    def of(self, output: str) -> ReceptiveField:
        """The field of another map on the same input; it costs nothing more.

        Raises:
            InputError: no node or end point is called `output`.
        """
        node = self._graph.output_node(output)
        return replace(self, node=node, map_size=self._graph.sizes[node])

    @property
    def aligned(self) -> bool:
        """Whether every path into every merge gives the same stride and centre.

        A slice of channels that leaves a misaligned concatenation is judged by itself.
        """
        return self._field.aligned

    @cached_property
    def misaligned(self) -> tuple[Misalignment, ...]:
        """The merges, and their paths, that make the field not `aligned`."""
        if self.aligned:
            return ()
        below = self._graph.ancestors(self.node)
        return tuple(
            report
            for node, reports in self._pass.misaligned.items()
            if node in below
            for report in reports
        )

    @cached_property
    def unbounded_by(self) -> tuple[str, ...]:
        """Names of the layers that make the region unbounded (global layers), in order."""
        reached = set(self._graph.planes_of[self.node])
        names: dict[str, None] = {}
        for op, maps in zip(
            reversed(self._graph.operations), reversed(self._pass.maps), strict=True
        ):
            if not any(p in reached for p, _ in op.targets):
                continue
            reached.update(q for q, _ in op.sources)
            # Spreading out what is unbounded already does not count.
            below = unite(self._pass.planes[q] for q, _ in op.sources)
            for axis, ends in enumerate(below):
                if any(isinstance(m.axes[axis], Everything) for m in maps) and any(
                    e.advance for e in ends
                ):
                    names[op.node] = None
        return tuple(reversed(names))

    @property
    def beyond(self) -> tuple[tuple[int, int], ...] | None:
        """How many pixels the units' boxes reach beyond the image at its two ends, per axis.

        None on the unbounded grid.
        """
        if self.input_size is None or self.map_size is None:
            return None
        result = []
        for ends, size, units in zip(
            self._pass.nodes[self.node], self.input_size, self.map_size, strict=True
        ):
            whole = over_map(ends, units)
            first, last = whole.firsts[0] or 0, whole.lasts[0] or 0
            result.append((max(0, -first), max(0, last - size + 1)))
        return tuple(result)

    # -- exact regions --

    def box(self, unit: Any = "center", clip: bool = False) -> Box | None:
        """First and last pixel that `unit` sees, per axis; None where it sees nothing.

        Args:
            unit: "center" (unit 0 on the unbounded grid) or one index per axis.
            clip: only what the unit sees on the image itself. Whatever a path meets in the
                padding of any map on the way ends there, so this may be less than the box cut
                to the image; mirrored and clamped borders count with what they repeat.

        Raises:
            InputError: `unit` lies outside the map, or `clip` is asked for without `input_size`.
        """
        intervals = self.intervals(unit, clip)
        if EMPTY in intervals:
            return None
        return tuple((x[0][0], x[-1][1]) for x in intervals)

    def intervals(self, unit: Any = "center", clip: bool = False) -> tuple[IntervalSet, ...]:
        """The pixels that `unit` sees, per axis as inclusive intervals: holes show.

        Arguments and errors as for `box`. A unit that sees nothing has () on every axis.
        """
        return self._region(self._graph.unit_index(self.node, unit), clip)

    def holes(self, unit: Any = "center", clip: bool = False) -> tuple[IntervalSet, ...]:
        """The pixels inside the box that `unit` does not see, per axis as inclusive intervals."""
        return tuple(map(gaps, self.intervals(unit, clip)))

    @cached_property
    def has_holes(self) -> bool:
        """Whether some unit's region has holes (padding only shifts, as in `intervals`).

        Where paths differ in stride, and no phase repeats, this is about the central unit.
        """
        if any(len(ends) > 1 for ends in self._pass.nodes[self.node]):
            return any(self.holes())
        ndim, phases = self._graph.ndim, max(self.period)
        units = phases if self.map_size is None else min(phases, max(self.map_size))
        return any(
            len(x) > 1 for unit in range(units) for x in self._region((unit,) * ndim, clip=False)
        )

    def units_seeing(self, pixel: int | Sequence[int]) -> tuple[IntervalSet, ...]:
        """The units whose region holds `pixel`, per axis as inclusive intervals.

        The inverse of `intervals`: of `intervals(clip=True)` where the input's size is known,
        else of the unbounded regions. Where no unit sees the pixel, () on every axis.

        Args:
            pixel: one index per axis, or one number for all axes.

        Raises:
            InputError: `pixel` lies outside the image.
        """
        index = self._pixel_index(pixel)
        known = self.input_size is not None
        maps = [op.maps for op in self._graph.operations] if known else self._pass.maps
        seeds = dict.fromkeys(self._graph.planes_of[self.input], tuple(((i, i),) for i in index))
        reached = _walk(self._graph, maps, seeds, "up", known)
        found = [p for plane in self._graph.planes_of[self.node] for p in reached[plane]]
        return _projections(found, self._graph.ndim)

    def _region(self, unit: Sequence[int], clip: bool) -> tuple[IntervalSet, ...]:
        if clip and self.input_size is None:
            raise InputError(
                "clip=True cuts the region to the image, whose size is not known; give "
                "input_size to receptive_field"
            )
        maps = [op.maps for op in self._graph.operations] if clip else self._pass.maps
        seeds = dict.fromkeys(self._graph.planes_of[self.node], tuple(((u, u),) for u in unit))
        reached = _walk(self._graph, maps, seeds, "back", clip)
        found = [p for plane in self._graph.planes_of[self.input] for p in reached[plane]]
        return _projections(found, self._graph.ndim)

    def _pixel_index(self, pixel: Any) -> tuple[int, ...]:
        ndim, size = self._graph.ndim, self.input_size
        values = tuple(pixel) if isinstance(pixel, Sequence | np.ndarray) else (pixel,) * ndim
        whole = all(isinstance(v, int | np.integer) and not isinstance(v, bool) for v in values)
        if len(values) != ndim or not whole:
            raise InputError(f"pixel={pixel!r} must be {ndim} whole numbers, one per axis")
        if size is not None and not all(0 <= v < n for v, n in zip(values, size, strict=True)):
            raise InputError(
                f"pixel={pixel!r} is outside the image, whose size is {size}; indices start at 0"
            )
        return tuple(int(v) for v in values)

    # -- all layers --

    @cached_property
    def layers(self) -> LayerTable:
        """The table of every layer of the network, in topological order (inputs left out)."""
        inputs = set(self.network.inputs)
        return LayerTable(self._layer(name) for name in self.network.nodes if name not in inputs)

    def _layer(self, name: str) -> LayerField:
        units = self._graph.unit_index(name, "center")
        state = self._pass.nodes[name]
        first = _axis_field(state[0], units[0])
        axes = [first] + [
            first if ends == state[0] and u == units[0] else _axis_field(ends, u)
            for ends, u in zip(state[1:], units[1:], strict=True)
        ]
        return LayerField(
            name,
            self.network.nodes[name].layer.kind,
            self._graph.sizes[name],
            tuple(a.size for a in axes),
            tuple(a.stride for a in axes),
            tuple(a.padding for a in axes),
            tuple(None if a.center is None else exact(2 * a.center + 1, 2) for a in axes),
            tuple(a.center for a in axes),
            self._pass.aligned[name],
            tuple(a.unbounded for a in axes),
        )

    def __repr__(self) -> str:
        facts = [f"{self.node!r} on {self.input!r}"]
        facts.append("unbounded" if None in self.size else f"size {_times(self.size)}")
        if None not in self.stride:
            facts.append(f"stride {_times(self.stride)}")
        if None not in self.padding:
            facts.append(f"padding {_times(self.padding)}")
        if self.map_size is not None:
            facts.append(f"map {_times(self.map_size)}")
        if not self.aligned:
            facts.append("not aligned")
        return f"ReceptiveField({', '.join(facts)})"


def _times(values: Sequence[object]) -> str:
    return "×".join(map(str, values))


def receptive_field(
    net: Any,
    output: str | None = None,
    input_size: int | Sequence[int] | Mapping[str, Any] | None = None,
    *,
    input: str | None = None,
    ignore_global: bool = False,
) -> ReceptiveField:
    """The theoretical receptive field of a network's output, and of all its layers.

    Along one axis, from the input up (Dang Ha The Hien 2017): ``j_out = j_in·s``,
    ``r_out = r_in + d(k−1)·j_in``, ``start_out = start_in + (d(k−1)/2 − lo)·j_in``, with j = 1,
    r = 1 and start = 0.5 at the input. Where paths merge, the region is their union.

    Args:
        net: a `Network`, a layer or a sequence of blocks.
        output: a node or end point; default: the network's output, or the last map before it
            lost its spatial extent.
        input_size: pixels per axis (a number, one per axis, or a mapping input name → size);
            None: the unbounded grid.
        input: the input map on which the field lies, where the network has several.
        ignore_global: leave out paths through global layers.

    Raises:
        InputError: an unknown name, a size that the network does not fit, more than
            `ends.MAX_PERIOD` phases, or no path from the input to the output.

    >>> from fastrf.layers import Conv, MaxPool
    >>> receptive_field([Conv(7, stride=2, padding=3), MaxPool(3, stride=2, padding=1)])
    ReceptiveField('maxpool1' on 'input', size 11×11, stride 4×4, padding 5×5)
    """
    network = as_network(net).bound
    graph = lower(network, input_size, ignore_global=ignore_global)
    node, source = graph.output_node(output), graph.input_node(input)
    # Fields of several maps of one network share the pass.
    found = graph.once(("ascent", source), lambda: _ascend(graph, source))
    if () in found.nodes[node]:
        if graph.joined(node, source):
            raise EmptyFieldError(
                f"no unit of {node!r} sees {source!r}: all read the gaps of transposed "
                f"convolutions; choose another stride or padding before it, or another output="
            )
        left_out = " once global layers are left out" if ignore_global else ""
        raise InputError(
            f"no path leads from the input {source!r} to {node!r}{left_out}; choose another "
            f"input= or output="
        )
    return ReceptiveField(
        network,  # not the graph's, which has gains in the place of initialisations
        node,
        source,
        graph.sizes[source],
        graph.sizes[node],
        tuple(graph.assumptions),
        graph,
        found,
    )
