"""Fewer columns for the same volume: the Tucker form.

A volume is a core times three factors, Σ_tuv G[t, u, v]·a_t ⊗ b_u ⊗ c_v (Tucker 1966; Kolda and
Bader 2009, §4). Three forms were weighed. As terms of one column each, the ranks that images have
(20 to 40 an axis) make a thousand terms or more, and every layer would pay for each. A train of
three cores has a middle one of rank × pixels × rank, which every layer along that axis has to go
through. Here a layer touches three factors of rank columns, as in a plane; the core, some ten
thousand numbers, is touched by merges alone, which put cores side by side on the diagonal of a
larger one.

`reduced` decomposes one axis after the other, each time of what the axes before have left
(ST-HOSVD; Vannieuwenhoven, Vandebril and Meerbergen 2012): the squared changes of the axes add up
to that of the volume.

Error, as in `lowrank`: measured where the volume is small, from the factors where it is not. With
all axes but the first left in the coordinates of their Q's, whose rows are at most ρ long, a pixel
of the change is at most the product of the ρ times the length of its slice, and the sum of a slice
of n pixels at most √n times its length.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from fastrf.arrays import namespace
from fastrf.engine.recompressed.lowrank import (
    NOISE,
    NORMS,
    Floats,
    Loss,
    Terms,
    difference,
    fetched,
    kept_of,
    longest_row,
    replaced,
    rounding,
    single,
    sum_of,
    turned,
)

BATCH = 64
"""Terms without a core that are reduced at a time: work grows with the fourth power of columns."""

MEASURED = 1 << 18
"""Up to so many pixels the change of all of them is formed."""

SLICES = 16
"""Slices of a change of the core that are looked at at a time: all of them take several cores."""


def reduced(parts: Sequence[Terms], budget: float, noise: float = NOISE) -> tuple[Terms, Loss]:
    """A volume, given as a sum, with as few columns as the budget allows.

    Args:
        parts: the volume is their sum.
        budget: root sum of squares of what may be dropped,
        noise: or what part of √n times the largest singular value along an axis.

    Returns:
        The volume, with orthonormal factors and a core, and a bound of the change.
    """
    kept: list[Terms] = []
    loss = Loss()
    for group in _groups(parts):
        only, more = _compressed([*kept, *group], budget, noise)
        kept, loss = [only], loss + more
    return kept[0], loss


def _groups(parts: Sequence[Terms]) -> Iterator[list[Terms]]:
    """The parts, in groups of at least `BATCH` columns or one core."""
    group: list[Terms] = []
    for terms in parts:
        cuts = range(0, terms.rank, BATCH) if terms.diagonal else (None,)
        for start in cuts:
            group.append(terms if start is None else terms.chosen(slice(start, start + BATCH)))
            if sum(t.rank for t in group) >= BATCH:
                yield group
                group = []
    if group:
        yield group


def _compressed(parts: list[Terms], budget: float, noise: float) -> tuple[Terms, Loss]:
    sides = zip(*(t.factors for t in parts), strict=True)
    xp = parts[0].xp
    qrs = [xp.linalg.qr(xp.concatenate(side, axis=1)) for side in sides]
    inner = list(_in_coordinates(parts, [r for _, r in qrs]))
    core = sum_of(inner)
    turns, small = decomposed(core, budget / math.sqrt(len(qrs)), noise)
    kept = Terms(tuple(q @ u for (q, _), u in zip(qrs, turns, strict=True)), small)
    if math.prod(kept.shape) <= MEASURED:
        return kept, difference(parts, kept)
    inner.append(Terms(turns, small))
    # What the core was rounded by, and what measuring the change of it, which takes its place.
    rounded = rounding(inner[0].roundings + len(inner)) * sum_of([t.absolute() for t in inner])
    core -= inner[-1].form()
    qs = [q for q, _ in qrs]
    loss = replaced(parts, qrs) + turned(kept, qs, turns)
    return kept, loss + _of_slices(core, qs) + Terms(tuple(qs), rounded).bound()


def _in_coordinates(parts: Sequence[Terms], rs: Sequence[Floats]) -> Iterator[Terms]:
    """The parts in the coordinates of the Q's of all columns together."""
    at = [0] * len(rs)
    for terms in parts:
        columns = [f.shape[1] for f in terms.factors]
        ends = zip(rs, at, columns, strict=True)
        yield Terms(tuple(r[:, start : start + n] for r, start, n in ends), terms.weights)
        at = [start + n for start, n in zip(at, columns, strict=True)]


def decomposed(core: Floats, budget: float, noise: float) -> tuple[tuple[Floats, ...], Floats]:
    """Orthonormal columns for each axis, and the smaller core between them."""
    xp, turns = namespace(core), []
    for axis in range(core.ndim):
        flat = xp.moveaxis(core, axis, 0).reshape(core.shape[axis], -1)
        if flat.shape[1] > flat.shape[0]:
            flat = xp.linalg.qr(flat.T, mode="r").T
        u, s, _ = xp.linalg.svd(flat, full_matrices=False)
        (values,) = fetched(s)
        u = u[:, : kept_of(values, budget, noise)]
        turns.append(u)
        core = xp.moveaxis(xp.tensordot(u, core, (0, axis)), 0, axis)
    return tuple(turns), xp.ascontiguousarray(core)


def _of_slices(change: Floats, qs: Sequence[Floats]) -> Loss:
    """Bound of a change of the core, seen in the pixels."""
    first, *others = qs
    xp, norm = namespace(change), namespace(change).linalg.norm
    # Rounded by at most γ times the length of a row and that of the whole change.
    flat = change.reshape(len(change), -1)
    rows = range(0, len(first), SLICES)
    slices = xp.concatenate([norm(first[n : n + SLICES] @ flat, axis=1) for n in rows])
    slices += rounding(len(change)) * norm(first, axis=1) * single(norm(change))
    longest = math.prod(longest_row(q) for q in others)
    area = math.sqrt(math.prod(len(q) for q in others))
    return Loss(NORMS * longest * single(slices.max()), NORMS * area * single(slices.sum()))
