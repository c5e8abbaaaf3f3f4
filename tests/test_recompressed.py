"""The recompressed engine against the direct one, to the bound that it returns itself.

The direct engine only adds nonnegative numbers: its pixels are wrong by at most N·u/(1 − N·u) of
themselves after N roundings in sequence, hence by no more of the peak.
"""

from __future__ import annotations

import math
from typing import Any

import graphs
import numpy as np
import pytest
from fastrf.kernels import load

import fastrf as rf
from fastrf.engine.direct import Propagated, propagate
from fastrf.engine.recompressed import (
    Recompressed,
    carrier,
    finest,
    is_relative,
    lowrank,
    obstacle,
    of_recompressed,
    propagate_recompressed,
    recompress,
    script,
)
from fastrf.engine.recompressed.lowrank import Terms, reduced, without_traces
from fastrf.engine.recompressed.maps import axis_operator, largest_gain, products, reach, total_gain
from fastrf.errors import EmptyFieldError, InputError, UnboundedError
from fastrf.lowering import PlaneGraph, lower
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
    ends = [
        (min(a, b), max(a + n, b + m))
        for a, n, b, m in zip(
            own.origin, own.image.shape, reference.origin, reference.image.shape, strict=True
        )
    ]
    both = []
    for result in (own, reference):
        whole = np.zeros([stop - start for start, stop in ends])
        inside = zip(result.origin, result.image.shape, ends, strict=True)
        whole[tuple(slice(o - start, o - start + n) for o, n, (start, _) in inside)] = result.image
        both.append(whole)
    bound = found.bound + roundings * unit
    assert np.abs(both[0] - both[1]).max() <= bound * both[1].max()
    assert own.image.min() >= 0
    assert float(own.image.sum(dtype=np.float64)) == pytest.approx(1, abs=roundings * unit)
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
        assert found.propagated.image.dtype == dtype
        assert_close(found, reference, ROUNDINGS, U[dtype])
        if not found.reductions:
            # Nothing was subtracted: what is 0 is exactly 0.
            assert found.propagated.origin == reference.origin
            np.testing.assert_array_equal(found.propagated.image > 0, reference.image > 0)


RANDOM = {f"random {seed}": graphs.random_graph(seed, 2, 12) for seed in range(24)}


@pytest.mark.parametrize("grid", ["unbounded", "clipped"])
@pytest.mark.parametrize("name", [*(n for n, g in CASES.items() if g.ndim == 2), *RANDOM])
def test_reduced_at_every_layer(name: str, grid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same networks, every image of more than one term reduced."""
    for module in (carrier, script):
        monkeypatch.setattr(module, "FEW_TERMS", 1)
    graph = (CASES | RANDOM)[name]
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
    found, reference = recompress(*place), direct(place)
    assert found.error == 0
    assert found.rounding <= 1e-12
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
    found = recompress(*where(net, 448, (0, 112)))
    assert found.terms == 1001
    assert found.reductions == 1
    assert found.rank <= 20
    assert found.bound <= 1e-12


def test_volumes() -> None:
    place = where(residual(30, ndim=3), (20, 12, 14), (0, 5, 13))
    found = recompress(*place)
    assert found.terms == 31
    assert found.reductions == 0
    assert_close(found, direct(place), 500, U["float64"])


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
    off = np.abs(faint.form() - kept.form())
    assert 0 < loss.largest <= 4 * 2.0**-70
    assert loss.total >= float(off.sum()) / 2  # off is rounded at the last digit of the image


@pytest.mark.parametrize("rank", [1, 4])
def test_dropping_too_much_is_caught(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reduction that keeps less than its budget allows shows in the bound, and is refused."""
    place = where(*NETWORKS["kernels in turn"])
    honest = recompress(*place)
    monkeypatch.setattr(lowrank, "_kept", lambda s, budget, noise: min(rank, len(s)))
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
        (taps,) = products(move)
        rows = columns = move.gain
        inside = move.size_in or (None,) * lowered.ndim
        for given in zip(move.axes, taps, y, x, inside, strict=True):
            matrix = axis_operator(*given).matrix.toarray()
            rows *= matrix.sum(axis=1).max()
            columns *= matrix.sum(axis=0).max()
        assert rows <= largest_gain(move) * (1 + 1e-14)
        assert columns <= total_gain(move) * (1 + 1e-14)
        if grid == "unbounded":
            assert largest_gain(move) <= rows * (1 + 1e-14)
            assert total_gain(move) <= columns * (1 + 1e-14)


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


def test_words_do_not_overflow() -> None:
    """2,500 blocks: binomial weights up to 2^2500 on a map that no mass leaves in one step."""
    blocks, size = 2500, 24
    place = where(residual(blocks), size, (12, 0))
    found = recompress(*place)
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
    found = recompress(*place)
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
    slanted = np.arange(1.0, 9.0).reshape(2, 2, 2)
    assert "no product" in (
        why_not(rf.Sequential(rf.Conv(2, taps=slanted, padding=1), ndim=3)) or ""
    )
    assert why_not(residual(20, (3, 5), ndim=3), 9) is not None
    assert why_not(residual(5, (3, 5), ndim=3), 9) is None
    whole = rf.Sequential(rf.Conv(3, padding=1), rf.Attention())
    assert "unbounded" in (why_not(whole) or "")
    assert why_not(whole, 9) is None
    with pytest.raises(UnboundedError, match="give input_size"):
        recompress(*where(whole))


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
    assert script.script(*place).terms >= min(found.terms, script.FEW_TERMS)


def test_a_forecast_holds_no_pixels() -> None:
    place = where(residual(200, (3, 5)), 4096)
    forecast = of_recompressed(*place, np.dtype(np.float64), None, 1e-12)
    assert forecast.memory > 4096 * 4096 * 8
