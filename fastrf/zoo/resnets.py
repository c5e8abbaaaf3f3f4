"""ResNets in three stride conventions.

* torchvision's (also called "v1.5"): a bottleneck strides in its 3×3 convolution: `resnet50()`.
* He et al.'s ("v1"): in its first 1×1 convolution: `resnet50(stride_in="1x1")`.
* TF-Slim's: in the 3×3 convolution of the *last* unit of a block, so that a block's output has
  already been subsampled, and the last block has no stride: `resnet_v1_50_slim()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fastrf.layers import Add, Conv, FullyConnected, GlobalPool, MaxPool
from fastrf.network import Builder, Network
from fastrf.zoo.blocks import BATCH_NORM, RELU, chain, one_of, same_names, slim_conv

StrideIn = Literal["3x3", "1x1"]


def _join(b: Builder, x: str, y: str, prefix: str, relu: str, project: Conv | None) -> str:
    """Shortcut (a projection where given) plus branch, then ReLU, in torchvision's names."""
    if project is not None:
        x = chain(b, x, (f"{prefix}.downsample.0", project), (f"{prefix}.downsample.1", BATCH_NORM))
    y = b.add(Add(), x, y, name=f"{prefix}.add")
    return b.add(RELU, y, name=f"{prefix}.{relu}")


def _torchvision_unit(
    b: Builder, x: str, prefix: str, convs: Sequence[Conv], project: Conv | None
) -> str:
    # The one ReLU module of a unit is called several times: relu, relu_1, … as torch.fx does.
    y = x
    for i, conv in enumerate(convs, 1):
        y = chain(b, y, (f"{prefix}.conv{i}", conv), (f"{prefix}.bn{i}", BATCH_NORM))
        if i < len(convs):
            y = b.add(RELU, y, name=f"{prefix}.relu" + (f"_{i - 1}" if i > 1 else ""))
    return _join(b, x, y, prefix, f"relu_{len(convs) - 1}", project)


def _resnet(
    name: str, units: Sequence[int], bottleneck: bool, stride_in: StrideIn = "3x3"
) -> Network:
    one_of(name, "stride_in", stride_in, ("3x3", "1x1"))
    b = Builder()
    x = chain(
        b,
        b.input(channels=3),
        ("conv1", Conv(7, stride=2, padding=3, channels=64)),
        ("bn1", BATCH_NORM),
        ("relu", RELU),
        ("maxpool", MaxPool(3, stride=2, padding=1)),
    )
    channels = 64
    endpoints: dict[str, str] = {}
    for stage, count in enumerate(units, 1):
        width = 32 * 2**stage
        out = 4 * width if bottleneck else width
        for unit in range(count):
            stride = 2 if stage > 1 and unit == 0 else 1
            if bottleneck:
                first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
                convs = [
                    Conv(1, stride=first, channels=width),
                    Conv(3, stride=second, padding=1, channels=width),
                    Conv(1, channels=out),
                ]
            else:
                convs = [
                    Conv(3, stride=stride, padding=1, channels=width),
                    Conv(3, padding=1, channels=width),
                ]
            project = None
            if stride > 1 or channels != out:
                project = Conv(1, stride=stride, channels=out)
            x = _torchvision_unit(b, x, f"layer{stage}.{unit}", convs, project)
            channels = out
        endpoints[f"layer{stage}"] = x
    x = chain(b, x, ("avgpool", GlobalPool()), ("fc", FullyConnected(1000)))
    return b.build(x, name=name, endpoints=endpoints)


def resnet18() -> Network:
    """ResNet-18 (units of two 3×3 convolutions), as torchvision's `resnet18`.

    Source: He, Zhang, Ren and Sun, "Deep residual learning for image recognition", 2016, table 1.
    Nodes: torchvision's "conv1", "layer1.0.conv1", …, "fc"; the sums are "layer1.0.add".
    End points: "layer1" … "layer4".
    """
    return _resnet("resnet18", (2, 2, 2, 2), bottleneck=False)


def resnet34() -> Network:
    """ResNet-34; source, nodes and end points as in `resnet18`."""
    return _resnet("resnet34", (3, 4, 6, 3), bottleneck=False)


