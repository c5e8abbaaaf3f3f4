"""What every kernel of the CPU is: a function in Python, and compiled code that is called for it.

Numba compiles the function, once for each kind of arguments (`_translate`), and the machine code
is kept on disk (`_cache`). Who finds it there imports no Numba, which took half of the time of a
first result: LLVM alone loads the code (`_load`), and it is called as C is, with its arguments as
words of 64 bits (`_arguments`).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from fastrf.kernels._shield import out_of_reach

from . import _cache, _load
from ._arguments import Kinds, described

made = 0
"""Compilations of this process."""

# One at a time: neither Numba nor a folder gains by two that compile the same.
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    # A fork waits for what is being compiled. Its child would go on with half of a compiler, or
    # wait for ever for a thread that it does not have.
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


def as_python() -> bool:
    """Whether kernels run as the Python that they are written in, as Numba's setting says."""
    return os.environ.get("NUMBA_DISABLE_JIT", "0") not in {"", "0"}


class Kernel:
    """A function that runs as compiled code, also where other kernels call it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.files = _cache.Files(function)
        self._loaded: dict[Kinds, Callable[[list[Any]], Any]] = {}

    def __call__(self, *values: Any) -> Any:
        """The function of numbers, tuples of integers and arrays (`_arguments`)."""
        kinds, words = described(values)
        call = self._loaded.get(kinds) or self.ready(kinds)
        return call(words)

    def ready(self, kinds: Kinds) -> Callable[[list[Any]], Any]:
        """The code for one kind of arguments: loaded from its file, or else compiled."""
        return out_of_reach(lambda: self._ready(kinds), leave=True)

    def _ready(self, kinds: Kinds) -> Callable[[list[Any]], Any]:
        with _lock:
            if kinds not in self._loaded:
                code = self.files.read(kinds) or self._compiled(kinds)
                self._loaded[kinds] = _load.function(code, kinds)
            return self._loaded[kinds]

    def _compiled(self, kinds: Kinds) -> _load.Code:
        global made  # noqa: PLW0603 - a counter, under the lock
        with self.files.alone(kinds):
            code = self.files.read(kinds)  # another process may have been at it
            if code is None:
                from ._translate import machine_code

                made += 1
                code = machine_code(self.function, kinds)
                self.files.write(kinds, code)
            return code

    @property
    def _numba_type_(self) -> Any:
        """What Numba asks of a name in code that it compiles (`numba.typeof`)."""
        from ._translate import type_of_kernel

        return type_of_kernel(self.function)


class Emitted:
    """A function of `_vectors`, which only compiled code can call."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def _numba_type_(self) -> Any:
        from ._translate import type_of_emitted

        return type_of_emitted(self.name)


def kernel(function: Callable[..., Any]) -> Any:
    """Has ``function`` run as compiled code."""
    return function if as_python() else Kernel(function)


def emitted(name: str) -> Any:
    """The function of that name that `_vectors` emits."""
    return Emitted(name)
