"""The joint covariance of the gradients at all pixels of all maps, as one dense matrix.

Layers are matrices read off PyTorch's own, from impulses. Backwards, g of a map that is read is
the sum of Mᵀ·g over its readers. Where M is random, its mean is applied to the whole covariance
matrix and what its entries have beyond their mean is added to the map's own block. Nothing of
fastrf is used but the fields of its layers, and one channel stands for many: a concatenation gives
each of its inputs channels of its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import fastrf as rf

Matrix = np.ndarray
Nodes = Mapping[str, Sequence[Any]]

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def covariance(
    nodes: Nodes, output: str, unit: Sequence[int], input_size: Sequence[int]
) -> np.ndarray:
    """E[g²] at every pixel of "input", for variance 1 at one unit of `output`.

    Args:
        nodes: name → (layer, *names read), sources first; "input" is implied.
    """
    ndim = len(input_size)
    sizes: dict[str, tuple[int, ...]] = {"input": tuple(input_size)}
    edges: dict[str, list[tuple[str, list[tuple[Matrix, float]], Matrix | None]]] = {}
    for name, (layer, *sources) in nodes.items():
        bound = layer.bind(ndim)
        edges[name] = []
        for source in sources:
            mean, parts, out = _matrices(bound, sizes[source], len(sources))
            edges[name].append((source, parts, mean))
            sizes[name] = out
    offsets, total = {}, 0
    for name, size in sizes.items():
        offsets[name] = slice(total, total + math.prod(size))
        total += math.prod(size)
    joint = np.zeros((total, total))
    seed = offsets[output].start + int(np.ravel_multi_index(tuple(unit), sizes[output]))
    joint[seed, seed] = 1
    for name in reversed(nodes):
        above = offsets[name]
        beyond = []
        for source, parts, _ in edges[name]:
            own = sum(v * m.T @ joint[above, above] @ m for m, v in parts) if parts else None
            layer = nodes[name][0].bind(ndim)
            if isinstance(layer, rf.Activation | rf.Dropout):
                extra = layer.pointwise_gain - layer.mean_factor**2
                own = extra * np.diag(np.diag(joint[above, above]))
            if isinstance(layer, rf.MaxPool):  # one of a window's pixels gets all
                ((_, _, mean),) = edges[name]
                variances = np.diag(joint[above, above])
                own = np.diag(mean.T @ variances) - mean.T @ np.diag(variances) @ mean
            beyond.append((source, own))
        step = np.eye(total)
        for source, _, mean in edges[name]:
            if mean is not None:
                step[offsets[source], above] += mean.T
        joint = step @ joint @ step.T
        for source, own in beyond:
            if own is not None:
                joint[offsets[source], offsets[source]] += own
    return np.diag(joint[offsets["input"], offsets["input"]]).reshape(tuple(input_size)).copy()


def _matrices(
    layer: Any, size: tuple[int, ...], inputs: int
) -> tuple[Matrix | None, list[tuple[Matrix, float]], tuple[int, ...]]:
    """A layer's mean matrix (None for 0), its random parts as (matrix, variance), its output's
    size."""
    ndim, eye = len(size), _impulses(size)
    if isinstance(layer, rf.Concat):
        return None, [(np.eye(math.prod(size)), 1 / inputs)], size
    if isinstance(layer, rf.Conv | rf.ConvTranspose):
        taps = np.full(layer.kernel, 1 / math.prod(layer.kernel))
        if layer.taps is not None:
            taps = np.asarray(layer.taps)
        parts = []
        for tap in itertools.product(*map(range, layer.kernel)):
            weight = torch.zeros((1, 1, *layer.kernel), dtype=torch.float64)
            weight[(0, 0, *tap)] = 1
            y = _convolved(layer, eye, weight)
            parts.append((_matrix(y), layer.gain * float(taps[tap])))
        return None, parts, tuple(y.shape[2:])
    y = _fixed(layer, eye, ndim)
    return _matrix(y), [], tuple(y.shape[2:])


def _convolved(layer: Any, x: Tensor, weight: Tensor) -> Tensor:
    ndim = x.ndim - 2
    options = {"stride": layer.stride, "dilation": layer.dilation}
    lo, hi = zip(*layer.padding, strict=True)
    if isinstance(layer, rf.ConvTranspose):
        assert lo == hi
        extra = {"padding": lo, "output_padding": layer.output_padding}
        return _CONV_TRANSPOSE[ndim](x, weight, **extra, **options)
    return _CONV[ndim](_padded(x, layer.padding, layer.padding_mode), weight, **options)


def _padded(x: Tensor, padding: Any, mode: str) -> Tensor:
    flat = [amount for pair in reversed(padding) for amount in pair]
    return F.pad(x, flat, mode="constant" if mode == "zeros" else mode)


def _fixed(layer: Any, x: Tensor, ndim: int) -> Tensor:
    if isinstance(layer, rf.Filter):
        weights = layer.weights
        if weights is None:
            line = np.array([math.comb(layer.kernel[0] - 1, m) for m in range(layer.kernel[0])])
            weights = line / line.sum()
            for _ in range(ndim - 1):
                weights = np.multiply.outer(weights, line / line.sum())
        return _convolved(layer, x, torch.as_tensor(np.asarray(weights))[None, None])
    if isinstance(layer, rf.AvgPool | rf.MaxPool):  # of max-pooling, each pixel's chance
        pad = [lo for lo, _ in layer.padding]
        options = {"padding": pad, "ceil_mode": layer.ceil_mode}
        if layer.dilation != (1,) * ndim:  # PyTorch's have none
            weight = torch.ones((1, 1, *layer.kernel), dtype=torch.float64)
            y = F.pad(x, [p for p in reversed(pad) for _ in range(2)])
            size = {"stride": layer.stride, "dilation": layer.dilation}
            return _CONV[ndim](y, weight / weight.numel(), **size)
        if isinstance(layer, rf.AvgPool):
            options["count_include_pad"] = layer.count_include_pad
        return _AVG_POOL[ndim](x, layer.kernel, layer.stride, **options)
    if isinstance(layer, rf.Upsample):
        scale = [float(s) for s in layer.scale]
        if layer.mode == "cubic":
            if ndim == 1:  # PyTorch has it in two dimensions alone
                y = x[..., None, :].expand(*x.shape[:2], 4, x.shape[2])
                return F.interpolate(y, scale_factor=[1.0, *scale], mode="bicubic")[..., 0, :]
            return F.interpolate(x, scale_factor=scale, mode="bicubic")
        mode = _LINEAR[ndim] if layer.mode == "linear" else layer.mode
        return F.interpolate(x, scale_factor=scale, mode=mode)
    if isinstance(layer, rf.Pad):
        return _padded(x, layer.padding, layer.mode)
    if isinstance(layer, rf.Scale | rf.Dropout | rf.Activation):
        return layer.mean_factor * x
    assert isinstance(layer, rf.Add | rf.Identity)
    return x


def _impulses(size: Sequence[int]) -> Tensor:
    pixels = math.prod(size)
    return torch.eye(pixels, dtype=torch.float64).reshape(pixels, 1, *size)


def _matrix(y: Tensor) -> Matrix:
    """y for every impulse, as a matrix (outputs, inputs)."""
    return y.reshape(len(y), -1).numpy().T
