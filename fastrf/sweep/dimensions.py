"""The axes of a space: ranges, lists, zips and samples, each a sequence indexed on demand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastrf.errors import InputError

MOST_VALUES = 10**12
"""Most values of one range; they are computed when they are reached."""

MOST_SAMPLES = 1_000_000
"""Most points of a sample, which are drawn at once."""

Scalar: TypeAlias = int | float | bool | str
Method: TypeAlias = Literal["random", "latin"]


class Values(Protocol):
    """The values of one parameter, computed when they are reached."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


@dataclass(frozen=True, slots=True)
class Spaced:
    """`count` numbers from `first` on, a constant step apart (or a constant factor: `log`)."""

    first: float
    last: float
    count: int
    log: bool = False
    step: float | None = None

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> float:
        if not 0 <= index < self.count:
            raise IndexError(index)
        if self.step is not None:
            value = self.first + index * self.step
        elif index == self.count - 1:
            value = self.last
        elif self.log:
            value = self.first * (self.last / self.first) ** (index / (self.count - 1))
        else:
            value = self.first + (self.last - self.first) * (index / (self.count - 1))
        return float(f"{value:.15g}")  # 0.3, as a reader would write it, not 0.30000000000000004


@dataclass(frozen=True, slots=True)
class Continuous:
    """All numbers between two, which only a sample can take values from.

    Attributes:
        log: equal factors are equally likely, not equal steps.
        whole: values are whole numbers, both ends included.
    """

    low: float
    high: float
    log: bool
    whole: bool

    def at(self, share: float) -> float:
        """The value that a share 0 ≤ share < 1 of the values lies below."""
        low, high = self.low, self.high + self.whole
        value = low * (high / low) ** share if self.log else low + (high - low) * share
        return min(int(value), int(self.high)) if self.whole else value


def at_share(values: Values | Continuous, share: float) -> Any:
    """The value that a share 0 ≤ share < 1 of the values lies below."""
    if isinstance(values, Continuous):
        return values.at(share)
    return values[min(int(share * len(values)), len(values) - 1)]


@dataclass(frozen=True, slots=True)
class Axis:
    """Parameters that vary together: one of a grid, several of a zip or a sample.

    Attributes:
        names: the parameters.
        columns: their values, one sequence per name (of a sample: what shares are taken of).
        shares: of a sample, array of shape (points, names) with values in [0, 1).
    """

    names: tuple[str, ...]
    columns: tuple[Values | Continuous, ...]
    shares: NDArray[np.float64] | None = None

    def __len__(self) -> int:
        if self.shares is not None:
            return len(self.shares)
        first = self.columns[0]
        assert not isinstance(first, Continuous)
        return len(first)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        if self.shares is not None:
            row = self.shares[index].tolist()
            return tuple(at_share(v, s) for v, s in zip(self.columns, row, strict=True))
        return tuple(values[index] for values in self.columns)  # type: ignore[index]


def sampled(method: Method, count: int, axes: int, seed: int) -> NDArray[np.float64]:
    """`count` points of the unit cube, each value in [0, 1): array of shape (count, axes).

    "random": independent and uniform. "latin": a Latin hypercube (McKay, Beckman and Conover
    1979), in which every parameter takes each of `count` equal shares once.
    """
    generator = np.random.default_rng(seed)
    if method == "random":
        return generator.random((count, axes))
    # The points of `scipy.stats.qmc.LatinHypercube`, without its import, which every worker would
    # pay for: 0.5 s.
    (generator,) = generator.spawn(1)
    shares = generator.random((count, axes))
    strata = np.tile(np.arange(1, count + 1), (axes, 1))
    for line in strata:
        generator.shuffle(line)
    found: NDArray[np.float64] = (strata.T - shares) / count
    return found


# --- reading --------------------------------------------------------------------------------

_RANGE = ("from", "to", "step", "count", "scale", "whole")


def read_values(value: Any, place: str) -> Values | Continuous:
    """The values that a list, a Python range or a table ``{from = …, to = …}`` describes.

    Raises:
        InputError: it describes none; the message begins with `place`.
    """
    if isinstance(value, range):
        if len(value) == 0:
            _fail(place, f"{value} is empty; give at least one value")
        return value
    if isinstance(value, Mapping):
        return _read_range(value, place)
    content = frozen(value, place)
    values: Values = content if isinstance(content, tuple) else (content,)
    if not len(values):
        _fail(place, "the list is empty; give at least one value")
    return values


