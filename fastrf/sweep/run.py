"""The verb `sweep`: the coordinator, which finds out what is missing, gives it out, and writes.

It goes through the points of a space in their order, asks the store which results are there, and
bundles the rest: chains by the hundred for the batched kernels, graphs a few at a time, so that a
task takes long against what it costs to send it. It alone writes, thousands of rows or those of a
second at a time; whatever ends it, what was written stays, and the next run goes on from there.

Nothing of a result depends on how it was bundled or on who computed it.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from dataclasses import dataclass, replace
from multiprocessing import current_process
from typing import Any

from fastrf.device import resolve
from fastrf.errors import DeviceError, InputError, StoreError, WorkerError
from fastrf.sweep import rows, work
from fastrf.sweep.columns import RESULTS
from fastrf.sweep.content import plain_option
from fastrf.sweep.points import Asked, Part, Source, add_refused
from fastrf.sweep.pool import Workers, is_lost
from fastrf.sweep.progress import Progress
from fastrf.sweep.space import OPTIONS, Space
from fastrf.sweep.store import Known, PointRows, Store, Writer

TASK_SECONDS = 0.4
"""How long a task is meant to take: long against sending it, short against what is lost with it."""

FIRST_POINTS, MOST_POINTS = 64, 2048
"""Points of the first tasks, when it is not known how long one takes, and of the largest."""

MOST_GRAPHS = 256
"""Graphs of the largest tasks; the first one is tried alone."""

LOSSES = 2
"""Workers that a task may take with it before it is tried alone. What dies alone goes in halves,
and a single network is then given up."""

LOOK_SECONDS = 1.0
"""How long nothing may come before it is looked for workers that died."""

WRITTEN = 4096
"""Rows that wait to be written at the most. As keys are hashes, each row changes pages of its own,
and a transaction of 4000 costs a third less for each of them than one of 1000."""

WRITE_SECONDS = 1.0
"""How long they wait at the most: what a sweep that is killed computes again."""


def sweep(
    space: Space | Mapping[str, Any] | str | os.PathLike[str] | Iterable[Any],
    store: str | os.PathLike[str] = "sweep.db",
    executor: Any = None,
    device: str = "auto",
    progress: bool = True,
    *,
    workers: int | None = None,
    layers: str = "last",
    profiles: bool = False,
    images: bool = False,
    retry_errors: bool = False,
    **options: Any,
) -> Store:
    """The effective receptive fields of many networks, as a table.

    What the store has is not computed again: after an interruption, the same call goes on; with a
    changed space, it adds what is new. Networks that mean the same are computed once. What is wrong
    with a network is the `error` of its row.

    Args:
        space: a `Space` or the mapping that it is made of, the path of a space file, or networks:
            any iterable of what `fastrf.erf` takes, or of pairs (parameters, network) with a
            mapping for the table's columns.
        store: the SQLite file.
        executor: who computes: any `concurrent.futures.Executor` or a `distributed.Client`;
            default: processes of the sweep's own.
        device: "cpu", "cuda" or "cuda:N"; "auto" leaves graphs to the planner, and chains to the
            CPU. On a GPU, chains are computed and measured by the thousand.
        progress: whether progress is shown on standard error.
        workers: how many processes; default: as many as there are cores; 0: none, everything is
            computed in this one.
        layers: "last", or "all" to fill the table `layers` too.
        profiles, images: whether the profiles along the axes, or the whole images, are kept.
        retry_errors: whether rows with an error are tried again.
        options: further keywords of `fastrf.erf` (input_size, unit, output, dtype …) for all
            networks; a space's own come first.

    Returns:
        The store, to be read: ``.to_pandas()``, ``.query(sql)``, ``.top(column)`` and more.

    Raises:
        InputError: an argument breaks a rule.
        DeviceError: the device cannot be used.
        StoreError: the store cannot be written, or another sweep does. What was written stays.
        WorkerError: an executor that was given broke.
    """
    if layers not in ("last", "all"):
        raise InputError(f"layers={layers!r} is unknown; give 'last' or 'all'")
    allowed = {*OPTIONS, "ignore_global"}
    if unknown := set(options) - allowed:
        raise InputError(
            f"{', '.join(sorted(unknown))}: no option of a sweep; give {', '.join(sorted(allowed))}"
        )
    if workers is not None and (type(workers) is not int or workers < 0):
        raise InputError(f"workers={workers!r}; give a whole number, 0 for no process beside this")
    options = {name: plain_option(value) for name, value in options.items()}
    _check_device(device, elsewhere=executor is not None)
    source = Source(space)
    wanted = rows.Wanted(device, "float64", layers == "all", profiles, images)
    count = _cores() if workers is None else workers
    if executor is None and count and getattr(current_process(), "_inheriting", False):
        raise WorkerError("sweep was called while a process of another sweep imports the script")
    team = Workers(executor, count)
    with Writer(store) as writer, Progress(source.total, progress) as bar:
        run = _Run(writer, team, bar, wanted, options, retry_errors)
        finished = False
        try:
            run.through(source)
            finished = True
        finally:
            team.close(now=not finished)
    return Store(store)


def _check_device(device: str, *, elsewhere: bool) -> None:
    """Refuses a device that no network could have: it would be an error of every row.

    Args:
        elsewhere: whether an executor's workers have devices of their own.
    """
    if device != "auto":
        try:
            resolve(device)
        except DeviceError:
            if not elsewhere:
                raise


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- the coordinator ------------------------------------------------------------------------


@dataclass(slots=True)
class _Chunk:
    """A task and who learns how long it takes; `losses` counts the workers that died of it."""

    task: work.Task
    bin: _Bin
    losses: int = 0
    origin: _Origin | None = None

    def halves(self) -> list[_Chunk]:
        middle = len(self.task) // 2
        return [
            _Chunk(self.task.part(a, b), self.bin, self.losses, self.origin)
            for a, b in ((0, middle), (middle, len(self.task)))
        ]


@dataclass(frozen=True, slots=True)
class _Origin:
    """Where the chains of a pack are from: some points, and which of them each is."""

    points: Part
    places: list[int]

    def of(self, chain: int) -> Part:
        """The point of a chain."""
        place = self.places[chain]
        return self.points.part(place, place + 1)


class _Bin:
    """How many items of one kind take `TASK_SECONDS`, as far as is known."""

    def __init__(self, first: int, most: int) -> None:
        self.size, self._most = first, most

    def learn(self, items: int, seconds: float) -> None:
        """A task of so many items took so long."""
        wished = round(items * TASK_SECONDS / max(seconds, 1e-9))
        # At most four times as many: the next ones may take longer.
        self.size = min(max(1, wished), 4 * self.size, self._most)


class _Run:
    """One run of a sweep."""

    def __init__(
        self,
        writer: Writer,
        workers: Workers,
        progress: Progress,
        wanted: rows.Wanted,
        options: Mapping[str, Any],
        retry_errors: bool,
    ) -> None:
        self._writer, self._workers, self._progress = writer, workers, progress
        self._wanted, self._options, self._retry = wanted, options, retry_errors
        self._points, self._graphs = _Bin(FIRST_POINTS, MOST_POINTS), _Bin(1, MOST_GRAPHS)
        # Rows that are not written yet: of points, of results, of layers; how many, and since when.
        self._rows: list[PointRows] = []
        self._results: list[rows.Row] = []
        self._layers: list[rows.Row] = []
        self._unwritten, self._written = 0, time.monotonic()
        self._waiting: list[rows.Item] = []  # graphs that are in no task yet
        self._ready: deque[_Chunk] = deque()
        self._suspects: deque[_Chunk] = deque()
        self._out: dict[Future[work.Answers | work.Done], _Chunk] = {}
        self._was_alone = False  # whether one task alone was out
        self._pending: set[str] = set()  # keys of what waits or is out

    def through(self, source: Source) -> None:
        """Goes through all points."""
        try:
            while True:
                while len(self._out) < self._workers.ahead and not self._alone:
                    chunk = self._next(source)
                    if chunk is None:
                        break
                    self._send(chunk)
                if not self._out and not self._send_suspect():
                    break
                self._collect()
                if self._unwritten >= WRITTEN or time.monotonic() - self._written > WRITE_SECONDS:
                    self._write()
            self._write()
        except StoreError:
            raise
        except BaseException:
            self._keep_what_is_done()
            raise

    # --- what is to be done -----------------------------------------------------------------

    def _next(self, source: Source) -> _Chunk | None:
        """The next task: what is ready, graphs where there are enough, points, what is left."""
        if self._ready:
            return self._ready.popleft()
        if len(self._waiting) >= self._graphs.size:
            return self._graph_chunk()
        points = source.take(self._points.size)
        if len(points):
            return _Chunk(work.Questions(points, self._options), self._points)
        return self._graph_chunk() if self._waiting else None

    def _graph_chunk(self) -> _Chunk:
        size = self._graphs.size
        part, self._waiting = self._waiting[:size], self._waiting[size:]
        return _Chunk(work.Graphs(tuple(part), self._wanted, self._options), self._graphs)

    def _answered(self, points: Part, asked: Asked) -> None:
        """Puts into tasks what some points ask for and is not there."""
        known = self._writer.known(asked.keys)
        self._rows.extend(asked.rows)
        self._unwritten += len(asked.keys)
        new = set()
        for place, key in enumerate(asked.keys):
            if key in self._pending or (key in known and self._is_there(known[key])):
                self._progress.add(1, there=1)
            elif place in asked.errors:
                self._add_result(rows.error_row(key, None, asked.errors[place]))
                self._progress.add(1, failed=1)
            else:
                self._pending.add(key)
                new.add(place)
        for pack in asked.packs:
            chosen = [i for i, place in enumerate(pack.places) if place in new]
            if not chosen:
                continue
            keys = [asked.keys[pack.places[i]] for i in chosen]
            wanted = replace(self._wanted, dtype=pack.dtype)
            task = work.Chains(keys, chosen, pack.content, wanted)
            self._ready.append(_Chunk(task, self._points, origin=_Origin(points, pack.places)))
        for place, fingerprint in asked.graphs.items():
            if place in new:
                point = points.part(place, place + 1)
                self._waiting.append(rows.Item(asked.keys[place], fingerprint, point))

    def _is_there(self, known: Known | None) -> bool:
        if known is None:
            return False
        if known.failed:
            return not self._retry
        wanted = self._wanted
        return (
            (known.profiles or not wanted.profiles)
            and (known.image or not wanted.images)
            and (known.layers or not wanted.layers)
        )

    # --- giving out and taking in -----------------------------------------------------------

    def _send(self, chunk: _Chunk) -> None:
        try:
            future = self._workers.submit(work.run, chunk.task)
        except Exception as error:  # it cannot be sent, or the pool is known to be broken
            future = Future()
            future.set_exception(error)
        self._out[future] = chunk

    @property
    def _alone(self) -> bool:
        """Whether a suspect is out, which has the workers to itself."""
        return any(chunk.losses >= LOSSES for chunk in self._out.values())

    def _send_suspect(self) -> bool:
        if not self._suspects:
            return False
        self._send(self._suspects.popleft())
        return True

    def _collect(self) -> None:
        """Waits for a task and deals with all that are done."""
        self._was_alone = len(self._out) == 1
        finished, _ = wait(self._out, LOOK_SECONDS, FIRST_COMPLETED)
        if not finished:
            self._workers.look()
        broken = False
        for future in finished:
            broken |= self._finish(future)
        if broken:
            # The others of a broken pool are lost too.
            for future in list(self._out):
                self._finish(future)
            self._workers.rebuild()

    def _finish(self, future: Future[work.Answers | work.Done]) -> bool:
        """Takes in what a task gave; whether the workers have to be made anew."""
        chunk = self._out.pop(future)
        try:
            result = future.result()
        except (Exception, CancelledError) as error:
            return self._failed(chunk, error)
        if isinstance(result, work.Answers):
            assert isinstance(chunk.task, work.Questions)
            self._answered(chunk.task.points, result.asked)
        else:
            self._done(chunk, result)
        return False

    def _done(self, chunk: _Chunk, done: work.Done) -> None:
        task = chunk.task
        for index, fingerprint in done.left:
            # A chain that is no matter of a batch is a network like others.
            assert isinstance(task, work.Chains)
            assert chunk.origin is not None
            point = chunk.origin.of(task.chosen[index])
            self._waiting.append(rows.Item(task.keys[index], fingerprint, point))
        self._take(done)
        self._progress.add(len(done.rows), failed=sum(row[_ERROR] is not None for row in done.rows))
        chunk.bin.learn(len(task), done.seconds)

    def _failed(self, chunk: _Chunk, error: BaseException) -> bool:
        """Deals with a task that has no result; whether the workers have to be made anew."""
        if isinstance(error, ImportError):  # fastrf is not there: none of them will do
            raise error
        if not (is_lost(error) or isinstance(error, CancelledError)):
            # Something in it cannot be sent, or not be sent back.
            self._split(chunk, self._ready, rows.said(error))
            return False
        own = self._workers.are_own
        if not own and isinstance(error, BrokenExecutor):
            raise WorkerError(
                f"the executor broke ({rows.said(error)}): what was computed is in the store; "
                "make a new one and run the sweep again"
            ) from error
        chunk.losses += 1
        if self._was_alone and (len(chunk.task) > 1 or chunk.losses > LOSSES):
            chunk.losses = max(chunk.losses, LOSSES)
            self._split(chunk, self._suspects, _LOST)
        elif chunk.losses < LOSSES:
            self._ready.append(chunk)
        else:
            self._suspects.append(chunk)
        return own

    def _split(self, chunk: _Chunk, queue: deque[_Chunk], why: str) -> None:
        """A task that fails goes in halves, and a single network has its row."""
        if len(chunk.task) > 1:
            queue.extend(chunk.halves())
            return
        if isinstance(chunk.task, work.Questions):
            asked = Asked([], [], [], {}, {})
            ((number, point),) = chunk.task.points
            add_refused(asked, 0, number, point, why)
            self._rows.extend(asked.rows)
            (key,), fingerprint = asked.keys, None
        else:
            key, fingerprint = chunk.task.names(0)
        self._add_result(rows.error_row(key, fingerprint, why))
        self._progress.add(1, failed=1)

    # --- writing ----------------------------------------------------------------------------

    def _take(self, done: work.Done) -> None:
        self._results += done.rows
        self._layers += done.layers
        self._unwritten += len(done.rows) + len(done.layers)

    def _add_result(self, row: rows.Row) -> None:
        self._results.append(row)
        self._unwritten += 1

    def _write(self) -> None:
        """Writes what is not written yet."""
        if self._unwritten:
            self._writer.write(self._rows, self._results, self._layers)
            for row in self._results:
                self._pending.discard(row[_KEY])
        self._rows, self._results, self._layers = [], [], []
        self._unwritten, self._written = 0, time.monotonic()

    def _keep_what_is_done(self) -> None:
        """After Ctrl-C or an error: writes the tasks that are finished and waits for none."""
        for future in list(self._out):
            if future.done() and not future.cancelled() and future.exception() is None:
                result = future.result()
                if isinstance(result, work.Done):
                    self._take(result)
        self._write()


_KEY, _ERROR = (list(RESULTS).index(name) for name in ("key", "error"))
_LOST = (
    "WorkerError: the process that computed it died, each time it was tried (out of memory?); "
    "give it more memory, and run the sweep with retry_errors"
)
