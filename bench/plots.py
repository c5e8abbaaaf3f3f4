"""Pictures of recorded runs, written beside them by ``python -m bench.report``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

Results = Any


def depth(results: Results, path: Path) -> None:
    """Time against depth, with the slope of each curve."""
    from bench.depth import exponent

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    rows = results["stacks"]
    for name in dict.fromkeys(row["stack"] for row in rows):
        mine = [row for row in rows if row["stack"] == name]
        label = f"{name} (exponent {exponent(mine):.2f})"
        times = [1e3 * row["seconds"] for row in mine]
        axes.loglog([row["layers"] for row in mine], times, "o-", markersize=4, label=label)
    axes.set(xlabel="layers", ylabel="milliseconds of one core", title="A field seen before")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=7)
    figure.savefig(path)


def peers(results: Results, path: Path) -> None:
    """Every peer's time over that of our engine, case by case."""
    times = {(row["case"], row["who"]): row["seconds"] for row in results}
    cases = list(dict.fromkeys(row["case"] for row in results))[::-1]
    others = [w for w in dict.fromkeys(row["who"] for row in results) if not w.startswith("fastrf")]
    figure = Figure(figsize=(7, 5.5), layout="constrained")
    axes = figure.add_subplot()
    for who, marker in zip(others, "os^vD<>P", strict=False):
        found = [
            (times[case, who] / times[case, "fastrf engine"], number)
            for number, case in enumerate(cases)
            if (case, who) in times
        ]
        axes.scatter(*zip(*found, strict=True), s=30, marker=marker, label=who)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_yticks(range(len(cases)), cases)
    axes.set(xlabel="time over that of fastrf's engine", title="Against what users would run")
    axes.grid(axis="x", alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path)


PLOTS = {"depth": depth, "peers": peers}
