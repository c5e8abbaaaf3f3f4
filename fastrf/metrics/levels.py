"""How much space an interpolated image spends above a level."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np

from fastrf.arrays import Array, namespace, on_host
from fastrf.images import Image


def volume_above(image: Image, limit: float, *, amplitude: bool) -> float:
    """Length, area or volume in pixels in which the interpolated image exceeds a positive `limit`.

    Between the pixel centres values are interpolated linearly, on as many simplices as keep every
    symmetry of the grid: a cell's corners with its middle (its mean) in 2-D, with the middles of
    its faces and its own in 3-D. Beyond the image they fall to zero within one pixel. The result
    varies continuously with the image and the limit, but where a plateau lies at the limit itself.

    Args:
        image: the variance per pixel.
        limit: what the compared values exceed.
        amplitude: compare the square roots of the variances.
    """
    reach = limit**2 if amplitude else limit
    box = []
    for axis in range(image.ndim):
        # No pixel is brighter than the sum of all that share its index; a rounding is left for.
        bound = on_host(image.profile(axis)) * image.total
        seen = np.flatnonzero(bound * (1 + 1e-9) > reach)
        if not seen.size:
            return 0.0
        box.append((int(seen[0]), int(seen[-1]) + 1))
    # With their neighbours, between which and them the level is crossed.
    box = [(max(a - 1, 0), min(b + 1, n)) for (a, b), n in zip(box, image.shape, strict=True)]
    total = 0.0
    for cells in _cells(image.cropped(box), amplitude):
        xp = namespace(cells)
        low, high = cells.min(axis=0), cells.max(axis=0)
        total += int((low > limit).sum())
        mixed = cells[:, (low <= limit) & (high > limit)]
        if mixed.shape[1]:
            parts = [_share_above(xp.stack(s), limit) for s in _simplices(mixed)]
            total += float(sum(p.sum() for p in parts)) / len(parts)
    return total


def _cells(image: Image, amplitude: bool) -> Iterator[Array]:
    """The 2^ndim corners of all cells, of shape (corners, cells), some rows of cells at a time.

    Corner c has the bits of c as its place along the axes, the first axis in the lowest bit.
    """
    ndim, before = image.ndim, None
    for first, block in image.blocks():
        xp = namespace(block)
        values = xp.asarray(block, dtype=xp.float64)
        if amplitude:
            values = xp.sqrt(values)
        last = first + len(block) == image.shape[0]
        slab = xp.zeros((len(block) + 1 + last, *(n + 2 for n in block.shape[1:])))
        inner = (slice(1, len(block) + 1), *(slice(1, -1),) * (ndim - 1))
        slab[inner] = values
        if before is not None:
            slab[0] = before
        before = slab[len(block)].copy()
        corners = []
        for bits in itertools.product((0, 1), repeat=ndim):
            ends = zip(reversed(bits), slab.shape, strict=True)
            corners.append(slab[tuple(slice(bit, n - 1 + bit) for bit, n in ends)].ravel())
        yield xp.stack(corners)


def _simplices(corners: Array) -> Iterator[list[Array]]:
    """The values at the vertices of simplices of equal volume that fill a cell."""
    count = len(corners)
    if count == 2:
        yield [corners[0], corners[1]]
        return
    middle = corners.mean(axis=0)
    if count == 4:
        for a, b in _EDGES:
            yield [corners[a], corners[b], middle]
        return
    for axis, side in itertools.product(range(3), (0, 1)):
        face = [c for c in range(8) if (c >> axis) & 1 == side]
        center = corners[face].mean(axis=0)
        for a, b in _EDGES:
            yield [corners[face[a]], corners[face[b]], center, middle]


_EDGES = ((0, 1), (1, 3), (3, 2), (2, 0))
"""Around a square whose corners are numbered by the bits of their places."""


def _share_above(vertices: Array, limit: float) -> Array:
    """The share of each simplex in which the linear function with these values exceeds `limit`.

    Polynomials of the limit between the sorted values (the tetrahedron's are those of Blöchl,
    Jepsen, Andersen, Phys. Rev. B 49, 16223 (1994), appendix). Each is used only where its
    denominators are positive.
    """
    xp = namespace(vertices)
    v = xp.sort(vertices, axis=0)
    size = len(v) - 1
    # Some lie wholly on one side: their places are filled with 0 or 1 at the end.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        top = bottom = 1.0
        for i in range(size):
            top = top * ((v[size] - limit) / (v[size] - v[i]))
            bottom = bottom * ((limit - v[0]) / (v[i + 1] - v[0]))
        share = xp.where(limit >= v[size - 1], top, 1 - bottom)
        if size == 3:
            x, a, b = limit - v[1], v[2] - v[0], v[3] - v[0]
            cubic = (a + v[3] - v[1]) / ((v[2] - v[1]) * (v[3] - v[1]))
            below = ((v[1] - v[0]) ** 2 + 3 * (v[1] - v[0]) * x + 3 * x**2 - cubic * x**3) / (a * b)
            share = xp.where((limit >= v[1]) & (limit < v[2]), 1 - below, share)
    return xp.where(limit >= v[size], 0.0, xp.where(limit < v[0], 1.0, share))
