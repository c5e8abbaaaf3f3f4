"""The recompressed engine against the direct one, to the bound that it returns itself.

The direct engine only adds nonnegative numbers: its pixels are wrong by at most N·u/(1 − N·u) of
themselves after N roundings in sequence, hence by no more of the peak.
"""

from __future__ import annotations

import math
import tracemalloc
from fractions import Fraction
from functools import cache
from typing import Any

import graphs
import numpy as np
import pytest
from fastrf.kernels import load

import fastrf as rf
from fastrf.engine.direct import Propagated, propagate
from fastrf.engine.recompressed import (
    Recompressed,
    finest,
    holdings,
    is_relative,
    lowrank,
    obstacle,
    of_recompressed,
    powers,
    propagate_recompressed,
    propagation,
    recompress,
    script,
    volumes,
)
from fastrf.engine.recompressed.lowrank import Terms, reduced, without_traces
from fastrf.engine.recompressed.maps import (
    axis_operator,
    field_window,
    largest_gain,
    products,
    reach,
    total_gain,
)
from fastrf.engine.recompressed.tucker import TuckerImage
from fastrf.engine.scaled import ONE
from fastrf.errors import EmptyFieldError, InputError, UnboundedError
from fastrf.lowering import PlaneGraph, lower
from fastrf.maps import SpatialMap, Window
from fastrf.network import as_network

U = {"float64": 2.0**-53, "float32": 2.0**-24}

# The networks of `graphs` have at most 8 layers of at most 50 taps in up to three axes: a pixel
# passes fewer than 8·(50 + 2) + 8 roundings in either engine.
ROUNDINGS = 900

Where = tuple[PlaneGraph, str, tuple[int, ...], str]


def where(net: Any, size: Any = None, unit: Any = "center") -> Where:
    graph = lower(as_network(net), size)
    node = graph.output_node(None)
    return graph, node, graph.unit_index(node, unit), graph.input_node(None)


def residual(blocks: int, kernels: tuple[int, ...] = (3,), ndim: int = 2) -> rf.Network:
    layers = [rf.Conv(kernels[i % len(kernels)], padding="same") for i in range(blocks)]
    return rf.Sequential(*map(rf.Residual, layers), ndim=ndim)


def direct(place: Where, dtype: str = "float64") -> Propagated:
    return propagate(*place, kernels=load(), dtype=dtype)


def seen(place: Where, dtype: str) -> Propagated | None:
    """The direct engine's result; None where the unit sees nothing."""
    try:
        return direct(place, dtype)
    except EmptyFieldError:
        return None


def assert_close(found: Recompressed, reference: Propagated, roundings: int, unit: float) -> None:
    """Every pixel, the mass and what was lost."""
    own = found.propagated
    pixels = own.pixels()
    ends = [
        (min(a, b), max(a + n, b + m))
        for a, n, b, m in zip(
            own.origin, pixels.shape, reference.origin, reference.image.shape, strict=True
        )
    ]
    both = []
    for origin, image in ((own.origin, pixels), (reference.origin, reference.image)):
        whole = np.zeros([stop - start for start, stop in ends])
        inside = zip(origin, image.shape, ends, strict=True)
        whole[tuple(slice(o - start, o - start + n) for o, n, (start, _) in inside)] = image
        both.append(whole)
    bound = found.bound + roundings * unit
    assert np.abs(both[0] - both[1]).max() <= bound * both[1].max()
    assert pixels.min() >= 0
    assert float(pixels.sum(dtype=np.float64)) == pytest.approx(1, abs=roundings * unit)
    assert own.mass.log() == pytest.approx(reference.mass.log(), rel=4 * U["float64"], abs=bound)
    # A share, of which mass and loss are each as wrong as the mass.
    assert own.lost == pytest.approx(reference.lost, abs=2 * bound)


# --- every kind of layer --------------------------------------------------------------------

CASES = {name: graph for name, graph in graphs.cases() if graph.ndim > 1}


