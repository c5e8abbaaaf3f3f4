"""Primitive maps: dense matrices written from their definitions against PyTorch's Jacobians."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from fastrf import layers as ly
from fastrf.maps import (
    IDENTITY,
    AxisMap,
    Everything,
    SpatialMap,
    Spread,
    Table,
    Window,
    factor,
)

Matrix = NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)

# Coefficients that PyTorch computes in double precision from positions below 32: a position has
# at most four roundings of 32·eps/2, a coefficient in [0, 1] as many, and its square twice that.
COEFFICIENT = 4 * 32 * EPS


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On maps this small, waking torch's other threads takes most of the time."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- the definitions of fastrf.maps, as loops ------------------------------------------------


def row(axis: AxisMap, o: int, taps: Matrix | None = None) -> dict[int, float]:
    """Variance with which output o reads each input index."""
    found: dict[int, float] = {}
    if isinstance(axis, Table):
        turn, phase = divmod(o, len(axis.starts))
        for m, v in enumerate(axis.taps[phase]):
            i = int(axis.starts[phase]) + axis.advance * turn + m
            if v:
                found[i] = found.get(i, 0.0) + float(v)
        return found
    assert isinstance(axis, Window | Spread)
    for m in range(axis.kernel):
        v = 1 / axis.kernel if taps is None else float(taps[m])
        if isinstance(axis, Window):
            i = o * axis.stride + m * axis.dilation - axis.lo
        else:
            i, rest = divmod(o + axis.lo - m * axis.dilation, axis.stride)
            if rest:
                continue
        if v:
            found[i] = found.get(i, 0.0) + v
    return found


def dense_axis(axis: AxisMap, n: int, m: int, taps: Matrix | None = None) -> Matrix:
    """The variances of an axis map as a matrix of m outputs and n inputs."""
    if isinstance(axis, Everything):
        return np.full((m, n), 1 / n)
    matrix = np.zeros((m, n))
    for o in range(m):
        for i, v in row(axis, o, taps).items():
            if 0 <= i < n:
                matrix[o, i] += v
    return matrix


def dense(spatial: SpatialMap) -> Matrix:
    """The variances of a separable map, outputs and inputs in C order."""
    assert spatial.size_in is not None
    assert spatial.size_out is not None
    whole = np.full((1, 1), spatial.gain)
    sizes = zip(spatial.axes, spatial.size_in, spatial.size_out, strict=True)
    for number, (axis, n, m) in enumerate(sizes):
        whole = np.kron(whole, dense_axis(axis, n, m, spatial.axis_taps(number)))
    return whole


def variances(layer: ly.Layer, *size: int) -> Matrix:
    """The variance matrix of a layer: the product of its maps' matrices."""
    maps = layer.bind(len(size)).maps(size, len(size))
    whole = np.eye(math.prod(size))
    for spatial in maps:
        whole = dense(spatial) @ whole
    return whole


def squared_jacobian(function: Any, *size: int) -> Matrix:
    """The squared coefficients of a real linear PyTorch operation on one channel, in float64.

    One batch holds every unit vector; its outputs are the columns of the Jacobian.
    """
    count = math.prod(size)
    units = torch.eye(count, dtype=torch.float64).reshape(count, 1, *size)
    return function(units).reshape(count, -1).numpy().T ** 2


# --- fixed coefficients ----------------------------------------------------------------------

AVERAGE = [
    (k, s, p, ceil, count)
    for k, s, p in itertools.product((1, 2, 3, 4), (1, 2, 3), (0, 1, 2))
    if 2 * p <= k  # PyTorch refuses more
    for ceil in (False, True)
    for count in (False, True)
]


