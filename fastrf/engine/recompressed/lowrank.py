"""Sums of separable terms with factors of either sign, and fewer terms for the same image.

An image of n₀ × n₁ pixels is A·diag(w)·Bᵀ. `reduced` finds the same image with fewer terms: QR of
both factors and a singular value decomposition of the small core (Golub and Van Loan 2013, §5.2
and §8.6), or of the pixels themselves where there are fewer of them than terms a side. Gram
matrices would be cheaper and square the condition number: half of the digits. Volumes are reduced
likewise (`volumes`), to a core of products of every column of every axis.

Error. What a reduction costs is *measured*, not assumed, so that what was dropped and what LAPACK
rounded are both in it: on maps of up to `MEASURED` pixels as the largest pixel and the sum of the
difference D itself, on larger ones from the factors. With A = Q_a·R_a + E_a, B likewise, and K the
core, K′ what is kept of it,

    |D| ≤ |Q_a·(K − K′)·Q_bᵀ| + |E_a|·|w|·|B|ᵀ + |Q_a·R_a|·|w|·|E_b|ᵀ.

The largest pixel of the first is at most ρ_a·ρ_b·‖K − K′‖_F, ρ the longest row of a Q (Cauchy and
Schwarz, twice), the sum of its pixels at most √(n₀·n₁)·‖Q_a‖₂·‖Q_b‖₂·‖K − K′‖_F; of the others both
are added up over the terms.

Measuring rounds too. A product of matrices of inner length r, summed up in whatever order, is wrong
by at most γ_r = r·u/(1 − r·u) times the product of their absolute values (Higham 2002, §3.5), which
is formed or bounded from the factors and added. What bounds errors is itself computed in floating
point, to some 1e-12 of itself: `Loss` is raised by `SLACK` where it is used.

Devices. Factors are arrays of NumPy or of CuPy, and all of this is computed where they are, in
float64: products by BLAS or cuBLAS, decompositions by LAPACK or cuSOLVER. Either's are products of
reflections, so that what is said of a Q holds for both, and what is measured is measured of the
result. cuBLAS sums in an order of its own, which γ_r does not ask for; it must not emulate double
precision, though (`device`). Of a GPU two vectors a batch cross to the host, each waited for: sizes
of terms, which decide about traces, and singular values, which decide about ranks (of a volume
those of each axis, since an axis is decomposed of what the ones before it have left). A `Loss`
stays there, and is read with all others at the end (`carrier.Tally`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf.arrays import namespace
from fastrf.engine.sight import sight_of

Floats = NDArray[np.float64]  # or an array of CuPy
Number = Any  # a float, or an array without axes of a device, which nobody waits for

WHOLE = 320
"""Up to so many pixels along the shorter axis an image of many terms is decomposed as it is."""

BATCH = 128
"""Terms that are reduced at a time on larger images."""

MEASURED = 1 << 20
"""Up to so many pixels the change of all of them is formed, at about a third of the cost of the
reduction (bench_recompressed, Sapphire Rapids Xeon, 2 cores). The bound from the factors is some
ten times as large."""

DEVICE_PLANES = 1 << 22
"""Numbers between factors, of planes of a volume that a GPU forms at once: many at a time, or the
calls take longer than the products. By count, not by measurement. A CPU takes one at a time, which
stays in its cache."""

NOISE = 2.0**-53
"""Times √n and the largest singular value of a matrix of order n: singular values whose root sum
of squares is below that are what LAPACK rounded."""

LAST_ROUNDINGS = 64
"""Those of the last steps: sums of up to 2^60 numbers in pairs, 128 at a time, and quotients."""

SLACK = 1 + 1e-9
"""What bounds of errors are raised by for their own roundings."""

NORMS = 1.01
"""Bound of the product of the 2-norms of an image's Q's: products of reflections are orthonormal to
some 1e-14."""

_TRACE = 2.0**-54
# Terms that are together below this part of the largest one show in no pixel that matters.


@dataclass(frozen=True, slots=True)
class Loss:
    """Bounds of what an image was changed by: its largest pixel, and the sum of all."""

    largest: Number = 0.0
    total: Number = 0.0

    def __add__(self, other: Loss) -> Loss:
        return Loss(self.largest + other.largest, self.total + other.total)

    def times(self, factor: float) -> Loss:
        return Loss(self.largest * factor, self.total * factor)


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """Σ_t weights[t] · Π_axis factors[axis][:, t], or, with a core, the sum over all choices of a
    column of every axis, Σ_tu… weights[t, u, …] · factors[0][:, t] ⊗ factors[1][:, u] ⊗ …

    Attributes:
        factors: shape (pixels, columns), one an axis.
        weights: one a term; or a core, of shape (columns of each axis).
    """

    factors: tuple[Floats, ...]
    weights: Floats

    @property
    def xp(self) -> Any:
        """The namespace of the arrays."""
        return namespace(self.weights)

    @property
    def diagonal(self) -> bool:
        """Whether each column belongs to one term."""
        return self.weights.ndim == 1

    @property
    def rank(self) -> int:
        """Number of terms; with a core, most columns of an axis."""
        return int(max(self.weights.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(len(f) for f in self.factors)

    @property
    def roundings(self) -> int:
        """How many befall a pixel when it is formed, one after the other."""
        own = self.weights.shape
        return own[0] + len(self.factors) if self.diagonal else sum(own)

    @property
    def core(self) -> Floats:
        """The weights of all products of columns."""
        if not self.diagonal:
            return self.weights
        core: Floats = self.xp.zeros((self.rank,) * len(self.factors))
        core[(self.xp.arange(self.rank),) * core.ndim] = self.weights
        return core

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

    def absolute(self) -> Terms:
        """The same with all signs dropped: no pixel of it is below those of the image."""
        return Terms(tuple(np.abs(f) for f in self.factors), np.abs(self.weights))

    def bound(self) -> Loss:
        """Bounds of the largest pixel, and of the sum of all, without forming one."""
        tops, sums = [], []
        for f in self.factors:
            size = np.abs(f)
            tops.append(size.max(axis=0))
            sums.append(size.sum(axis=0))
            del size  # before the next one
        weights = Terms(self.factors, np.abs(self.weights))
        return Loss(single(weights.contracted(tops)), single(weights.contracted(sums)))

    def contracted(self, values: Sequence[Floats]) -> Floats:
        """The sum over the weights, each times a value for its column of every axis.

        Args:
            values: per axis, shape (columns,), or (sets, columns) for several sums at once.

        Returns:
            The sums, shape (sets,).
        """
        xp, values = self.xp, [own if own.ndim > 1 else own[None] for own in values]
        found: Floats
        if self.diagonal:
            found = self.weights
            for own in values:
                found = found * own
            sums: Floats = found.sum(axis=-1)
            return sums
        found = xp.tensordot(values[-1], self.weights, (1, -1))
        for own in reversed(values[:-1]):
            found = xp.einsum("s...c,sc->s...", found, own)
        return found

    def total(self) -> Number:
        """Sum of all pixels."""
        return single(self.contracted([f.sum(axis=0) for f in self.factors]))

    def chosen(self, which: NDArray[np.intp] | slice) -> Terms:
        """Some of the terms, where there is no core."""
        return Terms(tuple(f[:, which] for f in self.factors), self.weights[which])

    def form(self) -> Floats:
        """The pixels."""
        xp, (*lead, last) = self.xp, self.factors
        found: Floats
        if not self.diagonal:
            # The last axis first: the largest product of matrices comes last. None of them reads
            # an array in another order than it is in, which would be a copy.
            *columns, most = self.weights.shape
            found = (self.weights.reshape(-1, most) @ last.T).reshape(*columns, len(last))
            for axis in reversed(range(len(lead))):
                shape = (*found.shape[:axis], len(lead[axis]), *found.shape[axis + 1 :])
                lines = found.reshape(math.prod(shape[:axis]), found.shape[axis], -1)
                found = xp.matmul(lead[axis], lines).reshape(shape)
            return found
        first = lead[0] * self.weights if lead else self.weights[None]
        found = xp.empty(self.shape)
        if len(lead) < 2:
            xp.matmul(first, last.T, out=found.reshape(len(first), len(last)))
            return found
        planes = 1 if xp is np else max(1, DEVICE_PLANES // lead[1].size)
        for start in range(0, len(first), planes):
            some = slice(start, start + planes)
            rows = (first[some, None] * lead[1]).reshape(-1, first.shape[1])
            xp.matmul(rows, last.T, out=found[some].reshape(len(rows), len(last)))
            del rows  # not beside the next ones
        return found


def single(value: Any) -> Number:
    """A single number, of any shape, as one without axes, which is not waited for on a device."""
    return value.item() if isinstance(value, np.ndarray | np.generic) else value.reshape(())


def fetched(*values: Any) -> list[Floats]:
    """Arrays of one namespace in the host's memory, in one transfer: waits for a device."""
    return sight_of(namespace(values[0])).read(*values)


