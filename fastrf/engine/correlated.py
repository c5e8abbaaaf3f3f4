"""The direct engine with covariances: exact where deterministic layers add up what is correlated.

Beside a plane's variances, this walk carries the covariances Cov(g[i], g[i + τ]) of its gradient
at the lags τ that a deterministic layer nearer to the input adds up (see `coherence`). A random
layer moves all lags at once with the direct engine's maps; a fixed layer mixes them, one axis at a
time; deterministic ways that part and meet again add their covariance where they part. From the
plane on below which variances suffice, the direct engine goes on by itself.

Accuracy: with nonnegative coefficients all that is added is nonnegative, and every pixel is right
relative to itself. With negative ones (a filter with negative weights, cubic resizing, a
difference) sums cancel: pixels are right relative to the peak of the largest image on the way.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf.engine.chains import chains
from fastrf.engine.coefficients import Line, Term, terms
from fastrf.engine.coherence import (
    Coherence,
    Lags,
    Pair,
    below,
    coherence_of,
    is_endless,
    kinds_of,
    lag_above,
    mean_share,
)
from fastrf.engine.direct import Image, Propagated, Walk, nothing_read, propagate
from fastrf.engine.program import gain_below, mean_gain, mean_gains
from fastrf.engine.scaled import Headroom, Scaled
from fastrf.engine.threads import Threads
from fastrf.engine.windows import Span, reached, united
from fastrf.kernels import load
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import Everything, Kind, SpatialMap, Spread, Table, Window

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Stack:
    """Covariances of a plane's gradient: value = array · scale.

    Attributes:
        array: Cov(g[i], g[i + τ]), of shape (lags per axis …, pixels per axis …), contiguous; 0
            where i or i + τ is off the window.
        lags: τ of each index of the first axes.
        origin: i of the first pixel, per axis.
        scale: factor of all values.
        peak: upper bound of log2 of the largest absolute value in `array`.
        signed: whether values may be negative.
    """

    array: Array
    lags: tuple[tuple[int, ...], ...]
    origin: tuple[int, ...]
    scale: Scaled
    peak: float
    signed: bool = False

    @property
    def ndim(self) -> int:
        return len(self.lags)

    @property
    def spans(self) -> list[Span]:
        return list(zip(self.origin, self.array.shape[self.ndim :], strict=True))

    @property
    def existing(self) -> Lags:
        return tuple(map(frozenset, self.lags))

    @property
    def here(self) -> tuple[int, ...]:
        """Where lag 0 is."""
        return tuple(axis.index(0) for axis in self.lags)

    def times(self, factor: float) -> Stack:
        return replace(self, scale=self.scale * factor)


def propagate_correlated(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    *,
    kernels: Any,
    dtype: Any = np.float64,
    workers: int = 1,
    tail: float | None = None,
    tol: float | None = None,
    progress: Callable[[float], None] | None = None,
    xp: Any = np,
) -> Propagated:
    """The effective receptive field of one unit, covariances included.

    Args: as of `direct.propagate`. `tail` drops nothing above the plane where variances suffice;
        `tol` is kept, whatever it is down to a few ulp per layer. All is computed on the CPU; the
        image is moved to `xp`.

    `lost` and `dropped` weigh what was lost with the mean gain of uncorrelated gradients.

    Raises: as `direct.propagate`.
    """
    coherence = coherence_of(graph, node, input_node)
    if not coherence.matters or any(map(is_endless, graph.between(node, input_node))):
        options = {"dtype": dtype, "workers": workers, "tail": tail, "progress": progress}
        return propagate(graph, node, unit, input_node, kernels=kernels, xp=xp, **options)
    with Threads(workers) as pool:
        host = kernels if xp is np else load("cpu")
        upper = _Correlated(graph, node, input_node, coherence, host, np.dtype(dtype), pool)
        found = upper.run(unit, tail, progress or (lambda share: None))
    return found if xp is np else replace(found, image=xp.asarray(found.image))


class _Correlated:
    """One pass backwards, as far as covariances are wanted; the direct engine's walk goes on."""

    def __init__(
        self,
        graph: PlaneGraph,
        node: str,
        input_node: str,
        coherence: Coherence,
        kernels: Any,
        dtype: np.dtype[Any],
        threads: Threads,
    ) -> None:
        self.graph, self.node, self.input_node = graph, node, input_node
        self.coherence, self.kernels, self.threads = coherence, kernels, threads
        self.dtype, self.room = dtype, Headroom.of(dtype)
        self.gains = mean_gains(graph, input_node)
        self.operations = graph.between(node, input_node)
        concerned = (n for n, op in enumerate(self.operations) if coherence.concerns(op))
        self.split = next(concerned, len(self.operations))
        self.stacks: dict[int, Stack] = {}
        self.lost: list[tuple[float, Scaled]] = []
        self.unpaired = dict(coherence.pairs)
        self.pending = Counter(pair.above for some in coherence.pairs.values() for pair in some)
        self.pending.update(p for op in self.operations for p, _ in op.targets)

    def run(
        self, unit: tuple[int, ...], tail: float | None, progress: Callable[[float], None]
    ) -> Propagated:
        for p in self.graph.planes_of[self.node]:
            seed = np.full((1,) * 2 * self.graph.ndim, 2.0**self.room.top, dtype=self.dtype)
            scale = Scaled.of(self.graph.planes[p].share, -self.room.top)
            self.stacks[p] = Stack(seed, ((0,),) * self.graph.ndim, unit, scale, self.room.top)
        for done, op in enumerate(reversed(self.operations[self.split :]), 1):
            self._pass(op)
            progress(done / len(self.operations))
        for q in sorted(self.unpaired, reverse=True):
            self._complete(q)
        return self._go_on(unit, tail, progress)

    def _go_on(
        self, unit: tuple[int, ...], tail: float | None, progress: Callable[[float], None]
    ) -> Propagated:
        """The direct engine's walk, from what is here to the input."""
        where = (self.graph, self.node, self.input_node)
        walk = Walk(*where, self.kernels, self.dtype, self.threads, tail, np)
        walk.images = {p: self._variances(stack) for p, stack in self.stacks.items()}
        walk.lost = list(self.lost)
        self.stacks.clear()
        done = len(self.operations) - self.split
        below = set(map(id, self.operations[: self.split]))
        # Chains of all operations: a plane that upper ones write to as well ends a chain.
        for whole in chains(self.operations):
            chain = tuple(op for op in whole if id(op) in below)
            if chain:
                for at in walk.steps(chain):
                    progress((done + at) / len(self.operations))
                done += len(chain)
                progress(done / len(self.operations))
        final = None
        for p in self.graph.planes_of[self.input_node]:
            if p in walk.images:
                final = walk.sum(final, walk.images.pop(p))
        if final is None:
            raise nothing_read(self.graph, self.node, unit, self.input_node)
        return walk.finish(final, unit)

    def _variances(self, stack: Stack) -> Image:
        """Lag 0 alone, as the direct engine holds it."""
        array = np.ascontiguousarray(stack.array[stack.here])
        if stack.signed:
            array = np.maximum(array, 0)  # what cancels may leave less than nothing
        return Image(array, stack.origin, stack.scale, stack.peak, -math.inf)

    def _pass(self, op: Operation) -> None:
        """Follows the gradient through an operation."""
        found: Stack | None = None
        for p, share in op.targets:
            self._complete(p)
            if p in self.stacks:
                found = self._sum(found, self.stacks[p].times(share))
            self._release(p)
        if found is None:
            return
        moved = self._behind(op, found)
        if moved is None:
            return
        for q, share in op.sources:
            if q in self.coherence.lags:
                part = _picked(moved, self.coherence.lags[q]).times(share)
                self.stacks[q] = self._sum(self.stacks.get(q), part)

    def _release(self, plane: int) -> None:
        self.pending[plane] -= 1
        if not self.pending[plane]:
            self.stacks.pop(plane, None)

    def _complete(self, plane: int) -> None:
        """Adds what the ways out of a plane that meet again have in common."""
        for pair in self.unpaired.pop(plane, ()):
            stack = self.stacks.get(pair.above)
            if stack is not None:
                self._add_pair(pair, stack)
            self._release(pair.above)

    def _add_pair(self, pair: Pair, stack: Stack) -> None:
        wanted = self.coherence.lags[pair.below]
        for one, other in itertools.product(pair.a, pair.b):
            for a, b in ((one, other), (other, one)):
                both = self._mixed(stack, a, b, wanted, clip=True)
                if both is not None:
                    if pair.factor < 0:
                        both = replace(both, array=-both.array, signed=True)
                    both = both.times(abs(pair.factor))
                    self.stacks[pair.below] = self._sum(self.stacks.get(pair.below), both)

    def _behind(self, op: Operation, stack: Stack) -> Stack | None:
        """What an operation hands back."""
        kinds = kinds_of(self.graph, op)
        inside = self.coherence.inside(op, kinds)
        if not inside:
            return None
        stack = self._pointwise(stack, op)
        for number in range(len(op.maps) - 1, -1, -1):
            move, rest = op.maps[number], gain_below(self.gains, op)
            for m in op.maps[:number]:
                rest = rest * mean_gain(m)
            found = self._transposed(kinds[number], move, stack, inside[number])
            clipped = None if found is None else self._clipped(found, move, rest)
            if clipped is None:
                return None
            stack = self._steady(clipped)
        return stack

    def _pointwise(self, stack: Stack, op: Operation) -> Stack:
        """Gains; what pixels have in common passes with the square of the mean factor alone."""
        share = mean_share(self.graph, op)
        if share < 1 and any(len(axis) > 1 for axis in stack.lags):
            array = stack.array * self.dtype.type(share)
            array[stack.here] = stack.array[stack.here]
            stack = replace(stack, array=array)
        return stack.times(op.gain)

    # --- maps -------------------------------------------------------------------------------

    def _transposed(self, kind: Kind, move: SpatialMap, stack: Stack, wanted: Lags) -> Stack | None:
        if kind == "random":
            return self._random(move, stack, wanted)
        if kind == "fixed":
            own = terms((move,), stack.ndim)
            found: Stack | None = None
            for a, b in itertools.product(own, own):
                part = self._mixed(stack, a, b, wanted, clip=False)
                if part is not None:
                    found = self._sum(found, part)
            return found
        # Of one window, a pixel gets all or nothing; different windows choose independently.
        alone = self._random(move, _picked(stack, _nothing_else(stack.ndim)), wanted)
        others = replace(stack, array=stack.array.copy())
        others.array[stack.here] = 0
        (chances,) = terms((move,), stack.ndim)
        common = None
        if others.array.any():
            common = self._mixed(others, chances, chances, wanted, clip=False)
        return alone if common is None else self._sum(alone, common)

    def _random(self, move: SpatialMap, stack: Stack, wanted: Lags) -> Stack:
        """A map whose weights have nothing in common: each lag goes its own way."""
        lags = tuple(map(_in_order, below("random", move, stack.existing, wanted)))
        array = stack.array
        for number, (axis, own) in enumerate(zip(move.axes, lags, strict=True)):
            at = [stack.lags[number].index(lag_above(axis, t) or 0) for t in own]
            if at != list(range(len(stack.lags[number]))):
                array = array.take(at, axis=number)
        image = replace(stack, array=array, lags=lags, scale=stack.scale * move.gain)
        if isinstance(move.taps, np.ndarray):
            return self._dense(move, image)
        for number in range(stack.ndim):
            image = self._along(move, number, image)
        return image

    def _along(self, move: SpatialMap, number: int, stack: Stack) -> Stack:
        """The transposed map along one axis, onto the whole window reached."""
        axis, span = move.axes[number], stack.spans[number]
        size = None if move.size_in is None else move.size_in[number]
        if isinstance(axis, Window) and axis.kernel == axis.stride == 1:
            return _begun(stack, number, span[0] - axis.lo)
        (start, count), _ = reached(axis, span, size)
        place = stack.ndim + number
        shape = list(stack.array.shape)
        shape[place] = max(count, 0)
        out = np.empty(shape, self.dtype)
        moved = replace(_begun(stack, number, start), array=out)
        if isinstance(axis, Everything):
            out[...] = stack.array.sum(axis=place, keepdims=True)
            return replace(moved, scale=stack.scale / count, peak=stack.peak + math.log2(span[1]))
        y, to = (_around(values, place) for values in (stack.array, out))
        k, taps = self.kernels, move.axis_taps(number)
        if isinstance(axis, Table):
            starts, rows = axis.rows(*span)
            weights = rows.astype(self.dtype)
            self._apply(
                lambda a, b: k.transposed_table(a, starts - start, weights, b), y, to, stack
            )
            return replace(moved, peak=stack.peak + math.log2(span[1]))
        box, general, lo = k.gather_box, k.strided_gather, axis.lo + span[0] - start * axis.stride
        if isinstance(axis, Window):
            box, general = k.transposed_box, k.transposed_conv
            lo = axis.lo + start - span[0] * axis.stride
        kernel, stride, dilation = axis.kernel, axis.stride, axis.dilation
        if taps is None:
            self._apply(lambda a, b: box(a, kernel, stride, dilation, lo, b), y, to, stack)
            return replace(moved, scale=stack.scale / kernel, peak=stack.peak + math.log2(kernel))
        own, steps = taps.astype(self.dtype)[None, :, None], ((1, stride, 1), (1, dilation, 1))
        self._apply(lambda a, b: general(a, own, *steps, (0, lo, 0), b), y, to, stack)
        return moved

    def _dense(self, move: SpatialMap, stack: Stack) -> Stack:
        """Taps that are no product of one vector per axis, lag by lag."""
        assert isinstance(move.taps, np.ndarray)
        ndim = stack.ndim
        spans = [
            reached(axis, at, None)[0] for axis, at in zip(move.axes, stack.spans, strict=True)
        ]
        pixels = tuple(max(count, 0) for _, count in spans)
        out = np.empty((*stack.array.shape[:ndim], *pixels), self.dtype)
        axes = [a for a in move.axes if isinstance(a, Window | Spread)]
        gather = isinstance(axes[0], Spread)
        pad = (1,) * (3 - ndim)
        lo = [
            a.lo + (y[0] - x[0] * a.stride if gather else x[0] - y[0] * a.stride)
            for a, x, y in zip(axes, spans, stack.spans, strict=True)
        ]
        steps = ((*pad, *(a.stride for a in axes)), (*pad, *(a.dilation for a in axes)))
        taps = move.taps.astype(self.dtype).reshape(*pad, *move.taps.shape)
        kernel = self.kernels.strided_gather if gather else self.kernels.transposed_conv
        los = (*(0 for _ in pad), *lo)

        def run(y: Array, to: Array) -> None:
            for source, target in zip(y, to, strict=True):
                whole = target.reshape(*pad, *pixels)
                kernel(source.reshape(*pad, *source.shape), taps, *steps, los, whole)

        y, to = (values.reshape(-1, *values.shape[ndim:]) for values in (stack.array, out))
        self._apply(run, y, to, stack)
        return replace(stack, array=out, origin=tuple(start for start, _ in spans))

    def _apply(
        self, run: Callable[[Array, Array], None], y: Array, out: Array, stack: Stack
    ) -> None:
        """Calls a linear kernel, which takes nonnegative values alone, for parts of its first
        axis."""

        def part(a: int, b: int) -> None:
            if not stack.signed:
                run(y[a:b], out[a:b])
                return
            run(np.maximum(y[a:b], 0), out[a:b])
            negative = np.empty_like(out[a:b])
            run(np.maximum(-y[a:b], 0), negative)
            out[a:b] -= negative

        self.threads.cut(len(y), out.size, part)

    def _mixed(self, stack: Stack, a: Term, b: Term, wanted: Lags, clip: bool) -> Stack | None:
        """Σ a[o, i]·b[o′, i + τ]·Cov(g[o], g[o′]) over all o, o′; None where nothing meets."""
        for axis in range(stack.ndim):
            lags = _in_order(wanted[axis])
            found = self._mixed_along(stack, axis, (a[axis], b[axis]), lags, clip)
            if found is None:
                return None
            stack = self._steady(found)
        return stack

    def _mixed_along(
        self,
        stack: Stack,
        axis: int,
        lines: tuple[Line, Line],
        lags: tuple[int, ...],
        clip: bool,
    ) -> Stack | None:
        """The same along one axis, onto the whole window reached."""
        ndim = stack.ndim
        first, count = stack.spans[axis]
        above = stack.lags[axis]
        starts, taps = lines[0].rows(first, count, clip)
        around = above[-1] - above[0]
        begins, others = lines[1].rows(first + above[0], count + around, clip)
        used = np.flatnonzero(taps.any(axis=0))
        if not used.size:
            return None
        starts, taps = starts + used[0], taps[:, used[0] : used[-1] + 1]
        low = int(starts.min())
        length = int(starts.max()) + taps.shape[1] - low
        # One source after the other along the axis: pixel o of lag τ, for all τ.
        order = [n for n in range(2 * ndim) if n != axis]
        order.insert(order.index(ndim + axis), axis)
        flat = np.ascontiguousarray(stack.array.transpose(order))
        before, behind = (
            math.prod(flat.shape[: ndim + axis - 1]),
            math.prod(flat.shape[ndim + axis + 1 :]),
        )
        y = flat.reshape(before, len(above) * count, behind)
        shape = list(stack.array.shape)
        shape[ndim + axis] = length
        out = np.empty((len(lags), *shape[:axis], *shape[axis + 1 :]), self.dtype)
        signed = stack.signed or bool(taps.min() < 0 or others.min() < 0)
        window = np.array(above)[:, None] - above[0] + np.arange(count)
        offsets = (starts - begins[window])[:, :, None] + np.arange(taps.shape[1])
        targets = np.tile(starts - low, len(above))
        for number, lag in enumerate(lags):
            m = offsets + lag
            inside = (m >= 0) & (m < others.shape[1])
            meets = np.flatnonzero(inside.any(axis=(1, 2)))
            to = out[number].reshape(before, length, behind)
            if not meets.size:
                to[...] = 0
                continue
            some = slice(meets[0], meets[-1] + 1)
            m, inside = m[some], inside[some]
            there = others[window[some][:, :, None], m.clip(0, others.shape[1] - 1)]
            both = np.where(inside, taps * there, 0.0).reshape(-1, taps.shape[1])
            part = slice(some.start * count, some.stop * count)
            self._rows(y[:, part], targets[part], both, to, signed)
        growth = math.log2(count * len(above))
        origin = (*stack.origin[:axis], low, *stack.origin[axis + 1 :])
        return Stack(
            np.ascontiguousarray(np.moveaxis(out, 0, axis)),
            (*stack.lags[:axis], lags, *stack.lags[axis + 1 :]),
            origin,
            stack.scale,
            stack.peak + growth,
            signed,
        )

    def _rows(
        self,
        y: Array,
        starts: NDArray[np.int64],
        taps: NDArray[np.float64],
        out: Array,
        signed: bool,
    ) -> None:
        """Σ taps[o]·y[o] by a kernel that takes nonnegative numbers alone."""
        kernel = self.kernels.transposed_table
        if not signed:
            kernel(y, starts, taps.astype(self.dtype), out)
            return
        out[...] = 0
        work = np.empty_like(out)
        for sign, tap in itertools.product((1, -1), (1, -1)):
            weights = np.maximum(tap * taps, 0).astype(self.dtype)
            if weights.any():
                kernel(np.maximum(sign * y, 0), starts, weights, work)
                np.add(out, work, out) if sign == tap else np.subtract(out, work, out)

    # --- windows and scales -----------------------------------------------------------------

    def _clipped(self, stack: Stack, move: SpatialMap, rest: Scaled) -> Stack | None:
        """Cuts off what fell into padding and books its variance; trims zero borders."""
        array, origin = stack.array, list(stack.origin)
        ndim, here = stack.ndim, stack.here
        for axis, size in enumerate(move.size_in or ()):
            start, count = origin[axis], array.shape[ndim + axis]
            first, last = max(-start, 0), min(size - start, count)
            if first == 0 and last == count:
                continue
            variances = array[here]
            for slab in (slice(0, first), slice(max(last, first), count)):
                lost = np.maximum(variances[(slice(None),) * axis + (slab,)], 0)
                self.lost.append((lost.sum(dtype=np.float64), stack.scale * rest))
            if last <= first:
                return None
            array = array[(slice(None),) * (ndim + axis) + (slice(first, last),)].copy()
            origin[axis] = start + first
            for number, lag in enumerate(stack.lags[axis]):
                off = slice(max(size - lag - origin[axis], 0), None)
                if lag < 0:
                    off = slice(0, max(-lag - origin[axis], 0))
                plane = array[(slice(None),) * axis + (number,)]
                plane[(slice(None),) * (ndim - 1 + axis) + (off,)] = 0
        for axis in range(ndim):
            others = tuple(a for a in range(ndim) if a != axis)
            used = np.flatnonzero(array[here].any(axis=others))
            if not used.size:
                return None
            first, last = int(used[0]), int(used[-1]) + 1
            array = array[(slice(None),) * (ndim + axis) + (slice(first, last),)]
            origin[axis] += first
        return replace(stack, array=np.ascontiguousarray(array), origin=tuple(origin))

    def _steady(self, stack: Stack) -> Stack:
        """The stack with its largest value near the top of the headroom."""
        largest = float(np.abs(stack.array).max()) if stack.signed else float(stack.array.max())
        if not largest:
            return stack
        peak = math.log2(largest)
        shift = math.floor(self.room.top - peak)
        if abs(shift) <= 16:
            return replace(stack, peak=peak)
        array = np.ldexp(stack.array, shift)
        array[np.abs(array) < np.finfo(self.dtype).tiny] = 0
        scale = stack.scale * Scaled.of(1.0, -shift)
        return replace(stack, array=array, scale=scale, peak=peak + shift)

    def _sum(self, a: Stack | None, b: Stack) -> Stack:
        """The sum of two stacks of one plane, on the smallest window that holds both."""
        if a is None:
            return b
        if b.scale.exponent + b.peak > a.scale.exponent + a.peak:
            a, b = b, a
        spans = [united(x, y) for x, y in zip(a.spans, b.spans, strict=True)]
        lags = tuple(_in_order({*x, *y}) for x, y in zip(a.lags, b.lags, strict=True))
        shape = (*map(len, lags), *(count for _, count in spans))
        out = np.zeros(shape, self.dtype)
        for part, ratio in ((a, 1.0), (b, b.scale.over(a.scale))):
            at = np.ix_(
                *([axis.index(t) for t in own] for axis, own in zip(lags, part.lags, strict=True))
            )
            window = tuple(
                slice(x[0] - s[0], x[0] - s[0] + x[1])
                for x, s in zip(part.spans, spans, strict=True)
            )
            view = out[(slice(None),) * len(lags) + window]
            view[at] += part.array * self.dtype.type(ratio)
        origin = tuple(start for start, _ in spans)
        return self._steady(Stack(out, lags, origin, a.scale, a.peak + 1.0, a.signed or b.signed))


def _in_order(lags: Iterable[int]) -> tuple[int, ...]:
    return tuple(sorted(lags))


def _nothing_else(ndim: int) -> Lags:
    return (frozenset((0,)),) * ndim


def _picked(stack: Stack, lags: Lags) -> Stack:
    """The same with no other lags than these."""
    own = tuple(
        tuple(t for t in axis if t in some) for axis, some in zip(stack.lags, lags, strict=True)
    )
    array = stack.array
    for axis, (have, keep) in enumerate(zip(stack.lags, own, strict=True)):
        if keep != have:
            array = array.take([have.index(t) for t in keep], axis=axis)
    return stack if own == stack.lags else replace(stack, array=array, lags=own)


def _begun(stack: Stack, axis: int, start: int) -> Stack:
    """The same, with another first pixel along one axis."""
    return replace(stack, origin=(*stack.origin[:axis], start, *stack.origin[axis + 1 :]))


def _around(array: Array, axis: int) -> Array:
    """A view with `axis` in the middle of three."""
    shape = array.shape
    return array.reshape(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
