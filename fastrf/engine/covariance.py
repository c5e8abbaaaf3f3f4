"""Where the variances of a field are exact, and where they need covariances to be.

What is correlated, and why, is worked out in `coherence`; `correlated` carries it along. What the
model of independent weights does not say remains approximate, and is named here.
"""

from __future__ import annotations

import math

from fastrf.engine.coherence import coherence_of, doubt, is_correlated
from fastrf.layers import (
    Activation,
    Attention,
    Layer,
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
from fastrf.meanfield.slopes import Slopes, slopes_of


def needed(graph: PlaneGraph, node: str, input_node: str) -> bool:
    """Whether the image of `node` depends on covariances, so that `correlated` has to make it."""
    return is_correlated(graph, node, input_node)


def is_relative(graph: PlaneGraph, node: str, input_node: str) -> bool:
    """Whether `correlated` is right pixel by pixel: nothing that it adds is negative. Otherwise it
    is right relative to the peak."""
    coherence = coherence_of(graph, node, input_node)
    if not coherence.matters:
        return True
    pairs = (pair for some in coherence.pairs.values() for pair in some)
    maps = (m for op in graph.between(node, input_node) for m in op.maps)
    return all(pair.factor > 0 for pair in pairs) and not any(map(_is_signed, maps))


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
    slopes = slopes_of(graph, node, None) if coherence_of(graph, node).doubts else Slopes()
    signal = "an input of Gaussian white noise, many channels and batch statistics of that signal"
    found = []
    if slopes.shares:
        found.append(f"slopes of activations at neighbouring pixels are alike as for {signal}")
    if graph.identities and not graph.ancestors(node).isdisjoint(graph.identities):
        found.append(f"slopes of successive activations on an identity are alike as for {signal}")
    return found


def _reasons(graph: PlaneGraph, node: str) -> list[str]:
    coherence = coherence_of(graph, node)
    slopes = slopes_of(graph, node, None) if coherence.doubts else Slopes()
    known = {op.node for op in graph.operations if id(op) in slopes.shares}
    doubts = []
    for layers in coherence.doubts.values():
        for near, ours in ((False, set(layers) - known), (True, slopes.bordered)):
            left = {name: cause for name, cause in layers.items() if name in ours}
            if left:
                doubts.append(doubt(graph, left, near))
    found = [*_models(graph, node), *_weights(graph, node), *coherence.reasons, *doubts]
    found += [*_slopes(graph, node), *_rectified_pools(graph, node)]
    if coherence.matters and any(map(weights_of, _layers(graph, node))):
        found.append(
            "fixed layers correlate gradients: channel by channel their squares are added up as if "
            "uncorrelated"
        )
    return found


def _layers(graph: PlaneGraph, node: str) -> list[Layer]:
    return [graph.network.nodes[name].layer for name in graph.ancestors(node)]


def _weights(graph: PlaneGraph, node: str) -> list[str]:
    """What is left out where weights are given and not random."""
    found, layers = [], _layers(graph, node)
    if any(map(weights_of, layers)):
        found.append(
            "the weights are fixed: the image is the mean over independent random signs of all of "
            "them, so what paths through different weights have in common is left out"
        )
    if any(getattr(layer, "init", None) == TRAINED for layer in layers):
        found.append(
            "trained weights are fixed: independent ones of mean 0 stand in for them, with the "
            "mean squares of a layer's taps over its channels"
        )
    return found


def _slopes(graph: PlaneGraph, node: str) -> list[str]:
    """Activations whose slopes count as independent of those before them and are not."""
    wanted, nodes = graph.ancestors(node), graph.network.nodes
    found = [n for n in alike(nodes) if n in wanted and n not in graph.identities]
    if not found:
        return []
    names = found[0] if len(found) == 1 else f"{found[0]} and {len(found) - 1} more"
    return [
        f"{names}: a path without weights leads here from another activation, beside paths with "
        f"weights; its slopes are alike, and count as independent (gains are multiplied as stated; "
        f"of `Network.initialised` they follow from the weights, and the slopes are followed)"
    ]


def _rectified_pools(graph: PlaneGraph, node: str) -> list[str]:
    """Max-pooling of what ReLU left, in windows that borders cut.

    A window of n independent pixels passes nothing where none is positive, in 1 of 2^n cases: the
    largest is then one of zeros, and ReLU's slope there is 0. Of whole windows that is one factor.
    Where it is known (`PlaneGraph.largest`) windows cut along one axis have theirs, and only those
    that are cut along several remain.
    """
    wanted, found = graph.ancestors(node), []
    for op in graph.operations:
        layer, inputs = graph.network.nodes[op.node].layer, graph.network.nodes[op.node].inputs
        if not isinstance(layer, MaxPool) or op.node not in wanted:
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
            found.append(
                f"{op.node}: windows at the {place} hold as few as {cut} pixels, and where ReLU "
                f"left none of them nothing passes: they count for up to {counted / true - 1:.1%} "
                f"too much"
            )
    return found


def _models(graph: PlaneGraph, node: str) -> list[str]:
    """Operators over the whole map whose weights depend on the data."""
    wanted = graph.ancestors(node)
    found = dict.fromkeys(op.node for op in graph.operations if op.is_global and op.node in wanted)
    return [
        f"{name}: its weights over the whole map depend on the data; "
        f"equal independent ones stand in for them"
        for name in found
        if isinstance(graph.network.nodes[name].layer, Attention | SqueezeExcite | Norm | Multiply)
    ]
