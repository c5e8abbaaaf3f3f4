"""Chernoff's bounds against exact tails of exact profiles."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import accumulate, pairwise

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrf.analytic.bounds import (
    chernoff_edges,
    chernoff_exponent,
    chernoff_tail,
    chernoff_window,
)
from fastrf.analytic.chain import Step, center, cumulant_generating_function, cumulants
from fastrf.analytic.polynomial import chain_polynomial
from fastrf.errors import InputError

CHAINS = {
    "one layer": [Step(3)],
    "uniform": [Step(3)] * 60,
    "strided": [Step(7)] + [Step(3, 2)] * 10 + [Step(3, 4, 2)] * 10,
    "asymmetric": [Step(4, taps=(0.5, 0.1, 0.0, 0.25)), Step(3, 2, taps=(1, 3, 9))] * 12,
    "zero ends": [Step(4, taps=(0, 1, 3, 0))] * 20,
    "holes": [Step(2, 5)] * 9,
}
TAILS = [0.5, 0.1, 1e-3, 1e-6, 1e-12, 1e-30, 1e-100, 1e-300]


def tails(steps):
    """Exact shares at or below and at or above every pixel, as fractions."""
    coefficients, total = chain_polynomial(steps)
    below = [Fraction(c, total) for c in accumulate(coefficients)]
    above = [Fraction(c, total) for c in accumulate(reversed(coefficients))][::-1]
    return below, above


def log_fraction(value: Fraction) -> float:
    return math.log(value.numerator) - math.log(value.denominator)


@pytest.mark.parametrize("name", CHAINS)
def test_the_bound_is_never_below_the_tail(name):
    steps = CHAINS[name]
    below, above = tails(steps)
    mean = float(center(steps)) + cumulants(steps, 1)[0]
    pixels = np.arange(len(below))
    upper = chernoff_tail(steps, pixels - mean, side="upper", log=True)
    lower = chernoff_tail(steps, mean - pixels, side="lower", log=True)
    for i in range(len(below)):
        # At the support's very end bound and tail coincide; the logarithm of the exact tail is
        # itself a difference of two rounded ones.
        for bound, tail in ((upper[i], above[i]), (lower[i], below[i])):
            if tail:
                size = math.log(tail.denominator)
                assert bound >= log_fraction(tail) - 2 * math.ulp(size)


@pytest.mark.parametrize("name", CHAINS)
def test_both_sides_bound_the_sum(name):
    steps = CHAINS[name]
    x = np.linspace(0, float(center(steps)) * 1.2, 40)
    both = chernoff_tail(steps, x)
    parts = chernoff_tail(steps, x, "lower") + chernoff_tail(steps, x, "upper")
    assert both == pytest.approx(np.minimum(parts, 1), rel=1e-12)
    assert both[0] == 1
    assert (np.diff(both) <= 0).all()


@pytest.mark.parametrize("x", [0.5, 3.0, 20.0, 41.5, 59.0])
def test_the_exponent_is_the_least_over_theta(x):
    """K(θ) − θx at K′(θ) = x; 60 layers of kernel 3.

    K = 60 ln[(1 + 2 cosh θ)/3], and K′ = x is (60 − x)y² − xy − (60 + x) = 0 for y = e^θ.
    """
    with mpmath.workdps(40):
        theta = mpmath.log((x + mpmath.sqrt(4 * 60**2 - 3 * mpmath.mpf(x) ** 2)) / (2 * (60 - x)))
        log_mean = 60 * mpmath.log((1 + 2 * mpmath.cosh(theta)) / 3)
        best = float(log_mean - theta * x)
        terms = float(log_mean + theta * x)
    found = float(chernoff_tail([Step(3)] * 60, x, "upper", log=True))
    # The bound is raised by a margin of 1e-12 of its terms, and no more than rounding beyond it.
    assert best <= found <= best + 2e-12 * terms


def test_beyond_the_support_nothing_is_left():
    steps = CHAINS["zero ends"]  # two positive taps: 0…20 after the first, mean 15
    assert chernoff_tail(steps, [5.0, 15.0], "upper") == pytest.approx([0.75**20, 0], rel=1e-10)
    assert chernoff_tail(steps, 15.0, "lower") == pytest.approx(0.25**20, rel=1e-10)
    assert chernoff_tail(steps, 15.5) == 0
    assert chernoff_tail(steps, 15.5, log=True) == -math.inf


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("name", CHAINS)
def test_windows_hold_what_they_promise(name, tail):
    steps = CHAINS[name]
    below, above = tails(steps)
    lo, hi = chernoff_window(steps, tail)
    assert 0 <= lo <= hi < len(below)
    lost = (below[lo - 1] if lo else 0) + (above[hi + 1] if hi + 1 < len(above) else 0)
    assert lost <= Fraction(tail)


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize("name", CHAINS)
def test_windows_are_the_smallest_that_the_bound_proves(name, tail):
    """One pixel less on either side, and the bound of that side exceeds its half of the tail."""
    steps = CHAINS[name]
    mean = float(center(steps)) + cumulants(steps, 1)[0]
    lo, hi = chernoff_window(steps, tail)
    half = math.log(tail) - math.log(2)
    # The margin of 1e-12 of the terms, which may cost a pixel only in a tie as close as that.
    slack = 1e-10 * (1 + abs(half))
    for side, distance in (("upper", hi - mean), ("lower", mean - lo)):
        assert chernoff_tail(steps, distance, side, log=True) > half - slack


@pytest.mark.parametrize("name", CHAINS)
def test_smaller_tails_have_larger_windows(name):
    windows = [chernoff_window(CHAINS[name], 0.5 * 0.7**i) for i in range(0, 1900, 25)]
    for (lo, hi), (wider_lo, wider_hi) in pairwise(windows):
        assert wider_lo <= lo
        assert hi <= wider_hi


def test_windows_end_with_the_support():
    assert chernoff_window(CHAINS["uniform"], 1e-300) == (0, 120)  # 3^−60 = 2e-29
    assert chernoff_window(CHAINS["zero ends"], 1e-300) == (20, 40)
    assert chernoff_window([], 1e-3) == (0, 0)
    assert chernoff_window([Step(1)] * 5, 1e-12) == (0, 0)
    assert chernoff_window([Step(5, taps=(0, 0, 0, 1, 0))] * 2, 0.5) == (6, 6)


def test_deep_windows_are_narrow():
    """σ = √(2n/3) = 258; Hoeffding-like width z with e^{−z²/2} = tail/2, z = √(2 ln(2/tail))."""
    n, tail = 100_000, 1e-12
    lo, hi = chernoff_window([Step(3)] * n, tail)
    width = math.sqrt(2 * n / 3) * math.sqrt(2 * math.log(2 / tail))
    assert lo + hi == 2 * n
    # κ_4 changes the edge by z²κ_4/(24σ⁴)·… ~ z²/n of itself, below 1e-3 here; and one pixel.
    assert hi - n == pytest.approx(width, rel=1e-3, abs=1)


def test_axes_share_the_tail():
    steps = CHAINS["strided"]
    assert chernoff_window(steps, 1e-6, axes=2) == chernoff_window(steps, 5e-7)
    assert chernoff_window(steps, 3e-6, axes=3) == chernoff_window(steps, 1e-6)


@pytest.mark.parametrize("tail", [0.3, 1e-3, 1e-9])
def test_fractional_jumps_are_rounded_outwards(tail):
    """Half-pixel steps: the same chain on the doubled grid says which positions must stay."""
    steps = [Step(3, Fraction(1, 2))] * 20 + [Step(3)] * 10
    doubled = [Step(3)] * 20 + [Step(3, 2)] * 10
    lo, hi = chernoff_window(doubled, tail)
    assert chernoff_window(steps, tail) == (lo // 2, -(-hi // 2))


def test_a_fine_grid_ends_with_the_support():
    """1025 taps 1/1024 pixel apart span one pixel exactly, and no position beyond it exists."""
    assert chernoff_window([Step(1025, Fraction(1, 1024))], 1e-300) == (0, 1)


def test_a_cgf_that_overflows_proves_nothing_there():
    """The textbook formula is inf/inf far out; the bound is then found among the other θ."""

    def naive(theta):
        with np.errstate(over="ignore", invalid="ignore"):
            return 60 * np.log(np.sinh(1.5 * theta) / (3 * np.sinh(theta / 2)))

    low, high = chernoff_edges(naive, 1e-9)
    lo, hi = chernoff_window([Step(3)] * 60, 1e-9)
    assert (math.floor(low) + 1 + 60, math.ceil(high) - 1 + 60) == (lo, hi)


def residual_cgf(blocks, gain):
    branch = cumulant_generating_function([Step(3)] * 2)

    def cgf(theta):
        return blocks * (np.logaddexp(0, math.log(gain) + branch(theta)) - math.log1p(gain))

    return cgf


@pytest.mark.parametrize("tail", [0.5, 1e-6, 1e-20])
def test_edges_of_a_graph_from_its_own_cgf(tail):
    """30 residual blocks of two 3-kernels, gain 1/2: (1 + C·H)^n expanded with exact integers."""
    blocks = 30
    # 1 + C·H(z) with H = (1, 2, 3, 2, 1)/9 and C = 1/2: in proportion (1, 2, 21, 2, 1).
    below, above = tails([Step(5, taps=(1, 2, 21, 2, 1))] * blocks)
    low, high = chernoff_edges(residual_cgf(blocks, 0.5), tail)
    middle = 2 * blocks
    lo, hi = math.floor(low) + 1 + middle, math.ceil(high) - 1 + middle
    assert below[lo - 1] + above[hi + 1] <= Fraction(tail)
    # Its own K, as a chain: the two ways must give the same window.
    assert (lo, hi) == chernoff_window([Step(5, taps=(1, 2, 21, 2, 1))] * blocks, tail)


def test_exponent_of_a_generic_cgf():
    """A normal variable: K = θ²/2 gives the exponent −x²/2 and the edge √(2 ln(2/tail))."""
    x = np.array([[0.1, 1.0], [5.0, 30.0]])
    found = chernoff_exponent(lambda theta: theta**2 / 2, x)
    # The margin is 1e-12 of K + θx = 3x²/2.
    assert found == pytest.approx(-(x**2) / 2, rel=4e-12)
    assert (found >= -(x**2) / 2).all()
    assert (chernoff_exponent(lambda theta: theta**2 / 2, [-3.0, 0.0]) <= 0).all()
    assert chernoff_exponent(lambda theta: theta**2 / 2, -3.0) == 0
    low, high = chernoff_edges(lambda theta: theta**2 / 2, 1e-9)
    assert (-low, high) == pytest.approx((math.sqrt(2 * math.log(2e9)),) * 2, rel=2e-12)


STEPS = st.lists(
    st.builds(
        lambda taps, jump: Step(len(taps), jump, taps=tuple(taps)),
        st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
        st.sampled_from([1, 2, 4]),
    ),
    max_size=8,
)


@settings(derandomize=True, deadline=None, max_examples=120)
@given(STEPS, st.floats(-300, math.log10(0.5)))
def test_windows_of_any_chain(steps, exponent):
    tail = 10.0**exponent
    below, above = tails(steps)
    lo, hi = chernoff_window(steps, tail)
    lost = (below[lo - 1] if lo else 0) + (above[hi + 1] if hi + 1 < len(above) else 0)
    assert lost <= Fraction(tail)
    assert below[hi] > 0
    assert above[lo] > 0
    wider = chernoff_window(steps, tail / 10)
    assert wider[0] <= lo <= hi <= wider[1]


@pytest.mark.parametrize("tail", [0.0, 1.0, -1e-3, math.nan, math.inf])
def test_bad_tail(tail):
    with pytest.raises(InputError, match="tail is"):
        chernoff_window([Step(3)], tail)


def test_bad_axes_and_side():
    with pytest.raises(InputError, match="axes is 0"):
        chernoff_window([Step(3)], 0.1, axes=0)
    with pytest.raises(InputError, match="side is 'left'"):
        chernoff_tail([Step(3)], 1.0, side="left")
