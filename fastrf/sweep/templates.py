"""Templates: network files with placeholders, which a point of a space fills in.

A template is a list of items. An item is

* a layer or block of a network file (``type = "Conv"``), whose texts may hold placeholders:
  ``kernel = "{kernel}"``, ``dilation = "{2**i}"``, ``name = "block{i}"``;
* a block by its name, ``block = "residual"``, whose further keys are arguments: what they are
  called has their value inside of the block;
* ``type = "Inner"``, in a block that nests (a level of a U-Net): there stands the next repeat of
  the block, in the last one what `otherwise` lists.

Every item may have ``repeat`` (a whole number or placeholder; 0 leaves the item out) and ``when``
(an expression; the item is left out where it does not hold). Within a repeat ``i`` is its index
from 0 on and ``j`` that of the repeat around it. The padding ``"centred"`` means d(k−1) pixels in
all, ⌊half⌋ of them in front, whatever the stride. Taps that are one list of numbers hold for every
axis: their product is the kernel.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Any, NoReturn, TypeAlias

import numpy as np

from fastrf.errors import InputError
from fastrf.layers import LAYERS
from fastrf.netfile import BLOCKS as FILE_BLOCKS
from fastrf.netfile import MAX_NODES
from fastrf.network import DEFAULT_NDIM
from fastrf.sweep.expressions import Expression, Names, nearest

DEEPEST_CALL = 16
"""Most blocks that call each other."""

INDICES = ("i", "j")
"""Indices of the repeats around a placeholder, the innermost first."""

_HOLE = re.compile(r"\{([^{}]*)\}")
_LISTS = {"layers", "branch", "shortcut", "otherwise"}
"""Keys whose value is a list of items; `branches` is a list of such lists."""

Value: TypeAlias = Any
"""A compiled value: a literal, an `Expression`, a `Text`, or a tuple of values."""

Enter: TypeAlias = Callable[[Names, int, int], dict[str, Any]]
"""(parameters, i, j) → parameters within a repeat: those that depend on i and j as well."""


@dataclass(frozen=True, slots=True)
class Text:
    """Text with placeholders between its pieces."""

    pieces: tuple[str | Expression, ...]


@dataclass(frozen=True, slots=True)
class Item:
    """One compiled item of a template."""

    place: str
    kind: str | None
    """The type; None: a block, which `block` names."""
    block: Value
    repeat: Value
    when: Expression | None
    values: dict[str, Value]
    lists: dict[str, tuple[Item, ...]]
    branches: tuple[tuple[Item, ...], ...] | None
    reads: frozenset[str] = field(default_factory=frozenset)
    """Names that the item itself and the items within it read; not those of the blocks it calls."""

    def inner(self) -> Iterator[Item]:
        """The items within this one."""
        for items in (*self.lists.values(), *(self.branches or ())):
            yield from items


# --- compiling ------------------------------------------------------------------------------


def compile_items(value: Any, place: str) -> tuple[Item, ...]:
    """A list of items.

    Raises:
        InputError: an item breaks a rule of this module, or an expression one of the grammar.
    """
    if not isinstance(value, list | tuple):
        _fail(place, "must be a list of layers and blocks")
    return tuple(_item(entry, f"{place}[{n}]") for n, entry in enumerate(value))


def _item(entry: Any, place: str) -> Item:
    if not isinstance(entry, Mapping):
        _fail(place, f'{entry!r} is no layer; write a table such as {{type = "Conv", kernel = 3}}')
    if ("type" in entry) == ("block" in entry):
        _fail(place, 'give either type = "Conv" (a layer) or block = "residual" (a block)')
    kind = entry.get("type")
    types = (*LAYERS, *FILE_BLOCKS, "Inner")
    if kind is not None and kind not in types:
        _fail(place, f"the type {kind!r} is unknown; {nearest(str(kind), types)}")
    when = entry.get("when")
    if when is not None and not isinstance(when, str):
        _fail(f"{place}.when", f"{when!r} must be an expression such as 'stride != 1'")
    rest = {k: v for k, v in entry.items() if k not in ("type", "block", "repeat", "when")}
    lists, branches = {}, None
    if kind in FILE_BLOCKS or kind == "Inner":
        for key in _LISTS & rest.keys():
            content = rest.pop(key)
            content = [content] if isinstance(content, Mapping) else content
            lists[key] = compile_items(content, f"{place}.{key}")
        if "branches" in rest:
            content = rest.pop("branches")
            if not isinstance(content, list | tuple):
                _fail(f"{place}.branches", "must be a list of lists of layers")
            where = f"{place}.branches"
            branches = tuple(compile_items(v, f"{where}[{n}]") for n, v in enumerate(content))
    values = {k: compile_value(v, f"{place}.{k}") for k, v in rest.items()}
    block = compile_value(entry.get("block"), f"{place}.block")
    repeat = compile_value(entry.get("repeat", 1), f"{place}.repeat")
    test = None if when is None else Expression(when, f"{place}.when")
    item = Item(place, kind, block, repeat, test, values, lists, branches)
    reads = set(test.names if test else ())
    for value in (block, repeat, *values.values()):
        reads |= names_of(value)
    for within in item.inner():
        reads |= within.reads
    object.__setattr__(item, "reads", frozenset(reads))
    return item


def compile_value(value: Any, place: str) -> Value:
    """A value of a template: a literal, or what its placeholders make of it."""
    if isinstance(value, list | tuple):
        return tuple(compile_value(v, f"{place}[{n}]") for n, v in enumerate(value))
    if not isinstance(value, str) or not ("{" in value or "}" in value):
        return value
    pieces: list[str | Expression] = []
    for n, part in enumerate(_HOLE.split(value)):
        if n % 2:
            pieces.append(Expression(part, place))
        elif "{" in part or "}" in part:
            _fail(place, f"{value!r} has a brace without its partner; placeholders are {{name}}")
        elif part:
            pieces.append(part)
    return pieces[0] if len(pieces) == 1 else Text(tuple(pieces))


def names_of(value: Value) -> frozenset[str]:
    """The names that a compiled value reads."""
    if isinstance(value, Expression):
        return value.names
    parts = value.pieces if isinstance(value, Text) else value if isinstance(value, tuple) else ()
    return frozenset().union(*map(names_of, parts))


def evaluate(value: Value, names: Names) -> Any:
    """What a compiled value is where names mean this.

    Raises:
        InputError: an expression in it has no value.
    """
    if isinstance(value, Expression):
        return value(names)
    if isinstance(value, tuple):
        return tuple(evaluate(v, names) for v in value)
    if isinstance(value, Text):
        return "".join(p if isinstance(p, str) else _spelled(p(names)) for p in value.pieces)
    return value


def _spelled(value: Any) -> str:
    """A value within a text, such as a zoo network's arguments: lists as Python writes them."""
    return value if isinstance(value, str) else repr(value)


