"""Exact profiles against combinatorics, naive multiplication and mpmath."""

from __future__ import annotations

import math
import sys
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrf.analytic.chain import Step
from fastrf.analytic.polynomial import (
    chain_polynomial,
    exact_profile,
    extended_binomial,
    profile_float,
)
from fastrf.errors import InputError


def inclusion_exclusion(n: int, k: int) -> list[int]:
    """C_k(n, i) = Σ_j (−1)^j C(n, j) C(n + i − kj − 1, n − 1), de Moivre's formula; n >= 1."""
    return [
        sum(
            (-1) ** j * math.comb(n, j) * math.comb(n + i - k * j - 1, n - 1)
            for j in range(i // k + 1)
        )
        for i in range(n * (k - 1) + 1)
    ]


def multiply(factors):
    """Coefficients of Π Σ_m taps[m] z^(spacing·m), term by term."""
    product = {0: 1}
    for taps, spacing in factors:
        grown: dict[int, object] = {}
        for i, value in product.items():
            for m, tap in enumerate(taps):
                grown[i + spacing * m] = grown.get(i + spacing * m, 0) + value * tap
        product = grown
    return [product.get(i, 0) for i in range(max(product) + 1)]


@pytest.mark.parametrize(("n", "k"), [(1, 1), (1, 5), (7, 1), (2, 2), (12, 3), (40, 5), (150, 4)])
def test_extended_binomial_is_de_moivres(n, k):
    assert extended_binomial(n, k) == inclusion_exclusion(n, k)


def test_small_known_rows():
    assert extended_binomial(0, 3) == [1]
    assert extended_binomial(5, 2) == [math.comb(5, i) for i in range(6)]
    central_trinomial = [extended_binomial(n, 3)[n] for n in range(7)]
    assert central_trinomial == [1, 1, 3, 7, 19, 51, 141]


def test_deep_profile():
    coefficients, total = exact_profile(600, 3)
    assert total == 3**600 == sum(coefficients)
    assert len(coefficients) == 1201
    assert coefficients == coefficients[::-1]
    assert coefficients[:3] == [1, 600, 600 + math.comb(600, 2)]


STEPS = st.builds(
    lambda taps, jump, dilation, uniform: Step(
        len(taps), jump, dilation, None if uniform else tuple(taps)
    ),
    st.lists(st.integers(0, 5), min_size=1, max_size=4).filter(any),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 3]),
    st.booleans(),
)


@settings(derandomize=True, deadline=None, max_examples=80)
@given(st.lists(STEPS, max_size=6))
def test_chain_polynomial_is_the_product(steps):
    coefficients, total = chain_polynomial(steps)
    expected = multiply(
        [(step.taps or (1,) * step.kernel, step.dilation * int(step.jump)) for step in steps]
    )
    whole = sum(expected)
    assert sum(coefficients) == total
    assert [Fraction(c, total) for c in coefficients] == [Fraction(e, 1) / whole for e in expected]


def test_rational_and_float_taps_are_exact():
    steps = [
        Step(2, taps=(Fraction(1, 3), Fraction(1, 7))),
        Step(3, 2, taps=(0.1, 0.0, 0.7)),
    ]
    coefficients, total = chain_polynomial(steps)
    first = [Fraction(7, 10), Fraction(3, 10)]
    scale = Fraction(0.1) + Fraction(0.7)
    expected = multiply([(first, 1), ([Fraction(0.1) / scale, 0, Fraction(0.7) / scale], 2)])
    assert [Fraction(c, total) for c in coefficients] == expected


def test_fractional_spacing_is_refused():
    with pytest.raises(InputError, match=r"1/2 pixels.*common denominator"):
        chain_polynomial([Step(3, Fraction(1, 2))])


@pytest.mark.parametrize("half", [1, 2, 5, 10, 20])
def test_cosine_kernels_multiply_to_ones(half):
    """Π_{i=1}^{N} [1, −2cos(2πi/(2N+1)), 1] = 1 + x + … + x^{2N}: roots of unity but 1."""
    size = 2 * half + 1
    product = np.ones(1)
    # Each convolution adds at most three roundings relative to the same product with every
    # coefficient positive, which the running sum of absolute values bounds.
    bound = np.ones(1)
    for i in range(1, half + 1):
        kernel = np.array([1.0, -2 * np.cos(2 * np.pi * i / size), 1.0])
        product = np.convolve(product, kernel)
        bound = np.convolve(bound, np.abs(kernel))
    tolerance = 4 * half * np.finfo(float).eps * bound
    assert (np.abs(product - extended_binomial(1, size)) <= tolerance).all()
    assert extended_binomial(1, size) == [1] * size


@pytest.mark.parametrize(("n", "k"), [(30, 3), (200, 7), (1, 1)])
def test_probabilities_are_correctly_rounded(n, k):
    coefficients, total = exact_profile(n, k)
    probability, _ = profile_float(coefficients, total)
    assert probability.dtype == np.float64
    for p, c in zip(probability.tolist(), coefficients, strict=True):
        error = abs(Fraction(p) - Fraction(c, total))
        assert error <= Fraction(math.ulp(p)) / 2


def test_below_the_smallest_normal_only_logarithms_remain():
    coefficients, total = exact_profile(700, 3)  # 3^−700 is 1e-334
    probability, log_probability = profile_float(coefficients, total)
    assert ((probability == 0) | (probability >= sys.float_info.min)).all()
    assert probability[0] == 0
    assert probability[700] > 0
    with mpmath.workdps(40):
        for i in (0, 1, 10, 30, 31, 32, 33, 34, 350, 699, 700):
            exact = mpmath.log(mpmath.mpf(coefficients[i]) / total)
            # Three roundings (quotient, logarithm, difference) of terms of this size.
            assert abs(log_probability[i] - exact) <= 3 * math.ulp(float(abs(exact)))


def test_zero_and_certain_shares():
    probability, log_probability = profile_float([0, 5, 0], 5)
    assert probability.tolist() == [0, 1, 0]
    assert log_probability.tolist() == [-math.inf, 0, -math.inf]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: extended_binomial(-1, 3), "n is -1"),
        (lambda: extended_binomial(3, 0), "k is 0"),
        (lambda: extended_binomial(2.5, 3), r"n is 2\.5"),
        (lambda: profile_float([1], 0), "total 0"),
        (lambda: profile_float([0], 0), "total 0"),
        (lambda: profile_float([2], 1), "total 1"),
        (lambda: profile_float([-1, 2], 1), "total 1"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
