"""What slopes of activations have in common, against wide random networks.

`Kernels` holds the second moments of the forward signal and the gradient's covariance between all
pixels of a network without padding as dense matrices, for infinitely many channels; of NumPy and
nothing of fastrf. Beside the image lies another one that has nothing in common with it, which tells
what pixels share however far apart they are. Random networks of many channels show that those
matrices are what networks do.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
from fastrf.kernels import load
from scipy.special import expit, ndtr

import fastrf as rf
from fastrf.engine import correlated, lag_gains
from fastrf.engine.correlated import propagate_correlated
from fastrf.engine.covariance import inexact_reasons
from fastrf.engine.transfer import transfer_function
from fastrf.engine.upward_correlated import propagate_upward_correlated
from fastrf.lowering import lower
from fastrf.meanfield.slopes import Slopes, slopes_of

TOLERANCE = 1e-12  # at most 12 layers whose sums have fewer than 50 terms each

Layers = list[tuple[Any, ...]]

LOUD = 16.0
CONV, RELU, AVG = ("conv", 3, 1), ("relu",), ("avg", 3, 1)
BLOCK = [("norm",), RELU, CONV]
CHAINS: dict[str, Layers] = {
    "pools behind and before": [CONV, RELU, CONV, AVG, CONV, RELU, CONV, RELU, AVG, CONV],
    "strides": [CONV, RELU, AVG, ("conv", 3, 2), RELU, CONV, RELU, ("avg", 2, 2), CONV],
    "a pool that the forward signal passes": [AVG, CONV, RELU, CONV, RELU, CONV, AVG],
    "normalised": [CONV, AVG, *BLOCK, AVG, *BLOCK, *BLOCK, AVG],
    "normalised, pools that do not overlap": [CONV, ("avg", 2, 2), *BLOCK, *BLOCK, AVG],
    "one look": [CONV, RELU, AVG],
    "wide": [AVG, ("conv", 5, 1), RELU, ("avg", 5, 2), CONV, RELU, CONV, ("avg", 4, 1)],
}


def network(layers: Layers) -> rf.Network:
    made: dict[str, Any] = {
        "conv": rf.Conv,
        "loud": functools.partial(rf.Conv, gain=LOUD),
        "relu": rf.Activation,
        "avg": rf.AvgPool,
        "norm": rf.Norm,
    }
    return rf.Sequential(*[made[kind](*values) for kind, *values in layers], ndim=1)


def matrices(layers: Layers, size: int) -> list[list[np.ndarray]]:
    """Of each layer, the matrices of its taps, from what it reads to what it writes."""
    found = []
    for kind, *values in layers:
        if kind not in ("conv", "loud", "avg"):
            found.append([np.eye(size)])
            continue
        k, s = values
        count = (size - k) // s + 1
        taps = [np.zeros((count, size)) for _ in range(k)]
        for m, tap in enumerate(taps):
            tap[np.arange(count), np.arange(count) * s + m] = 1
        found.append(taps)
        size = count
    return found


def orthant(rho: np.ndarray) -> np.ndarray:
    """P(z > 0, z′ > 0) of two Gaussians: Sheppard 1899."""
    return 1 / 4 + np.arcsin(np.clip(rho, -1, 1)) / (2 * math.pi)


def rectified(k: np.ndarray) -> np.ndarray:
    """E[max(z, 0)·max(z′, 0)]: Cho and Saul 2009."""
    scale = np.sqrt(np.outer(np.diag(k), np.diag(k)))
    rho = np.clip(k / scale, -1, 1)
    return scale * np.sqrt(1 - rho**2) / (2 * math.pi) + k * orthant(rho)


class Kernels:
    """The dense oracle."""

    def __init__(self, layers: Layers, size: int) -> None:
        self.layers, self.maps = layers, matrices(layers, size)
        self.signals = [np.eye(2 * size)]
        for (kind, *_), taps in zip(layers, self.maps, strict=True):
            self.signals.append(self._behind(kind, taps, self.signals[-1]))

    @staticmethod
    def _behind(kind: str, taps: list[np.ndarray], k: np.ndarray) -> np.ndarray:
        both = [np.kron(np.eye(2), tap) for tap in taps]  # of the image and of the other one
        if kind == "conv":
            return np.asarray(sum(t @ k @ t.T for t in both) / len(both))
        if kind == "avg":
            mean = sum(both) / len(both)
            return np.asarray(mean @ k @ mean.T)
        if kind == "relu":
            return 2 * rectified(k)
        far = k[0, -1]
        return (k - far) / (k[0, 0] - far)

    def gradient(self, unit: int) -> np.ndarray:
        """E[g²] at every pixel of the input."""
        n = len(self.signals[-1]) // 2
        g = np.zeros((n, n))
        g[unit, unit] = 1
        for (kind, *_), taps, k in zip(
            self.layers[::-1], self.maps[::-1], self.signals[-2::-1], strict=True
        ):
            half = len(k) // 2
            if kind == "conv":
                g = np.asarray(sum(t.T @ g @ t for t in taps) / len(taps))
            elif kind == "avg":
                mean = sum(taps) / len(taps)
                g = mean.T @ g @ mean
            elif kind == "relu":
                own = k[:half, :half]
                g = g * orthant(own / own[0, 0])
        return np.diag(g).copy()


FUNCTIONS: dict[str, tuple[Any, Any]] = {
    "scaled relu": (lambda x: math.sqrt(2) * np.maximum(x, 0), lambda x: x > 0),
    "leaky_relu": (lambda x: np.where(x > 0, x, 0.01 * x), lambda x: np.where(x > 0, 1, 0.01)),
    "gelu": (lambda x: x * ndtr(x), lambda x: ndtr(x) + x * np.exp(-x * x / 2) / HALF_TURN),
    "silu": (lambda x: x * expit(x), lambda x: expit(x) * (1 + x * expit(-x))),
}
HALF_TURN = math.sqrt(2 * math.pi)


def drawn(layers: Layers, size: int, unit: int, channels: int, count: int) -> np.ndarray:
    """g² of `count` random networks on noise, summed over the input's channels, for a gradient of
    variance 1 on all channels of the unit together; (count, size)."""
    rng, maps = np.random.default_rng(7), matrices(layers, size)
    found = []
    for _ in range(count):
        x = rng.standard_normal((channels, size))
        kept: list[Any] = []
        for (kind, *values), taps in zip(layers, maps, strict=True):
            if kind in ("conv", "loud"):
                w = rng.standard_normal((len(taps), channels, channels))
                w *= math.sqrt((LOUD if kind == "loud" else 1) / (len(taps) * channels))
                kept.append(w)
                x = sum(w[m] @ x @ t.T for m, t in enumerate(taps))
            elif kind == "avg":
                x = x @ (sum(taps) / len(taps)).T
                kept.append(None)
            elif kind == "relu":
                value, slope = FUNCTIONS[values[0] if values else "scaled relu"]
                kept.append(slope(x))
                x = value(x)
        g = np.zeros_like(x)
        g[:, unit] = rng.standard_normal(channels) / math.sqrt(channels)
        for (kind, *_), taps, what in zip(layers[::-1], maps[::-1], kept[::-1], strict=True):
            if kind in ("conv", "loud"):
                g = sum(what[m].T @ g @ t for m, t in enumerate(taps))
            elif kind == "avg":
                g = g @ (sum(taps) / len(taps))
            else:
                g = g * what
        found.append((g**2).sum(axis=0))
    return np.array(found)


def computed(net: rf.Network, size: int | None, unit: int) -> tuple[np.ndarray, int]:
    graph = lower(net, size)
    node = graph.output_node(None)
    found = propagate_correlated(graph, node, (unit,), "input", kernels=load())
    return found.pixels() * math.exp(found.mass.log()), found.origin[0]


@pytest.mark.parametrize("name", CHAINS)
def test_against_dense_kernels(name: str) -> None:
    """Bounded without padding, unbounded, and up from the input; the layers are exact."""
    layers, size = CHAINS[name], 48
    net, oracle = network(layers), Kernels(layers, size)
    unit = len(oracle.signals[-1]) // 4
    truth = oracle.gradient(unit)
    for given in (size, None):
        graph = lower(net, given)
        assert inexact_reasons(graph, graph.output_node(None)) == []
        image, origin = computed(net, given, unit)
        np.testing.assert_allclose(image, truth[origin : origin + len(image)], rtol=TOLERANCE)
        assert image.sum() == pytest.approx(truth.sum(), rel=TOLERANCE)
    graph = lower(net)
    node = graph.output_node(None)
    function = transfer_function(graph, node, "input")
    ((_, found),) = propagate_upward_correlated(function, (unit,), {node}, kernels=load())
    np.testing.assert_allclose(found.pixels(), image / image.sum(), rtol=TOLERANCE)


def test_masks_are_not_independent() -> None:
    """Counted so, the figures would be others: the cases have the power to tell."""
    errors = []
    for layers in CHAINS.values():
        oracle = Kernels(layers, 48)
        unit = len(oracle.signals[-1]) // 4
        truth = oracle.gradient(unit)
        oracle.signals = [np.diag(np.diag(k)) for k in oracle.signals]
        errors.append(np.abs(oracle.gradient(unit) / truth.sum() - truth / truth.sum()).max())
    assert sorted(errors)[-4] > 1e-2 * truth.max() / truth.sum()


def test_against_random_networks() -> None:
    """Within 4 standard errors, of which 128 channels take up less than half."""
    layers: Layers = [CONV, RELU, CONV, AVG, RELU, CONV, RELU, AVG, CONV]
    size, unit = 20, 2
    image, origin = computed(network(layers), size, unit)
    draws = drawn(layers, size, unit, channels=128, count=150)
    mean, error = draws.mean(axis=0), draws.std(axis=0) / math.sqrt(len(draws))
    window = slice(origin, origin + len(image))
    assert (np.abs(mean[window] - image) < 4 * error[window] + image / 128).all()
    oracle = Kernels(layers, size)
    oracle.signals = [np.diag(np.diag(k)) for k in oracle.signals]
    independent = oracle.gradient(unit)[window]  # as if masks had nothing in common
    assert (np.abs(mean[window] - independent) > 7 * error[window])[3:-3].all()


@pytest.mark.parametrize("name", ["leaky_relu", "gelu", "silu"])
def test_other_functions_against_random_networks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above; and slopes that were independent would be seen."""
    own = ("relu", name)
    loud = ("loud", 3, 1)  # variances at which slopes differ
    layers: Layers = [CONV, AVG, loud, own, loud, own, CONV, AVG]
    size, unit = 19, 2
    graph = lower(network(layers), size)
    assert inexact_reasons(graph, graph.output_node(None)) == []
    image, origin = computed(network(layers), size, unit)
    draws = drawn(layers, size, unit, channels=128, count=150)
    mean, error = draws.mean(axis=0), draws.std(axis=0) / math.sqrt(len(draws))
    window = slice(origin, origin + len(image))
    assert (np.abs(mean[window] - image) < 4 * error[window] + image / 128).all()
    for module in (correlated, lag_gains):
        monkeypatch.setattr(module, "slopes_of", lambda *_, **__: Slopes())
    independent, _ = computed(network(layers), size, unit)
    totals = draws.sum(axis=1)
    error = totals.std() / math.sqrt(len(draws))
    assert abs(totals.mean() - image.sum()) < 4 * error
    assert abs(totals.mean() - independent.sum()) > 4 * error


