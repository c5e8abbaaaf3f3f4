"""Every CUDA kernel against the naive loops and against the CPU kernels.

On the shim in every order of threads, with guard pages behind and before every array, and, with the
same bodies, on a GPU. Cases and oracles are those of the CPU kernels' tests.

Tolerances: a kernel's own bound from the specification and the oracle's; between two devices, the
bound of each.
"""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from fractions import Fraction
from functools import cache
from importlib import import_module
from pathlib import Path

import naive
import numpy as np
import pytest
import test_chain_figures as figure_tests
import test_chain_profiles as chain_tests
import test_grown_profiles as grown_tests
import test_kernels as kernel_tests
import test_run_kernels as run_tests
from fastrf.kernels import KERNELS, load
from fastrf.kernels.cuda import _module
from shim.standin import ORDERS, PROPERTIES, KernelError
from test_kernels import BOXES, CONVOLUTIONS, fill

DTYPES = (np.float32, np.float64)
IMAGES = (*CONVOLUTIONS, *BOXES, "transposed_table")
RUNS = run_tests.RUNS
EPS = {dtype: float(np.finfo(dtype).eps) for dtype in DTYPES}


def kernel(name):
    return getattr(import_module(f"fastrf.kernels.cuda.{name}"), name)


def call(xp, name, *values):
    """One call with arrays of the device; the last argument as a NumPy array again."""
    *given, out = [xp.asarray(v) if isinstance(v, np.ndarray) else v for v in values]
    before = [v.copy() if hasattr(v, "copy") else v for v in given]
    assert kernel(name)(*given, out) is None
    if name != "chain_profiles":
        for old, new in zip(before, given, strict=True):
            np.testing.assert_array_equal(home(old), home(new))
    return home(out)


def home(array):
    return array.get() if hasattr(array, "get") else array


# Small cases of every kind; the longest of the CPU's cases take a fiber per pixel too many.
IMAGE_CASES = {
    **dict.fromkeys(CONVOLUTIONS, kernel_tests.CONV_CASES[:-1]),
    **dict.fromkeys(BOXES, kernel_tests.BOX_CASES[2::3]),
    "transposed_table": [c for c in kernel_tests.TABLE_CASES if c.source[2] < 1000],
}
RUN_CASES = [c for c in run_tests.CASES if max(c.target) < 100] + [
    # Several strips, and several marches; many layers a launch; a step less and more than fits.
    run_tests.whole((1, 60, 300), (1, 3, 3), 2),
    run_tests.whole((1, 31, 4), (1, 3, 3), 24),
    run_tests.whole((1, 150, 6), (1, 3, 3), 3),
    run_tests.whole((7, 10, 12), (3, 3, 3), 2),
    run_tests.whole((1, 9, 11), (1, 5, 5), 3),
    run_tests.whole((40, 1, 9), (1, 1, 3), 2),
]


@cache
def expected(name, case, dtype):
    """The oracle's result, and the CPU kernel's."""
    if name in IMAGES:
        values = kernel_tests.arguments(name, case, dtype)
        oracle = kernel_tests.oracle(name, case, dtype)
    else:
        values = [run_tests.layer(name, case.k, dtype), case.count, case.lo]
        oracle = run_tests.oracle(name, case, dtype)
    out = np.full(case.target, np.nan, dtype)
    getattr(load(), name)(fill(case.source, dtype), *values, out)
    return values, oracle, out


class Hashed(dict):
    """A case's parameters, which make the case hashable."""

    def __hash__(self):
        return hash(repr(self))


def image_cases(name):
    return [case._replace(parameters=Hashed(case.parameters)) for case in IMAGE_CASES[name]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", IMAGES)
def test_images_agree(cuda, name, dtype):
    for case in image_cases(name):
        values, oracle, cpu = expected(name, case, dtype)
        out = call(cuda, name, fill(case.source, dtype), *values, np.full_like(cpu, np.nan))
        bound = kernel_tests.bound(name, case, dtype)
        np.testing.assert_allclose(out, oracle, rtol=bound, atol=0, err_msg=str(case))
        np.testing.assert_allclose(out, cpu, rtol=2 * bound, atol=0, err_msg=str(case))
        assert out.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RUNS)
