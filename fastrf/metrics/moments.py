"""Location, spread and shape: moments of the mass, and the Gaussian that has them."""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Sequence
from functools import reduce

import numpy as np

from fastrf.arrays import Array, along, namespace, on_host, sum_of
from fastrf.errors import InputError
from fastrf.images import Image, image_of, where_the_image_lives
from fastrf.metrics.given import per_axis

# Ends of an axis that hold this share of the mass and less are left out of the comparison with a
# Gaussian: a rounding of the sums.
_NEGLIGIBLE = 2.0**-52

# Correlations that roundings of the sums make.
_UNCORRELATED = 2.0**-48

# A Gaussian has 2.3e-19 of its mass beyond so many deviations.
_FAR = 9.0


@where_the_image_lives
def mean(image: Array | Image, origin: Sequence[float] | None = None) -> tuple[float, ...]:
    """Centre of mass per axis, Σ x·p(x), in input pixel indices.

    `origin` is the input index of image[0, …, 0], per axis; None is all zeros. The sum runs over
    the distance to the middle of the image, and the middle is added to the origin first, so the
    small mean of an image centred on the origin keeps all its digits.
    """
    profiles = profiles_of(image_of(image))
    start = per_axis("origin", origin if origin is not None else [0] * len(profiles), image.ndim)
    return tuple(o + middle(p) + lean(p) for o, p in zip(start, profiles, strict=True))


@where_the_image_lives
def covariance(image: Array | Image) -> np.ndarray:
    """Covariance matrix of the mass in pixels², Σ (x_a − μ_a)(x_b − μ_b)·p(x), shape (ndim, ndim).

    Two passes: about the mean, not Σx² − μ². An entry beside the diagonal is accurate relative to
    σ_a·σ_b, which cancellation makes larger than the entry itself. A pixel counts as a point at
    its centre: a uniform box of k pixels has variance (k² − 1)/12, a single pixel 0, so variances
    of convolved images add (Luo et al. 2016, eq. 11).
    """
    image = image_of(image)
    profiles = profiles_of(image)
    offsets = offsets_of(profiles)
    result = np.diag([moment(p, x, 2) for p, x in zip(profiles, offsets, strict=True)])
    for a in range(image.ndim):
        for b in range(a + 1, image.ndim):
            result[a, b] = result[b, a] = image.joint_moment(a, b, offsets[a], offsets[b])
    return result


@where_the_image_lives
def std(image: Array | Image) -> tuple[float, ...]:
    """Standard deviation per axis in pixels: the root of the diagonal of `covariance`."""
    profiles = profiles_of(image_of(image))
    return tuple(
        math.sqrt(moment(p, x, 2)) for p, x in zip(profiles, offsets_of(profiles), strict=True)
    )


@where_the_image_lives
def kurtosis(image: Array | Image) -> tuple[float, ...]:
    """Excess kurtosis per axis, μ₄/μ₂² − 3 of the profile: 0 for a Gaussian, negative for a box.

    A chain of n equal uniform layers of kernel k has −(6/5)·(k² + 1)/((k² − 1)·n): how fast the
    ERF becomes Gaussian with depth. Raises InputError where the profile has no spread.
    """
    profiles = profiles_of(image_of(image))
    result = []
    for axis, (p, x) in enumerate(zip(profiles, offsets_of(profiles), strict=True)):
        variance = moment(p, x, 2)
        if variance == 0:
            raise InputError(
                f"image has all its mass at one index of axis {axis}: kurtosis needs a spread; "
                "measure an axis along which some layer has a kernel larger than 1"
            )
        result.append(moment(p, x, 4) / variance**2 - 3)
    return tuple(result)


