"""Machine code from a file to a function: LLVM links it into the process, and C's rules call it.

No Numba is needed for that, nor is it imported.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import llvmlite.binding as llvm

from ._arguments import Kinds, layout


@dataclass(frozen=True)
class Code:
    """Machine code of one kernel for one kind of arguments.

    ``entry(words, results)`` is a C function of two arrays of 64-bit words that returns 0, or
    another number where the kernel raised; the results are what it returned, or else the address
    of Numba's description of the exception.
    """

    entry: str
    """Name of the function."""
    result: str
    """Kind of what it returns: ``q``, ``d``, a number of integers, or empty for nothing."""
    needs: tuple[str, ...]
    """Functions that it calls and does not hold."""
    object_file: bytes


@cache
def host() -> tuple[str, str, str]:
    """What machine code is made for: the system, the processor and its features, as Numba finds
    them, or is told: an image for processors of several kinds is filled for what all of them know.
    """
    name = os.environ.get("NUMBA_CPU_NAME") or llvm.get_host_cpu_name()
    features = os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = "" if name == "generic" else llvm.get_host_cpu_features().flatten()
    return llvm.get_process_triple(), name, features


@cache
def _engine() -> Any:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(host()[0]).create_target_machine()
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), machine)
    # The end of Python does not free it: threads may still be at work in its code.
    atexit.register(engine.detach)
    return engine


def function(code: Code, kinds: Kinds) -> Callable[[list[Any]], Any]:
    """The kernel as a function of the words of its arguments (`_arguments.described`).

    Raises:
        RuntimeError: the code calls what is not at hand.
    """
    engine = _engine()  # first: it opens the process, where symbols are looked for
    _provide(code.needs)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code.object_file))
    address = engine.get_function_address(code.entry)
    native = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(address)
    pack, several = layout(kinds).pack, code.result.isdecimal()
    results = ctypes.c_int64 * (int(code.result) if several else 1)

    def call(words: list[Any]) -> Any:
        found = results()
        if native(pack(*words), found):
            raise _raised(found[0])
        if code.result == "d":
            return struct.unpack("=d", found)[0]
        if several:
            return tuple(found)
        return found[0] if code.result else None

    return call


def _provide(symbols: tuple[str, ...]) -> None:
    """Sees to it that what a kernel calls is at hand: LLVM ends the process where it is not.

    Usually that is in C's library. Numba has more: vectors of logarithms, where Intel's library is
    installed.
    """
    if all(map(llvm.address_of_symbol, symbols)):
        return
    from ._translate import load_numba

    load_numba()
    missing = [name for name in symbols if not llvm.address_of_symbol(name)]
    if missing:
        raise RuntimeError(f"a compiled kernel calls {', '.join(missing)}, which is nowhere")


class _Raised(ctypes.Structure):
    """What Numba's calling convention leaves of an exception (`numba.core.callconv.excinfo_t`)."""

    _fields_ = (
        ("pickled", ctypes.c_void_p),
        ("size", ctypes.c_int32),
        ("make_arguments", ctypes.c_void_p),
        ("made_from", ctypes.c_void_p),
        ("to_be_made", ctypes.c_int32),
    )


def _raised(address: int) -> BaseException:
    """The exception that compiled code raised; out of memory is all that kernels raise.

    Messages that Numba would put together from numbers are left out.
    """
    found = _Raised.from_address(address)
    kind, arguments, _ = pickle.loads(ctypes.string_at(found.pickled, found.size))
    if found.to_be_made:
        arguments = ("raised by compiled code",)
    raised: BaseException = kind(*(arguments or ()))
    return raised