def test_runs_agree(cuda, name, dtype):
    for case in RUN_CASES:
        values, oracle, cpu = expected(name, case, dtype)
        out = call(cuda, name, fill(case.source, dtype), *values, np.full_like(cpu, np.nan))
        bounds = run_tests.bounds(name, case, dtype)
        np.testing.assert_allclose(out, oracle, **bounds, err_msg=str(case))
        # A few units in the last place a layer: a result of either device is off by the rounding of
        # a sum of as many terms as a layer has taps, once a layer.
        taps = math.prod(case.k) if name == "conv_run" else sum(case.k)
        bounds["rtol"] = case.count * (taps + 1) * EPS[dtype]
        np.testing.assert_allclose(out, cpu, **bounds, err_msg=str(case))


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_runs_beyond_all_that_is_there_are_zero(cuda, name, axis):
    lo = [1, 1, 1]
    lo[axis] = 30
    for count in (1, 2):
        values = [run_tests.layer(name, (3, 3, 3), np.float64), count, tuple(lo)]
        out = call(cuda, name, fill((4, 5, 6), np.float64), *values, np.full((2, 3, 4), np.nan))
        assert (out == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_chains_agree(cuda, dtype):
    chains = [
        chain._replace(
            layers=tuple(
                layer._replace(taps=tuple(map(float, np.array(layer.taps, dtype))))
                for layer in chain.layers
            )
        )
        for chain in chain_tests.CHAINS
        if sum(layer.kernel for layer in chain.layers) < 100
    ]
    values = chain_tests.arguments(chains, dtype, 60)
    same = chain_tests.arguments(chains, dtype, 60)
    load().chain_profiles(*same.values())
    results = {name: cuda.asarray(values[name]) for name in ("lost", "exponents", "out")}
    kernel("chain_profiles")(*(values | results).values())
    results = {name: home(array) for name, array in results.items()}
    np.testing.assert_array_equal(results["exponents"], same["exponents"])
    each = zip(chains, *results.values(), strict=True)
    for i, (chain, lost, exponent, row) in enumerate(each):
        chain_tests.agrees(chain, dtype, lost, exponent, row)
        terms = sum(2 * layer.kernel + 1 for layer in chain.layers)
        bound = 2 * KERNELS["chain_profiles"].tolerance(dtype, terms)
        np.testing.assert_allclose(row, same["out"][i], rtol=bound, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_chains_in_global_memory(cuda, dtype):
    """Images longer than shared memory takes: the same numbers as on the CPU."""
    layers = (chain_tests.Layer(3), chain_tests.Layer(2, 9000), chain_tests.Layer(3, 1, 1, 1, 3))
    values = chain_tests.arguments([chain_tests.Chain(layers, 1)] * 3, dtype, 20000)
    same = {name: array.copy() for name, array in values.items()}
    load().chain_profiles(*same.values())
    results = {name: cuda.asarray(values[name]) for name in ("lost", "exponents", "out")}
    kernel("chain_profiles")(*(values | results).values())
    for name, array in results.items():
        # Sums of ones, divided by 27 and by 18.
        np.testing.assert_allclose(home(array), same[name], rtol=4 * EPS[dtype], atol=0)
    assert (same["out"][:, 9000:] > 0).any()


WIDE = (4, 5, 70)  # a row is a block's threads
TALL = (4, 600, 1)  # several blocks of rows that are short
CONVOLVED = [np.ones((2, 3, 3)), (1, 1, 1), (1, 1, 1), (1, 1, 1)]
STEPPED = {
    **{(name, shape): CONVOLVED for name in CONVOLUTIONS for shape in (WIDE, TALL)},
    **{(name, TALL): [k, 1, 1, k // 2] for name in BOXES for k in (40,)},
    **{(name, WIDE): [3, 1, 1, 1] for name in BOXES},
    **{(name, (4, 40, 70)): [30, 1, 1, 15] for name in BOXES},
    ("transposed_table", WIDE): [np.arange(5), np.ones((5, 2))],
    ("transposed_table", TALL): [np.arange(600), np.ones((600, 2))],
    ("box_run", (4, 90, 70)): [(1, 3, 3), 3, (1, 1, 1)],
    ("conv_run", (4, 90, 70)): [np.ones((1, 3, 3)), 3, (1, 1, 1)],
    ("conv_run", (40, 6, 9)): [np.ones((1, 3, 3)), 1, (1, 1, 1)],
}
"""Calls of several blocks along each axis."""


@pytest.fixture(params=[False, True], ids=["as many blocks as there is to do", "few blocks"])
def few(request, standin, monkeypatch):
    """A device that takes a single block along y and z: each steps on until all is done."""
    standin()
    for path in Path(_module.FOLDER).glob("*.py") if request.param else ():
        module = import_module(f"fastrf.kernels.cuda.{path.stem}")
        if hasattr(module, "_MOST"):
            monkeypatch.setattr(module, "_MOST", 1)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(("name", "shape"), STEPPED)
def test_blocks_step_on_until_all_is_done(name, shape):
    given, y = STEPPED[name, shape], fill(shape, np.float64)
    oracle = np.empty(shape)
    getattr(naive, name)(y, *given, oracle)
    out = call(np, name, y, *given, np.full(shape, np.nan))
    # Sums of at most 90 terms a layer, by either.
    np.testing.assert_allclose(out, oracle, rtol=1e3 * EPS[np.float64], atol=0)


@pytest.mark.usefixtures("few")
def test_blocks_of_other_kernels_step_on_until_all_is_done():
    y, x = fill(300, np.float64), fill(70, np.float64, seed=1)
    out = call(np, "outer_product", y, x, np.full((300, 70), np.nan))
    np.testing.assert_array_equal(out, np.multiply.outer(y, x))
    # One term of weight 1, with no rounding but the product's.
    terms = [np.ones(1), y[None], x[None], 0]
    np.testing.assert_array_equal(call(np, "sum_of_terms", *terms, np.full_like(out, np.nan)), out)
    for shape in (WIDE, TALL):
        ones = np.ones(shape)
        kernel("accumulate")(fill(shape, np.float64), 0.5, ones)
        np.testing.assert_array_equal(ones, 1 + 0.5 * fill(shape, np.float64))


H200 = replace(
    PROPERTIES,
    processors=132,
    shared_per_block=227 * 1024,
    shared_per_processor=228 * 1024,
)


@pytest.mark.parametrize("device", [PROPERTIES, H200], ids=["small", "H200"])
def test_launches_are_no_larger_than_devices_take(monkeypatch, standin, device):
    """65,535 blocks along y and z, by the shim; of arrays that are all one number."""
    limits, names = standin(device=device), []

    def launch(source, name, grid, block, arguments, shared=0):
        names.append(name)
        limits.function(_module.FOLDER / source, name)._check_limits(grid, block, shared)

    def huge(*shape):
        return np.lib.stride_tricks.as_strided(np.ones(1), shape, (0,) * len(shape))

    kernels = "accumulate outer_product sum_of_terms transposed_conv box_run conv_run"
    for name in kernels.split():
        monkeypatch.setattr(import_module(f"fastrf.kernels.cuda.{name}"), "launch", launch)
    for planes in (huge(70_000, 3, 3), huge(3, 70_000 * 256, 1), huge(1, 100_000, 300)):
        kernel("accumulate")(planes, 1.0, planes)
        kernel("transposed_conv")(planes, np.ones((1, 1, 1)), (1,) * 3, (1,) * 3, (0,) * 3, planes)
        kernel("box_run")(planes, (1, 3, 3), 1, (0,) * 3, planes)
        kernel("conv_run")(planes, np.ones((1, 3, 3)), 1, (0,) * 3, planes)
    for count in (1, 24, 96):
        for side in (224, 3000, 8192):
            image = huge(1, side, side)
            kernel("box_run")(image, (1, 3, 3), count, (0, count, count), image)
            kernel("conv_run")(image, np.ones((1, 3, 3)), count, (0, count, count), image)
    lines = huge(5_000_000), huge(2), huge(5_000_000, 2)
    kernel("outer_product")(*lines)
    kernel("sum_of_terms")(np.ones(1), lines[0][None], lines[1][None], 0, lines[2])
    assert {name.removesuffix("_f64") for name in names} >= {*kernels.split()[:5], "conv_run_three"}


def test_no_chains(standin):
    standin()
    values = {
        name: array[..., :0] if name == "layers" else array[: 1 if name == "offsets" else 0]
        for name, array in chain_tests.arguments([chain_tests.plain(2)], np.float64, 5).items()
    }
    kernel("chain_profiles")(*values.values())
    # Lines of no chain have their moments, and no lines nothing at all.
    moments, out = figure_tests.figures(
        figure_tests.LINES[:3], [((0, 1.0),)], np.float64, kernel("chain_figures")
    )
    alone, none = np.full_like(moments, np.nan), np.empty((0, out.shape[1]))
    lines = figure_tests.LINES[:3]
    counts = np.array([len(line) for line in lines])
    shares, index, at = np.array(figure_tests.SHARES), np.empty((1, 0), np.int64), np.empty((1, 0))
    pixels, places = np.concatenate(lines), np.cumsum(counts) - counts
    kernel("chain_figures")(pixels, places, counts, index, at, 0.05, shares, alone, none)
    np.testing.assert_array_equal(alone, moments)
    nothing = [array[:0] for array in (pixels, places, counts)]
    kernel("chain_figures")(*nothing, index, at, 0.05, shares, alone[:0], none)


GROWN = [
    chain
    for chain in (*grown_tests.UNBOUNDED, *grown_tests.FOREST)
    if sum(layer.kernel for layer in chain.layers) < 100
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_grown_profiles_agree(cuda, dtype):
    chains = [grown_tests.in_dtype(chain, dtype) for chain in GROWN]
    values, same = (grown_tests.arguments(chains, dtype) for _ in range(2))
    load().grown_profiles(*same.values())
    results = {name: cuda.asarray(values[name]) for name in ("exponents", "out")}
    kernel("grown_profiles")(*(values | results).values())
    exponents, out = (home(array) for array in results.values())
    np.testing.assert_array_equal(exponents, same["exponents"])
    places = values["places"]
    for c, chain in enumerate(chains):
        row, other = (a[places[c] : places[c + 1]] for a in (out, same["out"]))
        image, _, whole = chain_tests.exact(chain)
        terms = sum(2 * layer.kernel + 1 for layer in chain.layers)
        bound = KERNELS["grown_profiles"].tolerance(dtype, terms)
        window = [image.get(j, 0) for j in range(len(row))]
        chain_tests.row_agrees(row, exponents[c], window, whole, dtype, Fraction(bound))
        np.testing.assert_allclose(row, other, rtol=2 * bound, atol=0)
        if all(not layer.taps for layer in chain.layers):
            np.testing.assert_array_equal(row, row[::-1])


def test_grown_profiles_take_any_layout(standin):
    standin()
    values = grown_tests.arguments(GROWN, np.float64)
    kernel("grown_profiles")(*values.values())
    wide = np.full((len(values["out"]), 2), np.nan)
    kernel("grown_profiles")(*(values | {"out": wide[:, 1]}).values())
    np.testing.assert_array_equal(wide[:, 1], values["out"])


def measured(cuda, ndim, dtype, lines=figure_tests.LINES):
    """What the device's kernel measures of the chains of the CPU's tests."""

    def chain_figures(pixels, *described, moments, out):
        found = cuda.asarray(moments), cuda.asarray(out)
        kernel("chain_figures")(cuda.asarray(pixels), *described, *found)
        moments[...], out[...] = map(home, found)

    return figure_tests.figures(lines, figure_tests.chains(ndim), dtype, chain_figures)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_figures_agree(cuda, ndim, dtype):
    """With the CPU's, which are held to `fastrf.metrics`; none of the lines has a pixel at a limit
    but for a rounding."""
    lines = [line.astype(dtype).astype(np.float64) for line in figure_tests.LINES]
    if dtype == np.float32:
        lines[-1] = lines[0]  # its own is too small for the dtype
    moments, out = measured(cuda, ndim, dtype, lines)
    same_moments, same = figure_tests.figures(lines, figure_tests.chains(ndim), dtype)
    for line, found, expected in zip(lines, moments, same_moments, strict=True):
        # The bound of either; results are rounded once to the dtype.
        bound = 2 * KERNELS["chain_figures"].tolerance(np.float64, len(line)) + EPS[dtype]
        total, mean, variance, kurtosis, *width = (bound * n for n in (1, len(line), 1, 8, 1, 1, 1))
        assert found[0] == pytest.approx(expected[0], rel=total)
        assert found[1] == pytest.approx(expected[1], abs=mean)
        assert found[2] == pytest.approx(expected[2], rel=variance, abs=bound**2 * len(line) ** 2)
        assert found[3] + 3 == pytest.approx(expected[3] + 3, rel=kurtosis, nan_ok=True)
        np.testing.assert_allclose(found[4:], expected[4:], rtol=width[0], atol=0)
    np.testing.assert_array_equal(out[:, :2], same[:, :2])
    np.testing.assert_array_equal(out[:, 3:], same[:, 3:])
    for chain, found, expected in zip(figure_tests.chains(ndim), out, same, strict=True):
        size = math.prod(len(lines[i]) for i, _ in chain)
        bound = 8 * size * EPS[np.float64] + EPS[dtype]
        assert found[2] == pytest.approx(expected[2], rel=0, abs=bound, nan_ok=True)


@pytest.mark.parametrize("dtype", DTYPES)
def test_figures_of_lines_in_global_memory(standin, dtype):
    """Lines that are sorted there have the very bits of those sorted in shared memory, where as
    many threads share the work."""
    lines = [fill(n, np.float64, seed=n) for n in (2100, 2050, 5)]
    wanted = [((0, 900.0), (1, 1000.0)), ((1, 3.0), (2, 1.0))]
    found = []
    for room in (99 * 1024, 20_000):
        standin(device=replace(PROPERTIES, shared_per_block=room, shared_per_processor=2 * room))
        found.append(figure_tests.figures(lines, wanted, dtype, kernel("chain_figures")))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)
    for mine, cpu in zip(found[0], figure_tests.figures(lines, wanted, dtype), strict=True):
        np.testing.assert_allclose(mine, cpu, rtol=0, atol=1e-9 * np.abs(cpu).max())


def test_figures_do_not_depend_on_the_others(standin):
    standin()
    wanted = figure_tests.chains(2)
    _, together = figure_tests.figures(
        figure_tests.LINES, wanted, np.float64, kernel("chain_figures")
    )
    for chain, found in list(zip(wanted, together, strict=True))[::7]:
        lines = [figure_tests.LINES[i] for i, _ in chain]
        own = [tuple((j, c) for j, (_, c) in enumerate(chain))]
        _, alone = figure_tests.figures(lines, own, np.float64, kernel("chain_figures"))
        np.testing.assert_array_equal(alone[0], found)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("part", kernel_tests.ACCUMULATED_PARTS, ids=str)
def test_accumulate_agrees(cuda, part, dtype):
    part = kernel_tests.ACCUMULATED_PARTS[part]
    whole, tiny = fill((4, 9, 7), dtype, seed=1), np.finfo(dtype).smallest_normal
    whole[1, 2:5, 2] = tiny / 2, np.nan, tiny
    y = fill(whole[part].shape, dtype)
    y.flat[:2] = tiny / 8, np.nan
    same = whole.copy()
    load().accumulate(y, dtype(0.3), same[part])
    device = cuda.asarray(whole)
    kernel("accumulate")(cuda.asarray(y), 0.3, device[part])
    # The sum of two numbers of which one is a product: either device may fuse the two.
    np.testing.assert_allclose(home(device), same, rtol=2 * EPS[dtype], atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("m", "n"), [(1, 1), (5, 7), (40, 300), (0, 3), (3, 0)])
def test_outer_product_agrees(cuda, m, n, dtype):
    y, x = fill(m, dtype), fill(n, dtype, seed=1)
    x[::3] *= np.finfo(dtype).smallest_normal  # products on both sides of it
    same = np.empty((m, n), dtype)
    load().outer_product(y, x, same)
    np.testing.assert_array_equal(call(cuda, "outer_product", y, x, np.full_like(same, 9)), same)
    out = cuda.asarray(np.full((n, m), np.nan, dtype)).T
    kernel("outer_product")(cuda.asarray(y), cuda.asarray(x), out)
    np.testing.assert_array_equal(home(out), same)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("terms", "m", "n"), [(1, 1, 1), (8, 3, 5), (37, 6, 70), (7, 70, 2), (0, 2, 2), (9, 0, 3)]
)
def test_sum_of_terms_agrees(cuda, terms, m, n, dtype):
    weights, y, x = fill(terms, dtype), fill((terms, m), dtype, 1), fill((terms, n), dtype, 2)
    y[:1, :1] = np.nan
    oracle = np.empty((m, n))
    naive.sum_of_terms(weights, y, x, 3, oracle)
    bound = sum(KERNELS["sum_of_terms"].tolerance(t, terms) for t in (dtype, float))
    wide = np.pad(x, ((0, 0), (2, 3)), constant_values=np.nan)
    for right in (x, wide[:, 2:-3]):
        out = np.full((m, n), np.nan, dtype)
        out = call(cuda, "sum_of_terms", weights, y, right, 3, out)
        np.testing.assert_allclose(out, oracle, rtol=bound, atol=0)
    tiny = np.finfo(dtype).smallest_normal
    y, x, out = np.array([[1, 2]], dtype), np.array([[1, 0.5]], dtype), np.empty((2, 2), dtype)
    found = call(cuda, "sum_of_terms", np.ones(1, dtype), y, x, int(np.log2(tiny)), out)
    np.testing.assert_array_equal(found, np.array([[tiny, 0], [2 * tiny, tiny]], dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_box_power_is_the_cpus(cuda, dtype):
    for n, k in kernel_tests.POWERS:
        same = np.empty(n * (k - 1) + 1, dtype)
        load().box_power(n, k, 100, same)
        out = call(cuda, "box_power", n, k, 100, np.full_like(same, np.nan))
        np.testing.assert_array_equal(out, same)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*IMAGES, *RUNS])
def test_subnormal_results_are_zero(cuda, name, dtype):
    """Of subnormal sums nothing is stored; a normal sum of subnormal numbers is."""
    tiny = float(np.finfo(dtype).smallest_normal)
    y = np.full((1, 61, 3), tiny / 2, dtype)
    ones = np.ones((1, 3, 1), dtype)
    if name in CONVOLUTIONS:
        every = [[ones, (1, 1, 1), (1, 1, 1), (0, 0, 0)]]
    elif name in BOXES:
        every = [[3, 1, 1, 0], [40, 1, 1, 20]]
    elif name == "transposed_table":
        every = [[np.arange(61), np.ones((61, 2), dtype)]]
    else:
        every = [[ones if name == "conv_run" else ones.shape, 1, (0, 0, 0)]]
    for values in every:
        oracle = np.empty((1, 90, 3))
        getattr(naive, name)(y, *values, oracle)
        assert (oracle == tiny / 2).any()
        assert (oracle >= tiny).any()
        out = call(cuda, name, y, *values, np.full(oracle.shape, np.nan, dtype))
        # A few multiples of tiny/2: no rounding anywhere.
        np.testing.assert_array_equal(out, np.where(oracle < tiny, 0, oracle))


@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_drop_what_would_have_subnormal_products(cuda, dtype):
    """A pixel is handed down while it is at least the smallest normal number over the least tap."""
    tiny = np.finfo(dtype).smallest_normal
    taps = np.array([[[0.5, 0, 0.25]]], dtype)
    y = np.array([[[16 * tiny, 0, 0, 0, 0, 8 * tiny]]], dtype)
    for layers, wanted in (
        (1, [8, 0, 4, 0, 0, 4, 0, 0]),
        (2, [4, 0, 4, 0, 0, 0, 0, 0, 0, 0]),
    ):
        out = np.full((1, 1, len(wanted)), np.nan, dtype)
        found = call(cuda, "conv_run", y, taps, layers, (0, 0, 0), out)
        np.testing.assert_array_equal(found[0, 0], np.array(wanted, dtype) * tiny)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*IMAGES, *RUNS])
def test_nan_is_not_swallowed_and_stays_in_its_field(cuda, name, dtype):
    if name in RUNS:
        case = run_tests.whole((2, 20, 30), (1, 3, 3), 3)
        values = [run_tests.layer(name, case.k, dtype), case.count, case.lo]
    else:
        box = kernel_tests.box_case((2, 30, 3), (2, 33, 3), 31, lo=15)
        case = box if name in BOXES else IMAGE_CASES[name][1]
        values = kernel_tests.arguments(name, case, dtype)
    y = fill(case.source, dtype)
    y[0, y.shape[1] // 2, 1] = np.nan
    oracle = np.empty(case.target)
    getattr(naive, name)(y, *values, oracle)
    assert np.isnan(oracle).any()
    out = call(cuda, name, y, *values, np.zeros(case.target, dtype))
    np.testing.assert_array_equal(np.isnan(out), np.isnan(oracle))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*IMAGES, *RUNS])
