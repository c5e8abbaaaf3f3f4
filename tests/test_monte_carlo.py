"""Theory against experiment: fields of imported modules against gradients of the real ones.

Every module is initialised anew for each draw, with normal weights of the variances that imported
networks take for granted ("unit"), and `compare` holds the mean squared gradient against `erf`:

* every pixel that carries 99.9 % of the mass within the 4-standard-error level. That level, 6e-5,
  is divided by the number of pixels (Bonferroni) and turned into a quantile of Student's t, so that
  the bound is 4.5 to 5.5 standard errors for the 8 to 1000 pixels of these maps;
* the sum of squares over all of them;
* mean, σ and the square that holds half of the mass;
* and here the gain as well.

Draws are so many that a theory which is wrong by 5 % fails (`rippled`: every other pixel 5 % up,
the others down), and, where fixed layers overlap, one without covariances (`uncorrelated`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from fastrf.kernels import load

import fastrf as rf
from fastrf import lowering
from fastrf.comparison import LEVEL, Comparison
from fastrf.engine import direct
from fastrf.lowering import lower
from fastrf.meanfield import settling

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- modules --------------------------------------------------------------------------------


def conv(reads, writes, kernel=3, stride=1, dilation=1, *, ndim=1, **options):
    """A convolution that keeps the size but for its stride."""
    kind = {1: nn.Conv1d, 2: nn.Conv2d}[ndim]
    padding = dilation * (kernel // 2)
    return kind(reads, writes, kernel, stride, padding, dilation, bias=False, **options)


def chain():
    """Strides, dilation, and a wide kernel."""
    return nn.Sequential(
        conv(2, 8), conv(8, 8, 5, 2), conv(8, 8, 3, 1, 2), conv(8, 8), conv(8, 8, 3, 2)
    )


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.down = conv(2, 8), conv(8, 8, 3, 2)
        self.blocks = nn.ModuleList(nn.Sequential(conv(8, 8), conv(8, 8)) for _ in range(3))

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.down(x)


class UNet(nn.Module):
    """Two levels; the way up by transposed convolutions or by linear interpolation."""

    def __init__(self, up, ndim):
        super().__init__()
        conv_ = functools.partial(conv, ndim=ndim)
        self.level0, self.down1, self.level1 = conv_(2, 4), conv_(4, 8, stride=2), conv_(8, 8)
        self.down2, self.bottom = conv_(8, 8, stride=2), conv_(8, 8)
        if up == "transposed":
            kind = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d}[ndim]
            self.up1 = kind(8, 8, 2, 2, bias=False)
            self.up2 = kind(8, 4, 2, 2, bias=False)
        else:
            self.up1 = nn.Upsample(scale_factor=2, mode=up)
            self.up2 = nn.Sequential(conv_(8, 4, 1), nn.Upsample(scale_factor=2, mode=up))
        self.join1, self.join0 = conv_(16, 8), conv_(8, 4)

    def forward(self, x):
        x0 = self.level0(x)
        x1 = self.level1(self.down1(x0))
        x2 = self.bottom(self.down2(x1))
        x1 = self.join1(torch.cat([self.up1(x2), x1], 1))
        return self.join0(torch.cat([self.up2(x1), x0], 1))


class Dense(nn.Module):
    """DenseNet blocks; transitions average windows of 3 that overlap."""

    def __init__(self, *, relu=False):
        super().__init__()

        def layer(reads, writes, kernel=3):
            before = [nn.BatchNorm1d(reads), nn.ReLU()] if relu else []
            return nn.Sequential(*before, conv(reads, writes, kernel))

        self.stem = conv(2, 8)
        self.blocks = nn.ModuleList(
            nn.ModuleList(layer(8 + 4 * i, 4) for i in range(2)) for _ in range(2)
        )
        self.transitions = nn.ModuleList(
            nn.Sequential(layer(16, 8, 1), nn.AvgPool1d(3, 2, 1)) for _ in range(2)
        )
        self.last = layer(8, 4)

    def forward(self, x):
        x = self.stem(x)
        for block, transition in zip(self.blocks, self.transitions, strict=True):
            for layer in block:
                x = torch.cat([x, layer(x)], 1)
            x = transition(x)
        return torch.cat([x, self.last(x)], 1)


class ShuffleUnits(nn.Module):
    """ShuffleNet v2's two units without activations: one with stride, one that splits."""

    def __init__(self, channels=8):
        super().__init__()
        half, conv_ = channels // 2, functools.partial(conv, ndim=2)
        self.stem, self.head = conv_(3, channels), conv_(channels, channels, 1)
        self.left = nn.Sequential(
            conv_(channels, channels, 3, 2, groups=channels), conv_(channels, half, 1)
        )
        self.right = nn.Sequential(
            conv_(channels, half, 1), conv_(half, half, 3, 2, groups=half), conv_(half, half, 1)
        )
        self.branch = nn.Sequential(
            conv_(half, half, 1), conv_(half, half, 3, 1, groups=half), conv_(half, half, 1)
        )

    @staticmethod
    def shuffled(x):
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

    def forward(self, x):
        x = self.stem(x)
        x = self.shuffled(torch.cat([self.left(x), self.right(x)], 1))
        kept, changed = x.chunk(2, 1)
        return self.head(self.shuffled(torch.cat([kept, self.branch(changed)], 1)))