@where_the_image_lives
def gaussian_distance(image: Array | Image) -> float:
    """Total-variation distance to the Gaussian of the same mean and covariance, in [0, 1).

    ½ Σ |p − g|, with p the image normalised to sum 1 and g ∝ exp(−½ xᵀC⁻¹x) taken at the pixel
    centres of the image, x from the mean, and normalised over the image likewise: the largest
    difference in mass that the two assign to any set of pixels. By the central limit theorem it
    vanishes with depth (Luo et al. 2016, §2). Below σ ≈ 0.5 pixels the sampled g no longer has the
    covariance C.

    The ends of an axis that lie beyond nine deviations from the mean and hold less than 2⁻⁵² of
    the mass are left out, which moves the result by 1e-15 at the most, and so does a correlation
    of two axes up to 2⁻⁴⁸, which counts as none.

    Raises InputError where the covariance is singular (all mass on a point or on a line).
    """
    image = image_of(image)
    spread = covariance(image)
    eigenvalues = np.linalg.eigvalsh(spread)
    if eigenvalues[0] <= 1e-12 * eigenvalues[-1]:
        raise InputError(
            f"image has the covariance {spread.tolist()}: a Gaussian needs one that is not "
            "singular; measure the profile of an axis along which the mass is spread"
        )
    precision = np.linalg.inv(spread)
    profiles = profiles_of(image)
    offsets = offsets_of(profiles)
    box = [
        _relevant(p, abs(x) <= _FAR * math.sqrt(variance))
        for p, x, variance in zip(profiles, offsets, np.diag(spread), strict=True)
    ]
    total = image.total
    image = image.cropped(box)
    offsets = [x[first:stop] for x, (first, stop) in zip(offsets, box, strict=True)]

    axes = range(image.ndim)
    crossed = [
        (a, b)
        for a, b in itertools.combinations(axes, 2)
        if abs(spread[a, b]) > _UNCORRELATED * math.sqrt(spread[a, a] * spread[b, b])
    ]
    lines = [np.exp(-0.5 * precision[a, a] * x * x) for a, x in enumerate(offsets)]

    def gaussian(first: int, block: Array) -> Array:
        def spread_out(vectors: Sequence[np.ndarray]) -> list[Array]:
            own = [vectors[0][first : first + len(block)], *vectors[1:]]
            return [along(xp.asarray(own[a]), a, block.ndim) for a in axes]

        xp = namespace(block)
        if not crossed:
            return reduce(operator.mul, spread_out(lines))
        # In one exponent: the factors alone would overflow where axes have much in common.
        x = spread_out(offsets)
        exponent = sum(-0.5 * float(precision[a, a]) * x[a] * x[a] for a in axes)
        for a, b in crossed:
            exponent = exponent - float(precision[a, b]) * x[a] * x[b]
        return xp.exp(exponent)

    # It is normalised before anything is compared with it.
    if crossed:
        whole = math.fsum(sum_of(gaussian(*part)) for part in image.blocks())
    else:
        whole = math.prod(float(line.sum()) for line in lines)
    distance = 0.0
    for first, block in image.blocks():
        xp = namespace(block)
        difference = gaussian(first, block) / whole
        difference -= xp.asarray(block, dtype=xp.float64) / total
        distance += 0.5 * sum_of(abs(difference))
    return distance


def profiles_of(image: Image) -> list[np.ndarray]:
    """The normalised marginal of every axis, on the host."""
    return [on_host(image.profile(axis)) for axis in range(image.ndim)]


def middle(p: np.ndarray) -> float:
    return (len(p) - 1) / 2


def lean(p: np.ndarray) -> float:
    """Distance of the mean from the middle."""
    return float(np.sum(p * (np.arange(len(p)) - middle(p))))


def offsets_of(profiles: list[np.ndarray]) -> list[np.ndarray]:
    """Distances of the pixel centres to the mean, per axis."""
    return [np.arange(len(p)) - middle(p) - lean(p) for p in profiles]


def moment(p: np.ndarray, offsets: np.ndarray, order: int) -> float:
    """A central moment of even order, by squares: powers cost many times as much."""
    return float(np.sum(p * (offsets * offsets) ** (order // 2)))


def _relevant(p: np.ndarray, near: np.ndarray) -> tuple[int, int]:
    """First index and last + 1 of what lies `near` or within the all but negligible mass of p."""
    used = near | ((np.cumsum(p) > _NEGLIGIBLE) & (np.cumsum(p[::-1])[::-1] > _NEGLIGIBLE))
    places = np.flatnonzero(used)
    return int(places[0]), int(places[-1]) + 1
