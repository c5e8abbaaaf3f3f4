"""fastrf: theoretical and effective receptive fields of convolutional networks, exactly and fast.

>>> import fastrf as rf
>>> net = rf.Sequential(rf.Conv(7, stride=2, padding=3), rf.MaxPool(3, stride=2, padding=1))
>>> rf.receptive_field(net).size
(11, 11)

The public names below are loaded when they are first used, so that `import fastrf` is quick.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "fastrf.layers": (
        "Activation",
        "AdaptivePool",
        "Add",
        "Attention",
        "AvgPool",
        "ChannelShuffle",
        "ChannelSlice",
        "Concat",
        "Conv",
        "ConvTranspose",
        "Crop",
        "Dropout",
        "Filter",
        "FullyConnected",
        "GlobalPool",
        "Identity",
        "Input",
        "MaxPool",
        "Multiply",
        "Norm",
        "Pad",
        "PixelShuffle",
        "PixelUnshuffle",
        "Scale",
        "SqueezeExcite",
        "Upsample",
    ),
    "fastrf.network": ("Builder", "Network", "Node", "Parallel", "Residual", "Sequential"),
    "fastrf.netfile": ("load", "save"),
    "fastrf.importers.onnx": ("from_onnx",),
    "fastrf.importers.torch": ("from_torch",),
    "fastrf.analytic.geometry": ("ReceptiveField", "receptive_field"),
    "fastrf.erf": ("ERF", "erf", "plan"),
    "fastrf.check": ("check",),
    "fastrf.report": ("report",),
    "fastrf.comparison": ("Comparison", "compare"),
    "fastrf.empirical": ("empirical",),
    "fastrf.sweep.run": ("sweep",),
    "fastrf.sweep.store": ("Store",),
    "fastrf.advice": ("advice",),
    "fastrf.design": ("design",),
    "fastrf.sweep.space": ("Space",),
    "fastrf.warmup": ("warmup",),
}
_MODULES = (
    "activations",
    "analytic",
    "errors",
    "functional",
    "importers",
    "initialisation",
    "metrics",
    "plot",
    "tiling",
    "zoo",
)
_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [*_HOME, *_MODULES, "__version__"]  # noqa: PLE0604 (names known at run time)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(_HOME[name]), name)
    elif name in _MODULES:
        value = import_module(f"fastrf.{name}")
    else:
        raise AttributeError(f"module 'fastrf' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps `fastrf.erf`, `check`, `report` and the like the functions, though there are modules of
    that name: importing a submodule would bind it over them."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _HOME or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


if TYPE_CHECKING:
    from fastrf import (
        activations,
        analytic,
        errors,
        functional,
        importers,
        initialisation,
        metrics,
        plot,
        tiling,
        zoo,
    )
    from fastrf.advice import advice
    from fastrf.analytic.geometry import ReceptiveField, receptive_field
    from fastrf.check import check
    from fastrf.comparison import Comparison, compare
    from fastrf.design import design
    from fastrf.empirical import empirical
    from fastrf.erf import ERF, erf, plan
    from fastrf.importers.onnx import from_onnx
    from fastrf.importers.torch import from_torch
    from fastrf.layers import (
        Activation,
        AdaptivePool,
        Add,
        Attention,
        AvgPool,
        ChannelShuffle,
        ChannelSlice,
        Concat,
        Conv,
        ConvTranspose,
        Crop,
        Dropout,
        Filter,
        FullyConnected,
        GlobalPool,
        Identity,
        Input,
        MaxPool,
        Multiply,
        Norm,
        Pad,
        PixelShuffle,
        PixelUnshuffle,
        Scale,
        SqueezeExcite,
        Upsample,
    )
    from fastrf.netfile import load, save
    from fastrf.network import Builder, Network, Node, Parallel, Residual, Sequential
    from fastrf.report import report
    from fastrf.sweep.run import sweep
    from fastrf.sweep.space import Space
    from fastrf.sweep.store import Store
    from fastrf.warmup import warmup
