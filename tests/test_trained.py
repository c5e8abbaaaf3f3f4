"""Trained weights: what the importers read of them, and fields channel by channel, against loops
over channels, autograd through squared weights, and random signs."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from fastrf.kernels import load
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

import fastrf as rf
from fastrf.engine.channelwise import of_channelwise, propagate_channelwise
from fastrf.engine.direct import propagate
from fastrf.errors import InputError
from fastrf.layers.weights import Weights
from fastrf.lowering import lower

Array = NDArray[np.float64]


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def full(module: nn.Module, shape: tuple[int, ...]) -> rf.Network:
    return rf.from_torch(module, shape, weights="trained", channels="full")


def variances(field: rf.ERF) -> Array:
    """The variance that arrives, on the whole input."""
    assert field.input_size is not None
    whole = np.zeros(field.input_size)
    window = tuple(slice(o, o + n) for o, n in zip(field.origin, field.shape, strict=True))
    whole[window] = field.image * math.exp(field.log_gain)
    return whole


# --- single layers against loops ------------------------------------------------------------


def behind_convolution(m: Any, g: Array, size: tuple[int, int]) -> Array:
    """Loops over everything: the gradient variance of what a convolution reads."""
    w = m.weight.detach().double().numpy() ** 2
    found = np.zeros((m.in_channels, *size))
    per_in, per_out = m.in_channels // m.groups, m.out_channels // m.groups
    for k, c in itertools.product(range(m.out_channels), range(per_in)):
        for o in np.ndindex(*g.shape[1:]):
            for tap in np.ndindex(*m.kernel_size):
                at = tuple(
                    o[a] * m.stride[a] + tap[a] * m.dilation[a] - m.padding[a] for a in (0, 1)
                )
                if all(0 <= i < n for i, n in zip(at, size, strict=True)):
                    found[(k // per_out * per_in + c, *at)] += w[(k, c, *tap)] * g[(k, *o)]
    return found


def behind_transposed(m: Any, g: Array, size: tuple[int, int]) -> Array:
    w = m.weight.detach().double().numpy() ** 2
    found = np.zeros((m.in_channels, *size))
    per_in, per_out = m.in_channels // m.groups, m.out_channels // m.groups
    for c, k in itertools.product(range(m.in_channels), range(per_out)):
        for i in np.ndindex(*size):
            for tap in np.ndindex(*m.kernel_size):
                at = tuple(
                    i[a] * m.stride[a] + tap[a] * m.dilation[a] - m.padding[a] for a in (0, 1)
                )
                if all(0 <= o < n for o, n in zip(at, g.shape[1:], strict=True)):
                    found[(c, *i)] += w[(c, k, *tap)] * g[(c // per_in * per_out + k, *at)]
    return found


LAYERS = {
    "convolution": lambda: nn.Conv2d(3, 4, 3, padding=1),
    "strided": lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0)),
    "dilated": lambda: nn.Conv2d(2, 3, 3, padding=2, dilation=2),
    "groups": lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(3, 6, 3, padding=1, groups=3),
    "transposed": lambda: nn.ConvTranspose2d(3, 4, 4, stride=2, padding=1),
    "transposed groups": lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2),
    "transposed, depthwise": lambda: nn.ConvTranspose2d(3, 3, (2, 3), (2, 3), groups=3),
    "transposed, dilated": lambda: nn.ConvTranspose2d(2, 2, 3, stride=2, padding=2, dilation=2),
}


@pytest.mark.parametrize("name", LAYERS)
def test_single_layers(name: str) -> None:
    module: Any = LAYERS[name]()
    size = (6, 7)
    shape = (1, module.in_channels, *size)
    net = full(module, shape)
    node = net.outputs[0]
    behind = behind_transposed if "transposed" in name else behind_convolution
    out = module(torch.zeros(shape)).shape[1:]
    unit = (out[1] // 4 * 2, 2)  # no gap of a transposed convolution
    for channel in (None, 0, out[0] - 1):
        g = np.zeros(out)
        chosen = slice(None) if channel is None else channel
        g[(chosen, *unit)] = 1 / out[0] if channel is None else 1
        field = rf.erf(net, node, unit, input_size=size, channel=channel)
        np.testing.assert_allclose(variances(field), behind(module, g, size).sum(0), rtol=1e-12)
        assert field.plan.engine == "channelwise"
        kept = math.exp(field.log_gain)
        assert field.lost_mass < 1
        if channel is None:
            # What arrives and what fell into padding is what was put in, times the mean gain.
            mean = rf.from_torch(module, shape, weights="trained")
            plain = rf.erf(mean, node, unit, input_size=size)
            assert plain.log_gain - math.log(kept) == pytest.approx(0, abs=1.0)


def test_units_on_the_unbounded_grid() -> None:
    module = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Conv2d(3, 2, 3, stride=2))
    net = full(module, (1, 2, 15, 15))
    free, clipped = rf.erf(net), rf.erf(net, unit=(2, 2), input_size=15)
    np.testing.assert_allclose(free.image, clipped.image, rtol=1e-12)
    assert free.log_gain == pytest.approx(clipped.log_gain, abs=1e-12)
    assert free.origin == (0, 0)
    assert clipped.lost_mass == 0


# --- a whole network against autograd through squares ---------------------------------------


class Mixed(nn.Module):
    """Everything that channels can do: part ways, shuffle, concatenate, be scaled one by one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.left = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.right = nn.Conv2d(4, 4, 1)
        self.scale = nn.Parameter(torch.randn(8, 1, 1))
        self.down = nn.Conv2d(8, 6, 2, stride=2)
        self.up = nn.ConvTranspose2d(6, 8, 2, stride=2)
        self.head = nn.Linear(8 * 4 * 4, 5)
        nn.init.normal_(self.norm.weight)
        nn.init.uniform_(self.norm.running_var, 0.3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.norm(self.stem(x)))
        a, b = x.chunk(2, 1)
        y = F.pixel_shuffle(F.pixel_unshuffle(torch.cat([self.right(b), self.left(a)], 1), 2), 2)
        y = self.channels(y)
        x = x + self.scale * y
        x = self.up(self.down(x)) + x
        return self.head(F.max_pool2d(x, 2).flatten(1))

    @staticmethod
    def channels(y: torch.Tensor) -> torch.Tensor:
        return y.reshape(y.shape[0], 2, 4, *y.shape[2:]).transpose(1, 2).reshape(y.shape)

    def squared(self, x: torch.Tensor) -> torch.Tensor:
        """The same linear in variances: squared weights, ReLU's 1/2, a quarter per pooled tap."""

        def layer(m: Any, x: torch.Tensor) -> torch.Tensor:
            if isinstance(m, nn.ConvTranspose2d):
                return F.conv_transpose2d(x, m.weight**2, None, m.stride)
            return F.conv2d(x, m.weight**2, None, m.stride, m.padding, groups=m.groups)

        gains = self.norm.weight**2 / (self.norm.running_var + self.norm.eps)
        x = layer(self.stem, x) * gains[:, None, None] / 2
        a, b = x.chunk(2, 1)
        y = self.channels(torch.cat([layer(self.right, b), layer(self.left, a)], 1))
        x = x + self.scale**2 * y
        x = layer(self.up, layer(self.down, x)) + x
        return F.linear(F.avg_pool2d(x, 2).flatten(1), self.head.weight**2)


