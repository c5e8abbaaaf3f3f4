"""Dense images of all layers with covariances, in one pass up from the input.

The image on the input is linear in the covariances of a plane's gradient. On the unbounded grid it
moves with them, so that for each lag τ one image says all: K_τ, what a covariance of 1 between the
pixels 0 and τ hands to the input; K_0 is the field of unit 0. The input itself has K_0 = 1 at pixel
0 and no other. One layer further up, of the map that reads a map of jump j by taps m at lo,

    random weights of variances v   K_τ[i] = Σ_m v[m]·K′_{τs}[i − j·(m·d − lo)]
    fixed weights c                 K_τ[i] = Σ_{m,m′} c[m]·c[m′]·K′_{τs+(m′−m)d}[i − j·(m·d − lo)]

and two deterministic ways a, b from one plane up to another add Σ (a[m]·b[m′] + b[m]·a[m′])·K′.
K_{−τ} is K_τ moved by τ·j, so half of the lags are carried, and of those only the ones that a layer
further up creates and one further down asks for (`coherence_of_all`): a layer costs one convolution
for each of them. Going back from every unit, each layer costs as much for every map above it.

All that is added up is nonnegative; for coefficients that cancel `correlated` goes unit by unit.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf.engine.coefficients import Term, terms
from fastrf.engine.coherence import (
    Coherence,
    Kinds,
    Lags,
    coherence_of_all,
    kinds_of,
)
from fastrf.engine.direct import Propagated
from fastrf.engine.profiles import TOP
from fastrf.engine.scaled import ZERO
from fastrf.engine.threads import Threads
from fastrf.engine.transfer import Jump, TransferFunction
from fastrf.engine.upward import Family, Image, Lag, Pixels, Rise, windows_of
from fastrf.engine.windows import united
from fastrf.lowering import Operation
from fastrf.maps import Kind, SpatialMap, Window
from fastrf.meanfield.slopes import slopes_of

Floats = NDArray[np.float64]


def propagate_upward_correlated(
    function: TransferFunction,
    unit: tuple[int, ...],
    wanted: Container[str] | None = None,
    *,
    kernels: Any,
    dtype: Any = np.float64,
    workers: int = 1,
    tail: float | None = None,
    xp: Any = np,
) -> Iterator[tuple[str, Propagated]]:
    """As `upward.propagate_upward`, covariances included.

    Args:
        function: of a field of which `covariance.is_relative`.
        wanted: the nodes whose fields are made; None: all of them.
    """
    with Threads(workers if xp is np else 0) as threads:
        rise = _CorrelatedRise(function, kernels, np.dtype(dtype), threads, tail, xp)
        yield from rise.run(unit, wanted)


def carried(coherence: Coherence, plane: int, ndim: int) -> list[Lag]:
    """The lags of which a pass holds an image for a plane: of each pair ±τ one."""
    lags = coherence.lags.get(plane)
    return [(0,) * ndim] if lags is None else list(_halved(lags))


class _CorrelatedRise(Rise):
    """One pass over the operations between an input and a node above."""

    def __init__(
        self,
        function: TransferFunction,
        kernels: Any,
        dtype: np.dtype[Any],
        threads: Threads,
        tail: float | None,
        xp: Any,
    ) -> None:
        super().__init__(function, kernels, dtype, threads, tail, xp)
        self.coherence = coherence_of_all(self.graph, function.node, function.input_node)
        self.slopes = slopes_of(self.graph, function.node, function.input_node)
        self.meeting: dict[int, list[Any]] = {}
        for pair in itertools.chain.from_iterable(self.coherence.pairs.values()):
            self.meeting.setdefault(pair.above, []).append(pair)
            self.pending[pair.below] += 1

    def _applied(self, op: Operation) -> Family:
        family, jump = self._read(op)
        lags = tuple(tuple(dict.fromkeys(axis)) for axis in zip(*family, strict=True))
        shares = self.slopes.passed(self.graph, op, lags)
        if shares is not None:
            for lag, image in family.items():
                at = tuple(axis.index(t) for axis, t in zip(lags, lag, strict=True))
                family[lag] = _times(image, float(shares[at]))
        kinds = kinds_of(self.graph, op)
        for kind, move, asked in zip(kinds, op.maps, self._written(op, kinds), strict=True):
            windows = windows_of(move)
            family = self._through(kind, move, windows, jump, family, asked)
            jump = tuple(j * a.stride for j, a in zip(jump, windows, strict=True))
        return family

    def _written(self, op: Operation, kinds: Kinds) -> list[Lags]:
        """The lags that are asked for of what each of an operation's maps writes."""
        if not op.maps:
            return []
        inside = self.coherence.inside(op, kinds)
        targets = (self.coherence.lags[p] for p, _ in op.targets)
        above = [frozenset[int]().union(*axis) for axis in zip(*targets, strict=True)]
        last = tuple(a & b for a, b in zip(inside[-1], above, strict=True))
        return [*inside[1:-1], last]

    def _completed(self, plane: int, family: Family) -> Family:
        """Adds what deterministic ways that meet here have in common."""
        for pair in self.meeting.pop(plane, ()):
            below = self.families[pair.below]
            jump = self.function.jumps[pair.below]
            lags = self.coherence.lags[plane]
            found = [(1.0, family)]
            for a, b in pair.both_orders():
                found.append((pair.factor, self._common(below, a, b, jump, lags)))
            family = self._summed(found)
            self._release(pair.below)
        return family

    # --- one layer --------------------------------------------------------------------------

    def _through(
        self,
        kind: Kind,
        move: SpatialMap,
        windows: Sequence[Window],
        jump: Jump,
        family: Family,
        lags: Lags,
    ) -> Family:
        """The family of a map that reads this one."""
        strides = [w.stride for w in windows]
        if kind == "random":
            return {
                lag: self._moved(move, windows, jump, family[below])
                for lag in _halved(lags)
                if (below := tuple(t * s for t, s in zip(lag, strides, strict=True))) in family
            }
        if len(family) == 1 and all(len(axis) == 1 for axis in lags):
            return {self.zero: self._moved(move, windows, jump, family[self.zero])}
        own = terms((move,), self.graph.ndim)
        if kind == "fixed":
            pairs = itertools.product(own, own)
            found = [self._common(family, a, b, jump, lags) for a, b in pairs]
            return self._summed([(1.0, part) for part in found])
        # Of one window, a pixel gets all or nothing; different windows choose independently.
        (chances,) = own
        others = self._common(family, chances, chances, jump, lags)
        return others | {self.zero: self._moved(move, windows, jump, family[self.zero])}

    def _common(self, family: Family, a: Term, b: Term, jump: Jump, lags: Lags) -> Family:
        """Σ a[m]·b[m′] of a plane's images, the two ways beginning on pixels τ apart."""
        whole = dict(family)
        for lag, image in family.items():  # K_{−τ}[i] = K_τ[i + τ·j]
            moved = (o - t * j for o, t, j in zip(image.origin, lag, jump, strict=True))
            whole[tuple(-t for t in lag)] = replace(image, origin=tuple(moved))
        for axis, asked in enumerate(lags):
            groups: dict[Lag, dict[int, Image]] = {}
            for lag, image in whole.items():
                groups.setdefault((*lag[:axis], 0, *lag[axis + 1 :]), {})[lag[axis]] = image
            first, taps = a[axis].rows(0, 1)
            whole = {}
            for lag, t in itertools.product(groups, sorted(asked)):
                to = (*lag[:axis], t, *lag[axis + 1 :])
                if axis == len(lags) - 1 and not _is_kept(to):
                    continue
                second, others = b[axis].rows(t, 1)
                parts = []
                for below, image in groups[lag].items():
                    both = _met(taps[0], others[0], int(first[0] + below - second[0]))
                    if both.any():
                        parts.append(self._along(image, axis, both, int(first[0]), jump[axis]))
                if parts:
                    whole[to] = self._sum(parts)
        return whole

    def _along(self, image: Image, axis: int, taps: Floats, start: int, jump: int) -> Image:
        """Σ_m taps[m] of an image moved by (start + m)·jump along one axis."""
        used = np.flatnonzero(taps)
        step = math.gcd(*(int(n) for n in np.diff(used))) or 1
        total = float(taps.sum())
        own = taps[used[0] : used[-1] + 1 : step] / total
        origin = list(image.origin)
        origin[axis] += (start + int(used[0])) * jump
        pixels, scale = image.pixels, image.scale * total
        if len(own) == 1:
            return Image(pixels, tuple(origin), scale)
        if pixels.lines is not None:
            line = self._lengthened(pixels.lines[axis], own, len(own), step * jump)
            lines = (*pixels.lines[:axis], line, *pixels.lines[axis + 1 :])
            return self._trimmed(Pixels(self.xp, None, TOP, lines), tuple(origin), scale)
        array = self._pass(pixels.array, axis, own, len(own), step * jump)
        return self._trimmed(Pixels(self.xp, array, pixels.bits), tuple(origin), scale)

    # --- sums -------------------------------------------------------------------------------

    def _summed(self, found: Sequence[tuple[float, Family]]) -> Family:
        """Σ factor·family."""
        lags = dict.fromkeys(lag for _, family in found for lag in family)
        return {
            lag: self._sum([_times(family[lag], f) for f, family in found if lag in family])
            for lag in lags
        }

    def _sum(self, images: Sequence[Image]) -> Image:
        """Products that differ along one axis alone add up to one."""
        axis = _differing(images)
        if axis is None:
            return super()._sum(images)
        lines = [image.pixels.lines or () for image in images]
        if axis < 0:
            return replace(images[0], scale=sum((image.scale for image in images), ZERO))
        total = sum((image.scale for image in images), ZERO)
        spans = [(i.origin[axis], len(own[axis])) for i, own in zip(images, lines, strict=True)]
        first, count = reduce(united, spans)
        line = np.zeros(count)
        for image, own, (start, length) in zip(images, lines, spans, strict=True):
            line[start - first : start - first + length] += image.scale.over(total) * own[axis]
        origin = (*images[0].origin[:axis], first, *images[0].origin[axis + 1 :])
        whole = (*lines[0][:axis], line, *lines[0][axis + 1 :])
        return Image(Pixels(self.xp, None, TOP, whole), origin, total)


