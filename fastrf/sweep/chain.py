"""A chain of layers as plain arrays: what a sweep packs by the thousand, without networks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastrf.layers import Conv
from fastrf.network import Network, Sequential

Whole: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class ChainAxis:
    """The layers of a chain along one axis, from the input up; every array has shape (depth,).

    Layer l computes ``y[o] = Σ_m w[m] · x[o·stride + m·dilation − lo]`` with zeros in the
    `lo` and `hi` pixels of padding. The arrays may be shared between chains: do not write to
    them.

    Attributes:
        kernel, stride, dilation: whole numbers of at least 1.
        lo, hi: padding in front and behind, whole numbers of at least 0.
        taps: per layer the relative variances of its taps, an array of shape (kernel,) and sum 1,
            or None where they are all equal; None instead of the tuple where that holds for every
            layer.
    """

    kernel: Whole
    stride: Whole
    dilation: Whole
    lo: Whole
    hi: Whole
    taps: tuple[Floats | None, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A network that is a chain of convolutions whose taps are products over the axes.

    Pointwise layers (activations, norms, dropout) are not layers of the chain: their gains are
    part of the convolution's behind which they stand, or of `input_gain` where there is none.
    The effective field of such a chain on the unbounded grid is the product of one profile per
    axis, and its `log_gain` is ``log(input_gain) + Σ log(gain)``.

    Attributes:
        axes: one `ChainAxis` per axis of the grid; axes that are alike are one object.
        gain: Σ v per layer, the gradient variance of one output unit over all taps, times the
            gains of the pointwise layers behind it; shape (depth,).
        input_gain: product of the gains of the pointwise layers before the first convolution.
    """

    axes: tuple[ChainAxis, ...]
    gain: Floats
    input_gain: float = 1.0

    @property
    def depth(self) -> int:
        """Number of convolutions."""
        return len(self.gain)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.axes)

    def network(self) -> Network:
        """The chain as a network of `Conv` layers, `input_gain` left out."""
        return Sequential(*map(self._layer, range(self.depth)), ndim=self.ndim)

    def _layer(self, layer: int) -> Conv:
        def per_axis(name: str) -> tuple[int, ...]:
            return tuple(int(getattr(axis, name)[layer]) for axis in self.axes)

        lines = [None if axis.taps is None else axis.taps[layer] for axis in self.axes]
        taps = None
        if any(line is not None for line in lines):
            kernel = per_axis("kernel")
            full = [
                np.full(k, 1 / k) if v is None else v for k, v in zip(kernel, lines, strict=True)
            ]
            taps = reduce(np.multiply.outer, full)
        return Conv(
            per_axis("kernel"),
            stride=per_axis("stride"),
            dilation=per_axis("dilation"),
            padding=tuple(zip(per_axis("lo"), per_axis("hi"), strict=True)),
            gain=float(self.gain[layer]),
            taps=taps,
        )
