"""Peak memory of every case against the plan's forecast, each in a process of its own.

    python -m bench.memory

The growth of the resident set from before the call to its peak, image included. Linux alone says
what the peak was.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastrf as rf
from bench.cases import BY_NAME, CASES, network_of, plan_of
from bench.record import table, write

LEAST = 8 << 20
"""Below this, the allocator's own habits hide what the engine does."""


def _resident(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"the system does not tell {field}")


def peak(name: str) -> int:
    """Bytes that one field takes at its peak; kernels are compiled and loaded beforehand."""
    case = BY_NAME[name]
    network = network_of(case)
    method = plan_of(case).method
    _ = rf.erf(rf.Sequential(rf.Conv(3), ndim=network.ndim), method=method).image
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak begins anew
    before = _resident("VmRSS")
    _ = rf.erf(network, **case.options).image
    return _resident("VmHWM") - before


def measure() -> list[dict[str, Any]]:
    rows = []
    for case in CASES:
        line = [sys.executable, "-m", "bench.memory", case.name]
        found = subprocess.run(line, capture_output=True, text=True, check=True).stdout
        plan = plan_of(case)
        rows.append(
            {"case": case.name, "engine": plan.method, "plan": plan.memory} | json.loads(found)
        )
    return rows


def show(results: list[dict[str, Any]]) -> str:
    rows = []
    for row in results:
        taken, told = row["peak"], row["plan"]
        sizes = [f"{value / 2**20:.1f} MiB" for value in (taken, told)]
        ratio = f"{taken / told:.2f}" if taken > LEAST else ""
        rows.append([row["case"], row["engine"], *sizes, ratio])
    return table(["case", "engine", "peak", "plan", "peak over plan"], rows)


def main(names: list[str]) -> None:
    if names:
        print(json.dumps({"peak": peak(names[0])}))
        return
    results = measure()
    print(show(results))
    write("memory", results)


if __name__ == "__main__":
    main(sys.argv[1:])
