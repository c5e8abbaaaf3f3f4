"""NumPy in the place of CuPy, and the CPU in the place of the GPU.

A launch copies every array that it is given between guard pages, so that an access outside of it
faults and is reported with kernel, block and thread; what lies inside of an array's memory and is
not its own (the gaps between the rows of a tile) is poisoned and must not change.
"""

from __future__ import annotations

import ctypes
import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from fastrf.kernels.cuda._module import Properties
from numpy.lib.stride_tricks import as_strided

from shim.build import build, default_folder, source_line

ORDERS = ("forward", "reverse", "shuffled")
ALIGNMENTS = ("end", "start")

# As on the device: the pointer of an array from CuPy's pool is a multiple of more than any vector.
_VECTOR = 16
_POISON = 0xFF
_PAGE = mmap.PAGESIZE

PROPERTIES = Properties(
    processors=4,
    threads_per_block=1024,
    threads_per_processor=2048,
    shared_per_block=99 * 1024,
    shared_per_processor=100 * 1024,
)
"""Those of a small GPU; few processors, so that small tests meet every block of a launch."""


class KernelError(RuntimeError):
    """A kernel did what a GPU would leave undefined."""


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared", ctypes.c_uint64),
        ("seed", ctypes.c_uint64),
        ("order", ctypes.c_int),
        ("shared_at_start", ctypes.c_int),
        ("seconds", ctypes.c_double),
    )


class _Report(ctypes.Structure):
    _fields_ = (
        ("failure", ctypes.c_int),
        ("writing", ctypes.c_int),
        ("address", ctypes.c_uint64),
        ("place", ctypes.c_uint64),
        ("block", ctypes.c_uint * 3),
        ("thread", ctypes.c_uint * 3),
        ("text", ctypes.c_char * 400),
    )


_FAULT = 1


@dataclass
class StandIn:
    """A backend of ``fastrf.kernels.cuda._module`` that runs on the CPU.

    Attributes:
        order: in which threads, and blocks, take their turns: one of `ORDERS`. A missing barrier
            gives another result in some order.
        seed: of the shuffled order.
        alignment: whether arrays and dynamic shared memory end at a guard page ("end") or begin
            behind one ("start"); in the second case arrays are also aligned as on a device.
        seconds: of CPU time until a launch counts as an endless loop.
        folder: where libraries are built and kept.
        device: what `properties` says.
    """

    order: str = "forward"
    seed: int = 0
    alignment: str = "end"
    seconds: float = 60.0
    folder: Path = field(default_factory=default_folder)
    device: Properties = PROPERTIES

    def properties(self) -> Properties:
        return self.device

    def function(self, source: Path, name: str) -> _Kernel:
        return _Kernel(_library(source, self.folder), name, self)


# --- libraries ----------------------------------------------------------------------------------

_one_launch = Lock()  # the fibers are those of one launch


class _Library:
    def __init__(self, source: Path, folder: Path) -> None:
        self.source, self.path = source, build(source, folder)
        self._functions = ctypes.CDLL(str(self.path))
        self.parameters = {
            name: [part for part in self._text(f"shim_signature_{name}").split(", ") if part]
            for name in self._text("shim_kernels").split()
        }

    def launcher(self, name: str) -> Any:
        return self._functions[f"shim_launch_{name}"]

    def _text(self, function: str) -> str:
        ask = self._functions[function]
        ask.restype = ctypes.c_char_p
        said: bytes = ask()
        return said.decode()


@cache
def _library(source: Path, folder: Path) -> _Library:
    return _Library(source, folder)


