"""Resizing with interpolation: the coefficients of PyTorch and of ONNX's reference, read off units
that are put through them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

import fastrf as rf
from fastrf.errors import InputError, UnsupportedOperator
from fastrf.maps import Table

EPS = np.finfo(np.float64).eps
RESIZES = [
    {"size": (4, 2)}, {"size": (7, 7)}, {"size": (1, 2)}, {"scale_factor": (0.5, 1.0)},
    {"scale_factor": (1.5, 1.0)}, {"scale_factor": (3.0, 0.75)}, {"scale_factor": (0.3, 2.0)},
]  # fmt: skip


def matrix(axis, rows: int, columns: int) -> np.ndarray:
    """The coefficients of one axis of a layer, one row an output."""
    if not isinstance(axis, Table):
        return np.eye(rows, columns)  # not resized
    assert axis.period == rows
    found = np.zeros((rows, columns))
    lines = np.sqrt(axis.taps) if axis.coefficients is None else axis.coefficients
    for line, start, taps in zip(found, axis.starts, lines, strict=True):
        for m, tap in enumerate(taps):
            if tap != 0:
                line[start + m] += tap
    return found


def whole_matrix(network: rf.Network, size: tuple[int, ...]) -> np.ndarray:
    """All coefficients of a network of one resize, (outputs, inputs)."""
    (layer,) = [n.layer for n in network.bound.nodes.values() if not isinstance(n.layer, rf.Input)]
    (move,) = layer.maps(size, len(size))
    axes = zip(move.axes, move.size_out, size, strict=True)
    first, *others = [matrix(*axis) for axis in axes]
    for other in others:
        first = np.kron(first, other)
    return first


class Resize(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, x):
        return F.interpolate(x, **self.options)


@pytest.mark.parametrize("how", RESIZES, ids=str)
@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(5, 4), (4, 3), (13, 8)])
def test_coefficients_of_pytorch(size, mode, antialias, how):
    module = Resize(mode=mode, antialias=antialias, **how)
    units = torch.eye(size[0] * size[1], dtype=torch.float64).reshape(-1, 1, *size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's, on scales that give a size
        expected = module(units).flatten(1).numpy().T
    found = whole_matrix(rf.from_torch(module, (1, 1, *size)), size)
    # PyTorch's positions are products of floats of up to 13: a few ulp of 13, times a slope of 2.
    np.testing.assert_allclose(found, expected, rtol=0, atol=2 * 16 * 13 * EPS)


def test_pytorch_s_corners_with_antialiasing_are_refused():
    module = Resize(size=(3, 3), mode="bilinear", antialias=True, align_corners=True)
    with pytest.raises(UnsupportedOperator, match="align_corners=False"):
        rf.from_torch(module, (1, 1, 7, 7))


@pytest.mark.parametrize("scales", [(2.0, 1.0), (0.5, 0.25), (1.5, 0.75)], ids=str)
@pytest.mark.parametrize("antialias", [0, 1])
@pytest.mark.parametrize("outside", [0, 1])
@pytest.mark.parametrize(("mode", "a"), [("linear", None), ("cubic", -0.75), ("cubic", -0.5)])
@pytest.mark.parametrize("coordinates", ["half_pixel", "asymmetric"])
def test_coefficients_of_onnx(coordinates, mode, a, outside, antialias, scales):
    size = (8, 4)
    attributes = {"mode": mode, "antialias": antialias, "exclude_outside": outside}
    attributes["coordinate_transformation_mode"] = coordinates
    if a is not None:
        attributes["cubic_coeff_a"] = a
    x = helper.make_tensor_value_info("x", TensorProto.DOUBLE, [1, 1, *size])
    y = helper.make_tensor_value_info("y", TensorProto.DOUBLE, None)
    held = helper.make_tensor("s", TensorProto.FLOAT, [4], [1.0, 1.0, *scales])
    node = helper.make_node("Resize", ["x", "", "s"], ["y"], **attributes)
    graph = helper.make_graph([node], "resize", [x], [y], [held])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    found = whole_matrix(rf.from_onnx(model), size)
    reference = ReferenceEvaluator(model)
    units = np.eye(size[0] * size[1]).reshape(-1, 1, 1, *size)
    expected = np.stack([reference.run(None, {"x": unit})[0].ravel() for unit in units], axis=1)
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=1e-6
    )  # it keeps coefficients in float32


def test_a_smoothed_reduction_reads_a_window_of_its_scale():
    """By 1/4: a triangle over 8 pixels, of which the ends count for nothing where they are hit."""
    field = rf.receptive_field(rf.Sequential(rf.Upsample("1/4", "linear", antialias=True)))
    assert field.size == (8, 8)
    assert field.stride == (4, 4)
    odd = rf.receptive_field(rf.Sequential(rf.Upsample("1/3", "linear", antialias=True)))
    assert odd.size == (5, 5)


def test_keys_parameter_has_a_range():
    with pytest.raises(InputError, match=r"a=-2 must be a number from -1 to 0"):
        rf.Upsample(2, "cubic", a=-2).bind(2)
