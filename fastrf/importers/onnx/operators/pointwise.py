"""Operators that move nothing: activations, dropout, copies, softmax."""

from __future__ import annotations

import numpy as np

from fastrf.importers.layout import Const
from fastrf.importers.onnx.op import Op, handles
from fastrf.importers.operator import Result
from fastrf.importers.weighting import CLIPPED
from fastrf.layers import Activation, Attention, Dropout, Scale


@handles(
    "Abs Acos Acosh Asin Asinh Atan Atanh Celu Ceil Clip Cos Cosh DequantizeLinear Elu Erf "
    "Exp Floor Gelu HardSigmoid HardSwish IsInf IsNaN LeakyRelu Log Mish Not PRelu "
    "QuantizeLinear Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus "
    "Softsign Sqrt Swish Tan Tanh ThresholdedRelu BitwiseNot"
)
def _unary(op: Op) -> Result:
    return op.chain(op.x, op.weighting.activation(op.type.lower(), *_function(op)))


@handles("Neg")
def _negative(op: Op) -> Result:
    return op.chain(op.x, Scale(-1.0))


@handles("DynamicQuantizeLinear")
def _quantized(op: Op) -> Result:
    """The scale and the zero point are taken from the map's range, and count as constants."""
    return [op.chain(op.x, op.weighting.activation("quantizelinear")), Const(()), Const(())]


def _function(op: Op) -> tuple[str | None, float | None]:
    """The name by which `fastrf.activations` knows a function with these attributes (None: the
    operator's), and its slope."""
    if op.type in ("LeakyRelu", "Elu", "Celu"):
        name = "leaky_relu" if op.type == "LeakyRelu" else op.type.lower()
        return name, float(op.attr("alpha", 0.01 if op.type == "LeakyRelu" else 1.0))
    if op.type == "PRelu":
        slopes = op.learned(1)
        return "prelu", None if slopes is None else float(np.sqrt(np.mean(np.square(slopes))))
    if op.type == "Gelu" and op.choice("approximate", "none", "tanh") == "tanh":
        return "gelu_tanh", None
    if op.type == "HardSigmoid" and abs(op.attr("alpha", 0.2) - 1 / 6) > 1e-3:
        return "hardsigmoid(alpha)", None
    if op.type == "Clip":
        ends = (_number(op, 1, "min"), _number(op, 2, "max"))
        return CLIPPED.get(ends, "clip"), None
    return None, None


def _number(op: Op, index: int, name: str) -> float | None:
    """One end of a range; None where it is open."""
    value = op.input(index)
    known = op.attr(name) if value is None else value.array if isinstance(value, Const) else None
    return None if known is None else float(known)


@handles("Identity Cast CastLike")
def _identity(op: Op) -> Result:
    return op.chain(op.x)


@handles("Dropout")
def _dropout(op: Op) -> Result:
    if op.version >= 12 and op.operand(2, "training_mode", False):
        return op.chain(op.x, Dropout(float(op.operand(1, "ratio", 0.5))))
    return op.chain(op.x)


@handles("Softmax LogSoftmax Hardmax")
def _softmax(op: Op) -> Result:
    x = op.x
    pointwise = Activation(op.type.lower(), gain=1.0)
    if x.axes is None:
        return op.chain(x, pointwise)
    modern = op.version >= 13
    first = op.axis(op.attr("axis", -1 if modern else 1), len(x.axes))
    axes = x.axes[first : first + 1] if modern else x.axes[first:]
    return op.chain(x, Attention() if x.reads_grid(axes) else pointwise)
