"""Covariances behind two rows of coefficients, along one axis: Σ a[o, i]·b[o′, i + τ]·C[o, o′].

Lag by lag, each is a product with rows of coefficients: a·b of all pairs of outputs whose pixels
are that far apart. Or all at once: with C as a matrix of all pairs of outputs, Aᵀ·C·B is a product
with the rows of `a`, and then with those of `b`. That has all pairs of pixels, whichever lags are
wanted, but no call for each lag; where an axis has few pixels and many lags it is quicker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf.engine.coefficients import Rows
from fastrf.engine.threads import Threads

Array = NDArray[Any]
AddRows = Callable[[Array, NDArray[np.int64], NDArray[np.float64], Array], None]
"""``add(y, starts, taps, out)``: out[:, starts[o] + m] = Σ_o taps[o, m]·y[:, o]."""

CALL = 30_000
"""Products that take as long as a lag by itself does, some 70 µs with few pixels."""

MOST = 1 << 25
"""Most products at once: 0.05 s, and some 50 MB."""


def takes_at_once(pixels: int, around: int, lags: int, taps: int, beside: int) -> bool:
    """Whether all lags at once are quicker.

    Args:
        pixels, around: outputs, and how far apart the lags above are.
        lags: how many are wanted.
        taps: of both rows together.
        beside: values beside these two axes.
    """
    return beside * pixels * (pixels + around) * taps <= min(lags * CALL, MOST)


@dataclass(frozen=True, slots=True)
class Mixing:
    """What is to be summed.

    Attributes:
        above: the lags that are there, ascending.
        lags: those that are wanted.
        a: rows of the outputs, and
        b: those of as many more as the lags above are apart, from above[0] on.
        add: sums with rows of coefficients.
        threads: share the lags, where each is a call.
    """

    above: tuple[int, ...]
    lags: tuple[int, ...]
    a: Rows
    b: Rows
    add: AddRows
    threads: Threads

    @property
    def window(self) -> tuple[int, int]:
        """First pixel reached, and how many."""
        starts, taps = self.a
        low = int(starts.min())
        return low, int(starts.max()) + taps.shape[1] - low

    def into(self, y: Array, out: Array, xp: Any) -> None:
        """Sums covariances of shape (before, lags above, pixels, behind) into an array of shape
        (lags, before, pixels reached, behind)."""
        before, lags, count, behind = y.shape
        wide = self.above[-1] - self.above[0]
        taps = self.a[1].shape[1] + self.b[1].shape[1]
        if takes_at_once(count, wide, len(self.lags), taps, before * behind):
            self._at_once(y, out, xp)
        else:
            self._lag_by_lag(y.reshape(before, lags * count, behind), out)

    def _at_once(self, y: Array, out: Array, xp: Any) -> None:
        (starts, taps), (begins, others) = self.a, self.b
        low, length = self.window
        before, _, count, behind = y.shape
        wide, o = len(begins), xp.arange(count)
        pairs = xp.zeros((before, count, wide, behind), y.dtype)
        pairs[:, o, o + xp.asarray(self.above)[:, None] - self.above[0]] = y
        half = xp.empty((before, length, wide, behind), y.dtype)
        columns = (before, count, wide * behind), (before, length, wide * behind)
        self.add(pairs.reshape(columns[0]), starts - low, taps, half.reshape(columns[1]))
        del pairs
        first = int(begins.min())
        span = int(begins.max()) + others.shape[1] - first
        both = xp.empty((before, length, span, behind), y.dtype)
        rows = (before * length, wide, behind), (before * length, span, behind)
        self.add(half.reshape(rows[0]), begins - first, others, both.reshape(rows[1]))
        del half
        for number, lag in enumerate(self.lags):
            partner = low - first + lag  # of the first pixel
            some = slice(max(0, -partner), max(0, min(length, span - partner)))
            i = xp.arange(length)[some]
            out[number] = 0
            out[number][:, some] = both[:, i, i + partner]

    def _lag_by_lag(self, y: Array, out: Array) -> None:
        (starts, taps), (begins, others) = self.a, self.b
        count, low = len(starts), self.window[0]
        window = np.array(self.above)[:, None] - self.above[0] + np.arange(count)
        offsets = (starts - begins[window])[:, :, None]
        least, greatest = offsets.min(axis=(1, 2)), offsets.max(axis=(1, 2)) + taps.shape[1] - 1

        def one(number: int) -> None:
            lag = self.lags[number]
            meets = np.flatnonzero((greatest + lag >= 0) & (least + lag < others.shape[1]))
            if not meets.size:
                out[number] = 0
                return
            some = slice(int(meets[0]), int(meets[-1]) + 1)
            m = offsets[some] + np.arange(lag, lag + taps.shape[1])
            inside = (m >= 0) & (m < others.shape[1])
            both = others[window[some][:, :, None], np.clip(m, 0, others.shape[1] - 1, out=m)]
            del m
            both *= taps
            both[~inside] = 0
            part = slice(some.start * count, some.stop * count)
            targets = np.tile(starts - low, some.stop - some.start)
            self.add(y[:, part], targets, both.reshape(-1, taps.shape[1]), out[number])

        self.threads.each(len(self.lags), out.size, one)
