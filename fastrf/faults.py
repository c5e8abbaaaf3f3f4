"""What the machine does to a computation, as errors of fastrf."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from fastrf.errors import DeviceLostError, FastrfError, Fault, KernelError, OutOfMemoryError

if TYPE_CHECKING:
    from fastrf.erf import ERF

_GPU = frozenset({"CUDARuntimeError", "CUDADriverError"})
_GPU_MEMORY = ("cudaErrorMemoryAllocation", "CUDA_ERROR_OUT_OF_MEMORY")
_COMPILERS = ("numba.", "llvmlite.")


def usual_arithmetic() -> np.errstate:
    """NumPy's own reaction to numbers out of range, whatever the caller has set (`np.seterr`):
    numbers far out in the tails underflow, which is meant."""
    return np.errstate(divide="warn", over="warn", under="ignore", invalid="warn")


@contextmanager
def explained(
    device: str, finished: Callable[[], Mapping[str, ERF]] | None = None
) -> Iterator[None]:
    """Says a failure of the machine as an error of fastrf, with the memory of what failed freed;
    with the `usual_arithmetic`.

    Args:
        device: the name of the device that computes.
        finished: what is done by then.
    """
    try:
        with usual_arithmetic():
            yield
    except FastrfError:
        raise
    except Exception as error:
        fault = _fault(error, device)
        if fault is None:
            raise
        if finished is not None:
            fault.finished = finished()
        # Else the traceback would hold the images that were at work for as long as the error lives.
        traceback.clear_frames(error.__traceback__)
        raise fault from error


def _fault(error: Exception, device: str) -> Fault | None:
    said = " ".join(f"{type(error).__name__}: {error}".split())
    names = {kind.__name__ for kind in type(error).__mro__}
    on_gpu = names & _GPU
    if isinstance(error, MemoryError) or (on_gpu and any(m in said for m in _GPU_MEMORY)):
        return OutOfMemoryError(
            f"memory ran out on {device!r} ({said}); it was free when the computation was planned: "
            f"let nothing else use it meanwhile, or ask for less with input_size=, tail= or "
            f"dtype='float32'"
        )
    if on_gpu:
        return DeviceLostError(
            f"{device!r} failed on the way ({said}), and may answer no more in this process; "
            f"look at nvidia-smi, begin a new process, or give device='cpu'"
        )
    if "CompilationError" in names or type(error).__module__.startswith(_COMPILERS):
        return KernelError(
            f"a kernel does not compile for {device!r} ({said}); `fastrf info` names the versions: "
            f"install those of fastrf's constraints.txt, or give another device="
        )
    return None
