"""Random modules exported to ONNX: the network of the file against that of the module.

Both are imported by code that shares little but the layers, from graphs that are spelled very
differently. Boxes of units, ERFs and gains have to be the same.
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
import pytest

import fastrf as rf

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

import test_torch_random as random_modules  # noqa: E402
from torch import nn  # noqa: E402

SEEDS = 16
"""Modules: some seconds of them."""

TOLERANCE = 1e-11
"""Of the peak. The same sums of fewer than 2^15 terms in another order differ by 2·2^15·2^-53 of
them at most, and no cancellation in a covariance takes more than a tenth of what it starts with."""


class Maker(random_modules.Maker):
    """Adds what has no weights to compare with autograd: norms, activations, padding modes."""

    def part(self, c: int, size: tuple[int, ...]) -> nn.Module:
        kinds = (
            "conv conv transposed grouped depthwise shuffle split cat residual pad pool resize "
            "pixel norm activation same"
        )
        part: nn.Module = getattr(self, f"make_{self.one_of(*kinds.split())}")(c, size)
        return part

    def make_norm(self, c: int, size: Any) -> nn.Module:
        if max(size) == 1:
            raise ValueError  # over one pixel, statistics of channels and of the map are the same
        return self.one_of(self.layer("BatchNorm")(c), nn.GroupNorm(1, c), nn.GroupNorm(c, c))

    def make_activation(self, c: int, size: Any) -> nn.Module:
        return self.one_of(
            nn.ReLU(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.PReLU(),
            nn.LeakyReLU(), nn.ELU(), nn.Tanh(), nn.ReLU6(), nn.Dropout(),
        )  # fmt: skip

    def make_same(self, c: int, size: Any) -> nn.Module:
        mode = self.one_of("zeros", "circular", "reflect", "replicate")
        kernel = self.one_of(3, 5)
        return self.layer("Conv")(
            c, 4, kernel, padding="same", dilation=self.number(1, 2), padding_mode=mode
        )


def module_of(seed: int) -> tuple[nn.Module, tuple[int, ...]]:
    torch.manual_seed(seed)
    module, shape = Maker(seed).module()
    return module.eval(), shape


def exported(module: nn.Module, shape: tuple[int, ...], opset: int) -> bytes | None:
    """The file that TorchScript's exporter writes, None where it refuses the module."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        # It is deprecated, says so, and needs nothing but PyTorch; most files were made by it.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                module, (torch.zeros(shape),), file, dynamo=False, opset_version=opset
            )
        except torch.onnx.errors.SymbolicValueError:
            return None
    return file.getvalue()


def agree(ours: rf.Network, theirs: rf.Network, size: tuple[int, ...], what: object) -> None:
    """Whether the fields of two networks are the same at the corners and in the middle."""
    fields = [rf.receptive_field(net, net.outputs[0], input_size=size) for net in (ours, theirs)]
    out = fields[0].layers[-1].shape
    assert fields[1].layers[-1].shape == out, what
    for unit in {(0,) * len(out), tuple(n // 2 for n in out), tuple(n - 1 for n in out)}:
        boxes = [field.box(unit, clip=True) for field in fields]
        assert boxes[0] == boxes[1], (what, unit)
        if boxes[0] is None:
            continue  # reads nothing but padding
        first, second = (
            rf.erf(net, net.outputs[0], input_size=size, unit=unit) for net in (ours, theirs)
        )
        assert (first.origin, first.exact) == (second.origin, second.exact), (what, unit)
        image = first.to_numpy()
        np.testing.assert_allclose(
            second.to_numpy(), image, rtol=0, atol=TOLERANCE * image.max(), err_msg=str(what)
        )
        assert second.log_gain == pytest.approx(first.log_gain, abs=1e-9), (what, unit)


def test_random_modules() -> None:
    compared = 0
    for seed in range(SEEDS):
        module, shape = module_of(seed)
        try:
            network = rf.from_torch(module, shape)
            rf.receptive_field(network, network.outputs[0], input_size=shape[2:])
        except rf.errors.InputError:
            continue  # reads nothing, which test_torch_random looks at
        opset = (11, 13, 16, 18, 20)[seed % 5]
        file = exported(module, shape, opset)
        if file is not None:
            agree(network, rf.from_onnx(file), shape[2:], (seed, opset, module))
            compared += 1
    assert compared > SEEDS // 2


class Everything(nn.Module):
    """What the exporter that replaced TorchScript's spells in its own way."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.SiLU()
        )
        self.split = nn.Conv2d(4, 4, 3, padding="same", groups=2, padding_mode="circular")
        self.mixed = nn.Sequential(nn.GroupNorm(1, 8), nn.GELU("tanh"), nn.AvgPool2d(3, 2, 1))
        self.up = nn.ConvTranspose2d(8, 8, 3, (2, 1), 1, (1, 0))

    def forward(self, x: Any) -> Any:
        x = nn.functional.pad(self.stem(x), (1, 0, 0, 1))
        a, b = x.chunk(2, 1)
        y = torch.cat([b, self.split(a) - a], 1)
        n, c, h, w = y.shape
        y = y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        z = nn.functional.interpolate(self.mixed(y), size=(h, w), mode="bilinear")
        return self.up(nn.functional.gelu(y + 0.5 * z) * 2)[:, :, 1:-1]


def test_the_exporter_of_today() -> None:
    pytest.importorskip("onnxscript")
    module, shape = Everything().eval(), (1, 3, 17, 14)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch about itself
        program = torch.onnx.export(module, (torch.zeros(shape),), dynamo=True, verbose=False)
    network = rf.from_torch(module, shape)
    agree(network, rf.from_onnx(program.model_proto), shape[2:], module)
