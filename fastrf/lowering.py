"""Network → planes: the graph of images that engines and analytic formulas walk over.

A plane is a group of channels of one map that every reader treats alike, so that its channels
share one gradient-variance image. A map whose readers all read all channels is one plane; where
channels part ways (slices, shuffles, grouped convolutions fed differently) it has several.

Variances are summed over channels: a random layer of gain 1 then keeps the sum, and a
concatenation hands it on in proportion to the channels (Luo et al. 2016, eq. 8, with the
channel sum in place of one channel). `Operation` says how: backwards it adds up its targets'
images, times their shares, applies the transposed maps, and hands the result to its sources in
proportion to theirs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastrf.errors import InputError
from fastrf.layers import (
    AdaptivePool,
    Add,
    Attention,
    ChannelShuffle,
    ChannelSlice,
    Concat,
    Conv,
    ConvTranspose,
    FullyConnected,
    GlobalPool,
    Input,
    Layer,
    Norm,
    PixelShuffle,
    PixelUnshuffle,
    SqueezeExcite,
    Upsample,
)
from fastrf.layers.checks import MAXIMUM, MAXIMUM_CHANNELS, is_whole, short
from fastrf.maps import Everything, Size, SpatialMap, Spread, Window
from fastrf.network import Network, Node

Shares = tuple[tuple[int, float], ...]
"""(plane, share) pairs."""

Labels = NDArray[np.int64]
"""One label per channel of a map (one label where the number of channels is not known)."""

KEPT_GRAPHS = 4
"""Lowered graphs kept with a network: one or two input sizes, with and without global paths."""

T = TypeVar("T")

UNREAD = -1
"""Label of channels that one reader does not read."""


@dataclass(frozen=True, slots=True)
class Plane:
    """A group of channels of node `node` that holds `share` of the node's channels."""

    node: str
    share: float


@dataclass(frozen=True, slots=True)
class Operation:
    """One linear piece of a layer, between planes.

    Attributes:
        node: the layer's node.
        maps: primitive maps in forward order; () where no pixel moves.
        sources: planes read, each with its share of the gradient handed back (sums to 1, or
            each 1 where one channel is read for all).
        targets: planes written, each with the share of its gradient that enters here.
        gain: pointwise gain on top of the maps' gains.
    """

    node: str
    maps: tuple[SpatialMap, ...]
    sources: Shares
    targets: Shares
    gain: float = 1.0

    @property
    def is_global(self) -> bool:
        return any(m.is_global for m in self.maps)