@pytest.mark.parametrize("channel", [None, 3])
def test_a_whole_network(channel: int | None) -> None:
    module = Mixed().eval().double()
    x = torch.zeros(1, 3, 8, 8, dtype=torch.float64, requires_grad=True)
    y = module.squared(x)
    chosen = y.mean() if channel is None else y[0, channel]
    (expected,) = torch.autograd.grad(chosen, x)
    net = full(module, (1, 3, 8, 8))
    field = rf.erf(net, "head", input_size=8, channel=channel)
    np.testing.assert_allclose(variances(field), expected[0].sum(0).numpy(), rtol=1e-12)
    assert not field.exact
    assert field.inexact[0].startswith("the weights are fixed: the image is the mean over indep")
    single = rf.erf(net, "head", input_size=8, channel=channel, dtype="float32")
    assert single.image.dtype == np.float32
    np.testing.assert_allclose(single.image, field.image, rtol=1e-5)


def test_all_layers() -> None:
    net = full(Mixed().eval(), (1, 3, 8, 8))
    fields = rf.erf(net, "down", input_size=8, layers="all")
    for node in ("stem", "norm", "relu", "left", "down"):
        alone = rf.erf(net, node, input_size=8)
        np.testing.assert_array_equal(fields[node].image, alone.image)
    with pytest.raises(InputError, match="channel=0 is one map's; leave it out of layers='all'"):
        rf.erf(net, "down", input_size=8, layers="all", channel=0)  # type: ignore[call-overload]


def test_random_signs() -> None:
    """The image is the mean squared gradient over random signs of the weights, exactly: a linear
    network's over all of the 2^9 patterns of signs of a small one."""
    first, second = nn.Conv1d(1, 2, 2).double(), nn.Conv1d(2, 1, 2).double()
    weights = [m.weight.detach().reshape(-1) for m in (first, second)]
    total = torch.zeros(3, dtype=torch.float64)
    patterns = list(itertools.product((-1.0, 1.0), repeat=8))
    for signs in patterns:
        a = (torch.tensor(signs[:4]) * weights[0]).reshape(first.weight.shape)
        b = (torch.tensor(signs[4:]) * weights[1]).reshape(second.weight.shape)
        x = torch.zeros(1, 1, 3, dtype=torch.float64, requires_grad=True)
        (slope,) = torch.autograd.grad(F.conv1d(F.conv1d(x, a), b).sum(), x)
        total += slope[0, 0] ** 2
    net = full(nn.Sequential(first, second), (1, 1, 3))
    found = variances(rf.erf(net, input_size=3))
    np.testing.assert_allclose(found, total.numpy() / len(patterns), rtol=1e-12)


