"""What activations' slopes have in common, from the forward signal's correlation between pixels.

An activation multiplies the gradient at pixel i by its slope σ′(z[i]). In the limit of many
channels z is Gaussian behind random weights and independent of the gradient, so that
Cov(g[i], g[i + τ]) passes with E[σ′(z[i])·σ′(z[i + τ])], which depends on the variance of z and on
its correlation ρ at the lag τ alone (`activations.curves`).

This pass goes up through the planes, with the signal's second moments (`signal`) at the lags that
are asked for. Far from borders they are the same at all pixels. Random weights of a stride s write
M(τ) where they read M(τs), times their gain, whatever their taps; fixed ones mix lags; independent
summands add up.

What is not known is said so (`Slopes.unknown`), and the slopes then count as independent between
pixels: behind max-pooling and upsampling, of values that are not Gaussian, of functions that are
not known. Padding changes the signal near borders: there slopes count as they are far from them,
and `Slopes.bordered` names whose they are.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from fastrf.activations import Bent, Curves
from fastrf.engine.coefficients import terms
from fastrf.engine.coherence import (
    Coherence,
    Kinds,
    Lags,
    coherence_of_any,
    is_shuffle,
    kinds_of,
    mean_share,
    united_lags,
)
from fastrf.engine.lag_algebra import Gains, through
from fastrf.engine.scaled import Scaled
from fastrf.layers import (
    Activation,
    Add,
    ChannelSlice,
    Concat,
    Conv,
    Dropout,
    Identity,
    Norm,
    Scale,
)
from fastrf.lowering import Operation, PlaneGraph
from fastrf.maps import Kind, SpatialMap, Window
from fastrf.meanfield.signal import (
    Signal,
    activated,
    added,
    curves_of,
    dropped,
    noise,
    normalised,
)

Floats = NDArray[np.float64]

_POINTWISE = Activation | Norm | Dropout | Scale | Add | Concat | Identity | ChannelSlice

ALIKE = 1e-9
"""By so much the shares of the channels of one map may differ before they are said to differ."""

UNSURE = 1e-2
"""By so much of E[σ′²] a covariance of slopes may be wrong before it is said not to be known."""


Signals = tuple[tuple[float, Signal], ...]
"""Groups of channels, each with its share."""


@dataclass(slots=True)
class Slopes:
    """What the slopes of activations have in common.

    Attributes:
        shares: by operation (its id), E[σ′(z[i])·σ′(z[i + τ])]/E[σ′²] at the lags τ; that of
            independent slopes at lags where it is not known.
        unsure: 1 at such lags and 0 at the others, of operations that have some.
        unknown: by node, why that is not known of its slopes, at some lags or at all.
        bordered: nodes whose shares hold far from borders alone.
    """

    shares: dict[int, Gains] = field(default_factory=dict)
    unsure: dict[int, Gains] = field(default_factory=dict)
    unknown: dict[str, str] = field(default_factory=dict)
    bordered: set[str] = field(default_factory=set)
    _passed: dict[Hashable, Floats | None] = field(default_factory=dict, repr=False)

    def passed(
        self, graph: PlaneGraph, op: Operation, lags: tuple[tuple[int, ...], ...]
    ) -> Floats | None:
        """What of covariances at the lags passes an operation's pointwise factors, over what of
        variances does, 1 at lag 0; None where that is 1 at all of them."""
        key = id(op), lags
        if key not in self._passed:
            self._passed[key] = self._of(graph, op, lags)
        return self._passed[key]

    def _of(
        self, graph: PlaneGraph, op: Operation, lags: tuple[tuple[int, ...], ...]
    ) -> Floats | None:
        if all(len(axis) == 1 for axis in lags):
            return None
        known = self.shares.get(id(op))
        if known is not None:
            return known.at(lags)
        mean = mean_share(graph, op)
        if mean == 1:
            return None
        found = np.full(tuple(map(len, lags)), mean)
        found[tuple(axis.index(0) for axis in lags)] = 1.0
        return found

    def known(self, graph: PlaneGraph, coherence: Coherence) -> set[str]:
        """The activations that correlated gradients reach of which the shares are known at all lags
        of these."""
        found = set()
        for op in graph.operations:
            reached = [coherence.lags[p] for p, _ in op.targets if not coherence.is_alone(p)]
            if id(op) in self.shares and reached:
                unsure = self.unsure.get(id(op))
                lags = [sorted(axis) for axis in reduce(united_lags, reached)]
                if unsure is None or not unsure.at(lags).any():
                    found.add(op.node)
        return found


def slopes_of(graph: PlaneGraph, node: str, input_node: str | None) -> Slopes:
    """Of the activations that correlated gradients reach on the way from any map to an input (None:
    to any), found at the first call. Of maps without a spatial extent, only if `node` is one."""
    if input_node is None and len(graph.network.inputs) == 1:
        (input_node,) = graph.network.inputs
    key = ("slopes", input_node, node in graph.collapsed)
    return graph.once(key, lambda: _found(graph, coherence_of_any(graph, node, input_node)))


def _found(graph: PlaneGraph, coherence: Coherence) -> Slopes:
    concerned = {
        id(op)
        for op in graph.operations
        if isinstance(graph.network.nodes[op.node].layer, Activation)
        and any(not coherence.is_alone(p) for p, _ in op.targets)
    }
    return _Forward(graph, coherence, concerned).slopes if concerned else Slopes()


class _Forward:
    """One pass up from the inputs, at the lags that activations ask for."""

    def __init__(self, graph: PlaneGraph, coherence: Coherence, concerned: set[int]) -> None:
        self.graph, self.coherence, self.concerned = graph, coherence, concerned
        self.slopes = Slopes()
        self.asked: dict[int, Lags] = {}
        for op in reversed(graph.operations):
            self._ask(op)
        alone = (frozenset((0,)),) * graph.ndim
        self.planes: dict[int, Signals | str] = {}
        for name in graph.network.inputs:
            for p in graph.planes_of[name]:
                self.planes[p] = ((1.0, noise(self.asked.get(p, alone), name)),)
        for op in graph.operations:
            if any(p in self.asked for p, _ in op.targets):
                self._follow(op)

    def _ask(self, op: Operation) -> None:
        """Which lags of what an operation reads those of what it writes depend on."""
        asked = [self.asked[p] for p, _ in op.targets if p in self.asked]
        if id(op) in self.concerned:
            asked += [self.coherence.lags[p] for p, _ in op.targets if p in self.coherence.lags]
        if not asked:
            return
        lags = reduce(united_lags, asked)
        for p, _ in op.targets:
            self.asked[p] = united_lags(self.asked.get(p), lags)
        read = self._inside(op, lags)[-1]
        for q, _ in op.sources:
            self.asked[q] = united_lags(self.asked.get(q), read)

    def _inside(self, op: Operation, lags: Lags) -> list[Lags]:
        """The lags of what each of an operation's maps writes, the last one's first, and of what
        the first one reads, that those of its output depend on."""
        found = [lags]
        for kind, move in zip(kinds_of(self.graph, op)[::-1], op.maps[::-1], strict=True):
            found.append(_below(kind, move, found[-1]))
        return found

    def _follow(self, op: Operation) -> None:
        layer = self.graph.network.nodes[op.node].layer
        for p, share in op.targets:
            if p not in self.asked:
                continue
            own = self._behind(op, self.asked[p])
            before = self.planes.get(p)
            if isinstance(own, str) or isinstance(before, str):
                if id(op) in self.concerned and isinstance(own, str):
                    self.slopes.unknown[op.node] = own
                self.planes[p] = own if isinstance(own, str) else str(before)
            elif isinstance(layer, Concat):
                self.planes[p] = (*(before or ()), *_weighted(own, share))
            else:
                self.planes[p] = own if before is None else _added(op.node, before, own)

    def _read(self, op: Operation, lags: Lags) -> Signals | str:
        """What an operation reads, channel by channel, at some lags."""
        found: list[tuple[float, Signal]] = []
        for q, share in op.sources:
            signals = self.planes.get(q, f"what {op.node} reads is not known")
            if isinstance(signals, str):
                return signals
            found += _weighted(signals, share)
        total = sum(weight for weight, _ in found)
        return tuple((weight / total, _at(signal, lags)) for weight, signal in found)

    def _behind(self, op: Operation, lags: Lags) -> Signals | str:
        layer, kinds = self.graph.network.nodes[op.node].layer, kinds_of(self.graph, op)
        inside = self._inside(op, lags)[::-1]
        read = self._read(op, inside[0])
        found = self._obstacle(op, kinds)
        if found is not None or isinstance(read, str):
            return found or str(read)
        if op.maps:
            return self._through(op, kinds, read, inside[1:])
        if isinstance(layer, Activation):
            return self._activated(op, layer, read)
        if isinstance(layer, Norm):
            return tuple((w, normalised(layer, s)) for w, s in read)
        if isinstance(layer, Dropout):
            return tuple((w, dropped(s, layer.p)) for w, s in read)
        return _amplified(read, op.gain)

    def _obstacle(self, op: Operation, kinds: Kinds) -> str | None:
        layer, node = self.graph.network.nodes[op.node].layer, op.node
        if node in self.graph.identities:
            return f"{node} follows another activation on an identity"
        if is_shuffle(layer):
            return f"{node} moves channels to pixels"
        if not op.maps:
            return None if isinstance(layer, _POINTWISE) else f"{node} depends on other pixels"
        for kind, move in zip(kinds, op.maps, strict=True):
            if kind == "routing" and any(getattr(a, "kernel", 0) != 1 for a in move.axes):
                return f"{node} chooses the largest values"
            if not all(isinstance(axis, Window) for axis in move.axes):
                return f"{node} treats pixels differently"
        return None

    def _through(
        self, op: Operation, kinds: Kinds, read: Signals, inside: Sequence[Lags]
    ) -> Signals:
        if "random" in kinds:
            read = ((1.0, _mean(read)),)
        found = []
        layer = self.graph.network.nodes[op.node].layer
        mixes = not (isinstance(layer, Conv) and layer.groups == "depthwise")
        for weight, signal in read:
            at = signal
            for kind, move, above in zip(kinds, op.maps, inside, strict=True):
                at = _moved(kind, move, at, above)
                if kind == "random":
                    roots = frozenset((op.node,))
                    at = replace(at, gaussian=mixes, centred=True, roots=roots)
            found.append((weight, at.times(op.gain)))
        return tuple(found)

    def _activated(self, op: Operation, layer: Activation, read: Signals) -> Signals | str:
        if layer.function == "identity":
            return _amplified(read, op.gain)
        if layer.known is None:
            return f"what slopes of {layer.function} have in common is not known"
        if not all(s.gaussian and s.centred for _, s in read):
            return f"what {op.node} reads is not Gaussian"
        if id(op) in self.concerned:
            self._note(op, layer, read)
        return tuple((w, activated(layer, s)) for w, s in read)

    def _note(self, op: Operation, layer: Activation, read: Signals) -> None:
        """What an activation's slopes have in common."""
        curves = [curves_of(layer, s) for _, s in read]
        both = list(zip(curves, (s for _, s in read), strict=True))
        shares, *others = (c.slopes(s.alike) / layer.moments(s.square).gain for c, s in both)
        differ = np.any([np.abs(other - shares) > ALIKE for other in (shares, *others)], axis=0)
        near = np.any([_error(c, s.alike) > UNSURE for c, s in both], axis=0)
        lags, one, unsure = read[0][1].lags, Scaled.of(1.0), differ | near
        if unsure.any():
            why = f"channels that {op.node} reads differ"
            if not differ.any():
                why = f"neighbouring pixels that {op.node} reads are too alike for its series"
            self.slopes.unknown[op.node] = why
            self.slopes.unsure[id(op)] = Gains(lags, unsure.astype(np.float64), one)
            shares = np.where(unsure, mean_share(self.graph, op), shares)
        self.slopes.shares[id(op)] = Gains(lags, shares, one)
        if any(s.bordered for _, s in read):
            self.slopes.bordered.add(op.node)


