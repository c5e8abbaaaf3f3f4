"""The planner: chooses the engine and foretells its work, without touching an array."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fastrf.device import Device
from fastrf.engine import ENGINES, cost, factored, spectral
from fastrf.engine.forecast import Forecast, of_direct, of_factored, of_spectral
from fastrf.engine.windows import Span
from fastrf.errors import InputError, PlanError
from fastrf.lowering import PlaneGraph

METHODS = tuple(ENGINES)

CLEARLY_SLOWER = 10.0
"""An engine that is right pixel by pixel may cost this much more than one that is right to the
tolerance before `accuracy="auto"` prefers the latter,"""

NOTICEABLE = 0.1
"""and must take this long, in seconds, so that it matters."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What will be computed, how, and what it is expected to cost. `print(plan)` explains it.

    Attributes:
        node, unit, input: where the gradient starts and which input it is followed to.
        method: the engine, one of `METHODS`.
        reason: why this engine.
        accuracy: "relative": every pixel to a few ulp per layer, relative to itself; "absolute":
            every pixel to `tol` of the peak.
        device, dtype, workers: what it runs on.
        operations: linear operations between the unit and the input.
        support: upper bound of the image's window on the input, (first, pixels) per axis.
        cells: pixel updates, upper bound.
        seconds: predicted time of the engine and of forming the pixels; lowering the network and
            compiling kernels, which happen once, are not counted.
        memory: predicted peak memory in bytes.
    """

    node: str
    unit: tuple[int, ...]
    input: str
    method: str
    reason: str
    accuracy: str
    tol: float
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

    def __str__(self) -> str:
        window = " × ".join(str(count) for _, count in self.support)
        first = ", ".join(str(start) for start, _ in self.support)
        lines = [
            f"Plan: unit {self.unit} of {self.node!r} → {self.input!r}",
            f"  engine   {self.method}: {self.reason}",
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

    def _right(self) -> str:
        relative = self.accuracy == "relative"
        return "right pixel by pixel" if relative else f"right to {self.tol:g} of the peak"


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
) -> Plan:
    """Chooses the engine and foretells time and memory.

    Raises:
        InputError: an option has a value that does not exist or does not fit the network.
        PlanError: the computation would not fit into `memory_limit` bytes.
    """
    dtype = _checked_dtype(dtype)
    _check_options(method, accuracy, tol, tail, workers, memory_limit)
    where = (graph, node, unit, input_node)
    if method == "auto":
        method, reason, forecast = _chosen(where, dtype, accuracy, tail, tol)
    else:
        _refuse(method, accuracy, graph, node, input_node)
        reason, forecast = "asked for", _forecast(method, where, dtype, tail, tol)
    workers = workers or forecast.workers(_cores())
    plan = Plan(
        node,
        unit,
        input_node,
        method,
        reason,
        ENGINES[method].accuracy,
        tol,
        device.name,
        dtype.name,
        workers,
        forecast.operations,
        forecast.support,
        forecast.cells,
        forecast.seconds(workers),
        forecast.memory,
        tail,
        () if device.reason == "asked for" else (device.reason,),
    )
    limit = memory_limit if memory_limit is not None else _free_memory() // 2
    if plan.memory > limit:
        raise PlanError(
            f"the plan needs about {plan.memory / 2**20:.3g} MiB, more than the limit of "
            f"{limit / 2**20:.3g} MiB (memory_limit, by default half of what is free); "
            f"raise memory_limit, or use tail=, dtype='float32' or an input_size"
        )
    return plan


Where = tuple[PlaneGraph, str, tuple[int, ...], str]
"""Graph, node, unit and input."""


def _chosen(
    where: Where, dtype: np.dtype[Any], accuracy: str, tail: float | None, tol: float
) -> tuple[str, str, Forecast]:
    """The engine with the shortest forecast among those that are right enough, and why."""
    graph, node, _, source = where
    why_not = ENGINES["factored"].obstacle(graph, node, source)
    best, reason, forecast = "direct", why_not or "", None
    if why_not is None:
        forecast = _forecast("factored", where, dtype, tail, tol)
        best, reason = "factored", _terms(factored.rank(graph, node, source))
    # Where factors are quicker than the direct engine's calls alone, its walk can be spared.
    calls = len(graph.between(node, source)) * cost.POINTWISE_SECONDS
    if forecast is None or forecast.seconds(1) > calls:
        layers = _forecast("direct", where, dtype, tail, tol)
        if forecast is None or layers.seconds(1) < forecast.seconds(1):
            if forecast is not None:
                took, other = layers.seconds(1), forecast.seconds(1)
                reason = f"quicker here, {took:.2g} s against {other:.2g} s in factors"
            best, forecast = "direct", layers
    limit = 0.0 if accuracy == "absolute" else NOTICEABLE
    worth = accuracy != "relative" and tol >= spectral.FINEST and forecast.seconds(1) > limit
    if worth and ENGINES["spectral"].obstacle(graph, node, source) is None:
        waves = _forecast("spectral", where, dtype, tail, tol)
        factor = 1.0 if accuracy == "absolute" else CLEARLY_SLOWER
        if factor * waves.seconds(1) < forecast.seconds(1):
            reason = f"right pixel by pixel would take {forecast.seconds(1):.2g} s ({best})"
            best, forecast = "spectral", waves
    return best, reason, forecast


def _terms(rank: int) -> str:
    if rank == 1:
        return "a chain of separable layers is an outer product of profiles"
    return f"the image is a sum of {rank} separable terms"


def _forecast(
    method: str, where: Where, dtype: np.dtype[Any], tail: float | None, tol: float
) -> Forecast:
    if method == "spectral":
        return of_spectral(*where, dtype, tail, tol)
    return (of_direct if method == "direct" else of_factored)(*where, dtype, tail)


def _refuse(method: str, accuracy: str, graph: PlaneGraph, node: str, source: str) -> None:
    """Raises where the engine asked for does not serve the field, or not well enough."""
    why_not = ENGINES[method].obstacle(graph, node, source)
    if why_not is not None:
        raise InputError(
            f"method={method!r} does not serve this field: {why_not}; use method='direct' or 'auto'"
        )
    if accuracy == "relative" and ENGINES[method].accuracy != "relative":
        raise InputError(
            f"method={method!r} is right to tol of the peak, not pixel by pixel as "
            f"accuracy='relative' asks; use another method or accuracy='absolute'"
        )


def _checked_dtype(dtype: Any) -> np.dtype[Any]:
    found: np.dtype[Any]
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = np.dtype(object)
    if found not in (np.dtype(np.float32), np.dtype(np.float64)):
        raise InputError(f"dtype={dtype!r} is not possible; give 'float64' or 'float32'")
    return found


def _check_options(
    method: str,
    accuracy: str,
    tol: float,
    tail: float | None,
    workers: int | None,
    memory_limit: int | None,
) -> None:
    if method not in ("auto", *METHODS):
        raise InputError(f"method={method!r} is unknown; choose one of auto, {', '.join(METHODS)}")
    if accuracy not in ("auto", "relative", "absolute"):
        raise InputError(
            f"accuracy={accuracy!r} is unknown; choose one of auto, relative, absolute"
        )
    if not _is_number(tol) or not 0 < tol < 1:
        raise InputError(f"tol={tol!r} must lie between 0 and 1")
    if tail is not None and (not _is_number(tail) or not 0 < tail < 1):
        raise InputError(f"tail={tail!r} must lie between 0 and 1, or be None")
    for name, value in (("workers", workers), ("memory_limit", memory_limit)):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise InputError(f"{name}={value!r} must be a whole number of at least 1, or None")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _free_memory() -> int:
    """Memory that can be taken without swapping, in bytes; 4 GiB where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            for line in file:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return 4 << 30
