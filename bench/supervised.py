"""Rows of a record, made by a process of their own that may fail, hang or die.

A kernel that reads where it must not takes everything on the GPU that its process holds along, and
one that never ends the process itself. So those that make rows are not the one that keeps them: a
row that fails ends its process, one that takes too long is ended with it, and the next row begins
in a new one.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

Row = dict[str, Any]

_MARK = "row: "
_SAID = 20  # lines of a process that are kept for the row that it failed in


def told(rows: Iterable[Row]) -> None:
    """In the process that makes rows: hands every row over as soon as it is made."""
    for row in rows:
        print(_MARK + json.dumps(row), flush=True)


def supervised(
    names: Sequence[str],
    start: Callable[[Sequence[str]], list[str]],
    limit: Callable[[str], float],
    seconds: float,
) -> Iterator[Row]:
    """Every row, in order: as it was `told`, or with what went wrong as `failed`.

    Args:
        start: the command of a process that makes these rows, and ends with the first that fails.
        limit: seconds for a row.
        seconds: for all.
    """
    end = time.monotonic() + seconds
    left = deque(names)
    while left:
        if time.monotonic() >= end:
            yield {"row": left.popleft(), "failed": "no time was left"}
            continue
        with _Process(start(list(left))) as process:
            failed = False
            while left and not failed:
                until = min(end, time.monotonic() + limit(left[0]))
                row = {"row": left.popleft()} | process.row(until)
                failed = "failed" in row
                yield row


class _Process:
    """A process that tells rows; it ends, with all that it has started, when it is left."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._said: deque[str] = deque(maxlen=_SAID)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def row(self, until: float) -> Row:
        """The next row, by a time of `time.monotonic`."""
        start = time.monotonic()
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, until - time.monotonic()))
            except queue.Empty:
                took = time.monotonic() - start
                return {"failed": f"not done after {took:.0f} s", "said": list(self._said)}
            if line is None:
                code = self._process.wait()
                return {"failed": f"the process ended with {code}", "said": list(self._said)}
            if line.startswith(_MARK):
                row: Row = json.loads(line.removeprefix(_MARK))
                return row
            self._said.append(line)

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ProcessLookupError):  # it has ended, and all that it started
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join()
