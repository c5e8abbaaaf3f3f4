"""PyTorch modules of other domains, held against probes of the modules themselves: which pixels of
the input reach which unit, told by infinities, which no positive weight stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import fastrf as rf
from fastrf.errors import InputError, UnsupportedOperator

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402
from torch import Tensor, nn  # noqa: E402


def positive(module: nn.Module) -> nn.Module:
    """The module in double precision with positive weights: no infinity can vanish in it."""
    module = module.eval().double()
    with torch.no_grad():
        for tensor in (*module.parameters(), *module.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(tensor.abs() + 0.1)
    return module


def seen(module: nn.Module, shape: Sequence[int]) -> list[np.ndarray]:
    """Per spatial axis which of its pixels (columns) reach which unit (rows)."""
    found = []
    for axis in range(2, len(shape)):
        columns = []
        for pixel in range(shape[axis]):
            x = torch.ones(*shape, dtype=torch.float64)
            x.select(axis, pixel).fill_(torch.inf)
            with torch.no_grad():
                reached = ~torch.isfinite(module(x))
            columns.append(reached.movedim(axis, 0).flatten(1).any(1).numpy())
        found.append(np.stack(columns, axis=1))
    return found


def boxes(field: rf.ReceptiveField, counts: Sequence[int], axis: int) -> list[Any]:
    """The ends along an axis of the boxes of a line of units."""
    middle = [n // 2 for n in counts]
    ends = []
    for unit in range(counts[axis]):
        middle[axis] = unit
        box = field.box(tuple(middle), clip=True)
        assert box is not None
        ends.append(box[axis])
    return ends


def agree(module: nn.Module, *shapes: Sequence[int], **options: Any) -> None:
    """fastrf's boxes are those of the probe, for every shape."""
    module = positive(module)
    for shape in shapes:
        network = rf.from_torch(module, shape)
        field = rf.receptive_field(network, input_size=shape[2:], **options)
        probed = seen(module, shape)
        for axis, reached in enumerate(probed):
            ends = [(int(r.argmax()), len(r) - 1 - int(r[::-1].argmax())) for r in reached]
            assert boxes(field, [len(p) for p in probed], axis) == ends


class Function(nn.Module):
    """A module that is a function of its input and its parts."""

    def __init__(self, function: Callable[..., Any], *parts: nn.Module) -> None:
        super().__init__()
        self.function = function
        self.parts = nn.ModuleList(parts)

    def forward(self, *x: Tensor) -> Any:
        return self.function(*x, *self.parts)


# --- sets of channels in the batch ----------------------------------------------------------


def separated(x: Tensor, encoder: nn.Module, mask: nn.Module, decoder: nn.Module) -> Tensor:
    """As Conv-TasNet: masks of two sources, each decoded by itself."""
    features = encoder(x)
    masked = mask(features).view(1, 2, 4, -1) * features.unsqueeze(1)
    return decoder(masked.view(2, 4, -1)).view(1, 2, -1)


def test_sources_are_decoded_one_by_one() -> None:
    parts = nn.Conv1d(1, 4, 6, 3), nn.Conv1d(4, 8, 3, padding=1), nn.ConvTranspose1d(4, 1, 6, 3)
    module = Function(separated, *parts)
    agree(module, (1, 1, 36), (1, 1, 33))
    layers = rf.from_torch(module, (1, 1, 36)).nodes
    assert layers["parts.2"].layer.bind(1) == rf.ConvTranspose(
        6, stride=3, channels=2, groups=2, gain=3.0
    ).bind(1)


def test_images_behind_one_another_go_through_the_same_layers() -> None:
    tower = nn.Sequential(
        nn.Conv2d(2, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2),
        nn.GroupNorm(2, 4), nn.AvgPool2d(2), nn.Upsample(scale_factor=2),
    )  # fmt: skip

    def both(x: Tensor, y: Tensor, tower: nn.Module) -> Tensor:
        first, second = tower(torch.cat([x, y])).chunk(2)
        return first - second

    network = rf.from_torch(Function(both, tower), [(1, 2, 19, 16)] * 2)
    alone = rf.from_torch(tower, (1, 2, 19, 16))
    wanted = rf.receptive_field(alone, input_size=(19, 16), ignore_global=True)
    for source in network.inputs:
        field = rf.receptive_field(network, input=source, input_size=(19, 16), ignore_global=True)
        assert (field.size, field.stride, field.start) == (wanted.size, wanted.stride, wanted.start)
        assert field.box((2, 1)) == wanted.box((2, 1))


