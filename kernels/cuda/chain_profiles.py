"""Profiles of many chains of layers along one axis: one block a chain, all its layers."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from fastrf.kernels._checks import Floats
from fastrf.kernels.cpu.chain_profiles import RANGES, SETTLED, check_chains, widths
from numpy.typing import NDArray

from ._geometry import empty, steps, suffix, together, writable
from ._module import launch, properties

Integers = NDArray[np.int64]

# A block has a thread for so many pixels of its longest image, and at most so many warps. Chains
# are sorted into launches by how many warps that is: a block with more threads and memory than its
# chain needs keeps others off the processor.
_EACH = 4
_WARPS = 8
# Blocks a processor of a launch whose images are in global memory.
_LONG_BLOCKS = 4


class Chains(NamedTuple):
    """What describes chains: ``offsets``, ``layers``, ``taps``, ``units`` and ``starts`` of the
    specification, and, for each chain, where its row begins in the result and how long it is."""

    offsets: Integers
    layers: Integers
    taps: Floats
    units: Integers
    starts: Integers
    places: Integers
    windows: Integers


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
    offsets, layers, units, starts = (
        np.ascontiguousarray(a, np.int64) for a in (offsets, layers, units, starts)
    )
    with writable(out) as to:
        row, step = steps(to)
        rows = np.arange(len(out)) * row
        windows = np.full(len(out), out.shape[1])
        chains = Chains(offsets, layers, taps, units, starts, rows, windows)
        propagate(chains, lost, exponents, to, step)


def propagate(chains: Chains, lost: Floats, exponents: Any, out: Floats, step: np.int64) -> None:
    """The profiles of chains, whose pixels are ``step`` elements of ``out`` apart."""
    if len(lost) == 0:
        return
    longest = widths(chains.offsets, chains.layers, chains.units)
    warps = np.clip(-(-longest // (32 * _EACH)), 1, _WARPS)
    kind, device = suffix(out.dtype), properties()
    warps[2 * longest * out.itemsize + 8 * _WARPS > device.shared_per_block] = 0
    order = np.argsort(warps, kind="stable")
    numbers, firsts = np.unique(warps[order], return_index=True)
    *described, places, windows, held_order = together([*chains, order], out)
    limits = RANGES[out.dtype]
    with writable(lost) as to_lost, writable(exponents) as to_exponents:
        for number, first, end in zip(numbers, firsts, [*firsts[1:], len(order)], strict=True):
            most, count = int(longest[order[first:end]].max()), int(end - first)
            offsets, layers, taps, units, starts = described
            arguments = [
                held_order[first:end],
                np.int64(count),
                offsets,
                layers,
                np.int64(chains.layers.shape[1]),
                taps,
                units,
                starts,
                to_lost,
                *steps(to_lost),
                to_exponents,
                *steps(to_exponents),
                out,
                step,
                places,
                windows,
                np.int64(most),
                np.float64(limits.low),
                np.int32(limits.top),
                np.float64(limits.high),
                np.float64(SETTLED),
            ]
            if number:
                shared = 8 * int(number) + 2 * most * out.itemsize
                block = (32 * int(number), 1, 1)
                name = f"chain_profiles_{kind}"
                launch("chain_profiles.cu", name, (count, 1, 1), block, arguments, shared)
                continue
            grid = (min(count, _LONG_BLOCKS * device.processors), 1, 1)
            scratch = empty(out, (grid[0] * 2 * most,))
            launch(
                "chain_profiles.cu",
                f"chain_profiles_long_{kind}",
                grid,
                (32 * _WARPS, 1, 1),
                [*arguments, scratch],
                8 * _WARPS,
            )
