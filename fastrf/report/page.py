"""A report's page: one HTML file with its style, its script and its data inside.

Nothing is fetched: a content security policy in the page forbids it, and lets no script run but
the page's own. All texts that come from a network are escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from fastrf.analytic.ends import AxisEnds
from fastrf.check import CheckReport
from fastrf.report.document import SHARES, Document, LayerReport, Sample, TilingReport
from fastrf.report.pictures import DECADES, LEVELS, Picture

AXES = {1: ("x",), 2: ("y", "x"), 3: ("z", "y", "x")}
"""Names of the axes, first to last."""

MOST_MISALIGNED = 200
"""Misaligned merges that are listed."""

_NOTHING = 1e-13
"""What is left of a sum that is zero but for rounding."""


def render(document: Document) -> str:
    """The page as a text; the same for equal documents."""
    style, script = (_asset(name) for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src "
        f"'{_hash(script)}'"
    )
    sections = [
        ("summary", "Summary", _summary(document)),
        ("view-section", "Fields on the input", _view(document)),
        ("layers-section", "Layers", _layers(document)),
        ("tiling", "Inference in tiles", _tiling(document)),
        ("check", "Cross-check", _check(document.check)),
        ("assumptions", "Assumptions and definitions", _assumptions(document)),
    ]
    shown = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{anchor}">{title}</a>' for anchor, title, _ in shown)
    body = "\n".join(
        f'<section id="{anchor}" aria-labelledby="{anchor}-title">\n'
        f'<h2 id="{anchor}-title">{title}</h2>\n{content}\n</section>'
        for anchor, title, content in shown
    )
    own = ""
    if document.layers:
        own = (
            f'<script type="application/json" id="data">{_data(document)}</script>\n'
            f"<script>{script}</script>\n"
        )
    title = escape(document.title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="fastrf {escape(document.version)}">
<title>{title}: receptive fields</title>
<link rel="icon" href="data:,">
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="lead">{_lead(document)}</p>
<nav aria-label="Sections">{links}</nav>
</header>
<main>
{body}
</main>
<footer>fastrf {escape(document.version)} · network {document.field.network.fingerprint}</footer>
{own}</body>
</html>
"""


def _asset(name: str) -> str:
    return files("fastrf.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


# --- texts ----------------------------------------------------------------------------------


def _number(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        if math.isinf(value):
            return "∞" if value > 0 else "−∞"
        return f"{value if abs(value) > _NOTHING else 0:.4g}".replace("-", "−")
    return str(value).replace("-", "−")


def _axes(values: Sequence[Any] | None, between: str = " × ") -> str:
    """One value per axis; a single one where all axes agree."""
    if values is None:
        return "–"
    texts = [_number(v) for v in values]
    return texts[0] if len(set(texts)) == 1 else between.join(texts)


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.3g}%"


def _items(texts: Iterable[str]) -> str:
    """A list of texts that are escaped already."""
    found = "".join(f"<li>{text}</li>" for text in texts)
    return f'<ul class="notes">{found}</ul>' if found else ""


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], words: int = 1) -> str:
    """A small table of escaped texts; the first `words` columns are words."""

    def cells(tag: str, texts: Sequence[str]) -> str:
        parts = []
        for column, text in enumerate(texts):
            word = ' class="word"' if column < words else ""
            parts.append(f"<{tag}{word}>{text}</{tag}>")
        return f"<tr>{''.join(parts)}</tr>"

    body = "".join(cells("td", row) for row in rows)
    return f"<table><thead>{cells('th', head)}</thead><tbody>{body}</tbody></table>"


# --- summary --------------------------------------------------------------------------------


def _grid(document: Document) -> str:
    size = document.field.input_size
    return "the unbounded grid" if size is None else f"an input of {_axes(size)} pixels"


