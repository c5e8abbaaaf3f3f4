"""Networks: directed acyclic graphs of layers, and the blocks they are written with."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from typing import Any, Literal

from fastrf.errors import InputError
from fastrf.layers import Add, Concat, Identity, Input, Layer, Multiply

DEFAULT_NDIM = 2


@dataclass(frozen=True, slots=True)
class Node:
    """One layer of a network: its name, the layer and the names of the nodes it reads."""

    name: str
    layer: Layer
    inputs: tuple[str, ...] = ()


Block = "Layer | Network | Sequence[Any]"
"""What blocks are built from: a layer, a network with one input and one output, or a sequence."""


class Network:
    """A directed acyclic graph of layers over a grid of 1, 2 or 3 axes.

    Args:
        nodes: mapping of name → ``(layer, *names of the nodes read)``, or an iterable of `Node`.
            The name "input" may be read without being defined: it is then the one `Input`.
        outputs: names of the output nodes; default: the nodes that nothing reads.
        ndim: number of axes; default: what the layers' tuples imply, else 2.
        name: shown in tables and reports.
        endpoints: further names for nodes ("layer1" → "layer1.2.relu"), to ask for by name.

    Two networks are equal when they compute the same: node names, the order of the nodes and the
    way a value is spelled (``3`` or ``(3, 3)``, ``"valid"`` or ``0``) do not matter.

    Raises:
        InputError: an unknown name, a cycle, a wrong number of inputs, conflicting axes, or a
            value that a layer refuses.
    """

    def __init__(
        self,
        nodes: Mapping[str, Sequence[Any]] | Iterable[Node],
        outputs: Sequence[str] | str | None = None,
        *,
        ndim: int | None = None,
        name: str | None = None,
        endpoints: Mapping[str, str] | None = None,
    ) -> None:
        given = _as_nodes(nodes)
        if "input" not in given and any("input" in node.inputs for node in given.values()):
            given = {"input": Node("input", Input()), **given}
        if ndim is not None and ndim not in (1, 2, 3):
            raise InputError(f"ndim={ndim!r} is not possible; a grid has 1, 2 or 3 axes")
        self.nodes: dict[str, Node] = _topological(given)
        self.ndim = ndim
        self.name = name
        self.endpoints: dict[str, str] = dict(endpoints or {})
        read = {source for node in self.nodes.values() for source in node.inputs}
        if outputs is None:
            outputs = [n for n in self.nodes if n not in read]
        self.outputs: tuple[str, ...] = (outputs,) if isinstance(outputs, str) else tuple(outputs)
        if not self.outputs:
            raise InputError("a network needs at least one node")
        for what in (*self.outputs, *self.endpoints.values()):
            if what not in self.nodes:
                raise InputError(f"output {what!r} is not a node; {_nearest(what, self.nodes)}")

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the input nodes."""
        return tuple(n.name for n in self.nodes.values() if isinstance(n.layer, Input))

    @cached_property
    def bound(self) -> Network:
        """This network with its number of axes fixed and every layer checked and spelled out."""
        ndim = self.ndim if self.ndim is not None else self._implied_ndim()
        nodes = []
        for node in self.nodes.values():
            try:
                nodes.append(Node(node.name, node.layer.bind(ndim), node.inputs))
            except InputError as error:
                raise type(error)(f"{node.name}: {error}") from None
        bound = Network(nodes, self.outputs, ndim=ndim, name=self.name, endpoints=self.endpoints)
        bound.__dict__["bound"] = bound
        return bound

    def _implied_ndim(self) -> int:
        implied = {d for n in self.nodes.values() if (d := n.layer.implied_ndim) is not None}
        if len(implied) > 1:
            raise InputError(
                f"layers imply different numbers of axes, {sorted(implied)}; "
                f"give ndim= and as many values per layer"
            )
        return implied.pop() if implied else DEFAULT_NDIM

    def resolve(self, name: str) -> str:
        """The node that `name` means: a node or an end point.

        Raises:
            InputError: neither has that name; the message names close ones.
        """
        node = self.endpoints.get(name, name)
        if node not in self.nodes:
            known = [*self.nodes, *self.endpoints]
            raise InputError(f"no node or end point is called {name!r}; {_nearest(name, known)}")
        return node

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the network's meaning, as hexadecimal digits: equal networks share it."""
        return hashlib.sha256(_canonical(self.bound).encode()).hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Network):
            return NotImplemented
        return self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __len__(self) -> int:
        """Number of nodes, inputs not counted."""
        return len(self.nodes) - len(self.inputs)

    def __repr__(self) -> str:
        ndim = self.ndim if self.ndim is not None else self._implied_ndim()
        title = f"{self.name!r}, " if self.name else ""
        return f"Network({title}{len(self)} layers, {ndim}-D, output {', '.join(self.outputs)})"


# --- building -------------------------------------------------------------------------------


