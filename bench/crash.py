"""Sweeps that are disturbed: whether their tables end up as that of an undisturbed one.

    python -m bench.crash                 # 20 kills of the coordinator, and a full disk
    python -m bench.crash --kills 5 --points 2000

The coordinator, with two worker processes, is killed (SIGKILL) at moments drawn by a seed, and
started again each time; then it runs to its end. With root's rights, the same sweep also runs on a
file system that is too small for it (a tmpfs), which is then made larger.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import fastrf as rf
from bench.bench_sweep import space
from fastrf.errors import StoreError
from fastrf.sweep.columns import MEASURED

SCRIPT = """
import fastrf as rf
from bench.bench_sweep import space
if __name__ == "__main__":
    rf.sweep(space({points}), {path!r}, workers=2, progress=False)
"""


def table(path: Path) -> list[tuple[object, ...]]:
    """The table without what differs from run to run."""
    with rf.Store(path) as store:
        names = ", ".join(f'"{n}"' for n in store.columns if n not in MEASURED)
        return store.rows(f"SELECT {names} FROM sweep")


def rows(path: Path) -> int:
    """Rows that a store has."""
    try:
        with rf.Store(path) as store:
            return len(store)
    except StoreError:
        return 0


def killed(points: int, kills: int, folder: Path) -> list[tuple[object, ...]]:
    """The table of a sweep whose coordinator was killed so many times."""
    path, script = folder / "killed.db", folder / "coordinator.py"
    script.write_text(SCRIPT.format(points=points, path=str(path)), encoding="utf-8")
    draw = random.Random(1)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    for number in range(kills):
        before = rows(path)
        process = subprocess.Popen([sys.executable, script], env=environment)
        # Somewhere in the next part of what is missing, so that all kills find work to interrupt.
        goal = before + draw.random() * (points - before) / (kills - number + 1)
        while rows(path) <= goal and process.poll() is None:
            time.sleep(draw.random() * 0.02)
        process.kill()
        process.wait()
        after = rows(path)
        assert after >= before, "rows were lost"
        print(f"kill {number + 1}: {before} rows before, {after} after", flush=True)
    subprocess.run([sys.executable, script], check=True, env=environment)
    return table(path)


def full_disk(points: int, folder: Path) -> list[tuple[object, ...]] | None:
    """The table of a sweep whose file system was full on the way; None where none can be made."""
    small = folder / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={points * 400}", "tmpfs", str(small)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        return None
    try:
        path = small / "sweep.db"
        try:
            rf.sweep(space(points), path, workers=0, progress=False)
            raise AssertionError("the disk was large enough")
        except StoreError as error:
            print(f"full disk: {error}; {rows(path)} rows are kept", flush=True)
        larger = ["mount", "-o", f"remount,size={points * 8000}", str(small)]
        subprocess.run(larger, check=True)
        rf.sweep(space(points), path, workers=0, progress=False).close()
        return table(path)
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=20_000)
    parser.add_argument("--kills", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rf.sweep(space(given.points), folder / "calm.db", workers=2, progress=False).close()
        calm = table(folder / "calm.db")
        assert len(calm) == len(set(calm))
        same = killed(given.points, given.kills, folder) == calm
        print(f"{given.kills} kills: the table of {len(calm)} rows is {_verdict(same)}")
        filled = full_disk(given.points, folder)
        if filled is None:
            print("full disk: no small file system can be mounted here")
        else:
            print(f"full disk: the table is {_verdict(filled == calm)}")
            same &= filled == calm
    sys.exit(not same)


def _verdict(same: bool) -> str:
    return "the same" if same else "DIFFERENT"


if __name__ == "__main__":
    main()
