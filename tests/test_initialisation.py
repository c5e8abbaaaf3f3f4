"""Initial weights: schemes against PyTorch's own, patterns of taps, and the mean field against
PyTorch's autograd over random networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import fastrf as rf
from fastrf.activations import moments
from fastrf.errors import InputError
from fastrf.initialisation import SCHEMES, pattern
from fastrf.lowering import lower
from fastrf.report.document import assemble

# --- schemes against PyTorch's initialisers -------------------------------------------------


def delta_(weight: torch.Tensor, groups: int = 1, transposed: bool = False) -> None:
    """Xiao et al. 2018, Algorithm 1, block by block: an orthogonal matrix at the centre tap."""
    nn.init.zeros_(weight)
    centre = tuple((k - 1) // 2 for k in weight.shape[2:])
    for block in weight.data.chunk(groups):
        matrix = torch.empty(block.shape[:2])
        nn.init.orthogonal_(matrix)
        block[(..., *centre)] = matrix


DRAW: dict[str, Callable[..., Any]] = {
    "he": lambda w: nn.init.kaiming_normal_(w, nonlinearity="relu"),
    "he-fan-out": lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
    "lecun": lambda w: nn.init.kaiming_normal_(w, nonlinearity="linear"),
    "glorot": nn.init.xavier_normal_,
    "orthogonal": nn.init.orthogonal_,
}

SHAPES: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(12, 20, 3),
    "fewer channels": lambda: nn.Conv2d(40, 4, 1),
    "one tap": lambda: nn.Conv2d(6, 32, 1),
    "groups": lambda: nn.Conv2d(12, 20, 3, groups=4),
    "depthwise": lambda: nn.Conv2d(24, 24, 3, groups=24),
    "depthwise, two each": lambda: nn.Conv2d(16, 32, 3, groups=16),
    "transposed": lambda: nn.ConvTranspose2d(12, 20, 4, stride=2),
    "transposed, fewer": lambda: nn.ConvTranspose2d(32, 8, 2, stride=2),
    "transposed groups": lambda: nn.ConvTranspose2d(12, 20, 3, groups=4),
    "1-D": lambda: nn.Conv1d(10, 30, 5),
}


def drawn_gain(module: Any, scheme: str) -> tuple[float, int]:
    """Σ v of drawn weights, which is what one unit's gradient becomes over all that it reads; and
    how many weights that was taken over."""
    weight = module.weight
    if scheme == "delta-orthogonal":
        delta_(weight, module.groups)
    elif scheme == "pytorch":
        module.reset_parameters()
    else:
        DRAW[scheme](weight)
    squares = weight.detach().double().square()
    # Of all units that are written, the mean of the squares that they read.
    return float(squares.sum()) / module.out_channels, weight.numel()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes_are_those_of_pytorch(shape: str, scheme: str) -> None:
    torch.manual_seed(0)
    module: Any = SHAPES[shape]()
    rank = module.weight.ndim - 2
    net = rf.from_torch(nn.Sequential(module), (1, module.in_channels, *(9,) * rank), init=scheme)
    (layer,) = [node.layer for node in lower(net).network.nodes.values() if node.name != "input"]
    found, count = drawn_gain(module, scheme)
    if "orthogonal" in scheme:
        # The squares of an orthogonal matrix add up to its smaller side, whatever was drawn.
        assert layer.gain == pytest.approx(found, rel=1e-5)
    else:
        # The mean of n squares: relative standard deviation √(2/n) for normal weights, less for
        # uniform ones.
        assert layer.gain == pytest.approx(found, rel=5 * math.sqrt(2 / count))


def test_gains_in_short() -> None:
    conv = rf.Conv(3, padding=1, channels=8)
    expected = {
        "he": 2.0,
        "he-fan-out": 2 * 4 / 8,
        "lecun": 1.0,
        "glorot": 2 * 36 / (36 + 72),
        "pytorch": 1 / 3,
        "orthogonal": 1.0,
        "delta-orthogonal": 0.5,
    }
    assert tuple(expected) == SCHEMES
    for scheme, gain in expected.items():
        net = rf.Sequential(rf.Input(4), conv).initialised(scheme)
        assert rf.erf(net).log_gain == pytest.approx(math.log(gain), abs=1e-14), scheme
    assert rf.Conv(3, init="kaiming").bind(2) == rf.Conv(3, init="he").bind(2)
    assert rf.Conv(3, init="xavier").bind(2) == rf.Conv(3, init="glorot").bind(2)
    # A stated gain is a factor of the scheme's.
    assert rf.erf(rf.Conv(3, init="he", gain=0.25)).log_gain == pytest.approx(math.log(0.5))


@pytest.mark.parametrize("scheme", ["glorot", "orthogonal", "he"])
def test_fully_connected(scheme: str) -> None:
    torch.manual_seed(1)
    linear = nn.Linear(3 * 5 * 5, 40)
    DRAW[scheme](linear.weight)
    found = float(linear.weight.detach().double().square().sum()) / 40
    for layer in (rf.FullyConnected(40), rf.FullyConnected(40, map_size=5)):
        net = rf.Sequential(rf.Input(3), layer).initialised(scheme)
        gain = math.exp(rf.erf(net, net.outputs[0], input_size=5).log_gain)
        assert gain == pytest.approx(found, rel=5 * math.sqrt(2 / linear.weight.numel()))


def test_what_a_scheme_needs() -> None:
    net = rf.Sequential(rf.Conv(3, channels=8, init="glorot"))
    with pytest.raises(InputError, match=r"conv1: init='glorot' needs .* unknown and 8; give chan"):
        rf.erf(net)
    with pytest.raises(InputError, match="init='hee' is unknown; choose one of he, he-fan-out"):
        rf.erf(rf.Conv(3, init="hee"))
    with pytest.raises(InputError, match="scheme='trained' is unknown; choose one of he"):
        net.initialised("trained")
    with pytest.raises(InputError, match="leave out taps, or choose another init"):
        rf.erf(rf.Conv(3, taps="corner", init="delta-orthogonal"))
    # "he" of a convolution asks for no channels.
    assert rf.erf(rf.Sequential(rf.Conv(3)).initialised("he")).log_gain == math.log(2)


# --- residual stacks: gains shape images ----------------------------------------------------


@pytest.mark.parametrize(("scheme", "gain"), [("he", 2.0), ("pytorch", 1 / 3), ("lecun", 1.0)])
def test_residual_stacks(scheme: str, gain: float) -> None:
    """n blocks x + relu(conv(x)) have Π(1 + c) of gain and a variance of Σ c/(1 + c)·2/3 per axis,
    with c half of the scheme's gain: a mixture of no step and of a uniform step of three pixels."""
    blocks = 12
    block = rf.Residual(rf.Conv(3, padding=1), rf.Activation("relu"))
    found = rf.erf(rf.Sequential(*[block] * blocks).initialised(scheme))
    c = gain / 2
    assert found.log_gain == pytest.approx(blocks * math.log1p(c), rel=1e-13)
    assert found.std[0] ** 2 == pytest.approx(blocks * c / (1 + c) * 2 / 3, rel=1e-12)
    # Pixel by pixel: a block is 1 + c/9 at the centre and c/9 around.
    direct = np.zeros((1, 1))
    direct[0, 0] = 1
    kernel = np.full((3, 3), c / 9)
    kernel[1, 1] += 1
    for _ in range(blocks):
        grown = np.zeros(tuple(n + 2 for n in direct.shape))
        for i in range(3):
            for j in range(3):
                grown[i : i + direct.shape[0], j : j + direct.shape[1]] += kernel[i, j] * direct
        direct = grown
    np.testing.assert_allclose(found.image, direct / direct.sum(), rtol=1e-11)


