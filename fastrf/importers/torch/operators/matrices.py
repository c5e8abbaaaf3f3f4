"""Matrix products, attention and reductions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from fastrf.importers.cutting import only_slower, refastened
from fastrf.importers.failing import refuse
from fastrf.importers.layout import BATCH, CHANNEL, Const, Map, size
from fastrf.importers.mixing import (
    added_parts,
    contracted,
    kernel_of,
    left,
    matrix_of,
    reduced,
    turned,
)
from fastrf.importers.operator import Result
from fastrf.importers.torch.op import Op, handles
from fastrf.layers import Add, Conv, GlobalPool

# --- products with constant weights ---------------------------------------------------------


def _mixed(op: Op, x: Map, axis: int, out: int | None, matrix: NDArray[Any] | None = None) -> Map:
    """As `contracted`; a part of the channels is mixed by a grouped convolution, and positions
    that become other positions count as all read by all."""
    if x.axes is None:
        return contracted(op, x, axis, out, matrix)
    digits = x.axes[axis]
    channels = x.extent[CHANNEL] or 1
    if len(digits) == 1 and digits[0].label == CHANNEL and digits != x.whole(CHANNEL):
        (digit,) = digits
        if digit.step == 1 and out is not None and only_slower(x, axis, digit.size or 1):
            groups = channels // (digit.size or 1)
            layer = Conv(1, channels=groups * out, groups=groups)
            kernel = kernel_of(op, matrix, groups)
            return _grouped(op, x, axis, op.weighted(layer, kernel), out)
    if digits and all(d.label > CHANNEL for d in digits) and x.holds_grid(digits):
        return contracted(op, x, axis, out) if out == size(digits) else op.attend([x])
    return contracted(op, x, axis, out, matrix)


def _grouped(op: Op, x: Map, axis: int, layer: Conv, out: int) -> Map:
    """The fastest digit of the channels becomes `out` new channels in every group of the layer."""
    return replace(refastened(x, axis, out), node=op.chain(x, layer).node)


@handles("linear")
def _linear(op: Op) -> Result:
    shape = op.weight("weight").shape or ()
    rank = len(op.x.dims or op.size)
    matrix = op.learned("weight")
    if matrix is not None and matrix.ndim == 1:
        matrix = matrix[None]
    return _mixed(op, op.x, rank - 1, shape[0] if len(shape) > 1 else None, matrix)


@handles("addmm addmv baddbmm")
def _addmm(op: Op) -> Result:
    first = op.get("mat1", "mat", "batch1")
    if not isinstance(first, Map) or isinstance(op.get("mat2", "vec", "batch2"), Map):
        return _attention(op)
    weights = op.learned("mat2", "vec", "batch2")
    return _mixed(op, first, len(op.size) - 1, op.size[-1], turned(weights))


@handles("matmul mm bmm mv dot __matmul__")
def _matmul(op: Op) -> Result:
    if len(op.maps) > 1:
        return _attention(op)
    first, second = op.inputs[0], op.inputs[1]
    x = op.maps[0]
    weight = second if x is first else first
    shape = (weight.shape if isinstance(weight, Const) else None) or ()
    rank = len(x.dims or (1, 1))
    known = weight.array if isinstance(weight, Const) and op.weighting.trained else None
    if x is first:
        return _mixed(op, x, rank - 1, shape[-1] if len(shape) > 1 else None, turned(known))
    return _mixed(op, x, max(rank - 2, 0), shape[-2] if len(shape) > 1 else None, matrix_of(known))


# --- products of maps -----------------------------------------------------------------------


@handles(
    "scaled_dot_product_attention _scaled_dot_product_attention_math cdist fft_fft fft_fft2 "
    "fft_fftn fft_rfft fft_rfft2 fft_rfftn fft_ifft fft_ifft2 fft_ifftn fft_irfft fft_irfft2 "
    "fft_irfftn"
)
def _attention(op: Op) -> Result:
    """A product of maps over positions: each element reads every position of them.

    Attention within windows counts as attention over the whole map.
    """
    maps = {x.node: x for x in op.maps}
    return op.attend(list(maps.values()))


@handles("lstm gru rnn_tanh rnn_relu")
def _recurrent(op: Op) -> Result:
    """Each element of a sequence reads all those before it (and behind it, in both directions)."""
    x = op.attend(op.maps)
    return [replace(x, shape=shape) for shape in op.shapes]


@handles("einsum")
def _einsum(op: Op) -> Result:
    """One map times constant weights is a linear layer where the two share one letter and the
    others stay; maps that keep all their letters are multiplied; what is summed over in a product
    of maps counts as attention."""
    equation = str(op["equation"]).replace(" ", "")
    terms, _, result = equation.partition("->")
    letters = terms.split(",")
    if len(op.maps) > 1:
        return _einsum_of_maps(op, letters, result)
    own = next(t for t, v in zip(letters, op.inputs, strict=True) if isinstance(v, Map))
    x = op.maps[0]
    weights = [(t, v) for t, v in zip(letters, op.inputs, strict=True) if isinstance(v, Const)]
    if len(weights) != 1 or "." in equation or not result:
        refuse(f"computes {equation!r}")
    ((term, weight),) = weights
    gone = [c for c in own if c in term and c not in result]
    new = [c for c in term if c not in own]
    if len(gone) != 1 or len(new) > 1:
        refuse(f"computes {equation!r}")
    out = (weight.shape or ())[term.index(new[0])] if new else None
    plain = weight.array if len(term) == 1 + len(new) and op.weighting.trained else None
    matrix = matrix_of(plain) if term.index(gone[0]) else turned(plain)
    after = _mixed(op, x, own.index(gone[0]), out, matrix)
    written = own.replace(gone[0], "".join(new))
    if after.axes is None or sorted(written) != sorted(result):
        return replace(after, shape=op.shape)
    return replace(after, axes=tuple(after.axes[written.index(c)] for c in result))


def _einsum_of_maps(op: Op, letters: list[str], result: str) -> Map:
    laid_out = all(isinstance(v, Map) and v.axes is not None for v in op.inputs)
    if not laid_out or "." in result or len(letters) != 2:
        return op.attend(op.maps)
    if any(set(term) - set(result) for term in letters):
        return op.attend(op.maps)
    laid = []
    for term, x in zip(letters, op.maps, strict=True):
        axes = tuple((x.axes or ())[term.index(c)] if c in term else () for c in result)
        laid.append(replace(x, axes=axes))
    return op.merge(laid, op.weighting.product())


# --- reductions -----------------------------------------------------------------------------

_MEANS = ("mean", "sum", "logsumexp", "var", "std", "var_mean", "std_mean", "nansum", "nanmean")
"""Reductions that read every pixel alike; the others route as a maximum does."""


@handles(
    "mean sum amax amin max min norm linalg_vector_norm logsumexp var std prod all any argmax "
    "argmin var_mean std_mean nansum nanmean cummax median"
)
def _reduce(op: Op) -> Result:
    x = op.x
    if len(op.maps) > 1:
        return op.merge(op.maps, Add())
    if x.axes is None:
        return replace(op.chain(x), shape=op.shape)
    gone = set(op.axes_of(x, op.get("dim")))
    keep = bool(op.get("keepdim"))
    return _reduced(op, x, gone, keep)


def _reduced(op: Op, x: Map, gone: Collection[int], keep: bool) -> Map:
    assert x.axes is not None
    mean = op.type in _MEANS
    digits = tuple(d for p in gone for d in x.axes[p])
    spatial = {d.label for d in digits if d.label > CHANNEL}
    channels = tuple(d for d in digits if d.label == CHANNEL)
    if any(d.label == BATCH for d in digits):
        refuse("works along the batch")
    if channels and not x.holds(digits, CHANNEL) and (not spatial or x.holds_grid(digits)):
        return _reduced_in_part(op, _pooled(op, x) if spatial else x, gone, keep)
    return reduced(op, x, gone, mean, keep)


def _pooled(op: Op, x: Map) -> Map:
    """The map as one pixel."""
    pool = GlobalPool("avg" if op.type in _MEANS else "max")
    node = op.emit(pool, x.node, part="pool")
    axes = tuple(tuple(d for d in axis if d.label <= CHANNEL) for axis in x.axes or ())
    return replace(x, node=node, extent=(x.extent[CHANNEL], *(1,) * op.ndim), axes=axes)


def _reduced_in_part(op: Op, x: Map, gone: Collection[int], keep: bool) -> Map:
    """The slowest digit of the channels (slices that are added), or the fastest (groups)."""
    added = added_parts(op, x, gone, keep)
    if added is not None:
        return added
    channels = x.extent[CHANNEL] or 1
    axes = [p for p in gone if (x.axes or ())[p]]
    digits = (x.axes or ())[axes[0]]
    if len(axes) != 1 or len(digits) != 1:
        refuse("reduces a part of the channels")
    (digit,) = digits
    count = digit.size or 1
    if digit.step == 1 and only_slower(x, axes[0], count):
        groups = channels // count
        after = _grouped(op, x, axes[0], Conv(1, channels=groups, groups=groups), 1)
        return replace(after, axes=left(after, gone, keep))
    refuse("reduces a part of the channels")


@handles("cumsum cumprod flip flipud fliplr sort topk multinomial nonzero masked_select unique")
def _ordered(op: Op) -> Result:
    if op.type.startswith("flip"):
        refuse("turns an axis round")
    if op.type.startswith("cum"):
        refuse("adds up along an axis")
    refuse("orders or picks elements by their values")
