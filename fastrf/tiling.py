"""Inference in tiles: what a tile must hold beyond its own part, and what a smaller one costs.

A network that moves with its input (no global layer, one stride per axis) can be run on overlapping
tiles of an image, and the right parts of the results put together to exactly what it gives on
the whole. Along one axis let A be the pixels after which the network repeats itself, and q the
units per A pixels (A = S, q = 1 for a chain of stride S). Tiles begin at multiples of A, so that
strides and phases fall as on the whole image. The block of A pixels from m·A on belongs to the q
units from m·q on; with u's box first(u) … last(u), these units read

    left  = max(0, −min first(p)),   right = max(0, max last(p) − (A − 1)),   0 ≤ p < q

pixels beyond their block: the **halo**. For a chain that is P and r − S − P (Araujo, Norris and
Sim 2019). Where nothing is padded (valid convolutions) P = 0, a tile gives only units that are
right, and successive tiles overlap by exactly r − S pixels.

Where maps are padded, a tile gives as many units as its size asks for, and those near its own
borders are wrong: they saw padding where the whole image goes on. `tiles` finds the right ones
map by map: a unit is right when everything that it reads is right, and padding counts as right
only where the tile ends as the image does.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrf.analytic.geometry import ReceptiveField, extended, receptive_field
from fastrf.erf import erf
from fastrf.errors import EmptyFieldError, InputError, short
from fastrf.layers import Layer
from fastrf.lowering import PlaneGraph, lower
from fastrf.maps import AxisMap, Everything, Size, Spread, Table, Window
from fastrf.network import as_network

MOST_TILES = 1 << 20
"""Most tiles of a plan; a list of as many takes about 0.5 GiB."""

MAX_PHASES = 64
"""Phases whose fields `cut` computes; of more, those that reach farthest."""

Right = tuple[float, float]
"""First and last index along one axis whose values are those of the whole image; infinite on a
side where the tile ends as the image does."""


class Halo(NamedTuple):
    """What the units of one block read beyond it, along one axis.

    Attributes:
        block: A, pixels; tiles begin at multiples of it.
        units: q, units of the output per block.
        left, right: pixels before and behind the block.
    """

    block: int
    units: int
    left: int
    right: int

    @property
    def overlap(self) -> int:
        """Least number of pixels that neighbouring tiles share: r − S for a chain. That tiles
        begin at multiples of A may cost up to A − 1 more."""
        return self.left + self.right


class Tile(NamedTuple):
    """One tile: ``whole[..., *tile.output] = net(image[..., *tile.input])[..., *tile.kept]``.

    Attributes:
        input: pixels of the image, one slice per axis.
        output: units of the whole output that it gives.
        kept: where these lie in the tile's own output.
    """

    input: tuple[slice, ...]
    output: tuple[slice, ...]
    kept: tuple[slice, ...]


@dataclass(frozen=True, eq=False)
class Cut:
    """What halos smaller than the exact one cut off the ERF, along one axis.

    Attributes:
        exact: the exact halo, which cuts nothing.
        before, behind: for every pixel x that the block's units read, from −left to A − 1 + right
            with the block at 0 … A − 1: the share of the mass at pixels less than x, and at
            pixels greater than x, for the unit of the block that loses most.
    """

    exact: Halo
    before: NDArray[np.float64]
    behind: NDArray[np.float64]

    def share(self, left: int, right: int) -> float:
        """The share of the mass beyond halos of `left` and `right` pixels: at most this much of
        any unit's ERF. Negative halos leave out a part of the block itself."""
        first, last = self.exact.left - left, self.exact.left + self.exact.block - 1 + right
        ends = len(self.before) - 1
        before = 0.0 if first <= 0 else float(self.before[first]) if first <= ends else 1.0
        behind = 0.0 if last >= ends else float(self.behind[last]) if last >= 0 else 1.0
        return min(before + behind, 1.0)

    def halo(self, share: float) -> Halo:
        """The least halo that cuts at most half of `share` of the mass on either side.

        A side of it may be negative: units of valid convolutions lie at the beginning of what
        they read, and read little of that.

        Raises:
            InputError: `share` is no number from 0 to 1.
        """
        if not 0 <= share <= 1:
            raise InputError(f"share={share!r} is no share of a mass; give a number from 0 to 1")
        first = int(np.flatnonzero(self.before <= share / 2)[-1])
        last = int(np.flatnonzero(self.behind <= share / 2)[0])
        block = self.exact.block
        left, right = self.exact.left - first, last - self.exact.left - (block - 1)
        return Halo(block, self.exact.units, left, right)


