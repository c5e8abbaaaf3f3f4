"""Advice on one network: where its field stops growing, what sees no more, what would widen it.

σ and the TRF are computed from closed forms on the unbounded grid (`fastrf.analytic`), or from the
ERF itself where its layers correlate gradients; the tiles' smaller overlaps are read off the ERF.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import cached_property, reduce
from typing import Any

import numpy as np

from fastrf.analytic.geometry import LayerField, ReceptiveField, receptive_field
from fastrf.analytic.moments import moments
from fastrf.errors import InputError
from fastrf.layers import Conv, ConvTranspose, Layer
from fastrf.layers.windows import Windowed
from fastrf.lowering import PlaneGraph, lower
from fastrf.network import Network, Node, as_network

SLOW = 0.01
"""Growth of σ per layer below which a field counts as growing no more."""

SETTLED = 0.95
"""Share of the final σ from which on a field counts as settled."""

SHARES = (1e-2, 1e-3, 1e-4, 1e-6)
"""Shares of the ERF's mass that a smaller halo may cut off."""

DROPPED = 1e-9
"""Share of the mass that the ERF may lack, far below the smallest of `SHARES`."""

MOST_STAGES = 64
"""Most stages that are worked out; of more, every so many-th."""

SAME = 1e-5
"""Relative difference up to which the closed form's σ counts as the ERF's."""

