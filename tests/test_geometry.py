"""Theoretical receptive fields against loops over single pixels, published tables and theorems.

Everything here is about whole numbers and fractions: results are compared for equality.
"""

from __future__ import annotations

import itertools
import math
import time
from fractions import Fraction
from typing import Any

import graphs
import naive
import numpy as np
import pytest
from graphs import Graph
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrf.analytic import geometry, intervals
from fastrf.analytic.ends import Ends
from fastrf.analytic.geometry import (
    Dang,
    Distill,
    ReceptiveField,
    dang_from_distill,
    distill_from_dang,
    receptive_field,
)
from fastrf.errors import InputError
from fastrf.layers import (
    AdaptivePool,
    Add,
    Attention,
    AvgPool,
    ChannelSlice,
    Concat,
    Conv,
    ConvTranspose,
    FullyConnected,
    GlobalPool,
    Input,
    MaxPool,
    Multiply,
    Norm,
    Pad,
    SqueezeExcite,
    Upsample,
)
from fastrf.maps import Everything, Spread, Table, Window
from fastrf.network import Network, Parallel, Residual, Sequential

CASES = dict(graphs.cases())
FLAT = [name for name, graph in CASES.items() if graph.ndim == 1]
"""The cases of one axis, which hold every kind of layer and are quick to loop over."""

repeatable = settings(derandomize=True, deadline=None, max_examples=60, database=None)


def members(region: intervals.IntervalSet) -> list[int]:
    return [i for first, last in region for i in range(first, last + 1)]


def projections(pixels: set[tuple[int, ...]], ndim: int) -> list[list[int]]:
    return [sorted({p[axis] for p in pixels}) for axis in range(ndim)]


