"""CPU against GPU against what users would use instead: the same cases, measured in one run.

Six cases: a large unbounded image, a residual stack, many units of a clipped image, dense layers of
general taps, a volume, and a sweep of chains. A measurement is the whole verb on a network that it
has seen before, with its pixels; what the first call takes beyond that (lowering, planning,
compiling or loading kernels) is apart. Every result is compared with the CPU's in float64.

The other libraries are used as one would at first: a convolution per layer, on an image that grows
with the layers, subnormal numbers flushed to zero.
"""

from __future__ import annotations

import os
import platform
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib import metadata
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrf import zoo
from fastrf.arrays import on_host
from fastrf.check import DTYPES, rounding_steps
from fastrf.device import Device, gpu_at_hand, resolve
from fastrf.engine.plan import Plan, checked_dtype
from fastrf.engine.threads import Threads
from fastrf.erf import ERF, erf
from fastrf.errors import PlanError
from fastrf.kernels import KERNELS
from fastrf.kernels import load as load_kernels
from fastrf.layers import Conv
from fastrf.lowering import lower
from fastrf.network import Network, Sequential

_CPU_COUNT, _GPU_COUNT = 3_000_000, 100_000
"""Multiply-adds of each number in a measurement of the arithmetic peak: about 10 ms."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the cases are, and how long they are measured.

    Attributes:
        plain, residual, stencil, volume: layers (or blocks) of the stacks.
        image: pixels along the clipped image.
        units: units of it along each axis.
        chains, depth: of the sweep.
        seconds: for which warm runs are repeated.
        patience: seconds after which another library is stopped.
    """

    plain: int = 1000
    residual: int = 1000
    stencil: int = 500
    volume: int = 60
    image: int = 224
    units: int = 7
    chains: int = 10_000
    depth: int = 100
    seconds: float = 0.3
    patience: float = 0.5


QUICK = Sizes(
    plain=200,
    residual=100,
    stencil=150,
    volume=24,
    units=2,
    chains=1000,
    seconds=0.1,
)
"""For a first look; the ratios to other libraries grow with the depth."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """One case, on one device, in one dtype, by fastrf or by another library.

    Attributes:
        case, device, dtype: what was measured; see `Benchmark.cases`.
        by: "fastrf", or another library and its function.
        engine: fastrf's.
        seconds: median of warm runs, results left on the device.
        seconds_with_transfer: the same with the results moved to the host; None on the CPU.
        first_call_seconds: of the first run in this process.
        updates: cell updates, one pixel of one layer each, that the plan counts at most: of
            factors, the pixels of their profiles and of the image that they form.
        updates_per_second: by `seconds`.
        copy_share: the time of a copy of the results on the device, over `seconds`.
        arithmetic_share: multiply-adds per second, over those that as many threads reach in
            registers; None where the engine's arithmetic is not known.
        relative_error, peak_error: largest difference to fastrf's float64 result on the CPU,
            relative to each pixel and to the peak. None for that result itself, and where it does
            not fit into memory.
        tolerance: bound of both errors, or of `peak_error` alone where the engine is right to a
            share of the peak. None for other libraries, and where there is no error.
        ok: whether it is kept; None where there is none.
        not_measured: why there are no figures.
        seconds_at_least: after which another library was stopped, if that is why.
    """

    case: str
    device: str
    dtype: str
    by: str
    engine: str | None = None
    seconds: float | None = None
    seconds_with_transfer: float | None = None
    first_call_seconds: float | None = None
    updates: int | None = None
    updates_per_second: float | None = None
    copy_share: float | None = None
    arithmetic_share: float | None = None
    relative_error: float | None = None
    peak_error: float | None = None
    tolerance: float | None = None
    ok: bool | None = None
    not_measured: str | None = None
    seconds_at_least: float | None = None


@dataclass(frozen=True)
class Benchmark:
    """All measurements of one run; true when all results agree.

    Attributes:
        machine: what figures depend on besides the code.
        sizes: of the cases.
        cases: what each case is, by name.
        measurements: in the order in which they were made.
    """

    machine: Mapping[str, Any]
    sizes: Sizes
    cases: Mapping[str, str]
    measurements: tuple[Measurement, ...]

    @cached_property
    def ok(self) -> bool:
        """Whether no result of fastrf is outside of its tolerance."""
        return all(m.ok is not False for m in self.measurements)

    def __bool__(self) -> bool:
        return self.ok

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the attributes' names."""
        return {
            "machine": dict(self.machine),
            "sizes": asdict(self.sizes),
            "cases": dict(self.cases),
            "ok": self.ok,
            "measurements": [asdict(m) for m in self.measurements],
        }


