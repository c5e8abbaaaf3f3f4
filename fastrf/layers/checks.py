"""The fields of layers: each is declared with the check that refuses or canonicalises its value.

A check is a function of (owner, name, value, ndim). It returns the value in its one canonical
form, spelled out per axis where the field has one value per axis, or raises `InputError`.
`Layer.bind` runs the checks of all fields.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, TypeGuard

import numpy as np

from fastrf.errors import InputError, short
from fastrf.exchange import REFUSED, detached, numbers
from fastrf.initialisation import ALIASES, PATTERNS, SCHEMES, pattern

Pair = tuple[int, int]
Check = Callable[[str, str, Any, int], Any]
Taps = tuple[Any, ...]
"""Relative variances of a kernel's taps as nested tuples, which hash and compare."""

NAMED_PADDING = ("valid", "same", "same_upper", "same_lower", "causal")

MAXIMUM = 2**31 - 1
"""Greatest whole number in a layer and greatest map size: what frameworks index pixels with."""

MAXIMUM_CHANNELS = 2**20
"""Greatest number of channels: lowering labels every channel of a map."""

MAXIMUM_RATIO = 2**16
"""Greatest numerator and denominator of a scale: a resize is held as a table of one period."""

LARGEST = 1e140
"""The greatest weight and factor: sums of their squares, over all taps and channels that there can
be, are numbers."""

MAXIMUM_TABLE = 2**25
"""Most numbers in the table of a resize, a border or a pattern of taps: 256 MB."""


# --- declaring fields -----------------------------------------------------------------------


def checked(check: Check, default: Any = dataclasses.MISSING, *, kw_only: bool = False) -> Any:
    """A field with one value for all axes. Where the default is None, None passes the check."""
    return _field(check, default, kw_only, {})


def per_axis(check: Check, default: Any = dataclasses.MISSING, *, kw_only: bool = False) -> Any:
    """A field with one value per axis, so that a tuple says how many axes there are."""
    return _field(check, default, kw_only, {"per_axis": True})


def _field(check: Check, default: Any, kw_only: bool, metadata: dict[str, Any]) -> Any:
    def check_unless_none(owner: str, name: str, value: Any, ndim: int) -> Any:
        return None if value is None else check(owner, name, value, ndim)

    metadata["check"] = check_unless_none if default is None else check
    return dataclasses.field(default=default, kw_only=kw_only, metadata=metadata)


# --- checks ---------------------------------------------------------------------------------


def is_whole(value: object) -> TypeGuard[int]:
    """Whether `value` is an integer; True and False are not."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def whole(minimum: int | None, maximum: int = MAXIMUM) -> Check:
    """One whole number of at least `minimum` (None: of any sign)."""
    rule = "a whole number" if minimum is None else f"a whole number of at least {minimum}"

    def check(owner: str, name: str, value: Any, ndim: int) -> int:
        if not is_whole(value) or (minimum is not None and value < minimum):
            raise InputError(f"{owner}: {name}={short(value)} must be {rule}")
        return _at_most(maximum, owner, name, value)

    return check


def whole_per_axis(minimum: int) -> Check:
    """One whole number of at least `minimum` for all axes, or one per axis."""

    def check(owner: str, name: str, value: Any, ndim: int) -> tuple[int, ...]:
        for v in (values := _spelled_out(owner, name, value, ndim, "one number, or one")):
            if not is_whole(v) or v < minimum:
                raise InputError(
                    f"{owner}: {name}={short(value)} must be a whole number of at least "
                    f"{minimum} per axis"
                )
        return tuple(_at_most(MAXIMUM, owner, name, v) for v in values)

    return check


def paddings(names: Sequence[str] = ()) -> Check:
    """A number, or one number, (lo, hi) pair or one of `names` per axis: pairs and names."""

    def one(owner: str, name: str, value: Any, v: Any) -> Pair | str:
        if isinstance(v, str):
            if v not in names:
                known = f"is unknown; the names are {', '.join(names)}"
                raise InputError(
                    f"{owner}: {name}={short(v)} "
                    f"{known if names else 'must be numbers; a name needs a kernel'}"
                )
            return v
        pair = tuple(v) if isinstance(v, tuple | list) else (v, v)
        if len(pair) != 2 or not all(is_whole(p) for p in pair):
            raise InputError(
                f"{owner}: {name}={short(value)} must hold whole numbers or (lo, hi) pairs"
            )
        if min(pair) < 0:
            remedy = {"padding": "use Crop to cut pixels off", "amount": "use Pad to add pixels"}
            raise InputError(f"{owner}: {name}={short(value)} must be at least 0; {remedy[name]}")
        lo, hi = (_at_most(MAXIMUM, owner, name, p) for p in pair)
        return lo, hi

    def check(owner: str, name: str, value: Any, ndim: int) -> tuple[Pair | str, ...]:
        remedy = "one number, or one number or (lo, hi) pair"
        values = _spelled_out(owner, name, value, ndim, remedy)
        return tuple(one(owner, name, value, v) for v in values)

    return check


def choice(*choices: str) -> Check:
    """One of the names `choices`."""

    def check(owner: str, name: str, value: Any, ndim: int) -> str:
        if not isinstance(value, str) or value not in choices:
            raise InputError(
                f"{owner}: {name}={short(value)} is unknown; choose one of {', '.join(choices)}"
            )
        return value

    return check


def text(owner: str, name: str, value: Any, ndim: int) -> str:
    """A name of the user's choice."""
    if not isinstance(value, str):
        raise InputError(f"{owner}: {name}={short(value)} must be a name, such as 'relu'")
    return value


