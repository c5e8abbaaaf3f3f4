"""The zoo against published facts: parameter counts, map sizes, depths, receptive fields.

`survey` below is the oracle: it knows the layers' fields and nothing of how fastrf lowers them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import pytest

from fastrf import layers as ly
from fastrf import zoo
from fastrf.analytic.geometry import receptive_field
from fastrf.errors import InputError
from fastrf.network import Network

# --- the oracle -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Map:
    """A map: channels, pixels and what unit u of it sees, [lo + u·jump, hi + u·jump], per axis."""

    channels: int
    size: tuple[int, ...]
    jump: tuple[Fraction, ...]
    lo: tuple[Fraction, ...]
    hi: tuple[Fraction, ...]

    @property
    def reach(self) -> tuple[int, ...]:
        """The receptive field's size per axis (aligned networks)."""
        return tuple(int(hi - lo) + 1 for lo, hi in zip(self.lo, self.hi, strict=True))


def _pad(pad: Any, n: int, k: int, s: int, d: int) -> tuple[int, int]:
    """(lo, hi) of one axis; TensorFlow's SAME keeps ⌈n/s⌉ pixels, the odd one at the end."""
    if pad != "same_upper":
        return pad
    total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
    return total // 2, total - total // 2


def _window(layer: Any, m: Map, channels: int) -> Map:
    """The formulas of Dumoulin and Visin 2016 for the size, of Dang Ha The Hien for the field."""
    ceil_mode = getattr(layer, "ceil_mode", False)
    out = []
    for n, k, s, d, pad, jump, lo, hi in zip(
        m.size, layer.kernel, layer.stride, layer.dilation, layer.padding, m.jump, m.lo, m.hi,
        strict=True,
    ):  # fmt: skip
        before, after = _pad(pad, n, k, s, d)
        room = n + before + after - d * (k - 1) - 1
        count = (-(-room // s) if ceil_mode else room // s) + 1
        if ceil_mode and (count - 1) * s >= n + before:
            count -= 1
        start = lo - before * jump
        out.append((count, jump * s, start, start + d * (k - 1) * jump + hi - lo))
    return Map(channels, *zip(*out, strict=True))


def _apply(layer: Any, maps: list[Map]) -> tuple[Map, int]:
    """The map that a bound layer makes, and the number of its weights (biases not counted)."""
    m = maps[0]
    if isinstance(layer, ly.Conv):
        groups = m.channels if layer.groups == "depthwise" else layer.groups
        channels = layer.channels or m.channels
        assert m.channels % groups == 0
        weights = math.prod(layer.kernel) * m.channels // groups * channels
        return _window(layer, m, channels), weights
    if isinstance(layer, ly.ConvTranspose):
        assert layer.kernel == layer.stride  # what the zoo uses; nothing overlaps
        size = tuple(n * s for n, s in zip(m.size, layer.stride, strict=True))
        jump = tuple(j / s for j, s in zip(m.jump, layer.stride, strict=True))
        weights = math.prod(layer.kernel) * m.channels * layer.channels
        return Map(layer.channels, size, jump, m.lo, m.hi), weights
    if isinstance(layer, ly.Upsample):
        size = tuple(int(n * s) for n, s in zip(m.size, layer.scale, strict=True))
        jump = tuple(j / s for j, s in zip(m.jump, layer.scale, strict=True))
        return Map(m.channels, size, jump, m.lo, m.hi), 0
    if isinstance(layer, ly.MaxPool | ly.AvgPool):
        return _window(layer, m, m.channels), 0
    if isinstance(layer, ly.FullyConnected):
        weights = m.channels * math.prod(m.size) * layer.channels
        if layer.map_size is not None:  # written as a convolution
            return _window(ly.Conv(layer.map_size).bind(len(m.size)), m, layer.channels), weights
        return Map(layer.channels, (1,) * len(m.size), m.jump, m.lo, m.hi), weights
    if isinstance(layer, ly.GlobalPool | ly.AdaptivePool):
        size = getattr(layer, "output_size", (1,) * len(m.size))
        return Map(m.channels, size, m.jump, m.lo, m.hi), 0
    if isinstance(layer, ly.Add | ly.Concat):
        assert len({x.size for x in maps}) == 1
        concat = isinstance(layer, ly.Concat)
        assert concat or len({x.channels for x in maps}) == 1
        channels = sum(x.channels for x in maps) if concat else m.channels
        lo = tuple(map(min, zip(*(x.lo for x in maps), strict=True)))
        hi = tuple(map(max, zip(*(x.hi for x in maps), strict=True)))
        return Map(channels, m.size, m.jump, lo, hi), 0
    assert isinstance(layer, ly.Norm | ly.Activation | ly.Dropout), layer
    return m, 0


@dataclass(frozen=True)
class Survey:
    net: Network
    maps: dict[str, Map]
    parameters: int

    def __getitem__(self, name: str) -> Map:
        return self.maps[self.net.resolve(name)]


def survey(net: Network, size: int) -> Survey:
    """Every map of a network for inputs of `size` pixels per axis, and its parameters.

    A convolution has a bias unless a batch norm reads it, which brings two numbers per channel;
    LRN has none.
    """
    bound = net.bound
    axes = bound.ndim
    normed = {
        i
        for node in bound.nodes.values()
        if isinstance(node.layer, ly.Norm) and node.layer.statistics == "batch"
        for i in node.inputs
    }
    if (net.name or "").startswith("vgg"):
        normed = set()  # torchvision's VGG keeps the biases
    # DenseNet normalises in front of a convolution: its convolutions have no bias either.
    preactivated = net.name == "densenet121"
    maps: dict[str, Map] = {}
    parameters = 0
    for name, node in bound.nodes.items():
        if isinstance(node.layer, ly.Input):
            zero, one = (Fraction(0),) * axes, (Fraction(1),) * axes
            maps[name] = Map(node.layer.channels, (size,) * axes, one, zero, zero)
            continue
        maps[name], weights = _apply(node.layer, [maps[i] for i in node.inputs])
        parameters += weights
        convolution = isinstance(node.layer, ly.Conv | ly.ConvTranspose)
        if convolution and not (name in normed or preactivated):
            parameters += maps[name].channels
        if isinstance(node.layer, ly.FullyConnected):
            parameters += maps[name].channels
        if isinstance(node.layer, ly.Norm) and node.layer.statistics == "batch":
            parameters += 2 * maps[name].channels
    return Survey(net, maps, parameters)


# --- everything -----------------------------------------------------------------------------

ARGUMENTS = {"plain": "(5)", "residual": "(4)"}
INPUT_SIZE = {"alexnet_dang": 227, "inception_v3": 299, "darknet53": 256, "wavenet": 50, "tcn": 50}


def build(name: str) -> Network:
    return zoo.get(name + ARGUMENTS.get(name, ""))


@pytest.mark.parametrize("name", zoo.names())
def test_network_is_consistent(name: str) -> None:
    net = build(name)
    found = survey(net, INPUT_SIZE.get(name, 224))
    assert net.name == name
    assert len(net.inputs) == len(net.outputs) == 1
    assert net.endpoints
    assert set(net.endpoints.values()) <= set(net.nodes)
    # Nothing hangs loose: every node but the output is read.
    read = {i for node in net.nodes.values() for i in node.inputs}
    assert set(net.nodes) - read == set(net.outputs)
    # fastrf's own lowering arrives at the same sizes and channels.
    channels: dict[str, int | None] = {}
    sizes: dict[str, tuple[int, ...]] = {}
    for node in net.bound.nodes.values():
        channels[node.name] = node.layer.output_channels([channels[i] for i in node.inputs])
        if isinstance(node.layer, ly.Input):
            sizes[node.name] = found.maps[node.name].size
            continue
        lowered = node.layer.maps(sizes[node.inputs[0]], net.bound.ndim)
        sizes[node.name] = lowered[-1].size_out if lowered else sizes[node.inputs[0]]
    assert sizes == {n: m.size for n, m in found.maps.items()}
    assert channels == {n: m.channels for n, m in found.maps.items()}


@pytest.mark.parametrize("name", zoo.names())
def test_gains_keep_the_variance(name: str) -> None:
    net = build(name)
    for node in net.nodes.values():
        layer = node.layer
        if isinstance(layer, ly.Activation):
            gated = layer.function in ("tanh", "sigmoid")
            assert layer.pointwise_gain == (0.5 if gated else 1.0), node.name
        elif isinstance(layer, ly.ConvTranspose):
            assert layer.gain == layer.stride ** (net.ndim or 2), node.name
        elif isinstance(layer, ly.Conv | ly.FullyConnected | ly.Norm):
            assert layer.gain == 1.0, node.name


@pytest.mark.parametrize("name", zoo.names())
def test_dropout_stands_behind_every_kernel(name: str) -> None:
    layers = [node.layer for node in build(name).bound.nodes.values()]
    first = next((i for i, x in enumerate(layers) if isinstance(x, ly.Dropout)), len(layers))
    for layer in layers[first:]:
        assert getattr(layer, "kernel", (1,)) == (1,) * len(getattr(layer, "kernel", (1,)))


@pytest.mark.parametrize("name", zoo.names())
def test_receptive_field_of_every_endpoint(name: str) -> None:
    """The union over all paths, computed by fastrf and by the oracle."""
    net = build(name)
    found = survey(net, INPUT_SIZE.get(name, 224))
    rows = {row.name: row for row in receptive_field(net, input_size=found["input"].size).layers}
    compared = 0
    for endpoint, node in net.endpoints.items():
        layer = net.nodes[node].layer
        if isinstance(layer, ly.FullyConnected) and layer.map_size is None:
            continue  # sees everything
        if name == "unet" and endpoint.startswith(("up", "out")):
            continue  # decoders have phases, which the oracle does not follow
        m, row = found[endpoint], rows[node]
        assert row.shape == m.size
        assert row.size == m.reach, endpoint
        assert row.stride == m.jump, endpoint
        assert row.padding == tuple(-lo for lo in m.lo), endpoint
        compared += 1
    assert compared >= 4


def test_every_network_is_exported() -> None:
    assert set(zoo.names()) == set(zoo.__all__) - {"get", "names"}
    assert all(getattr(zoo, name).__doc__ for name in zoo.names())


# --- published facts ------------------------------------------------------------------------

PARAMETERS = {
    # torchvision's model documentation ("num_params"); googlenet and inception_v3 there include
    # (v3: 27,161,264) or leave out the auxiliary heads, which have 3,326,696 in v3.
    "alexnet": 61_100_840,
    "vgg11": 132_863_336,
    "vgg11(batch_norm=True)": 132_868_840,
    "vgg13": 133_047_848,
    "vgg13(batch_norm=True)": 133_053_736,
    "vgg16": 138_357_544,
    "vgg16(batch_norm=True)": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19(batch_norm=True)": 143_678_248,
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet50(stride_in='1x1')": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "googlenet": 6_624_904,
    "inception_v3": 27_161_264 - 3_326_696,
    "mobilenet_v2": 3_504_872,
    "densenet121": 7_978_856,
    # Caffe's bvlc_alexnet, the two-column AlexNet of 2012.
    "alexnet_dang": 60_965_224,
    "zfnet": 62_357_608,
    # U-Net with 3 channels in, 2 classes out, padded convolutions and no batch norm.
    "unet": 31_031_810,
    # The trainable parameters that Keras prints for MobileNet, TF-Slim's network.
    "mobilenet_v1": 4_231_976,
    # timm's darknet53.
    "darknet53": 41_609_928,
    # TF-Slim's ResNets move strides only (200: timm's resnet200).
    "resnet_v1_50_slim": 25_557_032,
    "resnet_v1_101_slim": 44_549_160,
    "resnet_v1_152_slim": 60_192_808,
    "resnet_v1_200_slim": 64_673_832,
}


@pytest.mark.parametrize("spec", PARAMETERS)
def test_parameter_count(spec: str) -> None:
    name = spec.partition("(")[0]
    assert survey(zoo.get(spec), INPUT_SIZE.get(name, 224)).parameters == PARAMETERS[spec]


MAPS = [
    # Zeiler and Fergus 2014, figure 3
    ("zfnet", 224, "conv1 pool1 conv2 pool2 conv3 conv4 conv5 pool5", "110 55 26 13 13 13 13 6"),
    # Krizhevsky et al. 2012, figure 2 (map sizes at 227, the size that the arithmetic needs)
    ("alexnet_dang", 227, "conv1 pool1 conv2 pool2 conv3 conv5 pool5 fc6", "55 27 27 13 13 13 6 1"),
    ("alexnet", 224, "conv1 pool1 conv2 pool2 conv5 pool5", "55 27 27 13 13 6"),
    ("alexnet_v2", 224, "conv1 pool1 conv2 pool2 conv5 pool5 fc6", "54 26 26 12 12 5 1"),
    # Simonyan and Zisserman 2015: 224 halved five times
    ("vgg16", 224, "conv1_2 pool1 pool2 pool3 pool4 conv5_3 pool5", "224 112 56 28 14 14 7"),
    # He et al. 2016, table 1
    ("resnet18", 224, "layer1 layer2 layer3 layer4", "56 28 14 7"),
    ("resnet50", 224, "layer1 layer2 layer3 layer4", "56 28 14 7"),
    ("resnet50('1x1')", 224, "layer1 layer2 layer3 layer4", "56 28 14 7"),
    # TF-Slim strides at the end of a block
    ("resnet_v1_50_slim", 224, "conv1 pool1 block1 block2 block3 block4", "112 56 28 14 7 7"),
    # Szegedy et al. 2015, table 1
    (
        "googlenet",
        224,
        "conv1 maxpool1 conv3 maxpool2 inception3b maxpool3 inception4e maxpool4 inception5b",
        "112 56 56 28 28 14 14 7 7",
    ),
    # Szegedy et al. 2016, table 1
    (
        "inception_v3",
        299,
        "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 MaxPool_3a_3x3 Conv2d_4a_3x3 MaxPool_5a_3x3 "
        "Mixed_5d Mixed_6e Mixed_7c",
        "149 147 147 73 71 35 35 17 8",
    ),
    # Howard et al. 2017, table 1
    (
        "mobilenet_v1",
        224,
        "Conv2d_0 Conv2d_1_pointwise Conv2d_3_pointwise Conv2d_5_pointwise Conv2d_11_pointwise "
        "Conv2d_13_pointwise",
        "112 112 56 28 14 7",
    ),
    # Sandler et al. 2018, table 2
    (
        "mobilenet_v2",
        224,
        "features.0 features.1 features.3 features.6 features.13 features.17 features.18",
        "112 112 56 28 14 7 7",
    ),
    # Huang et al. 2017, table 1
    (
        "densenet121",
        224,
        "pool0 denseblock1 transition1 denseblock2 transition2 denseblock3 transition3 denseblock4",
        "56 56 28 28 14 14 7 7",
    ),
    # Redmon and Farhadi 2018, table 1
    ("darknet53", 256, "stage1 stage2 stage3 stage4 stage5", "128 64 32 16 8"),
]


@pytest.mark.parametrize(("spec", "size", "names", "sizes"), MAPS)
def test_published_map_sizes(spec: str, size: int, names: str, sizes: str) -> None:
    found = survey(zoo.get(spec), size)
    assert [found[n].size for n in names.split()] == [(int(s), int(s)) for s in sizes.split()]


@pytest.mark.parametrize(
    ("name", "endpoint", "channels"),
    [
        ("zfnet", "conv2", 256),
        ("vgg19", "conv5_4", 512),
        ("resnet34", "layer4", 512),
        ("resnet152", "layer3", 1024),
        ("googlenet", "inception4a", 512),
        ("googlenet", "inception5b", 1024),
        ("inception_v3", "Mixed_5d", 288),
        ("inception_v3", "Mixed_6e", 768),
        ("inception_v3", "Mixed_7a", 1280),
        ("inception_v3", "Mixed_7c", 2048),
        ("densenet121", "denseblock3", 1024),
        ("mobilenet_v2", "features.17", 320),
    ],
)
def test_published_channels(name: str, endpoint: str, channels: int) -> None:
    assert survey(build(name), INPUT_SIZE.get(name, 224))[endpoint].channels == channels


@pytest.mark.parametrize(
    ("name", "depth"),
    [
        *((f"vgg{n}", n) for n in (11, 13, 16, 19)),
        *((f"resnet{n}", n) for n in (18, 34, 50, 101, 152)),
        *((f"resnet_v1_{n}_slim", n) for n in (50, 101, 152, 200)),
        ("densenet121", 121),
        ("darknet53", 53),
    ],
)
def test_the_number_in_the_name_counts_the_layers(name: str, depth: int) -> None:
    """Layers with weights, projections of shortcuts not counted (He et al. 2016)."""
    weighted = [
        node.name
        for node in build(name).nodes.values()
        if isinstance(node.layer, ly.Conv | ly.FullyConnected)
        and not {"downsample", "shortcut"} & set(node.name.replace("/", ".").split("."))
    ]
    assert len(weighted) == depth


def test_resnet_strides_where_it_says() -> None:
    strided = {}
    for key, net in (
        ("3x3", zoo.resnet50()),
        ("1x1", zoo.resnet50(stride_in="1x1")),
        ("slim", zoo.resnet_v1_50_slim()),
    ):
        strided[key] = [
            node.name
            for node in net.nodes.values()
            if isinstance(node.layer, ly.Conv) and node.layer.stride == 2
        ]
    stages = ("layer2.0", "layer3.0", "layer4.0")
    down = {s: f"{s}.downsample.0" for s in stages}
    assert strided["3x3"] == ["conv1", *(n for s in stages for n in (f"{s}.conv2", down[s]))]
    assert strided["1x1"] == ["conv1", *(n for s in stages for n in (f"{s}.conv1", down[s]))]
    last = ("block1/unit_3", "block2/unit_4", "block3/unit_6")
    assert strided["slim"] == ["conv1", *(f"{unit}/bottleneck_v1/conv2" for unit in last)]


def test_googlenet_third_branch() -> None:
    kernels = {
        k: {
            node.layer.kernel
            for node in zoo.googlenet(k).nodes.values()
            if isinstance(node.layer, ly.Conv) and ".branch3.1." in node.name
        }
        for k in (3, 5)
    }
    assert kernels == {3: {3}, 5: {5}}
    # A 5×5 module reaches 2 pixels to each side, a 3×3 module 1: at most 2/3 of it is added.
    wide, narrow = (survey(zoo.googlenet(k), 224)["inception3b"].reach for k in (5, 3))
    assert wide == (27 + 2 * 4 * 8,) * 2  # stem 27, jump 8
    assert narrow == (27 + 2 * 2 * 8,) * 2


# --- networks with parameters ---------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 10])
@pytest.mark.parametrize(("kernel", "ndim"), [(3, 2), (2, 1), (5, 3), ((3, 7), 2), (1, 2)])
def test_plain(depth: int, kernel: Any, ndim: int) -> None:
    net = zoo.plain(depth, kernel, ndim)
    found = survey(net, 9)[f"conv{depth}"]
    widths = kernel if isinstance(kernel, tuple) else (kernel,) * ndim
    assert len(net) == depth
    assert found.size == (9,) * ndim
    assert found.reach == tuple(depth * (k - 1) + 1 for k in widths)


@pytest.mark.parametrize("convs", [1, 2])
@pytest.mark.parametrize(("depth", "kernel", "ndim"), [(1, 3, 2), (7, 5, 1), (4, (3, 1), 2)])
def test_residual(depth: int, kernel: Any, ndim: int, convs: int) -> None:
    net = zoo.residual(depth, kernel, convs, ndim)
    widths = kernel if isinstance(kernel, tuple) else (kernel,) * ndim
    assert len(net) == depth * (convs + 1)
    found = survey(net, 9)[f"block{depth}"]
    assert found.reach == tuple(convs * depth * (k - 1) + 1 for k in widths)


def test_branch_gain_and_activation() -> None:
    net = zoo.residual(3, branch_gain=0.25, activation="relu", channels=16)
    gains = [node.layer.gain for node in net.nodes.values() if isinstance(node.layer, ly.Conv)]
    assert gains == [0.25, 1.0] * 3
    assert [n for n in net.nodes if n.endswith("act1")] == [f"block{i}.act1" for i in (1, 2, 3)]
    names = list(zoo.plain(2, activation="tanh").nodes)
    assert names == ["input", "conv1", "act1", "conv2", "act2"]


def test_cifar_resnet_keeps_the_map() -> None:
    found = survey(zoo.cifar_resnet(), 32)
    assert found["block17"].size == (32, 32)
    # The paper's 74 is even and cannot come from odd kernels at stride 1.
    assert found["block17"].reach == (3 + 4 * 17,) * 2 == (71, 71)


@pytest.mark.parametrize("up", ["transpose", "nearest", "linear"])
@pytest.mark.parametrize(("depth", "convs", "ndim"), [(1, 1, 2), (4, 2, 2), (2, 3, 1), (2, 1, 3)])
def test_unet(depth: int, convs: int, ndim: int, up: str) -> None:
    net = zoo.unet(depth, convs, channels=8, up=up, ndim=ndim)
    found = survey(net, 2**depth * 3)
    assert found["out"].size == (2**depth * 3,) * ndim
    assert found["out"].jump == (1,) * ndim
    assert found["bottom"].size == (3,) * ndim
    assert found["bottom"].channels == 8 * 2**depth
    assert found[f"up{depth}"].channels == 8
    kinds = [type(node.layer).__name__ for node in net.nodes.values()]
    assert kinds.count("Conv") == (2 * depth + 1) * convs + 1
    assert kinds.count("Concat") == kinds.count("MaxPool") == depth
    assert kinds.count("ConvTranspose" if up == "transpose" else "Upsample") == depth


def test_unet_has_the_papers_channels() -> None:
    """Ronneberger et al. 2015, figure 1: 64 … 1024 and back; 23 convolutional layers."""
    found = survey(zoo.unet(), 64)
    names = [*(f"down{i}" for i in range(1, 5)), "bottom", *(f"up{i}" for i in range(1, 5))]
    assert [found[n].channels for n in names] == [64, 128, 256, 512, 1024, 512, 256, 128, 64]
    convs = [n for n in found.net.nodes.values() if isinstance(n.layer, ly.Conv | ly.ConvTranspose)]
    assert len(convs) == 23


@pytest.mark.parametrize(("blocks", "layers", "kernel"), [(1, 10, 2), (3, 10, 2), (2, 4, 3)])
def test_wavenet(blocks: int, layers: int, kernel: int) -> None:
    """Van den Oord et al. 2016: one block 1, 2, 4, …, 512 has a receptive field of 1024."""
    net = zoo.wavenet(blocks, layers, kernel)
    found = survey(net, 50)["out2"]
    front = kernel - 1
    assert found.reach == (1 + (kernel - 1) * blocks * (2**layers - 1) + front,)
    assert found.hi == (0,)  # causal
    assert found.size == (50,)
    if (blocks, layers, kernel) == (1, 10, 2):
        assert found.reach[0] - front == 1024
    skips = [n for n in net.nodes if n.endswith(".skip")]
    assert list(net.nodes["skips"].inputs) == skips
    assert len(skips) == blocks * layers


@pytest.mark.parametrize(("levels", "kernel"), [(1, 2), (4, 3), (8, 7)])
def test_tcn(levels: int, kernel: int) -> None:
    found = survey(zoo.tcn(levels, kernel), 40)[f"network.{levels - 1}"]
    assert found.reach == (1 + 2 * (kernel - 1) * (2**levels - 1),)
    assert found.hi == (0,)  # causal


# --- by name --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "net"),
    [
        ("resnet18", zoo.resnet18()),
        (" resnet18() ", zoo.resnet18()),
        ("plain(10, 3)", zoo.plain(10)),
        ("plain(depth=10, kernel=5, ndim=1)", zoo.plain(10, 5, 1)),
        ("plain(2, (3, 5))", zoo.plain(2, kernel=(3, 5))),
        ("unet(2, up='nearest')", zoo.unet(2, up="nearest")),
        ("vgg11(batch_norm=True)", zoo.vgg11(batch_norm=True)),
        ("plain(2, activation=None)", zoo.plain(2)),
    ],
)
def test_get_reads_literals(spec: str, net: Network) -> None:
    assert zoo.get(spec) == net


def test_different_arguments_are_different_networks() -> None:
    specs = ["plain(3)", "plain(4)", "plain(3, 5)", "plain(3, ndim=1)", "residual(3)", "unet(2)"]
    specs += ["unet(2, up='linear')", "resnet50", "resnet50('1x1')", "resnet_v1_50_slim"]
    assert len({zoo.get(spec) for spec in specs}) == len(specs)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("resnet51", "did you mean 'resnet50'"),
        ("ResNet50", "did you mean 'resnet50'"),
        ("resnet-50", "did you mean 'resnet50'"),
        ("qqqq", "there are 'alexnet'"),
        ("plain", "write plain(depth, kernel=3"),
        ("plain(1, 2, 3, 4, 5)", "write plain(depth"),
        ("plain(3, depth=3)", "write plain(depth"),
        ("plain(depht=3)", "did you mean 'depth'"),
        ("resnet18(4)", "write resnet18()"),
        ("resnet18(depth=4)", "it takes none"),
        ("plain(3", "cannot be read"),
        ("", "cannot be read"),
        ("plain(3)(4)", "cannot be read"),
        ("zoo.plain(3)", "cannot be read"),
        ("plain(*[3])", "cannot be read"),
        ("plain(**{'depth': 3})", "cannot be read"),
        ("plain(depth=3, depth=4)", "cannot be read"),
        ("plain(__import__('os').getpid())", "cannot be read"),
        ("plain(3); plain(4)", "cannot be read"),
        ("plain(\0)", "cannot be read"),
        ("plain(" + "-" * 900 + "3)", "cannot be read"),
        ("plain(" + "(" * 500 + ")" * 500 + ")", "characters"),
        ("plain(" + "(" * 300 + "3" + ")" * 300 + ")", "cannot be read"),
        (None, "not by None"),
    ],
)
def test_get_refuses(spec: Any, message: str) -> None:
    with pytest.raises(InputError) as error:
        zoo.get(spec)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith("?") == ("did you mean" in str(error.value))


