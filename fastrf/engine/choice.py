"""Which engine: the one with the shortest forecast among those that are right enough and fit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from fastrf.engine import ENGINES, channelwise, cost, covariance, factored, spectral
from fastrf.engine.coherence import coherence_of
from fastrf.engine.cost import Costs
from fastrf.engine.forecast import Forecast
from fastrf.engine.outlook import Outlook
from fastrf.errors import InputError, short
from fastrf.lowering import PlaneGraph

CLEARLY_SLOWER = 10.0
"""An engine that is right pixel by pixel may cost this much more than one that is right to the
tolerance before `accuracy="auto"` prefers the latter,"""

NOTICEABLE = 0.1
"""and must take this long, in seconds, so that it matters."""

FEW_PIXELS = 1 << 14
"""An outer product of profiles with more pixels than this writes each of them once, which no other
engine can better; with fewer, calls count, and others are asked too."""

FEW_LAGS = 32
"""Lags of all axes together up to which following them at once may take less than one axis after
the other, whose calls count twice."""

Where = tuple[PlaneGraph, str, tuple[int, ...], str]
"""Graph, node, unit and input."""


class Chosen(NamedTuple):
    """An engine, why it is the one, and what it will do."""

    engine: str
    reason: str
    forecast: Forecast


@dataclass(frozen=True, slots=True)
class Choice:
    """A field, how right it has to be, and what work costs on its device.

    Attributes:
        where: the field.
        dtype: of its pixels.
        accuracy, tol, tail: as of `erf.erf`.
        costs: of the device.
    """

    where: Where
    dtype: np.dtype[Any]
    accuracy: str
    tol: float
    tail: float | None
    costs: Costs

    def serves(self, engine: str) -> bool:
        """Whether an engine serves the field to the tolerance."""
        return ENGINES[engine].refuses(*self.where, self.tol) is None

    def forecast(self, engine: str) -> Forecast:
        """What an engine that serves the field will do."""
        return ENGINES[engine].foretold(
            *self.where, self.dtype, self.tail, self.tol, costs=self.costs
        )

    def of_method(self, method: str) -> str:
        """The first engine of a method that serves the field as accurately as asked.

        Raises:
            InputError: none does.
        """
        reasons = []
        for name, engine in ENGINES.items():
            if engine.method != method:
                continue
            why_not = engine.refuses(*self.where, self.tol)
            if self.accuracy == "relative" and engine.accuracy != "relative":
                why_not = "right to tol of the peak, not pixel by pixel as accuracy='relative' asks"
            if why_not is None:
                return name
            reasons.append(f"{name}: {why_not}")
        graph, node, _, source = self.where
        other = "channelwise" if channelwise.needed(graph, node, source) else "direct"
        if method == other == "channelwise":  # no other serves it: nobody need have asked for it
            why_not = channelwise.obstacle(graph, node, source)
            raise InputError(f"layers hold their weights: {why_not}")
        raise InputError(
            f"method={short(method)} does not serve this field: {'; '.join(reasons)}"
            + (f"; use method={other!r} or 'auto'" if method != other else "")
        )

    def within(self, limit: int) -> Chosen:
        """The quickest engine, unless its work does not fit into so many bytes and another's does,
        which may leave factors."""
        quickest = self.quickest()
        if quickest.forecast.working <= limit:
            return quickest
        for kind in ("relative",) if self.accuracy == "relative" else ("relative", "absolute"):
            others = [n for n, engine in ENGINES.items() if engine.accuracy == kind]
            forecasts = {name: self.forecast(name) for name in others if self.serves(name)}
            fit = {name: found for name, found in forecasts.items() if found.working <= limit}
            if fit:
                best = min(fit, key=lambda name: fit[name].seconds(1))
                taken = quickest.forecast.working / 2**20
                return Chosen(best, f"{quickest.engine} would take {taken:.3g} MiB", fit[best])
        return quickest

    def quickest(self) -> Chosen:
        """The engine with the shortest forecast among those that are right enough."""
        graph, node, _, source = self.where
        if channelwise.needed(graph, node, source):
            only = self.of_method("channelwise")
            reason = "layers hold their weights: one image per channel"
            return Chosen(only, reason, self.forecast(only))
        if covariance.needed(graph, node, source):
            return self._with_covariances()
        return self._by_variances()

    def _by_variances(self) -> Chosen:
        graph, node, _, source = self.where
        found: dict[str, Forecast] = {}

        def ask(name: str) -> None:
            """Adds an engine's forecast, unless it would take longer than one that is there."""
            quick = found and min(f.seconds(1) for f in found.values()) <= ENGINES[name].trial
            if not quick and self.serves(name):
                found[name] = self.forecast(name)

        ask("factored")
        profiles = "factored" in found and factored.rank(graph, node, source) == 1
        if not profiles or _pixels(found["factored"]) < FEW_PIXELS:
            ask("direct")
            if "factored" not in found:  # the same sums, with the borders' part in them
                ask("powers")
            ask("tilted")
        best = min(found, key=lambda name: found[name].seconds(1))
        took = found[best].seconds(1)
        reason = self._reason(best, found)
        if self.accuracy == "relative" or (self.accuracy == "auto" and took <= NOTICEABLE):
            return Chosen(best, reason, found[best])
        ask("recompressed")
        ask("spectral")
        other = min(found, key=lambda name: found[name].seconds(1))
        factor = 1.0 if self.accuracy == "absolute" else CLEARLY_SLOWER
        if factor * found[other].seconds(1) < took:
            reason = f"right pixel by pixel would take {took:.2g} s ({best})"
            return Chosen(other, reason, found[other])
        return Chosen(best, reason, found[best])

    def _with_covariances(self) -> Chosen:
        graph, node, _, source = self.where
        reason = "fixed layers correlate gradients: covariances count too"
        found: dict[str, Forecast] = {}
        if self.serves("projected"):
            found["projected"] = self.forecast("projected")
        # All lags of all axes at once are many: also for a forecast.
        if not found or coherence_of(graph, node, source).widest <= FEW_LAGS:
            all_axes = self.of_method("direct")
            found[all_axes] = self.forecast(all_axes)
        best = min(found, key=lambda name: found[name].seconds(1))
        if best == "projected":
            reason += ", of each axis by itself in a chain of separable layers"
        return Chosen(best, reason, found[best])

    def _reason(self, best: str, found: Mapping[str, Forecast]) -> str:
        graph, node, _, source = self.where
        if best == "factored":
            rank = factored.rank(graph, node, source)
            if rank == 1:
                return "a chain of separable layers is an outer product of profiles"
            return f"the image is a sum of {rank} separable terms"
        if best == "direct" and "factored" not in found:
            return ENGINES["factored"].obstacle(graph, node, source) or ""
        others = {name: f for name, f in found.items() if name != best}
        name = min(others, key=lambda name: others[name].seconds(1))
        took, other = found[best].seconds(1), others[name].seconds(1)
        return f"quicker here, {took:.2g} s against {other:.2g} s ({name})"


