"""Every kind of figure, drawn into a folder, and a page that shows them.

    python -m bench.gallery docs

writes ``docs/gallery.md`` and, beside it, ``docs/gallery/NAME-THEME.png`` for screens of one dot
a pixel and ``NAME-THEME@2x.png`` for those of two, in light and in dark.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DOTS = 100
"""Dots per inch on a screen of one dot a pixel: a page's width is 700 pixels."""

THEMES = ("light", "dark")


@dataclass(frozen=True)
class Entry:
    """A figure of the page.

    Attributes:
        name: of its files.
        caption: what it shows.
        setup: statements that prepare it.
        call: the expression that draws it, without its theme, as the page prints it.
        colors: how many its PNG files are reduced to; images need more than lines.
    """

    name: str
    caption: str
    setup: str
    call: str
    colors: int = 64

    @property
    def code(self) -> str:
        """What the page prints."""
        return f"{self.setup}\n{self.call}" if self.setup else self.call

    def draw(self, theme: str) -> Any:
        """The figure."""
        import numpy as np

        import fastrf as rf

        names: dict[str, Any] = {"rf": rf, "np": np}
        exec(self.setup, names)
        return eval(f"{self.call[:-1]}, theme={theme!r})", names)


_NET_3D = """\
block = rf.Residual(rf.Conv(3, padding=1), rf.Conv(3, padding=1))
net = rf.Sequential(rf.Conv((3, 7, 7), stride=(1, 2, 2), padding=(1, 3, 3)), *[block] * 3)
erf = rf.erf(net)"""

_PICTURE = """\
y, x = np.mgrid[:224, :224]
picture = 0.6 + 0.3 * np.sin(x / 9) * np.sin(y / 14) * (np.hypot(x - 120, y - 90) < 80)
erf = rf.erf(rf.zoo.resnet50(), "layer3", unit=(6, 8), input_size=224)"""

_MEASURED = """\
from torch import nn

layers = [nn.Conv2d(8 if i else 1, 8, 3, padding=1) for i in range(5)]
experiment = rf.empirical(nn.Sequential(*layers), (1, 1, 19, 19), draws=400, initialise="unit")
theory = rf.erf(experiment.network, input_size=19)"""

_CAUSAL = """\
dilated = [rf.Conv(2, dilation=d, padding=((d, 0),)) for d in (1, 2, 4, 8)]
field = rf.receptive_field(rf.Sequential(*dilated, ndim=1))"""

_DILATED = """\
dilated = [rf.Conv(3, dilation=d, padding=d) for d in (1, 2, 4)]
field = rf.receptive_field(rf.Sequential(*dilated, ndim=1))"""

_TRANSPOSED = """\
down = [rf.Conv(3, stride=2, padding=1)] * 2
up = [rf.ConvTranspose(4, stride=2, padding=1)] * 2
field = rf.receptive_field(rf.Sequential(*down, *up, ndim=1))"""

