"""Exact profiles of chains: the coefficients of Π_l H_l(z^{h_l}) as integers.

The polynomial is evaluated at z = 2^b, with b wide enough that no coefficient reaches into the
next one's digits (Kronecker substitution): the product of polynomials becomes one product of big
integers, and the coefficients are read off as slices of its bytes.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np

from fastrf.analytic.chain import Floats, Step, whole_number
from fastrf.errors import InputError


class _Factor(NamedTuple):
    """Σ_m taps[m]·z^(spacing·m), with nonnegative integer taps."""

    taps: tuple[int, ...]
    spacing: int

    def pack(self, width: int) -> int:
        """The factor's value at z = 2^(8·width): its taps in slots of `width` bytes."""
        digits = bytearray(width * (self.spacing * (len(self.taps) - 1) + 1))
        for m, tap in enumerate(self.taps):
            start = m * self.spacing * width
            digits[start : start + width] = tap.to_bytes(width, "little")
        return int.from_bytes(digits, "little")


def _expand(powers: Mapping[_Factor, int]) -> tuple[list[int], int]:
    """Coefficients of Π factor^power, and their sum."""
    total = math.prod(sum(factor.taps) ** power for factor, power in powers.items())
    # The coefficients are nonnegative and add up to `total`, so that each fits where it fits.
    width = (total.bit_length() + 7) // 8
    count = 1 + sum(f.spacing * (len(f.taps) - 1) * power for f, power in powers.items())
    packed = [factor.pack(width) ** power for factor, power in powers.items()] or [1]
    while len(packed) > 1:  # pairs of like size: Karatsuba gains nothing on lopsided products
        packed = [math.prod(packed[i : i + 2]) for i in range(0, len(packed), 2)]
    digits = packed[0].to_bytes(width * count, "little")
    slots = range(0, len(digits), width)
    return [int.from_bytes(digits[i : i + width], "little") for i in slots], total


def extended_binomial(n: int, k: int) -> list[int]:
    """Coefficients of (1 + x + … + x^(k−1))^n: n(k − 1) + 1 exact integers of sum k^n.

    The effective receptive field of n layers of uniform kernel k is these over k^n (Luo et al.
    2016, section 2.2).

    Raises
    ------
    InputError : n < 0 or k < 1.
    """
    return exact_profile(n, k)[0]


def exact_profile(n: int, k: int) -> tuple[list[int], int]:
    """`(extended_binomial(n, k), k**n)`: the field of a unit as exact fractions of one total."""
    factor = _Factor((1,) * whole_number("k", k, 1), 1)
    return _expand({factor: whole_number("n", n, 0)})


def chain_polynomial(steps: Iterable[Step]) -> tuple[list[int], int]:
    """The exact profile of a chain: integer coefficients of Π_l H_l(z^{h_l}), and their sum.

    Coefficient i, over the sum, is the share of position i, in pixels from the chain's first
    tap. Taps that are not integers (floats are fractions with a power of 2 below) are first
    brought to the smallest integers of the same proportion, layer by layer.

    Raises
    ------
    InputError : two taps are not a whole number of pixels apart.
    """
    powers: Counter[_Factor] = Counter()
    for step, count in Counter(steps).items():
        if step.spacing.denominator != 1:
            raise InputError(
                f"taps lie {step.spacing} pixels apart: a polynomial has whole exponents; multiply "
                "all jumps by their common denominator and read the result on that finer grid"
            )
        powers[_Factor(_integers(step.weights()), int(step.spacing))] += count
    return _expand(powers)


def _integers(weights: Sequence[Fraction]) -> tuple[int, ...]:
    scale = math.lcm(*(weight.denominator for weight in weights))
    return tuple(int(weight * scale) for weight in weights)


class FloatProfile(NamedTuple):
    """What `profile_float` gives: two float64 arrays of one value per coefficient."""

    probability: Floats
    log_probability: Floats


def profile_float(coefficients: Sequence[int], total: int) -> FloatProfile:
    """Coefficients over their total, correctly rounded to float64, and natural logarithms.

    A probability below the smallest normal number (2.2e-308) is given as 0: a subnormal would
    hold only some of its digits. Its logarithm is given all the same; that of an exact zero is
    −inf. Logarithms are right to a few units in the last place.

    Raises
    ------
    InputError : `total` is not positive, or a coefficient is not within 0…total.
    """
    if total <= 0 or not all(0 <= c <= total for c in coefficients):
        raise InputError(
            f"a profile of total {total!r}: shares of a whole need a positive total and "
            "coefficients within 0…total; give what `chain_polynomial` returns"
        )
    # The quotient of two Python integers is rounded once, however long they are.
    probability = np.array([c / total for c in coefficients])
    probability[probability < sys.float_info.min] = 0.0
    logs = [
        math.log(p) if p else _log_ratio(c, total)
        for c, p in zip(coefficients, probability.tolist(), strict=True)
    ]
    return FloatProfile(probability, np.array(logs))


def _log_ratio(part: int, total: int) -> float:
    """ln(part/total) where the quotient itself underflows."""
    if not part:
        return -math.inf
    shift = total.bit_length() - part.bit_length()
    return math.log((part << shift) / total) - shift * math.log(2)
