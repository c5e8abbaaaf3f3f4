"""How much work a field takes: calls of functions and of kernels, bytes; counted, not seconds.

A guard against slow code coming back: a loop over layers where one call did, a forecast that is
worked out anew, an image formed for a figure. Counts do not depend on the machine nor on what else
it does. The limits lie a tenth to a quarter above what was counted when they were written.
"""

from __future__ import annotations

import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fastrf.kernels import load

import fastrf as rf
from fastrf.engine import ENGINES
from fastrf.lowering import lower

LAYERS = 1000


def python_calls(run: Callable[[], Any]) -> int:
    """Calls of functions written in Python, on this thread."""
    count = 0

    def seen(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(seen)
    try:
        run()
    finally:
        sys.setprofile(before)
    return count


def fresh(network: rf.Network) -> rf.Network:
    """The network as one that fastrf has not seen."""
    return rf.Network(
        network.nodes.values(), network.outputs, ndim=network.ndim, endpoints=network.endpoints
    )


FIELDS = {
    "chain": (rf.zoo.plain(LAYERS, 3), {}),
    "residual": (rf.zoo.residual(LAYERS, convs=1), {}),
    "clipped": (rf.zoo.plain(LAYERS, 3), {"input_size": 128, "unit": (0, 0)}),
    "resnet50": (rf.zoo.resnet50(), {"input_size": 224}),
    "unet": (rf.zoo.unet(4, 2), {"input_size": 256}),
    "volume": (rf.zoo.plain(30, 3, ndim=3), {}),
    "smoothed": (  # 81 lags an axis, and what borders lose of each
        rf.Sequential(*[rf.Conv(3, padding=1), rf.AvgPool(3, stride=1, padding=1)] * 20),
        {"input_size": 32},
    ),
    "branches": (  # each of them with a pool beside convolutions, as in Inception
        rf.Sequential(
            *[
                rf.Parallel(
                    [rf.AvgPool(3, stride=1, padding=1), rf.Conv(1)],
                    [rf.Conv(1), rf.Activation(), rf.Conv(3, padding=1), rf.Activation()],
                    rf.Conv(1),
                    merge="concat",
                )
            ]
            * 6
        ),
        {"input_size": 24},
    ),
}


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("chain", 500),
        ("residual", 16_000),  # a thousand terms
        ("clipped", 560),
        ("resnet50", 300),
        ("unet", 300),
        ("volume", 520),
    ],
)
def test_the_same_network_again(name: str, limit: int) -> None:
    network, options = FIELDS[name]
    _ = rf.erf(network, workers=1, **options).image
    assert python_calls(lambda: rf.erf(network, workers=1, **options).image) <= limit


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("chain", 75),
        ("residual", 165),
        ("clipped", 345),
        ("resnet50", 225),
        ("smoothed", 2_600),
        ("branches", 860),
    ],
)
def test_a_new_network(name: str, limit: int) -> None:
    """Calls per node, from the nodes to the pixels."""
    known, options = FIELDS[name]
    _ = rf.erf(known, workers=1, **options).image  # compiles
    network = fresh(known)
    calls = python_calls(lambda: rf.erf(network, workers=1, **options).image)
    assert calls / len(network) <= limit


@pytest.mark.parametrize(("name", "limit"), [("resnet50", 107), ("unet", 120), ("branches", 1_450)])
def test_all_layers(name: str, limit: int) -> None:
    """Calls per field."""
    network, options = FIELDS[name]
    fields = rf.erf(network, layers="all", workers=1, **options)
    calls = python_calls(lambda: rf.erf(network, layers="all", workers=1, **options))
    assert calls / len(fields) <= limit


def test_all_layers_of_a_new_network() -> None:
    """Calls per field where gradients correlate: what holds for all maps is worked out once."""
    known, options = FIELDS["branches"]
    rf.erf(known, layers="all", workers=1, **options)  # compiles
    network = fresh(known)
    calls = python_calls(lambda: rf.erf(network, layers="all", workers=1, **options))
    assert calls / len(network) <= 3_150


def test_a_chain_is_worked_on_as_one() -> None:
    """Ten times the layers take hardly more calls, once the network is known."""
    counts = []
    for layers in (LAYERS, 10 * LAYERS):
        network = rf.zoo.plain(layers, 3)
        _ = rf.erf(network, workers=1).std
        counts.append(python_calls(lambda network=network: rf.erf(network, workers=1).std))
    assert counts[1] <= 1.1 * counts[0]


