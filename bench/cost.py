"""The constants of `fastrf.engine.cost`, measured, and the planner's forecasts against the clock.

    python -m bench.cost

All on one thread, warm, in seconds of that thread, so that other programs do not count. The
constants are the engines' (with Python, trimming and buffers), not the kernels'; where two kinds
of work share a constant, it is the geometric mean of both.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from fastrf.kernels import load

import fastrf as rf
from bench.cases import CASES, network_of, plan_of
from bench.record import duration, seconds, table, write
from fastrf import zoo
from fastrf.engine import ENGINES, cost, direct, program
from fastrf.lowering import lower

PATIENCE = 20.0
"""Seconds; cases that the plan expects to take longer are left out."""

SPREAD = 3.0
"""The factor to which the plans are meant to be right."""

ALONE = [(3, 3, 4), (3, 3, 8), (3, 3, 14), (3, 3, 24), (3, 5, 4), (3, 5, 11), (3, 7, 3), (3, 7, 6),
         (3, 9, 2), (3, 9, 6), (2, 3, 20), (2, 3, 60), (2, 3, 150), (2, 5, 20), (2, 5, 60),
         (2, 7, 30), (2, 9, 30), (2, 21, 5), (2, 21, 10), (2, 41, 6), (1, 3, 200), (1, 3, 1000),
         (1, 9, 500), (1, 31, 300), (1, 101, 100)]  # fmt: skip
"""Axes, kernels and layers."""

ROWS = [(9, 9, 16), (9, 9, 37), (9, 9, 100), (9, 9, 300), (3, 30, 1000), (1, 2000, 2000)]
"""Images of short and of long rows, within a cache and beyond."""

NAMES = (
    "OPERATION_SECONDS",
    "CALL_SECONDS",
    "INSTRUCTION_SECONDS",
    "PROFILES_SECONDS",
    "PIXEL_NANOSECONDS",
    "ALONE_TAP_NANOSECONDS",
    "ROW_CALL_NANOSECONDS",
    "ROW_TAP_NANOSECONDS",
    "DENSE_ROW_NANOSECONDS",
    "DENSE_TAP_NANOSECONDS",
    "WALK_SECONDS",
    "BOX_NANOSECONDS",
    "SWEEP_NANOSECONDS",
    "RUN_TAP_NANOSECONDS",
    "TAP_NANOSECONDS",
    "CORRELATE_NANOSECONDS",
    "CORRELATE_TAP_NANOSECONDS",
    "CORRELATE_ROW_NANOSECONDS",
    "TABLE_NANOSECONDS",
    "WRITE_NANOSECONDS",
    "TERM_SECONDS",
    "TERM_NANOSECONDS",
    "FLOAT32_FACTOR",
)


def measure() -> dict[str, float]:
    """Every constant, from networks in which it outweighs the others."""
    found: dict[str, float] = {}
    found["CALL_SECONDS"] = _fixed("direct")
    found["PROFILES_SECONDS"] = _fixed("factored")
    for name, one_call in (("OPERATION_SECONDS", False), ("INSTRUCTION_SECONDS", True)):
        small = _run(zoo.plain(2000, 3, 1), one_call=one_call, method="direct", input_size=16)
        found[name] = small["seconds"] / small["operations"]
    rows = ("ROW_CALL_NANOSECONDS", "ROW_TAP_NANOSECONDS")
    found |= zip(
        ("PIXEL_NANOSECONDS", "ALONE_TAP_NANOSECONDS", *rows), _alone(_product), strict=True
    )
    dense = ("DENSE_ROW_NANOSECONDS", "DENSE_TAP_NANOSECONDS")
    found |= zip(dense, _alone(_ring)[2:], strict=True)
    deep = _run(zoo.plain(10000, 3, 1), method="factored")
    found["WALK_SECONDS"] = deep["seconds"] / deep["operations"]

    def per_cell(network: rf.Network, **options: Any) -> float:
        run = _run(network, method="direct", **options)
        return 1e9 * (run["seconds"] - run["fixed"]) / run["cells"]

    # Holes and wide kernels go axis by axis; equal layers in a row go in sweeps.
    boxes = [
        rf.Sequential(*[rf.Conv(3, padding=2, dilation=2)] * 150),
        zoo.plain(20, 51),
    ]
    double = _mean(per_cell(network) for network in boxes)
    single = _mean(per_cell(network, dtype="float32") for network in boxes)
    found["BOX_NANOSECONDS"] = double
    # A sweep of n layers of k taps costs S + (n(k−1) + 1)·R a pixel and axis.
    alone = per_cell(rf.Sequential(*[rf.Conv(3, padding=1), rf.Conv(5, padding=2)] * 60))
    swept = per_cell(zoo.plain(512, 3))
    tap = (32 * swept - alone) / (2 * 65 - 8)
    found["SWEEP_NANOSECONDS"], found["RUN_TAP_NANOSECONDS"] = alone - 8 * tap, tap
    line = [1.0, 2.0, 3.0, 2.0, 1.0]
    product = [[a * b for a in line] for b in line]
    separable = rf.Sequential(*[rf.Conv(5, padding=2, taps=product)] * 120)
    found["TAP_NANOSECONDS"] = per_cell(separable) / 5
    parts = ("NANOSECONDS", "TAP_NANOSECONDS", "ROW_NANOSECONDS")
    found |= zip((f"CORRELATE_{part}" for part in parts), _correlate(), strict=True)
    found["TABLE_NANOSECONDS"] = _table()
    outer = _run(zoo.plain(4, 751))
    found["WRITE_NANOSECONDS"] = 1e9 * outer["seconds"] / outer["pixels"]
    blocks = [rf.Residual(rf.Conv(k, padding=k // 2)) for k in (3, 5)]
    mixed = _run(rf.Sequential(*blocks * 30, ndim=1), method="factored", formed=False)
    found["TERM_SECONDS"] = mixed["seconds"] / 31**2
    network = zoo.residual(1000, 3, 1)
    terms = _run(network, formed=False)
    forming = _run(network)["seconds"] - terms["seconds"]
    own = 1e9 * forming / terms["pixels"] - found["WRITE_NANOSECONDS"]
    found["TERM_NANOSECONDS"] = own / cost.TERMS_THAT_COUNT
    found["FLOAT32_FACTOR"] = single / double
    return found


def _fixed(engine: str) -> float:
    """Seconds of an engine, pixels included, for a single layer."""
    graph = lower(zoo.plain(1, 3), None)
    where = (graph, graph.output_node(None), (0, 0), graph.input_node(None))
    run, kernels = ENGINES[engine].run, load("cpu")
    return seconds(lambda: run(*where, kernels=kernels).pixels(), clock=time.process_time)


def _ring(k: int, ndim: int) -> Any:
    """Taps that are no product of one vector per axis,"""
    return ((np.indices((k,) * ndim) - k // 2) ** 2).sum(0) + 1


def _product(k: int, ndim: int) -> Any:
    """and taps that are one."""
    return np.prod(np.indices((k,) * ndim) + 1.0, axis=0)


def _alone(taps_of: Callable[[int, int], Any]) -> list[float]:
    """Nanoseconds of a pixel and of its taps, of a row and of its taps, where all layers go in one
    call: networks of few and of many taps, of short and of long rows."""
    from scipy.optimize import nnls

    counts, times = [], []
    for ndim, k, layers in ALONE:
        taps = taps_of(k, ndim)
        layer = rf.Conv(k, padding=k // 2, taps=taps.tolist())
        graph = lower(rf.Sequential(*[layer] * layers, ndim=ndim), None)
        where = (graph, graph.output_node(None), (0,) * ndim, graph.input_node(None))
        own = partial(direct.propagate, *where, kernels=load("cpu"), at_once=True)
        times.append(1e9 * seconds(own, clock=time.process_time))
        sides = [1 + (k - 1) * (i + 1) for i in range(layers)]
        pixels, rows = (sum(side**n for side in sides) for n in (ndim, ndim - 1))
        most = taps.size if taps_of is _ring else ndim * k
        counts.append([1, layers, pixels, most * pixels, rows, most * rows])
    weights = 1 / np.array(times)  # ratios count
    solution, _ = nnls(np.array(counts) * weights[:, None], np.ones(len(times)))
    return [float(n) for n in solution[2:]]


def _run(
    network: rf.Network, formed: bool = True, one_call: bool = False, **options: Any
) -> dict[str, Any]:
    """The median time of the verb on one thread, for a network that it has seen before, and what
    its plan counted; with small images layer by layer, or in one call."""
    found: list[rf.ERF] = []
    tiles = program.TILES_IN_ONE_CALL

    def field() -> None:
        found[:] = [rf.erf(network, workers=1, **options)]
        if formed:
            _ = found[0].image

    try:
        program.TILES_IN_ONE_CALL = tiles if one_call else 0
        taken = seconds(field, clock=time.process_time)
        graph = lower(network, options.get("input_size"))
        where = (graph, graph.output_node(None))
        unit = (graph.unit_index(where[1], "center"), graph.input_node(None))
        dtype = np.dtype(options.get("dtype", "float64"))
        fixed = ENGINES["direct"].forecast(*where, *unit, dtype, None, 0.0).fixed
    finally:
        program.TILES_IN_ONE_CALL = tiles
    plan = found[0].plan
    return {
        "seconds": taken,
        "fixed": fixed,
        "operations": plan.operations,
        "cells": plan.cells,
        "pixels": math.prod(count for _, count in plan.support),
    }


def _correlate() -> list[float]:
    """Nanoseconds of a pixel, of its taps and of a row's, of the kernel for taps that are no
    product: few and many taps, short and long rows."""
    from scipy.optimize import nnls

    kernel, one = load("cpu").transposed_conv, (1, 1, 1)
    counts, times = [], []
    for size, shape in product(((1, 3, 3), (1, 11, 11), (3, 3, 3)), ROWS):
        y, taps = np.ones(shape), np.ones(size)
        out = np.empty([n + k - 1 for n, k in zip(shape, size, strict=True)])
        own = partial(kernel, y, taps, one, one, (0, 0, 0), out)
        times.append(1e9 * seconds(own, clock=time.process_time))
        counts.append([out.size, out.size * taps.size, out.size / out.shape[2] * taps.size])
    weights = 1 / np.array(times)  # ratios count
    solution, _ = nnls(np.array(counts) * weights[:, None], np.ones(len(times)))
    return [float(n) for n in solution]


def _table() -> float:
    """Nanoseconds per pixel and tap of the kernel, along a long axis and a contiguous one."""
    kernel, found = load("cpu").transposed_table, []
    for shape in ((1, 1000, 1000), (1000, 1000, 1)):
        y, taps = np.ones(shape), np.full((1000, 3), 1 / 3)
        starts = np.arange(1000, dtype=np.int64)
        out = np.empty((shape[0], 1002, shape[2]))
        taken = seconds(
            lambda y=y, s=starts, t=taps, o=out: kernel(y, s, t, o), clock=time.process_time
        )
        found.append(1e9 * taken / (out.size * 3))
    return _mean(found)


def _mean(values: Any) -> float:
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs))


def forecasts() -> list[dict[str, Any]]:
    """The plan's seconds beside the clock's, for every case."""
    rows = []
    for case in CASES:
        plan = plan_of(case, workers=1)
        if plan.seconds > PATIENCE:
            print(f"{case.name}: left out, the plan expects {plan.seconds:.0f} s")
            continue
        network = network_of(case)
        taken = seconds(
            lambda n=network, c=case: rf.erf(n, workers=1, **c.options).image,
            clock=time.process_time,
        )
        rows.append(
            {
                "case": case.name,
                "engine": plan.method,
                "forecast": plan.seconds,
                "seconds": taken,
            }
        )
    return rows


def show(results: dict[str, Any]) -> str:
    """Constants and forecasts as Markdown."""
    constants = [
        [name, f"{value:.3g}", f"{results['stated'][name]:.3g}"]
        for name, value in results["measured"].items()
    ]
    rows = [
        [
            row["case"],
            row["engine"],
            duration(row["forecast"]),
            duration(row["seconds"]),
            f"{row['forecast'] / row['seconds']:.2f}",
        ]
        for row in results["forecasts"]
    ]
    first = table(["constant", "measured", "stated"], constants)
    second = table(["case", "engine", "forecast", "measured", "forecast/measured"], rows)
    return f"{first}\n\n{second}"


def main() -> None:
    results = {
        "measured": measure(),
        "stated": {name: getattr(cost, name) for name in NAMES},
        "forecasts": forecasts(),
    }
    print(show(results))
    wrong = [
        row["case"]
        for row in results["forecasts"]
        if not 1 / SPREAD <= row["forecast"] / row["seconds"] <= SPREAD
    ]
    print(f"\noutside a factor of {SPREAD:g}: {', '.join(wrong) or 'none'}")
    write("cost", results)


if __name__ == "__main__":
    main()