def units_to_try(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Both corners, the centre and its neighbour (the other phase of a decoder), a border."""
    centre = tuple(n // 2 for n in shape)
    beside = tuple(max(n // 2 - 1, 0) for n in shape)
    mixed = [(0, *centre[1:]), (beside[0], *centre[1:])]
    found = [(0,) * len(shape), tuple(n - 1 for n in shape), centre, beside, *mixed]
    if len(shape) == 1:
        found += [(u,) for u in range(shape[0])]
    return sorted(set(found))


def hull(sets: list[list[int]]) -> Any:
    return None if [] in sets else tuple((s[0], s[-1]) for s in sets)


# --- every unit against loops ---------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_regions_are_those_of_the_loops(name: str) -> None:
    graph = CASES[name]
    nodes, net = graph.naive(), graph.network()
    sized = receptive_field(net, input_size=graph.size)
    free = receptive_field(net)
    assert sized.map_size == graph.map_size()
    for unit in units_to_try(sized.map_size):
        endless = projections(naive.region_unbounded(nodes, graph.output, unit), graph.ndim)
        clipped = projections(naive.region(nodes, graph.output, unit, graph.size), graph.ndim)
        for field in (sized, free):
            assert [members(x) for x in field.intervals(unit)] == endless
            assert field.box(unit) == hull(endless)
        assert [members(x) for x in sized.intervals(unit, clip=True)] == clipped
        assert sized.box(unit, clip=True) == hull(clipped)
        holes = [sorted(set(range(s[0], s[-1] + 1)) - set(s)) if s else [] for s in endless]
        assert [members(x) for x in sized.holes(unit)] == holes


@pytest.mark.parametrize("name", FLAT)
def test_the_table_gives_every_unit(name: str) -> None:
    """Size, stride and padding of every layer, from the regions of a period of its units."""
    graph = CASES[name]
    nodes, net = graph.naive(), graph.network()
    for row in receptive_field(net).layers:
        field = receptive_field(net, row.name)
        (q,) = field.period
        boxes = []
        for u in range(-q, 2 * q):
            pixels = naive.region_unbounded(nodes, row.name, (u,))
            boxes.append((min(pixels)[0], max(pixels)[0]) if pixels else None)
        inner = boxes[q : 2 * q]
        seen = [(u, b) for u, b in enumerate(inner) if b is not None]
        slopes = {Fraction(b[0] - a[0], q) for a, b in zip(boxes, inner, strict=False) if a and b}
        slopes |= {Fraction(b[1] - a[1], q) for a, b in zip(boxes, inner, strict=False) if a and b}
        if len(slopes) == 1:
            (stride,) = slopes
            assert row.size == (max(b - a + 1 for _, (a, b) in seen),)
            assert row.stride == (stride,)
            mean = sum(Fraction(a + b, 2) - u * stride for u, (a, b) in seen) / len(seen)
            assert row.center == (mean,)
        else:
            assert not row.aligned
            assert boxes[q] is not None
            first, last = boxes[q]
            assert row.size == (last - first + 1,)
            assert row.center == (Fraction(first + last, 2),)
        assert row.start[0] == row.center[0] + Fraction(1, 2)
        assert row.center[0] == -row.padding[0] + Fraction(row.size[0] - 1, 2)
        assert field.size == row.size


@pytest.mark.parametrize("name", FLAT)
def test_units_seeing_a_pixel_are_those_whose_region_holds_it(name: str) -> None:
    graph = CASES[name]
    nodes = graph.naive()
    field = receptive_field(graph.network(), input_size=graph.size)
    seen = {
        u: {i for (i,) in naive.region(nodes, graph.output, (u,), graph.size)}
        for u in range(graph.map_size()[0])
    }
    for pixel in range(graph.size[0]):
        (found,) = field.units_seeing(pixel)
        assert members(found) == [u for u, region in seen.items() if pixel in region]


@pytest.mark.parametrize("name", ["residual 2-D", "shuffles 2-D", "unread phases 2-D"])
def test_units_seeing_a_pixel_in_two_dimensions(name: str) -> None:
    graph = CASES[name]
    nodes = graph.naive()
    field = receptive_field(graph.network(), input_size=graph.size)
    units = list(itertools.product(*map(range, graph.map_size())))
    seen = {u: naive.region(nodes, graph.output, u, graph.size) for u in units}
    for pixel in ((0, 0), (0, 3), (4, 2), (5, 5)):
        found = [members(x) for x in field.units_seeing(pixel)]
        assert found == projections({u for u in units if pixel in seen[u]}, 2)


@pytest.mark.parametrize("name", FLAT)
def test_units_seeing_on_the_unbounded_grid(name: str) -> None:
    graph = CASES[name]
    nodes, field = graph.naive(), receptive_field(graph.network())
    for pixel in (-3, 0, 2):
        (found,) = field.units_seeing(pixel)
        for u in range(-12, 20):
            region = naive.region_unbounded(nodes, graph.output, (u,))
            assert (u in members(found)) == ((pixel,) in region)


@pytest.mark.parametrize("name", CASES)
def test_reach_beyond_the_image(name: str) -> None:
    graph = CASES[name]
    field = receptive_field(graph.network(), input_size=graph.size)
    expected = []
    for axis, size in enumerate(graph.size):
        boxes = []
        for u in range(field.map_size[axis]):
            # In these cases the axes do not meet: any place on the other axes sees something.
            for other in range(min(3, *field.map_size)):
                unit = [other] * graph.ndim
                unit[axis] = u
                boxes.append(field.box(unit))
        ends = [b[axis] for b in boxes if b is not None]
        lo = max(0, -min(a for a, _ in ends))
        expected.append((lo, max(0, max(b for _, b in ends) - size + 1)))
    assert field.beyond == tuple(expected)
    assert receptive_field(graph.network()).beyond is None


# --- published numbers ----------------------------------------------------------------------


def test_dangs_alexnet_table() -> None:
    """Dang Ha The Hien (2017), AlexNet at 227: n, j, r, start."""
    net = Sequential(
        ("conv1", Conv(11, stride=4)),
        ("pool1", MaxPool(3, stride=2)),
        ("conv2", Conv(5, padding=2)),
        ("pool2", MaxPool(3, stride=2)),
        ("conv3", Conv(3, padding=1)),
        ("conv4", Conv(3, padding=1)),
        ("conv5", Conv(3, padding=1)),
        ("pool5", MaxPool(3, stride=2)),
        ("fc6", Conv(6)),
    )
    table = {
        "conv1": (55, 4, 11, 5.5),
        "pool1": (27, 8, 19, 9.5),
        "conv2": (27, 8, 51, 9.5),
        "pool2": (13, 16, 67, 17.5),
        "conv3": (13, 16, 99, 17.5),
        "conv4": (13, 16, 131, 17.5),
        "conv5": (13, 16, 163, 17.5),
        "pool5": (6, 32, 195, 33.5),
        "fc6": (1, 32, 355, 113.5),
    }
    layers = receptive_field(net, input_size=227).layers
    assert [row.name for row in layers] == list(table)
    for row in layers:
        found = zip(row.shape, row.stride, row.size, row.start, strict=True)
        assert list(found) == [table[row.name]] * 2
    assert receptive_field(net, "pool5", 227).dang == Dang(
        (6, 6), (32, 32), (195, 195), (Fraction(67, 2),) * 2
    )


def test_distills_small_example() -> None:
    """k3 p1 s3, then k2 s1: feature 0 sees [−1, 4]."""
    field = receptive_field([Conv((3,), stride=3, padding=1), Conv((2,))])
    assert field.box(0) == ((-1, 4),)
    assert field.distill == Distill((6,), (3,), (1,), (-1,), (4,))


def test_distills_misaligned_network() -> None:
    """The union's size is 7, 6, 5, 6, 7 at features 0 … 4."""
    field = receptive_field(graphs.misaligned().network())
    boxes = [field.box(u)[0] for u in range(5)]
    assert [b - a + 1 for a, b in boxes] == [7, 6, 5, 6, 7]
    assert not field.aligned
    (report,) = field.misaligned
    assert (report.node, report.axis) == ("add", 0)
    assert report.paths == (("left", 2, 0), ("right2", 1, 2))
    assert (field.size, field.stride) == ((7,), (2,))
    assert "not aligned" in repr(field)


def test_vgg_16() -> None:
    """TF-Slim's vgg_16, pool5: 212, 32, 90."""
    blocks = [[Conv(3, padding=1)] * n + [MaxPool(2, stride=2)] for n in (2, 2, 3, 3, 3)]
    field = receptive_field(Sequential(*blocks), input_size=224)
    assert (field.size, field.stride, field.padding) == ((212, 212), (32, 32), (90, 90))
    assert field.aligned
    assert field.map_size == (7, 7)


def test_resnet_18() -> None:
    """Torchvision's resnet18: layer1 … 4 are 43/4/21, 99/8/49, 211/16/105, 435/32/217."""
    net: list[Any] = [Conv(7, stride=2, padding=3), MaxPool(3, stride=2, padding=1)]
    expected = [(43, 4, 21), (99, 8, 49), (211, 16, 105), (435, 32, 217)]
    for stage, values in enumerate(expected):
        stride = 1 if stage == 0 else 2
        shortcut = None if stage == 0 else Conv(1, stride=stride)
        net.append(
            Residual(Conv(3, stride=stride, padding=1), Conv(3, padding=1), shortcut=shortcut)
        )
        net.append(Residual(Conv(3, padding=1), Conv(3, padding=1)))
        field = receptive_field(Sequential(*net))
        assert (field.size[0], field.stride[0], field.padding[0]) == values
        assert field.aligned
        assert field.misaligned == ()


# --- conventions ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_two_conventions_convert_into_each_other(name: str) -> None:
    graph = CASES[name]
    for size in (None, graph.size):
        field = receptive_field(graph.network(), input_size=size)
        assert dang_from_distill(field.distill, field.map_size) == field.dang
        assert distill_from_dang(field.dang) == field.distill
        assert field.padding == field.distill.P
        assert field.dang.start == field.start


def test_a_range_of_features() -> None:
    """u = −P + first·S and v = −P + last·S + r − 1 (Distill), the union of their boxes."""
    field = receptive_field([Conv((5,), stride=2, padding=1), Conv((3,), stride=2)])
    region = distill_from_dang(field.dang, (2,), (4,))
    assert region.u == (field.box(2)[0][0],)
    assert region.v == (field.box(4)[0][1],)


def test_values_are_whole_where_they_can_be() -> None:
    field = receptive_field([Conv((3,), padding=1), Upsample(2), Conv((2,), padding=0)])
    assert field.stride == (Fraction(1, 2),)
    assert field.period == (2,)
    down = receptive_field([Upsample((2,)), Conv((2,), stride=2)])
    assert down.stride == (1,)
    assert type(down.stride[0]) is int
    assert down.period == (1,)
    assert type(down.center[0]) is int


# --- alignment ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "aligned"),
    [
        ("residual", True),
        ("residual 2-D", True),
        ("nearest decoder", True),
        ("linear decoder", True),
        ("transposed decoder", True),
        ("shifted decoder", False),
        ("misaligned", False),
        ("shifted paths", False),
        ("shuffles", True),
        ("shuffles 2-D", True),
    ],
)
def test_alignment(name: str, aligned: bool) -> None:
    graph = CASES[name]
    for size in (None, graph.size):
        field = receptive_field(graph.network(), input_size=size)
        assert field.aligned is aligned
        assert bool(field.misaligned) is not aligned


