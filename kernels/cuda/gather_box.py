"""The strided gather along one axis with taps that are all 1: the adjoint of ``transposed_box``."""

from __future__ import annotations

from fastrf.kernels._checks import Floats, check_floats, check_positive, check_same

from ._windows import windows


def gather_box(y: Floats, k: int, stride: int, dilation: int, lo: int, out: Floats) -> None:
    """See ``fastrf.kernels.spec.KERNELS["gather_box"]``."""
    check_floats(y=y, out=out)
    check_same("first and last axis of y and out", y.shape[::2], out.shape[::2])
    check_positive(k=k, stride=stride, dilation=dilation)
    # A window that begins at i·s − lo ends (k−1)·d further on.
    windows(y, k, 1, stride, dilation, (k - 1) * dilation - lo, out)
