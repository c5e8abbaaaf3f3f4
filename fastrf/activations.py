"""Activations: σ and σ′, and what they do to a variance.

A pre-activation counts as Gaussian of mean 0 and variance q, as it is in a wide network with
zero-mean weights (Poole et al. 2016). Backwards an activation then multiplies a gradient's variance
by χ = E[σ′(√q z)²], z ~ N(0, 1) (Schoenholz et al. 2017), forwards it makes a variance q into
E[σ(√q z)²]. Both are integrals along one line, worked out here to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]
Curve = Callable[[Values, float], Values]
"""A function of x and of the activation's slope parameter."""


@dataclass(frozen=True)
class Function:
    """An activation function.

    Attributes:
        value, slope: σ and σ′, of x and of the parameter.
        kinks: where a derivative jumps.
        parameter: default of its parameter; None: it has none.
        scale_free: whether σ(cx) = cσ(x) for c > 0, so that no gain depends on the variance.
    """

    value: Curve
    slope: Curve
    kinks: tuple[float, ...] = ()
    parameter: float | None = None
    scale_free: bool = False


# --- the functions --------------------------------------------------------------------------


def _sigmoid(x: Values) -> Values:
    half: Values = 0.5 * (1 + np.tanh(0.5 * x))
    return half


def _normal(x: Values) -> Values:
    """The density φ(x)."""
    density: Values = np.exp(-0.5 * np.minimum(x * x, 1500.0)) / math.sqrt(2 * math.pi)
    return density


def _normal_sum(x: Values) -> Values:
    """The distribution Φ(x)."""
    from scipy.special import ndtr

    below: Values = ndtr(x)
    return below


def _bent(x: Values, left: Any, right: Any) -> Values:
    chosen: Values = np.where(x > 0, right, left)
    return chosen


def _between(x: Values, low: float, high: float, inside: Any) -> Values:
    chosen: Values = np.where((x > low) & (x < high), inside, 0.0)
    return chosen


def _exp(x: Values) -> Values:
    """e^x of what is below 0."""
    grown: Values = np.exp(np.minimum(x, 0.0))
    return grown


_SELU_SCALE, _SELU_ALPHA = 1.0507009873554805, 1.6732632423543772  # Klambauer et al. 2017
_TANH_GELU = math.sqrt(2 / math.pi), 0.044715  # Hendrycks and Gimpel 2016


def _softplus(x: Values) -> Values:
    raised: Values = np.logaddexp(0.0, x)
    return raised


def _mish_slope(x: Values, _: float) -> Values:
    t: Values = np.tanh(_softplus(x))
    return t + x * (1 - t * t) * _sigmoid(x)


def _tanh_gelu_inner(x: Values) -> Values:
    """The tanh of GELU's approximation."""
    scale, cubic = _TANH_GELU
    x = np.clip(x, -1e3, 1e3)
    bent: Values = np.tanh(scale * (x + cubic * x**3))
    return bent


def _tanh_gelu_slope(x: Values, _: float) -> Values:
    scale, cubic = _TANH_GELU
    t = _tanh_gelu_inner(x)
    near = np.clip(x, -1e3, 1e3)
    return 0.5 * (1 + t) + 0.5 * near * (1 - t * t) * scale * (1 + 3 * cubic * near**2)


def _leaky(slope: float) -> Function:
    return Function(
        lambda x, a: _bent(x, a * x, x), lambda x, a: _bent(x, a, 1.0), (0.0,), slope, True
    )


_RELU = Function(lambda x, _: np.maximum(x, 0), lambda x, _: _bent(x, 0.0, 1.0), (0.0,), None, True)

_SILU = Function(
    lambda x, _: x * _sigmoid(x),
    lambda x, _: _sigmoid(x) * (1 + x * (1 - _sigmoid(x))),
)

