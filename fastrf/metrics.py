"""Sizes and shapes of an effective receptive field (ERF), each with its own name and formula.

Every function takes an ERF `image`: a NumPy or CuPy array of 1, 2 or 3 dimensions, nonnegative,
of any positive scale, or an `Image`, which answers for pixels that it need not hold. It is read as
the variance of the gradient per input pixel (Luo et al. 2016, eq. 8); `luo_size` takes the root
itself. All measures but `area_ratio_log` do not change when the image is multiplied by a constant.
Large reductions run where the image lives, in float64 whatever its dtype; what is returned per axis
is plain Python, so it prints and serialises as it is. An image in factors lives on the host but for
its pixels.

Positions and widths are in input pixels. `center` is a position in the indices of the image
array: 0.0 is the middle of its first pixel, half-integers lie between pixels (the centre of an
even receptive field). Where it is None, the first maximum in C order stands in. The centre of a
unit's receptive field is the better choice wherever it is known.

Some measures count pixels and so jump as the image varies smoothly. Their continuous
counterparts: `luo_size` → `width_at`, `area_square` → `square_side`,
`smallest_set` → `smallest_set_area`, `radius_of_mass` → `std`.

References:
    Luo, Li, Urtasun, Zemel, "Understanding the effective receptive field in deep convolutional
    neural networks", NIPS 2016, arXiv:1701.04128.
    Ding, Zhang, Han, Ding, "Scaling up your kernels to 31x31: revisiting large kernel design in
    CNNs" (RepLKNet), CVPR 2022, arXiv:2203.06717.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

import numpy as np

from fastrf.arrays import (
    Array,
    along,
    namespace,
    on_host,
    outer_sum,
    running_sums,
    spelled_out,
    sum_of,
)
from fastrf.errors import InputError
from fastrf.images import Image, Stretch, image_of

Center = Sequence[float] | None

LUO_THRESHOLD = 1 - 0.9545
"""Luo et al. 2016, §3.1: pixels above (1 − 95.45%) of the centre belong to the ERF."""

# A set holds a share when its mass reaches it up to rounding. The mass of up to 10⁸ pixels, summed
# in blocks, is right to 2·10⁴ roundings of 1.1e-16; without this allowance a box of a uniform
# image whose mass equals the share exactly would be taken or passed over by chance.
_ROUNDING = 2.5e-12

# Ends of an axis that hold this share of the mass and less are left out of the comparison with a
# Gaussian: a rounding of the sums.
_NEGLIGIBLE = 2.0**-52

# A Gaussian has 2.3e-19 of its mass beyond so many deviations.
_FAR = 9.0

# square_side searches on a grid of 2⁻⁴⁰ (9e-13) pixels: finer than the masses it compares.
_SUBPIXEL_BITS = 40


# -- location and spread --------------------------------------------------------------------------


def mean(image: Array | Image, origin: Sequence[float] | None = None) -> tuple[float, ...]:
    """Centre of mass per axis, Σ x·p(x), in input pixel indices.

    `origin` is the input index of image[0, …, 0], per axis; None is all zeros. The sum runs over
    the distance to the middle of the image, and the middle is added to the origin first, so the
    small mean of an image centred on the origin keeps all its digits.
    """
    profiles = _profiles(image_of(image))
    start = _per_axis("origin", origin if origin is not None else [0] * len(profiles), image.ndim)
    return tuple(o + _middle(p) + _lean(p) for o, p in zip(start, profiles, strict=True))


def covariance(image: Array | Image) -> np.ndarray:
    """Covariance matrix of the mass in pixels², Σ (x_a − μ_a)(x_b − μ_b)·p(x), shape (ndim, ndim).

    Two passes: about the mean, not Σx² − μ². An entry beside the diagonal is accurate relative to
    σ_a·σ_b, which cancellation makes larger than the entry itself. A pixel counts as a point at
    its centre: a uniform box of k pixels has variance (k² − 1)/12, a single pixel 0, so variances
    of convolved images add (Luo et al. 2016, eq. 11).
    """
    image = image_of(image)
    profiles = _profiles(image)
    offsets = _offsets(profiles)
    result = np.diag([_moment(p, x, 2) for p, x in zip(profiles, offsets, strict=True)])
    for a in range(image.ndim):
        for b in range(a + 1, image.ndim):
            result[a, b] = result[b, a] = image.joint_moment(a, b, offsets[a], offsets[b])
    return result


def std(image: Array | Image) -> tuple[float, ...]:
    """Standard deviation per axis in pixels: the root of the diagonal of `covariance`."""
    profiles = _profiles(image_of(image))
    return tuple(
        math.sqrt(_moment(p, x, 2)) for p, x in zip(profiles, _offsets(profiles), strict=True)
    )


def kurtosis(image: Array | Image) -> tuple[float, ...]:
    """Excess kurtosis per axis, μ₄/μ₂² − 3 of the profile: 0 for a Gaussian, negative for a box.

    A chain of n equal uniform layers of kernel k has −(6/5)·(k² + 1)/((k² − 1)·n): how fast the
    ERF becomes Gaussian with depth. Raises InputError where the profile has no spread.
    """
    profiles = _profiles(image_of(image))
    result = []
    for axis, (p, x) in enumerate(zip(profiles, _offsets(profiles), strict=True)):
        variance = _moment(p, x, 2)
        if variance == 0:
            raise InputError(
                f"image has all its mass at one index of axis {axis}: kurtosis needs a spread; "
                "measure an axis along which some layer has a kernel larger than 1"
            )
        result.append(_moment(p, x, 4) / variance**2 - 3)
    return tuple(result)


# -- one-dimensional views ------------------------------------------------------------------------


def profile(image: Array | Image, axis: int) -> Array:
    """Marginal along `axis`: the sum over all other axes, normalised to sum 1.

    It is the distribution of the mass along one axis, the one whose mean, variance and kurtosis
    the other functions report, and in theory it does not depend on the layers along other axes.
    `cut` is the other common choice, the values on one line through the centre. For a separable
    image (a plain chain) the two are proportional; for a sum of separable images (residual
    networks, merges) they are not, and the cut, which misses the tails beside the line, is the
    narrower one.

    Returns a float64 array of shape (image.shape[axis],) on the image's device.
    """
    image = image_of(image)
    return image.profile(_axis(image, axis)).copy()


def cut(image: Array | Image, axis: int, center: Center = None) -> Array:
    """Values along `axis` on the line through `center`, on the image's own scale.

    Between pixels the line is interpolated linearly: at a half-integer centre it is the mean of
    the adjacent lines. Returns a float64 array of shape (image.shape[axis],) on the image's
    device. See `profile` for the difference to the marginal.
    """
    image = image_of(image)
    along = _axis(image, axis)
    position = _position(image, center)
    ends = enumerate(zip(image.shape, position, strict=True))
    return image.contracted([None if a == along else _interpolation(n, c) for a, (n, c) in ends])


def width_at(image: Array | Image, level: float, center: Center = None) -> tuple[float, ...]:
    """Full width per axis, in pixels, at `level` times the maximum of the cut through `center`.

    The cut is interpolated linearly between pixels and continued by zero beyond the image; the
    width runs between its outermost crossings of level·max, so the gaps of a dilated lattice
    do not cut it short. n equal pixels have width n at level ½, a single one has width 1.
    `level` lies in (0, 1) and applies to the image as given: with level = LUO_THRESHOLD² on the
    variance this is the continuous counterpart of `luo_size` along each axis.
    """
    image = image_of(image)
    fraction = _fraction("level", level)
    return tuple(_width(on_host(cut(image, a, center)), fraction, a) for a in range(image.ndim))


def fwhm(image: Array | Image, center: Center = None) -> tuple[float, ...]:
    """Full width at half maximum per axis, in pixels, of the cut through `center`: `width_at` ½.

    A Gaussian has 2√(2 ln 2)·σ = 2.3548·σ; on the grid 0.1/σ pixels more where its peak is a
    pixel and 0.4/σ more where the peak lies between two, at the most.
    """
    return width_at(image, 0.5, center)


# -- Luo et al. -----------------------------------------------------------------------------------


def luo_size(
    image: Array | Image,
    kind: str = "amplitude",
    threshold: float = LUO_THRESHOLD,
    center: Center = None,
) -> float:
    """ERF side of Luo et al. 2016 (§3.1): count^(1/ndim) of the pixels above threshold·centre.

    A pixel counts when its value is greater than (1 − 0.9545) times the value at the centre; in
    2-D the size is the square root of the count. `image` is the variance; kind="amplitude"
    compares its square root, the root mean square gradient, and kind="variance" the image itself.
    For a Gaussian variance of deviation σ the counted disc has the radius
    √(2 ln(1/threshold))·σ = 2.486·σ on the variance and √2 times that, 3.516·σ, on the amplitude.

    The value at a centre between pixels is the linear interpolation of the compared values: at a
    half-integer centre, the mean of the 2, 4 or 8 adjacent pixels.

    On plain chains of n = 5, 10, 15, …, 40 layers of 3×3 (unbounded, equal taps), fitted with
    `slope_fit` against n: the side grows with slope 0.536 and its ratio to the theoretical size
    2n + 1 falls with −0.426 on the amplitude; 0.481 and −0.481 on the variance. The paper reports
    0.56 and −0.43.

    Raises InputError for another kind, a threshold outside (0, 1) or a centre of value zero.
    """
    image = image_of(image)
    if kind not in ("amplitude", "variance"):
        raise InputError(
            f"kind is {kind!r}: Luo's size compares gradients or their squares; "
            "give 'amplitude' or 'variance'"
        )
    level = _fraction("threshold", threshold)
    position = _position(image, center)
    # The image around the centre: a pixel, or the 2, 4 or 8 that it lies between.
    ends = [_interpolation(n, c) for n, c in zip(image.shape, position, strict=True)]
    *lines, columns = np.meshgrid(*(f + np.arange(len(w)) for f, w in ends), indexing="ij")
    rows = np.ravel_multi_index(lines, image.shape[:-1]) if lines else np.zeros_like(columns)
    near = image.at(rows.ravel(), columns.ravel()).reshape(columns.shape)
    # √v > t·r and v > (t·r)² count the same pixels; the second takes no root of the image.
    value = near if kind == "variance" else np.sqrt(near)
    for _, weights in reversed(ends):
        value = value @ weights
    limit = level * float(value) if kind == "variance" else (level * float(value)) ** 2
    if limit == 0:
        raise InputError(
            f"center {position} has value zero: Luo's size compares with the centre; "
            "give a center inside the field (None is the maximum) or use smallest_set"
        )
    return _root(image.count_above(limit), image.ndim)


def slope_fit(depths: Sequence[float], sizes: Sequence[float]) -> float:
    """Slope of the least-squares line through (log depth, log size): Luo et al. 2016, Figure 2.

    Sizes that grow like depth^q have slope q. Raises InputError for unequal lengths, values that
    are not positive and fewer than two distinct depths.
    """
    x, y = np.asarray(depths, np.float64), np.asarray(sizes, np.float64)
    if x.ndim != 1 or x.shape != y.shape or len(np.unique(x)) < 2:
        raise InputError(
            f"depths and sizes have shapes {x.shape} and {y.shape}: a slope needs two lists of one "
            "length with two distinct depths; give one size for each depth"
        )
    if not (np.all(x > 0) and np.all(y > 0) and np.all(np.isfinite(x * y))):
        raise InputError(
            f"depths {x.tolist()} or sizes {y.tolist()} hold a value without a logarithm: "
            "both are positive and finite; leave depth 0 out"
        )
    u, v = np.log(x), np.log(y)
    u -= u.mean()
    return float(u @ v / (u @ u))


def trf_ratio(size: float, trf_size: float | Sequence[float]) -> float:
    """`size` divided by the side of the theoretical receptive field (Luo et al. 2016, Figure 2).

    With one `trf_size` per axis, the side is their geometric mean: that of the square (cube) of
    the same area, as the side of `luo_size` is that of its pixel count.
    """
    sides = _per_axis("trf_size", np.atleast_1d(np.asarray(trf_size, np.float64)).tolist())
    if not all(side > 0 for side in sides):
        raise InputError(f"trf_size is {trf_size}: sizes are positive; give field.size")
    return float(size) / math.prod(sides) ** (1 / len(sides))


# -- sets that hold a share of the mass -----------------------------------------------------------


def area_square(image: Array | Image, share: float, center: Center = None) -> tuple[int, ...]:
    """Sides, in whole pixels per axis, of the smallest centred square that holds `share`.

    The pixels that lie wholly inside the square (line, cube) of side s about `center` hold the
    share, and those of s − 1 do not. An axis whose centre is a pixel has an odd side and one whose
    centre lies between two pixels an even one; with both kinds of axes they differ by one. The
    square is not cut off at the image: what reaches beyond holds no mass.

    Raises InputError for a share outside (0, 1).
    """
    image, position = _core(image_of(image), center)
    goal = _fraction("share", share) * (1 - _ROUNDING) * image.total

    def mass(side: int) -> float:
        ends = zip(image.shape, position, strict=True)
        return image.mass([_inside(n, c, side / 2) for n, c in ends])

    return _sides(bisect_left(range(_covering_side(image, position)), goal, key=mass), position)


def square_side(image: Array | Image, share: float, center: Center = None) -> float:
    """Side in pixels of the centred square that holds exactly `share`: `area_square`, continuous.

    The mass of a pixel is spread evenly over its unit square, so a pixel counts by its part inside
    and the side varies continuously with the image. Resolution 1e-12 pixels.

    Raises InputError for a share outside (0, 1).
    """
    image, position = _core(image_of(image), center)
    goal = _fraction("share", share) * image.total

    def mass(step: int) -> float:
        half = math.ldexp(step, -_SUBPIXEL_BITS - 1)
        ends = zip(image.shape, position, strict=True)
        return float(image.contracted([_overlap(n, c, half) for n, c in ends]))

    steps = _covering_side(image, position) << _SUBPIXEL_BITS
    return math.ldexp(bisect_left(range(steps), goal, key=mass), -_SUBPIXEL_BITS)


def area_ratio(
    image: Array | Image,
    share: float,
    center: Center,
    extent: Sequence[float],
    *,
    subpixel: bool = False,
) -> float:
    """RepLKNet's high-contribution area ratio r(t): area of the `share` square over the extent's.

    The area of `area_square` (of `square_side` with subpixel=True) divided by the product of
    `extent`, the sides per axis of the input (as the paper does, for t = 20, 30, 50, 99%) or of
    the theoretical receptive field. Taken on the image as it is; `area_ratio_log` is the variant
    that the authors' script prints. The square is not cut off at the extent, so the ratio of a
    unit far from the middle may exceed 1.

    Source: Ding et al. 2022, appendix on effective receptive fields.
    """
    image = image_of(image)
    whole = _area(extent, image.ndim)
    if subpixel:
        return float(square_side(image, share, center) ** image.ndim / whole)
    return math.prod(area_square(image, share, center)) / whole


def area_ratio_log(
    image: Array | Image, share: float, center: Center, extent: Sequence[float]
) -> float:
    """`area_ratio` of log₁₀(A + 1), as RepLKNet's published script does. NOT invariant to scale.

    The logarithm lifts the tails by an amount that depends on the scale of A, so numbers compare
    only among images made alike. The authors' A is the gradient of the summed ReLU of the central
    output unit with respect to an input of 1024 × 1024 pixels, clipped at zero, summed over the
    input's channels and averaged over 50 images: never normalised before the logarithm, and
    divided by its maximum only after it, which changes no ratio. Give that raw image. One that is
    normalised to sum 1 has A ≪ 1, where log₁₀(A + 1) ≈ A/ln 10 and the result is `area_ratio`'s.

    The script differs in three details: its centre is index shape // 2, its squares start at side
    3, and a square must hold more than the share, not at least the share.

    Source: Ding et al. 2022 and its repository, DingXiaoH/RepLKNet-pytorch, erf/analyze_erf.py.
    """
    image = image_of(image)
    whole = _area(extent, image.ndim)
    fraction = _fraction("share", share)
    position = _position(image, center)
    # The least side of a square that a pixel lies wholly inside, and the scores at each.
    least = [
        np.ceil(2 * abs(np.arange(n) - c)).astype(np.int64) + 1
        for n, c in zip(image.shape, position, strict=True)
    ]
    scores = np.zeros(max(int(side.max()) for side in least) + 1)
    for first, block in image.blocks():
        xp = namespace(block)
        side = xp.zeros((1,) * image.ndim, dtype=np.int64)
        for axis, own in enumerate([least[0][first : first + len(block)], *least[1:]]):
            side = xp.maximum(side, along(xp.asarray(own), axis, image.ndim))
        logs = xp.log1p(xp.asarray(block, dtype=xp.float64))
        scores += on_host(xp.bincount(side.ravel(), logs.ravel(), len(scores)))
    held = np.cumsum(scores)
    side = int(np.searchsorted(held, fraction * (1 - _ROUNDING) * held[-1]))
    return math.prod(_sides(side, position)) / whole


def radial_mass(image: Array | Image, center: Center = None) -> tuple[Array, Array]:
    """Share of the mass within each radius about `center`: (radii, mass), an exact step function.

    `radii` holds the distinct Euclidean distances of the pixel centres in pixels, ascending, and
    mass[i] the share of all pixels no farther than radii[i]; the last is 1. Two float64 arrays of
    one length on the image's device. Equal distances are merged exactly for centres on a quarter
    of a pixel or coarser; elsewhere a step may be split in two, a rounding apart.
    """
    image = image_of(image)
    position = _position(image, center)
    squared, mass = np.zeros(0), np.zeros(0)
    for first, block in image.blocks():
        xp = namespace(block)
        corner = (position[0] - first, *position[1:])
        distances = [
            (xp.arange(n, dtype=xp.float64) - c) ** 2
            for n, c in zip(block.shape, corner, strict=True)
        ]
        squared = xp.concatenate([xp.asarray(squared), outer_sum(xp, distances).ravel()])
        mass = xp.concatenate([xp.asarray(mass), block.ravel()])
        squared, which = xp.unique(squared, return_inverse=True)
        mass = xp.bincount(which.ravel(), mass)
    cumulative = running_sums(mass)
    return xp.sqrt(squared), cumulative / cumulative[-1]


def radius_of_mass(image: Array | Image, share: float, center: Center = None) -> float:
    """Radius in pixels of the smallest disc (ball) about `center` that holds `share` of the mass.

    A step of `radial_mass`, hence the distance of some pixel's centre; 0 where the central pixel
    alone holds the share. In 2-D a Gaussian of deviation σ has σ·√(−2 ln(1 − share)).
    """
    image, position = _core(image_of(image), center)
    goal = _fraction("share", share) * (1 - _ROUNDING) * image.total
    *across, along = position
    lines = outer_sum(
        np, [(np.arange(n) - c) ** 2 for n, c in zip(image.shape, across, strict=False)]
    ).ravel()
    length = image.shape[-1]

    def chords(radius: int) -> tuple[np.ndarray, np.ndarray]:
        """First pixel and last + 1 inside the ball, on every line along the last axis."""
        left = radius * abs(radius) - lines
        reach = np.sqrt(np.maximum(left, 0))
        first = np.ceil(along - reach)
        stop = np.where(left >= 0, np.floor(along + reach) + 1, first)
        return tuple(np.clip(ends, 0, length).astype(np.int64) for ends in (first, stop))

    reach = math.hypot(*(max(c + 1, n - c) for n, c in zip(image.shape, position, strict=True)))
    outer = bisect_left(
        range(math.ceil(reach) + 1), goal, key=lambda radius: image.on_lines(*chords(radius))
    )
    # The pixels between the last two whole radii, by their distance.
    (first, stop), (inner_first, inner_stop) = chords(outer), chords(outer - 1)
    held = image.on_lines(inner_first, inner_stop)
    sides = spelled_out(first, inner_first), spelled_out(inner_stop, stop)
    rows, columns = map(np.concatenate, zip(*sides, strict=True))
    squared = lines[rows] + (columns - along) ** 2
    order = np.argsort(squared)
    mass = held + np.cumsum(image.at(rows, columns)[order])
    # The last of them reaches the goal, as their chords did, but for the order of the sums.
    at = min(int(np.searchsorted(mass, goal)), len(order) - 1)
    return math.sqrt(squared[order[at]])


def smallest_set(image: Array | Image, share: float) -> int:
    """Number of pixels in the smallest set that holds `share` of the mass.

    The brightest pixels, as many as it takes (the highest-density region). It needs no centre and
    follows any shape, holes and several lobes included: count^(1/ndim) is a side that compares
    with `luo_size`, and no square or disc that holds the share has fewer pixels.
    """
    image, _ = image_of(image).core
    whole, _, _ = image.brightest(_fraction("share", share) * (1 - _ROUNDING) * image.total)
    return whole + 1


def smallest_set_area(image: Array | Image, share: float) -> float:
    """Area of the smallest set that holds exactly `share`: `smallest_set`, continuous.

    The last pixel counts by the part of its mass that is needed to reach the share.
    """
    image, _ = image_of(image).core
    goal = _fraction("share", share) * image.total
    whole, held, value = image.brightest(goal)
    return whole + (goal - held) / value


# -- shape ----------------------------------------------------------------------------------------


def gaussian_distance(image: Array | Image) -> float:
    """Total-variation distance to the Gaussian of the same mean and covariance, in [0, 1).

    ½ Σ |p − g|, with p the image normalised to sum 1 and g ∝ exp(−½ xᵀC⁻¹x) taken at the pixel
    centres of the image, x from the mean, and normalised over the image likewise: the largest
    difference in mass that the two assign to any set of pixels. By the central limit theorem it
    vanishes with depth (Luo et al. 2016, §2). Below σ ≈ 0.5 pixels the sampled g no longer has the
    covariance C.

    The ends of an axis that lie beyond nine deviations from the mean and hold less than 2⁻⁵² of
    the mass are left out, which moves the result by 1e-15 at the most.

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
    profiles = _profiles(image)
    offsets = _offsets(profiles)
    box = [
        _relevant(p, abs(x) <= _FAR * math.sqrt(variance))
        for p, x, variance in zip(profiles, offsets, np.diag(spread), strict=True)
    ]
    total = image.total
    image = image.cropped(box)
    offsets = [x[first:stop] for x, (first, stop) in zip(offsets, box, strict=True)]

    def gaussian(first: int, block: Array) -> Array:
        xp = namespace(block)
        own = [offsets[0][first : first + len(block)], *offsets[1:]]
        places = [along(xp.asarray(x), axis, block.ndim) for axis, x in enumerate(own)]
        exponent = sum(-0.5 * float(precision[a, a]) * x * x for a, x in enumerate(places))
        for a, b in zip(*np.nonzero(np.triu(precision, 1)), strict=True):
            exponent = exponent - float(precision[a, b]) * places[a] * places[b]
        return xp.exp(exponent)

    # Twice over the blocks: the Gaussian is normalised before anything is compared with it.
    whole = math.fsum(sum_of(gaussian(*part)) for part in image.blocks())
    distance = 0.0
    for first, block in image.blocks():
        xp = namespace(block)
        difference = gaussian(first, block) / whole
        difference -= xp.asarray(block, dtype=xp.float64) / total
        distance += 0.5 * sum_of(abs(difference))
    return distance


