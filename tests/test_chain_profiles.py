"""Profiles of many chains against whole fractions, pixel by pixel.

Tolerance: the kernel's own from the specification; the oracle is exact and rounded once.
"""

from __future__ import annotations

from fractions import Fraction
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
from fastrf.kernels import KERNELS, load

DTYPES = (np.float32, np.float64)


class Layer(NamedTuple):
    """One layer, as a network would say it."""

    kernel: int
    stride: int = 1
    dilation: int = 1
    lo: int = 0
    size: int = -1
    taps: tuple[float, ...] = ()


class Chain(NamedTuple):
    """Layers from the input on, the unit, and the window of the input that is asked for."""

    layers: tuple[Layer, ...]
    unit: int = 0
    start: int = 0


def plain(count, kernel=3, **others):
    return Chain((Layer(kernel, **others),) * count, 0, 0)


UNEVEN = (0.25, 3.0, 0.5, 0.125)
NARROW = [
    Chain(()),
    Chain((), unit=-7, start=-9),
    plain(1, 1),
    *(plain(3, kernel) for kernel in range(2, 14)),
    plain(9, 4, dilation=3),
    # Strides with and without gaps, with and without a common divisor with the dilation.
    Chain((Layer(3, 2, 1, 1), Layer(2, 3), Layer(5, 1, 2, 4), Layer(1, 2)), 3, 20),
    Chain((Layer(4, 4, 2, 3), Layer(3, 6, 9, 5)), -2, -90),
    # Taps of their own, alone and among equal ones; zero taps.
    Chain((Layer(4, taps=UNEVEN),) * 5),
    Chain((Layer(3, 2, 1, 1), Layer(4, 2, 3, 2, -1, UNEVEN), Layer(2)), 1, -3),
    Chain((Layer(3, taps=(0.0, 1.0, 0.0)), Layer(3, taps=(1.0, 0.0, 2.0)))),
    # Maps of a size: a unit in the middle, at a border, outside; a window within the map.
    Chain((Layer(3, 1, 1, 1, 9),) * 20, 4),
    Chain((Layer(3, 1, 1, 1, 9),) * 20, 0),
    Chain((Layer(5, 2, 1, 2, 30), Layer(3, 1, 2, 2, 15), Layer(4, 2, 1, 1, 15, UNEVEN)), 7, 4),
    Chain((Layer(3, 1, 1, 1, 9),) * 3, 60),
    Chain((Layer(3, 1, 1, 1, 0),), 0),
    Chain((Layer(3, 1, 1, -5, 40), Layer(3, 1, 40, 40, 40)), 20),
    # The window is beside the image.
    Chain((Layer(3), Layer(3)), 0, 300),
    # What is kept is a small part of what was lost: 3^−200 and less of the variance.
    Chain((Layer(3, 1, 1, 1, 1),) * 200, 0),
    Chain((Layer(3, 1, 1, 2, 4),) * 120, 0),
    # Sums of pixels that grow beyond every range, and pixels that sink below it.
    plain(400, 3),
    Chain((Layer(2, taps=(1.0, 1e-3)),) * 60),
]
CHAINS = [*NARROW, plain(40, 250, size=2000)]
widths = pytest.mark.parametrize("chains", [NARROW, CHAINS], ids=["narrow", "wide"])