def flag(owner: str, name: str, value: Any, ndim: int) -> bool:
    """True or False."""
    if not isinstance(value, bool | np.bool_):
        raise InputError(f"{owner}: {name}={short(value)} must be True or False")
    return bool(value)


def positive(owner: str, name: str, value: Any, ndim: int) -> float:
    """A finite number above 0, such as a gain."""
    number = _finite(value)
    if number is None or number <= 0:
        raise InputError(f"{owner}: {name}={short(value)} must be a finite number above 0")
    return number


def nonnegative(owner: str, name: str, value: Any, ndim: int) -> float:
    """A finite number of at least 0, such as a variance."""
    number = _finite(value)
    if number is None or number < 0:
        raise InputError(f"{owner}: {name}={short(value)} must be a finite number of at least 0")
    return number


def nonzero(owner: str, name: str, value: Any, ndim: int) -> float:
    """A finite number other than 0, such as a factor, with a square."""
    number = _finite(value)
    if not number:
        raise InputError(f"{owner}: {name}={short(value)} must be a finite number other than 0")
    _check_squares(owner, name, number)
    return number


def keys_parameter(owner: str, name: str, value: Any, ndim: int) -> float:
    """A number from −1 to 0: for these, cubic convolution smooths wherever it is stretched."""
    number = _finite(value)
    if number is None or not -1 <= number <= 0:
        raise InputError(f"{owner}: {name}={short(value)} must be a number from -1 to 0")
    return number


def probability_below_one(owner: str, name: str, value: Any, ndim: int) -> float:
    """A number p with 0 ≤ p < 1."""
    number = _finite(value)
    if number is None or not 0 <= number < 1:
        raise InputError(f"{owner}: {name}={short(value)} must be at least 0 and below 1")
    return number


def scheme(owner: str, name: str, value: Any, ndim: int) -> str:
    """The name of an initialisation, or "trained": the gain and the taps are those of weights."""
    found = ALIASES.get(value, value) if isinstance(value, str) else None
    if found is None or found not in (*SCHEMES, TRAINED):
        raise InputError(
            f"{owner}: {name}={short(value)} is unknown; choose one of {', '.join(SCHEMES)}"
        )
    return found


TRAINED = "trained"
"""Marks a layer whose gain and taps were read from trained weights."""

channel_count = whole(1, MAXIMUM_CHANNELS)
"""A number of channels."""


def group_count(owner: str, name: str, value: Any, ndim: int) -> int | str:
    """A number of channel groups, or "depthwise"."""
    if isinstance(value, str) and value == "depthwise":
        return value
    if not is_whole(value) or value < 1:
        raise InputError(
            f"{owner}: {name}={short(value)} must be a whole number of at least 1, or 'depthwise'"
        )
    return _at_most(MAXIMUM, owner, name, value)


def scales(owner: str, name: str, value: Any, ndim: int) -> tuple[Fraction, ...]:
    """One rational scale above 0 for all axes, or one per axis."""
    values = _spelled_out(owner, name, value, ndim, "one number, or one")
    return tuple(_fraction(owner, name, v) for v in values)


def _fraction(owner: str, name: str, value: Any) -> Fraction:
    try:
        if isinstance(value, float | np.floating):
            result = Fraction(float(value)).limit_denominator(1024)
        elif is_whole(value):
            result = Fraction(int(value))
        elif isinstance(value, str | Fraction):
            result = Fraction(value)
        else:
            raise TypeError
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        raise InputError(
            f"{owner}: {name}={short(value)} is not a number; give 2, 1.5, '3/2' or a Fraction"
        ) from None
    if result <= 0 or max(result.numerator, result.denominator) > MAXIMUM_RATIO:
        raise InputError(
            f"{owner}: {name}={short(value)} must be above 0, and a ratio of whole numbers up "
            f"to {MAXIMUM_RATIO}"
        )
    return result