def resnet50(stride_in: StrideIn = "3x3") -> Network:
    """ResNet-50 (bottleneck units), as torchvision's `resnet50`.

    Source, nodes and end points as in `resnet18`.

    Args:
        stride_in: the convolution of a unit that strides: "3x3" is torchvision's ("v1.5"),
            "1x1" is the paper's ("v1"), which changes nothing else. (The authors' Caffe models
            also pool after conv1 with ceil mode instead of padding.)
    """
    return _resnet("resnet50", (3, 4, 6, 3), bottleneck=True, stride_in=stride_in)


def resnet101(stride_in: StrideIn = "3x3") -> Network:
    """ResNet-101; as `resnet50`."""
    return _resnet("resnet101", (3, 4, 23, 3), bottleneck=True, stride_in=stride_in)


def resnet152(stride_in: StrideIn = "3x3") -> Network:
    """ResNet-152; as `resnet50`."""
    return _resnet("resnet152", (3, 8, 36, 3), bottleneck=True, stride_in=stride_in)


def _slim_unit(b: Builder, x: str, scope: str, width: int, stride: int, project: bool) -> str:
    shortcut = x
    if project:
        conv = Conv(1, stride=stride, channels=4 * width)
        shortcut = slim_conv(b, x, f"{scope}/shortcut", conv, None)
    elif stride > 1:
        shortcut = b.add(MaxPool(1, stride=stride), x, name=f"{scope}/shortcut")
    # Slim's conv2d_same pads explicitly, so with a stride too the padding is 1 at every size.
    convs = (
        (Conv(1, channels=width), RELU),
        (Conv(3, stride=stride, padding=1, channels=width), RELU),
        (Conv(1, channels=4 * width), None),
    )
    y = x
    for i, (conv, activation) in enumerate(convs, 1):
        y = slim_conv(b, y, f"{scope}/conv{i}", conv, activation)
    y = b.add(Add(), shortcut, y, name=f"{scope}/add")
    return b.add(RELU, y, name=f"{scope}/Relu")


def _resnet_slim(name: str, units: Sequence[int]) -> Network:
    b = Builder()
    stem = Conv(7, stride=2, padding=3, channels=64)
    x = slim_conv(b, b.input(channels=3), "conv1", stem, RELU)
    x = b.add(MaxPool(3, stride=2, padding="same_upper"), x, name="pool1")
    endpoints = same_names(["conv1", "pool1"])
    for block, count in enumerate(units, 1):
        for unit in range(1, count + 1):
            stride = 2 if unit == count and block < len(units) else 1
            scope = f"block{block}/unit_{unit}/bottleneck_v1"
            x = _slim_unit(b, x, scope, 32 * 2**block, stride, project=unit == 1)
        endpoints[f"block{block}"] = x
    x = chain(b, x, ("pool5", GlobalPool()), ("logits", Conv(1, channels=1000)))
    return b.build(x, name=name, endpoints=endpoints)


def resnet_v1_50_slim() -> Network:
    """ResNet-50 as TF-Slim's `resnet_v1_50`: stride in the last unit of blocks 1, 2 and 3.

    Source: He et al. 2016; TF-Slim's `nets/resnet_v1.py`. Strided convolutions pad a fixed pixel
    on both sides (`conv2d_same`); pool1 has TensorFlow's SAME padding, which depends on the size
    of the map.
    Nodes: TF-Slim's scopes, "block1/unit_1/bottleneck_v1/conv1", ….
    End points: "conv1", "pool1", "block1" … "block4".
    """
    return _resnet_slim("resnet_v1_50_slim", (3, 4, 6, 3))


def resnet_v1_101_slim() -> Network:
    """ResNet-101 as TF-Slim's `resnet_v1_101`; as `resnet_v1_50_slim`."""
    return _resnet_slim("resnet_v1_101_slim", (3, 4, 23, 3))


def resnet_v1_152_slim() -> Network:
    """ResNet-152 as TF-Slim's `resnet_v1_152`; as `resnet_v1_50_slim`."""
    return _resnet_slim("resnet_v1_152_slim", (3, 8, 36, 3))


def resnet_v1_200_slim() -> Network:
    """ResNet-200 as TF-Slim's `resnet_v1_200`; as `resnet_v1_50_slim`."""
    return _resnet_slim("resnet_v1_200_slim", (3, 24, 36, 3))