def test_norms_make_schemes_alike() -> None:
    """A norm behind every convolution divides by what the scheme multiplied with."""

    def stack(scheme: str) -> rf.ERF:
        layers = [rf.Conv(3, padding=1, channels=16), rf.Norm(), rf.Activation("relu")]
        block = rf.Residual(*layers, rf.Conv(3, padding=1, channels=16), rf.Norm())
        net = rf.Sequential(rf.Input(3), rf.Conv(3, channels=16), rf.Norm(), *[block] * 3)
        return rf.erf(net.initialised(scheme))

    he, other = stack("he"), stack("pytorch")
    np.testing.assert_allclose(he.image, other.image, rtol=1e-12)
    # A block reads a sum of variance q = 1, 2, 3 and mean 0, and its branch ends with 1: conv and
    # norm make 1/q of it, relu 1/2 with a variance of 1/2 − 1/2π about its mean, by which the
    # second norm divides: π/(π − 1) for both (Yang et al. 2019).
    expected = math.fsum(math.log1p(math.pi / (math.pi - 1) / q) for q in (1, 2, 3))
    assert he.log_gain == pytest.approx(expected, rel=1e-12)
    assert other.log_gain == pytest.approx(expected, rel=1e-12)


# --- patterns of taps -----------------------------------------------------------------------


