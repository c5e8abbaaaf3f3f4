"""Tilted windows beside the direct engine, both right pixel by pixel; and what a window costs.

    pytest bench/bench_tilted.py --benchmark-group-by=group --benchmark-columns=min,median

Networks are lowered outside the timing. `extra_info` holds the number of windows and the largest
difference of a pixel, relative to the direct engine's.
"""

from __future__ import annotations

import numpy as np
import pytest
from fastrf.kernels import load

import fastrf as rf
from fastrf import zoo
from fastrf.engine import tilted
from fastrf.engine.direct import propagate
from fastrf.engine.tilted.search import Search
from fastrf.lowering import lower
from fastrf.network import as_network

RING = [[(x - 2) ** 2 + (y - 2) ** 2 + 1 for x in range(5)] for y in range(5)]


def different_gains(blocks):
    """Residual blocks of which no two are alike, all as symmetric as their kernel."""
    gains = np.random.default_rng(0).uniform(0.5, 2, blocks).tolist()
    return rf.Sequential(*[rf.Residual(rf.Conv(3, padding=1, gain=g)) for g in gains])


def different_taps(blocks):
    """Residual blocks with taps of their own, without any symmetry: the worst case."""
    taps = np.random.default_rng(0).uniform(0.2, 1.2, (blocks, 3, 3))
    return rf.Sequential(*[rf.Residual(rf.Conv(3, padding=1, taps=t)) for t in taps])


NETWORKS = {
    "residual(1000)": lambda: zoo.residual(1000),
    "1000 different gains": lambda: different_gains(1000),
    "200 different taps": lambda: different_taps(200),
    "general taps, 200 layers": lambda: rf.Sequential(*[rf.Conv(5, padding=2, taps=RING)] * 200),
    "densenet121": zoo.densenet121,
    "plain(1000, 3, ndim=1)": lambda: zoo.plain(1000, 3, 1),
    "residual(60, ndim=3)": lambda: zoo.residual(60, ndim=3),
}


def ends(net):
    graph = lower(as_network(net))
    return graph, graph.output_node(None), (0,) * graph.ndim, graph.input_node(None)


def fresh(where):
    """The same graph with nothing derived: what a first call meets."""
    where[0].derived.clear()
    return where


def difference(found, expected):
    """Largest difference of a pixel, relative to it, where both have one."""
    low = np.maximum(found.origin, expected.origin)
    high = np.minimum(
        np.add(found.origin, found.image.shape), np.add(expected.origin, expected.image.shape)
    )
    one, other = (
        p.image[tuple(slice(a - o, b - o) for a, b, o in zip(low, high, p.origin, strict=True))]
        for p in (found, expected)
    )
    seen = other > 2 * np.finfo(np.float64).smallest_normal
    return float((np.abs(one - other)[seen] / other[seen]).max())


@pytest.mark.parametrize("name", NETWORKS)
def test_direct(benchmark, name):
    benchmark.group = name
    where = ends(NETWORKS[name]())
    benchmark.pedantic(lambda: propagate(*fresh(where), kernels=load()), rounds=2, warmup_rounds=1)


@pytest.mark.parametrize("name", NETWORKS)
def test_tilted(benchmark, monkeypatch, name):
    benchmark.group = name
    where = ends(NETWORKS[name]())
    counts = []
    compute = Search._compute

    def counted(search, theta):
        counts.append(len(theta))
        compute(search, theta)

    monkeypatch.setattr(Search, "_compute", counted)
    found = tilted.propagate_tilted(*where, kernels=load())
    benchmark.extra_info["windows"] = sum(counts)
    benchmark.extra_info["difference"] = difference(found, propagate(*where, kernels=load()))
    seconds = tilted.of_tilted(*where, np.dtype("float64"), None, 1e-10).seconds(1)
    benchmark.extra_info["forecast"] = seconds
    benchmark.pedantic(
        lambda: tilted.propagate_tilted(*fresh(where), kernels=load()), rounds=2, warmup_rounds=0
    )
