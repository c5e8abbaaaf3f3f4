"""Networks with parameters: plain and residual stacks, U-Net, WaveNet, temporal convolutions."""

from __future__ import annotations

from typing import Any, Literal

from fastrf.layers import (
    Activation,
    Add,
    Concat,
    Conv,
    ConvTranspose,
    FullyConnected,
    GlobalPool,
    Layer,
    MaxPool,
    Multiply,
    Upsample,
)
from fastrf.network import Builder, Network
from fastrf.zoo.blocks import (
    BATCH_NORM,
    RELU,
    activation_or_none,
    at_most_limit,
    chain,
    grid_axes,
    kernel_per_axis,
    one_of,
    positive,
    same_names,
    whole,
)

MAX_DOUBLINGS = 30
"""Greatest number of times that a network may double its stride or dilation."""


# --- stacks ---------------------------------------------------------------------------------


def plain(
    depth: int,
    kernel: Any = 3,
    ndim: int = 2,
    *,
    channels: int = 64,
    activation: str | None = None,
) -> Network:
    """`depth` convolutions of stride 1 and padding "same", one behind the other.

    Source: Luo et al., "Understanding the effective receptive field in deep convolutional neural
    networks", 2016, section 2.1: σ = √(depth·(kernel²−1)/12) pixels per axis.
    Nodes: "conv1", "conv2", …, with an activation "act1", "act2", … behind each where asked for.
    End points: the convolutions.

    Args:
        depth: number of convolutions, 1 to 1,000,000.
        kernel: width, or one width per axis.
        ndim: number of axes.
        channels: output channels of every convolution.
        activation: name of an activation (gain 1), or None for convolutions alone.
    """
    depth = whole("plain", "depth", depth)
    ndim = grid_axes("plain", ndim)
    kernel = kernel_per_axis("plain", kernel, ndim)
    act = activation_or_none("plain", activation)
    conv = Conv(kernel, padding="same", channels=whole("plain", "channels", channels))
    b = Builder()
    x = b.input(channels=3)
    for i in range(1, depth + 1):
        x = b.add(conv, x, name=f"conv{i}")
        if act is not None:
            x = b.add(act, x, name=f"act{i}")
    endpoints = same_names(f"conv{i}" for i in range(1, depth + 1))
    return b.build(x, ndim=ndim, name="plain", endpoints=endpoints)


def residual(
    depth: int,
    kernel: Any = 3,
    convs: int = 2,
    ndim: int = 2,
    *,
    channels: int = 64,
    activation: str | None = None,
    branch_gain: float = 1.0,
) -> Network:
    """`depth` residual blocks x + branch(x) on one map size; no convolution outside the blocks.

    Source: the residual networks of Luo et al. 2016, section 2.3, with identity shortcuts.
    Nodes: "block1.conv1", "block1.act1" (where asked for), …, "block1.add".
    End points: "block1", "block2", ….

    Args:
        depth: number of blocks, 1 to 1,000,000.
        kernel: width, or one width per axis, of every convolution (stride 1, padding "same").
        convs: convolutions in a branch, 1 or 2.
        ndim: number of axes.
        channels: channels of the input and of every map.
        activation: name of an activation (gain 1) in front of each convolution after a branch's
            first one, or None for convolutions alone.
        branch_gain: gain C of a branch against the shortcut's 1.
    """
    depth = whole("residual", "depth", depth)
    convs = whole("residual", "convs", convs, maximum=2)
    at_most_limit("residual", "convolutions", depth * convs)
    ndim = grid_axes("residual", ndim)
    kernel = kernel_per_axis("residual", kernel, ndim)
    channels = whole("residual", "channels", channels)
    act = activation_or_none("residual", activation)
    gain = positive("residual", "branch_gain", branch_gain)
    first = Conv(kernel, padding="same", channels=channels, gain=gain)
    second = Conv(kernel, padding="same", channels=channels)
    b = Builder()
    x = b.input(channels=channels)
    endpoints: dict[str, str] = {}
    for block in range(1, depth + 1):
        name = f"block{block}"
        y = b.add(first, x, name=f"{name}.conv1")
        if convs == 2:
            if act is not None:
                y = b.add(act, y, name=f"{name}.act1")
            y = b.add(second, y, name=f"{name}.conv2")
        x = endpoints[name] = b.add(Add(), x, y, name=f"{name}.add")
    return b.build(x, ndim=ndim, name="residual", endpoints=endpoints)


