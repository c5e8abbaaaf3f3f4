"""Spaces: their points against nested loops, their networks against networks built by hand."""

from __future__ import annotations

import inspect
import itertools
import json
import math
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import qmc

import fastrf as rf
from fastrf.errors import InputError
from fastrf.layers import Concat, Conv, ConvTranspose, MaxPool
from fastrf.network import Network, Parallel, Residual, Sequential
from fastrf.sweep import vectors
from fastrf.sweep.chain import Chain
from fastrf.sweep.content import DEFAULTS, spelled_out
from fastrf.sweep.counting import Table, count_joint
from fastrf.sweep.dimensions import sampled
from fastrf.sweep.space import Space

SPACES = Path(__file__).parents[1] / "bench" / "spaces"


def space(parameters: dict[str, Any], **top: Any) -> Space:
    return Space({"parameters": parameters, **top})


def rows(found: Space) -> list[dict[str, Any]]:
    return [point.parameters for point in found]


def only(found: Space) -> Network:
    (point,) = found
    return point.network()


# --- points ---------------------------------------------------------------------------------


def test_a_grid_is_nested_loops_the_last_parameter_fastest() -> None:
    found = space(
        {
            "depth": {"from": 1, "to": 3},
            "twice": "2 * depth",
            "kernel": [3, 5],
            "reach": "twice * (kernel - 1)",
            "gain": 0.5,
        }
    )
    expected = [
        {"depth": d, "twice": 2 * d, "kernel": k, "reach": 2 * d * (k - 1), "gain": 0.5}
        for d, k in itertools.product(range(1, 4), [3, 5])
    ]
    assert rows(found) == expected
    assert [list(row) for row in rows(found)] == [list(row) for row in expected]
    assert len(found) == 6
    assert rows(found) == rows(found)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"from": 3, "to": 9, "step": 3}, [3, 6, 9]),
        ({"from": 3, "to": 8, "step": 3}, [3, 6]),
        ({"from": 3, "to": 1, "step": -1}, [3, 2, 1]),
        ({"from": 0.0, "to": 0.4, "step": 0.1}, [0.0, 0.1, 0.2, 0.3, 0.4]),
        ({"from": 1.0, "to": 2.0, "count": 3}, [1.0, 1.5, 2.0]),
        ({"from": 1, "to": 64, "count": 4, "scale": "log"}, [1, 4, 16, 64]),
        ({"from": 1, "to": 3, "count": 9, "scale": "log"}, [1, 2, 3]),
        ({"from": 0.01, "to": 1.0, "count": 3, "scale": "log"}, [0.01, 0.1, 1.0]),
        (range(2, 8, 3), [2, 5]),
        (np.array([1, 2]), [1, 2]),
        ([[1, 2], [3]], [[1, 2], [3]]),
        (["a", True, 1.5], ["a", True, 1.5]),
    ],
)
def test_values_of_a_parameter(given: Any, expected: list[Any]) -> None:
    # `note` reads it, as something has to.
    found = space({"v": given, "note": "v == v"})
    assert [row["v"] for row in rows(found)] == expected
    assert [type(row["v"]) for row in rows(found)] == [type(v) for v in expected]


def test_zipped_parameters_vary_together() -> None:
    found = space(
        {"kernel": [3, 5, 7], "depth": [1, 2], "stride": [1, 2, 3]}, zip=[["kernel", "stride"]]
    )
    assert [tuple(row.values()) for row in rows(found)] == [
        (k, d, s) for k, s in zip([3, 5, 7], [1, 2, 3], strict=True) for d in (1, 2)
    ]
    assert len(found) == 6


def test_constraints_against_loops() -> None:
    found = space(
        {
            "depth": {"from": 1, "to": 6},
            "growth": [1, 2, 3],
            "kernel": [3, 5, 7],
            "gain": [0.5, 2.0],
            "dilation": "growth**i",
        },
        where=["kernel * dilation <= 65", "depth * gain >= 1"],
    )
    expected = [
        (d, g, k, c)
        for d, g, k, c in itertools.product(range(1, 7), [1, 2, 3], [3, 5, 7], [0.5, 2.0])
        if all(k * g**i <= 65 for i in range(d)) and d * c >= 1
    ]
    assert [tuple(row.values()) for row in rows(found)] == expected
    assert len(found) == len(expected)


