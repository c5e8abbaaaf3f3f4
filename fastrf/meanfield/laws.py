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

    def largest(self, source: str, count: int) -> Law:
        """Of so many independent values the largest one, as a source of its own."""
        order = np.argsort(self.value, kind="stable")
        value, first = np.unique(self.value[order], return_index=True)
        chances = np.add.reduceat(self.chances[order], first)
        up = np.cumsum(chances)
        # Where an activation makes one value of many its chance is one of steps, else a density's.
        steps = up**count - (up - chances).clip(0) ** count
        density = count * chances * (up - chances / 2) ** (count - 1)
        atom = np.diff(first, append=len(order)) > 1
        rest = (1 - steps[atom].sum()) / density[~atom].sum()
        own = np.where(atom, steps, rest * density)
        return Law(own, value, np.ones_like(value), (source,), own[None])

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
