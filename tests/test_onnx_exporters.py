"""ONNX models as other exporters write them, held against probes of the models themselves: ONNX's
reference implementation says which pixels of the input change which unit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import fastrf as rf
from fastrf.errors import UnsupportedOperator

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

Array = np.ndarray[Any, Any]


def node(kind: str, inputs: str, outputs: str = "y", **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(","), outputs.split(","), **attributes)


def model(
    nodes: Sequence[Any], shape: Sequence[int], opset: int = 19, more: Sequence[Any] = (), **c: Any
) -> Any:
    """A model of one input x and one output y; constants from arrays, or ones from shapes."""
    arrays = {n: np.ones(v, np.float32) if isinstance(v, tuple) else v for n, v in c.items()}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape), *more],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()],
    )
    domains = {"": opset, "com.microsoft": 1, "com.microsoft.nchwc": 1}
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*d) for d in domains.items()]
    )


def seen(made: Any, shape: Sequence[int]) -> list[Array]:
    """Per spatial axis which of its pixels (columns) change which unit (rows). Numbers are whole
    and grow, so that nothing is rounded away and a maximum follows each of its pixels once."""
    run = ReferenceEvaluator(made)
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    before = run.run(None, {"x": x})[0]
    found = []
    for axis in range(2, len(shape)):
        columns = []
        for pixel in range(shape[axis]):
            changed = x.copy()
            changed[(slice(None),) * axis + (pixel,)] += 2.0**14
            others = tuple(a for a in range(before.ndim) if a != axis)
            columns.append((run.run(None, {"x": changed})[0] != before).any(axis=others))
        found.append(np.stack(columns, axis=1))
    return found


def agree(made: Any, shape: Sequence[int]) -> rf.Network:
    """fastrf's boxes are those of the probe, for all units in a line along each axis."""
    network = rf.from_onnx(made)
    field = rf.receptive_field(network, input_size=shape[2:])
    probed = seen(made, shape)
    for axis, reached in enumerate(probed):
        unit = [len(p) // 2 for p in probed]
        for row, pixels in enumerate(reached):
            unit[axis] = row
            box = field.box(tuple(unit), clip=True)
            ends = np.flatnonzero(pixels)
            assert (None if box is None else box[axis]) == (
                (ends[0], ends[-1]) if len(ends) else None
            )
    return network


CONV = node("Conv", "a,w")
W = (1, 2, 3, 3)


# --- joined and padded ----------------------------------------------------------------------


@pytest.mark.parametrize("size", [(5, 6), (4, 7)])
def test_padding_by_joining_zeros(size: tuple[int, int]) -> None:
    joins = [node("Concat", "z,x", "b", axis=2), node("Concat", "b,v", "a", axis=3)]
    zeros = {"z": np.zeros((1, 2, 2, size[1])), "v": np.zeros((1, 2, size[0] + 2, 1))}
    constants = {name: z.astype(np.float32) for name, z in zeros.items()}
    made = model([*joins, node("Conv", "a,w", strides=[2, 2])], (1, 2, *size), w=W, **constants)
    agree(made, (1, 2, *size))


def test_maps_beside_each_other() -> None:
    nodes = [node("Conv", "x,w", "b"), node("Concat", "b,x,b", "c", axis=3)]
    made = model([*nodes, node("MaxPool", "c", kernel_shape=[1, 2])], (1, 1, 3, 7), w=(1, 1, 1, 3))
    agree(made, (1, 1, 3, 7))


def test_coordinates_beside_the_channels() -> None:
    made = model(
        [node("Concat", "c,x,c", "a", axis=1), CONV], (1, 2, 5, 6), c=(1, 1, 5, 6), w=(1, 4, 3, 3)
    )
    network = agree(made, (1, 2, 5, 6))
    erf = rf.erf(network, input_size=(5, 6))
    np.testing.assert_allclose(erf.image, 1 / 9, rtol=1e-12)


def test_channels_of_zeros_on_a_shortcut() -> None:
    """As the shortcuts of residual networks for CIFAR."""
    nodes = [
        node("AveragePool", "x", "s", kernel_shape=[1, 1], strides=[2, 2]),
        node("Pad", "s,p", "t"),
        node("Conv", "x,w", "c", strides=[2, 2], pads=[1] * 4),
        node("Add", "t,c"),
    ]
    pads = np.array([0, 1, 0, 0, 0, 2, 0, 0])
    network = agree(model(nodes, (1, 1, 7, 6), p=pads, w=(4, 1, 3, 3)), (1, 1, 7, 6))
    assert network.bound.nodes["c"].layer.channels == 4


def test_means_of_rows() -> None:
    """As coordinate attention and strip pooling."""
    nodes = [node("ReduceMean", "x,k", "r"), node("Conv", "r,w", "c"), node("Mul", "x,c")]
    made = model(nodes, (1, 2, 5, 6), k=np.array([3]), w=(2, 2, 1, 1))
    field = rf.receptive_field(rf.from_onnx(made), input_size=(5, 6))
    assert field.box((2, 3), clip=True) == ((2, 2), (0, 5))


# --- resizing -------------------------------------------------------------------------------

COORDINATES = ("asymmetric", "half_pixel", "pytorch_half_pixel")
ROUNDINGS = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("coordinates", COORDINATES)
@pytest.mark.parametrize("scales", [(2, 3), (4, 1), (0.5, 0.25), (3, 0.5)])
def test_whole_scales_of_every_rounding(
    scales: tuple[float, float], coordinates: str, rounding: str
) -> None:
    if max(scales) > 1 > min(scales) and (coordinates, rounding) != ("asymmetric", "floor"):
        scales = scales[0], 1
    resize = node(
        "Resize", "x,,s", mode="nearest", coordinate_transformation_mode=coordinates,
        nearest_mode=rounding,
    )  # fmt: skip
    made = model([resize], (1, 1, 8, 8), s=np.array([1, 1, *scales], np.float32))
    agree(made, (1, 1, 8, 8))


def test_tensorflow_takes_the_middle_of_a_pixel() -> None:
    resize = node(
        "Resize", "x,r,s", mode="nearest", nearest_mode="floor",
        coordinate_transformation_mode="tf_half_pixel_for_nn",
    )  # fmt: skip
    scales, roi = np.array([1, 1, 2, 0.5], np.float32), np.zeros(0, np.float32)
    network = rf.from_onnx(model([resize], (1, 1, 5, 8), opset=11, s=scales, r=roi))
    assert network.nodes["y"].layer.bind(2) == rf.Upsample((2, "1/2"), "nearest-exact").bind(2)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
def test_a_kept_aspect_ratio_is_one_scale(policy: str, mode: str) -> None:
    """Also where the size is rounded up: 9 pixels at 5/2 are 23."""
    resize = node(
        "Resize", "x,,,o", mode=mode, axes=[2, 3], keep_aspect_ratio_policy=policy,
        coordinate_transformation_mode="asymmetric", nearest_mode="floor",
    )  # fmt: skip
    made = model([resize], (1, 1, 9, 12), o=np.array([18, 30]))
    network = agree(made, (1, 1, 9, 12))
    scale = 2 if policy == "not_larger" else "5/2"
    upsample = next(n.layer for n in network.nodes.values() if isinstance(n.layer, rf.Upsample))
    assert upsample.bind(2).scale == rf.Upsample(scale).bind(2).scale


# --- sets, inputs, refusals ----------------------------------------------------------------


def test_sets_of_channels_in_the_batch() -> None:
    nodes = [
        node("Reshape", "x,s", "b"), node("Conv", "b,w", "c", strides=[2]),
        node("ConvTranspose", "c,v", "d", strides=[2]), node("Reshape", "d,t"),
    ]  # fmt: skip
    shapes = {"s": np.array([2, 3, 9]), "t": np.array([1, 2, 9])}
    made = model(nodes, (1, 6, 9), w=(4, 3, 3), v=(4, 1, 3), **shapes)
    network = agree(made, (1, 6, 9))
    assert network.nodes["d"].layer.groups == 2


@pytest.mark.parametrize(("groups", "statistics"), [(1, "layer"), (2, "group"), (4, "instance")])
def test_groups_are_normalised_in_sequences(groups: int, statistics: Any) -> None:
    nodes = [
        node("Reshape", "x,s", "a"),
        node("GroupNormalization", "a,w,b", "n", num_groups=groups),
        node("Reshape", "n,t"),
    ]
    shapes = {"s": np.array([1, 4, -1]), "t": np.array([1, 4, 5, 6])}
    network = rf.from_onnx(model(nodes, (1, 4, 5, 6), opset=21, w=(4,), b=(4,), **shapes))
    assert network.nodes["n"].layer == rf.Norm(statistics)


def test_inputs_that_nothing_reads_are_none() -> None:
    """As constants that TensorFlow's exporter folded, and left among the inputs."""
    left = helper.make_tensor_value_info("mean", TensorProto.FLOAT, [1, 1, 1, 3])
    made = model([node("Conv", "x,w")], (1, 2, 5, 6), more=[left], w=W)
    assert rf.from_onnx(made).inputs == ("x",)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([node("GridSample", "x,g")], "register('ai.onnx::GridSample')"),
        ([node("MaxUnpool", "x,i", kernel_shape=[2, 2])], "put Resize (nearest) in its place"),
        ([node("CumSum", "x,k")], "along an axis"),
        ([node("TopK", "x,k", "y,i", axis=1)], "by their values"),
        ([node("ScatterND", "x,j,u")], "single places"),
    ],
)
def test_what_cannot_be_a_window_says_why(nodes: Sequence[Any], words: str) -> None:
    constants = {"g": (1, 2, 2, 2), "k": np.array([2]), "j": np.array([[0, 0, 0, 0]]), "u": (1,)}
    constants["i"] = np.zeros((1, 2, 5, 6), np.int64)
    read = {name for n in nodes for name in n.input}
    made = model(nodes, (1, 2, 5, 6), **{n: c for n, c in constants.items() if n in read})
    with pytest.raises(UnsupportedOperator) as caught:
        rf.from_onnx(made)
    assert words in str(caught.value)


