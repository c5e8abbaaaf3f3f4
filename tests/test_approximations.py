"""Smooth approximations against exact integer profiles."""

from __future__ import annotations

import math
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrf.analytic.approximations import edgeworth, gaussian, ripple, saddlepoint, tilt
from fastrf.analytic.chain import Step, center, cumulant_generating_function, cumulants
from fastrf.analytic.polynomial import chain_polynomial, profile_float
from fastrf.errors import InputError

# Not a geometric row: that would only be a tilted uniform kernel, with the same saddlepoint errors.
SKEWED = Step(3, taps=(1, 3, 4))


def exact(steps):
    """Positions from the centre, probabilities and their logarithms."""
    profile = profile_float(*chain_polynomial(steps))
    positions = np.arange(len(profile.probability)) - float(center(steps))
    return positions, profile.probability, profile.log_probability


def relative_error(approximation, log_probability):
    return np.abs(np.expm1(approximation.log_p - log_probability))


def test_far_out_in_a_deep_chain():
    """Kernel 3, 100 layers, 0.9 of the radius: p = 8e-35, the Gaussian 3e6 times too large.

    The saddlepoint's leading term is right to 1%, with Daniels' bracket to 2e-5, with the next
    term to 2e-6. The bands are the stated figures rounded to one digit.
    """
    steps = [Step(3)] * 100
    x, p, log_p = exact(steps)
    here = list(x).index(90)
    assert 7.5e-35 < p[here] < 8.5e-35
    assert 2.5e6 < gaussian(90, steps).p / p[here] < 3.5e6
    errors = [relative_error(saddlepoint(90, steps, c), log_p[here]) for c in range(3)]
    assert 0.005 < errors[0] < 0.015
    assert 1.5e-5 < errors[1] < 2.5e-5
    assert 1.5e-6 < errors[2] < 2.5e-6
    # Edgeworth's series is no use there: it is dominated by its last term, (κ_4/σ⁴)²z⁸/1152.
    assert edgeworth(90, steps).p > 1e6 * p[here]


def falls_like(errors, order):
    """Errors at n, 2n, 4n, … fall like n^−order: the exponent is within 1/4 at the last pair.

    The next term of an asymptotic series in 1/n changes the exponent by O(1/n); 1/4 tells
    neighbouring orders (1 apart, or 1/2) from one another.
    """
    return abs(math.log2(errors[-2] / errors[-1]) - order) < 0.25


@pytest.mark.parametrize("share", [Fraction(0), Fraction(1, 2), Fraction(3, 4)])
@pytest.mark.parametrize("corrections", [0, 1, 2])
@pytest.mark.parametrize("step", [Step(3), Step(5), SKEWED], ids=["3", "5", "skewed"])
def test_saddlepoint_errors_fall_with_depth(step, corrections, share):
    """At a fixed share of the radius, like n^−(corrections + 1)."""
    errors = []
    for n in (32, 64, 128, 256):
        steps = [step] * n
        x, _, log_p = exact(steps)
        here = len(x) // 2 + int(share * len(x) // 2)
        errors.append(relative_error(saddlepoint(x[here], steps, corrections), log_p[here]))
    assert falls_like(errors, corrections + 1)


@pytest.mark.parametrize(
    ("form", "step", "order"),
    [
        (gaussian, Step(3), 1),
        (gaussian, Step(4), 1),
        (gaussian, SKEWED, 0.5),
        (edgeworth, Step(3), 3),
        (edgeworth, Step(4), 3),
        (edgeworth, SKEWED, 2.5),
    ],
)
def test_errors_relative_to_the_peak_fall_with_depth(form, step, order):
    errors = []
    for n in (32, 64, 128, 256):
        x, p, _ = exact([step] * n)
        errors.append(np.abs(form(x, [step] * n).p - p).max() / p.max())
    assert falls_like(errors, order)


def test_edgeworth_is_the_stated_formula_for_symmetric_taps():
    steps = [Step(3), Step(5, 2), Step(3, 2)]
    _, k2, _, k4, _, k6 = cumulants(steps, 6)
    sigma = math.sqrt(k2)
    x = np.linspace(-7, 7, 15)
    z = x / sigma
    he4 = z**4 - 6 * z**2 + 3
    he6 = z**6 - 15 * z**4 + 45 * z**2 - 15
    he8 = z**8 - 28 * z**6 + 210 * z**4 - 420 * z**2 + 105
    bracket = 1 + k4 * he4 / (24 * k2**2) + k6 * he6 / (720 * k2**3) + k4**2 * he8 / (1152 * k2**4)
    expected = np.exp(-(z**2) / 2) / (sigma * math.sqrt(2 * math.pi)) * bracket
    # The bracket's terms, each below 10 here, cancel: an absolute error of a few ulps of them.
    tolerance = 100 * np.finfo(float).eps / sigma
    assert edgeworth(x, steps).p == pytest.approx(expected, rel=0, abs=tolerance)


