"""Sets of channels that stand in the batch: two images behind one another, the estimates of several
sources. All of them go through the same weights, as through groups of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastrf.importers.failing import refuse
from fastrf.importers.layout import BATCH, CHANNEL, Const, Digit, Map, join
from fastrf.importers.operator import Operator, Result

Op = TypeVar("Op", bound=Operator)

MOST = 1 << 28
"""Most numbers that weights become by repeating; a file may state any number of sets."""

Regrouped = Callable[[Op, Map, int], Op]
"""The same operator on another map, with so many times the groups."""


def sets_of(x: Map) -> int:
    """Into how many sets of channels a tensor (N·sets, channels of one, spatial…) cuts its map."""
    channels = x.extent[CHANNEL]
    if x.axes is None or channels is None or x.axes[2:] != x.standard[2:]:
        return 1
    slow = [d for d in x.axes[0] if d.label != BATCH]
    if len(slow) != 1 or slow[0].label != CHANNEL or (slow[0].size or 1) * slow[0].step != channels:
        return 1
    return channels // slow[0].step if x.axes[1] == join([Digit(CHANNEL, slow[0].step)]) else 1


def regrouped(handler: Callable[[Op], Result], regroup: Regrouped[Op]) -> Callable[[Op], Result]:
    """A handler that takes such tensors, too."""

    def handled(op: Op) -> Result:
        x = op.inputs[0] if op.inputs else None
        sets = sets_of(x) if isinstance(x, Map) else 1
        if sets == 1 or not isinstance(x, Map):
            return handler(op)
        after = handler(regroup(op, replace(x, axes=x.standard), sets))
        assert isinstance(after, Map)
        return _in_batch(after, x, sets)

    return handled


def repeated(weights: Const, times: int) -> Const:
    """Weights that all sets share, once for each."""
    shape, array = weights.shape or (), weights.array
    first = None if not shape or shape[0] is None else shape[0] * times
    return replace(weights, shape=(first, *shape[1:]), array=_copies(array, times))


def for_all(x: Map, factors: NDArray[Any] | None) -> NDArray[Any] | None:
    """Factors of the channels of one set, once for each."""
    if factors is None or factors.ndim != 1 or factors.size == 1:
        return factors
    return _copies(factors, sets_of(x))


def _copies(array: NDArray[Any] | None, times: int) -> NDArray[Any] | None:
    if array is None or times == 1:
        return array
    if array.size * times > MOST:
        refuse(f"repeats {array.size} weights for {times} sets of channels in the batch")
    return np.concatenate([array] * times)


def _in_batch(after: Map, before: Map, sets: int) -> Map:
    """A map with its sets of channels where they were."""
    assert after.axes is not None
    assert before.axes is not None
    count = (after.extent[CHANNEL] or sets) // sets
    batch = tuple(d if d.label == BATCH else Digit(CHANNEL, sets, count) for d in before.axes[0])
    return replace(after, axes=(batch, join([Digit(CHANNEL, count)]), *after.axes[2:]))
