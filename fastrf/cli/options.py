"""Options that several commands share, and how their texts are read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from fastrf.errors import InputError

if TYPE_CHECKING:
    from fastrf.network import Network

FILES = (".toml", ".json", ".onnx")
"""Suffixes of network files."""

CHOOSE = Group("Selection", sort_key=1)
COMPUTE = Group("Computation", sort_key=2)
RESULTS = Group("Results", sort_key=3)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which map of the network, seen from which input; shared by `rf`, `erf` and `check`."""

    output: Annotated[
        str | None,
        Parameter(
            group=CHOOSE,
            help="Node or end point. Default: the network's output, or the last map before it "
            "lost its spatial extent.",
        ),
    ] = None
    input: Annotated[
        str | None, Parameter(group=CHOOSE, help="Input map, where the network has several.")
    ] = None
    input_size: Annotated[
        str | None,
        Parameter(
            group=CHOOSE,
            help="Pixels of the input, for all axes or per axis: 224, 224,320 or 224x320. "
            "Default: the unbounded grid.",
        ),
    ] = None
    ignore_global: Annotated[
        bool,
        Parameter(
            group=CHOOSE,
            negative="",
            show_default=False,
            help="Leave out paths through global layers (attention…).",
        ),
    ] = False
    unknown: Annotated[
        str,
        Parameter(
            group=CHOOSE,
            help="What an operator of an ONNX model or a torch module that fastrf does not know "
            "becomes: error, identity or global.",
        ),
    ] = "error"
    channels: Annotated[
        int | None,
        Parameter(
            group=CHOOSE,
            help="Channels of a torch module's input. Default: what its first convolution reads, "
            "else 3.",
        ),
    ] = None

    init: Annotated[
        str | None,
        Parameter(
            group=CHOOSE,
            help="How layers draw their weights: he, he-fan-out, lecun, glorot, pytorch, "
            "orthogonal or delta-orthogonal. Default: every layer keeps the variance.",
        ),
    ] = None
    weights: Annotated[
        str | None,
        Parameter(group=CHOOSE, help="trained: the squared weights of an ONNX or torch model."),
    ] = None
    per_channel: Annotated[
        bool,
        Parameter(
            group=CHOOSE,
            negative="",
            show_default=False,
            help="Follow trained weights channel by channel, not their average.",
        ),
    ] = False

    @property
    def size(self) -> int | tuple[int, ...] | None:
        """`input_size` as numbers."""
        return None if self.input_size is None else numbers(self.input_size, "--input-size")

    def read(self, net: str) -> Network:
        """The network that NET names.

        Raises:
            InputError: it names none, or the file cannot be read.
        """
        suffix = Path(net).suffix.lower()
        policy: Any = self.unknown
        weights: Any = self.weights
        if suffix == ".onnx":
            from fastrf.importers.onnx import from_onnx

            return from_onnx(
                net,
                unknown=policy,
                input_size=self.size,
                init=self.init,
                weights=weights,
                channels="full" if self.per_channel else "mean",
            )
        if named_by_code(net):
            from fastrf.importers.named import from_name

            return from_name(
                net,
                input_size=self.size,
                channels=self.channels,
                unknown=policy,
                init=self.init,
                weights=weights,
                per_channel=self.per_channel,
            )
        if self.weights is not None or self.per_channel:
            raise InputError(
                f"--weights and --per-channel are for ONNX models and torch modules, and {net!r} "
                f"is neither; leave them out"
            )
        network = self._listed(net, suffix)
        return network if self.init is None else network.initialised(self.init)

    def _listed(self, net: str, suffix: str) -> Network:
        """A network file or one of the zoo."""
        if self.unknown != "error":
            raise InputError(
                f"--unknown is for ONNX models and torch modules, and {net!r} is neither; leave "
                f"it out"
            )
        if suffix in FILES:
            from fastrf.netfile import load

            return load(net)
        if Path(net).exists():
            raise InputError(
                f"{net!r} is no network file by its name; network files end in {', '.join(FILES)}"
                f", and Python code is named as package.module:callable"
            )
        from fastrf.zoo import get

        return get(net)

    def options(self) -> dict[str, Any]:
        """The options under the names that the Python functions give them."""
        return {
            "output": self.output,
            "input": self.input,
            "input_size": self.size,
            "ignore_global": self.ignore_global,
        }


EVERYTHING = Selection()

Net = Annotated[
    str,
    Parameter(help="A zoo network, a network file or Python code; see the end of this page."),
]
AsJson = Annotated[
    bool,
    Parameter(
        name="--json",
        negative="",
        show_default=False,
        group=RESULTS,
        help="Print one JSON document.",
    ),
]
Unit = Annotated[
    str,
    Parameter(
        group=CHOOSE,
        allow_leading_hyphen=True,
        help="center, or one index per axis, such as 3,4.",
    ),
]
Workers = Annotated[int | None, Parameter(group=COMPUTE, help="Threads. Default: as many as pay.")]
MemoryLimit = Annotated[
    str | None,
    Parameter(
        group=COMPUTE,
        help="Largest memory a plan may need: bytes, or 500M, 8G. Default: half of what is free.",
    ),
]


def named_by_code(net: str) -> bool:
    """Whether NET reads "package.module:callable"."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", net) is not None


def numbers(text: str, option: str) -> int | tuple[int, ...]:
    """Whole numbers that "," or "x" separates; a single one stands for itself."""
    parts = re.split(r"\s*[,x×]\s*", text.strip())
    if not all(re.fullmatch(r"[+-]?\d{1,18}", part) for part in parts):
        raise InputError(
            f"{option} {text!r} cannot be read; write one whole number, or one per axis such as "
            f"3,4 or 3x4"
        )
    values = tuple(map(int, parts))
    return values[0] if len(values) == 1 else values


def unit_of(text: str) -> str | int | tuple[int, ...]:
    return text if text.isidentifier() else numbers(text, "--unit")


def bytes_of(text: str | None) -> int | None:
    """A number of bytes with an optional binary suffix."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.I)
    if found is None:
        raise InputError(f"--memory-limit {text!r} cannot be read; write bytes, or 500M, 8G")
    power = " KMGT".index(found[2].upper() or " ")
    return int(Fraction(found[1]) * 1024**power)
