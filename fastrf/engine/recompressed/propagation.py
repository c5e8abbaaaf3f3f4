"""The effective receptive field of one unit in terms, with the bound of its error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastrf.engine.direct import Propagated
from fastrf.engine.recompressed.carrier import Numbers
from fastrf.engine.recompressed.lowrank import LAST_ROUNDINGS, Floats, Terms, fetched, rounding
from fastrf.engine.recompressed.maps import Spans, field_window
from fastrf.engine.recompressed.script import KEPT, script
from fastrf.engine.recompressed.tucker import TuckerImage
from fastrf.engine.scaled import Scaled
from fastrf.engine.sight import sight_of
from fastrf.engine.terms import held
from fastrf.errors import EmptyFieldError, InputError, ToleranceError
from fastrf.lowering import PlaneGraph
from fastrf.maps import Everything, SpatialMap, Table, Window


def obstacle(graph: PlaneGraph, node: str, input_node: str) -> str | None:
    """Why the field of `node` is not carried in terms; None where it is."""
    if graph.ndim == 1:
        return "a line has no factors"
    for op in graph.between(node, input_node):
        if op.is_global and graph.input_size is None:
            return f"{op.node} reads the whole of an unbounded map"
        if any(map(_too_large, op.maps)):
            return f"{op.node} has too many connections along an axis of its map"
    return None


MOST_CONNECTIONS = 1 << 24
"""Of pixels along one axis: matrices serve all units of a map, and take 16 bytes for each."""


def _too_large(move: SpatialMap) -> bool:
    if move.size_in is None or move.size_out is None:
        return False
    for axis, read, written in zip(move.axes, move.size_in, move.size_out, strict=True):
        if isinstance(axis, Table):
            count = written * axis.taps.shape[1]
        elif isinstance(axis, Everything):
            count = read * written
        else:
            count = axis.kernel * (written if isinstance(axis, Window) else read)
        if count > MOST_CONNECTIONS:
            return True
    return False


@dataclass(frozen=True, slots=True)
class Recompressed:
    """An image, and how it came about.

    Attributes:
        propagated: as of `direct.propagate`.
        error: bound of the pixels' errors by reductions, relative to the peak.
        rounding: bound of their errors by rounding, relative to the peak; without that of
            casting to float32.
        terms: most terms of an image.
        rank: most that a reduction has left.
        reductions: how often terms were reduced.
        relative: whether no factor has ever been negative. A pixel is then wrong by `rounding`
            times itself and `error` times the peak; and `error` is 0, but for gains that differ by
            more than 2^900. Below 1e-290 of the sum nothing is promised.
    """

    propagated: Propagated
    error: float
    rounding: float
    terms: int
    rank: int
    reductions: int
    relative: bool

    @property
    def bound(self) -> float:
        """Bound of every pixel's error, relative to the peak."""
        return self.error + self.rounding


def propagate_recompressed(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    *,
    kernels: Any,
    dtype: Any = np.float64,
    workers: int = 1,
    tail: float | None = None,
    tol: float = 1e-12,
    progress: Callable[[float], None] | None = None,
    xp: Any = np,
) -> Propagated:
    """As `direct.propagate`, for fields without an `obstacle`, right to `tol` of the peak.

    Planes are handed back as pixels, volumes whose terms had to be reduced in the Tucker form. All
    is computed with arrays of `xp`, in float64; `kernels` and `workers` have nothing to do here.

    Raises:
        ToleranceError: `tol` is finer than what can be shown of the result.
    """
    where = (graph, node, unit, input_node)
    options: dict[str, Any] = {"dtype": dtype, "tail": tail, "tol": tol, "progress": progress}
    return recompress(*where, **options, xp=xp).propagated


def propagate_powers(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    *,
    kernels: Any,
    dtype: Any = np.float64,
    workers: int = 1,
    tail: float | None = None,
    progress: Callable[[float], None] | None = None,
    xp: Any = np,
) -> Propagated:
    """As `propagate_recompressed`, for fields of which no terms have to be reduced
    (`forecast.is_relative`): right pixel by pixel, a few ulp a layer."""
    where = (graph, node, unit, input_node)
    found = _run(*where, np.dtype(dtype), tail, 0.0, progress, KEPT[graph.ndim], xp)
    assert found.relative, "a field whose terms have to be reduced"
    return found.propagated


