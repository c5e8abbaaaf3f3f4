"""Slow, obvious loops: the oracle that kernels and engines are compared with.

Imports NumPy and the standard library alone and shares no code with what it checks.

Kernel level
    Functions that fill `out` and return None, on 3-D arrays where they do not say otherwise.
    Everything outside `y` counts as zero; indices that fall outside `out` are dropped. Sums are
    kept in float64.

Network level
    A network is a list of plain dictionaries, sources first:
    ``{"name": str, "op": str, "inputs": [names], ...}``, with exactly one ``"input"``. A per-axis
    value is a list with one entry per axis, or one integer that stands for all axes.

    ==================  ==========================================================================
    op                  keys (with defaults) and the variance that one output pixel hands down
    ==================  ==========================================================================
    input               none
    conv                kernel, stride=1, dilation=1, lo=0, hi=0; taps (array of variances v[m] of
                        shape `kernel`) or gain=1 spread evenly over the taps
    conv_transpose      as conv, and output_padding=0; size
                        (n − 1)s + d(k − 1) + 1 − lo − hi + output_padding
    maxpool             kernel, stride, dilation=1, lo=0, hi=0, ceil_mode=False; 1/(number of taps
                        of the window that are not padding) to each of these taps
    avgpool             kernel, stride, lo=0, hi=0, ceil_mode=False, count_include_pad=True; the
                        square of PyTorch's coefficient 1/divisor
    upsample_nearest    factor; output pixel j reads pixel j // factor, 1
    upsample_linear     factor; half-pixel centres (align_corners=False), the squared coefficients
    pad                 lo=0, hi=0 (negative crops), mode="zeros", "reflect", "replicate" or
                        "circular"; 1. Padded first, cropped afterwards
    pixel_shuffle       factor; output pixel j reads pixel j // factor, 1
    pixel_unshuffle     factor; output pixel o reads the factor^n pixels o·factor + phase,
                        1/factor^n each
    add                 1 to every input
    concat              channels; channels[i]/Σ channels to input i
    identity            gain=1
    global              gain=1, size (the output's; the input's by default); gain/N to every one of
                        the N input pixels
    ==================  ==========================================================================

    Variances are summed over channels, which is why a concatenation splits them and a
    pixel_unshuffle divides by the number of phases. Pool padding must stay within half the
    window, as PyTorch demands.

    `variance` squares the coefficients of deterministic layers and adds contributions as if they
    were uncorrelated. Where gradients that reach a deterministic layer which sums several of them
    (avgpool, either upsampling, a folding pad) are already correlated, or two deterministic paths
    leave one tensor, this is not the true variance: `torch_oracle.exact_variance` is.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

Index = tuple[int, ...]
Node = dict[str, Any]
Links = list[tuple[int, float]]


# ---------------------------------------------------------------------------------------- kernels


def _inside(index: Sequence[int], shape: Sequence[int]) -> bool:
    return all(0 <= i < n for i, n in zip(index, shape, strict=True))


def transposed_conv(
    y: np.ndarray,
    taps: np.ndarray,
    stride: Sequence[int],
    dilation: Sequence[int],
    lo: Sequence[int],
    out: np.ndarray,
) -> None:
    """out[i] = Σ over (o, m) with o·s + m·d − lo = i on every axis of taps[m]·y[o]."""
    total = np.zeros(out.shape, np.float64)
    for m in np.ndindex(taps.shape):
        for o in np.ndindex(y.shape):
            i = tuple(o[a] * stride[a] + m[a] * dilation[a] - lo[a] for a in range(3))
            if _inside(i, out.shape):
                total[i] += float(taps[m]) * float(y[o])
    out[...] = total


def strided_gather(
    y: np.ndarray,
    taps: np.ndarray,
    stride: Sequence[int],
    dilation: Sequence[int],
    lo: Sequence[int],
    out: np.ndarray,
) -> None:
    """out[o] = Σ_m taps[m]·y[o·s + m·d − lo]."""
    total = np.zeros(out.shape, np.float64)
    for m in np.ndindex(taps.shape):
        for o in np.ndindex(out.shape):
            i = tuple(o[a] * stride[a] + m[a] * dilation[a] - lo[a] for a in range(3))
            if _inside(i, y.shape):
                total[o] += float(taps[m]) * float(y[i])
    out[...] = total


def transposed_box(
    y: np.ndarray, k: int, stride: int, dilation: int, lo: int, out: np.ndarray
) -> None:
    """out[p, i, q] = Σ over (o, m < k) with o·s + m·d − lo = i of y[p, o, q]."""
    total = np.zeros(out.shape, np.float64)
    for p, o, q in np.ndindex(y.shape):
        for m in range(k):
            i = o * stride + m * dilation - lo
            if 0 <= i < out.shape[1]:
                total[p, i, q] += float(y[p, o, q])
    out[...] = total


def gather_box(y: np.ndarray, k: int, stride: int, dilation: int, lo: int, out: np.ndarray) -> None:
    """out[p, o, q] = Σ_{m < k} y[p, o·s + m·d − lo, q]."""
    total = np.zeros(out.shape, np.float64)
    for p, o, q in np.ndindex(out.shape):
        for m in range(k):
            i = o * stride + m * dilation - lo
            if 0 <= i < y.shape[1]:
                total[p, o, q] += float(y[p, i, q])
    out[...] = total


def transposed_table(y: np.ndarray, starts: np.ndarray, taps: np.ndarray, out: np.ndarray) -> None:
    """out[p, starts[o] + m, q] += taps[o, m]·y[p, o, q], from zero; targets outside are dropped."""
    total = np.zeros(out.shape, np.float64)
    for p, o, q in np.ndindex(y.shape):
        for m in range(taps.shape[1]):
            i = int(starts[o]) + m
            if 0 <= i < out.shape[1]:
                total[p, i, q] += float(taps[o, m]) * float(y[p, o, q])
    out[...] = total


def accumulate(y: np.ndarray, factor: float, out: np.ndarray) -> None:
    """out[i] ← out[i] + factor·y[i]: the one kernel that reads what it writes."""
    for i in np.ndindex(out.shape):
        out[i] = float(out[i]) + float(factor) * float(y[i])


def box_power(n: int, k: int, top: int, out: np.ndarray) -> None:
    """out[i] = 2^top·k^−n·[z^i](1 + z + … + z^(k−1))^n, in whole numbers up to a last division."""
    coefficients = [1]
    for _ in range(n):
        grown = [0] * (len(coefficients) + k - 1)
        for i, value in enumerate(coefficients):
            for m in range(k):
                grown[i + m] += value
        coefficients = grown
    for i in range(len(out)):
        value = Fraction(coefficients[i] * 2**top, k**n)
        out[i] = float(value)


def outer_product(y: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
    """out[i, j] = y[i]·x[j]."""
    for i, j in np.ndindex(*out.shape):
        out[i, j] = float(y[i]) * float(x[j])


def sum_of_terms(
    weights: np.ndarray, y: np.ndarray, x: np.ndarray, exponent: int, out: np.ndarray
) -> None:
    """out[i, j] = 2^exponent·Σ_t weights[t]·y[t, i]·x[t, j]."""
    for i, j in np.ndindex(*out.shape):
        columns = zip(weights, y[:, i], x[:, j], strict=True)
        out[i, j] = sum(float(w) * float(a) * float(b) for w, a, b in columns) * 2.0**exponent


def conv_run(
    y: np.ndarray, taps: np.ndarray, count: int, lo: Sequence[int], out: np.ndarray
) -> None:
    """`count` times image[i] ← Σ_m taps[m]·image[i − m] on all that it reaches, seen from lo on."""
    image = y.astype(np.float64)
    for _ in range(count):
        grown = np.zeros([n + k - 1 for n, k in zip(image.shape, taps.shape, strict=True)])
        for m in np.ndindex(taps.shape):
            part = tuple(slice(a, a + n) for a, n in zip(m, image.shape, strict=True))
            grown[part] += float(taps[m]) * image
        image = grown
    for i in np.ndindex(out.shape):
        j = tuple(i[a] + lo[a] for a in range(3))
        out[i] = image[j] if _inside(j, image.shape) else 0


def box_run(
    y: np.ndarray, k: Sequence[int], count: int, lo: Sequence[int], out: np.ndarray
) -> None:
    """The same with k[0] × k[1] × k[2] taps of 1."""
    conv_run(y, np.ones(k), count, lo, out)


# --------------------------------------------------------------------------------- reading a node


def _per_axis(node: Node, key: str, ndim: int, default: int | None = None) -> list[int]:
    """One value per axis; an integer stands for every axis, no default means required."""
    value = node[key] if default is None else node.get(key, default)
    if np.ndim(value) == 0:
        return [int(value)] * ndim
    if len(value) != ndim:
        raise ValueError(f"{node['name']}: {key} {value!r} should hold {ndim} values")
    return [int(v) for v in value]


def _taps(node: Node, ndim: int) -> np.ndarray:
    kernel = _per_axis(node, "kernel", ndim)
    if "taps" not in node:
        return np.full(kernel, node.get("gain", 1.0) / math.prod(kernel))
    taps = np.asarray(node["taps"], np.float64)
    if list(taps.shape) != kernel:
        raise ValueError(f"{node['name']}: taps of shape {taps.shape} for the kernel {kernel}")
    return taps


def _windows(n: int, k: int, s: int, d: int, lo: int, hi: int, ceil_mode: bool) -> int:
    """Number of windows along one axis, by the formula of PyTorch's pooling and convolution."""
    room = n + lo + hi - d * (k - 1) - 1
    if not ceil_mode:
        return room // s + 1
    count = -(-room // s) + 1
    # The last window must start inside the input or its left padding.
    if (count - 1) * s >= n + lo:
        count -= 1
    return count


def _node_size(node: Node, sources: list[list[int]]) -> list[int]:
    op, size = node["op"], sources[0]
    ndim = len(size)
    if op in ("add", "concat"):
        if any(other != size for other in sources):
            raise ValueError(f"{node['name']}: inputs of unequal sizes {sources}")
        return size
    if op == "identity":
        return size
    if op == "global":
        return [int(v) for v in node.get("size", size)]
    if op in ("upsample_nearest", "upsample_linear", "pixel_shuffle"):
        return [n * f for n, f in zip(size, _per_axis(node, "factor", ndim), strict=True)]
    if op == "pixel_unshuffle":
        factor = _per_axis(node, "factor", ndim)
        if any(n % f for n, f in zip(size, factor, strict=True)):
            raise ValueError(f"{node['name']}: size {size} is no multiple of the factor {factor}")
        return [n // f for n, f in zip(size, factor, strict=True)]

    lo, hi = _per_axis(node, "lo", ndim, 0), _per_axis(node, "hi", ndim, 0)
    if op == "pad":
        return [n + lo[a] + hi[a] for a, n in enumerate(size)]
    k = _per_axis(node, "kernel", ndim)
    d = _per_axis(node, "dilation", ndim, 1)
    if op == "conv_transpose":
        s, extra = _per_axis(node, "stride", ndim, 1), _per_axis(node, "output_padding", ndim, 0)
        return [
            (n - 1) * s[a] + d[a] * (k[a] - 1) + 1 - lo[a] - hi[a] + extra[a]
            for a, n in enumerate(size)
        ]
    if op == "conv":
        s, ceil_mode = _per_axis(node, "stride", ndim, 1), False
    elif op in ("maxpool", "avgpool"):
        s, ceil_mode = _per_axis(node, "stride", ndim), node.get("ceil_mode", False)
    else:
        raise ValueError(f"{node['name']}: unknown op {op!r}")
    return [_windows(n, k[a], s[a], d[a], lo[a], hi[a], ceil_mode) for a, n in enumerate(size)]


def sizes(nodes: Sequence[Node], input_size: Sequence[int]) -> dict[str, list[int]]:
    """Size of every node's map, per axis."""
    result: dict[str, list[int]] = {}
    for node in nodes:
        if node["op"] == "input":
            result[node["name"]] = [int(n) for n in input_size]
        else:
            result[node["name"]] = _node_size(node, [result[name] for name in node["inputs"]])
    return result


# ---------------------------------------------------------- what one output pixel reads, per axis
# `n` is the input's size along the axis, None on the unbounded grid, where no border is ever met.


def _valid(indices: Sequence[int], n: int | None) -> list[int]:
    return [i for i in indices if n is None or 0 <= i < n]


def _maxpool_reads(o: int, n: int | None, k: int, s: int, d: int, lo: int) -> Links:
    taps = _valid([o * s + m * d - lo for m in range(k)], n)
    return [(i, 1 / len(taps)) for i in taps]


def _avgpool_reads(
    o: int, n: int | None, k: int, s: int, lo: int, hi: int, count_include_pad: bool
) -> Links:
    start = o * s - lo
    taps = _valid(range(start, start + k), n)
    if n is None:
        divisor = k
    elif count_include_pad:
        # A window that ceil_mode lets stick out past the right padding counts only what is padded.
        divisor = min(start + k, n + hi) - start
    else:
        divisor = len(taps)
    return [(i, (1 / divisor) ** 2) for i in taps]


def _linear_reads(o: int, n: int | None, factor: int) -> Links:
    # The centre of output pixel o lies at (o + 1/2)/f − 1/2 = (2o + 1 − f)/(2f) on the input.
    left, rest = divmod(2 * o + 1 - factor, 2 * factor)
    share = {left: 1 - rest / (2 * factor), left + 1: rest / (2 * factor)}
    coefficient: dict[int, float] = defaultdict(float)
    for i, c in share.items():
        if c > 0:
            coefficient[i if n is None else min(max(i, 0), n - 1)] += c
    return [(i, c * c) for i, c in coefficient.items()]


def _pad_reads(o: int, n: int | None, lo: int, mode: str) -> Links:
    i = o - lo
    if n is None or 0 <= i < n:
        return [(i, 1.0)]
    if mode == "zeros":
        return []
    if mode == "replicate":
        return [(0 if i < 0 else n - 1, 1.0)]
    if mode == "circular":
        return [(i % n, 1.0)]
    if mode == "reflect":
        i = -i if i < 0 else 2 * (n - 1) - i
        if not 0 <= i < n:
            raise ValueError("reflect: the padding must be smaller than the input")
        return [(i, 1.0)]
    raise ValueError(f"unknown padding mode {mode!r}")


def _axis_reads(node: Node, axis: int, ndim: int, o: int, n: int | None) -> Links:
    """What output index `o` of a separable layer reads along one axis: (index, variance)."""
    op = node["op"]
    if op in ("upsample_nearest", "pixel_shuffle"):
        return [(o // _per_axis(node, "factor", ndim)[axis], 1.0)]
    if op == "upsample_linear":
        return _linear_reads(o, n, _per_axis(node, "factor", ndim)[axis])
    if op == "pixel_unshuffle":
        f = _per_axis(node, "factor", ndim)[axis]
        return [(o * f + phase, 1 / f) for phase in range(f)]

    lo = _per_axis(node, "lo", ndim, 0)[axis]
    if op == "pad":
        return _pad_reads(o, n, lo, node.get("mode", "zeros"))
    k, s = _per_axis(node, "kernel", ndim)[axis], _per_axis(node, "stride", ndim)[axis]
    if op == "maxpool":
        return _maxpool_reads(o, n, k, s, _per_axis(node, "dilation", ndim, 1)[axis], lo)
    if op == "avgpool":
        hi = _per_axis(node, "hi", ndim, 0)[axis]
        return _avgpool_reads(o, n, k, s, lo, hi, node.get("count_include_pad", True))
    raise ValueError(f"{node['name']}: unknown op {op!r}")


# ------------------------------------------------------------------- what one output pixel reads


def _conv_reads(node: Node, o: Index) -> Iterator[tuple[Index, float]]:
    ndim = len(o)
    taps, lo = _taps(node, ndim), _per_axis(node, "lo", ndim, 0)
    s, d = _per_axis(node, "stride", ndim, 1), _per_axis(node, "dilation", ndim, 1)
    for m in np.ndindex(taps.shape):
        yield tuple(o[a] * s[a] + m[a] * d[a] - lo[a] for a in range(ndim)), float(taps[m])


def _conv_transpose_reads(node: Node, o: Index) -> Iterator[tuple[Index, float]]:
    ndim = len(o)
    taps, lo = _taps(node, ndim), _per_axis(node, "lo", ndim, 0)
    s, d = _per_axis(node, "stride", ndim, 1), _per_axis(node, "dilation", ndim, 1)
    for m in np.ndindex(taps.shape):
        # Input i writes to i·s + m·d − lo; o is such a place when (o + lo − m·d) divides by s.
        steps = [o[a] + lo[a] - m[a] * d[a] for a in range(ndim)]
        if all(step % s[a] == 0 for a, step in enumerate(steps)):
            yield tuple(step // s[a] for a, step in enumerate(steps)), float(taps[m])


def _reads(
    node: Node, o: Index, source_sizes: list[list[int]] | None
) -> Iterator[tuple[str, Index, float]]:
    """(input name, input index, variance) for all that output pixel `o` reads."""
    op, names, ndim = node["op"], node["inputs"], len(o)
    if op == "add":
        for name in names:
            yield name, o, 1.0
        return
    if op == "concat":
        for name, channels in zip(names, node["channels"], strict=True):
            yield name, o, channels / sum(node["channels"])
        return

    (name,) = names
    size = None if source_sizes is None else source_sizes[0]
    links: Iterator[tuple[Index, float]]
    if op == "identity":
        links = iter([(o, node.get("gain", 1.0))])
    elif op == "global":
        if size is None:
            raise ValueError(f"{node['name']}: a global layer has no unbounded region")
        each = node.get("gain", 1.0) / math.prod(size)
        links = ((i, each) for i in np.ndindex(*size))
    elif op == "conv":
        links = _conv_reads(node, o)
    elif op == "conv_transpose":
        links = _conv_transpose_reads(node, o)
    else:
        axes = [_axis_reads(node, a, ndim, o[a], size[a] if size else None) for a in range(ndim)]
        links = (
            (tuple(i for i, _ in combination), math.prod(v for _, v in combination))
            for combination in itertools.product(*axes)
        )
    for i, v in links:
        if size is None or _inside(i, size):
            yield name, i, v


# ------------------------------------------------------------------------------ the whole network


def _walk_back(
    nodes: Sequence[Node], output: str, unit: Sequence[int], input_size: Sequence[int] | None
) -> dict[Index, float]:
    """Variance at every input pixel that a path joins to the unit, taps of variance 0 included."""
    maps = None if input_size is None else sizes(nodes, input_size)
    unit = tuple(int(u) for u in unit)
    if maps is not None and not _inside(unit, maps[output]):
        raise ValueError(f"unit {unit} lies outside {output}, whose size is {maps[output]}")

    found: dict[str, dict[Index, float]] = {n["name"]: defaultdict(float) for n in nodes}
    found[output][unit] = 1.0
    for node in reversed(nodes):
        if node["op"] == "input":
            continue
        source_sizes = None if maps is None else [maps[name] for name in node["inputs"]]
        for o, value in found[node["name"]].items():
            for name, i, v in _reads(node, o, source_sizes):
                found[name][i] += v * value
    (source,) = (node["name"] for node in nodes if node["op"] == "input")
    return dict(found[source])


def region(
    nodes: Sequence[Node], output: str, unit: Sequence[int], input_size: Sequence[int]
) -> set[Index]:
    """The exact theoretical receptive field of a unit: the input pixels joined to it by a path.

    Paths through padding end there. Every tap of a kernel joins, whatever its variance.
    """
    return set(_walk_back(nodes, output, unit, input_size))


def region_unbounded(nodes: Sequence[Node], output: str, unit: Sequence[int]) -> set[Index]:
    """As `region` on a grid without borders: padding only shifts, indices may be negative."""
    return set(_walk_back(nodes, output, unit, None))


def variance(
    nodes: Sequence[Node], output: str, unit: Sequence[int], input_size: Sequence[int]
) -> np.ndarray:
    """Gradient variance at every input pixel, not normalised, for variance 1 at one unit."""
    image = np.zeros(tuple(input_size))
    for i, v in _walk_back(nodes, output, unit, input_size).items():
        image[i] = v
    return image


def variance_unbounded(
    nodes: Sequence[Node], output: str, unit: Sequence[int]
) -> dict[Index, float]:
    """As `variance` on a grid without borders: index → variance."""
    return _walk_back(nodes, output, unit, None)
