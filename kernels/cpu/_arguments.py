"""Arguments of compiled code: words of 64 bits, one after the other.

A number is one word, a tuple of integers one for each, an array its address and its shape.
*Kinds* say which: ``q``, ``d``, ``f`` and ``?`` are numbers (int64, float64, float32, bool), ``3``
is a tuple of three integers, ``d2`` an array of float64 with two axes (``i``: int32). Arrays are C-contiguous, so
their strides need no words; whether they can be written to makes no difference to compiled code.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np

Kinds = tuple[str, ...]

_NUMBERS = {int: "q", np.int64: "q", float: "d", np.float64: "d", np.float32: "f", bool: "?"}
ELEMENTS = {
    np.dtype(np.int64): "q",
    np.dtype(np.int32): "i",
    np.dtype(np.float64): "d",
    np.dtype(np.float32): "f",
    np.dtype(np.bool_): "?",
}
_ARRAYS = {(t, ndim): f"{k}{ndim}" for t, k in ELEMENTS.items() for ndim in range(1, 4)}


def described(values: tuple[Any, ...]) -> tuple[Kinds, list[Any]]:
    """The kinds of some arguments, and their words.

    Raises:
        TypeError: compiled code takes no such argument.
    """
    kinds, words = [], []
    for value in values:
        kind = _NUMBERS.get(type(value))
        if kind is not None:
            kinds.append(kind)
            words.append(value)
        elif type(value) is tuple:
            kinds.append(str(len(value)))
            words += value
        else:
            kinds.append(_array_kind(value))
            words.append(value.__array_interface__["data"][0])
            words += value.shape
    return tuple(kinds), words


def _array_kind(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"compiled code takes numbers, tuples of integers and arrays, not {value!r}"
        )
    kind, flags = _ARRAYS.get((value.dtype, value.ndim)), value.flags
    if kind is None or not (flags.c_contiguous and flags.aligned):
        raise TypeError(
            f"an array of {value.dtype}, shape {value.shape} and strides {value.strides} is none "
            f"that compiled code takes: C-contiguous, aligned, of 1 to 3 axes, of "
            f"{', '.join(map(str, ELEMENTS))}"
        )
    return kind


def layout(kinds: Kinds) -> struct.Struct:
    """How words are laid out in memory, in the machine's own order."""
    return struct.Struct("=" + "".join(map(_format, kinds)))


def _format(kind: str) -> str:
    if kind.isdecimal():
        return "q" * int(kind)
    if len(kind) == 2:
        return "q" * (1 + int(kind[1]))
    return {"q": "q", "?": "q", "d": "d", "f": "d"}[kind]