def fills(
    image: Array | Image,
    origin: Sequence[int],
    input_size: Sequence[int],
    threshold: float = LUO_THRESHOLD**2,
) -> bool:
    """Whether the ERF fills the input, so that its sizes say more about the input than the unit.

    True when, along some axis, the profile at the first or the last pixel of the *input* is above
    `threshold` times its maximum. The default is Luo's (1 − 0.9545) on the amplitude, squared for
    the variance: the level at which `luo_size` would count pixels beyond the border. An edge of
    the image that is not a border of the input is the end of the receptive field and never counts.

    Raises InputError where the image reaches beyond the input.
    """
    image = image_of(image)
    level = _fraction("threshold", threshold)
    profiles = _profiles(image)
    starts = _per_axis("origin", origin, image.ndim)
    sizes = _per_axis("input_size", input_size, image.ndim)
    filled = False
    for p, start, size in zip(profiles, starts, sizes, strict=True):
        if start < 0 or start + len(p) > size:
            raise InputError(
                f"image of shape {image.shape} at origin {tuple(origin)} reaches beyond the input "
                f"{tuple(input_size)}: this measure is of an image within its input; compute the "
                "field with that input_size"
            )
        limit = level * p.max()
        filled |= start == 0 and p[0] > limit
        filled |= start + len(p) == size and p[-1] > limit
    return bool(filled)