def test_misalignment_is_inherited_and_reported_where_it_arises() -> None:
    fork = Parallel(Conv(3, padding=1), Conv(3, padding=(0, 2)))
    net = Sequential(Conv(3), fork, Conv(3), Residual(Conv(3, padding=1)))
    field = receptive_field(net)
    assert not field.aligned
    assert {r.node for r in field.misaligned} == {"parallel1.add1"}
    assert [r.axis for r in field.misaligned] == [0, 1]
    assert [p.center for p in field.misaligned[0].paths] == [1, 2]
    assert receptive_field(net, "conv1").aligned
    assert field.size == (10, 10)


def test_a_slice_of_a_misaligned_concatenation_is_judged_by_itself() -> None:
    net = Network(
        {
            "input": (Input(1),),
            "a": (Conv((3,), padding=1, channels=2), "input"),
            "b": (Conv((3,), padding=0, channels=2), "input"),
            "cat": (Concat(), "a", "b"),
            "first": (ChannelSlice(0, 2), "cat"),
            "second": (ChannelSlice(2, 4), "cat"),
            "both": (Conv((1,), channels=1), "cat"),
        },
        ["first", "second", "both"],
    )
    fields = {name: receptive_field(net, name) for name in ("first", "second", "cat", "both")}
    assert [f.aligned for f in fields.values()] == [True, True, False, False]
    assert fields["first"].box(0) == ((-1, 1),)
    assert fields["second"].box(0) == ((0, 2),)
    assert fields["both"].box(0) == ((-1, 2),)
    assert fields["both"].misaligned[0].node == "cat"


