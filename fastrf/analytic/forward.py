"""Moments of the effective receptive fields of all units of a map of known size, borders and all.

The field of unit u is V = Aᵀe_u, so the sum of f·V over the input is (A f)[u]: f pushed
**forward** through the network as if it were an image, with padding worth 0. One pass with
f = 1, x, x², x³, x⁴ gives the moments of every unit at once, and runs no map backwards: a check
of clipped images that shares no step with the engines that compute them.

Powers of a coordinate far from its origin cancel, so each unit counts coordinates from its own
reference point: per axis and index of a map the mean of the units at that index. Where an index
of y reads one of x, the moments move from one reference point to the other by the binomial
theorem.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastrf.analytic.moments import Mass, Moments
from fastrf.errors import InputError
from fastrf.lowering import PlaneGraph
from fastrf.maps import AxisMap, Everything, SpatialMap, Spread, Table, Window

Floats: TypeAlias = NDArray[np.float64]
Selection: TypeAlias = slice | NDArray[np.int64]

EqualTaps = Window | Spread
"""The axis maps whose taps are equal where the map states none."""

ORDER = 4
"""The highest power of a coordinate that is carried."""

REFERENCE_GRID = 2.0**-16
"""Reference points are multiples of this (pixels), so that their differences are exact."""


def forward_moments(
    graph: PlaneGraph, node: str | None, units: Any = "all", input: str | None = None
) -> Moments:
    """Moments of the clipped effective receptive fields of a map's units.

    Args:
        graph: a network lowered for an input size.
        node: name of a node or end point, None for the output.
        units: "all", "center" or one index per axis.
        input: the input map that the fields lie on; needed where there are several.

    Returns:
        `Moments`, with the map's size as leading dimensions for "all", and none for one unit.
        The mass is what is left of the unit's gradient variance 1 after all gains and losses at
        borders.

    Raises:
        InputError: the graph has no input size, a name or index is unknown, or the node does not
            depend on the input.
    """
    target, source = graph.output_node(node), graph.input_node(input)
    size = graph.sizes[source]
    if size is None:
        raise InputError(
            "the network was lowered without an input size, where nothing clips the field; "
            "use moments, or lower it with input_size"
        )
    at = () if isinstance(units, str) and units == "all" else graph.unit_index(target, units)
    powers = _Powers(len(size))
    wanted, last = graph.ancestors(target), _last_readers(graph)
    images = {p: _coordinates(powers, size) for p in graph.planes_of[source]}
    for number, op in enumerate(graph.operations):
        read = [(images[p], share) for p, share in op.sources if p in images]
        if op.node in wanted and read:
            image = _sum(powers, read)
            for m in op.maps:
                image = _apply(powers, m, image)
            image = _weighed(image, op.gain)
            for p, share in op.targets:
                parts = [(image, share), *([(images[p], 1.0)] if p in images else [])]
                images[p] = _sum(powers, parts)
        for p, _ in op.sources:
            if last[p] == number and p not in graph.planes_of[target]:
                images.pop(p, None)
    planes = [(images[p], graph.planes[p].share) for p in graph.planes_of[target] if p in images]
    if not planes:
        raise InputError(
            f"{target!r} does not depend on the input {source!r}; ask for a node behind that input"
        )
    return _moments(powers, _sum(powers, planes), at)


def _last_readers(graph: PlaneGraph) -> dict[int, int]:
    return {p: i for i, op in enumerate(graph.operations) for p, _ in op.sources}


# --- images of powers -----------------------------------------------------------------------


class _Powers:
    """The powers x^e that are carried: up to x_a⁴ on each axis, and x_a·x_b."""

    def __init__(self, ndim: int) -> None:
        self.ndim = ndim
        mixed = [e for e in product(range(2), repeat=ndim) if sum(e) == 2]
        single = [
            tuple(q if a == b else 0 for b in range(ndim))
            for a in range(ndim)
            for q in range(1, ORDER + 1)
        ]
        self.number = {e: i for i, e in enumerate([(0,) * ndim, *single, *mixed])}
        # (power of the axis, its number, number of the same without it) … highest first, so that
        # moving to another reference point can be done in place.
        self.lowered = [
            sorted(
                (
                    (e[a], i, [self.number[(*e[:a], q, *e[a + 1 :])] for q in range(e[a])])
                    for e, i in self.number.items()
                    if e[a]
                ),
                reverse=True,
            )
            for a in range(ndim)
        ]

    def of(self, *axes: int) -> int:
        """The number of the product of the coordinates of `axes`."""
        return self.number[tuple(axes.count(a) for a in range(self.ndim))]

    def move(self, values: Floats, axis: int, by: Floats) -> None:
        """Counts coordinates from points `by` pixels further down: x + by for x, in place.

        Args:
            values: (powers, *size).
            by: one distance per index of the axis.
        """
        if not by.any():
            return
        by = by.reshape(_along(axis, self.ndim))
        for power, i, lower in self.lowered[axis]:
            for q, j in enumerate(lower):
                values[i] += math.comb(power, q) * by ** (power - q) * values[j]


def _along(axis: int, ndim: int) -> tuple[int, ...]:
    return tuple(-1 if a == axis else 1 for a in range(ndim))


@dataclass(slots=True)
class _Image:
    """Images of all powers on one plane, times 2^−exponent.

    Attributes:
        values: (powers, *size); powers of the distance from the unit's reference point.
        reference: per axis, the reference point of each index, in input pixels.
    """

    values: Floats
    reference: list[Floats]
    exponent: int = 0

    def weights(self, axis: int) -> Floats:
        """The mass at each index of an axis, summed over the other axes."""
        others = tuple(a for a in range(len(self.reference)) if a != axis)
        return np.asarray(self.values[0].sum(axis=others))


def _coordinates(powers: _Powers, size: tuple[int, ...]) -> _Image:
    """The powers on the input itself: each pixel is its own reference point."""
    values = np.zeros((len(powers.number), *size))
    values[0] = 1.0
    return _Image(values, [np.arange(n, dtype=np.float64) for n in size])


def _points(moment: Floats, mass: Floats) -> Floats:
    """Reference points from sums of position·mass and of mass; 0 where there is no mass."""
    points = np.divide(moment, mass, out=np.zeros_like(moment), where=mass > 0)
    return np.asarray(np.round(points / REFERENCE_GRID) * REFERENCE_GRID)


def _sum(powers: _Powers, parts: Sequence[tuple[_Image, float]]) -> _Image:
    """The weighted sum of images of one plane, as a new image with its peak mass near 1."""
    top = max(image.exponent for image, _ in parts)
    scaled = [
        share * np.ldexp(image.values, max(image.exponent - top, -4096)) for image, share in parts
    ]
    result = _Image(scaled[0], list(parts[0][0].reference), top)
    if len(parts) > 1:
        moved = [_Image(v, image.reference) for v, (image, _) in zip(scaled, parts, strict=True)]
        for axis in range(powers.ndim):
            weights = [image.weights(axis) for image in moved]
            moment = sum(
                (w * i.reference[axis] for w, i in zip(weights, moved, strict=True)),
                np.zeros_like(weights[0]),
            )
            result.reference[axis] = _points(moment, np.sum(weights, axis=0))
            for image in moved:
                by = image.reference[axis] - result.reference[axis]
                powers.move(image.values, axis, by)
        result.values = np.sum([image.values for image in moved], axis=0)
    peak = math.frexp(result.values[0].max())[1]
    return _Image(np.ldexp(result.values, -peak), result.reference, top + peak)


# --- maps -----------------------------------------------------------------------------------


def _apply(powers: _Powers, m: SpatialMap, image: _Image) -> _Image:
    """One map, forwards."""
    if isinstance(m.taps, np.ndarray):
        image = _gather(powers, m, tuple(range(powers.ndim)), image, m.taps)
    else:
        for axis in range(powers.ndim):
            if isinstance(m.axes[axis], Everything):
                assert m.size_out is not None
                image = _average(powers, axis, m.size_out[axis], image)
            else:
                image = _gather(powers, m, (axis,), image, m.axis_taps(axis))
    return _weighed(image, m.gain)


def _weighed(image: _Image, factor: float) -> _Image:
    """The image times a factor of any size, whose power of two goes to the exponent."""
    fraction, power = math.frexp(factor)
    return _Image(image.values * fraction, image.reference, image.exponent + power)


def _average(powers: _Powers, axis: int, size: int, image: _Image) -> _Image:
    """Every index of y reads every index of x."""
    weights = image.weights(axis)
    total = np.array([weights.sum()])
    center = _points(np.array([weights @ image.reference[axis]]), total)
    values = image.values.copy()
    powers.move(values, axis, image.reference[axis] - center)
    values = np.repeat(values.mean(axis=axis + 1, keepdims=True), size, axis=axis + 1)
    reference = list(image.reference)
    reference[axis] = np.repeat(center, size)
    return _Image(values, reference, image.exponent)


def _gather(
    powers: _Powers, m: SpatialMap, on: tuple[int, ...], image: _Image, taps: Floats | None
) -> _Image:
    """The map along the axes `on`, the others standing still: a loop over the taps.

    Args:
        taps: variances by tap of these axes; None where they are equal.
    """
    assert m.size_in is not None
    assert m.size_out is not None
    readers = [list(_readers(m.axes[a], m.size_in[a], m.size_out[a])) for a in on]
    shape, reference = list(image.values.shape), list(image.reference)
    for i, a in enumerate(on):
        shape[a + 1] = m.size_out[a]
        own = None if taps is None else taps.sum(axis=tuple(b for b in range(len(on)) if b != i))
        mass, moment = np.zeros(m.size_out[a]), np.zeros(m.size_out[a])
        at_index = image.weights(a)
        for tap, (y, x, weight) in enumerate(readers[i]):
            weighed = weight * at_index[x] * (1.0 if own is None else own[tap])
            mass[y] += weighed
            moment[y] += weighed * image.reference[a][x]
        reference[a] = _points(moment, mass)
    values = np.zeros(shape)
    for index in np.ndindex(*(len(r) for r in readers)):
        y_at: list[Any] = [slice(None)] * len(shape)
        x_at = y_at.copy()
        factor: Any = 1.0 if taps is None else taps[index]
        for a, tap, of_axis in zip(on, index, readers, strict=True):
            y_at[a + 1], x_at[a + 1], weight = of_axis[tap]
            factor = factor * np.reshape(weight, _along(a, powers.ndim))
        block = image.values[tuple(x_at)] * factor
        for a in on:
            y, x = y_at[a + 1], x_at[a + 1]
            powers.move(block, a, image.reference[a][x] - reference[a][y])
        values[tuple(y_at)] += block
    if taps is None:
        values /= math.prod(axis.kernel for a in on if isinstance(axis := m.axes[a], EqualTaps))
    return _Image(values, reference, image.exponent)


def _readers(axis: AxisMap, n_x: int, n_y: int) -> Iterator[tuple[Selection, Selection, Floats]]:
    """For each tap: which indices of y read which of x, and with what weight (tables have their
    own; equal taps share 1)."""
    if isinstance(axis, Table):
        starts, taps = axis.rows(0, n_y)
        for m in range(taps.shape[1]):
            x = starts + m
            y = np.flatnonzero((x >= 0) & (x < n_x))
            yield y, x[y], taps[y, m]
        return
    assert isinstance(axis, EqualTaps)
    equal = np.ones(1)
    for m in range(axis.kernel):
        offset = m * axis.dilation - axis.lo
        if isinstance(axis, Window):
            few, many = _strided(offset, axis.stride, n_y, n_x)
            yield few, many, equal
        else:
            few, many = _strided(offset, axis.stride, n_x, n_y)
            yield many, few, equal


def _strided(offset: int, stride: int, n_few: int, n_many: int) -> tuple[slice, slice]:
    """The indices i of the coarser map for which i·stride + offset lies on the finer one."""
    first = max(0, -(offset // stride))
    count = max(0, min(n_few - 1, (n_many - 1 - offset) // stride) - first + 1)
    begin = first * stride + offset
    return slice(first, first + count), slice(begin, begin + count * stride, stride)


# --- result ---------------------------------------------------------------------------------


def _moments(powers: _Powers, image: _Image, at: tuple[int, ...]) -> Moments:
    """Central moments of the units `at` (() for all) from powers about the reference points."""
    n = powers.ndim
    mass = image.values[0][at]
    empty = np.where(mass > 0, mass, np.nan)
    raw = [values[at] / empty for values in image.values]
    mean = [raw[powers.of(a)] for a in range(n)]
    covariance = np.stack(
        [
            np.stack([raw[powers.of(a, b)] - mean[a] * mean[b] for b in range(n)], axis=-1)
            for a in range(n)
        ],
        axis=-2,
    )
    third, fourth = [], []
    for a in range(n):
        m1, m2, m3, m4 = (raw[powers.of(*(a,) * q)] for q in range(1, ORDER + 1))
        third.append(m3 - 3 * m1 * m2 + 2 * m1**3)
        fourth.append(m4 - 4 * m1 * m3 - 3 * m2**2 + 12 * m1**2 * m2 - 6 * m1**4)
    points = np.meshgrid(*image.reference, indexing="ij")
    position = [points[a][at] + mean[a] for a in range(n)]
    return Moments(
        Mass(mass if at == () else float(mass), image.exponent),
        np.stack(position, axis=-1),
        covariance,
        np.stack(third, axis=-1),
        np.stack(fourth, axis=-1),
    )