def cifar_resnet(blocks: int = 17) -> Network:
    """A residual network for CIFAR without subsampling, after Luo et al. 2016, section 3.2.

    The paper states 17 residual blocks, no subsampling and a theoretical receptive field of
    74×74 and prints no further detail. This network has one 3×3 convolution of 64 channels, then
    `blocks` blocks of two 3×3 convolutions of 64 channels with batch norm, global average
    pooling and a fully connected layer. Its theoretical receptive field is 3 + 4·blocks: 71×71
    with 17 blocks. No stack of odd kernels at stride 1 has an even one.
    Nodes: "conv1", "bn1", "relu1", "block1.conv1", "block1.bn1", "block1.relu1", …, "block1.add",
    "block1.relu2", …, "avgpool", "fc".
    End points: "conv1", "block1" … "block17".
    """
    blocks = whole("cifar_resnet", "blocks", blocks)
    at_most_limit("cifar_resnet", "convolutions", 2 * blocks)
    conv = Conv(3, padding=1, channels=64)
    b = Builder()
    x = b.input(channels=3)
    x = chain(b, x, ("conv1", conv), ("bn1", BATCH_NORM), ("relu1", RELU))
    endpoints = {"conv1": "conv1"}
    for block in range(1, blocks + 1):
        name = f"block{block}"
        y = chain(
            b,
            x,
            (f"{name}.conv1", conv),
            (f"{name}.bn1", BATCH_NORM),
            (f"{name}.relu1", RELU),
            (f"{name}.conv2", conv),
            (f"{name}.bn2", BATCH_NORM),
        )
        y = b.add(Add(), x, y, name=f"{name}.add")
        x = endpoints[name] = b.add(RELU, y, name=f"{name}.relu2")
    x = chain(b, x, ("avgpool", GlobalPool()), ("fc", FullyConnected(10)))
    return b.build(x, name="cifar_resnet", endpoints=endpoints)


# --- U-Net ----------------------------------------------------------------------------------


def unet(
    depth: int = 4,
    convs: int = 2,
    channels: int = 64,
    up: Literal["transpose", "nearest", "linear"] = "transpose",
    ndim: int = 2,
) -> Network:
    """U-Net: `depth` poolings down, as many steps up, with concatenated skips.

    Source: Ronneberger, Fischer and Brox, "U-Net", 2015, figure 1, but with convolutions padded
    by one pixel, as most implementations have them, so that the output is as large as the input.
    With an input size, every side must be a multiple of 2^depth.
    Nodes: "down1.conv1", "down1.relu1", …, "pool1", …, "bottom.conv1", …, "up1.up", "up1.concat",
    "up1.conv1", …, "out" (a 1×1 convolution to 2 classes). "up1" is the deepest step up.
    End points: "down1" …, "bottom", "up1" …, "out".

    Args:
        depth: number of 2×2 max-poolings, 1 to 30.
        convs: 3×3 convolutions with ReLU per level.
        channels: channels of the first level; each level down has twice as many.
        up: "transpose" is the paper's 2×2 transposed convolution of stride 2, which halves the
            channels; its gain Π stride keeps the variance. "nearest" and "linear" resize by 2
            and leave the channels to the convolution behind the concatenation.
        ndim: number of axes.
    """
    depth = whole("unet", "depth", depth, maximum=MAX_DOUBLINGS)
    convs = whole("unet", "convs", convs)
    at_most_limit("unet", "convolutions", (2 * depth + 1) * convs)
    channels = whole("unet", "channels", channels)
    one_of("unet", "up", up, ("transpose", "nearest", "linear"))
    ndim = grid_axes("unet", ndim)
    b = Builder()
    endpoints: dict[str, str] = {}

    def level(x: str, name: str, width: int) -> str:
        for i in range(1, convs + 1):
            conv = Conv(3, padding=1, channels=width)
            x = chain(b, x, (f"{name}.conv{i}", conv), (f"{name}.relu{i}", RELU))
        endpoints[name] = x
        return x

    x = b.input(channels=3)
    skips: list[str] = []
    for i in range(1, depth + 1):
        skips.append(level(x, f"down{i}", channels * 2 ** (i - 1)))
        x = b.add(MaxPool(2), skips[-1], name=f"pool{i}")
    x = level(x, "bottom", channels * 2**depth)
    for i, skip in enumerate(reversed(skips), 1):
        width = channels * 2 ** (depth - i)
        wider: Layer
        if up == "transpose":
            wider = ConvTranspose(2, stride=2, channels=width, gain=float(2**ndim))
        else:
            wider = Upsample(2, mode=up)
        x = b.add(wider, x, name=f"up{i}.up")
        x = level(b.add(Concat(), skip, x, name=f"up{i}.concat"), f"up{i}", width)
    endpoints["out"] = x = b.add(Conv(1, channels=2), x, name="out")
    return b.build(x, ndim=ndim, name="unet", endpoints=endpoints)


# --- sequences (1-D) ------------------------------------------------------------------------

# The product of a gated unit hands the gradient to both factors: half the gain each makes the
# pair as strong as the shortcut.
GATE_TANH = Activation("tanh", gain=0.5)
GATE_SIGMOID = Activation("sigmoid", gain=0.5)