def test_patterns() -> None:
    np.testing.assert_array_equal(pattern("corner", (3, 5)), np.outer([1, 0, 1], [1, 0, 0, 0, 1]))
    light = pattern("centre-light", (3, 3))
    np.testing.assert_allclose(light * 16, [[16, 4, 16], [4, 1, 4], [16, 4, 16]])
    np.testing.assert_allclose(
        pattern("centre-light", (5,)), np.array([1, 0.75, 0.5, 0.75, 1]) ** 2
    )
    assert rf.Conv(2, taps="corner").bind(2) == rf.Conv(2).bind(2)  # all of it is corners
    assert rf.Conv(1, taps="centre-light").bind(2) == rf.Conv(1).bind(2)
    with pytest.raises(InputError, match="taps='edge' is unknown; choose one of corner, centre-li"):
        rf.Conv(3, taps="edge").bind(2)


def test_corners_spread_most() -> None:
    """Luo et al. 2016, §4: weights at the corners maximise the variance of eq. 7: d²(k−1)²/4 per
    layer, against (k²−1)/12 for equal ones; centre-light weights lie between."""
    layers, k = 6, 3

    def field(taps: Any) -> rf.ERF:
        return rf.erf([rf.Conv(k, taps=taps, init="he")] * layers)

    corner, light, equal = field("corner"), field("centre-light"), field(None)
    assert corner.std[0] ** 2 == pytest.approx(layers * (k - 1) ** 2 / 4, rel=1e-12)
    assert equal.std[0] ** 2 == pytest.approx(layers * (k * k - 1) / 12, rel=1e-12)
    assert light.std[0] ** 2 == pytest.approx(layers * 8 / 9, rel=1e-12)  # taps 4, 1, 4 of 9
    assert corner.log_gain == pytest.approx(light.log_gain, abs=1e-12)
    # Corners only: a lattice of binomials, of step k − 1, with gaps between.
    line = np.array([math.comb(layers, i) for i in range(layers + 1)]) / 2**layers
    np.testing.assert_allclose(corner.image[::2, ::2], np.outer(line, line), rtol=1e-12)
    assert not corner.image[1::2].any()
    assert not corner.image[:, 1::2].any()


def test_one_layer_of_corners_is_its_corners() -> None:
    found = rf.erf(rf.Conv(7, taps="corner"))
    assert found.image[0, 0] == found.image[-1, -1] == found.image[0, -1] == 0.25
    assert found.image.sum() == 1.0


def test_delta_orthogonal_moves_nothing() -> None:
    """Only strides and pools spread: the field of a deep stack is that of its pools."""
    convs = [rf.Conv(3, padding=1, channels=8)] * 20
    deep = rf.Sequential(rf.Input(8), *convs, rf.MaxPool(2), *convs).initialised("delta-orthogonal")
    field = rf.erf(deep)
    np.testing.assert_allclose(field.image, np.full((2, 2), 0.25), rtol=1e-12)
    assert field.log_gain == pytest.approx(0, abs=1e-12)
    assert rf.receptive_field(deep).size == (122, 122)
    even = rf.Sequential(rf.Input(8), rf.Conv((4, 3), channels=8)).initialised("delta-orthogonal")
    assert rf.erf(even).origin == (1, 1)


