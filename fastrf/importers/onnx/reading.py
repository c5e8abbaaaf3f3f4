"""From a file, bytes or a message to a checked model without its weights."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fastrf.errors import InputError, MissingExtra
from fastrf.importers.failing import fail, line

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

MAX_BYTES = 2**31 - 1
"""Largest model file: a protocol-buffer message cannot be longer."""

SMALL = 4096
"""Constants of up to so many elements keep their values; of larger ones only the shape is kept."""

MOST_NODES = 1_000_000
"""Most nodes of a graph whose local functions are inlined."""

DEEPEST = 100
"""Most local functions that call each other in a row."""

STANDARD = ("", "ai.onnx")
"""The two spellings of the standard operators' domain."""

WEIGHT = "fastrf.weight"
"""Key under which `light` lists the inputs that stand for constants."""


@contextmanager
def readable(source: str) -> Iterator[None]:
    """Protocol buffers check the text in a message no sooner than it is read."""
    try:
        yield
    except UnicodeDecodeError:
        fail(source, "holds text that is not UTF-8; export or copy it again")


def open_model(model: Any) -> tuple[str, ModelProto]:
    """What messages call the model, and the model."""
    try:
        import onnx
    except ImportError:
        raise MissingExtra(
            'reading ONNX models needs the package onnx; pip install "fastrf[onnx]"'
        ) from None
    from google.protobuf.message import DecodeError

    if isinstance(model, onnx.ModelProto):
        return "model", model
    if isinstance(model, str | os.PathLike):
        source = line(os.fspath(model))
        data = _read(Path(model), source)
    elif isinstance(model, bytes | bytearray | memoryview):
        source, data = "model", bytes(model)
    else:
        raise InputError(
            f"{type(model).__name__} is no ONNX model; give a path, bytes or an onnx.ModelProto"
        )
    _check_length(len(data), source)
    try:
        # Parsed from memory: no external data can be opened this way.
        proto = onnx.ModelProto.FromString(data)
    except (DecodeError, ValueError, TypeError):
        fail(source, "is no ONNX model, or cut short; export or copy it again")
    if not proto.opset_import or not proto.graph.node:
        fail(source, "holds no graph; it is no ONNX model, or cut short: export or copy it again")
    return source, proto


def _read(path: Path, source: str) -> bytes:
    try:
        if path.exists() and not path.is_file():
            fail(source, "is no regular file; give a .onnx file")
        _check_length(path.stat().st_size, source)
        return path.read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        fail(source, f"cannot be read: {reason}; check the path")


def _check_length(length: int, source: str) -> None:
    if length > MAX_BYTES:
        fail(source, f"is larger than {MAX_BYTES} bytes; save its weights as external data")


