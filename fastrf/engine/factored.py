"""The factored engine: chains of separable layers as one profile per axis.

Where no map is read twice and every layer's taps are a product of one vector per axis, the image
is the outer product of one-dimensional profiles, in any number of dimensions. Each profile is what
the direct engine computes on the network's projection onto that axis: nonnegative sums, right
pixel by pixel.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from functools import reduce
from operator import mul
from typing import Any

import numpy as np

from fastrf.engine.direct import Propagated, propagate, trimmed
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import SpatialMap


def obstacle(graph: PlaneGraph, node: str, input_node: str) -> str | None:
    """Why the field of `node` is no outer product of profiles; None where it is one."""
    operations = graph.between(node, input_node)
    reads = Counter(q for op in operations for q, _ in op.sources)
    writes = Counter(p for op in operations for p, _ in op.targets)
    if len(graph.planes_of[node]) > 1:
        return f"the channels of {node} are read in different ways"
    for op in operations:
        if any(not m.separable for m in op.maps):
            return f"the taps of {op.node} are no product of one vector per axis"
        if len(op.sources) > 1 or len(op.targets) > 1 or writes[op.targets[0][0]] > 1:
            return f"{op.node} merges several maps"
        if reads[op.sources[0][0]] > 1:
            return f"{graph.planes[op.sources[0][0]].node} is read by several layers"
    return None


def propagate_factored(
    graph: PlaneGraph, node: str, unit: tuple[int, ...], input_node: str, **options: Any
) -> Propagated:
    """As `direct.propagate`, for networks without an `obstacle`."""
    profiles = [
        propagate(projected(graph, axis), node, (unit[axis],), input_node, **options)
        for axis in range(graph.ndim)
    ]
    if graph.ndim == 1:
        return profiles[0]
    image = profiles[0].image
    for p in profiles[1:]:
        image = np.multiply.outer(image, p.image)
    image[image < np.finfo(image.dtype).tiny] = 0
    # Where one profile's tail is so thin that no pixel of its row is left.
    image, origin = trimmed(image, tuple(p.origin[0] for p in profiles))
    mass = reduce(mul, (p.mass for p in profiles))
    # Of what one axis is given it loses `lost` and drops `dropped`; what is kept multiplies.
    held = math.prod(1 - p.lost for p in profiles)
    kept = math.prod(1 - p.lost - p.dropped for p in profiles)
    return Propagated(np.ascontiguousarray(image), origin, mass, 1 - held, held - kept)


def projected(graph: PlaneGraph, axis: int) -> PlaneGraph:
    """The network along one axis; gains and shares go with the first axis."""
    operations = [_projected_operation(op, axis) for op in graph.operations]
    planes = [p if axis == 0 else replace(p, share=1.0) for p in graph.planes]
    size = None if graph.input_size is None else (graph.input_size[axis],)
    return replace(graph, ndim=1, input_size=size, planes=planes, operations=operations)


def _projected_operation(op: Operation, axis: int) -> Operation:
    maps = tuple(_projected_map(m, axis) for m in op.maps)
    if axis == 0:
        return replace(op, maps=maps)
    sources = tuple((q, 1.0) for q, _ in op.sources)
    targets = tuple((p, 1.0) for p, _ in op.targets)
    return Operation(op.node, maps, sources, targets)


def _projected_map(move: SpatialMap, axis: int) -> SpatialMap:
    taps = move.axis_taps(axis)
    return SpatialMap(
        (move.axes[axis],),
        move.kind,
        move.gain if axis == 0 else 1.0,
        None if taps is None else (taps,),
        None if move.size_in is None else (move.size_in[axis],),
        None if move.size_out is None else (move.size_out[axis],),
    )