@cache
def exact(chain):
    """Shares of the input's pixels, the share lost, as whole numbers over the third result."""
    image, lost, whole = {chain.unit: 1}, 0, 1
    for layer in reversed(chain.layers):
        ratios = [float(tap).as_integer_ratio() for tap in layer.taps or (1,) * layer.kernel]
        common = max(below for _, below in ratios)  # powers of two
        taps = [above * (common // below) for above, below in ratios]
        lost *= sum(taps)
        whole *= sum(taps)
        grown = {}
        for o, value in image.items():
            for m, tap in enumerate(taps):
                i = o * layer.stride + m * layer.dilation - layer.lo
                if tap and (layer.size < 0 or 0 <= i < layer.size):
                    grown[i] = grown.get(i, 0) + value * tap
                else:
                    lost += value * tap
        image = grown
    return image, lost, whole


def arguments(chains, dtype, columns):
    """The arrays of a call, with results full of NaN."""
    flat = [layer for chain in chains for layer in chain.layers]
    pool, rows = [], []
    for layer in flat:
        rows.append([*layer[:5], len(pool) if layer.taps else -1])
        pool += layer.taps
    return {
        "offsets": np.cumsum([0, *(len(chain.layers) for chain in chains)]),
        "layers": np.array(rows, np.int64).reshape(-1, 6).T,
        "taps": np.array(pool, dtype),
        "units": np.array([chain.unit for chain in chains], np.int64),
        "starts": np.array([chain.start for chain in chains], np.int64),
        "lost": np.full(len(chains), np.nan, dtype),
        "exponents": np.full(len(chains), 77, np.int64),
        "out": np.full((len(chains), columns), np.nan, dtype),
    }


def row_agrees(row, exponent, window, whole, dtype, bound):
    """Pixels against whole numbers over ``whole``; below the smallest normal number they are 0."""
    up, down = max(0, int(exponent)), max(0, -int(exponent))
    least, parts = float(np.finfo(dtype).smallest_normal).as_integer_ratio()
    for value, share in zip(row.tolist(), window, strict=True):
        found, below = value.as_integer_ratio()
        found, wanted = (found * whole) << up, (share * below) << down
        error = abs(found - wanted) * bound.denominator
        # Just below the smallest normal number, rounding may decide either way.
        near = (share * parts << down) - (least * whole << up)
        if abs(near) * bound.denominator <= bound.numerator * (share * parts << down):
            assert value == 0 or error <= bound.numerator * wanted
        elif near > 0:
            assert error <= bound.numerator * wanted
        else:
            assert value == 0


def agrees(chain, dtype, lost, exponent, row):
    """One chain's results against the fractions."""
    image, gone, whole = exact(chain)
    terms = sum(2 * layer.kernel + 1 for layer in chain.layers)
    bound = Fraction(KERNELS["chain_profiles"].tolerance(dtype, terms))
    window = [image.get(chain.start + j, 0) for j in range(len(row))]
    if set(image) <= set(range(chain.start, chain.start + len(row))):
        assert (1 <= row.max() <= 2) == bool(image)
    row_agrees(row, exponent, window, whole, dtype, bound)
    # What is lost is added up pixel by pixel in float64, then rounded.
    pixels = sum((layer.kernel - 1) * layer.dilation + len(image) for layer in chain.layers)
    bound += Fraction(KERNELS["chain_profiles"].tolerance(np.float64, pixels))
    least = Fraction(float(np.finfo(dtype).smallest_normal))
    assert abs(Fraction(float(lost)) * whole - gone) <= bound * gone + least * whole


@pytest.mark.parametrize("dtype", DTYPES)
@widths
def test_agrees_with_fractions(chains, dtype):
    """All chains in one call, so that they differ in length, width and everything else."""
    chains = [
        chain._replace(
            layers=tuple(
                layer._replace(taps=tuple(map(float, np.array(layer.taps, dtype))))
                for layer in chain.layers
            )
        )
        for chain in chains
    ]
    values = arguments(chains, dtype, 60)
    assert load().chain_profiles(*values.values()) is None
    results = zip(values["lost"], values["exponents"], values["out"], strict=True)
    for chain, result in zip(chains, results, strict=True):
        agrees(chain, dtype, *result)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_thousand_layers(dtype):
    """The whole row of a chain of depth 1,000: trinomial coefficients over 3^1000."""
    row = [1]
    for _ in range(1000):
        row = [sum(row[max(0, i - 2) : i + 1]) for i in range(len(row) + 2)]
    values = arguments([plain(1000)], dtype, len(row))
    load().chain_profiles(*values.values())
    bound = Fraction(KERNELS["chain_profiles"].tolerance(dtype, 7000))
    out = values["out"][0]
    row_agrees(out, values["exponents"][0], row, 3**1000, dtype, bound)
    # From the largest coefficient down to the smallest normal number.
    assert out[out > 0].min() < 100 * np.finfo(dtype).smallest_normal
    assert (out == 0).any()
    assert values["lost"][0] == 0


@pytest.mark.parametrize("dtype", DTYPES)
@widths
def test_a_chain_does_not_depend_on_the_others(chains, dtype):
    together = arguments(chains, dtype, 50)
    load().chain_profiles(*together.values())
    for i, chain in enumerate(chains):
        alone = arguments([chain], dtype, 50)
        load().chain_profiles(*alone.values())
        for name in ("lost", "exponents", "out"):
            np.testing.assert_array_equal(alone[name][0], together[name][i])


@pytest.mark.parametrize("dtype", DTYPES)
def test_results_of_any_layout(dtype):
    values = arguments(CHAINS, dtype, 50)
    load().chain_profiles(*values.values())
    strided = dict(values)
    strided["out"] = np.full((50, 2 * len(CHAINS)), np.nan, dtype).T[::2]
    strided["lost"] = np.full(2 * len(CHAINS), np.nan, dtype)[::2]
    strided["exponents"] = np.zeros(len(CHAINS), np.int64)[::-1]
    load().chain_profiles(*strided.values())
    for name in ("lost", "exponents", "out"):
        np.testing.assert_array_equal(strided[name], values[name])


def test_no_chain_and_no_column():
    load().chain_profiles(*arguments([], np.float64, 5).values())
    values = arguments([plain(2)], np.float64, 0)
    load().chain_profiles(*values.values())
    assert values["lost"][0] == 0
    assert values["exponents"][0] == -2  # the largest pixel of the image is 3/9


REFUSED = [
    ("units", np.zeros(3, np.int64), ValueError, "lengths of offsets, units, starts"),
    ("layers", np.ones((5, 2), np.int64), ValueError, "rows of layers and its properties"),
    ("offsets", np.array([0, 3]), ValueError, "offsets go from 0 to 3; they have to rise"),
    ("offsets", np.array([2, 1]), ValueError, "offsets go from 2 to 1"),
    ("taps", np.ones(0, np.float32), TypeError, r"all arrays .* float32, or all are float64"),
    ("layers", np.array([[3], [1], [0], [0], [-1], [-1]]), ValueError, "dilation is 0"),
    ("layers", np.array([[3], [1], [1], [0], [-1], [0]]), ValueError, "a layer's taps end at 3"),
]


@pytest.mark.parametrize(("name", "value", "error", "message"), REFUSED)
def test_impossible_chains_are_refused(name, value, error, message):
    values = arguments([plain(2)], np.float64, 5)
    if name == "layers" and len(value) == 6:
        value = np.repeat(value, 2, axis=1)
    with pytest.raises(error, match=message):
        load().chain_profiles(*(values | {name: value}).values())
