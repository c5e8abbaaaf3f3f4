"""The network as a graph, with what each node sees of the input."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, PathPatch
from matplotlib.path import Path

from fastrf.analytic.geometry import LayerField, ReceptiveField
from fastrf.erf import ERF
from fastrf.errors import InputError, printable
from fastrf.layers import Layer
from fastrf.metrics.given import defined
from fastrf.network import Network
from fastrf.plot import style
from fastrf.plot.layout import Layout, layered
from fastrf.plot.style import Theme, ThemeName, Width

# More boxes than this are collapsed further, where no depth is given.
_MOST = 24
# Points per line of text, lines per box, and the gap between layers in heights of a box.
_LINE, _LINES, _GAP = 1.25, 3, 0.55
# A box is so wide in points at the most, at the font of a tick; names beyond are shortened.
_WIDEST = 150.0
# Where a graph does not fit the figure's width in this font, the figure becomes wider.
_SMALLEST = 4.0
# Boxes stand so far apart, in their widths; strips of more layers are cut where they can be.
_STEP, _HIGH = 1.08, 9
_MARGIN = 8.0


@dataclass(frozen=True)
class Group:
    """A box of the picture: a node, or several under one name.

    Attributes:
        name: the node's, or what the names of its nodes begin with.
        nodes: in topological order; the last one is what the box's numbers are of.
        repeats: how many equal parts one behind the other it is made of.
    """

    name: str
    nodes: tuple[str, ...]
    repeats: int


def graph_figure(
    field: ReceptiveField,
    fields: Mapping[str, ERF] | None = None,
    *,
    depth: int | None = None,
    width: Width = "full",
    theme: ThemeName = "light",
) -> Figure:
    """The network as a graph: each node with its layer, TRF, stride and, where given, ERF.

    Nodes whose names begin alike ("layer1.0.conv1", "layer1.0.bn1") are drawn as one box with the
    numbers of its last node; so are chains of nodes that move no pixel with the node before them,
    and long chains of one kind. The input is at the top.

    Args:
        field: ``receptive_field(net)``.
        fields: ``erf(net, layers="all")``: the boxes then say Luo et al.'s size of the ERF too.
        depth: parts of the names, between dots, that are told apart: 1 is one box for all of
            "layer1". Default: as many as make at most 24 boxes. 0 tells all nodes apart.
        width, theme: as in `fastrf.plot`.

    Raises:
        InputError: `depth` is no whole number from 0 on, or `fields` are of another network.
    """
    colors, across = style.theme_of(theme), style.inches(width)
    if depth is not None and (type(depth) is not int or depth < 0):
        raise InputError(f"depth={depth!r} must be a whole number from 0 on, or None")
    network = field.network
    if fields and next(iter(fields.values())).network.bound is not network.bound:
        raise InputError(
            'fields are of another network than field; give those of erf(net, layers="all")'
        )
    groups, sources = collapsed(network, depth)
    layout = layered({g.name: read for g, read in zip(groups, sources, strict=True)})
    return _draw(field, fields or {}, groups, layout, across, colors)


# --- boxes ----------------------------------------------------------------------------------


def collapsed(network: Network, depth: int | None) -> tuple[list[Group], list[list[str]]]:
    """The boxes in topological order, and the names of the boxes that each reads."""
    if depth is not None:
        boxes = _Boxes(network, depth)
        if depth:
            boxes.fuse(boxes.is_pointwise)
        return boxes.result()
    deepest = max(name.count(".") for name in network.nodes)
    depths = (0, *range(deepest, 0, -1))
    plans = [
        (0, False, False),
        *((d, True, False) for d in depths),
        *((d, True, True) for d in depths),
    ]
    found: list[tuple[list[Group], list[list[str]]]] = []
    for tried, pointwise, alike in plans:
        boxes = _Boxes(network, tried)
        if pointwise:
            boxes.fuse(boxes.is_pointwise)
        if alike:
            boxes.fuse(boxes.is_alike)
        found.append(boxes.result())
        if len(found[-1][0]) <= _MOST:
            return found[-1]
    return min(found, key=lambda result: len(result[0]))


class _Boxes:
    """A partition of a network's nodes that reads itself in no cycle.

    Attributes:
        label: node → the name of its box.
        repeats: box → how many boxes alike it was made of.
    """

    def __init__(self, network: Network, depth: int) -> None:
        """Boxes by the first `depth` parts of the nodes' names; 0 tells all nodes apart."""
        self.network = network
        self.label = {n: ".".join(n.split(".")[:depth]) if depth else n for n in network.nodes}
        self.repeats: dict[str, int] = {}
        self._order()
        while len(self.order) < len(self.members):
            # Boxes that read each other: the largest of them is taken apart.
            tangled = set(self.members) - set(self.order)
            largest = max(tangled, key=lambda own: len(self.members[own]))
            self.label |= {name: name for name in self.members[largest]}
            self._order()

    def _order(self) -> None:
        """Boxes, what they read and their topological order; without those that are in cycles."""
        self.members: dict[str, list[str]] = {}
        for name, own in self.label.items():
            self.members.setdefault(own, []).append(name)
        self.read: dict[str, list[str]] = {}
        for own, nodes in self.members.items():
            sources = [self.label[s] for n in nodes for s in self.network.nodes[n].inputs]
            self.read[own] = [other for other in dict.fromkeys(sources) if other != own]
        readers: dict[str, list[str]] = {own: [] for own in self.members}
        for own, read in self.read.items():
            for source in read:
                readers[source].append(own)
        waiting = {own: len(read) for own, read in self.read.items()}
        self.order = [own for own, count in waiting.items() if count == 0]
        for own in self.order:
            for reader in readers[own]:
                waiting[reader] -= 1
                if waiting[reader] == 0:
                    self.order.append(reader)
        self.readers = {own: len(found) for own, found in readers.items()}
        for output in self.network.outputs:
            # An output is read from outside.
            self.readers[self.label[output]] += 1

    def layers(self, own: str) -> list[Layer]:
        return [self.network.nodes[name].layer for name in self.members[own]]

    def is_pointwise(self, own: str, source: str) -> bool:
        """Whether a box is one layer that moves no pixel."""
        (layer, *more) = self.layers(own)
        return not more and type(layer).maps is Layer.maps and layer.inputs == (1, 1)

    def is_alike(self, own: str, source: str) -> bool:
        return self.layers(own) == self.layers(source)

    def fuse(self, rule: Callable[[str, str], bool]) -> None:
        """Joins boxes to the only box that they read, where nothing else reads that one."""
        root: dict[str, str] = {}
        for own in self.order:
            root[own] = own
            if len(self.read[own]) == 1:
                (source,) = self.read[own]
                if self.read[source] and self.readers[source] == 1 and rule(own, source):
                    root[own] = root[source]
        if rule == self.is_alike:
            self.repeats = dict(Counter(root.values()))
        self.label = {name: root[own] for name, own in self.label.items()}
        self._order()

    def result(self) -> tuple[list[Group], list[list[str]]]:
        groups = [
            Group(own, tuple(self.members[own]), self.repeats.get(own, 1)) for own in self.order
        ]
        return groups, [self.read[own] for own in self.order]


