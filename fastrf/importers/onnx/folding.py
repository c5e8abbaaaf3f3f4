"""Constants that a graph computes: sizes, axes, pads, and the shapes of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf.importers.layout import Const, Shape, Value, size_list
from fastrf.importers.onnx.op import Op
from fastrf.importers.onnx.reading import SMALL, array, constant_tensor

_FOLDED = """
    Abs Add And Cast Ceil Concat DequantizeLinear Div Equal Flatten Floor Gather Greater
    GreaterOrEqual Identity Less LessOrEqual Max Min Mod Mul Neg Not Or Pow QuantizeLinear
    Reciprocal ReduceL2 ReduceMax ReduceMin ReduceProd ReduceSum Reshape Round Shape Size Slice
    Split Sqrt Squeeze Sub Sum Transpose Unsqueeze Where
""".split()  # noqa: SIM905  (one name a line would fill the screen)
"""Operators that models compute sizes with. Their results are no larger than a product of their
inputs' sizes, so that no file can make folding allocate much."""

_OF_WEIGHTS = """
    Add Cast DequantizeLinear Div Flatten Identity Mul Reciprocal ReduceL2 ReduceSum Reshape Sqrt
    Squeeze Sub Transpose Unsqueeze
""".split()  # noqa: SIM905
"""Those that weights go through: stored in few bits, transposed, normalised."""

_FOLD_ELEMENTS = 1024
"""Largest input of a node that is computed; lists of sizes and axes are far shorter."""


def fold(op: Op, weights: bool = False) -> list[Value]:
    """The results of a node that reads constants alone: their values where they are small.

    Args:
        weights: weights are read, and so is what is made of them, no larger than they are.
    """
    shapes: list[Value] = [Const(shape) for shape in op.shapes]
    if op.type == "Constant":
        return [_constant(op)]
    if op.type == "ConstantOfShape":
        return [_filled(op)]
    arrays: list[NDArray[Any] | None] = []
    for value in op.inputs:
        if value is None:
            arrays.append(None)
        elif isinstance(value, Const) and value.array is not None:
            arrays.append(value.array)
        elif op.type == "Shape" and isinstance(value, Const) and value.shape is not None:
            return [shape_of(op, value.shape)]
        else:
            return shapes
    sizes = [a.size for a in arrays if a is not None]
    most = max(sizes, default=0)
    few = most <= _FOLD_ELEMENTS and _broadcast(arrays) <= _FOLD_RESULT
    own = weights and op.type in _OF_WEIGHTS and _broadcast(arrays) <= most
    if op.type not in _FOLDED or not (few or own):
        return shapes
    results = _run(op, arrays)
    return shapes if results is None else [Const.of(r) for r in results]


_FOLD_RESULT = 1 << 16
"""Most elements of what several inputs make of each other."""


def _broadcast(arrays: Sequence[NDArray[Any] | None]) -> int:
    """Elements of the arrays' common shape, if they have one: three of 1024 could make 2³⁰."""
    try:
        return math.prod(np.broadcast_shapes(*(a.shape for a in arrays if a is not None)))
    except ValueError:
        return 0


def _run(op: Op, arrays: Sequence[NDArray[Any] | None]) -> list[NDArray[Any]] | None:
    """One node computed by ONNX's reference implementation; None where it cannot."""
    from onnx import TypeProto, helper
    from onnx.reference import ReferenceEvaluator

    given = {n: a for n, a in zip(op.proto.input, arrays, strict=True) if a is not None}
    graph = helper.make_graph(
        [op.proto],
        "fold",
        [helper.make_value_info(n, TypeProto()) for n in given],
        [helper.make_value_info(n, TypeProto()) for n in op.proto.output],
    )
    # The references of these two begin at 19, and include what they were before.
    quantises = op.type in ("QuantizeLinear", "DequantizeLinear")
    version = max(op.version, 19) if quantises else op.version
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", version)])
    try:
        with np.errstate(all="ignore"):
            return [np.asarray(r) for r in ReferenceEvaluator(model).run(None, given)]
    except Exception:  # The reference raises whatever NumPy does; the value then stays unknown.
        return None


def _constant(op: Op) -> Const:
    tensor = constant_tensor(op.proto)
    if tensor is not None:
        return Const(tuple(tensor.dims), array(tensor))
    for name in ("value_int", "value_ints", "value_float", "value_floats"):
        if name in op.attributes:
            value = np.asarray(op.attr(name))
            return Const(value.shape, value if value.size <= SMALL else None)
    return Const(op.shape)


def _filled(op: Op) -> Const:
    """ConstantOfShape, which light models use in place of weights: never made when large."""
    shape = op.inputs[0]
    if not isinstance(shape, Const) or shape.array is None:
        return Const(op.shape)
    dims = tuple(int(n) for n in shape.array.ravel())
    if math.prod(dims) > SMALL or min(dims, default=0) < 0:
        return Const(dims)
    fill = array(op.attributes["value"].t) if "value" in op.attributes else None
    return Const(dims, np.full(dims, np.float32(0) if fill is None else fill.ravel()[0]))


def shape_of(op: Op, shape: Shape) -> Const:
    """The result of the operator Shape."""
    end = op.attr("end")
    return size_list(shape[op.attr("start", 0) : len(shape) if end is None else end])
