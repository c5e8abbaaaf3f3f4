"""Closed forms for many stacks at once: what grows, layer by layer, along one axis.

The formulas are those of `fastrf.analytic.chain` for equal taps, as NumPy arrays over stacks and
depths: the reach adds d(k − 1)·j and the variance (d·j)²(k² − 1)/12 per layer (Luo et al. 2016,
eq. 10), weighted with q = C/(1 + C) in a residual branch of gain C.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fastrf.errors import InputError

LUO_LEVEL = 1 - 0.9545
"""Luo et al. 2016 (§3.1) count the pixels above this share of the centre's."""

SIZES = ("luo", "std", "fwhm")
"""Sizes that `gaussian_size` knows."""


class Growth(NamedTuple):
    """Figures of a stack of layers after each of them, along one axis; arrays of shape (…, depth).

    Attributes:
        trf: size r of the theoretical receptive field, pixels.
        variance: of the effective one, pixels².
        jump: product of the strides, input pixels.
    """

    trf: NDArray[np.float64]
    variance: NDArray[np.float64]
    jump: NDArray[np.float64]


def growth(
    kernel: ArrayLike, stride: ArrayLike, dilation: ArrayLike, share: ArrayLike = 1.0
) -> Growth:
    """How stacks of convolutions with equal taps grow.

    Args:
        kernel, stride, dilation: per layer along the last axis, from the input up; arrays that
            broadcast against each other.
        share: q, with which the layer's branch is taken: 1 in a chain.
    """
    k, s, d, q = np.broadcast_arrays(
        *(np.asarray(v, dtype=np.float64) for v in (kernel, stride, dilation, share))
    )
    jump = np.cumprod(s, axis=-1)
    spacing = d * jump / s
    trf = 1 + np.cumsum(spacing * (k - 1), axis=-1)
    variance = np.cumsum(q * spacing**2 * (k**2 - 1) / 12, axis=-1)
    return Growth(trf, variance, jump)


def gaussian_size(
    std: ArrayLike, size: str, ndim: int = 2, spike: ArrayLike = 0.0
) -> NDArray[np.float64]:
    """The size of a Gaussian image of variance, in pixels, where it is the same along every axis.

    A level t of the centre's value is passed at the radius σ√(2 ln(1/t)). With a spike, the share
    of the mass that stays on the centre (the path through all shortcuts of a residual stack), the
    rest is a Gaussian, and its level is one of the two together.

    Args:
        std: deviation per axis of the whole, pixels.
        size: "std": itself. "fwhm": twice the radius for t = 1/2. "luo": Luo et al.'s side, on
            the amplitude: the number of pixels, to the power 1/ndim, in the ball of the radius
            for t = 0.0455²; 6.23σ in 2-D.
        ndim: number of axes.
        spike: share of the mass, at least 0 and below 1.

    Raises:
        InputError: another size.
    """
    std = np.asarray(std, dtype=np.float64)
    if size == "std":
        return std
    if size not in SIZES:
        raise InputError(f"size={size!r} is unknown; choose one of {', '.join(SIZES)}")
    level = 0.5 if size == "fwhm" else LUO_LEVEL**2
    ball = math.pi ** (ndim / 2) / math.gamma(ndim / 2 + 1)
    side = 2.0 if size == "fwhm" else ball ** (1 / ndim)
    wide = std / np.sqrt(1 - np.asarray(spike))
    with np.errstate(divide="ignore"):
        # ln of (Gaussian's peak / (level · (spike + Gaussian's peak)))
        beside = spike / (1 - np.asarray(spike)) * (2 * math.pi * wide**2) ** (ndim / 2)
        heights = -np.log(level) - np.log1p(beside)
    # No smaller than the pixel of the centre.
    return np.asarray(np.maximum(1.0, side * wide * np.sqrt(2 * np.maximum(heights, 0.0))))
