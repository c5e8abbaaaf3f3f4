"""Places for the nodes of a directed acyclic graph, layer by layer (Sugiyama, Tagawa, Toda 1981).

Each node lies one layer below the lowest node that it reads; edges that pass layers are bent at a
place of their own in each. A few sweeps order each layer by the mean place of the neighbours,
which takes most crossings away, and then move nodes towards their neighbours.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

Node = Hashable
_SWEEPS = 12
# How much more a node follows another node than a bend, and a bend another bend: chains and long
# edges then run straight, and what joins the two is slanted.
_ALIKE = 8.0


class Layout(NamedTuple):
    """Places of nodes and bends: across in units of one node's width, and the layer's number.

    Attributes:
        across: node → its place; the least is 0.
        layer: node → its layer, from 0 on.
        bends: edge (reader's source, reader) → what it passes: (place, layer) in each layer.
    """

    across: dict[Node, float]
    layer: dict[Node, int]
    bends: dict[tuple[Node, Node], list[tuple[float, int]]]

    @property
    def width(self) -> float:
        """From the first to the last node or bend, in nodes' widths."""
        places = [*self.across.values(), *(x for bends in self.bends.values() for x, _ in bends)]
        return max(places) + 1

    @property
    def height(self) -> int:
        """Number of layers."""
        return max(self.layer.values()) + 1


def layered(sources: Mapping[Node, Sequence[Node]], bend: float = 0.3) -> Layout:
    """A layout of the graph whose nodes, in topological order, read `sources`.

    Args:
        sources: node → the nodes that it reads.
        bend: width that an edge takes where it passes a layer, in nodes' widths.
    """
    layer: dict[Node, int] = {}
    for node, read in sources.items():
        layer[node] = max((layer[source] + 1 for source in read), default=0)
    rows: list[list[Node]] = [[] for _ in range(max(layer.values()) + 1)]
    below: dict[Node, list[Node]] = {node: [] for node in sources}
    above: dict[Node, list[Node]] = {node: [] for node in sources}
    wide = dict.fromkeys(sources, 1.0)
    paths: dict[tuple[Node, Node], list[Node]] = {}
    for node in sources:
        rows[layer[node]].append(node)
    for node, read in sources.items():
        for source in dict.fromkeys(read):
            path: list[Node] = [(source, node, at) for at in range(layer[source] + 1, layer[node])]
            paths[source, node] = path
            for part in path:
                wide[part] = bend
                below[part], above[part] = [], []
            for at, part in enumerate(path, layer[source] + 1):
                rows[at].append(part)
            chain = [source, *path, node]
            for upper, lower in pairwise(chain):
                below[upper].append(lower)
                above[lower].append(upper)
    place = {node: float(i) for row in rows for i, node in enumerate(row)}
    for sweep in range(_SWEEPS):
        near = above if sweep % 2 == 0 else below
        for row in rows if sweep % 2 == 0 else rows[::-1]:
            row.sort(key=lambda node: _mean([place[n] for n in near[node]], place[node]))
            _spread(row, place, near, wide)
    _straighten(rows, place, above, below, wide)
    least = min(place[node] for node in place)
    across = {node: place[node] - least for node in sources}
    bends = {
        edge: [(place[part] - least, layer[edge[0]] + i) for i, part in enumerate(path, 1)]
        for edge, path in paths.items()
    }
    return Layout(across, layer, bends)


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise


def _spread(
    row: Sequence[Node],
    place: dict[Node, float],
    near: Mapping[Node, Sequence[Node]],
    wide: Mapping[Node, float],
) -> None:
    """Moves the nodes of a row, in their order, as near to their neighbours as they fit.

    Least squares under the order (isotonic regression by pooling adjacent violators).
    """
    offset, offsets = 0.0, []
    for i, node in enumerate(row):
        offset += (wide[row[i - 1]] + wide[node]) / 2 if i else 0.0
        offsets.append(offset)
    pools: list[list[float]] = []  # mean, weight, nodes
    for node, own in zip(row, offsets, strict=True):
        pulls = [_ALIKE if wide[n] == wide[node] else 1.0 for n in near[node]]
        weight = sum(pulls)
        wanted = place[node]
        if pulls:
            wanted = sum(w * place[n] for w, n in zip(pulls, near[node], strict=True)) / weight
        pools.append([wanted - own, weight or 1.0, 1.0])
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            mean, weight, count = pools.pop()
            other = pools[-1]
            total = other[1] + weight
            other[0] = (other[0] * other[1] + mean * weight) / total
            other[1], other[2] = total, other[2] + count
    moved = [mean for mean, _, count in pools for _ in range(int(count))]
    for node, own, mean in zip(row, offsets, moved, strict=True):
        place[node] = mean + own


def _straighten(
    rows: Sequence[Sequence[Node]],
    place: dict[Node, float],
    above: Mapping[Node, Sequence[Node]],
    below: Mapping[Node, Sequence[Node]],
    wide: Mapping[Node, float],
) -> None:
    """Moves rows, in the order that they have, between what is above and what is below them."""
    both = {node: [*above[node], *below[node]] for node in place}
    for sweep in range(2 * _SWEEPS):
        for row in rows if sweep % 2 else rows[::-1]:
            _spread(row, place, both, wide)
