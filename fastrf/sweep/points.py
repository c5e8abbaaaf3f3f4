"""From points to what they ask for: keys, packed chains, networks. This, too, workers do."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, NamedTuple, TypeAlias

from fastrf.errors import InputError
from fastrf.network import Network, as_network
from fastrf.sweep.chain import Chain
from fastrf.sweep.content import (
    DEFAULTS,
    chain_fingerprint,
    key_of,
    point_of,
    refused_point_of,
    spelled_out,
    text_of,
)
from fastrf.sweep.packing import pack
from fastrf.sweep.space import Point, Space
from fastrf.sweep.store import PointRows

_FOR_CHAINS = {"unit", "input_size", "dtype"}
_DTYPES = ("float64", "float32")


@dataclass(frozen=True, slots=True)
class Given:
    """A network that was given as such, in the manner of a `Point`."""

    parameters: Mapping[str, Any]
    net: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    def network(self) -> Network:
        """The network."""
        return as_network(self.net)

    def chain(self) -> Chain | None:
        """The network as a chain, if it is one."""
        return Chain.of(self.network())


AnyPoint: TypeAlias = Point | Given


@dataclass(frozen=True, slots=True)
class Part:
    """Some points of what a sweep goes through, with their numbers, one behind the other.

    Attributes:
        first: the number of the first one.
        items: points that were given; or, of a space, their places: whoever gets them expands them.
        space: the space, where there is one.
    """

    first: int
    items: Sequence[Any]
    space: Space | None = None

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[tuple[int, AnyPoint]]:
        points = self.items if self.space is None else self.space.at(self.items)
        return enumerate(points, self.first)

    def part(self, start: int, stop: int) -> Part:
        """Some of them."""
        return Part(self.first + start, self.items[start:stop], self.space)


class Source:
    """What a sweep goes through, taken part by part.

    Args:
        space: what `sweep` takes.

    Attributes:
        total: how many points there are, where that is known.

    Raises:
        InputError: it is nothing that has points.
    """

    def __init__(self, space: Any) -> None:
        if isinstance(space, str | os.PathLike):
            space = Space.load(space)
        elif isinstance(space, Mapping):
            space = Space(space)
        self.total: int | None = None
        self._space = space if isinstance(space, Space) else None
        self._taken = 0
        if isinstance(space, Space):
            self._items: Any = space.places()
            self.total = len(space)
        elif isinstance(space, Network) or not isinstance(space, Iterable):
            raise InputError(
                f"{type(space).__name__} is no space; give a Space, the path of a space file, or "
                "a list of networks"
            )
        else:
            self._items = map(_given, space)
            self.total = len(space) if isinstance(space, Sized) else None

    def take(self, count: int) -> Part:
        """The next points, at most so many."""
        if isinstance(self._items, range):
            items: Sequence[Any] = self._items[self._taken : self._taken + count]
        else:
            items = tuple(islice(self._items, count))
        found = Part(self._taken, items, self._space)
        self._taken += len(items)
        return found


def _given(item: Any) -> AnyPoint:
    if isinstance(item, Point):
        return item
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Mapping):
        return Given(*item)
    name = item.name if isinstance(item, Network) else None
    return Given({} if name is None else {"network": name}, item)


class Sealed:
    """A value that travels as bytes: who only passes it on does not unpack it."""

    __slots__ = ("_bytes", "_value")

    def __init__(self, value: Any, pickled: bytes | None = None) -> None:
        self._value, self._bytes = value, pickled

    def open(self) -> Any:
        """The value."""
        if self._bytes is not None:
            self._value, self._bytes = pickle.loads(self._bytes), None
        return self._value

    def __reduce__(self) -> tuple[Any, ...]:
        return Sealed, (None, self._bytes or pickle.dumps(self._value, pickle.HIGHEST_PROTOCOL))


class Called(NamedTuple):
    """What the table says of a chain beside its figures: its fingerprint, and its assumptions as
    JSON."""

    fingerprint: str
    assumptions: str


@dataclass(frozen=True, slots=True)
class Pack:
    """Those of some points that are chains of one kind, packed.

    Attributes:
        places: which of the points.
        dtype: of their images.
        content: the chains, `Packed`, and a list of what they are called, `Called`.
    """

    places: list[int]
    dtype: str
    content: Sealed


@dataclass(frozen=True, slots=True)
class Asked:
    """What some points ask for, point by point.

    Attributes:
        rows: what the table says of them.
        keys: of their results.
        packs: those that are chains for the batched kernels, each key once.
        graphs: place → fingerprint of those that are other networks.
        errors: place → why there is nothing to compute.
    """

    rows: list[PointRows]
    keys: list[str]
    packs: list[Pack]
    graphs: dict[int, str]
    errors: dict[int, str]


def prepare(points: Iterable[tuple[int, AnyPoint]], common: Mapping[str, Any]) -> Asked:
    """What numbered points ask for, with `common` options unless they say otherwise."""
    tables: dict[tuple[str, ...], PointRows] = {}
    kinds: dict[tuple[int, str], dict[str, tuple[int, Called, Any]]] = {}
    found = Asked([], [], [], {}, {})
    for place, (number, point) in enumerate(points):
        parameters: Mapping[str, Any] = {}
        try:
            options, fingerprint, chain = _ask(point, common)
            parameters = point.parameters
            key = key_of(fingerprint, options)
            point_id, invalid = point_of(parameters, options, fingerprint)
        except InputError as error:
            add_refused(found, place, number, point, f"{type(error).__name__}: {error}")
            continue
        names = tuple(parameters)
        table = tables.get(names)
        if table is None:
            table = tables[names] = PointRows(names, [], [])
            found.rows.append(table)
        table.add(point_id, number, key, parameters.values())
        if invalid is not None:
            table.gone.append((invalid,))
        found.keys.append(key)
        if chain is None:
            found.graphs[place] = fingerprint
        else:
            kind = kinds.setdefault((chain.ndim, options.get("dtype", "float64")), {})
            if key not in kind:
                what = (chain, options.get("input_size"), options.get("unit"))
                assumptions = text_of(chain.assumptions) if chain.assumptions else "[]"
                kind[key] = (place, Called(fingerprint, assumptions), what)
    for (ndim, dtype), chains in kinds.items():
        places, called, whats = zip(*chains.values(), strict=True)
        content = Sealed((pack(whats, ndim), list(called)))
        found.packs.append(Pack(list(places), dtype, content))
    return found


def add_refused(asked: Asked, place: int, number: int, point: AnyPoint, error: str) -> None:
    """Adds a point that is invalid: its row, by its parameters and what is wrong."""
    parameters = dict(point.parameters)
    # What has no parameters is told apart by its error.
    point_id = refused_point_of(text_of(parameters), "" if parameters else error)
    key = key_of(f"invalid {point_id}", {})
    table = PointRows(tuple(parameters), [], [])
    table.add(point_id, number, key, parameters.values())
    asked.rows.append(table)
    asked.keys.append(key)
    asked.errors[place] = error


def options_of(point: AnyPoint, common: Mapping[str, Any], ndim: int) -> dict[str, Any]:
    """The options of `fastrf.erf` for a point, spelled out."""
    return spelled_out({**common, **point.options}, ndim)


def _ask(point: AnyPoint, common: Mapping[str, Any]) -> tuple[dict[str, Any], str, Chain | None]:
    """The options, spelled out, the fingerprint, and the chain of what the kernels can do."""
    options = {**common, **point.options}
    chain = point.chain() if _is_for_chains(options, point) else None
    if chain is not None:
        plain = spelled_out(options, chain.ndim)
        if _is_plain(plain, chain.ndim):
            return plain, chain_fingerprint(chain), chain
    network = point.network()
    return spelled_out(options, network.bound.ndim or 0), network.fingerprint, None


def _is_for_chains(options: Mapping[str, Any], point: AnyPoint) -> bool:
    """Whether the batched kernels do what is asked. The output of a space's point is its own
    matter: it is no chain where another is asked for."""
    asked = {n for n, v in options.items() if v is not None and v != DEFAULTS.get(n)}
    return asked <= _FOR_CHAINS | ({"output"} if isinstance(point, Point) else set())


def _is_plain(options: Mapping[str, Any], ndim: int) -> bool:
    """Whether size and unit are as they should be; what is not is for `fastrf.erf` to refuse."""
    if options.get("dtype", "float64") not in _DTYPES:
        return False
    for name, least in (("input_size", 1), ("unit", None)):
        values = options.get(name)
        if values is None:
            continue
        if not isinstance(values, list) or len(values) != ndim:
            return False
        if not all(type(v) is int and (least is None or v >= least) for v in values):
            return False
    return True
