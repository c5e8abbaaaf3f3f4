"""Normalisation, by what its statistics run over."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastrf.importers.batched import for_all
from fastrf.importers.failing import refuse
from fastrf.importers.layout import CHANNEL
from fastrf.importers.mixing import normalised
from fastrf.importers.onnx.op import Op, handles
from fastrf.importers.operator import Result


@handles("BatchNormalization")
def _batch_norm(op: Op) -> Result:
    if op.version >= 14:
        training = op.flag("training_mode")
    elif op.version >= 7:
        training = sum(map(bool, op.proto.output)) > 1  # operator version 9, "Output case #1"
    else:
        training = not op.flag("is_test")
    scale, variance = op.learned(1), op.learned(4)
    if training or scale is None or variance is None:
        kind: Any = "batch_train" if training else "batch"
        return op.chain(op.x, op.weighting.norm(kind, for_all(op.x, scale)))
    factors = scale / np.sqrt(variance.astype(np.float64) + op.attr("epsilon", 1e-5))
    return op.chain(op.x, op.weighting.norm("running", for_all(op.x, factors), fixed=True))


@handles("LRN")
def _lrn(op: Op) -> Result:
    return op.chain(op.standard(op.x), op.weighting.norm("lrn"))


@handles("InstanceNormalization")
def _instance_norm(op: Op) -> Result:
    return normalised(op, op.x, range(2, len(op.x.dims or ())), op.learned(1))


@handles("LayerNormalization RMSNormalization")
def _layer_norm(op: Op) -> Result:
    rank = len(op.x.dims or (1,))
    return normalised(op, op.x, range(op.axis(op.attr("axis", -1), rank), rank), op.learned(1))


@handles("LpNormalization")
def _lp_norm(op: Op) -> Result:
    return normalised(op, op.x, [op.attr("axis", -1)])


@handles("GroupNormalization")
def _group_norm(op: Op) -> Result:
    x = op.x if op.x.axes is not None and op.x.groups_channels() else op.standard(op.x)
    groups = op.attr("num_groups", 1)
    whole = (x.axes or ((), ()))[1] == x.whole(CHANNEL)
    alone = groups == x.extent[CHANNEL]
    kind: Any = "layer" if groups == 1 and whole else "instance" if alone else "group"
    return op.chain(x, op.weighting.norm(kind, for_all(x, op.learned(1))))


@handles("MeanVarianceNormalization")
def _mean_variance(op: Op) -> Result:
    axes = set(op.attr("axes", [0, 2, 3]))
    if 0 not in axes:
        return normalised(op, op.x, sorted(axes))
    x = op.standard(op.x)
    if not axes >= set(range(2, op.ndim + 2)):
        refuse("works along some of the spatial axes and not all")
    return op.chain(x, op.weighting.norm("batch_train"))
