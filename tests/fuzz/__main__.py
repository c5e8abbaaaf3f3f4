"""Fuzzes the doors, coverage-guided, each in a process of its own (atheris, libFuzzer).

    python -m tests.fuzz [--seconds 120] [--runs 0] [NAME ...]

At most so many seconds, or so many executions (0: no limit), for each of `targets.TARGETS`. What
fails is printed with the input that did it, and kept in a folder. The counts go to
``bench/results/fuzz-DATE.json``. `tests/test_fuzz.py` replays the corpus without atheris.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SLOWEST = 60
"""Seconds; an input that takes longer is a finding."""

MOST_MEMORY = 4096
"""MiB; an input that makes the process larger is one too."""


def fuzz(name: str, arguments: list[str]) -> None:
    """In the process of one target: never returns."""
    import atheris

    with atheris.instrument_imports(include=["fastrf"]):
        from tests.fuzz import targets
    atheris.Setup(["fuzz", *arguments], lambda data: targets.check(name, data))
    atheris.Fuzz()


def run(name: str, seconds: int, runs: int) -> dict[str, Any]:
    """Fuzzes one target from its corpus and seeds, and says how often it ran and what it found."""
    from tests.fuzz.targets import CORPUS, TARGETS

    folder = Path(tempfile.mkdtemp(prefix=f"fastrf-fuzz-{name}-"))
    corpus = folder / "corpus"
    corpus.mkdir()
    for number, seed in enumerate(TARGETS[name].seeds()):
        (corpus / f"seed-{number}").write_bytes(seed)
    line = [sys.executable, "-m", "tests.fuzz", "--target", name]
    line += [f"-max_total_time={seconds}", f"-artifact_prefix={folder}/", f"-timeout={SLOWEST}"]
    line += [f"-rss_limit_mb={MOST_MEMORY}", "-max_len=65536", "-verbosity=1"]
    line += [f"-runs={runs}"] if runs else []
    line += [str(corpus), *([str(CORPUS / name)] if (CORPUS / name).is_dir() else [])]
    start = time.time()
    done = subprocess.run(line, capture_output=True, text=True, errors="replace", check=False)
    text = done.stdout + done.stderr
    counts = [int(n) for n in re.findall(r"^#(\d+)\s", text, re.M)]
    coverage = [int(n) for n in re.findall(r"\bcov: (\d+)", text)]
    found = [p.name for p in folder.iterdir() if p.name.startswith(("crash-", "timeout-", "oom-"))]
    if found or done.returncode:
        print(f"{name}: findings in {folder}\n{text[-3000:]}")
    return {
        "target": name,
        "executions": max(counts, default=0),
        "seconds": round(time.time() - start, 1),
        "branches": max(coverage, default=0),
        "corpus": len(list(corpus.iterdir())),
        "findings": len(found) or int(done.returncode != 0),
    }


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--target"]:
        fuzz(arguments[1], arguments[2:])
    from bench.record import table, write
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("names", nargs="*", default=list(TARGETS), metavar="NAME")
    asked = parser.parse_args(arguments)
    results = []
    for name in asked.names:
        results.append(run(name, asked.seconds, asked.runs))
        print(results[-1], file=sys.stderr, flush=True)
    header = ["target", "executions", "seconds", "branches", "corpus", "findings"]
    print(table(header, [[str(row[name]) for name in header] for row in results]))
    if asked.names == list(TARGETS):
        write("fuzz", results)
    return int(any(row["findings"] for row in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
