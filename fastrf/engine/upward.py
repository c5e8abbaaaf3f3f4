"""Dense images of all layers, in one pass up from the input.

On the unbounded grid the image of a unit is the sum, over what the unit reads, of the images of
the layer below, moved by the taps' distances on the input grid: a layer of dilation d on a map of
jump j is a convolution with taps j·d pixels apart (see `transfer`). One convolution per layer
gives the fields of all layers, where the direct engine goes back to the input for each of them.

Only nonnegative numbers are added, so that every pixel keeps its relative accuracy, and all is
computed in float64. As long as only separable layers follow each other, an image is held as its
lines, one an axis.

Range: arrays are held with a sum of 2^`TOP` or more and cut off below the smallest normal number,
which is 2^−1502 of the sum (2^−1182 at most where lines are multiplied out). A result shows
nothing below 2^−1022 of it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf.engine import profiles
from fastrf.engine.chains import MOST_TAPS, SMALLEST_TAP, WIDEST_BOX
from fastrf.engine.direct import Propagated
from fastrf.engine.profiles import TOP
from fastrf.engine.scaled import ZERO, Scaled
from fastrf.engine.sight import profile, sight_of, trimmed
from fastrf.engine.terms import held
from fastrf.engine.threads import Threads
from fastrf.engine.transfer import Jump, TransferFunction
from fastrf.engine.windows import united
from fastrf.kernels import load as load_kernels
from fastrf.lowering import Operation
from fastrf.maps import SpatialMap, Window

Floats = NDArray[np.float64]
Origin = tuple[int, ...]
Lag = tuple[int, ...]

_MOST_BITS = 960.0
"""log2 of the largest sum that an array may have before it is added to others."""

_TINY = float(np.finfo(np.float64).smallest_normal)


class Pixels:
    """The pixels of an image, which maps that differ only in gain and position share.

    Attributes:
        lines: one vector an axis, each of sum 2^`TOP`, whose outer product the image is, in the
            host's memory; None where it is no product.
        bits: upper bound of log2 of the sum of `array`.
    """

    def __init__(
        self,
        xp: Any,
        array: Floats | None,
        bits: float,
        lines: tuple[Floats, ...] | None = None,
    ) -> None:
        self._xp, self._array, self.bits, self.lines = xp, array, bits, lines
        self.result: tuple[NDArray[Any], Origin, float, float] | None = None

    def scaled(self, array: Floats, shift: int) -> Pixels:
        """These pixels times 2^shift, which `array` holds."""
        return Pixels(self._xp, array, self.bits + shift)

    @cached_property
    def array(self) -> Floats:
        """All pixels, C-contiguous."""
        if self._array is not None:
            return self._array
        assert self.lines is not None
        share = 2.0 ** math.floor(TOP / len(self.lines) - TOP)
        whole: Floats = self._xp.ones(())
        for line in self.lines:
            whole = whole[..., None] * self._xp.asarray(line * share)
        whole[whole < _TINY] = 0
        return whole


@dataclass(frozen=True, slots=True)
class Image:
    """The image of unit 0 of a plane: value = pixels · scale.

    Attributes:
        pixels: nonnegative.
        origin: input index of the first pixel, per axis.
        scale: factor of all pixels.
    """

    pixels: Pixels
    origin: Origin
    scale: Scaled


Family = dict[Lag, Image]
"""What a plane's gradients hand to the input: at lag 0, a variance of 1 at unit 0. The other lags
are for `upward_correlated`."""


def propagate_upward(
    function: TransferFunction,
    unit: tuple[int, ...],
    *,
    kernels: Any,
    dtype: Any = np.float64,
    workers: int = 1,
    tail: float | None = None,
    xp: Any = np,
) -> Iterator[tuple[str, Propagated]]:
    """The fields of `unit` on every node between the input and a node above, each as soon as it
    is made. An image is let go once nothing reads its map any more.

    Args:
        function: without an obstacle.
        unit: the same index on every map.
        kernels, dtype, workers, xp: as of `direct.propagate`.
        tail: share of the mass that may be dropped from the outside of each result.

    Yields:
        Node and field, in topological order. Maps that differ by no pixel share one array.
    """
    with Threads(workers if xp is np else 0) as threads:
        yield from Rise(function, kernels, np.dtype(dtype), threads, tail, xp).run(unit)


class Rise:
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
        self.function, self.graph = function, function.graph
        self.kernels, self.dtype, self.threads, self.tail = kernels, dtype, threads, tail
        self.xp, self.sight = xp, sight_of(xp)
        # Lines are short: they are not worth a GPU's while.
        self.line_kernels = kernels if xp is np else load_kernels("cpu")
        seed = Pixels(xp, None, TOP, (np.array([2.0**TOP]),) * self.graph.ndim)
        one = Image(seed, (0,) * self.graph.ndim, Scaled.of(1.0, -TOP))
        self.zero: Lag = (0,) * self.graph.ndim
        planes = self.graph.planes_of[function.input_node]
        self.families: dict[int, Family] = {p: {self.zero: one} for p in planes}
        self.pending = Counter(q for op in function.operations for q, _ in op.sources)
        # By lag, what was added up last, and its sum.
        self.latest: dict[Lag, tuple[list[Image], Image]] = {}

    def run(
        self, unit: tuple[int, ...], wanted: Container[str] | None = None
    ) -> Iterator[tuple[str, Propagated]]:
        """The fields of a unit of the nodes that are wanted (None: of all)."""
        for node, pieces in groupby(self.function.operations, key=lambda op: op.node):
            parts: dict[int, list[tuple[float, Family]]] = {}
            for op in pieces:
                family = self._applied(op)
                for p, share in op.targets:
                    parts.setdefault(p, []).append((share, family))
                for q, _ in op.sources:
                    self._release(q)
            own = {p: self._completed(p, self._united(terms)) for p, terms in parts.items()}
            self.families.update((p, family) for p, family in own.items() if self.pending[p])
            for lag in set(self.latest).difference(*own.values()):
                del self.latest[lag]  # nothing further up asks for it
            if wanted is None or node in wanted:
                shares = [(self.graph.planes[p].share, family) for p, family in own.items()]
                whole = self._mixed([(s, family[self.zero]) for s, family in shares], self.zero)
                place = [u * j for u, j in zip(unit, self.function.jump(node), strict=True)]
                yield node, self._finished(whole, place)

    def _release(self, plane: int) -> None:
        self.pending[plane] -= 1
        if not self.pending[plane]:
            self.families.pop(plane, None)

    def _read(self, op: Operation) -> tuple[Family, Jump]:
        """What an operation reads, its gain included, and the jump of that."""
        read = [(q, share) for q, share in op.sources if q in self.families]
        family = self._united([(share * op.gain, self.families[q]) for q, share in read])
        return family, self.function.jumps[read[0][0]]

    def _applied(self, op: Operation) -> Family:
        """What gradients of an operation's output hand to the input."""
        family, jump = self._read(op)
        image = family[self.zero]
        for move, windows in zip(op.maps, map(windows_of, op.maps), strict=True):
            image = self._moved(move, windows, jump, image)
            jump = tuple(j * a.stride for j, a in zip(jump, windows, strict=True))
        return {self.zero: image}

    def _completed(self, plane: int, family: Family) -> Family:
        """A plane's family, once all that it reads has been added up."""
        return family

    # --- one layer --------------------------------------------------------------------------

    def _moved(
        self, move: SpatialMap, windows: Sequence[Window], jump: Jump, image: Image
    ) -> Image:
        """The image of a map that reads this one."""
        origin = tuple(o - w.lo * j for o, w, j in zip(image.origin, windows, jump, strict=True))
        scale, pixels = image.scale * move.gain, image.pixels
        spacing = tuple(w.dilation * j for w, j in zip(windows, jump, strict=True))
        kernel = tuple(w.kernel for w in windows)
        if max(kernel) == 1:
            return Image(pixels, origin, scale)
        if isinstance(move.taps, np.ndarray):
            return self._trimmed(self._general(pixels, move.taps, spacing), origin, scale)
        if pixels.lines is not None:
            lines = tuple(
                self._lengthened(line, move.axis_taps(a), kernel[a], spacing[a])
                for a, line in enumerate(pixels.lines)
            )
            return self._trimmed(Pixels(self.xp, None, TOP, lines), origin, scale)
        growth = sum(math.log2(k) for a, k in enumerate(kernel) if move.axis_taps(a) is None)
        lowered = _lowered(image, growth)
        pixels, scale = lowered.pixels, lowered.scale * move.gain
        if move.taps is None and max(spacing) == 1 < len(kernel) and max(kernel) <= WIDEST_BOX:
            array = self._run(self.kernels.box_run, pixels.array, kernel, kernel)
        else:
            array = pixels.array
            for axis, k in enumerate(kernel):
                if k > 1:
                    array = self._pass(array, axis, move.axis_taps(axis), k, spacing[axis])
        for axis, k in enumerate(kernel):
            if move.axis_taps(axis) is None:
                scale = scale / k
        return self._trimmed(Pixels(self.xp, array, pixels.bits + growth), origin, scale)

    def _lengthened(self, line: Floats, taps: Floats | None, kernel: int, spacing: int) -> Floats:
        own = None if taps is None else np.asarray(taps, np.float64).tobytes()
        return profiles.extended(line, profiles.Factor(kernel, spacing, own), self.line_kernels)

    def _pass(
        self, array: Floats, axis: int, taps: Floats | None, kernel: int, spacing: int
    ) -> Floats:
        """A layer along one axis; equal taps count 1 each."""
        shape = list(array.shape)
        shape[axis] += spacing * (kernel - 1)
        out: Floats = self.xp.empty(shape)
        if taps is not None:
            weights = self.sight.constant(np.asarray(taps, np.float64)[None, :, None])
        y, flat = _around(array, axis), _around(out, axis)
        k = self.kernels

        def run(a: int, b: int) -> None:
            if taps is None:
                k.transposed_box(y, kernel, 1, spacing, a, flat[:, a:b])
            else:
                k.transposed_conv(y, weights, (1, 1, 1), (1, spacing, 1), (0, a, 0), flat[:, a:b])

        work = 2 + math.log2(1 + kernel) if taps is None else kernel
        self.threads.cut(shape[axis], out.size, run, work)
        return out

    def _general(self, pixels: Pixels, taps: Floats, spacing: Sequence[int]) -> Pixels:
        """A layer whose taps, of sum 1, are no product."""
        pad = (1,) * (3 - taps.ndim)
        whole = np.ascontiguousarray(taps, np.float64)
        taps3 = self.sight.constant(whole.reshape(*pad, *taps.shape))
        spread = (*pad, *spacing)
        if max(spread) == 1 and max(taps.shape) <= MOST_TAPS and taps.min() >= SMALLEST_TAP:
            array = self._run(self.kernels.conv_run, pixels.array, taps3, taps.shape)
            return Pixels(self.xp, array, pixels.bits)
        ends = zip(pixels.array.shape, taps.shape, spacing, strict=True)
        out = self.xp.empty([n + h * (k - 1) for n, k, h in ends])
        y3, out3 = pixels.array.reshape(*pad, *pixels.array.shape), out.reshape(*pad, *out.shape)

        def run(a: int, b: int) -> None:
            lo, tile = _tile(out3, len(pad), a, b)
            self.kernels.transposed_conv(y3, taps3, (1, 1, 1), spread, lo, tile)

        self.threads.cut(out.shape[0], out.size, run, taps.size)
        return Pixels(self.xp, out, pixels.bits)

    def _run(self, kernel: Any, array: Floats, taps: Any, widths: Sequence[int]) -> Floats:
        """One layer by a run kernel."""
        pad = (1,) * (3 - array.ndim)
        out: Floats = self.xp.empty([n + k - 1 for n, k in zip(array.shape, widths, strict=True)])
        y3, out3 = array.reshape(*pad, *array.shape), out.reshape(*pad, *out.shape)
        own = (*pad, *taps) if isinstance(taps, tuple) else taps

        def run(a: int, b: int) -> None:
            lo, tile = _tile(out3, len(pad), a, b)
            kernel(y3, own, 1, lo, tile)

        self.threads.cut(out.shape[0], out.size, run, math.prod(widths))
        return out

    # --- sums and scales --------------------------------------------------------------------

    def _united(self, terms: Sequence[tuple[float, Family]]) -> Family:
        """Σ share·family, of at least one."""
        lags = dict.fromkeys(lag for _, family in terms for lag in family)
        return {
            lag: self._mixed([(s, family[lag]) for s, family in terms if lag in family], lag)
            for lag in lags
        }

    def _mixed(self, terms: Sequence[tuple[float, Image]], lag: Lag) -> Image:
        """Σ share·image, of at least one, all of one lag."""
        images = [replace(image, scale=image.scale * share) for share, image in terms]
        if all(_at_once(image, images[0]) for image in images):
            return replace(images[0], scale=sum((image.scale for image in images), ZERO))
        images, all_of_them = self._with_latest(images, lag), images
        whole = self._sum(images)
        self.latest[lag] = (all_of_them, whole)
        return whole

    def _with_latest(self, images: list[Image], lag: Lag) -> list[Image]:
        """The summands with one in place of those that were added up last: a dense block's
        concatenations each begin with the one before, in the same proportions."""
        if lag not in self.latest:
            return images
        before, whole = self.latest[lag]
        count = len(before)
        if not 2 <= count <= len(images) or not all(map(_at_once, before, images[:count])):
            return images
        ratios = [x.scale.over(y.scale) for x, y in zip(images, before, strict=False)]
        if max(ratios) > min(ratios) * (1 + 4 * float(np.finfo(np.float64).eps)):
            return images
        return [replace(whole, scale=whole.scale * ratios[0]), *images[count:]]

    def _sum(self, images: Sequence[Image]) -> Image:
        if len(images) == 1:
            return images[0]
        scales = [image.scale for image in images]
        bits = [image.pixels.bits for image in images]
        most = max(range(len(images)), key=lambda i: scales[i].exponent + bits[i])
        ratios = [s.over(scales[most]) for s in scales]
        spans = [list(zip(i.origin, i.pixels.array.shape, strict=True)) for i in images]
        whole = [reduce(united, along) for along in zip(*spans, strict=True)]
        out = self.xp.zeros([count for _, count in whole])
        for image, own, ratio in zip(images, spans, ratios, strict=True):
            ends = zip(own, whole, strict=True)
            window = tuple(slice(a - w, a - w + n) for (a, n), (w, _) in ends)
            self._accumulate(image.pixels.array, ratio, out[window])
        total = sum(r * 2.0 ** (b - bits[most]) for r, b in zip(ratios, bits, strict=True))
        pixels = Pixels(self.xp, out, bits[most] + math.log2(total))
        return _lowered(Image(pixels, tuple(start for start, _ in whole), scales[most]), 0.0)

    def _accumulate(self, y: Floats, factor: float, out: Floats) -> None:
        pad = (1,) * (3 - y.ndim)
        y3, out3 = y.reshape(*pad, *y.shape), out[(None,) * len(pad)]
        axis = len(pad)

        def run(a: int, b: int) -> None:
            part = (slice(None),) * axis + (slice(a, b),)
            self.kernels.accumulate(y3[part], factor, out3[part])

        self.threads.cut(y.shape[0], y.size, run)

    def _trimmed(self, pixels: Pixels, origin: Origin, scale: Scaled) -> Image:
        """The image without zero borders."""
        if pixels.lines is not None:
            ends = [trimmed(line, (o,)) for line, o in zip(pixels.lines, origin, strict=True)]
            lines = tuple(np.ascontiguousarray(line) for line, _ in ends)
            return Image(Pixels(self.xp, None, TOP, lines), tuple(o for _, (o,) in ends), scale)
        array, origin = self.sight.trimmed(pixels.array, origin)
        if array is not pixels.array:
            pixels = Pixels(self.xp, np.ascontiguousarray(array), pixels.bits)
        return Image(pixels, origin, scale)

    def _finished(self, image: Image, place: Sequence[int]) -> Propagated:
        pixels = image.pixels
        if pixels.result is None:
            pixels.result = self._normalised(pixels.array)
        array, first, total, dropped = pixels.result
        start = zip(image.origin, first, place, strict=True)
        mass = image.scale * Scaled.of(total) * (1 - dropped)
        return Propagated(array, tuple(o + f + p for o, f, p in start), mass, 0.0, dropped)

    def _normalised(self, raw: Floats) -> tuple[NDArray[Any], Origin, float, float]:
        """The result, where it begins, the sum of `raw` and the share dropped."""
        sums = [raw.sum()]
        array: NDArray[Any] = raw / sums[0]
        first: Origin = (0,) * raw.ndim
        if self.tail:
            along = self.sight.read(*(profile(array, axis) for axis in range(raw.ndim)))
            box = [held(own, self.tail / raw.ndim) for own in along]
            array = array[tuple(slice(*ends) for ends in box)]
            first = tuple(start for start, _ in box)
            sums.append(array.sum())
            array = array / sums[1]
        array = array.astype(self.dtype, copy=False)
        array[array < np.finfo(self.dtype).smallest_normal] = 0
        array, first, (total, *kept) = self.sight.finished(array, first, sums)
        return array, first, total, max(0.0, 1 - kept[0]) if kept else 0.0


