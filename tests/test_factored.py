"""The factored engine against the direct one and against whole numbers, pixel by pixel."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from math import comb

import naive
import numpy as np
import pytest
from fastrf.kernels import load

import fastrf as rf
from fastrf.analytic.polynomial import exact_profile, extended_binomial
from fastrf.engine import factored, profiles
from fastrf.engine.direct import propagate
from fastrf.engine.profiles import Factor
from fastrf.lowering import lower
from fastrf.network import as_network

EPS = np.finfo(np.float64).eps
BLUR = np.array([1.0, 2.0, 1.0]) / 4
SKEW = np.array([0.5, 0.125, 0.375])


def both(net, unit=(3, -5, 2), **options):
    """What the factored and the direct engine make of the same network."""
    graph = lower(as_network(net), options.pop("input_size", None))
    node, source = graph.output_node(None), graph.input_node(None)
    unit = unit[: graph.ndim]
    assert factored.obstacle(graph, node, source) is None
    values = {"kernels": load(), **options}
    found = (
        engine(graph, node, unit, source, **values)
        for engine in (factored.propagate_factored, propagate)
    )
    return tuple(replace(result, image=result.pixels()) for result in found)


def why_not(net, **options):
    graph = lower(as_network(net), options.pop("input_size", None))
    return factored.obstacle(graph, graph.output_node(None), graph.input_node(None))


NETWORKS = {
    "1-D": rf.Sequential(rf.Conv(5), rf.Conv(3, dilation=4), ndim=1),
    "even": rf.Sequential(rf.Conv(2), rf.Conv(4, padding=(1, 2)), ndim=2),
    "anisotropic": rf.Sequential(rf.Conv((3, 7)), rf.Conv((1, 5), padding=(0, 2))),
    "strided": rf.Sequential(
        rf.Conv(7, stride=2, padding=3),
        rf.MaxPool(3, stride=2, padding=1),
        rf.Conv(3, stride=(1, 3), padding=(2, 1)),
        rf.Conv(1, stride=2),
    ),
    "gaps": rf.Sequential(rf.Conv(1, stride=3), rf.Conv(2, dilation=2), rf.Conv(3)),
    "asymmetric": rf.Sequential(rf.Conv(3, padding=((2, 0), (0, 1))), rf.Conv(4, padding=2)),
    "taps": rf.Sequential(
        *[rf.Conv(3, taps=np.multiply.outer(BLUR, SKEW), gain=g) for g in (1.0, 0.3, 7.0)]
    ),
    "long": rf.Sequential(rf.Conv(51, padding=25), rf.Conv(3, dilation=9), rf.Conv(51)),
    "3-D": rf.Sequential(rf.Conv((3, 1, 5)), rf.Conv(2, stride=2), rf.Conv(3), ndim=3),
    "residual, 1-D": rf.Sequential(*[rf.Residual(rf.Conv(3, padding=1))] * 9, ndim=1),
    "residual": rf.Sequential(
        rf.Conv(5, stride=2), *[rf.Residual(rf.Conv(3, padding=1), rf.Conv(3, padding=1))] * 9
    ),
    "residual, 3-D": rf.Sequential(*[rf.Residual(rf.Conv(3, padding=1))] * 4, ndim=3),
    "gains": rf.Sequential(
        *[rf.Residual(rf.Conv(3, padding=1, gain=g)) for g in (0.1, 0.5, 2.0, 3.0, 1e-9, 40.0)]
    ),
    "off centre": rf.Sequential(*[rf.Residual(rf.Conv(3, padding=((2, 0), (1, 1))))] * 7),
    # From one term to the next there are a few layers more, in which profiles are made.
    "one side": rf.Sequential(*[rf.Residual(rf.Conv(3), rf.Conv((5, 2)))] * 6),
    "two branches": rf.Sequential(
        rf.Residual(rf.Conv(3, padding=1)),
        rf.Residual(rf.Conv(5, padding=2)),
        rf.Residual(rf.Conv(3, padding=1)),
        rf.MaxPool(2, stride=2),
        rf.Residual(rf.Conv((3, 5), padding=(1, 2))),
        rf.Residual(rf.Conv(3, padding=1, taps=np.multiply.outer(SKEW, BLUR))),
    ),
    "parallel": rf.Sequential(
        rf.Parallel(rf.Conv(1), rf.Conv(3, padding=1), rf.Conv(5, padding=2), merge="add"),
        rf.Conv(3),
    ),
    "resnet18": rf.zoo.resnet18(),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_agrees_with_the_direct_engine_pixel_by_pixel(name):
    """Direct sums: at most Σ(k − 1) + merges ≤ 500 roundings in sequence, worst on resnet18 with
    its 435 pixels; the factored engine's Miller recurrence 66, its sums fewer than 500 as well."""
    own, reference = both(NETWORKS[name])
    assert own.origin == reference.origin
    assert own.image.shape == reference.image.shape
    np.testing.assert_allclose(own.image, reference.image, rtol=1000 * EPS, atol=0)
    assert own.mass.log() == pytest.approx(reference.mass.log(), rel=0, abs=1000 * EPS)
    assert own.lost == own.dropped == 0


