"""The coverage script: a model that hangs or kills its process is one failure, no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from bench import coverage

ROOT = Path(__file__).parent.parent

# Processes are spawned, so that this is a program of its own.
PROGRAM = """
import json, os, time
from bench import coverage

def work(model):
    if model[2] == "hangs":
        while True:
            try:
                time.sleep(60)
            except Exception:  # what an exception out of a signal would run into
                continue
    if model[2] == "dies":
        os._exit(1)
    return coverage.Outcome(*model, "imported")

class Impatient(coverage.Worker):
    def give(self, model, seconds):
        super().give(model, seconds)
        if model[2] == "hangs":
            self.deadline = time.monotonic()

if __name__ == "__main__":
    coverage.Worker, coverage.LIFE = Impatient, 2
    names = ["a", "hangs", "b", "dies", "c", "d"]
    models = [("library", "family", name) for name in names]
    found = coverage.outcomes_of(models, 2, work, seconds=100)
    print(json.dumps({o.name: [o.result, o.why] for o in found}))
"""


def test_what_hangs_or_dies_is_one_failure(tmp_path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    places = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, places))}
    done = subprocess.run(
        [sys.executable, str(program)],
        check=False,
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert {name for name, (result, _) in found.items() if result == "imported"} == set("abcd")
    assert found["hangs"] == ["failed", "took longer than 100 s"]
    assert found["dies"][0] == "failed"
    assert "process died" in found["dies"][1]


def test_a_stopped_run_goes_on_where_it_ended(tmp_path) -> None:
    journal = tmp_path / "journal"
    assert coverage.journalled(journal) == []
    outcomes = [coverage.Outcome("library", "family", name, "imported") for name in "abc"]
    for outcome in outcomes[:2]:
        coverage.write_down(journal, outcome)
    with journal.open("a") as file:
        file.write('{"library": "libr')  # stopped while it wrote
    assert coverage.journalled(journal) == outcomes[:2]
    coverage.write_down(journal, outcomes[2])
    assert coverage.journalled(journal) == outcomes
