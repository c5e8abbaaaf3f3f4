"""Which covariances of gradients a field depends on, worked out from the graph alone.

g is a map's gradient, R_τ[i] = Cov(g[i], g[i + τ]) its covariance at the lag τ. Independent
zero-mean weights make gradients uncorrelated between the channels they mix and between branches;
between *pixels* they hand on what they get: lag τ above a random layer of stride s is lag τ·s
below it. Fixed coefficients mix lags. So a map's lags are those that are *wanted* by deterministic
layers nearer to the input, where the variance alone (lag 0) is wanted, and that *exist*, coming
from layers nearer to the unit, where it has lag 0 alone.

Two deterministic ways that lead from one map up to another, channel by channel, are correlated
too (an identity beside an average pool). They are followed from where they part to where they
meet: a `Pair`. What meets only in weights, or in different channels, has nothing in common.

Dropout's masks are drawn independently at every pixel. Activations' slopes and the routes of
max-pooling depend on the data: those of neighbouring pixels, or of windows that overlap, are alike.
Variances do not depend on that; where correlated gradients reach such a layer, `forward` says what
slopes have in common, where it can. Elsewhere they count as independent, and the result is
approximate: `Coherence.doubts` names the layers.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache, reduce
from typing import Any

import numpy as np

from fastrf.engine.coefficients import Meetings, Term, terms
from fastrf.errors import PlanError
from fastrf.layers import (
    Activation,
    ChannelShuffle,
    ChannelSlice,
    Concat,
    Layer,
    Multiply,
    Norm,
    PixelShuffle,
    PixelUnshuffle,
    SqueezeExcite,
)
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import AxisMap, Kind, SpatialMap, Spread, Window

Lags = tuple[frozenset[int], ...]
"""Lags per axis; all combinations of them are meant."""

MOST_STEPS = 1_000_000
"""Steps taken in search of ways that meet again, before it is given up and said so; and
`STEPS_EACH` for each operation."""

STEPS_EACH = 8

MOST_LAGS = 1 << 14
"""Most lags along an axis; there is a plane of covariances for each of their combinations."""

KEPT_MAPS = 4096
"""Maps whose lags are kept: all layers of a network ask for those of the maps below them."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two deterministic ways from one plane that meet in another.

    Attributes:
        below, above: the planes where they part and where they meet.
        a, b: their coefficients, each a sum of products of one line per axis.
        factor: of the product of both, with the share of the channels above that are meant.
    """

    below: int
    above: int
    a: tuple[Term, ...]
    b: tuple[Term, ...]
    factor: float

    def both_orders(self) -> Iterator[tuple[Term, Term]]:
        """Products of a part of one way with one of the other, and the same the other way round,
        whose sum the covariance is."""
        for one, other in itertools.product(self.a, self.b):
            yield one, other
            yield other, one


@dataclass(slots=True)
class Coherence:
    """What a field depends on beside its variances.

    Attributes:
        lags: by plane, those of its lags that are both wanted and there; planes that no gradient
            reaches are missing.
        pairs: by the plane where they part.
        within: ids of the operations that correlate and add up by themselves, from one of their
            maps to the next (a filter behind reflected borders).
        reasons: what remains approximate, one sentence each, beside
        doubts: by kind of layer, the nodes that correlated gradients reach of which the data
            choose what passes, each with what correlates them.
        node: the map whose field this was worked out for (None: all). Maps above it that hand on a
            unit's gradient to it alone, as it is, have the same `doubts` and `pairs`.
    """

    node: str | None = None
    lags: dict[int, Lags] = field(default_factory=dict)
    pairs: dict[int, list[Pair]] = field(default_factory=dict)
    within: set[int] = field(default_factory=set)
    reasons: list[str] = field(default_factory=list)
    doubts: dict[str, dict[str, str]] = field(default_factory=dict)
    _inside: dict[int, list[Lags]] = field(default_factory=dict, repr=False)

    def inside(self, op: Operation, kinds: Kinds) -> list[Lags]:
        """As `wanted_inside`, of all that an operation reads; none where nothing is to be read."""
        if id(op) not in self._inside:
            lags = [self.lags[q] for q, _ in op.sources if q in self.lags]
            united = reduce(united_lags, lags) if lags else None
            self._inside[id(op)] = [] if united is None else wanted_inside(op, kinds, united)
        return self._inside[id(op)]

    @property
    def widest(self) -> int:
        """Most lags that a plane has, all axes together: its covariances take as many images."""
        return max((math.prod(map(len, lags)) for lags in self.lags.values()), default=1)

    def is_alone(self, plane: int) -> bool:
        """Whether variances are all that counts of a plane."""
        return plane not in self.lags or _alone(self.lags[plane])

    @property
    def matters(self) -> bool:
        """Whether variances alone would not do."""
        return bool(self.pairs or self.within) or any(
            not _alone(lags) for lags in self.lags.values()
        )

    def concerns(self, op: Operation) -> bool:
        """Whether variances alone would not do for an operation."""
        ends = [p for p, _ in (*op.sources, *op.targets)]
        return (
            id(op) in self.within
            or any(q in self.pairs for q, _ in op.sources)
            or any(not _alone(self.lags[p]) for p in ends if p in self.lags)
        )


def coherence_of(graph: PlaneGraph, node: str, input_node: str | None = None) -> Coherence:
    """The covariances on the way from a map to an input (None: to any), found at the first call."""
    if input_node is None and len(graph.network.inputs) == 1:
        (input_node,) = graph.network.inputs
    return graph.once(("coherence", node, input_node), lambda: _found(graph, node, input_node))


def coherence_of_all(graph: PlaneGraph, node: str, input_node: str) -> Coherence:
    """As `coherence_of`, of units on all maps between the input and a node together: lags are
    there if there is a map from whose unit they come."""

    def make() -> Coherence:
        part = graph.ancestors(node)
        return _started(graph, input_node, part, part)

    return graph.once(("coherence of all", node, input_node), make)


def coherence_of_any(graph: PlaneGraph, node: str, input_node: str | None) -> Coherence:
    """As `coherence_of`, of units on all maps of the network that have a spatial extent, together;
    of those on the others as well, if `node` has lost it."""
    collapsed = node in graph.collapsed

    def make() -> Coherence:
        whole = set(graph.network.nodes)
        return _started(graph, input_node, whole, whole if collapsed else whole - graph.collapsed)

    return graph.once(("coherence of any", input_node, collapsed), make)


def is_correlated(graph: PlaneGraph, node: str, input_node: str) -> bool:
    """`coherence_of(…).matters`, found for all maps at the first call: whether some layer on the
    way correlates what is uncorrelated above it, and something below adds that up."""
    return node in graph.once(("correlated", input_node), lambda: _correlated(graph, input_node))


def _correlated(graph: PlaneGraph, input_node: str) -> set[str]:
    """The nodes above those that correlate gradients, and these."""
    found = set(_common(graph, input_node).origins)
    for name, node in graph.network.nodes.items() if found else ():
        if not found.isdisjoint(node.inputs):
            found.add(name)
    return found


@dataclass(slots=True)
class _Common:
    """What does not depend on the map that a field is of: a part of the graph that leads to it has
    the readers, lags wanted and pairs that the whole has there.

    Attributes:
        readers: of each plane, with the lags wanted inside of each of them: the last plane first.
        wanted: by plane, the lags that something nearer to the inputs depends on.
        pairs: by the plane where they part.
        reasons: by sentence, the node where ways meet of which it says why they are no pair.
        whole: whether all pairs have been found.
        spreading: nodes that hand one gradient to several pixels for certain.
        mixing: those that add up what pixels have in common.
        origins: the nodes that correlate gradients which are uncorrelated above them.
        below: of the nodes that hand on a unit's gradient to all channels of one map alone, as it
            is, that map.
    """

    readers: list[tuple[int, list[tuple[Operation, Kinds, list[Lags]]]]]
    wanted: dict[int, Lags]
    pairs: dict[int, list[Pair]]
    reasons: dict[str, str]
    whole: bool
    spreading: set[str]
    mixing: set[str]
    origins: set[str]
    below: dict[str, str]

    @property
    def anything(self) -> bool:
        """Whether there is anything that gradients may have in common."""
        return bool(self.pairs or self.reasons or (self.spreading and self.mixing))


def _common(graph: PlaneGraph, input_node: str | None) -> _Common:
    return graph.once(("common", input_node), lambda: _in_common(graph, input_node))


def _in_common(graph: PlaneGraph, input_node: str | None) -> _Common:
    inputs = graph.network.inputs if input_node is None else (input_node,)
    operations = _reached(graph, inputs)
    if not _anything_common(operations):
        return _Common([], {}, {}, {}, True, set(), set(), set(), {})
    readers = _readers(graph, operations)
    ways = _Ways(graph, readers)
    pairs = _by_plane(ways.pairs())
    wanted = _wanted([p for n in inputs for p in graph.planes_of[n]], graph.ndim, readers, pairs)
    inside = [
        (q, [(op, kinds, wanted_inside(op, kinds, wanted[q])) for op, kinds in readers.get(q, ())])
        for q in sorted(wanted, reverse=True)
    ]
    origins = {graph.planes[pair.above].node for some in pairs.values() for pair in some}
    spreading: set[str] = set()
    mixing: set[str] = set()
    for _, own in inside:
        for op, kinds, asked in own:
            if op.node not in origins and _correlates(graph, op, kinds, asked):
                origins.add(op.node)
            if any(k == "fixed" and m.correlates for k, m in zip(kinds, op.maps, strict=True)):
                spreading.add(op.node)
            if any(k != "random" and m.overlaps for k, m in zip(kinds, op.maps, strict=True)):
                mixing.add(op.node)
    below: dict[str, str] = {}
    for node, pieces in itertools.groupby(operations, key=lambda op: op.node):
        own_pieces = list(pieces)
        read = {q for op in own_pieces for q, _ in op.sources}
        (source, *others) = {graph.planes[q].node for q in read}
        alone = not others and len(read) == len(graph.planes_of[source])
        if alone and node not in origins and not any(map(is_endless, own_pieces)):
            below[node] = source
    return _Common(
        inside,
        wanted,
        pairs,
        ways.reasons,
        ways.steps <= ways.most,
        spreading,
        mixing,
        origins,
        below,
    )


def _correlates(graph: PlaneGraph, op: Operation, kinds: Kinds, inside: Sequence[Lags]) -> bool:
    """Whether an operation correlates what is uncorrelated above it."""
    lags: Lags = (frozenset((0,)),) * graph.ndim
    for number in range(len(op.maps) - 1, -1, -1):
        lags = below(kinds[number], op.maps[number], lags, inside[number])
        if not _alone(lags):
            return True
    return False


def _reached(graph: PlaneGraph, inputs: Iterable[str]) -> list[Operation]:
    """The operations that inputs lead to."""
    reached = {p for name in inputs for p in graph.planes_of[name]}
    operations = []
    for op in graph.operations:
        if any(q in reached for q, _ in op.sources):
            reached.update(p for p, _ in op.targets)
            operations.append(op)
    return operations


def _readers(
    graph: PlaneGraph, operations: Iterable[Operation]
) -> dict[int, list[tuple[Operation, Kinds]]]:
    """What reads each plane, and how the weights of its maps behave."""
    readers: dict[int, list[tuple[Operation, Kinds]]] = {}
    for op in operations:
        if not is_endless(op):
            kinds = kinds_of(graph, op)
            for q, _ in op.sources:
                readers.setdefault(q, []).append((op, kinds))
    return readers


def _found(graph: PlaneGraph, node: str, input_node: str | None) -> Coherence:
    common = _common(graph, input_node)
    if not common.anything:
        return Coherence(node)
    alone: Lags = (frozenset((0,)),) * graph.ndim
    beside: dict[int, Lags] = {}
    at = node
    while at in common.below:
        beside.update((p, alone) for p in graph.planes_of[at])
        at = common.below[at]
    if at == node:
        return _started(graph, input_node, graph.ancestors(node), {node}, node)
    found = coherence_of(graph, at, input_node)
    return replace(found, lags=found.lags | beside) if found.lags else found


def _started(
    graph: PlaneGraph,
    input_node: str | None,
    part: set[str],
    starts: set[str],
    node: str | None = None,
) -> Coherence:
    """The covariances of the part of the graph that leads to a map, where gradients start on some
    of its nodes."""
    common, found = _common(graph, input_node), Coherence(node)
    if not common.anything:
        return found
    planes = [p for p in common.wanted if graph.planes[p].node in part]
    if common.whole:
        inside = set(planes)
        for q, pairs in common.pairs.items():
            if own := [pair for pair in pairs if pair.above in inside]:
                found.pairs[q] = own
        found.reasons = [reason for reason, above in common.reasons.items() if above in part]
    else:
        ways = _Ways(graph, _readers(graph, [op for op in graph.operations if op.node in part]))
        found.pairs, found.reasons = _by_plane(ways.pairs()), list(ways.reasons)
    spread = found.pairs or not common.spreading.isdisjoint(part)
    if not spread or not (found.pairs or not common.mixing.isdisjoint(part)):
        return found  # most networks; no lag but 0 is there, or none is wanted
    _existing(graph, common, [p for p in planes if graph.planes[p].node in starts], found)
    return found


def _by_plane(pairs: Iterable[Pair]) -> dict[int, list[Pair]]:
    """Pairs by the plane where their ways part."""
    found: dict[int, list[Pair]] = {}
    for pair in pairs:
        found.setdefault(pair.below, []).append(pair)
    return found


def _anything_common(operations: Sequence[Operation]) -> bool:
    """A quick look: without a fork into two ways that no weights part, and without fixed weights
    that hand one gradient to several pixels, nothing is correlated."""
    maps = {id(m): m for op in operations for m in op.maps}
    if any(m.kind == "fixed" and m.correlates for m in maps.values()):
        return True
    ways = Counter(
        q for op in operations if all(m.kind != "random" for m in op.maps) for q, _ in op.sources
    )
    return any(count > 1 for count in ways.values())


# --- layers ---------------------------------------------------------------------------------


def is_endless(op: Operation) -> bool:
    """Whether an operation reads the whole of an unbounded grid: no field passes it."""
    return any(m.is_global and m.size_in is None for m in op.maps)


Kinds = tuple[Kind, ...]
"""How the weights of each of an operation's maps behave."""

