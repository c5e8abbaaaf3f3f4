"""Do the tests notice faults? Plants them one by one, and runs the tests that execute the line.

    python -m bench.test_coverage                # which tests execute which lines, and how long
    python -m bench.mutate                       # the sample that is recorded
    python -m bench.mutate --per-file 20 fastrf/metrics      # a closer look at some files
    python -m bench.mutate --per-file 100000 --minutes 0     # records all that was ever tried

Faults are drawn evenly from the files of each part of the package, by a seed. Every one is planted
in a copy of the tree, and the tests run in a child of a process that has imported all libraries and
nothing of fastrf, the quickest tests first, up to the first failure. A fault that they let pass is
tried on more of them. What was caught is not planted again (``.coverage/fates.jsonl``). Kernels of
the CPU run as Python, see ``tests/interpreted.py``, but for the modules that say how kernels are
compiled; CUDA sources are compiled for the CPU, see ``tests/cuda/shim``. Survivors that change no
result are listed in ``equivalent.json``, with the reason.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.mutants import Mutant, mutants
from bench.record import table, write
from bench.test_coverage import CHOICE, DATA, FOLDER, INTERPRETED

ROOT = Path(__file__).parent.parent
FATES = FOLDER / "fates.jsonl"
EQUIVALENT = Path(__file__).with_name("equivalent.json")

PARTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "kernels, CPU": (110, ("kernels/cpu/*.py", "kernels/*.py")),
    "kernels, CUDA": (70, ("kernels/cuda/*.cu", "kernels/cuda/*.cuh", "kernels/cuda/*.py")),
    "engines": (160, ("fastrf/engine/**/*.py",)),
    "analytic": (60, ("fastrf/analytic/*.py",)),
    "metrics": (40, ("fastrf/metrics/*.py",)),
    "network to maps": (
        60,
        ("fastrf/lowering.py", "fastrf/maps.py", "fastrf/layers/*.py", "fastrf/network.py"),
    ),
    "importers": (40, ("fastrf/importers/**/*.py",)),
    "sweep": (40, ("fastrf/sweep/*.py",)),
}
"""Faults to draw, and the files, of every part."""

LIBRARIES = (
    "numpy", "scipy.fft", "scipy.linalg", "scipy.optimize", "scipy.signal", "scipy.special",
    "scipy.stats", "scipy.ndimage", "llvmlite.binding", "numba", "torch", "torch.nn", "onnx",
    "onnx.shape_inference", "pytest", "hypothesis", "hypothesis.strategies", "mpmath", "cyclopts",
    "rich.console", "rich.table", "concurrent.futures", "sqlite3",
)  # fmt: skip
"""Imported once, before any child begins."""

QUICK, LONG = 20.0, 160.0
"""Seconds of tests, as measured with coverage and on a busy machine, in the first and the second
try."""
PATIENCE = 60.0
"""Seconds of a processor on top, before a run counts as endless: others may use it, too."""
MEMORY = 16 * 2**30

UNCAUGHT = {"survived", "not run by any test"}

ELSEWHERE = ("test_packaging", "test_report_page")
"""Tests that need the checkout itself, or a browser, which `MEMORY` has no room for."""


COMPILERS = (
    "_arguments", "_cache", "_compile", "_load", "_peak", "_runs", "_translate", "_vectors"
)  # fmt: skip
COMPILING = {f"kernels/cpu/{name}.py" for name in COMPILERS}
"""What says how kernels are compiled, or emits code: where kernels run as Python, little of it
runs."""


def interpreted(path: str) -> bool:
    """Whether faults of a file meet kernels that run as Python."""
    return path.startswith("kernels/cpu/") and path not in COMPILING


@cache
def functions(path: str) -> tuple[range, ...]:
    """Lines of the functions of a file; of a CUDA source, all of it."""
    source = (ROOT / path).read_text(encoding="utf-8")
    if not path.endswith(".py"):
        return (range(1, source.count("\n") + 2),)
    return tuple(
        range(node.body[0].lineno, (node.end_lineno or node.lineno) + 1)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
    )


@dataclass(frozen=True)
class Tests:
    """Which tests execute a line, and how long they take."""

    lines: dict[str, dict[int, frozenset[str]]]
    compiled: dict[str, float]
    interpreted: dict[str, float]

    def seconds(self, mutant: Mutant) -> dict[str, float]:
        """How long tests take in the way in which they meet the fault."""
        return self.interpreted if interpreted(mutant.path) else self.compiled

    def of(self, mutant: Mutant, budget: float) -> list[str]:
        """The quickest tests that execute its line, up to a sum of seconds."""
        path = mutant.path
        lines, inside = self.lines.get(path, {}), functions(path)
        found: frozenset[str] = frozenset()
        if any(mutant.line in own for own in inside):
            # A statement's later lines are not counted.
            before = range(mutant.line, mutant.line - 8, -1)
            found = next((lines[at] for at in before if lines.get(at)), found)
        if not found:
            # What runs while modules are loaded is in no test, or in the first that loads them; but
            # all that use the module depend on it, and of tables all that use the folder may.
            folder = Path(path).parent
            found = found.union(*lines.values())
            for other in () if inside and found else self.lines:
                if Path(other).parent == folder:
                    found = found.union(*self.lines[other].values())
        if interpreted(path):
            found = frozenset(t for t in found if t.split("::")[0] in INTERPRETED)
        if budget < LONG:
            found = self._nearest(path, found)
        seconds = self.seconds(mutant)
        chosen, total = [], 0.0
        for test in sorted(found, key=lambda t: (seconds.get(t, 0.05), t)):
            total += seconds.get(test, 0.05)
            if chosen and total > budget:
                break
            chosen.append(test)
        return chosen

    def _nearest(self, path: str, found: frozenset[str]) -> frozenset[str]:
        """Those of the two files that are most about it: collecting a file takes its time, too."""
        of = Counter(test.split("::")[0] for test in found)
        own = {Path(path).stem.strip("_"), Path(path).parent.name}

        def nearness(file: str) -> tuple[bool, float, str]:
            return any(n in file for n in own), of[file] / self.counts[file], file

        near = sorted(of, key=nearness)[-2:]
        return frozenset(test for test in found if test.split("::")[0] in near)

    @cached_property
    def counts(self) -> Counter[str]:
        """Tests of every file."""
        every = {t for lines in self.lines.values() for tests in lines.values() for t in tests}
        return Counter(test.split("::")[0] for test in every)


def tests() -> Tests:
    """What `bench.test_coverage` found."""
    from coverage import CoverageData

    if not DATA.exists():
        sys.exit("no coverage data: run python -m bench.test_coverage first")
    data = CoverageData(str(DATA))
    data.read()
    files = {p.stem: p.relative_to(ROOT).as_posix() for p in (ROOT / "tests").rglob("test_*.py")}
    for name in ELSEWHERE:
        del files[name]
    lines: dict[str, dict[int, frozenset[str]]] = {}
    for measured in data.measured_files():
        path = Path(measured).relative_to(ROOT).as_posix()
        lines[path] = {
            line: frozenset(
                "::".join([files[name.split(".")[0]], *name.split(".")[1:]])
                for name in names
                if name.split(".")[0] in files
            )
            for line, names in data.contexts_by_lineno(measured).items()
        }
    # A CUDA source runs where its host code does.
    for source in [*ROOT.glob("kernels/cuda/*.cu"), *ROOT.glob("kernels/cuda/*.cuh")]:
        host = lines.get(f"kernels/cuda/{source.stem}.py") or lines.get(
            f"kernels/cuda/_{source.stem}.py", lines.get("kernels/cuda/_module.py", {})
        )
        some = frozenset().union(*host.values())
        count = source.read_text().count("\n") + 1
        lines[source.relative_to(ROOT).as_posix()] = dict.fromkeys(range(1, count + 1), some)
    compiled: dict[str, float] = defaultdict(float)
    interpreted: dict[str, float] = defaultdict(float)
    for report in FOLDER.glob("*.xml"):
        seconds = interpreted if report.stem.endswith("-interpreted") else compiled
        for case in ElementTree.parse(report).iter("testcase"):
            name = case.get("classname", "").split(".")[-1]  # none of a test that forks
            if name in files:
                test = f"{files[name]}::{case.attrib['name'].split('[')[0]}"
                seconds[test] += float(case.attrib["time"])
    return Tests(lines, compiled, interpreted)


class Tree:
    """A copy of the working tree, in which kernels lie where they are imported from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        aside = shutil.ignore_patterns(".git", ".venv", "results", "*.pyc", "docs", FOLDER.name)
        shutil.copytree(ROOT, folder, ignore=aside, symlinks=True)
        shutil.copytree(ROOT / "docs", folder / "docs")
        (folder / "kernels").rename(folder / "fastrf" / "kernels")
        (folder / "kernels").symlink_to(folder / "fastrf" / "kernels")
        self._stamp = time.time()

    def plant(self, mutant: Mutant) -> None:
        """Changes a file; a time of its own keeps older bytecode from being used."""
        path = self.folder / mutant.path
        source = path.read_bytes()
        path.write_bytes(mutant.applied(source))
        self._stamp += 10
        os.utime(path, (self._stamp, self._stamp))

    def heal(self, mutant: Mutant) -> None:
        shutil.copy2(ROOT / mutant.path, self.folder / mutant.path)


