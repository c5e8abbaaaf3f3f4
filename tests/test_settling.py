"""Variances behind several fixed layers, which make neighbouring pixels alike.

The dense oracle holds the second moments between all pixels of a line as one matrix; the weights of
its fixed layers are what PyTorch makes of the unit vectors. Random networks of many channels show
that those matrices are what networks do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool1d, avg_pool1d, conv1d, conv2d, interpolate

import fastrf as rf
from fastrf.lowering import lower
from fastrf.meanfield import settling

Floats = np.ndarray
C, TANH = rf.Conv(3, channels=8), rf.Activation("tanh")


def variances(net: rf.Network, size: int | None = None) -> list[float]:
    """What activations are settled to."""
    layers = [node.layer for node in lower(net, size).network.nodes.values()]
    return [x.variance for x in layers if isinstance(x, rf.Activation) and x.variance is not None]


# --- the dense oracle -----------------------------------------------------------------------


def fixed(run: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Floats], Floats]:
    def behind(k: Floats) -> Floats:
        weights = run(torch.eye(len(k), dtype=torch.float64)[:, None])[:, 0].numpy().T
        return weights @ k @ weights.T

    return behind


def random(kernel: int, stride: int = 1, gain: float = 1.0) -> Callable[[Floats], Floats]:
    def behind(k: Floats) -> Floats:
        n = len(k) - kernel + 1
        return gain / kernel * sum(k[m : m + n : stride, m : m + n : stride] for m in range(kernel))

    return behind


def transposed(kernel: int, stride: int, gain: float) -> Callable[[Floats], Floats]:
    def behind(k: Floats) -> Floats:
        n = (len(k) - 1) * stride
        found = np.zeros((n + kernel, n + kernel))
        for m in range(kernel):
            found[m : m + n + 1 : stride, m : m + n + 1 : stride] += gain / kernel * k
        return found

    return behind


NODES = np.arange(-9, 9, 1 / 16)
WEIGHTS = np.exp(-(NODES**2) / 2) / (16 * math.sqrt(2 * math.pi))


def bent(function: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
    """E[f(u)f(v)] by the trapezoidal rule over u and what v has beside it."""

    def behind(k: Floats) -> Floats:
        q = np.diag(k)[:, None]
        lags = np.unique(np.round(k / q, 12))
        u, v = NODES[:, None], NODES
        scale = math.sqrt(q[0, 0])
        weights = np.outer(WEIGHTS, WEIGHTS)
        values = [
            float(np.sum(weights * function(scale * u) * function(scale * (r * u + s * v))))
            for r in lags
            for s in [math.sqrt(max(1 - r * r, 0.0))]
        ]
        return np.asarray(values)[np.searchsorted(lags, np.round(k / q, 12))]

    return behind


BLUR = torch.tensor([[[1.0, 2.0, 1.0]]], dtype=torch.float64) / 4
EDGE = torch.tensor([[[1.0, -2.0, 0.5]]], dtype=torch.float64)


def resized(scale: float, mode: str) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda x: interpolate(x, scale_factor=scale, mode=mode)


POOL, POOLED = rf.AvgPool(3, 1), fixed(lambda x: avg_pool1d(x, 3, 1))
CONV = random(3)
LINEAR: dict[str, list[tuple[Any, Callable[[Floats], Floats]]]] = {
    "two pools": [(POOL, POOLED), (POOL, POOLED)],
    "a convolution between": [(POOL, POOLED), (C, CONV), (POOL, POOLED)],
    "a stride between": [
        (rf.AvgPool(5, 1), fixed(lambda x: avg_pool1d(x, 5, 1))),
        (rf.Conv(3, stride=2, channels=8), random(3, 2)),
        (POOL, POOLED),
    ],
    "pools that move on": [
        (rf.AvgPool(3, 2), fixed(lambda x: avg_pool1d(x, 3, 2))),
        (C, CONV),
        (rf.AvgPool(4, 3), fixed(lambda x: avg_pool1d(x, 4, 3))),
        (C, CONV),
        (rf.AvgPool(2, 1), fixed(lambda x: avg_pool1d(x, 2, 1))),
    ],
    "signed": [
        (rf.Filter(3), fixed(lambda x: conv1d(x, BLUR))),
        (C, CONV),
        (rf.Filter(3, weights=[1.0, -2.0, 0.5]), fixed(lambda x: conv1d(x, EDGE))),
        (rf.Filter(3, dilation=2), fixed(lambda x: conv1d(x, BLUR, dilation=2))),
    ],
    "linear": [(rf.Upsample(2, mode="linear"), fixed(resized(2, "linear")))],
    "resized twice": [
        (rf.Upsample(2, mode="linear"), fixed(resized(2, "linear"))),
        (C, CONV),
        (rf.Upsample(3, mode="linear"), fixed(resized(3, "linear"))),
    ],
    "by 3/2": [
        (POOL, POOLED),
        (rf.Upsample("3/2", mode="linear"), fixed(resized(1.5, "linear"))),
        (POOL, POOLED),
    ],
    "nearest": [(rf.Upsample(2), fixed(resized(2, "nearest"))), (POOL, POOLED)],
    "transposed": [
        (POOL, POOLED),
        (rf.ConvTranspose(4, stride=2, channels=8, gain=2.0), transposed(4, 2, 2.0)),
        (POOL, POOLED),
    ],
}


def settled(layers: list[Any], ndim: int = 1) -> rf.Network:
    return rf.Sequential(rf.Input(8), *layers, ndim=ndim)


def middle(k: Floats) -> float:
    """The variance far from borders, the mean over any period of pixels up to 6."""
    diagonal = np.diag(k)
    centre = len(diagonal) // 2
    return float(diagonal[centre - 6 : centre + 6].mean())


@pytest.mark.parametrize("name", LINEAR)
def test_linear_chains(name: str) -> None:
    k = np.eye(96)
    for _, behind in LINEAR[name]:
        k = behind(k)
    (found,) = variances(settled([*(layer for layer, _ in LINEAR[name]), TANH]))
    assert found == pytest.approx(middle(k), rel=1e-12)


@pytest.mark.parametrize("name", ["tanh", "softsign", "gelu"])
def test_activations_between(name: str) -> None:
    """The oracle's rule is exact to rounding where a function is smooth, to the square of its step
    where it is bent (softsign at 0); lags are rounded to 1e-12."""
    function: Any = {
        "tanh": np.tanh,
        "softsign": lambda x: x / (1 + np.abs(x)),
        "gelu": lambda x: torch.nn.functional.gelu(torch.from_numpy(x)).numpy(),
    }[name]
    layers: list[Any] = []
    k, expected = np.eye(48), []
    for _ in range(3):
        layers += [POOL, rf.Conv(3, channels=8, gain=6.0), rf.Activation(name)]
        k = random(3, gain=6.0)(POOLED(k))
        expected.append(middle(k))
        k = bent(function)(k)
    rel = 1 / 16**2 if name == "softsign" else 1e-11
    if name == "gelu":  # the mean that a channel has is not 0, and far pixels share it
        assert k[len(k) // 2, 0] > 1e-3
    assert variances(settled(layers)) == pytest.approx(expected, rel=rel)


def merged(layer: Any) -> float:
    """A pooled branch and one that is not, merged and pooled."""
    nodes = {
        "input": (rf.Input(8),),
        "a": (C, "input"),
        "p": (POOL, "a"),
        "b": (rf.Conv(5, channels=8), "input"),
        "m": (layer, "p", "b"),
        "q": (POOL, "m"),
        "c": (C, "q"),
        "t": (TANH, "c"),
    }
    (found,) = variances(rf.Network(nodes, ndim=1))
    return found


def test_merged_branches() -> None:
    """M(τ) of one is (3, 2, 1)/9, of the other (1, 0, 0); a pool takes (3, 2·2, 2·1)/9 of them."""
    assert merged(rf.Add()) == pytest.approx((3 * 12 + 4 * 2 + 2 * 1) / 81, rel=1e-13)
    assert merged(rf.Concat()) == pytest.approx((3 * 12 + 4 * 2 + 2 * 1) / 162, rel=1e-13)
    assert merged(rf.Multiply()) == pytest.approx(3 * 3 / 81, rel=1e-13)


def test_a_mean_over_all_pixels() -> None:
    """Σ (n − |τ|) M(τ)/n² of n = 20 pixels; adaptive means of 4 as pools of 5."""
    n, shares = 20, np.array([3, 2, 1]) / 9
    whole = (n * shares[0] + 2 * (n - 1) * shares[1] + 2 * (n - 2) * shares[2]) / n**2
    behind = [C, POOL, rf.GlobalPool(), rf.Conv(1, channels=8), TANH]
    assert variances(settled(behind), n + 4) == pytest.approx([whole], rel=1e-13)
    for pool in (rf.AdaptivePool(4), rf.AvgPool(5)):
        (found,) = variances(settled([C, POOL, pool, C, TANH]), n + 4)
        five = (5 * shares[0] + 8 * shares[1] + 6 * shares[2]) / 25
        assert found == pytest.approx(five, rel=1e-13)


@pytest.mark.parametrize(("size", "out"), [(10, 4), (3, 7), (2, 7), (12, 9)])
def test_adaptive_windows(size: int, out: int) -> None:
    """Windows of several widths, and more of them than pixels: the mean over them."""
    run = fixed(lambda x: adaptive_avg_pool1d(x, out))
    expected = float(np.diag(run(np.eye(size))).mean())
    layers = [rf.AdaptivePool(out), rf.Conv(1, channels=8), TANH]
    assert variances(settled(layers), size) == pytest.approx([expected], rel=1e-13)


@pytest.mark.parametrize("size", [None, 32])
def test_a_single_pixel_written_often(size: int | None) -> None:
    """Resizing what global pooling leaves changes no variance; the mean of an endless map of
    rectified values is their mean, 1/√2π of each channel."""
    head = [C, rf.Activation("relu"), rf.GlobalPool(), rf.Upsample(size=28, mode="linear")]
    (found,) = variances(settled([*head, rf.Conv(1, channels=8), TANH]), size)
    mean = 1 / (2 * math.pi)
    expected = mean if size is None else mean + (0.5 - mean) / 30
    assert found == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize(
    "upsample",
    [
        rf.Upsample(size=81, mode="linear", coordinates="align_corners"),
        rf.Upsample(size=82, mode="linear"),
    ],
)
def test_resized_to_a_size(upsample: rf.Upsample) -> None:
    """By 2, far from borders: positions 0 and 1/2 in turn, or ±1/4."""
    (found,) = variances(settled([upsample, TANH]), 41)
    corners = upsample.coordinates == "align_corners"
    assert found == pytest.approx((1 + 0.5) / 2 if corners else (9 + 1) / 16, rel=1e-13)


def test_pixels_too_far_apart_are_said() -> None:
    blurred = [rf.AvgPool(32, 1), C] * 6
    (_, said) = sorted(lower(settled([*blurred, TANH])).assumptions, key=len, reverse=True)
    assert said.endswith("gains count pixels that are more than 127 apart as independent")
    assert len(lower(settled([*blurred[:6], TANH])).assumptions) == 1


# --- random networks ------------------------------------------------------------------------

WIDTH, NETWORKS = 96, 40

Run = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def drawn(gain: float) -> Run:
    """A convolution of fresh weights."""

    def behind(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        taps = (3,) * (x.ndim - 2)
        w = torch.randn(WIDTH, WIDTH, *taps, generator=generator, dtype=x.dtype)
        w *= math.sqrt(gain / (WIDTH * math.prod(taps)))
        return conv1d(x, w) if x.ndim == 3 else conv2d(x, w)

    return behind


def measured(layers: list[Run | None], shape: tuple[int, ...]) -> tuple[Floats, Floats]:
    """Mean squares of the pixels in the middle at the places of None, of random networks: their
    mean and its standard error."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(11)
    rows = []
    for _ in range(NETWORKS):
        x = torch.randn(1, WIDTH, *shape, generator=generator, dtype=torch.float64)
        rows.append([])
        for run in layers:
            if run is None:
                rows[-1].append(float(x.square().mean()))
            else:
                x = run(x, generator)
    found = np.array(rows)
    return found.mean(axis=0), found.std(axis=0, ddof=1) / math.sqrt(NETWORKS)


