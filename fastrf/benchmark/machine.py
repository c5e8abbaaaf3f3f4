"""The machine: what it is, and what it can do at most."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib import metadata
from typing import Any

import numpy as np

from fastrf.device import Device

CPU_COUNT, GPU_COUNT = 3_000_000, 100_000
"""Multiply-adds of each number in a measurement of the arithmetic peak: about 10 ms."""


def machine_of(devices: Sequence[Device], missing: str | None) -> dict[str, Any]:
    gpus = [d for d in devices if not d.is_host]
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": _gpu_name(gpus[0]) if gpus else None,
        "no_gpu": missing,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in ("numpy", "numba", "scipy")},
    }


def _processor() -> str:
    """Its name, where the system says it."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _gpu_name(device: Device) -> str:
    properties = device.xp.cuda.runtime.getDeviceProperties(int(device.name.partition(":")[2]))
    return str(properties["name"].decode())


def waiting(device: Device) -> Callable[[], None]:
    """Waits for what a GPU was given to do."""
    if device.is_host:
        return lambda: None

    def wait() -> None:
        with device.current():
            device.xp.cuda.get_current_stream().synchronize()

    return wait


def cpu_peak(device: Device, dtype: np.dtype[Any], threads: int) -> float:
    from fastrf.kernels.cpu._peak import multiply_adds, vector

    factors = [vector(dtype) for _ in range(threads)]
    multiply_adds(factors[0], 1)  # compiles
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            start = time.perf_counter()
            done = sum(pool.map(lambda out: multiply_adds(out, CPU_COUNT), factors))
            best = max(best, done / (time.perf_counter() - start))
    return best


def gpu_peak(device: Device, dtype: np.dtype[Any], threads: int) -> float:
    from fastrf.kernels.cuda._peak import multiply_adds
    from fastrf.kernels.cuda._peak import threads as threads_of_device

    wait, best = waiting(device), 0.0
    with device.current():
        out = device.xp.empty(threads_of_device(), dtype)
        multiply_adds(out, 1)  # compiles
        wait()
        for _ in range(5):
            start = time.perf_counter()
            done = multiply_adds(out, GPU_COUNT)
            wait()
            best = max(best, done / (time.perf_counter() - start))
    return best
