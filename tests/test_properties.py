"""What must hold of every network, on networks drawn at random: no expected values, only relations.

Linearity, adjoint, composition, symmetry, support, mass, translation, dtype, phases of a stride,
agreement of the engines. The CUDA kernels' share is in ``cuda/test_kernel_properties.py``.

Tolerances. All sums are of nonnegative numbers, so that N roundings in sequence leave a relative
error of at most N·u/(1 − N·u), u = eps/2, in each pixel. A layer of T taps rounds a pixel at most
T + 4 times (T products, their sum, scales; see test_program), a merge once, and normalisation and
masses are float64 sums of at most as many pixels as the image has.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import naive
import numpy as np
import pytest
from fastrf.kernels import KERNELS, load
from hypothesis import given, reject, settings
from hypothesis import strategies as st

import fastrf as rf
from fastrf.errors import EmptyFieldError
from fastrf.lowering import lower

U = {"float64": 2.0**-53, "float32": 2.0**-24}

Draw = Callable[[st.SearchStrategy[Any]], Any]


def examples(count: int) -> settings:
    return settings(max_examples=count, derandomize=True, deadline=None, database=None)


# --- networks -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Step:
    """One layer, every value per axis."""

    kind: str  # "conv", "back" (a transposed convolution), "pool" or "up"
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    lo: tuple[int, ...]
    hi: tuple[int, ...]
    taps: np.ndarray | None = None
    gain: float = 1.0

    @property
    def padding(self) -> tuple[tuple[int, int], ...]:
        return tuple(zip(self.lo, self.hi, strict=True))

    def layer(self) -> Any:
        if self.kind == "up":
            return rf.Upsample(self.kernel, "nearest")
        if self.kind == "pool":
            return rf.MaxPool(self.kernel, self.stride, self.dilation, self.padding)
        kind = rf.Conv if self.kind == "conv" else rf.ConvTranspose
        return kind(
            self.kernel, self.stride, self.dilation, self.padding, gain=self.gain, taps=self.taps
        )

    def node(self, name: str, source: str) -> dict[str, Any]:
        """As `naive` reads it."""
        op = {"conv": "conv", "back": "conv_transpose", "pool": "maxpool", "up": "upsample_nearest"}
        node = {"name": name, "op": op[self.kind], "inputs": [source]}
        if self.kind == "up":
            return {**node, "factor": self.kernel}
        node |= {"kernel": self.kernel, "stride": self.stride, "dilation": self.dilation}
        return {**node, "lo": self.lo, "hi": self.hi}


Part = Step | tuple[Step, ...]
"""A layer, or the branch of a residual block."""


@dataclass(frozen=True, eq=False)
class Net:
    """Layers and residual blocks in a row, and an input size that fits."""

    parts: tuple[Part, ...]
    size: tuple[int, ...]

    @property
    def ndim(self) -> int:
        return len(self.size)

    def network(self, *more: Step) -> rf.Network:
        layers = [
            rf.Residual(*(s.layer() for s in part)) if isinstance(part, tuple) else part.layer()
            for part in (*self.parts, *more)
        ]
        return rf.Sequential(*layers, ndim=self.ndim)

    def nodes(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = [{"name": "input", "op": "input"}]
        for part in self.parts:
            before = found[-1]["name"]
            for step in part if isinstance(part, tuple) else (part,):
                found.append(step.node(f"n{len(found)}", found[-1]["name"]))
            if isinstance(part, tuple):
                add = {"name": f"n{len(found)}", "op": "add"}
                found.append({**add, "inputs": [before, found[-1]["name"]]})
        return found

    def changed(self, change: Callable[[Step], Step]) -> Net:
        """The same with every layer changed."""
        return replace(
            self,
            parts=tuple(
                tuple(map(change, part)) if isinstance(part, tuple) else change(part)
                for part in self.parts
            ),
        )

    def steps(self) -> list[Step]:
        return [s for part in self.parts for s in (part if isinstance(part, tuple) else (part,))]

    def bound(self, dtype: str = "float64", pixels: int = 0) -> float:
        """Of the relative difference of two images of it, both normalised or both masses."""
        layers = sum(math.prod(s.kernel) + 5 for s in self.steps()) + 8
        return 2 * layers * U[dtype] / (1 - layers * U[dtype]) + 4 * pixels * U["float64"]


def map_size(net: rf.Network, size: Sequence[int]) -> tuple[int, ...]:
    graph = lower(net, tuple(size))
    found = graph.sizes[graph.output_node(None)]
    assert found is not None
    return found


def _taps(draw: Draw, kernel: tuple[int, ...]) -> np.ndarray | None:
    """None, or unequal variances over three orders of magnitude that are no product."""
    if draw(st.booleans()):
        return None
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return 10.0 ** rng.uniform(-3, 0, kernel)


def _step(draw: Draw, ndim: int, kind: str, fits: bool) -> Step:
    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(ndim))

    if kind == "up":
        one, none = (1,) * ndim, (0,) * ndim
        return Step("up", each(1, 3), one, one, none, none)
    kernel = each(1, 5 if ndim == 1 else 6 - ndim)
    stride = each(1, 1) if kind == "pool" and fits else each(1, 3)
    if kind == "pool":
        lo, hi = (tuple(draw(st.integers(0, k // 2)) for k in kernel) for _ in "lh")
        return Step(kind, kernel, stride, (1,) * ndim, lo, hi)
    dilation = each(1, 3 if ndim == 1 else 2)
    span = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    lo, hi = (tuple(draw(st.integers(0, r)) for r in span) for _ in "lh")
    taps, gain = _taps(draw, kernel), draw(st.sampled_from((1.0, 0.3, 2.5)))
    return Step(kind, kernel, stride, dilation, lo, hi, taps, gain)


def _branch(draw: Draw, ndim: int) -> tuple[Step, ...]:
    """One or two layers that keep the size, padded unevenly."""
    steps = []
    for _ in range(draw(st.integers(1, 2))):
        step = _step(draw, ndim, "conv", True)
        span = [d * (k - 1) for d, k in zip(step.dilation, step.kernel, strict=True)]
        hi = tuple(r - lo for r, lo in zip(span, step.lo, strict=True))
        steps.append(replace(step, stride=(1,) * ndim, hi=hi))
    return tuple(steps)


@st.composite
def nets(
    draw: Draw,
    kinds: tuple[str, ...] = ("conv", "conv", "back", "pool", "up", "block"),
    fits: bool = False,
    ndims: tuple[int, ...] = (1, 2, 3),
) -> Net:
    """Random networks in 1, 2 and 3 dimensions; with `fits`, windows end where the padding does."""
    ndim = draw(st.sampled_from(ndims))
    size = tuple(draw(st.integers(3, {1: 14, 2: 8, 3: 5}[ndim])) for _ in range(ndim))
    parts: list[Part] = []
    at = size
    for _ in range(draw(st.integers(1, {1: 5, 2: 4, 3: 3}[ndim]))):
        kind = draw(st.sampled_from(kinds))
        part: Part = _branch(draw, ndim) if kind == "block" else _step(draw, ndim, kind, fits)
        if isinstance(part, Step) and part.kind in ("conv", "pool"):
            room = [
                n + lo + hi - d * (k - 1) - 1
                for n, k, d, lo, hi in zip(
                    at, part.kernel, part.dilation, part.lo, part.hi, strict=True
                )
            ]
            # What is missing to one window, or to a whole number of strides.
            rest = [
                -r if r < 0 else -r % s if fits else 0
                for r, s in zip(room, part.stride, strict=True)
            ]
            if part.kind == "conv":
                part = replace(part, hi=tuple(h + r for h, r in zip(part.hi, rest, strict=True)))
            elif any(rest):
                continue
        try:
            after = map_size(Net((*parts, part), size).network(), size)
        except rf.errors.InputError:
            continue  # a transposed convolution whose crop leaves nothing
        if max(after) <= 3 * max(size):
            parts.append(part)
            at = after
    if not parts:
        reject()
    return Net(tuple(parts), size)


units = st.lists(st.floats(0, 1, exclude_max=True), min_size=3, max_size=3)
"""Where a unit lies on a map, whatever the map's size."""


