"""Images as weighted powers of one map: what a stack of equal layers makes of a block of terms.

Maps of known size with zero padding hand nothing on that once fell into it, so that a layer that
keeps the map's size is one matrix an axis, T = T_y ⊗ T_x, borders and all, and equal layers are
powers of it. A stack of them, with whatever shortcuts and concatenations, is a polynomial:

    Σ_j values[j] · T^j X,    T^j (a ⊗ b) = (T_y^j a) ⊗ (T_x^j b),

whose coefficients (Poisson-binomial for residual blocks) follow from the graph alone, without
touching a pixel. The powers of an axis (`powers`) are computed once for all layers that
meet in them. Where X is the unit, everything is nonnegative and nothing is subtracted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from fastrf.engine.recompressed.maps import Floats
from fastrf.engine.recompressed.powers import Passage
from fastrf.engine.scaled import Scaled


@dataclass(frozen=True, slots=True, eq=False)
class Symbol:
    """A block of terms that is yet to be computed.

    Attributes:
        number: its place among all blocks.
        rank: how many terms it is expected to have, or columns an axis.
        shape: pixels per axis.
        roundings: that befall a pixel up to here, one after the other.
    """

    number: int
    rank: int
    shape: tuple[int, ...]
    roundings: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Words:
    """Σ_j values[j]·T^(first + j) of a block; without a step, values[0] times the block."""

    block: Symbol
    step: Passage | None
    first: int
    values: Floats

    @property
    def plain(self) -> bool:
        """Whether it is a multiple of the block."""
        return len(self.values) == 1 and not self.first

    @property
    def rank(self) -> int:
        """How many terms it is expected to have."""
        return self.block.rank * len(self.values)

    def matches(self, other: Words) -> bool:
        """Whether both are powers of one map of one block."""
        if self.block is not other.block:
            return False
        return self.step is other.step or self.step is None or other.step is None

    def plus(self, other: Words, ratio: float) -> Words:
        """The sum with ratio·other, which matches."""
        first = min(self.first, other.first)
        stop = max(self.first + len(self.values), other.first + len(other.values))
        values = np.zeros(stop - first)
        values[self.first - first : self.first - first + len(self.values)] = self.values
        part = values[other.first - first : other.first - first + len(other.values)]
        part += other.values * ratio
        return Words(self.block, self.step or other.step, first, values)

    def times(self, factor: float) -> Words:
        return Words(self.block, self.step, self.first, self.values * factor)


@dataclass(slots=True, eq=False)
class Sum:
    """Words of several blocks, at least one; once they are multiplied out, their block."""

    words: tuple[Words, ...]
    settled: Symbol | None = None


_ONE = np.ones(1)


@dataclass(frozen=True, slots=True, eq=False)
class Image:
    """A plane's image: sum·scale.

    Attributes:
        top: upper bound of log2 of the values of all words.
        roundings: how many befall a pixel, one after the other.
    """

    sum: Sum
    scale: Scaled
    top: float
    roundings: int

    @staticmethod
    def of(block: Symbol, scale: Scaled, roundings: int) -> Image:
        return Image(Sum((Words(block, None, 0, _ONE),)), scale, 0.0, roundings)

    def times(self, factor: float) -> Image:
        if factor == 1.0:
            return self
        return Image(self.sum, self.scale * factor, self.top, self.roundings + rounds(factor))

    def rebased(self) -> Image:
        """On the block that its sum is multiplied out to, where it is."""
        if self.sum.settled is None:
            return self
        block = self.sum.settled
        return Image.of(block, self.scale, max(self.roundings + 1, block.roundings))


def rounds(factor: float) -> bool:
    """Whether multiplying by it rounds: powers of two alone do not."""
    return math.frexp(factor)[0] != 0.5
