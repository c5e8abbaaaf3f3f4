"""The tables of a program: what `fastrf.engine.program` writes and the kernel ``walk`` reads.

A program follows gradient variance from any map of a network back to an input, one instruction
after the other. It works on *values*: nonnegative images on windows of maps, each a scale times the
pixels in one of a few *slots*; values that differ by a factor share a slot. An instruction makes a
new value of one or two others; a value that none has made holds nothing. Where a value's window
lies, and how large its pixels are, is not in the tables: it follows from the unit at run time.

Every table has one row per thing and the columns named here. Grids are 3-D; a grid of fewer axes
has axes of one pixel in front.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Operations, and the columns of `Tables.instructions`.
SCALE = 0
"""TO = A·factor, in the same slot."""
SUM = 1
"""TO = A + B, in a slot of its own, on the smallest window that holds both."""
MOVE = 2
"""TO = factor times the transposed map number BY of A, without what falls into padding; B is a
slot to work in, or −1."""
GLOBAL = 3
"""Stop where A holds anything: what follows reads the whole of an unbounded grid."""
OPERATION, TO, A, B, BY = range(5)

# Columns of `Tables.factors`, one row an instruction. A factor is MANTISSA·2^EXPONENT/DIVISOR. REST
# is the mean gain from the result to the input, by which losses are weighted.
MANTISSA, EXPONENT, DIVISOR, REST, REST_EXPONENT = range(5)

# Columns of `Tables.kinds`: DENSE is where the taps begin that are no product of vectors, or −1;
# SINKS whether the largest pixel can be smaller than before.
DENSE, SINKS = range(2)

# The columns of an axis of `Tables.maps`: SIZE is that of x, or −1 on the unbounded grid; TAPS is
# where the taps begin, or −1 for equal ones, which are all 1. A table has KERNEL taps in each of
# STRIDE rows, which repeat DILATION pixels further on; they begin at the pixels
# `Tables.starts`[LO …].
KIND, KERNEL, STRIDE, DILATION, LO, SIZE, TAPS = range(7)

# Kinds of axis maps, as in `fastrf.maps`.
WINDOW, SPREAD, TABLE, EVERYTHING = range(4)

Integers = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Tables:
    """A program.

    Attributes:
        instructions: (N, 5), in order.
        factors: (N, 5) of float64.
        maps: (M, 3, 7), the distinct transposed maps, axis by axis.
        kinds: (M, 2), what they are as a whole.
        starts: first pixels of the rows of all `TABLE`s.
        taps: weights of all maps, of the dtype of the images.
        slot_of: slot of each value.
        slots: how many there are.
        result: the value that holds the input's image in the end.
    """

    instructions: Integers
    factors: NDArray[np.float64]
    maps: Integers
    kinds: Integers
    starts: Integers
    taps: NDArray[Any]
    slot_of: Integers
    slots: int
    result: int
