"""ONNX models of strangers: functions that multiply, constants that broadcast, data elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrf as rf
from fastrf.errors import NetworkFileError

pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper


def model(nodes: list[Any], tensors: list[Any], functions: list[Any] = []) -> bytes:  # noqa: B006
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, 8))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("l", 1)]
    found: bytes = helper.make_model(
        graph, opset_imports=opset, functions=functions
    ).SerializeToString()
    return found


def function(name: str, called: str | None, times: int) -> Any:
    names = ["a", *(f"t{i}" for i in range(1, times)), "b"]
    op, domain = ("Relu", "") if called is None else (called, "l")
    nodes = [helper.make_node(op, [names[i]], [names[i + 1]], domain=domain) for i in range(times)]
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("l", 1)]
    return helper.make_function("l", name, ["a"], ["b"], nodes, opset)


@pytest.mark.parametrize(
    ("depth", "times", "fits"), [(4, 2, True), (40, 2, False), (500, 1, False)]
)
def test_local_functions(depth: int, times: int, fits: bool) -> None:
    functions = [function("f0", None, times)]
    functions += [function(f"f{i}", f"f{i - 1}", times) for i in range(1, depth)]
    data = model([helper.make_node(f"f{depth - 1}", ["x"], ["y"], domain="l")], [], functions)
    if fits:
        assert len(rf.from_onnx(data)) == times**depth
        return
    with pytest.raises(NetworkFileError, match="inline"):
        rf.from_onnx(data)


def test_functions_that_call_each_other() -> None:
    functions = [function("f", "g", 1), function("g", "f", 1)]
    with pytest.raises(NetworkFileError, match="calls itself"):
        rf.from_onnx(model([helper.make_node("f", ["x"], ["y"], domain="l")], [], functions))


def test_constants_that_broadcast() -> None:
    """Three of 1024 numbers make 2³⁰: their sum is left unknown."""
    shapes = {"p": (1024, 1, 1), "q": (1, 1024, 1), "r": (1, 1, 1024)}
    tensors = [numpy_helper.from_array(np.ones(s, np.int64), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Max", ["p", "q", "r"], ["s"]),
        helper.make_node("Reshape", ["x", "s"], ["y"]),
    ]
    with pytest.raises(rf.errors.FastrfError):
        rf.from_onnx(model(nodes, tensors))


@pytest.mark.parametrize(
    ("place", "fits"),
    [("w.bin", True), ("below/w.bin", True), ("../w.bin", False), ("/etc/passwd", False),
     ("link", False), ("linked/w.bin", False), ("zero", False), (".", False), ("", False),
     ("missing", False), ("a\0", False), ("below/../w.bin", False), ("x" * 5000, False)],
    ids=lambda v: str(v)[:12],
)  # fmt: skip
def test_external_data(place: str, fits: bool, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "below").mkdir(parents=True)
    weights = np.ones((4, 3, 3, 3), np.float32)
    for folder in (tmp_path, home, home / "below"):
        (folder / "w.bin").write_bytes(weights.tobytes())
    (home / "link").symlink_to(tmp_path / "w.bin")
    (home / "linked").symlink_to(tmp_path)
    (home / "zero").symlink_to("/dev/zero")
    tensor = numpy_helper.from_array(weights, "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=place)
    path = home / "m.onnx"
    path.write_bytes(model([helper.make_node("Conv", ["x", "w"], ["y"])], [tensor]))
    assert len(rf.from_onnx(path)) == 1  # without weights nothing is opened
    if fits:
        assert len(rf.from_onnx(path, weights="trained")) == 1
        return
    with pytest.raises(NetworkFileError):
        rf.from_onnx(path, weights="trained")


IMAGE = (1, 4, 8, 8)
KERNEL = numpy_helper.from_array(np.ones((4, 4, 3, 3), np.float32), "w")
WINDOW = {"kernel_shape": [3, 3]}
SCALES = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "s")
PADS = numpy_helper.from_array(np.array([0, 0, 1, 1] * 2), "p")


@pytest.mark.parametrize(
    ("type_", "operands", "attributes", "message"),
    [
        ("Conv", [KERNEL], {"auto_pad": "SAME"}, "auto_pad='SAME' is unknown; it is one of NOTSET"),
        ("ConvTranspose", [KERNEL], {"auto_pad": "same_upper"}, "auto_pad='same_upper' is unknown"),
        ("MaxPool", [], WINDOW | {"auto_pad": "VALI"}, "auto_pad='VALI' is unknown"),
        ("Conv", [KERNEL], {"strides": [0, 1]}, r"strides=\[0, 1\] must be at least 1"),
        ("Conv", [KERNEL], {"dilations": [1, -1]}, r"dilations=\[1, -1\] must be at least 1"),
        ("Conv", [KERNEL], {"pads": [1, 1]}, r"pads=\[1, 1\] must be 4 numbers"),
        ("Conv", [KERNEL], {"kernel_shape": [5, 5]}, "is not that of its weights"),
        ("ConvTranspose", [KERNEL], {"output_padding": [-1, 0]}, "must be at least 0"),
        ("MaxPool", [], WINDOW | {"ceil_mode": 2}, "ceil_mode=2 is neither 0 nor 1"),
        ("AveragePool", [], WINDOW | {"pads": [1] * 4, "count_include_pad": -1}, "neither 0"),
        ("Resize", [None, SCALES], {"mode": "area"}, "mode='area' is unknown; it is one of neare"),
        ("Resize", [None, SCALES], {"coordinate_transformation_mode": "half"}, "'half' is unknown"),
        ("Resize", [None, SCALES], {"nearest_mode": "up"}, "nearest_mode='up' is unknown"),
        ("Resize", [None, SCALES], {"mode": "linear", "antialias": 3}, "antialias=3 is neither"),
        ("Pad", [PADS], {"mode": "mirror"}, "mode='mirror' is unknown; it is one of constant, ref"),
        ("DepthToSpace", [], {"blocksize": 2, "mode": "RCD"}, "mode='RCD' is unknown"),
        ("Gelu", [], {"approximate": "erf"}, "approximate='erf' is unknown"),
        ("Concat", ["x"], {"axis": 4}, "axis 4 is none of a tensor of 4 axes, -4 to 3"),
        ("Split", [], {"axis": -5}, "axis -5 is none"),
        ("Flatten", [], {"axis": 5}, "axis 5 is none"),
        ("ReduceMean", [], {"keepdims": 2}, "keepdims=2 is neither"),
        ("ReduceMax", [], {"axes": [2, 9]}, "axis 9 is none"),
        ("BatchNormalization", [None] * 4, {"training_mode": 7}, "training_mode=7 is neither"),
    ],
)  # fmt: skip
def test_values_that_no_operator_knows(
    type_: str, operands: list[Any], attributes: dict[str, Any], message: str
) -> None:
    """They are errors, not defaults, also where unknown operators are let through."""
    tensors = [t for t in operands if t is not None and t != "x"]
    names = ["" if t is None else t if t == "x" else t.name for t in operands]
    node = helper.make_node(type_, ["x", *names], ["y"], **attributes)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, IMAGE)
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph([node], "g", [x], [y], tensors)
    version = 20 if type_ == "Gelu" else 18 if "antialias" in attributes else 17
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
    with pytest.raises(NetworkFileError, match=message) as caught:
        rf.from_onnx(made.SerializeToString(), unknown="global")
    assert str(caught.value).endswith("correct the model")
