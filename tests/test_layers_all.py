"""All layers' fields at once: the same as one by one, whatever is shared between them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import fastrf as rf
from fastrf import kernels
from fastrf.engine import calls, prefixes, profiles
from fastrf.engine.rehearsal import Rehearsal
from fastrf.engine.scaled import ONE
from fastrf.engine.terms import FactoredImage
from fastrf.engine.upward import TOP, Image, Pixels, _lowered
from fastrf.errors import EmptyFieldError, InputError, PlanError
from fastrf.lowering import lower

EPS = {"float64": 2.0**-52, "float32": 2.0**-23}
TAPS = np.array([[1.0, 2.0, 0.5], [3.0, 1.0, 4.0], [0.25, 2.0, 1.0]])  # no product
LINE = [1.0, 3.0, 2.0]


def branches() -> rf.Network:
    """Inception-like: three branches concatenated, then a stride and a residual block."""
    return rf.Network(
        {
            "x": (rf.Input(channels=4),),
            "stem": (rf.Conv(3, stride=2, padding=1, channels=6), "x"),
            "a": (rf.Conv(1, channels=2), "stem"),
            "b": (rf.Conv((5, 3), padding=(2, 1), channels=3), "stem"),
            "c": (rf.MaxPool(3, stride=1, padding=1), "stem"),
            "cat": (rf.Concat(), "a", "b", "c"),
            "relu": (rf.Activation("relu"), "cat"),
            "down": (rf.Conv(3, stride=2, dilation=2, padding=2, channels=8), "relu"),
            "side": (rf.Conv(1, stride=2, channels=8), "relu"),
            "add": (rf.Add(), "down", "side"),
            "norm": (rf.Norm(), "add"),
        }
    )


def split() -> rf.Network:
    """Channels that part ways: half of them pass a convolution, and all are shuffled."""
    nodes: dict[str, Any] = {"x": (rf.Input(channels=4),)}
    below = "x"
    for i in range(3):
        nodes |= {
            f"left{i}": (rf.ChannelSlice(0, 2), below),
            f"right{i}": (rf.ChannelSlice(2, 4), below),
            f"conv{i}": (rf.Conv(3, padding=1, channels=2), f"right{i}"),
            f"cat{i}": (rf.Concat(), f"left{i}", f"conv{i}"),
            f"mix{i}": (rf.ChannelShuffle(2), f"cat{i}"),
        }
        below = f"mix{i}"
    return rf.Network(nodes)


def general(ndim: int = 2) -> rf.Network:
    """Taps that are no product, with strides, dilations and merges."""
    taps = TAPS if ndim == 2 else np.multiply.outer(TAPS, LINE)
    conv = rf.Conv(3, padding=1, taps=taps)
    return rf.Sequential(
        rf.Conv(5, padding=2),
        conv,
        rf.Activation("relu"),
        rf.Residual(conv, rf.Conv(3, padding=2, dilation=2, taps=taps)),
        rf.Conv(3, stride=2, padding=1, taps=taps),
        rf.Residual(rf.Conv((7, 3, 1)[:ndim], padding=(3, 1, 0)[:ndim]), conv),
        rf.MaxPool(3, stride=2, padding=1),
        ndim=ndim,
    )


UNBOUNDED = {
    "chain": lambda: rf.zoo.plain(30, 3),
    "wide kernels": lambda: rf.Sequential(rf.Conv(40), rf.Conv((3, 33)), rf.Conv(2), rf.Conv(50)),
    "uneven taps": lambda: rf.Sequential(
        *[
            rf.Conv((3, 5), taps=(np.multiply.outer(LINE, [1.0, 2, 3, 4, 5])), stride=s)
            for s in (1, 2, 1)
        ]
    ),
    "residual": lambda: rf.zoo.residual(6),
    "resnet18": rf.zoo.resnet18,
    "branches": branches,
    "split": split,
    "general taps": general,
    "volume": lambda: general(3),
    "line": lambda: rf.zoo.tcn(3, 5),
}


def deep(ndim: int = 2) -> rf.Network:
    """A chain that is followed in one batch: strides, dilations, taps, uneven padding, crops and
    layers that move no pixel."""
    conv = rf.Conv(3, padding=1, gain=3)
    line = rf.Conv(3, padding=((2, 0),) * ndim, taps=[1.0, 3.0, 2.0] if ndim == 1 else None)
    block = [conv, rf.Activation("relu"), line, rf.Norm(), rf.Conv(1, gain=0.5)]
    return rf.Sequential(
        rf.Conv((5, 4)[:ndim], padding=2, taps=None if ndim == 1 else np.ones((5, 4)).tolist()),
        block * 4,
        rf.MaxPool(2),
        block,
        rf.Conv(3, dilation=2, padding=3),
        rf.Crop(1),
        rf.Conv((4, 1)[:ndim], stride=(2, 1)[:ndim], padding=1),
        block * 3,
        ndim=ndim,
    )


CLIPPED: dict[str, tuple[Any, Any]] = {
    "chain": (lambda: rf.zoo.plain(6, 3), 9),
    "resnet18": (rf.zoo.resnet18, (65, 50)),
    "branches": (branches, 19),
    "split": (split, 7),
    "general taps": (general, 21),
    "decoder": (lambda: rf.zoo.unet(2, 1), 32),
    "line": (lambda: rf.zoo.tcn(3, 3), 40),
    "deep chain": (deep, (23, 30)),
    "deep line": (lambda: deep(1), 29),
}


def roundings(net: rf.Network, node: str, size: Any) -> int:
    """How often at most a pixel of either result is rounded on its way.

    Every layer adds up at most all its taps and sources, each product rounded, and is scaled a
    few times; all addends are nonnegative.
    """
    graph = lower(net, size)
    operations = graph.between(node, graph.input_node(None))
    return sum(
        4
        + len(op.sources)
        + len(op.targets)
        + sum(getattr(axis, "kernel", 300) for move in op.maps for axis in move.axes)
        + sum(move.taps.size for move in op.maps if isinstance(move.taps, np.ndarray))
        for op in operations
    )


def compare(net: rf.Network, found: rf.ERF, single: rf.ERF, size: Any) -> None:
    """The same field: window, losses and gain; pixels to what either may be wrong."""
    assert (found.node, found.unit, found.origin, found.shape) == (
        single.node,
        single.unit,
        single.origin,
        single.shape,
    )
    assert found.values.dtype == single.values.dtype
    assert found.inexact == single.inexact
    steps = roundings(net, found.node, size)
    eps = EPS[str(found.values.dtype)]
    assert found.log_gain == pytest.approx(single.log_gain, abs=steps * eps)
    assert found.lost_mass == pytest.approx(single.lost_mass, abs=steps * eps)
    assert found.dropped_mass == pytest.approx(single.dropped_mass, abs=steps * eps)
    # A sum of terms adds a rounding each; a profile by Miller's recurrence has 66 units of u.
    terms = max(getattr(f.values, "rank", 0) for f in (found, single))
    rtol = 2 * (steps + terms + 66) * eps
    np.testing.assert_allclose(found.image, single.image, rtol=rtol)


@pytest.mark.parametrize("method", ["auto", "direct", "factored", "spectral"])
@pytest.mark.parametrize("name", UNBOUNDED)
def test_the_same_as_one_by_one(name: str, method: str) -> None:
    net = UNBOUNDED[name]()
    if method == "factored" and name in ("general taps", "volume"):
        with pytest.raises(InputError, match="method='factored' does not serve"):
            rf.erf(net, method=method, layers="all")
        return
    fields = rf.erf(net, method=method, layers="all", workers=1)
    graph = lower(net)
    last, source = graph.output_node(None), graph.input_node(None)
    assert list(fields) == list(dict.fromkeys(op.node for op in graph.between(last, source)))
    for node, found in itertools.islice(fields.items(), 0, None, max(1, len(fields) // 12)):
        engine = found.plan.method
        assert method in ("auto", engine)
        single = rf.erf(net, node, method=engine, workers=1)
        if engine == "spectral":  # right to tol of the peak, on a grid of its own
            np.testing.assert_allclose(found.std, single.std, rtol=1e-9)
            assert found.log_gain == pytest.approx(single.log_gain, abs=1e-12)
        else:
            compare(net, found, single, None)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", CLIPPED)
def test_the_same_as_one_by_one_with_borders(name: str, dtype: str) -> None:
    make, size = CLIPPED[name]
    net = make()
    fields = rf.erf(net, input_size=size, layers="all", dtype=dtype, workers=1)
    for node, found in fields.items():
        single = rf.erf(net, node, input_size=size, dtype=dtype, workers=1)
        assert found.plan.operations == single.plan.operations
        compare(net, found, single, size)


@pytest.mark.parametrize("unit", ["center", (1, 3)])
@pytest.mark.parametrize("most", [1, 300])
def test_a_batch_in_parts(most: int, unit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One call a map, or some, make the fields that one call for all makes; and it is one batch."""
    net, options = deep(), {"input_size": (23, 30), "unit": unit, "layers": "all", "workers": 1}
    whole = rf.erf(net, **options)
    assert sum("one batch of 21 maps" in field.plan.reason for field in whole.values()) == 21
    monkeypatch.setattr(prefixes, "MOST_COLUMNS", most)
    for node, found in rf.erf(net, **options).items():
        np.testing.assert_array_equal(found.image, whole[node].image)
        assert found.origin == whole[node].origin
        assert found.log_gain == whole[node].log_gain
        assert found.lost_mass == whole[node].lost_mass


