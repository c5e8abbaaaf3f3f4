"""The carrier without numbers: what its arrays take at the fullest moment, from their shapes.

The script is followed as `carrier.Numbers` follows it, with the sizes of what each call makes
beside what is held then. Blocks that come from the unit alone have shapes that the script tells to
the byte. How many columns a reduction leaves is for values to decide, of which `ranks` sees a few;
traces are counted as if none were dropped.

What LAPACK works in is not counted, nor does tracemalloc see it: copies of what enters and leaves
and its workspace. A decomposition of order n takes 7.3·n² numbers beside its results, 6 MiB for the
largest plane that is decomposed as it is (`lowrank.WHOLE`); an orthogonal factor up to 2.9 times
its own numbers, beside an image of n·n pixels 3·`lowrank.BATCH`/n of it (resident memory of
NumPy 2 with OpenBLAS, 2026-11-28).

On a GPU all memory is CuPy's pool's, and what cuSOLVER works in is, too: it is counted. CuPy hands
it a copy of each matrix, which becomes Q or the singular vectors of one side, and R is a view of
another one. What it asks for besides was not measured; it is taken to be what LAPACK does. The
matrices of maps are there for a field. That the pool rounds sizes up counts where arrays are single
numbers. Not counted is what libraries hold from their first call on (cuBLAS on recent GPUs some
32 MiB).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fastrf.engine.recompressed import lowrank, volumes
from fastrf.engine.recompressed.powers import TOGETHER, Passage
from fastrf.engine.recompressed.ranks import IMAGE, Columns
from fastrf.engine.recompressed.script import Apply, Neglect, Script, Settle
from fastrf.engine.recompressed.words import Words

POWER_BYTES = 320
"""What Python holds of a power: an array and its shape (112 and 32 bytes), a tuple of up to three
exponents (64 and 28 each), places in two lists that have room to grow."""

BLOCK_BYTES = 512
"""What CuPy's pool rounds the size of an array up to."""

STEP_BLOCKS = 8
"""Arrays without axes that are left of a step until the end: what bounds its errors. Counted on the
tests' stand-in: 4 in planes, 6 in volumes."""

WORKSPACE = 8
"""Numbers over n² that a singular value decomposition of order n works in, beside its results,"""

PANEL = 64
"""and numbers over n that an orthogonal factor of n columns does."""

CONNECTION_BYTES = 12
"""A weight of a sparse matrix, and its column."""

Shape = tuple[int, ...]


class Form(NamedTuple):
    """What `lowrank.Terms` take.

    Attributes:
        shape: pixels per axis.
        columns: per axis.
        cored: whether the weights are a core.
    """

    shape: Shape
    columns: Shape
    cored: bool

    @property
    def terms(self) -> int:
        return max(self.columns)

    @property
    def factors(self) -> int:
        """Numbers of the factors,"""
        return sum(n * c for n, c in zip(self.shape, self.columns, strict=True))

    @property
    def weights(self) -> int:
        """of the weights,"""
        return math.prod(self.columns) if self.cored else self.terms

    @property
    def numbers(self) -> int:
        """and of both."""
        return self.factors + self.weights

    @property
    def widest(self) -> int:
        """Numbers of the largest factor."""
        return max(n * c for n, c in zip(self.shape, self.columns, strict=True))

    @property
    def pixels(self) -> int:
        return math.prod(self.shape)

    def of(self, terms: int) -> Form:
        """As many other terms without a core."""
        return Form(self.shape, (terms,) * len(self.shape), False)

    @property
    def forming(self) -> int:
        """Numbers at the fullest moment of `Terms.form`, with the pixels."""
        if self.cored and len(self.shape) > 2:
            n, c = self.shape, self.columns
            first, second = c[0] * c[1] * n[2], c[0] * n[1] * n[2]
            return max(first + second, second + self.pixels)
        if self.cored:
            return self.columns[0] * self.shape[-1] + self.pixels
        # All rows of the first axis times the weights, and in a volume one of them at a time.
        beside = self.terms * self.shape[1] if len(self.shape) > 2 else 0
        return self.terms * self.shape[0] + beside + self.pixels


@dataclass(slots=True)
class _Held:
    """A block: its terms, whether their factors may be negative, and the powers that are there of
    it and of its absolute values, by map."""

    form: Form
    signed: bool
    powers: dict[int, int] = field(default_factory=dict)
    absolute: dict[int, int] | None = None

    @property
    def numbers(self) -> int:
        both = (self.powers, self.absolute or {})
        count = sum(n for powers in both for n in powers.values())
        own = sum(self.form.shape) * self.form.terms + POWER_BYTES // 8
        return self.form.numbers * (1 + (self.absolute is not None)) + count * own


