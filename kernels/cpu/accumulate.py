"""Adding a scaled image to another: where branches of a network meet."""

from __future__ import annotations

from ._compile import kernel
from ._layout import SMALLEST_NORMAL, Floats, check_floats, check_same


@kernel
def _accumulate(y, factor, out, tiny):  # type: ignore[no-untyped-def]
    zero = out.dtype.type(0)
    for a in range(out.shape[0]):
        for b in range(out.shape[1]):
            source, row = y[a, b], out[a, b]
            for c in range(row.shape[0]):
                value = row[c] + factor * source[c]
                row[c] = value if value >= tiny else zero


def accumulate(y: Floats, factor: float, out: Floats) -> None:
    """See ``fastrf.kernels.spec.KERNELS["accumulate"]``."""
    check_floats(y=y, out=out)
    check_same("shapes of y and out", y.shape, out.shape)
    _accumulate(y, out.dtype.type(factor), out, SMALLEST_NORMAL[out.dtype])
