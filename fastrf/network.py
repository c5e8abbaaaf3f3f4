"""Networks: directed acyclic graphs of layers, and the blocks they are written with."""

from __future__ import annotations

import difflib
import hashlib
import heapq
import json
from collections.abc import Generator, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, fields
from fractions import Fraction
from functools import cached_property
from itertools import islice
from typing import Any, Literal

from fastrf.errors import InputError, short
from fastrf.initialisation import SCHEMES
from fastrf.layers import Add, Concat, Identity, Input, Layer, Multiply
from fastrf.layers.checks import TRAINED
from fastrf.layers.checks import scheme as scheme_of
from fastrf.layers.weights import Weights

DEFAULT_NDIM = 2

MOST_NODES = 1_250_000
"""Most layers of a network of blocks: blocks that hold each other twice over grow exponentially."""

MOST_SCOPES = 16
"""Most scopes of a layer's name ("residual1.residual3.conv1" has two), so that names stay short:
blocks that nest deeper are numbered side by side in the last scope but one."""

MOST_LETTERS = 2**28
"""Most characters of all names of a network of blocks."""


@dataclass(frozen=True, slots=True)
class Node:
    """One layer of a network: its name, the layer and the names of the nodes it reads."""

    name: str
    layer: Layer
    inputs: tuple[str, ...] = ()


