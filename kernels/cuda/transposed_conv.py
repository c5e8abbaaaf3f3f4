"""The transposed convolution of a nonnegative image: Luo et al. 2016, eq. 8."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd

import numpy as np
from fastrf.kernels._checks import Floats, check_floats, check_positive, per_axis
from numpy.typing import NDArray

from ._geometry import (
    beside,
    elements,
    integers,
    one_each,
    readable,
    room_for_taps,
    suffix,
    writable,
)
from ._module import launch

Integers = Sequence[int] | NDArray[np.int64]


def transposed_conv(
    y: Floats, taps: Floats, stride: Integers, dilation: Integers, lo: Integers, out: Floats
) -> None:
    """See ``fastrf.kernels.spec.KERNELS["transposed_conv"]``."""
    check_floats(y=y, taps=taps, out=out)
    up, spread, crop = per_axis(stride), per_axis(dilation), per_axis(lo)
    check_positive(stride=up, dilation=spread)
    if y.size == 0 or taps.size == 0 or out.size == 0:
        out[...] = 0
        return
    common = [gcd(s, d) for s, d in zip(up, spread, strict=True)]
    inverse = [pow(d // g, -1, s // g) for s, d, g in zip(up, spread, common, strict=True)]
    shared = room_for_taps(taps)
    with writable(out) as to:
        launch(
            "transposed_conv.cu",
            f"transposed_conv_{suffix(out.dtype)}",
            *one_each(out.shape),
            [
                *elements(readable(y)),
                beside(taps, y),
                *integers((*taps.shape, *up, *spread, *crop, *common, *inverse)),
                *elements(to),
                np.int32(shared > 0),
            ],
            shared,
        )
