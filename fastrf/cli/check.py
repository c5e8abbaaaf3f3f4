"""`fastrf check`: engines against formulas."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrf.cli.exits import BAD_INPUT, FAILED
from fastrf.cli.options import (
    EVERYTHING,
    AsJson,
    MemoryLimit,
    Net,
    Selection,
    Unit,
    Workers,
    bytes_of,
    unit_of,
)
from fastrf.cli.printing import note, print_json, print_table, shortened, show, width_of_page
from fastrf.cli.progress import Progress

if TYPE_CHECKING:
    from fastrf.check import CheckReport


def check(
    net: Net,
    /,
    *,
    selection: Selection = EVERYTHING,
    unit: Unit = "center",
    workers: Workers = None,
    memory_limit: MemoryLimit = None,
    as_json: AsJson = False,
) -> int:
    """Every engine against independent formulas; exits 1 where one disagrees, and 2 where nothing
    can be compared."""
    from fastrf.check import check as cross_check

    network = selection.read(net)
    with Progress():
        report = cross_check(
            network,
            unit=unit_of(unit),
            workers=workers,
            memory_limit=bytes_of(memory_limit),
            **selection.options(),
        )
    if as_json:
        print_json(report.to_dict())
    else:
        _show_check(report)
    if not report.rows:
        note("nothing was compared, and so nothing checked: what is said of each engine tells why")
        return BAD_INPUT
    return 0 if report else FAILED


_BESIDE = 53
"""Characters of the columns ok, engine, dtype, grid and error."""


def _show_check(report: CheckReport) -> None:
    header = ["quantity", "ok", "engine", "dtype", "grid", "error", "tolerance", "device"]
    # Rather shortened than without the columns that tell rows apart.
    room = max(width_of_page() - _BESIDE, 20)
    rows = [
        [
            shortened(row.quantity, room),
            "yes" if row.ok else "NO",
            row.engine,
            row.dtype,
            row.grid,
            f"{row.error:.2g}",
            f"{row.tolerance:.2g}",
            row.device,
        ]
        for row in report.rows
    ]
    show(f"{report.network}, {report.node}\n")
    if rows:
        print_table(header, rows, ("device", "tolerance", "grid", "dtype"))
        show("")
    failed = [row for row in report.rows if not row.ok]
    for row in failed:
        show(f"{row.quantity} ({row.device}, {row.engine}, {row.dtype}, {row.grid}):")
        show(f"  is {row.value}, expected {row.expected}")
    for reason in report.skipped:
        show(f"not compared: {reason}")
    total = len(report.rows)
    if failed:
        show(f"{len(failed)} of {total} disagree")
    elif rows:
        show(f"all {total} comparisons agree")
