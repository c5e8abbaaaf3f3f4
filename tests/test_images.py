"""Images of pixels: what the measures' own tests do not see."""

from __future__ import annotations

import numpy as np
import pytest

from fastrf.images import Pixels

UP = 2.0**-23  # from 1 to the next number in single precision


@pytest.mark.parametrize(
    ("limit", "count"),
    [
        (1 - 0.3 * UP, 3),
        (1.0, 2),
        (1 + 0.4 * UP, 2),  # the nearest number in single precision is 1,
        (1 + 0.6 * UP, 2),  # and here 1 + UP
        (1 + UP, 1),
        (1 + 1.5 * UP, 1),
        (1e-50, 4),  # rounds to 0
    ],
)
def test_a_limit_is_not_rounded_to_the_pixels_precision(limit: float, count: int) -> None:
    pixels = np.array([[0, 0.5, 1], [1 + UP, 1 + 2 * UP, 0]])
    assert Pixels(pixels.astype(np.float32)).count_above(limit) == count
    assert Pixels(pixels).count_above(limit) == count


def test_whole_numbers() -> None:
    assert Pixels(np.array([0, 1, 2, 3])).count_above(1.5) == 2
