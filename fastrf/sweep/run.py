"""The verb `sweep`: the coordinator, which finds out what is missing, gives it out, and writes.

It goes through the points of a space in their order, asks the store which results are there, and
bundles the rest: chains by the hundred for the batched kernels, graphs a few at a time, so that a
task takes long against what it costs to send it. It alone writes, one transaction a task; whatever
ends it, what was written stays, and the next run goes on from there.

Nothing of a result depends on how it was bundled or on who computed it.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, CancelledError, Future, wait
from dataclasses import dataclass, field, replace
from hashlib import sha256
from itertools import islice
from typing import Any

from fastrf.errors import InputError, WorkerError
from fastrf.network import Network, as_network
from fastrf.sweep import work
from fastrf.sweep.chain import Chain
from fastrf.sweep.content import (
    DEFAULTS,
    chain_fingerprint,
    key_of,
    point_of,
    spelled_out,
    text_of,
)
from fastrf.sweep.packing import pack
from fastrf.sweep.pool import Workers, is_lost
from fastrf.sweep.progress import Progress
from fastrf.sweep.space import OPTIONS, Point, Space
from fastrf.sweep.store import Known, PointRow, Store, Writer

ASKED = 256
"""Points of which the store is asked at a time."""

TASK_SECONDS = 0.4
"""How long a task is meant to take: long against sending it, short against what is lost with it."""

FIRST_CHAINS, MOST_CHAINS = 128, 2048
FIRST_GRAPHS, MOST_GRAPHS = 2, 256
"""Items of the first tasks, when it is not known how long one takes, and of the largest."""

LOSSES = 2
"""Workers that a task may take with it before it is tried alone, and then in parts."""

_FOR_CHAINS = {"unit", "input_size", "dtype"}
_DTYPES = ("float64", "float32")


def sweep(
    space: Space | str | os.PathLike[str] | Iterable[Any],
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
        space: a `Space`, the path of a space file, or networks: any iterable of what `fastrf.erf`
            takes, or of pairs (parameters, network) with a mapping for the table's columns.
        store: the SQLite file.
        executor: who computes: any `concurrent.futures.Executor` or a `distributed.Client`;
            default: processes of the sweep's own.
        device: "cpu", "cuda" or "cuda:N"; "auto" leaves graphs to the planner, and chains to the
            CPU, whose figures are made there in any case.
        progress: whether progress is shown on standard error.
        workers: how many processes; default: as many as there are cores; 0: none, everything is
            computed in this one.
        layers: "last", or "all" to fill the table `layers` too.
        profiles, images: whether the profiles along the axes, or the whole images, are kept.
        retry_errors: whether rows with an error are tried again.
        options: further keywords of `fastrf.erf` (input_size, unit, output, dtype …) for all
            networks; a space's own come first.

    Returns:
        The store, to be read: ``.to_pandas()``, ``.query(sql)``, ``.top(column)``, ``.export(path)``.

    Raises:
        InputError: an argument breaks a rule.
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
    points, total = _points(space)
    wanted = work.Wanted(device, "float64", layers == "all", profiles, images)
    count = _cores() if workers is None else workers
    with Writer(store) as writer, Progress(total, progress) as bar:
        team = Workers(executor, count)
        run = _Run(writer, team, bar, wanted, options, retry_errors)
        finished = False
        try:
            run.through(points)
            finished = True
        finally:
            team.close(now=not finished)
    return Store(store)


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- points ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Given:
    """A network that was given as such, in the manner of a `Point`."""

    parameters: Mapping[str, Any]
    net: Any
    options: Mapping[str, Any] = field(default_factory=dict)

    def network(self) -> Network:
        return as_network(self.net)

    def chain(self) -> Chain | None:
        return Chain.of(self.network())


def _points(space: Any) -> tuple[Iterator[Point | _Given], int | None]:
    """The points one by one, and how many there are where that is known."""
    if isinstance(space, str | os.PathLike):
        space = Space.load(space)
    if isinstance(space, Space):
        return iter(space), len(space)
    if isinstance(space, Network) or not isinstance(space, Iterable):
        raise InputError(
            f"{type(space).__name__} is no space; give a Space, the path of a space file, or a "
            "list of networks"
        )
    return map(_given, space), len(space) if hasattr(space, "__len__") else None


def _given(item: Any) -> Point | _Given:
    if isinstance(item, Point):
        return item
    if isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], Mapping):
        return _Given(*item)
    name = item.name if isinstance(item, Network) else None
    return _Given({} if name is None else {"network": name}, item)


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A point of which is known what it asks for.

    Attributes:
        row: what the table says of it.
        item: the result that it leads to.
        point: where its network comes from, if it has to be built.
        chain, size, unit: of a chain for the batched kernels.
        error: why there is nothing to compute.
    """

    row: PointRow
    item: work.Item
    point: Point | _Given
    dtype: str = "float64"
    chain: Chain | None = None
    size: Sequence[int] | None = None
    unit: Sequence[int] | None = None
    error: str | None = None

    @property
    def kind(self) -> Any:
        """What it can be bundled with."""
        return _GRAPHS if self.chain is None else (self.chain.ndim, self.dtype, self.size is None)