class Block(nn.Module):
    """ResNet's basic block, as torchvision has it."""

    def __init__(self, reads, writes, stride):
        super().__init__()
        conv_ = functools.partial(conv, ndim=2)
        self.conv1, self.bn1 = conv_(reads, writes, 3, stride), nn.BatchNorm2d(writes)
        self.conv2, self.bn2 = conv_(writes, writes), nn.BatchNorm2d(writes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or reads != writes:
            self.downsample = nn.Sequential(conv_(reads, writes, 1, stride), nn.BatchNorm2d(writes))

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class PreBlock(nn.Module):
    """The block of ResNet v2: nothing but weights beside the identity."""

    def __init__(self, channels):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(channels), conv(channels, channels, ndim=2)
        self.bn2, self.conv2 = nn.BatchNorm2d(channels), conv(channels, channels, ndim=2)

    def forward(self, x):
        return x + self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())


class Curved(nn.Module):
    """Activations in a branch, wide enough for the mean field."""

    def __init__(self, activation):
        super().__init__()
        self.stem, self.activation = conv(8, 48), activation
        self.conv1, self.conv2, self.last = conv(48, 48), conv(48, 48), conv(48, 48)

    def forward(self, x):
        x = self.stem(x)
        y = self.conv2(self.activation(self.conv1(self.activation(x))))
        return self.last(x + y)


class ResNet18(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.conv1, self.bn1 = conv(3, width, 7, 2, ndim=2), nn.BatchNorm2d(width)
        self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
        reads = width
        for number, stride in enumerate((1, 2, 2, 2), 1):
            writes = width * 2 ** (number - 1)
            blocks = nn.Sequential(Block(reads, writes, stride), Block(writes, writes, 1))
            setattr(self, f"layer{number}", blocks)
            reads = writes
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(reads, 10)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.avgpool(x).flatten(1))


def he(module, *names):
    """Deviations of weights of variance 2/fan-in in the convolutions within blocks that are called
    so, 1/fan-in in the others. With one ReLU beside each of the former a branch hands on what it
    gets, as the imported network has it."""
    deviations = {}
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d):
            block, _, own = name.rpartition(".")
            gain = 2 if block and own in names else 1
            deviations[f"{name}.weight"] = math.sqrt(gain / part.weight[0].numel())
    return deviations


def masks_by_biases(module):
    """The first convolution of each block by He, and biases before each ReLU that an identity leads
    to, a thousand times as large as what they are added to: the masks are then fair coins,
    independent of each other."""
    deviations, scale = he(module, "conv1"), 1.0
    for name, part in module.named_modules():
        if isinstance(part, nn.BatchNorm2d) and (name == "bn1" or name.endswith("bn2")):
            scale *= 1000
            deviations[f"{name}.bias"] = scale
    return deviations


