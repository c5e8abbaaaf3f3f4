"""What the engines' work costs: the planner's constants, each with where it was measured.

The constants are those of one core of a CPU; `Costs` says how another device differs. Where nothing
else is said, they were measured on one of two cores of an Intel Xeon (family 6, model 106, 2.8 GHz)
that ran other programs too, with `python -m bench.limits`; `python -m bench.cost` measures them one
by one. They predict to within a factor of about 3, enough to choose and to warn.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

OPERATION_SECONDS = 180e-6
"""Python's share of one kernel call of the direct engine: windows, buffers, bookkeeping."""

VERB_SECONDS = 250e-6
"""What asking for a field takes besides the engine: the plan again, the result and its window."""

WALK_CALL_SECONDS = 300e-6
"""The direct engine's walk besides,"""

LAYER_SECONDS = 25e-6
"""an operation in it,"""

TAIL_SECONDS = 100e-6
"""and, where a share of the mass may be dropped, looking for it along one axis,"""

SWEEP_CALL_SECONDS = 120e-6
"""one call for a run of layers,"""

PASS_SECONDS = 60e-6
"""one for a single axis of a layer,"""

SUM_SECONDS = 40e-6
"""and one that adds images up."""

POINTWISE_SECONDS = 15e-6
"""An operation of the direct engine that moves nothing (normalisation, activation, addition)."""

CALL_SECONDS = 70e-6
"""The direct engine where images are so small that all layers go in one call: the call itself,"""

INSTRUCTION_SECONDS = 1.8e-6
"""an operation,"""

PIXEL_NANOSECONDS = 0.2
"""one pixel of such a layer,"""

ALONE_TAP_NANOSECONDS = 0.105
"""each of its taps (of its axes' taps together, where they are a product),"""

ROW_CALL_NANOSECONDS, ROW_TAP_NANOSECONDS = 230.0, 3.4
"""a row of such a layer, and each of its taps once more,"""

DENSE_ROW_NANOSECONDS, DENSE_TAP_NANOSECONDS = 350.0, 0.47
"""the same where taps are no product,"""

SUM_NANOSECONDS = 1.2
"""and one pixel of a sum of images."""

CACHED_ROW, FROM_MEMORY = 1 << 15, 3.0
"""Pixels of a row that stays in a core's own cache with what is made of it; and how many times as
long a pixel and its taps take in longer ones."""

BOX_NANOSECONDS = 3.5
"""One pixel of one axis pass with equal taps, in float64."""

TAP_NANOSECONDS = 0.5
"""One pixel and one tap of a pass with general taps, in float64."""

CORRELATE_NANOSECONDS, CORRELATE_TAP_NANOSECONDS = 1.2, 0.1
"""One pixel of a pass with taps that are no product, and one of its taps, in float64,"""

CORRELATE_ROW_NANOSECONDS = 40.0
"""and one tap on one row: where it begins and ends there."""

TABLE_NANOSECONDS = 1.2
"""One pixel and one tap of a table."""

WRITE_NANOSECONDS = 2.4
"""One pixel of the result: normalised, or formed from profiles, into fresh pages."""

FIELD_BYTES = 18 << 10
"""What a field takes that is no array of pixels, profiles or terms: Python's own."""

WAVES_SECONDS, WAVE_SECONDS = 200e-6, 120e-6
"""The spectral engine's fixed share, that of an axis too, and that of a distinct operation."""

PROFILES_SECONDS = 180e-6
"""The factored engine's fixed share: the polynomial, profiles, the image's window."""

FLOAT32_FACTOR = 0.57
"""float32 moves half the bytes; calls and index arithmetic stay."""

WALK_SECONDS = 0.3e-6
"""One operation of a transfer function, whose graph has been taken apart for the plan."""

TERM_SECONDS, FACTOR_SECONDS, PRODUCT_SECONDS = 15e-6, 12e-6, 13e-6
"""Making the profile of one more term of several kernels; a power of an equal kernel for it, or a
whole profile of a single kernel; and a convolution of two profiles,"""

