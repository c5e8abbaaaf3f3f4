"""The oracles, checked against each other and against published numbers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import naive
import numpy as np
import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402 - only where torch is installed
import torch_oracle  # noqa: E402

EPS = np.finfo(np.float64).eps
Node = dict[str, Any]


def chain(*layers: Node, source: str = "x", prefix: str = "n") -> list[Node]:
    """Layers one after the other; n1 is the first, and the input is x."""
    nodes: list[Node] = [{"name": "x", "op": "input", "inputs": []}] if source == "x" else []
    for i, layer in enumerate(layers, 1):
        nodes.append({"name": f"{prefix}{i}", "inputs": [source], **layer})
        source = nodes[-1]["name"]
    return nodes


def conv(kernel: Any, stride: Any = 1, lo: Any = 0, hi: Any = None, **more: Any) -> Node:
    hi = lo if hi is None else hi
    return {"op": "conv", "kernel": kernel, "stride": stride, "lo": lo, "hi": hi, **more}


def transposed(kernel: Any, stride: Any = 1, lo: Any = 0, hi: Any = None, **more: Any) -> Node:
    return {**conv(kernel, stride, lo, hi, **more), "op": "conv_transpose"}


def maxpool(kernel: Any, stride: Any, lo: Any = 0, hi: Any = None, **more: Any) -> Node:
    return {**conv(kernel, stride, lo, hi, **more), "op": "maxpool"}


def avgpool(kernel: Any, stride: Any, lo: Any = 0, hi: Any = None, **more: Any) -> Node:
    return {**conv(kernel, stride, lo, hi, **more), "op": "avgpool"}


def op(name: str, **more: Any) -> Node:
    return {"op": name, **more}


def ramp(*shape: int) -> np.ndarray:
    """Unequal tap variances with no symmetry, so that a flipped or transposed kernel shows."""
    return (np.arange(math.prod(shape), dtype=float).reshape(shape) + 1) ** 1.5


def residual(*branch: Node, before: list[Node]) -> list[Node]:
    source = before[-1]["name"]
    inner = chain(*branch, source=source, prefix=f"{source}b")
    return [
        *before,
        *inner,
        {"name": f"{source}+", "op": "add", "inputs": [source, inner[-1]["name"]]},
    ]


def encoder_decoder() -> list[Node]:
    """A U-Net of one level: its skip meets a transposed convolution in a concatenation."""
    down = chain(conv(3, lo=1), conv(3, lo=1), maxpool(2, 2), conv(3, lo=1))
    merge = {"name": "cat", "op": "concat", "inputs": ["n2", "up"], "channels": [1, 3]}
    return [
        *down,
        {"name": "up", "inputs": ["n4"], **transposed(2, 2)},
        merge,
        {"name": "out", "inputs": ["cat"], **conv(3, lo=1)},
    ]


# name → (nodes, input size); the output is the last node.
NETWORKS: dict[str, tuple[list[Node], list[int]]] = {
    "conv": (chain(conv(3, taps=ramp(3))), [9]),
    "conv even kernel": (chain(conv(4, 2, 2, 1, taps=ramp(4)), conv(2, 1, 0, 1)), [15]),
    "conv dilated": (chain(conv(3, 1, 2, dilation=2), conv(3, 2, 3, 1, dilation=3)), [19]),
    "conv gain": (chain(conv(3, lo=1, gain=0.7), op("identity", gain=0.5), conv(5, gain=3)), [17]),
    "conv cropping": (chain(conv(3, lo=-2, hi=1), conv(3, lo=1, hi=-1)), [14]),
    "conv 2-D": (
        chain(
            conv([3, 4], [2, 1], [1, 0], [0, 2], dilation=[1, 2], taps=ramp(3, 4)),
            conv([2, 3], [1, 2], [0, 1], taps=ramp(2, 3)),
        ),
        [11, 13],
    ),
    "conv 3-D": (
        chain(
            conv([3, 2, 1], [1, 2, 1], [1, 0, 0], [1, 1, 0], taps=ramp(3, 2, 1)),
            conv(2, [2, 1, 1], dilation=[1, 2, 1], taps=ramp(2, 2, 2)),
        ),
        [6, 7, 4],
    ),
    "maxpool": (chain(conv(3, lo=1), maxpool(3, 2, 1), maxpool(2, 2)), [17]),
    "maxpool ceil": (chain(maxpool(3, 2, ceil_mode=True), maxpool(2, 3, 1, ceil_mode=True)), [16]),
    "maxpool dilated": (chain(maxpool(3, 1, 1, dilation=2), conv(3)), [13]),
    "maxpool asymmetric": (chain(maxpool(4, 3, 2, 1), maxpool(3, 2, 0, 1, ceil_mode=True)), [20]),
    "maxpool 2-D": (
        chain(conv(3, lo=1), maxpool([3, 2], [2, 1], [1, 0], ceil_mode=True, dilation=[1, 2])),
        [10, 9],
    ),
    "maxpool 3-D": (chain(maxpool([2, 3, 2], [1, 2, 2], [0, 1, 1]), conv(2)), [4, 7, 5]),
    "avgpool": (chain(avgpool(3, 1, 1), conv(3, 2), avgpool(2, 2)), [16]),
    "avgpool counts input": (chain(conv(3), avgpool(3, 2, 1, count_include_pad=False)), [15]),
    "avgpool ceil": (chain(avgpool(3, 2, 1, ceil_mode=True)), [12]),
    "avgpool ceil counts input": (
        chain(avgpool(3, 2, 1, ceil_mode=True, count_include_pad=False)),
        [12],
    ),
    "avgpool asymmetric": (
        chain(avgpool(4, 2, 2, 1), avgpool(3, 2, 0, 1, count_include_pad=False)),
        [17],
    ),
    "avgpool asymmetric ceil": (
        chain(avgpool(4, 3, 1, 2, ceil_mode=True), avgpool(3, 2, 1, 0, ceil_mode=True)),
        [20],
    ),
    "avgpool 2-D": (
        chain(
            conv(3, lo=1),
            avgpool([3, 2], [2, 1], [1, 1], ceil_mode=True),
            avgpool(3, [1, 2], [0, 1], count_include_pad=False, ceil_mode=True),
        ),
        [12, 9],
    ),
    "avgpool 3-D": (chain(avgpool([2, 3, 2], [2, 2, 1], [1, 1, 0], ceil_mode=True)), [5, 6, 4]),
    "transposed": (chain(transposed(3, 2, 1, taps=ramp(3))), [7]),
    "transposed odd sizes": (
        chain(transposed(4, 3, 1, output_padding=2, taps=ramp(4)), transposed(2, 1, 0, 1)),
        [6],
    ),
    "transposed dilated": (
        chain(transposed(3, 2, 2, 1, dilation=3, output_padding=1, taps=ramp(3)), conv(3)),
        [6],
    ),
    "transposed holes": (chain(transposed(2, 3), conv(2, 2)), [5]),
    "transposed 2-D": (
        chain(
            conv(3, 2, 1),
            transposed([3, 4], [2, 3], [1, 0], [0, 1], dilation=[1, 2], taps=ramp(3, 4)),
            transposed(2, 2, output_padding=[1, 0]),
        ),
        [6, 5],
    ),
    "transposed 3-D": (
        chain(transposed([2, 3, 2], [2, 1, 2], [0, 1, 1], output_padding=[1, 0, 1])),
        [3, 4, 3],
    ),
    "nearest": (chain(conv(3, lo=1), op("upsample_nearest", factor=3), conv(3, 2)), [7]),
    "nearest 2-D": (chain(op("upsample_nearest", factor=[2, 3]), conv(3, 1, 1)), [5, 4]),
    "linear": (chain(conv(3), op("upsample_linear", factor=2), conv(3, lo=1)), [8]),
    "linear odd": (chain(op("upsample_linear", factor=3)), [6]),
    "linear of one": (chain(op("upsample_linear", factor=4)), [1]),
    "linear 2-D": (chain(op("upsample_linear", factor=[2, 5]), conv(3, 2, 1)), [5, 4]),
    "linear 3-D": (chain(op("upsample_linear", factor=[2, 1, 3])), [3, 2, 3]),
    "pad zeros": (chain(op("pad", lo=2, hi=1), conv(4), op("pad", lo=-1, hi=2), conv(2)), [9]),
    "pad reflect": (chain(op("pad", lo=3, hi=2, mode="reflect"), conv(4)), [8]),
    "pad replicate": (chain(op("pad", lo=3, hi=9, mode="replicate"), conv(4)), [8]),
    "pad circular": (chain(op("pad", lo=3, hi=2, mode="circular"), conv(4, 2)), [8]),
    "pad and crop": (chain(op("pad", lo=-2, hi=3, mode="reflect"), conv(2)), [8]),
    "pad reflect 2-D": (chain(op("pad", lo=[1, 2], hi=[0, 3], mode="reflect"), conv(3)), [5, 6]),
    "pad replicate 3-D": (chain(op("pad", lo=1, hi=[0, 1, 2], mode="replicate"), conv(2)), [3] * 3),
    "pad circular 3-D": (chain(op("pad", lo=[1, 0, 2], hi=1, mode="circular"), conv(2)), [3] * 3),
    "shuffle": (chain(conv(3, lo=1), op("pixel_shuffle", factor=2), conv(3)), [7]),
    "shuffle 2-D": (chain(op("pixel_shuffle", factor=[2, 3]), conv(3)), [4, 3]),
    "unshuffle": (chain(conv(3, lo=1), op("pixel_unshuffle", factor=3), conv(2)), [12]),
    "unshuffle 2-D": (chain(op("pixel_unshuffle", factor=2), conv(2)), [6, 8]),
    "global": (chain(conv(3, lo=1), op("global", gain=0.3), conv(3, lo=1)), [8]),
    "global pool": (chain(conv(3), op("global", size=[1, 1])), [5, 6]),
    "residual": (residual(conv(3, lo=1), conv(3, lo=1), before=chain(conv(3, 2, 1))), [15]),
    "residual 2-D": (
        residual(conv(3, lo=1, gain=0.5), before=residual(conv(5, lo=2), before=chain(conv(2, 2)))),
        [12, 10],
    ),
    "concat misaligned": (
        [
            *chain(conv(5, 2, 2, 1)),
            *chain(conv(3, lo=1), conv(3, 2, 1), source="x", prefix="m")[1:],
            {"name": "cat", "op": "concat", "inputs": ["n1", "m2"], "channels": [2, 1]},
            {"name": "out", "inputs": ["cat"], **conv(3)},
        ],
        [20],
    ),
    "encoder-decoder": (encoder_decoder(), [12]),
    "encoder-decoder 2-D": (encoder_decoder(), [8, 6]),
}


def units_of(size: list[int]) -> list[tuple[int, ...]]:
    """First, middle and last along every axis: both borders, all corners."""
    return list(itertools.product(*(sorted({0, n // 2, n - 1}) for n in size)))


def tolerance(nodes: list[Node], ndim: int, input_size: list[int]) -> float:
    """Bound on the relative difference of two float64 evaluations of the same nonnegative sums.

    Sums of nonnegative terms never cancel, so relative errors only add up: along a path at most
    one rounding per term gathered at a pixel and per factor of a coefficient, per layer. A pixel
    gathers at most 10 terms per axis here (linear upsampling by 5, a border replicated 9 times) or
    a global layer's whole map; a coefficient takes at most 3 roundings per axis. PyTorch multiplies
    an index up to n·f by 1/f in floating point, an error of n·EPS beside a smallest share 1/(2f):
    squared, 4·f·n roundings per axis more. Two evaluations: twice.
    """
    roundings = 0
    for node in nodes:
        roundings += 10**ndim + 3 * ndim
        if node["op"] == "global":
            roundings += math.prod(input_size)
        if node["op"] == "upsample_linear":
            roundings += 4 * 5 * ndim * max(input_size)
    return 2 * roundings * EPS


# -------------------------------------------------------------------- naive against torch, networks


@pytest.mark.parametrize("name", NETWORKS)
def test_sizes_are_those_of_torch(name):
    nodes, size = NETWORKS[name]
    assert naive.sizes(nodes, size) == torch_oracle.sizes(nodes, size)


@pytest.mark.parametrize("name", NETWORKS)
def test_regions_agree(name):
    nodes, size = NETWORKS[name]
    output = nodes[-1]["name"]
    for unit in units_of(naive.sizes(nodes, size)[output]):
        expected = torch_oracle.region(nodes, output, unit, size)
        assert naive.region(nodes, output, unit, size) == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_variances_agree(name):
    nodes, size = NETWORKS[name]
    output = nodes[-1]["name"]
    rtol = tolerance(nodes, len(size), size)
    for unit in units_of(naive.sizes(nodes, size)[output]):
        image = naive.variance(nodes, output, unit, size)
        expected = torch_oracle.variance(nodes, output, unit, size)
        np.testing.assert_allclose(image, expected, rtol=rtol, atol=0)


def test_zero_taps_join_without_variance():
    nodes = chain(conv(3, taps=[1.0, 0.0, 2.0]))
    assert naive.region(nodes, "n1", [1], [5]) == {(1,), (2,), (3,)}
    assert torch_oracle.region(nodes, "n1", [1], [5]) == {(1,), (2,), (3,)}
    assert naive.variance(nodes, "n1", [1], [5]).tolist() == [0, 1, 0, 2, 0]


@pytest.mark.parametrize(
    "name",
    ["conv", "conv even kernel", "maxpool dilated", "nearest", "linear", "shuffle", "conv 2-D"],
)
def test_borders_do_not_matter_far_inside(name):
    """On a large map the clipped and the unbounded image of a unit in the middle are the same."""
    nodes, size = NETWORKS[name]
    size = [48] * len(size)
    output = nodes[-1]["name"]
    unit = [n // 2 for n in naive.sizes(nodes, size)[output]]
    unbounded = naive.variance_unbounded(nodes, output, unit)
    clipped = naive.variance(nodes, output, unit, size)
    assert naive.region_unbounded(nodes, output, unit) == set(unbounded)
    assert naive.region(nodes, output, unit, size) == set(unbounded)
    for i, v in unbounded.items():
        assert clipped[i] == v


def test_unbounded_images_move_with_the_unit():
    nodes = chain(
        conv(3, 2, 1), avgpool(3, 2), transposed(4, 2, 1), op("upsample_linear", factor=2)
    )
    # Overall stride 2·2/2/2 = 1: four units further on the output lie four pixels on the input.
    image = naive.variance_unbounded(nodes, "n4", [0])
    moved = naive.variance_unbounded(nodes, "n4", [-4])
    assert moved == {(i - 4,): v for (i,), v in image.items()}


def test_mass_is_the_product_of_gains():
    nodes = chain(conv(3, gain=0.5), conv([4, 3], 2, dilation=3, gain=8), op("identity", gain=0.25))
    mass = math.fsum(naive.variance_unbounded(nodes, "n3", [0, 0]).values())
    # Two divisions and three products for a path, at most 9·12 paths summed at a pixel.
    assert mass == pytest.approx(1.0, rel=(5 + 108) * EPS, abs=0)


def test_global_layers_have_no_unbounded_region():
    with pytest.raises(ValueError, match="unbounded"):
        naive.region_unbounded(chain(op("global")), "n1", [0])


def test_units_outside_the_map_are_refused():
    with pytest.raises(ValueError, match="outside"):
        naive.region(chain(conv(3)), "n1", [3], [5])


# ------------------------------------------------------------------- kernel level against torch

STEPS = [
    ((1, 1, 1), (1, 1, 1), (0, 0, 0)),
    ((2, 1, 3), (1, 2, 1), (1, 0, 2)),
    ((1, 3, 2), (3, 1, 2), (-1, 2, 4)),
]


@pytest.mark.parametrize(("stride", "dilation", "lo"), STEPS)
def test_transposed_conv_is_that_of_torch(stride, dilation, lo):
    rng = np.random.default_rng(1)
    y, taps = rng.random((4, 3, 5)), rng.random((3, 2, 4))
    full = F.conv_transpose3d(
        torch.tensor(y)[None, None],
        torch.tensor(taps)[None, None],
        stride=stride,
        dilation=dilation,
    )[0, 0].numpy()
    # `out` reaches over the end of what is written on one axis and ends before it on another.
    shape = (full.shape[0] - lo[0] + 2, full.shape[1] - lo[1] - 1, full.shape[2] - lo[2])
    out = np.full(shape, np.nan)
    naive.transposed_conv(y, taps, stride, dilation, lo, out)
    expected = np.zeros(shape)
    for i in np.ndindex(shape):
        source = tuple(a + b for a, b in zip(i, lo, strict=True))
        if all(0 <= a < n for a, n in zip(source, full.shape, strict=True)):
            expected[i] = full[source]
    # At most 24 taps meet in a pixel: a product and a sum each, in both evaluations.
    np.testing.assert_allclose(out, expected, rtol=2 * 2 * 24 * EPS, atol=0)


@pytest.mark.parametrize(("stride", "dilation", "lo"), STEPS)
def test_strided_gather_is_the_convolution_of_torch(stride, dilation, lo):
    rng = np.random.default_rng(2)
    y, taps = rng.random((7, 6, 9)), rng.random((3, 2, 4))
    hi = (2, 3, 1)
    pads = [amount for a in (2, 1, 0) for amount in (lo[a], hi[a])]
    expected = F.conv3d(
        F.pad(torch.tensor(y)[None, None], pads),
        torch.tensor(taps)[None, None],
        stride=stride,
        dilation=dilation,
    )[0, 0].numpy()
    out = np.full(expected.shape, np.nan)
    naive.strided_gather(y, taps, stride, dilation, lo, out)
    np.testing.assert_allclose(out, expected, rtol=2 * 2 * 24 * EPS, atol=0)


@pytest.mark.parametrize(("stride", "dilation", "lo"), STEPS)
def test_gather_is_the_adjoint_of_transposed_conv(stride, dilation, lo):
    rng = np.random.default_rng(3)
    # Small integers: every sum is exact, so the two inner products are equal.
    y, taps = rng.integers(0, 9, (4, 3, 5)), rng.integers(0, 9, (3, 2, 4))
    x = rng.integers(0, 9, (8, 9, 7))
    below, above = np.empty(x.shape, np.int64), np.empty(y.shape, np.int64)
    naive.transposed_conv(y, taps, stride, dilation, lo, below)
    naive.strided_gather(x, taps, stride, dilation, lo, above)
    assert (below * x).sum() == (above * y).sum() > 0


@pytest.mark.parametrize(
    ("k", "stride", "dilation", "lo"), [(1, 1, 1, 0), (3, 2, 1, 1), (4, 1, 3, 5), (2, 4, 1, -2)]
)
def test_boxes_are_kernels_of_ones_along_the_middle_axis(k, stride, dilation, lo):
    rng = np.random.default_rng(4)
    y = rng.integers(1, 9, (3, 6, 2))
    ones = np.ones((1, k, 1))
    steps = ((1, stride, 1), (1, dilation, 1), (0, lo, 0))
    for box, general in (
        (naive.transposed_box, naive.transposed_conv),
        (naive.gather_box, naive.strided_gather),
    ):
        out, expected = np.full((3, 14, 2), -1), np.full((3, 14, 2), -1)
        box(y, k, stride, dilation, lo, out)
        general(y, ones, *steps, expected)
        np.testing.assert_array_equal(out, expected)
        assert out.any()


def test_table_with_equal_rows_is_a_transposed_conv():
    rng = np.random.default_rng(5)
    y, taps = rng.integers(1, 9, (2, 7, 3)), rng.integers(1, 9, 4)
    out, expected = np.full((2, 15, 3), -1), np.full((2, 15, 3), -1)
    # Starts from −3 on: the first row falls short of the map in part, the last beyond it.
    naive.transposed_table(y, np.arange(7) * 3 - 3, np.tile(taps, (7, 1)), out)
    naive.transposed_conv(y, taps[None, :, None], (1, 3, 1), (1, 1, 1), (0, 3, 0), expected)
    np.testing.assert_array_equal(out, expected)


def test_table_uses_the_row_of_each_pixel():
    y = np.array([[[1.0], [10.0]]])
    out = np.full((1, 4, 1), np.nan)
    naive.transposed_table(y, np.array([2, 0]), np.array([[1.0, 2.0], [3.0, 4.0]]), out)
    assert out[0, :, 0].tolist() == [30, 40, 1, 2]


# ----------------------------------------------------------------------------- published numbers


def span(nodes: list[Node], output: str, unit: int) -> tuple[int, int]:
    pixels = naive.region_unbounded(nodes, output, [unit])
    return min(pixels)[0], max(pixels)[0]


def test_distill_first_example():
    """Araujo, Norris, Sim (Distill 2019): k3 p1 s3, then k2 s1; feature 0 sees [−1, 4]."""
    assert span(chain(conv(3, 3, 1), conv(2)), "n2", 0) == (-1, 4)


def test_distill_misaligned_network():
    """Ibid.: a k5 s2 branch padded by (2, 1) beside {k3; k3}; sizes depend on the unit."""
    nodes = [
        *chain(conv(5, 2, 2, 1)),
        *chain(conv(3), conv(3), source="x", prefix="m")[1:],
        {"name": "sum", "op": "add", "inputs": ["n1", "m2"]},
    ]
    assert [len(naive.region_unbounded(nodes, "sum", [u])) for u in range(5)] == [7, 6, 5, 6, 7]


ALEXNET = [
    ("conv1", conv(11, 4), 55, 4, 11, 5.5),
    ("pool1", maxpool(3, 2), 27, 8, 19, 9.5),
    ("conv2", conv(5, lo=2), 27, 8, 51, 9.5),
    ("pool2", maxpool(3, 2), 13, 16, 67, 17.5),
    ("conv3", conv(3, lo=1), 13, 16, 99, 17.5),
    ("conv4", conv(3, lo=1), 13, 16, 131, 17.5),
    ("conv5", conv(3, lo=1), 13, 16, 163, 17.5),
    ("pool5", maxpool(3, 2), 6, 32, 195, 33.5),
    ("fc6", conv(6), 1, 32, 355, 113.5),
]


def test_dang_table_of_alexnet():
    """Dang Ha The Hien (2017): n, jump, size and start of AlexNet's layers at 227 pixels.

    Start is the centre of unit 0 in coordinates where pixel i covers [i, i + 1].
    """
    nodes = chain(*(layer for _, layer, *_ in ALEXNET))
    maps = naive.sizes(nodes, [227])
    for i, (name, _, n, jump, r, start) in enumerate(ALEXNET, 1):
        first, last = span(nodes, f"n{i}", 0)
        assert maps[f"n{i}"] == [n], name
        assert (last - first + 1, (first + last + 1) / 2) == (r, start), name
        assert span(nodes, f"n{i}", 1) == (first + jump, last + jump), name


def test_tf_slim_vgg16():
    """TF-Slim's table: vgg_16 pool5 has size 212, stride 32, padding 90."""
    layers = []
    for convolutions in (2, 2, 3, 3, 3):
        layers += [conv(3, lo=1)] * convolutions + [maxpool(2, 2)]
    nodes = chain(*layers)
    assert span(nodes, "n18", 0) == (-90, -90 + 212 - 1)
    assert span(nodes, "n18", 1)[0] == -90 + 32