def test_shared_weights_are_read_once_for_every_set() -> None:
    conv = nn.Conv1d(1, 2, 3)
    module = Function(lambda x, conv: conv(x.view(3, 1, 8)), conv)
    network = rf.from_torch(module, (1, 3, 8), weights="trained", channels="full")
    layer = network.nodes["parts.0"].layer.bind(1)
    wanted = np.square(np.concatenate([conv.weight.detach().numpy()] * 3))
    np.testing.assert_allclose(layer.weights.squares(), wanted, rtol=1e-6)


def test_norms_are_read_once_for_every_set() -> None:
    norm, groups = nn.BatchNorm1d(2), nn.GroupNorm(1, 2)
    norm.running_var.copy_(torch.tensor([4.0, 9.0]))
    groups.weight.data.copy_(torch.tensor([2.0, 3.0]))
    module = Function(lambda x, a, b: b(a(x.view(3, 2, 8))).view(1, 6, 8), norm, groups)
    network = rf.from_torch(module.eval(), (1, 6, 8), weights="trained", channels="full")
    first, second = (np.square(network.nodes[f"parts.{i}"].layer.weights) for i in (0, 1))
    np.testing.assert_allclose(first.ravel(), [1 / 4, 1 / 9] * 3, rtol=1e-4)  # eps = 1e-5
    np.testing.assert_allclose(second.ravel(), [4, 9] * 3, rtol=1e-6)


# --- products over some of the channels -----------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_involution(groups: int) -> None:
    def involution(x: Tensor, kernels: nn.Module) -> Tensor:
        n, c, h, w = x.shape
        kernel = kernels(x).view(n, groups, 1, 9, h, w)
        windows = F.unfold(x, 3, padding=1).view(n, groups, c // groups, 9, h, w)
        return (kernel * windows).sum(3).view(n, c, h, w)

    agree(Function(involution, nn.Conv2d(8, 9 * groups, 1)), (1, 8, 5, 6))


@pytest.mark.parametrize("channel", range(6))
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)])
def test_channels_are_repeated_in_their_order(channel: int, order: tuple[int, ...]) -> None:
    """Factor j reads j pixels to the left, the other factor none: every channel of the product says
    by its box which factor it has."""

    def product(x: Tensor, mix: nn.Module) -> Tensor:
        factors = torch.cat([F.pad(x, (shift, -shift)) for shift in (1, 3, 4)], 1)
        both = mix(x).view(1, 2, 3, -1) * factors.view(1, 1, 3, -1)
        return both.permute(0, *order[1:], 3).reshape(1, 6, -1)[:, channel : channel + 1]

    agree(Function(product, nn.Conv1d(1, 6, 1)), (1, 1, 9))


# --- writing into a part --------------------------------------------------------------------


def spectral(x: Tensor, mix: nn.Module) -> Tensor:
    """A Fourier layer: the lowest frequencies, written into a spectrum of zeros."""
    spectrum = torch.fft.rfft2(x)
    kept = torch.zeros_like(spectrum)
    kept[:, :, :2, :3] = spectrum[:, :, :2, :3]
    kept[:, :, -2:, :3] = spectrum[:, :, -2:, :3]
    return torch.fft.irfft2(kept, s=x.shape[-2:]) + mix(x)


def test_what_is_written_into_zeros_is_read_with_them() -> None:
    network = rf.from_torch(Function(spectral, nn.Conv2d(2, 2, 3, padding=1)), (1, 2, 8, 8))
    field = rf.receptive_field(network, input_size=8)
    assert field.size == (None, None)
    assert field.box((0, 0), clip=True) == ((0, 7), (0, 7))
    assert rf.receptive_field(network, ignore_global=True).size == (3, 3)


def test_a_part_that_is_written_is_not_the_whole() -> None:
    def framed(x: Tensor, conv: nn.Module) -> Tensor:
        frame = x.new_zeros(1, 2, 10, 10)
        frame[:, :, 1:-1, 1:-1] = conv(x)
        return frame * 2

    module = Function(framed, nn.Conv2d(2, 2, 3, padding=1))
    for unknown in ("error", "identity"):
        with pytest.raises(UnsupportedOperator, match="writes into a part"):
            rf.from_torch(module, (1, 2, 8, 8), unknown=unknown)
    network = rf.from_torch(module, (1, 2, 8, 8), unknown="global")
    assert rf.receptive_field(network, input_size=8).box((0, 0), clip=True) == ((0, 7), (0, 7))


