"""Which device computes, and its array namespace."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import numpy as np

from fastrf.errors import DeviceError, InputError


@dataclass(frozen=True, slots=True)
class Device:
    """A device that fastrf has kernels for.

    Attributes:
        name: "cpu".
        xp: the array namespace that the engines compute with.
        reason: why this device was chosen.
    """

    name: str
    xp: ModuleType
    reason: str


def resolve(device: str = "auto") -> Device:
    """The device that "auto", "cpu", "cuda" or "cuda:N" means here.

    Raises:
        InputError: the name is none of these.
        DeviceError: a GPU was asked for; this version has kernels for the CPU alone.
    """
    if device == "auto":
        return Device("cpu", np, "auto: this version of fastrf computes on the CPU")
    if device == "cpu":
        return Device("cpu", np, "asked for")
    kind, _, number = str(device).partition(":")
    if kind == "cuda" and (number.isdigit() or not _):
        raise DeviceError(
            f"device={device!r} cannot be used: this version of fastrf has kernels for the CPU "
            f"alone; use device='cpu' or 'auto'"
        )
    raise InputError(f"device={device!r} is unknown; give 'auto', 'cpu', 'cuda' or 'cuda:N'")
