"""MobileNets, DenseNet and Darknet."""

from __future__ import annotations

from fastrf.layers import (
    Add,
    AvgPool,
    Concat,
    Conv,
    Dropout,
    FullyConnected,
    GlobalPool,
    Layer,
    MaxPool,
)
from fastrf.network import Builder, Network
from fastrf.zoo.blocks import (
    BATCH_NORM,
    LEAKY_RELU,
    RELU,
    RELU6,
    chain,
    same_names,
    slim_conv,
)


def mobilenet_v1() -> Network:
    """MobileNet v1 of width 1, as TF-Slim's `mobilenet_v1`.

    Source: Howard et al., "MobileNets", 2017, table 1; TF-Slim's `nets/mobilenet_v1.py`.
    TensorFlow's SAME padding throughout: with a stride it depends on the size of the map.
    Nodes and end points: "Conv2d_0", "Conv2d_1_depthwise", "Conv2d_1_pointwise" …
    "Conv2d_13_pointwise"; norms and activations are "Conv2d_0/BatchNorm", "Conv2d_0/Relu6".
    """
    b = Builder()
    stem = Conv(3, stride=2, padding="same_upper", channels=32)
    x = slim_conv(b, b.input(channels=3), "Conv2d_0", stem, RELU6)
    units = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2)]
    units += [(512, 1)] * 5 + [(1024, 2), (1024, 1)]
    names = ["Conv2d_0"]
    for i, (channels, stride) in enumerate(units, 1):
        depthwise = Conv(3, stride=stride, padding="same_upper", groups="depthwise")
        pointwise = Conv(1, channels=channels)
        for kind, conv in (("depthwise", depthwise), ("pointwise", pointwise)):
            names.append(f"Conv2d_{i}_{kind}")
            x = slim_conv(b, x, names[-1], conv, RELU6)
    x = chain(
        b,
        x,
        ("AvgPool_1a", GlobalPool()),
        ("Dropout_1b", Dropout(0.001)),
        ("Conv2d_1c_1x1", Conv(1, channels=1000)),
    )
    return b.build(x, name="mobilenet_v1", endpoints=same_names(names))


