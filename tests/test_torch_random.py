"""Random modules: their imported networks against what PyTorch itself does with them.

Of every module the box of units is held against impulses that are sent through it with positive
weights, and, where all that it does is random or moves channels, the ERF against the gradient of
the same module with variances in place of weights.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

import fastrf as rf

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

SEEDS = 32
"""Modules: some seconds of them."""


class Branches(nn.Module):
    """A sum of branches that keep the size, or their concatenation."""

    def __init__(self, parts: list[nn.Module], *, joined: bool) -> None:
        super().__init__()
        self.parts, self.joined = nn.ModuleList(parts), joined

    def forward(self, x: Any) -> Any:
        found = [part(x) for part in self.parts]
        return torch.cat(found, 1) if self.joined else sum(found[1:], found[0])


class Split(nn.Module):
    """The first channels go through a part, the others beside it."""

    def __init__(self, part: nn.Module, first: int) -> None:
        super().__init__()
        self.part, self.first = part, first

    def forward(self, x: Any) -> Any:
        a, b = torch.split(x, [self.first, x.shape[1] - self.first], 1)
        return torch.cat([b, self.part(a)], 1)


class Shuffle(nn.Module):
    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups

    def forward(self, x: Any) -> Any:
        n, c, *size = x.shape
        return x.view(n, self.groups, c // self.groups, *size).transpose(1, 2).reshape(n, c, *size)


class Resize(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.options = options

    def forward(self, x: Any) -> Any:
        return functional.interpolate(x, **self.options)


class Pad(nn.Module):
    def __init__(self, pads: list[int], mode: str) -> None:
        super().__init__()
        self.pads, self.mode = pads, mode

    def forward(self, x: Any) -> Any:
        return functional.pad(x, self.pads, self.mode)


class Maker:
    """Draws modules; `channels` and `size` are those of the map so far."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.ndim = int(self.rng.integers(1, 4))
        self.size = tuple(
            int(n) for n in self.rng.integers(6, {1: 24, 2: 12, 3: 8}[self.ndim], self.ndim)
        )
        self.random = True
        """Whether all so far is random weights and channels that move."""

    def one_of(self, *choices: Any) -> Any:
        return choices[int(self.rng.integers(len(choices)))]

    def number(self, low: int, high: int) -> int:
        return int(self.rng.integers(low, high + 1))

    def per_axis(self, low: int, high: int) -> tuple[int, ...]:
        return tuple(self.number(low, high) for _ in range(self.ndim))

    def layer(self, name: str) -> Any:
        return getattr(nn, f"{name}{self.ndim}d")

    def module(self) -> tuple[nn.Sequential, tuple[int, ...]]:
        shape = (1, 4, *self.size)
        x, parts = torch.zeros(shape), []
        while len(parts) < 5:
            random = self.random
            try:
                part = self.part(x.shape[1], tuple(x.shape[2:]))
                y = part(x)
            except (RuntimeError, ValueError):  # does not fit the map
                self.random = random
                continue
            if min(y.shape) < 1 or max(y.shape[2:]) > 30:
                self.random = random
                continue
            parts.append(part)
            x = y
        return nn.Sequential(*parts), shape

    def part(self, c: int, size: tuple[int, ...]) -> nn.Module:
        kinds = "conv transposed grouped depthwise shuffle split cat residual pad pool resize pixel"
        kind = self.one_of("conv", *kinds.split())
        return getattr(self, f"make_{kind}")(c, size)

    def same(self, reads: int, writes: int, groups: int = 1) -> nn.Module:
        k, d = self.one_of(1, 3, 5), self.number(1, 2)
        return self.layer("Conv")(reads, writes, k, 1, d * (k // 2), d, groups, bias=False)

    def make_conv(self, c: int, size: Any) -> nn.Module:
        return self.layer("Conv")(
            c, self.one_of(2, 4, 8), self.per_axis(1, 4), self.per_axis(1, 3),
            self.per_axis(0, 2), self.per_axis(1, 2), bias=False,
        )  # fmt: skip

    def make_transposed(self, c: int, size: Any) -> nn.Module:
        stride = self.per_axis(1, 3)
        return self.layer("ConvTranspose")(
            c, self.one_of(2, 4), self.per_axis(1, 4), stride, self.per_axis(0, 1),
            tuple(self.number(0, s - 1) for s in stride), bias=False,
        )  # fmt: skip

    def make_grouped(self, c: int, size: Any) -> nn.Module:
        return self.same(c, c, 2)

    def make_depthwise(self, c: int, size: Any) -> nn.Module:
        return self.same(c, c * self.number(1, 2), c)

    def make_shuffle(self, c: int, size: Any) -> nn.Module:
        return Shuffle(2)

    def make_split(self, c: int, size: Any) -> nn.Module:
        first = self.number(1, c - 1)
        return Split(self.same(first, self.number(1, 3)), first)

    def make_cat(self, c: int, size: Any) -> nn.Module:
        return Branches([self.same(c, self.number(1, 4)), nn.Identity()], joined=True)

    def make_residual(self, c: int, size: Any) -> nn.Module:
        return Branches(
            [self.same(c, c), self.one_of(nn.Identity(), self.same(c, c))], joined=False
        )

    def make_pad(self, c: int, size: Any) -> nn.Module:
        mode = self.one_of("constant", "reflect", "replicate", "circular")
        self.random &= mode == "constant"
        low = -1 if mode == "constant" else 0
        return Pad([self.number(low, 2) for _ in range(2 * self.ndim)], mode)

    def make_pool(self, c: int, size: Any) -> nn.Module:
        self.random = False
        kind = self.one_of("MaxPool", "AvgPool", "AdaptiveAvgPool", "AdaptiveMaxPool")
        if kind.startswith("Adaptive"):
            return self.layer(kind)(self.per_axis(1, 5))
        kernel = self.per_axis(1, 3)
        pads = tuple(self.number(0, k // 2) for k in kernel)
        more = {"count_include_pad": self.one_of(True, False)} if kind == "AvgPool" else {}
        return self.layer(kind)(
            kernel, self.per_axis(1, 3), pads, ceil_mode=self.one_of(True, False), **more
        )

    def make_resize(self, c: int, size: Any) -> nn.Module:
        self.random = False
        linear = {1: "linear", 2: "bilinear", 3: "trilinear"}[self.ndim]
        mode = self.one_of("nearest", linear)
        more = {"align_corners": self.one_of(True, False)} if mode == linear else {}
        if self.one_of(True, False):
            return Resize(size=self.per_axis(2, 12), mode=mode, **more)
        return Resize(scale_factor=self.one_of(2.0, 1.5, 0.5), mode=mode, **more)

    def make_pixel(self, c: int, size: Any) -> nn.Module:
        if self.ndim != 2:
            raise ValueError
        return self.one_of(nn.PixelShuffle(2), nn.PixelUnshuffle(2))


def impulses(module: nn.Module, shape: tuple[int, ...]) -> Any:
    """What each pixel leaves on every unit, channels added up: (*pixels, *units)."""
    size = shape[2:]
    count = math.prod(size)
    x = torch.eye(count, dtype=torch.float64).reshape(count, 1, *size).expand(-1, shape[1], *size)
    with torch.no_grad():
        y = module(x).sum(1)
    return y.reshape(*size, *y.shape[1:]).numpy()


def fill(module: nn.Module, value: Any) -> None:
    module.double().requires_grad_(False)
    for part in module.modules():
        if hasattr(part, "weight"):
            part.weight.fill_(value(part))


def variance(part: Any) -> float:
    """Of weights that keep the variance, as imported networks take them for granted."""
    w = part.weight
    if part.transposed:
        return math.prod(part.stride) * part.groups / (w.shape[0] * math.prod(w.shape[2:]))
    return 1 / w[0].numel()


def check(seed: int) -> bool:
    """Whether the seed's module moved nothing but by random weights."""
    torch.manual_seed(seed)
    maker = Maker(seed)
    module, shape = maker.module()
    size = shape[2:]
    fill(module, lambda part: 1.0)
    met = impulses(module, shape)
    try:
        network = rf.from_torch(module, shape)
        field = rf.receptive_field(network, network.outputs[0], input_size=size)
    except rf.errors.InputError:
        assert not met.any()  # Strides that leave out what is asked for, or all of it cropped.
        return False
    out = met.shape[len(size) :]
    units = {(0,) * len(out), tuple(n // 2 for n in out), tuple(n - 1 for n in out)}
    for unit in units:
        places = np.argwhere(np.abs(met[(..., *unit)]) > 1e-9)
        if not len(places):
            continue
        box = tuple(zip(places.min(0).tolist(), places.max(0).tolist(), strict=True))
        assert tuple(map(tuple, field.box(unit, clip=True))) == box, (seed, unit, module)
    if not maker.random:
        return False
    fill(module, variance)
    image = impulses(module, shape)[(..., *(n // 2 for n in out))]
    if not image.any():
        return True
    found = rf.erf(network, network.outputs[0], input_size=size)
    whole = np.zeros(size)
    window = zip(found.origin, found.shape, strict=True)
    whole[tuple(slice(o, o + n) for o, n in window)] = found.to_numpy()
    np.testing.assert_allclose(whole, image / image.sum(), rtol=1e-9, atol=1e-15, err_msg=str(seed))
    return True


def test_random_modules() -> None:
    assert sum(check(seed) for seed in range(SEEDS)) > SEEDS // 8
