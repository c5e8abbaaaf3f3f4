"""All layers' fields with covariances in one pass: the same as one by one."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
from fastrf.kernels import load

import fastrf as rf
from fastrf.engine import upward_correlated
from fastrf.engine.coherence import coherence_of, coherence_of_all, is_correlated
from fastrf.engine.correlated import propagate_correlated
from fastrf.engine.covariance import is_relative
from fastrf.engine.transfer import transfer_function
from fastrf.engine.upward_correlated import carried, propagate_upward_correlated
from fastrf.lowering import PlaneGraph, lower

correlated_cases = pytest.importorskip("test_correlated")
CASES, TOLERANCE = correlated_cases.CASES, correlated_cases.TOLERANCE
AVG, CONV = correlated_cases.AVG, correlated_cases.CONV


def graph_of(name: str) -> tuple[PlaneGraph, str]:
    size, nodes = CASES[name]
    graph = lower(correlated_cases.network_of(nodes, len(size)))
    return graph, graph.output_node(None)


def serves(name: str) -> bool:
    graph, node = graph_of(name)
    free = transfer_function(graph, node, "input").obstacle is None
    return free and is_relative(graph, node, "input")


SERVED = [name for name in CASES if serves(name)]


def test_enough_is_served() -> None:
    assert len(SERVED) > 15
    assert {len(CASES[name][0]) for name in SERVED} == {1, 2, 3}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", SERVED)
def test_the_same_as_one_by_one(name: str, dtype: str) -> None:
    """Every map between input and output, uncorrelated ones too."""
    graph, node = graph_of(name)
    unit, options = (3, -2, 1)[: graph.ndim], {"kernels": load(), "dtype": dtype}
    function = transfer_function(graph, node, "input")
    found = dict(propagate_upward_correlated(function, unit, **options))
    assert list(found) == list(dict.fromkeys(op.node for op in graph.between(node, "input")))
    for at, own in found.items():
        single = propagate_correlated(graph, at, unit, "input", **options)
        assert own.image.dtype == dtype
        assert own.origin == single.origin
        np.testing.assert_allclose(own.pixels(), single.pixels(), rtol=2 * TOLERANCE[dtype])
        assert own.mass.log() == pytest.approx(single.mass.log(), abs=2 * TOLERANCE[dtype])


def dense(growth: int = 3) -> rf.Network:
    """Dense blocks with pools between them, and a stem whose pool overlaps."""
    nodes: dict[str, Any] = {
        "x": (rf.Input(3),),
        "stem": (rf.Conv(3, 2, padding=1, channels=8), "x"),
        "pool": (rf.AvgPool(3, 2, padding=1), "stem"),
    }
    below = "pool"
    for block in range(3):
        for layer in range(growth):
            at = f"{block}.{layer}"
            nodes |= {
                f"relu{at}": (rf.Activation("identity"), below),
                f"conv{at}": (rf.Conv(3, padding=1, channels=4), f"relu{at}"),
                f"cat{at}": (rf.Concat(), below, f"conv{at}"),
            }
            below = f"cat{at}"
        nodes |= {
            f"squeeze{block}": (rf.Conv(1, channels=8), below),
            f"down{block}": (rf.AvgPool(2), f"squeeze{block}"),
        }
        below = f"down{block}"
    return rf.Network(nodes)


@pytest.mark.parametrize("method", ["auto", "direct"])
def test_erf_of_all_layers(method: str) -> None:
    """One pass for the maps that need covariances, which the plan says."""
    net = dense()
    fields = rf.erf(net, layers="all", method=method, workers=1)
    graph = lower(net)
    for node, found in fields.items():
        needed = is_correlated(graph, node, "x")
        assert (found.plan.engine == "correlated") == needed
        single = rf.erf(net, node, method="direct", workers=1)
        assert (found.origin, found.exact) == (single.origin, single.exact)
        assert found.plan.operations == single.plan.operations
        np.testing.assert_allclose(found.image, single.image, rtol=1e-12)
        assert found.log_gain == pytest.approx(single.log_gain, abs=1e-12)
    assert fields["cat2.2"].plan.engine == "correlated"
    if method == "auto":
        assert "covariances count too" in fields["cat2.2"].plan.reason


def test_memory_is_foretold() -> None:
    """Of all fields, and of the images of all lags on the way."""
    net = dense(8)
    fields = rf.erf(net, layers="all", workers=1)
    foretold = sum(field.plan.memory for field in fields.values())
    del fields
    tracemalloc.start()
    try:
        rf.erf(net, layers="all", workers=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= foretold <= 1.35 * peak


def test_a_tail_is_cut_once() -> None:
    net, tail = dense(), 1e-3
    whole = rf.erf(net, layers="all", workers=1)
    for node, found in rf.erf(net, layers="all", tail=tail, workers=1).items():
        assert found.dropped_mass <= tail
        assert found.image.size <= whole[node].image.size
    assert found.dropped_mass > 0


def test_layers_that_move_no_pixel_share_an_image() -> None:
    fields = rf.erf(dense(), layers="all", workers=1)
    assert fields["squeeze2"].values is fields["cat2.2"].values
    assert fields["relu2.1"].values is fields["cat2.0"].values


def test_deep_gains_keep_their_range() -> None:
    """60 layers with a gain of 2^20 each between pools, in lines and in sums of them."""
    wide = rf.Conv(3, padding=1, gain=2.0**20)
    for ndim in (1, 2):
        layers = (AVG, *[wide] * 60, AVG, CONV, AVG)
        graph = lower(rf.Sequential(*layers, ndim=ndim))
        node = graph.output_node(None)
        function = transfer_function(graph, node, "input")
        found = dict(propagate_upward_correlated(function, (0,) * ndim, {node}, kernels=load()))
        single = propagate_correlated(graph, node, (0,) * ndim, "input", kernels=load())
        assert list(found) == [node]
        assert found[node].mass.log() == pytest.approx(single.mass.log(), rel=1e-13)
        np.testing.assert_allclose(found[node].pixels(), single.pixels(), rtol=1e-10)


def test_half_of_the_lags_that_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution a layer and carried lag, whatever lies above it."""
    counts: dict[str, int] = {}
    applied = upward_correlated._CorrelatedRise._applied

    def counted(self: Any, op: Any) -> Any:
        family = applied(self, op)
        counts[op.node] = len(family)
        return family

    monkeypatch.setattr(upward_correlated._CorrelatedRise, "_applied", counted)
    net = dense()
    graph = lower(net)
    node = graph.output_node(None)
    list(propagate_upward_correlated(transfer_function(graph, node, "x"), (0, 0), kernels=load()))
    coherence = coherence_of_all(graph, node, "x")
    for plane, lags in coherence.lags.items():
        whole = int(np.prod([len(axis) for axis in lags]))
        name = graph.planes[plane].node
        assert len(carried(coherence, plane, 2)) == (whole + 1) // 2
        assert counts.get(name, 1) <= (whole + 1) // 2
    # Lags ±1 on either axis below the pools between blocks, none above the last one.
    assert (counts["conv0.1"], counts["conv1.1"], counts["squeeze2"]) == (5, 5, 5)
    assert counts["down2"] == 1


@pytest.mark.parametrize("name", CASES)
def test_one_look_at_all_maps(name: str) -> None:
    """Which maps need covariances, found at once, is what is found of each of them."""
    size, nodes = CASES[name]
    for given in (None, size):
        try:
            graph = lower(correlated_cases.network_of(nodes, len(size)), given)
        except rf.errors.InputError:  # some borders have no meaning on the unbounded grid
            continue
        for node in graph.planes_of:
            matters = coherence_of(graph, node, "input").matters
            assert is_correlated(graph, node, "input") == matters
