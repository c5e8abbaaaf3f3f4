"""The engines that compute images, by name; `choice` chooses among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from fastrf.engine import (
    channelwise,
    correlated,
    covariance,
    direct,
    factored,
    forecast,
    forecast_correlated,
    projections,
    spectral,
)
from fastrf.engine.cost import CPU, Costs
from fastrf.engine.direct import Propagated
from fastrf.engine.forecast import Forecast
from fastrf.lowering import PlaneGraph

Obstacle = Callable[[PlaneGraph, str, str], str | None]


@dataclass(frozen=True, slots=True)
class Engine:
    """One way to compute an image.

    Attributes:
        method: what `method=` calls it; several engines may be ways of one method.
        run: computes it; all engines have the arguments of `direct.propagate`, and those with a
            `finest` tolerance `tol` too.
        obstacle: ``obstacle(graph, node, input)`` says why the engine does not serve a field, or
            None where it does.
        forecast: ``forecast(graph, node, unit, input, dtype, tail, tol)`` of a field that it
            serves, on one core of a CPU.
        accuracy: what an error is measured by. "relative": the pixel itself; "absolute": the
            image's peak.
        finest: ``finest(graph, node, unit, input)`` is the smallest `tol` that the engine can
            keep. None: it is right to a few ulp per layer, whatever `tol` is.
        trial: seconds; what its forecast itself may take. Where another engine is expected to be
            done by then, it need not be asked.
        ways: ``ways(kernels, largest)`` has the ways among which `run` chooses for images of up to
            so many pixels, by name, with the options that make it take each; one without a name
            and options where it has no choice.
        unseen: as `forecast`, of the same work as a GPU does it; None: where that does no other.
    """

    method: str
    run: Callable[..., Propagated]
    obstacle: Obstacle
    forecast: Callable[..., Forecast]
    accuracy: Literal["relative", "absolute"]
    finest: Callable[..., float] | None = None
    trial: float = 0.0
    ways: Callable[[Any, int], Mapping[str, Mapping[str, Any]]] = lambda *_: {"": {}}
    unseen: Callable[..., Forecast] | None = None

    def foretold(self, graph: PlaneGraph, *field: Any, costs: Costs) -> Forecast:
        """The forecast of a field, with the arguments of `forecast`, on a device of these costs.
        The latest are kept: whoever asks for a field plans it anew each time."""
        forecast = self.forecast if costs is CPU else self.unseen or self.forecast
        found = graph.lately(("forecast", forecast, *field), lambda: forecast(graph, *field))
        return found.on(costs)

    def refuses(
        self, graph: PlaneGraph, node: str, unit: tuple[int, ...], input_node: str, tol: float
    ) -> str | None:
        """Why the engine does not serve a field to this tolerance; None where it does."""
        key = ("obstacle", self.obstacle, node, input_node)
        why_not = graph.once(key, lambda: self.obstacle(graph, node, input_node))
        if why_not is None and self.finest is not None:
            finest = self.finest(graph, node, unit, input_node)
            if tol < finest:
                return f"it keeps tol={finest:.3g} at best, and {tol:g} was asked for"
        return why_not


_CHANNELS_DIFFER = "its layers hold their weights, which method='channelwise' follows"
_NO_COVARIANCES = "no fixed layer correlates its gradients"


def _by_variances(obstacle: Obstacle | None = None) -> Obstacle:
    """The obstacle of an engine that carries variances alone."""

    def found(graph: PlaneGraph, node: str, input_node: str) -> str | None:
        if channelwise.needed(graph, node, input_node):
            return _CHANNELS_DIFFER
        if covariance.needed(graph, node, input_node):
            return "fixed layers correlate its gradients, of which variances alone do not tell"
        return None if obstacle is None else obstacle(graph, node, input_node)

    return found


def _by_covariances(cancelling: bool) -> Obstacle:
    """The obstacle of the engine that carries covariances, with coefficients of either sign, which
    may cancel each other, or without."""

    def found(graph: PlaneGraph, node: str, input_node: str) -> str | None:
        if channelwise.needed(graph, node, input_node):
            return _CHANNELS_DIFFER
        if not covariance.needed(graph, node, input_node):
            return _NO_COVARIANCES
        if covariance.is_relative(graph, node, input_node) == cancelling:
            return f"it has {'no ' if cancelling else ''}coefficients that cancel each other"
        return None

    return found


def _not_projected(graph: PlaneGraph, node: str, input_node: str) -> str | None:
    if channelwise.needed(graph, node, input_node):
        return _CHANNELS_DIFFER
    if not covariance.needed(graph, node, input_node):
        return _NO_COVARIANCES
    return projections.obstacle(graph, node, input_node)


def _later(package: str, name: str) -> Callable[..., Any]:
    """A function of an engine whose package is imported at its first call: few fields need it, and
    both such packages together take 35 ms of the first field's 0.7 s."""

    def function(*arguments: Any, **options: Any) -> Any:
        module = import_module(f"fastrf.engine.{package}")
        return getattr(module, name)(*arguments, **options)

    return function


