"""The factored engine: images as sums of separable terms.

Two kinds of networks with separable taps are served, both pixel by pixel in relative accuracy.

On the unbounded grid, whatever has a transfer function: that is a polynomial in the layers'
transfer functions, and layers that are alike are one variable of it. A chain is one monomial; n
residual blocks over one branch B are Σ_j e_j·B^j with the Poisson-binomial weights of the branches
taken, e_j ← (1 − q)·e_j + q·e_{j−1}. A monomial is an outer product of profiles (`profiles`), a
polynomial is a `terms.FactoredImage`. Profiles are made on the host: recurrences from one pixel to
the next, short against the image that is made of them.

On maps of known size, and through transposed convolutions and resizing, chains: the image is the
outer product of what the direct engine computes on the network's projection onto each axis.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrf.engine import cost, profiles, terms
from fastrf.engine.direct import Propagated, propagate
from fastrf.engine.projections import axis_by_axis, chain_obstacle
from fastrf.engine.scaled import ONE, ZERO, Scaled
from fastrf.engine.terms import FactoredImage, held, trimmed
from fastrf.engine.threads import Threads
from fastrf.engine.transfer import Jump, TransferFunction, squared_up, transfer_function
from fastrf.kernels import load
from fastrf.lowering import PlaneGraph
from fastrf.maps import SpatialMap, Window

MOST_TERMS = 4096
"""Most terms of an image: the factors of a thousand pixels are then 33 MB an axis."""

MOST_PAIRS = 1 << 22
"""Most pairs of terms that one product of two polynomials may have before like terms are joined."""

VIEW_BYTES = 128
"""What Python holds of a view of an array."""

SHORT_STEP = 64
"""Pixels by which a profile may grow on its way to the next term's, rather than being made anew."""

_SLOPES = 2.0 ** np.arange(-1, 8, 0.25)
# Of Chernoff's bound, around that of a normal distribution whose variance is bounded from above.

_LEAST_WEIGHT = 2.0 ** (profiles.TOP - 1100)
"""Terms below 2^−1100 of the image are left out: MOST_TERMS of them stay below 2^−1088."""


def obstacle(graph: PlaneGraph, node: str, input_node: str) -> str | None:
    """Why the field of `node` is no sum of separable terms; None where it is one."""
    chain = chain_obstacle(graph, node, input_node)
    if chain is None or graph.input_size is not None:
        return chain
    found = _polynomial(graph, node, input_node)
    return found if isinstance(found, str) else None


def _polynomial(
    graph: PlaneGraph, node: str, input_node: str
) -> tuple[Polynomials, Polynomial] | str:
    """The image as a polynomial and the algebra that it belongs to, or why there is none."""
    return graph.once(("polynomial", node, input_node), lambda: _expanded(graph, node, input_node))


def _expansion(graph: PlaneGraph, node: str, input_node: str) -> tuple[Polynomials, Polynomial]:
    """As `_polynomial`, of an image that is known to be one."""
    found = _polynomial(graph, node, input_node)
    assert not isinstance(found, str)
    return found


def _expanded(
    graph: PlaneGraph, node: str, input_node: str
) -> tuple[Polynomials, Polynomial] | str:
    function = transfer_function(graph, node, input_node)
    algebra = Polynomials(graph.ndim)
    try:
        return _no_polynomial(function) or (algebra, function(algebra).without_traces())
    except _TooManyTerms:
        return f"its image has more than {MOST_TERMS} separable terms"


def _no_polynomial(function: TransferFunction) -> str | None:
    """Why the image is no polynomial in the transfer functions of separable layers."""
    if function.obstacle is not None:
        return function.obstacle
    if not function.operations:
        return f"no layer lies between {function.input_node} and {function.node}"
    for op in function.operations:
        if any(not m.separable for m in op.maps):
            return f"the taps of {op.node} are no product of one vector per axis"
    return None


