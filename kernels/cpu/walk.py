"""A whole network on a small image in one call: an interpreter of `fastrf.kernels.tables`.

Of a small image, most of a layer's time would go into finding out in Python what to call. Here a
layer costs about a microsecond and its pixels. Sums are of nonnegative numbers alone, as everywhere
in the direct engine.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastrf.kernels import tables
from fastrf.kernels.tables import (
    BY,
    DENSE,
    DIVISOR,
    EVERYTHING,
    EXPONENT,
    GLOBAL,
    KERNEL,
    KIND,
    MANTISSA,
    OPERATION,
    REST,
    REST_EXPONENT,
    SCALE,
    SINKS,
    SIZE,
    SUM,
    TABLE,
    TAPS,
    TO,
    A,
    B,
)
from numpy.typing import NDArray

from ._compile import kernel
from ._layout import SMALLEST_NORMAL, Floats
from ._walk_moves import clear, move_dense, move_image, padding, reach_all
from ._walk_slots import (
    BITS,
    OFFSET,
    ORIGIN,
    SHAPE,
    SLOT_COLUMNS,
    STEP,
    add,
    cut,
    increase,
    normalise,
    pixels_of,
    rescale,
    settle,
    slab,
    taps_of,
    trim,
    unite,
)

# Multiplications and additions after which a call returns, so that Ctrl-C is seen: some 0.1 s.
_CALL = 1 << 27

# More exponents than float32 has.
_SINGLE_BIAS = 126


@kernel
def _measure(  # type: ignore[no-untyped-def]
    code, maps, kinds, starts, slot_of, entry, seeds, unit, needs
):
    """Pixels that each slot needs at most, into `needs`: the walk, on windows alone."""
    images = np.zeros((needs.size, SLOT_COLUMNS), np.int64)
    held = np.zeros(slot_of.size, np.bool_)
    origin, shape, none = np.empty(3, np.int64), np.ones(3, np.int64), np.int64(0)
    for v in seeds:
        settle(images[slot_of[v]], none, unit, shape)
        held[v], needs[slot_of[v]] = True, 1
    for at in range(entry, len(code)):
        what, to, a, b = code[at, OPERATION], code[at, TO], code[at, A], code[at, B]
        image, slot = images[slot_of[to]], slot_of[to]
        if what == SUM:
            held[to] = held[a] or held[b]
            if held[to]:
                one, other = a if held[a] else b, b if held[b] else a
                unite(images[slot_of[one]], images[slot_of[other]], image, none)
                needs[slot] = max(needs[slot], pixels_of(image))
            continue
        held[to] = held[to] or held[a]
        if not held[a] or what == SCALE:
            continue
        if what == GLOBAL:
            return
        source, move = images[slot_of[a]], maps[code[at, BY]]
        n0, n1, n2 = source[SHAPE], source[SHAPE + 1], source[SHAPE + 2]
        held[to] = reach_all(move, starts, source, origin, shape)
        if not held[to]:
            continue
        needs[slot] = max(needs[slot], shape[0] * shape[1] * shape[2])
        if kinds[code[at, BY], DENSE] >= 0:
            needs[b] = max(needs[b], n0 * n1 * (n2 + 2 * padding(move[2])))
        elif b >= 0:
            needs[b] = max(needs[b], shape[0] * n1 * n2)
        settle(image, none, origin, shape)
        for axis in range(3):
            size = move[axis, SIZE]
            if size >= 0:
                begin = max(-origin[axis], 0)
                end = min(size - origin[axis], shape[axis])
                cut(image, axis, begin, end)
                held[to] = held[to] and end > begin


@kernel
def _lower(pixels, patterns, images, slot, peaks, growth, room, tiny):  # type: ignore[no-untyped-def]
    """Make room for the pixels of a slot to grow by 2^growth."""
    if peaks[slot] + growth > room[1]:
        peaks[slot] = rescale(pixels, patterns, images[slot], peaks[slot], growth, room, tiny)


@kernel
def _sum(  # type: ignore[no-untyped-def]
    pixels, patterns, images, peaks, scales, slot_of, homes, to, a, b, room, tiny
):
    """The value `to` becomes a + b."""
    slot = slot_of[to]
    both = scales[a, 0] > 0 and scales[b, 0] > 0
    if scales[a, 0] == 0:
        a = b
    elif not both:
        b = a
    if scales[a, 0] == 0:
        return
    largest = scales[a, 1] + images[slot_of[a], BITS] + peaks[slot_of[a]]
    if scales[b, 1] + images[slot_of[b], BITS] + peaks[slot_of[b]] > largest:
        a, b = b, a
    own, other = slot_of[a], slot_of[b]
    _lower(pixels, patterns, images, own, peaks, 1.0, room, tiny)
    unite(images[own], images[other], images[slot], homes[slot])
    clear(pixels, homes[slot], pixels_of(images[slot]))
    one = pixels.dtype.type(1)
    add(pixels, images[own], one, one, images[slot], tiny)
    images[slot, BITS], peaks[slot] = images[own, BITS], peaks[own]
    scales[to, 0], scales[to, 1] = scales[a, 0], scales[a, 1]
    if both:
        # In two factors where one would be no normal number.
        order = scales[b, 1] + images[other, BITS] - scales[a, 1] - images[own, BITS]
        most, bias, shift = room[2], room[4], 0
        if order < 3 - bias:
            shift = -most
        elif order > bias - 3:
            shift = most
        order = max(order - shift, -1100.0)
        first = math.ldexp(1.0, shift)
        second = math.ldexp(scales[b, 0] / scales[a, 0], int(order))
        factor, again = pixels.dtype.type(first), pixels.dtype.type(second)
        add(pixels, images[other], factor, again, images[slot], tiny)
        # Both mantissas are between 0.5 and 1.
        peaks[slot] = max(peaks[slot], peaks[other] + shift + order + 1) + 1
        if not trim(pixels, images[slot]):
            scales[to, 0] = 0


@kernel
def _lose(pixels, image, move, mantissa, exponent, lost):  # type: ignore[no-untyped-def]
    """Cut off what fell into padding and add it, times a number, to `lost`; False where all did."""
    for axis in range(3):
        n, size = image[SHAPE + axis], move[axis, SIZE]
        if size < 0:
            continue
        begin = min(max(-image[ORIGIN + axis], 0), n)
        end = max(min(size - image[ORIGIN + axis], n), begin)
        gone = 0.0
        if begin > 0:
            gone += slab(pixels, image, axis, begin - begin, begin)
        if end < n:
            gone += slab(pixels, image, axis, end, n)
        part, order = math.frexp(gone)
        increase(lost, part * mantissa, exponent + order)
        cut(image, axis, begin, end)
        if begin == end:
            return False
    return True


@kernel
def _is_outside(image, move):  # type: ignore[no-untyped-def]
    for axis in range(3):
        start, size = image[ORIGIN + axis], move[axis, SIZE]
        if size >= 0 and (start < 0 or start + image[SHAPE + axis] > size):
            return True
    return False


@kernel
def _growth(move, dense, image):  # type: ignore[no-untyped-def]
    """log2 of the factor by which the largest pixel can grow: the weights of one sum."""
    growth = 0.0
    for axis in range(3):
        if move[axis, KIND] == TABLE or move[axis, KIND] == EVERYTHING:
            growth += math.log2(image[SHAPE + axis])
        elif move[axis, TAPS] < 0 and move[axis, KERNEL] > 1 and not dense:
            growth += math.log2(move[axis, KERNEL])
    return growth


@kernel
def _finish(pixels, patterns, images, slot, peaks, room, tiny):  # type: ignore[no-untyped-def]
    """Normalise the image of a slot, trim it, and return its former sum."""
    image = images[slot]
    if room[4] > _SINGLE_BIAS:
        bits = math.log2(pixels_of(image))
        _lower(pixels, patterns, images, slot, peaks, bits, room, tiny)
    none, n2 = np.int64(0), np.uint64(image[SHAPE + 2])
    total = slab(pixels, image, none, none, image[SHAPE])
    for i in range(image[SHAPE]):
        for j in range(image[SHAPE + 1]):
            first = np.uint64(image[OFFSET] + i * image[STEP] + j * image[STEP + 1])
            for x in range(n2):
                v = pixels.dtype.type(pixels[first + x] / total)
                pixels[first + x] = 0 if v < tiny else v
    if not trim(pixels, image):
        image[SHAPE] = 0
    return total


@kernel
def _walk(  # type: ignore[no-untyped-def]
    code,
    factors,
    maps,
    kinds,
    starts,
    taps,
    slot_of,
    entry,
    begin,
    seeds,
    shares,
    unit,
    result,
    homes,
    arena,
    patterns,
    room,
    tiny,
    scales,
    peaks,
    images,
    figures,
):
    """Follow the seeds, from instruction `begin` on, as far towards the input as one call goes.

    Returns the instruction to go on with; the number of instructions when all is done, and −1 − i
    where instruction i cannot be done. `scales`, of mantissa 0 where a value holds nothing, `peaks`
    and `images` hold what the next call needs. The result is left, normalised, in its slot (of
    shape 0 where there is nothing), its mass before that and what was lost in `figures`.
    """
    origin, shape = np.empty(3, np.int64), np.ones(3, np.int64)
    done = 0
    for s in range(seeds.size if begin == entry else 0):
        slot = slot_of[seeds[s]]
        settle(images[slot], homes[slot], unit, shape)
        arena[homes[slot]], peaks[slot] = math.ldexp(1.0, room[0]), room[0]
        scales[seeds[s], 0], scales[seeds[s], 1] = shares[s], -room[0]
        normalise(scales, seeds[s])
    for at in range(begin, len(code)):
        if done > _CALL:
            return at
        what, to, a, b = code[at, OPERATION], code[at, TO], code[at, A], code[at, B]
        if what == SUM:
            _sum(arena, patterns, images, peaks, scales, slot_of, homes, to, a, b, room, tiny)
            continue
        if scales[a, 0] == 0:
            continue
        if what == GLOBAL:
            return -1 - at
        scales[to, 0] = scales[a, 0] * factors[at, MANTISSA] / factors[at, DIVISOR]
        scales[to, 1] = scales[a, 1] + factors[at, EXPONENT]
        normalise(scales, to)
        if what == SCALE:
            continue
        by, own, slot = code[at, BY], slot_of[a], slot_of[to]
        move, dense, sinks = maps[by], kinds[by, DENSE] >= 0, kinds[by, SINKS] == 1
        if not reach_all(move, starts, images[own], origin, shape):
            scales[to, 0] = 0
            continue
        growth = _growth(move, dense, images[own])
        _lower(arena, patterns, images, own, peaks, growth, room, tiny)
        settle(images[slot], homes[slot], origin, shape)
        images[slot, BITS], peaks[slot] = images[own, BITS], peaks[own] + growth
        work = homes[b]
        done += pixels_of(images[slot]) * taps_of(move, dense)
        if dense:
            move_dense(move, starts, taps, arena, images[own], images[slot], work, tiny)
        else:
            least = tiny if sinks else arena.dtype.type(0)
            move_image(move, starts, taps, arena, images[own], images[slot], work, least)
        if _is_outside(images[slot], move):
            # Sums of float32 are added in float64, which has room for them.
            bits = math.log2(pixels_of(images[slot])) if room[4] > _SINGLE_BIAS else 0.0
            _lower(arena, patterns, images, slot, peaks, bits, room, tiny)
            mantissa = scales[to, 0] * factors[at, REST]
            exponent = scales[to, 1] + factors[at, REST_EXPONENT] + images[slot, BITS]
            if not _lose(arena, images[slot], move, mantissa, exponent, figures[1:]):
                scales[to, 0] = 0
                continue
            sinks = True
        if not trim(arena, images[slot]):
            scales[to, 0] = 0
        elif sinks:
            image = images[slot]
            peaks[slot] = rescale(arena, patterns, image, peaks[slot], 0.0, room, tiny)
    slot = slot_of[result]
    if scales[result, 0] == 0:
        images[slot, SHAPE] = 0
        return len(code)
    total = _finish(arena, patterns, images, slot, peaks, room, tiny)
    figures[0, 0] = total * scales[result, 0]
    figures[0, 1] = scales[result, 1] + images[slot, BITS]
    return len(code)


@dataclass(frozen=True, slots=True)
class Walked:
    """What a walk leaves.

    Attributes:
        image: normalised, without blank borders, 3-D; of no pixels where nothing arrived.
        origin: where its first pixel lies on the input.
        mass: (mantissa, exponent) of the sum before it was normalised.
        lost: the same of what fell into padding, weighted with the mean gain to the input.
        stopped: number of the `GLOBAL` instruction that could not be done, or −1.
    """

    image: Floats
    origin: tuple[int, int, int]
    mass: tuple[float, int]
    lost: tuple[float, int]
    stopped: int


# The headroom of `fastrf.engine.scaled`, and how to read exponents from bits: the bits of the
# fraction, and what exponents are counted from, less 1.
_PATTERNS = {np.dtype(np.float32): (np.int32, 23, 126), np.dtype(np.float64): (np.int64, 52, 1022)}


def walk(
    program: tables.Tables,
    entry: int,
    seeds: NDArray[np.int64],
    shares: NDArray[np.float64],
    unit: NDArray[np.int64],
    headroom: tuple[int, int, int],
) -> Walked:
    """See ``fastrf.kernels.spec.KERNELS["walk"]``."""
    dtype = program.taps.dtype
    pattern, digits, bias = _PATTERNS[dtype]
    code, maps, kinds = program.instructions, program.maps, program.kinds
    starts, slot_of = program.starts, program.slot_of
    needs = np.zeros(program.slots, np.int64)
    _measure(code, maps, kinds, starts, slot_of, entry, seeds, unit, needs)
    homes = np.zeros(program.slots, np.int64)
    np.cumsum(needs[:-1], out=homes[1:])
    arena = np.empty(int(needs.sum()), dtype)
    images = np.zeros((program.slots, SLOT_COLUMNS), np.int64)
    figures = np.zeros((2, 2))
    scales, peaks = np.zeros((slot_of.size, 2)), np.zeros(program.slots)
    at, goes_on = entry, True
    while goes_on:  # Python sees to signals between two calls
        at = _walk(
            code,
            program.factors,
            maps,
            kinds,
            starts,
            program.taps,
            slot_of,
            entry,
            at,
            seeds,
            shares,
            unit,
            program.result,
            homes,
            arena,
            arena.view(pattern),
            (*headroom, digits, bias),
            SMALLEST_NORMAL[dtype],
            scales,
            peaks,
            images,
            figures,
        )
        goes_on = 0 <= at < len(code)
    stopped = -1 - at if at < 0 else -1
    image = images[slot_of[program.result]].tolist()
    first, *steps = image[:ORIGIN]
    shape = tuple(image[SHAPE : SHAPE + 3])
    pixels: Any = np.empty((0, 0, 0), dtype)
    if stopped < 0 and min(shape) > 0:
        strides = [arena.itemsize * step for step in (*steps, 1)]
        pixels = np.ndarray(shape, dtype, arena, first * arena.itemsize, strides).copy()
    origin = tuple(image[ORIGIN : ORIGIN + 3])
    mass, lost = ((float(m), int(e)) for m, e in figures)
    return Walked(pixels, origin, mass, lost, int(stopped))