_SHUFFLES = (PixelShuffle, PixelUnshuffle)


def kinds_of(graph: PlaneGraph, op: Operation) -> Kinds:
    """How the weights of an operation's maps behave.

    A layer over the whole map whose weights depend on the data counts as if they were independent.
    What a pixel shuffle moves stays in channels of its own, so that nothing is added up.
    """
    if not op.maps:
        return ()
    layer = graph.network.nodes[op.node].layer
    depends = isinstance(layer, SqueezeExcite | Norm | Multiply) and op.is_global
    if depends or isinstance(layer, _SHUFFLES):
        apart: Kind = "random"
        return (apart,) * len(op.maps)
    return tuple(m.kind for m in op.maps)


def is_shuffle(layer: Layer) -> bool:
    """Whether a layer moves channels to pixels, or back."""
    return isinstance(layer, _SHUFFLES)


def is_deterministic(graph: PlaneGraph, op: Operation, kinds: Kinds) -> bool:
    """Whether what passes an operation has something in common with what passes beside it."""
    return "random" not in kinds or isinstance(graph.network.nodes[op.node].layer, _SHUFFLES)


def chooses(graph: PlaneGraph, op: Operation) -> bool:
    """Whether the data choose what an operation passes on: an activation's slopes, the routes of
    max-pooling, the other factors of a product."""
    layer = graph.network.nodes[op.node].layer
    if isinstance(layer, Activation | Multiply):
        mean = layer.mean_factor
        return mean is None or mean**2 < layer.pointwise_gain
    return "routing" in kinds_of(graph, op)


