"""ONNX models as networks.

Only the graph is read: weights are neither needed nor opened, external data least of all. Every
tensor that depends on an input map is followed as a `_Map`, which says what the digits of the
tensor's indices mean (batch, channel, position). Reshapes and transposes move digits, so NHWC
graphs, ShuffleNet's shuffle, pixel shuffles and token layouts are recognised by what they do and
not by the pattern of nodes they are written with. Everything else is a constant, kept as its
shape and, where it is small, its value, from which sizes, axes and pads are worked out.

Imported networks count as initialised to keep the variance: activations have gain 1. Norm-like
pooling (LpPool, ReduceL1, ReduceL2) hands each of its k taps 1/k like max-pooling: for p = 2 the
gradient is x/‖x‖, whose squares sum to 1.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args

import numpy as np
from numpy.typing import NDArray

from fastrf.errors import (
    FastrfError,
    InputError,
    MissingExtra,
    NetworkFileError,
    UnsupportedOperator,
)
from fastrf.layers import (
    Activation,
    Add,
    Attention,
    AvgPool,
    ChannelShuffle,
    ChannelSlice,
    Concat,
    Conv,
    ConvTranspose,
    Crop,
    Dropout,
    FullyConnected,
    GlobalPool,
    Identity,
    Input,
    Layer,
    MaxPool,
    Multiply,
    Norm,
    Pad,
    PixelShuffle,
    PixelUnshuffle,
    Upsample,
)
from fastrf.network import Network, Node

if TYPE_CHECKING:
    from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

Policy = Literal["error", "identity", "global"]
Shape = tuple[int | None, ...]

MAX_BYTES = 2**31 - 1
"""Largest model file: a protocol-buffer message cannot be longer."""

SMALL = 4096
"""Constants of up to so many elements keep their values; of larger ones only the shape is kept."""


# --- the public functions -------------------------------------------------------------------


def from_onnx(
    model: str | os.PathLike[str] | bytes | ModelProto,
    *,
    unknown: Policy = "error",
    input_size: int | Sequence[int] | None = None,
    name: str | None = None,
) -> Network:
    """The network of an ONNX model.

    Args:
        model: a ``.onnx`` file, its bytes, or a loaded ``onnx.ModelProto`` (left as it is).
        unknown: what an operator that fastrf cannot express becomes: "error" raises; "identity"
            passes every pixel on; "global" lets each output read every input.
        input_size: pixels per axis, for inputs whose size the model leaves open; needed only
            where the graph computes with that size.
        name: the network's name; default: the file's name or the graph's.

    Returns:
        A network whose nodes are called like the ONNX nodes (like their output where a node has
        no name of its own). Tensors that the graph returns under another name are end points.
        A batch size that is left open counts as 1.

    Raises:
        NetworkFileError: the file cannot be read, is no ONNX model, or has no spatial input.
        UnsupportedOperator: an operator that fastrf cannot express, with ``unknown="error"``.
        InputError: `unknown` or `input_size` is out of range.
        MissingExtra: the package ``onnx`` is not installed.
    """
    if unknown not in get_args(Policy):
        raise InputError(
            f"unknown={unknown!r} is not a policy; choose one of {', '.join(get_args(Policy))}"
        )
    source, proto = _open(model)
    with _readable(source):
        if name is None:
            by_file = isinstance(model, str | os.PathLike)
            name = Path(source).stem if by_file else _line(proto.graph.name) or None
        return _Importer(_light(proto, source), source, unknown, input_size).network(name)


def input_sizes(
    model: str | os.PathLike[str] | bytes | ModelProto,
) -> dict[str, tuple[int, ...] | None]:
    """Pixels per axis of every spatial input of an ONNX model, None where the model leaves it open.

    Raises: as `from_onnx`.
    """
    source, proto = _open(model)
    with _readable(source):
        importer = _Importer(_light(proto, source), source, "error", None)
        extents = {v.name: importer.input_map(v).extent[1:] for v in importer.spatial_inputs()}
    sizes: dict[str, tuple[int, ...] | None] = {}
    for name, extent in extents.items():
        known = tuple(n for n in extent if n is not None)
        sizes[name] = known if len(known) == len(extent) else None
    return sizes


# --- reading the file -----------------------------------------------------------------------


def _line(text: object) -> str:
    """Text on one line and of a bearable length."""
    line = " ".join(str(text).split())
    return line if len(line) <= 300 else line[:299] + "…"


def _fail(source: str, message: str) -> NoReturn:
    raise NetworkFileError(f"{source}: {_line(message)}") from None


@contextmanager
def _readable(source: str) -> Iterator[None]:
    """Protocol buffers check the text in a message no sooner than it is read."""
    try:
        yield
    except UnicodeDecodeError:
        _fail(source, "holds text that is not UTF-8; export or copy it again")


def _open(model: Any) -> tuple[str, ModelProto]:
    """What messages call the model, and the model."""
    try:
        import onnx
    except ImportError:
        raise MissingExtra(
            'reading ONNX models needs the package onnx; pip install "fastrf[onnx]"'
        ) from None
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if isinstance(model, onnx.ModelProto):
        return "model", model
    if isinstance(model, str | os.PathLike):
        source = _line(os.fspath(model))
        data = _read(Path(model), source)
    elif isinstance(model, bytes | bytearray | memoryview):
        source, data = "model", bytes(model)
    else:
        raise InputError(
            f"{type(model).__name__} is no ONNX model; give a path, bytes or an onnx.ModelProto"
        )
    if len(data) > MAX_BYTES:
        _fail(source, f"is larger than {MAX_BYTES} bytes; save its weights as external data")
    try:
        # Parsed from memory: no external data can be opened this way.
        proto = onnx.ModelProto.FromString(data)
    except (DecodeError, ValueError, TypeError):
        _fail(source, "is no ONNX model, or cut short; export or copy it again")
    if not proto.opset_import or not proto.graph.node:
        _fail(source, "holds no graph; it is no ONNX model, or cut short: export or copy it again")
    return source, proto


def _read(path: Path, source: str) -> bytes:
    try:
        if path.exists() and not path.is_file():
            _fail(source, "is no regular file; give a .onnx file")
        if path.stat().st_size > MAX_BYTES:
            _fail(source, f"is larger than {MAX_BYTES} bytes; save its weights as external data")
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        _fail(source, f"cannot be read: {reason}; check the path")


def _light(model: ModelProto, source: str) -> ModelProto:
    """A copy without weights: large or external constants become inputs of the same shape.

    Shape inference serialises its model, so weights would cost time and could exceed 2 GiB.
    """
    import onnx
    from onnx import helper

    light = onnx.ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    weights = [t for t in model.graph.initializer if not _is_small(t)]
    sparse = [(t.values.name, t.values.data_type, t.dims) for t in model.graph.sparse_initializer]
    hollow = [(t.name, t.data_type, t.dims) for t in weights] + sparse
    graph.initializer.extend(t for t in model.graph.initializer if _is_small(t))
    for node in model.graph.node:
        tensor = _constant_tensor(node)
        if tensor is None or _is_small(tensor):
            graph.node.append(node)
        else:
            hollow.append((node.output[0], tensor.data_type, tensor.dims))
    given = {name for name, _, _ in hollow}
    graph.input.extend(i for i in model.graph.input if i.name not in given)
    graph.input.extend(helper.make_tensor_value_info(*parts) for parts in hollow)
    for name in sorted(given):
        graph.metadata_props.add(key=_WEIGHT, value=name)
    if not light.functions:
        return light
    from onnx import inliner

    try:
        inlined: ModelProto = inliner.inline_local_functions(light)
    except (RuntimeError, ValueError) as error:
        _fail(source, f"its local functions cannot be inlined: {error}; inline them before")
    if not inlined.graph.metadata_props:
        inlined.graph.metadata_props.extend(graph.metadata_props)
    return inlined


_WEIGHT = "fastrf.weight"
"""Key under which `_light` lists the inputs that stand for constants."""


def _constant_tensor(node: NodeProto) -> TensorProto | None:
    if node.op_type != "Constant" or node.domain not in _STANDARD:
        return None
    return next((a.t for a in node.attribute if a.name == "value"), None)


def _is_small(tensor: TensorProto) -> bool:
    return not _is_external(tensor) and math.prod(tensor.dims) <= SMALL


def _is_external(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == tensor.EXTERNAL)


def _array(tensor: TensorProto) -> NDArray[Any] | None:
    """The values of a small tensor; None where they are stored elsewhere or malformed."""
    from onnx import numpy_helper

    if not _is_small(tensor):
        return None
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError):
        return None


# --- values ---------------------------------------------------------------------------------

BATCH, CHANNEL = -1, 0
"""Labels of digits; the spatial axes are 1, 2, 3."""

_STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, slots=True)
class _Digit:
    """A digit of the index along the batch, the channels or a spatial axis.

    The index is Σ digit·step over the digits of its label. A size that is not known is None;
    digits of size 1 are left out.
    """

    label: int
    size: int | None
    step: int = 1


_Axis = tuple[_Digit, ...]


@dataclass(frozen=True)
class _Map:
    """A tensor that depends on an input map.

    Attributes:
        node: the fastrf node that computes it.
        extent: channels, then pixels per spatial axis, of that node's map.
        axes: the digits of every axis of the tensor, the slowest first; None behind attention,
            where each element reads every position and only `shape` is known.
        batch: size of the batch.
    """

    node: str
    extent: Shape
    axes: tuple[_Axis, ...] | None
    batch: int | None = 1
    shape: Shape | None = None

    @property
    def dims(self) -> Shape | None:
        """The tensor's shape."""
        return self.shape if self.axes is None else tuple(_size(axis) for axis in self.axes)

    @property
    def pixels(self) -> Shape:
        return self.extent[1:]

    def whole(self, label: int) -> _Axis:
        """The complete index of a label as one axis."""
        size = self.batch if label == BATCH else self.extent[label]
        return () if size == 1 else (_Digit(label, size),)

    @property
    def standard(self) -> tuple[_Axis, ...]:
        """(N, C, spatial…)."""
        return tuple(self.whole(label) for label in range(BATCH, len(self.extent)))

    @property
    def is_standard(self) -> bool:
        """Whether the tensor is the node's map as it stands; how the batch is cut is no matter."""
        return (
            self.axes is not None
            and self.axes[1:] == self.standard[1:]
            and all(d.label == BATCH for d in self.axes[0])
        )

    def holds(self, digits: _Axis, label: int) -> bool:
        """Whether digits make up the complete index of a label, in any order."""
        own = sorted((d for d in digits if d.label == label), key=lambda d: -d.step)
        return _join(own) == self.whole(label)

    def holds_grid(self, digits: _Axis) -> bool:
        """Whether digits make up the complete position."""
        return all(self.holds(digits, label) for label in range(1, len(self.extent)))