def unit_at(where: Sequence[float], shape: Sequence[int]) -> tuple[int, ...]:
    return tuple(int(w * n) for w, n in zip(where, shape, strict=False))


def erf(net: rf.Network, unit: Sequence[int], size: Any, **options: Any) -> rf.ERF:
    """The field of a unit; an example whose unit sees nothing is none."""
    try:
        return rf.erf(net, unit=tuple(unit), input_size=size, **options)
    except EmptyFieldError:
        reject()


def masses(found: rf.ERF, origin: Sequence[int], shape: Sequence[int]) -> np.ndarray:
    """The image, not normalised, on a frame of its own."""
    frame = np.zeros(tuple(shape))
    place = tuple(
        slice(o - a, o - a + n) for o, a, n in zip(found.origin, origin, found.shape, strict=True)
    )
    frame[place] = found.to_numpy() * math.exp(found.log_gain)
    return frame


def same(a: rf.ERF, b: rf.ERF, bound: float) -> None:
    """Two fields of equal window, pixels and masses."""
    assert a.origin == b.origin
    assert a.shape == b.shape
    np.testing.assert_allclose(a.to_numpy(), b.to_numpy(), rtol=bound, atol=0)
    assert a.log_gain == pytest.approx(b.log_gain, rel=1e-15, abs=bound)
    assert a.lost_mass == pytest.approx(b.lost_mass, rel=bound, abs=bound)


