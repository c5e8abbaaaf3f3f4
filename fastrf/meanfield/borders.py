"""What padding makes of second moments, pixel by pixel.

Beside zeros a map's values vary less. Norms divide by what all pixels of a map vary by, those at
its borders too, so that far from borders they leave more than variance 1: on 8 × 8 pixels behind
3 × 3 taps a fifth more. `Borders` says by how much M(0) differs from pixel to pixel, and M(∞)
between pairs of them:

* Random weights v make Σ_m v[m]·x[o·s + m·d − lo] of M(0), padding being 0, and of M(∞), which
  counts as f[i]·f[j] in what they read, Σ_m v[m]·f[i·s + m·d − lo]·f[j·s + m·d − lo].
* Fixed weights w make the same with w² of M(0) − M(∞), as of values that vary independently, and
  Σ_m w[m]·f[o·s + m·d − lo] of f; max-pooling takes the mean over its window of both.
* A norm over positions takes each channel's mean over them away.
* Behind an activation M(∞) between pixels is in proportion to √M(0) of each.

On maps of more than `MOST` pixels borders do not count, which the assumptions of a field then say:
theirs are a small share.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, reduce

import numpy as np
from numpy.typing import NDArray

from fastrf.maps import AxisMap, Everything, Size, SpatialMap, Spread, Table, Window

Floats = NDArray[np.float64]

MOST = 1 << 16
"""Pixels of the largest map whose borders count: those of 256 × 256, of which padding of 1 touches
1.6%."""


_TAPS = 81
"""Taps of the largest kernel whose channels count as different near borders."""


@dataclass(frozen=True, slots=True, eq=False)
class Borders:
    """Second moments of a map, over M(0) far from borders; arrays of the map's size.

    Attributes:
        square: M(0) of each pixel.
        own: M(∞) of each pixel, with itself.
        shared: M(∞) of each pixel with all others, on average.
        offsets: behind random weights, what the mean over images varies by from pixel to pixel of
            a channel, near borders: a sum of squares of so many independent Gaussians, of these
            variances. Unlike all else, that differs from channel to channel.
    """

    square: Floats
    own: Floats
    shared: Floats
    offsets: tuple[float, ...] = ()

    @staticmethod
    def of(square: Floats, f: Floats) -> Borders:
        """Where M(∞) of pixels i and j is f[i]·f[j]."""
        return Borders(square, f * f, f * f.mean())

    @staticmethod
    def none(size: Size, far: float) -> Borders:
        """Of a map that is alike everywhere; `far` is its M(∞)/M(0)."""
        return Borders.of(np.ones(size), np.full(size, math.sqrt(far)))

    @property
    def mean(self) -> float:
        """M(0), the mean over all pixels."""
        return float(self.square.mean())

    @property
    def varying(self) -> float:
        """What a channel's values vary by from pixel to pixel."""
        return self.mean - float(self.shared.mean())

    @property
    def divisor(self) -> float:
        """1/E[1/s²] over the channels' variances s² = a + Σ λ χ² of their values over all pixels:
        E[1/s²] is the integral of exp(−ta)/Π √(1 + 2tλ) over t."""
        offsets = np.array(self.offsets)
        steady = self.varying - float(offsets.sum())
        if not offsets.size or steady <= 1e-6 * self.varying:
            return self.varying
        nodes, weights = _laguerre()
        factors = 1 / np.sqrt(1 + 2 * nodes[:, None] * offsets / steady)
        return steady / float(weights @ factors.prod(axis=1))

    def bent(self, power: Callable[[Floats], Floats], far: float) -> Borders:
        """Behind an activation that makes `power` of M(0) and leaves a share of M(∞)."""
        square = power(self.square)
        return Borders.of(square, np.sqrt(far * square))

    def centred(self, far: float) -> Borders:
        """Behind a norm over positions; `far` as of `none`. What differs from mean 0 near borders
        is taken as variance."""
        square = self.square - 2 * self.shared + self.shared.mean()
        return Borders.of(square.clip(0) / (1 - far), np.zeros_like(square))

    def alone(self) -> Borders:
        """Behind a norm at each pixel."""
        there = np.maximum(self.square, 1e-300)
        return Borders.of(np.ones_like(self.square), np.sqrt(self.own / there))

    def kept(self, share: float) -> Borders:
        """Of M(0) alone all is there, of M(∞) a share."""
        return Borders(self.square, self.own * share, self.shared * share)

    def random(self, move: SpatialMap) -> Borders:
        """Behind random weights."""
        weights = _weights(move, math.prod(map(_passes, move.axes)))
        f = np.sqrt(self.own)
        shared = np.zeros(move.size_out or ())
        if f.any():
            shared = _behind(move, _times(weights, _means(move, f)), f)
        square, own = (_behind(move, weights, x) for x in (self.square, self.own))
        return Borders(square, own, shared, _offsets(move, weights, f))

    def fixed(
        self, move: SpatialMap, before: float, behind: float, sums: tuple[float, float] = (1, 1)
    ) -> Borders:
        """Behind fixed weights, or the largest of a window.

        Args:
            before, behind: M(∞)/M(0) far from borders.
            sums: Σ w² and (Σ w)² far from borders.
        """
        size = move.size_out or ()
        square, f = np.zeros(size), np.zeros(size)
        if before < 1:
            weights = _weights(move, move.gain / sums[0] / (1 - before))
            square = _behind(move, weights, self.square - self.own)
        if before > 0 and sums[1] > 0:
            scale = move.gain**2 if move.kind == "routing" else move.gain
            scale *= behind / before / sums[1]
            roots = _weights(move, math.sqrt(scale), 1.0 if move.kind == "routing" else 0.5)
            f = _behind(move, roots, np.sqrt(self.own))
        return Borders.of((1 - behind) * square + f * f, f)

    def spread(self, size: Size) -> Borders:
        """Of maps of one pixel along some axes, written all along them."""
        square, own, shared = (
            np.broadcast_to(x, size) for x in (self.square, self.own, self.shared)
        )
        return Borders(square, own, shared)

    def whole(self, before: float) -> Borders:
        """The mean over all pixels, a map of one; `before` as of `fixed`."""
        n = self.square.size
        shared, total = float(self.shared.mean()), before + (1 - before) / n
        square = shared + (self.mean - float(self.own.mean())) / n
        one = np.full((1,) * self.square.ndim, 1 / total)
        return Borders(square * one, shared * one, shared * one)


