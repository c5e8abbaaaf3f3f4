"""The engines, pixel by pixel, against loops, autograd, exact integers and closed forms.

Errors are relative to each pixel, not to the peak. A pixel's value is a tree of sums and products
of nonnegative numbers, each of which rounds once: N of them in sequence leave a relative error of
at most N·u/(1 − N·u), u = eps/2.
"""

from __future__ import annotations

import itertools
import math
from functools import cache
from typing import Any

import graphs
import naive
import numpy as np
import pytest
from fastrf.kernels import load
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrf as rf
from fastrf.analytic.polynomial import exact_profile, profile_float
from fastrf.engine import ENGINES, covariance, threads
from fastrf.engine.factored import obstacle
from fastrf.errors import ToleranceError
from fastrf.lowering import lower

U = {"float64": 2.0**-53, "float32": 2.0**-24}

# Networks of this file that are compared with loops have at most 8 layers of at most 50 taps, in
# up to three axes, so a pixel passes fewer than 8·(50 + 2) + 8 roundings in the engine and as
# many in the loops: 900 of them together are 1e-13 in float64.
ROUNDINGS = 900

RELATIVE = ["direct", "factored"]
"""The methods whose first engines add nonnegative numbers only; others are right to a tolerance."""

BY_VARIANCES = [
    n for n in ENGINES if n not in ("correlated", "cancelling", "projected", "channelwise")
]


