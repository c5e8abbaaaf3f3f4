"""Chains of separable layers, axis by axis.

What a unit of a chain reads of one axis does not depend on the others: each layer is the outer
product of one map per axis, and so is the image. Covariances are products as well, as long as all
that they pass weighs them by a product of one number per axis and lag: weights do, fixed or random,
activations and routes of max-pooling do not (Cov(g[i], g[i + τ]) counts less than variances by the
same share at every τ ≠ 0).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from operator import mul
from typing import Any

import numpy as np

from fastrf.engine import covariance
from fastrf.engine.coefficients import terms
from fastrf.engine.coherence import coherence_of, is_endless, kinds_of
from fastrf.engine.correlated import propagate_correlated
from fastrf.engine.direct import Propagated
from fastrf.engine.stack import in_order
from fastrf.engine.terms import Factor, FactoredImage, trimmed
from fastrf.kernels import load
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import SpatialMap
from fastrf.meanfield.slopes import slopes_of


def obstacle(graph: PlaneGraph, node: str, input_node: str) -> str | None:
    """Why covariances on the way to `node` are no product of one factor per axis, or cancel; None
    where they are, and do not."""
    if graph.ndim == 1:
        return "it has one axis"
    if not covariance.is_relative(graph, node, input_node):
        return "it has coefficients that cancel each other"
    return chain_obstacle(graph, node, input_node) or graph.once(
        ("covariances of axes", node, input_node), lambda: _joined(graph, node, input_node)
    )


def chain_obstacle(graph: PlaneGraph, node: str, input_node: str) -> str | None:
    """Why the field of `node` is no outer product of profiles; None where it is one."""
    return graph.once(("chain", node, input_node), lambda: _branch(graph, node, input_node))


def _branch(graph: PlaneGraph, node: str, input_node: str) -> str | None:
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


def _joined(graph: PlaneGraph, node: str, input_node: str) -> str | None:
    """Which layer of a chain treats covariances of several axes jointly."""
    coherence = coherence_of(graph, node, input_node)
    slopes = slopes_of(graph, node, input_node)
    for op in graph.between(node, input_node):
        if is_endless(op):
            return f"{op.node} reads the whole of an unbounded grid"
        if not coherence.concerns(op):
            continue
        lags = [coherence.lags[p] for p, _ in op.targets if p in coherence.lags]
        shared = [slopes.passed(graph, op, tuple(map(in_order, own))) for own in lags]
        if "routing" in kinds_of(graph, op) or any(share is not None for share in shared):
            return f"{op.node} passes less of covariances than of variances"
        if any(len(terms((m,), graph.ndim)) > 1 for m in op.maps if m.kind == "fixed"):
            return f"the coefficients of {op.node} are no product of one vector per axis"
    return None


def propagate_projected(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    **options: Any,
) -> Propagated:
    """As `correlated.propagate_correlated`, for networks without an `obstacle`."""
    return axis_by_axis(propagate_correlated, graph, node, unit, input_node, **options)


def axis_by_axis(
    run: Callable[..., Propagated],
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    *,
    kernels: Any,
    dtype: Any = np.float64,
    tail: float | None = None,
    progress: Callable[[float], None] | None = None,
    xp: Any = np,
    **options: Any,
) -> Propagated:
    """The outer product of what an engine's `run` computes of each axis, on the host.

    `kernels` and `xp` form the pixels of the image, when they are asked for.
    """
    options |= {"kernels": load("cpu"), "dtype": dtype, "tail": of_each(graph, tail)}
    lines = []
    for axis, (line, u) in enumerate(zip(projections(graph), unit, strict=True)):
        if progress is not None:
            options["progress"] = partial(_part, progress, axis, graph.ndim)
        lines.append(run(line, node, (u,), input_node, **options))
    return _multiplied(lines, dtype, kernels, xp)


def _part(progress: Callable[[float], None], axis: int, ndim: int, share: float) -> None:
    progress((axis + share) / ndim)


def of_each(graph: PlaneGraph, tail: float | None) -> float | None:
    """The share that may be dropped along each axis, where `tail` may be in all."""
    return None if tail is None else tail / graph.ndim


def _multiplied(lines: Sequence[Propagated], dtype: Any, kernels: Any, xp: Any) -> Propagated:
    """The outer product of the fields of each axis."""
    values = [np.asarray(p.pixels(), np.float64) for p in lines]
    factors = tuple(Factor(line[None], line.size, False) for line in values)
    origin = tuple(p.origin[0] for p in lines)
    image = trimmed(FactoredImage(np.ones(1), factors, origin, np.dtype(dtype), kernels, xp))
    # Of what one axis is given it loses `lost` and drops `dropped`; what is kept multiplies.
    held = math.prod(1 - p.lost for p in lines)
    kept = math.prod(1 - p.lost - p.dropped for p in lines)
    mass = reduce(mul, (p.mass for p in lines))
    return Propagated(image, image.origin, mass, 1 - held, held - kept)


def projections(graph: PlaneGraph) -> list[PlaneGraph]:
    """The network's separable layers along each axis; gains and shares go with the first."""
    return graph.once("projections", lambda: [_projected(graph, a) for a in range(graph.ndim)])


def _projected(graph: PlaneGraph, axis: int) -> PlaneGraph:
    separable = [op for op in graph.operations if all(m.separable for m in op.maps)]
    # Equal layers of a network share their maps, which a line along one axis keeps so.
    distinct = {id(m): m for op in separable for m in op.maps}
    moves = {key: _projected_map(m, axis) for key, m in distinct.items()}
    operations = [_projected_operation(op, axis, moves) for op in separable]
    planes = [p if axis == 0 else replace(p, share=1.0) for p in graph.planes]
    size = None if graph.input_size is None else (graph.input_size[axis],)
    return replace(
        graph, ndim=1, input_size=size, planes=planes, operations=operations, derived={}, recent={}
    )


def _projected_operation(op: Operation, axis: int, moves: Mapping[int, SpatialMap]) -> Operation:
    maps = tuple(moves[id(m)] for m in op.maps)
    if axis == 0:
        return Operation(op.node, maps, op.sources, op.targets, op.gain)
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
