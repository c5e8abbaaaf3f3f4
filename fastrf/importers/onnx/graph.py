"""The graph of a model as the walk needs it: inputs, shapes, order, names, who reads what."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Literal

from fastrf.errors import InputError
from fastrf.importers.failing import fail
from fastrf.importers.layout import Map, Shape, input_map
from fastrf.importers.onnx.branches import captured, is_choice, spliced, subgraphs
from fastrf.importers.onnx.reading import (
    MOST_NODES,
    WEIGHT,
    add_hollow,
    array,
    constant_tensor,
    emptied,
)

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

Layout = Literal["channels_first", "channels_last"]
"""Where the channels of inputs are: (N, C, spatial…) or (N, spatial…, C)."""

_WINDOWS = frozenset(
    (
        "Conv", "ConvInteger", "QLinearConv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool",
        "STFT",
    )
)  # fmt: skip
"""Operators that read a neighbourhood, which tell maps from other inputs."""

_RECURRENT = ("LSTM", "GRU", "RNN")

_KEEPING = frozenset(
    (
        "Identity", "Cast", "Sub", "Add", "Mul", "Div", "Neg", "Pow", "Sqrt", "Clip", "Min", "Max",
        "Pad", "Slice", "Split", "Concat",
    )
)  # fmt: skip
"""Operators that come before a transpose and leave the axes where they are."""


def reads(node: NodeProto) -> list[str]:
    """The tensors that a node and the graphs in its attributes read."""
    return [*filter(None, node.input), *captured(node)]


def dims(value: ValueInfoProto) -> Shape | None:
    """The shape of a value, None where the model does not state it."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim)


