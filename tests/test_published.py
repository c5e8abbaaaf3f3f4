"""Receptive fields against published tables, number by number.

Conventions: r is the theoretical receptive field in pixels, S the effective stride and P the
effective padding (Araujo, Norris and Sim, Distill 2019: unit 0 sees the pixels −P … −P + r − 1);
Dang Ha The Hien (2017) counts n pixels in a map, calls S the jump j and gives the centre of unit
0's field as `start`, in pixels whose own centres lie at 0.5, 1.5, ….
"""

from __future__ import annotations

from fractions import Fraction

import pytest

import fastrf as rf
from fastrf import zoo

Row = tuple[str, int, int, int]
"""End point, r, S, P."""


# --- TF-Slim: RECEPTIVE_FIELD_TABLE.md of tensorflow/contrib/receptive_field -------------------

# Networks whose paddings do not depend on the size of the input: the table prints the same
# numbers for inputs of unknown size, of 224 and of 321 pixels.
ANY_SIZE: dict[str, list[Row]] = {
    "alexnet_v2": [
        ("conv1", 11, 4, 0),
        ("pool1", 19, 8, 0),
        ("conv2", 51, 8, 16),
        ("conv3", 99, 16, 32),
        ("conv4", 131, 16, 48),
        ("conv5", 163, 16, 64),
        ("pool5", 195, 32, 64),
    ],
    "vgg11": [  # vgg_a
        ("conv1_1", 3, 1, 1),
        ("pool1", 4, 2, 1),
        ("conv2_1", 8, 2, 3),
        ("pool2", 10, 4, 3),
        ("conv3_1", 18, 4, 7),
        ("conv3_2", 26, 4, 11),
        ("pool3", 30, 8, 11),
        ("conv4_1", 46, 8, 19),
        ("conv4_2", 62, 8, 27),
        ("pool4", 70, 16, 27),
        ("conv5_1", 102, 16, 43),
        ("conv5_2", 134, 16, 59),
        ("pool5", 150, 32, 59),
    ],
    "vgg16": [  # vgg_16
        ("conv1_1", 3, 1, 1),
        ("pool1", 6, 2, 2),
        ("conv2_1", 10, 2, 4),
        ("pool2", 16, 4, 6),
        ("conv3_1", 24, 4, 10),
        ("conv3_2", 32, 4, 14),
        ("pool3", 44, 8, 18),
        ("conv4_1", 60, 8, 26),
        ("conv4_2", 76, 8, 34),
        ("pool4", 100, 16, 42),
        ("conv5_1", 132, 16, 58),
        ("conv5_2", 164, 16, 74),
        ("pool5", 212, 32, 90),
    ],
    "inception_v3": [
        ("Conv2d_1a_3x3", 3, 2, 0),
        ("Conv2d_2a_3x3", 7, 2, 0),
        ("Conv2d_2b_3x3", 11, 2, 2),
        ("MaxPool_3a_3x3", 15, 4, 2),
        ("Conv2d_3b_1x1", 15, 4, 2),
        ("Conv2d_4a_3x3", 23, 4, 2),
        ("MaxPool_5a_3x3", 31, 8, 2),
        ("Mixed_5b", 63, 8, 18),
        ("Mixed_5c", 95, 8, 34),
        ("Mixed_5d", 127, 8, 50),
        ("Mixed_6a", 159, 16, 58),
        ("Mixed_6b", 351, 16, 154),
        ("Mixed_6c", 543, 16, 250),
        ("Mixed_6d", 735, 16, 346),
        ("Mixed_6e", 927, 16, 442),
        ("Mixed_7a", 1055, 32, 490),
        ("Mixed_7b", 1183, 32, 554),
        ("Mixed_7c", 1311, 32, 618),
    ],
}