def test_what_depends_on_the_layer_is_no_column() -> None:
    found = space({"depth": [3], "dilation": "2**i", "next": "dilation * 2"})
    assert rows(found) == [{"depth": 3}]


def test_huge_spaces_are_counted_and_begun_without_enumerating() -> None:
    found = space(
        {
            "depth": {"from": 1, "to": 100_000},
            "kernel": {"from": 1, "to": 10_000},
            "stride": [1, 2, 3],
            "gain": {"from": 1, "to": 100},
        },
        where=["stride != 2"],
    )
    assert len(found) == 10**9 * 2 * 100
    assert [tuple(p.parameters.values()) for p in itertools.islice(found, 3)] == [
        (1, 1, 1, 1), (1, 1, 1, 2), (1, 1, 1, 3),
    ]  # fmt: skip
    tied = space(
        {"depth": {"from": 1, "to": 10**5}, "kernel": {"from": 1, "to": 10**5}},
        where=["depth < kernel"],
    )
    with pytest.raises(InputError, match="ties depth, kernel together, 10000000000 combinations"):
        len(tied)
    assert next(iter(tied)).parameters == {"depth": 1, "kernel": 2}


def test_constraints_on_few_parameters_each_are_counted_together() -> None:
    """More combinations than can be tried; against binomials, and nested loops where they are
    few."""
    names = [f"a{n}" for n in range(6)]
    values = {"from": 1, "to": 60}
    chained = [f"{a} < {b}" for a, b in itertools.pairwise(names)]
    found = space(dict.fromkeys(names, values), where=chained)
    assert len(found) == math.comb(60, 6)
    ring = [*chained[:4], "(a0 + a4) % 7 == 3"]
    rings = [
        len(space({name: {"from": 1, "to": n} for name in names[:5]}, where=ring)) for n in (7, 60)
    ]
    small = itertools.combinations(range(1, 8), 5)
    assert rings[0] == sum((v[0] + v[4]) % 7 == 3 for v in small)
    ends = ((a, e) for a, e in itertools.combinations(range(1, 61), 2) if (a + e) % 7 == 3)
    assert rings[1] == sum(math.comb(e - a - 1, 3) for a, e in ends)


@pytest.mark.parametrize(
    "where",
    [
        ["a < b", "b * i < 12", "gain > 0.5", "c != a"],
        ["a + b < 4", "wide <= c + 2", "c > 0 or depth > 2"],
        ["1 / (a - 1) < 5", "(b - c) / b > 0"],  # where that cannot be said, points stay
        ["depth * a < 5", "depth * b < 6", "depth * c < 7"],
    ],
)
def test_constraints_are_counted_as_points_are_found(where: list[str]) -> None:
    found = space(
        {"depth": [1, 2, 3], "a": [0, 1, 2, 3], "b": [0, 1, 2, 3], "c": [0, 1, 2]}
        | {"gain": "1 + a - c / 2", "wide": "a * b", "kernel": 3},
        where=where,
    )
    assert len(found) == len(list(found))
    assert 0 < len(found) < 144


def test_a_latin_hypercube_is_scipys() -> None:
    for count, axes, seed in ((1, 1, 0), (7, 3, 1), (500, 5, 2)):
        found = sampled("latin", count, axes, seed)
        sampler = qmc.LatinHypercube(axes, rng=np.random.default_rng(seed))
        np.testing.assert_array_equal(found, sampler.random(count))


def test_places_say_which_points_they_are() -> None:
    """In any order, with constraints and without; a space that was pickled says the same."""
    tables = [
        {"parameters": {"depth": [1, 2, 3], "kernel": [3, 5], "dilation": "kernel // depth"}},
        {
            "parameters": {"a": [0, 1, 2], "kernel": [3, 5], "depth": [1, 4], "gain": "depth / a"},
            "where": ["kernel + depth != 7", "gain < 3", "i * kernel < 12"],
        },
        {
            "parameters": {"depth": {"from": 1, "to": 9}, "kernel": [3, 5, 7], "gain": [1, 2, 3]},
            "zip": [["kernel", "gain"]],
            "sample": {"count": 4, "of": ["depth"]},
        },
    ]
    for table in tables:
        space = Space(table)
        places, points = list(space.places()), list(space)
        assert len(points) == len(places) == len(space)
        assert places == sorted(set(places))
        again = pickle.loads(pickle.dumps(space))
        for order in (range(len(places)), range(len(places) - 1, -1, -2)):
            for at in (space, again):
                found = at.at([places[n] for n in order])
                assert list(map(repr, found)) == [repr(points[n]) for n in order]


