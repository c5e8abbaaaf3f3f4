"""The command line: `fastrf rf`, `erf`, `check`, `bench` and `info`.

Results go to standard output, everything else (progress, notes, errors) to standard error.
Exit codes: 0 done, 1 a check failed, 2 bad input; an interrupt gives 130, and a reader that
closed the pipe 141, as the shell reports the two signals.

With ``--json`` a command prints one JSON document with the names of the Python attributes. Exact
numbers are JSON numbers where these are exact (2, 0.5) and else texts such as "1/3"; what is
infinite or undefined is null.

NumPy, Numba and matplotlib are imported by the commands that use them, so that tables and errors
come at once.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from io import StringIO
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from cyclopts import App, CycloptsError, Group, Parameter
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

import fastrf
from fastrf.errors import FastrfError, InputError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from fastrf.analytic.geometry import LayerField, ReceptiveField
    from fastrf.benchmark import Benchmark, Measurement
    from fastrf.check import CheckReport
    from fastrf.engine.plan import Plan
    from fastrf.erf import ERF
    from fastrf.network import Network

FAILED, BAD_INPUT, INTERRUPTED, PIPE_CLOSED = 1, 2, 130, 141
"""Exit codes beside 0; the last two are 128 plus the number of the signal."""

PATIENCE = 1.0
"""Seconds of work before a progress bar appears."""

UNLIMITED = 10_000
"""Characters a line may have where no terminal limits it."""

FILES = (".toml", ".json", ".onnx")

OPTIONAL = {
    "onnx": "onnx",
    "torch": "torch",
    "matplotlib": "plot",
    "cupy-cuda12x": "cuda12",
    "cupy-cuda13x": "cuda13",
    "distributed": "dask",
    "pandas": "data",
    "pyarrow": "data",
}
"""Optional distributions and the extra of fastrf that installs each."""

_EXAMPLES = f"""NET is
  a zoo network            resnet50, "plain(1000, 3)", "unet(4, 2)"
  a network file           {", ".join(f"model{suffix}" for suffix in FILES)}
  Python code              torchvision.models:resnet50, or any package.module:callable that
                           returns a torch.nn.Module or a fastrf.Network

Examples:
  fastrf rf resnet50 --input-size 224
  fastrf rf model.onnx --json
  fastrf erf resnet50 --input-size 224 --plot erf.png
  fastrf erf "plain(1000, 3)" --save erf.npz
  fastrf check resnet50
  fastrf bench --quick"""

_choose = Group("Selection", sort_key=1)
_compute = Group("Computation", sort_key=2)
_results = Group("Results", sort_key=3)


# --- options --------------------------------------------------------------------------------


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which map of the network, seen from which input; shared by `rf`, `erf` and `check`."""

    output: Annotated[
        str | None,
        Parameter(
            group=_choose,
            help="Node or end point. Default: the network's output, or the last map before it "
            "lost its spatial extent.",
        ),
    ] = None
    input: Annotated[
        str | None, Parameter(group=_choose, help="Input map, where the network has several.")
    ] = None
    input_size: Annotated[
        str | None,
        Parameter(
            group=_choose,
            help="Pixels of the input, for all axes or per axis: 224, 224,320 or 224x320. "
            "Default: the unbounded grid.",
        ),
    ] = None
    ignore_global: Annotated[
        bool,
        Parameter(
            group=_choose,
            negative="",
            show_default=False,
            help="Leave out paths through global layers (attention…).",
        ),
    ] = False
    unknown: Annotated[
        str,
        Parameter(
            group=_choose,
            help="What an operator of an ONNX model or a torch module that fastrf does not know "
            "becomes: error, identity or global.",
        ),
    ] = "error"
    channels: Annotated[
        int | None,
        Parameter(
            group=_choose,
            help="Channels of a torch module's input. Default: what its first convolution reads, "
            "else 3.",
        ),
    ] = None

    @property
    def size(self) -> int | tuple[int, ...] | None:
        """`input_size` as numbers."""
        return None if self.input_size is None else _numbers(self.input_size, "--input-size")

    def read(self, net: str) -> Network:
        """The network that NET names.

        Raises:
            InputError: it names none, or the file cannot be read.
        """
        suffix = Path(net).suffix.lower()
        policy: Any = self.unknown
        if suffix == ".onnx":
            from fastrf.importers.onnx import from_onnx

            return from_onnx(net, unknown=policy, input_size=self.size)
        if _named_by_code(net):
            from fastrf.importers.named import from_name

            return from_name(net, input_size=self.size, channels=self.channels, unknown=policy)
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


