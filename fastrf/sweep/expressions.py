"""Expressions of spaces: a closed grammar, read with `ast` and turned into closures.

An expression holds numbers, texts, lists, names, ``+ − * / // % **``, comparisons (also ``in``),
``and or not``, ``a if c else b``, indexing of lists and the functions of `FUNCTIONS`. Nothing else
is understood, and nothing is ever given to Python to execute. What an expression can cost is
bounded: its length, its nesting, and the size of every number on the way.
"""

from __future__ import annotations

import ast
import difflib
import math
import operator
import threading
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NoReturn, TypeAlias

from fastrf.errors import InputError

Names: TypeAlias = Mapping[str, Any]
"""What names mean: whole numbers, floats, truth values, texts, tuples of them, None, `Failed`."""

Evaluate: TypeAlias = Callable[[Names], Any]

_ONE_AT_A_TIME = threading.Lock()
"""Two threads that put the warnings filters aside at once would put back each other's."""

LONGEST = 500
"""Characters of an expression."""

DEEPEST = 30
"""Nesting of an expression; far below Python's recursion limit."""

LARGEST = 2**63
"""Whole numbers stay below it in magnitude, intermediate results included."""

MOST_TAPS = 10_000
"""Most taps that `binomial` and `gaussian` give."""


class Failed:
    """The value of a name whose own expression failed; whoever reads it fails alike."""

    __slots__ = ("error",)

    def __init__(self, error: InputError) -> None:
        self.error = error


class _Refused(Exception):
    """What is wrong, before it is known where."""


# --- functions ------------------------------------------------------------------------------


def _number(value: Any) -> int | float:
    if isinstance(value, int | float):
        return value
    raise _Refused(f"{_short(value)} is no number; arithmetic needs numbers")


def _checked(value: Any) -> Any:
    """The result of arithmetic, where it is a number within bounds."""
    if type(value) is int:
        if -LARGEST < value < LARGEST:
            return value
        raise _Refused("the result is beyond 2**63; whole numbers stay below that")
    if isinstance(value, complex) or not math.isfinite(value):
        raise _Refused("the result is no finite real number; keep to values for which it is one")
    return value


def _power(base: int | float, exponent: int | float) -> Any:
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and exponent > 0 and abs(base) > 1 and exponent * math.log2(abs(base)) > 64:
        raise _Refused(f"{base}**{exponent} is beyond 2**63; whole numbers stay below that")
    return base**exponent


def _extreme(pick: Callable[[Sequence[Any]], Any]) -> Callable[..., Any]:
    def extreme(*values: Any) -> Any:
        numbers = values[0] if len(values) == 1 and isinstance(values[0], tuple) else values
        if not numbers:
            raise _Refused("an empty list has no least and no greatest value; give values")
        return pick([_number(v) for v in numbers])

    return extreme


def _real(function: Callable[[float], Any]) -> Callable[[Any], Any]:
    return lambda value: function(_number(value))


def _round(value: Any, digits: Any = None) -> Any:
    if digits is not None and (type(digits) is not int or not 0 <= digits <= 15):
        raise _Refused(f"{_short(digits)} digits cannot be rounded to; give 0 to 15")
    return round(_number(value), digits)


def _length(value: Any) -> int:
    if not isinstance(value, tuple):
        raise _Refused(f"{_short(value)} is no list; only lists have a length")
    return len(value)


def _sum(value: Any) -> Any:
    _length(value)
    return sum(_number(v) for v in value)


def _tap_count(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= MOST_TAPS:
        raise _Refused(f"{_short(value)} is no number of taps; give 1 to {MOST_TAPS}")
    return value


def _binomial(kernel: Any) -> tuple[float, ...]:
    last = _tap_count(kernel) - 1
    # Scaled to a peak of 1, so that no width overflows.
    peak, own, half = math.comb(last, last // 2), 1, []
    for m in range(last // 2 + 1):
        half.append(own / peak)
        own = own * (last - m) // (m + 1)
    return (*half, *half[::-1][1 - last % 2 :])


def _gaussian(kernel: Any, sigma: Any) -> tuple[float, ...]:
    middle, width = (_tap_count(kernel) - 1) / 2, _number(sigma)
    if width <= 0:
        raise _Refused(f"sigma={_short(sigma)} is no width; give a number above 0")
    return tuple(math.exp(-(((m - middle) / width) ** 2) / 2) for m in range(kernel))


FUNCTIONS: dict[str, tuple[Callable[..., Any], int, int | None]] = {
    "min": (_extreme(min), 1, None),
    "max": (_extreme(max), 1, None),
    "abs": (_real(abs), 1, 1),
    "round": (_round, 1, 2),
    "floor": (_real(math.floor), 1, 1),
    "ceil": (_real(math.ceil), 1, 1),
    "log2": (_real(math.log2), 1, 1),
    "sqrt": (_real(math.sqrt), 1, 1),
    "len": (_length, 1, 1),
    "sum": (_sum, 1, 1),
    "binomial": (_binomial, 1, 1),
    "gaussian": (_gaussian, 2, 2),
}
"""Function, least and greatest number of arguments. `binomial(k)` and `gaussian(k, sigma)` give
k taps with a peak of 1 in the middle."""

_LISTS = ("binomial", "gaussian")

_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}

_ORDER: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}

_EQUALITY: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
}