# --- linearity ------------------------------------------------------------------------------


@examples(30)
@given(nets(ndims=(1, 2)), st.data(), units)
def test_linearity_the_image_of_a_layer_is_the_sum_of_its_seeds(net, data, where):
    """Luo's eq. 8 at the top: the layer's taps weigh the images of the units that it reads."""
    top = data.draw(st.composite(_step)(net.ndim, "conv", False))
    below, whole = net.network(), net.network(top)
    shape = map_size(below, net.size)
    try:
        unit = unit_at(where, map_size(whole, net.size))
    except rf.errors.InputError:
        reject()
    found = erf(whole, unit, net.size)
    taps = np.ones(top.kernel) if top.taps is None else top.taps
    taps = top.gain * taps / taps.sum()
    total = np.zeros(net.size)
    for m in np.ndindex(*top.kernel):
        at = tuple(
            o * s + t * d - lo
            for o, s, t, d, lo in zip(unit, top.stride, m, top.dilation, top.lo, strict=True)
        )
        if all(0 <= i < n for i, n in zip(at, shape, strict=True)):
            try:
                seed = rf.erf(below, unit=at, input_size=net.size)
            except EmptyFieldError:
                continue
            total += taps[m] * masses(seed, (0,) * net.ndim, net.size)
    bound = Net((*net.parts, top), net.size).bound(pixels=total.size) + taps.size * U["float64"]
    got = masses(found, (0,) * net.ndim, net.size)
    np.testing.assert_allclose(got, total, rtol=bound, atol=0)


@examples(30)
@given(nets(("conv", "back", "pool")), units, st.lists(st.floats(1e-3, 1e3), min_size=5))
def test_linearity_gains_scale_the_mass_alone(net, where, factors):
    scaled = [replace(s, gain=s.gain * f) for s, f in zip(net.steps(), factors, strict=False)]
    total = math.fsum(
        math.log(f)
        for s, f in zip(net.steps(), factors, strict=False)
        if s.kind != "pool"  # has no weights to scale
    )
    unit = unit_at(where, map_size(net.network(), net.size))
    found = erf(net.network(), unit, net.size)
    louder = erf(replace(net, parts=tuple(scaled)).network(), unit, net.size)
    same(replace(louder, log_gain=louder.log_gain - total), found, net.bound(pixels=5000))


