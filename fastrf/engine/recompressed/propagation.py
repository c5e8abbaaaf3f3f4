"""The effective receptive field of one unit in terms, with the bound of its error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fastrf.engine.direct import Propagated
from fastrf.engine.recompressed.carrier import Numbers
from fastrf.engine.recompressed.lowrank import Floats, rounding
from fastrf.engine.recompressed.script import script
from fastrf.engine.scaled import Scaled
from fastrf.engine.sight import trimmed
from fastrf.errors import EmptyFieldError, InputError, ToleranceError
from fastrf.lowering import PlaneGraph

MOST_TERMS_3D = 8192
"""Most terms of a volume, which nothing reduces."""


def obstacle(graph: PlaneGraph, node: str, input_node: str) -> str | None:
    """Why the field of `node` is not carried in terms; None where it is."""
    if graph.ndim == 1:
        return "a line has no factors"
    for op in graph.between(node, input_node):
        if op.is_global and graph.input_size is None:
            return f"{op.node} reads the whole of an unbounded map"
        if graph.ndim > 2 and any(not m.separable for m in op.maps):
            return f"the taps of {op.node} are no product of one vector per axis"
    if graph.ndim == 2:
        return None
    count = script(graph, node, (0,) * graph.ndim, input_node).terms
    if count > MOST_TERMS_3D:
        return f"its image has {count} separable terms, which in 3-D nothing reduces"
    return None


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

    All is computed on the host, in float64, and the image moved to `xp`; `kernels` and `workers`
    have nothing to do here.

    Raises:
        ToleranceError: `tol` is finer than what can be shown of the result.
    """
    found = recompress(
        graph, node, unit, input_node, dtype=dtype, tail=tail, tol=tol, progress=progress
    ).propagated
    return replace(found, image=xp.asarray(found.image))


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
) -> Recompressed:
    """The effective receptive field of one unit, with the bound of its error.

    Args:
        graph, node, unit, input_node, dtype, tail, progress: as of `direct.propagate`; what
            `tail` allows is dropped at the end.
        tol: greatest error of a pixel, relative to the peak.

    Raises:
        InputError: as `propagate_recompressed`; or no path leads from the unit to the input.
        EmptyFieldError: nothing of what the unit reads is on the input.
    """
    found = None
    # What may be dropped rests on a guess of the peak; where that was too bold, on none.
    for allowed in (tol, 0.0):
        found = _run(graph, node, unit, input_node, np.dtype(dtype), tail, allowed, progress)
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
) -> Recompressed:
    written = script(graph, node, unit, input_node)
    if not written.operations and node != input_node:
        raise InputError(
            f"no path leads from {node!r} to the input {input_node!r}; "
            f"choose another output or input"
        )
    carrier = Numbers(written, graph.input_size, allowed)
    carrier.follow(unit, progress or (lambda share: None))
    found = carrier.formed()
    if written.final is None or found is None:
        raise EmptyFieldError(
            f"unit={unit} of {node!r} reads nothing of {input_node!r}, only padding "
            f"or the gaps of transposed convolutions; choose another unit"
        )
    pixels, scale, terms = found
    total = float(pixels.sum())
    peak = float(pixels.max())
    largest, change = carrier.largest.over(scale), carrier.change.over(scale)
    error = math.inf
    if change < total:
        error = (largest / peak + change / total) / (1 - change / total)
    roundings = written.final.roundings + terms + 2
    origin = tuple(start for start, _ in written.support)
    pixels, origin, dropped = _without_tail(pixels, origin, total * (tail or 0.0))
    kept = total - dropped
    array = (pixels / kept).astype(dtype)
    array[array < np.finfo(dtype).tiny] = 0
    array, origin = trimmed(array, origin)
    mass = Scaled.of(total) * scale
    arrived = mass.over(written.whole)
    lost = carrier.lost()
    return Recompressed(
        Propagated(
            np.ascontiguousarray(array),
            origin,
            mass * (kept / total),
            lost / (lost + arrived),
            dropped / total * arrived / (lost + arrived),
        ),
        error,
        rounding(roundings) * carrier.condition,
        carrier.terms,
        carrier.rank,
        carrier.reductions,
        not carrier.signed,
    )


def _without_tail(
    pixels: Floats, origin: tuple[int, ...], tail: float
) -> tuple[Floats, tuple[int, ...], float]:
    """Without outer slabs that together hold at most `tail`; and what they held."""
    whole = float(pixels.sum())
    if not tail:
        return pixels, origin, 0.0
    for axis in range(pixels.ndim):
        profile = pixels.sum(axis=tuple(a for a in range(pixels.ndim) if a != axis))
        budget = tail / (2 * pixels.ndim)
        first = int(np.searchsorted(np.cumsum(profile), budget, side="right"))
        last = len(profile) - int(np.searchsorted(np.cumsum(profile[::-1]), budget, side="right"))
        pixels = pixels[(slice(None),) * axis + (slice(first, last),)]
        origin = (*origin[:axis], origin[axis] + first, *origin[axis + 1 :])
    return pixels, origin, whole - float(pixels.sum())
