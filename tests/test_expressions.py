"""The closed grammar of expressions: its values are Python's own, and nothing else gets in."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrf.errors import InputError
from fastrf.sweep.expressions import DEEPEST, LONGEST, Expression, Failed

NAMES = {"a": 3, "b": -2, "x": 0.5, "flag": True, "kind": "dense", "pattern": (1, 2, 4), "i": 5}


def value(text: str, names: dict[str, Any] | None = None) -> Any:
    return Expression(text, "s.toml: where[0]")(NAMES if names is None else names)


@pytest.mark.parametrize(
    "text",
    [
        "2**i",
        "-a // 2 * 7 % 5",
        "1 if a < 4 <= 10 else 2",
        "1 < 3 < 2",
        "3 > 1 < 2",
        "not flag or a == 3 and b != 2",
        "kind == 'dense'",
        "a in [1, 3] and 7 not in [1]",
        "min(a, b) + max(1, x) - abs(b)",
        "round(2.6) + round(x, 1)",
        "+a / 4",
        "len([a, b]) + sum([a, b])",
        "min([a, b, 7])",
        "a**-2",
        "1 + (i % 4 == 1)",
        "[1, 2, 4][-1] * [a, [b]][0]",
        "x ** 0.5",
    ],
)
def test_values_are_those_of_python(text: str) -> None:
    expected = eval(text, {}, dict(NAMES))
    found = value(text)
    assert found == expected
    assert type(found) is type(expected)


def test_functions() -> None:
    assert value("floor(log2(a)) + ceil(x) + sqrt(4)") == 1 + 1 + 2
    assert value("pattern[i % len(pattern)]") == 4
    assert value("binomial(4)") == pytest.approx((1 / 3, 1, 1, 1 / 3), rel=1e-15)
    assert value("gaussian(3, 2)") == pytest.approx((math.exp(-1 / 8), 1, math.exp(-1 / 8)))


numbers = st.one_of(st.integers(-50, 50), st.floats(-50, 50).map(lambda v: round(v, 3)))
trees = st.recursive(
    st.one_of(numbers.map(lambda v: f"({v})"), st.sampled_from(["a", "b", "x", "i"])),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(
            lambda t: f"({t[0]} {t[1]} {t[2]})"
        ),
        st.tuples(inner, inner, inner).map(lambda t: f"({t[0]} if {t[1]} > 0 else {t[2]})"),
        st.tuples(inner, inner).map(lambda t: f"max({t[0]}, {t[1]})"),
    ),
    max_leaves=8,
)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(trees)
def test_arithmetic_is_that_of_python(text: str) -> None:
    try:
        expected = eval(text, {}, dict(NAMES))
    except ZeroDivisionError:
        with pytest.raises(InputError, match="division by 0"):
            value(text)
        return
    assert value(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__import__('os')", "at character 1: __import__ is no function"),
        ("a.b", "Attribute is not understood"),
        ("(lambda: 1)()", "only functions can be called"),
        ("[v for v in pattern]", "ListComp is not understood"),
        ("f'{a}'", "JoinedStr is not understood"),
        ("{1: 2}", "Dict is not understood"),
        ("pattern[0:2]", "indexed by one whole number"),
        ("a @ b", "this operator is not understood"),
        ("a << 3", "this operator is not understood"),
        ("~a", "write not"),
        ("a is b", "write =="),
        ("b'x'", "no number and no text"),
        ("None", "no number and no text"),
        ("min", "call it: min"),
        ("log2(1, 2)", "log2 takes 1 values"),
        ("round(a, digits=2)", "round takes 1 or 2 values"),
        ("a +", "is no expression"),
        ("", "is no expression"),
        ("a b", "is no expression at character"),
        ("a := 3", "is no expression"),
        ("1" * 400, "beyond 2"),
        ("a" * (LONGEST + 1), f"write at most {LONGEST}"),
        ("-" * (DEEPEST + 2) + "a", f"nests deeper than {DEEPEST}"),
        ("(" * 240 + "1" + ")" * 240, "is no expression"),
    ],
)
def test_what_is_not_of_the_grammar_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(InputError, match=r"^s\.toml: where\[0\]: ") as refused:
        Expression(text, "s.toml: where[0]")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2**(a*100)", "beyond 2"),
        ("9**9**9", "beyond 2"),
        ("a * 2**62 * 4", "beyond 2"),
        ("2.0**5000", "out of range"),
        ("1e300 * 1e300", "no finite real number"),
        ("b**x", "no finite real number"),
        ("a / (i - 5)", "division by 0"),
        ("0.0**-1", "division by 0"),
        ("log2(b)", "defined"),
        ("pattern[3]", "go round"),
        ("pattern[x]", "no item 0.5"),
        ("a[0]", "no list"),
        ("kind * 2", "'dense' is no number"),
        ("pattern + 1", "no number"),
        ("kind < 3", "no number"),
        ("'d' in kind", "no list"),
        ("len(kind)", "no list"),
        ("min([])", "no least"),
        ("binomial(0)", "number of taps"),
        ("binomial(10**9)", "number of taps"),
        ("gaussian(3, 0)", "no width"),
        ("round(x, 99)", "digits"),
    ],
)
def test_what_has_no_value_says_why_and_for_which_values(text: str, message: str) -> None:
    expression = Expression(text, "p")
    with pytest.raises(InputError, match=r"^p: ") as refused:
        expression(NAMES)
    assert message in str(refused.value)
    for name in expression.names:
        assert f"{name}=" in str(refused.value)


def test_a_failed_name_fails_alike() -> None:
    error = InputError("p: 1 // 0 is the reason")
    with pytest.raises(InputError, match="the reason"):
        value("a + 1", {"a": Failed(error)})
    assert value("1 if flag else a", {"flag": True, "a": Failed(error)}) == 1
