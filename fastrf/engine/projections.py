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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from operator import mul
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf.engine import covariance
from fastrf.engine.coefficients import terms
from fastrf.engine.coherence import coherence_of, is_endless, kinds_of
from fastrf.engine.correlated import propagate_correlated
from fastrf.engine.direct import Propagated
from fastrf.engine.scaled import Scaled
from fastrf.engine.stack import in_order
from fastrf.engine.terms import Factor, FactoredImage, trimmed
from fastrf.kernels import load
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import AxisMap, SpatialMap, Table
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
    operations = graph.read(node, input_node)
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
    """The outer product of what an engine's `run` computes of each axis, on the host: once for axes
    that are alike.

    `kernels` and `xp` form the pixels of the image, when they are asked for.
    """
    options |= {"kernels": load("cpu"), "dtype": dtype, "tail": of_each(graph, tail)}
    along = [(id(line), u) for line, u in zip(projections(graph), unit, strict=True)]
    distinct = dict(zip(along, projections(graph), strict=True))
    found: dict[tuple[int, int], Propagated] = {}
    for number, (key, line) in enumerate(distinct.items()):
        if progress is not None:
            options["progress"] = partial(_part, progress, number, len(distinct))
        found[key] = run(line, node, (key[1],), input_node, **options)
    gain = _gain(graph, node, input_node)
    return _multiplied([found[key] for key in along], gain, dtype, kernels, xp)


def _part(progress: Callable[[float], None], number: int, count: int, share: float) -> None:
    progress((number + share) / count)


def of_each(graph: PlaneGraph, tail: float | None) -> float | None:
    """The share that may be dropped along each axis, where `tail` may be in all."""
    return None if tail is None else tail / graph.ndim


def _multiplied(
    lines: Sequence[Propagated], gain: Scaled, dtype: Any, kernels: Any, xp: Any
) -> Propagated:
    """The outer product of the fields of each axis, with the gain of all layers."""
    values = [np.asarray(p.pixels(), np.float64) for p in lines]
    factors = tuple(Factor(line[None], line.size, False) for line in values)
    origin = tuple(p.origin[0] for p in lines)
    image = trimmed(FactoredImage(np.ones(1), factors, origin, np.dtype(dtype), kernels, xp))
    # Of what one axis is given it loses `lost` and drops `dropped`; what is kept multiplies.
    held = math.prod(1 - p.lost for p in lines)
    kept = math.prod(1 - p.lost - p.dropped for p in lines)
    mass = reduce(mul, (p.mass for p in lines), gain)
    return Propagated(image, image.origin, mass, 1 - held, held - kept)


def projections(graph: PlaneGraph) -> list[PlaneGraph]:
    """The network's separable layers along each axis, of gain 1; axes that are alike share one."""
    return graph.once("projections", lambda: _projections(graph))


def _projections(graph: PlaneGraph) -> list[PlaneGraph]:
    separable = [op for op in graph.operations if all(m.separable for m in op.maps)]
    # Equal layers of a network share their maps, which a line along one axis keeps so.
    distinct = {id(m): m for op in separable for m in op.maps}
    found: list[PlaneGraph] = []
    for axis in range(graph.ndim):
        like = next((a for a in range(axis) if _alike(graph, distinct.values(), a, axis)), None)
        if like is not None:
            found.append(found[like])
            continue
        moves = {key: _projected_map(m, axis) for key, m in distinct.items()}
        operations = [_projected_operation(op, moves) for op in separable]
        planes = [replace(p, share=1.0) for p in graph.planes]
        size = None if graph.input_size is None else (graph.input_size[axis],)
        line = replace(graph, ndim=1, input_size=size, planes=planes, operations=operations)
        found.append(replace(line, derived={}, recent={}))
    return found


def _alike(graph: PlaneGraph, moves: Collection[SpatialMap], a: int, b: int) -> bool:
    """Whether two axes are the same to all separable maps."""
    ends = [size for m in moves for size in (m.size_in, m.size_out)]
    return (
        all(size is None or size[a] == size[b] for size in (graph.input_size, *ends))
        and all(_same(m.axes[a], m.axes[b]) for m in moves)
        and all(_equal(m.axis_taps(a), m.axis_taps(b)) for m in moves)
    )


def _same(a: AxisMap, b: AxisMap) -> bool:
    if isinstance(a, Table) and isinstance(b, Table):
        both = ((a.starts, b.starts), (a.taps, b.taps), (a.coefficients, b.coefficients))
        return a.advance == b.advance and all(_equal(x, y) for x, y in both)
    return a == b


def _equal(a: NDArray[Any] | None, b: NDArray[Any] | None) -> bool:
    return a is b or (a is not None and b is not None and np.array_equal(a, b))


def _gain(graph: PlaneGraph, node: str, input_node: str) -> Scaled:
    """That of all layers of a chain: of its maps, pointwise, and of the channels that are meant."""
    key = ("gain of a chain", node, input_node)
    return graph.once(key, lambda: _product(graph, node, input_node))


def _product(graph: PlaneGraph, node: str, input_node: str) -> Scaled:
    (plane,) = graph.planes_of[node]
    gain = Scaled.of(graph.planes[plane].share)
    for op in graph.read(node, input_node):
        shares = (share for _, share in (*op.sources, *op.targets))
        for factor in (op.gain, *shares, *(m.gain for m in op.maps)):
            if factor != 1:  # most are
                gain = gain * factor
    return gain


def _projected_operation(op: Operation, moves: Mapping[int, SpatialMap]) -> Operation:
    maps = tuple(moves[id(m)] for m in op.maps)
    sources = tuple((q, 1.0) for q, _ in op.sources)
    targets = tuple((p, 1.0) for p, _ in op.targets)
    return Operation(op.node, maps, sources, targets)


def _projected_map(move: SpatialMap, axis: int) -> SpatialMap:
    taps = move.axis_taps(axis)
    return SpatialMap(
        (move.axes[axis],),
        move.kind,
        1.0,
        None if taps is None else (taps,),
        None if move.size_in is None else (move.size_in[axis],),
        None if move.size_out is None else (move.size_out[axis],),
    )