# --- the mean field -------------------------------------------------------------------------


def variances(net: rf.Network) -> dict[str, float]:
    """What activations are settled to, by name."""
    return {
        name: node.layer.variance
        for name, node in lower(net).network.nodes.items()
        if isinstance(node.layer, rf.Activation) and node.layer.variance is not None
    }


def test_variances_follow_the_layers() -> None:
    tanh = rf.Activation("tanh")
    net = rf.Network(
        {
            "input": (rf.Input(4),),
            "conv": (rf.Conv(3, padding=1, channels=4, gain=3.0), "input"),
            "a": (tanh, "conv"),
            "drop": (rf.Dropout(0.5), "a"),
            "up": (rf.ConvTranspose(2, stride=2, channels=4, gain=8.0), "drop"),
            "b": (tanh, "up"),
            "pool": (rf.MaxPool(2), "b"),
            "norm": (rf.Norm(), "pool"),
            "c": (tanh, "norm"),
            "sum": (rf.Add(), "c", "conv"),
            "d": (tanh, "sum"),
            "cat": (rf.Concat(), "d", "conv"),
            "e": (tanh, "cat"),
            "wide": (rf.Conv(1, channels=8, gain=1.5), "conv"),
            "product": (rf.Multiply(), "wide", "e"),
            "scaled": (rf.Scale(0.5), "product"),
            "f": (tanh, "scaled"),
        }
    )
    square = {q: moments("tanh", q).square for q in (3.0, 1.0)}
    behind_up = 8 / 4 * 2 * square[3.0]
    total = square[1.0] + 3.0
    mixed = (moments("tanh", total).square + 3.0) / 2
    last = 0.25 * 4.5 * moments("tanh", mixed).square
    expected = {"a": 3.0, "b": behind_up, "c": 1.0, "d": total, "e": mixed, "f": last}
    assert variances(net) == pytest.approx(expected, rel=1e-13)


def test_products_hand_on_the_other_factor() -> None:
    """A gated unit tanh(a)·sigmoid(b) passes E[tanh′²]E[σ²] + E[σ′²]E[tanh²]."""
    gate = rf.Parallel(
        [rf.Conv(1), rf.Activation("tanh")],
        [rf.Conv(1), rf.Activation("sigmoid")],
        merge="multiply",
    )
    t, s = moments("tanh", 1.0), moments("sigmoid", 1.0)
    found = rf.erf(rf.Sequential(gate).initialised("lecun"))
    assert found.log_gain == pytest.approx(math.log(t.gain * s.square + s.gain * t.square))
    # Without an initialisation each factor counts as 1.
    assert rf.erf(rf.Sequential(gate)).log_gain == pytest.approx(math.log(t.gain + s.gain))


def test_stated_gains_scale_the_activation() -> None:
    net = rf.Sequential(rf.Activation("relu", gain=1.0), rf.Activation("tanh"))
    # σ = √2·relu keeps the variance 1.
    assert variances(net) == pytest.approx({"tanh1": 1.0})


def test_what_is_assumed_is_said() -> None:
    mean_field = "gains of activations, norms and products are those of the mean field"
    (said,) = rf.erf([rf.Conv(3), rf.Activation("tanh")]).assumptions
    assert said.startswith(mean_field)
    (said,) = rf.erf([rf.Conv(3), rf.Activation("swoosh")]).assumptions
    assert said == "the slope of 'swoosh' is not known: it counts as compensated, gain 1"
    assert rf.erf([rf.Conv(3, init="he"), rf.Activation("relu")]).assumptions == ()
    assert rf.erf(rf.Activation("tanh", gain=1.0)).assumptions == ()


def test_initialised_forgets_trained_weights() -> None:
    net = rf.Sequential(rf.Input(2), rf.Norm(weights=[2.0, 3.0])).initialised("he")
    assert net.nodes["norm1"].layer == rf.Norm(mean_field=True)


