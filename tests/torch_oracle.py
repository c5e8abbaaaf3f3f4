"""PyTorch's own layers and autograd: the oracle that owes nothing to a formula of ours.

Networks are the plain dictionaries that `naive` documents; nothing of `naive` is used. Four
oracles, each resting on something else:

`region`
    Forward. Every input pixel in turn is the only one that is not zero; the weights are ones, so
    nothing cancels, and real layers (max-pooling included) carry it up.
`variance`
    Backward. Gradient variance obeys a linear network: convolutions whose weights are the tap
    variances, deterministic layers whose Jacobian is squared. Autograd runs it.
`exact_variance`
    The true E[g²] of networks with random weights and real deterministic layers, correlations and
    all, with no statistical error: see its docstring.
`monte_carlo`
    The same expectation from multi-channel networks with normal weights and real max-pooling.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Node = dict[str, Any]
Layer = Callable[[Node, list[Tensor]], Tensor]

# Draws independent (or mutually orthogonal) zero-mean numbers of variance 1 for a node's weights.
Draw = Callable[[Node, tuple[int, ...]], Tensor]

# A connection is told from rounding by its size: after every layer of `region` the map holds zeros
# and ones, so a real connection is at least the smallest coefficient of one layer (1/window for
# pooling, (1/2f)^n for linear upsampling), far above this, while rounding stays near 1e-16.
CONNECTED = 1e-9

# Above this many sign patterns `exact_variance` is the wrong tool.
MAX_PATTERNS = 1 << 18

# Values held at once while many networks run side by side.
CHUNK_VALUES = 1 << 21

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_LINEAR_MODE = {1: "linear", 2: "bilinear", 3: "trilinear"}


@contextmanager
def _one_thread() -> Iterator[None]:
    """Runs torch on one thread: on maps this small, waking the others takes most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# -------------------------------------------------------------------------------- reading a node


def _axes(node: Node, key: str, ndim: int, default: int = 0) -> tuple[int, ...]:
    value = node.get(key, default)
    return (int(value),) * ndim if np.ndim(value) == 0 else tuple(int(v) for v in value)


def _tap_variances(node: Node, ndim: int) -> Tensor:
    kernel = _axes(node, "kernel", ndim)
    if "taps" in node:
        return torch.as_tensor(np.asarray(node["taps"], np.float64)).reshape(kernel)
    return torch.full(kernel, node.get("gain", 1.0) / math.prod(kernel), dtype=torch.float64)


def _shares(node: Node) -> list[float]:
    return [channels / sum(node["channels"]) for channels in node["channels"]]


def _global_size(node: Node, size: Sequence[int]) -> tuple[int, ...]:
    return tuple(node.get("size", size))


# ------------------------------------------------------------------------- layers, one at a time
# Tensors are (batch, channels, *size). Asymmetric padding, which torch's layers do not have, is an
# explicit F.pad; where lo = hi the layer's own padding argument is used.


def _pad(
    x: Tensor, lo: Sequence[int], hi: Sequence[int], mode: str = "constant", value: float = 0.0
) -> Tensor:
    """Pads, then crops by what is negative."""

    def last_axis_first(pads: list[tuple[int, int]]) -> list[int]:
        return [amount for pair in reversed(pads) for amount in pair]

    pairs = list(zip(lo, hi, strict=True))
    grow = last_axis_first([(max(a, 0), max(b, 0)) for a, b in pairs])
    crop = last_axis_first([(min(a, 0), min(b, 0)) for a, b in pairs])
    fill = {"value": value} if mode == "constant" else {}
    if any(grow):
        x = F.pad(x, grow, mode=mode, **fill)
    return F.pad(x, crop) if any(crop) else x