@dataclass(frozen=True, slots=True)
class _Const:
    """A tensor that no input map reaches: its shape and, where small and known, its value."""

    shape: Shape | None
    array: NDArray[Any] | None = None


_Value = _Map | _Const


def _size(digits: Sequence[_Digit]) -> int | None:
    sizes = [d.size for d in digits]
    return None if None in sizes else math.prod(s for s in sizes if s is not None)


def _join(digits: Sequence[_Digit]) -> _Axis:
    """Neighbouring digits that count on from each other as one, without those of size 1."""
    result: list[_Digit] = []
    for digit in digits:
        if digit.size == 1:
            continue
        last = result[-1] if result else digit
        if (
            last.size is not None
            and digit.size is not None
            and last.label == digit.label
            and last.step == digit.size * digit.step
        ):
            result[-1] = _Digit(digit.label, last.size * digit.size, digit.step)
            continue
        result.append(digit)
    return tuple(result)


def _take(digits: list[_Digit], count: int, front: bool) -> _Axis | None:
    """Removes digits of product `count` from one end of a list, splitting one where needed."""
    taken: list[_Digit] = []
    while count > 1:
        if not digits:
            return None
        digit = digits.pop(0 if front else -1)
        if digit.size is None:
            return None
        if count % digit.size:
            if digit.size % count:
                return None
            other = digit.size // count
            many, few = (count, other) if front else (other, count)
            slow = _Digit(digit.label, many, digit.step * few)
            fast = _Digit(digit.label, few, digit.step)
            digit, rest = (slow, fast) if front else (fast, slow)
            digits.insert(0 if front else len(digits), rest)
        count //= digit.size or 1
        taken.insert(len(taken) if front else 0, digit)
    return _join(taken)


def _regroup(axes: Sequence[_Axis], target: Sequence[int | None]) -> tuple[_Axis, ...] | None:
    """The axes after a reshape to `target`, in which one size may be open (None).

    None where the digits cannot be cut that way, or sizes are needed that are not known.
    """
    digits = [d for axis in axes for d in axis]
    if list(target).count(None) > 1:
        return None
    split = list(target).index(None) if None in target else len(target)
    before: list[_Axis] = []
    behind: list[_Axis] = []
    for count in target[:split]:
        axis = _take(digits, count or 1, front=True)
        if axis is None:
            return None
        before.append(axis)
    for count in reversed(target[split + 1 :]):
        axis = _take(digits, count or 1, front=False)
        if axis is None:
            return None
        behind.insert(0, axis)
    if split == len(target):
        return None if digits else tuple(before)
    return (*before, _join(digits), *behind)


# --- operators ------------------------------------------------------------------------------


class _Op:
    """One ONNX node: its attributes, the values it reads, the shapes it writes."""

    def __init__(
        self,
        proto: NodeProto,
        name: str,
        inputs: Sequence[_Value | None],
        shapes: Sequence[Shape | None],
        version: int,
    ) -> None:
        self.proto = proto
        self.type: str = proto.op_type
        self.name = name
        self.inputs = inputs
        self.shapes = shapes
        self.version = version

    @property
    def maps(self) -> list[_Map]:
        return [v for v in self.inputs if isinstance(v, _Map)]

    @property
    def shape(self) -> Shape | None:
        """The inferred shape of the first output."""
        return self.shapes[0]

    @property
    def x(self) -> _Map:
        """The first input, which has to depend on the input map."""
        first = self.inputs[0]
        if not isinstance(first, _Map):
            self.refuse("reads the map elsewhere than in its first place")
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

    def has_input(self, index: int) -> bool:
        return len(self.inputs) > index and self.inputs[index] is not None

    def operand(self, index: int, name: str, default: Any = None) -> Any:
        """A parameter that newer versions read as an input and older ones as an attribute."""
        if not self.has_input(index):
            return self.attr(name, default)
        value = self.inputs[index]
        if not isinstance(value, _Const) or value.array is None:
            self.refuse(
                f"computes {name} while it runs; export with fixed sizes, or give input_size"
            )
        return value.array.tolist()

    def weight_shape(self, index: int) -> tuple[int, ...]:
        value = self.inputs[index] if self.has_input(index) else None
        if not isinstance(value, _Const):
            self.refuse("computes its weights from a map")
        if value.shape is None or None in value.shape:
            self.refuse("has weights of unknown shape; run onnx.shape_inference and save again")
        return tuple(n for n in value.shape if n is not None)

    def refuse(self, reason: str) -> NoReturn:
        raise UnsupportedOperator(reason)


_Result = _Value | list[_Value]
_Handler = Callable[["_Importer", _Op], _Result]
_HANDLERS: dict[str, _Handler] = {}


def _handles(types: str) -> Callable[[_Handler], _Handler]:
    """Registers the handler of operators, named with spaces between them."""

    def register(handler: _Handler) -> _Handler:
        _HANDLERS.update(dict.fromkeys(types.split(), handler))
        return handler

    return register