@pytest.mark.parametrize("name", ["strided", "residual", "3-D", "gains"])
def test_single_precision(name):
    own, reference = both(NETWORKS[name], dtype=np.float32)
    assert own.image.dtype == np.float32
    eps = np.finfo(np.float32).eps
    np.testing.assert_allclose(own.image, reference.image, rtol=200 * eps, atol=0)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_deep_chain_against_whole_numbers(workers):
    """Every pixel of 200 layers of 3 × 3 is a product of two trinomial shares; the error is that of
    two profiles, 67 roundings each, and one product."""
    own, _ = both(rf.zoo.plain(200, 3), (0, 0), workers=workers)
    coefficients, total = exact_profile(200, 3)
    assert own.image.shape == (401, 401)
    bound = Fraction(140 * EPS / 2)
    for i in range(0, 201, 8):
        for j in range(i, 201, 13):
            exact = Fraction(coefficients[i] * coefficients[j], total**2)
            for x, y in ((i, j), (j, i), (400 - i, j), (400 - j, 400 - i)):
                assert abs(Fraction(float(own.image[x, y])) - exact) <= bound * exact


def test_a_deep_residual_stack_against_whole_numbers():
    """Σ_j C(n, j)·b_j(x)·b_j(y) of 400 blocks, down to the smallest normal number.

    Weights by nine squarings (sums of at most 400 terms each), profiles by Miller's recurrence,
    the sum over j of at most 401 terms: γ_1000 is well above it all, and 1e-13 is what is promised.
    """
    n = 400
    graph = lower(as_network(rf.Sequential(*[rf.Residual(rf.Conv(3, padding=1))] * n)))
    ends = graph.output_node(None), (0, 0), graph.input_node(None)
    image = factored.propagate_factored(graph, *ends, kernels=load()).pixels()
    middle = image.shape[0] // 2
    rows = [extended_binomial(j, 3) for j in range(n + 1)]
    places = [(0, 0), (1, 0), (7, 40), (100, 3), (150, 150), (middle, 0), (255, 61)]
    low = 1.0
    for x, y in places:
        whole = sum(
            comb(n, j) * rows[j][j + x] * rows[j][j + y] * 9 ** (n - j)
            for j in range(max(x, y), n + 1)
        )
        exact = Fraction(whole, 18**n)
        for a, b in ((x, y), (-y, x), (y, -x), (-x, -y)):
            pixel = image[middle + a, middle + b]
            assert abs(Fraction(float(pixel)) - exact) <= Fraction(1e-13) * exact
        low = min(low, float(exact))
    assert low < 1e-300


