"""Chains with fixed layers, exactly, by generating functions on the unbounded grid.

Let F(x, y) = Σ Cov(g[i], g[j])·xⁱ·yʲ. Going back through a layer of stride s turns F(x, y) into
F(xˢ, yˢ), times C(x)·C(y) where its coefficients c are fixed, C(z) = Σ_m c[m]·z^(m·d − lo), or
V(x·y) where its weights are independent with variances v. The variances are the terms with equal
powers of x and y. V(x·y) has no others, so that it comes out of them: with z for x·y,

    Σ_i E[g[i]²]·zⁱ = Π V_l(z^{j_l}) · Σ_i a[i]²·zⁱ,   Σ_i a[i]·zⁱ = Π C_l(z^{j_l}),

over the random and over the fixed layers, each with the jump j_l of the map that it reads. The
fixed layers of a chain count as one, wherever they stand between random ones.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import SpatialMap, Window

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Composed:
    """The effective receptive field of a chain: an outer product.

    Attributes:
        profiles: one vector per axis, of sum 1.
        origin: input index of the first pixel, per axis.
        log_gain: natural logarithm of the image's sum for gradient variance 1 on the unit.
    """

    profiles: tuple[Floats, ...]
    origin: tuple[int, ...]
    log_gain: float


def composed(
    graph: PlaneGraph, node: str, unit: tuple[int, ...], input_node: str
) -> Composed | None:
    """The field of one unit of a chain on the unbounded grid.

    Its layers are windows with separable taps, random or fixed, and constant factors; None for
    anything else.

    Args:
        graph: a network lowered without an input size.
        node, unit: a map, and an index per axis on it.
        input_node: the input map that the field lies on.
    """
    operations = graph.between(node, input_node)
    maps = [m for op in operations for m in op.maps]
    if graph.input_size is not None or not operations or not _is_chain(graph, operations):
        return None
    if not all(map(_is_plain, maps)):
        return None
    found = [_along(maps, axis, u) for axis, u in enumerate(unit)]
    log_gain = sum(math.log(value) for op in operations for value in (op.gain, *_gains(op)))
    log_gain += sum(math.log(mass) for _, _, mass in found)
    profiles, origin, _ = zip(*found, strict=True)
    return Composed(profiles, origin, log_gain)


def _is_chain(graph: PlaneGraph, operations: list[Operation]) -> bool:
    """Whether one path of constant factors leads up, through one plane of every map."""
    reads = Counter(q for op in operations for q, _ in op.sources)
    writes = Counter(p for op in operations for p, _ in op.targets)
    ends = [part for op in operations for part in (*op.sources, *op.targets)]
    constant = all(
        mean is not None and math.isclose(mean**2, layer.pointwise_gain)
        for layer in (graph.network.nodes[op.node].layer for op in operations)
        for mean in (layer.mean_factor,)
    )
    alone = set(reads.values()) | set(writes.values()) <= {1}
    return constant and alone and all(share == 1 for _, share in ends)


def _is_plain(move: SpatialMap) -> bool:
    separable = move.separable and not isinstance(move.coefficients, np.ndarray)
    windows = all(isinstance(axis, Window) for axis in move.axes)
    return separable and windows and move.kind != "routing"


def _gains(op: Operation) -> list[float]:
    return [m.gain for m in op.maps]


def _along(maps: list[SpatialMap], axis: int, unit: int) -> tuple[Floats, int, float]:
    """Profile, first pixel and mass along one axis, gains left out."""
    jump, start = 1, 0
    random, fixed = [np.ones(1)], [np.ones(1)]
    for move in maps:
        window = move.axes[axis]
        assert isinstance(window, Window)
        taps = move.axis_taps(axis)
        variances = np.full(window.kernel, 1 / window.kernel) if taps is None else taps
        line = np.zeros(jump * window.span + 1)
        if move.kind == "random":
            line[:: jump * window.dilation] = variances
            random.append(line)
        else:
            signed = None if move.coefficients is None else move.coefficients[axis]
            line[:: jump * window.dilation] = np.sqrt(variances) if signed is None else signed
            fixed.append(line)
        start -= jump * window.lo
        jump *= window.stride
    profile = np.convolve(reduce(np.convolve, random), reduce(np.convolve, fixed) ** 2)
    used = np.flatnonzero(profile)
    mass = float(profile.sum())
    profile = profile[used[0] : used[-1] + 1] / mass
    return profile, start + int(used[0]) + unit * jump, mass
