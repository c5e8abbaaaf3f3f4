"""CUDA sources compiled, loaded and launched; nothing here waits for the device.

The sources are compiled by NVRTC through CuPy's bindings of it and not by ``cupy.RawModule``, which
always appends ``-ftz=true``: float32 numbers below 1.2e-38, the far tails of an image, would be
flushed to zero. A source is compiled once per kind of device and contents, and what came out is
kept in the user's cache folder where that can be written.

What runs a kernel is a `Backend`. The first launch makes the one for CuPy; tests put one in its
place that runs the same sources on the CPU.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
from fastrf.kernels._folders import user_folder

FOLDER = Path(__file__).parent
"""Where the CUDA sources lie."""

OPTIONS = ("-std=c++17",)
"""What the sources are compiled with, beside the architecture. Subnormal numbers are kept."""

_DEFAULT_SHARED = 48 * 1024
# More dynamic shared memory than this has to be asked for, function by function.


class CompilationError(RuntimeError):
    """NVRTC refused a CUDA source; the message holds what it said."""


@dataclass(frozen=True, slots=True)
class Properties:
    """What the geometry of a launch depends on.

    Attributes:
        processors: streaming multiprocessors.
        threads_per_block, threads_per_processor: threads at most.
        shared_per_block, shared_per_processor: bytes of shared memory at most, where a launch asks
            for them.
    """

    processors: int
    threads_per_block: int
    threads_per_processor: int
    shared_per_block: int
    shared_per_processor: int


class Function(Protocol):
    """A loaded ``__global__`` function."""

    def __call__(
        self,
        grid: tuple[int, ...],
        block: tuple[int, ...],
        arguments: Sequence[Any],
        shared: int,
    ) -> None:
        """Queues the launch on the current stream."""


class Backend(Protocol):
    """What loads and runs CUDA sources."""

    def function(self, source: Path, name: str) -> Function:
        """The function of that name on the current device."""

    def properties(self) -> Properties:
        """Those of the current device."""


backend: Backend | None = None
"""What `launch` runs on; None until the first launch makes the one for CuPy."""


def _backend() -> Backend:
    global backend  # noqa: PLW0603 - a test puts its own in here
    if backend is None:
        backend = CupyBackend()
    return backend


def launch(
    source: str | Path,
    function: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arguments: Sequence[Any],
    shared: int = 0,
) -> None:
    """Queues one kernel on the current device and stream.

    Args:
        source: file name of the CUDA source in this folder, "box_run.cu".
        function: name of a ``extern "C" __global__`` function in it.
        grid, block: numbers of blocks, and of threads in a block, along x, y, z. A grid with a 0 in
            it has nothing to do.
        arguments: arrays, passed as pointers to their first elements, and NumPy scalars of the very
            types that the function takes.
        shared: bytes of dynamic shared memory per block.

    Raises:
        CompilationError: the source does not compile for the device.
        TypeError: an argument is a Python number, whose width nobody has said.
    """
    for i, argument in enumerate(arguments):
        if not isinstance(argument, np.generic) and not hasattr(argument, "strides"):
            raise TypeError(
                f"argument {i} of {function} is {argument!r}; a kernel takes arrays and NumPy "
                "scalars: say np.int32(…), np.int64(…), np.float32(…) or np.float64(…)"
            )
    if 0 in grid:
        return
    _backend().function(FOLDER / source, function)(grid, block, arguments, shared)


def properties() -> Properties:
    """What the current device offers to a launch."""
    return _backend().properties()


# --- sources ----------------------------------------------------------------------------------


@cache
def read(source: Path) -> tuple[str, dict[str, str]]:
    """A CUDA source and the headers beside it, by name."""
    headers = {path.name: path.read_text("utf-8") for path in sorted(source.parent.glob("*.cuh"))}
    return source.read_text("utf-8"), headers


def _cache_folder() -> Path:
    return user_folder("cuda")


made = 0
"""Compilations of this process."""


def writable() -> Path | None:
    """The folder in which compiled sources are kept; None where it cannot be written."""
    try:
        folder = _cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except (OSError, RuntimeError):
        return None
    return folder


def _cached(key: str) -> bytes | None:
    """What an earlier process has compiled; None where nothing can be read."""
    try:
        return (_cache_folder() / key).read_bytes()
    except (OSError, RuntimeError):  # Path.home() raises RuntimeError for a user without one
        return None


def _keep(key: str, image: bytes) -> None:
    """Writes to the cache, all or nothing; where that cannot be, the next process compiles anew."""
    with suppress(OSError, RuntimeError):
        folder = _cache_folder()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            file.write(image)
        os.replace(file.name, folder / key)


# --- CuPy -------------------------------------------------------------------------------------


class CupyBackend:
    """Runs CUDA sources on the GPU that is current in CuPy."""

    def __init__(self) -> None:
        import cupy
        from cupy_backends.cuda.api import driver, runtime
        from cupy_backends.cuda.libs import nvrtc

        self._cupy, self._driver, self._runtime, self._nvrtc = cupy, driver, runtime, nvrtc
        self._modules: dict[tuple[int, Path], Any] = {}
        self._functions: dict[tuple[int, Path, str], _CupyFunction] = {}
        self._properties: dict[int, Properties] = {}
        self._lock = Lock()

    def function(self, source: Path, name: str) -> Function:
        device = self._runtime.getDevice()
        key = (device, source, name)
        found = self._functions.get(key)
        if found is None:
            with self._lock:
                module = self._modules.get((device, source))
                if module is None:
                    module = self._modules[device, source] = self._load(source)
                found = self._functions.setdefault(
                    key, _CupyFunction(module.get_function(name), self._driver)
                )
        return found

    def properties(self) -> Properties:
        device = self._runtime.getDevice()
        if device not in self._properties:
            attributes = self._cupy.cuda.Device(device).attributes
            self._properties[device] = Properties(
                processors=attributes["MultiProcessorCount"],
                threads_per_block=attributes["MaxThreadsPerBlock"],
                threads_per_processor=attributes["MaxThreadsPerMultiProcessor"],
                shared_per_block=attributes["MaxSharedMemoryPerBlockOptin"],
                shared_per_processor=attributes["MaxSharedMemoryPerMultiprocessor"],
            )
        return self._properties[device]

    def _load(self, source: Path) -> Any:
        text, headers = read(source)
        options = (*OPTIONS, self._architecture())
        parts = (*options, *map(str, self._nvrtc.getVersion()), text, *headers, *headers.values())
        digest = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        key = f"{source.stem}-{digest[:32]}"
        kept = _cached(key)
        if kept is not None:
            with suppress(self._driver.CUDADriverError):  # a damaged file is compiled anew
                return self._module(kept)
        global made  # noqa: PLW0603 - a counter, under the lock
        made += 1
        image = self._compile(source.name, text, headers, options)
        _keep(key, image)
        return self._module(image)

    def _module(self, image: bytes) -> Any:
        module = self._cupy.cuda.Module()
        module.load(image)
        return module

    def _architecture(self) -> str:
        """Code for this very device; for one newer than NVRTC, the newest that the driver can
        translate."""
        own = int(self._cupy.cuda.Device().compute_capability)
        known = self._nvrtc.getSupportedArchs()
        if own in known:
            return f"--gpu-architecture=sm_{own}"
        return f"--gpu-architecture=compute_{max(n for n in known if n <= own)}"

    def _compile(
        self, name: str, text: str, headers: dict[str, str], options: tuple[str, ...]
    ) -> bytes:
        nvrtc = self._nvrtc
        program = nvrtc.createProgram(
            text,
            name,
            tuple(header.encode() for header in headers.values()),
            tuple(header.encode() for header in headers),
        )
        try:
            nvrtc.compileProgram(program, options)
            binary = options[-1].startswith("--gpu-architecture=sm_")
            image: bytes = nvrtc.getCUBIN(program) if binary else nvrtc.getPTX(program)
            return image
        except nvrtc.NVRTCError as error:
            log = nvrtc.getProgramLog(program).strip()
            raise CompilationError(
                f"{name} does not compile with {' '.join(options)} ({error}): {log}"
            ) from error
        finally:
            nvrtc.destroyProgram(program)


class _CupyFunction:
    """A function of a loaded module; asks for large shared memory where a launch needs it."""

    def __init__(self, function: Any, driver: Any) -> None:
        self._function, self._driver = function, driver
        self._shared = _DEFAULT_SHARED

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any], shared: int
    ) -> None:
        if shared > self._shared:
            self._driver.funcSetAttribute(
                self._function.ptr,
                self._driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                shared,
            )
            self._shared = shared
        self._function(grid, block, arguments, shared_mem=shared)
