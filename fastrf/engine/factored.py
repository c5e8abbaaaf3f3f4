"""The factored engine: images as sums of separable terms.

Two kinds of networks with separable taps are served, both pixel by pixel in relative accuracy.

On the unbounded grid, whatever has a transfer function: that is a polynomial in the layers'
transfer functions, and layers that are alike are one variable of it. A chain is one monomial; n
residual blocks over one branch B are Σ_j e_j·B^j with the Poisson-binomial weights of the branches
taken, e_j ← (1 − q)·e_j + q·e_{j−1}. A monomial is an outer product of profiles (`profiles`), a
polynomial is a `terms.FactoredImage`.

On maps of known size, and through transposed convolutions and resizing, chains: the image is the
outer product of what the direct engine computes on the network's projection onto each axis.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import mul
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrf.engine import profiles, terms
from fastrf.engine.direct import Propagated, propagate
from fastrf.engine.scaled import ONE, ZERO, Scaled
from fastrf.engine.terms import FactoredImage
from fastrf.engine.threads import Threads
from fastrf.engine.transfer import Jump, squared_up, transfer_function
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import SpatialMap, Window

MOST_TERMS = 4096
"""Most terms of an image: the factors of a thousand pixels are then 33 MB an axis."""

MOST_PAIRS = 1 << 22
"""Most pairs of terms that one product of two polynomials may have before like terms are joined."""

SHORT_STEP = 64
"""Pixels by which a profile may grow on its way to the next term's, rather than being made anew."""

_LEAST_WEIGHT = 2.0 ** (profiles.TOP - 1100)
"""Terms below 2^−1100 of the image are left out: MOST_TERMS of them stay below 2^−1088."""


def obstacle(graph: PlaneGraph, node: str, input_node: str) -> str | None:
    """Why the field of `node` is no sum of separable terms; None where it is one."""
    chain = _chain_obstacle(graph, node, input_node)
    if chain is None or graph.input_size is not None:
        return chain
    found = _polynomial(graph, node, input_node)
    return found if isinstance(found, str) else None


def _polynomial(
    graph: PlaneGraph, node: str, input_node: str
) -> tuple[Polynomials, Polynomial] | str:
    """The image as a polynomial and the algebra that it belongs to, or why there is none."""
    return graph.once(("polynomial", node, input_node), lambda: _expanded(graph, node, input_node))


def _expanded(
    graph: PlaneGraph, node: str, input_node: str
) -> tuple[Polynomials, Polynomial] | str:
    function = transfer_function(graph, node, input_node)
    if function.obstacle is not None:
        return function.obstacle
    if not function.operations:
        return f"no layer lies between {input_node} and {node}"
    for op in function.operations:
        if any(not m.separable for m in op.maps):
            return f"the taps of {op.node} are no product of one vector per axis"
    algebra = Polynomials(graph.ndim)
    try:
        return algebra, function(algebra).without_traces()
    except _TooManyTerms:
        return f"its image has more than {MOST_TERMS} separable terms"


def rank(graph: PlaneGraph, node: str, input_node: str) -> int:
    """Number of separable terms of the field of `node`, which has no `obstacle`."""
    if _chain_obstacle(graph, node, input_node) is None:
        return 1
    found = _polynomial(graph, node, input_node)
    assert not isinstance(found, str)
    return len(found[1].weights)


def _chain_obstacle(graph: PlaneGraph, node: str, input_node: str) -> str | None:
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


@dataclass(frozen=True, slots=True)
class Factored:
    """An image in factors, and what `direct.Propagated` says besides.

    Attributes:
        image: the normalised image.
        mass: gradient variance that arrived, per unit put in.
        dropped: share that was dropped on request (`tail`).
    """

    image: FactoredImage
    mass: Scaled
    dropped: float


