"""Transfer functions: what a shift-invariant graph does, as one function of z on the input grid.

On the unbounded grid a graph of `Window`s moves its image with its unit: unit u of plane y sees
what unit 0 sees, moved by u·j_y pixels, j the plane's jump. The image of unit 0 is therefore one
polynomial F(z) = Σ_i V[i]·z^i, and Luo et al.'s eq. 8, read from the input up, is

    F_y = gain · Σ_m v[m] · z^{j_x·(m·d − lo)} · F_x,        F_input = 1,

summed over everything that y reads. Equal pieces that follow each other are a power (`Stage`).
One walk evaluates it in four algebras:

==============  ==============================================================================
`Extents`       the exponents that occur: the theoretical receptive field
`Exponentials`  z = e^θ along one axis: the moment generating function, for Chernoff's bound
`Moduli`        an upper bound of |F| at z = e^{−iω} along one axis, for all ω on the others
`Waves`         F at z = e^{−iω} on a grid of frequencies, the discrete Fourier transform
==============  ==============================================================================

`Waves` holds F as mass·z^c·(1 − δ). The centre c is an exact half-integer, so that symmetric
kernels stay real; the mass is a logarithm, so that no gain over- or underflows; and the *defect* δ
is built from nonnegative sums of sin², so that it is small where F is close to its mass. A power
of a thousand then costs a few ulp, where powers of F itself lose three digits.

What depends on one axis alone is a short vector, made on the host. What depends on all of them is
an array of the namespace that `Waves` is given: on a GPU it never leaves it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastrf.arrays import along
from fastrf.engine import cost
from fastrf.engine.series import Stage, stages
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import SpatialMap, Window

Array = NDArray[Any]
Jump = tuple[int, ...]
"""Input pixels per step on a plane, per axis."""

SLAB = 1 << 14
"""Numbers, of taps at frequencies, that are looked at at a time,"""

SLAB_BYTES, EVEN_BYTES = 56, 24
"""and what is at work for each of them: an angle, a square, a sine, complex numbers, and what has
been added up; or, where all taps are the same from both ends, three real numbers."""

LONG_BYTES = 11 * 8 + 1
"""The same for each frequency of a long kernel of equal taps: what its closed form names, of which
one is a Boolean, and what it makes on the way."""

LONG_KERNEL = 33
"""Equal taps from which the closed form beats the sum over taps (measured at 513 frequencies on
one core of a Sapphire Rapids Xeon: 83 µs at any length against 79 µs for 32 taps)."""

V = TypeVar("V")


class Algebra(Protocol[V]):
    """Values of transfer functions: how they are made and combined."""

    def one(self) -> V:
        """F = 1: a unit of the input sees itself."""

    def of(self, move: SpatialMap, jump: Jump) -> V:
        """The factor of a map that reads a plane of this jump."""

    def mixed(self, terms: Sequence[tuple[float, V]]) -> V:
        """Σ share·value, of at least one term."""

    def times(self, a: V, b: V) -> V:
        """The product of two values."""

    def power(self, a: V, n: int) -> V:
        """The n-th power, n ≥ 1."""


def squared_up(algebra: Algebra[V], a: V, n: int) -> V:
    """a^n by repeated squaring."""
    result: V | None = None
    while True:
        if n & 1:
            result = a if result is None else algebra.times(result, a)
        n >>= 1
        if not n:
            assert result is not None
            return result
        a = algebra.times(a, a)


# --- the graph ------------------------------------------------------------------------------


def _jumps(
    graph: PlaneGraph, operations: Sequence[Operation], node: str, input_node: str
) -> dict[int, Jump] | str:
    """The jump of every plane reached from the input, or what there is instead of one."""
    jumps: dict[int, Jump] = dict.fromkeys(graph.planes_of[input_node], (1,) * graph.ndim)
    for op in operations:
        read = {jumps[q] for q, _ in op.sources if q in jumps}
        if len(read) > 1:
            return f"{op.node} reads maps of different strides"
        (jump,) = read
        for m in op.maps:
            strides = [a.stride for a in m.axes if isinstance(a, Window)]
            if len(strides) < len(m.axes):
                return f"{op.node} is not shift-invariant"
            jump = tuple(j * s for j, s in zip(jump, strides, strict=True))
        for p, _ in op.targets:
            if jumps.setdefault(p, jump) != jump:
                return f"{op.node} merges paths of different strides"
    if len({jumps[p] for p in graph.planes_of[node] if p in jumps}) > 1:
        return f"the channels of {node} have different strides"
    return jumps


def transfer_function(graph: PlaneGraph, node: str, input_node: str) -> TransferFunction:
    """The graph's transfer function, taken apart at the first call."""
    key = ("transfer function", node, input_node)
    return graph.once(key, lambda: TransferFunction(graph, node, input_node))


