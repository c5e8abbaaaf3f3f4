"""Where kernels can be loaded, and what Ctrl-C must not break off halfway."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import TypeVar

T = TypeVar("T")

_running: set[threading.Thread] = set()


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
    done, unclaimed = threading.Event(), deque([call])
    found: list[T] = []
    raised: list[BaseException] = []

    def work() -> None:
        try:
            own = unclaimed.pop()
        except IndexError:
            return  # a second thread, as it was not known whether the first had started
        me = threading.current_thread()
        _running.add(me)
        try:
            found.append(own())
        except BaseException as error:
            raised.append(error)
        finally:
            _running.discard(me)
            done.set()

    started, interrupt = False, None
    while not done.is_set():
        try:
            if not started:
                threading.Thread(target=work, name="fastrf-compiler").start()
                started = True
            done.wait()
        except BaseException as error:  # what a signal's handler raises
            if isinstance(error, RuntimeError) and not started:
                return call()  # the process has no more threads, or ends
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
    return bool(_running)


@cache  # Each interpreter has modules of its own.
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
