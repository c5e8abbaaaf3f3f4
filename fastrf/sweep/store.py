"""The store of a sweep: one SQLite file, written by one coordinator, read by anyone meanwhile.

Three tables: `results`, one row per network, options and version of the numerics
(`content.key_of`); `points`, what parameters lead to which result; and `layers`, the fields of all
layers of a network where they were asked for. The view `sweep` joins the first two: it is what
users see as the table.

Write-ahead logging keeps readers and the writer apart, and whatever was committed survives the
death of the process and of the machine. Rows are inserted or updated by their keys, so that writing
them twice changes nothing.
"""

from __future__ import annotations

import csv
import itertools
import math
import os
import re
import socket
import sqlite3
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from io import BytesIO
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fastrf.engine.plan import check_memory
from fastrf.errors import InputError, MissingExtra, StoreError, short
from fastrf.layers.checks import MAXIMUM
from fastrf.sweep.columns import AXES, BLOBS, COVARIANCES, LAYERS, RESULTS
from fastrf.sweep.content import text_of

APPLICATION = 0x66524653
"""SQLite's application_id of a store: "fRFS"."""

CACHE = 32 << 10
"""KiB of pages that the writer holds: keys are hashes, so that its rows go all over the tables."""

FORMAT = 1
"""Version of the tables (SQLite's user_version)."""

_POINT, _NUMBER, _KEY, _RUN = "_point", "_number", "_key", "_run"
_JOINED = f"points JOIN results ON results.key = points.{_KEY}"
_QUERIED = 500  # keys of one question

_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")
"""How a cell begins that a spreadsheet would take for a formula, or one of ours that is marked."""


class PointRows(NamedTuple):
    """Points of a space with the same parameters, as rows of the table.

    Attributes:
        names: of the parameters.
        rows: of each point its identity, its place in the space, the key of its result, and the
            values of the parameters as SQLite stores them.
        gone: rows to remove before: the identities, each in a tuple, that points would have, or
            had, if they were invalid.
    """

    names: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    gone: list[tuple[str]]

    def add(self, point: str, number: int, key: str, values: Iterable[Any]) -> None:
        """Adds the row of a point."""
        self.rows.append((point, number, key, *map(_storable, values)))


class Known(NamedTuple):
    """What a store has of a result."""

    failed: bool
    profiles: bool
    image: bool
    layers: bool