@dataclass(slots=True)
class PlaneGraph:
    """A lowered network.

    Attributes:
        network: the bound network.
        input_size: pixels of the input map(s), or None on the unbounded grid.
        planes: every plane, inputs first, in topological order of their nodes.
        operations: in topological order.
        planes_of: node → its planes' numbers.
        sizes: node → map size (None on the unbounded grid).
        channels: node → number of channels, None where not known.
        collapsed: nodes that have lost their spatial extent (behind global pooling).
        assumptions: what was assumed where the network does not say.
        derived: what others have worked out from this graph, to be worked out only once.
    """

    network: Network
    ndim: int
    input_size: Size | None
    planes: list[Plane] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    planes_of: dict[str, list[int]] = field(default_factory=dict)
    sizes: dict[str, Size | None] = field(default_factory=dict)
    channels: dict[str, int | None] = field(default_factory=dict)
    collapsed: set[str] = field(default_factory=set)
    assumptions: list[str] = field(default_factory=list)
    derived: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, made at the first call with this key."""
        if key not in self.derived:
            self.derived[key] = make()
        found: T = self.derived[key]
        return found

    def output_node(self, output: str | None) -> str:
        """The node that `output` names; by default the network's output, or the last map before
        it lost its spatial extent."""
        if output is not None:
            if not isinstance(output, str):
                raise InputError(f"output={output!r} must be the name of a node or an end point")
            return self.network.resolve(output)
        node = self.network.outputs[0]
        if len(self.network.outputs) > 1:
            raise InputError(
                f"the network has {len(self.network.outputs)} outputs; give output= one of "
                f"{', '.join(self.network.outputs)}"
            )
        frontier, seen, found = [node], {node}, []
        while frontier:
            at = frontier.pop()
            if at not in self.collapsed:
                found.append(at)
                continue
            fresh = [s for s in self.network.nodes[at].inputs if s not in seen]
            seen.update(fresh)
            frontier.extend(fresh)
        order = {name: i for i, name in enumerate(self.network.nodes)}
        return max(found, key=order.__getitem__)

    def input_node(self, name: str | None) -> str:
        """The input map that `name` names; by default the only one."""
        inputs = self.network.inputs
        if name is None and len(inputs) == 1:
            return inputs[0]
        if name not in inputs:
            raise InputError(
                f"input={name!r} is not an input of the network; give input= one of "
                f"{', '.join(inputs)}"
            )
        return name

    def unit_index(self, node: str, unit: Any) -> tuple[int, ...]:
        """`unit` as one index per axis of `node`'s map.

        "center" is index ⌊n/2⌋ of each axis, or 0 on the unbounded grid.
        """
        size = self.sizes[node]
        if isinstance(unit, str):
            if unit != "center":
                raise InputError(f"unit={unit!r} is unknown; give 'center' or one index per axis")
            return (0,) * self.ndim if size is None else tuple(n // 2 for n in size)
        values = _spelled_out(unit, self.ndim)
        if len(values) != self.ndim or not all(map(is_whole, values)):
            raise InputError(
                f"unit={short(unit)} must be 'center' or {self.ndim} whole numbers, one per axis"
            )
        if size is not None and not all(0 <= v < n for v, n in zip(values, size, strict=True)):
            raise InputError(
                f"unit={unit!r} is outside the map of {node!r}, whose size is {size}; "
                f"indices start at 0"
            )
        return tuple(int(v) for v in values)

    def between(self, node: str, input_node: str) -> list[Operation]:
        """The operations on paths from `input_node` to `node`, in topological order."""
        return self.once(("between", node, input_node), lambda: self._between(node, input_node))

    def _between(self, node: str, input_node: str) -> list[Operation]:
        wanted = self.ancestors(node)
        reached = set(self.planes_of[input_node])
        found = []
        for op in self.operations:
            if op.node in wanted and any(q in reached for q, _ in op.sources):
                reached.update(p for p, _ in op.targets)
                found.append(op)
        return found

    def ancestors(self, node: str) -> set[str]:
        """`node` and every node that it depends on."""
        seen, stack = {node}, [node]
        while stack:
            for source in self.network.nodes[stack.pop()].inputs:
                if source not in seen:
                    seen.add(source)
                    stack.append(source)
        return seen


def lower(
    network: Network,
    input_size: int | Sequence[int] | Mapping[str, Any] | None = None,
    *,
    ignore_global: bool = False,
) -> PlaneGraph:
    """Lowers a network to planes; the graph is kept with the network and must not be changed.

    Args:
        network: any network; it is bound first.
        input_size: pixels per axis of the input (a number, one per axis, or a mapping input
            name → size); None: the unbounded grid, where no unit ever meets a border.
        ignore_global: leave out every path on which a unit reads the whole map at once.

    Raises:
        InputError: a map shrinks below 1, merged maps differ in size, channels do not fit.
    """
    network = network.bound
    ndim = network.ndim or 0
    sizes = _input_sizes(network, input_size, ndim)
    key = (tuple(sizes.values()), ignore_global)
    if key not in network.lowered:
        graph = _lowered(network, ndim, sizes, ignore_global)
        while len(network.lowered) >= KEPT_GRAPHS:
            network.lowered.pop(next(iter(network.lowered)), None)
        network.lowered[key] = graph
    kept: PlaneGraph = network.lowered[key]
    return kept


def _lowered(
    network: Network, ndim: int, sizes: dict[str, Size | None], ignore_global: bool
) -> PlaneGraph:
    graph = PlaneGraph(network, ndim, next(iter(sizes.values()), None))
    maps = _forward(graph, sizes, ignore_global)
    labels = _label(graph)
    _number_planes(graph, labels)
    for node in network.nodes.values():
        for i, source in enumerate(node.inputs):
            pieces = maps[node.name][i]
            channels = (graph.channels[source], graph.channels[node.name])
            for part in _relations(graph, node, i, *channels):
                for own in pieces:
                    graph.operations.extend(_operations(graph, node, source, labels, part, own))
    return graph


# --- sizes ----------------------------------------------------------------------------------


def _input_sizes(network: Network, given: Any, ndim: int) -> dict[str, Size | None]:
    if isinstance(given, Mapping):
        if set(given) != set(network.inputs) or len({v is None for v in given.values()}) > 1:
            raise InputError(
                f"input_size={dict(given)!r} must give a size for each of the network's inputs "
                f"{', '.join(network.inputs)}, or be None as a whole"
            )
        return {name: _size(given[name], ndim) for name in network.inputs}
    return {name: _size(given, ndim) for name in network.inputs}


def _size(given: Any, ndim: int) -> Size | None:
    if given is None:
        return None
    values = _spelled_out(given, ndim)
    whole = len(values) == ndim and all(map(is_whole, values))
    if not whole or min(values) < 1 or max(values) > MAXIMUM:
        raise InputError(
            f"input_size={short(given)} must be a whole number from 1 to {MAXIMUM}, "
            f"or {ndim} of them"
        )
    return tuple(int(v) for v in values)


def _spelled_out(value: Any, ndim: int) -> tuple[Any, ...]:
    """One value per axis; text and bytes are not taken apart."""
    several = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)
    return tuple(value) if several else (value,) * ndim


@dataclass(frozen=True, slots=True)
class _Piece:
    """One way from a node's input to its output: its maps and pointwise gain."""

    maps: tuple[SpatialMap, ...] = ()
    gain: float = 1.0


