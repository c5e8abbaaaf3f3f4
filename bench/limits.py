"""What a plan promises, against the clock and against what is allocated: time and peak memory.

    python -m bench.limits [NAME ...]

One network of every kind that an engine serves, in 1, 2 and 3 axes, on the unbounded grid and on
images, small and large. Time is that of one thread, warm, for a network that was seen before; peak
memory is what NumPy tells tracemalloc, image included. The promises: time within `SPREAD` wherever
it exceeds `NOTICED`, memory within `CLOSE` wherever it exceeds `LEAST`.
"""

from __future__ import annotations

import json
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import fastrf as rf
from bench.record import duration, table, write
from fastrf import zoo
from fastrf.errors import FastrfError

SPREAD, NOTICED = 3.0, 3e-3
CLOSE, LEAST = 1.1, 4 << 20
PATIENCE = 4.0
"""Seconds; what the plan expects to take longer is left out."""

Build = Callable[[int], rf.Network]
Field = tuple[rf.Network, dict[str, Any]]


def conv(kernel: Any = 3, stride: int = 1, dilation: int = 1, **options: Any) -> rf.Conv:
    padding = "same" if stride == 1 else dilation * (kernel - 1) // 2
    return rf.Conv(kernel, stride, dilation, padding, **options)


def residual(blocks: int, ndim: int, kernels: tuple[int, ...] = (3,)) -> rf.Network:
    layers = [conv(kernels[i % len(kernels)]) for i in range(blocks)]
    return rf.Sequential(*map(rf.Residual, layers), ndim=ndim)


def dense(blocks: int, ndim: int) -> rf.Network:
    parts = [rf.Parallel(None, [conv(1), conv(3)], merge="concat") for _ in range(blocks)]
    return rf.Sequential(*parts, ndim=ndim)


def backbone(convs: int, ndim: int) -> rf.Network:
    stage = [conv(3, 2), *[conv()] * convs, rf.Residual(conv(), conv())]
    return rf.Sequential(*stage * 3, ndim=ndim)


def ring(count: int, ndim: int, k: int = 5) -> rf.Network:
    """Taps that are no product."""
    import numpy as np

    at = np.indices((k,) * ndim) - k // 2
    return rf.Sequential(*[conv(k, taps=((at**2).sum(0) + 1).tolist())] * count, ndim=ndim)


def pools(count: int, ndim: int) -> rf.Network:
    """Overlapping average pools between convolutions: covariances."""
    return rf.Sequential(*[conv(), rf.AvgPool(3, 1, padding=1)] * count, ndim=ndim)


def decoder(count: int, ndim: int) -> rf.Network:
    """Bilinear upsampling behind strides: covariances."""
    up = [rf.Upsample(2, "linear"), conv()]
    return rf.Sequential(*[conv(3, 2), conv()] * count, *up * count, ndim=ndim)


def transposed(count: int, ndim: int) -> rf.Network:
    up = [rf.ConvTranspose(4, stride=2, padding=1), conv()]
    return rf.Sequential(*[conv(3, 2), conv()] * count, *up * count, ndim=ndim)


def channels(count: int, ndim: int, width: int = 8) -> rf.Network:
    """Trained weights, channel by channel."""
    import torch

    torch.manual_seed(0)
    kind = getattr(torch.nn, f"Conv{ndim}d")
    layers = [kind(3 if i == 0 else width, width, 3, padding=1) for i in range(count)]
    module = torch.nn.Sequential(*layers)
    return rf.from_torch(module, (1, 3, *(16,) * ndim), weights="trained", channels="full")


