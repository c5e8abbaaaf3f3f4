"""Moments of the ERF against exact rational images, closed forms and the naive loops.

Tolerances. With each map a number goes through at most ten roundings in a row (weigh, scale,
shift, difference, square, product, sum, divide, twice add), each at most ε = 2⁻⁵² of the terms
added, and no term of a moment of order q exceeds (2σ)^q, as positions count from a point near
the mean. So after L maps moments of order q are right to 10·L·ε·(2σ)^q, the mean to 2·ε·|mean|
more (two roundings when it becomes an index), and masses, sums of positive terms, to 10·L·ε of
themselves. The oracles compute with fractions and round once.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from fractions import Fraction

import graphs
import naive
import numpy as np
import pytest

from fastrf.analytic.forward import forward_moments
from fastrf.analytic.moments import Mass, moments, unclipped_mass
from fastrf.errors import InputError, UnboundedError
from fastrf.layers import (
    Activation,
    Add,
    Attention,
    AvgPool,
    ChannelShuffle,
    ChannelSlice,
    Concat,
    Conv,
    ConvTranspose,
    Crop,
    GlobalPool,
    Input,
    MaxPool,
    Multiply,
    Pad,
    PixelShuffle,
    PixelUnshuffle,
    SqueezeExcite,
    Upsample,
)
from fastrf.lowering import lower
from fastrf.maps import Everything, Spread, Table, Window
from fastrf.network import Builder, Network, Parallel, Residual, Sequential

EPS = np.finfo(np.float64).eps
ROUNDINGS = 10
"""Per map, see above."""


# --- the oracle: exact images by loops over dictionaries --------------------------------------


def read_along(axis, taps, o, size):
    """(tap, index, variance) that output `o` reads along one axis, as exact fractions."""
    if isinstance(axis, Everything):
        return [(0, i, Fraction(1, size)) for i in range(size)]
    if isinstance(axis, Table):
        turn, phase = divmod(o, len(axis.starts))
        start = int(axis.starts[phase]) + axis.advance * turn
        return [(m, start + m, Fraction(float(v))) for m, v in enumerate(axis.taps[phase]) if v]
    weights = [Fraction(1, axis.kernel)] * axis.kernel
    if taps is not None:
        weights = [Fraction(float(v)) for v in taps]
    found = []
    for m, v in enumerate(weights):
        if isinstance(axis, Window):
            found.append((m, o * axis.stride + m * axis.dilation - axis.lo, v))
        else:
            i = Fraction(o + axis.lo - m * axis.dilation, axis.stride)
            if i.denominator == 1:
                found.append((m, int(i), v))
    return found


def back_through(m, image):
    """One map, transposed, on an image given as index → value."""
    result = defaultdict(Fraction)
    dense = isinstance(m.taps, np.ndarray)
    for o, value in image.items():
        reads = []
        for a, axis in enumerate(m.axes):
            assert isinstance(axis, Window | Spread | Table | Everything)
            own = np.ones(axis.kernel) if dense else m.axis_taps(a)
            reads.append(read_along(axis, own, o[a], m.size_in and m.size_in[a]))
        for way in itertools.product(*reads):
            i = tuple(w[1] for w in way)
            if m.size_in is None or all(0 <= j < n for j, n in zip(i, m.size_in, strict=True)):
                v = math.prod((w[2] for w in way), start=Fraction(m.gain))
                if dense:
                    v *= Fraction(float(m.taps[tuple(w[0] for w in way)]))
                result[i] += v * value
    return result


def exact_image(graph, node, unit, source="input"):
    """The unit's unnormalised image on the input: index → Fraction."""
    held = defaultdict(lambda: defaultdict(Fraction))
    for p in graph.planes_of[node]:
        held[p][unit] = Fraction(graph.planes[p].share)
    for op in reversed(graph.operations):
        image = defaultdict(Fraction)
        for p, share in op.targets:
            for i, v in held[p].items():
                image[i] += Fraction(share) * v
        for m in reversed(op.maps):
            image = back_through(m, image)
        for p, share in op.sources:
            for i, v in image.items():
                held[p][i] += Fraction(share) * Fraction(op.gain) * v
    total = defaultdict(Fraction)
    for p in graph.planes_of[source]:
        for i, v in held[p].items():
            total[i] += v
    return total


