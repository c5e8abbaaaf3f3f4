"""Layers that multiply every pixel by a gain, or a map by what is computed from all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self, get_args

from fastrf.activations import FUNCTIONS, Function, Moments, moments
from fastrf.errors import InputError
from fastrf.layers.base import Layer
from fastrf.layers.checks import (
    checked,
    choice,
    flag,
    nonnegative,
    nonzero,
    positive,
    probability_below_one,
    text,
)
from fastrf.layers.weights import MUTED, as_weights, derived
from fastrf.maps import Everything, Size, SpatialMap

Statistics = Literal[
    "batch", "running", "none", "channel", "lrn", "batch_train", "layer", "group", "instance"
]


@dataclass(frozen=True)
class Activation(Layer):
    """An activation: a pointwise gain E[σ′(z)²].

    Luo et al. 2016 (§2.2) print 1/4 for ReLU, which is Var[σ′]; E[σ′²] is 1/2. A constant factor
    leaves the image as it is.

    Args:
        function: one of `fastrf.activations.FUNCTIONS`, as PyTorch calls them. Others count as
            compensated by the initialisation: gain 1.
        gain: E[σ′(z)²]; 1 where the initialisation compensates for it. None: that of a Gaussian z
            of mean 0.
        slope: of "leaky_relu" and "prelu" below 0, and α of "elu" and "celu"; None: PyTorch's.
        variance: of z. None: what the mean field finds (see `fastrf.meanfield`); "relu" and all
            others that are straight on either side of 0 do not depend on it.
    """

    function: str = checked(text, "relu")
    gain: float | None = checked(positive, None, kw_only=True)
    slope: float | None = checked(nonnegative, None, kw_only=True)
    variance: float | None = checked(nonnegative, None, kw_only=True)

    @property
    def kind(self) -> str:
        return self.function if isinstance(self.function, str) else "activation"

    @property
    def known(self) -> Function | None:
        """The function, None where fastrf knows nothing of it."""
        return FUNCTIONS.get(self.function)

    def _bound(self, ndim: int) -> Self:
        if self.slope is not None and (self.known is None or self.known.parameter is None):
            raise InputError(
                f"Activation: {self.function!r} has no slope to choose, got {self.slope}; leave "
                f"it out"
            )
        if self.gain is not None or self.depends_on_network:
            return self
        return replace(self, gain=self.pointwise_gain)

    def initialised(self, scheme: str) -> Self:
        return replace(self, gain=None)

    @property
    def depends_on_network(self) -> bool:
        if self.gain is not None or self.variance is not None:
            return False
        return self.known is None or not self.known.scale_free

    def moments(self, variance: float) -> Moments:
        """What a known function does to Gaussian values of this variance."""
        return moments(self.function, variance, self.slope)

    @property
    def pointwise_gain(self) -> float:
        if self.gain is not None:
            return self.gain
        return 1.0 if self.known is None else self.moments(self._variance).gain

    @property
    def mean_factor(self) -> float | None:
        if self.known is None:
            return None
        if self.gain is not None and self.variance is None and not self.known.scale_free:
            return None
        own = self.moments(self._variance)
        return own.mean_slope * math.sqrt(self.pointwise_gain / own.gain)

    @property
    def _variance(self) -> float:
        return 1.0 if self.variance is None else self.variance


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
            "instance" are taken over the whole map: each output reads every pixel. "running" is
            "batch" whose statistics are known numbers, "none" a known factor alone: both multiply
            what reaches them by `gain`, whatever its variance.
        gain: pointwise gain.
        mean_field: whether it divides by the variance that reaches it, as far as the mean field
            knows that (see `fastrf.meanfield`), and multiplies by `gain`. By default what it reads
            counts as of variance 1.
        weights: the factor of each channel, instead of `gain`, which is then their mean square.
    """

    statistics: Statistics = checked(choice(*get_args(Statistics)), "batch")
    gain: float = checked(positive, 1.0, kw_only=True)
    mean_field: bool = checked(flag, False, kw_only=True)
    weights: Any = field(default=None, kw_only=True)

    def _bound(self, ndim: int) -> Self:
        if self.weights is None:
            return self
        own = as_weights(self.weights)
        if len(own.shape) != 1:
            raise InputError(f"Norm: weights of shape {own.shape} must be one factor per channel")
        gain = float(own.squares().mean()) or MUTED
        return replace(self, weights=own, gain=derived("Norm", self.gain, gain))

    def initialised(self, scheme: str) -> Self:
        if self.statistics == "none":
            return self
        return replace(self, mean_field=True, gain=1.0, weights=None)

    @property
    def depends_on_network(self) -> bool:
        return self.mean_field

    @property
    def channels_read(self) -> int | None:
        return None if self.weights is None else int(self.weights.shape[0])

    @property
    def whole_map(self) -> bool:
        """Whether the statistics are taken over the whole map."""
        return self.statistics in ("batch_train", "layer", "group", "instance")

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
