"""The walk over a traced module, once, from the inputs to the outputs."""

from __future__ import annotations

import operator as python
import re
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrf.errors import FastrfError, InputError, UnsupportedOperator
from fastrf.importers.composed import reached
from fastrf.importers.failing import line, refuse
from fastrf.importers.layout import Const, Map, Shape, Value, input_map
from fastrf.importers.operator import Result
from fastrf.importers.policy import WAYS_OUT, Policy, by_policy
from fastrf.importers.registry import Call, block, of_operator
from fastrf.importers.torch.names import Names, operator_name, path
from fastrf.importers.torch.op import Op
from fastrf.importers.torch.operators import BROADCASTING, HANDLERS
from fastrf.importers.torch.tracing import BOUNDARY, Trace, place
from fastrf.importers.weighting import Weighting
from fastrf.layers import Input
from fastrf.network import Network, Node

if TYPE_CHECKING:
    from torch import Tensor, fx

KEPT = 4096
"""Constants of up to so many elements keep their values."""


class Importer:
    """The network that a traced module becomes, operator by operator.

    Args:
        traced: what the module does.
        source: what messages call it.
        rank: number of axes of the inputs that are maps; the others are constants.
        unknown: what becomes of an operator that fastrf cannot express.
        weighting: what becomes of weights.
    """

    def __init__(
        self, traced: Trace, source: str, rank: int, unknown: Policy, weighting: Weighting
    ) -> None:
        self._traced = traced
        self._source = source
        self._rank, self._ndim = rank, max(rank - 2, 1)
        self._unknown = unknown
        self._weighting = weighting
        self._names = Names(traced.containers, traced.constants)
        self._nodes: dict[str, Node] = {}
        self._ends: dict[str, str] = {}
        self._partial: set[fx.Node] = set()

    def network(self, name: str | None) -> Network:
        """The network, and what the module returns as its outputs."""
        values: dict[fx.Node, Any] = {}
        for node in self._traced.inputs:
            values[node] = self._input(node)
        for node, tensor in self._traced.constants.items():
            values[node] = _constant(tensor, self._weighting.trained)
        returned = [node for _, node in self._traced.outputs]
        self._run(self._traced.graph, returned, values)
        outputs: dict[str, str] = {}
        for place_, node in self._traced.outputs:
            value = values.get(node)
            if isinstance(value, Map):
                outputs[place_ or value.node] = value.node
        if not outputs:
            raise InputError(
                f"{self._source}: no output depends on a map; check what its forward returns"
            )
        named = {p: n for p, n in outputs.items() if not p.replace(".", "").isdecimal()}
        ends = {**self._ends, **named}
        return Network(
            reached(self._nodes, [*outputs.values(), *ends.values()]),
            list(dict.fromkeys(outputs.values())),
            ndim=self._ndim,
            name=name,
            endpoints={end: node for end, node in ends.items() if end not in self._nodes},
        )

    def _input(self, node: fx.Node) -> Value:
        """A map where the input has as many axes as the network's maps."""
        shape = _shape(node.meta["val"])
        if shape is None or len(shape) != self._rank:
            return Const(shape)
        x = input_map(self._names.keep(node.name), shape)
        self._nodes[x.node] = Node(x.node, Input(x.extent[0]))
        return x

    # --- the walk

    def _run(
        self, graph: fx.Graph, returned: Sequence[fx.Node], values: dict[fx.Node, Any]
    ) -> None:
        """Evaluates what the nodes `returned` need."""
        needed, partial = _needed(graph, returned)
        self._partial |= partial
        for node in graph.nodes:
            if node.op != "call_function" or node not in needed:
                continue
            values[node] = self._evaluate(node, values)
            changed = _changed(node)
            if changed is not None:
                values[changed] = values[node]
                if node in partial:
                    _write_whole(_base(changed), values[node], values)
            self._note_ends(node, values[node])

    def _note_ends(self, node: fx.Node, value: Any) -> None:
        """The last map that a module computes is the end point of its path."""
        if not isinstance(value, Map):
            return
        module = path(node)
        while module:
            self._ends[module] = value.node
            module = module.rpartition(".")[0]

    def _evaluate(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        arguments = _arguments(node, values)
        if node.target is python.getitem:
            held, index = arguments["0"], arguments["1"]
            return held[index] if isinstance(held, list | tuple) else held
        body = _body(node)
        if body is not None:
            return self._inlined(body, node, values)
        read = list(_values(arguments.values()))
        if not any(isinstance(v, Map) for v in read):
            copied = operator_name(node) in _COPIES and isinstance(read[0], Const)
            if copied:
                return read[0]
            found = _computed(node, values) if self._weighting.trained or _counts(node) else None
            return _constants(node.meta.get("val")) if found is None else found
        return self._operator(node, arguments)

    def _inlined(self, body: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        """What a part of the graph returns that runs under no_grad, autocast or a checkpoint."""
        inner: dict[fx.Node, Any] = {}
        places = [n for n in body.graph.nodes if n.op == "placeholder"]
        given = node.args[-len(places) :] if places else ()
        for own, outer in zip(places, given, strict=True):
            inner[own] = _read(outer, values)
        returned: Any = body.graph.output_node().args[0]
        several = isinstance(returned, list | tuple)
        wanted = [n for n in (returned if several else [returned]) if n is not None]
        self._run(body.graph, wanted, inner)
        return [inner.get(n) for n in returned] if several else inner[returned]

    def _operator(self, node: fx.Node, arguments: dict[str, Any]) -> Any:
        op = Op(
            operator_name(node),
            self._names.choose(node),
            arguments,
            _shapes(node.meta.get("val")),
            _where(node),
            self._ndim,
            self._nodes,
            self._weighting,
        )
        before = len(self._nodes)
        try:
            result = self._handled(node, op)
        except UnsupportedOperator as error:
            for added in list(self._nodes)[before:]:
                del self._nodes[added]
            result = self._otherwise(op, node, str(error))
        if len(self._nodes) > before:
            self._names.keep(op.name)
        several = isinstance(node.meta.get("val"), list | tuple)
        if several and not isinstance(result, list):
            return [result] * len(op.shapes)
        return result

    def _handled(self, node: fx.Node, op: Op) -> Result:
        target = _qualified(node)
        if target == BOUNDARY:
            return op.embed(self._traced.leaves[op["key"]], op.maps)
        own = of_operator(target)
        try:
            if own is not None:
                return op.embed(block(target, own(_call(target, op)), len(op.maps)), op.maps)
            if node in self._partial:
                refuse(
                    "writes into a part of a tensor that is read again; build the tensor with "
                    "cat, stack or pad instead"
                )
            handler = HANDLERS.get(op.type) if target.startswith(_NAMESPACES) else None
            if handler is None:
                refuse("is unknown to fastrf")
            result = handler(op)
            _check_shapes(op, result, handler in BROADCASTING)
            return result
        except FastrfError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            if own is not None:
                raise
            refuse(f"is called in a way that fastrf does not read ({error!r})")

    def _otherwise(self, op: Op, node: fx.Node, reason: str) -> Result:
        policy = self._unknown
        behind = any(x.axes is None for x in op.maps)
        if node in self._partial:
            # What lies beside the part is read too: it must be constant or read everything as well.
            part = op.get("self")
            alone = not isinstance(part, Map) or part.axes is None
            behind, policy = alone and (behind or policy == "global"), "error"
        if behind:
            # Behind attention every element reads everything, whatever moves or mixes them.
            return op.attend(op.maps)
        try:
            return by_policy(op, policy, reason)
        except UnsupportedOperator as error:
            raise UnsupportedOperator(
                f"{self._source}: {_qualified(node)} ({op.name!r}, {op.where}) {line(error)}; "
                f"say what it does with fastrf.importers.register, {WAYS_OUT}"
            ) from None


def _call(target: str, op: Op) -> Call:
    plain = {
        name: value
        for name, value in op.arguments.items()
        if not any(isinstance(v, Map | Const) for v in _values([value]))
    }
    shapes = tuple(v.dims if isinstance(v, Map) else v.shape for v in op.inputs if v is not None)
    return Call(target, shapes, op.shape, plain)


def _check_shapes(op: Op, result: Result, broadcasting: bool) -> None:
    """What a handler made has the shape that PyTorch gave it; axes of size 1 may be broadcast."""
    values = result if isinstance(result, list) else [result] * len(op.shapes)
    for value, shape in zip(values, op.shapes, strict=False):
        if not isinstance(value, Map) or value.dims is None or shape is None:
            continue
        if len(value.dims) != len(shape) or any(
            m not in (n, None) and not (m == 1 and broadcasting)
            for m, n in zip(value.dims, shape, strict=True)
        ):
            refuse(f"is followed as a tensor of shape {value.dims}, and has the shape {shape}")


# --- reading the graph ----------------------------------------------------------------------


_NAMESPACES = ("aten::", "quantized_decomposed::")
"""Those of the operators that `HANDLERS` knows."""

_COPIES = frozenset(("lift_fresh_copy", "detach", "clone", "alias", "to", "_to_copy"))
"""Operators behind which a constant is what it was."""

_COUNTING = frozenset(
    (
        "arange", "linspace", "to", "_to_copy", "floor", "ceil", "round", "trunc", "add", "sub",
        "rsub", "mul", "div", "remainder", "clamp", "flip", "roll", "cat", "stack", "repeat",
        "repeat_interleave", "slice", "select", "view", "reshape", "flatten",
    )
)  # fmt: skip
"""Operators that modules compute indices with."""

_VIEWS = frozenset(
    (
        "slice", "select", "narrow", "view", "reshape", "_unsafe_view", "transpose", "permute",
        "squeeze", "unsqueeze", "expand", "unbind", "split", "chunk", "alias", "detach", "diagonal",
        "flatten", "unflatten", "movedim", "t", "numpy_T",
    )
)  # fmt: skip
"""Operators whose result shares memory with what they read."""


def _changed(node: fx.Node) -> fx.Node | None:
    """The node whose tensor an operator writes into, if it does."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable or not node.args:
        return None
    first: Any = node.args[0]
    return first if getattr(first, "all_input_nodes", None) is not None else None


def _base(node: fx.Node) -> fx.Node:
    """The node whose memory a view shows."""
    while operator_name(node) in _VIEWS and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node


def _write_whole(base: fx.Node, written: Any, values: dict[fx.Node, Any]) -> None:
    """Tells all that shows the memory of `base` that a part of it was written."""
    if isinstance(written, Map):
        for node in list(values):
            if _base(node) is base:
                values[node] = replace(written, shape=_shape(node.meta["val"]))


def _is_read_beside(view: fx.Node, needed: set[fx.Node]) -> bool:
    """Whether the memory that a view shows is needed in another way, too."""
    base = _base(view)
    return base is not view and any(n is not view and _base(n) is base for n in needed)


def _needed(graph: fx.Graph, returned: Sequence[fx.Node]) -> tuple[set[fx.Node], set[fx.Node]]:
    """The nodes that the nodes `returned` depend on (writing into one of them counts too), and
    those among them that write into a part of a tensor which is read later as a whole."""
    needed, partial = set(returned), set()
    for node in reversed(graph.nodes):
        changed = _changed(node)
        if changed is not None and _is_read_beside(changed, needed):
            partial.add(node)
            needed.add(node)
        if changed in needed:
            needed.add(node)
        if node in needed:
            needed.update(node.all_input_nodes)
    return needed, partial


def _body(node: fx.Node) -> fx.GraphModule | None:
    """The graph that a higher-order operator runs once, whatever the data are."""
    kind = str(getattr(node.target, "__name__", node.target))
    if "wrap_with" not in kind and "checkpoint" not in kind:
        return None
    for argument in node.args:
        if getattr(argument, "op", "") == "get_attr":
            owner: Any = node.graph.owning_module
            for part in str(getattr(argument, "target", "")).split("."):
                owner = getattr(owner, part)
            found: fx.GraphModule = owner
            return found
    return None


def _arguments(node: fx.Node, values: Mapping[fx.Node, Any]) -> dict[str, Any]:
    """The arguments of a call by name (by number where the operator has no schema)."""
    schema = getattr(node.target, "_schema", None)
    given = [_read(argument, values) for argument in node.args]
    if schema is None:
        return {str(i): value for i, value in enumerate(given)}
    found: dict[str, Any] = {}
    for i, argument in enumerate(schema.arguments):
        if i < len(given):
            found[argument.name] = given[i]
        elif argument.name in node.kwargs:
            found[argument.name] = _read(node.kwargs[argument.name], values)
        else:
            found[argument.name] = argument.default_value
    return found


def _read(argument: Any, values: Mapping[fx.Node, Any]) -> Any:
    """An argument with values in the place of nodes."""
    if isinstance(argument, list | tuple):
        return [_read(a, values) for a in argument]
    if hasattr(argument, "all_input_nodes"):
        found = values.get(argument)
        return _constants(argument.meta.get("val")) if found is None else found
    return argument


def _values(arguments: Any) -> Iterator[Any]:
    for value in arguments:
        if isinstance(value, list | tuple):
            yield from _values(value)
        else:
            yield value


def _qualified(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return operator_name(node) if schema is None else _in_place_free(schema.name)


def _in_place_free(name: str) -> str:
    space, _, own = name.rpartition("::")
    return f"{space}::{own.rstrip('_') or own}" if not own.startswith("__") else name


def _shape(value: Any) -> Shape | None:
    """The shape of a traced tensor, None for sizes that depend on data."""
    shape = getattr(value, "shape", None)
    if shape is None:
        return None
    return tuple(n if isinstance(n, int) else None for n in shape)


def _shapes(value: Any) -> list[Shape | None]:
    return [_shape(v) for v in value] if isinstance(value, list | tuple) else [_shape(value)]


def _constants(value: Any) -> Any:
    """What no input map reaches: a tensor's shape, or a number."""
    if isinstance(value, list | tuple):
        return [_constants(v) for v in value]
    shape = _shape(value)
    return value if shape is None else Const(shape)


def _constant(tensor: Tensor, trained: bool) -> Const:
    """A parameter (its shape; where `trained`, its values too) or a buffer (with its values, where
    it has some, and is small or `trained`)."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensor

    learned = isinstance(tensor, torch.nn.Parameter)
    fake = isinstance(tensor, FakeTensor) or tensor.device.type == "meta"
    if fake or (not trained and (learned or tensor.numel() > KEPT)):
        return Const(tuple(tensor.shape))
    return _known(tensor, learned)


def _known(tensor: Tensor, learned: bool) -> Const:
    """A tensor with its values; NumPy has no bfloat16."""
    import torch

    own = tensor.detach().cpu()
    own = own.float() if own.dtype == torch.bfloat16 else own
    return Const(tuple(own.shape), own.numpy(), learned)


def _counts(node: fx.Node) -> bool:
    """Whether an operator makes a few numbers that may become indices."""
    shape = _shape(node.meta.get("val"))
    few = shape is not None and len(shape) == 1 and shape[0] is not None and shape[0] <= KEPT
    return few and operator_name(node) in _COUNTING


def _computed(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """What an operator makes of constants whose values are known (weights that are standardised,
    say); None where some are not, or it cannot be run."""
    import torch

    learned = False

    def given(argument: Any) -> Any:
        nonlocal learned
        if isinstance(argument, list | tuple):
            return [given(a) for a in argument]
        if not hasattr(argument, "all_input_nodes"):
            return argument
        value = values.get(argument)
        if not isinstance(value, Const):
            return given(value) if isinstance(value, list | tuple) else value
        if value.array is None:
            raise LookupError
        learned |= value.learned
        return torch.from_numpy(np.ascontiguousarray(value.array))

    def kept(result: Any) -> Any:
        if isinstance(result, list | tuple):
            return [kept(r) for r in result]
        return _known(result, learned) if isinstance(result, torch.Tensor) else result

    if not callable(node.target):
        return None
    try:
        with torch.no_grad():
            arguments = [given(a) for a in node.args]
            return kept(node.target(*arguments, **{k: given(v) for k, v in node.kwargs.items()}))
    except (LookupError, RuntimeError, TypeError, ValueError):
        return None


def _where(node: fx.Node) -> str:
    """The line of the user's code that a node comes from."""
    text = node.meta.get("stack_trace") or ""
    frames = [
        traceback.FrameSummary(file, int(number), name, line=code.strip())
        for file, number, name, code in re.findall(
            r'File "([^"]+)", line (\d+), in (\S+)\n(.*)', text
        )
    ]
    return place(frames)
