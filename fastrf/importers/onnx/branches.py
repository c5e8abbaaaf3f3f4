"""Graphs inside nodes: what they read from outside, and a branch in the place of its If."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from fastrf.importers.onnx.reading import STANDARD

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs in a node's attributes."""
    for attribute in node.attribute:
        if attribute.type == attribute.GRAPH:
            yield attribute.g
        elif attribute.type == attribute.GRAPHS:
            yield from attribute.graphs


def captured(node: NodeProto) -> list[str]:
    """The tensors that the graphs of a node read from outside, in their order; messages nest up to
    100 deep."""
    found: dict[str, None] = {}
    for graph in subgraphs(node):
        own = {i.name for i in graph.input} | {t.name for t in graph.initializer}
        for inner in graph.node:
            found.update(dict.fromkeys(n for n in (*inner.input, *captured(inner)) if n not in own))
            own.update(inner.output)
        found.update(dict.fromkeys(o.name for o in graph.output if o.name not in own))
    return [name for name in found if name]


def is_choice(node: NodeProto) -> bool:
    return node.op_type == "If" and node.domain in STANDARD


def taken_branch(node: NodeProto, then: bool) -> GraphProto | None:
    """The graph that an If runs, None where the file has none."""
    wanted = "then_branch" if then else "else_branch"
    return next((a.g for a in node.attribute if a.name == wanted and a.type == a.GRAPH), None)


def spliced(node: NodeProto, branch: GraphProto, taken: Collection[str]) -> GraphProto:
    """The branch as a part of the graph that holds its If.

    Its results are called like those of the If. All else that it defines keeps its name where that
    is not `taken`: two branches may use the same.
    """
    import onnx
    from onnx import helper

    part = onnx.GraphProto()
    part.CopyFrom(branch)
    defined = {t.name for t in part.initializer} | {t.values.name for t in part.sparse_initializer}
    written = {name for inner in part.node for name in inner.output if name}
    names: dict[str, str] = {}
    used = {*taken, *defined, *written}
    for name in sorted(defined | written):
        if name in taken:
            names[name] = next(n for i in itertools.count(2) if (n := f"{name}.{i}") not in used)
            used.add(names[name])
    copies = []
    for result, own in zip(part.output, node.output, strict=False):
        if result.name in written and result.name not in copies:
            names[result.name] = own
            copies.append(result.name)
        elif own:
            source = names.get(result.name, result.name)
            part.node.append(helper.make_node("Identity", [source], [own]))
    _rename(part, names)
    return part


def _rename(graph: GraphProto, names: dict[str, str]) -> None:
    """Other names for tensors, in inner graphs too."""
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = names.get(sparse.values.name, sparse.values.name)
    for value in (*graph.input, *graph.output):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
        for inner in subgraphs(node):
            _rename(inner, names)
