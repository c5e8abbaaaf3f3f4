"""Smooth approximations of a chain's profile: Gaussian, Edgeworth, saddlepoint.

Each gives the share of one input pixel at x, measured in pixels from the chain's **centre**
(`chain.center`: coefficient i of `chain_polynomial` lies at x = i − center). Outside the chain's
support every form gives 0.

They see a chain as a density, and so presume that neighbouring pixels have neighbouring values.
Where a layer's taps lie further apart than one pixel (a stride or a dilation), the layers below
must fill the pixels between them evenly; if they do not (k·d < stride leaves holes; a stride of 2
below only one kernel of 3 leaves stripes), no smooth form applies, however deep the chain. `ripple`
measures by how much.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.polynomial.hermite_e import hermeval
from numpy.typing import ArrayLike, NDArray

from fastrf.analytic.chain import (
    CumulantGeneratingFunction,
    Floats,
    Step,
    cumulants,
    support,
    whole_number,
)
from fastrf.errors import InputError

Mask: TypeAlias = NDArray[np.bool_]

_LOG_SQRT_2PI = math.log(2 * math.pi) / 2
# A bracket of a thousand doublings would hold any θ; K′ is flat to the last bit long before.
_DOUBLINGS = 64
# Bisection alone gains a bit a step, so 100 steps reach the last bit of a bracket [θ, 2θ].
_NEWTON_STEPS = 100
# p is stationary in θ: an error of 1e-12 in θ is one of 1e-24 in the exponent, relative to θ²K″.
_TOLERANCE = 1e-12


class Approximation(NamedTuple):
    """What the approximations give, each the shape of x.

    p : share of the pixel at x; underflows where `log_p` does not.
    log_p : its natural logarithm; −inf outside the support, NaN where p is negative.
    """

    p: Floats
    log_p: Floats


def ripple(steps: Iterable[Step]) -> float:
    """By what share of themselves neighbouring pixels differ, at any depth: 0 smooth, 1 holes.

    The largest modulus of the chain's characteristic function at the frequencies 2πi/h, for every
    distance h between taps. There all layers of that distance have modulus 1: only the others can
    damp the frequency, however many layers of distance h follow. A smooth form is wrong by about
    this share of the value at the centre (by up to twice it where h > 2, as i and h − i add up).

    Raises
    ------
    InputError : two taps are not a whole number of pixels apart.
    """
    groups = Counter(steps)
    worst = 0.0
    for spacing in {step.spacing for step in groups}:
        if spacing.denominator != 1:
            raise InputError(
                f"taps lie {spacing} pixels apart: the ripple is that of a grid of whole pixels; "
                "multiply all jumps by their common denominator"
            )
        h = int(spacing)
        frequency = np.arange(1, h // 2 + 1)  # i, in units of 2π/h; h − i is its conjugate
        modulus = np.ones(frequency.size)
        for step, count in groups.items():
            # Whole turns are taken off in integers, so that modulus 1 is exactly that.
            turns = np.outer(frequency, np.arange(step.kernel) * int(step.spacing)) % h
            weights = np.array([float(weight) for weight in step.weights()])
            modulus *= np.abs(np.exp(2j * np.pi / h * turns) @ weights) ** count
        worst = max(worst, float(modulus.max(initial=0.0)))
    return worst


def _spread(steps: Iterable[Step], order: int) -> tuple[float, ...]:
    """The chain's cumulants; `InputError` if all of its mass is on one pixel."""
    kappa = cumulants(steps, order)
    if not kappa[1] > 0:
        raise InputError(
            "the chain has variance 0: all of its mass lies on one pixel and it has no density; "
            "give at least one layer with two positive taps"
        )
    return kappa


def _approximation(
    log_leading: Floats, factor: NDArray[np.floating[Any]] | float, inside: Mask
) -> Approximation:
    """exp(log_leading)·factor within the support, 0 outside."""
    factor = np.broadcast_to(np.asarray(factor, dtype=np.float64), log_leading.shape)
    with np.errstate(under="ignore"):
        p = np.where(inside, np.exp(log_leading) * factor, 0.0)
    positive = np.where(factor > 0, factor, np.nan)
    return Approximation(p, np.where(inside, log_leading + np.log(positive), -np.inf))