def factor(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    *,
    kernels: Any,
    dtype: Any = np.float64,
    workers: int = 1,
    tail: float | None = None,
) -> Factored | None:
    """The effective receptive field in factors; None where it has no transfer function.

    Args:
        graph, node, unit, input_node, kernels, dtype, workers, tail: as of `direct.propagate`,
            for networks without an `obstacle`.
    """
    found = _polynomial(graph, node, input_node)
    function = transfer_function(graph, node, input_node)
    if isinstance(found, str):
        return None
    algebra, value = found
    top = terms.shift_of(len(value.weights), graph.ndim)
    place = [u * j for u, j in zip(unit, function.jump(node), strict=True)]
    factors: dict[Hashable, terms.Factor] = {}
    with Threads(workers) as threads:
        lines = [
            algebra.lines(value, axis, kernels, top, threads, factors) for axis in range(graph.ndim)
        ]
    weights = value.weights * (2.0**top / value.weights.sum())
    image = FactoredImage(
        weights,
        tuple(f for f, _ in lines),
        tuple(start + p for (_, start), p in zip(lines, place, strict=True)),
        np.dtype(dtype),
        kernels,
    )
    dropped = 0.0
    if tail:
        whole = image.total
        image = image.cropped(
            [_held(image.profile(axis), tail / graph.ndim) for axis in range(graph.ndim)]
        )
        dropped = max(0.0, 1 - image.total / whole)
        image = image.normalised()
    return Factored(_visible(image), value.mass * (1 - dropped), dropped)


def _visible(image: FactoredImage) -> FactoredImage:
    """The image without rows and columns in which all pixels are below the smallest normal number,
    and so 0."""
    tiny = float(np.finfo(image.dtype).smallest_normal)
    seen = [np.flatnonzero(image.bounds(axis) >= tiny) for axis in range(image.ndim)]
    return image.cropped([(int(s[0]), int(s[-1]) + 1) for s in seen])


def _held(profile: NDArray[np.float64], tail: float) -> tuple[int, int]:
    """Start and stop of the pixels that are left when at most tail/2 is cut off at either end."""
    first = int(np.searchsorted(np.cumsum(profile), tail / 2, side="right"))
    last = int(np.searchsorted(np.cumsum(profile[::-1]), tail / 2, side="right"))
    return first, len(profile) - last


def propagate_factored(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    *,
    kernels: Any,
    dtype: Any = np.float64,
    workers: int = 1,
    tail: float | None = None,
    progress: Callable[[float], None] | None = None,
) -> Propagated:
    """As `direct.propagate`, for networks without an `obstacle`."""
    options: dict[str, Any] = {"kernels": kernels, "dtype": dtype, "workers": workers, "tail": tail}
    found = factor(graph, node, unit, input_node, **options)
    if found is None:
        return _propagate_projections(graph, node, unit, input_node, progress=progress, **options)
    if progress is not None:
        progress(1.0)
    return Propagated(found.image, found.image.origin, found.mass, 0.0, found.dropped)


# --- polynomials in the layers' transfer functions ------------------------------------------


class _TooManyTerms(Exception):
    """A polynomial has more than `MOST_TERMS` terms."""


class Polynomial(NamedTuple):
    """Σ_t weights[t] · Π_c variable_c^exponents[t, c], times mass.

    Attributes:
        weights: nonnegative, of sum 2^`profiles.TOP`.
        exponents: whole numbers, rows in ascending order, all different. Columns beyond those
            that are there count 0.
        mass: the value where every variable is 1.
    """

    weights: NDArray[np.float64]
    exponents: NDArray[np.int64]
    mass: Scaled

    @property
    def step(self) -> NDArray[np.int64] | None:
        """The difference of each row and the one before, where it is always the same."""
        steps = np.diff(self.exponents, axis=0)
        return steps[0] if len(steps) and np.all(steps == steps[0]) else None

    def without_traces(self) -> Polynomial:
        """Without the terms that no pixel shows."""
        keep = self.weights >= _LEAST_WEIGHT
        if keep.all():
            return self
        return Polynomial(self.weights[keep], self.exponents[keep], self.mass)


