"""The image, window by window, until no pixel is open."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrf.arrays import along
from fastrf.engine.fourier import fast_length
from fastrf.engine.spectral import BLOCK, EPS, Axis, Window, inverse, windows
from fastrf.engine.threads import Threads
from fastrf.engine.tilted.frequencies import Ring, Waves
from fastrf.engine.tilted.moments import Moments
from fastrf.engine.tilted.nodes import DEPTH, TINY, cover, theta_grid
from fastrf.engine.tilted.supports import Lattices, Supports, part
from fastrf.engine.tilted.symmetries import Symmetries, groups
from fastrf.engine.tilted.taps import Array, Indices
from fastrf.engine.tilted.windows import Windows, measured, wanted_frequencies
from fastrf.engine.transfer import Extents, Frequencies, TransferFunction, compose

MOST_CELLS = 1 << 26
"""Largest theoretical field whose support is worked out pixel by pixel, where it is irregular."""

MOST_NATS = 400.0
"""By how much e^{θ·i} may vary within one window."""

PIECE = 1 << 13
"""Pixels that are held against all windows at a time."""

ROUNDS = 6
"""Times that further windows are added for pixels that are still open."""


class Patch(NamedTuple):
    """Pixels of one window: where in the array they are, and which of them are right."""

    place: tuple[slice, ...]
    values: Array
    right: NDArray[np.bool_]


def balanced(window: Window, centre: int) -> Window:
    """The window that has the same number of pixels on both sides of centre/2."""
    last = max(window[1], centre - window[0])
    return centre - last, last


class Search:
    """The image of unit 0, window by window."""

    def __init__(
        self,
        function: TransferFunction,
        tail: float | None,
        tol: float,
        workers: int,
        progress: Callable[[float], None],
    ) -> None:
        self.function, self.tol, self.workers, self.progress = function, tol, workers, progress
        self.ndim = function.graph.ndim
        self.symmetry = function(Symmetries(self.ndim))
        self.extent = function(Extents(self.ndim))
        self.box = tuple(
            balanced(window, c) if mirrored else window
            for window, c, mirrored in zip(
                windows(function, tail or TINY),
                self.symmetry.centre,
                self.symmetry.mirrored,
                strict=True,
            )
        )
        self.log_mass = float(function(Moments(np.zeros((1, self.ndim)))).log[0])
        # Of a mirrored axis only the upper half is computed.
        self.first = [
            -(-c // 2) if mirrored else lo
            for c, mirrored, (lo, _) in zip(
                self.symmetry.centre, self.symmetry.mirrored, self.box, strict=True
            )
        ]
        shape = [hi - lo + 1 for lo, (_, hi) in zip(self.first, self.box, strict=True)]
        self.array = np.zeros(shape)
        self.done = np.zeros(shape, dtype=np.bool_)
        # Pixels are taken down to what rounding leaves right to `tol`; a first guess, in nats.
        self.reach = math.log(tol / (40 * EPS))

    def image(self, tiny: float) -> tuple[Array, tuple[Window, ...]] | None:
        """The image and where it is, as of `_unfolded`; None where pixels are left that no tilt can
        lift."""
        self.nodes = theta_grid(self.function, self.symmetry, self.log_mass)
        seen = self._seen()
        if seen is None:
            return None
        chosen = cover(self.nodes, self.box, self.reach)
        used: set[int] = set()
        for _ in range(ROUNDS):
            used.update(chosen)
            self._compute(self.nodes.theta[chosen])
            left = self._open(seen, sorted(used))
            if not len(left):
                return self._unfolded(tiny)
            chosen = [c for c in self.nodes.nearest(left) if c not in used]
            if not chosen:
                break
        return None

    # --- windows ----------------------------------------------------------------------------

    def _compute(self, theta: Array) -> None:
        found = measured(self.function, self.extent, theta, self.reach)
        last = self.ndim - 1
        periods = np.array(
            [[fast_length(int(p), a == last) for a, p in enumerate(row)] for row in found.periods]
        )
        found = replace(found, periods=periods)
        kept = wanted_frequencies(self.function, found)
        points = [math.prod(index.size for index in row) for row in kept]
        # Windows of like size share an array, so that little of it is filled up.
        order = np.argsort(points)
        chunks: list[list[int]] = []
        widest = [0] * self.ndim
        for b in order:
            sizes = [max(n, i.size) for n, i in zip(widest, kept[b], strict=True)]
            if not chunks or math.prod(sizes) * (len(chunks[-1]) + 1) > BLOCK:
                chunks.append([])
                sizes = [i.size for i in kept[b]]
            chunks[-1].append(int(b))
            widest = sizes
        finished: dict[int, list[Patch]] = {}
        written, lock = 0, Lock()

        def run(c: int) -> None:
            nonlocal written
            patches = self._transformed(found, chunks[c], [kept[b] for b in chunks[c]])
            with lock:  # in order, whichever thread is first
                finished[c] = patches
                while written in finished:
                    self._write(finished.pop(written))
                    written += 1
                    self.progress(written / len(chunks))

        with Threads(self.workers) as threads:
            threads.each(len(chunks), sum(points), run)
        self._exchanged()

    def _write(self, patches: list[Patch]) -> None:
        while patches:
            patch = patches.pop(0)
            fresh = patch.right & ~self.done[patch.place]
            self.array[patch.place][fresh] = patch.values[fresh]
            self.done[patch.place] |= fresh

    def _transformed(
        self, found: Windows, chunk: Sequence[int], kept: Sequence[Sequence[Indices]]
    ) -> list[Patch]:
        """The pixels of some windows, whose F is evaluated together, a block of rows at a time."""
        rows = max(1, BLOCK * kept[0][0].size // math.prod(i.size for i in kept[0]))
        defects = []
        for start in range(0, max(row[0].size for row in kept), rows):
            rings = []
            for a in range(self.ndim):
                own = [row[a][start : start + rows] if a == 0 else row[a] for row in kept]
                index = np.zeros((len(chunk), max(i.size for i in own)), dtype=np.int64)
                for line, i in zip(index, own, strict=True):
                    line[: i.size] = i
                rings.append(Ring(found.periods[chunk, a : a + 1], index))
            wave = self.function(Waves(found.theta[chunk], rings))
            defect = reduce(compose, wave.parts, None)
            shape = (len(chunk), *(ring.index.shape[1] for ring in rings))
            defects.append(np.broadcast_to(0.0 if defect is None else defect, shape))
        centres, logs = wave.centre, wave.log - self.log_mass
        del wave, defect
        whole = defects[0] if len(defects) == 1 else np.concatenate(defects, axis=1)
        del defects
        patches = []
        for b, defect, centre, log, row in zip(chunk, whole, centres, logs, kept, strict=True):
            own = defect[part([i.size for i in row], [0] * self.ndim)]
            patch = self._patch(found, b, own, centre, float(log), row)
            if patch is not None:
                patches.append(patch)
        return patches

    def _patch(
        self,
        found: Windows,
        b: int,
        defect: Array,
        centre: Indices,
        log: float,
        kept: Sequence[Indices],
    ) -> Patch | None:
        """The pixels of one window."""
        theta = found.theta[b]
        # Counted from the mean: there the scale e^{K(θ) − θ·i} is what it is in the middle.
        middle = centre + np.rint(found.tilted.mean[b]).astype(np.int64)
        log -= float((middle - centre) @ theta)
        grid, scales, place = [], [], []
        values = 1 - defect
        for a, (c, push) in enumerate(zip(middle.tolist(), theta.tolist(), strict=True)):
            # Beyond e^±MOST_NATS of the middle a scale could overflow.
            most = math.floor(min(MOST_NATS / self.ndim / max(abs(push), TINY), 2.0**52))
            first = max(int(found.patches[b, a, 0]), self.first[a], c - most)
            last = min(int(found.patches[b, a, 1]), self.box[a][1], c + most)
            if last < first:
                return None
            frequencies = Frequencies(int(found.periods[b, a]), kept[a])
            grid.append(Axis((first, last), frequencies, a == self.ndim - 1))
            values = values * along(frequencies.phase(2 * (int(centre[a]) - first)), a, self.ndim)
            pixels = np.arange(first, last + 1)
            scales.append(np.exp(log / self.ndim - push * (pixels - c)))
            place.append(slice(first - self.first[a], last - self.first[a] + 1))
        tilted, floor = inverse(values, grid, 1)
        right = tilted >= 2 * floor / self.tol
        for a, scale in enumerate(scales):
            tilted *= along(scale, a, self.ndim)
        return Patch(tuple(place), tilted, right)

    def _exchanged(self) -> None:
        """Hands on what is known to the pixels where axes that are alike are exchanged."""
        for order in self._orders():
            known = self.done.transpose(order) & ~self.done
            self.array[known] = self.array.transpose(order)[known]
            self.done |= known

    def _orders(self) -> list[tuple[int, ...]]:
        axes = iter(range(self.ndim))
        alike = [list(itertools.islice(axes, n)) for n in groups(self.symmetry)]
        products = itertools.product(*(itertools.permutations(g) for g in alike))
        return [tuple(itertools.chain.from_iterable(p)) for p in products][1:]

    # --- what is left -----------------------------------------------------------------------

    def _seen(self) -> NDArray[np.bool_] | None:
        """The pixels of the array that the unit sees; None where that takes too long to say."""
        lattice = self.function(Lattices(self.ndim))
        if lattice is not None:
            lines = []
            for n, start, (first, last, step) in zip(
                self.array.shape, self.first, lattice, strict=True
            ):
                pixels = np.arange(start, start + n)
                lines.append(
                    (first <= pixels) & (pixels <= last) & ((pixels - first) % (step or 1) == 0)
                )
            whole: NDArray[np.bool_] = reduce(np.multiply.outer, lines)
            return whole
        if math.prod(hi - lo + 1 for lo, hi in self.extent) > MOST_CELLS:
            return None
        support = self.function(Supports(self.ndim))
        offset = np.subtract(self.first, support.first)
        seen: NDArray[np.bool_] = support.seen[part(self.array.shape, offset)]
        return seen

    def _open(self, seen: NDArray[np.bool_], used: Sequence[int]) -> Indices:
        """Pixels that are seen, not known, and not proven to be below the smallest number.

        For every θ, V[i] ≤ e^{K(θ) − θ·i}.
        """
        theta, log = self.nodes.theta[used], self.nodes.log[used]
        found = [np.zeros((0, self.ndim), dtype=np.int64)]
        rows = max(1, BLOCK * len(seen) // max(1, seen.size))
        for start in range(0, len(seen), rows):
            some = slice(start, start + rows)
            left = np.argwhere(seen[some] & ~self.done[some]) + self.first
            left[:, 0] += start
            for a, alike in enumerate(self.symmetry.alike):
                if alike:  # their exchange brings the others
                    left = left[left[:, a] <= left[:, a - 1]]
            for at in range(0, len(left), PIECE):
                p = left[at : at + PIECE]
                found.append(p[(log - p @ theta.T).min(axis=1) >= -DEPTH - 1e-6])
        return np.concatenate(found)

    def _unfolded(self, tiny: float) -> tuple[Array, tuple[Window, ...]]:
        """The whole image, and where it is: without rows in which all is below `tiny` of the
        sum."""
        array, box = self.array, []
        least = tiny * self._total()
        for a, mirrored in enumerate(self.symmetry.mirrored):
            others = tuple(b for b in range(self.ndim) if b != a)
            seen = np.flatnonzero(array.max(axis=others) >= least)
            start, stop = 0 if mirrored else int(seen[0]), int(seen[-1]) + 1
            array = array[(slice(None),) * a + (slice(start, stop),)]
            first, last = self.first[a] + start, self.first[a] + stop - 1
            box.append((self.symmetry.centre[a] - last if mirrored else first, last))
        for a, (mirrored, centre) in enumerate(
            zip(self.symmetry.mirrored, self.symmetry.centre, strict=True)
        ):
            if mirrored:
                other = np.flip(array, a)
                # A pixel on the centre is its own mirror image.
                cut = (slice(None),) * a + (slice(None, -1 if centre % 2 == 0 else None),)
                array = np.concatenate([other[cut], array], axis=a)
        return array, tuple(box)

    def _total(self) -> float:
        """The sum of all pixels of the image."""
        found = self.array
        for a in reversed(range(self.ndim)):
            if self.symmetry.mirrored[a]:
                times = np.full(found.shape[-1], 2.0)
                if self.symmetry.centre[a] % 2 == 0:  # on the centre
                    times[0] = 1.0
                found = found @ times
            else:
                found = found.sum(axis=-1)
        return float(found)
