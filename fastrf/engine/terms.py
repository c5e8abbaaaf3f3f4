"""Images as sums of separable terms: Σ_t w_t · a_t(x) · b_t(y) …, with nonnegative weights.

An image of N^d pixels is held as d factors of N pixels a term. Profiles, moments and sums over
boxes come from the factors; the pixels are formed once, when they are asked for.

Everything is nonnegative and nothing is subtracted, so that the pixels formed have the relative
accuracy of the factors. Range: weights and factors are held 2^`shift` above their values, and cut
off below the smallest normal number. Every number cut off is at most 2^(−1022 − shift), and
multiplies others that are at most 1: nothing against a pixel of 2^−1022.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf import metrics
from fastrf.engine.threads import Threads

Floats = NDArray[np.float64]
Array = NDArray[Any]

BLOCK = 128
"""Greatest side of the blocks that a sum of terms is formed in. The block and the rows at work fit
the second-level cache, and the terms that matter differ little within one."""

FEW_TERMS = 96
"""Up to so many terms, choosing those that matter for a block costs more than adding all."""

_TINY = float(np.finfo(np.float64).smallest_normal)
# Terms that are together below 2^−58 of every pixel of a block, or below 2^−1090 of the image,
# are left out.
_RELATIVE, _ABSOLUTE = -58.0, -1090.0
# A factor below this is as good as zero where terms are compared: quotients then do not overflow.
_FLOOR = 2.0**-500


def shift_of(rank: int, ndim: int) -> int:
    """log2 of the scale at which weights and factors are held: their product must not overflow.

    A single term needs none: its pixels are at most as large as each of its factors.
    """
    return 0 if rank == 1 else 960 // (ndim + 1)


@dataclass(frozen=True, slots=True)
class Factor:
    """The profiles of all terms along one axis, each of sum 2^shift.

    Attributes:
        rows: shape (terms, pixels), or, where `mirrored`, the first half of the pixels up to the
            middle one: all terms are symmetric about the middle of the axis.
        length: number of pixels.
        mirrored: whether rows end in the middle.
    """

    rows: Floats
    length: int
    mirrored: bool

    def whole(self) -> Floats:
        """Rows of all pixels."""
        return _unfolded(self.rows, self.length) if self.mirrored else self.rows

    def combined(self, values: Floats, kernels: Any) -> Floats:
        """Σ_t values[t]·row_t, for nonnegative values."""
        out = np.empty((1, self.rows.shape[1]))
        kernels.sum_of_terms(values, np.ones((len(values), 1)), self.rows, 0, out)
        line: Floats = _unfolded(out, self.length)[0] if self.mirrored else out[0]
        return line

    def dot(self, vector: Array) -> Floats:
        """Σ over the pixels of each row times `vector`."""
        if self.mirrored:
            half = self.length // 2
            folded = np.array(vector[: self.rows.shape[1]], np.float64)
            folded[:half] += vector[::-1][:half]
            vector = folded
        product: Floats = np.einsum("tx,x->t", self.rows, vector)
        return product

    def cut(self, start: int, stop: int) -> Factor:
        """The pixels start … stop−1."""
        if self.mirrored and start == self.length - stop:
            return Factor(self.rows[:, start:], stop - start, True)
        return Factor(self.whole()[:, start:stop], stop - start, False)


def _unfolded(rows: Floats, length: int) -> Floats:
    """Rows that end in the middle of `length` pixels, with their mirror images."""
    return np.concatenate([rows, rows[:, : length // 2][:, ::-1]], axis=1)


@dataclass(frozen=True, eq=False)
class FactoredImage:
    """A normalised image as a sum of separable terms.

    Attributes:
        weights: one a term, nonnegative, of sum 2^shift.
        factors: one `Factor` an axis; axes that are alike share one object.
        origin: input index of the first pixel, per axis.
        dtype: of the image formed.
        kernels: namespace of the kernels of `fastrf.kernels.spec`.
    """

    weights: Floats
    factors: tuple[Factor, ...]
    origin: tuple[int, ...]
    dtype: np.dtype[Any]
    kernels: Any

    @property
    def rank(self) -> int:
        """Number of terms."""
        return len(self.weights)

    @property
    def ndim(self) -> int:
        return len(self.factors)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(f.length for f in self.factors)

    @property
    def size(self) -> int:
        """Number of pixels."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the factors hold, each shared one counted once."""
        own = {id(f): f.rows.nbytes for f in self.factors}
        return sum(own.values()) + self.weights.nbytes

    @property
    def shift(self) -> int:
        return shift_of(self.rank, self.ndim)

    # --- the pixels -------------------------------------------------------------------------

    def form(self, out: NDArray[Any] | None = None, workers: int = 1) -> NDArray[Any]:
        """The pixels, as an array of `shape` and `dtype`; those below the smallest normal are 0.

        Args:
            out: C-contiguous array to fill; a fresh one by default.
            workers: threads that share the work.
        """
        if out is None:
            out = np.empty(self.shape, self.dtype)
        with Threads(workers) as threads:
            if self.rank == 1:
                self._form_product(out, threads)
            elif self.ndim == 1:
                _settle(self.line(0, []), 0, out)
            else:
                own = {id(f): f for f in self.factors[-2:]}
                tables = {key: _Blocks(f, threads) for key, f in own.items()}
                _form(self.weights, self.factors, tables, self.kernels, out, threads)
        return out

    def _form_product(self, out: NDArray[Any], threads: Threads) -> None:
        lines = [line.astype(self.dtype) for line in self.lines]
        if len(lines) == 1:
            _settle(lines[0], 0, out)
            return
        *rest, last = lines
        lead = rest[0]
        for line in rest[1:]:
            grown = np.empty((len(lead), len(line)), self.dtype)
            self.kernels.outer_product(lead, line, grown)
            lead = grown.ravel()
        flat = out.reshape(len(lead), len(last))
        threads.cut(
            len(lead), out.size, lambda a, b: self.kernels.outer_product(lead[a:b], last, flat[a:b])
        )

    @cached_property
    def lines(self) -> tuple[Floats, ...]:
        """The vectors, one an axis, whose outer product the image of a single term is."""
        if self.rank > 1:
            raise ValueError(f"an image of {self.rank} terms is no outer product of lines")
        first, *rest = (f.whole()[0] for f in self.factors)
        return (first * self.weights[0], *rest)

    def bounds(self, axis: int) -> Floats:
        """Along `axis`, an upper bound of the largest pixel beside each index."""
        scale = 2.0**-self.shift
        values = self.weights
        for a, f in enumerate(self.factors):
            if a != axis:
                values = values * (f.rows.max(axis=1) * scale)
        return _scaled(self.factors[axis].combined(values, self.kernels), -2 * self.shift)

    def cropped(self, box: Sequence[tuple[int, int]]) -> FactoredImage:
        """The part from start to stop−1 along each axis; no longer of sum 1 (see `normalised`)."""
        cut: dict[tuple[int, int, int], Factor] = {}
        factors = tuple(
            cut.setdefault((id(f), *ends), f.cut(*ends))
            for f, ends in zip(self.factors, box, strict=True)
        )
        origin = tuple(o + start for o, (start, _) in zip(self.origin, box, strict=True))
        return replace(self, factors=factors, origin=origin)

    def normalised(self) -> FactoredImage:
        """The image divided by its total."""
        return replace(self, weights=self.weights / self.total)

    # --- sums -------------------------------------------------------------------------------

    def summed(self, vectors: Sequence[Array]) -> float:
        """Σ over the pixels of image·Π vectors, one vector an axis."""
        scale, values = 2.0**-self.shift, self.weights
        for f, vector in zip(self.factors, vectors, strict=True):
            values = values * (f.dot(vector) * scale)
        return float(values.sum()) * scale

    def line(self, axis: int, vectors: Sequence[Array]) -> Floats:
        """As `summed`, along `axis`: the nonnegative vectors belong to the other axes in turn."""
        scale, values = 2.0**-self.shift, self.weights
        others = [f for a, f in enumerate(self.factors) if a != axis]
        for f, vector in zip(others, vectors, strict=True):
            values = values * (f.dot(vector) * scale)
        return _scaled(self.factors[axis].combined(values, self.kernels), -2 * self.shift)

    @cached_property
    def total(self) -> float:
        """Sum of all pixels: 1 up to rounding, unless the image is cropped."""
        return self.summed([np.ones(n) for n in self.shape])

    @cached_property
    def _profiles(self) -> tuple[Floats, ...]:
        found: list[Floats] = []
        for axis in range(self.ndim):
            if self.ndim == 2 and axis == 1 and self.factors[0] is self.factors[1]:
                found.append(found[0])
                continue
            marginal = self.line(axis, [np.ones(n) for a, n in enumerate(self.shape) if a != axis])
            found.append(marginal / marginal.sum())
        return tuple(found)

    def profile(self, axis: int = 0) -> Floats:
        """The mass along one axis, summed over the others; as `metrics.profile`."""
        return self._profiles[axis]

    @cached_property
    def mean(self) -> tuple[float, ...]:
        """Mean position per axis, in input pixel indices."""
        ends = zip(self._profiles, self.origin, strict=True)
        return tuple(metrics.mean(p, (o,))[0] for p, o in ends)

    @cached_property
    def std(self) -> tuple[float, ...]:
        """Standard deviation per axis, in pixels."""
        return tuple(metrics.std(p)[0] for p in self._profiles)

    @cached_property
    def kurtosis(self) -> tuple[float, ...]:
        """Excess kurtosis per axis."""
        return tuple(metrics.kurtosis(p)[0] for p in self._profiles)

    @cached_property
    def covariance(self) -> Floats:
        """Covariance matrix of the position, in pixels²."""
        result = np.diag([float(metrics.covariance(p)[0, 0]) for p in self._profiles])
        offsets = [np.arange(n) + o for n, o in zip(self.shape, self.origin, strict=True)]
        centred = [x - m for x, m in zip(offsets, self.mean, strict=True)]
        for a in range(self.ndim):
            for b in range(a + 1, self.ndim):
                vectors: list[Array] = [
                    centred[c] if c in (a, b) else np.ones(n) for c, n in enumerate(self.shape)
                ]
                joint = 0.0 if self.rank == 1 else self.summed(vectors) / self.total
                result[a, b] = result[b, a] = joint
        return result

    # --- sizes ------------------------------------------------------------------------------

    def cut(self, axis: int, center: Sequence[float]) -> Floats:
        """Values on the line along `axis` through `center`; as `metrics.cut`."""
        ends = enumerate(zip(self.shape, center, strict=True))
        return self.line(axis, [metrics._interpolation(n, c) for a, (n, c) in ends if a != axis])

    def fwhm(self, center: Sequence[float]) -> tuple[float, ...]:
        """Full width at half maximum per axis, in pixels; as `metrics.fwhm`."""
        return tuple(metrics._width(self.cut(axis, center), 0.5, axis) for axis in range(self.ndim))

    def luo_size(
        self,
        kind: str = "amplitude",
        threshold: float = metrics.LUO_THRESHOLD,
        *,
        center: Sequence[float],
    ) -> float:
        """Luo's size of a single term in O(n log n); as `metrics.luo_size`."""
        lines = [np.sqrt(line) for line in self.lines] if kind == "amplitude" else self.lines
        middle = math.prod(
            float(metrics._interpolation(len(v), c) @ v) for v, c in zip(lines, center, strict=True)
        )
        limit = (threshold * middle) ** 2 if kind == "amplitude" else threshold * middle
        return metrics._root(count_above(self.lines, limit), self.ndim)

    def area_square(self, share: float, center: Sequence[float]) -> tuple[int, ...]:
        """Sides of the smallest centred square that holds `share`; as `metrics.area_square`."""
        goal = share * (1 - metrics._ROUNDING) * self.total

        def mass(side: int) -> float:
            ends = zip(self.shape, center, strict=True)
            return self.summed([metrics._inside(n, c, side / 2) for n, c in ends])

        reach = max(max(c + 1, n - c) for n, c in zip(self.shape, center, strict=True))
        side = bisect_left(range(2 * math.ceil(reach) + 1), goal, key=mass)
        return tuple(
            math.floor(c + (side - 1) / 2) - math.ceil(c - (side - 1) / 2) + 1 for c in center
        )


