"""ONNX import: ONNX's light models against ONNX's own shapes, and operators against its reference.

Where an operator only moves or sums pixels, a model with weights of 1 is computed twice: by
ONNX's reference implementation, and by PyTorch from the layers of the imported network. All terms
are positive and there are fewer than 2^11 of them per output, so in any order the float64 sums
agree to 2·2^11·2^-53 of their value.
"""

from __future__ import annotations

import os
import pickle
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

from onnx import TensorProto, helper, numpy_helper, shape_inference  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from fastrf.errors import InputError, MissingExtra, NetworkFileError, UnsupportedOperator  # noqa: E402
from fastrf.importers.onnx import from_onnx, input_sizes  # noqa: E402
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


@pytest.mark.parametrize("name", MODELS)
def test_light_models_have_onnx_shapes(name):
    model = onnx.load(light(name))
    network = from_onnx(light(name))
    inferred = shape_inference.infer_shapes(model, data_prop=True).graph.value_info
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred}
    graph = lower(network, 224)
    checked = 0
    for node in model.graph.node:
        shape = shapes.get(node.output[0], [])
        own = node.name if node.name in network.nodes else node.output[0]
        if own in network.nodes and len(shape) == 4:
            assert [graph.channels[own], *graph.sizes[own]] == shape[1:], own
            checked += 1
    maps = [n for n in network.nodes.values() if not isinstance(n.layer, Input | FullyConnected)]
    # What has no shape of four axes follows the loss of the extent, or is the untyped output.
    assert checked >= len(maps) - 6
    assert network.name == f"light_{name}"


@pytest.mark.parametrize("name", MODELS)
def test_light_models_keep_every_operator(name):
    model = onnx.load(light(name))
    count = Counter(node.op_type for node in model.graph.node)
    network = from_onnx(model)
    own = Counter(type(node.layer).__name__ for node in network.nodes.values())
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


@pytest.mark.parametrize(
    ("name", "size", "stride"),
    # Field sizes of the last map before the extent is lost. VGG-19's 268/32 from its layer
    # list (16 convolutions of 3, 5 poolings of 2): 1 + 2·(2·1+2·2+4·4+4·8+4·16) + 31.
    # AlexNet as TF-Slim's alexnet_v2, ResNet-50 v1 with the stride in the first 1×1 (Caffe2):
    # the published 483/32 of resnet_v1_50 strides in the last unit of a block instead.
    [("bvlc_alexnet", 195, 32), ("vgg19", 268, 32)],
)
def test_light_models_have_the_published_field(name, size, stride):
    network = from_onnx(light(name))
    field, jump = 1, 1
    for node in network.nodes.values():
        if isinstance(node.layer, FullyConnected):
            break
        layer = node.layer.bind(2)
        field += (getattr(layer, "kernel", (1,))[0] - 1) * jump
        jump *= getattr(layer, "stride", (1,))[0]
    assert (field, jump) == (size, stride)


def test_light_models_know_channels_and_groups():
    network = from_onnx(light("shufflenet"))
    shuffles = [n.layer for n in network.nodes.values() if isinstance(n.layer, ChannelShuffle)]
    assert shuffles == [ChannelShuffle(3)] * 16
    convs = [n.layer for n in network.nodes.values() if isinstance(n.layer, Conv)]
    assert Counter(c.groups for c in convs) == {1: 2, "depthwise": 16, 3: 31}
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


# --- computed twice -------------------------------------------------------------------------


def pads(layer, size):
    """Padding in pixels per axis: ONNX's and TensorFlow's SAME rule for the named ones."""
    result = []
    for p, k, s, d, n in zip(
        layer.padding, layer.kernel, layer.stride, layer.dilation, size, strict=True
    ):
        if isinstance(p, str):
            total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            p = (total // 2, total - total // 2)
            p = p if layer.padding[0] == "same_upper" else p[::-1]
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
    nodes = [
        node("ConstantOfShape", "extra", "zeros", value=helper.make_tensor("v", TensorProto.INT64, [1], [0])),
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
    "pad, negative": one("Pad", np.array([0, 0, -1, 2, 0, 0, 0, -3])),
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
    "shuffle, copied sizes": reshapes([0, 3, 2, 8, -1], [0, 2, 1, 3, 4], [0, 6, 8, 6], shape=(1, 6, 8, 6)),
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
    "depth to space, DCR": one("DepthToSpace", blocksize=2, shape=(1, 12, 3, 4)),
    "depth to space, CRD": one("DepthToSpace", blocksize=2, mode="CRD", shape=(1, 12, 3, 4)),
    "space to depth": one("SpaceToDepth", blocksize=2),
    "space to depth, one channel": one("SpaceToDepth", blocksize=2, shape=(1, 1, 4, 4)),
    "focus": focus(),
    "channels last": channels_last(),
    "ConvNeXt": conv_next(),
    "squeeze and excite": squeeze_excite(),
    "resize, nearest": resize([1, 1, 2, 3], **NEAREST),
    "resize, floor": resize([1, 1, 1.5, 2.5], **NEAREST, coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "resize, half pixel ceil": resize([1, 1, 0.5, 1.5], **NEAREST, nearest_mode="round_prefer_ceil"),
    "resize, sizes": resize(sizes=[1, 4, 16, 3], **NEAREST, coordinate_transformation_mode="asymmetric", nearest_mode="floor"),
    "resize, axes": resize([2, 3], axes=[3, 2], **NEAREST),
    "resize, linear": resize([1, 1, 2, 1.5], mode="linear"),
    "resize, linear sizes": resize(sizes=[1, 4, 5, 9], mode="linear", coordinate_transformation_mode="pytorch_half_pixel"),
    "resize, corners": resize(sizes=[1, 4, 15, 11], mode="linear", coordinate_transformation_mode="align_corners"),
    "resize, by 1": resize([1, 1, 1, 1], mode="cubic"),
    "upsample": one("Upsample", np.array([1, 1, 2, 3], np.float32), opset=9),
    "upsample, old": one("Upsample", scales=[1.0, 1.0, 2.0, 2.0], opset=8),
    "sum": make([node("Conv", "x,w", "a", pads=[1] * 4), node("Sum", "a,x,a")], constants={"w": (4, 4, 3, 3)}),
    "product": make([node("Conv", "x,w", "a", pads=[1] * 4), node("Mul", "a,x")], constants={"w": (1, 4, 3, 3)}),
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
        [node("Reshape", "x,s", "flat"), node("MatMul", "w,flat", "mixed"), node("Reshape", "mixed,t")],
        constants={"s": np.array([1, 4, 48]), "w": (3, 4), "t": np.array([1, 3, 8, 6])},
    ),
    "einsum": one("Einsum", (5, 4), equation="nchw,oc->nohw"),
    "einsum, last": chain(
        ("Transpose", [], {"perm": [0, 2, 3, 1]}), ("Einsum", ["w"], {"equation": "nhwc,cd->ndhw"}),
        constants={"w": (4, 3)},
    ),
    "expand": chain(
        ("GlobalAveragePool", [], {}), ("Expand", ["s"], {}), constants={"s": np.array([1, 4, 5, 7])}
    ),
    "tile once": one("Tile", np.array([1, 1, 1, 1])),
    "relu": one("Relu"),
}  # fmt: skip


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
        np.testing.assert_allclose(
            own.reshape(reference.shape), reference, rtol=TOLERANCE
        )
    size = next(iter(input_sizes(model).values()))
    graph = lower(network, size)
    for name, own in zip(network.outputs, got, strict=True):
        assert (graph.channels[name], *graph.sizes[name]) == own.shape[1:]