@pytest.fixture(autouse=True)
def variances_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loops know variances alone: here no field asks for covariances (see test_correlated)."""
    monkeypatch.setattr(covariance, "needed", lambda *where: False)


CASES: dict[str, graphs.Graph] = dict(graphs.cases())


def steps(*layers: tuple[str, dict[str, Any]], size: Any, ndim: int) -> graphs.Graph:
    return graphs.chain(ndim, size, *layers)


def taps(*shape: int, seed: int = 0, zeros: int = 0) -> np.ndarray:
    """Unequal variances of sum 1, no product of vectors, over nine orders of magnitude."""
    rng = np.random.default_rng(seed)
    values = 10.0 ** rng.uniform(-9, 0, shape)
    values.flat[rng.choice(values.size, zeros, replace=False)] = 0
    return values / values.sum()


def product(*vectors: list[float]) -> np.ndarray:
    result = np.ones(())
    for v in vectors:
        result = np.multiply.outer(result, np.asarray(v) / np.sum(v))
    return result


def conv(kernel: Any, **more: Any) -> tuple[str, dict[str, Any]]:
    return "conv", {"kernel": kernel, **more}


def back(kernel: Any, **more: Any) -> tuple[str, dict[str, Any]]:
    return "conv_transpose", {"kernel": kernel, **more}


CASES |= {
    "weighted": steps(
        conv(4, taps=taps(4), stride=2, lo=2, hi=1),
        conv(3, taps=taps(3, seed=1), dilation=2, lo=2, hi=2),
        size=19,
        ndim=1,
    ),
    "zero taps": steps(
        conv(5, taps=taps(5, zeros=3), lo=2, hi=2),
        conv(4, taps=[0, 0.25, 0, 0.75], lo=3),
        size=12,
        ndim=1,
    ),
    "dense": steps(
        conv([3, 4], taps=taps(3, 4), lo=[1, 2], hi=[1, 1]),
        conv([2, 3], taps=taps(2, 3, seed=2, zeros=2), stride=[1, 2], dilation=[2, 1], lo=1),
        size=(7, 9),
        ndim=2,
    ),
    "dense, strided": steps(
        conv([3, 2], taps=taps(3, 2, seed=3), stride=[2, 3], lo=[0, 2], hi=1),
        conv(3, lo=1, hi=1),
        size=(9, 10),
        ndim=2,
    ),
    "dense, transposed": steps(
        back([3, 4], taps=taps(3, 4, seed=4), stride=[2, 3], dilation=[1, 2], lo=[1, 3]),
        conv(3, taps=taps(3, 3, seed=5), lo=1, hi=1),
        size=(4, 3),
        ndim=2,
    ),
    "dense 3-D": steps(
        conv([2, 3, 2], taps=taps(2, 3, 2, seed=6), lo=[1, 1, 0], hi=[0, 1, 1]),
        back([1, 2, 3], taps=taps(1, 2, 3, seed=7), stride=[1, 2, 1], lo=[0, 0, 1], hi=[0, 1, 0]),
        size=(3, 4, 3),
        ndim=3,
    ),
    "product": steps(
        conv([3, 4], taps=product([1, 2, 5], [1, 0, 3, 1e-6]), stride=[2, 1], lo=[1, 3], hi=2),
        back([2, 3], taps=product([1, 7], [1, 1, 1]), stride=[2, 2], lo=[1, 0]),
        size=(9, 6),
        ndim=2,
    ),
    "product 3-D": steps(
        conv([2, 3, 1], taps=product([1, 3], [2, 1, 2], [1]), lo=[1, 1, 0], dilation=[1, 2, 1]),
        ("maxpool", {"kernel": [1, 2, 2], "stride": [1, 1, 2]}),
        size=(3, 6, 4),
        ndim=3,
    ),
    "anisotropic throughout": steps(
        conv([5, 2], stride=[3, 1], dilation=[1, 3], lo=[2, 0], hi=[0, 4]),
        ("avgpool", {"kernel": [1, 3], "stride": [1, 2], "lo": [0, 1], "hi": [0, 1]}),
        ("upsample_nearest", {"factor": [3, 1]}),
        ("upsample_linear", {"factor": [1, 2]}),
        back([2, 5], stride=[1, 4], lo=[0, 2], hi=[1, 1], output_padding=[0, 3]),
        size=(10, 7),
        ndim=2,
    ),
    "wide boxes": steps(
        conv(41, stride=3, lo=20, hi=20),
        conv(33, dilation=2, lo=32, hi=32),
        back(37, stride=2, lo=18, hi=18),
        size=50,
        ndim=1,
    ),
}


def engines(graph: graphs.Graph, size: Any) -> list[str]:
    lowered = lower(graph.network(), size)
    free = obstacle(lowered, lowered.output_node(None), "input") is None
    return [name for name in RELATIVE if name != "factored" or free]


def units(graph: graphs.Graph, size: Any) -> list[tuple[int, ...]]:
    """Unbounded: neighbouring phases, on either side of 0. Clipped: corners, edge and middle."""
    if size is None:
        return [(0,) * graph.ndim, (1,) * graph.ndim, tuple(range(-2, graph.ndim - 2))]
    shape = graph.map_size()
    middle = tuple(n // 2 for n in shape)
    mixed = tuple(0 if axis else n - 1 for axis, n in enumerate(shape))
    return sorted({(0,) * graph.ndim, tuple(n - 1 for n in shape), mixed, middle, _next(middle)})


def _next(unit: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(max(u - 1, 0) for u in unit)


def expected(
    graph: graphs.Graph, unit: tuple[int, ...], size: Any
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The loops' image, not normalised, without zero borders, and its origin."""
    if size is not None:
        image = naive.variance(graph.naive(), graph.output, unit, size)
        origin = (0,) * graph.ndim
    else:
        found = naive.variance_unbounded(graph.naive(), graph.output, unit)
        if not found:
            return np.zeros((0,) * graph.ndim), (0,) * graph.ndim
        origin = tuple(min(i) for i in zip(*found, strict=True))
        last = tuple(max(i) for i in zip(*found, strict=True))
        image = np.zeros([b - a + 1 for a, b in zip(origin, last, strict=True)])
        for index, value in found.items():
            image[tuple(i - a for i, a in zip(index, origin, strict=True))] = value
    if not image.any():
        return np.zeros((0,) * graph.ndim), origin
    inside = [(int(i.min()), int(i.max()) + 1) for i in np.nonzero(image)]
    image = image[tuple(slice(*ends) for ends in inside)]
    return image, tuple(o + a for o, (a, _) in zip(origin, inside, strict=True))


def assert_image(result: rf.ERF, image: np.ndarray, origin: Any, dtype: str) -> None:
    """Window, support, every pixel, mass and normalisation."""
    total = float(image.sum())
    bound = ROUNDINGS * U[dtype]
    assert result.origin == tuple(origin)
    assert result.image.shape == image.shape
    assert result.image.dtype == dtype
    np.testing.assert_array_equal(result.image > 0, image > 0)
    np.testing.assert_allclose(result.image, image / total, rtol=bound, atol=0)
    # An absolute error of a logarithm is a relative one of the mass.
    assert result.log_gain == pytest.approx(math.log(total), rel=4 * U["float64"], abs=bound)
    assert float(result.image.sum(dtype=np.float64)) == pytest.approx(1, abs=bound)


