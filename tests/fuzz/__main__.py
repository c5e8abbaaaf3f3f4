"""Fuzzes the doors, coverage-guided, each in a process of its own (atheris, libFuzzer).

    python -m tests.fuzz [--seconds 120] [--runs 0] [--record] [--keep] [NAME ...]

At most so many seconds, or so many executions (0: no limit), for each of `targets.TARGETS`. What
fails is printed with the input that did it, and kept in a folder. With ``--record`` the counts go
to ``bench/results/fuzz-DATE.json``, where each door has the figures of its last run; with
``--keep`` inputs that reach code which the corpus does not are added to it, the smallest first.
`tests/test_fuzz.py` replays the corpus without atheris.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

SLOWEST = 60
"""Seconds; an input that takes longer is a finding."""

MOST_MEMORY = 4096
"""MiB; an input that makes the process larger is one too."""

LARGEST_KEPT, MOST_KEPT = 4096, 24
"""Bytes of an input that is added to the corpus, and how many of each door are."""


def fuzz(name: str, arguments: list[str]) -> None:
    """In the process of one target: never returns."""
    import atheris

    with atheris.instrument_imports(include=["fastrf"]):
        from tests.fuzz import targets
    atheris.Setup(["fuzz", *arguments], lambda data: targets.check(name, data))
    atheris.Fuzz()


def run(name: str, seconds: int, runs: int, keep: bool) -> dict[str, Any]:
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
    if keep:
        _keep(name, corpus)
    return {
        "target": name,
        "executions": max(counts, default=0),
        "seconds": round(time.time() - start, 1),
        "branches": max(coverage, default=0),
        "inputs": len(list(corpus.iterdir())),
        "findings": len(found) or int(done.returncode != 0),
    }


def _keep(name: str, corpus: Path) -> None:
    """Adds inputs to the kept corpus that reach what it does not (libFuzzer's merge)."""
    from tests.fuzz.targets import CORPUS

    kept = CORPUS / name
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        merged = Path(folder) / "merged"
        merged.mkdir()
        for path in kept.iterdir():
            shutil.copy(path, merged)
        before = {path.name for path in merged.iterdir()}
        line = [sys.executable, "-m", "tests.fuzz", "--target", name, "-merge=1"]
        subprocess.run([*line, str(merged), str(corpus)], capture_output=True, check=False)
        new = [path for path in merged.iterdir() if path.name not in before]
        small = [path for path in new if path.stat().st_size <= LARGEST_KEPT]
        for path in sorted(small, key=lambda path: path.stat().st_size)[:MOST_KEPT]:
            shutil.copy(path, kept)


def _record(result: dict[str, Any]) -> None:
    """Puts a door's figures into today's record, in place of those that it has there."""
    from bench.record import newest, write

    today = datetime.now(UTC).date().isoformat()
    found = newest("fuzz")
    rows = found["results"] if found is not None and found["date"] == today else []
    write("fuzz", [row for row in rows if row["target"] != result["target"]] + [result])


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["--target"]:
        fuzz(arguments[1], arguments[2:])
    from bench.record import table
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--runs", type=int, default=0)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("names", nargs="*", default=list(TARGETS), metavar="NAME")
    asked = parser.parse_args(arguments)
    results = []
    for name in asked.names:
        results.append(run(name, asked.seconds, asked.runs, asked.keep))
        if asked.record:
            _record(results[-1])
        print(results[-1], file=sys.stderr, flush=True)
    header = ["target", "executions", "seconds", "branches", "inputs", "findings"]
    print(table(header, [[str(row[name]) for name in header] for row in results]))
    return int(any(row["findings"] for row in results))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