def test_small_networks_against_naive_loops():
    nodes = [
        {"name": "input", "op": "input"},
        {"name": "a", "op": "conv", "inputs": ["input"], "kernel": 3, "lo": 1, "hi": 1},
        {"name": "s", "op": "add", "inputs": ["input", "a"]},
        {"name": "b", "op": "conv", "inputs": ["s"], "kernel": 3, "stride": 2, "lo": 1, "hi": 1},
        {"name": "c", "op": "conv", "inputs": ["b"], "kernel": 2, "lo": 0, "hi": 1},
        {"name": "t", "op": "add", "inputs": ["b", "c"]},
    ]
    net = rf.Sequential(
        rf.Residual(rf.Conv(3, padding=1)),
        rf.Conv(3, stride=2, padding=1),
        rf.Residual(rf.Conv(2, padding=((0, 1), (0, 1)))),
    )
    own, _ = both(net, unit=(2, -1))
    expected = naive.variance_unbounded(nodes, "t", (2, -1))
    total = sum(expected.values())
    assert sum(v > 0 for v in expected.values()) == np.count_nonzero(own.image)
    for index, value in expected.items():
        place = tuple(i - o for i, o in zip(index, own.origin, strict=True))
        assert own.image[place] == pytest.approx(value / total, rel=100 * EPS)
    assert own.mass.log() == pytest.approx(np.log(total), abs=100 * EPS)


@pytest.mark.parametrize("name", ["long", "residual", "off centre"])
def test_what_tail_drops_is_reported(name):
    whole, _ = both(NETWORKS[name])
    part, _ = both(NETWORKS[name], tail=0.05)
    assert 0 < part.dropped <= 0.05
    assert part.image.size < whole.image.size
    assert part.image.sum() == pytest.approx(1, abs=1000 * EPS)
    start = tuple(p - w for p, w in zip(part.origin, whole.origin, strict=True))
    held = whole.image[tuple(slice(s, s + n) for s, n in zip(start, part.image.shape, strict=True))]
    assert held.sum() == pytest.approx(1 - part.dropped, abs=1000 * EPS)
    np.testing.assert_allclose(part.image * (1 - part.dropped), held, rtol=1000 * EPS)
    assert part.mass.log() == pytest.approx(whole.mass.log() + np.log1p(-part.dropped), abs=1e-12)


@pytest.mark.parametrize("tail", [1e-1, 1e-3, 1e-6])
@pytest.mark.parametrize("ndim", [2, 3])
def test_axes_share_what_may_be_dropped(ndim, tail):
    """Of a clipped chain each axis drops its own."""
    net = rf.zoo.plain(60, 3, ndim=ndim)
    found = rf.erf(net, input_size=90, method="factored", tail=tail)
    assert 0 < found.dropped_mass <= tail


@pytest.mark.parametrize("unit", [(0, 0), (3, 9)])
def test_clipped_chains(unit):
    own, reference = both(rf.zoo.plain(9, 3), unit=unit, input_size=14)
    assert own.origin == reference.origin
    np.testing.assert_allclose(own.image, reference.image, rtol=200 * EPS)
    assert own.lost == pytest.approx(reference.lost, rel=1000 * EPS)


def test_axes_that_are_alike_share_their_factors():
    def factors(net):
        graph = lower(as_network(net))
        node, source = graph.output_node(None), graph.input_node(None)
        return factored.factor(graph, node, (0, 0), source, kernels=load()).image.factors

    alike = factors(NETWORKS["residual"])
    assert alike[0] is alike[1]
    assert alike[0].mirrored
    unlike = factors(NETWORKS["two branches"])
    assert unlike[0] is not unlike[1]


