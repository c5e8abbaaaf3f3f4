"""Profiles of many chains of layers along one axis, each from its last layer to its first.

An image is held as pixels and a scale, pixel·mantissa·2^exponent, so that no depth over- or
underflows: layers of equal taps only add pixels, and what they would divide by goes into the
mantissa. The sum of the pixels is known without adding them up (every layer multiplies it by the
sum of its taps, borders take away what they cut off), so the pixels are rescaled only when that sum
leaves its range, by a power of two.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from fastrf.kernels._checks import Floats, check_floats, check_positive, check_same
from numpy.typing import NDArray

from ._compile import kernel
from ._layout import SMALLEST_NORMAL
from ._lines import add_equal

Integers = NDArray[np.int64]

KERNEL, STRIDE, DILATION, LO, SIZE, TAPS = range(6)
"""Rows of ``layers``."""


class Range(NamedTuple):
    """Between which powers of two the sum of an image's pixels is kept, and where it is put.

    A pixel of a result is at least the smallest normal number, 2^low, times the largest; what is
    cut off on the way is below 2^low in an image whose largest pixel is far above 1.
    """

    low: float
    top: int
    high: float


RANGES = {
    np.dtype(np.float32): Range(2.0**80, 100, 2.0**124),
    np.dtype(np.float64): Range(2.0**400, 512, 2.0**1000),
}

LEAST = 2.0**-300
"""A mantissa outside of [LEAST, 1/LEAST] is brought back to the neighbourhood of 1."""

SETTLED = 2.0**-10
"""A sum of pixels from which borders took away all but this part is added up anew."""


@kernel
def _spread(layers, depth, n):  # type: ignore[no-untyped-def]
    """Pixels that n pixels of a layer's output reach, those on padding among them."""
    return (
        (n - 1) * layers[STRIDE, depth] + (layers[KERNEL, depth] - 1) * layers[DILATION, depth] + 1
    )


@kernel
def _kept(layers, depth, start, n):  # type: ignore[no-untyped-def]
    """The part of n pixels from ``start`` on that lies on the map which layer l reads."""
    size = layers[SIZE, depth]
    if size < 0:
        return 0, n
    first = min(max(0, -start), n)
    return first, max(first, min(n, size - start))


@kernel
def _measure(offsets, layers, units, widths):  # type: ignore[no-untyped-def]
    """Largest number of pixels of each chain's images; of all, padding included; and reach."""
    widest, reach = 1, 0
    for c in range(units.size):
        start, n = units[c], 1
        widths[c] = 1
        for depth in range(offsets[c + 1] - 1, offsets[c] - 1, -1):
            reach = max(reach, (layers[KERNEL, depth] - 1) * layers[DILATION, depth])
            start = start * layers[STRIDE, depth] - layers[LO, depth]
            n = _spread(layers, depth, n)
            widest = max(widest, n)
            first, end = _kept(layers, depth, start, n)
            start, n = start + first, end - first
            if n == 0:
                break
            widths[c] = max(widths[c], n)
    return widest, reach


def widths(offsets: Integers, layers: Integers, units: Integers) -> Integers:
    """The largest number of pixels that an image of each chain has."""
    found = np.empty(len(units), np.int64)
    _measure(offsets, layers, units, found)
    return found


@kernel
def _clear(arena, at, count):  # type: ignore[no-untyped-def]
    for j in range(count):
        arena[at + j] = 0


@kernel
def _add_taps(arena, at, n, taps, first, k, s, d, to, count, tiny):  # type: ignore[no-untyped-def]
    """``arena[to + o·s + m·d] = Σ taps[first + m]·arena[at + o]`` over all (o, m), m < k."""
    total, a = arena[to : to + count], arena[at : at + n]
    _clear(total, 0, count)
    for m in range(k):
        tap = taps[first + m]
        if s == 1:
            row = total[m * d : m * d + n]
            for o in range(n):
                row[o] += tap * a[o]
        else:
            for o in range(n):
                total[m * d + o * s] += tap * a[o]
    for j in range(count):
        v = total[j]
        total[j] = 0 if v < tiny else v


@kernel
def _sum(arena, at, count):  # type: ignore[no-untyped-def]
    total = 0.0
    for j in range(count):
        total += arena[at + j]
    return total


@kernel
def _scaled(arena, at, count, exponent, tiny):  # type: ignore[no-untyped-def]
    """Multiply by 2^exponent, in two steps where that is no number itself."""
    pixels = arena[at : at + count]
    half = exponent // 2
    a, b = pixels.dtype.type(2.0**half), pixels.dtype.type(2.0 ** (exponent - half))
    for j in range(count):
        v = pixels[j] * a * b
        pixels[j] = 0 if v < tiny else v


