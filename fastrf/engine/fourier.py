"""Inverse Fourier transforms of NumPy's and CuPy's arrays: the library and the lengths it likes."""

from __future__ import annotations

import numpy as np

from fastrf.arrays import Array, namespace

SLAB = 1 << 24
"""Values of one call, which nothing can interrupt: some 0.2 s on one core."""


def fast_length(least: int, half: bool) -> int:
    """The smallest length from `least` on for which the transform is fast.

    It is a product of 2, 3 and 5 where `half` (see `inverse`), else of these, 7 and 11, which
    pocketfft and cuFFT have code of their own for.
    """
    from scipy.fft import next_fast_len

    return int(next_fast_len(least, real=half))


def inverse(values: Array, length: int, axis: int, half: bool, workers: int) -> Array:
    """The inverse transform along one axis, in double precision, where the values live.

    Args:
        values: complex numbers, which may be overwritten.
        length: of the result along the axis.
        half: the result is real, and of the frequencies only those up to half the length are given.
        workers: threads, on the CPU.
    """
    xp = namespace(values)
    if xp is not np:
        transform = xp.fft.irfft if half else xp.fft.ifft
        return transform(values, length, axis=axis)
    from scipy.fft import ifft, irfft

    transform = irfft if half else ifft
    slabs = -(-values.size // SLAB)
    if slabs == 1 or values.ndim == 1:
        return transform(values, length, axis=axis, overwrite_x=True, workers=workers)
    shape = (*values.shape[:axis], length, *values.shape[axis + 1 :])
    inside = not half and shape == values.shape
    out = values if inside else np.empty(shape, np.float64 if half else np.complex128)
    across = max((i for i in range(values.ndim) if i != axis), key=values.shape.__getitem__)
    count = values.shape[across]
    for i in range(slabs):
        part = (slice(None),) * across + (slice(count * i // slabs, count * (i + 1) // slabs),)
        out[part] = transform(values[part], length, axis=axis, workers=workers)
    return out
