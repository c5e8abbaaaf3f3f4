"""Initialisations by name, as the standard deviations of independent normal weights.

Deviations can be drawn for many networks at once, which a function that fills one module cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from fastrf.errors import InputError, short

if TYPE_CHECKING:
    from torch import nn

Deviations = Mapping[str, float]
"""Standard deviations by the names of parameters; those that are not named stay as they are."""

Initialise = str | Deviations | Callable[[Any], Any] | None

VARIANCES: dict[str, Callable[[nn.Module], float]] = {
    "unit": lambda part: 1 / _gathered(part),
    "he": lambda part: 2 / _fans(part)[0],
    "he-fan-out": lambda part: 2 / _fans(part)[1],
    "lecun": lambda part: 1 / _fans(part)[0],
    "glorot": lambda part: 2 / sum(_fans(part)),
}
"""Variance of a layer's weights. "unit" is what imported networks take for granted: values and,
summed over channels and pixels, squared gradients keep their mean. The others are as in
`torch.nn.init`: He et al. 2015, LeCun et al. 1998, Glorot and Bengio 2010."""

FILLERS: dict[str, Callable[[nn.Module], None]]
"""Schemes that a standard deviation does not describe, as functions that fill a module."""

ALIASES = {"kaiming": "he", "xavier": "glorot"}


def prepared(initialise: Initialise, module: nn.Module) -> Deviations | Callable[[Any], Any] | None:
    """What draws a module's weights: deviations, or a function that fills the module.

    Named schemes set the biases to zero and bring normalising layers to their start first.

    Raises:
        InputError: an unknown name, or deviations of what is no parameter.
    """
    if initialise is None or (callable(initialise) and not isinstance(initialise, Mapping)):
        return initialise
    if isinstance(initialise, Mapping):
        return _checked(initialise, module)
    scheme = ALIASES.get(initialise, initialise)
    if scheme not in (*VARIANCES, *FILLERS):
        raise InputError(
            f"initialise={short(initialise)} is unknown; give one of "
            f"{', '.join((*VARIANCES, *FILLERS))}, a mapping parameter name → standard deviation, "
            f"or a function that fills a module"
        )
    if scheme in FILLERS:
        if scheme != "pytorch":
            _start(module)
        return FILLERS[scheme]
    _start(module)
    names = {id(tensor): name for name, tensor in module.named_parameters()}
    found = {}
    for path, part in module.named_modules():
        if _has_taps(part):
            name = names.get(id(part.weight))
            if name is None:
                raise InputError(
                    f"the weight of {path!r} is computed from other parameters, which "
                    f"initialise={initialise!r} says nothing about; remove the parametrization, or "
                    f"give a function that fills the module"
                )
            found[name] = math.sqrt(VARIANCES[scheme](part))
    return found


def reset(module: nn.Module) -> None:
    """PyTorch's own initialisation: `reset_parameters` of every part that has one."""
    for part in module.modules():
        own = getattr(part, "reset_parameters", None)
        if callable(own):
            own()


def _fans(part: nn.Module) -> tuple[int, int]:
    """Fan-in and fan-out as in PyTorch: the size of a row of the weights, and the number of rows
    times the kernel's taps."""
    weight: Any = part.weight
    rows, row, *kernel = weight.shape
    return row * math.prod(kernel), rows * math.prod(kernel)


def _gathered(part: nn.Module) -> float:
    """How many values one output reads; of a transposed convolution, on average."""
    weight: Any = part.weight
    if not getattr(part, "transposed", False):
        return float(_fans(part)[0])
    groups: Any = part.groups
    stride: Any = part.stride
    # Its weights are (inputs, outputs / groups, *kernel).
    return float(weight.shape[0] / groups * math.prod(weight.shape[2:]) / math.prod(stride))


def _checked(deviations: Deviations, module: nn.Module) -> Deviations:
    known = dict(module.named_parameters())
    for name, value in deviations.items():
        if name not in known:
            raise InputError(
                f"initialise names {name!r}, which is no parameter of the module; it has "
                f"{', '.join(list(known)[:8])}{', …' if len(known) > 8 else ''}"
            )
        number = isinstance(value, int | float)
        if not number or not (value >= 0 and math.isfinite(value)):
            raise InputError(
                f"initialise gives {name!r} the standard deviation {short(value)}; give a finite "
                f"number of at least 0"
            )
    return dict(deviations)


def _has_taps(part: nn.Module) -> bool:
    import torch

    convolution = torch.nn.modules.conv._ConvNd
    return isinstance(part, convolution | torch.nn.Linear) and part.weight is not None


def _start(module: nn.Module) -> None:
    import torch

    for part in module.modules():
        if _has_taps(part):
            bias = getattr(part, "bias", None)
            if isinstance(bias, torch.Tensor):
                torch.nn.init.zeros_(bias)
        elif not list(part.children()):
            own = getattr(part, "reset_parameters", None)
            if callable(own):
                own()


def _orthogonal(module: nn.Module) -> None:
    import torch

    for part in module.modules():
        if _has_taps(part):
            weight: Any = part.weight
            torch.nn.init.orthogonal_(weight)


def _delta_orthogonal(module: nn.Module) -> None:
    """Xiao et al. 2018: an orthogonal matrix of each group's channels at the centre tap."""
    import torch

    for part in module.modules():
        if _has_taps(part):
            weight: Any = part.weight
            groups: Any = getattr(part, "groups", 1)
            torch.nn.init.zeros_(weight)
            centre = tuple((k - 1) // 2 for k in weight.shape[2:])
            for rows in weight.chunk(groups):
                rows[(..., *centre)] = torch.nn.init.orthogonal_(
                    torch.empty_like(rows[(..., *centre)])
                )


FILLERS = {"pytorch": reset, "orthogonal": _orthogonal, "delta-orthogonal": _delta_orthogonal}