def _lowered(image: Image, growth: float) -> Image:
    """The image with room for the sum of its pixels to grow by 2^growth."""
    pixels = image.pixels
    if pixels.bits + growth <= _MOST_BITS:
        return image
    shift = math.floor(TOP - pixels.bits)
    array = pixels.array * 2.0**shift
    array[array < _TINY] = 0
    scale = image.scale * Scaled.of(1.0, -shift)
    return replace(image, pixels=pixels.scaled(array, shift), scale=scale)


def _at_once(a: Image, b: Image) -> bool:
    """Whether two images have the same pixels at the same place."""
    return a.pixels is b.pixels and a.origin == b.origin


def windows_of(move: SpatialMap) -> list[Window]:
    """The axes of a map with a transfer function."""
    return [axis for axis in move.axes if isinstance(axis, Window)]


def _around(array: Floats, axis: int) -> Floats:
    """A view with `axis` in the middle of three."""
    shape = array.shape
    return array.reshape(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))


def _tile(out: Floats, axis: int, start: int, stop: int) -> tuple[tuple[int, ...], Floats]:
    """Padding and view for the part start … stop−1 along one of three axes."""
    lo = tuple(start if i == axis else 0 for i in range(3))
    return lo, out[(slice(None),) * axis + (slice(start, stop),)]
