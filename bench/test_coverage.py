"""Line and branch coverage of fastrf and its kernels by the tests; recorded.

    python -m bench.test_coverage --jobs 2    # the whole suite, half an hour of two cores
    python -m bench.test_coverage --go-on     # what an interrupted run has not measured yet
    python -m bench.test_coverage tests/test_zoo.py …     # adds only these to what is there
    python -m bench.test_coverage --report    # of what is there

Compiled code leaves no trace, so the tests of kernels run a second time with the kernels as Python
(see ``tests/interpreted.py``). Every file of tests has a process of its own, so that a run that is
stopped loses little. Which tests execute which lines, and how long they take, is left in
``.coverage/`` for `bench.mutate`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bench.record import table, write

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".coverage"
DATA = FOLDER / "data"

INTERPRETED = (
    "tests/test_layout.py",
    "tests/test_kernels.py",
    "tests/test_run_kernels.py",
    "tests/test_chain_profiles.py",
    "tests/test_grown_profiles.py",
    "tests/test_chain_figures.py",
    "tests/test_program.py",
)
"""Tests that call kernels directly, and the interpreter of programs."""

COMPILED_ANEW = ("tests/test_run_kernels.py", "tests/test_benchmark.py")
"""Tests for which kernels are compiled anew: of what emits their code, and of the cache, nothing
runs where they are read."""

CHOICE = " and ".join(
    f"not {name}"
    for name in (
        "any_layout",
        "far_below_the_smallest",
        "many_units",
        "real_networks",
        "tails_are_right",
        "thousand_layers",
        "tiles_have_the_bits",
        "writable",
        "(agrees_with_fractions and wide)",
        "(a_chain_does_not_depend_on_the_others and wide)",
        "(agrees_with_fractions and float32)",
        "(a_chain_does_not_depend_on_the_others and float32)",
    )
)
"""Of these, the ones that take some seconds as Python and not minutes. The last two say
nothing about compiled code: float32 times a number of Python is float32 in NumPy, and float64 in
Numba."""


def name_of(path: str, interpreted: bool) -> str:
    """What the files of a run are called."""
    return Path(path).stem + ("-interpreted" if interpreted else "")


def measure(path: str, interpreted: bool) -> bool:
    """Runs a file of tests under coverage, and says whether all passed; the data goes beside that
    of other runs."""
    name = name_of(path, interpreted)
    # A report is there when its tests have ended.
    report, data = FOLDER / f"{name}.xml", FOLDER / f"of-{name}"
    command = [sys.executable, "-m", "coverage", "run", "-m", "pytest", "-q", path]
    command += [f"--junitxml={report}"]
    there = {**os.environ, "OMP_NUM_THREADS": "1", "COVERAGE_FILE": str(data)}
    if interpreted:
        command += ["-p", "interpreted", "-W", "ignore::RuntimeWarning", "-k", CHOICE]
        there["NUMBA_DISABLE_JIT"] = "1"
        there["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), there.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as compiled:
        if path in COMPILED_ANEW:
            there["NUMBA_CACHE_DIR"] = compiled
        done = subprocess.run(
            command, cwd=ROOT, env=there, check=False, text=True, stdout=subprocess.PIPE
        )
    print(name, done.stdout.rpartition("\n\n")[2] if done.returncode else "passed", flush=True)
    return done.returncode == 0


def combine() -> None:
    """Puts together what runs have left; once more when files were measured again."""
    command = [sys.executable, "-m", "coverage", "combine", "--keep", "-q"]
    command += sorted(str(path) for path in FOLDER.glob("of-*"))
    there = {**os.environ, "COVERAGE_FILE": str(DATA)}
    subprocess.run(command, cwd=ROOT, env=there, check=True)


def figures() -> dict[str, Any]:
    """What coverage.py says of every file."""
    from coverage import Coverage

    measured = Coverage(data_file=str(DATA), config_file=str(ROOT / "pyproject.toml"))
    measured.load()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "coverage.json"
        measured.json_report(outfile=str(path))
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """The totals, and the files that are not covered whole."""
    files = {
        name: {
            "lines": lines(values["missing_lines"]),
            "branches": [list(b) for b in values["missing_branches"]],
        }
        for name, values in sorted(found["files"].items())
        if values["missing_lines"] or values["missing_branches"]
    }
    total = found["totals"]
    return {
        "statements": total["num_statements"],
        "branches": total["num_branches"],
        "lines covered": round(total["covered_lines"] / total["num_statements"], 4),
        "branches covered": round(total["covered_branches"] / total["num_branches"], 4),
        "lines and branches covered": round(total["percent_covered"] / 100, 4),
        "missing": files,
    }


def lines(numbers: list[int]) -> str:
    """3, 4, 5, 9 as "3-5, 9"."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][1] + 1:
            parts[-1][1] = n
        else:
            parts.append([n, n])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tests", nargs="*", help="add only these; the default is all, anew")
    parser.add_argument("--go-on", action="store_true", help="only what was not measured yet")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--note", help="what a reader of the record has to know")
    given = parser.parse_args()
    passed = True
    if not given.report:
        FOLDER.mkdir(exist_ok=True)
        if not given.tests and not given.go_on:
            for old in FOLDER.glob("*"):
                old.unlink()
        files = given.tests or sorted(
            p.relative_to(ROOT).as_posix() for p in (ROOT / "tests").rglob("test_*.py")
        )
        runs = [(path, True) for path in files if path in INTERPRETED]
        runs += [(path, False) for path in files]
        if given.go_on:
            ended = {report.stem for report in FOLDER.glob("*.xml")}
            runs = [r for r in runs if name_of(*r) not in ended]
        for run in runs:
            for old in FOLDER.glob(f"of-{name_of(*run)}.*"):
                old.unlink()
        with ThreadPoolExecutor(given.jobs) as pool:
            passed = all(list(pool.map(lambda run: measure(*run), runs)))
        combine()
    found = figures()
    result = summary(found)
    rows = sorted(
        ([name, v["summary"]] for name, v in found["files"].items()),
        key=lambda row: -row[1]["missing_lines"],
    )
    print(
        table(
            ["file", "lines", "missing", "branches", "missing"],
            [
                [
                    name,
                    str(s["num_statements"]),
                    str(s["missing_lines"]),
                    str(s["num_branches"]),
                    str(s["missing_branches"]),
                ]
                for name, s in rows[:40]
            ],
        )
    )
    for key, value in result.items():
        if key != "missing":
            print(f"{key}: {value}")
    write("test-coverage", {"note": given.note, **result})
    sys.exit(not passed)


if __name__ == "__main__":
    main()
