"""Volumes in the Tucker form as the measures see them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf.arrays import Array
from fastrf.engine.recompressed.lowrank import Floats, Terms, fetched
from fastrf.engine.terms import CORE, held
from fastrf.images import Box, Image, Pixels, Stretch

BLOCK = 1 << 20
"""Pixels, or numbers between columns, that are formed at once."""

_DIGIT = 16
"""Bits of a number that a search for pixels looks at in one pass over them."""


@dataclass(frozen=True, eq=False)
class TuckerImage(Image):
    """A normalised volume as a core times one factor an axis.

    It is right to a part of its peak: pixels that are 0 or nearly so may come out negative. What
    is formed has them put to 0, and sums to 1 again; profiles have no negative value either.
    Factors and core are the host's, as those of `terms.FactoredImage` are; pixels are formed, and
    looked at, on the image's device.

    Attributes:
        terms: factors and core, of sum 1 (but for a cropped part).
        origin: input index of the first pixel, per axis.
        dtype: of the image formed.
        xp: array namespace of the pixels.
    """

    terms: Terms
    origin: tuple[int, ...]
    dtype: np.dtype[Any]
    xp: Any = np

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles name the module, which cannot be pickled.
        return self.__dict__ | {"xp": self.xp.__name__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"xp": import_module(state["xp"])})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.terms.shape

    @property
    def nbytes(self) -> int:
        """Bytes that factors and core hold."""
        return sum(f.nbytes for f in self.terms.factors) + self.terms.weights.nbytes

    # --- the pixels -------------------------------------------------------------------------

    def form(self, out: NDArray[Any] | None = None, workers: int = 1) -> NDArray[Any]:
        """The pixels, as an array of `shape` and `dtype`.

        Args:
            out: array of `xp` to fill; a fresh one by default.
            workers: of no use here: the sums are BLAS'.
        """
        pixels = self._formed()
        pixels /= pixels.sum()
        found = self._settled(pixels)
        if out is None:
            return found
        out[...] = found
        return out

    def _settled(self, pixels: Floats) -> NDArray[Any]:
        pixels[pixels < np.finfo(self.dtype).tiny] = 0
        found: NDArray[Any] = pixels.astype(self.dtype, copy=False)
        return found

    def pixels(self, workers: int = 1) -> NDArray[Any]:
        return self.form(workers=workers)

    @property
    def forming(self) -> int:
        # What the last product of matrices reads, and later what is below the smallest number and
        # the pixels in another precision.
        read = 2 * len(self.terms.weights) * math.prod(self.shape[1:])
        narrow = 4 if self.dtype == np.float32 else 0
        return 8 * self.size + max(8 * read, (1 + narrow) * self.size)

    def window(self, box: Box, workers: int = 1) -> NDArray[Any]:
        part = self.cropped(box)
        return part._settled(part._formed())

    def _formed(self) -> Floats:
        """The pixels in double precision, none of them negative."""
        *factors, core = map(self.xp.asarray, (*self.terms.factors, self.terms.weights))
        pixels = Terms(tuple(factors), core).form()
        return np.maximum(pixels, 0, out=pixels)

    @cached_property
    def _seen(self) -> Pixels:
        """The pixels, for what has to look at each."""
        return Pixels(self._formed())

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        height = self.shape[0]
        step = max(1, BLOCK * height // self.size)
        for first in range(0, height, step):
            rows = (first, min(first + step, height))
            yield first, self.cropped([rows, *((0, n) for n in self.shape[1:])])._formed()

    def at(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Floats:
        places = (*np.unravel_index(rows, self.shape[:-1]), columns)
        found = np.empty(len(columns))
        step = max(1, BLOCK // self.terms.weights[0].size)
        for first in range(0, len(found), step):
            part = slice(first, first + step)
            chosen = zip(self.terms.factors, places, strict=True)
            found[part] = self.terms.contracted([f[p[part]] for f, p in chosen])
        return np.maximum(found, 0, out=found)

    # --- parts ------------------------------------------------------------------------------

    def cropped(self, box: Box) -> TuckerImage:
        """The part from start to stop−1 along each axis; no longer of sum 1 (see `normalised`)."""
        factors = tuple(f[slice(*ends)] for f, ends in zip(self.terms.factors, box, strict=True))
        origin = tuple(o + start for o, (start, _) in zip(self.origin, box, strict=True))
        return replace(self, terms=Terms(factors, self.terms.weights), origin=origin)

    def normalised(self) -> TuckerImage:
        """The image divided by its total."""
        weights = self.terms.weights / self.total
        return replace(self, terms=Terms(self.terms.factors, weights))

    @cached_property
    def core(self) -> tuple[TuckerImage, tuple[int, ...]]:
        box = [held(self.profile(axis), CORE / self.ndim) for axis in range(self.ndim)]
        return self.cropped(box), tuple(first for first, _ in box)

    # --- sums -------------------------------------------------------------------------------

    @cached_property
    def _sums(self) -> tuple[Floats, ...]:
        """Per axis the sum of each column."""
        return tuple(f.sum(axis=0) for f in self.terms.factors)

    @cached_property
    def total(self) -> float:
        return self.terms.contracted(self._sums).item()

    def _line(self, axis: int, values: Sequence[Floats]) -> Floats:
        """What is left along an axis where the others have these values for each column."""
        found = np.moveaxis(self.terms.weights, axis, 0)
        for own in reversed(values):
            found = found @ own
        line: Floats = self.terms.factors[axis] @ found
        return line

    @cached_property
    def _profiles(self) -> tuple[Floats, ...]:
        found = []
        for axis in range(self.ndim):
            line = self._line(axis, [s for a, s in enumerate(self._sums) if a != axis])
            np.maximum(line, 0, out=line)
            found.append(line / line.sum())
        return tuple(found)

    def profile(self, axis: int) -> Floats:
        return self._profiles[axis]

    def joint_moment(self, a: int, b: int, x: Floats, y: Floats) -> float:
        sums = list(self._sums)
        sums[a], sums[b] = x @ self.terms.factors[a], y @ self.terms.factors[b]
        return self.terms.contracted(sums).item() / self.total

    def contracted(self, weights: Sequence[Stretch | None]) -> Array:
        pairs = zip(self.terms.factors, weights, strict=True)
        sums = [w[1] @ f[w[0] : w[0] + len(w[1])] for f, w in pairs if w is not None]
        if len(sums) < self.ndim:
            line = self._line(weights.index(None), sums)
            return np.maximum(line, 0, out=line)
        return np.maximum(self.terms.contracted(sums)[0], 0)

    @cached_property
    def _running(self) -> tuple[Floats, ...]:
        """Per axis the sums of each column up to each pixel, from none to all."""
        found = []
        for f in self.terms.factors:
            sums = np.zeros((len(f) + 1, f.shape[1]))
            np.cumsum(f, axis=0, out=sums[1:])
            found.append(sums)
        return tuple(found)

    def mass(self, box: Box) -> float:
        ends = zip(self._running, box, strict=True)
        sums = [running[stop] - running[first] for running, (first, stop) in ends]
        return max(0.0, self.terms.contracted(sums).item())

    def on_lines(self, first: NDArray[np.int64], stop: NDArray[np.int64]) -> float:
        shape = self.shape[:-1]
        lead, middle, _ = self.terms.factors
        total = 0.0
        for row, start, end in zip(lead, first.reshape(shape), stop.reshape(shape), strict=True):
            sums = self._running[-1][end] - self._running[-1][start]
            columns = np.tensordot(row, self.terms.weights, 1)
            total += float(((middle @ columns) * sums).sum())
        return max(0.0, total)

    # --- bright pixels ----------------------------------------------------------------------

    @cached_property
    def brightest_seen(self) -> float:
        """The largest pixel of the line through the maxima of the profiles: at most the peak."""
        places = [int(self.profile(axis).argmax()) for axis in range(self.ndim - 1)]
        lines = [f[p] for f, p in zip(self.terms.factors[:-1], places, strict=True)]
        return float(self._line(self.ndim - 1, lines).max())

    def peak(self) -> tuple[int, ...]:
        if self.size <= BLOCK:
            return self._seen.peak()
        best, place = -1.0, (0,) * self.ndim
        for first, block in self.blocks():
            row, *rest = Pixels(block).peak()
            value = float(block[(row, *rest)])
            if value > best:
                best, place = value, (first + row, *rest)
        return place

    def count_above(self, limit: float) -> int:
        if self.size <= BLOCK:
            return self._seen.count_above(limit)
        return sum(int((block > limit).sum()) for _, block in self.blocks())

    def brightest(self, goal: float) -> tuple[int, float, float]:
        if self.size <= BLOCK:
            return self._seen.brightest(goal)
        # Numbers that are not negative are in the order of their bits. Those of the pixel looked
        # for are found a digit at a time, from the highest: `above` and `mass` are of the pixels
        # that are greater by what is known of it.
        above, mass, known = 0, 0.0, 0
        for shift in reversed(range(0, 64, _DIGIT)):
            counts, sums = (self.xp.zeros(1 << _DIGIT, kind) for kind in (np.int64, np.float64))
            for _, block in self.blocks():
                digits = block.ravel().view(np.int64) >> shift
                alike = digits >> _DIGIT == known
                own = digits[alike] & ((1 << _DIGIT) - 1)
                if not own.size:  # CuPy counts nothing of nothing
                    continue
                counts += self.xp.bincount(own, minlength=len(counts))
                sums += self.xp.bincount(own, block.ravel()[alike], len(counts))
            counts, sums = fetched(counts, sums)
            reached = mass + np.cumsum(sums[::-1])
            # Where rounding leaves the goal out of reach, the faintest pixels stand in.
            digit = len(counts) - 1 - int(np.searchsorted(reached, min(goal, reached[-1])))
            above += int(counts[digit + 1 :].sum())
            mass += float(sums[digit + 1 :].sum())
            known = known << _DIGIT | digit
        value = float(np.int64(known).view(np.float64))
        alike = max(0, math.ceil((goal - mass) / value) - 1)
        return above + alike, mass + alike * value, value