# --- engines ----------------------------------------------------------------------------------


class Counted:
    """A namespace of kernels that counts their calls."""

    def __init__(self, kernels: Any) -> None:
        self.kernels, self.calls = kernels, 0

    def __getattr__(self, name: str) -> Any:
        own = getattr(self.kernels, name)
        if not callable(own):
            return own

        def called(*arguments: Any, **options: Any) -> Any:
            self.calls += 1
            return own(*arguments, **options)

        return called


def blocks(*kernels: int, ndim: int = 2) -> rf.Network:
    layers = [rf.Conv(k, padding=k // 2) for k in kernels]
    return rf.Sequential(*map(rf.Residual, layers), ndim=ndim)


GIVEN = [np.random.default_rng(0).standard_normal((8, n, 3, 3)) for n in (3, 8, 8, 8, 8)]
SMOOTHED = rf.Sequential(*[rf.Conv(3, padding=1), rf.AvgPool(3, stride=1, padding=1)] * 4)
SHARPENED = rf.Sequential(*[rf.Conv(3, padding=1), rf.Upsample(2, mode="cubic")] * 2)

WEIGHTED = rf.Sequential(
    rf.Input(3),
    *[rf.Conv(3, padding=1, channels=8, weights=weights) for weights in GIVEN],
)

WORK: dict[str, tuple[str, rf.Network, int | None, dict[str, Any], tuple[int, int, int]]] = {
    "layer by layer": ("direct", rf.zoo.resnet50(), 224, {"at_once": False}, (14_524, 69, 2_329)),
    "in one call": ("direct", rf.zoo.resnet50(), 224, {"at_once": True}, (34, 1, 953)),
    "covariances": ("correlated", SMOOTHED, 48, {}, (2_529, 22, 399)),
    "covariances that cancel": ("cancelling", SHARPENED, 24, {}, (2_016, 37, 158)),
    "covariances of each axis": ("projected", SMOOTHED, 48, {}, (1_745, 1, 17)),
    "chain": ("factored", rf.zoo.plain(200, 3), None, {}, (164, 1, 1_280)),
    "residual": ("factored", rf.zoo.residual(100), None, {}, (1_510, 3, 1_732)),
    "powers": ("powers", rf.zoo.residual(100), 64, {}, (3_303, 0, 611)),
    "volume of powers": ("powers", blocks(*[3] * 40, ndim=3), 24, {}, (923, 0, 160)),
    "reduced": ("recompressed", blocks(*[3, 5] * 10), 64, {"tol": 1e-10}, (8_556, 0, 636)),
    "volume": ("recompressed", blocks(*[3, 5] * 6, ndim=3), 24, {"tol": 1e-10}, (10_042, 0, 2_211)),
    "one FFT": ("spectral", blocks(*[1, 3, 5, 7] * 10), None, {"tol": 1e-12}, (3_190, 0, 336)),
    "weights": ("channelwise", WEIGHTED, 32, {}, (872, 0, 38)),
    "windows": ("tilted", blocks(*[3] * 20), None, {"tol": 1e-10}, (3_207, 0, 260)),
}
"""Engine, network, input size, options, and what was counted: calls of functions written in Python,
calls of kernels, kilobytes allocated at the fullest moment."""


def counted(name: str) -> tuple[int, int, int]:
    engine, network, size, options, _ = WORK[name]
    graph = lower(network, size)
    node = graph.output_node(None)
    where = (graph, node, graph.unit_index(node, "center"), graph.input_node(None))
    kernels = Counted(load("cpu"))

    def run() -> None:
        ENGINES[engine].run(*where, kernels=kernels, workers=1, **options).pixels()

    run()  # compiles, and works out what stays with the graph
    calls, kernels.calls = python_calls(run), 0
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        run()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return calls, kernels.calls, (peak - before) // 1024


def test_every_engine_is_guarded() -> None:
    assert {engine for engine, *_ in WORK.values()} == set(ENGINES)


@pytest.mark.parametrize("name", WORK)
def test_what_an_engine_takes(name: str) -> None:
    """At most a quarter more than was counted, of small numbers a few."""
    for found, limit in zip(counted(name), WORK[name][-1], strict=True):
        assert found <= 1.25 * limit + 16
