"""The figures of packed chains: profiles from the batched kernels, sizes from the profiles.

Chains on the unbounded grid are grown from the input, sorted, so that a CPU computes once what they
begin with alike; chains on maps go from the unit down, each by itself. Profiles stay on their
device, and are measured there: of a batch of thousands of chains, a GPU is sent layers, ends and
centres in an array each, and hands back what is known of lines and what was measured.

What is computed of a chain does not depend on those beside it, so that neither the order nor the
chunks of a sweep show in its table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastrf.arrays import Array, namespace, on_host
from fastrf.device import Device
from fastrf.kernels import load
from fastrf.metrics.luo import FILLS, LUO_THRESHOLD
from fastrf.sweep.columns import COVARIANCES, FIGURES, SHARE_NAMES
from fastrf.sweep.content import text_of
from fastrf.sweep.packing import (
    DILATION,
    KERNEL,
    LO,
    STRIDE,
    TAPS,
    UNBOUNDED,
    Geometry,
    Packed,
    Whole,
    geometry,
)

Floats: TypeAlias = NDArray[np.float64]

BATCH = 1 << 21
"""Pixels of the profiles that are held at a time (16 MB)."""

PIXEL_BYTES = 96
"""What a pixel of a profile takes of a GPU's memory at most: 8 and 8 more for it and its copy in
float64, 40 for what `chain_figures` leaves of it, and the rest for images in global memory, keys
that are sorted there, and gaps between rows of unequal length."""

TOTAL, MEAN, VARIANCE, KURTOSIS, FWHM, FIRST, LAST = range(7)
AMPLITUDE, BRIGHT, DISTANCE, SIDES = range(4)
"""What the columns of the results of `chain_figures` are."""

_FILLS = text_of([FILLS])
"""The warning of a field that fills its image."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Some of the chains of a pack, measured.

    Attributes:
        chains: their indices.
        figures: column name → one value a chain.
        profiles: each chain's profiles, one an axis, of sum 1; None where they were not asked for.
    """

    chains: Whole
    figures: dict[str, list[Any]]
    profiles: list[list[NDArray[Any]]] | None


@dataclass(frozen=True, slots=True)
class _Lines:
    """Profiles of some lines, one behind the other, and what is known beside their pixels, which
    alone are on the device."""

    pixels: Array
    places: Whole
    exponents: Whole
    lost: Floats


def measured(
    packed: Packed, device: Device, dtype: np.dtype[Any], keep: bool = False
) -> Iterator[Measured]:
    """The figures of all chains but those that are not regular (`Geometry`) and those whose unit
    sees padding alone, in batches; with the profiles where they are to be kept."""
    found = geometry(packed)
    regular = found.regular[packed.lines].all(axis=0)
    bounded = (packed.sizes != UNBOUNDED)[packed.lines].any(axis=0)
    grown = ~bounded
    keys = _sort_keys(packed, found, grown)
    for chosen, grow in ((regular & grown, True), (regular & ~grown, False)):
        (chains,) = np.nonzero(chosen)
        order = sorted(chains.tolist(), key=lambda c: [keys[line] for line in packed.lines[:, c]])
        for batch in _batches(np.array(order, np.int64), packed, found, _room(device)):
            used = set(packed.lines[:, batch].ravel().tolist())
            own = np.array(sorted(used, key=keys.__getitem__), np.int64)
            profiles = _grown if grow else _propagated
            with device.current():
                lines = profiles(packed, found, own, device, dtype)
                measures = _measure(packed, found, batch, own, lines, device, keep)
            yield measures


def _room(device: Device) -> int:
    """Pixels of a batch: what a GPU has room for, if that is less than `BATCH`."""
    return BATCH if device.is_host else min(BATCH, device.free_memory() // PIXEL_BYTES + 1)


def _sort_keys(packed: Packed, found: Geometry, grown: NDArray[np.bool_]) -> list[Any]:
    """By which lines are sorted: those that begin alike are neighbours where they are grown, and
    those of about one width elsewhere."""
    columns = np.stack([packed.layers[KERNEL], found.spacings, packed.layers[TAPS]], axis=1)
    text = (columns + 1).astype(">i8").tobytes()
    used = set(packed.lines[:, grown].ravel().tolist())
    ends = (24 * packed.offsets).tolist()
    return [
        text[ends[line] : ends[line + 1]] if line in used else count.to_bytes(8, "big")
        for line, count in enumerate(found.counts.tolist())
    ]


def _batches(chains: Whole, packed: Packed, found: Geometry, room: int) -> Iterator[Whole]:
    """Runs of chains whose profiles together have about so many pixels."""
    if not len(chains):
        return
    pixels = np.cumsum(found.counts[packed.lines[:, chains]].sum(axis=0))
    yield from np.split(chains, np.flatnonzero(np.diff(pixels // room)) + 1)


def _layers_of(packed: Packed, own: Whole) -> tuple[Whole, Whole]:
    """Offsets of the layers of some lines, and where these layers are in the pack."""
    counts = np.diff(packed.offsets)[own]
    offsets = np.concatenate([[0], np.cumsum(counts)])
    at = np.arange(offsets[-1]) + np.repeat(packed.offsets[own] - offsets[:-1], counts)
    return offsets, at


def _grown(
    packed: Packed, found: Geometry, own: Whole, device: Device, dtype: np.dtype[Any]
) -> _Lines:
    offsets, at = _layers_of(packed, own)
    layers = np.stack([packed.layers[KERNEL, at], found.spacings[at], packed.layers[TAPS, at]])
    places = np.concatenate([[0], np.cumsum(found.counts[own])])
    exponents = device.xp.empty(len(own), np.int64)
    pixels = device.xp.empty(int(places[-1]), dtype)
    taps = packed.taps.astype(dtype)
    load(device.name).grown_profiles(offsets, layers, taps, places, exponents, pixels)
    return _Lines(pixels, places[:-1], on_host(exponents), np.zeros(len(own)))


def _propagated(
    packed: Packed, found: Geometry, own: Whole, device: Device, dtype: np.dtype[Any]
) -> _Lines:
    offsets, at = _layers_of(packed, own)
    rows = packed.layers[:, at]
    layers = np.stack(
        [rows[KERNEL], rows[STRIDE], rows[DILATION], rows[LO], found.maps[at], rows[TAPS]]
    )
    width = int(found.counts[own].max())
    out = device.xp.empty((len(own), width), dtype)
    lost = device.xp.empty(len(own), dtype)
    exponents = device.xp.empty(len(own), np.int64)
    load(device.name).chain_profiles(
        offsets,
        layers,
        packed.taps.astype(dtype),
        found.units[own],
        found.starts[own],
        lost,
        exponents,
        out,
    )
    gone = on_host(lost).astype(np.float64)
    return _Lines(out.ravel(), width * np.arange(len(own)), on_host(exponents), gone)


def _trimmed(lines: _Lines, counts: Whole) -> tuple[Whole, Whole]:
    """Where the profiles' pixels that are not 0 begin, and how many pixels they span."""
    places, counts = lines.places.copy(), counts.copy()
    first, last = namespace(lines.pixels).asarray(np.stack([places, places + counts - 1]))
    ends = on_host(lines.pixels[first] * lines.pixels[last])
    for line in np.flatnonzero(ends == 0).tolist():
        begin = places[line]
        (some,) = np.nonzero(on_host(lines.pixels[begin : begin + counts[line]]))
        if len(some):
            places[line], counts[line] = begin + some[0], some[-1] - some[0] + 1
        else:
            counts[line] = 0
    return places, counts