def _forward(
    graph: PlaneGraph, sizes: dict[str, Size | None], ignore_global: bool
) -> dict[str, list[list[_Piece]]]:
    """Fills sizes, channels and collapsed; returns the pieces of every node, per input."""
    pieces: dict[str, list[list[_Piece]]] = {}
    for node in graph.network.nodes.values():
        layer = node.layer
        try:
            if isinstance(layer, Input):
                graph.sizes[node.name] = sizes[node.name]
                graph.channels[node.name] = layer.channels
                pieces[node.name] = []
                continue
            channels = layer.output_channels([graph.channels[i] for i in node.inputs])
            if channels is not None and channels > MAXIMUM_CHANNELS:
                raise InputError(
                    f"{type(layer).__name__} writes {channels} channels, more than "
                    f"{MAXIMUM_CHANNELS}; give fewer channels to the layers before"
                )
            graph.channels[node.name] = channels
            merge = isinstance(layer, Add | Concat)
            find = _merge_pieces if merge else _single_pieces
            pieces[node.name] = [
                [p for p in ways if not (ignore_global and any(m.is_global for m in p.maps))]
                for ways in find(graph, node, ignore_global)
            ]
        except InputError as error:
            raise type(error)(f"{node.name}: {error}") from None
    return pieces


def _single_pieces(graph: PlaneGraph, node: Node, ignore_global: bool) -> list[list[_Piece]]:
    layer, source = node.layer, node.inputs[0]
    size, unbounded = graph.sizes[source], graph.input_size is None
    lost = source in graph.collapsed
    gain = layer.pointwise_gain
    if unbounded and lost:
        # A map of one position: convolutions see nothing but it, resizing spreads it out again.
        graph.sizes[node.name] = None
        if isinstance(layer, Upsample):
            return [[_Piece((_everything(graph, None, None, "fixed", 1.0),), gain)]]
        graph.collapsed.add(node.name)
        return [[_Piece((), gain)]]
    if isinstance(layer, Attention) and ignore_global:
        graph.sizes[node.name] = size
        return [[_Piece((), layer.gain)]]
    # Equal layers of a network are one object: a thousand of them share their maps.
    maps = graph.once(("maps", id(layer), size), lambda: layer.maps(size, graph.ndim))
    out = maps[-1].size_out if maps else size
    graph.sizes[node.name] = out
    if _collapses(layer, unbounded) or (lost and (out is None or max(out) == 1)):
        graph.collapsed.add(node.name)
    ways = [_Piece(maps, gain)]
    if isinstance(layer, SqueezeExcite) or (isinstance(layer, Norm) and layer.whole_map):
        pixels = 1 if size is None else math.prod(size)
        ways.append(_Piece((_everything(graph, size, size, "fixed", 1 / pixels),), gain))
    if isinstance(layer, Conv) and layer.groups == "depthwise" and layer.channels is not None:
        channels = graph.channels[source]
        if channels is not None and layer.channels % channels:
            raise InputError(
                f"channels={layer.channels} of a depthwise convolution must be a multiple of "
                f"the {channels} channels it reads"
            )
    return [ways]


