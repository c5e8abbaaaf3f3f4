"""Which part of a map a gradient occupies: windows (origin, length) carried backwards.

Pure integer arithmetic, shared by the planner, which looks ahead, and the engines, which allocate.
"""

from __future__ import annotations

from fastrf.maps import AxisMap, Everything, Spread, Table, Window

Span = tuple[int, int]
"""First index and number of pixels along one axis."""


def reached(axis: AxisMap, span: Span, size: int | None) -> tuple[Span, Span]:
    """What of x receives gradient from the window `span` of y.

    Args:
        axis: the map from x to y.
        span: window of y that holds gradient.
        size: pixels of x, or None on the unbounded grid.

    Returns:
        The whole window, and the part of it on the map (the rest is padding). The two are equal
        on the unbounded grid. A window may be empty (length ≤ 0).
    """
    first, count = span
    if count <= 0:
        return span, span
    if isinstance(axis, Window):
        whole = (first * axis.stride - axis.lo, (count - 1) * axis.stride + axis.span + 1)
    elif isinstance(axis, Spread):
        start = -(-(first + axis.lo - axis.span) // axis.stride)
        stop = (first + count - 1 + axis.lo) // axis.stride
        whole = (start, stop - start + 1)
    elif isinstance(axis, Table):
        starts, taps = axis.rows(first, count)
        start, stop = int(starts.min()), int(starts.max()) + taps.shape[1]
        whole = clipped((start, stop - start), size)  # a table has no taps in the padding
    else:
        assert isinstance(axis, Everything)
        assert size is not None
        whole = (0, size)
    return whole, clipped(whole, size)


def clipped(span: Span, size: int | None) -> Span:
    """The part of `span` inside 0 … size−1."""
    if size is None:
        return span
    start, stop = max(span[0], 0), min(span[0] + span[1], size)
    return start, stop - start


def united(a: Span, b: Span) -> Span:
    """The smallest window that holds both."""
    start = min(a[0], b[0])
    return start, max(a[0] + a[1], b[0] + b[1]) - start