class Exact:
    """Mass and central moments of an image of fractions (or floats taken as such)."""

    def __init__(self, image):
        items = [(i, Fraction(v)) for i, v in image.items() if v]
        n = len(items[0][0])
        mass = self.mass = sum(v for _, v in items)
        self.mean = [sum(v * i[a] for i, v in items) / mass for a in range(n)]

        def central(*axes):
            return sum(v * math.prod(i[a] - self.mean[a] for a in axes) for i, v in items) / mass

        self.covariance = [[central(a, b) for b in range(n)] for a in range(n)]
        self.third = [central(a, a, a) for a in range(n)]
        self.fourth = [central(a, a, a, a) - 3 * central(a, a) ** 2 for a in range(n)]


def assert_moments(got, exact, count):
    """`got` agrees with exact moments after a walk over `count` maps."""
    tol = ROUNDINGS * max(count, 1) * EPS
    mass = Fraction(float(got.mass.mantissa)) * Fraction(2) ** got.mass.exponent
    assert abs(mass / exact.mass - 1) <= tol
    mean = np.array([float(x) for x in exact.mean])
    covariance = np.array([[float(x) for x in row] for row in exact.covariance])
    scale = 2 * np.sqrt(np.diag(covariance))
    assert np.all(np.abs(got.mean - mean) <= tol * scale + 2 * EPS * np.abs(mean))
    assert np.all(np.abs(got.covariance - covariance) <= tol * np.outer(scale, scale))
    third, fourth = ([float(x) for x in v] for v in (exact.third, exact.fourth))
    assert np.all(np.abs(got.third - third) <= tol * scale**3)
    assert np.all(np.abs(got.fourth_cumulant - fourth) <= tol * scale**4)


def count_maps(graph):
    return sum(max(len(op.maps), 1) for op in graph.operations)


# --- networks ---------------------------------------------------------------------------------

SKEW = (5.0, 2.0, 1.0)
rng = np.random.default_rng(7)
DENSE = rng.random((3, 3)) * (rng.random((3, 3)) > 0.2)


def encoder_decoder(up, ndim=1):
    """A U-Net of two levels; `up()` is the upsampling."""
    b = Builder()
    x = b.input(channels=2)
    a = b.add(Conv(3, padding=1, channels=2, taps=SKEW if ndim == 1 else None), x)
    c = b.add([MaxPool(2), Conv(3, padding=1, channels=4)], a)
    d = b.add([Conv(2, 2, channels=8), Conv(3, padding=1, channels=8)], c)
    e = b.add([up(), Conv(1, channels=4)], d)
    e = b.add(Conv(3, padding=1, channels=4, gain=1.5), b.add(Concat(), c, e))
    e = b.add([up(), Conv(1, channels=2)], e)
    return b.build(b.add(Conv(3, padding=1), b.add(Concat(), a, e)), ndim=ndim)


def split_and_shuffle():
    """ShuffleNet-like: channels part ways, one half through a branch, and are shuffled."""
    b = Builder()
    x = b.add(Conv(3, padding=1, channels=8), b.input(channels=2))
    for _ in range(2):
        left, right = b.add(ChannelSlice(0, 4), x), b.add(ChannelSlice(4, 8), x)
        right = b.add([Conv(3, padding=1, channels=4, groups=2), Activation()], right)
        x = b.add(ChannelShuffle(2), b.add(Concat(), left, right))
    return b.build(b.add(ChannelSlice(0, 3), x), ndim=1)