def test_torchvision_resnet18():
    """resnet18 layer4 has size 435, stride 32, padding 217."""
    nodes = chain(conv(7, 2, 3), maxpool(3, 2, 1))
    for stage in range(4):
        for block in range(2):
            source, tag = nodes[-1]["name"], f"l{stage}{block}"
            stride = 2 if stage > 0 and block == 0 else 1
            branch = chain(conv(3, stride, 1), conv(3, lo=1), source=source, prefix=tag)
            shortcut = [{"name": f"{tag}s", "inputs": [source], **conv(1, stride)}]
            merge = {"name": tag, "op": "add", "inputs": [f"{tag}2", f"{tag}s"]}
            nodes = [*nodes, *branch, *shortcut, merge]
    assert span(nodes, "l31", 0) == (-217, -217 + 435 - 1)
    assert span(nodes, "l31", 1)[0] == -217 + 32


def test_central_trinomial_coefficients():
    """(1 + x + x²)^n: the middle coefficients are OEIS A002426."""
    nodes = chain(*[conv(3, lo=1, taps=np.ones(3))] * 8)
    for n, middle in enumerate([1, 3, 7, 19, 51, 141, 393, 1107], 1):
        assert naive.variance_unbounded(nodes, f"n{n}", [0])[(0,)] == middle