def test_initialised_leaves_the_network_as_it_is() -> None:
    net = rf.zoo.resnet18()
    before = rf.erf(net, input_size=64)
    drawn = net.initialised("he")
    assert drawn != net
    assert drawn.endpoints == net.endpoints
    assert drawn.name == net.name
    assert rf.erf(net, input_size=64).log_gain == before.log_gain
    assert rf.receptive_field(drawn).size == rf.receptive_field(net).size


def test_initialised_keeps_a_pattern_and_drops_what_weights_gave() -> None:
    given = rf.Conv(3, taps=[1.0, 2.0, 3.0]).bind(1)
    assert given.initialised("he").taps is given.taps
    weights = np.array([[[1.0, 2.0, 3.0]]])
    for trained in (rf.Conv(3, weights=weights), rf.Conv(3, taps=[1.0, 2.0, 3.0], init="trained")):
        bound = trained.bind(1)
        assert bound.taps is not None
        assert bound.initialised("he").taps is None


@pytest.mark.parametrize("suffix", ["toml", "json"])
def test_files_keep_it(tmp_path: Any, suffix: str) -> None:
    net = rf.Sequential(
        rf.Input(3),
        rf.Conv(3, channels=4, init="glorot", taps="centre-light"),
        rf.Norm(mean_field=True),
        rf.Activation("leaky_relu", slope=0.1),
        rf.Activation("gelu", variance=0.5),
        rf.FullyConnected(5, init="he"),
    )
    rf.save(net, tmp_path / f"net.{suffix}")
    assert rf.load(tmp_path / f"net.{suffix}") == net


def test_check_agrees() -> None:
    block = rf.Residual(rf.Conv(3, padding=1, channels=6), rf.Norm(), rf.Activation("gelu"))
    net = rf.Sequential(rf.Input(6), *[block] * 4).initialised("glorot")
    assert rf.check(net)


# --- against random networks ----------------------------------------------------------------

WIDTH, LENGTH, LAYERS, NETWORKS = 96, 15, 3, 60


