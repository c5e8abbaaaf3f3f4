"""What the recompressed engine's work will be, read off its script.

The constants were measured with bench/bench_recompressed.py on one core of an Intel Xeon (Sapphire
Rapids, 2.6 GHz), about doubled for one (family 6, model 106, 2.8 GHz) that ran other programs too
(bench/limits.py), and predict to within a factor of about 3. BLAS is on one thread there.

On a GPU nothing was measured. What depends on sizes is taken to go by the bandwidth of its memory,
as for every engine (`cost.of_gpu`): of matrix products that is a guess between those GPUs that have
double precision in tensor cores and those that hardly have any. What does not is Python's share as
above, and what the host needs for each array function and each kernel of a decomposition
(`cost.LAUNCH_SECONDS`); of functions the numbers were counted on the tests' stand-in.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from fastrf.engine.cost import LAUNCH_SECONDS
from fastrf.engine.forecast import Forecast
from fastrf.engine.recompressed import volumes
from fastrf.engine.recompressed.holdings import Holdings
from fastrf.engine.recompressed.lowrank import (
    BATCH,
    LAST_ROUNDINGS,
    MEASURED,
    WHOLE,
    rounding,
)
from fastrf.engine.recompressed.maps import field_window
from fastrf.engine.recompressed.powers import Passage
from fastrf.engine.recompressed.ranks import IMAGE, Columns, columns, spectra
from fastrf.engine.recompressed.script import KEPT, Apply, Script, Settle, script
from fastrf.engine.recompressed.words import Words
from fastrf.engine.rehearsal import survey
from fastrf.lowering import PlaneGraph

CHANGE_ERROR = {2: 4e-14, 3: 5e-13}
"""Bound of the error of one reduction, or of one map whose taps are no product, relative to the
final peak, by the number of axes: 1e-14 to 4e-14 in many planes, 1e-13 to 4e-13 in volumes."""

MEASURED_ERROR = 1e-13
"""The same of a volume of which all pixels are formed for it: 4e-14 to 9e-14."""

FIELD_SECONDS = 4e-4
"""A field's fixed share: bounds of its errors, the windows of its pixels."""

STEP_SECONDS = 1.5e-4
"""Python's share of one step of a script."""

POWERS_SECONDS, BESIDE_SECONDS = 1e-4, 1e-4
"""Python's share of the first power of a block, and of each time that some of them are laid side by
side; both twice where a bound of them is made, too."""

CALL_SECONDS = 1.5e-5
"""Python's share of one power of a map, or of one map that is applied alone, all axes together."""

OPERATOR_SECONDS = 1.5e-4
"""Building the matrix of one map, all axes together. On maps of known size that happens once, and
is not counted."""

ENTRY_NANOSECONDS = 0.5
"""One weight of a matrix and one term."""

GEMM_NANOSECONDS = 0.05
"""One product and sum of a matrix product: the pixels of one term."""

QR_NANOSECONDS = 0.9
"""One pixel and one pair of terms of an orthogonal factor."""

SVD_NANOSECONDS = 1.2
"""One singular value decomposition over the cube of its order."""

CORE_NANOSECONDS = 2.0
"""One number of a core that is decomposed, and one column of its longest side."""

REDUCTION_SECONDS = 4e-4
"""The rest of a reduction."""

FIELD_CALLS, STEP_CALLS, POWER_CALLS = 90, 90, 6
"""Array functions of a field, of one step of its script with what bounds its error, and of one
power of a map;"""

REDUCTION_CALLS = {2: 80, 3: 500}
"""those of a reduction, by the number of axes."""

QR_KERNELS, SVD_KERNELS = 4, 8
"""Kernels one after the other that cuSOLVER needs for each column of an orthogonal factor (a
reflection and what it is applied to, there and back), and of a singular value decomposition. By
count, not by measurement."""

WORKING_BYTES = 1 << 16
"""What is at work besides: a few rows, Python's own."""

PIXEL_NANOSECONDS = 10.0
"""One pixel of the result: clamped, summed, divided."""


def of_recompressed(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    dtype: np.dtype[Any],
    tail: float | None,
    tol: float,
    on_device: bool = False,
) -> Forecast:
    """What `propagate_recompressed` will do, for a field without an obstacle.

    Neither `dtype` nor `tail` makes much of a difference to it.

    Args:
        on_device: whether a GPU does it. Memory is then what it takes there; the host holds the
            script and its matrices alone, and the factors of what is left in them.
    """
    where = (graph, node, unit, input_node)
    return _of(script(*where), *where, dtype, tol, on_device)


