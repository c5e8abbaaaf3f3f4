"""Moments of the effective receptive field of any graph on the unbounded grid, without an image.

The gradient that starts on one unit is a distribution of positions. One layer back, a position o
becomes i = o·s + m·d − lo with a tap m drawn by the layer's variances, independently of o, so the
cumulants of the two add (Luo et al. 2016, section 2.2); where paths meet, distributions mix. Both
are done with cumulants about a moving origin, so nothing cancels at any depth, and masses are
mantissas and exponents, so no gain over- or underflows.

Transposed convolutions and resizing treat a position by its **residue class**: of an output of a
×2 upsampling, even and odd positions read different taps. A plane therefore carries one
distribution per class of the positions modulo q, jointly over the axes, with the q that the
layers between it and the input need. Where there is no upsampling q = 1, and a layer costs one
addition of cumulants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import groupby
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastrf.errors import InputError, UnboundedError
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import IDENTITY, AxisMap, Size, Spread, Table, Window

Floats: TypeAlias = NDArray[np.float64]
Indices: TypeAlias = NDArray[np.int64]
Position: TypeAlias = int | Fraction

FAR = 4096
"""Binary exponents further apart than this are as good as infinitely far apart in float64."""


@dataclass(frozen=True, slots=True)
class Mass:
    """The positive number mantissa · 2^exponent, of any size (or an array of them).

    Ratios of two masses keep full relative accuracy, which differences of large logarithms lose.
    """

    mantissa: Any
    exponent: int = 0

    @property
    def log(self) -> Any:
        """Natural logarithm; −∞ where the mass is 0."""
        with np.errstate(divide="ignore"):
            return np.log(self.mantissa) + self.exponent * math.log(2)

    def times(self, factor: float) -> Mass:
        """This mass times a finite factor."""
        fraction, power = math.frexp(factor)
        return _normal(self.mantissa * fraction, self.exponent + power)

    def plus(self, other: Mass) -> Mass:
        """The sum of two masses."""
        top = max(self.exponent, other.exponent)
        return _normal(self.at(top) + other.at(top), top)

    def at(self, exponent: int) -> Any:
        """The number divided by 2^exponent, as a float."""
        shift = self.exponent - exponent
        return np.ldexp(self.mantissa, max(-FAR, min(FAR, shift))) if shift else self.mantissa

    def ratio(self, other: Mass) -> Any:
        """This mass divided by the other one, as a float (0 or ∞ where that is out of range)."""
        with np.errstate(over="ignore", under="ignore"):
            return np.ldexp(
                self.mantissa / other.mantissa,
                max(-FAR, min(FAR, self.exponent - other.exponent)),
            )


def _normal(mantissa: Any, exponent: int) -> Mass:
    """The same number, its largest mantissa within 2^±64 of 1."""
    peak = mantissa if isinstance(mantissa, float) else mantissa.max()
    power = math.frexp(peak)[1]
    if -64 < power < 64:
        return Mass(mantissa, exponent)
    return Mass(np.ldexp(mantissa, -power), exponent + power)


@dataclass(frozen=True)
class Moments:
    """Moments of the effective receptive field of one unit, or of an array of units.

    Everything but the mass is of the image normalised to sum 1, and NaN where its mass is 0. For
    one unit the leading dimensions below are absent.

    Attributes:
        mass: sum of the image for gradient variance 1 on the unit, shape (…).
        mean: centre in input pixel indices (first pixel 0), shape (…, n).
        covariance: in pixels², shape (…, n, n).
        third: third central moment per axis, in pixels³, shape (…, n).
        fourth_cumulant: κ₄ per axis (fourth central moment less 3σ⁴), in pixels⁴, shape (…, n).
    """

    mass: Mass
    mean: Floats
    covariance: Floats
    third: Floats
    fourth_cumulant: Floats

    @property
    def log_mass(self) -> Any:
        """Natural logarithm of the mass: the log gain from the unit to the input."""
        return self.mass.log

    @cached_property
    def std(self) -> Floats:
        """Standard deviation per axis, in pixels, shape (…, n)."""
        variances = np.diagonal(self.covariance, axis1=-2, axis2=-1)
        # The variance of a single pixel may round to just below 0.
        return np.asarray(np.sqrt(np.maximum(variances, 0.0)))

    @property
    def skewness(self) -> Floats:
        """Third central moment / σ³ per axis, shape (…, n); NaN where σ is 0."""
        return np.asarray(self.third / np.where(self.std > 0, self.std, np.nan) ** 3)

    @property
    def kurtosis(self) -> Floats:
        """Excess kurtosis κ₄/σ⁴ per axis, shape (…, n); NaN where σ is 0."""
        return np.asarray(self.fourth_cumulant / np.where(self.std > 0, self.std, np.nan) ** 4)


def moments(graph: PlaneGraph, node: str | None, unit: Any, input: str | None = None) -> Moments:
    """Moments of the effective receptive field of one unit on the unbounded grid.

    Args:
        graph: a network lowered without an input size.
        node: name of a node or end point, None for the output.
        unit: "center" or one index per axis of the node's map.
        input: the input map that the field lies on; needed where there are several.

    Raises:
        UnboundedError: a layer on the way reads the whole map.
        InputError: the graph has an input size, a name or index is unknown, or the node does not
            depend on the input.
    """
    if graph.input_size is not None:
        raise InputError(
            f"the network was lowered for input_size={graph.input_size}, where borders clip the "
            f"field; use forward_moments, or lower it without an input size"
        )
    target, source = graph.output_node(node), graph.input_node(input)
    walk = _Walk(graph, source)
    return walk.result(walk.backwards(target, graph.unit_index(target, unit)))


def unclipped_mass(graph: PlaneGraph, node: str | None, input: str | None = None) -> Mass:
    """Mass of the field of any unit of `node` if no border clipped it: the gains along all paths.

    A unit of a known input size has lost the share 1 − mass.ratio(unclipped_mass) at borders.

    Raises:
        InputError: a map on the way has not one gain for all pixels, so the mass may depend on the
            unit (then `moments` of that unit on the unbounded grid has it), or the node does not
            depend on the input.
    """
    target, source = graph.output_node(node), graph.input_node(input)
    wanted = graph.ancestors(target)
    masses = {p: Mass(1.0) for p in graph.planes_of[source]}
    for op in graph.operations:
        read = [(p, share) for p, share in op.sources if p in masses]
        if op.node not in wanted or not read:
            continue
        if not all(has_one_gain(axis) for m in op.maps for axis in m.axes):
            raise InputError(
                f"{op.node}: only networks of windows (convolutions, pooling away from borders) "
                f"have one mass for all units; use moments() without an input size"
            )
        mass = _total((masses[p], share) for p, share in read).times(op.gain)
        for m in op.maps:
            mass = mass.times(m.gain)
            for axis in m.axes:
                if isinstance(axis, Table):
                    mass = mass.times(float(axis.taps[0].sum()))
        for p, share in op.targets:
            own = mass.times(share)
            masses[p] = masses[p].plus(own) if p in masses else own
    found = [(masses[p], graph.planes[p].share) for p in graph.planes_of[target] if p in masses]
    if not found:
        raise _unconnected(target, source)
    return _total(found)


def has_one_gain(axis: AxisMap) -> bool:
    """Whether all outputs along an axis gather as much."""
    if not isinstance(axis, Table):
        return isinstance(axis, Window)
    sums = axis.taps.sum(axis=1)
    return bool(np.ptp(sums) <= 4 * np.finfo(np.float64).eps * sums.max())


def _total(parts: Iterable[tuple[Mass, float]]) -> Mass:
    first, *others = [mass.times(share) for mass, share in parts]
    for mass in others:
        first = first.plus(mass)
    return first


def _unconnected(node: str, source: str) -> InputError:
    return InputError(
        f"{node!r} does not depend on the input {source!r}; ask for a node behind that input"
    )


# --- distributions --------------------------------------------------------------------------
# Cumulants of one distribution are one row: mean, third and fourth cumulant (n each, per axis)
# and the covariance (n·n). Adding independent variables adds rows, scaling them scales rows.


@dataclass(frozen=True, slots=True)
class _Cloud:
    """The gradient on one plane: one distribution of positions per residue class modulo q.

    Means count from `origin`, an exact position close to all of them, so that the distance
    between two paths stays exact however far from pixel 0 they are.
    """

    modulus: Size
    origin: tuple[Position, ...]
    mass: Mass  # array of shape (classes,)
    rows: Floats  # (classes, 3n + n²)


def _scale_row(scale: Floats) -> Floats:
    return np.concatenate([scale, scale**3, scale**4, np.outer(scale, scale).ravel()])


def _mixture(weights: Floats, rows: Floats, starts: Indices, n: int) -> tuple[Floats, Floats]:
    """Mixes consecutive components; segment j begins at starts[j].

    Args:
        weights: (components,), at least 0.
        rows: (components, 3n + n²) cumulants.

    Returns:
        Total weight (segments,) and cumulants (segments, 3n + n²); those of a segment without
        weight are meaningless but finite.

    With δ the distance of a component's mean from the mixture's and e = κ₂ + δ²:
    κ₂ = ⟨e⟩, κ₃ = ⟨κ₃ + 3κ₂δ + δ³⟩, κ₄ = ⟨κ₄ + 4κ₃δ − 2δ⁴⟩ + 3⟨(e − ⟨e⟩)²⟩. Averages are taken
    of differences from each segment's first component, which are small where κ is not, and are
    divided by the weight last, so that equal weights of whole numbers stay exact.
    """
    total = np.add.reduceat(weights, starts)
    divisor = np.where(total > 0, total, 1.0)[:, None]
    segment = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(weights)))
    column = weights[:, None]

    def average(values: Floats) -> Floats:
        sums: Floats = np.add.reduceat(column * values, starts)
        return sums / divisor

    first = rows[starts]
    away = rows - first[segment]
    linear = average(away)
    offset = away[:, :n] - linear[segment, :n]
    square = offset**2
    variance = away[:, 3 * n :: n + 1]
    excess = variance + square
    excess = excess - average(excess)[segment]
    bend = np.empty_like(away)
    bend[:, :n] = 0.0
    bend[:, n : 2 * n] = (3 * variance + square) * offset
    bend[:, 2 * n : 3 * n] = 4 * away[:, n : 2 * n] * offset - 2 * square**2 + 3 * excess**2
    bend[:, 3 * n :] = (offset[:, :, None] * offset[:, None, :]).reshape(len(rows), n * n)
    return total, first + linear + average(bend)


# --- one map --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Move:
    """A map, or some of its axes, as steps between residue classes, sorted by class reached.

    Step l takes the positions of class source[l], scales them, adds an independent variable with
    cumulants rows[l] and keeps the share weight[l]; the steps from starts[j] on mix into class
    reached[j]. On axis a the origin A becomes (A·times + plus)/over, origin[a] = (times, plus,
    over).
    """

    modulus: Size
    source: Indices
    starts: Indices
    reached: Indices
    weight: Floats
    rows: Floats
    scale: Floats
    origin: tuple[tuple[int, int, int], ...]

    def __call__(self, cloud: _Cloud) -> _Cloud:
        n, classes = len(self.modulus), math.prod(self.modulus)
        weights = cloud.mass.mantissa[self.source] * self.weight
        rows = cloud.rows[self.source] * self.scale + self.rows
        if len(self.starts) < len(self.source):
            weights, rows = _mixture(weights, rows, self.starts, n)
        if len(self.reached) < classes:
            weights = _scattered(weights, self.reached, classes)
            rows = _scattered(rows, self.reached, classes)
        origin = tuple(
            a * times + plus if over == 1 else Fraction(a * times + plus, over)
            for a, (times, plus, over) in zip(cloud.origin, self.origin, strict=True)
        )
        return _Cloud(self.modulus, origin, Mass(weights, cloud.mass.exponent), rows)


def _scattered(values: Floats, at: Indices, size: int) -> Floats:
    result = np.zeros((size, *values.shape[1:]))
    result[at] = values
    return result


@dataclass(frozen=True, slots=True)
class _AxisSteps:
    """One axis of a map: a step for every residue class and tap that meet."""

    tap: Indices
    source: Indices
    reached: Indices
    weight: Floats
    shift: Floats
    scale: float
    origin: tuple[int, int, int]


def _axis_steps(axis: AxisMap, q_y: int, q_x: int) -> _AxisSteps:
    """How positions of classes modulo q_y on y move to classes modulo q_x on x."""
    r = np.arange(q_y)[:, None]
    if isinstance(axis, Table):
        phase = r % axis.period
        tap = np.broadcast_to(np.arange(axis.taps.shape[1]), (q_y, axis.taps.shape[1]))
        reached = axis.starts[phase] + axis.advance * (r // axis.period) + tap
        weight = axis.taps[phase, tap]
        shift = axis.starts[phase] + tap - phase * axis.advance / axis.period
        meets, scale = weight > 0, axis.advance / axis.period
        origin = (axis.advance, 0, axis.period)
    elif isinstance(axis, Window | Spread):
        tap, middle = np.arange(axis.kernel), axis.span // 2
        step = tap * axis.dilation - middle
        weight = np.ones((q_y, axis.kernel))
        if isinstance(axis, Window):
            reached = r * axis.stride + step + (middle - axis.lo)
            meets, shift, scale = weight > 0, step * weight, float(axis.stride)
            origin = (axis.stride, middle - axis.lo, 1)
        else:
            reached, rest = np.divmod(r + (axis.lo - middle) - step, axis.stride)
            meets, shift, scale = rest == 0, step * weight / -axis.stride, 1 / axis.stride
            origin = (1, axis.lo - middle, axis.stride)
    else:
        raise TypeError(f"{axis!r} has no residue classes")
    source, tap = np.broadcast_arrays(r, tap)
    return _AxisSteps(
        tap[meets], source[meets], reached[meets] % q_x, weight[meets], shift[meets], scale, origin
    )


def _modulus_above(axis: AxisMap, q: int) -> int:
    """The modulus needed on y so that a class of y leads to one class modulo q on x."""
    if isinstance(axis, Window):
        return q // math.gcd(q, axis.stride)
    if isinstance(axis, Spread):
        return q * axis.stride
    if isinstance(axis, Table):
        return axis.period * (q // math.gcd(q, axis.advance))
    return 1


def _move(
    axes: Sequence[AxisMap],
    taps: dict[int, Floats | None] | Floats,
    on: tuple[int, ...],
    before: Size,
    after: Size,
) -> _Move:
    """The steps of the axes `on` together, the other axes standing still.

    Args:
        taps: the variances of the taps by axis (None: equal), or, for all axes, the joint ones.
        before, after: moduli on y and on x; they differ on the axes `on` at most.
    """
    n = len(axes)
    steps = {a: _axis_steps(axes[a], before[a], after[a]) for a in on}
    grid = np.indices([len(steps[a].tap) for a in on]).reshape(len(on), -1)
    pick = dict(zip(on, grid, strict=True))
    weight, divisor = np.ones(grid.shape[1]), 1
    for a in on:
        weight = weight * steps[a].weight[pick[a]]
        axis = axes[a]
        if isinstance(taps, dict) and not isinstance(axis, Table):
            own = taps[a]
            if own is not None:
                weight = weight * own[steps[a].tap[pick[a]]]
            elif isinstance(axis, Window | Spread):
                divisor *= axis.kernel
    if not isinstance(taps, dict):
        weight = weight * taps[tuple(steps[a].tap[pick[a]] for a in on)]
    rows = np.zeros((len(weight), 3 * n + n * n))
    for a in on:
        rows[:, a] = steps[a].shift[pick[a]]
    q_y, q_x = tuple(before[a] for a in on), tuple(after[a] for a in on)
    source = np.ravel_multi_index([steps[a].source[pick[a]] for a in on], q_y)
    reached = np.ravel_multi_index([steps[a].reached[pick[a]] for a in on], q_x)

    # Taps that lead from one class to one class act as one random variable.
    pair = source * math.prod(q_x) + reached
    order = np.argsort(pair, kind="stable")
    _, starts = np.unique(pair[order], return_index=True)
    weight, rows = _mixture(weight[order], rows[order], starts, n)
    source, reached = source[order][starts], reached[order][starts]

    # The same for every class of the other axes.
    source, reached = _members(before, on)[source], _members(after, on)[reached]
    others = source.shape[1]
    order = np.argsort(reached.ravel(), kind="stable")
    targets, starts = np.unique(reached.ravel()[order], return_index=True)
    scale = np.ones(n)
    for a in on:
        scale[a] = steps[a].scale
    return _Move(
        after,
        source.ravel()[order],
        starts,
        targets,
        np.repeat(weight / divisor, others)[order],
        np.repeat(rows, others, axis=0)[order],
        _scale_row(scale),
        tuple(steps[a].origin if a in steps else (1, 0, 1) for a in range(n)),
    )


def _members(modulus: Size, on: tuple[int, ...]) -> Indices:
    """Joint classes as a table: one row per class of the axes `on`."""
    rest = [a for a in range(len(modulus)) if a not in on]
    table = np.arange(math.prod(modulus)).reshape(modulus).transpose([*on, *rest])
    return table.reshape(math.prod(modulus[a] for a in on), -1)


def _joined(moves: Sequence[_Move]) -> _Move:
    """Moves of different axes, each of one step, as one."""
    first = moves[0]
    for other in moves[1:]:
        first = replace(
            other,
            weight=first.weight * other.weight,
            rows=first.rows * other.scale + other.rows,
            scale=first.scale * other.scale,
            origin=tuple(
                mine if mine != (1, 0, 1) else theirs
                for mine, theirs in zip(first.origin, other.origin, strict=True)
            ),
        )
    return first


# --- the graph ------------------------------------------------------------------------------


class _Walk:
    """One walk from a unit down to an input."""

    def __init__(self, graph: PlaneGraph, source: str) -> None:
        self.graph, self.source, self.n = graph, source, graph.ndim
        self.still: Size = (1,) * graph.ndim
        self._moves: dict[Any, tuple[_Move, ...]] = {}
        self.moduli: dict[int, Size] = dict.fromkeys(graph.planes_of[source], self.still)
        for op in graph.operations:
            path = self._path(op)
            if path:
                for p, _ in op.targets:
                    self.moduli[p] = _common(path[-1], self.moduli.get(p, path[-1]))

    def _path(self, op: Operation) -> list[Size]:
        """The moduli before, between and behind the maps; [] where no source sees the input."""
        read = [self.moduli[p] for p, _ in op.sources if p in self.moduli]
        if not read:
            return []
        path = [read[0]]
        for q in read[1:]:
            path[0] = _common(path[0], q)
        for m in op.maps:
            pairs = zip(m.axes, path[-1], strict=True)
            path.append(tuple(_modulus_above(axis, q) for axis, q in pairs))
        return path

    def backwards(self, target: str, unit: tuple[int, ...]) -> _Cloud:
        """The gradient on the input for gradient variance 1 on the unit."""
        graph = self.graph
        arrived: dict[int, list[tuple[_Cloud, float]]] = {}
        for p in graph.planes_of[target]:
            if p in self.moduli:
                arrived[p] = [(self._point(unit, self.moduli[p]), graph.planes[p].share)]
        if not arrived:
            raise _unconnected(target, self.source)
        for node, operations in groupby(reversed(graph.operations), key=lambda op: op.node):
            # Whatever reads these planes lies behind them and has handed its gradient back.
            own = {
                p: self._merged(arrived.pop(p), self.moduli[p])
                for p in graph.planes_of[node]
                if p in arrived
            }
            for op in operations if own else ():
                parts = [(own[p], share) for p, share in op.targets if p in own]
                path = self._path(op)
                if not parts or not path:
                    continue
                cloud = self._through(op, self._merged(parts, path[-1]), path)
                for p, share in op.sources:
                    if p in self.moduli:
                        folded = self._folded(cloud, self.moduli[p])
                        arrived.setdefault(p, []).append((folded, share))
        reached = [part for p in graph.planes_of[self.source] for part in arrived.get(p, ())]
        return self._merged(reached, self.still)

    def result(self, cloud: _Cloud) -> Moments:
        """The moments of a gradient of one class."""
        n, row = self.n, cloud.rows[0]
        if not cloud.mass.mantissa[0] > 0:
            row = np.full_like(row, np.nan)
        return Moments(
            Mass(float(cloud.mass.mantissa[0]), cloud.mass.exponent),
            np.array([float(a) for a in cloud.origin]) + row[:n],
            row[3 * n :].reshape(n, n),
            row[n : 2 * n],
            row[2 * n : 3 * n],
        )

    def _point(self, unit: tuple[int, ...], modulus: Size) -> _Cloud:
        classes = math.prod(modulus)
        mass = np.zeros(classes)
        residue = [u % q for u, q in zip(unit, modulus, strict=True)]
        mass[np.ravel_multi_index(residue, modulus)] = 1.0
        rows = np.zeros((classes, 3 * self.n + self.n**2))
        return _Cloud(modulus, unit, Mass(mass), rows)

    def _through(self, op: Operation, cloud: _Cloud, path: list[Size]) -> _Cloud:
        if op.is_global:
            raise UnboundedError(
                f"{op.node} reads the whole map, which has no end on the unbounded grid; "
                f"give input_size, or ignore_global=True to leave it out"
            )
        for m, after in zip(reversed(op.maps), reversed(path[:-1]), strict=True):
            for move in self._moves_of(m.axes, m.taps, cloud.modulus, after):
                cloud = move(cloud)
            cloud = _weighed(cloud, m.gain)
        return _weighed(cloud, op.gain)

    def _moves_of(
        self, axes: tuple[AxisMap, ...], taps: Any, before: Size, after: Size
    ) -> tuple[_Move, ...]:
        """The moves of a map; equal maps share them."""
        key = (axes, _taps_key(taps), before, after)
        moves = self._moves.get(key)
        if moves is not None:
            return moves
        if isinstance(taps, np.ndarray):
            moves = (_move(axes, taps, tuple(range(self.n)), before, after),)
        else:
            by_axis = dict(enumerate(taps or (None,) * self.n))
            found = []
            for a in range(self.n):
                between = (*after[: a + 1], *before[a + 1 :])
                found.append(_move(axes, by_axis, (a,), (*after[:a], *before[a:]), between))
            single = before == after == self.still
            moves = (_joined(found),) if single else tuple(found)
        self._moves[key] = moves
        return moves

    def _folded(self, cloud: _Cloud, modulus: Size) -> _Cloud:
        """The same gradient by classes of a smaller modulus."""
        if cloud.modulus == modulus:
            return cloud
        for move in self._moves_of((IDENTITY,) * self.n, None, cloud.modulus, modulus):
            cloud = move(cloud)
        return cloud

    def _merged(self, parts: Sequence[tuple[_Cloud, float]], modulus: Size) -> _Cloud:
        """The weighted sum of gradients on one plane, of classes of `modulus` where they are
        several."""
        clouds = [_weighed(cloud, share) for cloud, share in parts]
        if len(clouds) == 1:
            return clouds[0]
        clouds = [self._folded(cloud, modulus) for cloud in clouds]
        top = max(cloud.mass.exponent for cloud in clouds)
        weights = np.stack([cloud.mass.at(top) for cloud in clouds], axis=1)
        rows = np.stack([cloud.rows for cloud in clouds], axis=1)
        origin = clouds[int(np.argmax(weights.sum(axis=0)))].origin
        for i, cloud in enumerate(clouds):
            if cloud.origin != origin:
                pairs = zip(cloud.origin, origin, strict=True)
                rows[:, i, : self.n] += [float(mine - common) for mine, common in pairs]
        classes, count = weights.shape
        mass, rows = _mixture(
            weights.ravel(),
            rows.reshape(classes * count, -1),
            np.arange(0, classes * count, count),
            self.n,
        )
        return _Cloud(modulus, origin, _normal(mass, top), rows)


def _weighed(cloud: _Cloud, factor: float) -> _Cloud:
    if factor == 1.0:
        return cloud
    return _Cloud(cloud.modulus, cloud.origin, cloud.mass.times(factor), cloud.rows)


def _common(a: Size, b: Size) -> Size:
    return a if a == b else tuple(map(math.lcm, a, b))


def _taps_key(taps: Any) -> Any:
    """Equal for equal taps."""
    if isinstance(taps, np.ndarray):
        return taps.shape, taps.tobytes()
    return taps and tuple(None if v is None else v.tobytes() for v in taps)
