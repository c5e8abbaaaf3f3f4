"""The engines that carry covariances on arrays of a device.

On a machine without a GPU the device is `fake_cupy` over the shim (see test_engines_direct).
Tolerances are those of test_correlated, which counts the roundings of its networks; two results
differ by at most twice that.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest
from fastrf.kernels import load
from test_engines_direct import xp as device_arrays

import fastrf as rf
from fastrf.arrays import on_host
from fastrf.engine import correlated
from fastrf.engine.correlated import propagate_correlated
from fastrf.engine.covariance import is_relative
from fastrf.engine.direct import Propagated
from fastrf.engine.transfer import transfer_function
from fastrf.engine.upward_correlated import propagate_upward_correlated
from fastrf.errors import EmptyFieldError
from fastrf.lowering import lower

cases = pytest.importorskip("test_correlated")
CASES, TOLERANCE = cases.CASES, cases.TOLERANCE
AVG, CONV = cases.AVG, cases.CONV

xp = device_arrays


def assert_close(found: Propagated, expected: Propagated, dtype: str) -> None:
    """Window, every pixel (relative to the peak, as where coefficients cancel), sums."""
    image, bound = on_host(found.image), 2 * TOLERANCE[dtype]
    assert found.origin == expected.origin
    assert image.dtype == expected.image.dtype
    assert image.shape == expected.image.shape
    np.testing.assert_allclose(image, expected.image, rtol=0, atol=bound * expected.image.max())
    assert found.mass.log() == pytest.approx(expected.mass.log(), abs=bound)
    assert found.lost == pytest.approx(expected.lost, abs=bound)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("name", CASES)
def test_images(xp: ModuleType, name: str, dtype: str) -> None:
    """Made by the device's kernels, of its arrays, from the first layer to the last."""
    size, nodes = CASES[name]
    graph = lower(cases.network_of(nodes, len(size)), size)
    node = graph.output_node(None)
    at: tuple[Any, ...] = (graph, node, cases.units(graph.sizes[node])[-1], "input")
    found = propagate_correlated(*at, kernels=load("cuda"), dtype=dtype, xp=xp)
    assert isinstance(found.image, xp.ndarray)
    assert_close(found, propagate_correlated(*at, kernels=load(), dtype=dtype), dtype)


def test_nothing_goes_back_and_forth(xp: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stacks are the device's; the host waits for numbers alone, once a layer that moves pixels,
    and once at the end."""
    if not hasattr(xp, "waits"):
        pytest.skip("only the stand-in counts")
    kinds = set()
    behind = correlated._Correlated._behind

    def watched(self: Any, op: Any, stack: Any) -> Any:
        kinds.add(type(stack.array))
        return behind(self, op, stack)

    monkeypatch.setattr(correlated._Correlated, "_behind", watched)
    graph = lower(rf.Sequential(AVG, *[CONV] * 40, AVG, ndim=2), 24)
    node = graph.output_node(None)
    before = xp.waits
    propagate_correlated(graph, node, (9, 11), "input", kernels=load("cuda"), xp=xp)
    assert kinds == {xp.ndarray}
    assert xp.waits - before <= len(graph.operations) + 2


def test_errors_are_the_cpus(xp: ModuleType) -> None:
    options = {"kernels": load("cuda"), "xp": xp}
    graph = lower(rf.Sequential(rf.Pad(6), AVG, CONV, AVG, ndim=1), 5)
    with pytest.raises(EmptyFieldError):
        propagate_correlated(graph, graph.output_node(None), (0,), "input", **options)


def relative(name: str) -> bool:
    size, nodes = CASES[name]
    graph = lower(cases.network_of(nodes, len(size)))
    node = graph.output_node(None)
    free = transfer_function(graph, node, "input").obstacle is None
    return free and is_relative(graph, node, "input")


@pytest.mark.parametrize("name", [name for name in CASES if relative(name)])
def test_all_layers(xp: ModuleType, name: str) -> None:
    size, nodes = CASES[name]
    graph = lower(cases.network_of(nodes, len(size)))
    function = transfer_function(graph, graph.output_node(None), "input")
    unit = (2, -1, 3)[: len(size)]
    found = dict(propagate_upward_correlated(function, unit, kernels=load("cuda"), xp=xp))
    expected = dict(propagate_upward_correlated(function, unit, kernels=load()))
    assert found.keys() == expected.keys()
    for node, own in found.items():
        assert isinstance(own.image, xp.ndarray)
        assert_close(own, expected[node], "float64")
