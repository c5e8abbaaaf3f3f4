"""ONNX models as networks.

Only the graph is read, unless ``weights="trained"`` asks for more: weights are neither needed nor
opened, external data least of all. Every
tensor that depends on an input map is followed as a `layout.Map`, which says what the digits of
the tensor's indices mean (batch, channel, position). Reshapes and transposes move digits, so NHWC
graphs, ShuffleNet's shuffle, pixel shuffles and token layouts are recognised by what they do and
not by the pattern of nodes they are written with. Everything else is a constant, kept as its
shape and, where it is small, its value, from which sizes, axes and pads are worked out.

Imported networks count as initialised to keep the variance: activations have gain 1; `init` draws
weights by a scheme instead. Norm-like
pooling (LpPool, ReduceL1, ReduceL2) hands each of its k taps 1/k like max-pooling: for p = 2 the
gradient is x/‖x‖, whose squares sum to 1.

Behind what all importers share, the modules build on each other in this order: `reading` (bytes →
a model without its weights), `branches` (graphs inside nodes), `graph` (inputs, shapes, who reads
what), `op` (one node; the registry), `folding` (constants), `operators` (a handler per operator),
`importer` (the walk).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from fastrf.errors import InputError
from fastrf.importers.failing import line
from fastrf.importers.layout import known
from fastrf.importers.onnx.graph import Graph, Layout
from fastrf.importers.onnx.importer import Importer
from fastrf.importers.onnx.reading import constants, light, open_model, readable
from fastrf.importers.policy import Policy, checked_policy
from fastrf.importers.weighting import Detail, Weighting
from fastrf.network import Network

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["Policy", "from_onnx", "input_sizes"]


def from_onnx(
    model: str | os.PathLike[str] | bytes | ModelProto,
    *,
    unknown: Policy = "error",
    input_size: int | Sequence[int] | None = None,
    layout: Layout | None = None,
    name: str | None = None,
    init: str | None = None,
    weights: Literal["trained"] | None = None,
    channels: Detail = "mean",
) -> Network:
    """The network of an ONNX model.

    Args:
        model: a ``.onnx`` file, its bytes, or a loaded ``onnx.ModelProto`` (left as it is).
        unknown: what an operator that fastrf cannot express becomes: "error" raises; "identity"
            passes every pixel on; "global" lets each output read every input.
        input_size: pixels per axis, for inputs whose size the model leaves open; needed only
            where the graph computes with that size.
        layout: "channels_first" or "channels_last", of the inputs. By default channels come first,
            unless all that reads an input first moves its last axis there.
        name: the network's name; default: the file's name or the graph's.
        init, weights, channels: as in `from_torch`. ``weights="trained"`` opens the weights, also
            those that a file keeps beside it.

    Returns:
        A network whose nodes are called like the ONNX nodes (like their output where a node has
        no name of its own). Tensors that the graph returns under another name are end points.
        Inputs that no output depends on are left out. A batch size that is left open counts as 1.
        Pooling over a window as large as its whole map, where that has a fixed size, is a
        `GlobalPool`.

    Raises:
        NetworkFileError: the file cannot be read, is no ONNX model, or has no spatial input.
        UnsupportedOperator: an operator that fastrf cannot express, with ``unknown="error"``.
        InputError: `unknown` or `input_size` is out of range.
        MissingExtra: the package ``onnx`` is not installed.
    """
    checked_policy(unknown)
    if layout is not None and layout not in get_args(Layout):
        raise InputError(
            f"layout={layout!r} is unknown; give 'channels_first' or 'channels_last', or leave it "
            f"out"
        )
    weighting = Weighting.of(init, weights, channels)
    source, proto = open_model(model)
    file = Path(model) if isinstance(model, str | os.PathLike) else None
    with readable(source):
        if name is None:
            name = line(proto.graph.name) or None if file is None else Path(source).stem
        read = None
        if weighting.trained:
            folder = None if file is None else file.parent
            read = partial(constants, source=source, folder=folder)
        graph = Graph(light(proto, source), source, input_size, layout)
        values = {} if read is None else read(proto.graph)
        return Importer(graph, unknown, weighting, values, read).network(name)


def input_sizes(
    model: str | os.PathLike[str] | bytes | ModelProto,
) -> dict[str, tuple[int, ...] | None]:
    """Pixels per axis of every spatial input of an ONNX model, None where the model leaves it open.

    Raises: as `from_onnx`.
    """
    source, proto = open_model(model)
    with readable(source):
        maps = Graph(light(proto, source), source).input_maps
    return {name: known(x.pixels) for name, x in maps.items()}
