"""`fastrf report`: a network's fields in one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from fastrf.cli.exits import FAILED
from fastrf.cli.options import (
    EVERYTHING,
    RESULTS,
    MemoryLimit,
    Net,
    Selection,
    Workers,
    bytes_of,
)
from fastrf.cli.printing import note
from fastrf.cli.progress import Progress


def report(
    net: Net,
    /,
    *,
    file: Annotated[
        Path,
        Parameter(name=["--file", "-o"], group=RESULTS, help="The page to write, an .html file."),
    ],
    selection: Selection = EVERYTHING,
    check: Annotated[
        bool,
        Parameter(
            negative="--no-check",
            group=RESULTS,
            help="Run the cross-check, which takes longer than all the rest.",
        ),
    ] = True,
    workers: Workers = None,
    memory_limit: MemoryLimit = None,
) -> int:
    """An HTML page to look at, which needs no network; exits 1 where the cross-check fails."""
    from fastrf.report import check_path
    from fastrf.report import report as write

    check_path(file)  # before the work
    network = selection.read(net)
    with Progress() as progress:
        found = write(
            network,
            file,
            **selection.options(),
            check=check,
            title=network.name or Path(net).stem,
            workers=workers,
            memory_limit=bytes_of(memory_limit),
            progress=progress,
        )
    note(f"wrote {file}")
    if found is None or found:
        return 0
    if not found.rows:
        note("the cross-check could compare nothing; the page says why")
        return 0
    note("the cross-check found engines that disagree; the page and fastrf check say which")
    return FAILED