class Builder:
    """Builds a `Network` node by node; used by blocks, the zoo and the importers.

    >>> from fastrf.layers import Conv
    >>> b = Builder()
    >>> x = b.input()
    >>> y = b.add(Conv(3, padding=1), x, name="stem")
    >>> b.build(y).outputs
    ('stem',)
    """

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._counts: dict[str, int] = {}

    def input(self, name: str = "input", channels: int | None = None) -> str:
        """Adds an input map and returns its name."""
        return self.add(Input(channels), name=name)

    def add(self, block: Any, *inputs: str, name: str | None = None, prefix: str = "") -> str:
        """Adds a layer, a network or a sequence of them behind `inputs`; returns its output.

        `name` names the node (for a network: its last node); `prefix` goes before every name.
        """
        if isinstance(block, Network):
            return self._embed(block, inputs, prefix, name)
        if isinstance(block, list | tuple):
            for item in block:
                inputs = (self.add(item, *inputs, prefix=prefix),)
            return inputs[0]
        if not isinstance(block, Layer):
            raise InputError(
                f"{block!r} is not a layer; give layers (Conv(3)), blocks (Residual(…)) or lists"
            )
        full = prefix + name if name else self._fresh(prefix, block.kind)
        if full in self._nodes:
            raise InputError(f"two nodes are called {full!r}; names must differ")
        self._nodes[full] = Node(full, block, tuple(inputs))
        return full

    def build(self, *outputs: str, **options: Any) -> Network:
        """The network with these outputs (default: whatever nothing reads)."""
        return Network(self._nodes.values(), outputs or None, **options)

    def scope(self, prefix: str, kind: str) -> str:
        """A fresh prefix "kind3." for a block's nodes."""
        return self._fresh(prefix, kind) + "."

    def _fresh(self, prefix: str, kind: str) -> str:
        """The first of kind1, kind2, … that is free under this prefix."""
        key = prefix + kind
        while True:
            self._counts[key] = self._counts.get(key, 0) + 1
            name = f"{key}{self._counts[key]}"
            if name not in self._nodes:
                return name

    def _embed(self, block: Network, inputs: Sequence[str], prefix: str, name: str | None) -> str:
        if len(block.outputs) != 1 or len(block.inputs) != len(inputs):
            raise InputError(
                f"a block needs one output and {len(inputs)} input(s), "
                f"got {len(block.outputs)} and {len(block.inputs)}"
            )
        scope = prefix if block.name is None else self.scope(prefix, block.name)
        names = dict(zip(block.inputs, inputs, strict=True))
        for node in block.nodes.values():
            if isinstance(node.layer, Input):
                continue
            last = node.name == block.outputs[0]
            wanted: str | None = node.name
            if block.name is None:
                # An unnamed sequence joins its surroundings: its automatic names count on.
                wanted = None if node.name.startswith(node.layer.kind) else node.name
            names[node.name] = self.add(
                node.layer,
                *(names[i] for i in node.inputs),
                name=name if last and name else wanted,
                prefix="" if last and name else scope,
            )
        return names[block.outputs[0]]


def Sequential(*blocks: Any, ndim: int | None = None, name: str | None = None) -> Network:
    """Layers and blocks one behind the other.

    Args:
        blocks: layers, networks with one input and one output, or lists of them; a pair
            ``("stem", Conv(7))`` names a layer. An `Input` may come first.
        ndim: number of axes; default: what tuples imply, else 2.
    """
    b = Builder()
    items = list(blocks)
    if items and isinstance(items[0], Input):
        at = b.add(items.pop(0), name="input")
    else:
        at = b.input()
    for item in items:
        if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
            at = b.add(item[1], at, name=item[0])
        else:
            at = b.add(item, at)
    return b.build(at, ndim=ndim, name=name)


def Residual(
    *branch: Any, shortcut: Any = None, ndim: int | None = None, name: str = "residual"
) -> Network:
    """``y = shortcut(x) + branch(x)``; the shortcut is the identity by default."""
    b = Builder()
    x = b.input()
    side = x if shortcut is None else b.add(shortcut, x, prefix="shortcut.")
    deep = b.add(list(branch), x)
    return b.build(b.add(Add(), side, deep), ndim=ndim, name=name)


def Parallel(
    *branches: Any,
    merge: Literal["add", "concat", "multiply"] = "add",
    ndim: int | None = None,
    name: str = "parallel",
) -> Network:
    """Branches that read the same map and merge; ``None`` is the identity branch."""
    merges: dict[str, Layer] = {"add": Add(), "concat": Concat(), "multiply": Multiply()}
    if merge not in merges:
        raise InputError(f"merge={merge!r} is unknown; choose one of {', '.join(merges)}")
    if not branches:
        raise InputError("Parallel needs at least one branch; give layers, blocks or None")
    b = Builder()
    x = b.input()
    ends = [
        x if branch is None else b.add(branch, x, prefix=f"branch{i}.")
        for i, branch in enumerate(branches, 1)
    ]
    return b.build(b.add(merges[merge], *ends), ndim=ndim, name=name)


