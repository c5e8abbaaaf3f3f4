"""What becomes of an operator that fastrf cannot express."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from fastrf.errors import InputError
from fastrf.importers.failing import refuse
from fastrf.importers.layout import Const, fits
from fastrf.importers.operator import Operator, Result
from fastrf.layers import Add

Policy = Literal["error", "identity", "global"]
"""Refused; every pixel passed on; each output reads every input."""

WAYS_OUT = (
    'or pass unknown="identity" (it passes every pixel on) or unknown="global" '
    "(each output reads every input)"
)
"""How messages name the policies."""


def checked_policy(unknown: object) -> None:
    """Raises `InputError` where `unknown` is no policy."""
    if unknown not in get_args(Policy):
        raise InputError(
            f"unknown={unknown!r} is not a policy; choose one of {', '.join(get_args(Policy))}"
        )


def by_policy(op: Operator, unknown: Policy, reason: str, known: bool = False) -> Result:
    """What an operator becomes that is refused for `reason`.

    Args:
        known: it is one of those that fastrf can express otherwise. Where the shape of its result
            is not known, it may be any; other operators are taken to keep that of their map.

    Raises:
        UnsupportedOperator: the policy is "error", or the operator cannot pass its map on.
    """
    if unknown == "error":
        refuse(reason)
    if not op.maps:
        return [Const(shape) for shape in op.shapes]
    first = op.maps[0]
    same = [op.shape is None or x.dims is None or fits(op.shape, x.dims) for x in op.maps]
    if unknown == "global":
        x = op.attend(op.maps)
        alone = len(op.maps) == 1 and same[0] and not (known and op.shape is None)
        return replace(x, axes=first.axes, shape=first.shape) if alone else x
    kept = [x for x, fitting in zip(op.maps, same, strict=True) if fitting]
    if not kept:
        refuse(f"{reason}, and changes the shape {first.dims} to {op.shape}")
    return op.chain(kept[0]) if len(kept) == 1 else op.merge(kept, Add())
