"""Volumes with fewer columns: the same pixels, up to what is said to be lost."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastrf.engine.recompressed import holdings, volumes
from fastrf.engine.recompressed.holdings import Form
from fastrf.engine.recompressed.lowrank import NOISE, Terms

RNG = np.random.default_rng(3)
SHAPE = (9, 11, 8)


def terms(rank: int, shape: tuple[int, ...] = SHAPE) -> Terms:
    return Terms(tuple(RNG.random((n, rank)) for n in shape), RNG.random(rank))


def tucker(columns: tuple[int, ...], shape: tuple[int, ...] = SHAPE) -> Terms:
    factors = tuple(RNG.random((n, c)) for n, c in zip(shape, columns, strict=True))
    return Terms(factors, RNG.random(columns))


SUMS = {
    "a few terms": [terms(3)],
    "more terms than are joined at a time": [terms(150)],
    "a core and terms": [tucker((5, 3, 4)), terms(70), tucker((2, 7, 1))],
    "a core of more columns than are joined at a time": [tucker((90, 3, 2)), terms(2)],
}


@pytest.mark.parametrize(
    "columns",
    [
        [3],
        [150],
        [volumes.BATCH],
        [volumes.BATCH, 2],
        [volumes.BATCH - 1, 1, 2 * volumes.BATCH, 1],
        [40, (3, 24, 5), 7, (2, 2, 2)],
        [(90, 3, 2), 2],
    ],
)
def test_groups_are_foretold(columns: list[int | tuple[int, int, int]]) -> None:
    forms, parts = [], []
    for count in columns:
        each = count if isinstance(count, tuple) else (count,) * 3
        forms.append(Form(SHAPE, each, isinstance(count, tuple)))
        factors = tuple(np.ones((n, c)) for n, c in zip(SHAPE, each, strict=True))
        parts.append(Terms(factors, np.ones(count)))
    foretold = [[form.terms for form in group] for group in holdings._groups(forms)]
    assert foretold == [[p.rank for p in group] for group in volumes._groups(parts)]


@pytest.mark.parametrize("name", SUMS)
def test_the_pixels_stay(name: str) -> None:
    parts = SUMS[name]
    whole = sum(part.form() for part in parts)
    found, loss = volumes.reduced(parts, 0.0, NOISE)
    assert all(n <= len(f) for n, f in zip(found.weights.shape, found.factors, strict=True))
    change = np.abs(found.form() - whole)
    # Forming both rounds every pixel by some γ of its terms, all of which are positive.
    rounded = 1000 * NOISE * whole.max()
    assert change.max() <= loss.largest + rounded
    assert change.sum() <= loss.total + rounded * change.size
    assert loss.largest <= 1e-11 * whole.max()


def test_the_budget_is_kept() -> None:
    """Root sum of squares of what is dropped; the columns that are left are fewer."""
    whole = terms(40, (20, 21, 22))
    pixels = whole.form()
    budget = 1e-2 * float(np.linalg.norm(pixels))
    found, loss = volumes.reduced([whole], budget, NOISE)
    change = found.form() - pixels
    assert np.linalg.norm(change) <= budget
    assert np.abs(change).max() <= loss.largest
    assert max(found.weights.shape) < 20
    for factor in found.factors:
        np.testing.assert_allclose(factor.T @ factor, np.eye(factor.shape[1]), atol=1e-14)


def test_large_volumes_are_bounded_by_their_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without forming the change; the bound is larger than what is measured, and not by much."""
    whole = terms(30, (18, 17, 16))
    pixels = whole.form()
    budget = 1e-3 * float(np.linalg.norm(pixels))
    _, measured = volumes.reduced([whole], budget, NOISE)
    monkeypatch.setattr(volumes, "MEASURED", 0)
    found, bound = volumes.reduced([whole], budget, NOISE)
    change = np.abs(found.form() - pixels)
    assert change.max() <= bound.largest
    assert change.sum() <= bound.total
    assert measured.largest <= bound.largest <= 200 * measured.largest
    # No slice's length exceeds the budget, and pixels are that times lengths of rows.
    assert bound.total <= 2 * budget * math.sqrt(pixels.size) * math.sqrt(len(pixels))


def test_work_at_a_time_is_limited() -> None:
    """Terms go in groups of at most twice the batch; a core is one piece."""
    batch = volumes.BATCH
    sizes = [[p.rank for p in group] for group in volumes._groups([terms(2 * batch + 5)])]
    assert sizes == [[batch], [batch], [5]]
    core = tucker((2 * batch, 2, 2), (2 * batch, 5, 5))
    groups = list(volumes._groups([terms(3), core, terms(4)]))
    assert [[p.rank for p in group] for group in groups] == [[3, 2 * batch], [4]]
    assert groups[0][1] is core