def of_powers(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    dtype: np.dtype[Any],
    tail: float | None,
    tol: float,
    on_device: bool = False,
) -> Forecast:
    """What `propagate_powers` will do, for a field that it serves (`is_relative`)."""
    where = (graph, node, unit, input_node)
    return _of(script(*where, KEPT[graph.ndim]), *where, dtype, 0.0, on_device)


of_recompressed_on_device = partial(of_recompressed, on_device=True)
of_powers_on_device = partial(of_powers, on_device=True)


def _of(
    written: Script,
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    dtype: np.dtype[Any],
    tol: float,
    on_device: bool,
) -> Forecast:
    # Only pixels that can be seen are formed.
    seen = survey(graph, node, unit, input_node, dtype, None).support
    shape = tuple(max(n, 1) for _, n in seen)
    whole = tuple(max(n, 1) for _, n in field_window(graph, node, unit, input_node))
    left = _left(graph, written, tol)
    count = Counts(written, left, shape)
    holdings = Holdings(written, shape, whole, dtype.itemsize, left, on_device)
    pixels = math.prod(shape)
    fixed, sized = FIELD_SECONDS + count.fixed, count.sized + 1e-9 * PIXEL_NANOSECONDS * pixels
    if graph.input_size is None:
        fixed += count.operators * OPERATOR_SECONDS
    if on_device:
        fixed += LAUNCH_SECONDS * (FIELD_CALLS + count.launches)
    else:  # nothing that threads could share
        fixed, sized = fixed + sized, 0.0
    return Forecast(
        written.operations,
        written.support,
        count.cells + pixels,
        fixed,
        sized,
        8 * max(holdings.fullest, holdings.forming) + WORKING_BYTES,
        1,
        formed=8 * max(0, holdings.forming - holdings.fullest),
    )


def _left(graph: PlaneGraph, written: Script, tol: float = 0.0) -> Columns:
    """Columns that reductions are expected to leave, to a tolerance; by default to the finest."""
    found = graph.once(("ranks of terms", id(written)), lambda: spectra(written))
    return columns(written, found, written.allowed(tol, graph.input_size))


def finest(graph: PlaneGraph, node: str, unit: tuple[int, ...], input_node: str) -> float:
    """The tolerance down to which the engine is expected to show its result right."""
    written = script(graph, node, unit, input_node)
    count = Counts(written, _left(graph, written))
    # Twice, for the pixel and for the sum of all; and both are parts of what is left of that.
    return count.error + 2 * rounding(count.roundings) * (1 + 1e-9)


def is_relative(graph: PlaneGraph, node: str, unit: tuple[int, ...], input_node: str) -> bool:
    """Whether all terms can be kept as they are, so that each pixel is right by itself
    (`propagate_powers`)."""
    few = KEPT[graph.ndim]
    written = script(graph, node, unit, input_node, few)
    many = graph.ndim > 2 and written.terms > few
    return not many and Counts(written, _left(graph, written)).changes == 0


