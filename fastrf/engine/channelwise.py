"""The channelwise engine: one variance image per channel, through a network's own weights.

Where layers hold their weights (`Conv.weights`), the gradient variance of every channel of every
map is followed: V_x[c, i] = Σ_{k, m} w[k, c, m]² · V_y[k, o], o·s + m·d − lo = i. That is the mean
of the squared gradient over independent random signs of all weights. Layers without weights do to
each channel what they do to a plane (see `fastrf.lowering`); what mixes channels by unknown weights
hands the sum to all of them alike.

The work is a matrix product per tap, over all pixels at once, by the array library's BLAS. Every
image carries an exponent of its own, so that no gain over- or underflows; a pixel that falls below
the smallest normal number relative to its map's peak counts as 0.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastrf.arrays import Array
from fastrf.engine.direct import Propagated, nothing_read, unbounded
from fastrf.engine.forecast import Forecast
from fastrf.engine.program import mean_gain, mean_gains
from fastrf.engine.scaled import ZERO, Scaled
from fastrf.engine.windows import Span, reached, united
from fastrf.errors import InputError
from fastrf.layers import Attention, Conv, ConvTranspose, FullyConnected, Input, Norm
from fastrf.layers.weights import Weights, weights_of
from fastrf.lowering import Piece, PlaneGraph, Relation
from fastrf.maps import AxisMap, Everything, SpatialMap, Spread, Table, Window

PRODUCT_NANOSECONDS = 0.12
"""One multiplication and addition in a matrix product of float64,"""

CELL_NANOSECONDS = 10.0
"""one pixel of one channel of everything else,"""

MOVE_NANOSECONDS = 2.0
"""one pixel of one channel that one tap adds to the others',"""

TAP_SECONDS = 20e-6
"""Python's share of a tap,"""

NODE_SECONDS = 100e-6
"""and Python's share of a node. Rough: of eight stacks of 3 to 12 convolutions (8 to 128 channels,
1 to 3 axes, kernels of 3 and 7) they foretell half to twice the time of one thread, on a machine
that others used too. No other engine serves these networks, so that nothing is chosen by them."""

_MIXING = (Attention, Conv, ConvTranspose, FullyConnected)

ROOM_BYTES = 1 << 16
"""What a walk takes that is no array of pixels or weights (tracemalloc: 0.01 to 0.13 MiB)."""


def needed(graph: PlaneGraph, node: str, input_node: str) -> bool:
    """Whether a layer on the way holds its weights, channel by channel."""

    def found() -> bool:
        nodes = {op.node for op in graph.between(node, input_node)}
        return any(weights_of(graph.network.nodes[name].layer) is not None for name in nodes)

    def anywhere() -> bool:
        return any(weights_of(node.layer) is not None for node in graph.network.nodes.values())

    return graph.once("weights", anywhere) and graph.once(("weights", node, input_node), found)


def obstacle(graph: PlaneGraph, node: str, input_node: str) -> str | None:
    """Why the engine does not serve a field."""
    if not needed(graph, node, input_node):
        return "no layer holds its weights"
    unknown = _unknown(graph, node)
    if unknown is None:
        return None
    layer = graph.network.nodes[unknown].layer
    remedy = "put Input(channels) there" if isinstance(layer, Input) else "give its layer channels="
    return f"the number of channels of {unknown!r} is not known; {remedy}"


def _unknown(graph: PlaneGraph, node: str) -> str | None:
    """The first map whose number of channels is not known and matters. It does not where all are
    mixed that read it: such a map counts as one channel."""
    wanted = graph.ancestors(node)
    found: set[str] = set()
    for name in wanted:
        own = graph.network.nodes[name]
        if graph.channels[name] is not None and not isinstance(own.layer, _MIXING):
            found.update(source for source in own.inputs if graph.channels[source] is None)
    return next((name for name in graph.network.nodes if name in found), None)


