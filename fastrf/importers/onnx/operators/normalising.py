"""Normalisation, by what its statistics run over."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from fastrf.importers.onnx.failing import refuse
from fastrf.importers.onnx.layout import CHANNEL, Map
from fastrf.importers.onnx.op import Op, Result, handles
from fastrf.layers import Norm


def _normalised(op: Op, positions: Sequence[int]) -> Map:
    """A normalisation with statistics over the given axes of the tensor."""
    x = op.x
    if x.axes is None:
        return op.chain(x, Norm("channel"))
    axes = [x.axes[p] for p in positions]
    digits = tuple(d for axis in axes for d in axis)
    statistics: Literal["channel", "instance", "layer", "group"] = "channel"
    if x.reads_grid(axes):
        channels = any(d.label == CHANNEL for d in digits)
        statistics = "instance"
        if channels or x.extent[CHANNEL] == 1:
            statistics = "layer" if x.holds(digits, CHANNEL) else "group"
    return op.chain(x, Norm(statistics))


@handles("BatchNormalization")
def _batch_norm(op: Op) -> Result:
    if op.version >= 14:
        training = bool(op.attr("training_mode", 0))
    elif op.version >= 7:
        training = sum(map(bool, op.proto.output)) > 1  # operator version 9, "Output case #1"
    else:
        training = not op.attr("is_test", 0)
    return op.chain(op.x, Norm("batch_train" if training else "batch"))


@handles("LRN")
def _lrn(op: Op) -> Result:
    return op.chain(op.standard(op.x), Norm("lrn"))


@handles("InstanceNormalization")
def _instance_norm(op: Op) -> Result:
    return _normalised(op, range(2, len(op.x.dims or ())))


@handles("LayerNormalization RMSNormalization")
def _layer_norm(op: Op) -> Result:
    rank = len(op.x.dims or (1,))
    return _normalised(op, range(op.attr("axis", -1) % rank, rank))


@handles("LpNormalization")
def _lp_norm(op: Op) -> Result:
    return _normalised(op, [op.attr("axis", -1)])


@handles("GroupNormalization")
def _group_norm(op: Op) -> Result:
    x = op.standard(op.x)
    groups = op.attr("num_groups", 1)
    kind: Any = "layer" if groups == 1 else "instance" if groups == x.extent[CHANNEL] else "group"
    return op.chain(x, Norm(kind))


@handles("MeanVarianceNormalization")
def _mean_variance(op: Op) -> Result:
    axes = set(op.attr("axes", [0, 2, 3]))
    if 0 not in axes:
        return _normalised(op, sorted(axes))
    x = op.standard(op.x)
    if not axes >= set(range(2, op.ndim + 2)):
        refuse("works along some of the spatial axes and not all")
    return op.chain(x, Norm("batch_train"))
