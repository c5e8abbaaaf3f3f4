"""What tensors mean: the digits of their indices, and constants."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fastrf.importers.failing import refuse

Shape = tuple[int | None, ...]
"""Sizes of a tensor, None where they are not known."""

BATCH, CHANNEL = -1, 0
"""Labels of digits; the spatial axes are 1, 2, 3."""

T = TypeVar("T")


# --- sizes ----------------------------------------------------------------------------------


def known(values: Sequence[T | None]) -> tuple[T, ...] | None:
    """The values where all of them are known, else None."""
    found = tuple(v for v in values if v is not None)
    return found if len(found) == len(values) else None


def product(sizes: Shape) -> int | None:
    """Number of elements of a shape, None where a size is not known."""
    sure = known(sizes)
    return None if sure is None else math.prod(sure)


def total(counts: Sequence[int | None]) -> int | None:
    """Sum of counts, None where one is not known."""
    sure = known(counts)
    return None if sure is None else sum(sure)


def fits(a: Shape, b: Shape) -> bool:
    """Whether two shapes can be the same."""
    return len(a) == len(b) and all(
        m is None or n is None or m == n for m, n in zip(a, b, strict=True)
    )


# --- digits ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Digit:
    """A digit of the index along the batch, the channels or a spatial axis.

    The index is Σ digit·step over the digits of its label. A size that is not known is None;
    digits of size 1 are left out.
    """

    label: int
    size: int | None
    step: int = 1


Axis = tuple[Digit, ...]
"""The digits of one axis of a tensor, the slowest first."""


def size(digits: Sequence[Digit]) -> int | None:
    return product(tuple(d.size for d in digits))


def join(digits: Sequence[Digit]) -> Axis:
    """Neighbouring digits that count on from each other as one, without those of size 1."""
    result: list[Digit] = []
    for digit in digits:
        if digit.size == 1:
            continue
        last = result[-1] if result else digit
        if (
            last.size is not None
            and digit.size is not None
            and last.label == digit.label
            and last.step == digit.size * digit.step
        ):
            result[-1] = Digit(digit.label, last.size * digit.size, digit.step)
        else:
            result.append(digit)
    return tuple(result)


def _take(digits: list[Digit], count: int, front: bool) -> Axis | None:
    """Removes digits of product `count` from one end of a list, splitting one where needed."""
    taken: list[Digit] = []
    while count > 1:
        if not digits:
            return None
        digit = digits.pop(0 if front else -1)
        if digit.size is None:
            return None
        if count % digit.size:
            if digit.size % count:
                return None
            other = digit.size // count
            many, few = (count, other) if front else (other, count)
            slow = Digit(digit.label, many, digit.step * few)
            fast = Digit(digit.label, few, digit.step)
            digit, rest = (slow, fast) if front else (fast, slow)
            digits.insert(0 if front else len(digits), rest)
        count //= digit.size or 1
        taken.insert(len(taken) if front else 0, digit)
    return join(taken)


def regroup(axes: Sequence[Axis], target: Shape) -> tuple[Axis, ...] | None:
    """The axes after a reshape to `target`, in which one size may be open (None).

    None where the digits cannot be cut that way, or sizes are needed that are not known.
    """
    if target.count(None) > 1:
        return None
    digits = [d for axis in axes for d in axis]
    split = target.index(None) if None in target else len(target)
    before = [_take(digits, n or 1, front=True) for n in target[:split]]
    behind = [_take(digits, n or 1, front=False) for n in reversed(target[split + 1 :])][::-1]
    if split == len(target):
        return None if digits else known(before)
    return known([*before, join(digits), *behind])


def broadcast(a: tuple[Axis, ...], b: tuple[Axis, ...]) -> tuple[Axis, ...]:
    """The axes of a sum of two tensors; refused where axes mean different things."""
    rank = max(len(a), len(b))
    a, b = ((),) * (rank - len(a)) + a, ((),) * (rank - len(b)) + b
    axes = []
    for one, other in zip(a, b, strict=True):
        same = [(d.label, d.step) for d in one] == [(d.label, d.step) for d in other]
        sizes = [tuple(d.size for d in axis) for axis in (one, other)]
        if one and other and not (same and fits(*sizes)):
            refuse("joins tensors whose axes mean different things")
        axes.append(other if not one or (size(one) is None and other) else one)
    return tuple(axes)


# --- values ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Map:
    """A tensor that depends on an input map.

    Attributes:
        node: the fastrf node that computes it.
        extent: channels, then pixels per spatial axis, of that node's map.
        axes: the digits of every axis of the tensor, the slowest first; None behind attention,
            where each element reads every position and only `shape` is known.
        batch: size of the batch.
    """

    node: str
    extent: Shape
    axes: tuple[Axis, ...] | None
    batch: int | None = 1
    shape: Shape | None = None

    @property
    def dims(self) -> Shape | None:
        """The tensor's shape."""
        return self.shape if self.axes is None else tuple(size(axis) for axis in self.axes)

    @property
    def pixels(self) -> Shape:
        return self.extent[1:]

    def whole(self, label: int) -> Axis:
        """The complete index of a label as one axis."""
        count = self.batch if label == BATCH else self.extent[label]
        return () if count == 1 else (Digit(label, count),)

    @property
    def standard(self) -> tuple[Axis, ...]:
        """(N, C, spatial…)."""
        return tuple(self.whole(label) for label in range(BATCH, len(self.extent)))

    @property
    def is_standard(self) -> bool:
        """Whether the tensor is the node's map as it stands; how the batch is cut is no matter."""
        return (
            self.axes is not None
            and self.axes[1:] == self.standard[1:]
            and all(d.label == BATCH for d in self.axes[0])
        )

    def holds(self, digits: Axis, label: int) -> bool:
        """Whether digits make up the complete index of a label, in any order."""
        own = sorted((d for d in digits if d.label == label), key=lambda d: -d.step)
        return join(own) == self.whole(label)

    def holds_grid(self, digits: Axis) -> bool:
        """Whether digits make up the complete position."""
        return all(self.holds(digits, label) for label in range(1, len(self.extent)))

    def groups_channels(self) -> bool:
        """Whether the second axis counts channels, and those behind it the positions: in any number
        of axes, as one (attention normalises a sequence so)."""
        assert self.axes is not None
        behind = tuple(d for axis in self.axes[2:] for d in axis)
        return (
            len(self.axes) > 2
            and all(d.label == CHANNEL for d in self.axes[1])
            and self.holds_grid(behind)
        )

    def reads_grid(self, axes: Sequence[Axis]) -> bool:
        """Whether axes cover every position (True) or none (False); others are refused."""
        digits = tuple(d for axis in axes for d in axis)
        if any(d.label == BATCH for d in digits):
            refuse("works along the batch")
        if not any(d.label > CHANNEL for d in digits):
            return False
        if not self.holds_grid(digits):
            refuse("works along some of the spatial axes and not all")
        return True

    def put(self, axis: int, digits: Axis) -> tuple[Axis, ...]:
        """The axes with other digits in the place of one of them."""
        assert self.axes is not None
        return (*self.axes[:axis], digits, *self.axes[axis + 1 :])

    def resized(self, label: int, count: int | None, axis: int) -> Map:
        """The map with `count` indices of a label, which are the tensor's axis `axis`."""
        after = replace(self, extent=(*self.extent[:label], count, *self.extent[label + 1 :]))
        return replace(after, axes=self.put(axis, after.whole(label)))


def input_map(node: str, shape: Shape, channels_last: bool = False) -> Map:
    """What an input of a model is: (N, C, spatial…), with the channels behind the spatial axes
    where they are last, or (N, T), a signal without an axis for its one channel."""
    batch, *rest = shape
    if len(shape) == 2:
        rest = [1, *rest]
    elif channels_last:
        rest = [rest[-1], *rest[:-1]]
    x = Map(node, tuple(rest), None, batch)
    first, channels, *grid = x.standard
    if len(shape) == 2:
        return replace(x, axes=(first, *grid))
    return replace(x, axes=(first, *grid, channels) if channels_last else x.standard)


@dataclass(frozen=True, slots=True)
class Const:
    """A tensor that no input map reaches: its shape and, where small and known, its value.

    Where weights are read, it is `learned` if it is a parameter or comes from one.
    """

    shape: Shape | None
    array: NDArray[Any] | None = None
    learned: bool = False

    @classmethod
    def of(cls, array: NDArray[Any]) -> Const:
        return cls(array.shape, array)


Value = Map | Const


def size_list(shape: Shape) -> Const:
    """A list of sizes as a graph computes it, known where all of them are."""
    sure = known(shape)
    return Const((len(shape),), None if sure is None else np.array(sure, np.int64))