def normalised_taps(owner: str, taps: Any, kernel: tuple[int, ...]) -> Taps | None:
    """Relative variances of shape `kernel` with sum 1, as numbers or by the name of a pattern; None
    where all are equal."""
    if isinstance(taps, str):
        if taps not in PATTERNS:
            raise InputError(
                f"{owner}: taps={short(taps)} is unknown; choose one of {', '.join(PATTERNS)}, or "
                f"give one variance per tap"
            )
        check_room(owner, 1, math.prod(kernel), "give a smaller kernel")
        taps = pattern(taps, kernel)
    try:
        array = numbers(detached(taps))
    except REFUSED:
        raise InputError(f"{owner}: taps must be an array of numbers of shape {kernel}") from None
    if array.shape != kernel:
        raise InputError(
            f"{owner}: taps of shape {array.shape} do not fit kernel={kernel}; "
            f"give one variance per tap{of_axes(array.ndim, kernel)}"
        )
    largest = array.max()
    if not np.all(np.isfinite(array)) or array.min() < 0 or largest == 0:
        raise InputError(f"{owner}: taps must be finite variances of at least 0, not all 0")
    if np.all(array == array.flat[0]):
        return None
    total = array.sum()
    if abs(total - 1) > array.size * np.finfo(np.float64).eps:
        # Not normalised yet. (Dividing normalised taps once more would change their last bits.)
        array = array / largest
        array = array / array.sum()
    nested: Taps = _as_tuples(array.tolist())
    return nested


def checked_weights(owner: str, weights: Any, kernel: tuple[int, ...]) -> Taps:
    """Fixed weights of shape `kernel`, of any sign."""
    try:
        array = numbers(detached(weights))
    except REFUSED:
        raise InputError(
            f"{owner}: weights must be an array of numbers of shape {kernel}"
        ) from None
    if array.shape != kernel:
        raise InputError(
            f"{owner}: weights of shape {array.shape} do not fit kernel={kernel}; "
            f"give one number per tap{of_axes(array.ndim, kernel)}"
        )
    if not np.all(np.isfinite(array)) or not array.any():
        raise InputError(f"{owner}: weights must be finite numbers, not all 0")
    _check_squares(owner, "weights", float(np.abs(array).max()))
    nested: Taps = _as_tuples(array.tolist())
    return nested


def _check_squares(owner: str, name: str, largest: float) -> None:
    """Refuses values whose squares, variances, are beyond all numbers."""
    if not 1 / LARGEST <= abs(largest) <= LARGEST:
        raise InputError(
            f"{owner}: {name}={largest:g} has no square among numbers; scale it to between "
            f"{1 / LARGEST:g} and {LARGEST:g} in magnitude"
        )


def of_axes(given: int, kernel: tuple[int, ...]) -> str:
    """A further remedy for an array with the axes of another grid than the network's."""
    other = given in (1, 2, 3) and given != len(kernel)
    return f", or the network ndim={given}" if other else ""


def _as_tuples(value: Any) -> Any:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        return None
    try:
        number = float(value)
    except (OverflowError, TypeError):
        return None
    return number if math.isfinite(number) else None


def _spelled_out(owner: str, name: str, value: Any, ndim: int, remedy: str) -> tuple[Any, ...]:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * ndim
    if len(values) != ndim:
        raise InputError(
            f"{owner}: {name}={short(value)} has {len(values)} values for {ndim} axes; "
            f"give {remedy} per axis"
        )
    return values


def _at_most(maximum: int, owner: str, name: str, value: Any) -> int:
    if abs(value) > maximum:
        raise InputError(
            f"{owner}: {name}={short(value)} is too large; give a whole number up to {maximum}"
        )
    return int(value)


def check_room(owner: str, rows: int, taps: int, remedy: str) -> None:
    """Refuses a table of so many rows and taps before it is made.

    Raises:
        InputError: it has more than `MAXIMUM_TABLE` numbers.
    """
    if rows * taps > MAXIMUM_TABLE:
        raise InputError(
            f"{owner}: would take a table of {rows} × {taps} numbers, more than {MAXIMUM_TABLE}; "
            f"{remedy}"
        )


# --- sizes ----------------------------------------------------------------------------------


def checked_size(
    owner: str, size: tuple[int, ...], out: tuple[int, ...], remedy: str
) -> tuple[int, ...]:
    """`out`, the size of the map that a map of `size` becomes, where such a map can exist."""
    if min(out) < 1:
        raise InputError(f"{owner}: a map of {size} pixels shrinks to {out}; {remedy}")
    if max(out) > MAXIMUM:
        raise InputError(
            f"{owner}: a map of {size} pixels grows to {out}, beyond {MAXIMUM} per axis; "
            f"give a smaller input_size or scale less"
        )
    return out
