"""What an experiment returns: tables of what was printed beside what we get, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Table:
    """Rows under a header; numbers are kept as they are and shortened when written."""

    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    def column(self, name: str) -> list[Any]:
        """All entries under a name."""
        at = self.header.index(name)
        return [row[at] for row in self.rows]

    def cell(self, row: Any, name: str) -> Any:
        """The entry of the row that begins with `row`, under a name."""
        (found,) = (r for r in self.rows if r[0] == row)
        return found[self.header.index(name)]

    def markdown(self) -> str:
        lines = [self.header, tuple("---" for _ in self.header), *self.rows]
        return "\n".join(f"| {' | '.join(map(_text, line))} |" for line in lines)


@dataclass(frozen=True)
class Section:
    """One experiment.

    Attributes:
        key: names its figure's file.
        title, text: what was done and what was printed; why ours differ where they do.
        tables: by caption.
        figure: None where there is nothing to see.
    """

    key: str
    title: str
    text: str
    tables: dict[str, Table] = field(default_factory=dict)
    figure: Figure | None = None


def page(title: str, text: str, sections: Sequence[Section], folder: str) -> str:
    """Markdown of all sections; figures are looked for in `folder`."""
    parts = [f"# {title}", text]
    for section in sections:
        parts += [f"## {section.title}", section.text]
        if section.figure is not None:
            parts.append(f"![{section.title}]({folder}/{section.key}.png)")
        for caption, table in section.tables.items():
            parts += [f"**{caption}**", table.markdown()]
    return "\n\n".join(parts) + "\n"


def _text(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        return " × ".join(map(_text, value))
    return str(value)