def pool(x: torch.Tensor, _: torch.Generator) -> torch.Tensor:
    return (avg_pool1d if x.ndim == 3 else torch.nn.functional.avg_pool2d)(x, 3, 1)


def bilinear(x: torch.Tensor, _: torch.Generator) -> torch.Tensor:
    return interpolate(x, scale_factor=2, mode="bilinear")[..., 2:-2, 2:-2]


def tanh(x: torch.Tensor, _: torch.Generator) -> torch.Tensor:
    return torch.tanh(x)


UP = rf.Upsample(2, mode="linear")


@pytest.mark.parametrize(
    ("layers", "run", "shape"),
    [
        ([POOL, C, POOL, TANH, C, POOL, TANH], [pool, drawn(1), pool], (120,)),
        ([POOL, C, POOL, TANH, C, POOL, TANH], [pool, drawn(1), pool], (22, 22)),
        ([POOL, C, UP, TANH, C, POOL, TANH], [pool, drawn(1), bilinear], (16, 16)),
    ],
    ids=["1-D", "2-D", "bilinear"],
)
def test_random_networks(layers: list[Any], run: list[Run], shape: tuple[int, ...]) -> None:
    """Within 4 standard errors, of which WIDTH channels take up a part; 5% would be seen."""
    found = variances(settled(layers, len(shape)))
    mean, error = measured([*run, None, tanh, drawn(1), pool, None], shape)
    assert (4 * error < 0.05 * mean).all()
    assert (np.abs(mean - found) < 4 * error + mean / WIDTH).all()


