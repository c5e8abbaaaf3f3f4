"""The fields of all layers at once: what they have in common is computed once.

On the unbounded grid one pass up from the input serves every map that has a transfer function
(`make_plans`): `factored.factor_all`, `upward.propagate_upward` or `spectral.propagate_all`; and
one more those that need covariances, `upward_correlated.propagate_upward_correlated`.

On maps of known size a field depends on where its unit is, so that no pass serves two of them. But
layers that move no pixel (normalisation, activation, 1×1 convolution, addition) hand each gradient
on as it is: the field of such a unit is a sum of its sources' fields, and of a single source's, the
same image with another gain. Only the units of the other layers are followed to the input: those of
a chain from the input on in one batch (`prefixes`), all others each by itself, on small images with
one plan for all (`calls`).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial, reduce
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np

from fastrf.arrays import Array
from fastrf.device import Device, resolve
from fastrf.engine import ENGINES, channelwise, cost, covariance
from fastrf.engine.calls import FEWEST, calls
from fastrf.engine.direct import Propagated, nothing_read, propagate_at_once
from fastrf.engine.extents import check_extent
from fastrf.engine.factored import factor_all
from fastrf.engine.forecast import Forecast
from fastrf.engine.outlook import Outlook, operations_below
from fastrf.engine.plan import (
    Load,
    Plan,
    check_memory,
    check_options,
    checked_dtype,
    limit_of,
    load_of,
    make_batched_plans,
    make_called_plan,
    make_correlated_plans,
    make_plan,
    make_plans,
    notes_of,
    preferred,
)
from fastrf.engine.prefixes import Prefixes, prefixes
from fastrf.engine.program import mean_gains
from fastrf.engine.scaled import ZERO
from fastrf.engine.spectral import propagate_all
from fastrf.engine.transfer import transfer_function
from fastrf.engine.upward import propagate_upward
from fastrf.engine.upward_correlated import propagate_upward_correlated
from fastrf.engine.windows import Span, united
from fastrf.errors import EmptyFieldError, ToleranceError
from fastrf.kernels import load as load_kernels
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import Everything, SpatialMap, Table, Window

Field = tuple[Plan, Propagated]

_NOTHING = "nothing arrives along an axis"

_MARGIN_BITS = 40
"""By so many powers of two the smallest pixel of a field must lie above the smallest normal number
for the field to be added up from others: none of their pixels has then been cut off. The bound is
for mean gains; the phases of a few strides do not exceed them by as much."""


def fields(
    graph: PlaneGraph,
    last: str,
    unit: Any,
    input_node: str,
    *,
    device: Device,
    dtype: Any = "float64",
    method: str = "auto",
    accuracy: str = "auto",
    tol: float = 1e-12,
    tail: float | None = None,
    workers: int | None = None,
    memory_limit: int | None = None,
    progress: Callable[[float], None] | None = None,
    done: dict[str, Field] | None = None,
) -> dict[str, Field]:
    """Plan and field of a unit on every map between the input and `last`.

    Args:
        unit: "center" or one index per axis, the same on every map.
        progress: called with the share of the maps that are done.
        done: takes each field as soon as it is done.
        graph, last, input_node, …: as of `plan.make_plan`.

    Returns:
        By node, in topological order; maps that have lost their spatial extent are left out, and
        those below `last` whose unit reads nothing (a gap, padding alone).

    Raises:
        EmptyFieldError: the unit of `last` reads nothing.
        InputError, PlanError: as `make_plan`; PlanError too where all fields together would not
            fit into `memory_limit` bytes.
    """
    check_options(method, accuracy, tol, tail, workers, memory_limit)
    dtype = checked_dtype(dtype)
    operations = graph.between(last, input_node)
    names = dict.fromkeys(op.node for op in operations)
    wanted = {n: graph.unit_index(n, unit) for n in names if n not in graph.collapsed}
    if wanted:  # the bound for the last map holds for those below it too
        check_extent(graph, last, next(iter(wanted.values())), input_node)
    choice: dict[str, Any] = {
        "method": method,
        "accuracy": accuracy,
        "tol": tol,
        "workers": workers,
        "memory_limit": memory_limit,
    }
    passes = list(_outlooks(graph, wanted, input_node, dtype, tail))
    correlated = list(_outlooks(graph, wanted, input_node, dtype, tail, correlated=True))
    batch = None
    if method in ("auto", "factored") and tail is None:
        batch = prefixes(graph, last, input_node, operations, wanted)

    def on(place: Device) -> _Schedule:
        plans: dict[str, Plan] = {}
        for outlook in passes:
            plans = make_plans(outlook, input_node, device=place, **choice) | plans
        if batch is not None:
            what = (batch, wanted, input_node, dtype)
            plans |= make_batched_plans(*what, device=place, method=method, workers=workers)
        memory = sum(p.working for p in plans.values()) + (batch.working if batch else 0)
        options = {"dtype": dtype, "tail": tail, "device": place, **choice}
        units = _Units(graph, operations, input_node, wanted, plans, **options)
        if place.is_host and method in ("auto", "direct") and tail is None:
            units.foresee(last)
        chosen: list[tuple[Outlook, list[str]]] = []
        for outlook in correlated if method in ("auto", "direct") else ():
            own = [n for n in outlook.nodes if n in wanted and n not in plans]
            if not own:
                continue
            shared = make_correlated_plans(
                outlook, input_node, own, device=place, method=method, tol=tol, workers=workers
            )
            if units.take_longer(own, sum(plan.seconds for plan in shared.values())):
                chosen.append((outlook, own))
                plans |= shared
                memory += sum(plan.working for plan in shared.values())
        parts = {node: units.planned(node) for node in wanted if node not in plans}
        called = {node for node, own in parts.items() if not own and node in units.foreseen}
        return _Schedule(plans, chosen, parts, called, memory + units.memory(parts))

    def load(schedule: _Schedule) -> Load:
        return load_of(schedule.plans.values(), dtype)._replace(memory=schedule.memory)

    schedule, place = preferred(device, on, load, memory_limit)
    limit = limit_of(memory_limit, place)
    plans = {
        node: replace(plan, notes=notes_of(place)).within(limit, memory_limit)
        for node, plan in schedule.plans.items()
    }
    check_memory(f"the fields of all {len(wanted)} layers need", schedule.memory, limit, place)
    found: dict[str, Propagated] = {}
    left_out = 0
    for node, field in _computed(graph, passes, batch, schedule, plans, found):
        if node not in wanted or node in found:
            continue
        if field is not None:
            found[node] = field
            if done is not None:
                done[node] = plans[node], field
        elif node == last:
            raise nothing_read(graph, last, wanted[last], input_node)
        else:
            left_out += 1
        if progress is not None:
            progress((len(found) + left_out) / len(wanted))
    return {node: (plans[node], found[node]) for node in wanted if node in found}


def _computed(
    graph: PlaneGraph,
    passes: Sequence[Outlook],
    batch: Prefixes | None,
    schedule: _Schedule,
    plans: dict[str, Plan],
    found: Mapping[str, Propagated],
) -> Iterator[tuple[str, Propagated | None]]:
    """The fields of all maps; what has been `found` so far is used for the next. None where the
    unit reads nothing."""
    for outlook in passes:
        yield from _passed(outlook, plans[outlook.function.node])
    if batch is not None:
        first = plans[batch.nodes[0]]
        yield from batch.fields(np.dtype(first.dtype), resolve(first.device))
        for node in batch.nodes:
            if node not in found:  # taps of 0 alone lead to the image
                plans[node] = plans[node].instead("direct", _NOTHING)
                yield node, _single(graph, plans, node)
    for outlook, nodes in schedule.correlated:
        yield from _passed(outlook, plans[nodes[-1]], nodes)
    for node, own in schedule.parts.items():
        if own:
            below = [(part.gain, found[part.node]) for part in own if part.node in found]
            with resolve(plans[node].device).current():
                yield node, _sum(below, plans[node]) if below else None
        else:
            yield node, _single(graph, plans, node, called=node in schedule.called)


def _single(
    graph: PlaneGraph, plans: dict[str, Plan], node: str, called: bool = False
) -> Propagated | None:
    """The field of a map by itself, by the one call that was foretold or as planned, and the plan
    that was carried out; None where the unit reads nothing."""
    plan = plans[node]
    try:
        if called:
            what = (graph, node, plan.unit, plan.input, load_kernels(plan.device))
            return propagate_at_once(*what, np.dtype(plan.dtype))
        plans[node], result = followed(graph, plan)
        return result
    except EmptyFieldError:
        return None


class _Schedule(NamedTuple):
    """The plans of all maps on one device.

    Attributes:
        plans: by node, in the order in which they are made.
        correlated: passes that carry covariances, each with the nodes whose fields it makes.
        parts: what the maps that no pass serves are sums of (`_Units.planned`).
        called: those among them that take one call each, as `calls` has it.
        memory: bytes of all fields, and of the computation that takes most, without pixels that
            are formed when asked for.
    """

    plans: dict[str, Plan]
    correlated: list[tuple[Outlook, list[str]]]
    parts: dict[str, list[_Part]]
    called: set[str]
    memory: int


# --- one pass -------------------------------------------------------------------------------


def _outlooks(
    graph: PlaneGraph,
    wanted: Mapping[str, tuple[int, ...]],
    input_node: str,
    dtype: np.dtype[Any],
    tail: float | None,
    correlated: bool = False,
) -> Iterator[Outlook]:
    """Passes that serve all maps with a transfer function, as few as there need be: those by
    variances alone, or those of which covariances are needed and none cancel."""
    if graph.input_size is not None:
        return
    left = dict(wanted)
    while left:
        node, unit = left.popitem()
        if channelwise.needed(graph, node, input_node):
            continue
        if covariance.needed(graph, node, input_node) != correlated:
            continue
        if correlated and not covariance.is_relative(graph, node, input_node):
            continue
        function = transfer_function(graph, node, input_node)
        if function.obstacle is None:
            for op in function.operations:
                left.pop(op.node, None)
            key = ("outlook", node, input_node, unit, dtype, tail)
            make = partial(Outlook, function, unit, dtype, tail)
            yield graph.lately(key, make)


def _passed(
    outlook: Outlook, plan: Plan, nodes: Sequence[str] = ()
) -> Iterator[tuple[str, Propagated]]:
    """The fields of one pass, whose last map has this plan; `nodes` are those whose fields it
    makes, where it makes not all."""
    device = resolve(plan.device)
    with device.current():
        yield from _pass(outlook, plan, nodes, device.xp)


def _pass(
    outlook: Outlook, plan: Plan, nodes: Sequence[str], xp: Any
) -> Iterable[tuple[str, Propagated]]:
    kernels, function = load_kernels(plan.device), outlook.function
    options: dict[str, Any] = {"dtype": plan.dtype, "tail": plan.tail, "xp": xp}
    if plan.engine == "correlated":
        options |= {"kernels": kernels, "workers": plan.workers}
        return propagate_upward_correlated(function, plan.unit, set(nodes), **options)
    if plan.method == "direct":
        options |= {"kernels": kernels, "workers": plan.workers}
        return propagate_upward(function, plan.unit, **options)
    if plan.method == "factored":
        assert not isinstance(outlook.expanded, str)
        return factor_all(function, outlook.expanded, plan.unit, kernels=kernels, **options).items()
    options |= {"workers": plan.workers, "tol": plan.tol}
    where = (function.graph, function.node, plan.unit, function.input_node)
    return propagate_all(*where, **options).items()


# --- unit by unit ---------------------------------------------------------------------------


class _Part(NamedTuple):
    """A map that a unit hands its gradient on to, without moving a pixel.

    Attributes:
        node: the map; the unit that is asked for there is the one that the gradient meets.
        gain: gradient variance of that unit per variance put on this one.
    """

    node: str
    gain: float


class _Units:
    """Plans of fields that are computed unit by unit.

    Args:
        operations: those between the input and the last map.
        wanted: the unit of every map.
        plans: those made so far, added to.
        options: as of `plan.make_plan`.
    """

    def __init__(
        self,
        graph: PlaneGraph,
        operations: Sequence[Operation],
        input_node: str,
        wanted: Mapping[str, tuple[int, ...]],
        plans: dict[str, Plan],
        **options: Any,
    ) -> None:
        self.graph, self.input_node = graph, input_node
        self.wanted, self.plans, self.options = wanted, plans, options
        self.dtype: np.dtype[Any] = options["dtype"]
        self.operations = operations
        self.foreseen: dict[str, Forecast] = {}
        pieces = groupby(operations, key=lambda op: op.node)
        self.own = {node: list(own) for node, own in pieces}
        self.depths = operations_below(graph, operations)
        self.smallest = _smallest(operations, graph.planes_of[input_node])

    def foresee(self, last: str) -> None:
        """Bounds for all maps that are followed to the input, where that takes one call each."""
        nodes = [n for n in self.wanted if n not in self.plans]
        moving = [n for n in nodes if any(_source(o, self.wanted[n]) is None for o in self.own[n])]
        where = (self.graph, last, self.input_node)
        units = {n: self.wanted[n] for n in nodes}
        if len(moving) >= FEWEST:
            self.foreseen = calls(*where, self.operations, units, self.depths, self.dtype)

    def planned(self, node: str) -> list[_Part]:
        """Plans a field; what it is the sum of, nothing where it is to be followed to the input."""
        parts = self._parts(node)
        if parts:
            self.plans[node] = self._sum_plan(node, parts)
        elif node in self.foreseen:
            what = (node, self.wanted[node], self.input_node)
            self.plans[node] = make_called_plan(what, self.foreseen[node], **self.options)
        else:
            where = (self.graph, node, self.wanted[node], self.input_node)
            self.plans[node] = make_plan(*where, **self.options)
        return parts

    def take_longer(self, nodes: Sequence[str], seconds: float) -> bool:
        """Whether following the units of these maps to the input, each by itself, would take
        longer than so many seconds. The last ones, which take most, are asked first."""
        for node in reversed(nodes):
            if all(_source(op, self.wanted[node]) is not None for op in self.own[node]):
                continue  # as likely as not another's image
            where = (self.graph, node, self.wanted[node], self.input_node)
            seconds -= make_plan(*where, **self.options).seconds
            if seconds < 0:
                return True
        return False

    def memory(self, parts: Mapping[str, Sequence[_Part]]) -> int:
        """Bytes of all these fields' images, pixels or factors, and of the computation that takes
        most."""
        own = [self.plans[node] for node in parts if len(parts[node]) != 1]
        held = sum(p.working if p.formed else self.dtype.itemsize * _pixels(p.support) for p in own)
        return held + max((self.plans[n].working for n in parts), default=0)

    def _sum_plan(self, node: str, parts: Sequence[_Part]) -> Plan:
        below = [self.plans[part.node] for part in parts]
        names = " and ".join(part.node for part in parts)
        changed: dict[str, Any] = {
            "node": node,
            "unit": self.wanted[node],
            "operations": self.depths[node],
        }
        if len(parts) == 1:
            changed |= {"reason": f"the image of {names}, with another gain", "cells": 0}
            return replace(below[0], seconds=cost.POINTWISE_SECONDS, **changed)
        support = [reduce(united, spans) for spans in zip(*(p.support for p in below), strict=True)]
        cells = len(parts) * _pixels(support)
        return replace(
            below[0],
            method="direct",
            engine="direct",
            reason=f"the images of {names}, added up",
            support=tuple(support),
            cells=cells,
            seconds=cost.POINTWISE_SECONDS + 1e-9 * cells * cost.BOX_NANOSECONDS,
            memory=2 * _pixels(support) * self.dtype.itemsize + sum(p.formed for p in below),
            formed=0,
            **changed,
        )

    def _parts(self, node: str) -> list[_Part]:
        """What a unit's field is the sum of.

        With a tail, what is dropped depends on the number of layers: there are no parts then.
        """
        planes = self.graph.planes
        if channelwise.needed(self.graph, node, self.input_node):
            return []
        gains: defaultdict[str, defaultdict[int, float]] = defaultdict(lambda: defaultdict(float))
        for op in self.own[node]:
            at = _source(op, self.wanted[node])
            if at is None or self.options["tail"] is not None:
                return []
            gain = op.gain * math.prod(m.gain for m in op.maps)
            gain *= sum(planes[p].share * share for p, share in op.targets)
            for q, share in op.sources:
                source = planes[q].node
                if source in self.own:  # else no path leads from it to the input
                    gains[source][q] += gain * share
                if source == self.input_node or self.wanted.get(source, at) != at:
                    return []
        parts = []
        for source, by_plane in gains.items():
            # A unit there holds all planes in proportion to their shares.
            ratios = [by_plane[q] / planes[q].share for q in self.graph.planes_of[source]]
            if source not in self.plans or not math.isclose(*_ends(ratios), rel_tol=1e-14):
                return []
            parts.append(_Part(source, ratios[0]))
        return parts if len(parts) == 1 or self._summable(node, parts) else []

    def _summable(self, node: str, parts: Sequence[_Part]) -> bool:
        """Whether the sum of the parts is as right as the field itself.

        That is where no pixel of the field can be so small that it is cut off in a part.
        """
        below = [self.plans[part.node] for part in parts]
        if covariance.needed(self.graph, node, self.input_node):
            return False  # what the parts have in common adds up otherwise
        if self.options["method"] in ("factored", "spectral") or not all(p.support for p in below):
            return False
        planes = [p for p in self.graph.planes_of[node] if p in self.smallest]
        gains = mean_gains(self.graph, self.input_node)
        mass = sum((gains[p] * self.graph.planes[p].share for p in planes), ZERO).log()
        least = min(self.smallest[p] + math.log(self.graph.planes[p].share) for p in planes)
        bits = (least - mass) / math.log(2)
        relative = all(p.accuracy == "relative" for p in below)
        return relative and bits >= float(np.finfo(self.dtype).minexp) + _MARGIN_BITS


def followed(
    graph: PlaneGraph, plan: Plan, progress: Callable[[float], None] | None = None
) -> Field:
    """The field of one unit by its plan's engine, or, where that was fastrf's own choice and turns
    out not to be right enough, by the direct engine; and the plan that was carried out."""
    try:
        device = resolve(plan.device)
        with device.current():
            result = ENGINES[plan.engine].run(
                graph,
                plan.node,
                plan.unit,
                plan.input,
                kernels=load_kernels(plan.device),
                dtype=plan.dtype,
                workers=plan.workers,
                tail=plan.tail,
                progress=progress,
                xp=device.xp,
                **({} if plan.tol is None else {"tol": plan.tol}),
                **({} if plan.channel is None else {"channel": plan.channel}),
            )
    except ToleranceError as error:
        if plan.asked_for or not plan.fits:
            raise
        return followed(graph, plan.instead("direct", str(error)), progress)
    return plan, result


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _pixels(spans: Iterable[Span]) -> int:
    return math.prod(max(count, 0) for _, count in spans)


def _source(op: Operation, index: tuple[int, ...]) -> tuple[int, ...] | None:
    """The only index that an operation reads for one it writes; None where there are several, or
    it lies in the padding."""
    for move in reversed(op.maps):
        windows = [a for a in move.axes if isinstance(a, Window) and a.kernel == 1]
        if len(windows) < len(move.axes):
            return None
        index = tuple(i * a.stride - a.lo for i, a in zip(index, windows, strict=True))
        size = move.size_in
        if size is not None and not all(0 <= i < n for i, n in zip(index, size, strict=True)):
            return None
    return index


def _smallest(operations: Iterable[Operation], ends: Iterable[int]) -> dict[int, float]:
    """Per plane, the logarithm of the least that any path hands to the input: no pixel is less."""
    found = dict.fromkeys(ends, 0.0)
    for op in operations:
        read = [found[q] + math.log(share) for q, share in op.sources if q in found]
        least = min(read) + math.log(op.gain) + sum(map(_smallest_tap, op.maps))
        for p, share in op.targets:
            found[p] = min(found.get(p, math.inf), least + math.log(share))
    return found


def _smallest_tap(move: SpatialMap) -> float:
    """The logarithm of a map's smallest variance that is not 0."""
    if isinstance(move.taps, np.ndarray):
        return math.log(move.gain * float(move.taps[move.taps > 0].min()))
    total = math.log(move.gain)
    for number, axis in enumerate(move.axes):
        taps = axis.taps if isinstance(axis, Table) else move.axis_taps(number)
        if isinstance(axis, Everything):
            total -= math.log((move.size_in or (1,) * len(move.axes))[number])
        elif taps is not None:
            total += math.log(float(taps[taps > 0].min()))
        elif not isinstance(axis, Table):
            total -= math.log(axis.kernel)
    return total


