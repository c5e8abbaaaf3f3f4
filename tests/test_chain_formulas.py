"""Closed forms for chains against exact polynomials in fractions, and against mpmath."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrf.analytic.chain import (
    Step,
    center,
    cumulant_generating_function,
    cumulants,
    luo_std,
    residual_cumulants,
    std_to_trf_ratio,
    support,
    trf_size,
)
from fastrf.errors import InputError

EPS = np.finfo(float).eps

CHAINS = {
    "uniform": [Step(3)] * 4,
    "mixed": [Step(7), Step(3, 2, 2), Step(2, 4)],
    "asymmetric": [Step(3, taps=(1, 2, 5)), Step(4, 2, taps=(0.5, 0.1, 0.0, 0.25))] * 2,
    "zero ends": [Step(4, 3, taps=(0, 1, 3, 0)), Step(3)],
    "fractional": [Step(3, Fraction(1, 2)), Step(3), Step(2, Fraction(3, 4), 2)],
    "still": [Step(1), Step(3, taps=(0, 1, 0))],
    "empty": [],
}


def distribution(steps) -> dict[Fraction, Fraction]:
    """Exact probabilities by position from the centre, one layer and one tap at a time."""
    found = {Fraction(0): Fraction(1)}
    for step in steps:
        taps = [Fraction(t) for t in step.taps or (1,) * step.kernel]
        grown: dict[Fraction, Fraction] = {}
        for position, share in found.items():
            for m, tap in enumerate(taps):
                place = position + step.dilation * step.jump * (m - Fraction(step.kernel - 1, 2))
                grown[place] = grown.get(place, Fraction(0)) + share * tap / sum(taps)
        found = grown
    return found


def exact_cumulants(shares) -> list[Fraction]:
    """κ_1…κ_8 from central moments, by the printed formulas (Kendall and Stuart, eq. 3.43)."""
    mean = sum(x * p for x, p in shares.items())
    _, _, m2, m3, m4, m5, m6, m7, m8 = (
        sum((x - mean) ** r * p for x, p in shares.items()) for r in range(9)
    )
    return [
        mean,
        m2,
        m3,
        m4 - 3 * m2**2,
        m5 - 10 * m3 * m2,
        m6 - 15 * m4 * m2 - 10 * m3**2 + 30 * m2**3,
        m7 - 21 * m5 * m2 - 35 * m4 * m3 + 210 * m3 * m2**2,
        m8
        - 28 * m6 * m2
        - 56 * m5 * m3
        - 35 * m4**2
        + 420 * m4 * m2**2
        + 560 * m3**2 * m2
        - 630 * m2**4,
    ]


@pytest.mark.parametrize("name", CHAINS)
def test_cumulants_are_those_of_the_exact_profile(name):
    steps = CHAINS[name]
    exact = exact_cumulants(distribution(steps))
    alone = [exact_cumulants(distribution([step])) for step in steps]
    for r, value in enumerate(cumulants(steps, 8)):
        # Every layer's share is rounded once, and their sum once.
        tolerance = float(sum(abs(shares[r]) for shares in alone)) * EPS
        assert abs(value - exact[r]) <= tolerance


@pytest.mark.parametrize("order", range(1, 9))
def test_cumulants_do_not_depend_on_the_order_asked(order):
    steps = CHAINS["asymmetric"]
    assert cumulants(steps, order) == cumulants(steps, 8)[:order]


@pytest.mark.parametrize("k", [1, 2, 3, 4, 7, 12])
def test_uniform_taps_and_equal_weights_are_the_same(k):
    assert cumulants([Step(k, 2)], 8) == cumulants([Step(k, 2, taps=(0.25,) * k)], 8)


@pytest.mark.parametrize("name", CHAINS)
def test_center_and_support(name):
    steps = CHAINS[name]
    positions = [x for x, p in distribution(steps).items() if p]
    assert support(steps) == (min(positions), max(positions))
    if all(step.taps is None for step in steps):
        assert center(steps) == max(positions)


def test_center_is_measured_from_the_first_tap():
    assert center([Step(3), Step(2, 2), Step(4, 1, 3)]) == Fraction(2 + 2 + 9, 2)


def test_luos_closed_forms():
    assert trf_size(10, 3) == 21
    assert trf_size(0, 5) == 1
    assert luo_std(6, 5) == math.sqrt(12)  # 6·24/12
    assert luo_std(20, 3) ** 2 == pytest.approx(cumulants([Step(3)] * 20, 2)[1], rel=4 * EPS)
    # The ratio of ratios at 4n and n tends to 1/2 from above: n(k−1) + 1 over 4n(k−1) + 1.
    for n in (10, 100, 1000):
        quotient = std_to_trf_ratio(4 * n, 3) / std_to_trf_ratio(n, 3)
        assert quotient == pytest.approx(2 * (2 * n + 1) / (8 * n + 1), rel=8 * EPS)


BLOCKS = [
    (1.0, [Step(3), Step(3)]),
    (0.5, [Step(3)]),
    (2.0, [Step(3, taps=(1, 2, 6)), Step(2, 2)]),
    (0.0, [Step(5)]),
]


@pytest.mark.parametrize("blocks", [BLOCKS[:1] * 3, BLOCKS[:2], BLOCKS])
def test_residual_cumulants_are_those_of_the_mixture(blocks):
    shares = {Fraction(0): Fraction(1)}
    mass = Fraction(1)
    for gain, steps in blocks:
        branch = {x: Fraction(gain) * p for x, p in distribution(steps).items()}
        branch[Fraction(0)] = branch.get(Fraction(0), Fraction(0)) + 1
        mass *= 1 + Fraction(gain)
        grown: dict[Fraction, Fraction] = {}
        for x, p in shares.items():
            for y, q in branch.items():
                grown[x + y] = grown.get(x + y, Fraction(0)) + p * q
        shares = grown
    assert sum(shares.values()) == mass
    exact = exact_cumulants({x: p / mass for x, p in shares.items()})
    log_mass, found = residual_cumulants(blocks, order=8)
    assert log_mass == pytest.approx(math.log(mass), rel=4 * EPS)
    # κ_r is a sum of products of raw moments whose absolute values are bounded by those of
    # κ_8's formula, 4140 terms in all (Bell's number), each with some 30 roundings of values
    # below reach^r, reach = 4 pixels.
    for r, value in enumerate(found, start=1):
        assert abs(value - exact[r - 1]) <= len(blocks) * 4140 * 30 * EPS * 4**r
        if r <= 4:  # where cancellation is mild: a few roundings of the largest term, 3 m_2²
            scale = abs(exact[r - 1]) + 3 * exact[1] ** 2
            assert abs(value - exact[r - 1]) <= 100 * EPS * scale


def test_residual_stack_of_the_design():
    """1000 equal blocks, C = 1: q = 1/2, s² = 4/3, branch κ_4 = −4/3; mass 2^1000 and beyond."""
    log_mass, (mean, variance, skew, fourth) = residual_cumulants([(1.0, [Step(3)] * 2)] * 1000)
    s2, k4 = 4 / 3, -4 / 3
    assert log_mass == pytest.approx(1000 * math.log(2), rel=2 * EPS)
    assert (mean, skew) == (0, 0)
    assert variance == pytest.approx(1000 * s2 / 2, rel=10 * EPS)
    assert fourth == pytest.approx(1000 * ((k4 + 3 * s2**2) / 2 - 3 * s2**2 / 4), rel=100 * EPS)


def test_residual_stack_without_blocks():
    assert residual_cumulants([], 2) == (0.0, (0.0, 0.0))


def mpmath_cgf(steps):
    def log_mean(theta):
        total = mpmath.mpf(0)
        for step in steps:
            h = mpmath.mpf(step.spacing.numerator) / step.spacing.denominator
            if step.taps is None:
                a = h * theta / 2
                if a:
                    total += mpmath.log(mpmath.sinh(step.kernel * a) / mpmath.sinh(a) / step.kernel)
            else:
                middle = mpmath.mpf(step.kernel - 1) / 2
                taps = [mpmath.mpf(t) for t in step.taps]
                terms = [t * mpmath.exp(theta * h * (m - middle)) for m, t in enumerate(taps)]
                total += mpmath.log(mpmath.fsum(terms) / mpmath.fsum(taps))
        return total

    return log_mean


THETAS = [0.0, 1e-9, -1e-4, 0.03, -0.3, 0.9, 2.0, -7.0, 40.0]


@pytest.mark.parametrize("name", ["uniform", "mixed", "asymmetric", "fractional"])
def test_cgf_and_derivatives_are_those_of_the_formula(name):
    steps = CHAINS[name]
    reach = [float(step.spacing) * (step.kernel - 1) for step in steps]
    values = cumulant_generating_function(steps).derivatives(np.array(THETAS), 6)
    assert values.shape == (7, len(THETAS))
    with mpmath.workdps(150):
        for column, theta in enumerate(THETAS):
            exact = mpmath.taylor(mpmath_cgf(steps), mpmath.mpf(theta), 6)
            for r in range(7):
                # Tilted central moments are sums of at most 7 terms below reach^r with a dozen
                # roundings; κ_6's formula has 1 + 15 + 10 + 30 = 56 of their products. An
                # exponent θ·reach carries its own rounding into the tilted taps.
                scale = sum(abs(theta) * a for a in reach) if r == 0 else sum(a**r for a in reach)
                tolerance = (1 + abs(theta) * max(reach)) * 56 * 84 * EPS * scale
                assert abs(values[r, column] - exact[r] * math.factorial(r)) <= tolerance


@pytest.mark.parametrize("name", ["uniform", "mixed", "asymmetric"])
@pytest.mark.parametrize("theta", [1e-12, -1e-6, 1e-3, -0.1, 1.0, -30.0])
def test_cgf_keeps_its_digits_near_zero(name, theta):
    """K − θκ_1 ~ θ²κ_2/2 and K′ − κ_1 ~ θκ_2 are sums of terms of one sign: no cancellation."""
    steps = CHAINS[name]
    cgf = cumulant_generating_function(steps)
    with mpmath.workdps(80):
        log_mean = mpmath_cgf(steps)
        mean = mpmath.diff(log_mean, 0)
        exact = log_mean(mpmath.mpf(theta)) - theta * mean
        # Below 100 roundings: taps, deviations, exponentials, a series of 15 terms, sums of 4;
        # an exponent of 30·9 adds as many ulps again to the sum.
        assert abs(cgf.centered(theta) / exact - 1) <= (100 + abs(theta) * 9) * EPS


@pytest.mark.parametrize("name", ["asymmetric", "zero ends"])
def test_cgf_reaches_the_support_without_overflow(name):
    steps = CHAINS[name]
    low, high = map(float, support(steps))
    cgf = cumulant_generating_function(steps)
    for theta in (1e4, 1e200, 1e300):
        # K(θ)/θ differs from the support's end by ln P(end)/θ, here below 20/θ.
        assert cgf(theta) / theta == pytest.approx(high, abs=20 / theta + 20 * EPS * high)
        assert cgf(-theta) / theta == pytest.approx(-low, abs=20 / theta - 20 * EPS * low)
        slope = cgf.derivatives([theta, -theta], 2)
        assert slope[1] == pytest.approx([high, low], rel=20 * EPS)
        assert slope[2] == pytest.approx([0, 0], abs=1e-28 * high**2)  # (EPS·reach)²


def test_cgf_shapes_and_slices():
    """Long arrays are worked through in slices; the values do not depend on where they fall."""
    cgf = cumulant_generating_function(CHAINS["mixed"])
    theta = np.linspace(-3, 3, 100_001)
    whole = cgf(theta)
    assert whole.shape == theta.shape
    assert cgf(0.5).shape == ()
    assert cgf.derivatives(theta[:6].reshape(2, 3), 3).shape == (4, 2, 3)
    picked = theta[::9973]
    assert whole[::9973] == pytest.approx(cgf(picked), rel=4 * EPS)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.integers(2, 9),
    st.sampled_from([1, 2, 8]),
    st.floats(-20, 20),
)
def test_cgf_is_convex_and_even_for_uniform_taps(k, jump, theta):
    cgf = cumulant_generating_function([Step(k, jump)] * 3)
    values, mirrored = cgf.derivatives([theta, -theta], 2).T
    assert values[2] >= 0
    assert values == pytest.approx(mirrored * [1, -1, 1], rel=8 * EPS, abs=0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Step(0), "kernel is 0"),
        (lambda: Step(2.0), r"kernel is 2\.0"),
        (lambda: Step(3, 0), "jump is 0"),
        (lambda: Step(3, 0.5), r"jump is 0\.5.*Fraction"),
        (lambda: Step(3, 1, 0), "dilation is 0"),
        (lambda: Step(3, taps=(1, 2)), "2 values for a kernel of 3"),
        (lambda: Step(2, taps=(1, -1)), "nonnegative"),
        (lambda: Step(2, taps=(0, 0)), "not all zero"),
        (lambda: Step(1, taps=(math.inf,)), "finite"),
        (lambda: Step(1, taps=(math.nan,)), "finite"),
        (lambda: cumulants([Step(3)], 9), "order is 9"),
        (lambda: cumulants([Step(3)], 0), "order is 0"),
        (lambda: residual_cumulants([(-1.0, [Step(3)])]), r"gain is -1\.0"),
        (lambda: residual_cumulants([], 9), "order is 9"),
        (lambda: cumulant_generating_function([Step(3)]).derivatives(0.0, 7), "order is 7"),
        (lambda: luo_std(-1, 3), "n is -1"),
        (lambda: trf_size(3, 0), "k is 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(InputError, match=message):
        call()
