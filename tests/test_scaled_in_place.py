"""Images that are scaled where they are: only those that nobody else holds.

A plane keeps its image for every operation that reads it. What such an operation makes of it may
share its memory, where no pixel moves. The way through all layers in one call of a kernel shares no
code with the one that is tested here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastrf.kernels import load

import fastrf as rf
from fastrf.arrays import on_host
from fastrf.engine import direct
from fastrf.engine.correlated import propagate_correlated
from fastrf.engine.direct import Propagated, propagate
from fastrf.lowering import lower

S = rf.Sequential


def conv(k: int = 3, **options: Any) -> rf.Conv:
    return rf.Conv(k, padding=k // 2, **options)


def beside(*ways: Any, above: tuple[Any, ...] = (), ndim: int = 1) -> rf.Network:
    """Ways to one map, of which 60 layers without padding read the corner."""
    return S(conv(), rf.Parallel(*ways), *[rf.Conv(3)] * 60, *above, ndim=ndim)


WEAK = conv(taps=[1, 1e-14, 1])
POOLS = (rf.AvgPool(3, stride=1), conv(), rf.AvgPool(3, stride=1))
# `Pad` reads what the map of all ways gets, and all that is not padding lies in its far tail.
PADDED = S(rf.Conv(231), rf.Pad(115))
PADDED_2D = S(rf.Conv((231, 1)), rf.Pad((115, 0)))

# Network, input size, and whether every image that is scaled is nobody else's.
NETWORKS: dict[str, tuple[rf.Network, Any, bool]] = {
    "read first": (beside(PADDED, conv()), 400, False),
    "read last": (beside(conv(), PADDED), 400, False),
    "read twice": (beside(PADDED, PADDED, None), 400, False),
    "along the first axis": (beside(PADDED_2D, conv(), ndim=2), (400, 130), False),
    "covariances above": (beside(PADDED, conv(), above=POOLS), 400, False),
    "weak taps": (S(*[rf.Residual(WEAK)] * 12, ndim=1), 40, True),
    "large gains": (S(*[rf.Residual(conv(gain=2.0**40))] * 12, ndim=2), 30, True),
    "strides": (S(*[conv(stride=2)] * 3, rf.Residual(conv()), rf.ConvTranspose(4, 2, 1)), 64, True),
}


def found_of(name: str, dtype: str, device: str = "cpu", **options: Any) -> Propagated:
    network, size, _ = NETWORKS[name]
    graph = lower(network, size)
    where = (graph, graph.output_node(None), (0,) * graph.ndim, graph.input_node(None))
    if name == "covariances above":
        return propagate_correlated(*where, kernels=load(device), dtype=dtype, **options)
    options = {"at_once": False} | options
    return propagate(*where, kernels=load(device), dtype=dtype, **options)


def leave_planes_alone(patch: pytest.MonkeyPatch) -> None:
    """From here on, an operation that writes to an image that a plane holds is seen."""
    steps = direct.Walk.steps

    def watched(self: direct.Walk, chain: Any) -> Iterator[int]:
        held = [(i.array, on_host(i.array).copy()) for i in self.images.values()]
        yield from steps(self, chain)
        for array, values in held:
            np.testing.assert_array_equal(on_host(array), values)

    patch.setattr(direct.Walk, "steps", watched)


def follow_scales(patch: pytest.MonkeyPatch, in_place: bool) -> list[bool]:
    """Whether each image that is scaled from here on stays where it is, as none does if that is not
    allowed."""
    shifted, seen = direct.Walk._shifted, []

    def watched(
        self: direct.Walk, image: direct.Image, shift: int, fresh: bool = False
    ) -> direct.Image:
        found = shifted(self, image, shift, fresh and in_place)
        seen.append(found.array is image.array)
        return found

    patch.setattr(direct.Walk, "_shifted", watched)
    return seen


def assert_in_place(name: str, dtype: str, device: str = "cpu", **options: Any) -> None:
    """Images are scaled in place, with the bits of copies; planes' are left alone."""
    with pytest.MonkeyPatch.context() as patch:
        follow_scales(patch, in_place=False)
        expected = found_of(name, dtype, device, **options)
    with pytest.MonkeyPatch.context() as patch:
        leave_planes_alone(patch)
        seen = follow_scales(patch, in_place=True)
        found = found_of(name, dtype, device, **options)
    np.testing.assert_array_equal(on_host(found.image), on_host(expected.image), strict=True)
    for figure in ("origin", "mass", "lost", "dropped"):
        assert getattr(found, figure) == getattr(expected, figure)
    assert seen
    assert all(seen) == NETWORKS[name][2]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NETWORKS)
def test_in_place(name: str, dtype: str) -> None:
    assert_in_place(name, dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "covariances above"])
def test_against_one_call(name: str, dtype: str) -> None:
    found, expected = found_of(name, dtype), found_of(name, dtype, at_once=True)
    assert found.origin == expected.origin
    # N roundings in sequence of nonnegative numbers, N·u each: 231 taps, and 61 layers of 3.
    bound = (231 + 61 * 5) * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(found.image, expected.image, rtol=bound, atol=0)
    assert found.mass.log() == pytest.approx(expected.mass.log(), rel=1e-15, abs=bound)
    assert found.lost == pytest.approx(expected.lost, rel=bound)