@pytest.mark.parametrize("value", [0, -1, 1_000_001, 2.5, "'3'", True, None, [1], 10**30])
@pytest.mark.parametrize(
    "spec",
    [
        "plain({})",
        "plain(3, kernel={})",
        "plain(3, ndim={})",
        "plain(3, channels={})",
        "residual({})",
        "residual(3, kernel={})",
        "residual(3, ndim={})",
        "residual(3, channels={})",
        "cifar_resnet({})",
        "unet({})",
        "unet(2, {})",
        "unet(2, channels={})",
        "unet(2, ndim={})",
        "wavenet({})",
        "wavenet(1, {})",
        "wavenet(1, 2, {})",
        "wavenet(channels={})",
        "wavenet(skip_channels={})",
        "tcn({})",
        "tcn(2, {})",
        "tcn(channels={})",
    ],
)
def test_numbers_are_checked(spec: str, value: Any) -> None:
    with pytest.raises(InputError, match=r"whole number from 1 to|values for \d axes"):
        zoo.get(spec.format(value))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("plain(3, ndim=4)", "from 1 to 3"),
        ("plain(3, (3, 3, 3))", "3 values for 2 axes"),
        ("plain(3, (3, 0))", "from 1 to"),
        ("plain(3, activation='')", "activation=''"),
        ("plain(3, activation=5)", "activation=5"),
        ("residual(3, convs=3)", "from 1 to 2"),
        ("residual(600000)", "1200000 convolutions"),
        ("residual(3, branch_gain=0)", "above 0"),
        ("residual(3, branch_gain=True)", "above 0"),
        ("residual(3, branch_gain=1e999)", "above 0"),
        ("cifar_resnet(600000)", "1200000 convolutions"),
        ("unet(31)", "from 1 to 30"),
        ("unet(30, 20000)", "1220000 convolutions"),
        ("unet(up='cubic')", "choose one of 'transpose', 'nearest', 'linear'"),
        ("wavenet(1, 31)", "from 1 to 30"),
        ("wavenet(100000, 20)", "2000000 layers"),
        ("tcn(31)", "from 1 to 30"),
        ("vgg16(1)", "choose one of False, True"),
        ("googlenet(7)", "choose one of 3, 5"),
        ("googlenet([3])", "choose one of 3, 5"),
        ("resnet50('2x2')", "choose one of '3x3', '1x1'"),
    ],
)
def test_other_arguments_are_checked(spec: str, message: str) -> None:
    with pytest.raises(InputError) as error:
        zoo.get(spec)
    assert message in str(error.value)
