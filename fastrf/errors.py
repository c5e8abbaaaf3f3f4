"""The errors that fastrf raises on purpose.

Every message says the value that was refused, the rule it breaks and the remedy, on one line:
the command line prints it as it stands and exits with 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastrf.erf import ERF

LONGEST = 2000
"""Characters of a message; what comes from a file may have any number of them."""


def short(value: Any) -> str:
    """`value` for a message: on one line, and not longer than a line."""
    try:
        line = " ".join(repr(value).split())
    except ValueError:  # an int of more digits than Python prints
        line = "a number of thousands of digits"
    return line if len(line) <= 80 else f"{line[:60]} … {line[-15:]}"


def printable(text: str) -> str:
    """`text` without characters that steer a terminal or have no glyph."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "�" for c in text)


def _line(message: str) -> str:
    """A message on one line, without characters that steer a terminal, and not too long."""
    if len(message) > LONGEST:
        message = f"{message[: LONGEST * 3 // 4]} … {message[-LONGEST // 4 :]}"
    return printable(" ".join(message.split()))


class FastrfError(Exception):
    """Base of every error that fastrf raises on purpose. Names in its message come from files of
    strangers: whatever they hold, it is one line that can be printed."""

    def __init__(self, message: str = "") -> None:
        super().__init__(_line(message))


class InputError(FastrfError, ValueError):
    """A value that fastrf was given breaks a rule (a kernel of 0, an unknown unit, a cycle)."""


class NetworkFileError(InputError):
    """A network file (TOML, JSON, ONNX) cannot be read or does not describe a network."""


class UnsupportedOperator(InputError):
    """A model holds an operator that fastrf does not know; `unknown=` says what to do with it."""


class UnboundedError(InputError):
    """The effective field of a global operator was asked for on an unbounded grid."""


class EmptyFieldError(InputError):
    """The unit sees nothing of the input: only padding, or the gaps of transposed convolutions."""


class ToleranceError(InputError):
    """A result cannot be shown to be as right as was asked for."""


class DeviceError(FastrfError, RuntimeError):
    """The device that was asked for cannot be used here."""


class PlanError(FastrfError, MemoryError):
    """What was planned or asked for does not fit into the memory limit; nothing was started."""


class Fault(FastrfError):
    """What was asked for is right, but the machine failed on the way.

    Attributes:
        finished: with `layers="all"`, the fields that were done by then, by node.
    """

    finished: Mapping[str, ERF] = MappingProxyType({})


class OutOfMemoryError(Fault, MemoryError):
    """Memory of the host or of the GPU ran out on the way; what was taken is free again."""


class DeviceLostError(Fault, DeviceError):
    """The GPU failed on the way."""


class KernelError(Fault, RuntimeError):
    """A kernel does not compile here."""


class StoreError(FastrfError, RuntimeError):
    """The store of a sweep cannot be read or written; what it holds was left as it is."""


class WorkerError(FastrfError, RuntimeError):
    """The processes that computed are gone and cannot be replaced here."""


class MissingExtra(FastrfError, ImportError):
    """An optional dependency is not installed; the message names the extra to install."""
