"""ONNX import: ONNX's light models against ONNX's own shapes, and operators against its reference.

Where an operator only moves or sums pixels, a model with weights of 1 is computed twice: by
ONNX's reference implementation, and by PyTorch from the layers of the imported network. All terms
are positive and there are fewer than 2^11 of them per output, so in any order the float64 sums
agree to 2·2^11·2^-53 of their value.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

from onnx import TensorProto, helper, numpy_helper, shape_inference  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import fastrf as rf  # noqa: E402
from fastrf.errors import InputError, MissingExtra, NetworkFileError, UnsupportedOperator  # noqa: E402
from fastrf.importers.failing import line  # noqa: E402
from fastrf.importers.onnx import from_onnx, input_sizes  # noqa: E402
from fastrf.importers.operator import _wider  # noqa: E402
from fastrf.layers import (  # noqa: E402
    Activation,
    Add,
    Attention,
    AvgPool,
    ChannelShuffle,
    ChannelSlice,
    Concat,
    Conv,
    ConvTranspose,
    Crop,
    Dropout,
    FullyConnected,
    GlobalPool,
    Identity,
    Input,
    MaxPool,
    Multiply,
    Norm,
    Pad,
    PixelShuffle,
    PixelUnshuffle,
    Scale,
    Upsample,
)
from fastrf.lowering import lower  # noqa: E402
from fastrf.netfile import from_dict, load, to_dict  # noqa: E402

TOLERANCE = 2 * 2**11 * 2**-53
LIGHT = Path(onnx.__file__).parent / "backend" / "test" / "data" / "light"
MODELS = (
    "bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50", "shufflenet",
    "squeezenet", "vgg19", "zfnet512",
)  # fmt: skip


def light(name):
    return LIGHT / f"light_{name}.onnx"


# --- the light models -----------------------------------------------------------------------


NO_LAYER = ("ConstantOfShape", "Unsqueeze", "Reshape", "Transpose")
"""Operators that compute constants or only move digits."""

WHOLE_MAP = ("inception_v2", "resnet50", "shufflenet")
"""Their last AveragePool reads 7 × 7 of 7 × 7 pixels. Inception v1's is padded and stays."""


@pytest.mark.parametrize("name", MODELS)
def test_light_models_have_onnx_shapes(name):
    model = onnx.load(light(name))
    network = from_onnx(light(name))
    inferred = shape_inference.infer_shapes(model, data_prop=True).graph.value_info
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred}
    rows = {row.name: row for row in rf.receptive_field(network, input_size=224).layers}
    graph = lower(network, 224)
    for node in model.graph.node:
        shape = shapes.get(node.output[0], [])
        if len(shape) == 4 and node.op_type not in NO_LAYER:
            own = node.name or node.output[0]
            assert [graph.channels[own], *rows[own].shape] == shape[1:], own
    assert network.name == f"light_{name}"


@pytest.mark.parametrize("name", MODELS)
def test_light_models_keep_every_operator(name):
    model = onnx.load(light(name))
    count = Counter(node.op_type for node in model.graph.node)
    network = from_onnx(model)
    own = Counter(type(node.layer).__name__ for node in network.nodes.values())
    if name in WHOLE_MAP:
        count.update(AveragePool=-1, GlobalAveragePool=1)
    for operator, layer in (
        ("Conv", "Conv"),
        ("MaxPool", "MaxPool"),
        ("AveragePool", "AvgPool"),
        ("GlobalAveragePool", "GlobalPool"),
        ("Concat", "Concat"),
        ("Gemm", "FullyConnected"),
        ("Sum", "Add"),
        ("Transpose", "ChannelShuffle"),
    ):
        assert own[layer] == count[operator]
    assert own["Norm"] == count["BatchNormalization"] + count["LRN"]
    pointwise = ("Relu", "Softmax", "Mul", "Add")
    assert own["Activation"] == sum(count[operator] for operator in pointwise)
    names = [node.name for node in model.graph.node if node.name]
    assert set(network.nodes) - set(network.inputs) <= {*names, *shapes_of_outputs(model)}
    assert from_dict(to_dict(network)) == network
    assert load(light(name)) == network


def shapes_of_outputs(model):
    return {output for node in model.graph.node for output in node.output}


PUBLISHED = [
    # Last map before the extent is lost. AlexNet: Dang Ha The Hien's table and TF-Slim's, pool5.
    # VGG-19: 16 convolutions of 3 and 5 poolings of 2, 1 + 2·(2·1 + 2·2 + 4·4 + 4·8 + 4·16) + 31,
    # padded by 1 at every convolution. ResNet-50 strides in its first 1 × 1 or in its 3 × 3: 483
    # or 427, both in TF-Slim's and torchvision's tables; this one strides in the 3 × 3.
    # DenseNet-121: 7/2 and 3/2 reach 11 with stride 4; 6, 12, 24 and 16 convolutions of 3 with
    # poolings of 2 between: 11 + 12·4 + 4 + 24·8 + 8 + 48·16 + 16 + 32·32, padded by
    # 3 + 2 + 6·4 + 12·8 + 24·16 + 16·32.
    ("bvlc_alexnet", 195, 32, 64),
    ("vgg19", 268, 32, 118),
    ("resnet50", 427, 32, 213),
    ("densenet121", 2071, 32, 1021),
]


@pytest.mark.parametrize("input_size", [None, 224])
@pytest.mark.parametrize(("name", "size", "stride", "padding"), PUBLISHED)
def test_light_models_have_the_published_field(name, size, stride, padding, input_size):
    field = rf.receptive_field(from_onnx(light(name)), input_size=input_size)
    assert field.size == (size, size)
    assert field.stride == (stride, stride)
    assert field.padding == (padding, padding)


def test_light_models_know_channels_and_groups():
    network = from_onnx(light("shufflenet"))
    shuffles = [n.layer for n in network.nodes.values() if isinstance(n.layer, ChannelShuffle)]
    assert shuffles == [ChannelShuffle(4)] * 16
    convs = [n.layer for n in network.nodes.values() if isinstance(n.layer, Conv)]
    assert Counter(c.groups for c in convs) == {1: 1, "depthwise": 16, 4: 32}
    assert network.nodes["gpu_0/data_0"].layer == Input(3)
    assert input_sizes(light("shufflenet")) == {"gpu_0/data_0": (224, 224)}
    assert network.resolve("gpu_0/softmax_1") == network.outputs[0]


# --- small models ---------------------------------------------------------------------------


def make(nodes, shape=(1, 4, 8, 6), opset=18, constants=None, outputs=("y",), more=(), **options):
    """A model of nodes that read "x"; constants are arrays, or shapes of arrays of ones."""
    given = {
        name: numpy_helper.from_array(
            np.ones(value) if isinstance(value, tuple) else np.asarray(value), name
        )
        for name, value in (constants or {}).items()
    }
    graph = helper.make_graph(
        nodes,
        options.get("graph", "graph"),
        [helper.make_tensor_value_info("x", TensorProto.DOUBLE, shape), *more],
        [helper.make_value_info(name, onnx.TypeProto()) for name in outputs],
        list(given.values()),
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("custom", 1)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=10, functions=options.get("functions", [])
    )


def node(kind, inputs="x", outputs="y", **attributes):
    return helper.make_node(kind, inputs.split(","), outputs.split(","), **attributes)


def one(kind, *args, outputs="y", inputs="x", **attributes):
    """A model of one node; constants w0, w1, … follow the input."""
    opset = attributes.pop("opset", 18)
    shape = attributes.pop("shape", (1, 4, 8, 6))
    constants = {f"w{i}": a for i, a in enumerate(args) if a is not None}
    names = ",".join([inputs, *(f"w{i}" if a is not None else "" for i, a in enumerate(args))])
    made = node(kind, names, outputs, **attributes)
    return make([made], shape, opset, constants, outputs.split(","))


def layers(network):
    return [n.layer for n in network.nodes.values() if not isinstance(n.layer, Input)]


# --- signals and sequences ------------------------------------------------------------------


def test_signals_have_one_channel():
    """(N, T), padded before it gets an axis of channels."""
    nodes = [
        node("Pad", "x,p", "a"),
        node("Unsqueeze", "a,one", "b"),
        node("Conv", "b,w", "c", strides=[4]),
        node("Squeeze", "c,one", "y"),
    ]
    constants = {"p": np.array([0, 3, 0, 1]), "one": np.array([1]), "w": (1, 1, 9)}
    for size in (64, None):
        network = from_onnx(make(nodes, (1, size), constants=constants), input_size=64)
        assert layers(network) == [Pad(((3, 1),)), Conv(9, stride=4, channels=1)]
        field = rf.receptive_field(network, input_size=64)
        assert (field.size, field.stride, field.padding) == ((9,), (4,), (3,))
        assert field.layers[-1].shape == (15,)
    with pytest.raises(InputError, match="does not fit"):
        from_onnx(make(nodes, (1, 64), constants=constants), input_size=65)