class Lease:
    """The right to write to a store, held by one process at a time and given up when it dies.

    A lock of SQLite's on a file beside the store: the operating system drops it with the process,
    however that ends.

    Raises:
        StoreError: another sweep holds it, or the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._connection = sqlite3.connect(
                f"{path}-lease", timeout=0, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise _failure(path, error) from None
        try:
            self._connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.Error as error:
            self._connection.close()
            if "locked" in str(error):
                raise StoreError(
                    f"{str(path)!r} is being written by another sweep{_holder(path)}: a store has "
                    "one writer at a time; wait for it, or give another store"
                ) from None
            raise _failure(path, error) from None

    def release(self) -> None:
        """Lets the next one write."""
        self._connection.close()


def _holder(path: Path) -> str:
    try:
        with Store(path) as store:
            ((value,),) = store.rows("SELECT value FROM meta WHERE name = 'coordinator'")
    except (StoreError, InputError, ValueError):
        return ""
    return f" ({value})"


def _failure(path: Path, error: sqlite3.Error) -> StoreError:
    """What an error of SQLite means for a user."""
    said = str(error)
    if "full" in said:
        what = "the disk is full: what was committed is kept; make room and run the sweep again"
    elif "readonly" in said or "read-only" in said or "unable to open" in said:
        what = "it cannot be written: give a store in a folder that you may write to"
    elif "not a database" in said or "malformed" in said or "corrupt" in said:
        what = (
            "it is damaged or no SQLite file, and was left as it is: restore it from a backup, "
            "salvage it with sqlite3's .recover, or give another store"
        )
    elif "disk I/O" in said:
        what = "the disk failed or is full: what was committed is kept; run the sweep again"
    else:
        what = "SQLite could not go on"
    return StoreError(f"store {str(path)!r}: {what} ({said})")


class Store:
    """A store that is read: the table of a sweep, also while the sweep runs.

    >>> store = Store("sweep.db")                                          # doctest: +SKIP
    >>> store.query("SELECT depth, std_0 FROM sweep WHERE kernel = 3")     # doctest: +SKIP

    Raises:
        StoreError: there is no store at `path`, or it is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise StoreError(f"there is no store {str(path)!r}; `fastrf sweep` makes one")
        self._connection = _reading(self.path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def __len__(self) -> int:
        """Rows of the table."""
        ((count,),) = self.rows("SELECT COUNT(*) FROM points JOIN results ON key = _key")
        return int(count)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {len(self)} rows)"

    # --- rows -------------------------------------------------------------------------------

    @contextmanager
    def _run(self, sql: str, values: Sequence[Any] = ()) -> Iterator[sqlite3.Cursor]:
        """A query under way: one that has columns. Pages may be damaged wherever it gets to."""
        if not isinstance(sql, str):
            raise InputError(f"query {short(sql)} is no text; give a SELECT")
        try:
            with closing(self._connection.execute(sql, values)) as cursor:
                if cursor.description is None:
                    raise sqlite3.ProgrammingError("it finds nothing")
                yield cursor
        except UnicodeDecodeError as error:  # in a message of SQLite's own
            raise _failure(self.path, sqlite3.DatabaseError(f"malformed: {error}")) from None
        except sqlite3.Error as error:
            denied = "authoriz" in str(error)  # another file than the store's
            if denied or isinstance(error, sqlite3.OperationalError | sqlite3.ProgrammingError):
                raise InputError(
                    f"query {short(sql)}: {error}; give one SELECT on sweep, results, points or "
                    f"layers"
                ) from None
            raise _failure(self.path, error) from None

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """The rows that a query finds."""
        with self._run(sql) as cursor:
            return cursor.fetchall()

    @property
    def columns(self) -> list[str]:
        """The table's columns that hold figures: those of axes that no network has, and profiles
        and images, are left out."""
        ((most,),) = self.rows("SELECT MAX(ndim) FROM results")
        left = {*BLOBS}
        if isinstance(most, int):
            beyond = [str(axis) for axis in AXES if axis >= most]
            left |= {n for n in RESULTS if n.rpartition("_")[2] in beyond and n[-2:-1] == "_"}
            left |= {name for name, (_, b) in COVARIANCES.items() if b >= most}
        with self._run("SELECT * FROM sweep LIMIT 0") as cursor:
            return [name for name, *_ in cursor.description if name not in left]

    @property
    def select(self) -> str:
        """The query for the whole table, in the order of the space."""
        return f"SELECT {', '.join(map(_quoted, self.columns))} FROM sweep"

    def query(self, sql: str | None = None) -> list[dict[str, Any]]:
        """The rows that a query finds, or the whole table, as dictionaries.

        Raises:
            InputError: it is not one query that only reads.
        """
        with self._run(self.select if sql is None else sql) as cursor:
            names = [name for name, *_ in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def top(self, by: str, count: int = 10, *, largest: bool = True) -> list[dict[str, Any]]:
        """The rows with the largest, or the smallest, values in a column, equal ones in the order
        of the space; rows without are left out."""
        with self._run("SELECT * FROM points LIMIT 0") as cursor:
            shown = _shown(name for name, *_ in cursor.description if name[0] != "_")
        names = [name for name in self.columns if name in shown]
        if by not in names:
            raise InputError(f"there is no column {short(by)}; there are {', '.join(names)}")
        columns = ", ".join(f"{shown[name]} AS {_quoted(name)}" for name in names)
        order = "DESC" if largest else "ASC"
        return self.query(
            f"SELECT {columns} FROM {_JOINED} WHERE {shown[by]} IS NOT NULL "
            f"ORDER BY {shown[by]} {order}, {_NUMBER}, {_POINT} LIMIT {max(0, int(count))}"
        )

    # --- frames and files -------------------------------------------------------------------

    def _by_column(self, sql: str | None) -> dict[str, list[Any]]:
        with self._run(self.select if sql is None else sql) as cursor:
            names = [name for name, *_ in cursor.description]
            found = cursor.fetchall()
        columns = zip(*found, strict=True) if found else ((),) * len(names)
        return {name: list(values) for name, values in zip(names, columns, strict=True)}

    def to_pandas(self, sql: str | None = None) -> Any:
        """What a query finds, or the whole table, as a `pandas.DataFrame`."""
        return _imported("pandas").DataFrame(self._by_column(sql))

    def to_polars(self, sql: str | None = None) -> Any:
        """The same as a `polars.DataFrame`."""
        frame = _imported("polars").DataFrame
        return frame(self._by_column(sql), strict=False, infer_schema_length=None)

    def to_arrow(self, sql: str | None = None) -> Any:
        """The same as a `pyarrow.Table`."""
        arrow = _imported("pyarrow")
        columns = self._by_column(sql)
        return arrow.table({name: _arrow_column(arrow, v) for name, v in columns.items()})

    def export(self, path: str | os.PathLike[str], sql: str | None = None) -> None:
        """Writes what a query finds, or the whole table, to a ``.csv`` or a ``.parquet`` file.

        Raises:
            InputError: the name says neither, or the file cannot be written.
        """
        suffix = check_export(path)
        try:
            if suffix == ".csv":
                with open(path, "w", encoding="utf-8", newline="") as file:
                    self.write_csv(file, sql)
            else:
                table = self.to_arrow(sql)
                _imported("pyarrow.parquet").write_table(table, os.fspath(path))
        except OSError as error:
            raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}") from None

    def write_csv(self, file: IO[str], sql: str | None = None) -> None:
        """Writes the same as CSV, row by row; what is not there is an empty cell.

        A text that a spreadsheet would run as a formula, which begins with ``=``, ``+``, ``-``,
        ``@``, a tab or a line break, gets an apostrophe before it (OWASP, CSV Injection), and so
        does one that begins with apostrophes and one of these: to read the table back, take one
        away. Numbers stay as they are.
        """
        plain = csv.writer(file, lineterminator="\n")
        quoting = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
        with self._run(self.select if sql is None else sql) as cursor:
            for row in itertools.chain([[name for name, *_ in cursor.description]], cursor):
                cells = list(map(_cell, row))
                # Before Python 3.13 csv leaves a carriage return unquoted, which ends the row.
                broken = any(isinstance(cell, str) and "\r" in cell for cell in cells)
                (quoting if broken else plain).writerow(cells)

    # --- what is kept beside the figures ----------------------------------------------------

    def _blob(self, name: str, key: str) -> tuple[bytes, np.dtype[Any], tuple[int, ...]]:
        sql = f"SELECT {name}, {', '.join(_SHAPE)} FROM results WHERE key = ?"
        with self._run(sql, (key,)) as cursor:
            found = cursor.fetchone()
        if found is None or found[0] is None:
            raise InputError(
                f"the store has no {name} of {key!r}; run the sweep with {_ASKED_BY[name]}=True"
            )
        blob, *shape, dtype = found
        sizes = tuple(n for n in shape if n is not None)
        if (
            dtype not in ("float32", "float64")
            or not isinstance(blob, bytes)
            or not all(isinstance(n, int) and 0 < n <= MAXIMUM for n in sizes)
        ):
            raise self._damaged(name, key)
        return blob, np.dtype(dtype).newbyteorder("<"), sizes

    def _damaged(self, name: str, key: str) -> StoreError:
        return StoreError(
            f"store {str(self.path)!r}: the {name} of {short(key)} is not what a sweep wrote; "
            f"restore the store from a backup, or sweep again into another one"
        )

    def profiles(self, key: str) -> list[NDArray[Any]]:
        """The profiles along all axes, each of sum 1, of the result with this `key`."""
        blob, dtype, shape = self._blob("profiles", key)
        if len(blob) != sum(shape) * dtype.itemsize:
            raise self._damaged("profiles", key)
        return np.split(np.frombuffer(blob, dtype), np.cumsum(shape)[:-1])

    def image(self, key: str) -> NDArray[Any]:
        """The image of the result with this `key`."""
        blob, dtype, shape = self._blob("image", key)
        size = math.prod(shape) * dtype.itemsize
        check_memory("the image needs", 2 * size, None)
        try:
            image = unpacked_image(blob, size)
        except (ValueError, zlib.error) as error:
            raise self._damaged("image", key) from error
        if image.shape != shape:
            raise self._damaged("image", key)
        return image


