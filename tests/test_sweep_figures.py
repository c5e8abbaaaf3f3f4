"""Figures of packed chains against `fastrf.erf` on the networks that they are.

The direct engine shares no code with the batch: it follows the image layer by layer in all
dimensions, and `fastrf.metrics` measures its pixels. Tolerance: a pixel of either is right to
Σ (2·kernel + 1) roundings over the layers and axes; measures add one rounding a pixel of a line.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from sweeping import SPACE

import fastrf as rf
from fastrf.device import resolve
from fastrf.errors import InputError
from fastrf.sweep import figures, packing
from fastrf.sweep.chain import Chain, ChainAxis
from fastrf.sweep.columns import FIGURES
from fastrf.sweep.graphs import figures_of
from fastrf.sweep.packing import WIDEST, geometry, pack
from fastrf.sweep.space import Space

UNIT = np.finfo(np.float64).eps
SIZES = {1: (23,), 2: (23, 17), 3: (14, 17, 9)}


def random_chain(rng, ndim, taps):
    depth = int(rng.integers(1, 7))
    axes = []
    for _ in range(ndim):
        if axes and rng.random() < 0.4:
            axes.append(axes[0])
            continue
        kernel, stride = rng.integers(1, 8, depth), rng.choice([1, 1, 1, 2, 3], depth)
        stride[np.cumprod(stride) > 8] = 1
        lo, hi = rng.integers(0, 4, (2, depth))
        lines = None
        if taps:
            lines = tuple(
                None if rng.random() < 0.5 else (v := rng.random(k)) / v.sum() for k in kernel
            )
        axes.append(ChainAxis(kernel, stride, rng.integers(1, 4, depth), lo, hi, lines))
    return Chain(tuple(axes), np.exp(rng.normal(size=depth)))


def batched(chains, ndim, keep=False, dtype="float64"):
    """The figures of (chain, size, unit) by index, of those that the batch does."""
    found = {}
    for part in figures.measured(pack(chains, ndim), resolve("cpu"), np.dtype(dtype), keep):
        for i, c in enumerate(part.chains.tolist()):
            found[c] = {name: values[i] for name, values in part.figures.items()}
            if keep:
                found[c]["profiles"] = part.profiles[i]
    return found


def agree(found, expected, chain):
    terms = 2 * int(sum(axis.kernel.sum() + chain.depth for axis in chain.axes))
    pixels = sum(expected[f"shape_{axis}"] for axis in range(chain.ndim))
    bound = 4 * (terms + pixels) * UNIT
    for name in FIGURES.keys() - {"node", "method"}:
        value, wanted = found[name], expected[name]
        if wanted is None:
            assert value is None or math.isnan(value), name
        elif isinstance(wanted, float):
            # Positions and shares next to 0, logarithms next to 0 and kurtosis, which is a
            # difference of numbers about 3, are right against their scale.
            assert abs(value - wanted) <= bound * max(4.0, abs(wanted)), name
        else:
            assert value == wanted, name


@pytest.mark.parametrize("taps", [False, True], ids=["equal", "own"])
@pytest.mark.parametrize("bounded", [False, True], ids=["unbounded", "clipped"])
@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_agrees_with_erf(ndim, bounded, taps):
    rng = np.random.default_rng([ndim, bounded, taps])
    size = SIZES[ndim] if bounded else None
    chains = [(random_chain(rng, ndim, taps), size, None) for _ in range(25)]
    found = batched(chains, ndim)
    compared = 0
    for i, (chain, *_) in enumerate(chains):
        try:
            erf = rf.erf(chain.network(), input_size=size, method="direct")
        except InputError:
            assert i not in found  # it is left to be refused
            continue
        if math.prod(erf.shape) > 1 << 18:
            continue
        agree(found[i], figures_of(erf), chain)
        compared += 1
    assert compared > 5


@pytest.mark.parametrize("unit", [(0, 0), (5, 2), (10, 9)])
def test_units_and_the_borders(unit):
    chain = next(iter(Space(SPACE | {"parameters": {"depth": 4, "kernel": 5}}))).chain()
    found = batched([(chain, (11, 10), unit), (chain, None, unit)], 2)
    for i, size in enumerate([(11, 10), None]):
        erf = rf.erf(chain.network(), input_size=size, unit=unit, method="direct")
        agree(found[i], figures_of(erf), chain)
    assert found[0]["warnings"] != "[]"  # it fills its image


def test_profiles_are_those_of_erf():
    rng = np.random.default_rng(5)
    chains = [(random_chain(rng, 2, False), None, None) for _ in range(5)]
    found = batched(chains, 2, keep=True)
    for i, (chain, *_) in enumerate(chains):
        erf = rf.erf(chain.network(), method="direct")
        for axis, profile in enumerate(found[i]["profiles"]):
            np.testing.assert_allclose(profile, erf.profile(axis), rtol=1e3 * UNIT)


def test_single_precision():
    rng = np.random.default_rng(6)
    chains = [(random_chain(rng, 2, False), None, None) for _ in range(5)]
    double, single = batched(chains, 2), batched(chains, 2, dtype="float32")
    for i in double:
        assert single[i]["dtype"] == "float32"
        for name in ("std_0", "log_gain", "area_ratio_50", "trf_size_1"):
            assert single[i][name] == pytest.approx(double[i][name], rel=1e-5)


def test_a_chain_does_not_depend_on_the_others(monkeypatch):
    rng = np.random.default_rng(7)
    chains = [
        (random_chain(rng, 2, i % 3 == 0), SIZES[2] if i % 2 else None, None) for i in range(40)
    ]
    together = batched(chains, 2)
    monkeypatch.setattr(figures, "BATCH", 50)
    assert str(batched(chains, 2)) == str(together)
    for i, found in together.items():
        assert str(batched([chains[i]], 2)[0]) == str(found)
    packed = pack(chains, 2)
    part = np.array([31, 3, 8])
    again = {}
    for batch in figures.measured(packed.chosen(part), resolve("cpu"), np.dtype(float)):
        for i, c in enumerate(batch.chains.tolist()):
            again[int(part[c])] = {name: values[i] for name, values in batch.figures.items()}
    assert str(again) == str({i: together[i] for i in again})
    assert set(again) == set(part.tolist()) & set(together)


def test_prefixes_are_the_chains_of_all_depths():
    rng = np.random.default_rng(8)
    chains = [random_chain(rng, 2, True) for _ in range(4)]
    packed = pack([(chain, None, None) for chain in chains], 2).prefixes()
    cut = []
    for chain in chains:
        for depth in range(1, chain.depth + 1):
            axes = tuple(
                ChainAxis(
                    *(getattr(a, n)[:depth] for n in ("kernel", "stride", "dilation", "lo", "hi")),
                    a.taps and a.taps[:depth],
                )
                for a in chain.axes
            )
            cut.append((Chain(axes, chain.gain[:depth]), None, None))
    found = {}
    for batch in figures.measured(packed, resolve("cpu"), np.dtype(float)):
        for i, c in enumerate(batch.chains.tolist()):
            found[c] = {name: values[i] for name, values in batch.figures.items()}
    assert str(dict(sorted(found.items()))) == str(dict(sorted(batched(cut, 2).items())))


def test_what_grows_without_bound_is_left_alone():
    """Strides and kernels whose products leave every range: no overflow, and no row."""

    def chain(**values):
        count = max(len(v) for v in values.values())
        rows = {"kernel": [3], "stride": [1], "dilation": [1], "lo": [0], "hi": [0]} | values
        full = {n: np.resize(np.array(v, np.int64), count) for n, v in rows.items()}
        return Chain((ChainAxis(**full),), np.ones(count))

    chains = [
        (chain(stride=[2] * 200), None, None),
        (chain(kernel=[2**62, 2**62]), None, None),
        (chain(dilation=[2**61] * 3), None, None),
        (chain(lo=[2**62]), None, None),
        (chain(kernel=[5]), (4,), None),
        (chain(kernel=[3]), None, (2 * WIDEST,)),
        (chain(kernel=[3]), None, None),
    ]
    assert geometry(pack(chains, 1)).regular.tolist() == [False] * 6 + [True]
    assert list(batched(chains, 1)) == [6]


@pytest.mark.parametrize("bounded", [False, True])
def test_few_lines_and_many_are_followed_alike(monkeypatch, bounded):
    """Layer by layer in arrays, line by line, and one way after the other."""
    rng = np.random.default_rng(8)
    given = []
    for _ in range(60):
        size = (int(rng.integers(1, 80)),) if bounded else None
        given.append((random_chain(rng, 1, False), size, None))
    packed = pack(given, 1)
    packed.layers[0, 5] = WIDEST + 1
    found = {}
    for few in (0, 7, 100):
        monkeypatch.setattr(packing, "FEW", few)
        found[few] = geometry(packed)
    regular = found[0].regular
    assert 10 < regular.sum() < 60
    layers = np.repeat(regular, np.diff(packed.offsets))
    for few in (7, 100):
        for name in ("starts", "counts", "regular"):
            assert np.array_equal(getattr(found[few], name), getattr(found[0], name))
        for name in ("size", "stride", "padding", "units"):
            assert np.array_equal(
                getattr(found[few], name)[regular], getattr(found[0], name)[regular]
            )
        for name in ("spacings", "maps"):
            assert np.array_equal(
                getattr(found[few], name)[layers], getattr(found[0], name)[layers]
            )
