"""Layers: map sizes against PyTorch, the rules of padding, canonical values, refused values."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
import pickle
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastrf import layers as ly
from fastrf.errors import InputError
from fastrf.layers.checks import MAXIMUM, MAXIMUM_CHANNELS, MAXIMUM_RATIO
from fastrf.maps import Table, Window

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVG = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_ADAPTIVE = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
_LINEAR: dict[int, str] = {1: "linear", 2: "bilinear", 3: "trilinear"}


# --- sizes, against PyTorch ------------------------------------------------------------------


def size_out(layer: ly.Layer, size: tuple[int, ...]) -> tuple[int, ...] | None:
    """Size of the map that the layer writes; None where it refuses."""
    bound = layer.bind(len(size))
    try:
        maps = bound.maps(size, len(size))
    except InputError:
        return None
    assert maps[0].size_in == size
    for before, after in itertools.pairwise(maps):
        assert before.size_out == after.size_in
    return maps[-1].size_out


def meta(*shape: int) -> torch.Tensor:
    """A tensor that has a shape and no values: PyTorch works the sizes out alone."""
    return torch.empty(shape, device="meta")


def torch_size(function: Any, size: tuple[int, ...], channels: int = 1) -> tuple[int, ...] | None:
    """Size of the map that PyTorch's operation writes; None where it refuses or is empty."""
    try:
        shape = tuple(function(meta(1, channels, *size)).shape[2:])
    except RuntimeError:
        return None
    return shape if min(shape) else None


def flat(pads: tuple[tuple[int, int], ...]) -> list[int]:
    """Pads in the order of F.pad, last axis first."""
    return [p for pair in reversed(pads) for p in pair]


def test_conv_sizes_on_the_whole_grid_of_one_axis() -> None:
    grid = itertools.product(range(1, 8), (1, 2, 3, 4), (1, 2, 3), (1, 2), (0, 2), (0, 1))
    refused = 0
    for n, k, s, d, lo, hi in grid:
        expected = torch_size(
            lambda x, a=(k, s, d, lo, hi): F.conv1d(
                F.pad(x, a[3:]), meta(1, 1, a[0]), None, a[1], 0, a[2]
            ),
            (n,),
        )
        assert size_out(ly.Conv(k, s, d, ((lo, hi),)), (n,)) == expected
        refused += expected is None
    assert refused > 50


def draw(seed: int, ndim: int, low: int, high: int) -> tuple[int, ...]:
    random = np.random.default_rng(seed)
    return tuple(int(v) for v in random.integers(low, high + 1, ndim))


@pytest.mark.parametrize("ndim", [2, 3])
def test_conv_and_transposed_conv_sizes_in_more_dimensions(ndim: int) -> None:
    for seed in range(0, 700, 7):
        k, s, d = (draw(seed + i, ndim, 1, 3) for i in range(3))
        n, lo, hi = (
            draw(seed + 3, ndim, 3, 9),
            draw(seed + 4, ndim, 0, 3),
            draw(seed + 5, ndim, 0, 3),
        )
        pads = tuple(zip(lo, hi, strict=True))
        expected = torch_size(
            lambda x, k=k, s=s, d=d, pads=pads: _CONV[ndim](
                F.pad(x, flat(pads)), meta(1, 1, *k), None, s, 0, d
            ),
            n,
        )
        assert size_out(ly.Conv(k, s, d, pads), n) == expected
        extra = tuple(
            v % max(a, b) for v, a, b in zip(draw(seed + 6, ndim, 0, 8), s, d, strict=True)
        )
        expected = torch_size(
            lambda x, k=k, s=s, d=d, lo=lo, extra=extra: _TRANSPOSE[ndim](
                x, meta(1, 1, *k), None, s, lo, extra, 1, d
            ),
            n,
        )
        assert size_out(ly.ConvTranspose(k, s, d, lo, output_padding=extra), n) == expected


def test_transposed_conv_sizes_on_the_whole_grid_of_one_axis() -> None:
    for n, k, s, d, p in itertools.product((1, 2, 5), (1, 2, 3), (1, 2, 3), (1, 2), (0, 1, 2)):
        for extra in range(max(s, d)):
            expected = torch_size(
                lambda x, k=k, s=s, d=d, p=p, extra=extra: F.conv_transpose1d(
                    x, meta(1, 1, k), None, s, p, extra, 1, d
                ),
                (n,),
            )
            assert size_out(ly.ConvTranspose(k, s, d, p, output_padding=extra), (n,)) == expected


