"""Layers of 3 × 3 equal taps on one large image: our kernel against stencils of other libraries.

    pytest bench/bench_stencil.py --benchmark-group-by=group --benchmark-columns=median,ops

The same dense image and number of layers for all, zero outside, the image's own window kept. Wall
time, each library with as many threads as it takes by itself and ours with two; ``extra_info`` has
cell updates (one pixel of one layer) per second. Read figures as ratios within a group.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from fastrf.kernels import load

from bench.record import rounds_for
from fastrf.engine.threads import Threads

LAYERS = 32
WORKERS = min(2, os.cpu_count() or 1)


def ours(y):
    """Bands of rows for the threads, as the direct engine cuts them. A band of a window that is
    kept whole reads `LAYERS` rows beyond: nothing is lost at its edges but at the image's own."""
    out = np.empty_like(y)
    run = load().box_run

    def call():
        with Threads(WORKERS) as threads:
            threads.cut(
                len(y),
                y.size,
                lambda a, b: run(
                    y[None], (1, 3, 3), LAYERS, (0, LAYERS + a, LAYERS), out[None, a:b]
                ),
            )
        return out

    return call, 9.0**-LAYERS


def jax_shifts(y):
    import jax
    import jax.numpy as jnp
    from jax import lax

    jax.config.update("jax_enable_x64", True)

    def layer(_, y):
        for axis in range(2):
            wide = jnp.pad(y, [(1, 1) if a == axis else (0, 0) for a in range(2)])
            y = sum(lax.slice_in_dim(wide, m, m + y.shape[axis], axis=axis) for m in range(3))
        return y / 9

    walk = jax.jit(lambda y: lax.fori_loop(0, LAYERS, layer, y))
    start = jnp.asarray(y)
    return lambda: np.asarray(walk(start).block_until_ready()), 1.0


def opencv(y):
    import cv2

    line = np.full(3, 1 / 3, y.dtype)
    depth = cv2.CV_64F if y.dtype == np.float64 else cv2.CV_32F

    def call():
        image = y
        for _ in range(LAYERS):
            image = cv2.sepFilter2D(image, depth, line, line, borderType=cv2.BORDER_CONSTANT)
        return image

    return call, 1.0


def pytorch(y):
    taps = torch.full((1, 1, 3, 3), 1 / 9, dtype=torch.from_numpy(y).dtype)

    def call():
        image = torch.from_numpy(y)[None, None]
        for _ in range(LAYERS):
            image = torch.nn.functional.conv2d(image, taps, padding=1)
        return image[0, 0].numpy()

    return call, 1.0


WHO = {"fastrf": ours, "jax": jax_shifts, "opencv": opencv, "torch": pytorch}


@pytest.mark.parametrize("who", list(WHO))
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("size", [1024, 2048])
def test_stencil(benchmark, size, dtype, who):
    pytest.importorskip({"jax": "jax", "opencv": "cv2"}.get(who, "fastrf"))
    y = np.random.default_rng(1).random((size, size)).astype(dtype)
    call, scale = WHO[who](y)
    inside = (slice(LAYERS, -LAYERS),) * 2  # the border of a run is not cut from layer to layer
    expected, factor = ours(y)
    # At most 9 addends a layer on either side: γ_N of Higham (2002), §3.1.
    np.testing.assert_allclose(
        call()[inside] * scale,
        expected()[inside] * factor,
        rtol=2 * 9 * LAYERS * np.finfo(dtype).eps,
    )
    benchmark.group = f"{size}² {dtype}"
    benchmark.extra_info |= {"case": f"{size}² {dtype}", "who": who, "layers": LAYERS}
    benchmark.pedantic(call, rounds=rounds_for(call))
    if benchmark.stats is not None:
        benchmark.extra_info["updates_per_second"] = size**2 * LAYERS / benchmark.stats.stats.median