def test_no_gain_overflows() -> None:
    """600 layers that multiply a gradient's variance by 10^8 and by 10^−8."""
    for factor in (1e4, 1e-4):
        layer = rf.Conv(1, channels=2, weights=np.array([[factor, 0], [0, factor]])[..., None])
        net = rf.Sequential(rf.Input(2), *[layer] * 600, ndim=1)
        assert rf.erf(net).log_gain == pytest.approx(600 * 2 * math.log(factor), rel=1e-13)


def test_layers_without_weights_hand_on_the_sum() -> None:
    """Among layers that hold weights, one that does not counts as random, with its gain."""
    w = np.arange(1.0, 7).reshape(2, 3, 1)
    mixed = rf.Sequential(
        rf.Input(3), rf.Conv(1, channels=2, weights=w), rf.Conv(3, channels=5, gain=2.0), ndim=1
    )
    expected = 2.0 * (w**2).sum() / 2
    assert rf.erf(mixed).log_gain == pytest.approx(math.log(expected), rel=1e-13)
    np.testing.assert_allclose(rf.erf(mixed).image, np.full(3, 1 / 3), rtol=1e-13)


EVERYTHING: dict[str, rf.Network] = {
    "resnet": rf.zoo.resnet18(),
    "densenet": rf.zoo.densenet121(),
    "mobilenet": rf.zoo.mobilenet_v2(),
    "inception": rf.zoo.googlenet(),
    "3-D": rf.Sequential(
        rf.Input(4),
        *[rf.Conv(3, padding=1, channels=4, groups="depthwise"), rf.AvgPool(2)],
        *[rf.ConvTranspose((3, 2, 2), stride=(1, 2, 2), channels=2), rf.Norm(gain=3.0)],
        *[rf.Upsample(2), rf.Conv(1, channels=4, taps=None), rf.PixelShuffle((2, 1, 2))],
    ),
    "taps": rf.Sequential(
        rf.Input(2),
        rf.Pad(2, "reflect"),
        rf.Conv(3, channels=4, taps=[[1, 2, 0], [0, 5, 1], [1, 1, 3]], padding_mode="circular"),
        rf.ConvTranspose(3, stride=2, taps=[[1, 2, 0], [0, 5, 1], [1, 1, 3]], channels=4, gain=4.0),
        *[rf.ChannelShuffle(2), rf.ChannelSlice(1, 3), rf.Filter(3, weights=np.eye(3)), rf.Crop(1)],
        *[rf.Attention(), rf.Conv(3, padding=1, channels=3), rf.MaxPool(3, 2, padding=1)],
    ),
}
"""Networks without weights: each layer does to all channels what it does to a plane."""


@pytest.mark.parametrize("name", EVERYTHING)
def test_channels_that_are_alike(name: str) -> None:
    known = EVERYTHING[name]
    net = rf.Network(known.nodes.values(), known.outputs, ndim=known.ndim)
    graph = lower(net, 12 if name == "3-D" else 33 if name == "taps" else 48)
    node = graph.output_node(None)
    where = (graph, node, graph.unit_index(node, "center"), "input")
    plain = propagate(*where, kernels=load("cpu"))
    found = propagate_channelwise(*where)
    assert found.origin == plain.origin
    # At most some 200 layers of some 60 roundings each, of nonnegative numbers.
    np.testing.assert_allclose(found.image, plain.pixels(), rtol=2e-12)
    assert found.mass.log() == pytest.approx(plain.mass.log(), abs=1e-11)
    assert found.lost == pytest.approx(plain.lost, abs=1e-11)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize(
    ("layer", "kernel", "count", "depth"),
    [(rf.Conv, 5, 32, 10), (rf.Conv, 5, 96, 3), (rf.ConvTranspose, 1, 384, 2)],
)
def test_memory_beside_large_weights(
    layer: Any, kernel: int, count: int, depth: int, dtype: str
) -> None:
    """As many weights as numbers in the image, and many more; in the order of the products, too."""
    rng = np.random.default_rng(5)
    shape = (count, count, kernel, kernel)
    layers = [layer(kernel, channels=count, weights=rng.normal(size=shape)) for _ in range(depth)]
    graph = lower(rf.Sequential(rf.Input(count), *layers))
    where = (graph, graph.output_node(None), (0, 0), "input")
    propagate_channelwise(*where, dtype=dtype)
    tracemalloc.start()
    try:
        propagate_channelwise(*where, dtype=dtype)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    foretold = of_channelwise(*where, np.dtype(dtype), None).memory_on(1)
    assert foretold == pytest.approx(peak, rel=0.1)


