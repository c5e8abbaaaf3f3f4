"""The cases: what is computed, by fastrf on any device."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastrf import zoo
from fastrf.arrays import on_host
from fastrf.benchmark.peers import Layers, Missing, Peer, Picture, Stack, peers_of
from fastrf.benchmark.results import Sizes
from fastrf.check import rounding_steps
from fastrf.device import Device
from fastrf.engine.plan import Plan
from fastrf.engine.threads import Threads
from fastrf.erf import ERF, erf
from fastrf.kernels import KERNELS
from fastrf.kernels import load as load_kernels
from fastrf.layers import Conv
from fastrf.lowering import lower
from fastrf.network import Network, Sequential


class Facts(NamedTuple):
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


class Case(ABC):
    """Something to compute on any device."""

    name: str
    description: str
    peers: Mapping[str, Peer]

    @abstractmethod
    def call(self, device: Device, dtype: np.dtype[Any], workers: int | None) -> Callable[[], Any]:
        """What is timed; it leaves its result on the device and does not wait for it."""

    @abstractmethod
    def facts(self, result: Any) -> Facts:
        """Of a result of `call`."""

    @abstractmethod
    def pictures(self, result: Any) -> list[Picture]:
        """A result's pixels, moved to the host."""


@dataclass(frozen=True)
class Fields(Case):
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

    def facts(self, result: list[ERF]) -> Facts:
        plans = [field.plan for field in result if isinstance(field.plan, Plan)]
        plan = plans[0]
        graph = lower(self.network, (self.options or {}).get("input_size"))
        steps = rounding_steps(graph.between(plan.node, plan.input))
        image = result[0].image
        return Facts(
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


class Profiles(NamedTuple):
    """A sweep's result, on its device."""

    lost: Any
    exponents: Any
    out: Any
    threads: int


class Chains(Case):
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

        def profiles() -> Profiles:
            taps = np.empty(0, dtype)
            with device.current():
                lost, exponents = xp.empty(chains, dtype), xp.empty(chains, np.int64)
                out = xp.empty((chains, self.columns), dtype)

            def some(a: int, b: int) -> None:
                given = (self.offsets[a : b + 1], self.layers, taps)
                place = (self.units[a:b], self.starts[a:b])
                kernel(*given, *place, lost[a:b], exponents[a:b], out[a:b])

            with device.current(), Threads(threads) as pool:
                pool.cut(chains, int(self.widths.sum()), some)
            return Profiles(lost, exponents, out, threads)

        return profiles

    def facts(self, result: Profiles) -> Facts:
        dtype = result.out.dtype
        bound = KERNELS["chain_profiles"].tolerance
        updates = int(self.widths.sum())
        # A layer of k equal taps is k − 1 additions a pixel; of all layers, so many on average.
        kernels = self.layers[0].reshape(len(self.units), -1)[:, ::-1]
        adds = float(((kernels - 1) * self.widths).sum()) / updates
        return Facts(
            "chain_profiles",
            updates,
            adds,
            result.threads,
            int(result.out.nbytes),
            bound(dtype, self.terms) + bound(np.float64, self.terms),
            True,
        )

    def pictures(self, result: Profiles) -> list[Picture]:
        out = on_host(result.out).astype(np.float64)
        return [(np.ldexp(out, on_host(result.exponents)[:, None]), (0, 0))]

    def _by_numpy(self, dtype: np.dtype[Any], device: str) -> Layers:
        """`numpy.convolve`, layer by layer and chain by chain."""
        if device != "cpu":
            raise Missing("NumPy computes on the CPU alone")
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


def cases_of(sizes: Sizes) -> list[Case]:
    ring = np.array([[2.0, 1.0, 3.0], [1.0, 5.0, 1.0], [2.0, 1.0, 4.0]])
    middle = sizes.image // 32 // 2
    first = max(0, middle - sizes.units // 2)
    along = range(first, first + sizes.units)
    box, cube = np.full((3, 3), 1 / 9), np.full((3, 3, 3), 1 / 27)
    return [
        Fields(
            "large image",
            f"plain({sizes.plain}, 3), unbounded",
            zoo.get(f"plain({sizes.plain}, 3)"),
            peers_of(Stack(box, sizes.plain)),
        ),
        Fields(
            "residual stack",
            f"residual({sizes.residual}), unbounded",
            zoo.get(f"residual({sizes.residual})"),
            peers_of(Stack(box, sizes.residual, block=2)),
        ),
        Fields(
            "clipped image",
            f"{sizes.units}×{sizes.units} units of resnet50 at {sizes.image}",
            zoo.get("resnet50"),
            {},
            units=tuple((row, column) for row in along for column in along),
            options={"input_size": sizes.image},
        ),
        Fields(
            "dense stencil",
            f"{sizes.stencil} layers of 3×3 taps that are no product, layer by layer",
            Sequential(*[Conv(3, padding=1, taps=ring)] * sizes.stencil),
            peers_of(Stack(ring / ring.sum(), sizes.stencil)),
            options={"method": "direct"},
            adds=9,
        ),
        Fields(
            "volume",
            f"plain({sizes.volume}, 3, ndim=3), layer by layer",
            zoo.get(f"plain({sizes.volume}, 3, ndim=3)"),
            peers_of(Stack(cube, sizes.volume)),
            options={"method": "direct"},
            adds=6,
        ),
        Chains(sizes.chains, sizes.depth),
    ]
