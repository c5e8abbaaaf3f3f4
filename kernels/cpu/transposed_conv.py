"""The transposed convolution of a nonnegative image: Luo et al. 2016, eq. 8."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ._correlate import correlate
from ._layout import Floats, check_floats, check_positive, per_axis

Integers = Sequence[int] | NDArray[np.int64]


def transposed_conv(
    y: Floats, taps: Floats, stride: Integers, dilation: Integers, lo: Integers, out: Floats
) -> None:
    """See ``fastrf.kernels.spec.KERNELS["transposed_conv"]``."""
    check_floats(y=y, taps=taps, out=out)
    up, spread, crop = per_axis(stride), per_axis(dilation), per_axis(lo)
    check_positive(stride=up, dilation=spread)
    correlate(y, taps, up, (1, 1, 1), spread, crop, out)