@pytest.mark.parametrize(("k", "s", "p", "ceil", "count"), AVERAGE)
def test_average_pooling_squares_pytorchs_coefficients(
    k: int, s: int, p: int, ceil: bool, count: bool
) -> None:
    layer = ly.AvgPool(k, s, padding=p, ceil_mode=ceil, count_include_pad=count)
    for n in (4, 5, 6, 7, 8):
        expected = squared_jacobian(lambda x: F.avg_pool1d(x, k, s, p, ceil, count), n)
        np.testing.assert_allclose(variances(layer, n), expected, rtol=8 * EPS)


def test_ceil_mode_on_a_map_smaller_than_the_kernel() -> None:
    """PyTorch keeps one window that reaches beyond the map, and divides by what it holds."""
    for n, k, s in [(3, 4, 2), (1, 2, 2), (5, 7, 3)]:
        expected = squared_jacobian(lambda x, k=k, s=s: F.avg_pool1d(x, k, s, 0, True), n)
        found = variances(ly.AvgPool(k, s, ceil_mode=True), n)
        np.testing.assert_allclose(found, expected, rtol=8 * EPS)
        found = variances(ly.MaxPool(k, s, ceil_mode=True), n)
        np.testing.assert_allclose(found, np.full((1, n), 1 / n), rtol=8 * EPS)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("count", [False, True])
def test_average_pooling_in_two_dimensions(ceil: bool, count: bool) -> None:
    layer = ly.AvgPool((3, 2), (2, 3), padding=(1, (1, 1)), ceil_mode=ceil, count_include_pad=count)
    for size in [(5, 6), (6, 7), (4, 8)]:
        expected = squared_jacobian(
            lambda x: F.avg_pool2d(x, (3, 2), (2, 3), (1, 1), ceil, count), *size
        )
        # Three factors and their products, each rounded: below 16 roundings.
        np.testing.assert_allclose(variances(layer, *size), expected, rtol=16 * EPS)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "linear"])
@pytest.mark.parametrize("scale", [1, 2, 3, "3/2", "2/3", "4/3", "1/2", "5/2", "2/5"])
def test_upsampling_by_a_scale(mode: Any, scale: Any) -> None:
    layer = ly.Upsample(scale, mode)
    for n in (3, 4, 7, 10):
        expected = squared_jacobian(
            lambda x: F.interpolate(x, scale_factor=float(Fraction(scale)), mode=mode), n
        )
        np.testing.assert_allclose(variances(layer, n), expected, rtol=0, atol=COEFFICIENT)


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "linear", "align_corners"])
def test_upsampling_to_a_size(mode: str) -> None:
    corners = True if mode == "align_corners" else None
    name: Any = "linear" if corners else mode
    coordinates: Any = "align_corners" if corners else "half_pixel"
    for n, m in itertools.product((1, 2, 3, 5, 8), (1, 2, 4, 7, 9, 13)):
        layer = ly.Upsample(size=m, mode=name, coordinates=coordinates)
        expected = squared_jacobian(
            lambda x, m=m: F.interpolate(x, m, mode=name, align_corners=corners), n
        )
        np.testing.assert_allclose(variances(layer, n), expected, rtol=0, atol=COEFFICIENT)


def test_upsampling_in_two_and_three_dimensions() -> None:
    layer = ly.Upsample((2, "3/2"), "linear")
    expected = squared_jacobian(
        lambda x: F.interpolate(x, scale_factor=(2.0, 1.5), mode="bilinear"), 3, 4
    )
    np.testing.assert_allclose(variances(layer, 3, 4), expected, rtol=0, atol=COEFFICIENT)
    layer = ly.Upsample((2, 1, "3/2"))  # Spread, identity and Table side by side
    expected = squared_jacobian(lambda x: F.interpolate(x, scale_factor=(2.0, 1.0, 1.5)), 2, 3, 4)
    np.testing.assert_array_equal(variances(layer, 2, 3, 4), expected)


