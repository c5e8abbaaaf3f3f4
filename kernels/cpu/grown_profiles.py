"""Profiles of many chains on the unbounded grid, grown from the input up; prefixes are shared.

Going up, a layer multiplies the image by one more factor on the input's grid: its taps, spread by
the jump of the map that it reads. Chains that begin alike are alike until they part: where a later
chain goes on from, the image is kept. So the chains of all depths of one stack cost one stack.

Images are held as in `chain_profiles`: pixels and a scale, plain sums, rescaled by a power of two
when the sum leaves its range. Where all taps are equal the image is symmetric, and half of it is
computed.
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
from .chain_profiles import LEAST, RANGES

Integers = NDArray[np.int64]

KERNEL, SPACING, TAPS = range(3)
"""Rows of ``layers``."""

LONG = 8
"""Equal taps from which on sums of four are formed first: 31 taps then take 14 additions."""


class Kept(NamedTuple):
    """Which images are kept for chains that follow.

    Attributes:
        shared: per chain the layers that it begins with as the one before it, from whose image
            at that depth it goes on.
        offsets: chain c keeps its images at depths[offsets[c]] to depths[offsets[c + 1] − 1].
        depths: ascending within a chain.
        images, pixels: most of them, and most pixels, that are kept at a time.
    """

    shared: Integers
    offsets: Integers
    depths: Integers
    images: int
    pixels: int


@kernel
def _shared(offsets, layers, out):  # type: ignore[no-untyped-def]
    """Layers that each chain has in common with the one before it."""
    for c in range(1, out.size):
        here, before = offsets[c], offsets[c - 1]
        most = min(offsets[c + 1] - here, here - before)
        depth = 0
        while depth < most:
            a, b = here + depth, before + depth
            if not (
                layers[KERNEL, a] == layers[KERNEL, b]
                and layers[SPACING, a] == layers[SPACING, b]
                and layers[TAPS, a] == layers[TAPS, b]
            ):
                break
            depth += 1
        out[c] = depth


@kernel
def _keep(offsets, layers, shared, after, starts, depths):  # type: ignore[no-untyped-def]
    """Fill ``starts`` and ``depths`` of `Kept`; return how many are kept at most, and pixels.

    A chain's image at some depth is wanted where a later chain shares so many layers with its
    predecessor and none between them shares fewer. ``after`` is scratch.
    """
    chains = shared.size
    for c in range(chains - 1, -1, -1):
        t = c + 1
        while t < chains and shared[t] >= shared[c]:
            t = after[t]
        after[c] = t
    count = 0
    for c in range(chains):
        starts[c] = count
        t = c + 1
        while t < chains and shared[t] > shared[c]:
            count += 1
            depths[count - 1] = shared[t]
            t = after[t]
        depths[starts[c] : count] = depths[starts[c] : count][::-1].copy()
    starts[chains] = count
    # What lies on the stack, as the main loop will have it.
    at = np.zeros(chains + 1, np.int64)
    sizes = np.zeros(chains + 1, np.int64)
    top, pixels, most, widest = 0, 0, 0, 0
    for c in range(chains):
        while top > 0 and at[top - 1] > shared[c]:
            top -= 1
            pixels -= sizes[top]
        n, depth = 1, 0
        for i in range(starts[c], starts[c + 1]):
            while depth < depths[i]:
                layer = offsets[c] + depth
                n += (layers[KERNEL, layer] - 1) * layers[SPACING, layer]
                depth += 1
            at[top], sizes[top] = depth, n
            top += 1
            pixels += n
        most, widest = max(most, top), max(widest, pixels)
    return most, widest


@kernel
def _clear(arena, at, count):  # type: ignore[no-untyped-def]
    part = arena[at : at + count]
    for j in range(count):
        part[j] = 0


@kernel
def _add_long(arena, at, count, k, d, fours, to):  # type: ignore[no-untyped-def]
    """`add_equal` of many taps: of sums of four, which are put to ``fours``, and the rest."""
    add_equal(arena, at, count, 4, d, fours)
    groups = k // 4
    _clear(arena, fours - 4 * (groups - 1) * d, 4 * (groups - 1) * d)
    add_equal(arena, fours, count, groups, 4 * d, to)
    total = arena[to : to + count]
    for m in range(4 * groups, k):
        a = arena[at - m * d : at - m * d + count]
        for j in range(count):
            total[j] += a[j]


@kernel
def _add_taps(arena, at, n, taps, first, k, d, to, count, tiny):  # type: ignore[no-untyped-def]
    """``arena[to + o + m·d] = Σ taps[first + m]·arena[at + o]`` over all (o, m), m < k."""
    total, a = arena[to : to + count], arena[at : at + n]
    _clear(arena, to, count)
    for m in range(k):
        tap = taps[first + m]
        row = total[m * d : m * d + n]
        for o in range(n):
            row[o] += tap * a[o]
    for j in range(count):
        v = total[j]
        total[j] = 0 if v < tiny else v


@kernel
def _mirror(arena, at, n):  # type: ignore[no-untyped-def]
    """Fill the second half of n pixels with the first one backwards."""
    half = n // 2
    first = arena[at : at + half]
    last = arena[at + n - half : at + n]
    for j in range(half):
        last[half - 1 - j] = first[j]


@kernel
def _sum(values, at, count):  # type: ignore[no-untyped-def]
    total = 0.0
    for j in range(count):
        total += values[at + j]
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
def _grown_profiles(  # type: ignore[no-untyped-def]
    offsets, layers, taps, places, exponents, out, tiny, low, top, high,
    shared, starts, depths, images, pixels
):  # fmt: skip
    widest, reach = 1, 0
    for c in range(exponents.size):
        widest = max(widest, places[c + 1] - places[c])
    for layer in range(layers.shape[1]):
        reach = max(reach, (layers[KERNEL, layer] - 1) * layers[SPACING, layer])
    # Two images and the sums of four, each with room for zeros before it and behind it.
    room = widest + 2 * reach
    arena = np.empty(3 * room, out.dtype)
    fours = 2 * room + reach
    # The images that are kept, one behind the other, and what belongs to each.
    stack = np.empty(pixels, out.dtype)
    at_depth = np.empty(images + 1, np.int64)
    sizes = np.empty(images + 1, np.int64)
    scales = np.empty((images + 1, 2))
    powers = np.empty(images + 1, np.int64)
    even = np.empty(images + 1, np.bool_)
    held, used = 0, 0
    for c in range(exponents.size):
        while held > 0 and at_depth[held - 1] > shared[c]:
            held -= 1
            used -= sizes[held]
        # The image is arena[at : at + n], and its true values are larger by mantissa·2^exponent.
        # `total` is the sum of the pixels held.
        at, to, n = reach, room + reach, 1
        depth, symmetric = shared[c], True
        total, mantissa, exponent = 2.0**top, 1.0, -top
        if depth == 0:
            arena[at] = 2.0**top
        else:
            n = sizes[held - 1]
            arena[at : at + n] = stack[used - n : used]
            total, mantissa = scales[held - 1]
            exponent, symmetric = powers[held - 1], even[held - 1]
        keep = starts[c]
        while True:
            if keep < starts[c + 1] and depths[keep] == depth:
                stack[used : used + n] = arena[at : at + n]
                at_depth[held], sizes[held] = depth, n
                scales[held, 0], scales[held, 1] = total, mantissa
                powers[held], even[held] = exponent, symmetric
                held += 1
                used += n
                keep += 1
            layer = offsets[c] + depth
            if layer == offsets[c + 1]:
                break
            depth += 1
            k, d, tap = layers[KERNEL, layer], layers[SPACING, layer], layers[TAPS, layer]
            gain = float(k) if tap < 0 else _sum(taps, tap, k)
            if total * gain > high or total < low:
                shift = top - math.frexp(total)[1]
                _scaled(arena, at, n, shift, tiny)
                total = math.ldexp(total, shift)
                exponent -= shift
            margin = (k - 1) * d
            count = n + margin
            if tap < 0:
                part = (count + 1) // 2 if symmetric else count
                _clear(arena, at - margin, margin)
                _clear(arena, at + n, max(0, part - n))
                if k < LONG:
                    add_equal(arena, at, part, k, d, to)
                else:
                    _add_long(arena, at, part, k, d, fours, to)
                if symmetric:
                    _mirror(arena, to, count)
            else:
                symmetric = False
                _add_taps(arena, at, n, taps, tap, k, d, to, count, tiny)
            mantissa /= gain
            if not LEAST < mantissa < 1 / LEAST:
                mantissa, shift = math.frexp(mantissa)
                exponent += shift
            total *= gain
            at, to = to, at
            n = count
        largest = 0.0
        for j in range((n + 1) // 2 if symmetric else n):
            largest = max(largest, arena[at + j])
        shift = math.frexp(largest * mantissa)[1] - 1
        factor = out.dtype.type(math.ldexp(mantissa, -shift))
        exponents[c] = exponent + shift
        image, row = arena[at : at + n], out[places[c] : places[c] + n]
        for j in range(n):
            v = image[j] * factor
            row[j] = 0 if v < tiny else v


def _what_is_kept(offsets: Integers, layers: Integers) -> Kept:
    chains = len(offsets) - 1
    shared, starts = np.zeros(chains, np.int64), np.zeros(chains + 1, np.int64)
    _shared(offsets, layers, shared)
    # Each is wanted by a chain of its own.
    depths = np.empty(chains, np.int64)
    images, pixels = _keep(offsets, layers, shared, np.empty(chains, np.int64), starts, depths)
    return Kept(shared, starts, depths, images, pixels)


def check_grown(
    offsets: Integers,
    layers: Integers,
    taps: Floats,
    places: Integers,
    exponents: Any,
    out: Floats,
) -> None:
    """Refuse descriptions that compiled code would follow out of its arrays."""
    check_floats(taps=taps, out=out)
    check_same("lengths of exponents and places", len(exponents) + 1, len(places))
    check_same("lengths of offsets and places", len(offsets), len(places))
    check_same("rows of layers and its properties", len(layers), 1 + TAPS)
    total = layers.shape[1]
    if not (offsets[0] == 0 and offsets[-1] == total and np.all(np.diff(offsets) >= 0)):
        raise ValueError(
            f"offsets go from {offsets[0]} to {offsets[-1]}; they have to rise from 0 to the "
            f"{total} layers: chain c has the layers offsets[c] to offsets[c + 1] − 1"
        )
    if total:
        check_positive(kernel=int(layers[KERNEL].min()), spacing=int(layers[SPACING].min()))
        ends = np.where(layers[TAPS] < 0, 0, layers[TAPS] + layers[KERNEL])
        if ends.max() > len(taps):
            raise ValueError(
                f"a layer's taps end at {ends.max()}; taps has {len(taps)}: give the index of a "
                "layer's first tap, or −1 for equal ones"
            )
    grown = np.concatenate([[0], np.cumsum((layers[KERNEL] - 1) * layers[SPACING])])
    widths = 1 + np.diff(grown[offsets])
    if places[0] < 0 or places[-1] > len(out) or np.any(np.diff(places) != widths):
        raise ValueError(
            f"places go from {places[0]} to {places[-1]} in an out of {len(out)}; chain c's pixels "
            "are places[c] to places[c + 1] − 1, as many as its layers reach"
        )


def grown_profiles(
    offsets: Integers,
    layers: Integers,
    taps: Floats,
    places: Integers,
    exponents: Integers,
    out: Floats,
) -> None:
    """See ``fastrf.kernels.spec.KERNELS["grown_profiles"]``."""
    check_grown(offsets, layers, taps, places, exponents, out)
    offsets, layers = (np.ascontiguousarray(a, np.int64) for a in (offsets, layers))
    _grown_profiles(
        offsets,
        layers,
        taps,
        np.ascontiguousarray(places, np.int64),
        exponents,
        out,
        SMALLEST_NORMAL[out.dtype],
        *RANGES[out.dtype],
        *_what_is_kept(offsets, layers),
    )