# --- graphs ---------------------------------------------------------------------------------


def known(nodes: dict[str, Any], output: str, size: int | None = None) -> tuple[list[str], Any]:
    graph = lower(rf.Network({"input": (rf.Input(8),), **nodes}, output, ndim=1), size)
    return inexact_reasons(graph, output), slopes_of(graph, output, "input")


C, R, P = rf.Conv(3, padding=1, channels=8), rf.Activation(), rf.AvgPool(3, 1, padding=1)


def test_lags_at_which_the_series_does_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """There slopes count as independent, as at no other, and it is said."""
    gelu = rf.Activation("gelu")
    nodes = {"p": (P, "input"), "c": (C, "p"), "r": (gelu, "c"), "d": (C, "r"), "q": (P, "d")}
    reasons, slopes = known(nodes, "q")
    (series,) = slopes.shares.values()
    assert not reasons
    monkeypatch.setattr("fastrf.meanfield.slopes.UNSURE", 1e-150)  # (2/3)^512 is more
    reasons, slopes = known(nodes, "q")
    (found,) = slopes.shares.values()
    lags = [(-2, -1, 0, 1, 2)]
    near, far = [1, 3], [0, 2, 4]
    own = (
        lower(rf.Network({"input": (rf.Input(8),), **nodes}, "q", ndim=1)).network.nodes["r"].layer
    )
    np.testing.assert_allclose(found.at(lags)[near], own.mean_factor**2 / own.pointwise_gain)
    np.testing.assert_array_equal(found.at(lags)[far], series.at(lags)[far])
    assert "too alike" in slopes.unknown["r"]
    assert [reason for reason in reasons if reason.startswith("r:")]