def benchmark(
    *,
    sizes: Sizes | None = None,
    device: str = "auto",
    dtype: str | None = None,
    workers: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> Benchmark:
    """Measures all cases.

    Args:
        sizes: how large they are; default: `Sizes()`. `QUICK` takes seconds.
        device: "cpu", "cuda" or "cuda:N"; "auto": the CPU and, where there is one, the GPU.
        dtype: "float64" or "float32"; default: both.
        workers: threads on the CPU; default: as many as pay.
        progress: called with the share of the measurements that are made.

    Raises:
        InputError: an argument has a value that does not exist.
        DeviceError: the device that was named cannot be used.
    """
    sizes = sizes or Sizes()
    dtypes = DTYPES if dtype is None else (checked_dtype(dtype).name,)
    found = [resolve(device)]
    missing = None
    if device == "auto":
        missing = gpu_at_hand()
        found = [resolve("cpu")] if missing else [resolve("cpu"), resolve("cuda")]
    cases = _cases(sizes)
    run = _Run(sizes, workers)
    made: list[Measurement] = []
    for number, case in enumerate(cases):
        for where in found:
            for name in dtypes:
                made.extend(run.measure(case, where, name))
        if missing is not None:
            made.extend(
                Measurement(case.name, "cuda", name, "fastrf", not_measured=missing)
                for name in dtypes
            )
        if progress is not None:
            progress((number + 1) / len(cases))
    described = {case.name: case.description for case in cases}
    return Benchmark(_machine(found, missing), sizes, described, tuple(made))


def _machine(devices: Sequence[Device], missing: str | None) -> dict[str, Any]:
    gpus = [d for d in devices if not d.is_host]
    return {
        "platform": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "gpu": _gpu_name(gpus[0]) if gpus else None,
        "no_gpu": missing,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in ("numpy", "numba", "scipy")},
    }


def _processor() -> str:
    """Its name, where the system says it."""
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _gpu_name(device: Device) -> str:
    properties = device.xp.cuda.runtime.getDeviceProperties(int(device.name.partition(":")[2]))
    return str(properties["name"].decode())


# --- cases ----------------------------------------------------------------------------------

Picture = tuple[NDArray[Any], tuple[int, ...]]
"""Pixels in the host's memory, and the index of the first one."""

Layers = Generator[None, None, list[Picture]]
"""Another library's work, part by part."""

Peer = Callable[[np.dtype[Any], str], Layers]
"""Its work in a dtype on "cpu" or "cuda"."""


class _Facts(NamedTuple):
    """What figures are worked out from, beside the time.

    Attributes:
        updates: cell updates.
        adds: multiply-adds of each; None: not known.
        threads: that shared them.
        size: bytes of the results.
        tolerance, relative: bound of their error, and whether it is relative to each pixel.
    """

    engine: str
    updates: int
    adds: float | None
    threads: int
    size: int
    tolerance: float
    relative: bool


class _Case(ABC):
    """Something to compute on any device."""

    name: str
    description: str
    peers: Mapping[str, Peer]

    @abstractmethod
    def call(self, device: Device, dtype: np.dtype[Any], workers: int | None) -> Callable[[], Any]:
        """What is timed; it leaves its result on the device and does not wait for it."""

    @abstractmethod
    def facts(self, result: Any) -> _Facts:
        """Of a result of `call`."""

    @abstractmethod
    def pictures(self, result: Any) -> list[Picture]:
        """A result's pixels, moved to the host."""