# --- the halo -------------------------------------------------------------------------------


def halo(
    net: Any,
    output: str | None = None,
    *,
    input: str | None = None,
    ignore_global: bool = False,
) -> tuple[Halo, ...]:
    """The exact halo of a map, per axis, from its units' boxes on the unbounded grid.

    Args:
        net, output, input, ignore_global: as in `receptive_field`.

    Raises:
        InputError: no tiles give what the whole image gives (a global layer, paths of different
            strides, a layer that stretches with the size of the map), or an argument breaks a rule.

    >>> from fastrf.layers import Conv, MaxPool
    >>> halo([Conv(5), MaxPool(2)])[0]
    Halo(block=2, units=1, left=0, right=4)
    """
    return _halos(receptive_field(net, output, None, input=input, ignore_global=ignore_global))


def _halos(field: ReceptiveField) -> tuple[Halo, ...]:
    result = []
    for axis, ends in enumerate(field.ends):
        if any(not e.advance for e in ends):
            raise InputError(
                f"{field.node!r} has no halo: its units see the whole image through "
                f"{', '.join(field.unbounded_by)}; choose an output before it, or give "
                f"ignore_global=True"
            )
        if len(ends) > 1:
            raise InputError(
                f"{field.node!r} has no halo: along axis {axis} paths of the strides "
                f"{' and '.join(str(e.stride) for e in ends)} meet, so that no shift of the image "
                f"shifts its result; choose another output"
            )
        (e,) = ends
        left = max(0, *(-first for first in e.firsts if first is not None))
        right = max(0, *(last - e.advance + 1 for last in e.lasts if last is not None))
        result.append(Halo(e.advance, len(e.firsts), left, right))
    return tuple(result)


def cut(
    net: Any,
    output: str | None = None,
    *,
    input: str | None = None,
    ignore_global: bool = False,
    **options: Any,
) -> tuple[Cut, ...]:
    """The share of the ERF's mass that smaller halos cut, per axis.

    It is the mass of the units' profiles on the unbounded grid that lies beyond the halo. Where a
    tile is padded inside the network, paths that leave it and come back are lost as well, and
    somewhat more is cut: `ERF.lost_mass` of a unit so close to the border gives it exactly.

    Where the output has several phases, the worst of them counts, all axes being in the same
    phase; of more than `MAX_PHASES` those whose boxes reach farthest.

    Args:
        net, output, input, ignore_global: as in `halo`.
        options: further arguments of `erf`.

    Raises:
        InputError: as `halo`.

    >>> from fastrf.layers import Conv
    >>> (axis,) = cut([Conv((3,), padding=1)] * 20)
    >>> axis.exact.overlap, axis.halo(share=0.01).overlap
    (40, 18)
    """
    where: dict[str, Any] = {"input": input, "ignore_global": ignore_global}
    field = receptive_field(net, output, None, **where)
    halos = _halos(field)
    sides = [np.zeros((2, h.left + h.block + h.right)) for h in halos]
    for phase in _phases(field):
        try:
            image = erf(net, output, (phase,) * len(halos), **where, **options)
        except EmptyFieldError:
            continue  # a unit in a gap of a transposed convolution
        for axis, (h, side) in enumerate(zip(halos, sides, strict=True)):
            first = image.origin[axis] - phase // h.units * h.block + h.left
            profile = np.zeros(side.shape[1])
            mass = image.profile(axis)
            profile[first : first + len(mass)] = mass
            # Summed from the outside, so that small shares keep their digits.
            np.maximum(side[0, 1:], np.cumsum(profile[:-1]), out=side[0, 1:])
            np.maximum(side[1, :-1], np.cumsum(profile[:0:-1])[::-1], out=side[1, :-1])
    return tuple(Cut(h, *side) for h, side in zip(halos, sides, strict=True))


def _phases(field: ReceptiveField) -> list[int]:
    """The units whose fields decide what is cut."""
    count = max(field.period)
    if count <= MAX_PHASES:
        return list(range(count))
    found = {0, count - 1}
    for (e,) in field.ends:
        found.add(min((first, p) for p, first in enumerate(e.firsts) if first is not None)[1])
        found.add(max((last, p) for p, last in enumerate(e.lasts) if last is not None)[1])
    return sorted(found)


# --- tiles ----------------------------------------------------------------------------------