def _read_range(table: Mapping[str, Any], place: str) -> Values | Continuous:
    for key in table:
        if key not in _RANGE:
            _fail(place, f"a range has no key {key!r}; the keys are {', '.join(_RANGE)}")
    if "from" not in table or "to" not in table:
        _fail(place, "a range needs from and to; write {from = 1, to = 100}, both included")
    first, last = (_finite(table[key], f"{place}.{key}") for key in ("from", "to"))
    scale = table.get("scale", "linear")
    if scale not in ("linear", "log"):
        _fail(f"{place}.scale", f"{scale!r} is unknown; choose linear or log")
    log = scale == "log"
    if log and min(first, last) <= 0:
        _fail(place, f"from {first} to {last} has no logarithm; give numbers above 0")
    whole = table.get("whole", isinstance(first, int) and isinstance(last, int))
    if type(whole) is not bool:
        _fail(f"{place}.whole", f"{whole!r} must be true or false")
    if whole and not (float(first).is_integer() and float(last).is_integer()):
        _fail(place, f"from {first} to {last} are no whole numbers; give such, or whole = false")
    if "count" in table and "step" in table:
        _fail(place, "both step and count are given; give one of them")
    if "count" in table:
        return _counted(table["count"], first, last, log, whole, place)
    if log:
        if "step" in table:
            _fail(place, "step means nothing on a log scale; give count")
        return _continuous(first, last, True, whole, place)
    if "step" in table or whole:
        return _stepped(_finite(table.get("step", 1), f"{place}.step"), first, last, whole, place)
    return _continuous(first, last, False, False, place)


def _counted(count: Any, first: float, last: float, log: bool, whole: bool, place: str) -> Values:
    if type(count) is not int or not 1 <= count <= MOST_VALUES:
        _fail(f"{place}.count", f"{count!r} must be a whole number from 1 to {MOST_VALUES}")
    spaced = Spaced(float(first), float(last), count, log)
    if not whole:
        return spaced
    if count > MOST_SAMPLES:
        _fail(f"{place}.count", f"{count} is more than {MOST_SAMPLES}; give a step, or less")
    rounded = dict.fromkeys(round(spaced[i]) for i in range(count))
    return tuple(rounded)


def _stepped(step: float, first: float, last: float, whole: bool, place: str) -> Values:
    if step == 0:
        _fail(place, "a step of 0 leads nowhere; give another number")
    if (last - first) * step < 0:
        _fail(place, f"a step of {step} does not lead from {first} to {last}; turn its sign")
    # A hair is forgiven, so that 0 to 1 by 0.1 has 11 values.
    count = math.floor((last - first) / step * (1 + 1e-12) + 1e-9) + 1
    if count > MOST_VALUES:
        _fail(place, f"has {count} values; a range has at most {MOST_VALUES}")
    if whole:
        if not float(step).is_integer():
            _fail(f"{place}.step", f"{step} is no whole number; give one, or whole = false")
        first, step = int(first), int(step)
        return range(first, first + count * step, step)
    return Spaced(float(first), float(last), count, step=float(step))


def _continuous(low: float, high: float, log: bool, whole: bool, place: str) -> Continuous:
    if low > high:
        _fail(place, f"from {low} to {high} goes down; turn the two")
    return Continuous(low, high, log, whole)


def _finite(value: Any, place: str) -> int | float:
    if type(value) not in (int, float) or not math.isfinite(value) or abs(value) > 2**53:
        _fail(place, f"{value!r} must be a finite number of at most 2**53")
    number: int | float = value
    return number


def frozen(value: Any, place: str) -> Any:
    """A value of a file as a scalar or nested tuples; arrays and NumPy's scalars become such.

    Raises:
        InputError: it holds anything else, such as a table or a date.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(frozen(v, f"{place}[{i}]") for i, v in enumerate(value))
    if isinstance(value, float) and not math.isfinite(value):
        _fail(place, f"{value} is not finite; give a finite number")
    if not isinstance(value, Scalar):
        _fail(place, f"{value!r} must be a number, a text, true, false, or a list of these")
    return value


def _fail(place: str, message: str) -> NoReturn:
    raise InputError(" ".join(f"{place}: {message}".split())) from None
