"""The profile of n equal layers of uniform taps, by Miller's recurrence (Knuth, TAOCP 2, §4.7)."""

from __future__ import annotations

import numpy as np

from ._compile import kernel
from ._layout import SMALLEST_NORMAL, Floats, check_floats, check_positive, target

# The working copies of the last coefficients are brought down by this power of two when one has
# grown beyond it. What falls below the smallest normal number then is 2^-700 of its neighbours.
_STEP = 300
# Coefficients that are summed one after the other before the sum joins the total.
_PART = 64


@kernel
def _box_power(n, k, top, out, tiny):  # type: ignore[no-untyped-def]
    length = n * (k - 1) + 1
    count = (length + 1) // 2
    # Values as computed, at the level (in units of 2^_STEP) that they had then; the working copies
    # that the recurrence reads, all at one level; and where each level begins.
    value, work = np.empty(count), np.empty(count)
    begins = np.zeros(int(n * np.log2(k)) // _STEP + 3, np.int64)
    level = 0
    high, down = 2.0**_STEP, 2.0**-_STEP
    value[0] = work[0] = 1.0
    total, part = 0.0, 1.0
    for i in range(1, count):
        # i·a_i = Σ_j ((n + 1)j − i)·a_{i−j}: the latest coefficient comes last, since it is waited
        # for longest; 1/i is not waited for at all.
        inverse = 1.0 / i
        reach = min(i, k - 1)
        factor = float((n + 1) * reach - i)
        v = 0.0
        for j in range(reach, 0, -1):
            v += factor * work[i - j]
            factor -= n + 1
        v *= inverse
        value[i] = work[i] = v
        part += v
        if i % _PART == 0:
            total += part
            part = 0.0
        if v > high:
            level += 1
            begins[level] = i + 1
            total *= down
            part *= down
            for j in range(max(0, i - k + 2), i + 1):
                moved = work[j] * down
                work[j] = moved if moved >= 2.3e-308 else 0.0
    total = 2.0 * (total + part)
    if length % 2:
        total -= work[count - 1]
    begins[level + 1] = count
    for at in range(level + 1):
        # 2^shift may be no number itself: two factors whose product is.
        shift = max((at - level) * _STEP + top, -2000)
        first = 2.0 ** (shift // 2) / total
        second = 2.0 ** (shift - shift // 2)
        for i in range(min(begins[at], out.size), min(begins[at + 1], out.size)):
            v = value[i] * first * second
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
