"""Everything that is to be measured on the day that a GPU is at hand, in one run of some minutes.

    python -m pip install -e '.[cuda13,test]'     # with a driver for CUDA 12: cuda12
    python -m bench.gpu [--seconds 480] [--out FOLDER] [--rows PART]

On a machine that reaches no registry but has NumPy, Numba, SciPy, CuPy and pytest, the first line
is ``ln -sfn ../kernels fastrf/kernels``.

Says what the device is, runs the tests marked `gpu`, then the rows below, each with the target of
the project, and the tests of kernels once more under compute-sanitizer where it is installed. What
is timed is held against the CPU's result, at least in part; where it is wrong, no time is given.

Rows are made in a process of their own (`bench.supervised`): one that fails, hangs or takes the GPU
along says so, and the next one is made; rows for which no time is left say so. Every row is printed
as a line of JSON when it is made, and ``gpu-DATE.json`` is then written anew, so that a run that is
cut off has kept what it knew. What tests print goes to files beside it.

Figures are medians of warm calls on arrays of the device, waited for; what the first call took
beyond that (compilation by NVRTC, planning) is `first_call_seconds`. Shares are of what this device
does in the same run: a copy, a fill, multiply-adds in registers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from fastrf.kernels import KERNELS, load

import fastrf as rf
from bench import record
from bench.supervised import Row, supervised, told
from fastrf.arrays import on_host
from fastrf.benchmark import Sizes
from fastrf.benchmark.cases import cases_of
from fastrf.benchmark.machine import gpu_peak, waiting
from fastrf.benchmark.measuring import Run, errors_of
from fastrf.check import rounding_steps
from fastrf.device import HOST, Device, resolve
from fastrf.engine import ENGINES
from fastrf.engine.factored import propagate_factored
from fastrf.engine.recompressed import Recompressed, recompress
from fastrf.lowering import lower
from fastrf.sweep.chain import Chain, ChainAxis
from fastrf.sweep.figures import measured
from fastrf.sweep.packing import pack

ROOT = Path(__file__).resolve().parents[1]
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
        reduced: by the number of axes, residual blocks of kernels 3 and 5 in turn, and a side.
        decomposed: pixels and columns of a factor that is decomposed.
        peer: side of the image that other libraries convolve.
        chains, depth: of the sweep.
        copied: bytes of the copy whose bandwidth is measured.
        budget: seconds for which warm calls of a row are repeated.
        window: side of the parts of an image that are held against the CPU's, and how many chains.
        cases: sizes of `fastrf bench`.
    """

    side: int = 8192
    layers: int = 96
    plains: Sequence[tuple[int, float]] = ((1000, 3e-3), (10_000, 1.5))
    factored: int = 20_000
    reduced: Mapping[int, tuple[int, int]] = field(
        default_factory=lambda: {2: (50, 768), 3: (60, 200)}
    )
    decomposed: tuple[int, int] = (768, 128)
    peer: int = 4096
    chains: int = 10_000
    depth: int = 100
    copied: int = 1 << 30
    budget: float = 0.5
    window: int = 64
    cases: Sizes = field(default_factory=Sizes)


class Lab:
    """A device, how calls on it are timed, and where tests leave what they print."""

    def __init__(self, device: Device, scale: Scale, folder: Path) -> None:
        self.device, self.scale, self.folder = device, scale, folder
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

    def picture(self, side: int, dtype: str, unit: float) -> tuple[np.ndarray, np.ndarray, Any]:
        """A square image y[i, j] = unit·(1 + a[i]·b[j]), like no mirror image of itself: a, b and,
        on the device, y."""
        rng = np.random.default_rng(0)
        a, b = rng.random((2, side)).astype(dtype)
        with self.device.current():
            rows, columns = (self.xp.asarray(v) for v in (a, b))
            y = rows[:, None] * columns
            y += 1
            y *= np.dtype(dtype).type(unit)
        return a, b, y[None]


Figures = dict[str, Any]
Rows = dict[str, Callable[[Lab], Figures]]


class WrongResult(AssertionError):
    """What was computed is not what the CPU computes: its time says nothing."""


def against(figures: Figures, name: str, target: float, at_most: bool = False) -> Figures:
    """The figures, with a target for the one of that name, and whether it is reached."""
    found = figures[name]
    reached = found <= target if at_most else found >= target
    return figures | {"target": {name: target}, "target_over_found": target / found, "met": reached}


