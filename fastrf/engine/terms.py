"""Images as sums of separable terms: Σ_t w_t · a_t(x) · b_t(y) …, with nonnegative weights.

An image of N^d pixels is held as d factors of N pixels a term. Profiles, moments and sums over
boxes and balls come from the factors, and sets of bright pixels from the few rows and columns that
bounds leave. All pixels are formed once, when they are asked for: factors are the host's, pixels
are made on the image's device.

Everything is nonnegative and nothing is subtracted, so that the pixels formed have the relative
accuracy of the factors. Range: weights and factors are held 2^`shift` above their values, and cut
off below the smallest normal number. Every number cut off is at most 2^(−1022 − shift), and
multiplies others that are at most 1: nothing against a pixel of 2^−1022.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf.arrays import namespace, spelled_out
from fastrf.engine.threads import Threads
from fastrf.images import Box, Image, Pixels, Stretch
from fastrf.kernels import load

Floats = NDArray[np.float64]
Array = NDArray[Any]

BLOCK = 128
"""Greatest side of the blocks that a sum of terms is formed in. The block and the rows at work fit
the second-level cache, and the terms that matter differ little within one."""

DEVICE_BLOCK = 1024
"""The same on a GPU: a block has to fill all of its processors. By count, not by measurement."""

FEW_TERMS = 96
"""Up to so many terms, choosing those that matter for a block costs more than adding all."""

LARGEST_BLOCK = 1 << 20
"""Pixels that are formed at once for a measure that has to see them."""

CORE = 2.0**-51
"""Share of the mass outside the core, and share that the terms left out of it hold."""

FAINTER = 16.0
"""Factor by which the search for the brightest pixels goes on to fainter ones."""

FEW_PIXELS = 4
"""Pixels per row and column that are sorted where searching on would cost more."""

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


def formed_bytes(
    shape: tuple[int, ...], rank: int, dtype: np.dtype[Any], mirrored: bool = False
) -> int:
    """Bytes that forming an image of so many terms takes at its fullest moment, the image
    included; `mirrored` as of `Factor`."""
    pixels = math.prod(shape)
    image = pixels * dtype.itemsize
    if len(shape) == 1:
        # The line in double precision or the image's type, scaled, and what of it is too small.
        return image + (1 + 2 * (dtype.itemsize if rank == 1 else 8)) * pixels
    if rank == 1:
        # The product of all lines but the last.
        return image + math.prod(shape[:-1]) * dtype.itemsize
    # And what is compared between terms, in each of an axis' blocks.
    stored = [(n + 1) // 2 if mirrored else n for n in shape[-2:]]
    blocks = sum(-(-n // BLOCK) for n in set(stored))
    compared = blocks * rank * 5 * 8 if rank > FEW_TERMS else 0
    return image + block_bytes(shape, mirrored) + compared


def block_bytes(shape: tuple[int, ...], mirrored: bool) -> int:
    """What a thread has at work of an image of several terms, in two dimensions and more: a block,
    turned where rows are mirrored, and copied to the other side of a diagonal."""
    stored = [(n + 1) // 2 if mirrored else n for n in shape[-2:]]
    parts = [-(-n // BLOCK) for n in stored]
    one = 8 * math.prod(-(-n // p) for n, p in zip(stored, parts, strict=True))
    return one * (1 + mirrored + (max(parts) > 1 or len(shape) > 2))


def pieces(shape: tuple[int, ...], mirrored: bool) -> int:
    """Blocks that an image of several terms is formed of, as if no axes were alike."""
    stored = [(n + 1) // 2 if mirrored else n for n in shape]
    return math.prod(stored[:-2]) * math.prod(-(-n // BLOCK) for n in stored[-2:])


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

    def combined(self, values: Floats) -> Floats:
        """Σ_t values[t]·row_t, for nonnegative values."""
        out = np.empty((1, self.rows.shape[1]))
        load("cpu").sum_of_terms(values, np.ones((len(values), 1)), self.rows, 0, out)
        line: Floats = _unfolded(out, self.length)[0] if self.mirrored else out[0]
        return line

    def sums(self) -> Floats:
        """Σ over the pixels of each row."""
        half = self.length // 2 if self.mirrored else 0
        total: Floats = 2 * self.rows[:, :half].sum(axis=1) + self.rows[:, half:].sum(axis=1)
        return total

    def dot(self, first: int, weights: Floats) -> Floats:
        """Σ over the pixels from `first` on of each row times `weights`."""
        if not self.mirrored:
            total: Floats = self.rows[:, first : first + len(weights)] @ weights
            return total
        # What lies beyond the middle reads the first half backwards.
        turn = min(max(self.rows.shape[1] - first, 0), len(weights))
        back = self.length - first - len(weights)
        total = self.rows[:, first : first + turn] @ weights[:turn]
        total += self.rows[:, back : back + len(weights) - turn] @ weights[turn:][::-1]
        return total

    def running(self) -> Floats:
        """Sums of each row up to each pixel, from none to all."""
        sums = np.zeros((len(self.rows), self.length + 1))
        np.cumsum(self.whole(), axis=1, out=sums[:, 1:])
        return sums

    def at(self, places: NDArray[np.int64]) -> Floats:
        """The rows' values at some pixels."""
        if self.mirrored:
            places = np.minimum(places, self.length - 1 - places)
        return self.rows[:, places]

    def chosen(self, terms: NDArray[np.bool_]) -> Factor:
        """The factor of some of the terms."""
        return Factor(self.rows[terms], self.length, self.mirrored)

    def cut(self, start: int, stop: int) -> Factor:
        """The pixels start … stop−1."""
        if self.mirrored and start == self.length - stop:
            return Factor(self.rows[:, start:], stop - start, True)
        return Factor(self.whole()[:, start:stop], stop - start, False)