class Network:
    """A directed acyclic graph of layers over a grid of 1, 2 or 3 axes.

    Args:
        nodes: mapping of name → ``(layer, *names of the nodes read)``, or an iterable of `Node`.
            The name "input" may be read without being defined: it is then the one `Input`.
        outputs: names of the output nodes; default: the nodes that nothing reads.
        ndim: number of axes; default: what the layers' tuples imply, else 2.
        name: shown in tables and reports.
        endpoints: further names for nodes ("layer1" → "layer1.2.relu"), to ask for by name.

    Two networks are equal when they are the same graph of the same layers: names, the order of
    the nodes and of the terms of a sum, identities and the way a value is spelled (``3`` or
    ``(3, 3)``, ``"valid"`` or ``0``) do not matter.

    Raises:
        InputError: an unknown name, a cycle or a wrong number of inputs. Conflicting axes and
            values that a layer refuses are found when the network is first used (`bound`), as a
            block does not know yet how many axes it will have.
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
        _check_ndim(ndim)
        if not given:
            raise InputError("a network needs at least one node; give layers")
        self.lowered: dict[Any, Any] = {}  # graphs that fastrf.lowering keeps
        self.nodes = _topological(given)
        self.ndim = ndim
        self.name = name
        self.endpoints: dict[str, str] = dict(endpoints or {})
        self._blocks: _Blocks | None = None
        if outputs is None:
            read = {source for node in self.nodes.values() for source in node.inputs}
            outputs = [n for n in self.nodes if n not in read]
        self.outputs = (outputs,) if isinstance(outputs, str) else tuple(outputs)
        if not self.outputs:
            raise InputError("outputs=() names no node; give at least one, or leave it out")
        for what in (*self.outputs, *self.endpoints.values()):
            if what not in self.nodes:
                raise InputError(
                    f"output {short(what)} is not a node; {_nearest(what, self.nodes)}"
                )
        if len(set(self.outputs)) < len(self.outputs):
            raise InputError(f"outputs={self.outputs} names a node twice; name each output once")
        for endpoint, node_name in self.endpoints.items():
            if endpoint in self.nodes and endpoint != node_name:
                raise InputError(
                    f"the end point {endpoint!r} would hide the node of that name; rename it"
                )

    @classmethod
    def _of(cls, blocks: _Blocks, ndim: int | None, name: str | None) -> Network:
        """A network of blocks, whose nodes are made when they are first asked for.

        Blocks that hold blocks would otherwise be copied once a level. What is hardly larger than
        what it was given is made at once, so that what is wrong with it is found at the door.
        """
        same = cls.__new__(cls)
        same.lowered, same.endpoints = {}, {}
        same.ndim, same.name, same._blocks = ndim, name, blocks
        if blocks.shallow:
            _ = same.nodes
        return same

    @cached_property
    def nodes(self) -> dict[str, Node]:
        """The nodes by name, each behind those that it reads."""
        return self._spelled_out().nodes

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the output nodes."""
        return self._spelled_out().outputs

    def _spelled_out(self) -> Network:
        assert self._blocks is not None
        spelled = Builder().spelled_out(self._blocks)
        self.__dict__ |= {"nodes": spelled.nodes, "outputs": spelled.outputs}
        return spelled

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the input nodes."""
        return tuple(n.name for n in self.nodes.values() if isinstance(n.layer, Input))

    @cached_property
    def bound(self) -> Network:
        """This network with its number of axes fixed and every layer checked and spelled out."""
        ndim = self.ndim if self.ndim is not None else self._implied_ndim()
        nodes = {}
        # Blocks that repeat share their layers, so each layer object is bound once; equal ones
        # become one object, so that what is made of them is made once.
        layers: dict[int, Layer] = {}
        unlike: dict[Layer, Layer] = {}
        for node in self.nodes.values():
            layer = layers.get(id(node.layer))
            if layer is None:
                try:
                    layer = node.layer.bind(ndim)
                except InputError as error:
                    raise type(error)(f"{node.name}: {error}") from None
                layer = layers[id(node.layer)] = _one_of(layer, unlike)
            nodes[node.name] = Node(node.name, layer, node.inputs)
        bound = self.with_nodes(nodes)
        bound.ndim, bound.lowered = ndim, self.lowered
        bound.__dict__["bound"] = bound
        return bound

    def with_nodes(self, nodes: dict[str, Node]) -> Network:
        """The same graph with other layers: there is nothing to check and to sort again."""
        same = copy(self)
        same.nodes, same.outputs, same._blocks, same.lowered = nodes, self.outputs, None, {}
        for derived in ("bound", "fingerprint"):
            same.__dict__.pop(derived, None)
        return same

    def _implied_ndim(self) -> int:
        implied = {d for n in self.nodes.values() if (d := n.layer.implied_ndim) is not None}
        if implied - {1, 2, 3}:
            raise InputError(
                f"a layer has {max(implied)} values per axis; a grid has 1, 2 or 3 axes"
            )
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
            raise InputError(
                f"no node or end point is called {short(name)}; {_nearest(name, known)}"
            )
        return node

    def initialised(self, scheme: str) -> Network:
        """The same network with its weights drawn by a scheme (`Conv.init`).

        Stated gains of convolutions and fully connected layers give way to the scheme's, those of
        activations to E[σ′²], and norms divide by the variance that reaches them
        (`Norm.mean_field`). Patterns of taps stay, and so do layers without weights.

        Args:
            scheme: "he", "he-fan-out", "lecun", "glorot", "pytorch", "orthogonal" or
                "delta-orthogonal"; see `fastrf.initialisation`.

        Raises:
            InputError: no scheme has that name.
        """
        if scheme == TRAINED:
            raise InputError(
                f"scheme={short(scheme)} is unknown; choose one of {', '.join(SCHEMES)}, or read "
                f"trained weights with from_torch or from_onnx"
            )
        checked = scheme_of("Network.initialised", "scheme", scheme, 0)
        layers: dict[int, Layer] = {}
        nodes = {}
        for node in self.nodes.values():
            if id(node.layer) not in layers:
                layers[id(node.layer)] = node.layer.initialised(checked)
            nodes[node.name] = Node(node.name, layers[id(node.layer)], node.inputs)
        return self.with_nodes(nodes)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the network's meaning, as hexadecimal digits: equal networks share it."""
        return hashlib.sha256(_canonical(self.bound).encode()).hexdigest()

    def __getstate__(self) -> dict[str, Any]:
        spelled = {"nodes": self.nodes, "outputs": self.outputs}
        return {**self.__dict__, **spelled, "lowered": {}, "_blocks": None}

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Network):
            return NotImplemented
        return self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __len__(self) -> int:
        """Number of nodes, inputs not counted."""
        if self._blocks is not None:
            return self._blocks.count
        return len(self.nodes) - len(self.inputs)

    def __repr__(self) -> str:
        try:
            axes = f"{self.ndim if self.ndim is not None else self._implied_ndim()}-D"
        except InputError:
            axes = "conflicting axes"
        title = f"{self.name!r}, " if self.name else ""
        return f"Network({title}{len(self)} layers, {axes}, output {', '.join(self.outputs)})"