class Polynomials:
    """The algebra (`transfer.Algebra`) of transfer functions of separable maps.

    Its variables are z_a of every axis a, whose exponents are offsets in pixels, and every
    distinct pair of an axis and a `profiles.Factor`.
    """

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim
        self.columns: dict[tuple[int, profiles.Factor], int] = {}

    def one(self) -> Polynomial:
        return self._monomial(np.zeros(self.ndim, np.int64), ONE)

    def of(self, move: SpatialMap, jump: Jump) -> Polynomial:
        powers = Counter[int]()
        for axis, (window, j) in enumerate(zip(move.axes, jump, strict=True)):
            assert isinstance(window, Window)
            powers[axis] -= window.lo * j
            if window.kernel > 1:
                taps = move.axis_taps(axis)
                spacing = window.dilation * j
                own = None if taps is None else np.asarray(taps, np.float64).tobytes()
                key = (axis, profiles.Factor(window.kernel, spacing, own))
                powers[self.columns.setdefault(key, self.ndim + len(self.columns))] += 1
        exponents = np.zeros(self.ndim + len(self.columns), np.int64)
        for column, power in powers.items():
            exponents[column] = power
        return self._monomial(exponents, Scaled.of(move.gain))

    def mixed(self, terms: Sequence[tuple[float, Polynomial]]) -> Polynomial:
        if len(terms) == 1:
            ((share, only),) = terms
            return only if share == 1 else only._replace(mass=only.mass * share)
        masses = [p.mass * share for share, p in terms]
        mass = sum(masses, ZERO)
        weights = [p.weights * m.over(mass) for m, (_, p) in zip(masses, terms, strict=True)]
        exponents = self._wide([p.exponents for _, p in terms])
        return _joined(np.concatenate(weights), np.concatenate(exponents), mass)

    def times(self, a: Polynomial, b: Polynomial) -> Polynomial:
        mass = a.mass * b.mass
        x, y = self._wide([a.exponents, b.exponents])
        if len(x) == 1 or len(y) == 1:
            weights = a.weights if len(y) == 1 else b.weights
            return Polynomial(weights, x + y, mass)
        step = a._replace(exponents=x).step
        other = b._replace(exponents=y).step
        if step is not None and other is not None and np.array_equal(step, other):
            count = len(x) + len(y) - 1
            if count > MOST_TERMS:
                raise _TooManyTerms
            exponents = x[0] + y[0] + np.arange(count)[:, None] * step
            return Polynomial(profiles.convolved(a.weights, b.weights), exponents, mass)
        if len(x) * len(y) > MOST_PAIRS:
            raise _TooManyTerms
        pairs = (x[:, None] + y).reshape(len(x) * len(y), -1)
        half = 2.0 ** (-profiles.TOP // 2)
        return _joined(np.multiply.outer(a.weights * half, b.weights * half).ravel(), pairs, mass)

    def power(self, a: Polynomial, n: int) -> Polynomial:
        if len(a.weights) > 2:
            return squared_up(self, a, n)
        mass = _raised(a.mass, n)
        if len(a.weights) == 1:
            return Polynomial(a.weights, a.exponents * n, mass)
        if n >= MOST_TERMS:
            raise _TooManyTerms
        # A binomial distribution: its weights are the profile of n layers with two taps.
        weights = profiles.tapped(a.weights, n)
        step = a.exponents[1] - a.exponents[0]
        return Polynomial(weights, n * a.exponents[0] + np.arange(n + 1)[:, None] * step, mass)

    def lines(
        self,
        value: Polynomial,
        axis: int,
        kernels: Any,
        top: int,
        threads: Threads,
        known: dict[Hashable, terms.Factor],
    ) -> tuple[terms.Factor, int]:
        """The terms' profiles along one axis, and the position of their first pixel.

        Args:
            value: the polynomial.
            axis: the axis.
            kernels: namespace of the kernels of `fastrf.kernels.spec`.
            top: log2 of each profile's sum.
            threads: make the profiles.
            known: factors made so far, which axes that are alike share; added to.
        """
        (exponents,) = self._wide([value.exponents])
        used = [(c, f) for (a, f), c in self.columns.items() if a == axis and exponents[:, c].any()]
        used.sort(key=lambda pair: pair[1][:2])
        counts = exponents[:, [c for c, _ in used]]
        kinds = [f for _, f in used]
        spans = counts @ np.array([f.spacing * (f.kernel - 1) for f in kinds], np.int64)
        starts = exponents[:, axis]
        first = int(starts.min())
        length = int((starts + spans).max()) - first + 1
        key = (tuple(kinds), counts.tobytes(), (starts - first).tobytes())
        if key not in known:
            middles = 2 * starts + spans
            mirrored = bool(np.all(middles == middles[0])) and all(f.symmetric for f in kinds)
            rows = np.zeros((len(counts), (length + 1) // 2 if mirrored else length))
            outs = [
                row[a : a + n + 1]
                for row, a, n in zip(rows, (starts - first).tolist(), spans.tolist(), strict=True)
            ]
            _fill(outs, kinds, counts, kernels, top, threads)
            known[key] = terms.Factor(rows, length, mirrored)
        return known[key], first

    def _monomial(self, exponents: NDArray[np.int64], mass: Scaled) -> Polynomial:
        return Polynomial(np.array([2.0**profiles.TOP]), exponents[None], mass)

    def _wide(self, tables: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        """Tables of exponents with a column for every variable."""
        width = self.ndim + len(self.columns)
        return [
            np.pad(t, ((0, 0), (0, width - t.shape[1]))) if t.shape[1] < width else t
            for t in tables
        ]


def _raised(value: Scaled, n: int) -> Scaled:
    result = ONE
    while n:
        if n & 1:
            result = result * value
        value, n = value * value, n >> 1
    return result


def _joined(weights: NDArray[np.float64], exponents: NDArray[np.int64], mass: Scaled) -> Polynomial:
    """Like terms added up, and put in order."""
    rows, which = np.unique(exponents, axis=0, return_inverse=True)
    if len(rows) > MOST_TERMS:
        raise _TooManyTerms
    total: NDArray[np.float64] = np.bincount(which.ravel(), weights, len(rows)).astype(np.float64)
    total[total < np.finfo(np.float64).smallest_normal] = 0
    return Polynomial(total, rows, mass)


def _fill(
    outs: list[NDArray[np.float64]],
    kinds: list[profiles.Factor],
    counts: NDArray[np.int64],
    kernels: Any,
    top: int,
    threads: Threads,
) -> None:
    """Writes each term's profile, from its first coefficient on, into its vector of zeros."""

    if len(kinds) == 1 and kinds[0].taps is None and kinds[0].kernel <= profiles.MILLER_KERNEL:
        (kind,) = kinds

        def direct(first: int, last: int) -> None:
            for out, n in zip(outs[first:last], counts[first:last, 0].tolist(), strict=True):
                kernels.box_power(n, kind.kernel, top, out[:: kind.spacing])

        threads.cut(len(outs), sum(map(len, outs)), direct)
        return

    def anew(first: int, last: int) -> None:
        for out, row in zip(outs[first:last], counts[first:last].tolist(), strict=True):
            profiles.profile(dict(zip(kinds, row, strict=True)), kernels, top, out)

    steps = np.diff(counts, axis=0)
    sizes = np.array([f.spacing * (f.kernel - 1) for f in kinds], np.int64)
    if len(kinds) < 2 or not len(steps) or (steps < 0).any() or (steps @ sizes).max() > SHORT_STEP:
        threads.cut(len(outs), sum(map(len, outs)), anew)
        return
    # Each term is the one before times a few layers more.
    made: dict[bytes, NDArray[np.float64]] = {}
    whole = profiles.profile(dict(zip(kinds, counts[0].tolist(), strict=True)), kernels)
    profiles.lowered(whole[: len(outs[0])], top, outs[0])
    for out, step in zip(outs[1:], steps, strict=True):
        key = step.tobytes()
        if key not in made:
            made[key] = profiles.profile(dict(zip(kinds, step.tolist(), strict=True)), kernels)
        whole = profiles.convolved(whole, made[key])
        profiles.lowered(whole[: len(out)], top, out)


# --- chains, axis by axis -------------------------------------------------------------------


def _propagate_projections(
    graph: PlaneGraph, node: str, unit: tuple[int, ...], input_node: str, **options: Any
) -> Propagated:
    """The outer product of what the direct engine computes on each axis."""
    profiles = [
        propagate(projected(graph, axis), node, (unit[axis],), input_node, **options)
        for axis in range(graph.ndim)
    ]
    lines = [np.asarray(p.pixels(), np.float64) for p in profiles]
    factors = tuple(terms.Factor(line[None], line.size, False) for line in lines)
    origin = tuple(p.origin[0] for p in profiles)
    dtype = np.dtype(options.get("dtype", np.float64))
    image = FactoredImage(np.ones(1), factors, origin, dtype, options["kernels"])
    image = _visible(image)
    mass = reduce(mul, (p.mass for p in profiles))
    # Of what one axis is given it loses `lost` and drops `dropped`; what is kept multiplies.
    held = math.prod(1 - p.lost for p in profiles)
    kept = math.prod(1 - p.lost - p.dropped for p in profiles)
    return Propagated(image, image.origin, mass, 1 - held, held - kept)


def projected(graph: PlaneGraph, axis: int) -> PlaneGraph:
    """The network along one axis; gains and shares go with the first axis."""
    operations = [_projected_operation(op, axis) for op in graph.operations]
    planes = [p if axis == 0 else replace(p, share=1.0) for p in graph.planes]
    size = None if graph.input_size is None else (graph.input_size[axis],)
    return replace(graph, ndim=1, input_size=size, planes=planes, operations=operations, derived={})


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
