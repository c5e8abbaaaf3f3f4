"""A sweep of 100,000 chains: rate, parallel efficiency, memory over time, and PyTorch beside it.

    python -m bench.bench_sweep                    # all of it, recorded
    python -m bench.bench_sweep --points 5000      # a smaller one, printed only
    python -m bench.bench_sweep --no-peer          # without PyTorch, printed only

2-D, float64, all figures of the table; depth 1 to 100, kernel 3 to 31, dilations, strides: a Latin
hypercube, so that hardly two chains begin alike. ``one core`` computes everything in one process;
``one`` and ``two`` have so many worker processes beside the coordinator. Rates count from the call
to its return, processes started and rows committed. Processor times say more than seconds where the
machine does other things: ``coordinator`` is that of the process that writes, ``workers`` that of
the others, their start included. Two cores cannot take less than half of both together, nor less
than the coordinator does.

What was tried: workers that get points, and packs that travel both ways unpacked, cost the
coordinator 51 µs a point where places and sealed packs cost 34 (a busy machine, 20,000 points); one
transaction a task of some hundred points 25 µs, of 4,096 in the order of their keys 19. What is
left beside the work is the start of workers, 1.1 s of processor time each: 0.3 s fastrf, 0.8 s
Numba, half of which is its own first look at NumPy and SciPy.

The peer is the gradient of one unit through the same layers (one channel, float64, as many threads
as there are cores), of a sample of the same chains: the image alone, without any figure. Chains
whose image is larger than `MOST_SIDE` a side are left out of it, as they take minutes each; they
are the slowest, so that the peer's mean is too low.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

import fastrf as rf
from bench import record
from fastrf.sweep.space import Space

MOST_SIDE = 1200
SAMPLE = 12
PATIENCE = 240.0
"""Seconds after which no further chain of the sample is begun."""


def space(points: int) -> Space:
    """Chains that differ in everything."""
    return Space(
        {
            "name": "chains",
            "ndim": 2,
            "seed": 1,
            "sample": {"count": points, "method": "latin"},
            "parameters": {
                "depth": {"from": 1, "to": 100},
                "kernel": {"from": 3, "to": 31},
                "rate": [1, 2],
                "strides": [0, 1, 2],
                "every": {"from": 2, "to": 50},
                "dilation": "rate if i % 2 else 1",
                "stride": "2 if i % every == every - 1 and i < strides * every else 1",
            },
        }
    )


def _resident() -> float:
    """Memory of this process in MiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def _sweep(points: int, workers: int, path: str, sender: Any) -> None:
    """One sweep, in a process of its own; sends seconds, rows and the memory over time."""
    memory: list[float] = []
    done = threading.Event()

    def watch() -> None:
        while not done.wait(0.25):
            memory.append(round(_resident(), 1))

    chains = space(points)
    rf.sweep(list(chains)[:3], path + "-warm", workers=0, progress=False).close()
    watcher = threading.Thread(target=watch)
    watcher.start()
    start, own = time.perf_counter(), time.process_time()
    with rf.sweep(chains, path, workers=workers) as store:
        seconds, own = time.perf_counter() - start, time.process_time() - own
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        rows = len(store)
        ((results, failed),) = store.rows("SELECT COUNT(*), COUNT(error) FROM results")
    done.set()
    watcher.join()
    sender.send((seconds, own, children[0] + children[1], rows, results, failed, memory))


def swept(points: int, workers: int) -> dict[str, Any]:
    """The figures of one sweep into a fresh store."""
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        receiver, sender = context.Pipe(duplex=False)
        path = str(Path(folder) / "sweep.db")
        process = context.Process(target=_sweep, args=(points, workers, path, sender))
        process.start()
        seconds, own, children, rows, results, failed, memory = receiver.recv()
        process.join()
        size = Path(path).stat().st_size
    tenths = [max(part, default=0.0) for part in np.array_split(memory, 10)]
    return {
        "seconds": seconds,
        "coordinator_cpu_seconds": own,
        "workers_cpu_seconds": children,
        "coordinator_cpu_us_per_point": own / points * 1e6,
        "rows": rows,
        "distinct": results,
        "errors": failed,
        "per_second": points / seconds,
        "distinct_per_second": results / seconds,
        "coordinator_mib_by_tenths": [float(m) for m in tenths],
        "store_mib": size / 2**20,
    }