def called(items: Sequence[Item]) -> Iterator[Item]:
    """The items, at any depth, that name a block."""
    for item in items:
        if item.kind is None:
            yield item
        yield from called(tuple(item.inner()))


# --- filling in -----------------------------------------------------------------------------


def has_inner(items: Sequence[Item]) -> bool:
    """Whether the block nests: `Inner` stands somewhere in it."""
    return any(item.kind == "Inner" or has_inner(tuple(item.inner())) for item in items)


class Filling:
    """Fills in a template for one point.

    Args:
        blocks: the blocks by name.
        names: what the point's names mean.
        enter: gives the names within a repeat.
        varying: names whose value differs from repeat to repeat.
        ndim: number of axes, or None where the layers say it.
    """

    def __init__(
        self,
        blocks: Mapping[str, tuple[Item, ...]],
        names: Names,
        enter: Enter,
        varying: Collection[str],
        ndim: int | None,
    ) -> None:
        self._blocks, self._names, self._enter = blocks, names, enter
        self._varying, self._ndim = frozenset(varying), ndim
        self._count = 0

    def layers(self, items: Sequence[Item]) -> list[dict[str, Any]]:
        """The template as the `layers` of a network file.

        Raises:
            InputError: an expression has no value, or a block is unknown.
        """
        return self._all(items, self._enter(self._names, 0, 0), {}, None, 0)

    def _all(
        self,
        items: Sequence[Item],
        names: dict[str, Any],
        arguments: Mapping[str, Any],
        inner: list[dict[str, Any]] | None,
        calls: int,
    ) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for item in items:
            found += self._repeated(item, names, arguments, inner, calls)
        return found

    def _repeated(
        self,
        item: Item,
        names: dict[str, Any],
        arguments: Mapping[str, Any],
        inner: list[dict[str, Any]] | None,
        calls: int,
    ) -> list[dict[str, Any]]:
        times = evaluate(item.repeat, {**names, **arguments})
        if type(times) is not int or not 0 <= times <= MAX_NODES:
            _fail(
                f"{item.place}.repeat",
                f"{times!r} must be a whole number from 0 to {MAX_NODES}",
            )
        body = self._body(item, {**names, **arguments})
        nests = item.kind is None and has_inner(body)
        reads = item.reads.union(*(within.reads for within in self._reach(body)))
        if times > 1 and not nests and not reads & self._varying:
            one = self._one(item, body, names, arguments, inner, calls)
            return _times(one, times)
        found: list[dict[str, Any]] = []
        for index in reversed(range(times)) if nests else range(times):
            here = names
            if times > 1 or item.repeat != 1:
                here = self._enter(self._names, index, names["i"])
            if nests:
                deeper = found if index < times - 1 else inner
                found = self._one(item, body, here, arguments, deeper, calls)
            else:
                found += self._one(item, body, here, arguments, inner, calls)
        return found

    def _body(self, item: Item, names: Names) -> tuple[Item, ...]:
        """The items of the block that an item names; () for a layer."""
        if item.kind is not None:
            return ()
        name = evaluate(item.block, names)
        if name not in self._blocks:
            remedy = nearest(str(name), self._blocks)
            _fail(f"{item.place}.block", f"no block is called {name!r}; {remedy}")
        return self._blocks[name]

    def _reach(self, items: Sequence[Item]) -> Iterator[Item]:
        """The items and those of all blocks, if one of them calls a block."""
        yield from items
        if any(called(items)):
            for block in self._blocks.values():
                yield from block

    def _one(
        self,
        item: Item,
        body: tuple[Item, ...],
        names: dict[str, Any],
        arguments: Mapping[str, Any],
        inner: list[dict[str, Any]] | None,
        calls: int,
    ) -> list[dict[str, Any]]:
        """One repeat of an item."""
        known = {**names, **arguments}
        if item.when is not None and not item.when(known):
            return []
        self._count += 1
        if self._count > MAX_NODES:
            _fail(item.place, f"describes more than {MAX_NODES} layers; repeat less")
        if item.kind is None:
            if calls >= DEEPEST_CALL:
                _fail(item.place, f"blocks call each other more than {DEEPEST_CALL} deep")
            given = {k: evaluate(v, known) for k, v in item.values.items()}
            return self._all(body, names, {**arguments, **given}, inner, calls + 1)
        if item.kind == "Inner":
            if inner is not None:
                return inner
            return self._all(item.lists.get("otherwise", ()), names, arguments, None, calls)
        table: dict[str, Any] = {"type": item.kind}
        for key, value in item.values.items():
            table[key] = evaluate(value, known)
        for key, items in item.lists.items():
            table[key] = self._all(items, names, arguments, inner, calls)
        if item.branches is not None:
            table["branches"] = [
                self._all(items, names, arguments, inner, calls) for items in item.branches
            ]
        return [settled(table, self._ndim)]