def test_upsampling_with_asymmetric_coordinates() -> None:
    """ONNX: x = o/scale. At scale 3/2 the outputs 0 … 5 read 0, 2/3, 4/3, 2, 8/3, 10/3 → 3."""
    expected = np.zeros((6, 4))
    reads = [(0, 0), (0, 2 / 3), (1, 1 / 3), (2, 0), (2, 2 / 3), (3, 0)]
    for o, (left, weight) in enumerate(reads):
        expected[o, left] = (1 - weight) ** 2
        if weight:
            expected[o, left + 1] = weight**2
    layer = ly.Upsample("3/2", "linear", coordinates="asymmetric")
    np.testing.assert_allclose(variances(layer, 4), expected, rtol=0, atol=COEFFICIENT)


def test_upsampling_weights_keep_their_digits() -> None:
    """At scale 99/100 output 0 reads 1/198: the square of the far weight is right to the last bits,
    which 1 − (1 − 1/198) is not."""
    (spatial,) = ly.Upsample("99/100", "linear").bind(1).maps((100,), 1)
    first = row(spatial.axes[0], 0)
    assert first == {0: (197 / 198) ** 2, 1: (1 / 198) ** 2}


@pytest.mark.parametrize("mode", ["constant", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("pad", [(0, 0), (1, 0), (0, 2), (3, 1), (3, 3)])
def test_padding_reads_what_pytorch_reads(mode: str, pad: tuple[int, int]) -> None:
    name: Any = "zeros" if mode == "constant" else mode
    for n in (4, 5, 9):
        expected = squared_jacobian(lambda x: F.pad(x, pad, mode=mode), n)
        np.testing.assert_array_equal(variances(ly.Pad((pad,), name), n), expected)
    expected = squared_jacobian(lambda x: F.pad(x, (*pad, 2, 1), mode=mode), 5, 4)
    np.testing.assert_array_equal(variances(ly.Pad(((2, 1), pad), name), 5, 4), expected)


def test_cropping_reads_what_is_left() -> None:
    expected = squared_jacobian(lambda x: x[..., 1:-2, :-1], 6, 5)
    np.testing.assert_array_equal(variances(ly.Crop(((1, 2), (0, 1))), 6, 5), expected)


def test_adaptive_and_global_pooling() -> None:
    for n, m in itertools.product(range(1, 12), range(1, 9)):
        expected = squared_jacobian(lambda x, m=m: F.adaptive_avg_pool1d(x, m), n)
        np.testing.assert_allclose(variances(ly.AdaptivePool(m), n), expected, rtol=8 * EPS)
        # Max-pooling routes to each of the pixels that the average reads.
        routed = variances(ly.AdaptivePool(m, "max"), n)
        np.testing.assert_allclose(routed, np.sqrt(expected), rtol=8 * EPS)
    expected = squared_jacobian(lambda x: x.mean((2, 3), keepdim=True), 3, 5)
    np.testing.assert_allclose(variances(ly.GlobalPool(), 3, 5), expected, rtol=8 * EPS)
    np.testing.assert_allclose(variances(ly.GlobalPool("max"), 3, 5), 1 / 15, rtol=8 * EPS)


# --- routing and random weights --------------------------------------------------------------


@pytest.mark.parametrize(("lo", "hi"), [(0, 1), (0, 2), (1, 0), (2, 1)])
def test_pooling_with_padding_on_one_side(lo: int, hi: int) -> None:
    """Only valid pixels share: a max pool's gradient, and an average that leaves padding out."""
    for n, k, s in [(5, 3, 1), (6, 3, 2), (7, 4, 3)]:
        out = (n + lo + hi - k) // s + 1
        expected = np.zeros((out, n))
        for o in range(out):
            valid = [i for i in range(o * s - lo, o * s - lo + k) if 0 <= i < n]
            expected[o, valid] = 1 / len(valid)
        found = variances(ly.MaxPool(k, s, padding=((lo, hi),)), n)
        np.testing.assert_allclose(found, expected, rtol=8 * EPS)
        found = variances(ly.AvgPool(k, s, padding=((lo, hi),), count_include_pad=False), n)
        np.testing.assert_allclose(found, expected**2, rtol=8 * EPS)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize(("k", "s", "d", "p"), [(2, 2, 1, 0), (3, 2, 1, 1), (3, 1, 2, 1)])
def test_max_pooling_shares_among_valid_taps(k: int, s: int, d: int, p: int, ceil: bool) -> None:
    layer = ly.MaxPool(k, s, d, p, ceil_mode=ceil)
    for n in (5, 6, 7, 8):
        found = variances(layer, n)
        assert found.shape[0] == F.max_pool1d(torch.zeros(1, 1, n), k, s, p, d, ceil).shape[-1]
        expected = np.zeros_like(found)
        for o in range(len(found)):
            valid = [i for m in range(k) if 0 <= (i := o * s + m * d - p) < n]
            for i in valid:
                expected[o, i] = 1 / len(valid)
        np.testing.assert_allclose(found, expected, rtol=8 * EPS)
        np.testing.assert_allclose(found.sum(axis=1), 1, rtol=8 * EPS)


TAPS = (1.0, 4.0, 2.0)


@pytest.mark.parametrize(
    ("s", "d", "lo", "hi"), [*itertools.product((1, 2, 3), (1, 2), (0, 2), (1,))]
)
def test_convolutions_have_their_taps_times_gain(s: int, d: int, lo: int, hi: int) -> None:
    taps = np.asarray(TAPS) / sum(TAPS)
    weight = torch.tensor(np.sqrt(3 * taps)).reshape(1, 1, 3)
    layer = ly.Conv(3, s, d, ((lo, hi),), gain=3.0, taps=TAPS)
    expected = squared_jacobian(lambda x: F.conv1d(F.pad(x, (lo, hi)), weight, None, s, 0, d), 9)
    np.testing.assert_allclose(variances(layer, 9), expected, rtol=8 * EPS)
    same = ly.Conv(3, s, d, ((lo, hi),))
    weight = torch.full((1, 1, 3), math.sqrt(1 / 3), dtype=torch.float64)
    expected = squared_jacobian(lambda x: F.conv1d(F.pad(x, (lo, hi)), weight, None, s, 0, d), 9)
    np.testing.assert_allclose(variances(same, 9), expected, rtol=8 * EPS)


@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize(("s", "d", "p"), [*itertools.product((2, 3), (1, 2), (0, 1, 2))])
def test_transposed_convolutions_have_their_taps_times_gain(
    s: int, d: int, p: int, extra: int
) -> None:
    taps = np.asarray(TAPS) / sum(TAPS)
    weight = torch.tensor(np.sqrt(2 * taps)).reshape(1, 1, 3)
    layer = ly.ConvTranspose(3, s, d, p, output_padding=extra, gain=2.0, taps=TAPS)
    expected = squared_jacobian(lambda x: F.conv_transpose1d(x, weight, None, s, p, extra, 1, d), 6)
    np.testing.assert_allclose(variances(layer, 6), expected, rtol=8 * EPS)


def test_taps_that_are_no_product_keep_their_places() -> None:
    taps = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]])
    (spatial,) = ly.Conv((2, 3), taps=taps).bind(2).maps((5, 6), 2)
    assert not spatial.separable
    np.testing.assert_allclose(spatial.taps, taps / 15, rtol=4 * EPS)
    with pytest.raises(TypeError, match="no product"):
        spatial.axis_taps(0)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_with_a_padding_mode(mode: Any, stride: int) -> None:
    """Independent weights: what two taps read from one pixel adds up in variance."""
    pad, n, taps = (2, 1), 6, np.asarray(TAPS) / sum(TAPS)
    index = F.pad(torch.arange(n, dtype=torch.float64).reshape(1, 1, n), pad, mode=mode)
    index = index.reshape(-1).int().tolist()
    out = (n + sum(pad) - 3) // stride + 1
    expected = np.zeros((out, n))
    for o, m in itertools.product(range(out), range(3)):
        expected[o, index[o * stride + m]] += taps[m]
    layer = ly.Conv(3, stride, padding=(pad,), padding_mode=mode, taps=TAPS)
    np.testing.assert_allclose(variances(layer, n), expected, rtol=8 * EPS)