def expanded_all(function: TransferFunction) -> tuple[Polynomials, dict[str, Polynomial]] | str:
    """The images of all nodes as polynomials, in one walk; or why one of them is none."""
    algebra = Polynomials(function.graph.ndim)
    why_not, found = _no_polynomial(function), {}
    if why_not is not None:
        return why_not
    try:
        for node, value in function.each(algebra):
            found[node] = value.without_traces()
    except _TooManyTerms:
        return f"a layer's image has more than {MOST_TERMS} separable terms"
    return algebra, found


def rank(graph: PlaneGraph, node: str, input_node: str) -> int:
    """Number of separable terms of the field of `node`, which has no `obstacle`."""
    if chain_obstacle(graph, node, input_node) is None:
        return 1
    _, value = _expansion(graph, node, input_node)
    return len(value.weights)


def tables(graph: PlaneGraph, node: str, input_node: str) -> tuple[int, bool]:
    """Bytes of all terms' profiles, of a field with a polynomial, of which like axes share theirs;
    and whether all are symmetric, so that halves are held."""
    algebra, value = _expansion(graph, node, input_node)

    def added_up() -> tuple[int, bool]:
        bundles = {}
        for axis in range(graph.ndim):
            kinds, bundle = algebra.bundle(value, axis)
            bundles[kinds, *bundle.key] = bundle
        # Each row with a view of it.
        size = sum(len(b.counts) * (8 * b.stored + VIEW_BYTES) for b in bundles.values())
        return size, all(b.mirrored for b in bundles.values())

    return graph.once(("tables of profiles", node, input_node), added_up)


def making(graph: PlaneGraph, node: str, input_node: str) -> int:
    """Bytes that making the longest of these profiles takes beside them, on one thread."""
    algebra, value = _expansion(graph, node, input_node)

    def longest() -> int:
        most = 0
        for axis in range(graph.ndim):
            kinds, bundle = algebra.bundle(value, axis)
            if kinds:
                counts = bundle.counts[int(bundle.spans.argmax())].tolist()
                runs = dict(zip(kinds, counts, strict=True))
                if len(kinds) == 1 and kinds[0].miller:
                    runs = {kinds[0]._replace(spacing=1): counts[0]}
                most = max(most, profiles.making_bytes(runs))
        return most

    return graph.once(("making of profiles", node, input_node), longest)


def making_seconds(graph: PlaneGraph, node: str, input_node: str) -> float:
    """What making these profiles takes beside writing them, on one thread."""
    algebra, value = _expansion(graph, node, input_node)

    def all_of_them() -> float:
        made: dict[Hashable, float] = {}
        for axis in range(graph.ndim):
            kinds, bundle = algebra.bundle(value, axis)
            key = (kinds, *bundle.key)
            if key not in made:  # axes that are alike share their profiles
                made[key] = _filling_seconds(kinds, bundle.counts)
        return sum(made.values())

    return graph.once(("seconds of profiles", node, input_node), all_of_them)


def visible(graph: PlaneGraph, node: str, input_node: str, nats: float) -> list[tuple[int, int]]:
    """First pixel and number of pixels per axis, counted from unit 0, beside which no pixel is
    above e^−nats, nor their sum; of a field with a polynomial.

    Chernoff: what lies beyond x is at most e^(K(θ) − θx) for every θ > 0, K the logarithm of the
    generating function, of which the largest term times their number is a bound.
    """
    algebra, value = _expansion(graph, node, input_node)
    key = ("visible", node, input_node, nats)
    return graph.once(key, lambda: [_reach(algebra, value, a, nats) for a in range(graph.ndim)])


