"""From points to what they ask for: keys, packed chains, networks. This, too, workers do."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from fastrf.errors import InputError
from fastrf.network import Network, as_network
from fastrf.sweep.chain import Chain
from fastrf.sweep.content import (
    DEFAULTS,
    chain_fingerprint,
    key_of,
    point_of,
    spelled_out,
)
from fastrf.sweep.packing import Packed, pack
from fastrf.sweep.space import Point, Space
from fastrf.sweep.store import PointRow

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


def points_of(space: Any) -> tuple[Iterator[AnyPoint], int | None]:
    """The points of what `sweep` takes one by one, and how many there are where that is known.

    Raises:
        InputError: it is nothing that has points.
    """
    if isinstance(space, str | os.PathLike):
        space = Space.load(space)
    if isinstance(space, Space):
        return iter(space), len(space)
    if isinstance(space, Network) or not isinstance(space, Iterable):
        raise InputError(
            f"{type(space).__name__} is no space; give a Space, the path of a space file, or a "
            "list of networks"
        )
    return map(_given, space), len(space) if isinstance(space, Sized) else None


def _given(item: Any) -> AnyPoint:
    if isinstance(item, Point):
        return item
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Mapping):
        return Given(*item)
    name = item.name if isinstance(item, Network) else None
    return Given({} if name is None else {"network": name}, item)


@dataclass(frozen=True, slots=True)
class Asked:
    """What a point asks for.

    Attributes:
        row: what the table says of it.
        fingerprint: of its network; None where it is invalid.
        options: of `fastrf.erf`, spelled out.
        error: why there is nothing to compute.
    """

    row: PointRow
    fingerprint: str | None
    options: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Pack:
    """Those of some points that are chains of one kind, packed.

    Attributes:
        places: which of the points.
        dtype: of their images.
        packed: the chains.
    """

    places: list[int]
    dtype: str
    packed: Packed


def prepare(
    points: Sequence[tuple[int, AnyPoint]], common: Mapping[str, Any]
) -> tuple[list[Asked], list[Pack]]:
    """What numbered points ask for, with `common` options unless they say otherwise. Chains for
    the batched kernels are packed, each fingerprint once."""
    asked: list[Asked] = []
    kinds: dict[tuple[int, str], dict[str, tuple[int, Any]]] = {}
    for place, (number, point) in enumerate(points):
        found, chain = _ask(number, point, common)
        asked.append(found)
        if chain is not None:
            options = found.options
            kind = kinds.setdefault((chain.ndim, options.get("dtype", "float64")), {})
            what = (chain, options.get("input_size"), options.get("unit"))
            kind.setdefault(found.row.key, (place, what))
    packs = []
    for (ndim, dtype), chains in kinds.items():
        places, whats = zip(*chains.values(), strict=True)
        packs.append(Pack(list(places), dtype, pack(whats, ndim)))
    return asked, packs


def refused(number: int, point: AnyPoint, error: str) -> Asked:
    """What a point asks for that is invalid: its row, by its parameters and what is wrong."""
    parameters = dict(point.parameters)
    # What has no parameters is told apart by its error.
    point_id = point_of(parameters, {}, "" if parameters else error)
    row = PointRow(point_id, number, key_of(f"invalid {point_id}", {}), parameters)
    return Asked(row, None, error=error)


def _ask(number: int, point: AnyPoint, common: Mapping[str, Any]) -> tuple[Asked, Chain | None]:
    options: dict[str, Any] = dict(common)
    network, chain = None, None
    try:
        options |= point.options
        chain = point.chain() if _is_for_chains(options, point) else None
        if chain is not None:
            options = spelled_out(options, chain.ndim)
            if not _is_plain(options, chain.ndim):
                chain = None
        if chain is not None:
            fingerprint = chain_fingerprint(chain)
        else:
            network = point.network()
            options = spelled_out(options, network.bound.ndim or 0)
            fingerprint = network.fingerprint
        parameters = dict(point.parameters)
        point_id = point_of(parameters, options, fingerprint)
        key = key_of(fingerprint, options)
    except InputError as error:
        return refused(number, point, f"{type(error).__name__}: {error}"), None
    invalid = point_of(parameters, {}, "") if parameters else None
    row = PointRow(point_id, number, key, parameters, invalid)
    return Asked(row, fingerprint, options), chain


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
