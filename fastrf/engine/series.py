"""A network as a series of stages: pieces that every path runs through, one behind the other.

On the unbounded grid, layers of convolution type commute: the image of a series is the product of
its stages' transfer functions, so equal stages are a power, in whatever order they come. This is
what makes a thousand equal layers as cheap as a few.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import SpatialMap, Table


@dataclass(frozen=True, slots=True)
class Stage:
    """The operations between two planes that every path passes, in topological order.

    Attributes:
        operations: from the plane `source` to the plane `target`.
        source, target: numbers of the two planes.
        key: equal for stages of one series that compute the same on grids of the same stride.
    """

    operations: tuple[Operation, ...]
    source: int
    target: int
    key: int


def stages(graph: PlaneGraph, node: str, input_node: str) -> list[Stage] | None:
    """The stages from the input to `node`, as many as there are.

    None where the input or the node has more than one plane: their channels part ways.
    """
    if len(graph.planes_of[node]) > 1 or len(graph.planes_of[input_node]) > 1:
        return None
    operations = graph.between(node, input_node)
    pending = Counter(q for op in operations for q, _ in op.sources)
    alive = {graph.planes_of[input_node][0]}
    source = graph.planes_of[input_node][0]
    goal = graph.planes_of[node][0]
    writes = Counter(p for op in operations for p, _ in op.targets)
    found: list[Stage] = []
    piece: list[Operation] = []
    keys = _Keys()
    for op in operations:
        piece.append(op)
        for q, _ in op.sources:
            pending[q] -= 1
            if not pending[q]:
                alive.discard(q)
        for p, _ in op.targets:
            writes[p] -= 1
            if pending[p] or p == goal:
                alive.add(p)
        if len(alive) == 1 and not any(writes[p] for p in alive):
            (target,) = alive
            if target != source:
                found.append(Stage(tuple(piece), source, target, keys.of(piece, source)))
                source, piece = target, []
    return found


class _Keys:
    """Numbers for pieces of a series, equal for those that compute the same."""

    def __init__(self) -> None:
        self.pieces: dict[Hashable, int] = {}
        self.moves: dict[Hashable, int] = {}
        # Equal layers of a network share their maps: each object is looked into once.
        self.seen: dict[int, tuple[int, ...]] = {}

    def of(self, operations: list[Operation], source: int) -> int:
        # Planes are numbered in the order of their appearance.
        number = {source: 0}
        flat: list[Hashable] = []
        for op in operations:
            for shares in (op.sources, op.targets):
                flat.append(len(shares))
                for plane, share in shares:
                    flat += number.setdefault(plane, len(number)), share
            flat += self._maps(op.maps), op.gain
        return self.pieces.setdefault(tuple(flat), len(self.pieces))

    def _maps(self, moves: tuple[SpatialMap, ...]) -> tuple[int, ...]:
        found = self.seen.get(id(moves))
        if found is None:
            signatures = map(signature, moves)
            found = tuple(self.moves.setdefault(s, len(self.moves)) for s in signatures)
            self.seen[id(moves)] = found
        return found


def signature(move: SpatialMap) -> Hashable:
    """What a map does, as a value that compares and hashes."""
    axes = tuple(
        (a.starts.tobytes(), a.taps.tobytes(), a.advance) if isinstance(a, Table) else a
        for a in move.axes
    )
    return axes, move.gain, _bytes(move.taps), move.size_in, move.size_out


def _bytes(taps: Any) -> Hashable:
    if isinstance(taps, np.ndarray):
        return taps.shape, taps.tobytes()
    return None if taps is None else tuple(map(_bytes, taps))