def _lead(document: Document) -> str:
    network = document.field.network
    return escape(
        f"{len(network)} layers, {network.ndim}-D, on {_grid(document)}. What the units of each "
        f"layer can see (the theoretical receptive field, TRF), and what they really look at (the "
        f"effective one, ERF; Luo et al. 2016)."
    )


def _figures(pairs: Iterable[tuple[str, str]]) -> str:
    rows = "".join(f"<div><dt>{escape(a)}</dt><dd>{escape(b)}</dd></div>" for a, b in pairs)
    return f'<dl class="figures">{rows}</dl>'


def _size(document: Document) -> str:
    unbounded = [any(not e.advance for e in ends) for ends in document.field.ends]
    sizes = document.field.size
    return _axes(
        [math.inf if u and s is None else s for s, u in zip(sizes, unbounded, strict=True)]
    )


def _summary(document: Document) -> str:
    field, erf = document.field, document.output
    pairs = [
        ("Output", field.node),
        ("TRF, pixels", _size(document)),
        ("Stride", _axes(field.stride)),
        ("Padding", _axes(field.padding)),
        ("Centre of unit 0", _axes(field.center)),
    ]
    if field.map_size is not None:
        pairs.append(("Output map", " × ".join(map(str, field.map_size))))
    if erf is not None:
        pairs += [
            ("ERF: Luo's size, pixels", _number(erf["luo_size"]["amplitude"])),
            ("ERF: σ, pixels", _axes(erf["std"])),
            ("Luo's size / TRF", _percent(erf["ratio"])),
            ("Width at half maximum", _axes(erf["fwhm"])),
            ("Log gain", _number(erf["log_gain"])),
        ]
        if field.input_size is not None:
            pairs.append(("Mass lost in padding", _percent(erf["lost_mass"])))
    notes = [escape(note) for note in document.notes]
    if document.why:
        notes.append(f"{escape(field.node)} has no ERF: {escape(document.why)}.")
    elif erf is not None and not erf["exact"]:
        notes.append('<span class="warn">The ERF is approximate.</span>')
    if erf is not None:
        notes += [escape(_sentence(warning)) for warning in erf["warnings"]]
    if document.ignore_global:
        notes.append("Paths through global layers are left out.")
    if field.unbounded_by:
        names = escape(", ".join(field.unbounded_by))
        notes.append(f"The TRF is the whole input through {names}.")
    if max(field.period) > 1:
        notes.append(
            f"The output has {_axes(field.period)} phases: units that far apart have the same "
            f"fields but for a shift; size and centre are the largest and the mean over them."
        )
    if field.has_holes:
        notes.append("There are pixels inside a unit's box that it does not see (holes).")
    notes += _misaligned(document)
    return _figures(pairs) + _items(notes)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:].rstrip('.')}."


def _misaligned(document: Document) -> list[str]:
    """A note on merges whose paths do not line up, which lists them."""
    found = document.field.misaligned
    if document.field.aligned:
        return []
    merges = []
    for report in found[:MOST_MISALIGNED]:
        paths = "; ".join(
            f"{p.source}: stride {_number(p.stride)}, centre {_number(p.center)}"
            for p in report.paths
        )
        merges.append(escape(f"{report.node}, axis {report.axis}: {paths}."))
    if len(found) > MOST_MISALIGNED:
        merges.append(f"And {len(found) - MOST_MISALIGNED} more.")
    strides = any(len(ends) > 1 for ends in document.field.ends)
    text = "stride: sizes depend on the unit" if strides else "centre: sizes are the union's"
    return [
        f"Paths that merge do not line up, and differ in {text}. Boxes are exact."
        f"<details><summary>{len(found)} such merges and axes</summary>{_items(merges)}</details>"
    ]


# --- the view -------------------------------------------------------------------------------


