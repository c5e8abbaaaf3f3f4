"""ONNX models of strangers: conditions, spectra, states beside signals, channels last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

import fastrf as rf
from fastrf.errors import InputError, NetworkFileError, UnsupportedOperator
from fastrf.importers.onnx import from_onnx, input_sizes

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

Shape = Sequence[int | str]


def node(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    return helper.make_node(kind, inputs.split(","), outputs.split(","), **attributes)


def tensors(constants: Mapping[str, Any]) -> list[Any]:
    """Constants from arrays, or ones from shapes."""
    arrays = {
        name: np.ones(value, np.float32) if isinstance(value, tuple) else np.asarray(value)
        for name, value in constants.items()
    }
    return [numpy_helper.from_array(array, name) for name, array in arrays.items()]


def info(name: str, shape: Shape | None = None, kind: int = TensorProto.FLOAT) -> Any:
    return helper.make_tensor_value_info(name, kind, shape)


def model(
    nodes: Sequence[Any],
    inputs: Mapping[str, Shape],
    outputs: str = "y",
    constants: Mapping[str, Any] = {},
    opset: int = 17,
    more: Sequence[Any] = (),
) -> Any:
    given = [*(info(name, shape) for name, shape in inputs.items()), *more]
    results = [info(name) for name in outputs.split(",")]
    graph = helper.make_graph(nodes, "g", given, results, tensors(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])


def branch(nodes: Sequence[Any], outputs: str, constants: Mapping[str, Any] = {}) -> Any:
    results = [helper.make_value_info(name, onnx.TypeProto()) for name in outputs.split(",")]
    return helper.make_graph(nodes, "branch", [], results, tensors(constants))


def kinds(network: rf.Network) -> list[Any]:
    return [n.layer for n in network.nodes.values() if not isinstance(n.layer, rf.layers.Input)]


# --- conditions -----------------------------------------------------------------------------

IMAGE = {"x": (1, 4, 9, 9)}


def choice(condition: str = "c", outputs: str = "b") -> Any:
    """A 3 × 3 convolution or one of 5 × 5 with stride 2; both call their weights the same."""
    three = branch([node("Conv", "a,w", "r")], "r", {"w": (4, 4, 3, 3)})
    five = branch([node("Conv", "a,w", "r", strides=[2, 2])], "r", {"w": (4, 4, 5, 5)})
    return node("If", condition, outputs, then_branch=three, else_branch=five)


def chosen(condition: bool, **options: Any) -> rf.Network:
    nodes = [node("Relu", "x", "a"), choice(), node("Relu", "b", "y")]
    return from_onnx(model(nodes, IMAGE, constants={"c": np.array(condition)}), **options)


def test_a_constant_condition_takes_its_branch() -> None:
    assert kinds(chosen(True))[1] == rf.Conv(3, channels=4)
    assert kinds(chosen(False))[1] == rf.Conv(5, 2, channels=4)
    assert [len(chosen(condition).nodes) for condition in (True, False)] == [4, 4]
    field = rf.receptive_field(chosen(False), input_size=9)
    assert (field.size, field.stride) == ((5, 5), (2, 2))


def test_weights_in_branches_are_read() -> None:
    """Ones: 4 inputs and 25 taps of weight 1 give every output the variance 100."""
    trained = chosen(False, weights="trained")
    assert rf.erf(trained).log_gain == pytest.approx(np.log(100) + 2 * np.log(0.5), abs=1e-12)
    full = chosen(False, weights="trained", channels="full")
    assert kinds(full)[1].weights.shape == (4, 4, 5, 5)


def test_several_conditions_and_branches_in_branches() -> None:
    """Names that two branches share stay apart, and what a branch only passes on is passed on."""
    inner = branch([node("Identity", "a", "q"), choice("d", "r")], "r")
    outer = node("If", "c", "b", then_branch=inner, else_branch=branch([], "a"))
    again = branch([node("Conv", "b,w", "r")], "r,b", {"w": (4, 4, 3, 3)})
    last = node("If", "c", "y,z", then_branch=again, else_branch=branch([], "b,b"))
    constants = {"c": np.array([True]), "d": np.array(False)}
    net = from_onnx(model([node("Relu", "x", "a"), outer, last], IMAGE, "y,z", constants))
    convolutions = [layer for layer in kinds(net) if isinstance(layer, rf.Conv)]
    assert convolutions == [rf.Conv(5, 2, channels=4), rf.Conv(3, channels=4)]
    assert rf.receptive_field(net, "y").size == (9, 9)
    assert rf.receptive_field(net, "z").size == (5, 5)


def squeezed(shape: Shape) -> Any:
    """TorchScript's squeeze of an axis that may have several elements, behind a convolution."""
    squeeze = branch([node("Squeeze", "f,two", "r")], "r")
    keep = branch([node("Identity", "f", "r")], "r")
    nodes = [
        node("Conv", "x,w", "f"),
        node("Shape", "f", "s"),
        node("Gather", "s,two", "n"),
        node("Equal", "n,one", "c"),
        node("If", "c", "b", then_branch=squeeze, else_branch=keep),
        node("Relu", "b", "y"),
    ]
    constants = {"w": (4, 4, 1, 9), "two": np.array([2]), "one": np.array([1])}
    return model(nodes, {"x": shape}, constants=constants)


