"""`fastrf erf`: a unit's effective receptive field, or every layer's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from fastrf.cli.options import (
    CHOOSE,
    COMPUTE,
    EVERYTHING,
    RESULTS,
    AsJson,
    MemoryLimit,
    Net,
    Selection,
    Unit,
    Workers,
    bytes_of,
    unit_of,
)
from fastrf.cli.printing import (
    axes,
    grid,
    listed,
    note,
    print_facts,
    print_json,
    print_table,
    show,
    times,
)
from fastrf.cli.progress import Progress
from fastrf.errors import InputError

if TYPE_CHECKING:
    from fastrf.engine.plan import Plan
    from fastrf.erf import ERF
    from fastrf.network import Network


def erf(
    net: Net,
    /,
    *,
    selection: Selection = EVERYTHING,
    unit: Unit = "center",
    channel: Annotated[
        int | None,
        Parameter(group=CHOOSE, help="Of the unit, with --per-channel. Default: all of them."),
    ] = None,
    layers: Annotated[
        str, Parameter(group=CHOOSE, help="last, or all for one line per layer.")
    ] = "last",
    device: Annotated[str, Parameter(group=COMPUTE, help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, Parameter(group=COMPUTE, help="float64 or float32.")] = "float64",
    method: Annotated[
        str, Parameter(group=COMPUTE, help="auto, or an engine that fastrf info names.")
    ] = "auto",
    accuracy: Annotated[
        str, Parameter(group=COMPUTE, help="auto, relative (pixel by pixel) or absolute.")
    ] = "auto",
    tol: Annotated[
        float, Parameter(group=COMPUTE, help="Error allowed, relative to the peak.")
    ] = 1e-12,
    tail: Annotated[
        float | None, Parameter(group=COMPUTE, help="Share of the mass that may be dropped.")
    ] = None,
    workers: Workers = None,
    memory_limit: MemoryLimit = None,
    plan: Annotated[
        bool,
        Parameter(
            group=RESULTS,
            negative="",
            show_default=False,
            help="Print what would be computed, how and at what cost.",
        ),
    ] = False,
    plot: Annotated[
        Path | None, Parameter(group=RESULTS, help="Write a figure: .png, .svg or .pdf.")
    ] = None,
    save: Annotated[
        Path | None, Parameter(group=RESULTS, help="Write image and figures to an .npz file.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """The effective receptive field of a unit: its figures, a plot, a file."""
    if layers == "all" and (plan or plot or save):
        raise InputError("--plan, --plot and --save are for one field; leave out --layers all")
    # What would fail at the end is refused before the work.
    if plot is not None:
        from fastrf.plot import check_path

        check_path(plot)
    for path in (plot, save):
        if path is not None and not path.parent.is_dir():
            raise InputError(f"cannot write {str(path)!r}: there is no folder {str(path.parent)!r}")
    network = selection.read(net)
    computation = {
        "device": device,
        "dtype": dtype,
        "method": method,
        "accuracy": accuracy,
        "tol": tol,
        "tail": tail,
        "workers": workers,
        "memory_limit": bytes_of(memory_limit),
    }
    if plan:
        from fastrf.erf import plan as plan_of

        question = {
            **selection.options(),
            **computation,
            "unit": unit_of(unit),
            "channel": channel,
        }
        return _show_plan(plan_of(network, **question), as_json)
    from fastrf.erf import erf as field_of

    with Progress() as progress:
        options: dict[str, Any] = {
            **selection.options(),
            **computation,
            "layers": layers,
            "channel": channel,
        }
        found: Any = field_of(network, unit=unit_of(unit), progress=progress, **options)
        if layers == "all":
            documents = [field.to_dict() for field in found.values()]
        else:
            documents = [found.to_dict()]
    if layers == "all":
        _show_layers(network, documents, as_json)
        return 0
    if as_json:
        print_json(documents[0])
    else:
        print_facts(erf_facts(found, documents[0]))
    if save is not None:
        found.save(save)
        note(f"wrote {save}")
    if plot is not None:
        from fastrf.plot import erf_figure
        from fastrf.plot import save as save_figure

        save_figure(erf_figure(found), plot)
        note(f"wrote {plot}")
    return 0


def _show_plan(plan: Plan, as_json: bool) -> int:
    if as_json:
        print_json(asdict(plan))
    else:
        show(str(plan))
    return 0


def erf_facts(field: ERF, figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    shares = (f"{float(t):.0%}: {r:.4g}" for t, r in figures["area_ratio"].items())
    luo = [f"{size:.5g} ({kind})" for kind, size in figures["luo_size"].items() if size is not None]
    kurtosis = ["undefined" if k is None else k for k in figures["kurtosis"]]
    hole = "undefined, as the middle of the TRF is a hole"
    fwhm, ratio = figures["fwhm"], figures["ratio"]
    facts = [
        ("network", f"{field.network.name or 'network'}, {grid(field.input_size)}"),
        ("unit", f"{listed(field.unit)} of {field.node} on {field.input}"),
        ("image", f"{times(field.shape)} pixels from {listed(field.origin)}"),
        ("mean", listed(figures["mean"])),
        ("σ", f"{listed(figures['std'])} pixels"),
        ("excess kurtosis", listed(kurtosis)),
        ("Luo's size", f"{', '.join(luo)} pixels" if luo else hole),
        ("area ratio", ", ".join(shares)),
        ("FWHM", hole if fwhm is None else f"{listed(fwhm)} pixels"),
        ("TRF", f"{times(figures['trf_size'])} pixels"),
        ("Luo's size / TRF", hole if ratio is None else f"{ratio:.4g}"),
        ("log gain", f"{field.log_gain:.6g}"),
    ]
    if field.draws is None:
        facts.append(("lost mass", f"{field.lost_mass:.4g}"))
    if field.dropped_mass:
        facts.append(("dropped mass", f"{field.dropped_mass:.4g}"))
    facts.append(("exact", "yes" if field.exact else "no"))
    facts.extend(("assumed", text) for text in field.assumptions)
    facts.extend(("warning", text) for text in field.warnings)
    return facts


def _show_layers(network: Network, documents: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "network": network.name,
                "fingerprint": network.fingerprint,
                "layers": [
                    {k: v for k, v in d.items() if k not in ("network", "fingerprint")}
                    for d in documents
                ],
            }
        )
        return
    header = ["node", "TRF", "σ", "Luo's size", "FWHM", "lost mass", "log gain"]
    rows = [
        [
            d["node"],
            axes(d["trf_size"]),
            axes([f"{s:.4g}" for s in d["std"]]),
            "–" if (luo := d["luo_size"]["amplitude"]) is None else f"{luo:.4g}",
            "–" if d["fwhm"] is None else axes([f"{w:.4g}" for w in d["fwhm"]]),
            f"{d['lost_mass']:.3g}",
            f"{d['log_gain']:.4g}",
        ]
        for d in documents
    ]
    print_table(header, rows, ("log gain", "FWHM", "lost mass"))
