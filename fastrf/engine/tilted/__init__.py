"""Tilted windows: the spectral engine, right pixel by pixel.

An FFT of the transfer function F(z) = Σ V[i]·z^i gives every pixel with an error of some 1e-15 of
the image's *peak*. But V[i]·e^{θ·i} are the coefficients of F(e^θ·z), the exponentially tilted
image (Esscher 1932; Daniels 1954): its bulk lies around ∇K(θ), K(θ) = ln F(e^θ), wherever on the
support that is, and its FFT gives the pixels there to some 1e-15 of *their* size. Windows of
neighbouring θ cover whatever is visible, down to the smallest normal number:

1. A walk over `moments.Moments` gives K and the tilted mean on a grid of θ, laid out in steps of
   equal Fisher length ∫√K″dθ, in which the tilted image of any depth is about one wide (`nodes`).
2. Which pixels a window serves follows from Bregman's divergence of K, the log of how far below
   its own peak it holds the pixels of another θ. A greedy cover picks the windows.
3. Chernoff's bound on the tilted image gives each window's pixels and the shortest period without
   aliasing (`windows`), `frequencies.Moduli` the few frequencies that matter; `frequencies.Waves`
   evaluates all windows in one walk (`search`).
4. Pixels are taken where they are above rounding/tol; the others must be proven to be zeros of
   the support (`supports`) or below the smallest normal number. Otherwise further
   windows follow. Pixels far below the concave envelope of ln V, which no tilt can lift (a lone
   narrow path between far ones), are the direct engine's.

All of it runs on the host, whose threads share the windows; on a GPU's plan the image is moved
there.

Maps are tilted once, in `taps.Tilts`: a tilted tap vector is again a nonnegative tap vector with a
gain, so that the algebras are those of `transfer` with an array of windows in front.
"""

from __future__ import annotations

from fastrf.engine.tilted.forecast import of_tilted
from fastrf.engine.tilted.propagation import FINEST, finest, obstacle, propagate_tilted

__all__ = ["FINEST", "finest", "obstacle", "of_tilted", "propagate_tilted"]