# Networks with TensorFlow's SAME padding: end point, r, S, P at 224, P at 321. Without a size
# the table prints r and S alone.
SAME_PADDING: dict[str, list[tuple[str, int, int, int, int]]] = {
    "mobilenet_v1": [
        ("Conv2d_0", 3, 2, 0, 1),
        ("Conv2d_1_pointwise", 7, 2, 2, 3),
        ("Conv2d_2_pointwise", 11, 4, 2, 5),
        ("Conv2d_3_pointwise", 19, 4, 6, 9),
        ("Conv2d_4_pointwise", 27, 8, 6, 13),
        ("Conv2d_5_pointwise", 43, 8, 14, 21),
        ("Conv2d_6_pointwise", 59, 16, 14, 29),
        ("Conv2d_7_pointwise", 91, 16, 30, 45),
        ("Conv2d_8_pointwise", 123, 16, 46, 61),
        ("Conv2d_9_pointwise", 155, 16, 62, 77),
        ("Conv2d_10_pointwise", 187, 16, 78, 93),
        ("Conv2d_11_pointwise", 219, 16, 94, 109),
        ("Conv2d_12_pointwise", 251, 32, 94, 125),
        ("Conv2d_13_pointwise", 315, 32, 126, 157),
    ],
    "resnet_v1_50_slim": [
        ("block1", 35, 8, 15, 17),
        ("block2", 99, 16, 47, 49),
        ("block3", 291, 32, 143, 145),
        ("block4", 483, 32, 239, 241),
    ],
    "resnet_v1_101_slim": [
        ("block1", 35, 8, 15, 17),
        ("block2", 99, 16, 47, 49),
        ("block3", 835, 32, 415, 417),
        ("block4", 1027, 32, 511, 513),
    ],
    "resnet_v1_152_slim": [
        ("block1", 35, 8, 15, 17),
        ("block2", 163, 16, 79, 81),
        ("block3", 1315, 32, 655, 657),
        ("block4", 1507, 32, 751, 753),
    ],
    "resnet_v1_200_slim": [
        ("block1", 35, 8, 15, 17),
        ("block2", 419, 16, 207, 209),
        ("block3", 1571, 32, 783, 785),
        ("block4", 1763, 32, 879, 881),
    ],
}


@pytest.mark.parametrize("input_size", [None, 224, 321])
@pytest.mark.parametrize(("name", "row"), [(n, r) for n, rows in ANY_SIZE.items() for r in rows])
def test_tf_slim_explicit_padding(name: str, row: Row, input_size: int | None) -> None:
    """TF-Slim, r/S/P of Araujo et al., paddings that do not depend on the size."""
    endpoint, size, stride, padding = row
    field = rf.receptive_field(zoo.get(name), output=endpoint, input_size=input_size)
    assert field.aligned
    assert field.size == (size, size)
    assert field.stride == (stride, stride)
    assert field.padding == (padding, padding)


@pytest.mark.parametrize(
    ("name", "row"), [(n, r) for n, rows in SAME_PADDING.items() for r in rows]
)
def test_tf_slim_same_padding(name: str, row: tuple[str, int, int, int, int]) -> None:
    """TF-Slim, r/S/P of Araujo et al., TensorFlow's SAME padding at 224 and at 321 pixels."""
    endpoint, size, stride, padding_224, padding_321 = row
    net = zoo.get(name)
    for input_size, padding in ((None, None), (224, padding_224), (321, padding_321)):
        field = rf.receptive_field(net, output=endpoint, input_size=input_size)
        assert field.size == (size, size)
        assert field.stride == (stride, stride)
        if padding is not None:
            assert field.aligned
            assert field.padding == (padding, padding)


# --- torchvision: a bottleneck strides in its 3×3 convolution ("v1.5") -------------------------

TORCHVISION: dict[str, list[Row]] = {
    "resnet18": [
        ("layer1", 43, 4, 21),
        ("layer2", 99, 8, 49),
        ("layer3", 211, 16, 105),
        ("layer4", 435, 32, 217),
    ],
    "resnet50": [
        ("layer1", 35, 4, 17),
        ("layer2", 91, 8, 45),
        ("layer3", 267, 16, 133),
        ("layer4", 427, 32, 213),
    ],
}


