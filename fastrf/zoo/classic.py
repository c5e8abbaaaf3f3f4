"""AlexNet, ZFNet and VGG: chains of convolutions and max-pooling with a fully connected head."""

from __future__ import annotations

from collections.abc import Sequence

from fastrf.layers import AdaptivePool, Conv, Dropout, FullyConnected, MaxPool, Norm
from fastrf.network import Builder, Network
from fastrf.zoo.blocks import BATCH_NORM, RELU, chain, one_of, same_names

LRN = Norm("lrn")

CONVS_AND_POOLS = ("conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5")
ENDPOINTS = (*CONVS_AND_POOLS, "fc6", "fc7", "fc8")


def _imagenet_head(b: Builder, x: str, names: Sequence[str]) -> str:
    """Two hidden fully connected layers with ReLU and dropout, and the logits."""
    first, relu6, drop6, second, relu7, drop7, logits = names
    return chain(
        b,
        x,
        (first, FullyConnected(4096)),
        (relu6, RELU),
        (drop6, Dropout(0.5)),
        (second, FullyConnected(4096)),
        (relu7, RELU),
        (drop7, Dropout(0.5)),
        (logits, FullyConnected(1000)),
    )


def alexnet() -> Network:
    """AlexNet in one column, as torchvision's `alexnet`.

    Source: Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014.
    Nodes: torchvision's "features.0" … "classifier.6".
    End points: "conv1" … "conv5" (the convolutions), "pool1", "pool2" and "pool5".
    """
    b = Builder()
    x = chain(
        b,
        b.input(channels=3),
        ("features.0", Conv(11, stride=4, padding=2, channels=64)),
        ("features.1", RELU),
        ("features.2", MaxPool(3, stride=2)),
        ("features.3", Conv(5, padding=2, channels=192)),
        ("features.4", RELU),
        ("features.5", MaxPool(3, stride=2)),
        ("features.6", Conv(3, padding=1, channels=384)),
        ("features.7", RELU),
        ("features.8", Conv(3, padding=1, channels=256)),
        ("features.9", RELU),
        ("features.10", Conv(3, padding=1, channels=256)),
        ("features.11", RELU),
        ("features.12", MaxPool(3, stride=2)),
        ("avgpool", AdaptivePool(6)),
        ("classifier.0", Dropout(0.5)),
        ("classifier.1", FullyConnected(4096)),
        ("classifier.2", RELU),
        ("classifier.3", Dropout(0.5)),
        ("classifier.4", FullyConnected(4096)),
        ("classifier.5", RELU),
        ("classifier.6", FullyConnected(1000)),
    )
    numbers = (0, 2, 3, 5, 6, 8, 10, 12)
    endpoints = {k: f"features.{i}" for k, i in zip(CONVS_AND_POOLS, numbers, strict=True)}
    return b.build(x, name="alexnet", endpoints=endpoints)


def alexnet_v2() -> Network:
    """AlexNet of the same paper, as TF-Slim's `alexnet_v2`: unpadded stem, convolutional head.

    Source: Krizhevsky 2014; TF-Slim's `nets/alexnet.py`.
    Nodes and end points: "conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5",
    "fc6", "fc7", "fc8" (the last three are convolutions); ReLUs are "conv1/Relu", ….
    """
    b = Builder()
    x = b.input(channels=3)
    x = chain(b, x, ("conv1", Conv(11, stride=4, channels=64)), ("conv1/Relu", RELU))
    x = chain(b, x, ("pool1", MaxPool(3, stride=2)))
    x = chain(b, x, ("conv2", Conv(5, padding=2, channels=192)), ("conv2/Relu", RELU))
    x = chain(b, x, ("pool2", MaxPool(3, stride=2)))
    for name, channels in (("conv3", 384), ("conv4", 384), ("conv5", 256)):
        conv = Conv(3, padding=1, channels=channels)
        x = chain(b, x, (name, conv), (f"{name}/Relu", RELU))
    x = chain(
        b,
        x,
        ("pool5", MaxPool(3, stride=2)),
        ("fc6", Conv(5, channels=4096)),
        ("fc6/Relu", RELU),
        ("dropout6", Dropout(0.5)),
        ("fc7", Conv(1, channels=4096)),
        ("fc7/Relu", RELU),
        ("dropout7", Dropout(0.5)),
        ("fc8", Conv(1, channels=1000)),
    )
    return b.build(x, name="alexnet_v2", endpoints=same_names(ENDPOINTS))


