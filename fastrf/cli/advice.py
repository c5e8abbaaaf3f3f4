"""`fastrf advice`: where a field stops growing, what sees no more, what would widen it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastrf.cli.options import EVERYTHING, AsJson, Net, Selection
from fastrf.cli.printing import grid, print_facts, print_json, print_table, show
from fastrf.cli.progress import Progress

if TYPE_CHECKING:
    from fastrf.advice import Advice


def advice(
    net: Net,
    /,
    *,
    selection: Selection = EVERYTHING,
    as_json: AsJson = False,
) -> int:
    """Where the field stops growing, which layers see no more, what would widen it.

    Layers that read the whole map at once are always left out.
    """
    from fastrf.advice import advice as advise

    network = selection.read(net)
    with Progress():
        found = advise(network, selection.output, input_size=selection.size, input=selection.input)
    if as_json:
        print_json(found.to_dict())
    else:
        _show(found, net)
    return 0


def _show(found: Advice, net: str) -> None:
    show(f"{found.network or net}, {found.node}: {grid(found.input_size)}\n")
    print_table(
        ["layer", "TRF", "σ", "of all", "per layer"],
        [
            [s.name, f"{s.trf:.4g}", f"{s.std:.4g}", f"{s.share:.0%}", _percent(s.growth)]
            for s in found.shown
        ],
        ("TRF", "per layer"),
    )
    show("")
    print_facts(found.facts())
    if found.changes:
        show("\nwhat would widen it\n")
        print_table(
            ["change", "σ", "TRF", "multiply-adds"],
            [
                [
                    c.what,
                    f"×{c.std_factor:.3g} = {c.std:.4g}",
                    f"×{c.trf_factor:.3g} = {c.trf:.4g}",
                    f"×{c.cost_factor:.3g}",
                ]
                for c in found.changes
            ],
            ("TRF", "multiply-adds"),
        )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:+.1%}"
