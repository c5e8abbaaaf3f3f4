"""Figures of outer products of profiles against `fastrf.metrics` on their pixels.

The measures themselves are held to formulas in test_metrics.py; here they see the image as an
array and know of no profiles. Tolerances: sums of N nonnegative numbers in any order differ by at
most N roundings, and each pixel of the array is rounded once more per axis.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from fastrf.kernels import KERNELS, load

from fastrf import metrics
from fastrf.errors import InputError
from fastrf.metrics.regions import sides

SHARES = (0.2, 0.3, 0.5, 0.99)
RNG = np.random.default_rng(11)


def box_power(kernel, count, spacing=1):
    """The profile of so many equal layers: symmetric, with gaps where they are spread."""
    row = np.ones(1)
    for _ in range(count):
        row = np.convolve(row, np.ones(kernel) / kernel)
    out = np.zeros((len(row) - 1) * spacing + 1)
    out[::spacing] = row
    return out


LINES = [
    box_power(3, 5),
    box_power(4, 3),
    box_power(3, 2, 3),
    box_power(2, 7, 2),
    np.ones(1),
    np.ones(6),
    RNG.random(17),
    # No peak in the middle, zeros within, a tail far beyond nine deviations.
    np.array([5.0, 1, 0, 0, 2, 9]),
    np.array([1.0, *[0] * 30, 1e-3, 1.0, 1e-9, *[0] * 60, 1e-12]),
    # Tails that are nothing beside the rest, on one side and on both.
    np.array([1.0, 2, 1, *[0] * 20, 1e-18, *[1e-19] * 9]),
    np.array([1e-20, 2e-20, *[0] * 20, 3, 1, 4, *[0] * 20, 1e-19]),
    RNG.random(12) ** 6 * 1e-200,
]
# Pairs of a line and a centre: its middle, off it, between pixels, at an end.
PLACES = [(i, at) for i, line in enumerate(LINES) for at in {(len(line) - 1) / 2, 0.0}]
PLACES += [(6, 3.25), (0, 2.5), (1, 4.0)]


def chains(ndim):
    """Products of lines, each with a centre: all pairs, and some triples."""
    if ndim == 1:
        return [(place,) for place in PLACES]
    if ndim == 2:
        return [*product(PLACES, PLACES[:7]), *((place, place) for place in PLACES)]
    triples = [PLACES[i : i + 3] for i in range(0, len(PLACES) - 2, 2)]
    return [*map(tuple, triples), *((place,) * 3 for place in PLACES[:8])]


def figures(lines, wanted, dtype=np.float64, kernel=None):
    """Moments and sizes by a kernel, that of the CPU where none is given."""
    counts = np.array([len(line) for line in lines])
    moments = np.full((len(lines), 7), 3, dtype)
    out = np.full((len(wanted), 3 + len(SHARES)), 3, dtype)
    index = np.array([[i for i, _ in chain] for chain in wanted]).T
    at = np.array([[c for _, c in chain] for chain in wanted], dtype).T
    (kernel or load().chain_figures)(
        np.concatenate(lines).astype(dtype),
        np.cumsum(counts) - counts,
        counts,
        index,
        at,
        metrics.LUO_THRESHOLD,
        np.array(SHARES, dtype),
        moments=moments,
        out=out,
    )
    return moments, out


def count_of(image, kind, at):
    try:
        return metrics.luo_size(image, kind, center=at) ** image.ndim
    except InputError:
        return np.nan


def distance_of(image):
    try:
        return metrics.gaussian_distance(image)
    except InputError:
        return np.nan


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_sizes_agree_with_the_measures(ndim):
    wanted = chains(ndim)
    _, out = figures(LINES, wanted)
    for chain, found in zip(wanted, out, strict=True):
        image = np.ones(())
        for line, _ in chain:
            image = np.multiply.outer(image, LINES[line] / LINES[line].sum())
        at = tuple(c for _, c in chain)
        counts = [count_of(image, kind, at) for kind in ("amplitude", "variance")]
        # Roots and powers of whole numbers up to 10⁶ are right to a part of 10⁻⁹.
        np.testing.assert_allclose(found[:2], counts, rtol=1e-9, err_msg=str(chain))
        # Both add up each pixel's excess, of sum 2 at most, with a rounding for every addition.
        bound = 8 * image.size * np.finfo(float).eps
        np.testing.assert_allclose(found[2], distance_of(image), rtol=0, atol=bound)
        for share, side in zip(SHARES, found[3:], strict=True):
            assert sides(int(side), at) == metrics.area_square(image, share, at)


def test_moments_agree_with_the_measures():
    moments, _ = figures(LINES, chains(1))
    for line, found in zip(LINES, moments, strict=True):
        bound = KERNELS["chain_figures"].tolerance(np.float64, len(line))
        total, mean, variance, kurtosis, width, first, last = found
        assert abs(total / line.sum() - 1) <= bound
        assert abs(mean - metrics.mean(line)[0]) <= bound * len(line)
        spread = metrics.covariance(line)[0, 0]
        # The mean's error comes in squared, against a line of this length.
        assert abs(variance - spread) <= bound * (spread + bound * len(line) ** 2)
        if spread:
            # A fourth power over a square of a square.
            scale = metrics.kurtosis(line)[0] + 3
            assert abs(kurtosis + 3 - scale) <= 8 * bound * scale
        else:
            assert np.isnan(kurtosis)
        assert width == pytest.approx(metrics.fwhm(line)[0], rel=bound)
        assert (first, last) == pytest.approx((line[0] / line.max(), line[-1] / line.max()))


def test_a_chain_does_not_depend_on_the_others():
    wanted = chains(2)
    _, together = figures(LINES, wanted)
    for chain, found in zip(wanted, together, strict=True):
        _, alone = figures(LINES, [chain])
        np.testing.assert_array_equal(alone[0], found)


def test_single_precision_is_rounded_once():
    lines = [line.astype(np.float32).astype(np.float64) for line in LINES[:-1]]
    wanted = [chain for chain in chains(2) if all(i < len(lines) for i, _ in chain)]
    wanted = [tuple((i, float(np.float32(c))) for i, c in chain) for chain in wanted]
    moments, out = figures(lines, wanted)
    single_moments, single = figures(lines, wanted, np.float32)
    np.testing.assert_array_equal(single_moments, moments.astype(np.float32))
    # Squares of 0.2 and 0.2f differ where one of them is right between two sides.
    np.testing.assert_array_equal(single[:, :3], out[:, :3].astype(np.float32))


def assert_refused(kernel):
    """Descriptions that lead out of the arrays, and images of no kind."""
    values = [
        np.ones(5),
        np.array([0]),
        np.array([6]),
        np.zeros((2, 1), np.int64),
        np.zeros((2, 1)),
        0.05,
        np.array(SHARES),
        np.empty((1, 7)),
        np.empty((1, 7)),
    ]
    with pytest.raises(ValueError, match="end at 6 of 5"):
        kernel(*values)
    values[2] = np.array([5])
    values[3] = np.ones((2, 1), np.int64)
    with pytest.raises(ValueError, match="lines are 1 to 1, of 1"):
        kernel(*values)
    values[3] = np.zeros((1, 1), np.int64)
    with pytest.raises(ValueError, match="shapes of lines and at"):
        kernel(*values)
    values[3], values[4] = np.zeros((4, 1), np.int64), np.zeros((4, 1))
    with pytest.raises(ValueError, match="chains have 4 axes"):
        kernel(*values)


def test_impossible_lines_are_refused():
    assert_refused(load().chain_figures)