class TransferFunction:
    """The transfer function from an input to a node, and to every node on the way.

    Attributes:
        obstacle: why there is none; None where there is one.
        operations: those between input and node, in topological order.
        jumps: the jump of every plane reached from the input.
    """

    def __init__(self, graph: PlaneGraph, node: str, input_node: str) -> None:
        self.graph, self.node, self.input_node = graph, node, input_node
        self.operations: list[Operation] = []
        self.jumps: dict[int, Jump] = {}
        self.obstacle: str | None = None
        if graph.input_size is not None:
            self.obstacle = "the input size is known, so borders clip the field"
            return
        self.operations = graph.between(node, input_node)
        found = _jumps(graph, self.operations, node, input_node)
        if isinstance(found, str):
            self.obstacle = found
        else:
            self.jumps = found

    @cached_property
    def stages(self) -> list[Stage]:
        """The pieces of a series, or none where the graph is no series."""
        found = stages(self.graph, self.node, self.input_node) or []
        whole = sum(len(s.operations) for s in found) == len(self.operations)
        return found if whole else []

    @cached_property
    def groups(self) -> list[tuple[Stage, int]]:
        """Stages that differ, each with how often it occurs on a grid of its jump."""
        number: dict[Any, int] = {}
        found: list[tuple[Stage, int]] = []
        for stage in self.stages:
            at = number.setdefault((stage.key, self.jumps[stage.source]), len(found))
            if at == len(found):
                found.append((stage, 1))
            else:
                found[at] = (found[at][0], found[at][1] + 1)
        return found

    @cached_property
    def distinct(self) -> list[Operation]:
        """The operations of all groups, or of the whole graph where it is no series."""
        found = [op for stage, _ in self.groups for op in stage.operations]
        return found or self.operations

    @cached_property
    def widest(self) -> int:
        """Most taps along an axis that are looked at one by one."""
        return max((k for move, k in self._kernels() if not _is_long(move, k)), default=1)

    @cached_property
    def long(self) -> bool:
        """Whether there are equal taps of which a closed form tells."""
        return any(_is_long(move, k) for move, k in self._kernels())

    def _kernels(self) -> Iterator[tuple[SpatialMap, int]]:
        """Every axis of every distinct map."""
        moves = (m for op in self.distinct for m in op.maps)
        return ((m, w.kernel) for m in moves for w in _windows(m))

    @cached_property
    def joint(self) -> int:
        """How often an array of all frequencies is gone through for `distinct`: once an operation,
        and for taps that are no product once for every one along the first axis."""
        tables = (m.taps for op in self.distinct for m in op.maps)
        more = sum(len(taps) for taps in tables if isinstance(taps, np.ndarray))
        return len(self.distinct) + more

    @cached_property
    def even(self) -> bool:
        """Whether the taps of all axes are the same from both ends."""
        every = (m.taps for op in self.distinct for m in op.maps if m.taps is not None)
        return all(
            not isinstance(taps, np.ndarray)
            and all(t is None or np.array_equal(t, t[::-1]) for t in taps)
            for taps in every
        )

    def line_bytes(self, frequencies: int, kept: int) -> int:
        """What is at work where a bound is found at so many frequencies along an axis, and F itself
        at those that are kept: their numbers, values of layers and of their products; and taps,
        some at a time."""
        products, values = max(1, len(self.groups)).bit_length() - 1, 6
        if self.groups:
            merges = any(len(stage.operations) > 1 for stage, _ in self.groups)
            values = 3 + products + merges
        one = EVEN_BYTES if self.even else SLAB_BYTES
        slab = one * min(max(SLAB, frequencies), self.widest * frequencies)
        if self.long:
            slab = max(slab, LONG_BYTES * frequencies)
        waves = 0 if self.even else (2 * 8 + 16 * products + SLAB_BYTES) * kept
        return max(8 * values * frequencies + slab, waves)

    def line_nanoseconds(self, axis: int) -> float:
        """What one frequency of an axis takes, where all that depends on it alone is summed up."""
        moves = [m for op in self.distinct for m in op.maps]
        return sum(_line_nanoseconds(m, list(_windows(m))[axis].kernel, axis) for m in moves)

    def jump(self, node: str) -> Jump:
        """The jump of a node's map."""
        return next(self.jumps[p] for p in self.graph.planes_of[node] if p in self.jumps)

    def __call__(self, algebra: Algebra[V]) -> V:
        """The value at the node."""
        if not self.stages:
            values = self._walk(algebra, self.operations, self._inputs(algebra))
            return self._at(algebra, self.node, values)
        # Pairs of like size: rounding, and how many values there are at a time, grow with log n.
        products: list[tuple[int, V]] = []
        for stage, n in self.groups:
            size, value = 1, algebra.power(self._stage(algebra, stage)[stage.target], n)
            while products and products[-1][0] == size:
                value = algebra.times(products.pop()[1], value)
                size *= 2
            products.append((size, value))
        _, value = products.pop()
        while products:
            value = algebra.times(products.pop()[1], value)
        return value

    def each(self, algebra: Algebra[V]) -> Iterator[tuple[str, V]]:
        """The values at all nodes between input and node, in one pass from the input up."""
        if not self.stages:
            values = self._walk(algebra, self.operations, self._inputs(algebra))
            for name in dict.fromkeys(op.node for op in self.operations):
                yield name, self._at(algebra, name, values)
            return
        known: dict[Any, list[V]] = {}
        below: V | None = None
        for stage in self.stages:
            key = (stage.key, self.jumps[stage.source])
            planes = _planes(stage)
            if key not in known:
                inside = self._stage(algebra, stage)
                known[key] = [inside[p] for p in planes]
            values = {
                p: value if below is None else algebra.times(below, value)
                for p, value in zip(planes, known[key], strict=True)
            }
            for name in dict.fromkeys(op.node for op in stage.operations):
                yield name, self._at(algebra, name, values)
            below = values[stage.target]

    def _inputs(self, algebra: Algebra[V]) -> dict[int, V]:
        return {p: algebra.one() for p in self.graph.planes_of[self.input_node]}

    def _stage(self, algebra: Algebra[V], stage: Stage) -> dict[int, V]:
        return self._walk(algebra, stage.operations, {stage.source: algebra.one()})

    def _at(self, algebra: Algebra[V], node: str, values: dict[int, V]) -> V:
        planes = [p for p in self.graph.planes_of[node] if p in values]
        return algebra.mixed([(self.graph.planes[p].share, values[p]) for p in planes])

    def _walk(
        self, algebra: Algebra[V], operations: Sequence[Operation], values: dict[int, V]
    ) -> dict[int, V]:
        """The values of all planes that the operations write, besides those given."""
        terms: defaultdict[int, list[tuple[float, V]]] = defaultdict(list)
        for op in operations:
            for q, _ in op.sources:
                if q in terms:  # all of it is written: its readers come later
                    values[q] = algebra.mixed(terms.pop(q))
            read = [(q, share) for q, share in op.sources if q in values]
            value = algebra.mixed([(share * op.gain, values[q]) for q, share in read])
            jump = self.jumps[read[0][0]]
            for m in op.maps:
                value = algebra.times(value, algebra.of(m, jump))
                jump = tuple(j * a.stride for j, a in zip(jump, _windows(m), strict=True))
            for p, share in op.targets:
                terms[p].append((share, value))
        for p, summands in terms.items():
            values[p] = algebra.mixed(summands)
        return values


