"""Layers that multiply every pixel by a gain, or a map by what is computed from all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, Self

from fastrf.layers.base import Layer
from fastrf.layers.checks import checked, choice, nonzero, positive, probability_below_one, text
from fastrf.maps import Everything, Size, SpatialMap

E_SIGMA_PRIME_SQUARED = {"relu": 0.5, "identity": 1.0}
"""E[σ′(z)²] for z symmetric about 0 (Luo et al. 2016 print 1/4 for ReLU, which is Var[σ′])."""

MEAN_SLOPE_SQUARED = {"relu": 0.5, "identity": 1.0}
"""E[σ′(z)]²/E[σ′(z)²] for z symmetric about 0, of activations that are scale-free."""

Statistics = Literal["batch", "channel", "lrn", "batch_train", "layer", "group", "instance"]


@dataclass(frozen=True)
class Activation(Layer):
    """An activation: a pointwise gain E[σ′(z)²].

    The default gain is 1/2 for "relu" and 1 for "identity" and everything else, which then
    counts as compensated by the initialisation. Luo et al. 2016 (§2.2) print 1/4 for ReLU,
    which is Var[σ′]; a constant factor leaves the image as it is.
    """

    function: str = checked(text, "relu")
    gain: float | None = checked(positive, None, kw_only=True)

    @property
    def kind(self) -> str:
        return self.function

    def _bound(self, ndim: int) -> Self:
        return replace(self, gain=self.pointwise_gain)

    @property
    def pointwise_gain(self) -> float:
        if self.gain is not None:
            return self.gain
        return E_SIGMA_PRIME_SQUARED.get(self.function, 1.0)

    @property
    def mean_factor(self) -> float | None:
        share = MEAN_SLOPE_SQUARED.get(self.function)
        return None if share is None else math.sqrt(self.pointwise_gain * share)


@dataclass(frozen=True)
class Scale(Layer):
    """Multiplies the map by a constant: −1 to subtract it from another (`Add`)."""

    factor: float = checked(nonzero, 1.0)

    @property
    def pointwise_gain(self) -> float:
        return self.factor**2

    @property
    def mean_factor(self) -> float:
        return self.factor


@dataclass(frozen=True)
class Dropout(Layer):
    """Dropout in training: each unit is kept with 1−p and scaled by 1/(1−p): gain 1/(1−p)."""

    p: float = checked(probability_below_one, 0.5)

    @property
    def pointwise_gain(self) -> float:
        return 1 / (1 - self.p)


@dataclass(frozen=True)
class Norm(Layer):
    """Normalisation.

    Args:
        statistics: "batch" (fixed, as at inference), "channel" (over channels only, as in
            ConvNeXt's layer norm) and "lrn" move nothing. "batch_train", "layer", "group" and
            "instance" are taken over the whole map: each output reads every pixel.
        gain: pointwise gain.
    """

    statistics: Statistics = checked(
        choice("batch", "channel", "lrn", "batch_train", "layer", "group", "instance"), "batch"
    )
    gain: float = checked(positive, 1.0, kw_only=True)

    @property
    def whole_map(self) -> bool:
        """Whether the statistics are taken over the whole map."""
        return self.statistics not in ("batch", "channel", "lrn")

    @property
    def pointwise_gain(self) -> float:
        return self.gain

    @property
    def mean_factor(self) -> float:
        return math.sqrt(self.gain)


@dataclass(frozen=True)
class SqueezeExcite(Layer):
    """Squeeze-and-excitation: a gate computed from the global average multiplies the map.

    The direct path has gain 1. Through the gate a unit reads the whole map: an average with
    coefficients 1/N gives each of the N pixels the variance 1/N².
    """


@dataclass(frozen=True)
class Attention(Layer):
    """Attention over positions (or any operator in which each output reads the whole map)."""

    gain: float = checked(positive, 1.0, kw_only=True)

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        return (SpatialMap((Everything(),) * ndim, "random", self.gain, None, size, size),)