def _collapses(layer: Layer, unbounded: bool) -> bool:
    if isinstance(layer, AdaptivePool):
        return unbounded or max(layer.output_size) == 1
    return isinstance(layer, GlobalPool) or (
        isinstance(layer, FullyConnected) and layer.map_size is None
    )


def _everything(
    graph: PlaneGraph, size: Size | None, out: Size | None, kind: Any, gain: float
) -> SpatialMap:
    return SpatialMap((Everything(),) * graph.ndim, kind, gain, None, size, out)


def _merge_pieces(graph: PlaneGraph, node: Node, ignore_global: bool) -> list[list[_Piece]]:
    """Ways into a sum, product or concatenation; maps of one position are broadcast."""
    flat = [i in graph.collapsed for i in node.inputs]
    if all(flat):
        graph.collapsed.add(node.name)
    if graph.input_size is None:
        graph.sizes[node.name] = None
        spread = (_everything(graph, None, None, "fixed", 1.0),)
        return [[_Piece(spread if f and not all(flat) else ())] for f in flat]
    sizes = [graph.sizes[i] or () for i in node.inputs]
    out = tuple(max(s[axis] for s in sizes) for axis in range(graph.ndim))
    graph.sizes[node.name] = out
    ways = []
    for source, size in zip(node.inputs, sizes, strict=True):
        single = () if isinstance(node.layer, Concat) else (1,)  # concatenation does not broadcast
        if any(n not in (m, *single) for n, m in zip(size, out, strict=True)):
            raise InputError(
                f"the maps read differ in size: "
                f"{', '.join(f'{i} {s}' for i, s in zip(node.inputs, sizes, strict=True))}; "
                f"choose an input_size, padding or Crop that makes them equal (at {source})"
            )
        axes = tuple(Window() if n == m else Everything() for n, m in zip(size, out, strict=True))
        broadcast = SpatialMap(axes, "fixed", 1.0, None, size, out)
        ways.append([_Piece(() if size == out else (broadcast,))])
    return ways


# --- channels -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Relation:
    """Which channels of a node's input meet which of its output.

    `blocks` is the number of channel groups that meet only among themselves (1: everything
    meets everything); where `pairs` is given, channel pairs[0][i] of the input meets channel
    pairs[1][i] of the output alone. `weight` is the share of the gradient that goes this way,
    and `maps` replaces the layer's own maps where they depend on the channel.
    """

    blocks: int = 1
    pairs: tuple[Labels, Labels] | None = None
    weight: float = 1.0
    maps: tuple[SpatialMap, ...] | None = None


def _relations(
    graph: PlaneGraph, node: Node, i: int, c_in: int | None, c_out: int | None
) -> list[_Relation]:
    layer = node.layer
    if isinstance(layer, Conv | ConvTranspose):
        return [_Relation(blocks=_group_count(layer, c_in, c_out))]
    if isinstance(layer, FullyConnected | Attention):
        return [_Relation()]
    if isinstance(layer, Concat):
        if c_out is None or c_in is None:
            return [_Relation(weight=1 / len(node.inputs))]
        before = sum(graph.channels[s] or 0 for s in node.inputs[:i])
        own = np.arange(c_in)
        return [_Relation(pairs=(own, own + before))]
    if c_in is None or c_out is None:
        return [_Relation()]
    if isinstance(layer, ChannelSlice):
        kept = np.arange(c_in)[layer.start : layer.stop : layer.step]
        return [_Relation(pairs=(kept, np.arange(len(kept))))]
    if isinstance(layer, ChannelShuffle):
        order = np.arange(c_in).reshape(layer.groups, -1).T.ravel()
        return [_Relation(pairs=(order, np.arange(c_in)))]
    if isinstance(layer, PixelShuffle | PixelUnshuffle):
        return _phase_relations(graph, node, min(c_in, c_out))
    if c_in != c_out:
        return [_Relation()]  # one channel broadcast over all, or all read as one
    return [_Relation(pairs=(np.arange(c_in), np.arange(c_in)))]


