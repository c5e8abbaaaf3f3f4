"""Spaces of networks: what a sweep runs over, from a TOML or JSON file or a mapping.

A space has parameters, and every point gives each of them one value::

    name = "chains"

    [parameters]
    depth = {from = 1, to = 100}              # a range, both ends included
    kernel = [3, 5, 7]                        # a list
    growth = [1, 2]
    dilation = "growth**i"                    # an expression; i: index of the layer, from 0 on
    stride = "2 if i % 10 == 9 else 1"

* A list holds values (texts in it are texts, lists in it are one value each). A table is a range:
  `from`, `to` and `step`, or `count` with ``scale = "linear"`` or ``"log"``; ``whole = true``
  rounds. A number is a constant. A text is an expression of other parameters, see
  `fastrf.sweep.expressions`; one that depends on `i` has a value per layer and is no column.
* Parameters form a grid, the last one varying fastest. ``zip = [["kernel", "padding"]]`` lets some
  vary together, and ``sample = {count = 1000, method = "latin", of = ["depth", "kernel"]}`` draws
  so many points of some ("latin" or "random"; without `of`: of all) instead of their grid, always
  the same ones for the same `seed`. Only samples take values of ranges without a step.
* ``where = ["kernel * dilation <= 65"]`` keeps the points for which all of it holds; what depends
  on `i` has to hold for every layer.

What network a point means is said by one of

* ``layers = [...]``, a template: see `fastrf.sweep.templates`. ``[blocks]`` defines blocks, each a
  list of layers, beside those of `fastrf.sweep.blocks`;
* ``nodes = [...]`` with ``outputs``, a graph as in a network file, with placeholders;
* ``network = "unet({depth}, 2)"``, a network of the zoo; or a parameter `network` that lists some;
* none of these: `depth` blocks, of the kind that the parameter `block` says ("plain" by default),
  which read `kernel`, `stride`, `dilation`, `padding`, `gain` and `taps`.

``ndim`` is the number of axes (or a parameter of that name), and ``[options]`` holds keywords of
`fastrf.erf`, such as ``input_size = "{size}"``.
"""

from __future__ import annotations

import math
import os
import pickle
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from fastrf import netfile, zoo
from fastrf.errors import InputError
from fastrf.network import Network
from fastrf.sweep import templates
from fastrf.sweep.blocks import BLOCKS, DEFAULTS
from fastrf.sweep.chain import Chain
from fastrf.sweep.counting import LARGEST, Table, count_joint
from fastrf.sweep.dimensions import (
    MOST_SAMPLES,
    Axis,
    Continuous,
    Values,
    frozen,
    read_values,
    sampled,
)
from fastrf.sweep.expressions import FUNCTIONS, Expression, Failed, Names, nearest, settled
from fastrf.sweep.templates import INDICES, Filling, Item, evaluate
from fastrf.sweep.vectors import ChainPlan, NoChain, NotPlain

MOST_POINTS = 10**15
"""Most points of a space, constraints not counted."""

MOST_COUNTED = 10**8
"""Most combinations that constraints are tried on to count a space."""

OPTIONS = ("output", "unit", "input_size", "dtype", "method", "accuracy", "tol", "tail")
"""Keywords of `fastrf.erf` that a space may give; the others belong to the run."""

_KEYS = (
    *("name", "ndim", "seed", "parameters", "zip", "sample", "where"),
    *("blocks", "layers", "nodes", "outputs", "network", "options"),
)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Point:
    """One network of a space, not built yet. Points can be pickled."""

    __slots__ = ("_names", "_space")

    def __init__(self, space: Space, names: dict[str, Any]) -> None:
        self._space, self._names = space, names

    @property
    def parameters(self) -> dict[str, Any]:
        """The point's columns in the table, name → JSON scalar or list; None: it has no value."""
        names = self._names
        return {
            name: _plain(value) if type(value := names[name]) in _NOT_PLAIN else value
            for name in self._space.columns
        }

    @property
    def options(self) -> dict[str, Any]:
        """The keywords of `fastrf.erf` that the space gives (unit, input_size, output, …).

        Raises:
            InputError: the point is invalid.
        """
        return {k: evaluate(v, self._names) for k, v in self._space._options.items()}

    def network(self) -> Network:
        """The point's network.

        Raises:
            InputError: the point is invalid; the message says where and why.
        """
        return self._space._network(self._names)

    def chain(self) -> Chain | None:
        """The point's network as a packed chain, or None where it is not a chain.

        It is not one either where the options ask for another output than the last layer. What
        can be no chain is not looked at further: `network` says whether it is valid.

        Raises:
            InputError: the point is invalid, as `network` would say.
        """
        return self._space._chain(self._names)

    def __reduce__(self) -> tuple[Any, ...]:
        return Point, (self._space, self._names)

    def __repr__(self) -> str:
        inside = ", ".join(f"{k}={v!r}" for k, v in self.parameters.items())
        return f"Point({inside})"


