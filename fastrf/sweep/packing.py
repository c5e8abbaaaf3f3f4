"""Chains as one structure of arrays: what the batched kernels read, and what travels to workers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastrf.sweep.chain import Chain, ChainAxis

Whole: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

KERNEL, STRIDE, DILATION, LO, HI, TAPS = range(6)
"""Rows of `Packed.layers`; TAPS is the index in the pool of the first tap, −1 for equal taps."""

UNBOUNDED = -1
"""The size of a grid without borders."""

CENTER = np.iinfo(np.int64).min
"""The unit in the middle of its map; 0 on the unbounded grid."""

WIDEST = 1 << 20
"""Pixels up to which a profile is one of a batch; what is wider is planned for by itself."""


FEW = 32
"""Lines up to which a layer of each in Python takes less time than one step of arrays."""


@dataclass(frozen=True, slots=True)
class Packed:
    """Many chains, each a product of lines: a line is a chain along one axis, with its unit.

    Attributes:
        lines: index of each chain's line per axis, shape (ndim, chains).
        offsets: line l has the layers offsets[l] to offsets[l + 1] − 1, from the input up.
        layers: kernel, stride, dilation, lo, hi, taps: shape (6, total).
        taps: the taps of all layers that have their own.
        sizes: pixels of each line's input, or UNBOUNDED.
        units: each line's unit, or CENTER.
        depths: number of layers of each chain.
        gains: of all chains' layers, one chain behind the other.
        input_gains: one a chain.
    """

    lines: Whole
    offsets: Whole
    layers: Whole
    taps: Floats
    sizes: Whole
    units: Whole
    depths: Whole
    gains: Floats
    input_gains: Floats

    @property
    def ndim(self) -> int:
        return len(self.lines)

    def __len__(self) -> int:
        """Number of chains."""
        return int(self.lines.shape[1])

    def log_gains(self) -> Floats:
        """Natural logarithm of each chain's gain, its input's included."""
        chain = np.repeat(np.arange(len(self)), self.depths)
        summed = np.bincount(chain, np.log(self.gains), minlength=len(self))
        whole: Floats = np.log(self.input_gains) + summed
        return whole

    def prefixes(self) -> Packed:
        """The chains of all depths from 1 on of each chain, one behind the other."""
        counts = np.diff(self.offsets)
        starts = np.repeat(self.offsets[:-1], counts)
        depths = _counted(counts) + 1
        first = np.cumsum(counts) - counts
        chain = np.repeat(np.arange(len(self)), self.depths)
        depth = _counted(self.depths)
        gain_starts = np.repeat(np.cumsum(self.depths) - self.depths, self.depths)
        return Packed(
            lines=first[self.lines[:, chain]] + depth,
            offsets=np.concatenate([[0], np.cumsum(depths)]),
            layers=self.layers[:, np.repeat(starts, depths) + _counted(depths)],
            taps=self.taps,
            sizes=np.repeat(self.sizes, counts),
            units=np.repeat(self.units, counts),
            depths=depth + 1,
            gains=self.gains[np.repeat(gain_starts, depth + 1) + _counted(depth + 1)],
            input_gains=self.input_gains[chain],
        )

    def chosen(self, chains: Whole) -> Packed:
        """Some of the chains, with the lines that they have."""
        ends = np.cumsum(self.depths)
        depths = self.depths[chains]
        starts = np.repeat(ends[chains] - depths, depths)
        used, lines = np.unique(self.lines[:, chains], return_inverse=True)
        counts = np.diff(self.offsets)[used]
        at = np.repeat(self.offsets[used], counts) + _counted(counts)
        return Packed(
            lines=lines.reshape(self.ndim, -1),
            offsets=np.concatenate([[0], np.cumsum(counts)]),
            layers=self.layers[:, at],
            taps=self.taps,
            sizes=self.sizes[used],
            units=self.units[used],
            depths=depths,
            gains=self.gains[starts + _counted(depths)],
            input_gains=self.input_gains[chains],
        )


def _counted(counts: Whole) -> Whole:
    """0, 1 … n − 1 for each of the counts, one behind the other."""
    ends = np.cumsum(counts)
    return np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)


def pack(
    chains: Iterable[tuple[Chain, Sequence[int] | None, Sequence[int] | None]], ndim: int
) -> Packed:
    """Chains of `ndim` axes as arrays, each with its input size (None: unbounded) and its unit
    (None: the centre)."""
    numbers: dict[Any, int] = {}
    kept: list[ChainAxis] = []  # while their identities are keys
    pool: dict[bytes, int] = {}
    taps: list[Floats] = []
    lines, sizes, units, gains, input_gains = [], [], [], [], []
    columns: list[list[Whole]] = [[] for _ in range(6)]
    used = 0
    for chain, size, unit in chains:
        for number, axis in enumerate(chain.axes):
            own = UNBOUNDED if size is None else int(size[number])
            at = CENTER if unit is None else int(unit[number])
            line = numbers.setdefault((id(axis), own, at), len(numbers))
            lines.append(line)
            if line < len(kept):
                continue
            kept.append(axis)
            sizes.append(own)
            units.append(at)
            given = (axis.kernel, axis.stride, axis.dilation, axis.lo, axis.hi)
            for column, values in zip(columns, given, strict=False):
                column.append(values)
            places = np.full(len(axis.kernel), -1, np.int64)
            for layer, own_taps in enumerate(axis.taps or ()):
                if own_taps is None:
                    continue
                content = np.ascontiguousarray(own_taps, np.float64)
                place = pool.setdefault(content.tobytes(), used)
                if place == used:
                    taps.append(content)
                    used += len(content)
                places[layer] = place
            columns[TAPS].append(places)
        gains.append(chain.gain)
        input_gains.append(chain.input_gain)
    depths = np.array([len(g) for g in gains], np.int64)
    return Packed(
        lines=np.array(lines, np.int64).reshape(-1, ndim).T,
        offsets=np.cumsum([0, *map(len, columns[KERNEL])], dtype=np.int64),
        layers=np.array([np.concatenate(column) for column in columns], np.int64),
        taps=np.concatenate([*taps, np.zeros(0)]),
        sizes=np.array(sizes, np.int64),
        units=np.array(units, np.int64),
        depths=depths,
        gains=np.concatenate(gains),
        input_gains=np.array(input_gains, np.float64),
    )


@dataclass(frozen=True, slots=True)
class Geometry:
    """What whole numbers say about the lines of a pack; one value a line.

    Attributes:
        size, stride, padding: Araujo, Norris and Sim's r0, S0 and P0 (2019).
        units: the units, spelled out.
        starts, counts: window of the input that the unit's image is on.
        spacings, maps: per layer the distance of its taps on the input, and the size of the map
            that it reads.
        regular: whether the unit sees some of the input and its profile is one of a batch; what
            is not is left to `fastrf.erf`, which says why.
    """

    size: Whole
    stride: Whole
    padding: Whole
    units: Whole
    starts: Whole
    counts: Whole
    spacings: Whole
    maps: Whole
    regular: NDArray[np.bool_]


def geometry(packed: Packed) -> Geometry:
    """The theoretical receptive fields and the windows of all lines: layer by layer, those of all
    lines at once, and the layers that few lines have line by line."""
    depths = np.diff(packed.offsets)
    lines = len(depths)
    size, stride = np.ones(lines, np.int64), np.ones(lines, np.int64)
    padding, pixels = np.zeros(lines, np.int64), packed.sizes.copy()
    regular = depths > 0
    total = packed.layers.shape[1]
    spacings, maps = np.ones(total, np.int64), np.full(total, UNBOUNDED)
    bounded = pixels != UNBOUNDED
    (own,) = np.nonzero(regular)
    depth = 0
    while len(own) > FEW:
        at = packed.offsets[own] + depth
        k, s, d, lo, hi = packed.layers[:TAPS, at]
        spacings[at] = d * stride[own]
        size[own] += (k - 1) * spacings[at]
        padding[own] += lo * stride[own]
        stride[own] *= s
        maps[at] = pixels[own]
        after = (pixels[own] + lo + hi - d * (k - 1) - 1) // s + 1
        pixels[own] = np.where(bounded[own], after, UNBOUNDED)
        # Nothing overflows: what grows beyond these is no longer followed.
        largest = np.maximum.reduce([size[own], stride[own], abs(padding[own]), pixels[own]])
        widest = np.maximum.reduce([k, s, d, abs(lo), abs(hi)])
        fits = (largest <= WIDEST) & (widest <= WIDEST)
        regular[own] = fits & ~(bounded[own] & (after < 1))
        depth += 1
        own = own[(depth < depths[own]) & regular[own]]
    for line in own.tolist():
        n = int(pixels[line])
        found = _Followed(int(size[line]), int(stride[line]), int(padding[line]), n)
        at = packed.offsets[line] + depth
        regular[line] = found.through(packed.layers[:TAPS, at : packed.offsets[line + 1]])
        size[line], stride[line] = found.size, found.stride
        padding[line], pixels[line] = found.padding, found.pixels
        spacings[at : at + len(found.spacings)] = found.spacings
        maps[at : at + len(found.maps)] = found.maps
    middle = np.where(bounded, pixels // 2, 0)
    units = np.where(packed.units == CENTER, middle, packed.units)
    regular &= ~bounded | ((units >= 0) & (units < pixels))
    regular &= np.abs(units) <= WIDEST
    starts = np.where(regular, units * stride - padding, 0)
    counts = np.where(regular, size, 1)
    if bounded.any():
        _clip(packed, depths, bounded & regular, units, maps, starts, counts)
        regular &= counts > 0
    return Geometry(size, stride, padding, units, starts, counts, spacings, maps, regular)


@dataclass(slots=True)
class _Followed:
    """One line on its way up, in Python's whole numbers; as of `Geometry`, but for
    `pixels`, those of the map that has been come to."""

    size: int
    stride: int
    padding: int
    pixels: int
    spacings: list[int] = field(default_factory=list)
    maps: list[int] = field(default_factory=list)

    def through(self, layers: Whole) -> bool:
        """Goes through layers; whether it stays regular."""
        bounded = self.pixels != UNBOUNDED
        for k, s, d, lo, hi in layers.T.tolist():
            if max(k, s, d, abs(lo), abs(hi)) > WIDEST:
                return False
            spacing = d * self.stride
            self.spacings.append(spacing)
            self.maps.append(self.pixels)
            self.size += (k - 1) * spacing
            self.padding += lo * self.stride
            self.stride *= s
            if bounded:
                self.pixels = (self.pixels + lo + hi - d * (k - 1) - 1) // s + 1
            if max(self.size, self.stride, abs(self.padding), self.pixels) > WIDEST:
                return False
            if bounded and self.pixels < 1:
                return False
        return True


def _clip(
    packed: Packed,
    depths: Whole,
    chosen: NDArray[np.bool_],
    units: Whole,
    maps: Whole,
    starts: Whole,
    counts: Whole,
) -> None:
    """Windows of the chosen lines, cut to every map on the way down."""
    begin, count = units.copy(), np.ones(len(units), np.int64)
    (deep,) = np.nonzero(chosen)
    deep = deep[np.argsort(-depths[deep], kind="stable")]
    rest = int(depths[deep[FEW]]) if len(deep) > FEW else 0  # above it few lines have layers
    for line in deep[:FEW].tolist():
        first, last = packed.offsets[line] + rest, packed.offsets[line + 1]
        layers = packed.layers[:TAPS, first:last].T.tolist()
        window = _cut(int(units[line]), layers, maps[first:last].tolist())
        begin[line], count[line] = window
    reached = np.searchsorted(-depths[deep], -np.arange(rest))  # lines with a layer of that depth
    for depth in range(rest - 1, -1, -1):
        own = deep[: reached[depth]]
        own = own[count[own] > 0]
        at = packed.offsets[own] + depth
        k, s, d, lo, _ = packed.layers[:TAPS, at]
        first = begin[own] * s - lo
        last = first + (count[own] - 1) * s + (k - 1) * d
        begin[own] = np.maximum(first, 0)
        count[own] = np.minimum(last, maps[at] - 1) - begin[own] + 1
    starts[chosen] = begin[chosen]
    counts[chosen] = np.maximum(count[chosen], 0)


def _cut(unit: int, layers: list[list[int]], maps: list[int]) -> tuple[int, int]:
    """First pixel and number of pixels that a unit sees of the map that the first layer reads."""
    begin, count = unit, 1
    for (k, s, d, lo, _), pixels in zip(reversed(layers), reversed(maps), strict=True):
        if count < 1:
            break
        first = begin * s - lo
        last = first + (count - 1) * s + (k - 1) * d
        begin = max(first, 0)
        count = min(last, pixels - 1) - begin + 1
    return begin, count
