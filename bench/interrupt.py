"""How soon Ctrl-C stops a long computation.

    python -m bench.interrupt

A timer's signal stands for Ctrl-C, at several moments of a computation that would go on for some
seconds: Python sees both between two instructions of the main thread. What is measured is the time
from when the signal was due to when the call has raised.
"""

from __future__ import annotations

import gc
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np

import fastrf as rf
from bench.record import duration, table, write

MOMENTS = (0.3, 0.7, 1.3, 2.1)
"""Seconds after the call began."""


def residual(kernel: int) -> rf.Residual:
    return rf.Residual(*[rf.Conv(kernel, padding=kernel // 2)] * 2)


def jobs() -> Iterator[tuple[str, Callable[[], Any]]]:
    border = rf.Sequential(*[rf.Conv(3, padding=1)] * 30_000)
    yield "direct, all layers in one call", lambda: rf.erf(border, input_size=300, method="direct")
    deep = rf.zoo.plain(3000)
    yield "direct, by layers", lambda: rf.erf(deep, method="direct")
    wide = rf.Sequential(*[rf.Conv(301)] * 20)
    yield "direct, windows of 301", lambda: rf.erf(wide, method="direct")
    spread = rf.Sequential(*[rf.Conv(3, dilation=200)] * 20)
    yield "direct, dilated", lambda: rf.erf(spread, method="direct")
    volume = rf.zoo.plain(120, 3, ndim=3)
    yield "direct, in 3-D", lambda: rf.erf(volume, method="direct")
    stack = rf.Sequential(*[residual(3)] * 2000)
    yield "factored", lambda: rf.erf(stack, method="factored").image
    mixed = rf.Sequential(
        *[rf.Residual(rf.Conv(3, padding=1), rf.Conv(5, padding=2)) for _ in range(900)]
    )
    yield "spectral", lambda: rf.erf(mixed, method="spectral", accuracy="absolute")
    pooled = rf.Sequential(*[rf.Conv(3), rf.AvgPool(3, stride=1)] * 40)
    yield "direct, with covariances", lambda: rf.erf(pooled, method="direct")
    given = np.random.default_rng(0).standard_normal((256, 256, 3, 3))
    weights = [rf.Conv(3, padding=1, channels=256, weights=given)] * 40
    trained = rf.Sequential(rf.Input(256), *weights)
    yield "channel by channel", lambda: rf.erf(trained, input_size=224)
    kernels = [rf.Residual(rf.Conv(k, padding=k // 2)) for k in (3, 5, 7, 9, 11)] * 60
    reduced = rf.Sequential(*kernels)
    options: dict[str, Any] = {"method": "factored", "accuracy": "absolute", "tol": 1e-9}
    yield "reduced terms", lambda: rf.erf(reduced, input_size=3000, **options).image
    plain = rf.zoo.plain(300)
    yield "check", lambda: rf.check(plain)
    yield "sweep, in this process", swept


def swept() -> None:
    parameters = {"depth": {"from": 1, "to": 400}, "kernel": [3, 4, 5], "dilation": [1, 2, 3]}
    space = rf.Space({"name": "s", "ndim": 2, "parameters": parameters})
    with tempfile.TemporaryDirectory() as folder:
        rf.sweep(space, f"{folder}/s.db", workers=0, progress=False).close()


def stopped(job: Callable[[], Any], moment: float) -> float | None:
    """Seconds from the signal to the end of the call; None where that was done before."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGALRM, interrupt)
    due = time.perf_counter() + moment
    signal.setitimer(signal.ITIMER_REAL, moment)
    try:
        job()
        signal.setitimer(signal.ITIMER_REAL, 0)
        return None
    except KeyboardInterrupt:
        return time.perf_counter() - due


def measure() -> dict[str, list[float]]:
    rf.erf(rf.zoo.plain(300), method="direct")  # everything is loaded
    found: dict[str, list[float]] = {}
    for name, job in jobs():
        with suppress(rf.errors.PlanError):
            found[name] = [t for m in MOMENTS if (t := stopped(job, m)) is not None]
        gc.collect()
    return found


def show(results: dict[str, list[float]]) -> str:
    rows = [
        [name, str(len(times)), duration(max(times)) if times else "done before"]
        for name, times in results.items()
    ]
    return table(["interrupted", "times", "stopped after at most"], rows)


def main() -> None:
    results = measure()
    print(show(results))
    write("interrupt", results)


if __name__ == "__main__":
    main()