def wavenet(
    blocks: int = 3,
    layers: int = 10,
    kernel: int = 2,
    *,
    channels: int = 64,
    skip_channels: int = 256,
) -> Network:
    """WaveNet (1-D): causal dilated gated residual layers whose skip outputs are summed.

    Source: van den Oord et al., "WaveNet: a generative model for raw audio", 2016, figure 4;
    the dilation doubles from 1 to 2^(layers−1) in each block. The causal convolution in front
    has the same kernel, so the theoretical receptive field is
    1 + (kernel−1)·(1 + blocks·(2^layers − 1)) samples. The paper prints no channels.
    Nodes: "causal", "block1.layer1.filter", ".tanh", ".gate", ".sigmoid", ".gated", ".skip",
    ".residual", ".add", …, "skips", "relu1", "out1", "relu2", "out2". The last layer has no
    residual output, which nothing would read.
    End points: "block1" … (each block's last sum; the last block's gated units), "skips".

    Args:
        blocks: number of blocks, each starting again at dilation 1.
        layers: layers per block, 1 to 30.
        kernel: taps of the dilated convolutions and of the one in front.
        channels: residual channels.
        skip_channels: channels of the skip outputs.
    """
    blocks = whole("wavenet", "blocks", blocks)
    layers = whole("wavenet", "layers", layers, maximum=MAX_DOUBLINGS)
    at_most_limit("wavenet", "layers", blocks * layers)
    kernel = whole("wavenet", "kernel", kernel)
    channels = whole("wavenet", "channels", channels)
    skip_channels = whole("wavenet", "skip_channels", skip_channels)
    levels = 256  # µ-law levels: channels of the one-hot input and of the logits
    b = Builder()
    x = b.add(
        Conv(kernel, padding="causal", channels=channels), b.input(channels=levels), name="causal"
    )
    skips: list[str] = []
    endpoints: dict[str, str] = {}
    for block in range(1, blocks + 1):
        for layer in range(1, layers + 1):
            name = f"block{block}.layer{layer}"
            conv = Conv(kernel, dilation=2 ** (layer - 1), padding="causal", channels=channels)
            left = chain(b, x, (f"{name}.filter", conv), (f"{name}.tanh", GATE_TANH))
            right = chain(b, x, (f"{name}.gate", conv), (f"{name}.sigmoid", GATE_SIGMOID))
            gated = b.add(Multiply(), left, right, name=f"{name}.gated")
            skips.append(b.add(Conv(1, channels=skip_channels), gated, name=f"{name}.skip"))
            if (block, layer) == (blocks, layers):
                x = gated
                break
            y = b.add(Conv(1, channels=channels), gated, name=f"{name}.residual")
            x = b.add(Add(), x, y, name=f"{name}.add")
        endpoints[f"block{block}"] = x
    endpoints["skips"] = b.add(Add(), *skips, name="skips")
    x = chain(
        b,
        "skips",
        ("relu1", RELU),
        ("out1", Conv(1, channels=skip_channels)),
        ("relu2", RELU),
        ("out2", Conv(1, channels=levels)),
    )
    return b.build(x, ndim=1, name="wavenet", endpoints=endpoints)


def tcn(levels: int = 8, kernel: int = 7, *, channels: int = 25) -> Network:
    """Temporal convolutional network (1-D): two causal dilated convolutions per residual block.

    Source: Bai, Kolter and Koltun, "An empirical evaluation of generic convolutional and
    recurrent networks for sequence modeling", 2018, figure 1; the defaults are its network for
    sequential MNIST. The dilation of block i is 2^i (from 0), so the theoretical receptive field
    is 1 + 2·(kernel−1)·(2^levels − 1) steps. Weight normalisation and dropout are left out.
    Nodes: the authors' "network.0.conv1", "network.0.relu1", "network.0.conv2",
    "network.0.relu2", "network.0.downsample" (first block only), "network.0.add",
    "network.0.relu", ….
    End points: "network.0", "network.1", ….

    Args:
        levels: number of residual blocks, 1 to 30.
        kernel: taps of the dilated convolutions.
        channels: channels of every map.
    """
    levels = whole("tcn", "levels", levels, maximum=MAX_DOUBLINGS)
    kernel = whole("tcn", "kernel", kernel)
    channels = whole("tcn", "channels", channels)
    b = Builder()
    x = b.input(channels=1)
    endpoints: dict[str, str] = {}
    for level in range(levels):
        name = f"network.{level}"
        conv = Conv(kernel, dilation=2**level, padding="causal", channels=channels)
        y = chain(
            b,
            x,
            (f"{name}.conv1", conv),
            (f"{name}.relu1", RELU),
            (f"{name}.conv2", conv),
            (f"{name}.relu2", RELU),
        )
        if level == 0:
            x = b.add(Conv(1, channels=channels), x, name=f"{name}.downsample")
        y = b.add(Add(), x, y, name=f"{name}.add")
        x = endpoints[name] = b.add(RELU, y, name=f"{name}.relu")
    return b.build(x, ndim=1, name="tcn", endpoints=endpoints)