def _is_long(move: SpatialMap, kernel: int) -> bool:
    return move.taps is None and kernel >= LONG_KERNEL


def _planes(stage: Stage) -> list[int]:
    """The planes of a stage in the order of their appearance, the same for equal keys."""
    named = (p for op in stage.operations for p, _ in (*op.sources, *op.targets))
    return list(dict.fromkeys(named))


def _windows(move: SpatialMap) -> Iterator[Window]:
    for axis in move.axes:
        assert isinstance(axis, Window)
        yield axis


def _centre(axis: Window, jump: int) -> int:
    """Twice the centre of the taps, in input pixels from the unit's own position."""
    return jump * (axis.span - 2 * axis.lo)


def _line_nanoseconds(move: SpatialMap, kernel: int, axis: int) -> float:
    """As `TransferFunction.line_nanoseconds`, of one map."""
    if isinstance(move.taps, np.ndarray):
        return kernel * cost.PHASE_NANOSECONDS
    taps = move.axis_taps(axis)
    if taps is None and kernel >= LONG_KERNEL:
        return cost.LONG_NANOSECONDS
    even = taps is None or np.array_equal(taps, taps[::-1])
    return kernel // 2 * cost.SINE_NANOSECONDS if even else kernel * cost.PHASE_NANOSECONDS


