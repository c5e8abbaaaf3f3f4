"""Design by target: the cheapest networks whose receptive fields are as large as asked for.

A space is searched with closed forms, which take microseconds for a candidate, and only the best
ones are built and measured by the engine.

What is counted: `multiply_adds` per output pixel and pair of channels, Σ k₁k₂…·Π S/S_l over the
convolutions and the axes, where S is the output's stride and S_l that of the map whose pixels meet
every tap (a convolution's output, a transposed one's input): times C² it is the multiply-adds of a
network of C channels; `parameters` per pair of channels, Σ k₁k₂…; `layers`, the number of
convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import numpy as np

from fastrf.analytic.growth import SIZES, gaussian_size, growth
from fastrf.analytic.moments import moments
from fastrf.errors import InputError
from fastrf.layers import Conv, ConvTranspose
from fastrf.lowering import lower
from fastrf.network import Network
from fastrf.sweep.chain import Chain
from fastrf.sweep.space import Point, Space

if TYPE_CHECKING:
    from fastrf.analytic.geometry import ReceptiveField

SizeName: TypeAlias = Literal["luo", "std", "fwhm"]
Target: TypeAlias = float | tuple[float | None, float | None]

BUDGETS = ("multiply_adds", "layers", "parameters")
"""What a budget can bound."""

MOST_CONFIRMED = 64
"""Most candidates that are measured by the engine."""

SLACK = 0.15
"""By how much the size of a Gaussian may miss a target for a candidate to be measured. Of 800
candidates of `FAMILY` the Gaussian's sizes are off by 2% in the median where there are ten blocks
and more (16% for the width at half maximum of residual stacks), by 4 to 8% from five to nine; by
half, and more, of one or two layers, and where dilations leave gaps. A network whose image is that
far from a Gaussian may be overlooked. The standard deviation is exact."""

MOST_POINTS = 1_000_000
"""Most points of a space that is searched."""

FAMILY: dict[str, Any] = {
    "block": ["plain", "residual"],
    "depth": {"from": 1, "to": 100},
    "kernel": {"from": 3, "to": 31, "step": 2},
    "cycle": [1, 2, 3, 4, 5],
    "every": [1, 2, 3, 4, 6, 8],
    "halvings": [0, 1, 2, 3, 4, 5],
    "dilation": "2**(i % cycle)",
    "stride": "2 if i % every == every - 1 and i // every < halvings else 1",
}
"""Parameters of the default space: stacks of `depth` plain or residual blocks of one kernel, whose
dilations double within a cycle, and which halve the map every so many blocks."""


@dataclass(frozen=True)
class Design:
    """One network that was found, with its measured figures.

    Attributes:
        parameters: of its point in the space.
        network: the network.
        erf: its ERF size in pixels (of the name that was asked for), measured by the engine; the
            geometric mean over the axes where there is one per axis.
        trf: size of its theoretical receptive field in pixels, the geometric mean over the axes.
        stride: its stride (geometric mean).
        multiply_adds, layers, parameter_count: its cost, see `fastrf.design`.
        fits: whether it meets every target.
    """

    parameters: dict[str, Any]
    network: Network
    erf: float
    trf: float
    stride: float
    multiply_adds: float
    layers: int
    parameter_count: int
    fits: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the attributes' names, the network left out."""
        return {k: v for k, v in vars(self).items() if k != "network"}


