"""Sums along a line that several kernels take."""

from __future__ import annotations

from ._compile import kernel


@kernel
def add_equal(arena, at, count, k, d, to):  # type: ignore[no-untyped-def]
    """``arena[to + j] = Σ_{m<k} arena[at + j − m·d]``, j < count.

    Over slices: LLVM vectorises indices into them, but not sums of positions that might overflow.
    """
    total = arena[to : to + count]
    a = arena[at : at + count]
    if k == 1:
        for j in range(count):
            total[j] = a[j]
        return
    b = arena[at - d : at - d + count]
    if k % 2:
        c = arena[at - 2 * d : at - 2 * d + count]
        for j in range(count):
            total[j] = a[j] + b[j] + c[j]
    else:
        for j in range(count):
            total[j] = a[j] + b[j]
    first = 2 + k % 2
    if (k - first) % 4:
        a = arena[at - first * d : at - first * d + count]
        b = arena[at - (first + 1) * d : at - (first + 1) * d + count]
        for j in range(count):
            total[j] += a[j] + b[j]
        first += 2
    for m in range(first, k, 4):
        a = arena[at - m * d : at - m * d + count]
        b = arena[at - (m + 1) * d : at - (m + 1) * d + count]
        c = arena[at - (m + 2) * d : at - (m + 2) * d + count]
        e = arena[at - (m + 3) * d : at - (m + 3) * d + count]
        for j in range(count):
            total[j] += (a[j] + b[j]) + (c[j] + e[j])
