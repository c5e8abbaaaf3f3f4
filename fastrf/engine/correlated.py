"""The direct engine with covariances: exact where deterministic layers add up what is correlated.

Beside a plane's variances, this walk carries the covariances Cov(g[i], g[i + τ]) of its gradient
at the lags τ that a deterministic layer nearer to the input adds up (see `coherence`). A random
layer moves all lags at once with the direct engine's maps; a fixed layer mixes them, one axis at a
time; deterministic ways that part and meet again add their covariance where they part. From the
plane on below which variances suffice, the direct engine goes on by itself. Of the lags τ and −τ
one is carried (`stack`).

Accuracy: with nonnegative coefficients all that is added is nonnegative, and every pixel is right
relative to itself. With negative ones (a filter with negative weights, cubic resizing, a
difference) sums cancel: pixels are right relative to the peak of the largest image on the way.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf.arrays import Array
from fastrf.engine.chains import chains
from fastrf.engine.coefficients import Line, Term, terms
from fastrf.engine.coherence import (
    KEPT_MAPS,
    Coherence,
    Lags,
    Pair,
    below,
    coherence_of,
    is_endless,
    kinds_of,
    lag_above,
    stands_still,
)
from fastrf.engine.covariance import is_relative
from fastrf.engine.direct import Image, Propagated, Walk, propagate
from fastrf.engine.lag_algebra import far_inside, through_ways
from fastrf.engine.lag_gains import lag_gains, of_held
from fastrf.engine.lag_mixing import Mixing
from fastrf.engine.scaled import Scaled
from fastrf.engine.sight import sight_of
from fastrf.engine.stack import Stack, Sums, held_of, in_order
from fastrf.engine.threads import Threads
from fastrf.engine.windows import Span, reached
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import AxisMap, Everything, Kind, SpatialMap, Spread, Table, Window
from fastrf.meanfield.slopes import slopes_of


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
        `tol` is kept, whatever it is down to a few ulp per layer.

    `lost` weighs covariances that fell into padding, too, each with the mean gain of its lag
    (`lag_gains`). Where coefficients are negative it may be so: what a border cut off would have
    cancelled some of the rest.

    Raises: as `direct.propagate`.
    """
    coherence = coherence_of(graph, node, input_node)
    if not coherence.matters or any(map(is_endless, graph.between(node, input_node))):
        options = {"dtype": dtype, "workers": workers, "tail": tail, "progress": progress}
        return propagate(graph, node, unit, input_node, kernels=kernels, xp=xp, **options)
    # A launch takes all of a GPU: its tiles are no threads'.
    with Threads(workers if xp is np else 0) as pool:
        upper = _Correlated(graph, node, input_node, coherence, kernels, np.dtype(dtype), pool, xp)
        return upper.run(unit, tail, progress or (lambda share: None))


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
        xp: Any,
    ) -> None:
        self.graph, self.node, self.input_node = graph, node, input_node
        self.coherence, self.kernels, self.threads = coherence, kernels, threads
        self.dtype, self.xp, self.sight = dtype, xp, sight_of(xp)
        self.sums = Sums(dtype, xp)
        self.slopes = slopes_of(graph, node, input_node)
        self.operations = graph.between(node, input_node)
        concerned = (n for n, op in enumerate(self.operations) if coherence.concerns(op))
        self.split = next(concerned, len(self.operations))
        self.stacks: dict[int, Stack] = {}
        self.lost: list[tuple[Any, Scaled]] = []  # sums, which nobody has read yet, and factors
        self.unpaired = dict(coherence.pairs)
        self.pending = Counter(pair.above for some in coherence.pairs.values() for pair in some)
        self.pending.update(p for op in self.operations for p, _ in op.targets)

    def run(
        self, unit: tuple[int, ...], tail: float | None, progress: Callable[[float], None]
    ) -> Propagated:
        for p in self.graph.planes_of[self.node]:
            top = self.sums.room.top
            seed = self.xp.full((1,) * 2 * self.graph.ndim, 2.0**top, dtype=self.dtype)
            scale = Scaled.of(self.graph.planes[p].share, -top)
            self.stacks[p] = Stack(seed, ((0,),) * self.graph.ndim, unit, scale, top)
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
        walk = Walk(*where, self.kernels, self.dtype, self.threads, tail, self.xp)
        walk.images = {p: self._variances(stack) for p, stack in self.stacks.items()}
        walk.lost = list(self.lost)
        self.stacks.clear()
        done = len(self.operations) - self.split
        below = set(map(id, self.operations[: self.split]))
        pending = Counter(p for op in self.operations[: self.split] for p, _ in op.targets)
        # Chains of all operations: a plane that upper ones write to as well ends a chain.
        for whole in chains(self.operations):
            chain = tuple(op for op in whole if id(op) in below)
            if chain:
                for at in walk.steps(chain):
                    progress((done + at) / len(self.operations))
                walk.release(chain, pending)
                done += len(chain)
                progress(done / len(self.operations))
        found = walk.finish(unit)
        if found.lost < 0 and is_relative(self.graph, self.node, self.input_node):
            return replace(found, lost=0.0)  # a difference that rounding left
        return found

    def _variances(self, stack: Stack) -> Image:
        """Lag 0 alone, as the direct engine holds it."""
        array = self.xp.ascontiguousarray(stack.array[stack.here])
        if stack.signed:
            array = self.xp.maximum(array, 0)  # what cancels may leave less than nothing
        return Image(array, stack.origin, stack.scale, stack.peak, -math.inf)

    def _pass(self, op: Operation) -> None:
        """Follows the gradient through an operation."""
        found: Stack | None = None
        for p, share in op.targets:
            if p in self.unpaired:
                self._complete(p)
            stack = self.stacks.get(p)
            if stack is not None:
                found = self.sums.sum(found, stack.times(share))
            self._release(p)
        if found is None:
            return
        found = self._pointwise(found, op)
        moved = self._behind(op, found) if op.maps else found
        if moved is None:
            return
        for q, share in op.sources:
            if q in self.coherence.lags:
                part = moved.picked(self.coherence.lags[q]).times(share)
                self.stacks[q] = self.sums.sum(self.stacks.get(q), part)

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
        for a, b in pair.both_orders():
            both = self._mixed(stack, a, b, wanted, clip=True)
            if _is_cut(stack, (a, b)):
                self._book_ways(pair, stack, (a, b), both)
            if both is not None:
                if pair.factor < 0:
                    both = replace(both, array=-both.array, signed=True)
                both = both.times(abs(pair.factor))
                self.stacks[pair.below] = self.sums.sum(self.stacks.get(pair.below), both)
            del both  # before the other order

    def _behind(self, op: Operation, stack: Stack) -> Stack | None:
        """What an operation's maps hand back."""
        kinds = kinds_of(self.graph, op)
        inside = self.coherence.inside(op, kinds)
        if not inside:
            return None
        for number in range(len(op.maps) - 1, -1, -1):
            move = op.maps[number]
            if stands_still(kinds[number], move):
                stack = stack.picked(inside[number]).times(move.gain)
                continue
            found = self._transposed(kinds[number], move, stack, inside[number])
            if found is None:
                return None
            fresh = not self.xp.may_share_memory(found.array, stack.array)
            stack = found
            del found  # what it is cut to takes its place
            clipped = self._clipped(stack, op, number)
            if clipped is None:
                return None
            stack = clipped
            del clipped
            stack = self.sums.steady(stack, fresh=fresh)
        return stack

    def _pointwise(self, stack: Stack, op: Operation) -> Stack:
        """Gains; of what pixels have in common less may pass than of variances."""
        shares = self.slopes.passed(self.graph, op, stack.lags)
        if shares is not None:
            own = self.xp.asarray(shares.astype(self.dtype))
            array = stack.array * own[(...,) + (None,) * stack.ndim]
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
                    found = self.sums.sum(found, part)
                del part  # before the next
            return found
        # Of one window, a pixel gets all or nothing; different windows choose independently.
        alone = self._random(move, stack.picked((frozenset((0,)),) * stack.ndim), wanted)
        if stack.is_alone:
            return alone
        others = replace(stack, array=stack.array.copy())
        others.array[stack.here] = 0
        (chances,) = terms((move,), stack.ndim)
        common = self._mixed(others, chances, chances, wanted, clip=False)
        return alone if common is None else self.sums.sum(alone, common)

    def _random(self, move: SpatialMap, stack: Stack, wanted: Lags) -> Stack:
        """A map whose weights have nothing in common: each lag goes its own way."""
        lags = tuple(map(in_order, below("random", move, stack.existing, wanted)))
        array = stack.array
        for number, (axis, own) in enumerate(zip(move.axes, lags, strict=True)):
            at = [stack.lags[number].index(lag_above(axis, t) or 0) for t in own]
            if at != list(range(len(stack.lags[number]))):
                array = array.take(at, axis=number)
        scale = stack.scale * move.gain
        image = Stack(array, lags, stack.origin, scale, stack.peak, stack.signed)
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
            return stack.begun(number, span[0] - axis.lo)
        (start, count), _ = reached(axis, span, size)
        place = stack.ndim + number
        taps = move.axis_taps(number)
        growth = _growth(axis, taps, span[1])
        stack = self.sums.lowered(stack, growth)
        shape = list(stack.array.shape)
        shape[place] = max(count, 0)
        out = self.xp.empty(shape, self.dtype)
        origin = (*stack.origin[:number], start, *stack.origin[number + 1 :])
        peak = stack.peak + growth
        moved = Stack(out, stack.lags, origin, stack.scale, peak, stack.signed)
        if isinstance(axis, Everything):
            out[...] = stack.array.sum(axis=place, keepdims=True)
            return replace(moved, scale=stack.scale / count)
        y, to = (_around(values, place) for values in (stack.array, out))
        k = self.kernels
        if isinstance(axis, Table):
            starts, rows = axis.rows(*span)
            weights = rows.astype(self.dtype)
            self._apply(
                lambda a, b: k.transposed_table(a, starts - start, weights, b),
                y,
                to,
                stack,
                weights.size / max(count, 1),
            )
            return moved
        box, general, lo = k.gather_box, k.strided_gather, axis.lo + span[0] - start * axis.stride
        if isinstance(axis, Window):
            box, general = k.transposed_box, k.transposed_conv
            lo = axis.lo + start - span[0] * axis.stride
        kernel, stride, dilation = axis.kernel, axis.stride, axis.dilation
        if taps is None:
            work = 2 + math.log2(1 + kernel)
            self._apply(lambda a, b: box(a, kernel, stride, dilation, lo, b), y, to, stack, work)
            return replace(moved, scale=stack.scale / kernel)
        own = self.sight.constant(taps.astype(self.dtype)[None, :, None])
        steps = ((1, stride, 1), (1, dilation, 1))
        self._apply(lambda a, b: general(a, own, *steps, (0, lo, 0), b), y, to, stack, kernel)
        return moved

    def _dense(self, move: SpatialMap, stack: Stack) -> Stack:
        """Taps that are no product of one vector per axis, lag by lag."""
        assert isinstance(move.taps, np.ndarray)
        ndim = stack.ndim
        spans = [
            reached(axis, at, None)[0] for axis, at in zip(move.axes, stack.spans, strict=True)
        ]
        pixels = tuple(max(count, 0) for _, count in spans)
        out = self.xp.empty((*stack.array.shape[:ndim], *pixels), self.dtype)
        axes = [a for a in move.axes if isinstance(a, Window | Spread)]
        gather = isinstance(axes[0], Spread)
        pad = (1,) * (3 - ndim)
        lo = [
            a.lo + (y[0] - x[0] * a.stride if gather else x[0] - y[0] * a.stride)
            for a, x, y in zip(axes, spans, stack.spans, strict=True)
        ]
        steps = ((*pad, *(a.stride for a in axes)), (*pad, *(a.dilation for a in axes)))
        taps = self.sight.constant(move.taps.astype(self.dtype).reshape(*pad, *move.taps.shape))
        kernel = self.kernels.strided_gather if gather else self.kernels.transposed_conv
        los = (*(0 for _ in pad), *lo)

        def run(y: Array, to: Array) -> None:
            for source, target in zip(y, to, strict=True):
                whole = target.reshape(*pad, *pixels)
                kernel(source.reshape(*pad, *source.shape), taps, *steps, los, whole)

        y, to = (values.reshape(-1, *values.shape[ndim:]) for values in (stack.array, out))
        self._apply(run, y, to, stack, move.taps.size)
        return replace(stack, array=out, origin=tuple(start for start, _ in spans))

    def _apply(
        self,
        run: Callable[[Array, Array], None],
        y: Array,
        out: Array,
        stack: Stack,
        work: float,
    ) -> None:
        """Calls a linear kernel, which takes nonnegative values alone and does so much work per
        pixel, for parts of its first axis."""

        def part(a: int, b: int) -> None:
            if not stack.signed:
                run(y[a:b], out[a:b])
                return
            run(self.xp.maximum(y[a:b], 0), out[a:b])
            sizes, negative = -y[a:b], self.xp.empty_like(out[a:b])
            run(self.xp.maximum(sizes, 0, out=sizes), negative)
            out[a:b] -= negative

        self.threads.cut(len(y), out.size, part, work)

    def _mixed(self, stack: Stack, a: Term, b: Term, wanted: Lags, clip: bool) -> Stack | None:
        """Σ a[o, i]·b[o′, i + τ]·Cov(g[o], g[o′]) over all o, o′; None where nothing meets."""
        stack, wanted = stack.whole(self.xp), held_of(wanted)
        for axis in range(stack.ndim):
            lags = in_order(wanted[axis])
            found = self._mixed_along(stack, axis, (a[axis], b[axis]), lags, clip)
            if found is None:
                return None
            stack = found
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
        # A pixel gets of each pixel and lag above at most the largest coefficient times another.
        most = float(np.abs(taps).max() * max(1.0, np.abs(others).max())) or 1.0
        growth = max(0.0, math.log2(count * len(above) * most))
        stack = self.sums.lowered(stack, growth)
        signed = stack.signed or bool(taps.min() < 0 or others.min() < 0)
        add = partial(self._rows, signed=signed)
        mixing = Mixing(above, lags, (starts, taps), (begins, others), add, self.threads)
        low, length = mixing.window
        # One source after the other along the axis: pixel o of lag τ, for all τ.
        order = [n for n in range(2 * ndim) if n != axis]
        order.insert(order.index(ndim + axis), axis)
        flat = self.xp.ascontiguousarray(stack.array.transpose(order))
        before, behind = (
            math.prod(flat.shape[: ndim + axis - 1]),
            math.prod(flat.shape[ndim + axis + 1 :]),
        )
        shape = list(stack.array.shape)
        shape[ndim + axis] = length
        out = self.xp.empty((len(lags), *shape[:axis], *shape[axis + 1 :]), self.dtype)
        mixing.into(
            flat.reshape(before, len(above), count, behind),
            out.reshape(len(lags), before, length, behind),
            self.xp,
        )
        origin = (*stack.origin[:axis], low, *stack.origin[axis + 1 :])
        return Stack(
            self.xp.ascontiguousarray(self.xp.moveaxis(out, 0, axis)),
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
        *,
        signed: bool,
    ) -> None:
        """Σ taps[o]·y[o] by a kernel that takes nonnegative numbers alone."""
        kernel = self.kernels.transposed_table
        if not signed:
            kernel(y, starts, taps.astype(self.dtype), out)
            return
        out[...] = 0
        work, weights = self.xp.empty_like(out), np.empty(taps.shape, self.dtype)
        for sign, tap in itertools.product((1, -1), (1, -1)):
            np.multiply(taps, tap, out=weights, casting="same_kind")
            if np.maximum(weights, 0, out=weights).any():
                kernel(self.xp.maximum(sign * y, 0), starts, weights, work)
                if sign == tap:
                    out += work
                else:
                    out -= work

    # --- windows ----------------------------------------------------------------------------

    def _clipped(self, stack: Stack, op: Operation, number: int) -> Stack | None:
        """Cuts off what fell into the padding of an operation's map and books it; trims zero
        borders."""
        array, origin, ndim = stack.array, list(stack.origin), stack.ndim
        for axis, size in enumerate(op.maps[number].size_in or ()):
            start, count = origin[axis], array.shape[ndim + axis]
            first, last = max(-start, 0), min(size - start, count)
            if first == 0 and last == count:
                continue
            self._book(replace(stack, array=array, origin=tuple(origin)), axis, size, op, number)
            if last <= first:
                return None
            array = array[(slice(None),) * (ndim + axis) + (slice(first, last),)].copy()
            origin[axis] = start + first
            for at, off in _partners_off(stack.lags[axis], size - origin[axis], -origin[axis]):
                plane = array[(slice(None),) * axis + (at,)]
                plane[(slice(None),) * (ndim - 1 + axis) + (off,)] = 0
        variances = array[stack.here]
        kept, first_kept = self.sight.trimmed(variances, tuple(origin))
        if 0 in kept.shape:
            return None
        window = tuple(
            slice(f - o, f - o + n) for f, o, n in zip(first_kept, origin, kept.shape, strict=True)
        )
        array = self.xp.ascontiguousarray(array[(slice(None),) * ndim + window])
        return Stack(array, stack.lags, first_kept, stack.scale, stack.peak, stack.signed)

    def _book(self, stack: Stack, axis: int, size: int, op: Operation, number: int) -> None:
        """What of a stack is lost where one of two pixels, or both, lie off the map along an axis:
        each covariance by the gain of its lag."""
        found = lag_gains(self.graph, self.node, self.input_node).of(op, number, stack.lags)
        if found is None:
            return
        gains, scale = found
        others = tuple(stack.ndim + a for a in range(stack.ndim) if a != axis)
        for part, weights in _off(stack.spans[axis], stack.lags[axis], size):
            values = stack.array[(slice(None),) * (stack.ndim + axis) + (part,)]
            sums = values.sum(axis=others, dtype=np.float64)  # (lags …, pixels)
            own = gains[..., None] * _beside(weights, axis, stack.ndim)
            lost = (sums * self.xp.asarray(own)).sum()
            self.lost.append((lost, stack.scale * scale))

    def _book_ways(
        self, pair: Pair, stack: Stack, ways: tuple[Term, Term], arrived: Stack | None
    ) -> None:
        """What is lost on two deterministic ways: what they would pass without borders, less what
        they pass."""
        below = lag_gains(self.graph, self.node, self.input_node).planes[pair.below]
        gains = through_ways(*ways, below, stack.existing)
        for part, own, sign in ((stack, gains, 1.0), (arrived, below, -1.0)):
            if part is not None:
                pixels = tuple(range(part.ndim, 2 * part.ndim))
                sums = part.array.sum(axis=pixels, dtype=np.float64)
                passed = (sums * self.xp.asarray(of_held(own, part.lags))).sum()
                self.lost.append((passed, part.scale * own.scale * (sign * pair.factor)))