def as_network(net: Any) -> Network:
    """A network from what the verbs accept: a `Network`, a layer or a sequence of blocks."""
    if isinstance(net, Network):
        return net
    if isinstance(net, Layer):
        return Sequential(net)
    if isinstance(net, list | tuple):
        return Sequential(*net)
    raise InputError(
        f"{type(net).__name__} is not a network; give a Network, layers, or read one with "
        f"fastrf.load (TOML, JSON), fastrf.from_onnx or fastrf.zoo"
    )


# --- graph helpers --------------------------------------------------------------------------


def _as_nodes(nodes: Mapping[str, Sequence[Any]] | Iterable[Node]) -> dict[str, Node]:
    if isinstance(nodes, Mapping):
        listed = []
        for name, entry in nodes.items():
            entry = (entry,) if isinstance(entry, Layer) else tuple(entry)
            listed.append(Node(name, entry[0], tuple(entry[1:])))
    else:
        listed = list(nodes)
    result: dict[str, Node] = {}
    for node in listed:
        if not isinstance(node.layer, Layer):
            raise InputError(f"{node.name}: {node.layer!r} is not a layer")
        if node.name in result:
            raise InputError(f"two nodes are called {node.name!r}; names must differ")
        least, most = node.layer.inputs
        count = len(node.inputs)
        if count < least or (most is not None and count > most):
            wanted = f"{least}" if least == most else f"at least {least}"
            raise InputError(
                f"{node.name}: {type(node.layer).__name__} reads {wanted} map(s), got {count}"
            )
        result[node.name] = node
    return result


def _topological(nodes: dict[str, Node]) -> dict[str, Node]:
    """The nodes with every node behind those it reads, otherwise in the given order (Kahn)."""
    readers: dict[str, list[str]] = {name: [] for name in nodes}
    waiting: dict[str, int] = {}
    for node in nodes.values():
        for source in node.inputs:
            if source not in nodes:
                raise InputError(
                    f"{node.name} reads {source!r}, which is no node; {_nearest(source, nodes)}"
                )
            readers[source].append(node.name)
        waiting[node.name] = len(node.inputs)
    ready = [name for name, count in waiting.items() if count == 0][::-1]
    order: dict[str, Node] = {}
    while ready:
        name = ready.pop()
        order[name] = nodes[name]
        for reader in reversed(readers[name]):
            waiting[reader] -= 1
            if waiting[reader] == 0:
                ready.append(reader)
    if len(order) < len(nodes):
        raise InputError(f"the graph has a cycle: {' → '.join(_cycle(nodes, order))}")
    return order


def _cycle(nodes: dict[str, Node], done: Mapping[str, Node]) -> list[str]:
    """One cycle among the nodes that could not be ordered, in the direction of the data."""
    at = next(name for name in nodes if name not in done)
    path: dict[str, int] = {}
    while at not in path:
        path[at] = len(path)
        at = next(source for source in nodes[at].inputs if source not in done)
    names = list(path)[path[at] :][::-1]
    return [names[-1], *names]


def _nearest(name: str, known: Iterable[str]) -> str:
    import difflib

    names = list(known)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.4)
    listed = close or names[:5]
    return f"{'did you mean' if close else 'there are'} {', '.join(map(repr, listed))}?"


# --- canonical form -------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, Fraction) else value


def _signature(layer: Layer) -> list[Any]:
    values = {f.name: _plain(getattr(layer, f.name)) for f in fields(layer)}
    return [type(layer).__name__, {k: v for k, v in values.items() if v is not None}]


def _canonical(network: Network) -> str:
    """The bound network as text that does not depend on names, node order or spelling.

    Nodes are numbered in the order in which a walk from the outputs finishes them. Sums and
    products read their maps in the order of their subgraphs' hashes; identities are skipped.
    """
    nodes = network.nodes
    alias: dict[str, str] = {}
    subgraph: dict[str, bytes] = {}
    sources: dict[str, list[str]] = {}
    for node in nodes.values():
        inputs = [alias[i] for i in node.inputs]
        if isinstance(node.layer, Identity):
            alias[node.name] = inputs[0]
            continue
        alias[node.name] = node.name
        if isinstance(node.layer, Add):
            inputs.sort(key=lambda i: subgraph[i])
        sources[node.name] = inputs
        digest = hashlib.sha256(json.dumps(_signature(node.layer)).encode())
        if isinstance(node.layer, Input):
            digest.update(str(network.inputs.index(node.name)).encode())
        for i in inputs:
            digest.update(subgraph[i])
        subgraph[node.name] = digest.digest()

    number: dict[str, int] = {}
    rows: list[Any] = []
    for output in network.outputs:
        stack = [(alias[output], False)]
        while stack:
            name, ready = stack.pop()
            if name in number:
                continue
            if not ready:
                stack.append((name, True))
                stack.extend((i, False) for i in reversed(sources[name]))
                continue
            number[name] = len(number)
            signature = _signature(nodes[name].layer)
            rows.append([*signature, [number[i] for i in sources[name]]])
    outputs = [number[alias[o]] for o in network.outputs]
    return json.dumps([network.ndim, rows, outputs], sort_keys=True, allow_nan=False)
