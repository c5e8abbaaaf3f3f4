"""`fastrf rf`: the receptive-field table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from fastrf.cli.options import EVERYTHING, RESULTS, AsJson, Net, Selection
from fastrf.cli.printing import axes, grid, print_facts, print_json, print_table, show, times
from fastrf.cli.progress import Progress

if TYPE_CHECKING:
    from fastrf.analytic.geometry import LayerField, ReceptiveField


def rf(
    net: Net,
    /,
    *,
    selection: Selection = EVERYTHING,
    convention: Annotated[
        Literal["distill", "dang", "both"],
        Parameter(
            group=RESULTS,
            help="Whose numbers the table shows: Distill's (Araujo, Norris and Sim: padding, "
            "center), Dang Ha The Hien's (start) or both. JSON always has both.",
        ),
    ] = "both",
    as_json: AsJson = False,
) -> int:
    """The theoretical receptive field of every layer."""
    from fastrf.analytic.geometry import receptive_field

    network = selection.read(net)
    with Progress():
        field = receptive_field(network, **selection.options())
        rows = field.layers
    if as_json:
        print_json(_field_document(field))
        return 0
    columns = [c for c in _COLUMNS if convention in ("both", *c.conventions)]
    if field.input_size is None:
        columns = [c for c in columns if c.name != "shape"]
    where = grid(field.input_size)
    show(f"{field.network.name or net}: {len(field.network)} layers, {where}\n")
    print_table([c.name for c in columns], [[c.cell(r) for c in columns] for r in rows], _LOSABLE)
    show("")
    print_facts(_field_facts(field, convention))
    return 0


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the receptive-field table: an attribute of the layer's record."""

    name: str
    between: str = ""
    conventions: tuple[str, ...] = ("distill", "dang")

    def cell(self, row: LayerField) -> str:
        value = getattr(row, self.name)
        if isinstance(value, str):
            return value
        if value is None:
            return "–"
        if self.name == "size":
            value = ["∞" if far else v for v, far in zip(value, row.unbounded, strict=True)]
        return axes(value, self.between)


_COLUMNS = (
    _Column("name"),
    _Column("op"),
    _Column("shape", "×"),
    _Column("size", "×"),
    _Column("stride", "×"),
    _Column("padding", ",", ("distill",)),
    _Column("start", ",", ("dang",)),
    _Column("center", ",", ("distill",)),
)
_LOSABLE = ("center", "op", "start", "padding", "shape")
"""Columns that a narrow terminal loses, in this order; `center` is `start` less 1/2."""


def _field_document(field: ReceptiveField) -> dict[str, Any]:
    return {
        "network": field.network.name,
        "fingerprint": field.network.fingerprint,
        "node": field.node,
        "input": field.input,
        "input_size": field.input_size,
        "map_size": field.map_size,
        "size": field.size,
        "stride": field.stride,
        "padding": field.padding,
        "start": field.start,
        "center": field.center,
        "period": field.period,
        "has_holes": field.has_holes,
        "aligned": field.aligned,
        "misaligned": [
            {**m._asdict(), "paths": [p._asdict() for p in m.paths]} for m in field.misaligned
        ],
        "unbounded_by": field.unbounded_by,
        "beyond": field.beyond,
        "assumptions": field.assumptions,
        "dang": field.dang._asdict(),
        "distill": field.distill._asdict(),
        "layers": field.layers.to_dicts(),
    }


def _field_facts(field: ReceptiveField, convention: str) -> list[tuple[str, str]]:
    facts = [("output", f"{field.node} on {field.input}")]
    row = field.layers.named(field.node) if field.node not in field.network.inputs else None
    if row is not None:
        facts.append(("size", _COLUMNS[3].cell(row)))
    facts.append(("stride", axes(field.stride, "×")))
    if convention != "dang":
        facts.append(("padding", axes(field.padding, ", ")))
        facts.append(("center", f"{axes(field.center, ', ')} (first pixel at 0; Distill)"))
    if convention != "distill":
        facts.append(("start", f"{axes(field.start, ', ')} (first pixel at 1/2; Dang)"))
    if field.map_size is not None:
        facts.append(("map", times(field.map_size)))
    if field.beyond is not None:
        beyond = " and ".join(axes(ends, ", ") for ends in zip(*field.beyond, strict=True))
        facts.append(("beyond", f"{beyond} pixels before and behind the image"))
    if max(field.period) > 1:
        facts.append(("phases", axes(field.period)))
    if field.has_holes:
        facts.append(("holes", "pixels inside the box that the unit does not see"))
    facts.append(("aligned", "yes" if field.aligned else "no: sizes depend on the unit"))
    for report in field.misaligned[:4]:
        paths = "; ".join(f"{p.source} stride {p.stride}, center {p.center}" for p in report.paths)
        facts.append(("", f"{report.node}, axis {report.axis}: {paths}"))
    if len(field.misaligned) > 4:
        facts.append(("", f"and {len(field.misaligned) - 4} more; --json lists them"))
    if field.unbounded_by:
        facts.append(("unbounded by", ", ".join(field.unbounded_by)))
    facts.extend(("assumed", text) for text in field.assumptions)
    return facts