def recompress(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    *,
    dtype: Any = np.float64,
    tail: float | None = None,
    tol: float = 1e-12,
    progress: Callable[[float], None] | None = None,
    xp: Any = np,
) -> Recompressed:
    """The effective receptive field of one unit, with the bound of its error.

    Args:
        graph, node, unit, input_node, dtype, tail, progress, xp: as of `direct.propagate`; what
            `tail` allows is dropped at the end.
        tol: greatest error of a pixel, relative to the peak.

    Raises:
        InputError: as `propagate_recompressed`; or no path leads from the unit to the input.
        EmptyFieldError: nothing of what the unit reads is on the input.
    """
    found = None
    # What may be dropped rests on a guess of the peak; where that was too bold, on none.
    for allowed in (tol, 0.0):
        where = (graph, node, unit, input_node)
        found = _run(*where, np.dtype(dtype), tail, allowed, progress, xp=xp)
        if found.bound <= tol:
            return found
    assert found is not None
    raise ToleranceError(
        f"tol={tol:g} is finer than the {found.bound:.1e} of the peak to which this field can be "
        f"shown to be right in terms; use a larger tol or method='direct'"
    )


def _run(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
    input_node: str,
    dtype: np.dtype[Any],
    tail: float | None,
    allowed: float,
    progress: Callable[[float], None] | None,
    few: int | None = None,
    xp: Any = np,
) -> Recompressed:
    written = script(graph, node, unit, input_node, few)
    if not written.operations and node != input_node:
        raise InputError(
            f"no path leads from {node!r} to the input {input_node!r}; "
            f"choose another output or input"
        )
    carrier = Numbers(written, graph.input_size, allowed, xp)
    carrier.follow(unit, progress or (lambda share: None))
    seen = _seen(carrier, field_window(graph, node, unit, input_node), dtype, tail)
    if seen is None:
        raise EmptyFieldError(
            f"unit={unit} of {node!r} reads nothing of {input_node!r}, only padding "
            f"or the gaps of transposed convolutions; choose another unit"
        )
    changed, rounded, lost = carrier.wrong(seen.scale)
    # What was nonnegative is wrong by so much of itself, and so is its sum.
    share = rounding(carrier.roundings + LAST_ROUNDINGS)
    behind = 1 - (changed.total + rounded.total) / seen.total - share
    error, signed = (
        (loss.largest / seen.peak + loss.total / seen.total) / behind if behind > 0 else math.inf
        for loss in (changed, rounded)
    )
    mass = Scaled.of(seen.total) * seen.scale
    arrived = mass.over(written.whole)
    return Recompressed(
        Propagated(
            seen.image,
            seen.origin,
            mass * (1 - seen.dropped),
            lost / (lost + arrived),
            seen.dropped * arrived / (lost + arrived),
        ),
        error,
        signed + (2 * share / behind if behind > 0 else math.inf),
        carrier.terms,
        carrier.rank,
        carrier.reductions,
        not seen.signed,
    )


class _Seen(NamedTuple):
    """What terms look like.

    Attributes:
        scale, signed: as of `carrier.Found`.
        image, origin: the normalised image and where it begins.
        total, peak: of the terms, before `tail`; the peak a lower bound.
        dropped: share of the total that `tail` dropped.
    """

    scale: Scaled
    signed: bool
    image: Any
    origin: tuple[int, ...]
    total: float
    peak: float
    dropped: float


