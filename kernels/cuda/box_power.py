"""The profile of n equal layers of uniform taps: the CPU's, copied."""

from __future__ import annotations

import numpy as np
from fastrf.kernels._checks import Floats
from fastrf.kernels.cpu.box_power import box_power as serial

from ._geometry import beside


def box_power(n: int, k: int, top: int, out: Floats) -> None:
    """See ``fastrf.kernels.spec.KERNELS["box_power"]``.

    A recurrence from one coefficient to the next has nothing for a GPU to do at a time; a profile
    is short against the image that is made of it.
    """
    held = np.empty(out.shape, out.dtype)
    serial(n, k, top, held)
    out[...] = beside(held, out)
