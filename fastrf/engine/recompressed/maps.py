"""Transposed maps as one sparse matrix an axis, and by how much they can amplify an error.

A window, a spread, a table and a whole map are all the same to a factor: a matrix from the pixels
of y to those of x. One kind of call serves them all, with factors of either sign, which the
engines' kernels for nonnegative images do not. On a GPU that is cuSPARSE's; the matrices are made
on the host, and brought there for a field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrf.engine.recompressed.lowrank import Terms
from fastrf.engine.recompressed.volumes import decomposed
from fastrf.engine.scaled import ONE, ZERO, Scaled
from fastrf.engine.windows import Span, reached
from fastrf.lowering import PlaneGraph
from fastrf.maps import AxisMap, Everything, SpatialMap, Spread, Table, Window

Floats = NDArray[np.float64]
Spans = tuple[Span, ...]


@dataclass(frozen=True, eq=False)
class AxisOperator:
    """The transposed map along one axis, from a window of y to a window of x.

    Attributes:
        matrix: sparse, shape (pixels of x, pixels of y), nonnegative but for parts of taps that
            are no product.
        kept: per pixel of y, the sum of what x receives.
        lost: per pixel of y, the sum of what falls into padding.
        steps: so many times it can be applied to numbers near 1 before they underflow.

    The matrix and the sums are arrays of one namespace: of SciPy and NumPy, or of CuPy's two.
    """

    matrix: Any
    kept: Floats
    lost: Floats
    steps: int

    def __call__(self, factor: Floats) -> Floats:
        found: Floats = self.matrix @ factor
        return found

    @cached_property
    def absolute(self) -> Any:
        """The matrix of absolute weights."""
        found = abs(self.matrix)
        found.has_canonical_format = True  # as of `brought`
        return found

    def on(self, xp: Any) -> AxisOperator:
        """The host's operator for the arrays of a namespace."""
        matrix = brought(self.matrix, xp)
        return replace(self, matrix=matrix, kept=xp.asarray(self.kept), lost=xp.asarray(self.lost))


def brought(matrix: Any, xp: Any) -> Any:
    """A sparse matrix of SciPy's, in canonical format, for the arrays of a namespace."""
    if xp is np:
        return matrix
    from cupyx.scipy.sparse import csr_matrix

    # Most of cuSPARSE takes 32 bits alone, and `MOST_CONNECTIONS` does not fill them.
    parts = (matrix.indices, matrix.indptr)
    indices, starts = (xp.asarray(part.astype(np.int32, copy=False)) for part in parts)
    found = csr_matrix((xp.asarray(matrix.data), indices, starts), shape=matrix.shape)
    # Or CuPy looks for itself, and waits for what it finds.
    found.has_canonical_format = True
    return found


def axis_operator(
    axis: AxisMap, taps: Floats | None, y: Span, x: Span, size: int | None
) -> AxisOperator:
    """Builds the matrix.

    Args:
        axis: the map from x to y.
        taps: its taps, of sum 1; None where all are equal.
        y, x: the windows.
        size: pixels of x, or None on the unbounded grid, where nothing is lost.
    """
    from scipy.sparse import csr_array

    rows, columns, weights = _entries(axis, taps, y, x)
    inside = (rows >= x[0]) & (rows < x[0] + x[1])
    column = columns[inside] - y[0]
    entries = (weights[inside], (rows[inside] - x[0], column))
    matrix = csr_array(entries, shape=(x[1], y[1]))
    matrix.sum_duplicates()
    kept = _added(column, weights[inside], y[1])
    outside = ~inside if size is not None else np.zeros(len(rows), bool)
    lost = _added(columns[outside] - y[0], weights[outside], y[1])
    least = np.abs(matrix.data[matrix.data != 0]).min(initial=1.0)
    steps = int(min(64.0, max(1.0, 600 / max(1.0, -math.log2(least)))))
    return AxisOperator(matrix, kept, lost, steps)


def _added(at: NDArray[np.int64], weights: Floats, count: int) -> Floats:
    """Sums of the weights at each of at least `count` places."""
    return np.bincount(at, weights, count).astype(np.float64)


def _entries(
    axis: AxisMap, taps: Floats | None, y: Span, x: Span
) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """x, y and weight of every connection, those into padding too."""
    o = np.arange(y[0], y[0] + y[1])
    if isinstance(axis, Everything):
        i = np.arange(x[0], x[0] + x[1])
        shape = (len(i), len(o))
        rows, columns = np.broadcast_to(i[:, None], shape), np.broadcast_to(o, shape)
        return rows.ravel(), columns.ravel(), np.full(rows.size, 1 / x[1])
    if isinstance(axis, Table):
        starts, weights = axis.rows(*y)
        rows = starts[:, None] + np.arange(weights.shape[1])
        used = weights > 0  # a tap of 0 is no connection, and may lie outside
        columns = np.broadcast_to(o[:, None], rows.shape)
        return rows[used], columns[used], weights[used]
    tap = np.full(axis.kernel, 1 / axis.kernel) if taps is None else np.asarray(taps, np.float64)
    m = np.arange(axis.kernel)
    shape = (len(o), len(m))
    columns = np.broadcast_to(o[:, None], shape).ravel()
    weights = np.broadcast_to(tap, shape).ravel()
    if isinstance(axis, Window):
        rows = o[:, None] * axis.stride + m * axis.dilation - axis.lo
        return rows.ravel(), columns, weights
    rows, rest = np.divmod(o[:, None] + axis.lo - m * axis.dilation, axis.stride)
    met = rest.ravel() == 0
    return rows.ravel()[met], columns[met], weights[met]