def test_a_part_of_a_map_is_refused_even_so() -> None:
    """The rest of the map would have to be followed, too."""

    def marked(x: Tensor, conv: nn.Module) -> Tensor:
        y = conv(x)
        y[:, :, :1] = 0.5 * x[:, :, :1]
        return y

    module = Function(marked, nn.Conv2d(2, 2, 3, padding=1))
    for unknown in ("error", "identity", "global"):
        with pytest.raises(UnsupportedOperator, match="writes into a part"):
            rf.from_torch(module, (1, 2, 8, 8), unknown=unknown)


# --- sequences, constants, inputs -----------------------------------------------------------


def test_groups_are_normalised_in_sequences() -> None:
    """As the attention of diffusion models does."""

    def attention(x: Tensor, norm: nn.Module, conv: nn.Module) -> Tensor:
        return conv(norm(x.flatten(2)).view(x.shape))

    module = Function(attention, nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3))
    network = rf.from_torch(module, (1, 4, 8, 6))
    assert network.nodes["parts.0"].layer == rf.Norm("group")
    for groups, statistics in ((1, "layer"), (4, "instance")):
        module.parts[0] = nn.GroupNorm(groups, 4)
        network = rf.from_torch(module, (1, 4, 8, 6))
        assert network.nodes["parts.0"].layer == rf.Norm(statistics)


def test_one_channel_times_a_scale_of_each() -> None:
    scale = torch.tensor([2.0, 3.0], dtype=torch.float64).view(1, 2, 1)
    agree(Function(lambda x, c: c(x.mean(1, keepdim=True) * scale), nn.Conv1d(2, 2, 3)), (1, 4, 9))


def test_coordinates_beside_the_channels() -> None:
    def located(x: Tensor, conv: nn.Module) -> Tensor:
        rows = torch.linspace(-1, 1, x.shape[2]).view(1, 1, -1, 1).expand(1, 1, *x.shape[2:])
        return conv(torch.cat([rows.double(), x, rows.double()], 1))

    agree(Function(located, nn.Conv2d(4, 3, 3, 2)), (1, 2, 9, 8), (1, 2, 8, 7))


def test_inputs_that_nothing_reads_are_none() -> None:
    network = rf.from_torch(
        Function(lambda x, y, conv: conv(x), nn.Conv2d(2, 2, 3)), [(1, 2, 8, 8)] * 2
    )
    assert len(network.inputs) == 1
    assert rf.receptive_field(network).size == (3, 3)


@pytest.mark.parametrize("length", [4, 12])
def test_indices_that_the_module_computes(length: int) -> None:
    """As the slow pathway of SlowFast: every third frame."""

    def slow(x: Tensor, conv: nn.Module) -> Tensor:
        frames = torch.linspace(0, x.shape[2] - 3, x.shape[2] // 3).long()
        return conv(torch.index_select(x, 2, frames))

    shape = (1, 2, 3 * length, 5)
    agree(Function(slow, nn.Conv2d(2, 2, (2, 3))), shape)


# --- spectra --------------------------------------------------------------------------------


def spectrum(length: int, window: Tensor, center: bool) -> Callable[[Tensor], Tensor]:
    def magnitudes(x: Tensor) -> Tensor:
        found = torch.stft(
            x, length, 4, len(window), window.to(x), center=center, return_complex=True
        )
        return found.abs()

    return magnitudes


@pytest.mark.parametrize(
    ("center", "inner", "samples"), [(False, 16, 60), (True, 9, 61), (False, 9, 60)]
)
def test_a_spectrum_reads_its_frames(center: bool, inner: int, samples: int) -> None:
    """Infinities would spoil what the window's zeros leave out: a finite step is told instead."""
    window = torch.arange(1.0, inner + 1, dtype=torch.float64)
    magnitudes = spectrum(16, window, center)
    network = rf.from_torch(Function(magnitudes), (1, samples))
    field = rf.receptive_field(network, input_size=samples)
    x = torch.linspace(1, 2, samples, dtype=torch.float64)[None] ** 3
    before = magnitudes(x)
    reached = torch.zeros(before.shape[2], samples, dtype=torch.bool)
    for sample in range(samples):
        changed = x.clone()
        changed[0, sample] += 1e3
        reached[:, sample] = ((magnitudes(changed) - before).abs() > 1e-6).any(1)[0]
    for frame, pixels in enumerate(reached.numpy()):
        ends = np.flatnonzero(pixels)
        assert field.box((frame,), clip=True) == ((ends[0], ends[-1]),)


def test_a_spectrum_weighs_its_samples_by_the_window() -> None:
    window = torch.hann_window(8, periodic=False, dtype=torch.float64) + 0.5
    module = Function(spectrum(8, window, center=False))
    module.window = window
    network = rf.from_torch(module, (1, 40), weights="trained")
    image = rf.erf(network, input_size=40, unit=(3,)).image
    squares = np.square(window.numpy())
    np.testing.assert_allclose(image, squares / squares.sum(), rtol=1e-6)


def test_spectra_of_several_signals() -> None:
    window = torch.ones(8)

    def both(x: Tensor, mix: nn.Module) -> Tensor:
        found = torch.stft(x.flatten(0, 1), 8, 4, window=window, center=False, return_complex=True)
        return mix(found.abs().reshape(1, 10, -1))

    network = rf.from_torch(Function(both, nn.Conv1d(10, 3, 2)), (1, 2, 40))
    stft = next(n.layer for n in network.nodes.values() if isinstance(n.layer, rf.Conv))
    assert stft.bind(1) == rf.Conv(8, stride=4, channels=10, groups="depthwise").bind(1)
    assert rf.receptive_field(network).size == (12,)


# --- what stands for a module ---------------------------------------------------------------


def stem() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)
    )


