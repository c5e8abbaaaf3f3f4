"""Faults to plant in source files, one small change each: from the syntax tree of Python sources,
from the tokens of CUDA sources.

What no test could or should see is left alone: annotations, docstrings, the texts of messages.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        path: the file in the tree.
        line: where it begins, counted from 1.
        kind: what kind of change it is; "assertion" changes nothing as long as nothing is wrong.
        start, end: the bytes of the file that are replaced.
        after: what by.
    """

    path: str
    line: int
    kind: str
    start: int
    end: int
    after: str

    def applied(self, source: bytes) -> bytes:
        return source[: self.start] + self.after.encode() + source[self.end :]

    def diff(self, source: bytes) -> tuple[str, str]:
        """The first line that it changes, before and after."""
        old, new = source.decode().splitlines(), self.applied(source).decode().splitlines()
        for before, after in zip(old, new, strict=False):
            if before != after:
                return before.strip(), after.strip()
        return "", ""


BINARY = {"+": "-", "-": "+", "*": "+", "/": "*", "//": "*", "%": "+", "**": "*", "@": "+"}
COMPARED = {
    "<": "<=",
    "<=": "<",
    ">": ">=",
    ">=": ">",
    "==": "!=",
    "!=": "==",
    "is": "is not",
    "is not": "is",
    "in": "not in",
    "not in": "in",
}
NAMES = {
    "min": "max",
    "max": "min",
    "minimum": "maximum",
    "maximum": "minimum",
    "floor": "ceil",
    "ceil": "floor",
    "any": "all",
    "all": "any",
    "argmin": "argmax",
    "argmax": "argmin",
}
SIDES = {
    "lo": "hi",
    "low": "high",
    "first": "last",
    "left": "right",
    "rows": "columns",
    "stride": "dilation",
    "size_in": "size_out",
    "start": "stop",
    "before": "after",
    "above": "below",
}
SIDES |= {value: key for key, value in SIDES.items()}
SYMMETRIC = {"min", "max", "minimum", "maximum", "gcd", "lcm", "isclose", "array_equal", "add"}
"""Functions whose arguments may be swapped."""
ASKING = {"isinstance", "issubclass", "hasattr", "getattr", "setattr", "cast"}
"""Functions whose swapped arguments raise at once."""


def mutants(root: Path, path: str) -> list[Mutant]:
    """All faults that can be planted in one file, in the order of the text."""
    source = (root / path).read_bytes()
    found = _Python(path, source).all() if path.endswith(".py") else _cuda(path, source)
    return sorted(set(found), key=lambda m: (m.start, m.end, m.after))


