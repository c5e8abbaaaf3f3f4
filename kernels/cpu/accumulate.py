"""Adding a scaled image to another: where branches of a network meet."""

from __future__ import annotations

from ._compile import kernel
from ._layout import (
    SMALLEST_NORMAL,
    Floats,
    check_floats,
    check_same,
    has_rows,
    memory,
    with_rows,
)


@kernel
def _accumulate(y, y_plane, y_row, factor, out, out_plane, out_row, shape, tiny):  # type: ignore[no-untyped-def]
    zero = out.dtype.type(0)
    planes, rows, columns = shape
    for a in range(planes):
        for b in range(rows):
            at = a * y_plane + b * y_row
            to = a * out_plane + b * out_row
            source, row = y[at : at + columns], out[to : to + columns]
            for c in range(columns):
                value = row[c] + factor * source[c]
                row[c] = zero if value < tiny else value


def accumulate(y: Floats, factor: float, out: Floats) -> None:
    """See ``fastrf.kernels.spec.KERNELS["accumulate"]``."""
    check_floats(y=y, out=out)
    check_same("shapes of y and out", y.shape, out.shape)
    if not has_rows(out):
        scratch = out.copy()
        accumulate(y, factor, scratch)
        out[...] = scratch
        return
    tiny = SMALLEST_NORMAL[out.dtype]
    _accumulate(*memory(with_rows(y)), out.dtype.type(factor), *memory(out), out.shape, tiny)