def test_a_latin_hypercube_takes_every_share_once_and_is_reproducible() -> None:
    content: dict[str, Any] = {
        "depth": {"from": 1, "to": 50},
        "gain": {"from": 0.5, "to": 8.0, "scale": "log"},
        "kernel": [3, 5],
    }
    sample = {"count": 50, "of": ["depth", "gain"]}
    found = space(content, sample=sample, seed=3)
    assert len(found) == 100
    table = rows(found)
    assert [row["kernel"] for row in table] == [3, 5] * 50
    assert sorted(row["depth"] for row in table[::2]) == list(range(1, 51))
    shares = sorted(math.floor(50 * math.log(row["gain"] / 0.5, 16)) for row in table[::2])
    assert shares == list(range(50))
    assert rows(space(content, sample=sample, seed=3)) == table
    assert rows(space(content, sample=sample, seed=4)) != table
    drawn = space(content, sample={"count": 7, "method": "random"}, seed=3)
    assert len(drawn) == len(rows(drawn)) == 7
    assert all(1 <= r["depth"] <= 50 and 0.5 <= r["gain"] < 8 for r in rows(drawn))


def test_a_range_of_one_value_is_sampled_and_one_that_goes_down_is_none() -> None:
    sample = {"count": 3, "method": "random"}
    found = space({"depth": [2], "gain": {"from": 1.5, "to": 1.5}}, sample=sample)
    assert [row["gain"] for row in rows(found)] == [1.5] * 3
    with pytest.raises(InputError, match="goes down; turn the two"):
        space({"depth": [2], "gain": {"from": 1.5, "to": 1.4}}, sample=sample)


def test_vectors_are_kept_and_continued_until_they_are_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = []

    def make(start: int, stop: int) -> tuple[Any]:
        made.append((start, stop))
        return (np.arange(start, stop),)

    monkeypatch.setattr(vectors, "MOST_KEPT", 100)
    kept = vectors.Vectors()
    for times in (3, 5, 4, 90):
        (axis,) = kept.first("a", times, make)
        np.testing.assert_array_equal(axis, np.arange(times))
    assert made == [(0, 3), (3, 5), (5, 90)]
    kept.first("b", 1, make)  # one too many: all before it are dropped
    kept.first("a", 2, make)
    assert made[3:] == [(0, 1), (0, 2)]


def test_whole_numbers_are_sampled_with_both_ends() -> None:
    found = space(
        {"depth": {"from": 1, "to": 8, "scale": "log"}}, sample={"count": 300, "method": "latin"}
    )
    counts = np.bincount([row["depth"] for row in rows(found)], minlength=9)
    # Depth n stands for [n, n + 1) on a log scale from 1 to 9; a Latin sample is off by one.
    expected = [300 * math.log((n + 1) / n, 9) for n in range(1, 9)]
    assert counts[0] == 0
    assert np.all(np.abs(counts[1:] - expected) <= 1 + 1e-9)


def test_invalid_points_are_rows_with_their_error() -> None:
    found = space(
        {"depth": [0, 1, 4], "share": "8 // depth", "kernel": [3, 0]}, where=["12 // depth > 2"]
    )
    table = rows(found)
    assert len(found) == len(table) == 6
    assert [row["share"] for row in table] == [None, None, 8, 8, 2, 2]
    errors = []
    for point in found:
        for build in (point.network, point.chain):
            try:
                errors.append(build() is None)
            except InputError as error:
                errors.append(str(error))
    assert errors[:2] == errors[2:4] == [errors[0]] * 2
    assert "division by 0" in errors[0]
    assert errors[4:6] == [False, False]
    assert errors[6] == errors[7]
    assert "kernel=0 must be a whole number" in errors[6]


def test_points_and_spaces_can_be_pickled() -> None:
    found = space({"depth": [1, 2], "dilation": "2**i"})
    copies = pickle.loads(pickle.dumps(list(found)))
    for point, copy in zip(found, copies, strict=True):
        assert copy.parameters == point.parameters
        assert copy.network() == point.network()
    assert copies[0]._space is copies[1]._space


# --- networks -------------------------------------------------------------------------------


