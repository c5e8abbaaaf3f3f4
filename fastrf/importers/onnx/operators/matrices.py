"""Matrix products, attention and reductions."""

from __future__ import annotations

import math
from dataclasses import replace

from fastrf.importers.failing import refuse
from fastrf.importers.layout import CHANNEL, Const, Map
from fastrf.importers.mixing import contracted, matrix_of, reduced, turned
from fastrf.importers.onnx.op import Op, handles
from fastrf.importers.operator import Result

# --- products with constant weights ---------------------------------------------------------


@handles("Gemm")
def _gemm(op: Op) -> Result:
    if isinstance(op.inputs[1], Map):
        return _attention(op)
    if op.flag("transA"):
        refuse("transposes the map that it reads")
    shape = op.weight_shape(1)
    if isinstance(op.input(2), Map):
        refuse("adds a map to a product; export it as MatMul and Add")
    known = op.learned(1)
    matrix = matrix_of(known) if op.flag("transB") else turned(known)
    if matrix is not None:
        matrix = matrix * op.attr("alpha", 1.0)
    return contracted(op, op.x, 1, shape[0 if op.flag("transB") else 1], matrix)


@handles("MatMul MatMulInteger QLinearMatMul")
def _matmul(op: Op) -> Result:
    if len(op.maps) > 1:
        return _attention(op)
    x = op.maps[0]
    second = 3 if op.type == "QLinearMatMul" else 1
    left = op.inputs[second] is not x
    shape = op.weight_shape(second if left else 0)
    if math.prod(shape[:-2]) != 1:
        refuse(f"has weights of shape {shape}, which differ from position to position")
    rank = len(x.dims or (1, 1))
    if left:
        out = shape[-1] if len(shape) > 1 else None
        return contracted(op, x, rank - 1, out, turned(op.learned(second)))
    out = shape[-2] if len(shape) > 1 else None
    return contracted(op, x, max(rank - 2, 0), out, matrix_of(op.learned(0)))


@handles("LSTM GRU RNN")
def _recurrent(op: Op) -> Result:
    """Each element of a sequence reads all those before it (and behind it, in both directions)."""
    x = op.attend(op.maps)
    return [replace(x, shape=shape) for shape in op.shapes]


# --- products of maps -----------------------------------------------------------------------


@handles("Einsum Attention")
def _attention(op: Op) -> Result:
    """A product of maps over positions: each element reads every position of them."""
    if op.type == "Einsum":
        return _einsum(op) if len(op.maps) == 1 else op.attend(op.maps)
    for x in op.maps:
        # Batch-like axes (all but the last two) that hold positions are windows of their own.
        if any(d.label > CHANNEL for a in (x.axes or ())[:-2] for d in a):
            refuse("multiplies maps within windows or along one axis")
    return op.attend(op.maps)


def _einsum(op: Op) -> Map:
    """A map times constant weights that share one letter with it and keep the others' order."""
    equation = str(op.attr("equation", "")).replace(" ", "")
    terms, _, result = equation.partition("->")
    letters = dict(zip(terms.split(","), op.inputs, strict=False))
    own = next((t for t, v in letters.items() if isinstance(v, Map)), "")
    weights = next((t for t, v in letters.items() if isinstance(v, Const)), "")
    gone = [c for c in own if c in weights and c not in result]
    new = [c for c in weights if c not in own]
    if len(gone) != 1 or len(new) != 1 or len(weights) != 2 or not result or "." in equation:
        refuse(f"computes {equation!r}")
    index = next(i for i, v in enumerate(op.inputs) if isinstance(v, Const))
    out = op.weight_shape(index)[weights.index(new[0])]
    known = op.learned(index)
    matrix = matrix_of(known) if weights.index(gone[0]) else turned(known)
    after = contracted(op, op.maps[0], own.index(gone[0]), out, matrix)
    written = own.replace(gone[0], new[0])
    if after.axes is None or sorted(written) != sorted(result):
        return after
    return replace(after, axes=tuple(after.axes[written.index(c)] for c in result))


# --- reductions -----------------------------------------------------------------------------

_MEANS = ("ReduceMean", "ReduceSum", "ReduceLogSum", "ReduceLogSumExp")
"""Reductions that read every pixel alike; the others route as a maximum does."""


@handles(
    "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceSumSquare ReduceProd "
    "ReduceLogSum ReduceLogSumExp ArgMax ArgMin"
)
def _reduce(op: Op) -> Result:
    x = op.x
    if x.axes is None:
        return replace(op.chain(x), shape=op.shape)
    axes = [op.attr("axis", 0)] if op.type.startswith("Arg") else op.operand(1, "axes")
    rank = len(x.axes)
    if not axes:
        axes = [] if op.flag("noop_with_empty_axes") else list(range(rank))
    gone = {op.axis(a, rank) for a in axes}
    return reduced(op, x, gone, op.type in _MEANS, op.flag("keepdims", 1))
