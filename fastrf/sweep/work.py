"""What workers do: a task in, rows out. Workers write nothing; what one network raises is the text
of its row, and does not end the task."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastrf.device import resolve
from fastrf.sweep.columns import LAYERS, RESULTS
from fastrf.sweep.figures import Measured, measured
from fastrf.sweep.packing import Packed
from fastrf.sweep.points import Asked, Called, Part, Sealed, prepare
from fastrf.sweep.rows import Item, Row, Wanted, packed_profiles
from fastrf.sweep.store import packed_image


@dataclass(frozen=True, slots=True)
class Questions:
    """Points of which is to be found out what they ask for."""

    points: Part
    options: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.points)

    def part(self, first: int, stop: int) -> Questions:
        """Some of the points."""
        return Questions(self.points.part(first, stop), self.options)


@dataclass(frozen=True, slots=True)
class Answers:
    """What the points of some `Questions` ask for."""

    asked: Asked
    seconds: float


@dataclass(frozen=True, slots=True)
class Graphs:
    """Fields to compute one by one, with `options` where the points say nothing else."""

    items: tuple[Item, ...]
    wanted: Wanted
    options: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.items)

    def part(self, first: int, stop: int) -> Graphs:
        """Some of the items."""
        return Graphs(self.items[first:stop], self.wanted, self.options)

    def names(self, index: int) -> tuple[str, str]:
        """The key of a network, and its fingerprint."""
        return self.items[index].key, self.items[index].fingerprint


@dataclass(frozen=True, slots=True)
class Chains:
    """Fields of some chains of a `Pack` to compute in one call: their keys, and which they are."""

    keys: list[str]
    chosen: list[int]
    content: Sealed
    wanted: Wanted

    def __len__(self) -> int:
        return len(self.keys)

    def part(self, first: int, stop: int) -> Chains:
        """Some of the chains."""
        keys, chosen = self.keys[first:stop], self.chosen[first:stop]
        return Chains(keys, chosen, self.content, self.wanted)

    def names(self, index: int) -> tuple[str, str]:
        """The key of a network, and its fingerprint."""
        _, called = self.content.open()
        return self.keys[index], called[self.chosen[index]].fingerprint


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a task.

    Attributes:
        rows, layers: rows of the tables `results` and `layers`.
        left: indices and fingerprints of the chains that are no matter of a batch.
        seconds: how long it took.
    """

    rows: list[Row]
    layers: list[Row]
    left: list[tuple[int, str]]
    seconds: float


Task: TypeAlias = Questions | Graphs | Chains


def run(task: Task) -> Answers | Done:
    """Does what a task says."""
    start = time.perf_counter()
    if isinstance(task, Questions):
        asked = prepare(task.points, task.options)
        return Answers(asked, time.perf_counter() - start)
    rows: list[Row] = []
    layers: list[Row] = []
    left: list[tuple[int, str]] = []
    if isinstance(task, Graphs):
        from fastrf.sweep import graphs  # the engines, which chains do without

        for item in task.items:
            rows.append(graphs.row(item, task.wanted, task.options, layers))
    else:
        left = _chains(task, rows, layers)
    return Done(rows, layers, left, time.perf_counter() - start)


# --- chains ---------------------------------------------------------------------------------


def _chains(task: Chains, rows: list[Row], layers: list[Row]) -> list[tuple[int, str]]:
    whole, every = task.content.open()
    called: list[Called] = [every[chain] for chain in task.chosen]
    packed, wanted = whole.chosen(np.array(task.chosen, np.int64)), task.wanted
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
            "key": [task.keys[c] for c in chains],
            "fingerprint": [called[c].fingerprint for c in chains],
            "assumptions": [called[c].assumptions for c in chains],
            "device": [device.name] * len(chains),
            "seconds": [each] * len(chains),
            "error": [None] * len(chains),
            "profiles": _kept(batch, packed_profiles, wanted.profiles),
            "image": _kept(batch, _product, wanted.images),
        }
        columns = batch.figures | own
        rows.extend(zip(*(columns[name] for name in RESULTS), strict=True))
        last = now
    if wanted.layers:
        layers.extend(_layers_of_chains(task, packed, called, left))
    return [(c, called[c].fingerprint) for c in sorted(left)]


def _layers_of_chains(
    task: Chains, packed: Packed, called: Sequence[Called], left: set[int]
) -> list[Row]:
    """The fields of all layers of the chains that are not left: those of chains of all depths."""
    device, dtype = resolve(task.wanted.device), np.dtype(task.wanted.dtype)
    whole = np.repeat(np.arange(len(task)), packed.depths)
    ends = np.cumsum(packed.depths)
    position = np.arange(len(whole)) - np.repeat(ends - packed.depths, packed.depths)
    found: list[Row] = []
    for batch in measured(packed.prefixes(), device, dtype):
        owners = whole[batch.chains].tolist()
        columns = batch.figures | {
            "key": [task.keys[c] for c in owners],
            "assumptions": [called[c].assumptions for c in owners],
            "position": position[batch.chains].tolist(),
        }
        rows = zip(*(columns[name] for name in LAYERS), strict=True)
        found.extend(row for owner, row in zip(owners, rows, strict=True) if owner not in left)
    return found


def _kept(batch: Measured, pack: Any, wanted: bool) -> list[bytes | None]:
    if not wanted or batch.profiles is None:
        return [None] * len(batch.chains)
    return [pack(profiles) for profiles in batch.profiles]


def _product(profiles: Sequence[NDArray[Any]]) -> bytes:
    image = profiles[0]
    for line in profiles[1:]:
        image = np.multiply.outer(image, line)
    return packed_image(image)