def test_layout_does_not_change_the_bits(cuda, name, dtype):
    if name in RUNS:
        cases = [run_tests.whole((2, 7, 9), (1, 3, 3), 2), run_tests.CASES[12]]
    else:
        cases = image_cases(name)[1:5]
    for case in cases:
        values = expected(name, case, dtype)[0]
        source = fill(case.source, dtype)
        whole = call(cuda, name, source, *values, np.full(case.target, np.nan, dtype))
        for axis in range(3):
            # Every other element of `axis`, an axis in reverse, and Fortran order.
            y = cuda.zeros([n * (1 + (a == axis)) for a, n in enumerate(case.source)], dtype)
            y = cuda.moveaxis(cuda.moveaxis(y, axis, 0)[::2], 0, axis)
            y[...] = cuda.asarray(source)
            out = cuda.flip(cuda.asarray(np.full(case.target, np.nan, dtype), order="F"), axis)
            kernel(name)(y, *(cuda.asarray(v) if hasattr(v, "flags") else v for v in values), out)
            np.testing.assert_array_equal(home(out), whole)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", [*BOXES, *RUNS])
def test_tiles_have_the_bits_of_the_whole(standin, name, dtype):
    standin()
    if name in RUNS:
        cases = [run_tests.CASES[8], run_tests.CASES[12], run_tests.CASES[15]]
    else:
        cases = image_cases(name)[::5]
    for case in cases:
        values, _, _ = expected(name, case, dtype)
        source = fill(case.source, dtype)
        whole = call(np, name, source, *values, np.full(case.target, np.nan, dtype))
        tiles = np.full(case.target, np.nan, dtype)
        for a in range(0, case.target[1], 9):
            moved = list(values)
            if name in RUNS:
                moved[-1] = (values[-1][0], values[-1][1] + a, values[-1][2])
            else:
                moved[-1] = values[-1] + (a if name == "transposed_box" else -a * values[1])
            kernel(name)(source, *moved, tiles[:, a : a + 9])
        np.testing.assert_array_equal(tiles, whole)


