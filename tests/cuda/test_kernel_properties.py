"""CUDA kernels on calls drawn at random: the CPU's results, and one the adjoint of the other.

The calls and tolerances are those of ``test_properties.py``; between two devices, twice the bound.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import pytest
from fastrf.kernels import load
from hypothesis import given
from shim.standin import StandIn
from test_properties import Call, calls, examples


@pytest.fixture(params=["forward", "reverse"])
def on_shim(request: pytest.FixtureRequest, standin: Callable[..., StandIn]) -> None:
    standin(order=request.param, seed=1)


def on_device(name: str, *values: Any) -> np.ndarray:
    getattr(import_module(f"fastrf.kernels.cuda.{name}"), name)(*values)
    out: np.ndarray = values[-1]
    return out


def convolved(call: Call, name: str, y: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    out = np.full(shape, np.nan, y.dtype)
    return on_device(name, y, call.taps, call.stride, call.dilation, call.lo, out)


@pytest.mark.usefixtures("on_shim")
def test_devices_agree_and_adjoints_hold_of_convolutions():
    @examples(30)
    @given(calls())
    def holds(call):
        rtol = 2 * call.rtol("transposed_conv")
        spread = convolved(call, "transposed_conv", call.y, call.x.shape)
        gathered = convolved(call, "strided_gather", call.x, call.y.shape)
        for name, source, found in (
            ("transposed_conv", call.y, spread),
            ("strided_gather", call.x, gathered),
        ):
            np.testing.assert_allclose(
                found, call.run(name, source, found.shape), rtol=rtol, atol=0
            )
        left = (spread.astype(np.float64) * call.x).sum()
        right = (gathered.astype(np.float64) * call.y).sum()
        rtol += (call.x.size + call.y.size) * 2.0**-53
        assert left == pytest.approx(right, rel=rtol, abs=0)

    holds()


@pytest.mark.usefixtures("on_shim")
def test_devices_agree_on_boxes():
    @examples(30)
    @given(calls())
    def holds(call):
        k, s, d, lo = call.taps.shape[2] + 3, call.stride[1], call.dilation[1], call.lo[1]
        for name in ("transposed_box", "gather_box"):
            shape = (call.y.shape[0], call.x.shape[1], call.y.shape[2])
            found = on_device(name, call.y, k, s, d, lo, np.full(shape, np.nan, call.y.dtype))
            cpu = np.empty_like(found)
            getattr(load(), name)(call.y, k, s, d, lo, cpu)
            # Either adds at most k pixels, in an order of its own.
            rtol = 2 * k * float(np.finfo(cpu.dtype).eps)
            np.testing.assert_allclose(found, cpu, rtol=rtol, atol=0)

    holds()