def test_below_what_reads_padding_alone_nothing_is_counted() -> None:
    """The unit at the corner of a layer whose padding is wider than its kernel."""
    top = rf.Conv(1, padding=3, weights=np.ones((2, 2, 1, 1)))
    wide = rf.Conv(3, padding=1, weights=np.ones((2, 2, 3, 3)))
    plans = [
        rf.plan(rf.Sequential(*[wide] * depth, top), unit=(0, 0), input_size=9)
        for depth in (0, 1, 5)
    ]
    assert plans[0].cells == plans[1].cells == plans[2].cells


# --- what is read ---------------------------------------------------------------------------


def settled(net: rf.Network, name: str) -> Any:
    return lower(net).network.nodes[name].layer


def test_averages_over_channels() -> None:
    module = Mixed().eval()
    net = rf.from_torch(module, (1, 3, 8, 8), weights="trained")
    for name, reads in (("stem", 3), ("left", 2), ("down", 8), ("up", 6)):
        weight = getattr(module, name).weight.detach().double().numpy()
        squares = (weight**2).mean(axis=(0, 1))
        layer = settled(net, name)
        assert layer.gain == pytest.approx(squares.sum() * reads, rel=1e-13)
        np.testing.assert_allclose(layer.taps, squares / squares.sum(), rtol=1e-13)
    scale = module.norm.weight.detach().numpy() / np.sqrt(module.norm.running_var.numpy() + 1e-5)
    assert settled(net, "norm").gain == pytest.approx((scale**2).mean(), rel=1e-6)
    assert settled(net, "mul").gain == pytest.approx(
        float((module.scale.detach() ** 2).mean()), rel=1e-6
    )
    head = module.head.weight.detach().double().numpy()
    assert settled(net, "head").gain == pytest.approx((head**2).sum() / 5, rel=1e-12)
    field = rf.erf(net, "head", input_size=8)
    (said,) = field.inexact
    assert said.startswith("trained weights are fixed: independent ones of mean 0 stand in for")
    assert rf.check(net, "down", input_size=8)