def stands_still(kind: Kind, move: SpatialMap) -> bool:
    """Whether a map of independent weights moves no pixel, and none off the map."""
    return (
        kind == "random"
        and move.taps is None
        and move.size_in == move.size_out
        and all(isinstance(a, Window) and a.kernel == a.stride == 1 and not a.lo for a in move.axes)
    )


def mean_share(graph: PlaneGraph, op: Operation) -> float:
    """E[factor]²/E[factor²] of an operation's pointwise factors; 1 where it is not known."""
    layer = graph.network.nodes[op.node].layer
    mean = layer.mean_factor
    return 1.0 if mean is None else mean**2 / layer.pointwise_gain


# --- lags -----------------------------------------------------------------------------------


def _alone(lags: Lags) -> bool:
    return all(len(axis) == 1 for axis in lags)


def united_lags(a: Lags | None, b: Lags) -> Lags:
    return b if a is None else tuple(x | y for x, y in zip(a, b, strict=True))


def wanted_inside(op: Operation, kinds: Kinds, lags: Lags) -> list[Lags]:
    """The lags that are wanted of the input of each of an operation's maps, and of what the last
    one writes, where `lags` are wanted of what it reads."""
    found = [lags]
    for kind, move in zip(kinds, op.maps, strict=True):
        found.append(_above(kind, move, found[-1]))
    return found


