"""ERF images as a page shows them: summed over blocks, in 255 steps of a logarithmic scale.

What is kept of an image is meant for looking, and says what it is: every value of a page's table
comes from the image itself.
"""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf.arrays import on_host
from fastrf.erf import ERF
from fastrf.images import Image, Pixels, image_of

DECADES = 8
"""Powers of ten below the peak that a picture tells apart; what is less is left blank."""

LEVELS = 255
"""Steps of the scale; level 0 is blank."""

FINEST = {1: 1024, 2: 192, 3: 128}
"""Most blocks along an axis of a picture, by the number of the grid's axes."""

COARSEST = 24
"""Pictures of no more blocks along any axis are never made coarser."""

PROFILE = 160
"""Most points of a profile."""

Block = NDArray[np.float32]


@dataclass(slots=True)
class Picture:
    """The image of one unit: sums over blocks of `step` pixels.

    Attributes:
        blocks: one array in 1-D and 2-D, the three sections through the middle in 3-D, across
            the first, the second and the third axis; each relative to its own peak.
        steps: pixels per block and axis, of every array.
        profiles: by axis, the mass along it relative to its peak, and the pixels per point.
    """

    blocks: list[Block]
    steps: list[tuple[int, ...]]
    profiles: list[tuple[NDArray[np.float64], int]] = field(repr=False)

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for equal pictures."""
        arrays: list[NDArray[Any]] = [*self.blocks, *(values for values, _ in self.profiles)]
        steps = (*self.steps, *(step for _, step in self.profiles))
        return (*steps, *(a.shape for a in arrays), *(a.tobytes() for a in arrays))

    @property
    def side(self) -> int:
        """Most blocks along an axis."""
        sides: list[int] = [max(block.shape) for block in self.blocks]
        return max(sides)

    def coarser(self) -> None:
        """Makes blocks of twice as many pixels along every axis, and profiles of half as many
        points, in place."""
        self.blocks = [_relative(_summed(block, (2,) * block.ndim)) for block in self.blocks]
        self.steps = [tuple(2 * s for s in step) for step in self.steps]
        self.profiles = [
            (_relative(_summed(values, (2,))), 2 * step) for values, step in self.profiles
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: levels and profiles as text (see `packed`)."""
        return {
            "parts": [
                {"shape": list(block.shape), "step": list(step), "levels": packed(levels(block))}
                for block, step in zip(self.blocks, self.steps, strict=True)
            ],
            "profiles": [
                {"step": step, "values": np.rint(1000 * values).astype(int).tolist()}
                for values, step in self.profiles
            ],
        }


def picture(erf: ERF) -> Picture:
    """What a page keeps of a field."""
    image = image_of(erf.values)
    ndim = image.ndim
    blocks, steps = [], []
    for seen in [image] if ndim < 3 else [_section(image, a, _middle(erf, a)) for a in range(ndim)]:
        step = (max(-(-max(seen.shape) // FINEST[ndim]), 1),) * seen.ndim
        blocks.append(_relative(_gathered(seen, step)).astype(np.float32))
        steps.append(step)
    profiles = []
    for axis in range(ndim):
        mass = np.asarray(erf.profile(axis), dtype=np.float64)
        width = -(-len(mass) // PROFILE)
        profiles.append((_relative(_summed(mass, (width,))), width))
    return Picture(blocks, steps, profiles)


def _middle(erf: ERF, axis: int) -> int:
    """Index of the unit's centre in the image, along an axis."""
    return min(max(round(erf.center[axis] - erf.origin[axis]), 0), erf.shape[axis] - 1)


def _section(image: Image, axis: int, at: int) -> Image:
    """The image's plane number `at` across an axis."""
    box = [(at, at + 1) if a == axis else (0, n) for a, n in enumerate(image.shape)]
    return Pixels(on_host(image.window(box)).squeeze(axis))


def _gathered(image: Image, step: tuple[int, ...]) -> NDArray[Any]:
    """As `_summed`, of an image whose pixels need not be there all at once."""
    found = np.zeros([-(-n // s) for n, s in zip(image.shape, step, strict=True)])
    for first, block in image.blocks():
        rows = _summed(on_host(block), (1, *step[1:]))
        np.add.at(found, (first + np.arange(len(rows))) // step[0], rows)
    return found


def _relative(array: NDArray[Any]) -> NDArray[Any]:
    """Values relative to the peak; a section far from the mass may have none."""
    relative: NDArray[Any] = array / (array.max() or 1.0)
    return relative


def _summed(array: NDArray[Any], step: tuple[int, ...]) -> NDArray[Any]:
    """Sums over blocks of `step` pixels; the last ones are filled up with zeros."""
    if max(step) == 1:
        return array
    ends = [(0, -n % s) for n, s in zip(array.shape, step, strict=True)]
    shape: list[int] = []
    for n, (_, more), s in zip(array.shape, ends, step, strict=True):
        shape += [(n + more) // s, s]
    within = tuple(range(1, 2 * array.ndim, 2))
    total: NDArray[Any] = np.pad(array, ends).reshape(shape).sum(axis=within)
    return total


def levels(block: Block) -> NDArray[np.uint8]:
    """Values relative to the peak as steps of the logarithm: `LEVELS` is the peak, and 1 is
    `DECADES` powers of ten below it."""
    relative = np.maximum(block, 10.0 ** -(DECADES + 1))
    step = np.rint(1 + (LEVELS - 1) * (1 + np.log10(relative) / DECADES))
    return np.clip(step, 0, LEVELS).astype(np.uint8)


def packed(steps: NDArray[np.uint8]) -> str:
    """Levels as text: differences to the left and then to above neighbour (modulo 256), deflated,
    base64. Smooth images shrink to a few per cent."""
    differences = steps.copy()
    for axis in reversed(range(steps.ndim)):
        differences = np.diff(differences, axis=axis, prepend=np.uint8(0))
    return base64.b64encode(zlib.compress(differences.tobytes(), 9)).decode("ascii")
