"""Tiles against the whole image, by running real networks on both."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

import fastrf as rf
from fastrf.errors import InputError
from fastrf.lowering import lower
from fastrf.tiling import cut, halo, right_units, tiles

torch.set_num_threads(1)


class UNet(nn.Module):
    """Two steps down and up; bilinear or transposed upsampling."""

    def __init__(self, up: str, padding: int) -> None:
        super().__init__()
        conv = lambda a, b: nn.Conv2d(a, b, 3, padding=padding)  # noqa: E731
        self.first, self.second, self.bottom = conv(1, 2), conv(2, 2), conv(2, 2)
        self.after2, self.after1 = conv(4, 2), conv(4, 1)
        self.pool = nn.MaxPool2d(2)
        if up == "transpose":
            self.up2, self.up1 = (nn.ConvTranspose2d(2, 2, 2, stride=2) for _ in range(2))
        else:
            self.up2 = self.up1 = nn.Upsample(scale_factor=2, mode="bilinear")

    def forward(self, x):
        skip1 = torch.tanh(self.first(x))
        skip2 = torch.tanh(self.second(self.pool(skip1)))
        x = self.up2(torch.tanh(self.bottom(self.pool(skip2))))
        x = self.up1(torch.tanh(self.after2(torch.cat([skip2, x], 1))))
        return self.after1(torch.cat([skip1, x], 1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 7, stride=2, padding=3)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.down, self.shortcut = nn.Conv2d(3, 3, 3, 2, 1), nn.Conv2d(3, 3, 1, 2)

    def forward(self, x):
        x = self.pool(torch.tanh(self.stem(x)))
        x = torch.tanh(x + self.two(torch.tanh(self.one(x))))
        return torch.tanh(self.down(x) + self.shortcut(x))


class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv1d(1, 1, 2, dilation=2**i) for i in range(5))

    def forward(self, x):
        for i, conv in enumerate(self.convs):
            x = x + torch.tanh(conv(nn.functional.pad(x, (2**i, 0))))
        return x


def valid() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 5), nn.AvgPool2d(2), nn.Conv2d(2, 2, 3, dilation=2), nn.Tanh()
    )


CASES = {
    # module, whole image, tile
    "valid": (valid, (41, 60), (25, 22)),
    "valid, tiles of one block": (valid, (41, 41), (16, 15)),
    "residual": (Residual, (101, 160), (80, 96)),
    "residual, tiles of no whole stride": (Residual, (163, 101), (91, 77)),
    "U-Net, transposed": (lambda: UNet("transpose", 1), (64, 92), (48, 40)),
    "U-Net, bilinear": (lambda: UNet("bilinear", 1), (64, 92), (48, 52)),
    "causal": (Causal, (150,), (60,)),
    "reflected": (
        lambda: nn.Sequential(
            nn.Conv1d(1, 2, 5, padding=2, padding_mode="reflect"),
            nn.Conv1d(2, 2, 3, stride=3, padding=1, padding_mode="replicate"),
            nn.AvgPool1d(3, 1, 1, count_include_pad=False),
        ),
        (100,),
        (40,),
    ),
    "transposed with gaps": (
        lambda: nn.Sequential(
            nn.Conv1d(1, 2, 3, padding=1), nn.ConvTranspose1d(2, 1, 3, 4, 1, 2), nn.Conv1d(1, 1, 2)
        ),
        (60,),
        (17,),
    ),
    "ceil mode": (lambda: nn.MaxPool1d(3, 2, 1, ceil_mode=True), (50,), (21,)),
    "more cropped than padded": (
        lambda: nn.Sequential(nn.ConstantPad1d((-3, -2), 0.0), nn.Conv1d(1, 1, 3, padding=1)),
        (50,),
        (20,),
    ),
}


def network(module: nn.Module, size: tuple[int, ...]) -> rf.Network:
    return rf.from_torch(module, (1, 1, *size))


def run(module: nn.Module, image: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module(image)


@pytest.mark.parametrize("name", CASES)
def test_tiles_give_what_the_whole_image_gives(name):
    make, size, tile_size = CASES[name]
    torch.manual_seed(7)
    module = make().double().eval()
    image = torch.randn(1, 1, *size, dtype=torch.float64)
    whole = run(module, image)
    plan = tiles(network(module, size), size, tile_size)
    assert len(plan) > 1
    found = torch.full_like(whole, torch.nan)
    for tile in plan:
        assert all(s.stop - s.start <= most for s, most in zip(tile.input, tile_size, strict=True))
        here = run(module, image[(..., *tile.input)])
        assert torch.isnan(found[(..., *tile.output)]).all(), "no unit is computed twice"
        found[(..., *tile.output)] = here[(..., *tile.kept)]
    assert torch.allclose(found, whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in CASES if "cropped" not in n])
def test_no_unit_that_is_right_is_left_out(name):
    """The units of an inner tile that agree with the whole image are those kept, and no more."""
    make, size, tile_size = CASES[name]
    torch.manual_seed(7)
    module = make().double().eval()
    net = network(module, size)
    (h, *_), limit = halo(net), tile_size[0]
    start = h.block * max(1, -(-h.left // h.block))
    if start + limit >= size[0]:
        size = (start + limit + 3 * h.block, *size[1:])
        net = network(module, size)
    # Many images: the padding of a pool may win by chance.
    image = torch.randn(30, 1, *size, dtype=torch.float64)
    part = image[:, :, start : start + limit]
    whole, here = run(module, image), run(module, part)
    offset = start // h.block * h.units
    same = torch.isclose(here, whole[:, :, offset : offset + here.shape[2]], rtol=0, atol=1e-12)
    right = same.movedim(2, 0).flatten(1).all(dim=1).numpy()
    tile, model = (lower(net, (n, *size[1:])) for n in (limit, size[0]))
    (node,) = net.outputs
    first, last = right_units(tile, model, node, 0, False, False)[node]
    assert np.flatnonzero(right).tolist() == list(range(first, last + 1))


@pytest.mark.parametrize("name", ["residual", "U-Net, transposed", "causal", "valid"])
def test_the_halo_is_what_a_block_reads(name):
    """The pixels with a gradient, of all units of a block in the middle."""
    make, size, _ = CASES[name]
    size = tuple(3 * n for n in size)
    torch.manual_seed(7)
    module = make().double().eval()
    image = torch.randn(1, 1, *size, dtype=torch.float64, requires_grad=True)
    output = module(image)
    for axis, h in enumerate(halo(network(module, size))):
        middle = size[axis] // 2 // h.block
        units = slice(middle * h.units, (middle + 1) * h.units)
        index = [slice(None)] * 2 + [slice(n // 2, n // 2 + h.units) for n in output.shape[2:]]
        index[2 + axis] = units
        # Max-pooling routes to one tap: many gradients are added up.
        seen = torch.zeros(size[axis], dtype=torch.bool)
        for _ in range(40):
            noise = torch.randn(1, 1, *size, dtype=torch.float64, requires_grad=True)
            (gradient,) = torch.autograd.grad(module(noise)[tuple(index)].sum(), noise)
            others = [d for d in range(gradient.ndim) if d != 2 + axis]
            seen |= (gradient != 0).any(dim=others[0] if len(others) == 1 else tuple(others))
        pixels = torch.nonzero(seen).ravel()
        first, last = int(pixels[0]), int(pixels[-1])
        assert first == middle * h.block - h.left
        assert last == (middle + 1) * h.block - 1 + h.right


def test_valid_chain_overlaps_by_size_less_stride():
    field = rf.receptive_field([rf.Conv(7, stride=2), rf.MaxPool(3, stride=2), rf.Conv(3)])
    (h, _) = halo(field.network)
    assert (h.block, h.units) == (4, 1)
    assert (h.left, h.overlap) == (0, field.size[0] - field.stride[0])


# --- what a smaller halo cuts ---------------------------------------------------------------


@pytest.mark.parametrize(
    "net", [rf.zoo.resnet18(), rf.zoo.get("unet(2, 1)"), rf.zoo.get("wavenet(1, 6)")], ids=str
)
def test_cut_adds_up_what_lies_beyond(net):
    for axis, found in enumerate(cut(net)):
        h = found.exact
        assert found.share(h.left, h.right) == 0
        assert found.halo(0.0) == h
        unit = rf.erf(net).profile(axis)
        origin = rf.erf(net).origin[axis]
        pixels = origin + np.arange(len(unit))
        for left, right in [(0, 0), (h.left // 2, h.right // 2), (h.left - 1, h.right), (-1, 0)]:
            beyond = unit[(pixels < -left) | (pixels > h.block - 1 + right)].sum()
            share = found.share(left, right)
            assert share >= beyond * (1 - 1e-12)
            if h.units == 1:
                assert share == pytest.approx(beyond, rel=1e-12, abs=1e-18)
        overlaps = [found.halo(t).overlap for t in (0, 1e-9, 1e-3, 0.1, 0.5)]
        assert overlaps == sorted(overlaps, reverse=True)
        for t in (1e-6, 0.01, 0.3):
            least = found.halo(t)
            assert found.share(least.left, least.right) <= t * (1 + 1e-12)


def test_cut_of_phases_is_the_worst_of_them():
    net = rf.zoo.get("unet(2, 1)")
    (found, _) = cut(net)
    h = found.exact
    worst = 0.0
    for phase in range(h.units):
        field = rf.erf(net, unit=(phase, phase))
        pixels = field.origin[0] + np.arange(field.shape[0])
        worst = max(worst, float(field.profile(0)[pixels < -2].sum()))
    assert worst == pytest.approx(float(found.before[h.left - 2]), rel=1e-12)


def test_what_is_cut_is_at_most_what_a_padded_tile_loses():
    """In a padded tile paths that come back are lost too."""
    net = rf.Sequential(*[rf.Conv((3,), padding=1)] * 12)
    (found,) = cut(net)
    for distance in (0, 3, 8, 12):
        lost = rf.erf(net, unit=distance, input_size=64).lost_mass
        beyond = found.before[found.exact.left - distance]
        assert beyond <= lost * (1 + 1e-12)
        assert (beyond == 0) == (lost < 1e-15)


def test_units_in_gaps_cut_nothing():
    """A transposed convolution of 2 taps and stride 4 reaches half of its units."""
    (found,) = cut([rf.Conv((5,), padding=2), rf.ConvTranspose((2,), stride=4)])
    assert found.exact == (1, 4, 2, 2)
    np.testing.assert_allclose(found.before, np.arange(5) / 5, rtol=1e-12)
    np.testing.assert_allclose(found.behind, np.arange(5)[::-1] / 5, rtol=1e-12)


def test_of_many_phases_the_outermost_decide():
    """Between two of the repeated pixels, two of three taps are one's: a third is cut there."""
    (found,) = cut([rf.Upsample(80, mode="nearest"), rf.Conv((3,), padding=1)])
    assert found.exact == (1, 80, 1, 1)
    np.testing.assert_allclose(found.before, [0, 1 / 3, 1], rtol=1e-12)
    np.testing.assert_allclose(found.behind, [1, 1 / 3, 0], rtol=1e-12)
    assert found.share(0, 0) == pytest.approx(2 / 3, rel=1e-12)
    assert found.share(0, 5) == pytest.approx(1 / 3, rel=1e-12)
    assert found.share(-9, 1) == found.share(1, -9) == 1


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_shares_of_no_mass_are_refused(share):
    (found,) = cut(rf.Conv((3,), padding=1))
    with pytest.raises(InputError, match="give a number from 0 to 1"):
        found.halo(share)