MOBILENET_V2_STAGES = (
    # expansion, channels, units, stride of the first (table 2 of the paper)
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def mobilenet_v2() -> Network:
    """MobileNet v2 of width 1, as torchvision's `mobilenet_v2` (padding of 1 on both sides).

    Source: Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", 2018.
    Nodes: torchvision's "features.0.0" … "classifier.1"; the sums are "features.3.add".
    End points: "features.0" … "features.18".
    """
    b = Builder()

    def unit(x: str, prefix: str, conv: Conv) -> str:
        return chain(
            b, x, (f"{prefix}.0", conv), (f"{prefix}.1", BATCH_NORM), (f"{prefix}.2", RELU6)
        )

    stem = Conv(3, stride=2, padding=1, channels=32)
    x = unit(b.input(channels=3), "features.0", stem)
    endpoints = {"features.0": x}
    channels = 32
    for expansion, out, units, first_stride in MOBILENET_V2_STAGES:
        for i in range(units):
            name = f"features.{len(endpoints)}"
            stride = first_stride if i == 0 else 1
            y, step = x, 0
            if expansion > 1:
                y = unit(y, f"{name}.conv.0", Conv(1, channels=expansion * channels))
                step = 1
            spatial = Conv(3, stride=stride, padding=1, groups="depthwise")
            y = unit(y, f"{name}.conv.{step}", spatial)
            y = chain(
                b,
                y,
                (f"{name}.conv.{step + 1}", Conv(1, channels=out)),
                (f"{name}.conv.{step + 2}", BATCH_NORM),
            )
            if stride == 1 and channels == out:
                y = b.add(Add(), x, y, name=f"{name}.add")
            x = endpoints[name] = y
            channels = out
    x = endpoints["features.18"] = unit(x, "features.18", Conv(1, channels=1280))
    x = chain(
        b,
        x,
        ("avgpool", GlobalPool()),
        ("classifier.0", Dropout(0.2)),
        ("classifier.1", FullyConnected(1000)),
    )
    return b.build(x, name="mobilenet_v2", endpoints=endpoints)


def densenet121() -> Network:
    """DenseNet-121 (growth 32, pre-activation), as torchvision's `densenet121`.

    Source: Huang et al., "Densely connected convolutional networks", 2017, table 1.
    Nodes: torchvision's "features.conv0", "features.denseblock1.denselayer1.conv1", …; the
    concatenations are "features.denseblock1.denselayer2.concat" and "features.denseblock1".
    End points: "pool0", "denseblock1" … "denseblock4", "transition1" … "transition3", "norm5".
    """
    growth, bottleneck, channels = 32, 4 * 32, 64
    b = Builder()
    x = chain(
        b,
        b.input(channels=3),
        ("features.conv0", Conv(7, stride=2, padding=3, channels=channels)),
        ("features.norm0", BATCH_NORM),
        ("features.relu0", RELU),
        ("features.pool0", MaxPool(3, stride=2, padding=1)),
    )
    endpoints = {"pool0": x}
    for block, layers in enumerate((6, 12, 24, 16), 1):
        scope = f"features.denseblock{block}"
        maps = [x]
        for i in range(1, layers + 1):
            prefix = f"{scope}.denselayer{i}"
            y = x if i == 1 else b.add(Concat(), *maps, name=f"{prefix}.concat")
            steps: list[tuple[str, Layer]] = [
                ("norm1", BATCH_NORM),
                ("relu1", RELU),
                ("conv1", Conv(1, channels=bottleneck)),
                ("norm2", BATCH_NORM),
                ("relu2", RELU),
                ("conv2", Conv(3, padding=1, channels=growth)),
            ]
            maps.append(chain(b, y, *((f"{prefix}.{name}", layer) for name, layer in steps)))
        x = endpoints[f"denseblock{block}"] = b.add(Concat(), *maps, name=scope)
        channels += layers * growth
        if block < 4:
            channels //= 2
            name = f"features.transition{block}"
            x = endpoints[f"transition{block}"] = chain(
                b,
                x,
                (f"{name}.norm", BATCH_NORM),
                (f"{name}.relu", RELU),
                (f"{name}.conv", Conv(1, channels=channels)),
                (f"{name}.pool", AvgPool(2)),
            )
    x = endpoints["norm5"] = b.add(BATCH_NORM, x, name="features.norm5")
    x = chain(b, x, ("relu", RELU), ("avgpool", GlobalPool()), ("classifier", FullyConnected(1000)))
    return b.build(x, name="densenet121", endpoints=endpoints)


def darknet53() -> Network:
    """Darknet-53, the backbone of YOLOv3 (leaky ReLU, strided convolutions, no pooling).

    Source: Redmon and Farhadi, "YOLOv3: an incremental improvement", 2018, table 1, and the
    authors' `darknet53.cfg`.
    Nodes: "conv0.conv", "stage1.down.conv", "stage1.block1.conv1.conv", …; the sums are
    "stage1.block1.add".
    End points: "stage1" … "stage5"; YOLOv3 reads stages 3, 4 and 5 (layers 36, 61 and 74 of its
    configuration file).
    """
    b = Builder()

    def unit(x: str, name: str, conv: Conv) -> str:
        return chain(
            b,
            x,
            (f"{name}.conv", conv),
            (f"{name}.bn", BATCH_NORM),
            (f"{name}.leaky_relu", LEAKY_RELU),
        )

    x = unit(b.input(channels=3), "conv0", Conv(3, padding=1, channels=32))
    endpoints: dict[str, str] = {}
    for stage, blocks in enumerate((1, 2, 8, 8, 4), 1):
        channels = 32 * 2**stage
        down = Conv(3, stride=2, padding=1, channels=channels)
        x = unit(x, f"stage{stage}.down", down)
        for block in range(1, blocks + 1):
            name = f"stage{stage}.block{block}"
            y = unit(x, f"{name}.conv1", Conv(1, channels=channels // 2))
            y = unit(y, f"{name}.conv2", Conv(3, padding=1, channels=channels))
            x = b.add(Add(), x, y, name=f"{name}.add")
        endpoints[f"stage{stage}"] = x
    x = chain(b, x, ("avgpool", GlobalPool()), ("fc", FullyConnected(1000)))
    return b.build(x, name="darknet53", endpoints=endpoints)
