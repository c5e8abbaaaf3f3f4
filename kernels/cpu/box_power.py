"""The profile of n equal layers of uniform taps, by Miller's recurrence (Knuth, TAOCP 2, §4.7)."""

from __future__ import annotations

import numpy as np

from ._compile import kernel
from ._layout import SMALLEST_NORMAL, Floats, check_floats, check_positive, target

# The working copies of the last coefficients are brought down by this power of two when one has
# grown beyond it. What falls below the smallest normal number then is 2^-900 of its neighbours.
_STEP = 300


@kernel
def _box_power(n, k, top, out, tiny):  # type: ignore[no-untyped-def]
    length = n * (k - 1) + 1
    count = (length + 1) // 2
    # Values as computed, each with the level (in units of 2^_STEP) at which it was, and the
    # working copies that the recurrence reads, all of one level.
    value = np.empty(count)
    work = np.empty(count)
    level = np.zeros(count, np.int64)
    value[0] = work[0] = 1.0
    high, down = 2.0**_STEP, 2.0**-_STEP
    now = 0
    total, lost = 1.0, 0.0  # Σ value in units of the level, by Kahan's summation
    for i in range(1, count):
        reach = min(i, k - 1)
        # i·a_i = Σ_j ((n + 1)j − i)·a_{i−j}, exact integers times values.
        factor = float(n + 1 - i)
        terms = 0.0
        for j in range(1, reach + 1):
            terms += factor * work[i - j]
            factor += n + 1
        v = terms / i
        value[i] = work[i] = v
        level[i] = now
        y = v - lost
        t = total + y
        lost = (t - total) - y
        total = t
        if v > high:
            now += 1
            total *= down
            lost *= down
            for j in range(max(0, i - k + 2), i + 1):
                moved = work[j] * down
                work[j] = moved if moved >= 2.3e-308 else 0.0
    total *= 2.0
    if length % 2:
        total -= work[count - 1]
    first, second = 0.0, 0.0
    last = -1
    for i in range(min(count, out.size)):
        if level[i] != last:
            last = level[i]
            # 2^(shift) may be no number itself: two factors whose product is.
            shift = max((last - now) * _STEP + top, -2400)
            first = 2.0 ** (shift // 2)
            second = 2.0 ** (shift - shift // 2)
        v = value[i] / total * first * second
        out[i] = v if v >= tiny else 0.0
    for i in range(count, out.size):
        out[i] = out[length - 1 - i]


def box_power(n: int, k: int, top: int, out: Floats) -> None:
    """See ``fastrf.kernels.spec.KERNELS["box_power"]``."""
    check_floats(out=out)
    check_positive(n=n + 1, k=k)
    if out.ndim != 1 or not 1 <= out.size <= n * (k - 1) + 1:
        raise ValueError(
            f"out has shape {out.shape}; a power has {n * (k - 1) + 1} coefficients: pass a vector "
            "for some of them, from the first on"
        )
    with target(out, out.strides[0] == out.itemsize) as whole:
        _box_power(n, k, top, whole, SMALLEST_NORMAL[out.dtype])