def alexnet_dang() -> Network:
    """The AlexNet of 2012 for 227×227 inputs, fully connected layers written as convolutions.

    Source: Krizhevsky, Sutskever and Hinton 2012 (two columns: groups of 2 in conv2, conv4 and
    conv5), the network of Dang Ha The Hien's "A guide to receptive field arithmetic", 2017.
    Nodes and end points: "conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5",
    "fc6", "fc7", "fc8".
    """
    b = Builder()
    x = chain(
        b,
        b.input(channels=3),
        ("conv1", Conv(11, stride=4, channels=96)),
        ("relu1", RELU),
        ("norm1", LRN),
        ("pool1", MaxPool(3, stride=2)),
        ("conv2", Conv(5, padding=2, channels=256, groups=2)),
        ("relu2", RELU),
        ("norm2", LRN),
        ("pool2", MaxPool(3, stride=2)),
        ("conv3", Conv(3, padding=1, channels=384)),
        ("relu3", RELU),
        ("conv4", Conv(3, padding=1, channels=384, groups=2)),
        ("relu4", RELU),
        ("conv5", Conv(3, padding=1, channels=256, groups=2)),
        ("relu5", RELU),
        ("pool5", MaxPool(3, stride=2)),
        ("fc6", FullyConnected(4096, map_size=6)),
        ("relu6", RELU),
        ("drop6", Dropout(0.5)),
        ("fc7", FullyConnected(4096, map_size=1)),
        ("relu7", RELU),
        ("drop7", Dropout(0.5)),
        ("fc8", FullyConnected(1000, map_size=1)),
    )
    return b.build(x, name="alexnet_dang", endpoints=same_names(ENDPOINTS))


def zfnet() -> Network:
    """ZFNet for 224×224 inputs.

    Source: Zeiler and Fergus, "Visualizing and understanding convolutional networks", 2014,
    figure 3. The paper prints map sizes (110, 55, 26, 13, 13, 13, 13, 6), not paddings: one
    pixel in conv1 and unpadded pooling with ceil mode give them all.
    Nodes and end points: "conv1", "pool1", "conv2", "pool2", "conv3", "conv4", "conv5", "pool5",
    "fc6", "fc7", "fc8".
    """
    b = Builder()
    x = chain(
        b,
        b.input(channels=3),
        ("conv1", Conv(7, stride=2, padding=1, channels=96)),
        ("relu1", RELU),
        ("pool1", MaxPool(3, stride=2, ceil_mode=True)),
        ("norm1", LRN),
        ("conv2", Conv(5, stride=2, channels=256)),
        ("relu2", RELU),
        ("pool2", MaxPool(3, stride=2, ceil_mode=True)),
        ("norm2", LRN),
        ("conv3", Conv(3, padding=1, channels=384)),
        ("relu3", RELU),
        ("conv4", Conv(3, padding=1, channels=384)),
        ("relu4", RELU),
        ("conv5", Conv(3, padding=1, channels=256)),
        ("relu5", RELU),
        ("pool5", MaxPool(3, stride=2, ceil_mode=True)),
    )
    x = _imagenet_head(b, x, ("fc6", "relu6", "drop6", "fc7", "relu7", "drop7", "fc8"))
    return b.build(x, name="zfnet", endpoints=same_names(ENDPOINTS))


def _vgg(name: str, convs: Sequence[int], batch_norm: bool) -> Network:
    """`convs` 3×3 convolutions before each of the five poolings."""
    one_of(name, "batch_norm", batch_norm, (False, True))
    b = Builder()
    x = b.input(channels=3)
    endpoints: dict[str, str] = {}
    number = 0
    for stage, (count, channels) in enumerate(zip(convs, (64, 128, 256, 512, 512), strict=True), 1):
        for i in range(1, count + 1):
            conv = Conv(3, padding=1, channels=channels)
            for layer in (conv, BATCH_NORM, RELU) if batch_norm else (conv, RELU):
                x = b.add(layer, x, name=f"features.{number}")
                if layer is conv:
                    endpoints[f"conv{stage}_{i}"] = x
                number += 1
        x = b.add(MaxPool(2), x, name=f"features.{number}")
        endpoints[f"pool{stage}"] = x
        number += 1
    x = b.add(AdaptivePool(7), x, name="avgpool")
    x = _imagenet_head(b, x, [f"classifier.{i}" for i in range(7)])
    return b.build(x, name=name, endpoints=endpoints)


def vgg11(batch_norm: bool = False) -> Network:
    """VGG-11 (configuration A, TF-Slim's `vgg_a`), as torchvision's `vgg11` or `vgg11_bn`.

    Source: Simonyan and Zisserman, "Very deep convolutional networks for large-scale image
    recognition", 2015, table 1. The feature layers are those of TF-Slim too.
    Nodes: torchvision's "features.0" … "classifier.6".
    End points: "conv1_1" … "conv5_2" (the convolutions), "pool1" … "pool5".
    """
    return _vgg("vgg11", (1, 1, 2, 2, 2), batch_norm)


def vgg13(batch_norm: bool = False) -> Network:
    """VGG-13 (configuration B); source, nodes and end points as in `vgg11`, to "conv5_2"."""
    return _vgg("vgg13", (2, 2, 2, 2, 2), batch_norm)


def vgg16(batch_norm: bool = False) -> Network:
    """VGG-16 (configuration D, TF-Slim's `vgg_16`); as in `vgg11`, end points to "conv5_3"."""
    return _vgg("vgg16", (2, 2, 3, 3, 3), batch_norm)


def vgg19(batch_norm: bool = False) -> Network:
    """VGG-19 (configuration E, TF-Slim's `vgg_19`); as in `vgg11`, end points to "conv5_4"."""
    return _vgg("vgg19", (2, 2, 4, 4, 4), batch_norm)
