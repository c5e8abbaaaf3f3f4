"""A chain of layers as plain arrays: what a sweep packs by the thousand, without networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastrf.errors import InputError
from fastrf.layers import Activation, Conv, Dropout, Identity, Input, Layer, Norm, Scale
from fastrf.layers.checks import TRAINED
from fastrf.layers.weights import weights_of
from fastrf.maps import factor
from fastrf.network import Network, Sequential

Whole: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]


def is_pointwise(layer: Layer) -> bool:
    """Whether a layer only multiplies each pixel by a gain."""
    if isinstance(layer, Norm):
        return not layer.whole_map
    return isinstance(layer, Identity | Activation | Dropout | Scale)


@dataclass(frozen=True, slots=True, eq=False)
class ChainAxis:
    """The layers of a chain along one axis, from the input up; every array has shape (depth,).

    Layer l computes ``y[o] = Σ_m w[m] · x[o·stride + m·dilation − lo]`` with zeros in the
    `lo` and `hi` pixels of padding. The arrays may be shared between chains: do not write to
    them.

    Attributes:
        kernel, stride, dilation: whole numbers of at least 1.
        lo, hi: padding in front and behind, whole numbers of at least 0.
        taps: per layer the relative variances of its taps, an array of shape (kernel,) and sum 1,
            or None where they are all equal; None instead of the tuple where that holds for every
            layer.
    """

    kernel: Whole
    stride: Whole
    dilation: Whole
    lo: Whole
    hi: Whole
    taps: tuple[Floats | None, ...] | None = None

    def key(self) -> tuple[object, ...]:
        """Equal for axes of equal layers."""
        arrays = (self.kernel, self.stride, self.dilation, self.lo, self.hi)
        lines = [None if v is None else v.tobytes() for v in self.taps or ()]
        return (*(array.tobytes() for array in arrays), *lines)


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A network that is a chain of convolutions whose taps are products over the axes.

    Pointwise layers (activations, norms, dropout) are not layers of the chain: their gains are
    part of the convolution's behind which they stand, or of `input_gain` where there is none.
    The effective field of such a chain on the unbounded grid is the product of one profile per
    axis, and its `log_gain` is ``log(input_gain) + Σ log(gain)``.

    Attributes:
        axes: one `ChainAxis` per axis of the grid; axes that are alike are one object.
        gain: Σ v per layer, the gradient variance of one output unit over all taps, times the
            gains of the pointwise layers behind it; shape (depth,).
        input_gain: product of the gains of the pointwise layers before the first convolution.
        assumptions: what was assumed where gains follow from the network, as `ERF.assumptions`.
    """

    axes: tuple[ChainAxis, ...]
    gain: Floats
    input_gain: float = 1.0
    assumptions: tuple[str, ...] = ()

    @property
    def depth(self) -> int:
        """Number of convolutions."""
        return len(self.gain)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.axes)

    @classmethod
    def of(cls, network: Network) -> Chain | None:
        """A network as a chain; None where it is none.

        It is one where every node reads the one before, and all are convolutions of zero padding
        in one group, whose taps are products over the axes, or pointwise layers; not with weights
        that are given or were trained, whose fields are no exact ones.
        """
        bound = network.bound
        nodes = list(bound.nodes.values())
        if not isinstance(nodes[0].layer, Input) or bound.outputs != (nodes[-1].name,):
            return None
        if any(node.inputs != (before.name,) for before, node in pairwise(nodes)):
            return None
        if not all(is_pointwise(n.layer) or _is_plain(n.layer) for n in nodes[1:]):
            return None
        assumptions: tuple[str, ...] = ()
        if any(node.layer.depends_on_network for node in nodes):
            from fastrf.lowering import lower  # most chains do without

            try:
                graph = lower(network, None)
            except InputError:
                return None  # `fastrf.erf` says what is wrong
            nodes, assumptions = list(graph.network.nodes.values()), tuple(graph.assumptions)
        convs: list[Conv] = []
        gains = [1.0]
        for node in nodes[1:]:
            layer = node.layer
            if isinstance(layer, Conv):
                convs.append(layer)
                gains.append(layer.gain)
            else:
                gains[-1] *= layer.pointwise_gain
        axes = _axes(convs, bound.ndim or 0)
        return cls(axes, np.array(gains[1:]), gains[0], assumptions) if axes and convs else None

    def network(self) -> Network:
        """The chain as a network of `Conv` layers, `input_gain` left out."""
        return Sequential(*map(self._layer, range(self.depth)), ndim=self.ndim)

    def _layer(self, layer: int) -> Conv:
        def per_axis(name: str) -> tuple[int, ...]:
            return tuple(int(getattr(axis, name)[layer]) for axis in self.axes)

        lines = [None if axis.taps is None else axis.taps[layer] for axis in self.axes]
        taps = None
        if any(line is not None for line in lines):
            kernel = per_axis("kernel")
            full = [
                np.full(k, 1 / k) if v is None else v for k, v in zip(kernel, lines, strict=True)
            ]
            taps = reduce(np.multiply.outer, full)
        return Conv(
            per_axis("kernel"),
            stride=per_axis("stride"),
            dilation=per_axis("dilation"),
            padding=tuple(zip(per_axis("lo"), per_axis("hi"), strict=True)),
            gain=float(self.gain[layer]),
            taps=taps,
        )


def _is_plain(layer: Layer) -> bool:
    """Whether a layer is a convolution that a chain may have."""
    return (
        isinstance(layer, Conv)
        and layer.padding_mode == "zeros"
        and layer.groups == 1
        and layer.init != TRAINED
        and weights_of(layer) is None
    )


def shared(axes: Sequence[ChainAxis]) -> tuple[ChainAxis, ...]:
    """The axes, those that are alike as one object."""
    known: dict[object, ChainAxis] = {}
    return tuple(known.setdefault(axis.key(), axis) for axis in axes)


def _axes(convs: Sequence[Conv], ndim: int) -> tuple[ChainAxis, ...] | None:
    """The axes of bound convolutions; None where one is no product, or its padding not settled."""
    taps: list[tuple[Floats | None, ...]] = []
    for conv in convs:
        lines = None if conv.taps is None else factor(np.asarray(conv.taps, dtype=np.float64))
        if isinstance(lines, np.ndarray) or any(isinstance(pad, str) for pad in conv.padding):
            return None
        taps.append((None,) * ndim if lines is None else lines)
    axes = []
    for axis in range(ndim):
        rows = [(c.kernel[axis], c.stride[axis], c.dilation[axis], *c.padding[axis]) for c in convs]
        kernel, stride, dilation, lo, hi = np.array(rows, dtype=np.int64).reshape(-1, 5).T.copy()
        line = tuple(row[axis] for row in taps)
        own = line if any(v is not None for v in line) else None
        axes.append(ChainAxis(kernel, stride, dilation, lo, hi, own))
    return shared(axes)
