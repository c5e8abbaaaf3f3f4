"""What a plan refuses before it looks closer: no path, fields wider than any image, many taps.

A plan itself allocates in proportion to kernels and windows, and counts pixels in 64 bits; a bound
on both keeps it from running out of either. The bound is rough and cheap: one walk over the
operations in floats, which is kept with the graph.
"""

from __future__ import annotations

from typing import NamedTuple

from fastrf.errors import InputError, PlanError
from fastrf.lowering import PlaneGraph
from fastrf.maps import AxisMap, Everything, Spread, Table, Window

WIDEST = 2.0**40
"""Pixels per axis that a field on the unbounded grid may reach: more than fit into any memory."""

FARTHEST = 2.0**60
"""Greatest magnitude of a pixel's index; indices are whole numbers of 64 bits."""

MOST_TAPS = 1 << 24
"""Most taps of a kernel per axis: engines hold one number a tap."""


class Extent(NamedTuple):
    """How far from the origin the field of unit u may reach along any axis, at most: anywhere on
    the way ``width + jump·(|u| + 1)`` pixels. `taps` is the most that a kernel has, at `layer`."""

    width: float
    jump: float
    taps: int
    layer: str


def check_extent(graph: PlaneGraph, node: str, unit: tuple[int, ...], input_node: str) -> None:
    """Refuses what no plan can be made for.

    Raises:
        PlanError: the field is too wide, too far out, or a kernel has too many taps.
    """
    found = graph.once(("extent", node, input_node), lambda: _extent(graph, node, input_node))
    if found.taps > MOST_TAPS:
        raise PlanError(
            f"{found.layer} has a kernel of {found.taps} taps along an axis, more than the "
            f"{MOST_TAPS} that an effective field can be computed for; give a smaller kernel, or "
            f"ask for receptive_field, which takes any"
        )
    if graph.input_size is not None:
        return
    if found.width > WIDEST:
        raise PlanError(
            f"the field of {node!r} may be {found.width:.3g} pixels wide, more than the "
            f"{WIDEST:.3g} of any image; give an input_size, or ask for receptive_field"
        )
    far = found.width + found.jump * (max(map(abs, unit)) + 1)
    if far > FARTHEST:
        raise PlanError(
            f"the field of unit {unit} of {node!r} may lie {far:.3g} pixels from the origin, "
            f"beyond {FARTHEST:.3g}; ask for a unit nearer to 0, or give an input_size"
        )


def check_path(graph: PlaneGraph, node: str, input_node: str) -> None:
    """Refuses a map that no path joins to the input.

    Raises:
        InputError: there is none.
    """
    if not graph.joined(node, input_node):
        raise InputError(
            f"no path leads from {node!r} to the input {input_node!r} (ignore_global leaves out "
            f"those through global layers); choose another output or input"
        )


def _extent(graph: PlaneGraph, node: str, input_node: str) -> Extent:
    """A walk from the unit to the input, with the widest and the farthest way to each plane."""
    planes = dict.fromkeys(graph.planes_of[node], (0.0, 1.0))
    width, jump, taps, layer = 0.0, 1.0, 0, node
    affine: dict[int, tuple[float, float, int]] = {}
    for op in reversed(graph.between(node, input_node)):
        above = [planes[p] for p, _ in op.targets if p in planes]
        if not above:
            continue
        far, step = max(w for w, _ in above), max(j for _, j in above)
        for move in reversed(op.maps):
            if id(move) not in affine:
                affine[id(move)] = _affine(move.axes)
            factor, shift, count = affine[id(move)]
            far, step = far * factor + shift, max(step * factor, 1.0)
            if count > taps:
                taps, layer = count, op.node
            width, jump = max(width, far), max(jump, step)
        for q, _ in op.sources:
            old = planes.get(q, (0.0, 0.0))
            planes[q] = (max(old[0], far), max(old[1], step))
    return Extent(width, jump, taps, layer)


def _affine(axes: tuple[AxisMap, ...]) -> tuple[float, float, int]:
    """(a, b, taps): what is at most x pixels from the origin of a map's output is at most a·x + b
    from its input's, and the kernel has so many taps."""
    factor, shift, taps = 0.0, 0.0, 0
    for axis in axes:
        if isinstance(axis, Window):
            own = float(axis.stride), float(abs(axis.lo) + axis.span)
        elif isinstance(axis, Spread):
            own = 1 / axis.stride, (abs(axis.lo) + axis.span) / axis.stride + 1
        elif isinstance(axis, Table):
            ends = abs(int(axis.starts[0])) + abs(int(axis.starts[-1])) + axis.taps.shape[1]
            own = axis.advance / axis.period, float(ends)
        else:
            assert isinstance(axis, Everything)
            own = 1.0, 0.0
        factor, shift = max(factor, own[0]), max(shift, own[1])
        if isinstance(axis, Window | Spread):
            taps = max(taps, axis.kernel)
    return factor, shift, taps