@pytest.mark.parametrize(("k", "shape"), [((1, 80, 3), (1, 4, 9)), ((1, 3, 150), (1, 30, 5))])
@pytest.mark.parametrize(("name", "room"), [("box_run", 16_000), ("conv_run", 4_000)])
def test_taps_that_leave_no_room_in_shared_memory(standin, name, room, k, shape):
    """A device with little shared memory: one axis, or one layer, at a time."""
    standin(device=replace(PROPERTIES, shared_per_block=room, shared_per_processor=2 * room))
    case = run_tests.whole(shape, k, 2)
    values, oracle, _ = expected(name, case, np.float64)
    out = call(np, name, fill(shape, np.float64), *values, np.full(case.target, np.nan))
    np.testing.assert_allclose(out, oracle, **run_tests.bounds(name, case, np.float64))


IMAGE, LINE, ONCE, NEVER = np.ones((1, 5, 3)), np.ones((1, 5, 1), np.float32), (1,) * 3, (0,) * 3
IMPOSSIBLE = [
    *((name, [np.ones((2, 5, 3)), 3, 1, 1, 0, np.ones((2, 5, 4))]) for name in BOXES),
    *((name, [np.ones((2, 5, 3)), 0, 1, 1, 0, np.ones((2, 5, 3))]) for name in BOXES),
    *((name, [np.ones((2, 5, 3), int), 3, 1, 1, 0, np.ones((2, 5, 3))]) for name in BOXES),
    *(
        (
            name,
            [
                np.ones((1, 5, 3)),
                np.ones((1, 1, 1)),
                stride,
                dilation,
                (0, 0, 0),
                np.ones((1,) * 3),
            ],
        )
        for name in CONVOLUTIONS
        for stride, dilation in (((1, 0, 1), (1, 1, 1)), ((1, 1, 1), (1, 1, 0)))
    ),
    ("transposed_table", [np.ones((1, 5, 3)), np.arange(4), np.ones((5, 2)), np.ones((1, 9, 3))]),
    # Taps of another type than images.
    *((name, [IMAGE, LINE, ONCE, ONCE, NEVER, np.ones((1, 5, 3))]) for name in CONVOLUTIONS),
    ("transposed_table", [IMAGE, np.arange(5), LINE[0, :, :1], np.ones((1, 9, 3))]),
    ("conv_run", [IMAGE, LINE, 2, NEVER, np.ones((1, 9, 3))]),
    ("box_run", [IMAGE.astype(int), (1, 3, 3), 2, NEVER, np.ones((1, 9, 3))]),
    ("accumulate", [np.ones((1, 5, 3)), 1.0, np.ones((1, 5, 4))]),
    ("accumulate", [np.ones((1, 5, 3), np.float32), 1.0, np.ones((1, 5, 3))]),
    ("outer_product", [np.ones(3), np.ones(4), np.ones((3, 5))]),
    ("sum_of_terms", [np.ones(3), np.ones((3, 2)), np.ones((2, 4)), 0, np.empty((2, 4))]),
    ("sum_of_terms", [np.ones(3), np.ones((3, 2)), np.ones((3, 4)), 0, np.empty((2, 5))]),
    ("box_power", [3, 3, 0, np.empty(8)]),
    ("box_power", [3, 0, 0, np.empty(1)]),
    *(
        ("box_run", [np.ones((1, 5, 5)), k, count, (0, 0, 0), np.ones((1, 9, 9))])
        for k, count in (((1, 3, 3), 0), ((1, 0, 3), 2), ((1, 3, 258), 2))
    ),
    *(
        ("conv_run", [np.ones((1, 5, 5)), np.ones(k), count, (0, 0, 0), np.ones((1, 9, 9))])
        for k, count in (((1, 3, 3), 0), ((1, 0, 3), 2), ((1, 3, 258), 2))
    ),
]


