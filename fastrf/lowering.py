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
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastrf.errors import InputError, short
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
    MaxPool,
    Norm,
    PixelShuffle,
    PixelUnshuffle,
    SqueezeExcite,
    Upsample,
)
from fastrf.layers.checks import MAXIMUM, MAXIMUM_CHANNELS, is_whole
from fastrf.layers.weights import check_channels, weights_of
from fastrf.maps import AxisMap, Everything, Size, SpatialMap, Spread, Table, Window
from fastrf.meanfield.settling import RANDOM, MeanField, along_identities, around_pools
from fastrf.network import Network, Node

FARTHEST_UNIT = 2**60
"""Greatest index of a unit: regions of its receptive field are counted in 64 bits."""

Shares = tuple[tuple[int, float], ...]
"""(plane, share) pairs."""

Labels = NDArray[np.int64]
"""One label per channel of a map (one label where the number of channels is not known)."""

LabelsOf = Mapping[str, Labels]
"""Node → labels of its channels, where these are not all alike: few maps' channels part ways."""

KEPT_GRAPHS = 4
"""Lowered graphs kept with a network: one or two input sizes, with and without global paths."""

KEPT_UNITS = 256
"""What is kept of single units: as much as all layers of a network ask for, not of every pixel."""

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


@dataclass(frozen=True, slots=True)
class Piece:
    """One way from a node's input to its output: its maps and pointwise gain."""

    maps: tuple[SpatialMap, ...] = ()
    gain: float = 1.0

    @property
    def is_global(self) -> bool:
        return any(m.is_global for m in self.maps)


@dataclass(frozen=True, slots=True)
class Relation:
    """Which channels of a node's input meet which of its output.

    `blocks` is the number of channel groups that meet only among themselves (1: everything
    meets everything); where `pairs` is given, channel pairs[0][i] of the input meets channel
    pairs[1][i] of the output alone, and where they are `alike`, each one that of its own number.
    `weight` is the share of the gradient that goes this way,
    and `maps` replaces the layer's own maps where they depend on the channel.
    """

    blocks: int = 1
    pairs: tuple[Labels, Labels] | None = None
    weight: float = 1.0
    maps: tuple[SpatialMap, ...] | None = None
    alike: bool = False

    def paired(self, channels: int) -> tuple[Labels, Labels] | None:
        """`pairs`, spelled out for so many channels where they are `alike`."""
        return (own := np.arange(channels), own) if self.alike else self.pairs


Ways = tuple[Sequence[Relation], Sequence[Piece]]
"""How a node reads one of its inputs: along each relation in each of the pieces."""


