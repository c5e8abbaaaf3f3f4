"""Chernoff's tail bounds: how far out a stated share of an effective field can lie.

For every θ > 0, P(X ≥ a) ≤ e^{K(θ) − θa}, with K the cumulant generating function. The bound
holds for any θ, so an imperfect minimisation over θ gives a slightly wider window, never a wrong
one. `chernoff_tail` and `chernoff_window` serve chains; `chernoff_exponent` and `chernoff_edges`
take any K as a callable: on a graph, K is the logarithm of a gain-weighted sum over paths.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable
from fractions import Fraction
from functools import partial
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from fastrf.analytic.chain import (
    CumulantGeneratingFunction,
    Floats,
    Step,
    center,
    support,
    whole_number,
)
from fastrf.errors import InputError

Cgf: TypeAlias = Callable[[Floats], Floats]
"""K(θ) = ln E[e^{θX}], elementwise on an array of any shape and either sign."""

Side = Literal["both", "lower", "upper"]

# θ lies between 2^−40 (fields of up to 2^40 pixels) and 2^16: there ln(1e-300)/θ is a hundredth of
# a pixel, so that the window has reached the end of any support.
_EXPONENTS = np.arange(-40.0, 17.0)
# Each round narrows log2 θ eightfold. The objective is flat at its minimum, so that θ within 1e-8
# of the best, after nine rounds, leaves the exponent within 1e-16.
_POINTS = np.linspace(-1.0, 1.0, 17)
_ROUNDS = 9
# Relative to an exponent's terms and added to it, so that rounding cannot turn a bound into a
# mere claim: the sums behind a K have relative errors far below this.
_MARGIN = 1e-12


def _minimum(objective: Cgf, shape: tuple[int, ...]) -> Floats:
    """Least of `objective` over θ > 0, for unimodal objectives, one per element of `shape`.

    `objective` takes θ of shape `(*shape, points)` and returns values of that shape.
    """
    exponents = np.broadcast_to(_EXPONENTS, (*shape, _EXPONENTS.size))
    best = np.full(shape, np.inf)
    width = 1.0
    for _ in range(_ROUNDS + 1):
        values = objective(np.exp2(exponents))
        values = np.where(np.isnan(values), np.inf, values)  # a K that overflows proves nothing
        place = values.argmin(axis=-1)[..., None]
        best = np.minimum(best, np.take_along_axis(values, place, axis=-1)[..., 0])
        exponents = np.take_along_axis(exponents, place, axis=-1) + width * _POINTS
        width *= _POINTS[1] - _POINTS[0]
    return best


def chernoff_exponent(cgf: Cgf, x: ArrayLike) -> Floats:
    """ln of a bound on P(X ≥ x): min over θ > 0 of K(θ) − θx, and at most 0.

    `x` has any shape and is measured from the origin that `cgf` uses. For P(X ≤ x) give
    `lambda theta: cgf(-theta)` and −x.
    """
    x = np.asarray(x, dtype=np.float64)

    def objective(theta: Floats) -> Floats:
        value = cgf(theta)
        push = theta * x[..., None]
        bound: Floats = value - push + _MARGIN * (np.abs(value) + np.abs(push))
        return bound

    exponent: Floats = np.minimum(_minimum(objective, x.shape), 0.0)
    return exponent


def chernoff_edges(cgf: Cgf, tail: float, axes: int = 1) -> tuple[float, float]:
    """Positions (low, high) with P(X ≤ low) + P(X ≥ high) ≤ tail/axes, half of it on each side.

    high is the least (K(θ) + ln(2·axes/tail))/θ over θ > 0: where the Chernoff bound falls to
    its share of the tail. Both are measured from the origin that `cgf` uses, in its unit. The
    window of n axes, each cut at its own edges, loses at most `tail` (union bound).

    Raises
    ------
    InputError : `tail` is not within 0…1, both excluded, or `axes` < 1.
    """
    if not 0 < tail < 1:
        raise InputError(
            f"tail is {tail!r}: it is the share of the mass that a window may lose, between 0 and "
            "1, both excluded; give for example 1e-12"
        )
    # Two logarithms: the quotient of a tail near 1e-308 overflows.
    depth = math.log(2 * whole_number("axes", axes, 1)) - math.log(tail)

    def edge(sign: int) -> float:
        def objective(theta: Floats) -> Floats:
            value = cgf(sign * theta)
            bound: Floats = (value + depth + _MARGIN * (np.abs(value) + depth)) / theta
            return bound

        return float(_minimum(objective, ()))

    return -edge(-1), edge(+1)


def _mirrored(cgf: CumulantGeneratingFunction, sign: int, theta: Floats) -> Floats:
    """K of ±(X − mean)."""
    return cgf.centered(sign * theta)


def chernoff_tail(
    steps: Iterable[Step], x: ArrayLike, side: Side = "both", log: bool = False
) -> Floats:
    """Upper bound on the share of a chain's mass at x pixels from its **mean** or further.

    Parameters
    ----------
    steps : the chain.
    x : distances from the mean (`center(steps)` + κ_1, as `cumulants` rounds it), in pixels, any
        shape; the bound for x ≤ 0 is 1.
    side : "upper" bounds P(X − mean ≥ x), "lower" P(mean − X ≥ x), "both" P(|X − mean| ≥ x).
    log : give the natural logarithm, which does not underflow.

    Beyond the support the bound is 0 (−inf).

    Raises
    ------
    InputError : `side` is none of these.
    """
    if side not in ("both", "lower", "upper"):
        raise InputError(
            f"side is {side!r}: a tail is on one side of the mean or on both; give 'both', "
            "'lower' or 'upper'"
        )
    groups = Counter(steps)
    x = np.asarray(x, dtype=np.float64)
    cgf = CumulantGeneratingFunction(groups.elements())
    low, high = support(groups.elements())
    exponents = [
        np.where(
            x > float(sign * (end - Fraction(cgf.mean))),
            -np.inf,
            chernoff_exponent(partial(_mirrored, cgf, sign), x),
        )
        for sign, end, name in ((-1, low, "lower"), (+1, high, "upper"))
        if side in (name, "both")
    ]
    exponent: Floats = np.minimum(np.logaddexp.reduce(exponents), 0.0)
    return exponent if log else np.exp(exponent)


def chernoff_window(steps: Iterable[Step], tail: float, axes: int = 1) -> tuple[int, int]:
    """Smallest window of pixels that Chernoff's bound proves to hold 1 − tail/axes of a chain.

    Returns (lo, hi), inclusive, in pixels from the chain's **first tap**, like the indices of
    `chain_polynomial`; never beyond the chain's support. Half of the tail is granted to each
    side. Where `axes` axes are each cut to their own window, the box holds at least 1 − tail
    (union bound). A smaller tail never gives a smaller window.

    On a grid finer than pixels (fractional jumps) the window is the smallest run of whole pixels
    that contains the positions that must be kept.

    Raises
    ------
    InputError : `tail` is not within 0…1, both excluded, or `axes` < 1.
    """
    groups = Counter(steps)
    cgf = CumulantGeneratingFunction(groups.elements())
    # Exact from here: near an integer, a rounded sum could drop a pixel that the bound keeps.
    low_edge, high_edge = map(Fraction, chernoff_edges(cgf.centered, tail, axes))
    middle = center(groups.elements())
    mean = middle + Fraction(cgf.mean)
    first, last = (middle + end for end in support(groups.elements()))
    fineness = math.lcm(*(step.spacing.denominator for step in groups))
    # Each layer's mean was rounded by half an ulp of at most its half width, and their sum again.
    rounding = middle / 2**52
    # The outermost points of the grid strictly between the edges.
    lowest = Fraction(math.floor((mean + low_edge - rounding) * fineness) + 1, fineness)
    highest = Fraction(math.ceil((mean + high_edge + rounding) * fineness) - 1, fineness)
    return math.floor(max(lowest, first)), math.ceil(min(highest, last))