# --- exponents ------------------------------------------------------------------------------

Extent = tuple[tuple[int, int], ...]
"""First and last exponent per axis."""


class Extents:
    """Which exponents occur."""

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim

    def one(self) -> Extent:
        return ((0, 0),) * self.ndim

    def of(self, move: SpatialMap, jump: Jump) -> Extent:
        return tuple(
            (-j * a.lo, j * (a.span - a.lo)) for a, j in zip(_windows(move), jump, strict=True)
        )

    def mixed(self, terms: Sequence[tuple[float, Extent]]) -> Extent:
        axes = zip(*(extent for _, extent in terms), strict=True)
        return tuple((min(lo for lo, _ in ends), max(hi for _, hi in ends)) for ends in axes)

    def times(self, a: Extent, b: Extent) -> Extent:
        return tuple((p + r, q + s) for (p, q), (r, s) in zip(a, b, strict=True))

    def power(self, a: Extent, n: int) -> Extent:
        return tuple((n * lo, n * hi) for lo, hi in a)


# --- the moment generating function ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Exponential:
    """F(e^θ) = exp(log + θ·centre/2), with an array of logarithms."""

    log: Array
    centre: int


class Exponentials:
    """F at z = e^θ along one axis and 1 on the others, for an array of real θ."""

    def __init__(self, axis: int, theta: Array) -> None:
        self.axis, self.theta = axis, theta

    def one(self) -> Exponential:
        return Exponential(np.zeros_like(self.theta), 0)

    def of(self, move: SpatialMap, jump: Jump) -> Exponential:
        window, j = list(_windows(move))[self.axis], jump[self.axis]
        taps, spacing = _marginal(move, self.axis), j * window.dilation
        log = _log_sum(taps, window.kernel, self.theta * spacing) + math.log(move.gain)
        return Exponential(log, _centre(window, j))

    def mixed(self, terms: Sequence[tuple[float, Exponential]]) -> Exponential:
        (share, first), *others = terms
        log = first.log + math.log(share)
        for share, value in others:
            own = value.log + (math.log(share) + self.theta * ((value.centre - first.centre) / 2))
            log = np.logaddexp(log, own)
        return Exponential(log, first.centre)

    def times(self, a: Exponential, b: Exponential) -> Exponential:
        return Exponential(a.log + b.log, a.centre + b.centre)

    def power(self, a: Exponential, n: int) -> Exponential:
        return Exponential(n * a.log, n * a.centre)


def _marginal(move: SpatialMap, axis: int) -> Array | None:
    """The variances along one axis, summed over the others; None where all are equal."""
    if not isinstance(move.taps, np.ndarray):
        return move.axis_taps(axis)
    others = tuple(a for a in range(move.taps.ndim) if a != axis)
    total: Array = move.taps.sum(axis=others)
    return total


