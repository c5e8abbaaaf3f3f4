"""Every kernel once: its name, arguments, formula, dtypes and tolerance.

Dispatch, tests and documentation read this table; each device implements it. Arrays are
3-D (of the last three kernels vectors and matrices); everything outside of ``y`` counts as zero.
Entries are nonnegative, sums are plain sums (no differences), and ``out``, of any shape that the
arguments allow, is filled completely and must not overlap another argument (``accumulate`` alone
reads ``out`` before it writes it).

Along one axis o is an index of ``y`` in the transposed kernels and of ``out`` in the gathers, m is
a tap, i is the other index, s is ``stride``, d is ``dilation``; ``lo`` is any integer. A tile
``out[:, a:b]`` of a transposed kernel's or a run's result takes ``lo + a`` for ``lo``
(``starts - a`` for ``starts``); of a gather's result, ``lo − a·s``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))


@dataclass(frozen=True)
class Kernel:
    """What one kernel does, on every device.

    Attributes:
        name: the kernel's name on every device.
        arguments: names of the arguments, in order; the last is the result (``walk`` alone returns
            its result).
        summary: what it computes, in words.
        formula: the same as a formula, per axis.
        dtypes: the floating dtypes; all float arrays of one call share one.
        rounding: ``rounding(terms)``, bound on the relative error of a result that sums ``terms``
            products, in units of the dtype's unit roundoff u = eps/2.
        devices: the devices that have it; None: all.
    """

    name: str
    arguments: tuple[str, ...]
    summary: str
    formula: str
    dtypes: tuple[np.dtype[Any], ...]
    rounding: Callable[[int], int]
    devices: tuple[str, ...] | None = None

    def tolerance(self, dtype: np.dtype[Any] | type, terms: int) -> float:
        """Bound on the relative error of every element of a result, ``terms`` addends each.

        A result below the smallest normal number is 0 and has no relative error to bound: its
        absolute error is below that number.
        """
        unit_roundoff = float(np.finfo(dtype).eps) / 2
        error = self.rounding(terms) * unit_roundoff
        return error / (1 - error)


def _sum_of_products(terms: int) -> int:
    """One rounding a product and one an addition, at worst in sequence: γ_N of Higham (2002), §3.1.

    The addends are nonnegative, so that the bound on Σ|t·y| is one on the relative error.
    """
    return max(1, terms)


def _sum_of_two_products(terms: int) -> int:
    """As `_sum_of_products`, with one product more in every addend."""
    return terms + 1


def _one_product(terms: int) -> int:
    """A single rounding, whatever the size."""
    return 1


def _recurrence(terms: int) -> int:
    """Measured against exact integers, ``terms`` = k: at most 66 for k up to 31 and n up to 10,000,
    where n hardly matters; 250 for k = 101, 971 for k = 255."""
    return max(64, terms**2 // 8) + 1


def _figures(terms: int) -> int:
    """A variance: N additions, at most 8 roundings in each addend, and the mean's error, which
    comes in squared; three times as much for the quotients that follow."""
    return 3 * (terms + 8)


def _plain_sum(terms: int) -> int:
    """As above without products: N − 1 additions, in whatever order."""
    return max(0, terms - 1)


KERNELS: Mapping[str, Kernel] = MappingProxyType(
    {
        kernel.name: kernel
        for kernel in (
            Kernel(
                name="transposed_conv",
                arguments=("y", "taps", "stride", "dilation", "lo", "out"),
                summary="Transposed convolution: the backward pass of a convolution.",
                formula="out[i] = Σ taps[m]·y[o] over all (o, m) with o·s + m·d − lo = i",
                dtypes=DTYPES,
                rounding=_sum_of_products,
            ),
            Kernel(
                name="strided_gather",
                arguments=("y", "taps", "stride", "dilation", "lo", "out"),
                summary="Strided convolution: the backward pass of a transposed convolution, and "
                "the adjoint of transposed_conv.",
                formula="out[o] = Σ_m taps[m]·y[o·s + m·d − lo]",
                dtypes=DTYPES,
                rounding=_sum_of_products,
            ),
            Kernel(
                name="transposed_box",
                arguments=("y", "k", "stride", "dilation", "lo", "out"),
                summary="Transposed convolution of (P, n, Q) arrays along the middle axis with k "
                "taps that are all 1. The cost of an element does not depend on k, or, where Q is "
                "small, only by its logarithm.",
                formula="out[p, i, q] = Σ y[p, o, q] over all (o, m), m < k, "
                "with o·s + m·d − lo = i",
                dtypes=DTYPES,
                rounding=_plain_sum,
            ),
            Kernel(
                name="gather_box",
                arguments=("y", "k", "stride", "dilation", "lo", "out"),
                summary="Strided convolution of (P, n, Q) arrays along the middle axis with k taps "
                "that are all 1; the adjoint of transposed_box, at the same cost for an element of "
                "y.",
                formula="out[p, o, q] = Σ_{m<k} y[p, o·s + m·d − lo, q]",
                dtypes=DTYPES,
                rounding=_plain_sum,
            ),
            Kernel(
                name="transposed_table",
                arguments=("y", "starts", "taps", "out"),
                summary="Transposed convolution of (P, n, Q) arrays along the middle axis, every "
                "source with its own first target, starts (n) of int64, and its own taps (n, K): "
                "the backward pass of adaptive pooling, resizing and reflecting borders.",
                formula="out[p, i, q] = Σ taps[o, m]·y[p, o, q] over all (o, m) "
                "with starts[o] + m = i",
                dtypes=DTYPES,
                rounding=_sum_of_products,
            ),
            Kernel(
                name="accumulate",
                arguments=("y", "factor", "out"),
                summary="Adds a scaled image to another of the same shape, where branches meet; "
                "out is read and written.",
                formula="out[i] ← out[i] + factor·y[i]",
                dtypes=DTYPES,
                rounding=_sum_of_products,
            ),
            Kernel(
                name="box_power",
                arguments=("n", "k", "top", "out"),
                summary="The profile of n layers of k equal taps, from its first coefficient on, "
                "with a sum of 2^top. A serial recurrence, in float64 whatever out holds: devices "
                "without fast serial code may take the CPU's result.",
                formula="out[i] = 2^top·k^(−n)·[z^i](1 + z + … + z^(k−1))^n",
                dtypes=DTYPES,
                rounding=_recurrence,
            ),
            Kernel(
                name="outer_product",
                arguments=("y", "x", "out"),
                summary="The outer product of two vectors; subnormal products are 0 and not "
                "computed.",
                formula="out[i, j] = y[i]·x[j]",
                dtypes=DTYPES,
                rounding=_one_product,
            ),
            Kernel(
                name="sum_of_terms",
                arguments=("weights", "y", "x", "exponent", "out"),
                summary="The sum of weighted outer products of the rows of y, (T, m), and of x, "
                "(T, n): a matrix product, whose result is scaled. Products weights·y that are "
                "subnormal count as 0.",
                formula="out[i, j] = 2^exponent·Σ_t weights[t]·y[t, i]·x[t, j]",
                dtypes=DTYPES,
                rounding=_sum_of_two_products,
            ),
            Kernel(
                name="box_run",
                arguments=("y", "k", "count", "lo", "out"),
                summary="A run of transposed_box layers along all axes, without stride or "
                "dilation: k taps of 1 per axis, at most 257, count times. Pixels grow by up to "
                "Πk^count. `terms` is 1 + count·Σ(k − 1). Cheaper than transposed_box up to about "
                "50 taps, even for one layer.",
                formula="out[i] = Σ y[o]·[z^(i + lo − o)] (1 + z + … + z^(k−1))^count",
                dtypes=DTYPES,
                rounding=_plain_sum,
            ),
            Kernel(
                name="conv_run",
                arguments=("y", "taps", "count", "lo", "out"),
                summary="A run of count equal transposed_conv layers without stride or dilation, "
                "of at most 257 taps per axis; no cut between layers. Results of a layer that are "
                "below the smallest normal number divided by the smallest tap count as 0. `terms` "
                "is count times the number of taps.",
                formula="out[i] = Σ y[o]·[z^(i + lo − o)] (Σ_m taps[m]·z^m)^count",
                dtypes=DTYPES,
                rounding=_sum_of_products,
            ),
            Kernel(
                name="chain_profiles",
                arguments=(
                    "offsets",
                    "layers",
                    "taps",
                    "units",
                    "starts",
                    "lost",
                    "exponents",
                    "out",
                ),
                summary="The profiles of many chains along one axis, from unit `units[c]` of the "
                "last map down to the input; chain c has the layers offsets[c] to "
                "offsets[c + 1] − 1, the one next to the input first. The rows of layers (6, L) "
                "are kernel, stride, dilation, lo, size of the map that the layer reads (−1: "
                "unbounded) and the index in taps of the first of its taps (−1: all equal); taps "
                "count in proportion to their sum, which is not 0. out[c, j] is for pixel "
                "starts[c] + j; the largest pixel of the whole image lies in [1, 2], and "
                "2^exponents[c] makes shares of the unit's variance of it; lost[c] is the share "
                "that fell outside of maps. What describes the chains are NumPy's arrays, of int64 "
                "but for taps, on every device. `terms` is the sum over a chain's layers of "
                "2·kernel + 1.",
                formula="out[c]·2^exponents[c] = M_1ᵀ·…·M_nᵀ·δ(units[c]), where Mᵀ is "
                "transposed_conv with taps/Σtaps on [0, size)",
                dtypes=DTYPES,
                rounding=_sum_of_two_products,
            ),
            Kernel(
                name="grown_profiles",
                arguments=("offsets", "layers", "taps", "places", "exponents", "out"),
                summary="The profiles of many chains on the unbounded grid, grown from the input "
                "up: a layer that chain c shares with all before it in chain c − 1 is not computed "
                "again, so chains are best sorted. Chain c has the layers offsets[c] to "
                "offsets[c + 1] − 1, the one next to the input first. The rows of layers (3, L) "
                "are kernel, spacing (dilation times the strides of the layers below) and the "
                "index in taps of the first of its taps (−1: all equal). Its profile of "
                "1 + Σ (kernel − 1)·spacing pixels is put to out from places[c] to "
                "places[c + 1] − 1; the largest pixel lies in [1, 2], and 2^exponents[c] makes "
                "shares of the unit's variance of it. `terms` is the sum over a chain's layers of "
                "2·kernel + 1. Images of equal taps are their own mirror images, bit for bit. What "
                "describes the chains are NumPy's arrays on every device. One chain after the "
                "other goes on from what is kept of those before; a GPU runs them side by side.",
                formula="out[places[c] + i]·2^exponents[c] = [z^i] "
                "Π_l Σ_m taps_l[m]/Σtaps_l · z^(m·spacing_l)",
                dtypes=DTYPES,
                rounding=_sum_of_two_products,
            ),
            Kernel(
                name="chain_figures",
                arguments=(
                    "pixels",
                    "places",
                    "counts",
                    "lines",
                    "at",
                    "threshold",
                    "shares",
                    "moments",
                    "out",
                ),
                summary="What `fastrf.metrics` measures of many images that are outer products of "
                "profiles. Line l is the profile pixels[places[l]] to "
                "pixels[places[l] + counts[l] − 1], of any scale and with some mass; chain c is "
                "the product of the lines lines[:, c], and at[:, c] (ndim, C) is its centre in "
                "them. moments[l] is: total; mean from the first pixel on; variance; excess "
                "kurtosis (NaN without spread); full width at half maximum; the first and the last "
                "pixel over the largest. out[c] is: how many pixels are above Luo's threshold on "
                "the amplitude and on the variance (NaN where the centre is 0); the distance to "
                "the Gaussian (NaN without spread); and of each share the side of its square. "
                "Sums are in float64 whatever the dtype, and results rounded once. Relative "
                "errors of total, variance and width are bounded, of lines of `terms` pixels; "
                "the mean is right to that part of the line, and the distance as it stands; counts "
                "and sides are those of limits that are off by so much. All but pixels, moments "
                "and out are NumPy's arrays on every device.",
                formula="see `fastrf.metrics`",
                dtypes=DTYPES,
                rounding=_figures,
            ),
            Kernel(
                name="walk",
                arguments=("program", "entry", "seeds", "shares", "unit", "headroom"),
                summary="A whole network on a small image: follows the program of "
                "`fastrf.kernels.tables`, with taps of the images' dtype, from the instruction "
                "`entry` on, with gradient variance `shares` at the pixel `unit` of the values "
                "`seeds`, and returns the input's image, its scale and what was lost. `headroom` "
                "is (top, limit, shift) of `fastrf.engine.scaled`. Results of taps below the "
                "smallest normal number count as 0. `terms` is the sum over the layers of a path "
                "of their taps, with 4 for scales. It saves the calls of small layers, which only "
                "a CPU has cheap enough to save.",
                formula="out = Σ shares[s]·M_1ᵀ·…·M_nᵀ·δ(unit) over all paths of maps M",
                dtypes=DTYPES,
                rounding=_sum_of_products,
                devices=("cpu",),
            ),
        )
    }
)
