"""Where gradients are correlated, so that adding up variances is not exact.

Independent zero-mean weights make the gradients they hand back uncorrelated between branches and
between the channels they mix; what they hand back is as correlated between *pixels* as what they
get. A fixed layer that spreads one gradient over several pixels (average pooling, resizing) makes
pixels correlated, and a fixed layer whose windows overlap adds correlated pixels up: then
Var(Σ c g) = Σ c_a c_b Cov(g_a, g_b), and the squares alone are not enough. Two deterministic paths
out of one map (an identity beside an average pool) are correlated with each other likewise.
The routes of max-pooling are no zero-mean weights either: two overlapping windows that send their
gradients to one pixel add them up, correlated or not.

A layer is named where its result may be wrong; where nothing is named, the variances are exact.
"""

from __future__ import annotations

from collections import Counter

from fastrf.layers import (
    Attention,
    ChannelShuffle,
    Concat,
    Conv,
    ConvTranspose,
    FullyConnected,
    Multiply,
    Norm,
    SqueezeExcite,
)
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import SpatialMap, Spread

Edge = tuple[str, int]
"""A node and which of its inputs is meant."""

Readers = dict[str, list[Edge]]
"""Node → the edges over which others read it."""


def inexact_reasons(graph: PlaneGraph, node: str) -> list[str]:
    """Why the variance image of `node` is approximate: one sentence per layer, none if exact."""
    return graph.once(("inexact", node), lambda: _reasons(graph, node))


def _reasons(graph: PlaneGraph, node: str) -> list[str]:
    wanted = graph.ancestors(node)
    operations = [op for op in graph.operations if op.node in wanted]
    return [
        *_models(graph, operations),
        *_overlaps(graph, operations),
        *_reunited_paths(graph, node, wanted),
    ]


def _models(graph: PlaneGraph, operations: list[Operation]) -> list[str]:
    """Operators over the whole map whose weights depend on the data."""
    found = dict.fromkeys(op.node for op in operations if op.is_global)
    return [
        f"{name}: its weights over the whole map depend on the data; "
        f"equal independent ones stand in for them"
        for name in found
        if isinstance(graph.network.nodes[name].layer, Attention | SqueezeExcite | Norm | Multiply)
    ]


def _overlaps(graph: PlaneGraph, operations: list[Operation]) -> list[str]:
    """Layers that add up gradients, without weights of their own, which are already correlated."""
    correlated: dict[int, str] = {}
    reasons: dict[str, None] = {}
    for op in reversed(operations):
        cause = next((correlated[p] for p, _ in op.targets if p in correlated), None)
        for move in reversed(op.maps):
            if cause is not None and _adds_up(move):
                reasons[
                    f"{op.node}: its windows overlap and the gradients that reach it are "
                    f"correlated by {cause}; they are added as if they were not"
                ] = None
            if move.kind == "fixed" and move.correlates:
                cause = cause or op.node
        if cause is not None:
            for q, _ in op.sources:
                correlated.setdefault(q, cause)
    return list(reasons)


def _adds_up(move: SpatialMap) -> bool:
    """Whether a pixel gets the sum of several gradients with weights that are not zero-mean."""
    if move.kind == "routing":
        # A pixel shuffle takes its phases from channels of their own: nothing is added.
        return move.overlaps and not any(isinstance(axis, Spread) for axis in move.axes)
    return move.kind == "fixed" and move.overlaps


def _reunited_paths(graph: PlaneGraph, node: str, wanted: set[str]) -> list[str]:
    """Maps that several readers hand gradients to which stem from one gradient."""
    order = {name: number for number, name in enumerate(graph.network.nodes)}
    readers: Readers = {}
    for name in graph.network.nodes:
        if name in wanted:
            for i, source in enumerate(graph.network.nodes[name].inputs):
                readers.setdefault(source, []).append((name, i))
    reasons = []
    for name, edges in readers.items():
        deterministic = [edge for edge in edges if not _draws_weights(graph, edge[0])]
        shared = _shared_origin(graph, name, deterministic, readers, node, order)
        if shared is not None:
            reasons.append(
                f"{name}: several deterministic paths lead from it to {shared}; "
                f"their gradients are added as if uncorrelated"
            )
    return reasons


def _shared_origin(
    graph: PlaneGraph,
    name: str,
    edges: list[Edge],
    readers: Readers,
    output: str,
    order: dict[str, int],
) -> str | None:
    """An origin that two of a map's edges share, None where they share none.

    The walks go as far as a horizon that widens until at most one of them leads beyond it: what
    that one finds out there, the others do not have. A chain of a thousand blocks is thus
    searched block by block, not to its end from each.
    """
    reach = 16
    while len(edges) > 1:
        walks = [
            _origins(graph, edge, readers, output, order, order[name] + reach) for edge in edges
        ]
        counts = Counter(origin for found, _ in walks for origin in found)
        shared = [origin for origin, count in counts.items() if count > 1]
        if shared:
            return min(shared)
        if sum(beyond for _, beyond in walks) <= 1:
            break
        reach *= 2
    return None


def _draws_weights(graph: PlaneGraph, node: str) -> bool:
    layer = graph.network.nodes[node].layer
    return isinstance(layer, Conv | ConvTranspose | FullyConnected | Attention)


def _origins(
    graph: PlaneGraph,
    edge: Edge,
    readers: Readers,
    output: str,
    order: dict[str, int],
    horizon: int,
) -> tuple[set[str], bool]:
    """Where the gradient that an edge hands down comes from, over deterministic layers, and
    whether more origins may lie behind the node number `horizon`.

    A layer that draws weights is an origin of its own, and so is each part of a concatenation
    whose channels get gradients of their own from the layers behind it.
    """
    found: set[str] = set()
    beyond = False
    seen: set[str] = set()
    stack = [edge]
    while stack:
        at, i = stack.pop()
        if order[at] > horizon:
            beyond = True
        elif isinstance(graph.network.nodes[at].layer, Concat) and _apart(
            graph, at, readers, output
        ):
            found.add(f"{at}[{i}]")
        elif at == output or _draws_weights(graph, at):
            found.add(at)
        elif at not in seen:
            seen.add(at)
            stack.extend(readers.get(at, ()))
    return found, beyond


def _apart(graph: PlaneGraph, node: str, readers: Readers, output: str) -> bool:
    """Whether every channel of a map is read by itself up to the next weights.

    Then its channels get uncorrelated gradients. Slices, shuffles and broadcasts can lead one
    gradient to several channels.
    """
    seen = {node}
    stack = [node]
    while stack:
        at = stack.pop()
        for reader, _ in readers.get(at, ()) if at != output else ():
            if reader in seen or _draws_weights(graph, reader):
                continue
            layer = graph.network.nodes[reader].layer
            same = graph.channels[reader] == graph.channels[at] or isinstance(layer, Concat)
            if not same or isinstance(layer, ChannelShuffle):
                return False
            seen.add(reader)
            stack.append(reader)
    return True