def test_pixel_shuffles_move_every_pixel_once() -> None:
    """Over all channels a coarse pixel holds f² fine ones: gain 1 each, one source per pixel."""
    coarse = squared_jacobian(lambda x: F.interpolate(x, scale_factor=2), 2, 3)
    np.testing.assert_array_equal(variances(ly.PixelShuffle(2), 2, 3), coarse)
    np.testing.assert_array_equal(variances(ly.PixelUnshuffle(2), 4, 6), coarse.T / 4)


# --- unbounded and bounded -------------------------------------------------------------------

UNBOUNDED = [
    ly.Conv(3, 2, padding=1),
    ly.Conv(4, 3, 2, "same_upper"),
    ly.Conv(4, 3, 2, "same_lower"),
    ly.Conv(5, 2, padding="same_upper", taps=(1, 2, 3, 4, 5)),
    ly.Conv(4, dilation=3, padding="same"),
    ly.Conv(3, dilation=2, padding="causal"),
    ly.Conv(5, padding=2, padding_mode="reflect"),
    ly.ConvTranspose(3, 2, padding=1, output_padding=1),
    ly.ConvTranspose(4, 3, 2, 2),
    ly.MaxPool(3, 2, padding=1, ceil_mode=True),
    ly.AvgPool(3, 2, padding=1, count_include_pad=False),
    ly.AvgPool(3, 2, padding=1, ceil_mode=True),
    *(
        ly.Upsample(scale, mode)
        for scale in (1, 2, 3, "3/2", "2/3", "1/2", "7/5")
        for mode in ("nearest", "nearest-exact", "linear")
    ),
    ly.Upsample("3/2", "linear", coordinates="asymmetric"),
    ly.PixelShuffle(3),
    ly.PixelUnshuffle(3),
    ly.Pad(((2, 1),)),
    ly.Pad(((2, 1),), "circular"),
    ly.Crop(((2, 1),)),
]