# --- building -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Blocks:
    """What a network of blocks is made of: branches that read its input, and what merges them.

    Attributes:
        first: the input.
        branches: of each branch the prefix of its names, and its layers and networks with their
            names; those without layers are left out.
        merge: reads the branches' ends; None: there is one branch.
        count: layers, those of all blocks counted.
    """

    first: Input
    branches: tuple[tuple[str, tuple[tuple[str | None, Layer | Network], ...]], ...]
    merge: Layer | None
    count: int

    @property
    def shallow(self) -> bool:
        """Whether there are hardly more layers than were given, or one of them cannot stand here
        (which is said when the nodes are made)."""
        items = [item for _, branch in self.branches for _, item in branch]
        if self.count <= _ENLARGED * (len(items) + _ENLARGED):
            return True
        return any(isinstance(item, Layer) and not _reads(item, 1) for item in items)


_ENLARGED = 8
"""So many layers for each one given are made at once."""


def _network_of(
    branches: Iterable[tuple[str, Any]],
    merge: Layer | None,
    ndim: int | None,
    name: str | None,
    first: Input | None = None,
) -> Network:
    """A network of blocks: of each branch the prefix and the blocks.

    Raises:
        InputError: what is given is no block, numbers of axes conflict, or there are too many.
    """
    checked = []
    count = int(merge is not None)
    said: int | None = None
    for prefix, block in branches:
        items = []
        for own, item in _flatten(block):
            if isinstance(item, Network):
                _check_block(item, 1)
                said = _agreed(said, item.ndim)
            elif not isinstance(item, Layer):
                raise _not_a_layer(item)
            size = len(item) if isinstance(item, Network) else 1
            count += size
            if count > MOST_NODES:
                raise _too_many()
            if size:
                items.append((own, item))
        checked.append((prefix, tuple(items)))
    _check_ndim(ndim)
    heads = (_input_of(items[0][1]) for _, items in checked if items)
    first = first or next((own for own in heads if own.channels is not None), Input())
    blocks = _Blocks(first, tuple(checked), merge, count)
    return Network._of(blocks, _stated(ndim, said), name)