def assert_engines(graph: graphs.Graph, size: Any, **options: Any) -> None:
    net = graph.network()
    for unit in units(graph, size):
        image, origin = expected(graph, unit, size)
        for method, dtype in itertools.product(engines(graph, size), U):
            choices = {"unit": unit, "input_size": size, "method": method, "dtype": dtype}
            if not image.size:
                with pytest.raises(rf.errors.InputError, match="reads nothing"):
                    rf.erf(net, **choices, **options)
                continue
            assert_image(rf.erf(net, **choices, **options), image, origin, dtype)


# --- loops ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("grid", ["unbounded", "clipped"])
def test_against_loops(name: str, grid: str) -> None:
    graph = CASES[name]
    assert_engines(graph, None if grid == "unbounded" else graph.size)


@pytest.mark.parametrize("engine", BY_VARIANCES)
@pytest.mark.parametrize("grid", ["unbounded", "clipped"])
def test_every_engine(engine: str, grid: str) -> None:
    """By name, on every graph that it serves, as right as it says that it is."""
    served = 0
    for graph in CASES.values():
        size = None if grid == "unbounded" else graph.size
        lowered = lower(graph.network(), size)
        for unit in units(graph, size)[:2]:
            where = (lowered, lowered.output_node(None), unit, "input")
            tol = 1e-10
            image, origin = expected(graph, unit, size)
            if ENGINES[engine].refuses(*where, tol) is not None or not image.size:
                continue
            served += 1
            try:
                assert_as_right_as_said(engine, where, tol, image / image.sum(), origin)
            except ToleranceError:
                assert ENGINES[engine].accuracy == "absolute"  # nor does it claim to be right
    # What needs a transfer function finds none where borders clip the image.
    assert (served > 0) == (ENGINES[engine].method != "spectral" or grid == "unbounded")


def assert_as_right_as_said(
    name: str, where: Any, tol: float, image: np.ndarray, origin: tuple[int, ...]
) -> None:
    engine = ENGINES[name]
    options = {} if engine.finest is None else {"tol": tol}
    found = engine.run(*where, kernels=load("cpu"), **options)
    pixels = np.zeros_like(image)
    window = tuple(
        slice(f - o, f - o + n)
        for f, o, n in zip(found.origin, origin, found.image.shape, strict=True)
    )
    pixels[window] = found.pixels()
    allowed = ROUNDINGS * U["float64"] + (0.0 if engine.finest is None else tol)
    scale = image if engine.accuracy == "relative" else image.max()
    assert (np.abs(pixels - image) <= allowed * scale).all()


@pytest.mark.parametrize("name", CASES)
def test_tiles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three threads, each with a few pixels of every layer."""
    monkeypatch.setattr(threads, "TILE_CELLS", 2)
    graph = CASES[name]
    assert_engines(graph, graph.size, workers=3)


def test_tiles_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above would see nothing if layers were still done in one piece."""
    monkeypatch.setattr(threads, "TILE_CELLS", 2)
    parts: list[tuple[int, int]] = []

    def watched(self: threads.Threads, length: int, cells: int, run: Any, work: float) -> None:
        plain(self, length, cells, lambda a, b: (parts.append((a, b)), run(a, b)), work)

    plain = threads.Threads.cut
    monkeypatch.setattr(threads.Threads, "cut", watched)
    rf.erf(rf.Sequential(rf.Conv(9), ndim=1), method="direct", workers=3)
    assert sorted(parts) == [(0, 3), (3, 6), (6, 9)]


@settings(derandomize=True, max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 1, 2]))
def test_random_graphs(seed: int, ndim: int) -> None:
    graph = graphs.random_graph(seed, ndim, 10 if ndim == 1 else 6)
    for size in (None, graph.size):
        assert_engines(graph, size)


