"""Packed chains: many layers as one table of whole numbers, without an object per layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrf.arrays import Array, marginal_sum
from fastrf.device import HOST, Device, resolve
from fastrf.errors import InputError, short
from fastrf.exchange import in_kind, taken
from fastrf.functional import doors
from fastrf.kernels import load
from fastrf.layers.checks import MAXIMUM
from fastrf.sweep.packing import CENTER, TAPS, UNBOUNDED, WIDEST, Packed, geometry

Whole = NDArray[np.int64]

TOP = 480
"""log2 of the largest pixel of an image that a profile is applied to. A product with a profile,
whose pixels are at most 2, and the sum of 2^31 of them stay far below the largest number; what is
cut off below the smallest lies 2^1502 below the largest pixel."""

_COLUMNS = 1 << 20
"""Layers that one call of the kernel is given at most, but for a single longer chain (48 MB)."""

_NOTHING = -(1 << 30)
"""The exponent of a profile that is 0: far below any other, and far from overflow."""

_LN2 = math.log(2)


class Propagated(NamedTuple):
    """An image at the input of a chain.

    Attributes:
        image: shape (*batch, *image), each image of sum 1; all zero where nothing arrived.
        origin: index of image[…, 0, …, 0] on the chain's input, per axis.
        log_gain: natural logarithm of what arrived per unit of what was put in, shape (*batch);
            −∞ where nothing did.
        lost: share that fell into padding, shape (*batch).
    """

    image: Any
    origin: tuple[int, ...]
    log_gain: Any
    lost: Any


class Profiles(NamedTuple):
    """The fields of many chains along one axis.

    Attributes:
        profiles: shape (chains, pixels), each row of sum 1 from its first pixel on, zero behind
            its last.
        starts: input index of each row's first pixel.
        counts: pixels of each row.
        log_gain: natural logarithm of what arrived per unit; below 0 by what was lost alone.
        lost: share that fell into padding.
    """

    profiles: Any
    starts: Any
    counts: Any
    log_gain: Any
    lost: Any


# --- one chain, any image ---------------------------------------------------------------------


def propagate(
    y: Any,
    layers: Any,
    taps: Any = None,
    *,
    origin: int | Sequence[int] = 0,
    input_size: int | Sequence[int] | None = None,
    gains: Any = None,
    out: Any = None,
) -> Propagated:
    """Takes images of variance from a chain's last map back to its input.

    Args:
        y: float32 or float64 of shape (*batch, *image), on the chain's last map: for the field of
            one unit a single pixel of 1.
        layers: whole numbers of shape (ndim, 6, L), or (6, L) for one axis; the layer next to the
            input comes first. The rows are kernel, stride, dilation, padding lo, padding hi, and
            the index in `taps` of the layer's first tap along this axis (−1: all equal).
        taps: variances of the layers that have their own; those of one layer count in proportion
            to their sum.
        origin: index of y[…, 0, …, 0] on the last map, per axis.
        input_size: pixels of the chain's input; None: an unbounded grid, on which nothing is lost.
            What falls into a layer's padding is lost at that layer.
        gains: of the layers, L positive numbers; default: 1 each.
        out: array for the image, of just its shape (`origin` and the shape do not depend on
            values), dtype and device.

    Returns:
        `Propagated`. Images have sum 1 and the gain is a logarithm, so that neither over- or
        underflows at any depth (checked at 10,000 layers); both in y's library, on its device.
        A pixel is right to a few roundings per addend, and to as many of the smallest normal
        number times the image's largest pixel as `y` has pixels.

    The map of a chain is a product of maps along its axes. One that meets no border is a single
    transposed convolution with the chain's profile, which takes as many additions as its images
    have pixels over all layers; to apply it takes image × profile per axis. Of a map that borders
    cut, there is a profile for each index of y along that axis, applied as a matrix. Profiles are
    shared by the batch. Workspace: twice the result in float64, and the profiles.

    Raises:
        InputError: an argument breaks a rule; the message says which.
        PlanError: the result does not fit into what memory is free.
    """
    rows = _layers(layers, stacked=True)
    ndim = len(rows)
    array = doors.image("y", y, ndim)
    place = doors.place_of(array)
    pool = _pool(taps, rows.transpose(1, 0, 2).reshape(6, -1))
    start = doors.per_axis("origin", origin, ndim, None)
    size: tuple[int | None, ...] = (None,) * ndim
    if input_size is not None:
        size = doors.per_axis("input_size", input_size, ndim, 1)
    log_gains = _log_gains(gains, rows.shape[2])
    shape = array.shape[array.ndim - ndim :]
    lines = [
        _Line.of(axis, own, n, pixels)
        for axis, own, n, pixels in zip(rows, start, size, shape, strict=True)
    ]
    batch = tuple(array.shape[: array.ndim - ndim])
    target = (*batch, *(line.count for line in lines))
    with place.current():
        result = doors.Result(out, target, array, y)
        carried = _Carried(doors.folded(array, ndim).astype(np.float64), place)
        for axis, line in enumerate(lines):
            carried.through(line, axis, pool)
        image, log_gain, lost = carried.finished(array.dtype)
        result.array[...] = image.reshape(target)
        log_gain = (log_gain + log_gains).reshape(batch)
        return Propagated(
            result.handed_back(),
            tuple(line.start for line in lines),
            in_kind(log_gain, y),
            in_kind(lost.reshape(batch), y),
        )


@dataclass(frozen=True)
class _Line:
    """A chain along one axis, and what of its input some units at its end see.

    Attributes:
        rows: of the kernel's `layers`.
        units: first unit, and how many.
        start, count: the window of the input.
        bounded: whether a border cuts the window of some map.
        stride: of the chain.
    """

    rows: Whole
    units: tuple[int, int]
    start: int
    count: int
    bounded: bool
    stride: int

    @staticmethod
    def of(layers: Whole, first: int, size: int | None, pixels: int) -> _Line:
        columns = [row.tolist() for row in layers]
        ahead = list(zip(*columns[:5], strict=True))
        sizes, n = [], size
        for number, (k, s, d, lo, hi) in enumerate(ahead):
            sizes.append(UNBOUNDED if n is None else n)
            if n is not None:
                n = (n + lo + hi - d * (k - 1) - 1) // s + 1
                if n < 1:
                    raise InputError(
                        f"input_size={size}: layer {number} leaves no pixel of a map of "
                        f"{sizes[-1]}; give a larger input_size, or more padding"
                    )
        if n is not None and not 0 <= first <= first + pixels <= n:
            raise InputError(
                f"y has the units {first} to {first + pixels - 1} of a map of {n} pixels; they lie "
                f"on it: give another origin or input_size"
            )
        start, count, bounded = first, pixels, False
        for (k, s, d, lo, _), n in zip(reversed(ahead), reversed(sizes), strict=True):
            start, count = start * s - lo, (count - 1) * s + d * (k - 1) + 1
            if n != UNBOUNDED and (start < 0 or start + count > n):
                bounded = True
                end = min(start + count, n)
                start = max(start, 0)
                count = end - start
            if count < 1:
                raise InputError(
                    f"y at origin {first} sees only padding of a map of {n} pixels; give "
                    f"another origin, or less padding"
                )
            if count > MAXIMUM or abs(start) > MAXIMUM:
                raise InputError(
                    f"layers reach {count} pixels from {start} on, beyond {MAXIMUM} per axis; give "
                    f"an input_size, or fewer strides"
                )
        rows = np.stack([*layers[:4], np.array(sizes, np.int64), layers[TAPS]])
        stride = math.prod(columns[1]) if pixels > 1 else 1  # of one pixel, it moves nothing
        return _Line(rows, (first, pixels), start, count, bounded, stride)


class _Carried:
    """Images on their way through the axes: value = array·2^exponent, one exponent an image.

    Attributes:
        array: shape (images, *pixels), float64.
        lost: share of each image that has fallen into padding.
    """

    def __init__(self, array: Array, place: Device) -> None:
        self.place, self.xp = place, place.xp
        self.array, self.exponents = array, place.xp.zeros(len(array), np.int64)
        self._raise()
        self.put = self._sums()
        self.seen = self.exponents
        self.lost = place.xp.zeros(len(array))

    def through(self, line: _Line, axis: int, pool: NDArray[np.float64]) -> None:
        """The map of a line along one axis of the pixels."""
        xp, shape = self.xp, self.array.shape
        first, pixels = line.units
        whole = 1 + (pixels - 1) * line.stride
        units = np.arange(first, first + pixels if line.bounded else first + 1)
        width = line.count if line.bounded else line.count - whole + 1
        doors.allowed(8 * len(units) * width, (len(units), width), self.place)
        rows, exponents, lost = _rows(line, units, width, pool, self.place)
        if line.bounded:
            along = marginal_sum(self.array, (0, 1 + axis))
            total = along.sum(axis=1)
            share = (along * lost).sum(axis=1) / xp.where(total > 0, total, 1)
            self.lost = self.lost + (1 - self.lost) * share
            # A unit that sees padding alone must not set the scale of the others.
            exponents = xp.where(rows.max(axis=1) > 0, exponents, _NOTHING)
        self._raise(exponents, axis)
        planes, after = math.prod(shape[: 1 + axis]), math.prod(shape[2 + axis :])
        held = self.array.reshape((planes, pixels, after))
        if line.bounded:
            moved = xp.matmul(xp.ascontiguousarray(rows.T), held)
        else:
            moved = xp.empty((planes, line.count, after))
            load(self.place.name).transposed_conv(
                held, rows[:, :, None], (1, line.stride, 1), (1, 1, 1), (0, 0, 0), moved
            )
        self.array = moved.reshape((*shape[: 1 + axis], line.count, *shape[2 + axis :]))

    def _raise(self, exponents: Array | None = None, axis: int = 0) -> None:
        """Scales each image so that its largest pixel is near 2^`TOP`, with pixels along an axis
        that are larger by powers of two than they stand there."""
        xp, array = self.xp, self.array
        if exponents is None:
            exponents = xp.zeros(1, np.int64)
        others = tuple(a for a in range(1, array.ndim) if a != 1 + axis)
        peaks = array.max(axis=others) if others else array
        tops = xp.frexp(peaks)[1] + exponents
        tops = xp.where(peaks > 0, tops, np.iinfo(np.int32).min).max(axis=1)
        shifts = xp.where(array.max(axis=tuple(range(1, array.ndim))) > 0, TOP - tops, 0)
        moved = shifts[:, None] + exponents[None]
        moved = xp.maximum(xp.minimum(moved, 4000), -4000).astype(np.int32)
        where = (len(moved), *(moved.shape[1] if a == axis else 1 for a in range(array.ndim - 1)))
        self.array = xp.ldexp(array, moved.reshape(where))
        self.exponents = self.exponents - shifts

    def _sums(self) -> Array:
        return marginal_sum(self.array, (0,))

    def finished(self, dtype: np.dtype[Any]) -> tuple[Array, Array, Array]:
        """Images of sum 1, the logarithms of their gains, and the shares that were lost."""
        xp = self.xp
        arrived = self._sums()
        there = (arrived > 0) & (self.put > 0)
        quotient = xp.where(there, arrived, 1) / xp.where(there, self.put, 1)
        log_gain = xp.log(quotient) + _LN2 * (self.exponents - self.seen)
        log_gain = xp.where(there, log_gain, -np.inf)
        divisor = xp.where(there, arrived, 1).reshape((-1,) + (1,) * (self.array.ndim - 1))
        self.array /= divisor
        image = self.array.astype(dtype, copy=False)
        image[image < np.finfo(dtype).smallest_normal] = 0
        return image, log_gain, self.lost


def _rows(
    line: _Line, units: Whole, width: int, pool: NDArray[np.float64], place: Device
) -> tuple[Array, Array, Array]:
    """The profile of each unit from the line's start on, its exponent, and what it lost."""
    xp, count, depth = place.xp, len(units), line.rows.shape[1]
    rows = xp.empty((count, width))
    exponents, lost = xp.empty(count, np.int64), xp.empty(count)
    chain_profiles = load(place.name).chain_profiles
    for part in _parts(count, depth):
        some = len(units[part])
        chain_profiles(
            depth * np.arange(some + 1),
            np.tile(line.rows, some),
            pool,
            units[part],
            np.full(some, line.start),
            lost[part],
            exponents[part],
            rows[part],
        )
    return rows, exponents, lost