def _input_of(item: Layer | Network) -> Input:
    """The input that a block states, whose channels are those of the network that it begins."""
    if not isinstance(item, Network):
        return Input()
    if item._blocks is not None:
        return item._blocks.first
    own = item.nodes[item.inputs[0]].layer
    assert isinstance(own, Input)
    return own


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
        self._scopes: set[str] = set()
        self._ndim: int | None = None
        self._letters = 0

    def input(self, name: str = "input", channels: int | None = None) -> str:
        """Adds an input map and returns its name."""
        return self.add(Input(channels), name=name)

    def add(self, block: Any, *inputs: str, name: str | None = None, prefix: str = "") -> str:
        """Adds a layer, a network or a sequence of them behind `inputs`; returns its output.

        In a sequence a pair ``("stem", Conv(7))`` names a layer. `name` names the node (for a
        network or a sequence: its last node); `prefix` goes before every name.
        """
        if isinstance(block, list | tuple):
            items = _flatten(block)
            for i, (own, item) in enumerate(items, 1):
                named = own or (name if i == len(items) else None)
                inputs = (self.add(item, *inputs, name=named, prefix=prefix),)
            return inputs[0]
        if name is not None and not isinstance(name, str):
            raise InputError(f"name={short(name)} must be a text")
        full = prefix + name if name else None
        if isinstance(block, Network):
            _check_block(block, len(inputs))
            self._ndim = _agreed(self._ndim, block.ndim)
            self._check_room(len(block))
            return _finished(self._embed(block, inputs, prefix, full))
        if not isinstance(block, Layer):
            raise _not_a_layer(block)
        return self._add(block, inputs, prefix, full)

    def build(
        self,
        *outputs: str,
        ndim: int | None = None,
        name: str | None = None,
        endpoints: Mapping[str, str] | None = None,
    ) -> Network:
        """The network with these outputs (default: whatever nothing reads).

        Raises:
            InputError: as `Network`, or `ndim` is not what an embedded network says.
        """
        ndim = _stated(ndim, self._ndim)
        nodes = self._nodes.values()
        return Network(nodes, outputs or None, ndim=ndim, name=name, endpoints=endpoints)

    def spelled_out(self, blocks: _Blocks) -> Network:
        """The network of these blocks, node by node."""
        x = self.add(blocks.first, name="input")
        return self.build(_finished(self._branches(blocks, x, "", "", None, None)))

    def _check_room(self, more: int) -> None:
        """Refuses a graph that is too large before it is built."""
        if len(self._nodes) + more > MOST_NODES:
            raise _too_many()

    def _add(self, layer: Layer, inputs: Iterable[str], prefix: str, full: str | None) -> str:
        """Adds a layer of this full name, or of the next automatic one under the prefix."""
        self._check_room(1)
        if full is None:
            full = self._fresh(prefix, layer.kind)
        if full in self._nodes:
            raise InputError(f"two nodes are called {short(full)}; names must differ")
        self._letters += len(full)
        if self._letters > MOST_LETTERS:
            raise InputError(
                f"the names of {len(self._nodes)} layers take more than {MOST_LETTERS} characters; "
                f"give the blocks shorter names"
            )
        self._nodes[full] = Node(full, layer, tuple(inputs))
        scopes = full.split(".", MOST_SCOPES)[:-1]
        while scopes and (scope := ".".join(scopes)) not in self._scopes:
            self._scopes.add(scope)
            scopes.pop()
        return full

    def scope(self, prefix: str, kind: str) -> str:
        """A fresh prefix "kind3." for a block's nodes; beside the last scope of `prefix`, not in
        it, where there would be more than `MOST_SCOPES`."""
        scopes = prefix.split(".")[:-1]
        if len(scopes) >= MOST_SCOPES:
            prefix = ".".join([*scopes[: MOST_SCOPES - 1], ""])
        return self._fresh(prefix, kind) + "."

    def _fresh(self, prefix: str, kind: str) -> str:
        """The first of kind1, kind2, … that is free under this prefix."""
        key = prefix + kind
        while True:
            self._counts[key] = self._counts.get(key, 0) + 1
            name = f"{key}{self._counts[key]}"
            if name not in self._nodes and name not in self._scopes:
                return name

    def _embed(
        self, block: Network, inputs: Sequence[str], prefix: str, full: str | None
    ) -> _Steps:
        """Adds a network behind `inputs`; its last node is called `full`, if that is given."""
        scope = prefix if block.name is None else self.scope(prefix, block.name)
        renamed: dict[str, str] | None = {} if block.name is None else None
        if block._blocks is not None:
            return (yield self._branches(block._blocks, inputs[0], prefix, scope, renamed, full))
        names = dict(zip(block.inputs, inputs, strict=True))
        for node in block.nodes.values():
            if isinstance(node.layer, Input):
                continue
            own = full if node.name == block.outputs[0] else None
            own = own or self._within(scope, node.name, node.layer, renamed)
            names[node.name] = self._add(node.layer, [names[i] for i in node.inputs], scope, own)
        return names[block.outputs[0]]

    def _branches(
        self,
        blocks: _Blocks,
        x: str,
        prefix: str,
        scope: str,
        renamed: dict[str, str] | None,
        full: str | None,
    ) -> _Steps:
        """Adds blocks behind the node `x`, under names that begin with `scope`."""
        ends = []
        for label, items in blocks.branches:
            under, at = self._under(scope, label, renamed) if items else scope, x
            for number, (own, item) in enumerate(items, 1):
                named = full if blocks.merge is None and number == len(items) else None
                if own and not named:
                    layer = item if isinstance(item, Layer) else None
                    named = self._within(under, own, layer, None if label else renamed)
                if isinstance(item, Layer):
                    at = self._add(item, (at,), under, named)
                else:
                    at = yield self._embed(item, (at,), under, named)
            ends.append(at)
        return ends[0] if blocks.merge is None else self._add(blocks.merge, ends, scope, full)

    def _under(self, scope: str, label: str, renamed: dict[str, str] | None) -> str:
        """The prefix of a branch that its block calls `label`, "branch1." or "" for none."""
        if not label:
            return scope
        if scope.count(".") >= MOST_SCOPES:
            return self.scope(scope, label.rstrip("0123456789."))
        return scope + (label if renamed is None else self._joined(scope, label, renamed))

    def _within(
        self, prefix: str, name: str, layer: Layer | None, renamed: dict[str, str] | None
    ) -> str | None:
        """The full name of a block's node that the block calls `name`.

        An unnamed block (`renamed` is given) joins its surroundings: automatic names ("conv3",
        None here) and scopes that are taken ("residual2.") count on; `renamed` keeps what the
        block's scopes have become.
        """
        if renamed is None:
            return prefix + name
        if layer is not None and name.removeprefix(layer.kind).isdecimal():
            return None
        return prefix + self._joined(prefix, name, renamed)

    def _joined(self, prefix: str, name: str, renamed: dict[str, str]) -> str:
        scope, dot, rest = name.partition(".")
        if not dot:
            return name
        if scope not in renamed:
            renamed[scope] = scope
            if prefix + scope in self._scopes:
                fresh = self._fresh(prefix, scope.rstrip("0123456789"))
                renamed[scope] = fresh.removeprefix(prefix)
        return f"{renamed[scope]}.{rest}"


