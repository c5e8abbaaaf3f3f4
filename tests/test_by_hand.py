"""Networks as users write them by hand: options that meet each other, and remedies tried to the
letter."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fastrf as rf
from fastrf.cli import main
from fastrf.errors import EmptyFieldError, InputError
from fastrf.lowering import lower


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


W = normal(5, 3, 3, 3)
UNEVEN = ((1, 2, 3), (3, 2, 9), (1, 7, 5))
"""Taps that are no product of one vector per axis."""


# --- channels that nothing states -----------------------------------------------------------


def conv(**options: Any) -> rf.Network:
    return rf.Sequential(rf.Conv(3, padding=1, **options))


UNSTATED = {
    "behind weights": ([conv(weights=W), conv(), conv()], [3, 5, 2, 7]),
    "between weights": ([conv(weights=W), conv(), conv(weights=normal(2, 4, 3, 3))], [3, 5, 4, 2]),
    "before weights": ([conv(), conv(weights=W)], [9, 3, 5]),
}


@pytest.mark.parametrize("name", UNSTATED)
def test_channels_that_nothing_states_make_no_difference(name: str) -> None:
    blocks, counts = UNSTATED[name]
    found = rf.erf(blocks, input_size=9)
    stated = [rf.Input(counts[0])]
    for block, count in zip(blocks, counts[1:], strict=True):
        layer = block.nodes["conv1"].layer
        stated.append(layer if layer.weights is not None else rf.Conv(3, padding=1, channels=count))
    expected = rf.erf(stated, input_size=9)
    assert found.plan.engine == "channelwise"
    np.testing.assert_allclose(found.image, expected.image, rtol=1e-13)
    assert found.log_gain == pytest.approx(expected.log_gain, abs=1e-12)


TOLD = {
    "pixel unshuffle": ([rf.PixelUnshuffle(2), conv(weights=normal(2, 12, 3, 3))], 3),
    "pixel shuffle": ([rf.PixelShuffle(2), conv(weights=W)], 12),
    "channel shuffle": ([rf.ChannelShuffle(3), conv(weights=W)], 3),
    "depthwise": ([conv(groups="depthwise"), conv(weights=W)], 3),
    "one filter each": ([conv(groups="depthwise", weights=normal(4, 1, 3, 3))], 4),
    "both terms of a sum": ([rf.Residual(conv()), conv(weights=W)], 3),
    "one term of a sum": ([rf.Parallel(conv(weights=W), None)], 3),
}


@pytest.mark.parametrize("name", TOLD)
def test_weights_tell_channels_through_layers(name: str) -> None:
    blocks, count = TOLD[name]
    if name == "one term of a sum":
        blocks = [rf.Parallel(conv(weights=normal(3, 3, 3, 3)), None)]
    found = rf.erf(blocks, input_size=8)
    expected = rf.erf([rf.Input(count), *blocks], input_size=8)
    assert lower(rf.Sequential(*blocks)).channels["input"] == count
    np.testing.assert_array_equal(found.image, expected.image)
    assert found.log_gain == expected.log_gain


def test_the_remedy_for_channels_that_matter() -> None:
    """Of what a concatenation joins, weights say the sum alone."""
    blocks = [rf.Parallel(conv(), None, merge="concat"), conv(weights=normal(2, 8, 3, 3))]
    with pytest.raises(InputError, match=r"'input' is not known; put Input\(channels\) there$"):
        rf.erf(blocks)
    blocks.insert(0, rf.Input(3))
    with pytest.raises(InputError, match=r"^layers hold their .*conv1' is not known; give its lay"):
        rf.erf(blocks)
    blocks[1] = rf.Parallel(conv(channels=5), None, merge="concat")
    assert rf.erf(blocks).plan.engine == "channelwise"


def test_a_channel_that_is_not_known() -> None:
    with pytest.raises(InputError, match="channels of 'conv2' is not known; give its layer chann"):
        rf.erf([rf.Conv(3, weights=W), rf.Conv(3)], channel=0)
    assert rf.erf([rf.Conv(3, weights=W), rf.Conv(3, channels=2)], channel=0)
    with pytest.raises(InputError, match="give layers weights="):
        rf.erf(rf.Conv(3, channels=2), channel=0)


def test_phases_of_channels_that_are_not_known() -> None:
    """They are not told apart, which is said where it makes a difference."""
    there_and_back = [rf.PixelUnshuffle(2), rf.Activation(), rf.PixelShuffle(2)]
    mixed = [rf.PixelUnshuffle(2), rf.Conv(1), rf.PixelShuffle(2)]
    said = ("pixelshuffle1: numbers of channels not known, the phases of pixelunshuffle1 count as "
            "alike",)  # fmt: skip
    assert rf.erf(there_and_back).assumptions == said
    assert rf.receptive_field(there_and_back).size == (2, 2)
    assert rf.receptive_field([rf.Input(1), *there_and_back]).size == (1, 1)
    for exact in ([rf.Input(1), *there_and_back], mixed, [rf.PixelShuffle(2)]):
        assert rf.erf(exact).assumptions == ()
    known = rf.erf([rf.Input(1), rf.PixelUnshuffle(2), rf.Conv(1, channels=4), mixed[-1]])
    assert rf.erf(mixed).log_gain == known.log_gain
    np.testing.assert_array_equal(rf.erf(mixed).image, known.image)


def test_groups_of_channels_that_are_read() -> None:
    with pytest.raises(InputError, match=r"groups=2 must divide the 3 channels read$"):
        rf.erf([rf.Input(3), rf.Conv(3, groups=2)])


def test_initialised_keeps_the_channels_that_weights_state() -> None:
    transposed = rf.ConvTranspose(3, groups=5, weights=normal(5, 2, 3, 3))
    last = rf.FullyConnected(weights=normal(4, 10, 1, 1))
    net = rf.Sequential(rf.Input(3), rf.Conv(3, weights=W), transposed, rf.GlobalPool(), last)
    drawn = net.initialised("glorot")
    graph = lower(drawn, 9)
    assert [*graph.channels.values()] == [3, 5, 10, 10, 4]


# --- arrays ---------------------------------------------------------------------------------


def test_weights_of_a_torch_module() -> None:
    module = torch.nn.Conv2d(3, 5, 3)
    for weights in (module.weight, module.weight.detach()):
        found = rf.erf(rf.Conv(3, weights=weights), input_size=5)
        expected = rf.erf(rf.Conv(3, weights=module.weight.detach().numpy()), input_size=5)
        np.testing.assert_array_equal(found.image, expected.image)


@pytest.mark.parametrize(
    "layer",
    [
        rf.Conv(3, weights=torch.ones(2, 3, 3, 3, requires_grad=True)),
        rf.Conv(3, taps=torch.rand(3, 3, generator=torch.Generator().manual_seed(0))),
        rf.Filter(3, weights=torch.eye(3)),
        rf.Norm(weights=torch.arange(1.0, 4.0)),
    ],
)
def test_tensors_are_saved(layer: Any, tmp_path: Path) -> None:
    net = rf.Sequential(layer)
    for name in ("net.toml", "net.json"):
        rf.save(net, tmp_path / name)
        assert rf.load(tmp_path / name) == net


def test_arrays_as_values_per_axis() -> None:
    spelled = rf.Conv((3, 5), stride=(1, 2), padding=((1, 1), (0, 2)))
    arrays = rf.Conv(np.array([3, 5]), stride=np.array([1, 2]), padding=np.array([[1, 1], [0, 2]]))
    assert rf.Sequential(arrays) == rf.Sequential(spelled)
    assert rf.Sequential(rf.Conv(np.array([3]))).bound.ndim == 1


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (rf.Conv(3, weights=np.ones((2, 3, 3))), "read / groups, .*, or the network ndim=1$"),
        (rf.ConvTranspose(3, weights=np.ones((2, 3, 5, 5))), r"read, channels / groups, \*kern"),
        (rf.Conv(3, taps=(1, 2, 1)), "one variance per tap, or the network ndim=1$"),
        (rf.Filter(3, weights=(1, 0, -1)), "one number per tap, or the network ndim=1$"),
        (rf.Filter(3, weights=((1, 0), (0, 1))), "one number per tap$"),
        (rf.Conv(3, weights=np.full((2, 3, 3, 3), 1e200)), r"reach 1e\+200, whose squares are be"),
        (rf.Scale(1e200), "factor=1e.200 has no square .* scale it to between 1e-140 and 1e.140"),
        (rf.Scale(-1e-200), "factor=-1e-200 has no square among numbers"),
        (rf.Filter(1, weights=[[1e200]]), "weights=1e.200 has no square among numbers"),
        (rf.Filter(1, weights=[[-1e-200]]), "weights=1e-200 has no square among numbers"),
        (rf.Conv(3, weights=W, taps=np.ones((3, 3))), "taps of their own; leave out taps, or we"),
        (rf.Conv(3, weights=W, taps="corner"), "taps of their own; leave out taps, or weights"),
        (rf.FullyConnected(weights=np.ones((2, 3))), "must be .*; reshape them, to one pixel per"),
        (rf.FullyConnected(weights=np.ones((2, 3, 1, 1)), init="he"), "leave it out, or weights"),
    ],
)
def test_arrays_that_do_not_fit(layer: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        rf.receptive_field(layer)


@pytest.mark.parametrize(
    "layer",
    [
        rf.Conv(3, weights=normal(2, 3, 3)),
        rf.Conv(3, taps=(1, 2, 1)),
        rf.Filter(3, weights=(1, 0, -1)),
    ],
)
def test_another_number_of_axes_is_the_remedy(layer: Any) -> None:
    assert rf.erf(rf.Sequential(layer, ndim=1)).shape == (3,)


def test_largest_weights_have_squares() -> None:
    found = rf.erf(rf.Conv(3, weights=np.full((2, 3, 3, 3), 1e140)))
    assert found.log_gain == pytest.approx(math.log(27) + 280 * math.log(10))
    with pytest.raises(EmptyFieldError, match="only padding, weights of 0 or the gaps"):
        rf.erf(rf.Conv(3, weights=np.zeros((2, 3, 3, 3))))


# --- fields with a hole in the middle -------------------------------------------------------

HOLES = {
    "corner taps": rf.Conv(3, taps="corner"),
    "two taps": rf.Conv(2, dilation=2),
    "then": rf.Sequential(rf.Conv(2, dilation=4), rf.Conv(3)),
}


@pytest.mark.parametrize("name", HOLES)
def test_figures_that_a_field_with_a_hole_does_not_have(name: str) -> None:
    field = rf.erf(HOLES[name])
    figures = field.to_dict()
    assert figures["luo_size"] == {"amplitude": None, "variance": None}
    assert figures["fwhm"] is None
    assert figures["ratio"] is None
    assert figures["std"] == list(field.std)
    with pytest.raises(InputError, match=r"has value zero: .*; use smallest_set"):
        field.luo_size()
    assert field.smallest_set(0.5) > 0


def test_a_hole_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.toml"
    rf.save(rf.Sequential(HOLES["corner taps"]), path)
    assert main(["erf", str(path)]) == 0
    assert "Luo's size        undefined" in capsys.readouterr().out
    assert main(["erf", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ratio"] is None
    assert main(["erf", str(path), "--layers", "all"]) == 0
    assert "–" in capsys.readouterr().out


def test_a_hole_in_reports_and_figures(tmp_path: Path) -> None:
    from fastrf import plot

    net = rf.Sequential(HOLES["then"])
    rf.report(net, tmp_path / "net.html")
    assert (tmp_path / "net.html").read_text(encoding="utf-8").count("–")
    fields = rf.erf(net, layers="all")
    plot.save(plot.growth_figure(fields), tmp_path / "growth.png")
    plot.save(plot.graph_figure(rf.receptive_field(net), fields=fields), tmp_path / "graph.png")


def test_a_hole_in_a_comparison() -> None:
    module = torch.nn.Conv2d(1, 1, 2, dilation=2, bias=False)
    measured = rf.empirical(module, (1, 1, 7, 7), initialise="he", draws=64)
    compared = rf.compare(rf.erf(HOLES["two taps"], input_size=7), measured)
    names = [row.name for row in compared.rows]
    assert "std, axis 0" in names
    assert not {"luo_size", "fwhm, axis 0"} & set(names)


# --- channels that part ways ----------------------------------------------------------------


def whole(field: rf.ERF, box: Any) -> np.ndarray:
    return np.asarray(field.window(box)) * math.exp(field.log_gain)


def uneven(**options: Any) -> rf.Conv:
    return rf.Conv(3, taps=UNEVEN, **options)


PARTED = {
    "pointwise": [rf.Scale(2), rf.ChannelSlice(2)],
    "pool": [rf.AvgPool(3, 1), rf.Scale(3), rf.ChannelSlice(0, 2), rf.Conv(3, gain=7)],
    "unread first": [uneven(channels=4, stride=2), rf.ChannelSlice(2), uneven(stride=2)],
    "unread last": [uneven(channels=4), rf.ChannelSlice(0, 2), uneven()],
    "input unread": [
        rf.ChannelSlice(0, None, 2),
        rf.Filter((2, 3), stride=(2, 1), padding=1, weights=((-0.4, -1.4, 1.2), (0.3, 1.1, -0.2))),
    ],
    "windows that differ": [
        rf.Parallel(
            [rf.ChannelSlice(0, 2), uneven(stride=2, channels=2)],
            [rf.ChannelSlice(2), rf.Conv(5, stride=2, padding=1, channels=2)],
            merge="concat",
        ),
        uneven(),
    ],
}


@pytest.mark.parametrize("name", PARTED)
def test_terms_of_channels_that_part_ways(name: str) -> None:
    """As layer by layer, with what only channels get that nothing reads left out."""
    net = rf.Sequential(rf.Input(4), *PARTED[name])
    for size in (None, 11):
        for unit in (0, "center", (1, 0)):
            expected = rf.erf(net, unit=unit, input_size=size, method="direct")
            found = rf.erf(net, unit=unit, input_size=size, method="factored")
            np.testing.assert_allclose(
                whole(found, expected.box), whole(expected, expected.box), rtol=0, atol=1e-10
            )


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_filter_with_mirrored_borders(mode: Any) -> None:
    """Its theoretical field is that of a convolution."""
    for layer in (rf.Filter(3, padding=1, padding_mode=mode), rf.Filter(3, padding=(1, 0))):
        like = rf.Conv(3, padding=layer.padding, padding_mode=layer.padding_mode)
        found, expected = (rf.receptive_field(x, input_size=6) for x in (layer, like))
        assert found.size == expected.size
        for unit in ((0, 0), (2, 1)):
            for clip in (False, True):
                assert found.box(unit, clip) == expected.box(unit, clip)
        assert rf.erf(layer, input_size=6).luo_size() > 1


# --- what is asked --------------------------------------------------------------------------


def test_several_inputs_without_a_choice() -> None:
    net = rf.Network({"x": rf.Input(2), "y": rf.Input(2), "sum": (rf.Add(), "x", "y")})
    with pytest.raises(InputError, match=r"the network has 2 inputs; give input= one of x, y$"):
        rf.erf(net)
    assert rf.erf(net, input="x").shape == (1, 1)


def test_units_that_all_read_gaps() -> None:
    """There is a path, along which nothing is seen."""
    gaps = [rf.ConvTranspose((1,), stride=2), rf.Crop(((1, 0),)), rf.MaxPool(1, 2)]
    with pytest.raises(EmptyFieldError, match="no unit of 'maxpool1' sees 'input': all read"):
        rf.receptive_field(gaps)
    with pytest.raises(EmptyFieldError, match="or the gaps of transposed convolutions"):
        rf.erf(gaps)
    assert rf.receptive_field(gaps, "crop1").box(1) == ((1, 1),)


def test_modules_are_imported() -> None:
    with pytest.raises(InputError, match=r"Conv2d is not a network; .*fastrf.from_torch"):
        rf.erf(torch.nn.Conv2d(1, 1, 3))


def test_profile_of_one_axis() -> None:
    for axis in (None, (0, 1), 2):
        with pytest.raises(InputError, match=r"the image has 2 axes; give one of 0 … 1"):
            rf.erf(rf.Conv(3)).profile(axis)  # type: ignore[arg-type]
    assert rf.erf(rf.Conv(3)).profile(np.int64(1)).shape == (3,)


def test_check_without_weights_is_the_remedy() -> None:
    with pytest.raises(InputError, match="or give layers gain= and taps= instead of weights="):
        rf.check(rf.Conv(3, weights=W))
    layer = rf.Sequential(rf.Conv(3, weights=W)).bound.nodes["conv1"].layer
    assert rf.check(rf.Conv(3, gain=layer.gain, taps=layer.taps))


def test_arguments_of_a_plan() -> None:
    assert rf.plan(rf.Conv(3), layers="last", progress=print).node == "conv1"
    with pytest.raises(InputError, match="a plan is of one field; choose it by output="):
        rf.plan(rf.Conv(3), layers="all")


def test_layers_are_saved_as_networks(tmp_path: Path) -> None:
    for name in ("net.toml", "net.json"):
        rf.save([rf.Conv(3), rf.Residual(rf.Conv(3, padding=1))], tmp_path / name)
        assert len(rf.load(tmp_path / name)) == 3
    with pytest.raises(InputError, match="int is not a network; give a Network, layers"):
        rf.save(5, tmp_path / "net.toml")


def test_activations_are_named() -> None:
    with pytest.raises(InputError, match="must be a name, such as 'relu'"):
        rf.erf([rf.Conv(3), rf.Activation(torch.relu)])  # type: ignore[arg-type]


def test_an_input_comes_first() -> None:
    with pytest.raises(InputError, match="Input is a map of its own, and reads none; put it first"):
        rf.Sequential(rf.Conv(3), rf.Input(3))
    assert rf.Sequential(rf.Input(3), rf.Conv(3)).inputs == ("input",)


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize("layer", [rf.MaxPool, rf.AvgPool])
def test_windows_of_padding_alone(layer: Any, ndim: int) -> None:
    """Whoever pads by a whole window has units that see nothing; the others are as without."""
    options = {"count_include_pad": False} if layer is rf.AvgPool else {}
    pool = layer((3,) * ndim, padding=3, **options)
    with pytest.raises(EmptyFieldError, match="reads nothing of 'input', only padding"):
        rf.erf(pool, unit=0, input_size=6)
    found = rf.erf(pool, unit=1, input_size=6)
    expected = rf.erf(layer((3,) * ndim), unit=0, input_size=6)
    np.testing.assert_allclose(found.image, expected.image, rtol=1e-14)
    assert found.log_gain == pytest.approx(expected.log_gain, abs=1e-14)


def test_a_report_of_weights(tmp_path: Path) -> None:
    """Without the cross-check, which averages over channels."""
    assert rf.report(rf.Conv(3, weights=W), tmp_path / "net.html") is None
    page = (tmp_path / "net.html").read_text(encoding="utf-8")
    assert "the cross-check, which compares averages over channels, is left out" in page


def test_advice_on_weights() -> None:
    """Larger kernels have other weights."""
    own = rf.Sequential(rf.Conv(3, weights=W, padding=1), rf.Conv(3, weights=normal(2, 5, 3, 3)))
    changes = {change.what: change for change in rf.advice(own).changes}
    assert changes["kernels larger by 2 in all layers"].trf_factor == 9 / 5
    for nothing in ([], [rf.GlobalPool(), rf.FullyConnected(10)], rf.Conv(1)):
        with pytest.raises(InputError, match="sees one pixel through layers of one tap; there is"):
            rf.advice(nothing)


# --- blocks ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "net",
    [
        rf.Sequential(rf.Sequential(rf.Input(3), rf.Conv(3)), rf.Conv(3)),
        rf.Sequential([[rf.Sequential(rf.Sequential(rf.Input(3), rf.Conv(3)))], rf.Conv(3)]),
        rf.Residual(rf.Sequential(rf.Input(3), rf.Conv(3))),
        rf.Parallel(None, rf.Conv(3), rf.Network({"x": rf.Input(3), "y": (rf.Conv(3), "x")})),
        rf.Sequential(*[rf.Sequential(*[rf.Input(3), *[rf.Conv(3)] * 90])]),
        rf.Sequential(rf.Residual(rf.Sequential(rf.Input(3), *[rf.Conv(3)] * 90)), rf.Conv(3)),
    ],
)
def test_the_first_block_states_the_channels(net: rf.Network) -> None:
    assert lower(net).channels["input"] == 3
    assert net.nodes["input"].layer == rf.Input(3)


def test_an_outer_input_goes_before_a_block_s() -> None:
    net = rf.Sequential(rf.Input(5), rf.Sequential(rf.Input(3), rf.Conv(3)))
    assert lower(net).channels["input"] == 5


def test_names_of_what_is_read() -> None:
    with pytest.raises(InputError, match=r"a reads \(\['input'\],\); give the names of nodes"):
        rf.Network({"a": (rf.Conv(3), ["input"])})
    with pytest.raises(InputError, match=r"is no mapping name .* or use Sequential"):
        rf.Network(rf.Conv(3))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="name=5 must be a text"):
        rf.Builder().add(rf.Conv(3), "input", name=5)  # type: ignore[arg-type]