_EVERYTHING = Selection()

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
        group=_results,
        help="Print one JSON document.",
    ),
]
Unit = Annotated[
    str,
    Parameter(
        group=_choose,
        allow_leading_hyphen=True,
        help="center, or one index per axis, such as 3,4.",
    ),
]
Workers = Annotated[int | None, Parameter(group=_compute, help="Threads. Default: as many as pay.")]
MemoryLimit = Annotated[
    str | None,
    Parameter(
        group=_compute,
        help="Largest memory a plan may need: bytes, or 500M, 8G. Default: half of what is free.",
    ),
]


def _named_by_code(net: str) -> bool:
    """Whether NET reads "package.module:callable"."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*", net) is not None


def _numbers(text: str, option: str) -> int | tuple[int, ...]:
    """Whole numbers that "," or "x" separates; a single one stands for itself."""
    parts = re.split(r"\s*[,x×]\s*", text.strip())
    if not all(re.fullmatch(r"[+-]?\d{1,18}", part) for part in parts):
        raise InputError(
            f"{option} {text!r} cannot be read; write one whole number, or one per axis such as "
            f"3,4 or 3x4"
        )
    values = tuple(map(int, parts))
    return values[0] if len(values) == 1 else values


def _unit(text: str) -> str | int | tuple[int, ...]:
    return text if text.isidentifier() else _numbers(text, "--unit")


def _bytes(text: str | None) -> int | None:
    """A number of bytes with an optional binary suffix."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)\s*([KMGT]?)(?:i?B)?", text.strip(), re.I)
    if found is None:
        raise InputError(f"--memory-limit {text!r} cannot be read; write bytes, or 500M, 8G")
    power = " KMGT".index(found[2].upper() or " ")
    return int(Fraction(found[1]) * 1024**power)


# --- commands -------------------------------------------------------------------------------

app = App(
    name="fastrf",
    help="Theoretical and effective receptive fields of convolutional networks.",
    help_epilogue=_EXAMPLES,
    help_format="plaintext",
    version=fastrf.__version__,
)


@app.command(name="rf")
def rf(
    net: Net,
    /,
    *,
    selection: Selection = _EVERYTHING,
    convention: Annotated[
        Literal["distill", "dang", "both"],
        Parameter(
            group=_results,
            help="Whose numbers the table shows: Distill's (Araujo, Norris and Sim: padding, "
            "center), Dang Ha The Hien's (start) or both. JSON always has both.",
        ),
    ] = "both",
    as_json: AsJson = False,
) -> int:
    """The theoretical receptive field of every layer."""
    from fastrf.analytic.geometry import receptive_field

    network = selection.read(net)
    with _Progress():
        field = receptive_field(network, **selection.options())
        rows = field.layers
    if as_json:
        _print_json(_field_document(field))
        return 0
    columns = [c for c in _COLUMNS if convention in ("both", *c.conventions)]
    if field.input_size is None:
        columns = [c for c in columns if c.name != "shape"]
    grid = _grid(field.input_size)
    _print(f"{field.network.name or net}: {len(field.network)} layers, {grid}\n")
    _print_table([c.name for c in columns], [[c.cell(r) for c in columns] for r in rows], _LOSABLE)
    _print("")
    _print_facts(_field_facts(field, convention))
    return 0


