"""`fastrf design`: networks whose receptive fields are as large as asked for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Group, Parameter

from fastrf.cli.exits import FAILED
from fastrf.cli.options import COMPUTE, RESULTS, AsJson
from fastrf.cli.printing import print_json, print_table, show
from fastrf.cli.progress import Progress
from fastrf.errors import InputError

if TYPE_CHECKING:
    from fastrf.design import Designs

_WANTED = Group("What is asked for", sort_key=1)
_Target = Annotated[
    str | None,
    Parameter(
        group=_WANTED,
        help="Pixels, or a range of them: 60, 50:70, :200 (at most) or 50: (at least).",
    ),
]


def design(
    *,
    target_erf: _Target = None,
    target_trf: _Target = None,
    size: Annotated[
        Literal["luo", "std", "fwhm"],
        Parameter(group=_WANTED, help="Which size of the ERF --target-erf means."),
    ] = "luo",
    stride: Annotated[
        int | None, Parameter(group=_WANTED, help="Stride of the output, exactly.")
    ] = None,
    budget: Annotated[
        str | None,
        Parameter(
            group=_WANTED,
            help="Most multiply-adds per output pixel and pair of channels, or "
            "layers=20,parameters=500,multiply_adds=300.",
        ),
    ] = None,
    within: Annotated[
        float, Parameter(group=_WANTED, help="How far a target of one number may be missed.")
    ] = 0.05,
    space: Annotated[
        str | None,
        Parameter(
            group=_WANTED,
            help="A space file to search. Default: stacks of plain or residual blocks with "
            "dilations that double and strides of 2.",
        ),
    ] = None,
    ndim: Annotated[
        int, Parameter(group=_WANTED, help="Axes of the networks of the default space.")
    ] = 2,
    count: Annotated[int, Parameter(group=RESULTS, help="How many networks to find.")] = 5,
    device: Annotated[str, Parameter(group=COMPUTE, help="auto, cpu, cuda or cuda:N.")] = "auto",
    as_json: AsJson = False,
) -> int:
    """The cheapest networks with the asked receptive field; exits 1 where nothing fits."""
    from fastrf.design import design as search
    from fastrf.sweep.space import Space

    wanted = {
        "target_erf": _target(target_erf, "--target-erf"),
        "target_trf": _target(target_trf, "--target-trf"),
    }
    searched = None if space is None else Space.load(space)
    with Progress():
        found = search(
            **wanted,
            size=size,
            stride=stride,
            budget=_budget(budget),
            within=within,
            space=searched,
            ndim=ndim,
            count=count,
            device=device,
        )
    if as_json:
        print_json(found.to_dict())
    else:
        _show(found)
    return 0 if found else FAILED


def _show(found: Designs) -> None:
    header = ["network", f"ERF ({found.size})", "TRF", "stride", "multiply-adds", "layers"]
    rows = [
        [
            ", ".join(f"{k} {v}" for k, v in d.parameters.items()),
            *(f"{v:.4g}" for v in (d.erf, d.trf, d.stride, d.multiply_adds)),
            str(d.layers),
            str(d.parameter_count),
            "yes" if d.fits else "NO",
        ]
        for d in found
    ]
    if rows:
        print_table(
            [*header, "parameters", "fits"], rows, ("parameters", "layers", "stride", "TRF")
        )
        show("")
    show(f"{found.searched} candidates by closed form, {found.measured} measured")
    if found.reason is not None:
        show(found.reason)


def _target(text: str | None, option: str) -> Any:
    """A number of pixels or a range "least:greatest" whose ends may be left out."""
    if text is None:
        return None
    if ":" not in text:
        return _number(text, option)
    low, _, high = text.partition(":")
    return tuple(_number(end, option) if end.strip() else None for end in (low, high))


def _number(text: str, option: str) -> float:
    if not re.fullmatch(r"\s*\d{1,15}(\.\d{1,15})?\s*", text):
        raise InputError(
            f"{option} {text!r} cannot be read; write a number, or for a target 50:70, :70 or 50:"
        )
    return float(text)


def _budget(text: str | None) -> Any:
    if text is None:
        return None
    if "=" not in text:
        return _number(text, "--budget")
    parts = [part.partition("=") for part in text.split(",")]
    return {name.strip(): _number(value, "--budget") for name, _, value in parts}
