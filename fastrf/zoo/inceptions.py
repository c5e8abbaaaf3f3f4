"""GoogLeNet and Inception v3: parallel branches, concatenated."""

from __future__ import annotations

from fastrf.layers import AvgPool, Concat, Conv, Dropout, FullyConnected, GlobalPool, MaxPool
from fastrf.network import Builder, Network
from fastrf.zoo.blocks import chain, conv_bn_relu, one_of

Kernel = int | tuple[int, int]
Unit = tuple[str, int, Kernel]
"""Name, channels and kernel of a padded convolution of stride 1."""


def _path(b: Builder, x: str, prefix: str, *units: Unit) -> str:
    """Padded units (convolution, batch norm, ReLU) one behind the other."""
    for name, channels, kernel in units:
        conv = Conv(kernel, padding="same", channels=channels)
        x = conv_bn_relu(b, x, f"{prefix}.{name}", conv)
    return x


def _reduce(b: Builder, x: str, name: str, channels: int) -> str:
    """The unpadded 3×3 unit of stride 2 that halves the map."""
    return conv_bn_relu(b, x, name, Conv(3, stride=2, channels=channels))


# --- GoogLeNet ------------------------------------------------------------------------------


def _inception_module(
    b: Builder, x: str, name: str, channels: tuple[int, ...], branch3_kernel: int
) -> str:
    c1, r3, c3, r5, c5, proj = channels
    pool = b.add(MaxPool(3, stride=1, padding=1), x, name=f"{name}.branch4.0")
    ends = (
        _path(b, x, name, ("branch1", c1, 1)),
        _path(b, x, name, ("branch2.0", r3, 1), ("branch2.1", c3, 3)),
        _path(b, x, name, ("branch3.0", r5, 1), ("branch3.1", c5, branch3_kernel)),
        _path(b, pool, name, ("branch4.1", proj, 1)),
    )
    return b.add(Concat(), *ends, name=name)


GOOGLENET_STAGES = {
    # 1×1; 3×3 reduce, 3×3; 5×5 reduce, 5×5; pool projection (table 1 of the paper)
    3: {
        "a": (64, 96, 128, 16, 32, 32),
        "b": (128, 128, 192, 32, 96, 64),
    },
    4: {
        "a": (192, 96, 208, 16, 48, 64),
        "b": (160, 112, 224, 24, 64, 64),
        "c": (128, 128, 256, 24, 64, 64),
        "d": (112, 144, 288, 32, 64, 64),
        "e": (256, 160, 320, 32, 128, 128),
    },
    5: {
        "a": (256, 160, 320, 32, 128, 128),
        "b": (384, 192, 384, 48, 128, 128),
    },
}


def googlenet(branch3_kernel: int = 3) -> Network:
    """GoogLeNet (Inception v1) with batch norm, as torchvision's `googlenet`.

    Source: Szegedy et al., "Going deeper with convolutions", 2015, table 1. The auxiliary
    classifiers, which exist in training only, are left out.
    Nodes: torchvision's "conv1.conv", "inception3a.branch2.0.conv", …, "fc".
    End points: "conv1", "conv2", "conv3", "maxpool1" … "maxpool4", "inception3a" …
    "inception5b".

    Args:
        branch3_kernel: 3 is torchvision's (and TF-Slim's) kernel of the third branch, 5 the
            paper's.
    """
    one_of("googlenet", "branch3_kernel", branch3_kernel, (3, 5))
    b = Builder()
    x = b.input(channels=3)
    endpoints: dict[str, str] = {}

    def pool(x: str, number: int, kernel: int) -> str:
        name = f"maxpool{number}"
        endpoints[name] = b.add(MaxPool(kernel, stride=2, ceil_mode=True), x, name=name)
        return name

    def unit(x: str, name: str, conv: Conv) -> str:
        endpoints[name] = conv_bn_relu(b, x, name, conv)
        return endpoints[name]

    x = unit(x, "conv1", Conv(7, stride=2, padding=3, channels=64))
    x = pool(x, 1, 3)
    x = unit(x, "conv2", Conv(1, channels=64))
    x = unit(x, "conv3", Conv(3, padding=1, channels=192))
    x = pool(x, 2, 3)
    for stage, modules in GOOGLENET_STAGES.items():
        if stage > 3:
            x = pool(x, stage - 1, 3 if stage == 4 else 2)
        for letter, channels in modules.items():
            name = f"inception{stage}{letter}"
            x = endpoints[name] = _inception_module(b, x, name, channels, branch3_kernel)
    x = chain(
        b, x, ("avgpool", GlobalPool()), ("dropout", Dropout(0.2)), ("fc", FullyConnected(1000))
    )
    return b.build(x, name="googlenet", endpoints=endpoints)


# --- Inception v3 ---------------------------------------------------------------------------


def _pooled(b: Builder, x: str, name: str, channels: int) -> str:
    pool = b.add(AvgPool(3, stride=1, padding=1), x, name=f"{name}.avgpool")
    return _path(b, pool, name, ("branch_pool", channels, 1))


