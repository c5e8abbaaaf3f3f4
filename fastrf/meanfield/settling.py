"""What initial weights make of a network: gains that follow from the layers around a layer.

A layer with an `init` draws its weights by the channels that it reads and writes. An activation's
gain depends on the variance q of what it reads, unless it is straight on either side of 0; a norm
divides by the variance that reaches it (`Norm.mean_field`), and the factors of a product multiply
each other's gradients (`Multiply.mean_field`). This pass follows the signal (`signal`) through the
network, node by node: its M(0) and M(∞). Inputs have 1 and 0, pixels that are independent of each
other; neighbouring pixels share M(∞) alone, until fixed weights make them alike. From there on
M(τ) is followed too (`mixing`), as far as other fixed weights will ask for it.

* Weights multiply all by the variance that an output unit gathers: Σ v; transposed convolutions by
  Σ v / Π stride, as an output reads one in so many taps.
* Averaging, fixed filters and resizing of weights w make M(∞)(Σw)² + Σ w w′(M(τ) − M(∞)) of M(0),
  of taps τ apart, and M(∞)(Σw)² of M(∞).
* Max-pooling makes what the largest of its window's values have, as far as the law of one is known
  (`laws`), and passes E[σ′²] of that; values of a window share M(∞) and are independent otherwise.

Where the size of the maps is known, what padding takes away from M(0) and M(∞) near their
borders is followed pixel by pixel (`borders`): norms divide by the mean over all pixels, which
laws along identities are of, too. Activations and products have the gains of pixels far from them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from fastrf.layers import (
    Activation,
    AdaptivePool,
    Add,
    Attention,
    Concat,
    Conv,
    ConvTranspose,
    Dropout,
    FullyConnected,
    GlobalPool,
    Identity,
    Input,
    Layer,
    MaxPool,
    Multiply,
    Norm,
    Scale,
)
from fastrf.maps import Size
from fastrf.meanfield.borders import MOST, Borders, pads
from fastrf.meanfield.laws import Largest, Law
from fastrf.meanfield.mixing import (
    SETTLED,
    Fixed,
    asked_neighbours,
    farthest,
    is_cut,
    mixed,
    moved,
    sums_of,
)
from fastrf.meanfield.signal import (
    Signal,
    activated,
    added,
    divisor,
    dropped,
    multiplied,
    noise,
    normalised,
)
from fastrf.network import Node

Channels = Mapping[str, int | None]


RANDOM = (Conv, ConvTranspose, FullyConnected, Attention)
"""Layers behind which neither values nor gradients know what came before."""

_POINTWISE = (Activation, Identity, Scale)
"""Layers that make one value of one."""


def alike(nodes: Mapping[str, Node]) -> list[str]:
    """Activations whose slopes have something in common with those of others before them.

    Where a path without weights leads from one activation to another (the identity of a residual
    block whose sum is rectified), both see nearly the same signal, and E[σ′₁²σ′₂²] is more than
    the product of the means. On every path alike that is a factor; beside paths with weights it
    makes the identity count more.
    """
    bare: set[str] = set()
    """Maps that some path without weights joins to an activation."""
    beside: set[str] = set()
    """Those among them where others have joined that path since."""
    found = []
    for name, node in nodes.items():
        varies = isinstance(node.layer, Activation) and node.layer.function != "identity"
        joined = not beside.isdisjoint(node.inputs)
        if varies and joined:
            found.append(name)
        if varies:
            bare.add(name)
        elif not isinstance(node.layer, RANDOM) and not bare.isdisjoint(node.inputs):
            bare.add(name)
            if len(node.inputs) > 1 or joined:
                beside.add(name)
    return found


def along_identities(nodes: dict[str, Node]) -> set[str]:
    """The activations of `alike`, and what leads to them without weights from others."""
    found = set(alike(nodes))
    if not found:
        return found
    for name in reversed(nodes):
        if name in found:
            found.update(s for s in nodes[name].inputs if not isinstance(nodes[s].layer, RANDOM))
    return found


def around_pools(nodes: Mapping[str, Node]) -> set[str]:
    """Max-pooling, and activations next to it: what passes is that of the largest value."""
    found = {name for name, node in nodes.items() if isinstance(node.layer, MaxPool)}
    for name in list(found):
        (source,) = nodes[name].inputs
        while isinstance(nodes[source].layer, _POINTWISE):
            found.add(source)
            (source,) = nodes[source].inputs
    for name, node in nodes.items():
        if isinstance(node.layer, _POINTWISE) and not found.isdisjoint(node.inputs):
            found.add(name)
    return found


_ALIKE = 0.99
"""Correlation of neighbouring pixels beyond which the largest of them is like any one."""


class MeanField:
    """Settles the layers of a bound network one after the other, in topological order.

    Args:
        nodes: all that will be settled.
        followed: those along identities, whose laws are asked for.
        pooled: those around max-pooling, too.

    Attributes:
        neighbours: maps of whose pixels it matters what neighbours have in common.
        bordered: whether it matters what padding changes.
        laws: of what there are among them (see `laws`).
        passed: of max-pooling, E[f′²] of what it chooses from so many pixels, over that of any
            one, where it is known.
        signals: of every map so far.
        factors: by node, the gains of the factors of products that ask for them.
        nodes: the nodes so far, with layers that depend on nothing around them.
        assumptions: what was assumed of the layers so far.
    """

    def __init__(
        self,
        nodes: Mapping[str, Node],
        followed: Collection[str] = (),
        pooled: Collection[str] = (),
    ) -> None:
        self.followed, self.pooled = followed, pooled
        self.neighbours = asked_neighbours(nodes)
        self.bordered = bool(followed) or any(
            isinstance(node.layer, SETTLED) and node.layer.depends_on_network
            for node in nodes.values()
        )
        self.laws: dict[str, Law] = {}
        self.passed: dict[str, Callable[[int], float]] = {}
        self.signals: dict[str, Signal] = {}
        self.factors: dict[str, list[float]] = {}
        self.nodes: dict[str, Node] = {}
        self.assumptions: dict[str, None] = {}
        self._settled: dict[tuple[object, ...], Layer] = {}

    def settle(self, node: Node, channels: Channels, sizes: Mapping[str, Size | None]) -> Node:
        """The node with its layer settled; channels and sizes are those of the maps so far.

        Raises:
            InputError: an `init` needs channels that are not known.
        """
        layer, read = node.layer, [self.signals[i] for i in node.inputs]
        if isinstance(layer, Conv | ConvTranspose | FullyConnected) and layer.depends_on_network:
            layer = self._drawn(layer, channels[node.inputs[0]], channels[node.name], sizes, node)
        elif isinstance(layer, Activation) and layer.depends_on_network:
            layer = self._activation(layer, read[0].square)
        elif isinstance(layer, Norm) and layer.mean_field:
            gain = layer.gain
            if layer.statistics not in ("lrn", "none"):
                gain /= read[0].square * divisor(layer, read[0])
            layer = replace(layer, gain=gain)
            self._assume_mean_field()
        elif isinstance(layer, Multiply) and layer.mean_field:
            others = (read[:i] + read[i + 1 :] for i in range(len(read)))
            self.factors[node.name] = [
                math.prod(signal.square for signal in factors) for factors in others
            ]
            self._assume_mean_field()
        counts = [channels[i] for i in node.inputs]
        size = sizes[node.inputs[0]] if node.inputs else None
        follow = node.name in self.neighbours
        signal = _behind(layer, read, counts, size, follow)
        if read and self.bordered:
            signal = _at_borders(layer, read[0], signal, [sizes[i] for i in node.inputs])
            if _left_out(layer, read[0], size):
                self.assumptions[
                    f"on maps of more than {MOST:,} pixels the variance that padding takes away "
                    f"near borders is left out"
                ] = None
        if not follow:
            signal = signal.alone()
        if is_cut(signal):
            self.assumptions[
                "behind many fixed layers (pools, filters, resizing) gains count pixels that are "
                f"more than {farthest(len(signal.lags))} apart as independent"
            ] = None
        if isinstance(layer, RANDOM):
            mixes = not (isinstance(layer, Conv) and layer.groups == "depthwise")
            roots = frozenset((node.name,))
            signal = replace(signal, gaussian=mixes, centred=True, roots=roots)
        elif isinstance(layer, Input):
            signal = replace(signal, roots=frozenset((node.name,)))
        if signal.borders is not None:
            self.assumptions[
                "near borders, where padding takes variance away, activations and products have "
                "the gains of other pixels; slopes along identities are those of the mean over all"
            ] = None
        if node.name in self.followed or node.name in self.pooled:
            signal = self._as_law(node, layer, signal)
        self.signals[node.name] = signal
        self.nodes[node.name] = node if layer is node.layer else replace(node, layer=layer)
        return self.nodes[node.name]

    def _as_law(self, node: Node, layer: Layer, signal: Signal) -> Signal:
        """The signal once the law of what a node writes is known; as it is where it is not."""
        largest = self._largest(node, layer) if isinstance(layer, MaxPool) else None
        law = largest.law if largest else self._law(node, layer)
        if law is None:
            return signal
        far = largest.far if largest else law.mean**2 / law.square
        self.laws[node.name] = law
        if node.name not in self.followed:
            if isinstance(layer, Activation) and self.signals[node.inputs[0]].gaussian:
                return signal  # The same, found in another way.
            if isinstance(layer, Activation):
                gain = float(law.chances @ law.slope**2) / layer.pointwise_gain
                self.factors[node.name] = [gain]
        level, borders = math.log(max(law.square, 1e-300)), signal.borders
        if borders is not None:  # The law is that of the mean over all pixels.
            level -= math.log(borders.mean)
            borders = borders.bent(lambda square: square, far)
        return replace(
            signal,
            level=level,
            far=far,
            alike=signal.between(far),
            gaussian=False,
            centred=False,
            borders=borders,
        )

    def _largest(self, node: Node, layer: MaxPool) -> Largest | None:
        """Of what max-pooling reads in a window."""
        source = node.inputs[0]
        law = self.laws.get(source) or self._free(source)
        if law is None:
            return None
        # Pixels of a sum along an identity count as independent.
        first = source
        while isinstance(self.nodes[first].layer, _POINTWISE):
            first = self.nodes[first].inputs[0]
        alike = self.signals[first].far if self.signals[first].gaussian else 0.0
        if alike > _ALIKE:
            return None
        largest = cache(lambda count: law.largest(node.name, count, alike))
        self.passed[node.name] = lambda count: largest(count).passed
        return largest(math.prod(layer.kernel))

    def _law(self, node: Node, layer: Layer) -> Law | None:
        """The law of what a node along an identity writes; None where it is not followed."""
        if isinstance(layer, Add):
            return self._sum(node.inputs)
        if not node.inputs or isinstance(layer, MaxPool):
            return None
        source = node.inputs[0]
        law = self.laws.get(source)
        if isinstance(layer, Activation) and layer.known is not None:
            if layer.gain is not None and layer.gain != layer.moments(1.0).gain:
                return None  # It says something else than its slopes do.
            law = law or self._free(source)
            own = layer.known.parameter if layer.slope is None else layer.slope
            return law and law.bent(layer.known.value, layer.known.slope, own or 0.0)
        if law is None:
            return None
        if isinstance(layer, Scale):
            return law.times(layer.factor)
        return law if isinstance(layer, Identity) else None

    def _free(self, source: str) -> Law | None:
        """The law of what weights have written."""
        signal = self.signals[source]
        if not (signal.gaussian and signal.centred):
            return None
        return Law.gaussian(source, signal.mean_square)

    def _sum(self, inputs: Sequence[str]) -> Law | None:
        """A law and fresh Gaussians on top."""
        laws = [name for name in inputs if name in self.laws]
        free = {name: self.signals[name] for name in inputs if name not in self.laws}
        if len(laws) != 1 or len(free) != len(inputs) - 1:
            return None
        if not all(signal.gaussian and signal.centred for signal in free.values()):
            return None
        roots = [self.signals[laws[0]].roots, *(signal.roots for signal in free.values())]
        if len(frozenset().union(*roots)) < sum(map(len, roots)):
            return None
        return self.laws[laws[0]].plus({name: signal.mean_square for name, signal in free.items()})

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


def _behind(
    layer: Layer,
    read: Sequence[Signal],
    channels: Sequence[int | None],
    size: Size | None,
    follow: bool,
) -> Signal:
    """What a settled layer writes, of what it reads.

    Args:
        size: of the first map that it reads.
        follow: whether to say what neighbouring pixels have in common.
    """
    if isinstance(layer, Concat):
        counts = [1 if None in channels else c or 1 for c in channels]
        return added(read, [c / sum(counts) for c in counts])
    if isinstance(layer, Multiply):
        return multiplied(read)
    if isinstance(layer, Add):
        return added(read)
    signal = read[0] if read else noise()
    if isinstance(layer, Norm):
        return normalised(layer, signal)
    if isinstance(layer, Activation):
        return activated(layer, signal)
    if isinstance(layer, Dropout):
        return dropped(signal, layer.p)
    if isinstance(layer, Fixed):
        return mixed(layer, signal, size, follow)
    signal = moved(layer, signal)
    gain = layer.pointwise_gain
    if isinstance(layer, ConvTranspose):
        gain = layer.gain / float(math.prod(layer.stride))
    elif isinstance(layer, Conv | FullyConnected | Attention):
        gain = layer.gain
    return signal.times(gain)


def _left_out(layer: Layer, read: Signal, size: Size | None) -> bool:
    """Whether there are borders that `_at_borders` does not follow, as the maps are too large."""
    maps = () if size is None or isinstance(layer, Attention) else layer.maps(size, len(size))
    large = any(math.prod(s or ()) > MOST for move in maps for s in (move.size_in, move.size_out))
    return large and (read.borders is not None or any(map(pads, maps)))


def _at_borders(layer: Layer, read: Signal, signal: Signal, sizes: Sequence[Size | None]) -> Signal:
    """What a layer writes, with what padding has made of it so far.

    Args:
        read: the first map that it reads.
        signal: what it writes.
        sizes: of all maps that it reads.
    """
    if None in sizes or isinstance(layer, Attention):
        return replace(signal, borders=None)
    size = np.broadcast_shapes(*(own or () for own in sizes))
    maps = layer.maps(size, len(size))
    if not maps:
        borders = signal.borders
        if borders is not None and borders.square.shape != size:
            borders = borders.spread(size)
        return replace(signal, borders=borders)
    out = maps[-1].size_out or ()
    if max(map(math.prod, (size, out))) > MOST or isinstance(layer, FullyConnected):
        return replace(signal, borders=None)
    borders = read.borders or Borders.none(size, read.far)
    if isinstance(layer, GlobalPool | AdaptivePool) and layer.mode == "avg" and maps[0].is_global:
        borders = borders.whole(read.far)
    elif any(move.is_global for move in maps):
        return replace(signal, borders=None)
    else:
        sums = sums_of(layer, size) if isinstance(layer, Fixed) else (1.0, 1.0)
        for move in maps:
            if move.kind == "random":
                borders = borders.random(move)
            else:  # of several maps, those before the last one copy pixels
                last = move is maps[-1]
                behind = signal.far if last else read.far
                borders = borders.fixed(move, read.far, behind, sums if last else (1.0, 1.0))
    square = borders.mean
    if math.prod(out) == 1:
        level = signal.level + math.log(max(square, 1e-300))
        return replace(signal, level=level, far=float(borders.own.mean()) / square, borders=None)
    same = read.borders is None and np.ptp(borders.square) < 1e-12 > np.ptp(borders.shared)
    return replace(signal, borders=None if same else borders)
