"""`fastrf bench`: this machine's times."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from fastrf.cli.exits import FAILED
from fastrf.cli.options import COMPUTE, AsJson, Workers
from fastrf.cli.printing import (
    duration,
    figure,
    percent,
    print_facts,
    print_json,
    print_table,
    show,
)
from fastrf.cli.progress import Progress

if TYPE_CHECKING:
    from fastrf.benchmark import Benchmark, Measurement


def bench(
    *,
    quick: Annotated[
        bool,
        Parameter(
            group=COMPUTE, negative="", show_default=False, help="Smaller cases: some seconds."
        ),
    ] = False,
    device: Annotated[
        str,
        Parameter(group=COMPUTE, help="cpu, cuda or cuda:N; auto: the CPU, and a GPU if any."),
    ] = "auto",
    dtype: Annotated[
        str | None, Parameter(group=COMPUTE, help="float64 or float32. Default: both.")
    ] = None,
    workers: Workers = None,
    as_json: AsJson = False,
) -> int:
    """CPU against GPU against other libraries; exits 1 where results disagree."""
    from fastrf.benchmark import QUICK, Sizes, benchmark

    with Progress() as progress:
        sizes = QUICK if quick else Sizes()
        found = benchmark(
            sizes=sizes, device=device, dtype=dtype, workers=workers, progress=progress
        )
    if as_json:
        print_json(found.to_dict())
    else:
        _show_benchmark(found)
    return 0 if found else FAILED


def _time(m: Measurement) -> str:
    if m.seconds_at_least is not None:
        return f"> {duration(m.seconds_at_least)}"
    return "not measured" if m.not_measured else duration(m.seconds)


_FIGURES: tuple[tuple[str, Callable[[Measurement], str]], ...] = (
    ("case", lambda m: m.case),
    ("by", lambda m: f"{m.by}, {m.engine}" if m.engine else m.by),
    ("device", lambda m: m.device),
    ("dtype", lambda m: m.dtype),
    ("time", _time),
    ("with transfer", lambda m: duration(m.seconds_with_transfer)),
    ("first call", lambda m: duration(m.first_call_seconds)),
    ("updates/s", lambda m: figure(m.updates_per_second)),
    ("copy", lambda m: percent(m.copy_share)),
    ("peak", lambda m: percent(m.arithmetic_share)),
    ("pixel error", lambda m: figure(m.relative_error)),
    ("error/peak", lambda m: figure(m.peak_error)),
    ("tolerance", lambda m: figure(m.tolerance)),
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
    print_facts(facts)
    show("")
    rows = [[cell(m) for _, cell in _FIGURES] for m in found.measurements]
    print_table([name for name, _ in _FIGURES], rows, _LOSABLE_FIGURES)
    show("")
    show("copy: time of a copy of the result, over the time; peak: multiply-adds, over registers'")
    reasons: dict[str, list[Measurement]] = {}
    for m in found.measurements:
        if m.not_measured:
            reasons.setdefault(f"{m.device}, {m.by}: not measured: {m.not_measured}", []).append(m)
    for reason, those in reasons.items():
        show(f"{reason} ({', '.join(dict.fromkeys(m.case for m in those))})")
    failed = [m for m in found.measurements if m.ok is False]
    for m in failed:
        error = f"{figure(m.relative_error)} of a pixel, {figure(m.peak_error)} of the peak"
        show(f"{m.case}, {m.device}, {m.dtype}: off by {error}, bound {figure(m.tolerance)}")
    compared = sum(m.ok is not None for m in found.measurements)
    if failed:
        show(f"{len(failed)} of {compared} results disagree with the CPU's in float64")
    else:
        show(f"all {compared} results agree with the CPU's in float64")
