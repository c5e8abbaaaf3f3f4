"""Activations' gains: against closed forms, mpmath's quadrature and PyTorch's own derivatives."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import mpmath as mp
import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch.nn import functional as F

import fastrf as rf
from fastrf.activations import FUNCTIONS, covariance, curves, moments
from fastrf.errors import InputError

VARIANCES = (1e-6, 0.3, 1.0, 1.7, 40.0, 1e4)

# Sums of some thousand positive terms of 16 digits.
TIGHT = {"rel": 1e-13}


# --- closed forms ---------------------------------------------------------------------------


def gelu_gain(q: float) -> float:
    """E[(Φ + xφ)²], x ~ N(0, q): from E[Φ²] = 1/4 + arcsin(q/(1+q))/2π and Stein's lemma."""
    both = q / ((1 + q) * math.sqrt(1 + 2 * q)) / math.pi
    squared = q / (1 + 2 * q) ** 1.5 / (2 * math.pi)
    return 1 / 4 + math.asin(q / (1 + q)) / (2 * math.pi) + both + squared


def distribution(x: float) -> float:
    return 0.5 * math.erfc(-x / math.sqrt(2))


def elu_gain(q: float) -> float:
    """1/2 + E[e^{2x}; x < 0] = 1/2 + e^{2q}Φ(−2√q)."""
    return 0.5 + math.exp(2 * q) * distribution(-2 * math.sqrt(q))


@pytest.mark.parametrize("q", VARIANCES)
def test_closed_forms(q: float) -> None:
    root = math.sqrt(q)
    assert moments("relu", q).gain == 0.5
    assert moments("relu", q).mean_slope == 0.5
    assert moments("relu", q).square == pytest.approx(q / 2, **TIGHT)
    assert moments("leaky_relu", q, 0.2).gain == pytest.approx((1 + 0.04) / 2, **TIGHT)
    assert moments("abs", q).gain == 1.0
    assert moments("abs", q).mean_slope == 0.0
    assert moments("gelu", q).gain == pytest.approx(gelu_gain(q), **TIGHT)
    assert moments("gelu", q).mean_slope == pytest.approx(0.5, **TIGHT)
    assert moments("hardtanh", q).gain == pytest.approx(
        math.erf(1 / (root * math.sqrt(2))), **TIGHT
    )
    inside = distribution(6 / root) - 0.5 if root > 0.5 else 0.5 - distribution(-6 / root)
    assert moments("relu6", q).gain == pytest.approx(inside, **TIGHT)
    if q < 100:
        assert moments("elu", q).gain == pytest.approx(elu_gain(q), **TIGHT)


@pytest.mark.parametrize("q", [0.09, 1.0, 25.0])
def test_against_mpmath(q: float) -> None:
    """E[tanh′²], E[tanh²], E[σ′²] of the sigmoid, by mpmath's quadrature of the definition."""
    root = mp.sqrt(q)

    def mean(f: object) -> float:
        points = [-12, -3, -1, 0, 1, 3, 12]
        return float(mp.quad(lambda z: f(root * z) * mp.npdf(z), points))  # type: ignore[operator]

    assert moments("tanh", q).gain == pytest.approx(mean(lambda x: mp.sech(x) ** 4), **TIGHT)
    assert moments("tanh", q).square == pytest.approx(mean(lambda x: mp.tanh(x) ** 2), **TIGHT)

    def slope(x: mp.mpf) -> mp.mpf:
        return 1 / (2 + mp.exp(x) + mp.exp(-x))

    assert moments("sigmoid", q).gain == pytest.approx(mean(lambda x: slope(x) ** 2), **TIGHT)
    assert moments("sigmoid", q).mean_slope == pytest.approx(mean(slope), **TIGHT)


LINE = np.polynomial.legendre.leggauss(80)


def pieces(low: float, high: float, breaks: Any) -> list[tuple[float, float]]:
    """An interval cut where something may jump."""
    edges = [low, *sorted(b for b in breaks if low < b < high), high]
    return [*itertools.pairwise(edges)]