@st.composite
def weighted_chains(draw: st.DrawFn) -> graphs.Graph:
    """Two layers with taps of any kind, every value drawn per axis."""
    ndim = draw(st.integers(1, 3))

    def per_axis(low: int, high: int) -> list[int]:
        return [draw(st.integers(low, high)) for _ in range(ndim)]

    layers = []
    for _ in range(2):
        kernel = per_axis(1, 4 if ndim < 3 else 2)
        stride, dilation = per_axis(1, 3), per_axis(1, 2)
        values = taps(*kernel, seed=draw(st.integers(0, 99)))
        if draw(st.booleans()):
            values = product(*(taps(k, seed=k).tolist() for k in kernel))
        op = draw(st.sampled_from(["conv", "conv_transpose"]))
        lo, hi = (per_axis(0, 2), per_axis(0, 2)) if op == "conv" else ([0] * ndim, [0] * ndim)
        layers.append(
            (
                op,
                {
                    "kernel": kernel,
                    "stride": stride,
                    "dilation": dilation,
                    "lo": lo,
                    "hi": hi,
                    "taps": values,
                },
            )
        )
    return graphs.chain(ndim, 20 if ndim == 1 else (9, 8, 7)[:ndim], *layers)


@settings(derandomize=True, max_examples=30, deadline=None)
@given(weighted_chains())
def test_random_taps(graph: graphs.Graph) -> None:
    assert_engines(graph, None)
    try:
        graph.network()
        lower(graph.network(), graph.size)
    except rf.errors.InputError:
        return  # the map is smaller than the kernel
    assert_engines(graph, graph.size)


# --- autograd -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "pools",
        "pools without padding count",
        "transposed, strided again",
        "up and down",
        "reflect 2-D",
        "linear decoder",
        "shifted decoder",
        "anisotropic 2-D",
        "3-D",
        "dense",
        "dense, transposed",
        "anisotropic throughout",
    ],
)
def test_against_autograd(name: str) -> None:
    torch_oracle = pytest.importorskip("torch_oracle")
    graph = CASES[name]
    for unit in units(graph, graph.size):
        image = torch_oracle.variance(graph.naive(), graph.output, unit, graph.size)
        if not image.any():
            continue
        result = rf.erf(graph.network(), unit=unit, input_size=graph.size)
        window = tuple(slice(a, b + 1) for a, b in result.box)
        np.testing.assert_allclose(
            result.image * math.exp(result.log_gain),
            image[window],
            rtol=2 * ROUNDINGS * U["float64"],
            atol=0,
        )
        assert image.sum() == pytest.approx(image[window].sum(), rel=ROUNDINGS * U["float64"])


# --- mass -----------------------------------------------------------------------------------

_EVEN = {"input", "conv", "add", "concat", "identity"}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name, graph in CASES.items()
        if all(n["op"] in _EVEN and "mode" not in n for n in graph.nodes)
    ],
)
def test_mass_balance(name: str) -> None:
    """Where every unit hands down all it gets, what does not arrive fell into padding."""
    graph = CASES[name]
    free = expected(graph, (0,) * graph.ndim, None)[0].sum()
    for unit, method in itertools.product(units(graph, graph.size), engines(graph, graph.size)):
        image, _ = expected(graph, unit, graph.size)
        if not image.size:
            continue
        result = rf.erf(graph.network(), unit=unit, input_size=graph.size, method=method)
        assert result.dropped_mass == 0
        assert result.lost_mass == pytest.approx(
            1 - image.sum() / free, abs=2 * ROUNDINGS * U["float64"]
        )


@pytest.mark.parametrize("name", ["residual", "weighted", "dense", "product 3-D", "strided"])
def test_nothing_is_lost_without_borders(name: str) -> None:
    graph = CASES[name]
    for method in engines(graph, None):
        assert rf.erf(graph.network(), method=method).lost_mass == 0


# --- exact integers -------------------------------------------------------------------------


@cache
def exact(n: int, k: int) -> np.ndarray:
    return profile_float(*exact_profile(n, k)).probability