def within(error: float, bound: float) -> Figures:
    """The error of what is timed, and its bound; WrongResult where it is not kept."""
    if not error <= bound:  # a NaN is not, either
        raise WrongResult(f"an error of {error:.3g}, where {bound:.3g} is the bound")
    return {"error": error, "error_bound": bound}


def agreement(expected: np.ndarray, found: np.ndarray, bound: float) -> Figures:
    """`within` of the largest difference relative to a pixel."""
    expected, found = (np.asarray(a, np.float64) for a in (expected, found))
    scale = np.where(expected > 0, expected, 1)
    return within(float((np.abs(found - expected) / scale).max()), bound)


# --- rows -------------------------------------------------------------------------------------


def described(lab: Lab) -> Figures:
    """The device, its driver and the libraries."""
    runtime = lab.xp.cuda.runtime
    known = runtime.getDeviceProperties(int(lab.device.name.partition(":")[2]))
    kept = ("name", "major", "minor", "multiProcessorCount", "clockRate", "totalGlobalMem")
    facts = {name: known[name] for name in kept if name in known}
    return {
        "device": {n: v.decode() if isinstance(v, bytes) else int(v) for n, v in facts.items()},
        "driver": runtime.driverGetVersion(),
        "runtime": runtime.runtimeGetVersion(),
        "cupy": lab.xp.__version__,
    }


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
    side, layers, unit = lab.scale.side, lab.scale.layers, 1.0
    if not general:
        # A layer makes pixels nine times as large: 64 of them are what float32 holds.
        layers, unit = min(layers, 64), 2.0**-100
    a, b, y = lab.picture(side, dtype, unit)
    out = lab.array((1, side, side), dtype)
    taps = TAPS.astype(dtype)[None]
    what: Any = taps if general else (1, 3, 3)
    name = "conv_run" if general else "box_run"

    def call() -> None:
        given = lab.xp.asarray(taps) if general else what
        getattr(lab.kernels, name)(y, given, layers, (0, layers, layers), out)

    figures: Figures = {"layers": layers} | lab.timed(call)
    terms = layers * TAPS.size if general else 1 + layers * 4
    bound = 2 * KERNELS[name].tolerance(np.dtype(dtype), terms)
    own = getattr(load("cpu"), name)
    worst = 0.0
    size = min(lab.scale.window, side)
    # A corner, the middle, and the corner across.
    for first in (0, (side - size) // 2, side - size):
        begin, end = max(0, first - layers), min(side, first + size + layers)
        part = (np.multiply.outer(a[begin:end], b[begin:end]) + np.dtype(dtype).type(1))[None]
        part *= np.dtype(dtype).type(unit)
        lo = first + layers - begin
        expected = np.empty((1, size, size), dtype)
        own(part, what, layers, (0, lo, lo), expected)
        some = slice(first, first + size)
        with lab.device.current():
            found = on_host(out[:, some, some])
        worst = max(worst, agreement(expected, found, bound)["error"])
    figures |= within(worst, bound)
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
    field, expected = rf.erf(network, **options), rf.erf(network, device="cpu")
    graph = lower(network, None)
    steps = rounding_steps(graph.between(graph.output_node(None), graph.input_node(None)))
    pictures = [[(on_host(f.image), f.origin)] for f in (expected, field)]
    figures |= within(errors_of(*pictures)[0], 4 * steps * float(np.finfo(np.float64).eps))
    figures["pixels"] = int(field.image.size)
    return against(figures, "seconds", target, at_most=True)


MOST_BLOCKS = 4000
"""Of a residual stack whose terms, one a block, are not reduced on the way."""


def factored(lab: Lab, dtype: str, blocks: bool) -> Figures:
    """Multiplying out a factored image, of one term or of a residual stack's: bytes per second
    over those of a fill."""
    length = lab.scale.factored
    depth = min(length // 4, MOST_BLOCKS)
    network = rf.zoo.residual(depth) if blocks else rf.zoo.plain(length // 2, 3)
    graph = lower(network, None)
    node = graph.output_node(None)
    place = (graph, node, (0, 0), graph.input_node(None))
    if (why_not := ENGINES["factored"].refuses(*place, 1e-12)) is not None:
        raise ValueError(f"no case for this engine: {why_not}")
    with lab.device.current():
        image: Any = propagate_factored(*place, kernels=lab.kernels, dtype=dtype, xp=lab.xp).image
        out = lab.xp.empty(image.shape, dtype)
    figures: Figures = lab.timed(lambda: image.form(out))
    own: Any = propagate_factored(*place, kernels=load("cpu"), dtype=dtype).image
    box = [(n // 2, min(n, n // 2 + lab.scale.window)) for n in own.shape]
    if own.shape != image.shape:
        raise WrongResult(f"an image of {image.shape}, where the CPU has {own.shape}")
    with lab.device.current():
        found = on_host(out[tuple(slice(*ends) for ends in box)])
    steps = rounding_steps(graph.between(node, place[-1]))
    figures |= agreement(own.window(box), found, 4 * steps * float(np.finfo(dtype).eps))
    fill = lab.timed(lambda: out.fill(1))["seconds"]
    figures |= {"terms": image.rank, "bytes_per_second": out.nbytes / figures["seconds"]}
    return against(figures | {"share_of_fill": fill / figures["seconds"]}, "share_of_fill", 0.85)


def reduced(lab: Lab, dtype: str, ndim: int) -> Figures:
    """A field of many terms that are reduced on the way, from the graph to pixels on the device,
    and how many times as long the CPU takes."""
    blocks, side = lab.scale.reduced[ndim]
    layers = [rf.Residual(rf.Conv(3 + 2 * (i % 2), padding="same")) for i in range(blocks)]
    graph = lower(rf.Sequential(*layers, ndim=ndim), side)
    node = graph.output_node(None)
    place = (graph, node, graph.unit_index(node, "center"), graph.input_node(None))
    options: dict[str, Any] = {"dtype": dtype, "tol": 1e-10}

    def run(xp: Any) -> tuple[Recompressed, Any]:
        found = recompress(*place, **options, xp=xp)
        return found, found.propagated.pixels()

    own, expected = run(np)
    figures: Figures = lab.timed(lambda: run(lab.xp))
    with lab.device.current():
        found, image = run(lab.xp)
        picture = on_host(image)
    pictures = [
        [(pixels, result.propagated.origin)]
        for result, pixels in ((own, expected), (found, picture))
    ]
    bound = own.bound + found.bound + 2 * float(np.finfo(dtype).eps)
    figures |= within(errors_of(*pictures)[1], bound)
    figures |= {"reductions": found.reductions, "rank": found.rank}
    figures["cpu_seconds"] = record.seconds(lambda: run(np), lab.scale.budget)
    return figures | {"times": figures["cpu_seconds"] / figures["seconds"]}


def decompositions(lab: Lab) -> Figures:
    """cuSOLVER's on what reductions ask for, a factor and a core of its columns, which the
    forecast counts in launches; and how many times as long LAPACK takes."""
    matrix = np.random.default_rng(0).standard_normal(lab.scale.decomposed)
    core = matrix[: matrix.shape[1]].copy()
    figures: Figures = {}
    for name, held in (("qr", matrix), ("svd", core)):
        with lab.device.current():
            there = lab.xp.asarray(held)
        options = {"full_matrices": False} if name == "svd" else {}
        device, host = (getattr(x.linalg, name) for x in (lab.xp, np))
        with lab.device.current():
            parts = [on_host(part) for part in device(there, **options)]
        again = parts[0] @ parts[1] if name == "qr" else (parts[0] * parts[1]) @ parts[2]
        # Backward error: some roundings a column (Higham 2002, theorem 19.4).
        off = float(np.linalg.norm(again - held) / np.linalg.norm(held))
        within(off, 10 * held.shape[1] * float(np.finfo(np.float64).eps))
        took = lab.timed(lambda call=device, a=there, o=options: call(a, **o))["seconds"]
        own = record.seconds(lambda call=host, a=held, o=options: call(a, **o), lab.scale.budget)
        figures |= {f"{name}_seconds": took, f"{name}_error": off, f"{name}_times": own / took}
    return figures


def peer(lab: Lab, dtype: str, library: str) -> Figures:
    """A layer of 3 × 3 taps by another library, over ours, of which many layers are a launch."""
    side, layers = lab.scale.peer, 24
    *_, y = lab.picture(side, dtype, 1.0)
    out = lab.array((1, side, side), dtype)
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
    """PyTorch's convolution, which is cuDNN's on a GPU; it picks the quickest algorithm that has
    all digits."""
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("PyTorch is installed without CUDA")
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    image, kernel = (torch.from_dlpack(a)[None, None] for a in (y, taps))

    def call() -> None:
        torch.nn.functional.conv2d(image, kernel, padding=1)
        torch.cuda.synchronize()

    return call


PEERS = {"cupyx": _cupyx, "cuDNN": _cudnn}


def sweep(lab: Lab, dtype: str) -> Figures:
    """All figures of random chains of 2-D convolutions, from the host's arrays to the host's."""
    rng = np.random.default_rng(0)
    one, chains = np.ones(lab.scale.depth, np.int64), []
    # As arrays: a million layers as objects would take a minute.
    for kernel in rng.choice([1, 3, 3, 3, 5], (lab.scale.chains, lab.scale.depth)):
        axis = ChainAxis(kernel, one, one, kernel // 2, kernel // 2)
        chains.append((Chain((axis, axis), np.ones(lab.scale.depth)), None, None))
    packed, few = pack(chains, 2), pack(chains[: lab.scale.window], 2)

    def widths(device: Device) -> np.ndarray:
        """Standard deviations of some of the chains."""
        found = np.full(len(few), np.nan)
        for part in measured(few, device, np.dtype(dtype)):
            found[part.chains] = part.figures["std_0"]
        return found

    def call() -> None:
        for _ in measured(packed, lab.device, np.dtype(dtype)):
            pass

    figures: Figures = lab.timed(call)
    # Depth, taps and pixels of the longest line, as in tests/test_sweep_figures.py.
    bound = 1e4 * float(np.finfo(dtype).eps)
    figures |= agreement(widths(HOST), widths(lab.device), bound)
    figures["chains_per_second"] = len(packed) / figures["seconds"]
    return against(figures, "seconds", 1.0, at_most=True)


def case(lab: Lab, number: int) -> Figures:
    """One case of `fastrf bench`: CPU against GPU, with and without transfers, and whether they
    agree."""
    sizes = lab.scale.cases
    run, what = Run(sizes, None), cases_of(sizes)[number]
    made = [
        measurement
        for device in (HOST, lab.device)
        for dtype in DTYPES
        for measurement in run.measure(what, device, dtype)
    ]
    ok = all(m.ok is not False for m in made)
    return {"what": what.description, "ok": ok, "measurements": [asdict(m) for m in made]}


def tests(lab: Lab, name: str, command: Sequence[str]) -> Figures:
    """What a run of tests says at the end; all that it says is in a file of that name."""
    log = lab.folder / f"gpu-{name.replace(' ', '-')}.txt"
    start = time.perf_counter()
    stopped: Figures = {}
    code = None
    with log.open("w", encoding="utf-8") as file:
        try:
            done = subprocess.run(
                command,
                check=False,
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=LIMITS[name],
                cwd=ROOT,
            )
            code = done.returncode
        except subprocess.TimeoutExpired as late:
            stopped = {"stopped": f"not done after {late.timeout:.0f} s"}
    took = time.perf_counter() - start
    lines = log.read_text("utf-8", errors="replace").strip().splitlines()
    # Where all are skipped, there is no error, either.
    met = code == 0 and any(" passed" in line for line in lines[-5:])
    return {"seconds": took, "met": met} | stopped | {"said": lines[-30:]}


def test_command(*paths: str) -> list[str]:
    """Runs the tests marked `gpu` of some files, all of them, whatever warns or cannot be
    imported, side by side where that is possible."""
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "--tb=short", "-W", "default"]
    command += ["--continue-on-collection-errors", "--maxfail=50", *paths]
    if find_spec("xdist") is not None:
        command += ["-n", str(max(1, min(8, (os.cpu_count() or 1) // 2)))]
    return command


def other_tests() -> list[str]:
    """Where tests marked `gpu` are, those of kernels aside."""
    elsewhere = [
        str(path.relative_to(ROOT))
        for path in sorted((ROOT / "tests").glob("test_*.py"))
        if "mark.gpu" in path.read_text("utf-8")
    ]
    return ["tests/cuda", f"--ignore={KERNEL_TESTS}", *elsewhere]


KERNEL_TESTS = "tests/cuda/test_cuda_kernels.py"


def sanitized(lab: Lab, tool: str) -> Figures:
    """The kernels' tests under a tool of compute-sanitizer."""
    program = shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )
    if program is None:
        return {"not_measured": "compute-sanitizer was not found"}
    inner = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-W", "default", KERNEL_TESTS]
    return tests(lab, tool, [program, "--tool", tool, "--error-exitcode", "9", *inner])


def rows_of(scale: Scale) -> Rows:
    """Every row by its name: whether kernels are right, the targets, and then all else."""
    rows: Rows = {"device": described}
    rows["kernel tests"] = lambda lab: tests(lab, "kernel tests", test_command(KERNEL_TESTS))
    rows["limits"] = limits
    for dtype in DTYPES:
        for general, taps in ((True, "general"), (False, "equal")):
            name = f"dense, {taps} taps, {scale.side}², {dtype}"
            rows[name] = lambda lab, d=dtype, g=general: dense(lab, d, g)
    for depth, target in scale.plains:
        name = f"plain({depth}, 3), layer by layer"
        rows[name] = lambda lab, n=depth, t=target: plain(lab, n, t)
    for dtype in DTYPES:
        for blocks, kind in ((False, "one term"), (True, "a residual stack")):
            name = f"factored image, {kind}, {dtype}"
            rows[name] = lambda lab, d=dtype, b=blocks: factored(lab, d, b)
        rows[f"sweep, {dtype}"] = lambda lab, d=dtype: sweep(lab, d)
        for ndim in scale.reduced:
            name = f"reduced terms, {ndim}-D, {dtype}"
            rows[name] = lambda lab, d=dtype, n=ndim: reduced(lab, d, n)
        for library in PEERS:
            rows[f"{library} a layer, {dtype}"] = lambda lab, d=dtype, p=library: peer(lab, d, p)
    rows["decompositions"] = decompositions
    rows["tests"] = lambda lab: tests(lab, "tests", test_command(*other_tests()))
    for number, what in enumerate(cases_of(scale.cases)):
        rows[f"fastrf bench: {what.name}"] = lambda lab, n=number: case(lab, n)
    for tool in ("memcheck", "racecheck"):
        rows[tool] = lambda lab, t=tool: sanitized(lab, t)
    return rows


LIMITS: Mapping[str, float] = {
    "kernel tests": 100.0,
    "tests": 160.0,
    "memcheck": 60.0,
    "racecheck": 60.0,
}
"""Seconds for rows that may take more than `LIMIT`,"""

LIMIT = 45.0
"""which is for a process that compiles for the CPU and the GPU, and measures one row,"""

BEGINNING = 15.0
"""and for one that begins with such a row, besides."""


# --- the run ----------------------------------------------------------------------------------


def made(lab: Lab, rows: Rows) -> Iterator[Row]:
    """Rows, until one fails: the device may be lost to this process then."""
    for name, row in rows.items():
        try:
            found = lab.made(row)
        except Exception as error:
            yield {"row": name, "failed": " ".join(f"{type(error).__name__}: {error}".split())}
            return
        yield {"row": name} | found


def work(device: str, names: Sequence[str], folder: Path) -> None:
    """Tells the rows of these names, in the process that makes them."""
    rows = rows_of(Scale())
    try:
        lab = Lab(resolve(device), Scale(), folder)
    except Exception as error:
        told([{"row": names[0], "failed": f"{type(error).__name__}: {error}"}])
        return
    told(made(lab, {name: rows[name] for name in names}))


def keep(rows: Iterator[Row], path: Path, document: dict[str, Any]) -> list[Row]:
    """Prints every row, and writes all that there are, as soon as it is made; where there is no
    device, the first is the last."""
    kept: list[Row] = []
    for row in rows:
        kept.append(row)
        print(json.dumps(row), flush=True)
        record.save(document | {"results": kept}, path)
        if row["row"] == "device" and "failed" in row:
            break
    return kept


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=480, help="for the whole run")
    parser.add_argument("--out", type=Path, default=record.RESULTS, help="folder of the record")
    parser.add_argument("--rows", default="", help="only those with this in their names")
    parser.add_argument("--work", nargs="+", metavar="ROW", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    given.out.mkdir(parents=True, exist_ok=True)
    if given.work:
        work(given.device, given.work, given.out)
        return 0
    names = [n for n in rows_of(Scale()) if n == "device" or given.rows in n]

    def start(left: Sequence[str]) -> list[str]:
        options = ["--device", given.device, "--out", str(given.out.resolve())]
        python = [sys.executable, "-u", "-X", "faulthandler"]
        return [*python, "-m", "bench.gpu", *options, "--work", *left]

    def limit(name: str) -> float:
        return BEGINNING + LIMITS.get(name, LIMIT)

    rows = supervised(names, start, limit, given.seconds)
    document = record.document("gpu", [])
    path = given.out / f"gpu-{document['date']}.json"
    kept = keep(rows, path, document)
    print(f"\nwritten to {path}")
    return int("failed" in kept[0])


if __name__ == "__main__":
    sys.exit(main())