def test_logarithms_hold_where_probabilities_underflow():
    steps = [Step(3)] * 800  # 3^−800 = 1e-382
    x, p, log_p = exact(steps)
    gone = p == 0
    assert gone.sum() > 2
    found = saddlepoint(x, steps)
    assert np.isfinite(found.log_p).all()
    assert (found.p[gone] < sys.float_info.min).all()
    # Off the ends, Stirling's series at one pixel from the end bounds the error: 1 − e/√(2π)·
    # (1 − 1/12 + 1/288) = 0.0022, and O(1/n) more.
    assert relative_error(found, log_p).max() < 0.0022 + 1 / 800


def test_next_to_the_end_the_error_is_stirlings():
    """One pixel from the end the count of layers off their last tap is Poisson's, with mean 1."""
    n = 4000
    # C(n, 1) ways to be one pixel from the end, in closed form: the exact profile is not needed.
    log_p = math.log(n) - n * math.log(3)
    stirling = math.e / math.sqrt(2 * math.pi)
    for corrections, series in enumerate((1, 1 - 1 / 12, 1 - 1 / 12 + 1 / 288)):
        found = saddlepoint(n - 1.0, [Step(3)] * n, corrections).log_p
        assert math.exp(found - log_p) == pytest.approx(stirling * series, abs=2 / n)


def test_ends_of_the_support():
    steps = [Step(4, taps=(0, 1, 3, 0)), Step(3, 2)] * 2  # from −5 to +5 of the centre
    x = np.array([-5.5, -5.0, 5.0, 5.5, 1e300])
    found = saddlepoint(x, steps)
    ends = [2 * math.log(1 / 4) + 2 * math.log(1 / 3), 2 * math.log(3 / 4) + 2 * math.log(1 / 3)]
    assert found.log_p == pytest.approx([-math.inf, *ends, -math.inf, -math.inf], rel=1e-15)
    for form in (gaussian, edgeworth, saddlepoint):
        outside = form(x[[0, 3, 4]], steps)
        assert (outside.p == 0).all()
        assert (outside.log_p == -math.inf).all()


def test_a_mean_that_rounds_to_the_end_of_the_support():
    found = saddlepoint([-0.5, 0.5], [Step(2, taps=(1, 1e-20))])
    assert found.log_p == pytest.approx([0, math.log(1e-20)], rel=1e-15)


def test_edgeworth_has_every_term_to_its_order():
    """Against exp(Σ_{r≥3} λ_r t^r ε^(r−2)/r!) expanded to ε⁴, t^r standing for He_r(z)."""
    steps = [SKEWED, Step(4, 2, taps=(5, 1, 1, 2))] * 4  # wide enough to hold ±2σ
    mean, variance, *higher = cumulants(steps, 6)
    sigma = math.sqrt(variance)
    exponent = {
        (r, r - 2): kappa / sigma**r / math.factorial(r) for r, kappa in enumerate(higher, start=3)
    }
    series: dict[tuple[int, int], float] = {}
    power = {(0, 0): 1.0}
    for j in range(5):
        for key, value in power.items():
            series[key] = series.get(key, 0.0) + value / math.factorial(j)
        grown: dict[tuple[int, int], float] = {}
        for (r, order), value in power.items():
            for (s, more), factor in exponent.items():
                if order + more <= 4:
                    key = (r + s, order + more)
                    grown[key] = grown.get(key, 0.0) + value * factor
        power = grown
    z = np.linspace(-2, 2, 9)
    hermite = [np.ones_like(z), z]
    for r in range(1, 12):
        hermite.append(z * hermite[r] - r * hermite[r - 1])
    bracket = sum(value * hermite[r] for (r, _), value in series.items())
    expected = np.exp(-(z**2) / 2) / (sigma * math.sqrt(2 * math.pi)) * bracket
    # He_12 is below 1.1e4 within ±2 and its factor below 0.01: some 100 ulps of rounding.
    tolerance = 1000 * np.finfo(float).eps / sigma
    assert edgeworth(mean + sigma * z, steps).p == pytest.approx(expected, rel=0, abs=tolerance)


def test_negative_series_has_no_logarithm():
    steps = [Step(3)] * 4
    x = np.linspace(-4, 4, 81)
    found = edgeworth(x, steps)
    assert (np.isnan(found.log_p) == (found.p <= 0)).all()
    positive = found.p > 0
    assert np.log(found.p[positive]) == pytest.approx(found.log_p[positive], abs=1e-13)