# --- optimised and quantised ----------------------------------------------------------------


def microsoft(kind: str, inputs: str, outputs: str = "y", **attributes: Any) -> Any:
    made = node(kind, inputs, outputs, **attributes)
    made.domain = "com.microsoft"
    return made


def layers(network: rf.Network) -> list[Any]:
    return [n.layer for n in network.nodes.values() if not isinstance(n.layer, rf.layers.Input)]


def test_nodes_may_stand_behind_those_that_read_them() -> None:
    """As converters to half precision append their casts."""
    w = np.ones(W, np.float32)
    nodes = [
        node("Conv", "b,w", "c"), node("Resize", "c,,s"), node("Relu", "a", "b"),
        node("Cast", "x", "a", to=TensorProto.FLOAT), node("Cast", "t", "s", to=TensorProto.FLOAT),
    ]  # fmt: skip
    network = rf.from_onnx(model(nodes, (1, 2, 5, 6), w=w, t=np.array([1, 1, 2, 2])))
    assert [type(layer).__name__ for layer in layers(network)] == [
        "Identity", "Activation", "Conv", "Upsample",
    ]  # fmt: skip


def test_what_the_optimiser_fuses() -> None:
    fused = microsoft(
        "FusedConv", "x,w,,x", "a", pads=[1] * 4, activation="LeakyRelu", activation_params=[0.5]
    )
    made = model([fused, microsoft("Gelu", "a")], (1, 2, 5, 6), w=(2, 2, 3, 3))
    found = layers(rf.from_onnx(made, weights="trained"))
    assert [type(layer).__name__ for layer in found] == ["Conv", "Add", "Activation", "Activation"]
    assert found[0].gain == 18.0
    assert found[2] == rf.Activation("leaky_relu", slope=0.5)
    field = rf.receptive_field(rf.from_onnx(made), input_size=(5, 6))
    assert field.box((2, 3)) == ((1, 3), (2, 4))