def plain(n: int, k: int, ndim: int) -> rf.Network:
    return rf.Sequential(*[rf.Conv(k, padding=(k - 1) // 2)] * n, ndim=ndim)


@pytest.mark.parametrize(
    ("n", "k"), [(1, 1), (1, 7), (5, 2), (40, 3), (300, 2), (100, 5), (60, 17), (1000, 3)]
)
def test_exact_integers(n: int, k: int) -> None:
    """Every pixel, from the peak down to the smallest normal number."""
    result = rf.erf(plain(n, k, 1))
    integers = exact(n, k)
    first = n * ((k - 1) // 2)
    seen = np.zeros_like(integers)
    seen[result.origin[0] + first : result.origin[0] + first + len(result.image)] = result.image
    # A sum of k equal taps rounds at most k − 1 times; then the total, its quotient, and one for
    # the integers. The smallest normal number decides by a rounding what is kept.
    bound = (n * (k - 1) + 4) * U["float64"]
    kept = integers > 1e-300
    np.testing.assert_allclose(seen[kept], integers[kept], rtol=bound, atol=0)
    assert (seen[integers == 0] == 0).all()
    assert result.log_gain == pytest.approx(0, abs=bound)


def test_far_tails_of_a_thousand_layers() -> None:
    """1e-13 is promised: half of what 2000 roundings could at worst add up to."""
    result = rf.erf(plain(1000, 3, 1))
    integers = exact(1000, 3)
    seen = result.image
    first = (len(integers) - len(seen)) // 2
    kept = slice(first + 5, first + len(seen) - 5)
    assert integers[kept].min() < 1e-300
    np.testing.assert_allclose(seen[5:-5], integers[kept], rtol=1e-13, atol=0)


@pytest.mark.parametrize("method", RELATIVE)
@pytest.mark.parametrize(("n", "k", "ndim"), [(60, 3, 2), (25, 4, 2), (123, 5, 2), (12, 3, 3)])
def test_exact_integers_in_more_axes(method: str, n: int, k: int, ndim: int) -> None:
    result = rf.erf(plain(n, k, ndim), method=method)
    profile = exact(n, k)
    image = np.ones(())
    for _ in range(ndim):
        image = np.multiply.outer(image, profile)
    assert result.image.shape == image.shape
    bound = (ndim * (n * (k - 1) + 4) + 4) * U["float64"]
    np.testing.assert_allclose(result.image, image, rtol=bound, atol=0)


@pytest.mark.parametrize("method", RELATIVE)
def test_windows_end_where_nothing_is_left(method: str) -> None:
    """A corner is a product of tails: rows whose every pixel is too small are no part of the image.

    Both axes' profiles reach down to the smallest normal number, but their product does so only
    near the middle of the other axis.
    """
    result = rf.erf(plain(420, 3, 2), method=method)
    for axis in range(2):
        rows = result.image.any(axis=1 - axis)
        assert rows[0]
        assert rows[-1]
    profile = exact(420, 3)
    # A row's largest pixel is its profile's value times the peak of the other profile.
    kept = np.flatnonzero(profile * profile.max() > np.finfo(np.float64).tiny)
    assert result.box == ((int(kept[0]) - 420, int(kept[-1]) - 420),) * 2


# --- depth ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ndim", "options"),
    [(1, {"method": "direct"}), (2, {"tail": 1e-16}), (1, {"dtype": "float32"})],
)
def test_ten_thousand_layers(ndim: int, options: dict[str, Any]) -> None:
    n, k = 10_000, 3
    result = rf.erf(plain(n, k, ndim), **options)
    # Moments average the pixels' errors: 20,000 roundings of either sign are √20,000·u = 2e-14 in
    # float64; dropping a share t of the mass at 9σ moves the variance by 81·t.
    bound = 1e-12 if result.image.dtype == np.float64 else 2e4 * U["float32"]
    assert np.isfinite(result.image).all()
    assert result.log_gain == pytest.approx(0, abs=bound)
    assert float(result.image.sum(dtype=np.float64)) == pytest.approx(1, abs=bound)
    sigma = math.sqrt(n * (k * k - 1) / 12)
    for axis in range(ndim):
        assert result.mean[axis] / sigma == pytest.approx(0, abs=bound)
        assert result.std[axis] == pytest.approx(sigma, rel=bound)
        # κ₄/σ⁴ of n uniform layers.
        kurtosis = -(k**4 - 1) / 120 * n / sigma**4
        assert result.kurtosis[axis] == pytest.approx(kurtosis, abs=100 * bound)


def test_a_thousand_layers_between_borders() -> None:
    """Against the eigenvectors of the tridiagonal matrix of ones, in two dimensions.

    Its n-th power over 3^n is the clipped image in one dimension; all of the mass but e^−22 falls
    into the padding. λ_j = 1 + 2 cos(jπ/(N+1)), v_j(i) = √(2/(N+1)) sin(jπ(i+1)/(N+1)).
    """
    n, size, unit = 1_000, 16, (8, 3)
    j = np.arange(1, size + 1)
    modes = np.sqrt(2 / (size + 1)) * np.sin(np.outer(np.arange(1, size + 1), j) * np.pi / 17)
    power = n * np.log(np.abs((1 + 2 * np.cos(j * np.pi / (size + 1))) / 3))
    top = power.max()
    profiles = [(modes * np.exp(power - top)) @ modes[u] for u in unit]
    image = np.multiply.outer(*profiles)
    for method in RELATIVE:
        result = rf.erf(plain(n, 3, 2), unit=unit, input_size=size, method=method)
        # exp(n·log λ) has n·u·|log λ| of error in the oracle; the engine rounds 4·n times.
        bound = (4 * n + 2 * abs(top)) * U["float64"]
        np.testing.assert_allclose(result.image, image / image.sum(), rtol=bound, atol=0)
        expected_gain = 2 * top + math.log(image.sum())
        assert result.log_gain == pytest.approx(expected_gain, abs=bound)
        assert result.lost_mass == pytest.approx(1 - math.exp(expected_gain), abs=bound)


@pytest.mark.parametrize("method", RELATIVE)
@pytest.mark.parametrize(("n", "k", "ndim"), [(189, 17, 1), (123, 5, 2), (31, 31, 2), (7, 9, 3)])
def test_sums_do_not_overflow(method: str, n: int, k: int, ndim: int) -> None:
    """Depths at which the largest pixel lies just below the headroom, and the sum above it."""
    result = rf.erf(plain(n, k, ndim), method=method)
    bound = ndim * (n * (k - 1) + 4) * U["float64"]
    assert result.log_gain == pytest.approx(0, abs=bound)
    sigma = math.sqrt(n * (k * k - 1) / 12)
    assert result.std == pytest.approx([sigma] * ndim, rel=bound)


@pytest.mark.parametrize(
    ("n", "gains"),
    [(2000, (7.5,)), (2000, (1e-8, 3.0, 1e40)), (300, (1e-3,)), (300, (2.0**-900, 2.0**900))],
)
def test_residual_blocks(n: int, gains: tuple[float, ...]) -> None:
    all_gains = np.array([gains[i % len(gains)] for i in range(n)])
    blocks = [rf.Residual(rf.Conv(3, padding=1, gain=float(g))) for g in all_gains]
    result = rf.erf(rf.Sequential(*blocks, ndim=1))
    # A block rounds six times: three taps, the shortcut's and the branch's factor, the sum.
    bound = 6 * n * U["float64"]
    log_gain = math.fsum(np.log1p(all_gains))
    assert result.log_gain == pytest.approx(log_gain, rel=4 * U["float64"], abs=bound)
    q = all_gains / (1 + all_gains)
    assert result.std[0] ** 2 == pytest.approx(math.fsum(q * 2 / 3), rel=2 * bound)
    assert result.mean[0] == pytest.approx(0, abs=bound)


def test_residual_blocks_pixel_by_pixel() -> None:
    """Π (1 + C·(1 + z + z²)/3) over blocks, multiplied out as integers."""
    gains = [3, 1, 9, 30] * 6
    polynomial = np.array([1], dtype=object)
    for gain in gains:
        block = np.array([gain, 3 + gain, gain], dtype=object)  # three times the block's factor
        polynomial = np.convolve(polynomial, block)
    total = sum(polynomial)
    image = np.array([int(c) / int(total) for c in polynomial])
    net = rf.Sequential(*[rf.Residual(rf.Conv(3, padding=1, gain=g)) for g in gains], ndim=1)
    result = rf.erf(net)
    np.testing.assert_allclose(result.image, image, rtol=8 * len(gains) * U["float64"], atol=0)


# --- scales ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", U)
@pytest.mark.parametrize("exponent", [-1000, -300, 300, 1000])
def test_gains_far_from_one(exponent: int, dtype: str) -> None:
    """Gains that multiply to 2^±3000 change the logarithm alone."""
    layers = [
        {"gain": 2.0**exponent, "kernel": 3, "padding": 1},
        {"gain": 2.0**exponent, "kernel": 2},
        {"gain": 2.0**exponent, "kernel": 3, "taps": [1, 2, 5]},
    ]
    for method in RELATIVE:
        far = rf.erf(
            rf.Sequential(*(rf.Conv(**v) for v in layers), ndim=1), method=method, dtype=dtype
        )
        near = rf.erf(
            rf.Sequential(*(rf.Conv(**(v | {"gain": 1.0})) for v in layers), ndim=1),
            method=method,
            dtype=dtype,
        )
        np.testing.assert_array_equal(far.image, near.image)
        assert far.log_gain - near.log_gain == pytest.approx(
            3 * exponent * math.log(2), rel=4 * U["float64"]
        )


@pytest.mark.parametrize("dtype", U)
@pytest.mark.parametrize("share", [0.05, 0.3, 0.6, 0.85, 0.95])
def test_a_branch_far_weaker_than_its_shortcut(dtype: str, share: float) -> None:
    """Pixels that the branch alone reaches lie that far below the peak, down to the last number.

    Twenty layers after the merge use up the headroom, so that the two images meet with very
    different scales.
    """
    info = np.finfo(dtype)
    gain = 2.0 ** round(share * float(info.minexp))
    layers = [rf.Conv(9, padding=4)] * 20
    thin = rf.Residual(rf.Conv(3, padding=1, taps=[1, 0, 1], gain=gain))
    result = rf.erf(rf.Sequential(thin, *layers, ndim=1), dtype=dtype)
    chain = exact(20, 9)
    image = np.zeros(len(chain) + 2)
    image[1:-1] += chain
    image[:-2] += gain / 2 * chain
    image[2:] += gain / 2 * chain
    image /= 1 + gain
    kept = image >= info.tiny
    bound = (20 * 8 + 8) * U[dtype]
    first = result.origin[0] + len(image) // 2
    got = np.zeros_like(image)
    got[first : first + len(result.image)] = result.image
    clear = image > 2 * info.tiny
    np.testing.assert_allclose(got[clear], image[clear], rtol=bound, atol=0)
    assert (got[~kept & (image < info.tiny / 2)] == 0).all()


@pytest.mark.parametrize("n", [1, 15, 16, 17, 40])
def test_only_the_weakest_taps_reach_the_map(n: int) -> None:
    """1e-60 a layer: what arrives is below the smallest number after six layers."""
    weak = 1e-60 / (1 + 1e-60)
    clipped = rf.Sequential(*[rf.Conv(2, taps=[1, 1e-60], padding=((1, 0),))] * n, ndim=1)
    result = rf.erf(clipped, unit=0, input_size=8)
    assert result.box == ((0, 0),)
    assert result.log_gain == pytest.approx(n * math.log(weak), rel=8 * U["float64"])
    gathered = rf.Sequential(*[rf.ConvTranspose(2, stride=2, taps=[1, 1e-60])] * n, ndim=1)
    result = rf.erf(gathered, unit=2**n - 1)
    assert result.box == ((0, 0),)
    assert result.log_gain == pytest.approx(n * math.log(weak), rel=8 * U["float64"])


def test_what_padding_leaves_over() -> None:
    """A unit in the padding of a deep network sees but the tail of its field: exact integers."""
    n, inside = 400, 100
    pad = n - inside  # the map begins 300 pixels from the unit, 18σ away
    net = rf.Sequential(rf.Pad(((pad + n, n),)), *[rf.Conv(3)] * n, ndim=1)
    result = rf.erf(net, unit=0, input_size=4 * n)
    profile = exact(n, 3)
    tail = profile[2 * n - inside :]
    assert tail.sum() < 1e-70
    bound = 2 * (2 * n + 4) * U["float64"]
    assert result.box[0][0] == 0
    np.testing.assert_allclose(result.image, (tail / tail.sum())[: len(result.image)], rtol=bound)
    assert result.log_gain == pytest.approx(math.log(tail.sum()), rel=bound)


def test_every_engine_is_reached() -> None:
    """No engine of the registry is left out by the comparisons above."""
    used = {m for graph in CASES.values() for m in engines(graph, None)}
    assert used == set(RELATIVE)