@lru_cache(maxsize=KEPT_MAPS)
def _above(kind: Kind, move: SpatialMap, lags: Lags) -> Lags:
    """The lags of what a map writes that those of what it reads depend on."""
    if kind == "random":
        return tuple(
            frozenset(found for t in axis if (found := lag_above(a, t)) is not None)
            for a, axis in zip(move.axes, lags, strict=True)
        )
    none = frozenset((0,))
    if _alone(lags) and not move.overlaps:
        return (none,) * len(lags)
    return _mixed_above(_of_itself(move), lags)


Meets = tuple[tuple[Meetings, ...], ...]
"""For every two of the products that two maps, or ways, are sums of: their lines, axis by axis."""


def _meets(a: Iterable[Term], b: Iterable[Term]) -> Meets:
    return tuple(tuple(map(Meetings, one, other)) for one, other in itertools.product(a, b))


@lru_cache(maxsize=KEPT_MAPS)
def _of_itself(move: SpatialMap) -> Meets:
    own = terms((move,), len(move.axes))
    return _meets(own, own)


def lag_above(axis: AxisMap, lag: int) -> int | None:
    """The lag of what a map with weights writes from which a lag of what it reads comes; None
    where different weights lead to pixels so far apart."""
    if isinstance(axis, Spread):
        return lag * axis.stride
    if isinstance(axis, Window):
        return None if lag % axis.stride else lag // axis.stride
    return 0 if lag == 0 else None