@dataclass
class Run:
    """A child with its tests."""

    mutant: Mutant
    tree: Tree
    chosen: list[str]
    limit: float
    budget: float
    trial: str | None = None
    began: float = field(default_factory=time.monotonic)
    pid: int = 0


def child(tree: Tree, path: str, chosen: Sequence[str], log: Path, limit: float) -> None:
    """Runs tests in a process of their own; does not return."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_CPU, (int(limit), int(limit) + 5))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.chdir(tree.folder)
    for name in [n for n in sys.modules if n.split(".")[0] in ("bench", "fastrf")]:
        del sys.modules[name]
    sys.path[:] = [str(tree.folder), *(p for p in sys.path if p not in ("", str(ROOT)))]
    import hypothesis
    import pytest

    phases = [p for p in hypothesis.Phase if p.name in ("explicit", "generate")]
    hypothesis.settings.register_profile("faults", phases=phases, database=None, derandomize=True)
    hypothesis.settings.load_profile("faults")
    options = ["-x", "-q", "--no-header", "--tb=line", "-p", "no:benchmark"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]
    if interpreted(path):
        os.environ["NUMBA_DISABLE_JIT"] = "1"
        sys.path.append(str(tree.folder / "tests"))
        options += ["-p", "interpreted", "-W", "ignore::RuntimeWarning", "-k", CHOICE]
    elif path in COMPILING:  # what is compiled without the fault stays for others
        os.environ["NUMBA_CACHE_DIR"] = tempfile.mkdtemp(dir=tree.folder)
    code = 3
    try:
        code = int(pytest.main([*options, *chosen]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def key(mutant: Mutant) -> str:
    """A fault by what it does to which text: the same as long as the file is."""
    source = (ROOT / mutant.path).read_bytes()
    return f"{mutant.path} {sha256(mutant.applied(source)).hexdigest()[:16]}"


FIRST = re.compile(r"^(?:FAILED|ERROR) (\S+?\.py(?:::\w+)*)", re.MULTILINE)


class Trials:
    """Plants faults and keeps score."""

    def __init__(self, known: Tests, folder: Path, jobs: int) -> None:
        self.known, self.folder = known, folder
        self.free = [Tree(folder / f"tree{i}") for i in range(jobs)]
        self.running: dict[int, Run] = {}
        self.sound: set[str] = set()  # files of tests
        self.unsound: set[str] = set()
        self.results: dict[Mutant, dict[str, Any]] = {}

    def before(self) -> dict[str, dict[str, Any]]:
        """The fates of faults in earlier runs."""
        lines = FATES.read_text(encoding="utf-8").splitlines() if FATES.exists() else []
        return dict(map(json.loads, lines))

    def note(self, mutant: Mutant) -> None:
        """Writes a fate down, so that an interrupted run can go on."""
        with FATES.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key(mutant), self.results[mutant]]) + "\n")

    def start(self, mutant: Mutant, budget: float, trial: str | None = None) -> None:
        """A child for a fault; with `trial`, for that test without the fault."""
        chosen = (
            [trial]
            if trial
            else [t for t in self.known.of(mutant, budget) if t not in self.unsound]
        )
        if not chosen:
            self.results[mutant] = {"fate": "not run by any test"}
            return
        tree = self.free.pop()
        seconds = self.known.seconds(mutant)
        expected = sum(seconds.get(t, 0.05) for t in chosen)
        expected += PATIENCE * (mutant.path in COMPILING)  # all that they call is compiled
        run = Run(mutant, tree, chosen, PATIENCE + 2 * expected, budget, trial)
        if trial is None:
            tree.plant(mutant)
        run.pid = os.fork()
        if run.pid == 0:
            child(tree, mutant.path, chosen, self.log(tree), run.limit)
        self.running[run.pid] = run

    def log(self, tree: Tree) -> Path:
        return tree.folder.with_suffix(".log")

    def wait(self) -> None:
        """Until a child ends, or has taken too long."""
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in self.running:
                return self.ended(self.running.pop(pid), os.waitstatus_to_exitcode(status))
            for pid, run in self.running.items():
                if time.monotonic() - run.began > 4 * run.limit:  # it waits for something
                    os.killpg(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    del self.running[pid]
                    return self.ended(run, None)
            time.sleep(0.02)

    def ended(self, run: Run, code: int | None) -> None:
        text = self.log(run.tree).read_text(errors="replace")
        if run.trial is None:
            run.tree.heal(run.mutant)
        self.free.append(run.tree)
        mutant, seconds = run.mutant, round(time.monotonic() - run.began, 1)
        if run.trial is not None:  # does the test that failed pass without the fault?
            if code == 0:
                self.sound.add(run.trial.split("::")[0])
            else:
                self.unsound.add(run.trial)
                print(f"left out, fails without a fault: {run.trial}\n{text[-600:]}", flush=True)
                del self.results[mutant]
                self.start(mutant, run.budget)
            return
        if code in (0, 5):  # 5: `CHOICE` left out all of them
            if run.budget < LONG and self.known.of(mutant, LONG) != run.chosen:
                return self.start(mutant, LONG)
            self.results[mutant] = {"fate": "survived", "tests": len(run.chosen)}
        elif code in (None, -signal.SIGXCPU):
            self.results[mutant] = {"fate": "caught", "by": "never ends"}
        elif first := FIRST.search(text):
            self.results[mutant] = {"fate": "caught", "by": first[1]}
            # Of a file that could not be collected, any test; and one is enough of a file.
            trial = next((t for t in run.chosen if t.startswith(first[1])), first[1])
            if trial.split("::")[0] not in self.sound:
                self.start(mutant, run.budget, trial)
        else:  # it cannot be imported, or the process died
            self.results[mutant] = {"fate": "caught", "by": f"exit code {code}"}
        self.results[mutant]["seconds"] = seconds
        self.note(mutant)
        print(len(self.results), mutant.path, mutant.line, self.results[mutant], flush=True)
        if self.results[mutant]["fate"] != "caught":
            print("  - {}\n  + {}".format(*mutant.diff((ROOT / mutant.path).read_bytes())))


def sample(parts: Iterable[str], files: Sequence[str], per_file: int | None, seed: int) -> Iterator:
    """(part, fault), turn by turn from every file of a part; parts in step with each other."""
    order: list[tuple[float, str, Mutant]] = []
    for part in parts:
        count, patterns = PARTS[part]
        paths = sorted({p.relative_to(ROOT).as_posix() for g in patterns for p in ROOT.glob(g)})
        paths = [p for p in paths if not files or any(p.startswith(f) for f in files)]
        drawn = []
        for path in paths:
            found = mutants(ROOT, path)
            random.Random(f"{seed} {path}").shuffle(found)
            drawn.append([m for m in found if m.kind != "assertion"][:per_file])
        # Small files have few faults to offer: turns go round until the part has its number.
        turns = (
            found[turn]
            for turn in range(max(map(len, drawn), default=0))
            for found in drawn
            if turn < len(found)
        )
        whole = list(turns) if per_file else list(turns)[:count]
        order += [(i / len(whole), part, m) for i, m in enumerate(whole)]
    yield from ((part, m) for _, part, m in sorted(order, key=lambda place: place[0]))


def reasons() -> dict[tuple[str, str, str], str]:
    """Why some faults change nothing, by file, line and changed line."""
    known = json.loads(EQUIVALENT.read_text(encoding="utf-8")) if EQUIVALENT.exists() else []
    return {(e["path"], e["line"], e["becomes"]): e["reason"] for e in known}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="only files below these paths")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this part")
    parser.add_argument("--per-file", type=int, help="faults of every file, in place of the sample")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--only", choices=("new", "survivors"), help="the default is both")
    parser.add_argument("--note", help="what a reader of the record has to know")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin none after this time")
    parser.add_argument("--out", type=Path, help="write results here instead of a record")
    given = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": ""}
    known, equivalent = tests(), reasons()
    for name in LIBRARIES:
        import_module(name)
    drawn = list(sample(given.part or PARTS, given.files, given.per_file, given.seed))
    print(f"{len(drawn)} faults", flush=True)
    stop = time.monotonic() + 60 * given.minutes
    with tempfile.TemporaryDirectory(prefix="faults-") as name:
        trials = Trials(known, Path(name), given.jobs)
        before = trials.before()
        trials.results |= {m: before[key(m)] for _, m in drawn if key(m) in before}
        for _, mutant in drawn:
            reason = equivalent.get((mutant.path, *mutant.diff((ROOT / mutant.path).read_bytes())))
            if reason is not None:
                trials.results[mutant] = {"fate": "equivalent", "reason": reason}
        left = {"new": {None}, "survivors": UNCAUGHT, None: {None, *UNCAUGHT}}[given.only]
        waiting = [m for _, m in reversed(drawn) if trials.results.get(m, {}).get("fate") in left]
        while trials.running or (waiting and time.monotonic() < stop):
            while trials.free and waiting and time.monotonic() < stop:
                trials.start(waiting.pop(), QUICK)
            if trials.running:
                trials.wait()
    found = []
    for part, mutant in drawn:
        if mutant in trials.results:
            line, becomes = mutant.diff((ROOT / mutant.path).read_bytes())
            where = {"path": mutant.path, "at": mutant.line, "kind": mutant.kind}
            found.append(
                {"part": part, **where, "line": line, "becomes": becomes, **trials.results[mutant]}
            )
    report(found, given)


def report(found: list[dict[str, Any]], given: argparse.Namespace) -> None:
    """Prints what survived, and writes all down."""
    for r in found:
        if r["fate"] not in ("caught", "equivalent"):
            print(f"{r['path']}:{r['at']}: {r['fate']}\n  - {r['line']}\n  + {r['becomes']}")
    fates = ("caught", "equivalent", "survived", "not run by any test")
    rows = [
        [part, *(str(sum(r["part"] == part and r["fate"] == f for r in found)) for f in fates)]
        for part in PARTS
        if any(r["part"] == part for r in found)
    ]
    print(table(["part", *fates], rows))
    if given.out is not None:
        given.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return
    counts = {row[0]: dict(zip(fates, map(int, row[1:]), strict=True)) for row in rows}
    others = [
        {k: v for k, v in r.items() if k != "seconds"} for r in found if r["fate"] != "caught"
    ]
    whole = {"note": given.note, "seed": given.seed, "faults": len(found), "parts": counts}
    write("mutation", {**whole, "not caught": others})


if __name__ == "__main__":
    main()
