"""The spectral engine against the direct engine, exact polynomials and analytic moments.

Tolerances. A pixel of the spectral engine is right to `tol` of the peak, plus rounding, for which
1e-14·log2(N) of the peak is claimed, N the number of frequencies; dividing by the sum adds what
was dropped, which is below `tol` too. The direct engine is right to one ulp per operation and
tap, relative to each pixel: at most 2e-13 for the deepest network here (100 blocks, 3 operations
of a few taps each).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import graphs
import numpy as np
import pytest
from fastrf.kernels import load

import fastrf as rf
from fastrf import zoo
from fastrf.analytic.moments import moments
from fastrf.analytic.polynomial import exact_profile
from fastrf.engine import spectral, transfer
from fastrf.engine.direct import Propagated, propagate
from fastrf.engine.scaled import ONE
from fastrf.engine.spectral import obstacle, propagate_all, propagate_spectral
from fastrf.errors import InputError
from fastrf.lowering import PlaneGraph, lower
from fastrf.network import Builder, as_network

KERNELS = load("cpu")
DIRECT = 2e-13
ROUNDING = 1e-14


def _taps(*shape: int) -> Any:
    """Positive taps that are no product and have no symmetry."""
    return 1.0 + np.arange(math.prod(shape)).reshape(shape) ** 2 % 7


def _branches(*branches: Any) -> Any:
    return rf.Sequential(rf.Conv(3, padding=1), rf.Parallel(*branches), rf.Conv(2))


def _channels() -> Any:
    """Channels that part ways, so that maps have several planes and the network is no series."""
    b = Builder()
    x = b.add(rf.PixelUnshuffle(2), b.input(channels=4))
    x = b.add(rf.Conv(3, padding=1, channels=16, groups=4), x)
    left, right = b.add(rf.ChannelSlice(0, 8), x), b.add(rf.ChannelSlice(8, 16), x)
    left = b.add(rf.Conv(5, padding=2, channels=8, groups=2), left)
    x = b.add(rf.ChannelShuffle(2), b.add(rf.Concat(), left, right))
    x = b.add(rf.Conv(3, stride=2, channels=16, groups=2), x)
    left, right = b.add(rf.ChannelSlice(0, 8), x), b.add(rf.ChannelSlice(8, 16), x)
    right = b.add(rf.Conv(3, padding=1, channels=8), right)
    return b.build(b.add(rf.Concat(), left, right), ndim=2)


NETWORKS: dict[str, Any] = {
    "channels": _channels,
    "plain": lambda: zoo.plain(30, 3),
    "plain 1-D": lambda: zoo.plain(100, 3, 1),
    "plain 3-D": lambda: zoo.plain(6, 5, 3),
    "even kernels": lambda: zoo.plain(7, 4),
    "single layer": lambda: zoo.plain(1, 7),
    "residual": lambda: zoo.residual(100),
    "residual 3-D": lambda: zoo.residual(8, ndim=3),
    "resnet18": zoo.resnet18,
    "resnet50": zoo.resnet50,
    "vgg11": zoo.vgg11,
    "googlenet": zoo.googlenet,
    "wavenet": lambda: zoo.wavenet(2, 8),
    "tcn": zoo.tcn,
    "strided and dilated": lambda: rf.Sequential(
        rf.Conv(3, stride=2, dilation=3, padding=1),
        rf.MaxPool(3, stride=(2, 1), padding=1),
        rf.Conv((1, 5), dilation=(1, 2)),
        rf.Conv(2, stride=3),
    ),
    "holes": lambda: rf.Sequential(*[rf.Conv(3, dilation=4)] * 20),
    "dense taps": lambda: rf.Sequential(
        rf.Conv((3, 4), taps=_taps(3, 4), padding=1),
        rf.Residual(rf.Conv(3, taps=_taps(3, 3), padding=1)),
        rf.Conv((2, 3), dilation=2, taps=_taps(2, 3)),
    ),
    "dense taps 3-D": lambda: rf.Sequential(
        rf.Conv((2, 3, 2), taps=_taps(2, 3, 2)), rf.Conv((1, 2, 3), taps=_taps(1, 2, 3))
    ),
    "product taps": lambda: rf.Sequential(
        rf.Conv(3, taps=np.outer([1, 2, 4], [1, 3, 1])), rf.Conv((1, 3), taps=[[1, 0, 2]])
    ),
    "misaligned": lambda: rf.Sequential(
        *[rf.Residual(rf.Conv(3, padding="causal", gain=0.5)), rf.Conv(2)] * 5
    ),
    "branches": lambda: _branches(
        rf.Conv(1),
        rf.Conv((1, 7), padding="same"),
        rf.MaxPool(3, 1, padding=1),
        rf.Conv(5, padding=2),
    ),
    "long kernels": lambda: rf.Sequential(
        rf.Conv((101, 64), padding="same"), rf.Residual(rf.Conv((51, 1), padding="same"))
    ),
    "pointwise": lambda: rf.Sequential(rf.Conv(1, gain=3.0), rf.Conv(1)),
}


def _graph(net: Any) -> tuple[PlaneGraph, str, str]:
    graph = lower(as_network(net), None)
    return graph, graph.output_node(None), graph.input_node(None)


def _direct(graph: PlaneGraph, node: str, source: str, unit: Any = None) -> Propagated:
    return propagate(graph, node, unit or (0,) * graph.ndim, source, kernels=KERNELS)


@cache
def _expected(name: str) -> Propagated:
    return _direct(*_graph(NETWORKS[name]()))


def _both(name: str, **options: Any) -> tuple[Propagated, Propagated]:
    """The field of unit 0 by the spectral and by the direct engine."""
    graph, node, source = _graph(NETWORKS[name]())
    zero = (0,) * graph.ndim
    return propagate_spectral(graph, node, zero, source, **options), _expected(name)


def _error(found: Propagated, expected: Propagated) -> float:
    """Largest difference of two images on the input grid, over the peak."""
    low = np.minimum(found.origin, expected.origin)
    high = np.maximum(
        np.add(found.origin, found.image.shape), np.add(expected.origin, expected.image.shape)
    )
    difference = np.zeros(high - low)
    for sign, part in ((1, found), (-1, expected)):
        start = np.subtract(part.origin, low)
        place = tuple(slice(s, s + n) for s, n in zip(start, part.image.shape, strict=True))
        difference[place] += sign * part.image.astype(np.float64)
    return float(np.abs(difference).max() / expected.image.max())


def _rounding(expected: Propagated) -> float:
    return ROUNDING * max(1.0, math.log2(2 * expected.image.size))


@pytest.mark.parametrize("name", NETWORKS)
def test_agrees_with_direct_engine(name: str) -> None:
    found, expected = _both(name)
    assert _error(found, expected) <= 1e-12 + _rounding(expected) + DIRECT
    assert found.image.min() >= 0
    assert found.image.sum() == pytest.approx(1, abs=1e-13)
    assert found.lost == 0
    # Each operation's gain is rounded once, in both engines.
    assert found.mass.log() == pytest.approx(expected.mass.log(), rel=1e-14, abs=1e-12)


@pytest.mark.parametrize("name", ["plain", "resnet18", "residual", "misaligned", "dense taps"])
def test_accuracy_near_rounding(name: str) -> None:
    """With a tolerance below all rounding, what is left is the rounding that is claimed."""
    found, expected = _both(name, tol=1e-16)
    assert _error(found, expected) <= _rounding(expected) + found.dropped + DIRECT


@pytest.mark.parametrize("tol", [1e-3, 1e-6, 1e-9])
def test_tolerance_is_kept_and_used(tol: float) -> None:
    found, expected = _both("residual", tol=tol)
    assert _error(found, expected) <= tol
    tight, _ = _both("residual", tol=tol / 100)
    assert found.image.size < tight.image.size < expected.image.size


@pytest.mark.parametrize(("n", "k"), [(1, 5), (40, 3), (31, 4), (800, 3), (500, 2)])
def test_exact_polynomials(n: int, k: int) -> None:
    graph, node, source = _graph(zoo.plain(n, k, 1))
    coefficients, total = exact_profile(n, k)
    image = np.array([c / total for c in coefficients])
    exact = Propagated(image, (-n * ((k - 1) // 2),), ONE, 0.0, 0.0)
    found = propagate_spectral(graph, node, (0,), source)
    assert _error(found, exact) <= 1e-12 + _rounding(exact)
    # No other engine's rounding here: what is left does not grow with depth.
    found = propagate_spectral(graph, node, (0,), source, tol=1e-16)
    assert _error(found, exact) <= _rounding(exact)


@pytest.mark.parametrize(
    "name", ["resnet50", "wavenet", "misaligned", "dense taps", "residual 3-D"]
)
def test_moments(name: str) -> None:
    """Mass, mean and covariance of the image, which come from different formulas altogether."""
    graph, node, source = _graph(NETWORKS[name]())
    found = propagate_spectral(graph, node, (0,) * graph.ndim, source)
    expected = moments(graph, node, (0,) * graph.ndim, source)
    weights = found.image / found.image.sum()
    mean, variance = [], []
    for axis in range(graph.ndim):
        others = tuple(a for a in range(graph.ndim) if a != axis)
        profile = weights.sum(axis=others)
        place = np.arange(profile.size) + found.origin[axis]
        mean.append(profile @ place)
        variance.append(profile @ (place - mean[-1]) ** 2)
    # An error of ε of the peak on every pixel moves the mean by at most ε·pixels·peak·radius.
    radius = max(found.image.shape)
    weight = 2e-13 * min(1.0, found.image.size * float(found.image.max())) + 1e-13
    assert mean == pytest.approx(list(expected.mean), abs=weight * radius)
    assert variance == pytest.approx(list(np.diag(expected.covariance)), abs=weight * radius**2)
    assert found.mass.log() == pytest.approx(expected.log_mass, rel=1e-13, abs=1e-12)


@pytest.mark.parametrize("tail", [1e-2, 1e-6, 1e-10])
@pytest.mark.parametrize("name", ["plain", "residual", "misaligned"])
def test_tail_is_proven(name: str, tail: float) -> None:
    found, expected = _both(name, tail=tail)
    inside = tuple(
        slice(max(a - b, 0), a - b + n)
        for a, b, n in zip(found.origin, expected.origin, found.image.shape, strict=True)
    )
    kept = expected.image[inside]
    outside = 1.0 - float(kept.sum())
    # What is zeroed because it is below the rounding error adds some 1e-14 on top.
    assert outside <= found.dropped + 1e-14
    assert found.dropped <= tail + 1e-12
    assert found.image.size <= expected.image.size
    kept = Propagated(kept / kept.sum(), found.origin, expected.mass, 0.0, 0.0)
    assert _error(found, kept) <= 1e-12 + _rounding(expected) + DIRECT


def test_tail_saves_pixels() -> None:
    graph, node, source = _graph(NETWORKS["residual"]())
    sizes = [
        propagate_spectral(graph, node, (0, 0), source, tail=tail).image.size
        for tail in (1e-2, 1e-6, None)
    ]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] / 3


def test_period_is_as_short_as_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """One frequency less, and the image folds onto itself: the test above would see it."""
    shorter = lambda least, half: transfer.Frequencies(  # noqa: E731
        least - 1, np.arange((least - 1) // 2 + 1 if half else least - 1)
    )
    exact = lambda least, half: transfer.Frequencies(  # noqa: E731
        least, np.arange(least // 2 + 1 if half else least)
    )
    graph, node, source = _graph(zoo.plain(4, 3, 1))
    expected = _direct(graph, node, source)
    monkeypatch.setattr(spectral, "_frequencies", exact)
    assert _error(propagate_spectral(graph, node, (0,), source), expected) <= 1e-14
    monkeypatch.setattr(spectral, "_frequencies", shorter)
    # The first pixel, 1/81, falls onto the last.
    assert _error(propagate_spectral(graph, node, (0,), source), expected) >= 1 / 81


@pytest.mark.parametrize("name", ["plain", "resnet18", "misaligned", "plain 3-D"])
def test_float32(name: str) -> None:
    found, expected = _both(name, dtype=np.float32)
    assert found.image.dtype == np.float32
    # Computed in float64 and rounded once.
    assert _error(found, expected) <= np.finfo(np.float32).eps / 2 + 1e-12 + DIRECT


@pytest.mark.parametrize("unit", [(0, 0), (1, 0), (-3, 1000)])
def test_units_move_the_image(unit: tuple[int, int]) -> None:
    graph, node, source = _graph(zoo.resnet18())
    found = propagate_spectral(graph, node, unit, source)
    still = propagate_spectral(graph, node, (0, 0), source)
    np.testing.assert_array_equal(found.image, still.image)
    assert found.origin == tuple(o + 32 * u for o, u in zip(still.origin, unit, strict=True))


def test_unit_of_the_input_sees_itself() -> None:
    graph, _, source = _graph(zoo.plain(3))
    found = propagate_spectral(graph, source, (2, -5), source)
    assert found.image.tolist() == [[1.0]]
    assert (found.origin, found.mass.log(), found.dropped) == ((2, -5), 0.0, 0.0)


@pytest.mark.parametrize("gain", [1e-9, 1e9])
def test_gains_of_any_size(gain: float) -> None:
    depth = 500
    net = rf.Sequential(
        *[rf.Residual(rf.Conv(3, padding=1, gain=gain))] * depth, rf.Conv(1, gain=gain)
    )
    graph, node, source = _graph(net)
    found = propagate_spectral(graph, node, (0, 0), source)
    expected = depth * math.log1p(gain) + math.log(gain)
    assert found.mass.log() == pytest.approx(expected, rel=1e-13)
    assert np.isfinite(found.image).all()


def test_errors_of_profiles_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each profile's, times the largest pixel that the others make of it."""
    calls: list[Any] = []

    def watched(*arguments: Any) -> Any:
        calls.append((arguments, plain(*arguments)))
        return calls[-1][1]

    plain = spectral._outer
    monkeypatch.setattr(spectral, "_outer", watched)
    net = rf.Sequential(*[rf.Conv((3, 7, 5))] * 20, ndim=3)
    graph = lower(net)
    propagate_spectral(graph, graph.output_node(None), (0, 0, 0), "input")
    (((wave, grid, phases, _), (_, floor)),) = calls
    pairs = []
    for part, phase, axis in zip(wave.parts, phases, grid, strict=False):
        profile, error = spectral.inverse((1 - part.ravel()) * phase, [axis], 1)
        pairs.append((float(profile.real.max()), error))
    whole = math.prod(peak for peak, _ in pairs)
    assert floor == pytest.approx(
        sum(whole / peak * error for peak, error in pairs), rel=1e-12, abs=0
    )