@pytest.mark.parametrize(("name", "values"), IMPOSSIBLE)
def test_impossible_calls_are_refused_as_on_the_cpu(standin, name, values):
    standin()
    with pytest.raises((TypeError, ValueError)) as cpu:
        getattr(load(), name)(*values)
    with pytest.raises(cpu.type) as found:
        kernel(name)(*values)
    assert str(found.value) == str(cpu.value)


@pytest.mark.parametrize(("name", "value", "error", "message"), chain_tests.REFUSED)
def test_impossible_chains_are_refused(standin, name, value, error, message):
    standin()
    values = chain_tests.arguments([chain_tests.plain(2)], np.float64, 5)
    if name == "layers" and len(value) == 6:
        value = np.repeat(value, 2, axis=1)
    with pytest.raises(error, match=message):
        kernel("chain_profiles")(*(values | {name: value}).values())


@pytest.mark.parametrize(("name", "value", "message"), grown_tests.REFUSED)
def test_impossible_grown_chains_are_refused(standin, name, value, message):
    standin()
    values = grown_tests.arguments([chain_tests.plain(2)], np.float64)
    with pytest.raises(ValueError, match=message):
        kernel("grown_profiles")(*(values | {name: value}).values())


def test_impossible_lines_are_refused(standin):
    standin()
    figure_tests.assert_refused(kernel("chain_figures"))