class Products(NamedTuple):
    """Taps as a sum of products of one vector an axis.

    Attributes:
        vectors: per axis one or more; None for equal taps.
        weights: as of `Terms`: one for each product of vectors of one number, or a core.
    """

    vectors: tuple[tuple[Floats | None, ...], ...]
    weights: Floats

    def terms(self) -> Terms:
        """The taps, where all vectors are spelled out."""
        factors = [np.stack([np.asarray(v) for v in axis], axis=1) for axis in self.vectors]
        return Terms(tuple(factors), self.weights)


def products(move: SpatialMap) -> Products:
    """The taps as a sum of products of one vector an axis.

    Taps of two dimensions that are no product are the sum of as many as their matrix has singular
    values, those of three a core and as many vectors an axis; what is below its rounding is left
    out.
    """
    if move.taps is None:
        return Products(((None,),) * len(move.axes), np.ones(1))
    if not isinstance(move.taps, np.ndarray):
        return Products(tuple((own,) for own in move.taps), np.ones(1))
    noise = 4 * np.finfo(np.float64).eps
    if move.taps.ndim == 2:
        u, s, vt = np.linalg.svd(move.taps)
        count = int((s > noise * s[0]).sum())
        return Products((tuple(u.T[:count]), tuple(vt[:count])), s[:count])
    turns, core = decomposed(move.taps, 0.0, noise)
    return Products(tuple(tuple(u.T) for u in turns), core)


def content(move: SpatialMap) -> Hashable:
    """Equal for maps that do the same, up to their gain."""
    if move.taps is None:
        taps: Hashable = None
    elif isinstance(move.taps, np.ndarray):
        taps = move.taps.tobytes()
    else:
        taps = tuple(None if t is None else t.tobytes() for t in move.taps)
    return move.axes, taps


# --- windows --------------------------------------------------------------------------------


def field_window(graph: PlaneGraph, node: str, unit: tuple[int, ...], input_node: str) -> Spans:
    """What of the input a unit can reach: beside it there is nothing but what factors round."""
    key = ("field window", node, unit, input_node)
    return graph.lately(key, lambda: _field_window(graph, node, unit, input_node))


def _field_window(graph: PlaneGraph, node: str, unit: tuple[int, ...], input_node: str) -> Spans:
    spans: dict[int, Spans] = {p: tuple((u, 1) for u in unit) for p in graph.planes_of[node]}
    for op in reversed(graph.between(node, input_node)):
        met = [spans[p] for p, _ in op.targets if p in spans]
        if not met:
            continue
        own = reduce(_united, met)
        for move in reversed(op.maps):
            sizes = move.size_in or (None,) * len(own)
            own = tuple(reached(a, s, n)[1] for a, s, n in zip(move.axes, own, sizes, strict=True))
        if all(count > 0 for _, count in own):
            for q, _ in op.sources:
                spans[q] = _united(spans[q], own) if q in spans else own
    found = [spans[p] for p in graph.planes_of[input_node] if p in spans]
    return reduce(_united, found) if found else tuple((u, 0) for u in unit)


def plane_windows(
    graph: PlaneGraph, node: str, unit: tuple[int, ...], input_node: str
) -> dict[int, Spans]:
    """The window on which each plane's image is held.

    The whole map; on the unbounded grid what the unit's gradient reaches of this plane and of all
    that unstrided layers join it to: equal layers then are one matrix. All planes of a map have
    the same.
    """
    if graph.input_size is not None:
        sizes = (graph.sizes[p.node] or () for p in graph.planes)
        return {i: tuple((0, n) for n in size) for i, size in enumerate(sizes)}
    found: dict[int, Spans] = {p: tuple((u, 1) for u in unit) for p in graph.planes_of[node]}
    group: dict[int, int] = {p: p for p in range(len(graph.planes))}

    def leader(p: int) -> int:
        while group[p] != p:
            group[p] = group[group[p]]
            p = group[p]
        return p

    for op in reversed(graph.between(node, input_node)):
        met = [found[p] for p, _ in op.targets if p in found]
        if not met:
            continue
        spans = reduce(_united, met)
        for move in reversed(op.maps):
            if move.is_global:
                break
            spans = reach(move, spans)
        for q, _ in op.sources:
            found[q] = _united(found[q], spans) if q in found else spans
        if all(isinstance(a, Window) and a.stride == 1 for m in op.maps for a in m.axes):
            ends = [p for p, _ in (*op.sources, *op.targets) if p in found]
            for p in ends[1:]:
                group[leader(p)] = leader(ends[0])
    # Planes of one map are added up, and those that nothing reaches may come first.
    names = dict.fromkeys(graph.planes[p].node for p in found)
    for name in names:
        for p in graph.planes_of[name][1:]:
            group[leader(p)] = leader(graph.planes_of[name][0])
    together: dict[int, Spans] = {}
    for p, spans in found.items():
        root = leader(p)
        together[root] = _united(together[root], spans) if root in together else spans
    return {p: together[leader(p)] for name in names for p in graph.planes_of[name]}