@pytest.mark.parametrize("layer", UNBOUNDED, ids=repr)
def test_unbounded_maps_are_the_bounded_ones_far_from_borders(layer: ly.Layer) -> None:
    n, margin = 60, 8
    bound = layer.bind(1)
    bounded, unbounded = bound.maps((n,), 1), bound.maps(None, 1)
    (whole,) = unbounded
    assert whole.size_in is None
    assert whole.size_out is None
    matrix = variances(layer, n)
    compared = 0
    for o in range(len(matrix)):
        expected = {i: whole.gain * v for i, v in row(whole.axes[0], o, whole.axis_taps(0)).items()}
        if expected and min(expected) >= margin and max(expected) < n - margin:
            found = {int(i): float(matrix[o, i]) for i in np.nonzero(matrix[o])[0]}
            assert found.keys() == expected.keys()
            # The bounded side multiplies by matrices of one map after another.
            for i, v in expected.items():
                assert found[i] == pytest.approx(v, rel=4 * EPS, abs=0)
            compared += 1
    assert compared >= 5
    assert {m.kind for m in bounded} >= {whole.kind}


@pytest.mark.parametrize("scale", ["3/2", "2/3", "1/2", "7/5"])
@pytest.mark.parametrize("mode", ["nearest", "nearest-exact", "linear"])
def test_unbounded_rows_by_number_are_the_definition(scale: str, mode: Any) -> None:
    (whole,) = ly.Upsample(scale, mode).bind(1).maps(None, 1)
    (axis,) = whole.axes
    assert isinstance(axis, Table)
    starts, taps = axis.rows(-7, 20)
    for o, start, vector in zip(range(-7, 13), starts, taps, strict=True):
        found = {int(start) + m: float(v) for m, v in enumerate(vector) if v}
        assert found == row(axis, o)