_MEMBERSHIP: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.In: lambda item, values: item in values,
    ast.NotIn: lambda item, values: item not in values,
}


# --- expressions ----------------------------------------------------------------------------


class Expression:
    """A text of the grammar, ready to be computed for any meaning of its names.

    Args:
        text: the expression.
        place: where it stands, for messages: "space.toml: parameters.dilation".

    Attributes:
        names: the names that it reads.

    Raises:
        InputError: the text is not of the grammar; the message says where and why.
    """

    __slots__ = ("_evaluate", "names", "place", "text")

    def __init__(self, text: str, place: str) -> None:
        self.text, self.place = text, place
        if len(text) > LONGEST:
            self._fail(f"has {len(text)} characters; write at most {LONGEST}")
        try:
            with _ONE_AT_A_TIME, warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Python's own about odd spellings
                tree = ast.parse(text.strip(), mode="eval").body
        except SyntaxError as error:
            at = f" at character {error.offset}" if error.offset else ""
            self._fail(f"is no expression{at}; write one such as '2**i' or 'kernel // 2'")
        except (ValueError, MemoryError, RecursionError):
            self._fail("is no expression; write one such as '2**i' or 'kernel // 2'")
        self.names = frozenset(
            node.id
            for node in ast.walk(tree)
            if isinstance(node, ast.Name) and node.id not in FUNCTIONS
        )
        self._evaluate = self._compile(tree, 0)

    def __call__(self, names: Names) -> Any:
        """The value where `names` has every name of the expression.

        Raises:
            InputError: it has none (a division by 0, an index beyond a list, too large a power).
        """
        try:
            return self._evaluate(names)
        except _Refused as error:
            reason = str(error)
        except ZeroDivisionError:
            reason = "a division by 0; exclude such values with where"
        except (ValueError, OverflowError, TypeError) as error:
            reason = f"{error}; keep to values for which it is defined"
        used = ", ".join(f"{n}={_short(names[n])}" for n in sorted(self.names))
        self._fail(f"{reason}" + (f" (with {used})" if used else ""))

    def _fail(self, message: str) -> NoReturn:
        shown = self.text if len(self.text) <= 60 else self.text[:59] + "…"
        raise InputError(" ".join(f"{self.place}: {shown!r}: {message}".split())) from None

    def _refuse(self, node: ast.AST, message: str) -> NoReturn:
        self._fail(f"at character {getattr(node, 'col_offset', 0) + 1}: {message}")

    # --- from syntax to closures

    def _compile(self, node: ast.expr, depth: int) -> Evaluate:
        if depth > DEEPEST:
            self._refuse(node, f"nests deeper than {DEEPEST}; write it flatter")
        compile_node = getattr(self, f"_{type(node).__name__.lower()}", None)
        if compile_node is None:
            self._refuse(
                node,
                f"{type(node).__name__} is not understood; expressions hold numbers, names, "
                f"operators, lists and {', '.join(FUNCTIONS)}",
            )
        evaluate: Evaluate = compile_node(node, depth + 1)
        return evaluate

    def _constant(self, node: ast.Constant, depth: int) -> Evaluate:
        value = node.value
        if type(value) not in (int, float, bool, str):
            self._refuse(node, f"{_short(value)} is no number and no text; give one of these")
        if type(value) in (int, float):
            try:
                _checked(value)
            except _Refused as error:
                self._refuse(node, str(error))
        return lambda names: value

    def _name(self, node: ast.Name, depth: int) -> Evaluate:
        name = node.id
        if name in FUNCTIONS:
            self._refuse(node, f"{name} is a function; call it: {name}(…)")

        def look_up(names: Names) -> Any:
            value = names[name]
            if type(value) is Failed:
                raise value.error
            return value

        return look_up

    def _list(self, node: ast.List, depth: int) -> Evaluate:
        items = [self._compile(item, depth) for item in node.elts]
        return lambda names: tuple(item(names) for item in items)

    def _unaryop(self, node: ast.UnaryOp, depth: int) -> Evaluate:
        operand = self._compile(node.operand, depth)
        if isinstance(node.op, ast.Not):
            return lambda names: not operand(names)
        if isinstance(node.op, ast.USub):
            return lambda names: -_number(operand(names))
        if isinstance(node.op, ast.UAdd):
            return lambda names: +_number(operand(names))
        self._refuse(node, "~ is not understood; write not")

    def _binop(self, node: ast.BinOp, depth: int) -> Evaluate:
        function = _ARITHMETIC.get(type(node.op))
        if function is None:
            self._refuse(node, "this operator is not understood; there are + - * / // % **")
        left, right = self._compile(node.left, depth), self._compile(node.right, depth)
        return lambda names: _checked(function(_number(left(names)), _number(right(names))))

    def _boolop(self, node: ast.BoolOp, depth: int) -> Evaluate:
        parts = [self._compile(part, depth) for part in node.values]
        join = all if isinstance(node.op, ast.And) else any
        return lambda names: join(part(names) for part in parts)

    def _compare(self, node: ast.Compare, depth: int) -> Evaluate:
        first = self._compile(node.left, depth)
        rest = [
            (self._comparison(op, node), self._compile(value, depth))
            for op, value in zip(node.ops, node.comparators, strict=True)
        ]

        def compare(names: Names) -> bool:
            left = first(names)
            for holds, value in rest:
                right = value(names)
                if not holds(left, right):
                    return False
                left = right
            return True

        return compare

    def _comparison(self, op: ast.cmpop, node: ast.AST) -> Callable[[Any, Any], bool]:
        if (order := _ORDER.get(type(op))) is not None:
            return lambda left, right: order(_number(left), _number(right))
        if (same := _EQUALITY.get(type(op))) is not None:
            return same
        if (member := _MEMBERSHIP.get(type(op))) is not None:
            return lambda left, right: _length(right) >= 0 and member(left, right)
        self._refuse(node, "is is not understood; write ==")

    def _ifexp(self, node: ast.IfExp, depth: int) -> Evaluate:
        test, then, other = (self._compile(n, depth) for n in (node.test, node.body, node.orelse))
        return lambda names: then(names) if test(names) else other(names)

    def _subscript(self, node: ast.Subscript, depth: int) -> Evaluate:
        if isinstance(node.slice, ast.Slice | ast.Tuple):
            self._refuse(node, "lists are indexed by one whole number; write pattern[i]")
        values, index = self._compile(node.value, depth), self._compile(node.slice, depth)

        def item(names: Names) -> Any:
            sequence, at = values(names), index(names)
            length = _length(sequence)
            if type(at) is not int or not -length <= at < length:
                raise _Refused(
                    f"there is no item {_short(at)} in a list of {length}; "
                    f"write pattern[i % len(pattern)] to go round"
                )
            return sequence[at]

        return item

    def _call(self, node: ast.Call, depth: int) -> Evaluate:
        name = node.func.id if isinstance(node.func, ast.Name) else None
        if name is None or name not in FUNCTIONS:
            what = f"{name} is no function" if name else "only functions can be called"
            self._refuse(node, f"{what}; {nearest(name or '', FUNCTIONS)}")
        function, least, most = FUNCTIONS[name]
        given = len(node.args)
        if node.keywords or given < least or (most is not None and given > most):
            need = f"{least}" if most == least else f"{least} or more" if most is None else "1 or 2"
            self._refuse(node, f"{name} takes {need} values, separated by commas; give these")
        arguments = [self._compile(argument, depth) for argument in node.args]
        if name in _LISTS:
            return lambda names: function(*(argument(names) for argument in arguments))
        return lambda names: _checked(function(*(argument(names) for argument in arguments)))


def settled(expression: Expression, names: Names) -> Any:
    """The value of an expression, or `Failed` where it has none: whoever reads it then fails."""
    try:
        return expression(names)
    except InputError as error:
        return Failed(error)


def nearest(name: str, known: Collection[str]) -> str:
    """The remedy for an unknown name: the closest known one, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known) or 'none'}"


def _short(value: Any) -> str:
    if isinstance(value, Failed):
        return "no value"
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 60 else text[:59] + "…"
