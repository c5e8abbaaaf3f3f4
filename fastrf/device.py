"""Which device computes, and its array namespace.

CuPy is imported when a GPU is asked for, or when "auto" finds both CuPy and a driver: a machine
without a GPU never waits for it, and a broken CuPy is a reason and not an error.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import numpy as np

from fastrf.errors import DeviceError, InputError, short
from fastrf.hostmemory import free_on_host
from fastrf.kernels import IN_SUBINTERPRETER
from fastrf.kernels._shield import in_subinterpreter


@dataclass(frozen=True, slots=True)
class Device:
    """A device that fastrf has kernels for.

    Attributes:
        name: "cpu" or "cuda:N".
        xp: the array namespace that the engines compute with, NumPy or CuPy.
        reason: why this device was chosen.
        other: the GPU that "auto" may take where the work is worth it; the planner decides.
    """

    name: str
    xp: ModuleType
    reason: str
    other: Device | None = None

    @property
    def is_host(self) -> bool:
        """Whether the host itself computes, and not a GPU beside it."""
        return self.xp is np

    def current(self) -> AbstractContextManager[Any]:
        """While it is entered, CuPy computes on this device; for the CPU it does nothing."""
        context: AbstractContextManager[Any] = nullcontext() if self.is_host else self._handle
        return context

    def free_memory(self) -> int:
        """Bytes that can be taken: of a GPU's memory, what CuPy's pool holds unused among them; of
        the host's, what needs no swapping and its control group leaves (`hostmemory`)."""
        if self.is_host:
            return free_on_host()
        with self.current():
            free, _ = self.xp.cuda.runtime.memGetInfo()
            return int(free + self.xp.get_default_memory_pool().free_bytes())

    def bandwidth(self) -> float | None:
        """Bytes per second of a GPU's memory as on its data sheet; None where that is not known.

        Two transfers a clock over the whole bus, as NVIDIA's deviceQuery reckons it.
        """
        if self.is_host:
            return None
        said = self._handle.attributes
        kilohertz, bits = said.get("MemoryClockRate", 0), said.get("GlobalMemoryBusWidth", 0)
        return 2 * 1e3 * kilohertz * bits / 8 or None

    @property
    def _handle(self) -> Any:
        """CuPy's object of this GPU."""
        return self.xp.cuda.Device(int(self.name.partition(":")[2]))


def resolve(device: str = "auto") -> Device:
    """The device that "auto", "cpu", "cuda" or "cuda:N" means here.

    "cuda" is the GPU that is current in CuPy. "auto" is the CPU and, where there is one, that GPU
    as its `other`: whether the work is worth it is the planner's to say.

    Raises:
        InputError: the name is none of these.
        DeviceError: a GPU was asked for that cannot be used; the message says what is in the way.
    """
    if in_subinterpreter():
        raise DeviceError(IN_SUBINTERPRETER)
    if device == "auto":
        missing = gpu_at_hand()
        if missing is not None:
            return Device("cpu", np, f"auto: no GPU, {missing}")
        return Device("cpu", np, "auto: no GPU was asked for", resolve("cuda"))
    if device == "cpu":
        return HOST
    kind, colon, number = str(device).partition(":")
    if kind != "cuda" or (colon and not (number.isascii() and number.isdigit())):
        raise InputError(
            f"device={short(device)} is unknown; give 'auto', 'cpu', 'cuda' or 'cuda:N'"
        )
    found = _look()
    if found.xp is not None and number and int(number[:9]) >= found.count:
        found = _Found(
            f"CUDA numbers its GPUs here from 0 to {found.count - 1}",
            "take one of these (CUDA_VISIBLE_DEVICES hides others)",
        )
    if found.xp is None:
        raise DeviceError(
            f"device={short(device)} cannot be used: it takes CuPy, NVIDIA's driver and a GPU, and "
            f"{found.problem}; {found.remedy}, or use device='cpu' or 'auto'"
        )
    index = int(number) if number else found.xp.cuda.runtime.getDevice()
    return Device(f"cuda:{index}", found.xp, "asked for")


