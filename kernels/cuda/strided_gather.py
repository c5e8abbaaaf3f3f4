"""The strided gather: the backward of a transposed convolution, adjoint of ``transposed_conv``."""

from __future__ import annotations

from collections.abc import Sequence

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


def strided_gather(
    y: Floats, taps: Floats, stride: Integers, dilation: Integers, lo: Integers, out: Floats
) -> None:
    """See ``fastrf.kernels.spec.KERNELS["strided_gather"]``."""
    check_floats(y=y, taps=taps, out=out)
    down, spread, crop = per_axis(stride), per_axis(dilation), per_axis(lo)
    check_positive(stride=down, dilation=spread)
    if y.size == 0 or taps.size == 0 or out.size == 0:
        out[...] = 0
        return
    shared = room_for_taps(taps)
    with writable(out) as to:
        launch(
            "strided_gather.cu",
            f"strided_gather_{suffix(out.dtype)}",
            *one_each(out.shape),
            [
                *elements(readable(y)),
                beside(taps, y),
                *integers((*taps.shape, *down, *spread, *crop)),
                *elements(to),
                np.int32(shared > 0),
            ],
            shared,
        )