def test_weights_that_a_module_computes() -> None:
    """Standardised weights are constants to the graph, and computed as PyTorch does."""

    class Standardised(nn.Conv2d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            w = self.weight
            w = (w - w.mean((1, 2, 3), keepdim=True)) / w.std((1, 2, 3), keepdim=True)
            return F.conv2d(x, w * 0.5)

    module = Standardised(2, 3, 3)
    own = module.weight.detach()
    own = (own - own.mean((1, 2, 3), keepdim=True)) / own.std((1, 2, 3), keepdim=True) * 0.5
    layer = settled(rf.from_torch(module, (1, 2, 9, 9), weights="trained"), "conv2d")
    assert layer.gain == pytest.approx(float((own**2).mean((0, 1)).sum()) * 2, rel=1e-5)


def test_products_with_matrices() -> None:
    """A pixelwise linear layer is a convolution of one tap, whichever way its matrix lies."""

    class Pixelwise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(5, 3)), nn.Parameter(torch.randn(5, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.linear(x.permute(0, 2, 3, 1), self.a) @ self.b
            return y.permute(0, 3, 1, 2)

    module = Pixelwise()
    net = full(module, (1, 3, 4, 4))
    a, b = (p.detach().double().numpy() for p in (module.a, module.b))
    expected = ((b.T**2) @ (a**2)).sum(axis=1)  # by output channel
    for channel in range(4):
        found = math.exp(rf.erf(net, input_size=4, channel=channel).log_gain)
        assert found == pytest.approx(expected[channel], rel=1e-12)


def test_heads_read_positions_in_any_order() -> None:
    """Channels last before it is flattened: the same weights, by other names."""

    class Head(nn.Module):
        def __init__(self, last: bool) -> None:
            super().__init__()
            self.last, self.head = last, nn.Linear(2 * 3 * 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head((x.permute(0, 2, 3, 1) if self.last else x).flatten(1))

    for last in (False, True):
        module = Head(last)
        w = module.head.weight.detach().double().numpy() ** 2
        by_pixel = w.reshape(3, 3, 4, 2).sum(-1) if last else w.reshape(3, 2, 3, 4).sum(1)
        net = full(module, (1, 2, 3, 4))
        field = rf.erf(net, "head", input_size=(3, 4), channel=1)
        np.testing.assert_allclose(variances(field), by_pixel[1], rtol=1e-12)


def test_a_norm_that_starts_at_zero_mutes_its_branch() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
            nn.init.zeros_(self.norm.weight)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.norm(self.conv(x))

    for channels in ("mean", "full"):
        net = rf.from_torch(Block().eval(), (1, 3, 9, 9), weights="trained", channels=channels)  # type: ignore[arg-type]
        field = rf.erf(net, input_size=9)
        assert field.image[tuple(4 - o for o in field.origin)] == pytest.approx(1, abs=1e-15)


def test_layer_norms_divide_by_what_reaches_them() -> None:
    """γ²/q of the mean field: q = 4 behind weights of Σ w² = 4 per unit."""

    class Normed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(2, 2, 1, bias=False), nn.LayerNorm(2)
            self.conv.weight.data = torch.tensor([[2.0, 0], [0, 2]])[..., None, None]
            self.norm.weight.data = torch.tensor([1.0, 3.0])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    for channel, scale in ((None, 5.0), (0, 1.0), (1, 9.0)):
        field = rf.erf(full(Normed(), (1, 2, 5, 5)), input_size=5, channel=channel)
        assert math.exp(field.log_gain) == pytest.approx(scale, rel=1e-12)
    averaged = rf.from_torch(Normed(), (1, 2, 5, 5), weights="trained")
    assert math.exp(rf.erf(averaged).log_gain) == pytest.approx(5.0, rel=1e-12)


@pytest.mark.parametrize("channels", ["mean", "full"])
@pytest.mark.parametrize("scale", ["norm", "factor"])
def test_known_factors_multiply_what_reaches_them(scale: str, channels: Any) -> None:
    """A batch norm's statistics and a layer scale: as convolutions into which they are folded, also
    where an activation's gain or a norm depends on the variance behind them."""

    class Scaled(nn.Module):
        def __init__(self, folded: bool) -> None:
            super().__init__()
            first = nn.Conv2d(4, 4, 1, bias=False)
            first.weight.data = 3 * torch.eye(4)[..., None, None]
            factor = 2 / math.sqrt(2.5)
            self.norm = nn.BatchNorm2d(4, eps=0.5)
            self.norm.weight.data.fill_(2)
            self.norm.running_var.fill_(2)
            self.factor = nn.Parameter(torch.full((4, 1, 1), factor))
            self.folded, self.first = folded, first
            if folded:
                first.weight.data *= factor
            self.last = nn.Conv2d(4, 4, 3, padding=1, bias=False)
            self.last.weight.data = torch.ones(4, 4, 3, 3)
            self.layer = nn.GroupNorm(2, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.first(x)
            if not self.folded:
                x = self.norm(x) if scale == "norm" else x * self.factor
            return self.last(F.gelu(self.layer(x) + x))

    fields = [
        rf.erf(
            rf.from_torch(
                Scaled(folded).eval(), (1, 4, 9, 9), weights="trained", channels=channels
            ),
            input_size=9,
            ignore_global=True,
        )
        for folded in (True, False)
    ]
    assert fields[1].log_gain == pytest.approx(fields[0].log_gain, rel=1e-6)
    np.testing.assert_allclose(fields[1].image, fields[0].image, rtol=1e-6)


# --- ONNX -----------------------------------------------------------------------------------


def onnx_model(module: Any, folder: Any = None) -> Any:
    """conv → batch norm → leaky ReLU → transposed convolution → · scale → Gemm, by hand."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    held = {name: p.detach().numpy() for name, p in module.state_dict().items()}
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["a"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node(
            "BatchNormalization",
            ["a", *(f"norm.{p}" for p in ("weight", "bias", "running_mean", "running_var"))],
            ["b"],
            "norm",
        ),
        helper.make_node("LeakyRelu", ["b"], ["c"], "act", alpha=0.1),
        helper.make_node("ConvTranspose", ["c", "up.weight"], ["d"], "up", strides=[2, 2]),
        helper.make_node("Mul", ["d", "scale"], ["e"], "mul"),
        helper.make_node("Flatten", ["e"], ["f"], "flat"),
        helper.make_node("Gemm", ["f", "head.weight"], ["g"], "head", transB=1),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 4])]
    outputs = [helper.make_tensor_value_info("g", TensorProto.FLOAT, [1, 5])]
    tensors = [numpy_helper.from_array(v, n) for n, v in held.items() if v.ndim]
    graph = helper.make_graph(nodes, "model", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model


class Exported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.up = nn.ConvTranspose2d(16, 24, 4, stride=2, bias=False)
        self.scale = nn.Parameter(torch.randn(24, 1, 1))
        self.head = nn.Linear(24 * 10 * 10, 5)
        nn.init.uniform_(self.norm.running_var, 0.3, 3)
        nn.init.normal_(self.norm.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.leaky_relu(self.norm(self.conv(x)), 0.1)
        return self.head((self.up(y) * self.scale).flatten(1))


@pytest.mark.parametrize("channels", ["mean", "full"])
def test_onnx_reads_the_same(channels: Any) -> None:
    module = Exported().eval()
    theirs = rf.from_torch(module, (1, 3, 4, 4), weights="trained", channels=channels)
    ours = rf.from_onnx(onnx_model(module), weights="trained", channels=channels)
    a, b = (rf.erf(net, "head", input_size=4) for net in (theirs, ours))
    np.testing.assert_allclose(a.image, b.image, rtol=1e-6)  # float32 scales, by other operations
    assert a.log_gain == pytest.approx(b.log_gain, abs=1e-6)
    assert a.plan.engine == b.plan.engine
    he = rf.from_onnx(onnx_model(module), init="he")
    assert he.nodes["conv"].layer == rf.Conv(3, padding=1, channels=16, init="he").__class__(
        3, padding=1, channels=16, init="he"
    )
    assert isinstance(he.nodes["act"].layer, rf.Activation)
    assert he.nodes["act"].layer.slope == pytest.approx(0.1)


def test_onnx_opens_external_weights(tmp_path: Any) -> None:
    import onnx

    module = Exported().eval()
    path = tmp_path / "m.onnx"
    inside = rf.from_onnx(onnx_model(module), weights="trained")
    onnx.save(
        onnx_model(module), path, save_as_external_data=True, location="w.bin", size_threshold=0
    )
    beside = rf.from_onnx(path, weights="trained")
    assert inside == beside
    with pytest.raises(InputError, match="in a file of its own; give the path of the model"):
        rf.from_onnx(path.read_bytes(), weights="trained")
    (tmp_path / "w.bin").unlink()
    with pytest.raises(InputError, match=r"'[a-z.]*' in 'w.bin', which is no file below"):
        rf.from_onnx(path, weights="trained")
    rf.from_onnx(path)  # nobody opens them otherwise


# --- importing with a scheme ----------------------------------------------------------------


def test_imports_draw_weights() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            self.head = nn.Linear(8, 2)
            self.register_buffer("blur", torch.ones(8, 1, 2, 2) / 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.elu(self.norm(self.conv(x)), 0.5)
            x = F.gelu(x, approximate="tanh") * torch.sigmoid(x)
            x = F.hardtanh(F.relu6(x))
            return self.head(F.conv2d(x, self.blur, groups=8).mean((2, 3)))

    net = rf.from_torch(Small(), (1, 3, 9, 9), init="he")
    kinds = [(n.layer.function, n.layer.slope) for n in net.nodes.values()
             if isinstance(n.layer, rf.Activation)]  # fmt: skip
    assert kinds == [
        ("elu", 0.5), ("gelu_tanh", None), ("sigmoid", None), ("relu6", None), ("hardtanh", None),
    ]  # fmt: skip
    layers = {name: node.layer for name, node in net.nodes.items()}
    assert layers["conv"] == rf.Conv(3, channels=8, init="he")
    assert layers["head"] == rf.FullyConnected(2, init="he")
    assert layers["norm"] == rf.Norm(mean_field=True)
    assert any(isinstance(layer, rf.Filter) for layer in layers.values())
    assert any(layer == rf.Multiply(mean_field=True) for layer in layers.values())
    plain = rf.from_torch(Small(), (1, 3, 9, 9))
    assert plain.initialised("he") != plain
    assert rf.erf(net, "conv2d", input_size=9).std == rf.erf(plain, "conv2d", input_size=9).std


# --- bad input ------------------------------------------------------------------------------


def refused(message: str, **options: Any) -> None:
    with pytest.raises(InputError, match=message):
        rf.from_torch(nn.Conv2d(1, 1, 1), (1, 1, 3, 3), **options)


def test_bad_options() -> None:
    refused("weights='pretrained' is unknown; give 'trained'", weights="pretrained")
    refused("channels='all' is unknown; give 'mean' or 'full'", channels="all")
    refused("channels='full' needs weights; give weights='trained' too", channels="full")
    refused("weights are drawn or trained; give one of", init="he", weights="trained")
    refused("init='h' is unknown; choose one of he, he-fan-out", init="h")
    with torch.device("meta"):
        module = nn.Conv2d(1, 1, 1)
    with pytest.raises(InputError, match="was made on the meta device, and has no weights"):
        rf.from_torch(module, (1, 1, 3, 3), weights="trained")


def test_bad_channels() -> None:
    net = full(nn.Conv2d(2, 3, 1), (1, 2, 3, 3))
    for channel in (3, -1, 1.5, True):
        with pytest.raises(InputError, match=r"channel=.* must be a number from 0 to 2"):
            rf.erf(net, channel=channel)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="channel=0 needs weights to tell channels apart"):
        rf.erf(rf.Conv(3), channel=0)
    with pytest.raises(
        InputError, match=r"direct: its layers hold their weights, which method='ch"
    ):
        rf.erf(net, method="direct")
    with pytest.raises(InputError, match="channelwise: no layer holds its weights"):
        rf.erf(rf.Conv(3), method="channelwise")
    with pytest.raises(InputError, match="check compares engines and formulas that average weigh"):
        rf.check(net)


TELL_CHANNELS = {
    "at once": (rf.Conv(2, weights=np.ones((2, 3, 2, 2))), 3),
    "groups": (rf.Conv(1, groups=2, weights=np.ones((2, 3, 1, 1))), 6),
    "transposed": (rf.ConvTranspose(1, weights=np.ones((5, 3, 1, 1))), 5),
    "fully connected": (rf.FullyConnected(weights=np.ones((2, 4, 2, 2))), 4),
    "norm": (rf.Norm(weights=np.ones(7)), 7),
    "behind others": (
        rf.Sequential(
            rf.Activation("relu"), rf.MaxPool(2), rf.Conv(1, weights=np.ones((2, 3, 1, 1)))
        ),
        3,
    ),
    "in a branch": (rf.Residual(rf.Conv(1, weights=np.ones((4, 4, 1, 1)))), 4),
}


@pytest.mark.parametrize("name", TELL_CHANNELS)
def test_weights_tell_the_channels_of_the_input(name: str) -> None:
    block, count = TELL_CHANNELS[name]
    told, given = rf.Sequential(block), rf.Sequential(rf.Input(count), block)
    found, stated = (rf.erf(n, [*n.nodes][-1], input_size=2) for n in (told, given))
    assert found.plan.engine == "channelwise"
    np.testing.assert_array_equal(found.image, stated.image)
    with pytest.raises(InputError, match=f"do not fit the {count + 1} channels read"):
        rf.plan(rf.Sequential(rf.Input(count + 1), block), input_size=2)


def test_filters_of_one_channel_each() -> None:
    """One or several of every channel; where nothing states the channels, one."""
    layer = rf.Conv(1, groups="depthwise", weights=np.ones((6, 1, 1, 1)))
    for count in (1, 2, 3, 6):
        assert rf.erf(rf.Sequential(rf.Input(count), layer)).plan.engine == "channelwise"
    with pytest.raises(InputError, match="do not fit the 4 channels read; check them and groups="):
        rf.plan(rf.Sequential(rf.Input(4), layer))
    two = rf.Conv(1, groups="depthwise", weights=np.ones((6, 2, 1, 1)))
    with pytest.raises(InputError, match="do not fit the 6 channels read"):
        rf.plan(rf.Sequential(rf.Input(6), two))
    assert lower(rf.Sequential(layer)).channels["input"] == 6


def depthwise(filters: int) -> rf.Conv:
    return rf.Conv(1, groups="depthwise", weights=np.ones((filters, 1, 1, 1)))


RELU = rf.Activation("relu")
THREE = rf.Conv(1, weights=np.ones((6, 3, 1, 1)))

READ_TOGETHER: dict[str, tuple[list[Any], int]] = {
    "one number and several": ([depthwise(6), THREE], 3),
    "behind others": ([rf.Sequential(RELU, depthwise(6)), rf.Sequential(RELU, THREE)], 3),
    "one of them behind another": ([depthwise(6), rf.Sequential(RELU, THREE)], 3),
    "several of several": ([depthwise(6), depthwise(9)], 3),
    "several, and others": ([rf.Sequential(RELU, depthwise(8)), depthwise(12), depthwise(8)], 4),
    "one number is the largest": ([depthwise(6), rf.Conv(1, weights=np.ones((6, 6, 1, 1)))], 6),
}


@pytest.mark.parametrize("below", [[], [RELU]], ids=["the input", "a map"])
@pytest.mark.parametrize("name", READ_TOGETHER)
def test_filters_of_one_channel_each_beside_other_readers(name: str, below: list[Any]) -> None:
    """In any order."""
    ways, count = READ_TOGETHER[name]
    for order in itertools.permutations(ways):
        block = rf.Sequential(*below, rf.Parallel(*order, merge="concat"))
        assert lower(block).channels["input"] == count
        told, given = (
            rf.erf(n, input_size=2) for n in (block, rf.Sequential(rf.Input(count), block))
        )
        np.testing.assert_array_equal(told.image, given.image)
    with pytest.raises(InputError, match=f"do not fit the {count + 1} channels read"):
        rf.plan(rf.Sequential(rf.Input(count + 1), *below, rf.Parallel(*ways, merge="concat")))


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (rf.Conv(3, weights=np.ones((2, 2, 3))), "do not fit kernel="),
        (rf.Conv(1, weights=np.ones((3, 2, 1, 1)), channels=4), "do not fit channels=4"),
        (rf.Conv(1, weights=np.ones((3, 2, 1, 1)), init="he"), "init='he' draws weights"),
        (rf.Conv(1, weights=np.ones((3, 2, 1, 1)), gain=7), "gain=7.0 is not that of its weights"),
        (rf.Conv(1, weights=[[[[math.nan]]]]), "must be finite numbers"),
        (rf.Norm(weights=np.ones((2, 2))), "must be one factor per channel"),
        (rf.FullyConnected(weights=np.ones((2, 2))), "must be .channels, channels read, "),
        (rf.Conv(1, weights={"shape": [1]}), "must hold shape, dtype and base64"),
    ],
)
def test_bad_weights(layer: rf.Layer, message: str) -> None:  # type: ignore[name-defined]
    with pytest.raises(InputError, match=message):
        rf.erf(rf.Sequential(rf.Input(2), layer))


def test_weights_that_do_not_fit_the_map() -> None:
    wrong = rf.Sequential(rf.Input(4), rf.Conv(1, weights=np.ones((3, 2, 1, 1))))
    with pytest.raises(InputError, match="do not fit the 4 channels read"):
        rf.erf(wrong)
    norm = rf.Sequential(rf.Input(4), rf.Norm(weights=np.ones(3)))
    with pytest.raises(
        InputError, match=r"norm1: weights of shape \(3,\) do not fit the 4 channels"
    ):
        rf.erf(norm)
    head = rf.Sequential(rf.Input(1), rf.FullyConnected(weights=np.ones((2, 1, 3, 3))))
    with pytest.raises(InputError, match=r"do not fit a map of \(4, 4\); give the input_size"):
        rf.erf(head, "fullyconnected1", input_size=4)


# --- weights as values ----------------------------------------------------------------------


def test_weights_are_values() -> None:
    one = np.arange(6, dtype=np.float32).reshape(2, 3)
    a, b = Weights(one), Weights(one.astype(np.float64))
    assert a == b
    assert hash(a) == hash(b)
    assert hash(Weights([2.5])) == hash(Weights(np.array([2.5])))
    assert a != Weights(one.reshape(3, 2))
    assert a != Weights(one + 1)
    assert a != one.tolist()
    assert a.array.dtype == np.float32
    one[:] = 0
    assert a == b  # nobody else's array
    with pytest.raises(ValueError, match="read-only"):
        a.array[0] = 1
    assert Weights(a.packed()) == a
    assert "shape=(2, 3)" in repr(a)


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_files_keep_weights(tmp_path: Any, suffix: str) -> None:
    net = full(Mixed().eval(), (1, 3, 8, 8))
    path = tmp_path / f"net.{suffix}"
    rf.save(net, path)
    read = rf.load(path)
    assert read == net
    field, again = rf.erf(net, "down", input_size=8), rf.erf(read, "down", input_size=8)
    np.testing.assert_array_equal(field.image, again.image)
    field.save(tmp_path / "field.npz")
    assert rf.ERF.load(tmp_path / "field.npz").network == net
    other = full(Mixed().eval(), (1, 3, 8, 8))
    assert other.fingerprint != net.fingerprint


# --- the command line -----------------------------------------------------------------------


def test_on_the_command_line(capsys: Any, tmp_path: Any, monkeypatch: Any) -> None:
    import json

    from fastrf.cli import main

    monkeypatch.chdir(tmp_path)
    (tmp_path / "held.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net():\n    torch.manual_seed(3)\n    return nn.Sequential(nn.Conv2d(3, 4, 3))\n"
    )

    def document(*words: str) -> Any:
        assert main(["erf", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    def refusal(*words: str) -> str:
        assert main(["erf", *words]) == 2
        return str(capsys.readouterr().err)

    name = ("held:net", "--input-size", "9")
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(3, 4, 3))
    averaged = rf.from_torch(module, (1, 3, 9, 9), weights="trained")
    field = rf.erf(averaged, input_size=9)
    found = document(*name, "--weights", "trained")
    assert found["log_gain"] == pytest.approx(field.log_gain, abs=1e-12)
    assert found["exact"] is False
    found = document(*name, "--weights", "trained", "--per-channel", "--channel", "2")
    single = rf.erf(full(module, (1, 3, 9, 9)), input_size=9, channel=2)
    assert found["log_gain"] == pytest.approx(single.log_gain, abs=1e-12)
    assert found["plan"]["engine"] == "channelwise"
    assert document(*name, "--init", "he")["log_gain"] == pytest.approx(math.log(2))
    assert document("plain(3)", "--init", "he")["log_gain"] == pytest.approx(3 * math.log(2))
    assert "init='hee' is unknown" in refusal(*name, "--init", "hee")
    assert "needs weights; give weights='trained' too" in refusal(*name, "--per-channel")
    assert "--weights and --per-channel are for ONNX" in refusal("plain(3)", "--weights", "trained")