def test_gradients_of_random_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the variances are for: a gradient's total behind pools and tanh's of large inputs; with
    pixels that count as independent behind each pool it would be another one."""
    loud = rf.Conv(3, channels=8, gain=9.0)
    layers = [POOL, loud, POOL, TANH, C, POOL, loud, TANH]
    net = settled(layers)
    expected = math.exp(rf.erf(net).log_gain)
    monkeypatch.setattr(settling, "asked_neighbours", lambda _: set())
    independent = math.exp(rf.erf(settled(layers)).log_gain)
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(3)
    totals = []
    for _ in range(100):
        x = torch.randn(1, WIDTH, 33, generator=generator, dtype=torch.float64)
        y = x.requires_grad_()
        for run in (pool, drawn(9), pool, tanh, drawn(1), pool, drawn(9), tanh):
            y = run(y, generator)
        signs = torch.randn(WIDTH, generator=generator, dtype=torch.float64).sign()
        (slope,) = torch.autograd.grad(signs @ y[0, :, y.shape[2] // 2], x)
        totals.append(float(slope.square().sum()) / WIDTH)
    mean, error = np.mean(totals), np.std(totals, ddof=1) / math.sqrt(len(totals))
    bound = 4 * error + 3 * mean / WIDTH
    assert abs(mean - expected) < bound
    assert abs(mean - independent) > 2 * bound
