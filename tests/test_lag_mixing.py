"""Covariances behind two rows of coefficients: both ways to sum them, against sums in loops."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from fastrf.kernels import load
from numpy.typing import NDArray

from fastrf.engine import lag_mixing
from fastrf.engine.lag_mixing import Mixing, takes_at_once
from fastrf.engine.threads import Threads

RNG = np.random.default_rng(7)


def add(
    y: NDArray[np.float64],
    starts: NDArray[np.int64],
    taps: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    load("cpu").transposed_table(y, starts, taps, out)


def rows(first: int, count: int, stride: int, width: int) -> lag_mixing.Rows:
    """Rows that advance, with coefficients of their own, and one that reads nothing."""
    taps = RNG.random((count, width))
    taps[count // 2] = 0
    return np.arange(first, first + count) * stride - 1, taps


def summed(mixing: Mixing, y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Σ a[o, i]·b[o′, i + τ]·C[o, o′], term by term."""
    (starts, taps), (begins, others) = mixing.a, mixing.b
    low, length = mixing.window
    out = np.zeros((len(mixing.lags), y.shape[0], length, y.shape[3]))
    for (n, lag), (t, above), (o, start), m, k in itertools.product(
        enumerate(mixing.lags),
        enumerate(mixing.above),
        enumerate(starts),
        range(taps.shape[1]),
        range(others.shape[1]),
    ):
        other = o + above - mixing.above[0]
        if start + m + lag == begins[other] + k:
            out[n, :, start + m - low] += taps[o, m] * others[other, k] * y[:, t, o]
    return out


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("above", [(0,), (-1, 0, 1), (-4, 0, 2, 3)], ids=str)
@pytest.mark.parametrize(("before", "behind"), [(1, 1), (2, 3)])
def test_both_ways(
    at_once: bool,
    stride: int,
    above: tuple[int, ...],
    before: int,
    behind: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lag_mixing, "takes_at_once", lambda *_: at_once)
    count = 5
    a = rows(2, count, stride, 3)
    b = rows(2 + above[0], count + above[-1] - above[0], stride, 4)
    lags = (-40, -3, -1, 0, 2, 5, 11)  # at the first, nothing meets
    mixing = Mixing(above, lags, a, b, add, Threads(1))
    y = RNG.random((before, len(above), count, behind))
    expected = summed(mixing, y)
    out = np.full(expected.shape, np.nan)
    mixing.into(y, out, np)
    assert not expected[0].any()
    assert expected[1:].any()
    # Of nonnegative numbers, rounded at each of at most 3·4·4 products and sums.
    np.testing.assert_allclose(out, expected, rtol=96 * np.finfo(np.float64).eps, atol=0)


def test_few_pixels_and_many_lags_are_taken_at_once() -> None:
    assert takes_at_once(200, 200, 200, 6, 1)
    assert not takes_at_once(5000, 2, 3, 6, 1)  # three lags of many pixels
    assert not takes_at_once(200, 200, 200, 6, 200)  # of an image
    assert not takes_at_once(4000, 8000, 8001, 6, 1)  # more than is taken without a look at Ctrl-C