def _is_cut(stack: Stack, ways: tuple[Term, Term]) -> bool:
    """Whether something of a stack falls off a map on one of two ways."""
    for way, free in zip(ways, map(far_inside, ways), strict=True):
        along = zip(way, free, stack.spans, stack.lags, strict=True)
        for line, whole, (first, count), lags in along:
            window = (first + lags[0], count + lags[-1] - lags[0])
            if not np.array_equal(line.rows(*window)[1], whole.rows(*window)[1]):
                return True
    return False


@lru_cache(maxsize=KEPT_MAPS)
def _off(span: Span, lags: tuple[int, ...], size: int) -> list[tuple[slice, NDArray[np.float64]]]:
    """The parts of a window of whose pixels i or their partners i + lag some lie off a map, and 1
    where one of the two does, of shape (lags, pixels)."""
    i = np.arange(span[0], span[0] + span[1])
    ends = [i + t for t in (0, *lags)]
    off = np.array([(e < 0) | (e >= size) for e in ends])
    weights = np.where(off[1:] | off[0], 1.0, 0.0)
    used = np.flatnonzero(weights.any(axis=0))
    pieces = np.split(used, np.flatnonzero(np.diff(used) > 1) + 1)
    parts = [slice(int(piece[0]), int(piece[-1]) + 1) for piece in pieces]
    return [(part, weights[:, part]) for part in parts]