def test_a_unit_of_a_batch_that_sees_nothing() -> None:
    """A tap of 0 leads to the image, the others to the padding."""
    net = rf.Sequential(
        [rf.Conv(3, padding=1)] * 20, rf.Conv(3, padding=((2, 0),), taps=[1.0, 0.0, 0.0]), ndim=1
    )
    with pytest.raises(EmptyFieldError, match="'conv21' reads nothing of 'input'"):
        rf.erf(net, input_size=9, layers="all", unit=(0,))


@pytest.mark.parametrize("size", [9, None])
def test_layers_whose_unit_sees_nothing_are_left_out(size: int | None) -> None:
    """A gap of a transposed convolution below two layers that see beside it."""
    up = rf.ConvTranspose(1, stride=3)
    net = rf.Sequential(rf.Conv(3), up, rf.Activation(), rf.Conv(1), rf.Conv(3))
    unit = (4, 4)
    if size is None:
        unit = (1, 1)
    shares: list[float] = []
    fields = rf.erf(net, input_size=size, unit=unit, layers="all", progress=shares.append)
    assert list(fields) == ["conv1", "conv3"]
    assert shares == [0.2, 0.4, 0.6, 0.8, 1.0]
    for node, field in fields.items():
        np.testing.assert_array_equal(field.image, rf.erf(net, node, unit, size).image)
    for node in ("convtranspose1", "relu1", "conv2"):
        with pytest.raises(EmptyFieldError):
            rf.erf(net, node, unit, size)
        with pytest.raises(EmptyFieldError, match=f"of '{node}' reads nothing"):
            rf.erf(net, node, unit, size, layers="all")
    # What reads it beside something else is a sum of what there is.
    gaps = rf.ConvTranspose(1, stride=3, output_padding=2)
    net = rf.Sequential(rf.Parallel(gaps, rf.Upsample(3), merge="add"), ndim=1)
    fields = rf.erf(net, None, (4,), size, layers="all")
    assert list(fields) == ["parallel1.branch2.upsample1", "parallel1.add1"]
    np.testing.assert_array_equal(*(field.image for field in fields.values()))