ONE_D = {
    "chain": lambda: Sequential(*[Conv(3, padding=1)] * 4, ndim=1),
    "even": lambda: Sequential(Conv(4, padding=(1,)), Conv(2), ndim=1),
    "strided": lambda: Sequential(
        Conv(7, 2, padding=3),
        MaxPool(3, 2, padding=1),
        Conv(3, dilation=2, padding=2, taps=SKEW),
        Conv(3, 3, taps=(1, 0, 2)),
        ndim=1,
    ),
    "residual": lambda: Sequential(
        *[Residual(Conv(3, padding=1, taps=SKEW), Conv(3, padding=1, gain=0.3))] * 3, ndim=1
    ),
    "misaligned": lambda: Sequential(
        Parallel(Conv(5, 2, padding=((2, 1),)), [Conv(3, 2), Conv(3, padding=((2, 1),))]),
        Conv(3),
        ndim=1,
    ),
    "transposed2": lambda: encoder_decoder(lambda: ConvTranspose(2, 2, channels=4)),
    "transposed3": lambda: encoder_decoder(
        lambda: ConvTranspose(3, 2, padding=1, output_padding=1, channels=4, taps=SKEW)
    ),
    "transposed4": lambda: encoder_decoder(lambda: ConvTranspose(4, 2, padding=1, channels=4)),
    "dilated transposed": lambda: Sequential(
        Conv(3), ConvTranspose(3, 3, dilation=2, padding=1), ConvTranspose(2, 2), Conv(4, 4), ndim=1
    ),
    "nearest": lambda: encoder_decoder(lambda: Upsample(2)),
    "linear": lambda: encoder_decoder(lambda: Upsample(2, "linear")),
    "asymmetric": lambda: encoder_decoder(lambda: Upsample(2, "linear", coordinates="asymmetric")),
    "rational": lambda: Sequential(
        Conv(3, padding=1),
        Upsample("3/2", "linear"),
        Conv(2, 2),
        Upsample("2/3"),
        Upsample("4/3", "nearest-exact"),
        Conv(3, padding=1),
        ndim=1,
    ),
    "shuffle": lambda: Sequential(
        Input(channels=2),
        Conv(3, padding=1, channels=6),
        PixelShuffle(3),
        Conv(3, padding=1, channels=2),
        PixelUnshuffle(2),
        ChannelSlice(1, 4),
        Conv(3, padding=1),
        ndim=1,
    ),
    "channels": split_and_shuffle,
    "crop": lambda: Sequential(Conv(3), Crop(((2, 1),)), Pad(((3, 0),)), AvgPool(3, 2), ndim=1),
}

MORE_D = {
    "rectangle": lambda: Sequential(Conv((3, 5), (2, 1), padding=(1, 2)), Conv((2, 1), (1, 3))),
    "dense": lambda: Sequential(
        Conv((3, 3), taps=DENSE, padding=1), Residual(Conv((3, 3), taps=DENSE, padding=1, gain=2.0))
    ),
    "dense transposed": lambda: Sequential(
        Conv((3, 3), taps=DENSE),
        ConvTranspose((3, 3), 2, padding=1, taps=DENSE),
        Conv((3, 3), 2, taps=DENSE, padding=1),
        ConvTranspose((3, 3), (2, 3), taps=DENSE, padding=1),
    ),
    "mixed scales": lambda: Sequential(
        Conv(3, padding=1), Upsample((2, "3/2"), "linear"), Conv(3, padding=1)
    ),
    "unet": lambda: encoder_decoder(lambda: ConvTranspose(3, 2, padding=1, channels=4), 2),
    "volume": lambda: Sequential(
        Conv((3, 2, 3), (2, 1, 1), padding=1), ConvTranspose((3, 1, 2), (2, 1, 2)), ndim=3
    ),
}
# Paths of different strides cannot merge on a known size.
UNBOUNDED = (
    ONE_D
    | MORE_D
    | {"strides": lambda: Sequential(Parallel(Conv(3, 2, taps=SKEW), Upsample(2)), Conv(3), ndim=1)}
)

BORDERS = {
    "max": lambda: Sequential(Conv(3, padding=1), MaxPool(3, 2, padding=1, ceil_mode=True), ndim=1),
    "average": lambda: Sequential(
        AvgPool(3, 2, padding=1, count_include_pad=False), AvgPool(4, 3, ceil_mode=True), ndim=1
    ),
    "reflect": lambda: Sequential(*[Conv(5, padding=2, padding_mode="reflect")] * 2, ndim=1),
    "causal": lambda: Sequential(*[Conv(5, padding=((9, 0),))] * 3, ndim=1),
    "resized": lambda: Sequential(
        Conv(3, padding=1), Upsample(size=7, mode="linear", coordinates="align_corners"), ndim=1
    ),
    "squeeze": lambda: Sequential(Conv(3, padding=1), SqueezeExcite(), Conv(3, padding=1)),
    "attention": lambda: Sequential(
        Conv(3, 2, padding=((1, 0),), taps=SKEW), Attention(gain=0.5), Conv(2), ndim=1
    ),
    "global": lambda: Sequential(Conv(3, 2, padding=1), GlobalPool()),
    "gate": lambda: Sequential(
        Conv(3, padding=1), Parallel(None, [GlobalPool(), Conv(1)], merge="multiply"), Conv(2)
    ),
}