def gpu_at_hand() -> str | None:
    """Why no GPU can be used here; None where one can. Never raises, and looks only once."""
    found = _look()
    return found.problem if found.xp is None else None


def devices() -> tuple[str, ...]:
    """The names of all devices that can be used here."""
    return ("cpu", *(f"cuda:{i}" for i in range(_look().count)))


HOST = Device("cpu", np, "asked for")
"""The CPU."""


# --- looking for a GPU ------------------------------------------------------------------------

_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_EMULATED = "CUBLAS_EMULATE_DOUBLE_PRECISION"  # which is off unless this says 1
_INSTALL = "pip install 'fastrf[cuda12]' (with a driver for CUDA 13: 'fastrf[cuda13]')"


@dataclass(frozen=True, slots=True)
class _Found:
    """CuPy and how many GPUs it can use; or what is in the way, and what helps."""

    problem: str = ""
    remedy: str = ""
    xp: ModuleType | None = None
    count: int = 0


@cache
def _look() -> _Found:
    if "cupy" not in sys.modules and find_spec("cupy") is None:
        return _Found("CuPy is not installed", f"install it with {_INSTALL}")
    if not _has_driver():
        return _Found(
            f"the driver was not found ({_DRIVER} cannot be loaded)",
            "install NVIDIA's driver (in a container: pass the GPU on to it)",
        )
    try:
        import cupy
    except OSError as error:
        return _Found(
            f"CuPy fails to import ({_said(error)})",
            "if it names a folder, set CUPY_CACHE_DIR to one that can be written; else reinstall "
            f"CuPy with {_INSTALL}",
        )
    except Exception as error:  # whatever is broken in it
        return _Found(
            f"CuPy fails to import ({_said(error)})",
            f"uninstall every cupy package, then {_INSTALL}",
        )
    try:
        count = cupy.cuda.runtime.getDeviceCount()
        if count == 0:
            return _Found("no GPU was found", "look at nvidia-smi and CUDA_VISIBLE_DEVICES")
        numbers = cupy.zeros(1)  # sets up the device and takes memory of it; compiles nothing
    except Exception as error:
        return _Found(
            f"the GPU does not answer ({_said(error)})",
            "look at nvidia-smi and CUDA_VISIBLE_DEVICES, or install the other of the extras "
            "cuda12 and cuda13",
        )
    try:
        # Compiled once, and then in CuPy's cache. Most of what is missing or does not match (NVRTC,
        # CUDA's headers, a driver older than NVRTC) shows here and not before.
        float((numbers + 1)[0])
    except Exception as error:
        return _Found(
            f"CuPy cannot compile for the GPU ({_said(error)})",
            f"install what it compiles with by {_INSTALL}, and no NVRTC newer than the driver "
            "(uninstall nvidia-cuda-nvrtc where the driver is for CUDA 12)",
        )
    # What engines take from CUDA beside NVRTC, and is no part of CuPy.
    for name in ("cublas", "cufft", "cusolver", "cusparse"):
        try:
            getattr(cupy.cuda, name)
        except Exception as error:
            return _Found(
                f"CuPy finds no {name} ({_said(error)})",
                f"install CuPy and what it needs with {_INSTALL}, or NVIDIA's CUDA toolkit",
            )
    if os.environ.get(_EMULATED, "0") not in ("", "0"):
        return _Found(
            f"{_EMULATED} makes cuBLAS emulate double precision, of which no bound of an error is "
            f"known here",
            "unset it",
        )
    return _Found(xp=cupy, count=count)


def _has_driver() -> bool:
    try:
        ctypes.CDLL(_DRIVER)
    except OSError:
        return False
    return True


def _said(error: Exception) -> str:
    """The error on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())