def _group_count(layer: Conv | ConvTranspose, c_in: int | None, c_out: int | None) -> int:
    if c_in is None or c_out is None:
        return 1
    groups = c_in if layer.groups == "depthwise" else layer.groups
    if c_in % groups or c_out % groups:
        raise InputError(
            f"groups={groups} must divide the {c_in} channels read and the {c_out} written"
        )
    return groups


def _phase_relations(graph: PlaneGraph, node: Node, channels: int) -> list[_Relation]:
    """Pixel (un)shuffles: each phase of the finer grid is a channel of the coarser one."""
    layer = node.layer
    assert isinstance(layer, PixelShuffle | PixelUnshuffle)
    size, out = graph.sizes[node.inputs[0]], graph.sizes[node.name]
    count = math.prod(layer.factor)
    few = np.arange(channels)
    primitive = Spread if isinstance(layer, PixelShuffle) else Window
    relations = []
    for number, phase in enumerate(itertools.product(*map(range, layer.factor))):
        axes = tuple(primitive(1, f, 1, -p) for f, p in zip(layer.factor, phase, strict=True))
        many = few * count + number
        pairs = (many, few) if isinstance(layer, PixelShuffle) else (few, many)
        move = SpatialMap(axes, "routing", 1.0, None, size, out)
        relations.append(_Relation(pairs=pairs, maps=(move,)))
    return relations


def _label(graph: PlaneGraph) -> dict[str, Labels]:
    """Labels the channels of every map by how they are read, from the outputs up."""
    read: dict[str, list[Labels]] = {name: [] for name in graph.network.nodes}
    labels: dict[str, Labels] = {}
    for node in reversed(graph.network.nodes.values()):
        count = graph.channels[node.name] or 1
        reads = read.pop(node.name)
        if node.name in graph.network.outputs or not reads:
            # What nothing reads can be asked for all the same: its channels then count alike.
            reads.append(np.zeros(count, dtype=np.int64))
        own = _combine(reads, count)
        labels[node.name] = own
        for i, source in enumerate(node.inputs):
            c_in = graph.channels[source]
            try:
                relations = _relations(graph, node, i, c_in, graph.channels[node.name])
            except InputError as error:
                raise type(error)(f"{node.name}: {error}") from None
            if any(r.weight != 1.0 for r in relations) and i == 0:
                graph.assumptions.append(
                    f"{node.name}: numbers of channels not known, its inputs weigh equally"
                )
            read[source].append(_read_labels(relations, own, c_in or 1))
    return labels


def _combine(reads: Sequence[Labels], count: int) -> Labels:
    """One label per distinct way in which a channel is read by all readers together.

    Channels that no reader reads have a label of their own, not `UNREAD`: when this map itself is
    asked for, they too hold the unit, and what they read must be told from what they do not.
    """
    if all(np.all(r == r[0]) for r in reads):
        return np.zeros(count, dtype=np.int64)
    _, labels = np.unique(np.stack(reads), axis=1, return_inverse=True)
    return labels.reshape(-1).astype(np.int64)