def _view(document: Document) -> str:
    if not document.layers:
        return ""
    bounded = document.field.input_size is not None
    views = [("image", "the image")] if bounded else []
    views += [("layer", "this layer"), ("network", "the output's field")]
    options = "".join(f'<option value="{value}">{text}</option>' for value, text in views)
    keys = "arrow keys move it"
    if document.field.network.ndim == 3:
        keys += " in a section"
    last = len(document.layers) - 1
    return f"""<p>Choose a layer, then point at a unit (or touch it; {keys}): its box and its ERF
appear on the input.</p>
<div class="controls">
<div class="slide"><button id="back" type="button" aria-label="Previous layer">‹</button>
<input id="slider" type="range" min="0" max="{last}" value="{last}" aria-label="Layer">
<button id="on" type="button" aria-label="Next layer">›</button></div>
<label>Show <select id="view">{options}</select></label>
<label>Scale <select id="scale"><option value="log">logarithmic</option>
<option value="linear">linear</option></select></label>
</div>
<p><span id="layer"></span> <span id="op" class="soft"></span></p>
<figure>
<div id="panels"></div>
<p id="said" aria-live="polite"></p>
<ul class="legend soft">
<li><i class="box"></i>TRF of the unit</li><li><i class="here"></i>the unit</li>
<li><i class="unit"></i>other units</li>
<li>ERF: <span id="lowest"></span>
<canvas id="ramp" width="256" height="1" role="img" aria-label="Colour scale"></canvas>
its peak</li>
</ul>
<figcaption>{_caption(document)}</figcaption>
</figure>
{_growth(document)}"""


def _caption(document: Document) -> str:
    steps = {max(step) for p in _pictures(document) for step in p.steps}
    averaged = (
        f"summed over blocks of up to {max(steps)} pixels a side"
        if steps and max(steps) > 1
        else "pixel by pixel"
    )
    text = (
        f"Boxes are exact, for every unit. Images show the gradient variance {averaged}, in "
        f"{LEVELS} steps of a logarithmic scale over {DECADES} decades below the peak; what is "
        f"less is blank. Profiles beside them are the mass along each axis, relative to its peak. "
    )
    if document.field.network.ndim == 3:
        text += "Images are sections through the middle of the unit's box. "
    if document.field.input_size is None:
        text += (
            "On the unbounded grid a unit's ERF moves with it; where a decoder has several phases, "
            "each has an image of its own if there are few, and the text below the image says "
            "whether it is the unit's own. "
        )
    else:
        text += (
            "On an image the ERFs of units near the border are cut. Units that meet no padding "
            "have that of the middle one, moved; of the others the first and the last along each "
            "axis have their own, and the rest are shown the nearest of these. The text below the "
            "image says which. Boxes are those of the unbounded network: what they hold beyond "
            "the image is padding. "
        )
    return escape(text.strip())


