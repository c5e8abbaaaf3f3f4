"""Sizes and shapes of an effective receptive field (ERF), each with its own name and formula.

Every function takes an ERF `image`: an array of NumPy, CuPy or any library with DLPack (a PyTorch
tensor without gradients) of 1, 2 or 3 dimensions, nonnegative, of any positive scale, or an
`Image`, which answers for pixels that it need not hold. It is read as
the variance of the gradient per input pixel (Luo et al. 2016, eq. 8); `luo_size` takes the root
itself. All measures but `area_ratio_log` do not change when the image is multiplied by a constant.
Large reductions run where the image lives, in float64 whatever its dtype; what is returned per axis
is plain Python, so it prints and serialises as it is; `profile`, `cut` and `radial_mass` return
arrays of the image's own library. An image in factors lives on the host but for its pixels.

Positions and widths are in input pixels. `center` is a position in the indices of the image
array: 0.0 is the middle of its first pixel, half-integers lie between pixels (the centre of an
even receptive field). Where it is None, the first maximum in C order stands in. The centre of a
unit's receptive field is the better choice wherever it is known.

Some measures count pixels and so jump as the image varies smoothly. Their continuous
counterparts: `luo_size`, `radius_of_mass` and `area_ratio` with ``subpixel=True``,
`area_square` → `square_side`, `smallest_set` → `smallest_set_area`.

References:
    Luo, Li, Urtasun, Zemel, "Understanding the effective receptive field in deep convolutional
    neural networks", NIPS 2016, arXiv:1701.04128.
    Ding, Zhang, Han, Ding, "Scaling up your kernels to 31x31: revisiting large kernel design in
    CNNs" (RepLKNet), CVPR 2022, arXiv:2203.06717.
"""

from fastrf.metrics.balls import radial_mass, radius_of_mass
from fastrf.metrics.lines import cut, fwhm, profile, width_at
from fastrf.metrics.luo import LUO_THRESHOLD, fills, luo_size, slope_fit, trf_ratio
from fastrf.metrics.moments import covariance, gaussian_distance, kurtosis, mean, std
from fastrf.metrics.sets import smallest_set, smallest_set_area
from fastrf.metrics.squares import area_ratio, area_ratio_log, area_square, square_side

__all__ = [
    "LUO_THRESHOLD",
    "area_ratio",
    "area_ratio_log",
    "area_square",
    "covariance",
    "cut",
    "fills",
    "fwhm",
    "gaussian_distance",
    "kurtosis",
    "luo_size",
    "mean",
    "profile",
    "radial_mass",
    "radius_of_mass",
    "slope_fit",
    "smallest_set",
    "smallest_set_area",
    "square_side",
    "std",
    "trf_ratio",
    "width_at",
]