@dataclass(frozen=True, slots=True)
class _Batch:
    """What the columns of a batch are read off, of each chain along each axis.

    Attributes:
        lines: indices of the chains' lines in the pack; like all that follow of shape
            (ndim, chains), but for `moments` and `sizes`, which have a last or no axis more.
        starts, counts: windows of the images on the input.
        at: the centres within them.
        arrived, lost: logarithm of the share that arrives, and the share that does not.
        moments: what `chain_figures` says of each line.
        sizes: what it says of each chain.
    """

    packed: Packed
    found: Geometry
    chains: Whole
    lines: Whole
    starts: Whole
    counts: Whole
    at: Floats
    arrived: Floats
    lost: Floats
    moments: Floats
    sizes: Floats
    dtype: str

    def columns(self) -> dict[str, list[Any]]:
        """The figures by the names of their columns."""
        ndim, count = self.lines.shape
        bounded = self.packed.sizes[self.lines] != UNBOUNDED
        per_axis = {
            "unit": self.found.units[self.lines],
            **self._theoretical(),
            "shape": self.counts,
            "origin": self.starts,
            "mean": self.starts + self.moments[:, :, MEAN],
            "std": np.sqrt(self.moments[:, :, VARIANCE]),
            "kurtosis": self.moments[:, :, KURTOSIS],
            "fwhm": self._widths(),
        }
        table: dict[str, list[Any]] = {name: [None] * count for name in FIGURES}
        for name, values in per_axis.items():
            for axis in range(ndim):
                table[f"{name}_{axis}"] = values[axis].tolist()
        if bounded.any():
            for axis in range(ndim):
                sizes = self.packed.sizes[self.lines[axis]].tolist()
                table[f"input_size_{axis}"] = [None if n == UNBOUNDED else n for n in sizes]
        for name, (_, b) in COVARIANCES.items():
            if b < ndim:
                table[name] = [0.0] * count
        for name, figures in {**self._masses(bounded), **self._sizes(bounded)}.items():
            table[name] = figures.tolist()
        fills = self._fills(bounded)
        return table | {
            "ndim": [ndim] * count,
            "dropped_mass": [0.0] * count,
            "exact": [1] * count,
            "assumptions": ["[]"] * count,
            "warnings": [_FILLS if full else "[]" for full in fills.tolist()],
            "method": ["chain"] * count,
            "dtype": [self.dtype] * count,
        }

    def _theoretical(self) -> dict[str, NDArray[Any]]:
        size, padding = self.found.size[self.lines], self.found.padding[self.lines]
        return {
            "trf_size": size,
            "trf_stride": self.found.stride[self.lines],
            "trf_padding": padding,
            "trf_start": size / 2 - padding,
        }

    def _widths(self) -> Floats:
        """The widths of the cuts through the centre; of an image that is 0 there, there are none
        (along a line, the cut is the line)."""
        widths = self.moments[:, :, FWHM].copy()
        if len(widths) > 1:
            widths[:, np.isnan(self.sizes[:, BRIGHT])] = np.nan
        return widths

    def _masses(self, bounded: NDArray[np.bool_]) -> dict[str, Floats]:
        lost = np.zeros(len(self.chains))
        for part in self.lost:
            lost += (1 - lost) * part
        # On the unbounded grid everything arrives, and the logarithm is not rounded.
        arrived = np.where(bounded, self.arrived, 0).sum(axis=0)
        return {"log_gain": self.packed.log_gains()[self.chains] + arrived, "lost_mass": lost}

    def _sizes(self, bounded: NDArray[np.bool_]) -> dict[str, Floats]:
        ndim = len(self.lines)
        trf = self.found.size[self.lines].astype(np.float64)
        extent = np.where(bounded, self.packed.sizes[self.lines], trf).prod(axis=0)
        amplitude = _root(self.sizes[:, AMPLITUDE], ndim)
        found = {
            "luo_size_amplitude": amplitude,
            "luo_size_variance": _root(self.sizes[:, BRIGHT], ndim),
            "ratio": amplitude / trf.prod(axis=0) ** (1 / ndim),
            "gaussian_distance": self.sizes[:, DISTANCE],
        }
        for number, name in enumerate(SHARE_NAMES):
            # How many pixels a centred square of that side holds along each axis.
            half = (self.sizes[:, SIDES + number] - 1) / 2
            sides = np.floor(self.at + half) - np.ceil(self.at - half) + 1
            found[name] = sides.prod(axis=0) / extent
        return found

    def _fills(self, bounded: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """As `metrics.fills`."""
        limit = LUO_THRESHOLD**2
        ends = self.starts + self.counts == self.packed.sizes[self.lines]
        at_start = (self.starts == 0) & (self.moments[:, :, FIRST] > limit)
        at_end = ends & (self.moments[:, :, LAST] > limit)
        full: NDArray[np.bool_] = (bounded & (at_start | at_end)).any(axis=0)
        return full


def _root(counts: Floats, ndim: int) -> Floats:
    """count^(1/ndim), exact for perfect powers."""
    found: Floats = (counts, np.sqrt(counts), np.cbrt(counts))[ndim - 1]
    return found


def _measure(
    packed: Packed,
    found: Geometry,
    chains: Whole,
    own: Whole,
    lines: _Lines,
    device: Device,
    keep: bool,
) -> Measured:
    """The figures of a batch of chains from the profiles of their lines."""
    number = np.empty(len(found.size), np.int64)
    number[own] = np.arange(len(own))
    places, counts = _trimmed(lines, found.counts[own])
    seen = counts > 0
    chains = chains[seen[number[packed.lines[:, chains]]].all(axis=0)]
    whole = packed.lines[:, chains]
    at_lines = number[whole]
    starts = (found.starts[own] + places - lines.places)[at_lines]
    # The middle of the theoretical field, or the pixel of the image next to it.
    left = found.units[whole] * found.stride[whole] - found.padding[whole]
    middle = left + (found.size[whole] - 1) / 2
    at = np.minimum(np.maximum(middle, starts), starts + counts[at_lines] - 1) - starts
    shares = np.array([*SHARE_NAMES.values()])
    pixels = lines.pixels.astype(np.float64, copy=False)
    for line in np.flatnonzero(~seen).tolist():
        pixels[places[line]] = 1  # of chains that are left out
    moments = device.xp.empty((len(own), 1 + LAST))
    sizes = device.xp.empty((len(chains), SIDES + len(shares)))
    load(device.name).chain_figures(
        pixels,
        places,
        np.maximum(counts, 1),
        at_lines,
        at,
        LUO_THRESHOLD,
        shares,
        moments,
        sizes,
    )
    moments, sizes = on_host(moments), on_host(sizes)
    arrived = np.log(moments[:, TOTAL]) + np.log(2.0) * lines.exponents
    batch = _Batch(
        packed,
        found,
        chains,
        whole,
        starts,
        counts[at_lines],
        at,
        arrived[at_lines],
        lines.lost[at_lines],
        moments[at_lines],
        sizes,
        str(lines.pixels.dtype),
    )
    profiles = None
    if keep:
        ends = zip(places, counts, moments[:, TOTAL], strict=True)
        kept = on_host(lines.pixels)
        of_lines = [kept[first : first + n] / total for first, n, total in ends]
        profiles = [[of_lines[line] for line in lines_of] for lines_of in at_lines.T]
    return Measured(chains, batch.columns(), profiles)
