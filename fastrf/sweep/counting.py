"""How many combinations meet all of several constraints, each on few of the axes.

What one constraint says is a table over the axes that it reads. The number sought is the sum, over
all axes, of the product of the tables; axes are summed out one by one, each from the tables that
have it, as in the elimination of variables (Dechter 1999, "Bucket elimination"). Constraints that
form a chain, a < b, b < c …, cost one table of two axes each, however many they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

LARGEST = 1 << 24
"""Most entries of a table on the way: 128 MB."""


class Table(NamedTuple):
    """A number for every combination of values of some axes.

    Attributes:
        axes: their numbers, ascending.
        values: whole numbers of at least 0, one dimension an axis.
    """

    axes: tuple[int, ...]
    values: NDArray[np.int64]


def count_joint(tables: Sequence[Table], lengths: Mapping[int, int]) -> int | None:
    """Σ over all axes of the product of the tables; None where it takes larger ones than `LARGEST`.

    Args:
        tables: 0 or 1 where a constraint is broken or met.
        lengths: of all axes, also those that no table has; their product is below 2**63.
    """
    left, axes = list(tables), set(lengths)
    count = 1
    while axes:
        # The axis that takes the smallest table.
        wide = {axis: _joined_axes(axis, left) for axis in axes}
        sizes = {axis: math.prod(lengths[a] for a in wide[axis]) for axis in axes}
        axis = min(axes, key=lambda a: (sizes[a], a))
        axes.remove(axis)
        own = [table for table in left if axis in table.axes]
        left = [table for table in left if axis not in table.axes]
        if not own:
            count *= lengths[axis]
            continue
        if sizes[axis] > LARGEST:
            return None
        joined = np.ones([lengths[a] for a in wide[axis]], np.int64)
        for table in own:
            joined *= np.expand_dims(
                table.values, tuple(n for n, a in enumerate(wide[axis]) if a not in table.axes)
            )
        rest = tuple(a for a in wide[axis] if a != axis)
        summed = joined.sum(axis=wide[axis].index(axis))
        if rest:
            left.append(Table(rest, summed))
        else:
            count *= int(summed)
    return count


def _joined_axes(axis: int, tables: Sequence[Table]) -> tuple[int, ...]:
    """The axes of all tables that have one, itself included."""
    return tuple(sorted({axis}.union(*(t.axes for t in tables if axis in t.axes))))
