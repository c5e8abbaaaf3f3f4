"""The graph of a model as the walk needs it: inputs, shapes, order, names, who reads what."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from fastrf.errors import InputError
from fastrf.importers.failing import fail
from fastrf.importers.layout import Map, Shape, input_map
from fastrf.importers.onnx.reading import WEIGHT

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, ValueInfoProto


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
    """

    def __init__(
        self, model: ModelProto, source: str, input_size: int | Sequence[int] | None = None
    ) -> None:
        self.model = model
        self.source = source
        self.input_size = input_size
        versions = {o.domain: o.version for o in model.opset_import}
        self.version: int = versions.get("", versions.get("ai.onnx", 1))
        self.ndim = self._ndim()

    # --- inputs

    @cached_property
    def inputs(self) -> list[ValueInfoProto]:
        """The inputs with a batch, channels and one to three spatial axes; where there are none,
        those with a batch and one axis, which are signals."""
        graph = self.model.graph
        constant = {t.name for t in graph.initializer}
        constant |= {p.value for p in graph.metadata_props if p.key == WEIGHT}
        given = [i for i in graph.input if i.name not in constant]
        maps = [i for i in given if len(dims(i) or ()) in (3, 4, 5)]
        return maps or [i for i in given if len(dims(i) or ()) == 2]

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
                f"the inputs {ranks} have different numbers of spatial axes; cut out the part "
                f"with one kind of map with onnx.utils.extract_model",
            )
        return next(iter(ranks.values()))

    @cached_property
    def input_maps(self) -> dict[str, Map]:
        return {value.name: self._input_map(value) for value in self.inputs}

    def _input_map(self, value: ValueInfoProto) -> Map:
        """The map of a graph input, channels first or, where a transpose says so, last."""
        shape = list(dims(value) or ())
        last = self._channels_last(value.name)
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
                        f"{tuple(shape)}; leave it out where the model fixes the size"
                    )
                shape[axis] = pixels
        return input_map(value.name, (shape[0] or 1, *shape[1:]), channels_last=last)

    def _channels_last(self, name: str) -> bool:
        """Whether all that reads an input first moves its last axis to the channels' place."""
        to_first = [0, self.ndim + 1, *range(1, self.ndim + 1)]
        followed, found = {name}, False
        for node in self.model.graph.node:
            if not followed.intersection(node.input):
                continue
            if node.op_type == "Transpose":
                perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
                if perm != to_first:
                    return False
                found = True
            elif node.op_type in ("Identity", "Cast", "Sub", "Add", "Mul", "Div"):
                followed.update(node.output)
            else:
                return False
        return found

    # --- tensors

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """Shapes of all tensors that ONNX can infer, from the sizes of the inputs."""
        from onnx import shape_inference

        graph = self.model.graph
        for value in self.inputs:
            # An open batch size counts as 1; shapes stated elsewhere would contradict it.
            own = self.input_maps[value.name].dims or ()
            for dim, count in zip(value.type.tensor_type.shape.dim, own, strict=True):
                if count is not None:
                    dim.dim_value = count
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
            if node.op_type not in ("Shape", "Size") and moving.intersection(node.input):
                moving.update(filter(None, node.output))
        return moving

    def _is_pixel(self, tensor: str) -> bool:
        """Whether a tensor is a map of one pixel."""
        return tensor in self._moving and self.shapes.get(tensor, ())[2:] == (1,) * self.ndim

    def joins_pixels(self, tensor: str) -> bool:
        """Whether a map of one pixel is joined with another of them that does not come from it."""
        behind = {tensor}
        for node in self.model.graph.node:
            if not behind.intersection(node.input):
                continue
            if any(self._is_pixel(other) for other in set(node.input) - behind):
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
                needed.update(proto.input)
        return kept[::-1]

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