# --- global layers --------------------------------------------------------------------------


def test_squeeze_and_excitation_is_unbounded_and_can_be_ignored() -> None:
    net = Sequential(Conv((3,), padding=1), SqueezeExcite(), Conv((3,), padding=1), Attention())
    free = receptive_field(net)
    assert free.size == (None,)
    assert free.padding == (None,)
    assert free.unbounded_by == ("squeezeexcite1", "attention1")
    assert free.box(0) == ((-math.inf, math.inf),)
    assert free.units_seeing(0) == (((-math.inf, math.inf),),)
    assert "unbounded" in repr(free)
    row = free.layers.named("conv2")
    assert (row.size, row.stride, row.unbounded) == ((None,), (1,), (True,))
    assert not free.layers.named("conv1").unbounded[0]

    sized = receptive_field(net, input_size=9)
    assert sized.unbounded_by == free.unbounded_by
    # Attention reads units 0 … 8, each convolution below reaches one pixel further.
    assert sized.box(4) == ((-2, 10),)
    assert sized.box(4, clip=True) == ((0, 8),)
    assert sized.units_seeing(0) == (((0, 8),),)
    assert sized.beyond == ((2, 2),)

    ignored = receptive_field(net, ignore_global=True)
    assert ignored.size == (5,)
    assert ignored.unbounded_by == ()


def test_a_gate_written_out_names_the_pooling_alone() -> None:
    net = Network(
        {
            "conv": (Conv((3,), padding=1), "input"),
            "pool": (GlobalPool(), "conv"),
            "fc": (Conv((1,)), "pool"),
            "gate": (Multiply(), "conv", "fc"),
        }
    )
    for size in (None, 8):
        field = receptive_field(net, input_size=size)
        assert field.unbounded_by == ("pool",)
        assert field.stride == (1,)
        assert field.aligned
    assert receptive_field(net, ignore_global=True).box(0) == ((-1, 1),)