def _parts(count: int, depth: int) -> Iterator[slice]:
    each = max(1, _COLUMNS // max(depth, 1))
    return (slice(a, min(a + each, count)) for a in range(0, count, each))


# --- many chains, one unit each ---------------------------------------------------------------


def profiles(
    layers: Any,
    offsets: Any = None,
    taps: Any = None,
    *,
    sizes: Any = None,
    units: Any = None,
    dtype: Any = "float64",
    device: str | None = None,
    out: Any = None,
) -> Profiles:
    """The effective fields of many chains along one axis, in one call.

    Args:
        layers: whole numbers of shape (6, L), rows as of `propagate`: the layers of all chains one
            behind the other, within a chain from the input up.
        offsets: chain c has the layers offsets[c] to offsets[c + 1] − 1, at least one; default:
            all layers are one chain.
        taps: as of `propagate`.
        sizes: pixels of each chain's input, −1 on the unbounded grid; one number for all, or one a
            chain; default: all unbounded.
        units: index of each chain's unit on its last map; default: in the middle, size // 2, and 0
            on the unbounded grid.
        dtype: float32 or float64, of the results.
        device: "cpu", "cuda" or "cuda:N"; default: where `layers` lie.
        out: array for the profiles, of their dtype and device, and of a shape (chains, pixels)
            with as many pixels as the widest chain asks for, or more.

    Returns:
        `Profiles`, in the library of `layers`; on a GPU, profiles, gains and losses stay there.
        Each row is right to 2k + 1 roundings a layer.

    Cost: as many additions as a chain's images have pixels over all layers, times k for layers
    with taps of their own; layers are read on the host. Chains are up to 2^20 pixels wide.
    Workspace: a few copies of `layers`, and two images of the widest chain, on a GPU two of each
    chain that runs.

    Raises:
        InputError: an argument breaks a rule; the message names the first chain that does.
        PlanError: the result does not fit into what memory is free.
    """
    rows = _layers(layers, stacked=False)
    dtype = _dtype(dtype)
    place = _place(device, layers)
    ends = np.array([0, rows.shape[1]]) if offsets is None else doors.table("offsets", offsets)
    total = rows.shape[1]
    if (
        ends.ndim != 1
        or len(ends) < 1
        or ends[0] < 0
        or ends[-1] > total
        or (np.diff(ends) < 1).any()
    ):
        raise InputError(
            f"offsets={short(ends.tolist())} must rise from 0 to at most {total}, the number of "
            f"layers: chain c has the layers offsets[c] to offsets[c + 1] − 1"
        )
    chains = len(ends) - 1
    pool = _pool(taps, rows)
    packed = Packed(
        lines=np.arange(chains)[None],
        offsets=ends,
        layers=rows,
        taps=pool,
        sizes=_one_each("sizes", sizes, UNBOUNDED, chains),
        units=_one_each("units", units, CENTER, chains),
        depths=np.diff(ends),
        gains=np.ones(total),
        input_gains=np.ones(chains),
    )
    if (packed.sizes < UNBOUNDED).any() or (packed.sizes == 0).any():
        raise InputError(
            f"sizes={short(packed.sizes.tolist())} must be numbers of pixels of at least 1, or −1 "
            f"for the unbounded grid"
        )
    found = geometry(packed)
    if not found.regular.all():
        c = int(np.flatnonzero(~found.regular)[0])
        raise InputError(
            f"chain {c}, size {packed.sizes[c]}, unit {found.units[c]}: the unit must lie on the "
            f"last map and see some of the input, and no map or window may exceed {WIDEST} pixels; "
            f"give another unit or size, or a chain of smaller reach"
        )
    width = int(found.counts.max(initial=1))
    shape = (chains, width)
    if out is not None and len(wider := np.shape(out)) == 2:
        shape = (chains, max(width, wider[1]))
    with place.current():
        xp = place.xp
        result = doors.Result(out, shape, xp.empty((0,), dtype), layers)
        pixels = result.array
        lost, exponents = xp.empty(chains, dtype), xp.empty(chains, np.int64)
        load(place.name).chain_profiles(
            ends,
            np.stack([*rows[:4], found.maps, rows[TAPS]]),
            pool.astype(dtype),
            found.units,
            found.starts,
            lost,
            exponents,
            pixels,
        )
        sums = marginal_sum(pixels, (0,))
        there = sums > 0
        divisor = xp.where(there, sums, 1)
        log_gain = xp.where(there, xp.log(divisor) + _LN2 * exponents, -np.inf)
        pixels /= divisor.astype(dtype)[:, None]
        pixels[pixels < np.finfo(dtype).smallest_normal] = 0
        beside = (found.starts, found.counts, log_gain, lost)
        return Profiles(result.handed_back(), *(in_kind(a, layers) for a in beside))


# --- what they are given ----------------------------------------------------------------------


def _layers(given: Any, *, stacked: bool) -> Whole:
    """Rows of packed layers, (ndim, 6, L) or (6, L)."""
    rows = doors.table("layers", given)
    if stacked and rows.ndim == 2:
        rows = rows[None]
    wanted = "(ndim, 6, L) with 1, 2 or 3 axes, or (6, L)" if stacked else "(6, L)"
    if rows.ndim != 2 + stacked or rows.shape[-2] != 6 or (stacked and len(rows) not in (1, 2, 3)):
        raise InputError(
            f"layers have shape {rows.shape}; it must be {wanted}: the rows are kernel, stride, "
            f"dilation, lo, hi and the index of the first tap (−1: equal taps)"
        )
    if rows.size:
        flat = np.moveaxis(rows, -2, 0).reshape(6, -1)
        for name, row in zip(("kernel", "stride", "dilation"), flat, strict=False):
            if row.min() < 1:
                raise InputError(f"layers have a {name} of {row.min()}; it must be at least 1")
        if np.abs(flat[:5]).max() > MAXIMUM:
            raise InputError(f"layers hold numbers beyond {MAXIMUM}; give smaller ones")
    return rows


def _pool(taps: Any, rows: Whole) -> NDArray[np.float64]:
    """The taps of all layers, each of which finds its own."""
    pool = np.zeros(0) if taps is None else doors.variances("taps", taps, doors.DTYPES[1])
    if pool.ndim != 1:
        raise InputError(f"taps have shape {pool.shape}: give the taps of all layers as one vector")
    kernel, places = rows[0], rows[TAPS]
    own = places >= 0
    if (places < -1).any() or (places[own] + kernel[own] > len(pool)).any():
        last = int((places + kernel)[own].max(initial=0)) - 1
        raise InputError(
            f"layers ask for the taps {places.min()} to {last} of {len(pool)}; give the index of "
            f"each layer's first tap, or −1 for equal ones"
        )
    filled = np.concatenate([[0], np.cumsum(pool > 0)])
    if (filled[places[own] + kernel[own]] == filled[places[own]]).any():
        raise InputError("taps of a layer are all 0: give some variance, or −1 for equal taps")
    return pool


def _log_gains(gains: Any, depth: int) -> float:
    if gains is None:
        return 0.0
    values = doors.variances("gains", gains, doors.DTYPES[1])
    if values.shape != (depth,) or not (values > 0).all():
        raise InputError(
            f"gains={short(values.tolist())} must be {depth} positive numbers, one a layer"
        )
    return math.fsum(np.log(values).tolist())


def _one_each(name: str, given: Any, default: int, count: int) -> Whole:
    values = doors.table(name, default if given is None else given)
    if values.shape not in ((), (count,)):
        raise InputError(
            f"{name} has shape {values.shape} for {count} chains; give one number, or one a chain"
        )
    return np.array(np.broadcast_to(values, (count,)))


def _dtype(given: Any) -> np.dtype[Any]:
    for dtype in doors.DTYPES:
        if isinstance(given, str | type | np.dtype) and given in (dtype, dtype.name):
            return dtype
    raise InputError(f"dtype={short(given)} is unknown; give 'float32' or 'float64'")


def _place(device: str | None, layers: Any) -> Device:
    if device is not None:
        return resolve(device)
    return doors.place_of(taken("layers", layers)) if doors.on_gpu(layers) else HOST