def _growth(document: Document) -> str:
    """The sizes over the layers, as a drawing."""
    trf: list[tuple[int, float]] = []
    erf: list[tuple[int, float]] = []
    for i, layer in enumerate(document.layers):
        sizes = layer.row.size
        if None not in sizes and all(s and math.isfinite(s) for s in sizes):
            trf.append((i, math.prod(float(s or 1) for s in sizes) ** (1 / len(sizes))))
        if layer.luo_size:
            erf.append((i, layer.luo_size))
    if len(trf) < 2:
        return ""
    left, top, width, height = 44, 10, 640, 150
    values = [v for _, v in trf + erf]
    low, high = math.log10(max(min(values), 1) * 0.9), math.log10(max(values) * 1.1)

    def x(i: int) -> float:
        return left + width * i / max(len(document.layers) - 1, 1)

    def y(value: float) -> float:
        return top + height * (high - math.log10(value)) / (high - low)

    def line(kind: str, points: list[tuple[int, float]]) -> str:
        path = " ".join(f"{x(i):.1f},{y(v):.1f}" for i, v in points)
        return f'<polyline class="{kind}" points="{path}"/>'

    ticks = [
        value
        for power in range(math.floor(low), math.ceil(high) + 1)
        for value in (10.0**power, 2 * 10.0**power, 5 * 10.0**power)
        if low <= math.log10(value) <= high
    ]
    if len(ticks) > 7:
        ticks = [t for t in ticks if f"{t:e}".startswith("1")]
    axis = "".join(
        f'<line class="axis" x1="{left}" x2="{left + width}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text x="{left - 5}" y="{y(t) + 4:.1f}" text-anchor="end">{t:g}</text>'
        for t in ticks
    )
    names = '<tspan class="trf-name">TRF</tspan>' + (
        ' and <tspan class="erf-name">ERF (Luo\'s size)</tspan>' if erf else ""
    )
    return f"""<h3>Growth over the layers</h3>
<svg class="growth" viewBox="0 0 {left + width + 12} {top + height + 22}" role="img"
 aria-label="Sizes of the theoretical and the effective field over the layers, in pixels"
 data-left="{left}" data-width="{width}">{axis}
<text x="{left}" y="{top + height + 16}">first layer</text>
<text x="{left + width}" y="{top + height + 16}" text-anchor="end">last layer</text>
{line("trf", trf)}{line("erf", erf)}
<text x="{left + 10}" y="{top + 16}">{names}</text>
<line class="at" x1="{left}" x2="{left}" y1="{top}" y2="{top + height}"/></svg>
<p class="soft">Side in pixels, logarithmic (geometric mean over the axes). Click to go to a
layer.</p>"""


# --- the table ------------------------------------------------------------------------------


def _cell(text: str, value: float | None) -> str:
    key = "" if value is None or math.isnan(value) else f' data-value="{value:.12g}"'
    return f"<td{key}>{escape(text)}</td>"


def _mean_value(values: Sequence[Any] | None) -> float | None:
    """What a cell of several values is sorted by."""
    if values is None or any(v is None for v in values):
        return None
    return sum(float(v) for v in values) / len(values)


def _layers(document: Document) -> str:
    bounded = document.field.input_size is not None
    head = [("#", False), ("layer", True), ("kind", True)]
    head += [("map", False)] if bounded else []
    head += [(name, False) for name in ("TRF", "stride", "padding", "start", "ERF σ")]
    head += [("ERF, Luo's size", False), ("ERF / TRF", False), ("log gain", False)]
    head += [("lost mass", False)] if bounded else []
    cells = "".join(
        f'<th scope="col"{" class=word" if word else ""}><button type="button">{text}</button></th>'
        for text, word in head
    )
    rows = "\n".join(_row(i, layer, bounded) for i, layer in enumerate(document.layers))
    return f"""<p class="soft">One value stands for all axes where they agree. Stride: how far the
field moves from one unit to the next (Dang Ha The Hien's jump). Padding: how many pixels before the
input unit 0's field begins (Distill). Start: centre of unit 0's field, the first pixel's at 1/2
(Dang). Click a heading to sort, a name to see the layer.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Table of layers"><table id="layers">
<thead><tr>{cells}</tr></thead>
<tbody>
{rows}
</tbody></table></div>"""


def _row(index: int, layer: LayerReport, bounded: bool) -> str:
    row = layer.row
    sizes = [math.inf if u else s for s, u in zip(row.size, row.unbounded, strict=True)]
    mark = "" if row.aligned else " (misaligned)"
    name = f'<td class="word"><button type="button">{escape(row.name)}</button></td>'
    cells = [_cell(str(index + 1), index), name, f'<td class="word">{escape(row.op)}</td>']
    if bounded:
        cells.append(_cell(_axes(row.shape), _mean_value(row.shape)))
    cells += [
        _cell(_axes(sizes) + mark, _mean_value(sizes)),
        _cell(_axes(row.stride), _mean_value(row.stride)),
        _cell(_axes(row.padding, ", "), _mean_value(row.padding)),
        _cell(_axes(row.start, ", "), _mean_value(row.start)),
        _cell(_axes(layer.std), _mean_value(layer.std)),
        _cell(_number(layer.luo_size), layer.luo_size),
        _cell(_percent(layer.ratio), layer.ratio),
        _cell(_number(layer.log_gain), layer.log_gain),
    ]
    if bounded:
        lost = layer.lost_mass
        cells.append(_cell(_percent(lost), lost))
    return f'<tr data-layer="{index}">{"".join(cells)}</tr>'


