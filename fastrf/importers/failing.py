"""How reading a model fails."""

from __future__ import annotations

from typing import NoReturn

from fastrf.errors import NetworkFileError, UnsupportedOperator


def line(text: object) -> str:
    """Text on one line and of a bearable length."""
    joined = " ".join(str(text).split())
    return joined if len(joined) <= 300 else joined[:299] + "…"


def fail(source: str, message: str) -> NoReturn:
    """The model itself is at fault."""
    raise NetworkFileError(f"{source}: {line(message)}") from None


def refuse(reason: str) -> NoReturn:
    """The operator at hand cannot be expressed; the walk adds its name and what can be done."""
    raise UnsupportedOperator(reason)
