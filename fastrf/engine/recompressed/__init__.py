"""The recompressed engine: images as a few separable terms, carried through any graph.

Where the factored engine asks for a transfer function, this one takes maps of known size with
their borders, merges, transposed convolutions, resizing, and taps that are no product. An image
is a sum of terms a ⊗ b (`lowrank`), a volume of many terms a core times a factor an axis
(`volumes`); a layer is one sparse matrix an axis (`maps`); a merge puts
terms side by side; and layers that are powers of one map are put off until they are needed
(`words`, `powers`). What has to be computed is written down first (`script`), once for all units
of a map, and then followed (`carrier`). Where terms pile up, singular value decompositions find
fewer of them; where they may be kept (`propagate_powers`), nothing is ever subtracted.

All of it runs where its arrays are: with SciPy's sparse products, BLAS and LAPACK on the host, with
cuSPARSE, cuBLAS and cuSOLVER on a GPU, by one code. There factors, of some hundred kilobytes, are
made and stay; what crosses to the host are singular values and sizes of terms where a reduction
decides (`lowrank`), largest entries where factors are brought near 1 (`carrier`), and at the end
the bounds of errors and what tells where the image is seen (`propagation`). Planes are formed at
once; a volume is left in its factors (`tucker`), which cross then, since figures are worked out
from them on the host; its pixels are formed on the GPU, when they are asked for.

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

Rounding is bounded in the same way, step by step, and nothing is left out. What is nonnegative is
wrong by γ_N of itself, N the roundings that befall a pixel one after the other (`Image.roundings`,
`lowrank.rounding`), and stays so through maps ahead, which are nonnegative. What has factors of
either sign is wrong, at each step that rounds N times in sequence, by γ_N of the image with all
signs dropped, |weights|·Π|factors|, of which the largest pixel and the sum are bounded and
multiplied by g and h as above. These are the worst cases, in whatever order sums are taken, and
not a statistical model: what happens is some ten to a thousand times less. The network's numbers
(gains, taps as lowered) count as exact; that 1/k is not is counted.
"""

from __future__ import annotations

from fastrf.engine.recompressed.forecast import (
    finest,
    is_relative,
    of_powers,
    of_powers_on_device,
    of_recompressed,
    of_recompressed_on_device,
)
from fastrf.engine.recompressed.propagation import (
    Recompressed,
    obstacle,
    propagate_powers,
    propagate_recompressed,
    recompress,
)
from fastrf.engine.recompressed.tucker import TuckerImage

__all__ = [
    "Recompressed",
    "TuckerImage",
    "finest",
    "is_relative",
    "obstacle",
    "of_powers",
    "of_powers_on_device",
    "of_recompressed",
    "of_recompressed_on_device",
    "propagate_powers",
    "propagate_recompressed",
    "recompress",
]