def test_sums_of_independent_branches() -> None:
    """A residual block before an activation, all Gaussian: correlations by hand. Behind a pool
    ρ = 2/3 and 1/3; the branch behind ReLU has (κ₁ of them), and both of them are added."""
    nodes = {
        "p": (P, "input"),
        "c": (C, "p"),
        "r": (R, "c"),
        "b": (C, "r"),
        "s": (rf.Add(), "c", "b"),
        "t": (R, "s"),
        "d": (C, "t"),
        "q": (P, "d"),
        "e": (C, "q"),
    }
    reasons, slopes = known(nodes, "e")
    assert reasons == []
    rho = np.array([1 / 3, 2 / 3, 1, 2 / 3, 1 / 3])
    one = (np.sqrt(1 - rho**2) + rho * (math.pi - np.arccos(rho))) / math.pi
    # The pool leaves 1/3 of the variance; gain 1/2 of the activation as stated.
    both = (rho / 3 + one / 3 / 2) / (1 / 3 + 1 / 3 / 2)
    shares = sorted((g.array.tolist() for g in slopes.shares.values()), key=lambda a: a[0])
    for found, expected in zip(shares, sorted([rho.tolist(), both.tolist()]), strict=True):
        np.testing.assert_allclose(found, 1 - np.arccos(expected) / math.pi, rtol=1e-12)