@pytest.mark.parametrize("ceil", [False, True])
def test_pooling_sizes_on_the_whole_grid_of_one_axis(ceil: bool) -> None:
    for n, k, s, d in itertools.product(range(1, 11), (1, 2, 3, 4, 5), (1, 2, 3, 4), (1, 2, 3)):
        for p in range(k // 2 + 1):  # PyTorch refuses more
            expected = torch_size(
                lambda x, k=k, s=s, d=d, p=p: F.max_pool1d(x, k, s, p, d, ceil), (n,)
            )
            assert size_out(ly.MaxPool(k, s, d, p, ceil_mode=ceil), (n,)) == expected
            if d == 1:
                expected = torch_size(lambda x, k=k, s=s, p=p: F.avg_pool1d(x, k, s, p, ceil), (n,))
                assert size_out(ly.AvgPool(k, s, padding=p, ceil_mode=ceil), (n,)) == expected


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("ceil", [False, True])
def test_pooling_sizes_in_more_dimensions(ndim: int, ceil: bool) -> None:
    for seed in range(0, 600, 6):
        k, s, d = draw(seed, ndim, 2, 4), draw(seed + 1, ndim, 1, 4), draw(seed + 2, ndim, 1, 2)
        p, n = draw(seed + 3, ndim, 0, 1), draw(seed + 4, ndim, 4, 12)
        expected = torch_size(lambda x, k=k, s=s, d=d, p=p: _MAX[ndim](x, k, s, p, d, ceil), n)
        assert size_out(ly.MaxPool(k, s, d, p, ceil_mode=ceil), n) == expected
        expected = torch_size(lambda x, k=k, s=s, p=p: _AVG[ndim](x, k, s, p, ceil), n)
        assert size_out(ly.AvgPool(k, s, padding=p, ceil_mode=ceil), n) == expected
        default = torch_size(lambda x, k=k: _MAX[ndim](x, k), n)
        assert size_out(ly.MaxPool(k), n) == default


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_resizing_sizes(ndim: int) -> None:
    for seed in range(0, 90, 3):
        n, m = draw(seed, ndim, 1, 9), draw(seed + 1, ndim, 1, 9)
        assert size_out(ly.AdaptivePool(m), n) == torch_size(
            lambda x, m=m: _ADAPTIVE[ndim](x, m), n
        )
        assert size_out(ly.AdaptivePool(m, "max"), n) == m
        assert size_out(ly.GlobalPool(), n) == (1,) * ndim
        assert size_out(ly.FullyConnected(), n) == (1,) * ndim
        assert size_out(ly.Attention(), n) == n
        for mode in ("nearest", "nearest-exact", "linear"):
            name = _LINEAR[ndim] if mode == "linear" else mode
            layer: Any = ly.Upsample(size=m, mode=mode)
            assert size_out(layer, n) == m
            scales = [1.5, 2.0, 0.5, 2.75][seed // 3 % 4 :][:1] * ndim
            expected = torch_size(
                lambda x, name=name, scales=scales: F.interpolate(
                    x, scale_factor=scales, mode=name
                ),
                n,
            )
            assert size_out(ly.Upsample(tuple(scales), mode), n) == expected  # type: ignore[arg-type]
        corners: Any = ly.Upsample(2, "linear", coordinates="align_corners")
        assert size_out(corners, n) == tuple(2 * v for v in n)


def test_scales_are_exact_fractions() -> None:
    """⌊n·scale⌋ in whole numbers: 0.1·30 is 3 pixels, and a third of nine is three."""
    assert size_out(ly.Upsample(0.1), (30,)) == (3,)
    assert size_out(ly.Upsample("1/3"), (9,)) == (3,)
    assert size_out(ly.Upsample(1 / 3), (9,)) == (3,)
    assert ly.Upsample(0.1).bind(1).scale == (Fraction(1, 10),)


def test_pixel_shuffle_sizes_and_channels() -> None:
    x = meta(1, 36, 4, 6)
    assert size_out(ly.PixelShuffle(3), (4, 6)) == tuple(F.pixel_shuffle(x, 3).shape[2:])
    assert ly.PixelShuffle(3).bind(2).output_channels([36]) == F.pixel_shuffle(x, 3).shape[1]
    assert size_out(ly.PixelUnshuffle(2), (4, 6)) == tuple(F.pixel_unshuffle(x, 2).shape[2:])
    assert ly.PixelUnshuffle(2).bind(2).output_channels([36]) == F.pixel_unshuffle(x, 2).shape[1]
    assert size_out(ly.PixelUnshuffle(5), (4, 6)) is None
    assert size_out(ly.PixelShuffle((1, 2, 3)), (4, 5, 6)) == (4, 10, 18)


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
def test_padding_sizes_and_limits(mode: str) -> None:
    name: Any = "zeros" if mode == "constant" else mode
    refused = 0
    for n, lo, hi in itertools.product((1, 2, 3, 5), range(5), range(5)):
        expected = torch_size(lambda x, p=(lo, hi): F.pad(x, p, mode=mode), (n,))
        assert size_out(ly.Pad(((lo, hi),), name), (n,)) == expected, (n, lo, hi)
        refused += expected is None
    assert (refused > 0) == (mode in ("reflect", "circular"))
    assert size_out(ly.Crop(((1, 2), 0)), (6, 5)) == (3, 5)
    assert size_out(ly.Crop(3), (6, 7)) is None


# --- named padding ---------------------------------------------------------------------------


def pads(layer: ly.Layer, n: int) -> tuple[int, int]:
    """(lo, hi) as the map shows it: where the first window starts, how far the last one reaches."""
    (spatial,) = layer.bind(1).maps((n,), 1)
    (window,) = spatial.axes
    assert isinstance(window, Window)
    assert spatial.size_out is not None
    end = (spatial.size_out[0] - 1) * window.stride - window.lo + window.span
    return window.lo, max(end - n + 1, 0)


def test_tensorflows_published_example() -> None:
    """TensorFlow's documentation of "SAME" and "VALID": width 13, filter 6, stride 5. VALID drops
    the last columns and leaves 2 outputs; SAME pads 1 before and 2 behind and leaves 3."""
    assert size_out(ly.Conv(6, 5, padding="valid"), (13,)) == (2,)
    same = ly.Conv(6, 5, padding="same_upper")
    assert size_out(same, (13,)) == (3,)
    assert pads(same, 13) == (1, 2)
    assert pads(ly.Conv(6, 5, padding="same_lower"), 13) == (2, 1)


def test_mobilenets_first_layer() -> None:
    """MobileNet's 3×3 stride 2 on 224 pixels: Keras pads ((0, 1), (0, 1)) before "valid"."""
    layer = ly.Conv(3, 2, padding="same_upper")
    assert pads(layer, 224) == (0, 1)
    assert pads(layer, 225) == (1, 1)
    assert size_out(layer, (224, 225)) == (112, 113)


@pytest.mark.parametrize("layer", [ly.Conv, ly.MaxPool, ly.AvgPool])
def test_tensorflows_same_rule(layer: Any) -> None:
    for n, k, s, d in itertools.product(range(1, 15), range(1, 6), range(1, 5), (1, 2)):
        effective = (k - 1) * d + 1
        # tf.nn: if n % s == 0: max(effective − s, 0), else max(effective − n % s, 0).
        total = max(effective - (s if n % s == 0 else n % s), 0)
        for name, lo in (("same_upper", total // 2), ("same_lower", total - total // 2)):
            found = layer(k, s, d, name)
            assert size_out(found, (n,)) == (math.ceil(n / s),)
            explicit = layer(k, s, d, ((lo, total - lo),))
            bound, same = found.bind(1).maps((n,), 1), explicit.bind(1).maps((n,), 1)
            for a, b in zip(bound, same, strict=True):
                assert a.size_out == b.size_out
                assert repr(a.axes) == repr(b.axes)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
def test_pytorchs_same_rule() -> None:
    for n, k, d in itertools.product((5, 6, 11), (1, 2, 3, 4, 5), (1, 2, 3)):
        layer = ly.Conv(k, dilation=d, padding="same")
        assert size_out(layer, (n,)) == (n,)
        weight = torch.ones(1, 1, k, dtype=torch.float64)
        impulse = torch.zeros(1, 1, n, dtype=torch.float64)
        impulse[0, 0, n // 2] = 1
        seen = F.conv1d(impulse, weight, None, 1, "same", d)[0, 0].nonzero().flatten().tolist()
        (window,) = layer.bind(1).maps((n,), 1)[0].axes
        assert isinstance(window, Window)
        expected = [o for o in range(n) if any(o + m * d - window.lo == n // 2 for m in range(k))]
        assert seen == expected


def test_causal_padding_never_looks_ahead() -> None:
    for k, d in itertools.product((1, 2, 3, 5), (1, 2, 4)):
        (spatial,) = ly.Conv(k, dilation=d, padding="causal").bind(1).maps((40,), 1)
        (window,) = spatial.axes
        assert isinstance(window, Window)
        assert window.span - window.lo == 0  # the last tap of output o reads pixel o
        assert spatial.size_out == (40,)


def test_names_per_axis() -> None:
    layer = ly.Conv(3, (2, 1), padding=("same_upper", "causal")).bind(2)
    assert layer.padding == ("same_upper", (2, 0))
    assert size_out(layer, (7, 7)) == (4, 7)
    mixed = ly.Conv(3, padding=("valid", (1, 0), 2)).bind(3)
    assert mixed.padding == ((0, 0), (1, 0), (2, 2))


# --- canonical values ------------------------------------------------------------------------

SPELLINGS = [
    (ly.Conv(3, padding=1), ly.Conv((3, 3), (1, 1), [1, 1], ((1, 1), [1, 1]))),
    (ly.Conv(3, padding="valid"), ly.Conv(3)),
    (ly.Conv(3, padding="same"), ly.Conv(3, padding=1)),
    (ly.Conv(3, padding="same_upper"), ly.Conv(3, padding="same")),
    (ly.Conv(4, padding="same_lower"), ly.Conv(4, padding=((2, 1), (2, 1)))),
    (ly.Conv(np.int64(3), gain=2), ly.Conv(3, gain=np.float32(2.0))),
    (ly.Conv(3, padding_mode="reflect"), ly.Conv(3)),
    (ly.Conv(2, taps=[[2, 2], [2, 2]]), ly.Conv(2)),
    (ly.Conv(2, taps=np.array([[1, 2], [3, 4]])), ly.Conv(2, taps=((0.5, 1), (1.5, 2)))),
    (ly.Conv(1, channels=np.int32(8), groups=np.int64(4)), ly.Conv(1, channels=8, groups=4)),
    (ly.ConvTranspose(2, 2), ly.ConvTranspose((2, 2), (2, 2), padding="valid")),
    (ly.MaxPool(3), ly.MaxPool(3, 3)),
    (ly.AvgPool(3, ceil_mode=np.bool_(True)), ly.AvgPool(3, ceil_mode=True)),
    (ly.Upsample(1.5), ly.Upsample(("3/2", Fraction(3, 2)))),
    (ly.Upsample(2), ly.Upsample(np.float32(2.0))),
    (ly.Upsample(2), ly.Upsample(np.int64(2), coordinates="align_corners")),
    (ly.Crop(1), ly.Crop((1, (1, 1)))),
    (ly.Activation(), ly.Activation("relu", gain=0.5)),
    (ly.Dropout(0), ly.Dropout(0.0)),
    (ly.ChannelShuffle(), ly.ChannelShuffle(1)),
    (ly.FullyConnected(10, 7), ly.FullyConnected(10, (7, 7))),
]


@pytest.mark.parametrize(("one", "other"), SPELLINGS, ids=repr)
def test_spellings_bind_to_the_same_layer(one: ly.Layer, other: ly.Layer) -> None:
    bound = one.bind(2)
    assert bound == other.bind(2)
    assert hash(bound) == hash(other.bind(2))
    assert repr(bound) == repr(other.bind(2))  # the types, too: 1 and 1.0 are equal in Python


def test_layers_of_equal_values_are_equal() -> None:
    weights = np.random.default_rng(0).normal(size=(4, 3, 3, 3))
    kinds = (np.array, torch.tensor, np.ndarray.tolist)
    layers = [ly.Conv(3, weights=make(weights)) for make in (*kinds, *kinds)]
    assert len(set(layers)) == 1
    assert all(a == b for a, b in itertools.product(layers, layers))
    assert ly.Conv([3, 3]) == ly.Conv(np.array([3, 3])) == ly.Conv((3, 3))
    assert hash(ly.Conv([3, 3])) == hash(ly.Conv(np.array([3, 3])))
    others = [ly.Conv(3), ly.MaxPool(3), ly.Conv(3, weights=2 * weights), ly.Identity(), ly.Input()]
    assert len({*others, layers[0]}) == 6
    assert ly.Identity() != ly.Input()
    assert ly.Conv(3) != 3


@pytest.mark.parametrize("layer", [one for pair in SPELLINGS for one in pair], ids=repr)
def test_binding_twice_changes_nothing(layer: ly.Layer) -> None:
    bound = layer.bind(2)
    assert bound.bind(2) == bound
    assert pickle.loads(pickle.dumps(bound)) == bound


def test_normalised_taps_stay_as_they_are() -> None:
    """Dividing taps whose rounded sum is not quite 1 again and again would never end."""
    random = np.random.default_rng(11)
    for shape in [(3, 3), (7, 7), (2, 5)]:
        once = ly.Conv(shape, taps=random.random(shape)).bind(2)
        assert once.bind(2) == once
        assert abs(np.sum(once.taps) - 1) < 49 * np.finfo(np.float64).eps
    huge = ly.Conv(2, taps=[1e308, 5e307]).bind(1)  # a sum that overflows
    assert huge.taps == pytest.approx((2 / 3, 1 / 3), rel=1e-15)


def test_implied_ndim() -> None:
    assert ly.Conv(3).implied_ndim is None
    assert ly.Conv(3, padding=((1, 2),)).implied_ndim == 1
    assert ly.Conv((3, 3, 3)).implied_ndim == 3
    assert ly.Upsample(("3/2", 2)).implied_ndim == 2
    assert ly.Upsample(size=[7]).implied_ndim == 1
    assert ly.Crop((1, 2, 3)).implied_ndim == 3
    assert ly.Conv(3, taps=(1, 2, 1)).implied_ndim is None


def test_channels() -> None:
    assert ly.Conv(3).output_channels([8]) is None
    assert ly.Conv(3, channels=4).output_channels([8]) == 4
    assert ly.Conv(3, groups="depthwise").output_channels([8]) == 8
    assert ly.Conv(3, channels=16, groups="depthwise").output_channels([8]) == 16
    assert ly.Concat().output_channels([1, 2, 3]) == 6
    assert ly.Concat().output_channels([1, None]) is None
    for merge in (ly.Add(), ly.Multiply()):
        assert merge.output_channels([1, 1]) == 1
        assert merge.output_channels([1, 8, None]) == 8
        assert merge.output_channels([None, 1]) is None
        assert merge.output_channels([None, None]) is None
    assert ly.ChannelSlice(-3).output_channels([8]) == 3
    assert ly.ChannelSlice(1, -1, 2).output_channels([8]) == 3
    assert ly.FullyConnected(10).output_channels([8]) == 10
    assert ly.Input(3).output_channels([]) == 3


def test_gains() -> None:
    assert ly.Activation().pointwise_gain == 0.5
    assert ly.Activation("gelu").pointwise_gain == pytest.approx(0.45585, abs=1e-5)
    assert ly.Activation("unheard of").pointwise_gain == 1.0
    assert ly.Activation("gelu", gain=0.3).pointwise_gain == 0.3
    assert ly.Dropout(0.75).pointwise_gain == 4.0
    assert ly.Norm(gain=2.0).pointwise_gain == 2.0
    assert ly.Identity().pointwise_gain == 1.0
    assert [ly.Norm(s).whole_map for s in ("batch", "channel", "lrn")] == [False] * 3
    statistics: tuple[Any, ...] = ("batch_train", "layer", "group", "instance")
    assert all(ly.Norm(s).whole_map for s in statistics)


def test_the_table_of_layers_is_complete() -> None:
    public = {n: getattr(ly, n) for n in ly.__all__ if n not in ("LAYERS", "Layer")}
    assert public == ly.LAYERS
    for name, cls in ly.LAYERS.items():
        assert cls.__name__ == name
        assert dataclasses.is_dataclass(cls)
        assert cls.__dataclass_params__.frozen  # type: ignore[attr-defined]


# --- bad input -------------------------------------------------------------------------------

HUGE = 10**30

BAD = [
    # kernels, strides, dilations
    *(
        (cls(**{"kernel": 3, field: value}), f"{cls.__name__}: {field}=", "at least 1")
        for cls in (ly.Conv, ly.ConvTranspose, ly.MaxPool, ly.AvgPool)
        for field in ("kernel", "stride", "dilation")
        for value in (0, -1, 2.0, True, "3", (3, 0), float("nan"), [3, [3]], Fraction(3))
    ),
    (ly.Conv(None), "kernel=None", "at least 1"),
    (ly.Conv(np.array([3, 2.5])), "kernel=array([3. , 2.5])", "whole number"),
    (ly.Conv((3, 3, 3)), "kernel=(3, 3, 3) has 3 values for 2 axes", "one per axis"),
    (ly.Conv(()), "has 0 values", "one per axis"),
    (ly.Conv(HUGE), f"kernel={HUGE}", str(MAXIMUM)),
    (ly.MaxPool(3, HUGE), f"stride={HUGE}", str(MAXIMUM)),
    (ly.Conv(3, padding=HUGE), f"padding={HUGE}", str(MAXIMUM)),
    (ly.Conv(10**5000), "thousands of digits", str(MAXIMUM)),
    (ly.Conv(3, channels=HUGE), f"channels={HUGE}", str(MAXIMUM_CHANNELS)),
    (ly.Input(2**20 + 1), "channels=1048577", str(MAXIMUM_CHANNELS)),
    # padding
    (ly.Conv(3, padding=-1), "padding=-1 must be at least 0", "use Crop"),
    (ly.Conv(3, padding=((0, -2), 1)), "padding=((0, -2), 1)", "use Crop"),
    (ly.Conv(3, padding=1.0), "padding=1.0", "whole numbers"),
    (ly.Conv(3, padding=True), "padding=True", "whole numbers"),
    (ly.Conv(3, padding=None), "padding=None", "whole numbers"),
    (ly.Conv(3, padding=((1, 2, 3), 1)), "padding=((1, 2, 3), 1)", "(lo, hi) pairs"),
    (ly.Conv(3, padding=(1, 1, 1)), "padding=(1, 1, 1) has 3 values for 2 axes", "pair per axis"),
    (ly.Conv(3, padding="full"), "padding='full' is unknown", "same_upper"),
    (ly.MaxPool(3, padding="SAME"), "padding='SAME' is unknown", "same_upper"),
    (ly.Conv(3, 2, padding="same"), "needs stride 1, got 2", "same_upper"),
    (ly.AvgPool(3, 2, padding="same"), "needs stride 1, got 2", "same_upper"),
    (ly.MaxPool(3, padding="same"), "needs stride 1, got 3", "same_upper"),
    (ly.ConvTranspose(3, padding="same"), "padding='same' is unknown", "valid"),
    (ly.ConvTranspose(3, padding=-1), "padding=-1", "at least 0"),
    (ly.Pad("same"), "padding='same' must be numbers", "needs a kernel"),
    (ly.Pad(-1), "padding=-1", "use Crop"),
    (ly.Crop(-1), "amount=-1", "use Pad"),
    (ly.Crop("valid"), "amount='valid' must be numbers", ""),
    (ly.Pad(1, "mirror"), "mode='mirror' is unknown", "zeros, reflect, replicate, circular"),  # type: ignore[arg-type]
    (ly.Conv(3, padding_mode="constant"), "padding_mode='constant' is unknown", "zeros"),  # type: ignore[arg-type]
    (ly.ConvTranspose(3, 2, output_padding=2), "output_padding=2", "smaller than the stride 2"),
    (ly.ConvTranspose(3, output_padding=-1), "output_padding=-1", "at least 0"),
    # channels, groups, gains
    (ly.Conv(3, channels=0), "channels=0", "at least 1"),
    (ly.Conv(3, channels=True), "channels=True", "whole number"),
    (ly.Conv(3, channels=3.0), "channels=3.0", "whole number"),  # type: ignore[arg-type]
    (ly.Conv(3, channels=6, groups=4), "groups=4 must divide channels=6", ""),
    (ly.Conv(3, groups=0), "groups=0", "at least 1"),
    (ly.Conv(3, groups=None), "groups=None", "depthwise"),  # type: ignore[arg-type]
    (ly.Conv(3, groups="dept"), "groups='dept'", "depthwise"),  # type: ignore[arg-type]
    (ly.Conv(3, groups=2.0), "groups=2.0", "depthwise"),  # type: ignore[arg-type]
    *(
        (layer(gain), f"gain={gain!r}", "finite number above 0")
        for layer in (
            lambda g: ly.Conv(3, gain=g),
            lambda g: ly.Attention(gain=g),
            lambda g: ly.Norm(gain=g),
            lambda g: ly.FullyConnected(gain=g),
            lambda g: ly.Activation(gain=g),
        )
        for gain in (0, -1.0, float("nan"), float("inf"), "2", True, 1j, 10**400)
        if gain != 10**400
    ),
    (ly.Conv(3, gain=None), "gain=None", "above 0"),  # type: ignore[arg-type]
    (ly.Conv(3, gain=10**400), "gain=1000", "finite"),
    *(
        (ly.Dropout(p), f"p={p!r}", "below 1")  # type: ignore[arg-type]
        for p in (1, 1.5, -0.1, float("nan"), None, "0.5", True)
    ),
    (ly.Activation(3), "function=3", "name"),  # type: ignore[arg-type]
    (ly.Norm("Batch"), "statistics='Batch' is unknown", "instance"),  # type: ignore[arg-type]
    (ly.Norm(["batch"]), "statistics=['batch']", "choose one of"),  # type: ignore[arg-type]
    (ly.MaxPool(3, ceil_mode=1), "ceil_mode=1", "True or False"),  # type: ignore[arg-type]
    (ly.AvgPool(3, count_include_pad="no"), "count_include_pad='no'", "True or False"),  # type: ignore[arg-type]
    # taps
    (ly.Conv(3, taps=(1, 2, 1)), "taps of shape (3,) do not fit kernel=(3, 3)", "per tap"),
    (ly.Conv(2, taps=[[1, 2], [1, -1]]), "taps must be finite", "at least 0"),
    (ly.Conv(2, taps=[[1, 2], [1, math.nan]]), "taps must be finite", "at least 0"),
    (ly.Conv(2, taps=[[1, 2], [1, math.inf]]), "taps must be finite", "at least 0"),
    (ly.Conv(2, taps=np.zeros((2, 2))), "taps must be finite", "not all 0"),
    (ly.Conv(2, taps=[[1, 2], [1]]), "taps must be an array of numbers", "(2, 2)"),
    (ly.Conv(2, taps="abcd"), "taps='abcd' is unknown", "corner, centre-light"),
    (ly.Conv(2, taps=[[1, 2], [1, 1j]]), "taps must be an array of numbers", "(2, 2)"),
    # resizing
    (ly.Upsample(), "either scale or size", ""),
    (ly.Upsample(2, size=8), "not both", ""),
    (ly.Upsample(0), "scale=0 must be above 0", ""),
    (ly.Upsample(-2), "scale=-2 must be above 0", ""),
    (ly.Upsample("2/0"), "scale='2/0' is not a number", "3/2"),
    (ly.Upsample("two"), "scale='two' is not a number", "3/2"),
    (ly.Upsample(True), "scale=True is not a number", "3/2"),
    (ly.Upsample(math.nan), "scale=nan is not a number", "3/2"),
    (ly.Upsample(math.inf), "scale=inf is not a number", "3/2"),
    (ly.Upsample(HUGE), f"scale={HUGE}", str(MAXIMUM_RATIO)),
    (ly.Upsample("100001/100003"), "scale='100001/100003'", str(MAXIMUM_RATIO)),
    (ly.Upsample((2, 2, 2)), "scale=(2, 2, 2) has 3 values for 2 axes", "one per axis"),
    (ly.Upsample(2, "bilinear"), "mode='bilinear' is unknown", "linear"),  # type: ignore[arg-type]
    (ly.Upsample(2, "linear", coordinates="corner"), "coordinates='corner'", "half_pixel"),  # type: ignore[arg-type]
    (ly.Upsample(size=0), "size=0", "at least 1"),
    (ly.PixelShuffle(0), "factor=0", "at least 1"),
    (ly.PixelUnshuffle(1.5), "factor=1.5", "whole number"),
    (ly.AdaptivePool(0), "output_size=0", "at least 1"),
    (ly.AdaptivePool(None), "output_size=None", "at least 1"),
    (ly.AdaptivePool(1, "mean"), "mode='mean' is unknown", "avg, max"),  # type: ignore[arg-type]
    (ly.GlobalPool("sum"), "mode='sum' is unknown", "avg, max"),  # type: ignore[arg-type]
    (ly.FullyConnected(0), "channels=0", "at least 1"),
    (ly.FullyConnected(map_size=0), "map_size=0", "at least 1"),
    # channels
    (ly.Input(0), "channels=0", "at least 1"),
    (ly.Input("RGB"), "channels='RGB'", "whole number"),  # type: ignore[arg-type]
    (ly.ChannelSlice(0.5), "start=0.5", "whole number"),  # type: ignore[arg-type]
    (ly.ChannelSlice(0, "2"), "stop='2'", "whole number"),  # type: ignore[arg-type]
    (ly.ChannelSlice(step=0), "step=0", "at least 1"),
    (ly.ChannelSlice(step=-1), "step=-1", "at least 1"),
    (ly.ChannelShuffle(0), "groups=0", "at least 1"),
]


@pytest.mark.parametrize(("layer", "value", "rule"), BAD)
def test_refused_values(layer: ly.Layer, value: str, rule: str) -> None:
    with pytest.raises(InputError) as refusal:
        layer.bind(2)
    message = str(refusal.value)
    assert message.startswith(f"{type(layer).__name__}: ")
    assert value in message
    assert rule in message
    assert "\n" not in message
    assert len(message) < 250


ODD_VALUES = [
    None,
    True,
    -1,
    0,
    HUGE,
    -HUGE,
    10**5000,
    0.5,
    math.nan,
    "",
    "x" * 1000,
    "two\nlines",
    (),
    [],
    {},
    (1,),
    ((1, 1), (1, 1)),
    ((((1,),),),),
    object(),
    np.float64("nan"),
    np.array([1, 2]),
    np.zeros((2, 2)),
    1j,
    b"3",
    Fraction(1, 3),
]


def refusal(layer: ly.Layer) -> str:
    """Why the layer is refused on a map of 64 × 64 pixels and 64 channels; "" where it is not."""
    try:
        bound = layer.bind(2)
        bound.maps((64, 64), 2)
        if bound.inputs[0]:
            bound.output_channels([64])
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("cls", ly.LAYERS.values(), ids=lambda cls: cls.__name__)
def test_no_value_of_any_field_raises_anything_but_an_input_error(cls: type[ly.Layer]) -> None:
    needed = {"kernel": 3, "factor": 2, "scale": 2}
    for field in dataclasses.fields(cls):
        for value in ODD_VALUES:
            names = {f.name for f in dataclasses.fields(cls)}
            given: dict[str, Any] = {k: v for k, v in needed.items() if k in names}
            layer = cls(**(given | {field.name: value}))
            message = refusal(layer)
            assert "\n" not in message
            assert len(message) < 400
            if not message:
                assert layer.bind(2).bind(2) == layer.bind(2)


SHRUNK = [
    (ly.Conv(8), "a map of 7 pixels with padding (0, 0) is smaller than the kernel's extent 8"),
    (ly.Conv(3, dilation=4), "extent 9"),
    (ly.MaxPool(9, padding=((0, 1), 4)), "a map of 7 pixels with padding (0, 1)"),
    (ly.AvgPool(18, 2, ceil_mode=True), "extent 18"),
    (ly.Crop(4), "a map of (7, 7) pixels shrinks to (-1, -1); crop less"),
    (ly.ConvTranspose(3, padding=5), "a map of (7, 7) pixels shrinks to (-1, -1); crop less"),
    (ly.Upsample("1/8"), "a map of (7, 7) pixels shrinks to (0, 0); scale it less"),
    (ly.FullyConnected(map_size=8), "extent 8"),
    (ly.Pad(7, "reflect"), "must be smaller than the map size 7"),
    (ly.Conv(9, padding=8, padding_mode="circular"), "must not exceed the map size 7"),
    (ly.PixelUnshuffle(2), "factor=(2, 2) must divide the map size (7, 7)"),
]


@pytest.mark.parametrize(("layer", "message"), SHRUNK, ids=repr)
def test_maps_that_cannot_exist(layer: ly.Layer, message: str) -> None:
    with pytest.raises(InputError) as refusal:
        layer.bind(2).maps((7, 7), 2)
    assert message in str(refusal.value)
    assert "; " in str(refusal.value)


@pytest.mark.parametrize(
    "layer",
    [
        ly.Upsample(MAXIMUM_RATIO, "linear"),
        ly.Upsample(MAXIMUM_RATIO),
        ly.PixelShuffle(MAXIMUM),
        ly.ConvTranspose(3, MAXIMUM),
        ly.Pad(MAXIMUM, "replicate"),
        ly.Pad(MAXIMUM),
        ly.Conv(3, padding=MAXIMUM),
        ly.MaxPool(3, 1, padding=MAXIMUM),
    ],
    ids=repr,
)
def test_maps_beyond_machine_integers_are_refused_before_anything_is_allocated(
    layer: ly.Layer,
) -> None:
    with pytest.raises(InputError, match=rf"grows to .* beyond {MAXIMUM} per axis"):
        layer.bind(1).maps((100_000,), 1)


@pytest.mark.parametrize(
    ("layer", "size", "numbers"),
    [
        # Three outputs of at most ceil(8/3) + 1 = 4 pixels: 0 … 2, 2 … 5 and 5 … 7.
        (ly.AdaptivePool(3), 8, 3 * 4),
        # A triangle of 4 pixels to either side, behind each of two outputs.
        (ly.Upsample(Fraction(1, 4), "linear", antialias=True), 8, 2 * 8),
        (ly.Upsample(Fraction(1, 4), "linear"), 8, 2 * 2),
        (ly.Upsample(2, "cubic"), 8, 16 * 4),
    ],
    ids=repr,
)
def test_tables_are_as_large_as_is_checked_before(
    layer: ly.Layer, size: int, numbers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = layer.bind(1)
    monkeypatch.setattr("fastrf.layers.checks.MAXIMUM_TABLE", numbers)
    (move,) = bound.maps((size,), 1)
    (table,) = move.axes
    assert isinstance(table, Table)
    assert table.taps.size == numbers
    monkeypatch.setattr("fastrf.layers.checks.MAXIMUM_TABLE", numbers - 1)
    with pytest.raises(InputError, match=rf"of \d+ × \d+ numbers, more than {numbers - 1}"):
        bound.maps((size,), 1)


def test_what_is_no_window_is_given_by_name() -> None:
    window = ["kernel", "stride", "dilation", "padding"]
    for layer in (ly.Conv, ly.ConvTranspose, ly.Filter, ly.MaxPool, ly.AvgPool):
        own = inspect.signature(layer).parameters.values()
        assert [p.name for p in own if p.kind is p.POSITIONAL_OR_KEYWORD] == window


def test_only_weights_below_0_have_signs() -> None:
    for weights, signed in (([0.0, 1.0, 3.0], False), ([0.0, -1.0, 3.0], True)):
        (move,) = ly.Filter(3, weights=weights).bind(1).maps(None, 1)
        assert (move.coefficients is not None) == signed


def test_channels_that_do_not_fit() -> None:
    cases: list[tuple[ly.Layer, list[int | None], str]] = [
        (ly.PixelShuffle(2).bind(2), [6], "channels divisible by 4, got 6"),
        (ly.Add(), [3, 4], r"\[3, 4\] channels"),
        (ly.Multiply(), [3, None, 4], r"Multiply: the maps read have \[3, 4\] channels"),
        (ly.ChannelSlice(8), [8], "8:None:1 takes none of the 8 channels"),
        (ly.ChannelSlice(3, 2), [8], "takes none"),
        (ly.ChannelSlice(), [None], "give channels= to Input"),
        (ly.ChannelShuffle(3), [8], "groups=3 must divide the 8 channels"),
    ]
    for layer, channels, message in cases:
        with pytest.raises(InputError, match=message):
            layer.output_channels(channels)