_GRAPHS = "graphs"


def _prepare(number: int, point: Point | _Given, common: Mapping[str, Any]) -> _Prepared:
    parameters = dict(point.parameters)
    options: dict[str, Any] = dict(common)
    network, chain = None, None
    try:
        options |= point.options
        chain = point.chain() if _is_for_chains(options, point) else None
        if chain is not None:
            ndim = chain.ndim
        else:
            network = point.network()
            ndim = network.bound.ndim or 0
        options = spelled_out(options, ndim)
        if chain is not None and not _is_plain(options, ndim):
            chain, network = None, point.network()
        if chain is not None:
            fingerprint = chain_fingerprint(chain)
        else:
            assert network is not None
            fingerprint = network.fingerprint
    except InputError as error:
        said = work.said(error)
        fingerprint = sha256(text_of([parameters, said]).encode()).hexdigest()
        key = key_of(fingerprint, {})
        row = PointRow(point_of(parameters, {}, fingerprint), number, key, parameters)
        return _Prepared(row, work.Item(key, None), point, error=said)
    key = key_of(fingerprint, options)
    row = PointRow(point_of(parameters, options, fingerprint), number, key, parameters)
    item = work.Item(key, fingerprint, network, options)
    dtype = options.get("dtype", "float64")
    size, unit = options.get("input_size"), options.get("unit")
    return _Prepared(row, item, point, dtype, chain, size, unit)


def _is_for_chains(options: Mapping[str, Any], point: Point | _Given) -> bool:
    """Whether the batched kernels do what is asked. The output of a space's point is its own
    matter: it is no chain where another is asked for."""
    asked = {n for n, v in options.items() if v is not None and v != DEFAULTS.get(n)}
    return asked <= _FOR_CHAINS | ({"output"} if isinstance(point, Point) else set())


def _is_plain(options: Mapping[str, Any], ndim: int) -> bool:
    """Whether size and unit are as they should be; what is not is for `fastrf.erf` to refuse."""
    if options.get("dtype", "float64") not in _DTYPES:
        return False
    for name, least in (("input_size", 1), ("unit", None)):
        values = options.get(name)
        if values is None:
            continue
        if not isinstance(values, list) or len(values) != ndim:
            return False
        if not all(type(v) is int and (least is None or v >= least) for v in values):
            return False
    return True


# --- the coordinator ------------------------------------------------------------------------


@dataclass(slots=True)
class _Chunk:
    """A task, where its networks come from, and who learns how long it takes; `losses` counts the
    workers that died of it."""

    task: work.Task
    points: Sequence[_Prepared]
    bin: _Bin
    losses: int = 0

    def halves(self) -> list[_Chunk]:
        middle = len(self.task) // 2
        return [
            _Chunk(self.task.part(a, b), self.points[a:b], self.bin, self.losses)
            for a, b in ((0, middle), (middle, len(self.task)))
        ]


