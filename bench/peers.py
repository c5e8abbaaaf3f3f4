"""What a user could run instead, on the same lowered network, each at its best.

Single-channel linear networks whose weights are the tap variances: what fastrf computes, written
with another library's fastest call for a layer. Separable taps take one pass per axis; subnormal
numbers are flushed to zero, without which every one of them would lose by far more. Preparing (our
lowering, their weights) is outside the timing, while fastrf's own time is that of the whole verb.

`relative` peers are right pixel by pixel, the others only relative to the whole image.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import count
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage, signal

from bench import stack_peers
from bench.cases import Case, network_of
from bench.record import seconds
from fastrf.analytic.geometry import receptive_field
from fastrf.lowering import Operation, PlaneGraph, lower
from fastrf.maps import AxisMap, SpatialMap, Spread, Table

Image = tuple[Any, tuple[int, ...]]
"""An array of the library and the index of its first element on the map."""

Run = Callable[[], Image]

ALL_THREADS = torch.get_num_threads()


@dataclass(frozen=True)
class Peer:
    """A library and a way of using it: `prepare(case)` gives what is timed."""

    prepare: Callable[[Case], Run]
    relative: bool


@contextmanager
def flushed() -> Iterator[None]:
    """Subnormal results count as zero on this thread, and on those it starts."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


# --- layer by layer, from the unit down -----------------------------------------------------


class Library(ABC):
    """One library's calls for a layer; `Backward` walks a graph with them."""

    def zeros(self, shape: tuple[int, ...]) -> Any:
        return np.zeros(shape)

    def pad(self, y: Any, pads: list[tuple[int, int]]) -> Any:
        return np.pad(y, pads)

    def matrix(self, y: Any, axis: int, rows: Any) -> Any:
        """``rows``ᵀ applied along one axis."""
        return np.moveaxis(np.tensordot(rows, y, (0, axis)), 0, axis)

    @abstractmethod
    def correlate(self, y: Any, taps: Any, strides: list[int]) -> Any:
        """Windows that lie inside of y, every `strides`-th."""

    def weights(self, taps: np.ndarray) -> Any:
        """Taps as `correlate` takes them."""
        return taps

    transpose: Callable[[Any, Any, list[int], list[int]], Any] | None = None
    """``transpose(y, taps, steps, dilations)``, where the library has the transposed convolution
    itself."""


class Torch(Library):
    """A convolution of one channel. Padding outside of it keeps oneDNN's fastest path."""

    def zeros(self, shape: tuple[int, ...]) -> Any:
        return torch.zeros(shape, dtype=torch.float64)

    def pad(self, y: Any, pads: list[tuple[int, int]]) -> Any:
        return F.pad(y, [n for pair in reversed(pads) for n in pair])

    def matrix(self, y: Any, axis: int, rows: Any) -> Any:
        return torch.movedim(torch.tensordot(torch.from_numpy(rows), y, ([0], [axis])), 0, axis)

    def weights(self, taps: np.ndarray) -> Any:
        return torch.from_numpy(np.ascontiguousarray(taps))[None, None]

    def correlate(self, y: Any, taps: Any, strides: list[int]) -> Any:
        convolve = (F.conv1d, F.conv2d, F.conv3d)[y.ndim - 1]
        return convolve(y[None, None], taps, stride=strides)[0, 0]


class TorchTransposed(Torch):
    """The call that the backward pass of a convolution is."""

    def transpose(self, y: Any, taps: Any, steps: list[int], dilations: list[int]) -> Any:
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[y.ndim - 1]
        return transposed(y[None, None], taps, stride=steps, dilation=dilations)[0, 0]