def autograd(points: int) -> dict[str, Any]:
    """Seconds that PyTorch takes for the gradient of a unit, of a sample of the chains."""
    import torch

    chains = list(space(points))
    random.Random(7).shuffle(chains)
    seconds, left_out, begun = [], 0, time.perf_counter()
    for point in chains[: SAMPLE * 4]:
        if len(seconds) == SAMPLE or time.perf_counter() - begun > PATIENCE:
            break
        net = point.network()
        (side, _) = rf.receptive_field(net).size
        if side > MOST_SIDE:
            left_out += 1
            continue
        axis = point.chain().axes[0]
        columns = (axis.kernel, axis.stride, axis.dilation)
        layers = list(zip(*(values.tolist() for values in columns), strict=True))
        weights = [torch.full((1, 1, k, k), 1 / k**2, dtype=torch.float64) for k, _, _ in layers]
        start = time.perf_counter()
        image = torch.zeros((1, 1, side, side), dtype=torch.float64, requires_grad=True)
        out = image
        for weight, (_, stride, dilation) in zip(weights, layers, strict=True):
            out = torch.nn.functional.conv2d(out, weight, stride=stride, dilation=dilation)
        out.sum().backward()
        seconds.append(time.perf_counter() - start)
        ours = rf.erf(net).image
        assert out.numel() == 1
        np.testing.assert_allclose(image.grad[0, 0].numpy(), ours, atol=1e-12 * ours.max())
        print(f"autograd: depth {len(layers)}, {side} × {side}: {seconds[-1]:.3g} s", flush=True)
    return {
        "chains": len(seconds),
        "left_out_as_too_large": left_out,
        "seconds_each": seconds,
        "per_second": len(seconds) / sum(seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--points", type=int, default=100_000)
    parser.add_argument("--no-peer", action="store_true")
    given = parser.parse_args()
    points = given.points
    found: dict[str, Any] = {"points": points}
    if not given.no_peer:
        found["peer"] = autograd(points)
    for name, workers in (("one core", 0), ("one", 1), ("two", 2)):
        found[name] = swept(points, workers)
        print(name, json.dumps(found[name]), flush=True)
    one_core, one, two = found["one core"], found["one"], found["two"]
    found["efficiency"] = one_core["seconds"] / two["seconds"] / 2
    found["efficiency_of_processes"] = one["seconds"] / two["seconds"] / 2
    # What two free cores would take, from processor times alone.
    cpu = [two["coordinator_cpu_seconds"], two["workers_cpu_seconds"]]
    best = max(cpu[0], sum(cpu) / 2)
    found["efficiency_by_cpu"] = one_core["coordinator_cpu_seconds"] / best / 2
    print(f"\n{points:,} chains: {two['per_second']:,.0f} a second on two processes,")
    print(f"{two['distinct_per_second']:,.0f} a second of those that differ;")
    print(f"efficiency {found['efficiency']:.0%} of one process without workers,")
    print(f"{found['efficiency_of_processes']:.0%} of one worker,")
    print(f"{found['efficiency_by_cpu']:.0%} by processor time;")
    print(f"the coordinator takes {two['coordinator_cpu_us_per_point']:.1f} µs a point")
    if "peer" in found:
        # The peer's chains are all different: only those of ours that are count here.
        found["ratio"] = two["distinct_per_second"] / found["peer"]["per_second"]
        print(f"{found['ratio']:,.0f} times autograd")
        if points == parser.get_default("points"):
            record.write("sweep", found)


if __name__ == "__main__":
    main()