def test_what_the_quantiser_writes() -> None:
    nodes = [
        node("QLinearConv", "x,s,z,w,s,z,s,z", "a", strides=[2, 2]),
        microsoft("QLinearSigmoid", "a,s,z,s,z", "b"),
        microsoft("QLinearAdd", "a,s,z,b,s,z,s,z", "c"),
        microsoft("QLinearConcat", "s,z,c,s,z,a,s,z", "d", axis=1),
        microsoft("QLinearAveragePool", "d,s,z,s,z", "e", kernel_shape=[2, 2]),
        microsoft("QLinearLeakyRelu", "e,s,z,s,z", alpha=0.1),
    ]
    constants = {"s": np.float32(0.5), "z": np.uint8(0), "w": np.ones((3, 2, 3, 3), np.uint8)}
    network = rf.from_onnx(model(nodes, (1, 2, 9, 9), **constants))
    assert [type(layer).__name__ for layer in layers(network)] == [
        "Conv", "Activation", "Add", "Concat", "AvgPool", "Activation",
    ]  # fmt: skip
    assert rf.receptive_field(network).size == (5, 5)
    assert network.bound.nodes["d"].layer.output_channels([3, 3]) == 6


def test_layouts_for_one_processor_are_refused_with_the_way_out() -> None:
    conv = node("Conv", "x,w")
    conv.domain = "com.microsoft.nchwc"
    pool = microsoft("QLinearGlobalAveragePool", "x,s,z,s,z", channels_last=1)
    constants = {"s": np.float32(0.5), "z": np.uint8(0), "w": (3, 2, 3, 3)}
    for made, words in ((conv, "ORT_ENABLE_EXTENDED"), (pool, "lower level of optimisation")):
        with pytest.raises(UnsupportedOperator, match=words):
            rf.from_onnx(model([made], (1, 2, 5, 6), **constants))


@pytest.mark.parametrize("axis", [None, 0])
def test_weights_in_few_bits_are_read(axis: int | None) -> None:
    rng = np.random.default_rng(3)
    bits = rng.integers(-128, 128, (4, 32, 9, 9)).astype(np.int8)  # far above what is folded else
    scale = np.float32(0.01) if axis is None else np.array([0.01, 0.02, 0.03, 0.04], np.float32)
    zero = np.zeros(scale.shape, np.int8)
    given = {} if axis is None else {"axis": axis}
    nodes = [node("DequantizeLinear", "q,s,z", "w", **given), node("Conv", "x,w")]
    made = model(nodes, (1, 32, 9, 9), opset=13, q=bits, s=scale, z=zero)
    (layer,) = layers(rf.from_onnx(made, weights="trained"))
    values = bits.astype(float) * np.reshape(scale.astype(float), (-1, 1, 1, 1))
    assert layer.gain == pytest.approx(np.square(values).mean(0).sum(), rel=1e-6)
