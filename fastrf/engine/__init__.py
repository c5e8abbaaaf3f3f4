"""The engines that compute images, by name, and the planner that chooses among them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fastrf.engine.direct import Propagated, propagate
from fastrf.engine.factored import propagate_factored

ENGINES: Mapping[str, Callable[..., Propagated]] = {
    "direct": propagate,
    "factored": propagate_factored,
}
"""Every engine by the name that `method=` takes; all have `direct.propagate`'s arguments."""