def _pixels(forecast: Forecast) -> int:
    return math.prod(count for _, count in forecast.support)


# --- all maps that one pass serves ------------------------------------------------------------


def chosen_pass(
    outlook: Outlook, accuracy: str, tol: float, limit: int, costs: Costs
) -> tuple[str, str, dict[str, Forecast]]:
    """The engine for all maps that one pass serves, why, and what it will do for each."""
    reason = f"its part of one pass over {len(outlook.nodes)} maps"
    if outlook.rank == 1:
        return "factored", reason, forecasts_of("factored", outlook, tol, costs)
    best, forecasts = "direct", forecasts_of("direct", outlook, tol, costs)
    if outlook.rank is not None:
        terms = forecasts_of("factored", outlook, tol, costs)
        if _working(forecasts) > limit or _seconds(terms) < _seconds(forecasts):
            best, forecasts = "factored", terms
    enough = 0.0 if accuracy == "absolute" else NOTICEABLE
    if accuracy != "relative" and tol >= spectral.FINEST and _seconds(forecasts) > enough:
        waves = forecasts_of("spectral", outlook, tol, costs)
        factor = 1.0 if accuracy == "absolute" else CLEARLY_SLOWER
        fits = _working(waves) <= limit or _working(forecasts) > limit
        if fits and factor * _seconds(waves) < _seconds(forecasts):
            reason += f"; right pixel by pixel, all take {_seconds(forecasts):.2g} s ({best})"
            best, forecasts = "spectral", waves
    return best, reason, forecasts


def forecasts_of(method: str, outlook: Outlook, tol: float, costs: Costs) -> dict[str, Forecast]:
    """What a method will do for each of these maps."""
    if method == "spectral":
        found = outlook.spectral(tol)
    elif method == "factored":
        found = outlook.factored
    else:
        found = outlook.direct if costs is cost.CPU else outlook.unseen
    return {node: forecast.on(costs) for node, forecast in found.items()}


def _seconds(forecasts: dict[str, Forecast]) -> float:
    return sum(f.seconds(1) for f in forecasts.values())


def _working(forecasts: dict[str, Forecast]) -> int:
    return sum(f.working for f in forecasts.values())
