"""`fastrf sweep`: a space of networks into a store, and the store's table."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from fastrf.cli.options import COMPUTE, RESULTS, AsJson
from fastrf.cli.printing import note, print_json, print_table
from fastrf.errors import InputError, MissingExtra

if TYPE_CHECKING:
    from fastrf.sweep.space import Space
    from fastrf.sweep.store import Store


def sweep(
    space: Annotated[
        Path | None,
        Parameter(help="A space file, .toml or .json. Without one, the store is only read."),
    ] = None,
    /,
    *,
    store: Annotated[
        Path, Parameter(help="The store: an SQLite file, made where there is none.")
    ] = Path("sweep.db"),
    resume: Annotated[
        bool,
        Parameter(
            help="Go on where the store has results; --no-resume refuses a store that is there."
        ),
    ] = True,
    workers: Annotated[
        int | None,
        Parameter(group=COMPUTE, help="Processes; 0 for none. Default: as many as cores."),
    ] = None,
    dask: Annotated[
        str | None,
        Parameter(group=COMPUTE, help="Address of a Dask scheduler, such as tcp://host:8786."),
    ] = None,
    device: Annotated[
        str, Parameter(group=COMPUTE, help="cpu, cuda or cuda:N; auto lets the planner choose.")
    ] = "auto",
    layers: Annotated[
        Literal["last", "all"],
        Parameter(group=RESULTS, help="all: also the fields of all layers, in the table layers."),
    ] = "last",
    profiles: Annotated[
        bool, Parameter(negative="", group=RESULTS, help="Keep the profiles along the axes.")
    ] = False,
    images: Annotated[bool, Parameter(negative="", group=RESULTS, help="Keep the images.")] = False,
    retry_errors: Annotated[
        bool, Parameter(negative="", group=COMPUTE, help="Try again what has an error.")
    ] = False,
    progress: Annotated[
        bool, Parameter(group=COMPUTE, help="Show progress on standard error.")
    ] = True,
    query: Annotated[
        str | None,
        Parameter(
            group=RESULTS,
            help="SQL to run on the store, which it cannot change: SELECT … FROM sweep.",
        ),
    ] = None,
    top: Annotated[
        str | None,
        Parameter(
            group=RESULTS,
            help="A column: print the rows with its largest values, equal ones in the order of the "
            "space; -COLUMN: the smallest.",
            allow_leading_hyphen=True,
        ),
    ] = None,
    count: Annotated[int, Parameter(group=RESULTS, help="Rows that --top prints.")] = 10,
    export: Annotated[
        Path | None,
        Parameter(
            group=RESULTS, help="A .csv or .parquet file to write the table or --query's rows to."
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """The fields of all networks of a space, into a table that interruptions do not harm."""
    if query is not None and top is not None:
        raise InputError("--query and --top each say which rows to print; give one of them")
    if export is not None and top is not None:
        raise InputError(
            "--export writes the table or --query's rows, and --top prints; leave out one of them "
            "(--query 'SELECT * FROM sweep ORDER BY … LIMIT …' says the same)"
        )
    if space is not None:
        from fastrf.sweep.run import sweep as run
        from fastrf.sweep.space import Space

        if not resume and store.exists():
            raise InputError(f"{str(store)!r} is there; give another --store, or --resume")
        networks = Space.load(space)
        if query is not None or top is not None or export is not None:
            _check_results(networks, store, query, top, export)
        with _executor(dask) as executor:
            run(
                networks,
                store,
                executor,
                device,
                progress,
                workers=workers,
                layers=layers,
                profiles=profiles,
                images=images,
                retry_errors=retry_errors,
            ).close()
    from fastrf.sweep.store import Store

    with Store(store) as table:
        if export is not None:
            table.export(export, query)
            note(f"wrote {export}")
        elif query is not None:
            _show(table.query(query), as_json)
        elif top is not None:
            smallest = top.startswith("-")
            rows = table.top(top.removeprefix("-"), count, largest=not smallest)
            by = top.removeprefix("-")
            _show(rows if as_json else _in_short(rows, by, table), as_json, by)
        else:
            _summarise(table, as_json)
    return 0


def _check_results(
    space: Space, store: Path, query: str | None, top: str | None, export: Path | None
) -> None:
    """Refuses before a sweep what is asked of its table in vain: of one that is empty, with the
    columns of the space and of what the store has."""
    from fastrf.sweep.store import PointRows, Store, Writer, check_export

    names = list(space.columns)
    if store.is_file() and store.stat().st_size:
        with Store(store) as before:
            names += _parameters(before)
    with TemporaryDirectory() as folder, closing(Writer(Path(folder, "empty.db"))) as empty:
        empty.write([PointRows(tuple(dict.fromkeys(names)), [], [])])
        if export is not None:
            check_export(export)
            empty.export(Path(folder, export.name), query)
        elif query is not None:
            empty.query(query)
        elif top is not None:
            empty.top(top.removeprefix("-"))


@contextmanager
def _executor(address: str | None) -> Iterator[Any]:
    """A client of the Dask scheduler at an address; None without one."""
    if address is None:
        yield None
        return
    try:
        distributed: Any = import_module("distributed")
    except ImportError:
        raise MissingExtra("distributed is not installed: pip install 'fastrf[dask]'") from None
    try:
        client = distributed.Client(address, timeout=10)
    except (OSError, ValueError) as error:
        raise InputError(f"--dask {address!r}: no scheduler answers ({error})") from None
    with client:
        yield client


_HEADINGS = ("std_0", "luo_size_amplitude", "ratio", "trf_size_0")


def _in_short(rows: list[dict[str, Any]], by: str, table: Store) -> list[dict[str, Any]]:
    """The parameters, the column asked for and a few figures."""
    names = [*_parameters(table), by, *_HEADINGS]
    return [{name: row[name] for name in dict.fromkeys(names)} for row in rows]


def _parameters(table: Store) -> list[str]:
    return table.columns[: table.columns.index("key")]


def _show(rows: list[dict[str, Any]], as_json: bool, by: str | None = None) -> None:
    """Prints rows; on a narrow terminal without their last columns, but for the one named `by`."""
    if as_json:
        print_json({"rows": rows})
    elif not rows:
        note("no rows")
    else:
        header = list(rows[0])
        losable = tuple(name for name in reversed(header[1:]) if name != by)
        print_table(header, [[_cell(row[name]) for name in header] for row in rows], losable)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _summarise(table: Store, as_json: bool) -> None:
    ((failed,),) = table.rows("SELECT COUNT(error) FROM sweep")
    found = {"store": str(table.path), "rows": len(table), "errors": failed}
    if as_json:
        print_json(found | {"columns": table.columns})
    else:
        note(f"{found['rows']} rows in {found['store']}, {failed} with an error")