_reducible = _later("recompressed", "obstacle")
_stays_relative = _later("recompressed", "is_relative")


def _not_powers(graph: PlaneGraph, node: str, input_node: str) -> str | None:
    found: str | None = _reducible(graph, node, input_node)
    if found is None and not _stays_relative(graph, node, (0,) * graph.ndim, input_node):
        return "its terms have to be reduced on the way"
    return found


CANCELLED = 1e-13
"""What differences of numbers that round a few hundred times leave, relative to the peak."""

ENGINES: Mapping[str, Engine] = {
    "direct": Engine(
        "direct",
        direct.propagate,
        _by_variances(),
        forecast.of_direct,
        "relative",
        ways=direct.ways,
        unseen=forecast.of_direct_unseen,
    ),
    "correlated": Engine(
        "direct",
        correlated.propagate_correlated,
        _by_covariances(cancelling=False),
        forecast_correlated.of_correlated,
        "relative",
    ),
    "cancelling": Engine(
        "direct",
        correlated.propagate_correlated,
        _by_covariances(cancelling=True),
        forecast_correlated.of_correlated,
        "absolute",
        lambda *_: CANCELLED,
    ),
    "factored": Engine(
        "factored",
        factored.propagate_factored,
        _by_variances(factored.obstacle),
        forecast.of_factored,
        "relative",
    ),
    "projected": Engine(
        "factored",
        projections.propagate_projected,
        _not_projected,
        forecast_correlated.of_projected,
        "relative",
    ),
    "powers": Engine(
        "factored",
        _later("recompressed", "propagate_powers"),
        _by_variances(_not_powers),
        _later("recompressed", "of_powers"),
        "relative",
        trial=2e-3,
        unseen=_later("recompressed", "of_powers_on_device"),
    ),
    "recompressed": Engine(
        "factored",
        _later("recompressed", "propagate_recompressed"),
        _by_variances(_reducible),
        _later("recompressed", "of_recompressed"),
        "absolute",
        _later("recompressed", "finest"),
        trial=2e-3,
        unseen=_later("recompressed", "of_recompressed_on_device"),
    ),
    "spectral": Engine(
        "spectral",
        spectral.propagate_spectral,
        _by_variances(spectral.obstacle),
        forecast.of_spectral,
        "absolute",
        lambda *_: spectral.FINEST,
    ),
    "tilted": Engine(
        "spectral",
        _later("tilted", "propagate_tilted"),
        _by_variances(_later("tilted", "obstacle")),
        _later("tilted", "of_tilted"),
        "relative",
        _later("tilted", "finest"),
        trial=50e-3,
    ),
    "channelwise": Engine(
        "channelwise",
        channelwise.propagate_channelwise,
        channelwise.obstacle,
        channelwise.of_channelwise,
        "relative",
    ),
}
"""Every engine by name, those of one method in the order in which they are tried."""

METHODS = tuple(dict.fromkeys(engine.method for engine in ENGINES.values()))
"""What `method=` takes besides "auto"."""
