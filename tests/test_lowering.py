"""Lowering: sizes of every map, what is asked for by default, shares of planes, refusals."""

from __future__ import annotations

import math
import time
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from fastrf import lowering
from fastrf.erf import erf
from fastrf.errors import InputError
from fastrf.layers import (
    Activation,
    AdaptivePool,
    Add,
    Attention,
    AvgPool,
    ChannelShuffle,
    ChannelSlice,
    Concat,
    Conv,
    ConvTranspose,
    Crop,
    FullyConnected,
    GlobalPool,
    Identity,
    Input,
    Layer,
    MaxPool,
    Multiply,
    Norm,
    Pad,
    PixelShuffle,
    PixelUnshuffle,
    SqueezeExcite,
    Upsample,
)
from fastrf.layers.checks import MAXIMUM, MAXIMUM_CHANNELS
from fastrf.lowering import PlaneGraph, lower
from fastrf.network import Network, Parallel, Residual, Sequential

C = Conv(3, padding=1)
TWO_INPUTS = Network({"a": Input(), "b": Input(), "sum": (Add(), "a", "b")})


# --- sizes -----------------------------------------------------------------------------------


def test_sizes_of_every_map() -> None:
    """The stem of a ResNet and a transition, sizes as torchvision's resnet18 prints them."""
    net = Sequential(
        ("conv1", Conv(7, 2, padding=3)),
        ("maxpool", MaxPool(3, 2, padding=1)),
        ("layer2", Residual(Conv(3, 2, padding=1), C, shortcut=Conv(1, 2))),
    )
    graph = lower(net, 224)
    assert graph.input_size == (224, 224)
    assert graph.sizes["conv1"] == (112, 112)
    assert graph.sizes["maxpool"] == (56, 56)
    assert graph.sizes["layer2"] == (28, 28)
    assert lower(net, (224, 225)).sizes["layer2"] == (28, 29)
    assert set(lower(net).sizes.values()) == {None}


SIZES: list[tuple[Any, tuple[int, int]]] = [
    (7, (7, 7)),
    (np.int32(7), (7, 7)),
    ((7, 8), (7, 8)),
    ([7, np.int64(8)], (7, 8)),
    (np.array([7, 8]), (7, 8)),
    ({"input": 7}, (7, 7)),
    ({"input": (7, 8)}, (7, 8)),
]


@pytest.mark.parametrize(("given", "size"), SIZES)
def test_spellings_of_the_input_size(given: Any, size: tuple[int, int]) -> None:
    graph = lower(Sequential(C), given)
    assert graph.sizes["input"] == size
    assert all(type(n) is int for n in graph.sizes["input"] or ())


@pytest.mark.parametrize(
    "given",
    [
        *(0, -1, 7.0, "7", "77", True, math.nan, 10**30, MAXIMUM + 1, Fraction(7), 1j, b"77"),
        *((), (7,), (7, 7, 7), (7, 0), (7, -1), (7, None), (7.0, 7), ("7", "7"), [[7], [7]]),
        *(np.array([7.0, 7.0]), np.array([7]), np.zeros((2, 2)), NotImplemented),
        *({}, {"x": 7}, {"input": 7, "x": 7}, {"input": 0}, {"input": "7"}, {3: 7}),
    ],
    ids=repr,
)
def test_refused_input_sizes(given: Any) -> None:
    with pytest.raises(InputError, match=r"^input_size=") as refusal:
        lower(Sequential(C), given)
    assert "\n" not in str(refusal.value)


def test_several_inputs() -> None:
    assert lower(TWO_INPUTS, 5).sizes == {"a": (5, 5), "b": (5, 5), "sum": (5, 5)}
    scaled = Network({"a": Input(), "b": Input(), "u": (Upsample(2), "b"), "s": (Add(), "a", "u")})
    graph = lower(scaled, {"a": (6, 8), "b": (3, 4)})
    assert graph.sizes["s"] == (6, 8)
    assert graph.input_node("b") == "b"
    with pytest.raises(InputError, match="has 2 inputs; give input= one of a, b"):
        graph.input_node(None)
    for name in ("u", "x"):
        with pytest.raises(InputError, match="is not an input of the network; give input= one"):
            graph.input_node(name)
    for given in ({"a": 5}, {"a": 5, "b": None}):
        with pytest.raises(InputError, match="each of the network's inputs a, b"):
            lower(TWO_INPUTS, given)
    assert lower(Sequential(C)).input_node(None) == "input"