class Designs(Sequence[Design]):
    """What `design` found, the cheapest first; true where at least one network fits.

    Attributes:
        reason: why nothing fits, or None.
        searched, measured: number of candidates that closed forms and the engine looked at.
        size: the name of the ERF size.
    """

    def __init__(
        self, found: Iterable[Design], reason: str | None, searched: int, measured: int, size: str
    ) -> None:
        self._found = tuple(found)
        self.reason, self.searched, self.measured, self.size = reason, searched, measured, size

    @overload
    def __getitem__(self, index: int) -> Design: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Design]: ...
    def __getitem__(self, index: int | slice) -> Design | Sequence[Design]:
        return self._found[index]

    def __len__(self) -> int:
        return len(self._found)

    def __bool__(self) -> bool:
        return any(design.fits for design in self._found)

    def to_dict(self) -> dict[str, Any]:
        """Plain values under the attributes' names."""
        return {
            "reason": self.reason,
            "searched": self.searched,
            "measured": self.measured,
            "size": self.size,
            "designs": [design.to_dict() for design in self._found],
        }

    def __str__(self) -> str:
        heads = ["", f"ERF ({self.size})", "TRF", "stride", "multiply-adds", "layers", "weights"]
        rows = [[*heads, "parameters"]]
        for d in self._found:
            given = ", ".join(f"{k} {v}" for k, v in d.parameters.items())
            figures = [f"{v:.4g}" for v in (d.erf, d.trf, d.stride, d.multiply_adds)]
            mark = "fits" if d.fits else "misses"
            rows.append([mark, *figures, str(d.layers), str(d.parameter_count), given])
        widths = [max(len(row[n]) for row in rows) for n in range(len(heads))]
        lines = [
            "  ".join([*(c.rjust(w) for c, w in zip(row, widths, strict=False)), row[-1]])
            for row in rows
        ]
        lines.append(f"{self.searched} candidates by closed form, {self.measured} measured")
        if self.reason is not None:
            lines.append(self.reason)
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A candidate by its closed forms; `size` is that of a Gaussian of its deviation."""

    build: Callable[[], tuple[dict[str, Any], Network]]
    size: float
    trf: float
    stride: float
    multiply_adds: float
    layers: int
    parameters: int
    ndim: int

    @property
    def price(self) -> float:
        """Multiply-adds per input pixel, which compares candidates of different strides."""
        return self.multiply_adds / self.stride**self.ndim


@dataclass(frozen=True, slots=True)
class _Rule:
    """One thing that was asked for: a figure between two values."""

    name: str
    low: float
    high: float
    figure: Callable[[Any], float]
    hard: bool = False

    def miss(self, found: Any, slack: float = 0.0) -> float:
        """By which factor the figure misses the range, as a logarithm; 0 within it."""
        value = self.figure(found)
        if value <= 0:
            return math.inf
        below = math.log(self.low / value) if self.low > 0 else -math.inf
        above = math.log(value / self.high) if math.isfinite(self.high) else -math.inf
        return max(0.0, below - slack, above - slack)


def design(
    target_erf: Target | None = None,
    target_trf: Target | None = None,
    *,
    size: SizeName = "luo",
    stride: int | None = None,
    budget: float | Mapping[str, float] | None = None,
    within: float = 0.05,
    space: Space | Mapping[str, Any] | None = None,
    ndim: int = 2,
    count: int = 5,
    device: str = "auto",
) -> Designs:
    """The cheapest networks whose receptive fields are as large as asked for.

    Args:
        target_erf: ERF size in pixels, met where the size is `within` that share of it; or a pair
            (least, greatest), None for an open end.
        target_trf: the same of the theoretical receptive field.
        size: which ERF size: "luo" (`ERF.luo_size`, on the amplitude), "std" or "fwhm".
        stride: stride of the output, exactly.
        budget: the greatest number of multiply-adds, or a mapping with some of "multiply_adds"
            (per output pixel and pair of channels: Σ k₁k₂…·Π S/S_l, S the output's stride and S_l
            the layer's), "layers" (convolutions) and "parameters" (weights per pair of channels).
        within: relative tolerance of a target that is one number.
        space: what to search; default: `FAMILY`, stacks of plain or residual blocks with
            dilations that double and strides of 2.
        ndim: number of axes of the default space.
        count: number of networks to find.
        device: as in `erf`.

    Returns:
        The networks that fit, the cheapest first by multiply-adds per input pixel; or, where none
        does, the nearest ones within the budget, and the reason.

    Raises:
        InputError: an argument breaks a rule, or nothing is asked for.

    >>> from fastrf import design
    >>> found = design(target_erf=20, size="std", stride=4)
    >>> abs(found[0].erf - 20) <= 1, found[0].stride
    (True, 4.0)
    """
    rules = _rules(target_erf, target_trf, size, stride, budget, within)
    if type(count) is not int or count < 1:
        raise InputError(f"count={count!r} must be a whole number of at least 1")
    slack = 0.0 if size == "std" else SLACK
    if space is None:
        family = _Family(ndim, stride, size, rules)
        near: Iterator[_AnyCandidate] = family.nearest(rules, slack)
        searched, reason = family.searched, family.reason
    else:
        space = space if isinstance(space, Space) else Space(space)
        searched, near, reason = _search(space, rules, slack, size)
    found: list[Design] = []
    fingerprints: set[str] = set()
    measured = 0
    for candidate in near:
        if measured == MOST_CONFIRMED or sum(d.fits for d in found) == count:
            break
        parameters, network = candidate.build()
        if network.fingerprint in fingerprints:
            continue
        fingerprints.add(network.fingerprint)
        measured += 1
        confirmed = _measured(candidate, parameters, network, rules, size, device)
        if confirmed is not None:
            found.append(confirmed)
    fitting = [d for d in found if d.fits]
    if fitting:
        return Designs(fitting[:count], None, searched, measured, size)
    found.sort(key=lambda d: sum(rule.miss(d) for rule in rules))
    return Designs(found[:count], reason(), searched, measured, size)


def _rules(
    target_erf: Any, target_trf: Any, size: str, stride: Any, budget: Any, within: float
) -> list[_Rule]:
    if size not in SIZES:
        raise InputError(f"size={size!r} is unknown; choose one of {', '.join(SIZES)}")
    if not (isinstance(within, int | float) and 0 < within < 1):
        raise InputError(f"within={within!r} must be a share between 0 and 1, such as 0.05")
    rules = []
    for name, target, figure in (
        ("target_erf", target_erf, _erf),
        ("target_trf", target_trf, _trf),
    ):
        if target is not None:
            rules.append(_Rule(name, *_range(name, target, within), figure))
    if not rules:
        raise InputError("nothing is asked for; give target_erf or target_trf in pixels")
    if stride is not None:
        if type(stride) is not int or stride < 1:
            raise InputError(f"stride={stride!r} must be a whole number of at least 1")
        low, high = stride * (1 - 1e-12), stride * (1 + 1e-12)
        rules.append(_Rule("stride", low, high, lambda d: d.stride, True))
    if budget is None:
        return rules
    given = budget if isinstance(budget, Mapping) else {"multiply_adds": budget}
    for name, most in given.items():
        if name not in BUDGETS:
            raise InputError(f"budget has no {name!r}; it bounds {', '.join(BUDGETS)}")
        if not _positive(most):
            raise InputError(f"budget: {name}={most!r} must be a number above 0")
        rules.append(_Rule(f"budget of {name}", 0.0, float(most), _COST[name], True))
    return rules


def _range(name: str, target: Any, within: float) -> tuple[float, float]:
    if _positive(target):
        return target * (1 - within), target * (1 + within)
    if isinstance(target, tuple | list) and len(target) == 2:
        low, high = target
        if all(end is None or _positive(end) for end in target) and (low or high):
            ends = (low or 0.0, math.inf if high is None else high)
            if ends[0] <= ends[1]:
                return ends
    raise InputError(
        f"{name}={target!r} must be a number of pixels above 0, or (least, greatest) of them, "
        f"None for an open end"
    )


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _erf(found: Design | _AnyCandidate) -> float:
    return found.erf if isinstance(found, Design) else found.size


def _trf(found: Design | _AnyCandidate) -> float:
    return found.trf


def _weights(found: Design | _AnyCandidate) -> float:
    return found.parameter_count if isinstance(found, Design) else found.parameters


_COST: dict[str, Callable[[Any], float]] = {
    "multiply_adds": lambda d: d.multiply_adds,
    "layers": lambda d: d.layers,
    "parameters": _weights,
}


def _measured(
    candidate: _AnyCandidate,
    parameters: dict[str, Any],
    network: Network,
    rules: Sequence[_Rule],
    size: str,
    device: str,
) -> Design | None:
    """The candidate with the engine's figures; None where it has no such size, its centre being in
    a gap."""
    from fastrf.erf import erf
    from fastrf.metrics.given import defined

    field = erf(network, device=device)
    measures: dict[str, Callable[[], float]] = {
        "luo": field.luo_size,
        "std": lambda: _mean(field.std),
        "fwhm": lambda: _mean(field.fwhm),
    }
    found_size = defined(measures[size])
    if found_size is None:
        return None
    box = field.field.box(field.unit)
    assert box is not None
    found = Design(
        parameters,
        network,
        erf=found_size,
        trf=_mean([high - low + 1 for low, high in box]),
        stride=candidate.stride,
        multiply_adds=candidate.multiply_adds,
        layers=candidate.layers,
        parameter_count=candidate.parameters,
        fits=True,
    )
    fits = all(rule.miss(found) == 0 for rule in rules)
    return found if fits else Design(**{**vars(found), "fits": False})


def _mean(values: Iterable[float]) -> float:
    """Geometric mean over the axes."""
    numbers = [float(v) for v in values]
    return math.prod(numbers) ** (1 / len(numbers)) if min(numbers) > 0 else 0.0


# --- any space ------------------------------------------------------------------------------


def _search(
    space: Space, rules: Sequence[_Rule], slack: float, size: str
) -> tuple[int, Iterator[_AnyCandidate], Callable[[], str]]:
    """Every point of a space by its closed forms, the best ones first."""
    total = len(space)
    if total > MOST_POINTS:
        raise InputError(
            f"the space has {total} points, more than the {MOST_POINTS} that are searched; "
            f"sample it, or narrow it with where"
        )
    errors: list[str] = []
    found = _sorted_out(space, rules, slack, size, errors)
    if not any((found.likely, found.others, found.beyond)):
        raise InputError(f"no point of the space can be used; the first one says: {errors[0]}")

    def reason() -> str:
        candidates = list(_usable(found.all(), rules, errors))
        if not candidates:
            return f"nothing fits: no point of the space can be used; one says: {errors[0]}"
        misses = np.array([[r.miss(c) for r in rules] for c in candidates])
        figures = np.array([[r.figure(c) for r in rules] for c in candidates])
        return _reason(rules, misses, figures)

    return total, found.nearest(rules, slack), reason


@dataclass(frozen=True, slots=True)
class _Sorted:
    """Candidates as far as they had to be looked at.

    Attributes:
        likely: those that may fit.
        others: those that miss a target.
        beyond: those that miss what is hard, the budget or the stride.
    """

    likely: list[_AnyCandidate]
    others: list[_AnyCandidate]
    beyond: list[_AnyCandidate]

    def all(self) -> Iterator[_AnyCandidate]:
        """Every candidate."""
        return chain(self.likely, self.others, self.beyond)

    def nearest(self, rules: Sequence[_Rule], slack: float) -> Iterator[_AnyCandidate]:
        """Those that may fit, the cheapest first; then those within the budget, nearest first."""
        yield from sorted(self.likely, key=lambda c: c.price)
        # Only now, as it takes all figures of each.
        far = [
            (sum(_missed(rule, c, slack) for rule in rules), c.price, n, c)
            for n, c in enumerate(_usable(self.others, rules, []))
        ]
        yield from (entry[-1] for entry in sorted(far)[: MOST_CONFIRMED // 4])


def _sorted_out(
    space: Space, rules: Sequence[_Rule], slack: float, size: str, errors: list[str]
) -> _Sorted:
    """All points of a space by what they miss first: what is hard before what is not, and figures
    that take long last, so that most networks need few of them."""
    found = _Sorted([], [], [])
    ordered = sorted(rules, key=lambda rule: (not rule.hard, _EFFORT.index(rule.name)))
    for point in space:
        try:
            candidate = _candidate(point, size)
            first = next((rule for rule in ordered if _missed(rule, candidate, slack)), None)
        except InputError as error:
            errors.append(str(error))
            continue
        if first is None:
            found.likely.append(candidate)
        else:
            (found.beyond if first.hard else found.others).append(candidate)
    return found


def _missed(rule: _Rule, candidate: _AnyCandidate, slack: float) -> float:
    return rule.miss(candidate, slack if rule.name == "target_erf" else 0.0)


def _usable(
    candidates: Iterable[_AnyCandidate], rules: Sequence[_Rule], errors: list[str]
) -> Iterator[_AnyCandidate]:
    """Those that have all figures; what is wrong with the others goes to `errors`."""
    for candidate in candidates:
        try:
            for rule in rules:
                rule.figure(candidate)
        except InputError as error:
            errors.append(str(error))
            continue
        yield candidate


_EFFORT = (
    *("budget of layers", "budget of parameters", "budget of multiply_adds"),
    *("stride", "target_trf", "target_erf"),
)
"""The rules, those first whose figures of a network take least: its layers, their strides, the
variance of the gradient's place."""


def _candidate(point: Point, size: str) -> _AnyCandidate:
    packed = point.chain()
    if packed is not None:
        found = _of_chain(point, packed, size)
        if found is not None:
            return found
    return _OfNetwork(point, size)


def _of_chain(point: Point, chain: Chain, size: str) -> _Candidate | None:
    stds, trfs, jumps, kernels = [], [], [], []
    for axis in chain.axes:
        if axis.taps is not None:
            return None
        grown = growth(axis.kernel, axis.stride, axis.dilation)
        stds.append(math.sqrt(grown.variance[-1]))
        trfs.append(grown.trf[-1])
        jumps.append(grown.jump)
        kernels.append(axis.kernel.astype(np.float64))
    taps = np.prod(kernels, axis=0)
    area = np.prod(jumps, axis=0)
    return _Candidate(
        lambda: (point.parameters, point.network()),
        size=min(float(gaussian_size(_mean(stds), size, chain.ndim)), _mean(trfs)),
        trf=_mean(trfs),
        stride=float(area[-1]) ** (1 / chain.ndim),
        multiply_adds=float(np.sum(taps * area[-1] / area)),
        layers=chain.depth,
        parameters=int(taps.sum()),
        ndim=chain.ndim,
    )


class _OfNetwork:
    """The figures of a `_Candidate`, each computed when it is first asked for.

    Raises:
        InputError: by all that need it, if the network sees no bounded part of the input.
    """

    def __init__(self, point: Point, size: str) -> None:
        self._point, self._size_name = point, size
        self._network = point.network()
        bound = self._network.bound
        assert bound.ndim is not None
        self.ndim = bound.ndim
        self._convs = {
            name: (node.layer, node.inputs[0], math.prod(node.layer.kernel))
            for name, node in bound.nodes.items()
            if isinstance(node.layer, Conv | ConvTranspose)
        }
        self.layers = len(self._convs)
        self.parameters = sum(taps for *_, taps in self._convs.values())

    def build(self) -> tuple[dict[str, Any], Network]:
        """The parameters and the network."""
        return self._point.parameters, self._network

    @cached_property
    def _field(self) -> tuple[ReceptiveField, list[int], Fraction]:
        """The theoretical field, its sides, and the product of the strides."""
        from fastrf.analytic.geometry import receptive_field

        field = receptive_field(self._network)
        box = field.box()
        if box is None or None in field.size:
            raise InputError(
                f"{self._point!r} sees no bounded part of the input; leave it out with where"
            )
        area = math.prod(Fraction(s) for s in field.stride if s is not None)
        return field, [high - low + 1 for low, high in box], Fraction(area)

    @cached_property
    def size(self) -> float:
        std = moments(lower(self._network, None), None, "center").std
        return min(float(gaussian_size(_mean(std.tolist()), self._size_name, self.ndim)), self.trf)

    @property
    def trf(self) -> float:
        _, sides, _ = self._field
        return _mean(sides)

    @property
    def stride(self) -> float:
        *_, area = self._field
        side: float = float(area) ** (1 / self.ndim)
        return side

    @cached_property
    def multiply_adds(self) -> float:
        field, _, area = self._field
        strides = {row.name: row.stride for row in field.layers}
        cost = 0.0
        for name, (layer, source, taps) in self._convs.items():
            # Of a transposed convolution each input meets every tap, of a convolution each output.
            here = strides.get(name if isinstance(layer, Conv) else source, (1,) * self.ndim)
            if None not in here:  # else it runs on a single pixel, behind global pooling
                cost += taps * float(area / math.prod(Fraction(s or 1) for s in here))
        return cost

    @property
    def price(self) -> float:
        """As of a `_Candidate`."""
        return self.multiply_adds / self.stride**self.ndim


_AnyCandidate: TypeAlias = _Candidate | _OfNetwork


# --- the default space, as arrays -----------------------------------------------------------


class _Family:
    """All of `FAMILY` at once: figures as arrays over its parameters and depths."""

    def __init__(self, ndim: int, stride: int | None, size: str, rules: Sequence[_Rule]) -> None:
        if type(ndim) is not int or ndim not in (1, 2, 3):
            raise InputError(f"ndim={ndim!r} is not possible; a grid has 1, 2 or 3 axes")
        most = max(FAMILY["halvings"])
        if stride is not None and (stride & (stride - 1) or stride > 2**most):
            raise InputError(
                f"stride={stride} is no power of 2 up to {2**most}, and the default space halves "
                f"maps; give a space= with other strides"
            )
        self.ndim = ndim
        depths, kernels = FAMILY["depth"], FAMILY["kernel"]
        self._axes = [
            FAMILY["block"],
            list(range(kernels["from"], kernels["to"] + 1, kernels["step"])),
            FAMILY["cycle"],
            FAMILY["every"],
            FAMILY["halvings"],
            list(range(depths["from"], depths["to"] + 1)),
        ]
        _, kernel, cycle, every, halvings, depth = (
            np.array(values if n else range(len(values))).reshape(
                [-1 if axis == n else 1 for axis in range(6)]
            )
            for n, values in enumerate(self._axes)
        )
        i = depth - 1
        dilation = 2 ** (i % cycle)
        step = np.where((i % every == every - 1) & (i // every < halvings), 2, 1)
        taps = np.float64(kernel) ** ndim
        plain = growth(kernel, step, dilation)
        # A residual block has a second convolution of stride 1; both in a branch of gain 1.
        twice = np.stack(np.broadcast_arrays(step, np.ones_like(step)), axis=-1)
        pair = growth(
            kernel, twice.reshape(*twice.shape[:-2], -1), dilation.repeat(2, axis=-1), 0.5
        )
        area = plain.jump**ndim
        projected = (step > 1).astype(np.float64)
        convs = (1.0, 2.0 + projected)
        weights = (taps, 2 * taps + projected)
        full = np.broadcast_shapes(*(values.shape for values in (kernel, step, dilation)))
        self.trf = _both(full, plain.trf, pair.trf[..., 1::2])
        self.std = np.sqrt(_both(full, plain.variance, pair.variance[..., 1::2]))
        self.stride = _both(full, plain.jump, plain.jump)
        self.layers = _both(full, *(np.cumsum(c + 0 * step, axis=-1) for c in convs))
        self.parameters = _both(full, *(np.cumsum(w + 0 * step, axis=-1) for w in weights))
        self.multiply_adds = _both(full, *(area * np.cumsum(w / area, axis=-1) for w in weights))
        spike = np.stack([np.zeros(depth.shape[1:]), 0.5 ** depth[0]])  # through all shortcuts
        # A Gaussian is wider than the field of a few layers, of which no size exceeds the TRF.
        self.size = np.minimum(gaussian_size(self.std, size, ndim, spike), self.trf)
        # The same network under two names: fewer halvings reached than asked for, and the like.
        reached = (i + 1) // every >= halvings
        named = reached & ((halvings > 0) | (every == every.ravel()[0])) & (cycle <= depth)
        self.distinct = np.broadcast_to(named, (2, *full[1:]))
        self.searched = int(self.distinct.sum())
        self._figures = {
            "target_erf": self.size,
            "target_trf": self.trf,
            "stride": self.stride,
            **{f"budget of {name}": getattr(self, name) for name in BUDGETS},
        }
        self._rules = rules

    def misses(self, rule: _Rule, slack: float = 0.0) -> np.ndarray:
        """By which factor every candidate misses a rule, as a logarithm."""
        value: np.ndarray = np.log(self._figures[rule.name])
        miss = np.zeros_like(value)
        if rule.low > 0:
            np.maximum(miss, math.log(rule.low) - value - slack, out=miss)
        if math.isfinite(rule.high):
            np.maximum(miss, value - math.log(rule.high) - slack, out=miss)
        return miss

    def nearest(self, rules: Sequence[_Rule], slack: float) -> Iterator[_Candidate]:
        """Those that may fit, the cheapest first; then those within the budget, nearest first."""
        allowed = self.distinct.copy()
        total = np.zeros(self.size.shape)
        for rule in rules:
            miss = self.misses(rule, slack if rule.name == "target_erf" else 0.0)
            total += miss
            if rule.hard:
                allowed &= miss == 0
        price = self.multiply_adds / self.stride**self.ndim
        likely = np.flatnonzero((allowed & (total == 0)).ravel())
        order = likely[np.argsort(price.ravel()[likely], kind="stable")]
        others = np.flatnonzero((allowed & (total > 0)).ravel())
        far = np.lexsort((price.ravel()[others], total.ravel()[others]))[: MOST_CONFIRMED // 4]
        for flat in (*order.tolist(), *others[far].tolist()):
            yield self._candidate(flat)

    def _candidate(self, flat: int) -> _Candidate:
        index = np.unravel_index(flat, self.size.shape)
        block, kernel, cycle, every, halvings, depth = (
            values[n] for values, n in zip(self._axes, index, strict=True)
        )
        named = {
            "block": block,
            "depth": depth,
            "kernel": kernel,
            "cycle": cycle,
            "every": every,
            "halvings": halvings,
        }

        def build() -> tuple[dict[str, Any], Network]:
            own = {**FAMILY, **named, "block": [block]}
            (point,) = Space({"parameters": own, "ndim": self.ndim}, source="design")
            return named, point.network()

        figures = (self.size, self.trf, self.stride, self.multiply_adds)
        size, trf, stride, cost = (float(values[index]) for values in figures)
        layers, weights = int(self.layers[index]), int(self.parameters[index])
        return _Candidate(build, size, trf, stride, cost, layers, weights, self.ndim)

    def reason(self) -> str:
        """Why nothing fits."""
        chosen = self.distinct.ravel()
        misses = np.stack([self.misses(r).ravel()[chosen] for r in self._rules], axis=1)
        figures = np.stack([self._figures[r.name].ravel()[chosen] for r in self._rules], axis=1)
        return _reason(self._rules, misses, figures)


def _both(shape: tuple[int, ...], plain: np.ndarray, residual: np.ndarray) -> np.ndarray:
    """Figures of plain and of residual stacks as one array over `FAMILY`."""
    full = shape[1:]
    return np.stack([np.broadcast_to(v[0], full) for v in (plain, residual)])


def _reason(rules: Sequence[_Rule], misses: np.ndarray, figures: np.ndarray) -> str:
    """Which of the rules stands in the way, by closed form, and what could be had."""
    if not misses.any(axis=1).all():
        return (
            "nothing fits: closed forms let some candidates through that the engine's figures "
            "miss; widen the target, or give a finer space"
        )
    said = []
    for n, rule in enumerate(rules):
        rest = ~np.delete(misses, n, axis=1).any(axis=1)
        if rest.any():
            best = figures[rest, n][np.argmin(misses[rest, n])]
            asked = f"{rule.low:.4g} to {rule.high:.4g}" if rule.low > 0 else f"{rule.high:.4g}"
            said.append(f"{rule.name} (asked for {asked}, the nearest is {best:.4g})")
    if not said:
        return "nothing fits: at least two of what was asked for must give way; ask for less"
    return (
        f"nothing fits: everything but {' or '.join(said)} can be met; change one of these, or "
        f"give another space"
    )
