"""Tilted windows against exact polynomials and the direct engine, pixel by pixel.

Tolerances. Every pixel is right to `tol` of itself, which is what is asked here. The direct engine
is right to an ulp per operation and tap, at most 2e-13 for the deepest network here (100 blocks of
3 operations of a few taps). Next to the smallest normal number a pixel may be flushed to 0 by one
engine and not by the other: pixels below `VISIBLE` are compared with that alone.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from fastrf.kernels import load
from test_spectral import NETWORKS

import fastrf as rf
from fastrf import zoo
from fastrf.analytic.polynomial import exact_profile
from fastrf.engine.direct import Propagated, propagate
from fastrf.engine.spectral import exponential
from fastrf.engine.tilted import (
    FINEST,
    obstacle,
    of_tilted,
    propagate_tilted,
    propagation,
    search,
)
from fastrf.engine.tilted.moments import moments
from fastrf.engine.tilted.nodes import DEPTH, STEPS, theta_grid
from fastrf.engine.tilted.supports import Lattices, Supports
from fastrf.engine.tilted.symmetries import Symmetry
from fastrf.engine.transfer import TransferFunction
from fastrf.errors import InputError
from fastrf.lowering import PlaneGraph, lower
from fastrf.network import Builder, as_network

KERNELS = load("cpu")
DIRECT = 2e-13
TOL = 1e-10
TINY = float(np.finfo(np.float64).smallest_normal)
VISIBLE = TINY * (1 + 1e-9)


def _lopsided(*shape: int) -> Any:
    """Positive taps that are no product and have no symmetry."""
    return 1.0 + np.arange(math.prod(shape)).reshape(shape) ** 2 % 7


RING = [[(x - 2) ** 2 + (y - 2) ** 2 + 1 for x in range(5)] for y in range(5)]


def _dense_blocks() -> Any:
    """Every layer reads all that came before it, in two blocks, as in a DenseNet."""
    b = Builder()
    x = b.input(channels=4)
    for _ in range(2):
        for _ in range(6):
            x = b.add(rf.Concat(), x, b.add(rf.Conv(3, padding=1, channels=4), x))
        x = b.add(rf.Conv(2, stride=2, channels=4), x)
    return b.build(x, ndim=2)


DEEP: dict[str, Any] = {
    "general taps": lambda: rf.Sequential(*[rf.Conv(5, padding=2, taps=RING)] * 60),
    "lopsided taps": lambda: rf.Sequential(*[rf.Conv(3, taps=_lopsided(3, 3))] * 40),
    "lopsided taps 1-D": lambda: rf.Sequential(
        *[rf.Conv(4, taps=[1, 9, 0.5, 2], dilation=2), rf.Conv(3)] * 80, ndim=1
    ),
    "steep taps": lambda: rf.Sequential(*[rf.Conv(3, taps=[1, 1e-9, 1e-30])] * 9, ndim=1),
    "different gains": lambda: rf.Sequential(
        *[rf.Residual(rf.Conv(3, padding=1, gain=0.1 * (1 + i % 7))) for i in range(60)]
    ),
    "kernel below stride": lambda: rf.Sequential(
        rf.Conv(2, stride=3), rf.Conv(2, stride=4), rf.Conv(3)
    ),
    "stride with gaps, deep": lambda: rf.Sequential(
        rf.Conv(2, stride=3), *[rf.Conv(3), rf.Residual(rf.Conv(3, padding=1))] * 12
    ),
    "unequal axes": lambda: rf.Sequential(*[rf.Conv((3, 5), stride=1, dilation=(2, 1))] * 40),
    "dense blocks": _dense_blocks,
}
NAMED = {name: NETWORKS[name] for name in NETWORKS if name != "pointwise"} | DEEP


def _graph(net: Any) -> tuple[PlaneGraph, str, str]:
    graph = lower(as_network(net), None)
    return graph, graph.output_node(None), graph.input_node(None)


def _pair(found: Propagated, expected: Propagated) -> tuple[np.ndarray, np.ndarray]:
    """Both images on one window."""
    low = np.minimum(found.origin, expected.origin)
    high = np.maximum(
        np.add(found.origin, found.image.shape), np.add(expected.origin, expected.image.shape)
    )
    images = []
    for part in (found, expected):
        image = np.zeros(high - low)
        start = np.subtract(part.origin, low)
        image[tuple(slice(s, s + n) for s, n in zip(start, part.image.shape, strict=True))] = (
            part.image
        )
        images.append(image)
    return images[0], images[1]


def _agree(found: Propagated, expected: Propagated, tol: float) -> None:
    one, other = _pair(found, expected)
    seen = other >= VISIBLE
    assert seen.any()
    np.testing.assert_array_less(np.abs(one - other)[seen], tol * other[seen])
    # What the other engine does not have is a zero of the support, or too small to be held.
    assert one[~seen].max(initial=0) < VISIBLE


@pytest.fixture
def unaided(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pixel may come from the direct engine."""

    def refused(*_: Any, **__: Any) -> Propagated:
        raise AssertionError("handed to the direct engine")

    monkeypatch.setattr(propagation, "propagate", refused)