def of_pairs(f: Callable[[Any], Any], kinks: Any, rho: float) -> float:
    """E[f(u)f(v)] of standard Gaussians of correlation ρ: over u by SciPy's adaptive quadrature,
    over what v has of its own by 80 nodes to each piece without a kink."""
    root, edge = math.sqrt(1 - rho**2), 7.0  # beyond it lies 3e-12 of each
    scale = 1 / math.sqrt(2 * math.pi)

    def inner(u: float) -> float:
        total = 0.0
        for a, b in pieces(-edge, edge, [(k - rho * u) / root for k in kinks]):
            w = (a + b) / 2 + (b - a) / 2 * LINE[0]
            total += (b - a) / 2 * float(LINE[1] @ (f(rho * u + root * w) * np.exp(-w * w / 2)))
        return total * scale

    def outer(u: float) -> float:
        return float(f(np.array(u))) * math.exp(-u * u / 2) * scale * inner(u)

    cut = pieces(-edge, edge, kinks)
    return math.fsum(quad(outer, *ends, epsabs=1e-9, epsrel=1e-9)[0] for ends in cut)


Q = 1.3


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("rho", [-0.4, 0.7, 0.95])
def test_covariances(name: str, rho: float) -> None:
    """Values and slopes at neighbouring pixels. Where a series converges they are right to what
    the quadrature is asked for; ρ^512 is 4e-12 at 0.95."""
    own = FUNCTIONS[name]
    a, root = own.parameter or 0.0, math.sqrt(Q)
    kinks = [k / root for k in own.kinks]
    for f, found in (
        (own.value, covariance(name, Q, rho * Q)),
        (own.slope, curves(name, Q).slopes(rho)),
    ):
        expected = of_pairs(lambda x, f=f: f(root * x, a), kinks, rho)
        assert found == pytest.approx(expected, rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_covariances_at_the_ends(name: str) -> None:
    """ρ = 1 is a value with itself, ρ = 0 are two means, ρ = −1 is a value with its mirror image;
    and nothing jumps on the way there."""
    q, own = moments(name, Q), curves(name, Q)
    assert own.values(1.0) == pytest.approx(q.square, rel=1e-13)
    assert own.slopes(1.0) == pytest.approx(q.gain, rel=1e-13)
    assert own.slopes(0.0) == pytest.approx(q.mean_slope**2, rel=1e-13)
    assert covariance(name, Q, 0.0) == pytest.approx(float(own.values(0.0)), rel=1e-12, abs=1e-15)
    z = np.linspace(-12, 12, 100_001)
    f, a = FUNCTIONS[name], FUNCTIONS[name].parameter or 0.0
    for curve, g in ((own.values, f.value), (own.slopes, f.slope)):
        product = g(math.sqrt(Q) * z, a) * g(-math.sqrt(Q) * z, a) * np.exp(-z * z / 2)
        mirrored = product.sum() * (z[1] - z[0]) / math.sqrt(2 * math.pi)
        assert curve(-1.0) == pytest.approx(mirrored, abs=3e-4)  # jumps, within a spacing
    rho = np.linspace(-1, 1, 4001)
    assert (np.diff(own.slopes(rho)[2000:]) >= -1e-15).all()  # its terms are positive
    assert own.rest < 0.02


@pytest.mark.parametrize("name", ["hardtanh", "relu6", "selu", "softsign", "elu", "tanh"])
@pytest.mark.parametrize("q", [1.0, 20.0])
def test_covariances_of_nearly_equal_pixels(name: str, q: float) -> None:
    """ρ = 0.999, where the rests of the series matter most: its stated error."""
    own, root = FUNCTIONS[name], math.sqrt(q)
    kinks = [k / root for k in own.kinks]
    a = own.parameter or 0.0
    expected = of_pairs(lambda x: own.slope(root * x, a), kinks, 0.999)
    assert curves(name, q).slopes(0.999) == pytest.approx(expected, abs=1.5e-4)


# --- the functions themselves ---------------------------------------------------------------

TORCH = {
    **{name: getattr(F, name) for name in ("relu", "leaky_relu", "elu", "celu", "selu", "gelu")},
    **{name: getattr(F, name) for name in ("silu", "mish", "softplus", "softsign", "hardtanh")},
    **{name: getattr(F, name) for name in ("relu6", "hardsigmoid", "hardswish")},
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "log_sigmoid": F.logsigmoid,
    "logsigmoid": F.logsigmoid,
    "abs": torch.abs,
    "identity": lambda x: x * 1,
    "swish": F.silu,
    "leakyrelu": F.leaky_relu,
    "hard_sigmoid": F.hardsigmoid,
    "hard_swish": F.hardswish,
    "rrelu": lambda x: F.rrelu(x, training=False),
    "prelu": lambda x: F.prelu(x, torch.full((1,), 0.25, dtype=x.dtype)),
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_those_of_pytorch(name: str) -> None:
    x = torch.linspace(-7, 7, 1000, dtype=torch.float64, requires_grad=True)  # off every kink
    y = TORCH[name](x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    own, at = FUNCTIONS[name], x.detach().numpy()
    parameter = own.parameter or 0.0
    np.testing.assert_allclose(own.value(at, parameter), y.detach().numpy(), atol=1e-13)
    np.testing.assert_allclose(own.slope(at, parameter), slope.numpy(), atol=1e-13)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_moments_are_finite_at_every_variance(name: str) -> None:
    found = [moments(name, q) for q in (0.0, 1e-200, 1e-9, 1.0, 1e9, 1e200)]
    assert all(math.isfinite(v) for m in found for v in (m.gain, m.mean_slope, m.square))
    assert all(m.gain > 0 and m.square >= 0 for m in found)
    assert found[0].gain == pytest.approx(found[2].gain, rel=1e-3)  # continuous at 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_mean_slope_by_stein(name: str) -> None:
    """E[xσ(x)] = qE[σ′(x)]: relates σ to σ′ through a sum over other nodes."""
    q, own = 2.3, FUNCTIONS[name]
    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    x = math.sqrt(q) * nodes
    mean = float(weights @ (x * own.value(x, own.parameter or 0.0))) / math.sqrt(2 * math.pi)
    # Hermite's rule of 200 nodes meets a kink within its spacing of 0.1.
    near = 2e-3 if own.kinks else 1e-10
    assert moments(name, q).mean_slope == pytest.approx(mean / q, abs=near)


# --- the layer ------------------------------------------------------------------------------


def test_layer() -> None:
    assert rf.Activation("leaky_relu", slope=0.5).pointwise_gain == 0.625
    assert rf.Activation("tanh", variance=0.0).pointwise_gain == pytest.approx(1.0)
    assert rf.Activation("gelu", variance=2.0).pointwise_gain == pytest.approx(gelu_gain(2.0))
    assert rf.Activation("elu", variance=1.0, slope=1.0) != rf.Activation("elu", variance=2.0)
    half = rf.Activation("relu", gain=2.0)
    assert half.mean_factor == 1.0  # E[σ′]² is half of E[σ′²], whatever scales σ
    assert rf.Activation("tanh", gain=1.0).mean_factor is None  # of what variance is not said
    with_variance = rf.Activation("tanh", gain=1.0, variance=1.0).mean_factor
    own = moments("tanh", 1.0)
    assert with_variance == pytest.approx(own.mean_slope / math.sqrt(own.gain))


@pytest.mark.parametrize("layer", [rf.Activation("relu", slope=0.1), rf.Activation("f", slope=1)])
def test_no_slope_to_choose(layer: rf.Activation) -> None:
    with pytest.raises(InputError, match=r"has no slope to choose, got .*leave it out"):
        layer.bind(2)
