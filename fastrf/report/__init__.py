"""The HTML report: a network's fields in one file that needs nothing else.

`document` computes what it says, `pictures` make images small, `page` writes the HTML.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fastrf.check import CheckReport
from fastrf.errors import InputError
from fastrf.report.document import assemble
from fastrf.report.page import render


def report(
    net: Any,
    path: str | os.PathLike[str],
    output: str | None = None,
    input_size: int | Sequence[int] | Mapping[str, Any] | None = None,
    *,
    input: str | None = None,
    ignore_global: bool = False,
    check: bool = True,
    title: str | None = None,
    workers: int | None = None,
    memory_limit: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> CheckReport | None:
    """Writes an HTML report of a network: one file, which opens without a network connection.

    It holds a summary, the table of all layers, a view in which one slides over the layers and
    points at units to see their boxes and ERFs on the input, the advice for tiled inference (see
    `fastrf.tiling`), the cross-check and the assumptions. The same arguments give the same bytes
    on the same versions and machine, with `check`'s errors the same too.

    Args:
        net: a `Network`, a layer or a sequence of layers and blocks.
        path: of the file, ending in .html or .htm; it is overwritten.
        output: the map of summary, cross-check and tiling advice; default: the network's output,
            or the last map before it lost its spatial extent; the first of several outputs.
        input_size: pixels of the input, as in `erf`; None: the unbounded grid.
        input: the input map on which fields lie; default: the first one.
        ignore_global: leave out paths through global layers.
        check: run the cross-check, which takes longer than all the rest.
        title: of the page; default: the network's name.
        workers, memory_limit: as in `erf`.
        progress: called with the share of the layers that are done.

    Returns:
        The cross-check's report, true when all agrees; None where it was left out, as of
        networks whose layers hold their weights.

    Raises:
        InputError: an argument or the network breaks a rule, or the file cannot be written.
    """
    check_path(path)
    document = assemble(
        net,
        output,
        input_size,
        input=input,
        ignore_global=ignore_global,
        check=check,
        title=title,
        workers=workers,
        memory_limit=memory_limit,
        progress=progress,
    )
    try:
        Path(path).write_text(render(document), encoding="utf-8", newline="\n")
    except OSError as error:
        raise InputError(f"cannot write {str(path)!r}: {error.strerror or error}") from None
    return document.check


def check_path(path: str | os.PathLike[str]) -> None:
    """Raises before the work what `report` would raise at its end: a suffix that is no page's, or
    no such folder."""
    target = Path(path)
    if target.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"a report is an HTML page; {str(path)!r} must end in .html or .htm")
    if not target.parent.is_dir():
        raise InputError(f"cannot write {str(path)!r}: there is no folder {str(target.parent)!r}")
