"""NVRTC from its PyPI wheel, which needs neither a GPU nor a driver.

The functions have the names and arguments of CuPy's bindings (``cupy_backends.cuda.libs.nvrtc``).
"""

from __future__ import annotations

import ctypes
import re
from functools import cache
from importlib import metadata
from pathlib import Path

DISTRIBUTIONS = ("nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvrtc")
_LIBRARY = re.compile(r"libnvrtc\.so\.\d+|nvrtc64_\d+_0\.dll")


class NVRTCError(RuntimeError):
    """A call of NVRTC failed."""


def why_not() -> str | None:
    """Why there is no NVRTC here; None where there is one."""
    return None if _path() else f"none of the wheels {', '.join(DISTRIBUTIONS)} is installed"


def _path() -> Path | None:
    for name in DISTRIBUTIONS:
        try:
            files = metadata.files(name) or ()
        except metadata.PackageNotFoundError:
            continue
        for file in files:
            if _LIBRARY.fullmatch(file.name):
                return Path(str(file.locate()))
    return None


@cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(str(_path()))
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def _call(name: str, *arguments: object) -> None:
    status = _library()[name](*arguments)
    if status:
        said = _library().nvrtcGetErrorString(status).decode()
        raise NVRTCError(f"{said} ({status})")


def getVersion() -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
    return major.value, minor.value


def getSupportedArchs() -> tuple[int, ...]:
    count = ctypes.c_int()
    _call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
    found = (ctypes.c_int * count.value)()
    _call("nvrtcGetSupportedArchs", found)
    return tuple(found)


def createProgram(
    source: str, name: str, headers: tuple[bytes, ...], names: tuple[bytes, ...]
) -> int:
    program = ctypes.c_void_p()
    texts = (ctypes.c_char_p * len(headers))(*headers)
    places = (ctypes.c_char_p * len(names))(*names)
    counted = ctypes.byref(program), source.encode(), name.encode(), len(headers)
    _call("nvrtcCreateProgram", *counted, texts, places)
    assert program.value is not None
    return program.value


def destroyProgram(program: int) -> None:
    _call("nvrtcDestroyProgram", ctypes.byref(ctypes.c_void_p(program)))


def compileProgram(program: int, options: tuple[str, ...]) -> None:
    texts = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    _call("nvrtcCompileProgram", ctypes.c_void_p(program), len(options), texts)


def _get(what: str, program: int) -> bytes:
    size = ctypes.c_size_t()
    _call(f"nvrtcGet{what}Size", ctypes.c_void_p(program), ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    _call(f"nvrtcGet{what}", ctypes.c_void_p(program), text)
    return text.raw


def getCUBIN(program: int) -> bytes:
    return _get("CUBIN", program)


def getPTX(program: int) -> bytes:
    return _get("PTX", program).rstrip(b"\0")


def getProgramLog(program: int) -> str:
    return _get("ProgramLog", program).rstrip(b"\0").decode()
