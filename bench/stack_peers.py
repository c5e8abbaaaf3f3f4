"""Peers for stacks of one block, over and over, at stride 1 (`Case.block`): each library's own best
way, which the general walk of `bench.peers` does not take."""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
import scipy.fft

from bench.cases import Case, network_of
from fastrf.lowering import lower


def _stack(case: Case) -> tuple[int, int, int, np.ndarray]:
    """Axes, taps per axis, convolutions a block, and the block's polynomial, of sum 1."""
    graph = lower(network_of(case), None)
    kernel = graph.operations[0].maps[0].axes[0].kernel
    return graph.ndim, kernel, len(case.block) - 1, np.array(case.block) / sum(case.block)


def one_fft(case: Case) -> Any:
    """The power of one block's transfer function, and one inverse FFT (odd kernels)."""
    ndim, kernel, degree, coefficients = _stack(case)
    side = case.repeats * degree * (kernel - 1) + 1
    length = scipy.fft.next_fast_len(side, real=True)

    def run() -> tuple[np.ndarray, tuple[int, ...]]:
        centred = np.zeros(length)
        centred[np.arange(kernel) - kernel // 2] = 1 / kernel
        axes = [scipy.fft.fft(centred).real] * (ndim - 1) + [scipy.fft.rfft(centred).real]
        h = reduce(np.multiply.outer, axes)
        plain = degree == 1 and not coefficients[0]
        block = h if plain else np.polynomial.polynomial.polyval(h, coefficients)
        image = scipy.fft.irfftn(block**case.repeats, (length,) * ndim, workers=-1)
        return scipy.fft.fftshift(image), (-(length // 2),) * ndim

    return run


def jax_shifts(case: Case) -> Any:
    """Shifted copies added up, all blocks in one compiled loop on an image of the final size."""
    import jax
    import jax.numpy as jnp
    from jax import lax

    jax.config.update("jax_enable_x64", True)
    ndim, kernel, degree, coefficients = _stack(case)
    reach = case.repeats * degree * (kernel - 1) // 2
    side = 2 * reach + 1

    def layer(y: Any) -> Any:
        for axis in range(ndim):
            pad = [(kernel // 2, (kernel - 1) // 2) if a == axis else (0, 0) for a in range(ndim)]
            wide = jnp.pad(y, pad)
            y = sum(lax.slice_in_dim(wide, m, m + side, axis=axis) for m in range(kernel)) / kernel
        return y

    def block(_: Any, y: Any) -> Any:
        total = coefficients[0] * y
        for coefficient in coefficients[1:]:
            y = layer(y)
            total = total + coefficient * y if coefficient else total
        return total

    walk = jax.jit(lambda y: lax.fori_loop(0, case.repeats, block, y))
    seed = jnp.zeros((side,) * ndim).at[(reach,) * ndim].set(1.0)

    def run() -> tuple[Any, tuple[int, ...]]:
        return walk(seed).block_until_ready(), (-reach,) * ndim

    return run


def opencv(case: Case) -> Any:
    """`cv2.sepFilter2D` on an image that grows from layer to layer (two axes)."""
    import cv2

    _, kernel, _, coefficients = _stack(case)
    line, border = np.full(kernel, 1 / kernel), kernel // 2
    zero = cv2.BORDER_CONSTANT

    def grown(y: np.ndarray) -> np.ndarray:
        return cv2.copyMakeBorder(y, border, border, border, border, zero)

    def run() -> tuple[np.ndarray, tuple[int, int]]:
        y = np.ones((1, 1))
        for _ in range(case.repeats):
            total = coefficients[0] * y
            for coefficient in coefficients[1:]:
                y = cv2.sepFilter2D(grown(y), cv2.CV_64F, line, line, borderType=zero)
                total = grown(total) + coefficient * y
            y = total
        return y, (-(y.shape[0] // 2), -(y.shape[1] // 2))

    return run