def _read_labels(relations: Sequence[_Relation], own: Labels, count: int) -> Labels:
    """How a reader with labels `own` reads each of the `count` channels of its input."""
    if len(relations) > 1:
        return _combine([_read_labels([r], own, count) for r in relations], count)
    (relation,) = relations
    if relation.pairs is not None:
        labels = np.full(count, UNREAD, dtype=np.int64)
        labels[relation.pairs[0]] = own[relation.pairs[1]]
        return labels
    if relation.blocks > 1:
        mixtures: dict[bytes, int] = {}
        blocks = np.sort(own.reshape(relation.blocks, -1), axis=1)
        number = [mixtures.setdefault(b.tobytes(), len(mixtures)) for b in blocks]
        return np.repeat(np.asarray(number, dtype=np.int64), count // relation.blocks)
    return np.zeros(count, dtype=np.int64)


def _number_planes(graph: PlaneGraph, labels: dict[str, Labels]) -> None:
    for name in graph.network.nodes:
        own, first = labels[name], len(graph.planes)
        if np.all(own == own[0]):  # by far the most common, and much quicker
            graph.planes.append(Plane(name, 1.0))
            graph.planes_of[name] = [first]
            labels[name] = np.full(len(own), first, dtype=np.int64)
            continue
        found, inverse, counts = np.unique(own, return_inverse=True, return_counts=True)
        graph.planes.extend(Plane(name, int(c) / len(inverse)) for c in counts)
        graph.planes_of[name] = list(range(first, first + len(found)))
        labels[name] = inverse.reshape(-1).astype(np.int64) + first


def _operations(
    graph: PlaneGraph,
    node: Node,
    source: str,
    labels: Mapping[str, Labels],
    relation: _Relation,
    piece: _Piece,
) -> list[Operation]:
    """The operations of one relation, as few as do the same."""
    x, y = labels[source], labels[node.name]
    maps = piece.maps if relation.maps is None else relation.maps
    gain = piece.gain * relation.weight

    def operation(sources: Shares, targets: Shares) -> Operation:
        return Operation(node.name, maps, sources, targets, gain)

    if relation.pairs is not None:
        x, y = x[relation.pairs[0]], y[relation.pairs[1]]
        found = []
        for q in np.unique(x):
            planes, counts = np.unique(y[x == q], return_counts=True)
            targets = tuple(
                (int(p), int(c) / _channel_count(graph, labels, node.name, int(p)))
                for p, c in zip(planes, counts, strict=True)
            )
            found.append(operation(((int(q), 1.0),), targets))
        return found
    if relation.blocks > 1 and (x[0] != x[-1] or y[0] != y[-1] or len(set(x)) + len(set(y)) > 2):
        return _block_operations(graph, node, labels, x, y, relation.blocks, operation)
    sources = tuple((q, graph.planes[q].share) for q in graph.planes_of[source])
    if len(sources) == 1:
        sources = ((sources[0][0], 1.0),)
    targets = tuple((p, 1.0) for p in graph.planes_of[node.name])
    return [operation(sources, targets)]


def _channel_count(graph: PlaneGraph, labels: Mapping[str, Labels], name: str, plane: int) -> int:
    return round(graph.planes[plane].share * len(labels[name]))


def _block_operations(
    graph: PlaneGraph,
    node: Node,
    labels: Mapping[str, Labels],
    x: Labels,
    y: Labels,
    blocks: int,
    operation: Any,
) -> list[Operation]:
    """One operation per distinct pair (planes read, planes written) of the channel blocks."""
    kinds: dict[tuple[bytes, bytes], tuple[Labels, Labels, int]] = {}
    pairs = zip(
        np.sort(x.reshape(blocks, -1), axis=1), np.sort(y.reshape(blocks, -1), axis=1), strict=True
    )
    for reads, writes in pairs:
        key = (reads.tobytes(), writes.tobytes())
        seen = kinds[key][2] if key in kinds else 0
        kinds[key] = (reads, writes, seen + 1)
    found = []
    for reads, writes, count in kinds.values():
        planes, n_read = np.unique(reads, return_counts=True)
        sources = tuple((int(q), int(c) / len(reads)) for q, c in zip(planes, n_read, strict=True))
        planes, n_write = np.unique(writes, return_counts=True)
        targets = tuple(
            (int(p), count * int(c) / _channel_count(graph, labels, node.name, int(p)))
            for p, c in zip(planes, n_write, strict=True)
        )
        found.append(operation(sources, targets))
    return found