_Steps = Generator[Any, str, str]
"""Work that asks for other such work, and is sent what that returned: recursion without a stack."""


def _finished(work: _Steps) -> str:
    stack = [work]
    found: Any = None
    while stack:
        try:
            stack.append(stack[-1].send(found))
            found = None
        except StopIteration as end:
            stack.pop()
            found = end.value
    returned: str = found
    return returned


def _check_block(block: Network, count: int) -> None:
    if block._blocks is not None and count == 1:
        return
    if len(block.outputs) != 1 or len(block.inputs) != count:
        raise InputError(
            f"a block needs one output and {count} input(s), "
            f"got {len(block.outputs)} and {len(block.inputs)}"
        )


def _agreed(said: int | None, ndim: int | None) -> int | None:
    """The number of axes of blocks, of which some do not say."""
    if ndim is not None and said not in (None, ndim):
        raise InputError(f"blocks have ndim={said} and ndim={ndim}; all must have the same")
    return said if ndim is None else ndim


def _stated(ndim: int | None, said: int | None) -> int | None:
    """The number of axes that is given, or else the one that the blocks say."""
    if ndim is not None and said not in (None, ndim):
        raise InputError(f"ndim={ndim}, but a block says ndim={said}; give one of them")
    return said if ndim is None else ndim


def _not_a_layer(block: Any) -> InputError:
    return InputError(
        f"{short(block)} is not a layer; give layers (Conv(3)), blocks (Residual(…)) or lists"
    )