# -- what was given -------------------------------------------------------------------------------


def _core(image: Image, center: Center) -> tuple[Image, tuple[float, ...]]:
    """The core of an image, and where `center` lies in it.

    What it leaves out is far below the allowance for rounding (`_ROUNDING`).
    """
    position = _position(image, center)
    core, corner = image.core
    return core, tuple(c - first for c, first in zip(position, corner, strict=True))


def _fraction(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise InputError(
            f"{name} is {value}: it lies strictly between 0 and 1; give 0.5 for one half"
        )
    return float(value)


def _axis(image: Image, axis: int) -> int:
    if not -image.ndim <= axis < image.ndim:
        raise InputError(
            f"axis is {axis}: the image has {image.ndim} axes; give one of 0 … {image.ndim - 1}"
        )
    return range(image.ndim)[axis]


def _per_axis(name: str, values: Sequence[float], ndim: int | None = None) -> tuple[float, ...]:
    if ndim is not None and len(values) != ndim:
        raise InputError(
            f"{name} is {tuple(values)}: it has one value for each of the image's {ndim} axes; "
            f"give {ndim}"
        )
    numbers = tuple(float(v) for v in values)
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{name} is {tuple(values)}: its values are finite; give pixels")
    return numbers


def _area(extent: Sequence[float], ndim: int) -> float:
    sides = _per_axis("extent", extent, ndim)
    if not all(side > 0 for side in sides):
        raise InputError(
            f"extent is {tuple(extent)}: sides are positive; give the input size or field.size"
        )
    return math.prod(sides)


def _position(image: Image, center: Center) -> tuple[float, ...]:
    if center is None:
        return tuple(map(float, image.peak()))
    return _per_axis("center", center, image.ndim)


# -- moments of a profile (host, normalised) ------------------------------------------------------


def _profiles(image: Image) -> list[np.ndarray]:
    """The normalised marginal of every axis, on the host."""
    return [on_host(image.profile(axis)) for axis in range(image.ndim)]


def _middle(p: np.ndarray) -> float:
    return (len(p) - 1) / 2


def _lean(p: np.ndarray) -> float:
    """Distance of the mean from the middle."""
    return float(np.sum(p * (np.arange(len(p)) - _middle(p))))


def _offsets(profiles: list[np.ndarray]) -> list[np.ndarray]:
    """Distances of the pixel centres to the mean, per axis."""
    return [np.arange(len(p)) - _middle(p) - _lean(p) for p in profiles]


def _moment(p: np.ndarray, offsets: np.ndarray, order: int) -> float:
    """A central moment of even order, by squares: powers cost many times as much."""
    return float(np.sum(p * (offsets * offsets) ** (order // 2)))


def _relevant(p: np.ndarray, near: np.ndarray) -> tuple[int, int]:
    """First index and last + 1 of what lies `near` or within the all but negligible mass of p."""
    used = near | ((np.cumsum(p) > _NEGLIGIBLE) & (np.cumsum(p[::-1])[::-1] > _NEGLIGIBLE))
    places = np.flatnonzero(used)
    return int(places[0]), int(places[-1]) + 1


def _width(line: np.ndarray, level: float, axis: int) -> float:
    """Distance between the outermost points where the interpolated line crosses level·max."""
    limit = level * line.max()
    if limit == 0:
        raise InputError(
            f"the cut along axis {axis} is zero everywhere: a width needs a maximum; give a "
            "center inside the field (None is the maximum)"
        )
    padded = np.zeros(len(line) + 2)
    padded[1:-1] = line
    above = np.flatnonzero(padded >= limit)
    first, last = int(above[0]), int(above[-1])
    rise = (padded[first] - limit) / (padded[first] - padded[first - 1])
    fall = (padded[last] - limit) / (padded[last] - padded[last + 1])
    return float(last - first + rise + fall)


def _root(count: int, ndim: int) -> float:
    """count^(1/ndim), exact for perfect powers."""
    return (float(count), math.sqrt(count), math.cbrt(count))[ndim - 1]


# -- regions around the centre --------------------------------------------------------------------


def _interpolation(n: int, c: float) -> Stretch:
    """Linear interpolation at `c` between n pixels, zero beyond them."""
    first = math.floor(c)
    weights = {i: 1 - abs(i - c) for i in (first, first + 1) if 0 <= i < n and abs(i - c) < 1}
    return min(weights, default=0), np.array(list(weights.values()))


def _inside(n: int, c: float, half: float) -> tuple[int, int]:
    """The pixels that lie wholly within `half` of `c`: first and last + 1."""
    first, stop = math.ceil(c - half + 0.5), math.floor(c + half - 0.5) + 1
    first = min(max(first, 0), n)
    return first, min(max(stop, first), n)


def _overlap(n: int, c: float, half: float) -> Stretch:
    """The part of each unit pixel that lies within `half` of `c`."""
    first, stop = max(math.floor(c - half + 0.5), 0), min(math.ceil(c + half + 0.5), n)
    i = np.arange(first, max(stop, first))
    length = np.minimum(i + 0.5, c + half) - np.maximum(i - 0.5, c - half)
    return first, np.clip(length, 0, 1)


def _covering_side(image: Image, position: tuple[float, ...]) -> int:
    """A whole side whose centred square covers the image, with room to spare."""
    reach = max(max(c + 1, n - c) for c, n in zip(position, image.shape, strict=True))
    return 2 * math.ceil(reach) + 1


def _sides(side: int, position: tuple[float, ...]) -> tuple[int, ...]:
    """How many pixels a centred square of whole side holds along each axis."""
    half = (side - 1) / 2
    return tuple(math.floor(c + half) - math.ceil(c - half) + 1 for c in position)
