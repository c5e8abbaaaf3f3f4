"""The gallery: its page, its pictures, and the code that the page prints."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")
pytest.importorskip("PIL")

from matplotlib.figure import Figure

from fastrf import plot

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

# The benchmarks are no installed package.
_SPEC = importlib.util.spec_from_file_location("gallery", ROOT / "bench" / "gallery.py")
gallery = importlib.util.module_from_spec(_SPEC)
sys.modules["gallery"] = gallery
_SPEC.loader.exec_module(gallery)
ENTRIES = {entry.name: entry for entry in gallery.ENTRIES}


def test_the_page_is_up_to_date():
    text = (DOCS / "gallery.md").read_text(encoding="utf-8")
    assert text == gallery.page(), "run python -m bench.gallery docs"
    shown = set(re.findall(r"gallery/[\w@-]+\.png", text))
    assert len(shown) == 4 * len(ENTRIES)
    kept = {path.relative_to(DOCS).as_posix() for path in (DOCS / "gallery").iterdir()}
    assert kept == shown
    assert sum((DOCS / name).stat().st_size for name in kept) < 1.5e6


def test_every_kind_is_shown():
    text = gallery.page()
    for name in plot.__all__:
        if name.endswith("_figure"):
            assert f"rf.plot.{name}(" in text
    assert len(ENTRIES) == len(gallery.ENTRIES)


# Those that need no field of a large network, and no measurement.
SLOW = {"erf", "erf-deep", "erf-background", "growth", "growth-unet", "comparison"}
QUICK = sorted(set(ENTRIES) - SLOW)


@pytest.mark.parametrize("name", QUICK)
def test_its_code_draws(name):
    assert isinstance(ENTRIES[name].draw("light"), Figure)


def test_files(tmp_path, monkeypatch):
    from matplotlib.image import imread

    monkeypatch.setattr(gallery, "ENTRIES", (ENTRIES["stack-dilated"],))
    gallery.main([str(tmp_path)])
    assert "## Dilated convolutions." in (tmp_path / "gallery.md").read_text(encoding="utf-8")
    for theme in gallery.THEMES:
        small, large = (
            imread(tmp_path / "gallery" / f"stack-dilated-{theme}{mark}.png")
            for mark in ("", "@2x")
        )
        assert small.shape[1] == plot.COLUMN * gallery.DOTS
        assert large.shape[1] == 2 * small.shape[1]
        assert (small[0, 0, :3].mean() > 0.5) == (theme == "light")
