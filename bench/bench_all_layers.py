"""The fields of all layers of a network: in one call, one by one, and by gradients in PyTorch.

    python -m bench.bench_all_layers

1. ``erf(..., layers="all")``, of a network that it has not seen and again, against the same fields
   one by one, by the verb's own engines. Where one by one is slow, some of the layers are timed and
   the others interpolated between them.
2. ResNet-50 at 224 × 224 against automatic differentiation: a ResNet-50 of random weights in
   PyTorch, one forward pass, and one backward pass from each unit to the input, squared and added
   up over the channels. A few units are timed and the others interpolated along the network. That
   is *one* draw of the weights, whose squares scatter about the field by 140% a pixel; `DRAWS` of
   them bring that down to 10%. Weights take no gradient and batch normalisation is in evaluation
   mode, the cheapest that PyTorch can do here, on `THREADS` threads.

Every time but "at first" is the best of several runs, with the graph of layers known from the
first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import fastrf as rf
from bench.record import duration, table, write

THREADS = 2
DRAWS = 200
"""Draws of the weights for a standard error of 10% a pixel: a squared normal variable has twice
its squared mean as variance, and 2/200 = 0.1²."""

SAMPLES = 12
"""Layers that are timed where timing all would take too long."""

UNEVEN = np.multiply.outer([1.0, 2.0, 4.0, 2.0, 1.0], [1.0, 1.0, 3.0, 1.0, 1.0]) + np.eye(5)

CASES: dict[str, tuple[Callable[[], rf.Network], dict[str, Any]]] = {
    "plain(1000, 3)": (lambda: rf.zoo.plain(1000, 3), {}),
    "residual(300)": (lambda: rf.zoo.residual(300), {}),
    "50 layers of 5×5 taps that are no product": (
        lambda: rf.Sequential(*[rf.Conv(5, padding=2, taps=UNEVEN)] * 50),
        {},
    ),
    "resnet50": (rf.zoo.resnet50, {}),
    "densenet121": (rf.zoo.densenet121, {}),
    "vgg16 at 224": (rf.zoo.vgg16, {"input_size": 224}),
    "resnet50 at 224": (rf.zoo.resnet50, {"input_size": 224}),
    "inception_v3 at 299": (rf.zoo.inception_v3, {"input_size": 299}),
    "densenet121 at 224": (rf.zoo.densenet121, {"input_size": 224}),
    "50 residual blocks behind a stem, at 64": (
        lambda: rf.Sequential(
            rf.Conv(7, 2, padding=3),
            rf.MaxPool(3, 2, padding=1),
            *[rf.Residual(rf.Conv(3, padding=1), rf.Conv(3, padding=1))] * 50,
        ),
        {"input_size": 64},
    ),
}


def best(run: Callable[[], Any], seconds: float = 1.0) -> float:
    """Shortest of the runs that fit into some seconds, one beforehand and three at least."""
    run()
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < seconds:
        start = time.perf_counter()
        run()
        taken.append(time.perf_counter() - start)
    return min(taken)


def sampled(names: list[str], run: Callable[[str], Any]) -> float:
    """Seconds for all names in their order, from those of a few."""
    at = np.unique(np.linspace(0, len(names) - 1, SAMPLES).round().astype(int))
    taken = [best(lambda i=i: run(names[i]), 0.2) for i in at]
    return float(np.interp(np.arange(len(names)), at, taken).sum())


def fields(make: Callable[[], rf.Network], options: dict[str, Any]) -> dict[str, Any]:
    """Number of fields; seconds of all at once, of a network that is new and again, and of all one
    by one."""
    net = make()
    names = list(rf.erf(net, layers="all", workers=1, **options))  # compiles
    parts = net.nodes.values(), net.outputs
    new = rf.Network(*parts, ndim=net.ndim, endpoints=net.endpoints)
    start = time.perf_counter()
    rf.erf(new, layers="all", workers=1, **options)
    first = time.perf_counter() - start
    together = best(lambda: rf.erf(net, layers="all", workers=1, **options))
    alone = sampled(names, lambda name: rf.erf(net, name, workers=1, **options))
    return {"fields": len(names), "first": first, "together": together, "alone": alone}


# --- automatic differentiation --------------------------------------------------------------


class ResNet50:
    """A ResNet-50 of random weights, every map of which is kept, under fastrf's names."""

    def __init__(self) -> None:
        self.maps: dict[str, torch.Tensor] = {}
        self.random = torch.Generator().manual_seed(0)

    def __call__(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self._relu("relu", self._conv("conv1", "bn1", x, 64, 7, 2))
        x = self._put("maxpool", F.max_pool2d(x, 3, 2, 1))
        for stage, count in enumerate((3, 4, 6, 3), 1):
            for unit in range(count):
                x = self._unit(f"layer{stage}.{unit}", x, 32 * 2**stage, 1 + (stage > 1 > unit))
        return self.maps

    def _unit(self, name: str, x: torch.Tensor, width: int, stride: int) -> torch.Tensor:
        y = self._relu(f"{name}.relu", self._conv(f"{name}.conv1", f"{name}.bn1", x, width, 1, 1))
        y = self._conv(f"{name}.conv2", f"{name}.bn2", y, width, 3, stride)
        y = self._relu(f"{name}.relu_1", y)
        y = self._conv(f"{name}.conv3", f"{name}.bn3", y, 4 * width, 1, 1)
        if x.shape != y.shape:
            down = f"{name}.downsample"
            x = self._conv(f"{down}.0", f"{down}.1", x, 4 * width, 1, stride)
        return self._relu(f"{name}.relu_2", self._put(f"{name}.add", x + y))

    def _conv(
        self, conv: str, norm: str, x: torch.Tensor, channels: int, kernel: int, stride: int
    ) -> torch.Tensor:
        shape = (channels, x.shape[1], kernel, kernel)
        weight = torch.randn(shape, generator=self.random) * (2 / (x.shape[1] * kernel**2)) ** 0.5
        y = self._put(conv, F.conv2d(x, weight, stride=stride, padding=kernel // 2))
        return self._put(norm, F.batch_norm(y, torch.zeros(channels), torch.ones(channels)))

    def _relu(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return self._put(name, F.relu(x))

    def _put(self, name: str, x: torch.Tensor) -> torch.Tensor:
        self.maps[name] = x
        return x


def gradients(names: list[str]) -> tuple[float, float]:
    """Seconds of one forward pass, and of a backward pass from every map's central unit."""
    torch.set_num_threads(THREADS)
    image = torch.randn((1, 3, 224, 224), generator=torch.Generator().manual_seed(1))
    image.requires_grad_(True)
    forward = best(lambda: ResNet50()(image))
    maps = ResNet50()(image)
    assert set(names) <= set(maps), set(names) - set(maps)

    def backward(name: str) -> torch.Tensor:
        y = maps[name]
        _, channels, height, width = y.shape
        seed = torch.zeros_like(y)
        seed[0, :, height // 2, width // 2] = torch.randn(channels)
        (gradient,) = torch.autograd.grad(y, image, seed, retain_graph=True)
        return (gradient**2).sum(dim=1)

    return forward, sampled(names, backward)


def measure() -> dict[str, Any]:
    results: dict[str, Any] = {"threads": THREADS, "draws": DRAWS, "cases": {}}
    for name, (make, options) in CASES.items():
        results["cases"][name] = fields(make, options)
    net = rf.zoo.resnet50()
    names = list(rf.erf(net, input_size=224, layers="all"))
    forward, backward = gradients(names)
    results["autograd"] = {"forward": forward, "backward": backward}
    results["parallel"] = best(lambda: rf.erf(net, input_size=224, layers="all", workers=THREADS))
    return results


def show(results: dict[str, Any]) -> str:
    rows = [
        [
            name,
            str(case["fields"]),
            duration(case["first"]) if "first" in case else "–",  # records before it was taken
            duration(case["together"]),
            duration(case["alone"]),
            f"{case['alone'] / case['together']:.3g}",
        ]
        for name, case in results["cases"].items()
    ]
    own = min(results["parallel"], results["cases"]["resnet50 at 224"]["together"])
    draw = results["autograd"]["forward"] + results["autograd"]["backward"]
    draws = results["draws"]
    peers = [
        ["fastrf", duration(own), "1"],
        ["PyTorch, one draw", duration(draw), f"{draw / own:.4g}"],
        [f"PyTorch, {draws} draws", duration(draws * draw), f"{draws * draw / own:.4g}"],
    ]
    return "\n\n".join(
        [
            table(["network", "fields", "at first", "all at once", "one by one", "ratio"], rows),
            table(["all layers of resnet50 at 224", "time", "ratio"], peers),
        ]
    )


def main() -> None:
    results = measure()
    print(show(results))
    write("all_layers", results)


if __name__ == "__main__":
    main()