def test_obstacles_are_named():
    slanted = np.array([[0.5, 0.1], [0.1, 0.3]])
    assert "no product" in why_not(rf.Sequential(rf.Conv(2, taps=slanted)))
    residual = rf.Sequential(rf.Residual(rf.Conv(3, padding=1)))
    assert why_not(residual) is None
    assert "read by several" in why_not(residual, input_size=9)
    wide = rf.Sequential(
        *[rf.Residual(rf.Conv(k, padding=k // 2)) for k in (3, 5, 7, 9) for _ in range(9)]
    )
    assert f"more than {factored.MOST_TERMS}" in why_not(wide)


PROFILES = {
    "one": {Factor(3, 1): 70},
    "spaced": {Factor(3, 4): 20},
    "long kernel": {Factor(101, 1): 6},
    "taps": {Factor(3, 1, BLUR.tobytes()): 90},
    "skew": {Factor(3, 2, SKEW.tobytes()): 37},
    "mixed": {Factor(3, 6): 5, Factor(2, 4): 9, Factor(3, 1, BLUR.tobytes()): 4, Factor(5, 9): 3},
    "none": {},
}


@pytest.mark.parametrize("name", PROFILES)
@pytest.mark.parametrize("top", [profiles.TOP, 0])
def test_profiles_against_whole_numbers(name, top):
    """Taps are eighths, so that nothing but sums is rounded: at most 250 in sequence, and Miller's
    recurrence (67)."""
    runs = PROFILES[name]
    exact = [1]
    for f, count in runs.items():
        taps = [1] * f.kernel if f.taps is None else [int(8 * t) for t in np.frombuffer(f.taps)]
        for _ in range(count):
            grown = [0] * (len(exact) + f.spacing * (f.kernel - 1))
            for m, tap in enumerate(taps):
                for i, value in enumerate(exact):
                    grown[i + m * f.spacing] += tap * value
            exact = grown
    total = sum(exact)
    whole = profiles.profile(runs, load(), top)
    assert len(whole) == len(exact) == profiles.span(runs) + 1
    bound = Fraction(500 * EPS)
    for value, integer in zip(whole.tolist(), exact, strict=True):
        expected = Fraction(integer, total) * 2**top
        assert abs(Fraction(value) - expected) <= bound * expected
    part = np.full(len(exact) // 2 + 1, np.nan)
    assert profiles.profile(runs, load(), top, part) is part
    np.testing.assert_array_equal(part, whole[: len(part)])


def test_rows_in_which_nothing_is_seen_are_cut_off() -> None:
    """On one side alone: 1e-400 of the mass is below every number."""
    net = rf.Sequential(*[rf.Conv(2, taps=[1e-200, 1])] * 2, ndim=1)
    found = rf.erf(net, method="factored")
    assert (found.shape, found.origin) == ((2,), (1,))
    np.testing.assert_allclose(found.to_numpy(), [2e-200, 1], rtol=1e-14)


@pytest.mark.parametrize("far", [2, 1 << 40])
def test_rows_that_differ(far: int) -> None:
    """Also where they are too far apart to be one number each."""
    rows = np.random.default_rng(0).integers(-2, 2, (60, 3)) * far
    found, which = factored._distinct(rows)
    assert [tuple(row) for row in found.tolist()] == sorted(set(map(tuple, rows.tolist())))
    assert np.array_equal(found[which], rows)


@pytest.mark.parametrize("padding", [0, "same"])
def test_each_term_is_made_of_another(padding, monkeypatch):
    """Whichever end the smallest term stands at; one profile and one step are made anew."""
    made = []
    anew = profiles.profile

    def counted(runs, *options):
        made.append(runs)
        return anew(runs, *options)

    monkeypatch.setattr(profiles, "profile", counted)
    blocks = [rf.Residual(*(rf.Conv(k, padding=padding and k // 2) for k in (3, 5)))] * 40
    found = rf.erf(rf.Sequential(*blocks), method="factored")
    assert len(made) == 2
    line = rf.erf(rf.Sequential(*blocks, ndim=1), method="direct")
    np.testing.assert_allclose(found.profile(0), line.image, rtol=1e-12)