def _too_many() -> InputError:
    return InputError(
        f"the blocks make more than {MOST_NODES} layers; repeat less (a block that holds another "
        f"one twice doubles it)"
    )


def _flatten(block: Any) -> list[tuple[str | None, Any]]:
    """The layers and networks of nested sequences, each with its name or None.

    A name given to a sequence is that of its last one, if that has none.
    """
    found: list[tuple[str | None, Any]] = []
    stack: list[tuple[Any, int | None]] = [(block, None)]
    met = 0
    while stack:
        item, start = stack.pop()
        met += 1
        if met > 3 * MOST_NODES:  # lists that hold each other, or themselves
            raise InputError(f"lists of blocks hold more than {MOST_NODES} of them; repeat less")
        if start is not None:
            if len(found) > start and found[-1][0] is None:
                found[-1] = item, found[-1][1]
        elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
            stack += [(item[0] or None, len(found)), (item[1], None)]
        elif isinstance(item, list | tuple):
            stack.extend((one, None) for one in reversed(item))
        else:
            found.append((None, item))
    return found


def Sequential(*blocks: Any, ndim: int | None = None, name: str | None = None) -> Network:
    """Layers and blocks one behind the other.

    Args:
        blocks: layers, networks with one input and one output, or lists of them; a pair
            ``("stem", Conv(7))`` names a layer. An `Input` may come first, also in the first block.
        ndim: number of axes; default: what tuples imply, else 2.

    Blocks may hold blocks to any depth: the nodes are made once, in linear time, when they are
    first asked for, and names have at most 16 scopes ("residual1.residual3.conv1" has two).

    Raises:
        InputError: what is given is no layer, no block or none that can stand there, or makes
            more than 1,250,000 layers. Names that clash in large blocks are found later, when
            the nodes are made.
    """
    if blocks and isinstance(blocks[0], Input):
        return _network_of([("", blocks[1:])], None, ndim, name, blocks[0])
    return _network_of([("", blocks)], None, ndim, name)


def Residual(
    *branch: Any, shortcut: Any = None, ndim: int | None = None, name: str = "residual"
) -> Network:
    """``y = shortcut(x) + branch(x)``; the shortcut is the identity by default."""
    if not branch:
        raise InputError("Residual needs a branch; give layers or blocks")
    side = () if shortcut is None else [shortcut]
    return _network_of([("shortcut.", side), ("", branch)], Add(), ndim, name)


def Parallel(
    *branches: Any,
    merge: Literal["add", "concat", "multiply"] = "add",
    ndim: int | None = None,
    name: str = "parallel",
) -> Network:
    """Branches that read the same map and merge; ``None`` is the identity branch."""
    merges: dict[str, Layer] = {"add": Add(), "concat": Concat(), "multiply": Multiply()}
    if merge not in merges:
        raise InputError(f"merge={short(merge)} is unknown; choose one of {', '.join(merges)}")
    if not branches:
        raise InputError("Parallel needs at least one branch; give layers, blocks or None")
    named = [
        (f"branch{i}.", () if branch is None else [branch]) for i, branch in enumerate(branches, 1)
    ]
    return _network_of(named, merges[merge], ndim, name)


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
        f"fastrf.load (TOML, JSON), fastrf.from_onnx, fastrf.from_torch or fastrf.zoo"
    )


# --- graph helpers --------------------------------------------------------------------------


