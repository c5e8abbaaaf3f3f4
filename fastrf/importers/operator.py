"""One operator of a model: the values it reads, and the nodes it becomes."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from math import inf, isfinite, prod
from typing import NoReturn

from fastrf.errors import InputError
from fastrf.importers.composed import completed, composed
from fastrf.importers.failing import refuse
from fastrf.importers.layout import (
    CHANNEL,
    Axis,
    Const,
    Digit,
    Map,
    Shape,
    Value,
    broadcast,
    fits,
    known,
    total,
)
from fastrf.importers.registry import extent_behind
from fastrf.importers.weighting import Weighted, Weighting
from fastrf.layers import (
    Activation,
    Add,
    Attention,
    ChannelShuffle,
    Concat,
    Conv,
    GlobalPool,
    Identity,
    Layer,
    Scale,
    Upsample,
)
from fastrf.network import Network, Node

Result = Value | list[Value]
"""What an operator becomes: one value for all its outputs, or one per output."""


class Operator(ABC):
    """What the operators of all model formats share.

    Args:
        type: the operator as its format calls it.
        name: what the fastrf node that it becomes is called.
        inputs: the values it reads, None where one is left out.
        shapes: the shapes of its outputs, None where one is not known.
        ndim: number of spatial axes.
        nodes: the network's nodes so far; those of this operator are added.
        weighting: what becomes of its weights.
    """

    layouts = ""
    """What else may help where axes are not in their places."""

    cutting = ""
    """What cuts out a part of a model."""

    def __init__(
        self,
        type: str,
        name: str,
        inputs: Sequence[Value | None],
        shapes: Sequence[Shape | None],
        ndim: int,
        nodes: dict[str, Node],
        weighting: Weighting,
    ) -> None:
        self.type = type
        self.name = name
        self.inputs = inputs
        self.shapes = shapes
        self.ndim = ndim
        self._nodes = nodes
        self.weighting = weighting

    @abstractmethod
    def fail(self, message: str) -> NoReturn:
        """The model itself is at fault."""

    # --- what it reads

    @property
    def maps(self) -> list[Map]:
        return [v for v in self.inputs if isinstance(v, Map)]

    @property
    def shape(self) -> Shape | None:
        """The shape of the first output."""
        return self.shapes[0]

    @property
    def x(self) -> Map:
        """The first input, which has to depend on the input map."""
        first = self.inputs[0]
        if not isinstance(first, Map):
            refuse("reads the map elsewhere than in its first place")
        return first

    def standard(self, x: Map) -> Map:
        """The map with axes (N, C, spatial…), refused where the tensor is laid out otherwise."""
        if x.axes is None:
            shape = x.shape
            if shape is None or len(shape) != self.ndim + 2:
                refuse(f"reads a tensor of shape {shape} behind attention, which is no map")
            x = self._over(x, shape[2:])
            pattern = replace(x, extent=(shape[1], *x.pixels))
            return self._adopt(x, replace(pattern, axes=pattern.standard))
        if not x.is_standard:
            refuse(
                f"reads a tensor of shape {x.dims} whose axes are not (N, C, spatial…) of a map "
                f"of {x.extent[0]} channels and {x.pixels} pixels{self.layouts}"
            )
        return x

    def weighted(self, layer: Weighted, weight: Const | None) -> Weighted:
        """A layer with the gain that the import gives its weights."""
        try:
            return self.weighting.weighted(layer, weight, self.ndim)
        except InputError as error:
            self.fail(str(error))

    def node(self, name: str) -> Node:
        """A node of the network so far."""
        return self._nodes[name]

    # --- the nodes it becomes

    def emit(self, layer: Layer, *sources: str, part: str = "", name: str = "") -> str:
        """Adds a node called like the operator (and `part`); returns its name."""
        own = name or self.name
        full = own + (f".{part}" if part else "")
        for number in itertools.count(2):
            if full not in self._nodes:
                break
            full = f"{own}.{part or layer.kind}{number}"
        self._bound(layer)
        self._nodes[full] = Node(full, layer, sources)
        return full

    def chain(self, x: Map, *layers: Layer, name: str = "") -> Map:
        """Layers one behind the other, the last one (none: an identity) called like the operator.

        The result has x's axes; `grid` is for layers that change the size of the map.
        """
        *before, last = layers or (Identity(),)
        node = x.node
        for layer in before:
            node = self.emit(layer, node, part=layer.kind, name=name)
        return replace(x, node=self.emit(last, node, name=name))

    def grid(self, x: Map, *layers: Layer) -> Map:
        """Layers behind a map (N, C, spatial…) whose channels and size they may change."""
        x = self.standard(x)
        extent = x.extent
        for layer in layers:
            extent = self._extent_behind(layer, extent)
        after = replace(self.chain(x, *layers), extent=extent)
        assert x.axes is not None
        return replace(after, axes=(x.axes[0], *after.standard[1:]))

    def _extent_behind(self, layer: Layer, extent: Shape) -> Shape:
        bound = self._bound(layer)
        pixels: Shape = extent[1:]
        before = known(pixels)
        try:
            channels = bound.output_channels([extent[0]])
            shape = self.shape
            if shape is not None and len(shape) == self.ndim + 2 and None not in shape[2:]:
                return (channels, *shape[2:])
            if before is None:
                moved = bool(bound.maps(None, self.ndim))
                return (channels, *((None,) * self.ndim if moved else pixels))
            maps = bound.maps(before, self.ndim)
        except InputError as error:
            self.fail(str(error))
        return (channels, *((maps[-1].size_out or pixels) if maps else pixels))

    def _bound(self, layer: Layer) -> Layer:
        try:
            return layer.bind(self.ndim)
        except InputError as error:
            self.fail(str(error))

    def merge(self, maps: Sequence[Map], layer: Layer) -> Map:
        """A sum or product of maps, broadcast as ONNX does."""
        patterns = [x for x in maps if x.axes is not None]
        if not patterns:
            maps = [self._over(x, maps[0].pixels) for x in maps]
            counts = [x.extent[0] for x in maps]
            equal = len(set(counts)) == 1
            node = self.emit(Add() if equal else Concat(), *(x.node for x in maps))
            extent = (counts[0] if equal else total(counts), *maps[0].pixels)
            return replace(maps[0], node=node, extent=extent, shape=self.shape)
        wide = max(patterns, key=lambda x: prod(inf if n is None else n for n in x.dims or ()))
        laid = []
        for x in maps:
            behind = x.axes is None
            if behind and not (x.shape and wide.dims and fits(x.shape, wide.dims)):
                refuse(f"joins shapes {x.shape} and {wide.dims}, one of them behind attention")
            laid.append(self._adopt(x, wide) if behind else x)
        laid = [self._repeated(x, wide) for x in laid]
        axes, extent = laid[0].axes or (), laid[0].extent
        for x in laid[1:]:
            axes, extent = broadcast(axes, x.axes or ()), _wider(extent, x.extent)
        node = self.emit(layer, *(x.node for x in laid))
        return replace(laid[0], node=node, extent=extent, axes=axes)

    def _repeated(self, x: Map, wide: Map) -> Map:
        """A map with its channels repeated along the axes of the tensor `wide` over which it is
        broadcast, where those count channels; one channel needs no copies."""
        have, want = x.extent[0], wide.extent[0]
        if have is None or want is None or have in (1, want):
            return x
        axes = ((),) * (len(wide.axes or ()) - len(x.axes or ())) + (x.axes or ())
        digits, own = _channel_digits(wide.axes or ()), _channel_digits(axes)
        if any(own[place].size != digits[place].size for place in own.keys() & digits.keys()) or (
            [p for p in digits if p in own] != list(own)
        ):
            refuse("joins tensors whose axes mean different things")
        node, done = x.node, 1
        for place in reversed(digits):  # the fastest digit first: (slow, done) → (slow, n, done)
            count = digits[place].size or 1
            if place not in own:
                slow = have // done
                if slow > 1 < done:
                    node = self.emit(ChannelShuffle(slow), node, part="order")
                node = self.copies(node, count)
                if slow > 1:
                    node = self.emit(ChannelShuffle(count * done), node, part="order")
                have *= count
            done *= count
        laid = tuple((digits[p],) if p in digits else axis for p, axis in enumerate(axes))
        return replace(x, node=node, extent=(want, *x.pixels), axes=laid)

    def copies(self, node: str, times: int) -> str:
        """A map with all of its channels repeated, by concatenations that double."""
        found = node
        for digit in f"{times:b}"[1:]:
            more = [node] if digit == "1" else []
            found = self.emit(Concat(), found, found, *more, part="copies")
        return found

    def multiplied(self, maps: Sequence[Map]) -> Map:
        """A product of maps; where an activation is spelled that way, that activation."""
        first = maps[0]
        if all(x.axes == first.axes and x.extent == first.extent for x in maps):
            found = composed(self._nodes, [x.node for x in maps])
            if found is not None:
                layer = self.weighting.activation(found.function)
                return self.chain(replace(first, node=found.source), layer)
        return self.merge(maps, self.weighting.product())

    def scaled(self, x: Map, factor: float) -> Map:
        """A map times a number."""
        if factor == 0 or not isfinite(factor):
            return self.chain(x, Activation(self.type.lower(), gain=1.0))
        node = self._nodes[x.node]
        function = completed(node, factor)
        if function is not None:
            (source,) = node.inputs
            return self.chain(replace(x, node=source), self.weighting.activation(function))
        return self.chain(x, Scale(factor))

    def embed(self, network: Network, maps: Sequence[Map]) -> Map:
        """The nodes of a network that reads the maps; its output is called like the operator."""
        maps = [self.standard(x) for x in maps]
        names = dict(zip(network.inputs, (x.node for x in maps), strict=True))
        for node in network.nodes.values():
            if node.name in names:
                continue
            part = "" if node.name == network.outputs[0] else node.name
            names[node.name] = self.emit(node.layer, *(names[i] for i in node.inputs), part=part)
        try:
            extent = extent_behind(network, [x.extent for x in maps], self.ndim)
        except InputError as error:
            self.fail(str(error))
        after = replace(maps[0], node=names[network.outputs[0]], extent=extent)
        return replace(after, axes=after.standard)

    def _adopt(self, x: Map, pattern: Map) -> Map:
        """A tensor behind attention laid out like `pattern`: all its elements read everything."""
        x = self._over(x, pattern.pixels)
        node = x.node
        if x.extent[0] != pattern.extent[0]:
            node = self.emit(Conv(1, channels=pattern.extent[0]), node, part="channels")
        return replace(pattern, node=node)

    def _over(self, x: Map, pixels: Shape) -> Map:
        """A map of which every element is read everywhere, spread over another grid."""
        if fits(x.pixels, pixels):
            return x
        if None in pixels:
            refuse(f"joins maps of {x.pixels} and {pixels} pixels")
        node = self.emit(GlobalPool("max"), x.node, part="pool")
        node = self.emit(Upsample(size=pixels), node, part="spread")
        return replace(x, node=node, extent=(x.extent[0], *pixels))

    def attend(self, maps: Sequence[Map]) -> Map:
        """Every element of the result reads every position of the maps."""
        first = maps[0]
        nodes = dict.fromkeys(self._over(x, first.pixels).node for x in maps)
        node = first.node
        if len(nodes) > 1:
            node = self.emit(Concat(), *nodes, part="maps")
            node = self.emit(Conv(1, channels=first.extent[0]), node, part="channels")
        node = self.emit(Attention(), node)
        return Map(node, first.extent, None, first.batch, self.shape)


def _channel_digits(axes: Sequence[Axis]) -> dict[int, Digit]:
    """The digits of the channels by their axes, the slowest first; each has an axis of its own."""
    found = {p: a[0] for p, a in enumerate(axes) if any(d.label == CHANNEL for d in a)}
    if any(len(axes[p]) > 1 for p in found):
        refuse("joins tensors whose axes mean different things")
    return dict(sorted(found.items(), key=lambda item: -item[1].step))


def _wider(a: Shape, b: Shape) -> Shape:
    """The extent of a merge, in which maps of one pixel or one channel are broadcast."""
    return tuple(n if m == 1 or (m is None and n != 1) else m for m, n in zip(a, b, strict=True))