class _Python:
    def __init__(self, path: str, source: bytes) -> None:
        self.path, self.source = path, source
        lines = source.splitlines(keepends=True)
        self.begins = [0]
        for line in lines:
            self.begins.append(self.begins[-1] + len(line))

    def all(self) -> Iterator[Mutant]:
        return self._inside(ast.parse(self.source), frozenset())

    def _span(self, node: Any) -> tuple[int, int]:
        """Where a node of the tree that has a place begins and ends."""
        return (
            self.begins[node.lineno - 1] + node.col_offset,
            self.begins[node.end_lineno - 1] + node.end_col_offset,
        )

    def _mutant(self, kind: str, start: int, end: int, after: str) -> Mutant:
        return Mutant(self.path, self.source.count(b"\n", 0, start) + 1, kind, start, end, after)

    def _instead(self, kind: str, node: ast.AST, after: str) -> Mutant:
        return self._mutant(kind, *self._span(node), after)

    def _text(self, node: ast.AST) -> str:
        start, end = self._span(node)
        return self.source[start:end].decode()

    def _between(self, kind: str, left: ast.AST, right: ast.AST, after: str) -> Iterator[Mutant]:
        """Replaces the operator between two operands."""
        start, end = self._span(left)[1], self._span(right)[0]
        text = self.source[start:end].decode()
        operator = re.search(r"not\s+in|is\s+not|\w+|[<>=!]=|//|\*\*|[-+*/%@<>]", text)
        if operator is not None:
            at = start + len(text[: operator.start()].encode())
            yield self._mutant(kind, at, at + len(operator.group().encode()), after)

    def _inside(self, node: ast.AST, names: frozenset[str]) -> Iterator[Mutant]:
        """The faults in a node and below; `names` are those that its function uses."""
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = frozenset(n.id for n in ast.walk(node) if isinstance(n, ast.Name))
            names |= {a.arg for a in ast.walk(node) if isinstance(a, ast.arg)}
        handler = getattr(self, f"_{type(node).__name__.lower()}", None)
        if isinstance(node, ast.keyword) and node.arg == "strict":
            yield self._instead("assertion", node.value, "False")
            return
        if handler is not None:
            yield from handler(node, names)
        for child in self._children(node):
            yield from self._inside(child, names)

    @staticmethod
    def _children(node: ast.AST) -> Iterator[ast.AST]:
        match node:
            case ast.JoinedStr() | ast.Raise() | ast.Import() | ast.ImportFrom() | ast.Assert():
                return
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                return
            case ast.Expr(value=ast.Constant()):
                return
            case ast.AnnAssign():
                if node.value is not None:
                    yield node.value
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                yield from node.args.defaults
                yield from (d for d in node.args.kw_defaults if d is not None)
                yield from node.body
            case ast.ClassDef():
                yield from node.body
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                return
            case _:
                yield from ast.iter_child_nodes(node)

    # --- one method a kind of node --------------------------------------------------------------

    def _binop(self, node: ast.BinOp, names: frozenset[str]) -> Iterator[Mutant]:
        if any(
            isinstance(n, ast.Constant | ast.JoinedStr)
            and not isinstance(getattr(n, "value", ""), int | float)
            for n in (node.left, node.right)
        ):
            return  # text
        symbol = {
            ast.Add: "+",
            ast.Sub: "-",
            ast.Mult: "*",
            ast.Div: "/",
            ast.FloorDiv: "//",
            ast.Mod: "%",
            ast.Pow: "**",
            ast.MatMult: "@",
        }.get(type(node.op))
        if symbol is not None:
            yield from self._between("operator", node.left, node.right, BINARY[symbol])

    def _compare(self, node: ast.Compare, names: frozenset[str]) -> Iterator[Mutant]:
        symbols = {
            ast.Lt: "<",
            ast.LtE: "<=",
            ast.Gt: ">",
            ast.GtE: ">=",
            ast.Eq: "==",
            ast.NotEq: "!=",
            ast.Is: "is",
            ast.IsNot: "is not",
            ast.In: "in",
            ast.NotIn: "not in",
        }
        operands = [node.left, *node.comparators]
        for left, right, operator in zip(operands, operands[1:], node.ops, strict=False):
            after = COMPARED[symbols[type(operator)]]
            yield from self._between("comparison", left, right, after)

    def _boolop(self, node: ast.BoolOp, names: frozenset[str]) -> Iterator[Mutant]:
        after = "or" if isinstance(node.op, ast.And) else "and"
        for left, right in zip(node.values, node.values[1:], strict=False):
            yield from self._between("and/or", left, right, after)

    def _unaryop(self, node: ast.UnaryOp, names: frozenset[str]) -> Iterator[Mutant]:
        if isinstance(node.op, ast.Not | ast.USub):
            yield self._instead("sign", node, f"({self._text(node.operand)})")

    def _constant(self, node: ast.Constant, names: frozenset[str]) -> Iterator[Mutant]:
        if isinstance(node.value, bool):
            yield self._instead("constant", node, str(not node.value))
        elif isinstance(node.value, int):
            yield self._instead("constant", node, str(node.value + 1))
        elif isinstance(node.value, float):
            after = f"({self._text(node)} * 2)" if node.value else "1.0"
            yield self._instead("constant", node, after)

    def _ifexp(self, node: ast.IfExp, names: frozenset[str]) -> Iterator[Mutant]:
        body, test, other = map(self._text, (node.body, node.test, node.orelse))
        yield self._instead("branch", node, f"({other}) if ({test}) else ({body})")

    def _if(self, node: ast.If, names: frozenset[str]) -> Iterator[Mutant]:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            yield self._instead("branch", node.test, f"not ({self._text(node.test)})")

    def _call(self, node: ast.Call, names: frozenset[str]) -> Iterator[Mutant]:
        function = node.func
        name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
        if name in NAMES:
            end = self._span(function)[1]
            yield self._mutant("function", end - len(name), end, NAMES[name])
        if name in ASKING:
            return
        if len(node.args) > 1 and name not in SYMMETRIC:
            a, b = node.args[:2]
            if not isinstance(a, ast.Starred) and not isinstance(b, ast.Starred):
                (start, middle), (after, end) = self._span(a), self._span(b)
                between = self.source[middle:after].decode()
                swapped = self._text(b) + between + self._text(a)
                if self._text(a) != self._text(b):
                    yield self._mutant("swapped", start, end, swapped)
        for keyword in node.keywords:
            if keyword.arg is not None:
                rest = [k for k in node.keywords if k is not keyword]
                call = ast.Call(node.func, node.args, rest)
                kind = "assertion" if keyword.arg == "strict" else "option"
                yield self._instead(kind, node, ast.unparse(call))

    def _name(self, node: ast.Name, names: frozenset[str]) -> Iterator[Mutant]:
        other = SIDES.get(node.id)
        if other in names and isinstance(node.ctx, ast.Load):
            yield self._instead("side", node, str(other))

    def _attribute(self, node: ast.Attribute, names: frozenset[str]) -> Iterator[Mutant]:
        if node.attr in ("stride", "dilation", "size_in", "size_out"):
            end = self._span(node)[1]
            yield self._mutant("side", end - len(node.attr), end, SIDES[node.attr])

    def _expr(self, node: ast.Expr, names: frozenset[str]) -> Iterator[Mutant]:
        if isinstance(node.value, ast.Call):
            yield self._instead("removed", node, "pass")

    def _augassign(self, node: ast.AugAssign, names: frozenset[str]) -> Iterator[Mutant]:
        yield self._instead("removed", node, "pass")

    def _assign(self, node: ast.Assign, names: frozenset[str]) -> Iterator[Mutant]:
        if isinstance(node.targets[0], ast.Attribute | ast.Subscript):
            yield self._instead("removed", node, "pass")

    def _raise(self, node: ast.Raise, names: frozenset[str]) -> Iterator[Mutant]:
        yield self._instead("removed", node, "pass")

    def _continue(self, node: ast.Continue, names: frozenset[str]) -> Iterator[Mutant]:
        yield self._instead("branch", node, "break")

    def _break(self, node: ast.Break, names: frozenset[str]) -> Iterator[Mutant]:
        yield self._instead("branch", node, "continue")