# --- what stands in them --------------------------------------------------------------------


def _texts(
    group: Group, field: ReceptiveField, table: Mapping[str, LayerField], fields: Mapping[str, ERF]
) -> list[str]:
    """The lines of a box: its name, its layers and its numbers."""
    name, last = group.name, group.nodes[-1]
    layers = [field.network.nodes[node].layer for node in group.nodes]
    if group.repeats > 1:
        each = len(layers) // group.repeats
        # What the last of them is called, without what it shares with the layers in it.
        end = group.nodes[-each]
        name = f"{name} … {end if each == 1 or '.' not in end else end.split('.')[0]}"
        what = _what(layers[:each])
        what = f"{group.repeats} × {f'({what})' if each > 1 else what}"
    else:
        what = _what(layers)
    if last not in table:
        size = field.input_size if last == field.input else None
        return [name, style.times(size) if size else "unbounded grid"]
    row = table[last]
    if any(row.unbounded):
        numbers = "TRF everything"
    elif not all(row.size):
        numbers = "sees nothing of the input"
    else:
        numbers = f"TRF {style.brief(row.size)} · stride {style.brief(row.stride)}"
    if last in fields and (luo := defined(fields[last].luo_size)) is not None:
        numbers += f" · ERF {luo:.4g}"
    return [name, what, numbers]


def _what(layers: Sequence[Layer]) -> str:
    """A layer with its parameters, with the pointwise ones behind it; or how many there are."""
    first, *rest = layers
    if any(type(layer).maps is not Layer.maps or layer.inputs != (1, 1) for layer in rest):
        return f"{len(layers)} layers"
    parts = [first.kind]
    kernel = getattr(first, "kernel", None)
    if isinstance(kernel, tuple):
        parts[0] += f" {style.brief(kernel)}"
    for name in ("stride", "dilation", "scale"):
        values = getattr(first, name, None)
        if isinstance(values, tuple) and set(values) != {1}:
            parts.append(f"{name} {style.brief(values)}")
    kinds = list(dict.fromkeys(layer.kind for layer in rest))
    return ", ".join([*parts, *kinds[:3], *(["…"] if len(kinds) > 3 else [])])


# --- the picture ----------------------------------------------------------------------------