@pytest.mark.usefixtures("unaided")
@pytest.mark.parametrize("name", NAMED)
def test_every_pixel_of_the_direct_engine(name: str) -> None:
    graph, node, source = _graph(NAMED[name]())
    zero = (0,) * graph.ndim
    found = propagate_tilted(graph, node, zero, source, tol=TOL)
    expected = propagate(graph, node, zero, source, kernels=KERNELS)
    _agree(found, expected, TOL + DIRECT)
    assert found.mass.log() == pytest.approx(expected.mass.log(), rel=1e-13, abs=1e-12)
    assert found.image.sum() == pytest.approx(1, abs=1e-12)
    assert (found.lost, found.dropped) == (0.0, 0.0)


@pytest.mark.usefixtures("unaided")
@pytest.mark.parametrize("tol", [1e-10, 1e-7])
@pytest.mark.parametrize(
    ("n", "k"), [(1, 5), (40, 3), (31, 4), (100, 3), (1000, 2), (1000, 3), (1000, 5)]
)
def test_exact_polynomials(n: int, k: int, tol: float) -> None:
    graph, node, source = _graph(zoo.plain(n, k, 1))
    coefficients, total = exact_profile(n, k)
    exact = np.array([c / total for c in coefficients])
    expected = Propagated(exact, (-n * ((k - 1) // 2),), exponential(0.0), 0.0, 0.0)
    _agree(propagate_tilted(graph, node, (0,), source, tol=tol), expected, tol)


@pytest.mark.usefixtures("unaided")
@pytest.mark.parametrize(("n", "k"), [(20, 3), (150, 3), (400, 2)])
def test_exact_polynomials_2d(n: int, k: int) -> None:
    """A chain is the outer product of its profile with itself."""
    graph, node, source = _graph(zoo.plain(n, k))
    coefficients, total = exact_profile(n, k)
    profile = np.array([c / total for c in coefficients])
    with np.errstate(under="ignore"):
        image = np.multiply.outer(profile, profile)
    first = -n * ((k - 1) // 2)
    expected = Propagated(image, (first, first), exponential(0.0), 0.0, 0.0)
    _agree(propagate_tilted(graph, node, (0, 0), source), expected, TOL + 4e-16)


@pytest.mark.usefixtures("unaided")
@pytest.mark.parametrize("tail", [1e-3, 1e-12, 1e-100])
def test_tail(tail: float) -> None:
    """The window holds 1 − tail, and its pixels are right."""
    graph, node, source = _graph(zoo.residual(100))
    found = propagate_tilted(graph, node, (0, 0), source, tail=tail)
    whole = propagate(graph, node, (0, 0), source, kernels=KERNELS)
    assert found.dropped == tail
    part = tuple(
        slice(a - b, a - b + n)
        for a, b, n in zip(found.origin, whole.origin, found.image.shape, strict=True)
    )
    kept = whole.image[part]
    assert 1 - kept.sum() <= tail + 1e-14
    assert kept.size < whole.image.size
    np.testing.assert_allclose(found.image, kept / kept.sum(), rtol=TOL + DIRECT)


def test_pixels_that_no_tilt_lifts_are_the_direct_engines() -> None:
    """A narrow path beside one far away: between them V lies far below its concave envelope."""
    net = rf.Sequential(
        rf.Parallel(rf.Conv(2), rf.Sequential(*[rf.Conv(3)] * 40, rf.Crop(((400, 0),)))),
        ndim=1,
    )
    graph, node, source = _graph(net)
    found = propagate_tilted(graph, node, (0,), source)
    expected = propagate(graph, node, (0,), source, kernels=KERNELS)
    np.testing.assert_array_equal(found.image, expected.image)


@pytest.mark.usefixtures("unaided")
def test_float32() -> None:
    graph, node, source = _graph(zoo.residual(60))
    found = propagate_tilted(graph, node, (0, 0), source, dtype=np.float32)
    exact = propagate_tilted(graph, node, (0, 0), source)
    assert found.image.dtype == np.float32
    one, other = _pair(found, exact)
    held = other >= np.finfo(np.float32).smallest_normal
    # Rounded once; a value below the smallest normal number may be rounded up to it.
    assert np.all(np.abs(one - other)[held] <= 2.0**-24 * other[held])
    assert one[~held].max() <= np.finfo(np.float32).smallest_normal
    assert found.image[found.image > 0].min() >= np.finfo(np.float32).smallest_normal


@pytest.mark.parametrize("unit", [(1, 0), (-3, 1000)])
def test_units_move_the_image(unit: tuple[int, int]) -> None:
    graph, node, source = _graph(zoo.resnet18())
    still, found = (propagate_tilted(graph, node, u, source) for u in ((0, 0), unit))
    np.testing.assert_array_equal(found.image, still.image)
    assert found.origin == tuple(o + 32 * u for o, u in zip(still.origin, unit, strict=True))


def test_workers_and_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, node, source = _graph(DEEP["lopsided taps"]())
    one, two = (propagate_tilted(graph, node, (0, 0), source, workers=w) for w in (1, 2))
    np.testing.assert_array_equal(one.image, two.image)
    monkeypatch.setattr(search, "BLOCK", 500)
    blocked = propagate_tilted(graph, node, (0, 0), source)
    # Vector and scalar loops of one sine may differ by an ulp: both images are right to TOL.
    _agree(blocked, one, 2 * TOL)


@pytest.mark.parametrize("seed", range(6))
def test_lattices_are_supports(seed: int) -> None:
    rng = np.random.default_rng(seed)
    layers: list[Any] = []
    for _ in range(4):
        conv = rf.Conv(
            int(rng.integers(1, 4)),
            stride=int(rng.integers(1, 3)),
            dilation=int(rng.integers(1, 4)),
        )
        layers += [conv, rf.Residual(rf.Conv(3, padding=1))][: int(rng.integers(1, 3))]
    graph, node, source = _graph(rf.Sequential(*layers, ndim=1))
    function = TransferFunction(graph, node, source)
    image = propagate(graph, node, (0,), source, kernels=KERNELS)
    support = function(Supports(1))
    assert support.first == image.origin
    np.testing.assert_array_equal(support.seen, image.image > 0)
    lattice = function(Lattices(1))
    if lattice is not None:
        ((first, last, step),) = lattice
        pixels = np.flatnonzero(support.seen) + support.first[0]
        assert pixels.tolist() == list(range(first, last + 1, step or 1))


def test_one_pixel() -> None:
    graph, node, source = _graph(rf.Sequential(rf.Conv(1, stride=2, gain=0.25), rf.Identity()))
    found = propagate_tilted(graph, node, (3, -2), source)
    assert (found.image.tolist(), found.origin) == ([[1.0]], (6, -4))
    assert found.mass.log() == pytest.approx(math.log(0.25))


@pytest.mark.parametrize("mirrored", [False, True])
def test_tilts_lie_a_step_apart(mirrored: bool) -> None:
    """In Fisher length, from one end of what is visible, or from the middle, to the other end."""
    n = 1000
    graph, node, source = _graph(zoo.plain(n, ndim=1))
    function = TransferFunction(graph, node, source)
    symmetry = Symmetry((0,), (mirrored,), (False,))
    found = theta_grid(function, symmetry, 0.0).theta[:, 0]
    # K(θ) = n·log((1 + 2 cosh θ)/3)
    theta = np.linspace(0, 12, 100_001)
    whole = 1 + 2 * np.cosh(theta)
    curvature = n * (2 * np.cosh(theta) / whole - (2 * np.sinh(theta) / whole) ** 2)
    lengths = np.concatenate([[0], np.cumsum(np.sqrt(curvature[1:]) * np.diff(theta))])
    steps = np.diff(np.interp(np.abs(found), theta, lengths) * np.sign(found))
    # Interpolated between eight tilts an octave: 4.5% off at most.
    assert steps.max() <= STEPS[1] * 1.045
    assert np.median(steps) == pytest.approx(STEPS[1], rel=0.045)
    rate = theta * n * 2 * np.sinh(theta) / whole - n * np.log(whole / 3)
    assert found.max() >= theta[np.searchsorted(rate, DEPTH)]
    assert found.min() == (0 if mirrored else pytest.approx(-found.max()))


@pytest.mark.parametrize("gain", [0.25, 1.0, 2.0, 3.0])
def test_gains_are_in_the_logarithm(gain: float) -> None:
    graph, node, source = _graph(rf.Sequential(rf.Conv(3, gain=gain), ndim=1))
    _, found = moments(TransferFunction(graph, node, source), np.array([[0.5]]))
    assert found.log == pytest.approx(math.log(gain * (1 + 2 * math.cosh(0.5)) / 3))


def test_tolerances_that_cannot_be_had() -> None:
    graph, node, source = _graph(zoo.plain(3))
    with pytest.raises(InputError, match="finer than tilted windows"):
        propagate_tilted(graph, node, (0, 0), source, tol=FINEST / 2)


def test_obstacles() -> None:
    graph = lower(as_network(zoo.plain(3)), 32)
    assert "input size" in (obstacle(graph, "conv3", "input") or "")
    with pytest.raises(InputError, match="borders clip"):
        propagate_tilted(graph, "conv3", (0, 0), "input")


def test_forecast() -> None:
    small, large = (
        of_tilted(*_graph_of(zoo.residual(n)), np.dtype("float64"), None, TOL) for n in (10, 300)
    )
    assert 0 < small.seconds(1) < large.seconds(1)
    assert small.memory < large.memory
    found = propagate_tilted(*_graph_of(zoo.residual(300)))
    assert large.largest >= found.image.size


def _graph_of(net: Any) -> tuple[PlaneGraph, str, tuple[int, ...], str]:
    graph, node, source = _graph(net)
    return graph, node, (0,) * graph.ndim, source
