"""Workers: processes of one's own, or whoever an executor stands for.

Imports no NumPy, so that a fresh process can say how many threads NumPy's libraries may have before
they are loaded.
"""

from __future__ import annotations

import os
import pickle
import signal
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Any

from fastrf.errors import InputError, WorkerError

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def _begin() -> None:
    """Makes a process a worker: one thread, deaf to Ctrl-C, and gone when its coordinator is."""
    for name in THREADS:  # in this process alone
        os.environ[name] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    """A killed coordinator closes nothing: its workers would wait for tasks for ever."""
    parent.join()
    os._exit(1)


def _called(pickled: bytes) -> Any:
    call, arguments = pickle.loads(pickled)
    return call(*arguments)


class Workers:
    """What tasks are given to.

    Args:
        executor: any `concurrent.futures.Executor`, or a `distributed.Client`; None: processes of
            one's own.
        count: how many of these; 0 does the work in this process.

    Attributes:
        ahead: tasks that are given out at a time: each worker has its next one waiting.
    """

    def __init__(self, executor: Any, count: int) -> None:
        self._count = count
        self._own = executor is None and count > 0
        self._executor: Executor | None
        if executor is None:
            self._executor = self._processes() if self._own else None
        else:
            self._executor = _as_executor(executor)
            count = _size(executor)
        self._last: Future[Any] | None = None
        self.ahead = 2 * count if self._executor is not None else 1

    @property
    def are_own(self) -> bool:
        """Whether lost workers can be replaced here."""
        return self._own

    def _processes(self) -> ProcessPoolExecutor:
        # Spawned: forks of a process with threads are not safe.
        return ProcessPoolExecutor(self._count, get_context("spawn"), initializer=_begin)

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Gives out a task; in this process, does it."""
        if self._own and self._executor is not None:
            # Pickled here: what fails or kills in the queues of a pool can stop it for good.
            return self._executor.submit(_called, pickle.dumps((call, arguments)))
        if self._executor is not None:
            return self._executor.submit(call, *arguments)
        future: Future[Any] = Future()
        try:
            future.set_result(call(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def look(self) -> None:
        """Has a pool of one's own look for dead processes.

        A `ProcessPoolExecutor` that has started a process with a task may wait for those that it
        had before alone (CPython 3.11 to 3.13): the next task makes it look again.
        """
        if self._own and self._executor is not None and (self._last is None or self._last.done()):
            try:
                self._last = self._executor.submit(int)
            except BrokenExecutor:
                self._last = None  # its tasks say so, too

    def rebuild(self) -> None:
        """New processes in place of a pool that broke.

        Raises:
            WorkerError: they die before they get a task.
        """
        if not self._own or self._executor is None:
            return
        self._executor.shutdown(wait=True, cancel_futures=True)
        self._executor, self._last = self._processes(), None
        try:
            self._executor.submit(int).result()
        except BrokenExecutor:
            raise WorkerError(
                "processes end as soon as they start: in a script, call sweep under "
                "`if __name__ == '__main__':`, as they import it, or give workers=0"
            ) from None

    def close(self, *, now: bool = False) -> None:
        """Lets own processes go; with `now`, whatever they are doing."""
        if not self._own or not isinstance(self._executor, ProcessPoolExecutor):
            return
        if now:
            for process in list((self._executor._processes or {}).values()):
                process.terminate()
        self._executor.shutdown(wait=True, cancel_futures=True)


def is_lost(error: BaseException) -> bool:
    """Whether a task failed because its worker died."""
    return isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"


def _as_executor(executor: Any) -> Executor:
    """Dask's client stands for an executor of its own making."""
    if isinstance(executor, Executor):
        return executor
    if hasattr(executor, "get_executor"):
        made: Executor = executor.get_executor(pure=False)
        return made
    raise InputError(
        f"executor is a {type(executor).__name__}; give a concurrent.futures.Executor or a "
        "distributed.Client"
    )


def _size(executor: Any) -> int:
    """Workers that an executor has, as far as it says."""
    if hasattr(executor, "ncores"):
        return max(1, int(sum(executor.ncores().values())))
    return int(getattr(executor, "_max_workers", None) or os.cpu_count() or 1)
