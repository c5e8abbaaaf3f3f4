"""Advice: every figure against the engine or the recurrences, on networks made for it."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np
import pytest

import fastrf as rf
from fastrf import advice
from fastrf.errors import InputError
from fastrf.layers import AvgPool, Conv, GlobalPool, MaxPool, SqueezeExcite
from fastrf.network import Network, Parallel, Residual, Sequential


def conv(**kw: Any) -> Conv:
    return Conv(3, padding=1, **kw)


def test_growth_of_a_plain_stack() -> None:
    found = advice(rf.zoo.plain(60))
    assert [s.name for s in found.stages] == [f"conv{n}" for n in range(1, 61)]
    for n, stage in enumerate(found.stages, 1):
        assert stage.layers == 1
        assert stage.trf == 2 * n + 1
        assert stage.std == pytest.approx(math.sqrt(2 * n / 3))
        assert stage.share == pytest.approx(math.sqrt(n / 60))
        if n > 1:
            assert stage.growth == pytest.approx(math.sqrt(n / (n - 1)) - 1)
    # √(n/(n−1)) − 1 < 1% from n = 51 on; √(n/60) ≥ 95% from n = 54.15 on.
    assert found.stops_at == "conv51"
    assert found.settled_at == "conv55"
    assert advice(rf.zoo.plain(50)).stops_at is None
    assert found.trf == (121, 121)
    assert found.std == pytest.approx(rf.erf(rf.zoo.plain(60)).std)


def test_stages_are_where_all_paths_meet() -> None:
    net = Sequential(
        ("stem", Conv(7, stride=2, padding=3)),
        rf.Activation(),
        Residual(conv(), conv()),
        MaxPool(2),
        Parallel(conv(), Conv(1), merge="concat"),
        rf.Norm(),
    )
    found = advice(net)
    assert [(s.name, s.layers) for s in found.stages] == [
        ("stem", 1), ("residual1.add1", 2), ("maxpool1", 1), ("parallel1.concat1", 2),
    ]  # fmt: skip
    for stage in found.stages:
        erf = rf.erf(net, stage.name)
        assert stage.std == pytest.approx(erf.std[0])
        assert stage.trf == erf.field.size[0]
    assert found.stages[1].growth == pytest.approx(
        math.sqrt(found.stages[1].std / found.stages[0].std) - 1
    )
    assert found.pointwise == ("parallel1.branch2.conv1",)


def test_the_last_stage_is_the_output() -> None:
    # Behind the last sum an activation weighs identity and branch anew.
    net = rf.zoo.get("cifar_resnet(2)").initialised("he")
    found = rf.advice(net)
    assert found.stages[-1].name == found.node == "block2.relu2"
    assert found.stages[-1].std == pytest.approx(math.prod(found.std) ** 0.5, rel=1e-12)
    assert found.stages[-1].share == pytest.approx(1.0, rel=1e-12)
    assert found.stages[-1].layers == 2
    assert rf.erf(net, "block2.add", ignore_global=True).std[0] != pytest.approx(found.std[0])


def test_deep_networks_are_thinned() -> None:
    found = advice(rf.zoo.plain(150))
    assert [s.trf for s in found.stages] == [6 * n + 1 for n in range(1, 51)]
    assert found.stages[-1].growth == pytest.approx((150 / 147) ** (1 / 6) - 1)
    assert len(str(found).splitlines()) < 60


def test_correlated_gradients_count() -> None:
    """Where overlapping fixed layers correlate gradients, σ is the engine's."""
    net = Sequential(*[conv(), AvgPool(3, stride=1, padding=1)] * 3)
    found = advice(net)
    assert found.std[0] == pytest.approx(rf.erf(net).std[0], rel=1e-6)
    assert found.std[0] < 1.9  # 2.0 by variances alone
    for stage in found.stages:
        assert stage.std == pytest.approx(rf.erf(net, stage.name).std[0], rel=1e-6)


def test_layers_that_see_no_more() -> None:
    """Reading r pixels of n: r = 3, 5, 7, 7, 9 before the second to the sixth layer."""
    net = Sequential(conv(), conv(), conv(), Conv(1), conv(), conv())
    assert advice(net).border is None
    for size, border in ((3, "conv2"), (6, "conv5"), (7, "conv5"), (9, "conv6"), (10, None)):
        found = advice(net, input_size=size)
        assert found.border == border
        assert found.input_size == (size, size)
    assert advice(net, input_size=7).covered == ("conv5", "conv6")
    # Wide enough along one axis only.
    assert advice(net, input_size=(7, 12)).covered == ()
    assert found.pointwise == ("conv4",)