def fields() -> dict[str, Field]:
    """Every case by name: a network and the arguments of `fastrf.erf`."""
    found: dict[str, Field] = {}
    # Depths and sizes of images for 1, 2 and 3 axes: small ones, and as large as is quick.
    few, many = {1: 100, 2: 30, 3: 8}, {1: 2000, 2: 300, 3: 30}
    small, large = {1: 500, 2: 64, 3: 16}, {1: 100_000, 2: 700, 3: 90}

    def add(
        kind: str, build: Callable[[int, int], rf.Network], ways: Any, scale: float = 1
    ) -> None:
        for ndim in (1, 2, 3):
            for size, counts, sizes in (("small", few, small), ("large", many, large)):
                network = build(max(2, int(counts[ndim] * scale)), ndim)
                for way, options in ways.items():
                    name = f"{kind} {ndim}-D {size} {way}".strip()
                    found[f"{name}, unbounded"] = (network, options)
                    found[f"{name}, clipped"] = (network, options | {"input_size": sizes[ndim]})

    engines = {m: {"method": m} for m in ("direct", "factored", "spectral")}
    terms = {"terms": {"method": "factored", "accuracy": "absolute", "tol": 1e-9}}
    auto: dict[str, dict[str, Any]] = {"": {}}
    add("chain", lambda n, d: zoo.plain(n, 3, d), engines)
    add("single", residual, engines | terms, 0.4)
    add("blocks", lambda n, d: zoo.residual(n, ndim=d), engines | terms, 0.2)
    add("mixed", lambda n, d: residual(n, d, (3, 5)), engines | terms, 0.2)
    add("dense", dense, engines, 0.05)
    add("backbone", backbone, {"direct": {"method": "direct"}} | auto, 0.05)
    add("dilated", lambda n, d: rf.Sequential(*[conv(3, 1, 1 + i % 3) for i in range(n)], ndim=d),
        engines, 0.3)  # fmt: skip
    add("ring", ring, {"direct": {"method": "direct"}, "spectral": {"method": "spectral"}}, 0.1)
    add("pools", pools, auto, 0.05)
    add("decoder", lambda n, d: decoder(max(1, n // 30), d), auto, 0.3)
    add("transposed", lambda n, d: transposed(max(1, n // 30), d), auto, 0.3)
    add("wide", lambda n, d: zoo.plain(n, 21 if d < 3 else 9, d), engines, 0.03)
    add("tail", lambda n, d: zoo.residual(n, convs=1, ndim=d),
        {m: {"method": m, "tail": 1e-9} for m in ("direct", "factored")}, 0.4)  # fmt: skip
    add("float32", lambda n, d: zoo.plain(n, 3, d),
        {m: {"method": m, "dtype": "float32"} for m in ("direct", "factored")})  # fmt: skip
    add("channels", channels, auto, 0.05)
    for name, size in (("resnet50", 224), ("unet(4, 2)", 256), ("densenet121", 224),
                       ("inception_v3", 299), ("mobilenet_v2", 224), ("vgg16", 224)):  # fmt: skip
        for given in (None, size, 3 * size):
            found[f"{name} {given}"] = (zoo.get(name), {"input_size": given})
    return found


def measure(name: str, network: rf.Network, options: dict[str, Any]) -> dict[str, Any] | None:
    """Promise and deed of one field; None where no engine serves it or it takes too long."""
    options = options | {"workers": 1, "memory_limit": 6 << 30, "ignore_global": True}
    try:
        plan = rf.plan(network, **options)
        if plan.seconds > PATIENCE:
            return None
        _ = rf.erf(network, **options).image
    except FastrfError:
        return None
    times = []
    while len(times) < 3 or (sum(times) < 0.2 and len(times) < 20):
        start = time.process_time()
        _ = rf.erf(network, **options).image
        times.append(time.process_time() - start)
        if times[-1] > 4 * PATIENCE:
            break
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    field = rf.erf(network, **options)
    _ = field.image
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {
        "case": name,
        "engine": field.plan.engine,
        "forecast": field.plan.seconds,
        "seconds": sorted(times)[len(times) // 2],
        "plan": field.plan.memory,
        "peak": peak - before,
    }


def kept(row: dict[str, Any]) -> tuple[bool, bool]:
    """Whether time and memory are what was promised."""
    took, said = row["seconds"], row["forecast"]
    in_time = max(took, said) < NOTICED or 1 / SPREAD <= said / took <= SPREAD
    in_memory = max(row["peak"], row["plan"]) < LEAST or (
        1 / CLOSE <= row["plan"] / row["peak"] <= CLOSE
    )
    return in_time, in_memory


def show(rows: list[dict[str, Any]], everything: bool = False) -> str:
    """The broken promises, or all rows, as Markdown, with the shares of those that are kept."""
    lines = []
    for row in rows:
        in_time, in_memory = kept(row)
        if everything or not (in_time and in_memory):
            times = [duration(row["forecast"]), duration(row["seconds"])]
            ratio = f"{row['forecast'] / row['seconds']:.2f}{'' if in_time else ' !'}"
            sizes = [f"{row[k] / 2**20:.1f}" for k in ("plan", "peak")]
            own = f"{row['plan'] / row['peak']:.2f}{'' if in_memory else ' !'}"
            lines.append([row["case"], row["engine"], *times, ratio, *sizes, own])
    header = ["case", "engine", "plan", "took", "ratio", "plan, MiB", "peak, MiB", "ratio"]
    shares = [sum(k) / len(rows) for k in zip(*map(kept, rows), strict=True)]
    said = f"{len(rows)} fields: time as promised {shares[0]:.1%}, memory {shares[1]:.1%}"
    return f"{table(header, lines)}\n\n{said}"


def main(names: list[str]) -> None:
    chosen = {
        name: field
        for name, field in fields().items()
        if not names or any(part in name for part in names)
    }
    rows = []
    for name, field in chosen.items():
        row = measure(name, *field)
        if row is not None:
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    print(show(rows, everything=bool(names)))
    if not names:
        write("limits", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
