"""Networks as TOML and JSON files.

A linear network is a list of layers and blocks, spelled as in Python::

    name = "stem"
    layers = [
      {type = "Conv", kernel = 7, stride = 2, padding = 3},
      {type = "MaxPool", kernel = 3, stride = 2, padding = 1},
      {type = "Residual", branch = [{type = "Conv", kernel = 3, padding = 1}], repeat = 8},
      {type = "Parallel", branches = [[{type = "Conv", kernel = 1}], []], merge = "concat"},
    ]

and a graph is a list of named nodes that say what they read::

    ndim = 2
    outputs = ["sum"]

    [[nodes]]
    name = "conv"
    type = "Conv"
    inputs = ["input"]
    kernel = 3

A field that is left out has the default of the layer's dataclass. `repeat` builds a layer or a
block so many times in a row; `name` names a layer or gives a block its prefix. The input "input"
need not be listed. Values are data: nothing in a file is ever executed.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import tomllib
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, Field, fields, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from fastrf.errors import InputError, NetworkFileError, short
from fastrf.exchange import detached, hosted
from fastrf.layers import LAYERS, Input, Layer
from fastrf.layers.weights import Weights
from fastrf.network import (
    DEFAULT_NDIM,
    Network,
    Node,
    Parallel,
    Residual,
    Sequential,
    as_network,
)

MAX_BYTES = 64 * 2**20
"""Largest TOML or JSON file that is read."""

MAX_NODES = 1_000_000
"""Most layers a file may describe, repeats counted."""

MAX_DEPTH = 64
"""Deepest nesting of lists and tables in a file; far below Python's recursion limit."""

BLOCKS = {
    "Sequential": ("layers",),
    "Residual": ("branch", "shortcut"),
    "Parallel": ("branches", "merge"),
}
"""The blocks that `layers` may hold beside layers, with their keys."""

TOP_KEYS = ("name", "ndim", "outputs", "endpoints", "layers", "nodes")


# --- files ----------------------------------------------------------------------------------


def load(path: str | os.PathLike[str]) -> Network:
    """Reads a network from a ``.toml``, ``.json`` or ``.onnx`` file.

    Raises:
        NetworkFileError: the file cannot be read or does not describe a network; the message
            names the file, the place, the value, the rule and the remedy.
        UnsupportedOperator: an ONNX model holds an operator that fastrf does not know.
    """
    suffix = Path(path).suffix.lower()
    if suffix == ".onnx":
        from fastrf.importers.onnx import from_onnx

        return from_onnx(path)
    parse = PARSERS.get(suffix)
    if parse is None:
        _fail(str(path), f"the suffix {suffix!r} is unknown; name the file .toml, .json or .onnx")
    text = read_text(Path(path))
    try:
        content = parse(text)
    except RecursionError:
        _fail(str(path), f"lists and tables nest deeper than {MAX_DEPTH}; use repeat or nodes")
    except ValueError as error:
        _fail(str(path), f"is not valid {suffix[1:].upper()}: {error}; correct the file there")
    return from_dict(content, source=str(path))


def save(network: Any, path: str | os.PathLike[str]) -> None:
    """Writes a network to a ``.toml`` or ``.json`` file, from which `load` reads it back equal.

    Args:
        network: a `Network`, a layer or a sequence of layers and blocks.
        path: the file.

    Raises:
        NetworkFileError: another suffix, or the file cannot be written.
        InputError: the network itself breaks a rule (see `Network`).
    """
    suffix = Path(path).suffix.lower()
    write = {".toml": _write_toml, ".json": _write_json}.get(suffix)
    if write is None:
        _fail(str(path), f"networks are written as .toml or .json, not as {suffix!r}")
    try:
        Path(path).write_bytes(write(to_dict(network)).encode())
    except (OSError, ValueError) as error:
        _fail(str(path), f"cannot be written: {error}; choose another name or folder")


