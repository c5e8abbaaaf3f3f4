"""The same by other libraries, each as one would use it at first."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Picture = tuple[NDArray[Any], tuple[int, ...]]
"""Pixels in the host's memory, and the index of the first one."""

Layers = Generator[None, None, list[Picture]]
"""Another library's work, part by part."""

Peer = Callable[[np.dtype[Any], str], Layers]
"""Its work in a dtype on "cpu" or "cuda"."""


class Missing(Exception):
    """A library that is not here, or not for a device."""


@dataclass(frozen=True)
class Stack:
    """Equal layers, from one unit on; every `block` of them with a shortcut around, if any."""

    taps: NDArray[np.float64]
    depth: int
    block: int = 0

    def follow(self, seed: Any, layer: Callable[[Any], Any]) -> Generator[None, None, Any]:
        """The image behind all layers, where `layer` widens it by 1 pixel on every side."""
        image = seed
        for _ in range(self.depth):
            moved = image
            for _ in range(self.block or 1):
                moved = layer(moved)
            if self.block:
                inner = slice(self.block, -self.block)
                moved = moved / 2
                moved[(..., *[inner] * self.taps.ndim)] += image / 2
            image = moved
            yield
        return image

    def picture(self, image: NDArray[Any]) -> list[Picture]:
        """Centred on unit 0, and normalised, as shares of it may have been flushed."""
        origin = tuple(-(n // 2) for n in image.shape)
        return [(image / image.sum(dtype=np.float64), origin)]


def peers_of(stack: Stack) -> dict[str, Peer]:
    ndim = stack.taps.ndim
    equal = bool(np.all(stack.taps == stack.taps.flat[0]))

    def by_torch(dtype: np.dtype[Any], device: str) -> Layers:
        """`torch.nn.functional.conv…d` with padding, which is the transposed convolution."""
        try:
            import torch
        except ImportError:
            raise Missing("not installed") from None
        if device != "cpu" and not torch.cuda.is_available():
            raise Missing("installed without CUDA")
        functional = torch.nn.functional
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[ndim - 1]
        flipped = np.flip(stack.taps).astype(dtype)
        taps = torch.from_numpy(flipped.copy())[None, None].to(device)
        seed = torch.ones((1,) * (ndim + 2), dtype=taps.dtype, device=taps.device)
        with _flushed(torch), torch.no_grad():
            image = yield from stack.follow(seed, lambda y: convolve(y, taps, padding=2))
        return stack.picture(image[0, 0].cpu().numpy())

    def by_scipy(dtype: np.dtype[Any], device: str) -> Layers:
        """`scipy.ndimage.correlate`, or `uniform_filter` for equal taps, on a padded image."""
        if device != "cpu":
            raise Missing("SciPy computes on the CPU alone")
        from scipy import ndimage

        flipped = np.flip(stack.taps).astype(dtype)

        def layer(y: NDArray[Any]) -> NDArray[Any]:
            wide = np.pad(y, 1)
            if equal:
                return np.asarray(ndimage.uniform_filter(wide, 3, mode="constant"))
            return np.asarray(ndimage.correlate(wide, flipped, mode="constant"))

        image = yield from stack.follow(np.ones((1,) * ndim, dtype), layer)
        return stack.picture(image)

    function = "uniform_filter" if equal else "correlate"
    return {f"PyTorch conv{ndim}d": by_torch, f"SciPy {function}": by_scipy}


@contextmanager
def _flushed(torch: Any) -> Iterator[None]:
    """Subnormal results count as zero on this thread, as every library would want them."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