@pytest.mark.parametrize("form", [gaussian, edgeworth, saddlepoint])
def test_shapes(form):
    steps = [Step(3)] * 9
    assert form(0, steps).p.shape == ()
    assert form(np.zeros((2, 3)), steps).log_p.shape == (2, 3)
    assert form([], steps).p.shape == (0,)


def chains(tap):
    step = st.builds(
        lambda taps, jump: Step(len(taps), jump, taps=tuple(taps)),
        st.lists(tap, min_size=2, max_size=5),
        st.sampled_from([1, 2, 4]),
    )
    return st.lists(step, min_size=1, max_size=8)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(chains(st.sampled_from([1, 2, 9, 1e-20, 1e-200])), st.floats(-0.999, 0.999))
def test_tilt_solves_the_saddlepoint_equation(steps, share):
    radius = float(center(steps))
    x = share * radius
    cgf = cumulant_generating_function(steps)
    theta = tilt(cgf, [x], (-radius, radius))
    _, slope, curvature = cgf.derivatives(theta, 2)
    # θ is right to 1e-12 of max(θ, 1/σ), and K′ rounds to a few ulps of the radius.
    scale = max(abs(theta[0]), 1 / math.sqrt(cgf.derivatives(0.0, 2)[2]))
    tolerance = 2e-12 * scale * curvature[0] + 100 * np.finfo(float).eps * radius
    assert abs(slope[0] - x) <= tolerance


@settings(derandomize=True, deadline=None, max_examples=40)
@given(chains(st.integers(1, 9)), st.floats(-0.999, 0.999))
def test_saddlepoint_mirrors_with_the_taps(steps, share):
    mirrored = [Step(s.kernel, s.jump, s.dilation, s.taps[::-1]) for s in steps]
    x = share * float(center(steps))
    # The exponent K − θx is a difference of terms of some tens; each carries a few ulps.
    assert saddlepoint(-x, mirrored, 0).log_p == pytest.approx(
        saddlepoint(x, steps, 0).log_p, abs=1e-11
    )


def test_tilt_refuses_the_ends():
    cgf = cumulant_generating_function([Step(3)])
    with pytest.raises(InputError, match="strictly between"):
        tilt(cgf, [0.0, 1.0], (-1.0, 1.0))


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ([], 0),
        ([Step(3)] * 5, 0),
        ([Step(2), Step(3, 2)], 0),  # kernel 2 fills a stride of 2 evenly
        ([Step(3), Step(3, 2)], 1 / 3),  # kernel 3 does not: |1 − 1 + 1|/3
        ([Step(3)] * 4 + [Step(5, 2)] * 50, 3**-4),
        ([Step(3, 2)], 1),  # only even pixels
        ([Step(2), Step(3, 4)], math.cos(math.pi / 4)),  # k·d < stride: holes
        ([Step(2, taps=(1, 3)), Step(2, 2)], 1 / 2),
    ],
)
def test_ripple(steps, expected):
    # A product of a few moduli, each of a sum of at most 5 unit vectors.
    assert ripple(steps) == pytest.approx(expected, abs=100 * np.finfo(float).eps)


def test_ripple_is_the_error_of_the_smooth_forms():
    """One kernel of 3 below a stride of 2: stripes of ±1/3, at every depth."""
    for n in (50, 400):
        steps = [Step(3)] + [Step(3, 2)] * n
        x, p, _ = exact(steps)
        middle = slice(len(x) // 2, len(x) // 2 + 2)
        quotient = p[middle] / gaussian(x[middle], steps).p
        # The smooth part itself is wrong by O(1/n), here below 1/n.
        assert sorted(quotient) == pytest.approx([2 / 3, 4 / 3], abs=1 / n)


@pytest.mark.parametrize("form", [gaussian, edgeworth, saddlepoint])
@pytest.mark.parametrize("steps", [[], [Step(1)] * 3, [Step(2, taps=(0, 1))]])
def test_a_single_pixel_has_no_density(form, steps):
    with pytest.raises(InputError, match="variance 0"):
        form(0.0, steps)


@pytest.mark.parametrize("corrections", [-1, 3, 1.5])
def test_bad_corrections(corrections):
    with pytest.raises(InputError, match="corrections is"):
        saddlepoint(0.0, [Step(3)], corrections)


def test_ripple_refuses_fractions():
    with pytest.raises(InputError, match="1/2 pixels"):
        ripple([Step(3, Fraction(1, 2))])
