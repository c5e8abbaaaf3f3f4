"""One operator of a traced module: its arguments; the registry of handlers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from numpy.typing import NDArray

from fastrf.errors import InputError
from fastrf.importers.batched import regrouped, repeated
from fastrf.importers.failing import line, refuse
from fastrf.importers.layout import Const, Map, Shape, Value
from fastrf.importers.operator import Operator, Result
from fastrf.importers.weighting import Weighting
from fastrf.network import Node


class Op(Operator):
    """One call of a PyTorch operator.

    Args:
        type: the operator's name without its overload and the "_" of the in-place form.
        name: what the fastrf node that it becomes is called.
        arguments: its arguments by the names of its schema, defaults included; a tensor is a
            `Map` or a `Const`.
        shapes: the shapes of its outputs.
        where: the line of code that it comes from.
        ndim, nodes, weighting: as in `Operator`.
    """

    def __init__(
        self,
        type: str,
        name: str,
        arguments: Mapping[str, Any],
        shapes: Sequence[Shape | None],
        where: str,
        ndim: int,
        nodes: dict[str, Node],
        weighting: Weighting,
    ) -> None:
        read = list(_tensors(arguments.values()))
        super().__init__(type, name, read, shapes, ndim, nodes, weighting)
        self.arguments = arguments
        self.where = where

    def fail(self, message: str) -> NoReturn:
        raise InputError(f"{self.type} ({self.name!r}, {self.where}): {line(message)}")

    def regrouped(self, x: Map, sets: int) -> Op:
        """The same operator on another map, with so many times the groups."""
        own: dict[str, Any] = dict(self.arguments)
        own |= {name: x for name, value in own.items() if value is self.inputs[0]}
        if isinstance(own.get("weight"), Const):
            own |= {"weight": repeated(own["weight"], sets), "groups": own["groups"] * sets}
        return Op(
            self.type,
            self.name,
            own,
            self.shapes,
            self.where,
            self.ndim,
            self._nodes,
            self.weighting,
        )

    @property
    def size(self) -> tuple[int, ...]:
        """The shape of the first output, where no size of it depends on data."""
        shape = self.shapes[0]
        if shape is None or None in shape:
            refuse("has a result whose shape depends on the data")
        return tuple(n for n in shape if n is not None)

    def __getitem__(self, name: str) -> Any:
        """An argument by its name."""
        return self.arguments[name]

    def get(self, *names: str) -> Any:
        """The first of these arguments that is given; overloads differ in how they are called."""
        given = (self.arguments.get(name) for name in names)
        return next((value for value in given if value is not None), None)

    def per_axis(self, name: str, default: Any = None) -> list[int]:
        """An argument with one number per spatial axis, or one for all."""
        value = self.arguments.get(name)
        if value is None or value == []:
            value = default
        values = list(value) if isinstance(value, list | tuple) else [value]
        return values * self.ndim if len(values) == 1 else values

    def weight(self, name: str) -> Const:
        """An argument that no map reaches, with its shape."""
        value = self.arguments[name]
        if isinstance(value, Map):
            refuse("computes its weights from a map")
        if not isinstance(value, Const) or value.shape is None:
            refuse("has no weights")
        return value

    def learned(self, *names: str) -> NDArray[Any] | None:
        """The numbers of the first of these arguments that is given, where weights are read."""
        value = self.get(*names)
        return value.array if self.weighting.trained and isinstance(value, Const) else None

    def axes_of(self, x: Map, given: Any) -> list[int]:
        """The axes of a tensor that an argument means; None and [] mean all of them."""
        rank = len(x.dims or self.size)
        if given is None or given == []:
            return list(range(rank))
        return [a % max(rank, 1) for a in (given if isinstance(given, list | tuple) else [given])]


def _tensors(arguments: Any) -> list[Value]:
    found: list[Value] = []
    for value in arguments:
        if isinstance(value, Map | Const):
            found.append(value)
        elif isinstance(value, list | tuple):
            found += _tensors(value)
    return found


# --- the registry ---------------------------------------------------------------------------

Handler = Callable[[Op], Result]
HANDLERS: dict[str, Handler] = {}
"""The handler of every operator that fastrf knows; `operators` fills it."""


def handles(types: str) -> Callable[[Handler], Handler]:
    """Registers the handler of operators, named with spaces between them."""

    def register(handler: Handler) -> Handler:
        HANDLERS.update(dict.fromkeys(types.split(), handler))
        return handler

    return register


def handles_sets(types: str) -> Callable[[Handler], Handler]:
    """As `handles`, of operators that take sets of channels in the batch, too."""
    register = handles(types)
    return lambda handler: register(regrouped(handler, Op.regrouped))