@kernel
def _chain_profiles(  # type: ignore[no-untyped-def]
    offsets, layers, taps, equal, units, starts, lost, exponents, out, tiny, low, top, high
):
    """``taps`` has enough taps of 1 from index ``equal`` on."""
    widest, reach = _measure(offsets, layers, units, np.empty(units.size, np.int64))
    # Images lie in either half, with room for zeros before and behind them. One array, because to
    # exchange two would count references.
    half = widest + 2 * reach
    arena = np.empty(2 * half, out.dtype)
    for c in range(units.size):
        # The image is arena[at : at + n], its first pixel is pixel `start` of its map, and its true
        # values are larger by mantissa·2^exponent. `total` is the sum of the pixels held.
        at, to, start, n = reach, half + reach, units[c], 1
        arena[at] = 2.0**top
        total, whole, gone = 2.0**top, 1.0, 0.0
        mantissa, exponent = 1.0, -top
        for depth in range(offsets[c + 1] - 1, offsets[c] - 1, -1):
            k, s, d = layers[KERNEL, depth], layers[STRIDE, depth], layers[DILATION, depth]
            tap = layers[TAPS, depth]
            gain = float(k) if tap < 0 else _sum(taps, tap, k)
            if total < low or total * gain > high:
                shift = top - math.frexp(total)[1]
                _scaled(arena, at, n, shift, tiny)
                total = math.ldexp(total, shift)
                exponent -= shift
            count = _spread(layers, depth, n)
            if s == 1 and tap < 0:
                margin = (k - 1) * d
                _clear(arena, at - margin, margin)
                _clear(arena, at + n, margin)
                add_equal(arena, at, count, k, d, to)
            else:
                _add_taps(arena, at, n, taps, equal if tap < 0 else tap, k, s, d, to, count, tiny)
            mantissa /= gain
            if not LEAST < mantissa < 1 / LEAST:
                mantissa, shift = math.frexp(mantissa)
                exponent += shift
            total *= gain
            start = start * s - layers[LO, depth]
            first, end = _kept(layers, depth, start, count)
            if end - first < count:
                off = _sum(arena, to, first) + _sum(arena, to + end, count - end)
                gone += math.ldexp(off * mantissa, exponent)
                whole *= max(0.0, 1 - off / total)
                total -= off
                if whole < SETTLED:
                    total = _sum(arena, to + first, end - first)
                    whole = 1.0
            at, to = to + first, half + reach if to == reach else reach
            start, n = start + first, end - first
            if total == 0:
                n = 0
                break
        lost[c] = gone
        row = out[c]
        exponents[c] = 0
        if n == 0:
            row[:] = 0
            continue
        shift = math.frexp(arena[at : at + n].max() * mantissa)[1] - 1
        factor = out.dtype.type(math.ldexp(mantissa, -shift))
        exponents[c] = exponent + shift
        # The part of the image that lies in the window.
        a = min(max(0, start - starts[c]), row.size)
        b = max(a, min(row.size, start + n - starts[c]))
        row[:a] = 0
        row[b:] = 0
        image, part = arena[at + starts[c] + a - start : at + starts[c] + b - start], row[a:b]
        for j in range(part.size):
            v = image[j] * factor
            part[j] = 0 if v < tiny else v


def check_chains(
    offsets: Integers,
    layers: Integers,
    taps: Floats,
    units: Integers,
    starts: Integers,
    lost: Floats,
    exponents: Any,
    out: Floats,
) -> None:
    """Refuse descriptions that compiled code would follow out of its arrays."""
    check_floats(taps=taps, lost=lost, out=out)
    chains = len(out)
    lengths = tuple(len(a) for a in (offsets, units, starts, lost, exponents))
    check_same(
        "lengths of offsets, units, starts, lost and exponents and what out asks for",
        lengths,
        (chains + 1, *(chains,) * 4),
    )
    check_same("rows of layers and its properties", len(layers), 1 + TAPS)
    total = layers.shape[1]
    if not (offsets[0] >= 0 and offsets[-1] <= total and np.all(np.diff(offsets) >= 0)):
        raise ValueError(
            f"offsets go from {offsets[0]} to {offsets[-1]}; they have to rise within the {total} "
            "layers: chain c has the layers offsets[c] to offsets[c + 1] − 1"
        )
    if total:
        names = ("kernel", "stride", "dilation")
        check_positive(**{name: int(layers[i].min()) for i, name in enumerate(names)})
        ends = np.where(layers[TAPS] < 0, 0, layers[TAPS] + layers[KERNEL])
        if ends.max() > len(taps):
            raise ValueError(
                f"a layer's taps end at {ends.max()}; taps has {len(taps)}: give the index of a "
                "layer's first tap, or −1 for equal ones"
            )


def chain_profiles(
    offsets: Integers,
    layers: Integers,
    taps: Floats,
    units: Integers,
    starts: Integers,
    lost: Floats,
    exponents: Integers,
    out: Floats,
) -> None:
    """See ``fastrf.kernels.spec.KERNELS["chain_profiles"]``."""
    check_chains(offsets, layers, taps, units, starts, lost, exponents, out)
    longest = int(np.max(layers[KERNEL], initial=1))
    _chain_profiles(
        *(np.ascontiguousarray(a, np.int64) for a in (offsets, layers)),
        np.concatenate([taps, np.ones(longest, taps.dtype)]),
        len(taps),
        *(np.ascontiguousarray(a, np.int64) for a in (units, starts)),
        lost,
        exponents,
        out,
        SMALLEST_NORMAL[out.dtype],
        *RANGES[out.dtype],
    )