def test_changes_are_those_of_the_changed_networks() -> None:
    def net(first: Conv, *rest: Conv) -> Network:
        return Sequential(
            first, MaxPool(2), Residual(rest[0], rest[1]), rf.Activation(), channels_less
        )

    channels_less = Conv(1, channels=8)
    base = net(conv(channels=8), conv(channels=8), conv(channels=8))
    wide = Conv(3, padding=2, dilation=2, channels=8)
    five = Conv(5, padding=2, channels=8)
    plain = conv(channels=8)
    ring = np.ones((3, 3))
    ring[1, 1] = 0
    rim = conv(channels=8, taps=ring)
    expected = {
        "dilation ×2 in the layers of the largest stride": net(plain, wide, wide),
        "dilation ×2 in the last layer alone": net(plain, plain, wide),
        "kernels larger by 2 in the layers of the largest stride": net(plain, five, five),
        "a kernel larger by 2 in the last layer alone": net(plain, plain, five),
        "kernels larger by 2 in all layers": net(five, five, five),
        "stride 2 in the first layer without one that all paths share; halves the output": net(
            conv(channels=8, stride=2), plain, plain
        ),
        "all weight variance on the rims of the kernels (initialisation)": net(rim, rim, rim),
    }
    found = advice(base)
    assert {c.what for c in found.changes} == set(expected)
    before, size = rf.erf(base).std[0], rf.receptive_field(base).size[0]
    for change in found.changes:
        changed = expected[change.what]
        assert change.std == pytest.approx(rf.erf(changed).std[0])
        assert change.trf == rf.receptive_field(changed).size[0]
        assert change.std_factor == pytest.approx(change.std / before)
        assert change.trf_factor == pytest.approx(change.trf / size)
    factors = [c.std_factor for c in found.changes]
    assert factors == sorted(factors, reverse=True)
    # Weights: 9·64 at full resolution, 2·9·64 + 64 at a quarter; the input's channels are unknown.
    cost = {c.what: c.cost_factor for c in found.changes}
    first, deep, last = 9, 9 * 64 / 4, 64 / 4
    total = first + 2 * deep + last
    assert cost["dilation ×2 in the last layer alone"] == 1
    assert cost["a kernel larger by 2 in the last layer alone"] == pytest.approx(
        (first + deep + deep * 25 / 9 + last) / total
    )
    assert cost[
        "stride 2 in the first layer without one that all paths share; halves the output"
    ] == (pytest.approx(1 / 4))


def test_the_trf_of_several_phases_is_the_tables() -> None:
    net = rf.zoo.unet(4, 2)
    found = advice(net)
    assert found.trf == rf.receptive_field(net).size == (204, 204)
    assert found.stages[-1].trf == pytest.approx(204)
    for change in found.changes:
        assert change.trf_factor == pytest.approx(change.trf / 204)


@pytest.mark.parametrize("change", ["_dilated", "_larger"])
@pytest.mark.parametrize(
    "layer", [conv(), Conv((5, 1), padding=(2, 0)), conv(dilation=1, stride=2)]
)
def test_changed_layers_meet_their_shortcuts(change: str, layer: Conv) -> None:
    """The padding grows with the kernel, so a map keeps its size and its place."""
    old = layer.bind(2)
    new = getattr(import_module("fastrf.advice"), change)(old)
    fields = [rf.receptive_field(Sequential(one), input_size=31) for one in (old, new)]
    assert fields[0].map_size == fields[1].map_size
    assert fields[0].center == fields[1].center
    assert fields[0].size < fields[1].size


@pytest.mark.parametrize(
    "net",
    [
        Sequential(Conv(5), Conv(3, stride=2), Conv(4)),
        Sequential(Conv(3, stride=3, padding=1), Conv(3, dilation=2)),
        rf.zoo.unet(2, 1),
        rf.zoo.wavenet(1, 4),
    ],
)
def test_halos_are_exact(net: Network) -> None:
    """Every unit's box lies within its block and the halo, and some touch the ends."""
    found = advice(net)
    assert found.tiles is not None
    field = rf.receptive_field(net)
    for axis, block in enumerate(found.tiles.alignment):
        units = int(block / field.stride[axis])
        boxes = [field.box((u,) * len(field.size)) for u in range(units)]
        lows = [box[axis][0] for box in boxes if box is not None]
        highs = [box[axis][1] for box in boxes if box is not None]
        before, behind = found.tiles.halo[axis]
        assert before == max(0, -min(lows))
        assert behind == max(0, max(highs) - (block - 1))
        assert found.tiles.overlap[axis] == before + behind