def rounding(count: int) -> float:
    """γ_n = n·u/(1 − n·u): greatest relative error of a sum of products of nonnegative numbers
    after so many roundings in sequence (Higham 2002, lemma 3.1)."""
    return count * 2.0**-53 / (1 - count * 2.0**-53)


def joined(parts: Sequence[Terms]) -> Terms:
    """The sum of images of one shape."""
    if len(parts) == 1:
        return parts[0]
    xp = parts[0].xp
    factors = tuple(
        xp.concatenate(f, axis=1) for f in zip(*(p.factors for p in parts), strict=True)
    )
    if all(p.diagonal for p in parts):
        return Terms(factors, xp.concatenate([p.weights for p in parts]))
    core = xp.zeros(tuple(f.shape[1] for f in factors))
    corner = np.zeros(core.ndim, int)
    for p in parts:
        own = p.core
        core[tuple(slice(c, c + n) for c, n in zip(corner.tolist(), own.shape, strict=True))] = own
        corner += own.shape
    return Terms(factors, core)


def without_traces(terms: Terms) -> tuple[Terms, Loss]:
    """Without the weakest terms, together below 2^−54 of the strongest one."""
    (sizes,) = fetched(terms.magnitudes())
    order = np.argsort(sizes)
    behind = np.cumsum(sizes[order])
    count = int(np.searchsorted(behind, _TRACE * float(sizes.max(initial=0.0)), side="right"))
    if not count:
        return terms, Loss()
    xp = terms.xp
    dropped = single(terms.absolute_sums()[xp.asarray(order[:count])].sum())
    left = xp.asarray(np.sort(order[count:]))
    return terms.chosen(left), Loss(float(behind[count - 1]), dropped)


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
    u, s, vt = terms.xp.linalg.svd(pixels, full_matrices=False)
    (values,) = fetched(s)
    rank = kept_of(values, budget, noise)
    kept = Terms((u[:, :rank].copy(), vt[:rank].T.copy()), s[:rank])
    del u, vt  # all singular vectors, as large as the pixels
    loss = _changed(pixels, kept)
    del pixels
    return kept, loss + _rounded([terms], kept)