def _mixed_above(meetings: Meets, lags: Lags) -> Lags:
    found = (frozenset((0,)),) * len(lags)
    for each in meetings:
        met = (m.at(axis) for m, axis in zip(each, lags, strict=True))
        spread = tuple(_spelled_out(m.values()) for m in met)
        found = united_lags(found, spread)
    return found


@lru_cache(maxsize=KEPT_MAPS)
def below(kind: Kind, move: SpatialMap, lags: Lags, wanted: Lags) -> Lags:
    """The lags among those wanted of what a map reads at which there is something."""
    if kind == "random":
        return tuple(
            frozenset(t for t in want if lag_above(a, t) in axis)
            for a, axis, want in zip(move.axes, lags, wanted, strict=True)
        )
    # Uncorrelated gradients stay so unless one of them goes to several pixels for certain.
    if _alone(wanted) or (_alone(lags) and (kind == "routing" or not move.correlates)):
        return (frozenset((0,)),) * len(lags)
    return _mixed_below(_of_itself(move), lags, wanted)


def _spelled_out(ranges: Iterable[range]) -> frozenset[int]:
    """What lies in any of some ranges; they overlap, and each may be as long as all together."""
    found: list[range] = []
    for one in sorted(ranges, key=lambda r: r.start):
        if found and one.start <= found[-1].stop:
            found[-1] = range(found[-1].start, max(found[-1].stop, one.stop))
        else:
            found.append(one)
    count = sum(map(len, found))
    if count > MOST_LAGS:
        raise PlanError(
            f"fixed layers correlate gradients at {count} distances along an axis, more than the "
            f"{MOST_LAGS} that are followed; give smaller windows or scales"
        )
    return frozenset(itertools.chain.from_iterable(found))


def _meet(lags: frozenset[int], those: range) -> bool:
    if len(lags) < len(those):
        return any(t in those for t in lags)
    return not lags.isdisjoint(those)


def _mixed_below(meetings: Meets, lags: Lags, wanted: Lags) -> Lags:
    found = (frozenset((0,)),) * len(lags)
    for each in meetings:
        met = (m.at(want) for m, want in zip(each, wanted, strict=True))
        here = tuple(
            frozenset(t for t, r in m.items() if _meet(axis, r))
            for m, axis in zip(met, lags, strict=True)
        )
        found = united_lags(found, here)
    return found


def _wanted(
    seeds: Iterable[int],
    ndim: int,
    readers: Mapping[int, Sequence[tuple[Operation, Kinds]]],
    pairs: Mapping[int, Sequence[Pair]],
) -> dict[int, Lags]:
    """By plane, the lags that something nearer to the inputs depends on."""
    found: dict[int, Lags] = dict.fromkeys(seeds, (frozenset((0,)),) * ndim)
    for q in range(max((*readers, *found), default=-1) + 1):
        if q not in found:
            continue
        for op, kinds in readers.get(q, ()):
            above = wanted_inside(op, kinds, found[q])[-1]
            for p, _ in op.targets:
                found[p] = united_lags(found.get(p), above)
        for pair in pairs.get(q, ()):
            above = _mixed_above(_meets(pair.a, pair.b), found[q])
            found[pair.above] = united_lags(found.get(pair.above), _both_ways(above))
    return found


