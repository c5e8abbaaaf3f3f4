"""What the zoo's networks share: layers, small builders and the checks of their parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

from fastrf.errors import InputError
from fastrf.layers import Activation, Conv, Layer, Norm
from fastrf.network import Builder

RELU = Activation("relu", gain=1.0)
RELU6 = Activation("relu6", gain=1.0)
LEAKY_RELU = Activation("leaky_relu", gain=1.0)
BATCH_NORM = Norm("batch")

LIMIT = 1_000_000
"""Greatest number of layers, kernel width or channels that a parameter may ask for."""


# --- building -------------------------------------------------------------------------------


def chain(b: Builder, x: str, *steps: tuple[str, Layer]) -> str:
    """Adds named layers one behind the other; returns the last one's name."""
    for name, layer in steps:
        x = b.add(layer, x, name=name)
    return x


def conv_bn_relu(b: Builder, x: str, name: str, conv: Conv) -> str:
    """Convolution, batch norm, ReLU: "name.conv", "name.bn", "name.relu" (torchvision)."""
    return chain(b, x, (f"{name}.conv", conv), (f"{name}.bn", BATCH_NORM), (f"{name}.relu", RELU))


def slim_conv(b: Builder, x: str, name: str, conv: Conv, activation: Activation | None) -> str:
    """Convolution, batch norm, activation under TF-Slim's scope: "name", "name/BatchNorm", …"""
    x = chain(b, x, (name, conv), (f"{name}/BatchNorm", BATCH_NORM))
    if activation is None:
        return x
    return chain(b, x, (f"{name}/{activation.function.capitalize()}", activation))


def same_names(names: Iterable[str]) -> dict[str, str]:
    """End points that are called like the nodes they mean."""
    return {name: name for name in names}


# --- parameters -----------------------------------------------------------------------------


def whole(owner: str, name: str, value: Any, maximum: int = LIMIT) -> int:
    """A whole number from 1 to `maximum`, or InputError."""
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    if not is_whole or not 1 <= value <= maximum:
        raise InputError(f"{owner}: {name}={value!r} must be a whole number from 1 to {maximum}")
    return int(value)


def at_most_limit(owner: str, what: str, count: int) -> None:
    """Refuses a network of more than `LIMIT` layers of the counted kind."""
    if count > LIMIT:
        raise InputError(f"{owner}: {count} {what} are more than {LIMIT}; ask for fewer")


def kernel_per_axis(owner: str, value: Any, ndim: int) -> tuple[int, ...]:
    """A kernel as one width per axis."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,) * ndim
    if len(values) != ndim:
        raise InputError(
            f"{owner}: kernel={value!r} has {len(values)} values for {ndim} axes; "
            f"give one number, or one per axis"
        )
    return tuple(whole(owner, "kernel", v) for v in values)


def grid_axes(owner: str, ndim: Any) -> int:
    """A number of axes: 1, 2 or 3."""
    return whole(owner, "ndim", ndim, maximum=3)


def one_of(owner: str, name: str, value: Any, choices: Sequence[Any]) -> None:
    """Refuses a value that is not among the choices."""
    # `True == 1` must not let a flag pass as a number, nor the reverse.
    if not any(type(value) is type(c) and value == c for c in choices):
        listed = ", ".join(map(repr, choices))
        raise InputError(f"{owner}: {name}={value!r} is unknown; choose one of {listed}")


def positive(owner: str, name: str, value: Any) -> float:
    """A finite number above 0, or InputError."""
    is_real = isinstance(value, Real) and not isinstance(value, bool)
    if not is_real or not math.isfinite(value) or value <= 0:
        raise InputError(f"{owner}: {name}={value!r} must be a finite number above 0")
    return float(value)


def activation_or_none(owner: str, function: Any) -> Activation | None:
    """An activation of gain 1 by its name, or None."""
    if function is None:
        return None
    if not isinstance(function, str) or not function.isidentifier():
        raise InputError(f"{owner}: activation={function!r} must be a name such as 'relu', or None")
    return Activation(function, gain=1.0)
