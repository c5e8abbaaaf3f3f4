"""Small images in one call: the direct engine's programs, against its walk layer by layer.

    pytest bench/bench_small.py --benchmark-group-by=group --benchmark-columns=min,rounds

``one call`` and ``layers`` are the engine alone, on a graph that it has seen; ``translation`` is
what the first call pays in Python. ``test_long_windows`` has the lengths at which doubled windows
begin to pay (``_LONG``), ``test_one_call_pays`` the sizes at which one call stops to
(``TILES_IN_ONE_CALL``). Processor time of one core, so that other programs count little; read the
figures as ratios within one run. What compiling the kernel costs, once, is seen by

    python -m bench.bench_small
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

import pytest
from fastrf.kernels import load

import fastrf as rf
from fastrf.engine import direct, program
from fastrf.engine.program import program_of
from fastrf.lowering import lower

NETWORKS = {
    "resnet50": ("resnet50", 224, "center"),
    "densenet121": ("densenet121", 224, "center"),
    "unet": ("unet(4, 2)", 256, "center"),
    "wavenet": ("wavenet(3)", None, "center"),
    "chain-clipped": ("plain(1000, 3)", 128, (0, 0)),
    "chain-1d": ("plain(1000, 3, ndim=1)", None, "center"),
}

pytestmark = pytest.mark.benchmark(timer=time.thread_time, min_rounds=5, max_time=0.5)


def engine(network, size, unit="center", tiles=program.TILES_IN_ONE_CALL, dtype="float64"):
    """A call of the direct engine, one thread, on images of up to so many tiles in one call."""
    graph = lower(network, size)
    node = graph.output_node(None)
    where = (graph, node, graph.unit_index(node, unit), "input")

    def call():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(program, "TILES_IN_ONE_CALL", tiles)
            return direct.propagate(*where, kernels=load(), dtype=dtype)

    call()  # compiles, translates and plans
    return call


WAYS = {"one call": program.TILES_IN_ONE_CALL, "layers": 0}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NETWORKS)
def test_network(benchmark, name, way, dtype):
    benchmark.group = f"{name} {dtype}"
    network, size, unit = NETWORKS[name]
    benchmark(engine(rf.zoo.get(network), size, unit, WAYS[way], dtype))


@pytest.mark.parametrize("name", NETWORKS)
def test_translation(benchmark, name):
    benchmark.group = f"{name} translation"
    graph = lower(rf.zoo.get(NETWORKS[name][0]), NETWORKS[name][1])

    def translate():
        graph.derived.clear()
        program_of(graph, "input")

    benchmark(translate)


@pytest.mark.parametrize("kernel", [7, 9, 11, 13, 15, 17, 31])
def test_long_windows(benchmark, kernel):
    benchmark.group = "long windows"
    layers = [rf.Conv(kernel, padding=kernel // 2)] * 20
    benchmark(engine(rf.Sequential(*layers, ndim=2), 128))


@pytest.mark.parametrize("way", {"one call": 1 << 10, "layers": 0}.items())
@pytest.mark.parametrize("size", [64, 128, 256, 512, 1024])
def test_one_call_pays(benchmark, size, way):
    benchmark.group = f"strided {size}"
    layers = [rf.Conv(3, stride=2, padding=1), *[rf.Conv(3, padding=1)] * 3] * 3
    benchmark(engine(rf.Sequential(*layers, ndim=2), size, tiles=way[1]))


COLD = """
import time
import numpy as np
import fastrf as rf
rf.erf(rf.Sequential(rf.Conv(1)), method="factored")  # imports, Numba among them
for dtype in ("float64", "float32", "float64"):
    start = time.thread_time()
    rf.erf(rf.Sequential(rf.Conv(3)), input_size=9, method="direct", dtype=dtype)
    print(f"{dtype}: {time.thread_time() - start:.3g} s")
"""


def main() -> None:
    """Compiles in an empty cache, then loads from it."""
    with tempfile.TemporaryDirectory() as cache:
        for state in ("cold", "cached"):
            print(state)
            subprocess.run(
                [sys.executable, "-c", COLD],
                check=True,
                env={**os.environ, "NUMBA_CACHE_DIR": cache},
            )


if __name__ == "__main__":
    main()