def _times(items: list[dict[str, Any]], times: int) -> list[dict[str, Any]]:
    """The items `times` times, in the words of a network file."""
    if not items:
        return []
    if len(items) == 1 and "repeat" not in items[0]:
        return [{**items[0], "repeat": times}]
    return [{"type": "Sequential", "layers": items, "repeat": times}]


def settled(table: dict[str, Any], ndim: int | None) -> dict[str, Any]:
    """A layer's table without what network files do not know: centred padding, taps per axis."""
    result = {k: v for k, v in table.items() if v is not None}
    kernel = result.get("kernel")
    if ndim is None:
        ndim = len(kernel) if isinstance(kernel, tuple) else DEFAULT_NDIM
    if result.get("padding") == "centred":
        result["padding"] = centred(kernel, result.get("dilation", 1), ndim)
    taps = result.get("taps")
    if ndim > 1 and isinstance(taps, tuple) and not any(isinstance(v, tuple) for v in taps):
        try:
            line = np.array(taps, dtype=np.float64)
        except (TypeError, ValueError):
            return result  # the layer says what is wrong
        result["taps"] = reduce(np.multiply.outer, [line] * ndim).tolist()
    return result


def centred(kernel: Any, dilation: Any, ndim: int) -> Any:
    """d(k−1) pixels of padding per axis, ⌊half⌋ in front; 0 where the layer itself is wrong."""
    per_axis = []
    for axis in range(ndim):
        k, d = (v[axis % len(v)] if isinstance(v, tuple) and v else v for v in (kernel, dilation))
        if type(k) is not int or type(d) is not int or min(k, d) < 1:
            return 0
        span = d * (k - 1)
        per_axis.append((span // 2, span - span // 2))
    same = all(pair == per_axis[0] and pair[0] == pair[1] for pair in per_axis)
    return per_axis[0][0] if same else tuple(per_axis)


def _fail(place: str, message: str) -> NoReturn:
    raise InputError(" ".join(f"{place}: {message}".split())) from None