def test_every_kernel_is_tested():
    """By name: what a device has beside these would go untested."""
    others = {"accumulate", "outer_product", "sum_of_terms", "box_power"}
    others |= {"chain_profiles", "grown_profiles", "chain_figures"}
    wanted = {k.name for k in KERNELS.values() if k.devices is None or "cuda" in k.devices}
    assert {*IMAGES, *RUNS, *others} == wanted


@pytest.mark.parametrize("name", [k.name for k in KERNELS.values() if k.devices is None])
def test_specification_matches_the_code(name):
    code = kernel(name).__code__
    assert code.co_varnames[: code.co_argcount] == KERNELS[name].arguments


# --- planted faults -----------------------------------------------------------------------------

BARRIER = "__syncthreads();"


def without_barrier(source, number):
    """A source without its barrier of that number, counted from 0."""
    parts = source.split(BARRIER)
    return (
        BARRIER.join(parts[: number + 1]) + BARRIER.join(["", *parts[number + 1 :]])[len(BARRIER) :]
    )


RUN = run_tests.whole((1, 150, 12), (1, 3, 3), 3)  # several steps of a march
WINDOW = kernel_tests.box_case((2, 60, 1), (2, 60, 1), 19, lo=9)
TABLE = kernel_tests.TABLE_CASES[1]
TAPS = kernel_tests.CONV_CASES[1]
FAULTS = [
    *(("box_run", "box_run.cu", number, RUN) for number in (0, 1)),
    *(("conv_run", "conv_run.cu", number, RUN) for number in (0, 1, 2)),
    *(("transposed_box", "windows.cu", number, WINDOW) for number in (0, 1)),
    *(("transposed_table", "transposed_table.cu", number, TABLE) for number in (0, 1)),
    ("transposed_conv", "fastrf.cuh", 0, TAPS),
    # Halos that are one row or one column short, and a ring that is.
    ("box_run", "box_run.cu", ("reads = width + t2 - 1", "reads = width + t2 - 2"), RUN),
    ("box_run", "box_run.cu", ("ring = height + t1 - 1", "ring = height + t1 - 2"), RUN),
    ("conv_run", "conv_run.cu", ("c < pitch; c += 32", "c < pitch - 8; c += 32"), RUN),
    (
        "conv_run",
        "conv_run.cu",
        ("ring = height + layers * behind", "ring = height + layers * behind - 1"),
        RUN,
    ),
    ("transposed_box", "windows.cu", ("at - r.count + 1", "at - r.count + 2"), WINDOW),
]


