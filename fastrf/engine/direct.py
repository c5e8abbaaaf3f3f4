"""The direct engine: the dense variance image, layer by layer, from the unit to the input.

Luo et al. 2016, eq. 8, on any graph: each operation's transposed maps applied to the image of
what it writes, added up over everything that reads a map. Only nonnegative numbers are added, so
every pixel keeps its relative accuracy, far out in the tails too; the factored and the spectral
engine are measured against this one.

There are two ways to do it. Large images go layer by layer (`Walk`), each layer or run of layers
over all threads. Small ones, of which Python would take more time than the pixels, go through all
layers in one call of a kernel, which follows the graph's `program`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastrf.engine.chains import Run, chains, layer_of, run_from
from fastrf.engine.extents import check_path
from fastrf.engine.memory import Lease, Pool
from fastrf.engine.program import (
    fits_one_call,
    gain_below,
    mean_gain,
    mean_gains,
    program_of,
)
from fastrf.engine.rehearsal import survey
from fastrf.engine.scaled import ZERO, Headroom, Scaled
from fastrf.engine.sight import log2_of_sum, profile, sight_of, slab
from fastrf.engine.threads import Threads
from fastrf.engine.windows import Span, reached, united
from fastrf.errors import EmptyFieldError, UnboundedError
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import AxisMap, Everything, SpatialMap, Spread, Table, Window

if TYPE_CHECKING:
    from fastrf.engine.recompressed.tucker import TuckerImage
    from fastrf.engine.terms import FactoredImage

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Image:
    """A window of a plane's variance image: value = array · scale.

    Attributes:
        array: nonnegative values.
        origin: index of array[0, …] on the plane's map, per axis.
        scale: factor of all values.
        peak: upper bound of log2(array.max()).
        mass: lower bound of log2(array.sum()), −∞ where nobody asks for it.
        lease: keeps the memory of `array`.
    """

    array: Array
    origin: tuple[int, ...]
    scale: Scaled
    peak: float
    mass: float
    lease: Lease | None = None

    @property
    def spans(self) -> list[Span]:
        return list(zip(self.origin, self.array.shape, strict=True))

    def times(self, factor: float | Scaled) -> Image:
        return replace(self, scale=self.scale * factor)


@dataclass(frozen=True, slots=True)
class Propagated:
    """What the engine hands back.

    Attributes:
        image: the normalised image on the input (sum 1), no border row or column all zero; some
            engines hand it back in factors (`terms.FactoredImage`, `recompressed.TuckerImage`),
            which `pixels` multiplies out.
        origin: input index of image[0, …, 0].
        mass: gradient variance that arrived, per unit put in.
        lost: share of the gradient that fell into padding, each loss weighted with the mean gain
            from its layer to the input; of covariances, too, with that of their lag.
        dropped: share that was dropped on request (`tail`), weighted likewise.
    """

    image: Array | FactoredImage | TuckerImage
    origin: tuple[int, ...]
    mass: Scaled
    lost: float
    dropped: float

    def pixels(self, workers: int = 1) -> Array:
        """The image as an array."""
        formed: Array = (
            self.image.form(None, workers) if hasattr(self.image, "form") else self.image
        )
        return formed


def propagate(
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
    at_once: bool | None = None,
    xp: Any = np,
) -> Propagated:
    """The effective receptive field of one unit.

    Args:
        graph: the lowered network.
        node: the map that the unit is on.
        unit: its index per axis.
        input_node: the input map whose image is wanted.
        kernels: namespace of the kernels of `fastrf.kernels.spec`.
        dtype: float32 or float64, in which all images are held.
        workers: threads that share the tiles of a large layer.
        tail: share of the mass that may be dropped from the outside of images.
        progress: called with the share of operations done. On a GPU the work has been queued by
            then, and may go on.
        at_once: one of the `ways`: all layers in one call, or layer by layer. None: the one that
            the plan finds quicker.
        xp: array namespace of the images, NumPy or CuPy; it goes with `kernels`.

    Raises:
        UnboundedError: a global operator is on the way and the grid is unbounded.
        EmptyFieldError: all that the unit reads is padding.
        InputError: no path leads from the unit to the input.
    """
    dtype, progress = np.dtype(dtype), progress or (lambda share: None)
    if at_once is None and hasattr(kernels, "walk"):
        foreseen = survey(graph, node, unit, input_node, dtype, tail)
        at_once = foreseen.at_once and fits_one_call(foreseen.largest, tail)
    if at_once:
        found = propagate_at_once(graph, node, unit, input_node, kernels, dtype)
        progress(1.0)
        return found
    # A launch takes all of a GPU: its tiles are no threads'.
    with Threads(workers if xp is np else 0) as pool:
        walk = Walk(graph, node, input_node, kernels, dtype, pool, tail, xp)
        return walk.run(unit, progress)


def ways(kernels: Any, largest: int) -> dict[str, dict[str, bool]]:
    """The ways to compute images of up to so many pixels with a device's kernels, by name: the
    options of `propagate` that take each."""
    found = {"by layers": {"at_once": False}}
    if hasattr(kernels, "walk") and fits_one_call(largest, None):
        found["at once"] = {"at_once": True}
    return found


def propagate_at_once(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    kernels: Any,
    dtype: np.dtype[Any],
) -> Propagated:
    """As `propagate`, all layers in one call: by the graph's program, whatever the image's size."""
    program, room = program_of(graph, input_node), Headroom.of(dtype)
    entry = program.entries.get(node)
    if entry is None:
        raise nothing_read(graph, node, unit, input_node)
    place = np.array((0,) * (3 - graph.ndim) + unit, np.int64)
    headroom = (room.top, room.limit, room.shift)
    walked = kernels.walk(
        program.of_dtype(dtype), entry.instruction, entry.seeds, entry.shares, place, headroom
    )
    if walked.stopped >= 0:
        raise unbounded(program.stops[walked.stopped])
    if not walked.image.size:
        raise nothing_read(graph, node, unit, input_node)
    mass, lost = Scaled.of(*walked.mass), Scaled.of(*walked.lost)
    return Propagated(
        walked.image.reshape(walked.image.shape[3 - graph.ndim :]),
        walked.origin[3 - graph.ndim :],
        mass,
        lost.over(mass + lost),
        0.0,
    )


def unbounded(node: str) -> UnboundedError:
    return UnboundedError(
        f"{node}: each of its outputs reads the whole map, so the effective field is "
        f"unbounded; give input_size, or ignore_global=True to leave such paths out"
    )


def nothing_read(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    more: str = "",
) -> EmptyFieldError:
    """The error of a unit that reads nothing; `more` are further reasons.

    Raises:
        InputError: no path leads to the input at all.
    """
    check_path(graph, node, input_node)
    return EmptyFieldError(
        f"unit={unit} of {node!r} reads nothing of {input_node!r}, only padding"
        f"{', ' + more if more else ''} or the gaps of transposed convolutions; choose another unit"
    )


class Walk:
    """One pass backwards over the operations between a unit and an input."""

    def __init__(
        self,
        graph: PlaneGraph,
        node: str,
        input_node: str,
        kernels: Any,
        dtype: np.dtype[Any],
        threads: Threads,
        tail: float | None,
        xp: Any,
    ) -> None:
        self.graph, self.node, self.input_node = graph, node, input_node
        self.kernels, self.dtype, self.threads = kernels, dtype, threads
        self.xp, self.sight = xp, sight_of(xp)
        self.room = Headroom.of(dtype)
        self.pool = Pool(dtype, xp)
        self.images: dict[int, Image] = {}
        self.lost: list[tuple[Any, Scaled]] = []  # sums, which nobody has read yet, and factors
        self.dropped = ZERO
        self.gains = mean_gains(graph, input_node)
        self.operations = graph.between(node, input_node)
        self.drop_share = tail / max(len(self.operations), 1) if tail else 0.0

    def run(self, unit: tuple[int, ...], progress: Callable[[float], None]) -> Propagated:
        graph = self.graph
        for p in graph.planes_of[self.node]:
            seed = self.xp.full((1,) * graph.ndim, 2.0**self.room.top, dtype=self.dtype)
            scale = Scaled.of(graph.planes[p].share, -self.room.top)
            self.images[p] = Image(seed, unit, scale, self.room.top, self.room.top)
        done = 0
        pending = Counter(p for op in self.operations for p, _ in op.targets)
        for chain in chains(self.operations):
            for at in self.steps(chain):
                progress((done + at) / len(self.operations))
            self.release(chain, pending)
            done += len(chain)
            progress(done / len(self.operations))
        return self.finish(unit)

    def release(self, chain: tuple[Operation, ...], pending: Counter[int]) -> None:
        """Lets go of the images that no operation after this chain reads, of which `pending` tells
        how many each plane's waits for."""
        for p in (p for op in chain for p, _ in op.targets):
            pending[p] -= 1
            if not pending[p]:
                self.images.pop(p, None)

    def steps(self, chain: tuple[Operation, ...]) -> Iterator[int]:
        """Follows the gradient through a chain, from what it writes to what it reads; yields how
        many operations are done, all but the last time."""
        image = None
        for p, share in chain[0].targets:
            if p in self.images:
                image = self.sum(image, self.images[p].times(share))
        at = 0
        while image is not None and at < len(chain):
            image, at = self._advance(chain, at, image)
            if image is not None and at < len(chain):
                # Inside a chain one plane hands all to the next.
                image = image.times(chain[at - 1].sources[0][1] * chain[at].targets[0][1])
                yield at
        if image is None:
            return
        for q, share in chain[-1].sources:
            if self.gains[q].mantissa:
                self.images[q] = self.sum(self.images.get(q), image.times(share))

    def _advance(
        self, chain: tuple[Operation, ...], at: int, image: Image
    ) -> tuple[Image | None, int]:
        """The image behind one operation, or behind a run of them, and how far that is."""
        run = self._next_run(chain, at, image)
        if run is None:
            op, stop = chain[at], at + 1
            moved = self._single(op, image.times(op.gain))
        else:
            stop = at + run.operations
            moved = self._sweep(run, image)
        last = chain[stop - 1]
        if moved is not None and self.drop_share and (run is not None or last.maps):
            moved = self._drop_tails(moved, gain_below(self.gains, last), stop - at)
        return moved, stop

    def _single(self, op: Operation, image: Image) -> Image | None:
        below = gain_below(self.gains, op)
        for i in range(len(op.maps) - 1, -1, -1):
            rest = below
            for m in op.maps[:i]:
                rest = rest * mean_gain(m)
            moved = self._transpose(op, op.maps[i], image, rest)
            if moved is None:
                return None
            image = moved
        return image

    # --- many layers at once ----------------------------------------------------------------

    def _next_run(self, chain: tuple[Operation, ...], at: int, image: Image) -> Run | None:
        """The layers from `at` on that one kernel call takes; None where that does not pay."""
        first = layer_of(chain[at])
        if first is None:
            return None
        most = first.depth
        if first.taps is None:
            # Sums of weight 1 grow: one layer has room made for it, more must find it.
            room = max(self.room.limit - image.peak, first.bits)
            most = min(most, int(room / first.bits))
        run = run_from(chain, at, first, most, image.origin, image.array.shape)
        # One layer along a line, or one of unequal taps, is quicker by its own kernel.
        least = 2 if len(image.array.shape) == 1 or first.taps is not None else 1
        return run if run.layers >= least else None

    def _sweep(self, run: Run, image: Image) -> Image | None:
        """The image behind a run of equal layers."""
        layer, ndim = run.layer, len(run.shape)
        image = self._lowered(image, run.layers * layer.bits)
        out, lease = self.pool.take(run.shape)
        pad = (1,) * (3 - ndim)
        y3, out3 = image.array.reshape(*pad, *image.array.shape), out.reshape(*pad, *run.shape)
        axis = len(pad)  # tiles along the first true axis
        if layer.taps is not None:
            taps = self._constant(layer.taps.reshape(*pad, *layer.kernel))

        def sweep(a: int, b: int) -> None:
            lo = tuple(a if i == axis else 0 for i in range(3))
            tile = out3[(slice(None),) * axis + (slice(a, b),)]
            if layer.taps is None:
                self.kernels.box_run(y3, (*pad, *layer.kernel), run.layers, lo, tile)
            else:
                self.kernels.conv_run(y3, taps, run.layers, lo, tile)

        taps_of = sum if layer.taps is None else math.prod
        self.threads.cut(run.shape[0], out.size, sweep, run.layers * taps_of(layer.kernel))
        scale, growth = image.scale * run.gain, run.layers * layer.bits
        for _ in range(run.layers if layer.taps is None else 0):
            scale = scale / math.prod(layer.kernel)
        moved = Image(out, run.origin, scale, image.peak + growth, image.mass + growth, lease)
        return self._trim(moved, sunk=layer.taps is not None, fresh=True)

    # --- one map ----------------------------------------------------------------------------

    def _transpose(
        self, op: Operation, move: SpatialMap, image: Image, rest: Scaled
    ) -> Image | None:
        """The transposed map applied to an image; None where all of it fell into padding."""
        if move.is_global and move.size_in is None:
            raise unbounded(op.node)
        image = entered = image.times(move.gain)
        if isinstance(move.taps, np.ndarray):
            image = self._dense(move, image)
            return self._clip(move, entered, image, rest, sunk=True)
        # Sums of a Window with equal taps are never below their largest addend; all else can be.
        sunk = move.taps is not None or any(isinstance(a, Spread | Table) for a in move.axes)
        for axis, axis_map in enumerate(move.axes):
            taps = None if move.taps is None else move.taps[axis]
            if isinstance(axis_map, Window) and axis_map.kernel == axis_map.stride == 1:
                origin = _replaced(image.origin, axis, image.origin[axis] - axis_map.lo)
                image = replace(image, origin=origin)
                continue
            image = self._along(axis, axis_map, taps, image, move.size_in)
            if 0 in image.array.shape:
                return None
        return self._clip(move, entered, image, rest, sunk)

    def _along(
        self,
        axis: int,
        axis_map: AxisMap,
        taps: Array | None,
        image: Image,
        size: tuple[int, ...] | None,
    ) -> Image:
        """The transposed map along one axis, onto the whole window reached."""
        span = (image.origin[axis], image.array.shape[axis])
        n = None if size is None else size[axis]
        (start, count), _ = reached(axis_map, span, n)
        shape = _replaced(image.array.shape, axis, max(count, 0))
        origin = _replaced(image.origin, axis, start)
        if isinstance(axis_map, Everything):
            growth = math.log2(span[1])
            image = self._lowered(image, growth)
            out, lease = self.pool.take(shape)
            out[...] = image.array.sum(axis=axis, keepdims=True)
            mass = image.mass + math.log2(count)
            return Image(out, origin, image.scale / count, image.peak + growth, mass, lease)
        growth = _growth(axis_map, taps, span)
        image = self._lowered(image, growth)
        out, lease = self.pool.take(shape)
        y, flat = _around(image.array, axis), _around(out, axis)
        k = self.kernels
        if isinstance(axis_map, Table):
            starts, rows = axis_map.rows(*span)
            starts = starts - start
            rows = rows.astype(self.dtype)
            work = rows.size / max(count, 1)
            self._tiled(flat, lambda tile, a: k.transposed_table(y, starts - a, rows, tile), work)
            mass = image.mass + self.sight.least(axis_map, taps, span)
            return Image(out, origin, image.scale, image.peak + growth, mass, lease)
        stride, dilation = axis_map.stride, axis_map.dilation
        if isinstance(axis_map, Window):
            lo = axis_map.lo + start - span[0] * stride
            box, general = k.transposed_box, k.transposed_conv
            mass = image.mass + growth
        else:
            lo = axis_map.lo + span[0] - start * stride
            box, general = k.gather_box, k.strided_gather
            mass = image.mass + self.sight.least(axis_map, taps, span)
        # A tile that begins a pixels into x: there y's index is a strides further on.
        step = 1 if isinstance(axis_map, Window) else -stride
        scale = image.scale
        if taps is None:
            scale = scale / axis_map.kernel
            self._tiled(
                flat,
                lambda tile, a: box(y, axis_map.kernel, stride, dilation, lo + step * a, tile),
                2 + math.log2(1 + axis_map.kernel),
            )
        else:
            weights = self._constant(taps[None, :, None])
            self._tiled(
                flat,
                lambda tile, a: general(
                    y, weights, (1, stride, 1), (1, dilation, 1), (0, lo + step * a, 0), tile
                ),
                axis_map.kernel,
            )
        return Image(out, origin, scale, image.peak + growth, mass, lease)

    def _dense(self, move: SpatialMap, image: Image) -> Image:
        """Taps that are no product of one vector per axis."""
        assert isinstance(move.taps, np.ndarray)
        whole = [
            reached(axis, span, None)[0] for axis, span in zip(move.axes, image.spans, strict=True)
        ]
        shape = tuple(max(count, 0) for _, count in whole)
        origin = tuple(start for start, _ in whole)
        out, lease = self.pool.take(shape)
        pad = (1,) * (3 - len(shape))
        axes = [a for a in move.axes if isinstance(a, Window | Spread)]
        strides = (*pad, *(a.stride for a in axes))
        dilations = (*pad, *(a.dilation for a in axes))
        gather = isinstance(axes[0], Spread)
        lo = [
            a.lo + (y[0] - x[0] * a.stride if gather else x[0] - y[0] * a.stride)
            for a, x, y in zip(axes, whole, image.spans, strict=True)
        ]
        los = (*(0 for _ in pad), *lo)
        y3, out3 = image.array.reshape(*pad, *image.array.shape), out.reshape(*pad, *shape)
        taps = self._constant(move.taps.reshape(*pad, *move.taps.shape))
        kernel = self.kernels.strided_gather if gather else self.kernels.transposed_conv
        first = len(pad)  # tiles along the first true axis

        def run(a: int, b: int) -> None:
            shifted = list(los)
            shifted[first] += -a * strides[first] if gather else a
            tile = out3[(slice(None),) * first + (slice(a, b),)]
            kernel(y3, taps, strides, dilations, tuple(shifted), tile)

        self.threads.cut(shape[0], out.size, run, move.taps.size)
        mass = -math.inf if gather else image.mass  # taps of sum 1, of which phases meet a part
        return Image(out, origin, image.scale, image.peak, mass, lease)

    def _clip(
        self, move: SpatialMap, entered: Image, image: Image, rest: Scaled, sunk: bool
    ) -> Image | None:
        """Cuts off what fell into padding and books it; trims zero borders.

        Where the largest value may have sunk, by small taps or because it was cut off, the scale
        follows it, so that what is left keeps its headroom. The image that `entered` the map says
        how much may have been.
        """
        sizes = move.size_in or ()
        if any(
            start < 0 or start + count > size
            for (start, count), size in zip(image.spans, sizes, strict=False)
        ):
            image, sunk = self._summable(image), True
            image = replace(image, mass=image.mass + self.sight.kept(move, entered.spans))
        array, origin = image.array, image.origin
        for axis, size in enumerate(sizes):
            start, count = origin[axis], array.shape[axis]
            first, last = max(-start, 0), min(size - start, count)
            if first == 0 and last == count:
                continue
            if last <= first:
                self._book(array, image.scale, rest)
                return None
            self._book(array[slab(axis, 0, first)], image.scale, rest)
            self._book(array[slab(axis, last, count)], image.scale, rest)
            array = array[slab(axis, first, last)]
            origin = _replaced(origin, axis, start + first)
        fresh = image.lease is not entered.lease  # which planes may hold
        return self._trim(replace(image, array=array, origin=origin), sunk=sunk, fresh=fresh)

    def _trim(self, image: Image, *, sunk: bool, fresh: bool) -> Image | None:
        """The image without zero borders, and contiguous; None where nothing is left. Of one that
        is `fresh` nobody else holds the array."""
        array, origin = self.sight.trimmed(image.array, image.origin)
        if 0 in array.shape:
            return None
        lease = image.lease
        if not array.flags.c_contiguous:
            copy, lease = self.pool.take(array.shape)
            copy[...] = array
            array, fresh = copy, True
        image = replace(image, array=array, origin=origin, lease=lease)
        if sunk and self.sight.has_sunk(image.array, image.mass, self.room):
            image = self._rescaled(image, 0.0, fresh=fresh)
        return image if image.peak > -math.inf else None

    def _book(self, part: Array, scale: Scaled, rest: Scaled) -> None:
        if part.size:
            self.lost.append((part.sum(dtype=np.float64), scale * rest))

    def _drop_tails(self, image: Image, below: Scaled, operations: int) -> Image:
        """Drops outer slabs that hold at most these operations' part of the allowed tail."""
        image = self._summable(image)
        array, origin, mass = image.array, image.origin, image.mass
        for axis in range(array.ndim):
            # What the next window is depends on it: here a GPU is waited for.
            (along,) = self.sight.read(profile(array, axis))
            budget = along.sum() * self.drop_share * operations / (2 * array.ndim)
            first = int(np.searchsorted(np.cumsum(along), budget, side="right"))
            last = len(along) - int(np.searchsorted(np.cumsum(along[::-1]), budget, side="right"))
            if last <= first:
                first, last = 0, len(along)
            held = float(along[first:last].sum())
            mass = math.log2(held) if held > 0 else -math.inf
            if last - first == len(along):
                continue
            cut = along[:first].sum() + along[last:].sum()
            self.dropped += Scaled.of(float(cut)) * image.scale * below
            array = array[slab(axis, first, last)]
            origin = _replaced(origin, axis, origin[axis] + first)
        if array is image.array:
            return replace(image, mass=mass)
        copy, lease = self.pool.take(array.shape)
        copy[...] = array
        return replace(image, array=copy, origin=origin, mass=mass, lease=lease)

    # --- sums and scales --------------------------------------------------------------------

    def sum(self, a: Image | None, b: Image) -> Image:
        """The sum of two images of one plane, on the smallest window that holds both."""
        if a is None:
            return b
        if b.scale.exponent + b.peak > a.scale.exponent + a.peak:
            a, b = b, a
        a = self._lowered(a, 1.0)
        ratio = b.scale.over(a.scale)
        if ratio < np.finfo(self.dtype).tiny:
            # In two factors: b's values may be as far above 1 as the ratio is below.
            b = self._shifted(b, -self.room.shift)
            ratio = b.scale.over(a.scale)
        spans = [united(x, y) for x, y in zip(a.spans, b.spans, strict=True)]
        shape = tuple(count for _, count in spans)
        out, lease = self.pool.take(shape)
        if shape != a.array.shape:
            out[...] = 0
        own = tuple(
            slice(x[0] - s[0], x[0] - s[0] + x[1]) for x, s in zip(a.spans, spans, strict=True)
        )
        out[own] = a.array
        part = tuple(
            slice(x[0] - s[0], x[0] - s[0] + x[1]) for x, s in zip(b.spans, spans, strict=True)
        )
        self._accumulate(b.array, ratio, out[part])
        origin = tuple(start for start, _ in spans)
        bits = math.log2(ratio) if ratio > 0 else -math.inf
        peak, mass = log2_of_sum(a.peak, b.peak + bits), log2_of_sum(a.mass, b.mass + bits)
        return Image(out, origin, a.scale, peak, mass, lease)

    def _accumulate(self, y: Array, factor: float, out: Array) -> None:
        pad = (1,) * (3 - y.ndim)
        y3, out3 = y.reshape(*pad, *y.shape), out.reshape(*pad, *out.shape)
        self.kernels.accumulate(y3, self.dtype.type(factor), out3)

    def _lowered(self, image: Image, growth: float) -> Image:
        """The image with room for its values to grow by 2^growth."""
        return image if image.peak + growth <= self.room.limit else self._rescaled(image, growth)

    def _rescaled(self, image: Image, growth: float, fresh: bool = False) -> Image:
        """The image with its largest value near the top of the headroom, or as far below it as
        room for growth asks; in the same array where that is `fresh`, nobody else's."""
        peak, mass = self.sight.bounds(image.array, image.peak, image.mass, self.room)
        image = replace(image, peak=peak, mass=mass)
        if peak == -math.inf:
            return image  # all of it lay in the gaps of a transposed convolution
        shift = math.floor(min(self.room.top, self.room.limit - growth) - peak)
        enough = 0 <= shift <= self.sight.patience
        return image if enough else self._shifted(image, min(shift, self.room.shift), fresh)

    def _summable(self, image: Image) -> Image:
        """The image with room for the sum of its values; those of float32 are added in float64."""
        if self.dtype == np.float32:
            return image
        return self._lowered(image, math.log2(image.array.size))

    def _shifted(self, image: Image, shift: int, fresh: bool = False) -> Image:
        """The same image, its array times 2^shift; what becomes subnormal is 0."""
        array, lease = image.array, image.lease
        if fresh:
            array *= 2.0**shift
            if shift < 0:
                array[array < np.finfo(self.dtype).tiny] = 0
        else:
            array, lease = self.pool.take(image.array.shape)
            array[...] = 0
            self._accumulate(image.array, 2.0**shift, array)
        scale = image.scale * Scaled.of(1.0, -shift)
        return Image(array, image.origin, scale, image.peak + shift, image.mass + shift, lease)

    def finish(self, unit: tuple[int, ...]) -> Propagated:
        """The result, from the images on the input."""
        image = None
        for p in self.graph.planes_of[self.input_node]:
            if p in self.images:
                image = self.sum(image, self.images.pop(p))
        if image is None:
            raise nothing_read(self.graph, self.node, unit, self.input_node)
        self.pool.clear()
        image = self._summable(image)
        self.pool.clear()  # of the one that was scaled
        total = image.array.sum(dtype=np.float64)
        # In float64, for the sum may lie beyond float32. Where all is zero, which is not known yet,
        # there is nothing to divide.
        quotient = self.xp.divide(image.array, total + (total == 0), dtype=np.float64)
        array = quotient.astype(self.dtype, copy=False)
        array[array < np.finfo(self.dtype).tiny] = 0
        sums = [total, *(part for part, _ in self.lost)]
        array, origin, (arrived, *fallen) = self.sight.finished(array, image.origin, sums)
        if not array.size:
            raise nothing_read(self.graph, self.node, unit, self.input_node)
        mass = Scaled.of(arrived) * image.scale
        factors = (factor for _, factor in self.lost)
        lost = sum((Scaled.of(n) * f for n, f in zip(fallen, factors, strict=True)), ZERO)
        all_ = mass + lost + self.dropped
        return Propagated(array, origin, mass, lost.over(all_), self.dropped.over(all_))

    def _constant(self, weights: Array) -> Array:
        """Weights of a map in the dtype of the images."""
        return self.sight.constant(weights.astype(self.dtype))

    def _tiled(self, out: Array, run: Callable[[Array, int], None], work: float) -> None:
        """Runs a kernel of so much work per pixel over tiles of the middle axis of `out`."""
        self.threads.cut(out.shape[1], out.size, lambda a, b: run(out[:, a:b], a), work)


# --- arrays ---------------------------------------------------------------------------------


def _growth(axis: AxisMap, taps: Array | None, span: Span) -> float:
    """log2 of the factor by which the largest value can grow: the sum of the weights of one sum."""
    if isinstance(axis, Table):
        starts, rows = axis.rows(*span)
        pixels = starts[:, None] - starts.min() + np.arange(rows.shape[1])
        most = np.bincount(pixels.ravel(), rows.ravel()).max()
        return math.log2(most) if most > 0 else 0.0  # windows of padding alone hand nothing on
    return 0.0 if taps is not None or isinstance(axis, Everything) else math.log2(axis.kernel)


def _around(array: Array, axis: int) -> Array:
    """A view with `axis` in the middle of three."""
    shape = array.shape
    return array.reshape(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))


def _replaced(values: tuple[int, ...], axis: int, value: int) -> tuple[int, ...]:
    return (*values[:axis], value, *values[axis + 1 :])