def forked(blocks: int) -> rf.Network:
    """Behind padded pooling and forks: windows, taps that are no product, a resize in the end."""
    conv = rf.Conv(3, padding=1)
    uneven = rf.Conv(3, padding=1, taps=TAPS)
    return rf.Sequential(
        rf.Conv(3, stride=2, padding=1),
        rf.MaxPool(3, stride=2, padding=1),
        *[rf.Residual(conv, rf.Activation("relu"), uneven)] * blocks,
        rf.ConvTranspose(3, stride=2, padding=1),
        *[rf.Residual(conv)] * 4,
    )


def zoomed(blocks: int) -> rf.Network:
    """Two maps of one size meet whose neighbours lie one and two pixels apart on the input."""
    conv = rf.Conv(3, padding=1)
    apart = rf.Conv(3, stride=2, dilation=14, padding=(27, 31))
    return rf.Sequential(
        rf.Parallel(conv, apart, merge="concat"), *[rf.Residual(conv)] * 2 * blocks
    )


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("unit", ["center", (2, 5)])
@pytest.mark.parametrize(("make", "blocks"), [(forked, 5), (forked, 9), (zoomed, 12)])
def test_many_maps_of_a_small_image(
    make: Callable[[int], rf.Network], blocks: int, unit: Any, dtype: str
) -> None:
    """One plan for all: the fields are those of one by one, and no plan promises too little."""
    net, size = make(blocks), (27, 34)
    options: dict[str, Any] = {"input_size": size, "unit": unit, "dtype": dtype, "workers": 1}
    fields = rf.erf(net, layers="all", **options)
    called = [node for node, field in fields.items() if "one call" in field.plan.reason]
    assert len(called) >= 2 * blocks
    for node, found in fields.items():
        single = rf.erf(net, node, **options)
        assert found.plan.operations == single.plan.operations
        compare(net, found, single, size)
        for (start, count), at, n in zip(
            found.plan.support, found.origin, found.shape, strict=True
        ):
            assert start <= at
            assert at + n <= start + count
        if node in called:
            assert found.plan.memory >= single.plan.memory or single.plan.engine != "direct"