def gaussian(x: ArrayLike, steps: Iterable[Step]) -> Approximation:
    """The normal density of the chain's mean and variance (Luo et al. 2016, section 2.2).

    Right where |x| stays well below σ·n^(1/4): further out the error grows without bound (at
    kernel 3, 100 layers and 0.9 of the radius it is too large by a factor of 2.6 million).
    """
    groups = Counter(steps)
    mean, variance = _spread(groups.elements(), 2)
    z, inside = _standardized(x, groups, mean, math.sqrt(variance))
    return _approximation(_log_normal(z, math.sqrt(variance)), 1.0, inside)


def edgeworth(x: ArrayLike, steps: Iterable[Step]) -> Approximation:
    """The Gaussian times its Edgeworth series to the order n⁻², that is, 1/σ⁸.

    For symmetric taps p = φ(z)/σ·[1 + κ_4 He_4/24σ⁴ + κ_6 He_6/720σ⁶ + κ_4² He_8/1152σ⁸], with
    z = (x − mean)/σ and the probabilists' Hermite polynomials He_r(z); the odd cumulants of other
    taps enter with all of their terms of the same order. The error relative to the peak falls
    like n⁻³ for symmetric taps and n^(−5/2) for others. Relative to the value itself it holds
    only for a few σ: far out the series is dominated by its last term and may turn negative.
    """
    groups = Counter(steps)
    mean, variance, *higher = _spread(groups.elements(), 6)
    sigma = math.sqrt(variance)
    z, inside = _standardized(x, groups, mean, sigma)
    l3, l4, l5, l6 = (kappa / sigma**r for r, kappa in enumerate(higher, start=3))
    series = np.zeros(13)
    series[0] = 1
    series[3] = l3 / 6
    series[4] = l4 / 24
    series[5] = l5 / 120
    series[6] = l6 / 720 + l3**2 / 72
    series[7] = l3 * l4 / 144
    series[8] = l4**2 / 1152 + l3 * l5 / 720
    series[9] = l3**3 / 1296
    series[10] = l3**2 * l4 / 1728
    series[12] = l3**4 / 31104
    return _approximation(_log_normal(z, sigma), hermeval(z, series), inside)


def _standardized(
    x: ArrayLike, groups: Counter[Step], mean: float, sigma: float
) -> tuple[Floats, Mask]:
    """z = (x − mean)/σ, 0 outside the support, and where x is within it."""
    x = np.asarray(x, dtype=np.float64)
    low, high = map(float, support(groups.elements()))
    inside = (low <= x) & (x <= high)
    return (np.where(inside, x, mean) - mean) / sigma, inside


def _log_normal(z: Floats, sigma: float) -> Floats:
    return -(z**2) / 2 - math.log(sigma) - _LOG_SQRT_2PI


