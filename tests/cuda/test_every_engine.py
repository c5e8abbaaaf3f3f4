"""Every engine of the registry on arrays of a device, against itself on the CPU.

The other files here hold single engines to more cases; this one sees to it that none is left out.

Tolerances: two results of one engine differ by what either may be off, its `tol` of the peak where
it is right to a share of the peak, and a few roundings a layer otherwise.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fastrf.kernels import load
from test_engines_direct import gpu as machine
from test_engines_direct import xp as device_arrays

import fastrf as rf
from fastrf.arrays import on_host
from fastrf.engine import ENGINES
from fastrf.lowering import lower

gpu, xp = machine, device_arrays


def blocks(*kernels: int, ndim: int = 2) -> rf.Network:
    return rf.Sequential(*(rf.Residual(rf.Conv(k, padding=k // 2)) for k in kernels), ndim=ndim)


def weighted(ndim: int) -> rf.Network:
    rng = np.random.default_rng(ndim)
    weights = [rng.standard_normal((4, n, *[3] * ndim)) for n in (3, 4, 4)]
    convs = [rf.Conv(3, padding=1, channels=4, weights=w) for w in weights]
    middle = rf.AvgPool(2, stride=2), rf.Norm()
    return rf.Sequential(rf.Input(3), convs[0], convs[1], *middle, convs[2], ndim=ndim)


SMOOTHED = rf.Sequential(*[rf.Conv(3, padding=1), rf.AvgPool(3, stride=1, padding=1)] * 2, ndim=2)
SHARPENED = rf.Sequential(rf.Conv(3, padding=1), rf.Upsample(2, mode="cubic"), ndim=2)

CASES: dict[str, tuple[str, Any, Any, dict[str, Any]]] = {
    "direct": ("direct", blocks(3, 5), 12, {"at_once": False}),
    "correlated": ("correlated", SMOOTHED, 12, {}),
    "cancelling": ("cancelling", SHARPENED, 8, {}),
    "projected": ("projected", SMOOTHED, 12, {}),
    "factored": ("factored", blocks(3, 3, 5), None, {}),
    "powers": ("powers", blocks(3, 3, 3, 3), 12, {}),
    "volume of powers": ("powers", blocks(3, 3, 3, ndim=3), 8, {}),
    "recompressed": ("recompressed", blocks(3, 5, 3, 5), 16, {"tol": 1e-10}),
    "volume": ("recompressed", blocks(3, 5, 3, 5, ndim=3), 8, {"tol": 1e-10}),
    "spectral": ("spectral", blocks(1, 3, 5), None, {"tol": 1e-12}),
    "tilted": ("tilted", blocks(3, 3, 3), None, {"tol": 1e-10}),
    "channelwise": ("channelwise", weighted(2), 12, {}),
    "channelwise in 1-D": ("channelwise", weighted(1), 12, {}),
    "channelwise in 3-D": ("channelwise", weighted(3), 6, {}),
}


def test_no_engine_is_left_out() -> None:
    assert {engine for engine, *_ in CASES.values()} == set(ENGINES)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_cpu(xp: ModuleType, name: str, dtype: str) -> None:
    engine, network, size, options = CASES[name]
    graph = lower(network, size)
    node = graph.output_node(None)
    place = (graph, node, graph.unit_index(node, "center"), graph.input_node(None))
    found, expected = (
        ENGINES[engine].run(*place, kernels=load(d), dtype=dtype, workers=1, xp=x, **options)
        for d, x in (("cuda", xp), ("cpu", np))
    )
    bound = 2 * options.get("tol", 0) + 1000 * float(np.finfo(dtype).eps)
    assert found.mass.log() == pytest.approx(expected.mass.log(), abs=bound)
    assert found.lost == pytest.approx(expected.lost, abs=bound)
    own, same = found.pixels(), expected.pixels()
    assert isinstance(own, xp.ndarray)
    assert own.dtype == same.dtype == dtype
    assert found.origin == expected.origin
    np.testing.assert_allclose(on_host(own), same, rtol=0, atol=bound * same.max())


@pytest.mark.parametrize("layers", ["last", "all"])
def test_gains_of_the_forward_pass(gpu: ModuleType, layers: str) -> None:
    """What the forward pass says of activations comes from the host, whatever the device."""
    pool, conv = rf.AvgPool(3, stride=1, padding=1), rf.Conv(3, padding=1)
    block = [rf.Norm(), rf.Activation("gelu"), conv]
    net = rf.Sequential(pool, conv, *block, *block, pool, ndim=2)
    fields = [rf.erf(net, input_size=12, device=d, layers=layers) for d in ("cuda", "cpu")]
    found, expected = (f.values() if isinstance(f, dict) else [f] for f in fields)
    for own, same in zip(found, expected, strict=True):
        assert own.plan.device == "cuda:0"
        assert own.log_gain == pytest.approx(same.log_gain, abs=1e-12)
        np.testing.assert_allclose(own.to_numpy(), same.to_numpy(), rtol=1e-12, atol=0)