def _conv(node: Node, x: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    ndim = x.ndim - 2
    lo, hi = _axes(node, "lo", ndim), _axes(node, "hi", ndim)
    options = {
        "stride": _axes(node, "stride", ndim, 1),
        "dilation": _axes(node, "dilation", ndim, 1),
        "groups": groups,
    }
    if lo == hi and min(lo) >= 0:
        return _CONV[ndim](x, weight, padding=lo, **options)
    return _CONV[ndim](_pad(x, lo, hi), weight, **options)


def _conv_transpose(node: Node, x: Tensor, weight: Tensor, groups: int = 1) -> Tensor:
    ndim = x.ndim - 2
    lo, hi = _axes(node, "lo", ndim), _axes(node, "hi", ndim)
    options = {
        "stride": _axes(node, "stride", ndim, 1),
        "dilation": _axes(node, "dilation", ndim, 1),
        "output_padding": _axes(node, "output_padding", ndim),
        "groups": groups,
    }
    if lo == hi and min(lo) >= 0:
        return _CONV_TRANSPOSE[ndim](x, weight, padding=lo, **options)
    return _pad(_CONV_TRANSPOSE[ndim](x, weight, **options), [-p for p in lo], [-p for p in hi])


def _pool(node: Node, x: Tensor, fill: float, pool: Callable[..., Tensor], **more: Any) -> Tensor:
    """Runs one of torch's pooling layers, asymmetric padding included."""
    ndim = x.ndim - 2
    lo, hi = _axes(node, "lo", ndim), _axes(node, "hi", ndim)
    kernel, stride = _axes(node, "kernel", ndim), _axes(node, "stride", ndim)
    more["ceil_mode"] = node.get("ceil_mode", False)
    if lo == hi:
        return pool(x, kernel, stride, padding=lo, **more)
    size = x.shape[2:]
    y = pool(_pad(x, lo, hi, value=fill), kernel, stride, **more)
    if more["ceil_mode"]:
        # Torch saw the right padding as input, so its rule let windows start in there.
        starts_inside = [-(-(n + a) // s) for n, a, s in zip(size, lo, stride, strict=True)]
        y = y[(..., *(slice(min(n, m)) for n, m in zip(y.shape[2:], starts_inside, strict=True)))]
    return y


def _max_pool(node: Node, x: Tensor) -> Tensor:
    ndim = x.ndim - 2
    return _pool(node, x, -math.inf, _MAX_POOL[ndim], dilation=_axes(node, "dilation", ndim, 1))


def _avg_pool(node: Node, x: Tensor) -> Tensor:
    include = node.get("count_include_pad", True)
    ndim = x.ndim - 2
    if include or _axes(node, "lo", ndim) == _axes(node, "hi", ndim):
        return _pool(node, x, 0.0, _AVG_POOL[ndim], count_include_pad=include)
    # Torch would count explicit padding as input: the share of each window that is input undoes it.
    return _pool(node, x, 0.0, _AVG_POOL[ndim]) / _pool(
        node, torch.ones_like(x), 0.0, _AVG_POOL[ndim]
    )


def _valid_mean(node: Node, x: Tensor) -> Tensor:
    """Mean over the taps of each max-pooling window that are not padding."""
    ndim = x.ndim - 2
    lo, stride = _axes(node, "lo", ndim), _axes(node, "stride", ndim)
    # Room on the right for windows that ceil_mode lets stick out.
    hi = [h + s for h, s in zip(_axes(node, "hi", ndim), stride, strict=True)]
    ones = torch.ones((1, 1, *_axes(node, "kernel", ndim)), dtype=x.dtype)
    keep = (..., *(slice(n) for n in _max_pool(node, x).shape[2:]))

    def window_sum(z: Tensor) -> Tensor:
        dilation = _axes(node, "dilation", ndim, 1)
        return _CONV[ndim](_pad(z, lo, hi), ones, stride=stride, dilation=dilation)[keep]

    return window_sum(x) / window_sum(torch.ones_like(x)).clamp(min=1)


def _route(node: Node, x: Tensor, noise: Tensor) -> Tensor:
    """Max-pooling that picks, in every window, the tap where `noise` is largest."""
    ndim = x.ndim - 2
    lo, hi = _axes(node, "lo", ndim), _axes(node, "hi", ndim)
    padded = _pad(noise, lo, hi, value=-math.inf)
    _, index = _MAX_POOL[ndim](
        padded,
        _axes(node, "kernel", ndim),
        _axes(node, "stride", ndim),
        dilation=_axes(node, "dilation", ndim, 1),
        ceil_mode=node.get("ceil_mode", False),
        return_indices=True,
    )
    y = _pad(x, lo, hi).flatten(2).gather(2, index.flatten(2)).reshape(index.shape)
    return y[(..., *(slice(n) for n in _max_pool(node, noise).shape[2:]))]


def _shuffle(node: Node, x: Tensor) -> Tensor:
    """torch.nn.PixelShuffle in any number of dimensions: (B, C·f^n, *size) → (B, C, *size·f)."""
    ndim = x.ndim - 2
    factor, size = _axes(node, "factor", ndim), x.shape[2:]
    channels = x.shape[1] // math.prod(factor)
    split = x.reshape(x.shape[0], channels, *factor, *size)
    order = [axis for a in range(ndim) for axis in (2 + ndim + a, 2 + a)]
    joined = [n * f for n, f in zip(size, factor, strict=True)]
    return split.permute(0, 1, *order).reshape(x.shape[0], channels, *joined)


def _unshuffle(node: Node, x: Tensor) -> Tensor:
    """torch.nn.PixelUnshuffle in any number of dimensions: the inverse of `_shuffle`."""
    ndim = x.ndim - 2
    factor = _axes(node, "factor", ndim)
    size = [n // f for n, f in zip(x.shape[2:], factor, strict=True)]
    pairs = [n for pair in zip(size, factor, strict=True) for n in pair]
    split = x.reshape(x.shape[0], x.shape[1], *pairs)
    order = [3 + 2 * a for a in range(ndim)] + [2 + 2 * a for a in range(ndim)]
    return split.permute(0, 1, *order).reshape(x.shape[0], x.shape[1] * math.prod(factor), *size)


def _real(node: Node, xs: list[Tensor]) -> Tensor:
    """Layers without weights whose torch counterpart is used as it is."""
    op, x = node["op"], xs[0]
    ndim = x.ndim - 2
    if op == "avgpool":
        return _avg_pool(node, x)
    if op in ("upsample_nearest", "upsample_linear"):
        factor = [float(f) for f in _axes(node, "factor", ndim)]
        if op == "upsample_nearest":
            return F.interpolate(x, scale_factor=factor, mode="nearest")
        return F.interpolate(x, scale_factor=factor, mode=_LINEAR_MODE[ndim], align_corners=False)
    if op == "pad":
        mode = node.get("mode", "zeros")
        return _pad(
            x,
            _axes(node, "lo", ndim),
            _axes(node, "hi", ndim),
            "constant" if mode == "zeros" else mode,
        )
    if op == "add":
        return torch.stack(xs).sum(0)
    raise ValueError(f"{node['name']}: unknown op {op!r}")


# ------------------------------------------------------------------------------- running networks


def _run(nodes: Sequence[Node], output: str, x: Tensor, layer: Layer) -> Tensor:
    values: dict[str, Tensor] = {}
    for node in nodes:
        is_input = node["op"] == "input"
        values[node["name"]] = x if is_input else layer(node, [values[n] for n in node["inputs"]])
        if node["name"] == output:
            break
    return values[output]


def _one_channel(node: Node, xs: list[Tensor], weight: Tensor, shares: list[float]) -> Tensor:
    """One-channel layers with the given kernel and merge weights that are linear in `xs`."""
    op, x = node["op"], xs[0]
    ndim = x.ndim - 2
    if op == "conv":
        return _conv(node, x, weight[None, None])
    if op == "conv_transpose":
        return _conv_transpose(node, x, weight[None, None])
    if op == "concat":
        return torch.stack([share * x for share, x in zip(shares, xs, strict=True)]).sum(0)
    if op == "pixel_shuffle":
        phases = math.prod(_axes(node, "factor", ndim))
        return _shuffle(node, x.repeat_interleave(phases, dim=1))
    if op == "pixel_unshuffle":
        return _unshuffle(node, x).mean(1, keepdim=True)
    if op == "global":
        mean = x.mean(tuple(range(2, x.ndim)), keepdim=True)
        return mean.expand(*x.shape[:2], *_global_size(node, x.shape[2:]))
    return _real(node, xs)


# ----------------------------------------------------------------------------------------- region


def _region_layer(node: Node, xs: list[Tensor]) -> Tensor:
    ndim = xs[0].ndim - 2
    if node["op"] == "identity":
        return xs[0]
    if node["op"] == "maxpool":
        y = _max_pool(node, xs[0])
    else:
        ones = torch.ones(_axes(node, "kernel", ndim), dtype=torch.float64)
        y = _one_channel(node, xs, ones, [1.0] * len(xs))
    return (y > CONNECTED).to(torch.float64)


def _impulses(size: Sequence[int]) -> Tensor:
    """One batch entry per pixel, that pixel 1: (pixels, 1, *size)."""
    pixels = math.prod(size)
    return torch.eye(pixels, dtype=torch.float64).reshape(pixels, 1, *size)


@_one_thread()
def region(
    nodes: Sequence[Node], output: str, unit: Sequence[int], input_size: Sequence[int]
) -> set[tuple[int, ...]]:
    """Input pixels that move the unit in a network of positive weights, probed one by one."""
    with torch.no_grad():
        reached = _run(nodes, output, _impulses(input_size), _region_layer)[(slice(None), 0, *unit)]
    return {
        tuple(int(i) for i in np.unravel_index(pixel, tuple(input_size)))
        for pixel in torch.nonzero(reached).flatten().tolist()
    }


# --------------------------------------------------------------------------------------- variance


class _SquaredJacobian(torch.autograd.Function):
    """A deterministic layer forward; backward multiplies by its Jacobian with squared entries."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: Callable[[Tensor], Tensor]) -> Tensor:
        ctx.layer, ctx.shape = layer, x.shape
        return layer(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        impulses = _impulses(ctx.shape[2:])
        jacobian = ctx.layer(impulses).reshape(len(impulses), -1)
        return (jacobian.square() @ grad.reshape(-1)).reshape(ctx.shape), None


def _variance_layer(node: Node, xs: list[Tensor]) -> Tensor:
    op, x = node["op"], xs[0]
    if op == "maxpool":
        return _valid_mean(node, x)
    if op in ("avgpool", "upsample_linear"):
        return _SquaredJacobian.apply(x, lambda z: _real(node, [z]))
    if op == "identity":
        return node.get("gain", 1.0) * x
    if op == "global":
        x = node.get("gain", 1.0) * x
    convolves = op in ("conv", "conv_transpose")
    taps = _tap_variances(node, x.ndim - 2) if convolves else torch.empty(0)
    return _one_channel(node, [x, *xs[1:]], taps, _shares(node) if op == "concat" else [])


@_one_thread()
def variance(
    nodes: Sequence[Node], output: str, unit: Sequence[int], input_size: Sequence[int]
) -> np.ndarray:
    """Gradient variance at every input pixel, not normalised, for variance 1 at one unit.

    The same quantity as `naive.variance`: contributions add as if uncorrelated.
    """
    x = torch.zeros((1, 1, *input_size), dtype=torch.float64, requires_grad=True)
    y = _run(nodes, output, x, _variance_layer)
    (image,) = torch.autograd.grad(y[(0, 0, *unit)], x)
    return image[0, 0].numpy()


def sizes(nodes: Sequence[Node], input_size: Sequence[int]) -> dict[str, list[int]]:
    """Size of every node's map, read off the tensors that torch's layers return."""
    x = torch.zeros((1, 1, *input_size), dtype=torch.float64)
    shapes: dict[str, list[int]] = {}

    def watched(node: Node, xs: list[Tensor]) -> Tensor:
        y = _max_pool(node, xs[0]) if node["op"] == "maxpool" else _variance_layer(node, xs)
        shapes[node["name"]] = list(y.shape[2:])
        return y

    for node in nodes:
        if node["op"] == "input":
            shapes[node["name"]] = list(input_size)
    _run(nodes, nodes[-1]["name"], x, watched)
    return shapes


# --------------------------------------------------------------- many random networks side by side


def _random_layer(node: Node, xs: list[Tensor], channels: int, draw: Draw) -> Tensor:
    """Layers of independent networks, one per batch entry, each with weights of its own."""
    op, x = node["op"], xs[0]
    batch, fan_in, ndim = x.shape[0], x.shape[1], x.ndim - 2
    if op in ("conv", "conv_transpose"):
        scale = (_tap_variances(node, ndim) / fan_in).sqrt()
        if op == "conv":
            weight = draw(node, (batch, channels, fan_in, *scale.shape)) * scale
            run = _conv
        else:
            weight = draw(node, (batch, fan_in, channels, *scale.shape)) * scale
            run = _conv_transpose
        # One group per network: the networks lie side by side on the channel axis.
        y = run(node, x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1), batch)
        return y.reshape(batch, channels, *y.shape[2:])
    if op == "global":
        size = _global_size(node, x.shape[2:])
        pixels = math.prod(x.shape[2:])
        weight = draw(node, (batch, channels * math.prod(size), fan_in * pixels))
        weight = weight * math.sqrt(node.get("gain", 1.0) / (pixels * fan_in))
        return (weight @ x.reshape(batch, -1, 1)).reshape(batch, channels, *size)
    if op == "identity":
        return math.sqrt(node.get("gain", 1.0)) * x
    return _real(node, xs)


def _squared_gradient(
    nodes: Sequence[Node],
    output: str,
    unit: Sequence[int],
    input_shape: tuple[int, ...],
    layer: Layer,
) -> Tensor:
    """Squared input gradient per network, summed over channels, for norm 1 at the unit."""
    x = torch.zeros(input_shape, dtype=torch.float64, requires_grad=True)
    at_unit = _run(nodes, output, x, layer)[(slice(None), slice(None), *unit)]
    (grad,) = torch.autograd.grad(at_unit.sum() / math.sqrt(at_unit.shape[1]), x)
    return grad.square().sum(1)


@_one_thread()
def monte_carlo(
    nodes: Sequence[Node],
    output: str,
    unit: Sequence[int],
    input_size: Sequence[int],
    samples: int,
    channels: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error of the squared input gradient at every pixel.

    `samples` independent networks with `channels` channels at the input and out of every
    convolution. Weights are normal, of variance v[m]/(input channels) at tap m. Gradient at the
    unit is spread evenly over its channels with norm 1; squares are summed over input channels,
    which for equal numbers of channels is their average.

    Max-pooling is real and routes by fresh independent noise, so overlapping windows share their
    maxima. A concatenation takes of input i its first channels·c_i/Σc channels; pixel shuffles
    move channels as in PyTorch, so `channels` has to divide by the number of phases. An identity
    scales by √gain.

    Returns
    -------
    mean, standard_error
        Arrays of shape `input_size`.

    Raises
    ------
    ValueError
        If channels·c_i/Σc is no integer for an input of a concatenation, or a pixel_shuffle meets
        a number of channels that its phases do not divide.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(node: Node, shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    def layer(node: Node, xs: list[Tensor]) -> Tensor:
        op, x = node["op"], xs[0]
        if op == "maxpool":
            return _route(node, x, draw(node, tuple(x.shape)))
        if op == "concat":
            return torch.cat(
                [
                    x[:, :count]
                    for x, count in zip(xs, _channel_counts(node, channels), strict=True)
                ],
                1,
            )
        if op == "pixel_shuffle":
            phases = math.prod(_axes(node, "factor", x.ndim - 2))
            if x.shape[1] % phases:
                raise ValueError(f"{node['name']}: {x.shape[1]} channels for {phases} phases")
            return _shuffle(node, x)
        if op == "pixel_unshuffle":
            return _unshuffle(node, x)
        return _random_layer(node, xs, channels, draw)

    per_network = channels * math.prod(input_size)
    chunk = max(1, min(samples, CHUNK_VALUES // per_network))
    squares = torch.cat(
        [
            _squared_gradient(
                nodes, output, unit, (min(chunk, samples - first), channels, *input_size), layer
            )
            for first in range(0, samples, chunk)
        ]
    )
    return squares.mean(0).numpy(), (squares.std(0) / math.sqrt(samples)).numpy()


def _channel_counts(node: Node, channels: int) -> list[int]:
    parts = [channels * c for c in node["channels"]]
    total = sum(node["channels"])
    if any(part % total for part in parts):
        raise ValueError(f"{node['name']}: {channels} channels do not split as {node['channels']}")
    return [part // total for part in parts]


@_one_thread()
def exact_variance(
    nodes: Sequence[Node], output: str, unit: Sequence[int], input_size: Sequence[int]
) -> np.ndarray:
    """E[g²] at every input pixel, exactly, with every correlation that deterministic layers see.

    The gradient is multilinear in the weights of the layers, so its expected square depends on the
    weights through E[w] = 0 and E[w_m w_m'] = v[m]·δ alone, layer by layer. Sign patterns taken
    from the columns of a Hadamard matrix have just these moments: the mean over all combinations
    of one pattern per layer is the expectation, not an estimate of it.

    Everything else is PyTorch's real layer. One channel stands for many: what enters a
    concatenation or one phase of a pixel shuffle lies in channels of its own, whose weights are
    independent, and so gets a random sign of its own. An identity scales by √gain.

    Raises
    ------
    ValueError
        For max-pooling, whose routes are not independent weights, and for networks that need more
        than `MAX_PATTERNS` combinations (a layer of K weights has as many patterns as the next
        power of 2 above K).
    """
    nodes = _ancestors(nodes, output)
    maps = sizes(nodes, input_size)
    hadamard: dict[str, Tensor] = {}
    for node in nodes:
        weights = _random_weights(node, maps)
        if weights:
            hadamard[node["name"]] = _orthogonal_signs(weights)
    counts = [len(signs) for signs in hadamard.values()]
    patterns = math.prod(counts)
    if patterns > MAX_PATTERNS:
        raise ValueError(f"{patterns} sign patterns are more than {MAX_PATTERNS}: use less layers")

    total = torch.zeros(tuple(input_size), dtype=torch.float64)
    chunk = max(1, CHUNK_VALUES // math.prod(input_size) // 8)
    for first in range(0, patterns, chunk):
        numbers = np.arange(first, min(first + chunk, patterns))
        digits = np.unravel_index(numbers, counts) if counts else ()
        chosen = {
            name: hadamard[name][torch.as_tensor(digit)]
            for name, digit in zip(hadamard, digits, strict=True)
        }

        def draw(node: Node, shape: tuple[int, ...], chosen: dict[str, Tensor] = chosen) -> Tensor:
            return chosen[node["name"]].reshape(shape)

        def layer(node: Node, xs: list[Tensor], draw: Draw = draw) -> Tensor:
            return _exact_layer(node, xs, draw)

        shape = (len(numbers), 1, *input_size)
        total += _squared_gradient(nodes, output, unit, shape, layer).sum(0)
    return (total / patterns).numpy()


def _exact_layer(node: Node, xs: list[Tensor], draw: Draw) -> Tensor:
    op, x = node["op"], xs[0]
    batch, ndim = x.shape[0], x.ndim - 2
    if op == "concat":
        signs = draw(node, (batch, len(xs)))
        scaled = [
            math.sqrt(share) * signs[:, i].reshape(batch, *[1] * (x.ndim - 1)) * x
            for i, (share, x) in enumerate(zip(_shares(node), xs, strict=True))
        ]
        return torch.stack(scaled).sum(0)
    if op in ("pixel_shuffle", "pixel_unshuffle"):
        phases = math.prod(_axes(node, "factor", ndim))
        signs = draw(node, (batch, phases)).reshape(batch, phases, *[1] * ndim)
        if op == "pixel_shuffle":
            return _shuffle(node, signs * x)
        return (signs * _unshuffle(node, x)).sum(1, keepdim=True) / math.sqrt(phases)
    return _random_layer(node, xs, 1, draw)


def _ancestors(nodes: Sequence[Node], output: str) -> list[Node]:
    wanted, found = {output}, []
    for node in reversed(nodes):
        if node["name"] in wanted:
            found.append(node)
            wanted.update(node.get("inputs", ()))
    return found[::-1]


def _random_weights(node: Node, maps: dict[str, list[int]]) -> int:
    """How many independent random numbers a node holds in a one-channel network."""
    op, size = node["op"], maps[node["name"]]
    if op == "maxpool":
        raise ValueError(f"{node['name']}: the routes of max-pooling are no independent weights")
    if op in ("conv", "conv_transpose"):
        return math.prod(_axes(node, "kernel", len(size)))
    if op in ("pixel_shuffle", "pixel_unshuffle"):
        return math.prod(_axes(node, "factor", len(size)))
    if op == "concat":
        return len(node["inputs"])
    if op == "global":
        return math.prod(size) * math.prod(maps[node["inputs"][0]])
    return 0


def _orthogonal_signs(columns: int) -> Tensor:
    """±1 in (rows, columns): every column sums to 0, any two columns are orthogonal."""
    signs = torch.ones((1, 1), dtype=torch.float64)
    while len(signs) <= columns:
        signs = torch.cat([torch.cat([signs, signs], 1), torch.cat([signs, -signs], 1)])
    return signs[:, 1 : columns + 1]
