"""How every CPU kernel is compiled: one decorator, so that all kernels share one policy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastrf.kernels._shield import out_of_reach
from numba import njit

from ._cache import KernelCache


def kernel(function: Callable[..., None]) -> Any:
    """Compile ``function`` with Numba: serial, without the GIL, kept on disk where possible.

    Serial because the engines tile over threads themselves: OpenMP aborts after a fork, and Numba's
    own layers are not safe from several threads. ``contract`` alone lets a product and a sum fuse
    into one rounding; every other fast-math flag would assume that no NaN or infinity occurs.
    """
    compiled: Any = njit(nogil=True, fastmath={"contract"})(function)
    if hasattr(compiled, "py_func"):  # else Numba was told not to compile
        compiled._cache = KernelCache(function)
        compile_ = compiled.compile
        compiled.compile = lambda signature: out_of_reach(lambda: compile_(signature), leave=True)
    return compiled


def helper(function: Callable[..., Any]) -> Any:
    """Compile ``function``, which compiled code of these modules alone calls.

    Without what Python would call it by, and without a place in the cache: a kernel that is
    cached holds its helpers' code.
    """
    options: dict[str, Any] = {"no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return njit(nogil=True, fastmath={"contract"}, **options)(function)