def test_conditions_on_sizes_are_decided_by_the_size() -> None:
    assert len(from_onnx(squeezed((1, 4, 1, 30))).nodes) == 3
    assert len(from_onnx(squeezed((1, 4, 3, 30))).nodes) == 4  # with the identity
    assert len(from_onnx(squeezed((1, 4, "h", 30)), input_size=(1, 30)).nodes) == 3
    with pytest.raises(UnsupportedOperator, match=r"chooses a branch by 'c'; give input_size for"):
        from_onnx(squeezed((1, 4, "h", 30)))


def by_rate(rate: int | None = None) -> Any:
    nodes = [node("Relu", "x", "a"), node("Equal", "sr,k", "c"), choice(outputs="y")]
    sr = info("sr", (), TensorProto.INT64)
    made = model(nodes, IMAGE, constants={"k": np.array(16000)}, more=[sr])
    if rate is not None:
        made.graph.initializer.append(numpy_helper.from_array(np.int64(rate), "sr"))
    return made


def test_conditions_on_inputs_need_their_value() -> None:
    with pytest.raises(
        UnsupportedOperator, match=r"store the value of 'sr' in the model"
    ) as caught:
        from_onnx(by_rate())
    assert "If (node 'y') chooses a branch by 'c'" in str(caught.value)
    assert kinds(from_onnx(by_rate(16000)))[1] == rf.Conv(3, channels=4)
    assert kinds(from_onnx(by_rate(8000)))[1] == rf.Conv(5, 2, channels=4)
    everything = from_onnx(by_rate(), unknown="global")
    assert rf.receptive_field(everything).size == (None, None)


def test_conditions_on_data_cannot_be_decided() -> None:
    nodes = [
        node("Relu", "x", "a"),
        node("ReduceMax", "x", "m", keepdims=0),
        node("Greater", "m,k", "c"),
        choice(outputs="y"),
    ]
    made = model(nodes, IMAGE, constants={"k": np.float32(0)})
    with pytest.raises(UnsupportedOperator, match="computed from data; export it without that"):
        from_onnx(made)


def test_conditions_that_no_map_needs_are_left_alone() -> None:
    """A state that is handed on by a condition which nobody knows."""
    pick = node("If", "c", "t", then_branch=branch([], "h"), else_branch=branch([], "h"))
    more = [info("c", (), TensorProto.BOOL), info("h", (1, 7))]
    net = from_onnx(model([node("Relu", "x", "y"), pick], IMAGE, "y,t", more=more))
    assert net.outputs == ("y",)


def test_many_conditions_are_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    from fastrf.importers.onnx import graph

    nodes, at = [], "x"
    for i in range(9):
        relu = branch([node("Relu", at, "r")], "r")
        nodes.append(node("If", "c", f"t{i}", then_branch=relu, else_branch=relu))
        at = f"t{i}"
    made = model(nodes, IMAGE, "t8", {"c": np.array(True)})
    assert len(from_onnx(made).nodes) == 10
    monkeypatch.setattr(graph, "MOST_NODES", 80)
    with pytest.raises(NetworkFileError, match="decides one condition after another"):
        from_onnx(made)


def test_loops_are_refused() -> None:
    body = helper.make_graph(
        [node("Relu", "v", "w")],
        "body",
        [info("i", (), TensorProto.INT64), info("k", (), TensorProto.BOOL), info("v")],
        [info("k", (), TensorProto.BOOL), info("w")],
    )
    constants = {"n": np.array(3), "t": np.array(True)}
    made = model([node("Loop", "n,t,x", "y", body=body)], IMAGE, constants=constants)
    with pytest.raises(
        UnsupportedOperator, match=r"Loop .* export the model with its loop unrolled"
    ):
        from_onnx(made)


# --- spectra --------------------------------------------------------------------------------


