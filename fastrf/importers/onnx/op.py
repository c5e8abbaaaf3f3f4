"""One operator of a model: what it states and reads, and the nodes it becomes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from math import inf, prod
from typing import TYPE_CHECKING, Any, NoReturn

from fastrf.errors import InputError
from fastrf.importers.onnx.failing import fail, refuse
from fastrf.importers.onnx.graph import Graph
from fastrf.importers.onnx.layout import Const, Map, Shape, Value, broadcast, fits, known, total
from fastrf.layers import Add, Attention, Concat, Conv, Identity, Layer
from fastrf.network import Node

if TYPE_CHECKING:
    from onnx import AttributeProto, NodeProto


class Op:
    """One ONNX node.

    Args:
        proto: the node.
        name: what the fastrf node that it becomes is called.
        inputs: the values it reads, None where one is left out.
        graph: the graph that it belongs to.
        nodes: the network's nodes so far; those of this operator are added.
    """

    def __init__(
        self,
        proto: NodeProto,
        name: str,
        inputs: Sequence[Value | None],
        graph: Graph,
        nodes: dict[str, Node],
    ) -> None:
        self.proto = proto
        self.type: str = proto.op_type
        self.name = name
        self.inputs = inputs
        self.graph = graph
        self.version = graph.version
        self.ndim = graph.ndim
        self.shapes = [graph.shapes.get(tensor) for tensor in proto.output]
        self._nodes = nodes

    def fail(self, message: str) -> NoReturn:
        fail(self.graph.source, f"{self.type} (node {self.name!r}): {message}")

    # --- what it states and reads

    @property
    def maps(self) -> list[Map]:
        return [v for v in self.inputs if isinstance(v, Map)]

    @property
    def shape(self) -> Shape | None:
        """The inferred shape of the first output."""
        return self.shapes[0]

    @property
    def x(self) -> Map:
        """The first input, which has to depend on the input map."""
        first = self.inputs[0]
        if not isinstance(first, Map):
            refuse("reads the map elsewhere than in its first place")
        return first

    @cached_property
    def attributes(self) -> dict[str, AttributeProto]:
        return {a.name: a for a in self.proto.attribute}

    def attr(self, name: str, default: Any = None) -> Any:
        """An attribute as a Python value: numbers, strings, or lists of them."""
        from onnx import helper

        if name not in self.attributes:
            return default
        value = helper.get_attribute_value(self.attributes[name])
        if isinstance(value, bytes):
            return value.decode(errors="replace")
        return value if isinstance(value, int | float | str) else list(value)

    def input(self, index: int) -> Value | None:
        """An input, None where it is left out."""
        return self.inputs[index] if len(self.inputs) > index else None

    def operand(self, index: int, name: str, default: Any = None) -> Any:
        """A parameter that newer versions read as an input and older ones as an attribute."""
        value = self.input(index)
        if value is None:
            return self.attr(name, default)
        if not isinstance(value, Const) or value.array is None:
            refuse(f"computes {name} while it runs; export with fixed sizes, or give input_size")
        return value.array.tolist()

    def weight_shape(self, index: int) -> tuple[int, ...]:
        value = self.input(index)
        if not isinstance(value, Const):
            refuse("computes its weights from a map")
        shape = None if value.shape is None else known(value.shape)
        if shape is None:
            refuse("has weights of unknown shape; run onnx.shape_inference and save again")
        return shape

    def standard(self, x: Map) -> Map:
        """The map with axes (N, C, spatial…), refused where the tensor is laid out otherwise."""
        if x.axes is None:
            shape = x.shape
            if shape is None or len(shape) != self.ndim + 2 or not fits(shape[2:], x.pixels):
                refuse(f"reads a tensor of shape {shape} behind attention, which is no map")
            pattern = replace(x, extent=(shape[1], *x.pixels))
            return self._adopt(x, replace(pattern, axes=pattern.standard))
        if not x.is_standard:
            refuse(
                f"reads a tensor of shape {x.dims} whose axes are not (N, C, spatial…) of a map "
                f"of {x.extent[0]} channels and {x.pixels} pixels"
            )
        return x

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
        axes, extent = laid[0].axes or (), laid[0].extent
        for x in laid[1:]:
            axes, extent = broadcast(axes, x.axes or ()), _wider(extent, x.extent)
        node = self.emit(layer, *(x.node for x in laid))
        return replace(laid[0], node=node, extent=extent, axes=axes)

    def _adopt(self, x: Map, pattern: Map) -> Map:
        """A tensor behind attention laid out like `pattern`: all its elements read everything."""
        node = x.node
        if x.extent[0] != pattern.extent[0]:
            node = self.emit(Conv(1, channels=pattern.extent[0]), node, part="channels")
        return replace(pattern, node=node, extent=(pattern.extent[0], *x.pixels))

    def attend(self, maps: Sequence[Map]) -> Map:
        """Every element of the result reads every position of the maps."""
        first = maps[0]
        for x in maps[1:]:
            if not fits(x.pixels, first.pixels):
                refuse(f"joins maps of {first.pixels} and {x.pixels} pixels")
        counts = {x.node: x.extent[0] for x in maps}
        node = first.node
        if len(counts) > 1:
            node = self.emit(Concat(), *counts, part="maps")
        node = self.emit(Attention(), node)
        extent = (total(list(counts.values())), *first.pixels)
        return Map(node, extent, None, first.batch, self.shape)


def _wider(a: Shape, b: Shape) -> Shape:
    """The extent of a merge, in which maps of one pixel or one channel are broadcast."""
    return tuple(n if m == 1 or (m is None and n != 1) else m for m, n in zip(a, b, strict=True))


# --- the registry ---------------------------------------------------------------------------

Result = Value | list[Value]
"""What a handler returns: one value for all outputs, or one per output."""

Handler = Callable[[Op], Result]
HANDLERS: dict[str, Handler] = {}
"""The handler of every operator that fastrf knows; `operators` fills it."""


def handles(types: str) -> Callable[[Handler], Handler]:
    """Registers the handler of operators, named with spaces between them."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(types.split(), handler))
        return handler

    return register
