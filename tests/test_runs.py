"""Runs of layers in the direct engine: where they begin and end, and that they change nothing.

The oracle of a run is the same engine with one layer at a time: `layer_of` that finds no layer.
Forecasts are measured against images that were computed, and against sums written out here.

Tolerances: a layer of T taps rounds each pixel at most T + 4 times in either way of doing it (T
products, their sum, and scales), so that two images differ by 2·Σ(T + 4)·u relative to each pixel.
Masses, losses and normalisation are float64 sums of at most N pixels each, in both images, of
which at most two are divided by each other: 4·N·2^−53 more. What lies below the smallest normal
number of a result is 0, so next to it one image may have a 0 where the other has that number.
"""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fastrf.kernels import load

import fastrf as rf
from fastrf.device import resolve
from fastrf.engine import direct, program, spectral, threads
from fastrf.engine.chains import (
    MOST_TAPS,
    SMALLEST_TAP,
    WIDEST_BOX,
    chains,
    layer_of,
    layers_of_run,
    run_from,
)
from fastrf.engine.choice import CLEARLY_SLOWER, NOTICEABLE
from fastrf.engine.plan import make_plan
from fastrf.engine.reach import Reach, Reaches
from fastrf.engine.scaled import Headroom
from fastrf.engine.transfer import transfer_function
from fastrf.lowering import Operation, PlaneGraph, lower
from fastrf.maps import SpatialMap, Window

DTYPES = ("float64", "float32")
HUGE = 2.0**900