@dataclass(slots=True)
class PlaneGraph:
    """A lowered network.

    Attributes:
        network: the bound network, its layers settled (see `fastrf.meanfield`).
        input_size: pixels of the input map(s), or None on the unbounded grid.
        planes: every plane, inputs first, in topological order of their nodes.
        operations: in topological order.
        planes_of: node → its planes' numbers.
        sizes: node → map size (None on the unbounded grid).
        channels: node → number of channels, None where not known.
        ways: node → how it reads each of its inputs, channel by channel; what `operations` sum up.
        identities: node → by node, the gain of all paths without weights from there, of nodes that
            activations along an identity lead to (see `fastrf.meanfield.laws`). Their operations
            read those nodes.
        largest: of max-pooling, by how much more than any pixel the largest of so many passes
            through the activation before it, where that is known.
        collapsed: nodes that have lost their spatial extent (behind global pooling).
        assumptions: what was assumed where the network does not say.
        derived: what others have worked out from this graph, to be worked out only once.
        recent: the same for single units.
    """

    network: Network
    ndim: int
    input_size: Size | None
    planes: list[Plane] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    planes_of: dict[str, list[int]] = field(default_factory=dict)
    sizes: dict[str, Size | None] = field(default_factory=dict)
    channels: dict[str, int | None] = field(default_factory=dict)
    ways: dict[str, list[Ways]] = field(default_factory=dict, repr=False)
    identities: dict[str, dict[str, float]] = field(default_factory=dict, repr=False)
    largest: dict[str, Callable[[int], float]] = field(default_factory=dict, repr=False)
    collapsed: set[str] = field(default_factory=set)
    assumptions: list[str] = field(default_factory=list)
    derived: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)
    recent: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """What `make` returns, made at the first call with this key."""
        if key not in self.derived:
            # Another thread may have made it, too: all work with the first.
            self.derived.setdefault(key, make())
        found: T = self.derived[key]
        return found

    def lately(self, key: Hashable, make: Callable[[], T]) -> T:
        """As `once`, for what there is one of for every unit: only the latest are kept."""
        kept = self.recent.pop(key, None)
        found: T = make() if kept is None else kept
        self.recent[key] = found
        for oldest in _surplus(self.recent, KEPT_UNITS):
            self.recent.pop(oldest, None)
        return found

    def output_node(self, output: str | None) -> str:
        """The node that `output` names; by default the network's output, or the last map before
        it lost its spatial extent."""
        if output is not None:
            if not isinstance(output, str):
                raise InputError(
                    f"output={short(output)} must be the name of a node or an end point"
                )
            return self.network.resolve(output)
        node = self.network.outputs[0]
        if len(self.network.outputs) > 1:
            raise InputError(
                f"the network has {len(self.network.outputs)} outputs; give output= one of "
                f"{', '.join(self.network.outputs)}"
            )
        if node not in self.collapsed:
            return node
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
        if name is None:
            if len(inputs) == 1:
                return inputs[0]
            raise InputError(
                f"the network has {len(inputs)} inputs; give input= one of {', '.join(inputs)}"
            )
        if name not in inputs:
            raise InputError(
                f"input={short(name)} is not an input of the network; give input= one of "
                f"{', '.join(inputs)}"
            )
        return name

    def unit_index(self, node: str, unit: Any) -> tuple[int, ...]:
        """`unit` as one index per axis of `node`'s map.

        "center" is index ⌊n/2⌋ of each axis, or 0 on the unbounded grid.
        """
        return index_of_unit(node, self.sizes[node] or (None,) * self.ndim, unit)

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

    def read(self, node: str, input_node: str) -> list[Operation]:
        """As `between`, without the operations on channels that the way to `node` leaves."""
        return self.once(("read", node, input_node), lambda: self._read(node, input_node))

    def _read(self, node: str, input_node: str) -> list[Operation]:
        read, found = set(self.planes_of[node]), []
        for op in reversed(self.between(node, input_node)):
            for p, _ in op.targets:
                if p in read:
                    for q, _ in op.sources:
                        read.add(q)
                    found.append(op)
                    break
        return found[::-1]

    def joined(self, node: str, input_node: str) -> bool:
        """Whether any path leads from `input_node` to `node`: not where global layers that are
        left out stand on all of them."""
        return self.once(("joined", node, input_node), lambda: self._joined(node, input_node))

    def _joined(self, node: str, input_node: str) -> bool:
        operations = self.read(node, input_node)
        planes = {q for op in operations for q, _ in op.sources} | {*self.planes_of[node]}
        return not planes.isdisjoint(self.planes_of[input_node])

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
    kept: PlaneGraph | None = network.lowered.get(key)
    if kept is None:
        graph = _lowered(network, ndim, sizes, ignore_global)
        for oldest in _surplus(network.lowered, KEPT_GRAPHS - 1):
            network.lowered.pop(oldest, None)
        # Another thread may have lowered it, too: all work with the first.
        kept = network.lowered.setdefault(key, graph)
    return kept


def _surplus(kept: dict[Hashable, Any], most: int) -> list[Hashable]:
    """The oldest keys beyond so many. Of a copy: other threads may change what is kept."""
    return list(kept)[:-most] if len(kept) > most else []