PHASE_SECONDS = 4e-6
"""and, where one of them has gaps, each of its phases."""

PIECE_SECONDS = 40e-6
"""A block of an image that is formed of terms."""

ROW_NANOSECONDS = 3.5
"""One pixel of one term's profile."""

PRODUCT_NANOSECONDS = 0.2
"""One product of a convolution of two profiles: 0.14 to 0.3 from lines of 3 to 5,000 taps on."""

TERM_NANOSECONDS = 0.04
"""One pixel and one term of a sum of separable terms,"""

TERMS_THAT_COUNT = 100
"""of which about this many reach any one pixel's last digit (the others are left out)."""

FFT_NANOSECONDS = 2.0
"""One point and one of its log2(points) stages of a real inverse FFT."""

FREQUENCY_NANOSECONDS = 3.0
"""One frequency and one distinct operation of a transfer function."""

SINE_NANOSECONDS, PHASE_NANOSECONDS = 17.0, 45.0
"""One frequency of an axis and a pair of taps that are alike, or one tap of others,"""

LONG_NANOSECONDS = 150.0
"""and all of a long kernel's equal taps."""

SWEEP_NANOSECONDS = 1.0
"""One pixel of one sweep of a run kernel, however many layers it takes,"""

RUN_TAP_NANOSECONDS = 0.07
"""and each tap of the sweep's layers together, per axis;"""

VOLUME_TIMES = 2.3
"""in volumes on a CPU, whose tiles are small, so many times as long: 1.7 to 3.2 from 25³ to
100 × 100 × 20 pixels and one to 23 layers on an AMD EPYC."""

LAUNCHES, LAUNCH_SECONDS = 3, 10e-6
"""Launches of kernels and array functions in an operation on a GPU, and what the host needs for
each. By count and by CuPy's reputation, not measured."""

BANDWIDTH_SHARE = 0.6
"""Share of its data sheet's memory bandwidth at which a GPU updates pixels. Assumed, not
measured: a pass that reads and writes each pixel once reaches more, one with strides less."""

LEAST_BANDWIDTH = 200e9
"""Bytes per second of a GPU that does not say: a laptop's."""

LINK_BANDWIDTH = 20e9
"""Bytes per second from a GPU to the host: PCI Express 4, 16 lanes, by its data sheet 31.5e9, of
which pageable memory sees less. Not measured."""


def box_nanoseconds(kernel: int) -> float:
    """One pixel of one axis pass with so many equal taps. Longer windows than a cache holds are
    added up in as many passes through memory as they have bits."""
    return BOX_NANOSECONDS if kernel <= CACHED_ROW else math.log2(kernel)


def dtype_factor(dtype: Any) -> float:
    """Time per pixel in a dtype over that in float64."""
    return FLOAT32_FACTOR if dtype.itemsize == 4 else 1.0


@dataclass(frozen=True, slots=True)
class Costs:
    """What a device makes of a forecast in one CPU core's time.

    Attributes:
        measured: whether the device's forecasts have been held against a clock.
        fixed: time of what does not depend on pixels over the CPU's.
        shared: time per pixel over the CPU's.
        result: seconds for a byte of a result to reach the host.
    """

    measured: bool
    fixed: float
    shared: float
    result: float


CPU = Costs(True, 1.0, 1.0, 0.0)


def of_gpu(bandwidth: float | None) -> Costs:
    """Those of a GPU of this memory bandwidth, in bytes per second by its data sheet: pixels as
    fast as memory hands them over, where a core of the CPU moves 16 bytes in `BOX_NANOSECONDS`."""
    core = 16 / (1e-9 * BOX_NANOSECONDS)
    reached = BANDWIDTH_SHARE * (bandwidth or LEAST_BANDWIDTH)
    fixed = 1 + LAUNCHES * LAUNCH_SECONDS / OPERATION_SECONDS
    return Costs(False, fixed, core / reached, 1 / LINK_BANDWIDTH)