class Counts:
    """What a script amounts to.

    Args:
        left: columns that reductions leave.
        seen: shape of the image that is formed; nothing: all of the script's window.

    Attributes:
        cells: pixels of all factors and images formed.
        fixed, sized: time that does not depend on sizes, and time that does.
        launches: array functions on a GPU, and kernels of its decompositions.
        operators: different maps.
        changes: how many reductions, and maps whose taps are no product.
        error: bound of what they change, relative to the final peak.
        roundings: that befall a pixel, one after the other.
    """

    def __init__(self, written: Script, left: Columns, seen: tuple[int, ...] = ()) -> None:
        self.cells, self.changes, self.roundings = 0, 0, 0
        self.error = 0.0
        self.fixed, self.sized = len(written.steps) * STEP_SECONDS, 0.0
        self.launches = len(written.steps) * STEP_CALLS
        self._powers: dict[tuple[int, int], int] = {}
        passages: set[int] = set()
        signed = self._signed = set[int]()
        # Most columns of the axes of each block.
        ranks = self._ranks = {written.seed.number: 1}
        for step in written.steps:
            if isinstance(step, Settle):
                number = step.block.number
                ranks[number] = terms = self._multiplied_out(step.words)
                if terms > written.few:
                    ranks[number] = self._reduce(step.block.shape, terms, left[number])
                    signed.add(number)
                elif signed.intersection(w.block.number for w in step.words):
                    signed.add(step.block.number)
                passages.update(id(w.step) for w in step.words)
            elif isinstance(step, Apply):
                count = max(map(len, step.passage.taps.vectors))
                ranks[step.block.number] = ranks[step.source.number] * count
                self._apply(step.passage, ranks[step.block.number])
                if not step.passage.move.separable:
                    self._change(CHANGE_ERROR[len(step.block.shape)])
                    signed.add(step.block.number)
                elif step.source.number in signed:
                    signed.add(step.block.number)
                passages.add(id(step.passage))
        if written.final is not None:
            words = written.final.sum.words
            terms, shape = self._multiplied_out(words), words[0].block.shape
            any_signed = signed.intersection(w.block.number for w in words)
            if len(shape) > 2 and terms > written.few and any_signed:
                terms = self._reduce(shape, terms, left[IMAGE])
            self.sized += 1e-9 * GEMM_NANOSECONDS * math.prod(seen or shape) * terms
            self.roundings = written.final.roundings + terms + len(shape) + LAST_ROUNDINGS + 1
            passages.update(id(w.step) for w in words)
        self.operators = len(passages)

    def _multiplied_out(self, words: tuple[Words, ...]) -> int:
        """The terms of words, and the powers that are yet to be made of them."""
        for w in words:
            if w.step is not None:
                key = (w.block.number, id(w.step))
                wanted = w.first + len(w.values) - 1
                more = max(0, wanted - self._powers.get(key, 0))
                ways = 1 + (w.block.number in self._signed)
                self.fixed += ways * (BESIDE_SECONDS + (key not in self._powers) * POWERS_SECONDS)
                self._apply(w.step, self._ranks[w.block.number], ways * more)
                self._powers[key] = max(wanted, self._powers.get(key, 0))
        return sum(self._ranks[w.block.number] * len(w.values) for w in words)

    def _apply(self, passage: Passage, terms: int, times: int = 1) -> None:
        pixels = sum(n for _, n in passage.x)
        self.cells += times * pixels * terms
        entries = pixels * passage.roundings / len(passage.x)
        self.fixed += times * CALL_SECONDS
        self.launches += times * POWER_CALLS
        self.sized += times * 1e-9 * ENTRY_NANOSECONDS * entries * terms

    def _change(self, error: float, times: int = 1) -> None:
        self.changes += times
        self.error += times * error

    def _reduce(self, shape: tuple[int, ...], terms: int, left: tuple[int, ...]) -> int:
        """Counts a reduction, and says how many columns it leaves."""
        rank = max(min(terms, *pair) for pair in zip(left, shape, strict=True))
        reduce = self._reduce_plane if len(shape) == 2 else self._reduce_volume
        reduce(shape, terms, rank)
        return rank

    def _reduce_volume(self, shape: tuple[int, ...], terms: int, rank: int) -> None:
        batches = math.ceil(terms / volumes.BATCH)
        at_once = min(terms, volumes.BATCH + (batches > 1) * rank)
        columns, pixels = [min(at_once, n) for n in shape], math.prod(shape)
        work = CORE_NANOSECONDS * math.prod(columns) * max(columns)
        work += QR_NANOSECONDS * sum(shape) * max(columns) ** 2
        measured = pixels <= volumes.MEASURED
        if measured:
            work += 8 * GEMM_NANOSECONDS * pixels * max(columns)
        self._change(MEASURED_ERROR if measured else CHANGE_ERROR[3], batches)
        self.cells += pixels if measured else sum(shape) * max(columns)
        self._reductions(batches, work, len(shape))
        # Of the factors, and of the core along each axis.
        self.launches += batches * (2 * QR_KERNELS + SVD_KERNELS) * sum(columns)

    def _reductions(self, batches: int, work: float, ndim: int) -> None:
        self.fixed += batches * REDUCTION_SECONDS
        self.sized += batches * 1e-9 * work
        self.launches += batches * REDUCTION_CALLS[ndim]

    def _reduce_plane(self, shape: tuple[int, ...], terms: int, rank: int) -> None:
        pixels, order = math.prod(shape), min(terms, BATCH, *shape)
        batches, factors = 1, 0
        if terms >= min(shape) and min(shape) <= WHOLE:
            order, work = min(shape), GEMM_NANOSECONDS * pixels * (terms + min(shape))
        else:
            batches, factors = max(1, math.ceil(terms / BATCH)), 2
            if batches > 1:  # beside what the batches before have left
                order = min(BATCH + rank, *shape)
            work = QR_NANOSECONDS * sum(shape) * order**2
            if pixels <= MEASURED:
                work += 4 * GEMM_NANOSECONDS * pixels * order
        work += SVD_NANOSECONDS * order**3
        self._change(CHANGE_ERROR[2], batches)
        self.cells += pixels
        self._reductions(batches, work, 2)
        self.launches += batches * (factors * QR_KERNELS + SVD_KERNELS) * order
