"""Cost per layer against depth, and what subnormal numbers would cost.

    python -m bench.depth

All on one thread, in seconds of that thread, so that other programs do not count.

1. Chains of 3-wide layers, 1,000 to 10,000 deep, whole verb. The full image of a chain grows with
   its depth (its side by about √n times the number of standard deviations above the smallest
   normal number), so its cost per layer may rise with the area; with the tails trimmed
   (`tail=1e-12`), or clipped at an image, cost per layer must be flat or falling.
2. The same layer as a plain NumPy loop that trims and rescales nothing, on images that run into
   subnormal numbers and on a flat image of the same size, which does not: the same arithmetic, so
   that the ratio is the price of subnormal numbers alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

import fastrf as rf
from bench.record import duration, table, write
from fastrf import zoo
from fastrf.network import Network

DEPTHS = (1000, 2000, 5000, 10000)
FEWER = (250, 500, 1000, 2000)
"""Depths of stacks whose images are sums of as many terms as there are layers."""
TAIL = 1e-12


def chain(ndim: int) -> Callable[[int], Network]:
    return lambda depth: zoo.plain(depth, 3, ndim)


def blocks(depth: int) -> Network:
    return zoo.residual(depth, convs=1)


STACKS: dict[str, tuple[Callable[[int], Network], dict[str, Any]]] = {
    "1-D": (chain(1), {}),
    f"1-D, tail={TAIL:g}": (chain(1), {"tail": TAIL}),
    "2-D factored, full image": (chain(2), {"method": "factored"}),
    f"2-D factored, tail={TAIL:g}": (chain(2), {"method": "factored", "tail": TAIL}),
    "2-D direct, image 128×128": (chain(2), {"method": "direct", "input_size": 128}),
    "2-D residual, full image": (blocks, {"accuracy": "relative"}),
    f"2-D residual, tail={TAIL:g}": (blocks, {"accuracy": "relative", "tail": TAIL}),
}


def impulse(side: int, ndim: int, dtype: str) -> np.ndarray:
    image = np.zeros((side,) * ndim, dtype)
    image[(side // 2,) * ndim] = 1
    return image


LOOPS = (
    ("impulse, 1-D, 10,000 layers, float64", 10000, impulse(20001, 1, "float64")),
    ("impulse, 2-D, 400 layers, float32", 400, impulse(801, 2, "float32")),
    ("all subnormal, 2-D, 100 layers, float64", 100, np.full((401, 401), 1e-310)),
)
"""Name, layers and start. The last is a stack that was never normalised, on its way through the
subnormal numbers: Luo's gain of 1/2 a layer (ReLU) reaches them after 1,022 layers."""


def measure_stacks() -> list[dict[str, Any]]:
    rows = []
    for name, (build, options) in STACKS.items():
        for depth in FEWER if build is blocks else DEPTHS:
            _ = rf.erf(build(8), **options).image  # compiles
            first, times = [], []
            for _ in range(3):
                network = build(depth)
                for kept in (first, times):  # a network that is new, and the same again
                    start = time.process_time()
                    field = rf.erf(network, workers=1, **options)
                    image = field.image
                    kept.append(time.process_time() - start)
            assert np.isfinite(image).all()
            assert abs(float(field.image.sum(dtype=np.float64)) - 1) < 1e-9
            rows.append(
                {
                    "stack": name,
                    "layers": depth,
                    "seconds": median(times),
                    "first": median(first),
                    "shape": list(field.image.shape),
                    "engine": field.plan.method,
                }
            )
    return rows


def exponent(rows: list[dict[str, Any]]) -> float:
    """Slope of log seconds over log layers."""
    x = [math.log(row["layers"]) for row in rows]
    y = [math.log(row["seconds"]) for row in rows]
    return float(np.polyfit(x, y, 1)[0])


def loop(image: np.ndarray, layers: int) -> float:
    """Seconds for `layers` layers of three equal taps along every axis, tap by tap."""
    out, product = np.zeros_like(image), np.empty_like(image)
    third = image.dtype.type(1 / 3)
    start = time.process_time()
    for _ in range(layers):
        for axis in range(image.ndim):
            x, y, p = (np.moveaxis(a, axis, 0) for a in (image, out, product))
            inner = y[1:-1]
            np.multiply(x[1:-1], third, out=inner)
            for shifted in (x[:-2], x[2:]):
                np.multiply(shifted, third, out=p[1:-1])
                inner += p[1:-1]
            image, out = out, image
    return time.process_time() - start


def measure_loops() -> list[dict[str, Any]]:
    rows = []
    for name, layers, start in LOOPS:
        rows.append(
            {
                "loop": name,
                "layers": layers,
                "with": loop(start, layers),
                "without": loop(np.ones_like(start), layers),
            }
        )
    return rows


def show(results: dict[str, Any]) -> str:
    """All tables as Markdown."""
    tables = []
    for depths in (DEPTHS, FEWER):
        rows = []
        for name in dict.fromkeys(row["stack"] for row in results["stacks"]):
            mine = [row for row in results["stacks"] if row["stack"] == name]
            if [row["layers"] for row in mine] != list(depths):
                continue
            cells = [duration(row["seconds"] / row["layers"]) for row in mine]
            total, first = duration(mine[-1]["seconds"]), duration(mine[-1]["first"])
            rows.append([name, *cells, total, first, f"{exponent(mine):.2f}"])
        columns = [f"n = {n:,}" for n in depths]
        header = ["CPU time per layer", *columns, "all of the last", "the first time", "exponent"]
        tables.append(table(header, rows))
    loops = [
        [
            row["loop"],
            duration(row["with"] / row["layers"]),
            duration(row["without"] / row["layers"]),
            f"{row['with'] / row['without']:.2f}",
        ]
        for row in results["loops"]
    ]
    tables.append(table(["untrimmed NumPy loop, per layer", "subnormals", "none", "ratio"], loops))
    return "\n\n".join(tables)


def main() -> None:
    results = {"stacks": measure_stacks(), "loops": measure_loops()}
    print(show(results))
    write("depth", results)


if __name__ == "__main__":
    main()
