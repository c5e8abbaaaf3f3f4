"""Moments by pairs of pixels against the dense covariance of everything, and what they leave out.

Tolerance: fewer than 1000 sums of numbers that are exact but for eps/2, of which second moments
lose the square of a position (below 30) over a variance (above 0.5).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import fastrf as rf
from fastrf.analytic import paired
from fastrf.analytic.paired import paired_moments
from fastrf.lowering import lower

covariance_oracle = pytest.importorskip("covariance_oracle")

CONV = rf.Conv(3, padding=1)
AVG = rf.AvgPool(3, 1, padding=1)
ADD = rf.Add()

Nodes = dict[str, tuple[Any, ...]]

CASES: dict[str, tuple[tuple[int, ...], Nodes]] = {
    "random weights beside an identity": (
        (23,),
        {"a": (AVG, "input"), "c": (CONV, "a"), "s": (ADD, "a", "c"), "b": (AVG, "s")},
    ),
    "the same twice": (
        (19,),
        {"a": (AVG, "input"), "c": (CONV, "a"), "s": (ADD, "c", "c"), "b": (AVG, "s")},
    ),
    "unequal taps": (
        (23,),
        {"a": (AVG, "input"), "c": (rf.Conv(3, padding=1, taps=[1, 2, 5]), "a"), "b": (AVG, "c")},
    ),
    "a border that is reflected, far away": (
        (23,),
        {
            "a": (AVG, "input"),
            "c": (rf.Conv(3, padding=1, padding_mode="reflect"), "a"),
            "b": (AVG, "c"),
        },
    ),
    "dropout's masks are independent": (
        (19,),
        {"a": (AVG, "input"), "d": (rf.Dropout(0.3), "a"), "b": (AVG, "d")},
    ),
    "strides two ways": (
        (33,),
        {
            "a": (rf.AvgPool(3, 2, padding=1), "input"),
            "c": (rf.Conv(3, padding=1), "a"),
            "f": (rf.Filter(3, padding=1, weights=(1.0, -2.0, 0.5)), "a"),
            "s": (ADD, "c", "f"),
            "b": (rf.AvgPool(3, 1, padding=1), "s"),
        },
    ),
    "unequal axes": (
        (11, 15),
        {
            "a": (rf.AvgPool((3, 1), 1, padding=(1, 0)), "input"),
            "f": (rf.Filter((1, 3), padding=(0, 1), weights=((1.0, 2.0, -1.0),)), "a"),
            "s": (ADD, "a", "f"),
            "c": (rf.Conv((2, 3), padding=(1, 1)), "s"),
            "b": (rf.AvgPool((1, 3), 1, padding=(0, 1)), "c"),
        },
    ),
}


def of(nodes: Nodes, unit: tuple[int, ...]) -> paired.PairedMoments | None:
    network = rf.Network({"input": (rf.Input(1),), **nodes}, list(nodes)[-1], ndim=len(unit))
    return paired_moments(lower(network), list(nodes)[-1], unit, "input")


@pytest.mark.parametrize("name", CASES)
def test_moments_agree_with_the_dense_covariance(name: str) -> None:
    """Far from borders, so that a map of known size is the unbounded grid."""
    size, nodes = CASES[name]
    steps = lower(rf.Network(nodes, list(nodes)[-1], ndim=len(size)), size)
    unit = tuple(n // 2 for n in steps.sizes[list(nodes)[-1]] or ())
    truth = covariance_oracle.covariance(nodes, list(nodes)[-1], unit, size)
    for axis in range(len(size)):
        ends = np.take(truth, [0, -1], axis)
        assert not ends.any()
    found = of(nodes, unit)
    assert found is not None
    assert found.mass == pytest.approx(truth.sum(), rel=1e-13)
    weights = truth.ravel() / truth.sum()
    places = np.indices(size).reshape(len(size), -1)
    mean = places @ weights
    away = places - mean[:, None]
    np.testing.assert_allclose(found.mean, mean, rtol=1e-13)
    np.testing.assert_allclose(found.covariance, (away * weights) @ away.T, atol=1e-10)


def test_what_cancels_has_no_moments() -> None:
    nodes: Nodes = {
        "a": (AVG, "input"),
        "n": (rf.Scale(-1.0), "a"),
        "s": (ADD, "a", "n"),
    }
    assert of(nodes, (0,)) is None


REFUSED: dict[str, Nodes] = {
    "ways of different strides": {
        "a": (AVG, "input"),
        "d": (rf.AvgPool(2), "input"),
        "s": (ADD, "a", "d"),
    },
    "a part of a concatenation beside what it reads": {
        "a": (AVG, "input"),
        "b": (rf.Scale(2.0), "a"),
        "c": (rf.Concat(), "a", "b"),
        "s": (ADD, "c", "a"),
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_recursion_does_not_say(name: str) -> None:
    assert of(REFUSED[name], (0,)) is None


def test_channels_of_the_input_that_part() -> None:
    nodes = {
        "input": (rf.Input(2),),
        "l": (rf.ChannelSlice(0, 1), "input"),
        "r": (rf.ChannelSlice(1, 2), "input"),
        "a": (AVG, "l"),
        "s": (ADD, "a", "r"),
    }
    graph = lower(rf.Network(nodes, "s", ndim=1))
    assert len(graph.planes_of["input"]) > 1
    assert paired_moments(graph, "s", (0,), "input") is None


def test_too_many_pairs_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {f"a{n}": (AVG, f"a{n - 1}" if n else "input") for n in range(6)}
    found = of(nodes, (0,))
    assert found is not None
    assert found.mass == pytest.approx(math.fsum(np.array(six_averages()) ** 2), rel=1e-13)
    monkeypatch.setattr(paired, "MOST_PAIRS", 5)
    assert of(nodes, (0,)) is None


def six_averages() -> list[float]:
    image = [1.0]
    for _ in range(6):
        image = np.convolve(image, [1 / 3] * 3).tolist()
    return image
