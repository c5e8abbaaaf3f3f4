"""What pixels have in common behind layers that move them, far from borders.

The second moments M(τ) of a signal at lags τ around 0 (`signal`); at lags that are not among them
pixels share M(∞) alone. Along an axis such a layer is y[o] = Σ_i h[o·q − i·p]·x[i]: pooling and
filtering with p = 1 and the stride q, resizing by p/q. Outputs of different phases differ; what is
known is the mean over them,

    M_y(τ) = 1/p Σ_λ A(τq − λp)·M_x(λ),    A(d) = Σ_m h[m]·h[m + d].

Behind random weights of the stride q, pixels share what those q times as far apart do: M_y(τ) =
M_x(τq), times a gain; transposed ones take them p times as far apart, with nothing in common
between them where different weights have written them.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from fastrf.layers import (
    Activation,
    AdaptivePool,
    Attention,
    AvgPool,
    Conv,
    ConvTranspose,
    Filter,
    FullyConnected,
    GlobalPool,
    Layer,
    MaxPool,
    Multiply,
    Norm,
    PixelShuffle,
    PixelUnshuffle,
    Upsample,
)
from fastrf.maps import AxisMap, Size, Spread, Table
from fastrf.meanfield.signal import Lags, Signal
from fastrf.network import Node

Floats = NDArray[np.float64]
Fixed = AvgPool | GlobalPool | AdaptivePool | Filter | Upsample
SETTLED = Activation | Norm | Multiply
"""Layers whose gains depend on the variances that they read."""

_MOST = 1 << 16
"""Most lags of a map, all axes together."""

_FARTHEST = 127
"""The largest lag along an axis."""

_NOTHING = 1e-16
"""What share of M(0) pixels may have in common before it counts."""


@dataclass(frozen=True, slots=True)
class Response:
    """One axis of a layer: y[o] = Σ_i weights[o·down − i·up]·x[i]."""

    weights: Floats
    up: int = 1
    down: int = 1

    def matrix(self, other: Response, reach: int) -> Floats:
        """What it makes, with another one, of M at the lags −reach … reach."""
        own = self.reach(reach)
        met = _correlated(self.weights, other.weights)
        steps = np.arange(-own, own + 1)[:, None] * self.down
        at = steps - np.arange(-reach, reach + 1) * self.up + len(self.weights) - 1
        inside = (at >= 0) & (at < len(met))
        return np.where(inside, met[at.clip(0, len(met) - 1)], 0.0)

    def reach(self, reach: int) -> int:
        """The largest lag behind it of pixels that had something in common up to a reach."""
        return (len(self.weights) - 1 + reach * self.up) // self.down


Term = tuple[Response, ...]
"""One response per axis, whose product a layer is."""


def asked_neighbours(nodes: Mapping[str, Node]) -> set[str]:
    """The maps of whose neighbouring pixels it matters, to what is to be settled, how much they
    have in common: those that fixed layers read before an activation, norm or product."""
    asked: set[str] = set()
    """Maps whose M(0) matters."""
    found: set[str] = set()
    for name in reversed([*nodes]):
        node, layer = nodes[name], nodes[name].layer
        if name in asked or (isinstance(layer, SETTLED) and layer.depends_on_network):
            asked.update(node.inputs)
        mixes = isinstance(layer, Fixed) and name in asked
        if mixes or (name in found and not isinstance(layer, FullyConnected | Attention)):
            found.update(node.inputs)
    return found


def mixed(layer: Fixed, signal: Signal, size: Size | None, follow: bool) -> Signal:
    """Behind fixed weights; a maximum leaves M(0) and M(∞).

    Args:
        size: of the map that is read.
        follow: whether to say what neighbouring pixels have in common.
    """
    far, terms = signal.far, _terms(layer, size)
    squares, whole = _sums(layer, terms)
    here, shared = (1 - far) * squares, None
    if terms and (signal.lags or follow):
        alone = np.full((1,) * len(terms[0]), 1 - far)
        shared = _excess(terms, signal.alike - far if signal.lags else alone)
        if signal.lags:
            here = max(float(shared[_middle(shared)]), 0.0)
    total = here + far * whole
    found = replace(signal.times(total).alone(), far=far * whole / total if total else 0.0)
    if shared is None or not follow or not total:
        return found
    shared = _kept(shared / total)
    if shared.size == 1:
        return found
    alike = shared + found.far
    alike[_middle(alike)] = 1.0
    return replace(found, lags=_lags(alike), alike=alike)


def moved(layer: Layer, signal: Signal) -> Signal:
    """At the lags behind a layer that weighs pixels at random or chooses among them."""
    if not signal.lags:
        return signal
    up = down = (1,) * len(signal.lags)
    if isinstance(layer, Conv | MaxPool):
        down = layer.stride
    elif isinstance(layer, ConvTranspose):
        up = layer.stride
    elif isinstance(layer, PixelUnshuffle):
        down = layer.factor
    elif isinstance(layer, PixelShuffle):
        up = layer.factor
    elif isinstance(layer, FullyConnected | Attention):
        return signal.alone()
    if max(*up, *down) == 1:
        return signal
    term = tuple(Response(np.ones(1), *axis) for axis in zip(up, down, strict=True))
    alike = _cut(_applied(term, term, signal.alike))
    return replace(signal, lags=_lags(alike), alike=alike)


def sums_of(layer: Fixed, size: Size | None) -> tuple[float, float]:
    """Σw² and (Σw)² of the weights of one output, far from borders."""
    return _sums(layer, _terms(layer, size))


def is_cut(signal: Signal) -> bool:
    """Whether pixels too far apart to be followed may have something in common."""
    return any(len(axis) // 2 >= farthest(len(signal.lags)) for axis in signal.lags)


# --- lags -----------------------------------------------------------------------------------


def _lags(alike: Floats) -> Lags:
    return tuple(frozenset(range(-(n // 2), n // 2 + 1)) for n in alike.shape)


def _middle(array: Floats) -> tuple[int, ...]:
    return tuple(n // 2 for n in array.shape)


def farthest(ndim: int) -> int:
    """The largest lag that is followed along each of so many axes."""
    return min(_FARTHEST, (int(_MOST ** (1 / ndim)) - 1) // 2)


def _cut(array: Floats, reach: Sequence[int] | None = None) -> Floats:
    """The same up to a reach, and to the largest lag that is followed."""
    most = farthest(array.ndim)
    ends = [min(n // 2, most) for n in array.shape] if reach is None else reach
    return array[tuple(slice(c - r, c + r + 1) for c, r in zip(_middle(array), ends, strict=True))]


def _kept(shared: Floats) -> Floats:
    """What counts of M(τ) − M(∞), over M(0)."""
    places = np.argwhere(np.abs(shared) > _NOTHING)
    reach = np.abs(places - _middle(shared)).max(axis=0, initial=0)
    return _cut(shared, np.minimum(reach, farthest(shared.ndim)).tolist())


# --- weights --------------------------------------------------------------------------------


def _excess(terms: Sequence[Term], shared: Floats) -> Floats:
    """M(τ) − M(∞) behind fixed weights, of that before them."""
    first, *rest = (_applied(a, b, shared) for a, b in itertools.product(terms, terms))
    found: Floats = sum(rest, start=first)
    return found / math.prod(axis.up for axis in terms[0])


def _applied(a: Term, b: Term, array: Floats) -> Floats:
    for number, (one, other) in enumerate(zip(a, b, strict=True)):
        reach = array.shape[number] // 2
        if one.up == 1 and 2 * len(one.weights) < reach:  # a narrow band of the matrix
            array = _banded(one, other, array, number)
            continue
        matrix = one.matrix(other, reach)
        array = np.moveaxis(np.tensordot(matrix, array, (1, number)), 0, number)
    return array


def _banded(one: Response, other: Response, array: Floats, axis: int) -> Floats:
    """As `Response.matrix`, diagonal by diagonal."""
    read = np.moveaxis(array, axis, 0)
    reach, down = len(read) // 2, one.down
    own = one.reach(reach)
    found = np.zeros((2 * own + 1, *read.shape[1:]))
    for step, weight in enumerate(_correlated(one.weights, other.weights), 1 - len(one.weights)):
        # found[t] takes read[t·down − step], both counted from lag 0.
        first = max(-own, -((reach - step) // down))
        last = min(own, (reach + step) // down)
        begin = first * down - step + reach
        lines = read[begin : begin + (last - first) * down + 1 : down]
        found[first + own : last + own + 1] += weight * lines
    return np.moveaxis(found, 0, axis)


def _correlated(a: Floats, b: Floats) -> Floats:
    """Σ a[m]·b[m + d] at all d from 1 − len(a) on."""
    count = len(a) + len(b) - 1
    n = 1 << count.bit_length()
    found: Floats = np.fft.irfft(np.fft.rfft(a[::-1], n) * np.fft.rfft(b, n), n)
    return found[:count]


def _sums(layer: Fixed, terms: Sequence[Term]) -> tuple[float, float]:
    """Σw² and (Σw)² of the weights of one output."""
    if isinstance(layer, Filter):
        weights = layer.coefficients()
        return float(np.sum(weights**2)), float(np.sum(weights)) ** 2
    if isinstance(layer, AvgPool):
        return 1 / float(math.prod(layer.kernel)), 1.0
    if not terms:
        return float(isinstance(layer, Upsample) or layer.mode == "max"), 1.0
    (axes,) = terms
    if not isinstance(layer, Upsample) and all(a.up == 1 for a in axes):
        return 1 / math.prod(a.down for a in axes), 1.0
    return math.prod(float(np.sum(a.weights**2)) / a.up for a in axes), 1.0


def _terms(layer: Fixed, size: Size | None) -> list[Term]:
    """The layer far from borders, as a sum of products; none of a maximum, of the mean over an
    endless map and of what resizes such a mean."""
    if isinstance(layer, AvgPool):
        boxes = [np.full(k, 1 / k) for k in layer.kernel]
        return [_windows(layer, boxes)]
    if isinstance(layer, Filter):
        weights = layer.coefficients()
        rows = [row for row in np.ndindex(weights.shape[:-1]) if weights[row].any()]
        units = [np.eye(n) for n in weights.shape[:-1]]
        lines = [[*(u[m] for u, m in zip(units, row, strict=True)), weights[row]] for row in rows]
        return [_windows(layer, line) for line in lines]
    if isinstance(layer, Upsample):
        if size is None and (layer.scale is None or layer.coordinates == "align_corners"):
            return []
        return [tuple(_resized(axis) for axis in _scaled(layer, size).maps(None, 0)[0].axes)]
    if layer.mode == "max" or size is None:
        return []
    out = layer.output_size if isinstance(layer, AdaptivePool) else (1,) * len(size)
    axes = layer.maps(size, len(size))[0].axes
    return [tuple(_means(*axis) for axis in zip(axes, size, out, strict=True))]


def _windows(layer: AvgPool | Filter, weights: Sequence[Floats]) -> Term:
    found = []
    for own, stride, dilation in zip(weights, layer.stride, layer.dilation, strict=True):
        spaced = np.zeros((len(own) - 1) * dilation + 1)
        spaced[::dilation] = own
        found.append(Response(spaced, 1, stride))
    return tuple(found)


def _means(axis: AxisMap, n: int, m: int) -> Response:
    """Of n pixels in m windows, alike where m divides n."""
    if n % m:
        assert isinstance(axis, Table)
        period = m // math.gcd(n, m)
        return _resized(Table(axis.starts[:period], axis.taps[:period], period * n // m))
    return Response(np.full(n // m, m / n), 1, n // m)


def _scaled(layer: Upsample, size: Size | None) -> Upsample:
    """The layer on the unbounded grid; a single pixel stays one, however often it is written."""
    if size is None:
        return layer
    (move,) = layer.maps(size, len(size))
    corners = int(layer.coordinates == "align_corners")
    scale = layer.scale
    if scale is None or corners:
        ends = zip(size, move.size_out or size, strict=True)
        scale = tuple(Fraction(max(m - corners, 1), max(n - corners, 1)) for n, m in ends)
    scale = tuple(Fraction(1) if n == 1 else s for n, s in zip(size, scale, strict=True))
    coordinates = "asymmetric" if corners else layer.coordinates
    return replace(layer, size=None, scale=scale, coordinates=coordinates)


def _resized(axis: AxisMap) -> Response:
    if isinstance(axis, Table):
        weights = np.sqrt(axis.taps) if axis.coefficients is None else axis.coefficients
        steps = np.arange(axis.period) * axis.advance - axis.starts * axis.period
        at = steps[:, None] - np.arange(weights.shape[1]) * axis.period
        spaced = np.zeros(int(np.ptp(at)) + 1)
        spaced[at - at.min()] = weights
        return Response(spaced, axis.period, axis.advance)
    if isinstance(axis, Spread):
        return Response(np.ones(axis.kernel), axis.stride)
    return Response(np.ones(1))