# --- against exact images ---------------------------------------------------------------------


@pytest.mark.parametrize("name", UNBOUNDED)
def test_unbounded_matches_exact_image(name):
    graph = lower(UNBOUNDED[name]())
    node = graph.output_node(None)
    # On one axis every phase of the upsampling layers here (the lcm of their factors divides 12).
    one = graph.ndim == 1
    units = (
        [(u,) for u in (-1, *range(7))] if one else [(0,) * graph.ndim, (3, -2, 1)[: graph.ndim]]
    )
    for unit in units:
        image = exact_image(graph, node, unit)
        if any(image.values()):
            assert_moments(moments(graph, node, unit), Exact(image), count_maps(graph))
        else:
            assert moments(graph, node, unit).log_mass == -math.inf


@pytest.mark.parametrize("name", ["channels", "shuffle"])
def test_inner_nodes_of_several_planes(name):
    """A unit's variance is shared out over the planes of its node."""
    free, sized = lower(ONE_D[name]()), lower(ONE_D[name](), 12)
    assert max(len(planes) for planes in free.planes_of.values()) > 1
    for inner in free.network.nodes:
        exact = Exact(exact_image(free, inner, (4,)))
        assert_moments(moments(free, inner, (4,)), exact, count_maps(free))
        clipped = Exact(exact_image(sized, inner, (4,)))
        assert_moments(forward_moments(sized, inner, (4,)), clipped, count_maps(sized))
        if name == "channels":
            mass = unclipped_mass(free, inner)
            tol = ROUNDINGS * count_maps(free) * EPS
            assert mass.ratio(Mass(float(exact.mass))) == pytest.approx(1, rel=tol)


SIZED = {name: (make, 24 if name == "rational" else 12) for name, make in ONE_D.items()}
# The transposed convolution of "unet" makes maps of unequal size, which only a known size forbids.
SIZED |= {name: (make, 4) for name, make in MORE_D.items() if name != "unet"}
SIZED |= {name: (make, 11) for name, make in BORDERS.items()}