def _partners_off(lags: tuple[int, ...], after: int, before: int) -> Iterator[tuple[int, slice]]:
    """By index of a lag, the pixels i of a window that lies on a map whose pixel i + lag does not:
    those from `after` − lag on, or those below `before` − lag."""
    for number, lag in enumerate(lags):
        low, high = slice(0, max(before - lag, 0)), slice(max(after - lag, 0), None)
        yield number, low if lag < 0 else high


def _beside(weights: NDArray[Any], axis: int, ndim: int) -> NDArray[Any]:
    """Weights of shape (lags along an axis, pixels) to go with an array (lags per axis …,
    pixels)."""
    shape = [1] * ndim
    shape[axis] = len(weights)
    return weights.reshape(*shape, weights.shape[1])


def _growth(axis: AxisMap, taps: NDArray[Any] | None, count: int) -> float:
    """Bound on log2 of the factor by which the largest value can grow."""
    if isinstance(axis, Window | Spread):
        return math.log2(axis.kernel) if taps is None else 0.0
    # Each of so many pixels reaches another at most once.
    most = max(1.0, float(axis.taps.max())) if isinstance(axis, Table) else 1.0
    return math.log2(count * most)


def _around(array: Array, axis: int) -> Array:
    """A view with `axis` in the middle of three."""
    shape = array.shape
    return array.reshape(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))
