"""Images as the measures see them: through sums, so that the pixels need not be there."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import ParamSpec, TypeVar

import numpy as np

from fastrf.arrays import (
    Array,
    marginal_sum,
    namespace,
    on_host,
    on_its_device,
    running_sums,
    sum_of,
)
from fastrf.errors import InputError
from fastrf.exchange import taken

Box = Sequence[tuple[int, int]]
"""First pixel and last + 1 per axis."""

Stretch = tuple[int, np.ndarray]
"""A weighting along one axis: the first pixel that counts, and the weights from there on."""


class Image(ABC):
    """An ERF image as the measures see it: through sums, so that its pixels need not be there.

    `Pixels` answers for an array. Engines that know more about their result than its pixels hand
    back a class of their own. Sums are float64, whatever the dtype of the pixels.
    """

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Pixels per axis."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of pixels."""
        return math.prod(self.shape)

    @property
    @abstractmethod
    def core(self) -> tuple[Image, tuple[int, ...]]:
        """A part that is cheaper to measure and holds all the mass but for a rounding of its sum
        (2⁻⁵⁰), and the index of its first pixel."""

    @property
    @abstractmethod
    def total(self) -> float:
        """Sum of all pixels."""

    @abstractmethod
    def pixels(self, workers: int = 1) -> Array:
        """The image as an array; `workers` threads share the work, where it is any."""

    @property
    @abstractmethod
    def forming(self) -> int:
        """Bytes that `pixels` takes at its fullest moment; 0 where they are there."""

    @abstractmethod
    def window(self, box: Box, workers: int = 1) -> Array:
        """The pixels inside `box`, which may take `forming` of that part, as an array."""

    @abstractmethod
    def blocks(self) -> Iterator[tuple[int, Array]]:
        """The image in pieces along the first axis, each with the index it starts at."""

    @abstractmethod
    def cropped(self, box: Box) -> Image:
        """The part inside `box`."""

    @abstractmethod
    def profile(self, axis: int) -> Array:
        """Marginal along an axis, of sum 1."""

    @abstractmethod
    def joint_moment(self, a: int, b: int, x: np.ndarray, y: np.ndarray) -> float:
        """Mean of x·y over the mass, for the distances x and y to the mean along the axes a < b."""

    @abstractmethod
    def contracted(self, weights: Sequence[Stretch | None]) -> Array:
        """Σ image·Π weights over the weighted axes; None keeps an axis, one at most."""

    @abstractmethod
    def mass(self, box: Box) -> float:
        """Sum of the pixels inside `box`, which may be empty."""

    @abstractmethod
    def on_lines(self, first: np.ndarray, stop: np.ndarray) -> float:
        """Sum of the pixels first … stop−1 on every line along the last axis, in C order."""

    @abstractmethod
    def at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """The pixels numbered `columns` on the lines numbered `rows`, as of `on_lines`."""

    @abstractmethod
    def peak(self) -> tuple[int, ...]:
        """Index of the first maximum in C order."""

    @abstractmethod
    def count_above(self, limit: float) -> int:
        """Number of pixels greater than `limit`, which is positive."""

    @abstractmethod
    def brightest(self, goal: float) -> tuple[int, float, float]:
        """How many of the brightest pixels together hold less than `goal`, how much they hold, and
        the value of the next one. The goal is positive and less than the total."""