@pytest.fixture
def planted(tmp_path, monkeypatch):
    """A copy of the sources with one of them changed, and with float64 alone, to build quickly."""

    def plant(name, change):
        for path in Path(_module.FOLDER).glob("*.cu*"):
            text = path.read_text("utf-8")
            if path.name == name:
                changed = (
                    without_barrier(text, change)
                    if isinstance(change, int)
                    else text.replace(*change)
                )
                assert changed != text
                text = changed
            lines = [s for s in text.splitlines() if not s.startswith("INSTANTIATE(float")]
            (tmp_path / path.name).write_text("\n".join(lines), "utf-8")
        monkeypatch.setattr(_module, "FOLDER", tmp_path)

    yield plant
    _module.read.cache_clear()
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(("name", "source", "change", "case"), FAULTS)
def test_planted_faults_are_caught(standin, planted, name, source, change, case):
    """In at least one order of the threads the result is wrong, or the shim says what is."""
    planted(source, change)
    if name in RUNS:
        bound = run_tests.bounds(name, case, np.float64)
    else:
        case = case._replace(parameters=Hashed(case.parameters))
        bound = {"rtol": kernel_tests.bound(name, case, np.float64), "atol": 0}
    values, oracle, _ = expected(name, case, np.float64)
    caught = False
    for order in ORDERS:
        standin(order=order, seed=1)
        try:
            out = call(
                np, name, fill(case.source, np.float64), *values, np.full(case.target, np.nan)
            )
        except KernelError:
            caught = True
        else:
            caught |= not np.allclose(out, oracle, **bound)
    assert caught