@pytest.mark.parametrize("input_size", [None, 224])
@pytest.mark.parametrize(("name", "row"), [(n, r) for n, rows in TORCHVISION.items() for r in rows])
def test_torchvision_resnets(name: str, row: Row, input_size: int | None) -> None:
    """torchvision's ResNets, r/S/P of Araujo et al."""
    endpoint, size, stride, padding = row
    field = rf.receptive_field(zoo.get(name), output=endpoint, input_size=input_size)
    assert field.aligned
    assert field.size == (size, size)
    assert field.stride == (stride, stride)
    assert field.padding == (padding, padding)


# --- Dang Ha The Hien 2017: AlexNet at 227 pixels, fc6 as a convolution ------------------------

DANG = [
    # layer, n, j, r, start
    ("conv1", 55, 4, 11, Fraction(11, 2)),
    ("pool1", 27, 8, 19, Fraction(19, 2)),
    ("conv2", 27, 8, 51, Fraction(19, 2)),
    ("pool2", 13, 16, 67, Fraction(35, 2)),
    ("conv3", 13, 16, 99, Fraction(35, 2)),
    ("conv4", 13, 16, 131, Fraction(35, 2)),
    ("conv5", 13, 16, 163, Fraction(35, 2)),
    ("pool5", 6, 32, 195, Fraction(67, 2)),
    ("fc6", 1, 32, 355, Fraction(227, 2)),
]


def test_dang_alexnet_table() -> None:
    """Dang's table of (n, j, r, start), in one pass over the network."""
    field = rf.receptive_field(zoo.alexnet_dang(), output="fc6", input_size=227)
    rows = {row.name: row for row in field.layers}
    for name, n, jump, size, start in DANG:
        row = rows[name]
        assert row.shape == (n, n), name
        assert row.stride == (jump, jump), name
        assert row.size == (size, size), name
        assert row.start == (start, start), name


@pytest.mark.parametrize(("name", "n", "jump", "size", "start"), DANG)
def test_dang_alexnet_layer_by_layer(
    name: str, n: int, jump: int, size: int, start: Fraction
) -> None:
    """The same numbers when each layer is asked for, and the conversion to Araujo's P."""
    field = rf.receptive_field(zoo.alexnet_dang(), output=name, input_size=227)
    assert field.stride == (jump, jump)
    assert field.size == (size, size)
    assert field.start == (start, start)
    # Pixel u has its centre at u + 1/2 in Dang's convention: start = −P + r/2.
    padding = Fraction(size, 2) - start
    assert field.padding == (padding, padding)
    assert field.box((n - 1, n - 1)) == (
        ((n - 1) * jump - padding, (n - 1) * jump - padding + size - 1),
    ) * 2  # fmt: skip


# --- Araujo, Norris and Sim, Distill 2019 ------------------------------------------------------


def test_distill_small_example() -> None:
    """Kernel 3, padding 1, stride 3, then kernel 2: feature 0 sees the pixels −1 … 4."""
    net = rf.Sequential(rf.Conv(3, stride=3, padding=1), rf.Conv(2), ndim=1)
    field = rf.receptive_field(net)
    assert field.box((0,)) == ((-1, 4),)
    assert (field.size, field.stride, field.padding) == ((6,), (3,), (1,))


def test_distill_misaligned_network() -> None:
    """{k5 s2 padding (2, 1)} + {k3; k3}: the union's size depends on the feature's index."""
    net = rf.Network(
        {
            "left": (rf.Conv(5, stride=2, padding=((2, 1),)), "input"),
            "right1": (rf.Conv(3), "input"),
            "right2": (rf.Conv(3), "right1"),
            "sum": (rf.Add(), "left", "right2"),
        },
        ndim=1,
    )
    field = rf.receptive_field(net)
    assert not field.aligned
    boxes = [field.box((u,))[0] for u in range(5)]
    # Feature u sees [2u − 2, 2u + 2] through the left path and [u, u + 4] through the right one.
    assert boxes == [(-2, 4), (0, 5), (2, 6), (3, 8), (4, 10)]
    assert [hi - lo + 1 for lo, hi in boxes] == [7, 6, 5, 6, 7]
