"""The pages under docs/: their code runs, links lead somewhere, and the reference is current."""

from __future__ import annotations

import doctest
import re
import shlex
from pathlib import Path

import pytest

from bench import api, report
from fastrf.cli import app

DOCS = Path(__file__).parents[1] / "docs"
PAGES = sorted(DOCS.glob("*.md"))
RUN = [page for page in PAGES if page.name != "api.md"]  # docstrings are run where they stand
NEEDS = {"for-authors.md": "torch", "for-engineers.md": "torch"}


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_code_prints_what_it_says(page, tmp_path, monkeypatch):
    if page.name in NEEDS:
        pytest.importorskip(NEEDS[page.name])
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    found = doctest.testfile(str(page), module_relative=False, encoding="utf-8")
    assert found.failed == 0
    assert (found.attempted > 0) == (">>>" in text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (DOCS / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page):
    """Every shell line is a command with options that there are."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "fastrf":
                app.parse_args(words[1:], exit_on_error=False, print_error=False)


def test_the_reference_is_current():
    assert api.PAGE.read_text(encoding="utf-8") == api.page(), "run python -m bench.api"


@pytest.mark.parametrize("kind", report.KINDS)
def test_records_of_any_age_are_shown(kind: str) -> None:
    record = report.newest(kind)
    assert record is not None
    _, rule, *rows = report.KINDS[kind][1](record["results"]).splitlines()
    assert set(rule) == set("|-: ")
    assert rows


def test_the_readme_shows_the_newest_records():
    text = report.README.read_text(encoding="utf-8")
    assert report.with_records(text) == text
    assert "<!-- record: coverage -->" in text
    stale = text.replace("| timm convolutional", "| timm")
    assert report.with_records(stale) == text
