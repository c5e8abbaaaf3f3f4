"""The operators by family; importing a family registers its handlers."""

from __future__ import annotations

from fastrf.importers.torch.op import HANDLERS
from fastrf.importers.torch.operators import (
    arithmetic,
    cutting,
    matrices,
    normalising,
    pointwise,
    resizing,
    shapes,
    windows,
)

BROADCASTING = (
    arithmetic.arithmetic, arithmetic.expand, pointwise.unary, pointwise.unchanged,
)  # fmt: skip
"""Handlers whose maps may stay smaller than their tensors, to be broadcast by what reads them."""

__all__ = [
    "BROADCASTING",
    "HANDLERS",
    "arithmetic",
    "cutting",
    "matrices",
    "normalising",
    "pointwise",
    "resizing",
    "shapes",
    "windows",
]
