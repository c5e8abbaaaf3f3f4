"""What the engines' work costs: the planner's constants, each with where it was measured.

All were measured with `python -m bench.cost` on one core of an Intel Xeon (Sapphire Rapids,
2.6 GHz) with 2 cores. They predict to within a factor of about 3, enough to choose and to warn.
"""

from __future__ import annotations

OPERATION_SECONDS = 60e-6
"""Python's share of one operation: windows, buffers, calls of a few kernels."""

BOX_NANOSECONDS = 1.6
"""One pixel of one axis pass with equal taps, in float64."""

TAP_NANOSECONDS = 0.35
"""One pixel and one tap of a pass with general taps, in float64."""

TABLE_NANOSECONDS = 1.5
"""One pixel and one tap of a table."""

WRITE_NANOSECONDS = 2.5
"""One pixel of the result: normalised, or formed from profiles, into fresh pages."""

FLOAT32_FACTOR = 0.6
"""float32 moves half the bytes; calls and index arithmetic stay."""
