"""Writes docs/api.md, the reference of all public names, from their docstrings.

    python -m bench.api

tests/test_docs.py holds the page against the docstrings.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import fastrf

PAGE = Path(__file__).parents[1] / "docs" / "api.md"


def page() -> str:
    """The page as text."""
    parts = ["# API", "Made by `python -m bench.api` from the docstrings (`import fastrf as rf`)."]
    names = sorted(fastrf.__all__, key=lambda name: (_kind(name), name.lower()))
    for title, kind in (("Functions", 0), ("Classes", 1), ("Modules", 2)):
        parts.append(f"## {title}")
        for name in (n for n in names if _kind(n) == kind):
            parts += _entry(name, getattr(fastrf, name))
    return "\n\n".join(parts) + "\n"


def _kind(name: str) -> int:
    value = getattr(fastrf, name)
    if isinstance(value, str):
        return 3
    return 2 if isinstance(value, ModuleType) else int(inspect.isclass(value))


def _entry(name: str, value: Any) -> list[str]:
    text = inspect.getdoc(value) or ""
    if isinstance(value, ModuleType):
        return [f"### rf.{name}", _shown(text)]
    return [f"### rf.{name}{_signature(value)}", _shown(text), *_members(value)]


def _signature(value: Any) -> str:
    """Names and defaults of the arguments; annotations are in the text."""
    parameters = [
        p.replace(annotation=inspect.Parameter.empty)
        for p in inspect.signature(value).parameters.values()
    ]
    return str(inspect.Signature(parameters))


def _members(value: Any) -> list[str]:
    """Methods and properties that a class documents itself, one line each."""
    if not inspect.isclass(value):
        return []
    lines = []
    for name, member in vars(value).items():
        inner = getattr(member, "fget", None) or getattr(member, "func", None) or member
        text = inspect.getdoc(inner) if callable(inner) or hasattr(member, "__func__") else None
        if name.startswith("_") or not text or inspect.isclass(member):
            continue
        first = " ".join(text.split("\n\n")[0].split())
        lines.append(f"- `{name}`: {first}")
    return ["\n".join(lines)] if lines else []


def _shown(text: str) -> str:
    """A docstring as it stands: its layout is made for fixed-width letters."""
    return f"```text\n{text}\n```"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"written to {PAGE.relative_to(PAGE.parents[1])}")