@dataclass(frozen=True, eq=False)
class Pixels(Image):
    """An array as an `Image`.

    Attributes:
        array: the pixels, nonnegative and finite, some positive.
    """

    array: Array

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def core(self) -> tuple[Image, tuple[int, ...]]:
        # Another object: the tables of its pixels that searches make go with it.
        return Pixels(self.array), (0,) * self.ndim

    @cached_property
    def total(self) -> float:
        return sum_of(self.array)

    def pixels(self, workers: int = 1) -> Array:
        return self.array

    @property
    def forming(self) -> int:
        return 0

    def window(self, box: Box, workers: int = 1) -> Array:
        return self.cropped(box).array

    def blocks(self) -> Iterator[tuple[int, Array]]:
        yield 0, self.array

    def cropped(self, box: Box) -> Pixels:
        return Pixels(self.array[tuple(slice(*ends) for ends in box)])

    @cached_property
    def _profiles(self) -> list[Array]:
        marginals = [marginal_sum(self.array, (axis,)) for axis in range(self.ndim)]
        return [marginal / marginal.sum() for marginal in marginals]

    def profile(self, axis: int) -> Array:
        return self._profiles[axis]

    def joint_moment(self, a: int, b: int, x: np.ndarray, y: np.ndarray) -> float:
        xp, joint = namespace(self.array), marginal_sum(self.array, (a, b))
        return float(xp.asarray(x) @ joint @ xp.asarray(y)) / sum_of(joint)

    def contracted(self, weights: Sequence[Stretch | None]) -> Array:
        xp = namespace(self.array)
        spans = [slice(None) if w is None else slice(w[0], w[0] + len(w[1])) for w in weights]
        block = xp.asarray(self.array[tuple(spans)], dtype=xp.float64)
        for axis in reversed(range(self.ndim)):
            w = weights[axis]
            if w is not None:
                block = xp.tensordot(block, xp.asarray(w[1]), axes=([axis], [0]))
        return block

    def mass(self, box: Box) -> float:
        block = self.cropped(box).array
        return sum_of(block) if block.size else 0.0

    @cached_property
    def _running(self) -> Array:
        """Sums along the lines up to each pixel, from none to all of them."""
        xp, lines = namespace(self.array), self.array.reshape(-1, self.shape[-1])
        sums = xp.zeros((len(lines), lines.shape[1] + 1))
        sums[:, 1:] = xp.cumsum(lines, axis=1, dtype=xp.float64)
        return sums

    def on_lines(self, first: np.ndarray, stop: np.ndarray) -> float:
        xp = namespace(self.array)
        line = xp.arange(len(first))
        return float(
            (self._running[line, xp.asarray(stop)] - self._running[line, xp.asarray(first)]).sum()
        )

    def at(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        xp = namespace(self.array)
        lines = self.array.reshape(-1, self.shape[-1])
        return on_host(lines[xp.asarray(rows), xp.asarray(columns)]).astype(np.float64)

    def peak(self) -> tuple[int, ...]:
        return tuple(int(i) for i in np.unravel_index(int(self.array.argmax()), self.shape))

    def count_above(self, limit: float) -> int:
        # What is above the limit is above the largest number of the pixels' own precision up to
        # it: the limit is not rounded, and no pixel is widened.
        if self.array.dtype.kind == "f":
            own = self.array.dtype.type(limit)
            if float(own) > limit:
                own = np.nextafter(own, own.dtype.type(0))
            limit = float(own)
        return int((self.array > limit).sum())

    @cached_property
    def _brightest_first(self) -> tuple[Array, Array]:
        """Pixel values in descending order and their running sums."""
        values = namespace(self.array).sort(self.array.ravel())[::-1]
        return values, running_sums(values)

    def brightest(self, goal: float) -> tuple[int, float, float]:
        values, cumulative = self._brightest_first
        # All hold the goal: where the last sum is below it, the order of the sums made it so.
        whole = min(int((cumulative < goal).sum()), self.size - 1)
        return whole, float(cumulative[whole - 1]) if whole else 0.0, float(values[whole])


def image_of(image: Array | Image) -> Image:
    """What the measures see of an array; an `Image` is one already.

    Raises InputError for what is no array of 1 to 3 dimensions, and for values that are no mass:
    negative, infinite, NaN or all zero.
    """
    if isinstance(image, Image):
        return image
    array = taken("image", image)
    _examine(array)
    return Pixels(array)


P = ParamSpec("P")
R = TypeVar("R")


def where_the_image_lives(measure: Callable[P, R]) -> Callable[P, R]:
    """A measure, whose first argument is `image`, that computes on the image's device, whichever
    is the current one."""

    @wraps(measure)
    def measured(*args: P.args, **options: P.kwargs) -> R:
        image = args[0] if args else options.get("image")
        with on_its_device(image.array if isinstance(image, Pixels) else image):
            return measure(*args, **options)

    return measured


def _examine(image: Array) -> None:
    """InputError where `image` is no ERF image."""
    if not 1 <= image.ndim <= 3 or image.size == 0 or image.dtype.kind not in "fiub":
        raise InputError(
            f"image has shape {image.shape} and dtype {image.dtype}: an ERF image has 1 to 3 "
            "dimensions, at least one pixel and real numbers; sum over batch and channels first"
        )
    with on_its_device(image):
        low, high = float(image.min()), float(image.max())
    # A maximum times the number of pixels bounds every sum that is taken here.
    if not (low >= 0 and math.isfinite(high * image.size)):
        raise InputError(
            f"image has values from {low} to {high}: an ERF image is nonnegative and finite, its "
            "sum too; take absolute values or squares of gradients, and look for NaN in the model"
        )
    if high == 0:
        raise InputError(
            "image is zero everywhere: a size needs some mass; check that the unit depends on the "
            "input (dead ReLUs, a unit in the padding)"
        )
