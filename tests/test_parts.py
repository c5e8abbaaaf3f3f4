"""What a field is does not depend on the layers above its map, nor on what was asked before.

Covariances, slopes and gains of lags are worked out once for all maps of a network: the field of
each has to be that of the network which ends there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from test_correlated import CASES, network_of

import fastrf as rf
from fastrf.engine.scaled import Scaled
from fastrf.engine.stack import Stack

C, A, R = rf.Conv(3, padding=1, channels=4), rf.AvgPool(3, stride=1, padding=1), rf.Activation()


def branches() -> rf.Network:
    """Pools beside convolutions, as in Inception, behind activations whose slopes are known and
    under a global pool; a smoothed branch that leads nowhere else, above."""
    nodes: dict[str, Any] = {"x": (rf.Input(4),), "c": (C, "x"), "n": (rf.Norm(), "c")}
    at = "n"
    for i in range(3):
        nodes |= {
            f"r{i}": (R, at),
            f"a{i}": (A, f"r{i}"),
            f"s{i}": (rf.Conv(1, channels=4), f"a{i}"),
            f"d{i}": (C, f"r{i}"),
            f"m{i}": (rf.Concat(), f"s{i}", f"d{i}"),
            f"e{i}": (rf.Conv(3, 1 + i % 2, padding=1, channels=4), f"m{i}"),
        }
        at = f"e{i}"
    nodes |= {
        "side": (rf.AvgPool(5, stride=1, padding=2), "e1"),
        "r side": (R, "side"),
        "out": (rf.GlobalPool("avg"), at),
    }
    return rf.Network(nodes, ("out", "r side"))


def networks() -> Iterator[tuple[str, rf.Network, Any]]:
    yield "branches", branches(), 12
    yield "branches of drawn weights", branches().initialised("he"), 12
    for name, (size, nodes) in CASES.items():
        yield name, network_of(nodes, len(size)), size


def up_to(net: rf.Network, node: str) -> rf.Network:
    """The part of a network that leads to a node."""
    nodes, wanted = net.bound.nodes, [node]
    for name in wanted:
        wanted += [source for source in nodes[name].inputs if source not in wanted]
    return rf.Network([nodes[n] for n in nodes if n in wanted], node, ndim=net.ndim)


NETWORKS = {name: (net, size) for name, net, size in networks()}


@pytest.mark.parametrize("name", NETWORKS)
def test_of_the_whole_and_of_the_part_that_leads_there(name: str) -> None:
    net, size = NETWORKS[name]
    fields: dict[str, rf.ERF] = {}
    for output in net.outputs:
        fields |= rf.erf(net, output, input_size=size, layers="all", method="direct", workers=1)
        fields[output] = rf.erf(net, output, input_size=size, method="direct", workers=1)
    for node, found in fields.items():
        alone = rf.erf(up_to(net, node), node, input_size=size, method="direct", workers=1)
        assert (found.origin, found.inexact) == (alone.origin, alone.inexact)
        # Others are about networks.
        slopes = [[a for a in f.assumptions if "neighbouring" in a] for f in (found, alone)]
        assert slopes[0] == slopes[1]
        assert found.log_gain == pytest.approx(alone.log_gain, abs=1e-12)
        assert found.lost_mass == pytest.approx(alone.lost_mass, abs=1e-12)
        np.testing.assert_allclose(found.image, alone.image, atol=1e-12 * alone.image.max())


@pytest.mark.parametrize("order", ["from the input up", "from the output down"])
def test_what_was_asked_before(order: str) -> None:
    """Every bit, and what the plan says of it."""
    net = branches()
    fields = rf.erf(net, "out", input_size=12, layers="all", method="direct", workers=1)
    net = branches()
    for node in list(fields)[:: 1 if order == "from the input up" else -1]:
        found, alone = fields[node], rf.erf(net, node, input_size=12, method="direct", workers=1)
        if found.plan.engine != "correlated" or "another gain" in found.plan.reason:
            continue
        np.testing.assert_array_equal(found.image, alone.image)
        figures = ("log_gain", "lost_mass", "inexact", "assumptions")
        assert all(getattr(found, f) == getattr(alone, f) for f in figures)
        assert (found.plan.seconds, found.plan.memory) == pytest.approx(
            (alone.plan.seconds, alone.plan.memory), rel=1e-12
        )


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_lags_that_are_not_held(ndim: int) -> None:
    """R_−τ[i] = R_τ[i − τ], of any covariances."""
    rng, count = np.random.default_rng(ndim), 4
    shape = (count,) * ndim
    root = rng.standard_normal((count**ndim, 3))
    both = (root @ root.T).reshape(*shape, *shape)
    lags = ((-2, 0, 2), (-1, 0, 1), (-3, 0, 3))[:ndim]

    def covariances(own: tuple[tuple[int, ...], ...]) -> np.ndarray:
        found = np.zeros((*map(len, own), *shape))
        for at in np.ndindex(*map(len, own)):
            for i in np.ndindex(*shape):
                partner = tuple(p + own[a][n] for a, (p, n) in enumerate(zip(i, at, strict=True)))
                if all(0 <= p < count for p in partner):
                    found[(*at, *i)] = both[(*i, *partner)]
        return found

    held = ((0, 2), *lags[1:])
    stack = Stack(covariances(held), held, (0,) * ndim, Scaled.of(1.0), math.log2(both.max()))
    whole = stack.whole(np)
    assert whole.lags == lags
    np.testing.assert_array_equal(whole.array, covariances(lags))
