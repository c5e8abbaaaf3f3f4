"""Covariances: fields through deterministic overlapping layers against the true E[g²].

`covariance_oracle` holds the covariance of everything with everything; where a network is one of
`graphs`, `torch_oracle.exact_variance` owes nothing to it.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter
from typing import Any

import graphs
import numpy as np
import pytest
from fastrf.kernels import load
from test_over_limit import traced

import fastrf as rf
from fastrf.analytic.composed import composed
from fastrf.analytic.paired import paired_moments
from fastrf.engine import correlated, direct, forecast_correlated, lag_gains, lag_mixing
from fastrf.engine.coefficients import terms
from fastrf.engine.coherence import coherence_of
from fastrf.engine.correlated import propagate_correlated
from fastrf.engine.covariance import inexact_reasons, is_relative, needed
from fastrf.engine.direct import Propagated
from fastrf.engine.forecast import Forecast
from fastrf.engine.forecast_correlated import of_correlated
from fastrf.engine.lag_algebra import _met
from fastrf.engine.program import mean_gains
from fastrf.engine.scaled import ONE
from fastrf.engine.threads import Threads
from fastrf.lowering import lower
from fastrf.maps import Window
from fastrf.meanfield.slopes import Slopes

torch_oracle = pytest.importorskip("torch_oracle")
covariance_oracle = pytest.importorskip("covariance_oracle")

# Networks of at most 10 layers whose sums have fewer than 100 terms each: below 1000 roundings of
# eps/2 one after the other. Where coefficients are negative, sums of fewer than 10 times the
# result's size cancel to it.
TOLERANCE = {"float64": 1e-12, "float32": 1000 * 2.0**-24}

CONV = rf.Conv(3, padding=1)
AVG = rf.AvgPool(3, 1, padding=1)
DOWN = rf.AvgPool(3, 2, padding=1)
POOL = rf.AvgPool(2)
BLUR = rf.Filter(3, 2, padding=1)
NEAREST = rf.Upsample(2)
LINEAR = rf.Upsample(2, "linear")
ADD, CONCAT = rf.Add(), rf.Concat()
EDGE = rf.Filter(3, padding=1, weights=(-1.0, 0.5, 2.0))
SOBEL = rf.Filter(3, padding=1, weights=((-1.0, 0, 1), (-2, 0, 2), (-1, 0, 1)))
LAPLACE = rf.Filter(3, padding=1, weights=((0.0, -1, 0), (-1, 4, -1), (0, -1, 0)))

Nodes = dict[str, tuple[Any, ...]]


def chain(*layers: Any) -> Nodes:
    nodes: Nodes = {}
    at = "input"
    for number, layer in enumerate(layers):
        nodes[f"{layer.kind}{number}"] = (layer, at)
        at = f"{layer.kind}{number}"
    return nodes


def field(
    network: rf.Network, unit: tuple[int, ...], size: Any, dtype: str = "float64"
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The image, not normalised, and its origin."""
    graph = lower(network, size)
    node = graph.output_node(None)
    found = propagate_correlated(graph, node, unit, "input", kernels=load(), dtype=dtype)
    assert found.image.dtype == dtype
    return found.pixels().astype(np.float64) * math.exp(found.mass.log()), found.origin


def whole(image: np.ndarray, origin: tuple[int, ...], size: tuple[int, ...]) -> np.ndarray:
    result = np.zeros(size)
    result[tuple(slice(o, o + n) for o, n in zip(origin, image.shape, strict=True))] = image
    return result


def network_of(nodes: Nodes, ndim: int) -> rf.Network:
    return rf.Network({"input": (rf.Input(1),), **nodes}, list(nodes)[-1], ndim=ndim)


