"""The strided gather: the backward of a transposed convolution, adjoint of ``transposed_conv``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ._correlate import correlate
from ._layout import Floats, check_floats, check_positive, per_axis

Integers = Sequence[int] | NDArray[np.int64]


def strided_gather(
    y: Floats, taps: Floats, stride: Integers, dilation: Integers, lo: Integers, out: Floats
) -> None:
    """See ``fastrf.kernels.spec.KERNELS["strided_gather"]``."""
    check_floats(y=y, taps=taps, out=out)
    down, spread, crop = per_axis(stride), per_axis(dilation), per_axis(lo)
    check_positive(stride=down, dilation=spread)
    # With m = k − 1 − m′, source o = i·s + m·d − lo reads o + m′·d = i·s + (k−1)·d − lo.
    a, b, c = ((k - 1) * d - at for k, d, at in zip(taps.shape, spread, crop, strict=True))
    correlate(y, taps[::-1, ::-1, ::-1], (1, 1, 1), down, spread, (a, b, c), out)