def made_of(module: nn.Module) -> dict[str, Any]:
    module.eval()
    x = torch.rand(1, 3, 9, 8)
    scripted = torch.jit.script(module)
    return {
        "exported": torch.export.export(module, (x,)),
        "scripted": scripted,
        "traced": torch.jit.trace(module, x),
        "frozen": torch.jit.freeze(scripted),
    }


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_programs_and_torchscript_are_the_module_that_they_were_made_of() -> None:
    module = stem()
    shape = (1, 3, 9, 8)
    wanted = rf.receptive_field(rf.from_torch(module, shape))
    trained = rf.from_torch(module.eval(), shape, weights="trained").bound.nodes.values()
    gains = [n.layer.gain for n in trained if isinstance(n.layer, rf.Conv)]
    for kind, given in made_of(module).items():
        network = rf.from_torch(given, shape)
        field = rf.receptive_field(network)
        assert (field.size, field.stride, field.start) == (wanted.size, wanted.stride, wanted.start)
        convs = [n.layer for n in network.bound.nodes.values() if isinstance(n.layer, rf.Conv)]
        assert [layer.gain for layer in convs] == [1.0, 1.0]
        if kind in ("exported", "traced"):  # the others have the norm in the weights
            own = rf.from_torch(given, shape, weights="trained").bound.nodes.values()
            found = [n.layer.gain for n in own if isinstance(n.layer, rf.Conv)]
            np.testing.assert_allclose(found, gains, rtol=1e-6)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_programs_say_what_they_cannot_take() -> None:
    given = made_of(stem())
    with pytest.raises(InputError, match=r"shape.*9.*check input_shape|Guard failed"):
        rf.from_torch(given["exported"], (1, 3, 11, 8))
    with pytest.raises(InputError, match="import the module that it was made of"):
        rf.from_torch(given["scripted"], (1, 4, 9, 8))
    with pytest.raises(InputError, match="by place"):
        rf.from_torch(given["scripted"], {"input": (1, 3, 9, 8)})


class ObserverBase(nn.Module):
    """Called like the base of quantisation's observers."""

    def forward(self, x: Tensor) -> Tensor:
        if x.max() > 1:
            return x
        return x + 0


def test_observers_pass_their_map_on() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 3), ObserverBase(), nn.Conv2d(3, 3, 3))
    assert rf.receptive_field(rf.from_torch(module, (1, 3, 9, 9))).size == (5, 5)


def test_fake_quantisation_passes_its_map_on() -> None:
    def quantised(x: Tensor, conv: nn.Module) -> Tensor:
        return conv(torch.fake_quantize_per_tensor_affine(x, 0.1, 0, 0, 255))

    network = rf.from_torch(Function(quantised, nn.Conv1d(2, 2, 3, 2)), (1, 2, 9))
    assert [type(n.layer).__name__ for n in network.nodes.values()] == ["Input", "Conv"]