FUNCTIONS: dict[str, Function] = {
    "identity": Function(lambda x, _: x, lambda x, _: np.ones_like(x), scale_free=True),
    "relu": _RELU,
    "leaky_relu": _leaky(0.01),
    "prelu": _leaky(0.25),
    "rrelu": _leaky((1 / 8 + 1 / 3) / 2),
    "abs": Function(lambda x, _: np.abs(x), lambda x, _: np.sign(x), (0.0,), None, True),
    "elu": Function(
        lambda x, a: _bent(x, a * (_exp(x) - 1), x),
        lambda x, a: _bent(x, a * _exp(x), 1.0),
        (0.0,),
        1.0,
    ),
    "celu": Function(
        lambda x, a: _bent(x, a * (_exp(x / a) - 1), x),
        lambda x, a: _bent(x, _exp(x / a), 1.0),
        (0.0,),
        1.0,
    ),
    "selu": Function(
        lambda x, _: _SELU_SCALE * _bent(x, _SELU_ALPHA * (_exp(x) - 1), x),
        lambda x, _: _SELU_SCALE * _bent(x, _SELU_ALPHA * _exp(x), 1.0),
        (0.0,),
    ),
    "gelu": Function(lambda x, _: x * _normal_sum(x), lambda x, _: _normal_sum(x) + x * _normal(x)),
    "gelu_tanh": Function(lambda x, _: 0.5 * x * (1 + _tanh_gelu_inner(x)), _tanh_gelu_slope),
    "silu": _SILU,
    "swish": _SILU,
    "mish": Function(lambda x, _: x * np.tanh(_softplus(x)), _mish_slope),
    "tanh": Function(lambda x, _: np.tanh(x), lambda x, _: 1 - np.tanh(x) ** 2),
    "sigmoid": Function(lambda x, _: _sigmoid(x), lambda x, _: _sigmoid(x) * _sigmoid(-x)),
    "log_sigmoid": Function(lambda x, _: -_softplus(-x), lambda x, _: _sigmoid(-x)),
    "softplus": Function(lambda x, _: _softplus(x), lambda x, _: _sigmoid(x)),
    "softsign": Function(
        lambda x, _: x / (1 + np.abs(x)), lambda x, _: (1 + np.abs(x)) ** -2.0, (0.0,)
    ),
    "hardtanh": Function(
        lambda x, _: np.clip(x, -1, 1), lambda x, _: _between(x, -1, 1, 1.0), (-1.0, 1.0)
    ),
    "relu6": Function(
        lambda x, _: np.clip(x, 0, 6), lambda x, _: _between(x, 0, 6, 1.0), (0.0, 6.0)
    ),
    "hardsigmoid": Function(
        lambda x, _: np.clip(x / 6 + 0.5, 0, 1),
        lambda x, _: _between(x, -3, 3, 1 / 6),
        (-3.0, 3.0),
    ),
    "hardswish": Function(
        lambda x, _: x * np.clip(x / 6 + 0.5, 0, 1),
        lambda x, _: np.where(x >= 3, 1.0, _between(x, -3, 3, x / 3 + 0.5)),
        (-3.0, 3.0),
    ),
}
"""Every activation whose gain is known, by the name that PyTorch gives it."""

# ONNX's spellings of the same.
FUNCTIONS |= {
    "leakyrelu": FUNCTIONS["leaky_relu"],
    "hard_sigmoid": FUNCTIONS["hardsigmoid"],
    "hard_swish": FUNCTIONS["hardswish"],
    "logsigmoid": FUNCTIONS["log_sigmoid"],
}


# --- their moments --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Moments:
    """An activation's effect on Gaussian values of mean 0 and variance q.

    Attributes:
        gain: χ = E[σ′(√q z)²].
        mean_slope: E[σ′(√q z)].
        square: E[σ(√q z)²].
    """

    gain: float
    mean_slope: float
    square: float


_EDGE = 10.0
"""Beyond it the normal density is below 1e-22 of its peak: what is squared there does not count."""

_NEAR = 40
"""Beyond so far from 0, in x, every function here is a straight line to rounding."""

_LEAST = 1e-200
"""The variance that stands for 0: σ′ differs on either side of a kink however near."""