def check_export(path: str | os.PathLike[str]) -> str:
    """The format that a file's name asks for: ``.csv`` or ``.parquet``.

    Raises:
        InputError: it asks for another one, or there is no such folder.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in (".csv", ".parquet"):
        raise InputError(
            f"cannot export to {str(path)!r}: give a name that ends in .csv or .parquet"
        )
    if not path.absolute().parent.is_dir():
        raise InputError(
            f"cannot export to {str(path)!r}: there is no folder {str(path.parent)!r}; make it"
        )
    return suffix


_ASKED_BY = {"profiles": "profiles", "image": "images"}


def packed_image(image: NDArray[Any]) -> bytes:
    """An image without loss: NumPy's format, bytes of equal weight side by side, compressed."""
    little = np.ascontiguousarray(image, image.dtype.newbyteorder("<"))
    bytewise = little.reshape(-1, 1).view(np.uint8).T
    head = BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(little))
    return zlib.compress(head.getvalue() + np.ascontiguousarray(bytewise).tobytes(), 1)


_HEAD = 256
"""Bytes of an image's header, at most."""


def unpacked_image(blob: bytes, size: int) -> NDArray[Any]:
    """What `packed_image` packed, of so many bytes.

    Raises:
        ValueError, zlib.error: it is something else, which is not unpacked further.
    """
    data = BytesIO(zlib.decompressobj().decompress(blob, size + _HEAD))
    np.lib.format.read_magic(data)
    shape, _, dtype = np.lib.format.read_array_header_1_0(data)
    if dtype.kind != "f" or math.prod(shape) * dtype.itemsize != size:
        raise ValueError("its header says another size")
    bytewise = np.frombuffer(data.read(), np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(bytewise.T).view(dtype).reshape(shape)


class Writer(Store):
    """A store that the coordinator of a sweep writes to; made where there is none.

    Raises:
        StoreError: another sweep writes to it, it cannot be written, it is damaged, or the file is
            something else. It is then left as it is.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_file():
            raise StoreError(f"store {str(path)!r} is no regular file; give another name")
        self._lease = Lease(self.path)
        try:
            if self.path.exists() and self.path.stat().st_size:
                with closing(_reading(self.path)) as reading:
                    _check(self.path, reading)
            # In full: the name ":memory:" alone is none of a file.
            self._connection = sqlite3.connect(self.path.absolute(), isolation_level=None)
            try:
                self._prepare()
            except sqlite3.Error as error:
                self._connection.close()
                raise _failure(self.path, error) from None
        except BaseException:
            self._lease.release()
            raise

    def close(self) -> None:
        """Merges the log into the file, closes it and lets the next one write."""
        # Without a log, so that who reads the file later leaves none beside it; readers that are
        # at it now keep it.
        with suppress(sqlite3.Error):
            self._connection.execute("PRAGMA busy_timeout = 0")
            self._connection.execute("PRAGMA journal_mode = DELETE")
        self._connection.close()
        self._lease.release()

    def _prepare(self) -> None:
        run = self._connection.execute
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        run(f"PRAGMA cache_size = -{CACHE}")
        with self._transaction():
            run(f"PRAGMA application_id = {APPLICATION}")
            run(f"PRAGMA user_version = {FORMAT}")
            run("CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value TEXT)")
            run(
                f"CREATE TABLE IF NOT EXISTS points ({_POINT} TEXT PRIMARY KEY, "
                f"{_NUMBER} INTEGER, {_KEY} TEXT, {_RUN} INTEGER)"
            )
            run(f"CREATE INDEX IF NOT EXISTS points_number ON points ({_NUMBER}, {_POINT})")
            run(f"CREATE TABLE IF NOT EXISTS results ({_declared(RESULTS)}, PRIMARY KEY (key))")
            run(
                f"CREATE TABLE IF NOT EXISTS layers ({_declared(LAYERS)}, "
                "PRIMARY KEY (key, position)) WITHOUT ROWID"
            )
            run(
                "INSERT INTO meta VALUES ('coordinator', ?) "
                "ON CONFLICT (name) DO UPDATE SET value = excluded.value",
                (f"process {os.getpid()} on {socket.gethostname()}",),
            )
            self._read_parameters()
            self._make_view()
            ((self._number_of_run,),) = run(f"SELECT COALESCE(MAX({_RUN}), 0) + 1 FROM points")

    def _read_parameters(self) -> None:
        columns = self._connection.execute("PRAGMA table_info(points)")
        self._parameters = [name for _, name, *_ in columns if name[0] != "_"]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        """All of it or, after an error, nothing."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _make_view(self) -> None:
        shown = _shown(self._parameters)
        columns = ", ".join(f"{what} AS {_quoted(name)}" for name, what in shown.items())
        self._connection.execute("DROP VIEW IF EXISTS sweep")
        self._connection.execute(
            f"CREATE VIEW sweep AS SELECT {columns} FROM {_JOINED} ORDER BY {_NUMBER}, {_POINT}"
        )

    def known(self, keys: Sequence[str]) -> dict[str, Known]:
        """What is there of some results."""
        found: dict[str, Known] = {}
        for first in range(0, len(keys), _QUERIED):
            part = keys[first : first + _QUERIED]
            cursor = self._connection.execute(
                "SELECT key, error IS NOT NULL, profiles IS NOT NULL, image IS NOT NULL, "
                "EXISTS (SELECT 1 FROM layers WHERE layers.key = results.key) FROM results "
                f"WHERE key IN ({', '.join('?' * len(part))})",
                part,
            )
            found |= {key: Known(*map(bool, flags)) for key, *flags in cursor}
        return found

    def write(
        self,
        points: Iterable[PointRows] = (),
        results: Iterable[Sequence[Any]] = (),
        layers: Iterable[Sequence[Any]] = (),
    ) -> None:
        """Rows of the tables, all or none of them; those that are there are replaced.

        Raises:
            StoreError: they cannot be written.
        """
        try:
            with self._transaction():
                for block in points:
                    self._write_points(block)
                self._connection.executemany(_UPSERT_RESULT, sorted(results, key=_first))
                self._connection.executemany(_UPSERT_LAYER, layers)
        except BaseException as error:
            # New columns went with all else; or an interrupt came right after they had stayed.
            with suppress(sqlite3.Error):
                self._read_parameters()
            if isinstance(error, sqlite3.Error):
                raise _failure(self.path, error) from None
            raise

    def _write_points(self, block: PointRows) -> None:
        known = {_folded(name) for name in self._parameters}
        new = []
        for name in _checked(block.names):
            if _folded(name) not in known:
                self._connection.execute(f"ALTER TABLE points ADD COLUMN {_quoted(name)}")
                self._parameters.append(name)
                new.append(name)
        if new:
            self._make_view()
        # Not those of this run: parameters may be given twice, once with what is invalid.
        run = self._number_of_run
        if run > 1:
            self._connection.executemany(
                f"DELETE FROM points WHERE {_POINT} = ? AND {_RUN} <> {run}", block.gone
            )
        places = ", ".join("?" * (3 + len(block.names)))
        columns = ", ".join([_RUN, _POINT, _NUMBER, _KEY, *map(_quoted, block.names)])
        # A point has its place in the space of the latest run: the first, where it is there more
        # than once, in whatever order the answers come.
        self._connection.executemany(
            f"INSERT INTO points ({columns}) VALUES ({run}, {places}) "
            f"ON CONFLICT ({_POINT}) DO UPDATE "
            f"SET {_NUMBER} = excluded.{_NUMBER}, {_KEY} = excluded.{_KEY}, "
            f"{_RUN} = excluded.{_RUN} WHERE {_RUN} <> excluded.{_RUN} "
            f"OR {_NUMBER} > excluded.{_NUMBER} OR {_KEY} <> excluded.{_KEY}",
            sorted(block.rows),
        )


# --- files ----------------------------------------------------------------------------------


def _reading(path: Path) -> sqlite3.Connection:
    """A connection that cannot write."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    connection = sqlite3.connect(uri, uri=True, check_same_thread=False)
    try:
        _try_reading(connection)
    except sqlite3.OperationalError as error:
        # Reading a log needs to write beside the file, which a read-only folder refuses; where
        # there is no log, the file alone says everything.
        connection.close()
        if Path(f"{path}-wal").exists():
            raise _failure(path, error) from None
        connection = sqlite3.connect(f"{uri}&immutable=1", uri=True, check_same_thread=False)
        try:
            _try_reading(connection)
        except sqlite3.Error as second:
            connection.close()
            raise _failure(path, second) from None
    except sqlite3.Error as error:
        connection.close()
        raise _failure(path, error) from None
    ((application,),) = connection.execute("PRAGMA application_id")
    ((version,),) = connection.execute("PRAGMA user_version")
    if application != APPLICATION or version != FORMAT:
        connection.close()
        what = f"a store of version {version}" if application == APPLICATION else "no store"
        raise StoreError(
            f"{str(path)!r} is {what} of this fastrf's sweeps, and was left as it is; give another"
        )
    return connection


def _try_reading(connection: sqlite3.Connection) -> None:
    try:
        _prepare_reading(connection)
    except UnicodeDecodeError as error:  # in a message of SQLite's own
        raise sqlite3.DatabaseError(f"malformed: {error}") from None


def _prepare_reading(connection: sqlite3.Connection) -> None:
    connection.text_factory = lambda text: text.decode("utf-8", errors="replace")
    connection.execute("PRAGMA query_only = ON")
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
    connection.set_authorizer(_only_this_file)


def _only_this_file(action: int, *_: Any) -> int:
    return sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_ATTACH else sqlite3.SQLITE_OK


def _check(path: Path, connection: sqlite3.Connection) -> None:
    """StoreError where pages are damaged."""
    try:
        ((verdict,),) = connection.execute("PRAGMA quick_check(1)")
    except sqlite3.Error as error:
        raise _failure(path, error) from None
    if verdict != "ok":
        raise _failure(path, sqlite3.DatabaseError(f"malformed: {verdict}"))


# --- values ---------------------------------------------------------------------------------


def _shown(parameters: Iterable[str]) -> dict[str, str]:
    """The table's columns, each with what it is in `_JOINED`."""
    taken = {_folded(name) for name in RESULTS}
    shown = {}
    for parameter in parameters:
        name = parameter
        while _folded(name) in taken:
            name = f"parameter_{name}"
        taken.add(_folded(name))
        shown[name] = f"points.{_quoted(parameter)}"
    return shown | {name: f"results.{_quoted(name)}" for name in RESULTS}


def _checked(names: Sequence[Any]) -> Sequence[str]:
    """The names of a point's parameters, where they can be columns."""
    known: dict[bytes, str] = {}
    for name in names:
        if not isinstance(name, str) or name.startswith("_") or not name or "\0" in name:
            raise InputError(
                f"a parameter is called {name!r}; names of parameters are texts that begin with a "
                f"letter and hold no null character"
            )
        _check_text(name)
        same = known.setdefault(_folded(name), name)
        if same is not name:
            raise InputError(
                f"the parameters {same!r} and {name!r} differ in capitals alone, which the columns "
                f"of a table do not; rename one of them"
            )
    return names


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"{text!r} cannot be stored: {error.reason}; give parameters that UTF-8 can hold"
        ) from None


