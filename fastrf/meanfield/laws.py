"""What one channel sees along paths without weights: the law of its values, and of its slopes.

Along an identity past random branches (a residual block whose sum is rectified) the channel is
kept: a value is that of the block before, bent, and a fresh Gaussian of the branch on top. The
values are a Markov chain S → f(S) + ξ, not Gaussian and not of mean 0, and the slopes of successive
activations are slopes of one and the same channel: the product of their means is not the mean of
their product. In the limit of wide layers a gradient of variance 1 that enters at a node t leaves
on a source s, an independent Gaussian that random weights wrote, with variance

    Γ(s, t) = E[(∂t/∂s)²],

the sum over all ways from s to t without weights of the products of their slopes, squared, under
the law of all sources together. Where every sum adds independent Gaussians to a function of one
state, it is an integral along one line after the other: of each source s, the measure m_s(x) dx =
E[(∂S/∂s)²; S in dx] is carried along with the law of S. A sum of variance v of ξ makes

    m_s′(y) = ∫ m_s(x) f′(x)² φ((y − f(x))/√v)/√v dx

of it, of the law itself the same without f′², and begins m_ξ as the new law. Gauss and Legendre's
rule in panels of twice ξ's deviation, cut at the kinks of all activations, does it to 1e-10. The
measures of n sources cost n images at each of n sums: `MOST` bounds that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrf.activations import FUNCTIONS, Curve, on_panels

Floats = NDArray[np.float64]

MOST = 64
"""Sources that are followed along one identity."""

_EDGE = 7.5
"""Deviations beyond which a Gaussian's mass, 6e-14, does not count."""

_PANELS = 400
"""Most panels of a law: where a branch adds less than 1/400 of the range, it is not followed."""

_KINKS = sorted({0.0, *(kink for function in FUNCTIONS.values() for kink in function.kinks)})


@dataclass(frozen=True, slots=True)
class Law:
    """Of a value f(S) of one channel at one pixel.

    Attributes:
        chances: of the state S at nodes of a rule; they sum to 1.
        value, slope: f and f′ at the nodes.
        sources: nodes whose values have made S.
        measures: of each source, that of (∂S/∂s)² at the nodes; (sources, nodes).
    """

    chances: Floats
    value: Floats
    slope: Floats
    sources: tuple[str, ...]
    measures: Floats

    @staticmethod
    def gaussian(source: str, variance: float) -> Law | None:
        """The value of a source itself."""
        found = _convolved(np.ones(1), np.zeros(1), variance)
        if found is None:
            return None
        y, chances = found
        return Law(chances[0], y, np.ones_like(y), (source,), chances)

    @property
    def square(self) -> float:
        """E[f²]."""
        return float(self.chances @ self.value**2)

    @property
    def mean(self) -> float:
        return float(self.chances @ self.value)

    def gains(self) -> dict[str, float]:
        """Γ by source."""
        found = self.measures @ self.slope**2
        return dict(zip(self.sources, map(float, found), strict=True))

    def times(self, factor: float) -> Law:
        return replace(self, value=self.value * factor, slope=self.slope * factor)

    def bent(self, value: Curve, slope: Curve, parameter: float) -> Law:
        """Behind an activation."""
        inner = slope(self.value, parameter) * self.slope
        return replace(self, value=value(self.value, parameter), slope=inner)

    def largest(self, source: str, count: int, alike: float = 0.0) -> Largest:
        """The largest one of so many values, as a source of its own.

        Args:
            alike: correlation of the Gaussians that the values come from; those that other pixels
                have in common with them.
        """
        order = np.argsort(self.value, kind="stable")
        value, first = np.unique(self.value[order], return_index=True)
        chances = np.add.reduceat(self.chances[order], first)
        # What values that are one and the same pass, on average.
        squares = np.add.reduceat((self.chances * self.slope**2)[order], first)
        squares /= np.maximum(chances, 1e-300)
        up = np.cumsum(chances)
        up /= up[-1]
        # Where an activation makes one value of many its chance is one of steps, else a density's.
        atom = np.diff(first, append=len(order)) > 1
        z, weights = _given(alike)
        own = np.empty((len(z), len(value)))
        for row, shared in zip(own, z, strict=True):
            over, below, middle = (
                _chance(p.clip(0, 1), shared, alike) for p in (up, up - chances, up - chances / 2)
            )
            steps = over[0] ** count - below[0] ** count
            density = count * chances * middle[0] ** (count - 1) * middle[1]
            row[:] = np.where(atom, steps, 0.0)
            rest, whole = 1 - row.sum(), density[~atom].sum()
            if whole > 0:
                row[~atom] = rest * (density[~atom] / whole)
            else:  # beyond the values, or at one of many
                at = int(np.searchsorted(over[0] ** count, 0.5))
                row[min(at, len(row) - 1)] += rest
        means, chosen = own @ value, weights @ own
        law = Law(chosen, value, np.ones_like(value), (source,), chosen[None])
        passed = float(chosen @ squares) / float(self.chances @ self.slope**2)
        return Largest(law, passed, float(weights @ means**2) / law.square)

    def plus(self, sources: dict[str, float]) -> Law | None:
        """With independent Gaussians of these variances added; None where that is not followed."""
        if len(self.sources) + len(sources) > MOST or not set(sources).isdisjoint(self.sources):
            return None
        variance = math.fsum(sources.values())
        found = _convolved(self.chances, self.value, variance)
        if found is None:
            return None
        y, kernel = found
        chances = self.chances @ kernel
        measures = (self.measures * self.slope**2) @ kernel
        whole = np.vstack([measures, *[chances] * len(sources)])
        return Law(chances, y, np.ones_like(y), (*self.sources, *sources), whole)