def units(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    return sorted({(0,) * len(shape), tuple(n // 2 for n in shape), tuple(n - 1 for n in shape)})


WEIGHTED = np.multiply.outer([1.0, 3, 2], [1.0, 2, 4])

CASES: dict[str, tuple[tuple[int, ...], Nodes]] = {
    "the design's example": ((22,), chain(CONV, AVG, CONV, DOWN, CONV, AVG, CONV)),
    "pools that overlap": ((17,), chain(DOWN, DOWN, CONV, AVG)),
    "wide pools": ((19,), chain(rf.AvgPool(5, 2, padding=2), CONV, rf.AvgPool(7, 3), CONV)),
    "dilated": ((15,), chain(rf.AvgPool(3, 2, 2), rf.Conv(3, dilation=2, padding=2), AVG)),
    "pool without padding count": (
        (12,),
        chain(rf.AvgPool(3, 2, padding=1, count_include_pad=False), CONV, AVG),
    ),
    "ceil mode": ((12,), chain(rf.AvgPool(3, 2, ceil_mode=True), CONV, AVG)),
    "strided and transposed": (
        (9,),
        chain(AVG, rf.Conv(3, 2, padding=1), rf.ConvTranspose(3, 2, padding=1), AVG),
    ),
    "weighted taps along the axes": (
        (8, 7),
        chain(
            AVG,
            rf.Conv(3, padding=1, taps=WEIGHTED),
            AVG,
            rf.ConvTranspose(3, 2, padding=1, taps=WEIGHTED),
        ),
    ),
    "blur-pool": ((16,), chain(CONV, BLUR, CONV, BLUR, CONV)),
    "blur-pool, reflected": (
        (14,),
        chain(rf.Filter(5, 2, padding=2, padding_mode="reflect"), CONV, BLUR),
    ),
    "reflected within one layer": (
        (9,),
        chain(rf.Filter(3, padding=1, padding_mode="reflect"), CONV),
    ),
    "negative weights": ((12,), chain(EDGE, CONV, EDGE, EDGE)),
    "cubic": ((6,), chain(rf.Upsample(2, "cubic"), CONV, rf.Upsample("3/2", "cubic"), CONV)),
    "rational": ((6,), chain(rf.Upsample("3/2", "linear"), CONV, LINEAR)),
    "nearest": ((5,), chain(NEAREST, CONV, NEAREST, AVG)),
    "nearest with weights between": ((4,), chain(NEAREST, rf.ConvTranspose(2, 2), NEAREST, AVG)),
    "padding": ((7,), chain(rf.Pad(2, "reflect"), AVG, rf.Pad(1, "replicate"), CONV, AVG)),
    "activations between": ((12,), chain(AVG, rf.Activation(), CONV, rf.Activation(), AVG)),
    "dropout between": ((12,), chain(AVG, rf.Dropout(0.3), AVG)),
    "max-pooling apart": ((16,), chain(AVG, CONV, rf.MaxPool(2), CONV, AVG)),
    "difference": (
        (9,),
        {
            "p": (AVG, "input"),
            "n": (rf.Scale(-1.0), "input"),
            "d": (ADD, "p", "n"),
            "c": (CONV, "d"),
        },
    ),
    "identity beside a pool": ((9,), {"p": (AVG, "input"), "s": (ADD, "input", "p")}),
    "max-pooling beside an identity": (
        (8,),
        {"m": (rf.MaxPool(2), "input"), "u": (NEAREST, "m"), "s": (ADD, "u", "input")},
    ),
    "an activation beside an identity": (
        (8,),
        {"r": (rf.Activation(), "input"), "s": (ADD, "r", "input"), "a": (AVG, "s")},
    ),
    "three ways": (
        (10,),
        {
            "p": (AVG, "input"),
            "f": (EDGE, "input"),
            "s": (ADD, "input", "p", "f"),
            "c": (CONV, "s"),
        },
    ),
    "ways within ways": (
        (8,),
        {
            "p": (AVG, "input"),
            "s": (ADD, "input", "p"),
            "q": (AVG, "s"),
            "t": (ADD, "s", "q", "input"),
            "c": (CONV, "t"),
        },
    ),
    "ways over other grids": (
        (8,),
        {
            "p": (DOWN, "input"),
            "u": (LINEAR, "p"),
            "s": (ADD, "input", "u"),
            "a": (AVG, "s"),
            "c": (CONV, "a"),
        },
    ),
    "decoder with linear skips": (
        (16,),
        {
            "d0": (CONV, "input"),
            "p1": (POOL, "d0"),
            "d1": (CONV, "p1"),
            "p2": (POOL, "d1"),
            "d2": (CONV, "p2"),
            "u1": (LINEAR, "d2"),
            "c1": (CONCAT, "u1", "d1"),
            "e1": (CONV, "c1"),
            "u0": (LINEAR, "e1"),
            "c0": (CONCAT, "u0", "d0"),
            "e0": (CONV, "c0"),
        },
    ),
    "top-down sums": (
        (16,),
        {
            "c1": (rf.Conv(3, 2, padding=1), "input"),
            "c2": (rf.Conv(3, 2, padding=1), "c1"),
            "c3": (rf.Conv(3, 2, padding=1), "c2"),
            "l2": (rf.Conv(1), "c2"),
            "l1": (rf.Conv(1), "c1"),
            "t3": (rf.Conv(1), "c3"),
            "u3": (LINEAR, "t3"),
            "t2": (ADD, "u3", "l2"),
            "u2": (LINEAR, "t2"),
            "t1": (ADD, "u2", "l1"),
            "o": (CONV, "t1"),
        },
    ),
    "pool branches in a row": (
        (9,),
        {
            "a1": (CONV, "input"),
            "p1": (AVG, "input"),
            "b1": (rf.Conv(1), "p1"),
            "m1": (CONCAT, "a1", "b1"),
            "a2": (CONV, "m1"),
            "p2": (AVG, "m1"),
            "b2": (rf.Conv(1), "p2"),
            "m2": (CONCAT, "a2", "b2"),
            "o": (CONV, "m2"),
        },
    ),
    "dense block and transition": (
        (16,),
        {
            "x": (CONV, "input"),
            "f1": (CONV, "x"),
            "c1": (CONCAT, "x", "f1"),
            "f2": (CONV, "c1"),
            "c2": (CONCAT, "c1", "f2"),
            "t": (rf.Conv(1), "c2"),
            "p": (AVG, "t"),
            "g": (CONV, "p"),
            "c3": (CONCAT, "p", "g"),
            "t2": (rf.Conv(1), "c3"),
            "p2": (AVG, "t2"),
            "o": (CONV, "p2"),
        },
    ),
    "windows side by side": ((24,), chain(AVG, rf.AvgPool(2), AVG, AVG)),
    "2-D pools": ((9, 8), chain(AVG, CONV, DOWN, rf.Activation(), AVG)),
    "2-D, one axis alone": ((8, 7), chain(rf.AvgPool((3, 1), 1), CONV, rf.AvgPool((2, 3), (2, 1)))),
    "2-D with unequal taps": (
        (7, 7),
        chain(AVG, rf.Conv(3, padding=1, taps=((0, 1, 0), (1, 4, 2), (0, 1, 0))), AVG),
    ),
    "2-D filters": ((8, 8), chain(SOBEL, CONV, LAPLACE, BLUR)),
    "2-D linear": ((4, 4), chain(LINEAR, CONV, LINEAR)),
    "2-D ways": (
        (6, 6),
        {
            "p": (AVG, "input"),
            "l": (LAPLACE, "input"),
            "s": (ADD, "p", "l", "input"),
            "a": (AVG, "s"),
        },
    ),
    "3-D": ((4, 4, 4), chain(rf.AvgPool(2, 1), rf.Conv(2), rf.AvgPool((2, 1, 2), 1))),
    "3-D with unequal taps": (
        (4, 4, 4),
        chain(
            rf.AvgPool(2, 1),
            rf.Conv(2, taps=(((1, 2), (3, 1)), ((1, 1), (5, 1)))),
            rf.AvgPool((2, 1, 2), 1),
        ),
    ),
}


@pytest.fixture
def independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slopes of activations as the oracle draws them, independently at every pixel; `test_forward`
    is about what they have in common."""
    for module in (correlated, lag_gains):
        monkeypatch.setattr(module, "slopes_of", lambda *_, **__: Slopes())


@pytest.mark.usefixtures("independent")
@pytest.mark.parametrize("name", CASES)
def test_bounded(name: str) -> None:
    size, nodes = CASES[name]
    network = network_of(nodes, len(size))
    graph = lower(network, size)
    node = graph.output_node(None)
    assert needed(graph, node, "input")
    chosen = [
        n for n, (layer, *_) in nodes.items() if isinstance(layer, rf.Activation | rf.MaxPool)
    ]
    between = [n for n in chosen if n not in ("r", "m")]  # not those beside an identity
    found = inexact_reasons(graph, node)
    kinds = {nodes[n][0].kind: n for n in between}  # one sentence for each kind, the last first
    counts = Counter(nodes[n][0].kind for n in between)
    more = {1: "", 2: " and 1 more"}
    said = [f"{n}{more[counts[kind]]}" for kind, n in kinds.items()]
    assert sorted(reason.split(":")[0] for reason in found) == sorted(said)
    errors = []
    for unit in units(graph.sizes[node]):
        truth = covariance_oracle.covariance(nodes, node, unit, size)
        for dtype in TOLERANCE:
            image = whole(*field(network, unit, size, dtype), size)
            assert np.abs(image - truth).max() < TOLERANCE[dtype] * truth.max()
        plain = direct.propagate(graph, node, unit, "input", kernels=load())
        squares = whole(plain.image, plain.origin, size) * math.exp(plain.mass.log())
        errors.append(np.abs(squares - truth).max() / truth.max())
    assert max(errors) > 1e-3  # the case has the power to tell covariances from variances


UNBOUNDED = [
    name
    for name, (_, nodes) in CASES.items()
    if not any(
        getattr(n[0], "ceil_mode", False) or isinstance(n[0], rf.Pad) for n in nodes.values()
    )
]


@pytest.mark.parametrize("name", UNBOUNDED)
def test_unbounded(name: str) -> None:
    """Far from all borders, a map of known size is the unbounded grid."""
    (*_, ndim), nodes = (len(CASES[name][0]),), CASES[name][1]
    network = network_of(nodes, ndim)
    free = lower(network)
    node = free.output_node(None)
    size = {1: 96, 2: 64, 3: 24}[ndim]
    graph = lower(network, size)
    stride = max(1, round(size / graph.sizes[node][0]))
    middle = size // 2 // stride // 4 * 4 if stride > 1 else graph.sizes[node][0] // 2 // 4 * 4
    unit = (middle,) * ndim
    image, origin = field(network, unit, None)
    clipped, corner = field(network, unit, size)
    assert min(corner) > 0
    assert origin == corner
    np.testing.assert_allclose(image, clipped, rtol=1e-12, atol=1e-12 * image.max())


@pytest.mark.parametrize("name", CASES)
def test_what_is_lost(name: str) -> None:
    """With what arrives it is what would arrive if there were no borders, where all units see the
    same there; covariances are lost with variances."""
    size, nodes = CASES[name]
    network = network_of(nodes, len(size))
    bounded = lower(network, size)
    node = bounded.output_node(None)
    axes = (axis for op in bounded.operations for m in op.maps for axis in m.axes)
    if not all(isinstance(axis, Window) for axis in axes):
        pytest.skip("phases and borders of its own: the gains are means")
    run = functools.partial(propagate_correlated, input_node="input", kernels=load())
    free = run(lower(network), node, (0,) * len(size))
    for unit in units(bounded.sizes[node]):
        found = run(bounded, node, unit)
        assert found.lost == pytest.approx(1 - found.mass.over(free.mass), abs=1e-14)
        assert found.lost >= 0 or not is_relative(bounded, node, "input")


@pytest.mark.parametrize("kind", ["avg", "max"])
def test_one_axis_as_a_whole(kind: Any) -> None:
    """Pooling all of one axis is that of a window which covers it."""
    images = []
    for whole in (
        rf.AdaptivePool((1, 9), kind),
        {"avg": rf.AvgPool, "max": rf.MaxPool}[kind]((8, 1), 1),
    ):
        network = rf.Sequential(CONV, AVG, whole, rf.Conv((1, 3)), AVG, ndim=2)
        field = rf.erf(network, input_size=(8, 9), unit=(0, 2))
        assert field.plan.engine == "correlated"
        images.append(field.image)
    np.testing.assert_allclose(*images, rtol=1e-13)


def test_coefficients_of_wide_windows_are_refused() -> None:
    network = rf.Sequential(rf.AvgPool(8001, 1, padding=4000), CONV, ndim=1)
    with pytest.raises(rf.errors.PlanError, match=r"8001 taps on 9000 pixels .* coefficients"):
        rf.plan(network, input_size=9000)


def test_what_is_lost_may_have_cancelled() -> None:
    """Of a difference of two pixels of an average, half a unit beyond the border: its variance is
    as large as that of both together."""
    line = rf.Sequential(rf.Filter(2, weights=(1, -1)), rf.AvgPool(2, 1, padding=1), ndim=1)
    graph = lower(line, 6)
    node = graph.output_node(None)
    found = propagate_correlated(graph, node, (0,), "input", kernels=load())
    free = propagate_correlated(lower(line), node, (0,), "input", kernels=load())
    assert found.lost == pytest.approx(1 - found.mass.over(free.mass), abs=1e-15)


def test_design_figures() -> None:
    """Squared weights are wrong by 7% of the peak in shape, and 11/3 times in mass."""
    network = network_of(CASES["the design's example"][1], 1)
    graph = lower(network)
    node = graph.output_node(None)
    squares, exact = (
        run(graph, node, (0,), "input", kernels=load())
        for run in (direct.propagate, propagate_correlated)
    )
    assert squares.origin == exact.origin
    assert np.abs(squares.image - exact.image).max() / exact.image.max() == pytest.approx(
        0.07, abs=0.005
    )
    assert exact.mass.over(squares.mass) == pytest.approx(11 / 3, rel=1e-12)


POOLS = ("avgpool", "upsample_nearest", "upsample_linear")


@pytest.mark.parametrize("seed", range(150))
def test_random_graphs(seed: int) -> None:
    """The other oracle, on graphs of any shape: exact, or said not to be."""
    case = _random_graph(np.random.default_rng(seed))
    unit = tuple(n // 2 for n in case.map_size())
    if not torch_oracle.region(case.naive(), case.output, unit, case.size):
        pytest.skip("the unit sees nothing")
    truth = torch_oracle.exact_variance(case.naive(), case.output, unit, case.size)
    image = whole(*field(case.network(), unit, case.size), case.size)
    graph = lower(case.network(), case.size)
    assert inexact_reasons(graph, case.output) == []
    assert np.abs(image - truth).max() < TOLERANCE["float64"] * truth.max()
    # Stacks hold one of a lag and its negative.
    for lags in coherence_of(graph, case.output, "input").lags.values():
        assert all(-t in axis for axis in lags for t in axis)


def _random_graph(rng: np.random.Generator) -> graphs.Graph:
    """Fixed and random layers, sums and at most one concatenation (the oracle gives each one's
    parts channels of their own, so that two of them would not be aligned)."""
    layers = [
        ("conv", {"kernel": 3, "lo": 1, "hi": 1}),
        ("conv_transpose", {"kernel": 2, "stride": 2}),
        ("avgpool", {"kernel": 3, "stride": 1, "lo": 1, "hi": 1}),
        ("avgpool", {"kernel": 3, "stride": 2, "lo": 1, "hi": 0, "count_include_pad": False}),
        ("avgpool", {"kernel": 2, "stride": 2}),
        ("upsample_nearest", {"factor": 2}),
        ("upsample_linear", {"factor": 2}),
        ("pad", {"lo": 2, "hi": 1, "mode": "reflect"}),
    ]
    size = (int(rng.integers(5, 10)),)
    case = graphs.Graph(1, (graphs.INPUT,), size)
    for _ in range(8):
        shapes = {n["name"]: case.map_size(n["name"]) for n in case.nodes}
        channels = case._channels()
        names = list(shapes)
        at = names[-1] if rng.random() < 0.7 else names[rng.integers(len(names))]
        alike = [n for n in names if n != at and shapes[n] == shapes[at]]
        if alike and rng.random() < 0.45:
            other = alike[rng.integers(len(alike))]
            single = all(n["op"] != "concat" for n in case.nodes)
            if channels[at] != channels[other]:
                continue
            op, inputs = ("concat" if single and rng.random() < 0.4 else "add"), [at, other]
            values: dict[str, Any] = {}
        else:
            op, values = layers[rng.integers(len(layers))]
            inputs = [at]
            if op == "pad" and shapes[at][0] <= 2:
                continue
        node = {"name": f"n{len(names)}", "op": op, "inputs": inputs, **values}
        grown = graphs.Graph(1, (*case.nodes, node), size)
        if 2 <= grown.map_size()[0] <= 16:
            case = grown
    return case


LAYERS: dict[int, list[Any]] = {
    ndim: [
        *(CONV, CONV, AVG, DOWN, POOL, BLUR, NEAREST, LINEAR, LAPLACE if ndim == 2 else EDGE),
        *(rf.Conv(2, 2), rf.Conv(3, 2, padding=1), rf.ConvTranspose(3, 2, padding=1)),
        *(rf.AvgPool(3, 2, padding=1, count_include_pad=False), rf.Upsample("3/2", "linear")),
        *(rf.Scale(-1.5), rf.Dropout(0.3), rf.Activation(), rf.MaxPool(2), rf.Pad(1, "replicate")),
        rf.Conv(3, padding=1, padding_mode="circular"),
        rf.Filter(3, padding=1, padding_mode="reflect"),
    ]
    for ndim in (1, 2)
}


@pytest.mark.usefixtures("independent")
@pytest.mark.parametrize(
    ("ndim", "seed"), [(1, s) for s in range(60)] + [(2, s) for s in range(15)]
)
def test_random_graphs_of_all_layers(ndim: int, seed: int) -> None:
    """Against the dense oracle, in which the data choose independently as fastrf takes them to."""
    size, nodes = _random_nodes(np.random.default_rng(1000 * ndim + seed), ndim)
    network = network_of(nodes, ndim)
    graph = lower(network, size)
    node = graph.output_node(None)
    unit = tuple(n // 2 for n in graph.sizes[node] or ())
    truth = covariance_oracle.covariance(nodes, node, unit, size)
    if not truth.any():
        pytest.skip("the unit sees nothing")
    chosen = ("counts as independent", "count as alike")
    doubts = [r for r in inexact_reasons(graph, node) if not any(text in r for text in chosen)]
    image = whole(*field(network, unit, size), size)
    assert doubts or np.abs(image - truth).max() < TOLERANCE["float64"] * truth.max()


def _random_nodes(rng: np.random.Generator, ndim: int) -> tuple[tuple[int, ...], Nodes]:
    size = tuple(int(n) for n in rng.integers(3, 9 if ndim == 1 else 6, ndim))
    nodes: Nodes = {"n0": (AVG, "input")}
    shapes = {"input": size, "n0": size}
    for number in range(1, 9):
        names = list(shapes)
        at = names[-1] if rng.random() < 0.65 else names[rng.integers(len(names))]
        alike = [n for n in names if n != at and shapes[n] == shapes[at]]
        new: tuple[Any, ...] = (LAYERS[ndim][rng.integers(len(LAYERS[ndim]))], at)
        if alike and rng.random() < 0.45:
            new = (ADD, at, alike[rng.integers(len(alike))])
        grown = {**nodes, f"n{number}": new}
        try:
            shape = lower(network_of(grown, ndim), size).sizes[f"n{number}"] or ()
        except rf.errors.InputError:  # a map that shrinks to nothing
            continue
        if min(shape) >= 2 and math.prod(shape) <= 36:
            nodes, shapes[f"n{number}"] = grown, shape
    return size, nodes


# --- channels -------------------------------------------------------------------------------


def test_the_same_channels_of_two_concatenations() -> None:
    """x comes to the sum twice in the same channels, y twice in others: as without them."""
    nodes: Nodes = {
        "x": (CONV, "input"),
        "y": (CONV, "input"),
        "a": (CONCAT, "x", "y"),
        "b": (CONCAT, "x", "y"),
        "sum": (ADD, "a", "b"),
        "o": (CONV, "sum"),
    }
    for channels in (1, None):
        given = {
            n: (rf.Conv(3, padding=1, channels=channels), *rest)
            if isinstance(layer, rf.Conv)
            else (layer, *rest)
            for n, (layer, *rest) in nodes.items()
        }
        network = rf.Network(given, "o", ndim=1)
        graph = lower(network, 9)
        found = inexact_reasons(graph, "o")
        if channels is None:
            # Which channels are x's is not known where their number is not.
            assert any("channels" in reason for reason in found)
            continue
        assert found == []
        image, _ = field(network, (4,), 9)
        single = rf.Network({"c": (CONV, "input"), "o": (CONV, "c")}, "o", ndim=1)
        once, _ = field(single, (4,), 9)
        np.testing.assert_allclose(image, 4 * once, rtol=1e-12)


@pytest.mark.parametrize(
    "layers",
    [
        (rf.PixelUnshuffle(2), rf.PixelShuffle(2)),
        (rf.ChannelShuffle(2), rf.ChannelShuffle(3)),
        (rf.ChannelSlice(0, 6), rf.Identity()),
    ],
)
def test_channels_that_move_and_come_back(layers: tuple[Any, ...]) -> None:
    """Shuffles there and back are nothing: pixels stay as correlated as they were."""
    through = rf.Sequential(rf.Input(6), rf.AvgPool(3, 1), *layers, rf.AvgPool(3, 1), ndim=1)
    straight = rf.Sequential(rf.Input(6), rf.AvgPool(3, 1), rf.AvgPool(3, 1), ndim=1)
    graph = lower(through, 14)
    assert inexact_reasons(graph, graph.output_node(None)) == []
    for size in (14, None):
        image, origin = field(through, (4,), size)
        expected, first = field(straight, (4,), size)
        assert origin == first
        np.testing.assert_allclose(image, expected, rtol=1e-12)


def test_halves_that_are_added() -> None:
    """A concatenation's parts, an average and an identity, sliced apart and added."""
    nodes = {
        "input": (rf.Input(2),),
        "p": (AVG, "input"),
        "c": (CONCAT, "input", "p"),
        "left": (rf.ChannelSlice(0, 2), "c"),
        "right": (rf.ChannelSlice(2, 4), "c"),
        "add": (ADD, "left", "right"),
    }
    image, _ = field(rf.Network(nodes, "add", ndim=1), (4,), 9)
    plain = rf.Network({"p": (AVG, "input"), "s": (ADD, "input", "p")}, "s", ndim=1)
    expected, _ = field(plain, (4,), 9)
    np.testing.assert_allclose(image, expected, rtol=1e-12)


SHUFFLES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "shuffled": ((rf.AvgPool(3, 1), rf.PixelShuffle(2), rf.AvgPool(3, 1)), "avg ps avg"),
    "unshuffled": ((rf.AvgPool(3, 1), rf.PixelUnshuffle(2), rf.AvgPool(3, 1)), "avg pu avg"),
    "there and back": (
        (rf.AvgPool(3, 1), rf.PixelUnshuffle(2), rf.AvgPool(2, 1), rf.PixelShuffle(2)),
        "avg pu avg2 ps",
    ),
    "channels shuffled": (
        (rf.AvgPool(3, 1), rf.ChannelShuffle(2), rf.PixelShuffle(2), rf.AvgPool(3, 1)),
        "avg cs ps avg",
    ),
}


@pytest.mark.parametrize("name", SHUFFLES)
def test_shuffles(name: str) -> None:
    """Deterministic from end to end: the squared Jacobian of PyTorch's own layers, of all channels
    of the unit together, which have uncorrelated gradients."""
    import torch
    import torch.nn.functional as F

    layers, program = SHUFFLES[name]
    steps = {
        "avg": lambda x: F.avg_pool2d(x, 3, 1),
        "avg2": lambda x: F.avg_pool2d(x, 2, 1),
        "ps": lambda x: F.pixel_shuffle(x, 2),
        "pu": lambda x: F.pixel_unshuffle(x, 2),
        "cs": lambda x: F.channel_shuffle(x, 2),
    }
    size = (12, 10) if "pu" in program.split() else (7, 6)
    network = rf.Sequential(rf.Input(4), *layers, ndim=2)
    graph = lower(network, size)
    node = graph.output_node(None)
    assert inexact_reasons(graph, node) == []
    unit = tuple(n // 2 for n in graph.sizes[node] or ())
    x = torch.zeros((1, 4, *size), dtype=torch.float64, requires_grad=True)
    y = x
    for step in program.split():
        y = steps[step](y)
    truth = np.zeros(size)
    for channel in range(y.shape[1]):
        (g,) = torch.autograd.grad(y[(0, channel, *unit)], x, retain_graph=True)
        truth += g[0].square().sum(0).numpy() / y.shape[1]
    image = whole(*field(network, unit, size), size)
    assert np.abs(image - truth).max() < TOLERANCE["float64"] * truth.max()


# --- what is carried ------------------------------------------------------------------------


def widths(network: rf.Network, size: Any) -> dict[str, tuple[int, ...]]:
    """Number of lags per axis of every map."""
    graph = lower(network, size)
    found = coherence_of(graph, graph.output_node(None), "input")
    return {graph.planes[p].node: tuple(map(len, lags)) for p, lags in sorted(found.lags.items())}


def test_lags_only_where_they_are_wanted() -> None:
    layers = (CONV, AVG, CONV, rf.Conv(3, 2, padding=1), CONV, AVG, CONV)
    found = widths(rf.Sequential(*layers, ndim=1), None)
    # The lower pool wants lags up to 2, lag 1 above the stride is lag 2 below it, and lag 2 above
    # would be 4.
    assert found == {
        "input": (1,),
        "conv1": (1,),
        "avgpool1": (3,),
        "conv2": (3,),
        "conv3": (3,),
        "conv4": (3,),
        "avgpool2": (1,),
        "conv5": (1,),
    }


def test_the_most_lags() -> None:
    """Pools in a row: 2 lags more on either side for each one below, none beyond what exists."""
    layers = [layer for _ in range(4) for layer in (AVG, CONV)]
    graph = lower(rf.Sequential(*layers, ndim=2))
    found = coherence_of(graph, graph.output_node(None), "input")
    # Wanted above the pools, from the input: ±2, ±4, ±6; there below them, from the unit: ±2, …
    assert found.widest == 9**2


def test_networks_that_need_none() -> None:
    for name in ("resnet50", "vgg16", "unet(3, 1)", "plain(30, 3)"):
        graph = lower(rf.zoo.get(name), 64)
        assert not needed(graph, graph.output_node(None), "input")
    layers: Any
    for layers in ((AVG, CONV, CONV), (CONV, NEAREST, CONV, NEAREST, CONV), (POOL, CONV, POOL)):
        graph = lower(rf.Sequential(*layers, ndim=2), 16)
        assert not needed(graph, graph.output_node(None), "input")


def test_deep_gains_and_tails_keep_their_range() -> None:
    """500 layers with a gain of 2^20 each, an average at both ends."""
    wide = rf.Conv(3, padding=1, gain=2.0**20)
    layers = (AVG, *[wide] * 500, AVG)
    image, _ = _normalised(rf.Sequential(*layers, ndim=1))
    plain, log_gain = _normalised(rf.Sequential(AVG, *[CONV] * 500, AVG, ndim=1))
    np.testing.assert_allclose(image, plain, rtol=1e-10)
    assert _normalised(rf.Sequential(*layers, ndim=1))[1] == pytest.approx(
        log_gain + 500 * 20 * math.log(2)
    )


def _normalised(network: rf.Network) -> tuple[np.ndarray, float]:
    graph = lower(network)
    found = propagate_correlated(graph, graph.output_node(None), (0,), "input", kernels=load())
    return found.pixels(), found.mass.log()


def test_right_pixel_by_pixel_unless_something_cancels() -> None:
    """Far out in the tail of 60 pools, where each pixel is 1e-50 of the peak or less."""
    cancels = ("negative weights", "cubic", "difference", "three ways", "2-D filters", "2-D ways")
    for name, (size, nodes) in CASES.items():
        graph = lower(network_of(nodes, len(size)), size)
        assert is_relative(graph, graph.output_node(None), "input") == (name not in cancels)
    layers = [layer for _ in range(60) for layer in (CONV, AVG)]
    graph = lower(rf.Sequential(*layers, ndim=1))
    node = graph.output_node(None)
    expected = composed(graph, node, (0,), "input")
    found = propagate_correlated(graph, node, (0,), "input", kernels=load())
    assert expected is not None
    assert found.origin == expected.origin
    assert found.image[0] < 1e-50 * found.image.max()
    np.testing.assert_allclose(found.image, expected.profiles[0], rtol=1e-11)


def uneven(kernel: int, stride: int) -> rf.Filter:
    """Coefficients that are no product of one vector per axis."""
    weights = np.random.default_rng(kernel).random((kernel, kernel))
    return rf.Filter(kernel, stride, padding=kernel // 2, weights=weights)


def moved(pixels: int) -> Any:
    """A way on which pixels go so far, and come back."""
    return rf.Sequential(rf.Crop(((pixels, 0),)), rf.Pad(((0, pixels),))) if pixels else None


WIDE = rf.AvgPool(31, stride=1, padding=15)
WIDER = rf.Conv(61, padding=30)
EITHER, LESS = rf.Parallel(SOBEL, AVG), rf.Parallel(AVG, rf.Scale(-1.0))
BLUR_8, ROUTES_8 = rf.Filter(9, 8, padding=4), rf.MaxPool(9, 8, padding=4)
MOVED = rf.Parallel(*map(moved, (0, 1, 4, 9, 15, 22, 32, 34)))

FORETOLD: dict[str, tuple[rf.Network, Any]] = {
    "pools at both ends": (rf.Sequential(AVG, *[CONV] * 30, AVG, CONV), None),
    "with borders": (rf.Sequential(AVG, *[CONV] * 20, AVG, CONV), 150),
    "pools in a row": (rf.Sequential(*[AVG, CONV] * 3, *[CONV] * 40), None),
    "blur-pools": (rf.Sequential(*[CONV, CONV, rf.Filter(3, 2, padding=1)] * 5, CONV), None),
    "3-D": (rf.Sequential(AVG, *[CONV] * 8, AVG, CONV, ndim=3), None),
    "of either sign": (rf.Sequential(SOBEL, *[CONV] * 30, AVG, CONV), None),
    "of either sign, no product": (rf.Sequential(LAPLACE, *[CONV] * 30, AVG, CONV), None),
    "of either sign, lines": (rf.Sequential(WIDE, EDGE, *[CONV, WIDE] * 5, ndim=1), None),
    "no product": (rf.Sequential(uneven(5, 4), *[CONV] * 30, AVG, CONV), None),
    "many terms": (rf.Sequential(uneven(9, 8), *[CONV] * 20, AVG, CONV), None),
    "routes": (rf.Sequential(rf.MaxPool(3, 2, padding=1), *[CONV] * 30, AVG, CONV), None),
    "ways apart": (rf.Sequential(MOVED, BLUR_8, *[WIDER] * 10, AVG, CONV, ndim=1), None),
    "ways apart, borders": (rf.Sequential(MOVED, BLUR_8, *[WIDER] * 10, AVG, CONV, ndim=1), 5000),
    "routes apart": (rf.Sequential(MOVED, ROUTES_8, *[WIDER] * 10, AVG, CONV, ndim=1), None),
    "one way of either sign": (rf.Sequential(AVG, EITHER, *[CONV] * 30, AVG, CONV), None),
    "a difference": (rf.Sequential(AVG, CONV, LESS, *[CONV] * 30, AVG, CONV), None),
    "routes one by one": (rf.Sequential(rf.MaxPool(3, 1, 1), *[CONV] * 30, AVG, CONV), None),
    "dense block": (rf.Network({"input": (rf.Input(),), "first": (DOWN, "input"), **{
        name: node
        for n in range(24)
        for name, node in {
            f"c{n}": (CONV, f"cat{n - 1}" if n else "first"),
            f"cat{n}": (CONCAT, f"cat{n - 1}" if n else "first", f"c{n}"),
        }.items()
    }, "t": (rf.AvgPool(40), "cat23")}), None),
}  # fmt: skip


def foretold_and_taken(
    network: rf.Network, size: Any, dtype: str
) -> tuple[Forecast, Propagated, int]:
    """What a walk will be, what it finds, and bytes at its fullest moment."""
    graph = lower(network, size)
    node = graph.output_node(None)
    at = (graph, node, graph.unit_index(node, "center"), graph.input_node(None))
    found = propagate_correlated(*at, kernels=load(), dtype=dtype)
    peak = traced(lambda: propagate_correlated(*at, kernels=load(), dtype=dtype))
    return of_correlated(*at, np.dtype(dtype), None), found, peak


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", FORETOLD)
def test_memory_is_foretold(name: str, dtype: str) -> None:
    """No less than what is taken, and little more: lags are counted plane by plane."""
    foretold, found, peak = foretold_and_taken(*FORETOLD[name], dtype)
    assert peak <= foretold.memory <= 1.1 * peak
    assert foretold.support == tuple(zip(found.origin, found.image.shape, strict=True))


def test_memory_of_ways_far_apart_is_foretold() -> None:
    """Each has a window of its own."""
    far = rf.Parallel(None, moved(25_000))
    network = rf.Sequential(far, *[rf.Conv(3001, padding=1500)] * 10, far, ndim=1)
    foretold, _, peak = foretold_and_taken(network, None, "float64")
    assert foretold.memory == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("layer", [EDGE, rf.Filter(4, 3, padding=1, weights=(1.0, -1, 2, 3))])
def test_memory_of_all_lags_at_once_is_foretold(
    layer: rf.Filter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of either sign, whatever is quicker."""
    for module in (lag_mixing, forecast_correlated):
        monkeypatch.setattr(module, "takes_at_once", lambda *_: True)
    network = rf.Sequential(rf.AvgPool(15, 1, padding=7), CONV, layer, *[CONV] * 70, ndim=1)
    foretold, _, peak = foretold_and_taken(network, None, "float64")
    assert foretold.memory == pytest.approx(peak, rel=0.05)


def test_lags_of_a_resize_are_averaged_over_its_phases() -> None:
    """Linear interpolation by 3/2: output o reads a triangle about (o + 1/2)·2/3 − 1/2."""
    (move,) = rf.Upsample("3/2", "linear").bind(1).maps(None, 1)
    ((line,),) = terms((move,), 1)
    lags = [-2, 0, 1, 3]
    found = _met(line, line, lags, lags)

    def triangle(o: int, i: int) -> float:
        return max(0.0, 1 - abs(i - ((o + 0.5) * 2 / 3 - 0.5)))

    for (row, above), (column, below) in itertools.product(enumerate(lags), repeat=2):
        products = [
            triangle(o, i) * triangle(o + above, i + below) for o in range(3) for i in range(-4, 8)
        ]
        assert found[row, column] == pytest.approx(sum(products) / 3, abs=1e-15)


def test_threads_do_not_matter() -> None:
    graph = lower(network_of(CASES["2-D pools"][1], 2), (400, 300))
    node = graph.output_node(None)
    one, two = (
        propagate_correlated(graph, node, (100, 70), "input", kernels=load(), workers=w)
        for w in (1, 2)
    )
    assert one.origin == two.origin
    np.testing.assert_array_equal(one.image, two.image)


def test_threads_are_as_many_as_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would see nothing if all were done by one."""
    workers: set[int] = set()

    def watched(self: Threads, *arguments: Any) -> None:
        workers.add(self.workers)
        plain(self, *arguments)

    plain = Threads.cut
    monkeypatch.setattr(Threads, "cut", watched)
    graph = lower(rf.Sequential(rf.AvgPool(3, 1), rf.Conv(3), rf.AvgPool(3, 1)), 24)
    node = graph.output_node(None)
    propagate_correlated(graph, node, (5, 5), "input", kernels=load(), workers=3)
    assert workers == {3}


def test_progress_and_errors_are_the_direct_engines() -> None:
    shares: list[float] = []
    graph = lower(network_of(CASES["decoder with linear skips"][1], 1), 16)
    options: dict[str, Any] = {"kernels": load(), "progress": shares.append}
    propagate_correlated(graph, "e0", (8,), "input", **options)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    net = rf.Sequential(rf.Pad(6), AVG, CONV, AVG, ndim=1)
    graph = lower(net, 5)
    with pytest.raises(rf.errors.EmptyFieldError):
        propagate_correlated(graph, graph.output_node(None), (0,), "input", kernels=load())
    graph = lower(rf.Sequential(AVG, rf.GlobalPool(), CONV, ndim=1))
    with pytest.raises(rf.errors.UnboundedError):
        propagate_correlated(graph, graph.network.outputs[0], (0,), "input", kernels=load())


@pytest.mark.parametrize(
    "layer",
    [
        rf.AdaptivePool(16, "max"),
        rf.MaxPool(3, stride=2, ceil_mode=True),
        rf.Upsample(1.5),
        rf.Conv(4, stride=3, padding=1),
        rf.ConvTranspose(3, stride=2),
    ],
    ids=repr,
)
def test_where_variances_suffice_below_gains_of_lag_0_are_mean_gains(layer: Any) -> None:
    """Also of maps that treat pixels differently."""
    graph = lower(rf.Sequential(layer, AVG, AVG, ndim=1), 24)
    node = [*graph.network.nodes][1]
    (plane,) = graph.planes_of[node]
    gains = lag_gains.lag_gains(graph, graph.output_node(None), "input").planes[plane]
    found = float(gains.at([(0,)])[0]) * gains.scale.over(ONE)
    assert found == pytest.approx(mean_gains(graph, "input")[plane].over(ONE), rel=1e-14)


def test_values_that_a_type_does_not_hold_are_nothing() -> None:
    """Far out in the tails of 200 layers between two pools."""
    net = rf.Sequential(AVG, *[CONV] * 200, AVG, ndim=1)
    small, large = (rf.erf(net, dtype=dtype, method="direct") for dtype in ("float32", "float64"))
    assert small.plan.engine == large.plan.engine == "correlated"
    start = small.origin[0] - large.origin[0]
    beside = large.image[start : start + len(small.image)]
    assert small.image.shape < large.image.shape
    np.testing.assert_allclose(small.image, beside, rtol=1e-4, atol=0)


# --- what stays approximate -----------------------------------------------------------------


@pytest.mark.parametrize(
    "order", [(rf.PixelUnshuffle, rf.PixelShuffle), (rf.PixelShuffle, rf.PixelUnshuffle)]
)
def test_shuffles_of_channels_whose_number_is_not_known(order: tuple[Any, Any]) -> None:
    """There and back beside a shortcut: of the same channels, which is seen where they are told."""
    net = rf.Parallel([layer(2) for layer in order], None)
    told, untold = (rf.erf(rf.Sequential(*head, net), input_size=8) for head in ([rf.Input(8)], []))
    assert told.exact
    assert told.log_gain == pytest.approx(math.log(4))
    assert any("channels in which they meet are not followed" in why for why in untold.inexact)


def reasons(nodes: Nodes, ndim: int = 1) -> list[str]:
    graph = lower(network_of(nodes, ndim), 24)
    return inexact_reasons(graph, graph.output_node(None))


def test_reasons() -> None:
    """What the data choose is independent between the oracle's pixels, not in a real network."""
    (found,) = reasons(chain(rf.MaxPool(3, 2, padding=1), CONV, AVG))
    assert found.startswith("maxpool0: ")
    assert "avgpool2" in found
    (found,) = reasons(chain(AVG, rf.Activation(), CONV, AVG))
    assert found.startswith("relu1: ")
    assert "avgpool3" in found
    for gelu in (rf.Activation("gelu"), rf.Activation("gelu", gain=1.0)):
        (found,) = reasons(chain(AVG, gelu, CONV, AVG))
        assert found.startswith("gelu1: slopes of neighbouring pixels")
        assert "avgpool3" in found
    # Where the gradients are uncorrelated, or their correlation does not matter below.
    assert reasons(chain(AVG, CONV, rf.Activation("gelu"))) == []
    assert reasons(chain(CONV, rf.Activation("gelu"), AVG, CONV, AVG)) == []
    assert reasons(chain(AVG, rf.Activation("identity"), rf.Dropout(), AVG)) == []
    both: Nodes = {
        "r": (rf.Activation(), "input"),
        "p": (AVG, "input"),
        "q": (rf.Activation(), "p"),
        "s": (ADD, "r", "q"),
    }
    (found,) = reasons(both)
    assert found.startswith("input: ")
    assert "depends on the data" in found


def test_a_search_that_takes_too_long_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastrf.engine.coherence.MOST_STEPS", 2)
    monkeypatch.setattr("fastrf.engine.coherence.STEPS_EACH", 0)
    nodes: Nodes = {}
    at = "input"
    for number in range(4):
        nodes[f"p{number}"] = (AVG, at)
        nodes[f"s{number}"] = (ADD, at, f"p{number}")
        at = f"s{number}"
    found = reasons(nodes)
    assert [text.split(":")[1][:9] for text in found] == [" too many"] * len(found)
    assert found


# --- layers with given weights --------------------------------------------------------------


def test_filters() -> None:
    """Variances are the squares; signs are kept, as a product where they are one."""
    (move,) = rf.Filter(3, 2, padding=1).bind(2).maps((9, 9), 2)
    assert move.coefficients is None
    assert move.taps is not None
    np.testing.assert_allclose(move.taps[0] * math.sqrt(move.gain), np.array([1, 4, 1]) / 16)
    for layer, separable in ((SOBEL, True), (LAPLACE, False)):
        (move,) = layer.bind(2).maps((9, 9), 2)
        assert isinstance(move.coefficients, tuple) == separable
        found = move.coefficients
        whole_ = np.multiply.outer(*found) if separable else found
        np.testing.assert_allclose(whole_ * math.sqrt(move.gain), layer.weights, atol=1e-14)
    # Squares that are a product, of weights that are none.
    (move,) = rf.Filter(2, weights=((1, 1), (1, -1))).bind(2).maps((9, 9), 2)
    assert move.taps is None
    np.testing.assert_allclose(move.coefficients, np.array([[1, 1], [1, -1]]) / 2)


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (rf.Filter(3, weights=(1, 2)), "do not fit kernel=(3,)"),
        (rf.Filter(2, weights=(0, 0)), "not all 0"),
        (rf.Filter(2, weights=(0, math.nan)), "finite"),
        (rf.Filter(2, weights="ab"), "array of numbers"),
        (rf.Scale(0), "other than 0"),
        (rf.Scale("x"), "other than 0"),
    ],
)
def test_layers_refuse(layer: Any, said: str) -> None:
    with pytest.raises(rf.errors.InputError, match=re.escape(said)):
        layer.bind(1)


@pytest.mark.parametrize("scale", [2, 3, "3/2", "1/2"])
@pytest.mark.parametrize("size", [(6, 5), (2, 3)])
def test_cubic_resizing(scale: Any, size: tuple[int, ...]) -> None:
    """PyTorch's coefficients, borders included."""
    layer = rf.Upsample(scale, "cubic").bind(2)
    (move,) = layer.maps(size, 2)
    own = covariance_oracle._matrices(layer, size, 1)[0]
    found = np.ones((1, 1))
    for axis, n in zip(move.axes, size, strict=True):
        line = np.zeros((axis.period, n))
        rows = np.sqrt(axis.taps) if axis.coefficients is None else axis.coefficients
        for o, (start, row) in enumerate(zip(axis.starts, rows, strict=True)):
            inside = row[: n - start]
            assert not row[n - start :].any()
            line[o, start : start + len(inside)] += inside
        found = np.kron(found, line)
    np.testing.assert_allclose(found, own, atol=1e-14)


# --- generating functions -------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["the design's example", "pools that overlap", "wide pools", "dilated", "blur-pool",
     "negative weights", "2-D, one axis alone"],
)  # fmt: skip
def test_composed_chains(name: str) -> None:
    """The image of a chain, pixel by pixel, from polynomials alone."""
    size, nodes = CASES[name]
    graph = lower(network_of(nodes, len(size)))
    node = graph.output_node(None)
    unit = (2, -1)[: len(size)]
    expected = composed(graph, node, unit, "input")
    assert expected is not None
    found = propagate_correlated(graph, node, unit, "input", kernels=load())
    assert found.origin == expected.origin
    assert found.mass.log() == pytest.approx(expected.log_gain, abs=1e-12)
    image = functools.reduce(np.multiply.outer, expected.profiles)
    atol = 1e-13 * image.max() if name == "negative weights" else 0
    np.testing.assert_allclose(found.image, image, rtol=1e-12, atol=atol)


def test_composed_for_many_layers() -> None:
    """30 pools with weights between, of which the squares are far off."""
    layers = [layer for _ in range(30) for layer in (CONV, rf.AvgPool(5, 1), rf.Scale(0.5))]
    graph = lower(rf.Sequential(*layers, ndim=1))
    node = graph.output_node(None)
    expected = composed(graph, node, (0,), "input")
    assert expected is not None
    found = propagate_correlated(graph, node, (0,), "input", kernels=load())
    assert found.origin == expected.origin
    assert found.mass.log() == pytest.approx(expected.log_gain, rel=1e-12)
    np.testing.assert_allclose(found.image, expected.profiles[0], rtol=1e-11)
    squares = direct.propagate(graph, node, (0,), "input", kernels=load())
    assert found.mass.log() - squares.mass.log() > 30 * math.log(3)


def test_composed_refuses() -> None:
    for layers in (
        (rf.Residual(CONV), AVG),
        (AVG, rf.MaxPool(2)),
        (AVG, rf.Activation(), AVG),
        (AVG, rf.Activation("gelu")),
        (AVG, NEAREST),
        (LAPLACE, AVG),
    ):
        graph = lower(rf.Sequential(*layers, ndim=2))
        assert composed(graph, graph.output_node(None), (0, 0), "input") is None
    graph = lower(rf.Sequential(CONV, AVG, ndim=1), 9)
    assert composed(graph, graph.output_node(None), (4,), "input") is None


# --- pairs of pixels ------------------------------------------------------------------------

PAIRED = [
    name
    for name in UNBOUNDED
    if not any(
        isinstance(layer, rf.Activation | rf.MaxPool | rf.Upsample | rf.ConvTranspose)
        for layer, *_ in CASES[name][1].values()
    )
]


@pytest.mark.parametrize("name", PAIRED)
def test_paired_moments(name: str) -> None:
    """Mass, mean and covariance of any graph of windows, by a recursion of its own."""
    size, nodes = CASES[name]
    graph = lower(network_of(nodes, len(size)))
    node = graph.output_node(None)
    unit = (3, -2, 1)[: len(size)]
    expected = paired_moments(graph, node, unit, "input")
    assert expected is not None
    found = propagate_correlated(graph, node, unit, "input", kernels=load())
    assert found.mass.log() == pytest.approx(math.log(expected.mass), abs=1e-12)
    image = found.pixels()
    places = np.stack(np.meshgrid(*map(np.arange, image.shape), indexing="ij")).reshape(
        image.ndim, -1
    )
    places = places + np.array(found.origin)[:, None]
    mean = places @ image.ravel()
    away = places - mean[:, None]
    np.testing.assert_allclose(mean, expected.mean, atol=1e-12)
    np.testing.assert_allclose((away * image.ravel()) @ away.T, expected.covariance, atol=1e-11)


def test_pairs_refuse() -> None:
    for layers in (
        (AVG, rf.Activation(), AVG),
        (AVG, rf.Activation("gelu"), AVG),
        (AVG, CONV, rf.MaxPool(3, 1), AVG),
        (AVG, NEAREST),
    ):
        graph = lower(rf.Sequential(*layers, ndim=1))
        assert paired_moments(graph, graph.output_node(None), (0,), "input") is None
    graph = lower(rf.Sequential(AVG, CONV, AVG, ndim=1), 9)
    assert paired_moments(graph, graph.output_node(None), (4,), "input") is None
    # Where gradients are uncorrelated, or only one window's, what the data choose does not matter.
    graph = lower(rf.Sequential(rf.MaxPool(3, 2), rf.Activation(), CONV, AVG, ndim=1))
    assert paired_moments(graph, graph.output_node(None), (0,), "input") is None
    graph = lower(rf.Sequential(rf.MaxPool(3, 2), rf.Activation(), CONV, ndim=1))
    assert paired_moments(graph, graph.output_node(None), (0,), "input") is not None