@pytest.mark.parametrize("size", [None, 32])
def test_the_default_output_is_the_last_map(size: int | None) -> None:
    net = Sequential(Conv(3), ("last", Conv(3)), GlobalPool(), FullyConnected(10))
    field = receptive_field(net, input_size=size)
    assert field.node == "last"
    assert field.size == (5, 5)
    logits = receptive_field(net, "fullyconnected1", size)
    assert logits.size == (None, None)
    assert logits.unbounded_by == ("globalpool1",)


def test_every_phase_sees_the_same_behind_a_global_layer() -> None:
    field = receptive_field([GlobalPool(), Upsample((4,))], "upsample1", 8)
    assert field.period == (1,)
    assert [field.box(u) for u in range(4)] == [((0, 7),)] * 4


def test_a_path_that_sees_nothing_along_one_axis_sees_nothing() -> None:
    field = receptive_field(CASES["half blind 2-D"].network())
    assert field.size == (1, 1)
    assert field.aligned
    assert field.layers.named("blind").size == (0, 0)


@pytest.mark.parametrize("norm", ["layer", "group", "instance", "batch_train"])
def test_statistics_of_the_whole_map_are_global(norm: Any) -> None:
    assert receptive_field([Conv(3), Norm(norm)]).unbounded_by == ("norm1",)
    assert receptive_field([Conv(3), Norm("batch")]).unbounded_by == ()


# --- layers that the loops do not have ------------------------------------------------------


def test_adaptive_pooling() -> None:
    """PyTorch's windows ⌊o·n/m⌋ … ⌈(o+1)·n/m⌉ − 1, here 10 pixels to 4."""
    field = receptive_field([AdaptivePool((4,))], input_size=10)
    boxes = [field.box(u) for u in range(4)]
    assert boxes == [((0, 2),), ((2, 4),), ((5, 7),), ((7, 9),)]
    assert [field.box(u, clip=True) for u in range(4)] == boxes
    assert field.stride == (Fraction(5, 2),)
    assert field.units_seeing(2) == (((0, 1),),)
    one = receptive_field([Conv((3,)), AdaptivePool((1,))], "adaptivepool1", input_size=10)
    assert one.unbounded_by == ("adaptivepool1",)
    assert one.box(0) == ((0, 9),)


@pytest.mark.parametrize(("scale", "n"), [("3/2", 8), ("2/3", 9), (Fraction(7, 5), 10)])
def test_rational_nearest_resizing(scale: Any, n: int) -> None:
    """Unit o reads pixel ⌊o/scale⌋."""
    field = receptive_field([Upsample((scale,))], input_size=n)
    for o in range(field.map_size[0]):
        at = math.floor(o / Fraction(scale))
        assert field.box(o) == field.box(o, clip=True) == ((at, at),)
        assert o in members(field.units_seeing(at)[0])
    assert field.stride == (1 / Fraction(scale),)
    assert field.period == (Fraction(scale).numerator,)


@pytest.mark.parametrize(("n", "m"), [(5, 9), (4, 7), (6, 3), (1, 3), (5, 1)])
def test_resizing_with_aligned_corners(n: int, m: int) -> None:
    """Unit o lies at o·(n−1)/(m−1) and reads the one or two pixels around it."""
    layer = Upsample(size=(m,), mode="linear", coordinates="align_corners")
    field = receptive_field([layer], input_size=n)
    for o in range(m):
        at = Fraction(o * (n - 1), max(m - 1, 1))
        assert field.box(o, clip=True) == ((math.floor(at), math.ceil(at)),)
        if n > 1:
            assert field.box(o) == field.box(o, clip=True)


def test_borders_that_mirror_only_shift_on_the_extension() -> None:
    """A row of the reflected border is not a region of the unbounded map."""
    for pad in ([Pad(((2, 1),), "reflect"), Conv((3,))], [Conv((3,), padding=((2, 1),))]):
        field = receptive_field(pad, input_size=7)
        assert field.box(0) == ((-2, 0),)
        assert field.padding == (2,)
    mirrored = receptive_field([Conv((3,), padding=2, padding_mode="reflect")], input_size=7)
    # Unit 0 reads the padding −2 and −1, which repeat pixels 2 and 1, and pixel 0.
    assert mirrored.box(0, clip=True) == ((0, 2),)
    assert mirrored.box(0) == ((-2, 0),)