@dataclass(frozen=True, slots=True)
class Image:
    """A window of a map's variances: value = array · 2^exponent.

    Attributes:
        array: (channels, *pixels), its largest value from 1/2 to 1.
        origin: index of array[:, 0, …] on the map, per axis.
    """

    array: Array
    origin: tuple[int, ...]
    exponent: int

    @property
    def spans(self) -> list[Span]:
        return list(zip(self.origin, self.array.shape[1:], strict=True))


def propagate_channelwise(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    *,
    kernels: Any = None,
    dtype: Any = np.float64,
    workers: int = 1,
    tail: float | None = None,
    progress: Callable[[float], None] | None = None,
    channel: int | None = None,
    xp: Any = np,
) -> Propagated:
    """As `direct.propagate`, channel by channel; the image is the sum over the input's channels.

    Args:
        channel: of the unit; None: the mean over all its channels.
        kernels, workers: not needed: the array library multiplies on threads of its own.
        tail: nothing is dropped.

    Raises:
        InputError: weights do not fit the maps that they are used on.
    """
    count = graph.channels[node] or 1
    seed = xp.full((count, *(1,) * graph.ndim), 1 / count, dtype)
    if channel is not None:
        seed[...] = 0
        seed[channel] = 1
    walk = _Walk(graph, node, input_node, xp, np.dtype(dtype))
    final = walk.run(Image(seed, unit, 0), progress or (lambda share: None))
    if final is None:
        raise nothing_read(graph, node, unit, input_node, "weights of 0")
    return _finished(final, walk.lost, xp)


def _finished(image: Image, lost: Scaled, xp: Any) -> Propagated:
    summed = image.array.sum(axis=0, dtype=np.float64)
    window = []
    origin = []
    for axis, first in enumerate(image.origin):
        others = tuple(a for a in range(summed.ndim) if a != axis)
        (held,) = xp.nonzero(summed.any(axis=others))
        start, stop = int(held[0]), int(held[-1]) + 1
        window.append(slice(start, stop))
        origin.append(first + start)
    kept = summed[tuple(window)]
    total = float(kept.sum())
    mass = Scaled.of(total, image.exponent)
    pixels = (kept / total).astype(image.array.dtype)
    return Propagated(pixels, tuple(origin), mass, lost.over(mass + lost), 0.0)