def _inception_a(b: Builder, x: str, name: str, pool_channels: int) -> str:
    double = [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)]
    ends = (
        _path(b, x, name, ("branch1x1", 64, 1)),
        _path(b, x, name, ("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)),
        _path(b, x, name, *double),
        _pooled(b, x, name, pool_channels),
    )
    return b.add(Concat(), *ends, name=name)


def _inception_b(b: Builder, x: str, name: str) -> str:
    double = _path(b, x, name, ("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3))
    ends = (
        _reduce(b, x, f"{name}.branch3x3", 384),
        _reduce(b, double, f"{name}.branch3x3dbl_3", 96),
        b.add(MaxPool(3, stride=2), x, name=f"{name}.maxpool"),
    )
    return b.add(Concat(), *ends, name=name)


def _inception_c(b: Builder, x: str, name: str, c7: int) -> str:
    single: list[Unit] = [
        ("branch7x7_1", c7, 1),
        ("branch7x7_2", c7, (1, 7)),
        ("branch7x7_3", 192, (7, 1)),
    ]
    double: list[Unit] = [
        ("branch7x7dbl_1", c7, 1),
        ("branch7x7dbl_2", c7, (7, 1)),
        ("branch7x7dbl_3", c7, (1, 7)),
        ("branch7x7dbl_4", c7, (7, 1)),
        ("branch7x7dbl_5", 192, (1, 7)),
    ]
    ends = (
        _path(b, x, name, ("branch1x1", 192, 1)),
        _path(b, x, name, *single),
        _path(b, x, name, *double),
        _pooled(b, x, name, 192),
    )
    return b.add(Concat(), *ends, name=name)


def _inception_d(b: Builder, x: str, name: str) -> str:
    small = _path(b, x, name, ("branch3x3_1", 192, 1))
    wide: list[Unit] = [
        ("branch7x7x3_1", 192, 1),
        ("branch7x7x3_2", 192, (1, 7)),
        ("branch7x7x3_3", 192, (7, 1)),
    ]
    ends = (
        _reduce(b, small, f"{name}.branch3x3_2", 320),
        _reduce(b, _path(b, x, name, *wide), f"{name}.branch7x7x3_4", 192),
        b.add(MaxPool(3, stride=2), x, name=f"{name}.maxpool"),
    )
    return b.add(Concat(), *ends, name=name)


def _inception_e(b: Builder, x: str, name: str) -> str:
    def forked(at: str, row: str, column: str) -> tuple[str, str]:
        wide = _path(b, at, name, (row, 384, (1, 3)))
        return wide, _path(b, at, name, (column, 384, (3, 1)))

    single = _path(b, x, name, ("branch3x3_1", 384, 1))
    double = _path(b, x, name, ("branch3x3dbl_1", 448, 1), ("branch3x3dbl_2", 384, 3))
    ends = (
        _path(b, x, name, ("branch1x1", 320, 1)),
        *forked(single, "branch3x3_2a", "branch3x3_2b"),
        *forked(double, "branch3x3dbl_3a", "branch3x3dbl_3b"),
        _pooled(b, x, name, 192),
    )
    return b.add(Concat(), *ends, name=name)


def inception_v3() -> Network:
    """Inception v3 (299×299 inputs), as torchvision's `inception_v3` without auxiliary head.

    Source: Szegedy et al., "Rethinking the Inception architecture for computer vision", 2016;
    torchvision's and TF-Slim's networks have the same convolutions and paddings.
    Nodes: torchvision's "Conv2d_1a_3x3.conv", "Mixed_5b.branch5x5_2.conv", …, "fc".
    End points (TF-Slim's): "Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_3a_3x3",
    "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_5a_3x3", "Mixed_5b" … "Mixed_5d", "Mixed_6a" …
    "Mixed_6e", "Mixed_7a" … "Mixed_7c".
    """
    b = Builder()
    x = b.input(channels=3)
    endpoints: dict[str, str] = {}
    for name, layer in (
        ("Conv2d_1a_3x3", Conv(3, stride=2, channels=32)),
        ("Conv2d_2a_3x3", Conv(3, channels=32)),
        ("Conv2d_2b_3x3", Conv(3, padding=1, channels=64)),
        ("MaxPool_3a_3x3", MaxPool(3, stride=2)),
        ("Conv2d_3b_1x1", Conv(1, channels=80)),
        ("Conv2d_4a_3x3", Conv(3, channels=192)),
        ("MaxPool_5a_3x3", MaxPool(3, stride=2)),
    ):
        if isinstance(layer, Conv):
            x = conv_bn_relu(b, x, name, layer)
        else:
            x = b.add(layer, x, name=name)
        endpoints[name] = x
    for name, pool_channels in (("Mixed_5b", 32), ("Mixed_5c", 64), ("Mixed_5d", 64)):
        x = endpoints[name] = _inception_a(b, x, name, pool_channels)
    x = endpoints["Mixed_6a"] = _inception_b(b, x, "Mixed_6a")
    for name, c7 in (("Mixed_6b", 128), ("Mixed_6c", 160), ("Mixed_6d", 160), ("Mixed_6e", 192)):
        x = endpoints[name] = _inception_c(b, x, name, c7)
    x = endpoints["Mixed_7a"] = _inception_d(b, x, "Mixed_7a")
    for name in ("Mixed_7b", "Mixed_7c"):
        x = endpoints[name] = _inception_e(b, x, name)
    x = chain(
        b, x, ("avgpool", GlobalPool()), ("dropout", Dropout(0.5)), ("fc", FullyConnected(1000))
    )
    return b.build(x, name="inception_v3", endpoints=endpoints)
