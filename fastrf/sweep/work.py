"""What workers do: a task in, rows out. Workers write nothing; what one network raises is the text
of its row, and does not end the task."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastrf.device import resolve
from fastrf.erf import ERF, erf
from fastrf.sweep.columns import LAYERS, RESULTS
from fastrf.sweep.figures import Measured, measured
from fastrf.sweep.graphs import figures_of
from fastrf.sweep.packing import Packed
from fastrf.sweep.points import AnyPoint, Asked, Pack, prepare
from fastrf.sweep.store import packed_image

Row: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is computed of every network.

    Attributes:
        device, dtype: as for `fastrf.erf`.
        layers: also the fields of all layers.
        profiles, images: also what is kept beside the figures.
    """

    device: str
    dtype: str
    layers: bool
    profiles: bool
    images: bool


@dataclass(frozen=True, slots=True)
class Item:
    """One result to come: its key, its network's fingerprint, and, of a graph, where its network
    comes from and the options of `fastrf.erf`."""

    key: str
    fingerprint: str | None
    point: AnyPoint | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Questions:
    """Numbered points of which is to be found out what they ask for."""

    points: tuple[tuple[int, AnyPoint], ...]
    options: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.points)

    def part(self, first: int, stop: int) -> Questions:
        """Some of the points."""
        return Questions(self.points[first:stop], self.options)


@dataclass(frozen=True, slots=True)
class Answers:
    """What the points of some `Questions` ask for, see `points.prepare`."""

    asked: list[Asked]
    packs: list[Pack]
    seconds: float


@dataclass(frozen=True, slots=True)
class Task:
    """Fields to compute: graphs one by one, or, where they are `packed`, chains in one call."""

    items: tuple[Item, ...]
    wanted: Wanted
    packed: Packed | None = None

    def __len__(self) -> int:
        return len(self.items)

    def part(self, first: int, stop: int) -> Task:
        """Some of the items."""
        packed = None if self.packed is None else self.packed.chosen(np.arange(first, stop))
        return Task(self.items[first:stop], self.wanted, packed)


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a task.

    Attributes:
        rows, layers: rows of the tables `results` and `layers`.
        left: indices of the chains that are no matter of a batch.
        seconds: how long it took.
    """

    rows: list[Row]
    layers: list[Row]
    left: list[int]
    seconds: float


def run(task: Questions | Task) -> Answers | Done:
    """Does what a task says."""
    start = time.perf_counter()
    if isinstance(task, Questions):
        asked, packs = prepare(task.points, task.options)
        return Answers(asked, packs, time.perf_counter() - start)
    rows: list[Row] = []
    layers: list[Row] = []
    left: list[int] = []
    if task.packed is None:
        for item in task.items:
            rows.append(_graph(item, task.wanted, layers))
    else:
        left = _chains(task, rows, layers)
    return Done(rows, layers, left, time.perf_counter() - start)


def error_row(key: str, fingerprint: str | None, error: str, seconds: float = 0.0) -> Row:
    """The row of a network that has no field."""
    found = {"key": key, "fingerprint": fingerprint, "error": error, "seconds": seconds}
    return tuple(found.get(name) for name in RESULTS)


def said(error: BaseException) -> str:
    """An error as the table says it."""
    return f"{type(error).__name__}: {error}"


# --- chains ---------------------------------------------------------------------------------


def _chains(task: Task, rows: list[Row], layers: list[Row]) -> list[int]:
    packed, wanted = task.packed, task.wanted
    assert packed is not None
    device, dtype = resolve(wanted.device), np.dtype(wanted.dtype)
    keep = wanted.profiles or wanted.images
    left = set(range(len(task)))
    last = time.perf_counter()
    for batch in measured(packed, device, dtype, keep):
        now = time.perf_counter()
        chains = batch.chains.tolist()
        left.difference_update(chains)
        each = (now - last) / max(1, len(chains))
        own = {
            "key": [task.items[c].key for c in chains],
            "fingerprint": [task.items[c].fingerprint for c in chains],
            "device": [device.name] * len(chains),
            "seconds": [each] * len(chains),
            "error": [None] * len(chains),
            "profiles": _kept(batch, _packed_profiles, wanted.profiles),
            "image": _kept(batch, _product, wanted.images),
        }
        columns = batch.figures | own
        rows.extend(zip(*(columns[name] for name in RESULTS), strict=True))
        last = now
    if wanted.layers:
        layers.extend(_layers_of_chains(task, packed, set(left)))
    return sorted(left)


def _layers_of_chains(task: Task, packed: Packed, left: set[int]) -> list[Row]:
    """The fields of all layers of the chains that are not left: those of chains of all depths."""
    device, dtype = resolve(task.wanted.device), np.dtype(task.wanted.dtype)
    whole = np.repeat(np.arange(len(task)), packed.depths)
    ends = np.cumsum(packed.depths)
    position = np.arange(len(whole)) - np.repeat(ends - packed.depths, packed.depths)
    found: list[Row] = []
    for batch in measured(packed.prefixes(), device, dtype):
        owners = whole[batch.chains].tolist()
        columns = batch.figures | {
            "key": [task.items[c].key for c in owners],
            "position": position[batch.chains].tolist(),
        }
        rows = zip(*(columns[name] for name in LAYERS), strict=True)
        found.extend(row for owner, row in zip(owners, rows, strict=True) if owner not in left)
    return found


def _kept(batch: Measured, pack: Any, wanted: bool) -> list[bytes | None]:
    if not wanted or batch.profiles is None:
        return [None] * len(batch.chains)
    return [pack(profiles) for profiles in batch.profiles]


def _packed_profiles(profiles: Sequence[NDArray[Any]]) -> bytes:
    whole = np.concatenate(profiles)
    return whole.astype(whole.dtype.newbyteorder("<"), copy=False).tobytes()


def _product(profiles: Sequence[NDArray[Any]]) -> bytes:
    image = profiles[0]
    for line in profiles[1:]:
        image = np.multiply.outer(image, line)
    return packed_image(image)


# --- graphs ---------------------------------------------------------------------------------


def _graph(item: Item, wanted: Wanted, layers: list[Row]) -> Row:
    start = time.perf_counter()
    try:
        assert item.point is not None
        network = item.point.network()
        options = {"dtype": wanted.dtype, "device": wanted.device, **item.options, "workers": 1}
        own = []
        if wanted.layers:
            every = erf(network, layers="all", **options)
            for position, found in enumerate(every.values()):
                figures = figures_of(found) | {"key": item.key, "position": position}
                own.append(tuple(figures[name] for name in LAYERS))
        result = erf(network, **options)
        figures = figures_of(result) | {
            "key": item.key,
            "fingerprint": item.fingerprint,
            "device": getattr(result.plan, "device", None),
            "error": None,
            "profiles": _packed_profiles(_profiles(result)) if wanted.profiles else None,
            "image": packed_image(result.to_numpy()) if wanted.images else None,
            "seconds": time.perf_counter() - start,
        }
    except Exception as error:  # a row of the table, whatever it is
        return error_row(item.key, item.fingerprint, said(error), time.perf_counter() - start)
    layers.extend(own)
    return tuple(figures[name] for name in RESULTS)


def _profiles(result: ERF) -> list[NDArray[Any]]:
    """The profiles in the image's own precision."""
    dtype = result.values.dtype
    return [result.profile(axis).astype(dtype, copy=False) for axis in range(len(result.shape))]