@cache
def _laguerre() -> tuple[Floats, Floats]:
    """Gauss's rule of ∫ e^(−t) f(t) dt."""
    return np.polynomial.laguerre.laggauss(64)


def merged(
    parts: Sequence[Borders | None],
    fars: Sequence[float],
    merge: Callable[[Sequence[Floats]], Floats],
) -> Borders | None:
    """Of a sum or a product, where borders of any summand or factor are known.

    Args:
        fars: M(∞)/M(0) of each far from borders.
        merge: makes one array of one from each.
    """
    sizes = [part.square.shape for part in parts if part is not None]
    if not sizes:
        return None
    size = np.broadcast_shapes(*sizes)
    there = [p or Borders.none(size, far) for p, far in zip(parts, fars, strict=True)]
    square, own, shared = (
        merge([np.broadcast_to(getattr(part, name), size) for part in there])
        for name in ("square", "own", "shared")
    )
    return Borders(square, own, shared)


def pads(move: SpatialMap) -> bool:
    """Whether a map has pixels near its borders that gather less than others."""
    assert move.size_in is not None
    assert move.size_out is not None
    for axis, before, behind in zip(move.axes, move.size_in, move.size_out, strict=True):
        if isinstance(axis, Window):
            last = (behind - 1) * axis.stride + axis.span - axis.lo
            if axis.lo > 0 or last >= before:
                return True
        elif isinstance(axis, Spread) and (axis.lo > 0 or axis.span >= axis.stride):
            return True
    return False


# --- along axes -----------------------------------------------------------------------------

Weights = list[Floats] | Floats
"""Of the taps along each axis (of a table's rows: of each row), or of all together."""

Steps = list[tuple[slice, slice]]
"""Of each tap, the pixels that it reads and those that it writes."""


def _weights(move: SpatialMap, scale: float, power: float = 1.0) -> Weights:
    """The taps' variances (of sum 1, but for rows of a table), to a power, times `scale`."""
    if isinstance(move.taps, np.ndarray):
        whole: Floats = scale * move.taps**power
        return whole
    found = []
    for number, axis in enumerate(move.axes):
        if isinstance(axis, Table):
            found.append(axis.taps**power)
            continue
        kernel = getattr(axis, "kernel", 1)
        given = move.axis_taps(number)
        found.append((np.full(kernel, 1 / kernel) if given is None else given) ** power)
    found[0] = found[0] * scale
    return found


def _passes(axis: AxisMap) -> int:
    """Pixels that a tap writes, over those that are read."""
    return axis.stride if isinstance(axis, Spread) else 1