def test_the_standard_network_is_a_chain_of_blocks() -> None:
    found = only(space({"depth": 3, "kernel": 5, "dilation": "2**i", "stride": "1 + (i == 1)"}))
    assert found == Sequential(
        Conv(5, padding=2), Conv(5, dilation=2, stride=2, padding=4), Conv(5, dilation=4, padding=8)
    )


def test_even_kernels_are_centred_up_to_half_a_pixel_and_axes_may_differ() -> None:
    found = only(space({"kernel": [[4, 3]], "dilation": 3}))
    assert found == Sequential(Conv((4, 3), dilation=3, padding=((4, 5), (3, 3))))
    line = only(space({"kernel": 2}, ndim=1))
    assert line == Sequential(Conv(2, padding=((0, 1),), taps=None), ndim=1)
    assert line.bound.ndim == 1


def test_blocks_against_networks_by_hand() -> None:
    def built(block: str, **parameters: Any) -> Network:
        return only(space({"block": [block], **parameters}))

    def conv(**kw: Any) -> Conv:
        return Conv(3, padding=1, **kw)

    assert built("residual", depth=2, gain=0.5) == Sequential(
        Residual(conv(gain=0.5), conv()), Residual(conv(gain=0.5), conv())
    )
    assert built("residual", stride=2) == Residual(
        conv(stride=2), conv(), shortcut=Conv(1, stride=2)
    )
    assert built("bottleneck") == Residual(Conv(1), conv(), Conv(1))
    assert built("dense", depth=2) == Sequential(
        Parallel(None, conv(), merge="concat"), Parallel(None, conv(), merge="concat")
    )
    up = ConvTranspose(2, stride=2, gain=4.0)
    bottom = Parallel(None, [MaxPool(2), conv(), up], merge="concat")
    inner = [conv(), bottom, conv()]
    outer = Sequential(conv(), Parallel(None, [MaxPool(2), *inner, up], merge="concat"), conv())
    assert built("unet", depth=2, convs=1) == outer