@dataclass(frozen=True)
class _Fields(_Case):
    """The fields of some units.

    Attributes:
        units: as `erf` takes them.
        options: further arguments of `erf`.
        adds: multiply-adds of a cell update of the direct engine: the taps, or, where all are
            equal and only added up, one less on each axis.
    """

    name: str
    description: str
    network: Network
    peers: Mapping[str, Peer]
    units: tuple[Any, ...] = ("center",)
    options: Mapping[str, Any] | None = None
    adds: int | None = None

    def call(self, device: Device, dtype: np.dtype[Any], workers: int | None) -> Callable[[], Any]:
        options: dict[str, Any] = {"device": device.name, "dtype": dtype.name, "workers": workers}
        options |= self.options or {}

        def fields() -> list[ERF]:
            found = [erf(self.network, unit=unit, **options) for unit in self.units]
            for field in found:
                _ = field.image  # multiplies factors out
            return found

        return fields

    def facts(self, result: list[ERF]) -> _Facts:
        plans = [field.plan for field in result if isinstance(field.plan, Plan)]
        plan = plans[0]
        graph = lower(self.network, (self.options or {}).get("input_size"))
        steps = rounding_steps(graph.between(plan.node, plan.input))
        image = result[0].image
        return _Facts(
            " and ".join(dict.fromkeys(plan.engine for plan in plans)),
            sum(plan.cells for plan in plans),
            self.adds if plan.engine == "direct" else None,
            plan.workers,
            sum(field.image.nbytes for field in result),
            # Two images of so many roundings, and what engines may be off by design.
            4 * steps * float(np.finfo(image.dtype).eps) + max(plan.tol or 0.0 for plan in plans),
            all(plan.accuracy == "relative" for plan in plans),
        )

    def pictures(self, result: list[ERF]) -> list[Picture]:
        return [(on_host(field.image), field.origin) for field in result]


class _Profiles(NamedTuple):
    """A sweep's result, on its device."""

    lost: Any
    exponents: Any
    out: Any
    threads: int