class Holdings:
    """What following a script takes.

    Args:
        seen: shape of the pixels that can be seen,
        whole: and of those that the unit can reach, on which what is of either sign is formed.
        size: bytes of a pixel of the result.
        columns: that reductions leave (`ranks.columns`).
        on_device: whether a GPU holds it.

    Attributes:
        fullest: most numbers of 8 bytes that are held at a time,
        forming: and when pixels are formed of what is left in factors; 0 where nothing is.
    """

    def __init__(
        self,
        script: Script,
        seen: Shape,
        whole: Shape,
        size: int,
        columns: Columns,
        on_device: bool = False,
    ) -> None:
        self.script, self.size, self.columns, self.on_device = script, size, columns, on_device
        self.fullest, self.forming = 0, 0
        self.lasting = 0  # numbers that stay to the end, beside blocks
        self.brought: set[tuple[int, int]] = set()  # which matrices, signs kept and dropped
        self._stays(len(script.steps) * STEP_BLOCKS * BLOCK_BYTES)
        seed = script.seed
        self.held = {seed.number: _Held(Form(seed.shape, (1,) * len(seed.shape), False), False)}
        self.last = script.last_uses()
        for done, step in enumerate(script.steps, 1):
            if isinstance(step, Settle):
                self.held[step.block.number] = self._settled(step, done)
            elif isinstance(step, Apply):
                self.held[step.block.number] = self._applied(step)
            elif isinstance(step, Neglect):
                for words in step.words:
                    self._note(self.held[words.block.number].form.factors)
            self._release(done)
        if script.final is not None:
            self._finish(script.final.sum.words, seen, whole)

    def _note(self, beside: float) -> None:
        """Notes what is held with so many numbers beside the blocks."""
        held = sum(block.numbers for block in self.held.values())
        self.fullest = max(self.fullest, held + self.lasting + math.ceil(beside))

    def _stays(self, size: int) -> None:
        """Counts bytes that a GPU holds to the end."""
        if self.on_device:
            self.lasting += math.ceil(size / 8)

    def _bring(self, passage: Passage, ways: int, stacked: bool = False) -> None:
        """Counts a map's matrices, where they are not there yet: of all axes in one or of each, in
        so many ways, with and without signs."""
        for way in range(ways * self.on_device):
            key = (id(passage), 2 * way + stacked)
            if key not in self.brought:
                self.brought.add(key)
                ends = sum(n for _, n in (*passage.x, *passage.y))
                self._stays(CONNECTION_BYTES * passage.connections + 24 * ends)

    def _forming(self, form: Form) -> int:
        """As of the form, with the planes that a GPU takes at once."""
        if not self.on_device or form.cored or len(form.shape) < 3:
            return form.forming
        lines = form.terms * form.shape[1]
        together = min(max(lowrank.DEVICE_PLANES, lines), lines * form.shape[0])
        return form.forming - lines + together

    def _release(self, done: int) -> None:
        for number in [n for n in self.held if self.last.get(n, -1) < done]:
            del self.held[number]

    # --- steps ------------------------------------------------------------------------------

    def _settled(self, step: Settle, done: int) -> _Held:
        parts, signed = self._multiplied_out(step.words)
        terms = sum(p.terms for p in parts)
        self._release(done)
        if terms <= self.script.few:
            return _Held(self._joined(parts), signed)
        return _Held(self._reduced(parts, self.columns[step.block.number]), True)

    def _applied(self, step: Apply) -> _Held:
        source, passage = self.held[step.source.number], step.passage
        columns = [
            c * len(vectors)
            for c, vectors in zip(source.form.columns, passage.taps.vectors, strict=True)
        ]
        shape = tuple(count for _, count in passage.x)
        cored = source.form.cored or passage.taps.weights.ndim > 1
        form = Form(shape, tuple(columns), cored)
        signed = source.signed or not passage.move.separable
        self._bring(passage, 1 + signed)
        # cuSPARSE reads columns: a copy of a factor, and what it makes of its parts.
        copies = (source.form.widest + form.widest) * self.on_device
        # Raised by a power of two; or that of absolute values beside it, and sizes of a factor. Of
        # a core's weights, which may be more, four copies are counted where it is multiplied out.
        self._note(2 * form.numbers + (form.widest if signed else 0) + copies)
        return _Held(form, signed)

    def _multiplied_out(self, words: tuple[Words, ...]) -> tuple[list[Form], bool]:
        """The terms of words, and whether any may be negative, as `Numbers` makes and rounds
        them."""
        parts: list[Form] = []
        made = 0  # numbers that are copies
        for w in words:
            block = self.held[w.block.number]
            own, count = self._weighted(block, block.powers, w, made)
            made += own
            parts += self._parts(block, count)
        for w in words:
            block = self.held[w.block.number]
            if block.signed:
                block.absolute = {} if block.absolute is None else block.absolute
                own, count = self._weighted(block, block.absolute, w, made)
                # Sizes of a factor, to bound them.
                of = self._parts(block, count)[0]
                self._note(made + own + of.widest + 2 * of.weights)
        self._note(made)
        self._made = made
        return parts, any(self.held[w.block.number].signed for w in words)

    def _weighted(
        self, block: _Held, powers: dict[int, int], w: Words, before: int
    ) -> tuple[int, int]:
        """Numbers that are copied of a block's powers, and how many of them there are."""
        if w.step is None:
            if block.form.cored:
                self._note(before + 2 * block.form.weights)
            return block.form.cored * block.form.weights, 1
        used = np.flatnonzero(w.values)
        first, stop = int(used[0]), int(used[-1]) + 1
        self._bring(w.step, 1, stacked=True)
        key, wanted, form = id(w.step), w.first + stop, block.form
        powers[key] = max(powers.get(key, 0), wanted)
        count = stop - first
        if form.cored:
            # Each power's factors are looked at where they are.
            weights, own = count * form.weights, count * sum(form.shape) * form.terms
            self._note(before + 2 * weights)
            return weights + own, count
        table = count * sum(form.shape) * form.terms
        # Which of some rows are too small.
        rows = min(TOGETHER, form.shape[-1]) * count * form.terms
        self._note(before + table + 9 * rows / 8)
        return table, count

    @staticmethod
    def _parts(block: _Held, count: int) -> list[Form]:
        if block.form.cored:
            return [block.form] * count
        return [block.form.of(count * block.form.terms)]

    def _joined(self, parts: list[Form]) -> Form:
        """The sum of parts, of which several are copied."""
        if len(parts) == 1:
            return parts[0]
        cored = any(p.cored for p in parts)
        columns = tuple(map(sum, zip(*(p.columns for p in parts), strict=True)))
        form = Form(parts[0].shape, columns, cored)
        self._note(self._made + form.numbers)
        self._made = form.numbers
        return form

    # --- reductions -------------------------------------------------------------------------

    def _reduced(self, parts: list[Form], most: Shape) -> Form:
        shape = parts[0].shape
        if len(shape) > 2:
            return self._reduced_volume(parts, most)
        form = self._joined(parts)
        # Absolute values of a factor, or the terms that are no traces beside all.
        self._note(self._made + form.factors)
        left = min(form.terms, *most, *shape)
        held = max(self._made, form.factors)
        if form.terms >= min(shape) and min(shape) <= lowrank.WHOLE:
            self._reduce_pixels(form, left, held)
        else:
            self._reduce_factors(form, left, held)
        self._made = 0
        return form.of(left)

    def _reduce_pixels(self, form: Form, left: int, held: int) -> None:
        """As `lowrank._of_pixels`."""
        kept, pixels, order = form.of(left), form.pixels, min(form.shape)
        self._note(held + form.forming)
        worked_in = WORKSPACE * order**2 * self.on_device
        self._note(held + pixels + order * sum(form.shape) + max(kept.factors, worked_in))
        self._note(held + kept.factors + pixels + kept.forming)
        self._note(held + kept.factors + form.factors + form.forming)

    def _reduce_factors(self, form: Form, left: int, held: int) -> None:
        """As `lowrank._of_factors`, a batch after the other."""
        kept = form.of(left)
        for start in range(0, form.terms, lowrank.BATCH):
            order = min(lowrank.BATCH, form.terms - start)
            # Batches but the first are laid beside what those before have left.
            at_work = form.of(order + left if start else order)
            self._reduce_batch(at_work, kept, held + (start > 0) * (kept.factors + at_work.factors))

    def _reduce_batch(self, form: Form, kept: Form, held: int) -> None:
        orders = [min(form.terms, n) for n in form.shape]
        qs = sum(n * o for n, o in zip(form.shape, orders, strict=True))
        if self.on_device:  # what each R is a view of
            self._note(held + qs + form.factors + form.widest + PANEL * form.terms)
            held += form.factors
            self._note(held + qs + (4 + WORKSPACE) * form.terms**2)
        self._note(held + qs + form.widest + 4 * form.terms**2)
        held += qs + 5 * form.terms**2 + kept.factors
        if form.pixels <= lowrank.MEASURED:
            self._note(held + form.pixels + max(form.forming, kept.forming))
            self._note(held + form.factors + form.forming)
        else:
            self._note(held + self._replacing(form))

    @staticmethod
    def _replacing(form: Form) -> int:
        """Numbers that `lowrank.replaced` takes: absolute values, one factor once more, what it is
        off by, its Q, and products of that."""
        return form.factors + 5 * form.widest

    def _reduced_volume(self, parts: list[Form], most: Shape) -> Form:
        """As `volumes.reduced`, whose fullest groups are that of most columns, and the last."""
        shape = parts[0].shape
        every = [sum(own) for own in zip(*(p.columns for p in parts), strict=True)]
        left = tuple(map(min, every, most, shape))
        # Two cores that were not worth reducing may come here, for the terms that are expected.
        cores = 2 * min(self.script.few, *shape) ** 3
        held, kept = max(self._made, cores), Form(shape, left, True)
        groups = list(_groups(parts))
        for number, group in enumerate(groups):
            behind = [kept, *group] if number else group
            columns = tuple(map(sum, zip(*(p.columns for p in behind), strict=True)))
            self._compress(behind, Form(shape, columns, True), kept, held + number * kept.numbers)
        self._made = 0
        return kept

    def _compress(self, parts: list[Form], whole: Form, kept: Form, held: int) -> None:
        """As `volumes._compressed`."""
        orders = tuple(min(c, n) for c, n in zip(whole.columns, whole.shape, strict=True))
        inner = Form(orders, orders, True)
        qs = sum(n * o for n, o in zip(whole.shape, orders, strict=True))
        rs = sum(o * c for o, c in zip(orders, whole.columns, strict=True))
        core = inner.pixels
        if self.on_device:  # what each R is a view of
            rs = max(rs, whole.factors)
            self._note(held + qs + rs + whole.widest + PANEL * whole.terms)
        # The columns of the last axis side by side and a copy that becomes Q.
        self._note(held + qs + rs + 2 * whole.widest)
        held += qs + rs
        forming = max(Form(orders, p.columns, p.cored).forming for p in parts)
        self._note(held + forming + (core if len(parts) > 1 else 0))
        # The core in another order, and a copy of that to be decomposed.
        worked_in = (PANEL + WORKSPACE * max(orders)) * max(orders) * self.on_device
        self._note(held + 4 * core + worked_in)
        held += core + kept.numbers
        if kept.pixels <= volumes.MEASURED:
            formed = max(map(self._forming, (*parts, kept)))
            self._note(held + kept.pixels + formed)
            self._note(held + max(p.numbers + self._forming(p) for p in (*parts, kept)))
            return
        # Absolute values of all that the core is made of, and sums of what they make.
        cores = 2 * min(self.script.few, *kept.shape) ** 3
        sizes = max(sum(p.weights for p in parts), cores) + kept.weights + 3 * rs + qs
        self._note(held + sizes + core + max(forming, Form(orders, kept.columns, True).forming))
        held += core  # what it was rounded by
        self._note(held + core + max(n * o for n, o in zip(whole.shape, orders, strict=True)))
        own = max(parts, key=lambda p: p.factors)
        self._note(held + self._replacing(own) + own.weights)
        self._note(held + 2 * volumes.SLICES * math.prod(orders[1:]))

    # --- the image --------------------------------------------------------------------------

    def _finish(self, words: tuple[Words, ...], seen: Shape, whole: Shape) -> None:
        parts, signed = self._multiplied_out(words)
        self.held.clear()
        terms, shape = sum(p.terms for p in parts), parts[0].shape
        if signed and len(shape) > 2 and terms > self.script.few:
            form = self._reduced(parts, self.columns[IMAGE])
        else:
            form = self._joined(parts)
            if signed and not form.cored:
                self._note(self._made + form.factors)
        left = signed and form.cored
        formed = Form(shape if left else whole if signed else seen, form.columns, form.cored)
        pixels = formed.pixels
        if left:
            # Left as it is, with sums of columns.
            self._note(form.numbers + form.weights)
            narrow = 1 + (self.size if self.size < 8 else 0)
            self.forming = form.numbers + max(formed.forming, pixels + narrow * pixels // 8)
            return
        own = max(self._made, form.numbers)
        self._note(own + (form.widest if signed else 0))
        self._note(own + self._forming(formed))
        # In a narrower type, and which are too small; what that cuts off is a copy.
        self._note(pixels + pixels / 8)
        if self.size < 8:
            self._note(pixels * (1 + self.size / 8))


def _groups(parts: list[Form]) -> list[list[Form]]:
    """As `volumes._groups`."""
    found: list[list[Form]] = []
    group: list[Form] = []
    for form in parts:
        cuts = range(0, form.terms, volumes.BATCH) if not form.cored else (None,)
        for start in cuts:
            if start is None:
                group.append(form)
            else:
                group.append(form.of(min(volumes.BATCH, form.terms - start)))
            if sum(p.terms for p in group) >= volumes.BATCH:
                found.append(group)
                group = []
    if group:
        found.append(group)
    return found