ENTRIES = (
    Entry(
        "erf",
        "The last map of ResNet-50 on 224 × 224 pixels: most of its TRF lies beyond the image.",
        "erf = rf.erf(rf.zoo.resnet50(), input_size=224)",
        'rf.plot.erf_figure(erf, width="column")',
        colors=128,
    ),
    Entry(
        "erf-deep",
        "A thousand layers of 3 × 3: the ERF is a dot in a TRF of 2001 pixels.",
        "erf = rf.erf(rf.zoo.plain(1000, 3))",
        'rf.plot.erf_figure(erf, width="column")',
        colors=128,
    ),
    Entry(
        "erf-border",
        "A unit in a corner: what falls into padding is lost.",
        "erf = rf.erf(rf.zoo.plain(12, 3), unit=(2, 29), input_size=32)",
        'rf.plot.erf_figure(erf, width="column")',
        colors=128,
    ),
    Entry(
        "erf-background",
        "Over the input.",
        _PICTURE,
        'rf.plot.erf_figure(erf, "linear", background=picture, width="column")',
        colors=256,
    ),
    Entry(
        "erf-1d",
        "Along one axis: the smallest sets that hold shares of the mass.",
        "erf = rf.erf(rf.zoo.tcn(4, 3))",
        'rf.plot.erf_figure(erf, width="column")',
    ),
    Entry(
        "profile",
        "Twenty layers of 3 × 3: the Gaussian is wrong in the tails, the saddlepoint form is not.",
        "erf = rf.erf(rf.zoo.plain(20, 3, 1))",
        "rf.plot.profile_figure(erf)",
    ),
    Entry(
        "sections",
        "A field in 3-D, as three orthogonal sections.",
        _NET_3D,
        "rf.plot.sections_figure(erf)",
        colors=128,
    ),
    Entry(
        "comparison",
        "Theory beside experiment: gradients of 400 networks of random weights.",
        _MEASURED,
        'rf.plot.comparison_figure(theory, experiment, width="column")',
        colors=64,
    ),
    Entry(
        "growth",
        "ResNet-50, layer by layer: the ERF falls behind the TRF.",
        'fields = rf.erf(rf.zoo.resnet50(), layers="all")',
        "rf.plot.growth_figure(fields)",
    ),
    Entry(
        "growth-unet",
        "A U-Net: skip connections narrow what the decoder sees.",
        'fields = rf.erf(rf.zoo.unet(4, 2), layers="all")',
        'rf.plot.growth_figure(fields, width="column")',
    ),
    Entry(
        "features",
        "AlexNet's feature maps at one size, as in Dang Ha The Hien's guide (2017).",
        "field = rf.receptive_field(rf.zoo.alexnet_dang(), input_size=227)",
        'rf.plot.features_figure(field, ["conv1", "pool1", "conv2", "pool2", "conv5", "pool5"])',
    ),
    Entry(
        "features-3d",
        "The same maps, stacked.",
        "field = rf.receptive_field(rf.zoo.alexnet_dang(), input_size=227)",
        'rf.plot.features_3d_figure(field, ["conv1", "pool1", "pool2", "pool5"])',
    ),
    Entry(
        "features-1d",
        "Features along one axis.",
        "net = rf.Sequential(*[rf.Conv(3, stride=2, padding=1)] * 4, ndim=1)\n"
        "field = rf.receptive_field(net, input_size=64)",
        'rf.plot.features_figure(field, width="column")',
    ),
    Entry(
        "graph",
        "ResNet-50: a box a block, with TRF and stride.",
        "field = rf.receptive_field(rf.zoo.resnet50())",
        "rf.plot.graph_figure(field)",
    ),
    Entry(
        "graph-unet",
        "A U-Net, with the ERF of each part.",
        "net = rf.zoo.unet(3, 2)\n"
        'field, fields = rf.receptive_field(net), rf.erf(net, layers="all")',
        'rf.plot.graph_figure(field, fields, width="column")',
    ),
    Entry(
        "stack-causal",
        "Dilated causal convolutions, as in WaveNet's figure.",
        _CAUSAL,
        "rf.plot.stack_figure(field)",
    ),
    Entry(
        "stack-dilated",
        "Dilated convolutions.",
        _DILATED,
        'rf.plot.stack_figure(field, width="column")',
    ),
    Entry(
        "stack-transposed",
        "Strided and transposed convolutions.",
        _TRANSPOSED,
        'rf.plot.stack_figure(field, 5, width="column")',
    ),
)


def page() -> str:
    """The page, in Markdown with pictures that follow the reader's theme."""
    parts = [
        "# Gallery",
        "Every kind of figure that `fastrf.plot` draws, each from the code below it "
        '(`import fastrf as rf`, `import numpy as np`). All take `width="column"` (3.4 inches) or '
        '`"full"` (7 inches) and `theme="light"` or `"dark"`, and `rf.plot.save(figure, path)` '
        "writes PNG, SVG and PDF. On the command line: `fastrf plot NET --kind graph -o out.svg`.",
        "`python -m bench.gallery docs` draws this page.",
    ]
    for entry in ENTRIES:
        files = {theme: f"gallery/{entry.name}-{theme}" for theme in THEMES}
        parts.append(f"## {entry.caption}")
        parts.append(
            "<picture>\n"
            f'  <source media="(prefers-color-scheme: dark)" '
            f'srcset="{files["dark"]}.png, {files["dark"]}@2x.png 2x">\n'
            f'  <img src="{files["light"]}.png" srcset="{files["light"]}@2x.png 2x" '
            f'alt="{entry.caption}">\n'
            "</picture>"
        )
        parts.append(f"```python\n{entry.code}\n```")
    return "\n\n".join(parts) + "\n"


def draw(entry: Entry, folder: Path) -> None:
    """Writes an entry's four files."""
    from fastrf.plot import save

    for theme in THEMES:
        figure = entry.draw(theme)
        for scale, mark in ((1, ""), (2, "@2x")):
            path = folder / f"{entry.name}-{theme}{mark}.png"
            save(figure, path, dpi=DOTS * scale)
            _shrink(path, entry.colors)


def _shrink(path: Path, colors: int) -> None:
    """Reduces the colours of a PNG, and its size to a third; rare colours stay what they are.

    The step of k-means gives large areas their own colour back: without it backgrounds are off by
    up to 17 of 255, each file's by another amount.
    """
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB").quantize(
            colors, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE, kmeans=1
        )
    small.save(path, optimize=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gallery", description=__doc__)
    parser.add_argument("folder", type=Path, help="where gallery.md and gallery/ are written")
    folder: Path = parser.parse_args(arguments).folder
    (folder / "gallery").mkdir(parents=True, exist_ok=True)
    for entry in ENTRIES:
        draw(entry, folder / "gallery")
    (folder / "gallery.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