@pytest.mark.parametrize("name", SIZED)
def test_known_size_matches_exact_image(name):
    make, size = SIZED[name]
    graph = lower(make(), size)
    node = graph.output_node(None)
    every = forward_moments(graph, node)
    shape = graph.sizes[node]
    units = list(np.ndindex(*shape))
    for unit in units[:: max(len(units) // 9, 1)]:
        exact = exact_image(graph, node, unit)
        got = forward_moments(graph, node, unit)
        assert got.mean == pytest.approx(every.mean[unit], rel=0, abs=0, nan_ok=True)
        assert got.mass.mantissa == every.mass.mantissa[unit]
        if any(exact.values()):
            assert_moments(got, Exact(exact), count_maps(graph))
        else:
            assert got.mass.mantissa == 0
            assert np.all(np.isnan(got.kurtosis))


@pytest.mark.parametrize("name", ["strided", "transposed4", "linear", "channels", "misaligned"])
def test_both_directions_agree_far_from_borders(name):
    size = 240
    sized, free = lower(ONE_D[name](), size), lower(ONE_D[name]())
    middle = sized.unit_index(sized.output_node(None), "center")
    there, here = moments(free, None, middle), forward_moments(sized, None, middle)
    tol = ROUNDINGS * count_maps(free) * EPS
    assert here.mass.ratio(there.mass) == pytest.approx(1, rel=2 * tol)
    # The tolerance of either side, relative to (2σ)^q.
    scale = 2 * there.std
    assert np.all(np.abs(here.mean - there.mean) <= 2 * tol * scale + 4 * EPS * there.mean)
    assert np.all(np.abs(here.covariance - there.covariance) <= 2 * tol * scale**2)
    assert np.all(np.abs(here.fourth_cumulant - there.fourth_cumulant) <= 2 * tol * scale**4)


# --- against the naive loops ------------------------------------------------------------------


@pytest.mark.parametrize("graph", [pytest.param(g, id=name) for name, g in graphs.cases()])
def test_matches_naive_loops(graph):
    nodes, net = graph.naive(), graph.network()
    free, sized = lower(net), lower(net, graph.size)
    # The loops round in float64, at most once per map and tap read: the roundings of a second
    # walk stand for them.
    count = 2 * count_maps(free)
    corners = [(0,) * graph.ndim, tuple(n - 1 for n in graph.map_size())]
    for unit in (*corners, tuple(n // 2 for n in graph.map_size())):
        image = naive.variance_unbounded(nodes, graph.output, unit)
        clipped = dict(np.ndenumerate(naive.variance(nodes, graph.output, unit, graph.size)))
        for got, expected in (
            (moments(free, None, unit), image),
            (forward_moments(sized, None, unit), clipped),
        ):
            if any(expected.values()):
                assert_moments(got, Exact(expected), count)
            else:
                assert got.log_mass == -math.inf


# --- closed forms -----------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "n"), [(2, 7), (3, 10_000), (7, 999)])
def test_luo_equation_11(k, n):
    """σ = √(n(k²−1)/12), excess −(6/5)(k²+1)/(n(k²−1)), mean n((k−1)/2 − lo)."""
    got = moments(lower(Sequential(*[Conv(k, padding=1)] * n)), None, (4, -9))
    # One rounding per layer and moment.
    assert got.std == pytest.approx([math.sqrt(n * (k * k - 1) / 12)] * 2, rel=n * EPS)
    assert got.kurtosis == pytest.approx([-1.2 * (k * k + 1) / (n * (k * k - 1))] * 2, rel=n * EPS)
    assert got.mean.tolist() == [4 + n * ((k - 1) / 2 - 1), -9 + n * ((k - 1) / 2 - 1)]
    assert got.third.tolist() == [0, 0]
    assert got.covariance[0, 1] == 0
    assert got.log_mass == 0


@pytest.mark.parametrize(("n", "gain"), [(3, 1.0), (40, 0.25), (2_000, 3.0)])
def test_residual_stack(n, gain):
    """q = C/(1+C): mass (1+C)^n, variance nqs², κ₄ = n[q(κ₄+3s⁴) − 3q²s⁴], κ₃ = 0."""
    branch = Residual(Conv(5, padding=2), Conv(1, gain=gain))
    got = moments(lower(Sequential(*[branch] * n)), None, "center")
    q, s2, k4 = gain / (1 + gain), 2.0, -624 / 120
    # The two paths' variances, of order n, differ by s² in the fourth cumulant: each of the n
    # blocks adds 3q(1−q)s⁴ with a relative error of n·ε at most.
    assert got.covariance[0, 0] == pytest.approx(n * q * s2, rel=4 * n * EPS)
    expected = n * (q * (k4 + 3 * s2**2) - 3 * q * q * s2**2)
    assert got.fourth_cumulant == pytest.approx([expected] * 2, rel=8 * n * EPS)
    assert got.log_mass == pytest.approx(n * math.log1p(gain), rel=4 * n * EPS)
    # Two axes that take the same branch together are dependent, though not correlated.
    assert got.covariance[0, 1] == 0


def exact_walk(layers):
    """Raw moments 1, x, …, x⁴ about the unit as fractions, from the unit down to the input.

    `layers`, input first: (stride, dilation, lo, whether an identity runs beside it, taps).
    """
    raw = [Fraction(1), *[Fraction(0)] * 4]
    for stride, dilation, lo, skip, taps in reversed(layers):
        shifts = [(m * dilation - lo, Fraction(v)) for m, v in enumerate(taps)]
        new = [
            sum(
                v * math.comb(q, j) * Fraction(t) ** (q - j) * stride**j * raw[j]
                for t, v in shifts
                for j in range(q + 1)
            )
            for q in range(5)
        ]
        raw = [a + (b if skip else 0) for a, b in zip(new, raw, strict=True)]
    m = [x / raw[0] for x in raw]
    result = Exact.__new__(Exact)
    result.mass, result.mean = raw[0], [m[1]]
    variance = m[2] - m[1] ** 2
    result.covariance = [[variance]]
    result.third = [m[3] - 3 * m[1] * m[2] + 2 * m[1] ** 3]
    fourth = m[4] - 4 * m[1] * m[3] + 6 * m[1] ** 2 * m[2] - 3 * m[1] ** 4
    result.fourth = [fourth - 3 * variance**2]
    return result


@pytest.mark.parametrize("seed", [1, 2])
def test_deep_stacks_against_fractions(seed):
    """150 layers with random skewed taps, off-centre padding, dilation, strides and skips."""
    draw = np.random.default_rng(seed)
    layers, blocks = [], []
    for i in range(150):
        k, d, lo = int(draw.integers(2, 6)), int(draw.integers(1, 4)), int(draw.integers(0, 9))
        stride = 2 if i % 40 == 20 else 1
        skip = stride == 1 and bool(draw.integers(2))
        conv = Conv((k,), stride, d, padding=(lo,), taps=draw.random(k))
        layers.append((stride, d, lo, skip))
        blocks.append(Residual(conv) if skip else conv)
    graph = lower(Sequential(*blocks, ndim=1))
    # The taps as the network holds them, after its own normalisation.
    taps = [op.maps[0].axis_taps(0).tolist() for op in graph.operations if op.maps]
    walk = [(*layer, v) for layer, v in zip(layers, taps, strict=True)]
    got = moments(graph, None, (0,))
    assert_moments(got, exact_walk(walk), len(layers))
    assert np.all(np.isfinite(got.skewness))


@pytest.mark.parametrize("sign", [1, -1])
def test_gains_far_beyond_the_range_of_floats(sign):
    """Two branches of gain 2^±100000, one three times the other: the mixture is exact."""
    huge = [Conv(1, gain=2.0 ** (sign * 1000))] * 100
    net = Sequential(Parallel([*huge, Conv(3, padding=1)], [*huge, Conv(1, gain=3.0)]), ndim=1)
    graph = lower(net)
    got = moments(graph, None, (0,))
    assert got.covariance[0, 0] == pytest.approx(1 / 4 * 2 / 3, rel=4 * EPS)
    assert got.log_mass == pytest.approx(sign * 1e5 * math.log(2) + math.log(4), rel=2 * EPS)
    assert got.mass.ratio(Mass(1.0, sign * 100_000)) == 4
    assert unclipped_mass(graph, None).ratio(got.mass) == 1
    sized = forward_moments(lower(net, 9), None, (4,))
    assert sized.mass.ratio(got.mass) == pytest.approx(1, rel=4 * EPS)
    assert sized.covariance[0, 0] == pytest.approx(1 / 6, rel=8 * EPS)


def test_distant_units_lose_no_digits():
    """A unit a billion pixels away has the same shape: positions count from a nearby point."""
    near, far = (moments(lower(ONE_D["misaligned"]()), None, (u,)) for u in (0, 10**9))
    assert far.mean[0] - near.mean[0] == 2 * 10**9
    assert np.array_equal(far.covariance, near.covariance)
    assert np.array_equal(far.fourth_cumulant, near.fourth_cumulant)


# --- mass, errors -----------------------------------------------------------------------------


def test_lost_mass_at_the_border():
    """One 3-tap layer loses 1/3 of unit 0; in the middle of a larger map nothing is lost."""
    graph = lower(Sequential(Conv(3, padding=1, gain=5.0), ndim=1), 4)
    kept = forward_moments(graph, None).mass.ratio(unclipped_mass(graph, None))
    assert 1 - kept == pytest.approx([1 / 3, 0, 0, 1 / 3], abs=4 * EPS)


@pytest.mark.parametrize("name", ["strided", "misaligned", "residual", "channels", "crop"])
def test_unclipped_mass_is_the_unbounded_mass(name):
    graph = lower(ONE_D[name]())
    tol = ROUNDINGS * count_maps(graph) * EPS
    ratio = moments(graph, None, "center").mass.ratio(unclipped_mass(graph, None))
    assert ratio == pytest.approx(1, rel=tol)


def test_mass_arithmetic():
    assert Mass(3.0, 10_000).plus(Mass(1.0, 10_000)).ratio(Mass(1.0, 10_001)) == 2
    assert Mass(1.0, 10_000).plus(Mass(1.0, -10_000)).ratio(Mass(1.0, 10_000)) == 1
    assert Mass(1.0, 10_000).ratio(Mass(1.0)) == math.inf
    assert Mass(0.0).log == -math.inf
    assert Mass(1.0).times(2.0**1000).times(2.0**1000).log == pytest.approx(2000 * math.log(2))


def test_a_unit_that_reads_nothing_has_no_moments():
    graph = lower(Sequential(ConvTranspose(1, 2), ndim=1))
    assert moments(graph, None, (0,)).log_mass == 0
    got = moments(graph, None, (1,))
    assert got.log_mass == -math.inf
    assert np.all(np.isnan(got.mean))
    assert np.all(np.isnan(got.kurtosis))
    sized = forward_moments(lower(Sequential(ConvTranspose(1, 2), ndim=1), 3), None)
    assert sized.mass.mantissa[1::2].tolist() == [0, 0]
    assert np.all(np.isnan(sized.mean[1::2]))
    assert sized.mean[::2, 0].tolist() == [0, 1, 2]


def test_a_point_has_no_shape():
    got = moments(lower(Sequential(Conv(1), Conv(1, 2))), None, (3, 1))
    assert got.mean.tolist() == [6, 2]
    assert got.std.tolist() == [0, 0]
    assert np.all(np.isnan(got.skewness))


def test_the_input_itself():
    net = Sequential(Conv(3), ndim=1)
    assert moments(lower(net), "input", (7,)).mean.tolist() == [7]
    assert forward_moments(lower(net, 9), "input", (7,)).mean.tolist() == [7]


def global_branch():
    return Sequential(Conv(3, padding=1), ("gate", SqueezeExcite()), ("top", Conv(3)), ndim=1)


def test_global_layers_have_no_unbounded_moments():
    graph = lower(global_branch())
    with pytest.raises(UnboundedError, match=r"gate.*input_size.*ignore_global=True"):
        moments(graph, None, "center")
    # What lies before the global layer does not meet it.
    assert moments(graph, "conv1", "center").covariance[0, 0] == pytest.approx(2 / 3, rel=4 * EPS)
    without = lower(global_branch(), ignore_global=True)
    assert moments(without, None, "center").covariance[0, 0] == pytest.approx(4 / 3, rel=8 * EPS)


def two_inputs():
    b = Builder()
    left, right, third = b.input("left"), b.input("right"), b.input("unread")
    gated = b.add([GlobalPool()], right)
    top = b.add(Multiply(), b.add(Conv(3, padding=1), left), gated)
    other = b.add(Conv(3, padding=1), third, name="other")
    return b.build(top, other, ndim=1)


def test_each_input_has_its_own_field():
    net = two_inputs()
    top = net.outputs[0]
    # The global layer is on the way to `right` alone.
    assert moments(lower(net), top, 0, "left").covariance[0, 0] == pytest.approx(2 / 3)
    with pytest.raises(UnboundedError):
        moments(lower(net), top, 0, "right")
    sized = lower(net, 5)
    assert forward_moments(sized, top, "center", "right").covariance[0, 0] == pytest.approx(2)
    for call in (
        lambda: moments(lower(net), top, 0, "unread"),
        lambda: forward_moments(sized, top, 0, "unread"),
        lambda: unclipped_mass(lower(net), top, "unread"),
    ):
        with pytest.raises(InputError, match="does not depend on the input 'unread'"):
            call()


def test_refusals_name_the_remedy():
    net = Network({"up": (ConvTranspose(2, 2), "input"), "sum": (Add(), "up")}, ndim=1)
    with pytest.raises(InputError, match="forward_moments"):
        moments(lower(net, 4), None, 0)
    with pytest.raises(InputError, match="input_size"):
        forward_moments(lower(net), None, 0)
    with pytest.raises(InputError, match=r"up: only networks of windows.*moments\(\)"):
        unclipped_mass(lower(net), None)
