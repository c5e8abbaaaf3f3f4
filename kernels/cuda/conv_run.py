"""Runs of layers of the same general taps, several layers a launch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
from fastrf.kernels._checks import Floats, check_floats, check_positive, per_axis
from fastrf.kernels.cpu._runs import Axes, check_narrow
from numpy.typing import NDArray

from ._geometry import beside, blocks, elements, integers, one_each, suffix
from ._module import Properties, launch, properties
from ._runs import marches, run

Integers = Sequence[int] | NDArray[np.int64]

# As in the source: a thread's patch of results, and the sizes of kernels with code of their own.
_ROWS, _COLUMNS = 6, 5
_UNROLLED = {3: "three_", 5: "five_"}
_THREADS = 384
# More layers than this hardly lower the memory traffic of a layer any further.
_LAYERS, _LAYERS_VOLUME = 24, 6
_MOST = 65_535  # blocks along y and z
# Multiply-adds in the time of reading and writing a pixel of float64, by the data sheet of an H200:
# 34 TFLOPS against 4.8 TB/s.
_BALANCE = 57
# Multiply-adds of a processor in the time of a layer's two barriers: 64 a cycle, some 150 cycles;
# estimated, not measured.
_BARRIERS = 10_000


class _Tile(NamedTuple):
    """A block's geometry: see the source."""

    layers: int
    across: int
    march: int
    width: int
    groups: int
    height: int
    threads: int
    shared: int


def _tiles(
    k: Axes, shape: Axes, layers: int, itemsize: int, device: Properties
) -> Iterator[tuple[float, _Tile]]:
    """Every geometry that fits, with its predicted time a layer in multiply-adds."""
    taps = k[0] * k[1] * k[2]
    reach = [layers * (n - 1) for n in k]
    planes, rows, columns = shape
    for height in (4 * _ROWS, 2 * _ROWS, _ROWS):
        row_groups = height // _ROWS
        most = _THREADS // row_groups
        for wide in sorted({min(reach[0] + n, reach[0] + planes) for n in (1, 4, 8, 12, 16)}):
            ring = height + reach[1]
            room = device.shared_per_block // itemsize - taps
            fitting = (room // (wide * ring) - k[2] + 1) // _COLUMNS
            groups = min(most // wide, fitting, blocks(columns + reach[2], _COLUMNS))
            width, across = groups * _COLUMNS - reach[2], wide - reach[0]
            if groups < 1 or width < 1:
                continue
            strips = blocks(columns, width) * blocks(planes, across)
            number, passing = marches(rows, reach[1], strips, device.processors)
            used = wide * row_groups * groups
            threads = blocks(used, 32) * 32
            # Fewer threads than half the most leave a processor's units idle.
            patches = _ROWS * _COLUMNS * max(threads, _THREADS // 2)
            step = layers * (taps * patches + _BARRIERS) + _BALANCE * patches
            tile = _Tile(
                layers,
                across,
                blocks(rows, min(number, _MOST)),
                width,
                groups,
                height,
                threads,
                (taps + wide * ring * (groups * _COLUMNS + k[2] - 1)) * itemsize,
            )
            yield passing / height * step / layers, tile


@cache
def _best(k: Axes, shape: Axes, layers: int, itemsize: int, device: Properties) -> _Tile | None:
    """The quickest geometry for so many layers; None where taps leave no room for any."""
    found = min(_tiles(k, shape, layers, itemsize, device), default=None)
    return None if found is None else found[1]


@cache
def _depth(k: Axes, shape: Axes, count: int, itemsize: int, device: Properties) -> int:
    """Layers of a sweep; one where not even that fits."""
    most = min(count, _LAYERS if k[0] == 1 else _LAYERS_VOLUME)
    tiles = (
        tile for layers in range(1, most + 1) for tile in _tiles(k, shape, layers, itemsize, device)
    )
    found = min(tiles, default=None)
    return 1 if found is None else found[1].layers


def _least(taps: Floats) -> Any:
    """What a layer keeps: results that have no subnormal product with any tap.

    Taps of no weight (below eps²) do not count. An array, so that a device's taps stay there.
    """
    limits = np.finfo(taps.dtype)
    smallest = np.where(taps > limits.eps**2, taps, 1).min()
    return (limits.smallest_normal / smallest).astype(taps.dtype).reshape(1)


def _turned(k: Axes, shape: Sequence[int]) -> bool:
    """Whether the march goes along the first axis: one with taps, or the longer one."""
    return k[0] > 1 or (k[1] == 1 and shape[0] > shape[1])


def _axes(values: Sequence[int]) -> Axes:
    """The first two axes exchanged."""
    a, b, c = values
    return b, a, c


def _sweep(
    taps: Floats, least: Floats, k: Axes, y: Floats, layers: int, first: Axes, out: Floats
) -> None:
    if _turned(k, out.shape):
        y, out, first = y.transpose(1, 0, 2), out.transpose(1, 0, 2), _axes(first)
        k, taps = _axes(k), taps.transpose(1, 0, 2).copy()
    a, b, c = out.shape
    tile = _best(k, (a, b, c), layers, out.itemsize, properties())
    kind = suffix(out.dtype)
    source = [*elements(y), *integers(first), taps]
    if tile is None:
        arguments = [*source, *integers(k), *elements(out), least]
        launch("conv_run.cu", f"conv_layer_{kind}", *one_each(out.shape), arguments)
        return
    unrolled = _UNROLLED.get(k[1], "") if k[1] == k[2] else ""
    strips, tiles = blocks(c, tile.width), blocks(a, tile.across)
    launch(
        "conv_run.cu",
        f"conv_run_{unrolled}{kind}",
        (strips, blocks(b, tile.march), min(tiles, _MOST)),
        (tile.threads, 1, 1),
        [
            *source,
            *map(np.int32, (*k, layers)),
            *elements(out),
            *map(np.int32, (tile.across, tile.march, tile.width, tile.groups, tile.height)),
            least,
        ],
        tile.shared,
    )


def conv_run(y: Floats, taps: Floats, count: int, lo: Integers, out: Floats) -> None:
    """See ``fastrf.kernels.spec.KERNELS["conv_run"]``."""
    check_floats(y=y, taps=taps, out=out)
    k, offset = per_axis(taps.shape), per_axis(lo)
    check_positive(taps=k, count=count)
    check_narrow("taps.shape", k, "transposed_conv")
    a, b, c = out.shape
    order = (_axes(k), _axes((a, b, c))) if _turned(k, out.shape) else (k, (a, b, c))
    depth = _depth(*order, count, out.itemsize, properties())
    # Sources after the result's position, so the taps backwards.
    backwards = beside(taps, y)[::-1, ::-1, ::-1].copy()
    least = beside(_least(backwards), y)
    run(y, k, count, depth, offset, out, partial(_sweep, backwards, least, k))
