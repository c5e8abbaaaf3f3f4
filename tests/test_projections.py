"""Chains whose covariances are followed axis by axis, against the covariance of everything."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from fastrf.kernels import load

import fastrf as rf
from fastrf.engine import ENGINES
from fastrf.engine.correlated import propagate_correlated
from fastrf.errors import InputError
from fastrf.lowering import PlaneGraph, lower

covariance_oracle = pytest.importorskip("covariance_oracle")

# At most 10 layers whose sums have fewer than 100 terms each, along either axis.
TOLERANCE = {"float64": 1e-12, "float32": 1000 * 2.0**-24}

CONV = rf.Conv(3, padding=1)
AVG = rf.AvgPool(3, 1, padding=1)
UNEVEN = rf.Conv((3, 2), padding=(1, 0), taps=np.multiply.outer([1.0, 3, 2], [1.0, 4]))
DENSE = rf.Conv(2, taps=((1.0, 2), (3, 1)))

Case = tuple[tuple[int, ...], tuple[Any, ...]]

CASES: dict[str, Case] = {
    "pools": ((7, 9), (CONV, AVG, CONV, AVG)),
    "uneven": ((8, 9), (rf.AvgPool((3, 2), (2, 1)), UNEVEN, rf.AvgPool((1, 3), 1), UNEVEN, AVG)),
    "one axis alone": ((6, 9), (rf.AvgPool((1, 3), 1), CONV, rf.AvgPool((1, 2), 1))),
    "dilated": ((9, 8), (AVG, rf.Conv(3, dilation=2, padding=2), AVG)),
    "linear": ((5, 4), (rf.Upsample(2, "linear"), CONV, rf.Upsample("3/2", "linear"))),
    "transposed": ((4, 5), (AVG, rf.ConvTranspose(3, 2, padding=1), AVG)),
    "borders": ((6, 5), (rf.AvgPool(3, 1, padding=1, count_include_pad=False), CONV, AVG)),
    "reflected": ((6, 7), (rf.Filter(3, padding=1, padding_mode="reflect"), CONV, AVG)),
    "chosen above": ((8, 8), (AVG, CONV, AVG, rf.MaxPool(2), rf.Activation(), CONV)),
    "scaled between": ((6, 6), (AVG, rf.Scale(0.5), CONV, rf.Activation("identity"), AVG)),
    "3-D": ((4, 5, 4), (rf.AvgPool(2, 1), rf.Conv(2), rf.AvgPool((2, 1, 2), 1))),
}


def asked(case: Case, size: Any) -> tuple[PlaneGraph, str]:
    shape, layers = case
    graph = lower(rf.Sequential(*layers, ndim=len(shape)), size)
    return graph, graph.output_node(None)


def units(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return sorted({(0,) * len(shape), tuple(n // 2 for n in shape), tuple(n - 1 for n in shape)})


@pytest.mark.parametrize("name", CASES)
def test_bounded(name: str) -> None:
    size, layers = CASES[name]
    graph, node = asked(CASES[name], size)
    nodes: dict[str, tuple[Any, ...]] = {}
    for number, layer in enumerate(layers):
        nodes[str(number)] = (layer, str(number - 1) if number else "input")
    for unit in units(graph.sizes[node]):
        truth = covariance_oracle.covariance(nodes, str(len(layers) - 1), unit, size)
        for dtype, tolerance in TOLERANCE.items():
            where = (graph, node, unit, "input")
            assert ENGINES["projected"].refuses(*where, 1e-9) is None
            found = ENGINES["projected"].run(*where, kernels=load(), dtype=np.dtype(dtype))
            pixels = found.pixels()
            assert pixels.dtype == dtype
            image = np.zeros(size)
            window = zip(found.origin, pixels.shape, strict=True)
            image[tuple(slice(o, o + n) for o, n in window)] = pixels
            image *= math.exp(found.mass.log())
            # Nothing cancels: right pixel by pixel, but for what the oracle rounds to.
            np.testing.assert_allclose(image, truth, rtol=tolerance, atol=1e-14 * truth.max())


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("borders", "reflected")])
def test_unbounded(name: str) -> None:
    """As with the lags of all axes at once."""
    graph, node = asked(CASES[name], None)
    unit = (2, -1, 3)[: graph.ndim]
    where = (graph, node, unit, "input")
    found = ENGINES["projected"].run(*where, kernels=load(), tail=None)
    expected = propagate_correlated(*where, kernels=load())
    assert found.origin == expected.origin
    assert found.mass.log() == pytest.approx(expected.mass.log(), abs=1e-12)
    np.testing.assert_allclose(found.pixels(), expected.pixels(), rtol=1e-12)


@pytest.mark.parametrize("size", [(30, 28), None])
def test_what_is_lost_and_dropped(size: Any) -> None:
    """Half of what may be dropped along each axis."""
    graph, node = asked(((0, 0), (*[CONV] * 30, AVG, CONV, AVG)), size)
    where = (graph, node, (5, 7), "input")
    run, tail = ENGINES["projected"].run, 1e-2
    whole, expected = (f(*where, kernels=load()) for f in (run, propagate_correlated))
    assert whole.lost == pytest.approx(expected.lost, abs=1e-14)
    found = run(*where, kernels=load(), tail=tail)
    assert 0 < found.dropped <= tail
    # What is dropped falls into no padding any more.
    assert whole.lost - tail <= found.lost <= whole.lost
    if size is None:
        assert found.mass.over(whole.mass) == pytest.approx(1 - found.dropped, abs=1e-12)


@pytest.mark.parametrize(("engine", "layer"), [("factored", CONV), ("projected", AVG)])
def test_progress_is_that_of_all_axes(engine: str, layer: rf.Conv | rf.AvgPool) -> None:
    graph, node = asked(((40, 30), (CONV, *[layer, CONV] * 3)), (40, 30))
    told: list[float] = []
    where = (graph, node, (20, 15), "input")
    _ = ENGINES[engine].run(*where, kernels=load(), progress=told.append)
    assert told == sorted(told)
    assert {0.5, 1.0} <= set(told)


def test_many_pools() -> None:
    """All lags of both axes at once would be 40,000 images."""
    network = rf.Sequential(*[CONV, *[AVG] * 2] * 30)
    plan = rf.plan(network)
    assert plan.engine == "projected"
    assert plan.method == "factored"
    assert "of each axis by itself" in plan.reason
    found = rf.erf(network)
    line = rf.erf(rf.Sequential(*[CONV, *[AVG] * 2] * 30, ndim=1))
    np.testing.assert_allclose(found.profile(0), line.image, rtol=1e-12)
    np.testing.assert_allclose(found.image, np.multiply.outer(line.image, line.image), rtol=1e-12)
    assert found.log_gain == pytest.approx(2 * line.log_gain, rel=1e-12)
    assert found.plan.memory < 2**23


REFUSED = {
    "passes less of covariances than of variances": rf.Sequential(AVG, rf.Activation(), AVG),
    "maxpool1 passes less": rf.Sequential(rf.MaxPool(3, 2), CONV, AVG),
    "no product of one vector per axis": rf.Sequential(AVG, DENSE, AVG),
    "read by several layers": rf.Sequential(AVG, rf.Residual(CONV), AVG),
    "cancel each other": rf.Sequential(rf.Upsample(2, "cubic"), CONV, AVG, AVG),
    "it has one axis": rf.Sequential(AVG, AVG, ndim=1),
    "no fixed layer": rf.Sequential(CONV, CONV),
}


@pytest.mark.parametrize("said", REFUSED)
def test_refused(said: str) -> None:
    graph = lower(REFUSED[said])
    where = (graph, graph.output_node(None), (0,) * graph.ndim, "input")
    assert said in (ENGINES["projected"].refuses(*where, 1e-9) or "")


def test_as_a_method() -> None:
    network = rf.Sequential(CONV, AVG, CONV, AVG)
    assert rf.plan(network, method="factored").engine == "projected"
    with pytest.raises(InputError, match=r"projected: .*passes less of covariances"):
        rf.plan(REFUSED["passes less of covariances than of variances"], method="factored")


@pytest.mark.parametrize("unit", [(5, 10), (9, 10), (0, 0)])
def test_axes_that_end_differently_are_not_alike(unit: tuple[int, int]) -> None:
    """Padding that is wider behind one axis alone: a unit that only that axis has."""
    pool = rf.AvgPool(3, stride=1, padding=1)
    last = rf.AvgPool(3, stride=1, padding=((1, 1), (1, 2)))
    net = rf.Sequential(pool, rf.Conv(3, padding=1), pool, last)
    lines, whole = (rf.erf(net, unit=unit, input_size=10, method=m) for m in ("factored", "direct"))
    assert lines.plan.engine == "projected"
    np.testing.assert_allclose(lines.image, whole.image, rtol=1e-13)
    assert lines.log_gain == pytest.approx(whole.log_gain, abs=1e-13)