def _sum(parts: Sequence[tuple[float, Propagated]], plan: Plan) -> Propagated:
    """Σ gain·field; one field alone keeps its image."""
    if len(parts) == 1:
        ((gain, field),) = parts
        return replace(field, mass=field.mass * gain)
    dtype = np.dtype(plan.dtype)
    masses = [field.mass * gain for gain, field in parts]
    mass = sum(masses, ZERO)
    # What has arrived is 1 − lost of what was put in, for each of them.
    given = [
        m / max(1 - field.lost, float(np.finfo(np.float64).eps))
        for m, (_, field) in zip(masses, parts, strict=True)
    ]
    lost = sum((g * field.lost for g, (_, field) in zip(given, parts, strict=True)), ZERO)
    arrays = [field.pixels() for _, field in parts]
    spans = [
        list(zip(field.origin, array.shape, strict=True))
        for array, (_, field) in zip(arrays, parts, strict=True)
    ]
    whole = [reduce(united, along) for along in zip(*spans, strict=True)]
    image: Array = resolve(plan.device).xp.zeros([count for _, count in whole], dtype)
    for array, own, m in zip(arrays, spans, masses, strict=True):
        ends = zip(own, whole, strict=True)
        window = tuple(slice(a - w, a - w + n) for (a, n), (w, _) in ends)
        image[window] += dtype.type(m.over(mass)) * array
    return Propagated(
        image, tuple(start for start, _ in whole), mass, lost.over(sum(given, ZERO)), 0.0
    )