def _lowered(
    network: Network, ndim: int, sizes: dict[str, Size | None], ignore_global: bool
) -> PlaneGraph:
    graph = PlaneGraph(network, ndim, next(iter(sizes.values()), None))
    pieces = _forward(graph, sizes, ignore_global)
    labels, relations = _label(graph)
    wholes = _number_planes(graph, labels)
    for node in graph.network.nodes.values():
        edges: list[Ways] = [*zip(relations[node.name], pieces[node.name], strict=True)]
        graph.ways[node.name] = edges
        if node.name in graph.identities:
            known = [wholes.get(name) for name in (*graph.identities[node.name], node.name)]
            if all(planes is not None for planes in known):
                graph.operations.extend(_along_identities(node, graph.identities, wholes))
                continue
            del graph.identities[node.name]
        for source, (parts, ways) in zip(node.inputs, edges, strict=True):
            for part in parts:
                for way in ways:
                    x, y = wholes.get(source), wholes.get(node.name)
                    if x is not None and y is not None:
                        graph.operations.append(_operation_on_wholes(graph, node, x, y, part, way))
                    else:
                        found = _operations(graph, node, source, labels, part, way)
                        graph.operations.extend(found)
    return graph


# --- sizes ----------------------------------------------------------------------------------


def _input_sizes(network: Network, given: Any, ndim: int) -> dict[str, Size | None]:
    if isinstance(given, Mapping):
        if set(given) != set(network.inputs) or len({v is None for v in given.values()}) > 1:
            raise InputError(
                f"input_size={short(dict(given))} must give a size for each of the network's "
                f"inputs {', '.join(network.inputs)}, or be None as a whole"
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


def index_of_unit(node: str, size: Sequence[int | None], unit: Any) -> tuple[int, ...]:
    """`unit` as one index per axis of a map of this size, the map of `node`; None is the
    unbounded grid.

    Raises:
        InputError: it is none, or outside.
    """
    if isinstance(unit, str):
        if unit != "center":
            raise InputError(f"unit={short(unit)} is unknown; give 'center' or one index per axis")
        return tuple(0 if n is None else n // 2 for n in size)
    values = _spelled_out(unit, len(size))
    if len(values) != len(size) or not all(map(is_whole, values)):
        raise InputError(
            f"unit={short(unit)} must be 'center' or {len(size)} whole numbers, one per axis"
        )
    if not all(abs(v) <= FARTHEST_UNIT for v in values):
        raise InputError(f"unit={short(unit)} is too far out; give indices up to 2**60")
    if not all(n is None or 0 <= v < n for v, n in zip(values, size, strict=True)):
        raise InputError(
            f"unit={short(unit)} is outside the map of {node!r}, whose size is {tuple(size)}; "
            f"indices start at 0"
        )
    return tuple(int(v) for v in values)


def _spelled_out(value: Any, ndim: int) -> tuple[Any, ...]:
    """One value per axis; text and bytes are not taken apart."""
    several = isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes)
    return tuple(value) if several else (value,) * ndim


_NOTHING_MOVES = (Piece(),)
_MERGES = (Add, Concat)


class _Walked(NamedTuple):
    """What a layer does on a map of one size: its way, the size it writes and whether that has
    lost its extent. Equal layers of a network are one object: a thousand of them share this."""

    ways: tuple[Piece, ...]
    size: Size | None
    collapses: bool


def _forward(
    graph: PlaneGraph, sizes: dict[str, Size | None], ignore_global: bool
) -> dict[str, Sequence[tuple[Piece, ...]]]:
    """Settles the layers and fills sizes, channels and collapsed; returns the pieces of every
    node, per input."""
    pieces: dict[str, Sequence[tuple[Piece, ...]]] = {}
    known: dict[tuple[int, Size | None], _Walked] = {}
    layers = [*{id(x): x for x in (n.layer for n in graph.network.nodes.values())}.values()]
    settles = any(layer.depends_on_network for layer in layers)
    # Stated gains multiply, whatever slopes have in common; those of drawn weights are followed.
    drawn = any(isinstance(layer, RANDOM) and layer.depends_on_network for layer in layers)
    followed: set[str] = set()
    pooled: set[str] = set()
    if drawn and not any(map(weights_of, layers)):
        followed = along_identities(graph.network.nodes)
        pooled = around_pools(graph.network.nodes)
    means = MeanField(graph.network.nodes, followed, pooled) if settles else None
    weighted = any(map(weights_of, layers))
    told = _channels_told(graph.network.nodes) if weighted else {}
    for given in graph.network.nodes.values():
        node, layer = given, given.layer
        try:
            if isinstance(layer, Input):
                graph.sizes[node.name] = sizes[node.name]
                graph.channels[node.name] = layer.channels or told.get(node.name)
                pieces[node.name] = ()
                if means is not None:
                    means.settle(node, graph.channels, graph.sizes)
                continue
            if weighted:
                check_channels(layer, graph.channels[node.inputs[0]])
            channels = layer.output_channels([graph.channels[i] for i in node.inputs])
            channels = told.get(node.name) if channels is None else channels
            if channels is not None and channels > MAXIMUM_CHANNELS:
                raise InputError(
                    f"{type(layer).__name__} writes {channels} channels, more than "
                    f"{MAXIMUM_CHANNELS}; give fewer channels to the layers before"
                )
            graph.channels[node.name] = channels
            if means is not None:
                node = means.settle(node, graph.channels, graph.sizes)
            if isinstance(layer, _MERGES):
                found: Sequence[tuple[Piece, ...]] = _merge_pieces(graph, node)
            else:
                found = (_single_pieces(graph, node, known, ignore_global),)
            if means is not None and node.name in means.factors:
                found = _weighed(found, means.factors[node.name])
            if means is not None and node.name in means.passed:
                found = _chosen(found, means.passed[node.name], layer)
            if ignore_global:
                found = [tuple(p for p in ways if not p.is_global) for ways in found]
            pieces[node.name] = found
        except InputError as error:
            raise type(error)(f"{node.name}: {error}") from None
    if means is not None:
        if settles:
            graph.network = graph.network.with_nodes(means.nodes)
        graph.assumptions.extend(means.assumptions)
        graph.largest = means.passed
        graph.identities = {
            name: law.gains()
            for name, law in means.laws.items()
            if name in followed and not isinstance(graph.network.nodes[name].layer, MaxPool)
        }
    return pieces


def _channels_told(nodes: Mapping[str, Node]) -> dict[str, int]:
    """Channels of maps, as the layers that read them tell: those that hold weights at once, others
    by what they write. Where weights fit several numbers, those that fit one decide, or else it is
    the largest that all fit."""
    said: dict[str, int | None] = {}
    for node in nodes.values():
        layer = node.layer
        try:
            said[node.name] = layer.output_channels([said[i] for i in node.inputs])
        except InputError:  # said where the map is reached
            said[node.name] = None
        if isinstance(layer, Input):
            said[node.name] = layer.channels
    told: dict[str, int] = {}
    open_: set[str] = set()  # maps that may have fewer
    for node in reversed([*nodes.values()]):
        layer, written = node.layer, said[node.name]
        read = layer.told(written or told.get(node.name))
        if read is None:
            continue
        if layer.channels_read is not None:
            fewer = layer.fits_fewer
        else:
            fewer = written is None and node.name in open_
        for name in node.inputs:
            if not fewer:
                told[name] = read
                open_.discard(name)
            elif name not in told or name in open_:
                told[name] = math.gcd(read, told.get(name, 0))
                open_.add(name)
    return told


def _weighed(
    pieces: Sequence[tuple[Piece, ...]], gains: Sequence[float]
) -> list[tuple[Piece, ...]]:
    """The ways from a node's inputs, each input's with a further gain."""
    return [
        tuple(replace(way, gain=way.gain * gain) for way in ways)
        for ways, gain in zip(pieces, gains, strict=True)
    ]


def _chosen(
    pieces: Sequence[tuple[Piece, ...]], passed: Callable[[int], float], layer: Any
) -> list[tuple[Piece, ...]]:
    """The ways through max-pooling, each with what passes it on top. Windows that a border cuts
    along one axis have their own factor, those that two cut the product of both."""
    inner = passed(math.prod(layer.kernel))

    def rows(axis: AxisMap, kernel: int) -> AxisMap:
        if not isinstance(axis, Table):
            return axis
        counts = (axis.taps > 0).sum(axis=1)
        whole = math.prod(layer.kernel) // kernel
        factors = {int(n): passed(int(n) * whole) / inner for n in np.unique(counts) if n}
        taps = axis.taps * np.array([factors.get(int(n), 1.0) for n in counts])[:, None]
        return Table(axis.starts, taps, axis.advance)

    def way(piece: Piece) -> Piece:
        maps = [replace(m, axes=tuple(map(rows, m.axes, layer.kernel))) for m in piece.maps]
        return Piece(tuple(maps), piece.gain * inner)

    return [tuple(map(way, ways)) for ways in pieces]


def _single_pieces(
    graph: PlaneGraph,
    node: Node,
    known: dict[tuple[int, Size | None], _Walked],
    ignore_global: bool,
) -> tuple[Piece, ...]:
    layer, source = node.layer, node.inputs[0]
    size, unbounded = graph.sizes[source], graph.input_size is None
    lost = source in graph.collapsed
    if unbounded and lost:
        # A map of one position: convolutions see nothing but it, resizing spreads it out again.
        graph.sizes[node.name] = None
        if isinstance(layer, Upsample):
            spread = _everything(graph, None, None, "fixed", 1.0)
            return (Piece((spread,), layer.pointwise_gain),)
        graph.collapsed.add(node.name)
        return (Piece((), layer.pointwise_gain),)
    if isinstance(layer, Attention) and ignore_global:
        graph.sizes[node.name] = size
        return (Piece((), layer.gain),)
    walked = known.get((id(layer), size))
    if walked is None:
        walked = known[id(layer), size] = _walked(graph, layer, size)
    out = graph.sizes[node.name] = walked.size
    if walked.collapses or (lost and (out is None or max(out) == 1)):
        graph.collapsed.add(node.name)
    if isinstance(layer, Conv) and layer.groups == "depthwise" and layer.channels is not None:
        channels = graph.channels[source]
        if channels is not None and layer.channels % channels:
            raise InputError(
                f"channels={layer.channels} of a depthwise convolution must be a multiple of "
                f"the {channels} channels it reads"
            )
    return walked.ways


def _walked(graph: PlaneGraph, layer: Layer, size: Size | None) -> _Walked:
    maps, gain = layer.maps(size, graph.ndim), layer.pointwise_gain
    ways = [Piece(maps, gain)]
    if isinstance(layer, SqueezeExcite) or (isinstance(layer, Norm) and layer.whole_map):
        pixels = 1 if size is None else math.prod(size)
        ways.append(Piece((_everything(graph, size, size, "fixed", 1 / pixels),), gain))
    out = maps[-1].size_out if maps else size
    return _Walked(tuple(ways), out, _collapses(layer, graph.input_size is None))


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


def _merge_pieces(graph: PlaneGraph, node: Node) -> list[tuple[Piece, ...]]:
    """Ways into a sum, product or concatenation; maps of one position are broadcast."""
    flat = [i in graph.collapsed for i in node.inputs]
    if all(flat):
        graph.collapsed.add(node.name)
    if graph.input_size is None:
        graph.sizes[node.name] = None
        if all(flat) or not any(flat):
            return [_NOTHING_MOVES] * len(flat)
        spread = (Piece((_everything(graph, None, None, "fixed", 1.0),)),)
        return [spread if f else _NOTHING_MOVES for f in flat]
    sizes = [graph.sizes[i] or () for i in node.inputs]
    out = tuple(max(s[axis] for s in sizes) for axis in range(graph.ndim))
    graph.sizes[node.name] = out
    ways: list[tuple[Piece, ...]] = []
    for source, size in zip(node.inputs, sizes, strict=True):
        single = () if isinstance(node.layer, Concat) else (1,)  # concatenation does not broadcast
        if any(n not in (m, *single) for n, m in zip(size, out, strict=True)):
            raise InputError(
                f"the maps read differ in size: "
                f"{', '.join(f'{i} {s}' for i, s in zip(node.inputs, sizes, strict=True))}; "
                f"choose an input_size, padding or Crop that makes them equal (at {source})"
            )
        if size == out:
            ways.append(_NOTHING_MOVES)
            continue
        axes = tuple(Window() if n == m else Everything() for n, m in zip(size, out, strict=True))
        broadcast = SpatialMap(axes, "fixed", 1.0, None, size, out)
        ways.append((Piece((broadcast,)),))
    return ways


# --- channels -------------------------------------------------------------------------------


_MIXED = [Relation()]
_ALIKE = [Relation(alike=True)]
_CONVOLUTIONS = (Conv, ConvTranspose)
_MIXING = (FullyConnected, Attention)
_SHUFFLES = (PixelShuffle, PixelUnshuffle)

MOST_PHASES = 256
"""Phases of a space-to-depth that are followed one by one where all its channels are read alike, so
that it makes no difference (of a whole map that becomes one pixel there are as many as pixels)."""


def _relations(
    graph: PlaneGraph, node: Node, i: int, c_in: int | None, c_out: int | None, told: bool
) -> list[Relation]:
    """How a node's channels read those of its input i; `told` is whether its readers tell some of
    its channels from others."""
    layer = node.layer
    if isinstance(layer, _CONVOLUTIONS):
        blocks = _group_count(layer, c_in, c_out)
        return _MIXED if blocks == 1 else [Relation(blocks=blocks)]
    if isinstance(layer, _MIXING):
        return _MIXED
    if isinstance(layer, Concat):
        if c_out is None or c_in is None:
            return [Relation(weight=1 / len(node.inputs))]
        before = sum(graph.channels[s] or 0 for s in node.inputs[:i])
        own = np.arange(c_in)
        return [Relation(pairs=(own, own + before))]
    if c_in is None or c_out is None:
        return _MIXED
    if isinstance(layer, ChannelSlice):
        kept = np.arange(c_in)[layer.start : layer.stop : layer.step]
        return [Relation(pairs=(kept, np.arange(len(kept))))]
    if isinstance(layer, ChannelShuffle):
        order = np.arange(c_in).reshape(layer.groups, -1).T.ravel()
        return [Relation(pairs=(order, np.arange(c_in)))]
    many = isinstance(layer, PixelUnshuffle) and math.prod(layer.factor) > MOST_PHASES
    if isinstance(layer, _SHUFFLES) and (told or not many):
        return _phase_relations(graph, node, min(c_in, c_out))
    # Otherwise one channel broadcast over all, or all read as one.
    return _ALIKE if c_in == c_out else _MIXED


def _group_count(layer: Conv | ConvTranspose, c_in: int | None, c_out: int | None) -> int:
    groups = c_in if layer.groups == "depthwise" else layer.groups
    if groups is None or groups == 1:
        return 1
    if (c_in or 0) % groups or (c_out or 0) % groups:
        raise InputError(
            f"groups={groups} must divide the {c_in} channels read"
            + ("" if c_out is None else f" and the {c_out} written")
        )
    return 1 if c_in is None or c_out is None else groups


def _phases_together(network: Network, node: Node) -> str | None:
    """The space-to-depth whose phases a depth-to-space puts in their places again, with nothing
    between them that mixes channels; where their number is not known, it is not told which."""
    stack, seen = [*node.inputs], set(node.inputs)
    while stack:
        at = network.nodes[stack.pop()]
        if isinstance(at.layer, PixelUnshuffle):
            return at.name
        mixes = isinstance(at.layer, _CONVOLUTIONS) and at.layer.groups == 1
        if not mixes and not isinstance(at.layer, _MIXING):
            stack += [i for i in at.inputs if i not in seen]
            seen.update(at.inputs)
    return None


def _phase_relations(graph: PlaneGraph, node: Node, channels: int) -> list[Relation]:
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
        relations.append(Relation(pairs=pairs, maps=(move,)))
    return relations


def _label(graph: PlaneGraph) -> tuple[dict[str, Labels], dict[str, list[list[Relation]]]]:
    """Labels the channels of every map by how they are read, from the outputs up.

    Returns:
        The labels of the maps whose channels are read in different ways, and the relations of
        every node's inputs to it.
    """
    # What reads all channels alike, or nothing, tells none of them from another.
    read: dict[str, list[Labels]] = {}
    labels: dict[str, Labels] = {}
    relations: dict[str, list[list[Relation]]] = {}
    for node in reversed(graph.network.nodes.values()):
        channels = graph.channels[node.name]
        own = _combine(read.pop(node.name, ()), channels or 1)
        if own is not None:
            labels[node.name] = own
        relations[node.name] = found = []
        for i, source in enumerate(node.inputs):
            c_in = graph.channels[source]
            try:
                found.append(_relations(graph, node, i, c_in, channels, own is not None))
            except InputError as error:
                raise type(error)(f"{node.name}: {error}") from None
            if i == 0 and any(r.weight != 1.0 for r in found[0]):
                graph.assumptions.append(
                    f"{node.name}: numbers of channels not known, its inputs weigh equally"
                )
            shuffles = c_in is None and isinstance(node.layer, PixelShuffle)
            if shuffles and (phases := _phases_together(graph.network, node)):
                graph.assumptions.append(
                    f"{node.name}: numbers of channels not known, the phases of {phases} count as "
                    f"alike"
                )
            seen = _read_labels(found[i], own, c_in or 1, channels or 1)
            if seen is not None:
                read.setdefault(source, []).append(seen)
    return labels, relations


def _combine(reads: Sequence[Labels], count: int) -> Labels | None:
    """One label per distinct way in which a channel is read by all readers together; None where
    there is one way.

    Channels that no reader reads have a label of their own, not `UNREAD`: when this map itself is
    asked for, they too hold the unit, and what they read must be told from what they do not.
    """
    if all(np.all(r == r[0]) for r in reads):
        return None
    _, labels = np.unique(np.stack(reads), axis=1, return_inverse=True)
    return labels.reshape(-1).astype(np.int64)


def _read_labels(
    relations: Sequence[Relation], own: Labels | None, count: int, written: int
) -> Labels | None:
    """How a reader with labels `own` of `written` channels reads each of the `count` channels of
    its input; None where it reads all alike."""
    if len(relations) > 1:
        reads = [_read_labels([r], own, count, written) for r in relations]
        return _combine([r for r in reads if r is not None], count)
    (relation,) = relations
    if relation.alike:
        return own
    if relation.pairs is not None:
        if own is None:
            if len(relation.pairs[0]) == count:
                return None
            own = np.zeros(written, dtype=np.int64)
        labels = np.full(count, UNREAD, dtype=np.int64)
        labels[relation.pairs[0]] = own[relation.pairs[1]]
        return labels
    if relation.blocks > 1 and own is not None:
        mixtures: dict[bytes, int] = {}
        blocks = np.sort(own.reshape(relation.blocks, -1), axis=1)
        number = [mixtures.setdefault(b.tobytes(), len(mixtures)) for b in blocks]
        return np.repeat(np.asarray(number, dtype=np.int64), count // relation.blocks)
    return None


def _number_planes(graph: PlaneGraph, labels: dict[str, Labels]) -> dict[str, Shares]:
    """Adds the planes, and turns the labels into their numbers.

    Returns:
        The one plane of each map whose channels are all alike, as a source or target of its own.
    """
    wholes: dict[str, Shares] = {}
    for name in graph.network.nodes:
        own, first = labels.get(name), len(graph.planes)
        if own is None:  # by far the most common, and much quicker
            graph.planes.append(Plane(name, 1.0))
            graph.planes_of[name] = [first]
            wholes[name] = ((first, 1.0),)
            continue
        found, inverse, counts = np.unique(own, return_inverse=True, return_counts=True)
        graph.planes.extend(Plane(name, int(c) / len(inverse)) for c in counts)
        graph.planes_of[name] = list(range(first, first + len(found)))
        labels[name] = inverse.reshape(-1).astype(np.int64) + first
    return wholes


def _operation_on_wholes(
    graph: PlaneGraph, node: Node, x: Shares, y: Shares, relation: Relation, piece: Piece
) -> Operation:
    """The operation of one relation between two maps of one plane each."""
    maps = piece.maps if relation.maps is None else relation.maps
    if relation.pairs is not None:
        count = graph.channels[node.name] or 1
        y = ((y[0][0], len(relation.pairs[1]) / count),)
    return Operation(node.name, maps, x, y, piece.gain * relation.weight)


def _along_identities(
    node: Node, identities: Mapping[str, Mapping[str, float]], wholes: Mapping[str, Shares]
) -> Iterator[Operation]:
    """What reaches a node along paths without weights, straight from where weights wrote it."""
    for source, gain in identities[node.name].items():
        yield Operation(node.name, (), wholes[source], wholes[node.name], gain)


def _operations(
    graph: PlaneGraph,
    node: Node,
    source: str,
    labels: LabelsOf,
    relation: Relation,
    piece: Piece,
) -> list[Operation]:
    """The operations of one relation, as few as do the same."""
    x, y = (_spelled_planes(graph, labels, name) for name in (source, node.name))
    maps = piece.maps if relation.maps is None else relation.maps
    gain = piece.gain * relation.weight

    def operation(sources: Shares, targets: Shares) -> Operation:
        return Operation(node.name, maps, sources, targets, gain)

    pairs = relation.paired(len(x))
    if pairs is not None:
        x, y = x[pairs[0]], y[pairs[1]]
        found = []
        for q in np.unique(x):
            planes, counts = np.unique(y[x == q], return_counts=True)
            targets = tuple(
                (int(p), int(c) / _channel_count(graph, int(p)))
                for p, c in zip(planes, counts, strict=True)
            )
            found.append(operation(((int(q), 1.0),), targets))
        return found
    if relation.blocks > 1 and (x[0] != x[-1] or y[0] != y[-1] or len(set(x)) + len(set(y)) > 2):
        return _block_operations(graph, x, y, relation.blocks, operation)
    sources = tuple((q, graph.planes[q].share) for q in graph.planes_of[source])
    if len(sources) == 1:
        sources = ((sources[0][0], 1.0),)
    targets = tuple((p, 1.0) for p in graph.planes_of[node.name])
    return [operation(sources, targets)]


def _spelled_planes(graph: PlaneGraph, labels: LabelsOf, name: str) -> Labels:
    """The plane of every channel of a map."""
    if name in labels:
        return labels[name]
    return np.full(graph.channels[name] or 1, graph.planes_of[name][0], dtype=np.int64)


def _channel_count(graph: PlaneGraph, plane: int) -> int:
    own = graph.planes[plane]
    return round(own.share * (graph.channels[own.node] or 1))


def _block_operations(
    graph: PlaneGraph,
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
            (int(p), count * int(c) / _channel_count(graph, int(p)))
            for p, c in zip(planes, n_write, strict=True)
        )
        found.append(operation(sources, targets))
    return found