def spectrum(length: int = 40, frame: int = 8, step: int = 3, onesided: int = 1) -> Any:
    nodes = [
        node("Unsqueeze", "x,last", "u"),
        node("STFT", "u,step,window", "s", onesided=onesided),
        node("Slice", "s,zero,one,parts", "t"),
        node("Squeeze", "t,parts", "m"),
        node("Transpose", "m", "f", perm=[0, 2, 1]),
        node("Conv", "f,w", "y"),
    ]
    bins = frame // 2 + 1 if onesided else frame
    constants = {
        "last": np.array([-1]), "step": np.array(step), "zero": np.array([0]), "one": np.array([1]),
        "parts": np.array([3]),
        "w": np.random.default_rng(1).normal(size=(2, bins, 2)).astype(np.float32),
        "window": np.hanning(frame + 2)[1:-1].astype(np.float32),
    }  # fmt: skip
    return model(nodes, {"x": (1, length)}, constants=constants)


@pytest.mark.parametrize("onesided", [0, 1])
def test_a_spectrum_reads_what_the_operator_reads(onesided: int) -> None:
    made = spectrum(onesided=onesided)
    run = ReferenceEvaluator(made)
    columns = [run.run(None, {"x": row[None]})[0] for row in np.eye(40, dtype=np.float32)]
    seen = np.abs(np.stack(columns)[:, 0]).max(1) > 1e-6  # waves of random weights cancel nowhere
    field = rf.receptive_field(from_onnx(made), input_size=40)
    assert len(field.layers[-1].shape) == 1
    assert field.layers[-1].shape[0] == seen.shape[1]
    for unit in range(seen.shape[1]):
        places = np.flatnonzero(seen[:, unit])
        ((low, high),) = field.box(unit)
        assert (places[0], places[-1]) == (low, high)
    assert field.size == (11,)


def test_the_weights_of_a_spectrum_are_its_waves() -> None:
    """Against the operator's own matrix: frame 0 of an impulse at each of its places."""
    made = spectrum(length=11)
    probe = model(list(made.graph.node)[:2], {"x": (1, 11)}, "s")
    probe.graph.initializer.extend(made.graph.initializer)
    run = ReferenceEvaluator(probe)
    units = np.eye(8, 11, dtype=np.float32)
    rows = [run.run(None, {"x": row[None]})[0][0, 0].ravel() for row in units]
    full = from_onnx(made, weights="trained", channels="full")
    layer = next(x for x in kinds(full) if isinstance(x, rf.Conv))
    np.testing.assert_allclose(np.asarray(layer.weights)[:, 0].T, rows, atol=1e-6)


def test_spectra_that_are_refused() -> None:
    nodes = [node("STFT", "x,step,window,frame", "y")]
    constants = {"step": np.array(2), "window": (6,), "frame": np.array(8)}
    with pytest.raises(UnsupportedOperator, match="frames of 8 and a window of 6; pad the window"):
        from_onnx(model(nodes, {"x": (1, 40)}, constants=constants))
    complex_signal = {"x": (1, 40, 2)}
    with pytest.raises(UnsupportedOperator, match="which is no real signal"):
        from_onnx(model(nodes, complex_signal, constants={**constants, "frame": np.array(6)}))


# --- which inputs are maps ------------------------------------------------------------------


def recurrent(**inputs: Shape) -> Any:
    """A signal's features, and an LSTM whose states come and go."""
    nodes = [
        node("Unsqueeze", "x,one", "u"),
        node("Conv", "u,w", "f", strides=[4]),
        node("Transpose", "f", "s", perm=[2, 0, 1]),
        node("LSTM", "s,W,R,,,h,c", "o,p,q", hidden_size=4),
        node("Squeeze", "o,one", "g"),
        node("Transpose", "g", "b", perm=[1, 2, 0]),
        node("Conv", "b,v", "y"),
    ]
    constants = {
        "one": np.array([1]), "w": (4, 1, 6), "W": (1, 16, 4), "R": (1, 16, 4), "v": (1, 4, 1)
    }  # fmt: skip
    return model(nodes, {"x": (1, 64), **inputs}, "y,p,q", constants)


def test_states_beside_a_signal_are_no_maps() -> None:
    made = recurrent(h=(1, 1, 4), c=(1, 1, 4))
    assert input_sizes(made) == {"x": (64,)}
    net = from_onnx(made)
    assert net.inputs == ("x",)
    assert rf.receptive_field(net, "f").size == (6,)
    assert rf.receptive_field(net, "y").size == (None,)


