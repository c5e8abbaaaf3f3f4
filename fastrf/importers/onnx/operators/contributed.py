"""Operators of ONNX Runtime's own domain, which its optimiser and its quantiser write instead of
standard ones."""

from __future__ import annotations

from dataclasses import replace

from fastrf.importers.failing import refuse
from fastrf.importers.layout import Map
from fastrf.importers.onnx.op import HANDLERS, Op, handles
from fastrf.importers.operator import Result
from fastrf.importers.weighting import CLIPPED
from fastrf.layers import Add

_INSTEAD = {
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearMul": ("Mul", (0, 3)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearGlobalAveragePool": ("GlobalAveragePool", (0,)),
    "QLinearReduceMean": ("ReduceMean", (0,)),
    "QLinearLeakyRelu": ("LeakyRelu", (0,)),
    "QLinearSigmoid": ("Sigmoid", (0,)),
    "QLinearSoftmax": ("Softmax", (0,)),
    "QLinearConv": ("QLinearConv", tuple(range(9))),
    "QGemm": ("Gemm", (0, 3)),
    "MatMulIntegerToFloat": ("MatMul", (0, 1)),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1)),
    "FusedGemm": ("Gemm", (0, 1, 2)),
    "Gelu": ("Gelu", (0,)),
    "FastGelu": ("Gelu", (0,)),
    "QuickGelu": ("Gelu", (0,)),
    "BiasGelu": ("Gelu", (0,)),
    "QuantizeLinear": ("QuantizeLinear", (0,)),
    "DequantizeLinear": ("DequantizeLinear", (0,)),
}
"""The standard operator, and the places of its inputs."""

_DOMAIN = "com.microsoft::"


@handles(" ".join(f"{_DOMAIN}{name}" for name in _INSTEAD))
def _instead(op: Op) -> Result:
    type, places = _INSTEAD[op.type]
    return _standard(op, type, *places)


def _standard(op: Op, type: str, *places: int) -> Result:
    if op.flag("channels_last"):
        refuse("has its channels last; save the model with a lower level of optimisation")
    proto = op.proto_as(type)
    return HANDLERS[type](op.with_inputs(proto, [op.input(place) for place in places]))


@handles(f"{_DOMAIN}QLinearConcat")
def _concat(op: Op) -> Result:
    """Reads the scale and zero point of the result, then each map with its own."""
    return _standard(op, "Concat", *range(2, len(op.inputs), 3))


@handles(f"{_DOMAIN}FusedConv")
def _fused_conv(op: Op) -> Result:
    """A convolution, to which a map may be added, and an activation."""
    after = _standard(op, "Conv", 0, 1, 2)
    assert isinstance(after, Map)
    added, activation = op.input(3), op.attr("activation")
    if isinstance(added, Map):
        after = replace(op.merge([after, added], Add()), extent=after.extent, axes=after.axes)
    if activation is None:
        return after
    name, values = str(activation).lower(), op.attr("activation_params") or [None]
    function = {"leakyrelu": "leaky_relu", "clip": CLIPPED.get(tuple(values), "clip")}.get(name)
    slope = values[0] if name == "leakyrelu" else None
    return op.chain(after, op.weighting.activation(name, function, slope))