def _unfolded(rows: Floats, length: int) -> Floats:
    """Rows that end in the middle of `length` pixels, with their mirror images."""
    return np.concatenate([rows, rows[:, : length // 2][:, ::-1]], axis=1)


@dataclass(frozen=True, eq=False)
class FactoredImage(Image):
    """A normalised image as a sum of separable terms.

    Attributes:
        weights: one a term, nonnegative, of sum 2^shift.
        factors: one `Factor` an axis; axes that are alike share one object.
        origin: input index of the first pixel, per axis.
        dtype: of the image formed.
        kernels: namespace of the kernels of `fastrf.kernels.spec` that form the pixels.
        xp: array namespace of the pixels.
    """

    weights: Floats
    factors: tuple[Factor, ...]
    origin: tuple[int, ...]
    dtype: np.dtype[Any]
    kernels: Any
    xp: Any = np

    def __getstate__(self) -> dict[str, Any]:
        # Copies and pickles name the module, which cannot be pickled.
        return self.__dict__ | {"xp": self.xp.__name__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"xp": import_module(state["xp"])})

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
    def nbytes(self) -> int:
        """Bytes that the factors hold, each shared one counted once."""
        own = {id(f): f.rows.nbytes for f in self.factors}
        return sum(own.values()) + self.weights.nbytes

    @property
    def shift(self) -> int:
        return shift_of(self.rank, self.ndim)

    @property
    def forming(self) -> int:
        mirrored = all(f.mirrored for f in self.factors)
        return formed_bytes(self.shape, self.rank, self.dtype, mirrored)

    # --- the pixels -------------------------------------------------------------------------

    def form(self, out: NDArray[Any] | None = None, workers: int = 1) -> NDArray[Any]:
        """The pixels, as an array of `shape` and `dtype`; those below the smallest normal are 0.

        Args:
            out: C-contiguous array of `xp` to fill; a fresh one by default.
            workers: threads that share the work, on the CPU.
        """
        if out is None:
            out = self.xp.empty(self.shape, self.dtype)
        with Threads(workers if self.xp is np else 0) as threads:
            if self.rank == 1:
                self._form_product(out, threads)
            elif self.ndim == 1:
                _settle(self.xp.asarray(self._line(0, [])), 0, out)
            else:
                own = {id(f): f for f in self.factors[-2:]}
                tables = {key: _Blocks(f, self.xp, threads) for key, f in own.items()}
                _form(self.weights, self.factors, tables, self.kernels, out, threads)
        return out

    def _form_product(self, out: NDArray[Any], threads: Threads) -> None:
        lines = [self.xp.asarray(line.astype(self.dtype)) for line in self.lines]
        if len(lines) == 1:
            _settle(lines[0], 0, out)
            return
        *rest, last = lines
        lead = rest[0]
        for line in rest[1:]:
            grown = self.xp.empty((len(lead), len(line)), self.dtype)
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

    def pixels(self, workers: int = 1) -> NDArray[Any]:
        return self.form(workers=workers)

    def window(self, box: Box, workers: int = 1) -> NDArray[Any]:
        return self.cropped(box).form(workers=workers)

    def blocks(self) -> Iterator[tuple[int, Floats]]:
        height = self.shape[0]
        step = max(1, LARGEST_BLOCK * height // self.size)
        for first in range(0, height, step):
            rows = (first, min(first + step, height))
            yield first, self.cropped([rows, *((0, n) for n in self.shape[1:])])._formed()

    def _formed(self) -> Floats:
        """The pixels in double precision."""
        return replace(self, dtype=np.dtype(np.float64)).form()

    def at(self, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> Floats:
        lines = np.unravel_index(rows, self.shape[:-1]) if self.ndim > 1 else ()
        pairs = zip(self.factors, (*lines, columns), strict=True)
        pixels: Floats = self._weighed([f.at(places) for f, places in pairs]).sum(axis=0)
        return pixels

    # --- parts ------------------------------------------------------------------------------

    def cropped(self, box: Box) -> FactoredImage:
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

    def bounds(self, axis: int) -> Floats:
        """Along `axis`, an upper bound of the largest pixel beside each index."""
        return self._bounds[axis]

    @cached_property
    def core(self) -> tuple[FactoredImage, tuple[int, ...]]:
        box = [held(self.profile(axis), CORE / self.ndim) for axis in range(self.ndim)]
        core = self.cropped(box)._without(self._masses, CORE * self.total)
        return core, tuple(first for first, _ in box)

    def _brighter(self, level: float) -> FactoredImage | None:
        """The part that holds all pixels above `level`, of the terms that these show; None where
        there are none."""
        seen = [np.flatnonzero(self.bounds(axis) > level) for axis in range(self.ndim)]
        if not all(s.size for s in seen):
            return None
        part = self.cropped([(int(s[0]), int(s[-1]) + 1) for s in seen])
        return part._without(self._weighed(self._tops), level * 2.0**_RELATIVE)

    def _without(self, values: Floats, limit: float) -> FactoredImage:
        """Without the terms of the least values, which together stay below `limit`."""
        keep = values * len(values) >= limit
        # Two stay at least: a single term is held at another scale.
        keep[np.argsort(values)[-2:]] = True
        if keep.all():
            return self
        own = {id(f): f.chosen(keep) for f in self.factors}
        factors = tuple(own[id(f)] for f in self.factors)
        return replace(self, weights=self.weights[keep], factors=factors)

    # --- sums -------------------------------------------------------------------------------

    def _weighed(self, values: Sequence[Floats]) -> Floats:
        """The weights times what each axis has for each term, in the first dimension."""
        scale, product = 2.0**-self.shift, self.weights.reshape(-1, *(1,) * (values[0].ndim - 1))
        for own in values:
            product = product * (own * scale)
        return product * scale

    def _line(self, axis: int, values: Sequence[Floats]) -> Floats:
        """Σ over the terms along `axis`, with what the other axes have for each in turn."""
        scale, product = 2.0**-self.shift, self.weights
        for own in values:
            product = product * (own * scale)
        return _scaled(self.factors[axis].combined(product), -2 * self.shift)

    @cached_property
    def _tops(self) -> tuple[Floats, ...]:
        """Per axis the largest value of each term."""
        own = {id(f): f.rows.max(axis=1) for f in self.factors}
        return tuple(own[id(f)] for f in self.factors)

    def _each_line(self, values: Sequence[Floats]) -> tuple[Floats, ...]:
        """Per axis the `_line` where the others have these values; axes that are alike share it."""
        found: dict[int, Floats] = {}
        for axis, f in enumerate(self.factors):
            if id(f) not in found:
                found[id(f)] = self._line(axis, [v for a, v in enumerate(values) if a != axis])
        return tuple(found[id(f)] for f in self.factors)

    @cached_property
    def _bounds(self) -> tuple[Floats, ...]:
        return self._each_line(self._tops)

    @cached_property
    def _sums(self) -> tuple[Floats, ...]:
        """Per axis the sum of each term's row."""
        own = {id(f): f.sums() for f in self.factors}
        return tuple(own[id(f)] for f in self.factors)

    @cached_property
    def _masses(self) -> Floats:
        """The sum of the pixels of each term."""
        return self._weighed(self._sums)

    @cached_property
    def total(self) -> float:
        """Sum of all pixels: 1 up to rounding, unless the image is cropped."""
        return float(self._masses.sum())

    @cached_property
    def _profiles(self) -> tuple[Floats, ...]:
        return tuple(marginal / marginal.sum() for marginal in self._each_line(self._sums))

    def profile(self, axis: int) -> Floats:
        return self._profiles[axis]

    def joint_moment(self, a: int, b: int, x: Floats, y: Floats) -> float:
        if self.rank == 1 or self.factors[a].mirrored or self.factors[b].mirrored:
            return 0.0  # in every term, one of the two has the mean 0 wherever the other is
        sums = list(self._sums)
        sums[a], sums[b] = self.factors[a].dot(0, x), self.factors[b].dot(0, y)
        return float(self._weighed(sums).sum()) / self.total

    def contracted(self, weights: Sequence[Stretch | None]) -> Array:
        pairs = zip(self.factors, weights, strict=True)
        sums = [f.dot(*stretch) for f, stretch in pairs if stretch is not None]
        if len(sums) < self.ndim:
            return self._line(weights.index(None), sums)
        return np.asarray(self._weighed(sums).sum())

    @cached_property
    def _running(self) -> tuple[Floats, ...]:
        """Per axis the running sums of each term's row.

        Their differences are right to N roundings of the total, as shares of it have to be, and
        not relative to what little a box may hold.
        """
        own = {id(f): f.running() for f in self.factors}
        return tuple(own[id(f)] for f in self.factors)

    def mass(self, box: Box) -> float:
        ends = zip(self._running, box, strict=True)
        if self.rank == 1:  # numbers by themselves are quicker than arrays of one
            sides = (float(running[0, stop] - running[0, first]) for running, (first, stop) in ends)
            return float(self.weights[0]) * math.prod(sides)
        sums = [running[:, stop] - running[:, first] for running, (first, stop) in ends]
        return float(self._weighed(sums).sum())

    def on_lines(self, first: NDArray[np.int64], stop: NDArray[np.int64]) -> float:
        shape = self.shape[:-1]
        return self._on_lines(self.weights, 0, first.reshape(shape), stop.reshape(shape))

    def _on_lines(
        self, values: Floats, axis: int, first: NDArray[np.int64], stop: NDArray[np.int64]
    ) -> float:
        """As `on_lines`, at one index on each axis before, where the terms have these values."""
        scale = 2.0**-self.shift
        if first.ndim > 1:
            rows = self.factors[axis].whole().T
            parts = zip(rows, first, stop, strict=True)
            return sum(
                self._on_lines(values * (row * scale), axis + 1, *ends) for row, *ends in parts
            )
        running = self._running[-1]
        sums = (running[:, stop] - running[:, first]) * scale
        if first.ndim == 1:
            sums = np.einsum("tx,tx->t", self.factors[axis].whole() * scale, sums)
        return float(values @ sums) * scale

    # --- bright pixels ----------------------------------------------------------------------

    def peak(self) -> tuple[int, ...]:
        if self.rank == 1:
            return tuple(int(line.argmax()) for line in self.lines)
        likely = [int(self.bounds(axis).argmax()) for axis in range(self.ndim)]
        value = self.cropped([(i, i + 1) for i in likely])._formed().item()
        part = self._brighter(value * (1 - 2.0**-40))  # room for what rounds the bounds
        assert part is not None, "the pixel itself is in it"
        place = Pixels(part._formed()).peak()
        corner = zip(part.origin, self.origin, strict=True)
        return tuple(i + p - o for i, (p, o) in zip(place, corner, strict=True))

    def count_above(self, limit: float) -> int:
        if self.rank == 1:
            return count_above(self.lines, limit)
        part = self._brighter(limit)
        blocks = () if part is None else part.blocks()
        return sum(int((block > limit).sum()) for _, block in blocks)

    def brightest(self, goal: float) -> tuple[int, float, float]:
        if self.rank == 1:
            return brightest(self.lines, goal)
        level = float(self.bounds(0).max())
        while True:
            level = level / FAINTER if level > FAINTER * _TINY else 0.0
            part = self._brighter(level)
            if part is not None and (level == 0 or part.total >= goal):
                found = Pixels(part._formed()).brightest(goal)
                if found[-1] >= level:  # no pixel outside the part is above the level
                    return found


def held(profile: Floats, tail: float) -> tuple[int, int]:
    """Start and stop of the pixels that are left when at most tail/2 is cut off at either end."""
    first = int(np.searchsorted(np.cumsum(profile), tail / 2, side="right"))
    last = int(np.searchsorted(np.cumsum(profile[::-1]), tail / 2, side="right"))
    return first, len(profile) - last


# --- pixels of outer products ---------------------------------------------------------------


def trimmed(image: FactoredImage) -> FactoredImage:
    """The image without rows and columns in which all pixels are below the smallest normal number,
    and so 0."""
    tiny = float(np.finfo(image.dtype).smallest_normal)
    alike = all(f is image.factors[0] for f in image.factors)
    box: list[tuple[int, int]] = []
    for axis in range(image.ndim):
        if axis and alike:
            box.append(box[0])
            continue
        box.append(_seen(image, axis, tiny))
    whole = all(ends == (0, n) for ends, n in zip(box, image.shape, strict=True))
    return image if whole else image.cropped(box)


def _seen(image: FactoredImage, axis: int, tiny: float) -> tuple[int, int]:
    """Start and stop of the indices along an axis beside which a pixel may be `tiny` or more."""
    if image.rank > 1:
        seen = np.flatnonzero(image.bounds(axis) >= tiny)
        return int(seen[0]), int(seen[-1]) + 1
    # A single term's largest pixel is a product of maxima.
    most = float(image.weights[0])
    for number, f in enumerate(image.factors):
        if number != axis:
            most *= float(f.rows.max())
    f = image.factors[axis]
    seen = np.flatnonzero(f.rows[0] * most >= tiny)
    return int(seen[0]), f.length - int(seen[0]) if f.mirrored else int(seen[-1]) + 1


def _split(lines: Sequence[Floats]) -> tuple[Floats, Floats]:
    """The positive elements of the product of all lines but the last, and the last in ascending
    order."""
    lead = reduce(lambda a, b: np.multiply.outer(a, b).ravel(), lines[:-1], np.ones(1))
    return lead[lead > 0], np.sort(lines[-1])


def _first_above(lead: Floats, last: Floats, limit: float) -> NDArray[np.int64]:
    """For each element of `lead`, the first of `last` with which its product is above `limit`."""
    with np.errstate(over="ignore"):
        first = np.searchsorted(last, limit / lead, side="right")
    # The quotient is rounded: the products themselves decide about the element on either side.
    below = np.maximum(first - 1, 0)
    first = np.where((first > 0) & (lead * last[below] > limit), below, first)
    at = np.minimum(first, len(last) - 1)
    return np.where((first < len(last)) & (lead * last[at] <= limit), first + 1, first)


def count_above(lines: Sequence[Floats], limit: float) -> int:
    """How many elements of the outer product of `lines` are greater than `limit`."""
    lead, last = _split(lines)
    lead = lead[lead * last[-1] > limit]
    return int((len(last) - _first_above(lead, last, limit)).sum())


def brightest(lines: Sequence[Floats], goal: float) -> tuple[int, float, float]:
    """As `Image.brightest`, of the outer product of `lines`.

    Halves the range of values until few pixels are left in it, and sorts these.
    """
    lead, last = _split(lines)
    # What the elements from each one on add up to.
    above = np.append(np.cumsum(last[::-1])[::-1], 0)
    # The pixels above `low` hold the goal, and those above `high` do not.
    low, high = 0.0, float(lead.max() * last[-1])
    first, stop = (_first_above(lead, last, limit) for limit in (low, high))
    few = FEW_PIXELS * (len(lead) + len(last))
    while (stop - first).sum() > few:
        middle = (low + high) / 2
        if not low < middle < high:
            break
        between = _first_above(lead, last, middle)
        if lead @ above[between] >= goal:
            low, first = middle, between
        else:
            high, stop = middle, between
    count, mass = int((len(last) - stop).sum()), float(lead @ above[stop])
    if (stop - first).sum() > few:
        # Neighbouring numbers: all pixels between them are equal.
        more = max(0, math.ceil((goal - mass) / high) - 1)
        return count + more, mass + more * high, high
    rows, columns = spelled_out(first, stop)
    whole, part, value = Pixels(lead[rows] * last[columns]).brightest(goal - mass)
    return count + whole, mass + part, value


# --- forming sums of terms ------------------------------------------------------------------


class _Blocks:
    """A factor's pixels in blocks, and how its terms compare with each other within each.

    Attributes:
        rows: the factor's, as an array of the namespace that the pixels are of.
        spans: first and last + 1 pixel of each block, of the half where mirrored.
        top: log2 of each term's largest value, per block.
        middle: log2 of each term's value at the middle of the block.
        usable: whether a term is above the floor all over the block.
        rise, fall: sums over the terms before each one of log2 of the largest and the smallest
            quotient, within the block, of each term and the one before.
    """

    def __init__(self, factor: Factor, xp: Any, threads: Threads) -> None:
        rows = factor.rows
        count = rows.shape[1]
        self.factor, self.rows = factor, xp.asarray(rows)
        parts = -(-count // (BLOCK if xp is np else DEVICE_BLOCK))
        self.spans = [(count * i // parts, count * (i + 1) // parts) for i in range(parts)]
        self.compared = len(rows) > FEW_TERMS
        if not self.compared:
            return
        shape = (len(self.spans), len(rows))
        self.top, self.middle = np.empty(shape), np.empty(shape)
        self.rise, self.fall = np.zeros(shape), np.zeros(shape)
        self.usable = np.empty(shape, bool)
        threads.each(len(self.spans), rows.size, self._compare)

    def _compare(self, i: int) -> None:
        a, b = self.spans[i]
        # A few rows at a time stay in the cache.
        for start in range(0, len(self.factor.rows), BLOCK):
            stop = min(start + BLOCK, len(self.factor.rows))
            values = np.maximum(self.factor.rows[max(start - 1, 0) : stop, a:b], _FLOOR)
            quotients = values[1:] / values[:-1]
            self.rise[i, max(start, 1) : stop] = np.log2(quotients.max(axis=1))
            self.fall[i, max(start, 1) : stop] = np.log2(quotients.min(axis=1))
            values = values[start > 0 :]
            self.top[i, start:stop] = np.log2(values.max(axis=1))
            self.middle[i, start:stop] = np.log2(values[:, (b - a) // 2])
            self.usable[i, start:stop] = values.min(axis=1) > _FLOOR
        np.cumsum(self.rise[i], out=self.rise[i])
        np.cumsum(self.fall[i], out=self.fall[i])

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
    halves = [out, out[::-1]] if y.mirrored else [out]
    xp = namespace(out)
    held = xp.asarray(weights)

    def put(block: NDArray[Any], rows: tuple[int, int], columns: tuple[int, int]) -> None:
        (a, b), (c, d) = rows, columns
        for half in halves:
            half[a:b, c:d] = block
        if x.mirrored:
            # Turned once in the cache, and then copied row by row.
            turned = xp.ascontiguousarray(block[:, ::-1])
            for half in halves:
                half[a:b, x.length - d : x.length - c] = turned

    def run(piece: int) -> None:
        i, j = pieces[piece]
        (a, b), (c, d) = rows.spans[i], columns.spans[j]
        start, stop = rows.span_of_terms(log_weights, i, columns, j, exponent)
        chosen = slice(start, stop)
        sums = xp.empty((b - a, d - c))
        kernels.sum_of_terms(
            held[chosen], rows.rows[chosen, a:b], columns.rows[chosen, c:d], -exponent, sums
        )
        block = sums if out.dtype == sums.dtype else _settled(sums, out.dtype)
        put(block, (a, b), (c, d))
        if alike and i < j:
            put(xp.ascontiguousarray(block.T), (c, d), (a, b))

    threads.each(len(pieces), out.size, run)


# --- numbers --------------------------------------------------------------------------------


def _settle(values: Floats, exponent: int, out: NDArray[Any]) -> None:
    """``out = values·2^exponent``, 0 where that is below the smallest normal number of `out`."""
    tiny = math.ldexp(float(np.finfo(out.dtype).smallest_normal), -exponent)
    scaled = values * 2.0**exponent
    scaled[values < tiny] = 0
    out[...] = scaled


def _settled(values: Floats, dtype: np.dtype[Any]) -> NDArray[Any]:
    out: NDArray[Any] = namespace(values).empty(values.shape, dtype)
    _settle(values, 0, out)
    return out


def _scaled(values: Floats, exponent: int) -> Floats:
    out = np.empty_like(values)
    _settle(values, exponent, out)
    return out