def test_tensorflows_padding_depends_on_the_size() -> None:
    """SAME with k = 3, s = 2 pads (0, 1) on even maps and (1, 1) on odd ones."""
    layer = Conv((3,), stride=2, padding="same_upper")
    assert receptive_field([layer], input_size=8).padding == (0,)
    assert receptive_field([layer], input_size=9).padding == (1,)
    pool = MaxPool((3,), stride=2, padding="same_upper")
    assert receptive_field([pool], input_size=8).padding == (0,)
    assert receptive_field([pool], input_size=9).padding == (1,)


@pytest.mark.parametrize("pool", [MaxPool, AvgPool])
def test_windows_that_leave_the_map_keep_their_size(pool: Any) -> None:
    field = receptive_field([pool((3,), stride=2, ceil_mode=True)], input_size=6)
    assert field.map_size == (3,)
    assert field.box(2) == ((4, 6),)
    assert field.box(2, clip=True) == ((4, 5),)
    assert field.beyond == ((0, 1),)


@pytest.mark.parametrize("pool", [MaxPool, AvgPool])
def test_a_window_larger_than_its_map(pool: Any) -> None:
    """In ceil mode the only window of a map may reach beyond it."""
    field = receptive_field([pool((3,), stride=3, ceil_mode=True)], input_size=2)
    assert field.box(0) == ((0, 2),)
    assert field.box(0, clip=True) == ((0, 1),)


def test_several_inputs() -> None:
    net = Network(
        {
            "left": (Input(),),
            "right": (Input(),),
            "a": (Conv((3,), padding=1), "left"),
            "b": (Conv((5,), padding=2), "right"),
            "sum": (Add(), "a", "b"),
        }
    )
    assert receptive_field(net, input="left").size == (3,)
    assert receptive_field(net, input="right").size == (5,)
    field = receptive_field(net, input="left", input_size={"left": 8, "right": 8})
    assert field.input_size == (8,)
    assert field.aligned
    assert field.layers.named("b").size == (0,)
    with pytest.raises(InputError, match="the network has 2 inputs; give input= one of"):
        receptive_field(net)
    with pytest.raises(InputError, match="no path leads from the input 'right' to 'a'"):
        receptive_field(net, "a", input="right")


# --- the table ------------------------------------------------------------------------------


def test_the_table_lists_every_layer_in_order() -> None:
    net = Sequential(Conv(3, stride=2), Residual(Conv(3, padding=1)))
    field = receptive_field(net, input_size=(9, 11))
    assert [row.name for row in field.layers] == ["conv1", "residual1.conv1", "residual1.add1"]
    assert [row.op for row in field.layers] == ["conv", "conv", "add"]
    assert len(field.layers) == len(net)
    row = field.layers[0]
    assert row.shape == (4, 5)
    assert row.stride == (2, 2)
    dicts = field.layers.to_dicts()
    assert list(dicts[0]) == list(geometry.LayerField._fields)
    assert dicts[1]["size"] == (7, 7)
    assert repr(field) == (
        "ReceptiveField('residual1.add1' on 'input', size 7×7, stride 2×2, padding 2×2, map 4×5)"
    )
    with pytest.raises(InputError, match="no layer is called 'x'"):
        field.layers.named("x")


def test_holes() -> None:
    field = receptive_field([Conv((3,), dilation=2), Conv((2,), dilation=6)])
    assert field.intervals(0) == (((0, 0), (2, 2), (4, 4), (6, 6), (8, 8), (10, 10)),)
    assert field.holes(0) == (((1, 1), (3, 3), (5, 5), (7, 7), (9, 9)),)
    assert field.has_holes
    assert not receptive_field([Conv((3,)), Conv((3,), dilation=2)]).has_holes
    # Unit j reads (j + 1 − 3m)/2 for the taps m that divide: 0 and 2 where j is odd, else 1.
    decoder = receptive_field([ConvTranspose((3,), stride=2, dilation=3, padding=1)])
    assert decoder.holes(-1) == (((-2, -1),),)
    assert decoder.holes(0) == ((),)
    assert decoder.has_holes
    assert receptive_field(graphs.misaligned().network()).has_holes is False