# --- tiles ----------------------------------------------------------------------------------


def _tiling(document: Document) -> str:
    found = document.tiling
    if found.obstacle:
        return f"<p>{escape(_sentence(found.obstacle))}</p>"
    groups = _alike(found, document.field.network.ndim or 1)
    parts = [
        """<p>An image too large for memory can be run in overlapping tiles whose results are
exactly those of the whole image. Tiles begin at multiples of the block; a block's units read so
many pixels before and behind it (the halo). Where nothing is padded, a tile gives right units
only; in a padded network those within the halo of a tile's own borders are wrong and are thrown
away. <code>fastrf.tiling.tiles(net, image_size, tile_size)</code> gives the slices.</p>"""
    ]
    rows = [
        [
            names,
            str(found.halos[axis].block),
            str(found.halos[axis].units),
            str(found.halos[axis].left),
            str(found.halos[axis].right),
            str(found.halos[axis].overlap),
        ]
        for names, axis in groups
    ]
    head = [
        "axis",
        "block, pixels",
        "units per block",
        "halo before",
        "halo behind",
        "least overlap",
    ]
    parts.append(f'<div class="scroll narrow" tabindex="0">{_table(head, rows)}</div>')
    parts.append(
        f'<p class="soft">The overlap of neighbouring tiles; beginning at multiples of the block '
        f"may cost up to a block less one pixel more. For {escape(document.field.node)}.</p>"
    )
    if found.cuts:
        parts.append(
            """<h3>Smaller overlaps</h3>
<p>What a smaller halo cuts off is the ERF's mass beyond it, for the unit that loses most. Here are
the least halos that cut no more than a share (half of it on either side). Units inside a tile lose
less, and a padded network a little more than this, on paths that leave the tile and come back. A
negative halo leaves out a part of the block itself, of which its units see little.</p>"""
        )
        head = ["mass cut, at most"]
        several = len(groups) > 1
        for names, _ in groups:
            along = f" along {names}" if several else ""
            head += [f"before{along}", f"behind{along}", f"overlap{along}"]
        body = []
        for share in SHARES:
            cells = [_percent(share) if share else "nothing"]
            for _, axis in groups:
                least = found.cuts[axis].halo(share)
                cells += [_number(v) for v in (least.left, least.right, max(least.overlap, 0))]
            body.append(cells)
        parts.append(f'<div class="scroll narrow" tabindex="0">{_table(head, body)}</div>')
    return "\n".join(parts)


def _alike(found: TilingReport, ndim: int) -> list[tuple[str, int]]:
    """Axes with equal advice, together: their names and the first of them."""
    groups: list[tuple[list[str], int]] = []
    for axis, name in enumerate(AXES[ndim]):
        for names, first in groups:
            same = found.halos[axis] == found.halos[first]
            if same and found.cuts:
                same = all(found.cuts[axis].halo(s) == found.cuts[first].halo(s) for s in SHARES)
            if same:
                names.append(name)
                break
        else:
            groups.append(([name], axis))
    return [(" and ".join(names), axis) for names, axis in groups]


# --- check and assumptions ------------------------------------------------------------------