def _behind(move: SpatialMap, weights: Weights, x: Floats) -> Floats:
    """Σ w·x of each pixel that is written."""
    if not isinstance(weights, list):
        steps = [_steps(move, axis) for axis in range(x.ndim)]
        y = np.zeros(move.size_out or ())
        for at in np.ndindex(weights.shape):
            pairs = [axis[m] for axis, m in zip(steps, at, strict=True)]
            y[tuple(out for _, out in pairs)] += weights[at] * x[tuple(read for read, _ in pairs)]
        return y
    for number, (axis, taps) in enumerate(zip(move.axes, weights, strict=True)):
        assert move.size_out is not None
        if isinstance(axis, Everything):
            x = x.mean(axis=number, keepdims=True)
            x = np.repeat(x, move.size_out[number], axis=number)
        elif isinstance(axis, Table):
            x = _through_table(axis, taps, x, number, move.size_out[number])
        else:
            x = np.moveaxis(x, number, 0)
            y = np.zeros((move.size_out[number], *x.shape[1:]))
            for weight, (read, out) in zip(taps, _steps(move, number), strict=True):
                y[out] += weight * x[read]
            x = np.moveaxis(y, 0, number)
    return x


def _through_table(axis: Table, taps: Floats, x: Floats, number: int, count: int) -> Floats:
    starts, _ = axis.rows(0, count)
    weights = taps[np.arange(count) % axis.period]
    at = starts[:, None] + np.arange(taps.shape[1])
    weights = np.where((at >= 0) & (at < x.shape[number]), weights, 0.0)
    read = np.moveaxis(x, number, -1)[..., at.clip(0, x.shape[number] - 1)]
    return np.moveaxis((read * weights).sum(axis=-1), -1, number)


def _steps(move: SpatialMap, number: int) -> Steps:
    axis = move.axes[number]
    assert isinstance(axis, Window | Spread)
    assert move.size_in is not None
    assert move.size_out is not None
    near, far = move.size_in[number], move.size_out[number]
    if isinstance(axis, Spread):
        near, far = far, near
    found = []
    for m in range(axis.kernel):
        offset = m * axis.dilation - axis.lo
        first = max(0, -(offset // axis.stride))
        last = min(far - 1, (near - 1 - offset) // axis.stride)
        if last < first:
            found.append((slice(0, 0), slice(0, 0)))
            continue
        begin = offset + first * axis.stride
        moving = slice(begin, begin + (last - first) * axis.stride + 1, axis.stride)
        still = slice(first, last + 1)
        found.append((still, moving) if isinstance(axis, Spread) else (moving, still))
    return found


def _means(move: SpatialMap, f: Floats) -> list[Floats]:
    """The mean over all that is written of what each tap reads, as a product over the axes: exact
    where f is one."""
    found = []
    for number in range(f.ndim):
        line = f.mean(axis=tuple(a for a in range(f.ndim) if a != number))
        assert move.size_out is not None
        sums = [line[read].sum() / move.size_out[number] for read, _ in _steps(move, number)]
        found.append(np.array(sums))
    mean = float(f.mean())
    found[0] = found[0] * mean
    return [line / mean for line in found]


def _offsets(move: SpatialMap, weights: Weights, f: Floats) -> tuple[float, ...]:
    """Variances of `Borders.offsets`: the eigenvalues of the covariance, over what is written, of
    what the taps read of f."""
    if not f.any():
        return ()
    kernel = [getattr(axis, "kernel", 1) for axis in move.axes]
    if math.prod(kernel) > _TAPS:
        return ()
    steps = [_steps(move, axis) for axis in range(f.ndim)]
    read = np.zeros((math.prod(kernel), *(move.size_out or ())))
    for row, at in zip(read, np.ndindex(*kernel), strict=True):
        pairs = [axis[m] for axis, m in zip(steps, at, strict=True)]
        row[tuple(out for _, out in pairs)] = f[tuple(inside for inside, _ in pairs)]
    roots = reduce(np.multiply.outer, weights) if isinstance(weights, list) else weights
    lines = read.reshape(len(read), -1)
    lines = (lines - lines.mean(axis=1)[:, None]) * np.sqrt(roots).reshape(-1, 1)
    values = np.linalg.eigvalsh(lines @ lines.T) / lines.shape[1]
    return tuple(float(x) for x in values if x > 1e-12)


def _times(weights: Weights, means: list[Floats]) -> Weights:
    if isinstance(weights, list):
        return [w * mean for w, mean in zip(weights, means, strict=True)]
    return weights * reduce(np.multiply.outer, means)
