"""The walk over a graph, once, from the inputs to the outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from fastrf.errors import FastrfError, UnsupportedOperator
from fastrf.importers.composed import reached
from fastrf.importers.failing import fail, line, refuse
from fastrf.importers.layout import Const, Map, Value
from fastrf.importers.onnx.branches import captured, is_choice, subgraphs, taken_branch
from fastrf.importers.onnx.folding import fold
from fastrf.importers.onnx.graph import Graph, dims
from fastrf.importers.onnx.op import Handler, Op
from fastrf.importers.onnx.operators import HANDLERS
from fastrf.importers.onnx.reading import STANDARD, array
from fastrf.importers.operator import Result
from fastrf.importers.policy import WAYS_OUT, Policy, by_policy
from fastrf.importers.registry import Call, block, of_operator
from fastrf.importers.weighting import Weighting
from fastrf.layers import Input
from fastrf.network import Network, Node

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto


class Importer:
    """The network that a graph becomes, node by node.

    Args:
        graph: a model without its weights.
        unknown: what becomes of an operator that fastrf cannot express.
        weighting: what becomes of weights.
        weights: the values of constants, by tensor, where weights are read.
        read: finds those of a branch.
    """

    def __init__(
        self,
        graph: Graph,
        unknown: Policy,
        weighting: Weighting,
        weights: Mapping[str, NDArray[Any]],
        read: Callable[[GraphProto], Mapping[str, NDArray[Any]]] | None,
    ) -> None:
        self.graph = graph
        self.source = graph.source
        self.unknown = unknown
        self.weighting = weighting
        self.weights = weights
        self.read = read
        self.nodes: dict[str, Node] = {}
        self.values: dict[str, Value] = {}

    def network(self, name: str | None) -> Network:
        graph = self.graph.model.graph
        for x in self.graph.input_maps.values():
            self.nodes[x.node] = Node(x.node, Input(x.extent[0]))
            self.values[x.node] = x
        self._know_constants()
        waiting = self._waiting()
        while waiting:
            proto, own = waiting.pop()
            branch = self._branch(proto) if is_choice(proto) else None
            if branch is not None:
                part = self.graph.inline(proto, branch)
                if self.read is not None:
                    self.weights = {**self.weights, **self.read(part)}
                self._know_constants()
                waiting = self._waiting()
                continue
            results = self._evaluate(proto, own)
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
            reached(self.nodes, outputs.values()),
            list(dict.fromkeys(outputs.values())),
            ndim=self.graph.ndim,
            name=name,
            endpoints={tensor: n for tensor, n in outputs.items() if tensor not in self.nodes},
        )

    def _know_constants(self) -> None:
        graph = self.graph.model.graph
        for tensor_name, weights in self.weights.items():
            self.values.setdefault(tensor_name, Const.of(weights))
        for tensor in graph.initializer:
            self.values.setdefault(tensor.name, Const(tuple(tensor.dims), array(tensor)))
        for value in graph.input:
            self.values.setdefault(value.name, Const(dims(value)))

    def _waiting(self) -> list[tuple[NodeProto, str]]:
        """The nodes still to be evaluated and their names, the next one last."""
        names = self.graph.node_names()
        named = [(p, next(filter(None, p.output))) for p in self.graph.needed()]
        return [(p, names[first]) for p, first in reversed(named) if first not in self.values]

    def _branch(self, proto: NodeProto) -> GraphProto | None:
        """The branch of an If whose condition is known."""
        condition = self.values.get(proto.input[0]) if proto.input else None
        if not isinstance(condition, Const) or condition.array is None or condition.array.size != 1:
            return None
        return taken_branch(proto, bool(condition.array.ravel()[0]))

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
        inner = [self.values[tensor] for tensor in captured(proto) if tensor in self.values]
        op = Op(proto, name, [*inputs, *inner], self.graph, self.nodes, self.weighting)
        standard = proto.domain in STANDARD
        subgraph = any(True for _ in subgraphs(proto))
        if not op.maps:
            folded = standard and not subgraph
            return fold(op, self.read is not None) if folded else [Const(s) for s in op.shapes]
        before = len(self.nodes)
        handler = HANDLERS.get(op.type if standard else _qualified(proto))
        try:
            if is_choice(proto):
                refuse(self._undecided(proto))
            if subgraph:
                refuse("runs a subgraph; export the model with its loop unrolled")
            own = of_operator(_qualified(proto))
            if own is not None:
                call = _call(_qualified(proto), op)
                result: Result = op.embed(block(call.name, own(call), len(op.maps)), op.maps)
            elif handler is None:
                refuse(_unknown(proto))
            else:
                result = _handle(handler, op)
        except UnsupportedOperator as error:
            for added in list(self.nodes)[before:]:
                del self.nodes[added]
            try:
                if any(x.axes is None for x in op.maps):
                    # Behind attention every element reads everything, whatever moves or mixes them.
                    result = op.attend(op.maps)
                else:
                    result = by_policy(op, self.unknown, str(error), handler is not None)
            except UnsupportedOperator as final:
                kind = op.type if standard else f"{proto.domain}.{op.type}"
                raise UnsupportedOperator(
                    f"{self.source}: {kind} (node {name!r}) {line(final)}; {WAYS_OUT}"
                ) from None
        if isinstance(result, list):
            return result
        if isinstance(result, Map) and result.axes is None:
            first, *others = op.shapes
            if first is None or None in first:  # the operator may have worked it out
                first = result.shape or first
            return [replace(result, shape=shape) for shape in (first, *others)]
        return [result] * len(proto.output)

    def _undecided(self, proto: NodeProto) -> str:
        """Why neither branch of an If can be taken."""
        values, sizes = self.graph.origins(proto.input[0])
        maps = self.graph.input_maps
        reason = f"chooses a branch by {proto.input[0]!r}"
        if any(name in maps for name in values) or not [*values, *sizes]:
            return f"{reason}, which is computed from data; export it without that condition"
        ways = [
            f"give input_size for the size of {name!r}"
            if name in maps
            else f"fix the size of {name!r} with onnx.tools.update_model_dims"
            for name in sizes
        ]
        ways += [
            f"store the value of {name!r} in the model (graph.initializer.append("
            f"onnx.numpy_helper.from_array(value, {name!r})))"
            for name in values
        ]
        return f"{reason}; {' and '.join(ways)}"


def _unknown(proto: NodeProto) -> str:
    if proto.domain.startswith("com.microsoft.nchwc"):
        return "is laid out for one processor; save the model with ORT_ENABLE_EXTENDED at most"
    return "is unknown to fastrf"


def _qualified(proto: NodeProto) -> str:
    return f"{proto.domain or 'ai.onnx'}::{proto.op_type}"


def _call(name: str, op: Op) -> Call:
    shapes = tuple(v.dims if isinstance(v, Map) else v.shape for v in op.inputs if v is not None)
    return Call(name, shapes, op.shape, {a: op.attr(a) for a in op.attributes})


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