def _check(report: CheckReport | None) -> str:
    if report is None:
        return "<p>Left out.</p>"
    failed = sum(not row.ok for row in report.rows)
    total = len(report.rows)
    if report:
        verdict = f'<p class="good">✓ All {total} comparisons agree.</p>'
    elif failed:
        verdict = f'<p class="bad">✗ {failed} of {total} comparisons disagree.</p>'
    else:
        verdict = '<p class="warn">Nothing could be compared.</p>'
    rows = [
        [
            escape(row.quantity),
            "yes" if row.ok else '<span class="bad">NO</span>',
            escape(row.engine),
            escape(row.device),
            escape(row.dtype),
            escape(row.grid),
            f"{row.error:.2g}",
            f"{row.tolerance:.2g}",
        ]
        for row in sorted(report.rows, key=lambda row: row.ok)
    ]
    head = ["quantity", "agrees", "engine", "device", "dtype", "grid", "error", "tolerance"]
    skipped = _items(escape(f"Not compared: {reason}") for reason in report.skipped)
    return f"""<p>Every engine at hand computes the field of {escape(report.node)}, and is compared
with formulas that share no code with it. Tolerances are bounds on rounding.</p>
{verdict}{skipped}
<details><summary>The comparisons</summary>
<div class="scroll" tabindex="0" role="region" aria-label="Comparisons">
{_table(head, rows, 6)}</div>
</details>"""


def _assumptions(document: Document) -> str:
    found = [escape(_sentence(text)) for text in document.field.assumptions]
    assumed = _items(found) or "<p>Nothing had to be assumed: the network says it all.</p>"
    return f"""{assumed}
<h3>What the words mean</h3>
<ul class="notes">
<li><b>TRF</b>: the input pixels joined to a unit by some path, as the union over all paths; the box
from the first to the last of them. Without an input size the grid has no border.</li>
<li><b>ERF</b>: the variance of a unit's gradient at each pixel, with independent zero-mean
weights, normalised to sum 1 (Luo, Li, Urtasun and Zemel 2016). <b>Log gain</b>: the natural
logarithm of what it summed to.</li>
<li><b>Luo's size</b>: side of the square of as many pixels as lie above 4.55% of the centre, in
amplitude (the root of the variance). <b>σ</b>: standard deviation along an axis.</li>
<li><b>Lost mass</b>: the share of the gradient that falls into padding on its way.</li>
</ul>"""


# --- data -----------------------------------------------------------------------------------


def _pictures(document: Document) -> list[Picture]:
    """All pictures, each once, in the order of their first appearance."""
    return list(
        {id(s.picture): s.picture for layer in document.layers for s in layer.samples}.values()
    )


def _data(document: Document) -> str:
    """What the script reads, as JSON that may stand inside a script element."""
    pictures = _pictures(document)
    numbers = {id(p): i for i, p in enumerate(pictures)}
    names = [layer.row.name for layer in document.layers]
    output = names.index(document.field.node) if document.field.node in names else len(names) - 1
    size = document.field.input_size
    found = {
        "axes": AXES[document.field.network.ndim or 1],
        "inputSize": None if size is None else list(size),
        "output": output,
        "first": output,
        "levels": LEVELS,
        "decades": DECADES,
        "pictures": [p.to_dict() for p in pictures],
        "layers": [_layer_data(layer, numbers) for layer in document.layers],
    }
    text = json.dumps(found, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _layer_data(layer: LayerReport, numbers: dict[int, int]) -> dict[str, Any]:
    def sample(s: Sample) -> dict[str, Any]:
        found: dict[str, Any] = {"unit": s.unit, "origin": s.origin}
        return {**found, "picture": numbers[id(s.picture)], "middle": s.middle}

    return {
        "name": layer.row.name,
        "op": layer.row.op,
        "shape": layer.row.shape,
        "ends": [_ends_data(ends) for ends in layer.field.ends],
        "inner": layer.inner,
        "samples": [sample(s) for s in layer.samples],
        "note": layer.note,
    }


def _ends_data(ends: AxisEnds) -> list[list[Any]]:
    """[advance, firsts, lasts] per jump; null stands for firsts and lasts that are infinite."""
    return [
        [e.advance, None, None]
        if any(isinstance(v, float) and math.isinf(v) for v in e.firsts)
        else [e.advance, list(e.firsts), list(e.lasts)]
        for e in ends
    ]
