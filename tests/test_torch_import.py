"""PyTorch import: layers, names, channels, policies, the registry and errors.

What moves pixels and channels is checked by value: a module without weights is run by PyTorch, and
the imported network by the few lines of `computed`. Both only copy and add whole numbers below
2^53, so that they agree exactly. Which pixels whole models see is checked in test_torch_boxes.py.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import fastrf as rf  # noqa: E402
from fastrf.errors import InputError, MissingExtra, UnsupportedOperator  # noqa: E402
from fastrf.importers import register, unregister  # noqa: E402
from fastrf.importers.named import from_name  # noqa: E402
from fastrf.layers import (  # noqa: E402
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
    Dropout,
    Filter,
    FullyConnected,
    GlobalPool,
    Identity,
    Input,
    MaxPool,
    Multiply,
    Norm,
    Pad,
    PixelShuffle,
    PixelUnshuffle,
    Scale,
    Upsample,
)
from fastrf.lowering import lower  # noqa: E402

SHAPE = (1, 4, 8, 6)


class Function(nn.Module):
    """A module that is a function."""

    def __init__(self, function, *parts):
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)

    def forward(self, *x):
        return self.function(*x, *self.parts)


def layers(module, shape=SHAPE, **options):
    """The layers of a chain that a module becomes."""
    network = rf.from_torch(module, shape, **options)
    nodes = list(network.bound.nodes.values())
    for before, node in itertools.pairwise(nodes):
        assert node.inputs == (before.name,)
    return [node.layer for node in nodes[1:]]


def bound(*expected, ndim=2):
    return [layer.bind(ndim) for layer in expected]


# --- one layer at a time --------------------------------------------------------------------

CHAINS = {
    "conv": (nn.Conv2d(4, 6, 3, stride=2, padding=1),
             [Conv(3, stride=2, padding=1, channels=6)]),
    "conv per axis": (nn.Conv2d(4, 6, (3, 5), stride=(1, 2), padding=(1, 0), dilation=(2, 1)),
                      [Conv((3, 5), (1, 2), (2, 1), (1, 0), channels=6)]),
    "same": (nn.Conv2d(4, 6, 4, padding="same"), [Conv(4, padding="same", channels=6)]),
    "grouped": (nn.Conv2d(4, 6, 1, groups=2), [Conv(1, channels=6, groups=2)]),
    "depthwise": (nn.Conv2d(4, 8, 3, groups=4), [Conv(3, channels=8, groups="depthwise")]),
    "circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"),
                 [Pad(1, "circular"), Conv(3, channels=6)]),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
                   [ConvTranspose(3, 2, 1, 1, output_padding=1, channels=6, gain=4.0)]),
    "max": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), [MaxPool(3, 2, padding=1, ceil_mode=True)]),
    "max dilated": (nn.MaxPool2d(2, 1, dilation=3), [MaxPool(2, 1, dilation=3)]),
    "average": (nn.AvgPool2d(2), [AvgPool(2)]),
    "average inside": (nn.AvgPool2d(3, 1, 1, count_include_pad=False),
                       [AvgPool(3, 1, padding=1, count_include_pad=False)]),
    "divisor": (nn.AvgPool2d(3, 1, 1, count_include_pad=False, divisor_override=2),
                [AvgPool(3, 1, padding=1)]),
    "adaptive": (nn.AdaptiveAvgPool2d((4, 3)), [AdaptivePool((4, 3))]),
    "adaptive axis": (nn.AdaptiveMaxPool2d((None, 3)), [AdaptivePool((8, 3), "max")]),
    "global": (nn.AdaptiveAvgPool2d(1), [GlobalPool()]),
    "mean": (Function(lambda x: x.mean((2, 3))), [GlobalPool()]),
    "maximum": (Function(lambda x: x.amax((-1, -2), keepdim=True)), [GlobalPool("max")]),
    "mean of rows": (Function(lambda x: x.mean(3)), [AdaptivePool((8, 1))]),
    "mean of channels": (Function(lambda x: x.mean(1, keepdim=True)), [Conv(1, channels=1)]),
    "batch norm": (nn.BatchNorm2d(4), [Norm("batch")]),
    "instance norm": (nn.InstanceNorm2d(4), [Norm("instance")]),
    "group norm": (nn.GroupNorm(2, 4), [Norm("group")]),
    "one group": (nn.GroupNorm(1, 4), [Norm("layer")]),
    "layer norm": (nn.LayerNorm((4, 8, 6)), [Norm("layer")]),
    "channel norm": (
        Function(lambda x, norm: norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.LayerNorm(4)),
        [Norm("channel")],
    ),
    "rms norm": (Function(lambda x, norm: norm(x.movedim(1, -1)).movedim(-1, 1), nn.RMSNorm(4)),
                 [Norm("channel")]),
    "response norm": (nn.LocalResponseNorm(2), [Norm("lrn")]),
    "relu": (nn.ReLU(), [Activation("relu", gain=1.0)]),
    "in place": (nn.ReLU(inplace=True), [Activation("relu", gain=1.0)]),
    "silu": (nn.SiLU(), [Activation("silu", gain=1.0)]),
    "dropout": (nn.Dropout(0.3), []),
    "dropout of all": (Function(lambda x: F.dropout(x, 1.0, training=True)), []),
    "sum of groups": (Function(lambda x: x.view(1, 2, 2, 8, 6).sum(2)),
                      [Conv(1, channels=2, groups=2)]),
    "scaled": (Function(lambda x: -x * 0.25), [Scale(-1.0), Scale(0.25)]),
    "divided": (Function(lambda x: x / 4), [Scale(0.25)]),
    "nearest": (nn.Upsample(scale_factor=2), [Upsample(2)]),
    "nearest to size": (Function(lambda x: F.interpolate(x, size=(12, 9))),
                        [Upsample(Fraction(3, 2))]),
    "exact": (nn.Upsample(scale_factor=1.5, mode="nearest-exact"),
              [Upsample(Fraction(3, 2), "nearest-exact")]),
    "bilinear": (nn.UpsamplingBilinear2d(scale_factor=2),
                 [Upsample(size=(16, 12), mode="linear", coordinates="align_corners")]),
    "half pixel": (nn.Upsample(scale_factor=(2, 3), mode="bilinear"),
                   [Upsample((2, 3), "linear")]),
    "antialiased": (Function(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear",
                                                     antialias=True)),
                    [Upsample(2, "linear", antialias=True)]),
    "cubic": (nn.Upsample(scale_factor=2, mode="bicubic"), [Upsample(2, "cubic")]),
    "to its own size": (Function(lambda x: F.interpolate(x, size=x.shape[-2:])), [Identity()]),
    "zeros": (nn.ZeroPad2d((1, 2, 3, 0)), [Pad(((3, 0), (1, 2)))]),
    "negative pad": (nn.ZeroPad2d((1, -2, 0, 0)), [Crop((0, (0, 2))), Pad((0, (1, 0)))]),
    "reflect": (nn.ReflectionPad2d(2), [Pad(2, "reflect")]),
    "replicate": (nn.ReplicationPad2d(2), [Pad(2, "replicate")]),
    "pixel shuffle": (nn.PixelShuffle(2), [PixelShuffle(2)]),
    "pixel unshuffle": (nn.PixelUnshuffle(2), [PixelUnshuffle(2)]),
    "channel shuffle": (nn.ChannelShuffle(2), [ChannelShuffle(2)]),
    "flatten": (Function(lambda x, fc: fc(x.flatten(1)), nn.Linear(192, 5)),
                [FullyConnected(5)]),
    "channels last": (Function(lambda x, fc: fc(x.permute(0, 2, 3, 1)), nn.Linear(4, 5)),
                      [Conv(1, channels=5)]),
    "shortcut": (Function(lambda x: x[:, :, ::2, ::2]),
                 [Crop(((0, 1), 0)), MaxPool(1, (2, 1)), Crop((0, (0, 1))), MaxPool(1, (1, 2))]),
    "softmax": (nn.Softmax(1), [Activation("softmax", gain=1.0)]),
    "detached": (Function(lambda x: x.detach().clone().contiguous()), []),
}  # fmt: skip


@pytest.mark.parametrize(("module", "expected"), CHAINS.values(), ids=CHAINS)
def test_modules_become_layers(module, expected):
    assert layers(module) == bound(*expected)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_any_number_of_axes(ndim):
    made = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[ndim - 1](2, 3, 3, stride=2)
    pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[ndim - 1](2)
    found = layers(nn.Sequential(made, pool), (1, 2, *(16,) * ndim))
    assert found == bound(Conv(3, 2, channels=3), MaxPool(2), ndim=ndim)


def test_a_gate_is_the_other_half():
    network = rf.from_torch(nn.GLU(1), SHAPE)
    nodes = network.bound.nodes
    assert isinstance(nodes["glu"].layer, Multiply)
    halves = [nodes[name].layer for name in nodes["glu"].inputs]
    assert halves == bound(ChannelSlice(0, 2), ChannelSlice(2, 4))


def test_a_buffer_is_a_filter():
    class Blur(nn.Module):
        def __init__(self, same):
            super().__init__()
            taps = torch.tensor([1.0, 2.0, 1.0])
            kernel = (taps[:, None] * taps / 16).repeat(4, 1, 1, 1)
            kernel[0] *= 1 if same else 3
            self.register_buffer("kernel", kernel)

        def forward(self, x):
            return F.conv2d(x, self.kernel, stride=2, padding=1, groups=4)

    weights = [[a * b / 16 for b in (1, 2, 1)] for a in (1, 2, 1)]
    assert layers(Blur(True)) == bound(Filter(3, stride=2, padding=1, weights=weights))
    (found,) = layers(Blur(False))
    # Mean over the channels of Σ w²: (9 + 3)/4 times (1 + 4 + 1)²/256.
    assert isinstance(found, Conv)
    assert math.isclose(found.gain, 3 * 36 / 256, rel_tol=1e-6)


# --- what moves where -----------------------------------------------------------------------


def computed(network, *inputs):
    """The outputs of a network of layers that only copy, add and multiply."""
    values = dict(zip(network.inputs, inputs, strict=True))
    for node in network.bound.nodes.values():
        if node.name not in values:
            values[node.name] = layer_value(node.layer, [values[i] for i in node.inputs])
    return [values[name] for name in network.outputs]


def layer_value(layer, given):
    x = given[0]
    match layer:
        case Identity() | Activation():
            return x
        case Scale():
            return x * layer.factor
        case Add() if type(layer) is Add:
            return sum(given)
        case Multiply():
            return math.prod(given)
        case Concat():
            return torch.cat(given, 1)
        case ChannelSlice():
            return x[:, layer.start : layer.stop : layer.step]
        case ChannelShuffle():
            return F.channel_shuffle(x, layer.groups)
        case PixelShuffle():
            return F.pixel_shuffle(x, layer.factor[0])
        case PixelUnshuffle():
            return F.pixel_unshuffle(x, layer.factor[0])
        case MaxPool():
            return F.max_pool2d(x, layer.kernel, layer.stride)
        case Crop():
            ((a, b), (c, d)) = layer.amount
            return x[:, :, a : x.shape[2] - b, c : x.shape[3] - d]
        case Pad():
            mode = "constant" if layer.mode == "zeros" else layer.mode
            return F.pad(x, [n for pair in layer.padding[::-1] for n in pair], mode=mode)
        case Upsample():
            assert layer.mode == "nearest"
            if layer.size is not None:
                return F.interpolate(x, layer.size)
            return F.interpolate(x, scale_factor=tuple(map(float, layer.scale)))
        case AdaptivePool():
            assert layer.mode == "max"
            return F.adaptive_max_pool2d(x, layer.output_size)
    raise AssertionError(layer)


def shuffle(x):
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def tokens(x):
    return x.flatten(2).transpose(1, 2)


def heads(x):
    """Queries and keys of two heads; only the queries are kept."""
    n, c, h, w = x.shape
    q, _ = tokens(x).view(n, h * w, 2, c // 2).split([1, 1], dim=3)
    return q.reshape(n, h, w, 2).permute(0, 3, 1, 2)


def merged(x):
    """Patch merging in Swin's order of the four phases."""
    n, c, h, w = x.shape
    y = x.permute(0, 2, 3, 1).reshape(n, h // 2, 2, w // 2, 2, c)
    return y.permute(0, 1, 3, 4, 2, 5).flatten(3).permute(0, 3, 1, 2)


def windows(x):
    """Cut into windows and put together again."""
    n, c, h, w = x.shape
    y = x.view(n, c, h // 2, 2, w // 3, 3).permute(0, 2, 4, 3, 5, 1).reshape(-1, 6, c)
    y = y.view(n, h // 2, w // 3, 2, 3, c).permute(0, 5, 1, 3, 2, 4)
    return y.reshape(n, c, h, w)


def six(x, *sizes):
    """Six channels, counted in two digits."""
    n, _, h, w = x.shape
    return torch.cat([x, x[:, 2:]], 1).view(n, *sizes, h, w)


def unstacked(x):
    a, b = torch.stack([x[:, :2], x[:, 2:]], dim=1).unbind(1)
    return torch.cat([b, a], 1)


MOVES = {
    "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
    "split": lambda x: torch.cat(x.split([1, 3], 1)[::-1], 1),
    "slice": lambda x: x[:, 1::2, 2:-1, :5],
    "select": lambda x: x[:, 3].unsqueeze(1),
    "narrow": lambda x: x.narrow(2, 3, 4),
    "index": lambda x: x[:, [2, 0, 1]],
    "shuffle": shuffle,
    "stack": unstacked,
    "heads": heads,
    "every third channel": lambda x: six(x, 2, 3)[:, :, 1],
    "two of three channels": lambda x: six(x, 2, 3)[:, :, 1:].reshape(1, 4, 8, 6),
    "a run of channels": lambda x: six(x, 3, 2)[:, 1:].reshape(1, 4, 8, 6),
    "the last run of channels": lambda x: six(x, 3, 2)[:, -1],
    "merged patches": merged,
    "windows": windows,
    "one pixel spread over the grid": lambda x: (
        x[:, :, :1, :1].view(1, 2, 2, 1, 1).expand(1, 2, 2, 8, 6).reshape(x.shape)
    ),
    "tokens": lambda x: tokens(x).transpose(1, 2).reshape(x.shape) + x,
    "roll": lambda x: torch.roll(x, (3, -1), (2, 3)),
    "roll channels": lambda x: torch.roll(x, 1, 1),
    "side by side": lambda x: torch.cat([x[..., 2:], x, x[..., :1]], 3),
    "beside zeros": lambda x: torch.cat([x, x.new_zeros(1, 4, 2, 6)], 2),
    "repeated": lambda x: x.repeat_interleave(3, dim=2),
    "repeated channels": lambda x: x.repeat(1, 5, 1, 1),
    "channels one by one": lambda x: x.repeat_interleave(3, dim=1),
    "one channel expanded": lambda x: shuffle(torch.cat([x[:, 2:3].expand(-1, 6, -1, -1), x], 1)),
    "constant of its type": lambda x: shuffle(x) + torch.zeros(8, 6).type_as(x),
    "folded": lambda x: F.fold(F.unfold(x, 2, stride=2), (8, 6), 2, stride=2),
    "unfolded": lambda x: F.unfold(x, 3, padding=1, stride=2).view(1, 36, 4, 3),
    "dilated windows": lambda x: F.unfold(x, (2, 3), dilation=(3, 1)).view(1, 24, 5, 4),
    "difference": lambda x: x - shuffle(x),
    "scaled sum": lambda x: torch.add(x, shuffle(x), alpha=3),
    "sum of halves": lambda x: torch.stack(x.chunk(2, 1), 1).sum(1),
    "rows": lambda x: x * x.amax(3, keepdim=True),
    "in place": lambda x: shuffle(x).add_(x).relu_(),
    "einsum": lambda x: torch.einsum("nchw,nchw->nhwc", x, shuffle(x)).permute(0, 3, 1, 2),
    "no gradient": torch.no_grad()(lambda x: shuffle(x) + x),
}


@pytest.mark.parametrize("function", MOVES.values(), ids=MOVES)
def test_moves_are_exact(function):
    x = torch.arange(1.0, math.prod(SHAPE) + 1, dtype=torch.float64).reshape(SHAPE)
    module = Function(function)
    (found,) = computed(rf.from_torch(module, SHAPE), x)
    torch.testing.assert_close(found, module(x), rtol=0, atol=0)


def test_channels_of_zeros_add_nothing():
    module = Function(lambda x: F.pad(x, (0, 0, 0, 0, 1, 3)))
    network = rf.from_torch(module, SHAPE)
    assert lower(network, (8, 6)).channels[network.outputs[0]] == 8
    # The zeros stand at 2^-100 of the gain: they vanish in the rounding of what they are added to.
    image = rf.erf(network, input_size=(8, 6), unit=(2, 3)).to_numpy()
    assert image.max() == image.sum() == 1.0


def test_channels_of_zeros_stay_zeros_under_a_scheme():
    conv = nn.Conv2d(8, 2, 3, bias=False)
    module = Function(lambda x, conv: conv(F.pad(x, (0, 0, 0, 0, 1, 3))), conv)
    for init in ("he", "lecun"):
        imported = rf.erf(rf.from_torch(module, SHAPE, init=init), input_size=(8, 6))
        later = rf.erf(rf.from_torch(module, SHAPE).initialised(init), input_size=(8, 6))
        variance = {"he": 2, "lecun": 1}[init] / (8 * 9)  # of one weight, by what it reads
        for erf in (imported, later):
            assert erf.log_gain == pytest.approx(math.log(variance * 4 * 9), abs=1e-12)


# --- names ----------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        y = self.relu(self.conv(x))
        return self.relu(F.gelu(y) + x)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer1 = nn.Sequential(Block(), Block())
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, image):
        y = self.layer1(image)
        return {"out": self.head(y), "features": [y]}


def test_names_are_the_modules():
    network = rf.from_torch(Model(), SHAPE)
    block = ["conv", "relu", "gelu", "add", "relu_1"]
    assert list(network.nodes) == [
        "image", *(f"layer1.{i}.{name}" for i in range(2) for name in block), "head"
    ]  # fmt: skip
    assert network.name == "Model"
    assert network.endpoints["layer1"] == network.endpoints["layer1.1"] == "layer1.1.relu_1"
    assert network.endpoints["out"] == "head"
    assert network.endpoints["features.0"] == "layer1.1.relu_1"
    assert network.outputs == ("head", "layer1.1.relu_1")
    assert rf.receptive_field(network, "layer1.0").size == (3, 3)


def test_the_last_of_several_nodes_is_called_like_the_operator():
    """Phases, columns first, which is no pixel unshuffle."""
    phases = lambda x: x.view(1, 4, 4, 2, 3, 2).permute(0, 5, 3, 1, 2, 4)  # noqa: E731
    network = rf.from_torch(Function(lambda x: phases(x).reshape(1, 16, 4, 3)), SHAPE)
    assert network.outputs == ("reshape",)
    parts = ("reshape.stride", *(f"reshape.stride{i}" for i in (2, 3, 4)))
    assert network.nodes["reshape"].inputs == parts
    before = [part.replace("stride", "phase") for part in parts]
    assert set(network.nodes) == {"x_0", "reshape", *parts, *before}


@dataclass
class Returned:
    """An output class that `torch.export` does not know."""

    out: object


def test_fx_is_the_fallback():
    class Wrapper(Model):
        def forward(self, image):
            return Returned(super().forward(image)["out"])

    network = rf.from_torch(Wrapper(), SHAPE)
    exported = rf.from_torch(Model(), SHAPE)
    assert list(network.nodes)[1:] == list(exported.nodes)[1:]
    assert network.endpoints["out"] == "head"
    assert network.bound.nodes["head"].layer == exported.bound.nodes["head"].layer


def test_the_module_is_left_as_it_is():
    module = Model().train()
    before = {name: p.clone() for name, p in module.state_dict().items()}
    again = rf.from_torch(module, SHAPE)
    assert module.training
    assert all(torch.equal(before[name], p) for name, p in module.state_dict().items())
    with torch.device("meta"):
        light = Model()
    assert rf.from_torch(light, SHAPE) == again
    assert rf.from_torch(module.double(), SHAPE) == again


def test_no_weights_are_allocated():
    with torch.device("meta"):
        huge = nn.Conv2d(2**18, 2**18, 3)  # 2.5 TB of weights
        normed = nn.Sequential(huge, nn.BatchNorm2d(2**18), nn.BatchNorm2d(4))
    conv = Conv(3, channels=2**18)
    assert layers(huge, (1, 2**18, 4, 4)) == bound(conv)
    # Buffers have no values either, few as they may be.
    assert layers(normed[:2], (1, 2**18, 4, 4)) == bound(conv, Norm("batch"))
    assert layers(normed[2]) == bound(Norm("batch"))


def test_training_is_what_is_asked_for():
    module = nn.Sequential(nn.BatchNorm2d(4), nn.Dropout(0.25))
    assert layers(module.train()) == bound(Norm("batch"))
    assert layers(module.eval(), training=True) == bound(Norm("batch_train"), Dropout(0.25))


def test_several_inputs():
    module = Function(lambda x, y, t: x + F.interpolate(y, scale_factor=2) * t.view(-1, 1, 1, 1))
    network = rf.from_torch(module, [(1, 4, 8, 8), (1, 4, 4, 4), (1,)])
    assert len(network.inputs) == 2
    assert [n.layer for n in network.nodes.values() if isinstance(n.layer, Upsample)]

    class Named(nn.Module):
        def forward(self, left, right):
            return left + right

    by_name = rf.from_torch(Named(), {"right": SHAPE, "left": SHAPE})
    assert set(by_name.inputs) == {"left", "right"}
    assert all(node.layer == Input(4) for node in map(by_name.nodes.get, by_name.inputs))


# --- attention ------------------------------------------------------------------------------


class Attend(nn.Module):
    """A patch embedding, a class token, a transformer layer, and the class's logits."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = tokens(self.embed(x))
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        return self.head(self.layer(x)[:, 0])


def test_attention_is_global():
    network = rf.from_torch(Attend(), (1, 3, 16, 16))
    assert any(isinstance(node.layer, Attention) for node in network.nodes.values())
    field = rf.receptive_field(network, input_size=16, output=network.outputs[0])
    assert field.box((0, 0), clip=True) == ((0, 15), (0, 15))


def test_attention_by_hand_joins_the_map_again():
    def attend(x):
        q, k, v = tokens(x).chunk(3, -1)
        y = (q @ k.transpose(1, 2)).softmax(-1) @ v
        return y.transpose(1, 2).reshape(1, 4, 8, 6) + x[:, :4]

    network = rf.from_torch(Function(attend), (1, 12, 8, 6))
    assert isinstance(network.nodes[network.outputs[0]].layer, Add)
    assert lower(network, (8, 6)).sizes[network.outputs[0]] == (8, 6)
    near = rf.receptive_field(network, ignore_global=True, input_size=(8, 6))
    assert rf.receptive_field(network, input_size=(8, 6)).box((2, 2), clip=True) == ((0, 7), (0, 5))
    assert near.box((2, 2), clip=True) == ((2, 2), (2, 2))


# --- signals --------------------------------------------------------------------------------


class Speech(nn.Module):
    """The encoder of wav2vec 2.0 (Baevski et al. 2020, §2 and §4.2), with fewer channels."""

    def __init__(self):
        super().__init__()
        layers, before = [], 1
        for kernel, stride in ((10, 5), (3, 2), (3, 2), (3, 2), (3, 2), (2, 2), (2, 2)):
            layers += [nn.Conv1d(before, 6, kernel, stride), nn.GELU()]
            before = 6
        self.features = nn.Sequential(*layers)

    def forward(self, x):
        return self.features(x[:, None]).transpose(1, 2)


def test_a_signal_has_the_published_field():
    """25 ms of 16 kHz every 20 ms."""
    field = rf.receptive_field(rf.from_torch(Speech(), (1, 16000)), input_size=16000)
    assert (field.size, field.stride, field.layers[-1].shape) == ((400,), (320,), (49,))


SIGNALS = {
    "padded": lambda x, c: c(F.pad(x, (3, 1))[:, None]),
    "reflected": lambda x, c: c(F.pad(x[:, None], (2, 2), mode="reflect")),
    "cut": lambda x, c: c(x[:, 2:-1].unsqueeze(1)),
    "preemphasis": lambda x, c: c((x[:, 1:] - 0.97 * x[:, :-1])[:, None]),
    "reshaped": lambda x, c: c(x.reshape(x.shape[0], 1, -1)),
    "squeezed": lambda x, c: torch.tanh(c(x[:, None]).mean(1) + x[:, :36])[:, None],
}


@pytest.mark.parametrize("function", SIGNALS.values(), ids=SIGNALS)
def test_boxes_of_signals_are_those_of_gradients(function):
    torch.manual_seed(3)
    module = Function(function, nn.Conv1d(1, 2, 5).double())
    x = torch.randn(1, 40, dtype=torch.float64, requires_grad=True)
    y = module(x)
    field = rf.receptive_field(rf.from_torch(module, (1, 40)), input_size=40)
    for unit in (0, 1, y.shape[2] // 2, y.shape[2] - 1):
        (gradient,) = torch.autograd.grad(y[0, :, unit].sum(), x, retain_graph=True)
        reached = gradient[0].nonzero().ravel().tolist()
        assert field.box(unit, clip=True) == ((reached[0], reached[-1]),)


# --- what is refused ------------------------------------------------------------------------


def written_into(x):
    y = torch.zeros_like(x)
    y[:, :, 1:] = x[:, :, :-1]
    return y


REFUSED = {
    "fractional": (lambda x: F.fractional_max_pool2d(x, 2, output_size=3), "random"),
    "flip": (lambda x: x.flip(2), "turns an axis round"),
    "sampled": (lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1)), "the data decide"),
    "mask": (lambda x: x[x > 0], "the data decide"),
    "part of a tensor": (written_into, "cat, stack or pad"),
    "cumulated": (lambda x: x.cumsum(2), "along an axis"),
    "sorted": (lambda x: x.sort(1).values, "by their values"),
    "elements": (lambda x: x.repeat_interleave(2), "without an axis"),
    "rows": (lambda x: x.softmax(3), "some of the spatial axes"),
    "across": (lambda x: x.view(1, 6, 8, 4), "axes that mean different things"),
    "mixed": (lambda x: x[:, :, :6] + x[:, :, :6].transpose(2, 3), "mean different things"),
    "unknown": (lambda x: torch.renorm(x, 2, 0, 1.0), "unknown to fastrf"),
}  # fmt: skip


@pytest.mark.parametrize(("function", "words"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_expressed_names_the_line(function, words):
    with pytest.raises(UnsupportedOperator) as caught:
        rf.from_torch(Function(function), (1, 4, 8, 6))
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    for part in ("Function: aten::", "fastrf.importers.register", 'unknown="global"'):
        assert part in message
    assert re.search(r"test_torch_import\.py:\d+: ", message)


def test_policies():
    module = Function(lambda x, conv: conv(x.flip(2)), nn.Conv2d(4, 4, 3, padding=1))
    kept = layers(module, unknown="identity")
    assert kept == bound(Identity(), Conv(3, padding=1, channels=4))
    whole = layers(module, unknown="global")
    assert whole == bound(Attention(), Conv(3, padding=1, channels=4))
    with pytest.raises(InputError, match="'ignore' is not a policy"):
        rf.from_torch(module, SHAPE, unknown="ignore")


class Branches(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x
        return -x


class Item(nn.Module):
    def forward(self, x):
        size = int(x.max().item())
        return F.max_pool2d(x, size)


@pytest.mark.parametrize(
    ("module", "code"), [(Branches(), "if x.sum() > 0:"), (Item(), "size = int(x.max().item())")]
)
def test_control_flow_on_data_names_the_line_and_the_remedy(module, code):
    with pytest.raises(InputError) as caught:
        rf.from_torch(module, SHAPE)
    message = str(caught.value)
    assert re.search(rf"test_torch_import\.py:\d+: {re.escape(code)}", message)
    assert "fastrf.importers.register" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("module", "shape", "words"),
    [
        (nn.Conv2d, SHAPE, "is a class"),
        (torch.relu, SHAPE, "is no torch.nn.Module"),
        ("resnet50", SHAPE, "is no torch.nn.Module"),
        (nn.ReLU(), (4,), "holds no map"),
        (nn.ReLU(), (1, 4, 0, 6), "whole numbers of at least 1"),
        (nn.ReLU(), "1,4,8,6", "whole numbers"),
        (nn.ReLU(), 224, "whole numbers"),
        (nn.ReLU(), (), "holds no map"),
        (nn.Conv2d(3, 6, 3), SHAPE, "check input_shape"),
        (nn.Conv2d(4, 6, 9), SHAPE, "check input_shape"),
        (nn.LazyConv2d(6, 3), SHAPE, "lazy module"),
        (Function(lambda x: torch.zeros(3)), SHAPE, "no output depends on a map"),
        (Function(lambda x, y: x), SHAPE, "check input_shape"),
    ],
)
def test_bad_input_is_one_error(module, shape, words):
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        rf.from_torch(module, shape)
    assert "\n" not in str(caught.value)


def test_without_torch_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingExtra, match=r'pip install "fastrf\[torch\]"'):
        rf.from_torch(nn.ReLU(), SHAPE)


# --- the registry ---------------------------------------------------------------------------


def test_a_convolution_on_one_pixel_keeps_its_kernel():
    """Eight of its nine taps lie in padding, with their share of the gradient."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1))
    network = rf.from_torch(module, (1, 3, 2, 2))
    assert network.nodes["1"].layer.kernel == 3
    # Four of the nine taps of the first layer, and one of the second's, lie within.
    assert rf.erf(network, input_size=2).log_gain == pytest.approx(math.log(4 / 9 / 9))


@pytest.fixture
def registered():
    """Registers for one test."""
    targets = []

    def remember(target):
        targets.append(target)
        return register(target)

    yield remember
    for target in targets:
        unregister(target)


def test_a_registered_module_is_a_leaf(registered):
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.leaf = nn.Conv2d(4, 6, 3), Item()

        def forward(self, x):
            return self.leaf(self.before(x)) + 1

    @registered(Item)
    def pool(module):
        assert isinstance(module, Item)
        return [("pool", MaxPool(2)), Conv(3, padding=1, channels=5)]

    network = rf.from_torch(Outer(), (1, 4, 10, 10))
    assert list(network.nodes) == ["x", "before", "leaf.pool", "leaf", "add"]
    assert network.nodes["leaf"].layer == Conv(3, padding=1, channels=5)
    assert lower(network, 10).sizes[network.outputs[0]] == (4, 4)


def test_a_registered_module_may_read_several_maps(registered):
    class Join(nn.Module):
        def forward(self, x, y):
            return x if x.sum() > y.sum() else y

    @registered(Join)
    def both(module):
        return rf.Network({"a": Input(), "b": Input(), "sum": (Add(), "a", "b")})

    network = rf.from_torch(Function(lambda x, join: join(x, F.relu(x)), Join()), SHAPE)
    assert network.nodes[network.outputs[0]].inputs == (*network.inputs, "relu")


@pytest.mark.parametrize(
    ("made", "words"),
    [("Conv", "returned no layers"), ([Conv(3, channels=2), Add()], None), (Concat(), None),
     (Conv(3), "give channels=")],
)  # fmt: skip
def test_what_is_registered_is_checked(registered, made, words):
    registered(Item)(lambda module: made)
    if words is None:
        rf.from_torch(Item(), SHAPE)
        return
    with pytest.raises(InputError, match=re.escape(words)):
        rf.from_torch(Item(), SHAPE)


@pytest.mark.parametrize("target", ["blur", "::blur", "mylib::", 3, Item()])
def test_targets_are_operators_or_classes(target):
    with pytest.raises(InputError, match="names no operator"):
        register(target)


def test_a_registered_operator(registered):
    library = torch.library.Library("fastrftest", "DEF")
    library.define("blur(Tensor x, int radius=1) -> Tensor")
    library.impl("blur", lambda x, radius=1: x.clone(), "CompositeExplicitAutograd")
    module = Function(lambda x: torch.ops.fastrftest.blur(x, 2))
    with pytest.raises(UnsupportedOperator, match="fastrftest::blur"):
        rf.from_torch(module, SHAPE)
    calls = []

    @registered("fastrftest::blur")
    def blur(call):
        calls.append(call)
        radius = call.arguments["radius"]
        return Conv(2 * radius + 1, padding=radius, groups="depthwise")

    assert layers(module) == bound(Conv(5, padding=2, groups="depthwise"))
    (call,) = calls
    assert (call.name, call.inputs, call.output) == ("fastrftest::blur", (SHAPE,), SHAPE)


def test_a_registered_onnx_operator(registered):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    value = helper.make_tensor_value_info
    node = helper.make_node("Blur", ["x"], ["y"], domain="com.acme", name="blur", radius=2)
    graph = helper.make_graph(
        [node], "g", [value("x", TensorProto.FLOAT, SHAPE)], [value("y", TensorProto.FLOAT, None)]
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.acme", 1)]
    model = helper.make_model(graph, opset_imports=opsets)
    assert onnx.__version__
    with pytest.raises(UnsupportedOperator, match=r"com\.acme\.Blur"):
        rf.from_onnx(model)

    @registered("com.acme::Blur")
    def blur(call):
        assert call.inputs == (SHAPE,)
        return Conv(2 * call.arguments["radius"] + 1, padding=2)

    assert rf.from_onnx(model).nodes["blur"].layer == Conv(5, padding=2)


# --- by name --------------------------------------------------------------------------------

CODE = """
import torch
from torch import nn
import fastrf as rf


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(5, 6, 3, stride=2)
        assert self.conv.weight.device.type == "meta"

    def forward(self, x):
        return self.conv(x)


def line():
    return nn.Conv1d(2, 2, 3)


def numbers():
    return nn.Dropout(torch.linspace(0, 0.5, 3)[1].item())


def network():
    return rf.Sequential(rf.Conv(3))


def needs(argument):
    return network()


def fails():
    raise RuntimeError("no such file")


made = network()
text = "text"
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    (tmp_path / "fastrf_models.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    yield
    sys.modules.pop("fastrf_models", None)


def test_code_is_found_by_name(code):
    network = from_name("fastrf_models:Net", input_size=32)
    assert network.nodes["x"].layer == Input(5)
    assert network.name == "Net"
    assert from_name("fastrf_models:line").ndim == 1
    assert from_name("fastrf_models:network") == from_name("fastrf_models:made")
    # Constructors that need numbers get them. (A dropout hands its input on.)
    assert from_name("fastrf_models:numbers", channels=7).nodes["input"].layer == Input(7)
    with pytest.raises(InputError, match="at least 1"):
        from_name("fastrf_models:Net", channels=0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fastrf_absent:x", "no module 'fastrf_absent'"),
        ("fastrf_models:absent", "has no 'absent'"),
        ("fastrf_models:text", "is a str"),
        ("fastrf_models:needs", "without arguments"),
        ("fastrf_models:fails", "fails when it is called"),
        ("fastrf_models:fails", "no such file"),
        ("os:getcwd", "returned a str"),
    ],
)
def test_bad_names_are_one_error(code, name, words):
    with pytest.raises(InputError, match=re.escape(words)) as caught:
        from_name(name)
    assert "\n" not in str(caught.value)


def test_the_command_line_takes_names(code, capsys):
    from fastrf.cli import main

    assert main(["rf", "fastrf_models:Net", "--input-size", "33", "--json"]) == 0
    assert '"stride"' in capsys.readouterr().out
    assert main(["rf", "fastrf_models:absent"]) == 2
    assert "has no 'absent'" in capsys.readouterr().err


# --- beside the others ----------------------------------------------------------------------


def test_onnx_and_torch_agree(tmp_path):
    """The same model by hand in both formats."""
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    weights = [helper.make_tensor_value_info("w", TensorProto.FLOAT, (6, 4, 3, 3))]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["a"], ["b"]),
            helper.make_node("MaxPool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Concat", ["c", "c"], ["y"], axis=1),
        ],
        "g",
        [value("x", TensorProto.FLOAT, (1, 4, 16, 16)), *weights],
        [value("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    for tensor in graph.input[1:]:
        model.graph.initializer.append(
            helper.make_tensor(tensor.name, TensorProto.FLOAT, (6, 4, 3, 3), [0.0] * 216)
        )
    module = Function(
        lambda x, conv: torch.cat([F.max_pool2d(F.relu(conv(x)), 2)] * 2, 1),
        nn.Conv2d(4, 6, 3, stride=2, padding=1),
    )
    assert rf.from_torch(module, (1, 4, 16, 16)) == rf.from_onnx(model)


def test_importing_fastrf_imports_no_torch():
    code = "import fastrf, fastrf.importers, sys; assert 'torch' not in sys.modules"
    root = Path(rf.__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
