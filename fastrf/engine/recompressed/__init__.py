"""The recompressed engine: images as a few separable terms, carried through any graph.

Where the factored engine asks for a transfer function, this one takes maps of known size with
their borders, merges, transposed convolutions, resizing, and taps that are no product. An image
is a sum of terms a ⊗ b (`lowrank`); a layer is one sparse matrix an axis (`maps`); a merge puts
terms side by side; and layers that are powers of one map are put off until they are needed
(`words`, `powers`). What has to be computed is written down first (`script`), once for all units
of a map, and then followed (`carrier`). Where terms pile up, a singular value decomposition finds
fewer of them.

All of it runs on the host: SciPy's sparse products and LAPACK on factors of some hundred kilobytes.
On a GPU's plan the pixels alone are moved there.

Error. With E_k what reduction k changed its image by and A_k ≥ 0 the linear map from there to the
input, all paths together, the image on the input is wrong by Σ_k A_k·E_k. A nonnegative matrix
raises the largest absolute pixel at most by its largest row sum, and the sum of absolute pixels by
its largest column sum; both are submultiplicative along a path and add where paths meet
(`maps.plane_gains`). So

    max|E| ≤ Σ_k g_k·max|E_k| = e,    Σ|E| ≤ Σ_k h_k·Σ|E_k| = f,

with max|E_k| and Σ|E_k| measured at each reduction. Putting negative pixels to 0, as the true ones
are not negative, makes no pixel worse. Divided by the sum t of what is left, with p its largest
pixel and x the true image of sum s, |t − s| ≤ f,

    |x̂/t − x/s| ≤ |x̂ − x|/s + (x̂/t)·|t − s|/s ≤ (p/t)·(e/p + f/t)·t/(t − f).

To that comes the rounding of sums (`lowrank.rounding`) times their condition: Σ|terms| over the
mass, 1 up to the first reduction and about 2 behind it. This part is an estimate to first order.
"""

from __future__ import annotations

from fastrf.engine.recompressed.forecast import finest, is_relative, of_recompressed
from fastrf.engine.recompressed.propagation import (
    Recompressed,
    obstacle,
    propagate_recompressed,
    recompress,
)

__all__ = [
    "Recompressed",
    "finest",
    "is_relative",
    "obstacle",
    "of_recompressed",
    "propagate_recompressed",
    "recompress",
]