class NdImage(Library):
    """`uniform_filter1d`, whose cost does not depend on the kernel, or else `correlate`."""

    def correlate(self, y: Any, taps: Any, strides: list[int]) -> Any:
        along = [axis for axis, k in enumerate(taps.shape) if k > 1]
        if len(along) == 1 and np.all(taps == taps.flat[0]):
            k = taps.shape[along[0]]
            out = ndimage.uniform_filter1d(y, k, along[0], mode="constant") * (taps.flat[0] * k)
        elif len(along) == 1 and np.all(taps):
            out = ndimage.correlate1d(y, taps.ravel(), along[0], mode="constant")
        else:
            out = ndimage.correlate(y, taps, mode="constant")
        inside = (
            slice(k // 2, n - (k - 1 - k // 2), s)
            for n, k, s in zip(y.shape, taps.shape, strides, strict=True)
        )
        return out[tuple(inside)]


class FftConvolve(Library):
    """`scipy.signal.fftconvolve`, over the axes on which there is something to convolve."""

    def weights(self, taps: np.ndarray) -> Any:
        return np.flip(taps)

    def correlate(self, y: Any, taps: Any, strides: list[int]) -> Any:
        axes = [axis for axis, k in enumerate(taps.shape) if k > 1]
        out = signal.fftconvolve(y, taps, "valid", axes) if axes else y * taps
        return out[tuple(slice(None, None, s) for s in strides)]


class Backward:
    """The walk from the unit to the input, everything but the arithmetic prepared."""

    def __init__(self, library: Library, case: Case) -> None:
        self.library, self.case = library, case
        self.graph = lower(network_of(case), case.input_size)
        self.node, self.source = self.graph.output_node(None), self.graph.input_node(None)
        self.unit = self.graph.unit_index(self.node, case.unit)
        self.operations = list(reversed(self.graph.between(self.node, self.source)))
        self.passes = {id(m): self._passes(m) for op in self.operations for m in op.maps}

    def __call__(self) -> Image:
        planes, images = self.graph.planes_of, {}
        for p in planes[self.node]:
            seed = self.library.zeros((1,) * self.graph.ndim) + self.graph.planes[p].share
            images[p] = (seed, self.unit)
        done = self.node
        for op in self.operations:
            if op.node != done:
                for p in planes[done]:
                    images.pop(p, None)
                done = op.node
            self._step(op, images)
        return reduce(self._sum, (images[p] for p in planes[self.source] if p in images))

    def _step(self, op: Operation, images: dict[int, Image]) -> None:
        read = [(images[p], share) for p, share in op.targets if p in images]
        if not read:
            return
        image = reduce(self._sum, (_times(i, share * op.gain) for i, share in read))
        for move in reversed(op.maps):
            for one in self.passes[id(move)]:
                image = one(image)
            image = _times(_cropped(image, move.size_in), move.gain)
        for q, share in op.sources:
            part = _times(image, share)
            images[q] = self._sum(images[q], part) if q in images else part

    def _sum(self, a: Image, b: Image) -> Image:
        if a[1] == b[1] and a[0].shape == b[0].shape:
            return a[0] + b[0], a[1]
        start = tuple(map(min, a[1], b[1]))
        stops = (
            max(x + n, y + m) for x, n, y, m in zip(a[1], a[0].shape, b[1], b[0].shape, strict=True)
        )
        out = self.library.zeros(tuple(s - f for s, f in zip(stops, start, strict=True)))
        for array, origin in (a, b):
            at = (
                slice(o - f, o - f + n) for o, f, n in zip(origin, start, array.shape, strict=True)
            )
            out[tuple(at)] += array
        return out, start

    def _passes(self, move: SpatialMap) -> list[Callable[[Image], Image]]:
        ndim = len(move.axes)
        if not move.separable:
            assert isinstance(move.taps, np.ndarray)
            return [self._pass(dict(enumerate(move.axes)), move.taps)]
        found: list[Callable[[Image], Image]] = []
        for i, axis in enumerate(move.axes):
            if isinstance(axis, Table):
                found.append(self._table(i, axis, move.size_in))
            else:
                found.append(self._pass({i: axis}, axis_taps(move, i).reshape(_along(i, ndim))))
        return found

    def _pass(self, axes: dict[int, AxisMap], taps: np.ndarray) -> Callable[[Image], Image]:
        """The transposed map along some axes. The transpose of a window of stride s is a
        correlation, taps reversed, of the image with s − 1 zeros between its elements; that of a
        `Spread` is a correlation of stride s."""
        library = self.library
        gather = any(isinstance(a, Spread) for a in axes.values())
        dilations = [axes[i].dilation if i in axes else 1 for i in range(taps.ndim)]
        steps = [axes[i].stride if i in axes else 1 for i in range(taps.ndim)]
        weights = library.weights(_spaced(taps if gather else np.flip(taps), dilations))
        own = library.weights(taps)

        def run(image: Image) -> Image:
            y, origin = image
            if library.transpose is not None and not gather:
                moved = [
                    origin[i] * axes[i].stride - axes[i].lo if i in axes else origin[i]
                    for i in range(y.ndim)
                ]
                return library.transpose(y, own, steps, dilations), tuple(moved)
            start, pads = list(origin), [(0, 0)] * y.ndim
            for i, axis in axes.items():
                if gather:
                    first = -(-(origin[i] + axis.lo - axis.span) // axis.stride)
                    last = (origin[i] + y.shape[i] - 1 + axis.lo) // axis.stride
                    before = origin[i] + axis.lo - first * axis.stride
                    length = (last - first) * axis.stride + axis.span + 1
                    pads[i] = (before, length - before - y.shape[i])
                    start[i] = first
                else:
                    pads[i] = (axis.span, axis.span)
                    start[i] = origin[i] * axis.stride - axis.lo
            if not gather and max(steps) > 1:
                shape = ((n - 1) * s + 1 for n, s in zip(y.shape, steps, strict=True))
                wide = library.zeros(tuple(shape))
                wide[tuple(slice(None, None, s) for s in steps)] = y
                y = wide
            if any(map(any, pads)):
                y = library.pad(y, pads)
            if taps.size == 1:
                return y[tuple(slice(None, None, s if gather else 1) for s in steps)], tuple(start)
            strides = steps if gather else [1] * taps.ndim
            return library.correlate(y, weights, strides), tuple(start)

        return run

    def _table(
        self, axis: int, table: Table, size: tuple[int, ...] | None
    ) -> Callable[[Image], Image]:
        assert size is not None, "the cases have tables on known sizes only"
        matrix = table_matrix(table, size[axis])

        def run(image: Image) -> Image:
            y, origin = image
            rows = matrix[origin[axis] : origin[axis] + y.shape[axis]]
            start = (*origin[:axis], 0, *origin[axis + 1 :])
            return self.library.matrix(y, axis, rows), start

        return run


def axis_taps(move: SpatialMap, axis: int) -> np.ndarray:
    """Taps along one axis of a separable map, of sum 1."""
    taps = move.axis_taps(axis)
    kernel = move.axes[axis].kernel
    return np.full(kernel, 1 / kernel) if taps is None else taps


def table_matrix(table: Table, size: int) -> np.ndarray:
    """A table as a matrix, outputs × inputs."""
    starts, taps = table.rows(0, table.period)
    matrix = np.zeros((table.period, size))
    for row, start, values in zip(matrix, starts, taps, strict=True):
        for m in np.flatnonzero(values):
            row[start + m] += values[m]
    return matrix


def _spaced(taps: np.ndarray, dilations: list[int]) -> np.ndarray:
    shape = tuple(d * (k - 1) + 1 for k, d in zip(taps.shape, dilations, strict=True))
    spaced = np.zeros(shape)
    spaced[tuple(slice(None, None, d) for d in dilations)] = taps
    return spaced


def _along(axis: int, ndim: int) -> tuple[int, ...]:
    return tuple(-1 if i == axis else 1 for i in range(ndim))


def _times(image: Image, factor: float) -> Image:
    return image if factor == 1 else (image[0] * factor, image[1])


def _cropped(image: Image, size: tuple[int, ...] | None) -> Image:
    if size is None:
        return image
    array, origin = image
    inside = (
        slice(max(-o, 0), min(n, s - o)) for o, n, s in zip(origin, array.shape, size, strict=True)
    )
    return array[tuple(inside)], tuple(max(o, 0) for o in origin)


# --- autograd -------------------------------------------------------------------------------


def autograd(case: Case) -> Run:
    """A forward pass on an image that holds the receptive field, and `torch.autograd.grad`."""
    graph, node, source, unit, shift = _bounded(case)
    operations = graph.between(node, source)
    size = graph.sizes[source]
    assert size is not None
    layers = {id(m): _forward(m) for op in operations for m in op.maps}

    def run() -> Image:
        x = torch.zeros((1, 1, *size), dtype=torch.float64, requires_grad=True)
        planes: dict[int, Any] = dict.fromkeys(graph.planes_of[source], x)
        for op in operations:
            y = sum(planes[q] * s if s != 1 else planes[q] for q, s in op.sources if q in planes)
            for move in op.maps:
                y = layers[id(move)](y)
            for p, share in op.targets:
                z = y if share * op.gain == 1 else y * (share * op.gain)
                planes[p] = planes[p] + z if p in planes else z
        at = (0, 0, *unit)
        output = sum(planes[p][at] * graph.planes[p].share for p in graph.planes_of[node])
        (gradient,) = torch.autograd.grad(output, x)
        return gradient[0, 0], tuple(-s for s in shift)

    return run


def _bounded(case: Case) -> tuple[PlaneGraph, str, str, tuple[int, ...], list[int]]:
    """The network on the smallest image, TRF upwards, that clips nothing, and where the unbounded
    grid's origin lies in it; on the case's own image where it has one."""
    network = network_of(case)
    if case.input_size is not None:
        graph = lower(network, case.input_size)
        node, source = graph.output_node(None), graph.input_node(None)
        return graph, node, source, graph.unit_index(node, case.unit), [0] * graph.ndim
    trf = receptive_field(network)
    for size in count(max(int(n) for n in trf.size)):
        graph = lower(network, size)
        node, source = graph.output_node(None), graph.input_node(None)
        field = receptive_field(network, node, size)
        sizes = graph.sizes[node]
        assert sizes is not None
        for unit in (tuple(n // 2 for n in sizes), tuple(n - 1 for n in sizes)):
            if all(low >= 0 and high < size for low, high in field.box(unit)):
                shift = [int(u * j) for u, j in zip(unit, field.stride, strict=True)]
                return graph, node, source, unit, shift
    raise AssertionError


def _forward(move: SpatialMap) -> Callable[[Any], Any]:
    """A layer as PyTorch has it, with one pass per axis where its taps are a product."""
    ndim = len(move.axes)
    if not move.separable:
        assert isinstance(move.taps, np.ndarray)
        return _forward_pass(move, dict(enumerate(move.axes)), move.taps * move.gain)
    steps = []
    for i, axis in enumerate(move.axes):
        if isinstance(axis, Table):
            matrix = torch.from_numpy(table_matrix(axis, move.size_in[i]))
            steps.append(_matrix_pass(matrix, i + 2))
        else:
            steps.append(
                _forward_pass(move, {i: axis}, axis_taps(move, i).reshape(_along(i, ndim)))
            )

    def run(x: Any) -> Any:
        for step in steps:
            x = step(x)
        return x if move.gain == 1 else x * move.gain

    return run


def _matrix_pass(matrix: Any, axis: int) -> Callable[[Any], Any]:
    return lambda x: torch.movedim(torch.tensordot(matrix, x, ([1], [axis])), 0, axis)


def _forward_pass(
    move: SpatialMap, axes: dict[int, AxisMap], taps: np.ndarray
) -> Callable[[Any], Any]:
    ndim = len(move.axes)
    weights = torch.from_numpy(np.ascontiguousarray(taps))[None, None]
    steps = [axes[i].stride if i in axes else 1 for i in range(ndim)]
    dilations = [axes[i].dilation if i in axes else 1 for i in range(ndim)]
    spread = any(isinstance(a, Spread) for a in axes.values())
    pads = []
    for i in reversed(range(ndim)):
        if i not in axes:
            pads += [0, 0]
            continue
        axis, n, m = axes[i], move.size_in[i], move.size_out[i]
        reach = (n - 1) * axis.stride if spread else (m - 1) * axis.stride
        # What to add to the input of a window, or, negative, to cut off a spread's output.
        end = (
            m - (reach + axis.span + 1 - axis.lo) if spread else reach + axis.span + 1 - axis.lo - n
        )
        pads += [-axis.lo if spread else axis.lo, end]
    kind = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[ndim - 1]
    convolve = (F.conv1d, F.conv2d, F.conv3d)[ndim - 1]

    def run(x: Any) -> Any:
        if spread:
            return F.pad(kind(x, weights, stride=steps, dilation=dilations), pads)
        x = F.pad(x, pads) if any(pads) else x
        if taps.size == 1 and max(steps) == 1:
            return x
        return convolve(x, weights, stride=steps, dilation=dilations)

    return run


def at_its_best(*candidates: Run) -> Run:
    """The fastest of some torch calls here, on one thread or on all, with oneDNN or without.

    On small maps, and where another process holds a core, waiting for other threads takes most of
    the time; and oneDNN makes a new primitive for every new shape.
    """
    times: dict[tuple[int, int, bool], float] = {}
    settings = itertools.product(range(len(candidates)), {1, ALL_THREADS}, (True, False))
    for number, threads, onednn in settings:
        run = _with(candidates[number], threads, onednn)
        times[number, threads, onednn] = seconds(run, budget=0.1)
    number, threads, onednn = min(times, key=times.__getitem__)
    return _with(candidates[number], threads, onednn)


def _with(run: Run, threads: int, onednn: bool) -> Run:
    def pinned() -> Image:
        torch.set_num_threads(threads)
        # `torch.backends.mkldnn.flags` warns of TF32 whatever it is asked for.
        torch._C._set_mkldnn_enabled(onednn)
        return run()

    return pinned


PEERS = {
    "torch": Peer(
        lambda case: at_its_best(Backward(Torch(), case), Backward(TorchTransposed(), case)), True
    ),
    "torch autograd": Peer(lambda case: at_its_best(autograd(case)), True),
    "scipy ndimage": Peer(lambda case: Backward(NdImage(), case), False),
    "scipy fftconvolve": Peer(lambda case: Backward(FftConvolve(), case), False),
    "one FFT": Peer(stack_peers.one_fft, False),
    "jax": Peer(stack_peers.jax_shifts, True),
    "opencv": Peer(stack_peers.opencv, False),
}

SLOW_PEERS = {
    **PEERS,
    # All threads, with oneDNN and with `conv2d`: what is fastest for large images. To find that
    # out again would take many minutes.
    "torch": Peer(lambda case: _with(Backward(Torch(), case), ALL_THREADS, True), True),
    "torch autograd": Peer(lambda case: _with(autograd(case), ALL_THREADS, True), True),
}
"""For cases that take a peer a minute: measured once, without a warm-up."""


# --- the same result? -----------------------------------------------------------------------


def disagreement(case: Case, peer: Peer, image: Image, ours: Image) -> float:
    """Largest difference to our image in units of what rounding explains; above 1 is another
    result.

    A relative peer: N addends a pixel and layer have a relative error of at most γ_N (Higham 2002,
    §3.1), on either side, wherever the peer has no subnormal number on the way. The others: each
    layer's transform is wrong by ε·log₂(pixels) in the Euclidean norm (Higham 2002, §24.1), and no
    pixel by more than the norm; running sums stay within that.
    """
    theirs = np.asarray(image[0], dtype=np.float64)
    theirs = theirs / theirs.sum()
    a, b = _on_one_window((theirs, image[1]), ours)
    graph = lower(network_of(case), case.input_size)
    operations = graph.between(graph.output_node(None), graph.input_node(None))
    eps = float(np.finfo(np.float64).eps)
    error = np.abs(a - b)
    if peer.relative:
        terms = sum(_addends(m) for op in operations for m in op.maps) + 2 * len(operations)
        normal = b > 1e-280
        return float((error[normal] / b[normal]).max()) / (eps * terms)
    norm = float(np.linalg.norm(b))
    return float(error.max()) / (eps * math.log2(max(b.size, 2)) * norm * len(operations))


def _addends(move: SpatialMap) -> int:
    if not move.separable:
        return math.prod(np.shape(move.taps))
    return sum(axis.taps.shape[1] if isinstance(axis, Table) else axis.kernel for axis in move.axes)


def _on_one_window(a: Image, b: Image) -> tuple[np.ndarray, np.ndarray]:
    start = tuple(map(min, a[1], b[1]))
    ends = [[o + n for o, n in zip(i[1], i[0].shape, strict=True)] for i in (a, b)]
    shape = tuple(max(e) - s for *e, s in zip(*ends, start, strict=True))
    found = []
    for array, origin in (a, b):
        out = np.zeros(shape)
        at = (slice(o - s, o - s + n) for o, s, n in zip(origin, start, array.shape, strict=True))
        out[tuple(at)] = array
        found.append(out)
    return found[0], found[1]