class Graph:
    """The graph of a model without weights, which shape inference completes in place.

    Args:
        model: a model that `reading.light` made.
        source: what messages call it.
        input_size: pixels per axis, for inputs whose size the model leaves open.
        layout: of the inputs; None: what the graph makes of them tells.
    """

    def __init__(
        self,
        model: ModelProto,
        source: str,
        input_size: int | Sequence[int] | None = None,
        layout: Layout | None = None,
    ) -> None:
        self.model = model
        self.source = source
        self.input_size = input_size
        self.layout = layout
        self._inlined = 0
        versions = {o.domain: o.version for o in model.opset_import}
        self._put_in_order()
        self.version: int = versions.get("", versions.get("ai.onnx", 1))
        self.ndim = self._ndim()
        self._fix_sizes()

    def _put_in_order(self) -> None:
        """Puts nodes behind those that they read, as ONNX has them; some converters append theirs.

        Nodes in a circle stay where they are.
        """
        nodes = list(self.model.graph.node)
        writers = {name: i for i, node in enumerate(nodes) for name in node.output if name}
        needs = [{writers[name] for name in reads(node) if name in writers} for node in nodes]
        if all(max(need, default=-1) < i for i, need in enumerate(needs)):
            return
        readers: dict[int, list[int]] = {}
        for i, need in enumerate(needs):
            for writer in need:
                readers.setdefault(writer, []).append(i)
        ready = [i for i, need in enumerate(needs) if not need]
        order: list[int] = []
        while ready:
            order.append(heapq.heappop(ready))
            for reader in readers.get(order[-1], ()):
                needs[reader].discard(order[-1])
                if not needs[reader]:
                    heapq.heappush(ready, reader)
        order += sorted(set(range(len(nodes))) - set(order))
        del self.model.graph.node[:]
        self.model.graph.node.extend(nodes[i] for i in order)

    # --- inputs

    @cached_property
    def inputs(self) -> list[ValueInfoProto]:
        """The inputs with a batch, channels and one to three spatial axes; where there are none,
        those with a batch and one axis, which are signals.

        Inputs of another number of axes than those that windows slide over are states, masks or
        sequences beside them.
        """
        graph = self.model.graph
        constant = {t.name for t in graph.initializer}
        constant |= {p.value for p in graph.metadata_props if p.key == WEIGHT}
        given = [i for i in graph.input if i.name not in constant]
        maps = [i for i in given if len(dims(i) or ()) in (3, 4, 5)]
        signals = [i for i in given if len(dims(i) or ()) == 2]
        slid = self._slid_over([*maps, *signals])
        for group in (maps, signals):
            ranks = {len(dims(i) or ()) for i in group if i.name in slid}
            if ranks:
                return [i for i in group if len(dims(i) or ()) in ranks]
        return maps or signals

    def _slid_over(self, inputs: Sequence[ValueInfoProto]) -> set[str]:
        """The inputs that windows read: not those that only come along with others in the end (a
        state that is mixed with features), nor the states of recurrent layers."""
        origins = {value.name: frozenset([value.name]) for value in inputs}
        found: set[frozenset[str]] = set()

        def of(names: Iterable[str]) -> frozenset[str]:
            own = [origins[name] for name in names if name in origins]
            return own[0] if len(own) == 1 else frozenset().union(*own)

        def follow(nodes: Iterable[NodeProto]) -> None:
            for node in nodes:
                inner = list(subgraphs(node))
                for graph in inner:
                    follow(graph.node)
                if is_choice(node):
                    # A state that a branch alone reads is a state behind it, too.
                    parts = [[o.name for o in graph.output] for graph in inner]
                    results = [of(names) for names in zip(*parts, strict=False)]
                else:
                    first = node.op_type in _RECURRENT
                    results = [of(node.input[:1] if first else reads(node))] * len(node.output)
                if node.op_type in _WINDOWS:
                    found.add(of(node.input[:1]))
                origins.update(zip(node.output, results, strict=False))

        follow(self.model.graph.node)
        found.discard(frozenset())
        least = [own for own in found if not any(other < own for other in found)]
        return set().union(*least)

    def _ndim(self) -> int:
        ranks = {i.name: max(len(dims(i) or ()) - 2, 1) for i in self.inputs}
        if not ranks:
            listed = ", ".join(f"{i.name} {dims(i)}" for i in self.model.graph.input[:3])
            fail(
                self.source,
                f"no input is a map of shape (N, C, spatial…) or a signal (N, T), there are: "
                f"{listed or 'none'}; "
                f"export the model with the shape of its image input",
            )
        if len(ranks) < len(self.inputs):
            fail(self.source, f"inputs of the same name among {sorted(ranks)}; export it again")
        if len(set(ranks.values())) > 1:
            fail(
                self.source,
                f"windows slide over the inputs {ranks}, which have different numbers of spatial "
                f"axes; cut out the part "
                f"with one kind of map with onnx.utils.extract_model",
            )
        return next(iter(ranks.values()))

    @cached_property
    def input_maps(self) -> dict[str, Map]:
        return {value.name: self._input_map(value) for value in self.inputs}

    def _fix_sizes(self) -> None:
        """States the sizes of the maps, and of other inputs where they go by the same name."""
        named: dict[str, int] = {}
        for value in self.inputs:
            # An open batch size counts as 1; shapes stated elsewhere would contradict it.
            own = self.input_maps[value.name].dims or ()
            for dim, count in zip(value.type.tensor_type.shape.dim, own, strict=True):
                if count is not None:
                    named.setdefault(dim.dim_param, count)
                    dim.dim_value = count
        named.pop("", None)
        for value in self.model.graph.input:
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param in named:
                    dim.dim_value = named[dim.dim_param]

    def _input_map(self, value: ValueInfoProto) -> Map:
        """The map of a graph input, channels first or, where a transpose says so, last."""
        shape = list(dims(value) or ())
        told = self.layout is None and self._channels_last(value)
        last = len(shape) > 2 and (told or self.layout == "channels_last")
        first = 1 if last or len(shape) == 2 else 2
        axes = range(first, first + self.ndim)
        if self.input_size is not None:
            given = self.input_size
            wanted = list(given) if isinstance(given, Sequence) else [given] * self.ndim
            if len(wanted) != self.ndim or not all(type(n) is int and n > 0 for n in wanted):
                raise InputError(
                    f"input_size={given!r} must be a whole number of at least 1, "
                    f"or {self.ndim} of them"
                )
            for axis, pixels in zip(axes, wanted, strict=True):
                if shape[axis] not in (None, pixels):
                    raise InputError(
                        f"input_size={given!r} does not fit the input {value.name!r} of shape "
                        f"{tuple(shape)}; leave it out where the model fixes the size, or give "
                        f"one number per axis where it fixes some"
                    )
                shape[axis] = pixels
        return input_map(value.name, (shape[0] or 1, *shape[1:]), channels_last=last)

    def _channels_last(self, value: ValueInfoProto) -> bool:
        """Whether all that reads an input first moves its last axis to the channels' place."""
        to_first = [0, self.ndim + 1, *range(1, self.ndim + 1)]
        followed, found = {value.name}, False
        for node in self.model.graph.node:
            if not followed.intersection(reads(node)):
                continue
            if node.op_type == "Transpose":
                perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
                if perm != to_first:
                    return False
                found = True
            elif node.op_type == "Reshape" and self._turns_gray(value, node):
                found = True
            elif node.op_type in _KEEPING:
                followed.update(node.output)
            elif node.op_type not in ("Shape", "Size"):
                return False
        return found

    def _turns_gray(self, value: ValueInfoProto, node: NodeProto) -> bool:
        """Whether a reshape moves the one channel of an input from its last axis to the first."""
        shape = dims(value) or ()
        constants = {t.name: t for t in self.model.graph.initializer}
        for other in self.model.graph.node:
            tensor = constant_tensor(other)
            if tensor is not None:
                constants[other.output[0]] = tensor
        target = constants.get(node.input[1]) if len(node.input) > 1 else None
        sizes = None if target is None else array(target)
        if sizes is None or shape[-1:] != (1,) or shape[1:2] == (1,):
            return False
        wanted = (shape[0], 1, *shape[1:-1])
        return len(wanted) == sizes.size and all(
            n in (m, -1) for n, m in zip(sizes.ravel().tolist(), wanted, strict=True)
        )

    # --- tensors

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of all tensors that ONNX can infer, from the sizes of the inputs."""
        from onnx import shape_inference

        graph = self.model.graph
        del graph.value_info[:]
        for out in graph.output:
            out.type.tensor_type.ClearField("shape")
        try:
            # Without data_prop: it runs for hours on a slice of 2^63 steps, and `folding` knows
            # more.
            inferred = shape_inference.infer_shapes(self.model).graph
        except (shape_inference.InferenceError, ValueError, RuntimeError, TypeError) as error:
            fail(self.source, f"ONNX cannot infer its shapes: {error}; check the model")
        found = {value.name: dims(value) for value in (*inferred.value_info, *inferred.output)}
        return {name: shape for name, shape in found.items() if shape is not None}

    @cached_property
    def _moving(self) -> set[str]:
        """The tensors that depend on the values of an input map."""
        moving = {value.name for value in self.inputs}
        for node in self.model.graph.node:
            if node.op_type not in ("Shape", "Size") and moving.intersection(reads(node)):
                moving.update(filter(None, node.output))
        return moving

    def _is_pixel(self, tensor: str) -> bool:
        """Whether a tensor is a map of one pixel."""
        return tensor in self._moving and self.shapes.get(tensor, ())[2:] == (1,) * self.ndim

    def joins_pixels(self, tensor: str) -> bool:
        """Whether a map of one pixel is joined with another of them that does not come from it."""
        behind = {tensor}
        for node in self.model.graph.node:
            read = set(reads(node))
            if not behind & read:
                continue
            if any(self._is_pixel(other) for other in read - behind):
                return True
            behind.update(filter(self._is_pixel, node.output))
        return False

    # --- nodes

    def needed(self) -> list[NodeProto]:
        """The nodes that the graph's outputs depend on, in order."""
        needed = {out.name for out in self.model.graph.output}
        kept = []
        for proto in reversed(self.model.graph.node):
            if needed.intersection(filter(None, proto.output)):
                kept.append(proto)
                needed.update(reads(proto))
        return kept[::-1]

    def origins(self, tensor: str) -> tuple[list[str], list[str]]:
        """The inputs whose values a tensor depends on, and those of which the sizes alone count."""
        writers = {name: node for node in self.model.graph.node for name in node.output}
        seen: set[tuple[str, bool]] = set()
        waiting = [(tensor, True)]
        while waiting:
            name, by_value = waiting.pop()
            if (name, by_value) not in seen:
                seen.add((name, by_value))
                node = writers.get(name)
                if node is not None:
                    by_value &= node.op_type not in ("Shape", "Size")
                    waiting.extend((read, by_value) for read in reads(node))
        hollow = {p.value for p in self.model.graph.metadata_props if p.key == WEIGHT}
        given = {t.name for t in self.model.graph.initializer} | hollow
        names = [i.name for i in self.model.graph.input if i.name not in given]
        values = [name for name in names if (name, True) in seen]
        return values, [n for n in names if (n, False) in seen and n not in values]

    def inline(self, node: NodeProto, branch: GraphProto) -> GraphProto:
        """Puts a branch in the place of its If; returns it with the names that it has then."""
        graph = self.model.graph
        self._inlined += len(graph.node)
        if self._inlined > MOST_NODES:
            fail(
                self.source,
                f"decides one condition after another in a graph of {len(graph.node)} nodes; "
                f"simplify the model with onnxsim before",
            )
        taken = {t.name for t in (*graph.initializer, *graph.input)}
        taken |= {name for n in graph.node for name in n.output}
        part = spliced(node, branch, taken)
        tensors, nodes, hollow = emptied(part)
        place = next(i for i, n in enumerate(graph.node) if n.output == node.output)
        kept = [*graph.node[:place], *nodes, *graph.node[place + 1 :]]
        whole = [type(n).FromString(n.SerializeToString()) for n in kept]
        del graph.node[:]
        graph.node.extend(whole)
        graph.initializer.extend(tensors)
        add_hollow(graph, hollow)
        for found in ("shapes", "_moving"):
            self.__dict__.pop(found, None)
        return part

    def node_names(self) -> dict[str, str]:
        """A name per node, by its first output: the node's own, else that of the output."""
        graph = self.model.graph
        counts = Counter(n.name for n in graph.node)
        given = {tensor.name for tensor in (*graph.initializer, *graph.input)}
        taken = set(self.input_maps)
        names: dict[str, str] = {}
        for node in graph.node:
            first = next(filter(None, node.output), None)
            if first is None:
                continue
            if first in names or first in given:
                fail(self.source, f"the tensor {first!r} is written twice; export the model again")
            choices = [node.name] if node.name and counts[node.name] == 1 else []
            numbered = (f"{first}.{i}" for i in itertools.count(2))
            free = (n for n in itertools.chain(choices, [first], numbered) if n not in taken)
            names[first] = next(free)
            taken.add(names[first])
        return names