def autograd(
    activation: Callable[[torch.Tensor], torch.Tensor], gain: float, residual: bool, **norm: Any
) -> np.ndarray:
    """Squared gradients of the centre of channel 0 of random 1-D networks, summed over the input's
    channels: one row per network."""
    generator = torch.Generator().manual_seed(5)
    rows = []
    for _ in range(NETWORKS):
        x = torch.randn(1, WIDTH, LENGTH, generator=generator, dtype=torch.float64)
        x.requires_grad_()
        y = x
        for _ in range(LAYERS):
            weight = torch.randn(WIDTH, WIDTH, 3, generator=generator, dtype=torch.float64)
            weight *= math.sqrt(gain / (3 * WIDTH))
            z = activation(torch.nn.functional.conv1d(y, weight, padding=1))
            y = y + z if residual else z
        (slope,) = torch.autograd.grad(y[0, 0, LENGTH // 2], x)
        rows.append(slope[0].square().sum(0).numpy())
    return np.array(rows)


@pytest.mark.parametrize("residual", [False, True], ids=["chain", "residual"])
@pytest.mark.parametrize("name", ["tanh", "gelu", "relu"])
def test_random_networks(name: str, residual: bool) -> None:
    """The mean over random networks is the field, within 4 standard errors and what finite width
    adds: means over WIDTH channels fluctuate by O(1/WIDTH) per layer, squared, where gains are not
    linear in them; LAYERS·3/WIDTH bounds it with room for the constant."""
    torch.set_num_threads(1)
    scheme, gain = ("he", 2.0) if name != "tanh" else ("lecun", 1.0)
    layers = [rf.Conv(3, padding=1, channels=WIDTH), rf.Activation(name)]
    block: Any = rf.Residual(*layers) if residual else layers
    net = rf.Sequential(rf.Input(WIDTH), *[block] * LAYERS, ndim=1).initialised(scheme)
    found = rf.erf(net, input_size=LENGTH)
    expected = np.zeros(LENGTH)
    (first,) = found.origin
    expected[first : first + found.shape[0]] = found.image * math.exp(found.log_gain)
    rows = autograd(
        {"tanh": torch.tanh}.get(name) or getattr(torch.nn.functional, name), gain, residual
    )
    error = rows.std(axis=0, ddof=1) / math.sqrt(NETWORKS)
    bound = 4 * error + 3 * LAYERS / WIDTH * expected
    assert np.all(np.abs(rows.mean(axis=0) - expected) <= bound)
    # It has the power to see gains that are compensated for, 1 in every activation.
    plain = rf.Conv(3, padding=1, gain=gain)
    wrong = rf.erf(rf.Sequential(*[rf.Residual(plain) if residual else plain] * LAYERS, ndim=1))
    assert abs(math.log(rows.mean(axis=0).sum()) - wrong.log_gain) > math.log(1.2)


def test_batch_norm_in_training() -> None:
    """conv · batch norm · ReLU three times, over a batch: what norms divide by is the variance
    about the mean, not the second moment. Statistics over B·L values couple them by some 1/(BL).

    The gradient is that of a random sum over the channels of a pixel: their mean, with less noise.
    """
    torch.set_num_threads(1)
    batch, generator = 6, torch.Generator().manual_seed(9)
    rows = []
    for _ in range(NETWORKS):
        x = torch.randn(batch, WIDTH, 21, generator=generator, dtype=torch.float64)
        x.requires_grad_()
        y = x
        for _ in range(LAYERS):
            weight = torch.randn(WIDTH, WIDTH, 3, generator=generator, dtype=torch.float64)
            y = torch.nn.functional.conv1d(y, weight, padding=1)
            y = torch.nn.functional.batch_norm(y, None, None, training=True).relu()
        signs = torch.randn(WIDTH, generator=generator, dtype=torch.float64).sign()
        (slope,) = torch.autograd.grad(signs @ y[0, :, 10], x)
        rows.append(float(slope[0, :, 7:14].square().sum()) / WIDTH)
    layers = [rf.Conv(3, padding=1, channels=WIDTH), rf.Norm(), rf.Activation("relu")]
    net = rf.Sequential(rf.Input(WIDTH), *layers * LAYERS, ndim=1).initialised("he")
    expected = math.exp(rf.erf(net).log_gain)
    assert expected == pytest.approx(0.5 * (math.pi / (math.pi - 1)) ** 2, rel=1e-12)
    error = np.std(rows, ddof=1) / math.sqrt(NETWORKS)
    # Of 21 pixels two lie at the border, where sums of fewer taps lower what norms divide by.
    border = LAYERS * 2 / 21 / 3
    bound = 4 * error + (3 * LAYERS / WIDTH + LAYERS * 4 / (batch * 21) + border) * expected
    assert abs(np.mean(rows) - expected) <= bound
    # Second moments instead would make 1/2 of it, less than half.
    assert np.mean(rows) - bound > 0.5


def test_every_way_to_a_field_gives_that_of_the_network() -> None:
    """A table's network and a report's fields are not those of the gains alone that an
    initialisation comes to, which say no more what slopes and largest values have in common."""
    conv = rf.Conv(3, padding=1, channels=16)
    down = rf.Sequential(
        rf.MaxPool(2), conv, rf.Activation("relu"), rf.ConvTranspose(2, stride=2, channels=16)
    )
    net = rf.Sequential(
        rf.Input(8), conv, rf.Activation("relu"), rf.Parallel(None, down, merge="concat"), conv
    ).initialised("he")
    expected = rf.erf(net, input_size=16)
    field = rf.receptive_field(net, input_size=16)
    assert field.network == expected.network.bound
    assert field.network.fingerprint == expected.to_dict()["fingerprint"]
    assert rf.erf(field.network, input_size=16).std == expected.std
    told = assemble(net, input_size=16, check=False).layers[-1]
    assert told.std == expected.std
    assert told.log_gain == expected.log_gain
    settled = lower(net, 16).network
    assert settled != net.bound
    assert abs(rf.erf(settled, input_size=16).std[0] / expected.std[0] - 1) > 1e-2
