"""Arguments of compiled code: words of 64 bits, one after the other.

A number is one word, a tuple of integers one for each. An array is the address of NumPy's object,
where compiled code finds its pixels, shape and strides: to ask NumPy for them takes 2 µs an array,
more than all else of a call. *Kinds* say which is which: ``q``, ``d``, ``f`` and ``?`` are numbers
(int64, float64, float32, bool), ``3`` is a tuple of three integers, ``d2`` an array of float64 with
two axes (``i``: int32), ``D2`` one that is not C-contiguous. Whether an array can be written to
makes no difference to compiled code.
"""

from __future__ import annotations

import ctypes
import struct
from typing import Any

import numpy as np

Kinds = tuple[str, ...]

_NUMBERS = {int: "q", np.int64: "q", float: "d", np.float64: "d", np.float32: "f", bool: "?"}
ELEMENTS: dict[np.dtype[Any], str] = {
    np.dtype(np.int64): "q",
    np.dtype(np.int32): "i",
    np.dtype(np.float64): "d",
    np.dtype(np.float32): "f",
    np.dtype(np.bool_): "b",
}
_ARRAYS = {
    (dtype, ndim, contiguous): f"{kind if contiguous else kind.upper()}{ndim}"
    for dtype, kind in ELEMENTS.items()
    for ndim in range(1, 4)
    for contiguous in (True, False)
}

DATA = object.__basicsize__ // 8
"""The word of an array's object that holds the address of its pixels (`PyArrayObject`)."""
SHAPE, STRIDES = DATA + 2, DATA + 3
"""Those with the addresses of its shape and its strides."""


def described(values: tuple[Any, ...]) -> tuple[Kinds, list[Any]]:
    """The kinds of some arguments, and their words, which are good as long as the arguments live.

    Raises:
        TypeError: compiled code takes no such argument.
    """
    kinds: list[str] = []
    words: list[Any] = []
    for value in values:
        kind = _NUMBERS.get(type(value))
        if kind is not None:
            words.append(value)
        elif type(value) is tuple:
            kind = str(len(value))
            words += value
        else:
            if isinstance(value, np.ndarray) and (flags := value.flags).aligned:
                kind = _ARRAYS.get((value.dtype, value.ndim, flags.c_contiguous))
            if kind is None:
                raise _not_taken(value)
            words.append(id(value))
        kinds.append(kind)
    return tuple(kinds), words


def _not_taken(value: Any) -> TypeError:
    if not isinstance(value, np.ndarray):
        return TypeError(f"compiled code takes numbers, tuples of them and arrays, not {value!r}")
    return TypeError(
        f"an array of {value.dtype}, shape {value.shape} and strides {value.strides} is none that "
        f"compiled code takes: aligned, of 1 to 3 axes, of {', '.join(map(str, ELEMENTS))}"
    )


def layout(kinds: Kinds) -> struct.Struct:
    """How words are laid out in memory, in the machine's own order."""
    return struct.Struct("=" + "".join(map(_format, kinds)))


def _format(kind: str) -> str:
    if kind.isdecimal():
        return "q" * int(kind)
    return "d" if kind in ("d", "f") else "q"


def _words_of_an_array() -> bool:
    """Whether this Python's `id` and this NumPy's arrays are what compiled code takes them for."""
    array, numbers = np.zeros((2, 3)), ctypes.POINTER(ctypes.c_int64)
    words = ctypes.cast(id(array), numbers)
    if words[DATA] != array.ctypes.data:
        return False
    shape, strides = (ctypes.cast(words[i], numbers)[:2] for i in (SHAPE, STRIDES))
    return shape == [2, 3] and strides == [24, 8]


if not _words_of_an_array():
    raise ImportError("kernels of the CPU need CPython, and NumPy with the arrays that they know")
