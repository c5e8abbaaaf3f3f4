"""Normalisation, by what its statistics run over."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fastrf.importers.batched import for_all
from fastrf.importers.layout import CHANNEL
from fastrf.importers.mixing import normalised
from fastrf.importers.operator import Result
from fastrf.importers.torch.op import Op, handles
from fastrf.layers import Norm


@handles("batch_norm _batch_norm_impl_index native_batch_norm cudnn_batch_norm")
def _batch_norm(op: Op) -> Result:
    if op["training"]:
        scale = for_all(op.x, op.learned("weight"))
        return op.chain(op.x, op.weighting.norm("batch_train", scale))
    return op.chain(op.x, _fixed(op))


def _fixed(op: Op) -> Norm:
    """A normalisation by running statistics."""
    variance, scale = op.learned("running_var"), op.learned("weight")
    if variance is None:
        return op.weighting.norm("batch", for_all(op.x, scale))
    factors = 1 / np.sqrt(variance.astype(np.float64) + op["eps"])
    factors = factors if scale is None else scale * factors
    return op.weighting.norm("running", for_all(op.x, factors), fixed=True)


@handles("instance_norm")
def _instance_norm(op: Op) -> Result:
    if not op["use_input_stats"]:
        return op.chain(op.x, _fixed(op))
    return normalised(op, op.x, range(2, len(op.x.dims or ())), op.learned("weight"))


@handles("layer_norm native_layer_norm rms_norm _fused_rms_norm")
def _layer_norm(op: Op) -> Result:
    rank = len(op.x.dims or op.size)
    return normalised(
        op, op.x, range(rank - len(op["normalized_shape"]), rank), op.learned("weight")
    )


@handles("group_norm native_group_norm")
def _group_norm(op: Op) -> Result:
    x = op.x
    if x.axes is None or not x.groups_channels():
        x = op.standard(x)
    groups = op.get("num_groups", "group")
    kind: Literal["layer", "instance", "group"] = "group"
    if groups == 1 and (x.axes or ((), ()))[1] == x.whole(CHANNEL):
        kind = "layer"
    elif groups == x.extent[CHANNEL]:
        kind = "instance"
    return op.chain(x, op.weighting.norm(kind, for_all(x, op.learned("weight"))))


@handles("local_response_norm")
def _lrn(op: Op) -> Result:
    return op.chain(op.standard(op.x), op.weighting.norm("lrn"))