def _of_factors(terms: Terms, budget: float, noise: float) -> tuple[Terms, Loss]:
    xp, (a, b) = terms.xp, terms.factors
    (qa, ra), (qb, rb) = xp.linalg.qr(a), xp.linalg.qr(b)
    core = (ra * terms.weights) @ rb.T
    u, s, vt = xp.linalg.svd(core, full_matrices=False)
    (values,) = fetched(s)
    rank = kept_of(values, budget, noise)
    u, s, vt = u[:, :rank], s[:rank], vt[:rank]
    kept = Terms((qa @ u, qb @ vt.T), s)
    if math.prod(terms.shape) <= MEASURED:
        return kept, difference([terms], kept)
    inner = [Terms((ra, rb), terms.weights), Terms((u, vt.T), s)]
    # The core was rounded, and so was the change of it.
    rounded = rounding(terms.rank + len(inner)) * sum_of([t.absolute() for t in inner])
    change = single(xp.linalg.norm(core - inner[1].form()))
    rows = math.prod(longest_row(q) for q in (qa, qb))
    loss = Loss(rows * change, NORMS * math.sqrt(math.prod(terms.shape)) * change)
    loss = loss + Terms((qa, qb), rounded).bound()
    return kept, loss + replaced([terms], [(qa, ra), (qb, rb)]) + turned(kept, [qa, qb], [u, vt.T])


