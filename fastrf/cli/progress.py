"""The progress bar of commands that take a while."""

from __future__ import annotations

import sys
import threading
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console

if TYPE_CHECKING:
    from rich import progress

PATIENCE = 1.0
"""Seconds of work before a progress bar appears."""


class Progress:
    """A progress bar on standard error for work over a second; none where that is no terminal.

    A timer shows it, so that it also appears while the first kernels compile.
    """

    def __init__(self) -> None:
        self._share: float | None = None
        self._done = False
        self._bar: progress.Progress | None = None
        self._task: progress.TaskID | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(PATIENCE, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._done = True
            if self._bar is not None:
                self._bar.stop()

    def __call__(self, share: float) -> None:
        """Takes the share of the work that is done."""
        with self._lock:
            self._share = share
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, completed=share, total=1.0)

    def _show(self) -> None:
        from rich import progress as rich

        with self._lock:
            if self._done:
                return  # the work ended while the timer fired
            columns = (rich.TextColumn("computing"), rich.BarColumn(), rich.TimeElapsedColumn())
            self._bar = rich.Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=None)
            if self._share is not None:
                self._bar.update(self._task, completed=self._share, total=1.0)
            self._bar.start()
