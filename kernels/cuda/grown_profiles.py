"""Profiles of many chains on the unbounded grid: one block a chain, side by side.

What chains share is computed by each of them: that costs less than to wait for one another.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from fastrf.kernels._checks import Floats
from fastrf.kernels.cpu.grown_profiles import check_grown
from numpy.typing import NDArray

from ._geometry import empty, steps, writable
from .chain_profiles import Chains, propagate

Integers = NDArray[np.int64]


def grown_profiles(
    offsets: Integers,
    layers: Integers,
    taps: Floats,
    places: Integers,
    exponents: Any,
    out: Floats,
) -> None:
    """See ``fastrf.kernels.spec.KERNELS["grown_profiles"]``."""
    check_grown(offsets, layers, taps, places, exponents, out)
    offsets, places = (np.ascontiguousarray(a, np.int64) for a in (offsets, places))
    # The factors of a product in reverse: `propagate` begins with a chain's last layer, and images
    # stay short as long as taps are close together.
    chain = np.repeat(np.arange(len(exponents)), np.diff(offsets))
    kernel, spacing, first_tap = np.asarray(layers, np.int64)[
        :, offsets[chain] + offsets[chain + 1] - 1 - np.arange(len(chain))
    ]
    zeros = np.zeros_like(kernel)
    rows = np.stack([kernel, zeros + 1, spacing, zeros, zeros - 1, first_tap])
    none = np.zeros(len(exponents), np.int64)
    with writable(out) as to:
        (step,) = steps(to)
        chains = Chains(offsets, rows, taps, none, none, places[:-1] * step, np.diff(places))
        propagate(chains, empty(out, none.shape), exponents, to, step)
