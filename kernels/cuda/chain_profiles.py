"""Profiles of many chains of layers along one axis: one block a chain, all its layers."""

from __future__ import annotations

from typing import Any

import numpy as np
from fastrf.kernels._checks import Floats
from fastrf.kernels.cpu.chain_profiles import RANGES, SETTLED, check_chains, widths
from numpy.typing import NDArray

from ._geometry import beside, empty, integers, steps, suffix, writable
from ._module import launch, properties

Integers = NDArray[np.int64]

# A block has a thread for so many pixels of its longest image, and at most so many warps. Chains
# are sorted into launches by how many warps that is: a block with more threads and memory than its
# chain needs keeps others off the processor.
_EACH = 4
_WARPS = 8
# Blocks a processor of a launch whose images are in global memory.
_LONG_BLOCKS = 4


def chain_profiles(
    offsets: Integers,
    layers: Integers,
    taps: Floats,
    units: Integers,
    starts: Integers,
    lost: Floats,
    exponents: Any,
    out: Floats,
) -> None:
    """See ``fastrf.kernels.spec.KERNELS["chain_profiles"]``."""
    check_chains(offsets, layers, taps, units, starts, lost, exponents, out)
    if out.size == 0 and len(out) == 0:
        return
    given = [np.ascontiguousarray(a, np.int64) for a in (offsets, layers, units, starts)]
    longest = widths(given[0], given[1], given[2])
    warps = np.clip(-(-longest // (32 * _EACH)), 1, _WARPS)
    kind, device = suffix(out.dtype), properties()
    warps[2 * longest * out.itemsize + 8 * _WARPS > device.shared_per_block] = 0
    held_offsets, held_layers, held_units, held_starts = (beside(a, out) for a in given)
    # A pointer has to point at something where no layer has taps of its own.
    pool = beside(taps if len(taps) else np.ones(1, out.dtype), out)
    limits = RANGES[out.dtype]
    with writable(lost) as to_lost, writable(exponents) as to_exponents, writable(out) as to:
        results = [a for r in (to_lost, to_exponents, to) for a in (r, *steps(r))]
        for number in np.unique(warps):
            (chosen,) = np.nonzero(warps == number)
            most = int(longest[chosen].max())
            arguments = [
                beside(chosen, out, np.int64),
                np.int64(len(chosen)),
                held_offsets,
                held_layers,
                np.int64(layers.shape[1]),
                pool,
                held_units,
                held_starts,
                *results,
                *integers((out.shape[1], most)),
                np.float64(limits.low),
                np.int32(limits.top),
                np.float64(limits.high),
                np.float64(SETTLED),
            ]
            if number:
                shared = 8 * int(number) + 2 * most * out.itemsize
                block = (32 * int(number), 1, 1)
                grid = (len(chosen), 1, 1)
                launch(
                    "chain_profiles.cu", f"chain_profiles_{kind}", grid, block, arguments, shared
                )
                continue
            grid = (min(len(chosen), _LONG_BLOCKS * device.processors), 1, 1)
            scratch = empty(out, (grid[0] * 2 * most,))
            launch(
                "chain_profiles.cu",
                f"chain_profiles_long_{kind}",
                grid,
                (32 * _WARPS, 1, 1),
                [*arguments, scratch],
                8 * _WARPS,
            )
