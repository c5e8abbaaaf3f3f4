"""A block of a sum of separable terms: a matrix product of nonnegative numbers."""

from __future__ import annotations

from fastrf.kernels._checks import Floats, check_floats, check_same

from ._geometry import blocks, integers, readable, steps, suffix, writable
from ._module import launch

# As in the source: a block makes _SIDE × _SIDE pixels with _LANES × _LANES threads, _DEPTH terms at
# a time.
_SIDE, _LANES, _DEPTH = 64, 16, 16
_MOST = 65_535  # blocks along y


def sum_of_terms(weights: Floats, y: Floats, x: Floats, exponent: int, out: Floats) -> None:
    """See ``fastrf.kernels.spec.KERNELS["sum_of_terms"]``."""
    check_floats(weights=weights, y=y, x=x, out=out)
    check_same("terms of weights, y and x", (len(weights),) * 2, (len(y), len(x)))
    check_same("columns of y and x and shape of out", (y.shape[1], x.shape[1]), out.shape)
    rows, columns = out.shape
    if not len(weights):
        out[...] = 0
        return
    weights, y, x = readable(weights), readable(y), readable(x)
    factors = [weights, *steps(weights), y, *steps(y), x, *steps(x)]
    with writable(out) as to:
        launch(
            "sum_of_terms.cu",
            f"sum_of_terms_{suffix(out.dtype)}",
            (blocks(columns, _SIDE), min(blocks(rows, _SIDE), _MOST), 1),
            (_LANES, _LANES, 1),
            [
                *factors,
                out.dtype.type(2.0**exponent),
                to,
                *steps(to),
                *integers((len(weights), rows, columns)),
            ],
            2 * _DEPTH * _SIDE * out.itemsize,
        )
