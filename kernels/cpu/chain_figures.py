"""Sizes of many images that are outer products of profiles, from the profiles alone.

An image of N^d pixels has d profiles of N. Its pixels above a level are counted by walking two
sorted profiles against each other, and so is the mass by which it exceeds its Gaussian: pixel
(i, j) does where r_i·s_j > 1, with r and s the quotients of the profiles and the Gaussian's. That
costs N·log N instead of N² (N² in 3-D). Symmetric profiles are sorted by half.

The formulas are those of `fastrf.metrics`, which measures one image of any kind.
"""

from __future__ import annotations

import math

import numpy as np
from fastrf.kernels._checks import Floats, check_floats, check_same
from numpy.typing import NDArray

from ._compile import kernel

Integers = NDArray[np.int64]

TOTAL, MEAN, VARIANCE, KURTOSIS, FWHM, FIRST, LAST = range(7)
"""Columns of ``moments``."""

AMPLITUDE, BRIGHT, DISTANCE, SIDES = range(4)
"""Columns of ``out``; from SIDES on one a share."""

# As in fastrf.metrics: what a set may lack of its share, which part of an axis is compared with a
# Gaussian, and how far out at least.
ROUNDING = 2.5e-12
NEGLIGIBLE = 2.0**-52
FAR = 9.0

# A Gaussian below this is as good as zero where quotients are compared: they do not overflow.
FLOOR = 1e-150


@kernel
def _largest(p):  # type: ignore[no-untyped-def]
    top = p[0]
    for i in range(p.size):
        top = max(top, p[i])
    return top


@kernel
def _is_symmetric(p):  # type: ignore[no-untyped-def]
    n = p.size
    i = 0
    while i < n // 2 and p[i] == p[n - 1 - i]:
        i += 1
    return i == n // 2


@kernel
def _measure(p, moments):  # type: ignore[no-untyped-def]
    """The figures of one profile, which is normalised to sum 1."""
    n, total = p.size, 0.0
    for i in range(n):
        total += p[i]
    top = _largest(p) / total
    for i in range(n):
        p[i] /= total
    middle = (n - 1) / 2
    lean = 0.0
    if not _is_symmetric(p):
        for i in range(n):
            lean += p[i] * (i - middle)
    variance, fourth = 0.0, 0.0
    for i in range(n):
        x = i - middle - lean
        square = x * x
        weighted = p[i] * square
        variance += weighted
        fourth += weighted * square
    moments[TOTAL], moments[MEAN], moments[VARIANCE] = total, middle + lean, variance
    moments[KURTOSIS] = fourth / variance**2 - 3 if variance > 0 else np.nan
    moments[FIRST], moments[LAST] = p[0] / top, p[n - 1] / top
    # Between the outermost points where the profile, interpolated, crosses half its maximum.
    limit = top / 2
    first, last = 0, n - 1
    while p[first] < limit:
        first += 1
    while p[last] < limit:
        last -= 1
    before = p[first - 1] if first > 0 else 0.0
    after = p[last + 1] if last < n - 1 else 0.0
    rise, fall = (p[first] - limit) / (p[first] - before), (p[last] - limit) / (p[last] - after)
    moments[FWHM] = last - first + rise + fall


@kernel
def _at(p, c, root):  # type: ignore[no-untyped-def]
    """The profile, or its root, interpolated at c."""
    first = math.floor(c)
    value = 0.0
    for i in range(first, first + 2):
        weight = 1 - abs(i - c)
        if 0 <= i < p.size and weight > 0:
            value += weight * (math.sqrt(p[i]) if root else p[i])
    return value


