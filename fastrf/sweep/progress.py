"""How far a sweep is: a bar with rate and time left on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import IO, Any, Self

EVERY = 10.0
"""Seconds between two lines where there is no terminal."""


class Progress:
    """Counts points that are done; everything goes to standard error.

    Args:
        total: points of the sweep, None where that is not known.
        shown: whether anything is shown.
        stream: where to.
    """

    def __init__(
        self,
        total: int | None,
        shown: bool,
        stream: IO[str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._total, self._shown, self._clock = total, shown, clock
        self._done = self._failed = self._there = 0
        self._bar: Any = None
        self._start = self._said = clock()

    def __enter__(self) -> Self:
        if not self._shown:
            return self
        if self._total is not None:
            self._line(f"{self._total:,} points")
        if self._stream.isatty():
            self._bar = self._make_bar()
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._shown:
            ended = "" if kind is None else "stopped: "
            self._line(ended + self._state())

    def _make_bar(self) -> Any:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        bar = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            console=Console(file=self._stream),
            transient=True,
        )
        self._task = bar.add_task("", total=self._total, rate="")
        return bar

    def add(self, done: int = 0, *, failed: int = 0, there: int = 0) -> None:
        """So many points more are done; so many of them failed, or were there before."""
        self._done += done
        self._failed += failed
        self._there += there
        if self._bar is not None:
            self._bar.update(self._task, completed=self._done, rate=self._rate())
        elif self._shown and self._clock() - self._said >= EVERY:
            self._said = self._clock()
            self._line(self._state())

    def _per_second(self) -> float:
        """Points a second, of those that were not there before."""
        return (self._done - self._there) / max(self._clock() - self._start, 1e-9)

    def _rate(self) -> str:
        rate = self._per_second()
        return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"

    def _state(self) -> str:
        whole = "" if self._total is None else f" of {self._total:,}"
        parts = [f"{self._done:,}{whole} points", self._rate()]
        if self._there:
            parts.append(f"{self._there:,} were there")
        if self._failed:
            parts.append(f"{self._failed:,} with an error")
        rate = self._per_second()
        if self._total is not None and self._done < self._total and rate > 0:
            parts.append(f"{_duration((self._total - self._done) / rate)} left")
        return ", ".join(parts)

    def _line(self, text: str) -> None:
        print(f"sweep: {text}", file=self._stream, flush=True)


def _duration(seconds: float) -> str:
    """A time as a reader likes it."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