def _both_ways(lags: Lags) -> Lags:
    """The same with every lag's negative: R_−τ is needed where R_τ is."""
    return tuple(axis | frozenset(-t for t in axis) for axis in lags)


def _existing(graph: PlaneGraph, common: _Common, starts: Sequence[int], found: Coherence) -> None:
    """Fills in the lags among those wanted at which there is something, where gradients start on
    the planes `starts`; and the reasons."""
    causes: dict[int, str] = {}
    alone = (frozenset((0,)),) * graph.ndim
    for p in starts:
        found.lags[p] = alone
    highest = max(starts, default=-1)
    for q, readers in common.readers:
        if q > highest:
            continue
        for op, kinds, inside in readers:
            targets = [p for p, _ in op.targets if p in found.lags]
            if not targets:
                continue
            lags = reduce(united_lags, (found.lags[p] for p in targets))
            cause = next((causes[p] for p in targets if p in causes), None)
            if cause is not None and not _alone(lags) and chooses(graph, op):
                kind = graph.network.nodes[op.node].layer.kind
                found.doubts.setdefault(kind, {}).setdefault(op.node, cause)
            for number in range(len(op.maps) - 1, -1, -1):
                lags = below(kinds[number], op.maps[number], lags, inside[number])
                if not _alone(lags):
                    cause = cause or op.node
                    if number:
                        found.within.add(id(op))
            if cause is not None and not _alone(lags):
                causes.setdefault(q, cause)
            found.lags[q] = united_lags(found.lags.get(q), lags)
        for pair in found.pairs.get(q, ()):
            if pair.above in found.lags:
                here = _mixed_below(
                    _meets(pair.a, pair.b), found.lags[pair.above], common.wanted[q]
                )
                found.lags[q] = united_lags(found.lags.get(q), _both_ways(here))
                causes.setdefault(q, graph.planes[q].node)


def doubt(graph: PlaneGraph, layers: Mapping[str, str], near_borders: bool = False) -> str:
    """What is not known of layers of one kind that correlated gradients reach: by node, what
    correlates them. Networks have one behind every convolution: one sentence for all.

    `near_borders`: it is not known there alone.
    """
    (first, cause), count = next(iter(layers.items())), len(layers)
    names = first if count == 1 else f"{first} and {count - 1} more"
    if near_borders:
        return (
            f"{names}: slopes of neighbouring pixels count as alike as they are far from borders; "
            f"near them padding changes the signal; the gradients are correlated by {cause}"
        )
    if graph.network.nodes[first].layer.mean_factor is None:
        return (
            f"{names}: the mean of the factors is not known; they count as constant for gradients "
            f"correlated by {cause}"
        )
    return (
        f"{names}: what passes depends on the data and counts as independent between pixels; the "
        f"gradients are correlated by {cause}"
    )


# --- ways that meet again -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Way:
    """A deterministic way up from a plane.

    Attributes:
        at: the plane it has come to.
        passed: the last operation that it passed, and what it had passed before; () where it
            begins.
        length: the number of operations.
        channel: (a, b, before): channel c of the plane where it began is channel a·c + b here;
            `before` are the places at which no such formula holds, each with what held there.
        vague: whether even so the channel is not known.
        share: of the channels of the plane `at` that it leads to.
        factor: mean of the pointwise factors.
        chosen: whether the data choose what passes (an activation's slopes, max-pooling's routes).
        unknown: name of a layer whose factors' mean is not known.
    """

    at: int
    passed: tuple[Any, ...] = ()
    length: int = 0
    channel: tuple[Fraction, Fraction, tuple[Any, ...]] = (Fraction(1), Fraction(0), ())
    vague: bool = False
    share: float = 1.0
    factor: float = 1.0
    chosen: bool = False
    unknown: str | None = None

    @property
    def maps(self) -> tuple[SpatialMap, ...]:
        operations, passed = [], self.passed
        while passed:
            op, passed = passed
            operations.append(op)
        return tuple(m for op in reversed(operations) for m in op.maps)