class _Importer:
    """Walks a graph once, from the inputs to the outputs."""

    def __init__(self, model: ModelProto, source: str, unknown: Policy, input_size: Any) -> None:
        self.source = source
        self.unknown = unknown
        self.input_size = input_size
        self.model = model
        self.nodes: dict[str, Node] = {}
        self.values: dict[str, _Value] = {}
        self.versions = {o.domain: o.version for o in model.opset_import}
        self.version = self.versions.get("", self.versions.get("ai.onnx", 1))
        self.ndim = self._ndim()

    # --- inputs

    def spatial_inputs(self) -> list[ValueInfoProto]:
        """The graph's inputs with a batch, channels and one to three spatial axes."""
        graph = self.model.graph
        constant = {t.name for t in graph.initializer}
        constant |= {p.value for p in graph.metadata_props if p.key == _WEIGHT}
        return [
            i for i in graph.input if i.name not in constant and len(_dims(i) or ()) in (3, 4, 5)
        ]

    def _ndim(self) -> int:
        ranks = {i.name: len(_dims(i) or ()) - 2 for i in self.spatial_inputs()}
        if not ranks:
            listed = ", ".join(f"{i.name} {_dims(i)}" for i in self.model.graph.input[:3])
            _fail(
                self.source,
                f"no input is a map of shape (N, C, spatial…), there are: {listed or 'none'}; "
                f"export the model with the shape of its image input",
            )
        if len(set(ranks.values())) > 1:
            _fail(
                self.source,
                f"the inputs {ranks} have different numbers of spatial axes; cut out the part "
                f"with one kind of map with onnx.utils.extract_model",
            )
        return next(iter(ranks.values()))

    def input_map(self, value: ValueInfoProto) -> _Map:
        """The map of a graph input, channels first or, where a transpose says so, last."""
        dims = list(_dims(value) or ())
        last = self._channels_last(value.name)
        axes = range(1, self.ndim + 1) if last else range(2, self.ndim + 2)
        if self.input_size is not None:
            given = self.input_size
            sizes = list(given) if isinstance(given, Sequence) else [given] * self.ndim
            if len(sizes) != self.ndim or not all(type(n) is int and n > 0 for n in sizes):
                raise InputError(
                    f"input_size={given!r} must be a whole number of at least 1, "
                    f"or {self.ndim} of them"
                )
            for axis, size in zip(axes, sizes, strict=True):
                if dims[axis] not in (None, size):
                    raise InputError(
                        f"input_size={given!r} does not fit the input {value.name!r} of shape "
                        f"{tuple(dims)}; leave it out where the model fixes the size"
                    )
                dims[axis] = size
        batch = dims[0] or 1
        extent = (dims[-1 if last else 1], *(dims[axis] for axis in axes))
        x = _Map(value.name, extent, None, batch)
        standard = x.standard
        layout = (standard[0], *standard[2:], standard[1]) if last else standard
        return replace(x, axes=layout)

    def _channels_last(self, name: str) -> bool:
        """Whether all that reads an input first moves its last axis to the channels' place."""
        to_first = [0, self.ndim + 1, *range(1, self.ndim + 1)]
        readers: dict[str, list[NodeProto]] = {}
        for node in self.model.graph.node:
            for source in set(node.input):
                readers.setdefault(source, []).append(node)
        waiting, found = [name], False
        while waiting:
            for node in readers.pop(waiting.pop(), ()):
                if node.op_type == "Transpose":
                    perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
                    if perm != to_first:
                        return False
                    found = True
                elif node.op_type in ("Identity", "Cast", "Sub", "Add", "Mul", "Div"):
                    waiting.extend(node.output)
                else:
                    return False
        return found

    # --- the walk

    def network(self, name: str | None) -> Network:
        graph = self.model.graph
        for value in self.spatial_inputs():
            x = self.input_map(value)
            self.nodes[x.node] = Node(x.node, Input(x.extent[0]))
            self.values[value.name] = x
        self.inferred = self._infer()
        for tensor in graph.initializer:
            self.values.setdefault(tensor.name, _Const(tuple(tensor.dims), _array(tensor)))
        for value in graph.input:
            self.values.setdefault(value.name, _Const(_dims(value)))
        self.names = self._node_names()
        for proto in self._needed():
            for tensor_name, result in zip(proto.output, self._evaluate(proto), strict=False):
                if tensor_name:
                    self.values[tensor_name] = result
        outputs: dict[str, str] = {}
        for out in graph.output:
            returned = self.values.get(out.name)
            if isinstance(returned, _Map):
                outputs[out.name] = returned.node
        if not outputs:
            _fail(self.source, "no output depends on a map; check which tensors the graph returns")
        ends = {tensor: node for tensor, node in outputs.items() if tensor not in self.nodes}
        return Network(
            self.nodes.values(),
            list(dict.fromkeys(outputs.values())),
            ndim=self.ndim,
            name=name,
            endpoints=ends,
        )

    def _infer(self) -> dict[str, Shape]:
        """Shapes of all tensors that ONNX can infer, from the sizes of the inputs."""
        from onnx import shape_inference

        graph = self.model.graph
        for value in graph.input:
            x = self.values.get(value.name)
            if isinstance(x, _Map):
                # An open batch size counts as 1; shapes stated elsewhere would contradict it.
                for dim, size in zip(value.type.tensor_type.shape.dim, x.dims or (), strict=True):
                    if size is not None:
                        dim.dim_value = size
        del graph.value_info[:]
        for out in graph.output:
            out.type.tensor_type.ClearField("shape")
        try:
            # Without data_prop: it runs for hours on a slice of 2^63 steps, and `_fold` knows more.
            inferred = shape_inference.infer_shapes(self.model)
        except (shape_inference.InferenceError, ValueError, RuntimeError, TypeError) as error:
            _fail(self.source, f"ONNX cannot infer its shapes: {error}; check the model")
        shapes = {}
        for value in (*inferred.graph.value_info, *inferred.graph.output):
            dims = _dims(value)
            if dims is not None:
                shapes[value.name] = dims
        return shapes

    def _needed(self) -> list[NodeProto]:
        """The nodes that the graph's outputs depend on, in order."""
        needed = {out.name for out in self.model.graph.output}
        kept = []
        for proto in reversed(self.model.graph.node):
            if needed.intersection(filter(None, proto.output)):
                kept.append(proto)
                needed.update(proto.input)
        return kept[::-1]

    def _node_names(self) -> dict[str, str]:
        """A name per node, by its first output: the node's own, else that of the output."""
        graph = self.model.graph
        counts = Counter(n.name for n in graph.node)
        taken = set(self.nodes)
        names: dict[str, str] = {}
        for node in graph.node:
            first = next(filter(None, node.output), None)
            if first is None:
                continue
            if first in names or first in self.values:
                _fail(self.source, f"the tensor {first!r} is written twice; export the model again")
            choices = [node.name] if node.name and counts[node.name] == 1 else []
            numbered = (f"{first}.{i}" for i in itertools.count(2))
            free = (n for n in itertools.chain(choices, [first], numbered) if n not in taken)
            names[first] = next(free)
            taken.add(names[first])
        return names

    def _evaluate(self, proto: NodeProto) -> list[_Value]:
        """The values that a node writes."""
        name = self.names[next(filter(None, proto.output))]
        for tensor in filter(None, proto.input):
            if tensor not in self.values:
                _fail(
                    self.source,
                    f"{proto.op_type} (node {name!r}) reads {tensor!r}, which nothing before it "
                    f"writes; check the model with onnx.checker",
                )
        inputs: list[_Value | None] = [self.values[t] if t else None for t in proto.input]
        shapes = [self.inferred.get(t) for t in proto.output]
        op = _Op(proto, name, inputs, shapes, self.version)
        standard = proto.domain in _STANDARD
        if not op.maps and not _has_subgraph(proto):
            return _fold(op) if standard else [_Const(s) for s in shapes]
        before = len(self.nodes)
        try:
            if _has_subgraph(proto):
                op.refuse("runs a subgraph; export the model with constant conditions and loops")
            handler = _HANDLERS.get(op.type) if standard else None
            if handler is None:
                op.refuse("is unknown to fastrf")
            result = self._handle(handler, op)
        except UnsupportedOperator as error:
            for added in list(self.nodes)[before:]:
                del self.nodes[added]
            try:
                result = self._by_policy(op, str(error))
            except UnsupportedOperator as final:
                kind = op.type if standard else f"{proto.domain}.{op.type}"
                raise UnsupportedOperator(
                    f"{self.source}: {kind} (node {name!r}) {_line(final)}; or pass "
                    f'unknown="identity" (it passes every pixel on) or unknown="global" '
                    f"(each output reads every input)"
                ) from None
        return result if isinstance(result, list) else [result] * len(proto.output)

    def _handle(self, handler: _Handler, op: _Op) -> _Result:
        try:
            return handler(self, op)
        except FastrfError:
            raise
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Attributes and operands come from the file, in any type, number and size.
            _fail(
                self.source,
                f"{op.type} (node {op.name!r}): its attributes or inputs do not fit the operator "
                f"({error}); check the model with onnx.checker",
            )

    def _by_policy(self, op: _Op, reason: str) -> _Result:
        if self.unknown == "error":
            op.refuse(reason)
        if not op.maps:
            return [_Const(shape) for shape in op.shapes]
        first = op.maps[0]
        same = [op.shape is None or x.dims is None or _fits(op.shape, x.dims) for x in op.maps]
        if self.unknown == "global":
            x = self._attend(op, op.maps)
            alone = len(op.maps) == 1 and same[0]
            return replace(x, axes=first.axes, shape=first.shape) if alone else x
        if not any(same):
            op.refuse(f"{reason}, and changes the shape {first.dims} to {op.shape}")
        kept = [x for x, fits in zip(op.maps, same, strict=True) if fits]
        if len(kept) == 1:
            return self.chain(op, kept[0], [Identity()])
        return self.merge(op, kept, Add())

    # --- emitting nodes

    def emit(self, op: _Op, layer: Layer, *sources: str, part: str = "", name: str = "") -> str:
        """Adds a node called like the operator (and `part`); returns its name."""
        full = (name or op.name) + (f".{part}" if part else "")
        for number in itertools.count(2):
            if full not in self.nodes:
                break
            full = f"{name or op.name}.{part or layer.kind}{number}"
        self._bound(op, layer)
        self.nodes[full] = Node(full, layer, sources)
        return full

    def chain(self, op: _Op, x: _Map, layers: Sequence[Layer], name: str = "") -> _Map:
        """Layers one behind the other, the last one (none: an identity) called like the operator.

        The result has x's axes; `grid` is for layers that change the size of the map.
        """
        *before, last = layers or [Identity()]
        node = x.node
        for layer in before:
            node = self.emit(op, layer, node, part=layer.kind, name=name)
        return replace(x, node=self.emit(op, last, node, name=name))

    def grid(self, op: _Op, x: _Map, *layers: Layer) -> _Map:
        """Layers behind a map (N, C, spatial…) whose channels and size they may change."""
        x = self.standard(op, x)
        extent = x.extent
        for layer in layers:
            extent = self._extent_behind(op, layer, extent)
        after = self.chain(op, x, layers)
        after = replace(after, extent=extent)
        assert x.axes is not None
        return replace(after, axes=(x.axes[0], *after.standard[1:]))

    def _extent_behind(self, op: _Op, layer: Layer, extent: Shape) -> Shape:
        bound = self._bound(op, layer)
        pixels: Shape = extent[1:]
        known = tuple(n for n in pixels if n is not None)
        try:
            channels = bound.output_channels([extent[0]])
            shape = op.shape
            if shape is not None and len(shape) == self.ndim + 2 and None not in shape[2:]:
                return (channels, *shape[2:])
            if len(known) < len(pixels):
                moved = bool(bound.maps(None, self.ndim))
                return (channels, *((None,) * self.ndim if moved else pixels))
            maps = bound.maps(known, self.ndim)
        except InputError as error:
            _fail(self.source, f"{op.type} (node {op.name!r}): {error}")
        return (channels, *((maps[-1].size_out or pixels) if maps else pixels))

    def _bound(self, op: _Op, layer: Layer) -> Layer:
        try:
            return layer.bind(self.ndim)
        except InputError as error:
            _fail(self.source, f"{op.type} (node {op.name!r}): {error}")

    def standard(self, op: _Op, x: _Map) -> _Map:
        """The map with axes (N, C, spatial…), refused where the tensor is laid out otherwise."""
        if x.axes is None:
            shape = x.shape
            if shape is None or len(shape) != self.ndim + 2 or not _fits(shape[2:], x.pixels):
                op.refuse(f"reads a tensor of shape {shape} behind attention, which is no map")
            pattern = replace(x, extent=(shape[1], *x.pixels))
            return self._adopt(op, x, replace(pattern, axes=pattern.standard))
        if not x.is_standard:
            op.refuse(
                f"reads a tensor of shape {x.dims} whose axes are not (N, C, spatial…) of a map "
                f"of {x.extent[0]} channels and {x.pixels} pixels"
            )
        return x

    def _adopt(self, op: _Op, x: _Map, pattern: _Map) -> _Map:
        """A tensor behind attention laid out like `pattern`: all its elements read everything."""
        node = x.node
        if x.extent[0] != pattern.extent[0]:
            node = self.emit(op, Conv(1, channels=pattern.extent[0]), node, part="channels")
        return replace(pattern, node=node, extent=(pattern.extent[0], *x.pixels))

    def merge(self, op: _Op, maps: Sequence[_Map], layer: Layer) -> _Map:
        """A sum or product of maps, broadcast as ONNX does."""
        patterns = [x for x in maps if x.axes is not None]
        if not patterns:
            node = self.emit(op, self._joined(op, maps), *(x.node for x in maps), part="")
            return replace(maps[0], node=node, shape=op.shape)
        wide = max(patterns, key=lambda x: _size_or_inf(x.dims))
        laid = []
        for x in maps:
            behind = x.axes is None
            if behind and not (x.shape and wide.dims and _fits(x.shape, wide.dims)):
                op.refuse(f"joins shapes {x.shape} and {wide.dims}, one of them behind attention")
            laid.append(self._adopt(op, x, wide) if behind else x)
        axes, extent = laid[0].axes or (), laid[0].extent
        for x in laid[1:]:
            axes, extent = _broadcast(op, axes, x.axes or ()), _wider(op, extent, x.extent)
        node = self.emit(op, layer, *(x.node for x in laid))
        return replace(laid[0], node=node, extent=extent, axes=axes)

    def _joined(self, op: _Op, maps: Sequence[_Map]) -> Layer:
        return Add() if len({x.extent[0] for x in maps}) == 1 else Concat()

    def _attend(self, op: _Op, maps: Sequence[_Map]) -> _Map:
        """Every element of the result reads every position of the maps."""
        for x in maps[1:]:
            if not _fits(x.pixels, maps[0].pixels):
                op.refuse(f"joins maps of {maps[0].pixels} and {x.pixels} pixels")
        sources = list(dict.fromkeys(x.node for x in maps))
        channels: int | None = maps[0].extent[0]
        node = sources[0]
        if len(sources) > 1:
            node = self.emit(op, Concat(), *sources, part="maps")
            counts = {x.node: x.extent[0] for x in maps}.values()
            channels = None if None in counts else sum(c for c in counts if c is not None)
        node = self.emit(op, Attention(), node)
        return _Map(node, (channels, *maps[0].pixels), None, maps[0].batch, op.shape)


