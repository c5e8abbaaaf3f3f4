"""Centred discs and balls that hold a share of the mass."""

from __future__ import annotations

import math
from bisect import bisect_left

import numpy as np

from fastrf.arrays import Array, namespace, outer_sum, running_sums, spelled_out
from fastrf.images import Image, image_of
from fastrf.metrics.given import ROUNDING, Center, core_at, fraction_of, position_of


def radial_mass(image: Array | Image, center: Center = None) -> tuple[Array, Array]:
    """Share of the mass within each radius about `center`: (radii, mass), an exact step function.

    `radii` holds the distinct Euclidean distances of the pixel centres in pixels, ascending, and
    mass[i] the share of all pixels no farther than radii[i]; the last is 1. Two float64 arrays of
    one length on the image's device. Equal distances are merged exactly for centres on a quarter
    of a pixel or coarser; elsewhere a step may be split in two, a rounding apart.
    """
    image = image_of(image)
    position = position_of(image, center)
    squared, mass = np.zeros(0), np.zeros(0)
    for first, block in image.blocks():
        xp = namespace(block)
        corner = (position[0] - first, *position[1:])
        distances = [
            (xp.arange(n, dtype=xp.float64) - c) ** 2
            for n, c in zip(block.shape, corner, strict=True)
        ]
        squared = xp.concatenate([xp.asarray(squared), outer_sum(xp, distances).ravel()])
        mass = xp.concatenate([xp.asarray(mass), block.ravel()])
        squared, which = xp.unique(squared, return_inverse=True)
        mass = xp.bincount(which.ravel(), mass)
    cumulative = running_sums(mass)
    return xp.sqrt(squared), cumulative / cumulative[-1]


def radius_of_mass(image: Array | Image, share: float, center: Center = None) -> float:
    """Radius in pixels of the smallest disc (ball) about `center` that holds `share` of the mass.

    A step of `radial_mass`, hence the distance of some pixel's centre; 0 where the central pixel
    alone holds the share. In 2-D a Gaussian of deviation σ has σ·√(−2 ln(1 − share)).
    """
    image, position = core_at(image_of(image), center)
    goal = fraction_of("share", share) * (1 - ROUNDING) * image.total
    *across, along = position
    lines = outer_sum(
        np, [(np.arange(n) - c) ** 2 for n, c in zip(image.shape, across, strict=False)]
    ).ravel()
    length = image.shape[-1]

    def chords(radius: int) -> tuple[np.ndarray, np.ndarray]:
        """First pixel and last + 1 inside the ball, on every line along the last axis."""
        left = radius * abs(radius) - lines
        reach = np.sqrt(np.maximum(left, 0))
        first = np.ceil(along - reach)
        stop = np.where(left >= 0, np.floor(along + reach) + 1, first)
        return tuple(np.clip(ends, 0, length).astype(np.int64) for ends in (first, stop))

    reach = math.hypot(*(max(c + 1, n - c) for n, c in zip(image.shape, position, strict=True)))
    outer = bisect_left(
        range(math.ceil(reach) + 1), goal, key=lambda radius: image.on_lines(*chords(radius))
    )
    # The pixels between the last two whole radii, by their distance.
    (first, stop), (inner_first, inner_stop) = chords(outer), chords(outer - 1)
    held = image.on_lines(inner_first, inner_stop)
    sides = spelled_out(first, inner_first), spelled_out(inner_stop, stop)
    rows, columns = map(np.concatenate, zip(*sides, strict=True))
    squared = lines[rows] + (columns - along) ** 2
    order = np.argsort(squared)
    mass = held + np.cumsum(image.at(rows, columns)[order])
    # The last of them reaches the goal, as their chords did, but for the order of the sums.
    at = min(int(np.searchsorted(mass, goal)), len(order) - 1)
    return math.sqrt(squared[order[at]])