class _Ways:
    """Follows the deterministic ways out of every plane that several of them lead out of."""

    def __init__(
        self, graph: PlaneGraph, readers: Mapping[int, Sequence[tuple[Operation, Kinds]]]
    ) -> None:
        self.graph = graph
        self.onward = self._onward(readers)
        self.reasons: dict[str, str] = {}
        self.steps, self.most = 0, MOST_STEPS + STEPS_EACH * len(graph.operations)
        self.edges: dict[int, int] = {}
        seen: Counter[tuple[str, int]] = Counter()
        for op in graph.operations:
            for q, _ in op.sources:
                self.edges[id(op)] = seen[op.node, q]
                seen[op.node, q] += 1

    def _onward(
        self, readers: Mapping[int, Sequence[tuple[Operation, Kinds]]]
    ) -> dict[int, list[Operation]]:
        """The deterministic operations that read each plane and lead to where ways can meet:
        where several of them write, each channel of a concatenation or of a space-to-depth having
        one writer alone."""
        graph = self.graph
        found = {
            q: [op for op, kinds in ops if is_deterministic(graph, op, kinds)]
            for q, ops in readers.items()
        }
        writers = Counter(p for ops in found.values() for op in ops for p, _ in op.targets)
        apart = Concat | PixelUnshuffle
        leads = {
            p
            for p, count in writers.items()
            if count > 1 and not isinstance(graph.network.nodes[graph.planes[p].node].layer, apart)
        }
        onward = {}
        for q in sorted(found, reverse=True):
            kept = [op for op in found[q] if any(p in leads for p, _ in op.targets)]
            if kept:
                leads.add(q)
                onward[q] = kept
        return onward

    def pairs(self) -> Iterator[Pair]:
        """The pairs; those of a part of the graph are in the same order as those of the whole."""
        for q, ops in self.onward.items():
            groups = self._meeting(ops) if len(ops) > 2 else [range(len(ops))]
            both = (itertools.combinations(group, 2) for group in groups)
            for first, second in heapq.merge(*both):
                if self._gives_up(q):
                    return
                start = _Way(q)
                for a in self._along(start, ops[first]):
                    for b in self._along(start, ops[second]):
                        yield from self._meet(q, a, b)

    def _meeting(self, ops: Sequence[Operation]) -> Iterable[Sequence[int]]:
        """The numbers of the operations that read a plane, in groups whose ways do not lead to a
        common plane.

        Of a map that many layers read, few ways meet others: to try all pairs would take the
        square of their number. All are followed at once, from the input up, until one group
        alone is left that can meet another.
        """
        group = list(range(len(ops)))  # by operation, one that its group has in common

        def first(i: int) -> int:
            while group[i] != i:
                group[i] = i = group[group[i]]
            return i

        came: dict[int, int] = {}  # by plane, an operation that leads to it
        ahead: list[int] = []  # planes that can still be met: ways lead to higher numbers
        going = [0] * len(ops)  # by group, those that it leads to
        alive: set[int] = set()

        def arrive(p: int, i: int) -> None:
            if p not in came:
                came[p] = i
                heapq.heappush(ahead, p)
                going[i] += 1
                alive.add(i)
                return
            other = first(came[p])
            if other != i:
                group[i] = other
                going[other] += going[i]
                alive.discard(i)
                if going[other]:
                    alive.add(other)

        for i, op in enumerate(ops):
            for p, _ in op.targets:
                arrive(p, first(i))
        while len(alive) > 1:
            at = heapq.heappop(ahead)
            i = first(came[at])
            going[i] -= 1
            if not going[i]:
                alive.discard(i)
            for op in self.onward.get(at, ()):
                for p, _ in op.targets:
                    arrive(p, first(i))
        found: dict[int, list[int]] = {}
        for i in range(len(ops)):
            found.setdefault(first(i), []).append(i)
        return found.values()

    def _meet(self, q: int, a: _Way, b: _Way) -> Iterator[Pair]:
        """The pairs of the ways on from a and b; the one nearer to the input goes on first, as
        the other cannot lead to where it is."""
        stack = [(a, b)]
        while stack:
            self.steps += 1
            if self._gives_up(q):
                return
            a, b = stack.pop()
            if a.at == b.at:
                same = _same_channels(a, b)
                if same is None:
                    self._doubt(q, a, "the channels in which they meet are not followed")
                    continue
                if same:
                    pair = self._pair(q, a, b)
                    if pair is not None:
                        yield pair
                    continue
            if a.at > b.at:
                a, b = b, a
            for op in self.onward.get(a.at, ()):
                stack.extend((way, b) for way in self._along(a, op))

    def _gives_up(self, q: int) -> bool:
        """Whether the search has taken too long, which is then said."""
        if self.steps <= self.most:
            return False
        name = self.graph.planes[q].node
        self.reasons[
            f"{name}: too many deterministic ways lead from it and from later maps to search them "
            f"all; their gradients are added as if uncorrelated"
        ] = name
        return True

    def _pair(self, q: int, a: _Way, b: _Way) -> Pair | None:
        unknown = a.unknown or b.unknown
        if a.chosen and b.chosen:
            self._doubt(q, a, "what both of them pass on depends on the data")
            return None
        if unknown:
            self._doubt(q, a, f"the mean of the slopes of {unknown} is not known")
            return None
        self.steps += a.length + b.length
        ndim = self.graph.ndim
        factor = a.factor * b.factor * math.sqrt(a.share * b.share)
        return Pair(q, a.at, terms(a.maps, ndim), terms(b.maps, ndim), factor)

    def _doubt(self, q: int, way: _Way, why: str) -> None:
        name, above = (self.graph.planes[p].node for p in (q, way.at))
        self.reasons[
            f"{name}: several deterministic paths lead from it to {above}, and {why}; "
            f"their gradients are added as if uncorrelated"
        ] = above

    def _along(self, way: _Way, op: Operation) -> Iterator[_Way]:
        """The way one operation further, to each plane that it leads to."""
        layer = self.graph.network.nodes[op.node].layer
        channel, known = self._channel(way, op, layer)
        known = known and len(op.targets) == 1
        mean = layer.mean_factor
        pointwise = math.sqrt(op.gain / layer.pointwise_gain)
        for p, share in op.targets:
            yield _Way(
                p,
                (op, way.passed),
                way.length + 1,
                channel,
                way.vague or not known,
                way.share * share,
                way.factor * pointwise * (1.0 if mean is None else mean),
                way.chosen or chooses(self.graph, op),
                way.unknown or (op.node if mean is None else None),
            )

    def _channel(
        self, way: _Way, op: Operation, layer: Layer
    ) -> tuple[tuple[Fraction, Fraction, tuple[Any, ...]], bool]:
        """The way's channel behind an operation, and whether it is known."""
        a, b, before = way.channel
        node = self.graph.network.nodes[op.node]
        source = self.graph.planes[way.at].node
        c_in, c_out = self.graph.channels[source], self.graph.channels[op.node]
        if isinstance(layer, Concat):
            number = [i for i, s in enumerate(node.inputs) if s == source][self.edges[id(op)]]
            counts = [self.graph.channels[s] for s in node.inputs[:number]]
            if c_out is None:
                return (Fraction(1), Fraction(0), (*before, (op.node, number, a, b))), True
            return (a, b + sum(c or 0 for c in counts), before), True
        if isinstance(layer, ChannelShuffle):
            return (Fraction(1), Fraction(0), (*before, (op.node, 0, a, b))), True
        if isinstance(layer, ChannelSlice) and c_in is not None:
            kept = range(c_in)[layer.start : layer.stop : layer.step]
            return (a / kept.step, (b - kept.start) / kept.step, before), True
        if isinstance(layer, _SHUFFLES):
            if c_in is None or c_out is None:
                return way.channel, False
            count = math.prod(layer.factor)
            phases = [-axis.lo for axis in op.maps[0].axes if isinstance(axis, Window | Spread)]
            number = int(np.ravel_multi_index(phases, layer.factor))
            if isinstance(layer, PixelUnshuffle):
                return (a * count, b * count + number, before), True
            return (a / count, (b - number) / count, before), True
        return way.channel, c_in == c_out or c_in is None


def _same_channels(a: _Way, b: _Way) -> bool | None:
    """Whether two ways to one plane lead to the same channel of it; None where that is not
    known."""
    if a.vague or b.vague:
        return None
    if a.channel == b.channel:
        return True
    if a.channel[::2] == b.channel[::2]:
        return False  # apart by a constant number of channels
    if a.channel[:2] == b.channel[:2] and a.channel[2] and b.channel[2]:
        (node, number, *_), (other, second, *_) = a.channel[2][-1], b.channel[2][-1]
        if node == other and number != second:
            return False  # different parts of one concatenation
    return None
