"""One node of an ONNX model: what it states and reads; the registry of handlers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from numpy.typing import NDArray

from fastrf.errors import short
from fastrf.importers.batched import regrouped, repeated
from fastrf.importers.failing import fail, refuse
from fastrf.importers.layout import Const, Map, Value, known
from fastrf.importers.onnx.graph import Graph
from fastrf.importers.operator import Operator, Result
from fastrf.importers.weighting import Weighting
from fastrf.network import Node

if TYPE_CHECKING:
    from onnx import AttributeProto, NodeProto


class Op(Operator):
    """One ONNX node.

    Args:
        proto: the node.
        name: what the fastrf node that it becomes is called.
        inputs: the values it reads, None where one is left out.
        graph: the graph that it belongs to.
        nodes: the network's nodes so far; those of this operator are added.
        weighting: what becomes of its weights.
    """

    layouts = "; if the channels of its inputs come last, give layout='channels_last'"
    cutting = " (onnx.utils.extract_model)"

    def __init__(
        self,
        proto: NodeProto,
        name: str,
        inputs: Sequence[Value | None],
        graph: Graph,
        nodes: dict[str, Node],
        weighting: Weighting,
    ) -> None:
        shapes = [graph.shapes.get(tensor) for tensor in proto.output]
        super().__init__(proto.op_type, name, inputs, shapes, graph.ndim, nodes, weighting)
        self.proto = proto
        self.graph = graph
        self.version = graph.version

    def with_inputs(self, proto: NodeProto, inputs: Sequence[Value | None]) -> Op:
        """The same operator, written otherwise."""
        return Op(proto, self.name, inputs, self.graph, self._nodes, self.weighting)

    def proto_as(self, type: str) -> NodeProto:
        """The node as one of a standard operator."""
        proto = self._copied()
        proto.op_type, proto.domain = type, ""
        return proto

    def _copied(self) -> NodeProto:
        proto = type(self.proto)()
        proto.CopyFrom(self.proto)
        return proto

    def regrouped(self, x: Map, sets: int) -> Op:
        """The same operator on another map, with so many times the groups."""
        proto = self._copied()
        inputs = [x if i == 0 else v for i, v in enumerate(self.inputs)]
        place = 3 if self.type == "QLinearConv" else 1
        weight = self.input(place)
        if "Conv" in self.type and isinstance(weight, Const):
            from onnx import helper

            inputs[place] = repeated(weight, sets)
            kept = [a for a in proto.attribute if a.name != "group"]
            del proto.attribute[:]
            groups = helper.make_attribute("group", self.attr("group", 1) * sets)
            proto.attribute.extend([*kept, groups])
        return self.with_inputs(proto, inputs)

    def fail(self, message: str) -> NoReturn:
        fail(self.graph.source, f"{self.type} (node {self.name!r}): {message}")

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

    def choice(self, name: str, default: str, *others: str) -> str:
        """An attribute that is one of a few words; any other is an error, not the default."""
        value = self.attr(name, default)
        if value not in (default, *others):
            words = ", ".join((default, *others))
            self.fail(f"{name}={short(value)} is unknown; it is one of {words}: correct the model")
        found: str = value
        return found

    def flag(self, name: str, default: int = 0) -> bool:
        """An attribute that is 0 or 1."""
        value = self.attr(name, default)
        if value not in (0, 1):
            self.fail(f"{name}={short(value)} is neither 0 nor 1; correct the model")
        return bool(value)

    def counts(self, name: str, default: Sequence[int], least: int | None = None) -> list[int]:
        """An attribute that is a list of whole numbers, as many as the default has."""
        value = self.attr(name) or list(default)
        whole = isinstance(value, list) and all(isinstance(n, int) for n in value)
        if not whole or len(value) != len(default):
            self.fail(f"{name}={short(value)} must be {len(default)} numbers; correct the model")
        if least is not None and min(value, default=least) < least:
            self.fail(f"{name}={value} must be at least {least} each; correct the model")
        found: list[int] = value
        return found

    def axis(self, given: int, rank: int) -> int:
        """The place of an axis that may be counted from the end, below 0."""
        if not isinstance(given, int) or not -rank <= given < rank:
            self.fail(
                f"axis {short(given)} is none of a tensor of {rank} axes, {-rank} to {rank - 1}; "
                f"correct the model"
            )
        return given % rank

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

    def learned(self, index: int) -> NDArray[Any] | None:
        """The numbers of an input that no map reaches, where weights are read."""
        value = self.input(index)
        return value.array if self.weighting.trained and isinstance(value, Const) else None

    def weight_shape(self, index: int) -> tuple[int, ...]:
        value = self.input(index)
        if not isinstance(value, Const):
            refuse("computes its weights from a map")
        shape = None if value.shape is None else known(value.shape)
        if shape is None:
            refuse("has weights of unknown shape; run onnx.shape_inference and save again")
        return shape


# --- the registry ---------------------------------------------------------------------------

Handler = Callable[[Op], Result]
HANDLERS: dict[str, Handler] = {}
"""The handler of every operator that fastrf knows, by "domain::operator" where it is no standard
one; `operators` fills it."""


def handles(types: str) -> Callable[[Handler], Handler]:
    """Registers the handler of operators, named with spaces between them."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(types.split(), handler))
        return handler

    return register


def handles_sets(types: str) -> Callable[[Handler], Handler]:
    """As `handles`, of operators that take sets of channels in the batch, too."""
    register = handles(types)
    return lambda handler: register(regrouped(handler, Op.regrouped))
