"""Second moments of a map's values, and what layers that move no pixel make of them.

Of every map the second moment M(0) of its values is known, M(τ) = E[x[i]·x[i + τ]] at some lags,
and M(∞), the covariance, over the weights, of a channel's values at pixels or images that have
nothing else in common: the square of the mean that a channel has once the weights are drawn, which
a batch norm takes away (Yang et al. 2019).

* An activation makes E[σ(u)σ(v)] of them. One of stated gain g counts as scaled to it: times
  g/E[σ′²].
* A norm over positions takes M(∞) away, one over channels does not. Where it divides by what
  reaches it (`Norm.mean_field`) its gain is what it does to that; otherwise what it reads counts as
  of variance 1, and its gain is the variance that it leaves. Known statistics and factors multiply
  by their gain whatever reaches them. (Local response normalisation hardly does anything, and
  counts as that.)
* A sum adds, a product multiplies, a concatenation averages over channels; dropout divides M(0) by
  1 − p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf.activations import Bent, Curves, covariance, curves
from fastrf.layers import Activation, Norm
from fastrf.meanfield.borders import Borders, merged

Floats = NDArray[np.float64]
Lags = tuple[frozenset[int], ...]

_POSITIONS = ("batch", "running", "batch_train", "instance")
"""Norms that take each channel's mean over pixels away."""

_MOST = 460.0
"""ln of the variance, and of its inverse, where activations take it to stop: far beyond, every gain
has long reached its limit."""

_NONE = -1e300
"""ln of no variance at all."""


@dataclass(frozen=True, slots=True)
class Signal:
    """What is known of some channels of a map.

    Attributes:
        level: ln M(0).
        far: M(∞)/M(0).
        lags: at which it is known; () is lag 0 alone.
        alike: M(τ)/M(0) at the lags.
        gaussian: whether values of any pixels are jointly Gaussian.
        centred: whether their mean is 0 in every channel.
        bordered: whether padding has changed them near borders.
        borders: how they differ there; None: not at all, or that is not followed.
        roots: nodes on whose weights they depend, and inputs, since the last random layer.
    """

    level: float
    far: float
    lags: Lags = ()
    alike: Floats = field(default_factory=partial(np.ones, ()))
    gaussian: bool = True
    centred: bool = True
    bordered: bool = False
    borders: Borders | None = None
    roots: frozenset[str] = frozenset()

    @property
    def square(self) -> float:
        """M(0), within what a double can hold the square of."""
        return math.exp(min(max(self.level, -_MOST), _MOST))

    @property
    def mean_square(self) -> float:
        """The mean over all pixels of M(0), as far as `square` goes."""
        if self.borders is None:
            return self.square
        level = self.level + math.log(max(self.borders.mean, 1e-300))
        return math.exp(min(max(level, -_MOST), _MOST))

    def times(self, factor: float) -> Signal:
        return replace(self, level=self.level + math.log(factor) if factor else _NONE)

    def alone(self) -> Signal:
        """At no lag but 0."""
        return replace(self, lags=(), alike=np.ones(())) if self.lags else self

    def between(self, far: float) -> Floats:
        """M(τ)/M(0) that lie between another M(∞)/M(0) and 1 as they do between this one and 1."""
        if not self.lags or self.far == 1:
            return self.alike
        return 1 - (1 - self.alike) * ((1 - far) / (1 - self.far))

    def shaped(self, alike: Floats, far: float) -> Signal:
        """With other shares of the same M(0), of values that are not Gaussian."""
        return replace(self, alike=alike, far=far, gaussian=False)


def noise(lags: Lags = (), name: str = "input") -> Signal:
    """Independent pixels of variance 1."""
    alike = np.zeros(tuple(map(len, lags)))
    alike[tuple(sorted(axis).index(0) for axis in lags)] = 1.0
    return Signal(0.0, 0.0, lags, alike, roots=frozenset((name,)))


def curves_of(layer: Activation, signal: Signal) -> Curves | Bent:
    """What an activation of a known function makes of a signal."""
    return curves(layer.function, signal.square, layer.slope)


