"""Covariances beside variances alone: what exactness costs, and what finding out costs.

    pytest bench/bench_correlated.py --benchmark-group-by=group --benchmark-columns=min,rounds

``variances`` is the direct engine, layer by layer, ``in one call`` the same where it has a kernel
for that, ``covariances`` the engine that carries lags; `extra_info` has the most lags of a plane.
``plan`` is the search for lags and pairs, once a graph. Processor time of one core; read the
figures as ratios within one run.
"""

from __future__ import annotations

import time

import pytest
from fastrf.kernels import load

import fastrf as rf
from fastrf.engine import direct
from fastrf.engine.coherence import coherence_of
from fastrf.engine.correlated import propagate_correlated
from fastrf.engine.transfer import transfer_function
from fastrf.engine.upward import propagate_upward
from fastrf.engine.upward_correlated import propagate_upward_correlated
from fastrf.lowering import lower

CONV, AVG = rf.Conv(3, padding=1), rf.AvgPool(3, 1, padding=1)

NETWORKS = {
    "unet, bilinear": ('unet(4, 2, up="linear")', 256),
    "inception_v3": ("inception_v3", 299),
    "densenet121": ("densenet121", 224),
    "two pools near the output": (rf.Sequential(*[CONV] * 50, AVG, CONV, AVG, CONV), 256),
    "blur-pools": (
        rf.Sequential(*[layer for _ in range(4) for layer in (CONV, rf.Filter(3, 2, padding=1))]),
        256,
    ),
    "resnet50, none needed": ("resnet50", 224),
    "plain(1000, 3), none needed": ("plain(1000, 3)", None),
}

pytestmark = pytest.mark.benchmark(timer=time.thread_time, min_rounds=5, max_time=0.5)


def ends(name):
    network, size = NETWORKS[name]
    graph = lower(rf.zoo.get(network) if isinstance(network, str) else network, size)
    node = graph.output_node(None)
    return graph, node, graph.unit_index(node, "center"), graph.input_node(None)


WAYS = {
    "variances": (direct.propagate, {"at_once": False}),
    "in one call": (direct.propagate, {"at_once": True}),
    "covariances": (propagate_correlated, {}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETWORKS)
def test_field(benchmark, name, way):
    benchmark.group = name
    where = ends(name)
    run, options = WAYS[way]
    benchmark.extra_info["lags"] = coherence_of(where[0], where[1], where[3]).widest
    run(*where, kernels=load(), **options)  # compiles and plans
    benchmark(lambda: run(*where, kernels=load(), **options))


@pytest.mark.parametrize("way", ["variances", "covariances"])
def test_all_layers(benchmark, way):
    """The fields of all maps of densenet121 in one pass."""
    benchmark.group = "densenet121, all layers, unbounded"
    graph = lower(rf.zoo.get("densenet121"))
    function = transfer_function(graph, graph.output_node(None), graph.input_node(None))
    run = {"variances": propagate_upward, "covariances": propagate_upward_correlated}[way]
    for _ in range(2):  # compiles and plans
        dict(run(function, (0, 0), kernels=load()))
    benchmark(lambda: dict(run(function, (0, 0), kernels=load())))


@pytest.mark.parametrize("name", NETWORKS)
def test_plan(benchmark, name):
    benchmark.group = f"{name}: plan"
    graph, node, _, source = ends(name)

    def plan():
        graph.derived.clear()
        coherence_of(graph, node, source)

    benchmark(plan)
