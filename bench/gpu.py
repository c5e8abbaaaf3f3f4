"""Everything that is to be measured on the day that a GPU is at hand, in one run of some minutes.

    python -m pip install -e '.[cuda12,test]'
    python -m bench.gpu [--seconds 840] [--no-tests]

Says what the device is, runs the tests marked `gpu`, then the rows below, each with the target of
the project. A row that fails says why, and the next one is made; rows for which no time is left
say so. Every row is printed as a line of JSON when it is made, so that a run that is cut off has
told what it knew, and all are written to ``results/gpu-DATE.json``.

Figures are medians of warm calls on arrays of the device, waited for; what the first call took
beyond that (compilation by NVRTC, planning) is `first_call_seconds`. Shares are of what this device
does in the same run: a copy, a fill, multiply-adds in registers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from fastrf.kernels import load

import fastrf as rf
from bench import record
from fastrf.benchmark import Sizes, benchmark
from fastrf.benchmark.machine import gpu_peak, waiting
from fastrf.device import Device, resolve
from fastrf.engine.factored import propagate_factored
from fastrf.lowering import lower
from fastrf.sweep.chain import Chain
from fastrf.sweep.figures import measured
from fastrf.sweep.packing import pack

DTYPES = ("float64", "float32")
TAPS = np.array([[2.0, 1.0, 3.0], [1.0, 5.0, 1.0], [2.0, 1.0, 4.0]]) / 20
"""Taps that are no product of two lines."""


@dataclass(frozen=True)
class Scale:
    """How large the rows are.

    Attributes:
        side, layers: of the dense image, and how many layers it goes through.
        plains: depths of `plain(depth, 3)`, with the seconds that are the target.
        factored: length of a factored image's axes, roughly.
        peer: side of the image that other libraries convolve.
        chains, depth: of the sweep.
        copied: bytes of the copy whose bandwidth is measured.
        budget: seconds for which warm calls of a row are repeated.
        cases: sizes of `fastrf bench`.
    """

    side: int = 8192
    layers: int = 96
    plains: Sequence[tuple[int, float]] = ((1000, 3e-3), (10_000, 1.5))
    factored: int = 20_000
    peer: int = 4096
    chains: int = 10_000
    depth: int = 100
    copied: int = 1 << 30
    budget: float = 0.5
    cases: Sizes = field(default_factory=Sizes)


class Lab:
    """A device, and how calls on it are timed."""

    def __init__(self, device: Device, scale: Scale) -> None:
        self.device, self.scale = device, scale
        self.xp, self.wait, self.kernels = device.xp, waiting(device), load(device.name)

    def made(self, row: Callable[[Lab], Figures]) -> Figures:
        """A row's figures; the memory that the one before it took is given back."""
        with self.device.current():
            self.xp.get_default_memory_pool().free_all_blocks()
        return row(self)

    def timed(self, call: Callable[[], Any]) -> dict[str, float]:
        """Seconds of a first call, and of warm ones."""

        def waited() -> None:
            with self.device.current():
                call()
            self.wait()

        start = time.perf_counter()
        waited()
        first = time.perf_counter() - start
        return {
            "seconds": record.seconds(waited, self.scale.budget),
            "first_call_seconds": first,
        }

    def array(self, shape: Sequence[int], dtype: str) -> Any:
        with self.device.current():
            return self.xp.ones(tuple(shape), dtype)


Figures = dict[str, Any]
Row = tuple[str, Callable[[Lab], Figures]]


def against(figures: Figures, name: str, target: float, at_most: bool = False) -> Figures:
    """The figures, with a target for the one of that name, and whether it is reached."""
    found = figures[name]
    reached = found <= target if at_most else found >= target
    return figures | {"target": {name: target}, "target_over_found": target / found, "met": reached}


# --- rows -------------------------------------------------------------------------------------


