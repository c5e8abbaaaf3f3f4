"""Which device a name means, and what is said where there is none."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastrf as rf
from fastrf import kernels
from fastrf.device import resolve
from fastrf.errors import DeviceError, FastrfError, InputError


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_cpu(name: str) -> None:
    device = resolve(name)
    assert device.name == "cpu"
    assert device.xp is np
    assert kernels.load(device.name) is kernels.load("cpu")
    assert device.reason.startswith("asked for" if name == "cpu" else "auto: ")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:12"])
def test_no_kernels_for_a_gpu(name: str) -> None:
    for ask in (resolve, lambda device: rf.erf(rf.Conv(3), device=device)):
        with pytest.raises(DeviceError) as caught:
            ask(name)
        message = str(caught.value)
        assert repr(name) in message
        assert "device='cpu'" in message
        assert "\n" not in message
    assert issubclass(DeviceError, FastrfError)


@pytest.mark.parametrize(
    "name", ["gpu", "CPU", "", "cuda:", "cuda:x", "cuda:-1", "cuda:0:1", "cpu:0", None, 0]
)
def test_unknown(name: Any) -> None:
    for ask in (resolve, lambda device: rf.erf(rf.Conv(3), device=device)):
        with pytest.raises(InputError) as caught:
            ask(name)
        message = str(caught.value)
        assert message.startswith(f"device={name!r} ")
        assert "'auto', 'cpu', 'cuda' or 'cuda:N'" in message
        assert "\n" not in message
