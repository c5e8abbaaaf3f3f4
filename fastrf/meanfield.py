"""What initial weights make of a network: gains that follow from the layers around a layer.

A layer with an `init` draws its weights by the channels that it reads and writes. An activation's
gain depends on the variance q of what it reads, unless it is straight on either side of 0; a norm
divides by the variance that reaches it (`Norm.mean_field`), and the factors of a product multiply
each other's gradients (`Multiply.mean_field`). The mean field follows that through the network, as
it is where layers are wide, weights drawn with mean 0 and biases 0 (Poole et al. 2016; Schoenholz
et al. 2017). Of every map it knows the second moment q of its values and the covariance c, over the
weights, of the values of a channel at two different pixels or images: the square of the mean that a
channel has once the weights are drawn, which a batch norm takes away (Yang et al. 2019). Inputs
have q = 1 and c = 0, pixels that are independent of each other.

* Weights multiply both by the variance that an output unit gathers: Σ v; transposed convolutions by
  Σ v / Π stride, as an output reads one in so many taps. What they write is Gaussian of mean 0.
* An activation makes E[σ(u)²] and E[σ(u)σ(v)] of them. One of stated gain g counts as scaled to it:
  times g/E[σ′²].
* A norm over positions divides by q − c and leaves 1 and 0; one over channels divides by q. (Local
  response normalisation hardly does anything, and counts as that.)
* A sum adds, a product multiplies, a concatenation averages over channels; dropout divides q by
  1 − p; averaging and fixed filters of weights w make c(Σw)² + (q − c)Σw² of q, and c(Σw)² of c.
* Max-pooling, resizing and padding leave both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from fastrf.activations import covariance
from fastrf.layers import (
    Activation,
    AdaptivePool,
    Add,
    Attention,
    AvgPool,
    Concat,
    Conv,
    ConvTranspose,
    Dropout,
    Filter,
    FullyConnected,
    GlobalPool,
    Layer,
    Multiply,
    Norm,
)
from fastrf.maps import Size
from fastrf.network import Node

_LEAST, _MOST = 1e-200, 1e200
"""Where variances stop: far beyond, every gain has long reached its limit."""

Channels = Mapping[str, int | None]


def is_needed(layers: Iterable[Layer]) -> bool:
    """Whether a layer's gain follows from the network around it. Layers that blocks share are
    looked at once."""
    return any(layer.depends_on_network for layer in {id(x): x for x in layers}.values())


class Moments(NamedTuple):
    """Of the values of a map, over the weights.

    Attributes:
        square: q, the second moment of a value.
        common: c, the covariance of a channel's values at two different pixels or images.
    """

    square: float
    common: float


class MeanField:
    """Settles the layers of a bound network one after the other, in topological order.

    Attributes:
        moments: of every map so far.
        factors: by node, the gains of the factors of products that ask for them.
        nodes: the nodes so far, with layers that depend on nothing around them.
        assumptions: what was assumed of the layers so far.
    """

    def __init__(self) -> None:
        self.moments: dict[str, Moments] = {}
        self.factors: dict[str, list[float]] = {}
        self.nodes: dict[str, Node] = {}
        self.assumptions: dict[str, None] = {}
        self._settled: dict[tuple[object, ...], Layer] = {}

    def settle(self, node: Node, channels: Channels, sizes: Mapping[str, Size | None]) -> Node:
        """The node with its layer settled; channels and sizes are those of the maps so far.

        Raises:
            InputError: an `init` needs channels that are not known.
        """
        layer, read = node.layer, [self.moments[i] for i in node.inputs]
        if isinstance(layer, Conv | ConvTranspose | FullyConnected) and layer.depends_on_network:
            layer = self._drawn(layer, channels[node.inputs[0]], channels[node.name], sizes, node)
        elif isinstance(layer, Activation) and layer.depends_on_network:
            layer = self._activation(layer, read[0].square)
        elif isinstance(layer, Norm) and layer.mean_field:
            gain = layer.gain / max(_divisor(layer, read[0]), _LEAST)
            layer = replace(layer, mean_field=False, gain=gain)
            self._assume_mean_field()
        elif isinstance(layer, Multiply) and layer.mean_field:
            others = (read[:i] + read[i + 1 :] for i in range(len(read)))
            self.factors[node.name] = [
                max(math.prod(m.square for m in factors), _LEAST) for factors in others
            ]
            self._assume_mean_field()
        counts = [channels[i] for i in node.inputs]
        size = sizes[node.inputs[0]] if node.inputs else None
        found = _behind(layer, read, counts, size)
        self.moments[node.name] = Moments(*(min(value, _MOST) for value in found))
        self.nodes[node.name] = node if layer is node.layer else replace(node, layer=layer)
        return self.nodes[node.name]

    def _drawn(
        self,
        layer: Conv | ConvTranspose | FullyConnected,
        reads: int | None,
        writes: int | None,
        sizes: Mapping[str, Size | None],
        node: Node,
    ) -> Layer:
        size = sizes[node.inputs[0]] if isinstance(layer, FullyConnected) else None
        key = (id(layer), reads, writes, size)
        if key not in self._settled:
            if isinstance(layer, FullyConnected):
                # On the unbounded grid no field passes what reads the whole map.
                pixels = math.prod(layer.map_size or size or (1,))
                self._settled[key] = layer.drawn(reads, writes, pixels)
            else:
                self._settled[key] = layer.drawn(reads, writes)
        return self._settled[key]

    def _activation(self, layer: Activation, variance: float) -> Layer:
        if layer.known is None:
            self.assumptions[
                f"the slope of {layer.function!r} is not known: it counts as compensated, gain 1"
            ] = None
        else:
            self._assume_mean_field()
        key = (id(layer), variance)
        if key not in self._settled:
            unknown = layer.known is None
            self._settled[key] = (
                replace(layer, gain=1.0) if unknown else replace(layer, variance=variance)
            )
        return self._settled[key]

    def _assume_mean_field(self) -> None:
        self.assumptions[
            "gains of activations, norms and products are those of the mean field: independent "
            "input pixels of variance 1, wide layers without biases, Gaussian values of mean 0 "
            "where activations read them"
        ] = None


def _divisor(layer: Norm, read: Moments) -> float:
    """The variance that a norm divides by."""
    if layer.statistics == "lrn":
        return 1.0
    positions = layer.statistics in ("batch", "batch_train", "instance")
    return read.square - read.common if positions else read.square


def _behind(
    layer: Layer, read: Sequence[Moments], channels: Sequence[int | None], size: Size | None
) -> Moments:
    """Moments of what a settled layer writes, from those of what it reads.

    Args:
        size: of the first map that it reads.
    """
    if isinstance(layer, Concat):
        counts = [1 if None in channels else c or 1 for c in channels]
        pairs = [*zip(read, counts, strict=True)]
        return Moments(
            math.fsum(m.square * c for m, c in pairs) / sum(counts),
            math.fsum(m.common * c for m, c in pairs) / sum(counts),
        )
    if isinstance(layer, Multiply):
        return Moments(math.prod(m.square for m in read), math.prod(m.common for m in read))
    if isinstance(layer, Add):
        return Moments(math.fsum(m.square for m in read), math.fsum(m.common for m in read))
    q, c = read[0] if read else Moments(1.0, 0.0)
    if isinstance(layer, Norm):
        if layer.statistics == "lrn":
            return Moments(q, c)
        over_channels = _divisor(layer, Moments(1.0, 1.0)) > 0
        return Moments(1.0, c / max(q, _LEAST) if over_channels else 0.0)
    if isinstance(layer, Activation):
        if layer.known is None:
            return Moments(q * layer.pointwise_gain, c * layer.pointwise_gain)
        own = layer.moments(q)
        scale = layer.pointwise_gain / own.gain
        common = covariance(layer.function, q, c, layer.slope)
        return Moments(own.square * scale, common * scale)
    if isinstance(layer, Dropout):
        return Moments(q * layer.pointwise_gain, c)
    if isinstance(layer, AvgPool | GlobalPool | AdaptivePool | Filter):
        squares, whole = _weights(layer, size)
        return Moments((q - c) * squares + c * whole, c * whole)
    gain = layer.pointwise_gain
    if isinstance(layer, ConvTranspose):
        gain = layer.gain / float(math.prod(layer.stride))
    elif isinstance(layer, Conv | FullyConnected | Attention):
        gain = layer.gain
    return Moments(q * gain, c * gain)


def _weights(
    layer: AvgPool | GlobalPool | AdaptivePool | Filter, size: Size | None
) -> tuple[float, float]:
    """Σw² and (Σw)² of fixed weights; of a maximum, 1 and 1."""
    if isinstance(layer, Filter):
        weights = layer.coefficients()
        return float(np.sum(weights**2)), float(np.sum(weights)) ** 2
    if not isinstance(layer, AvgPool) and layer.mode == "max":
        return 1.0, 1.0
    if isinstance(layer, AvgPool):
        return 1 / float(math.prod(layer.kernel)), 1.0
    if size is None:
        return 0.0, 1.0  # the mean over an endless map
    out = layer.output_size if isinstance(layer, AdaptivePool) else (1,) * len(size)
    return float(math.prod(out)) / max(math.prod(size), 1), 1.0
