"""The factored engine: profiles alone, images from their factors, whole calls; and the floor.

    pytest bench/bench_factored.py --benchmark-group-by=group --benchmark-columns=min,median

Networks are lowered outside the timing. The floor is the time to write one value into every pixel
of a fresh array with as many threads; read the rest as ratios to it within one run.
"""

from __future__ import annotations

import numpy as np
import pytest
from fastrf.kernels import load

import fastrf as rf
from fastrf import metrics
from fastrf.engine.factored import factor, propagate_factored
from fastrf.engine.profiles import Factor, profile
from fastrf.engine.threads import Threads
from fastrf.lowering import lower
from fastrf.network import as_network

WORKERS = (1, 2)


def ends(net):
    graph = lower(as_network(net))
    node, source = graph.output_node(None), graph.input_node(None)
    return graph, node, (0,) * graph.ndim, source


def residual(blocks):
    return rf.Sequential(*[rf.Residual(rf.Conv(3, padding=1))] * blocks)


NETWORKS = {
    "plain(1000, 3)": lambda: rf.zoo.plain(1000, 3),
    "residual(1000)": lambda: residual(1000),
}


@pytest.mark.parametrize("depth", [1000, 10_000])
@pytest.mark.parametrize("kernel", [3, 7, 31])
def test_uniform_profile(benchmark, depth, kernel):
    benchmark.group = "profile of equal uniform layers"
    benchmark(profile, {Factor(kernel, 1): depth}, load())


@pytest.mark.parametrize("depth", [1000, 10_000])
def test_tapped_profile(benchmark, depth):
    benchmark.group = "profile of equal layers with taps"
    taps = (np.array([1.0, 2.0, 1.0]) / 4).tobytes()
    benchmark(profile, {Factor(3, 1, taps): depth}, load())


def test_profile_of_a_strided_network(benchmark):
    benchmark.group = "profile of a strided network"
    runs = {Factor(7, 1): 1, Factor(3, 2): 300, Factor(3, 4): 300, Factor(3, 8): 300}
    benchmark(profile, runs, load())


@pytest.mark.parametrize("name", NETWORKS)
def test_factors_and_moments(benchmark, name):
    """Everything that needs no pixel: profiles, mean, deviation, covariance, kurtosis."""
    benchmark.group = f"{name}: factors and moments"
    where = ends(NETWORKS[name]())

    def run():
        image = factor(*where, kernels=load()).image
        moments = metrics.mean, metrics.std, metrics.covariance, metrics.kurtosis
        return image.profile(0), [measure(image) for measure in moments]

    benchmark(run)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_forming_the_image(benchmark, name, workers):
    benchmark.group = f"{name}: pixels"
    image = factor(*ends(NETWORKS[name]()), kernels=load()).image
    benchmark(image.form, workers=workers)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_writing_fresh_pages(benchmark, name, workers):
    benchmark.group = f"{name}: pixels"
    shape = factor(*ends(NETWORKS[name]()), kernels=load()).image.shape

    def run():
        out = np.empty(shape)
        with Threads(workers) as threads:
            threads.cut(shape[0], out.size, lambda a, b: out[a:b].fill(1.0))

    benchmark(run)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("name", NETWORKS)
def test_whole_call(benchmark, name, workers):
    benchmark.group = f"{name}: whole call, but for lowering"
    where = ends(NETWORKS[name]())
    benchmark(propagate_factored, *where, kernels=load(), workers=workers)