def _values(curves: Curves | Bent, signal: Signal) -> Floats:
    """E[σσ] at all lags; what pixels τ apart share is what those −τ apart do."""
    if any(axis != {-t for t in axis} for axis in signal.lags):
        return np.asarray(curves.values(signal.alike))
    shares = signal.alike.ravel()
    half = curves.values(shares[: len(shares) // 2 + 1])
    return np.concatenate([half, half[: len(shares) // 2][::-1]]).reshape(signal.alike.shape)


def activated(layer: Activation, signal: Signal) -> Signal:
    """Behind an activation; one that is not known counts as a multiplication by its gain."""
    if layer.known is None or layer.function == "identity":
        return signal.times(layer.pointwise_gain)
    q = signal.square
    own = layer.moments(q)
    far = covariance(layer.function, q, signal.far * q, layer.slope) / max(own.square, 1e-300)
    alike = np.ones_like(signal.alike)
    if signal.lags:
        alike = _values(curves_of(layer, signal), signal) / own.square
    # What lies beyond the range of `square` is beyond that of the activation's bends, too.
    level = signal.level + math.log(max(own.square, 1e-300)) - math.log(q)
    borders = signal.borders
    if borders is not None:
        borders = borders.bent(lambda s: _squares(layer, s * q) / max(own.square, 1e-300), far)
    found = replace(signal.shaped(alike, far), level=level, centred=False, borders=borders)
    return found.times(layer.pointwise_gain / own.gain)


_LINES = 17
"""Variances between the least and the largest of a map at which an activation is looked at."""


def _squares(layer: Activation, variances: Floats) -> Floats:
    """E[σ²] at the variances of a map's pixels."""
    if layer.known is not None and layer.known.scale_free:
        return variances * layer.moments(1.0).square
    high = max(float(variances.max()), 1e-200)
    lines = np.geomspace(max(float(variances.min()), 1e-6 * high), high, _LINES)
    squares = [max(layer.moments(float(q)).square, 1e-300) for q in lines]
    there = np.log(np.maximum(variances, lines[0]))
    found: Floats = np.exp(np.interp(there, np.log(lines), np.log(squares)))
    return found


def divisor(layer: Norm, signal: Signal) -> float:
    """What a norm divides by, over M(0) far from borders."""
    borders = signal.borders
    if layer.statistics in _POSITIONS:
        return max(1 - signal.far if borders is None else borders.divisor, 1e-200)
    if borders is None:
        return 1.0
    if layer.statistics == "channel":  # at each pixel
        return 1 / float((1 / np.maximum(borders.square, 1e-200)).mean())
    return borders.mean


def normalised(layer: Norm, signal: Signal) -> Signal:
    """Each channel's mean over pixels is taken away, or what all channels of a pixel share stays.

    A layer that divides by what reaches it has the gain that `settling` has found for it.
    """
    if layer.statistics in ("lrn", "none"):
        return signal.times(layer.gain)
    positions, share = layer.statistics in _POSITIONS, divisor(layer, signal)
    borders = signal.borders
    if layer.statistics == "channel":
        left, borders = share, borders and borders.alone()
    else:
        left = max(1 - signal.far, 1e-200) if positions else 1.0
    known = layer.statistics == "running" and not layer.mean_field
    level = signal.level if layer.mean_field or known else -math.log(share)
    level += math.log(left) + math.log(layer.gain)
    if positions and borders is not None and not known:  # Every channel is of variance 1 behind it.
        level += math.log(share) - math.log(max(borders.varying, 1e-200))
    if not positions:
        return replace(signal, level=level, borders=borders)
    return replace(
        signal,
        level=level,
        alike=(signal.alike - signal.far) / left,
        far=0.0,
        centred=True,
        borders=borders and borders.centred(signal.far),
    )


def dropped(signal: Signal, p: float) -> Signal:
    """Masks drawn at every pixel, that keep 1 − p of them and divide by it."""
    if p == 0:
        return signal
    alike = np.array(signal.alike * (1 - p))
    alike[tuple(sorted(axis).index(0) for axis in signal.lags)] = 1.0
    borders = signal.borders and signal.borders.kept(1 - p)
    found = replace(signal.shaped(alike, signal.far * (1 - p)), borders=borders)
    return found.times(1 / (1 - p))


def aligned(parts: Sequence[Signal]) -> list[Signal]:
    """The same at all lags that are known of any; at others pixels share M(∞) alone."""
    if len({part.lags for part in parts}) == 1:
        return list(parts)
    ndim = max(len(part.lags) for part in parts)
    none = (frozenset((0,)),) * ndim
    own = [part.lags or none for part in parts]
    lags = tuple(frozenset().union(*(at[axis] for at in own)) for axis in range(ndim))
    places = [{t: n for n, t in enumerate(sorted(axis))} for axis in lags]
    found = []
    for part, axes in zip(parts, own, strict=True):
        alike = np.full(tuple(map(len, lags)), part.far)
        known = zip(places, axes, strict=True)
        alike[np.ix_(*([at[t] for t in sorted(axis)] for at, axis in known))] = part.alike
        found.append(replace(part, lags=lags, alike=alike))
    return found


def multiplied(parts: Sequence[Signal]) -> Signal:
    """The product of what has nothing in common."""
    parts = aligned(parts)
    return Signal(
        math.fsum(part.level for part in parts),
        math.prod(part.far for part in parts),
        parts[0].lags,
        np.asarray(math.prod(part.alike for part in parts)),
        borders=_merged(parts, math.prod),
    )


def added(parts: Sequence[Signal], weights: Sequence[float] | None = None) -> Signal:
    """The sum of what has nothing in common; with weights, the mean over channels."""
    parts = aligned(parts)
    levels = [part.level for part in parts]
    if weights is not None:
        levels = [level + math.log(w) for level, w in zip(levels, weights, strict=True)]
    top = max(levels)
    shares = [math.exp(level - top) for level in levels]
    total = math.fsum(shares)
    return Signal(
        top + math.log(total),
        math.fsum(s * part.far for s, part in zip(shares, parts, strict=True)) / total,
        parts[0].lags,
        np.asarray(sum(s / total * part.alike for s, part in zip(shares, parts, strict=True))),
        all(part.gaussian for part in parts),
        all(part.centred for part in parts),
        any(part.bordered for part in parts),
        _merged(parts, lambda each: sum(s / total * x for s, x in zip(shares, each, strict=True))),
        frozenset().union(*(part.roots for part in parts)),
    )


def _merged(parts: Sequence[Signal], merge: Callable[[Sequence[Floats]], Any]) -> Borders | None:
    return merged([part.borders for part in parts], [part.far for part in parts], merge)
