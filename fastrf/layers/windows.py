"""Sliding windows: what convolutions and pooling share, above all the rules of padding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastrf.errors import InputError
from fastrf.layers.base import Layer
from fastrf.layers.checks import (
    NAMED_PADDING,
    Pair,
    checked_size,
    paddings,
    per_axis,
    whole_per_axis,
)
from fastrf.maps import Size, Window


@dataclass(frozen=True)
class Windowed(Layer):
    """A layer with a kernel that slides over the map."""

    kernel: Any = per_axis(whole_per_axis(1))
    stride: Any = per_axis(whole_per_axis(1), 1)
    dilation: Any = per_axis(whole_per_axis(1), 1)
    padding: Any = per_axis(paddings(NAMED_PADDING), 0)

    def _settled_padding(self) -> tuple[Pair | str, ...]:
        """The padding with every name replaced that does not depend on the size of the map."""
        settled: list[Pair | str] = []
        for pad, k, s, d in zip(self.padding, self.kernel, self.stride, self.dilation, strict=True):
            if pad == "same" and s > 1:
                raise InputError(
                    f"{type(self).__name__}: padding='same' (PyTorch's rule) needs stride 1, "
                    f"got {s}; use 'same_upper' for TensorFlow's rule"
                )
            sized = pad in ("same_upper", "same_lower") and s > 1
            settled.append(pad if sized else _resolve(pad, k, s, d, None))
        return tuple(settled)

    def _pads(self, size: Size | None) -> tuple[Pair, ...]:
        """The padding of a bound layer as (lo, hi) per axis, on a map of this size."""
        sizes = (None,) * len(self.kernel) if size is None else size
        window = (self.padding, self.kernel, self.stride, self.dilation, sizes)
        return tuple(_resolve(*axis) for axis in zip(*window, strict=True))

    def windows(self, size: Size | None) -> tuple[Window, ...]:
        """The primitive map of each axis, on a map of this size but regardless of its borders."""
        return self._windows(self._pads(size))

    def _windows(self, pads: tuple[Pair, ...]) -> tuple[Window, ...]:
        """The primitive map of each axis, on a map padded by `pads`."""
        window = (self.kernel, self.stride, self.dilation, pads)
        return tuple(Window(k, s, d, lo) for k, s, d, (lo, _) in zip(*window, strict=True))

    def _size_out(
        self, size: Size | None, pads: tuple[Pair, ...], ceil_mode: bool = False
    ) -> Size | None:
        """Number of windows per axis that fit into a map padded by `pads`."""
        if size is None:
            return None
        owner = type(self).__name__
        window = (size, pads, self.kernel, self.stride, self.dilation)
        out = tuple(_count(owner, *axis, ceil_mode) for axis in zip(*window, strict=True))
        return checked_size(owner, size, out, "give a larger input_size or more padding")


def _resolve(pad: Pair | str, kernel: int, stride: int, dilation: int, size: int | None) -> Pair:
    """The padding of one axis as (lo, hi); only the SAME rules with a stride need the size."""
    span = dilation * (kernel - 1)
    if not isinstance(pad, str):
        return pad
    if pad == "valid":
        return (0, 0)
    if pad == "causal":
        return (span, 0)
    if pad == "same":
        return (span // 2, span - span // 2)
    # TensorFlow: total = max((⌈n/s⌉ − 1)·s + d(k−1) + 1 − n, 0); s | n on the unbounded grid.
    remainder = size % stride or stride if size is not None else stride
    total = max(span + 1 - remainder, 0)
    small, large = total // 2, total - total // 2
    return (small, large) if pad == "same_upper" else (large, small)


def _count(
    owner: str, size: int, pad: Pair, kernel: int, stride: int, dilation: int, ceil_mode: bool
) -> int:
    """Number of windows along one axis."""
    extent = dilation * (kernel - 1) + 1
    room = size + sum(pad) - extent
    # In ceil mode (PyTorch, ONNX) the last window may reach beyond the padding, but one that
    # would start in the padding behind the map is dropped.
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    if ceil_mode and (count - 1) * stride >= size + pad[0]:
        count -= 1
    if count < 1:
        raise InputError(
            f"{owner}: a map of {size} pixels with padding {pad} is smaller than the kernel's "
            f"extent {extent}; give a larger input_size or more padding"
        )
    return count