def saddlepoint(x: ArrayLike, steps: Iterable[Step], corrections: int = 2) -> Approximation:
    """The saddlepoint approximation (Daniels 1954), accurate relative to the value everywhere.

    With K′(θ) = x and λ_r = K⁽ʳ⁾(θ)/K″(θ)^(r/2),
    p = e^{K(θ) − θx}/√(2πK″)·[1 + λ_4/8 − 5λ_3²/24 + (−λ_6/48 + 35λ_4²/384 + 7λ_3λ_5/48
    − 35λ_3²λ_4/64 + 385λ_3⁴/1152)]: it is the Edgeworth series at the centre of the tilted chain.

    Parameters
    ----------
    x : positions from the chain's centre, in pixels, any shape.
    corrections : 0 for the leading term, 1 for the terms of order 1/n (the bracket of Daniels'
        eq. 2.6), 2 for those of order 1/n² as well. The relative errors fall like n⁻¹, n⁻², n⁻³.
        At kernel 3, 100 layers and 0.9 of the radius (p = 7.8e-35) they are 9e-3, 2.2e-5 and
        2.0e-6.

    Towards the end of the support the series is one in 1/(pixels to the end) instead of 1/n,
    Stirling's of the factorial: one pixel from it the relative errors are 8.5%, 0.6% and 0.2%. At
    the very end the value is exact, the product of the last taps. Where the corrections outweigh
    the leading term (few layers, taps of very different size) the value can turn negative; with
    none it cannot.

    Raises
    ------
    InputError : the chain has variance 0, or `corrections` is not 0, 1 or 2.
    """
    if whole_number("corrections", corrections, 0) > 2:
        raise InputError(
            f"corrections is {corrections}: the series is given to its second correction; "
            "ask for 0, 1 or 2"
        )
    groups = Counter(steps)
    _spread(groups.elements(), 2)
    x = np.asarray(x, dtype=np.float64)
    low, high = map(float, support(groups.elements()))
    inside = (low <= x) & (x <= high)
    within = (low < x) & (x < high)
    cgf = CumulantGeneratingFunction(groups.elements())
    y = np.where(within, x, (low + high) / 2)
    theta = tilt(cgf, y, (low, high))
    k = cgf.derivatives(theta, 2 + 2 * corrections)
    l3, l4, l5, l6 = (
        k[r] / k[2] ** (r / 2) if r < len(k) else np.zeros_like(y) for r in range(3, 7)
    )
    factor = np.ones_like(y)
    if corrections >= 1:
        factor += l4 / 8 - 5 * l3**2 / 24
    if corrections >= 2:
        factor += (
            -l6 / 48
            + 35 * l4**2 / 384
            + 7 * l3 * l5 / 48
            - 35 * l3**2 * l4 / 64
            + 385 * l3**4 / 1152
        )
    log_leading = k[0] - theta * y - np.log(k[2]) / 2 - _LOG_SQRT_2PI
    for end, tap in ((low, 0), (high, -1)):
        log_leading = np.where(x == end, _log_end_mass(groups, tap), log_leading)
    return _approximation(log_leading, np.where(within, factor, 1.0), inside)


def _log_end_mass(groups: Counter[Step], tap: int) -> float:
    """ln of the share of the first (tap 0) or last (tap −1) pixel: all layers at that tap."""
    return math.fsum(
        count * math.log([weight for weight in step.weights() if weight][tap])
        for step, count in groups.items()
    )


def tilt(cgf: CumulantGeneratingFunction, x: ArrayLike, ends: tuple[float, float]) -> Floats:
    """θ with K′(θ) = x, for every x strictly between the `ends` of the support.

    Newton's method within a bracket that each step narrows, so that it cannot diverge where K′
    flattens towards the ends of the support.
    """
    x = np.asarray(x, dtype=np.float64)
    low, high = ends
    if not ((low < x) & (x < high)).all():
        raise InputError(
            f"x reaches from {x.min()} to {x.max()}: K′ takes the values strictly between the "
            f"ends of the support, {low} and {high}; leave out positions at or beyond them"
        )
    # Below 1/σ, as no distribution is wider than half of its support on either side, but not lost
    # far beyond every θ where nearly all mass is on one pixel and σ is tiny.
    scale = 2 / (high - low)
    sign = np.where(x < cgf.mean, -1.0, 1.0)
    # Double the far end of the bracket until K′ has passed x, or rounds to the support's end.
    near, far = np.zeros_like(x), np.full_like(x, scale)
    for _ in range(_DOUBLINGS):
        short = sign * (cgf.derivatives(sign * far, 1)[1] - x) < 0
        if not short.any():
            break
        near, far = np.where(short, far, near), np.where(short, 2 * far, far)
    magnitude = near
    for _ in range(_NEWTON_STEPS):
        _, slope, curvature = cgf.derivatives(sign * magnitude, 2)
        gap = sign * (slope - x)
        near, far = np.where(gap <= 0, magnitude, near), np.where(gap >= 0, magnitude, far)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            newton = magnitude - gap / curvature
        step = np.where((near <= newton) & (newton <= far), newton, (near + far) / 2)
        moved = np.abs(step - magnitude) > _TOLERANCE * np.maximum(step, scale)
        magnitude = step
        if not moved.any():
            break
    theta: Floats = sign * magnitude
    return theta
