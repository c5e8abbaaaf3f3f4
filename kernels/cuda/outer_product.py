"""The outer product of two profiles: the image of a chain of separable layers."""

from __future__ import annotations

from fastrf.kernels._checks import Floats, check_floats, check_same

from ._geometry import THREADS, blocks, integers, readable, steps, suffix, writable
from ._module import launch

# Rows that one thread makes, so that its element of x is loaded once for all of them.
_ROWS = 16
_MOST = 65_535  # blocks along y


def outer_product(y: Floats, x: Floats, out: Floats) -> None:
    """See ``fastrf.kernels.spec.KERNELS["outer_product"]``."""
    check_floats(y=y, x=x, out=out)
    check_same("lengths of y and x and shape of out", (*y.shape, *x.shape), out.shape)
    rows, columns = out.shape
    grid = (blocks(columns, THREADS), min(blocks(rows, _ROWS), _MOST), 1)
    y, x = readable(y), readable(x)
    with writable(out) as to:
        launch(
            "outer_product.cu",
            f"outer_product_{suffix(out.dtype)}",
            grid,
            (THREADS, 1, 1),
            [y, *steps(y), x, *steps(x), to, *steps(to), *integers(out.shape)],
        )
