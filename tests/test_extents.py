"""How far a field can reach, before anything is computed: bounds against every pixel's reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastrf as rf
from fastrf.engine.extents import _affine, _extent
from fastrf.errors import InputError
from fastrf.lowering import lower
from fastrf.maps import Spread, Table, Window


def reads(axis: Any, o: int) -> list[int]:
    """Pixels of the input of a map that output pixel o depends on."""
    if isinstance(axis, Window):
        return [o * axis.stride + m * axis.dilation - axis.lo for m in range(axis.kernel)]
    if isinstance(axis, Spread):
        places = [o + axis.lo - m * axis.dilation for m in range(axis.kernel)]
        return [p // axis.stride for p in places if p % axis.stride == 0]
    starts, taps = axis.rows(o, 1)
    return (int(starts[0]) + np.flatnonzero(taps[0])).tolist()


def table(*scale: Any, **options: Any) -> Table:
    (move,) = rf.Upsample(*scale, **options).bind(1).maps(None, 1)
    (axis,) = move.axes
    assert isinstance(axis, Table)
    return axis


AXES = [
    Window(3, 1, 1, 1),
    Window(4, 3, 2, -5),
    Window(1, 2, 1, 7),
    Spread(4, 2, 1, 1),
    Spread(3, 5, 4, -9),
    table(2, "linear"),
    table("3/2", "linear"),
    table("2/5", "cubic"),
    table(2, "cubic"),
    table("5/3"),
]


@pytest.mark.parametrize("axis", AXES)
def test_how_far_a_map_reaches(axis: Any) -> None:
    factor, shift, taps = _affine((axis,))
    for x in range(40):
        for o in (-x, x):
            assert max(map(abs, reads(axis, o)), default=0) <= factor * x + shift
    assert taps == (0 if isinstance(axis, Table) else axis.kernel)


def test_the_widest_field_and_the_largest_kernel() -> None:
    net = rf.Sequential(
        ("first", rf.Conv(5, stride=3)),
        rf.Residual(("wide", rf.Conv(31, padding=15)), rf.Conv(3, padding=1)),
        rf.ConvTranspose(4, stride=2),
        rf.Conv(7),
    )
    graph = lower(net)
    found = _extent(graph, graph.output_node(None), graph.input_node(None))
    assert (found.taps, found.layer) == (31, "residual1.wide")
    field = rf.receptive_field(net)
    assert max(field.size) <= found.width * 2
    assert found.jump >= 1.5


def test_channels_that_nobody_reads_end_no_walk() -> None:
    net = rf.Sequential(
        rf.Input(4),
        ("wide", rf.Conv(9, channels=4)),
        rf.Conv(3, channels=4, groups=4),
        rf.ChannelSlice(0, 1),
        rf.Conv(5),
    )
    graph = lower(net)
    found = _extent(graph, graph.output_node(None), graph.input_node(None))
    assert (found.width, found.taps, found.layer) == (8 + 2 + 4, 9, "wide")


@pytest.mark.parametrize("method", ["auto", "direct", "factored", "spectral"])
@pytest.mark.parametrize("input_size", [None, 8])
def test_a_map_that_nothing_leads_to_is_refused(method: str, input_size: int | None) -> None:
    """As `receptive_field` refuses it; the maps below it have their fields all the same."""
    net = rf.Sequential(rf.Conv(3, padding=1), rf.GlobalPool(), rf.Conv(1))
    options = {"input_size": input_size, "ignore_global": True}
    with pytest.raises(InputError, match="no path leads from the input"):
        rf.receptive_field(net, "conv2", **options)
    with pytest.raises(InputError, match=r"no path leads from 'conv2'.*ignore_global"):
        rf.erf(net, "conv2", method=method, **options)
    if method != "spectral":
        assert list(rf.erf(net, "conv2", method=method, layers="all", **options)) == ["conv1"]
