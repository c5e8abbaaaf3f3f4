"""Published receptive-field arithmetic: Dang Ha The Hien's AlexNet (2017), the examples and the
network table of Araujo, Norris and Sim (Distill, 2019), and stacks along a line: dilated and causal
(van den Oord et al. 2016; Bai et al. 2018), strided and transposed in turn.

What was printed stands beside what `fastrf.receptive_field` returns; tests/test_published.py holds
the whole tables.
"""

from __future__ import annotations

from collections.abc import Iterator

import fastrf as rf
from bench.paper.tables import Section, Table

DANG = {
    "conv1": (55, 4, 11, 5.5), "pool1": (27, 8, 19, 9.5), "conv2": (27, 8, 51, 9.5),
    "pool2": (13, 16, 67, 17.5), "conv3": (13, 16, 99, 17.5), "conv4": (13, 16, 131, 17.5),
    "conv5": (13, 16, 163, 17.5), "pool5": (6, 32, 195, 33.5), "fc6": (1, 32, 355, 113.5),
}  # fmt: skip
"""n, j, r and start of every layer of AlexNet on 227 pixels, fc6 as a convolution."""

DISTILL = {
    ("alexnet_v2", "pool5"): (195, 32, 64), ("vgg16", "pool5"): (212, 32, 90),
    ("vgg11", "pool5"): (150, 32, 59), ("inception_v3", "Mixed_7c"): (1311, 32, 618),
}  # fmt: skip
"""r, S and P of the last map of networks whose padding does not depend on the image."""

DISTILL_AT_224 = {
    ("mobilenet_v1", "Conv2d_13_pointwise"): (315, 32, 126),
    ("resnet_v1_50_slim", "block4"): (483, 32, 239),
    ("resnet_v1_101_slim", "block4"): (1027, 32, 511),
}
"""The same on 224 pixels, of networks whose padding does."""

MISALIGNED = (7, 6, 5, 6, 7)
"""Sizes of the fields of units 0 to 4 of Distill's misaligned example."""


def dang() -> Section:
    """The walk-through of AlexNet."""
    layers = rf.receptive_field(rf.zoo.alexnet_dang(), input_size=227).layers
    rows = []
    for name, printed in DANG.items():
        row = layers.named(name)
        ours = (row.shape[0], int(row.stride[0]), int(row.size[0]), float(row.start[0]))
        rows.append((name, *printed, *ours))
    header = (
        "layer",
        "n printed",
        "j printed",
        "r printed",
        "start printed",
        "n",
        "j",
        "r",
        "start",
    )
    return Section(
        "dang",
        "AlexNet, layer by layer",
        "n: pixels of the map; j: jump between neighbours; r: size of the field; start: centre of "
        "the first unit's, in pixels whose own centres lie at 0.5, 1.5, …",
        {"AlexNet on 227 × 227": Table(header, tuple(rows))},
    )


def distill() -> Section:
    """The network table and the two examples."""
    rows = []
    for size, table in ((None, DISTILL), (224, DISTILL_AT_224)):
        for (name, end), printed in table.items():
            net = rf.zoo.get(name)
            found = rf.receptive_field(net, net.resolve(end), input_size=size)
            ours = (int(found.size[0]), int(found.stride[0]), int(found.padding[0]))
            rows.append((f"{name}, {end}", *printed, *ours))
    header = ("network, end point", "r printed", "S printed", "P printed", "r", "S", "P")
    line = rf.receptive_field(rf.Sequential(rf.Conv((3,), stride=3, padding=1), rf.Conv((2,))))
    example = rf.Sequential(
        rf.Parallel(
            rf.Conv((5,), stride=2, padding=((2, 1),)),
            [rf.Conv((3,)), rf.Conv((3,))],
        )
    )
    boxes = rf.receptive_field(example)
    ends = [boxes.box(u)[0] for u in range(5)]
    units = [
        (u, printed, high - low + 1)
        for u, printed, (low, high) in zip(range(5), MISALIGNED, ends, strict=True)
    ]
    return Section(
        "distill",
        "Distill's networks and examples",
        "r, S and P are the size, the stride and the padding of the whole network: unit u sees the "
        f"pixels uS − P to uS − P + r − 1. Behind 3 taps of stride 3 padded by 1, the first of two "
        f"taps sees pixels {line.box(0)[0][0]} to {line.box(0)[0][1]}. Where two branches are not "
        f"aligned, sizes depend on the unit; aligned here: {boxes.aligned}.",
        {
            "Networks": Table(header, tuple(rows)),
            "5 taps of stride 2 padded by (2, 1), beside two layers of 3 taps": Table(
                ("unit", "printed size", "size"), tuple(units)
            ),
        },
    )


def lines() -> Section:
    """Dilated, causal and transposed stacks along a line."""
    rows = []
    for layers in (3, 4, 10):
        stack = [rf.Conv((2,), dilation=2**i, padding="causal") for i in range(layers)]
        found = rf.receptive_field(rf.Sequential(*stack))
        rows.append(
            (
                f"causal, kernel 2, dilations 1 … {2 ** (layers - 1)}",
                "2^L",
                2**layers,
                int(found.size[0]),
            )
        )
    for blocks in (1, 3):
        found = rf.receptive_field(rf.zoo.wavenet(blocks))
        printed = 1 + 1 + blocks * (2**10 - 1)
        rows.append(
            (
                f"WaveNet, {blocks} × 10 layers behind one",
                "2 + B(2^L − 1)",
                printed,
                int(found.size[0]),
            )
        )
    for levels, kernel in ((4, 3), (8, 7)):
        found = rf.receptive_field(rf.zoo.tcn(levels, kernel))
        printed = 1 + 2 * (kernel - 1) * (2**levels - 1)
        rows.append(
            (
                f"TCN, {levels} levels, kernel {kernel}",
                "1 + 2(k − 1)(2^L − 1)",
                printed,
                int(found.size[0]),
            )
        )
    down = rf.Conv((4,), stride=2, padding=1)
    up = rf.ConvTranspose((4,), stride=2, padding=1)
    stack = rf.receptive_field(rf.Sequential(down, up, down, up))
    ends = [stack.box(u)[0] for u in range(4)]
    phases = tuple(
        (u, low, high, high - low + 1) for u, (low, high) in zip(range(4), ends, strict=True)
    )
    return Section(
        "lines",
        "Stacks along a line",
        "Causal and dilated stacks against their closed formulas. In a stack of strided and "
        "transposed layers in turn, units in the same place of the stride see fields of the same "
        f"size; here every {stack.period[0]} of them.",
        {
            "Sizes": Table(("stack", "formula", "by formula", "size"), tuple(rows)),
            "Kernel 4, stride 2, down, up, down, up": Table(
                ("unit", "first pixel", "last pixel", "size"), phases
            ),
        },
    )


def sections() -> Iterator[Section]:
    """All of them."""
    for experiment in (dang, distill, lines):
        yield experiment()
