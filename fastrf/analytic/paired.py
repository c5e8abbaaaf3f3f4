"""Moments of fields through fixed layers on any graph of windows, by pairs of pixels.

Let K(p, o; p′, o′) be what a covariance of 1 between the gradients at pixel o of map p and pixel o′
of map p′ hands to the input, a distribution of positions. Of the two, the pixel of the map further
up is taken one layer down:

    maps that differ, fixed weights c   K(p, o; ·) = Σ_m c[m]·K(q, o[m]; ·)
    the same map, fixed weights c       K(p, o; p, o′) = Σ_{m,m′} c[m]·c[m′]·K(q, o[m]; q, o′[m′])
    the same map, variances v           K(p, o; p, o′) = Σ_m v[m]·K(q, o[m]; q, o′[m])

with o[m] = o·s + m·d − lo,

and random weights have nothing in common with anything else. Where several layers write one map,
all pairs of them count: two deterministic ways meet by themselves, whichever they are. On the input
K is 1 at o where o = o′, else 0. Moving both pixels moves it, so that few pairs differ.

What is followed is mass, mean and covariance of positions, as numbers.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fastrf.layers import Concat, Dropout
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import SpatialMap, Window

Floats = NDArray[np.float64]
Pixel = tuple[int, ...]
Pair = tuple[int, Pixel, int, Pixel]
"""Map (by its plane) and pixel, twice, the map further up first."""

MOST_PAIRS = 5_000
"""Pairs followed before it is given up."""


@dataclass(frozen=True, slots=True)
class PairedMoments:
    """Of the field of one unit.

    Attributes:
        mass: of the image, for gradient variance 1 on the unit.
        mean: centre in input pixel indices, per axis.
        covariance: in pixels², shape (n, n).
    """

    mass: float
    mean: Floats
    covariance: Floats


class _NotKnown(Exception):
    """Something that the recursion does not say."""


def paired_moments(
    graph: PlaneGraph, node: str, unit: Pixel, input_node: str
) -> PairedMoments | None:
    """Moments of a field on the unbounded grid.

    None where a layer is no window, where channels part ways, where what passes depends on the
    data, or where there are too many pairs.
    """
    if graph.input_size is not None:
        return None
    try:
        walk = _Pairs(graph, node, input_node)
        mass, first, second = walk.moments(graph.planes_of[node][0], unit)
    except _NotKnown:
        return None
    if not math.isfinite(mass) or mass <= 0:
        return None
    mean = first / mass
    return PairedMoments(mass, mean, second / mass - np.outer(mean, mean))


_Raw = tuple[float, Floats, Floats]
"""Mass, and the sums of x and of x·xᵀ."""


class _Pairs:
    def __init__(self, graph: PlaneGraph, node: str, input_node: str) -> None:
        self.graph, self.ndim = graph, graph.ndim
        self.operations = graph.between(node, input_node)
        (self.source, *others) = graph.planes_of[input_node]
        self.writers: dict[int, list[Operation]] = {}
        self.jumps: dict[int, Pixel] = {self.source: (1,) * graph.ndim}
        if others:
            raise _NotKnown
        for op in self.operations:
            self._enter(op)

    def _enter(self, op: Operation) -> None:
        plain = len(op.sources) == len(op.targets) == 1 and op.sources[0][1] == 1
        windows = all(isinstance(axis, Window) for m in op.maps for axis in m.axes)
        if not plain or not windows or len(self.graph.planes_of[op.node]) > 1:
            raise _NotKnown
        ((q, _),), ((p, _),) = op.sources, op.targets
        jump = self.jumps[q]
        for m in op.maps:
            strides = [axis.stride for axis in _windows(m)]
            jump = tuple(j * s for j, s in zip(jump, strides, strict=True))
        if self.jumps.setdefault(p, jump) != jump:
            raise _NotKnown
        self.writers.setdefault(p, []).append(op)

    def moments(self, plane: int, unit: Pixel) -> _Raw:
        start, shift = self._reduced((plane, unit, plane, unit))
        parts: dict[Pair, list[tuple[float, Pair, Pixel]]] = {}
        left = [start]
        while left:
            pair = left.pop()
            if pair in parts:
                continue
            if len(parts) > MOST_PAIRS:
                raise _NotKnown
            parts[pair] = [] if self._is_end(pair) else self._below(pair)
            left += [below for _, below, _ in parts[pair]]
        found: dict[Pair, _Raw] = {}
        for pair in sorted(parts, key=lambda k: (k[0], k[2])):
            found[pair] = self._end(pair) if self._is_end(pair) else self._sum(parts[pair], found)
        return _moved(found[start], shift)

    def _is_end(self, pair: Pair) -> bool:
        return pair[0] == self.source

    def _end(self, pair: Pair) -> _Raw:
        p, o, p_, o_ = pair
        x = np.array(o, float)
        mass = float(p == p_ and o == o_)
        return mass, mass * x, mass * np.outer(x, x)

    def _sum(self, parts: list[tuple[float, Pair, Pixel]], found: dict[Pair, _Raw]) -> _Raw:
        mass, first, second = 0.0, np.zeros(self.ndim), np.zeros((self.ndim, self.ndim))
        for factor, below, shift in parts:
            m, a, b = _moved(found[below], shift)
            mass, first, second = mass + factor * m, first + factor * a, second + factor * b
        return mass, first, second

    def _below(self, pair: Pair) -> list[tuple[float, Pair, Pixel]]:
        p, o, p_, o_ = pair
        gathered: dict[tuple[Pair, Pixel], float] = {}
        for factor, below in self._steps(p, o, p_, o_):
            key = self._reduced(below)
            gathered[key] = gathered.get(key, 0.0) + factor
        return [(factor, below, shift) for (below, shift), factor in gathered.items()]

    def _steps(self, p: int, o: Pixel, p_: int, o_: Pixel) -> Iterator[tuple[float, Pair]]:
        if p != p_:
            for op in self.writers[p]:
                if isinstance(self.graph.network.nodes[op.node].layer, Concat):
                    raise _NotKnown  # which of its channels meets which is not followed
                for c, i in self._fixed(op, o):
                    yield c, (op.sources[0][0], i, p_, o_)
            return
        for a, b in itertools.product(self.writers[p], repeat=2):
            concat = isinstance(self.graph.network.nodes[a.node].layer, Concat)
            if (a is b and any(m.kind == "random" for m in a.maps)) or (
                a is b and o == o_ and self._chooses(a)
            ):
                yield from self._common(a, o, o_)
            elif a is b or not concat:
                share = a.targets[0][1] if concat else 1.0
                for (c, i), (c_, i_) in itertools.product(self._fixed(a, o), self._fixed(b, o_)):
                    yield share * c * c_, (a.sources[0][0], i, b.sources[0][0], i_)

    def _chooses(self, op: Operation) -> bool:
        """Whether variances pass otherwise than as the squares of fixed factors."""
        layer = self.graph.network.nodes[op.node].layer
        mean = layer.mean_factor
        routed = any(m.kind == "routing" for m in op.maps)
        return routed or mean is None or not math.isclose(mean**2, layer.pointwise_gain)

    def _common(self, op: Operation, o: Pixel, o_: Pixel) -> Iterator[tuple[float, Pair]]:
        """Both pixels by the same taps, by their variances."""
        (q, _), ((_, share),) = op.sources[0], op.targets
        ends = [(op.gain * share, o, o_)]
        for move in reversed(op.maps):
            # Of fixed maps this is true of one pixel and itself, and where there is one tap, as in
            # the border that an operation with random weights is given.
            if move.kind == "fixed" and o != o_ and any(a.kernel > 1 for a in _windows(move)):
                raise _NotKnown
            ends = [
                (weight * v, self._read(move, a, m), self._read(move, b, m))
                for weight, a, b in ends
                for m, v in _variances(move)
            ]
        for weight, a, b in ends:
            yield weight, (q, a, q, b)

    def _fixed(self, op: Operation, o: Pixel) -> list[tuple[float, Pixel]]:
        """What a deterministic operation reads of a pixel; nothing where its weights are random."""
        if any(m.kind == "random" for m in op.maps):
            return []
        layer = self.graph.network.nodes[op.node].layer
        if self._chooses(op) and not isinstance(layer, Dropout):  # its masks are independent
            raise _NotKnown
        mean = layer.mean_factor or 0.0
        ends = [(mean * math.sqrt(op.gain / layer.pointwise_gain), o)]
        for move in reversed(op.maps):
            ends = [(w * c, self._read(move, at, m)) for w, at in ends for m, c in _weights(move)]
        return ends

    def _read(self, move: SpatialMap, o: Pixel, m: Pixel) -> Pixel:
        return tuple(
            i * a.stride + t * a.dilation - a.lo
            for i, t, a in zip(o, m, _windows(move), strict=True)
        )

    def _reduced(self, pair: Pair) -> tuple[Pair, Pixel]:
        """The same pair moved close to pixel 0, the map further up first, and by how much."""
        p, o, p_, o_ = pair
        if (p_, o_) > (p, o):
            p, o, p_, o_ = p_, o_, p, o
        one, other = self.jumps[p], self.jumps[p_]
        steps = [math.lcm(j, k) for j, k in zip(one, other, strict=True)]
        turns = [i * j // s for i, j, s in zip(o, one, steps, strict=True)]
        o = tuple(i - n * s // j for i, n, s, j in zip(o, turns, steps, one, strict=True))
        o_ = tuple(i - n * s // j for i, n, s, j in zip(o_, turns, steps, other, strict=True))
        return (p, o, p_, o_), tuple(n * s for n, s in zip(turns, steps, strict=True))


def _moved(raw: _Raw, shift: Pixel) -> _Raw:
    mass, first, second = raw
    by = np.array(shift, float)
    cross = np.outer(by, first)
    return mass, first + mass * by, second + cross + cross.T + mass * np.outer(by, by)


def _windows(move: SpatialMap) -> list[Window]:
    return [axis for axis in move.axes if isinstance(axis, Window)]


def _variances(move: SpatialMap) -> list[tuple[Pixel, float]]:
    """The taps' variances, gain included."""
    shape = [axis.kernel for axis in _windows(move)]
    if isinstance(move.taps, np.ndarray):
        whole = move.taps
    else:
        whole = np.ones(())
        for number, k in enumerate(shape):
            taps = None if move.taps is None else move.taps[number]
            whole = np.multiply.outer(whole, np.full(k, 1 / k) if taps is None else taps)
    return [(m, move.gain * float(whole[m])) for m in np.ndindex(*shape) if whole[m]]


def _weights(move: SpatialMap) -> list[tuple[Pixel, float]]:
    """Fixed weights, with their signs."""
    signs = np.ones([axis.kernel for axis in _windows(move)])
    if isinstance(move.coefficients, np.ndarray):
        signs = np.sign(move.coefficients)
    elif move.coefficients is not None:
        for number, line in enumerate(move.coefficients):
            if line is not None:
                shape = [-1 if a == number else 1 for a in range(signs.ndim)]
                signs = signs * np.sign(line).reshape(shape)
    return [(m, float(signs[m]) * math.sqrt(v)) for m, v in _variances(move)]
