"""How much Python a field takes: calls of functions, counted, not seconds.

A guard against slow code coming back: a loop over layers where one call did, a forecast that is
worked out anew, an image formed for a figure. Counts do not depend on the machine nor on what else
it does. The limits are a quarter above what was counted when they were written.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

import fastrf as rf

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
}


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("chain", 500),
        ("residual", 16_000),  # a thousand terms
        ("clipped", 500),
        ("resnet50", 280),
        ("unet", 270),
        ("volume", 520),
    ],
)
def test_the_same_network_again(name: str, limit: int) -> None:
    network, options = FIELDS[name]
    _ = rf.erf(network, workers=1, **options).image
    assert python_calls(lambda: rf.erf(network, workers=1, **options).image) <= limit


@pytest.mark.parametrize(
    ("name", "limit"), [("chain", 61), ("residual", 149), ("clipped", 333), ("resnet50", 206)]
)
def test_a_new_network(name: str, limit: int) -> None:
    """Calls per node, from the nodes to the pixels."""
    known, options = FIELDS[name]
    _ = rf.erf(known, workers=1, **options).image  # compiles
    network = fresh(known)
    calls = python_calls(lambda: rf.erf(network, workers=1, **options).image)
    assert calls / len(network) <= limit


@pytest.mark.parametrize(("name", "limit"), [("resnet50", 100), ("unet", 202)])
def test_all_layers(name: str, limit: int) -> None:
    """Calls per field."""
    network, options = FIELDS[name]
    fields = rf.erf(network, layers="all", workers=1, **options)
    calls = python_calls(lambda: rf.erf(network, layers="all", workers=1, **options))
    assert calls / len(fields) <= limit


def test_a_chain_is_worked_on_as_one() -> None:
    """Ten times the layers take hardly more calls, once the network is known."""
    counts = []
    for layers in (LAYERS, 10 * LAYERS):
        network = rf.zoo.plain(layers, 3)
        _ = rf.erf(network, workers=1).std
        counts.append(python_calls(lambda network=network: rf.erf(network, workers=1).std))
    assert counts[1] <= 1.1 * counts[0]