class _Paper:
    """Places in points of the layout's, for boxes of one width and font.

    A high graph is cut where a single edge leads from one layer to the next, and goes on beside.
    """

    def __init__(self, layout: Layout, width: float, box: float, font: float) -> None:
        self.font, self.box = font, box
        self.high = (_LINES * _LINE + 0.8) * font
        self.pitch = self.high * (1 + _GAP)
        self.step = box * _STEP
        self.gutter = 4 * font
        strip = (layout.width - 1) * self.step + box
        self.starts = _cuts(layout, int((width - _MARGIN) // (strip + self.gutter)))
        every = len(self.starts) * (strip + self.gutter) - self.gutter
        self.width = max(width, every + _MARGIN)
        self.left = (self.width - every + box) / 2
        self.shift = strip + self.gutter
        ends = [*self.starts[1:], layout.height]
        longest = max(end - start for start, end in zip(self.starts, ends, strict=True))
        self.height = longest * self.pitch - self.high * _GAP + _MARGIN
        # What leads from strip to strip passes over and under them.
        self.bend = 0.22 * self.pitch
        self.top = _MARGIN / 2 + (self.bend if len(self.starts) > 1 else 0)
        self.height += 2 * (self.top - _MARGIN / 2)

    def strip(self, layer: int) -> int:
        """Which of the strips beside each other a layer is in."""
        return bisect_right(self.starts, layer) - 1

    def at(self, across: float, layer: int) -> tuple[float, float]:
        """The middle of a place, from the left and down from the top."""
        strip = self.strip(layer)
        down = (layer - self.starts[strip]) * self.pitch
        return (
            self.left + strip * self.shift + across * self.step,
            self.top + self.high / 2 + down,
        )


def _cuts(layout: Layout, most: int) -> list[int]:
    """The first layers of up to `most` strips of about equal length, as few as are low enough."""
    crossing = [0] * (layout.height + 1)
    for source, reader in layout.bends:
        for layer in range(layout.layer[source] + 1, layout.layer[reader] + 1):
            crossing[layer] += 1
    allowed = [layer for layer in range(1, layout.height) if crossing[layer] == 1]
    starts = [0]
    for count in range(1, max(most, 1) + 1):
        wanted = [layout.height * i / count for i in range(1, count)]
        near = (
            {min(allowed, key=lambda layer: abs(layer - w)) for w in wanted} if allowed else set()
        )
        starts = sorted({0, *near})
        ends = [*starts[1:], layout.height]
        if max(end - start for start, end in zip(starts, ends, strict=True)) <= _HIGH:
            break
    return starts


def _draw(
    field: ReceptiveField,
    fields: Mapping[str, ERF],
    groups: Sequence[Group],
    layout: Layout,
    width: float,
    theme: Theme,
) -> Figure:
    figure = style.blank(width, 4, theme, free=True)
    table = {row.name: row for row in field.layers}
    texts = {g.name: _texts(g, field, table, fields) for g in groups}
    font, room = _fitting(figure, list(texts.values()), layout)
    paper = _Paper(layout, 72 * width, room, font)
    top = 18.0
    figure.set_size_inches(paper.width / 72, (paper.height + top) / 72)
    panel = figure.add_axes((0, 0, 1, paper.height / (paper.height + top)))
    panel.set_axis_off()
    panel.set_xlim(0, paper.width)
    panel.set_ylim(paper.height, 0)
    name = field.network.name or "network"
    heading = f"{name}: {len(field.network)} layers, sizes in input pixels"
    style.title(figure, theme, heading + (", ERF: Luo's size" if fields else ""))
    assert figure._suptitle is not None  # type: ignore[attr-defined]
    figure._suptitle.set(y=1 - 5 / (paper.height + top), va="top")  # type: ignore[attr-defined]
    _draw_edges(panel, layout, paper, theme)
    shown = {field.node, *field.network.outputs}
    for group in groups:
        x, y = paper.at(layout.across[group.name], layout.layer[group.name])
        lines = texts[group.name]
        end = field.input in group.nodes or bool(shown & set(group.nodes))
        panel.add_patch(
            FancyBboxPatch(
                (x - room / 2, y - paper.high / 2),
                room,
                paper.high,
                boxstyle=f"round,pad=0,rounding_size={0.5 * font}",
                facecolor=theme.panel,
                edgecolor=theme.erf if end else theme.muted,
                linewidth=1.2 if end else 0.6,
                zorder=3,
            )
        )
        for line, text in enumerate(lines):
            panel.text(
                x,
                y + (line - (len(lines) - 1) / 2) * _LINE * font,
                style.shortened(figure, text, 0.95 * room * figure.dpi / 72, font),
                ha="center",
                va="center",
                fontsize=font,
                fontweight="bold" if line == 0 else "normal",
                color=theme.muted if line == 1 else theme.ink,
                zorder=4,
            )
    return figure


def _fitting(figure: Figure, texts: Sequence[Sequence[str]], layout: Layout) -> tuple[float, float]:
    """The largest font, and width of a box in points, with which the graph fits the figure."""
    probe = figure.text(0, 0, "", fontsize=style.SMALL, fontweight="bold", parse_math=False)
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    longest = 0.0
    for text in {line for lines in texts for line in lines}:
        probe.set_text(printable(text))
        longest = max(longest, probe.get_window_extent(renderer).width * 72 / figure.dpi)
    probe.remove()
    # Long names are shortened; numbers are not.
    wanted = min(longest * 1.06 + 4, _WIDEST)
    available = (figure.get_figwidth() * 72 - _MARGIN) / ((layout.width - 1) * _STEP + 1.1)
    font = max(style.SMALL * min(1.0, available / wanted), _SMALLEST)
    return font, wanted * font / style.SMALL


def _draw_edges(panel: Axes, layout: Layout, paper: _Paper, theme: Theme) -> None:
    half = paper.high / 2
    leaving: dict[Any, list[tuple[float, Any]]] = {}
    arriving: dict[Any, list[tuple[float, Any]]] = {}
    for edge, bends in layout.bends.items():
        source, reader = edge
        leaving.setdefault(source, []).append(
            (bends[0][0] if bends else layout.across[reader], edge)
        )
        arriving.setdefault(reader, []).append(
            (bends[-1][0] if bends else layout.across[source], edge)
        )
    out = {edge: port for edges in leaving.values() for edge, port in _ports(edges, paper)}
    into = {edge: port for edges in arriving.values() for edge, port in _ports(edges, paper)}
    for edge, bends in layout.bends.items():
        source, reader = edge
        x, y = paper.at(layout.across[source], layout.layer[source])
        start = x + out[edge], y + half
        x, y = paper.at(layout.across[reader], layout.layer[reader])
        tip = 0.45 * paper.font
        end = x + into[edge], y - half - tip
        points = [start]
        for across, layer in bends:
            x, y = paper.at(across, layer)
            points += [(x, y - half), (x, y + half)]
        if paper.strip(layout.layer[source]) == paper.strip(layout.layer[reader]):
            path = _smooth([*points, end])
        else:
            path = _around(start, end, paper)
        panel.add_patch(PathPatch(path, fill=False, edgecolor=theme.muted, linewidth=0.8, zorder=1))
        panel.fill(
            [end[0] - 0.4 * tip, end[0] + 0.4 * tip, end[0]],
            [end[1], end[1], end[1] + tip],
            color=theme.muted,
            linewidth=0,
            zorder=2,
        )


def _around(start: tuple[float, float], end: tuple[float, float], paper: _Paper) -> Path:
    """From the foot of a strip, between the strips, to the head of the next."""
    bend = paper.bend
    strip = int((end[0] - paper.left + paper.box / 2) // paper.shift)
    gutter = paper.left - paper.box / 2 + strip * paper.shift - paper.gutter / 2
    corners = [(start[0], start[1] + bend), (gutter, start[1] + bend)]
    corners += [(gutter, end[1] - bend), (end[0], end[1] - bend)]
    places, codes = [start], [Path.MOVETO]
    for before, corner, after in zip([start, *corners], corners, [*corners[1:], end], strict=False):
        for other in (before, after):
            length = max(abs(other[0] - corner[0]), abs(other[1] - corner[1]), 1e-9)
            part = min(0.8 * bend, length / 2) / length
            places.append(
                (
                    corner[0] + part * (other[0] - corner[0]),
                    corner[1] + part * (other[1] - corner[1]),
                )
            )
        codes += [Path.LINETO, Path.LINETO]
        # The corner itself is cut off by a curve.
        last = places.pop()
        places += [corner, last]
        codes[-1:] = [Path.CURVE3, Path.CURVE3]
    places.append(end)
    codes.append(Path.LINETO)
    return Path(np.array(places), codes)


def _ports(edges: Sequence[tuple[float, Any]], paper: _Paper) -> list[tuple[Any, float]]:
    """How far from the middle of a box each of its edges begins or ends."""
    ordered = sorted(edges, key=lambda item: item[0])
    apart = min(paper.font * 1.2, 0.6 * paper.box / len(ordered))
    return [(edge, (i - (len(ordered) - 1) / 2) * apart) for i, (_, edge) in enumerate(ordered)]


def _smooth(points: Sequence[tuple[float, float]]) -> Path:
    """A curve through the points that is vertical in each of them."""
    places, codes = [points[0]], [Path.MOVETO]
    for (x0, y0), (x1, y1) in pairwise(points):
        middle = (y0 + y1) / 2
        places += [(x0, middle), (x1, middle), (x1, y1)]
        codes += [Path.CURVE4] * 3
    return Path(np.array(places), codes)
