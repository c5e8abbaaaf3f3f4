"""Arrays of other libraries: taken in without a copy, handed back in kind.

NumPy's and CuPy's arrays are computed with as they are. Any other array that speaks DLPack (a
PyTorch tensor, a JAX array) becomes a view of the same memory: NumPy's for memory of the host,
CuPy's for that of a GPU, where DLPack orders the streams of both libraries. No library is imported
for it but CuPy, and that only where an array lies on a GPU.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf.arrays import Array, library, on_host
from fastrf.errors import InputError

_HOST = frozenset([1, 3, 11])  # DLPack's kDLCPU, kDLCUDAHost, kDLROCMHost: what NumPy reads
_CUDA = frozenset([2, 13])  # kDLCUDA, kDLCUDAManaged

REFUSED = (TypeError, ValueError, OverflowError, BufferError, RuntimeError, AttributeError)
"""What NumPy and DLPack raise for what cannot be had as numbers."""


def taken(name: str, array: Any) -> Array:
    """An array as NumPy's or CuPy's, of the same memory.

    Raises:
        InputError: it is no array, is masked, has gradients, or lies where fastrf cannot compute.
        DeviceError: it lies on a GPU that cannot be used here.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise InputError(f"{name} is masked: what is masked would count; call {name}.filled(0)")
    if isinstance(array, np.ndarray):
        return np.asarray(array)
    if library(array) == "cupy":
        return array
    if not (hasattr(array, "__dlpack__") and hasattr(array, "__dlpack_device__")):
        raise InputError(
            f"{name} is a {type(array).__name__}: it must be an array of NumPy or CuPy, or one "
            f"with DLPack, as PyTorch's; convert it with numpy.asarray"
        )
    try:
        kind, number = map(int, array.__dlpack_device__())
        if kind in _HOST:
            return np.from_dlpack(array)
    except REFUSED as error:
        raise _not_handed_out(name, error) from None
    if kind not in _CUDA:
        raise InputError(
            f"{name} lies on a device of DLPack's kind {kind}: fastrf computes on the CPU and on "
            f"CUDA; copy it to the CPU first"
        )
    from fastrf.device import resolve

    place = resolve(f"cuda:{number}")
    try:
        with place.current():
            return place.xp.from_dlpack(array)
    except REFUSED as error:
        raise _not_handed_out(name, error) from None


def in_kind(result: Array, like: Any) -> Any:
    """A result as an array of the library that `like` is of, of the same memory.

    What is no array of another library leaves the result as it is.
    """
    own = isinstance(like, np.ndarray) or library(like) == "cupy"
    if own or not hasattr(like, "__dlpack__"):
        return result
    spelled = getattr(like, "__array_namespace__", None)
    home = spelled() if spelled is not None else sys.modules[library(like)]
    if not hasattr(home, "from_dlpack"):
        raise InputError(
            f"{home.__name__} has no from_dlpack: a result cannot be handed back in kind; give "
            f"numpy.asarray of the {type(like).__name__}"
        )
    return home.from_dlpack(result)


def hosted(values: Any) -> NDArray[Any]:
    """An array in the host's memory, from whatever library or sequence it comes; what lies on a
    device is copied. Raises one of `REFUSED` where there is none."""
    if library(values) == "cupy":
        return on_host(values)
    if not isinstance(values, np.ndarray) and hasattr(values, "__dlpack__"):
        if values.__dlpack_device__()[0] in _HOST:
            return np.from_dlpack(values)
        return np.from_dlpack(values, device="cpu")  # from NumPy 2.1 on
    return np.asarray(values)


def detached(values: Any) -> Any:
    """A tensor without its gradient: what describes a layer is read once, and nobody differentiates
    by it."""
    return values.detach() if hasattr(values, "detach") else values


def numbers(values: Any) -> NDArray[np.float64]:
    """As `hosted`, as real numbers of double precision."""
    array = hosted(values)
    if array.dtype.kind == "c":
        raise TypeError("complex numbers")
    return np.asarray(array, dtype=np.float64)


def _not_handed_out(name: str, error: Exception) -> InputError:
    said = " ".join(str(error).split())
    return InputError(
        f"{name} is not handed out by its library ({said}): it must be a plain strided array of "
        f"numbers without gradients; of a PyTorch tensor, give {name}.detach()"
    )
