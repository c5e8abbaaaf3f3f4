"""Operations that follow each other without a branch, and which of them are one run of a kernel."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fastrf.engine.scaled import ONE, Scaled
from fastrf.engine.windows import Span
from fastrf.lowering import Operation
from fastrf.maps import Size, SpatialMap, Window

WIDEST_BOX = 45
"""Most equal taps per axis for which one pass over all axes beats a pass per axis (bench_runs)."""

MOST_TAPS = 257
"""Most taps per axis that the run kernels take."""

SMALLEST_TAP = 2.0**-20
"""`conv_run` counts as 0 what lies below the smallest normal number over the smallest tap. With
taps above this, that is still far below anything a result shows (see `Headroom`)."""

REACH, REACH_3D = 64, 32
"""Pixels by which an image grows in one sweep of a run kernel (bench_runs: deeper sweeps cost more
arithmetic than they save in memory traffic)."""

REACH_LINE = 256
"""The same along a line, where the calls cost more than the pixels: four times as many layers a
call take 0.5 to 0.8 of the time (lines of about 2000 pixels, 3 to 45 taps), and the kernel shares
them out over its own sweeps."""

LONG_LINE, WIDEST_LONG_LINE = 1 << 15, 9
"""Pixels of a line from which on its pixels cost more than its calls, and most equal taps that a
run then serves. One layer after the other costs the same for any number of taps, 0.7 to 1.5 ns a
pixel; in runs it costs 0.4 ns for 3, up to 1.1 for 9, and 2 or more for 11 and beyond (bench_runs,
test_line; float64, Sapphire Rapids Xeon, 2 cores)."""


def chains(operations: Sequence[Operation]) -> Iterator[tuple[Operation, ...]]:
    """The operations in reverse order, in pieces that one image passes from end to end."""
    reads = Counter(q for op in operations for q, _ in op.sources)
    writes = Counter(p for op in operations for p, _ in op.targets)
    piece: list[Operation] = []
    for op in reversed(operations):
        if piece and not _follows(piece[-1], op, reads, writes):
            yield tuple(piece)
            piece = []
        piece.append(op)
    if piece:
        yield tuple(piece)


def _follows(above: Operation, below: Operation, reads: Counter[int], writes: Counter[int]) -> bool:
    """Whether `below` takes over all that `above` hands back, and nothing else."""
    if len(above.sources) != 1 or len(below.targets) != 1:
        return False
    plane = above.sources[0][0]
    return below.targets[0][0] == plane and reads[plane] == writes[plane] == 1


@dataclass(frozen=True, slots=True)
class Layer:
    """What a run kernel makes of one operation.

    Attributes:
        kernel: taps per axis.
        lo: padding before the map, per axis.
        taps: None for equal taps.
        key: equal for layers of the same run.
    """

    kernel: tuple[int, ...]
    lo: tuple[int, ...]
    taps: np.ndarray | None
    key: Hashable

    @property
    def bits(self) -> float:
        """log2 of the factor by which one layer's plain sums can grow; 0 for taps of sum 1."""
        return 0.0 if self.taps is not None else math.log2(math.prod(self.kernel))

    @property
    def depth(self) -> int:
        """Layers of one sweep: a power of two, so that sweeps divide evenly among each other."""
        reach = (REACH_LINE, REACH, REACH_3D)[len(self.kernel) - 1]
        most = max(1, reach // max(1, max(self.kernel) - 1))
        return 1 << (most.bit_length() - 1)


def layer_of(op: Operation) -> Layer | None:
    """An operation as a layer of a run; None where no run kernel serves it."""
    return _layer(op.maps[0]) if len(op.maps) == 1 else None


def _layer(move: SpatialMap) -> Layer | None:
    kernel, lo = [], []
    for axis in move.axes:
        if not isinstance(axis, Window) or axis.stride > 1 or (axis.dilation > 1 < axis.kernel):
            return None
        kernel.append(axis.kernel)
        lo.append(axis.lo)
    if max(kernel) == 1 or max(kernel) > MOST_TAPS:
        return None
    if move.taps is None:
        layer = Layer(tuple(kernel), tuple(lo), None, tuple(kernel))
        return layer if max(kernel) <= WIDEST_BOX else None
    if not isinstance(move.taps, np.ndarray) or move.taps.min() < SMALLEST_TAP:
        return None
    return Layer(tuple(kernel), tuple(lo), move.taps, (tuple(kernel), move.taps.tobytes()))


@dataclass(frozen=True, slots=True)
class Run:
    """Equal layers of a chain, with what moves nothing between them.

    Attributes:
        layer: what each of them is.
        layers: how many.
        operations: operations of the chain used up.
        gain: product of all gains and shares.
        origin, shape: window of the image behind the run.
    """

    layer: Layer
    layers: int
    operations: int
    gain: Scaled
    origin: tuple[int, ...]
    shape: tuple[int, ...]


def run_from(
    chain: Sequence[Operation],
    at: int,
    first: Layer,
    most: int,
    origin: tuple[int, ...],
    shape: tuple[int, ...],
) -> Run:
    """Up to `most` layers equal to `first` from chain[at] on, as far as no border cuts them off;
    none where they are quicker one by one.

    Args:
        origin, shape: window of the image before them.
    """
    layers, used, gain = 0, 0, ONE
    if shape[0] > LONG_LINE and len(shape) == 1 and max(first.kernel) > WIDEST_LONG_LINE:
        most = 0
    for number in range(at, len(chain)):
        op = chain[number]
        step = op.gain
        if number > at:
            step *= op.targets[0][1] * chain[number - 1].sources[0][1]
        if op.maps:
            layer = layer_of(op)
            if layer is None or layer.key != first.key or layers == most:
                break
            start = tuple(o - p for o, p in zip(origin, layer.lo, strict=True))
            grown = tuple(n + k - 1 for n, k in zip(shape, layer.kernel, strict=True))
            if _cut_off(start, grown, op.maps[0].size_in):
                break
            origin, shape, layers = start, grown, layers + 1
            step *= op.maps[0].gain
        gain, used = gain * step, used + 1
    return Run(first, layers, used, gain, origin, shape)


def layers_of_run(
    chain: Sequence[Operation], at: int, first: Layer, most: int, spans: Sequence[Span]
) -> tuple[int, int]:
    """Layers and operations of the run that `run_from` finds for an image on these windows."""
    layers, used, known = 0, 0, chain[at].maps[0]
    if spans[0][1] > LONG_LINE and len(spans) == 1 and max(first.kernel) > WIDEST_LONG_LINE:
        most = 0
    for number in range(at, len(chain)):
        maps = chain[number].maps
        if maps:
            # Equal layers of a network share their maps.
            layer = first if maps[0] is known and len(maps) == 1 else layer_of(chain[number])
            if layer is None or layer.key != first.key or layers == most:
                break
            spans = [
                (start - lo, count + k - 1)
                for (start, count), lo, k in zip(spans, layer.lo, layer.kernel, strict=True)
            ]
            inside = True
            for (start, count), n in zip(spans, maps[0].size_in or (), strict=False):
                inside = inside and start >= 0 and start + count <= n
            if not inside:
                break
            layers += 1
        used += 1
    return layers, used


def _cut_off(origin: tuple[int, ...], shape: tuple[int, ...], size: Size | None) -> bool:
    """Whether a window reaches beyond a map of this size."""
    return size is not None and any(
        o < 0 or o + n > m for o, n, m in zip(origin, shape, size, strict=True)
    )
