"""Sums of separable terms with factors of either sign, and fewer terms for the same image.

An image of n₀ × n₁ pixels is A·diag(w)·Bᵀ. `reduced` finds the same image with fewer terms: QR of
both factors and a singular value decomposition of the small core (Golub and Van Loan 2013, §5.2
and §8.6), or of the pixels themselves where there are fewer of them than terms a side. Gram
matrices would be cheaper and square the condition number: half of the digits.

Error. What a reduction costs is *measured*, not assumed, so that what was dropped and what LAPACK
rounded are both in it: on maps of up to `MEASURED` pixels as the largest pixel and the sum of the
difference D itself, on larger ones from the factors. With A = Q_a·R_a + E_a, B likewise, and K the
core, K′ what is kept of it,

    |D| ≤ |Q_a·(K − K′)·Q_bᵀ| + |E_a|·|w|·|B|ᵀ + |Q_a·R_a|·|w|·|E_b|ᵀ.

The largest pixel of the first is at most ρ_a·ρ_b·‖K − K′‖_F, ρ the longest row of a Q (Cauchy and
Schwarz, twice), the sum of its pixels at most √(n₀·n₁)·‖Q_a‖₂·‖Q_b‖₂·‖K − K′‖_F; of the others both
are added up over the terms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

WHOLE = 320
"""Up to so many pixels along the shorter axis an image of many terms is decomposed as it is."""

BATCH = 128
"""Terms that are reduced at a time on larger images."""

MEASURED = 1 << 20
"""Up to so many pixels the change of all of them is formed, at about a third of the cost of the
reduction (bench_recompressed, Sapphire Rapids Xeon, 2 cores). The bound from the factors is some
ten times as large."""

NOISE = 2.0**-53
"""Times √n and the largest singular value of a matrix of order n: singular values whose root sum
of squares is below that are what LAPACK rounded."""

_NORMS = 1.01
# Bound of the product of two Q's 2-norms: LAPACK's are orthonormal to some 1e-14.

_TRACE = 2.0**-54
# Terms that are together below this part of the largest one show in no pixel that matters.


class Loss(NamedTuple):
    """Bounds of what an image was changed by: its largest pixel, and the sum of all."""

    largest: float = 0.0
    total: float = 0.0

    def __add__(self, other: Loss) -> Loss:  # type: ignore[override]
        return Loss(self.largest + other.largest, self.total + other.total)


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """Σ_t weights[t] · Π_axis factors[axis][:, t].

    Attributes:
        factors: shape (pixels, terms), one an axis.
        weights: one a term.
    """

    factors: tuple[Floats, ...]
    weights: Floats

    @property
    def rank(self) -> int:
        """Number of terms."""
        return len(self.weights)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(f) for f in self.factors)

    def magnitudes(self) -> Floats:
        """Largest absolute pixel of each term."""
        found = np.abs(self.weights)
        for f in self.factors:
            found = found * np.abs(f).max(axis=0)
        return found

    def absolute_sums(self) -> Floats:
        """Sum of the absolute pixels of each term."""
        found = np.abs(self.weights)
        for f in self.factors:
            found = found * np.abs(f).sum(axis=0)
        return found

    def total(self) -> float:
        """Sum of all pixels."""
        found = self.weights
        for f in self.factors:
            found = found * f.sum(axis=0)
        return float(found.sum())

    def chosen(self, which: NDArray[np.intp] | slice) -> Terms:
        return Terms(tuple(f[:, which] for f in self.factors), self.weights[which])

    def form(self) -> Floats:
        """The pixels."""
        *lead, last = self.factors
        first = lead[0] * self.weights if lead else self.weights[None]
        out = np.empty(self.shape)
        if len(lead) < 2:
            np.matmul(first, last.T, out=out.reshape(len(first), len(last)))
            return out
        for line, plane in zip(first, out, strict=True):
            np.matmul(line * lead[1], last.T, out=plane)
        return out


def rounding(count: int) -> float:
    """Relative error of a sum of nonnegative numbers after so many roundings in sequence.

    λ·√N·u with λ = 9 (Higham and Mary 2019, theorem 2.4), missed with a probability of
    2·e^(−λ²/2) = 5e-18.
    """
    return 9 * math.sqrt(count) * 2.0**-53


def joined(parts: Sequence[Terms]) -> Terms:
    """The sum of images of one shape."""
    if len(parts) == 1:
        return parts[0]
    factors = zip(*(p.factors for p in parts), strict=True)
    weights = np.concatenate([p.weights for p in parts])
    return Terms(tuple(np.concatenate(f, axis=1) for f in factors), weights)


def without_traces(terms: Terms) -> tuple[Terms, Loss]:
    """Without the weakest terms, together below 2^−54 of the strongest one."""
    sizes = terms.magnitudes()
    order = np.argsort(sizes)
    behind = np.cumsum(sizes[order])
    count = int(np.searchsorted(behind, _TRACE * float(sizes.max(initial=0.0)), side="right"))
    if not count:
        return terms, Loss()
    dropped = terms.chosen(order[:count])
    kept = terms.chosen(np.sort(order[count:]))
    return kept, Loss(float(behind[count - 1]), float(dropped.absolute_sums().sum()))


def reduced(terms: Terms, budget: float, noise: float = NOISE) -> tuple[Terms, Loss]:
    """The image with as few terms as the budget allows, in two dimensions.

    Args:
        terms: a sum of at least one term.
        budget: root sum of squares of the singular values that each decomposition may drop,
        noise: or what part of √n times the largest one. Where both are 0, nothing is dropped but
            zeros.

    Returns:
        The terms, with orthonormal factors, and a bound of the change.
    """
    whole = min(terms.shape)
    if terms.rank >= whole and whole <= WHOLE:
        return _of_pixels(terms, budget, noise)
    kept, loss = _of_factors(terms.chosen(slice(0, BATCH)), budget, noise)
    for start in range(BATCH, terms.rank, BATCH):
        both = joined([kept, terms.chosen(slice(start, start + BATCH))])
        kept, more = _of_factors(both, budget, noise)
        loss = loss + more
    return kept, loss


def _of_pixels(terms: Terms, budget: float, noise: float) -> tuple[Terms, Loss]:
    pixels = terms.form()
    u, s, vt = np.linalg.svd(pixels, full_matrices=False)
    rank = _kept(s, budget, noise)
    kept = Terms((u[:, :rank], np.ascontiguousarray(vt[:rank].T)), s[:rank])
    return kept, _difference(pixels, kept)


def _of_factors(terms: Terms, budget: float, noise: float) -> tuple[Terms, Loss]:
    a, b = terms.factors
    (qa, ra), (qb, rb) = np.linalg.qr(a), np.linalg.qr(b)
    core = (ra * terms.weights) @ rb.T
    u, s, vt = np.linalg.svd(core, full_matrices=False)
    rank = _kept(s, budget, noise)
    u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    kept = Terms((qa @ u, qb @ vt.T), s)
    if math.prod(terms.shape) <= MEASURED:
        return kept, _difference(terms.form(), kept)
    difference = float(np.linalg.norm(core - (u * s) @ vt))
    row = math.sqrt(float((qa * qa).sum(axis=1).max()) * float((qb * qb).sum(axis=1).max()))
    area = math.sqrt(math.prod(terms.shape))
    loss = Loss(row * difference, _NORMS * area * difference)
    rounded_a, rounded_b = qa @ ra, qb @ rb
    for factors in ((a - rounded_a, b), (rounded_a, b - rounded_b)):
        off = Terms(factors, terms.weights)
        loss = loss + Loss(float(off.magnitudes().sum()), float(off.absolute_sums().sum()))
    return kept, loss


def _difference(pixels: Floats, kept: Terms) -> Loss:
    off = kept.form()
    np.subtract(pixels, off, out=off)
    np.abs(off, out=off)
    return Loss(float(off.max()), float(off.sum()))


def _kept(s: Floats, budget: float, noise: float) -> int:
    """How many of the singular values, in falling order, are left."""
    least = max(budget, noise * math.sqrt(len(s)) * float(s[0]))
    behind = np.sqrt(np.cumsum(s[::-1] ** 2))
    return max(1, len(s) - int(np.searchsorted(behind, least, side="right")))
