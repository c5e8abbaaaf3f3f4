"""What a user waits for before the first result, in fresh processes.

    python -m bench.startup

Medians over processes, whose modules lie there as bytecode, as pip leaves them. "Cold" is the first
field on a machine: Numba compiles the kernels into a cache folder that starts empty; "warm" finds
them there. The processor's own seconds stand beside those of the clock, which hold what else the
machine did.
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
SMALL = "import fastrf as rf; rf.erf(rf.Sequential(*[rf.Conv(3)] * 5))"
ERF = "import fastrf as rf; rf.erf(rf.zoo.resnet50(), input_size=224)"
DEEP = "import fastrf as rf; rf.erf(rf.zoo.plain(10_000))"


def process(code: str, times: int, folder: Path, warm: bool = True) -> dict[str, float]:
    """Median wall and processor time of ``python -c code``, with what it keeps in a folder.

    Args:
        warm: one run beforehand fills the folder; else it is filled with bytecode alone.
    """
    kept = {"PYTHONPYCACHEPREFIX": str(folder / "bytecode"), "NUMBA_CACHE_DIR": str(folder)}
    environment = {**os.environ, **kept}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    if not warm:
        run(
            [sys.executable, "-c", "import numba, fastrf.erf, fastrf.kernels.cpu.walk"], environment
        )
    wall, own = [], []
    for number in range(times + warm):
        start, before = time.perf_counter(), os.times()
        run([sys.executable, "-c", code], environment)
        after = os.times()
        if number or not warm:
            wall.append(time.perf_counter() - start)
            own.append(
                after.children_user
                + after.children_system
                - before.children_user
                - before.children_system
            )
    return {"wall": median(wall), "processor": median(own)}


def run(command: list[str], environment: dict[str, str]) -> None:
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)


def measure() -> dict[str, dict[str, float]]:
    with TemporaryDirectory() as name, TemporaryDirectory() as empty:
        folder = Path(name)
        return {
            "python -c pass": process("pass", 7, folder),
            "import numpy": process("import numpy", 7, folder),
            "import numba (only where kernels are compiled)": process("import numba", 7, folder),
            "import fastrf": process("import fastrf", 7, folder),
            "fastrf rf resnet50": process(RF, 5, folder),
            "first ERF of five layers, warm cache": process(SMALL, 7, folder),
            "first ERF of resnet50 at 224, warm cache": process(ERF, 5, folder),
            "first ERF of 10,000 layers, warm cache": process(DEEP, 5, folder),
            "first ERF of five layers, cold cache": process(SMALL, 1, Path(empty), warm=False),
        }


def show(results: dict[str, dict[str, float]]) -> str:
    rows = [[k, duration(v["wall"]), duration(v["processor"])] for k, v in results.items()]
    return table(["whole process", "time", "of the processor"], rows)


def main() -> None:
    results = measure()
    print(show(results))
    write("startup", results)


if __name__ == "__main__":
    main()