def _seen(carrier: Numbers, field: Spans, dtype: np.dtype[Any], tail: float | None) -> _Seen | None:
    """The image on the input, of which the unit sees a field; None where nothing of it is
    positive.

    Of a GPU three small things cross to the host, one after the other: what bounds the rows, sum
    and peak, and which rows are used; with `tail` a profile an axis. A volume that is left in its
    factors crosses with them.
    """
    found = carrier.found()
    if found is None:
        return None
    terms, scale, signed = found
    del found
    if signed and not terms.diagonal:
        origin = tuple(start for start, _ in carrier.script.support)
        *here, core = fetched(*terms.factors, terms.weights)
        image = TuckerImage(Terms(tuple(here), core), origin, dtype, carrier.xp)
        return _volume(image, scale, tail)
    parts, origin = [], tuple(start for start, _ in field)
    for factor, (start, count), (first, _) in zip(
        terms.factors, field, carrier.script.support, strict=True
    ):
        parts.append(factor[start - first : start - first + count])
    terms = Terms(tuple(parts), terms.weights)
    # Rows of which nothing will be seen are not formed.
    box = _visible(terms, signed, float(np.finfo(dtype).tiny))
    if box is None:
        return None
    factors = tuple(f[slice(*ends)] for f, ends in zip(terms.factors, box, strict=True))
    origin = tuple(o + first for o, (first, _) in zip(origin, box, strict=True))
    pixels = Terms(factors, terms.weights).form()
    del terms, parts, factors  # no more than two images at a time
    if signed:
        np.maximum(pixels, 0, out=pixels)
    total, peak = map(float, fetched(pixels.sum(), pixels.max()))
    if not peak:
        return None
    pixels, origin, dropped = _without_tail(pixels, origin, total * (tail or 0.0))
    pixels /= total - dropped
    array = pixels.astype(dtype, copy=False)
    del pixels
    array[array < np.finfo(dtype).tiny] = 0
    array, origin, _ = sight_of(carrier.xp).finished(array, origin, ())
    return _Seen(scale, signed, array, origin, total, peak, dropped / total)


def _visible(terms: Terms, signed: bool, tiny: float) -> list[tuple[int, int]] | None:
    """First and last + 1 of the rows, per axis, beside which every pixel is below `tiny` of the sum
    of all; None where nothing is there."""
    if 0 in terms.shape:
        return None
    tops = [np.abs(f).max(axis=0) if signed else f.max(axis=0) for f in terms.factors]
    bounds = []
    for axis, factor in enumerate(terms.factors):
        values = np.abs(terms.weights)
        for number, top in enumerate(tops):
            values = values * top if number != axis else values
        bounds.append((np.abs(factor) if signed else factor) @ values)
    total, *bounds = fetched(terms.xp.asarray(terms.total()), *bounds)
    least, box = tiny * max(float(total), 0.0), []
    for most in bounds:
        used = np.flatnonzero((most >= least) & (most > 0))
        if not used.size:
            return None
        box.append((int(used[0]), int(used[-1]) + 1))
    return box


def _volume(image: TuckerImage, scale: Scaled, tail: float | None) -> _Seen | None:
    """The same, left in factors."""
    box = []
    for factor in image.terms.factors:
        used = np.flatnonzero(factor.any(axis=1))
        if not used.size:
            return None
        box.append((int(used[0]), int(used[-1]) + 1))
    image = image.cropped(box)
    total, peak = image.total, image.brightest_seen
    if not (total > 0 and peak > 0):
        return None
    dropped = 0.0
    if tail:
        image = image.cropped(
            [held(image.profile(a), tail / image.ndim) for a in range(image.ndim)]
        )
        dropped = max(0.0, 1 - image.total / total)
    return _Seen(scale, True, image.normalised(), image.origin, total, peak, dropped)


def _without_tail(
    pixels: Floats, origin: tuple[int, ...], tail: float
) -> tuple[Floats, tuple[int, ...], float]:
    """Without outer slabs that together hold at most `tail`; and what they held."""
    if not tail:
        return pixels, origin, 0.0
    whole = pixels.sum()
    for axis in range(pixels.ndim):
        (profile,) = fetched(pixels.sum(axis=tuple(a for a in range(pixels.ndim) if a != axis)))
        budget = tail / (2 * pixels.ndim)
        first = int(np.searchsorted(np.cumsum(profile), budget, side="right"))
        last = len(profile) - int(np.searchsorted(np.cumsum(profile[::-1]), budget, side="right"))
        pixels = pixels[(slice(None),) * axis + (slice(first, last),)]
        origin = (*origin[:axis], origin[axis] + first, *origin[axis + 1 :])
    return pixels, origin, float(*fetched(whole - pixels.sum()))
