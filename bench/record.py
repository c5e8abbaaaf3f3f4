"""Recorded runs: one JSON file a kind and day, with the machine that made it."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results"

PACKAGES = ("fastrf", "numpy", "numba", "scipy", "torch")


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": versions,
    }


def _cpu() -> str:
    """The processor's name; family and model number too, since a virtual machine hides the name."""
    found = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                key, _, value = line.partition(":")
                found.setdefault(key.strip(), value.strip())
    except OSError:
        return platform.processor() or platform.machine()
    name = found.get("model name", platform.machine())
    if "model" in found:
        name += f" (family {found.get('cpu family')}, model {found['model']})"
    return name


def document(kind: str, results: Any) -> dict[str, Any]:
    """What a record holds."""
    date = datetime.now(UTC).date().isoformat()
    return {"kind": kind, "date": date, "machine": machine(), "results": results}


def save(document: dict[str, Any], path: Path) -> None:
    """Writes a record, all or nothing: an older one stays until then."""
    fresh = path.with_suffix(".new")
    fresh.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    os.replace(fresh, path)


def write(kind: str, results: Any) -> Path:
    """Writes ``results/KIND-DATE.json`` and says where."""
    RESULTS.mkdir(exist_ok=True)
    made = document(kind, results)
    path = RESULTS / f"{kind}-{made['date']}.json"
    save(made, path)
    print(f"\nwritten to {path.relative_to(RESULTS.parent.parent)}")
    return path


def newest(kind: str) -> dict[str, Any] | None:
    """The youngest record of a kind."""
    paths = sorted(RESULTS.glob(f"{kind}-*.json"))
    return json.loads(paths[-1].read_text(encoding="utf-8")) if paths else None


def seconds(
    call: Callable[[], Any],
    budget: float = 1.0,
    most: int = 30,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Median time of warm calls, see `rounds_for`. With `time.process_time` for a clock, what one
    thread takes of a core that it shares with other programs."""
    times: list[float] = []
    for _ in range(rounds_for(call, budget, most)):
        start = clock()
        call()
        times.append(clock() - start)
    return median(times)


def rounds_for(call: Callable[[], Any], budget: float = 0.5, most: int = 30) -> int:
    """Rounds that fit into `budget` seconds, at least 3, or 1 of what takes longer than 3 s; the
    calls that find out are the warm-up."""
    start = time.perf_counter()
    call()
    if time.perf_counter() - start < 3:  # it may have compiled something
        start = time.perf_counter()
        call()
    once = time.perf_counter() - start
    return 1 if once > 3 else min(most, max(3, int(budget / once)))


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table: the first column on the left, numbers on the right."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    cells = [header, *rows]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(header))]
    lines = []
    for row in (header, rule, *rows):
        padded = [
            cell.ljust(w) if i == 0 else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def duration(value: float) -> str:
    """Seconds as a reader likes them."""
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if value * factor >= 1:
            return f"{value * factor:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"
