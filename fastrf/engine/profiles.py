"""One-dimensional profiles of series of separable layers on the unbounded grid.

Layers of convolution type commute there, so that a profile is Π_f f^n over the distinct factors f
= (taps, spacing) of the series: uniform taps by Miller's recurrence, other taps by repeated
squaring, different factors by direct convolution. But for Miller's recurrence, whose coefficients
were measured (`MILLER_KERNEL`), only nonnegative numbers are added, so every pixel keeps its
relative accuracy.

Range: profiles are held with a sum of 2^`TOP` and cut off below the smallest normal number, which
is 2^−1502 of the sum. Every step only adds up what it is given, so all cuts together lower a pixel
by at most (steps · pixels)·2^−1502 of the sum: nothing against a pixel of the result, which is at
least 2^−1022 of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrf.engine import cost, scratch
from fastrf.maps import Window

Floats = NDArray[np.float64]

TOP = 480
"""log2 of a held profile's sum: the products of a convolution then add up to 2^960 at most."""

MILLER_KERNEL = 32
"""Largest kernel whose powers come from Miller's recurrence. Its error grows with the kernel and
hardly with the number of layers: 7e-15 relative at most over all coefficients up to kernel 31 and
10,000 layers, 3e-14 at 101, 1e-13 at 255 (against exact integers)."""

_TINY = float(np.finfo(np.float64).smallest_normal)


class Factor(NamedTuple):
    """The transfer function Σ_m taps[m]·z^(m·spacing) of one layer, normalised to sum 1.

    Attributes:
        kernel: number of taps.
        spacing: pixels of the input between two taps (dilation · jump).
        taps: variances of the taps as bytes of float64, None where all are equal.
    """

    kernel: int
    spacing: int
    taps: bytes | None = None

    @property
    def symmetric(self) -> bool:
        """Whether the taps are the same from both ends."""
        if self.taps is None:
            return True
        taps = np.frombuffer(self.taps)
        return bool(np.all(taps == taps[::-1]))

    def log_generating(self, theta: Floats) -> Floats:
        """ln Σ_m taps[m]·e^(θ·m·spacing), for an array of θ."""
        taps = np.full(self.kernel, 1 / self.kernel)
        if self.taps is not None:
            taps = np.frombuffer(self.taps)
        (there,) = np.nonzero(taps)
        exponents = np.multiply.outer(theta, self.spacing * there)
        top = exponents.max(axis=1)
        found: Floats = top + np.log(np.exp(exponents - top[:, None]) @ taps[there])
        return found

    @property
    def miller(self) -> bool:
        """Whether its powers come from Miller's recurrence, at the same cost for any of them."""
        return self.taps is None and self.kernel <= MILLER_KERNEL


Runs = Mapping[Factor, int]
"""How often each factor occurs in a series."""


def span(runs: Runs) -> int:
    """Distance in pixels from a profile's first coefficient to its last."""
    return sum(f.spacing * (f.kernel - 1) * n for f, n in runs.items())


