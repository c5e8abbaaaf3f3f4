"""Where gradients are correlated, so that adding up variances is not exact.

Independent zero-mean weights make the gradients they hand back uncorrelated between branches and
between the channels they mix; what they hand back is as correlated between *pixels* as what they
get. A fixed layer that spreads one gradient over several pixels (average pooling, resizing) makes
pixels correlated, and a fixed layer whose windows overlap adds correlated pixels up: then
Var(Σ c g) = Σ c_a c_b Cov(g_a, g_b), and the squares alone are not enough. Two deterministic paths
out of one map (an identity beside an average pool) are correlated with each other likewise.
"""

from __future__ import annotations

from fastrf.layers import Attention, Concat, Conv, ConvTranspose, FullyConnected
from fastrf.lowering import Operation, PlaneGraph


def inexact_reasons(graph: PlaneGraph, node: str) -> list[str]:
    """Why the variance image of `node` is approximate: one sentence per layer, none if exact."""
    wanted = graph.ancestors(node)
    operations = [op for op in graph.operations if op.node in wanted]
    return [*_overlaps(graph, operations), *_reunited_paths(graph, node, wanted)]


def _overlaps(graph: PlaneGraph, operations: list[Operation]) -> list[str]:
    """Fixed layers with overlapping windows that get gradients which are already correlated."""
    correlated: dict[int, str] = {}
    reasons: dict[str, None] = {}
    for op in reversed(operations):
        cause = next((correlated[p] for p, _ in op.targets if p in correlated), None)
        for move in reversed(op.maps):
            if move.kind != "fixed":
                continue
            if cause is not None and move.overlaps:
                reasons[
                    f"{op.node}: its windows overlap and the gradients that reach it are "
                    f"correlated by {cause}; they are added as if they were not"
                ] = None
            if move.correlates:
                cause = cause or op.node
        if cause is not None:
            for q, _ in op.sources:
                correlated.setdefault(q, cause)
    return list(reasons)


def _reunited_paths(graph: PlaneGraph, node: str, wanted: set[str]) -> list[str]:
    """Maps that several readers hand gradients to which stem from one gradient."""
    readers: dict[str, list[str]] = {}
    for name in graph.network.nodes:
        if name in wanted:
            for source in graph.network.nodes[name].inputs:
                readers.setdefault(source, []).append(name)
    reasons = []
    for name, found in readers.items():
        deterministic = [r for r in found if not _draws_weights(graph, r)]
        if len(deterministic) < 2:
            continue
        origins: set[str] = set()
        for reader in deterministic:
            own = _origins(graph, reader, name, readers, node)
            if origins & own:
                reasons.append(
                    f"{name}: several deterministic paths lead from it to "
                    f"{min(origins & own)}; their gradients are added as if uncorrelated"
                )
                break
            origins |= own
    return reasons


def _draws_weights(graph: PlaneGraph, node: str) -> bool:
    layer = graph.network.nodes[node].layer
    return isinstance(layer, Conv | ConvTranspose | FullyConnected | Attention)


def _origins(
    graph: PlaneGraph, reader: str, source: str, readers: dict[str, list[str]], output: str
) -> set[str]:
    """Where the gradient that `reader` hands to `source` comes from, over deterministic layers.

    A layer that draws weights is an origin of its own, and so is each part of a concatenation,
    whose channels get independent gradients from the layers behind it.
    """
    found: set[str] = set()
    seen: set[str] = set()
    stack = [(reader, source)]
    while stack:
        at, below = stack.pop()
        inputs = graph.network.nodes[at].inputs
        if isinstance(graph.network.nodes[at].layer, Concat):
            found.add(f"{at}[{inputs.index(below)}]")
            continue
        if at == output or _draws_weights(graph, at):
            found.add(at)
            continue
        if at not in seen:
            seen.add(at)
            stack.extend((r, at) for r in readers.get(at, ()))
    return found
