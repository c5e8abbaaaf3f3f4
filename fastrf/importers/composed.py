"""Activations that a model spells out as products of functions of one map (x·σ(x), GELU, Mish)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

from fastrf.layers import Activation, Add, Identity, Layer, Multiply, Scale
from fastrf.network import Node

_POINTWISE = (Activation, Add, Identity, Multiply, Scale)

_MOST = 64
"""Nodes behind a product that are looked at; the longest spelling known has a dozen."""

_SPELLINGS: Mapping[frozenset[str], tuple[str, float]] = {
    frozenset(("sigmoid",)): ("silu", 1),
    frozenset(("hardsigmoid",)): ("hardswish", 1),
    frozenset(("softplus", "tanh")): ("mish", 1),
    frozenset(("clip", "number")): ("hardswish", 1 / 6),
    frozenset(("clamp", "number")): ("hardswish", 1 / 6),
    frozenset(("relu6", "number")): ("hardswish", 1 / 6),
    frozenset(("erf", "number")): ("gelu", 1 / 2),
    frozenset(("tanh", "power", "number")): ("gelu_tanh", 1 / 2),
}
"""What multiplies a map, and the function that this makes of it, with the factor that belongs to
it; a number is anywhere in a sum or a product."""

_NUMBERS = ("add", "sub", "rsub")
"""Sums with a constant."""


@dataclass(frozen=True, slots=True)
class Composed:
    """A function of one map.

    Attributes:
        source: the node of that map.
        function: what it is called, `lacking` a factor where that is still missing.
    """

    source: str
    function: str


def composed(nodes: Mapping[str, Node], factors: Sequence[str]) -> Composed | None:
    """What a product of nodes is, where they make a known activation of one node."""
    found = _common(nodes, factors)
    if found is None:
        return None
    source, between = found
    layers = [nodes[name].layer for name in between]
    words = (_word(layer) for layer in layers if not isinstance(layer, Identity))
    spelling = _SPELLINGS.get(frozenset(words))
    if spelling is None:
        return None
    name, factor = spelling
    inside = any(isinstance(x, Scale) and _near(x.factor, factor) for x in layers)
    return Composed(source, name if factor == 1 or inside else lacking(name))


def completed(node: Node, factor: float) -> str | None:
    """The activation that a node becomes by a factor that it lacks; None where it is none."""
    given = node.layer.function if isinstance(node.layer, Activation) else None
    spellings = _SPELLINGS.values()
    return next((n for n, own in spellings if given == lacking(n) and _near(factor, own)), None)


def reached(nodes: Mapping[str, Node], ends: Iterable[str]) -> list[Node]:
    """The nodes that `ends` depend on, in their order: no part of a spelling, no unread input."""
    alive, waiting = set(), list(ends)
    while waiting:
        name = waiting.pop()
        if name not in alive:
            alive.add(name)
            waiting.extend(nodes[name].inputs)
    return [n for n in nodes.values() if n.name in alive]


def lacking(name: str) -> str:
    """What an activation is called before the constant factor that its spelling ends with."""
    return f"{name} × constant"


def _word(layer: Layer) -> str:
    """A layer as the spellings have it."""
    if isinstance(layer, Scale) or layer.kind in _NUMBERS:
        return "number"
    return "power" if isinstance(layer, Multiply) or layer.kind == "pow" else layer.kind


def _near(factor: float, own: float) -> bool:
    return abs(factor - own) < 1e-3 * own


def _common(nodes: Mapping[str, Node], ends: Sequence[str]) -> tuple[str, list[str]] | None:
    """The last node that all of `ends` are pointwise functions of, and the nodes from it to them.

    The nearest first, nodes are replaced by what they read until one is left.
    """
    reads: dict[str, Sequence[str]] = {}
    waiting = deque(ends)
    while waiting and len(reads) < _MOST:
        name = waiting.popleft()
        if name not in reads:
            node = nodes[name]
            reads[name] = node.inputs if isinstance(node.layer, _POINTWISE) else ()
            waiting.extend(reads[name])
    left = set(ends)
    between: list[str] = []
    for name in reversed([*TopologicalSorter(reads).static_order()]):
        if left == {name}:
            return name, between
        if name in left:
            if not reads.get(name):
                return None
            left.remove(name)
            left.update(reads[name])
            between.append(name)
    return None
