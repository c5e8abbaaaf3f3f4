"""The direct engine's walk without pixels: its windows, buffers, passes and what they cost.

The windows go backwards as `direct.Walk` will take the images, through the same runs of layers and
a pool of buffers of the same sizes, so that what it will hold at its fullest moment is known to the
buffer. What is not known is values: where images are trimmed, windows are upper bounds (`Reach`),
and largest values are taken for as large as they can be.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrf.engine import cost, scratch
from fastrf.engine.chains import Layer, chains, layer_of, layers_of_run
from fastrf.engine.memory import KEPT, room_for
from fastrf.engine.program import fits_one_call
from fastrf.engine.reach import Reach, marginal, merged, tail_nats, transposed
from fastrf.engine.scaled import Headroom
from fastrf.engine.threads import TILE_CELLS
from fastrf.engine.windows import Span, reached
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import AxisMap, Everything, SpatialMap, Spread, Table, Window

Buffer = list[int]
"""Its size in pixels, and how many hold it."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Survey:
    """What a walk will be.

    Attributes:
        operations: linear operations between the unit and the input.
        fixed: seconds that do not depend on pixels.
        shared: seconds that depend on them, in float64.
        cells: pixel updates.
        largest: pixels of the largest image.
        support: the image's window on the input.
        at_once: whether all layers had better go in one call.
        walked: bytes at the fullest moment before the result is made.
        each: what each thread but the first adds to them, or saves.
        finish: bytes at the fullest moment after that.
    """

    operations: int
    fixed: float
    shared: float
    cells: int
    largest: int
    support: tuple[Span, ...]
    at_once: bool
    walked: int
    each: int
    finish: int


def survey(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    dtype: np.dtype[Any],
    tail: float | None,
    seen: bool = True,
) -> Survey:
    """That of `direct.propagate`, on a device whose values are `seen` or are not
    (`sight.DeviceSight`): there windows are whole, and no call takes all layers."""
    key = ("survey", node, unit, input_node, dtype, tail, seen)

    def make() -> Survey:
        walk = Rehearsal(graph, node, input_node, dtype, tail, seen)
        for p in graph.planes_of[node]:
            # Axes on which the unit's index is the same share one object.
            at = {u: Reach((u, 1), (u, u), 0.0) for u in unit}
            walk.hold(p, tuple([at[u] for u in unit]))
        walk.follow(tuple(chains(graph.between(node, input_node))))
        return walk.finished()

    return graph.lately(key, make)


class Buffers:
    """The sizes of a `memory.Pool`'s buffers, in pixels.

    Attributes:
        total: of all of them, the free ones too.
    """

    def __init__(self) -> None:
        self._free: list[Buffer] = []
        self.total = 0

    def take(self, count: int) -> Buffer:
        found = -1
        for i, buffer in enumerate(self._free):
            if buffer[0] >= count and (found < 0 or buffer[0] < self._free[found][0]):
                found = i
        best = self._free.pop(found) if found >= 0 else [room_for(count), 0]
        self.total += best[0] if found < 0 else 0
        best[1] = 1
        return best

    def let_go(self, buffer: Buffer) -> None:
        buffer[1] -= 1
        if not buffer[1]:
            self._free.append(buffer)
            if len(self._free) > KEPT:
                self._free.sort()
                self.total -= self._free.pop(0)[0]

    def clear(self) -> None:
        self.total -= sum(size for size, _ in self._free)
        self._free.clear()


@dataclass(frozen=True, slots=True)
class Image:
    """As `direct.Image`, without values. Who is done with one lets go of its buffer.

    Attributes:
        reach: what its window may be.
        spans: the part of it that has values.
        shape, pixels: of the array.
        peak: upper bound of log2 of its largest value.
        buffer: holds the array.
    """

    reach: tuple[Reach, ...]
    spans: list[Span]
    shape: Shape
    pixels: int
    peak: float
    buffer: Buffer