# --- kernels --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Call:
    """Arguments of a convolution kernel, in 3-D, and an array for either side."""

    y: np.ndarray
    x: np.ndarray
    taps: np.ndarray
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    lo: tuple[int, ...]

    def run(self, name: str, source: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        out = np.full(shape, np.nan, source.dtype)
        getattr(load(), name)(source, self.taps, self.stride, self.dilation, self.lo, out)
        return out

    def rtol(self, name: str) -> float:
        return KERNELS[name].tolerance(self.y.dtype, self.taps.size)


def filled(draw: Draw, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return (10.0 ** rng.uniform(-6, 0, shape)).astype(dtype)


@st.composite
def calls(draw: Draw) -> Call:
    def three(low: Sequence[int], high: Sequence[int]) -> tuple[int, ...]:
        return tuple(draw(st.integers(a, b)) for a, b in zip(low, high, strict=True))

    dtype = draw(st.sampled_from((np.float32, np.float64)))
    return Call(
        filled(draw, three((1, 1, 1), (2, 6, 8)), dtype),
        filled(draw, three((1, 1, 1), (3, 9, 11)), dtype),
        filled(draw, three((1, 1, 1), (2, 4, 5)), dtype),
        three((1, 1, 1), (2, 3, 4)),
        three((1, 1, 1), (2, 3, 3)),
        three((-1, -2, -3), (1, 4, 6)),
    )


@examples(60)
@given(calls(), st.data(), st.floats(1e-2, 1e2), st.floats(1e-2, 1e2))
def test_linearity_of_the_kernels(call, data, a, b):
    for name, target in (("transposed_conv", call.x.shape), ("strided_gather", call.x.shape)):
        other = filled(data.draw, call.y.shape, call.y.dtype)
        a, b = call.y.dtype.type(a), call.y.dtype.type(b)
        whole = call.run(name, a * call.y + b * other, target)
        parts = a * call.run(name, call.y, target) + b * call.run(name, other, target)
        # Either way a product and a sum more than the kernel itself.
        rtol = 2 * call.rtol(name) + 4 * float(np.finfo(call.y.dtype).eps)
        np.testing.assert_allclose(whole, parts, rtol=rtol, atol=0)


@examples(80)
@given(calls())
def test_adjoint_of_the_kernels(call):
    """⟨A·y, x⟩ = ⟨y, Aᵀ·x⟩; all products in float64, where those of float32 are exact."""
    spread = call.run("transposed_conv", call.y, call.x.shape).astype(np.float64)
    gathered = call.run("strided_gather", call.x, call.y.shape).astype(np.float64)
    left, right = (spread * call.x).sum(), (call.y * gathered).sum()
    rtol = 2 * call.rtol("transposed_conv") + (call.x.size + call.y.size) * 2.0**-53
    assert left == pytest.approx(right, rel=rtol, abs=0)


@examples(80)
@given(calls())
def test_adjoint_of_the_boxes(call):
    k, s, d, lo = call.taps.shape[2] + 3, call.stride[1], call.dilation[1], call.lo[1]
    y, x = call.y, np.resize(call.x, (call.y.shape[0], call.x.shape[1], call.y.shape[2]))
    spread, gathered = np.empty_like(x), np.empty_like(y)
    load().transposed_box(y, k, s, d, lo, spread)
    load().gather_box(x, k, s, d, lo, gathered)
    left = (spread.astype(np.float64) * x).sum()
    right = (gathered.astype(np.float64) * y).sum()
    rtol = 2 * KERNELS["gather_box"].tolerance(y.dtype, k) + (x.size + y.size) * 2.0**-53
    assert left == pytest.approx(right, rel=rtol, abs=0)


@examples(60)
@given(calls())
def test_a_stride_is_one_convolution_a_phase(call):
    """Outputs of a phase r of i + lo, taps m with m·d ≡ r: a convolution without stride each."""
    whole = call.run("transposed_conv", call.y, call.x.shape)
    parts = np.zeros_like(whole)
    for phase in np.ndindex(*call.stride):
        axes = []
        for a, (s, d, lo, k, r) in enumerate(
            zip(call.stride, call.dilation, call.lo, call.taps.shape, phase, strict=True)
        ):
            chosen = [m for m in range(k) if m * d % s == r]
            i = [i for i in range(whole.shape[a]) if (i + lo) % s == r]
            if not chosen or not i:
                break
            # i = s·t + i[0]: source o = t + (i[0] + lo − m·d)/s, and m·d/s of steps d/gcd.
            first = (i[0] + lo - chosen[0] * d) // s
            step = (chosen[1] - chosen[0]) * d // s if len(chosen) > 1 else 1
            axes.append((chosen, i, first, step))
        if len(axes) < 3:
            continue
        chosen, places, lo, dilation = zip(*axes, strict=True)
        out = np.empty(tuple(map(len, places)), whole.dtype)
        taps = np.ascontiguousarray(call.taps[np.ix_(*chosen)])
        load().transposed_conv(call.y, taps, (1, 1, 1), dilation, lo, out)
        parts[np.ix_(*places)] = out
    np.testing.assert_allclose(whole, parts, rtol=2 * call.rtol("transposed_conv"), atol=0)


# --- composition ----------------------------------------------------------------------------


@examples(30)
@given(nets(("conv", "block"), ndims=(1, 2)), st.data())
def test_composition_two_networks_in_a_row_are_two_layers(net, data):
    """A network without upsampling is one convolution: its image the taps, its stride the jump."""
    kinds = ("conv", "block")
    other = data.draw(nets(kinds, ndims=(net.ndim,)))
    layers, pixels = [], 0
    for part in (net, other):
        found = erf(part.network(), (0,) * part.ndim, None)
        field = rf.receptive_field(part.network())
        padding = tuple((-o, 0) for o in found.origin)
        gain = math.exp(found.log_gain)
        pixels += found.to_numpy().size
        layers.append(
            rf.Conv(found.shape, field.stride, padding=padding, taps=found.to_numpy(), gain=gain)
        )
    whole = erf(replace(net, parts=(*net.parts, *other.parts)).network(), (0,) * net.ndim, None)
    composed = erf(rf.Sequential(*layers, ndim=net.ndim), (0,) * net.ndim, None)
    bound = net.bound(pixels=pixels) + other.bound() + 2 * (pixels + 8) * U["float64"]
    same(whole, composed, bound)


@examples(30)
@given(nets(), units, st.integers(1, 3))
def test_a_strided_layer_is_a_layer_and_a_subsampling(net, where, stride):
    apart: list[Part] = []
    for part in net.parts:
        if isinstance(part, Step) and part.kind in ("conv", "pool"):
            one, none = (1,) * net.ndim, (0,) * net.ndim
            apart.append(replace(part, stride=one))
            apart.append(Step("pool", one, part.stride, one, none, none))
        else:
            apart.append(part)
    twice = replace(net, parts=tuple(apart))
    shape = map_size(net.network(), net.size)
    assert map_size(twice.network(), net.size) == shape
    for size, unit in ((net.size, unit_at(where, shape)), (None, (stride,) * net.ndim)):
        found = erf(net.network(), unit, size)
        other = erf(twice.network(), unit, size)
        same(other, found, twice.bound(pixels=found.to_numpy().size))


# --- symmetry -------------------------------------------------------------------------------


@examples(40)
@given(nets(fits=True), units)
def test_symmetry_mirrored_layers_have_the_mirrored_image(net, where):
    def mirrored(step: Step) -> Step:
        taps = None if step.taps is None else np.flip(step.taps)
        return replace(step, lo=step.hi, hi=step.lo, taps=taps)

    shape = map_size(net.network(), net.size)
    unit = unit_at(where, shape)
    found = erf(net.network(), unit, net.size)
    turned = tuple(n - 1 - u for n, u in zip(shape, unit, strict=True))
    other = erf(net.changed(mirrored).network(), turned, net.size)
    back = replace(
        other,
        values=np.flip(other.to_numpy()),
        origin=tuple(
            n - o - count for n, o, count in zip(net.size, other.origin, other.shape, strict=True)
        ),
    )
    same(back, found, net.bound(pixels=found.to_numpy().size))


@examples(30)
@given(nets(ndims=(2, 3)), units, st.randoms(use_true_random=False))
def test_symmetry_permuted_axes_have_the_permuted_image(net, where, random):
    order = list(range(net.ndim))
    random.shuffle(order)

    def moved(values: Any) -> Any:
        return tuple(values[a] for a in order)

    def permuted(step: Step) -> Step:
        names = ("kernel", "stride", "dilation", "lo", "hi")
        taps = None if step.taps is None else step.taps.transpose(order)
        return replace(step, taps=taps, **{n: moved(getattr(step, n)) for n in names})

    other = replace(net.changed(permuted), size=moved(net.size))
    unit = unit_at(where, map_size(net.network(), net.size))
    found = erf(net.network(), unit, net.size)
    turned = erf(other.network(), moved(unit), other.size)
    expected = replace(found, values=found.to_numpy().transpose(order), origin=moved(found.origin))
    same(turned, expected, net.bound(pixels=found.to_numpy().size))


# --- support --------------------------------------------------------------------------------


@examples(40)
@given(nets(), units)
def test_support_is_what_a_path_reaches_and_lies_in_the_box(net, where):
    network = net.network()
    unit = unit_at(where, map_size(network, net.size))
    found = erf(network, unit, net.size)
    nodes = net.nodes()
    reached = naive.region(nodes, nodes[-1]["name"], unit, net.size)
    places = np.argwhere(found.to_numpy() > 0) + np.asarray(found.origin)
    assert set(map(tuple, places.tolist())) == reached
    box = rf.receptive_field(network, input_size=net.size).box(unit, clip=True)
    ends = [(min(i[a] for i in reached), max(i[a] for i in reached)) for a in range(net.ndim)]
    assert box == tuple(ends)


def holds(outer: Any, inner: Any) -> bool:
    """Whether one box has the other in it; None is the empty box."""
    if inner is None:
        return True
    return outer is not None and all(
        a <= c and d <= b for (a, b), (c, d) in zip(outer, inner, strict=True)
    )


@examples(40)
@given(nets(), st.data(), st.lists(st.integers(-3, 3), min_size=3, max_size=3))
def test_support_never_shrinks(net, data, where):
    """By a layer more: its box holds those of all that it reads. By a larger kernel: by itself."""
    unit = tuple(where[: net.ndim])
    top = data.draw(st.composite(_step)(net.ndim, "conv", False))
    before = rf.receptive_field(net.network())
    after = rf.receptive_field(net.network(top))
    for m in np.ndindex(*top.kernel):
        at = tuple(
            o * s + t * d - lo
            for o, s, t, d, lo in zip(unit, top.stride, m, top.dilation, top.lo, strict=True)
        )
        assert holds(after.box(unit), before.box(at))
    axis = data.draw(st.integers(0, net.ndim - 1))

    def larger(step: Step) -> Step:
        if step.kind == "up":  # its kernel is its stride
            return step
        kernel = tuple(k + (a == axis) for a, k in enumerate(step.kernel))
        return replace(step, kernel=kernel, taps=None)

    assert holds(rf.receptive_field(net.changed(larger).network()).box(unit), before.box(unit))


# --- mass -----------------------------------------------------------------------------------


@examples(40)
@given(nets(("conv", "pool", "up", "block")), units)
def test_mass_arrives_or_is_lost(net, where):
    """Gains multiply, a block's branch and identity add up; the rest fell into padding."""
    network = net.network()
    unit = unit_at(where, map_size(network, net.size))
    found = erf(network, unit, net.size)
    total = math.exp(found.log_gain) * float(found.to_numpy().sum())
    bound = net.bound(pixels=found.to_numpy().size)
    gains = [
        1 + math.prod(s.gain for s in part) if isinstance(part, tuple) else part.gain
        for part in net.parts
    ]
    if all(isinstance(part, Step) for part in net.parts):
        assert total / math.prod(gains) + found.lost_mass == pytest.approx(1, rel=bound)
    free = erf(network, unit, None)
    assert free.lost_mass == 0
    assert free.log_gain == pytest.approx(math.fsum(map(math.log, gains)), rel=1e-15, abs=bound)
    assert total <= math.prod(gains) * (1 + bound)


# --- translation ----------------------------------------------------------------------------


@examples(30)
@given(nets(), st.data(), st.lists(st.integers(-4, 4), min_size=3, max_size=3))
def test_translation_the_next_unit_of_a_phase_sees_the_same_a_jump_on(net, data, where):
    network, unit = net.network(), tuple(where[: net.ndim])
    field = rf.receptive_field(network)
    axis = data.draw(st.integers(0, net.ndim - 1))
    step = field.period[axis]
    next_unit = tuple(u + step * (a == axis) for a, u in enumerate(unit))
    found, moved = erf(network, unit, None), erf(network, next_unit, None)
    jump = field.stride[axis] * step
    assert jump == int(jump)
    origin = tuple(o + int(jump) * (a == axis) for a, o in enumerate(found.origin))
    same(moved, replace(found, origin=origin), net.bound(pixels=found.to_numpy().size))


# --- dtype and engines ----------------------------------------------------------------------


@examples(40)
@given(nets(), units)
def test_dtypes_agree(net, where):
    network = net.network()
    unit = unit_at(where, map_size(network, net.size))
    found = erf(network, unit, net.size)
    single = erf(network, unit, net.size, dtype="float32")
    assert single.to_numpy().dtype == np.float32
    same(single, found, net.bound("float32", pixels=found.to_numpy().size))


@examples(30)
@given(nets(), units, st.booleans())
def test_engines_agree(net, where, free):
    """Pixel by pixel, or to the tolerance where an engine promises that."""
    network, size = net.network(), None if free else net.size
    unit = unit_at(where, map_size(network, net.size))
    found = erf(network, unit, size, method="direct")
    bound = net.bound(pixels=found.to_numpy().size)
    for method, accuracy in (("factored", "relative"), ("spectral", "absolute")):
        try:
            other = erf(network, unit, size, method=method, accuracy=accuracy, tol=1e-10)
        except rf.errors.InputError:
            continue  # an engine that does not take this network says so
        at, shape = found.origin, found.shape
        if accuracy == "relative":
            same(other, found, bound)
        else:
            peak = masses(found, at, shape).max()
            difference = np.abs(masses(other, at, shape) - masses(found, at, shape)).max()
            assert difference <= (1e-10 + bound) * peak
