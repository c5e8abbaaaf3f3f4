"""The numbers of a script: blocks of terms, computed step by step, and what bounds their errors."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from fastrf.engine.recompressed.lowrank import Floats, Loss, Terms, joined, reduced, without_traces
from fastrf.engine.recompressed.maps import largest_gain, total_gain
from fastrf.engine.recompressed.powers import Block, Passage, raised
from fastrf.engine.recompressed.script import FEW_TERMS, Ahead, Apply, Neglect, Script, Settle
from fastrf.engine.recompressed.words import Words
from fastrf.engine.scaled import ONE, ZERO, Scaled

_LIFT = 900
# Nonnegative terms are multiplied out 2^900 above their value: the tails are not below the smallest
# number.


class Numbers:
    """The numbers of a script: its blocks, errors and losses.

    Attributes:
        largest, change: bounds of what is wrong with the final image, the largest pixel and the
            sum of all.
        condition: largest Σ|terms| over the mass, of any image.
        signed: whether there are factors of either sign.
        terms, rank, reductions: as of `Recompressed`.
    """

    def __init__(self, script: Script, size: tuple[int, ...] | None, allowed: float) -> None:
        self.script = script
        area = math.inf if size is None else math.prod(size)
        # Of a peak that is at least the mean pixel, divided among all layers.
        self.allowed = allowed / (4 * max(script.operations, 1) * area)
        self.blocks: dict[int, Block] = {}
        self.largest, self.change = ZERO, ZERO
        self.condition = 1.0
        self.signed = False
        self.terms, self.rank, self.reductions = 1, 1, 0
        self._lost = 0.0

    def follow(self, unit: tuple[int, ...], progress: Callable[[float], None]) -> None:
        """Computes all blocks of the script."""
        factors = []
        for u, (start, count) in zip(unit, self.script.window, strict=True):
            factor = np.zeros((count, 1))
            factor[u - start] = 1
            factors.append(factor)
        self.blocks[self.script.seed.number] = Block(Terms(tuple(factors), np.ones(1)))
        steps = self.script.steps
        for done, step in enumerate(steps, 1):
            if isinstance(step, Settle):
                self.blocks[step.block.number] = self._settled(step)
            elif isinstance(step, Apply):
                self.blocks[step.block.number] = self._applied(step)
            else:
                self._neglect(step)
            progress(done / (len(steps) + 1))
        progress(1.0)

    def lost(self) -> float:
        """What fell into padding, as a part of the script's `whole`."""
        found = self._lost
        for booked in self.script.booked.values():
            block = self.blocks[booked.block.number]
            value, exponent = block.under(booked.step).lost(booked.amounts)
            found += math.ldexp(value, exponent + block.exponent)
        return found

    def formed(self) -> tuple[Floats, Scaled, int] | None:
        """The pixels on the input, their scale, and the number of terms; None where all are 0."""
        image = self.script.final
        if image is None:
            return None
        terms, exponent = self._multiplied_out(image.sum.words, 0 if self.signed else _LIFT)
        scale = image.scale * Scaled.of(1.0, exponent)
        if self.signed:
            terms, loss = without_traces(terms)
            self._weigh(terms)
            self._count(loss, scale, Ahead(ONE, ONE))
        pixels = terms.form()
        np.maximum(pixels, 0, out=pixels)
        return (pixels, scale, terms.rank) if pixels.any() else None

    def _settled(self, step: Settle) -> Block:
        terms, exponent = self._multiplied_out(step.words)
        if terms.rank <= FEW_TERMS or len(terms.factors) > 2:
            return Block(terms, exponent)
        self.signed = True
        terms, loss = without_traces(terms)
        scale = step.scale * Scaled.of(1.0, exponent)
        room = (step.ahead.largest * scale).over(self.script.whole)
        terms, more = reduced(terms, self.allowed / room if room else 0.0)
        self.rank = max(self.rank, terms.rank)
        self.reductions += 1
        self._weigh(terms)
        self._count(loss + more, scale, step.ahead)
        return Block(terms, exponent)

    def _applied(self, step: Apply) -> Block:
        block, passage = self.blocks[step.source.number], step.passage
        terms = block.terms
        if passage.loses:
            share = Scaled.of(passage.lost(terms) * step.loss, block.exponent)
            self._lost += share.over(ONE)
        parts = [
            tuple(a(f) for a, f in zip(axes, terms.factors, strict=True))
            for axes in passage.operators
        ]
        factors = [np.concatenate(f, axis=1) for f in zip(*parts, strict=True)]
        exponent = block.exponent
        for axis, factor in enumerate(factors):
            factors[axis], shift = raised(factor)
            exponent -= shift
        moved = Terms(tuple(factors), np.tile(terms.weights * step.value, len(parts)))
        if not passage.move.separable:
            self.signed = True
            scale = step.scale * Scaled.of(1.0, block.exponent)
            self._count(_part(terms, passage.inexact * step.value), scale, step.ahead)
            self._weigh(moved)
        return Block(moved, exponent)

    def _neglect(self, step: Neglect) -> None:
        for words in step.words:
            block = self.blocks[words.block.number]
            off = step.share * float(words.values.sum()) * len(words.values)
            if words.step is not None:
                off *= _growth(words.step, words.first + len(words.values))
            scale = step.scale * Scaled.of(1.0, block.exponent)
            self._count(_part(block.terms, off), scale, step.ahead)

    def _multiplied_out(self, words: tuple[Words, ...], lift: int = 0) -> tuple[Terms, int]:
        """The terms of a sum of words, the largest weight near 2^lift, and log2 of the factor that
        they lack."""
        parts = [self.blocks[w.block.number].weighted(w.step, w.first, w.values) for w in words]
        top = max(int(exponents.max()) for _, _, exponents in parts) - lift
        found = joined(
            [
                Terms(factors, np.ldexp(weights, np.maximum(exponents - top, -2000)))
                for factors, weights, exponents in parts
            ]
        )
        self.terms = max(self.terms, found.rank)
        return found, top

    def _weigh(self, terms: Terms) -> None:
        """Notes how far an image's terms cancel each other."""
        own, total = float(terms.absolute_sums().sum()), terms.total()
        if own:
            self.condition = max(self.condition, own / total if total > 0 else math.inf)

    def _count(self, loss: Loss, scale: Scaled, ahead: Ahead) -> None:
        if loss.total:
            self.largest = self.largest + scale * ahead.largest * loss.largest
            self.change = self.change + scale * ahead.total * loss.total


def _part(terms: Terms, share: float) -> Loss:
    """Bound of a share of an image."""
    return Loss(share * float(terms.magnitudes().sum()), share * float(terms.absolute_sums().sum()))


def _growth(step: Passage, powers: int) -> float:
    """Bound of how far powers of a map without its gain raise pixels and sums: only tables do."""
    move = step.move
    base = max(1.0, largest_gain(move) / move.gain, total_gain(move) / move.gain)
    return base**powers if powers * math.log2(base) < 1000 else math.inf