@kernel
def _descending(p, level, values, weights):  # type: ignore[no-untyped-def]
    """The values above ``level`` in descending order, and how often each counts; their number."""
    n, count = p.size, 0
    symmetric = _is_symmetric(p)
    half = n // 2 if symmetric else n
    ordered = True
    for i in range(half):
        if p[i] > level:
            values[count] = -p[i]
            if count > 0 and values[count] > values[count - 1]:
                ordered = False
            count += 1
    if ordered:  # rising towards the middle
        for i in range(count // 2):
            values[i], values[count - 1 - i] = values[count - 1 - i], values[i]
    else:
        values[:count].sort()
    for i in range(count):
        values[i] = -values[i]
        weights[i] = 2 if symmetric else 1
    if symmetric and n % 2 and p[half] > level:
        at = count
        while at > 0 and values[at - 1] < p[half]:
            values[at], weights[at] = values[at - 1], weights[at - 1]
            at -= 1
        values[at], weights[at] = p[half], 1
        count += 1
    return count


@kernel
def _count_above(values, weights, counts, slots, limit):  # type: ignore[no-untyped-def]
    """Pixels greater than ``limit`` of the outer product of descending values."""
    ndim, last = slots.size, slots[-1]
    before = slots[ndim - 2] if ndim > 1 else 0
    held = np.zeros(counts[last] + 1, np.int64)
    for j in range(counts[last]):
        held[j + 1] = held[j] + weights[last, j]
    found = 0
    for plane in range(counts[0] if ndim == 3 else 1):
        j = counts[last]
        for i in range(counts[before] if ndim > 1 else 1):
            lead, times = 1.0, 1
            if ndim > 1:
                lead, times = values[before, i], weights[before, i]
            if ndim == 3:
                lead, times = values[0, plane] * lead, weights[0, plane] * times
            while j > 0 and not lead * values[last, j - 1] > limit:
                j -= 1
            if j == 0:
                break
            found += held[j] * times
    return found


@kernel
def _compared(p, mean, variance, r, a, b):  # type: ignore[no-untyped-def]
    """Quotients with the Gaussian in ascending order, and the two masses that belong to each.

    Pixels that are mirror images of each other are one entry. Returns how many there are.
    """
    n, far = p.size, FAR * math.sqrt(variance)
    first, stop = 0, n
    held = p[0]
    while held <= NEGLIGIBLE and abs(first - mean) > far:
        first += 1
        held += p[first]
    held = p[n - 1]
    while held <= NEGLIGIBLE and abs(stop - 1 - mean) > far:
        stop -= 1
        held += p[stop - 1]
    part = p[first:stop]
    symmetric = first + stop == n and mean == (n - 1) / 2 and _is_symmetric(part)
    size = part.size
    count = (size + 1) // 2 if symmetric else size
    gauss = np.empty(count)
    quotients = np.empty(count)
    whole = 0.0
    for i in range(count):
        x = first + i - mean
        twice = 2 if symmetric and 2 * i != size - 1 else 1
        gauss[i] = twice * math.exp(-0.5 * x * x / variance)
        whole += gauss[i]
    for i in range(count):
        twice = 2 if symmetric and 2 * i != size - 1 else 1
        gauss[i] /= whole
        quotients[i] = twice * part[i] / max(gauss[i], FLOOR)
    order = np.argsort(quotients)
    for i in range(count):
        at = order[i]
        twice = 2 if symmetric and 2 * at != size - 1 else 1
        r[i], a[i], b[i] = quotients[at], twice * part[at], gauss[at]
    return count


@kernel
def _exceeding(r, a, b, counts, slots):  # type: ignore[no-untyped-def]
    """Σ (Πa − Πb) over the pixels of the outer product where it is positive."""
    ndim, last = slots.size, slots[-1]
    before = slots[ndim - 2] if ndim > 1 else 0
    more, less = np.zeros(counts[last] + 1), np.zeros(counts[last] + 1)
    for j in range(counts[last] - 1, -1, -1):
        more[j], less[j] = more[j + 1] + a[last, j], less[j + 1] + b[last, j]
    found = 0.0
    for plane in range(counts[0] if ndim == 3 else 1):
        j = counts[last]
        for i in range(counts[before] if ndim > 1 else 1):
            ratio, up, down = 1.0, 1.0, 1.0
            if ndim > 1:
                ratio, up, down = r[before, i], a[before, i], b[before, i]
            if ndim == 3:
                ratio, up, down = ratio * r[0, plane], up * a[0, plane], down * b[0, plane]
            while j > 0 and ratio * r[last, j - 1] > 1:
                j -= 1
            found += up * more[j] - down * less[j]
    return max(found, 0.0)


@kernel
def _within(sums, n, c, half):  # type: ignore[no-untyped-def]
    """Mass of the pixels that lie wholly within ``half`` of c."""
    first = min(max(math.ceil(c - half + 0.5), 0), n)
    stop = min(max(math.floor(c + half - 0.5) + 1, first), n)
    return sums[stop] - sums[first]


@kernel
def _side(sums, counts, slots, at, goal):  # type: ignore[no-untyped-def]
    """The least side of a centred square that holds the goal."""
    reach = 0.0
    for axis in range(slots.size):
        reach = max(reach, at[axis] + 1, counts[slots[axis]] - at[axis])
    low, high = 0, 2 * math.ceil(reach) + 1
    while low < high:
        middle = (low + high) // 2
        mass = 1.0
        for axis in range(slots.size):
            slot = slots[axis]
            mass *= _within(sums[slot], counts[slot], at[axis], middle / 2)
        if mass >= goal:
            high = middle
        else:
            low = middle + 1
    return low


@kernel
def _chain_figures(  # type: ignore[no-untyped-def]
    pixels, places, counts, lines, at, threshold, shares, moments, out
):
    longest = 1
    for line in range(counts.size):
        longest = max(longest, counts[line])
    ndim, chains = lines.shape
    p = np.empty((ndim, longest))
    values, sums = np.empty((ndim, longest)), np.empty((ndim, longest + 1))
    r, a, b = np.empty((ndim, longest)), np.empty((ndim, longest)), np.empty((ndim, longest))
    weights = np.empty((ndim, longest), np.int64)
    bright, compared, sizes = np.zeros((3, ndim), np.int64)
    # Axes that are alike share what is made of their profile: it lies in the slot of the first.
    slots = np.zeros(ndim, np.int64)
    tops, here = np.empty(ndim), np.empty(ndim)
    figures = np.empty(moments.shape[1])
    means, variances = np.empty((2, counts.size))
    for line in range(counts.size):
        n = counts[line]
        for i in range(n):
            p[0, i] = pixels[places[line] + i]
        _measure(p[0, :n], figures)
        means[line], variances[line] = figures[MEAN], figures[VARIANCE]
        moments[line] = figures
    for c in range(chains):
        amplitude, bright_centre, whole, spread = 1.0, 1.0, 1.0, True
        for axis in range(ndim):
            line = lines[axis, c]
            n = counts[line]
            slots[axis] = axis
            for other in range(axis):
                if lines[other, c] == line:
                    slots[axis] = other
                    break
            slot = slots[axis]
            if slot == axis:
                sizes[axis] = n
                total = 0.0
                for i in range(n):
                    p[axis, i] = pixels[places[line] + i]
                    total += p[axis, i]
                sums[axis, 0] = 0
                for i in range(n):
                    p[axis, i] /= total
                    sums[axis, i + 1] = sums[axis, i] + p[axis, i]
            own = p[slot, :n]
            here[axis] = at[axis, c]
            tops[axis] = tops[slot] if slot < axis else _largest(own)
            amplitude *= _at(own, here[axis], True)
            bright_centre *= _at(own, here[axis], False)
            whole *= sums[slot, n]
            spread = spread and variances[line] > 0
        low = (threshold * amplitude) ** 2
        high = threshold * bright_centre
        if low > 0 and high > 0:
            for axis in range(ndim):
                if slots[axis] == axis:
                    others = 1.0
                    for other in range(ndim):
                        if other != axis:
                            others *= tops[other]
                    # Rounded down, so that no pixel above the limit is left out.
                    level = min(low, high) / others * (1 - 1e-12)
                    own = p[axis, : sizes[axis]]
                    bright[axis] = _descending(own, level, values[axis], weights[axis])
            out[c, AMPLITUDE] = _count_above(values, weights, bright, slots, low)
            out[c, BRIGHT] = _count_above(values, weights, bright, slots, high)
        else:
            out[c, AMPLITUDE] = np.nan
            out[c, BRIGHT] = np.nan
        if spread:
            for axis in range(ndim):
                line = lines[axis, c]
                if slots[axis] == axis:
                    own, mean, variance = p[axis, : sizes[axis]], means[line], variances[line]
                    compared[axis] = _compared(own, mean, variance, r[axis], a[axis], b[axis])
            out[c, DISTANCE] = _exceeding(r, a, b, compared, slots)
        else:
            out[c, DISTANCE] = np.nan
        for i in range(shares.size):
            goal = shares[i] * (1 - ROUNDING) * whole
            out[c, SIDES + i] = _side(sums, sizes, slots, here, goal)


def check_figures(
    pixels: Floats,
    places: Integers,
    counts: Integers,
    lines: Integers,
    at: Floats,
    shares: Floats,
    moments: Floats,
    out: Floats,
) -> None:
    """Refuse descriptions that compiled code would follow out of its arrays."""
    check_floats(pixels=pixels, at=at, shares=shares, moments=moments, out=out)
    check_same("lengths of places, counts and moments", {len(places), len(counts)}, {len(moments)})
    check_same("shapes of lines and at", lines.shape, at.shape)
    shape = (lines.shape[1], SIDES + len(shares))
    check_same("shape of out and what chains and shares ask for", out.shape, shape)
    if not 1 <= len(lines) <= 3:
        raise ValueError(f"chains have {len(lines)} axes; images have 1 to 3: give a line for each")
    check_same("columns of moments and its figures", moments.shape[1], 1 + LAST)
    if len(counts) and (
        counts.min() < 1 or places.min() < 0 or (places + counts).max() > len(pixels)
    ):
        raise ValueError(
            f"profiles of {counts.min()} pixels and more end at {(places + counts).max()} of "
            f"{len(pixels)}; line l is pixels[places[l]] to pixels[places[l] + counts[l] − 1]"
        )
    if lines.size and not (lines.min() >= 0 and lines.max() < len(counts)):
        raise ValueError(
            f"lines are {lines.min()} to {lines.max()}, of {len(counts)}; give each chain one per "
            "axis"
        )


def chain_figures(
    pixels: Floats,
    places: Integers,
    counts: Integers,
    lines: Integers,
    at: Floats,
    threshold: float,
    shares: Floats,
    moments: Floats,
    out: Floats,
) -> None:
    """See ``fastrf.kernels.spec.KERNELS["chain_figures"]``."""
    check_figures(pixels, places, counts, lines, at, shares, moments, out)
    _chain_figures(
        pixels,
        *(np.ascontiguousarray(values, np.int64) for values in (places, counts, lines)),
        np.ascontiguousarray(at),
        threshold,
        shares,
        moments,
        out,
    )
