"""Networks that Python code makes: "package.module:callable", as the command line names them."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Sequence
from typing import Any, Literal

from fastrf.errors import InputError
from fastrf.importers.failing import line
from fastrf.importers.policy import Policy
from fastrf.layers.checks import is_whole
from fastrf.network import Network

DEFAULT_SIZE = 224
"""Pixels per axis that a module is traced at where none are given."""

DEFAULT_CHANNELS = 3


def from_name(
    name: str,
    *,
    input_size: int | Sequence[int] | None = None,
    channels: int | None = None,
    unknown: Policy = "error",
    init: str | None = None,
    weights: Literal["trained"] | None = None,
    per_channel: bool = False,
) -> Network:
    """The network that "package.module:callable" names.

    The module is imported (the working directory counts as one of its places, as for ``python
    -m``), and the callable called without arguments. It returns a `Network` or a
    `torch.nn.Module`; the name may also be that of one. A module is made on PyTorch's meta
    device, so that no weights are allocated, where its constructor allows it and no weights are
    to be read.

    Args:
        input_size: pixels per axis that a torch module is traced at; default: 224.
        channels: of its input; default: what its first convolution reads, else 3.
        unknown, init, weights: as in `from_torch`.
        per_channel: whether trained weights are followed channel by channel.

    Raises:
        InputError: there is no such module or callable, it fails, or returns something else.
    """
    found = _made(name, hollow=weights is None)
    if isinstance(found, Network):
        if weights is not None or per_channel:
            raise InputError(
                f"{name!r} is a fastrf.Network, which has no trained weights to read; name a "
                f"torch.nn.Module"
            )
        return found if init is None else found.initialised(init)
    from fastrf.importers.torch import from_torch

    return from_torch(
        found,
        _shape(found, input_size, channels),
        unknown=unknown,
        name=name.rpartition(":")[2],
        init=init,
        weights=weights,
        channels="full" if per_channel else "mean",
    )


def module_from_name(
    name: str,
    *,
    input_size: int | Sequence[int] | None = None,
    channels: int | None = None,
) -> tuple[Any, tuple[int, ...]]:
    """The torch module that "package.module:callable" names, with its weights, and the shape of
    one image for it. Arguments and errors are those of `from_name`; a network is refused."""
    found = _made(name, hollow=False)
    if isinstance(found, Network):
        raise InputError(
            f"{name!r} is a fastrf.Network, and has no gradients; name a callable that returns a "
            f"torch.nn.Module"
        )
    return found, _shape(found, input_size, channels)


def _shape(
    module: Any, input_size: int | Sequence[int] | None, channels: int | None
) -> tuple[int, ...]:
    """The shape of one image for a module."""
    ndim, own = _first_convolution(module)
    size = DEFAULT_SIZE if input_size is None else input_size
    pixels = tuple(size) if isinstance(size, Sequence) else (size,) * ndim
    if not all(is_whole(n) and n > 0 for n in pixels):
        raise InputError(f"input_size={input_size!r} must be a whole number of at least 1, or some")
    if channels is not None and channels < 1:
        raise InputError(f"channels={channels} must be at least 1")
    return (1, own if channels is None else channels, *pixels)


def _made(name: str, *, hollow: bool) -> Any:
    """What the named callable returns: a network or a torch module, `hollow` without weights where
    it can be."""
    place, _, attribute = name.partition(":")
    found = _imported(name, place)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise InputError(f"{name!r}: {place} has no {attribute!r}; check the name behind ':'")
        found = getattr(found, part)
    if isinstance(found, Network) or (_is_module(found) and not isinstance(found, type)):
        return found
    if not callable(found):
        raise InputError(
            f"{name!r} is a {type(found).__name__}; name a callable that returns a torch.nn.Module "
            f"or a fastrf.Network"
        )
    made = _called(name, found, hollow=hollow)
    if not isinstance(made, Network) and not _is_module(made):
        raise InputError(
            f"{name!r} returned a {type(made).__name__}; it must return a torch.nn.Module or a "
            f"fastrf.Network"
        )
    return made


def _imported(name: str, place: str) -> Any:
    folder = os.getcwd()
    added = folder not in sys.path
    if added:
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{name!r}: there is no module {error.name!r} here; install its package, or run in the "
            f"folder that holds it"
        ) from None
    except (Exception, SystemExit) as error:  # Whatever the module's own code raises.
        raise InputError(f"{name!r}: importing {place} fails: {_said(error)}") from error
    finally:
        if added:
            sys.path.remove(folder)


def _called(name: str, make: Any, *, hollow: bool) -> Any:
    """What a callable returns, `hollow` made on the meta device where torch is in use."""
    torch = sys.modules.get("torch")
    if torch is not None and hollow:
        try:
            with torch.device("meta"):
                return make()
        except (
            Exception,
            SystemExit,
        ):  # Constructors that compute with numbers in tensors need real ones.
            pass
    try:
        return make()
    except (Exception, SystemExit) as error:  # Whatever the callable's own code raises.
        if _takes_none(make):
            raise InputError(f"{name!r} fails when it is called: {_said(error)}") from error
        raise InputError(
            f"{name!r} cannot be called without arguments: {_said(error)}; write a function "
            f"without arguments that makes the network"
        ) from error


def _takes_none(make: Any) -> bool:
    """Whether a callable may be called without arguments, as far as that can be seen."""
    try:
        inspect.signature(make).bind()
    except (TypeError, ValueError):
        return False
    return True


def _said(error: BaseException) -> str:
    return line(f"{type(error).__name__}: {error}")


def _is_module(found: Any) -> bool:
    torch = sys.modules.get("torch")
    if torch is None:
        return False
    return isinstance(found, torch.nn.Module) or (
        isinstance(found, type) and issubclass(found, torch.nn.Module)
    )


def _first_convolution(module: Any) -> tuple[int, int]:
    """Spatial axes and input channels of a module's first convolution."""
    for part in module.modules():
        weight = getattr(part, "weight", None)
        channels = getattr(part, "in_channels", None)
        if is_whole(channels) and getattr(weight, "ndim", 0) in (3, 4, 5):
            return part.weight.ndim - 2, int(part.in_channels)
    return 2, DEFAULT_CHANNELS