def _folded(name: str) -> bytes:
    """Equal for names that SQLite takes for one: capitals count as small letters, of ASCII only."""
    return name.encode().lower()


def _cell(value: Any) -> Any:
    """What a CSV file says of a value."""
    marked = isinstance(value, str) and _FORMULA.match(value) is not None
    return f"'{value}" if marked else value


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _declared(columns: Mapping[str, str]) -> str:
    return ", ".join(f"{_quoted(name)} {kind}" for name, kind in columns.items())


_SHAPE = (*(f"shape_{axis}" for axis in AXES), "dtype")
"""What blobs are read by."""


def _upsert(
    table: str, columns: Mapping[str, str], keys: Sequence[str], kept: Collection[str] = ()
) -> str:
    """Inserts or replaces a row; of `kept`, what the new one has not and still fits it stays."""
    names = list(map(_quoted, columns))
    fits = " AND ".join(f"{table}.{name} IS excluded.{name}" for name in _SHAPE)
    changes = [
        f"{name} = COALESCE(excluded.{name}, CASE WHEN {fits} THEN {table}.{name} END)"
        if name in map(_quoted, kept)
        else f"{name} = excluded.{name}"
        for name in names
    ]
    return (
        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))}) "
        f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {', '.join(changes)}"
    )


# An error, of asking again for what is kept beside the figures, takes no figures away.
_UPSERT_RESULT = (
    _upsert("results", RESULTS, ["key"], kept=BLOBS)
    + " WHERE excluded.error IS NULL OR results.error IS NOT NULL"
)
_UPSERT_LAYER = _upsert("layers", LAYERS, ["key", "position"])


_first = itemgetter(0)


def _storable(value: Any) -> Any:
    """A parameter as SQLite stores it: lists as JSON."""
    if isinstance(value, str):
        _check_text(value)
    if value is None or isinstance(value, str | float):
        return value
    if isinstance(value, int) and -(2**63) <= value < 2**63:
        return int(value)
    return text_of(value)


def _imported(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        package = name.partition(".")[0]
        raise MissingExtra(
            f"{package} is not installed; install it, or all that read tables: "
            "pip install 'fastrf[data]'"
        ) from None


def _arrow_column(arrow: Any, values: list[Any]) -> Any:
    """A column of one type: numbers, or texts where there are others among them."""
    try:
        return arrow.array(values)
    except (arrow.ArrowInvalid, arrow.ArrowTypeError):
        return arrow.array([v if v is None or isinstance(v, str) else text_of(v) for v in values])
