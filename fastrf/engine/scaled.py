"""Numbers and images with an exponent of their own, so that no gain over- or underflows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Scaled:
    """The number mantissa·2^exponent, with 0.5 ≤ mantissa < 1 (or 0)."""

    mantissa: float
    exponent: int = 0

    @staticmethod
    def of(value: float, exponent: int = 0) -> Scaled:
        mantissa, shift = math.frexp(value)
        return Scaled(mantissa, exponent + shift)

    def __mul__(self, factor: float | Scaled) -> Scaled:
        if isinstance(factor, Scaled):
            return Scaled.of(self.mantissa * factor.mantissa, self.exponent + factor.exponent)
        return Scaled.of(self.mantissa * factor, self.exponent)

    def __truediv__(self, divisor: float) -> Scaled:
        """Rounds once; a factor 1/3 would be wrong to the same side in each of 10,000 layers."""
        return Scaled.of(self.mantissa / divisor, self.exponent)

    def __add__(self, other: Scaled) -> Scaled:
        if not self.mantissa or not other.mantissa:
            return self if self.mantissa else other
        exponent = max(self.exponent, other.exponent)
        return Scaled.of(
            math.ldexp(self.mantissa, self.exponent - exponent)
            + math.ldexp(other.mantissa, other.exponent - exponent),
            exponent,
        )

    def over(self, other: Scaled) -> float:
        """self/other as a float: 0 where it underflows, infinity where it overflows."""
        if not self.mantissa:
            return 0.0
        shift = self.exponent - other.exponent
        if shift > 1022:
            return math.inf
        return math.ldexp(self.mantissa / other.mantissa, max(shift, -1100))

    def log(self) -> float:
        """Natural logarithm (−inf for 0)."""
        if not self.mantissa:
            return -math.inf
        return math.log(self.mantissa) + self.exponent * math.log(2)


ZERO = Scaled(0.0)
ONE = Scaled.of(1.0)


@dataclass(frozen=True, slots=True)
class Headroom:
    """Where an image's values are kept, as powers of two, in one floating-point type.

    The largest value is kept near 2^top, far above 1, so that a pixel's value may fall far below
    the smallest normal number *relative to the peak* before it is trimmed: what is trimmed is
    below 2^(low − top) of the peak, and the pixels of a result, which are at least 2^low, lie
    2^top above it. Hence trimming does not touch any pixel of the result.

    Attributes:
        top: where the largest value of an image is put.
        limit: where no sum of its values may reach.
        low: below which values are trimmed.
        shift: orders by which an image is scaled at most at once.
        slack: by how much the largest value may lie below the top where nobody looks at it. A
            fifth of what is kept below: 2^−43 in float32 and 2^−396 in float64, so that what is
            trimmed still lies 2^47 and 2^564 below the pixels of a result.
    """

    top: int
    limit: int
    low: int
    shift: int
    slack: int

    @staticmethod
    def of(dtype: Any) -> Headroom:
        info = np.finfo(dtype)
        top = int(info.maxexp) - 64 if info.bits > 32 else 90
        slack = (top - int(info.minexp)) // 5
        return Headroom(top, info.maxexp - 4, info.minexp, info.maxexp - 24, slack)