@dataclass(frozen=True, slots=True)
class _Traits:
    """What is known of a map, wherever it is applied.

    Attributes:
        alone: nanoseconds of a pixel and of a row, where all layers go in one call.
        sinks: whether its largest value can sink.
        passes: axis, its map and taps, and nanoseconds of a pixel, for each that moves anything.
    """

    alone: tuple[float, float]
    sinks: bool
    passes: list[tuple[int, AxisMap, Any, float]]

    @staticmethod
    def of(move: SpatialMap) -> _Traits:
        sinks = move.taps is not None or any(isinstance(a, Spread | Table) for a in move.axes)
        passes: list[tuple[int, AxisMap, Any, float]] = []
        for i, axis in enumerate(() if isinstance(move.taps, np.ndarray) else move.axes):
            if not (isinstance(axis, Window) and axis.kernel == axis.stride == 1):
                taps = move.axis_taps(i)
                passes.append((i, axis, taps, pass_cost(axis, taps)))
        return _Traits(_alone_cost(move), sinks, passes)


class Rehearsal:
    """One walk over windows.

    Args:
        seen: as of `survey`.
        one_call: whether all layers may go in one call.
    """

    def __init__(
        self,
        graph: PlaneGraph,
        node: str,
        input_node: str,
        dtype: np.dtype[Any],
        tail: float | None,
        seen: bool = True,
        one_call: bool = True,
    ) -> None:
        self.graph, self.input_node = graph, input_node
        self.dtype, self.size, self.seen, self.tail = dtype, dtype.itemsize, seen, tail
        self.room = Headroom.of(dtype)
        self.one_call = one_call and seen
        self.count = len(graph.between(node, input_node))
        dropped = tail_nats(tail, graph.ndim * max(self.count, 1))
        values = (self.room.top - self.room.low) * math.log(2) if seen else math.inf
        self.nats = min(values, dropped)
        self.final = min(-self.room.low * math.log(2), dropped)
        self.images: dict[int, Image] = {}
        self.pool, self.slots = Buffers(), _Slots()
        self.fixed, self.cells = 0.0, 0
        self.nanoseconds, self.row_nanoseconds = 0.0, 0.0
        self.alone_pixels, self.alone_rows = 0.0, 0.0  # nanoseconds, where all goes in one call
        self.largest, self.most, self.most_of_two = 1, 0, 0
        # By the id of a map, which the graph keeps.
        self.known: dict[int, _Traits] = {}
        self.layers: dict[int, tuple[Layer | None, float, int]] = {}

    def hold(self, plane: int, reach: tuple[Reach, ...], pooled: bool = False) -> None:
        """Puts an image on a plane; a seed's is no buffer of the pool."""
        spans, shape = self._seen(reach)
        pixels = math.prod(shape)
        # With a first holder that never lets go, it does not become one.
        buffer = self.pool.take(pixels) if pooled else [1, 2]
        self.images[plane] = Image(reach, spans, shape, pixels, self.room.top, buffer)
        self.slots.hold(plane, pixels)

    def follow(self, pieces: Sequence[Sequence[Operation]]) -> None:
        """Takes the images through these chains (`chains.chains`), one after the other."""
        pending = Counter(p for chain in pieces for op in chain for p, _ in op.targets)
        for chain in pieces:
            self._follow(chain)
            for op in chain:
                for p, _ in op.targets:
                    pending[p] -= 1
                    gone = None if pending[p] else self.images.pop(p, None)
                    if gone is not None:
                        self.slots.drop(p)
                        self.pool.let_go(gone.buffer)

    def finished(self) -> Survey:
        """What was found, with the result."""
        image: Image | None = None
        for p in self.graph.planes_of[self.input_node]:
            if p in self.images:
                image = self.images[p] if image is None else self._sum(image, self.images[p])
        if image is None:  # the engine says why
            return Survey(self.count, self.fixed, 0.0, self.cells, 1, (), False, 0, 0, 0)
        self.pool.clear()
        if self.size == 8 and image.peak + math.log2(max(image.pixels, 1)) > self.room.limit:
            image = self._shifted(image, 0.0)
        walked, both = self.most, self.most_of_two
        support = tuple(r.within(self.final) for r in image.reach)
        result = math.prod(max(count, 0) for _, count in support)
        # Quotients in float64, cast to a narrower type, and which are too small; a result that is
        # cut out of them is a copy.
        quotients = (8 + (self.size if self.size < 8 else 0)) * image.pixels
        cut = 0 if result == image.pixels else self.size * result
        beside = max(image.pixels, cut)
        if not self.seen:  # where its values begin is known in the end, so that it is always cut
            beside = image.pixels + self.size * image.pixels
        finish = self.size * image.buffer[0] + quotients + beside
        write = image.pixels * cost.WRITE_NANOSECONDS
        alone = cost.dtype_factor(self.dtype) * (self.alone_pixels + write) + self.alone_rows
        at_once = cost.CALL_SECONDS + self.count * cost.INSTRUCTION_SECONDS + 1e-9 * alone
        self.fixed += cost.WALK_CALL_SECONDS
        self.nanoseconds += write
        by_type = cost.dtype_factor(self.dtype) * self.nanoseconds
        shared = 1e-9 * (by_type + self.row_nanoseconds)
        quicker = self.one_call and fits_one_call(self.largest, self.tail)
        quicker = quicker and at_once < self.fixed + shared
        if quicker:
            memory = self.size * self.slots.total + max(self.slots.beside, self.size * result)
            return Survey(
                self.count, at_once, 0.0, self.cells, self.largest, support, True, memory, 0, 0
            )
        return Survey(
            self.count,
            self.fixed,
            shared,
            self.cells,
            self.largest,
            support,
            False,
            walked,
            both - walked,
            finish,
        )

    # --- chains -----------------------------------------------------------------------------

    def _follow(self, chain: Sequence[Operation]) -> None:
        image: Image | None = None
        for p, _ in chain[0].targets:
            other = self.images.get(p)
            if other is None:
                continue
            if image is None:
                other.buffer[1] += 1
                image = other
            else:
                image = self._instead(image, self._sum(image, other))
            self.slots.enter(p, image.pixels)
        at = 0
        while image is not None and at < len(chain):
            entered = image
            image, at = self._advance(chain, at, entered)
            self.pool.let_go(entered.buffer)
        if image is None:
            self.slots.leave()
            return
        for q, _ in chain[-1].sources:
            before = self.images.get(q)
            if before is None:
                image.buffer[1] += 1
                self.images[q] = image
            else:
                self.images[q] = self._instead(before, self._sum(before, image))
            self.slots.hand(q, self.images[q].pixels)
        self.slots.leave()
        self.pool.let_go(image.buffer)

    def _advance(
        self, chain: Sequence[Operation], at: int, image: Image
    ) -> tuple[Image | None, int]:
        """As `direct.Walk._advance`; the image that comes out is held by whoever takes it."""
        op = chain[at]
        if not op.maps:
            self.fixed += cost.POINTWISE_SECONDS
            image.buffer[1] += 1
            self.slots.step()
            return image, at + 1
        if self.tail is not None:
            self.fixed += len(image.spans) * cost.TAIL_SECONDS
        first, bits, most = self._layer(op)
        if first is not None:
            if bits:
                most = min(most, int(max(self.room.limit - image.peak, bits) / bits))
            layers, used = layers_of_run(chain, at, first, most, image.spans)
            if layers >= (2 if len(image.spans) == 1 or first.taps is not None else 1):
                self.fixed += used * cost.LAYER_SECONDS
                return self._swept(op.maps[0], first, layers, image), at + used
        self.fixed += cost.LAYER_SECONDS
        found: Image | None = image
        image.buffer[1] += 1
        self.slots.step()
        for move in reversed(op.maps):
            if found is not None:
                found = self._moved(move, found)
        return found, at + 1

    def _swept(self, move: SpatialMap, layer: Layer, layers: int, image: Image) -> Image:
        """As `direct.Walk._sweep`."""
        lowered = self._lowered(image, layers * layer.bits)
        reach: list[Reach] = []
        shape, before = [], []
        for i, axis in enumerate(move.axes):
            assert isinstance(axis, Window)
            taps = marginal(move, i)
            own = image.reach[i]
            if i and own is image.reach[i - 1] and taps is None and axis == move.axes[i - 1]:
                reach.append(reach[-1])
            else:
                reach.append(own.behind(axis, taps, layers))
            shape.append(image.shape[i] + layers * axis.span)
            before.append(shape[i] - axis.span)
        pixels = math.prod(shape)
        buffer = self.pool.take(pixels)
        if not self.seen:
            self._note(0)
        elif pixels < 2 * TILE_CELLS:
            self._note(scratch.of_sweep(layer, layers, shape, self.size, 1))
        else:
            for workers in (1, 2):
                self._note(scratch.of_sweep(layer, layers, shape, self.size, workers), workers)
        self.fixed += cost.SWEEP_CALL_SECONDS
        self._work(pixels, _run_cost(move, layers, self.seen))
        self.cells += _updates(image.shape, shape, layers)
        # Simpson's rule, for the layers one by one.
        middle = [(n + m) / 2 for n, m in zip(image.shape, shape, strict=True)]
        for sides, part in ((image.shape, 1 / 6), (middle, 4 / 6), (shape, 1 / 6)):
            self._work_alone(move, sides, part * layers)
        for last in (before, shape)[-layers:]:
            self.slots.step()
            self.slots.move(math.prod(last), _aside(move, before, last))
            self.slots.beside = max(self.slots.beside, _beside(move, before, last, self.size))
        if lowered is not image:
            self.pool.let_go(lowered.buffer)
        peak = lowered.peak + layers * layer.bits
        return self._trimmed(tuple(reach), tuple(shape), pixels, peak, buffer)

    # --- one map ----------------------------------------------------------------------------

    def _moved(self, move: SpatialMap, image: Image) -> Image | None:
        """As `direct.Walk._transpose`; None where all of it is padding. Lets go of `image`."""
        sizes = move.size_in or (None,) * len(image.shape)
        if move.is_global and move.size_in is None:
            self.pool.let_go(image.buffer)
            return None  # the engine refuses it with the layer's name
        found: list[Reach] = []
        for i, (axis, own) in enumerate(zip(move.axes, image.reach, strict=True)):
            taps = marginal(move, i)
            alike = i and own is image.reach[i - 1] and axis is move.axes[i - 1]
            if alike and sizes[i] == sizes[i - 1] and taps is None:
                found.append(found[-1])
            else:
                found.append(transposed(axis, own, sizes[i], taps))
        reach = tuple(found)
        for r in reach:
            if r.span[1] <= 0:
                self.pool.let_go(image.buffer)
                return None
        spans = image.spans
        whole = [reached(a, s, n)[0][1] for a, s, n in zip(move.axes, spans, sizes, strict=True)]
        traits = self._traits(move)
        sinks = traits.sinks
        for count, r in zip(whole, reach, strict=True):
            sinks = sinks or count > r.span[1]
        entered = image
        entered.buffer[1] += 1  # held until the map is done
        if isinstance(move.taps, np.ndarray):
            image = self._passed(image, tuple(whole), 0.0, 0)
            pixel, row = correlate_cost(move.taps.size)
            self._work(image.pixels, pixel)
            self.row_nanoseconds += math.prod(whole[:-1]) * row
        else:
            shape = list(image.shape)
            for i, axis, taps, nanoseconds in traits.passes:
                shape[i] = whole[i]
                growth = _growth(axis, taps, spans[i][1])
                if self.seen:
                    beside = scratch.of_pass(axis, taps, shape, i, self.size)
                else:  # sums from either end of each window (`kernels.cuda._windows`)
                    beside = 2 * self.size * image.pixels if taps is None else 0
                image = self._passed(image, tuple(shape), growth, beside)
                self._work(image.pixels, nanoseconds)
        self.cells += math.prod(whole)
        self._work_alone(move, whole)
        self.slots.move(math.prod(whole), _aside(move, entered.shape, whole))
        self.slots.beside = max(self.slots.beside, _beside(move, entered.shape, whole, self.size))
        before = image.buffer
        before[1] += 1  # held as long as what is made of it
        image = self._trimmed(reach, image.shape, image.pixels, image.peak, before)
        if sinks and self.seen and image.peak > self.room.top:
            fresh = image.buffer is not entered.buffer
            steady = self._shifted(image, 0.0, fresh)
            image = steady if fresh else self._instead(image, steady)
        self.pool.let_go(before)
        self.pool.let_go(entered.buffer)
        return image

    def _passed(self, image: Image, shape: Shape, growth: float, bytes_beside: int) -> Image:
        """The image behind one pass; lets go of the one before."""
        lowered = self._lowered(image, growth)
        pixels = math.prod(shape)
        buffer = self.pool.take(pixels)
        self._note(bytes_beside)
        if lowered is not image:
            self.pool.let_go(lowered.buffer)
        self.pool.let_go(image.buffer)
        self.fixed += cost.PASS_SECONDS
        return Image(image.reach, image.spans, shape, pixels, lowered.peak + growth, buffer)

    def _trimmed(
        self, reach: tuple[Reach, ...], whole: Shape, pixels: int, peak: float, buffer: Buffer
    ) -> Image:
        """What of an image is on its map and has values: a copy, where that is not contiguous."""
        spans, shape = self._seen(reach)
        if shape != whole:
            pixels = math.prod(shape)
            if shape[1:] != whole[1:]:
                copy = self.pool.take(pixels)
                self._note(0)
                self.pool.let_go(buffer)
                buffer = copy
        return Image(reach, spans, shape, pixels, peak, buffer)

    # --- sums and scales --------------------------------------------------------------------

    def _sum(self, a: Image, b: Image) -> Image:
        lowered = self._lowered(a, 1.0)
        reach = merged(a.reach, b.reach)
        spans, shape = self._seen(reach)
        pixels = math.prod(shape)
        buffer = self.pool.take(pixels)
        self._note(0)
        if lowered is not a:
            self.pool.let_go(lowered.buffer)
        self.fixed += cost.SUM_SECONDS
        self._work(pixels, cost.BOX_NANOSECONDS)
        self.cells += pixels
        self.alone_pixels += pixels * cost.SUM_NANOSECONDS
        return Image(reach, spans, shape, pixels, max(lowered.peak, b.peak) + 1, buffer)

    def _lowered(self, image: Image, growth: float) -> Image:
        if image.peak + growth <= self.room.limit:
            return image
        return self._shifted(image, growth)

    def _shifted(self, image: Image, growth: float, fresh: bool = False) -> Image:
        """The image with room to grow: beside the old one, which its holders keep, or, where that
        is `fresh`, in its place, and which values are too small."""
        buffer = image.buffer if fresh else self.pool.take(image.pixels)
        self._note(image.pixels if fresh else 0)
        self.fixed += cost.SUM_SECONDS
        self._work(image.pixels, cost.BOX_NANOSECONDS)
        shift = math.floor(min(self.room.top, self.room.limit - growth) - image.peak)
        peak = image.peak + shift
        return Image(image.reach, image.spans, image.shape, image.pixels, peak, buffer)

    def _instead(self, old: Image, new: Image) -> Image:
        self.pool.let_go(old.buffer)
        return new

    def _layer(self, op: Operation) -> tuple[Layer | None, float, int]:
        """The layer that an operation is in a run, what its values grow by, and its depth."""
        key = id(op.maps[0]) if len(op.maps) == 1 else 0
        found = self.layers.get(key)
        if found is None:
            layer = layer_of(op)
            found = (None, 0.0, 0) if layer is None else (layer, layer.bits, layer.depth)
            self.layers[key] = found
        return found

    def _traits(self, move: SpatialMap) -> _Traits:
        found = self.known.get(id(move))
        if found is None:
            found = self.known[id(move)] = _Traits.of(move)
        return found

    # --- counts -----------------------------------------------------------------------------

    def _seen(self, reach: tuple[Reach, ...]) -> tuple[list[Span], Shape]:
        """What of it has values, and how many pixels that is along every axis."""
        spans: list[Span] = []
        for i, r in enumerate(reach):
            # Of axes that are alike, one is looked at.
            spans.append(spans[-1] if i and r is reach[i - 1] else r.within(self.nats))
        return spans, tuple([max(count, 0) for _, count in spans])

    def _note(self, beside: int, workers: int = 0) -> None:
        """Notes what is held now, with so many bytes that a kernel takes beside the pool; of 0
        workers, any number."""
        held = self.size * self.pool.total + beside
        if workers < 2:
            self.most = max(self.most, held)
        if workers != 1:
            self.most_of_two = max(self.most_of_two, held)

    def _work(self, pixels: int, nanoseconds: float) -> None:
        self.nanoseconds += pixels * nanoseconds
        self.largest = max(self.largest, pixels)

    def _work_alone(self, move: SpatialMap, shape: Sequence[float], layers: float = 1.0) -> None:
        """Counts so many layers of this shape, where all goes in one call."""
        (pixel, row), last = self._traits(move).alone, move.axes[-1]
        rows, pixels = layers * math.prod(shape[:-1]), shape[-1]
        if isinstance(last, Window) and last.kernel > cost.CACHED_ROW:
            pixels += last.span  # sums of sums go through the line with room at both ends
        far = cost.FROM_MEMORY if pixels > cost.CACHED_ROW else 1.0
        self.alone_pixels += rows * pixels * pixel * far
        self.alone_rows += rows * row