# --- refused --------------------------------------------------------------------------------

SAME = rf.Conv((3,), stride=2, padding="same_upper")
STRETCHED = rf.Upsample(2, mode="linear", coordinates="align_corners")


@pytest.mark.parametrize(
    ("net", "sizes", "message"),
    [
        ([rf.Conv((3,)), rf.Attention(), rf.Conv((3,))], (50, 30), "attention1"),
        (SAME, (51, 30), "depend on the size"),
        ([rf.Conv((5,), padding=2)] * 5, (50, 20), "give 22 or more"),
        (rf.Conv((5,), padding=2, padding_mode="circular"), (50, 20), "other side"),
        ([rf.Conv((3,), padding=1), rf.Upsample(size=40)], (50, 20), "depend on the size"),
        ([rf.Conv((3,), padding=1), STRETCHED], (50, 30), "depend on the size"),
    ],
)
def test_what_cannot_be_tiled_is_refused(net, sizes, message):
    with pytest.raises(InputError, match=message):
        tiles(net, *sizes)


def chain(seed: int) -> tuple[list[rf.layers.Layer], nn.Module, int, int]:
    """A random chain, as layers and as a module, an image and a tile, which may be too small."""
    draw = random.Random(seed)
    layers, modules = [], []
    for _ in range(draw.randint(2, 5)):
        k, s, d = draw.choice([2, 3, 4, 7]), draw.choice([1, 1, 2, 3]), draw.choice([1, 1, 2])
        if draw.random() < 0.3:
            layers.append(rf.ConvTranspose((k,), stride=s))
            modules.append(nn.ConvTranspose1d(1, 1, k, s))
        else:
            p = draw.choice([0, 1, 2])
            layers.append(rf.Conv((k,), stride=s, padding=p, dilation=d))
            modules.append(nn.Conv1d(1, 1, k, s, p, d))
    return layers, nn.Sequential(*modules), draw.randint(20, 40), draw.randint(12, 38)


