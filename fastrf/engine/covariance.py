"""Where the variances of a field are exact, and where they need covariances to be.

What is correlated, and why, is worked out in `coherence`; `correlated` carries it along. What the
model of independent weights does not say remains approximate, and is named here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from fastrf.engine.coherence import Coherence, coherence_of, doubt, is_correlated
from fastrf.layers import (
    Activation,
    Attention,
    MaxPool,
    Multiply,
    Norm,
    SqueezeExcite,
)
from fastrf.layers.checks import TRAINED
from fastrf.layers.weights import weights_of
from fastrf.lowering import PlaneGraph
from fastrf.maps import SpatialMap, Table
from fastrf.meanfield.settling import alike
from fastrf.meanfield.slopes import slopes_of


def needed(graph: PlaneGraph, node: str, input_node: str) -> bool:
    """Whether the image of `node` depends on covariances, so that `correlated` has to make it."""
    return is_correlated(graph, node, input_node)


def is_relative(graph: PlaneGraph, node: str, input_node: str) -> bool:
    """Whether `correlated` is right pixel by pixel: nothing that it adds is negative. Otherwise it
    is right relative to the peak."""
    coherence = coherence_of(graph, node, input_node)
    if not coherence.matters:
        return True
    signed = graph.once("signed", lambda: _signed(graph))
    if signed and any(id(op) in signed for op in graph.between(node, input_node)):
        return False
    return all(pair.factor > 0 for some in coherence.pairs.values() for pair in some)


def _signed(graph: PlaneGraph) -> set[int]:
    """Ids of the operations that have coefficients of either sign."""
    return {id(op) for op in graph.operations if any(map(_is_signed, op.maps))}


def _is_signed(move: SpatialMap) -> bool:
    return move.coefficients is not None or any(
        isinstance(axis, Table) and axis.coefficients is not None for axis in move.axes
    )


def inexact_reasons(graph: PlaneGraph, node: str) -> list[str]:
    """Why the variance image of `node` is approximate even with covariances: one sentence per
    layer, none if exact."""
    return graph.once(("inexact", node), lambda: _reasons(graph, node))


def assumptions(graph: PlaneGraph, node: str) -> list[str]:
    """What is assumed where activations pass correlated gradients or follow one another along an
    identity, none where they do not."""
    signal = "an input of Gaussian white noise, many channels and batch statistics of that signal"
    found = []
    if _known(graph, node, coherence_of(graph, node)):
        found.append(f"slopes of activations at neighbouring pixels are alike as for {signal}")
    if graph.identities and not graph.ancestors(node).isdisjoint(graph.identities):
        found.append(f"slopes of successive activations on an identity are alike as for {signal}")
    return found


def _known(graph: PlaneGraph, node: str, coherence: Coherence) -> set[str]:
    """The activations of which it is known what their slopes have in common."""
    if not coherence.doubts:
        return set()
    slopes = slopes_of(graph, node, None)
    return graph.once(("known slopes", coherence.node), lambda: slopes.known(graph, coherence))


def _reasons(graph: PlaneGraph, node: str) -> list[str]:
    coherence, below = coherence_of(graph, node), graph.ancestors(node)
    weighted = graph.once("weighted", lambda: _weighted(graph))
    found = _of_these(graph, "models", _models, below)
    if not below.isdisjoint(weighted):
        found.append(
            "the weights are fixed: the image is the mean over independent random signs of all of "
            "them, so what paths through different weights have in common is left out"
        )
    if not below.isdisjoint(graph.once("trained", lambda: _trained(graph))):
        found.append(
            "trained weights are fixed: independent ones of mean 0 stand in for them, with the "
            "mean squares of a layer's taps over its channels"
        )
    found += [*coherence.reasons, *_doubts(graph, node, coherence), *_slopes(graph, below)]
    found += _of_these(graph, "rectified pools", _rectified_pools, below)
    if coherence.matters and not below.isdisjoint(weighted):
        found.append(
            "fixed layers correlate gradients: channel by channel their squares are added up as if "
            "uncorrelated"
        )
    return found


def _of_these(
    graph: PlaneGraph, key: str, find: Callable[[PlaneGraph], dict[str, str]], below: set[str]
) -> list[str]:
    """What there is to say of some nodes, of what there is of all, which is found once."""
    sentences = graph.once(key, lambda: find(graph))
    return [sentence for name, sentence in sentences.items() if name in below]


def _weighted(graph: PlaneGraph) -> set[str]:
    """The nodes whose weights are given and not random."""
    return {name for name, node in graph.network.nodes.items() if weights_of(node.layer)}


def _trained(graph: PlaneGraph) -> set[str]:
    """The nodes for whose weights random ones stand in."""
    nodes = graph.network.nodes.items()
    return {name for name, node in nodes if getattr(node.layer, "init", None) == TRAINED}


def _doubts(graph: PlaneGraph, node: str, coherence: Coherence) -> list[str]:
    """What is not known of layers that correlated gradients reach."""
    found: list[str] = []
    if not coherence.doubts:
        return found
    known = _known(graph, node, coherence)
    bordered = known & slopes_of(graph, node, None).bordered
    for layers in coherence.doubts.values():
        for near, ours in ((False, layers.keys() - known), (True, bordered)):
            left = {name: cause for name, cause in layers.items() if name in ours}
            if left:
                found.append(doubt(graph, left, near))
    return found


def _slopes(graph: PlaneGraph, below: set[str]) -> list[str]:
    """Activations whose slopes count as independent of those before them and are not."""
    bare = graph.once("alike", lambda: alike(graph.network.nodes))
    found = [n for n in bare if n in below and n not in graph.identities]
    if not found:
        return []
    names = found[0] if len(found) == 1 else f"{found[0]} and {len(found) - 1} more"
    return [
        f"{names}: a path without weights leads here from another activation, beside paths with "
        f"weights; its slopes are alike, and count as independent (gains are multiplied as stated; "
        f"of `Network.initialised` they follow from the weights, and the slopes are followed)"
    ]


def _rectified_pools(graph: PlaneGraph) -> dict[str, str]:
    """By node, what is wrong of max-pooling of what ReLU left, in windows that borders cut.

    A window of n independent pixels passes nothing where none is positive, in 1 of 2^n cases: the
    largest is then one of zeros, and ReLU's slope there is 0. Of whole windows that is one factor.
    Where it is known (`PlaneGraph.largest`) windows cut along one axis have theirs, and only those
    that are cut along several remain.
    """
    found: dict[str, str] = {}
    for op in graph.operations:
        layer, inputs = graph.network.nodes[op.node].layer, graph.network.nodes[op.node].inputs
        if not isinstance(layer, MaxPool):
            continue
        below = graph.network.nodes[inputs[0]].layer
        tables = [a for m in op.maps for a in m.axes if isinstance(a, Table)]
        if not tables or not isinstance(below, Activation) or below.function != "relu":
            continue
        shares = [int(c.min()) / int(c.max()) for c in ((a.taps > 0).sum(axis=1) for a in tables)]
        whole = math.prod(layer.kernel)
        cut = round(whole * math.prod(shares))
        passed = graph.largest.get(op.node)
        if passed is None:
            place, counted = "borders", 1 - 0.5**whole
            true = 1 - 0.5**cut
        else:
            true, inner = passed(cut), passed(whole)
            place, counted = "corners", inner
            for share in shares:
                counted *= passed(round(whole * share)) / inner
        if counted - true > 1e-12 * true:
            found[op.node] = (
                f"{op.node}: windows at the {place} hold as few as {cut} pixels, and where ReLU "
                f"left none of them nothing passes: they count for up to {counted / true - 1:.1%} "
                f"too much"
            )
    return found


def _models(graph: PlaneGraph) -> dict[str, str]:
    """By node, what stands in for operators over the whole map whose weights depend on the data."""
    nodes = graph.network.nodes
    return {
        op.node: f"{op.node}: its weights over the whole map depend on the data; "
        f"equal independent ones stand in for them"
        for op in graph.operations
        if op.is_global
        and isinstance(nodes[op.node].layer, Attention | SqueezeExcite | Norm | Multiply)
    }