# --- signals --------------------------------------------------------------------------------


def _at(signal: Signal, lags: Lags) -> Signal:
    """The same at no other lags than these."""
    own = Gains(signal.lags, signal.alike, Scaled.of(1.0))
    return replace(signal, lags=lags, alike=own.at([sorted(axis) for axis in lags]))


def _moved(kind: Kind, move: SpatialMap, signal: Signal, above: Lags) -> Signal:
    """Behind a map, at the lags that are asked for."""
    found = through(kind, move, Gains(signal.lags, signal.alike, Scaled.of(1.0)), above)
    here = float(found.at([(0,)] * found.array.ndim).item())
    far = signal.far * (move.gain if kind == "random" else _whole(move))
    factor = found.scale * here
    moved = replace(
        signal,
        level=signal.level + factor.log(),
        far=far / factor.over(Scaled.of(1.0)),
        lags=above,
        alike=found.array / here,
        bordered=signal.bordered or _pads(move),
    )
    return moved


def _error(curves: Curves | Bent, alike: Floats) -> Floats:
    """Bounds on the errors of the covariances of slopes, over E[σ′²]."""
    near = np.abs(alike)
    return np.where(near < 1, curves.rest * near**512, 0.0)


def _weighted(signals: Signals, share: float) -> Signals:
    return tuple((weight * share, signal) for weight, signal in signals)


