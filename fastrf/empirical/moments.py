"""Mean and variance of images that come one batch after the other, and groups for the jackknife.

Batches are merged by the parallel form of Welford's update (Chan, Golub and LeVeque 1983, eq. 2.1),
so nothing is kept but a few images. Sums are float64 and relative to the first images: squares of
gradients may be as small as 1e-80, their own squares are then no numbers any more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from fastrf.errors import EmptyFieldError, InputError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from torch import Tensor

GROUPS = 32
"""Groups of draws whose means are kept: errors of sizes are then known to 1/√(2·31) = 13 %."""


class Moments:
    """Of independent images (one a draw): their mean, and how much it varies.

    Args:
        shape: pixels per axis.
        device: where the images are.
    """

    def __init__(self, shape: Sequence[int], device: torch.device) -> None:
        import torch

        def zeros(*before: int) -> Tensor:
            return torch.zeros((*before, *shape), dtype=torch.float64, device=device)

        self.draws = 0
        self._shape = tuple(shape)
        self._scale = 0.0
        self._mean, self._squares, self._products = zeros(), zeros(), zeros()
        self._total_mean = self._total_squares = 0.0
        self._groups = zeros(GROUPS)

    def add(self, images: Tensor) -> None:
        """Takes in images of shape (draws, *shape), in float64.

        Raises:
            InputError: some value is not finite.
        """
        import torch

        count = len(images)
        totals = images.sum(tuple(range(1, images.ndim)))
        largest = float(totals.max())
        if not math.isfinite(largest):
            raise InputError(
                f"the gradient holds {largest} among draws {self.draws} to "
                f"{self.draws + count - 1}; look for NaN and overflow in the module, or scale its "
                f"initialisation down"
            )
        if not self._scale and largest:
            # All before was zero, and is zero on any scale. A power of 2 rounds nothing.
            self._scale = math.ldexp(1.0, -math.frexp(largest)[1])
        images, totals = images * self._scale, totals * self._scale
        mean, total = images.mean(0), float(totals.mean())
        apart, total_apart = images - mean, totals - total
        weight = self.draws * count / (self.draws + count)
        step, total_step = mean - self._mean, total - self._total_mean
        self._squares += apart.square().sum(0) + weight * step.square()
        self._products += torch.tensordot(total_apart, apart, 1) + weight * total_step * step
        self._total_squares += float(total_apart.square().sum()) + weight * total_step**2
        self._mean += step * (count / (self.draws + count))
        self._total_mean += total_step * count / (self.draws + count)
        numbers = torch.arange(self.draws, self.draws + count, device=images.device) % GROUPS
        self._groups.index_add_(0, numbers, images)
        self.draws += count

    @property
    def log_total(self) -> float:
        """Natural logarithm of the mean image's sum.

        Raises:
            EmptyFieldError: it is zero everywhere.
        """
        if not self._total_mean > 0:
            raise EmptyFieldError(
                f"no gradient reached the input in {self.draws} draws; check that the unit depends "
                f"on the input (dead ReLUs, a unit in the padding, a detached tensor)"
            )
        return math.log(self._total_mean) - math.log(self._scale)

    def image(self) -> NDArray[np.float64]:
        """The mean image, of sum 1."""
        mean = _on_host(self._mean)
        image: NDArray[np.float64] = mean / mean.sum()
        return image

    def standard_error(self) -> NDArray[np.float64]:
        """Of every pixel of `image`; NaN where one draw says nothing about it.

        A ratio of means, pixel over sum, by the delta method: what draws differ in as a whole
        (their gain) does not count. First order in 1/draws.
        """
        if self.draws < 2:
            return np.full(self._shape, math.nan)
        image = self.image()
        squares, products = _on_host(self._squares), _on_host(self._products)
        spread = squares - 2 * image * products + image**2 * self._total_squares
        variance = np.maximum(spread, 0.0) / (self.draws - 1) / self.draws
        return np.sqrt(variance) / self._total_mean

    def groups(self) -> NDArray[np.float64]:
        """Shares of `image`, which add up to it: draw d is in group d modulo their number, 32 or
        as many as there are draws."""
        groups = _on_host(self._groups)[: min(GROUPS, self.draws)]
        shares: NDArray[np.float64] = groups / groups.sum()
        return shares

    @property
    def effective_draws(self) -> float:
        """(Σ total)²/Σ total²: so many draws of one and the same gain would weigh as much.

        Far fewer than draws where a few large ones make the mean: the standard error is then
        itself unsure.
        """
        squares = self._total_squares + self.draws * self._total_mean**2
        return (self.draws * self._total_mean) ** 2 / squares if squares else 0.0


def _on_host(tensor: Tensor) -> NDArray[np.float64]:
    array: NDArray[np.float64] = tensor.cpu().numpy()
    return array
