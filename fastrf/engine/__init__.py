"""The engines that compute images, by name; `plan` chooses among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fastrf.engine import direct, factored, spectral
from fastrf.engine.direct import Propagated
from fastrf.lowering import PlaneGraph


@dataclass(frozen=True, slots=True)
class Engine:
    """One way to compute an image.

    Attributes:
        run: computes it; all engines have the arguments of `direct.propagate`, and `tol`.
        obstacle: ``obstacle(graph, node, input)`` says why the engine does not serve a field, or
            None where it does.
        accuracy: "relative": right pixel by pixel, to a few ulp per layer; "absolute": right to
            `tol` of the peak.
    """

    run: Callable[..., Propagated]
    obstacle: Callable[[PlaneGraph, str, str], str | None]
    accuracy: Literal["relative", "absolute"]

    def __call__(self, *arguments: Any, **options: Any) -> Propagated:
        return self.run(*arguments, **options)


def _serves_all(graph: PlaneGraph, node: str, input_node: str) -> None:
    return None


ENGINES: Mapping[str, Engine] = {
    "direct": Engine(direct.propagate, _serves_all, "relative"),
    "factored": Engine(factored.propagate_factored, factored.obstacle, "relative"),
    "spectral": Engine(spectral.propagate_spectral, spectral.obstacle, "absolute"),
}
"""Every engine by the name that `method=` takes."""