def _reach(algebra: Polynomials, value: Polynomial, axis: int, nats: float) -> tuple[int, int]:
    kinds, bundle = algebra.bundle(value, axis)
    whole = (bundle.first, bundle.length)
    if math.isinf(nats) or not kinds:
        return whole
    sizes, _ = _traits(kinds)
    spread = float((bundle.counts @ (sizes / 2.0) ** 2).max())  # bounds the variance
    slopes = math.sqrt(2 * nats / spread) * _SLOPES
    level = np.log(value.weights) - profiles.TOP * math.log(2) + math.log(len(value.weights))
    edges = []
    for theta in (slopes, -slopes):
        logs = np.array([f.log_generating(theta) for f in kinds])
        each = bundle.counts @ logs + np.multiply.outer(bundle.starts, theta) + level[:, None]
        edges.append((each.max(axis=0) + nats) / theta)
    first = max(0, math.floor(float(edges[1].max())))
    last = min(bundle.length - 1, math.ceil(float(edges[0].min())))
    return bundle.first + first, last - first + 1


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
    xp: Any = np,
) -> Factored | None:
    """The effective receptive field in factors; None where it has no transfer function.

    Args:
        graph, node, unit, input_node, dtype, workers, tail: as of `direct.propagate`, for networks
            without an `obstacle`.
        kernels, xp: what forms the pixels, and array namespace that these are of.
    """
    found = _polynomial(graph, node, input_node)
    function = transfer_function(graph, node, input_node)
    if isinstance(found, str):
        return None
    algebra, value = found
    top = terms.shift_of(len(value.weights), graph.ndim)
    factors: dict[Hashable, terms.Factor] = {}
    with Threads(workers) as threads:
        lines = [algebra.lines(value, axis, top, threads, factors) for axis in range(graph.ndim)]
    place = [u * j for u, j in zip(unit, function.jump(node), strict=True)]
    return _weighted(value, lines, place, kernels, dtype, tail, xp)


def factor_all(
    function: TransferFunction,
    expanded: tuple[Polynomials, dict[str, Polynomial]],
    unit: tuple[int, ...],
    *,
    kernels: Any,
    dtype: Any = np.float64,
    tail: float | None = None,
    xp: Any = np,
) -> dict[str, Propagated]:
    """The fields of `unit` on every node between the input and a node above, in one walk.

    A map's terms are those of the maps below with a layer more, so that each profile is made in
    one step from another (`profiles.Ladder`), and maps that differ by no pixel share one image.

    Args:
        function: a node's, without an obstacle.
        expanded: what `expanded_all` makes of it.
        unit, dtype, tail: as of `direct.propagate`; `unit` is the same on every map.
        kernels, xp: as of `factor`.

    Returns:
        Fields by node, in topological order.
    """
    algebra, values = expanded
    variables = [algebra.variables(axis) for axis in range(len(unit))]
    tables = {kinds: _Tables(kinds) for kinds, _ in variables}
    images: dict[Hashable, Factored] = {}
    found: dict[str, Propagated] = {}
    # From the largest down: the terms of the others are pieces of its own.
    for node in reversed(values):
        value, place = values[node], [u * j for u, j in zip(unit, function.jump(node), strict=True)]
        key = (value.weights.tobytes(), value.exponents.tobytes(), *place)
        if key not in images:
            top = terms.shift_of(len(value.weights), len(unit))
            (exponents,) = algebra.wide([value.exponents])
            lines: list[tuple[terms.Factor, int]] = []
            along = [exponents[:, [axis, *columns]] for axis, (_, columns) in enumerate(variables)]
            for own, (kinds, _) in zip(along, variables, strict=True):
                if lines and kinds == variables[0][0] and np.array_equal(own, along[0]):
                    lines.append(lines[0])
                    continue
                bundle = _Bundle.of(own[:, 1:], own[:, 0], kinds)
                lines.append((tables[kinds].factor(bundle, top), bundle.first))
            one = value._replace(mass=ONE)
            images[key] = _weighted(one, lines, place, kernels, dtype, tail, xp)
        image, mass = images[key].image, images[key].mass * value.mass
        found[node] = Propagated(image, image.origin, mass, 0.0, images[key].dropped)
    return {node: found[node] for node in values}