def test_maps_of_one_pixel_are_broadcast() -> None:
    gate = Parallel(None, [GlobalPool(), Conv(1)], merge="multiply")
    assert lower(Sequential(gate), (5, 6)).sizes["parallel1.multiply1"] == (5, 6)
    row = Network({"a": Input(), "b": Input(), "s": (Multiply(), "a", "b")})
    assert lower(row, {"a": (5, 6), "b": (1, 6)}).sizes["s"] == (5, 6)


REFUSED: list[tuple[Network, Any, str]] = [
    (Sequential(Conv(8)), 5, r"^conv1: Conv: a map of 5 pixels .* extent 8; give"),
    (Sequential(C, MaxPool(2), MaxPool(2), MaxPool(2)), 5, r"^maxpool3: MaxPool: a map of 1 "),
    (Sequential(Crop(3)), 6, r"^crop1: Crop: .*shrinks to \(0, 0\); crop less"),
    (Sequential(Residual(Conv(3))), 9, r"^residual1.add1: .*input \(9, 9\), .*\(7, 7\); choose"),
    (Sequential(Parallel(None, Conv(2), merge="concat")), 9, r"concat1: the maps .* differ"),
    (TWO_INPUTS, {"a": 6, "b": 7}, r"^sum: the maps read differ in size: a \(6, 6\), b \(7, 7\)"),
    (Sequential(PixelUnshuffle(2)), (6, 7), r"must divide the map size \(6, 7\)"),
    (Sequential(Upsample(size=7)), None, r"^upsample1: .* give input_size, or scale"),
    (Sequential(*[Upsample(1024)] * 4), 8, rf"^upsample3: .*beyond {MAXIMUM} per axis"),
    (Sequential(*[Pad(MAXIMUM)] * 2), 8, rf"^pad1: .*beyond {MAXIMUM} per axis"),
    (Sequential(Input(3), PixelShuffle(2)), None, r"^pixelshuffle1: .*divisible by 4, got 3"),
    (Sequential(Input(8), *[PixelUnshuffle(64)] * 2), None, rf"more than {MAXIMUM_CHANNELS}"),
    (Sequential(Input(2), Residual(Conv(1, channels=3))), None, r"add1: .*\[2, 3\] channels"),
    (Sequential(Input(4), Conv(1, channels=6, groups=3)), None, r"^conv1: groups=3 must divide"),
    (Sequential(Input(4), Conv(1, channels=6, groups="depthwise")), None, r"^conv1: .*6"),
    (Sequential(Input(4), ConvTranspose(1, channels=3, groups=3)), None, r"groups=3 must divide"),
    (Sequential(Input(4), ChannelShuffle(3)), None, r"groups=3 must divide the 4 channels"),
    (Sequential(Input(4), ChannelSlice(4)), None, r"4:None:1 takes none of the 4 channels"),
    (Sequential(ChannelSlice(0, 1)), None, r"number of channels must be known; give channels="),
]


@pytest.mark.parametrize(
    ("channels", "shuffle", "read"), [(4, PixelShuffle(2), 1), (1, PixelUnshuffle(2), 4)]
)
def test_shuffles_keep_channels_apart(channels: int, shuffle: Any, read: int) -> None:
    """What is read of the shuffled map comes from the first half of what is shuffled."""
    nodes = {
        "x": (Input(3),),
        "first": (Conv(1, channels=channels), "x"),
        "second": (Conv(5, padding=2, channels=channels), "x"),
        "both": (Concat(), "first", "second"),
        "shuffled": (shuffle, "both"),
        "read": (ChannelSlice(0, read), "shuffled"),
    }
    side = 1 if read == 1 else 2
    assert erf(Network(nodes)).image.shape == (side, side)