def _times(image: Image, factor: float) -> Image:
    return replace(image, scale=image.scale * factor)


def _is_kept(lag: Lag) -> bool:
    return lag >= tuple(-t for t in lag)


def _halved(lags: Iterable[Iterable[int]]) -> Iterator[Lag]:
    return filter(_is_kept, itertools.product(*map(sorted, lags)))


def _met(taps: Floats, others: Floats, shift: int) -> Floats:
    """taps[m]·others[m + shift], 0 where there is no such tap."""
    found = np.zeros(len(taps))
    low, high = max(0, -shift), min(len(taps), len(others) - shift)
    if low < high:
        found[low:high] = taps[low:high] * others[low + shift : high + shift]
    return found


def _differing(images: Sequence[Image]) -> int | None:
    """The only axis along which images that are products differ; −1 where they are all alike, None
    where there are several, or one that is no product."""
    first, *others = images
    found = -1
    if first.pixels.lines is None:
        return None
    for image in others:
        if image.pixels.lines is None:
            return None
        for axis, (x, y) in enumerate(zip(first.pixels.lines, image.pixels.lines, strict=True)):
            alike = x is y or np.array_equal(x, y)
            if alike and first.origin[axis] == image.origin[axis]:
                continue
            if found not in (-1, axis):
                return None
            found = axis
    return found
