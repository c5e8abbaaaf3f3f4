"""Texts, tables and documents for standard output, notes for standard error."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from fractions import Fraction
from io import StringIO
from typing import Any

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from fastrf.errors import printable

UNLIMITED = 10_000
"""Characters a line may have where no terminal limits it."""


def axes(values: Sequence[Any], between: str = "×") -> str:
    """One value per axis; a single one where all axes agree."""
    texts = ["–" if v is None else str(v) for v in values]
    return texts[0] if len(set(texts)) == 1 else between.join(texts)


def times(values: Sequence[Any]) -> str:
    return " × ".join(map(str, values))


def grid(input_size: Sequence[int] | None) -> str:
    return "unbounded grid" if input_size is None else f"input {times(input_size)}"


def listed(values: Sequence[Any]) -> str:
    texts = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in values]
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"


def width_of_page() -> int:
    """Characters per line: the terminal's, or what COLUMNS says."""
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS"):
        return UNLIMITED
    return max(shutil.get_terminal_size().columns, 20)


def show(content: RenderableType) -> None:
    """Writes to standard output; rich only lays out, so that a closed pipe ends quietly."""
    styled = sys.stdout.isatty()
    page = StringIO()
    console = Console(
        file=page,
        width=width_of_page(),
        force_terminal=styled,
        color_system="auto" if styled else None,
        highlight=False,
        emoji=False,
    )
    if isinstance(content, str):
        content = Text("\n".join(map(printable, content.split("\n"))))
    console.print(content)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in page.getvalue().splitlines())


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], losable: tuple[str, ...]
) -> None:
    """A table, words to the left and numbers to the right, at most as wide as the terminal.

    Too wide a table loses the `losable` columns one after the other; then the first column's
    entries are shortened in the middle.
    """
    width, gap = width_of_page(), 2
    kept = list(range(len(header)))
    widths = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]

    def total() -> int:
        return sum(widths[i] + gap for i in kept) - gap

    lost = []
    for name in losable:
        if total() <= width:
            break
        if name in header:
            kept.remove(header.index(name))
            lost.append(name)
    first = max(widths[0] - max(total() - width, 0), 8)
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for i in kept:
        words = i == 0 or all(row[i][:1].isalpha() for row in rows)
        table.add_column(
            Text(printable(header[i])), justify="left" if words else "right", no_wrap=True
        )
    for row in rows:
        cells = [shortened(row[0], first), *(row[i] for i in kept[1:])]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    show(table)
    if lost:
        note(f"left out to fit {width} characters: {', '.join(lost)} (--json has everything)")


def shortened(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Names and values in two columns; long values continue below themselves."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(Text(printable(name)), Text(printable(value)))
    show(table)


def print_json(document: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(_plain(document), indent=2, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """`value` in the types of JSON; see the module's docstring for exact numbers."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Fraction):
        if value.denominator == 1:
            return value.numerator
        binary = float(value)
        return binary if Fraction(binary) == value else str(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def note(text: str) -> None:
    sys.stderr.write(f"fastrf: {one_line(text)}\n")


def one_line(text: object) -> str:
    """The text on one line, without characters that steer a terminal."""
    return printable(" ".join(str(text).split()))


def figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.3g}%"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"