_NOT_PLAIN = (tuple, Failed)


def _plain(value: Any) -> Any:
    if isinstance(value, Failed):
        return None
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


@dataclass(slots=True)
class _Constraint:
    """An expression that has to hold.

    Attributes:
        label: "where[0]".
        axes: those that it depends on.
        layered: the parameters with a value per layer that it needs; not None: it has to hold for
            every layer.
        bases: the parameters that it depends on itself, the number of layers left out.
        known: values of `bases` → what was found of the layers that were tried.
    """

    label: str
    expression: Expression
    axes: frozenset[int]
    layered: tuple[tuple[str, Expression], ...] | None = None
    bases: tuple[str, ...] = ()
    known: dict[Any, _Tried] = field(default_factory=dict)

    def holds(self, names: Names) -> bool:
        """Whether it holds.

        Raises:
            InputError: that cannot be said.
        """
        if self.layered is None:
            return bool(self.expression(names))
        depth = names["depth"]
        if type(depth) is Failed:
            raise depth.error
        if type(depth) is not int:
            return True  # the network says what is wrong with it
        values = [names[base] for base in self.bases]
        key = repr(values)
        if len(self.known) > _MOST_KNOWN:
            self.known.clear()
        tried = self.known.setdefault(key, _Tried())
        while tried.end is None and tried.layers < min(depth, netfile.MAX_NODES):
            self._try(tried, names)
        if tried.end is None or tried.end >= depth:
            return True
        if tried.error is not None:
            raise tried.error
        return False

    def _try(self, tried: _Tried, names: Names) -> None:
        assert self.layered is not None
        layer = tried.layers  # by itself: a thread that tries the same one changes nothing
        try:
            if not self.expression(within(names, self.layered, layer, 0)):
                tried.end = layer
        except InputError as error:
            tried.error, tried.end = error, layer
        tried.layers = layer + 1


@dataclass(slots=True)
class _Tried:
    """Layers that a constraint was tried on; the first that it does not hold for, its error."""

    layers: int = 0
    end: int | None = None
    error: InputError | None = None


_MOST_KNOWN = 100_000


def within(
    names: Names, layered: Iterable[tuple[str, Expression]], i: int, j: int
) -> dict[str, Any]:
    """The names within a repeat: those that have a value per layer as well."""
    here = {**names, "i": i, "j": j}
    for name, expression in layered:
        here[name] = settled(expression, here)
    return here


@dataclass(slots=True)
class _Level:
    """An axis, and what is settled once it has a value."""

    axis: Axis
    dependents: list[tuple[str, Expression]] = field(default_factory=list)
    constraints: list[_Constraint] = field(default_factory=list)


