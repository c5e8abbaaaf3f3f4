"""The operators by family; importing a family registers its handlers."""

from __future__ import annotations

from fastrf.importers.onnx.op import HANDLERS
from fastrf.importers.onnx.operators import (
    arithmetic,
    contributed,
    cutting,
    matrices,
    normalising,
    pointwise,
    resizing,
    shapes,
    windows,
)

__all__ = [
    "HANDLERS",
    "arithmetic",
    "contributed",
    "cutting",
    "matrices",
    "normalising",
    "pointwise",
    "resizing",
    "shapes",
    "windows",
]