def light(model: ModelProto, source: str) -> ModelProto:
    """A copy without weights: large or external constants become inputs of the same shape.

    Shape inference serialises its model, so weights would cost time and could exceed 2 GiB.
    """
    import onnx

    copy = onnx.ModelProto(ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    copy.functions.extend(model.functions)
    graph = copy.graph
    graph.name = model.graph.name
    graph.output.extend(model.graph.output)
    graph.value_info.extend(model.graph.value_info)
    tensors, nodes, hollow = emptied(model.graph)
    graph.initializer.extend(tensors)
    graph.node.extend(nodes)
    given = {value.name for value in hollow}
    graph.input.extend(i for i in model.graph.input if i.name not in given)
    add_hollow(graph, hollow)
    if not copy.functions:
        return copy
    from onnx import inliner

    _check_inlining(copy, source)
    try:
        inlined: ModelProto = inliner.inline_local_functions(copy)
    except (RuntimeError, ValueError) as error:
        fail(source, f"its local functions cannot be inlined: {error}; inline them before")
    if not inlined.graph.metadata_props:
        inlined.graph.metadata_props.extend(graph.metadata_props)
    return inlined


def emptied(
    graph: GraphProto,
) -> tuple[list[TensorProto], list[NodeProto], list[ValueInfoProto]]:
    """The small constants of a graph, its nodes but for those that hold others, and what stands for
    the other constants."""
    from onnx import helper

    sparse = [t.values for t in graph.sparse_initializer]
    shapes = [t.dims for t in graph.sparse_initializer]
    hollow = [(t.name, t.data_type, d) for t, d in zip(sparse, shapes, strict=True)]
    kept, nodes = [], []
    for tensor in graph.initializer:
        if _is_small(tensor):
            kept.append(tensor)
        else:
            hollow.append((tensor.name, tensor.data_type, tensor.dims))
    for node in graph.node:
        value = constant_tensor(node)
        if value is None or _is_small(value):
            nodes.append(node)
        else:
            hollow.append((node.output[0], value.data_type, value.dims))
    return kept, nodes, [helper.make_tensor_value_info(*parts) for parts in hollow]


def add_hollow(graph: GraphProto, hollow: Sequence[ValueInfoProto]) -> None:
    """Inputs that stand for constants."""
    graph.input.extend(hollow)
    for name in sorted(value.name for value in hollow):
        graph.metadata_props.add(key=WEIGHT, value=name)


def _check_inlining(model: ModelProto, source: str) -> None:
    """Refuses local functions that grow out of bounds: each may call another one twice."""
    inside = {(f.domain, f.name): list(_with_subgraphs(f.node)) for f in model.functions}
    calls = {
        key: Counter(called for n in nodes if (called := (n.domain, n.op_type)) in inside)
        for key, nodes in inside.items()
    }
    readers: dict[tuple[str, str], list[tuple[str, str]]] = {key: [] for key in inside}
    for key, counts in calls.items():
        for called in counts:
            readers[called].append(key)
    waiting = {key: len(counts) for key, counts in calls.items()}
    ready = [key for key, count in waiting.items() if not count]
    sizes: dict[tuple[str, str], tuple[int, int]] = {}  # nodes and depth once inlined
    while ready:
        key = ready.pop()
        below = [(count, *sizes[called]) for called, count in calls[key].items()]
        nodes = len(inside[key]) + sum(count * size for count, size, _ in below)
        depth = 1 + max((depth for _, _, depth in below), default=0)
        if nodes > MOST_NODES or depth > DEEPEST:
            fail(
                source,
                f"its local function {key[1]!r} is {nodes} nodes, {depth} functions deep, where at "
                f"most {MOST_NODES} and {DEEPEST} are inlined; inline it before",
            )
        sizes[key] = nodes, depth
        for reader in readers[key]:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    if len(sizes) < len(inside):
        _, name = next(key for key in inside if key not in sizes)
        fail(source, f"its local function {name!r} calls itself; export the model without it")
    nodes_of = _with_subgraphs(model.graph.node)
    total = sum(sizes.get((n.domain, n.op_type), (1, 0))[0] for n in nodes_of)
    if total > MOST_NODES:
        fail(
            source,
            f"is {total} nodes once its local functions are inlined, more than {MOST_NODES}; "
            f"export a smaller model",
        )


def _with_subgraphs(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """The nodes and those of the graphs in their attributes; messages nest up to 100 deep."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            yield from _with_subgraphs(attribute.g.node)
            for graph in attribute.graphs:
                yield from _with_subgraphs(graph.node)


def constants(graph: GraphProto, source: str, folder: Path | None) -> dict[str, NDArray[Any]]:
    """The floating-point constants of a graph by name, its weights among them, and those that it
    stores in few bits.

    Args:
        folder: where external data lie; None: nowhere.

    Raises:
        NetworkFileError: they cannot be read.
    """
    from onnx import numpy_helper

    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        value = constant_tensor(node)
        if value is not None:
            tensors[node.output[0]] = value
    quantised = {name for n in graph.node if n.op_type == "DequantizeLinear" for name in n.input}
    found = {}
    for name, tensor in tensors.items():
        if tensor.data_location == tensor.EXTERNAL and folder is None:
            fail(source, f"keeps {name!r} in a file of its own; give the path of the model instead")
        if tensor.data_location == tensor.EXTERNAL and folder is not None:
            _check_location(tensor, source, folder)
        try:
            values = np.asarray(numpy_helper.to_array(tensor, str(folder or "")))
        except Exception as error:  # Whatever a damaged tensor or a missing file makes it raise.
            fail(
                source, f"its weights {name!r} cannot be read: {line(error)}; save the model again"
            )
        if values.dtype.name == "bfloat16":
            values = values.astype(np.float32)
        if values.dtype.kind == "f" or name in quantised:
            found[name] = values
    return found


def _check_location(tensor: TensorProto, source: str, folder: Path) -> None:
    """Refuses external data that are not in a file below the model's own folder."""
    location = next((e.value for e in tensor.external_data if e.key == "location"), "")
    try:
        path, home = folder / location, folder.resolve()
        inside = not Path(location).is_absolute() and ".." not in Path(location).parts
        inside = inside and path.resolve() == home / location and path.is_file()
    except (OSError, ValueError, RuntimeError):
        inside = False
    if not inside:
        fail(
            source,
            f"keeps {tensor.name!r} in {location!r}, which is no file below the model's folder "
            f"(links are not followed); put it there and save the model again",
        )


def constant_tensor(node: NodeProto) -> TensorProto | None:
    """The tensor that a Constant node holds."""
    if node.op_type != "Constant" or node.domain not in STANDARD:
        return None
    return next((a.t for a in node.attribute if a.name == "value"), None)


def _is_small(tensor: TensorProto) -> bool:
    """Whether a tensor's values are kept; external ones never are."""
    return tensor.data_location != tensor.EXTERNAL and math.prod(tensor.dims) <= SMALL


def array(tensor: TensorProto) -> NDArray[Any] | None:
    """The values of a small tensor; None where they are stored elsewhere or malformed."""
    from onnx import numpy_helper

    if not _is_small(tensor):
        return None
    try:
        return np.asarray(numpy_helper.to_array(tensor))
    except (ValueError, TypeError, KeyError):
        return None
