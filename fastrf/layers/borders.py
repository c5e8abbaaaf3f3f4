"""Padding and cropping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from fastrf.errors import InputError
from fastrf.layers.base import Layer
from fastrf.layers.checks import Pair, check_room, checked, checked_size, choice, paddings, per_axis
from fastrf.maps import IDENTITY, AxisMap, Size, SpatialMap, Table, Window

PaddingMode = Literal["zeros", "reflect", "replicate", "circular"]
PADDING_MODES: tuple[PaddingMode, ...] = get_args(PaddingMode)


@dataclass(frozen=True)
class Pad(Layer):
    """Padding: "zeros", "reflect" (without the edge pixel), "replicate" or "circular".

    Args:
        padding: a number, or one number or (lo, hi) pair per axis.
        mode: what fills it. On the unbounded grid, which has no border, it does not matter.
    """

    padding: Any = per_axis(paddings(), 0)
    mode: PaddingMode = checked(choice(*PADDING_MODES), "zeros")

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        if size is None or self.mode == "zeros":
            return (_shift("Pad", size, self.padding),)
        out = _shifted("Pad", size, self.padding)
        pads = zip(size, self.padding, strict=True)
        axes = tuple(_border(self.mode, n, pad) for n, pad in pads)
        return (SpatialMap(axes, "fixed", 1.0, None, size, out),)


@dataclass(frozen=True)
class Crop(Layer):
    """Cuts pixels off: a number, or one number or (lo, hi) pair per axis."""

    amount: Any = per_axis(paddings(), 0)

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        return (_shift("Crop", size, tuple((-lo, -hi) for lo, hi in self.amount)),)


def bordered(
    mode: PaddingMode, pads: tuple[Pair, ...], size: Size | None, ndim: int
) -> tuple[tuple[SpatialMap, ...], Size | None, tuple[Pair, ...]]:
    """A window's padding as a map of its own, where it is not zeros: that map, the size of what
    the window then reads, and the padding that is left to it."""
    if size is None or mode == "zeros":
        return (), size, pads
    before = Pad(pads, mode=mode).maps(size, ndim)
    return before, before[0].size_out, ((0, 0),) * ndim


def _shift(owner: str, size: Size | None, pads: tuple[Pair, ...]) -> SpatialMap:
    out = None if size is None else _shifted(owner, size, pads)
    return SpatialMap(tuple(Window(lo=lo) for lo, _ in pads), "fixed", 1.0, None, size, out)


def _shifted(owner: str, size: Size, pads: tuple[Pair, ...]) -> Size:
    out = tuple(n + sum(pad) for n, pad in zip(size, pads, strict=True))
    return checked_size(owner, size, out, "crop less")


def _border(mode: PaddingMode, n: int, pad: Pair) -> AxisMap:
    """The pixels that an axis of n pixels reads once it is padded."""
    if pad == (0, 0):
        return IDENTITY
    if mode == "circular" and max(pad) > n:
        raise InputError(
            f"Pad: circular padding {pad} must not exceed the map size {n}; "
            f"give a larger input_size or less padding"
        )
    if mode == "reflect" and max(pad) >= n:
        raise InputError(
            f"Pad: reflect padding {pad} must be smaller than the map size {n}; "
            f"give a larger input_size or less padding"
        )
    check_room("Pad", n + sum(pad), 1, "give a smaller input_size or less padding")
    index = np.arange(-pad[0], n + pad[1], dtype=np.int64)
    if mode == "replicate":
        index = index.clip(0, n - 1)
    elif mode == "circular":
        index %= n
    else:
        index = np.abs(index)
        index = np.where(index >= n, 2 * (n - 1) - index, index)
    return Table(index, np.ones((len(index), 1)))
