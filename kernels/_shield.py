"""Where kernels can be loaded, and what Ctrl-C must not break off halfway."""

from __future__ import annotations

import threading
from collections.abc import Callable
from importlib import import_module
from typing import TypeVar

T = TypeVar("T")

_left: set[threading.Thread] = set()


def out_of_reach(call: Callable[[], T], *, leave: bool) -> T:
    """``call()`` in a thread of its own, where no signal's exception can come in between.

    A compiler or an import that is broken off anywhere leaves a broken compiler or module behind.
    Python raises KeyboardInterrupt in the main thread alone: in any other, `call` is just called.

    Args:
        leave: an interrupt leaves at once, and the call goes on behind it; else it is raised when
            the call is done.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    done = threading.Event()
    found: list[T] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as error:
            raised.append(error)
        finally:
            _left.discard(thread)
            done.set()

    thread = threading.Thread(target=work, name="fastrf-compiler")
    _left.add(thread)
    try:
        thread.start()
    except RuntimeError:  # the process has no more threads, or ends
        _left.discard(thread)
        return call()
    interrupt: BaseException | None = None
    while not done.is_set():
        try:
            done.wait()
        except BaseException as error:  # what a signal's handler raises
            if leave:
                raise
            interrupt = error
    if interrupt is not None:
        raise interrupt
    if raised:
        raise raised[0]
    return found[0]


def is_busy() -> bool:
    """Whether a call goes on that was left by an interrupt: the process ends when it has ended."""
    return any(thread.is_alive() for thread in _left)


def in_subinterpreter() -> bool:
    """Whether this is not the interpreter that the process began with: there, Numba waits for ever
    for a lock (its compiler, LLVM, is called as if there were one interpreter)."""
    for name in ("_interpreters", "_xxsubinterpreters"):
        try:
            interpreters = import_module(name)
        except ImportError:
            continue
        return bool(interpreters.get_current() != interpreters.get_main())
    return False