def count_above(lines: Sequence[Floats], limit: float) -> int:
    """How many elements of the outer product of `lines` are greater than `limit`."""
    lead = reduce(lambda a, b: np.multiply.outer(a, b).ravel(), lines[:-1], np.ones(1))
    last = np.sort(lines[-1])
    lead = lead[lead > 0]
    with np.errstate(over="ignore"):
        first = np.searchsorted(last, limit / lead, side="right")
    # The quotient is rounded: the products themselves decide about the element on either side.
    below = np.maximum(first - 1, 0)
    first = np.where((first > 0) & (lead * last[below] > limit), below, first)
    at = np.minimum(first, len(last) - 1)
    first = np.where((first < len(last)) & (lead * last[at] <= limit), first + 1, first)
    return int((len(last) - first).sum())


# --- forming sums of terms ------------------------------------------------------------------


class _Blocks:
    """A factor's pixels in blocks, and how its terms compare with each other within each.

    Attributes:
        spans: first and last + 1 pixel of each block, of the half where mirrored.
        top: log2 of each term's largest value, per block.
        middle: log2 of each term's value at the middle of the block.
        usable: whether a term is above the floor all over the block.
        rise, fall: sums over the terms before each one of log2 of the largest and the smallest
            quotient, within the block, of each term and the one before.
    """

    def __init__(self, factor: Factor, threads: Threads) -> None:
        rows = factor.rows
        count = rows.shape[1]
        self.factor = factor
        parts = -(-count // BLOCK)
        self.spans = [(count * i // parts, count * (i + 1) // parts) for i in range(parts)]
        self.compared = len(rows) > FEW_TERMS
        if not self.compared:
            return
        shape = (len(self.spans), len(rows))
        self.top, self.middle = np.empty(shape), np.empty(shape)
        self.rise, self.fall = np.zeros(shape), np.zeros(shape)
        self.usable = np.empty(shape, bool)
        threads.cut(len(self.spans), rows.size, self._compare)

    def _compare(self, first: int, last: int) -> None:
        for i in range(first, last):
            a, b = self.spans[i]
            values = np.maximum(self.factor.rows[:, a:b], _FLOOR)
            quotients = values[1:] / values[:-1]
            np.cumsum(np.log2(quotients.max(axis=1)), out=self.rise[i, 1:])
            np.cumsum(np.log2(quotients.min(axis=1)), out=self.fall[i, 1:])
            self.top[i] = np.log2(values.max(axis=1))
            self.middle[i] = np.log2(values[:, (b - a) // 2])
            self.usable[i] = values.min(axis=1) > _FLOOR

    def span_of_terms(
        self, log_weights: Floats, i: int, other: _Blocks, j: int, exponent: int
    ) -> tuple[int, int]:
        """First and last + 1 of the terms that matter in block (i, j).

        With t_m(x, y) the terms and p a term that is positive all over the block, every pixel is
        at least t_p, and t_m/t_p is at most the product of the largest quotients of neighbouring
        terms between p and m. What that bounds by 2^`_RELATIVE` for all of them is left out.
        """
        if not self.compared:
            return 0, len(log_weights)
        keep = log_weights + self.top[i] + other.top[j] >= exponent + _ABSOLUTE
        at = log_weights + self.middle[i] + other.middle[j]
        at[~(self.usable[i] & other.usable[j])] = -np.inf
        pivot = int(at.argmax())
        if at[pivot] > -np.inf:
            rise, fall = self.rise[i] + other.rise[j], self.fall[i] + other.fall[j]
            bound = np.concatenate([fall[:pivot] - fall[pivot], rise[pivot:] - rise[pivot]]) + (
                log_weights - log_weights[pivot]
            )
            keep &= bound >= _RELATIVE - math.log2(len(keep))
        used = np.flatnonzero(keep)
        return (int(used[0]), int(used[-1]) + 1) if used.size else (0, 0)


def _form(
    weights: Floats,
    factors: Sequence[Factor],
    tables: dict[int, _Blocks],
    kernels: Any,
    out: NDArray[Any],
    threads: Threads,
) -> None:
    """Forms Σ weights · Π factors, which is 2^960 or less above its value, in 2-D and more."""
    if len(factors) == 2:
        rows, columns = (tables[id(f)] for f in factors)
        _form_plane(weights, rows, columns, kernels, out, threads)
        return
    first, *rest = factors
    for i, column in enumerate(first.rows.T):
        values = weights * column
        values[values < _TINY] = 0
        _form(values, rest, tables, kernels, out[i], threads)
        if first.mirrored:
            out[first.length - 1 - i] = out[i]


def _form_plane(
    weights: Floats,
    rows: _Blocks,
    columns: _Blocks,
    kernels: Any,
    out: NDArray[Any],
    threads: Threads,
) -> None:
    alike = rows is columns
    y, x = rows.factor, columns.factor
    exponent = 960
    with np.errstate(divide="ignore"):
        log_weights = np.log2(weights)
    pieces = [
        (i, j) for i in range(len(rows.spans)) for j in range(i if alike else 0, len(columns.spans))
    ]
    # Like costs lie together: dealt out in turn, every thread gets some of each.
    parts = threads.workers
    pieces = [piece for part in range(parts) for piece in pieces[part::parts]]
    halves = [out, out[::-1]] if y.mirrored else [out]

    def put(block: NDArray[Any], rows: tuple[int, int], columns: tuple[int, int]) -> None:
        (a, b), (c, d) = rows, columns
        for half in halves:
            half[a:b, c:d] = block
        if x.mirrored:
            # Turned once in the cache, and then copied row by row.
            turned = np.ascontiguousarray(block[:, ::-1])
            for half in halves:
                half[a:b, x.length - d : x.length - c] = turned

    def run(first: int, last: int) -> None:
        for i, j in pieces[first:last]:
            (a, b), (c, d) = rows.spans[i], columns.spans[j]
            start, stop = rows.span_of_terms(log_weights, i, columns, j, exponent)
            chosen = slice(start, stop)
            sums = np.empty((b - a, d - c))
            kernels.sum_of_terms(
                weights[chosen], y.rows[chosen, a:b], x.rows[chosen, c:d], -exponent, sums
            )
            block = sums if out.dtype == sums.dtype else _settled(sums, out.dtype)
            put(block, (a, b), (c, d))
            if alike and i < j:
                put(np.ascontiguousarray(block.T), (c, d), (a, b))

    threads.cut(len(pieces), out.size, run)


# --- numbers --------------------------------------------------------------------------------


def _settle(values: Floats, exponent: int, out: NDArray[Any]) -> None:
    """``out = values·2^exponent``, 0 where that is below the smallest normal number of `out`."""
    tiny = math.ldexp(float(np.finfo(out.dtype).smallest_normal), -exponent)
    scaled = values * 2.0**exponent
    scaled[values < tiny] = 0
    out[...] = scaled


def _settled(values: Floats, dtype: np.dtype[Any]) -> NDArray[Any]:
    out = np.empty(values.shape, dtype)
    _settle(values, 0, out)
    return out


def _scaled(values: Floats, exponent: int) -> Floats:
    out = np.empty_like(values)
    _settle(values, exponent, out)
    return out
