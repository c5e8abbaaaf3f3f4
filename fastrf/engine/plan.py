"""The planner: what will be computed, how, where, and what it takes; no array is touched."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Real
from typing import Any, NamedTuple, TypeVar

import numpy as np

from fastrf.device import HOST, Device
from fastrf.engine import ENGINES, METHODS, channelwise, cost
from fastrf.engine.choice import NOTICEABLE, Choice, Where, chosen_pass, forecasts_of
from fastrf.engine.cost import Costs
from fastrf.engine.extents import check_extent, check_path
from fastrf.engine.forecast import Forecast
from fastrf.engine.outlook import Outlook
from fastrf.engine.prefixes import Prefixes
from fastrf.engine.windows import Span
from fastrf.errors import InputError, PlanError, short
from fastrf.layers.checks import is_whole
from fastrf.lowering import PlaneGraph

MEMORY_FLOOR = 1 << 20
"""Bytes up to which a plan does not say how much memory a field takes, but that it is no more:
Python's own objects count there as much as arrays."""

_ASKED_FOR = "asked for"

_SOME = 1e-6
"""A share of the mass that may well be dropped."""

Planned = TypeVar("Planned")


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be computed, how, and what it is expected to cost. `print(plan)` explains it.

    Attributes:
        node, unit, input: where the gradient starts and which input it is followed to.
        method: how, in the words of `method=`.
        engine: the engine, one of `ENGINES`: a way of that method.
        reason: why this engine.
        accuracy: what the error of a pixel is measured by. "relative": the pixel itself;
            "absolute": the peak.
        tol: that error, or None: a few ulp per layer.
        device, dtype, workers: what it runs on.
        operations: linear operations between the unit and the input.
        support: upper bound of the image's window on the input, (first, pixels) per axis.
        cells: pixel updates, upper bound.
        seconds: predicted time of a field, its pixels formed; lowering the network and compiling
            kernels, which happen once, are not counted. On the machine that the constants were
            measured on (`cost`) it is right to a factor of 3.
        memory: predicted peak memory in bytes, with that of all pixels: of arrays, and of what
            kernels allocate, on a network that was planned before. Below `MEMORY_FLOOR`, a field
            takes no more than that. Above it is right to a tenth on one thread, or an upper bound
            where values decide: how many windows it takes ("tilted"), where an image ends that
            fades before its support does (float32, a `tail`). How many columns reductions leave
            ("recompressed") is foretold without borders, mostly to a tenth, and there what LAPACK
            works in comes on top: some 7·n² numbers for n columns. On several threads it is an
            upper bound of what their kernels work in. On a GPU it is that of its memory, and what
            CUDA's libraries hold once they are loaded comes on top.
        channel: the unit's channel, where channels are told apart; None: the mean over all.
        formed: the part of `memory` that is taken only when `ERF.image` is asked for.
        memory_limit: bytes, as asked for; where the default does not hold all pixels, what it was.
    """

    node: str
    unit: tuple[int, ...]
    input: str
    method: str
    engine: str
    reason: str
    accuracy: str
    tol: float | None
    device: str
    dtype: str
    workers: int
    operations: int
    support: tuple[Span, ...]
    cells: int
    seconds: float
    memory: int
    tail: float | None
    notes: tuple[str, ...] = field(default=())
    channel: int | None = None
    formed: int = 0
    memory_limit: int | None = None

    @property
    def working(self) -> int:
        """Predicted peak memory in bytes, without pixels that are formed when asked for."""
        return self.memory - self.formed

    @property
    def fits(self) -> bool:
        """Whether all pixels may be formed."""
        return self.memory_limit is None or self.memory <= self.memory_limit

    def within(self, limit: int, memory_limit: int | None) -> Plan:
        """The plan with the limit that it was asked for, and, where that does not hold all pixels,
        with what `limit_of` makes of it and a note."""
        if self.memory <= limit:
            return replace(self, memory_limit=memory_limit)
        note = f"all pixels do not fit {limit / 2**20:.3g} MiB: ask for measures or a window"
        return replace(self, memory_limit=limit, notes=(*self.notes, note))

    @property
    def asked_for(self) -> bool:
        """Whether `method=` named the method, so that no other will do."""
        return self.reason == _ASKED_FOR

    def instead(self, engine: str, reason: str) -> Plan:
        """The plan with an engine that is right pixel by pixel, and why."""
        method, accuracy = ENGINES[engine].method, ENGINES[engine].accuracy
        return replace(
            self, method=method, engine=engine, reason=reason, accuracy=accuracy, tol=None, formed=0
        )

    def __str__(self) -> str:
        window = " × ".join(str(count) for _, count in self.support)
        first = ", ".join(str(start) for start, _ in self.support)
        channel = "" if self.channel is None else f", channel {self.channel},"
        lines = [
            f"Plan: unit {self.unit}{channel} of {self.node!r} → {self.input!r}",
            f"  engine   {self._name()}: {self.reason}",
            f"  accuracy {self.accuracy}: {self._right()}",
            f"  device   {self.device}, {self.dtype}, workers {self.workers}",
            f"  work     {self.operations} operations, at most {self.cells:.3g} pixel updates",
            f"  image    at most {window} pixels from ({first})",
            f"  expected {self.seconds:.2g} s, {self.memory / 2**20:.3g} MiB",
        ]
        if self.tail is not None:
            lines.append(f"  tail     up to {self.tail:g} of the mass may be dropped")
        lines.extend(f"  note     {note}" for note in self.notes)
        return "\n".join(lines)

    def _name(self) -> str:
        own = self.engine == self.method
        return self.method if own else f"{self.engine} (method {self.method!r})"

    def _right(self) -> str:
        whole = "of the peak" if self.accuracy == "absolute" else "of itself, pixel by pixel"
        return "right pixel by pixel" if self.tol is None else f"right to {self.tol:g} {whole}"


def make_plan(
    graph: PlaneGraph,
    node: str,
    unit: tuple[int, ...],
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
    channel: int | None = None,
) -> Plan:
    """Chooses the engine and foretells time and memory.

    Args: as of `erf.erf`.

    Raises:
        InputError: an option has a value that does not exist or does not fit the network, or no
            path leads to the input.
        PlanError: the computation would not fit into `memory_limit` bytes, pixels that are formed
            when asked for aside.
    """
    dtype = checked_dtype(dtype)
    check_options(method, accuracy, tol, tail, workers, memory_limit)
    where = (graph, node, unit, input_node)
    check_path(graph, node, input_node)
    check_extent(*where)
    if channel is not None:
        _check_channel(channel, where)

    limits: dict[str, int] = {}

    def on(place: Device) -> Plan:
        choice = Choice(where, dtype, accuracy, tol, tail, costs_of(place))
        limit = limits[place.name] = limit_of(memory_limit, place)
        if method == "auto":
            engine, reason, forecast = choice.within(limit)
        else:
            engine, reason = choice.of_method(method), _ASKED_FOR
            forecast = choice.forecast(engine)
        count = _workers(workers, [forecast], place)
        what = (node, unit, input_node)
        found = _plan(what, engine, reason, forecast, place, dtype, count, tail, tol)
        return replace(found, seconds=cost.VERB_SECONDS + found.seconds)

    plan, place = preferred(device, on, lambda found: load_of([found], dtype), memory_limit)
    plan = replace(plan, notes=notes_of(place), channel=channel)
    remedy = partial(_remedy, where, plan, tol)
    limit = limits[place.name]
    check_memory("the plan needs", plan.working, limit, place, remedy)
    return plan.within(limit, memory_limit)


def _remedy(where: Where, plan: Plan, tol: float) -> str:
    """What makes a plan smaller that does not fit."""

    def smaller(dtype: str, tail: float | None) -> bool:
        found = ENGINES[plan.engine].foretold(*where, np.dtype(dtype), tail, tol, costs=cost.CPU)
        return found.working < plan.working

    means = []
    if plan.tail is None and smaller(plan.dtype, _SOME):
        means.append("tail=")
    if plan.dtype == "float64" and smaller("float32", plan.tail):
        means.append("dtype='float32'")
    if where[0].input_size is None:
        means.append("an input_size")
    if not means:
        return ""
    return f"use {' or '.join(filter(None, (', '.join(means[:-1]), means[-1])))}"


def _check_channel(channel: object, where: Where) -> None:
    graph, node, _, source = where
    count = graph.channels[node]
    if not channelwise.needed(graph, node, source):
        raise InputError(
            f"channel={short(channel)} needs weights to tell channels apart; give layers weights=, "
            f"read the model with weights='trained', channels='full', or leave it out"
        )
    if count is None:
        raise InputError(
            f"channel={short(channel)}: the number of channels of {node!r} is not known; give its "
            f"layer channels="
        )
    if not is_whole(channel) or not 0 <= channel < count:
        raise InputError(f"channel={short(channel)} must be a number from 0 to {count - 1}")


def check_memory(
    what: str,
    size: int,
    memory_limit: int | None,
    device: Device = HOST,
    remedy: Callable[[], str] = lambda: "use tail=, dtype='float32' or an input_size",
) -> None:
    """Raises PlanError where the bytes needed are more than the limit; `remedy` finds out what else
    to do than to raise it."""
    limit = limit_of(memory_limit, device)
    if size > limit:
        other = remedy()
        raise PlanError(
            f"{what} about {size / 2**20:.3g} MiB, more than the limit of "
            f"{limit / 2**20:.3g} MiB (memory_limit, by default half of what is free); "
            f"raise memory_limit{other and f', or {other}'}"
        )


def make_plans(
    outlook: Outlook,
    input_node: str,
    *,
    device: Device,
    method: str = "auto",
    accuracy: str = "auto",
    tol: float = 1e-12,
    workers: int | None = None,
    memory_limit: int | None = None,
) -> dict[str, Plan]:
    """The plans of all maps that one pass up from the input serves, by node: one engine for all.

    Args: as of `make_plan`, which has checked them.

    Raises:
        InputError: the engine asked for does not serve all of the maps.
    """
    if method == "factored" and isinstance(outlook.expanded, str):
        raise InputError(
            f"method='factored' does not serve all layers: {outlook.expanded}; use "
            f"method='direct' or 'auto'"
        )
    if method == "spectral" and accuracy == "relative":
        raise InputError(
            "method='spectral' is right to tol of the peak for all layers at once, not pixel by "
            "pixel as accuracy='relative' asks; use another method or accuracy='absolute'"
        )
    costs = costs_of(device)
    if method == "auto":
        limit = limit_of(memory_limit, device)
        method, reason, forecasts = chosen_pass(outlook, accuracy, tol, limit, costs)
    else:
        reason, forecasts = _ASKED_FOR, forecasts_of(method, outlook, tol, costs)
    workers = _workers(workers, forecasts.values(), device)
    options = (device, outlook.dtype, workers, outlook.tail, tol)
    return {
        node: _plan((node, outlook.unit, input_node), method, reason, forecast, *options)
        for node, forecast in forecasts.items()
    }


def make_correlated_plans(
    outlook: Outlook,
    input_node: str,
    nodes: Sequence[str],
    *,
    device: Device,
    method: str = "auto",
    tol: float = 1e-12,
    workers: int | None = None,
) -> dict[str, Plan]:
    """As `make_plans`, of the pass that carries covariances, which makes the fields of some nodes
    on its way."""
    forecasts = {n: f.on(costs_of(device)) for n, f in outlook.correlated.items()}
    reason = (
        f"its part of one pass over {len(outlook.nodes)} maps; fixed layers correlate gradients: "
        f"covariances count too"
    )
    if method == "direct":
        reason = _ASKED_FOR
    count = _workers(workers, forecasts.values(), device)
    options = (device, outlook.dtype, count, outlook.tail, tol)
    # What only passes by counts with the first of the fields.
    passing = [f for n, f in forecasts.items() if n not in nodes]
    first = next(n for n in forecasts if n in nodes)
    forecasts[first] = replace(
        forecasts[first],
        fixed=forecasts[first].fixed + sum(f.fixed for f in passing),
        shared=forecasts[first].shared + sum(f.shared for f in passing),
    )
    return {
        n: _plan((n, outlook.unit, input_node), "correlated", reason, f, *options)
        for n, f in forecasts.items()
        if n in nodes
    }


def make_batched_plans(
    batch: Prefixes,
    units: Mapping[str, tuple[int, ...]],
    input_node: str,
    dtype: np.dtype[Any],
    *,
    device: Device,
    method: str = "auto",
    workers: int | None = None,
) -> dict[str, Plan]:
    """As `make_plans`, of the maps of a chain on an image."""
    forecasts = {n: f.on(costs_of(device)) for n, f in batch.forecasts(dtype).items()}
    count = _workers(workers, forecasts.values(), device)
    reason = (
        f"its part of one batch of {len(forecasts)} maps; a chain of separable layers is an outer "
        f"product of profiles"
    )
    if method == "factored":
        reason = _ASKED_FOR
    return {
        n: _plan((n, units[n], input_node), "factored", reason, f, device, dtype, count, None, 0.0)
        for n, f in forecasts.items()
    }


def make_called_plan(
    what: tuple[str, tuple[int, ...], str],
    forecast: Forecast,
    *,
    device: Device,
    dtype: np.dtype[Any],
    method: str = "auto",
    workers: int | None = None,
    **_: Any,
) -> Plan:
    """The plan of one of many maps of a small image, from a bound for all (`calls`).

    Args:
        what: node, unit and input.
    """
    reason = "a small image: one call, which is quicker than looking for another way"
    if method == "direct":
        reason = _ASKED_FOR
    count = _workers(workers, [forecast], device)
    return _plan(what, "direct", reason, forecast, device, dtype, count, None, 0.0)


def _plan(
    what: tuple[str, tuple[int, ...], str],
    engine: str,
    reason: str,
    forecast: Forecast,
    device: Device,
    dtype: np.dtype[Any],
    workers: int,
    tail: float | None,
    tol: float,
) -> Plan:
    return Plan(
        *what,
        ENGINES[engine].method,
        engine,
        reason,
        ENGINES[engine].accuracy,
        None if ENGINES[engine].finest is None else tol,
        device.name,
        dtype.name,
        workers,
        forecast.operations,
        forecast.support,
        forecast.cells,
        forecast.seconds(workers),
        forecast.memory_on(workers),
        tail,
        notes_of(device),
        formed=forecast.formed,
    )


def _workers(asked: int | None, forecasts: Iterable[Forecast], device: Device) -> int:
    """Threads: those asked for, or as many as pay. A GPU needs but the one that feeds it."""
    if not device.is_host:
        return 1
    return asked or max(f.workers(_cores()) for f in forecasts)


# --- devices --------------------------------------------------------------------------------

UNMEASURED = 3.0
"""So many times less than the CPU a device has to promise whose forecasts nobody has held against
a clock: what those of the CPU are right to."""


class Load(NamedTuple):
    """What a plan puts on its device: seconds, bytes at its fullest moment and of its results."""

    seconds: float
    memory: int
    result: int


def load_of(plans: Iterable[Plan], dtype: np.dtype[Any]) -> Load:
    """That of plans one after the other, whose results stay."""
    seconds, memory, result = 0.0, 0, 0
    for plan in plans:
        seconds += plan.seconds
        memory += plan.memory
        result += math.prod(count for _, count in plan.support) * dtype.itemsize
    return Load(seconds, memory, result)


def costs_of(device: Device) -> Costs:
    return cost.CPU if device.is_host else cost.of_gpu(device.bandwidth())


def notes_of(device: Device) -> tuple[str, ...]:
    """Why this device, and what is not known of it."""
    chosen = () if device.reason == "asked for" else (device.reason,)
    if device.is_host:
        return chosen
    return (*chosen, f"the time on {device.name} follows from its data sheet; it is not measured")


def preferred(
    device: Device,
    on: Callable[[Device], Planned],
    load: Callable[[Planned], Load],
    memory_limit: int | None,
) -> tuple[Planned, Device]:
    """What is planned on the device that was asked for, or, of "auto", on the one of the two that
    had better take it; and that device, with the reason.

    Args:
        on: makes the plan for a device.
        load: what that plan puts on it.
    """
    gpu = device.other
    if gpu is None:
        return on(device), device
    host = replace(device, other=None)
    planned = on(host)
    here = load(planned)
    fits = here.memory <= limit_of(memory_limit, host)
    if fits and here.seconds <= NOTICEABLE:
        return planned, _because(host, f"{here.seconds:.2g} s of the CPU is not worth {gpu.name}")
    elsewhere = on(gpu)
    there, limit = load(elsewhere), limit_of(memory_limit, gpu)
    took = there.seconds + there.result * costs_of(gpu).result
    both = f"{gpu.name} {took:.2g} s with the transfer, the CPU {here.seconds:.2g} s"
    if there.memory > limit:
        lacking = f"{there.memory / 2**20:.3g} MiB of {limit / 2**20:.3g} MiB"
        return planned, _because(host, f"{gpu.name} would need {lacking}")
    if fits and UNMEASURED * took >= here.seconds:
        return planned, _because(host, f"{both}, which is not clearly less")
    reason = both if fits else f"the CPU would need {here.memory / 2**20:.3g} MiB"
    return elsewhere, _because(gpu, reason)


def _because(device: Device, reason: str) -> Device:
    return replace(device, reason=f"auto: {reason}")


def limit_of(memory_limit: int | None, device: Device) -> int:
    """Bytes that a plan may take: what was asked for, by default half of what is free. Of a GPU's
    memory no more than is free, since it does not swap."""
    if memory_limit is not None and device.is_host:
        return memory_limit
    free = device.free_memory()
    return free // 2 if memory_limit is None else min(memory_limit, free)


def checked_dtype(dtype: Any) -> np.dtype[Any]:
    """The dtype of that name; raises InputError for any but float32 and float64."""
    found: np.dtype[Any]
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if found not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise InputError(f"dtype={short(dtype)} is not possible; give 'float64' or 'float32'")
    return found


def check_options(
    method: str,
    accuracy: str,
    tol: float,
    tail: float | None,
    workers: int | None,
    memory_limit: int | None,
) -> None:
    """Raises InputError for a value that does not exist."""
    if method not in ("auto", *METHODS):
        raise InputError(
            f"method={short(method)} is unknown; choose one of auto, {', '.join(METHODS)}"
        )
    if accuracy not in ("auto", "relative", "absolute"):
        raise InputError(
            f"accuracy={short(accuracy)} is unknown; choose one of auto, relative, absolute"
        )
    if not _is_number(tol) or not 0 < tol < 1:
        raise InputError(f"tol={short(tol)} must lie between 0 and 1")
    if tail is not None and (not _is_number(tail) or not 0 < tail < 1):
        raise InputError(f"tail={short(tail)} must lie between 0 and 1, or be None")
    for name, value in (("workers", workers), ("memory_limit", memory_limit)):
        if value is not None and (not is_whole(value) or not 1 <= value < _MOST[name]):
            raise InputError(
                f"{name}={short(value)} must be a whole number of at least 1 and below "
                f"{_MOST[name]}, or None"
            )


_MOST = {"workers": 2**16, "memory_limit": 2**63}


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
