"""What a report says about a network, as plain values; `page` shows it."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as with_default
from typing import Any

import fastrf
from fastrf import tiling
from fastrf.analytic.geometry import LayerField, ReceptiveField, receptive_field
from fastrf.check import CheckReport, check
from fastrf.erf import ERF, erf
from fastrf.errors import FastrfError, InputError
from fastrf.layers.weights import weights_of
from fastrf.lowering import PlaneGraph, lower
from fastrf.maps import IDENTITY
from fastrf.metrics.given import defined
from fastrf.network import Network, as_network
from fastrf.report.pictures import COARSEST, Picture, picture

BUDGET = 1_600_000
"""Characters that all pictures may take; they are made coarser until they fit."""

MAX_PHASES = 16
"""Units of a period that each get a picture of their own; of more phases, unit 0 alone does."""

MAX_FIELDS = 4000
"""Fields of units at the border are computed where all layers' together are no more."""

SHARES = (0.0, 1e-6, 1e-4, 0.001, 0.01, 0.05, 0.1)
"""Shares of the ERF that the tiling advice lets a smaller halo cut."""

Unit = tuple[int, ...]


@dataclass(slots=True)
class Sample:
    """The picture of one unit.

    Attributes:
        unit: its index.
        origin: input index of the picture's first pixel, per axis.
        picture: what it shows.
        middle: in 3-D the pixel through which the sections lie.
    """

    unit: Unit
    origin: tuple[int, ...]
    picture: Picture
    middle: tuple[int, ...]


@dataclass(slots=True)
class LayerReport:
    """One row of the table, and what the view needs of the layer.

    Attributes:
        row: sizes and positions, of `ReceptiveField.layers`.
        field: the layer's own field; its `ends` say every unit's box.
        inner: first and last unit per axis that meet no padding; None on the unbounded grid.
        samples: pictures, the central unit's first; empty where there is none.
        std, luo_size, ratio, log_gain, lost_mass: of the central unit's ERF, None without
            (the sizes also where they are not defined).
        note: why there is no ERF, or "".
    """

    row: LayerField
    field: ReceptiveField
    inner: tuple[tuple[int, int], ...] | None = None
    samples: list[Sample] = with_default(default_factory=list)
    std: tuple[float, ...] | None = None
    luo_size: float | None = None
    ratio: float | None = None
    log_gain: float | None = None
    lost_mass: float | None = None
    note: str = ""


@dataclass(slots=True)
class TilingReport:
    """Halo and overlap, per axis; or why there are none.

    Attributes:
        halos: exact.
        cuts: what smaller ones cut, empty where the ERF is unknown.
        obstacle: why the network cannot be tiled, or "".
    """

    halos: tuple[tiling.Halo, ...] = ()
    cuts: tuple[tiling.Cut, ...] = ()
    obstacle: str = ""


@dataclass(slots=True)
class Document:
    """Everything on the page.

    Attributes:
        title: of the page.
        field: the output's theoretical field.
        output: the output's ERF as `ERF.to_dict` gives it; None where there is none, and `why`.
        layers: in topological order.
        check: the cross-check, None where it was left out.
        tiling: advice for tiled inference.
        notes: what was chosen where the network left a choice.
        ignore_global: whether global layers were left out.
    """

    title: str
    field: ReceptiveField
    output: dict[str, Any] | None
    why: str
    layers: list[LayerReport]
    check: CheckReport | None
    tiling: TilingReport
    notes: list[str]
    ignore_global: bool

    @property
    def version(self) -> str:
        return fastrf.__version__


