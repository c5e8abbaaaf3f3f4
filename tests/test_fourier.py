"""Inverse transforms along any axis, in one call and in several, against NumPy's."""

from __future__ import annotations

import numpy as np
import pytest

from fastrf.engine import fourier

RNG = np.random.default_rng(4)


@pytest.mark.parametrize("slab", [1 << 24, 30, 7])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("shape", "axis"), [((12,), 0), ((6, 5), 0), ((3, 8), 1), ((4, 6, 9), 1)])
def test_inverse(
    shape: tuple[int, ...], axis: int, half: bool, slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A call of many values is made of parts, each of whole lines along the axis."""
    monkeypatch.setattr(fourier, "SLAB", slab)
    values = RNG.random(shape) + 1j * RNG.random(shape)
    for length in (shape[axis], 2 * shape[axis] - 2):
        given = values.copy()
        transform = np.fft.irfft if half else np.fft.ifft
        expected = transform(values, length, axis=axis)
        found = fourier.inverse(given, length, axis, half, workers=1)
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, atol=1e-15)


@pytest.mark.parametrize(("least", "half", "length"), [(7, False, 7), (7, True, 8), (13, True, 15)])
def test_lengths(least: int, half: bool, length: int) -> None:
    assert fourier.fast_length(least, half) == length