@pytest.mark.parametrize(("k", "n"), [(3, 10), (5, 6), (2, 12)])
def test_luo_standard_deviation(k, n):
    """Luo et al. (2016), eq. 11: σ = √(n(k² − 1)/12) for n convolutions of k equal taps."""
    image = naive.variance_unbounded(chain(*[conv(k, taps=np.ones(k))] * n), f"n{n}", [0])
    mass = sum(int(v) for v in image.values())
    mean = sum(i * int(v) for (i,), v in image.items())
    square = sum(i * i * int(v) for (i,), v in image.items())
    # Pixels below 2^53 are exact, and Var = square/mass − (mean/mass)² in integers.
    assert mass == k**n
    assert 12 * (square * mass - mean**2) == n * (k**2 - 1) * mass**2


# -------------------------------------------------------------- exact expectations and Monte Carlo

# In these no correlated gradient meets a deterministic layer, so squared coefficients are right.
UNCORRELATED = [
    "conv even kernel",
    "conv 2-D",
    "transposed dilated",
    "nearest",
    "linear",
    "shuffle",
    "unshuffle",
    "global",
    "residual",
    "residual 2-D",
    "concat misaligned",
    "pad zeros",
]


def paths(nodes: list[Node], input_size: list[int]) -> int:
    """An upper bound on the number of paths from one unit to the input."""
    ndim = len(input_size)
    fan = {"add": 2, "concat": 2, "global": math.prod(input_size), "upsample_linear": 2**ndim}
    count = 1
    for node in nodes:
        if node["op"] in ("conv", "conv_transpose"):
            count *= math.prod(np.broadcast_to(node["kernel"], ndim).tolist())
        elif node["op"] == "pixel_unshuffle":
            count *= math.prod(np.broadcast_to(node["factor"], ndim).tolist())
        else:
            count *= fan.get(node["op"], 1)
    return count