class _Slots:
    """Pixels of the slots in which one call holds its images (`program`); the value that is being
    followed is in one of them, and each plane's in one."""

    def __init__(self) -> None:
        self.needs: list[int] = []
        self.beside = 0  # bytes that the call holds besides
        self.holders: list[int] = []
        self.of: dict[int, int] = {}
        self.at: int | None = None
        self.entered: int | None = None  # what the operation begins with, kept until the next

    @property
    def total(self) -> int:
        return sum(self.needs)

    def _free(self, pixels: int) -> int:
        if 0 not in self.holders:
            self.holders.append(0)
            self.needs.append(0)
        found = self.holders.index(0)
        self.needs[found] = max(self.needs[found], pixels)
        return found

    def _follow(self, slot: int) -> None:
        self.holders[slot] += 1
        if self.at is not None:
            self.holders[self.at] -= 1
        self.at = slot

    def hold(self, plane: int, pixels: int) -> None:
        """A plane begins to hold an image."""
        self.of[plane] = self._free(pixels)
        self.holders[self.of[plane]] += 1

    def drop(self, plane: int) -> None:
        self.holders[self.of.pop(plane)] -= 1

    def enter(self, plane: int, pixels: int) -> None:
        """A plane's image is followed, or added to the one that is."""
        self._follow(self.of[plane] if self.at is None else self._free(pixels))

    def step(self) -> None:
        """The next operation begins."""
        if self.entered is not None:
            self.holders[self.entered] -= 1
        self.entered = self.at
        if self.at is not None:
            self.holders[self.at] += 1

    def move(self, pixels: int, work: int = 0) -> None:
        """The image becomes another one, with so many pixels to work in beside both."""
        before, self.at = self.at, None
        self._follow(self._free(pixels))
        if work:
            self._free(work)
        if before is not None:
            self.holders[before] -= 1

    def hand(self, plane: int, pixels: int) -> None:
        """A plane gets it."""
        assert self.at is not None
        before = self.of.get(plane)
        self.of[plane] = self.at if before is None else self._free(pixels)
        self.holders[self.of[plane]] += 1
        if before is not None:
            self.holders[before] -= 1

    def leave(self) -> None:
        """Nothing is followed any more."""
        if self.at is not None:
            self.holders[self.at] -= 1
        if self.entered is not None:
            self.holders[self.entered] -= 1
        self.at = self.entered = None