@pytest.mark.parametrize(("net", "size", "message"), REFUSED)
def test_refused_maps(net: Network, size: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        lower(net, size)
    assert "\n" not in str(refusal.value)


# --- what is asked for -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 16])
@pytest.mark.parametrize(
    "head",
    [
        [GlobalPool(), FullyConnected(10)],
        [AdaptivePool(1), Conv(1), Activation(), Identity()],
        [FullyConnected(10), Activation(), FullyConnected(10)],
        [Parallel(GlobalPool(), GlobalPool("max"))],
    ],
)
def test_the_output_is_the_last_map_with_an_extent(head: list[Any], size: int | None) -> None:
    graph = lower(Sequential(C, ("last", C), *head), size)
    assert graph.output_node(None) == "last"
    node = graph.network.outputs[0]
    assert graph.output_node(node) == node


@pytest.mark.parametrize("size", [None, 16])
def test_gates_keep_the_extent(size: int | None) -> None:
    gate = Parallel(None, [GlobalPool(), Conv(1)], merge="multiply")
    for layer in (SqueezeExcite(), Norm("layer"), Attention(), gate):
        graph = lower(Sequential(C, layer), size)
        assert graph.output_node(None) == graph.network.outputs[0]
        assert not graph.collapsed & set(graph.network.outputs)


def test_fully_connected_as_a_convolution_keeps_the_extent() -> None:
    net = Sequential(C, FullyConnected(10, map_size=7), FullyConnected(10, map_size=1))
    assert lower(net, 10).sizes["fullyconnected2"] == (4, 4)
    assert lower(net).output_node(None) == "fullyconnected2"


def test_several_outputs_must_be_named() -> None:
    graph = lower(Network({"a": (C, "input"), "b": (C, "input")}, endpoints={"e": "b"}))
    with pytest.raises(InputError, match="has 2 outputs; give output= one of a, b"):
        graph.output_node(None)
    assert graph.output_node("e") == "b"
    with pytest.raises(InputError, match="no node or end point is called 'c'"):
        graph.output_node("c")
    wrong: Any = 3
    with pytest.raises(InputError, match="output=3 must be the name"):
        graph.output_node(wrong)


def test_units() -> None:
    graph = lower(Sequential(Conv(3, 2, padding=1)), (9, 12))
    assert graph.sizes["conv1"] == (5, 6)
    assert graph.unit_index("conv1", "center") == (2, 3)
    assert graph.unit_index("conv1", (4, 5)) == (4, 5)
    assert graph.unit_index("conv1", 3) == (3, 3)
    assert graph.unit_index("conv1", np.array([1, 2])) == (1, 2)
    unbounded = lower(Sequential(C))
    assert unbounded.unit_index("conv1", "center") == (0, 0)
    assert unbounded.unit_index("conv1", (-3, 10**12)) == (-3, 10**12)
    for unit in ((5, 0), (0, 6), (-1, 0), 5):
        with pytest.raises(InputError, match=r"outside the map of 'conv1', whose size is \(5, 6\)"):
            graph.unit_index("conv1", unit)
    for unit in ("middle", "11", 1.0, (1,), (1, 1, 1), (True, 0), None, (1, None), b"11", {}):
        with pytest.raises(InputError, match=r"unit=.*(unknown|must be 'center' or 2 whole)"):
            graph.unit_index("conv1", unit)


# --- operations ------------------------------------------------------------------------------


def test_global_paths_can_be_left_out() -> None:
    block: list[Layer] = [SqueezeExcite(), Norm("instance"), Attention(gain=0.5)]
    net = Sequential(C, *block, Parallel(None, [GlobalPool(), Conv(1)], merge="multiply"))
    for size in (None, 8):
        whole = lower(net, size)
        assert {op.node for op in whole.operations if op.is_global} >= {
            *("squeezeexcite1", "norm1", "attention1"),
        }
        kept = lower(net, size, ignore_global=True)
        assert not any(op.is_global for op in kept.operations)
        assert {op.node for op in kept.operations} >= {"squeezeexcite1", "norm1", "attention1"}
        (attention,) = [op for op in kept.operations if op.node == "attention1"]
        assert attention.gain == 0.5
        assert kept.sizes == whole.sizes


def test_squeeze_and_excitation_has_a_direct_path_and_a_mean() -> None:
    direct, gate = lower(Sequential(SqueezeExcite()), (4, 5)).operations
    assert direct.maps == ()
    assert direct.gain == 1.0
    assert gate.maps[0].gain == 1 / 20  # 20 pixels with 1/20² each


def test_between_keeps_the_operations_on_paths() -> None:
    net = Network(
        {
            **{"a": Input(), "b": Input(), "ca": (C, "a"), "cb": (C, "b"), "dead": (C, "ca")},
            **{"sum": (Add(), "ca", "cb"), "out": (C, "sum"), "far": (C, "out")},
        }
    )
    graph = lower(net)
    assert [op.node for op in graph.between("out", "a")] == ["ca", "sum", "out"]
    assert [op.node for op in graph.between("sum", "b")] == ["cb", "sum"]
    assert graph.between("ca", "b") == []
    assert graph.ancestors("sum") == {"sum", "ca", "cb", "a", "b"}


def test_a_map_read_twice_has_two_operations() -> None:
    graph = lower(Network({"sum": (Add(), "input", "input")}))
    assert [op.sources for op in graph.operations] == [((0, 1.0),), ((0, 1.0),)]


PARTED = [
    Sequential(Input(6), ChannelSlice(0, 2), Conv(3, channels=4)),
    Sequential(Input(6), Parallel(ChannelSlice(0, 2), ChannelSlice(1, 5), merge="concat")),
    Sequential(Input(6), ChannelShuffle(2), ChannelSlice(0, 3), Conv(3, channels=4, groups=1)),
    Sequential(Input(8), Conv(3, channels=8, groups=4), ChannelSlice(0, 3)),
    Sequential(Input(8), Conv(3, channels=16, groups="depthwise"), ChannelSlice(1, None, 3)),
    Sequential(Input(2), PixelUnshuffle(2), ChannelSlice(0, 3), Conv(3, channels=2)),
    Sequential(Input(8), PixelShuffle(2), ChannelSlice(0, 1)),
]


@pytest.mark.parametrize("net", PARTED)
def test_shares_say_all_of_every_map(net: Network) -> None:
    graph: PlaneGraph = lower(net)
    for name, planes in graph.planes_of.items():
        shares = [graph.planes[p].share for p in planes]
        assert sum(shares) == pytest.approx(1, rel=1e-15)
        for share in shares:
            assert (share * (graph.channels[name] or 1)) % 1 == 0
    assert sorted(p for ps in graph.planes_of.values() for p in ps) == [*range(len(graph.planes))]
    for op in graph.operations:
        handed = sum(share for _, share in op.sources)
        assert handed == pytest.approx(1, rel=1e-15)
        assert all(0 < share <= 1 for _, share in (*op.sources, *op.targets))


def test_channels_read_alike_share_one_plane() -> None:
    whole = lower(Sequential(Input(64), C, Norm(), Residual(C), Conv(3, groups="depthwise")))
    assert all(len(planes) == 1 for planes in whole.planes_of.values())
    graph = lower(Sequential(Input(6), ChannelSlice(0, 2)))
    assert sorted(graph.planes[p].share for p in graph.planes_of["input"]) == [2 / 6, 4 / 6]


def test_assumptions_are_stated() -> None:
    net = Sequential(Parallel(Conv(3, padding=1), Conv(1), merge="concat"))
    graph = lower(net)
    (assumption,) = graph.assumptions
    assert assumption.startswith("parallel1.concat1: numbers of channels not known")
    assert [op.gain for op in graph.operations if op.node.endswith("concat1")] == [0.5, 0.5]
    assert not lower(Sequential(Input(3), Conv(3, channels=8))).assumptions
    known = Network(
        {
            **{"input": Input(3), "x": (Conv(1, channels=6), "input")},
            **{"y": (Conv(1, channels=2), "input"), "out": (Concat(), "x", "y")},
        }
    )
    assert not lower(known).assumptions


def test_time_is_linear() -> None:
    """10,000 convolutions lower in well under a second; 5 s leave room for a slow machine."""
    net = Sequential(*[Conv(3, padding=1) for _ in range(10_000)])
    start = time.process_time()
    for size in (None, 100):
        assert len(lower(net, size).operations) == 10_000
    assert time.process_time() - start < 5


@pytest.mark.parametrize("pools", [0, 1])
@pytest.mark.parametrize("factor", [(16, 32), (32, 64)])
def test_phases_that_are_read_alike_are_one(monkeypatch, factor, pools):
    """Many phases of a space-to-depth in front of a convolution: one map has the same bits."""
    pool = [AvgPool(3, stride=1, padding=1)] * pools
    found = []
    for most in (10**6, lowering.MOST_PHASES):
        monkeypatch.setattr(lowering, "MOST_PHASES", most)
        layers = [Conv(3, padding=1, channels=4), *pool, PixelUnshuffle(factor), Conv(1), *pool]
        net = Sequential(*layers)
        operations = len(lower(net, (32, 64)).operations)
        found.append((operations, erf(net, input_size=(32, 64), method="direct")))
    (many, expected), (few, result) = found
    assert many > math.prod(factor)
    assert few < 10
    assert result.log_gain == expected.log_gain
    np.testing.assert_array_equal(result.image, expected.image)
