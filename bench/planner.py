"""How good the planner's choice is: random networks, every engine that serves them timed.

    python -m bench.planner [COUNT]

Counted is the share of networks for which the engine that `method="auto"` takes is within a factor
of 1.5 of the quickest engine that is right pixel by pixel; and the planner's own time.
"""

from __future__ import annotations

import random
import sys
import time
from statistics import median
from typing import Any

import numpy as np
from fastrf.kernels import load

import fastrf as rf
from bench.record import duration, table, write
from fastrf.engine import ENGINES, Engine
from fastrf.errors import InputError
from fastrf.lowering import lower

CLOSE = 1.5
TOL = 1e-12
PATIENCE = 0.3
"""Seconds up to which an engine is timed; one that is expected to take longer is not the best."""


def network(rng: random.Random) -> tuple[rf.Network, int | None]:
    """A random network of convolutions, pooling, residual and dense blocks, and an input size."""
    ndim = rng.choice((1, 1, 2, 2, 2, 3))

    def conv(stride: bool) -> rf.Conv:
        kernel, dilation = rng.choice((1, 3, 3, 3, 5, 7)), rng.choice((1, 1, 1, 2))
        step = rng.choice((1, 1, 1, 2)) if stride else 1
        return rf.Conv(kernel, step, dilation, dilation * (kernel - 1) // 2)

    def block() -> Any:
        kind = rng.random()
        if kind < 0.5:
            return [conv(False)] * rng.randint(1, 12)
        if kind < 0.7:
            return [rf.Residual(*[conv(False)] * rng.randint(1, 2))] * rng.randint(1, 12)
        if kind < 0.8:
            return rf.Parallel(conv(False), conv(False), None, merge="concat")
        return [conv(True)] if kind < 0.9 else [rf.MaxPool(3, stride=2, padding=1)]

    blocks = [block() for _ in range(rng.randint(1, 6))]
    size = rng.choice((None, None, 64 if ndim < 3 else 24))
    return rf.Sequential(*blocks, ndim=ndim), size


def compare(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """For each network the plan's engine and time, and those of every engine in time."""
    rng, rows = random.Random(seed), []
    while len(rows) < count:
        net, size = network(rng)
        try:
            plan = rf.plan(net, input_size=size, workers=1, accuracy="relative")
        except InputError:
            continue  # a map shrank away, or merged maps differ in size
        start = time.process_time()
        for unit in range(3):
            rf.plan(net, unit=unit if size is None else 0, input_size=size, workers=1)
        planning = (time.process_time() - start) / 3
        graph = lower(net, size)
        where = (graph, plan.node, plan.unit, plan.input)
        times = {
            name: _time(engine, where)
            for name, engine in ENGINES.items()
            if engine.accuracy == "relative"
            and engine.refuses(*where, TOL) is None
            and engine.forecast(*where, np.dtype(np.float64), None, TOL).seconds(1) < PATIENCE
        }
        if plan.engine in times:
            rows.append({"engine": plan.engine, "times": times, "planning": planning})
    return rows


def _time(engine: Engine, where: tuple[Any, ...]) -> float:
    """The engine and the pixels."""
    options = {} if engine.finest is None else {"tol": TOL}
    found = []
    for _ in range(4):
        start = time.process_time()
        engine.run(*where, kernels=load("cpu"), **options).pixels()
        found.append(time.process_time() - start)
    return median(found[1:])


def show(rows: list[dict[str, Any]]) -> str:
    """The share of close choices, as Markdown."""
    chosen = sorted({row["engine"] for row in rows})
    lines = []
    for engine in (*chosen, "all"):
        mine = [row for row in rows if engine in ("all", row["engine"])]
        ratios = [row["times"][row["engine"]] / min(row["times"].values()) for row in mine]
        close = sum(ratio <= CLOSE for ratio in ratios) / len(ratios)
        planning = duration(median(row["planning"] for row in mine))
        lines.append([engine, str(len(mine)), f"{close:.1%}", f"{max(ratios):.1f}×", planning])
    header = ["chosen", "networks", f"within {CLOSE}× of the best", "worst", "planning, median"]
    return table(header, lines)


def main(arguments: list[str]) -> None:
    rows = compare(int(arguments[0]) if arguments else 500)
    print(show(rows))
    write("planner", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