class Space:
    """Networks over a grid, lists or a sample of parameters; iterating gives its points in order.

    Args:
        content: the content of a space file, see `fastrf.sweep.space`.
        source: what messages call it, such as its file name.

    Attributes:
        name: the name that the file gives, or None.
        columns: names of the parameters that have one value per point.
        varying: names that have a value per layer, `i` and `j` among them.

    >>> space = Space({"parameters": {"depth": {"from": 1, "to": 3}, "kernel": [3, 5]}})
    >>> len(space), [point.parameters for point in space][-1]
    (6, {'depth': 3, 'kernel': 5})

    Raises:
        InputError: the content breaks a rule; the message says the place, the rule and the remedy.
    """

    def __init__(self, content: Mapping[str, Any], *, source: str = "space") -> None:
        self._content, self._source = content, source
        top = self._table(content, "")
        self._known(top, _KEYS, "", "a space")
        self.name = self._typed(top, "name", str, "a text")
        self._read_parameters(top)
        self._read_constraints(top)
        self._read_network(top)
        self._check_use()
        self._count: int | None = None
        self._latest: tuple[Names | None, Network | None] = (None, None)
        self._pickled: bytes | None = None

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Space:
        """Reads a space from a ``.toml`` or ``.json`` file.

        Raises:
            InputError: the file cannot be read or does not describe a space.
        """
        source = str(path)
        suffix = Path(path).suffix.lower()
        parse = netfile.PARSERS.get(suffix)
        if parse is None:
            raise InputError(
                f"{source}: spaces are TOML or JSON files; name it .toml or .json after what it is"
            )
        text = netfile.read_text(Path(path))
        try:
            content = parse(text)
        except (ValueError, RecursionError) as error:
            kind = suffix[1:].upper()
            raise InputError(f"{source}: is not valid {kind}: {error}; correct it there") from None
        return cls(content, source=source)

    # --- points

    def __len__(self) -> int:
        """Number of points; combinations are tried only for what `where` ties together.

        Raises:
            InputError: constraints tie together more combinations than can be tried.
        """
        if self._count is None:
            self._count = math.prod(map(self._count_of, self._components()))
        return self._count

    def __iter__(self) -> Iterator[Point]:
        """The points one by one, in the order of the file: the last parameter varies fastest."""
        return self.at(self.places())

    def places(self) -> Iterable[int]:
        """The places of the points in the grid of all combinations, in order; `at` has the points.

        Without constraints it is a `range`, and nothing is computed.
        """
        if not self._constraints:
            return range(len(self))
        return (place for place, _ in self._walk(dict(self._constants), self._levels, 0, 0))

    def at(self, places: Iterable[int]) -> Iterator[Point]:
        """The points at some places of the grid. What neighbours have in common is kept."""
        lengths = [len(level.axis) for level in self._levels]
        names, before = dict(self._constants), [-1] * len(lengths)
        for place in places:
            digits, rest = before.copy(), place
            for n in range(len(lengths) - 1, -1, -1):
                rest, digits[n] = divmod(rest, lengths[n])
            changed = next((n for n, d in enumerate(digits) if d != before[n]), len(digits))
            for n in range(changed, len(digits)):
                self._settle(names, self._levels[n], digits[n])
            before = digits
            yield Point(self, names.copy())

    def __reduce__(self) -> tuple[Any, ...]:
        if self._pickled is None:
            self._pickled = pickle.dumps((self._content, self._source))
        return _rebuilt, (self._pickled,)

    def __repr__(self) -> str:
        axes = " × ".join(str(len(level.axis)) for level in self._levels) or "1"
        title = f"{self.name!r}, " if self.name else ""
        return f"Space({title}{axes} points, columns {', '.join(self.columns)})"

    def _walk(
        self, names: dict[str, Any], levels: Sequence[_Level], at: int, place: int
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Every combination of values from level `at` on, for which the constraints hold: its place
        and the `names`, changed in place."""
        if at == len(levels):
            yield place, names
            return
        level, last = levels[at], at + 1 == len(levels)
        place *= len(level.axis)
        for index in range(len(level.axis)):
            if not self._settle(names, level, index):
                continue
            if last:
                yield place + index, names
            else:
                yield from self._walk(names, levels, at + 1, place + index)

    def _settle(self, names: dict[str, Any], level: _Level, index: int) -> bool:
        """Gives a level its value of that index, and what depends on it; whether the constraints
        hold."""
        axis = level.axis
        if len(axis.names) == 1 and axis.shares is None:
            names[axis.names[0]] = axis.columns[0][index]  # type: ignore[index]
        else:
            names.update(zip(axis.names, axis[index], strict=True))
        for name, expression in level.dependents:
            names[name] = settled(expression, names)
        return all(self._holds(c, names) for c in level.constraints)

    def _holds(self, constraint: _Constraint, names: dict[str, Any]) -> bool:
        """Whether a constraint holds; where that cannot be said the point stays, as invalid."""
        names.pop(constraint.label, None)
        try:
            return constraint.holds(names)
        except InputError as error:
            names[constraint.label] = Failed(error)
            return True

    def _components(self) -> list[list[int]]:
        """The axes in groups that no constraint ties together."""
        group = list(range(len(self._levels)))
        for constraint in self._constraints:
            tied = {group[axis] for axis in constraint.axes}
            if tied:
                group = [min(tied) if g in tied else g for g in group]
        return [[a for a, g in enumerate(group) if g == root] for root in dict.fromkeys(group)]

    def _count_of(self, component: Sequence[int]) -> int:
        levels = [self._levels[axis] for axis in component]
        lengths = {axis: len(self._levels[axis].axis) for axis in component}
        constraints = [c for level in levels for c in level.constraints]
        combinations = math.prod(lengths.values())
        if not constraints:
            return combinations
        # Each constraint by itself needs the combinations of what it reads alone.
        apart = [math.prod(lengths[axis] for axis in c.axes) for c in constraints]
        if sum(apart) < combinations and sum(apart) <= MOST_COUNTED and max(apart) <= LARGEST:
            tables = [Table(tuple(sorted(c.axes)), self._table_of(c)) for c in constraints]
            count = count_joint(tables, lengths)
            if count is not None:
                return count
        if combinations > MOST_COUNTED:
            names = ", ".join(name for level in levels for name in level.axis.names)
            self._fail(
                "where",
                f"ties {names} together, {combinations} combinations, more than the "
                f"{MOST_COUNTED} that are tried to count points; sample them, or tie fewer",
            )
        return sum(1 for _ in self._walk(dict(self._constants), self._own(component), 0, 0))

    def _own(self, axes: Collection[int], only: _Constraint | None = None) -> list[_Level]:
        """The levels of some axes, in order, with what depends on these alone, and with all of
        their constraints or only one."""
        # What the constraints on axes read depends on no others.
        within = set(axes)
        found = []
        for axis in sorted(within):
            level = self._levels[axis]
            dependents = [(n, e) for n, e in level.dependents if self._axes_of[n] <= within]
            constraints = [c for c in level.constraints if only is None or c is only]
            found.append(_Level(level.axis, dependents, constraints))
        return found

    def _table_of(self, constraint: _Constraint) -> NDArray[np.int64]:
        """1 where a constraint holds, over the axes that it reads."""
        levels = self._own(constraint.axes, constraint)
        shape = [len(level.axis) for level in levels]
        table = np.zeros(math.prod(shape), np.int64)
        for place, _ in self._walk(dict(self._constants), levels, 0, 0):
            table[place] = 1
        return table.reshape(shape)

    # --- what a point means

    def _enter(self, names: Names, i: int, j: int) -> dict[str, Any]:
        return within(names, self._layered, i, j)

    def _axis_count(self, names: Names) -> int | None:
        ndim = evaluate(self._ndim, names)
        if ndim is not None and (type(ndim) is not int or ndim not in (1, 2, 3)):
            self._fail("ndim", f"{ndim!r} is not possible; a grid has 1, 2 or 3 axes")
        return ndim

    def _full(self, names: Names) -> dict[str, Any]:
        """All names that a template may read.

        Raises:
            InputError: one of the point's own has no value.
        """
        for value in names.values():
            if type(value) is Failed:
                raise value.error
        ndim = self._axis_count(names)
        return {**DEFAULTS, "ndim": 2 if ndim is None else ndim, **names}

    def _network(self, names: Names) -> Network:
        # A point that is asked for its chain and then for its network builds it once.
        latest, network = self._latest
        if latest is not names:
            network = self._build(names)
            self._latest = names, network
        assert network is not None
        return network

    def _build(self, names: Names) -> Network:
        known = self._full(names)
        ndim = self._axis_count(names)
        if self._spec is not None:
            spec = evaluate(self._spec, known)
            if isinstance(spec, str) and "{" in spec:
                spec = evaluate(templates.compile_value(spec, self._place("network")), known)
            return zoo.get(spec)
        content: dict[str, Any] = {} if ndim is None else {"ndim": ndim}
        if self._nodes is not None:
            here = self._enter(known, 0, 0)
            content["nodes"] = [
                templates.settled({k: evaluate(v, here) for k, v in node.items()}, ndim)
                for node in self._nodes
            ]
            if self._outputs is not None:
                content["outputs"] = evaluate(self._outputs, here)
        else:
            filling = Filling(self._blocks, known, self._enter, self.varying, ndim)
            content["layers"] = filling.layers(self._items)
        return netfile.from_dict(content, source=self._source)

    def _chain(self, names: Names) -> Chain | None:
        if "output" in self._options:
            return None
        if self._plan is not None:
            try:
                return self._plan.chain(self._full(names), self._axis_count(names))
            except NoChain:
                return None
            except NotPlain:
                pass
        return Chain.of(self._network(names))

    # --- reading: parameters

    def _read_parameters(self, top: Mapping[str, Any]) -> None:
        given = self._table(top.get("parameters", {}), "parameters")
        axes: dict[str, Values | Continuous] = {}
        expressions: dict[str, Expression] = {}
        self._constants: dict[str, Any] = {}
        for name, value in given.items():
            place = self._place(f"parameters.{name}")
            self._check_name(name)
            if isinstance(value, str):
                expressions[name] = Expression(value, place)
            elif isinstance(value, Mapping | Sequence | range) or hasattr(value, "__array__"):
                axes[name] = read_values(value, place)
            else:
                self._constants[name] = frozen(value, place)
        self._names = tuple(given)
        self._order(expressions)
        self._levels = [_Level(axis) for axis in self._group(top, axes)]
        total = math.prod(len(level.axis) for level in self._levels)
        if total > MOST_POINTS:
            self._fail("", f"has {total} points; a space has at most {MOST_POINTS}; use sample")
        self._place_dependents(expressions)

    def _check_name(self, name: str) -> None:
        if not _IDENTIFIER.fullmatch(name):
            self._fail(f"parameters.{name}", "is no name; use letters, digits and _")
        taken = (*INDICES, *FUNCTIONS, "and", "or", "not", "if", "else", "in", "is", "lambda")
        if name in (*taken, "True", "False", "None"):
            self._fail(f"parameters.{name}", "means something else in expressions; rename it")

    def _order(self, expressions: dict[str, Expression]) -> None:
        """Sorts expressions so that each comes behind those that it reads."""
        known = {*self._names, *INDICES}
        for name, expression in expressions.items():
            for read in expression.names - known:
                self._fail(
                    f"parameters.{name}", f"there is no parameter {read!r}; {nearest(read, known)}"
                )
        sorted_: dict[str, Expression] = {}
        left = dict(expressions)
        while left:
            ready = [n for n, e in left.items() if not e.names & left.keys()]
            if not ready:
                circle = ", ".join(left)
                self._fail("parameters", f"{circle} depend on each other; break the circle")
            for name in ready:
                sorted_[name] = left.pop(name)
        expressions.clear()
        expressions.update(sorted_)

    def _group(self, top: Mapping[str, Any], axes: dict[str, Values | Continuous]) -> list[Axis]:
        """The axes: each parameter by itself, or with those that it is zipped or sampled with."""
        groups: list[tuple[tuple[str, ...], Axis]] = []
        zips = top.get("zip", ())
        if not isinstance(zips, Sequence) or isinstance(zips, str):
            self._fail("zip", 'must be a list of lists of names, such as [["kernel", "stride"]]')
        for n, members in enumerate(zips):
            names = self._axis_names(members, f"zip[{n}]", axes)
            columns = tuple(axes[name] for name in names)
            lengths = [None if isinstance(v, Continuous) else len(v) for v in columns]
            if None in lengths or len(set(lengths)) > 1:
                said = [f"{k} has {v or 'no'} values" for k, v in zip(names, lengths, strict=True)]
                self._fail(
                    f"zip[{n}]",
                    f"{', '.join(said)}; what varies together has as many values each",
                )
            groups.append((names, Axis(names, columns)))
        if "sample" in top:
            groups.append(self._sample(top, axes, {n for names, _ in groups for n in names}))
        for n, (names, _) in enumerate(groups):
            for twice in {m for other, _ in groups[:n] for m in other} & set(names):
                self._fail("zip", f"{twice!r} stands in two groups; name it in one of them")
        grouped = {name: axis for names, axis in groups for name in names}
        found: dict[int, Axis] = {}
        for name, values in axes.items():
            if name not in grouped and isinstance(values, Continuous):
                self._fail(f"parameters.{name}", "has no step and no count; give one, or sample it")
            axis = grouped.get(name) or Axis((name,), (values,))
            found.setdefault(id(axis), axis)
        return list(found.values())

    def _axis_names(self, names: Any, place: str, axes: Collection[str]) -> tuple[str, ...]:
        if not isinstance(names, Sequence) or isinstance(names, str) or not names:
            self._fail(place, f"{names!r} must be a list of parameters")
        for name in names:
            if name not in axes:
                self._fail(place, f"{name!r} is no list and no range; {nearest(str(name), axes)}")
        if len(set(names)) < len(names):
            self._fail(place, "names a parameter twice; name each once")
        return tuple(names)

    def _sample(
        self, top: Mapping[str, Any], axes: dict[str, Values | Continuous], zipped: Collection[str]
    ) -> tuple[tuple[str, ...], Axis]:
        table = self._table(top["sample"], "sample")
        self._known(table, ("count", "method", "of"), "sample", "a sample")
        count = table.get("count")
        if type(count) is not int or not 1 <= count <= MOST_SAMPLES:
            self._fail("sample.count", f"{count!r} must be a whole number from 1 to {MOST_SAMPLES}")
        method = table.get("method", "latin")
        if method not in ("random", "latin"):
            self._fail("sample.method", f"{method!r} is unknown; choose random or latin")
        seed = top.get("seed", 0)
        if type(seed) is not int or seed < 0:
            self._fail("seed", f"{seed!r} must be a whole number of at least 0")
        rest = [name for name in axes if name not in zipped]
        names = self._axis_names(table.get("of", rest), "sample.of", axes)
        columns = tuple(axes[name] for name in names)
        return names, Axis(names, columns, sampled(method, count, len(names), seed))

    def _place_dependents(self, expressions: Mapping[str, Expression]) -> None:
        """Says at which axis each dependent parameter is settled."""
        self._axes_of: dict[str, frozenset[int]] = dict.fromkeys(self._constants, frozenset())
        self._bases: dict[str, frozenset[str]] = {n: frozenset((n,)) for n in self._constants}
        for n, level in enumerate(self._levels):
            self._axes_of |= dict.fromkeys(level.axis.names, frozenset((n,)))
            self._bases |= {name: frozenset((name,)) for name in level.axis.names}
        self._layered: list[tuple[str, Expression]] = []
        varying = set(INDICES)
        for name, expression in expressions.items():
            read = expression.names - set(INDICES)
            self._axes_of[name] = frozenset().union(*(self._axes_of[r] for r in read))
            self._bases[name] = frozenset().union(*(self._bases[r] for r in read))
            if expression.names & varying:
                varying.add(name)
                self._layered.append((name, expression))
            elif self._axes_of[name]:
                self._levels[max(self._axes_of[name])].dependents.append((name, expression))
            else:
                self._constants[name] = settled(expression, self._constants)
        self.varying = frozenset(varying)
        self.columns = tuple(name for name in self._names if name not in varying)

    # --- reading: constraints and networks

    def _read_constraints(self, top: Mapping[str, Any]) -> None:
        where = top.get("where", ())
        where = (where,) if isinstance(where, str) else where
        if not isinstance(where, Sequence) or not all(isinstance(w, str) for w in where):
            self._fail("where", 'must be a list of expressions, such as ["kernel <= 2 * depth"]')
        self._constraints: list[_Constraint] = []
        for n, text in enumerate(where):
            label = f"where[{n}]"
            expression = Expression(text, self._place(label))
            self._check_names(expression.names, {*self._names, *INDICES}, label)
            names = expression.names - set(INDICES)
            if expression.names & self.varying:
                if "depth" not in self._names or "depth" in self.varying:
                    self._fail(label, "speaks of every layer, but no parameter depth counts them")
                bases = frozenset().union(*(self._bases[name] for name in names))
                layered = self.layered_for(names)
                axes = self._axes_for(names | {"depth"})
                constraint = _Constraint(label, expression, axes, layered, tuple(sorted(bases)))
            else:
                constraint = _Constraint(label, expression, self._axes_for(names))
            axes = constraint.axes
            self._constraints.append(constraint)
            if axes:
                self._levels[max(axes)].constraints.append(constraint)
            elif not self._holds(constraint, self._constants):
                self._fail(label, f"{text!r} holds for no point; all it reads is constant")

    def _axes_for(self, names: Iterable[str]) -> frozenset[int]:
        return frozenset().union(*(self._axes_of[name] for name in names))

    def layered_for(self, names: Collection[str]) -> tuple[tuple[str, Expression], ...]:
        """The parameters with a value per layer that these depend on, in order."""
        needed = set(names)
        for name, expression in reversed(self._layered):
            if name in needed:
                needed |= expression.names
        return tuple((name, expression) for name, expression in self._layered if name in needed)

    def _read_network(self, top: Mapping[str, Any]) -> None:
        self._blocks = {
            name: templates.compile_items(items, f"block {name}") for name, items in BLOCKS.items()
        }
        for name, items in self._table(top.get("blocks", {}), "blocks").items():
            self._blocks[name] = templates.compile_items(items, self._place(f"blocks.{name}"))
        ndim = top.get("ndim", "{ndim}" if "ndim" in self._names else None)
        self._ndim = templates.compile_value(ndim, self._place("ndim"))
        self._check_names(templates.names_of(self._ndim), self.columns, "ndim")
        options = self._table(top.get("options", {}), "options")
        self._known(options, OPTIONS, "options", "a space's options")
        self._options = {
            k: templates.compile_value(
                v if isinstance(v, str) else frozen(v, self._place(f"options.{k}")),
                self._place(f"options.{k}"),
            )
            for k, v in options.items()
        }
        for key, value in self._options.items():
            self._check_names(templates.names_of(value), self.columns, f"options.{key}")
        ways = [key for key in ("layers", "nodes", "network") if key in top]
        if "network" in self._names and "network" not in top:
            ways.append("parameters.network")
        if len(ways) > 1:
            self._fail("", f"says by {' and by '.join(ways)} what a network is; keep one of them")
        way = ways[0] if ways else None
        self._spec: Any = None
        self._nodes: list[dict[str, Any]] | None = None
        self._outputs: Any = None
        self._items: tuple[Item, ...] = ()
        self._plan: ChainPlan | None = None
        if "outputs" in top and way != "nodes":
            self._fail("outputs", "belongs to nodes; remove it")
        if way == "nodes":
            self._read_nodes(top)
        elif way in ("network", "parameters.network"):
            self._spec = templates.compile_value(
                top.get("network", "{network}"), self._place("network")
            )
        else:
            self._items = self._read_items(top)
            self._plan = ChainPlan(self._items, self._blocks, self)

    def _read_items(self, top: Mapping[str, Any]) -> tuple[Item, ...]:
        if "layers" in top:
            return templates.compile_items(top["layers"], self._place("layers"))
        standard = {
            "block": "{block}" if "block" in self._names else "plain",
            "repeat": "{depth}" if "depth" in self._names else 1,
        }
        return templates.compile_items([standard], self._place("layers"))

    def _read_nodes(self, top: Mapping[str, Any]) -> None:
        nodes = top["nodes"]
        if not isinstance(nodes, Sequence) or not all(isinstance(n, Mapping) for n in nodes):
            self._fail("nodes", "must be a list of tables, as in a network file")
        self._nodes = [
            {k: templates.compile_value(v, self._place(f"nodes[{n}].{k}")) for k, v in node.items()}
            for n, node in enumerate(nodes)
        ]
        if "outputs" in top:
            self._outputs = templates.compile_value(top["outputs"], self._place("outputs"))

    def bases_of(self, name: str) -> frozenset[str]:
        """The independent parameters that a name depends on."""
        return self._bases.get(name, frozenset() if name in INDICES else frozenset((name,)))

    # --- checks

    def _check_use(self) -> None:
        """Refuses names that do not exist, and parameters that nothing reads."""
        calls = list(templates.called(self._items))
        for items in self._blocks.values():
            calls += templates.called(items)
        arguments = {key for call in calls for key in call.values}
        known = {*self._names, *INDICES, *DEFAULTS, "ndim", *arguments}
        used: set[str] = set()
        values = [self._spec, self._outputs, self._ndim, *self._options.values()]
        values += [value for node in self._nodes or () for value in node.values()]
        for value in values:
            used |= templates.names_of(value)
        for item in self._items:
            used |= item.reads
        used |= self._read_by_blocks(self._items)
        for name in used & set(self._axis_values()):
            used |= self._check_texts(name)
        self._check_names(used, known, "")
        for expression in [e for _, e in self._layered] + [c.expression for c in self._constraints]:
            used |= expression.names
        for level in self._levels:
            for _, expression in level.dependents:
                used |= expression.names
        for name in set(self._axis_values()) - used:
            close = nearest(name, sorted(DEFAULTS.keys() - set(self._names)))
            self._fail(f"parameters.{name}", f"nothing reads it; {close}")

    def _axis_values(self) -> dict[str, Values | Continuous]:
        return {
            name: values
            for level in self._levels
            for name, values in zip(level.axis.names, level.axis.columns, strict=True)
        }

    def _read_by_blocks(self, items: Iterable[Item]) -> set[str]:
        """What the blocks read that the items may call."""
        used: set[str] = set()
        waiting, seen = list(templates.called(tuple(items))), set()
        while waiting:
            call = waiting.pop()
            for name in self._callable(call):
                if name not in seen:
                    seen.add(name)
                    for item in self._blocks[name]:
                        used |= item.reads
                    waiting += templates.called(self._blocks[name])
        return used

    def _callable(self, call: Item) -> Iterable[str]:
        """The blocks that an item may name, as far as that can be said beforehand."""
        if isinstance(call.block, str):
            names: tuple[Any, ...] = (call.block,)
        elif isinstance(call.block, Expression) and isinstance(
            values := self._axis_values().get(call.block.text), tuple
        ):
            names = values
        else:
            return self._blocks
        for name in names:
            if name not in self._blocks:
                remedy = nearest(str(name), self._blocks)
                raise InputError(f"{call.place}.block: no block is called {name!r}; {remedy}")
        return names

    def _check_texts(self, name: str) -> frozenset[str]:
        """The names that zoo networks in the values of a parameter read."""
        values = self._axis_values()[name]
        if name != "network" or not isinstance(values, tuple):
            return frozenset()
        place = self._place(f"parameters.{name}")
        return frozenset().union(
            *(templates.names_of(templates.compile_value(value, place)) for value in values)
        )

    def _check_names(self, names: Iterable[str], known: Collection[str], place: str) -> None:
        for name in sorted(set(names) - set(known)):
            self._fail(place, f"there is no parameter {name!r}; {nearest(name, known)}")

    def _table(self, value: Any, place: str) -> Mapping[str, Any]:
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            self._fail(place, f"{value!r} must be a table of named values")
        return value

    def _typed(self, table: Mapping[str, Any], key: str, kind: type, rule: str) -> Any:
        value = table.get(key)
        if value is not None and not isinstance(value, kind):
            self._fail(key, f"{value!r} must be {rule}")
        return value

    def _known(self, table: Mapping[str, Any], known: Sequence[str], place: str, what: str) -> None:
        for key in table:
            if key not in known:
                self._fail(place, f"{what} has no key {key!r}; {nearest(key, known)}")

    def _place(self, place: str) -> str:
        return f"{self._source}: {place}" if place else self._source

    def _fail(self, place: str, message: str) -> NoReturn:
        raise InputError(" ".join(f"{self._place(place)}: {message}".split())) from None


class _Spaces(threading.local):
    """The latest spaces that were unpickled in a thread: a worker gets a space with every task, and
    what it knows of it stays. Not shared by threads, as a space changes what it keeps."""

    def __init__(self) -> None:
        self.get = lru_cache(4)(_read)


def _read(pickled: bytes) -> Space:
    content, source = pickle.loads(pickled)
    return Space(content, source=source)


_SPACES = _Spaces()


def _rebuilt(pickled: bytes) -> Space:
    return _SPACES.get(pickled)
