"""What a plan promises, against the clock and against what is allocated: time and peak memory.

    OPENBLAS_NUM_THREADS=1 python -m bench.limits [NAME ...]

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
from fastrf.engine.plan import MEMORY_FLOOR
from fastrf.errors import FastrfError

SPREAD, NOTICED = 3.0, 3e-4
CLOSE, LEAST = 1.1, MEMORY_FLOOR
PATIENCE = 0.5
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
    return rf.Sequential(*[ring_of(ndim, k)] * count, ndim=ndim)


def ring_of(ndim: int, k: int = 5, stride: int = 1, dilation: int = 1) -> rf.Conv:
    import numpy as np

    at = np.indices((k,) * ndim) - k // 2
    return conv(k, stride, dilation, taps=((at**2).sum(0) + 1).tolist())


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


S = rf.Sequential


def others() -> dict[str, tuple[rf.Network, Any]]:
    """Networks of every kind that is not there in all sizes: by name, with the sizes of images."""
    down = [conv(3, 2), conv()]
    return {
        "3-D ring, few taps": (S(*[ring_of(3, 3)] * 20, ndim=3), 40),
        "3-D ring, many taps": (S(*[ring_of(3, 7)] * 6, ndim=3), 30),
        "3-D ring, strides": (S(*[*[ring_of(3, 3)] * 3, ring_of(3, 3, 2)] * 2, ndim=3), 64),
        "3-D ring, holes": (S(*[ring_of(3, 3, 1, 1 + i % 3) for i in range(9)], ndim=3), 48),
        "3-D strides": (S(*[*[conv()] * 4, conv(3, 2)] * 2, *[conv(5)] * 3, ndim=3), 80),
        "ring, holes": (S(*[ring_of(2, 5, 1, 1 + i % 3) for i in range(20)]), (301, 77)),
        "ring, mixed": (S(*[ring_of(2, k) for k in (3, 5, 7)] * 15), (131, 257)),
        "ring, wide": (S(*[ring_of(2, 41)] * 4), 300),
        "wide, mixed": (S(*[conv(k) for k in (31, 51, 13)] * 4), (501, 333)),
        "wide blocks": (S(*[rf.Residual(conv(k)) for k in (31, 51, 13, 101)]), 400),
        "distinct kernels": (S(*[rf.Residual(conv(k)) for k in (3, 5, 7, 9, 11)] * 3), 200),
        "distinct holes": (S(*[rf.Residual(conv(3, 1, d)) for d in (1, 2, 3, 4)] * 5), 160),
        "distinct kernels, 3-D": (S(*[rf.Residual(conv(k)) for k in (3, 5, 7)] * 2, ndim=3), 40),
        "line, strides": (S(*[rf.Conv(4, stride=4)] * 9, ndim=1), None),
        "line, wide strides": (S(*[rf.Conv(64, stride=64)] * 3, ndim=1), None),
        "line, holes": (S(*[conv(3, 1, 2**i) for i in range(17)], ndim=1), 99_999),
        "line, residual holes": (
            S(*[rf.Residual(conv(3, 1, 2 ** (i % 10))) for i in range(60)], ndim=1), 16_000),
        "line, widest": (S(*[conv(100_001)] * 2, ndim=1), 300_000),
        "line, unequal": (S(*[conv(31, taps=list(range(1, 32)))] * 300, ndim=1), 50_000),
        "down and up": (S(*down * 3, *[rf.ConvTranspose(4, 2, 1), conv()] * 3), (401, 275)),
    }  # fmt: skip


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
    add("pools", pools, auto, 0.02)
    add("decoder", lambda n, d: decoder(max(1, n // 30), d), auto, 0.3)
    add("transposed", lambda n, d: transposed(max(1, n // 30), d), auto, 0.3)
    add("wide", lambda n, d: zoo.plain(n, 21 if d < 3 else 9, d), engines, 0.03)
    add("tail", lambda n, d: zoo.residual(n, convs=1, ndim=d),
        {m: {"method": m, "tail": 1e-9} for m in ("direct", "factored")}, 0.4)  # fmt: skip
    add("float32", lambda n, d: zoo.plain(n, 3, d),
        {m: {"method": m, "dtype": "float32"} for m in ("direct", "factored")})  # fmt: skip
    add("channels", channels, auto, 0.05)
    for name, (network, size) in others().items():
        for method in ("auto", *engines):
            for kind in ("float64", "float32") if method == "auto" else ("float64",):
                for given in (None, size) if size else (None,):
                    where = "unbounded" if given is None else "clipped"
                    options = {"method": method, "dtype": kind, "input_size": given}
                    found[f"other: {name}, {method}, {kind}, {where}"] = (network, options)
    for name, size in (
        ("unet(5, 3)", 572),
        ("resnet18", 1024),
        ("darknet53", 416),
        ("cifar_resnet(9)", 96),
    ):
        found[f"other: {name} {size}"] = (zoo.get(name), {"input_size": size})
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
    while len(times) < 3 or (sum(times) < 0.1 and len(times) < 9):
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
