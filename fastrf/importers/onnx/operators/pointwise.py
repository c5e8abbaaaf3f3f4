"""Operators that move nothing: activations, dropout, copies, softmax."""

from __future__ import annotations

from fastrf.importers.onnx.op import Op, handles
from fastrf.importers.operator import Result
from fastrf.layers import Activation, Attention, Dropout


@handles(
    "Abs Acos Acosh Asin Asinh Atan Atanh Celu Ceil Clip Cos Cosh DequantizeLinear Elu Erf "
    "Exp Floor Gelu HardSigmoid HardSwish IsInf IsNaN LeakyRelu Log Mish Neg Not PRelu "
    "QuantizeLinear Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus "
    "Softsign Sqrt Swish Tan Tanh ThresholdedRelu BitwiseNot"
)
def _unary(op: Op) -> Result:
    return op.chain(op.x, Activation(op.type.lower(), gain=1.0))


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
    first = op.attr("axis", -1 if modern else 1) % len(x.axes)
    axes = x.axes[first : first + 1] if modern else x.axes[first:]
    return op.chain(x, Attention() if x.reads_grid(axes) else pointwise)