class _Kernel:
    def __init__(self, library: _Library, name: str, standin: StandIn) -> None:
        if name not in library.parameters:
            there = ", ".join(library.parameters)
            raise KernelError(f"{library.source.name} has no kernel {name}, but {there}")
        self._library, self._name, self._standin = library, name, standin
        self._launcher = library.launcher(name)
        parameters = library.parameters[name]
        self._wanted = [text.removeprefix("const ") for text in parameters]
        self._results = {i for i, text in enumerate(parameters) if not text.startswith("const ")}

    def __call__(
        self, grid: tuple[int, ...], block: tuple[int, ...], arguments: Sequence[Any], shared: int
    ) -> None:
        grid, block = (*grid, 1, 1)[:3], (*block, 1, 1)[:3]
        self._check_limits(grid, block, shared)
        self._check_types(arguments)
        standin = self._standin
        launch = _Launch(
            grid,
            block,
            shared,
            standin.seed,
            ORDERS.index(standin.order),
            standin.alignment == "start",
            standin.seconds,
        )
        arrays = {i: a for i, a in enumerate(arguments) if isinstance(a, np.ndarray)}
        memory = _Memory(arrays, standin.alignment == "start")
        try:
            cells = [
                ctypes.c_void_p(memory.pointers[i]) if i in arrays else _cell(argument)
                for i, argument in enumerate(arguments)
            ]
            pointers = (ctypes.c_void_p * max(1, len(cells)))(*map(ctypes.addressof, cells))
            report = _Report()
            with _one_launch:
                self._launcher(ctypes.byref(launch), pointers, ctypes.byref(report))
            if report.failure:
                self._raise(report, memory)
            strangers = memory.copy_back(self._results)
            if strangers:
                raise KernelError(f"{self._name} {strangers}")
        finally:
            memory.close()

    def _check_limits(self, grid: tuple[int, ...], block: tuple[int, ...], shared: int) -> None:
        device = self._standin.device
        most = (2**31 - 1, 65535, 65535), (1024, 1024, 64)
        if not all(1 <= n <= m for n, m in zip(grid + block, most[0] + most[1], strict=True)):
            raise KernelError(f"{self._name}: no device takes grid {grid} and block {block}")
        if math.prod(block) > device.threads_per_block:
            raise KernelError(
                f"{self._name}: block {block} has more than {device.threads_per_block} threads"
            )
        if not 0 <= shared <= device.shared_per_block:
            raise KernelError(
                f"{self._name}: {shared} bytes of shared memory, of {device.shared_per_block}"
            )

    def _check_types(self, arguments: Sequence[Any]) -> None:
        """A driver would take the bytes of whatever it is given."""
        given = [f"{a.dtype}*" if isinstance(a, np.ndarray) else str(a.dtype) for a in arguments]
        if given != self._wanted:
            wanted = ", ".join(self._wanted)
            raise KernelError(f"{self._name} takes ({wanted}), not ({', '.join(given)})")

    def _raise(self, report: _Report, memory: _Memory) -> None:
        where = f"{self._name}, block {tuple(report.block)}, thread {tuple(report.thread)}"
        said: str = report.text.decode()
        if report.failure != _FAULT:
            raise KernelError(f"{where}: {said}")
        verb = {0: "reads", 1: "writes"}.get(report.writing, "accesses")
        line = source_line(self._library.path, report.place)
        place = said or memory.describe(report.address)
        raise KernelError(f"{where}: {verb} {place}" + (f" ({line})" if line else ""))


def _cell(scalar: np.generic) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(scalar.tobytes(), scalar.nbytes)


# --- memory -------------------------------------------------------------------------------------

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (
    ctypes.c_void_p,
    ctypes.c_size_t,
    *(ctypes.c_int,) * 3,
    ctypes.c_long,
)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def _address(array: np.ndarray) -> int:
    return int(array.__array_interface__["data"][0])


def _span(array: np.ndarray) -> tuple[int, int]:
    """First byte and the one behind the last of an array that no axis runs through backwards."""
    if any(step < 0 for step in array.strides):
        raise KernelError(f"an array of strides {array.strides} has no first element to point at")
    begin = _address(array)
    if array.size == 0:
        return begin, begin
    reach = sum((n - 1) * step for n, step in zip(array.shape, array.strides, strict=True))
    return begin, begin + reach + array.itemsize


