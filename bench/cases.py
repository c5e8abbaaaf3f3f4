"""The networks that every benchmark measures: one table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import fastrf as rf
from fastrf import zoo
from fastrf.device import resolve
from fastrf.engine.plan import Plan, make_plan
from fastrf.lowering import lower
from fastrf.network import Network


@dataclass(frozen=True)
class Case:
    """One field to compute.

    Attributes:
        name: how results and command lines call it.
        network: a zoo specification, or a function that builds the network.
        stands_for: what a user has who has this case.
        input_size: pixels per axis; None: the unbounded grid.
        unit: as in `fastrf.erf`.
        peers: names of `bench.peers.PEERS` that finish it within seconds.
        slow_peers: names of those that take up to minutes, which are measured once.
        block: where the network is one block over and over, at stride 1 with one kernel of
            transfer function H: coefficients of the block's polynomial in H, lowest first. The
            weights of a block's branches are relative: images are normalised.
        repeats: how often the block comes.
    """

    name: str
    network: str | Callable[[], Network]
    stands_for: str
    input_size: int | None = None
    unit: str | tuple[int, ...] = "center"
    peers: tuple[str, ...] = ()
    slow_peers: tuple[str, ...] = ()
    block: tuple[float, ...] = ()
    repeats: int = 0

    def build(self) -> Network:
        return zoo.get(self.network) if isinstance(self.network, str) else self.network()

    @property
    def options(self) -> dict[str, object]:
        """Arguments of `fastrf.erf` besides the network."""
        return {"input_size": self.input_size, "unit": self.unit}


def dilated() -> Network:
    """Ten times the dilations 1, 2, 4, 8 (Yu and Koltun 2016), as in segmentation heads."""
    return rf.Sequential(*[rf.Conv(3, padding=d, dilation=d) for d in (1, 2, 4, 8)] * 10)


def strided() -> Network:
    """Five stages of four convolutions, each begun with stride 2."""
    stage = [rf.Conv(3, stride=2, padding=1), *[rf.Conv(3, padding=1)] * 3]
    return rf.Sequential(*stage * 5)


def general_taps() -> Network:
    """Fifty layers of 5×5 taps that are no product of two vectors: a ring."""
    ring = [[(x - 2) ** 2 + (y - 2) ** 2 + 1 for x in range(5)] for y in range(5)]
    return rf.Sequential(*[rf.Conv(5, padding=2, taps=ring)] * 50)


DIRECT_PEERS = ("torch", "torch autograd", "scipy ndimage", "scipy fftconvolve")
"""Peers that walk layer by layer, as the direct engine does."""

LAYERWISE = ("torch", "torch autograd", "scipy ndimage")

STACK_PEERS = ("one FFT", "jax", "opencv")
"""Peers that serve stacks of one block."""

CHAIN, RESIDUAL = (0.0, 1.0), (1.0, 0.0, 1.0)

CASES = (
    Case("chain-200", "plain(200, 3)", "a chain short enough for every peer",
         peers=(*DIRECT_PEERS, *STACK_PEERS), block=CHAIN, repeats=200),
    Case("chain-1000", "plain(1000, 3)", "a very deep chain",
         peers=("one FFT",), slow_peers=(*LAYERWISE, "jax", "opencv"), block=CHAIN, repeats=1000),
    Case("chain-10000", "plain(10000, 3)", "the deepest chain"),
    Case("chain-1d-1000", "plain(1000, 3, ndim=1)", "a very deep sequence model",
         peers=(*DIRECT_PEERS, "one FFT"), block=CHAIN, repeats=1000),
    Case("chain-1d-10000", "plain(10000, 3, ndim=1)", "the deepest sequence model",
         peers=("one FFT",), block=CHAIN, repeats=10000),
    Case("chain-clipped", "plain(1000, 3)", "a deep chain on a small image, unit in the corner",
         input_size=128, unit=(0, 0), peers=("torch", "torch autograd", "scipy ndimage")),
    Case("dilated", dilated, "a segmentation head", peers=DIRECT_PEERS),
    Case("strided", strided, "a backbone without shortcuts", peers=DIRECT_PEERS),
    Case("residual-100", "residual(100)", "a residual stack short enough for every peer",
         peers=(*DIRECT_PEERS, *STACK_PEERS), block=RESIDUAL, repeats=100),
    Case("residual-1000-single", "residual(1000, convs=1)", "a very deep residual stack",
         peers=("one FFT",), slow_peers=("torch", "jax", "opencv"), block=(1.0, 1.0), repeats=1000),
    Case("residual-1000", "residual(1000)", "a very deep residual stack of two-layer blocks",
         peers=("one FFT",), block=RESIDUAL, repeats=1000),
    Case("residual-clipped", "residual(1000)", "the same on an image, unit at its border",
         input_size=224, unit=(0, 112), slow_peers=("torch", "torch autograd")),
    Case("residual-1d-1000", "residual(1000, ndim=1)", "a very deep residual sequence model",
         peers=(*DIRECT_PEERS, "one FFT"), block=RESIDUAL, repeats=1000),
    Case("resnet50", "resnet50", "a real backbone on a real image",
         input_size=224, peers=DIRECT_PEERS),
    Case("unet", "unet(4, 2)", "an encoder with a decoder",
         input_size=256, peers=DIRECT_PEERS),
    Case("wavenet", "wavenet(3)", "audio: dilations up to 512", peers=DIRECT_PEERS),
    Case("volume", "plain(30, 3, ndim=3)", "a 3-D stack, as in medical imaging",
         peers=DIRECT_PEERS),
    Case("kernel-31", "plain(20, 31)", "large kernels (RepLKNet)", peers=DIRECT_PEERS),
    Case("kernel-51", "plain(12, 51)", "larger kernels (SLaK)", peers=DIRECT_PEERS),
    Case("general-taps", general_taps, "taps that are no product", peers=DIRECT_PEERS),
)  # fmt: skip

BY_NAME = {case.name: case for case in CASES}


@cache
def network_of(case: Case) -> Network:
    """The case's network, built once a process."""
    return case.build()


def plan_of(case: Case, **options: Any) -> Plan:
    """What `fastrf.erf` would do."""
    graph = lower(network_of(case), case.input_size)
    node = graph.output_node(None)
    unit = graph.unit_index(node, case.unit)
    return make_plan(graph, node, unit, graph.input_node(None), device=resolve("cpu"), **options)