def limits(lab: Lab) -> Figures:
    """What all else is measured by: copy and write bandwidth in bytes/s, multiply-adds/s."""
    source = lab.array((lab.scale.copied // 8,), "float64")
    target = lab.array(source.shape, "float64")

    def copy() -> None:
        target[...] = source

    return {
        "copy_bytes_per_second": 2 * source.nbytes / lab.timed(copy)["seconds"],
        "write_bytes_per_second": source.nbytes / lab.timed(lambda: target.fill(2.0))["seconds"],
        "multiply_adds_per_second": {
            name: gpu_peak(lab.device, np.dtype(name), 1) for name in DTYPES
        },
        "data_sheet_bytes_per_second": lab.device.bandwidth(),
    }


def dense(lab: Lab, dtype: str, general: bool) -> Figures:
    """Many layers of 3 × 3 taps a launch: cell updates per second. With equal taps, which are
    summed along one axis after the other, there are fewer multiply-adds than taps."""
    side, layers = lab.scale.side, lab.scale.layers
    y = lab.array((1, side, side), dtype)
    out = lab.array((1, side, side), dtype)
    taps = TAPS.astype(dtype)[None]
    lo = (0, layers, layers)

    def call() -> None:
        if general:
            lab.kernels.conv_run(y, lab.xp.asarray(taps), layers, lo, out)
        else:
            lab.kernels.box_run(y, (1, 3, 3), layers, lo, out)

    figures: Figures = lab.timed(call)
    updates = side * side * layers / figures["seconds"]
    figures["updates_per_second"] = updates
    if general:
        peak = gpu_peak(lab.device, np.dtype(dtype), 1)
        figures["share_of_multiply_adds"] = TAPS.size * updates / peak
    return against(figures, "updates_per_second", 1e12 if dtype == "float64" else 2e12)


def plain(lab: Lab, depth: int, target: float) -> Figures:
    """The field of a plain network, layer by layer, its image left on the device."""
    network = rf.zoo.get(f"plain({depth}, 3)")
    options = {"method": "direct", "device": lab.device.name}
    figures: Figures = lab.timed(lambda: rf.erf(network, **options).image)
    figures["pixels"] = int(rf.erf(network, **options).image.size)
    return against(figures, "seconds", target, at_most=True)


def factored(lab: Lab, dtype: str, blocks: bool) -> Figures:
    """Multiplying out a factored image, of one term or of a residual stack's: bytes per second
    over those of a fill."""
    length = lab.scale.factored
    network = rf.zoo.residual(length // 4) if blocks else rf.zoo.plain(length // 2, 3)
    graph = lower(network, None)
    node = graph.output_node(None)
    place = (graph, node, (0, 0), graph.input_node(None))
    with lab.device.current():
        image: Any = propagate_factored(*place, kernels=lab.kernels, dtype=dtype, xp=lab.xp).image
        out = lab.xp.empty(image.shape, dtype)
    figures: Figures = lab.timed(lambda: image.form(out))
    fill = lab.timed(lambda: out.fill(1))["seconds"]
    figures |= {"terms": image.rank, "bytes_per_second": out.nbytes / figures["seconds"]}
    return against(figures | {"share_of_fill": fill / figures["seconds"]}, "share_of_fill", 0.85)


def peer(lab: Lab, dtype: str, library: str) -> Figures:
    """A layer of 3 × 3 taps by another library, over ours, of which many layers are a launch."""
    side, layers = lab.scale.peer, 24
    y, out = (lab.array((1, side, side), dtype) for _ in range(2))
    with lab.device.current():
        taps = lab.xp.asarray(TAPS.astype(dtype))
    ours = lab.timed(lambda: lab.kernels.conv_run(y, taps[None], layers, (0, layers, layers), out))[
        "seconds"
    ]
    theirs = lab.timed(PEERS[library](lab, y[0], taps))["seconds"]
    figures = {"seconds": theirs, "ours": ours / layers, "times": theirs * layers / ours}
    return against(figures, "times", 10)


def _cupyx(lab: Lab, y: Any, taps: Any) -> Callable[[], Any]:
    from cupyx.scipy import ndimage

    return lambda: ndimage.convolve(y, taps, mode="constant")


def _cudnn(lab: Lab, y: Any, taps: Any) -> Callable[[], Any]:
    """PyTorch's convolution, which is cuDNN's on a GPU; it picks the quickest algorithm."""
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("PyTorch is installed without CUDA")
    torch.backends.cudnn.benchmark = True
    image, kernel = (torch.from_dlpack(a)[None, None] for a in (y, taps))

    def call() -> None:
        torch.nn.functional.conv2d(image, kernel, padding=1)
        torch.cuda.synchronize()

    return call


PEERS = {"cupyx": _cupyx, "cuDNN": _cudnn}


def sweep(lab: Lab, dtype: str) -> Figures:
    """All figures of random chains of 2-D convolutions, from the host's arrays to the host's."""
    rng = np.random.default_rng(0)
    chains = []
    for _ in range(lab.scale.chains):
        kernels = rng.choice([1, 3, 3, 3, 5], lab.scale.depth).tolist()
        convs = [rf.Conv(k, padding=k // 2) for k in kernels]
        chain = Chain.of(rf.Sequential(*convs, ndim=2))
        assert chain is not None  # convolutions alone
        chains.append((chain, None, None))
    packed = pack(chains, 2)

    def call() -> None:
        for _ in measured(packed, lab.device, np.dtype(dtype)):
            pass

    figures: Figures = lab.timed(call)
    figures["chains_per_second"] = len(packed) / figures["seconds"]
    return against(figures, "seconds", 1.0, at_most=True)


def cases(lab: Lab) -> Figures:
    """`fastrf bench`: CPU against GPU, with and without transfers, and whether they agree."""
    return benchmark(sizes=lab.scale.cases, device="auto").to_dict()


def rows_of(scale: Scale) -> Iterator[Row]:
    """Every row by its name, those of the targets first."""
    yield "limits", limits
    for dtype in DTYPES:
        for general, taps in ((True, "general"), (False, "equal")):
            name = f"dense, {taps} taps, {scale.side}², {dtype}"
            yield name, lambda lab, d=dtype, g=general: dense(lab, d, g)
    for depth, target in scale.plains:
        yield f"plain({depth}, 3), layer by layer", lambda lab, n=depth, t=target: plain(lab, n, t)
    for dtype in DTYPES:
        for blocks, kind in ((False, "one term"), (True, "a residual stack")):
            name = f"factored image, {kind}, {dtype}"
            yield name, lambda lab, d=dtype, b=blocks: factored(lab, d, b)
        yield f"sweep, {dtype}", lambda lab, d=dtype: sweep(lab, d)
        for library in PEERS:
            yield f"{library} a layer, {dtype}", lambda lab, d=dtype, p=library: peer(lab, d, p)
    yield "fastrf bench", cases


# --- the run ----------------------------------------------------------------------------------


def described(device: Device) -> Figures:
    """The device, its driver and the libraries."""
    runtime = device.xp.cuda.runtime
    told = runtime.getDeviceProperties(int(device.name.partition(":")[2]))
    kept = ("name", "major", "minor", "multiProcessorCount", "clockRate", "totalGlobalMem")
    facts = {name: told[name] for name in kept if name in told}
    return {
        "device": {n: v.decode() if isinstance(v, bytes) else int(v) for n, v in facts.items()},
        "driver": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(),
        "cupy": device.xp.__version__,
    }


def tests(seconds: float) -> Figures:
    """The tests that are marked `gpu`; what pytest says at the end."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "gpu", "tests"]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=seconds,
            cwd=record.RESULTS.parents[1],
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"not done after {seconds:.0f} s"}
    lines = (done.stdout + done.stderr).strip().splitlines()
    took = time.perf_counter() - start
    return {"seconds": took, "met": done.returncode == 0, "said": lines[-30:]}


def run(
    device: Device, scale: Scale, seconds: float, with_tests: bool = True, names: str = ""
) -> list[Figures]:
    """Makes all rows whose name contains `names`, as long as there is time."""
    end = time.monotonic() + seconds
    made: list[Figures] = []

    def make(name: str, figures: Callable[[], Figures]) -> None:
        if time.monotonic() > end:
            found: Figures = {"failed": "no time was left"}
        else:
            try:
                found = figures()
            except Exception as error:  # the next row may work
                found = {"failed": f"{type(error).__name__}: {error}"}
        made.append({"row": name} | found)
        print(json.dumps(made[-1]), flush=True)

    lab = Lab(device, scale)
    make("device", lambda: described(device))
    if with_tests:
        make("tests", lambda: tests(seconds / 3))
    for name, row in rows_of(scale):
        if names in name:
            make(name, lambda row=row: lab.made(row))
    return made


def main(arguments: Sequence[str] | None = None) -> Path:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=840, help="for the whole run")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--rows", default="", help="only those with this in their names")
    given = parser.parse_args(arguments)
    device = resolve(given.device)
    rows = run(device, Scale(), given.seconds, not given.no_tests, given.rows)
    return record.write("gpu", rows)


if __name__ == "__main__":
    main()