def units(graph: graphs.Graph, size: Any) -> list[tuple[int, ...]]:
    if size is None:
        return [(0,) * graph.ndim, tuple(range(-2, graph.ndim - 2))]
    shape = graph.map_size()
    mixed = tuple(0 if axis else n - 1 for axis, n in enumerate(shape))
    return sorted({(0,) * graph.ndim, mixed, tuple(n // 2 for n in shape)})


@pytest.mark.parametrize("dtype", U)
@pytest.mark.parametrize("grid", ["unbounded", "clipped"])
@pytest.mark.parametrize("name", CASES)
def test_agrees_with_the_direct_engine(name: str, grid: str, dtype: str) -> None:
    graph = CASES[name]
    size = None if grid == "unbounded" else graph.size
    for unit in units(graph, size):
        place = where(graph.network(), size, unit)
        assert obstacle(place[0], place[1], place[3]) is None
        reference = seen(place, dtype)
        if reference is None:
            with pytest.raises(EmptyFieldError, match="reads nothing"):
                recompress(*place, dtype=dtype)
            continue
        found = recompress(*place, dtype=dtype)
        assert found.bound <= 1e-12
        assert found.propagated.pixels().dtype == dtype
        assert_close(found, reference, ROUNDINGS, U[dtype])
        if not found.reductions:
            # Nothing was subtracted: what is 0 is exactly 0.
            assert found.propagated.origin == reference.origin
            np.testing.assert_array_equal(found.propagated.image > 0, reference.image > 0)


RANDOM = {f"random {seed}": graphs.random_graph(seed, 2, 12) for seed in range(24)} | {
    f"random volume {seed}": graphs.random_graph(seed, 3, 7) for seed in range(8)
}


@pytest.mark.parametrize("grid", ["unbounded", "clipped"])
@pytest.mark.parametrize("name", [*CASES, *RANDOM])
def test_reduced_at_every_layer(name: str, grid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same networks, every image of more than one term reduced."""
    graph = (CASES | RANDOM)[name]
    monkeypatch.setitem(script.FEW_TERMS, graph.ndim, 1)
    size = None if grid == "unbounded" else graph.size
    for unit in units(graph, size):
        place = where(graph.network(), size, unit)
        reference = seen(place, "float64")
        if reference is not None:
            found = recompress(*place)
            assert found.bound <= 1e-12
            assert_close(found, reference, ROUNDINGS, U["float64"])


RING = [[(x - 2) ** 2 + (y - 2) ** 2 + 1 for x in range(5)] for y in range(5)]

NETWORKS: dict[str, tuple[Any, Any, Any]] = {
    "kernels in turn": (residual(14, (3, 5)), 40, (0, 17)),
    "kernels in turn, unbounded": (residual(8, (3, 5)), None, (3, -7)),
    "anisotropic": (residual(10, (3, 5)), (33, 50), (30, 4)),
    "two stages": (
        rf.Sequential(
            residual(20), rf.Residual(rf.Conv(7, padding=3)), rf.MaxPool(3, 2, padding=1),
            residual(20), rf.Conv(1, stride=2), residual(20, (5,)),
        ),
        70,
        (2, 9),
    ),
    "general taps": (rf.Sequential(*[rf.Conv(5, padding=2, taps=RING)] * 9), 30, (1, 20)),
    "more taps than pixels": (
        rf.Sequential(*[rf.Conv(9, padding=4, taps=np.arange(1.0, 82).reshape(9, 9))] * 3),
        7,
        (0, 6),
    ),
    "resnet50": (rf.zoo.resnet50(), 96, (0, 2)),
    "densenet121": (rf.zoo.densenet121(), 64, "center"),
    "unet": (rf.zoo.unet(4, 2), 64, (1, 40)),
    "gains": (
        rf.Sequential(*[rf.Residual(rf.Conv(k, padding=k // 2, gain=g))
                        for g in (0.1, 7.0, 1e-9, 40.0, 2.0) for k in (3, 5)]),
        30,
        (0, 15),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_the_error_is_within_its_bound(name: str) -> None:
    """At most 60 layers of 2·7 + 6 roundings, and 82 for taps that are no product."""
    place = where(*NETWORKS[name])
    found = recompress(*place)
    assert found.bound <= 1e-12
    assert_close(found, direct(place), 1200, U["float64"])
    if name != "unet":
        assert found.reductions or found.terms <= 100


def test_all_units_of_a_map_share_a_script() -> None:
    graph, node, _, source = where(*NETWORKS["two stages"])
    for unit in ((0, 0), (17, 8), (2, 17)):
        place = graph, node, unit, source
        assert script.script(*place) is script.script(graph, node, (5, 5), source)
        assert_close(recompress(*place), direct(place), 1200, U["float64"])


def test_reductions_are_reached() -> None:
    reductions = {name: recompress(*where(*given)).reductions for name, given in NETWORKS.items()}
    assert sum(count > 0 for count in reductions.values()) >= 7, reductions
    assert reductions["kernels in turn"] > 3


# --- a thousand blocks ----------------------------------------------------------------------


def test_a_thousand_blocks_on_a_small_map() -> None:
    """Two convolutions a block: powers of one map, all nonnegative, and nothing to reduce.

    9 roundings a block in the direct engine: 3 taps an axis and layer, shortcut, branch and sum.
    """
    place = where(rf.zoo.residual(1000), 96, (0, 48))
    found, reference = recompress(*place, tol=1e-11), direct(place)
    assert found.error == 0
    # Per layer 8 roundings of either axis' taps, per block 1 of the sum of both, and all terms.
    assert found.rounding == pytest.approx(2 * (16_000 + 1000 + 2001) * U["float64"], rel=0.01)
    assert found.terms == 2001
    assert_close(found, reference, 16_000, U["float64"])
    assert_relative(found, reference, 16_000)


@pytest.mark.parametrize(
    ("net", "size"),
    [
        # Few terms behind one map go on behind another.
        (rf.Sequential(residual(40), *[rf.Conv(5, padding=2)] * 60), 300),
        (residual(400), 600),
    ],
)
def test_tails_are_right_pixel_by_pixel(net: rf.Network, size: int) -> None:
    place = where(net, size, (0, 3))
    reference = direct(place)
    assert float(reference.image.min()) < 1e-100
    assert_relative(recompress(*place), reference, 5000)


def assert_relative(found: Recompressed, reference: Propagated, roundings: int) -> None:
    """Pixel by pixel, down to 1e-290 of the sum."""
    assert found.relative
    assert found.propagated.origin == reference.origin
    assert found.propagated.image.shape == reference.image.shape
    bound = found.rounding + roundings * U["float64"]
    clear = reference.image > 1e-290
    np.testing.assert_allclose(
        found.propagated.image[clear], reference.image[clear], rtol=bound, atol=0
    )


def test_the_rank_stays_small() -> None:
    """Behind a thousand blocks a strided layer needs the terms multiplied out."""
    net = rf.Sequential(rf.Conv(3, stride=2, padding=1), residual(1000))
    found = recompress(*where(net, 448, (0, 112)), tol=1e-11)
    assert found.terms == 1001
    assert found.reductions == 1
    assert found.rank <= 20
    assert found.error <= 1e-13
    # A pixel's roundings, 9 a block, and those of the sum of it all.
    assert found.rounding <= 2 * 10_100 * U["float64"]


def test_volumes_of_few_terms() -> None:
    place = where(residual(30, ndim=3), (20, 12, 14), (0, 5, 13))
    found = recompress(*place)
    assert found.terms == 31
    assert found.reductions == 0
    assert_close(found, direct(place), 500, U["float64"])


# --- volumes --------------------------------------------------------------------------------

SLANTED = np.arange(1.0, 9.0).reshape(2, 2, 2)
BALL = 1.0 + sum(x**2 for x in np.ogrid[-2:3, -2:3, -2:3])

VOLUMES: dict[str, tuple[Any, Any, Any]] = {
    "kernels in turn": (residual(12, (3, 5), ndim=3), (18, 13, 24), (0, 6, 20)),
    "kernels in turn, unbounded": (residual(9, (3, 5), ndim=3), None, (3, -7, 0)),
    "three kernels": (residual(9, (3, 5, 7), ndim=3), 21, "center"),
    "two stages": (
        rf.Sequential(
            residual(20, ndim=3), rf.MaxPool(3, 2, padding=1), residual(14, (3, 5), ndim=3)
        ),
        40,
        (2, 9, 19),
    ),
    "general taps": (
        rf.Sequential(*[rf.Conv(5, padding=2, taps=BALL)] * 4, ndim=3), (12, 9, 11), (1, 8, 5)
    ),
    "slanted taps": (
        rf.Sequential(
            rf.ConvTranspose(2, taps=SLANTED, stride=2),
            *[rf.Residual(rf.Conv(2, padding=((0, 1),) * 3, taps=SLANTED))] * 4,
            ndim=3,
        ),
        8,
        (5, 0, 9),
    ),
    "flat": (residual(10, (3, 5), ndim=3), (3, 40, 30), (1, 0, 15)),
}  # fmt: skip


@pytest.mark.parametrize("dtype", U)
@pytest.mark.parametrize("measured", [volumes.MEASURED, 0])
@pytest.mark.parametrize("name", VOLUMES)
def test_volumes_are_within_their_bound(
    name: str, measured: int, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most 40 layers of 3·7 + 4 roundings, and 126 a layer for taps that are no product; the
    bound formed, or from the factors."""
    monkeypatch.setattr(volumes, "MEASURED", measured)
    place = where(*VOLUMES[name])
    found = recompress(*place, dtype=dtype, tol=1e-10)
    assert isinstance(found.propagated.image, TuckerImage)
    assert not found.relative
    assert found.bound <= 2e-11
    assert_close(found, direct(place, dtype), 1000, U[dtype])


def test_volumes_are_reduced() -> None:
    found = {name: recompress(*where(*given), tol=1e-10) for name, given in VOLUMES.items()}
    reductions = {name: f.reductions for name, f in found.items()}
    assert sum(count > 0 for count in reductions.values()) >= 6, reductions
    assert reductions["kernels in turn"] > 3
    assert all(f.rank <= 40 for f in found.values())


def test_a_coarse_tolerance_needs_fewer_columns() -> None:
    place = where(*VOLUMES["kernels in turn"])
    fine, coarse = recompress(*place), recompress(*place, tol=1e-2)
    assert coarse.rank < fine.rank
    assert fine.bound < coarse.bound <= 1e-2
    assert_close(coarse, direct(place), 1000, U["float64"])


def test_columns_dropped_from_a_volume_show(monkeypatch: pytest.MonkeyPatch) -> None:
    place = where(*VOLUMES["kernels in turn"])
    honest = recompress(*place)
    monkeypatch.setattr(volumes, "kept_of", lambda s, budget, noise: min(3, len(s)))
    with pytest.raises(InputError, match="finer than"):
        recompress(*place)
    found = recompress(*place, tol=1e3)
    assert found.bound > 1e5 * honest.bound
    assert_close(found, direct(place), 1000, U["float64"])


@cache
def summed_volumes() -> tuple[list[Terms], np.ndarray]:
    """Terms of one column and a core, together, and the sum of their pixels."""
    planes = [gaussians(n, 40) for n in (30, 36, 27)]
    terms = Terms(tuple(p.factors[1] for p in planes), planes[0].weights)
    core = np.multiply.outer(np.multiply.outer([1.0, 0.5], [1.0, -0.2, 0.1]), [0.3, 0.2])
    parts = [terms, Terms((terms.factors[0][:, :2], terms.factors[1][:, 5:8],
                           terms.factors[2][:, 3:5]), core), terms]  # fmt: skip
    return parts, sum(naive_volume(p) for p in parts)


@pytest.mark.parametrize("budget", [0.0, 1e-3])
@pytest.mark.parametrize("measured", [volumes.MEASURED, 0])
def test_what_reducing_a_volume_costs(
    budget: float, measured: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In several batches."""
    monkeypatch.setattr(volumes, "MEASURED", measured)
    parts, formed = summed_volumes()
    kept, loss = volumes.reduced(parts, budget)
    assert kept.weights.ndim == 3
    assert kept.rank < 30
    off = np.abs(formed - naive_volume(kept))
    slack = 200 * U["float64"] * float(formed.max())
    assert float(off.max()) <= loss.largest + slack
    assert float(off.sum()) <= loss.total + slack * off.size
    if budget:
        assert kept.rank < volumes.reduced(parts, 0.0)[0].rank
        assert float(np.linalg.norm(off)) <= 3 * budget + slack * math.sqrt(off.size)
    for factor in kept.factors:
        np.testing.assert_allclose(factor.T @ factor, np.eye(factor.shape[1]), atol=1e-12)


def naive_volume(terms: Terms) -> np.ndarray:
    """The pixels, one product after the other."""
    found = np.zeros(terms.shape)
    core = terms.weights
    if core.ndim == 1:
        core = np.zeros((terms.rank,) * 3)
        for t, weight in enumerate(terms.weights):
            core[t, t, t] = weight
    for columns in zip(*np.nonzero(core), strict=True):
        a, b, c = (f[:, i] for f, i in zip(terms.factors, columns, strict=True))
        found += core[columns] * np.multiply.outer(np.multiply.outer(a, b), c)
    return found


# --- bounds ---------------------------------------------------------------------------------


def gaussians(pixels: int, count: int) -> Terms:
    offsets = np.arange(pixels) - pixels / 3
    widths = np.linspace(3, pixels / 6, count)
    factor = np.exp(-((offsets[:, None] / widths) ** 2) / 2)
    return Terms((factor[: pixels - 7], factor), np.linspace(1, 2, count))


@pytest.mark.parametrize(("pixels", "count"), [(60, 20), (60, 100), (400, 60), (400, 300)])
@pytest.mark.parametrize("budget", [0.0, 1e-9, 1e-3])
@pytest.mark.parametrize("measured", [lowrank.MEASURED, 0])
def test_what_a_reduction_costs(
    pixels: int, count: int, budget: float, measured: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the change is formed or bounded by the factors."""
    monkeypatch.setattr(lowrank, "MEASURED", measured)
    terms = gaussians(pixels, count)
    kept, loss = reduced(terms, budget)
    assert kept.rank < terms.rank
    pixelwise = np.abs(terms.form() - kept.form())
    # Both images are formed again here: sums of that many products of values up to 2·count.
    slack = (terms.rank + kept.rank) * U["float64"] * float(terms.form().max())
    assert float(pixelwise.max()) <= loss.largest + slack
    assert float(pixelwise.sum()) <= loss.total + slack * pixelwise.size
    if budget:
        # ‖D‖_max ≤ ‖D‖_F; a reduction in batches may spend the budget once a batch.
        batches = 1 if count <= lowrank.BATCH or pixels <= lowrank.WHOLE else 3
        assert float(pixelwise.max()) <= batches * budget * (1 + 1e-6) + slack
    for axis, factor in enumerate(kept.factors):
        gram = factor.T @ factor
        np.testing.assert_allclose(gram, np.eye(kept.rank), atol=1e-12, err_msg=str(axis))


def test_a_budget_of_nothing_drops_nothing() -> None:
    terms = gaussians(50, 12)
    kept, loss = reduced(terms, 0.0, 0.0)
    assert kept.rank == 12
    # QR, the core and its decomposition: a few dozen roundings relative to the norm.
    assert loss.largest <= 100 * U["float64"] * float(np.linalg.norm(terms.form()))
    assert without_traces(terms)[0].rank == 12


def test_traces_are_booked() -> None:
    terms = gaussians(50, 12)
    faint = Terms(terms.factors, np.where(np.arange(12) % 3 == 0, 2.0**-70, terms.weights))
    kept, loss = without_traces(faint)
    assert kept.rank == 8
    gone = faint.chosen(np.arange(12) % 3 == 0).form()
    assert gone.max() <= loss.largest * (1 + 1e-12)  # sums of up to 200 products
    assert loss.largest <= 4 * 2.0**-70
    assert gone.sum() <= loss.total * (1 + 1e-12)


@pytest.mark.parametrize("rank", [1, 4])
def test_dropping_too_much_is_caught(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reduction that keeps less than its budget allows shows in the bound, and is refused."""
    place = where(*NETWORKS["kernels in turn"])
    honest = recompress(*place)
    monkeypatch.setattr(lowrank, "kept_of", lambda s, budget, noise: min(rank, len(s)))
    with pytest.raises(InputError, match="finer than"):
        recompress(*place)
    found = recompress(*place, tol=1e3)
    assert found.bound > 1e5 * honest.bound
    assert_close(found, direct(place), 1200, U["float64"])


def test_a_coarse_tolerance_needs_fewer_terms() -> None:
    place = where(*NETWORKS["kernels in turn"])
    fine, coarse = recompress(*place), recompress(*place, tol=1e-3)
    assert coarse.rank < fine.rank
    assert fine.bound < coarse.bound <= 1e-3
    assert_close(coarse, direct(place), 1200, U["float64"])


def test_a_tolerance_that_cannot_be_shown_is_refused() -> None:
    with pytest.raises(InputError, match=r"tol=1e-17 is finer than .*use a larger tol"):
        recompress(*where(residual(3), 9), tol=1e-17)


def test_taps_that_cancel_are_refused() -> None:
    """A unit that sees the input through the least of the taps alone: its pixel is the difference
    of products 1e9 times as large, which no sum of signed terms resolves."""
    taps = np.array([[1e-11, 1.0, 2.0], [1.0, 3.0, 1.0], [2.0, 1.0, 5.0]])
    net = rf.Sequential(rf.Conv(3, padding=((0, 2), (0, 2)), taps=taps[::-1, ::-1]))
    place = where(net, 4, (3, 3))
    alone = direct(where(net, 4, (3, 3)))
    assert alone.image.size == 1
    np.testing.assert_allclose(math.exp(alone.mass.log()), taps[2, 2] / taps.sum())
    corner = rf.Sequential(rf.Conv(3, padding=((0, 2), (0, 2)), taps=taps))
    with pytest.raises(InputError, match="finer than"):
        recompress(*where(corner, 4, (3, 3)))
    assert_close(recompress(*place), alone, 10, U["float64"])


@pytest.mark.parametrize("grid", ["unbounded", "clipped"])
@pytest.mark.parametrize("name", CASES)
def test_gains_bound_what_maps_do(name: str, grid: str) -> None:
    """The largest row and column sums of the matrices themselves, over a wide window."""
    graph = CASES[name]
    lowered = lower(graph.network(), None if grid == "unbounded" else graph.size)
    for move in (m for op in lowered.operations for m in op.maps):
        sizes = move.size_out or (24,) * lowered.ndim
        y = tuple((0, n) for n in sizes)
        x = tuple((0, n) for n in move.size_in) if move.size_in else reach(move, y)
        vectors = products(move).vectors
        rows = columns = move.gain
        inside = move.size_in or (None,) * lowered.ndim
        for axis, (taps,), *given in zip(move.axes, vectors, y, x, inside, strict=True):
            matrix = axis_operator(axis, taps, *given).matrix.toarray()
            rows *= matrix.sum(axis=1).max()
            columns *= matrix.sum(axis=0).max()
        assert rows <= largest_gain(move) * (1 + 1e-14)
        assert columns <= total_gain(move) * (1 + 1e-14)
        if grid == "unbounded":
            assert largest_gain(move) <= rows * (1 + 1e-14)
            assert total_gain(move) <= columns * (1 + 1e-14)


# --- rounding -------------------------------------------------------------------------------


@cache
def exact(name: str) -> dict[tuple[int, ...], Fraction]:
    """The pixels in whole numbers and their quotients, for layers without stride or dilation."""
    graph, node, unit, source = where(*ADVERSE[name])
    images = {p: {unit: Fraction(graph.planes[p].share)} for p in graph.planes_of[node]}
    for op in reversed(graph.between(node, source)):
        image: dict[tuple[int, ...], Fraction] = {}
        for p, share in op.targets:
            for at, value in images.get(p, {}).items():
                image[at] = image.get(at, Fraction(0)) + value * Fraction(share)
        for move in reversed(op.maps):
            image = through(move, image)
        for q, share in op.sources:
            own = images.setdefault(q, {})
            for at, value in image.items():
                more = value * Fraction(share) * Fraction(op.gain)
                own[at] = own.get(at, Fraction(0)) + more
    found: dict[tuple[int, ...], Fraction] = {}
    for p in graph.planes_of[source]:
        for at, value in images.get(p, {}).items():
            found[at] = found.get(at, Fraction(0)) + value
    total = sum(found.values())
    return {at: value / total for at, value in found.items()}


def through(
    move: SpatialMap, image: dict[tuple[int, ...], Fraction]
) -> dict[tuple[int, ...], Fraction]:
    """The transposed map, tap by tap."""
    assert all(isinstance(a, Window) and a.stride == a.dilation == 1 for a in move.axes)
    kernel = [a.kernel for a in move.axes]
    found: dict[tuple[int, ...], Fraction] = {}
    for tap in np.ndindex(*kernel):
        if isinstance(move.taps, np.ndarray):
            weight = Fraction(float(move.taps[tap]))
        else:
            own = [move.axis_taps(i) for i in range(len(tap))]
            weight = Fraction(1)
            for vector, m, k in zip(own, tap, kernel, strict=True):
                weight *= Fraction(1, k) if vector is None else Fraction(float(vector[m]))
        weight *= Fraction(move.gain)
        for at, value in image.items():
            to = tuple(i + m - a.lo for i, m, a in zip(at, tap, move.axes, strict=True))
            if all(0 <= i < n for i, n in zip(to, move.size_in or (), strict=True)):
                found[to] = found.get(to, Fraction(0)) + value * weight
    return found


def uneven(seed: int, shape: tuple[int, ...], orders: float) -> np.ndarray:
    """Taps over so many orders of magnitude, which no sum of products holds to their own digits."""
    return 10.0 ** np.random.default_rng(seed).uniform(-orders, 0, shape)


def deep(taps: Any, layers: int, ndim: int) -> rf.Network:
    kernel = np.shape(taps)
    layer = rf.Conv(kernel, padding="same", taps=taps)
    return rf.Sequential(*[layer] * layers, ndim=ndim)


SKEW = np.outer([0.1, 0.7, 0.3], [0.9, 0.1, 0.1])

ADVERSE: dict[str, tuple[Any, Any, Any]] = {
    # Powers of one map whose taps round the same way in every layer, and its far corner.
    "roundings one way": (deep(SKEW, 60, 2), 5, (0, 4)),
    # A map of one pixel: the same product of the same numbers, again and again.
    "one pixel": (deep(SKEW, 100, 2), 1, (0, 0)),
    # Shortcuts whose sums are as good as the smaller addend.
    "gains that drown": (
        rf.Sequential(
            *[rf.Residual(rf.Conv(k, padding=k // 2, gain=g))
              for g in (1e-15, 1e15, 1 / 3, 3e-9, 0.1) for k in (3, 5)]
        ),
        6,
        (0, 3),
    ),
    "gains that drown in volumes": (
        rf.Sequential(
            *[rf.Residual(rf.Conv(k, padding=k // 2, gain=g))
              for g in (1e-12, 1e12, 0.1) for k in (3, 5)],
            ndim=3,
        ),
        4,
        (0, 3, 1),
    ),
    # Terms of either sign that cancel to a few digits; reduced at each layer by the fixture.
    **{
        f"taps over {orders:g} orders, {seed}": (
            deep(uneven(seed, (3, 5), orders), 5, 2), 6, (0, 5)
        )
        for seed in range(6) for orders in (2.0, 6.0)
    },
    **{
        f"volume of taps over {orders:g} orders, {seed}": (
            deep(uneven(seed, (3, 3, 3), orders), 3, 3), 4, (0, 3, 1)
        )
        for seed in range(3) for orders in (2.0, 6.0)
    },
}  # fmt: skip


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("few", [1, 4, 48])
@pytest.mark.parametrize("name", ADVERSE)
def test_the_bound_holds_against_exact_numbers(
    name: str, few: int, measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No slack is granted: every rounding is in the bound."""
    place = where(*ADVERSE[name])
    monkeypatch.setitem(script.FEW_TERMS, place[0].ndim, few)
    if not measured:
        for module in (lowrank, volumes):
            monkeypatch.setattr(module, "MEASURED", 0)
        monkeypatch.setattr(lowrank, "WHOLE", 0)
    found = propagation._run(*place, np.dtype(np.float64), None, 0.0, None)
    pixels, expected = found.propagated.pixels(), exact(name)
    padded = np.zeros(place[0].input_size)
    ends = zip(found.propagated.origin, pixels.shape, strict=True)
    padded[tuple(slice(o, o + n) for o, n in ends)] = pixels
    own = [Fraction(float(padded[at])) for at in expected]
    peak = Fraction(float(pixels.max()))
    off = [abs(a - b) for a, b in zip(own, expected.values(), strict=True)]
    assert max(off) <= Fraction(found.bound) * peak
    if found.relative:
        small = Fraction(found.rounding)
        assert all(o <= small * a for o, a in zip(off, own, strict=True))
    assert found.bound < 1e-6 or "orders" in name


# --- depth and scale ------------------------------------------------------------------------


@pytest.mark.parametrize("exponent", [-900, 900])
def test_gains_far_from_one(exponent: int) -> None:
    def net(gain: float) -> rf.Network:
        # Each pair of a shortcut and a branch is far from 1 together.
        layers = [rf.Sequential(rf.Conv(1, gain=gain), rf.Residual(rf.Conv(k, padding=k // 2)))
                  for k in (3, 5, 3, 5, 3)]  # fmt: skip
        return rf.Sequential(*layers)

    far, near = (recompress(*where(net(g), 12, (0, 6))) for g in (2.0**exponent, 1.0))
    np.testing.assert_array_equal(far.propagated.image, near.propagated.image)
    grown = far.propagated.mass.log() - near.propagated.mass.log()
    assert grown == pytest.approx(5 * exponent * math.log(2), rel=4 * U["float64"])
    assert far.propagated.lost == near.propagated.lost
    assert far.bound == near.bound


def test_what_is_neglected_is_counted() -> None:
    """A branch 2^950 times as faint as its shortcut: all of its mass is missing from the image."""
    place = where(rf.Sequential(rf.Residual(rf.Conv(3, gain=2.0**-950, padding=1))), 9, (4, 4))
    carrier = propagation.Numbers(script.script(*place), place[0].input_size, 1e-11, np)
    carrier.follow((4, 4), lambda share: None)
    wrong = carrier.wrong(ONE)
    assert 2.0**-950 <= wrong.changed.total <= 2.0**-948
    assert 2.0**-950 / 9 <= wrong.changed.largest <= wrong.changed.total


def test_words_do_not_overflow() -> None:
    """2,500 blocks: binomial weights up to 2^2500 on a map that no mass leaves in one step."""
    blocks, size = 2500, 24
    place = where(residual(blocks), size, (12, 0))
    found = recompress(*place, tol=1e-11)
    # T = (A_y ⊗ A_x) with the eigenvectors of the tridiagonal matrix of ones.
    j = np.arange(1, size + 1)
    modes = np.sqrt(2 / (size + 1)) * np.sin(np.outer(j, j) * np.pi / (size + 1))
    values = (1 + 2 * np.cos(j * np.pi / (size + 1))) / 3
    factor = np.log1p(np.multiply.outer(values, values)) * blocks
    top = factor.max()
    image = modes @ (np.exp(factor - top) * np.outer(modes[12], modes[0])) @ modes
    assert found.propagated.image.shape == image.shape
    # exp(n·log λ) has n·u·|log λ| of error here; the sum over modes cancels by at most its length.
    bound = found.bound + (blocks + size**2) * U["float64"]
    own = found.propagated.image
    assert np.abs(own - image / image.sum()).max() <= bound * own.max()
    expected = top + math.log(image.sum())
    assert found.propagated.mass.log() == pytest.approx(expected, rel=4 * U["float64"], abs=bound)


def test_factors_do_not_underflow() -> None:
    """What a map of one pixel keeps of a layer is 1/9: e^−6592 after three thousand."""
    place = where(rf.Sequential(*[rf.Conv(3, padding=1)] * 3000), 1, (0, 0))
    found = recompress(*place, tol=1e-11)
    # A power rounds each third; and the logarithm is as wrong as its own rounding.
    bound = (2 * 3000 + 3000 * math.log(9)) * U["float64"]
    assert found.propagated.mass.log() == pytest.approx(-3000 * math.log(9), abs=bound)
    assert found.propagated.lost == 1.0


@pytest.mark.parametrize("tail", [1e-3, 0.05])
def test_what_tail_drops_is_reported(tail: float) -> None:
    place = where(residual(30), 60, (0, 30))
    whole, part = (recompress(*place, tail=t).propagated for t in (None, tail))
    assert 0 < part.dropped <= tail
    assert part.lost == whole.lost
    assert part.image.size < whole.image.size
    start = tuple(p - w for p, w in zip(part.origin, whole.origin, strict=True))
    held = whole.image[tuple(slice(s, s + n) for s, n in zip(start, part.image.shape, strict=True))]
    share = part.dropped / (1 - part.lost)
    assert float(held.sum()) == pytest.approx(1 - share, abs=1e-13)
    np.testing.assert_allclose(part.image * float(held.sum()), held, rtol=1e-13)


def test_progress_ends_at_one() -> None:
    seen: list[float] = []
    place = where(residual(5), 12)
    propagate_recompressed(*place, kernels=load(), progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


# --- what it does not serve -----------------------------------------------------------------


def test_obstacles_are_named() -> None:
    def why_not(net: Any, size: Any = None) -> str | None:
        graph, node, _, source = where(net, size)
        return obstacle(graph, node, source)

    assert why_not(residual(3), 9) is None
    assert "line" in (why_not(residual(3, ndim=1), 9) or "")
    assert why_not(rf.Sequential(rf.Conv(2, taps=SLANTED, padding=1), ndim=3)) is None
    assert why_not(residual(20, (3, 5), ndim=3), 9) is None
    whole = rf.Sequential(rf.Conv(3, padding=1), rf.Attention())
    assert "unbounded" in (why_not(whole) or "")
    assert why_not(whole, 9) is None
    with pytest.raises(UnboundedError, match="give input_size"):
        recompress(*where(whole))


def test_what_no_path_leads_to_is_refused() -> None:
    net = rf.Network({
        "x": (rf.Input(),), "y": (rf.Input(),), "a": (rf.Conv(3), "x"), "b": (rf.Conv(3), "y"),
    }, ["a", "b"])  # fmt: skip
    with pytest.raises(InputError, match=r"no path leads from 'a' to the input 'y'; choose"):
        propagate_recompressed(lower(net, 9), "a", (3, 3), "y", kernels=load())


def test_a_window_beside_the_map_has_no_connection() -> None:
    beside = axis_operator(Window(3, 1, 1, 1), None, (0, 2), (5, 4), None)
    assert beside.matrix.nnz == 0
    assert not beside.lost.any()
    assert beside.steps >= 1


@pytest.mark.parametrize("ndim", [2, 3])
def test_what_falls_into_padding(ndim: int) -> None:
    rng = np.random.default_rng(ndim)
    parts = [tuple(rng.random((2, 4))) for _ in range(ndim)]
    weights = rng.random(4)
    terms = Terms(tuple(np.ones((5, 4)) for _ in range(ndim)), weights)
    both = math.prod(kept + lost for kept, lost in parts)
    expected = weights @ (both - math.prod(kept for kept, _ in parts))
    assert powers._fallen(terms, parts).item() == pytest.approx(expected, rel=1e-13)


def test_ways_into_padding_alone_widen_no_window() -> None:
    net = rf.Network(
        {
            "x": (rf.Input(),),
            "a": (rf.Conv(1, padding=(2, 0)), "x"),
            "b": (rf.Conv((5, 1), padding=(4, 0)), "x"),
            "s": (rf.Add(), "a", "b"),
        }
    )
    graph = lower(net, 9)
    assert field_window(graph, "a", (1, 3), "x") == ((1, 0), (3, 0))  # nothing
    assert field_window(graph, "s", (1, 3), "x") == ((0, 2), (3, 1))
    assert field_window(graph, "s", (2, 3), "x") == ((0, 3), (3, 1))


def test_a_chain_of_products_is_one_term() -> None:
    assert script.script(*where(rf.Sequential(*[rf.Conv(3)] * 5), 32)).terms == 1


def test_attention_on_a_map_of_known_size() -> None:
    place = where(rf.Sequential(rf.Conv(3, padding=1), rf.Residual(rf.Attention())), (9, 6), (0, 2))
    assert_close(recompress(*place), direct(place), 100, U["float64"])


# --- forecasts ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_forecasts(name: str) -> None:
    place = where(*NETWORKS[name])
    forecast = of_recompressed(*place, np.dtype(np.float64), None, 1e-12)
    found = recompress(*place)
    image = found.propagated
    for (first, count), o, n in zip(
        forecast.support, image.origin, np.asarray(image.image).shape, strict=True
    ):
        assert first <= o
        assert o + n <= first + count
    assert forecast.operations == len(place[0].between(place[1], place[3]))
    assert forecast.seconds(2) == forecast.seconds(1) > 0
    assert forecast.workers(8) == 1
    assert finest(*place) >= found.bound / 4
    assert is_relative(*place) == found.relative
    # Merges before the first reduction are counted exactly.
    assert script.script(*place).terms >= min(found.terms, script.FEW_TERMS[place[0].ndim])


def test_a_forecast_holds_no_pixels() -> None:
    place = where(residual(200, (3, 5)), 4096)
    tracemalloc.start()
    forecast = of_recompressed(*place, np.dtype(np.float64), None, 1e-12)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    seen = (200 * 2 + 1) * (200 * 4 + 1) * 8
    assert seen < forecast.memory < 4096 * 4096 * 8  # rows that nothing is seen of are not formed
    assert peak < forecast.memory / 4


@pytest.mark.parametrize(
    ("shape", "columns"),
    [
        ((900, 70), (60, 60)),
        ((900, 70), (40, 7)),
        ((3, 2000, 5), (50, 50, 50)),
        ((40, 30, 90), (5, 60, 20)),
        ((90, 9, 40), (30, 8, 40)),
    ],
    ids=str,
)
@pytest.mark.parametrize("cored", [False, True])
def test_what_pixels_are_formed_in(
    shape: tuple[int, ...], columns: tuple[int, ...], cored: bool
) -> None:
    if not cored:
        columns = (columns[0],) * len(shape)
    random = np.random.default_rng(1)
    factors = tuple(random.random(pair) for pair in zip(shape, columns, strict=True))
    terms = Terms(factors, random.random(columns if cored else columns[0]))
    tracemalloc.start()
    terms.form()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    foretold = holdings.Form(shape, columns, cored)
    # NumPy multiplies what it stretches in a buffer of 8,192 numbers.
    assert 8 * foretold.forming == pytest.approx(peak, rel=0.01, abs=72 << 10)
