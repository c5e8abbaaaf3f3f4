"""Slopes along identities: random walks that stay positive, simulations, and the graph's own way
of adding them up."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import fastrf as rf
from fastrf.activations import FUNCTIONS
from fastrf.engine.covariance import inexact_reasons
from fastrf.lowering import lower
from fastrf.meanfield.laws import MOST, Law

SAMPLES = 400_000
# Of gain 1 each, whatever the layers around it.
C = rf.Conv(3, padding=1, channels=8, init="lecun")
R, G = rf.Activation(), rf.Activation("gelu")


def begun(variance: float = 1.0) -> Law:
    law = Law.gaussian("s0", variance)
    assert law is not None
    return law


def behind(law: Law, name: str) -> Law:
    own = FUNCTIONS[name]
    return law.bent(own.value, own.slope, own.parameter or 0.0)


def with_branch(law: Law, name: str, variance: float) -> Law:
    found = law.plus({name: variance})
    assert found is not None
    return found


@pytest.mark.parametrize("variance", [1e-6, 1.0, 1e9])
def test_walks_that_stay_positive(variance: float) -> None:
    """Sums of n independent equal symmetric steps are all positive with C(2n, n)/4^n, whatever the
    steps (Sparre Andersen 1953): what passes n ReLUs of equal branches. Sixty sums of rules that
    are right to 1e-10."""
    law = begun(variance)
    for n in range(1, 60):
        passed = behind(law, "relu")
        gains = passed.gains()
        assert gains["s0"] == pytest.approx(math.comb(2 * n, n) / 4**n, rel=6e-9)
        assert passed.chances.sum() == pytest.approx(1, rel=6e-9)
        law = with_branch(passed, f"s{n}", variance)


@pytest.mark.parametrize("name", ["relu", "leaky_relu", "gelu", "hardtanh", "selu"])
def test_against_simulation(name: str) -> None:
    """Products of squared slopes of one channel, within 4 standard errors."""
    rng, own, branches = np.random.default_rng(3), FUNCTIONS[name], (0.5, 1.0, 0.2)
    a = own.parameter or 0.0
    x, law = rng.standard_normal(SAMPLES), begun()
    slopes = {"s0": np.ones(SAMPLES)}
    for number, variance in enumerate(branches, 1):
        passed = behind(law, name)
        slopes = {source: s * own.slope(x, a) for source, s in slopes.items()}
        x = own.value(x, a)
        for source, gain in passed.gains().items():
            squares = slopes[source] ** 2
            assert gain == pytest.approx(squares.mean(), abs=4 * squares.std() / SAMPLES**0.5)
        assert passed.square == pytest.approx((x**2).mean(), abs=4 * (x**2).std() / SAMPLES**0.5)
        assert passed.mean == pytest.approx(x.mean(), abs=4 * x.std() / SAMPLES**0.5)
        x = x + math.sqrt(variance) * rng.standard_normal(SAMPLES)
        law = with_branch(passed, f"s{number}", variance)
        slopes[f"s{number}"] = np.ones(SAMPLES)


def test_the_largest_of_a_window() -> None:
    rng = np.random.default_rng(4)
    z = np.maximum(rng.standard_normal((SAMPLES, 4)), 0).max(axis=1)
    law = behind(begun(), "relu").largest("pool", 4).law
    assert law.square == pytest.approx((z**2).mean(), abs=4 * (z**2).std() / SAMPLES**0.5)
    assert law.mean == pytest.approx(z.mean(), abs=4 * z.std() / SAMPLES**0.5)
    assert law.chances[np.argmin(np.abs(law.value))] == pytest.approx(1 / 16, rel=1e-6)
    positive = z + rng.standard_normal(SAMPLES) > 0
    gains = behind(with_branch(law, "b", 1.0), "relu").gains()
    for name in ("pool", "b"):
        error = positive.std() / SAMPLES**0.5
        assert gains[name] == pytest.approx(positive.mean(), abs=4 * error)


@pytest.mark.parametrize(
    ("name", "alike"), [("relu", 0.0), ("relu", 0.7), ("tanh", 0.3), ("tanh", 0.985)]
)
def test_the_largest_of_pixels_that_are_alike(name: str, alike: float) -> None:
    """Two windows whose values share a part; what each passes, and what they have in common."""
    rng, own = np.random.default_rng(6), FUNCTIONS[name]
    shared = math.sqrt(alike) * rng.standard_normal((SAMPLES, 1))
    values, largest = [], []
    for _ in range(2):
        z = shared + math.sqrt(1 - alike) * rng.standard_normal((SAMPLES, 4))
        values.append(own.slope(z[np.arange(SAMPLES), z.argmax(axis=1)], 0.0) ** 2)
        largest.append(own.value(z, 0.0).max(axis=1))
    found = behind(begun(), name).largest("pool", 4, alike)
    any_one = FUNCTIONS[name].slope(rng.standard_normal(SAMPLES), 0.0) ** 2
    for drawn, expected in (
        (largest[0] ** 2, found.law.square),
        (largest[0], found.law.mean),
        (largest[0] * largest[1], found.far * found.law.square),
    ):
        assert expected == pytest.approx(drawn.mean(), abs=4 * drawn.std() / SAMPLES**0.5)
    errors = [x.std() / x.mean() / SAMPLES**0.5 for x in (values[0], any_one)]
    passed = values[0].mean() / any_one.mean()
    assert found.passed == pytest.approx(passed, rel=4 * math.hypot(*errors))


def test_what_is_not_followed() -> None:
    law = begun()
    assert law.plus({"b": 1e-9}) is None  # lost beside the value
    assert law.plus({"s0": 1.0}) is None  # the same again
    for n in range(1, MOST):
        law = with_branch(behind(law, "relu"), f"s{n}", 1.0)
    assert law.plus({"one more": 1.0}) is None


# --- in a network -----------------------------------------------------------------------------


def stack(blocks: int, activation: rf.Activation = R) -> rf.Network:
    """Rectified residual blocks behind a convolution."""
    nodes: dict[str, Any] = {"input": (rf.Input(8),), "c": (C, "input"), "r0": (activation, "c")}
    for n in range(1, blocks + 1):
        nodes[f"b{n}"] = (C, f"r{n - 1}")
        nodes[f"s{n}"] = (rf.Add(), f"r{n - 1}", f"b{n}")
        nodes[f"r{n}"] = (activation, f"s{n}")
    nodes["last"] = (C, f"r{blocks}")
    return rf.Network(nodes, "last", ndim=1)


@pytest.mark.parametrize("activation", [R, rf.Activation("leaky_relu"), G])
def test_a_stack_adds_up_all_ways(activation: rf.Activation) -> None:
    """Every engine sums over where a path leaves the identity; here by hand, from the top."""
    blocks, net = 5, stack(5, activation)
    graph = lower(net)
    assert inexact_reasons(graph, "last") == []
    gains = graph.identities
    kernel = np.full(3, 1 / 3)
    into = {blocks: kernel}  # what enters r_n by weights
    for n in range(blocks, 0, -1):
        total = np.zeros(1)
        for m, image in into.items():
            total = padded(total, len(image)) + gains[f"r{m}"][f"b{n}"] * padded(image, len(total))
        into[n - 1] = np.convolve(total, kernel)
    width = max(map(len, into.values()))
    stem = sum(gains[f"r{m}"]["c"] * padded(image, width) for m, image in into.items())
    expected = np.convolve(stem, kernel)
    for method in ("direct", "factored", "spectral"):
        found = rf.erf(net, method=method)
        np.testing.assert_allclose(found.image, expected / expected.sum(), rtol=1e-9)
        assert found.log_gain == pytest.approx(math.log(expected.sum()), rel=1e-11)
    fields = rf.erf(net, layers="all")
    np.testing.assert_allclose(fields["last"].image, found.image, rtol=1e-9)
    for name in ("s3", "r3", "b3"):
        single = rf.erf(net, name)
        np.testing.assert_allclose(fields[name].image, single.image, rtol=1e-12)
    assert rf.check(net)


def padded(image: np.ndarray, width: int) -> np.ndarray:
    """With zeros on both sides, up to a width."""
    more = max(width - len(image), 0) // 2
    return np.pad(image, more)


def test_scale_does_not_matter_to_relu() -> None:
    nodes = {n: (node.layer, *node.inputs) for n, node in stack(4).nodes.items()}
    nodes["c"] = (replace(C, gain=7.0), "input")
    loud = rf.erf(rf.Network(nodes, "last", ndim=1))
    np.testing.assert_allclose(loud.image, rf.erf(stack(4)).image)


def test_stated_gains_multiply() -> None:
    """Without an `init` layers do to the variance what they say, each by itself; so does an
    activation with a gain of its own. That their slopes are alike is said."""
    plain, compensated = rf.Conv(3, padding=1, channels=8), rf.Activation(gain=1.0)
    for conv, activation, gain in ((plain, R, 0.5), (C, compensated, 1.0)):
        swapped = {C: conv, R: activation}
        nodes = {
            n: (swapped.get(node.layer, node.layer), *node.inputs)
            for n, node in stack(4).nodes.items()
        }
        found = rf.erf(rf.Network(nodes, "last", ndim=1))
        kernel = np.full(3, 1 / 3)
        image = np.convolve(kernel, kernel)
        for _ in range(4):
            image = padded(image, len(image) + 2) + np.convolve(image, kernel)
        np.testing.assert_allclose(found.image, image / image.sum(), rtol=1e-12)
        assert found.log_gain == pytest.approx(math.log(gain**5 * 2**4))
        assert not found.exact
        assert "slopes are alike" in found.inexact[0]


def test_what_leads_elsewhere_is_said() -> None:
    """Two ways with activations that meet are not one channel's chain."""
    net = rf.Network(
        {
            "input": (rf.Input(8),),
            "a": (C, "input"),
            "ra": (R, "a"),
            "b": (C, "ra"),
            "rb": (R, "b"),
            "sum": (rf.Add(), "ra", "rb"),
            "r": (R, "sum"),
            "last": (C, "r"),
        },
        ndim=1,
    )
    found = rf.erf(net)
    assert not found.exact
    assert "slopes are alike" in found.inexact[0]
