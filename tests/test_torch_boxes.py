"""Boxes of imported PyTorch modules against what probing the real modules finds.

The probe puts NaN at one input pixel after the other (all of them side by side in a batch) and
runs the module forwards: the units that turn NaN are those that the pixel reaches. It shares no
code with fastrf. Where NaN itself misleads, and what is done about it:

* Max-pooling and ReLU lose a NaN *gradient* (the one routes to a single tap, the other blocks
  where it is off), so probing runs forwards: PyTorch's max-pooling and ReLU hand a NaN on.
* NaN·0 is NaN, so a resize that reads a pixel with coefficient 0 (linear, at borders and where
  positions meet) would seem to see it. Modules with linear resizes are probed with a 1 among zeros
  instead; all weights are positive, so that nothing cancels, and differences are told from
  rounding by their size.
* Winograd and FFT convolutions mix whole tiles, so that a NaN spreads over them: modules are probed
  in double precision, which only PyTorch's own convolutions compute, window by window.
* A squeeze-and-excitation gate spreads NaN over the map. fastrf leaves global paths out on
  request; the probe then holds the gate at 1.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

import fastrf as rf  # noqa: E402


@pytest.fixture(autouse=True)
def _one_thread():
    """On maps this small, waking other threads takes most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- the probe ------------------------------------------------------------------------------


def positive(module):
    """The module in evaluation, with weights of which all are positive."""
    generator = torch.Generator().manual_seed(5)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
            # Σ of the weights of a unit stays near 1, so that no activation saturates.
            parameter.div_(max(parameter[0].numel(), 1))
    return module


def images(shape, value):
    """For every pixel an image of zeros with the value there, in all channels."""
    _, channels, *pixels = shape
    batch = torch.zeros((int(np.prod(pixels)), channels, *pixels), dtype=torch.float64)
    for number, pixel in enumerate(itertools.product(*map(range, pixels))):
        batch[(number, slice(None), *pixel)] = value
    return batch


def probed(module, shape, *, impulse=False, key=None):
    """Per pixel and unit, whether the unit sees the pixel: an array of pixels and units."""
    with torch.no_grad():
        found = module(images(shape, 1.0 if impulse else torch.nan))
        rest = module(torch.zeros(shape, dtype=torch.float64))
    if key is not None:
        found, rest = found[key], rest[key]
    if impulse:
        # Connections are products of a few hundred positive numbers of at least 1e-2 and at most
        # 1 in magnitude; rounding of the rest is 1e-16 of it.
        seen = (found - rest).abs() > 1e-13 * rest.abs().max()
    else:
        assert not rest.isnan().any()
        seen = found.isnan()
    units = seen.any(dim=1)
    return units.reshape(*shape[2:], *units.shape[1:]).numpy()


def bounding(mask):
    return tuple(
        (int(where.min()), int(where.max()))
        for where in (np.nonzero(mask)[a] for a in range(mask.ndim))
    )