class Largest(NamedTuple):
    """Of several values the largest.

    Attributes:
        law: its own.
        passed: E[f′²] there, over that of any value.
        far: M(∞)/M(0) behind.
    """

    law: Law
    passed: float
    far: float


def _given(alike: float) -> tuple[Floats, Floats]:
    """Nodes and weights of what values have in common."""
    if alike == 0:
        return np.zeros(1), np.ones(1)
    nodes, weights = np.polynomial.hermite_e.hermegauss(32)
    return nodes, weights / weights.sum()


def _chance(chance: Floats, shared: float, alike: float) -> tuple[Floats, Floats]:
    """The chance of a Gaussian to lie below where it lies with `chance`, once it is known what it
    shares with others, and its derivative."""
    if alike == 0:
        return chance, np.ones_like(chance)
    from scipy.special import ndtr, ndtri

    z = ndtri(chance.clip(1e-300, 1 - 1e-16))
    width = math.sqrt(1 - alike)
    t = (z - math.sqrt(alike) * shared) / width
    return ndtr(t), np.exp(np.clip((z * z - t * t) / 2, -300, 300)) / width


def _convolved(chances: Floats, value: Floats, variance: float) -> tuple[Floats, Floats] | None:
    """Nodes of the law of a value and a Gaussian together, and the chance of each from each value,
    of shape (before, behind); None where the Gaussian is too small beside the value."""
    width = math.sqrt(variance)
    there = value[chances > 1e-15 * chances.max()]
    low, high = there.min() - _EDGE * width, there.max() + _EDGE * width
    if not width > 0 or high - low > _PANELS * width:
        return None
    edges = np.linspace(low, high, math.ceil((high - low) / (2 * width)) + 1)
    edges = np.union1d(edges, [k for k in _KINKS if low < k < high])
    y, weights = on_panels(edges, 8)
    weights /= width * math.sqrt(2 * math.pi)
    # What is cut off at e^−80 does not count, and no product of it is subnormal.
    kernel = np.exp(np.maximum(-0.5 * ((y - value[:, None]) / width) ** 2, -80.0)) * weights
    return y, kernel