def _as_nodes(nodes: Mapping[str, Sequence[Any]] | Iterable[Node]) -> dict[str, Node]:
    if not isinstance(nodes, Iterable):
        raise InputError(
            f"{short(nodes)} is no mapping name → (layer, *inputs); give one, or use Sequential"
        )
    if isinstance(nodes, Mapping):
        nodes = [_as_node(name, entry) for name, entry in nodes.items()]
    result: dict[str, Node] = {}
    for node in nodes:
        if not isinstance(node, Node):
            raise InputError(
                f"{short(node)} is not a Node; give Node(name, layer, inputs), or a mapping "
                f"name → (layer, *inputs)"
            )
        if not isinstance(node.name, str) or not node.name:
            raise InputError(
                f"a node is called {short(node.name)}; a name is a text with characters"
            )
        if not isinstance(node.layer, Layer):
            raise InputError(
                f"{node.name}: {short(node.layer)} is not a layer; give one, as Conv(3)"
            )
        if not all(isinstance(source, str) for source in node.inputs):
            raise InputError(f"{node.name} reads {short(node.inputs)}; give the names of nodes")
        if node.name in result:
            raise InputError(f"two nodes are called {short(node.name)}; names must differ")
        if not _reads(node.layer, count := len(node.inputs)):
            least, most = node.layer.inputs
            wanted = f"{least}" if least == most else f"at least {least}"
            if isinstance(node.layer, Input):
                raise InputError(
                    f"{node.name}: Input is a map of its own, and reads none; put it first"
                )
            raise InputError(
                f"{node.name}: {type(node.layer).__name__} reads {wanted} map(s), got {count}; "
                f"name as many nodes"
            )
        result[node.name] = node
    return result


def _check_ndim(ndim: int | None) -> None:
    if ndim is not None and (type(ndim) is not int or ndim not in (1, 2, 3)):
        raise InputError(f"ndim={short(ndim)} is not possible; a grid has 1, 2 or 3 axes")


def _reads(layer: Layer, count: int) -> bool:
    """Whether a layer can read so many maps."""
    least, most = layer.inputs
    return count >= least and (most is None or count <= most)


def _as_node(name: str, entry: Any) -> Node:
    if isinstance(entry, Layer):
        return Node(name, entry)
    if not isinstance(entry, list | tuple) or not entry:
        raise InputError(f"{name}: {short(entry)} is not (layer, *names of the nodes read)")
    return Node(name, entry[0], tuple(entry[1:]))


def _topological(nodes: dict[str, Node]) -> dict[str, Node]:
    """The nodes with every node behind those it reads, otherwise in the given order (Kahn)."""
    placed: set[str] = set()
    for node in nodes.values():
        if not placed.issuperset(node.inputs):
            break
        placed.add(node.name)
    else:
        return nodes
    readers: dict[str, list[str]] = {name: [] for name in nodes}
    waiting: dict[str, int] = {}
    for node in nodes.values():
        for source in node.inputs:
            if source not in nodes:
                raise InputError(
                    f"{node.name} reads {short(source)}, which is no node; "
                    f"{_nearest(source, nodes)}"
                )
            readers[source].append(node.name)
        waiting[node.name] = len(node.inputs)
    given = list(nodes)
    place = {name: i for i, name in enumerate(given)}
    ready = [place[name] for name, count in waiting.items() if count == 0]  # sorted: a heap
    order: dict[str, Node] = {}
    while ready:
        name = given[heapq.heappop(ready)]
        order[name] = nodes[name]
        for reader in readers[name]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, place[reader])
    if len(order) < len(nodes):
        raise InputError(
            f"the graph has a cycle: {' → '.join(_cycle(nodes, order))}; let one of them read "
            f"another node"
        )
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


_COMPARED = 2000
"""Names that an unknown one is compared with."""


def _nearest(name: object, known: Iterable[str]) -> str:
    names = list(islice(known, _COMPARED))
    close = difflib.get_close_matches(short(name)[1:-1], names, n=3, cutoff=0.4)
    if close:
        return f"did you mean {', '.join(map(repr, close))}?"
    return f"there are {', '.join(map(repr, names[:5]))}{', …' if len(names) > 5 else ''}"


# --- canonical form -------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Weights):
        return value.digest
    return str(value) if isinstance(value, Fraction) else value


def _signature(layer: Layer) -> str:
    values = {f.name: _plain(getattr(layer, f.name)) for f in fields(layer)}
    known = {k: v for k, v in values.items() if v is not None}
    return json.dumps([type(layer).__name__, known], sort_keys=True, allow_nan=False)