def _amplified(signals: Signals, gain: float) -> Signals:
    return tuple((weight, signal.times(gain)) for weight, signal in signals)


def _mean(signals: Signals) -> Signal:
    """The mean over channels."""
    return added([s for _, s in signals], [w for w, _ in signals])


def _added(node: str, a: Signals, b: Signals) -> Signals | str:
    """The sum of what has nothing in common."""
    ((_, x),), ((_, y),) = (a[:1], b[:1])
    if len(a) > 1 or len(b) > 1:
        return f"{node} adds channels that differ"
    if x.roots & y.roots or not (x.centred or y.centred):
        return f"{node} adds what is correlated"
    return ((1.0, added([x, y])),)


# --- maps -----------------------------------------------------------------------------------


def _below(kind: str, move: SpatialMap, lags: Lags) -> Lags:
    """The lags of what a map reads on which those of what it writes depend."""
    found = []
    for axis, own in zip(move.axes, lags, strict=True):
        if not isinstance(axis, Window):
            found.append(frozenset((0,)))
            continue
        reach = 0 if kind == "random" else axis.kernel - 1
        steps = [m * axis.dilation for m in range(-reach, reach + 1)]
        found.append(frozenset(t * axis.stride + step for t in own for step in steps))
    return tuple(found)


def _pads(move: SpatialMap) -> bool:
    """Whether a map reads beyond the borders of its input."""
    if move.size_in is None or move.size_out is None:
        return False
    ends = zip(move.axes, move.size_in, move.size_out, strict=True)
    return any(
        a.lo > 0 or (count - 1) * a.stride + a.span - a.lo >= size
        for a, size, count in ends
        if isinstance(a, Window)
    )


def _whole(move: SpatialMap) -> float:
    """The square of the sum of a map's coefficients."""
    total = 0.0
    for term in terms((replace(move, size_in=None, size_out=None),), len(move.axes)):
        total += math.prod(float(line.rows(0, 1)[1].sum()) for line in term)
    return total**2