WHY: dict[str, tuple[dict[str, Any], int | None, str]] = {
    "max-pooling": ({"m": (rf.MaxPool(3, 1, padding=1), "p0"), "c": (C, "m")}, None, "largest"),
    "no weights between": ({"a": (R, "p0"), "c": (P, "a")}, None, "not Gaussian"),
    "depthwise": (
        {"c": (rf.Conv(3, padding=1, channels=8, groups="depthwise"), "p0")}, None,
        "not Gaussian",
    ),
    "another function": ({"a": (rf.Activation("swoosh"), "p0"), "c": (C, "a")}, None, "swoosh"),
    "a sum of what is correlated": (
        {"a": (C, "p0"), "b": (P, "a"), "c": (rf.Add(), "a", "b")}, None, "correlated",
    ),
    "upsampling": ({"u": (rf.Upsample(2), "p0"), "c": (C, "u")}, None, "differently"),
}  # fmt: skip


@pytest.mark.parametrize("name", WHY)
def test_what_is_not_known_is_said(name: str) -> None:
    nodes, size, why = WHY[name]
    nodes = {"p0": (P, "input"), **nodes, "r": (R, "c"), "d": (C, "r"), "p": (P, "d")}
    nodes["e"] = (C, "p")
    reasons, slopes = known(nodes, "e", size)
    assert any(text.startswith("r: ") for text in reasons)
    assert why in slopes.unknown["r"]


def test_borders() -> None:
    """Far from them all is as without them; that it is not near them is said."""
    nodes = {"p0": (P, "input"), "c": (C, "p0"), "r": (R, "c"), "d": (C, "r"), "p": (P, "d")}
    nodes["e"] = (C, "p")
    assert known(nodes, "e", None)[0] == []
    reasons, slopes = known(nodes, "e", 40)
    assert len(reasons) == 1
    assert reasons[0].startswith("r: slopes of neighbouring pixels count as alike as they are far")
    assert slopes.bordered == {"r"}
    net = rf.Network({"input": (rf.Input(8),), **nodes}, "e", ndim=1)
    free, origin = computed(net, None, 20)
    inside, first = computed(net, 40, 20)
    assert origin == first
    np.testing.assert_allclose(inside, free, rtol=1e-13)


def test_concatenations() -> None:
    """Of channels that are alike, and of some behind a pool and some not."""
    nodes = {
        "p0": (P, "input"),
        "a": (C, "p0"),
        "b": (C, "p0"),
        "c": (rf.Concat(), "a", "b"),
        "r": (R, "c"),
        "d": (C, "r"),
        "p": (P, "d"),
        "e": (C, "p"),
    }
    reasons, slopes = known(nodes, "e")
    assert reasons == []
    (found,) = slopes.shares.values()
    assert found.at([(1,)]).item() == pytest.approx(1 - math.acos(2 / 3) / math.pi)
    nodes["q"] = (P, "b")
    nodes["c"] = (rf.Concat(), "a", "q")
    order = ["p0", "a", "b", "q", "c", "r", "d", "p", "e"]
    reasons, slopes = known({n: nodes[n] for n in order}, "e")
    assert slopes.unknown["r"] == "channels that r reads differ"
    assert any(text.startswith("r: ") for text in reasons)


def test_assumptions_are_said() -> None:
    layers: Layers = [AVG, CONV, RELU, CONV, AVG]
    field = rf.erf(network(layers))
    assert field.exact
    assert any("Gaussian white noise" in text for text in field.assumptions)
    assert not any(
        "Gaussian white noise" in text for text in rf.erf(network([CONV, RELU])).assumptions
    )
    assert not rf.erf(rf.Sequential(P, C, R, C, P, ndim=1), input_size=30).exact


def test_range_of_deep_gains() -> None:
    wide = rf.Conv(3, gain=2.0**30)
    net = rf.Sequential(
        rf.AvgPool(3, 1), *[wide, rf.Activation()] * 60, rf.Conv(3), rf.AvgPool(3, 1), ndim=1
    )
    graph = lower(net)
    node = graph.output_node(None)
    assert inexact_reasons(graph, node) == []
    shares = [g.array for g in slopes_of(graph, node, "input").shares.values()]
    assert len(shares) == 60
    assert all(((a > 0) & (a <= 1)).all() for a in shares)
