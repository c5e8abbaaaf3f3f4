"""Stated against initialised gains on ResNets, and both against the gradients of a real one.

    python -m bench.meanfield

1. Total variation and σ between the fields of `resnet18` and `resnet50` on 224 × 224 pixels with
   the gains that they state and with those of `initialised("he")`, layers 1 to 4.
2. A ResNet-18 of `WIDTH` channels whose weights are drawn by He and whose batch norms are frozen at
   their statistics over `FROZEN` images, 8 images for each of `DRAWS` draws: how far the measured
   field lies from both, and how far it would lie from its own mean by chance: half the sum of
   E|N(0, e²)| = e·√(2/π) over the pixels' standard errors e.

Some minutes of one core.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

import fastrf as rf
from bench.record import write
from bench.report import meanfield

WIDTH, FROZEN, DRAWS = 32, 16, 80
LAYERS = ("layer1", "layer2", "layer3", "layer4")
MEASURED = {"layer1": 32, "layer2": 64}
"""Units, and the pixels of the images that they are measured on."""


class Block(nn.Module):
    """ResNet's basic block, as torchvision has it."""

    def __init__(self, reads: int, writes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(reads, writes, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(writes, writes, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(writes), nn.BatchNorm2d(writes)
        shortcut = nn.Conv2d(reads, writes, 1, stride, bias=False), nn.BatchNorm2d(writes)
        self.downsample = nn.Sequential(*shortcut) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        found: torch.Tensor = (y + self.downsample(x)).relu()
        return found


class ResNet18(nn.Module):
    """Up to its last map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        reads = width
        for name, stride in zip(LAYERS, (1, 2, 2, 2), strict=True):
            writes = reads * stride
            self.add_module(
                name, nn.Sequential(Block(reads, writes, stride), Block(writes, writes, 1))
            )
            reads = writes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.bn1(self.conv1(x)).relu())
        for name in LAYERS:
            x = getattr(self, name)(x)
        return x


def frozen(size: int) -> Any:
    """Fills a module with weights by He, and freezes its batch norms at their statistics."""
    images = torch.randn(FROZEN, 3, size, size, generator=torch.Generator().manual_seed(9))

    def fill(module: nn.Module) -> None:
        for part in module.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.normal_(part.weight, 0, math.sqrt(2 / part.weight[0].numel()))
            elif isinstance(part, nn.BatchNorm2d):
                part.reset_running_stats()
                part.momentum = 1.0
        module.train()(images)
        module.eval()

    return fill


def whole(field: rf.ERF, size: int) -> np.ndarray:
    """A field on its whole image."""
    image = np.zeros((size, size))
    places = zip(field.origin, field.shape, strict=True)
    image[tuple(slice(at, at + n) for at, n in places)] = field.to_numpy()
    return image


def distance(one: rf.ERF, other: rf.ERF, size: int) -> float:
    """Total variation."""
    return float(np.abs(whole(one, size) - whole(other, size)).sum() / 2)


def stated(size: int = 224) -> list[dict[str, Any]]:
    rows = []
    for name in ("resnet18", "resnet50"):
        network = rf.zoo.get(name)
        drawn = network.initialised("he")
        for layer in LAYERS:
            fields = [rf.erf(net, layer, input_size=size) for net in (network, drawn)]
            sigma = [float(field.std[0]) for field in fields]
            rows.append(
                {
                    "network": name,
                    "layer": layer,
                    "total_variation": distance(*fields, size),
                    "sigma": sigma,
                }
            )
    return rows


def measured() -> list[dict[str, Any]]:
    rows = []
    for layer, size in MEASURED.items():
        module = ResNet18(WIDTH)
        network = rf.from_torch(module, (1, 3, size, size))
        drawn = network.initialised("he")
        found = rf.empirical(
            module, (8, 3, size, size), layer, draws=DRAWS, initialise=frozen(size), network=drawn
        )
        fields = [rf.erf(net, layer, input_size=size) for net in (network, drawn)]
        comparison = rf.compare(fields[1], found)
        sigma = next(row for row in comparison.rows if row.name.startswith("std"))
        rows.append(
            {
                "layer": layer,
                "size": size,
                "from_stated": distance(found, fields[0], size),
                "from_initialised": distance(found, fields[1], size),
                "by_chance": float(found.standard_error.sum() * math.sqrt(2 / math.pi) / 2),
                "sigma": sigma.experiment,
                "sigma_error": sigma.error,
                "sigma_stated": float(fields[0].std[0]),
                "sigma_initialised": sigma.theory,
            }
        )
    return rows


def main() -> None:
    torch.set_num_threads(1)
    results = {
        "width": WIDTH,
        "frozen": FROZEN,
        "draws": DRAWS,
        "stated": stated(),
        "measured": measured(),
    }
    print(meanfield(results))
    write("meanfield", results)


if __name__ == "__main__":
    main()
