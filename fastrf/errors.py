"""The errors that fastrf raises on purpose.

Every message says the value that was refused, the rule it breaks and the remedy, on one line:
the command line prints it as it stands and exits with 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastrf.erf import ERF


class FastrfError(Exception):
    """Base of every error that fastrf raises on purpose."""


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
    """The planned computation does not fit into the memory limit; nothing was started."""


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