def tiles(
    net: Any,
    image_size: int | Sequence[int],
    tile_size: int | Sequence[int],
    output: str | None = None,
    *,
    ignore_global: bool = False,
) -> list[Tile]:
    """Tiles whose results, put together, are exactly the network's result on the whole image.

    Args:
        net: a network with one input.
        image_size: pixels of the image, a number or one per axis.
        tile_size: most pixels of a tile, a number or one per axis; only the last tile of an axis
            may have fewer. The network must accept images of this size.
        output, ignore_global: as in `receptive_field`.

    Raises:
        InputError: no tiles give what the whole image gives (see `halo`), tiles of this size are
            too small, there would be more than `MOST_TILES`, or the network does something else on
            them than on the image (padding "same" with a stride, for one, falls differently on odd
            and even sizes).

    >>> from fastrf.layers import Conv
    >>> [tile.kept for tile in tiles(Conv((5,), padding=2), 20, 12)]
    [(slice(0, 10, None),), (slice(2, 12, None),)]
    """
    network = as_network(net).bound
    whole = lower(network, image_size, ignore_global=ignore_global)
    if len(network.inputs) != 1:
        raise InputError(
            f"the network has {len(network.inputs)} inputs; tiles are planned for networks of one"
        )
    limits = lower(network, tile_size, ignore_global=ignore_global).input_size
    assert limits is not None
    plan = _Plan(whole, whole.output_node(output), ignore_global)
    axes = [plan.axis(axis, limit) for axis, limit in enumerate(limits)]
    count = math.prod(map(len, axes))
    if count > MOST_TILES:
        raise _too_many(tile_size, image_size, f"{count} tiles")
    return [
        Tile(*(tuple(part) for part in zip(*parts, strict=True)))
        for parts in itertools.product(*axes)
    ]


def _too_many(tile_size: Any, image_size: Any, what: str) -> InputError:
    return InputError(
        f"tile_size={short(tile_size)} cuts image_size={short(image_size)} into {what}; at most "
        f"{MOST_TILES} are planned: give larger tiles"
    )


