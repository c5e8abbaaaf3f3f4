"""Scripts: what has to be computed to bring a unit's image to an input, before any pixel is.

A graph is followed backwards with symbols for blocks of terms (`words`). Equal layers,
shortcuts and concatenations only change coefficients; what remains to be computed are a few steps:
multiplying out a sum of words, applying a map that is no power of the one before. On maps of known
size a script serves every unit of a map.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fastrf.engine.program import gain_below, mean_gain, mean_gains
from fastrf.engine.recompressed.maps import (
    Floats,
    Spans,
    content,
    largest_gain,
    plane_gains,
    plane_windows,
    reach,
    total_gain,
)
from fastrf.engine.recompressed.powers import Passage
from fastrf.engine.recompressed.words import Image, Sum, Symbol, Words, rounds
from fastrf.engine.scaled import ONE, ZERO, Scaled
from fastrf.errors import UnboundedError
from fastrf.lowering import Operation, PlaneGraph, Shares
from fastrf.maps import SpatialMap

FEW_TERMS = {2: 48, 3: 32}
"""A block of up to so many terms, by the number of axes, is not worth reducing. The work that a
volume makes grows with the fourth power of its columns: sooner and more often is cheaper."""

KEPT = {2: FEW_TERMS[2], 3: 8192}
"""Up to so many terms, by the number of axes, are kept as they are where pixels shall be right by
themselves. Of planes more are reduced sooner than multiplied out."""

TYPICAL_RANK = {2: 20, 3: 26}
"""Terms that a reduction leaves of a smooth image, by its axes: 6 to 22 in every network tried, and
17 to 38 columns an axis of volumes."""

MOST_WORDS = 4096
"""Most terms, over all powers of a block, before they are multiplied out."""

HIGHEST = 1000
"""log2 of what no value of `Words` may reach,"""

LOWERED = 900
"""and by how much they are lowered before they do."""


class Ahead(NamedTuple):
    """Gains from an image to the input: bounds of the largest pixel's and of the sum's."""

    largest: Scaled
    total: Scaled


HERE = Ahead(ONE, ONE)
"""Of what is on the input."""


@dataclass(frozen=True, slots=True, eq=False)
class Settle:
    """Multiplies words out to a block.

    Attributes:
        block: the result.
        words: what is added up.
        scale: factor of the block in the image that it is part of.
        ahead: what awaits that image.
        roundings: that have befallen a pixel of the words.
        reduces: whether the result is expected to have fewer terms.
    """

    block: Symbol
    words: tuple[Words, ...]
    scale: Scaled
    ahead: Ahead
    roundings: int
    reduces: bool


@dataclass(frozen=True, slots=True, eq=False)
class Apply:
    """Applies a transposed map to a block.

    Attributes:
        block: the result.
        source: what the map is applied to,
        value: times this.
        passage: the map, without its gain.
        loss: mean gain to the input of what falls into padding, as part of `Script.whole`.
        scale, ahead: as of `Settle`.
        roundings: that befall a pixel from the source to the result.
    """

    block: Symbol
    source: Symbol
    value: float
    passage: Passage
    loss: float
    scale: Scaled
    ahead: Ahead
    roundings: int


@dataclass(frozen=True, slots=True, eq=False)
class Neglect:
    """Words whose values, together, were changed by up to `share` of their sum."""

    words: tuple[Words, ...]
    share: float
    scale: Scaled
    ahead: Ahead


Step = Settle | Apply | Neglect


class Booked:
    """Σ_j amounts[j]·T^j of a block to which T is applied: what that loses is lost."""

    def __init__(self, block: Symbol, step: Passage) -> None:
        self.block, self.step = block, step
        self.amounts = np.zeros(64)

    def add(self, first: int, amounts: Floats) -> None:
        stop = first + len(amounts)
        if stop > len(self.amounts):
            self.amounts = np.concatenate([self.amounts, np.zeros(stop)])
        self.amounts[first:stop] += amounts


@dataclass(slots=True, eq=False)
class Script:
    """What has to be computed.

    Attributes:
        window: of the unit's map.
        support: of the input.
        whole: what would arrive if nothing were lost.
        operations: of the graph that were followed.
        seed: the unit.
        steps: in order.
        few: a block of up to so many terms is not reduced.
        booked: losses of powers, by block and map.
        final: the image on the input; None where nothing arrives.
    """

    window: Spans
    support: Spans
    whole: Scaled
    operations: int
    seed: Symbol
    few: int
    steps: list[Step] = field(default_factory=list)
    booked: dict[tuple[int, int], Booked] = field(default_factory=dict)
    final: Image | None = None

    @property
    def terms(self) -> int:
        """Most terms of an image, as far as is known beforehand."""
        sums = [step.words for step in self.steps if isinstance(step, Settle)]
        if self.final is not None:
            sums.append(self.final.sum.words)
        return max((sum(w.rank for w in words) for words in sums), default=1)

    def allowed(self, tol: float, size: tuple[int, ...] | None) -> float:
        """The part of a tolerance that one reduction may use up, on an input of this size: of a
        peak that is at least the mean pixel, divided among all layers."""
        return 0.0 if size is None else tol / (4 * max(self.operations, 1) * math.prod(size))

    def budget(self, allowed: float, ahead: Ahead, scale: Scaled) -> float:
        """What a reduction may drop of an image of that scale, with these gains before it."""
        room = (ahead.largest * scale).over(self.whole)
        return allowed / room if room else 0.0

    def last_uses(self) -> dict[int, int]:
        """The last step that reads each block; the number of steps stands for the image."""
        found: dict[int, int] = {}
        for at, step in enumerate(self.steps):
            if isinstance(step, Apply):
                found[step.source.number] = at
            else:
                found.update({w.block.number: at for w in step.words})
        if self.final is not None:
            found.update({w.block.number: len(self.steps) for w in self.final.sum.words})
        return found


def script(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    few: int | None = None,
) -> Script:
    """The script of a field, written at the first call.

    Args:
        graph, node, unit, input_node: as of `direct.propagate`.
        few: a block of up to so many terms is not reduced; `FEW_TERMS` by default.

    Raises:
        UnboundedError: a global operator is on the way and the grid is unbounded.
    """
    place = unit if graph.input_size is None else None
    few = FEW_TERMS[graph.ndim] if few is None else few
    return graph.once(
        ("script of terms", node, place, input_node, few),
        lambda: _Writer(graph, node, unit, input_node, few).written(),
    )


class _Writer:
    """Follows a graph backwards and writes down what has to be computed."""

    def __init__(
        self, graph: PlaneGraph, node: str, unit: tuple[int, ...], input_node: str, few: int
    ) -> None:
        self.graph, self.node, self.input_node, self.few = graph, node, input_node, few
        self.operations = graph.between(node, input_node)
        self.gains = mean_gains(graph, input_node)
        self.windows = plane_windows(graph, node, unit, input_node)
        self.images: dict[int, Image] = {}
        # Windows of a map of known size do not depend on the unit: equal layers of all maps of a
        # graph share their matrices.
        bounded = graph.input_size is not None
        self.passages: dict[object, Passage] = (
            graph.once("passages of terms", dict) if bounded else {}
        )
        self.ways: dict[object, tuple[Passage, ...]] = {}
        own, source = graph.planes_of[node], graph.planes_of[input_node]
        window = self.windows[own[0]]
        self.symbols = 0
        self.script = Script(
            window,
            self.windows.get(source[0], window),
            sum((self.gains[p] * graph.planes[p].share for p in own), ZERO),
            len(self.operations),
            self._symbol(tuple(count for _, count in window), 1, 0),
            few,
        )

    def written(self) -> Script:
        graph = self.graph
        for p in graph.planes_of[self.node]:
            share = Scaled.of(graph.planes[p].share)
            self.images[p] = Image.of(self.script.seed, share, 0)
        pending = Counter(p for op in self.operations for p, _ in op.targets)
        for op in reversed(self.operations):
            self._follow(op)
            for p, _ in op.targets:
                pending[p] -= 1
                if not pending[p]:
                    self.images.pop(p, None)
        for p in graph.planes_of[self.input_node]:
            if p in self.images:
                self.script.final = self._sum(self.script.final, self.images.pop(p), p)
        return self.script

    def _symbol(self, shape: tuple[int, ...], rank: int, roundings: int) -> Symbol:
        self.symbols += 1
        return Symbol(self.symbols - 1, rank, shape, roundings)

    def _follow(self, op: Operation) -> None:
        image = None
        for p, share in op.targets:
            if p in self.images:
                image = self._sum(image, self.images[p].times(share), p)
        if image is None:
            return
        image = image.times(op.gain)
        if op.maps:
            ways = self._ways(op)
            for at in range(len(op.maps) - 1, -1, -1):
                image = self._through(image, op, at, ways[at])
        for q, share in op.sources:
            if self.gains[q].mantissa:
                self.images[q] = self._sum(self.images.get(q), image.times(share), q)

    # --- maps -------------------------------------------------------------------------------

    def _ways(self, op: Operation) -> tuple[Passage, ...]:
        """The passages of an operation's maps, in forward order."""
        y, x = self.windows[op.targets[0][0]], self._window_of(op.sources)
        key = (id(op.maps), y, x)
        if key in self.ways:
            return self.ways[key]
        found = []
        for i in range(len(op.maps) - 1, -1, -1):
            move = op.maps[i]
            if move.is_global and move.size_in is None:
                raise UnboundedError(
                    f"{op.node}: each of its outputs reads the whole map, so the effective field "
                    f"is unbounded; give input_size, or ignore_global=True to leave such paths out"
                )
            below = x if i == 0 else _held(move, y)
            key_of_one = (content(move), y, below, move.size_in)
            if key_of_one not in self.passages:
                self.passages[key_of_one] = Passage(move, y, below)
            found.append(self.passages[key_of_one])
            y = below
        self.ways[key] = tuple(reversed(found))
        return self.ways[key]

    def _window_of(self, sources: Shares) -> Spans:
        return next(self.windows[q] for q, _ in sources if q in self.windows)

    def _through(self, image: Image, op: Operation, at: int, passage: Passage) -> Image:
        """The image behind the transposed map number `at` of an operation."""
        gain = op.maps[at].gain
        if passage.identity:
            return image.times(gain)
        words = image.sum.words
        if len(words) > 1 or not (passage.square and self._can_wait(words[0], passage)):
            image = self._settled(image, op, at)
        (own,) = image.sum.words
        image = image.times(gain)
        part = (image.scale * self._rest(op, at)).over(self.script.whole)
        roundings = image.roundings + passage.roundings
        if passage.square:
            self._book(own, passage, part)
            moved = Words(own.block, passage, own.first + 1, own.values)
            return Image(Sum((moved,)), image.scale, image.top, roundings)
        shape = tuple(count for _, count in passage.x)
        rank = own.block.rank * max(map(len, passage.taps.vectors))
        block = self._symbol(shape, rank, roundings + 1)
        value = float(own.values[0])
        ahead = self._ahead(op, at)
        self.script.steps.append(
            Apply(
                block,
                own.block,
                value,
                passage,
                part * value,
                image.scale,
                ahead,
                block.roundings - own.block.roundings,
            )
        )
        return Image.of(block, image.scale, block.roundings)

    def _settled(self, image: Image, op: Operation, at: int) -> Image:
        """The image as a multiple of one block."""
        words = image.sum.words
        terms, shape = sum(w.rank for w in words), words[0].block.shape
        reduces = terms > self.few
        if len(words) == 1 and words[0].plain and not reduces:
            return image
        if image.sum.settled is None:
            rank = min(terms, TYPICAL_RANK[len(shape)], *shape) if reduces else terms
            block = self._symbol(shape, rank, image.roundings + 1)
            ahead = self._ahead(op, at + 1)
            self.script.steps.append(
                Settle(block, words, image.scale, ahead, image.roundings, reduces)
            )
            image.sum.settled = block
        return image.rebased()

    def _can_wait(self, words: Words, step: Passage) -> bool:
        """Whether one power more of a map is put off."""
        if words.step is None:
            return words.block.rank <= self.few
        return words.step is step and words.rank <= MOST_WORDS

    def _book(self, words: Words, step: Passage, part: float) -> None:
        if not step.loses:
            return
        key = (words.block.number, id(step))
        if key not in self.script.booked:
            self.script.booked[key] = Booked(words.block, step)
        self.script.booked[key].add(words.first, words.values * part)

    # --- sums -------------------------------------------------------------------------------

    def _sum(self, a: Image | None, b: Image, plane: int) -> Image:
        """The sum of two images of one plane."""
        if a is None:
            return b
        a, b = a.rebased(), b.rebased()
        if b.scale.exponent > a.scale.exponent:
            a, b = b, a
        ratio = b.scale.over(a.scale)
        if ratio < 2.0**-LOWERED:
            self._neglect(b, 1.0, plane)
            return a
        found = list(a.sum.words)
        for new in b.sum.words:
            for i, old in enumerate(found):
                if old.matches(new):
                    found[i] = old.plus(new, ratio)
                    break
            else:
                found.append(new if ratio == 1.0 else new.times(ratio))
        top = max(a.top, b.top + math.log2(ratio)) + 1.0
        # A sum, and where scales differ their quotient and a product.
        more = 3 if rounds(ratio) else 1
        image = Image(Sum(tuple(found)), a.scale, top, max(a.roundings, b.roundings) + more)
        return image if top <= HIGHEST else self._lowered(image, plane)

    def _lowered(self, image: Image, plane: int) -> Image:
        """The image with room for its words' values to grow."""
        top = max(math.log2(float(w.values.max())) for w in image.sum.words)
        if top + 1 <= HIGHEST - 8:
            return Image(image.sum, image.scale, top + 1, image.roundings)
        # Each value may lose what lies below the smallest number; the largest one is near 2^1000.
        self._neglect(image, 2.0 ** (LOWERED - 1022), plane)
        words = tuple(w.times(2.0**-LOWERED) for w in image.sum.words)
        scale = image.scale * Scaled.of(1.0, LOWERED)
        return Image(Sum(words), scale, top + 1 - LOWERED, image.roundings)

    # --- gains ------------------------------------------------------------------------------

    def _rest(self, op: Operation, at: int) -> Scaled:
        """Mean gain to the input from behind the transposed map number `at`."""
        rest = gain_below(self.gains, op)
        for m in op.maps[:at]:
            rest = rest * mean_gain(m)
        return rest

    def _ahead(self, op: Operation, at: int) -> Ahead:
        """Bounds of the gains to the input from in front of the transposed map number at − 1."""
        return Ahead(*(self._bound(op, at, of_map) for of_map in (largest_gain, total_gain)))

    def _bound(self, op: Operation, at: int, of_map: Callable[[SpatialMap], float]) -> Scaled:
        found = gain_below(plane_gains(self.graph, self.input_node, of_map), op)
        for m in op.maps[:at]:
            found = found * of_map(m)
        return found

    def _neglect(self, image: Image, share: float, plane: int) -> None:
        bounds = (largest_gain, total_gain)
        ahead = (plane_gains(self.graph, self.input_node, bound)[plane] for bound in bounds)
        self.script.steps.append(Neglect(image.sum.words, share, image.scale, Ahead(*ahead)))


def _held(move: SpatialMap, y: Spans) -> Spans:
    """The window between two maps of one operation."""
    if move.size_in is not None:
        return tuple((0, n) for n in move.size_in)
    return reach(move, y)