# --- properties -----------------------------------------------------------------------------

steps = st.builds(
    lambda k, s, d, lo, hi, up: (
        ConvTranspose((k,), stride=s, dilation=d)
        if up
        else Conv((k,), stride=s, dilation=d, padding=((lo, hi),))
    ),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 3),
    st.integers(0, 3),
    st.booleans(),
)
chains = st.lists(steps, min_size=1, max_size=5)


def field_of(chain: list[Any], size: int | None = None) -> ReceptiveField | None:
    """The field of a chain; None where it shrinks the map away or its units see nothing."""
    try:
        return receptive_field(chain, input_size=size)
    except InputError as error:
        if "smaller than the kernel" in str(error) or "no path" in str(error):
            return None
        raise


@repeatable
@given(chains)
def test_fields_grow_with_depth(chain: list[Any]) -> None:
    convolutions = [layer for layer in chain if isinstance(layer, Conv)]
    sizes = [row.size[0] for row in receptive_field([Conv((1,)), *convolutions]).layers]
    assert sizes == sorted(sizes)


@repeatable
@given(chains, st.integers(-9, 9), st.integers(-3, 3))
def test_units_a_period_apart_see_shifted_regions(chain: list[Any], unit: int, turns: int) -> None:
    field = field_of(chain)
    if field is None:
        return
    (q,), (stride,) = field.period, field.stride
    shift = q * turns * stride
    moved = tuple((a + shift, b + shift) for a, b in field.intervals(unit)[0])
    assert field.intervals(unit + q * turns) == (moved,)


@repeatable
@given(chains)
def test_clipped_boxes_lie_in_the_boxes_and_in_the_image(chain: list[Any]) -> None:
    field = field_of(chain, 24)
    if field is None:
        return
    for unit in range(min(field.map_size[0], 40)):
        whole = set(members(field.intervals(unit)[0]))
        seen = set(members(field.intervals(unit, clip=True)[0]))
        assert seen <= whole & set(range(24))


@repeatable
@given(chains, st.integers(0, 23))
def test_units_seeing_is_the_inverse_of_intervals(chain: list[Any], pixel: int) -> None:
    field = field_of(chain, 24)
    if field is None or field.map_size[0] > 60:
        return
    (found,) = field.units_seeing(pixel)
    regions = (members(field.intervals(u, clip=True)[0]) for u in range(field.map_size[0]))
    assert members(found) == [u for u, region in enumerate(regions) if pixel in region]


maps = st.one_of(
    st.builds(Window, st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(-5, 5)),
    st.builds(Spread, st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(-5, 5)),
    st.builds(
        lambda starts, advance: Table(np.array(starts), np.tri(len(starts), 3), advance),
        st.lists(st.integers(-4, 4), min_size=1, max_size=4),
        st.integers(1, 4),
    ),
)
index_sets = st.frozensets(st.integers(-12, 12), max_size=8)


@repeatable
@given(maps, index_sets)
def test_pull_and_push_are_inverse_relations(axis: Any, indices: frozenset[int]) -> None:
    def as_set(values: frozenset[int]) -> intervals.IntervalSet:
        return intervals.union(*(((i, i),) for i in values))

    one = {i: set(members(intervals.pull(axis, ((i, i),), None))) for i in range(-80, 81)}
    pulled = members(intervals.pull(axis, as_set(indices), None))
    assert pulled == sorted(set().union(*(one[i] for i in indices)))
    pushed = members(intervals.push(axis, as_set(indices), None))
    assert [o for o in pushed if abs(o) <= 80] == [o for o in one if one[o] & indices]


@repeatable
@given(index_sets, index_sets, st.integers(1, 9))
def test_interval_sets(a: frozenset[int], b: frozenset[int], size: int) -> None:
    first, second = (intervals.union(*(((i, i),) for i in s)) for s in (a, b))
    assert members(first) == sorted(a)
    assert members(intervals.union(first, second)) == sorted(a | b)
    assert intervals.contains(first, second) == (b <= a)
    assert members(intervals.clipped(first, size)) == sorted(i for i in a if 0 <= i < size)
    inside = set(range(min(a), max(a) + 1)) - a if a else set()
    assert members(intervals.gaps(first)) == sorted(inside)


