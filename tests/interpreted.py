"""A plugin of pytest for kernels run as Python: ``NUMBA_DISABLE_JIT=1 pytest -p interpreted``.

Python cannot run what `fastrf.kernels.cpu._vectors` writes in LLVM's terms. Here every such
function is replaced by the formula of its docstring, so that all around it runs line by line: under
a debugger, for a measurement of coverage, with a planted fault.
"""

from __future__ import annotations

import numpy as np
import pytest
from fastrf.kernels.cpu import _layout, _runs
from fastrf.kernels.cpu._compile import as_python

BLOCK = _layout.BLOCK


def lanes_of(f: np.ndarray) -> int:
    return _layout.VECTOR_BYTES // f.itemsize


def elements(f: np.ndarray, size: int) -> int:
    return size // f.itemsize


def sum_blocks(f, at, stride, lines, taps, count, out, to, out_stride, blocks, tiny):
    lanes = lanes_of(f)
    for here in range(0, blocks * lanes, lanes):
        sums = np.zeros((BLOCK, lanes), f.dtype)
        for line, first in enumerate(lines):
            for t in range(count):
                for r in range(BLOCK):
                    begin = at + first + here + (r + t) * stride
                    sums[r] += taps[line * count + t] * f[begin : begin + lanes]
        if tiny > 0:
            sums[sums < tiny] = 0
        for r in range(BLOCK):
            out[to + r * out_stride + here : to + r * out_stride + here + lanes] = sums[r]


def sum_turned(f, at, taps, count, out, to, out_stride):
    lanes = lanes_of(f)
    for r in range(BLOCK):
        total = np.zeros(lanes, f.dtype)
        for t in range(count):
            total += taps[t] * f[at + (r + t) * lanes : at + (r + t + 1) * lanes]
        out[to + r : to + r + lanes * out_stride : out_stride][:lanes] = total


def turn(f, at, stride, out, to):
    lanes = lanes_of(f)
    for c in range(BLOCK):
        for lane in range(lanes):
            out[to + c * lanes + lane] = f[at + lane * stride + c]


def copy(f, at, out, to, count):
    out[to : to + count] = f[at : at + count].copy()


def lowest(f, at, vectors):
    values = f[at : at + vectors * lanes_of(f)]
    return values[values > 0].min(initial=np.inf)


def pytest_configure(config: pytest.Config) -> None:
    if not as_python():
        raise pytest.UsageError("kernels are compiled: set NUMBA_DISABLE_JIT=1")
    for function in (elements, sum_blocks, sum_turned, turn, copy, lowest):
        setattr(_runs, f"_{function.__name__}", function)