class _Walk:
    """One pass backwards over the nodes between a unit and an input."""

    def __init__(
        self, graph: PlaneGraph, node: str, input_node: str, xp: Any, dtype: np.dtype[Any]
    ) -> None:
        self.graph, self.node, self.input_node = graph, node, input_node
        self.xp, self.dtype = xp, dtype
        self.images: dict[str, Image] = {}
        self.lost = ZERO
        gains = mean_gains(graph, input_node)
        self.gains = {
            name: sum((gains[p] * graph.planes[p].share for p in planes), ZERO)
            for name, planes in graph.planes_of.items()
        }

    def run(self, seed: Image, progress: Callable[[float], None]) -> Image | None:
        """The image of the input's channels; None where nothing arrives."""
        graph, nodes = self.graph, self.graph.network.nodes
        self.images[self.node] = seed
        names = list(nodes)
        count = names.index(self.node) + 1
        for done, name in enumerate(reversed(names[:count]), 1):
            image = self.images.get(name)
            if name == self.input_node or image is None:
                continue
            del self.images[name]
            for source, (relations, pieces) in zip(
                nodes[name].inputs, graph.ways[name], strict=True
            ):
                if not self.gains[source].mantissa:
                    continue  # no path leads on to the input
                for relation, piece in itertools.product(relations, pieces):
                    self._hand_back(name, source, relation, piece, image)
            progress(done / count)
        return self.images.get(self.input_node)

    def _hand_back(
        self, name: str, source: str, relation: Relation, piece: Piece, image: Image
    ) -> None:
        layer = self.graph.network.nodes[name].layer
        maps = piece.maps if relation.maps is None else relation.maps
        if any(m.is_global and m.size_in is None for m in maps):
            raise unbounded(name)
        own = weights_of(layer)
        read = self.graph.channels[source] or 1
        part = replace(image, array=image.array * self.dtype.type(piece.gain * relation.weight))
        pairs = relation.paired(read)
        if isinstance(layer, Conv | ConvTranspose | FullyConnected) and own is not None:
            found = self._contracted(name, read, own, maps[-1], part)
            moved = self._moved(maps[:-1], self._inside(source, maps, len(maps) - 1, found), source)
        elif pairs is not None:
            # A gather of channels first, so that only those are moved that are read.
            to, of = map(self.xp.asarray, pairs)
            chosen = replace(part, array=part.array[of])
            moved = self._moved(maps, chosen, source)
            if moved is not None:
                whole = self.xp.zeros((read, *moved.array.shape[1:]), self.dtype)
                whole[to] = moved.array
                moved = replace(moved, array=whole)
            if isinstance(layer, Norm) and own is not None and moved is not None:
                squares = own.squares()
                factors = self.xp.asarray(squares / (squares.mean() or 1.0), self.dtype)
                moved = replace(moved, array=moved.array * _column(factors, self.graph.ndim))
        else:
            blocks = relation.blocks
            summed = part.array.reshape(blocks, -1, *part.array.shape[1:]).sum(axis=1)
            moved = self._moved(maps, replace(part, array=summed), source)
            if moved is not None:
                alike = read // blocks
                array = self.xp.repeat(moved.array / alike, alike, axis=0)
                moved = replace(moved, array=array)
        if moved is not None:
            normal = self._normal(moved)
            if normal is not None:
                self.images[source] = self._sum(self.images.get(source), normal)

    # --- maps -------------------------------------------------------------------------------

    def _moved(self, maps: Sequence[SpatialMap], image: Image | None, source: str) -> Image | None:
        """The image behind transposed maps, each channel by itself."""
        for number in range(len(maps) - 1, -1, -1):
            if image is None:
                return None
            moved = self._transposed(maps[number], image)
            image = self._inside(source, maps, number, moved)
        return image

    def _transposed(self, move: SpatialMap, image: Image) -> Image:
        if isinstance(move.taps, np.ndarray):
            kernel = move.taps.shape
            taps = move.taps.reshape(1, 1, *kernel) * move.gain
            return self._products(move.axes, image, kernel, lambda at, y: y * taps[(0, 0, *at)])
        image = replace(image, array=image.array * self.dtype.type(move.gain))
        for axis, axis_map in enumerate(move.axes):
            image = self._along(axis, axis_map, move.axis_taps(axis), move, image)
        return image

    def _along(
        self, axis: int, axis_map: AxisMap, taps: Any, move: SpatialMap, image: Image
    ) -> Image:
        """The transposed map along one axis."""
        if isinstance(axis_map, Window | Spread):
            if axis_map == Window():
                return image
            line = np.full(axis_map.kernel, 1 / axis_map.kernel) if taps is None else taps
            axes = tuple(axis_map if a == axis else Window() for a in range(len(move.axes)))
            kernel = tuple(axis_map.kernel if a == axis else 1 for a in range(len(move.axes)))
            return self._products(axes, image, kernel, lambda at, y: y * line[at[axis]])
        size = None if move.size_in is None else move.size_in[axis]
        span = image.spans[axis]
        (start, count), _ = reached(axis_map, span, size)
        matrix = np.zeros((count, span[1]))
        if isinstance(axis_map, Everything):
            matrix[...] = 1 / count
        else:
            assert isinstance(axis_map, Table)
            starts, rows = axis_map.rows(*span)
            for m in range(rows.shape[1]):
                at = starts - start + m
                inside = (at >= 0) & (at < count)
                matrix[at[inside], np.flatnonzero(inside)] += rows[inside, m]
        product = self.xp.tensordot(
            self.xp.asarray(matrix, self.dtype), image.array, axes=(1, axis + 1)
        )
        origin = (*image.origin[:axis], start, *image.origin[axis + 1 :])
        return Image(self.xp.moveaxis(product, 0, axis + 1), origin, image.exponent)

    def _contracted(
        self,
        name: str,
        read: int,
        weights: Weights,
        move: SpatialMap,
        image: Image,
    ) -> Image:
        """The image of the channels read behind a layer's own weights, squared."""
        layer = self.graph.network.nodes[name].layer
        assert isinstance(layer, Conv | ConvTranspose | FullyConnected)
        kernel = weights.shape[2:]
        squares = self.xp.asarray(weights.squares(), self.dtype)
        transposed = isinstance(layer, ConvTranspose)
        axes = move.axes
        if move.is_global:
            if move.size_in != kernel:
                raise InputError(
                    f"{name}: weights over {kernel} pixels do not fit a map of "
                    f"{move.size_in}; give the input_size that they were trained with"
                )
            axes = tuple(Window(k) for k in kernel)
        written = image.array.shape[0]
        groups = (written if transposed else read) // weights.shape[1]
        split = squares.reshape(groups, -1, *weights.shape[1:])
        if not transposed:
            split = split.swapaxes(1, 2)
        # By tap a matrix (read, written) per group, both counts of one group.
        taps = self.xp.ascontiguousarray(self.xp.moveaxis(split, (0, 1, 2), (-3, -2, -1)))

        def product(at: tuple[int, ...], y: Array) -> Array:
            tap, flat = taps[at], y.reshape(groups, written // groups, -1)
            if tap.shape[2] == 1:
                found = tap * flat
            else:  # one product alone is quicker than a batch of one
                found = tap[0] @ flat[0] if groups == 1 else tap @ flat
            return found.reshape(-1, *y.shape[1:])

        return self._products(axes, image, kernel, product, taps.shape[-2] * groups)

    def _products(
        self,
        axes: Sequence[AxisMap],
        image: Image,
        kernel: Sequence[int],
        product: Callable[[tuple[int, ...], Array], Array],
        channels: int | None = None,
    ) -> Image:
        """Σ over the taps of a kernel of what each hands back, moved to where it reads.

        Args:
            product: of a tap and the part of the image that meets it.
            channels: that it returns; default: the image's.
        """
        whole = [reached(a, span, None)[0] for a, span in zip(axes, image.spans, strict=True)]
        shape = [max(count, 0) for _, count in whole]
        out = self.xp.zeros((channels or image.array.shape[0], *shape), self.dtype)
        for at in itertools.product(*map(range, kernel)):
            slices = [
                _slices(axis, m, span, x)
                for axis, m, span, x in zip(axes, at, image.spans, whole, strict=True)
            ]
            if all(s is not None for s in slices):
                to, of = zip(*(s for s in slices if s is not None), strict=True)
                part = image.array[(slice(None), *of)]
                out[(slice(None), *to)] += product(at, part)
        return Image(out, tuple(start for start, _ in whole), image.exponent)

    def _inside(
        self, source: str, maps: Sequence[SpatialMap], number: int, image: Image
    ) -> Image | None:
        """The part of an image behind a map that lies on what that reads; the rest is lost."""
        size = maps[number].size_in
        if size is None:
            return image
        below = self.gains[source]
        for m in maps[:number]:
            below = below * mean_gain(m)
        array, origin = image.array, image.origin
        for axis, n in enumerate(size):
            start, count = origin[axis], array.shape[axis + 1]
            first, last = max(-start, 0), min(n - start, count)
            kept = slice(first, max(last, first))
            window = (*(slice(None),) * (axis + 1), kept)
            inside = array[window]
            if inside.shape != array.shape:
                fallen = float(array.sum(dtype=np.float64) - inside.sum(dtype=np.float64))
                self.lost += Scaled.of(max(fallen, 0.0), image.exponent) * below
                array, origin = inside, (*origin[:axis], start + first, *origin[axis + 1 :])
        return replace(image, array=array, origin=origin) if array.size else None

    # --- sums and scales --------------------------------------------------------------------

    def _normal(self, image: Image) -> Image | None:
        """The image with its largest value from 1/2 to 1; None where all of it is 0."""
        largest = float(image.array.max()) if image.array.size else 0.0
        if not largest:
            return None
        _, shift = math.frexp(largest)
        array = self.xp.ldexp(image.array, -shift)
        array[array < np.finfo(self.dtype).tiny] = 0
        return replace(image, array=array, exponent=image.exponent + shift)

    def _sum(self, a: Image | None, b: Image) -> Image:
        if a is None:
            return b
        exponent = max(a.exponent, b.exponent)
        spans = [united(x, y) for x, y in zip(a.spans, b.spans, strict=True)]
        out = self.xp.zeros((a.array.shape[0], *(count for _, count in spans)), self.dtype)
        for image in (a, b):
            ends = zip(image.spans, spans, strict=True)
            window = tuple(slice(x - w, x - w + n) for (x, n), (w, _) in ends)
            shift = max(image.exponent - exponent, -4 * np.finfo(self.dtype).maxexp)
            out[(slice(None), *window)] += self.xp.ldexp(image.array, shift)
        total = self._normal(Image(out, tuple(start for start, _ in spans), exponent))
        assert total is not None, "both terms hold something"
        return total


def _column(values: Array, ndim: int) -> Array:
    """One value per channel, for images of `ndim` axes."""
    return values.reshape(-1, *(1,) * ndim)


def _slices(axis: AxisMap, m: int, y: Span, x: Span) -> tuple[slice, slice] | None:
    """Where tap m of an axis reads (in the window x) what it hands back of the window y."""
    (first, count), (start, length) = y, x
    if isinstance(axis, Window):
        begin = first * axis.stride + m * axis.dilation - axis.lo - start
        stop = begin + (count - 1) * axis.stride + 1
        return slice(begin, stop, axis.stride), slice(0, count)
    assert isinstance(axis, Spread)
    # y = x·stride + m·dilation − lo
    offset = m * axis.dilation - axis.lo
    low = max(-(-(first - offset) // axis.stride), start)
    high = min((first + count - 1 - offset) // axis.stride, start + length - 1)
    if high < low:
        return None
    begin = low * axis.stride + offset - first
    stop = (high - low) * axis.stride + begin + 1
    return slice(low - start, high - start + 1), slice(begin, stop, axis.stride)


def of_channelwise(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    dtype: np.dtype[Any],
    tail: float | None,
    tol: float = 0.0,
) -> Forecast:
    """What `propagate_channelwise` will do: its walk, with windows in the place of images."""
    nodes = graph.network.nodes
    windows: dict[str, list[Span]] = {node: [(u, 1) for u in unit]}
    most, products, cells, largest = 0, 0, 0, 1
    taps, moved, size = 0, 0, dtype.itemsize

    def pixels(name: str) -> int:
        return math.prod(max(count, 0) for _, count in windows[name])

    def held(name: str) -> int:
        return pixels(name) * (graph.channels[name] or 1)

    names = list(nodes)
    reached_by = {op.node for op in graph.between(node, input_node)}
    for name in reversed(names[: names.index(node) + 1]):
        if name not in windows or name not in reached_by:
            continue
        layer = nodes[name].layer
        own = weights_of(layer)
        # The image, and with the gain of one way; what other maps hold.
        entered, written = held(name), pixels(name)
        live = sum(held(other) for other in windows if other != name)
        for source, (relations, pieces) in zip(nodes[name].inputs, graph.ways[name], strict=True):
            read = graph.channels[source] or 1
            for relation, piece in itertools.product(relations, pieces):
                maps = piece.maps if relation.maps is None else relation.maps
                spans, before = _reached(maps, windows[name]), windows.get(source)
                whole = read * _most(maps, windows[name])
                inside = read * math.prod(max(count, 0) for _, count in spans)
                if isinstance(layer, Conv | ConvTranspose | FullyConnected) and own is not None:
                    spread = isinstance(layer, ConvTranspose)
                    met = inside // read if spread else written
                    kernel = math.prod(own.array.shape[2:])
                    # The squares, in double precision and in the image's type; ordered by tap,
                    # unless they are; what taps are added up to, one tap's part, and what that
                    # reads, where it is no piece of memory.
                    squares = own.array.size * (1 + 8 // size if size < 8 else 1)
                    ordered = spread and kernel == 1
                    strided = spread * met * (graph.channels[name] or 1)
                    at_work = own.array.size * (2 - ordered) + whole + read * met + strided
                    beside = max(squares, at_work)
                    products += own.array.size * met
                    taps += kernel
                    moved += kernel * read * met
                else:
                    pairs = relation.paired(read)
                    chosen = written * (relation.blocks if pairs is None else len(pairs[1]))
                    beside = chosen + (chosen + whole * chosen // max(entered, 1) if maps else 0)
                    whole = max(whole, inside)
                    beside = max(beside + chosen, chosen + 2 * inside)
                    beside, whole = max(beside, chosen + whole), chosen + whole
                # Scaled to its largest value, with what of it is too small.
                normal = whole + inside + inside // size
                windows[source] = spans if before is None else list(map(united, before, spans))
                if before is not None:
                    # Added up, with one of the two scaled.
                    sizes = read * math.prod(max(n, 0) for _, n in before)
                    normal = max(normal, whole + inside + held(source) + max(sizes, inside))
                most = max(most, live + 2 * entered + max(beside, normal))
                live += held(source) - (
                    0 if before is None else read * math.prod(max(n, 0) for _, n in before)
                )
                cells += held(source)
                largest = max(largest, pixels(source))
        del windows[name]
    steps, support = len(reached_by), tuple(windows.get(input_node, ()))
    result = math.prod(max(count, 0) for _, count in support)
    # The sum over the channels, in double precision, over its total, and in the image's type.
    finish = held(input_node) * size + (16 + size) * result if support else 0
    return Forecast(
        steps,
        support,
        cells + products,
        steps * NODE_SECONDS + taps * TAP_SECONDS,
        1e-9
        * (PRODUCT_NANOSECONDS * products + MOVE_NANOSECONDS * moved + CELL_NANOSECONDS * cells),
        max(most * size, finish) + ROOM_BYTES,
        largest,
    )


def _most(maps: Sequence[SpatialMap], spans: list[Span]) -> int:
    """Pixels of the largest window on the way through transposed maps, before it is cut."""
    most = math.prod(max(count, 0) for _, count in spans)
    for move in reversed(maps):
        sizes = move.size_in or (None,) * len(spans)
        if move.is_global and move.size_in is None:
            return most
        both = [reached(a, s, n) for a, s, n in zip(move.axes, spans, sizes, strict=True)]
        most = max(most, math.prod(max(count, 0) for (_, count), _ in both))
        spans = [inside for _, inside in both]
    return most


def _reached(maps: Sequence[SpatialMap], spans: list[Span]) -> list[Span]:
    """The window of what a node reads, by one way, that a window of what it writes reaches."""
    for move in reversed(maps):
        sizes = move.size_in or (None,) * len(spans)
        if any(
            isinstance(a, Everything) and n is None for a, n in zip(move.axes, sizes, strict=True)
        ):
            return spans  # no field passes: `propagate_channelwise` says so
        spans = [
            reached(axis, span, size)[1]
            for axis, span, size in zip(move.axes, spans, sizes, strict=True)
        ]
    return spans