# --- measuring ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A module, the shape of its input, and how it is measured.

    Attributes:
        draws: so many that a standard error is some 1 to 4 % of a pixel.
        initialise: deviations from the module; None: "unit".
        gain: whether the gain is that of the imported network, whose activations have gain 1.
        overlapping: whether fixed layers overlap, so that covariances matter.
        init: a scheme that both theory and experiment are told.
    """

    make: Callable[[], Any]
    shape: tuple[int, ...]
    draws: int
    initialise: Callable[[Any], dict[str, float]] | None = None
    output: str | None = None
    gain: bool = True
    overlapping: bool = False
    init: str | None = None


CASES = {
    "linear chain": Case(chain, (1, 2, 40), 10_000),
    "residual": Case(Residual, (1, 2, 40), 10_000),
    "U-Net, transposed, 1-D": Case(lambda: UNet("transposed", 1), (1, 2, 32), 10_000),
    "U-Net, transposed": Case(lambda: UNet("transposed", 2), (1, 2, 16, 16), 5_000),
    "U-Net, linear, 1-D": Case(lambda: UNet("linear", 1), (1, 2, 32), 10_000, overlapping=True),
    "U-Net, bilinear": Case(lambda: UNet("bilinear", 2), (1, 2, 16, 16), 5_000, overlapping=True),
    "DenseNet": Case(Dense, (1, 2, 40), 10_000, overlapping=True),
    # The slopes at neighbouring pixels are alike, and known for Gaussian values.
    "pools and ReLU": Case(
        lambda: nn.Sequential(
            nn.Conv1d(1, 8, 3, bias=False),
            nn.AvgPool1d(3, 1),
            nn.ReLU(),
            nn.AvgPool1d(3, 1),
            nn.Conv1d(8, 8, 3, bias=False),
        ),
        (1, 1, 17),
        10_000,
        gain=False,
        overlapping=True,
    ),
    # Layers that differ in their gains, and activations whose slopes depend on what they read.
    "U-Net, He": Case(lambda: UNet("transposed", 1), (1, 2, 32), 10_000, init="he"),
    "GELU, Glorot": Case(lambda: Curved(nn.GELU()), (1, 8, 20), 4_000, init="glorot"),
    "tanh, PyTorch's": Case(lambda: Curved(nn.Tanh()), (1, 8, 20), 1_500, init="pytorch"),
    "ShuffleNet": Case(ShuffleUnits, (1, 3, 12, 12), 8_000),
    "ResNet v2": Case(
        lambda: nn.Sequential(conv(3, 8, 3, 2, ndim=2), PreBlock(8), PreBlock(8)),
        (1, 3, 16, 16),
        4_000,
        lambda module: he(module, "conv1", "conv2"),
    ),
    "ResNet-18": Case(ResNet18, (1, 3, 32, 32), 1_500, masks_by_biases, "layer4", gain=False),
}


@functools.cache
def measured(name: str) -> tuple[Any, Any]:
    """Theory and experiment."""
    case = CASES[name]
    module = case.make()
    network = rf.from_torch(module, case.shape, init=case.init)
    theory = rf.erf(network, case.output, input_size=case.shape[2:])
    experiment = rf.empirical(
        module,
        case.shape,
        case.output,
        draws=case.draws,
        initialise=case.init or ("unit" if case.initialise is None else case.initialise(module)),
        network=network,
    )
    return theory, experiment


def rippled(theory, by=0.05):
    """The same but for an error of 5 % in every pixel, up and down in turns."""
    image = theory.to_numpy()
    wrong = image * (1 + by * (1 - 2 * (np.indices(image.shape).sum(0) % 2)))
    return replace(theory, values=wrong / wrong.sum())


def uncorrelated(theory):
    """The field without covariances: squared coefficients."""
    graph = lower(theory.network, theory.input_sizes)
    found = direct.propagate(graph, theory.node, theory.unit, theory.input, kernels=load())
    return replace(theory, values=found.pixels(), origin=found.origin)


def log_gain(comparison: Comparison) -> float:
    """z of the gain."""
    return next(row.z for row in comparison.rows if row.name == "log_gain")


@pytest.mark.parametrize("name", CASES)
def test_theory_is_what_is_measured(name: str) -> None:
    theory, experiment = measured(name)
    comparison = rf.compare(theory, experiment)
    # Here ResNet-18's biases keep the slopes along its identities independent.
    if CASES[name].initialise is not masks_by_biases:
        assert theory.exact
    assert comparison, str(comparison)
    # What carries 99.9 % of the mass was looked at, and nothing lies where no path leads.
    assert np.sort(theory.image, axis=None)[-comparison.pixels :].sum() >= 0.999
    assert comparison.spilled == 0
    # Bonferroni at the level of 4 standard errors.
    assert 4 < comparison.bound < 6
    if CASES[name].gain:
        assert abs(log_gain(comparison)) < 4


@pytest.mark.parametrize("name", CASES)
def test_an_error_of_five_percent_is_seen(name: str) -> None:
    theory, experiment = measured(name)
    comparison = rf.compare(rippled(theory), experiment)
    assert not comparison, str(comparison)
    assert comparison.p_value < LEVEL


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.overlapping])
def test_missing_covariances_are_seen(name: str) -> None:
    theory, experiment = measured(name)
    comparison = rf.compare(uncorrelated(theory), experiment)
    assert not comparison, str(comparison)
    assert abs(comparison.largest) > comparison.bound


# --- slopes along identities ------------------------------------------------------------------


class Rectified(nn.Module):
    """Blocks of ResNet v1 behind an activation, without norms; the input is wide, as theory has it:
    where few channels are read their variance differs from pixel to pixel."""

    def __init__(self, blocks, width=48):
        super().__init__()
        self.stem, self.head = conv(64, width), conv(width, width)
        self.conv1 = nn.ModuleList(conv(width, width) for _ in range(blocks))
        self.conv2 = nn.ModuleList(conv(width, width) for _ in range(blocks))

    def forward(self, x):
        x = self.stem(x).relu()
        for conv1, conv2 in zip(self.conv1, self.conv2, strict=True):
            x = (x + conv2(conv1(x).relu())).relu()
        return self.head(x)


@functools.cache
def rectified(blocks: int) -> tuple[Any, Any, Any]:
    """Theory, experiment, and a theory whose slopes are independent."""
    module, shape = Rectified(blocks), (1, 64, 24)
    network = rf.from_torch(module, shape).initialised("he")
    experiment = rf.empirical(module, shape, draws=2_000, initialise="he", network=network)
    theory = rf.erf(network, input_size=24)
    return theory, experiment, rf.erf(independent(network), input_size=24)


def fresh(network):
    """The same network, not lowered yet."""
    same = network.bound.with_nodes(dict(network.bound.nodes))
    same.__dict__["bound"] = same
    return same


def independent(network):
    """The same network lowered as if slopes along identities were independent."""
    same = fresh(network)
    with patch.object(lowering, "along_identities", lambda nodes: set()):
        for size in (24, 32):
            lower(same, size)
    return same


@pytest.mark.parametrize("blocks", [1, 4])
def test_slopes_along_identities(blocks: int) -> None:
    """What passed one ReLU is positive, and more likely to pass the next one: beside the branches
    the identity counts more than the product of the means says."""
    theory, experiment, apart = rectified(blocks)
    assert theory.exact
    assert rf.compare(theory, experiment), str(rf.compare(theory, experiment))
    assert not rf.compare(rippled(theory), experiment)
    assert not rf.compare(apart, experiment)


def frozen(size, channels=3):
    """Fills a module with weights by He, and freezes its batch norms at their statistics over 16
    images."""
    images = torch.randn(16, channels, size, size, generator=torch.Generator().manual_seed(9))

    def fill(module):
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, 0, math.sqrt(2 / part.weight[0].numel()))
            elif isinstance(part, nn.BatchNorm2d):
                part.reset_running_stats()
                part.momentum = 1.0
        module.train()(images)
        module.eval()

    return fill


def of_finite_width(module, blocks):
    """By what share of a pixel finite width may change an image at most.

    A norm divides each channel by its own variance s², which is one of n = fan-in squared weights:
    E[1/s²]·E[s²] = 1 + 2/n to first order. What passes it counts by so much more; of what is not
    common to all ways through a block, that is half of it at most.
    """
    names = ("conv1", "conv2", "downsample.0")
    convs = [part for name, part in module.named_modules() if name.startswith(blocks)
             and name.endswith(names)]  # fmt: skip
    return sum(1 / part.weight[0].numel() for part in convs)


@functools.cache
def real_resnet() -> tuple[Any, Any]:
    """A ResNet-18 as it is before training, without anything that makes its masks independent;
    what finite width may do counts as an error of the experiment."""
    module, size = ResNet18(32), 32
    network = rf.from_torch(module, (1, 3, size, size)).initialised("he")
    found = rf.empirical(
        module, (8, 3, size, size), "layer1", draws=80, initialise=frozen(size), network=network
    )
    width = of_finite_width(module, "layer1") * found.to_numpy()
    return network, replace(found, standard_error=np.hypot(found.standard_error, width))


def test_a_real_resnet() -> None:
    """ReLU, batch norms, identity shortcuts, max-pooling and padding."""
    network, experiment = real_resnet()
    theory = rf.erf(network, "layer1", input_size=32)
    comparison = rf.compare(theory, experiment)
    assert comparison.pixels > 800
    assert comparison, str(comparison)
    assert not rf.compare(rippled(theory), experiment)
    # Neither with slopes that are independent, nor with norms that know of no borders.
    assert not rf.compare(rf.erf(independent(network), "layer1", input_size=32), experiment)
    with patch.object(settling, "MOST", 0):
        endless = rf.erf(fresh(network), "layer1", input_size=32)
    assert not rf.compare(endless, experiment)


class Shrinking(nn.Module):
    """A block beside which a convolution of one pixel strides, behind a wide map."""

    def __init__(self, width=48):
        super().__init__()
        self.stem, self.bn = conv(width, width, ndim=2), nn.BatchNorm2d(width)
        self.layer1 = Block(width, 2 * width, 2)

    def forward(self, x):
        return self.layer1(self.bn(self.stem(x)).relu())


def test_a_shortcut_that_strides() -> None:
    """It reads one pixel of four, and its norm divides by what that convolution makes of them."""
    module, size = Shrinking(), 12
    network = rf.from_torch(module, (1, 48, size, size)).initialised("he")
    found = rf.empirical(
        module,
        (8, 48, size, size),
        "layer1",
        draws=80,
        initialise=frozen(size, 48),
        network=network,
    )
    width = of_finite_width(module, "layer1") * found.to_numpy()
    experiment = replace(found, standard_error=np.hypot(found.standard_error, width))
    theory = rf.erf(network, "layer1", input_size=size)
    assert rf.compare(theory, experiment), str(rf.compare(theory, experiment))
    assert not rf.compare(rippled(theory), experiment)
    for share in (0.8, 1.25):  # of the shortcut
        nodes = dict(network.nodes)
        norm = nodes["layer1.downsample.1"]
        nodes[norm.name] = replace(norm, layer=replace(norm.layer, gain=share * norm.layer.gain))
        other = rf.erf(network.with_nodes(nodes), "layer1", input_size=size)
        assert not rf.compare(other, experiment), share


def test_relus_behind_average_pools_are_approximate() -> None:
    """BN–ReLU behind an average pool: slopes at neighbouring pixels are alike, and so are the
    gradients. `erf` says that it does not know how much, and is nearer than without covariances."""
    module, shape = Dense(relu=True), (1, 2, 40)
    network = rf.from_torch(module, shape)
    theory = rf.erf(network, input_size=40)
    deviations = {
        f"{name}.weight": math.sqrt((1 if name == "stem" else 2) / part.weight[0].numel())
        for name, part in module.named_modules()
        if isinstance(part, nn.Conv1d)
    }
    experiment = rf.empirical(module, shape, draws=5_000, initialise=deviations, network=network)
    assert not theory.exact
    assert "depends on the data" in theory.inexact[0]
    assert experiment.std[0] == pytest.approx(theory.std[0], rel=0.05)
    bare = uncorrelated(theory)
    assert rf.compare(theory, experiment).chi_square < rf.compare(bare, experiment).chi_square / 2