def reach(move: SpatialMap, y: Spans) -> Spans:
    """The window of x that receives something from a window of y."""
    sizes = move.size_in or (None,) * len(y)
    found = (reached(a, s, n)[0] for a, s, n in zip(move.axes, y, sizes, strict=True))
    return tuple((start, max(count, 1)) for start, count in found)


def _united(a: Spans, b: Spans) -> Spans:
    ends = [(min(x[0], y[0]), max(x[0] + x[1], y[0] + y[1])) for x, y in zip(a, b, strict=True)]
    return tuple((start, stop - start) for start, stop in ends)


# --- how errors grow ------------------------------------------------------------------------


def largest_gain(move: SpatialMap) -> float:
    """Bound of the largest pixel behind a transposed map, for a largest pixel of 1 before it.

    The map is a nonnegative matrix; the bound is its largest row sum, which is that of the taps
    that one pixel of x can be read with: those of one residue of m·dilation by the stride.
    """
    gain = move.gain
    for i, axis in enumerate(move.axes):
        if isinstance(axis, Everything):
            gain *= _quotient(move.size_out, move.size_in, i)
        elif isinstance(axis, Table):
            gain *= float(_table_sums(axis).max())
    return gain * _phase_maximum(move, Window)


def total_gain(move: SpatialMap) -> float:
    """As `largest_gain`, of the sum of all absolute pixels: the largest column sum."""
    gain = move.gain
    for axis in move.axes:
        if isinstance(axis, Table):
            gain *= float(axis.taps.sum(axis=1).max())
    return gain * _phase_maximum(move, Spread)


def plane_gains(
    graph: PlaneGraph, input_node: str, of_map: Callable[[SpatialMap], float]
) -> list[Scaled]:
    """Per plane, what `of_map` bounds, for all paths from it to the input together."""

    def walk() -> list[Scaled]:
        known: dict[int, float] = {}
        gains = [ZERO] * len(graph.planes)
        for p in graph.planes_of[input_node]:
            gains[p] = ONE
        for op in graph.operations:
            gain = sum((gains[q] * share for q, share in op.sources), ZERO)
            if gain.mantissa:
                for m in op.maps:
                    if id(m) not in known:
                        known[id(m)] = of_map(m)
                    gain = gain * known[id(m)]
                gain = gain * op.gain
                for p, share in op.targets:
                    gains[p] = gains[p] + gain * share
        return gains

    return graph.once((of_map.__name__, input_node), walk)


def _quotient(out: tuple[int, ...] | None, size: tuple[int, ...] | None, axis: int) -> float:
    return 1.0 if out is None or size is None else out[axis] / size[axis]


def _table_sums(axis: Table) -> Floats:
    """What each pixel of x receives in all, over one period."""
    periods = 1
    if axis.advance:
        # As many turns as reach over the taps of one, and one whole turn in the middle of them.
        reach = int(axis.starts.max() - axis.starts.min()) + axis.taps.shape[1]
        periods = 2 * (reach // axis.advance + 2)
    starts, taps = axis.rows(0, periods * axis.period)
    targets = starts[:, None] + np.arange(taps.shape[1])
    used = taps > 0
    return _added(targets[used] - targets[used].min(initial=0), taps[used], 1)


def _phase_maximum(move: SpatialMap, kind: type[Window] | type[Spread]) -> float:
    """Largest sum of the taps of one phase of a stride, over the axes that are of this kind."""
    dense = isinstance(move.taps, np.ndarray)
    whole: list[Floats] = [np.asarray(move.taps)] if dense else []
    for i, axis in enumerate(move.axes):
        if not isinstance(axis, Window | Spread):
            continue
        if dense:
            if isinstance(axis, kind):
                whole[0] = _phases(whole[0], i, axis.stride, axis.dilation)
            else:
                whole[0] = whole[0].sum(axis=i, keepdims=True)
        elif isinstance(axis, kind):
            own = move.axis_taps(i)
            taps = np.full(axis.kernel, 1 / axis.kernel) if own is None else np.asarray(own)
            whole.append(_phases(taps, 0, axis.stride, axis.dilation))
    return math.prod(float(w.max()) for w in whole)


def _phases(taps: Floats, axis: int, stride: int, dilation: int) -> Floats:
    """Sums over the taps of each residue of m·dilation by the stride, along one axis."""
    residues = np.arange(taps.shape[axis]) * dilation % stride
    sums = [taps.compress(residues == r, axis).sum(axis=axis) for r in np.unique(residues)]
    return np.stack(sums, axis=axis)
