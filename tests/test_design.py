"""Design by target: closed forms against the engine, the cheapest against brute force."""

from __future__ import annotations

import doctest
import itertools
import math
from importlib import import_module
from typing import Any

import numpy as np
import pytest

import fastrf as rf
from fastrf import design
from fastrf.analytic.growth import gaussian_size, growth
from fastrf.analytic.moments import moments
from fastrf.errors import InputError
from fastrf.layers import Conv
from fastrf.lowering import lower
from fastrf.network import Sequential

DESIGN = import_module("fastrf.design")
FAMILY = DESIGN.FAMILY


def test_growth_against_the_recurrences() -> None:
    kernels, strides, dilations = [3, 5, 1, 4], [1, 2, 3, 1], [1, 2, 1, 3]
    found = growth(kernels, strides, dilations)
    for depth in range(1, 5):
        layers = zip(kernels[:depth], strides[:depth], dilations[:depth], strict=True)
        net = Sequential(*(Conv(k, stride=s, dilation=d) for k, s, d in layers))
        field = rf.receptive_field(net)
        assert field.size == (found.trf[depth - 1],) * 2
        assert field.stride == (found.jump[depth - 1],) * 2
        std = rf.erf(net).std
        assert std == pytest.approx([math.sqrt(found.variance[depth - 1])] * 2, rel=1e-12)


def test_sizes_of_a_gaussian() -> None:
    """Against the measures on a sampled Gaussian, with and without a spike, in 1-D and 2-D."""
    x = np.arange(-200, 201)
    line = np.exp(-(x**2) / (2 * 24.0**2))
    for ndim, spike in itertools.product((1, 2), (0.0, 1e-4, 0.3)):
        image = line if ndim == 1 else np.multiply.outer(line, line)
        image = (1 - spike) * image / image.sum()
        image[(200,) * ndim] += spike
        std = rf.metrics.std(image)[0]
        for size, measure in (
            ("luo", rf.metrics.luo_size(image)),
            ("fwhm", rf.metrics.fwhm(image)[0]),
            ("std", std),
        ):
            # Counting pixels is good to about one along each axis.
            assert gaussian_size(std, size, ndim, spike) == pytest.approx(measure, abs=1.1), size
    assert gaussian_size(10.0, "fwhm", 2, 0.9) == 1
    with pytest.raises(InputError, match="size='area' is unknown"):
        gaussian_size(1.0, "area")


def family() -> Any:
    return DESIGN._Family(2, None, "std", [])


@pytest.mark.parametrize("flat", [3, 1_234, 17_017, 111_111, 300_303, 414_141, 520_025])
def test_the_family_is_what_its_networks_are(flat: int) -> None:
    whole = family()
    known = np.flatnonzero((whole.distinct & (whole.trf < 1000)).ravel())
    candidate = whole._candidate(int(known[flat % len(known)]))
    parameters, network = candidate.build()
    assert set(parameters) == set(FAMILY) - {"dilation", "stride"}
    field = rf.receptive_field(network)
    assert field.size == (candidate.trf,) * 2
    assert field.stride == (candidate.stride,) * 2
    std = moments(lower(network, None), None, "center").std
    assert std == pytest.approx([candidate.size] * 2, rel=1e-12)
    convs = [n for n in network.nodes.values() if isinstance(n.layer, Conv)]
    assert candidate.layers == len(convs)
    assert candidate.parameters == sum(n.layer.kernel**2 for n in convs)
    strides = {row.name: row.stride[0] for row in field.layers}
    cost = sum(n.layer.kernel**2 * (candidate.stride / strides[n.name]) ** 2 for n in convs)
    assert candidate.multiply_adds == pytest.approx(cost, rel=1e-12)


def test_the_family_names_every_network_once() -> None:
    whole = family()
    shallow = whole.distinct[..., :3] & (whole.trf[..., :3] < 60)
    prints = []
    for index in np.argwhere(shallow)[::5]:
        _, network = whole._candidate(
            int(np.ravel_multi_index(tuple(index), whole.size.shape))
        ).build()
        prints.append(network.fingerprint)
    assert len(prints) > 50
    assert len(set(prints)) == len(prints)


def test_the_cheapest_that_fits_is_found() -> None:
    """With the standard deviation closed forms are exact, so brute force must agree."""
    space = rf.Space(
        {
            "parameters": {
                "depth": {"from": 1, "to": 8},
                "kernel": [3, 5, 7],
                "growth": [1, 2],
                "dilation": "growth**(i % 3)",
            }
        }
    )
    fitting = []
    for point in space:
        network = point.network()
        p = point.parameters
        std = rf.erf(network).std[0]
        if 4.5 <= std <= 5.5 and p["depth"] <= 6:
            fitting.append((p["depth"] * p["kernel"] ** 2, network.fingerprint))
    cost, fingerprint = min(fitting)
    found = design(5, size="std", within=0.1, budget={"layers": 6}, space=space, count=2)
    assert found
    assert found.reason is None
    assert found.searched == len(space)
    assert (found[0].multiply_adds, found[0].network.fingerprint) == (cost, fingerprint)
    assert all(4.5 <= d.erf <= 5.5 and d.fits and d.layers <= 6 for d in found)


