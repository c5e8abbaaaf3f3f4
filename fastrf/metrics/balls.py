"""Centred discs and balls that hold a share of the mass."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from fastrf.arrays import Array, namespace, outer_sum, running_sums, spelled_out
from fastrf.exchange import in_kind
from fastrf.images import Image, image_of, where_the_image_lives
from fastrf.metrics.given import ROUNDING, Center, core_at, fraction_of, position_of

# Squared distances of pixels that differ by no more than this share of themselves are the same.
_SAME = 1e-12


@where_the_image_lives
def radial_mass(image: Array | Image, center: Center = None) -> tuple[Array, Array]:
    """Share of the mass within each radius about `center`: (radii, mass), an exact step function.

    `radii` holds the distinct Euclidean distances of the pixel centres in pixels, ascending, and
    mass[i] the share of all pixels no farther than radii[i]; the last is 1. Two float64 arrays of
    one length on the image's device. Equal distances are merged exactly for centres on a quarter
    of a pixel or coarser; elsewhere a step may be split in two, a rounding apart.
    """
    seen = image_of(image)
    position = position_of(seen, center)
    squared, mass = np.zeros(0), np.zeros(0)
    for first, block in seen.blocks():
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
    steps = xp.sqrt(squared), cumulative / cumulative[-1]
    return in_kind(steps[0], image), in_kind(steps[1], image)


@where_the_image_lives
def radius_of_mass(
    image: Array | Image, share: float, center: Center = None, *, subpixel: bool = False
) -> float:
    """Radius in pixels of the smallest disc (ball) about `center` that holds `share` of the mass.

    A step of `radial_mass`, hence the distance of some pixel's centre; 0 where the central pixel
    alone holds the share. In 2-D a Gaussian of deviation σ has σ·√(−2 ln(1 − share)).

    With `subpixel` the radius of the ball that has the volume of the nearest pixels that hold
    exactly the share, those of the last distance counted by the part of their mass that is needed.
    For a given centre it varies continuously with the image. Pixels beyond the image count too:
    they are as near and hold nothing.
    """
    image, position = core_at(image_of(image), center)
    goal = fraction_of("share", share) * image.total
    reached = goal if subpixel else goal * (1 - ROUNDING)
    *across, along = position
    own_lines = _across(image.shape, across)
    length = image.shape[-1]

    def chords(squared: float) -> tuple[np.ndarray, np.ndarray]:
        first, stop = _chords(own_lines, along, squared)
        return np.clip(first, 0, length), np.clip(stop, 0, length)

    reach = math.hypot(*(max(c + 1, n - c) for n, c in zip(image.shape, position, strict=True)))
    outer = bisect_left(
        range(math.ceil(reach) + 1),
        reached,
        key=lambda radius: image.on_lines(*chords(radius * radius)),
    )
    # The pixels between the last two whole radii, by their distance.
    first, stop = chords(outer * outer)
    inner_first, inner_stop = chords((outer - 1) * abs(outer - 1))
    held = image.on_lines(inner_first, inner_stop)
    sides = spelled_out(first, inner_first), spelled_out(inner_stop, stop)
    rows, columns = map(np.concatenate, zip(*sides, strict=True))
    squared = own_lines[rows] + (columns - along) ** 2
    order = np.argsort(squared)
    mass = held + np.cumsum(image.at(rows, columns)[order])
    # The last of them reaches the goal, as their chords did, but for the order of the sums.
    at = min(int(np.searchsorted(mass, reached)), len(order) - 1)
    last = float(squared[order[at]])
    if not subpixel:
        return math.sqrt(last)
    below, within = (image.on_lines(*chords(end)) for end in _around(last))
    fewer, more = (_lattice_points(position, end) for end in _around(last))
    part = min(max((goal - below) / (within - below), 0.0), 1.0) if within > below else 1.0
    return _radius_of_volume(fewer + part * (more - fewer), image.ndim)


def _across(shape: Sequence[int], center: Sequence[float]) -> np.ndarray:
    """The squared distance of every line along the last axis from the centre, in C order."""
    axes = [(np.arange(n) - c) ** 2 for n, c in zip(shape, center, strict=False)]
    return np.asarray(outer_sum(np, axes).ravel())


def _chords(lines: np.ndarray, along: float, squared: float) -> tuple[np.ndarray, np.ndarray]:
    """First pixel and last + 1 within a distance, given squared, on each of the lines."""
    left = squared - lines
    reach = np.sqrt(np.maximum(left, 0))
    first = np.ceil(along - reach)
    stop = np.where(left >= 0, np.floor(along + reach) + 1, first)
    return first.astype(np.int64), stop.astype(np.int64)


def _around(squared: float) -> tuple[float, float]:
    """Squared distances just below and just above: nothing else lies between them."""
    return (squared * (1 - _SAME), squared * (1 + _SAME)) if squared else (-1.0, 0.0)


def _lattice_points(center: Sequence[float], squared: float) -> int:
    """Number of pixels of an unbounded grid within a distance, given squared, of the centre."""
    if squared < 0:
        return 0
    *across, along = center
    reach = math.isqrt(math.ceil(squared)) + 2
    # Whole pixels more or less move no count.
    lines = _across([2 * reach + 1] * len(across), [c - math.floor(c) + reach for c in across])
    first, stop = _chords(lines, along, squared)
    return int((stop - first).sum())


def _radius_of_volume(volume: float, ndim: int) -> float:
    """Radius of the ball of a volume: half a length, a disc's, a ball's."""
    unit = (2.0, math.pi, 4 * math.pi / 3)[ndim - 1]
    return float((volume / unit) ** (1 / ndim))
