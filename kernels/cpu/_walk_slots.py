"""The images of a walk, in one arena, and its numbers.

Where an image is cut or trimmed, only its window moves; its rows stay where they are.
"""

from __future__ import annotations

import math

import numpy as np
from fastrf.kernels.tables import KERNEL

from ._compile import kernel

# What a slot holds is a row of integers: where its first pixel lies in the arena, the distances
# between its planes and rows, its window's origin and shape, and the exponent that its pixels are
# to be multiplied with.

OFFSET, STEP, ORIGIN, SHAPE, BITS = 0, 1, 3, 6, 9
SLOT_COLUMNS = 10


@kernel
def _total(pixels, at, step0, step1, n0, n1, n2):  # type: ignore[no-untyped-def]
    """The sum of a box, in float64."""
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    for i in range(n0):
        for j in range(n1):
            # Four sums at a time, since each waits for its last addition.
            start = at + i * step0 + j * step1
            whole = start + n2 // 4 * 4
            for x in range(start, whole, 4):
                a += pixels[x]
                b += pixels[x + 1]
                c += pixels[x + 2]
                d += pixels[x + 3]
            for x in range(whole, start + n2):
                a += pixels[x]
    return (a + b) + (c + d)


@kernel
def _step(image, axis):  # type: ignore[no-untyped-def]
    return np.int64(1) if axis == 2 else image[STEP + axis]


@kernel
def slab(pixels, image, axis, begin, end):  # type: ignore[no-untyped-def]
    """The sum of a slab across an axis."""
    n0, n1, n2 = image[SHAPE], image[SHAPE + 1], image[SHAPE + 2]
    at = image[OFFSET] + begin * _step(image, axis)
    if axis == 0:
        n0 = end - begin
    elif axis == 1:
        n1 = end - begin
    else:
        n2 = end - begin
    return _total(pixels, at, image[STEP], image[STEP + 1], n0, n1, n2)


@kernel
def _is_blank(pixels, image, axis, begin):  # type: ignore[no-untyped-def]
    """Whether a slab of one pixel across an axis is all 0."""
    n0, n1, n2 = image[SHAPE], image[SHAPE + 1], image[SHAPE + 2]
    at = image[OFFSET] + begin * _step(image, axis)
    if axis == 0:
        n0 = 1
    elif axis == 1:
        n1 = 1
    else:
        n2 = 1
    for i in range(n0):
        for j in range(n1):
            start = at + i * image[STEP] + j * image[STEP + 1]
            for x in range(start, start + n2):
                if pixels[x] != 0:
                    return False
    return True


@kernel
def cut(image, axis, begin, end):  # type: ignore[no-untyped-def]
    """Leave begin … end − 1 of an axis."""
    image[OFFSET] += begin * _step(image, axis)
    image[ORIGIN + axis] += begin
    image[SHAPE + axis] = end - begin


@kernel
def trim(pixels, image):  # type: ignore[no-untyped-def]
    """Cut off borders that are all 0; False where nothing is left."""
    for axis in range(3):
        n = image[SHAPE + axis]
        begin, end = np.int64(0), n
        while begin < end and _is_blank(pixels, image, axis, begin):
            begin += 1
        while begin < end and _is_blank(pixels, image, axis, end - 1):
            end -= 1
        if begin == end:
            return False
        if end - begin < n:
            cut(image, axis, begin, end)
    return True