@pytest.mark.parametrize("blocks", [20, 40])
def test_planning_takes_one_walk_for_all(blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of n maps planned one by one n walks would be rehearsed, of n/2 operations each."""
    walks = []
    follow = Rehearsal.follow

    def counted(self: Rehearsal, pieces: Any) -> None:
        walks.append(sum(map(len, pieces)))
        follow(self, pieces)

    monkeypatch.setattr(Rehearsal, "follow", counted)
    fields = rf.erf(forked(blocks), input_size=32, layers="all", workers=1)
    assert len(fields) > 4 * blocks
    assert sum(walks) < 2 * len(fields)


def test_large_images_are_planned_one_by_one() -> None:
    """Where pixels take longer than a plan, each map may have its own way."""
    net = rf.Sequential(rf.MaxPool(3, stride=1, padding=1), *[rf.Conv(3, padding=1)] * 20)
    fields = rf.erf(net, input_size=600, layers="all", workers=1)
    assert not any("one call" in field.plan.reason for field in fields.values())


@pytest.mark.parametrize("method", ["direct", "factored"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_a_unit_off_the_centre_and_float32(method: str, dtype: str) -> None:
    net = rf.Sequential(rf.Conv(3, stride=2), rf.Residual(rf.Conv(3, padding=1)), rf.Conv(3))
    options: dict[str, Any] = {"unit": (-3, 7), "method": method, "dtype": dtype}
    for node, found in rf.erf(net, layers="all", **options).items():
        compare(net, found, rf.erf(net, node, **options), None)


def test_a_decoder_on_the_unbounded_grid() -> None:
    """The encoder has a transfer function, the decoder has none."""
    net = rf.zoo.unet(2, 1)
    fields = rf.erf(net, layers="all", workers=1)
    reasons = [field.plan.reason for field in fields.values()]
    assert any("one pass" in r for r in reasons)
    assert not all("one pass" in r for r in reasons)
    for node, found in fields.items():
        compare(net, found, rf.erf(net, node, method=found.plan.method, workers=1), None)


# --- what is shared -------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["direct", "factored"])
@pytest.mark.parametrize("size", [None, 16])
def test_layers_that_move_no_pixel_share_an_image(size: Any, method: str) -> None:
    net = rf.Sequential(
        rf.Conv(3, padding=1), rf.Norm(), rf.Activation("relu"), rf.Conv(1, gain=3), rf.Conv(5)
    )
    fields = list(rf.erf(net, input_size=size, layers="all", method=method).values())
    assert all(field.values is fields[0].values for field in fields[1:4])
    assert fields[4].values is not fields[0].values
    assert fields[3].log_gain == pytest.approx(np.log(3 / 2), abs=1e-15)


def test_terms_of_a_residual_stack_are_views() -> None:
    """n blocks hold the rows of the last one, not n times as many."""
    fields = rf.erf(rf.zoo.residual(40), layers="all", method="factored")
    bases = {}
    for field in fields.values():
        assert isinstance(field.values, FactoredImage)
        if field.values.rank > 1:
            for factor in field.values.factors:
                base = factor.rows if factor.rows.base is None else factor.rows.base
                bases[id(base)] = base
    # Even numbers of layers and odd ones.
    assert len(bases) == 2


def test_sums_of_fields_are_said_to_be_sums() -> None:
    fields = rf.erf(branches(), input_size=40, layers="all")
    assert fields["relu"].plan.reason == "the image of cat, with another gain"
    assert fields["a"].plan.reason == "the image of stem, with another gain"
    assert fields["cat"].plan.reason == "the images of a and b and c, added up"
    assert fields["add"].plan.cells > 0
    assert "image of" not in fields["stem"].plan.reason


def test_larger_sums_take_longer() -> None:
    """Of two branches that see 3·2^n pixels along each axis."""
    seconds = []
    for n in (4, 6, 7):
        layers = [rf.Conv(2, stride=2)] * n
        net = rf.Sequential(*layers, rf.Residual(rf.Conv(3, padding=1)))
        fields = rf.erf(net, input_size=5 * 2**n, layers="all", method="direct")
        plan = fields["residual1.add1"].plan
        assert plan.reason.endswith("added up")
        assert plan.cells == 2 * (3 * 2**n) ** 2
        seconds.append(plan.seconds)
    assert 0 < seconds[0] < seconds[1] < seconds[2]


def test_no_sum_where_pixels_may_have_been_cut_off() -> None:
    """350 layers of 9 taps reach 9^−350 of the mass, below the smallest normal number."""
    net = rf.Sequential(rf.Residual(*[rf.Conv(9, padding=4)] * 350), rf.Conv(1), ndim=1)
    fields = rf.erf(net, input_size=200, layers="all", method="direct")
    assert "added up" not in fields["residual1.add1"].plan.reason
    for node in ("residual1.add1", "conv1"):
        compare(net, fields[node], rf.erf(net, node, input_size=200, method="direct"), 200)


def test_a_sum_with_a_part_that_reads_nothing() -> None:
    """The strided layer reads a unit of `b` in the gaps of a transposed convolution."""
    net = rf.Network(
        {
            "x": (rf.Input(),),
            "a": (rf.ConvTranspose(3, stride=2, padding=1), "x"),
            "y": (rf.Conv(2, padding=1), "x"),
            "b": (rf.ConvTranspose(1, stride=2, padding=1), "y"),
            "add": (rf.Add(), "a", "b"),
            "top": (rf.Conv(1, stride=2), "add"),
        },
        ndim=1,
    )
    fields = rf.erf(net, input_size=9, unit=1, layers="all")
    for node, found in fields.items():
        compare(net, found, rf.erf(net, node, input_size=9, unit=1), 9)


# --- options --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 24])
@pytest.mark.parametrize("method", ["auto", "factored"])
def test_tail_as_one_by_one(size: Any, method: str) -> None:
    net = rf.zoo.plain(12, 3)
    for node, found in rf.erf(net, input_size=size, layers="all", tail=1e-4, method=method).items():
        single = rf.erf(net, node, input_size=size, tail=1e-4, method=found.plan.method)
        compare(net, found, single, size)


def test_tail_of_dense_images() -> None:
    """Cut once, at the end: at most the tail, and as much as whole rows and columns allow."""
    net, tail = general(), 1e-3
    for node, found in rf.erf(net, layers="all", tail=tail, method="direct").items():
        whole = rf.erf(net, node, method="direct")
        assert 0 <= found.dropped_mass <= tail
        window = tuple(
            slice(o - w, o - w + n)
            for o, w, n in zip(found.origin, whole.origin, found.shape, strict=True)
        )
        kept = whole.image[window]
        assert kept.sum() == pytest.approx(1 - found.dropped_mass, abs=1e-14)
        np.testing.assert_allclose(found.image, kept / kept.sum(), rtol=1e-12)
        for axis in range(2):
            profile = whole.profile(axis)
            assert profile[: window[axis].start + 1].sum() > tail / 4
            assert profile[window[axis].stop - 1 :].sum() > tail / 4


@pytest.mark.parametrize("size", [None, 20])
def test_progress(size: Any) -> None:
    seen: list[float] = []
    fields = rf.erf(branches(), input_size=size, layers="all", progress=seen.append)
    assert len(seen) == len(fields)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0


@pytest.mark.parametrize("size", [None, 400])
def test_refused_where_all_together_do_not_fit(size: Any) -> None:
    """Each field fits by itself."""
    net = rf.Sequential(*[rf.Conv(3, padding=1, taps=TAPS)] * 150)
    one = rf.plan(net, input_size=size, method="direct").memory
    with pytest.raises(PlanError, match="the fields of all 150 layers need"):
        rf.erf(net, input_size=size, layers="all", method="direct", memory_limit=2 * one)
    rf.erf(net, input_size=size, method="direct", memory_limit=2 * one)


def test_the_engine_for_all() -> None:
    """Factors where they serve all maps, else dense images; waves where less is asked."""
    small = rf.erf(rf.zoo.residual(4), layers="all")
    assert {f.plan.method for f in small.values()} == {"factored"}
    dense = rf.erf(general(), layers="all", accuracy="relative")
    assert {f.plan.method for f in dense.values()} == {"direct"}
    with pytest.raises(InputError, match="not pixel by pixel"):
        rf.erf(general(), layers="all", accuracy="relative", method="spectral")


# --- profiles -------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(0, 0, 0), (4, 0, 0), (0, 3, 0), (5, 2, 0), (2, 4, 3)])
def test_ladder_against_exact_fractions(counts: tuple[int, ...]) -> None:
    factors = [
        profiles.Factor(3, 1),
        profiles.Factor(3, 2, np.array([1.0, 2.0, 5.0]).tobytes()),
        profiles.Factor(40, 3),
    ]
    taps = [[Fraction(1, 3)] * 3, [Fraction(n, 8) for n in (1, 2, 5)], [Fraction(1, 40)] * 40]
    exact = [Fraction(1)]
    for factor, own, count in zip(factors, taps, counts, strict=True):
        for _ in range(count):
            grown = [Fraction(0)] * (len(exact) + factor.spacing * (factor.kernel - 1))
            for m, tap in enumerate(own):
                for i, value in enumerate(exact):
                    grown[i + m * factor.spacing] += tap * value
            exact = grown
    normalised = [profiles.Factor(3, 2, (np.array([1.0, 2.0, 5.0]) / 8).tobytes())]
    ladder = profiles.Ladder([factors[0], *normalised, factors[2]], kernels.load("cpu"))
    found = ladder[counts] * 2.0**-profiles.TOP
    # A step adds up as many products as it has taps; Miller's recurrence has 66 units of u.
    steps = 66 + sum(n * (f.kernel + 2) for f, n in zip(factors, counts, strict=True))
    np.testing.assert_allclose(found, [float(v) for v in exact], rtol=steps * EPS["float64"])


def test_a_call_is_foretold_all_that_its_branches_see() -> None:
    """Of two pixels to the left and two to the right, cut off where the map ends."""
    net = rf.Network(
        {
            "x": (rf.Input(),),
            "left": (rf.Conv(3, padding=((2, 0),)), "x"),
            "right": (rf.Conv(3, padding=((0, 2),)), "x"),
            "sum": (rf.Add(), "left", "right"),
        },
        ndim=1,
    )
    graph = lower(net, 9)
    lines = calls._lines(graph, graph.between("sum", "x"), "x")
    seen = [calls._seen(lines, graph.planes_of["sum"], 0, unit, 9) for unit in (0, 4, 8)]
    assert seen == [(0, 3), (2, 5), (6, 3)]


def test_one_map_alone_that_needs_covariances() -> None:
    net = rf.Sequential(rf.AvgPool(3, 1), rf.Conv(3), rf.AvgPool(3, 1))
    fields = rf.erf(net, layers="all")
    assert [f.plan.engine for f in fields.values()] == ["factored", "factored", "correlated"]
    alone = rf.erf(net, method="direct").to_numpy()
    np.testing.assert_allclose(fields["avgpool2"].to_numpy(), alone, rtol=1e-13)


@pytest.mark.parametrize(
    ("columns", "pixels", "cells", "parts"),
    [
        (100, 100, 1000, [(0, 4)]),
        (8, 100, 1000, [(0, 3), (3, 4)]),  # 1 + 3 + 4 layers
        (100, 12, 1000, [(0, 2), (2, 4)]),  # two maps of 5 and of 6 pixels
        (100, 100, 20, [(0, 2), (2, 3), (3, 4)]),  # 4 · 5, then 4 · 6 alone
        (0, 0, 0, [(0, 1), (1, 2), (2, 3), (3, 4)]),
    ],
)
def test_no_call_is_given_too_much(
    columns: int, pixels: int, cells: int, parts: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefixes, "MOST_COLUMNS", columns)
    monkeypatch.setattr(prefixes, "MOST_PIXELS", pixels)
    monkeypatch.setattr(prefixes, "MOST_CELLS", cells)
    assert list(prefixes._parts(np.array([1, 3, 4, 2]), np.array([5, 4, 6, 6]))) == parts


@pytest.mark.parametrize(
    ("bits", "growth", "lowered"),
    [(480, 480, False), (480, 481, True), (960, 0, False), (961, 0, True)],
)
def test_images_are_lowered_where_a_sum_has_no_room(bits: int, growth: int, lowered: bool) -> None:
    image = Image(Pixels(np, np.full(4, 2.0 ** (bits - 2)), float(bits)), (0,), ONE)
    found = _lowered(image, growth)
    assert (found is not image) == lowered
    assert found.pixels.bits == (TOP if lowered else bits)
    sums = [float(i.pixels.array.sum()) for i in (image, found)]
    assert found.scale.over(ONE) * (sums[1] / sums[0]) == 1