def assemble(
    net: Any,
    output: str | None = None,
    input_size: int | Sequence[int] | Mapping[str, Any] | None = None,
    *,
    input: str | None = None,
    ignore_global: bool = False,
    check: bool = True,
    title: str | None = None,
    workers: int | None = None,
    memory_limit: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Document:
    """Computes all that a report shows; arguments as of `report`."""
    network = as_network(net).bound
    graph = lower(network, input_size, ignore_global=ignore_global)
    output, input, notes = _chosen(graph, output, input)
    if check and any(weights_of(node.layer) is not None for node in network.nodes.values()):
        check = False
        notes.append(
            "Layers hold their weights channel by channel: the cross-check, which compares "
            "averages over channels, is left out."
        )
    where: dict[str, Any] = {"input": input, "ignore_global": ignore_global}
    means: dict[str, Any] = {"workers": workers, "memory_limit": memory_limit}
    found = receptive_field(network, output, input_size, **where)
    layers = {row.name: LayerReport(row, found.of(row.name)) for row in found.layers}
    fields = _Fields(network, graph, layers, input_size, {**where, **means}, progress)
    fields.compute()
    _coarsen(s.picture for layer in layers.values() for s in layer.samples)
    own = fields.whole(found.node)
    return Document(
        title=title or network.name or "network",
        field=found,
        output=None if own is None else own.to_dict(),
        why=layers[found.node].note if own is None and found.node in layers else "",
        layers=list(layers.values()),
        check=_checked(network, found.node, input_size, where, means) if check else None,
        tiling=_tiling(network, found.node, where, means),
        notes=notes,
        ignore_global=ignore_global,
    )


def _chosen(
    graph: PlaneGraph, output: str | None, input: str | None
) -> tuple[str | None, str | None, list[str]]:
    """Output and input, the first of several where none was named, with a note that says so."""
    network, notes = graph.network, []
    if output is None and len(network.outputs) > 1:
        spatial = [n for n in network.outputs if n not in graph.collapsed]
        output = (spatial or network.outputs)[0]
        notes.append(
            f"The network has {len(network.outputs)} outputs ({', '.join(network.outputs)}); the "
            f"summary, the cross-check and the tiling advice are for {output}."
        )
    if input is None and len(network.inputs) > 1:
        input = network.inputs[0]
        notes.append(
            f"The network has {len(network.inputs)} inputs ({', '.join(network.inputs)}); all "
            f"fields lie on {input}."
        )
    return output, input, notes


# --- fields ---------------------------------------------------------------------------------


class _Fields:
    """The ERFs of all layers, each looked at once and then let go."""

    def __init__(
        self,
        network: Network,
        graph: PlaneGraph,
        layers: Mapping[str, LayerReport],
        input_size: Any,
        options: dict[str, Any],
        progress: Callable[[float], None] | None,
    ) -> None:
        self.graph, self.network = graph, network
        self.layers, self.input_size, self.options = layers, input_size, options
        self.progress = progress
        self.bounded = graph.input_size is not None
        self.pictures: dict[Any, Picture] = {}
        self.moving = {
            op.node
            for op in graph.operations
            if any(axis != IDENTITY for m in op.maps for axis in m.axes)
        }

    def compute(self) -> None:
        left = [name for name in self.layers if self._has_field(name)]
        total = len(left)
        together = True
        while left:
            last = left[-1]
            found: Mapping[str, ERF] = {}
            if together:
                try:
                    found = erf(
                        self.network,
                        last,
                        input_size=self.input_size,
                        layers="all",
                        **self.options,
                    )
                except (FastrfError, MemoryError):
                    together = False  # some layer has no field: one by one, to say which and why
            if not found:
                own = self.whole(last)
                found = {} if own is None else {last: own}
            for name, one in found.items():
                if name in self.layers and not self.layers[name].samples:
                    self._take(self.layers[name], one)
            left = [n for n in left if n != last and not self.layers[n].samples]
            if self.progress is not None:
                self.progress(1 - len(left) / total)
        self._inner_units()
        self._more_units()

    def _has_field(self, name: str) -> bool:
        """Whether a layer's unit has an ERF; if not, its note says why."""
        layer = self.layers[name]
        ends = layer.field.ends
        if () in ends:
            layer.note = "no path leads here from the input"
        elif name in self.graph.collapsed:
            layer.note = "it has lost its spatial extent: every unit sees all of the image"
        elif not self.bounded and any(not e.advance for axis in ends for e in axis):
            layer.note = (
                f"unbounded by {', '.join(layer.field.unbounded_by)}: the share of a single pixel "
                f"depends on the size of the input; give one, or leave global layers out"
            )
        return not layer.note

    def whole(self, name: str, unit: Any = "center") -> ERF | None:
        """One unit's field, or None, and then the layer's note says why."""
        if name not in self.layers or (self.layers[name].note and unit == "center"):
            return None
        try:
            found: ERF = erf(self.network, name, unit, self.input_size, **self.options)
            return found
        except (FastrfError, MemoryError) as error:
            if unit == "center":
                self.layers[name].note = str(error) or "it does not fit into memory"
            return None

    def _take(self, layer: LayerReport, found: ERF) -> None:
        layer.std, layer.log_gain, layer.lost_mass = found.std, found.log_gain, found.lost_mass
        layer.luo_size, layer.ratio = defined(found.luo_size), defined(lambda: found.ratio)
        self._sample(layer, found)

    def _sample(self, layer: LayerReport, found: ERF) -> None:
        fresh = picture(found)
        # Layers that move no pixel show their source's picture: it is kept once.
        kept = self.pictures.setdefault(fresh.key, fresh)
        middle = tuple(round(c) for c in found.center) if self.graph.ndim == 3 else ()
        layer.samples.append(Sample(found.unit, found.origin, kept, middle))

    def _inner_units(self) -> None:
        if not self.bounded or len(self.network.inputs) != 1:
            return
        ndim = self.graph.ndim
        for last in reversed(list(self.layers)):
            layer = self.layers[last]
            if layer.inner is not None or not layer.samples:
                continue
            axes = [
                tiling.right_units(self.graph, self.graph, last, axis, False, False)
                for axis in range(ndim)
            ]
            for name in axes[0]:
                if name in self.layers:
                    self.layers[name].inner = tuple(axis[name] for axis in axes)

    def _more_units(self) -> None:
        """Pictures of further units: of all phases on the unbounded grid, of the border's on an
        image."""
        shown = [layer for layer in self.layers.values() if layer.samples]
        below = {layer.row.name: self._same_below(layer) for layer in shown}
        wanted = {
            layer.row.name: [u for u in self._units(layer) if u != layer.samples[0].unit]
            for layer in shown
            if below[layer.row.name] is None
        }
        if sum(map(len, wanted.values())) > MAX_FIELDS:
            return
        for layer in shown:
            source = below[layer.row.name]
            if source is not None:
                layer.samples = source.samples
                continue
            for unit in wanted[layer.row.name]:
                found = self.whole(layer.row.name, unit)
                if found is not None:
                    self._sample(layer, found)

    def _same_below(self, layer: LayerReport) -> LayerReport | None:
        """The layer that hands every unit the field of its own unit of the same index: what it
        reads, if it moves no pixel."""
        name = layer.row.name
        (source, *others) = self.network.nodes[name].inputs
        known = self.layers.get(source)
        if others or known is None or not known.samples:
            return None
        if any(len(self.graph.planes_of[n]) > 1 for n in (name, source)):
            return None
        return None if name in self.moving else known

    def _units(self, layer: LayerReport) -> Iterable[Unit]:
        period, shape = layer.field.period, layer.row.shape
        phases: Iterable[Unit] = []
        if math.prod(period) <= MAX_PHASES and all(len(ends) == 1 for ends in layer.field.ends):
            phases = itertools.product(*map(range, period))
        if shape is None:
            return phases
        found = dict.fromkeys(
            tuple(min(n // 2 + p, n - 1) for n, p in zip(shape, phase, strict=True))
            for phase in phases
        )
        if len(shape) < 3:
            found |= dict.fromkeys(itertools.product(*((0, n // 2, n - 1) for n in shape)))
        return found


def _coarsen(pictures: Iterable[Picture]) -> None:
    """Makes pictures coarser, the finest first, until they fit into the budget."""
    distinct = list({id(p): p for p in pictures}.values())
    while True:
        sizes = [len(json.dumps(p.to_dict())) for p in distinct]
        finest = max((p.side for p in distinct), default=0)
        if sum(sizes) <= BUDGET or finest <= COARSEST:
            return
        for p in distinct:
            if p.side > max(finest // 2, COARSEST):
                p.coarser()


# --- cross-check and tiling -----------------------------------------------------------------


def _checked(
    network: Network, node: str, input_size: Any, where: dict[str, Any], means: dict[str, Any]
) -> CheckReport:
    size = None if isinstance(input_size, Mapping) else input_size
    return check(network, node, input_size=size, **where, **means)


def _tiling(
    network: Network, node: str, where: dict[str, Any], means: dict[str, Any]
) -> TilingReport:
    try:
        halos = tiling.halo(network, node, **where)
    except InputError as error:
        return TilingReport(obstacle=str(error))
    try:
        cuts = tiling.cut(network, node, **where, **means)
    except (FastrfError, MemoryError):
        cuts = ()
    return TilingReport(halos, cuts)