@app.command(name="erf")
def erf(
    net: Net,
    /,
    *,
    selection: Selection = _EVERYTHING,
    unit: Unit = "center",
    layers: Annotated[
        str, Parameter(group=_choose, help="last, or all for one line per layer.")
    ] = "last",
    device: Annotated[str, Parameter(group=_compute, help="auto, cpu, cuda or cuda:N.")] = "auto",
    dtype: Annotated[str, Parameter(group=_compute, help="float64 or float32.")] = "float64",
    method: Annotated[
        str, Parameter(group=_compute, help="auto, or an engine that fastrf info names.")
    ] = "auto",
    accuracy: Annotated[
        str, Parameter(group=_compute, help="auto, relative (pixel by pixel) or absolute.")
    ] = "auto",
    tol: Annotated[
        float, Parameter(group=_compute, help="Error allowed, relative to the peak.")
    ] = 1e-12,
    tail: Annotated[
        float | None, Parameter(group=_compute, help="Share of the mass that may be dropped.")
    ] = None,
    workers: Workers = None,
    memory_limit: MemoryLimit = None,
    plan: Annotated[
        bool,
        Parameter(
            group=_results,
            negative="",
            show_default=False,
            help="Print what would be computed, how and at what cost.",
        ),
    ] = False,
    plot: Annotated[
        Path | None, Parameter(group=_results, help="Write a figure: .png, .svg or .pdf.")
    ] = None,
    save: Annotated[
        Path | None, Parameter(group=_results, help="Write image and figures to an .npz file.")
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
        "memory_limit": _bytes(memory_limit),
    }
    if plan:
        from fastrf.erf import plan as plan_of

        question = {**selection.options(), **computation, "unit": _unit(unit)}
        return _show_plan(plan_of(network, **question), as_json)
    from fastrf.erf import erf as field_of

    with _Progress() as progress:
        options: dict[str, Any] = {**selection.options(), **computation, "layers": layers}
        found: Any = field_of(network, unit=_unit(unit), progress=progress, **options)
        if layers == "all":
            documents = [field.to_dict() for field in found.values()]
        else:
            documents = [found.to_dict()]
    if layers == "all":
        _show_layers(network, documents, as_json)
        return 0
    if as_json:
        _print_json(documents[0])
    else:
        _print_facts(_erf_facts(found, documents[0]))
    if save is not None:
        found.save(save)
        _note(f"wrote {save}")
    if plot is not None:
        from fastrf.plot import save as save_plot

        save_plot(found, plot)
        _note(f"wrote {plot}")
    return 0


@app.command(name="check")
def check(
    net: Net,
    /,
    *,
    selection: Selection = _EVERYTHING,
    unit: Unit = "center",
    workers: Workers = None,
    memory_limit: MemoryLimit = None,
    as_json: AsJson = False,
) -> int:
    """Every engine against independent formulas; exits 1 where one disagrees."""
    from fastrf.check import check as cross_check

    network = selection.read(net)
    with _Progress():
        report = cross_check(
            network,
            unit=_unit(unit),
            workers=workers,
            memory_limit=_bytes(memory_limit),
            **selection.options(),
        )
    if as_json:
        _print_json(report.to_dict())
    else:
        _show_check(report)
    return 0 if report else FAILED


@app.command(name="bench")
def bench(
    *,
    quick: Annotated[
        bool,
        Parameter(
            group=_compute, negative="", show_default=False, help="Smaller cases: some seconds."
        ),
    ] = False,
    device: Annotated[
        str,
        Parameter(group=_compute, help="cpu, cuda or cuda:N; auto: the CPU, and a GPU if any."),
    ] = "auto",
    dtype: Annotated[
        str | None, Parameter(group=_compute, help="float64 or float32. Default: both.")
    ] = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> int:
    """CPU against GPU against other libraries; exits 1 where results disagree."""
    from fastrf.benchmark import QUICK, Sizes, benchmark

    with _Progress() as progress:
        sizes = QUICK if quick else Sizes()
        found = benchmark(
            sizes=sizes, device=device, dtype=dtype, workers=workers, progress=progress
        )
    if as_json:
        _print_json(found.to_dict())
    else:
        _show_benchmark(found)
    return 0 if found else FAILED


@app.command(name="info")
def info(*, as_json: AsJson = False) -> int:
    """Versions, devices and caches."""
    found = _information()
    if as_json:
        _print_json(found)
        return 0
    facts = [("fastrf", found["fastrf"]), ("python", found["python"])]
    facts += [("platform", found["platform"])]
    for name, version in found["packages"].items():
        absent = f'not installed; pip install "fastrf[{OPTIONAL.get(name)}]"'
        facts.append((name, version or absent))
    facts.append(("devices", ", ".join(found["devices"])))
    if found["no_gpu"]:
        facts.append(("no GPU", found["no_gpu"]))
    facts.append(("engines", ", ".join(found["engines"])))
    facts.append(("cores", str(found["cores"])))
    facts.append(("kernel cache", found["kernel_cache"] or "none: no writable folder"))
    _print_facts(facts)
    return 0


# --- rf -------------------------------------------------------------------------------------


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
        return _axes(value, self.between)


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
    facts.append(("stride", _axes(field.stride, "×")))
    if convention != "dang":
        facts.append(("padding", _axes(field.padding, ", ")))
        facts.append(("center", f"{_axes(field.center, ', ')} (first pixel at 0; Distill)"))
    if convention != "distill":
        facts.append(("start", f"{_axes(field.start, ', ')} (first pixel at 1/2; Dang)"))
    if field.map_size is not None:
        facts.append(("map", _times(field.map_size)))
    if field.beyond is not None:
        beyond = " and ".join(_axes(ends, ", ") for ends in zip(*field.beyond, strict=True))
        facts.append(("beyond", f"{beyond} pixels before and behind the image"))
    if max(field.period) > 1:
        facts.append(("phases", _axes(field.period)))
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


# --- erf ------------------------------------------------------------------------------------


def _show_plan(plan: Plan, as_json: bool) -> int:
    if as_json:
        _print_json(asdict(plan))
    else:
        _print(str(plan))
    return 0


def _erf_facts(field: ERF, figures: Mapping[str, Any]) -> list[tuple[str, str]]:
    shares = (f"{float(t):.0%}: {r:.4g}" for t, r in figures["area_ratio"].items())
    luo = (f"{size:.5g} ({kind})" for kind, size in figures["luo_size"].items())
    kurtosis = ["undefined" if k is None else k for k in figures["kurtosis"]]
    facts = [
        ("network", f"{field.network.name or 'network'}, {_grid(field.input_size)}"),
        ("unit", f"{_listed(field.unit)} of {field.node} on {field.input}"),
        ("image", f"{_times(field.image.shape)} pixels from {_listed(field.origin)}"),
        ("mean", _listed(figures["mean"])),
        ("σ", f"{_listed(figures['std'])} pixels"),
        ("excess kurtosis", _listed(kurtosis)),
        ("Luo's size", f"{', '.join(luo)} pixels"),
        ("area ratio", ", ".join(shares)),
        ("FWHM", f"{_listed(figures['fwhm'])} pixels"),
        ("TRF", f"{_times(figures['trf_size'])} pixels"),
        ("Luo's size / TRF", f"{figures['ratio']:.4g}"),
        ("log gain", f"{field.log_gain:.6g}"),
        ("lost mass", f"{field.lost_mass:.4g}"),
    ]
    if field.dropped_mass:
        facts.append(("dropped mass", f"{field.dropped_mass:.4g}"))
    facts.append(("exact", "yes" if field.exact else "no"))
    facts.extend(("assumed", text) for text in field.assumptions)
    facts.extend(("warning", text) for text in field.warnings)
    return facts


def _show_layers(network: Network, documents: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    if as_json:
        _print_json(
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
            _axes(d["trf_size"]),
            _axes([f"{s:.4g}" for s in d["std"]]),
            f"{d['luo_size']['amplitude']:.4g}",
            _axes([f"{w:.4g}" for w in d["fwhm"]]),
            f"{d['lost_mass']:.3g}",
            f"{d['log_gain']:.4g}",
        ]
        for d in documents
    ]
    _print_table(header, rows, ("log gain", "FWHM", "lost mass"))


# --- check ----------------------------------------------------------------------------------


_BESIDE = 53
"""Characters of the columns ok, engine, dtype, grid and error."""


def _show_check(report: CheckReport) -> None:
    header = ["quantity", "ok", "engine", "dtype", "grid", "error", "tolerance", "device"]
    # Rather shortened than without the columns that tell rows apart.
    room = max(_width() - _BESIDE, 20)
    rows = [
        [
            _shortened(row.quantity, room),
            "yes" if row.ok else "NO",
            row.engine,
            row.dtype,
            row.grid,
            f"{row.error:.2g}",
            f"{row.tolerance:.2g}",
            row.device,
        ]
        for row in report.rows
    ]
    _print(f"{report.network}, {report.node}\n")
    _print_table(header, rows, ("device", "tolerance", "grid", "dtype"))
    _print("")
    failed = [row for row in report.rows if not row.ok]
    for row in failed:
        _print(f"{row.quantity} ({row.device}, {row.engine}, {row.dtype}, {row.grid}):")
        _print(f"  is {row.value}, expected {row.expected}")
    for reason in report.skipped:
        _print(f"not compared: {reason}")
    total = len(report.rows)
    _print(f"{len(failed)} of {total} disagree" if failed else f"all {total} comparisons agree")


# --- bench ----------------------------------------------------------------------------------


def _time(m: Measurement) -> str:
    if m.seconds_at_least is not None:
        return f"> {_duration(m.seconds_at_least)}"
    return "not measured" if m.not_measured else _duration(m.seconds)


_FIGURES: tuple[tuple[str, Callable[[Measurement], str]], ...] = (
    ("case", lambda m: m.case),
    ("by", lambda m: f"{m.by}, {m.engine}" if m.engine else m.by),
    ("device", lambda m: m.device),
    ("dtype", lambda m: m.dtype),
    ("time", _time),
    ("with transfer", lambda m: _duration(m.seconds_with_transfer)),
    ("first call", lambda m: _duration(m.first_call_seconds)),
    ("updates/s", lambda m: _figure(m.updates_per_second)),
    ("copy", lambda m: _percent(m.copy_share)),
    ("peak", lambda m: _percent(m.arithmetic_share)),
    ("pixel error", lambda m: _figure(m.relative_error)),
    ("error/peak", lambda m: _figure(m.peak_error)),
    ("tolerance", lambda m: _figure(m.tolerance)),
    ("ok", lambda m: "–" if m.ok is None else "yes" if m.ok else "NO"),
)
"""The columns of the table of measurements."""

_LOSABLE_FIGURES = (
    *("tolerance", "with transfer", "first call", "error/peak", "pixel error", "copy", "peak"),
    *("device", "updates/s", "dtype", "ok"),
)


def _show_benchmark(found: Benchmark) -> None:
    machine = found.machine
    facts = [("machine", f"{machine['processor']}, {machine['cores']} cores")]
    facts.append(("GPU", machine["gpu"] or f"not measured: {machine['no_gpu'] or 'not asked for'}"))
    facts += list(found.cases.items())
    _print_facts(facts)
    _print("")
    rows = [[cell(m) for _, cell in _FIGURES] for m in found.measurements]
    _print_table([name for name, _ in _FIGURES], rows, _LOSABLE_FIGURES)
    _print("")
    _print(
        "copy: time of a copy of the result, over the time; peak: multiply-adds, over registers'"
    )
    reasons: dict[str, list[Measurement]] = {}
    for m in found.measurements:
        if m.not_measured:
            reasons.setdefault(f"{m.device}, {m.by}: not measured: {m.not_measured}", []).append(m)
    for reason, those in reasons.items():
        _print(f"{reason} ({', '.join(dict.fromkeys(m.case for m in those))})")
    failed = [m for m in found.measurements if m.ok is False]
    for m in failed:
        error = f"{_figure(m.relative_error)} of a pixel, {_figure(m.peak_error)} of the peak"
        _print(f"{m.case}, {m.device}, {m.dtype}: off by {error}, bound {_figure(m.tolerance)}")
    compared = sum(m.ok is not None for m in found.measurements)
    if failed:
        _print(f"{len(failed)} of {compared} results disagree with the CPU's in float64")
    else:
        _print(f"all {compared} results agree with the CPU's in float64")


def _figure(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.3g}%"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


# --- info -----------------------------------------------------------------------------------


def _information() -> dict[str, Any]:
    import platform
    from importlib import metadata

    from fastrf.device import devices, gpu_at_hand
    from fastrf.engine import METHODS

    def version(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    needed = ("numpy", "numba", "scipy", "cyclopts", "rich")
    return {
        "fastrf": fastrf.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: version(name) for name in (*needed, *OPTIONAL)},
        "devices": devices(),
        "no_gpu": gpu_at_hand(),
        "engines": list(METHODS),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "kernel_cache": _kernel_cache(),
    }


def _kernel_cache() -> str | None:
    """The folder in which Numba keeps compiled kernels; None where it can write to none."""
    from fastrf.kernels.cpu import _windows

    compiled = (value for value in vars(_windows).values() if hasattr(value, "stats"))
    path = next(compiled).stats.cache_path
    return None if path is None else str(path)


# --- printing -------------------------------------------------------------------------------


def _axes(values: Sequence[Any], between: str = "×") -> str:
    """One value per axis; a single one where all axes agree."""
    texts = ["–" if v is None else str(v) for v in values]
    return texts[0] if len(set(texts)) == 1 else between.join(texts)


def _times(values: Sequence[Any]) -> str:
    return " × ".join(map(str, values))


def _grid(input_size: Sequence[int] | None) -> str:
    return "unbounded grid" if input_size is None else f"input {_times(input_size)}"


def _listed(values: Sequence[Any]) -> str:
    texts = [f"{v:.6g}" if isinstance(v, float) else str(v) for v in values]
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"


def _width() -> int:
    """Characters per line: the terminal's, or what COLUMNS says."""
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS"):
        return UNLIMITED
    return max(shutil.get_terminal_size().columns, 20)


def _print(content: RenderableType) -> None:
    """Writes to standard output; rich only lays out, so that a closed pipe ends quietly."""
    styled = sys.stdout.isatty()
    page = StringIO()
    console = Console(
        file=page,
        width=_width(),
        force_terminal=styled,
        color_system="auto" if styled else None,
        highlight=False,
        emoji=False,
    )
    console.print(Text(content) if isinstance(content, str) else content)
    sys.stdout.writelines(f"{line.rstrip()}\n" for line in page.getvalue().splitlines())


def _print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], losable: tuple[str, ...]
) -> None:
    """A table, words to the left and numbers to the right, at most as wide as the terminal.

    Too wide a table loses the `losable` columns one after the other; then the first column's
    entries are shortened in the middle.
    """
    width, gap = _width(), 2
    kept = list(range(len(header)))
    widths = [max(map(cell_len, column)) for column in zip(header, *rows, strict=True)]

    def total() -> int:
        return sum(widths[i] + gap for i in kept) - gap

    lost = []
    for name in losable:
        if total() <= width:
            break
        if name in header:
            kept.remove(header.index(name))
            lost.append(name)
    first = max(widths[0] - max(total() - width, 0), 8)
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
    for i in kept:
        words = i == 0 or all(row[i][:1].isalpha() for row in rows)
        table.add_column(header[i], justify="left" if words else "right", no_wrap=True)
    for row in rows:
        cells = [_shortened(row[0], first), *(row[i] for i in kept[1:])]
        table.add_row(*map(Text, cells))
    _print(table)
    if lost:
        _note(f"left out to fit {width} characters: {', '.join(lost)} (--json has everything)")