def _aside(move: SpatialMap, y: Sequence[int], x: Sequence[int]) -> int:
    """Pixels that one call works in besides: of taps that are no product, what enters with room at
    both ends; of the first axis of three, what it makes."""
    if isinstance(move.taps, np.ndarray):
        last = move.axes[-1]
        assert isinstance(last, Window | Spread)
        return math.prod(y[:-1]) * (y[-1] + 2 * (last.span + last.stride + 1))
    if len(y) < 3 or (isinstance(move.axes[0], Window) and move.axes[0].kernel == 1):
        return 0
    return x[0] * math.prod(y[1:])


def _updates(before: Sequence[int], behind: Sequence[int], layers: int) -> int:
    """Pixels of all layers of a run, in which every side grows by as much in each."""
    n = layers
    # Σ lᵏ over the layers, and by k the coefficients of the product of the sides of layer l.
    sums = (n, n * (n + 1) // 2, n * (n + 1) * (2 * n + 1) // 6, (n * (n + 1) // 2) ** 2)
    a, b, c, d = 1, 0, 0, 0
    for first, last in zip(before, behind, strict=True):
        grown = (last - first) // n
        a, b, c, d = first * a, first * b + grown * a, first * c + grown * b, first * d + grown * c
    return a * sums[0] + b * sums[1] + c * sums[2] + d * sums[3]


LONG = 6
"""Equal taps from whose number on one call sums rows by doubling (`kernels.cpu.walk`)."""


def _beside(move: SpatialMap, y: Sequence[int], x: Sequence[int], size: int) -> int:
    """Bytes that one call allocates for a layer: the line between two axes, with room at both ends;
    a plane of such lines where windows of rows are doubled; and which rows meet, at which taps."""
    if isinstance(move.taps, np.ndarray):
        return move.taps.size * (8 + size)
    last, taps = move.axes[-1], move.axis_taps(len(y) - 1)
    found = meeting = 0
    if not isinstance(last, Table | Everything) and last.kernel > 1:
        meeting = last.kernel * (3 * 8 + size)
        line = y[-1] + 2 * (last.span + last.stride + 1)
        found += line * (3 if _is_long(last, taps) else 1) + (x[-1] if last.stride > 1 else 0)
    if len(y) < 2:
        return size * found + meeting
    axis, taps = move.axes[-2], move.axis_taps(len(y) - 2)
    if _is_long(axis, taps):
        assert isinstance(axis, Window)
        found += 3 * (y[-2] + 2 * axis.span) * y[-1]
    taps_of = axis.taps.shape[1] if isinstance(axis, Table) else getattr(axis, "kernel", x[-2])
    return size * found + meeting + max(y[-2], x[-2]) * taps_of * (3 * 8 + size)


def _is_long(axis: AxisMap, taps: Any) -> bool:
    one = isinstance(axis, Window) and axis.stride == 1 and axis.kernel > LONG
    return one and taps is None


# --- costs of a pixel -----------------------------------------------------------------------


def _run_cost(move: SpatialMap, layers: int, on_cpu: bool) -> float:
    """Of a sweep of so many layers."""
    if move.taps is not None:
        taps = move.taps.size if isinstance(move.taps, np.ndarray) else 1
        return cost.SWEEP_NANOSECONDS + layers * taps * cost.RUN_TAP_NANOSECONDS
    windows = [a for a in move.axes if isinstance(a, Window) and a.kernel > 1]
    taps = sum(layers * (a.kernel - 1) + 1 for a in windows)
    times = cost.VOLUME_TIMES if on_cpu and len(windows) > 2 else 1.0
    return times * (cost.SWEEP_NANOSECONDS + taps * cost.RUN_TAP_NANOSECONDS)


def pass_cost(axis: AxisMap, taps: Any) -> float:
    """Of a pass along one axis."""
    if isinstance(axis, Table):
        return int(axis.taps.shape[1]) * cost.TABLE_NANOSECONDS
    if taps is not None:
        return len(taps) * cost.TAP_NANOSECONDS
    return cost.box_nanoseconds(axis.kernel) if isinstance(axis, Window) else cost.BOX_NANOSECONDS


def correlate_cost(taps: int) -> tuple[float, float]:
    """Of a pass of so many taps that are no product; and that of a row."""
    pixel = cost.CORRELATE_NANOSECONDS + taps * cost.CORRELATE_TAP_NANOSECONDS
    return pixel, taps * cost.CORRELATE_ROW_NANOSECONDS


def _alone_cost(move: SpatialMap) -> tuple[float, float]:
    """Of a layer, where all layers go in one call; and that of a row."""
    if isinstance(move.taps, np.ndarray):
        taps = move.taps.size
        return (
            cost.PIXEL_NANOSECONDS + taps * cost.ALONE_TAP_NANOSECONDS,
            cost.DENSE_ROW_NANOSECONDS + taps * cost.DENSE_TAP_NANOSECONDS,
        )
    pixel, row = cost.PIXEL_NANOSECONDS, cost.ROW_CALL_NANOSECONDS
    for i, axis in enumerate(move.axes):
        if isinstance(axis, Table):
            pixel += int(axis.taps.shape[1]) * cost.TABLE_NANOSECONDS
        elif not isinstance(axis, Everything) and axis.kernel > 1:
            long = _is_long(axis, move.axis_taps(i))  # sums of twice the length from sums
            count = 2 * math.log2(axis.kernel) if long else axis.kernel
            pixel += count * cost.ALONE_TAP_NANOSECONDS
            row += count * cost.ROW_TAP_NANOSECONDS
    return pixel, row


def _growth(axis: AxisMap, taps: Any, pixels: int) -> float:
    """As `direct._growth`; of a table, that of rows of sum 1 and equal taps."""
    if isinstance(axis, Everything):
        return math.log2(pixels)
    if isinstance(axis, Table):
        return math.log2(max(1.0, axis.period / axis.advance)) if axis.advance else 1.0
    return 0.0 if taps is not None else math.log2(axis.kernel)
