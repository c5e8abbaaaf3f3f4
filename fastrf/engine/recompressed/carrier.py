"""The numbers of a script: blocks of terms, computed step by step, and what bounds their errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from fastrf.engine.recompressed import lowrank, volumes
from fastrf.engine.recompressed.lowrank import (
    Loss,
    Number,
    Terms,
    fetched,
    joined,
    rounding,
    without_traces,
)
from fastrf.engine.recompressed.maps import largest_gain, total_gain
from fastrf.engine.recompressed.powers import Block, Matrices, Passage, Weighted, raised
from fastrf.engine.recompressed.script import HERE, Ahead, Apply, Booked, Neglect, Script, Settle
from fastrf.engine.recompressed.words import Image, Words
from fastrf.engine.scaled import ONE, ZERO, Scaled

_LIFT = 900
# Nonnegative terms are multiplied out 2^900 above their value: the tails are not below the smallest
# number.


class Tally:
    """A sum of numbers, each times a scale, which are read when it is asked for (`added_up`): until
    then nobody waits for a device."""

    def __init__(self) -> None:
        self.amounts: list[tuple[Number, Scaled]] = []

    def add(self, amount: Number, scale: Scaled) -> None:
        self.amounts.append((amount, scale))


def added_up(*tallies: Tally) -> list[Scaled]:
    """The sums, read from a device in one transfer."""
    there = [a for t in tallies for a, _ in t.amounts if not isinstance(a, float)]
    found = iter(fetched(*there) if there else ())
    return [
        sum((s * float(a if isinstance(a, float) else next(found)) for a, s in t.amounts), ZERO)
        for t in tallies
    ]


class Errors:
    """Bounds of what is wrong with the final image: its largest pixel, and the sum of all."""

    def __init__(self) -> None:
        self.largest, self.total = Tally(), Tally()

    def count(self, loss: Loss, scale: Scaled, ahead: Ahead) -> None:
        """Adds what is wrong with an image of that scale, with these gains before it."""
        self.largest.add(loss.largest, scale * ahead.largest)
        self.total.add(loss.total, scale * ahead.total)


class Wrong(NamedTuple):
    """What a script's numbers come to, once the image is there, as parts of its scale.

    Attributes:
        changed, rounded: as of `Numbers`.
        lost: what fell into padding, as a part of the script's `whole`.
    """

    changed: Loss
    rounded: Loss
    lost: float


class Found(NamedTuple):
    """The image on the input, terms times a scale, and whether factors may be negative."""

    terms: Terms
    scale: Scaled
    signed: bool


class Numbers:
    """The numbers of a script: its blocks, errors and losses.

    Attributes:
        changed: what reductions changed.
        rounded: what images with factors of either sign were rounded by.
        roundings: most that befell a pixel, one after the other, while all was nonnegative.
        lost: what fell into padding, as a part of the script's `whole`, of blocks that are done
            with.
        terms, rank, reductions: as of `Recompressed`.

    All arrays are those of `xp`. A GPU is waited for where a reduction decides (`lowrank`), once
    where a map is applied that is no power of the one before, for the largest entries of its
    factors, and of powers every so many for the same (`powers.raised`).
    """

    def __init__(
        self, script: Script, size: tuple[int, ...] | None, allowed: float, xp: Any = np
    ) -> None:
        self.script, self.xp = script, xp
        self.allowed = script.allowed(allowed, size)
        self.blocks: dict[int, Block] = {}
        self.changed, self.rounded = Errors(), Errors()
        self.roundings = 0
        self.terms, self.rank, self.reductions = 1, 1, 0
        self.lost = Tally()
        self._matrices: dict[int, Matrices] = {}
        self._last = script.last_uses()
        self._booked: dict[int, list[Booked]] = {}
        for booked in script.booked.values():
            self._booked.setdefault(booked.block.number, []).append(booked)

    def follow(self, unit: tuple[int, ...], progress: Callable[[float], None]) -> None:
        """Computes all blocks of the script."""
        factors = []
        for u, (start, count) in zip(unit, self.script.window, strict=True):
            factor = self.xp.zeros((count, 1))
            factor[u - start] = 1
            factors.append(factor)
        self.blocks[self.script.seed.number] = Block(Terms(tuple(factors), self.xp.ones(1)))
        steps = self.script.steps
        for done, step in enumerate(steps, 1):
            if isinstance(step, Settle):
                self.blocks[step.block.number] = self._settled(step, done)
            elif isinstance(step, Apply):
                self.blocks[step.block.number] = self._applied(step)
            else:
                self._neglect(step)
            self._release(done)
            progress(done / (len(steps) + 1))
        progress(1.0)

    def _release(self, done: int) -> None:
        """Lets go of the blocks that no step after this one reads."""
        for number in [n for n in self.blocks if self._last.get(n, -1) < done]:
            self._let_go(number)

    def _let_go(self, number: int) -> None:
        """Frees a block, and adds what its powers lost."""
        block = self.blocks.pop(number)
        for booked in self._booked.get(number, ()):
            powers = block.under(self._there(booked.step))
            value, exponent = powers.lost(booked.amounts)
            self.lost.add(value, Scaled.of(1.0, exponent + block.exponent))

    def _there(self, passage: Passage) -> Matrices:
        """What a passage multiplies with, where all is computed."""
        if self.xp is np:
            return passage.matrices
        if id(passage) not in self._matrices:
            self._matrices[id(passage)] = Matrices(passage, self.xp)
        return self._matrices[id(passage)]

    def wrong(self, scale: Scaled) -> Wrong:
        """What an image of this scale is wrong by, all read from a device at once."""
        errors = [t for e in (self.changed, self.rounded) for t in (e.largest, e.total)]
        *found, lost = added_up(*errors, self.lost)
        parts = [bound.over(scale) for bound in found]
        changed, rounded = (Loss(*pair).times(lowrank.SLACK) for pair in (parts[:2], parts[2:]))
        return Wrong(changed, rounded, lost.over(ONE))

    def found(self) -> Found | None:
        """The image on the input; None where none arrives. Lets go of all blocks."""
        image = self.script.final
        found = None if image is None else self._final(image)
        self._release(len(self.script.steps) + 1)
        return found

    def _final(self, image: Image) -> Found:
        words = image.sum.words
        signed = any(self.blocks[w.block.number].signed for w in words)
        parts, exponent = self._multiplied_out(words, 0 if signed else _LIFT)
        scale = image.scale * Scaled.of(1.0, exponent)
        self._round(words, image.roundings, image.scale, HERE)
        self._release(len(self.script.steps) + 1)
        if not signed:
            terms = _together(parts)
            self.roundings += terms.roundings
            return Found(terms, scale, signed)
        if len(words[0].block.shape) > 2 and sum(p.rank for p in parts) > self.script.few:
            terms, loss = self._reduced(parts, image.scale, exponent, HERE)
        else:
            terms, loss = _together(parts), Loss()
            if terms.diagonal:
                terms, loss = without_traces(terms)
        self.changed.count(loss, scale, HERE)
        self.rounded.count(terms.bound().times(rounding(terms.roundings)), scale, HERE)
        return Found(terms, scale, signed)

    def _settled(self, step: Settle, done: int) -> Block:
        parts, exponent = self._multiplied_out(step.words)
        reduces = sum(p.rank for p in parts) > self.script.few
        signed = reduces or any(self.blocks[w.block.number].signed for w in step.words)
        self._round(step.words, step.roundings, step.scale, step.ahead)
        self._release(done)  # what is worked on now is theirs no more
        if not reduces:
            return Block(_together(parts), exponent, signed=signed)
        terms, loss = self._reduced(parts, step.scale, exponent, step.ahead)
        self.changed.count(loss, step.scale * Scaled.of(1.0, exponent), step.ahead)
        return Block(terms, exponent, signed=True)

    def _reduced(
        self, parts: list[Terms], scale: Scaled, exponent: int, ahead: Ahead
    ) -> tuple[Terms, Loss]:
        """The sum of the parts, which are emptied, with fewer terms."""
        budget = self.script.budget(self.allowed, ahead, scale * Scaled.of(1.0, exponent))
        if len(parts[0].shape) == 2:
            terms, loss = without_traces(_together(parts))
            terms, more = lowrank.reduced(terms, budget)
            loss = loss + more
        else:
            terms, loss = volumes.reduced(parts, budget)
        self.rank = max(self.rank, terms.rank)
        self.reductions += 1
        return terms, loss

    def _applied(self, step: Apply) -> Block:
        block, passage = self.blocks[step.source.number], step.passage
        terms, matrices = block.terms, self._there(passage)
        if passage.loses:
            self.lost.add(matrices.lost(terms) * step.loss, Scaled.of(1.0, block.exponent))
        moved = matrices.moved(terms, step.value)
        weights = moved.weights
        factors, shifts = raised(moved.factors)
        exponent = block.exponent - sum(shifts)
        del moved
        signed = block.signed or not passage.move.separable
        if signed:
            scale = step.scale * Scaled.of(1.0, block.exponent)
            if not passage.move.separable:
                inexact = terms.bound().times(passage.inexact * step.value)
                self.changed.count(inexact, scale, step.ahead)
            if not block.signed:
                self.roundings = max(self.roundings, step.source.roundings + step.roundings)
            sizes = matrices.moved_absolutely(terms, step.value).bound()
            self.rounded.count(sizes.times(rounding(step.roundings)), scale, step.ahead)
        return Block(Terms(tuple(factors), weights), exponent, signed=signed)

    def _round(
        self,
        words: Sequence[Words],
        roundings: int,
        scale: Scaled,
        ahead: Ahead,
    ) -> None:
        """Counts what words that are multiplied out were rounded by since their blocks were made.

        What was nonnegative is wrong by so many roundings of itself, which maps ahead, being
        nonnegative too, do not change.

        Args:
            words, scale, ahead: as of `Settle`.
            roundings: that have befallen them since the unit.
        """
        for w in words:
            block = self.blocks[w.block.number]
            if not block.signed:
                self.roundings = max(self.roundings, roundings + 1)
                continue
            count = max(roundings - w.block.roundings, 0) + 1
            for part in self._weighted(block.absolute, w):
                top = int(part.exponents.max())
                loss = part.lowered(top).bound().times(rounding(count))
                self.rounded.count(loss, scale * Scaled.of(1.0, top), ahead)

    def _neglect(self, step: Neglect) -> None:
        for words in step.words:
            block = self.blocks[words.block.number]
            off = step.share * float(words.values.sum()) * len(words.values)
            if words.step is not None:
                off *= _growth(words.step, words.first + len(words.values))
            scale = step.scale * Scaled.of(1.0, block.exponent)
            self.changed.count(block.terms.bound().times(off), scale, step.ahead)

    def _weighted(self, block: Block, words: Words) -> list[Weighted]:
        step = None if words.step is None else self._there(words.step)
        return block.weighted(step, words.first, words.values)

    def _multiplied_out(self, words: tuple[Words, ...], lift: int = 0) -> tuple[list[Terms], int]:
        """The terms of a sum of words, the largest weight near 2^lift, and log2 of the factor that
        they lack."""
        parts = [part for w in words for part in self._weighted(self.blocks[w.block.number], w)]
        top = max(int(part.exponents.max()) for part in parts) - lift
        found = [part.lowered(top) for part in parts]
        self.terms = max(self.terms, sum(terms.rank for terms in found))
        return found, top


def _together(parts: list[Terms]) -> Terms:
    """The sum of the parts, which are emptied, so that they are not there twice."""
    terms = joined(parts)
    parts.clear()
    return terms


def _growth(step: Passage, powers: int) -> float:
    """Bound of how far powers of a map without its gain raise pixels and sums: only tables do."""
    move = step.move
    base = max(1.0, largest_gain(move) / move.gain, total_gain(move) / move.gain)
    return base**powers if powers * math.log2(base) < 1000 else math.inf
