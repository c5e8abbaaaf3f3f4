"""Convolution with given weights, channel by channel: blur-pool, Sobel filters, wavelets."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fastrf.layers.borders import PADDING_MODES, PaddingMode, bordered
from fastrf.layers.checks import checked, checked_weights, choice
from fastrf.layers.windows import Windowed
from fastrf.maps import Size, SpatialMap, SpatialTaps, factor


@dataclass(frozen=True)
class Filter(Windowed):
    """Depthwise convolution with fixed weights, the same for every channel.

    ``Filter(3, stride=2, padding=1)`` is blur-pool (Zhang 2019).

    Args:
        kernel, stride, dilation, padding, padding_mode: as in `Conv`.
        weights: coefficients of any sign, an array of shape `kernel`; None: binomial, of sum 1,
            (1, 2, 1)/4 per axis for kernel 3.
    """

    padding_mode: PaddingMode = checked(choice(*PADDING_MODES), "zeros", kw_only=True)
    weights: Any = field(default=None, kw_only=True)

    def _bound(self, ndim: int) -> Self:
        padding = self._settled_padding()
        unpadded = all(pad == (0, 0) for pad in padding)
        weights = self.weights
        if weights is not None:
            weights = checked_weights("Filter", weights, self.kernel)
        mode = "zeros" if unpadded else self.padding_mode
        return replace(self, padding=padding, padding_mode=mode, weights=weights)

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        before, inner, pads = bordered(self.padding_mode, self._pads(size), size, ndim)
        axes = self._windows(pads)
        weights = self.coefficients()
        gain = float(np.sum(weights**2))
        taps = factor(weights**2 / gain)
        signed = _signed(weights / math.sqrt(gain), taps) if weights.min() < 0 else None
        out = self._size_out(inner, pads)
        return (*before, SpatialMap(axes, "fixed", gain, taps, inner, out, signed))

    def coefficients(self) -> NDArray[np.float64]:
        """The weights of a bound layer, an array of shape `kernel`."""
        if self.weights is not None:
            return np.asarray(self.weights, dtype=np.float64)
        lines = [
            np.array([math.comb(k - 1, m) / 2 ** (k - 1) for m in range(k)]) for k in self.kernel
        ]
        return reduce(np.multiply.outer, lines)


def _signed(weights: NDArray[np.float64], taps: SpatialTaps) -> SpatialTaps:
    """Weights with squares of sum 1 in the form of `taps`, or as an array where their signs are no
    product as their squares are."""
    if isinstance(taps, np.ndarray):
        return weights
    first = tuple(np.argwhere(weights)[0])
    vectors = []
    for axis, at in enumerate(first):
        line = weights[(*first[:axis], slice(None), *first[axis + 1 :])]
        vectors.append(line * (np.sign(line[at]) / np.sqrt(np.sum(line**2))))
    product = reduce(np.multiply.outer, vectors) * np.sign(weights[first])
    if not np.allclose(product, weights, rtol=0, atol=64 * np.finfo(np.float64).eps):
        return weights
    vectors[0] = vectors[0] * np.sign(weights[first])
    return tuple(vectors)