def test_a_users_own_template() -> None:
    found = space(
        {"levels": [2], "width": [3, 5]},
        blocks={
            "pair": [
                {"type": "Conv", "kernel": "{width}", "padding": "centred", "repeat": "{times}"},
                {"type": "Activation", "function": "{act}"},
            ]
        },
        layers=[
            {"type": "Conv", "kernel": 7, "stride": 2, "name": "stem"},
            {"block": "pair", "repeat": "{levels}", "times": "{i + j + 1}", "act": "tanh"},
            {"block": "pair", "width": "{width + 2}", "times": 1, "act": "relu"},
            {"type": "Conv", "kernel": 1, "when": "width > 3"},
        ],
    )
    three, five = (point.network() for point in found)

    def pair(width: int, times: int, act: str) -> list[Any]:
        return [[Conv(width, padding=width // 2)] * times, rf.Activation(act)]

    stem = Conv(7, stride=2)
    assert three == Sequential(stem, *pair(3, 1, "tanh"), *pair(3, 2, "tanh"), *pair(5, 1, "relu"))
    assert five == Sequential(
        stem, *pair(5, 1, "tanh"), *pair(5, 2, "tanh"), *pair(7, 1, "relu"), Conv(1)
    )
    assert list(three.nodes)[1] == "stem"


def test_indices_of_nested_repeats_and_lists_of_branches() -> None:
    found = only(
        space(
            {},
            layers=[
                {
                    "type": "Sequential",
                    "repeat": 2,
                    "layers": [
                        {"type": "Conv", "kernel": "{1 + 2 * i + 10 * j}", "repeat": 2},
                        {
                            "type": "Parallel",
                            "branches": [[], [{"type": "Conv", "kernel": "{i + 1}"}]],
                        },
                    ],
                },
            ],
        )
    )
    expected = [[Conv(1 + 10 * j), Conv(3 + 10 * j), Parallel(None, Conv(j + 1))] for j in range(2)]
    assert found == Sequential(*expected)


def test_graphs_with_placeholders() -> None:
    found = only(
        space(
            {"kernel": 3},
            nodes=[
                {"name": "a", "type": "Conv", "inputs": "input", "kernel": "{kernel}"},
                {"name": "b", "type": "Conv", "inputs": ["input"], "kernel": "{kernel}"},
                {"name": "sum", "type": "Add", "inputs": ["a", "b"]},
            ],
            outputs=["sum"],
        )
    )
    assert found == Parallel(Conv(3), Conv(3))


def test_zoo_networks_are_a_parameter_too() -> None:
    found = space({"network": ["resnet18", "unet({d}, 1)", "plain({d}, {k})"], "d": [2], "k": 5})
    assert [p.network() for p in found] == [
        rf.zoo.resnet18(), rf.zoo.unet(2, 1), rf.zoo.plain(2, 5),
    ]  # fmt: skip
    assert [p.chain() is None for p in found] == [True, True, False]
    assert only(space({"d": 3}, network="plain({d})")) == rf.zoo.plain(3)


def test_options() -> None:
    found = space(
        {"depth": [2], "size": [32, 64]},
        options={"unit": "center", "input_size": "{size}", "output": "conv1"},
    )
    assert [p.options for p in found] == [
        {"unit": "center", "input_size": n, "output": "conv1"} for n in (32, 64)
    ]
    assert all(p.chain() is None for p in found)
    assert [p.options for p in space({"depth": 1}, options={"unit": [0, 0]})] == [{"unit": (0, 0)}]


def test_options_that_say_nothing_are_the_defaults_of_erf() -> None:
    parameters = inspect.signature(rf.erf).parameters
    assert {name: parameters[name].default for name in DEFAULTS} == DEFAULTS
    assert spelled_out({**DEFAULTS, "output": None}, 2) == {}
    given = {"unit": 3, "input_size": [8, 9], "dtype": "float32", "ignore_global": True}
    assert spelled_out(given, 2) == given | {"unit": [3, 3]}


@pytest.mark.parametrize("seed", range(5))
def test_joint_counts_against_nested_loops(seed: int) -> None:
    """Tables over some of four axes, of which the last has none."""
    rng, lengths = np.random.default_rng(seed), (3, 4, 2, 5)
    tables = [
        Table(axes, rng.integers(0, 3, [lengths[a] for a in axes]))
        for axes in ((0,), (0, 1), (1, 2), (0, 2), (2,))
        if rng.random() < 0.7
    ]
    expected = sum(
        math.prod(int(t.values[tuple(at[a] for a in t.axes)]) for t in tables)
        for at in itertools.product(*map(range, lengths))
    )
    assert count_joint(tables, dict(enumerate(lengths))) == expected


def test_taps() -> None:
    line = [1.0, 2.0, 1.0]
    found = space(
        {"kernel": 3, "depth": 2, "taps": ["none"], "shape": "binomial(kernel)"},
        blocks={
            "p": [{"type": "Conv", "kernel": "{kernel}", "taps": "{shape}", "padding": "centred"}]
        },
        layers=[{"block": "p", "repeat": "{depth}", "when": "taps == 'none'"}],
    )
    taps = np.multiply.outer(line, line)
    assert only(found) == Sequential(*[Conv(3, padding=1, taps=taps)] * 2)
    standard = space({"kernel": 3, "depth": 2, "taps": "binomial(3)"})
    assert only(standard) == only(found)
    (point,) = standard
    chain = point.chain()
    assert chain is not None
    assert chain.axes[0] is chain.axes[1]
    assert chain.axes[0].taps is not None
    for taps_found in chain.axes[0].taps:
        np.testing.assert_allclose(taps_found, [0.25, 0.5, 0.25], rtol=1e-15)


# --- packed chains --------------------------------------------------------------------------

CHAINS: list[dict[str, Any]] = [
    {"parameters": {"depth": {"from": 1, "to": 7}, "kernel": [1, 2, 3, 6], "stride": "1 + i % 2",
                    "growth": [1, 2], "dilation": "growth**(i % 3)"}},
    {"parameters": {"depth": [3], "kernel": [[3, 5], [2, 2], 4], "padding": ["centred", "valid",
                    "causal", "same", 2]}},
    {"parameters": {"depth": [2, 3], "stride": [1, 2], "padding": ["same"], "gain": [1, 0.3]}},
    {"parameters": {"depth": {"from": 1, "to": 4}, "kernel": [2, 3], "taps": "gaussian(kernel, 1)"},
     "ndim": 3},
    {"parameters": {"depth": [2], "kernel": ["[3, 3]"], "pattern": [[1, 3], [2]],
                    "dilation": "pattern[i % len(pattern)]"}},
    {"parameters": {"depth": {"from": 0, "to": 4}, "act": ["relu"], "k": [3, 5]},
     "layers": [
         {"type": "Dropout", "p": 0.5},
         {"type": "Conv", "kernel": "{k}", "stride": 2},
         {"block": "b", "repeat": "{depth}"},
         {"type": "Conv", "kernel": "{k + i}", "gain": "{1 / (1 + i)}", "repeat": 2},
         {"type": "Norm", "gain": 3.0}],
     "blocks": {"b": [
         {"type": "Activation"},
         {"type": "Conv", "kernel": "{k}", "dilation": "{1 + i}"},
         {"type": "Scale", "factor": -2.0},
         {"type": "Conv", "kernel": [1, 3], "gain": 0.5, "padding": "same"},
         {"type": "Norm"}]},
     "options": {"unit": "{act}"}},
    {"parameters": {"block": ["plain", "residual"], "depth": [1, 2]}},
    {"parameters": {"ndim": [1, 2, 3], "kernel": [3, [3, 5]]}, "ndim": "{ndim}"},
    {"parameters": {"ndim": [1, 3], "depth": [0, 1]}},
    {"parameters": {"depth": [2, 4], "late": "12 // (i - 1)",
                    "kernel": "3 if i < 2 else late", "dilation": "4 // (3 - i)"}},
    {"parameters": {"depth": [0, 2]}, "layers": [
        {"block": "dense", "repeat": "{depth}"}, {"type": "Conv", "kernel": 3},
        {"type": "Residual", "branch": [{"type": "Conv", "kernel": 1}], "when": "depth > 5"}]},
    {"parameters": {"kernel": [2, 3]}, "layers": [
        {"type": "MaxPool", "kernel": "{kernel}", "when": "kernel == 2"},
        {"type": "Conv", "kernel": "{kernel}", "repeat": 3}]},
    {"parameters": {"depth": [2.0, 2, -1, True], "kernel": [3.0, 3, True]}},
    {"parameters": {"depth": 2, "kernel": 3, "gain": [0, 1, "x"],
                    "padding": [[[1, 2], [0, 1]], 0]}},
]  # fmt: skip


def same_chain(a: Chain, b: Chain) -> bool:
    layers = [x.key() == y.key() for x, y in zip(a.axes, b.axes, strict=True)]
    gains = np.allclose([a.input_gain, *a.gain], [b.input_gain, *b.gain], rtol=1e-14, atol=0)
    return a.depth == b.depth and all(layers) and gains


@pytest.mark.parametrize("content", CHAINS)
def test_packed_chains_are_those_of_the_networks(content: dict[str, Any]) -> None:
    """Twice, as the second time everything is kept; and last to first, as vectors are continued."""
    points = list(Space(content))
    for point in (*points, *reversed(points)):
        try:
            expected = Chain.of(point.network())
        except InputError as error:
            with pytest.raises(InputError, match=re.escape(str(error)[:80])):
                point.chain()
            continue
        found = point.chain()
        if expected is None:
            assert found is None
        else:
            assert found is not None
            assert same_chain(found, expected)
            assert all(a.kernel.dtype == np.int64 for a in found.axes)


def test_a_chain_knows_its_network() -> None:
    net = Sequential(
        rf.Activation("relu"),
        Conv((3, 4), stride=(1, 2), dilation=2, padding=((1, 0), (2, 3)), gain=0.5),
        rf.Activation("relu"),
        Conv(2, taps=[[1, 2], [3, 6]]),
        Conv((2, 3), taps=[[1, 1, 1], [3, 3, 3]]),  # all equal along one axis
    )
    chain = Chain.of(net)
    assert chain is not None
    assert (chain.depth, chain.ndim, chain.input_gain) == (3, 2, 0.5)
    np.testing.assert_allclose(chain.gain, [0.25, 1.0, 1.0])
    again = Chain.of(chain.network())
    assert again is not None
    assert same_chain(Chain(again.axes, again.gain, 0.5), chain)
    field, whole = rf.erf(chain.network()), rf.erf(net)
    np.testing.assert_allclose(field.to_numpy(), whole.to_numpy(), rtol=1e-13)
    assert field.log_gain + math.log(0.5) == pytest.approx(whole.log_gain)


@pytest.mark.parametrize(
    "net",
    [
        Residual(Conv(3, padding=1)),
        Sequential(Conv(3), MaxPool(2)),
        Sequential(Conv(3, padding=1, padding_mode="reflect")),
        Sequential(Conv(3, channels=4), Conv(3, channels=4, groups=2)),
        Sequential(Conv(3, stride=2, padding="same_upper")),
        Sequential(Conv(2, taps=[[1, 2], [3, 4]])),
        Sequential(Conv(3), rf.Norm("layer")),
        Sequential(rf.Activation()),
        Network({"a": (Conv(3), "input"), "b": (Conv(3), "a")}, outputs=["a", "b"]),
        Network({"a": (Conv(3), "input"), "b": (Conv(3), "a")}, outputs=["a"]),
        Parallel(Conv(3), None, merge="concat"),
    ],
)
def test_what_is_no_chain(net: Network) -> None:
    assert Chain.of(net) is None


# --- files ----------------------------------------------------------------------------------


def test_the_spaces_of_the_benchmarks() -> None:
    chains = Space.load(SPACES / "chains.toml")
    assert len(chains) == 108_000
    for point in itertools.islice(chains, 0, None, 5431):
        found, expected = point.chain(), Chain.of(point.network())
        assert found is not None
        assert expected is not None
        assert same_chain(found, expected)
    graphs = Space.load(SPACES / "graphs.toml")
    assert len(graphs) == 10_000
    kinds = set()
    for point in itertools.islice(graphs, 0, None, 1237):
        kinds.add(point.parameters["block"])
        field = rf.receptive_field(point.network())
        assert field.aligned
    assert kinds == {"residual", "bottleneck", "dense", "unet"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"parameter": {}}, "no key 'parameter'; did you mean 'parameters'"),
        ({"parameters": []}, "parameters: [] must be a table"),
        ({"parameters": {"a b": 1}}, "use letters, digits"),
        ({"parameters": {"max": 1}}, "means something else"),
        ({"parameters": {"i": [1]}}, "means something else"),
        ({"parameters": {"depth": "kernal", "kernel": 3}}, "no parameter 'kernal'; did you mean"),
        ({"parameters": {"a": "b", "b": "a"}}, "depend on each other"),
        ({"parameters": {"kernal": [3]}}, "nothing reads it; did you mean 'kernel'?"),
        ({"parameters": {"kernel": []}}, "the list is empty"),
        ({"parameters": {"kernel": {"from": 1}}}, "needs from and to"),
        ({"parameters": {"kernel": {"from": 1, "to": 3, "by": 1}}}, "no key 'by'"),
        ({"parameters": {"kernel": {"from": 1, "to": 3, "step": -1}}}, "turn its sign"),
        ({"parameters": {"kernel": {"from": 1, "to": 3, "step": 0}}}, "give another number"),
        ({"parameters": {"kernel": {"from": 1, "to": 3, "step": 0.5}}}, "no whole number"),
        ({"parameters": {"kernel": {"from": 1, "to": 3, "step": 1, "count": 2}}}, "one of them"),
        ({"parameters": {"gain": {"from": 0.5, "to": 3.0}}}, "no step and no count"),
        ({"parameters": {"gain": {"from": 0, "to": 3, "scale": "log"}}}, "no logarithm"),
        ({"parameters": {"gain": {"from": 1, "to": math.inf}}}, "finite"),
        ({"parameters": {"gain": [math.nan]}}, "not finite"),
        ({"parameters": {"gain": [{"a": 1}]}}, "must be a number, a text"),
        ({"parameters": {"kernel": {"from": 1, "to": 2**50}, "depth": {"from": 1, "to": 2**50}}},
         "values; a range has at most"),
        ({"parameters": {"kernel": {"from": 1, "to": 2**30}, "depth": {"from": 1, "to": 2**30}}},
         "a space has at most"),
        ({"parameters": {"kernel": [3]}, "zip": ["kernel"]}, "must be a list of parameters"),
        ({"parameters": {"kernel": [3], "depth": [1, 2]}, "zip": [["kernel", "depth"]]},
         "kernel has 1 values, depth has 2 values"),
        ({"parameters": {"kernel": [3]}, "zip": [["kernel"], ["kernel"]]}, "in two groups"),
        ({"parameters": {"kernel": [3]}, "sample": {"count": 0}}, "sample.count"),
        ({"parameters": {"kernel": [3]}, "sample": {"count": 10**9}}, "sample.count"),
        ({"parameters": {"kernel": [3]}, "sample": {"count": 1, "method": "sobol"}}, "latin"),
        ({"parameters": {"kernel": [3]}, "sample": {"count": 1}, "seed": -1}, "seed"),
        ({"parameters": {"kernel": [3]}, "where": ["depth > 1"]}, "no parameter 'depth'"),
        ({"parameters": {"kernel": [3]}, "where": ["i > 1"]}, "no parameter depth counts"),
        ({"parameters": {"kernel": 3}, "where": ["kernel > 5"]}, "holds for no point"),
        ({"parameters": {"kernel": [3]}, "where": [3]}, "list of expressions"),
        ({"parameters": {"kernel": [3]}, "where": ["kernel >"]}, "is no expression"),
        ({"layers": [{"type": "Conf"}]}, "did you mean 'Conv'"),
        ({"layers": [{"block": "plane"}]}, "did you mean 'plain'"),
        ({"parameters": {"block": ["plain", "plane"]}}, "did you mean 'plain'"),
        ({"layers": [{"kernel": 3}]}, "give either type"),
        ({"layers": [{"type": "Conv", "kernel": "{kernel"}]}, "without its partner"),
        ({"layers": [{"type": "Conv", "kernel": "{karnel}"}]}, "no parameter 'karnel'"),
        ({"layers": [], "network": "resnet18"}, "keep one of them"),
        ({"network": "unet({deep})"}, "no parameter 'deep'"),
        ({"parameters": {"network": ["unet({deep})"]}}, "no parameter 'deep'"),
        ({"outputs": ["a"]}, "belongs to nodes"),
        ({"options": {"devise": "cpu"}}, "no key 'devise'"),
        ({"options": {"input_size": "{size}"}}, "no parameter 'size'"),
        ({"name": 3}, "name: 3 must be a text"),
    ],
)  # fmt: skip
def test_bad_content_is_refused_with_its_place(content: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=r"^bad\.toml: ") as refused:
        Space(content, source="bad.toml")
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"layers": [{"type": "Conv", "kernel": 3, "repeat": "{0.5}"}]}, "repeat: 0.5 must be"),
        ({"layers": [{"type": "Conv", "kernel": 3, "repeat": 10**8}]}, "must be a whole number"),
        ({"blocks": {"a": [{"block": "a"}]}, "layers": [{"block": "a"}]}, "16 deep"),
        ({"layers": [{"block": "unet", "pool": "x"}]}, "'x' is no number"),
        ({"layers": [{"type": "Conv"}]}, "Conv needs kernel"),
        ({"layers": []}, "space"),
        ({"parameters": {"network": ["resnet19"]}}, "'resnet18'"),
        ({"ndim": 4}, "1, 2 or 3 axes"),
    ],
)
def test_bad_points_say_so_when_they_are_built(content: dict[str, Any], message: str) -> None:
    (point,) = Space(content)
    if content == {"layers": []}:
        assert len(point.network()) == 0
        return
    with pytest.raises(InputError) as refused:
        point.network()
    assert message in str(refused.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"name it \.toml or \.json"):
        Space.load("space.yaml")
    with pytest.raises(InputError, match="cannot be read"):
        Space.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("a = ")
    with pytest.raises(InputError, match="is not valid TOML"):
        Space.load(tmp_path / "bad.toml")
    (tmp_path / "bad.json").write_text('{"a": 1, "a": 2}')
    with pytest.raises(InputError, match="is not valid JSON"):
        Space.load(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text("[1]")
    with pytest.raises(InputError, match="must be a table"):
        Space.load(tmp_path / "list.json")


def test_a_file_of_json_is_read_as_one_of_toml(tmp_path: Path) -> None:
    content = {"ndim": 1, "parameters": {"depth": {"from": 1, "to": 3}, "kernel": [3, 5]}}
    (tmp_path / "space.json").write_text(json.dumps(content))
    found = Space.load(tmp_path / "space.json")
    assert [p.parameters for p in found] == [p.parameters for p in Space(content)]


def test_merges_of_dense_blocks_are_read_alike() -> None:
    """A dense block has one plane, as every reader reads all of it."""
    (point,) = space({"block": ["dense"], "depth": 3})
    net = point.network()
    assert sum(isinstance(n.layer, Concat) for n in net.nodes.values()) == 3
    assert rf.receptive_field(net).size == (7, 7)
