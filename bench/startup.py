"""What a user waits for before the first result, in fresh processes.

    python -m bench.startup

Medians over processes. "Cold" is the first field on a machine: Numba compiles the kernels into a
cache folder that starts empty; "warm" finds them there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from bench.record import duration, table, write

RF = "import sys; from fastrf.cli import main; sys.exit(main(['rf', 'resnet50']))"
ERF = "import fastrf as rf; rf.erf(rf.zoo.resnet50(), input_size=224)"
DEEP = "import fastrf as rf; rf.erf(rf.zoo.plain(10_000))"


def process(code: str, times: int, **environment: str) -> float:
    """Median wall time of ``python -c code``, one run beforehand to fill the file cache."""
    taken = []
    for number in range(times + 1):
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, **environment},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        if number:
            taken.append(time.perf_counter() - start)
    return median(taken)


def cold() -> float:
    """One process that has to compile."""
    with TemporaryDirectory() as folder:
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", ERF], env={**os.environ, "NUMBA_CACHE_DIR": folder}, check=True
        )
        return time.perf_counter() - start


def measure() -> dict[str, float]:
    python = process("pass", 7)
    with TemporaryDirectory() as folder:
        warm = process(ERF, 5, NUMBA_CACHE_DIR=str(Path(folder)))
        deep = process(DEEP, 5, NUMBA_CACHE_DIR=str(Path(folder)))
    return {
        "python -c pass": python,
        "import fastrf (python's own start taken off)": process("import fastrf", 7) - python,
        "fastrf rf resnet50, whole process": process(RF, 5),
        "first ERF of resnet50 at 224, whole process, warm cache": warm,
        "first ERF of resnet50 at 224, whole process, cold cache": cold(),
        "first ERF of 10,000 layers, whole process, warm cache": deep,
    }


def show(results: dict[str, float]) -> str:
    return table(["start", "time"], [[name, duration(value)] for name, value in results.items()])


def main() -> None:
    results = measure()
    print(show(results))
    write("startup", results)


if __name__ == "__main__":
    main()
