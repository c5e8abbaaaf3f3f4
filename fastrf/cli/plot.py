"""`fastrf plot`: a figure of any kind, into a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from cyclopts import Parameter

from fastrf.cli.options import CHOOSE, EVERYTHING, RESULTS, Net, Selection, Unit, numbers, unit_of
from fastrf.cli.printing import note
from fastrf.cli.progress import Progress
from fastrf.errors import InputError

Kind = Literal["erf", "profile", "sections", "growth", "features", "features_3d", "graph", "stack"]

# The options that only some figures have, and which.
_OWN = {
    "unit": ("erf", "profile", "sections", "growth", "features", "features_3d", "stack"),
    "scale": ("erf", "profile", "sections"),
    "background": ("erf",),
    "layers": ("features", "features_3d"),
    "axes": ("features", "features_3d"),
    "with_erf": ("graph",),
    "depth": ("graph",),
    "axis": ("stack",),
    "align": ("stack",),
}


def plot(
    net: Net,
    /,
    *,
    file: Annotated[
        Path, Parameter(name=["--file", "-o"], group=RESULTS, help="Where to: .png, .svg or .pdf.")
    ],
    kind: Annotated[
        Kind, Parameter(group=RESULTS, help=f"What to draw: {', '.join(get_args(Kind))}.")
    ] = "erf",
    width: Annotated[
        str, Parameter(group=RESULTS, help="column (3.4 in), full (7 in), or inches.")
    ] = "full",
    theme: Annotated[
        Literal["light", "dark"], Parameter(group=RESULTS, help="light or dark.")
    ] = "light",
    dpi: Annotated[float, Parameter(group=RESULTS, help="Dots per inch of a .png.")] = 200,
    selection: Selection = EVERYTHING,
    unit: Unit = "center",
    scale: Annotated[
        Literal["both", "linear", "log"] | None,
        Parameter(group=RESULTS, help="erf, profile, sections: linear, log or both."),
    ] = None,
    background: Annotated[
        Path | None, Parameter(group=RESULTS, help="erf: an image to lie under the field.")
    ] = None,
    layers: Annotated[
        str | None,
        Parameter(group=CHOOSE, help="features: nodes or end points, separated by commas."),
    ] = None,
    axes: Annotated[
        str | None, Parameter(group=CHOOSE, help="features: two of three axes, such as 0,2.")
    ] = None,
    with_erf: Annotated[
        bool,
        Parameter(
            group=RESULTS,
            negative="",
            show_default=False,
            help="graph: say the size of each node's ERF too.",
        ),
    ] = False,
    depth: Annotated[
        int | None,
        Parameter(group=RESULTS, help="graph: parts of the names, between dots, told apart."),
    ] = None,
    axis: Annotated[
        int | None, Parameter(group=CHOOSE, help="stack: which axis. Default: the last.")
    ] = None,
    align: Annotated[
        Literal["auto", "center", "index"] | None,
        Parameter(group=RESULTS, help="stack: where a unit's dot is."),
    ] = None,
) -> int:
    """A figure: of a unit's ERF, of its profiles, of sizes over layers, of the network."""
    given = {
        "unit": None if unit == "center" else unit_of(unit),
        "scale": scale,
        "background": background,
        "layers": None if layers is None else [name.strip() for name in layers.split(",")],
        "axes": None if axes is None else numbers(axes, "--axes"),
        "with_erf": with_erf or None,
        "depth": depth,
        "axis": axis,
        "align": align,
    }
    own = {name: value for name, value in given.items() if value is not None}
    for name in own:
        if kind not in _OWN[name]:
            raise InputError(
                f"--{name.replace('_', '-')} is for {', '.join(_OWN[name])}; leave it out for "
                f"--kind {kind}"
            )
    from fastrf import plot as figures

    figures.check_path(file)
    if not file.parent.is_dir():
        raise InputError(f"cannot write {str(file)!r}: there is no folder {str(file.parent)!r}")
    look = {"width": _width(width), "theme": theme}
    with Progress() as progress:
        figure = _figure(kind, selection, net, own, look, progress)
    figures.save(figure, file, dpi=dpi)
    note(f"wrote {file}")
    return 0


def _width(text: str) -> Any:
    try:
        return float(text)
    except ValueError:
        return text


def _figure(
    kind: str,
    selection: Selection,
    net: str,
    own: dict[str, Any],
    look: dict[str, Any],
    progress: Any,
) -> Any:
    from fastrf import plot as figures
    from fastrf.analytic.geometry import receptive_field
    from fastrf.erf import erf

    network, chosen = selection.read(net), selection.options()
    draw = getattr(figures, f"{kind}_figure")
    if kind in ("erf", "profile", "sections"):
        field = erf(network, unit=own.pop("unit", "center"), progress=progress, **chosen)
        if "background" in own:
            own["background"] = _picture(own["background"])
        return draw(field, **own, **look)
    if kind == "growth":
        unit = own.pop("unit", "center")
        return draw(erf(network, unit=unit, layers="all", progress=progress, **chosen), **look)
    place = receptive_field(network, **chosen)
    if kind == "graph":
        fields = None
        if own.pop("with_erf", False):
            fields = erf(network, layers="all", progress=progress, **chosen)
        return draw(place, fields, **own, **look)
    return draw(place, **own, **look)


def _picture(path: Path) -> Any:
    from matplotlib.image import imread

    try:
        return imread(path)
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