def chosen_units(size):
    """Corners, the middle of an edge, the centre and its neighbours (every phase of a decoder)."""
    middle = tuple(n // 2 for n in size)
    units = {tuple(0 for _ in size), tuple(n - 1 for n in size), (0, *middle[1:]), middle}
    units |= {tuple(min(m + d, n - 1) for m, d, n in zip(middle, step, size, strict=True))
              for step in itertools.product((0, 1), repeat=len(size))}  # fmt: skip
    return sorted(units)


# --- modules --------------------------------------------------------------------------------


def conv(a, b, k=3, **options):
    """A convolution that keeps the size unless it strides."""
    if "padding" not in options:
        options["padding"] = k // 2
    return nn.Conv2d(a, b, k, **options)


class Block(nn.Module):
    def __init__(self, a, b, stride):
        super().__init__()
        self.conv1, self.bn1 = conv(a, b, stride=stride, bias=False), nn.BatchNorm2d(b)
        self.conv2, self.bn2 = conv(b, b, bias=False), nn.BatchNorm2d(b)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or a != b:
            self.downsample = nn.Sequential(conv(a, b, 1, stride=stride), nn.BatchNorm2d(b))

    def forward(self, x):
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(conv(1, 2, 7, stride=2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        self.layer1 = nn.Sequential(Block(2, 2, 1))
        self.layer2 = nn.Sequential(Block(2, 3, 2), Block(3, 3, 1))

    def forward(self, x):
        return self.layer2(self.layer1(self.stem(x)))


class UNet(nn.Module):
    def __init__(self, up):
        super().__init__()
        self.down1, self.down2 = conv(1, 2), conv(2, 2)
        self.pool = nn.MaxPool2d(2)
        self.bottom = conv(2, 2)
        self.up = {
            "transposed": nn.ConvTranspose2d(2, 2, 2, stride=2),
            "overlapping": nn.ConvTranspose2d(2, 2, 4, stride=2, padding=1),
            "output padding": nn.ConvTranspose2d(2, 2, 3, stride=2, padding=1, output_padding=1),
            "nearest": nn.Upsample(scale_factor=2),
            "bilinear": nn.Upsample(scale_factor=2, mode="bilinear"),
            "corners": nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        }[up]
        self.head = conv(4, 1)

    def forward(self, x):
        skip = F.relu(self.down1(x))
        y = self.bottom(F.relu(self.down2(self.pool(skip))))
        return self.head(torch.cat([skip, self.up(y)], dim=1))


class ASPP(nn.Module):
    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList(
            [conv(1, 2, 1)] + [conv(1, 2, 3, dilation=d, padding=d) for d in (2, 5)]
        )
        self.project = conv(6, 1, 1)

    def forward(self, x):
        return self.project(torch.cat([branch(x) for branch in self.branches], 1))


class ShuffleUnit(nn.Module):
    """ShuffleNet v2: the halves of the channels part, and a shuffle mixes them."""

    def __init__(self):
        super().__init__()
        self.stem = conv(1, 4, 3, stride=2)
        self.units = nn.ModuleList(
            nn.Sequential(conv(2, 2, 1), nn.ReLU(), conv(2, 2, 3, groups=2), conv(2, 2, 1))
            for _ in range(3)
        )

    def forward(self, x):
        x = self.stem(x)
        for unit in self.units:
            kept, changed = x.chunk(2, dim=1)
            x = torch.cat((kept, unit(changed)), dim=1)
            n, c, h, w = x.shape
            x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return x[:, :1]


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(conv(1 + 2 * i, 2) for i in range(3))
        self.transition = nn.Sequential(conv(7, 2, 1), nn.AvgPool2d(2))
        self.last = conv(2, 1)

    def forward(self, x):
        maps = [x]
        for layer in self.convs:
            maps.append(F.relu(layer(torch.cat(maps, 1))))
        return self.last(self.transition(torch.cat(maps, 1)))


class FPN(nn.Module):
    def __init__(self):
        super().__init__()
        self.c2, self.c3, self.c4 = (conv(a, 2, stride=2) for a in (1, 2, 2))
        self.lateral = nn.ModuleList(conv(2, 2, 1) for _ in range(3))
        self.smooth = nn.ModuleList(conv(2, 2) for _ in range(3))

    def forward(self, x):
        c2 = F.relu(self.c2(x))
        c3 = F.relu(self.c3(c2))
        c4 = F.relu(self.c4(c3))
        p4 = self.lateral[2](c4)
        p3 = self.lateral[1](c3) + F.interpolate(p4, size=c3.shape[-2:], mode="nearest")
        p2 = self.lateral[0](c2) + F.interpolate(p3, size=c2.shape[-2:], mode="nearest")
        return {f"p{i + 2}": self.smooth[i](p) for i, p in enumerate((p2, p3, p4))}


class SqueezeExcite(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc1, self.fc2 = conv(channels, 2, 1), conv(2, channels, 1)
        self.gate = nn.Sigmoid()

    def forward(self, x):
        y = x.mean((2, 3), keepdim=True)
        return x * self.gate(self.fc2(F.silu(self.fc1(y))))


class MBConv(nn.Module):
    def __init__(self, stride):
        super().__init__()
        self.expand = nn.Sequential(conv(2, 6, 1), nn.SiLU())
        self.depthwise = nn.Sequential(conv(6, 6, 5, stride=stride, groups=6), nn.SiLU())
        self.se = SqueezeExcite(6)
        self.project = conv(6, 2, 1)
        self.residual = stride == 1

    def forward(self, x):
        y = self.project(self.se(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class HRNet(nn.Module):
    """Two resolutions that exchange maps, twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.lower = conv(1, 2), conv(2, 2, stride=2)
        self.high = nn.ModuleList(conv(2, 2) for _ in range(2))
        self.low = nn.ModuleList(conv(2, 2) for _ in range(2))
        self.down = nn.ModuleList(conv(2, 2, stride=2) for _ in range(2))
        self.up = nn.ModuleList(conv(2, 2, 1) for _ in range(2))

    def forward(self, x):
        high = self.stem(x)
        low = self.lower(high)
        for i in range(2):
            a, b = self.high[i](high), self.low[i](low)
            high = a + F.interpolate(self.up[i](b), scale_factor=2, mode="nearest")
            low = b + self.down[i](a)
        return {"high": high, "low": low}


class Inception(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = conv(1, 1, 1)
        self.b = nn.Sequential(conv(1, 1, 1), conv(1, 1, (1, 7), padding=(0, 3)),
                               conv(1, 1, (5, 1), padding=(2, 0)))  # fmt: skip
        self.c = nn.Sequential(nn.AvgPool2d(3, 1, 1, count_include_pad=False), conv(1, 1, 1))
        self.reduce = conv(3, 2, 3, stride=2, padding=0)

    def forward(self, x):
        y = torch.cat([self.a(x), self.b(x), self.c(x)], 1)
        return torch.cat([self.reduce(y), F.max_pool2d(y, 3, stride=2)], 1)


class WaveNet(nn.Module):
    """Causal: padding on the left alone, dilations that double, gated units, skips."""

    def __init__(self):
        super().__init__()
        self.filters = nn.ModuleList(nn.Conv1d(2, 2, 2, dilation=2**i) for i in range(4))
        self.gates = nn.ModuleList(nn.Conv1d(2, 2, 2, dilation=2**i) for i in range(4))
        self.start, self.end = nn.Conv1d(1, 2, 1), nn.Conv1d(2, 1, 1)

    def forward(self, x):
        x = self.start(x)
        skips = 0
        for i, (f, g) in enumerate(zip(self.filters, self.gates, strict=True)):
            padded = F.pad(x, (2**i, 0))
            y = torch.tanh(f(padded)) * torch.sigmoid(g(padded))
            skips = skips + y
            x = x + y
        return self.end(F.relu(skips))


class Volume(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv3d(1, 2, (3, 3, 1), padding=(1, 1, 0)), nn.ReLU(), nn.MaxPool3d((1, 2, 2)),
            nn.Conv3d(2, 1, 3, stride=(2, 1, 1), padding=1),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


class SuperResolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(conv(1, 2), conv(2, 9), nn.PixelShuffle(3), conv(1, 1))

    def forward(self, x):
        return self.layers(x)


class Wrapped(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.mode = mode
        self.first = conv(1, 1, 3, padding_mode=mode)
        self.second = conv(1, 1, 5, stride=2, padding=2, padding_mode=mode)

    def forward(self, x):
        return self.second(F.pad(self.first(x), (1, 2, 0, 1), mode=self.mode))


class ChannelsLast(nn.Module):
    """ConvNeXt's block: a linear layer over channels that come last, behind a patchifying stem."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 2, 2, stride=2)
        self.depthwise = conv(2, 2, 7, groups=2)
        self.norm, self.linear = nn.LayerNorm(2), nn.Linear(2, 2)

    def forward(self, x):
        x = self.stem(x)
        y = self.linear(self.norm(self.depthwise(x).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return x + y


class Focus(nn.Module):
    """Every second pixel by slices, and back by a reshape."""

    def __init__(self):
        super().__init__()
        self.mix, self.last = conv(4, 4), conv(1, 1)

    def forward(self, x):
        parts = [x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]]
        y = self.mix(torch.cat(parts, 1))
        n, _, h, w = y.shape
        y = y.view(n, 1, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, 1, 2 * h, 2 * w)
        return self.last(y)


class Moved(nn.Module):
    """Rolls, halves side by side, rows averaged away and spread again."""

    def __init__(self):
        super().__init__()
        self.first, self.second = conv(1, 1), conv(1, 1)

    def forward(self, x):
        y = torch.roll(self.first(x), (1, -2), dims=(2, 3))
        left, right = y.split([4, y.shape[3] - 4], dim=3)
        return torch.cat([right, left], dim=3) + self.second(x).amax(2, keepdim=True)


class Unfolded(nn.Module):
    """A convolution written as unfold, matrix product and fold."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(4, 18))
        self.first = conv(1, 2)

    def forward(self, x):
        x = self.first(x)
        windows = F.unfold(x, 3, stride=2, padding=1)
        y = self.weight @ windows
        return F.fold(y, (2 * (x.shape[2] // 2), 2 * (x.shape[3] // 2)), 2, stride=2)


# module, shape of its input, how it is probed
MODULES = {
    "resnet": (ResNet, (1, 1, 30, 26), {}),
    "unet transposed": (lambda: UNet("transposed"), (1, 1, 16, 12), {}),
    "unet overlapping": (lambda: UNet("overlapping"), (1, 1, 16, 12), {}),
    "unet output padding": (lambda: UNet("output padding"), (1, 1, 16, 12), {}),
    "unet nearest": (lambda: UNet("nearest"), (1, 1, 16, 12), {}),
    "unet bilinear": (lambda: UNet("bilinear"), (1, 1, 16, 12), {"impulse": True}),
    "unet corners": (lambda: UNet("corners"), (1, 1, 16, 12), {"impulse": True}),
    "aspp": (ASPP, (1, 1, 17, 15), {}),
    "shufflenet unit": (ShuffleUnit, (1, 1, 18, 17), {}),
    "dense block": (Dense, (1, 1, 14, 15), {}),
    "fpn p2": (FPN, (1, 1, 22, 20), {"key": "p2"}),
    "fpn p3": (FPN, (1, 1, 22, 20), {"key": "p3"}),
    "fpn p4": (FPN, (1, 1, 22, 20), {"key": "p4"}),
    "mbconv": (lambda: nn.Sequential(conv(1, 2), MBConv(1), MBConv(2)), (1, 1, 20, 17), {}),
    "hrnet high": (HRNet, (1, 1, 18, 16), {"key": "high"}),
    "hrnet low": (HRNet, (1, 1, 18, 16), {"key": "low"}),
    "inception": (Inception, (1, 1, 15, 17), {}),
    "wavenet": (WaveNet, (1, 1, 40), {}),
    "volume": (Volume, (1, 1, 7, 8, 6), {}),
    "super-resolution": (SuperResolution, (1, 1, 9, 8), {}),
    "circular": (lambda: Wrapped("circular"), (1, 1, 16, 15), {}),
    "reflect": (lambda: Wrapped("reflect"), (1, 1, 16, 15), {}),
    "replicate": (lambda: Wrapped("replicate"), (1, 1, 16, 15), {}),
    "channels last": (ChannelsLast, (1, 1, 20, 18), {}),
    "focus": (Focus, (1, 1, 12, 10), {}),
    "moved": (Moved, (1, 1, 9, 11), {}),
    "unfolded": (Unfolded, (1, 1, 12, 10), {}),
}


def held(module):
    """Holds the gates of squeeze-and-excitation at 1, so that only the direct path is probed."""
    for part in module.modules():
        if isinstance(part, SqueezeExcite):
            part.gate.register_forward_hook(lambda gate, given, made: torch.ones_like(made))
    return module


@pytest.mark.parametrize(("make", "shape", "how"), MODULES.values(), ids=MODULES)
def test_units_see_what_probing_finds(make, shape, how):
    module = positive(make())
    network = rf.from_torch(module, shape)
    pixels = shape[2:]
    seen = probed(held(module), shape, **how)
    units = chosen_units(seen.shape[len(pixels) :])
    gated = any(isinstance(part, SqueezeExcite) for part in module.modules())
    options = {"input_size": pixels, "output": how.get("key"), "ignore_global": gated}
    field = rf.receptive_field(network, **options)
    for unit in units:
        mask = seen[(..., *unit)]
        assert field.box(unit, clip=True) == bounding(mask), unit
        image = np.zeros(pixels)
        erf = rf.erf(network, unit=unit, method="direct", **options)
        places = tuple(
            slice(o, o + n) for o, n in zip(erf.origin, erf.to_numpy().shape, strict=True)
        )
        image[places] = erf.to_numpy()
        np.testing.assert_array_equal(image > 0, mask, err_msg=str(unit))


def test_the_probe_sees_a_wrong_padding():
    """The comparison can fail: one pixel of padding more moves the boxes."""

    class Shifted(nn.Module):
        def forward(self, x):
            return F.avg_pool2d(F.pad(x, (0, 1, 0, 0)), (1, 3), stride=1)

    seen = probed(Shifted(), (1, 1, 6, 6))
    wrong = rf.Sequential(rf.AvgPool((1, 3), stride=1, padding=(0, (1, 0))))
    field = rf.receptive_field(wrong, input_size=6)
    assert field.box((3, 3), clip=True) != bounding(seen[..., 3, 3])