@kernel
def rescale(pixels, patterns, image, peak, growth, room, tiny):  # type: ignore[no-untyped-def]
    """The largest pixel near the top of the headroom, or as far below it as growth asks.

    Returns log2 of a bound of the largest pixel. Nonnegative numbers are ordered as the integers of
    the same bits are, of which LLVM finds the maximum in vectors.
    """
    top, limit, most, digits, bias = room
    largest = patterns.dtype.type(0)
    n2 = np.uint64(image[SHAPE + 2])
    for i in range(image[SHAPE]):
        for j in range(image[SHAPE + 1]):
            at = np.uint64(image[OFFSET] + i * image[STEP] + j * image[STEP + 1])
            for x in range(n2):
                largest = max(largest, patterns[at + x])
    if largest == 0:
        return peak  # all of it lay in the gaps of a transposed convolution
    peak = float((largest >> digits) - bias)
    shift = math.floor(min(float(top), limit - growth) - peak)
    if 0 <= shift <= 32:
        return peak
    shift = min(shift, most)
    factor = pixels.dtype.type(math.ldexp(1.0, shift))
    for i in range(image[SHAPE]):
        for j in range(image[SHAPE + 1]):
            at = np.uint64(image[OFFSET] + i * image[STEP] + j * image[STEP + 1])
            for x in range(n2):
                v = pixels[at + x] * factor
                pixels[at + x] = 0 if v < tiny else v
    image[BITS] -= shift
    return peak + shift


@kernel
def pixels_of(image):  # type: ignore[no-untyped-def]
    return image[SHAPE] * image[SHAPE + 1] * image[SHAPE + 2]


@kernel
def taps_of(move, dense):  # type: ignore[no-untyped-def]
    """How often about a pixel is written: no less than once an axis."""
    first, second, last = move[0, KERNEL], move[1, KERNEL], move[2, KERNEL]
    return first * second * last if dense else 3 + first + second + last


@kernel
def settle(image, target, origin, shape):  # type: ignore[no-untyped-def]
    """A fresh image of this window from the arena's pixel `target` on."""
    image[OFFSET], image[BITS] = target, 0
    image[STEP], image[STEP + 1] = shape[1] * shape[2], shape[2]
    for axis in range(3):
        image[ORIGIN + axis], image[SHAPE + axis] = origin[axis], shape[axis]


@kernel
def add(pixels, image, factor, again, sum_, tiny):  # type: ignore[no-untyped-def]
    """Add factor·again·image to the image `sum_`, whose window holds its window."""
    n2 = image[SHAPE + 2]
    for i in range(image[SHAPE]):
        for j in range(image[SHAPE + 1]):
            at = image[OFFSET] + i * image[STEP] + j * image[STEP + 1]
            to = sum_[OFFSET] + image[ORIGIN + 2] - sum_[ORIGIN + 2]
            to += (image[ORIGIN] + i - sum_[ORIGIN]) * sum_[STEP]
            to += (image[ORIGIN + 1] + j - sum_[ORIGIN + 1]) * sum_[STEP + 1]
            first, begin = np.uint64(at), np.uint64(to)
            for x in range(np.uint64(n2)):
                v = pixels[begin + x] + again * (factor * pixels[first + x])
                pixels[begin + x] = 0 if v < tiny else v


@kernel
def unite(a, b, image, target):  # type: ignore[no-untyped-def]
    """A fresh image from `target` on, of the smallest window that holds those of a and b."""
    origin, shape = np.empty(3, np.int64), np.empty(3, np.int64)
    for axis in range(3):
        start = min(a[ORIGIN + axis], b[ORIGIN + axis])
        end = max(
            a[ORIGIN + axis] + a[SHAPE + axis],
            b[ORIGIN + axis] + b[SHAPE + axis],
        )
        origin[axis], shape[axis] = start, end - start
    settle(image, target, origin, shape)


# --- numbers as mantissas and exponents -----------------------------------------------------


@kernel
def normalise(numbers, i):  # type: ignore[no-untyped-def]
    """A number is (mantissa, exponent), as `fastrf.engine.scaled.Scaled`."""
    mantissa, exponent = math.frexp(numbers[i, 0])
    numbers[i, 0] = mantissa
    numbers[i, 1] += exponent


@kernel
def increase(number, mantissa, exponent):  # type: ignore[no-untyped-def]
    """Add mantissa·2^exponent to the first of an array of numbers."""
    if mantissa == 0:
        return
    top = max(exponent, number[0, 1]) if number[0, 0] != 0 else exponent
    own = math.ldexp(number[0, 0], int(max(number[0, 1] - top, -2000.0)))
    number[0, 0] = own + math.ldexp(mantissa, int(max(exponent - top, -2000.0)))
    number[0, 1] = top
    normalise(number, 0)
