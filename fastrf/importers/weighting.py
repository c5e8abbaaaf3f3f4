"""What an import makes of weights: nothing, a scheme that draws them, or what they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from fastrf.errors import InputError, short
from fastrf.importers.layout import CHANNEL, Const, Map
from fastrf.layers import Activation, Conv, ConvTranspose, FullyConnected, Multiply, Norm
from fastrf.layers.checks import TRAINED, scheme
from fastrf.layers.weights import MUTED

Detail = Literal["mean", "full"]
"""Trained weights averaged over channels, or followed channel by channel."""

CLIPPED: dict[tuple[float | None, float | None], str] = {
    (0, 6): "relu6",
    (-1, 1): "hardtanh",
    (0, None): "relu",
}
"""What clipping between two ends is called."""

Weighted = TypeVar("Weighted", Conv, ConvTranspose, FullyConnected)


@dataclass(frozen=True)
class Weighting:
    """How an import states gains.

    Without `init` and not `trained`, networks count as initialised to keep the variance: every
    layer has gain 1, and so have activations.

    Attributes:
        init: the scheme by which layers draw their weights.
        trained: whether weights are read.
        full: whether they are kept, channel by channel, and not averaged.
    """

    init: str | None = None
    trained: bool = False
    full: bool = False

    @staticmethod
    def of(init: Any, weights: Any, channels: Any) -> Weighting:
        """What the arguments of `from_torch` and `from_onnx` mean.

        Raises:
            InputError: one of them has a value that does not exist, or two do not go together.
        """
        if weights not in (None, TRAINED):
            raise InputError(f"weights={short(weights)} is unknown; give 'trained' or leave it out")
        if channels not in get_args(Detail):
            raise InputError(f"channels={short(channels)} is unknown; give 'mean' or 'full'")
        if weights is None and channels != "mean":
            raise InputError(f"channels={channels!r} needs weights; give weights='trained' too")
        if init is None:
            return Weighting(trained=weights is not None, full=channels == "full")
        if weights is not None or init == TRAINED:
            raise InputError(
                f"init={init!r} and weights={weights!r}: weights are drawn or trained; give one "
                f"of init='he' (and others) and weights='trained'"
            )
        return Weighting(init=scheme("import", "init", init, 0))

    @property
    def compensated(self) -> bool:
        """Whether all gains are 1."""
        return self.init is None and not self.trained

    def activation(
        self, operator: str, function: str | None = None, slope: float | None = None
    ) -> Activation:
        """An activation.

        Args:
            operator: what its format calls it.
            function: what `fastrf.activations` calls it; None: the same.
            slope: its slope parameter.
        """
        if self.compensated:
            return Activation(operator, gain=1.0)
        return Activation(function or operator, slope=slope)

    def product(self) -> Multiply:
        """A product of maps."""
        return Multiply(mean_field=not self.compensated)

    def norm(
        self,
        statistics: Any,
        factors: NDArray[Any] | None = None,
        *,
        fixed: bool = False,
    ) -> Norm:
        """A normalisation.

        Args:
            factors: its known factors, one per channel or element.
            fixed: whether nothing else multiplies, as its statistics are fixed and in the factors.
        """
        layer = Norm(statistics, mean_field=not self.compensated and not fixed)
        return layer if factors is None else self.scaled(layer, factors)

    def scaled(self, layer: Norm, factors: NDArray[Any]) -> Norm:
        """A norm with these factors."""
        if self.full and factors.ndim == 1:
            return replace(layer, weights=factors)
        return replace(layer, gain=float(np.square(factors, dtype=np.float64).mean()) or MUTED)

    def weighted(self, layer: Weighted, weight: Const | None, ndim: int) -> Weighted:
        """A layer with the gain of its weights.

        Args:
            weight: of the shape that `layer.weights` has.

        Raises:
            InputError: weights are to be read, and not known.
        """
        if self.compensated:
            return layer
        if self.init is not None:
            return replace(layer, init=self.init, gain=1.0)
        if weight is None or weight.array is None:
            raise InputError(
                "its weights are computed in a way that fastrf does not follow; import without "
                "weights='trained', or fold them into constants first"
            )
        own = replace(layer, weights=weight.array, gain=1.0)
        if self.full:
            return own
        bound = own.bind(ndim)
        averaged = replace(layer, gain=bound.gain, init=TRAINED)
        if isinstance(averaged, FullyConnected):
            return averaged
        assert not isinstance(bound, FullyConnected)
        return replace(averaged, taps=bound.taps)


def factors_of(x: Map, array: NDArray[Any], *, divides: bool) -> NDArray[Any]:
    """What a tensor of known numbers multiplies a map by: a vector where it depends on the channel
    alone.

    Args:
        divides: whether the map is divided by them.
    """
    with np.errstate(divide="ignore"):
        factors = np.asarray(1 / array if divides else array, dtype=np.float64)
    wide = [p for p, n in enumerate(factors.shape, -factors.ndim) if n > 1]
    by_channel = len(wide) == 1 and x.axes is not None and x.axes[wide[0]] == x.whole(CHANNEL)
    return factors.ravel() if by_channel else factors.reshape(1, -1)