def _weighted(
    value: Polynomial,
    lines: Sequence[tuple[terms.Factor, int]],
    place: Sequence[int],
    kernels: Any,
    dtype: Any,
    tail: float | None,
    xp: Any,
) -> Factored:
    """The image of a polynomial, from its terms' profiles and their first pixels per axis."""
    top = terms.shift_of(len(value.weights), len(lines))
    image = FactoredImage(
        value.weights * (2.0**top / value.weights.sum()),
        tuple(f for f, _ in lines),
        tuple(start + p for (_, start), p in zip(lines, place, strict=True)),
        np.dtype(dtype),
        kernels,
        xp,
    )
    dropped = 0.0
    if tail:
        whole = image.total
        box = [held(image.profile(axis), tail / image.ndim) for axis in range(image.ndim)]
        image = image.cropped(box)
        dropped = max(0.0, 1 - image.total / whole)
        image = image.normalised()
    return Factored(trimmed(image), value.mass * (1 - dropped), dropped)


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
    xp: Any = np,
) -> Propagated:
    """As `direct.propagate`, for networks without an `obstacle`.

    `kernels` and `xp` form the pixels of the image, when they are asked for.
    """
    where = (graph, node, unit, input_node)
    options: dict[str, Any] = {"dtype": dtype, "workers": workers, "tail": tail}
    options |= {"kernels": kernels, "xp": xp}
    found = factor(*where, **options)
    if found is None:
        return axis_by_axis(propagate, *where, progress=progress, **options)
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
        self._one = self._monomial(np.zeros(ndim, np.int64), ONE)

    def one(self) -> Polynomial:
        return self._one

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
        exponents = self.wide([p.exponents for _, p in terms])
        return _joined(np.concatenate(weights), np.concatenate(exponents), mass)

    def times(self, a: Polynomial, b: Polynomial) -> Polynomial:
        if a is self._one or b is self._one:
            return b if a is self._one else a
        mass = a.mass * b.mass
        x, y = self.wide([a.exponents, b.exponents])
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
        top: int,
        threads: Threads,
        known: dict[Hashable, terms.Factor],
    ) -> tuple[terms.Factor, int]:
        """The terms' profiles along one axis, and the position of their first pixel.

        Args:
            value: the polynomial.
            axis: the axis.
            top: log2 of each profile's sum.
            threads: make the profiles.
            known: factors made so far, which axes that are alike share; added to.
        """
        kinds, bundle = self.bundle(value, axis)
        key = (kinds, *bundle.key)
        if key not in known:
            known[key] = bundle.factor()
            _fill(bundle.outs(known[key]), kinds, bundle.counts, top, threads)
        return known[key], bundle.first

    def bundle(self, value: Polynomial, axis: int) -> tuple[tuple[profiles.Factor, ...], _Bundle]:
        """The factors that occur along an axis, and the terms made of them."""
        every, columns = self.variables(axis)
        (exponents,) = self.wide([value.exponents])
        used = [i for i, c in enumerate(columns) if exponents[:, c].any()]
        kinds = tuple(every[i] for i in used)
        counts = exponents[:, [columns[i] for i in used]]
        return kinds, _Bundle.of(counts, exponents[:, axis], kinds)

    def variables(self, axis: int) -> tuple[tuple[profiles.Factor, ...], list[int]]:
        """The factors along one axis, from the finest to the coarsest, and their columns."""
        own = [
            (f.spacing, f.kernel, f.taps or b"", c)
            for (a, f), c in self.columns.items()
            if a == axis
        ]
        columns = [c for *_, c in sorted(own)]
        kinds = {c: f for (_, f), c in self.columns.items()}
        return tuple(kinds[c] for c in columns), columns

    def _monomial(self, exponents: NDArray[np.int64], mass: Scaled) -> Polynomial:
        return Polynomial(np.array([2.0**profiles.TOP]), exponents[None], mass)

    def wide(self, tables: Sequence[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        """Tables of exponents with a column for every variable."""
        width = self.ndim + len(self.columns)
        return [
            np.pad(t, ((0, 0), (0, width - t.shape[1]))) if t.shape[1] < width else t
            for t in tables
        ]


@dataclass(frozen=True, slots=True)
class _Bundle:
    """A polynomial's terms along one axis.

    Attributes:
        counts: how often each term has each factor, shape (terms, factors).
        starts, spans: each term's first pixel, counted from `first`, and how far its last one is.
        first: the first pixel of all.
        length: number of pixels.
        mirrored: whether all terms are symmetric about the middle.
    """

    counts: NDArray[np.int64]
    starts: NDArray[np.int64]
    spans: NDArray[np.int64]
    first: int
    length: int
    mirrored: bool

    @staticmethod
    def of(
        counts: NDArray[np.int64], starts: NDArray[np.int64], kinds: tuple[profiles.Factor, ...]
    ) -> _Bundle:
        sizes, symmetric = _traits(kinds)
        counts = np.ascontiguousarray(counts)
        spans = counts @ sizes
        first = int(starts.min())
        starts = starts - first
        ends = starts + spans
        last = int(ends.max())
        mirrored = not counts[:, ~symmetric].any() and bool((starts + ends == last).all())
        return _Bundle(counts, starts, spans, first, last + 1, mirrored)

    @property
    def key(self) -> tuple[bytes, bytes]:
        """Equal for bundles of the same profiles at the same places."""
        return self.counts.tobytes(), self.starts.tobytes()

    @property
    def stored(self) -> int:
        """Pixels of each row."""
        return (self.length + 1) // 2 if self.mirrored else self.length

    def factor(self) -> terms.Factor:
        """Room for the terms' profiles, all 0."""
        return terms.Factor(np.zeros((len(self.counts), self.stored)), self.length, self.mirrored)

    def outs(self, room: terms.Factor) -> list[NDArray[np.float64]]:
        """The part of each row that its term's profile occupies."""
        ends = zip(room.rows, self.starts.tolist(), self.spans.tolist(), strict=True)
        return [row[start : start + span + 1] for row, start, span in ends]


@lru_cache(maxsize=64)
def _traits(
    kinds: tuple[profiles.Factor, ...],
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """How much each factor makes a profile longer, and whether it is symmetric."""
    sizes = np.array([f.spacing * (f.kernel - 1) for f in kinds], np.int64)
    return sizes, np.array([f.symmetric for f in kinds], bool)


class _Tables:
    """The factors of many polynomials along axes of the same kinds of layers.

    A term's profile is made once, and where the terms of one image are a piece of another's, as
    those of any block of a residual stack are of the last one's, its factor is a view.
    """

    def __init__(self, kinds: Sequence[profiles.Factor]) -> None:
        self.kinds = kinds
        self.ladder = profiles.Ladder(kinds, load("cpu"))
        self.known: dict[Hashable, terms.Factor] = {}
        self.tables: dict[Hashable, list[tuple[_Bundle, terms.Factor, int]]] = {}

    def factor(self, bundle: _Bundle, top: int) -> terms.Factor:
        """The factor of a bundle whose counts are of all `kinds`, each term of sum 2^top."""
        key = (top, bundle.key)
        if key not in self.known:
            self.known[key] = self._piece(bundle, top) or self._made(bundle, top)
        return self.known[key]

    def _piece(self, bundle: _Bundle, top: int) -> terms.Factor | None:
        """The factor as a view of one that is there."""
        count = len(bundle.counts)
        for other, factor, at in self.tables.get((top, bundle.counts[0].tobytes()), ()):
            rows = slice(at, at + count)
            moves = other.starts[rows] - bundle.starts[: len(other.starts[rows])]
            if np.array_equal(other.counts[rows], bundle.counts) and (moves == moves[0]).all():
                start = int(moves[0])
                own = terms.Factor(factor.rows[rows], factor.length, factor.mirrored)
                return own.cut(start, start + bundle.length)
        return None

    def _made(self, bundle: _Bundle, top: int) -> terms.Factor:
        factor = bundle.factor()
        counts = bundle.counts.tolist()
        for out, row in zip(bundle.outs(factor), counts, strict=True):
            profiles.lowered(self.ladder[tuple(row)][: len(out)], top, out)
        if len(counts) > 1:
            for at, row in enumerate(bundle.counts):
                self.tables.setdefault((top, row.tobytes()), []).append((bundle, factor, at))
        return factor


def _raised(value: Scaled, n: int) -> Scaled:
    result = ONE
    while n:
        if n & 1:
            result = result * value
        value, n = value * value, n >> 1
    return result


def _joined(weights: NDArray[np.float64], exponents: NDArray[np.int64], mass: Scaled) -> Polynomial:
    """Like terms added up, and put in order."""
    rows, which = _distinct(exponents)
    if len(rows) > MOST_TERMS:
        raise _TooManyTerms
    total: NDArray[np.float64] = np.bincount(which, weights, len(rows)).astype(np.float64)
    total[total < np.finfo(np.float64).smallest_normal] = 0
    return Polynomial(total, rows, mass)


def _distinct(rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """The rows that differ, in order, and which of them each row is."""
    low = rows.min(axis=0)
    sides = (rows.max(axis=0) - low + 1).tolist()
    if math.prod(sides) >= 1 << 62:
        found, which = np.unique(rows, axis=0, return_inverse=True)
        return found, which.ravel()
    # As one number each they are sorted ten times as fast as NumPy sorts rows.
    place = [math.prod(sides[column + 1 :]) for column in range(len(sides))]
    _, first, which = np.unique((rows - low) @ place, return_index=True, return_inverse=True)
    return rows[first], which


def _fill(
    outs: list[NDArray[np.float64]],
    kinds: Sequence[profiles.Factor],
    counts: NDArray[np.int64],
    top: int,
    threads: Threads,
) -> None:
    """Writes each term's profile, from its first coefficient on, into its vector of zeros."""
    kernels = load("cpu")

    if len(kinds) == 1 and kinds[0].miller:
        (kind,) = kinds

        def direct(i: int) -> None:
            kernels.box_power(int(counts[i, 0]), kind.kernel, top, outs[i][:: kind.spacing])

        threads.each(len(outs), sum(map(len, outs)), direct)
        return

    def anew(i: int) -> None:
        row = counts[i].tolist()
        profiles.profile(dict(zip(kinds, row, strict=True)), kernels, top, outs[i])

    if _falls(counts):
        outs, counts = outs[::-1], counts[::-1]
    steps = _short_steps(kinds, counts)
    if steps is None:
        threads.each(len(outs), sum(map(len, outs)), anew)
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


LOOKED_AT = 8
"""Terms that tell what all of them take."""


def _filling_seconds(kinds: Sequence[profiles.Factor], counts: NDArray[np.int64]) -> float:
    """What `_fill` takes beside writing rows."""
    if not kinds:
        return 0.0
    if len(kinds) == 1 and kinds[0].miller:
        return len(counts) * cost.FACTOR_SECONDS

    def one(row: NDArray[np.int64]) -> float:
        return profiles.making_seconds(dict(zip(kinds, row.tolist(), strict=True)))

    if _falls(counts):
        counts = counts[::-1]
    sizes, _ = _traits(tuple(kinds))
    steps = _short_steps(kinds, counts)
    if steps is None:
        some = counts[:: -(-len(counts) // LOOKED_AT)]
        return len(counts) / len(some) * sum(map(one, some))
    products = ((counts[:-1] @ sizes + 1) * (steps @ sizes + 1)).sum()
    calls = len(steps) * (cost.PRODUCT_SECONDS + cost.PHASE_SECONDS)
    return one(counts[0]) + calls + 1e-9 * cost.PRODUCT_NANOSECONDS * float(products)


def _falls(counts: NDArray[np.int64]) -> bool:
    """Whether the first terms are those of most layers: padded ones reach out the farthest."""
    return bool((counts[0] > counts[-1]).any())


def _short_steps(
    kinds: Sequence[profiles.Factor], counts: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """What each term has more than the one before it, where that is few layers of several kinds;
    None where profiles had better be made anew."""
    steps = np.diff(counts, axis=0)
    sizes, _ = _traits(tuple(kinds))
    if len(kinds) < 2 or not len(steps) or (steps < 0).any() or (steps @ sizes).max() > SHORT_STEP:
        return None
    return steps
