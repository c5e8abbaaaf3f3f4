"""Figures of receptive fields, with matplotlib (the extra ``plot``).

========================  =====================================================================
`erf_figure`              an ERF's image, linear and logarithmic, with its sizes drawn in
`profile_figure`          its profiles, with the Gaussian and the saddlepoint approximation
`sections_figure`         three orthogonal sections of an ERF in 3-D
`comparison_figure`       a computed field beside a measured one
`growth_figure`           sizes of TRF and ERF from layer to layer
`features_figure`         the features of layers at their centres on the input, with their boxes
`features_3d_figure`      the same, the layers stacked
`graph_figure`            the network as a graph, with each node's TRF, stride and ERF
`stack_figure`            units and taps of a stack along one axis, with one unit's cone
========================  =====================================================================

Each returns a `matplotlib.figure.Figure`, which `save` writes as PNG, SVG or PDF. All take

* ``width``: "column" (3.4 inches), "full" (7 inches), or inches;
* ``theme``: "light" or "dark".

None touches matplotlib.pyplot, its windows or its settings, so they are safe in a notebook, a
server or a thread. Positions are in input pixels.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastrf.errors import InputError, MissingExtra

_HOME = {
    "COLUMN": "style",
    "FORMATS": "style",
    "FULL": "style",
    "save": "style",
    "SHARES": "scene",
    "comparison_figure": "comparison",
    "erf_figure": "fields",
    "features_3d_figure": "features_3d",
    "features_figure": "features",
    "graph_figure": "graph",
    "growth_figure": "growth",
    "profile_figure": "profiles",
    "sections_figure": "sections",
    "stack_figure": "stack",
}

__all__ = [*_HOME, "check_path"]  # noqa: PLE0604 (names known at run time)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'fastrf.plot' has no attribute {name!r}")
    require()
    value = getattr(import_module(f"fastrf.plot.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def check_path(path: str | os.PathLike[str]) -> None:
    """Raises what `save` would raise before anything is drawn.

    Raises:
        InputError: a suffix that is none of `FORMATS`.
        MissingExtra: matplotlib is not installed.
    """
    require()
    from fastrf.plot.style import FORMATS

    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise InputError(
            f"a figure cannot be written as {suffix!r} ({str(path)!r}); "
            f"name the file {', '.join(FORMATS)}"
        )


def require() -> None:
    try:
        import_module("matplotlib")
    except ImportError:
        raise MissingExtra(
            'figures need the package matplotlib; pip install "fastrf[plot]"'
        ) from None


if TYPE_CHECKING:
    from fastrf.plot.comparison import comparison_figure as comparison_figure
    from fastrf.plot.features import features_figure as features_figure
    from fastrf.plot.features_3d import features_3d_figure as features_3d_figure
    from fastrf.plot.fields import erf_figure as erf_figure
    from fastrf.plot.graph import graph_figure as graph_figure
    from fastrf.plot.growth import growth_figure as growth_figure
    from fastrf.plot.profiles import profile_figure as profile_figure
    from fastrf.plot.scene import SHARES as SHARES
    from fastrf.plot.sections import sections_figure as sections_figure
    from fastrf.plot.stack import stack_figure as stack_figure
    from fastrf.plot.style import COLUMN as COLUMN
    from fastrf.plot.style import FORMATS as FORMATS
    from fastrf.plot.style import FULL as FULL
    from fastrf.plot.style import save as save