@pytest.mark.parametrize(("kind", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_layers_read_the_whole_sequence(kind, gates):
    turn = node("Transpose", "x", "a", perm=[2, 0, 1])
    layer = node(kind, "a,w,r", "y", hidden_size=5)
    weights = {"w": (1, gates * 5, 3), "r": (1, gates * 5, 5)}
    network = from_onnx(make([turn, layer], (1, 3, 20), constants=weights))
    assert layers(network) == [Attention()]
    field = rf.receptive_field(network, output=network.outputs[0], input_size=20)
    assert field.box(7, clip=True) == ((0, 19),)


def test_scales_of_dynamic_quantisation_are_constants():
    nodes = [
        node("DynamicQuantizeLinear", "x", "q,scale,zero"),
        node("ConvInteger", "q,w,zero", "a"),
        node("Cast", "a", "b", to=TensorProto.FLOAT),
        node("Mul", "b,scale", "y"),
    ]
    network = from_onnx(make(nodes, constants={"w": np.ones((5, 4, 3, 3), np.int8)}))
    assert Conv(3, channels=5) in layers(network)
    assert rf.receptive_field(network).size == (3, 3)


# --- computed twice -------------------------------------------------------------------------


def pads(layer, size):
    """Padding in pixels per axis: ONNX's and TensorFlow's SAME rule for the named ones."""
    result = []
    for p, k, s, d, n in zip(
        layer.padding, layer.kernel, layer.stride, layer.dilation, size, strict=True
    ):
        if isinstance(p, str):
            total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            pair = (total // 2, total - total // 2)
            result.append(pair if p == "same_upper" else pair[::-1])
        else:
            result.append(p)
    return result


def padded(x, amounts, mode="constant", value=0.0):
    flat = [n for pair in reversed(amounts) for n in pair]
    return F.pad(x, flat, mode, value) if mode == "constant" else F.pad(x, flat, mode)


def averaged(x, layer):
    """Mean over windows; windows of ceil mode count what they hold, padding where it counts."""
    amounts = pads(layer, x.shape[2:])
    inside = torch.ones_like(x)
    counted = padded(inside, amounts, value=1.0 if layer.count_include_pad else 0.0)
    total, count = padded(x, amounts), counted
    if layer.ceil_mode:
        more = [(0, s - 1) for s in layer.stride]
        total, count = padded(total, more), padded(count, more)
    mean = F.avg_pool2d(total, layer.kernel, layer.stride)
    return mean / F.avg_pool2d(count, layer.kernel, layer.stride)


def apply(layer, reads, channels):
    """A bound 2-D layer in PyTorch, with weights of 1."""
    x = reads[0]
    if isinstance(layer, Conv):
        groups = x.shape[1] if layer.groups == "depthwise" else layer.groups
        weight = torch.ones(channels, x.shape[1] // groups, *layer.kernel, dtype=x.dtype)
        x = padded(x, pads(layer, x.shape[2:]))
        return F.conv2d(x, weight, None, layer.stride, 0, layer.dilation, groups)
    if isinstance(layer, ConvTranspose):
        groups = x.shape[1] if layer.groups == "depthwise" else layer.groups
        weight = torch.ones(x.shape[1], channels // groups, *layer.kernel, dtype=x.dtype)
        y = F.conv_transpose2d(x, weight, None, layer.stride, 0, 0, groups, layer.dilation)
        return padded(
            y, [(-a, e - b) for (a, b), e in zip(layer.padding, layer.output_padding, strict=True)]
        )
    if isinstance(layer, MaxPool):
        x = padded(x, pads(layer, x.shape[2:]), value=-np.inf)
        return F.max_pool2d(x, layer.kernel, layer.stride, 0, layer.dilation, layer.ceil_mode)
    if isinstance(layer, AvgPool):
        return averaged(x, layer)
    if isinstance(layer, GlobalPool):
        pool = torch.mean if layer.mode == "avg" else torch.amax
        return pool(x, (2, 3), True)
    if isinstance(layer, FullyConnected):
        return x.sum((1, 2, 3), True).expand(-1, channels, -1, -1)
    if isinstance(layer, ChannelShuffle):
        n, c, *size = x.shape
        return x.reshape(n, layer.groups, c // layer.groups, *size).transpose(1, 2).reshape(x.shape)
    if isinstance(layer, PixelShuffle):
        return F.pixel_shuffle(x, layer.factor[0])
    if isinstance(layer, PixelUnshuffle):
        return F.pixel_unshuffle(x, layer.factor[0])
    if isinstance(layer, ChannelSlice):
        return x[:, layer.start : layer.stop : layer.step]
    if isinstance(layer, Crop):
        return padded(x, [(-a, -b) for a, b in layer.amount])
    if isinstance(layer, Pad):
        return padded(x, layer.padding, "constant" if layer.mode == "zeros" else layer.mode)
    if isinstance(layer, Upsample):
        mode = "bilinear" if layer.mode == "linear" else layer.mode
        align = (
            {"align_corners": layer.coordinates == "align_corners"} if mode == "bilinear" else {}
        )
        scale = [float(s) for s in layer.scale] if layer.scale else None
        return F.interpolate(x, layer.size, scale, mode, **align)
    if isinstance(layer, Concat):
        return torch.cat(reads, 1)
    if isinstance(layer, Multiply):
        return torch.stack(torch.broadcast_tensors(*reads)).prod(0)
    if isinstance(layer, Add):
        return sum(reads)
    assert isinstance(layer, Identity | Activation)
    return x


def execute(network, x):
    values, channels = {}, {}
    for n in network.bound.nodes.values():
        channels[n.name] = n.layer.output_channels([channels[i] for i in n.inputs])
        if isinstance(n.layer, Input):
            values[n.name] = torch.from_numpy(x)
        else:
            values[n.name] = apply(n.layer, [values[i] for i in n.inputs], channels[n.name])
    return [values[name].numpy() for name in network.outputs]


def chain(*steps, constants=None, shape=(1, 4, 8, 6), opset=18):
    """A model of steps (operator, further inputs, attributes) one behind the other."""
    nodes, at = [], "x"
    for i, (kind, extra, attributes) in enumerate(steps):
        out = "y" if i == len(steps) - 1 else f"t{i}"
        nodes.append(node(kind, ",".join([at, *extra]), out, **attributes))
        at = out
    return make(nodes, shape, opset, constants)


def reshapes(first, perm, last, **options):
    return chain(
        ("Reshape", ["a"], {}),
        ("Transpose", [], {"perm": perm}),
        ("Reshape", ["b"], {}),
        constants={"a": np.array(first), "b": np.array(last)},
        **options,
    )


def resize(scales=None, sizes=None, **attributes):
    extra = ["", "scales" if scales else "", *(["sizes"] if sizes else [])]
    constants = {"scales": np.array(scales, np.float32)} if scales else {}
    constants |= {"sizes": np.array(sizes)} if sizes else {}
    return chain(("Resize", extra, attributes), constants=constants, opset=attributes.pop("v", 18))


def slices(starts, ends, axes, steps):
    given = {"s": starts, "e": ends, "a": axes, "p": steps}
    constants = {k: np.array(v) for k, v in given.items()}
    return chain(("Slice", ["s", "e", "a", "p"], {}), constants=constants)


def pytorch_pad():
    """nn.ZeroPad2d((1, 2, 3, 0)) as PyTorch exports it: pads computed from a list, reversed."""
    constants = {
        "list": np.array([1, 2, 3, 0]), "extra": np.array([4]), "shape": np.array([-1, 2]),
        "start": np.array([-1]), "end": np.array([-(2**63) + 1]), "axis": np.array([0]),
        "step": np.array([-1]), "flat": np.array([-1]),
    }  # fmt: skip
    zero = helper.make_tensor("v", TensorProto.INT64, [1], [0])
    nodes = [
        node("ConstantOfShape", "extra", "zeros", value=zero),
        node("Concat", "list,zeros", "all", axis=0),
        node("Reshape", "all,shape", "pairs"),
        node("Slice", "pairs,start,end,axis,step", "reversed"),
        node("Transpose", "reversed", "sides", perm=[1, 0]),
        node("Reshape", "sides,flat", "pads0"),
        node("Cast", "pads0", "pads", to=TensorProto.INT64),
        node("Pad", "x,pads", mode="constant"),
    ]  # fmt: skip
    return make(nodes, constants=constants)


def focus():
    """YOLOv5's Focus: the four phases of a 2 × 2 grid as channels."""
    nodes, constants = [], {"p": np.array([2, 2]), "a": np.array([2, 3]), "e": np.array([99, 99])}
    for i, start in enumerate([(0, 0), (1, 0), (0, 1), (1, 1)]):
        constants[f"s{i}"] = np.array(start)
        nodes.append(node("Slice", f"x,s{i},e,a,p", f"part{i}"))
    return make([*nodes, node("Concat", "part0,part1,part2,part3", axis=1)], constants=constants)


def squeeze_excite():
    nodes = [
        node("GlobalAveragePool", "x", "mean"),
        node("Flatten", "mean", "flat"),
        node("Gemm", "flat,w", "gate2", transB=1),
        node("Unsqueeze", "gate2,axes", "gate"),
        node("Mul", "x,gate", "y"),
    ]
    return make(nodes, constants={"w": (4, 4), "axes": np.array([2, 3])})


def conv_next():
    """ConvNeXt's block: depthwise convolution, then linear layers on the last axis."""
    return chain(
        ("Conv", ["k"], {"group": 4, "pads": [1] * 4}),
        ("Transpose", [], {"perm": [0, 2, 3, 1]}),
        ("MatMul", ["w"], {}),
        ("Add", ["b"], {}),
        ("MatMul", ["v"], {}),
        ("Transpose", [], {"perm": [0, 3, 1, 2]}),
        ("Add", ["x"], {}),
        constants={"k": (4, 1, 3, 3), "w": (4, 16), "b": np.zeros(16), "v": (16, 4)},
    )


def channels_last():
    """A TensorFlow model: channels last at the input, a bias first."""
    return chain(
        ("Sub", ["zero"], {}),
        ("Transpose", [], {"perm": [0, 3, 1, 2]}),
        ("Conv", ["k"], {"pads": [0, 1, 0, 2]}),
        constants={"zero": np.zeros(3), "k": (2, 3, 3, 3)},
        shape=(1, 8, 6, 3),
    )


def gathered(indices, axis):
    return one("Gather", np.array(indices), axis=axis)


K33, K23 = (5, 4, 3, 3), (5, 4, 2, 3)
NEAREST = {"mode": "nearest"}
ASYMMETRIC = NEAREST | {
    "coordinate_transformation_mode": "asymmetric",
    "nearest_mode": "floor",
}
COMPUTED = {
    "conv": one("Conv", K33, pads=[1, 0, 2, 3], strides=[2, 1]),
    "conv, kernel attribute": one("Conv", K23, kernel_shape=[2, 3], dilations=[2, 1]),
    "conv, groups": one("Conv", (6, 2, 3, 3), group=2),
    "conv, depthwise": one("Conv", (8, 1, 3, 3), group=4),
    "conv, same upper": one("Conv", K23, auto_pad="SAME_UPPER", strides=[3, 2]),
    "conv, same lower": one("Conv", K23, auto_pad="SAME_LOWER", strides=[2, 1]),
    "conv, valid": one("Conv", K33, auto_pad="VALID"),
    "transpose": one("ConvTranspose", (4, 3, 3, 3), strides=[2, 2], pads=[1, 1, 1, 1]),
    "transpose, output padding": one(
        "ConvTranspose", (4, 3, 3, 2), strides=[2, 3], pads=[1, 0, 0, 1], output_padding=[1, 2]
    ),
    "transpose, dilation": one("ConvTranspose", (4, 3, 3, 2), dilations=[2, 1]),
    "max pool": one("MaxPool", kernel_shape=[3, 2], strides=[2, 2], pads=[1, 0, 1, 0]),
    "max pool, default stride": one("MaxPool", kernel_shape=[3, 2]),
    "max pool, ceil": one("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "max pool, dilation": one("MaxPool", kernel_shape=[3, 2], dilations=[2, 3]),
    "average pool": one("AveragePool", kernel_shape=[3, 3], pads=[1] * 4, strides=[2, 2]),
    "average pool, counted": one(
        "AveragePool", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1
    ),
    "average pool, ceil": one("AveragePool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1),
    "global average": one("GlobalAveragePool"),
    "global maximum": one("GlobalMaxPool"),
    "pad": one("Pad", np.array([0, 0, 1, 2, 0, 0, 3, 0])),
    "pad, reflect": one("Pad", np.array([0, 0, 1, 2, 0, 0, 3, 0]), mode="reflect"),
    "pad, edge": one("Pad", np.array([0, 0, 1, 2, 0, 0, 3, 0]), mode="edge"),
    "pad, axes": one("Pad", np.array([1, 2, 3, 4]), None, np.array([3, -2])),
    "pad, as PyTorch exports it": pytorch_pad(),
    "slice, channels": slices([1], [99], [1], [2]),
    "slice, space": slices([1, -5], [-2, 99], [2, 3], [1, 1]),
    "slice, strides": slices([1, 1, 0], [4, 8, 6], [1, 2, 3], [1, 3, 2]),
    "slice, all": slices([0], [99], [2], [1]),
    "split": make(
        [node("Split", "x,sizes", "a,b", axis=1), node("Concat", "b,a", "y", axis=1)],
        constants={"sizes": np.array([1, 3])},
    ),
    "split, uneven": make(
        [node("Split", "x", "a,b,c", axis=1, num_outputs=3), node("Concat", "c,b,a", "y", axis=1)],
        shape=(1, 7, 3, 3),
    ),
    "split, old": make(
        [node("Split", "x", "a,b", axis=2, split=[3, 5])], opset=11, outputs=("a", "b")
    ),
    "gather, one": gathered([2], 1),
    "gather, scalar": chain(
        ("Gather", ["i"], {"axis": 1}), ("Unsqueeze", ["one"], {}),
        constants={"i": np.array(-1), "one": np.array([1])},
    ),
    "gather, reversed": gathered([3, 2, 1, 0], 1),
    "gather, several runs": gathered([1, 3, 0, 1, 2, 2], 1),
    "gather, rows": gathered([2, 4, 6], 2),
    "shuffle": reshapes([1, 2, 3, 8, 6], [0, 2, 1, 3, 4], [1, -1, 8, 6], shape=(1, 6, 8, 6)),
    "shuffle, copied sizes": reshapes(
        [0, 3, 2, 8, -1], [0, 2, 1, 3, 4], [0, 6, 8, 6], shape=(1, 6, 8, 6)
    ),
    "pixel shuffle by reshapes": reshapes(
        [1, 2, 2, 2, 4, 3], [0, 1, 4, 2, 5, 3], [1, 2, 8, 6], shape=(1, 8, 4, 3)
    ),
    "depth to space by reshapes": reshapes(
        [1, 2, 2, 2, 4, 3], [0, 3, 4, 1, 5, 2], [1, 2, 8, 6], shape=(1, 8, 4, 3)
    ),
    "pixel unshuffle by reshapes": reshapes(
        [1, 4, 4, 2, 3, 2], [0, 1, 3, 5, 2, 4], [1, 16, 4, 3]
    ),
    "space to depth by reshapes": reshapes(
        [1, 4, 4, 2, 3, 2], [0, 3, 5, 1, 2, 4], [1, 16, 4, 3]
    ),
    "rows behind a pixel unshuffle": chain(
        ("Reshape", ["a"], {}), ("Transpose", [], {"perm": [0, 1, 3, 5, 2, 4]}),
        ("Reshape", ["b"], {}), ("Slice", ["one", "three", "rows"], {}),
        constants={"a": np.array([1, 4, 4, 2, 3, 2]), "b": np.array([1, 16, 4, 3]),
                   "one": np.array([1]), "three": np.array([3]), "rows": np.array([2])},
    ),
    "depth to space, DCR": one("DepthToSpace", blocksize=2, shape=(1, 12, 3, 4)),
    "depth to space, CRD": one("DepthToSpace", blocksize=2, mode="CRD", shape=(1, 12, 3, 4)),
    "space to depth": one("SpaceToDepth", blocksize=2),
    "space to depth, one channel": one("SpaceToDepth", blocksize=2, shape=(1, 1, 4, 4)),
    "focus": focus(),
    "channels last": channels_last(),
    "ConvNeXt": conv_next(),
    "squeeze and excite": squeeze_excite(),
    "resize, nearest": resize([1, 1, 2, 3], **NEAREST),
    "resize, floor": resize([1, 1, 1.5, 2.5], **ASYMMETRIC),
    "resize, half pixel ceil": resize(
        [1, 1, 0.5, 1.5], **NEAREST, nearest_mode="round_prefer_ceil"
    ),
    "resize, sizes": resize(sizes=[1, 4, 16, 3], **ASYMMETRIC),
    "resize, axes": resize([2, 3], axes=[3, 2], **NEAREST),
    "resize, linear": resize([1, 1, 2, 1.5], mode="linear"),
    "resize, linear sizes": resize(
        sizes=[1, 4, 5, 9], mode="linear", coordinate_transformation_mode="pytorch_half_pixel"
    ),
    "resize, corners": resize(
        sizes=[1, 4, 15, 11], mode="linear", coordinate_transformation_mode="align_corners"
    ),
    "resize, by 1": resize([1, 1, 1, 1], mode="cubic"),
    "upsample": one("Upsample", np.array([1, 1, 2, 3], np.float32), opset=9),
    "sum": make(
        [node("Conv", "x,w", "a", pads=[1] * 4), node("Sum", "a,x,a")],
        constants={"w": (4, 4, 3, 3)},
    ),
    "product": make(
        [node("Conv", "x,w", "a", pads=[1] * 4), node("Mul", "a,x")],
        constants={"w": (1, 4, 3, 3)},
    ),
    "average of the whole map": one("AveragePool", kernel_shape=[8, 6], strides=[3, 1]),
    "maximum of the whole map": one("MaxPool", kernel_shape=[8, 6], ceil_mode=1),
    "row means": make(
        [node("AveragePool", "x", "a", kernel_shape=[8, 1]), node("Add", "a,x")]
    ),
    "fully connected": chain(
        ("Flatten", [], {}), ("Gemm", ["w"], {}), ("MatMul", ["v"], {}),
        constants={"w": (192, 7), "v": (7, 2)},
    ),
    "fully connected, reshape": chain(
        ("Reshape", ["s"], {}), ("Gemm", ["w", "b"], {"transB": 1}),
        constants={"s": np.array([0, -1]), "w": (7, 192), "b": np.zeros(7)},
    ),
    "reduce mean": one("ReduceMean", np.array([2, 3])),
    "reduce mean, old": one("ReduceMean", axes=[-1, -2], keepdims=0, opset=11),
    "reduce max, all": one("ReduceMax", np.array([2, 3]), keepdims=0),
    "reduce sum, channels": one("ReduceSum", np.array([1])),
    "matmul from the left": make(
        [
            node("Reshape", "x,s", "flat"),
            node("MatMul", "w,flat", "mixed"),
            node("Reshape", "mixed,t"),
        ],
        constants={"s": np.array([1, 4, 48]), "w": (3, 4), "t": np.array([1, 3, 8, 6])},
    ),
    "einsum": one("Einsum", (5, 4), equation="nchw,oc->nohw"),
    "einsum, last": chain(
        ("Transpose", [], {"perm": [0, 2, 3, 1]}), ("Einsum", ["w"], {"equation": "nhwc,cd->ndhw"}),
        constants={"w": (4, 3)},
    ),
    "expand": chain(
        ("GlobalAveragePool", [], {}), ("Expand", ["s"], {}),
        constants={"s": np.array([1, 4, 5, 7])},
    ),
    "far ends joined on": make(
        [
            node("Slice", "x,m2,end,two", "a"),
            node("Slice", "x,zero,one,two", "b"),
            node("Concat", "a,x,b", "c", axis=2),
            node("Slice", "c,m2,end,three", "d"),
            node("Concat", "d,c", axis=3),
        ],
        constants={"m2": np.array([-2]), "end": np.array([2**31]), "zero": np.array([0]),
                   "one": np.array([1]), "two": np.array([2]), "three": np.array([3])},
    ),
    "twice": one("Concat", inputs="x,x", axis=2),
    "four times": one("Concat", inputs="x,x,x,x", axis=2),
    "beside each other": make([node("Relu", "x", "r"), node("Concat", "x,r", axis=-1)]),
    "near end in front": make(
        [node("Slice", "x,zero,one,axis", "s"), node("Concat", "s,x", axis=2)],
        constants={"zero": np.array([0]), "one": np.array([1]), "axis": np.array([2])},
    ),
    "beside zeros": make(
        [node("Concat", "z,x,z", axis=2)], constants={"z": np.zeros((1, 4, 2, 6))}
    ),
    "reshape to every other number": make(
        [node("Slice", "all,zero,end,,two", "shape"), node("Reshape", "x,shape")],
        constants={
            "all": np.array([1, 9, 4, 9, 8, 9, 6, 9]),
            "zero": np.array([0]), "end": np.array([8]), "two": np.array([2]),
        },
    ),
    "expand one channel": make(
        [
            node("Slice", "x,zero,one,one", "a"), node("Expand", "a,shape", "b"),
            node("Concat", "b,x", axis=1),
        ],
        constants={"zero": np.array([0]), "one": np.array([1]), "shape": np.array([1, 6, 1, 1])},
    ),
    "sum of a stack": make(
        [
            node("Slice", "x,zero,two,one", "a"), node("Slice", "x,two,end,one", "b"),
            node("Unsqueeze", "a,zero", "c"), node("Unsqueeze", "b,zero", "d"),
            node("Concat", "c,d,c", "e", axis=0), node("ReduceSum", "e,zero", keepdims=0),
        ],
        constants={
            "zero": np.array([0]), "one": np.array([1]), "two": np.array([2]),
            "end": np.array([4]),
        },
    ),
    "tile channels": one("Tile", np.array([1, 5, 1, 1])),
    "tile once": one("Tile", np.array([1, 1, 1, 1])),
    "relu": one("Relu"),
}  # fmt: skip


def test_the_parts_of_a_sum_are_called_like_it():
    nodes = from_onnx(COMPUTED["sum of a stack"]).nodes
    assert [name for name in nodes if name.startswith("y")] == ["y.part", "y.part2", "y.part3", "y"]
    assert nodes["y"].inputs == ("y.part", "y.part2", "y.part3")


@pytest.mark.parametrize("model", COMPUTED.values(), ids=COMPUTED)
def test_network_computes_what_the_model_computes(model):
    shape = tuple(d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim)
    x = np.random.default_rng(7).integers(1, 200, shape).astype(np.float64)
    wanted = ReferenceEvaluator(model).run(None, {"x": x})
    network = from_onnx(model)
    first = (
        x.transpose(0, 3, 1, 2).copy() if network.nodes["x"].layer.channels == shape[-1] == 3 else x
    )
    got = execute(network, first)
    assert len(got) == len(wanted)
    for own, reference in zip(got, wanted, strict=True):
        np.testing.assert_allclose(own.reshape(reference.shape), reference, rtol=TOLERANCE)
    size = next(iter(input_sizes(model).values()))
    graph = lower(network, size)
    for name, own in zip(network.outputs, got, strict=True):
        assert (graph.channels[name], *graph.sizes[name]) == own.shape[1:]


# --- what single operators become -----------------------------------------------------------


def test_windows_are_spelled_shortly():
    made = from_onnx(one("Conv", K33, pads=[1] * 4, strides=[2, 2]))
    assert layers(made) == [Conv(3, 2, padding=1, channels=5)]
    assert repr(layers(made)[0]) == repr(Conv(3, 2, padding=1, channels=5))
    made = from_onnx(one("Conv", K23, pads=[1, 0, 2, 3], dilations=[1, 2], auto_pad="NOTSET"))
    assert layers(made)[0].bind(2) == Conv(
        (2, 3), dilation=(1, 2), padding=((1, 2), (0, 3)), channels=5
    ).bind(2)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (one("Conv", (5, 4, 3), pads=[1, 2], shape=(1, 4, 9)),
         [Conv(3, padding=((1, 2),), channels=5)]),
        (one("Conv", (5, 4, 3, 1, 2), shape=(1, 4, 9, 8, 7)), [Conv((3, 1, 2), channels=5)]),
        (one("GlobalMaxPool", shape=(1, 4, 9)), [GlobalPool("max")]),
        (one("MaxPool", kernel_shape=[2] * 3, strides=[2] * 3, shape=(1, 4, 8, 8, 8)),
         [MaxPool(2, 2)]),
        (one("AveragePool", kernel_shape=[2], pads=[1, 0], shape=(1, 4, 9)),
         [AvgPool(2, 1, padding=((1, 0),), count_include_pad=False)]),
        (one("LpPool", kernel_shape=[2, 2], strides=[2, 2]), [MaxPool(2, 2)]),
        (one("GlobalLpPool"), [GlobalPool("max")]),
        (one("Conv", K33, auto_pad="SAME_LOWER", strides=[2, 2]),
         [Conv(3, 2, padding="same_lower", channels=5)]),
        (one("Conv", K33, pads=[-1, 0, 1, -2]),
         [Crop(((1, 0), (0, 2))), Conv(3, padding=((0, 1), (0, 0)), channels=5)]),
        (one("Pad", np.array([0, 0, -1, 2, 0, 0, 0, -3])),
         [Crop(((1, 0), (0, 3))), Pad(((0, 0), (2, 0)))]),
        (one("Pad", np.array([0, 0, -1, -1, 0, 0, -1, -1])), [Crop(1)]),
        (one("Pad", np.array([0, 0, 1, 1, 0, 0, 1, 1]), mode="wrap", opset=19),
         [Pad(1, "circular")]),
        (one("ConvTranspose", (4, 3, 4, 4), strides=[2, 2], pads=[1] * 4),
         [ConvTranspose(4, 2, padding=1, channels=3, gain=4.0)]),
        (one("ConvTranspose", (4, 3, 3, 3), strides=[2, 2], group=2, auto_pad="SAME_UPPER"),
         [ConvTranspose(3, 2, padding=((0, 1), (0, 1)), channels=6, groups=2, gain=4.0)]),
        (one("ConvTranspose", (4, 3, 3, 3), strides=[2, 2], auto_pad="SAME_LOWER"),
         [ConvTranspose(3, 2, padding=((1, 0), (1, 0)), channels=3, gain=4.0)]),
        (one("ConvTranspose", (4, 3, 2, 2), strides=[3, 3], output_shape=[24, 18]),
         [ConvTranspose(2, 3, output_padding=1, channels=3, gain=9.0)]),
        (one("ConvTranspose", (4, 3, 3, 3), strides=[2, 2], output_shape=[16, 13]),
         [ConvTranspose(3, 2, padding=((1, 0), (0, 0)), channels=3, gain=4.0)]),
        (one("BatchNormalization", *[(4,)] * 4), [Norm("batch")]),
        (one("BatchNormalization", *[(4,)] * 4, training_mode=1, outputs="y,mean,var"),
         [Norm("batch_train")]),
        (one("BatchNormalization", *[(4,)] * 4, opset=9, outputs="y,mean,var"),
         [Norm("batch_train")]),
        (one("BatchNormalization", *[(4,)] * 4, opset=6), [Norm("batch_train")]),
        (one("BatchNormalization", *[(4,)] * 4, opset=6, is_test=1), [Norm("batch")]),
        (one("InstanceNormalization", (4,), (4,)), [Norm("instance")]),
        (one("GroupNormalization", (4,), (4,), num_groups=2, opset=21), [Norm("group")]),
        (one("GroupNormalization", (4,), (4,), num_groups=4, opset=21), [Norm("instance")]),
        (one("GroupNormalization", (4,), (4,), num_groups=1, opset=21), [Norm("layer")]),
        (one("LayerNormalization", (4, 8, 6), axis=1), [Norm("layer")]),
        (one("LayerNormalization", (8, 6), axis=2), [Norm("instance")]),
        (chain(("Transpose", [], {"perm": [0, 2, 3, 1]}), ("LayerNormalization", ["w"], {}),
               ("Transpose", [], {"perm": [0, 3, 1, 2]}), constants={"w": (4,)}),
         [Norm("channel")]),
        (chain(("Reshape", ["a"], {}), ("InstanceNormalization", ["w", "w"], {}),
               ("Reshape", ["b"], {}),
               constants={"a": np.array([0, 2, -1]), "b": np.array([1, 4, 8, 6]), "w": (2,)}),
         [Norm("group")]),
        (one("LRN", size=5), [Norm("lrn")]),
        (one("LpNormalization", axis=1), [Norm("channel")]),
        (one("MeanVarianceNormalization"), [Norm("batch_train")]),
        (one("MeanVarianceNormalization", axes=[2, 3]), [Norm("instance")]),
        (one("Dropout"), [Identity()]),
        (one("Dropout", np.array(0.25), np.array(True)), [Dropout(0.25)]),
        (one("Dropout", np.array(0.25), np.array(False)), [Identity()]),
        (one("Softmax", axis=1), [Activation("softmax", gain=1.0)]),
        (one("Softmax", axis=1, opset=9), [Attention()]),
        (one("Softmax", axis=1, opset=9, shape=(1, 4, 1, 1)), [Activation("softmax", gain=1.0)]),
        (one("Softmax", axis=2, shape=(1, 4, 9)), [Attention()]),
        (one("Cast", to=TensorProto.FLOAT), [Identity()]),
        (one("ReduceL2", np.array([2, 3])), [GlobalPool("max")]),
        (one("ReduceMean", np.array([1, 2, 3])), [GlobalPool(), Conv(1, channels=1)]),
        (one("ReduceMean"), [GlobalPool(), Conv(1, channels=1)]),
        (one("ReduceMean", noop_with_empty_axes=1), [Identity()]),
        (one("ArgMax", axis=1), [Conv(1, channels=1)]),
        (one("Upsample", scales=[1.0, 1.0, 2.0, 2.0], opset=8), [Upsample(2)]),
        (one("DequantizeLinear", np.array(1.0), shape=(1, 4, 8, 6)),
         [Activation("dequantizelinear", gain=1.0)]),
    ],
)  # fmt: skip
def test_operator_becomes(model, expected):
    made = from_onnx(model)
    assert [x.bind(made.ndim) for x in layers(made)] == [x.bind(made.ndim) for x in expected]
    size = next(iter(input_sizes(model).values()))
    shapes = shape_inference.infer_shapes(model, data_prop=True).graph.output
    onnx_shape = [d.dim_value for d in shapes[0].type.tensor_type.shape.dim]
    if len(onnx_shape) == made.ndim + 2 and all(onnx_shape):
        graph = lower(made, size)
        assert [graph.channels[made.outputs[0]], *graph.sizes[made.outputs[0]]] == onnx_shape[1:]


WHOLE = node("MaxPool", "x", "p", kernel_shape=[8, 6])
STRIDED = node("Conv", "x,k", "s", strides=[8, 6])


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (one("MaxPool", kernel_shape=[8, 6]), GlobalPool("max")),
        (one("LpPool", kernel_shape=[8, 6]), GlobalPool("max")),
        (one("AveragePool", kernel_shape=[8, 6], auto_pad="VALID"), GlobalPool()),
        (one("AveragePool", kernel_shape=[9], shape=(1, 4, 9)), GlobalPool()),
        (chain(("AveragePool", [], {"kernel_shape": [8, 6]}), ("Flatten", [], {}),
               ("Gemm", ["w"], {}), constants={"w": (4, 3)}), GlobalPool()),
        # A gate: one pixel meets a whole map, and the pooled map meets itself.
        (make([WHOLE, node("Sigmoid", "p", "q"), node("Mul", "p,q", "g"), node("Mul", "x,g")]),
         GlobalPool("max")),
        (make([WHOLE, node("Add", "p,c")], constants={"c": (1, 4, 1, 1)}), GlobalPool("max")),
        # Windows that stay: not all of the map, one pixel of one, padding, an open size.
        (one("MaxPool", kernel_shape=[8, 5]), MaxPool((8, 5), 1)),
        (one("MaxPool", kernel_shape=[1, 1], shape=(1, 4, 1, 1)), MaxPool(1, 1)),
        (one("MaxPool", kernel_shape=[8, 6], pads=[1, 0, 0, 0]),
         MaxPool((8, 6), 1, padding=((1, 0), 0))),
        (one("MaxPool", kernel_shape=[8, 6], shape=(1, 4, "h", 6)), MaxPool((8, 6), 1)),
        # The last reduction of a network for small images, as in ResNet-D and Inception.
        (make([WHOLE, node("Conv", "p,o", "q"), STRIDED, node("Add", "s,q")],
              constants={"o": (4, 4, 1, 1), "k": (4, 4, 8, 6)}), MaxPool((8, 6), 1)),
        (make([WHOLE, STRIDED, node("Concat", "p,s", axis=1)], constants={"k": (4, 4, 8, 6)}),
         MaxPool((8, 6), 1)),
    ],
)  # fmt: skip
def test_pooling_over_the_whole_map_is_global(model, expected):
    network = from_onnx(model)
    pools = [x for x in layers(network) if isinstance(x, AvgPool | MaxPool | GlobalPool)]
    assert [x.bind(network.ndim) for x in pools] == [expected.bind(network.ndim)]


def test_an_input_size_makes_pooling_global():
    model = one("AveragePool", kernel_shape=[7, 7], shape=(1, 4, "h", "w"))
    assert layers(from_onnx(model)) == [AvgPool(7, 1)]
    assert layers(from_onnx(model, input_size=7)) == [GlobalPool()]
    assert layers(from_onnx(model, input_size=14)) == [AvgPool(7, 1)]


UNARY = """Abs Celu Clip Elu Erf Exp Gelu HardSigmoid HardSwish LeakyRelu Log Mish Reciprocal
    Relu Selu Sigmoid Softplus Softsign Sqrt Tanh ThresholdedRelu""".split()  # noqa: SIM905


@pytest.mark.parametrize("operator", UNARY)
def test_activations_keep_the_variance(operator):
    (layer,) = layers(from_onnx(one(operator, opset=20)))
    assert layer == Activation(operator.lower(), gain=1.0)


FUNCTIONS = [
    # A model, what fastrf.activations calls it, and its slope.
    (one("Relu"), "relu", None),
    (one("Sigmoid"), "sigmoid", None),
    (one("LeakyRelu"), "leaky_relu", 0.01),
    (one("LeakyRelu", alpha=0.25), "leaky_relu", 0.25),
    (one("Elu"), "elu", 1.0),
    (one("Celu", alpha=2.0), "celu", 2.0),
    (one("PRelu", np.array([3.0, 4.0])), "prelu", 12.5**0.5),
    (one("Gelu", opset=20), "gelu", None),
    (one("Gelu", opset=20, approximate="tanh"), "gelu_tanh", None),
    (one("HardSigmoid"), "hardsigmoid(alpha)", None),
    (one("HardSigmoid", alpha=1 / 6), "hardsigmoid", None),
    (one("Clip", np.array(0.0), np.array(6.0)), "relu6", None),
    (one("Clip", np.array(-1.0), np.array(1.0)), "hardtanh", None),
    (one("Clip", np.array(0.0)), "relu", None),
    (one("Clip", np.array(0.0), np.array(5.0)), "clip", None),
]


@pytest.mark.parametrize(("model", "name", "slope"), FUNCTIONS)
def test_activations_of_trained_models_are_known_by_name(model, name, slope):
    (layer,) = layers(from_onnx(model, weights="trained"))
    assert layer.function == name
    assert layer.slope == (None if slope is None else pytest.approx(slope, rel=1e-6))


@pytest.mark.parametrize(
    ("operator", "layer"),
    [("Add", Add()), ("Sub", Add()), ("Sum", Add()), ("Max", Add()), ("Min", Add()),
     ("Mean", Add()),     ("Mul", Multiply()), ("Div", Multiply()), ("Pow", Multiply())],
)  # fmt: skip
def test_arithmetic_with_maps_merges_and_with_constants_does_not(operator, layer):
    relu = node("Relu", "x", "r")
    assert layers(from_onnx(make([relu, node(operator, "x,r")])))[-1] == layer
    made = layers(from_onnx(one(operator, (4, 1, 1))))
    assert made == [Activation(operator.lower(), gain=1.0)]
    made = layers(from_onnx(make([node(operator, "c,x")], constants={"c": (1,)})))
    assert made == [Scale(-1.0) if operator == "Sub" else Activation(operator.lower(), gain=1.0)]


@pytest.mark.parametrize(
    ("nodes", "scales"),
    [
        ([node("Neg")], [-1]),
        ([node("Mul", "x,c")], [4]),
        ([node("Mul", "c,x")], [4]),
        ([node("Div", "x,c")], [1 / 4]),
        ([node("Div", "c,x")], []),
        ([node("Mul", "x,none")], []),
        ([node("Div", "x,none")], []),
        ([node("Relu", "x", "r"), node("Sub", "x,r")], [-1]),
        ([node("Relu", "x", "r"), node("Mean", "x,r,r")], [1 / 3] * 3),
    ],
)
def test_numbers_and_signs_multiply(nodes, scales):
    """Signs and factors count where ways that part meet again."""
    made = layers(
        from_onnx(make(nodes, constants={"c": np.full((1, 1), 4.0), "none": np.zeros(())}))
    )
    assert [layer.factor for layer in made if isinstance(layer, Scale)] == scales


def test_a_difference_is_that_of_its_operands():
    """A map less its average: the weight that stays at the unit is 1 - 1/9, not 1 + 1/9."""
    pooled = node("AveragePool", "x", "p", kernel_shape=[3, 3], pads=[1] * 4)
    network = from_onnx(make([pooled, node("Sub", "x,p")], shape=(1, 1, 7, 7)))
    image = rf.erf(network).to_numpy()
    wanted = np.full((3, 3), 1 / 81)
    wanted[1, 1] = (1 - 1 / 9) ** 2
    np.testing.assert_allclose(image, wanted / wanted.sum(), rtol=1e-14)


def test_attention_reads_everything_and_returns_to_the_grid():
    """A non-local block: 1 × 1 convolutions, x·y over positions, back to a map, residual."""
    nodes = [
        *(node("Conv", f"x,{w}", f"{w}4") for w in ("q", "k", "v")),
        *(node("Reshape", f"{w}4,flat", f"{w}3") for w in ("q", "k", "v")),
        node("Transpose", "q3", "qt", perm=[0, 2, 1]),
        node("MatMul", "qt,k3", "scores"),
        node("Softmax", "scores", "weights", axis=-1),
        node("Transpose", "weights", "wt", perm=[0, 2, 1]),
        node("MatMul", "v3,wt", "mixed"),
        node("Reshape", "mixed,grid", "map"),
        node("Conv", "map,o", "out"),
        node("Add", "out,x", "y"),
    ]
    constants = dict.fromkeys(("q", "k", "v"), (2, 4, 1, 1)) | {
        "o": (4, 2, 1, 1), "flat": np.array([1, 2, 48]), "grid": np.array([1, 2, 8, 6])
    }  # fmt: skip
    network = from_onnx(make(nodes, constants=constants))
    made = layers(network)
    assert made.count(Attention()) == 2
    assert made[-2:] == [Conv(1, channels=4), Add()]
    graph = lower(network, (8, 6))
    assert (graph.sizes[network.outputs[0]], graph.channels[network.outputs[0]]) == ((8, 6), 4)


def test_multi_head_attention_splits_query_key_and_value():
    """(N, H·W, 3·C) → (3, N, heads, H·W, d): each part is a run of channels."""
    nodes = [
        node("Reshape", "x,flat", "tokens0"),
        node("Transpose", "tokens0", "tokens", perm=[0, 2, 1]),
        node("MatMul", "tokens,w", "qkv"),
        node("Reshape", "qkv,heads", "split0"),
        node("Transpose", "split0", "split", perm=[2, 0, 3, 1, 4]),
        *(node("Gather", f"split,{i}", f"part{i}", axis=0) for i in range(3)),
        node("Transpose", "part1", "kt", perm=[0, 1, 3, 2]),
        node("MatMul", "part0,kt", "scores"),
        node("MatMul", "scores,part2", "mixed"),
        node("Transpose", "mixed", "back0", perm=[0, 2, 1, 3]),
        node("Reshape", "back0,tokens_shape", "back"),
        node("Add", "back,tokens", "sum"),
        node("Transpose", "sum", "sumt", perm=[0, 2, 1]),
        node("Reshape", "sumt,grid", "y"),
    ]
    constants = {
        "flat": np.array([1, 4, 48]), "w": (4, 12), "heads": np.array([1, 48, 3, 2, 2]),
        "tokens_shape": np.array([1, 48, 4]), "grid": np.array([1, 4, 8, 6]),
    } | {str(i): np.array(i) for i in range(3)}  # fmt: skip
    network = from_onnx(make(nodes, constants=constants))
    made = layers(network)
    assert made[0] == Conv(1, channels=12)
    slices = [x for x in made if isinstance(x, ChannelSlice)]
    assert slices == [ChannelSlice(0, 4), ChannelSlice(4, 8), ChannelSlice(8, 12)]
    assert made[-1] == Add()
    graph = lower(network, (8, 6))
    assert (graph.sizes[network.outputs[0]], graph.channels[network.outputs[0]]) == ((8, 6), 4)


# --- sizes, names, policies -----------------------------------------------------------------


def dynamic(nodes, constants=None, shape=("batch", 3, "height", "width")):
    return make(nodes, shape, constants=constants)


def test_open_sizes_stay_open():
    nodes = [
        node("Conv", "x,w", "a", pads=[1] * 4, strides=[2, 2]),
        node("Slice", "a,start,end,axes", "b"),
        node("Resize", "b,,scales", "c", mode="nearest"),
        node("GlobalAveragePool", "c", "d"),
        node("Flatten", "d", "e"),
        node("Gemm", "e,f", "y"),
    ]
    constants = {
        "w": (8, 3, 3, 3), "start": np.array([1]), "end": np.array([-2]), "axes": np.array([2]),
        "scales": np.array([1, 1, 2, 2], np.float32), "f": (8, 10),
    }  # fmt: skip
    model = dynamic(nodes, constants)
    assert input_sizes(model) == {"x": None}
    network = from_onnx(model)
    assert layers(network) == [
        Conv(3, 2, padding=1, channels=8),
        Crop(((1, 2), 0)),
        Upsample(2),
        GlobalPool(),
        FullyConnected(10),
    ]
    assert from_onnx(model, input_size=64) == network
    assert from_onnx(model, input_size=(64, 32)) == network


def test_sizes_computed_in_the_graph_need_an_input_size():
    """Resize to the size of another map, as PyTorch exports F.interpolate(a, b.shape[2:])."""
    nodes = [
        node("MaxPool", "x", "a", kernel_shape=[2, 2], strides=[2, 2]),
        node("Shape", "x", "all"),
        node("Slice", "all,two,four", "pixels"),
        node("Shape", "a", "own"),
        node("Slice", "own,zero,two", "first"),
        node("Concat", "first,pixels", "sizes", axis=0),
        node("Resize", "a,,,sizes", "b", mode="nearest"),
        node("Add", "b,x", "y"),
    ]
    constants = {"zero": np.array([0]), "two": np.array([2]), "four": np.array([4])}
    model = dynamic(nodes, constants)
    with pytest.raises(UnsupportedOperator, match="give input_size"):
        from_onnx(model)
    assert layers(from_onnx(model, input_size=32)) == [MaxPool(2, 2), Upsample(2), Add()]


def test_sizes_are_followed_where_onnx_infers_none():
    """Reshapes to what is computed from constants, of what nobody knows the shape of."""
    nodes = [
        node("Max", "ones,twice", "times"),
        node("Tile", "x,times", "a"),
        node("Max", "small,large", "flat"),
        node("Reshape", "a,flat", "b"),
        node("Reshape", "b,flat", "c"),
        node("Reshape", "c,rows", "d"),
        node("Shape", "d", "pixels"),
        node("Concat", "first,pixels", "all", axis=0),
        node("Reshape", "x,all", "e"),
        node("Conv", "e,w", "y"),
    ]
    constants = {
        "ones": np.array([1, 1, 1, 1]), "twice": np.array([1, 1, 2, 1]),
        "small": np.array([0, 9]), "large": np.array([1, 48]), "rows": np.array([8, -1]),
        "first": np.array([1, 4]), "w": (5, 4, 3, 3),
    }  # fmt: skip
    network = from_onnx(make(nodes, constants=constants), unknown="global")
    assert network.nodes["y"].layer == Conv(3, channels=5)
    assert network.nodes["y"].inputs == ("x",)


def test_names_are_the_nodes_or_the_tensors():
    made = [
        helper.make_node("Relu", ["x"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="twice"),
        helper.make_node("Relu", ["b"], ["c"], name="twice"),
        helper.make_node("Relu", ["c"], ["y"], name=""),
        helper.make_node("Relu", ["y"], ["dead"], name="unread"),
    ]
    network = from_onnx(make(made))
    assert list(network.nodes) == ["x", "first", "b", "c", "y"]
    assert network.name == "graph"
    assert from_onnx(make(made), name="mine").name == "mine"
    network = from_onnx(make(made[:1], outputs=("a",)))
    assert network.endpoints == {"a": "first"}
    made = [
        helper.make_node("Relu", ["x"], ["a"], name="b"),
        helper.make_node("Relu", ["a"], ["b"], name=""),
    ]
    assert list(from_onnx(make(made, outputs=("b",))).nodes) == ["x", "b", "b.2"]


def test_several_inputs_and_outputs():
    second = helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4, 8, 6])
    vector = helper.make_tensor_value_info("t", TensorProto.FLOAT, [1])
    nodes = [node("Add", "x,z", "a"), node("Mul", "a,t", "y")]
    network = from_onnx(make(nodes, outputs=("a", "y"), more=[second, vector]))
    assert network.inputs == ("x", "z")
    assert network.outputs == ("a", "y")
    assert layers(network) == [Add(), Activation("mul", gain=1.0)]


def test_local_functions_are_inlined():
    function = helper.make_function(
        "custom", "Twice", ["a"], ["c"],
        [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Tanh", ["b"], ["c"])],
        [helper.make_opsetid("", 18)],
    )  # fmt: skip
    call = helper.make_node("Twice", ["x"], ["t"], domain="custom")
    conv = node("Conv", "t,w")
    model = make([call, conv], constants={"w": (2048, 4, 1, 1)}, functions=[function])
    made = layers(from_onnx(model))
    assert made == [
        Activation("relu", gain=1.0), Activation("tanh", gain=1.0), Conv(1, channels=2048)
    ]  # fmt: skip


def test_unknown_operators_follow_the_policy():
    twirl = helper.make_node("Twirl", ["x"], ["a"], domain="custom", name="odd one")
    model = make([twirl, node("Conv", "a,w")], constants={"w": K33})
    with pytest.raises(UnsupportedOperator) as caught:
        from_onnx(model)
    message = str(caught.value)
    for words in ("custom.Twirl", "'odd one'", 'unknown="identity"', 'unknown="global"'):
        assert words in message
    assert "\n" not in message
    conv = Conv(3, channels=5)
    assert layers(from_onnx(model, unknown="identity")) == [Identity(), conv]
    assert layers(from_onnx(model, unknown="global")) == [Attention(), conv]
    with pytest.raises(InputError, match="'ignore' is not a policy"):
        from_onnx(model, unknown="ignore")


def test_what_comes_behind_an_unknown_shape_is_global_too():
    """A reshape to sizes that are not known: whatever order its axes are brought into later."""
    reshape = node("Reshape", "x,s", "a")
    turn = node("Transpose", "a", "y", perm=[0, 2, 1])
    model = make(
        [
            node("Shape", "x", "d"),
            node("Identity", "v", "e"),
            node("Slice", "d,w,e", "s"),
            reshape,
            turn,
        ],
        (1, 4, None, None),
        constants={"w": np.array([1]), "v": np.array([4])},
    )
    with pytest.raises(UnsupportedOperator, match="to an unknown shape"):
        from_onnx(model)
    assert layers(from_onnx(model, unknown="global")) == [Attention()]


def test_identity_cannot_change_shapes():
    model = one("TopK", np.array([2]), axis=1, outputs="y,i")
    with pytest.raises(UnsupportedOperator, match="changes the shape"):
        from_onnx(model, unknown="identity")
    assert layers(from_onnx(model, unknown="global")) == [Attention()]


def test_the_model_given_is_not_changed():
    model = dynamic([node("Conv", "x,w")], {"w": (8, 3, 3, 3)})
    before = model.SerializeToString()
    from_onnx(model, input_size=9)
    assert model.SerializeToString() == before


# --- refusals -------------------------------------------------------------------------------


UNSUPPORTED = {
    "concat with a constant across": (
        chain(("Reshape", ["s"], {}), ("Concat", ["c"], {"axis": 1}),
              constants={"s": np.array([1, 192]), "c": (1, 5)}),
        "joins a map with a constant",
    ),
    "concat across": (
        make([node("Reshape", "x,s", "f"), node("Concat", "f,f", axis=1)],
             constants={"s": np.array([1, 192])}),
        "neither whole channels nor one spatial axis",
    ),
    "reverse": (slices([-1], [-99], [2], [-1]), "backwards"),
    "crop and resize": (
        resize([1, 1, 2, 2], mode="linear", coordinate_transformation_mode="tf_crop_and_resize"),
        "tf_crop_and_resize",
    ),
    # Ties between two pixels at 5/2, none at 6/5: no one mode takes the same ones.
    "nearest ties": (resize([1, 1, 1.2, 2.5], **NEAREST), "round_prefer_floor"),
    "resized channels": (resize([1, 2, 2, 2], **NEAREST), "channels"),
    "padded batch": (one("Pad", np.array([1, 0, 0, 0, 0, 0, 0, 0])), "none of the map"),
    "mirrored channels": (
        one("Pad", np.array([0, 1, 0, 0, 0, 1, 0, 0]), mode="reflect"), "the channels"
    ),
    "softmax of rows": (one("Softmax", axis=3), "some of the spatial axes"),
    "reshape across": (
        chain(("Reshape", ["s"], {}), ("Conv", ["w"], {}),
              constants={"s": np.array([1, 6, 8, 4]), "w": (1, 6, 1, 1)}),
        "reshapes",
    ),
    "mixed meaning": (
        make([node("Transpose", "x", "t", perm=[0, 2, 1, 3]), node("Add", "x,t")], (1, 4, 4, 6)),
        "different things",
    ),
    "weights from a map": (
        make([node("Conv", "x,x")], (4, 4, 3, 3)), "weights from a map",
    ),
    "windows": (
        make([node("Reshape", "x,s", "w"), node("Transpose", "w", "v", perm=[0, 2, 4, 1, 3, 5]),
              node("MatMul", "v,v")],
             (1, 4, 8, 6), constants={"s": np.array([1, 4, 2, 4, 2, 3])}),
        "windows",
    ),
    "stride above kernel": (
        one("ConvTranspose", (4, 3, 2, 2), strides=[3, 3], auto_pad="SAME_UPPER"), "SAME padding"
    ),
    "pads below 0 on one side": (
        one("ConvTranspose", (4, 3, 2, 2), pads=[-1, 0, 0, 0]), "below 0"
    ),
    "linear in part": (
        make([node("Reshape", "x,s", "t"), node("MatMul", "t,w")],
             constants={"s": np.array([1, 2, 2, 8, 6]), "w": (6, 6)}),
        "a part of the channels or positions",
    ),
    "grows over a constant": (
        make([node("GlobalMaxPool", "x", "p"), node("Add", "p,c")], constants={"c": (1, 4, 5, 5)}),
        "spreads",
    ),
    "repeated": (one("Tile", np.array([1, 1, 2, 1])), "repeats"),
    "squeezed rows": (one("Squeeze", np.array([2])), "squeezes axes [2] of a tensor"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "words"), UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_what_cannot_be_expressed_is_refused_by_name(model, words):
    with pytest.raises(UnsupportedOperator) as caught:
        from_onnx(model)
    message = str(caught.value)
    assert words in message
    assert 'unknown="identity"' in message
    assert "\n" not in message
    assert any(f"model: {n.op_type} (node " in message for n in model.graph.node)


def changed(model, change):
    change(model)
    return model


def no_shape(model):
    model.graph.input[0].type.tensor_type.ClearField("shape")


def other_source(model):
    model.graph.node[0].input[0] = "nowhere"


def twice(model):
    model.graph.node.append(model.graph.node[0])


NO_NETWORK = {
    "bytes": (b"this is no model", "no ONNX model"),
    "nothing": (b"", "holds no graph"),
    "cut short": (light("squeezenet").read_bytes()[:5000], "cut short"),
    "no image": (one("Relu", shape=(4,)), "no input is a map"),
    "no shape": (changed(one("Relu"), no_shape), "no input is a map"),
    "two kinds of map": (
        make([node("Add", "x,z")], more=[helper.make_tensor_value_info("z", 1, [1, 2, 3])]),
        "different numbers of spatial axes",
    ),
    "no tensor": (changed(one("Relu"), other_source), "'nowhere'"),
    "written twice": (changed(one("Relu"), twice), "written twice"),
    "two inputs of one name": (
        make([node("Relu")], more=[helper.make_tensor_value_info("x", 1, [1, 2, 3])]),
        "same name",
    ),
    "no such channel": (one("Gather", np.array([0, 4]), axis=1), "outside 0 … 3"),
    "constant output": (make([node("Relu", "c")], constants={"c": (3,)}), "no output depends"),
    "strides that are not whole": (
        one("MaxPool", kernel_shape=[2, 2], strides=[1.0, 2.5]), "strides=[1.0, 2.5] must be 2",
    ),
    "strides that are no list": (
        one("MaxPool", kernel_shape=[2, 2], strides=2), "strides=2 must be 2 numbers",
    ),
    "kernel of 0": (one("MaxPool", kernel_shape=[0, 2]), "(node 'y')"),
    "wrong channels": (one("Conv", (5, 4, 3, 3), group=3), "(node 'y')"),
}  # fmt: skip


@pytest.mark.parametrize(("model", "words"), NO_NETWORK.values(), ids=NO_NETWORK)
def test_what_is_no_network_is_refused_in_one_line(model, words):
    with pytest.raises(NetworkFileError) as caught:
        from_onnx(model)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_folders_and_other_objects(tmp_path):
    with pytest.raises(NetworkFileError, match=r"none\.onnx: cannot be read: No such file"):
        from_onnx(tmp_path / "none.onnx")
    with pytest.raises(NetworkFileError, match="no regular file"):
        from_onnx(tmp_path)
    with pytest.raises(InputError, match="int is no ONNX model"):
        from_onnx(3)
    with pytest.raises(InputError, match="input_size"):
        from_onnx(one("Relu"), input_size=0)
    with pytest.raises(InputError, match="does not fit"):
        from_onnx(one("Relu"), input_size=7)


def test_external_data_is_never_opened(tmp_path):
    model = one("Conv", K33)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    path = tmp_path / "net.onnx"
    path.write_bytes(model.SerializeToString())
    assert layers(from_onnx(path)) == [Conv(3, channels=5)]


def test_without_onnx_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtra, match=r'pip install "fastrf\[onnx\]"'):
        from_onnx(b"")


def test_huge_constants_are_not_made():
    """A weight of 2^34 elements that the graph only describes."""
    value = helper.make_tensor("v", TensorProto.FLOAT, [1], [0.0])
    nodes = [node("ConstantOfShape", "s", "w", value=value), node("Conv", "x,w")]
    model = make(nodes, (1, 2**14, 8, 6), constants={"s": np.array([2**20, 2**14, 1, 1])})
    assert layers(from_onnx(model)) == [Conv(1, channels=2**20)]


@pytest.mark.parametrize(
    ("start", "end", "step", "expected"),
    [
        (0, 2**63 - 1, 1, [Identity()]),
        (2, 2**63 - 1, 1, [Crop(((2, 0), 0))]),
        (1, -3, 1, [Crop(((1, 3), 0))]),
        (0, 2**63 - 1, 2, [MaxPool(1, stride=(2, 1))]),
    ],
)
def test_cuts_of_an_axis_of_unknown_size(start, end, step, expected):
    constants = {"s": np.array([start]), "e": np.array([end]), "a": np.array([2]),
                 "t": np.array([step])}  # fmt: skip
    nodes = [node("Slice", "x,s,e,a,t", "cut"), node("Conv", "cut,w")]
    model = dynamic(nodes, constants | {"w": (8, 3, 3, 3)})
    assert layers(from_onnx(model)) == [*expected, Conv(3, channels=8)]


def test_a_merge_is_as_large_as_what_is_broadcast_to():
    """A size that is not known stays so beside one pixel, and is another's where that has more."""
    assert _wider((None, 1, 6), (1, 5, 6)) == (None, 5, 6)
    assert _wider((1, 1), (None, 2)) == (None, 2)
    assert _wider((None, 4), (2, 1)) == (2, 4)


def test_a_constant_of_no_axes_is_a_number():
    value = helper.make_tensor("v", TensorProto.FLOAT, [1], [3.0])
    nodes = [node("ConstantOfShape", "s", "w", value=value), node("Mul", "x,w")]
    model = make(nodes, (1, 2, 8, 6), constants={"s": np.array([], dtype=np.int64)})
    assert layers(from_onnx(model)) == [Scale(3.0)]


def test_damaged_files_raise_nothing_else():
    """Every byte of a small model changed in turn, and every length cut."""
    data = squeeze_excite().SerializeToString()
    rng = np.random.default_rng(3)
    damaged = [data[:n] for n in range(0, len(data), 7)]
    for position in range(0, len(data), 2):
        damaged.append(data[:position] + bytes([rng.integers(256)]) + data[position + 1 :])
    messages = []
    for item in damaged:
        try:
            from_onnx(item)
        except (NetworkFileError, UnsupportedOperator) as error:
            messages.append(str(error))
    assert len(messages) > len(damaged) / 2
    assert not any("\n" in message for message in messages)


def test_messages_are_one_line_of_a_bearable_length():
    assert line("a\n\tb  c") == "a b c"
    assert line("x" * 300) == "x" * 300
    assert line("x" * 301) == "x" * 299 + "…"