@dataclass(frozen=True, slots=True)
class _Plan:
    """Plans the tiles of an image axis by axis; along the other axes it is taken whole.

    Attributes:
        whole: the network lowered for the image.
        node: the map that is put together.
    """

    whole: PlaneGraph
    node: str
    ignore_global: bool

    def axis(self, axis: int, limit: int) -> list[tuple[slice, slice, slice]]:
        """Input, output and kept slices along one axis."""
        image, units = self.whole.input_size, self.whole.sizes[self.node]
        assert image is not None
        assert units is not None
        total = image[axis]
        if limit >= total:
            everything = slice(0, units[axis])
            return [(slice(0, total), everything, everything)]
        too_many = _too_many(limit, total, f"more than {MOST_TILES} tiles along axis {axis}")
        if total > limit * MOST_TILES:
            raise too_many
        field = receptive_field(
            self.whole.network, self.node, image, ignore_global=self.ignore_global
        )
        halo = _halos(field)[axis]
        inner_first, _ = self.right(axis, limit, False, False)
        # The last tile begins where it just ends with the image.
        final = -(-(total - limit) // halo.block) * halo.block
        result = []
        start = done = 0
        while done < units[axis]:
            stop = min(start + limit, total)
            first, last = self.right(axis, stop - start, start == 0, stop == total)
            offset = start // halo.block * halo.units
            end = offset + last + 1
            # A tile that is too small between others may still do at the end of the image.
            if end <= done or offset + first > done:
                raise InputError(
                    f"tile_size={limit} is too small along axis {axis}: neighbouring tiles share "
                    f"{halo.overlap} pixels and begin at multiples of {halo.block}; give "
                    f"{halo.overlap + 2 * halo.block} or more"
                )
            kept = slice(done - offset, end - offset)
            result.append((slice(start, stop), slice(done, end), kept))
            if len(result) > MOST_TILES:
                raise too_many
            done = end
            start = min((done - inner_first) // halo.units * halo.block, final)
        return result

    def right(self, axis: int, length: int, first: bool, last: bool) -> tuple[int, int]:
        """First and last unit that are right in a tile of `length` pixels along `axis`.

        Args:
            first, last: whether the tile begins and ends as the image does.
        """
        assert self.whole.input_size is not None
        size = list(self.whole.input_size)
        size[axis] = length
        tile = lower(self.whole.network, size, ignore_global=self.ignore_global)
        return right_units(tile, self.whole, self.node, axis, first, last)[self.node]


def right_units(
    tile: PlaneGraph, whole: PlaneGraph, node: str, axis: int, first: bool, last: bool
) -> dict[str, tuple[int, int]]:
    """First and last unit along `axis` that are right in a tile; last < first where none is.

    With `whole` for the tile, and neither border being the image's, these are the units that meet
    no padding on any path.

    Args:
        tile, whole: the network lowered for the tile and for the image; it has one input.
        node: a map; it and all maps below it are followed.
        first, last: whether the tile begins and ends as the image does.

    Returns:
        By node.

    Raises:
        InputError: a layer does something else on the tile than on the image.
    """
    (source,) = tile.network.inputs

    def on_map(right: Right, size: Size | None) -> Right:
        """What lies beyond a map is padding: right only where the image ends there too."""
        assert size is not None
        low, high = right
        return low if first else max(low, 0), high if last else min(high, size[axis] - 1)

    everything = (-math.inf, math.inf)
    right: list[Right] = [everything] * len(tile.planes)
    for plane in tile.planes_of[source]:
        right[plane] = on_map(everything, tile.input_size)
    operations = tile.between(node, source), whole.between(node, source)
    for op, model in zip(*operations, strict=True):
        layer = tile.network.nodes[op.node].layer
        if first or last:
            _no_wrapping(op.node, layer)
        found = _common(right[plane] for plane, _ in op.sources)
        for here, there in zip(extended(op.maps, layer), extended(model.maps, layer), strict=True):
            if not _same(here.axes[axis], there.axes[axis]):
                raise InputError(
                    f"{op.node!r} does something else on tiles than on the image, as its windows "
                    f"depend on the size of the map; choose sizes that differ by a multiple of "
                    f"its stride, or an output before it"
                )
            # A resize beyond its borders knows no size of its own.
            size = here.size_out or op.maps[-1].size_out
            assert size is not None
            found = on_map(_after(here.axes[axis], found, size[axis]), size)
        for plane, _ in op.targets:
            right[plane] = _common((right[plane], found))
    result = {}
    for name in dict.fromkeys(op.node for op in operations[0]):
        count = tile.sizes[name]
        assert count is not None
        low, high = _common(right[plane] for plane in tile.planes_of[name])
        low, high = max(low, 0), min(high, count[axis] - 1)
        result[name] = (int(low), int(high)) if low <= high else (0, -1)
    return result


def _common(parts: Iterable[Right]) -> Right:
    lows, highs = zip(*parts, strict=True)
    return max(lows), min(highs)


def _same(a: AxisMap, b: AxisMap) -> bool:
    """Whether two maps are one and the same, each on its own number of pixels."""
    if isinstance(a, Table) and isinstance(b, Table):
        return (
            a.advance == b.advance
            and np.array_equal(a.starts, b.starts)
            and np.array_equal(a.taps, b.taps)
        )
    return a == b


def _no_wrapping(node: str, layer: Layer) -> None:
    if "circular" in (getattr(layer, "padding_mode", None), getattr(layer, "mode", None)):
        raise InputError(
            f"{node!r} pads with the image's other side, which a tile does not have; pad the image "
            f"once, before it is cut into tiles, and leave padding out of the network"
        )


def _after(axis: AxisMap, right: Right, size_out: int) -> Right:
    """The right units of y, given those of x; y has `size_out` units."""
    low, high = right
    if isinstance(axis, Everything):
        return right if right == (-math.inf, math.inf) else (math.inf, -math.inf)
    if isinstance(axis, Window):
        # y[o] reads o·s − lo … o·s − lo + span.
        first, last = low + axis.lo, high + axis.lo - axis.span
        return -_floor(-first, axis.stride), _floor(last, axis.stride)
    if isinstance(axis, Spread):
        # x[o] writes o·s − lo … o·s − lo + span: what a wrong one writes is wrong.
        s, lo = axis.stride, axis.lo
        return (low - 1) * s + axis.span - lo + 1, (high + 1) * s - lo - 1
    starts, taps = axis.rows(0, size_out)
    reads = taps != 0
    firsts = starts + reads.argmax(axis=1)
    lasts = starts + reads.shape[1] - 1 - reads[:, ::-1].argmax(axis=1)
    before, behind = np.flatnonzero(firsts < low), np.flatnonzero(lasts > high)
    return (
        float(before[-1] + 1) if len(before) else -math.inf,
        float(behind[0] - 1) if len(behind) else math.inf,
    )


def _floor(value: float, divisor: int) -> float:
    return value if math.isinf(value) else value // divisor