_TOKENS = (
    ("operator", r"(?<= )[-+*/](?= )", lambda t: {"+": "-", "-": "+", "*": "+", "/": "*"}[t]),
    ("operator", r"(?<= )[-+]=(?= )", lambda t: "="),
    ("comparison", r"(?<= )(?:[<>]=?|[=!]=)(?= )", lambda t: COMPARED[t]),
    ("and/or", r"&&|\|\|", lambda t: "||" if t == "&&" else "&&"),
    ("constant", r"(?<![\w.\"])\d+(?![\w.\"])", lambda t: str(int(t) + 1)),
    ("removed", r"__sync\w+\([^;]*\);", lambda t: ";"),
    ("function", r"\b(?:lesser|greater)(?=\()", lambda t: "greater" if t == "lesser" else "lesser"),
    (
        "function",
        r"\b(?:floor|ceil)_divided(?=\()",
        lambda t: "ceil_divided" if t[0] == "f" else "floor_divided",
    ),
    ("side", r"\.x[12]\b", lambda t: ".x1" if t == ".x2" else ".x2"),
    ("side", r"\bthreadIdx\.[xy]\b", lambda t: "threadIdx.y" if t[-1] == "x" else "threadIdx.x"),
)


def _cuda(path: str, source: bytes) -> Iterator[Mutant]:
    text = source.decode("latin-1")  # one character a byte
    # Comments, preprocessor lines and template brackets are no code of a kernel.
    aside = [m.span() for m in re.finditer(r"//[^\n]*|#(?:[^\n]*\\\n)*[^\n]*|<[\w, ]+>", text)]
    for kind, pattern, changed in _TOKENS:
        for match in re.finditer(pattern, text):
            if not any(start <= match.start() < end for start, end in aside):
                line = text.count("\n", 0, match.start()) + 1
                yield Mutant(path, line, kind, *match.span(), changed(match.group()))