@dataclass
class _Region:
    """Arrays whose memory overlaps, and their copy between guard pages."""

    begin: int
    end: int
    members: list[int]
    copy: int = 0  # address of the copy of `begin`
    data: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    """All that is mapped between the guard pages."""

    def map(self, at_start: bool) -> None:
        length = self.end - self.begin
        lead = self.begin % _VECTOR if at_start else 0
        size = -(-max(1, length + lead) // _PAGE) * _PAGE
        flags, rights = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ | mmap.PROT_WRITE
        mapping = _libc.mmap(None, size + 2 * _PAGE, rights, flags, -1, 0)
        if mapping == ctypes.c_void_p(-1).value:
            raise MemoryError(f"{size} bytes for a launch")
        _libc.mprotect(mapping, _PAGE, 0)
        _libc.mprotect(mapping + _PAGE + size, _PAGE, 0)
        self.data = np.frombuffer((ctypes.c_uint8 * size).from_address(mapping + _PAGE), np.uint8)
        self.data[:] = _POISON
        self.copy = mapping + _PAGE + (lead if at_start else size - length)

    def unmap(self) -> None:
        if self.data.size:
            _libc.munmap(_address(self.data) - _PAGE, self.data.size + 2 * _PAGE)
            self.data = np.empty(0, np.uint8)

    def twin(self, array: np.ndarray) -> np.ndarray:
        """The copy of an array of this region, of the same shape and strides."""
        first = self._from(array)[: array.itemsize].view(array.dtype)
        return as_strided(first, array.shape, array.strides)

    def poison(self, array: np.ndarray) -> None:
        """Fills the copy of an array of this region, and nothing between its elements."""
        shape, strides = (*array.shape, array.itemsize), (*array.strides, 1)
        as_strided(self._from(array), shape, strides)[...] = _POISON

    def _from(self, array: np.ndarray) -> np.ndarray:
        return self.data[self.copy - _address(self.data) + _address(array) - self.begin :]


class _Memory:
    """The arrays of one launch, copied."""

    def __init__(self, arrays: dict[int, np.ndarray], at_start: bool) -> None:
        self._arrays = {i: array for i, array in arrays.items() if array.size}
        self._regions: list[_Region] = []
        self.pointers: dict[int, int] = {}
        spans = {i: _span(array) for i, array in arrays.items()}
        for i in sorted(spans, key=spans.__getitem__):
            begin, end = spans[i]
            if self._regions and begin < self._regions[-1].end:
                self._regions[-1].end = max(end, self._regions[-1].end)
                self._regions[-1].members.append(i)
            else:
                self._regions.append(_Region(begin, end, [i]))
        for region in self._regions:
            region.map(at_start)
            for i in region.members:
                self.pointers[i] = region.copy + spans[i][0] - region.begin
        for region, i in self._members():
            region.twin(self._arrays[i])[...] = self._arrays[i]

    def _members(self) -> Iterator[tuple[_Region, int]]:
        for region in self._regions:
            yield from ((region, i) for i in region.members if i in self._arrays)

    def copy_back(self, results: set[int]) -> str | None:
        """Hands their results to arrays; says where something else was written."""
        for region, i in self._members():
            if i in results:
                self._arrays[i][...] = region.twin(self._arrays[i])
        for region, i in self._members():
            region.poison(self._arrays[i])
        for region in self._regions:
            if (region.data != _POISON).any():
                return f"wrote between or beside the elements of argument {region.members}"
        return None

    def describe(self, address: int) -> str:
        """Where an address lies with respect to the nearest array."""

        def distance(region: _Region) -> int:
            return max(region.copy - address, address - region.copy - (region.end - region.begin))

        if not self._regions:
            return f"address {address:#x}, which is no array's"
        region = min(self._regions, key=distance)
        names = " and ".join(f"argument {i}" for i in region.members)
        if distance(region) > _PAGE + region.data.size:
            return f"address {address:#x}, which is no array's"
        past = address - region.copy - (region.end - region.begin)
        if past >= 0:
            return f"{past} bytes behind the end of {names}"
        return f"{region.copy - address} bytes before the beginning of {names}"

    def close(self) -> None:
        for region in self._regions:
            region.unmap()
