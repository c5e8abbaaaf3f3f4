"""Closed forms for a chain of layers along one axis.

A unit of the last layer meets the input at X = Σ_l h_l·M_l, where M_l is the tap of layer l,
drawn independently with the layer's normalised taps as probabilities, and h_l = d_l·j_{l−1} input
pixels is the distance between two taps of that layer, seen from the input. Every formula of this
package is about this sum: its cumulants add over the layers (Luo et al. 2016, section 2.2).

Two origins are in use, and both are named wherever a position appears: the **first tap**, where
every M_l is 0 and where an array of coefficients starts, and the **centre** of the chain, in the
middle between its first and its last tap. `center(steps)` is the way from one to the other. All
lengths are input pixels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Rational
from operator import index
from typing import Any, NamedTuple, SupportsIndex, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastrf.errors import InputError

Floats: TypeAlias = NDArray[np.float64]

MAX_ORDER = 8
"""The highest cumulant that `cumulants` gives."""

_BERNOULLI = {2: Fraction(1, 6), 4: Fraction(-1, 30), 6: Fraction(1, 42), 8: Fraction(-1, 30)}


def whole_number(name: str, value: SupportsIndex, least: int) -> int:
    """`value` as an int; `InputError` unless it is a whole number of at least `least`."""
    try:
        number = index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise InputError(
            f"{name} is {value!r}: it counts something and is a whole number of {least} or more; "
            f"give an int >= {least}"
        )
    return number


@dataclass(frozen=True, slots=True)
class Step:
    """One layer of a chain along one axis: its taps lie `dilation * jump` input pixels apart.

    Parameters
    ----------
    kernel : number of taps k, at least 1.
    jump : product of the strides below the layer (Dang Ha The Hien's j), positive; a `Fraction`
        above upsampling layers.
    dilation : distance d between two taps on the layer's own input, at least 1.
    taps : one nonnegative weight per tap, in any scale, not all zero; None for uniform taps.
        Every formula normalises them to sum 1. For random weights these are variances.

    Raises
    ------
    InputError : a parameter breaks one of these rules.
    """

    kernel: int
    jump: int | Fraction = 1
    dilation: int = 1
    taps: tuple[int | float | Fraction, ...] | None = None

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "kernel", whole_number("kernel", self.kernel, 1))
        set_field(self, "dilation", whole_number("dilation", self.dilation, 1))
        if not isinstance(self.jump, Rational) or self.jump <= 0:
            raise InputError(
                f"jump is {self.jump!r}: the distance between two units is a positive rational "
                "number of input pixels; give an int or a Fraction > 0"
            )
        set_field(self, "jump", _exact(self.jump))
        if self.taps is not None:
            set_field(self, "taps", _checked_taps(self.kernel, self.taps))

    @property
    def spacing(self) -> Fraction:
        """h = d·j, the distance between two taps in input pixels."""
        return self.dilation * Fraction(self.jump)

    def weights(self) -> tuple[Fraction, ...]:
        """The taps as exact fractions of sum 1 (a float is a fraction too)."""
        if self.taps is None:
            return (Fraction(1, self.kernel),) * self.kernel
        exact = [Fraction(tap) for tap in self.taps]
        total = sum(exact)
        return tuple(tap / total for tap in exact)


def _exact(value: Rational) -> int | Fraction:
    """A rational of any library as Python's own, an int where it is one."""
    fraction = Fraction(value)
    return int(fraction) if fraction.denominator == 1 else fraction


def _checked_taps(kernel: int, taps: Iterable[Any]) -> tuple[int | float | Fraction, ...]:
    checked = tuple(_exact(t) if isinstance(t, Rational) else float(t) for t in taps)
    if len(checked) != kernel:
        raise InputError(
            f"taps has {len(checked)} values for a kernel of {kernel}: there is one weight per "
            f"tap; give {kernel} values or None for uniform taps"
        )
    if not all(math.isfinite(t) and t >= 0 for t in checked) or not any(checked):
        raise InputError(
            f"taps is {tuple(map(float, checked))}: weights are finite, nonnegative and not all "
            "zero; give variances (squared weights), or None for uniform taps"
        )
    return checked


def trf_size(n: int, k: int) -> int:
    """Size of the theoretical receptive field of n layers of kernel k: n(k − 1) + 1 pixels."""
    return whole_number("n", n, 0) * (whole_number("k", k, 1) - 1) + 1


def luo_std(n: int, k: int) -> float:
    """Standard deviation, in pixels, of the effective field of n layers of uniform kernel k.

    √(n(k² − 1)/12), the root of eq. 10 of Luo et al. 2016, their eq. 11.
    """
    return math.sqrt(whole_number("n", n, 0) * (whole_number("k", k, 1) ** 2 - 1) / 12)


def std_to_trf_ratio(n: int, k: int) -> float:
    """`luo_std` over `trf_size`: it falls like 1/√n (Luo et al. 2016, section 2.2)."""
    return luo_std(n, k) / trf_size(n, k)


def center(steps: Iterable[Step]) -> Fraction:
    """Offset of the chain's centre from its first tap: Σ h(k − 1)/2 pixels, exact.

    The chain's theoretical receptive field is `2 * center(steps) + 1` pixels wide.
    """
    return sum((step.spacing * (step.kernel - 1) for step in steps), Fraction(0)) / 2


def support(steps: Iterable[Step]) -> tuple[Fraction, Fraction]:
    """First and last position of positive probability, from the centre, in pixels, exact.

    They are `(-center(steps), center(steps))` unless taps at the end of a kernel are zero.
    """
    low = high = Fraction(0)
    for step, count in Counter(steps).items():
        positive = [m for m, weight in enumerate(step.weights()) if weight]
        middle = Fraction(step.kernel - 1, 2)
        low += count * step.spacing * (positive[0] - middle)
        high += count * step.spacing * (positive[-1] - middle)
    return low, high


def _moments_to_cumulants(moments: Sequence[Any]) -> list[Any]:
    """κ_1…κ_r from the raw moments m_1…m_r: κ_r = m_r − Σ_{i<r} C(r−1, i−1) κ_i m_{r−i}."""
    found: list[Any] = []
    for r, moment in enumerate(moments, start=1):
        lower = (math.comb(r - 1, i - 1) * found[i - 1] * moments[r - i - 1] for i in range(1, r))
        found.append(moment - sum(lower))
    return found


def _cumulants_to_moments(cumulants: Sequence[Any]) -> list[Any]:
    """The inverse of `_moments_to_cumulants`."""
    found: list[Any] = []
    for r, cumulant in enumerate(cumulants, start=1):
        lower = (math.comb(r - 1, i - 1) * cumulants[i - 1] * found[r - i - 1] for i in range(1, r))
        found.append(cumulant + sum(lower))
    return found


def _tap_cumulants(step: Step, order: int) -> list[Fraction]:
    """Exact κ_1…κ_order of one layer's tap number, counted from the middle of the kernel."""
    if step.taps is None:
        return [
            _BERNOULLI[r] * (step.kernel**r - 1) / r if r % 2 == 0 else Fraction(0)
            for r in range(1, order + 1)
        ]
    middle = Fraction(step.kernel - 1, 2)
    weights = step.weights()
    return _moments_to_cumulants(
        [
            sum((w * (m - middle) ** r for m, w in enumerate(weights)), Fraction(0))
            for r in range(1, order + 1)
        ]
    )


def _cumulant_order(order: int) -> int:
    if whole_number("order", order, 1) > MAX_ORDER:
        raise InputError(
            f"order is {order}: cumulants are given up to κ_{MAX_ORDER}; ask for at most that"
        )
    return order


def cumulants(steps: Iterable[Step], order: int = 4) -> tuple[float, ...]:
    """Cumulants κ_1…κ_order of a chain, in pixels to the power of their index.

    κ_1 is the mean measured from the chain's **centre**: it is 0 for uniform or symmetric taps,
    and the mean measured from the first tap is `center(steps) + κ_1`. κ_2 is the variance.

    Uniform taps: κ_{2m} = Σ h^{2m}·B_{2m}(k^{2m} − 1)/(2m) with Bernoulli numbers B. Other taps:
    from their moments. Each layer's share is computed in exact fractions and rounded once, so
    no digits cancel within a layer.

    Raises
    ------
    InputError : `order` is not within 1…8.
    """
    order = _cumulant_order(order)
    shares: list[list[float]] = [[] for _ in range(order)]
    for step, count in Counter(steps).items():
        for r, cumulant in enumerate(_tap_cumulants(step, order), start=1):
            shares[r - 1].append(float(count * step.spacing**r * cumulant))
    return tuple(math.fsum(share) for share in shares)


class ResidualCumulants(NamedTuple):
    """What `residual_cumulants` gives: `log_mass` = ln Π(1 + C), `cumulants` = (κ_1, …)."""

    log_mass: float
    cumulants: tuple[float, ...]


def residual_cumulants(
    branches: Iterable[tuple[float, Iterable[Step]]], order: int = 4
) -> ResidualCumulants:
    """Total mass and cumulants of a stack of residual blocks, y = x + branch(x).

    Each block is `(gain, steps)`: its branch multiplies the gradient's variance by `gain` = C
    and is the chain `steps`; the identity passes it unchanged. The branch is taken with
    probability q = C/(1 + C), so its raw moments enter the mixture times q. The mass is Π(1 + C),
    given as a logarithm because no float holds it at depth. For symmetric branches of variance s²
    this is variance Σ q s² and κ_4 = Σ [q(κ_4 + 3s⁴) − 3q²s⁴].

    Positions are measured from the branch's centre, which is where an aligned shortcut meets it;
    lengths are pixels.

    Raises
    ------
    InputError : a gain is negative or not finite, or `order` is not within 1…8.
    """
    order = _cumulant_order(order)
    blocks = Counter((gain, tuple(steps)) for gain, steps in branches)
    log_masses: list[float] = []
    shares: list[tuple[float, ...]] = []
    for (gain, steps), count in blocks.items():
        if not (math.isfinite(gain) and gain >= 0):
            raise InputError(
                f"branch gain is {gain!r}: a branch multiplies the variance by a finite, "
                "nonnegative number; give a gain >= 0"
            )
        share = gain / (1 + gain)
        branch_moments = _cumulants_to_moments(cumulants(steps, order))
        mixed = _moments_to_cumulants([share * moment for moment in branch_moments])
        shares.append(tuple(count * value for value in mixed))
        log_masses.append(count * math.log1p(gain))
    totals = tuple(math.fsum(share[r] for share in shares) for r in range(order))
    return ResidualCumulants(math.fsum(log_masses), totals)


class _Block(NamedTuple):
    """The distinct steps of one kernel size, stacked so that one NumPy call serves them all."""

    counts: Floats  # (steps,)
    weights: Floats  # (steps, taps, 1)
    deviations: Floats  # (steps, taps, 1): pixels from the step's own mean


_HIGHEST_DERIVATIVE = 6
_SLICE = 1 << 17  # elements per temporary: a megabyte of float64 stays within a core's cache
_EXP_LIMIT = 500.0  # e^500 and sums of many of it are far from overflow
_SERIES_RADIUS = 0.5
_SERIES_TERMS = 15  # 2·0.5^15/17! < 2^-53: the next term is below the last bit
_SERIES = [2 / math.factorial(j + 2) for j in range(_SERIES_TERMS)]


def _exp_minus_linear(t: Floats, expm1: Floats) -> Floats:
    """e^t − 1 − t ≥ 0 to full relative accuracy, given e^t − 1."""
    small = np.clip(t, -_SERIES_RADIUS, _SERIES_RADIUS)
    series = np.polynomial.polynomial.polyval(small, _SERIES, tensor=False) * small**2 / 2
    return np.where(np.abs(t) <= _SERIES_RADIUS, series, expm1 - t)


class CumulantGeneratingFunction:
    """K(θ) = ln E[e^{θX}] of a chain, X measured from the chain's centre, and its derivatives.

    For uniform taps K(θ) = Σ ln[sinh(k h θ/2)/(k sinh(h θ/2))]. It is computed, for all taps
    alike, as sums of terms of one sign: with D a tap's deviation from its layer's mean,
    K = θκ_1 + Σ ln(1 + E[e^{θD} − 1 − θD]), whose bracket cannot be negative, so that nothing
    cancels near θ = 0, and large exponents are factored out, so that nothing overflows. The
    derivatives are the cumulants of the tilted taps w·e^{θD}. θ is in 1/pixel.
    """

    def __init__(self, steps: Iterable[Step]) -> None:
        groups = Counter(steps)
        self.mean = cumulants(groups.elements(), 1)[0]
        """κ_1: the mean measured from the centre, in pixels."""
        by_kernel: dict[int, list[tuple[Step, int]]] = {}
        for step, count in groups.items():
            by_kernel.setdefault(step.kernel, []).append((step, count))
        self._blocks = [_stack(kernel, group) for kernel, group in by_kernel.items()]

    def __call__(self, theta: ArrayLike) -> Floats:
        """K(θ), the shape of `theta`."""
        theta = np.asarray(theta, dtype=np.float64)
        return self.centered(theta) + theta * self.mean

    def centered(self, theta: ArrayLike) -> Floats:
        """K(θ) − θκ_1 ≥ 0, of X measured from its mean: relatively accurate for every θ."""
        theta = np.asarray(theta, dtype=np.float64)
        return self._evaluate(theta, 0).reshape(theta.shape)

    def derivatives(self, theta: ArrayLike, order: int = 4) -> Floats:
        """K, K′, …, K^(order) at θ, shape `(order + 1, *theta.shape)`, for an order up to 6."""
        order = whole_number("order", order, 0)
        if order > _HIGHEST_DERIVATIVE:
            raise InputError(
                f"order is {order}: K is differentiated up to {_HIGHEST_DERIVATIVE} times; "
                "ask for at most that"
            )
        theta = np.asarray(theta, dtype=np.float64)
        values = self._evaluate(theta, order)
        values[0] += theta * self.mean
        if order:
            values[1] += self.mean
        return values

    def _evaluate(self, theta: Floats, order: int) -> Floats:
        flat = theta.ravel()
        values = np.zeros((order + 1, flat.size))
        for block in self._blocks:
            width = max(1, _SLICE // block.weights.size)
            for start in range(0, flat.size, width):
                part = slice(start, start + width)
                values[:, part] += _tilted_cumulants(block, flat[part], order)
        return values.reshape(order + 1, *theta.shape)


def _stack(kernel: int, group: Sequence[tuple[Step, int]]) -> _Block:
    counts = np.array([count for _, count in group], dtype=np.float64)
    weights = np.empty((len(group), kernel, 1))
    deviations = np.empty((len(group), kernel, 1))
    for row, (step, _) in enumerate(group):
        exact = step.weights()
        mean = sum((m * w for m, w in enumerate(exact)), Fraction(0))
        weights[row, :, 0] = [float(w) for w in exact]
        deviations[row, :, 0] = [float(step.spacing * (m - mean)) for m in range(kernel)]
    # A tap of weight 0 is placed on the mean, where its exponent is harmless.
    deviations[weights == 0] = 0.0
    return _Block(counts, weights, deviations)


def _tilted_cumulants(block: _Block, theta: Floats, order: int) -> Floats:
    """Σ over the block's steps of K, K′, …, each step about its mean; shape (order + 1, θ)."""
    counts, weights, deviations = block
    exponents = deviations * theta  # (steps, taps, θ)
    # Beyond the limit `excess` and `near` below are not used, and only kept from overflowing.
    clipped = np.minimum(exponents, _EXP_LIMIT)
    expm1 = np.expm1(clipped)
    excess = (weights * _exp_minus_linear(clipped, expm1)).sum(axis=1)

    # The tilted taps, their largest exponent factored out.
    peak = exponents.max(axis=1)
    tilted = weights * np.exp(exponents - peak[:, None])
    total = tilted.sum(axis=1)
    values = [np.where(peak > _EXP_LIMIT, peak + np.log(total), np.log1p(excess))]
    if order >= 1:
        tilted /= total[:, None]
        # Near θ = 0 the tilted mean is a difference of nearly equal sums; D(e^{θD} − 1) has the
        # sign of θ for every tap.
        near = (weights * deviations * expm1).sum(axis=1) / (1 + excess)
        reach = np.abs(exponents).max(axis=1)
        mean = np.where(reach <= 1, near, (tilted * deviations).sum(axis=1))
        values.append(mean)
    if order >= 2:
        from_mean = deviations - mean[:, None]
        power = tilted * from_mean
        moments = [np.zeros_like(mean)]  # central, from the first
        for _ in range(2, order + 1):
            power = power * from_mean
            moments.append(power.sum(axis=1))
        values.extend(_moments_to_cumulants(moments)[1:])
    return np.stack([counts @ value for value in values])


def cumulant_generating_function(steps: Iterable[Step]) -> CumulantGeneratingFunction:
    """K(θ) of a chain as a callable, with `derivatives`; see `CumulantGeneratingFunction`."""
    return CumulantGeneratingFunction(steps)