def _shortened(text: str, width: int) -> str:
    if len(text) <= width:
        return text
    head = (width - 1) // 2
    return f"{text[:head]}…{text[len(text) - (width - 1 - head) :]}"


def _print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Names and values in two columns; long values continue below themselves."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts:
        table.add_row(Text(name), Text(value))
    _print(table)


def _print_json(document: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(_plain(document), indent=2, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    """`value` in the types of JSON; see the module's docstring for exact numbers."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Fraction):
        if value.denominator == 1:
            return value.numerator
        binary = float(value)
        return binary if Fraction(binary) == value else str(value)
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _note(text: str) -> None:
    sys.stderr.write(f"fastrf: {_one_line(text)}\n")


def _one_line(text: object) -> str:
    """The text on one line, without characters that steer a terminal."""
    line = " ".join(str(text).split())
    return "".join(c if c.isprintable() else "�" for c in line)


class _Progress:
    """A progress bar on standard error for work over a second; none where that is no terminal.

    A timer shows it, so that it also appears while the first kernels compile.
    """

    def __init__(self) -> None:
        self._share: float | None = None
        self._done = False
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._lock = threading.Lock()
        self._timer = threading.Timer(PATIENCE, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            self._timer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._timer.cancel()
        with self._lock:
            self._done = True
            if self._bar is not None:
                self._bar.stop()

    def __call__(self, share: float) -> None:
        """Takes the share of the work that is done."""
        with self._lock:
            self._share = share
            if self._bar is not None and self._task is not None:
                self._bar.update(self._task, completed=share, total=1.0)

    def _show(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        with self._lock:
            if self._done:
                return  # the work ended while the timer fired
            columns = (TextColumn("computing"), BarColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task("", total=None)
            if self._share is not None:
                self._bar.update(self._task, completed=self._share, total=1.0)
            self._bar.start()


# --- entry ----------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code.

    Args:
        arguments: words behind "fastrf"; default: those of the process.
    """
    for stream in (sys.stdout, sys.stderr):
        # Where the encoding lacks "×" or "σ", "?" stands in.
        reconfigure: Callable[..., None] | None = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="replace")
    try:
        command, bound, _ = app.parse_args(
            sys.argv[1:] if arguments is None else list(arguments),
            exit_on_error=False,
            print_error=False,
        )
        code = command(*bound.args, **bound.kwargs)
        sys.stdout.flush()
    except (FastrfError, CycloptsError) as error:
        return _refused(error)
    except KeyboardInterrupt:
        sys.stderr.write("fastrf: interrupted\n")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has enough. Python would complain once more when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return PIPE_CLOSED
    except OSError as error:
        return _refused(f"{error.filename or 'output'}: {error.strerror or error}")
    except MemoryError:
        return _refused("memory ran out; give --input-size, --tail or --dtype float32")
    return code if isinstance(code, int) else 0


def _refused(error: object) -> int:
    sys.stderr.write(f"fastrf: error: {_one_line(error)}\n")
    return BAD_INPUT
