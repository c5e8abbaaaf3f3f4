"""The recompressed engine: whole fields beside the direct engine's, and the pieces of its forecast.

    pytest bench/bench_recompressed.py --benchmark-group-by=group --benchmark-columns=min,median

Networks are lowered outside the timing, and have been seen before. LAPACK should have one thread
(OPENBLAS_NUM_THREADS=1); read the rest as ratios within one run.
"""

from __future__ import annotations

import numpy as np
import pytest
from fastrf.kernels import load

import fastrf as rf
from bench.cases import general_taps
from fastrf.engine.direct import propagate
from fastrf.engine.recompressed import of_recompressed, propagate_recompressed
from fastrf.engine.recompressed.lowrank import Terms, reduced
from fastrf.engine.recompressed.maps import axis_operator
from fastrf.lowering import lower
from fastrf.maps import Window
from fastrf.network import as_network


def residual(blocks, kernels=(3,), ndim=2):
    """Residual blocks of one convolution each, whose kernels take turns."""
    layers = [rf.Conv(kernels[i % len(kernels)], padding="same") for i in range(blocks)]
    return rf.Sequential(*map(rf.Residual, layers), ndim=ndim)


def behind_a_head(blocks):
    """Equal blocks whose image begins with several terms, after a stride too."""
    head = [rf.Residual(rf.Conv(7, padding=3)), rf.Conv(3, stride=2, padding=1)]
    return rf.Sequential(residual(blocks), *head, residual(blocks))


FIELDS = {
    "residual(1000) at 224, border": (lambda: rf.zoo.residual(1000), 224, (0, 112)),
    "residual(1000) at 224, centre": (lambda: rf.zoo.residual(1000), 224, "center"),
    "residual(200) at 1024": (lambda: rf.zoo.residual(200), 1024, "center"),
    "two stages of 300 blocks at 224": (lambda: behind_a_head(300), 224, "center"),
    "kernels 3 and 5 in turn, 50 blocks at 224": (lambda: residual(50, (3, 5)), 224, "center"),
    "kernels 3 and 5 in turn, 50 blocks at 768": (lambda: residual(50, (3, 5)), 768, "center"),
    "resnet50 at 224": (rf.zoo.resnet50, 224, "center"),
    "resnet50 at 896": (rf.zoo.resnet50, 896, "center"),
    "densenet121 at 224": (rf.zoo.densenet121, 224, "center"),
    "unet(4, 2) at 256": (lambda: rf.zoo.unet(4, 2), 256, "center"),
    "general taps at 224": (general_taps, 224, "center"),
    "3-D residual, 200 blocks at 96": (lambda: residual(200, ndim=3), 96, "center"),
    "3-D, kernels 3 and 5 in turn, 60 blocks at 200": (
        lambda: residual(60, (3, 5), ndim=3),
        200,
        "center",
    ),
}

ENGINES = {
    "direct": lambda *where: propagate(*where, kernels=load()),
    "recompressed": lambda *where: propagate_recompressed(*where, kernels=load(), tol=1e-10),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", FIELDS)
def test_field(benchmark, name, engine):
    build, size, unit = FIELDS[name]
    graph = lower(as_network(build()), size)
    node, source = graph.output_node(None), graph.input_node(None)
    where = graph, node, graph.unit_index(node, unit), source
    benchmark.group = name
    forecast = of_recompressed(*where, np.dtype(np.float64), None, 1e-12)
    benchmark.extra_info["forecast"] = forecast.seconds(1)
    ENGINES[engine](*where)
    benchmark.pedantic(ENGINES[engine], where, rounds=3, iterations=1)


def smooth_terms(pixels, count):
    """Gaussians of many widths: terms as they pile up in a network."""
    offsets = np.arange(pixels) - pixels / 2
    widths = np.linspace(4, pixels / 8, count)
    factor = np.exp(-((offsets[:, None] / widths) ** 2) / 2)
    return Terms((factor, factor), np.ones(count))


@pytest.mark.parametrize("count", [64, 96, 128, 1000])
@pytest.mark.parametrize("pixels", [56, 224, 768])
def test_reduction(benchmark, pixels, count):
    benchmark.group = f"reduction at {pixels} × {pixels}"
    benchmark(reduced, smooth_terms(pixels, count), 0.0)


@pytest.mark.parametrize("terms", [1, 16, 64])
@pytest.mark.parametrize("pixels", [448, 2048])
def test_power(benchmark, pixels, terms):
    """One layer of all terms, of two axes of half the pixels each."""
    benchmark.group = f"one layer of {pixels} pixels"
    span = (0, pixels)
    matrix = axis_operator(Window(3, lo=1), None, span, span, pixels).matrix
    benchmark(matrix.__matmul__, np.ones((pixels, terms)))


@pytest.mark.parametrize("count", [16, 256, 2000])
def test_forming(benchmark, count):
    benchmark.group = "pixels of 224 × 224"
    benchmark(smooth_terms(224, count).form)