def test_states_that_are_mixed_with_features_are_no_maps() -> None:
    nodes = [
        node("Unsqueeze", "x,one", "u"),
        node("Conv", "u,w", "f"),
        node("Add", "f,h", "a"),
        node("Conv", "a,v", "y"),
    ]
    constants = {"one": np.array([1]), "w": (4, 1, 6), "v": (1, 4, 3)}
    net = from_onnx(model(nodes, {"h": (1, 4, 59), "x": (1, 64)}, constants=constants))
    assert net.inputs == ("x",)
    assert rf.receptive_field(net).size == (8,)


def test_sequences_beside_an_image_are_no_maps() -> None:
    nodes = [
        node("Conv", "x,w", "f"),
        node("ReduceMean", "t", "m", axes=[1], keepdims=0),
        node("Unsqueeze", "m,places", "u"),
        node("Mul", "f,u", "y"),
    ]
    constants = {"w": (4, 4, 3, 3), "places": np.array([2, 3])}
    net = from_onnx(model(nodes, {"t": (1, 7, 4), **IMAGE}, constants=constants))
    assert net.inputs == ("x",)
    assert rf.receptive_field(net).size == (3, 3)


def test_windows_over_maps_of_different_axes_are_refused() -> None:
    nodes = [node("Conv", "x,w", "y"), node("Conv", "t,v", "z")]
    made = model(nodes, {**IMAGE, "t": (1, 4, 9)}, "y,z", {"w": (4, 4, 3, 3), "v": (4, 4, 3)})
    with pytest.raises(NetworkFileError, match=r"different numbers of spatial axes; cut out"):
        from_onnx(made)


def test_a_size_of_one_name_is_that_of_all_inputs() -> None:
    """The open batch counts as 1, also where a state has it."""
    nodes = [
        node("Relu", "x", "a"),
        node("Shape", "h", "s"),
        node("Gather", "s,one", "n"),
        node("Equal", "n,one", "c"),
        choice(outputs="y"),
    ]
    made = model(
        nodes,
        {"x": ("batch", 4, 9, 9)},
        constants={"one": np.array([1])},
        more=[info("h", (2, "batch"))],
    )
    assert kinds(from_onnx(made))[1] == rf.Conv(3, channels=4)


# --- channels last --------------------------------------------------------------------------


def last(*before: Any, shape: Shape = (1, 12, 10, 3), **constants: Any) -> Any:
    nodes = [*before, node("Transpose", "z", "t", perm=[0, 3, 1, 2]), node("Conv", "t,w", "y")]
    return model(nodes, {"x": shape}, constants={"w": (4, 3, 3, 3), **constants})


@pytest.mark.parametrize(
    "made",
    [
        last(node("Clip", "x,,one", "z"), one=np.float32(1)),
        last(node("Pad", "x,p", "z"), p=np.array([0, 1, 0, 0, 0, 1, 0, 0])),
        last(node("Slice", "x,a,b,a", "z"), a=np.array([1]), b=np.array([9])),
        last(
            node("Split", "x", "r,g,b", axis=3), node("Concat", "b,g,r", "z", axis=3)
        ),
        last(node("Neg", "x", "n"), node("Shape", "n", "s"), node("Sub", "x,n", "z")),
    ],
    ids=["clip", "pad", "crop", "colours turned", "shape read"],
)  # fmt: skip
def test_a_transpose_tells_that_channels_come_last(made: Any) -> None:
    assert input_sizes(made) == {"x": (12, 10)}
    net = from_onnx(made)
    assert net.nodes["x"].layer == rf.layers.Input(3)
    assert rf.receptive_field(net).size == (3, 3)


@pytest.mark.parametrize("batch", [1, -1])
def test_gray_images_are_reshaped(batch: int) -> None:
    nodes = [node("Reshape", "x,s", "t"), node("Conv", "t,w", "y")]
    constants = {"s": np.array([batch, 1, 12, 10]), "w": (4, 1, 3, 3)}
    made = model(nodes, {"x": (1, 12, 10, 1)}, constants=constants)
    assert input_sizes(made) == {"x": (12, 10)}
    assert rf.receptive_field(from_onnx(made)).size == (3, 3)