def _log_sum(taps: Array | None, kernel: int, x: Array) -> Array:
    """ln Σ_m taps[m]·e^{x·(m − (k−1)/2)}, with taps of sum 1."""
    if kernel == 1:
        return np.zeros_like(x)
    if taps is not None:
        place = np.arange(kernel) - (kernel - 1) / 2
        with np.errstate(divide="ignore"):
            logs = np.log(taps)
        total: Array = np.empty(x.shape)
        step = max(1, SLAB // kernel)
        for at in range(0, x.size, step):
            terms = logs + x.ravel()[at : at + step, None] * place
            top = terms.max(axis=-1)
            terms -= top[:, None]
            total.ravel()[at : at + step] = top + np.log(np.exp(terms, out=terms).sum(axis=-1))
        return total
    # sinh(k·x/2)/(k·sinh(x/2)), with the growing exponentials taken out.
    size = np.abs(x)
    away = np.where(size > 0, size, 1.0)
    ratio = np.expm1(-kernel * away) / (kernel * np.expm1(-away))
    return np.where(size > 0, np.log(ratio) + (kernel - 1) / 2 * size, 0.0)


# --- frequencies ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Frequencies:
    """ω = 2π·index/period along one axis."""

    period: int
    index: NDArray[np.int64]

    def turns(self, exponent: Any) -> Array:
        """ω·exponent/2 as a multiple t of π/period, reduced exactly to −period ≤ t < period.

        `exponent` counts half pixels, so e = 2 is z itself; the reduction in whole numbers keeps
        large angles as accurate as small ones.
        """
        n = self.period
        turns: Array = (self.index * exponent + n) % (2 * n) - n
        return turns

    def phase(self, exponent: int) -> Array:
        """z^{exponent/2} = e^{−iω·exponent/2}."""
        angle = self.turns(exponent) * (math.pi / self.period)
        return np.cos(angle) - 1j * np.sin(angle)

    def defect(self, exponent: Any) -> Array:
        """1 − z^{exponent/2}, accurate where it is small."""
        angle = self.turns(exponent) * (math.pi / self.period)
        return 2 * np.sin(angle / 2) ** 2 + 1j * np.sin(angle)

    def even_defect(self, exponent: Any) -> Array:
        """1 − cos(ω·exponent/2)."""
        half = self.turns(exponent) * (math.pi / (2 * self.period))
        squared: Array = 2 * np.sin(half) ** 2
        return squared

    def taps_defect(self, taps: Array | None, kernel: int, spacing: int) -> Array:
        """1 − Σ_m taps[m]·z^{spacing·(m − (k−1)/2)} for taps of sum 1; real if symmetric."""
        if taps is None and kernel >= LONG_KERNEL:
            return self._long_defect(kernel, spacing)
        weights = np.full(kernel, 1 / kernel) if taps is None else taps
        exponents = spacing * (2 * np.arange(kernel) - (kernel - 1))
        of_tap: Callable[[Any], Array] = self.defect
        if np.array_equal(weights, weights[::-1]):
            half = (kernel + 1) // 2  # from the centre out; a tap on the centre itself has no part
            weights, exponents, of_tap = 2 * weights[half:], exponents[half:], self.even_defect
        # Some taps at a time, of long kernels and many frequencies.
        step = max(1, SLAB // max(1, self.index.size))
        defect: Array = weights[:step] @ of_tap(exponents[:step, None])
        for at in range(step, len(weights), step):
            defect += weights[at : at + step] @ of_tap(exponents[at : at + step, None])
        return defect

    def _long_defect(self, kernel: int, spacing: int) -> Array:
        """1 − sin(kx)/(k·sin x) with x = ω·spacing/2."""
        n, turns = self.period, self.turns(spacing)
        near = (turns + n // 2) % n - n // 2  # x to the nearest multiple of π
        x = near * (math.pi / n)
        small = np.abs(kernel * x) < 1
        inner, outer = np.where(small, x, 0.0), np.where(small, 1.0, x)
        wide = (kernel * near + n) % (2 * n) - n
        defect: Array = np.where(
            small,
            -np.expm1(_log_sinc(kernel * inner) - _log_sinc(inner)),
            1 - np.sin(wide * (math.pi / n)) / (kernel * np.sin(outer)),
        )
        if kernel % 2 == 0:  # sin(kx)/sin(x) changes sign from one multiple of π to the next
            defect = np.where((turns - near) % (2 * n) == n, 2 - defect, defect)
        return defect


def _log_sinc(y: Array) -> Array:
    """ln(sin(y)/y) = −Σ_m ζ(2m)/m·(y/π)^{2m} for |y| ≤ 1, where 16 terms reach 1e-17."""
    from scipy.special import zeta

    order = np.arange(1, 17)
    coefficients = np.concatenate([[0.0], -zeta(2 * order) / order])
    value: Array = np.polynomial.polynomial.polyval((y / math.pi) ** 2, coefficients)
    return value


@dataclass(frozen=True, slots=True)
class Modulus:
    """|F| ≤ e^log_mass · bound."""

    log_mass: float
    bound: Array


class Moduli:
    """An upper bound of |F| along one axis, whatever the frequencies on the other axes.

    All variances are nonnegative, so that |F| is at most the sum over paths of the factors'
    moduli. Where the bound is far below the image's peak, F need not be computed.
    """

    ROUNDING = 4 * np.finfo(np.float64).eps
    """Added to each factor's modulus: what it may have lost to rounding."""

    def __init__(self, axis: int, frequencies: Frequencies) -> None:
        self.axis, self.frequencies = axis, frequencies

    def one(self) -> Modulus:
        return Modulus(0.0, np.ones(self.frequencies.index.size))

    def of(self, move: SpatialMap, jump: Jump) -> Modulus:
        window = list(_windows(move))[self.axis]
        spacing = jump[self.axis] * window.dilation
        if isinstance(move.taps, np.ndarray):
            lines = np.moveaxis(move.taps, self.axis, 0).reshape(window.kernel, -1)
            exponents = 2 * spacing * np.arange(window.kernel)
            waves = 1 - self.frequencies.defect(exponents[:, None])
            bound = np.abs(lines.T @ waves).sum(axis=0)
        else:
            taps = move.axis_taps(self.axis)
            bound = np.abs(1 - self.frequencies.taps_defect(taps, window.kernel, spacing))
        return Modulus(math.log(move.gain), np.minimum(bound + self.ROUNDING, 1.0))

    def mixed(self, terms: Sequence[tuple[float, Modulus]]) -> Modulus:
        log_mass, weights = _weights([math.log(share) + m.log_mass for share, m in terms])
        bound = sum(w * m.bound for w, (_, m) in zip(weights, terms, strict=True))
        return Modulus(log_mass, np.asarray(bound))

    def times(self, a: Modulus, b: Modulus) -> Modulus:
        return Modulus(a.log_mass + b.log_mass, a.bound * b.bound)

    def power(self, a: Modulus, n: int) -> Modulus:
        return Modulus(n * a.log_mass, a.bound**n)


def _weights(logs: Sequence[float]) -> tuple[float, list[float]]:
    """ln Σ e^log, and each summand's share of the sum."""
    top = max(logs)
    parts = [math.exp(log - top) for log in logs]
    total = math.fsum(parts)
    return top + math.log(total), [part / total for part in parts]


@dataclass(frozen=True, slots=True)
class Wave:
    """F = e^log_mass · Π_a z_a^{centre_a/2} · Π_parts (1 − part).

    Attributes:
        log_mass: ln F at ω = 0.
        centre: in half pixels, per axis.
        parts: defects, each shaped to broadcast over the grid: one per axis for what is a
            function of this axis' frequency alone, on the host, and last one for what is a function
            of all, an array of the namespace of `Waves`. None is 0.
    """

    log_mass: float
    centre: tuple[int, ...]
    parts: tuple[Array | None, ...]

    @property
    def separable(self) -> bool:
        """Whether F is a product of one function per axis."""
        return self.parts[-1] is None


class Waves:
    """F at z = e^{−iω} on a grid of frequencies.

    Args:
        grid: one `Frequencies` per axis.
        xp: array namespace of what depends on all axes.
    """

    def __init__(self, grid: Sequence[Frequencies], xp: Any = np) -> None:
        self.grid, self.xp = tuple(grid), xp

    def one(self) -> Wave:
        n = len(self.grid)
        return Wave(0.0, (0,) * n, (None,) * (n + 1))

    def of(self, move: SpatialMap, jump: Jump) -> Wave:
        windows = list(_windows(move))
        spacings = [j * w.dilation for j, w in zip(jump, windows, strict=True)]
        centre = tuple(_centre(w, j) for w, j in zip(windows, jump, strict=True))
        parts: list[Array | None] = [None] * (len(windows) + 1)
        if isinstance(move.taps, np.ndarray):
            defects = [
                grid.defect(h * (2 * np.arange(w.kernel) - (w.kernel - 1))[:, None])
                for grid, h, w in zip(self.grid, spacings, windows, strict=True)
            ]
            device = [self.xp.asarray(values) for values in (move.taps, *defects)]
            parts[-1] = _dense_defect(device[0], device[1:], self.xp)
        else:
            for a, (w, h) in enumerate(zip(windows, spacings, strict=True)):
                if w.kernel > 1:
                    own = self.grid[a].taps_defect(move.axis_taps(a), w.kernel, h)
                    parts[a] = along(own, a, len(windows))
        return Wave(math.log(move.gain), centre, tuple(parts))

    def mixed(self, terms: Sequence[tuple[float, Wave]]) -> Wave:
        (share, first), *others = terms
        if not others:
            # Whoever reads this plane needs its parts together: once here, not once for each.
            parts = first.parts
            if not first.separable:
                parts = (*(None for _ in self.grid), joined(first, self.xp))
            return Wave(first.log_mass + math.log(share), first.centre, parts)
        log_mass, weights = _weights([math.log(share) + wave.log_mass for share, wave in terms])
        defect: Array | None = None
        for weight, (_, wave) in zip(weights, terms, strict=True):
            moves = (e - f for e, f in zip(wave.centre, first.centre, strict=True))
            phases = (
                self.xp.asarray(along(self.grid[a].defect(e), a, len(self.grid))) if e else None
                for a, e in enumerate(moves)
            )
            own = reduce(compose, phases, joined(wave, self.xp))
            if own is not None:
                own = weight * own
                if defect is None:
                    defect = own
                elif (defect.shape, defect.dtype) == (own.shape, own.dtype):
                    defect += own
                else:
                    defect = defect + own
        return Wave(log_mass, first.centre, (*(None for _ in self.grid), defect))

    def times(self, a: Wave, b: Wave) -> Wave:
        centre = tuple(p + q for p, q in zip(a.centre, b.centre, strict=True))
        parts = tuple(compose(p, q) for p, q in zip(a.parts, b.parts, strict=True))
        return Wave(a.log_mass + b.log_mass, centre, parts)

    def power(self, a: Wave, n: int) -> Wave:
        powered = squared_up(self, replace(a, log_mass=0.0), n)
        return replace(powered, log_mass=n * a.log_mass)


def _dense_defect(taps: Array, defects: Sequence[Array], xp: Any) -> Array:
    """Σ_m taps[m]·(1 − Π_a (1 − defects[a][m_a])), axis by axis with 1 − (1−e)(1−f) = e + f − ef.

    Args:
        taps: shape (k_1, …, k_n).
        defects: per axis, shape (k_a, frequencies).
        xp: namespace of these arrays.
    """
    own, *rest = defects
    if not rest:
        line: Array = taps @ own
        return line
    inner = xp.stack([_dense_defect(slab, rest, xp) for slab in taps])
    alone = taps.reshape(len(taps), -1).sum(axis=1) @ own
    result: Array = (
        alone.reshape(-1, *(1 for _ in rest)) + inner.sum(axis=0) - xp.tensordot(own.T, inner, 1)
    )
    return result


def compose(a: Array | None, b: Array | None) -> Array | None:
    """The defect of a product: 1 − (1 − a)(1 − b) = a + b·(1 − a)."""
    if a is None or b is None:
        return b if a is None else a
    if a.size > b.size:
        a, b = b, a
    product: Array = b * (1 - a)
    product += a
    return product


def joined(wave: Wave, xp: Any = np) -> Array | None:
    """The defect of all parts together, as an array of a namespace."""
    parts = (None if part is None else xp.asarray(part) for part in wave.parts)
    return reduce(compose, parts, None)
