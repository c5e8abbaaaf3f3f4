"""Initial weights: the variances that named schemes draw them with, and how these lie in a kernel.

A weight is drawn with a variance σ² that depends on the shape of its layer's weights. Of a
convolution these have the shape (C_out, C_in/groups, *kernel), of a transposed convolution
(C_in, C_out/groups, *kernel), of a fully connected layer (C_out, C_in·pixels); as in PyTorch (and
Keras) fan-in is the size of one row, fan-out the number of rows times the kernel's taps.

============================ ======================== ==========================================
"he" ("kaiming")             2/fan_in                 He et al. 2015, for ReLU
"he-fan-out"                 2/fan_out                the same, backwards; torchvision's ResNets
"lecun"                      1/fan_in                 LeCun et al. 1998
"glorot" ("xavier")          2/(fan_in + fan_out)     Glorot and Bengio 2010
"pytorch"                    1/(3·fan_in)             PyTorch's default: uniform on ±1/√fan_in
"orthogonal"                 1/max(rows, row's size)  Saxe et al. 2014: `torch.nn.init.orthogonal_`
"delta-orthogonal"           1/max(C_in, C_out)       Xiao et al. 2018: all at the centre tap
============================ ======================== ==========================================

The last counts the channels of one group, and its centre is tap ⌊(k−1)/2⌋. Weights of an
orthogonal matrix are not independent, but uncorrelated, which is all that a variance asks for.

Variances are summed over channels, so a layer's gain is Σ v = σ²·(C_in/groups)·Π kernel: what
one unit's gradient becomes. For a convolution without transposition that is σ²·fan_in: 2, 1 and
1/3 for "he", "lecun" and "pytorch", whatever its channels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from fastrf.errors import InputError

ALIASES = {"kaiming": "he", "xavier": "glorot"}

BY_ROW = {"he": 2.0, "lecun": 1.0, "pytorch": 1 / 3}
"""σ²·fan_in of the schemes that look at nothing else."""

SCHEMES = ("he", "he-fan-out", "lecun", "glorot", "pytorch", "orthogonal", "delta-orthogonal")
"""The names that `init=` takes, but for `ALIASES`."""

DELTA = "delta-orthogonal"


def scheme_gain(
    scheme: str,
    reads: int | None,
    writes: int | None,
    groups: int,
    taps: int,
    *,
    transposed: bool = False,
) -> float:
    """Σ v of a layer whose weights are drawn by a scheme.

    Args:
        scheme: one of `SCHEMES`.
        reads, writes: channels of the maps read and written; None: not known.
        groups: of channels.
        taps: Π kernel.
        transposed: whether it is a transposed convolution.

    Raises:
        InputError: the scheme needs channels that are not known.
    """
    if scheme in BY_ROW and not transposed:
        return BY_ROW[scheme]
    if reads is None or writes is None:
        read, written = ("unknown" if n is None else n for n in (reads, writes))
        raise InputError(
            f"init={scheme!r} needs the numbers of channels read and written, which are {read} and "
            f"{written}; give channels= to Input and to the layers before"
        )
    spread = reads / groups * taps
    if scheme == DELTA:
        return reads / max(reads, writes)
    rows, row = (reads, writes / groups * taps) if transposed else (writes, spread)
    variances = {
        "he-fan-out": 2 / (rows * taps),
        "glorot": 2 / (row + rows * taps),
        "orthogonal": 1 / max(rows, row),
    }
    variance = BY_ROW[scheme] / row if scheme in BY_ROW else variances[scheme]
    return spread * variance


# --- taps -----------------------------------------------------------------------------------


def _corner(kernel: int) -> NDArray[np.float64]:
    line = np.zeros(kernel)
    line[[0, -1]] = 1
    return line


def _centre_light(kernel: int) -> NDArray[np.float64]:
    middle = (kernel - 1) / 2
    scale = (1 + np.abs(np.arange(kernel) - middle) / (middle or 1)) / 2
    squares: NDArray[np.float64] = scale**2
    return squares


def _delta(kernel: int) -> NDArray[np.float64]:
    line = np.zeros(kernel)
    line[(kernel - 1) // 2] = 1
    return line


_LINES: dict[str, Callable[[int], NDArray[np.float64]]] = {
    "corner": _corner,
    "centre-light": _centre_light,
}

PATTERNS = tuple(_LINES)
"""The names that `Conv(taps=…)` takes, patterns of Luo et al. 2016, §4.

"corner": all weight at the corners of the kernel, equally: of all patterns the one with the largest
variance of position. "centre-light": weights whose standard deviation grows linearly from the
kernel's centre, where it is half of that at the ends, along each axis (the paper prints no
formula; with 3 × 3 taps variances are in the ratio 16 : 4 : 1 of corner, edge and centre).
"""


def pattern(name: str, kernel: tuple[int, ...]) -> NDArray[np.float64]:
    """The relative variances of one of `PATTERNS`, an array of shape `kernel`."""
    return reduce(np.multiply.outer, (_LINES[name](k) for k in kernel))


def delta_taps(kernel: tuple[int, ...]) -> NDArray[np.float64]:
    """All variance at the centre tap: the taps of "delta-orthogonal"."""
    return reduce(np.multiply.outer, map(_delta, kernel))
