"""Second moments near borders, against dense matrices and random networks."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import fastrf as rf
from fastrf.layers import Norm
from fastrf.lowering import lower
from fastrf.meanfield.borders import Borders

Floats = np.ndarray
LAYER = rf.Norm("layer", mean_field=True)
"""Divides by the mean square over all pixels."""


def conv(**options: Any) -> rf.Conv:
    return rf.Conv(3, channels=8, **options)


def settled(layers: list[Any], size: int, kind: type) -> Any:
    """The last layer of a kind, settled."""
    net = rf.Sequential(rf.Input(8), *layers, ndim=1)
    return [x.layer for x in lower(net, size).network.nodes.values() if isinstance(x.layer, kind)][
        -1
    ]


def reads(run: Any, size: int) -> Floats:
    """What each output reads, as a matrix, by PyTorch."""
    return run(torch.eye(size, dtype=torch.float64)[:, None])[:, 0].numpy().T


def taps(size: int, stride: int, pad: int, dilation: int = 1) -> list[Floats]:
    """One matrix for each tap of a kernel of 3."""
    units = torch.eye(3, dtype=torch.float64)[:, None, None]
    return [
        reads(lambda x, w=w: functional.conv1d(x, w, None, stride, pad, dilation), size)
        for w in units
    ]


def through(matrices: list[Floats], k: Floats) -> Floats:
    """Behind random weights of gain 1."""
    return sum(m @ k @ m.T for m in matrices) / 3


def test_means_of_padded_chains() -> None:
    """Without norms: the mean square over all pixels of a map."""
    k, layers = np.eye(10), []
    for stride, pad, dilation in ((1, 1, 1), (2, 1, 1), (1, 2, 2), (1, 2, 1)):
        k = through(taps(len(k), stride, pad, dilation), k)
        layers.append(conv(stride=stride, padding=pad, dilation=dilation))
        found = settled([*layers, LAYER], 10, Norm).gain
        assert found == pytest.approx(1 / np.diag(k).mean(), rel=1e-13)


def test_transposed_and_fixed_layers() -> None:
    def twice(x: Any) -> Any:
        return functional.interpolate(x, scale_factor=2.0, mode="linear")

    steps = [
        (rf.ConvTranspose(3, stride=2, padding=1, channels=8), None),
        (rf.AvgPool(2, 2), lambda x: functional.avg_pool1d(x, 2, 2)),
        (rf.Pad(1), lambda x: functional.pad(x, (1, 1))),
        (rf.Pad(2, mode="reflect"), lambda x: functional.pad(x, (2, 2), "reflect")),
        (rf.Upsample(2, mode="linear"), twice),
    ]
    for layer, run in steps:
        k = through(taps(12, 1, 1), np.eye(12))
        if run is None:
            units = torch.eye(3, dtype=torch.float64)[:, None, None]
            each = [
                reads(lambda x, w=w: functional.conv_transpose1d(x, w, None, 2, 1), 12)
                for w in units
            ]
            k = through(each, k)
        else:
            m = reads(run, 12)
            k = m @ k @ m.T
        found = settled([conv(padding=1), layer, rf.Conv(1, channels=8), LAYER], 12, Norm).gain
        assert found == pytest.approx(1 / np.diag(k).mean(), rel=1e-13), layer


@pytest.mark.parametrize("size", [3, 8, 40])
def test_what_a_norm_divides_by(size: int) -> None:
    """Behind a rectified map: E[1/s²] over channels of a wide layer, whose values have a variance
    at each pixel (their own, of many images) and a mean, both known."""
    rng = np.random.default_rng(5)
    n = 200_000
    matrices = taps(size, 1, 1)
    # Of a rectified Gaussian of variance 1: E[x²] = 1/2, of which 1/2π is the square of its mean.
    spread = sum(np.diag(m @ m.T) for m in matrices) * (0.5 - 1 / (2 * math.pi)) * 2 / 3
    weights = rng.standard_normal((n, 3)) * math.sqrt(2 / 3)
    means = weights @ np.array([m.sum(axis=1) for m in matrices]) / math.sqrt(2 * math.pi)
    draws = 1 / (spread.mean() + means.var(axis=1))
    # Channels read are many: values of variance 1 behind the first norm.
    layers = [
        rf.Conv(1, channels=8, init="he"),
        rf.Norm(mean_field=True),
        rf.Activation("relu"),
        conv(padding=1, init="he"),
        rf.Norm(mean_field=True),
    ]
    found = settled(layers, size, Norm).gain
    assert found == pytest.approx(draws.mean(), abs=4 * draws.std() / math.sqrt(n))
    # The test sees the difference that borders make, and that channels differ.
    steady = 1 / (1 - 1 / math.pi)
    assert abs(found - steady) > 8 * draws.std() / math.sqrt(n)


def test_maps_of_two_axes_are_products() -> None:
    """Taps along two axes make a product of what each makes."""
    along = [rf.Conv((3, 1), padding=(1, 0)), rf.Conv((1, 3), padding=(0, 1))]
    one = Borders.none((5, 7), 0.4)
    for layer in along:
        (move,) = layer.bind(2).maps(one.square.shape, 2)
        one = one.random(move)
    (move,) = rf.Conv(3, padding=1).bind(2).maps((5, 7), 2)
    both = Borders.none((5, 7), 0.4).random(move)
    np.testing.assert_allclose(one.square, both.square, rtol=1e-14)
    # M(∞) between pixels, by hand.
    f = np.pad(np.full((5, 7), math.sqrt(0.4)), 1)
    windows = [f[a : a + 5, b : b + 7] for a, b in itertools.product(range(3), repeat=2)]
    shared = sum(w * w.mean() for w in windows) / 9
    np.testing.assert_allclose(both.shared, shared, rtol=1e-14)
    taken = np.stack([w - w.mean() for w in windows]).reshape(9, -1)
    assert sum(both.offsets) == pytest.approx(float((taken**2).mean(axis=1).mean()), rel=1e-12)


def test_what_windows_pass_at_borders() -> None:
    """Behind ReLU the largest of n independent values is positive in all but 1 of 2^n cases."""
    net = rf.Sequential(
        rf.Input(8),
        rf.Conv(1, channels=8, init="he"),
        rf.Activation("relu"),
        rf.MaxPool(3, stride=2, padding=1),
        rf.Conv(2, channels=8, init="he"),
        ndim=1,
    )
    field = rf.erf(net, input_size=16, unit=0)
    cut, whole = (1 - 1 / 4) / 2, (1 - 1 / 8) / 3
    expected = np.array([cut, cut + whole, whole, whole])
    np.testing.assert_allclose(field.image, expected / expected.sum(), rtol=1e-9)
    assert field.log_gain == pytest.approx(math.log(2 * expected.sum()), abs=1e-9)
    assert field.exact
    two = rf.Sequential(
        rf.Input(8),
        rf.Conv(1, channels=8, init="he"),
        rf.Activation("relu"),
        rf.MaxPool(3, stride=2, padding=1),
    )
    (said,) = rf.erf(two, input_size=16, unit=(0, 0)).inexact
    assert "corners hold as few as 4 pixels" in said


@pytest.mark.parametrize(
    ("layer", "size", "said"),
    [
        (rf.Conv(3, padding=1, channels=8, init="he"), 257, True),
        (rf.Conv(3, padding=1, channels=8, init="he"), 256, False),
        (rf.Conv(3, channels=8, init="he"), 300, False),  # reads no padding
        (rf.Conv(2, stride=2, channels=8, init="he"), 257, False),
        (rf.Conv(2, stride=2, padding=((0, 1), 0), channels=8, init="he"), 257, True),
        (rf.ConvTranspose(3, stride=2, channels=8, init="he"), 128, True),
        (rf.ConvTranspose(2, stride=2, channels=8, init="he"), 129, False),
    ],
)
def test_borders_of_large_maps_are_said_to_be_left_out(
    layer: rf.layers.Layer, size: int, said: bool
) -> None:
    net = rf.Sequential(
        rf.Input(8), layer, rf.Norm(mean_field=True), rf.Conv(1, channels=8, init="he")
    )
    text = (
        "on maps of more than 65,536 pixels the variance that padding takes away near borders is "
        "left out"
    )
    assert (text in rf.erf(net, input_size=size).assumptions) == said


def test_what_is_left_out_of_large_maps_is_small() -> None:
    """Just above the limit against just below it: a chain whose norms divide by all pixels."""
    layers = [rf.Conv(3, padding=1, channels=8, init="he"), rf.Norm(mean_field=True)] * 8
    net = rf.Sequential(rf.Input(8), *layers)
    gains = [rf.erf(net, input_size=size).log_gain for size in (256, 257)]
    followed, left_out = (gain / 8 for gain in gains)
    # Of n² pixels 4n gather 2/3 of the taps: norms divide by 1 - 4/(3·256) at the first layer, and
    # by a little less behind others, of which the borders go on inwards.
    assert 0 < followed - left_out < 3 * 4 / (3 * 256)
