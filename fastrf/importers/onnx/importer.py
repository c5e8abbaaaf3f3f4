"""The walk over a graph, once, from the inputs to the outputs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from fastrf.errors import FastrfError, UnsupportedOperator
from fastrf.importers.onnx.failing import fail, line, refuse
from fastrf.importers.onnx.folding import fold
from fastrf.importers.onnx.graph import Graph, dims
from fastrf.importers.onnx.layout import Const, Map, Value, fits
from fastrf.importers.onnx.op import Handler, Op, Result
from fastrf.importers.onnx.operators import HANDLERS
from fastrf.importers.onnx.reading import STANDARD, array
from fastrf.layers import Add, Input
from fastrf.network import Network, Node

if TYPE_CHECKING:
    from onnx import NodeProto

Policy = Literal["error", "identity", "global"]
"""What becomes of an operator that fastrf cannot express."""


class Importer:
    """The network that a graph becomes, node by node."""

    def __init__(self, graph: Graph, unknown: Policy) -> None:
        self.graph = graph
        self.source = graph.source
        self.unknown = unknown
        self.nodes: dict[str, Node] = {}
        self.values: dict[str, Value] = {}

    def network(self, name: str | None) -> Network:
        graph = self.graph.model.graph
        for x in self.graph.input_maps.values():
            self.nodes[x.node] = Node(x.node, Input(x.extent[0]))
            self.values[x.node] = x
        for tensor in graph.initializer:
            self.values.setdefault(tensor.name, Const(tuple(tensor.dims), array(tensor)))
        for value in graph.input:
            self.values.setdefault(value.name, Const(dims(value)))
        names = self.graph.node_names()
        for proto in self.graph.needed():
            results = self._evaluate(proto, names[next(filter(None, proto.output))])
            for tensor_name, result in zip(proto.output, results, strict=False):
                if tensor_name:
                    self.values[tensor_name] = result
        outputs: dict[str, str] = {}
        for out in graph.output:
            returned = self.values.get(out.name)
            if isinstance(returned, Map):
                outputs[out.name] = returned.node
        if not outputs:
            fail(self.source, "no output depends on a map; check which tensors the graph returns")
        return Network(
            self.nodes.values(),
            list(dict.fromkeys(outputs.values())),
            ndim=self.graph.ndim,
            name=name,
            endpoints={tensor: n for tensor, n in outputs.items() if tensor not in self.nodes},
        )

    def _evaluate(self, proto: NodeProto, name: str) -> list[Value]:
        """The values that a node writes."""
        for tensor in filter(None, proto.input):
            if tensor not in self.values:
                fail(
                    self.source,
                    f"{proto.op_type} (node {name!r}) reads {tensor!r}, which nothing before it "
                    f"writes; check the model with onnx.checker",
                )
        inputs = [self.values[tensor] if tensor else None for tensor in proto.input]
        op = Op(proto, name, inputs, self.graph, self.nodes)
        standard = proto.domain in STANDARD
        subgraph = any(a.type in (a.GRAPH, a.GRAPHS) for a in proto.attribute)
        if not op.maps and not subgraph:
            return fold(op) if standard else [Const(s) for s in op.shapes]
        before = len(self.nodes)
        try:
            if subgraph:
                refuse("runs a subgraph; export the model with constant conditions and loops")
            handler = HANDLERS.get(op.type) if standard else None
            if handler is None:
                refuse("is unknown to fastrf")
            result = _handle(handler, op)
        except UnsupportedOperator as error:
            for added in list(self.nodes)[before:]:
                del self.nodes[added]
            try:
                result = self._by_policy(op, str(error))
            except UnsupportedOperator as final:
                kind = op.type if standard else f"{proto.domain}.{op.type}"
                raise UnsupportedOperator(
                    f"{self.source}: {kind} (node {name!r}) {line(final)}; or pass "
                    f'unknown="identity" (it passes every pixel on) or unknown="global" '
                    f"(each output reads every input)"
                ) from None
        return result if isinstance(result, list) else [result] * len(proto.output)

    def _by_policy(self, op: Op, reason: str) -> Result:
        if self.unknown == "error":
            refuse(reason)
        if not op.maps:
            return [Const(shape) for shape in op.shapes]
        first = op.maps[0]
        same = [op.shape is None or x.dims is None or fits(op.shape, x.dims) for x in op.maps]
        if self.unknown == "global":
            x = op.attend(op.maps)
            alone = len(op.maps) == 1 and same[0]
            return replace(x, axes=first.axes, shape=first.shape) if alone else x
        kept = [x for x, fitting in zip(op.maps, same, strict=True) if fitting]
        if not kept:
            refuse(f"{reason}, and changes the shape {first.dims} to {op.shape}")
        return op.chain(kept[0]) if len(kept) == 1 else op.merge(kept, Add())


def _handle(handler: Handler, op: Op) -> Result:
    try:
        return handler(op)
    except FastrfError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        # Attributes and operands come from the file, in any type, number and size.
        op.fail(
            f"its attributes or inputs do not fit the operator ({error}); "
            f"check the model with onnx.checker"
        )