class _Bin:
    """Items of one kind that wait to become a task, as many as take `TASK_SECONDS`."""

    def __init__(self, first: int, most: int) -> None:
        self.waiting: list[_Prepared] = []
        self._size, self._most = first, most

    @property
    def is_full(self) -> bool:
        return len(self.waiting) >= self._size

    def taken(self) -> list[_Prepared]:
        part, self.waiting = self.waiting[: self._size], self.waiting[self._size :]
        return part

    def learn(self, items: int, seconds: float) -> None:
        """A task of so many items took so long."""
        wished = round(items * TASK_SECONDS / max(seconds, 1e-9))
        # At most four times as many: the next ones may take longer.
        self._size = min(max(1, wished), 4 * self._size, self._most)


class _Run:
    """One run of a sweep."""

    def __init__(
        self,
        writer: Writer,
        workers: Workers,
        progress: Progress,
        wanted: work.Wanted,
        options: Mapping[str, Any],
        retry_errors: bool,
    ) -> None:
        self._writer, self._workers, self._progress = writer, workers, progress
        self._wanted, self._options, self._retry = wanted, options, retry_errors
        self._rows: list[PointRow] = []  # points that are not written yet
        self._errors: list[tuple[Any, ...]] = []  # results known without a worker
        self._bins: dict[Any, _Bin] = {}
        self._ready: deque[_Chunk] = deque()
        self._suspects: deque[_Chunk] = deque()
        self._out: dict[Future[work.Done], _Chunk] = {}
        self._pending: set[str] = set()  # keys in bins, chunks and workers
        self._worked = False

    def through(self, points: Iterable[Point | _Given]) -> None:
        """Goes through all points."""
        numbered = enumerate(points)
        more = True
        try:
            while True:
                while len(self._out) < self._workers.ahead and not self._alone:
                    while more and not self._ready and not self._full():
                        more = self._take(list(islice(numbered, ASKED)))
                    chunk = self._next(flush=not more)
                    if chunk is None:
                        break
                    self._send(chunk)
                if not self._out and not self._send_suspect():
                    break
                self._collect()
            self._write()
        except KeyboardInterrupt:
            self._keep_what_is_done()
            raise

    # --- what is to be done -----------------------------------------------------------------

    def _take(self, numbered: Sequence[tuple[int, Point | _Given]]) -> bool:
        """Asks for some points and puts into bins what is missing; False at the end."""
        if not numbered:
            return False
        prepared = [_prepare(number, point, self._options) for number, point in numbered]
        known = self._writer.known([p.item.key for p in prepared])
        for p in prepared:
            self._rows.append(p.row)
            key = p.item.key
            there = self._is_there(known.get(key))
            if there or key in self._pending:
                self._progress.add(1, there=int(there))
            elif p.error is not None:
                self._errors.append(work.error_row(key, None, p.error))
                self._progress.add(1, failed=1)
            else:
                self._pending.add(key)
                self._bin(p.kind).waiting.append(p)
        if len(self._rows) >= 4 * ASKED:
            self._write()
        return True

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

    def _bin(self, kind: Any) -> _Bin:
        if kind not in self._bins:
            sizes = (FIRST_GRAPHS, MOST_GRAPHS) if kind == _GRAPHS else (FIRST_CHAINS, MOST_CHAINS)
            self._bins[kind] = _Bin(*sizes)
        return self._bins[kind]

    def _full(self) -> bool:
        return any(b.is_full for b in self._bins.values())

    def _next(self, flush: bool) -> _Chunk | None:
        """The next task: what was lost, a full bin, or, at the end, what is left in one."""
        if self._ready:
            return self._ready.popleft()
        for b in self._bins.values():
            if b.is_full or (flush and b.waiting):
                return self._chunk(b.taken(), b)
        return None

    def _chunk(self, points: Sequence[_Prepared], own: _Bin) -> _Chunk:
        items, first = tuple(p.item for p in points), points[0]
        if first.chain is None:
            return _Chunk(work.Task(items, self._wanted), points, own)
        chains = [(p.chain, p.size, p.unit) for p in points if p.chain is not None]
        wanted = replace(self._wanted, dtype=first.dtype)
        items = tuple(work.Item(i.key, i.fingerprint) for i in items)
        return _Chunk(work.Task(items, wanted, pack(chains, first.chain.ndim)), points, own)

    # --- giving out and taking in -----------------------------------------------------------

    def _send(self, chunk: _Chunk) -> None:
        try:
            future = self._workers.submit(work.run, chunk.task)
        except BrokenExecutor as error:  # found out before any of its tasks was asked for
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
        finished, _ = wait(self._out, return_when=FIRST_COMPLETED)
        broken = False
        for future in finished:
            chunk = self._out.pop(future)
            try:
                done = future.result()
            except (Exception, CancelledError) as error:
                broken |= self._failed(chunk, error)
            else:
                self._worked = True
                self._write(chunk, done)
        if broken:
            # The others of a broken pool are lost too.
            for future, chunk in list(self._out.items()):
                self._requeue(chunk, future)
            self._out.clear()
            self._workers.rebuild()

    def _requeue(self, chunk: _Chunk, future: Future[work.Done]) -> None:
        try:
            done = future.result()
        except (Exception, CancelledError) as error:
            self._failed(chunk, error)
        else:
            self._write(chunk, done)

    def _failed(self, chunk: _Chunk, error: BaseException) -> bool:
        """Deals with a task that has no result; whether the pool has to be made anew."""
        if isinstance(error, ImportError):
            raise error
        lost = is_lost(error) or isinstance(error, CancelledError)
        if not lost:
            # Something in it cannot be sent, or not be sent back.
            self._split(chunk, self._ready, work.said(error))
            return False
        own = self._workers.are_own
        if not own and not self._workers.survives(error):
            raise WorkerError(
                f"the executor broke ({work.said(error)}): what was computed is in the store; "
                "make a new one and run the sweep again"
            ) from error
        chunk.losses += 1
        if chunk.losses == 1 and own:
            self._ready.append(chunk)
        elif chunk.losses <= LOSSES:
            self._suspects.append(chunk)
        else:
            self._split(chunk, self._suspects, _LOST)
        return own

    def _split(self, chunk: _Chunk, queue: deque[_Chunk], why: str) -> None:
        """A task that fails goes in halves, and a single network has its row."""
        if len(chunk.task) > 1:
            queue.extend(chunk.halves())
            return
        item = chunk.task.items[0]
        self._pending.discard(item.key)
        self._errors.append(work.error_row(item.key, item.fingerprint, why))
        self._progress.add(1, failed=1)

    # --- writing ----------------------------------------------------------------------------

    def _write(self, chunk: _Chunk | None = None, done: work.Done | None = None) -> None:
        """Writes what is not written yet, and the rows of a task."""
        results, layers = self._errors, []
        if chunk is not None and done is not None:
            results = [*results, *done.rows]
            layers = done.layers
        self._writer.write(self._rows, results, layers)
        self._rows, self._errors = [], []
        if chunk is None or done is None:
            return
        for index in done.left:
            self._as_graph(chunk.points[index])
        left = {chunk.task.items[i].key for i in done.left}
        self._pending.difference_update(i.key for i in chunk.task.items if i.key not in left)
        self._progress.add(len(done.rows), failed=sum(row[_ERROR] is not None for row in done.rows))
        chunk.bin.learn(len(chunk.task), done.seconds)

    def _as_graph(self, p: _Prepared) -> None:
        """A chain that is no matter of a batch, as a network of its own."""
        item = p.item
        try:
            item = replace(item, network=p.point.network())
        except InputError as error:
            self._pending.discard(item.key)
            self._errors.append(work.error_row(item.key, item.fingerprint, work.said(error)))
            self._progress.add(1, failed=1)
        else:
            self._bin(_GRAPHS).waiting.append(replace(p, item=item, chain=None))

    def _keep_what_is_done(self) -> None:
        """After Ctrl-C: writes the tasks that are finished and waits for none."""
        for future, chunk in self._out.items():
            if future.done() and not future.cancelled() and future.exception() is None:
                self._write(chunk, future.result())
        self._write()


_ERROR = list(work.RESULTS).index("error")
_LOST = (
    "WorkerError: the process that computed it died, each time it was tried (out of memory?); "
    "give it more memory, and run the sweep with retry_errors"
)