CHAIN_FAULTS = [
    # The last of the loop over layers: an image is read that is not yet there.
    *(("chain_profiles", "chain_profiles.cu", number) for number in (0, 2)),
    # The sums of a block's warps, the merges of a sort, running sums that are read by others.
    ("chain_figures", "chain_figures.cu", ("__syncthreads();\n      for (int t", "for (int t")),
    ("chain_figures", "chain_figures.cu", ("held[backwards ? n : 0] = 0;\n  __syncthreads();",
                                           "held[backwards ? n : 0] = 0;")),
    ("chain_figures", "chain_figures.cu", 0),
    ("chain_figures", "chain_figures.cu", ("i < size; i += threads", "i < n; i += threads")),
    ("chain_figures", "chain_figures.cu", ("size < n) size *= 2", "size < n / 2) size *= 2")),
    ("chain_figures", "fastrf.cuh", 1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "source", "change"), CHAIN_FAULTS)
def test_planted_faults_of_chains_are_caught(standin, planted, monkeypatch, name, source, change):
    planted(source, change)
    # What nobody has written is no number.
    module = import_module("fastrf.kernels.cuda.chain_figures")
    monkeypatch.setattr(module, "empty", lambda like, shape, dtype: np.full(shape, np.nan, dtype))
    lines = [fill(n, np.float64, seed=n) for n in (700, 300)]
    lines[0][:600] *= 1e-30
    lines[0][20] = 1e-4  # far out, and not negligible
    lines[0] = lines[0][::-1].copy()
    wanted = [((0, 300.0), (1, 100.0))]
    # Wide enough for several warps, and with borders.
    layer = chain_tests.Layer(60, 1, 4, 3, 500)
    values = chain_tests.arguments([chain_tests.Chain((layer, layer), 100)], np.float64, 400)
    caught = False
    for order in ORDERS:
        standin(order=order, seed=1)
        try:
            if name == "chain_figures":
                found = figure_tests.figures(lines, wanted, np.float64, kernel(name))
                expected = figure_tests.figures(lines, wanted)
            else:
                mine, cpu = ({n: a.copy() for n, a in values.items()} for _ in range(2))
                kernel(name)(*mine.values())
                load().chain_profiles(*cpu.values())
                found, expected = ((v["out"], v["lost"]) for v in (mine, cpu))
        except KernelError:
            caught = True
        else:
            pairs = zip(found, expected, strict=True)
            caught |= not all(np.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in pairs)
    assert caught
