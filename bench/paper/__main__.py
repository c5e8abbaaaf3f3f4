"""Writes the page: ``python -m bench.paper [FOLDER]``."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg

from bench.paper import luo, others
from bench.paper.tables import page

DOCS = Path(__file__).parents[2] / "docs"

DPI = 140

TEXT = """\
Made by `python -m bench.paper`. The theory's figures are exact to rounding; measured ones are those
of the seeds in the code, and carry their scatter. Sizes are in input pixels, one axis each; σ is
the standard deviation of the gradient's variance over positions."""


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    found = []
    for source in (luo, others):
        for section in source.sections():
            found.append(section)
            if section.figure is not None:
                section.figure.set_dpi(DPI)
                FigureCanvasAgg(section.figure).print_png(str(folder / f"{section.key}.png"))
            print(f"{time.perf_counter() - start:6.1f} s  {section.title}", file=sys.stderr)
    text = page("The papers, computed anew", TEXT, found, folder.name)
    (folder.parent / f"{folder.name}.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "paper")