def _dims(value: ValueInfoProto) -> Shape | None:
    """The shape of a value, None where the model does not state it."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return tuple(d.dim_value if d.dim_value > 0 else None for d in tensor.shape.dim)


def _has_subgraph(proto: NodeProto) -> bool:
    return any(a.type in (a.GRAPH, a.GRAPHS) for a in proto.attribute)


def _fits(a: Shape, b: Shape) -> bool:
    """Whether two shapes can be the same."""
    return len(a) == len(b) and all(
        m is None or n is None or m == n for m, n in zip(a, b, strict=True)
    )


def _size_or_inf(dims: Shape | None) -> float:
    return math.prod(math.inf if n is None else n for n in dims or ())


def _broadcast(op: _Op, a: tuple[_Axis, ...], b: tuple[_Axis, ...]) -> tuple[_Axis, ...]:
    rank = max(len(a), len(b))
    a, b = ((),) * (rank - len(a)) + a, ((),) * (rank - len(b)) + b
    axes = []
    for one, other in zip(a, b, strict=True):
        same = [(d.label, d.step) for d in one] == [(d.label, d.step) for d in other]
        if (
            one
            and other
            and not (same and _fits(*(tuple(d.size for d in x) for x in (one, other))))
        ):
            op.refuse("joins tensors whose axes mean different things")
        axes.append(other if not one or (_size(one) is None and other) else one)
    return tuple(axes)


def _wider(op: _Op, a: Shape, b: Shape) -> Shape:
    """The extent of a merge, in which maps of one pixel or one channel are broadcast."""
    return tuple(n if m == 1 or (m is None and n != 1) else m for m, n in zip(a, b, strict=True))


# --- constants ------------------------------------------------------------------------------

_FOLDED = """
    Abs Add And Cast Ceil Concat Div Equal Flatten Floor Gather Greater GreaterOrEqual Identity Less
    LessOrEqual Max Min Mod Mul Neg Not Or Pow ReduceMax ReduceMin ReduceProd ReduceSum Reshape
    Round Shape Size Slice Split Sqrt Squeeze Sub Sum Transpose Unsqueeze Where
""".split()  # noqa: SIM905  (one name a line would fill the screen)
"""Operators that models compute sizes with. Their results are no larger than a product of their
inputs' sizes, so that no file can make folding allocate much."""

_FOLD_ELEMENTS = 1024


def _fold(op: _Op) -> list[_Value]:
    """The results of a node that reads constants alone: their values where they are small."""
    shapes: list[_Value] = [_Const(shape) for shape in op.shapes]
    if op.type == "Constant":
        return [_constant(op)]
    if op.type == "ConstantOfShape":
        return [_filled(op)]
    arrays: list[NDArray[Any] | None] = []
    for value in op.inputs:
        if value is None:
            arrays.append(None)
        elif isinstance(value, _Const) and value.array is not None:
            arrays.append(value.array)
        elif op.type == "Shape" and isinstance(value, _Const) and value.shape is not None:
            return [_shape_of(op, value.shape)]
        else:
            return shapes
    few = all(a is None or a.size <= _FOLD_ELEMENTS for a in arrays)
    if op.type not in _FOLDED or not few:
        return shapes
    results = _run(op, arrays)
    return shapes if results is None else [_Const(r.shape, r) for r in results]