def test_figures_are_the_engines() -> None:
    found = design(target_erf=30, target_trf=(None, 60), stride=2, count=3)
    assert len(found) == 3
    for d in found:
        field = rf.erf(d.network)
        assert d.erf == field.luo_size()
        assert abs(d.erf - 30) <= 1.5
        assert d.trf == field.field.size[0] <= 60
        assert d.stride == field.field.stride[0] == 2
    costs = [d.multiply_adds for d in found]
    assert costs == sorted(costs)
    text = str(found)
    assert text.count("fits") == 3
    assert f"{found.searched} candidates by closed form" in text
    document = found.to_dict()
    assert document["designs"][0]["parameters"] == found[0].parameters
    assert "network" not in document["designs"][0]


def test_a_budget_is_kept() -> None:
    found = design(target_erf=100, stride=1, budget=500, count=2)
    assert all(d.multiply_adds <= 500 for d in found)
    both = design(target_trf=(41, None), stride=1, budget={"layers": 4, "parameters": 400})
    assert both
    assert all(d.layers <= 4 and d.parameter_count <= 400 for d in both)


def test_other_sizes_and_axes() -> None:
    line = design(target_erf=40, size="fwhm", ndim=1, stride=1, count=1)
    assert line
    assert abs(rf.erf(line[0].network).fwhm[0] - 40) <= 2
    assert line[0].network.bound.ndim == 1


def test_graphs_of_a_space() -> None:
    space = {"parameters": {"network": ["unet({levels}, 1)"], "levels": [1, 2, 3]}}
    found = design(target_trf=(30, 60), space=space)
    assert [d.parameters["levels"] for d in found] == [3]
    net = rf.zoo.unet(3, 1)
    assert found[0].stride == 1
    assert found[0].layers == 3 + 1 + 3 + 3 + 1
    # Two by level at the level's own resolution; transposed convolutions at the one they read.
    levels = [1 / 4**n for n in range(4)]
    cost = 9 * (2 * sum(levels[:3]) + levels[3]) + 4 * sum(levels[1:]) + 1
    assert found[0].multiply_adds == pytest.approx(cost)
    assert found[0].network == net


def test_why_nothing_fits() -> None:
    found = design(target_erf=500, stride=1, budget={"layers": 3})
    assert not found
    assert len(found) == 5
    assert not any(d.fits for d in found)
    assert all(d.layers <= 3 for d in found)
    assert found.reason is not None
    assert "target_erf (asked for 475 to 525, the nearest is" in found.reason
    assert "budget of layers (asked for 3, the nearest is" in found.reason
    assert found.reason in str(found)
    hopeless = design(target_erf=20, target_trf=5, stride=1, budget={"parameters": 1})
    assert hopeless.reason is not None
    assert "at least two" in hopeless.reason
    assert len(hopeless) == 0
    small = design(target_erf=10, space={"parameters": {"depth": [1, 2]}})
    assert "everything but target_erf" in str(small.reason)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "nothing is asked for"),
        ({"target_erf": -1}, "target_erf=-1 must be"),
        ({"target_erf": (5, 3)}, "must be a number of pixels"),
        ({"target_erf": (None, None)}, "must be a number of pixels"),
        ({"target_erf": True}, "must be a number of pixels"),
        ({"target_erf": 5, "size": "area"}, "choose one of luo, std, fwhm"),
        ({"target_erf": 5, "within": 0}, "within=0"),
        ({"target_erf": 5, "stride": 3}, "no power of 2"),
        ({"target_erf": 5, "stride": 0}, "stride=0"),
        ({"target_erf": 5, "budget": 0}, "above 0"),
        ({"target_erf": 5, "budget": {"flops": 3}}, "budget has no 'flops'"),
        ({"target_erf": 5, "ndim": 4}, "1, 2 or 3 axes"),
        ({"target_erf": 5, "count": 0}, "count=0"),
        ({"target_erf": 5, "space": {"parameters": {"kernel": [0]}}}, "no point of the space"),
        ({"target_erf": 5, "space": {"parameters": {"depth": {"from": 1, "to": 10**7}}}},
         "more than the 1000000"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        design(**arguments)
    assert message in str(refused.value)


def test_examples() -> None:
    for name in ("fastrf.design", "fastrf.advice", "fastrf.sweep.space"):
        result = doctest.testmod(import_module(name))
        assert result.failed == 0
        assert result.attempted >= 2


def test_what_takes_long_is_computed_of_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Moments only where they are asked for, and of networks that meet all the rest."""
    space = {"block": ["residual"], "depth": {"from": 1, "to": 6}, "kernel": [3, 5]}
    asked = []

    def counted(*arguments: Any) -> Any:
        asked.append(arguments)
        return moments(*arguments)

    monkeypatch.setattr(DESIGN, "moments", counted)
    assert design(target_trf=(15, 30), space={"parameters": space}, count=1)
    assert not asked
    budget = {"layers": 4}
    assert design((0.5, 9), size="std", budget=budget, space={"parameters": space}, count=1)
    assert len(asked) == 4  # of two depths and two kernels


def test_no_size_is_forecast_beyond_the_trf() -> None:
    """A Gaussian of the σ of a few layers is: the reason then named a size that none has."""
    space = {"ndim": 1, "parameters": {"depth": {"from": 1, "to": 3}, "kernel": [3, 5]}}
    found = rf.design(target_erf=20, space=space)
    assert not any(d.fits for d in found)
    assert max(d.erf for d in found) == 13
    assert "the nearest is 13)" in str(found.reason)
    # Five layers whose field fills its TRF; their Gaussian would be larger by half.
    small = rf.design(target_erf=(62, 64), stride=4, budget={"layers": 5}, count=20)
    assert any(d.erf == d.trf == 63 for d in small if d.fits)