LONGEST = 30
"""Most stages that are printed."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A layer through which every path goes, and what the network has seen by then.

    Attributes:
        name: the first such layer with this field.
        layers: windowed layers (convolutions, pooling) since the stage before, branches included.
        trf, std: size of the TRF and σ of the ERF, pixels, geometric means over the axes.
        growth: relative growth of σ per layer since the stage before; None for the first one.
        share: σ over the σ of the output.
    """

    name: str
    layers: int
    trf: float
    std: float
    growth: float | None
    share: float


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the network and what the field would become.

    Attributes:
        what: the change in words.
        layers: the layers that it changes.
        std, trf: of the changed network, pixels.
        std_factor, trf_factor, cost_factor: over those of the network; the cost is the
            multiply-adds of all convolutions (weighted with their channels, where known).
    """

    what: str
    layers: tuple[str, ...]
    std: float
    trf: float
    std_factor: float
    trf_factor: float
    cost_factor: float


@dataclass(frozen=True, slots=True)
class Tiles:
    """How an image may be cut into tiles that are run one by one; see `fastrf.tiling`.

    Attributes:
        alignment: per axis, the pixels of which the tiles' starts are multiples.
        halo: per axis, the pixels (before, behind) that a tile holds beyond its own, exactly.
        overlap: per axis, how many pixels two neighbouring tiles share: the sum of its halos.
        smaller: share → the halo that cuts at most this share of any unit's ERF, half of it on
            each side.
    """

    alignment: tuple[int, ...]
    halo: tuple[tuple[int, int], ...]
    overlap: tuple[int, ...]
    smaller: dict[float, tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class Advice:
    """What `advice` found; print it.

    Attributes:
        network, node: what it is about.
        input_size: pixels of the input per axis, or None.
        trf, std: of the output, pixels per axis.
        stages: growth, from the input up.
        stops_at: the first stage from which on σ grows by less than 1% per layer, or None.
        settled_at: the first stage that has 95% of the final σ.
        pointwise: layers with weights that cannot see more than they read (1×1).
        border: with an input size, the border layer: the first of `covered`. None: there is none.
        covered: layers that read a map whose TRF already covers the input on every axis, and so
            cannot see more of it (Richter et al. 2021 call them unproductive).
        changes: what would widen the field, the most effective first.
        tiles: see `Tiles`; None where no tiles give what the whole image gives.
        notes: what was assumed or left out.
    """

    network: str
    node: str
    input_size: tuple[int, ...] | None
    trf: tuple[int, ...]
    std: tuple[float, ...]
    stages: tuple[Stage, ...]
    stops_at: str | None
    settled_at: str
    pointwise: tuple[str, ...]
    border: str | None
    covered: tuple[str, ...]
    changes: tuple[Change, ...]
    tiles: Tiles | None
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the attributes' names."""
        return asdict(self)

    @property
    def shown(self) -> tuple[Stage, ...]:
        """The stages that a page has room for, the last one among them."""
        every = -(-len(self.stages) // LONGEST)
        last = len(self.stages) - 1
        return tuple(s for n, s in enumerate(self.stages) if n % every == last % every)

    def facts(self) -> list[tuple[str, str]]:
        """What was found, but for growth and changes, as pairs of a name and a text."""
        found = [
            ("TRF", f"{_axes(self.trf)} pixels"),
            ("σ", f"{_axes(self.std)} pixels"),
            ("settled", f"95% of σ at {self.settled_at}"),
            (
                "growth",
                f"less than 1% per layer from {self.stops_at} on"
                if self.stops_at
                else "1% per layer and more to the end",
            ),
        ]
        if self.pointwise:
            found.append(("1×1", f"see no more than they read: {_listed(self.pointwise)}"))
        if self.input_size is not None:
            covered = f"read what already sees all of it: {_listed(self.covered)}"
            found.append(
                (
                    f"on {_axes(self.input_size)}",
                    covered if self.covered else "no layer sees it all",
                )
            )
        if self.tiles is not None:
            tiles = self.tiles
            found.append(("tiles", f"start at multiples of {_axes(tiles.alignment)} pixels"))
            found.append(("halo", f"{_halos(tiles.halo)} pixels before+behind: exact"))
            for share, halo in tiles.smaller.items():
                text = f"{_halos(halo)}: cuts at most so much of any unit's mass"
                found.append((f"halo, {share:g}", text))
        return found + [("note", note) for note in self.notes]

    def __str__(self) -> str:
        return "\n".join(_text(self))


def advice(
    net: Any,
    output: str | None = None,
    input_size: int | Sequence[int] | None = None,
    *,
    input: str | None = None,
) -> Advice:
    """Where a network's field stops growing, which layers see no more, what would widen it.

    Args:
        net: a `Network`, a layer or a sequence of layers and blocks.
        output: a node or end point; default as in `erf`.
        input_size: pixels of the input, a number or one per axis: says which layers already see
            all of it.
        input: the input map, where the network has several.

    Layers that read the whole map at once (global pooling, squeeze-and-excitation, attention) are
    left out, and named in `notes`.

    Raises:
        InputError: an argument or the network breaks a rule.

    >>> import fastrf as rf
    >>> found = rf.advice(rf.zoo.plain(3), input_size=5)
    >>> found.settled_at, found.border, found.tiles.halo
    ('conv3', 'conv3', ((3, 3), (3, 3)))
    """
    network = as_network(net)
    subject = _Subject(network, output, input)
    sized = None
    notes = list(subject.notes)
    if input_size is not None:
        # Whether the network can be run on it at all is found here.
        whole = receptive_field(network, output, input_size, input=input, ignore_global=True)
        sized = whole.input_size
    stages = subject.stages()
    final = stages[-1].std if stages else 0.0
    if final == 0:
        raise InputError(
            f"{subject.node!r} sees one pixel through layers of one tap; there is nothing to "
            f"widen; give a network with kernels above 1, or another output"
        )
    slow = len(stages)
    while slow and (g := stages[slow - 1].growth) is not None and g < SLOW:
        slow -= 1
    covered = subject.covered(sized) if sized is not None else ()
    tiles = None
    try:
        tiles = subject.tiles()
    except InputError as error:
        notes.append(f"no tiles: {error}")
    return Advice(
        network=network.name or "network",
        node=subject.node,
        input_size=sized,
        trf=subject.trf,
        std=subject.std,
        stages=stages,
        stops_at=stages[slow].name if slow < len(stages) else None,
        settled_at=next(s.name for s in stages if s.std >= SETTLED * final),
        pointwise=subject.pointwise(),
        border=covered[0] if covered else None,
        covered=covered,
        changes=subject.changes(),
        tiles=tiles,
        notes=tuple(notes),
    )


class _Subject:
    """A network's field on the unbounded grid, with what is asked about it."""

    def __init__(self, network: Network, output: str | None, input: str | None) -> None:
        self.network = network.bound
        self.graph: PlaneGraph = lower(network, None, ignore_global=True)
        self.node = self.graph.output_node(output)
        self.source = self.graph.input_node(input)
        self.input = input
        self.field: ReceptiveField = receptive_field(
            network, self.node, input=input, ignore_global=True
        )
        whole = receptive_field(network, self.node, input=input).unbounded_by
        self.notes = (f"paths through {', '.join(whole)} are left out: global",) if whole else ()
        if self.field.box() is None:
            raise InputError(f"{self.node!r} sees nothing of the input; ask for another output")
        self.trf = tuple(s or 0 for s in self.field.size)
        # Where fixed layers that overlap correlate gradients, variances alone are not enough.
        closed = moments(self.graph, self.node, "center", input).std
        self.closed = bool(np.allclose(closed, self._erf_std(network, self.node), rtol=SAME))
        self.std = self.stds(network, self.graph, self.node)

    def _erf_std(self, network: Network, node: str) -> tuple[float, ...]:
        """σ of unit 0's ERF, but for `DROPPED` of its mass."""
        from fastrf.erf import erf

        return erf(network, node, input=self.input, ignore_global=True, tail=DROPPED).std

    def stds(self, network: Network, graph: PlaneGraph, node: str) -> tuple[float, ...]:
        """σ of the ERF of unit 0 of a node, per axis."""
        if self.closed:
            return tuple(moments(graph, node, "center", self.input).std.tolist())
        return self._erf_std(network, node)

    @cached_property
    def between(self) -> list[str]:
        """Names of the nodes on paths from the input to the output, in order."""
        wanted = self.graph.ancestors(self.node)
        reached = {self.source}
        for name, node in self.network.nodes.items():
            if name in wanted and not reached.isdisjoint(node.inputs):
                reached.add(name)
        return [name for name in self.network.nodes if name in reached]

    @cached_property
    def rows(self) -> Mapping[str, LayerField]:
        """The receptive-field table by name."""
        return {row.name: row for row in self.field.layers}

    def windowed(self, name: str) -> bool:
        """Whether a node is a convolution or pooling."""
        return isinstance(self.network.nodes[name].layer, Windowed)

    # --- growth

    def cuts(self) -> list[str]:
        """Nodes through which every path from the input to the output goes."""
        position = {name: n for n, name in enumerate(self.between)}
        last = dict.fromkeys(self.between, 0)
        for name in self.between:
            for source in self.network.nodes[name].inputs:
                if source in position:
                    last[source] = position[name]
        found, open_until = [], 0
        for n, name in enumerate(self.between):
            # Nothing from before this node is read behind it.
            if n and open_until <= n:
                found.append(name)
            open_until = max(open_until, last[name])
        return found

    def stages(self) -> tuple[Stage, ...]:
        """The cuts with a new field, and how σ grew between them."""
        final = _mean(self.std)
        found: list[Stage] = []
        cuts = self.cuts()
        if not cuts:
            return ()
        every = -(-len(cuts) // MOST_STAGES)
        layers, seen = 0, {*cuts[every - 1 :: every], *cuts[-1:]}
        for name in self.between:
            layers += self.windowed(name)
            ends = bool(found) and name == cuts[-1]
            if name not in seen or not (layers or ends):
                continue
            std = _mean(self.stds(self.network, self.graph, name))
            trf = _mean([s or 0 for s in self.rows[name].size])
            if found and found[-1].trf == trf and math.isclose(found[-1].std, std, rel_tol=SAME):
                continue
            if not layers:  # an activation behind the last stage, which weighs its paths anew
                layers = found.pop().layers
            growth = None
            if found and found[-1].std > 0:
                growth = (std / found[-1].std) ** (1 / layers) - 1
            share = std / final if final else 1.0
            found.append(Stage(name, layers, trf, std, growth, share))
            layers = 0
        if not found:
            found.append(Stage(self.node, layers, _mean(self.trf), final, None, 1.0))
        return tuple(found)

    # --- what sees no more

    def pointwise(self) -> tuple[str, ...]:
        """Convolutions of one tap."""
        return tuple(name for name in self.between if self._taps(name) == 1)

    def _taps(self, name: str) -> int | None:
        layer = self.network.nodes[name].layer
        return math.prod(layer.kernel) if isinstance(layer, Conv | ConvTranspose) else None

    def covered(self, size: Sequence[int]) -> tuple[str, ...]:
        """Windowed layers of several taps that read what has seen all of the input."""
        found = []
        for name in self.between:
            node = self.network.nodes[name]
            if not isinstance(node.layer, Windowed) or math.prod(node.layer.kernel) == 1:
                continue
            read = self.rows.get(node.inputs[0])
            if read and all(r is None or r >= n for r, n in zip(read.size, size, strict=True)):
                found.append(name)
        return tuple(found)

    # --- what would widen it

    def changes(self) -> tuple[Change, ...]:
        """Every change that widens the field, the most effective first."""
        convs = {
            name: layer
            for name in self.between
            if isinstance(layer := self.network.nodes[name].layer, Conv)
            and math.prod(layer.kernel) > 1
        }
        if not convs:
            return ()
        areas = {name: math.prod(s or 1 for s in self.rows[name].stride) for name in convs}
        deepest = max(areas.values())
        stage = {name: layer for name, layer in convs.items() if areas[name] == deepest}
        last = dict([list(stage.items())[-1]])
        cuts = set(self.cuts())
        unstrided = [(n, c) for n, c in convs.items() if n in cuts and max(c.stride) == 1]
        first = dict(unstrided[:1])
        alike = len(stage) == len(convs)
        where = "all layers" if alike else "the layers of the largest stride"
        options: list[tuple[str, Mapping[str, Conv], Callable[[Conv], Layer]]] = [
            (f"dilation ×2 in {where}", {} if len(stage) == 1 else stage, _dilated),
            ("dilation ×2 in the last layer alone", last, _dilated),
            (
                f"kernels larger by 2 in {where}",
                {} if len(stage) in (1, len(convs)) else stage,
                _larger,
            ),
            ("a kernel larger by 2 in the last layer alone", last, _larger),
            ("kernels larger by 2 in all layers", convs, _larger),
            (
                "stride 2 in the first layer without one that all paths share; halves the output",
                first,
                _strided,
            ),
            ("all weight variance on the rims of the kernels (initialisation)", convs, _rim),
        ]
        cost = self._cost(self.field)
        found = [
            self._change(what, {name: change(layer) for name, layer in layers.items()}, cost)
            for what, layers, change in options
            if layers
        ]
        # A stride of the last layer, or the rims of kernels of two taps, change nothing.
        wider = [c for c in found if c.std_factor > 1 + SAME or c.trf_factor > 1 + SAME]
        return tuple(sorted(wider, key=lambda c: -c.std_factor))

    def _change(self, what: str, layers: Mapping[str, Layer], cost: float) -> Change:
        nodes = [
            Node(name, layers.get(name, node.layer), node.inputs)
            for name, node in self.network.nodes.items()
        ]
        net = Network(nodes, self.network.outputs, ndim=self.network.ndim)
        field = receptive_field(net, self.node, input=self.input, ignore_global=True)
        graph = lower(net, None, ignore_global=True)
        std = _mean(self.stds(net, graph, self.node))
        trf = _mean([s or 0 for s in field.size])
        return Change(
            what,
            tuple(layers),
            std,
            trf,
            std / _mean(self.std),
            trf / _mean(self.trf),
            self._cost(field) / cost,
        )

    def _cost(self, field: ReceptiveField) -> float:
        """Multiply-adds of all convolutions per input pixel."""
        strides = {row.name: row.stride for row in field.layers}
        total = 0.0
        for name in self.between:
            node = field.network.nodes[name]
            layer = node.layer
            if not isinstance(layer, Conv | ConvTranspose):
                continue
            at = name if isinstance(layer, Conv) else node.inputs[0]
            stride = strides.get(at, (1,))
            if None in stride:
                continue  # on a single pixel, behind global pooling
            area = math.prod(Fraction(s or 1) for s in stride)
            into, out = self.graph.channels[node.inputs[0]], self.graph.channels[name]
            pairs = 1.0
            if into is not None and out is not None:
                groups = into if layer.groups == "depthwise" else layer.groups
                pairs = into * out / groups
            total += math.prod(layer.kernel) * pairs / float(area)
        return total

    # --- tiles

    def tiles(self) -> Tiles:
        """What tiles need, see `fastrf.tiling`.

        Raises:
            InputError: no tiles give what the whole image gives.
        """
        from fastrf.tiling import Halo, cut

        cuts = cut(self.network, self.node, input=self.input, ignore_global=True, tail=DROPPED)

        def pixels(halos: Iterable[Halo]) -> tuple[tuple[int, int], ...]:
            return tuple((halo.left, halo.right) for halo in halos)

        return Tiles(
            tuple(one.exact.block for one in cuts),
            pixels(one.exact for one in cuts),
            tuple(one.exact.overlap for one in cuts),
            {share: pixels(one.halo(share) for one in cuts) for share in SHARES},
        )


def _mean(values: Iterable[float]) -> float:
    """Geometric mean over the axes."""
    numbers = [float(v) for v in values]
    return math.prod(numbers) ** (1 / len(numbers)) if min(numbers) > 0 else 0.0


# --- changes of a layer ---------------------------------------------------------------------


def _dilated(conv: Conv) -> Conv:
    return _padded(conv, replace(conv, dilation=tuple(2 * d for d in conv.dilation)))


def _strided(conv: Conv) -> Conv:
    return replace(conv, stride=tuple(2 * s for s in conv.stride))


def _larger(conv: Conv) -> Conv:
    kernel = tuple(k + 2 if k > 1 else k for k in conv.kernel)
    return _padded(conv, replace(_drawn(conv), kernel=kernel, taps=None))


def _drawn(conv: Conv) -> Conv:
    """The layer with weights of another kernel or at other taps: random ones of the same gain."""
    return replace(conv, weights=None)


def _padded(old: Conv, new: Conv) -> Conv:
    """The new layer with so much more padding that its map keeps its size and place."""
    pads: list[Any] = []
    axes = zip(old.padding, old.kernel, old.dilation, new.kernel, new.dilation, strict=True)
    for pad, k, d, k_new, d_new in axes:
        if isinstance(pad, str):
            pads.append(pad)
            continue
        more = d_new * (k_new - 1) - d * (k - 1)
        pads.append((pad[0] + more // 2, pad[1] + more - more // 2))
    return replace(new, padding=tuple(pads))


def _rim(conv: Conv) -> Conv:
    """The same layer with the variance on the outermost taps, all equal there."""
    inner = [np.arange(k) % (k - 1) > 0 if k > 1 else np.array([True]) for k in conv.kernel]
    taps = 1.0 - reduce(np.multiply.outer, inner).astype(np.float64)
    return replace(_drawn(conv), taps=taps)


# --- text -----------------------------------------------------------------------------------


def _text(a: Advice) -> list[str]:
    lines = [f"{a.network}, {a.node!r}", ""]
    lines += _table(
        ["", "TRF", "σ", "of all", "per layer"],
        [
            [
                s.name,
                f"{s.trf:.4g}",
                f"{s.std:.4g}",
                f"{s.share:.0%}",
                "" if s.growth is None else f"{s.growth:+.1%}",
            ]
            for s in a.shown
        ],
    )
    lines += ["", *(f"{name}: {value}" for name, value in a.facts())]
    if a.changes:
        lines += ["", "what would widen it"]
        lines += _table(
            ["", "σ", "TRF", "multiply-adds"],
            [
                [
                    c.what,
                    f"×{c.std_factor:.3g} = {c.std:.4g}",
                    f"×{c.trf_factor:.3g} = {c.trf:.4g}",
                    f"×{c.cost_factor:.3g}",
                ]
                for c in a.changes
            ],
        )
    return lines


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    full = [list(heads), *map(list, rows)]
    widths = [max(len(row[n]) for row in full) for n in range(len(heads))]
    return [
        "  ".join(
            [row[0].ljust(widths[0])]
            + [c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)]
        ).rstrip()
        for row in full
    ]


def _axes(values: Sequence[float]) -> str:
    return " × ".join(f"{v:.4g}" if isinstance(v, float) else str(v) for v in values)


def _halos(pairs: Sequence[tuple[int, int]]) -> str:
    """Halos per axis as before+behind, once where all axes agree."""
    texts = [f"{before}+{behind}" for before, behind in pairs]
    return texts[0] if len(set(texts)) == 1 else " × ".join(texts)


def _listed(names: Sequence[str]) -> str:
    if len(names) <= 6:
        return ", ".join(names)
    return f"{len(names)} layers, {', '.join(names[:3])} … {names[-1]}"