def _run(op: _Op, arrays: Sequence[NDArray[Any] | None]) -> list[NDArray[Any]] | None:
    """One node computed by ONNX's reference implementation; None where it cannot."""
    from onnx import TypeProto, helper
    from onnx.reference import ReferenceEvaluator

    given = {n: a for n, a in zip(op.proto.input, arrays, strict=True) if a is not None}
    graph = helper.make_graph(
        [op.proto],
        "fold",
        [helper.make_value_info(n, TypeProto()) for n in given],
        [helper.make_value_info(n, TypeProto()) for n in op.proto.output],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", op.version)])
    try:
        with np.errstate(all="ignore"):
            return [np.asarray(r) for r in ReferenceEvaluator(model).run(None, given)]
    except Exception:  # The reference raises whatever NumPy does; the value then stays unknown.
        return None


def _constant(op: _Op) -> _Const:
    tensor = _constant_tensor(op.proto)
    if tensor is not None:
        return _Const(tuple(tensor.dims), _array(tensor))
    for name in ("value_int", "value_ints", "value_float", "value_floats"):
        if name in op.attributes:
            array = np.asarray(op.attr(name))
            return _Const(array.shape, array if array.size <= SMALL else None)
    return _Const(op.shape)


def _filled(op: _Op) -> _Const:
    """ConstantOfShape, which light models use in place of weights: never made when large."""
    shape = op.inputs[0]
    if not isinstance(shape, _Const) or shape.array is None:
        return _Const(op.shape)
    dims = tuple(int(n) for n in shape.array.ravel())
    if math.prod(dims) > SMALL or min(dims, default=0) < 0:
        return _Const(dims)
    fill = _array(op.attributes["value"].t) if "value" in op.attributes else None
    return _Const(dims, np.full(dims, np.float32(0) if fill is None else fill.ravel()[0]))


def _shape_of(op: _Op, shape: Shape) -> _Const:
    """The result of Shape, known where the sizes it covers are."""
    end = op.attr("end")
    part = shape[op.attr("start", 0) : len(shape) if end is None else end]
    known = [n for n in part if n is not None]
    return _Const((len(part),), np.array(known, np.int64) if len(known) == len(part) else None)


@_handles("Shape")
def _shape(imp: _Importer, op: _Op) -> _Result:
    dims = op.x.dims
    return _Const(op.shape) if dims is None else _shape_of(op, dims)


@_handles("Size")
def _count(imp: _Importer, op: _Op) -> _Result:
    dims = op.x.dims
    if dims is None or None in dims:
        return _Const(())
    return _Const((), np.array(math.prod(n for n in dims if n is not None), np.int64))


# --- convolutions and pooling ---------------------------------------------------------------


def _spell(values: Sequence[Any]) -> Any:
    """Values per axis as one where they are equal, pairs as one number likewise."""
    spelled = tuple(v[0] if isinstance(v, tuple) and v[0] == v[1] else v for v in values)
    same = all(v == spelled[0] for v in spelled) and not isinstance(spelled[0], tuple)
    return spelled[0] if same else spelled


def _windows(op: _Op, kernel: Sequence[int]) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """kernel, stride and dilation as a layer takes them, and the padding per axis."""
    rank = len(kernel)
    stride = op.attr("strides") or [1] * rank
    dilation = op.attr("dilations") or [1] * rank
    auto = op.attr("auto_pad", "NOTSET")
    padding: tuple[Any, ...]
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        padding = (auto.lower(),) * rank
    elif auto == "VALID":
        padding = ((0, 0),) * rank
    else:
        pads = op.attr("pads") or [0] * 2 * rank
        padding = tuple(zip(pads[:rank], pads[rank:], strict=False))
    values = {"kernel": _spell(kernel), "stride": _spell(stride), "dilation": _spell(dilation)}
    return values, padding


def _uncropped(padding: Sequence[Any]) -> tuple[list[Layer], Any]:
    """ONNX lets pads be negative, which crops: the layers that do so, and the padding left."""
    if any(isinstance(p, str) for p in padding) or min(map(min, padding)) >= 0:
        return [], _spell(padding)
    cut = [tuple(max(-n, 0) for n in pair) for pair in padding]
    return [Crop(_spell(cut))], _spell([tuple(max(n, 0) for n in pair) for pair in padding])


def _groups(op: _Op, x: _Map) -> Any:
    groups = op.attr("group", 1)
    return "depthwise" if groups > 1 and groups == x.extent[0] else groups


@_handles("Conv ConvInteger QLinearConv")
def _conv(imp: _Importer, op: _Op) -> _Result:
    shape = op.weight_shape(3 if op.type == "QLinearConv" else 1)
    if len(shape) != imp.ndim + 2:
        op.refuse(f"has weights of shape {shape} in a network of {imp.ndim} axes")
    x = imp.standard(op, op.x)
    values, padding = _windows(op, op.attr("kernel_shape") or shape[2:])
    before, left = _uncropped(padding)
    layer = Conv(**values, padding=left, channels=shape[0], groups=_groups(op, x))
    return imp.grid(op, x, *before, layer)


@_handles("ConvTranspose")
def _conv_transpose(imp: _Importer, op: _Op) -> _Result:
    shape = op.weight_shape(1)
    if len(shape) != imp.ndim + 2:
        op.refuse(f"has weights of shape {shape} in a network of {imp.ndim} axes")
    x = imp.standard(op, op.x)
    values, padding = _windows(op, op.attr("kernel_shape") or shape[2:])
    strides = op.attr("strides") or [1] * imp.ndim
    extra = op.attr("output_padding") or [0] * imp.ndim
    if op.attr("output_shape") or isinstance(padding[0], str):
        padding, extra = _transposed_padding(op, x, shape[2:], strides, extra)
    if min(map(min, padding)) < 0:
        op.refuse(f"has pads {padding} below 0")
    layer = ConvTranspose(
        **values,
        padding=_spell(padding),
        output_padding=_spell(extra),
        channels=shape[1] * op.attr("group", 1),
        groups=_groups(op, x),
        gain=float(math.prod(strides)),
    )
    return imp.grid(op, x, layer)


def _transposed_padding(
    op: _Op, x: _Map, kernel: Sequence[int], strides: Sequence[int], extra: Sequence[int]
) -> tuple[tuple[Any, ...], list[int]]:
    """Padding and output padding for a stated output size (the operator's equations).

    An odd pixel goes to the end for SAME_UPPER and to the beginning otherwise.
    """
    dilations = op.attr("dilations") or [1] * len(kernel)
    wanted = op.attr("output_shape")
    wanted = wanted[-len(kernel) :] if wanted else [None] * len(kernel)
    padding, more = [], []
    for n, k, s, d, e, out in zip(x.pixels, kernel, strides, dilations, extra, wanted, strict=True):
        if out is None:
            total = e + d * (k - 1) + 1 - s
            if total < 0:
                # ONNX's text wants n·s pixels here, its shape inference fewer.
                op.refuse(f"has SAME padding with a stride {s} above its kernel's extent")
        elif n is None:
            op.refuse("states its output_shape for a map of unknown size; give input_size")
        else:
            total = s * (n - 1) + e + d * (k - 1) + 1 - out
        more.append(e + max(-total, 0))
        total = max(total, 0)
        small, large = total // 2, total - total // 2
        padding.append((small, large) if op.attr("auto_pad") == "SAME_UPPER" else (large, small))
    return tuple(padding), more


@_handles("MaxPool AveragePool LpPool")
def _pool(imp: _Importer, op: _Op) -> _Result:
    kernel = op.attr("kernel_shape")
    if not kernel or len(kernel) != imp.ndim:
        op.refuse(f"has a kernel of shape {kernel} in a network of {imp.ndim} axes")
    values, padding = _windows(op, kernel)
    before, left = _uncropped(padding)
    ceil = bool(op.attr("ceil_mode", 0))
    layer: Layer
    if op.type == "AveragePool":
        # Without padding the two ways of counting agree; fastrf's default is then written.
        counted = bool(op.attr("count_include_pad", 0)) or left == 0
        layer = AvgPool(**values, padding=left, ceil_mode=ceil, count_include_pad=counted)
    else:
        layer = MaxPool(**values, padding=left, ceil_mode=ceil)
    return imp.grid(op, op.x, *before, layer)


@_handles("GlobalAveragePool GlobalMaxPool GlobalLpPool")
def _global_pool(imp: _Importer, op: _Op) -> _Result:
    return imp.grid(op, op.x, GlobalPool("avg" if op.type == "GlobalAveragePool" else "max"))


# --- pointwise layers and normalisation -----------------------------------------------------


@_handles(
    "Abs Acos Acosh Asin Asinh Atan Atanh Celu Ceil Clip Cos Cosh DequantizeLinear Elu Erf "
    "Exp Floor Gelu HardSigmoid HardSwish IsInf IsNaN LeakyRelu Log Mish Neg Not PRelu "
    "QuantizeLinear Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus "
    "Softsign Sqrt Swish Tan Tanh ThresholdedRelu BitwiseNot"
)
def _unary(imp: _Importer, op: _Op) -> _Result:
    return imp.chain(op, op.x, [Activation(op.type.lower(), gain=1.0)])


@_handles("Identity Cast CastLike")
def _identity(imp: _Importer, op: _Op) -> _Result:
    return imp.chain(op, op.x, [Identity()])


@_handles("Dropout")
def _dropout(imp: _Importer, op: _Op) -> _Result:
    if op.version >= 12 and op.operand(2, "training_mode", False):
        return imp.chain(op, op.x, [Dropout(float(op.operand(1, "ratio", 0.5)))])
    return imp.chain(op, op.x, [Identity()])


@_handles("Softmax LogSoftmax Hardmax")
def _softmax(imp: _Importer, op: _Op) -> _Result:
    x = op.x
    pointwise = Activation(op.type.lower(), gain=1.0)
    if x.axes is None:
        return imp.chain(op, x, [pointwise])
    modern = op.version >= 13
    first = op.attr("axis", -1 if modern else 1) % len(x.axes)
    axes = x.axes[first : first + 1] if modern else x.axes[first:]
    return imp.chain(op, x, [Attention() if _reads_grid(op, x, axes) else pointwise])


def _reads_grid(op: _Op, x: _Map, axes: Sequence[_Axis]) -> bool:
    """Whether axes cover every position (True) or none (False); some are refused."""
    digits = tuple(d for axis in axes for d in axis)
    if any(d.label == BATCH for d in digits):
        op.refuse("works along the batch")
    if not any(d.label > CHANNEL for d in digits):
        return False
    if not x.holds_grid(digits):
        op.refuse("works along some of the spatial axes and not all")
    return True


def _normalised(imp: _Importer, op: _Op, positions: Sequence[int]) -> _Map:
    """A normalisation with statistics over the given axes of the tensor."""
    x = op.x
    if x.axes is None:
        return imp.chain(op, x, [Norm("channel")])
    axes = [x.axes[p] for p in positions]
    digits = tuple(d for axis in axes for d in axis)
    statistics: Literal["channel", "instance", "layer", "group"] = "channel"
    if _reads_grid(op, x, axes):
        channels = any(d.label == CHANNEL for d in digits)
        statistics = "instance"
        if channels or x.extent[CHANNEL] == 1:
            statistics = "layer" if x.holds(digits, CHANNEL) else "group"
    return imp.chain(op, x, [Norm(statistics)])


@_handles("BatchNormalization")
def _batch_norm(imp: _Importer, op: _Op) -> _Result:
    if op.version >= 14:
        training = bool(op.attr("training_mode", 0))
    elif op.version >= 7:
        training = sum(map(bool, op.proto.output)) > 1  # operator version 9, "Output case #1"
    else:
        training = not op.attr("is_test", 0)
    return imp.chain(op, op.x, [Norm("batch_train" if training else "batch")])


@_handles("LRN")
def _lrn(imp: _Importer, op: _Op) -> _Result:
    return imp.chain(op, imp.standard(op, op.x), [Norm("lrn")])


@_handles("InstanceNormalization")
def _instance_norm(imp: _Importer, op: _Op) -> _Result:
    return _normalised(imp, op, range(2, len(op.x.dims or ())))


@_handles("LayerNormalization RMSNormalization")
def _layer_norm(imp: _Importer, op: _Op) -> _Result:
    rank = len(op.x.dims or (1,))
    return _normalised(imp, op, range(op.attr("axis", -1) % rank, rank))


@_handles("LpNormalization")
def _lp_norm(imp: _Importer, op: _Op) -> _Result:
    return _normalised(imp, op, [op.attr("axis", -1)])


@_handles("GroupNormalization")
def _group_norm(imp: _Importer, op: _Op) -> _Result:
    x = imp.standard(op, op.x)
    groups = op.attr("num_groups", 1)
    kind: Any = "layer" if groups == 1 else "instance" if groups == x.extent[0] else "group"
    return imp.chain(op, x, [Norm(kind)])


@_handles("MeanVarianceNormalization")
def _mean_variance(imp: _Importer, op: _Op) -> _Result:
    axes = set(op.attr("axes", [0, 2, 3]))
    if 0 not in axes:
        return _normalised(imp, op, sorted(axes))
    x = imp.standard(op, op.x)
    if not axes >= set(range(2, imp.ndim + 2)):
        op.refuse("works along some of the spatial axes and not all")
    return imp.chain(op, x, [Norm("batch_train")])


# --- arithmetic -----------------------------------------------------------------------------

_PRODUCTS = ("Mul", "Div", "Pow", "Mod", "And", "BitwiseAnd")


@_handles(
    "Add Sub Mul Div Sum Max Min Mean Pow Mod And Or Xor Equal Greater GreaterOrEqual Less "
    "LessOrEqual Where BitwiseAnd BitwiseOr BitwiseXor"
)
def _arithmetic(imp: _Importer, op: _Op) -> _Result:
    maps = [_enlarged(imp, op, x) for x in op.maps]
    if len(maps) > 1:
        return imp.merge(op, maps, Multiply() if op.type in _PRODUCTS else Add())
    return imp.chain(op, maps[0], [Activation(op.type.lower(), gain=1.0)])


def _enlarged(imp: _Importer, op: _Op, x: _Map) -> _Map:
    """The map with the rank that constants give it; they must not give it more pixels."""
    shapes = [v.shape for v in op.inputs if isinstance(v, _Const) and v.shape is not None]
    rank = max([len(s) for s in shapes], default=0)
    if x.axes is None:
        return x
    axes = ((),) * (rank - len(x.axes)) + x.axes
    if len(op.maps) == 1:
        for shape in shapes:
            for size, axis in zip(reversed(shape), reversed(axes), strict=False):
                if size not in (None, 1) and not axis:
                    op.refuse(f"spreads a tensor of shape {x.dims} over a constant of {shape}")
    return replace(x, axes=axes)


@_handles("Expand")
def _expand(imp: _Importer, op: _Op) -> _Result:
    x = op.x
    target: Shape = tuple(op.operand(1, "shape"))
    if x.axes is None:
        return replace(imp.chain(op, x, []), shape=op.shape)
    rank = max(len(target), len(x.axes))
    target = (1,) * (rank - len(target)) + target
    axes = ((),) * (rank - len(x.axes)) + x.axes
    if all(n in (1, _size(axis)) for n, axis in zip(target, axes, strict=True)):
        return replace(imp.chain(op, x, []), axes=axes)
    x = imp.standard(op, x)
    outer = zip(target, (x.batch, x.extent[CHANNEL]), strict=False)
    if x.pixels != (1,) * imp.ndim or any(n not in (1, own) for n, own in outer):
        op.refuse(f"expands a tensor of shape {x.dims} to {target}")
    return imp.grid(op, x, Upsample(size=_spell(target[2:])))


@_handles("Tile")
def _tile(imp: _Importer, op: _Op) -> _Result:
    repeats = op.operand(1, "repeats")
    if set(np.ravel(repeats)) != {1}:
        op.refuse(f"repeats the map {repeats} times")
    return imp.chain(op, op.x, [])


# --- layout ---------------------------------------------------------------------------------


def _moved(imp: _Importer, op: _Op, axes: tuple[_Axis, ...]) -> _Map:
    """The operator's map with its digits moved; shuffles that this completes become nodes."""
    x = op.x
    moved = replace(x, axes=tuple(_join(axis) for axis in axes))
    if len(axes) != imp.ndim + 2 or moved.is_standard or any(d.label != BATCH for d in axes[0]):
        return moved
    layers = _shuffles(moved)
    if layers is None:
        return moved
    extent = moved.extent
    for layer in layers:
        bound = layer.bind(imp.ndim)
        pixels = extent[1:]
        if isinstance(bound, PixelShuffle):
            pixels = tuple(n * f for n, f in zip(pixels, bound.factor, strict=True) if n)
        elif isinstance(bound, PixelUnshuffle):
            pixels = tuple(n // f for n, f in zip(pixels, bound.factor, strict=True) if n)
        extent = (bound.output_channels([extent[0]]), *pixels)
    after = replace(imp.chain(op, x, layers), extent=extent)
    return replace(after, axes=(axes[0], *after.standard[1:]))


def _shuffles(x: _Map) -> list[Layer] | None:
    """The shuffles that bring a map's digits into the order (N, C, spatial…), if some do."""
    assert x.axes is not None
    first, rest = x.axes[1], x.axes[2:]
    if None in x.extent:
        return None
    channels = x.whole(CHANNEL)
    if rest == x.standard[2:]:
        return _rotation(first, channels)
    inner = [tuple(d for d in axis if d.label == CHANNEL) for axis in rest]
    if all(d.label == CHANNEL for d in first):
        # Depth to space: each spatial axis ends with the channels' digit of the finer grid.
        grid = [axis[: len(axis) - len(i)] for axis, i in zip(rest, inner, strict=True)]
        if grid != list(x.standard[2:]) or any(
            a[len(g) :] != i for a, g, i in zip(rest, grid, inner, strict=True)
        ):
            return None
        before = _rotation((*first, *(d for i in inner for d in i)), channels)
        factor = _spell([_size(i) for i in inner])
        return None if before is None else [*before, PixelShuffle(factor)]
    # Space to depth: the channels get the fast digits of every spatial axis, in order.
    fast = [d for d in first if d.label != CHANNEL]
    factors = []
    for label, axis in enumerate(rest, 1):
        own = tuple(d for d in fast if d.label == label)
        if _join((*axis, *own)) != x.whole(label) or any(d.label != label for d in axis):
            return None
        factors.append(_size(own) or 1)
    own_channels = tuple(d for d in first if d.label == CHANNEL)
    if own_channels != channels or [d.label for d in fast] != sorted({d.label for d in fast}):
        return None
    layers: list[Layer] = [PixelUnshuffle(_spell(factors))]
    if first == (*channels, *fast):
        return layers
    if first == (*fast, *channels):
        return [*layers, ChannelShuffle(x.extent[0] or 1)]
    return None


def _rotation(digits: _Axis, whole: _Axis) -> list[Layer] | None:
    """The channel shuffle behind which digits are the whole index; [] where they are already."""
    digits = _join(digits)
    if digits == whole:
        return []
    if len(digits) == 2 and _join(digits[::-1]) == whole:
        return [ChannelShuffle(digits[1].size or 1)]
    return None


@_handles("Reshape")
def _reshape(imp: _Importer, op: _Op) -> _Result:
    return _reshaped(imp, op, _reshape_target(op))


def _reshape_target(op: _Op) -> Shape | None:
    value = op.inputs[1] if op.has_input(1) else None
    if isinstance(value, _Const) and value.array is not None:
        sizes = [int(n) for n in value.array.ravel()]
    else:
        sizes = op.attr("shape")
    if sizes is None:
        return op.shape
    dims = op.x.dims
    target: list[int | None] = []
    for position, size in enumerate(sizes):
        copied = size == 0 and not op.attr("allowzero", 0)
        if copied and dims is not None and position < len(dims):
            target.append(dims[position])
        else:
            target.append(None if size == -1 else size)
    return op.shape if target.count(None) > 1 else tuple(target)


def _resolved(dims: Shape | None, target: Shape | None) -> Shape | None:
    """A reshape's target with its one open size worked out, where the old shape is known."""
    if target is None or dims is None or None in dims or target.count(None) != 1:
        return target
    rest = math.prod(n for n in target if n is not None)
    total = math.prod(n for n in dims if n is not None)
    return tuple(total // max(rest, 1) if n is None else n for n in target)


def _reshaped(imp: _Importer, op: _Op, target: Shape | None) -> _Map:
    x = op.x
    if x.axes is None:
        return replace(x, shape=op.shape or _resolved(x.shape, target))
    axes = None if target is None else _regroup(x.axes, target)
    if axes is None:
        op.refuse(
            f"reshapes {x.dims} to {target or 'an unknown shape'}; "
            f"export with fixed sizes, or give input_size"
        )
    return _moved(imp, op, axes)


@_handles("Flatten")
def _flatten(imp: _Importer, op: _Op) -> _Result:
    x = op.x
    if x.axes is None:
        return replace(x, shape=op.shape)
    axis = op.attr("axis", 1)
    axis += len(x.axes) if axis < 0 else 0
    halves = (x.axes[:axis], x.axes[axis:])
    return _moved(imp, op, tuple(_join([d for a in half for d in a]) for half in halves))


@_handles("Transpose")
def _transpose(imp: _Importer, op: _Op) -> _Result:
    x = op.x
    if x.axes is None:
        return replace(x, shape=op.shape)
    order = op.attr("perm") or list(range(len(x.axes)))[::-1]
    if sorted(order) != list(range(len(x.axes))):
        _fail(imp.source, f"Transpose (node {op.name!r}): perm={order} is no order of its axes")
    return _moved(imp, op, tuple(x.axes[p] for p in order))


@_handles("Squeeze")
def _squeeze(imp: _Importer, op: _Op) -> _Result:
    x = op.x
    if x.axes is None:
        return replace(x, shape=op.shape)
    axes = op.operand(1, "axes")
    rank = len(x.axes)
    gone = {p for p, a in enumerate(x.axes) if not a} if axes is None else {a % rank for a in axes}
    if any(x.axes[p] for p in gone):
        op.refuse(f"squeezes axes {sorted(gone)} of a tensor of shape {x.dims}")
    return _moved(imp, op, tuple(a for p, a in enumerate(x.axes) if p not in gone))


@_handles("Unsqueeze")
def _unsqueeze(imp: _Importer, op: _Op) -> _Result:
    x = op.x
    if x.axes is None:
        return replace(x, shape=op.shape)
    added = op.operand(1, "axes", [])
    rank = len(x.axes) + len(added)
    places = {a % rank for a in added}
    old = iter(x.axes)
    return _moved(imp, op, tuple(() if p in places else next(old, ()) for p in range(rank)))


@_handles("DepthToSpace")
def _depth_to_space(imp: _Importer, op: _Op) -> _Result:
    block = op.attr("blocksize")
    shuffle = [] if op.attr("mode", "DCR") == "CRD" else [ChannelShuffle(block**imp.ndim)]
    return imp.grid(op, op.x, *shuffle, PixelShuffle(block))


@_handles("SpaceToDepth")
def _space_to_depth(imp: _Importer, op: _Op) -> _Result:
    x = imp.standard(op, op.x)
    unshuffle = PixelUnshuffle(op.attr("blocksize"))
    if x.extent[0] == 1:
        return imp.grid(op, x, unshuffle)
    if x.extent[0] is None:
        op.refuse("orders channels whose number is unknown")
    return imp.grid(op, x, unshuffle, ChannelShuffle(x.extent[0]))


# --- cutting and joining --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Cut:
    """The layers that keep a range of one axis of a tensor, and the map behind them."""

    layers: list[Layer]
    after: _Map


def _cut(op: _Op, x: _Map, axis: int, kept: range) -> _Cut:
    """Keeps the indices `kept` of a tensor's axis."""
    assert x.axes is not None
    digits = x.axes[axis]
    count = _size(digits)
    if count is not None and kept == range(count):
        return _Cut([], x)
    if not len(kept) or kept.step < 1:
        op.refuse(f"keeps {kept} of an axis of {count}")
    if any(d.label == BATCH for d in digits) or count is None:
        op.refuse("cuts the batch, or an axis of unknown size; give input_size")
    if all(d.label == CHANNEL for d in digits):
        return _cut_channels(op, x, axis, kept)
    if len(digits) != 1 or digits != x.whole(digits[0].label):
        op.refuse(f"cuts an axis of a tensor of shape {x.dims} that is no axis of the map")
    place = digits[0].label
    amount = [(0, 0)] * len(x.pixels)
    amount[place - 1] = (kept[0], count - 1 - kept[-1])
    layers: list[Layer] = [Crop(_spell(amount))] if any(map(any, amount)) else []
    if len(kept) > 1 and kept.step > 1:
        stride = [1] * len(x.pixels)
        stride[place - 1] = kept.step
        layers.append(MaxPool(1, stride=_spell(stride)))
    extent = (*x.extent[:place], len(kept), *x.extent[place + 1 :])
    after = replace(x, extent=extent)
    axes = (*x.axes[:axis], after.whole(place), *x.axes[axis + 1 :])
    return _Cut(layers, replace(after, axes=axes))


def _cut_channels(op: _Op, x: _Map, axis: int, kept: range) -> _Cut:
    assert x.axes is not None
    digits, channels = x.axes[axis], x.extent[CHANNEL]
    assert channels is not None
    if digits == x.whole(CHANNEL):
        layer = ChannelSlice(kept[0], kept[-1] + 1, kept.step if len(kept) > 1 else 1)
        after = replace(x, extent=(len(kept), *x.pixels))
        return _Cut([layer], replace(after, axes=_put(x, axis, after.whole(CHANNEL))))
    digit = digits[0]
    step = kept.step if len(kept) > 1 else 1
    if len(digits) == 1 and step == 1 and (digit.size or 0) * digit.step == channels:
        # The slowest digit: a run of channels, such as one of query, key and value.
        layer = ChannelSlice(kept[0] * digit.step, (kept[-1] + 1) * digit.step)
        after = replace(x, extent=(len(kept) * digit.step, *x.pixels))
        own = _join([_Digit(CHANNEL, len(kept), digit.step)])
        return _Cut([layer], replace(after, axes=_put(x, axis, own)))
    if len(digits) == 1 and digit.step == 1 and len(kept) == 1:
        # The fastest digit: every size-th channel; the other digits count in larger steps.
        size = digit.size or 1
        layer = ChannelSlice(kept[0], None, size)
        axes = tuple(
            tuple(replace(d, step=d.step // size) if d.label == CHANNEL else d for d in a)
            for a in _put(x, axis, ())
        )
        return _Cut([layer], replace(x, extent=(channels // size, *x.pixels), axes=axes))
    op.refuse(f"cuts {kept} out of channels laid out as {x.dims}")


def _put(x: _Map, axis: int, digits: _Axis) -> tuple[_Axis, ...]:
    assert x.axes is not None
    return (*x.axes[:axis], digits, *x.axes[axis + 1 :])


@_handles("Slice")
def _slice(imp: _Importer, op: _Op) -> _Result:
    x = op.x
    if x.axes is None:
        return replace(x, shape=op.shape)
    starts, ends = op.operand(1, "starts"), op.operand(2, "ends")
    axes = op.operand(3, "axes") or list(range(len(starts)))
    steps = op.operand(4, "steps") or [1] * len(starts)
    layers: list[Layer] = []
    after = x
    places = [axis % len(x.axes) for axis in axes]
    for start, end, axis, step in zip(starts, ends, places, steps, strict=True):
        count = _size((after.axes or ())[axis])
        if count is None:
            cut = _open_cut(op, after, axis, start, end, step)
        elif step < 0:
            op.refuse("runs backwards")
        else:
            cut = _cut(op, after, axis, range(count)[start:end:step])
        layers += cut.layers
        after = cut.after
    return replace(after, node=imp.chain(op, x, layers).node)


def _open_cut(op: _Op, x: _Map, axis: int, start: int, end: int, step: int) -> _Cut:
    """A slice of a spatial axis of unknown size, where its ends do not depend on that size."""
    assert x.axes is not None
    digits = x.axes[axis]
    to_end = end >= 2**31 - 1
    if (start, step) == (0, 1) and to_end:
        return _Cut([], x)
    whole = len(digits) == 1 and digits[0].label > CHANNEL and digits == x.whole(digits[0].label)
    if not whole or start < 0 or step < 1 or not (to_end or end < 0):
        op.refuse("cuts an axis of unknown size; export with a fixed size, or give input_size")
    amount = [(0, 0)] * len(x.pixels)
    stride = [1] * len(x.pixels)
    amount[digits[0].label - 1] = (start, 0 if to_end else -end)
    stride[digits[0].label - 1] = step
    layers: list[Layer] = [Crop(_spell(amount))] if any(map(any, amount)) else []
    return _Cut([*layers, MaxPool(1, stride=_spell(stride))] if step > 1 else layers, x)


@_handles("Split")
def _split(imp: _Importer, op: _Op) -> _Result:
    x = op.x
    outputs = list(op.proto.output)
    if x.axes is None:
        return [replace(x, shape=shape) for shape in op.shapes]
    axis = op.attr("axis", 0) % len(x.axes)
    sizes = op.operand(1, "split")
    if sizes is None:
        count = _size(x.axes[axis])
        if count is None:
            op.refuse("splits an axis of unknown size; give input_size")
        part = -(-count // len(outputs))
        sizes = [min(part, count - part * i) for i in range(len(outputs))]
    parts: list[_Value] = []
    start = 0
    for name, size in zip(outputs, sizes, strict=False):
        cut = _cut(op, x, axis, range(start, start + size))
        own = name if len(outputs) > 1 else ""
        parts.append(
            replace(cut.after, node=imp.chain(op, x, cut.layers, own).node)
            if name
            else _Const(None)
        )
        start += size
    return parts


@_handles("Gather")
def _gather(imp: _Importer, op: _Op) -> _Result:
    x = op.x
    if x.axes is None:
        return replace(x, shape=op.shape)
    axis = op.attr("axis", 0) % len(x.axes)
    indices = op.operand(1, "indices")
    scalar = isinstance(indices, int)
    if not scalar and (np.ndim(indices) != 1 or not indices):
        op.refuse(f"gathers with indices of shape {np.shape(indices)}")
    count = _size(x.axes[axis])
    if count is None:
        op.refuse("gathers from an axis of unknown size; give input_size")
    picked = [i + count if i < 0 else i for i in ([indices] if scalar else indices)]
    if not all(0 <= i < count for i in picked):
        _fail(imp.source, f"Gather (node {op.name!r}): an index is outside 0 … {count - 1}")
    runs = list(_runs(picked))
    if len(runs) == 1:
        cut = _cut(op, x, axis, runs[0])
        after = replace(cut.after, node=imp.chain(op, x, cut.layers).node)
    else:
        if x.axes[axis] != x.whole(CHANNEL):
            op.refuse("gathers single positions")
        pieces = [
            imp.emit(op, _cut(op, x, axis, run).layers[0], x.node, part="part") for run in runs
        ]
        after = replace(x, extent=(len(picked), *x.pixels), node=imp.emit(op, Concat(), *pieces))
        after = replace(after, axes=_put(x, axis, after.whole(CHANNEL)))
    if not scalar:
        return after
    return replace(after, axes=tuple(a for p, a in enumerate(after.axes or ()) if p != axis))


def _runs(indices: Sequence[int]) -> Iterator[range]:
    """Indices as the longest rising arithmetic runs, one behind the other."""
    start = 0
    while start < len(indices):
        stop = start + 1
        step = max(indices[stop] - indices[start], 1) if stop < len(indices) else 1
        while stop < len(indices) and indices[stop] - indices[stop - 1] == step:
            stop += 1
        yield range(indices[start], indices[stop - 1] + 1, step)
        start = stop


@_handles("Concat")
def _concat(imp: _Importer, op: _Op) -> _Result:
    parts = [v for v in op.inputs if not (isinstance(v, _Const) and v.shape and 0 in v.shape)]
    maps = [v for v in parts if isinstance(v, _Map)]
    if len(maps) < len(parts):
        op.refuse("joins a map with a constant")
    maps = [imp.standard(op, x) if x.axes is None else x for x in maps]
    if len(maps) == 1:
        return imp.chain(op, maps[0], [])
    first = maps[0]
    assert first.axes is not None
    axis = op.attr("axis", 1) % len(first.axes)
    for x in maps:
        if x.axes is None or len(x.axes) != len(first.axes) or x.axes[axis] != x.whole(CHANNEL):
            op.refuse(
                "joins maps along a spatial axis or some of the channels; "
                "only whole channels can be joined"
            )
        others = [_put(m, axis, ()) for m in (first, x)]
        _broadcast(op, *others)
    counts = [x.extent[CHANNEL] for x in maps]
    channels = None if None in counts else sum(c for c in counts if c is not None)
    after = replace(first, node=imp.emit(op, Concat(), *(x.node for x in maps)))
    after = replace(after, extent=(channels, *first.pixels))
    return replace(after, axes=_put(first, axis, after.whole(CHANNEL)))


# --- matrices, reductions, attention --------------------------------------------------------


def _contracted(imp: _Importer, op: _Op, x: _Map, axis: int, out: int | None) -> _Map:
    """A map times constant weights: the tensor's axis becomes `out` new channels (None: none)."""
    if x.axes is None:
        after = imp.chain(op, x, [Activation(op.type.lower(), gain=1.0)])
        return replace(after, shape=op.shape)
    digits = x.axes[axis]
    whole_map = x.holds_grid(digits) and x.holds(digits, CHANNEL)
    if any(d.label == BATCH for d in digits):
        op.refuse("mixes the batch")
    if whole_map or (x.pixels == (1,) * imp.ndim and digits == x.whole(CHANNEL)):
        layer: Layer = FullyConnected(channels=out or 1)
        extent: Shape = (out or 1, *(1,) * imp.ndim)
    elif digits == x.whole(CHANNEL):
        layer, extent = Conv(1, channels=out or 1), (out or 1, *x.pixels)
    elif (
        x.holds_grid(digits)
        and len(digits) == sum(n != 1 for n in x.pixels)
        and out == _size(digits)
    ):
        return imp.chain(op, x, [Attention()])
    else:
        op.refuse(f"mixes a part of the channels or positions of a tensor of shape {x.dims}")
    after = replace(imp.chain(op, x, [layer]), extent=extent)
    axes = _put(x, axis, after.whole(CHANNEL))
    if out is None:
        axes = tuple(a for p, a in enumerate(axes) if p != axis % len(axes))
    return replace(after, axes=axes)


@_handles("Gemm")
def _gemm(imp: _Importer, op: _Op) -> _Result:
    if isinstance(op.inputs[1], _Map):
        return _attention(imp, op)
    if op.attr("transA", 0):
        op.refuse("transposes the map that it reads")
    shape = op.weight_shape(1)
    bias = op.inputs[2] if op.has_input(2) else None
    if not isinstance(bias, _Map):
        return _contracted(imp, op, op.x, 1, shape[0 if op.attr("transB", 0) else 1])
    op.refuse("adds a map to a product; export it as MatMul and Add")


@_handles("MatMul MatMulInteger QLinearMatMul")
def _matmul(imp: _Importer, op: _Op) -> _Result:
    second = op.inputs[3 if op.type == "QLinearMatMul" else 1]
    if len(op.maps) > 1:
        return _attention(imp, op)
    x = op.maps[0]
    left = second is not x
    weights = op.inputs.index(second) if left else 0
    shape = op.weight_shape(weights)
    if math.prod(shape[:-2]) != 1:
        op.refuse(f"has weights of shape {shape}, which differ from position to position")
    rank = len(x.dims or (1, 1))
    if left:
        return _contracted(imp, op, x, rank - 1, shape[-1] if len(shape) > 1 else None)
    return _contracted(imp, op, x, max(rank - 2, 0), shape[-2] if len(shape) > 1 else None)


@_handles("Einsum Attention")
def _attention(imp: _Importer, op: _Op) -> _Result:
    """A product of maps over positions: each element reads every position of them."""
    if len(op.maps) == 1 and op.type == "Einsum":
        return _einsum(imp, op)
    for x in op.maps:
        # Batch-like axes (all but the last two) that hold positions are windows of their own.
        if op.type != "Einsum" and any(d.label > CHANNEL for a in (x.axes or ())[:-2] for d in a):
            op.refuse("multiplies maps within windows or along one axis")
    return imp._attend(op, op.maps)


def _einsum(imp: _Importer, op: _Op) -> _Map:
    """A map times constant weights that share one letter with it and keep the others' order."""
    equation = str(op.attr("equation", "")).replace(" ", "")
    terms, _, result = equation.partition("->")
    letters = dict(zip(terms.split(","), op.inputs, strict=False))
    own = next((t for t, v in letters.items() if isinstance(v, _Map)), "")
    weights = next((t for t, v in letters.items() if isinstance(v, _Const)), "")
    gone = [c for c in own if c in weights and c not in result]
    new = [c for c in weights if c not in own]
    if len(gone) != 1 or len(new) != 1 or len(weights) != 2 or not result or "." in equation:
        op.refuse(f"computes {equation!r}")
    index = next(i for i, v in enumerate(op.inputs) if isinstance(v, _Const))
    out = op.weight_shape(index)[weights.index(new[0])]
    after = _contracted(imp, op, op.maps[0], own.index(gone[0]), out)
    written = own.replace(gone[0], new[0])
    if after.axes is None or sorted(written) != sorted(result):
        return after
    return replace(after, axes=tuple(after.axes[written.index(c)] for c in result))


_GLOBAL_MAXIMA = ("ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare", "ReduceProd")


@_handles(
    "ReduceMean ReduceSum ReduceMax ReduceMin ReduceL1 ReduceL2 ReduceSumSquare ReduceProd "
    "ReduceLogSum ReduceLogSumExp ArgMax ArgMin"
)
def _reduce(imp: _Importer, op: _Op) -> _Result:
    x = op.x
    if x.axes is None:
        return replace(imp.chain(op, x, []), shape=op.shape)
    arg = op.type.startswith("Arg")
    axes = [op.attr("axis", 0)] if arg else op.operand(1, "axes")
    rank = len(x.axes)
    if not axes:
        axes = [] if op.attr("noop_with_empty_axes", 0) else list(range(rank))
    gone = {a % rank for a in axes}
    digits = tuple(d for p in gone for d in x.axes[p])
    layers: list[Layer] = []
    extent = x.extent
    if _reads_grid(op, x, [digits]):
        layers.append(GlobalPool("max" if arg or op.type in _GLOBAL_MAXIMA else "avg"))
        extent = (extent[0], *(1,) * imp.ndim)
    if any(d.label == CHANNEL for d in digits):
        if not x.holds(digits, CHANNEL):
            op.refuse("reduces a part of the channels")
        layers.append(Conv(1, channels=1))
        extent = (1, *extent[1:])
    keep = op.attr("keepdims", 1)
    left = [() if p in gone else axis for p, axis in enumerate(x.axes) if keep or p not in gone]
    return replace(imp.chain(op, x, layers), extent=extent, axes=tuple(left))


# --- padding and resizing -------------------------------------------------------------------

_PAD_MODES = {"constant": "zeros", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}


@_handles("Pad")
def _pad(imp: _Importer, op: _Op) -> _Result:
    x = imp.standard(op, op.x)
    pads = op.operand(1, "pads", op.attr("paddings"))
    rank = imp.ndim + 2
    axes = op.operand(3, "axes") or list(range(rank))
    pairs = [(0, 0)] * rank
    for i, axis in enumerate(axes):
        pairs[axis % rank] = (pads[i], pads[len(axes) + i])
    if any(map(any, pairs[:2])):
        op.refuse(f"pads the batch or the channels by {pairs[:2]}")
    mode: Any = _PAD_MODES.get(op.attr("mode", "constant"))
    if mode is None:
        op.refuse(f"pads in the mode {op.attr('mode')!r}")
    cut, left = _uncropped(pairs[2:])
    return imp.grid(op, x, *cut, *([Pad(left, mode)] if left != 0 or not cut else []))


@_handles("Resize Upsample")
def _resize(imp: _Importer, op: _Op) -> _Result:
    x = imp.standard(op, op.x)
    old = op.type == "Upsample" or op.version < 11
    rank = imp.ndim + 2
    axes = [a % rank for a in op.attr("axes") or range(rank)]
    scales = op.operand(1 if old else 2, "scales")
    sizes = None if old or not op.has_input(3) else op.operand(3, "sizes")
    scale: list[Fraction | None] = [Fraction(1)] * rank
    out: list[int | None] = list(x.dims or ())
    if scales:
        for axis, value in zip(axes, scales, strict=True):
            scale[axis] = _scale(op, value)
            n = out[axis]
            out[axis] = None if n is None else math.floor(n * (scale[axis] or 1))
    elif sizes:
        if op.shape is not None and op.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
            sizes = [op.shape[axis] for axis in axes]
        for axis, m in zip(axes, sizes, strict=True):
            n = out[axis]
            scale[axis] = None if n is None or m is None else Fraction(m, n)
            out[axis] = m
    else:
        op.refuse("states neither scales nor sizes")
    if scale[0] != 1 or scale[1] != 1:
        op.refuse("resizes the batch or the channels")
    if all(s == 1 for s in scale):
        return imp.chain(op, x, [])
    layer = _upsample(op, old, scale[2:], x.pixels, out[2:])
    return imp.grid(op, x, layer)


def _scale(op: _Op, value: float) -> Fraction:
    """A float32 scale as the fraction that was meant."""
    if not math.isfinite(value) or value <= 0:
        op.refuse(f"has a scale of {value}")
    fraction = Fraction(value).limit_denominator(1024)
    if np.float32(float(fraction)) != np.float32(value):
        op.refuse(f"scales by {value}, which is no fraction with a denominator up to 1024")
    return fraction


def _upsample(
    op: _Op, old: bool, scale: Sequence[Fraction | None], size: Shape, out: Sequence[int | None]
) -> Layer:
    """The resize with exactly ONNX's coordinates; others are refused."""
    mode = op.attr("mode", "nearest")
    coordinates = op.attr("coordinate_transformation_mode", "asymmetric" if old else "half_pixel")
    rounding = op.attr("nearest_mode", "floor" if old else "round_prefer_floor")
    if op.attr("antialias", 0):
        op.refuse("smooths before it resizes (antialias)")
    if mode not in ("nearest", "linear"):
        op.refuse(f"resizes in the mode {mode!r}")
    known = [s for s in scale if s is not None]
    if len(known) < len(scale):
        if mode == "nearest":
            op.refuse("resizes a map of unknown size to a fixed one; give input_size")
        given: dict[str, Any] = {"size": _spell(list(out))}
    else:
        given = {"scale": _spell([s.numerator if s.denominator == 1 else s for s in known])}
    axes = [a for a in zip(scale, size, out, strict=True) if a[0] != 1]
    if mode == "nearest":
        names = [_nearest(coordinates, rounding, s, n, m) for s, n, m in axes if s is not None]
        modes: tuple[Literal["nearest", "nearest-exact"], ...] = ("nearest", "nearest-exact")
        for name in modes:
            if all(name in own for own in names):
                return Upsample(mode=name, **given)
        op.refuse(f"rounds {coordinates} coordinates by {rounding}")
    same = {"half_pixel", "align_corners", "asymmetric"}
    if coordinates == "pytorch_half_pixel" and all(
        (m is not None and m > 1) or n == 1 for _, n, m in axes
    ):
        coordinates = "half_pixel"
    if coordinates == "half_pixel_symmetric" and all(
        s is None or (n is not None and (n * s).denominator == 1) for s, n, _ in axes
    ):
        coordinates = "half_pixel"
    if coordinates not in same:
        op.refuse(f"resizes with {coordinates} coordinates")
    return Upsample(mode="linear", coordinates=coordinates, **given)


_COMPARED = 4096
"""Most rows of a resize that are compared one by one."""


def _nearest(
    coordinates: str, rounding: str, scale: Fraction, n: int | None, m: int | None
) -> set[str]:
    """Which of fastrf's nearest modes read the same pixels as ONNX's coordinates and rounding."""
    half = Fraction(1, 2)
    # Rows beyond the first period of scale.numerator repeat it; on small maps all are compared,
    # because the ends are clamped and two coordinate rules depend on the size.
    sized = n is not None and m is not None and m <= _COMPARED
    rows = m if sized and m is not None else scale.numerator
    if rows > _COMPARED:
        return set()
    at: Callable[[int], Fraction]
    if coordinates == "asymmetric":
        at = lambda o: o / scale  # noqa: E731
    elif coordinates == "half_pixel" or (coordinates == "pytorch_half_pixel" and m != 1):
        at = lambda o: (o + half) / scale - half  # noqa: E731
    elif coordinates == "pytorch_half_pixel" and sized:
        at = lambda o: Fraction(0)  # noqa: E731
    elif coordinates == "align_corners" and sized:
        at = lambda o: Fraction(o * ((n or 1) - 1), max(rows - 1, 1))  # noqa: E731
    elif coordinates == "half_pixel_symmetric" and sized:
        shift = Fraction(n or 1, 2) * (1 - Fraction(rows) / ((n or 1) * scale))
        at = lambda o: shift + (o + half) / scale - half  # noqa: E731
    else:
        return set()
    rounded: dict[str, Callable[[Fraction], int]] = {
        "floor": math.floor,
        "ceil": math.ceil,
        "round_prefer_floor": lambda x: math.ceil(x - half),
        "round_prefer_ceil": lambda x: math.floor(x + half),
    }
    if rounding not in rounded:
        return set()
    own: Mapping[str, Callable[[int], int]] = {
        "nearest": lambda o: math.floor(o / scale),
        "nearest-exact": lambda o: math.floor((o + half) / scale),
    }
    top = n - 1 if sized and n is not None else math.inf
    low = 0 if sized else -math.inf

    def pixel(index: int) -> float:
        return min(max(index, low), top)

    return {
        name
        for name, read in own.items()
        if all(pixel(read(o)) == pixel(rounded[rounding](at(o))) for o in range(rows))
    }