@lru_cache(maxsize=4096)
def moments(name: str, variance: float = 1.0, parameter: float | None = None) -> Moments:
    """What an activation of `FUNCTIONS` does at a variance, to about 1e-14.

    Args:
        name: a key of `FUNCTIONS`.
        variance: q, of its inputs; 0 stands for the limit.
        parameter: slope below 0; None: the function's default.
    """
    function = FUNCTIONS[name]
    own = function.parameter if parameter is None else parameter
    a = 0.0 if own is None else own
    if function.scale_free:
        left, right = (function.slope(np.array([s]), a).item() for s in (-1.0, 1.0))
        gain = (left**2 + right**2) / 2
        return Moments(gain, (left + right) / 2, gain * variance)
    sigma = math.sqrt(max(variance, _LEAST))
    z, weights = _rule(sigma, function.kinks)
    x = sigma * z
    slope, value = function.slope(x, a), function.value(x, a)
    return Moments(float(weights @ slope**2), float(weights @ slope), float(weights @ value**2))


_ORDERS = 512
"""Most terms of a series in a correlation ρ, of which the k-th is of the order of ρ^k. The k-th
polynomial waves with √k radians per unit, which 16 nodes to a unit follow to rounding."""


@dataclass(frozen=True, slots=True)
class Curves:
    """What an activation makes of pairs u, v of Gaussian values of mean 0 and equal variance q, as
    a function of their correlation ρ.

    With a_k the coefficients of f(√q z) in normalised Hermite polynomials, E[f(u)f(v)] is
    Σ a_k² ρ^k (Mehler 1866). As many terms are taken as are needed to rounding, at most `_ORDERS`.
    What they leave is known at both ends, where the sum is E[f(z)f(±z)]; between them it counts as
    the rest of a series whose terms fall as k^(−3/2), as those of a jump do. All terms being
    positive, the error is at most `rest`·|ρ|^512, and 0 at the ends. (Found against quadrature in
    two dimensions at ρ = 0.999, where it is largest: 1.4e-4 for every function at q up to 20.)

    Attributes:
        value, slope: a_k² of σ and of σ′, to which the rests at ρ = −1 and 1 are attached.
        rest: the largest rest of E[σ′σ′] over E[σ′²].
    """

    value: tuple[Values, float, float]
    slope: tuple[Values, float, float]
    rest: float

    def values(self, rho: Any) -> Values:
        """E[σ(u)σ(v)]."""
        return _summed(*self.value, rho)

    def slopes(self, rho: Any) -> Values:
        """E[σ′(u)σ′(v)]."""
        return _summed(*self.slope, rho)


def _summed(squares: Values, left: float, right: float, rho: Any) -> Values:
    rho = np.clip(np.asarray(rho, dtype=np.float64), -1.0, 1.0)
    total: Values = np.polynomial.polynomial.polyval(rho, squares)
    if max(abs(left), abs(right)) <= 1e-17 * squares.sum():  # The series has ended.
        return total
    return total + np.where(rho > 0, right, left) * _tail(np.abs(rho), len(squares))


def _tail(rho: Values, first: int) -> Values:
    """Σ k^(−3/2) ρ^k of all k from `first` on, over the same sum at ρ = 1, as an integral."""
    from scipy.special import erfcx

    x = -first * np.log(np.maximum(rho, 1e-300))
    tail: Values = np.exp(-x) * (1 - np.sqrt(np.pi * x) * erfcx(np.sqrt(x)))
    return tail


@dataclass(frozen=True, slots=True)
class Bent:
    """As `Curves`, of σ = αx + β|x|, in closed form (Cho and Saul 2009)."""

    variance: float
    straight: float
    bent: float

    rest = 0.0

    def values(self, rho: Any) -> Values:
        rho = np.clip(np.asarray(rho, dtype=np.float64), -1.0, 1.0)
        both = 2 / math.pi * (np.sqrt(1 - rho * rho) + rho * np.arcsin(rho))
        found: Values = self.variance * (self.straight**2 * rho + self.bent**2 * both)
        return found

    def slopes(self, rho: Any) -> Values:
        rho = np.clip(np.asarray(rho, dtype=np.float64), -1.0, 1.0)
        found: Values = self.straight**2 + self.bent**2 * 2 / math.pi * np.arcsin(rho)
        return found