def test_a_global_map_reads_all_or_nothing() -> None:
    for step in (intervals.pull, intervals.push):
        assert step(Everything(), ((2, 2),), 5) == ((0, 4),)
        assert step(Everything(), (), 5) == ()
        assert step(Everything(), ((2, 2),), None) == intervals.EVERYWHERE
        assert step(Window(3, 2), intervals.EVERYWHERE, None) == intervals.EVERYWHERE


# --- bad input ------------------------------------------------------------------------------


def test_what_is_refused() -> None:
    field = receptive_field([Conv(3)], input_size=8)
    with pytest.raises(InputError, match="outside the map"):
        field.box((6, 0))
    with pytest.raises(InputError, match="'center' or one index"):
        field.box("middle")
    with pytest.raises(InputError, match="outside the image"):
        field.units_seeing((0, 8))
    with pytest.raises(InputError, match="2 whole numbers"):
        field.units_seeing((1, 2, 3))
    with pytest.raises(InputError, match="2 whole numbers"):
        field.units_seeing(0.5)
    with pytest.raises(InputError, match="give input_size"):
        receptive_field([Conv(3)]).box(clip=True)
    with pytest.raises(InputError, match="did you mean 'conv1'"):
        receptive_field([Conv(3)], "conv2")
    with pytest.raises(InputError, match="no path"):
        receptive_field([GlobalPool()], "globalpool1", ignore_global=True)
    with pytest.raises(InputError, match="phases"):
        receptive_field([Upsample((f"{p}/2",)) for p in (101, 103, 107)])


def test_regions_of_too_many_pieces_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intervals, "MAX_INTERVALS", 4)
    assert len(receptive_field([Conv((4,), dilation=2)]).intervals()[0]) == 4
    with pytest.raises(InputError, match="separate intervals"):
        receptive_field([Conv((5,), dilation=2)]).intervals()


# --- scale ----------------------------------------------------------------------------------


def test_ten_thousand_layers_and_a_thousand_blocks() -> None:
    """r = 1 + 2n; the limit is ten times what a slow core takes, to catch quadratic work only."""
    began = time.perf_counter()
    field = receptive_field(Sequential(*[Conv(3, padding=1)] * 10_000))
    assert field.size == (20_001, 20_001)
    assert field.layers[4_999].size == (10_001, 10_001)
    assert field.box() == ((-10_000, 10_000),) * 2
    blocks = receptive_field([Residual(Conv(3, padding=1), Conv(3, padding=1))] * 1_000)
    assert blocks.size == (4_001, 4_001)
    assert blocks.aligned
    assert time.perf_counter() - began < 30


def test_strides_beyond_machine_integers() -> None:
    field = receptive_field([Conv((3,), stride=2)] * 200)
    assert field.stride == (2**200,)
    assert field.size == (2**201 - 1,)
    assert field.box(1) == ((2**200, 2**200 + 2**201 - 2),)


def test_merging_more_products_than_are_kept_apart_keeps_the_projections() -> None:
    """Twenty 2-D paths whose boxes no product unites."""
    shifts = [Pad(((i, 40 - i), (40 - i, i))) for i in range(0, 40, 2)]
    field = receptive_field(Parallel(*shifts))
    assert len(shifts) > geometry.MAX_PRODUCTS
    assert [members(x) for x in field.intervals(0)] == [
        list(range(-38, 1, 2)),
        list(range(-40, -1, 2)),
    ]
    assert not field.aligned


def test_description_and_network_agree_on_sizes() -> None:
    """The converter's two sides name the same maps, so a case cannot compare different networks."""
    for graph in CASES.values():
        assert isinstance(graph, Graph)
        field = receptive_field(graph.network(), input_size=graph.size)
        sizes = naive.sizes(graph.naive(), graph.size)
        for row in field.layers:
            assert list(row.shape) == sizes[row.name]


def test_ends_of_units_that_see_nothing() -> None:
    assert Ends(1, (None, None), (None, None)).size == 0
    assert Ends(1, (None, 3), (None, 4)).size == 2