class _Chains(_Case):
    """A sweep: random chains of convolutions, the profile of each."""

    name = "sweep"

    def __init__(self, chains: int, depth: int) -> None:
        self.description = f"the profiles of {chains} random chains of {depth} layers"
        rng = np.random.default_rng(0)
        kernel = rng.choice([1, 3, 3, 5, 7], chains * depth)
        dilation = rng.choice([1, 1, 1, 2], chains * depth)
        reach = (kernel - 1) * dilation
        one = np.ones_like(kernel)
        # The layers next to the input come first; of unit 0, the unbounded field is centred on 0.
        self.layers = np.array([kernel, one, dilation, reach // 2, -one, -one], np.int64)
        self.offsets = np.arange(chains + 1, dtype=np.int64) * depth
        whole = reach.reshape(chains, depth)
        self.columns = int(whole.sum(1).max()) + 1
        self.starts = np.full(chains, -(self.columns // 2), np.int64)
        self.units = np.zeros(chains, np.int64)
        # An image has 1 + Σ reach pixels, from the last layer to the one in question.
        self.widths = 1 + np.cumsum(whole[:, ::-1], axis=1)
        self.terms = int((2 * kernel + 1).reshape(chains, depth).sum(1).max())
        self.peers = {"NumPy convolve": self._by_numpy}

    def call(self, device: Device, dtype: np.dtype[Any], workers: int | None) -> Callable[[], Any]:
        kernel, xp = load_kernels(device.name).chain_profiles, device.xp
        chains = len(self.units)
        threads = (workers or os.cpu_count() or 1) if device.is_host else 1

        def profiles() -> _Profiles:
            with device.current():
                taps = xp.empty(0, dtype)
                lost, exponents = xp.empty(chains, dtype), xp.empty(chains, np.int64)
                out = xp.empty((chains, self.columns), dtype)

            def some(a: int, b: int) -> None:
                given = (self.offsets[a : b + 1], self.layers, taps)
                place = (self.units[a:b], self.starts[a:b])
                kernel(*given, *place, lost[a:b], exponents[a:b], out[a:b])

            with device.current(), Threads(threads) as pool:
                pool.cut(chains, int(self.widths.sum()), some)
            return _Profiles(lost, exponents, out, threads)

        return profiles

    def facts(self, result: _Profiles) -> _Facts:
        dtype = result.out.dtype
        bound = KERNELS["chain_profiles"].tolerance
        updates = int(self.widths.sum())
        # A layer of k equal taps is k − 1 additions a pixel; of all layers, so many on average.
        kernels = self.layers[0].reshape(len(self.units), -1)[:, ::-1]
        adds = float(((kernels - 1) * self.widths).sum()) / updates
        return _Facts(
            "chain_profiles",
            updates,
            adds,
            result.threads,
            int(result.out.nbytes),
            bound(dtype, self.terms) + bound(np.float64, self.terms),
            True,
        )

    def pictures(self, result: _Profiles) -> list[Picture]:
        out = on_host(result.out).astype(np.float64)
        return [(np.ldexp(out, on_host(result.exponents)[:, None]), (0, 0))]

    def _by_numpy(self, dtype: np.dtype[Any], device: str) -> Layers:
        """`numpy.convolve`, layer by layer and chain by chain."""
        if device != "cpu":
            raise _Missing("NumPy computes on the CPU alone")
        out = np.zeros((len(self.units), self.columns), dtype)
        lines: dict[tuple[int, int], NDArray[Any]] = {}
        for c, row in enumerate(out):
            profile = np.ones(1, dtype)
            for k, d in self.layers[[0, 2], self.offsets[c] : self.offsets[c + 1]].T.tolist():
                if (k, d) not in lines:
                    taps = np.zeros((k - 1) * d + 1, dtype)
                    taps[::d] = 1 / k
                    lines[k, d] = taps
                profile = np.convolve(profile, lines[k, d])
            first = self.columns // 2 - len(profile) // 2
            row[first : first + len(profile)] = profile
            yield
        return [(out, (0, 0))]


def _cases(sizes: Sizes) -> list[_Case]:
    ring = np.array([[2.0, 1.0, 3.0], [1.0, 5.0, 1.0], [2.0, 1.0, 4.0]])
    middle = sizes.image // 32 // 2
    first = max(0, middle - sizes.units // 2)
    along = range(first, first + sizes.units)
    box, cube = np.full((3, 3), 1 / 9), np.full((3, 3, 3), 1 / 27)
    return [
        _Fields(
            "large image",
            f"plain({sizes.plain}, 3), unbounded",
            zoo.get(f"plain({sizes.plain}, 3)"),
            _peers_of(_Stack(box, sizes.plain)),
        ),
        _Fields(
            "residual stack",
            f"residual({sizes.residual}), unbounded",
            zoo.get(f"residual({sizes.residual})"),
            _peers_of(_Stack(box, sizes.residual, block=2)),
        ),
        _Fields(
            "clipped image",
            f"{sizes.units}×{sizes.units} units of resnet50 at {sizes.image}",
            zoo.get("resnet50"),
            {},
            units=tuple((row, column) for row in along for column in along),
            options={"input_size": sizes.image},
        ),
        _Fields(
            "dense stencil",
            f"{sizes.stencil} layers of 3×3 taps that are no product, layer by layer",
            Sequential(*[Conv(3, padding=1, taps=ring)] * sizes.stencil),
            _peers_of(_Stack(ring / ring.sum(), sizes.stencil)),
            options={"method": "direct"},
            adds=9,
        ),
        _Fields(
            "volume",
            f"plain({sizes.volume}, 3, ndim=3), layer by layer",
            zoo.get(f"plain({sizes.volume}, 3, ndim=3)"),
            _peers_of(_Stack(cube, sizes.volume)),
            options={"method": "direct"},
            adds=6,
        ),
        _Chains(sizes.chains, sizes.depth),
    ]


# --- other libraries ------------------------------------------------------------------------


class _Missing(Exception):
    """A library that is not here, or not for a device."""


@dataclass(frozen=True)
class _Stack:
    """Equal layers, from one unit on; every `block` of them with a shortcut around, if any."""

    taps: NDArray[np.float64]
    depth: int
    block: int = 0

    def follow(self, seed: Any, layer: Callable[[Any], Any]) -> Generator[None, None, Any]:
        """The image behind all layers, where `layer` widens it by 1 pixel on every side."""
        image = seed
        for _ in range(self.depth):
            moved = image
            for _ in range(self.block or 1):
                moved = layer(moved)
            if self.block:
                inner = slice(self.block, -self.block)
                moved = moved / 2
                moved[(..., *[inner] * self.taps.ndim)] += image / 2
            image = moved
            yield
        return image

    def picture(self, image: NDArray[Any]) -> list[Picture]:
        """Centred on unit 0, and normalised, as shares of it may have been flushed."""
        origin = tuple(-(n // 2) for n in image.shape)
        return [(image / image.sum(dtype=np.float64), origin)]


def _peers_of(stack: _Stack) -> dict[str, Peer]:
    ndim = stack.taps.ndim
    equal = bool(np.all(stack.taps == stack.taps.flat[0]))

    def by_torch(dtype: np.dtype[Any], device: str) -> Layers:
        """`torch.nn.functional.conv…d` with padding, which is the transposed convolution."""
        try:
            import torch
        except ImportError:
            raise _Missing("not installed") from None
        if device != "cpu" and not torch.cuda.is_available():
            raise _Missing("installed without CUDA")
        functional = torch.nn.functional
        convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[ndim - 1]
        flipped = np.flip(stack.taps).astype(dtype)
        taps = torch.from_numpy(flipped.copy())[None, None].to(device)
        seed = torch.ones((1,) * (ndim + 2), dtype=taps.dtype, device=taps.device)
        with _flushed(torch), torch.no_grad():
            image = yield from stack.follow(seed, lambda y: convolve(y, taps, padding=2))
        return stack.picture(image[0, 0].cpu().numpy())

    def by_scipy(dtype: np.dtype[Any], device: str) -> Layers:
        """`scipy.ndimage.correlate`, or `uniform_filter` for equal taps, on a padded image."""
        if device != "cpu":
            raise _Missing("SciPy computes on the CPU alone")
        from scipy import ndimage

        flipped = np.flip(stack.taps).astype(dtype)

        def layer(y: NDArray[Any]) -> NDArray[Any]:
            wide = np.pad(y, 1)
            if equal:
                return np.asarray(ndimage.uniform_filter(wide, 3, mode="constant"))
            return np.asarray(ndimage.correlate(wide, flipped, mode="constant"))

        image = yield from stack.follow(np.ones((1,) * ndim, dtype), layer)
        return stack.picture(image)

    function = "uniform_filter" if equal else "correlate"
    return {f"PyTorch conv{ndim}d": by_torch, f"SciPy {function}": by_scipy}


@contextmanager
def _flushed(torch: Any) -> Iterator[None]:
    """Subnormal results count as zero on this thread, as every library would want them."""
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


# --- measuring ------------------------------------------------------------------------------


class _Run:
    """Measures, and keeps what measurements are compared with: the CPU's results in float64, and
    what each device can do at most."""

    def __init__(self, sizes: Sizes, workers: int | None) -> None:
        self.sizes, self.workers = sizes, workers
        self._expected: dict[str, list[Picture] | None] = {}
        self._peaks: dict[tuple[str, np.dtype[Any], int], float] = {}

    def measure(self, case: _Case, device: Device, name: str) -> Iterator[Measurement]:
        """A case by fastrf, and then by the other libraries."""
        dtype = np.dtype(name)
        yield self._ours(case, device, dtype)
        for library, peer in case.peers.items():
            yield self._theirs(case, library, peer, device, dtype)

    def _ours(self, case: _Case, device: Device, dtype: np.dtype[Any]) -> Measurement:
        call, wait = case.call(device, dtype, self.workers), _waiting(device)

        def computed() -> Any:
            result = call()
            wait()
            return result

        try:
            first, result = _timed(computed)
        except PlanError as error:
            what = (case.name, device.name, dtype.name, "fastrf")
            return Measurement(*what, not_measured=str(error))
        seconds, moved = self._median(computed), None
        if not device.is_host:
            moved = self._median(lambda: case.pictures(call()))
        facts, pictures = case.facts(result), case.pictures(result)
        kept: tuple[Any, ...] = (None, None, None, None)
        if device.is_host and dtype == np.float64:
            self._expected[case.name] = pictures
        elif (errors := self._errors(case, pictures)) is not None:
            # Written so that a NaN is not within any bound.
            counted = errors if facts.relative else errors[1:]
            ok = all(error <= facts.tolerance for error in counted)
            kept = (*errors, facts.tolerance, ok)
        arithmetic = None
        if facts.adds is not None:
            peak = self._peak(device, dtype, facts.threads)
            arithmetic = facts.updates * facts.adds / seconds / peak
        return Measurement(
            case.name,
            device.name,
            dtype.name,
            "fastrf",
            facts.engine,
            seconds,
            moved,
            first,
            facts.updates,
            facts.updates / seconds,
            self._copy_seconds(device, facts) / seconds,
            arithmetic,
            *kept,
        )

    def _theirs(
        self, case: _Case, by: str, peer: Peer, device: Device, dtype: np.dtype[Any]
    ) -> Measurement:
        kind = device.name.partition(":")[0]
        what = (case.name, device.name, dtype.name, by)
        try:
            first, pictures = _timed(lambda: self._patiently(peer(dtype, kind)))
            seconds = self._median(lambda: self._patiently(peer(dtype, kind)))
        except _Missing as missing:
            return Measurement(*what, not_measured=str(missing))
        except _Stopped:
            patience = self.sizes.patience
            reason = f"it takes longer than {patience:g} s"
            return Measurement(*what, not_measured=reason, seconds_at_least=patience)
        relative, of_peak = self._errors(case, pictures) or (None, None)
        return Measurement(
            *what,
            # Their results are moved to the host in any case.
            seconds=seconds if kind == "cpu" else None,
            seconds_with_transfer=None if kind == "cpu" else seconds,
            first_call_seconds=first,
            relative_error=relative,
            peak_error=of_peak,
        )

    def _errors(self, case: _Case, pictures: Sequence[Picture]) -> tuple[float, float] | None:
        """Against the CPU's result in float64, which is computed here if it was not measured; None
        where it does not fit into memory."""
        if case.name not in self._expected:
            call = case.call(resolve("cpu"), np.dtype(np.float64), self.workers)
            try:
                self._expected[case.name] = case.pictures(call())
            except PlanError:
                self._expected[case.name] = None
        expected = self._expected[case.name]
        return None if expected is None else _errors(expected, pictures)

    def _patiently(self, layers: Layers) -> list[Picture]:
        """Another library's result, unless it takes too long."""
        end = None
        while True:
            try:
                next(layers)
            except StopIteration as finished:
                pictures: list[Picture] = finished.value
                return pictures
            if end is None:  # the first step may import the library
                end = time.perf_counter() + self.sizes.patience
            if time.perf_counter() > end:
                layers.close()
                raise _Stopped

    def _median(self, call: Callable[[], Any]) -> float:
        """Of warm runs: as many as fit into the time for them, and at least one."""
        times = [_timed(call)[0]]
        rounds = min(100, int(self.sizes.seconds / max(times[0], 1e-6)))
        times.extend(_timed(call)[0] for _ in range(rounds - 1))
        return median(times)

    def _copy_seconds(self, device: Device, facts: _Facts) -> float:
        """Copying as many bytes as the results have, by as many threads."""
        xp, wait = device.xp, _waiting(device)
        with device.current():
            source, target = (
                xp.ones(facts.size // 4, np.float32),
                xp.ones(facts.size // 4, np.float32),
            )

        def copy(a: int, b: int) -> None:
            target[a:b] = source[a:b]

        def copied() -> None:
            with device.current():
                threads.cut(len(source), len(source), copy)
            wait()

        with Threads(facts.threads if device.is_host else 1) as threads:
            copied()
            return self._median(copied)

    def _peak(self, device: Device, dtype: np.dtype[Any], threads: int) -> float:
        """Multiply-adds a second that a device, or so many threads, do in registers at best."""
        key = (device.name, dtype, threads)
        if key not in self._peaks:
            measure = _cpu_peak if device.is_host else _gpu_peak
            self._peaks[key] = measure(device, dtype, threads)
        return self._peaks[key]


class _Stopped(Exception):
    """Another library took too long."""


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """The seconds of a call, and its result."""
    start = time.perf_counter()
    result = call()
    return time.perf_counter() - start, result


def _waiting(device: Device) -> Callable[[], None]:
    """Waits for what a GPU was given to do."""
    if device.is_host:
        return lambda: None

    def wait() -> None:
        with device.current():
            device.xp.cuda.get_current_stream().synchronize()

    return wait


def _cpu_peak(device: Device, dtype: np.dtype[Any], threads: int) -> float:
    from fastrf.kernels.cpu._peak import multiply_adds, vector

    factors = [vector(dtype) for _ in range(threads)]
    multiply_adds(factors[0], 1)  # compiles
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(5):
            start = time.perf_counter()
            done = sum(pool.map(lambda out: multiply_adds(out, _CPU_COUNT), factors))
            best = max(best, done / (time.perf_counter() - start))
    return best


def _gpu_peak(device: Device, dtype: np.dtype[Any], threads: int) -> float:
    from fastrf.kernels.cuda._peak import multiply_adds
    from fastrf.kernels.cuda._peak import threads as threads_of_device

    wait, best = _waiting(device), 0.0
    with device.current():
        out = device.xp.empty(threads_of_device(), dtype)
        multiply_adds(out, 1)  # compiles
        wait()
        for _ in range(5):
            start = time.perf_counter()
            done = multiply_adds(out, _GPU_COUNT)
            wait()
            best = max(best, done / (time.perf_counter() - start))
    return best


def _errors(expected: Sequence[Picture], found: Sequence[Picture]) -> tuple[float, float]:
    """Largest difference relative to each pixel that both hold, and of any to the peak."""
    relative, of_peak = [0.0], [0.0]
    for (a, a_origin), (b, b_origin) in zip(expected, found, strict=True):
        low = [min(x, y) for x, y in zip(a_origin, b_origin, strict=True)]
        ends = [
            max(x + n, y + m)
            for x, n, y, m in zip(a_origin, a.shape, b_origin, b.shape, strict=True)
        ]
        ours, theirs = np.zeros((2, *(e - s for e, s in zip(ends, low, strict=True))))
        for whole, part, origin in ((ours, a, a_origin), (theirs, b, b_origin)):
            place = zip(origin, low, part.shape, strict=True)
            whole[tuple(slice(o - s, o - s + n) for o, s, n in place)] = part
        both = (ours > 0) & (theirs > 0)
        difference = np.abs(theirs - ours)
        of_peak.append(float(difference.max()) / float(ours.max()))
        ratio = np.divide(difference, ours, out=np.zeros_like(ours), where=both)
        relative.append(float(ratio.max()))
    # NumPy's maximum of NaN and other numbers is NaN.
    return float(np.max(relative)), float(np.max(of_peak))
