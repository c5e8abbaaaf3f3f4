"""Inverse Fourier transforms of NumPy's and CuPy's arrays: the library and the lengths it likes."""

from __future__ import annotations

import numpy as np

from fastrf.arrays import Array, namespace


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
    return transform(values, length, axis=axis, overwrite_x=True, workers=workers)