def read_text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():
            _fail(str(path), "is no regular file; give a .toml or .json file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        _fail(str(path), f"cannot be read: {reason}; check the path")
    if len(data) > MAX_BYTES:
        _fail(str(path), f"is larger than the {MAX_BYTES} bytes a file may have; use repeat")
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        _fail(str(path), f"is not UTF-8 at byte {error.start}; save it as UTF-8 text")


def _fail(source: str, message: str) -> NoReturn:
    line = " ".join(f"{source}: {message}".split())
    raise NetworkFileError(line if len(line) <= 600 else f"{line[:400]} … {line[-190:]}") from None


# --- JSON -----------------------------------------------------------------------------------


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} occurs twice in one object")
    return result


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON number")


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)


def _write_json(content: Mapping[str, Any]) -> str:
    """JSON with one layer per line."""
    rows = []
    for key, value in content.items():
        if key in ("layers", "nodes"):
            lines = ",\n".join("    " + _json(item) for item in value)
            rows.append(f"  {_json(key)}: [\n{lines}\n  ]" if value else f"  {_json(key)}: []")
        else:
            rows.append(f"  {_json(key)}: {_json(value)}")
    return "{\n" + ",\n".join(rows) + "\n}\n"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


# --- TOML -----------------------------------------------------------------------------------


def _parse_toml(text: str) -> Any:
    return tomllib.loads(text)


PARSERS: Mapping[str, Callable[[str], Any]] = {".toml": _parse_toml, ".json": _parse_json}
"""How files of a suffix are read; ValueError or RecursionError where they are not valid."""


def _write_toml(content: Mapping[str, Any]) -> str:
    """TOML with one layer per line; `endpoints`, the only table, comes last."""
    rows = []
    for key, value in content.items():
        if key in ("layers", "nodes"):
            rows.append("\n".join([f"{key} = [", *(f"  {_toml(item)}," for item in value), "]"]))
        elif key != "endpoints":
            rows.append(f"{key} = {_toml(value)}")
    if "endpoints" in content:
        rows.append("\n[endpoints]")
        rows.extend(f"{_key(k)} = {_toml(v)}" for k, v in content["endpoints"].items())
    return "\n".join(rows) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_key(k)} = {_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # TOML's strings, numbers and booleans are JSON's, but for DEL, which it wants escaped.
    return _json(value).replace("\x7f", "\\u007f")


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else _toml(name)


# --- network → mapping ----------------------------------------------------------------------


def to_dict(network: Any) -> dict[str, Any]:
    """A network as plain lists, tables, strings and numbers, the content of its file.

    A chain becomes `layers`, any other graph `nodes`. Fields with default values are left out,
    and values that are equal on every axis are written once.

    Raises:
        InputError: the network breaks a rule, so no file could be read back.
    """
    network = as_network(network)
    ndim = network.bound.ndim
    assert ndim is not None
    result: dict[str, Any] = {}
    if network.name is not None:
        result["name"] = network.name
    if network.ndim is not None or ndim != DEFAULT_NDIM:
        result["ndim"] = ndim
    read = {source for node in network.nodes.values() for source in node.inputs}
    if network.outputs != tuple(name for name in network.nodes if name not in read):
        result["outputs"] = list(network.outputs)
    if network.endpoints:
        result["endpoints"] = dict(network.endpoints)
    result.update(_layer_list(network, ndim) or _node_list(network, ndim))
    return result


def _layer_list(network: Network, ndim: int) -> dict[str, Any] | None:
    """The network as a list of layers, where it is a chain behind one input "input"."""
    nodes = list(network.nodes.values())
    first = nodes[0]
    chain = all(node.inputs == (before.name,) for before, node in pairwise(nodes))
    if not chain or first.name != "input" or not isinstance(first.layer, Input):
        return None
    head = [] if first.layer == Input() else [first.layer]
    automatic = Sequential(*head, *(node.layer for node in nodes[1:]))
    named = list(automatic.nodes) != list(network.nodes)
    items = [_item(layer, ndim) for layer in head]
    items += [_item(node.layer, ndim, node.name if named else None) for node in nodes[1:]]
    return {"layers": items}


def _node_list(network: Network, ndim: int) -> dict[str, Any]:
    items = []
    for node in network.nodes.values():
        if node == Node("input", Input()):
            continue
        item = _item(node.layer, ndim, node.name)
        if node.inputs:
            fields_ = {k: v for k, v in item.items() if k not in ("name", "type")}
            item = {"name": node.name, "type": item["type"], "inputs": list(node.inputs)} | fields_
        items.append(item)
    return {"nodes": items}


def _item(layer: Layer, ndim: int, name: str | None = None) -> dict[str, Any]:
    item: dict[str, Any] = {} if name is None else {"name": name}
    item["type"] = type(layer).__name__
    for f in fields(layer):
        value = getattr(layer, f.name)
        if value is not None and (isinstance(value, np.ndarray) or value != f.default):
            item[f.name] = _plain(_once(layer, f.name, value, ndim))
    return item


def _once(layer: Layer, name: str, value: Any, ndim: int) -> Any:
    """The one value that all axes share, where the layer reads it back as the same."""
    while isinstance(value, tuple | list) and value and all(v == value[0] for v in value):
        try:
            same = replace(layer, **{name: value[0]}).bind(ndim) == layer.bind(ndim)
        except InputError:
            break
        if not same:
            break
        value = value[0]
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, Weights):
        return value.packed()
    if isinstance(value, np.generic) or hasattr(value, "__dlpack__"):
        value = hosted(detached(value)).tolist()
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, Fraction):
        return str(value)
    return value