def profile(runs: Runs, kernels: Any, top: int = TOP, out: Floats | None = None) -> Floats:
    """Coefficients of Π f^n, times 2^top.

    Args:
        runs: the factors and how often each occurs.
        kernels: namespace of the kernels of `fastrf.kernels.spec`.
        top: at most `TOP`.
        out: vector for the first of the coefficients; None for all of them.

    Returns:
        `out`, or a vector of ``span(runs) + 1`` values.
    """
    runs = {f: n for f, n in runs.items() if n and f.kernel > 1}
    if out is None:
        out = np.empty(span(runs) + 1)
    if not runs:
        out[0] = 2.0**top
        return out
    if len(runs) == 1:
        ((factor, count),) = runs.items()
        if factor.miller and factor.spacing == 1:
            kernels.box_power(count, factor.kernel, top, out)
            return out
    # From the coarsest lattice to the finest: a common spacing is taken out until it is needed.
    order = sorted(runs, key=_coarsest_first)
    lattice = order[0].spacing
    whole = power(order[0], runs[order[0]], kernels)
    for factor in order[1:]:
        finer = math.gcd(lattice, factor.spacing)
        whole = spread(whole, lattice // finer)
        lattice = finer
        whole = convolved(whole, power(factor, runs[factor], kernels), factor.spacing // lattice)
    lowered(spread(whole, lattice)[: len(out)], top, out)
    return out


def _coarsest_first(factor: Factor) -> tuple[int, int]:
    return -factor.spacing, factor.kernel


def lowered(a: Floats, top: int, out: Floats) -> None:
    """Writes a profile of sum 2^`TOP` with a sum of 2^top."""
    np.multiply(a, 2.0 ** (top - TOP), out=out)
    out[out < _TINY] = 0


def power(factor: Factor, count: int, kernels: Any) -> Floats:
    """Coefficients of factor^count on the lattice of its taps, times 2^`TOP`."""
    if factor.taps is not None:
        return tapped(np.frombuffer(factor.taps), count)
    if factor.kernel <= MILLER_KERNEL:
        out = np.empty(count * (factor.kernel - 1) + 1)
        kernels.box_power(count, factor.kernel, TOP, out)
        return out
    whole = np.full((1, 1, 1), 2.0**TOP)
    for _ in range(count):
        grown = np.empty((1, whole.size + factor.kernel - 1, 1))
        kernels.transposed_box(whole, factor.kernel, 1, 1, 0, grown)
        whole = grown
        whole *= 1 / factor.kernel
    return _rescaled(whole.ravel())


class Ladder:
    """Profiles of many series over the same factors, each made from the one a layer below it.

    A profile takes one step, of nonnegative sums, from the series that lacks one layer of its
    coarsest factor. The maps of a network are such series of each other, so that the profiles of
    all of them together cost a step each.

    Args:
        factors: from the finest to the coarsest spacing.
        kernels: namespace of the kernels of `fastrf.kernels.spec`.
    """

    def __init__(self, factors: Sequence[Factor], kernels: Any) -> None:
        self.factors, self.kernels = tuple(factors), kernels
        self._made: dict[tuple[int, ...], Floats] = {}

    def __getitem__(self, counts: tuple[int, ...]) -> Floats:
        """Coefficients of Π factors[i]^counts[i], times 2^`TOP`; not to be written to."""
        made = self._made
        steps: list[tuple[tuple[int, ...], int]] = []
        while counts not in made:
            used = [i for i, n in enumerate(counts) if n]
            if not used or (len(used) == 1 and self.factors[used[0]].miller):
                made[counts] = profile({self.factors[i]: counts[i] for i in used}, self.kernels)
                break
            last = used[-1]
            steps.append((counts, last))
            counts = (*counts[:last], counts[last] - 1, *counts[last + 1 :])
        found = made[counts]
        for counts, last in reversed(steps):
            found = made[counts] = extended(found, self.factors[last], self.kernels)
        return found


def extended(a: Floats, factor: Factor, kernels: Any) -> Floats:
    """The profile of a series with one layer more."""
    out = np.empty((1, len(a) + factor.spacing * (factor.kernel - 1), 1))
    y, spacing = a.reshape(1, -1, 1), factor.spacing
    if factor.taps is None:
        kernels.transposed_box(y, factor.kernel, 1, spacing, 0, out)
        out /= factor.kernel
    else:
        taps = np.frombuffer(factor.taps).reshape(1, -1, 1)
        kernels.transposed_conv(y, taps, (1, 1, 1), (1, spacing, 1), (0, 0, 0), out)
    out[out < _TINY] = 0
    return out.reshape(-1)


def tapped(taps: Floats, count: int) -> Floats:
    """Coefficients of (Σ_m taps[m]·z^m)^count, normalised, times 2^`TOP`: repeated squaring."""
    square = _rescaled(taps.astype(np.float64))  # a copy
    found: Floats | None = None
    while True:
        if count & 1:
            found = square if found is None else convolved(found, square)
        count >>= 1
        if not count:
            assert found is not None
            return found
        square = convolved(square, square)


def convolved(a: Floats, b: Floats, spacing: int = 1) -> Floats:
    """Σ_m b[m]·a[i − m·spacing] of two profiles of sum 2^`TOP`, of the same sum."""
    if spacing == 1:
        # Directly, by sums of products: no transform, no difference.
        return _rescaled(np.convolve(a, b))
    out = np.zeros(len(a) + spacing * (len(b) - 1))
    for phase in range(min(spacing, len(a))):
        out[phase::spacing][: len(b) + (len(a) - phase - 1) // spacing] = np.convolve(
            a[phase::spacing], b
        )
    return _rescaled(out)


def making_bytes(runs: Runs) -> int:
    """Bytes that `profile` works in beside its result: both halves of a recurrence; or the last
    product, the two that it is of and what `numpy.convolve` copies, the shorter; or a long kernel's
    last layer, the one before and what it works in."""
    used = [f for f, n in runs.items() if n and f.kernel > 1]
    pixels = span(runs) + 1
    if len(used) == 1 and used[0].miller:
        return 16 * ((pixels + 1) // 2) if used[0].spacing == 1 else 0
    most = 0
    if len(used) > 1:
        finest = max(used, key=_coarsest_first)
        own = runs[finest] * (finest.kernel - 1) + 1
        most = _product_bytes(pixels, min(own, pixels - own + 1))
    for f in used:
        count, length = runs[f], runs[f] * (f.kernel - 1) + 1
        if f.taps is not None:
            whole = 1 << count.bit_length() - 1  # the last square
            most = max(most, _product_bytes(length, min(whole, count - whole) * (f.kernel - 1)))
        elif not f.miller:
            work = scratch.of_pass(Window(f.kernel), None, (1, length, 1), 1, 8)
            most = max(most, 8 * (2 * length - f.kernel + 1) + work)
    return most


def _product_bytes(pixels: int, shorter: int) -> int:
    """Of a product, its factors, and a copy of the shorter one; then which numbers are too small
    instead of that."""
    return 16 * pixels + max(pixels, 8 * shorter)


def making_seconds(runs: Runs) -> float:
    """What `profile` takes beside writing its result: calls, the products of its convolutions, and
    the passes of kernels too long for a recurrence."""
    order = sorted((f for f, n in runs.items() if n and f.kernel > 1), key=_coarsest_first)
    if not order:
        return 0.0
    if len(order) == 1 and order[0].miller and order[0].spacing == 1:
        return cost.FACTOR_SECONDS
    lattice, pixels = order[0].spacing, runs[order[0]] * (order[0].kernel - 1) + 1
    seconds = cost.TERM_SECONDS + _power_seconds(order[0], runs[order[0]])
    for factor in order[1:]:
        finer = math.gcd(lattice, factor.spacing)
        pixels, lattice = (pixels - 1) * (lattice // finer) + 1, finer
        own, spacing = runs[factor] * (factor.kernel - 1) + 1, factor.spacing // lattice
        seconds += _power_seconds(factor, runs[factor]) + _product_seconds(pixels, own)
        seconds += cost.PHASE_SECONDS * (min(spacing, pixels) - 1)
        pixels += spacing * (own - 1)
    return seconds


def _product_seconds(a: int, b: int) -> float:
    """What `convolved` takes of two profiles of so many pixels."""
    return cost.PRODUCT_SECONDS + 1e-9 * cost.PRODUCT_NANOSECONDS * a * b


def _power_seconds(factor: Factor, count: int) -> float:
    """What `power` takes; of a recurrence its call, for its every pixel is one of a row."""
    if factor.miller:
        return cost.FACTOR_SECONDS
    pixels = count * (factor.kernel - 1) + 1
    if factor.taps is None:
        # Layer by layer: half of the pixels, on average.
        each = cost.box_nanoseconds(factor.kernel)
        return count * (cost.PASS_SECONDS + 1e-9 * each * (pixels + factor.kernel) / 2)
    seconds, square, found = cost.FACTOR_SECONDS, factor.kernel, 0
    while count:
        if count & 1:
            seconds += _product_seconds(found, square) if found else 0.0
            found += square - 1 if found else square
        count >>= 1
        if count:
            seconds, square = seconds + _product_seconds(square, square), 2 * square - 1
    return seconds


def spread(a: Floats, spacing: int) -> Floats:
    """Coefficients of a(z^spacing)."""
    if spacing == 1:
        return a
    out = np.zeros(spacing * (len(a) - 1) + 1)
    out[::spacing] = a
    return out


def _rescaled(a: Floats) -> Floats:
    """The profile with a sum of 2^`TOP`, cut off below the smallest normal number; in its place."""
    total = float(a.sum())
    mantissa, exponent = math.frexp(total)
    a *= 2.0 ** (TOP - exponent)
    a /= mantissa
    a[a < _TINY] = 0
    return a
