"""What figures of one effective receptive field look at: its image, boxes and levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastrf.erf import ERF
from fastrf.plot.style import AXIS_NAMES, times

Interval: TypeAlias = tuple[float, float]

SHARES = (0.5, 0.9, 0.99)
"""Shares of the mass whose smallest sets are outlined."""

_ZOOM_SIGMAS = 4.5
_ZOOM_BELOW = 0.5


class Scene:
    """One field, with what is worked out once for all panels."""

    def __init__(self, erf: ERF) -> None:
        self.erf = erf
        self.image: NDArray[Any] = erf.to_numpy()
        self.ndim = self.image.ndim
        self.names = AXIS_NAMES[self.ndim]

    @cached_property
    def peak(self) -> float:
        return float(self.image.max())

    @cached_property
    def smooth(self) -> NDArray[np.float64]:
        """The image averaged over one stride: strides leave a pattern of their own period."""
        from scipy.ndimage import uniform_filter

        width = [math.ceil(s) if s else 1 for s in self.erf.field.stride]
        return np.asarray(uniform_filter(self.image.astype(np.float64), width, mode="nearest"))

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """The least value in the smallest set that holds each of `SHARES`."""
        return tuple(level(self.smooth, share) for share in SHARES)

    @cached_property
    def trf(self) -> tuple[tuple[int, int], ...]:
        """The theoretical field's box; the image's own where the unit has none that is bounded."""
        box = self.erf.field.box(self.erf.unit)
        if box is None or not all(math.isfinite(end) for ends in box for end in ends):
            box = self.erf.box
        return tuple((int(low), int(high)) for low, high in box)

    def edges(self, axis: int) -> Interval:
        """Where the image begins and ends along an axis: half a pixel beyond its pixel centres."""
        low, high = self.erf.box[axis]
        return low - 0.5, high + 0.5

    def whole(self, axis: int) -> Interval:
        """Image and TRF box; a box far larger than the image is cut."""
        first, last = self.edges(axis)
        low, high = self.trf[axis]
        reach = last - first
        return min(first, max(low - 0.5, first - reach)), max(last, min(high + 0.5, last + reach))

    def near(self, axes: Sequence[int]) -> list[Interval]:
        """What shows the mass in linear scale: a part of `whole` where that is far larger."""
        whole = [self.whole(axis) for axis in axes]
        reach = [2 * _ZOOM_SIGMAS * self.erf.std[axis] + 3 for axis in axes]
        share = max(r / (high - low) for r, (low, high) in zip(reach, whole, strict=True))
        if share > _ZOOM_BELOW:
            return whole
        middles = [self.erf.mean[axis] for axis in axes]
        halves = [share * (high - low) / 2 for low, high in whole]
        return [(m - h, m + h) for m, h in zip(middles, halves, strict=True)]

    @property
    def heading(self) -> str:
        erf = self.erf
        where = ", ".join(map(str, erf.unit))
        unit = f"unit ({where})" if len(erf.unit) > 1 else f"unit {where}"
        return ": ".join(filter(None, (erf.network.name, f"{unit} of {erf.node}")))

    @property
    def facts(self) -> str:
        sides = [high - low + 1 for low, high in self.trf]
        return f"σ {times([float(s) for s in self.erf.std])}, TRF {times(sides)} pixels"

    @property
    def trf_label(self) -> str:
        return f"TRF {times([high - low + 1 for low, high in self.trf])}"


def level(image: NDArray[Any], share: float) -> float:
    """The value of the least bright pixel in the smallest set that holds `share`."""
    values = np.sort(image, axis=None)[::-1].astype(np.float64)
    total = np.cumsum(values)
    return float(values[min(int(np.searchsorted(total, share * total[-1])), len(values) - 1)])


def ellipse(covariance: NDArray[np.float64]) -> tuple[float, float, float]:
    """Half axes of the 1 σ ellipse of a (vertical, horizontal) covariance, and its angle.

    The angle turns the first half axis from the horizontal, in degrees.
    """
    values, vectors = np.linalg.eigh(covariance[::-1, ::-1])
    minor, major = np.sqrt(np.maximum(values, 0.0))
    return float(major), float(minor), math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))


def with_margin(interval: Interval, share: float = 0.03) -> Interval:
    low, high = interval
    return low - share * (high - low), high + share * (high - low)