@lru_cache(maxsize=1024)
def curves(name: str, variance: float, parameter: float | None = None) -> Curves | Bent:
    """An activation's covariances of values and of slopes.

    Args: as of `moments`.
    """
    function = FUNCTIONS[name]
    own = function.parameter if parameter is None else parameter
    a = 0.0 if own is None else own
    variance = max(variance, _LEAST)
    if function.scale_free:
        left, right = (function.slope(np.array([s]), a).item() for s in (-1.0, 1.0))
        return Bent(variance, (left + right) / 2, (right - left) / 2)
    sigma = math.sqrt(variance)
    z, weights = _rule(sigma, (*function.kinks, *(-k for k in function.kinks)))
    # One row for σ and one for σ′.
    both = np.stack([function.value(sigma * z, a), function.slope(sigma * z, a)])
    mirrored = np.stack([function.value(-sigma * z, a), function.slope(-sigma * z, a)])
    weighted = both * weights
    ends = [(weighted * other).sum(axis=1) for other in (mirrored, both)]
    squares = np.zeros((2, _ORDERS))
    before, now = np.zeros_like(z), np.ones_like(z)
    for k in range(_ORDERS):
        squares[:, k] = (weighted @ now) ** 2
        before, now = now, (z * now - math.sqrt(k) * before) / math.sqrt(k + 1)
        if k % 32 == 31 and (ends[1] - squares.sum(axis=1) < 1e-15 * ends[1]).all():
            squares = squares[:, : k + 1]
            break
    orders = np.arange(squares.shape[1])
    left, right = ends[0] - squares @ (-1.0) ** orders, ends[1] - squares.sum(axis=1)
    value, slope = (
        (own, float(low), float(high)) for own, low, high in zip(squares, left, right, strict=True)
    )
    rest = max(abs(left[1]), abs(right[1])) / ends[1][1]
    return Curves(value, slope, float(rest))


def covariance(
    name: str, variance: float, covariance: float, parameter: float | None = None
) -> float:
    """E[σ(u)σ(v)] of Gaussian u and v of mean 0, variance q and this covariance; see `curves`."""
    variance = max(variance, _LEAST)
    if not covariance:
        return mean_value(name, variance, parameter) ** 2
    return float(curves(name, variance, parameter).values(covariance / variance))


def mean_value(name: str, variance: float, parameter: float | None = None) -> float:
    """E[σ(√q z)]."""
    function = FUNCTIONS[name]
    own = function.parameter if parameter is None else parameter
    sigma = math.sqrt(variance)
    z, weights = _rule(sigma, function.kinks)
    return float(weights @ function.value(sigma * z, 0.0 if own is None else own))


def _rule(sigma: float, kinks: tuple[float, ...]) -> tuple[Values, Values]:
    """Nodes and weights of ∫ f(z)φ(z) dz for an f that is smooth on the scale of 1, in z and in
    x = σz, between its kinks: Gauss and Legendre's rule on panels of that length."""
    edges = np.arange(-_EDGE, _EDGE + 1)
    if sigma > 1:
        edges = np.concatenate([edges, np.arange(-_NEAR, _NEAR + 1) / sigma])
    edges = np.concatenate([edges, np.array(kinks) / sigma])
    edges = np.unique(edges[np.abs(edges) <= _EDGE])
    z, weights = on_panels(edges, 16)
    return z, weights * _normal(z)


def on_panels(edges: Values, count: int) -> tuple[Values, Values]:
    """Nodes and weights of Gauss and Legendre's rule of ``count`` nodes between every two edges."""
    nodes, weights = _on_panel(count)
    middle, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
    return (middle[:, None] + half[:, None] * nodes).ravel(), (half[:, None] * weights).ravel()


@cache
def _on_panel(count: int) -> tuple[Values, Values]:
    return np.polynomial.legendre.leggauss(count)