def test_unbounded_layers_that_need_a_size_say_so() -> None:
    for layer in (ly.Upsample(size=7), ly.Upsample(2, "linear", coordinates="align_corners")):
        with pytest.raises(ValueError, match="input_size"):
            layer.bind(2).maps(None, 2)


# --- properties ------------------------------------------------------------------------------


@pytest.mark.parametrize("primitive", [Window, Spread])
def test_overlap_and_correlation_are_what_the_matrix_shows(primitive: Any) -> None:
    for k, s, d in itertools.product(range(1, 6), range(1, 6), range(1, 5)):
        axis = primitive(k, s, d, 1)
        spatial = SpatialMap((axis,), "fixed")
        matrix = dense_axis(axis, 60, 60) > 0
        inner = matrix[15:45] if primitive is Spread else matrix
        columns = matrix[:, 15:45] if primitive is Window else matrix[:, :8]
        assert spatial.overlaps == bool(np.any(columns.sum(axis=0) > 1)), axis
        assert spatial.correlates == bool(np.any(inner.sum(axis=1) > 1)), axis


def test_overlap_and_correlation_of_tables_and_everything() -> None:
    def of(layer: ly.Layer, size: int | None) -> tuple[bool, bool]:
        (spatial,) = layer.bind(1).maps(None if size is None else (size,), 1)
        return spatial.overlaps, spatial.correlates

    for size in (None, 9):
        assert of(ly.Upsample("3/2"), size) == (True, False)
        assert of(ly.Upsample("2/3"), size) == (False, False)
        assert of(ly.Upsample(2, "linear"), size) == (True, True)
        # Outputs of scale 1/3 sit on the middle pixel of three; those of 1/2 between two.
        assert of(ly.Upsample("1/3", "linear"), size) == (False, False)
        assert of(ly.Upsample("1/2", "linear"), size) == (False, True)
    assert of(ly.Pad(2, "reflect"), 9) == (True, False)
    assert SpatialMap((Everything(),)).overlaps
    assert SpatialMap((Everything(),)).correlates
    assert SpatialMap((IDENTITY, Everything())).is_global


def test_resizing_by_one_moves_nothing() -> None:
    for mode in ("nearest", "nearest-exact", "linear"):
        for size in (None, (5,)):
            (spatial,) = ly.Upsample(1, mode).bind(1).maps(size, 1)
            assert spatial.axes == (IDENTITY,)
            assert spatial.size_in == spatial.size_out


def test_factor_finds_products_and_leaves_the_rest() -> None:
    assert factor(np.full((3, 3), 1 / 9)) is None
    u, v = np.array([1.0, 2.0, 1.0]) / 4, np.array([0.1, 0.0, 0.2, 0.7])
    found = factor(np.multiply.outer(u, v))
    assert isinstance(found, tuple)
    # Marginals of a rounded product: a sum of four terms, each off by one rounding.
    np.testing.assert_allclose(found[0], u, rtol=4 * EPS)
    np.testing.assert_allclose(found[1], v, rtol=4 * EPS)
    equal_on_one = factor(np.multiply.outer(np.full(3, 1 / 3), v))
    assert isinstance(equal_on_one, tuple)
    assert equal_on_one[0] is None
    almost = np.multiply.outer(u, v)
    almost[0, 0] *= 1 + 1e-9
    assert isinstance(factor(almost / almost.sum()), np.ndarray)
    random = np.random.default_rng(5)
    for shape in [(3,), (2, 5), (3, 3, 3), (7, 1, 4)]:
        vectors = [random.random(n) for n in shape]
        product = np.ones(())
        for vector in vectors:
            product = np.multiply.outer(product, vector / vector.sum())
        found = factor(product / product.sum())
        assert isinstance(found, tuple)
        assert len(found) == len(shape)