def test_the_layout_can_be_told() -> None:
    """Pixels by channels, mixed by a matrix: nothing in the graph tells which axis is which."""
    made = model([node("MatMul", "x,w", "y")], {"x": (1, 12, 10, 3)}, constants={"w": (3, 4)})
    net = from_onnx(made, layout="channels_last")
    assert net.nodes["x"].layer == rf.layers.Input(3)
    assert kinds(net) == [rf.Conv(1, channels=4)]
    assert rf.receptive_field(net, input_size=(12, 10)).layers[-1].shape == (12, 10)
    with pytest.raises(UnsupportedOperator, match="mixes a part of the channels or positions"):
        from_onnx(made)
    with pytest.raises(UnsupportedOperator):
        from_onnx(last(node("Neg", "x", "z")), layout="channels_first")
    with pytest.raises(InputError, match="layout='nhwc' is unknown; give 'channels_first' or"):
        from_onnx(made, layout="nhwc")  # type: ignore[arg-type]


def test_where_the_layout_is_not_told_the_way_out_is_said() -> None:
    nodes = [
        node("Unsqueeze", "x,one", "u"),
        node("Transpose", "u", "t", perm=[0, 3, 1, 2]),
        node("Conv", "t,w", "y"),
    ]
    constants = {"one": np.array([1]), "w": (4, 3, 1, 5)}
    made = model(nodes, {"x": (1, 40, 3)}, constants=constants)
    with pytest.raises(UnsupportedOperator, match="come last, give layout='channels_last'"):
        from_onnx(made)
    assert rf.receptive_field(from_onnx(made, layout="channels_last")).size == (5,)


# --- signals as images of one row -----------------------------------------------------------


def row(*nodes: Any, shape: Shape = (1, 3, 40), **constants: Any) -> Any:
    """A signal that gets an axis, passes nodes from "t" to "z", and loses that axis."""
    steps = [node("Unsqueeze", "x,two", "t"), *nodes, node("Squeeze", "z,two", "y")]
    return model(steps, {"x": shape}, constants={"two": np.array([2]), **constants})


ROWS = {
    "convolution": (
        row(
            node("Conv", "t,w", "z", strides=[1, 2], dilations=[1, 3], pads=[0, 2, 0, 1]),
            w=(4, 3, 1, 5),
        ),
        rf.Conv(5, 2, dilation=3, padding=((2, 1),), channels=4),
    ),
    "depthwise": (
        row(node("Conv", "t,w", "z", group=3), w=(3, 1, 1, 4)),
        rf.Conv(4, channels=3, groups="depthwise"),
    ),
    "transposed": (
        row(
            node("ConvTranspose", "t,w", "z", strides=[1, 3], output_padding=[0, 1]),
            w=(3, 2, 1, 4),
        ),
        rf.ConvTranspose(4, 3, output_padding=1, channels=2, gain=3.0),
    ),
    "pooling": (
        row(node("MaxPool", "t", "z", kernel_shape=[1, 3], strides=[1, 2], pads=[0, 1, 0, 1])),
        rf.MaxPool(3, 2, padding=1),
    ),
}


@pytest.mark.parametrize(("made", "layer"), ROWS.values(), ids=ROWS)
def test_signals_may_be_images_of_one_row(made: Any, layer: Any) -> None:
    net = from_onnx(made)
    (found,) = kinds(net)
    assert found.bind(1) == layer.bind(1)
    shape = ReferenceEvaluator(made).run(None, {"x": np.ones((1, 3, 40), np.float32)})[0].shape
    assert rf.receptive_field(net, input_size=40).layers[-1].shape == shape[2:]


def test_a_row_of_a_stated_size() -> None:
    """Pixels along both axes, as the operator has it; 3·39 + 4 = 121 without padding."""
    made = row(
        node("ConvTranspose", "t,w", "z", strides=[1, 3], output_shape=[1, 119]), w=(3, 2, 1, 4)
    )
    net = from_onnx(made)
    assert rf.receptive_field(net, input_size=40).layers[-1].shape == (119,)


def test_weights_of_a_row_are_read() -> None:
    made = row(node("Conv", "t,w", "z"), w=np.arange(24, dtype=np.float32).reshape(2, 3, 1, 4))
    (found,) = kinds(from_onnx(made, weights="trained", channels="full"))
    np.testing.assert_array_equal(np.asarray(found.weights), np.arange(24).reshape(2, 3, 4))


@pytest.mark.parametrize(
    "options",
    [{"w": (4, 3, 2, 5)}, {"w": (4, 3, 1, 5), "pads": [1, 0, 0, 0]}],
    ids=["kernel", "pad"],
)
def test_windows_over_the_row_itself_are_refused(options: dict[str, Any]) -> None:
    weights = options.pop("w")
    with pytest.raises(UnsupportedOperator, match="in a network of 1 axes"):
        from_onnx(row(node("Conv", "t,w", "z", **options), w=weights))