def kept_of(s: Floats, budget: float, noise: float) -> int:
    """How many of the singular values, in falling order and the host's memory, are left."""
    least = max(budget, noise * math.sqrt(len(s)) * float(s[0]))
    behind = np.sqrt(np.cumsum(s[::-1] ** 2))
    return max(1, len(s) - int(np.searchsorted(behind, least, side="right")))


def longest_row(q: Floats) -> Number:
    """The length of the longest row of a matrix."""
    return single(namespace(q).linalg.norm(q, axis=1).max())


# --- what was changed -----------------------------------------------------------------------


def difference(parts: Sequence[Terms], kept: Terms) -> Loss:
    """Bound of the difference of an image, given as a sum, and another one, by forming it.

    Args:
        parts: the image is their sum.
        kept: the other one.
    """
    return _changed(sum_of(parts), kept) + _rounded(parts, kept)


def _changed(pixels: Floats, kept: Terms) -> Loss:
    """The difference of pixels, which are overwritten, and an image."""
    pixels -= kept.form()
    np.abs(pixels, out=pixels)
    return Loss(single(pixels.max()), single(pixels.sum()))


def _rounded(parts: Sequence[Terms], kept: Terms) -> Loss:
    """What forming images rounds: the parts that are added up, and another one."""
    loss = Loss()
    for terms in (*parts, kept):
        sizes = terms.absolute().form()
        rounded = rounding(terms.roundings + len(parts))
        loss = loss + Loss(single(sizes.max()), single(sizes.sum())).times(rounded)
        del sizes  # before the next ones
    return loss


def sum_of(parts: Sequence[Terms]) -> Floats:
    """The pixels of a sum."""
    first, *others = parts
    found = first.form()
    for terms in others:
        found += terms.form()
    return found


def replaced(parts: Sequence[Terms], qrs: Sequence[tuple[Floats, Floats]]) -> Loss:
    """Bound of the change of an image by replacing its factors with their Q·R, one axis at a time.

    Args:
        parts: the image is their sum.
        qrs: Q and R of the columns of all parts side by side, per axis.
    """
    loss = Loss()
    at = [0] * len(qrs)
    for terms in parts:
        factors = [np.abs(f) for f in terms.factors]
        for axis, (q, r) in enumerate(qrs):
            own = r[:, at[axis] : at[axis] + factors[axis].shape[1]]
            at[axis] += own.shape[1]
            again = q @ own
            off = np.abs(terms.factors[axis] - again)
            off += rounding(len(r) + 1) * (np.abs(q) @ np.abs(own))
            loss = loss + Terms((*factors[:axis], off, *factors[axis + 1 :]), terms.weights).bound()
            factors[axis] = np.abs(again) + off
    return loss


def turned(kept: Terms, qs: Sequence[Floats], turns: Sequence[Floats]) -> Loss:
    """Bound of what rounding the products of Q and orthonormal columns, the factors of `kept`,
    changes of it."""
    loss = Loss()
    factors = [np.abs(f) for f in kept.factors]
    for axis, (q, u) in enumerate(zip(qs, turns, strict=True)):
        off = rounding(len(u)) * (np.abs(q) @ np.abs(u))
        loss = loss + Terms((*factors[:axis], off, *factors[axis + 1 :]), kept.weights).bound()
        factors[axis] = factors[axis] + off
    return loss
