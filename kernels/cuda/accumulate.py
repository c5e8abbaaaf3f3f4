"""Adding a scaled image to another: where branches of a network meet."""

from __future__ import annotations

from fastrf.kernels._checks import Floats, check_floats, check_same

from ._geometry import elements, one_each, readable, steps, suffix, writable
from ._module import launch


def accumulate(y: Floats, factor: float, out: Floats) -> None:
    """See ``fastrf.kernels.spec.KERNELS["accumulate"]``."""
    check_floats(y=y, out=out)
    check_same("shapes of y and out", y.shape, out.shape)
    y = readable(y)
    with writable(out) as to:
        arguments = [y, *steps(y), out.dtype.type(factor), *elements(to)]
        launch("accumulate.cu", f"accumulate_{suffix(out.dtype)}", *one_each(out.shape), arguments)