def _one_of(layer: Layer, unlike: dict[Layer, Layer]) -> Layer:
    """The first of all layers that equal this one."""
    try:
        return unlike.setdefault(layer, layer)
    except TypeError:  # a value of a layer that is not ours may have no hash
        return layer


def _canonical(network: Network) -> str:
    """The bound network as text that does not depend on names, node order or spelling.

    Nodes are numbered in the order in which a walk from the outputs finishes them, and layers in
    the order in which it meets them. Identities are skipped; sums and products read their maps
    in the order of `_sources`. The text says the whole graph, so that different graphs differ.
    """
    signatures: dict[Layer, str] = {}
    for node in network.nodes.values():
        if node.layer not in signatures:
            signatures[node.layer] = _signature(node.layer)
    outputs, sources = _sources(network, signatures)

    layers: dict[str, int] = {}
    number: dict[str, int] = {}
    rows: list[list[int]] = []
    for output in outputs:
        stack = [(output, False)]
        while stack:
            name, ready = stack.pop()
            if name in number:
                continue
            if not ready:
                stack.append((name, True))
                stack.extend((i, False) for i in reversed(sources[name]))
                continue
            number[name] = len(number)
            layer = layers.setdefault(signatures[network.nodes[name].layer], len(layers))
            rows.append([layer, *(number[i] for i in sources[name])])
    return json.dumps([network.ndim, list(layers), rows, [number[o] for o in outputs]])


def _sources(
    network: Network, signatures: Mapping[Layer, str]
) -> tuple[list[str], dict[str, list[str]]]:
    """The outputs, and what each node reads, with identities skipped and sums in one order.

    The terms of a sum are ordered by the hash of the tree of layers that they compute, and
    where these are equal by that of the tree of layers that read them. (Terms that are equal in
    both and still not interchangeable, which takes a graph that no such trees tell from another,
    stay in the given order.)
    """
    alias: dict[str, str] = {}
    sources: dict[str, list[str]] = {}
    computed: dict[str, bytes] = {}
    for node in network.nodes.values():
        inputs = [alias[i] for i in node.inputs]
        if isinstance(node.layer, Identity):
            alias[node.name] = inputs[0]
            continue
        alias[node.name] = node.name
        if isinstance(node.layer, Add):
            inputs.sort(key=computed.__getitem__)
        sources[node.name] = inputs
        digest = hashlib.sha256(signatures[node.layer].encode())
        for i in inputs:
            digest.update(computed[i])
        computed[node.name] = digest.digest()
    outputs = [alias[o] for o in network.outputs]

    sums = [n for n in sources if isinstance(network.nodes[n].layer, Add)]
    if any(len({computed[i] for i in sources[n]}) < len(set(sources[n])) for n in sums):
        readers = _reader_hashes(network, outputs, sources, computed)
        for name in sums:
            sources[name].sort(key=lambda i: (computed[i], readers[i]))
    return outputs, sources


def _reader_hashes(
    network: Network,
    outputs: Sequence[str],
    sources: Mapping[str, Sequence[str]],
    computed: Mapping[str, bytes],
) -> dict[str, bytes]:
    """Per node the hash of the tree of its readers, up to the outputs; b"" where none leads."""
    reads: dict[str, list[bytes]] = {name: [] for name in sources}
    for i, output in enumerate(outputs):
        reads[output].append(f"output {i}".encode())
    hashes: dict[str, bytes] = {}
    for name in reversed(list(sources)):
        found = sorted(reads.pop(name))
        hashes[name] = hashlib.sha256(b"".join(found)).digest() if found else b""
        if not found:
            continue
        commutes = isinstance(network.nodes[name].layer, Add)
        for position, source in enumerate(sources[name]):
            place = b"" if commutes else str(position).encode()
            digest = hashlib.sha256(hashes[name] + computed[name] + place)
            reads[source].append(digest.digest())
    return hashes