def test_random_chains_give_what_the_whole_image_gives_or_are_refused():
    """Where tiles are little larger than what they share, the last one may begin too late."""
    tiled = 0
    for seed in range(150):
        torch.manual_seed(seed)
        layers, module, size, tile_size = chain(seed)
        image = torch.randn(1, 1, size, dtype=torch.float64)
        try:
            plan = tiles(layers, size, tile_size)
        except InputError:
            continue
        module.double()
        whole = run(module, image)
        found = torch.full_like(whole, torch.nan)
        for tile in plan:
            here = run(module, image[(..., *tile.input)])
            found[(..., *tile.output)] = here[(..., *tile.kept)]
        assert torch.allclose(found, whole, rtol=0, atol=1e-12), (seed, module)
        tiled += len(plan) > 1
    assert tiled > 20


def test_several_inputs_are_refused():
    net = rf.Network({"a": [rf.Input()], "b": [rf.Input()], "sum": (rf.Add(), "a", "b")}, ndim=1)
    with pytest.raises(InputError, match="2 inputs"):
        tiles(net, 50, 30)


def test_same_padding_is_tiled_where_it_falls_alike():
    assert len(tiles(SAME, 50, 30)) > 1


def test_halo_of_a_global_layer_names_it_and_may_leave_it_out():
    net = rf.Sequential(rf.Conv((3,), padding=1), rf.SqueezeExcite(), rf.Conv((3,), padding=1))
    with pytest.raises(InputError, match="squeeze"):
        halo(net)
    assert halo(net, ignore_global=True)[0].overlap == 4


def test_paths_of_different_strides_have_no_halo():
    with pytest.raises(InputError, match="strides 2 and 1 meet"):
        halo(rf.Parallel(rf.Conv((1,), stride=2), rf.Conv((1,))))