# --- mapping → network ----------------------------------------------------------------------


def from_dict(mapping: Mapping[str, Any], *, source: str = "network") -> Network:
    """The network that a mapping, the content of a file, describes.

    Args:
        mapping: see this module's text; `to_dict` writes it.
        source: what messages call the mapping, such as its file name.

    Raises:
        NetworkFileError: the mapping does not describe a network.
    """
    return _Reader(source).network(mapping)


class _Reader:
    """Reads the content of one file; `place` in its methods says where in the file."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.count = 0
        self.read: dict[str, Layer] = {}

    def fail(self, place: str, message: str) -> NoReturn:
        _fail(self.source, f"{place}: {message}" if place else message)

    def network(self, content: Any) -> Network:
        self._bound_depth(content)
        top = self._table(content, "")
        self._known(top, TOP_KEYS, "", "a network")
        if ("layers" in top) == ("nodes" in top):
            both = "both" if "layers" in top else "neither"
            self.fail("", f"holds {both} of layers and nodes; give exactly one of them")
        ndim, name = top.get("ndim"), top.get("name")
        if ndim is not None and (type(ndim) is not int or ndim not in (1, 2, 3)):
            self.fail("ndim", f"{short(ndim)} is not possible; a grid has 1, 2 or 3 axes")
        if name is not None and not isinstance(name, str):
            self.fail("name", f"{short(name)} must be a string")
        outputs = self._names(top["outputs"], "outputs") if "outputs" in top else None
        ends = self._table(top.get("endpoints", {}), "endpoints")
        for end, node in ends.items():
            self._names(node, f"endpoints.{end}")
        try:
            if "layers" in top:
                nodes = list(self._chain(top["layers"], "layers", ndim).nodes.values())
            else:
                nodes = self._nodes(top["nodes"], ndim)
            network = Network(nodes, outputs, ndim=ndim, name=name, endpoints=ends)
            network.bound  # noqa: B018  (binding checks every layer for the network's axes)
        except NetworkFileError:
            raise
        except InputError as error:
            self.fail("", str(error))
        return network

    # --- shapes of the content

    def _bound_depth(self, content: Any) -> None:
        level, depth = [content], 0
        while level:
            depth += 1
            if depth > MAX_DEPTH:
                self.fail("", f"lists and tables nest deeper than {MAX_DEPTH}; use repeat or nodes")
            tables = [v for v in level if isinstance(v, Mapping)]
            lists = [v for v in level if isinstance(v, list | tuple)]
            level = [v for t in tables for v in t.values()] + [v for x in lists for v in x]

    def _table(self, value: Any, place: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            self.fail(place, f"{short(value)} must be a table of named values")
        return value

    def _list(self, value: Any, place: str) -> Sequence[Any]:
        if not isinstance(value, list | tuple):
            self.fail(place, f"{short(value)} must be a list")
        return value

    def _names(self, value: Any, place: str) -> tuple[str, ...]:
        names = (value,) if isinstance(value, str) else value
        if not isinstance(names, list | tuple) or not all(isinstance(n, str) for n in names):
            self.fail(place, f"{short(value)} must be the name of a node, or a list of names")
        return tuple(names)

    def _known(
        self, table: Mapping[str, Any], known: Collection[str], place: str, what: str
    ) -> None:
        for key in table:
            if key not in known:
                self.fail(place, f"{what} has no key {short(key)}; {_guess(key[:80], known)}")

    # --- layers and blocks

    def _type(self, table: Mapping[str, Any], place: str, types: Collection[str]) -> str:
        if "type" not in table:
            self.fail(place, 'type is missing; name a layer, such as type = "Conv"')
        kind = table["type"]
        if not isinstance(kind, str) or kind not in types:
            self.fail(place, f"the type {short(kind)} is unknown; {_guess(short(kind), types)}")
        return kind

    def _layer(
        self, table: Mapping[str, Any], place: str, ndim: int | None, extra: tuple[str, ...]
    ) -> Layer:
        """Of layers that are spelled alike, but for what is `extra`, one is read."""
        try:
            own = {k: v for k, v in table.items() if k not in extra}
            spelled = json.dumps([ndim, own], sort_keys=True)
        except (TypeError, ValueError):  # not out of a file
            return self._read_layer(table, place, ndim, extra)
        layer = self.read.get(spelled)
        if layer is None:
            layer = self.read[spelled] = self._read_layer(table, place, ndim, extra)
        return layer

    def _read_layer(
        self, table: Mapping[str, Any], place: str, ndim: int | None, extra: tuple[str, ...]
    ) -> Layer:
        kind = table["type"]
        cls = LAYERS[kind]
        known = {f.name: f for f in fields(cls)}
        self._known(table, (*known, "type", *extra), place, kind)
        missing = [n for n, f in known.items() if f.default is MISSING and n not in table]
        if missing:
            self.fail(place, f"{kind} needs {', '.join(missing)}; add {missing[0]} = …")
        values = {
            name: self._field(f, table[name], f"{place}: {kind}")
            for name, f in known.items()
            if name in table
        }
        layer = cls(**values)
        try:
            layer.bind(ndim or layer.implied_ndim or DEFAULT_NDIM)
        except InputError as error:
            self.fail(place, str(error))
        return layer

    def _field(self, f: Field[Any], value: Any, place: str) -> Any:
        """A value checked for what `Layer.bind` takes on trust, its lists as tuples."""
        rule = _CHECKED.get(str(f.type))
        if rule is not None and not rule[0](value):
            self.fail(place, f"{f.name}={short(value)} must be {rule[1]}")
        return _frozen(value)

    def _block(self, value: Any, place: str, ndim: int | None, times: int) -> Any:
        """A layer, a block, or a list of them where it repeats; `times` copies are made of it."""
        table = self._table(value, place)
        kind = self._type(table, place, (*LAYERS, *BLOCKS))
        repeat = table.get("repeat", 1)
        if type(repeat) is not int or repeat < 1:
            self.fail(place, f"repeat={short(repeat)} must be a whole number of at least 1")
        name = table.get("name")
        if name is not None and (not isinstance(name, str) or not name):
            self.fail(place, f"name={short(name)} must be a string that is not empty")
        times *= repeat
        if times > MAX_NODES:
            self._too_many(place)
        if kind in LAYERS:
            if name is not None and times > 1:
                self.fail(
                    place, f"name={short(name)} would name {times} nodes; leave out name here"
                )
            self._tally(times, place)
            layer = self._layer(table, place, ndim, ("name", "repeat"))
            one: Any = layer if name is None else (name, layer)
            return [layer] * repeat if repeat > 1 else one
        self._known(table, (*BLOCKS[kind], "type", "name", "repeat"), place, kind)
        network = self._network_of(kind, table, place, ndim, times)
        # Nothing is nothing, however often.
        return [network] * repeat if repeat > 1 and len(network) else network

    def _network_of(
        self, kind: str, table: Mapping[str, Any], place: str, ndim: int | None, times: int
    ) -> Network:
        needed = BLOCKS[kind][0]
        if needed not in table:
            self.fail(place, f"{kind} needs {needed}; add {needed} = […]")
        label = {"name": table["name"]} if "name" in table else {}
        here = f"{place}.{needed}"
        if kind == "Sequential":
            return self._chain(table["layers"], here, ndim, times, **label)
        self._tally(times, place)
        if kind == "Residual":
            branch = self._chain(table["branch"], here, ndim, times)
            shortcut = table.get("shortcut", [])
            side = shortcut if isinstance(shortcut, list | tuple) else [shortcut]
            way = self._chain(side, f"{place}.shortcut", ndim, times) if side else None
            return Residual(branch, shortcut=way, ndim=ndim, **label)
        branches = [
            self._chain(items, f"{here}[{i}]", ndim, times) if items != [] else None
            for i, items in enumerate(self._list(table["branches"], here))
        ]
        merge = table.get("merge", "add")
        if not isinstance(merge, str):
            self.fail(place, f"merge={short(merge)} must be a string")
        try:
            return Parallel(*branches, merge=merge, ndim=ndim, **label)  # type: ignore[arg-type]
        except InputError as error:
            self.fail(place, str(error))

    def _chain(
        self, value: Any, place: str, ndim: int | None, times: int = 1, name: str | None = None
    ) -> Network:
        items = self._list(value, place)
        blocks = [self._block(v, f"{place}[{i}]", ndim, times) for i, v in enumerate(items)]
        try:
            return Sequential(*blocks, ndim=ndim, name=name)
        except InputError as error:
            self.fail(place, str(error))

    def _tally(self, times: int, place: str) -> None:
        self.count += times
        if self.count > MAX_NODES:
            self._too_many(place)

    def _too_many(self, place: str) -> NoReturn:
        self.fail(place, f"describes more than {MAX_NODES} layers; repeat less")

    # --- graphs

    def _nodes(self, value: Any, ndim: int | None) -> list[Node]:
        seen: dict[str, str] = {}
        nodes = []
        for i, entry in enumerate(self._list(value, "nodes")):
            place = f"nodes[{i}]"
            table = self._table(entry, place)
            name = table.get("name")
            if not isinstance(name, str) or not name:
                self.fail(place, f"name={short(name)} must be a string that is not empty")
            if name in seen:
                self.fail(
                    place, f"the name {short(name)} is {seen[name]}'s; give every node its own"
                )
            seen[name] = place
            place = f"{place} ({short(name)})"
            self._type(table, place, LAYERS)
            self._tally(1, place)
            layer = self._layer(table, place, ndim, ("name", "inputs"))
            inputs = self._names(table.get("inputs", ()), f"{place}: inputs")
            nodes.append(Node(name, layer, inputs))
        return nodes


def _integer(value: Any) -> bool:
    return type(value) is int


_CHECKED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "bool": (lambda v: isinstance(v, bool), "true or false"),
    "str": (lambda v: isinstance(v, str), "a string"),
    "int": (_integer, "a whole number"),
    "int | None": (_integer, "a whole number"),
}
"""Annotations of the fields that `Layer.bind` does not check, each with its rule in words."""


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list | tuple) else value


def _guess(name: str, known: Collection[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"the choices are {', '.join(known)}"