@pytest.mark.parametrize("name", UNCORRELATED)
def test_exact_variance_is_the_squared_one_where_nothing_is_correlated(name):
    nodes, size = NETWORKS[name]
    output = nodes[-1]["name"]
    unit = [n // 2 for n in naive.sizes(nodes, size)[output]]
    exact = torch_oracle.exact_variance(nodes, output, unit, size)
    expected = naive.variance(nodes, output, unit, size)
    # A gradient g sums signed paths and is wrong by at most γ·Σ|path|; g² by 2γ(Σ|path|)², which
    # by Cauchy and Schwarz is at most 2γ·paths·Σ path², and Σ path² is the variance.
    rtol = 2 * paths(nodes, size) * tolerance(nodes, len(size), size)
    assert rtol < 1e-6
    np.testing.assert_allclose(exact, expected, rtol=rtol, atol=0)


def test_correlated_gradients_by_hand():
    """avg3, conv3, avg3: the input gradients are w0, 2w0 + w1, 3w0 + 2w1 + w2, … over 9."""
    nodes = chain(avgpool(3, 1), conv(3), avgpool(3, 1))
    exact = torch_oracle.exact_variance(nodes, "n3", [1], [9])
    # A dozen roundings on sums without cancellation: all path weights are sums of like signs or
    # of at most 3 weights of one size.
    np.testing.assert_allclose(exact * 243, [0, 1, 5, 14, 17, 14, 5, 1, 0], rtol=64 * EPS, atol=0)
    squared = naive.variance(nodes, "n3", [1], [9])
    np.testing.assert_allclose(squared * 243, [0, 1, 3, 6, 7, 6, 3, 1, 0], rtol=64 * EPS, atol=0)


def test_deterministic_shortcuts_are_correlated():
    """x + avg3(x) has the gradient (1/3, 4/3, 1/3)."""
    nodes = residual(avgpool(3, 1, 1), before=chain(op("identity")))
    exact = torch_oracle.exact_variance(nodes, "n1+", [2], [5])
    np.testing.assert_allclose(exact * 9, [0, 1, 16, 1, 0], rtol=16 * EPS, atol=0)
    squared = naive.variance(nodes, "n1+", [2], [5])
    np.testing.assert_allclose(squared * 9, [0, 1, 10, 1, 0], rtol=16 * EPS, atol=0)


def test_random_branches_are_uncorrelated_with_their_shortcut():
    """x + w·x has the gradient 1 + w, and E[(1 + w)²] = 1 + Var w."""
    nodes = residual(conv(1, gain=0.25), before=chain(op("identity")))
    exact = torch_oracle.exact_variance(nodes, "n1+", [1], [3])
    assert exact.tolist() == [0, 1.25, 0]
    assert naive.variance(nodes, "n1+", [1], [3]).tolist() == [0, 1.25, 0]


# Overlapping averages between random layers; stride 2 in the middle.
CORRELATED = chain(
    *[conv(3, lo=1), avgpool(3, 1, 1)],
    *[conv(3, lo=1), avgpool(3, 2, 1)],
    *[conv(3, lo=1), avgpool(3, 1, 1)],
    conv(3, lo=1),
)

# Standard errors a pixel's mean may be off. Normal tails beyond it hold 6e-7; with fewer than 500
# pixels in all, a right oracle fails for 3e-4 of all seeds, and the seed is fixed.
STANDARD_ERRORS = 5


def deviations(mean: np.ndarray, error: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Differences in standard errors; where nothing is random there must be no difference."""
    random = error > 0
    np.testing.assert_allclose(mean[~random], expected[~random], rtol=64 * EPS, atol=0)
    return np.abs(mean - expected)[random] / error[random]


def test_squared_coefficients_are_wrong_under_correlation_and_exact_ones_right():
    unit, size = [10], [41]
    mean, error = torch_oracle.monte_carlo(CORRELATED, "n7", unit, size, 4000, 4, seed=7)
    exact = torch_oracle.exact_variance(CORRELATED, "n7", unit, size)
    squared = naive.variance(CORRELATED, "n7", unit, size)
    assert deviations(mean, error, exact).max() < STANDARD_ERRORS
    assert deviations(mean, error, squared).max() > 2 * STANDARD_ERRORS
    # The whole mass is off by 11/3, the shape by 7% of its peak.
    assert exact.sum() / squared.sum() == pytest.approx(11 / 3, rel=1e-9)
    shape, wrong = exact / exact.sum(), squared / squared.sum()
    assert np.abs(shape - wrong).max() / shape.max() == pytest.approx(0.07, abs=0.005)


@pytest.mark.parametrize(
    "name",
    [
        "conv gain",
        "conv 2-D",
        "maxpool",
        "maxpool ceil",
        "maxpool asymmetric",
        "maxpool 2-D",
        "transposed 2-D",
        "linear",
        "pad reflect",
        "shuffle",
        "unshuffle",
        "global",
        "residual",
        "concat misaligned",
        "encoder-decoder",
    ],
)
def test_real_random_networks_have_this_variance(name):
    nodes, size = NETWORKS[name]
    output = nodes[-1]["name"]
    unit = [n // 2 for n in naive.sizes(nodes, size)[output]]
    mean, error = torch_oracle.monte_carlo(nodes, output, unit, size, 600, 12, seed=11)
    expected = naive.variance(nodes, output, unit, size)
    assert error.any()
    assert deviations(mean, error, expected).max() < STANDARD_ERRORS


def test_shuffles_are_those_of_torch():
    x = torch.arange(2 * 12 * 3 * 5, dtype=torch.float64).reshape(2, 12, 3, 5)
    node = {"factor": 2}
    shuffled = torch_oracle._shuffle(node, x)
    assert torch.equal(shuffled, F.pixel_shuffle(x, 2))
    assert torch.equal(torch_oracle._unshuffle(node, shuffled), F.pixel_unshuffle(shuffled, 2))


def test_what_an_oracle_cannot_do_it_refuses():
    pooled, merged = NETWORKS["maxpool"], NETWORKS["concat misaligned"]
    with pytest.raises(ValueError, match="max-pooling"):
        torch_oracle.exact_variance(pooled[0], "n3", [0], pooled[1])
    with pytest.raises(ValueError, match="sign patterns"):
        torch_oracle.exact_variance(chain(*[conv(3)] * 10), "n10", [0], [21])
    with pytest.raises(ValueError, match="do not split"):
        torch_oracle.monte_carlo(merged[0], "out", [0], merged[1], 2, 4, seed=0)
    with pytest.raises(ValueError, match="phases"):
        torch_oracle.monte_carlo(chain(op("pixel_shuffle", factor=2)), "n1", [0], [4], 2, 3, seed=0)
