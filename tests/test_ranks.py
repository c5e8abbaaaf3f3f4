"""Ranks foretold at a few frequencies, against those that reductions leave."""

from __future__ import annotations

import math
from typing import Any

import pytest

import fastrf as rf
from fastrf.engine.recompressed import recompress, volumes
from fastrf.engine.recompressed.ranks import columns, spectra
from fastrf.engine.recompressed.script import script
from fastrf.lowering import lower

TOL = 1e-9


def conv(kernel: Any, stride: int = 1, dilation: int = 1, gain: float = 1.0) -> rf.Conv:
    padding = "same" if stride == 1 else dilation * (kernel - 1) // 2
    return rf.Conv(kernel, stride, dilation, padding, gain=gain)


def blocks(*layers: rf.Conv, ndim: int = 2, before: tuple[rf.Conv, ...] = ()) -> rf.Network:
    return rf.Sequential(*before, *map(rf.Residual, layers), ndim=ndim)


CASES: dict[str, tuple[rf.Network, int | None]] = {
    "smooth": (blocks(*map(conv, (3, 5) * 12)), None),
    "wide": (blocks(*map(conv, (31, 51, 71) * 4)), None),
    "wide, with borders": (blocks(*map(conv, (31, 51, 71) * 4)), 500),
    "weak branches": (blocks(*[conv(k, gain=0.05) for k in (3, 5, 7, 9) for _ in range(30)]), None),
    "kernels": (blocks(*map(conv, (3, 5, 7, 9, 11) * 3)), 200),
    "holes": (blocks(*[conv(3, 1, d) for d in (1, 2, 3, 4)] * 4), 160),
    "even taps and holes": (blocks(*[conv(4, 1, d) for d in (6, 1, 5, 3) * 2]), None),
    "strides": (
        blocks(*[conv(3, 1, d) for d in (1, 2, 4) * 4], before=(conv(7, 2), conv(3))),
        300,
    ),
    "volume": (blocks(*map(conv, (3, 5, 7) * 3), ndim=3), 40),
    "flat volume": (
        blocks(*[conv((3, k, k)) for k in (3, 5, 7) * 3], ndim=3, before=(conv((1, 3, 3)),)),
        36,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_reductions_leave(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network, size = CASES[name]
    graph = lower(network, size)
    node = graph.output_node(None)
    where = (graph, node, graph.unit_index(node, "center"), graph.input_node(None))
    left: list[tuple[int, ...]] = []
    whole = volumes.reduced

    def reduced(*arguments: Any) -> Any:
        found = whole(*arguments)
        left.append(found[0].weights.shape)
        return found

    monkeypatch.setattr(volumes, "reduced", reduced)
    found = recompress(*where, tol=TOL)
    written = script(*where)
    foretold = columns(written, spectra(written), written.allowed(TOL, graph.input_size))
    assert found.reductions
    if graph.ndim == 2:
        left = [(found.rank,) * 2]
    for axis in range(graph.ndim):
        most = max(own[axis] for own in left)
        expected = max(own[axis] for own in foretold.values())
        # Between the sums that are looked at, and beside borders, ranks are a little different.
        assert abs(expected - most) <= math.ceil(most / 8), (axis, expected, most)


def test_nothing_is_looked_at_where_nothing_is_reduced() -> None:
    graph = lower(blocks(*[conv(3)] * 60), 64)
    node = graph.output_node(None)
    assert spectra(script(graph, node, (3, 3), graph.input_node(None))) == {}
