"""What the engines' work costs: the planner's constants, each with where it was measured.

All were measured with `python -m bench.cost` on one core of an Intel Xeon (Sapphire Rapids,
2.6 GHz) with 2 cores. They predict to within a factor of about 3, enough to choose and to warn.
"""

from __future__ import annotations

OPERATION_SECONDS = 95e-6
"""Python's share of one kernel call of the direct engine: windows, buffers, bookkeeping."""

POINTWISE_SECONDS = 8e-6
"""An operation of the direct engine that moves nothing (normalisation, activation, addition)."""

BOX_NANOSECONDS = 2.0
"""One pixel of one axis pass with equal taps, in float64."""

TAP_NANOSECONDS = 0.29
"""One pixel and one tap of a pass with general taps, in float64."""

TABLE_NANOSECONDS = 0.7
"""One pixel and one tap of a table."""

WRITE_NANOSECONDS = 1.6
"""One pixel of the result: normalised, or formed from profiles, into fresh pages."""

FLOAT32_FACTOR = 0.57
"""float32 moves half the bytes; calls and index arithmetic stay."""

WALK_SECONDS = 0.25e-6
"""One operation of a transfer function, whose graph has been taken apart for the plan."""

TERM_SECONDS = 10e-6
"""Making the profiles of one more term."""

ROW_NANOSECONDS = 2.0
"""One pixel of one term's profile."""

TERM_NANOSECONDS = 0.03
"""One pixel and one term of a sum of separable terms,"""

TERMS_THAT_COUNT = 100
"""of which about this many reach any one pixel's last digit (the others are left out)."""

FFT_NANOSECONDS = 1.5
"""One point and one of its log2(points) stages of a real inverse FFT."""

FREQUENCY_NANOSECONDS = 2.0
"""One frequency and one distinct operation of a transfer function."""

SWEEP_NANOSECONDS = 0.55
"""One pixel of one sweep of a run kernel, however many layers it takes,"""

RUN_TAP_NANOSECONDS = 0.043
"""and each tap of the sweep's layers together, per axis."""
