"""What initial weights make of a network: gains that follow from the layers around a layer.

A layer with an `init` draws its weights by the channels that it reads and writes. An activation's
gain depends on the variance q of what it reads, unless it is straight on either side of 0; so does
that of a norm that divides by it (`Norm.mean_field`), and of a product (`Multiply.mean_field`),
whose factors multiply each other's gradients. The mean field follows q from the inputs,
which have variance 1, through the network (Poole et al. 2016; Schoenholz et al. 2017): it is the
second moment of a map's values, which are Gaussian of mean 0 wherever an activation reads them, as
in wide layers whose weights are drawn with mean 0 and whose biases are 0.

* Weights multiply q by the variance that an output unit gathers: Σ v; transposed convolutions by
  Σ v / Π stride, as an output reads one in so many taps.
* A norm makes q 1 (and, of two or more maps, a sum adds, a product multiplies, a concatenation
  averages over channels).
* Dropout divides q by 1 − p. An activation of stated gain g counts as scaled to it: it makes q what
  σ would, times g/E[σ′²].
* Pooling, resizing, padding and fixed filters leave q: pixels that a window joins count as alike.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from fastrf.layers import (
    Activation,
    Add,
    Attention,
    Concat,
    Conv,
    ConvTranspose,
    FullyConnected,
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


class MeanField:
    """Settles the layers of a bound network one after the other, in topological order.

    Attributes:
        variances: q of every map so far.
        factors: by node, the gains of the factors of products that ask for them.
        nodes: the nodes so far, with layers that depend on nothing around them.
        assumptions: what was assumed of the layers so far.
    """

    def __init__(self) -> None:
        self.variances: dict[str, float] = {}
        self.factors: dict[str, list[float]] = {}
        self.nodes: dict[str, Node] = {}
        self.assumptions: dict[str, None] = {}
        self._settled: dict[tuple[object, ...], Layer] = {}

    def settle(self, node: Node, channels: Channels, sizes: Mapping[str, Size | None]) -> Node:
        """The node with its layer settled; channels and sizes are those of the maps so far, its
        own included.

        Raises:
            InputError: an `init` needs channels that are not known.
        """
        layer, read = node.layer, [self.variances[i] for i in node.inputs]
        if isinstance(layer, Conv | ConvTranspose | FullyConnected) and layer.depends_on_network:
            layer = self._drawn(layer, channels[node.inputs[0]], channels[node.name], sizes, node)
        elif isinstance(layer, Activation) and layer.depends_on_network:
            layer = self._activation(layer, read[0])
        elif isinstance(layer, Norm) and layer.mean_field:
            layer = replace(layer, mean_field=False, gain=layer.gain / max(read[0], _LEAST))
            self._assume_mean_field()
        elif isinstance(layer, Multiply) and layer.mean_field:
            others = (read[:i] + read[i + 1 :] for i in range(len(read)))
            self.factors[node.name] = [max(math.prod(qs), _LEAST) for qs in others]
            self._assume_mean_field()
        counts = [channels[i] for i in node.inputs]
        self.variances[node.name] = min(_behind(layer, read, counts), _MOST)
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
            "gains of activations, norms and products are those of the mean field: inputs of "
            "variance 1, Gaussian values of mean 0 behind weights, wide layers without biases"
        ] = None


def _behind(layer: Layer, read: Sequence[float], channels: Sequence[int | None]) -> float:
    """q of what a layer writes."""
    if isinstance(layer, Concat):
        known = [1 if c is None else c for c in channels]
        if None in channels:
            known = [1] * len(known)
        return math.fsum(q * c for q, c in zip(read, known, strict=True)) / sum(known)
    if isinstance(layer, Multiply):
        return math.prod(read)
    if isinstance(layer, Add):
        return math.fsum(read)
    q = read[0] if read else 1.0
    if isinstance(layer, Norm):
        return 1.0
    if isinstance(layer, Activation):
        if layer.known is None:
            return q * layer.pointwise_gain
        own = layer.moments(q)
        return own.square * (layer.pointwise_gain / own.gain)
    if isinstance(layer, ConvTranspose):
        return q * layer.gain / float(math.prod(layer.stride))
    if isinstance(layer, Conv | FullyConnected | Attention):
        return q * layer.gain
    return q * layer.pointwise_gain
