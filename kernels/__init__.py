"""The kernels that the engines call, one implementation a device behind one specification.

Importing this package imports no compiler: Numba is imported when the first CPU kernel is loaded,
CuPy when the first CUDA kernel is launched.
"""

from __future__ import annotations

from importlib import import_module
from types import SimpleNamespace

from ._shield import in_subinterpreter, out_of_reach
from .spec import KERNELS, Kernel

__all__ = ["KERNELS", "Kernel", "load"]

DEVICES = ("cpu", "cuda")

IN_SUBINTERPRETER = (
    "this is a sub-interpreter, in which neither NumPy nor Numba can be relied on; call fastrf "
    "from the main interpreter: in one of its threads, or in another process"
)


def load(device: str = "cpu") -> SimpleNamespace:
    """All kernels of one device, as attributes by the names of ``KERNELS``.

    A device is "cpu", "cuda" or "cuda:N"; all GPUs share their kernels, which run on the current
    one. Kernels that the specification gives to other devices alone are left out.

    The namespace of a device is made once and then shared: ask for ``load(device).transposed_box``
    at the time of the call, and a test that replaces the attribute is seen.

    Raises:
        ValueError: if ``device`` is not a device that fastrf has kernels for.
        RuntimeError: in a sub-interpreter.
    """
    kind, _, number = device.partition(":")
    if kind not in DEVICES or (number and kind == "cpu"):
        raise ValueError(
            f"device is {device!r}; kernels exist for {', '.join(map(repr, DEVICES))}: "
            "pass one of these"
        )
    return _LOADED.get(kind) or out_of_reach(lambda: _load(kind), leave=False)


_LOADED: dict[str, SimpleNamespace] = {}


def _load(device: str) -> SimpleNamespace:
    # One module a kernel, both by the kernel's name; a missing one is an error here and not later.
    if in_subinterpreter():
        raise RuntimeError(IN_SUBINTERPRETER)
    package = f"{__name__}.{device}"
    names = [k.name for k in KERNELS.values() if k.devices is None or device in k.devices]
    kernels = SimpleNamespace(
        **{name: getattr(import_module(f"{package}.{name}"), name) for name in names}
    )
    return _LOADED.setdefault(device, kernels)
