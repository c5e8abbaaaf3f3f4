"""Operators that move nothing: activations, dropout, copies, softmax."""

from __future__ import annotations

import numpy as np

from fastrf.importers.layout import Const
from fastrf.importers.operator import Result
from fastrf.importers.torch.op import Op, handles
from fastrf.importers.weighting import CLIPPED
from fastrf.layers import Activation, Attention, Dropout


@handles(
    "abs acos acosh angle asin asinh atan atanh bitwise_not ceil celu clamp clamp_max clamp_min "
    "clip cos cosh elu erf erfc exp exp2 expm1 floor frac gelu hardshrink hardsigmoid hardswish "
    "hardtanh "
    "isfinite isinf isnan leaky_relu log log10 log1p log2 log_sigmoid logical_not logit "
    "masked_fill mish nan_to_num prelu _prelu_kernel reciprocal relu relu6 round "
    "rrelu rsqrt selu sgn sigmoid sign silu sin sinh softplus softshrink softsign sqrt square tan "
    "tanh threshold trunc special_expit special_erf special_ndtr"
)
def unary(op: Op) -> Result:
    return op.chain(op.x, op.weighting.activation(op.type, *_function(op)))


def _function(op: Op) -> tuple[str | None, float | None]:
    """The name by which `fastrf.activations` knows a function with these arguments (None: the
    operator's), and its slope."""
    if op.type in ("leaky_relu", "elu", "celu"):
        return None, float(op.get("negative_slope", "alpha"))
    if op.type in ("prelu", "_prelu_kernel"):
        slopes = op.learned("weight")
        return "prelu", None if slopes is None else float(np.sqrt(np.mean(np.square(slopes))))
    if op.type == "gelu" and op["approximate"] == "tanh":
        return "gelu_tanh", None
    if op.type in ("hardtanh", "clamp", "clip", "clamp_min"):
        ends = op.get("min_val", "min"), op.get("max_val", "max")
        return CLIPPED.get(ends, op.type if op.type != "hardtanh" else "clip"), None
    if op.type == "softplus" and op["beta"] != 1:
        return f"softplus(beta={op['beta']})", None
    return None, None


@handles(
    "_to_copy alias alpha_dropout clone conj contiguous cpu data dequantize dequantize_per_channel "
    "dequantize_per_tensor detach double fake_quantize_per_channel_affine "
    "fake_quantize_per_tensor_affine float fused_moving_avg_obs_fake_quant half identity imag lift "
    "lift_fresh_copy positive quantize_per_channel quantize_per_tensor real requires_grad "
    "resolve_conj resolve_neg to type_as view_as_real bfloat16"
)
def unchanged(op: Op) -> Result:
    """The first input; of `type_as` that may be a constant, and the map give its type alone. A
    complex number counts as one element, and so do its parts."""
    first = op.inputs[0]
    return first if isinstance(first, Const) else op.x


@handles("dropout feature_dropout native_dropout dropout1d dropout2d dropout3d")
def _dropout(op: Op) -> Result:
    p = float(op["p"])
    return op.chain(op.x, Dropout(p)) if op["train"] and p < 1 else op.x


@handles(
    "new_zeros new_ones new_full new_empty new_empty_strided zeros_like ones_like empty_like "
    "full_like rand_like randn_like randint_like bernoulli normal uniform exponential zero fill "
    "sym_size size numel"
)
def _constant(op: Op) -> Result:
    """Made like the map, without its values."""
    return Const(op.shape)


@handles("softmax log_softmax softmin _softmax _log_softmax")
def _softmax(op: Op) -> Result:
    x = op.x
    pointwise = Activation(op.type, gain=1.0)
    if x.axes is None:
        return op.chain(x, pointwise)
    (axis,) = op.axes_of(x, op["dim"])
    return op.chain(x, Attention() if x.reads_grid([x.axes[axis]]) else pointwise)
