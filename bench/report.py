"""The newest record of every kind as Markdown, for the README, and as pictures.

    python -m bench.report [KIND …]
    python -m bench.report --readme

Prints recorded figures only, each table with the machine and the date that it comes from, and
writes ``results/KIND.svg`` of what there is a picture of. With ``--readme`` it puts the tables that
the README shows in their places there, each between ``<!-- record: KIND -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import bench_all_layers, cost, depth, memory, planner, startup
from bench.plots import PLOTS
from bench.record import RESULTS, duration, newest, table

OURS = ("fastrf first", "fastrf", "fastrf engine")


def peers(results: list[dict[str, Any]]) -> str:
    """All times, and the fastest peer's over our engine's, which does what the peers do."""
    times = {(row["case"], row["who"]): row["seconds"] for row in results}
    others = [who for who in dict.fromkeys(row["who"] for row in results) if who not in OURS]
    rows = []
    for case in dict.fromkeys(row["case"] for row in results):
        found = {who: times[case, who] for who in (*OURS, *others) if (case, who) in times}
        best = min((who for who in found if who not in OURS), key=found.__getitem__)
        cells = [duration(found[who]) if who in found else "" for who in (*OURS, *others)]
        rows.append([case, *cells, f"{found[best] / found['fastrf engine']:.3g}× ({best})"])
    return table(["case", *OURS, *others, "best peer over engine"], rows)


def stencil(results: list[dict[str, Any]]) -> str:
    """Cell updates per second, by library."""
    rate = {(row["case"], row["who"]): row["updates_per_second"] for row in results}
    who = list(dict.fromkeys(row["who"] for row in results))
    rows = []
    for case in dict.fromkeys(row["case"] for row in results):
        cells = [f"{rate[case, w] / 1e9:.2g}" for w in who]
        ratios = [f"{rate[case, who[0]] / rate[case, w]:.3g}×" for w in who[1:]]
        rows.append([case, *cells, *ratios])
    header = ["image", *(f"{w}, 10⁹/s" for w in who), *(f"over {w}" for w in who[1:])]
    return table(header, rows)


def coverage(results: dict[str, Any]) -> str:
    """How many of the libraries' models are imported as they are."""
    rows = [
        [
            name,
            str(own["imported"]),
            str(own["models"]),
            f"{own['imported'] / own['models']:.1%}",
            f"{own['families_imported']} of {len(own['families'])}",
            str(own["global"]),
        ]
        for name, own in results["totals"].items()
    ]
    header = ["models", "imported", "of", "share", "families, whole", 'with `unknown="global"`']
    return table(header, rows)


def engines(results: list[dict[str, Any]]) -> str:
    """Times per case, one column an engine, dtype and number of workers."""
    names = ("engine", "dtype", "workers")
    times = {(r["case"], *(str(r[n]) for n in names)): r["seconds"] for r in results}
    columns = list(dict.fromkeys(tuple(str(row[n]) for n in names) for row in results))
    rows = [
        [case, *(duration(times[case, *c]) if (case, *c) in times else "" for c in columns)]
        for case in dict.fromkeys(row["case"] for row in results)
    ]
    return table(["case", *(" ".join(c) for c in columns)], rows)


def meanfield(results: dict[str, Any]) -> str:
    """Total variations between fields, and their σ."""
    percent = "{:.1%}".format
    first = [
        [
            f"{row['network']}, {row['layer']}",
            percent(row["total_variation"]),
            *(f"{sigma:.2f}" for sigma in row["sigma"]),
        ]
        for row in results["stated"]
    ]
    second = [
        [
            f"{row['layer']}, {row['size']} × {row['size']}",
            *(percent(row[key]) for key in ("from_stated", "from_initialised", "by_chance")),
            f"{row['sigma']:.2f} ± {row['sigma_error']:.2f}",
            f"{row['sigma_stated']:.2f}",
            f"{row['sigma_initialised']:.2f}",
        ]
        for row in results["measured"]
    ]
    head = [
        "measured",
        "from stated",
        "from initialised",
        "by chance",
        "σ",
        "stated",
        "initialised",
    ]
    return "\n\n".join(
        (
            table(["on 224 × 224", "total variation", "σ, stated", "σ, initialised"], first),
            table(head, second),
        )
    )


KINDS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "engines": ("Engines: the whole verb and the pixels, for a network seen before", engines),
    "peers": ("Against what users would run instead (warm medians of one run)", peers),
    "depth": ("Cost per layer against depth", depth.show),
    "cost": ("The planner's constants and forecasts", cost.show),
    "planner": ("The planner's choice on random networks", planner.show),
    "startup": ("Start-up", startup.show),
    "memory": ("Peak memory against the plan", memory.show),
    "stencil": ("Layers of 3 × 3 equal taps on a large image", stencil),
    "all_layers": ("The fields of all layers", bench_all_layers.show),
    "meanfield": ("Stated, initialised and measured fields of ResNets", meanfield),
    "coverage": ("Models of timm and torchvision that are imported", coverage),
}


README = Path(__file__).parents[1] / "README.md"

_PLACE = re.compile(r"(<!-- record: (\w+) -->\n).*?(?=<!-- end -->)", re.DOTALL)


def with_records(text: str) -> str:
    """A page whose places of records hold what the newest of each says."""

    def filled(place: re.Match[str]) -> str:
        record = newest(place[2])
        if record is None:
            raise LookupError(f"nothing is recorded of {place[2]!r}")
        return f"{place[1]}{KINDS[place[2]][1](record['results'])}\n\n{_source(record)}\n"

    return _PLACE.sub(filled, text)


def main(kinds: list[str]) -> int:
    if kinds == ["--readme"]:
        README.write_text(with_records(README.read_text(encoding="utf-8")), encoding="utf-8")
        return 0
    unknown = [kind for kind in kinds if kind not in KINDS]
    if unknown:
        print(f"no record is called {unknown[0]!r}; choose of {', '.join(KINDS)}", file=sys.stderr)
        return 2
    for kind in kinds or KINDS:
        record = newest(kind)
        if record is None:
            print(f"{kind}: nothing recorded yet", file=sys.stderr)
            continue
        title, show = KINDS[kind]
        if kind in PLOTS:
            PLOTS[kind](record["results"], RESULTS / f"{kind}.svg")
        print(f"### {title}\n\n{show(record['results'])}\n\n{_source(record)}\n")
    return 0


def _source(record: dict[str, Any]) -> str:
    machine = record["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    return (
        f"*{record['date']}; {machine['cpu']}, {machine['cores']} cores, "
        f"load {machine['load']} at the end; "
        f"Python {machine['python']}, {versions}.*"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