@pytest.fixture(autouse=True)
def _layer_by_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images, too, go layer by layer here; tests/test_program.py has them in one call."""
    monkeypatch.setattr(program, "TILES_IN_ONE_CALL", 0)


def taps(*shape: int) -> np.ndarray:
    """Unequal variances, no product of vectors."""
    values = np.random.default_rng(3).uniform(0.1, 1, shape)
    return values / values.sum()


def lowered(*layers: rf.Layer, ndim: int, size: Any = None) -> PlaneGraph:
    return lower(rf.Sequential(*layers, ndim=ndim), size)


def nodes(graph: PlaneGraph) -> list[list[str]]:
    operations = graph.between(graph.output_node(None), "input")
    return [[op.node for op in chain] for chain in chains(operations)]


# --- chains ---------------------------------------------------------------------------------


def network(**layers: Any) -> rf.Network:
    *_, last = layers
    return rf.Network(
        {k: v if isinstance(v, tuple) else (v,) for k, v in layers.items()}, last, ndim=2
    )


def c(*sources: str, kernel: int = 3, **more: Any) -> tuple[Any, ...]:
    return (rf.Conv(kernel, padding="same", **more), *sources)


def test_a_plain_network_is_one_chain() -> None:
    graph = lower(rf.zoo.plain(6, activation="relu"))
    (chain,) = nodes(graph)
    assert chain == [op.node for op in reversed(graph.operations)]


def test_nothing_is_no_chain() -> None:
    assert list(chains([])) == []


@pytest.mark.parametrize(
    ("summands", "between"),
    [
        (("b", "stem"), [["sum"], ["sum", "b", "a"]]),
        (("stem", "b"), [["sum"], ["sum"], ["b", "a"]]),
    ],
)
def test_chains_end_where_branches_meet(summands: Any, between: list[list[str]]) -> None:
    """Both summands write `sum`, and `stem` is read twice. The branch takes the summand it ends
    in with it where nothing stands between them in the order of operations."""
    net = network(
        input=rf.Input(),
        stem=c("input"),
        a=c("stem"),
        b=c("a"),
        sum=(rf.Add(), *summands),
        head=c("sum"),
        last=c("head"),
    )
    found = nodes(lower(net))
    assert found[0] == ["last", "head"]
    assert found[-1] == ["stem"]
    assert found[1:-1] == between


def test_chains_end_at_concatenations() -> None:
    net = network(
        input=rf.Input(2),
        a=c("input", channels=2),
        b=c("a", channels=6),
        both=(rf.Concat(), "a", "b"),
        d=c("both", channels=2),
        all=(rf.Concat(), "both", "d"),
        out=c("all", channels=1),
    )
    found = nodes(lower(net))
    assert found[0] == ["out"]
    assert found[-1] == ["a"]
    assert not any({"a", "both", "all"} & set(chain[:-1]) - {chain[0]} for chain in found)
    assert sum(map(len, found)) == len(lower(net).operations)


def test_chains_end_where_a_layer_has_several_planes() -> None:
    net = network(
        input=rf.Input(4),
        wide=c("input", channels=4),
        some=(rf.ChannelSlice(0, 1), "wide"),
        out=c("some", channels=1),
        last=c("out", channels=1),
    )
    graph = lower(net)
    assert len(graph.planes_of["wide"]) == 2
    assert nodes(graph) == [["last", "out", "some"], ["wide"]]


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet", "unet(3)", "wavenet"])
def test_chains_hold_every_operation_once_in_order(name: str) -> None:
    graph = lower(rf.zoo.get(name))
    operations = graph.between(graph.output_node(None), "input")
    pieces = list(chains(operations))
    assert list(itertools.chain(*pieces)) == operations[::-1]
    for chain in pieces:
        for above, below in itertools.pairwise(chain):
            ((plane, _),) = above.sources
            assert [p for p, _ in below.targets] == [plane]
            assert [op for op in operations if plane in dict(op.sources)] == [above]
            assert [op for op in operations if plane in dict(op.targets)] == [below]
    for (*_, above), (below, *_) in itertools.pairwise(pieces):
        joins = len(above.sources) == len(below.targets) == 1
        if joins and above.sources[0][0] == below.targets[0][0]:
            plane = above.sources[0][0]
            readers = [op for op in operations if plane in dict(op.sources)]
            writers = [op for op in operations if plane in dict(op.targets)]
            assert len(readers) > 1 or len(writers) > 1


# --- layers ---------------------------------------------------------------------------------


def move(*axes: Window, values: Any = None) -> Operation:
    moved = SpatialMap(axes, taps=values)
    return Operation("layer", (moved,), ((0, 1.0),), ((1, 1.0),))


SMALL = np.array([[1.0, 2.0], [4.0, SMALLEST_TAP]])


@pytest.mark.parametrize(
    ("op", "served"),
    [
        (move(Window(3, lo=1)), True),
        (move(Window(3), Window(1)), True),
        (move(Window(3), Window(1, dilation=2)), True),
        (move(Window(1), Window(1)), False),
        (move(Window(3), Window(1, stride=2)), False),
        (move(Window(3, stride=2)), False),
        (move(Window(3, dilation=2)), False),
        (move(Window(WIDEST_BOX)), True),
        (move(Window(WIDEST_BOX + 1)), False),
        (move(Window(3), values=(np.array([0.2, 0.3, 0.5]),)), False),
        (move(Window(2), Window(2), values=SMALL), True),
        (move(Window(2), Window(2), values=SMALL * (1 - 2.0**-52)), False),
        (move(Window(2), Window(2), values=np.array([[0.5, 0.25], [0.25, 0]])), False),
        (move(Window(MOST_TAPS), Window(1), values=np.ones((MOST_TAPS, 1))), True),
        (move(Window(MOST_TAPS + 1), Window(1), values=np.ones((MOST_TAPS + 1, 1))), False),
        (Operation("norm", (), ((0, 1.0),), ((1, 1.0),)), False),
        (Operation("two", move(Window(3)).maps * 2, ((0, 1.0),), ((1, 1.0),)), False),
    ],
)
def test_what_run_kernels_serve(op: Operation, served: bool) -> None:
    assert (layer_of(op) is not None) == served


# --- run_from -------------------------------------------------------------------------------


def run_of(graph: PlaneGraph, at: int = 0, most: int = 99, unit: Any = None) -> Any:
    (chain,) = chains(graph.between(graph.output_node(None), "input"))
    first = layer_of(chain[at])
    assert first is not None
    origin = (0,) * graph.ndim if unit is None else unit
    return run_from(chain, at, first, most, origin, (1,) * graph.ndim)


@pytest.mark.parametrize(
    "other",
    [
        rf.Conv(5),
        rf.Conv((3, 1)),
        rf.Conv(3, dilation=2),
        rf.Conv(3, stride=2),
        rf.Conv(3, taps=taps(3, 3)),
        rf.ConvTranspose(3),
        rf.Pad(1),
    ],
)
def test_runs_end_at_another_kernel(other: rf.Layer) -> None:
    graph = lowered(rf.Conv(3), other, rf.Conv(3), rf.Conv(3), rf.Conv(3), ndim=2)
    run = run_of(graph)
    assert (run.layers, run.operations) == (3, 3)
    assert (run.origin, run.shape) == ((0, 0), (7, 7))


def test_dense_taps_make_runs_of_their_own() -> None:
    a, b = taps(3, 3), taps(3, 3)[::-1]
    layers = [rf.Conv(3, taps=v) for v in (a, b, b, a, a, a)]
    graph = lowered(*layers, ndim=2)
    assert [run_of(graph, at).layers for at in range(6)] == [3, 2, 1, 2, 1, 1]


def test_runs_end_at_most() -> None:
    graph = lowered(*[rf.Conv(2, padding=((1, 0),))] * 9, ndim=1)
    run = run_of(graph, most=4)
    assert (run.layers, run.operations, run.origin, run.shape) == (4, 4, (-4,), (5,))
    assert run_of(graph, at=3).layers == 6


@pytest.mark.parametrize(("unit", "layers"), [(0, 0), (1, 1), (7, 7), (11, 8), (15, 4), (19, 0)])
def test_runs_end_before_a_border_cuts(unit: int, layers: int) -> None:
    graph = lowered(*[rf.Conv(3, padding=1)] * 12, ndim=1, size=20)
    run = run_of(graph, unit=(unit,))
    assert run.layers == layers
    assert run.origin == (unit - run.layers,)
    assert run.shape == (1 + 2 * run.layers,)


def test_padding_of_each_layer_counts() -> None:
    """Equal kernels with unequal padding are one run; the second axis has one tap."""
    pads = [((0, 2), (0, 0)), ((2, 0), (0, 1)), ((1, 1), (3, 0))]
    graph = lowered(*[rf.Conv((3, 1), padding=p) for p in pads], ndim=2)
    run = run_of(graph, unit=(5, 6))
    assert (run.layers, run.origin, run.shape) == (3, (5 - 3, 6 - 3), (7, 1))


def test_gains_and_shares_are_gathered() -> None:
    one = SpatialMap((Window(3),), gain=3.0)
    chain = [
        Operation("a", (one,), ((3, 0.5),), ((4, 0.125),), gain=5.0),
        Operation("b", (), ((2, 0.25),), ((3, 0.75),), gain=7.0),
        Operation("c", (one,), ((1, 0.375),), ((2, 0.625),), gain=HUGE),
        Operation("d", (), ((0, 0.875),), ((1, 1.0),), gain=HUGE),
        Operation("e", (SpatialMap((Window(5),)),), ((5, 0.5),), ((0, 0.5),), gain=11.0),
    ]
    first = layer_of(chain[0])
    assert first is not None
    run = run_from(chain, 0, first, 9, (0,), (1,))
    assert (run.layers, run.operations) == (2, 4)
    # Whole numbers times powers of two: exact. The ends' shares are the caller's.
    exact = (5 * 3) * (0.5 * 0.75 * 7) * (0.25 * 0.625 * 3) * 0.375
    assert run.gain.over(direct.Scaled.of(1.0, 1800)) == exact


@pytest.mark.parametrize("size", [None, 61, 97])
def test_a_forecast_counts_the_same_runs(size: int | None) -> None:
    """From every operation on, and on a window that borders cut off sooner or later."""
    net = rf.Sequential(*[rf.Conv(3, padding=1)] * 5, rf.Conv(5, padding=2), rf.Norm(),
                        *[rf.Conv(3, padding=1)] * 40, ndim=2)  # fmt: skip
    (chain,) = chains(lower(net, size).operations)
    found = set()
    for at, op in enumerate(chain):
        layer = layer_of(op)
        if layer is None:
            continue
        for most in (1, 7, layer.depth):
            run = run_from(chain, at, layer, most, (20, 25), (11, 9))
            spans = [(20, 11), (25, 9)]
            counted = layers_of_run(chain, at, layer, most, spans)
            assert counted == (run.layers, run.operations)
            found.add(run.layers)
    assert max(found) == (32 if size is None else {61: 20, 97: 20}[size])


# --- the engine -----------------------------------------------------------------------------


class Counted(SimpleNamespace):
    """The kernels, with the layers that each call of a run kernel took."""

    def __init__(self) -> None:
        super().__init__(**vars(load()))
        self.layers: list[int] = []
        for name in ("box_run", "conv_run"):
            setattr(self, name, self.counted(getattr(load(), name)))

    def counted(self, kernel: Any) -> Any:
        def call(y: Any, k: Any, count: int, lo: Any, out: Any) -> None:
            self.layers.append(count)
            kernel(y, k, count, lo, out)

        return call


def both(
    graph: PlaneGraph, unit: tuple[int, ...], **options: Any
) -> tuple[direct.Propagated, direct.Propagated, list[int]]:
    """In runs, one layer at a time, and the layers of the runs."""
    kernels = Counted()
    node = graph.output_node(None)
    runs = direct.propagate(graph, node, unit, "input", kernels=kernels, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct, "layer_of", lambda op: None)
        alone = Counted()
        single = direct.propagate(graph, node, unit, "input", kernels=alone, **options)
    assert not alone.layers
    return runs, single, kernels.layers


def bound(graph: PlaneGraph, pixels: int, dtype: str) -> float:
    count = sum(
        math.prod(a.kernel for a in m.axes if isinstance(a, Window)) + 4
        for op in graph.operations
        for m in op.maps
    )
    return float(count * np.finfo(dtype).eps + 4 * pixels * 2.0**-53)


def assert_equal(graph: PlaneGraph, unit: tuple[int, ...], dtype: str, **options: Any) -> list[int]:
    runs, single, layers = both(graph, unit, dtype=np.dtype(dtype), **options)
    a, b = runs.pixels(), single.pixels()
    rel = bound(graph, a.size, dtype)
    assert a.dtype == b.dtype == dtype
    assert runs.origin == single.origin
    np.testing.assert_allclose(a, b, rtol=rel, atol=2 * float(np.finfo(dtype).tiny))
    assert runs.mass.over(single.mass) == pytest.approx(1, abs=rel)
    for x, y in ((runs.lost, single.lost), (runs.dropped, single.dropped)):
        assert x == pytest.approx(y, rel=2 * rel, abs=0)
    return layers


D2, D3, FLAT = taps(3, 3), taps(2, 3, 2), taps(3, 1, 2)
RELU, HALF = rf.Activation("relu"), rf.Norm(gain=0.3)

STACKS: dict[str, tuple[int, list[rf.Layer], Any]] = {
    "1-D": (1, [rf.Conv(3, padding=1)] * 12, 30),
    "1-D, even": (1, [rf.Conv(4, padding=((3, 0),))] * 9, 40),
    "2-D": (2, [rf.Conv(3, padding=1)] * 9, (20, 23)),
    "3-D": (3, [rf.Conv(3, padding=1)] * 5, (9, 10, 11)),
    "anisotropic": (2, [rf.Conv((5, 2), padding=((2, 2), (1, 0)))] * 6, (25, 12)),
    "one tap on an axis": (
        3,
        [rf.Conv((1, 3, 2), padding=((0, 0), (1, 1), (1, 0)))] * 5,
        (3, 9, 8),
    ),
    "asymmetric": (
        2,
        [rf.Conv(3, padding=((2, 0), (0, 2))), rf.Conv(3, padding=((0, 2), (2, 0)))] * 4,
        (15, 16),
    ),
    "dense": (2, [rf.Conv(3, padding=1, taps=D2)] * 8, (18, 19)),
    "dense 3-D": (
        3,
        [rf.Conv((2, 3, 2), padding=((1, 0), (1, 1), (0, 1)), taps=D3)] * 6,
        (9, 11, 10),
    ),
    "dense, one tap on an axis": (
        3,
        [rf.Conv((3, 1, 2), padding=((2, 0), (0, 0), (0, 1)), taps=FLAT)] * 5,
        (12, 3, 9),
    ),
    "gains between": (
        2,
        [rf.Conv(3, padding=1, gain=1.7), HALF, RELU, rf.Conv(3, padding=1, gain=0.2), RELU] * 4,
        (17, 18),
    ),
    "dense, gains between": (2, [rf.Conv(3, padding=1, taps=D2, gain=3.0), HALF] * 6, (14, 15)),
    "huge and tiny gains": (
        2,
        [
            rf.Conv(3, padding=1, gain=HUGE),
            rf.Norm(gain=HUGE),
            rf.Conv(3, padding=1, gain=HUGE),
            rf.Norm(gain=1 / HUGE),
            rf.Norm(gain=1 / HUGE),
            rf.Conv(3, padding=1, gain=1 / HUGE),
            rf.Conv(3, padding=1, gain=1 / HUGE),
            rf.Conv(3, padding=1, gain=1 / HUGE),
        ]
        * 2,
        (20, 20),
    ),
    "kernels in turn": (
        2,
        [rf.Conv(3, padding=1), rf.Conv(3, padding=1), rf.Conv(5, padding=2), rf.Conv(3, padding=1)]
        * 2,
        (16, 17),
    ),
    "strides and upsampling": (
        2,
        [
            *[rf.Conv(3, padding=1)] * 3,
            rf.MaxPool(2, 2),
            *[rf.Conv(3, padding=1)] * 3,
            rf.Upsample(2),
            *[rf.Conv(3, padding=1)] * 2,
        ],
        (16, 18),
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STACKS)
def test_runs_change_nothing(name: str, dtype: str) -> None:
    ndim, layers, _ = STACKS[name]
    graph = lowered(*layers, ndim=ndim)
    taken = assert_equal(graph, tuple(range(-1, ndim - 1)), dtype)
    assert max(taken) >= 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STACKS)
def test_borders_cut_within_a_run(name: str, dtype: str) -> None:
    """From the middle, some layers are a run before the border cuts into the others."""
    ndim, layers, size = STACKS[name]
    graph = lowered(*layers, ndim=ndim, size=size)
    shape = graph.sizes[graph.output_node(None)]
    assert shape is not None
    units = [tuple(n // d for n in shape) for d in (2, 3, 64)]
    assert max(itertools.chain(*(assert_equal(graph, unit, dtype) for unit in units))) >= 2


def test_the_border_meets_the_middle_of_a_run() -> None:
    """The test above would see nothing if no layer were in a run, or no layer were cut."""
    graph = lowered(*[rf.Conv(3, padding=1)] * 12, ndim=1, size=30)
    runs, _, layers = both(graph, (7,))
    assert layers == [7]
    assert 0 < runs.lost < 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["2-D", "3-D", "dense", "dense 3-D", "1-D", "asymmetric"])
def test_runs_in_tiles(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "TILE_CELLS", 2)
    ndim, layers, size = STACKS[name]
    for graph in (lowered(*layers, ndim=ndim), lowered(*layers, ndim=ndim, size=size)):
        taken = assert_equal(graph, (4,) * ndim, dtype, workers=3)
        assert len(taken) >= 3  # one call per tile


@pytest.mark.parametrize("values", [[[1, 2], [3, SMALLEST_TAP]], [[1, 2], [3, 0]]])
def test_tiny_taps_and_zeros_make_no_run(values: Any) -> None:
    """Normalised, the smallest tap is a sixth of what a run takes."""
    layer = rf.Conv(2, padding=((1, 0), (0, 1)), taps=np.array(values, dtype=float))
    graph = lowered(*[layer] * 6, ndim=2)
    assert not assert_equal(graph, (0, 0), "float64")


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_a_run_counts_as_zero_is_less_than_a_rounding_of_any_result(dtype: str) -> None:
    """It is below the smallest normal number over the smallest tap; pixels that show lie above that
    number by what is kept below the largest value."""
    room = Headroom.of(dtype)
    kept = room.top - room.slack
    assert kept + np.log2(SMALLEST_TAP) > np.finfo(dtype).nmant


@pytest.mark.parametrize(
    ("kernel", "given", "widest", "long"),
    [(40, False, 1, True), (40, True, 40, False), (3, False, 3, False), (3, True, 3, False)],
)
def test_long_equal_taps_have_a_closed_form(
    kernel: int, given: bool, widest: int, long: bool
) -> None:
    graph = lowered(rf.Conv(kernel, taps=taps(kernel) if given else None), ndim=1)
    function = transfer_function(graph, graph.output_node(None), graph.input_node(None))
    assert (function.widest, function.long) == (widest, long)


@pytest.mark.parametrize("size", [None, (15, 15)])
def test_taps_just_large_enough(size: Any) -> None:
    values = np.array([[1.0, 2.0], [3.0, 16 * SMALLEST_TAP]])
    layer = rf.Conv(2, padding=((1, 0), (0, 1)), taps=values)
    graph = lowered(*[layer] * 20, ndim=2, size=size)
    for dtype in DTYPES:
        assert max(assert_equal(graph, (12, 7), dtype)) >= 2


@pytest.mark.parametrize("tail", [1e-12, 1e-3])
@pytest.mark.parametrize("name", ["2-D", "dense", "gains between", "3-D"])
@pytest.mark.parametrize("clipped", [False, True])
def test_tails(name: str, tail: float, clipped: bool) -> None:
    """A run drops at its end what single layers drop one by one: both at most `tail`, and what is
    left differs by no more. The books balance: all that was there is kept, lost or dropped."""
    ndim, layers, size = STACKS[name]
    graph = lowered(*layers, ndim=ndim, size=size if clipped else None)
    unit = tuple(n // 2 for n in size)
    runs, single, taken = both(graph, unit, tail=tail)
    exact = both(graph, unit)[0]
    assert max(taken) >= 2
    whole = exact.mass.over(exact.mass) / (1 - exact.lost)
    rel = bound(graph, exact.pixels().size, "float64")
    for found in (runs, single):
        assert 0 <= found.dropped <= tail * (1 + rel)
        kept = found.mass.over(exact.mass)
        assert kept / (1 - found.lost - found.dropped) == pytest.approx(whole, rel=4 * rel)
        a, b = exact.pixels().copy(), found.pixels() * kept
        place = tuple(
            slice(f - e, f - e + n)
            for f, e, n in zip(found.origin, exact.origin, b.shape, strict=True)
        )
        a[place] -= b
        assert (a >= -8 * rel).all()
        assert a.sum() <= tail * whole + 8 * rel
    if tail == 1e-3 and ndim < 3:  # 5 layers of a volume have no slab that small
        assert runs.dropped > 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_deep_volumes_keep_their_headroom(dtype: str) -> None:
    """300 layers grow plain sums by 27^300 = 2^1426. Padding keeps the volume small."""
    graph = lowered(*[rf.Conv(3, padding=1)] * 300, ndim=3, size=9)
    assert_equal(graph, (4, 4, 4), dtype)


def test_deep_volumes_unbounded() -> None:
    """300 layers of [1, 1, 1]/3 along one axis, in a volume: runs of which each needs room."""
    graph = lowered(*[rf.Conv((3, 1, 3), padding=((1, 1), (0, 0), (1, 1)))] * 300, ndim=3)
    for dtype in DTYPES:
        assert max(assert_equal(graph, (0, 0, 0), dtype)) >= 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_deep_lines_keep_their_headroom(dtype: str) -> None:
    """Plain sums grow by 45^3000 = 2^16475; σ² = 3000·(45² − 1)/12."""
    graph = lowered(*[rf.Conv(45, padding=22)] * 3000, ndim=1)
    found = direct.propagate(
        graph, "conv3000", (0,), "input", kernels=load(), dtype=np.dtype(dtype)
    )
    image = found.pixels().astype(np.float64)
    x = np.arange(image.size) + found.origin[0]
    variance = 3000 * (45**2 - 1) / 12
    # Each pixel is within 3000·49 roundings, and moments are sums of pixels of one sign; the mean
    # is a difference of two halves of E|x| ≤ σ.
    rel = 3000 * 49 * float(np.finfo(dtype).eps)
    assert float(image.sum()) == pytest.approx(1, rel=rel)
    assert float(image @ x**2) == pytest.approx(variance, rel=3 * rel)
    assert float(image @ x) == pytest.approx(0, abs=3 * rel * math.sqrt(variance))
    assert found.mass.log() == pytest.approx(0, abs=2 * rel)


@pytest.mark.parametrize("gain", [HUGE, 1 / HUGE])
def test_extreme_gains_are_kept(gain: float) -> None:
    layers = [rf.Conv(3, padding=1, gain=gain), rf.Norm(gain=gain)] * 10
    graph = lowered(*layers, ndim=2)
    plain = lowered(*[rf.Conv(3, padding=1), rf.Norm()] * 10, ndim=2)
    a, _, taken = both(graph, (0, 0))
    b, _, _ = both(plain, (0, 0))
    assert max(taken) >= 2
    np.testing.assert_array_equal(a.pixels(), b.pixels())  # powers of two are exact
    assert a.mass.log() == pytest.approx(20 * math.log(gain), rel=bound(graph, 441, "float64"))


def test_progress_within_a_chain() -> None:
    graph = lowered(*[rf.Conv(3, padding=1)] * 200, ndim=2, size=9)
    shares: list[float] = []
    node = graph.output_node(None)
    direct.propagate(graph, node, (4, 4), "input", kernels=load(), progress=shares.append)
    assert shares == sorted(set(shares))
    assert shares[-1] == 1
    # The border cuts every layer but the first four: each is a step of its own.
    assert len(shares) >= 196


# --- forecast -------------------------------------------------------------------------------


def test_reach_within() -> None:
    """e^−r²/2v = e^−nats at r = √(2·v·nats): 4 for v = 2 and 4 nats; one pixel is added."""
    reach = Reach((-100, 201), (0.0, 0.0), 2.0)
    assert reach.within(4.0) == (-5, 11)
    assert Reach((-2, 4), (0.0, 0.0), 2.0).within(4.0) == (-2, 4)
    assert Reach((-100, 201), (0.0, 0.0), math.inf).within(4.0) == (-100, 201)


def test_reaches_power_is_repeated_times() -> None:
    algebra = Reaches(2)
    axes = (Window(3, lo=1), Window(4, dilation=2, lo=1))
    once = algebra.mixed([(0.5, algebra.of(SpatialMap(axes), (2, 3))), (0.5, algebra.one())])
    assert [r.span for r in once] == [(-2, 5), (-3, 19)]
    repeated = algebra.one()
    for _ in range(7):
        repeated = algebra.times(repeated, once)
    assert algebra.power(once, 7) == repeated


NETS = ["vgg11", "resnet18", "googlenet", "densenet121", "mobilenet_v2", "residual(3)", "tcn(4, 3)"]
NETS += ["wavenet", "plain(9, (3, 5))", "alexnet", "zfnet"]


@pytest.mark.parametrize("name", NETS)
def test_reaches_contain_the_support(name: str) -> None:
    """The support is that of the walk in whole numbers: first and last pixel of every path."""
    graph = lower(rf.zoo.get(name), ignore_global=True)
    node = graph.output_node(None)
    function = transfer_function(graph, node, "input")
    assert function.obstacle is None
    ends: dict[int, list[tuple[int, int]]] = {
        p: [(0, 0)] * graph.ndim for p in graph.planes_of[node]
    }
    for op in reversed(graph.between(node, "input")):
        for p, _ in op.targets:
            if p not in ends:
                continue
            found = ends[p]
            for m in reversed(op.maps):
                found = [
                    (lo * a.stride - a.lo, hi * a.stride - a.lo + a.dilation * (a.kernel - 1))  # type: ignore[union-attr]
                    for (lo, hi), a in zip(found, m.axes, strict=True)
                ]
            for q, _ in op.sources:
                old = ends.get(q, found)
                ends[q] = [
                    (min(x[0], y[0]), max(x[1], y[1])) for x, y in zip(old, found, strict=True)
                ]
    found = ends[graph.planes_of["input"][0]]
    for reach, (low, high) in zip(function(Reaches(graph.ndim)), found, strict=True):
        assert reach.span == (low, high - low + 1)
        assert low <= reach.centre[0] <= reach.centre[1] <= high
        nats = 700.0
        first, count = reach.within(nats)
        assert low <= first
        assert first + count <= high + 1


@pytest.mark.parametrize("name", ["residual(8)", "tcn(5, 5)", "plain(40, 7)"])
def test_reaches_hold_all_but_the_tail(name: str) -> None:
    """Pixels outside `within(nats)` are below e^−nats of the mass, for each path and so for all."""
    net = rf.zoo.get(name)
    graph = lower(net)
    node = graph.output_node(None)
    reaches = transfer_function(graph, node, "input")(Reaches(graph.ndim))
    result = rf.erf(net, method="direct")
    for nats in (1.0, 10.0, 100.0):
        for axis, reach in enumerate(reaches):
            others = tuple(a for a in range(graph.ndim) if a != axis)
            profile = result.image.sum(axis=others)
            x = np.arange(profile.size) + result.origin[axis]
            first, count = reach.within(nats)
            outside = profile[(x < first) | (x >= first + count)]
            assert (outside < math.exp(-nats)).all()


# --- the choice -----------------------------------------------------------------------------


def choice(net: Any, **options: Any) -> Any:
    graph = lower(net)
    node = graph.output_node(None)
    return make_plan(graph, node, (0,) * graph.ndim, "input", device=resolve("cpu"), **options)


DEEP = rf.Sequential(*[rf.Conv(5, padding=2, taps=taps(5, 5))] * 600, ndim=2)
"""No separable taps: the direct engine alone is right pixel by pixel, and slow."""


def test_auto_takes_the_spectral_engine_where_that_is_accurate_enough() -> None:
    for accuracy in ("auto", "absolute"):
        plan = choice(DEEP, accuracy=accuracy)
        assert (plan.method, plan.accuracy) == ("spectral", "absolute")
        at_finest = choice(DEEP, accuracy=accuracy, tol=spectral.FINEST)
        assert at_finest.method == "spectral"


@pytest.mark.parametrize(
    "options",
    [
        {"accuracy": "relative"},
        {"accuracy": "relative", "tail": 1e-3},
        {"tol": spectral.FINEST * (1 - 2.0**-52)},
        {"tol": spectral.FINEST / 2, "accuracy": "absolute"},
        {"tol": 1e-300, "accuracy": "absolute"},
    ],
)
def test_auto_stays_where_it_is_not(options: dict[str, Any]) -> None:
    plan = choice(DEEP, **options)
    assert (plan.method, plan.accuracy) == ("direct", "relative")


def test_auto_tilts_windows_where_a_tolerance_allows() -> None:
    plan = choice(DEEP, accuracy="relative", tol=1e-9)
    assert (plan.engine, plan.accuracy, plan.tol) == ("tilted", "relative", 1e-9)


def test_auto_does_not_trade_accuracy_for_what_nobody_notices() -> None:
    """Clearly slower, and yet done in a blink."""
    net = rf.Sequential(*[rf.Conv(5, padding=2, taps=taps(5, 5))] * 200, ndim=2)
    methods = ("spectral", "direct")
    waves, layers = (choice(net, method=method, workers=1).seconds for method in methods)
    assert CLEARLY_SLOWER * waves < layers < NOTICEABLE
    assert choice(net).method == "direct"
    assert choice(net, accuracy="absolute").method == "spectral"
