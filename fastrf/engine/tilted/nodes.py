"""Which tilts: a grid of θ, and the few of it whose windows hold all that is visible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fastrf.engine.spectral import THETA, Window
from fastrf.engine.tilted.moments import moments
from fastrf.engine.tilted.symmetries import Symmetry
from fastrf.engine.tilted.taps import Array, Indices
from fastrf.engine.transfer import TransferFunction

TINY = float(np.finfo(np.float64).smallest_normal)
DEPTH = -math.log(TINY)
"""How far below the mass the last pixels lie, in nats."""

STEPS = {1: 0.5, 2: 1.0, 3: 1.75}
"""Fisher length between neighbouring θ, by number of axes: standard deviations of the image."""


class Nodes(NamedTuple):
    """K(θ) and ∇K(θ), the mean of the tilted image, on a grid of θ: (nodes,), (nodes, axes)."""

    theta: Array
    log: Array
    mean: Array

    @property
    def rate(self) -> Array:
        """How far below the mass the pixels at the mean are, in nats: Cramér's rate function."""
        rate: Array = (self.theta * self.mean).sum(axis=1) - self.log
        return rate

    def divergence(self, at: int | Indices) -> Array:
        """How far below its own peak the tilt `at` holds the pixels of every node, in nats.

        That is Bregman's divergence of K, K(θ_at) − K(θ) − (θ_at − θ)·∇K(θ): shape (…, nodes).
        """
        own = self.theta[at]
        crossed: Array = own @ self.mean.T - (self.theta * self.mean).sum(axis=1)
        below: Array = np.expand_dims(self.log[at], -1) - self.log - crossed
        return below

    def held(self, at: int) -> Array:
        """How far below their own peaks all tilts hold the pixels of the node `at`, in nats."""
        moved = (self.theta - self.theta[at]) @ self.mean[at]
        below: Array = self.log - self.log[at] - moved
        return below

    def nearest(self, pixels: Indices) -> list[int]:
        """The nodes whose tilts suit these pixels best: least K(θ) − θ·i."""
        sample = pixels[:: max(1, len(pixels) // 256)]
        best = (self.log - sample @ self.theta.T).argmin(axis=1)
        return [int(b) for b in np.unique(best)]


def theta_grid(function: TransferFunction, symmetry: Symmetry, log_mass: float) -> Nodes:
    """θ in steps of equal Fisher length along each axis; of what the symmetry exchanges, one."""
    ndim = len(symmetry.alike)
    lines: list[Array] = []
    for a, alike in enumerate(symmetry.alike):
        lines.append(lines[-1] if alike else _line(function, a, symmetry.mirrored[a]))
    grid = np.stack(np.meshgrid(*lines, indexing="ij"), axis=-1).reshape(-1, ndim)
    for a, alike in enumerate(symmetry.alike):
        if alike:
            grid = grid[grid[:, a] <= grid[:, a - 1]]
    grid, tilted = moments(function, grid)
    log = tilted.log + (grid * tilted.centre).sum(axis=1)
    return Nodes(grid, log - log_mass, tilted.mean + tilted.centre)


def _line(function: TransferFunction, axis: int, mirrored: bool) -> Array:
    """θ along one axis, in steps of equal Fisher length."""
    ndim = function.graph.ndim
    theta = np.zeros((THETA.size, ndim))
    theta[:, axis] = THETA
    theta, tilted = moments(function, theta)
    own = theta[:, axis]
    deviation = np.sqrt(np.maximum(tilted.variance[:, axis], 0.0))
    middle = THETA.size // 2
    length = np.concatenate([[0.0], np.cumsum(np.diff(own) * (deviation[1:] + deviation[:-1]) / 2)])
    length -= length[middle]
    log = tilted.log - tilted.log[middle]
    rate = own * tilted.mean[:, axis] - log
    # Beyond the last visible pixel, a window or two for the corners of a mixture.
    visible = np.flatnonzero(rate <= DEPTH + 4 * math.sqrt(DEPTH))
    low, high = length[visible[0]], length[visible[-1]]
    step = STEPS[ndim]
    ends = [0.0 if mirrored else low, high]
    marks = np.arange(math.ceil(ends[0] / step), math.floor(ends[1] / step) + 1) * step
    # The very ends: there the edge of the support holds nearly all of the tilted mass.
    edges = [math.copysign(max(abs(e) - step / 4, 0.0), e) for e in ends if e]
    marks = np.unique(np.concatenate([marks, edges]))
    return np.interp(marks, length[visible], own[visible])


def cover(nodes: Nodes, box: Sequence[Window], reach: float) -> list[int]:
    """Nodes whose windows hold every visible node of the grid: the outermost first, greedily.

    Args:
        nodes: the grid.
        box: pixels wanted, first and last per axis.
        reach: how far below its own peak a window serves pixels, in nats.
    """
    ndim = len(box)
    step = STEPS[ndim]
    ends = np.array(box, dtype=float).T
    spread = 3 * step
    inside = np.all((nodes.mean >= ends[0] - spread) & (nodes.mean <= ends[1] + spread), axis=1)
    waiting = inside & (nodes.rate <= DEPTH + step * math.sqrt(2 * DEPTH))
    waiting[np.abs(nodes.theta).sum(axis=1).argmin()] = True
    cell = step * math.sqrt(ndim) / 2
    limit = max(math.sqrt(2 * reach) - cell, step) ** 2 / 2
    rate = nodes.rate
    found: list[int] = []
    while waiting.any():
        open_ = np.flatnonzero(waiting)
        outer = open_[rate[open_].argmax()]
        near = np.flatnonzero(nodes.held(outer) <= limit)
        below = nodes.divergence(near)[:, open_] <= limit
        best = int(near[below.sum(axis=1).argmax()])
        found.append(best)
        waiting[open_[nodes.divergence(best)[open_] <= limit]] = False
        waiting[outer] = False
    return found