def test_workers_change_nothing() -> None:
    graph, node, source = _graph(zoo.resnet50())
    one, two = (propagate_spectral(graph, node, (0, 0), source, workers=w) for w in (1, 2))
    np.testing.assert_array_equal(one.image, two.image)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    graph, node, source = _graph(
        rf.Sequential(rf.Conv(3), rf.Residual(rf.Conv((1, 3), padding="same")), rf.Conv((5, 1)))
    )
    whole = propagate_spectral(graph, node, (0, 0), source)
    monkeypatch.setattr(spectral, "BLOCK", 7)
    blocked = propagate_spectral(graph, node, (0, 0), source)
    # Vector and scalar loops of one sine may differ by an ulp.
    assert _error(blocked, whole) <= 1e-15
    assert blocked.origin == whole.origin


@pytest.mark.parametrize("name", ["residual", "resnet18", "wavenet", "googlenet", "channels"])
def test_all_layers_in_one_pass(name: str) -> None:
    nets = {**NETWORKS, "residual": lambda: zoo.residual(12)}
    graph, node, source = _graph(nets[name]())
    found = propagate_all(graph, node, (0,) * graph.ndim, source)
    assert list(found) == list(dict.fromkeys(op.node for op in graph.between(node, source)))
    for at in [*list(found)[:: max(1, len(found) // 8)], node]:
        expected = _direct(graph, at, source)
        assert _error(found[at], expected) <= 1e-12 + _rounding(expected) + DIRECT
        assert found[at].mass.log() == pytest.approx(expected.mass.log(), rel=1e-13, abs=1e-12)


# --- obstacles ------------------------------------------------------------------------------


def test_obstacles() -> None:
    sized = lower(as_network(zoo.plain(3)), 32)
    assert "input size" in (obstacle(sized, "conv3", "input") or "")
    up = lower(as_network(rf.Sequential(rf.Conv(3), rf.Upsample(2))), None)
    assert "not shift-invariant" in (obstacle(up, up.output_node(None), "input") or "")
    strides = lower(graphs.misaligned().network(), None)
    assert "strides" in (obstacle(strides, "add", "input") or "")
    ahead = lower(as_network(rf.Sequential(rf.Conv(3), rf.SqueezeExcite())), None)
    assert "not shift-invariant" in (obstacle(ahead, ahead.output_node(None), "input") or "")
    # What lies behind the node does not matter.
    assert obstacle(up, next(iter(up.planes_of)), "input") is None
    with pytest.raises(InputError, match=r"spectral.*strides.*use method='direct'"):
        propagate_spectral(strides, "add", (0,), "input")


def test_no_path() -> None:
    net = rf.Network(
        {"a": (rf.Input(),), "b": (rf.Input(),), "out": (rf.Conv(3), "a")}, "out", ndim=1
    )
    with pytest.raises(InputError, match="no path leads from 'out' to the input 'b'"):
        propagate_spectral(lower(net, None), "out", (0,), "b")


# --- transfer functions ---------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [33, 48, 64, 101, 1000])
@pytest.mark.parametrize("spacing", [1, 2, 3, 8])
def test_long_kernels_in_closed_form(kernel: int, spacing: int) -> None:
    frequencies = transfer.Frequencies(720, np.arange(720))
    closed = frequencies.taps_defect(None, kernel, spacing)
    summed = frequencies.taps_defect(np.full(kernel, 1 / kernel), kernel, spacing)
    # Summing k nonnegative terms is right to k ulp in theory, √k in practice; the quotient of
    # sines to some 4 ulp of 1, and the series, which serves defects below 1/6, to as many of δ.
    np.testing.assert_allclose(closed, summed, rtol=4e-15, atol=2e-15)
    small = summed < 0.15
    np.testing.assert_allclose(closed[small], summed[small], rtol=1e-13, atol=0)


@pytest.mark.parametrize("name", ["dense taps", "resnet18", "misaligned", "branches", "holes"])
def test_moduli_bound_the_transfer_function(name: str) -> None:
    graph, node, source = _graph(NETWORKS[name]())
    function = transfer.TransferFunction(graph, node, source)
    grid = [transfer.Frequencies(n, np.arange(n)) for n in (60, 77)]
    defect = transfer.joined(function(transfer.Waves(grid)))
    assert defect is not None
    size = np.broadcast_to(np.abs(1 - defect), (60, 77))
    for axis in (0, 1):
        bound = function(transfer.Moduli(axis, grid[axis])).bound
        assert np.all(size.max(axis=1 - axis) <= bound + 1e-15)
    assert size[0, 0] == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(
    "name", ["resnet18", "misaligned", "dense taps", "even kernels", "wavenet"]
)
def test_moment_generating_function(name: str) -> None:
    """ln E[e^{θX}] of the direct engine's image, summed up."""
    graph, node, source = _graph(NETWORKS[name]())
    image = _direct(graph, node, source)
    theta = np.array([-0.05, -0.01, 0.0, 0.02, 0.1])
    function = transfer.TransferFunction(graph, node, source)
    for axis in range(graph.ndim):
        found = function(transfer.Exponentials(axis, theta))
        others = tuple(a for a in range(graph.ndim) if a != axis)
        place = np.arange(image.image.shape[axis]) + image.origin[axis]
        profile = image.image.sum(axis=others)
        powers = theta[:, None] * place
        top = powers.max(axis=1, keepdims=True)
        summed = np.log(np.exp(powers - top) @ profile) + top[:, 0] + image.mass.log()
        np.testing.assert_allclose(
            found.log + theta * found.centre / 2, summed, rtol=1e-13, atol=1e-12
        )


def test_extents_are_the_theoretical_field() -> None:
    graph, node, source = _graph(zoo.resnet50())
    extent = transfer.TransferFunction(graph, node, source)(transfer.Extents(2))
    assert extent == rf.receptive_field(zoo.resnet50(), node).box((0, 0))