def test_tiles_give_the_same_outputs() -> None:
    """A tile with its halo, run by itself, sees all that its units see in the whole image."""
    net = Sequential(Conv(5), Conv(3, stride=2), Conv(3, dilation=2))
    found = advice(net)
    assert found.tiles is not None
    (before, behind), _ = found.tiles.halo
    (step, _) = found.tiles.alignment
    start, units = 10 * step, 6
    low, high = start - before, start + units * step - 1 + behind
    tile = rf.receptive_field(net, input_size=high - low + 1)
    # Unpadded: the tile's map has exactly these units, and the first sees its first pixels.
    assert tile.map_size == (units, units)
    whole = rf.receptive_field(net).box((start // step,) * 2)
    own = tile.box((0, 0))
    assert whole is not None
    assert own is not None
    assert whole[0][0] == own[0][0] + low


def test_smaller_halos_cut_what_they_say() -> None:
    net = Sequential(conv(stride=2), *[conv()] * 12)
    found = advice(net)
    assert found.tiles is not None
    erf = rf.erf(net)
    profile = erf.profile(0)
    at = erf.origin[0] + np.arange(len(profile))
    for share, halos in found.tiles.smaller.items():
        before, behind = halos[0]
        assert profile[at < -before].sum() <= share / 2 < profile[at < 1 - before].sum()
        assert profile[at > 1 + behind].sum() <= share / 2 < profile[at > behind].sum()
    assert found.tiles.smaller[1e-2][0] < found.tiles.halo[0]


def test_global_layers_are_left_out_and_named() -> None:
    net = Sequential(conv(), SqueezeExcite(), conv(), GlobalPool(), rf.FullyConnected(10))
    found = advice(net, input_size=32)
    assert found.node == "conv2"
    assert found.trf == (5, 5)
    assert any("squeezeexcite1" in note for note in found.notes)


def test_the_text_says_it_all() -> None:
    found = advice(rf.zoo.resnet18(), input_size=32)
    text = str(found)
    for part in (
        "TRF: 435 × 435 pixels",
        "layer4.1.add",
        "95% of σ at layer4.1.add",
        "multiples of 32 × 32 pixels",
        "13 layers, layer1.1.conv2, layer2.0.conv1, layer2.0.conv2 … layer4.1.conv2",
        "dilation ×2 in the layers of the largest stride",
        "217+186",
    ):
        assert part in text
    document = found.to_dict()
    assert document["border"] == "layer1.1.conv2"
    assert document["tiles"]["halo"] == ((217, 186), (217, 186))


def test_without_convolutions_nothing_is_changed() -> None:
    found = advice(Sequential(MaxPool(3, 1, padding=1), MaxPool(2)))
    assert found.changes == ()
    assert "widen" not in str(found)
    assert found.trf == (4, 4)


def test_a_network_of_one_resizing_layer() -> None:
    """It has no windows; σ is that of squared weights 1/16 and 9/16."""
    found = advice(Sequential(rf.Upsample(2, "linear")))
    assert [(s.name, s.layers, s.trf, s.share) for s in found.stages] == [("upsample1", 0, 2, 1)]
    assert found.std == pytest.approx((0.3, 0.3))
    assert found.changes == ()


def test_named_padding_stays() -> None:
    """TensorFlow's rule pads a wider kernel by itself."""
    same, five = (Conv(k, stride=2, padding="same_upper") for k in (3, 5))
    found = {change.what: change for change in advice(Sequential(same)).changes}
    wider = found["kernels larger by 2 in all layers"]
    assert wider.std == pytest.approx(rf.erf(Sequential(five)).std[0])
    assert wider.trf == 5


def test_ways_of_different_strides_have_no_tiles() -> None:
    net = rf.Sequential(Parallel(Conv(3, stride=2), Conv(3)), Conv(3))
    found = advice(net)
    assert found.tiles is None
    assert any("strides 2 and 1 meet" in note for note in found.notes)
    assert "start at multiples" not in str(found)


def test_what_cannot_be_advised() -> None:
    with pytest.raises(InputError, match="sees nothing of the input"):
        advice(Sequential(Conv(3), rf.ConvTranspose(1, 2, padding=1, output_padding=1)))
    with pytest.raises(InputError, match="one pixel"):
        advice(Conv(1))
    with pytest.raises(InputError, match="no node or end point"):
        advice(conv(), output="conv7")
    with pytest.raises(InputError, match="larger input_size"):
        advice(Conv(9), input_size=3)


def test_only_what_widens_is_named() -> None:
    """A stride in the last layer moves no pixel of its field, nor do rims of two taps."""
    found = advice(Sequential(Conv(9, stride=4), Conv(2), ndim=1))
    assert found.changes
    assert all(c.std_factor > 1.01 for c in found.changes)
    assert not any("stride" in c.what or "rims" in c.what for c in advice(Conv(2)).changes)
    inner = advice(Sequential(Conv(9, stride=4), Conv(3), Conv(3), ndim=1))
    (stride,) = (c for c in inner.changes if c.what.startswith("stride"))
    assert stride.layers == ("conv2",)
    assert "without one" in stride.what
