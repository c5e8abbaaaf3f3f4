"""`fastrf.functional` against loops, whole numbers, and what it promises of arrays.

Tolerances. A pixel is a sum of nonnegative products: N roundings in sequence, γ_N = N·u/(1 − N·u)
of Higham (2002), where N counts addends and factors; the oracles' own roundings, in float64, are
of the same number.
"""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any, NamedTuple

import naive
import numpy as np
import pytest

import fastrf as rf
from fastrf.errors import InputError, PlanError

F = rf.functional
DTYPES = (np.float32, np.float64)


def gamma(roundings: int, dtype: Any) -> float:
    """Of a result and its oracle together."""
    error = roundings * float(np.finfo(dtype).eps)
    return error / (1 - error)


def values(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Positive numbers of several magnitudes, the same every time."""
    n = np.arange(math.prod(shape), dtype=np.float64).reshape(shape)
    return (0.1 + (n * 0.618034 % 1) * 10.0 ** (n % 5 - 2)).astype(dtype)


# --- layers -----------------------------------------------------------------------------------


class Case(NamedTuple):
    """A layer, and the pixels that it is given."""

    pixels: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: Any = 1
    dilation: Any = 1
    padding: Any = 0
    size: Any = None


LAYERS = [
    Case((7,), (3,)),
    Case((9,), (4,), 2, 3, ((5, 2),)),
    Case((5,), (2,), 4, 1, 1, 40),
    Case((6,), (20,), 1, 1, 3),
    Case((4, 5), (3, 2), (2, 1), (1, 3), ((1, 0), 2)),
    Case((5, 3), (1, 7), 1, 1, (0, 3)),
    Case((5, 4), (3, 3), 3, 2, ((-2, 1), (3, -4)), (11, 9)),
    Case((3, 4, 5), (2, 3, 1), (2, 1, 3), (1, 2, 1), ((1, 0), 1, 0)),
]


def spelled(value: Any, ndim: int) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, tuple) else (value,) * ndim


def looped(name: str, y: np.ndarray, taps: np.ndarray, case: Case) -> np.ndarray:
    """One image by the loops of `naive`, on the size that the docstring states."""
    n = y.ndim
    stride, dilation = spelled(case.stride, n), spelled(case.dilation, n)
    pairs = [p if isinstance(p, tuple) else (p, p) for p in spelled(case.padding, n)]
    if case.size is not None:
        size = spelled(case.size, n)
    else:
        ends = zip(y.shape, taps.shape, stride, dilation, pairs, strict=True)
        size = tuple(
            (count - 1) * s + d * (k - 1) + 1 - lo - hi
            if name == "transposed_conv"
            else (count + lo + hi - d * (k - 1) - 1) // s + 1
            for count, k, s, d, (lo, hi) in ends
        )
    lead = (1,) * (3 - n)
    out = np.empty(lead + size)
    getattr(naive, name)(
        y.reshape(lead + y.shape).astype(np.float64),
        taps.reshape(lead + taps.shape).astype(np.float64),
        lead + stride,
        lead + dilation,
        (0,) * (3 - n) + tuple(lo for lo, _ in pairs),
        out,
    )
    return out.reshape(size)


def possible(name: str, case: Case) -> Case:
    """Gathers of windows that fit."""
    if name == "transposed_conv" or case.size is not None:
        return case
    return (
        case._replace(
            pixels=tuple(n + 20 if n < 7 else n + 6 for n in case.pixels[:1])
            + tuple(n + 6 for n in case.pixels[1:])
        )
        if len(case.pixels) < 3
        else case
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", LAYERS)
@pytest.mark.parametrize("name", ["transposed_conv", "strided_gather"])
def test_layers_against_loops(name: str, case: Case, dtype: Any) -> None:
    case = possible(name, case)
    y, taps = values((2, *case.pixels), dtype), values(case.kernel, dtype)
    options = case._asdict()
    del options["pixels"], options["kernel"]
    found = getattr(F, name)(y, taps, **options)
    equal = getattr(F, name)(y, kernel=case.kernel, **options)
    count = math.prod(case.kernel)
    for image, own, box in zip(y, found, equal, strict=True):
        expected = looped(name, image, taps, case)
        assert own.dtype == dtype
        np.testing.assert_allclose(own, expected, rtol=gamma(count + 1, dtype), atol=0)
        expected = looped(name, image, np.full(case.kernel, 1 / count), case)
        np.testing.assert_allclose(box, expected, rtol=gamma(count + 2, dtype), atol=0)


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("kernel", [(5, 3), (1, 40)])
def test_workers_do_not_show(kernel: tuple[int, int], workers: int) -> None:
    y, taps = values((3, 400, 301), np.float64), values(kernel, np.float64)
    for name in ("transposed_conv", "strided_gather"):
        for how in ({"taps": taps}, {"kernel": kernel}):
            options = {"stride": (2, 1), "padding": ((1, 0), 2), **how}
            one = getattr(F, name)(y, **options)
            assert one.size > 2 * (1 << 16)
            np.testing.assert_array_equal(getattr(F, name)(y, **options, workers=workers), one)


BATCHES = [
    ((), ()),
    ((4,), ()),
    ((2, 3), (3,)),
    ((2, 3), (2, 1)),
    ((3,), (2, 1)),
    ((), (2, 3)),
    ((2, 1), (3,)),
    ((0,), ()),
    ((0, 2), (2,)),
]


@pytest.mark.parametrize("ndim", [1, 2, 3])
@pytest.mark.parametrize(("batch", "own"), BATCHES)
def test_batch_axes_broadcast_as_numpys_do(batch: Any, own: Any, ndim: int) -> None:
    y, taps = (
        values((*batch, 4, 5, 6)[: len(batch) + ndim], np.float64),
        values((*own, 2, 3, 2)[: len(own) + ndim], np.float64),
    )
    found = F.transposed_conv(y, taps, ndim=ndim, stride=2, padding=1)
    whole = np.broadcast_shapes(batch, own)
    assert found.shape[:-ndim] == whole
    ys = np.broadcast_to(y, whole + y.shape[len(batch) :])
    ws = np.broadcast_to(taps, whole + taps.shape[len(own) :])
    for at in np.ndindex(whole):
        alone = F.transposed_conv(np.array(ys[at]), np.array(ws[at]), stride=2, padding=1)
        np.testing.assert_array_equal(found[at], alone)


def views(y: np.ndarray) -> list[np.ndarray]:
    """The same values in other layouts."""
    wide = np.zeros((*y.shape[:-1], 2 * y.shape[-1]), y.dtype)
    wide[..., ::2] = y
    backwards = y[::-1].copy()[::-1]
    fixed = y.copy()
    fixed.flags.writeable = False
    swapped = y.swapaxes(0, 1).copy().swapaxes(0, 1)
    return [np.asfortranarray(y), wide[..., ::2], backwards, fixed, swapped]


@pytest.mark.parametrize("how", [{"taps": values((2, 3), np.float64)}, {"kernel": (2, 3)}])
@pytest.mark.parametrize("name", ["transposed_conv", "strided_gather"])
def test_any_layout_and_any_out(name: str, how: Any) -> None:
    y = values((2, 3, 6, 7), np.float64)
    before, function = y.copy(), getattr(F, name)
    expected = function(y, **how, size=(6, 7))
    for view in views(y):
        np.testing.assert_array_equal(function(view, **how, size=(6, 7)), expected)
    for out in views(np.full_like(expected, np.nan)):
        if out.flags.writeable:
            assert function(y, **how, size=(6, 7), out=out) is out
            np.testing.assert_array_equal(out, expected)
    np.testing.assert_array_equal(y, before)
    # The image itself as the result.
    assert function(y, **how, size=(6, 7), out=y) is y
    np.testing.assert_array_equal(y, expected)


def test_what_is_below_the_smallest_normal_number_is_0() -> None:
    for dtype in DTYPES:
        tiny = np.finfo(dtype).smallest_normal
        y = np.array([tiny, 4 * tiny], dtype)
        assert F.transposed_conv(y, kernel=(4,), padding=0).tolist() == [
            0,
            tiny * 1.25,
            tiny * 1.25,
            tiny * 1.25,
            tiny,
        ]
        assert F.transposed_conv(y, np.array([0.5])).tolist() == [0, 2 * tiny]


GIVEN = np.ones((4, 5))
REFUSED = [
    (GIVEN.astype(np.int64), {}, "y has dtype int64: images are float32 or float64; convert"),
    (GIVEN > 0, {}, "y has dtype bool"),
    (GIVEN * 1j, {}, "y has dtype complex128"),
    (GIVEN.astype(np.float16), {}, "y has dtype float16"),
    (GIVEN.astype(">f8"), {}, "y has dtype >f8"),
    (GIVEN.tolist(), {}, "y is a list: it must be an array"),
    (np.ma.array(GIVEN), {}, "y is masked"),
    (-GIVEN, {}, "y has values from -1.0 to -1.0: variances are nonnegative"),
    (GIVEN * np.nan, {}, "y has values from nan to nan"),
    (GIVEN * np.inf, {}, "y has values from inf to inf"),
    (np.ones((0, 5)), {}, r"y has shape \(0, 5\): it needs 2 axes"),
    (np.ones(5), {}, r"y has shape \(5,\): it needs 2 axes"),
    (GIVEN, {"taps": None}, "taps and kernel: give one of the two"),
    (GIVEN, {"kernel": (3, 3)}, "taps and kernel: give one of the two"),
    (GIVEN, {"taps": None, "kernel": 3}, "say how many with ndim"),
    (GIVEN, {"taps": None, "kernel": 3, "ndim": 4}, "images have 1, 2 or 3 axes"),
    (GIVEN, {"taps": None, "kernel": (3, 0)}, "kernel=.* of at least 1"),
    (GIVEN, {"taps": np.ones((0, 3))}, "give at least one tap per axis"),
    (GIVEN, {"taps": [[1, -1]]}, "taps have values from -1.0 to 1.0"),
    (GIVEN, {"taps": [[np.nan]]}, "taps have values from nan"),
    (GIVEN, {"taps": [[1j]]}, "taps=.* are no numbers"),
    (GIVEN, {"taps": [["a"]]}, "taps=.* are no numbers"),
    (GIVEN.astype(np.float32), {"taps": [[1e39]]}, r"at most 3.4e\+38 in float32"),
    (GIVEN, {"taps": np.ones((3, 2)), "ndim": 1}, r"batch axes \(3,\) and y has \(4,\): they"),
    (GIVEN, {"stride": 0}, "stride=0 must be a whole number of at least 1"),
    (GIVEN, {"stride": (1, 2, 3)}, "stride=.* for each of 2 axes"),
    (GIVEN, {"dilation": 1.5}, "dilation=1.5 must be"),
    (GIVEN, {"padding": (1, 2, 3)}, "padding=.* has 3 values for 2 axes"),
    (GIVEN, {"padding": ((1, 2, 3), 0)}, "padding=.* for each of 2 axes"),
    (GIVEN, {"padding": 9}, r"leaves a result of \(-12, -11\)"),
    (GIVEN, {"size": 0}, "size=0 must be"),
    (GIVEN, {"size": 2**40}, "size=.* up to 2147483647"),
    (GIVEN, {"workers": 0}, "workers=0"),
    (GIVEN, {"workers": True}, "workers=True"),
    (GIVEN, {"out": np.ones((6, 8))}, r"out has shape \(6, 8\).*the result has shape \(6, 7\)"),
    (GIVEN, {"out": np.ones((6, 7), np.float32)}, "out has .*dtype float32"),
    (GIVEN, {"out": np.broadcast_to(1.0, (6, 7))}, "out is read-only"),
    (GIVEN, {"out": 3}, "out is a int"),
]


@pytest.mark.parametrize(("y", "options", "message"), REFUSED)
def test_what_layers_refuse(y: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        F.transposed_conv(y, **{"taps": np.ones((3, 3)), **options})


def test_a_result_that_does_not_fit_is_refused_before() -> None:
    with pytest.raises(PlanError, match=r"takes .* GB, more than is free on cpu"):
        F.transposed_conv(GIVEN, kernel=(3, 3), size=2**20 + 2**19)


# --- other libraries --------------------------------------------------------------------------


def test_tensors_are_read_and_written_where_they_lie() -> None:
    torch = pytest.importorskip("torch")
    from fastrf.exchange import in_kind, taken

    y = torch.arange(1.0, 25.0).reshape(2, 3, 4)
    view = taken("y", y[:, ::2])
    assert view.__array_interface__["data"][0] == y.data_ptr()
    back = in_kind(view, y)
    assert back.data_ptr() == y.data_ptr()
    out = torch.full((2, 3, 4), torch.nan)
    assert F.transposed_conv(y, kernel=(3, 3), padding=1, out=out) is out
    expected = F.transposed_conv(y.numpy(), kernel=(3, 3), padding=1)
    np.testing.assert_array_equal(out.numpy(), expected)


def test_results_come_back_in_kind() -> None:
    torch = pytest.importorskip("torch")
    y, taps = (
        torch.rand(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
        (torch.ones(3, 3)),
    )
    for function in (F.transposed_conv, F.strided_gather):
        found = function(y, taps, padding=1)
        assert type(found) is torch.Tensor
        assert found.dtype == torch.float64
        np.testing.assert_array_equal(found.numpy(), function(y.numpy(), taps.numpy(), padding=1))
        strided = function(y.T, taps, padding=1)
        np.testing.assert_array_equal(
            strided.numpy(), function(y.numpy().T, taps.numpy(), padding=1)
        )
    layers = chain(3, 3, padding=1)
    for found in (
        F.propagate(y.float(), torch.from_numpy(np.stack([layers, layers])), input_size=(5, 6)),
        F.profiles(torch.from_numpy(layers), sizes=torch.tensor([9]), dtype="float32"),
    ):
        assert all(type(v) is torch.Tensor for v in found if not isinstance(v, tuple))
        assert found[0].dtype == torch.float32
    # A library that is not imported here is not imported for a NumPy array.
    assert isinstance(F.transposed_conv(y.numpy(), taps), np.ndarray)


def test_what_tensors_are_refused() -> None:
    torch = pytest.importorskip("torch")
    taps = np.ones((2, 2))
    y = torch.ones(3, 3)
    for wrong, message in [
        (torch.ones(3, 3, requires_grad=True), r"y is not handed out .*gradient.*y.detach\(\)"),
        (torch.nn.Parameter(y), r"give y.detach\(\)"),
        (y.bool(), "y has dtype bool"),
        (y.long(), "y has dtype int64"),
        (y.to(torch.complex64), "y has dtype complex64"),
        (y.half(), "y has dtype float16"),
        (y.bfloat16(), "y is not handed out"),
        (y.to_sparse(), "y is not handed out"),
        (y.to("meta"), "y is not handed out"),
    ]:
        with pytest.raises(InputError, match=message):
            F.transposed_conv(wrong, taps)
    with pytest.raises(InputError, match=r"taps=.* are no numbers .*gradient"):
        F.transposed_conv(y, torch.ones(2, 2, requires_grad=True))
    with pytest.raises(InputError, match="out is not handed out"):
        F.transposed_conv(y, taps, out=torch.ones(4, 4, requires_grad=True))


class Foreign:
    """An array of a library that speaks DLPack and no more."""

    def __init__(self, array: np.ndarray, device: tuple[int, int] = (1, 0)) -> None:
        self.array, self.device = array, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)


class Standard(Foreign):
    """One of a library that keeps to the array standard: what it makes can only be read."""

    def __array_namespace__(self) -> Any:
        class Namespace:
            __name__ = "standard"

            @staticmethod
            def from_dlpack(array: Any) -> Standard:
                return Standard(np.from_dlpack(array))

        return Namespace


def test_libraries_that_nobody_has_heard_of() -> None:
    y, taps = values((4, 5), np.float64), values((2, 2), np.float64)
    found = F.transposed_conv(Standard(y), Standard(taps))
    assert type(found) is Standard
    np.testing.assert_array_equal(found.array, F.transposed_conv(y, taps))
    fixed = y.copy()
    fixed.flags.writeable = False
    np.testing.assert_array_equal(F.transposed_conv(Standard(fixed), taps).array, found.array)
    with pytest.raises(InputError, match=r"test_functional has no from_dlpack"):
        F.transposed_conv(Foreign(y), taps)
    with pytest.raises(InputError, match="y lies on a device of DLPack's kind 8"):
        F.transposed_conv(Foreign(y, (8, 0)), taps)


@pytest.mark.skipif(rf.device.gpu_at_hand() is None, reason="there is a GPU")
def test_a_tensor_on_a_gpu_that_cannot_be_used() -> None:
    with pytest.raises(rf.errors.DeviceError, match="device='cuda:0' cannot be used"):
        F.transposed_conv(Foreign(GIVEN, (2, 0)), np.ones((2, 2)))


def test_measures_take_tensors_and_answer_in_kind() -> None:
    torch = pytest.importorskip("torch")
    image = values((5, 6), np.float64)
    tensor = torch.from_numpy(image)
    m = rf.metrics
    assert m.std(tensor) == m.std(image)
    assert m.luo_size(tensor.float()) == m.luo_size(image.astype(np.float32))
    for function, own in ((m.profile, (1,)), (m.cut, (0,))):
        found = function(tensor, *own)
        assert type(found) is torch.Tensor
        np.testing.assert_array_equal(found.numpy(), function(image, *own))
    for found, expected in zip(m.radial_mass(tensor), m.radial_mass(image), strict=True):
        assert type(found) is torch.Tensor
        np.testing.assert_array_equal(found.numpy(), expected)
    with pytest.raises(InputError, match=r"image is not handed out .*image.detach\(\)"):
        m.std(tensor.requires_grad_())


def test_layers_of_networks_take_tensors_as_taps_and_weights() -> None:
    torch = pytest.importorskip("torch")
    taps = values((3, 3), np.float64)
    assert rf.Conv(3, taps=torch.from_numpy(taps)).bind(2) == rf.Conv(3, taps=taps).bind(2)
    weights = values((4, 2, 3, 3), np.float32)
    given = rf.Conv(3, weights=torch.from_numpy(weights)).bind(2)
    assert given == rf.Conv(3, weights=weights).bind(2)
    learned = torch.ones(3, 3, requires_grad=True)
    assert rf.Conv(3, taps=learned).bind(2) == rf.Conv(3, taps=np.ones((3, 3))).bind(2)
    assert rf.Filter(3, weights=learned).bind(2) == rf.Filter(3, weights=np.ones((3, 3))).bind(2)
    with pytest.raises(InputError, match="taps must be an array of numbers"):
        rf.Conv(3, taps=taps * 1j).bind(2)


# --- chains -----------------------------------------------------------------------------------


def chain(depth: int, kernel: int, stride: int = 1, dilation: int = 1, padding: int = 0) -> Any:
    return np.tile(np.array([[kernel, stride, dilation, padding, padding, -1]]).T, depth)


TAPS = np.array([9.0, 9.0, 1.0, 2.0, 0.5, 0.0, 3.0])
MIXED = np.array(
    [
        # kernel, stride, dilation, lo, hi, first tap
        [3, 2, 1, 1, 1, -1],
        [3, 1, 2, 2, 2, 2],
        [2, 2, 1, 0, 1, -1],
        [4, 1, 1, 2, 1, 3],
    ]
).T
OTHER = np.array(
    [[1, 1, 1, 0, 0, -1], [5, 1, 1, 2, 2, -1], [3, 2, 1, 0, 1, 4], [1, 1, 1, 0, 0, -1]]
).T


def nodes(stacked: np.ndarray) -> list[naive.Node]:
    """A packed chain as the loops read it."""
    found: list[naive.Node] = [{"name": "input", "op": "input", "inputs": []}]
    for number, layer in enumerate(stacked.transpose(2, 1, 0).tolist()):
        kernel, stride, dilation, lo, hi, first = layer
        taps = np.ones(())
        for k, at in zip(kernel, first, strict=True):
            own = np.ones(k) if at < 0 else TAPS[at : at + k]
            taps = np.multiply.outer(taps, own / own.sum())
        found.append(
            {
                "name": str(number),
                "op": "conv",
                "inputs": [found[-1]["name"]],
                "taps": taps,
                "kernel": kernel,
                "stride": stride,
                "dilation": dilation,
                "lo": lo,
                "hi": hi,
            }
        )
    return found


def looped_back(
    stacked: np.ndarray, y: np.ndarray, origin: tuple[int, ...], size: Any
) -> tuple[np.ndarray, tuple[int, ...]]:
    """The image by loops, unit by unit, on the smallest window that holds all that is reached."""
    network = nodes(stacked)
    total: dict[tuple[int, ...], float] = {}
    for at in np.ndindex(y.shape):
        unit = tuple(a + o for a, o in zip(at, origin, strict=True))
        if size is None:
            found = naive.variance_unbounded(network, network[-1]["name"], unit)
        else:
            whole = naive.variance(network, network[-1]["name"], unit, size)
            found = {i: whole[i] for i in np.ndindex(whole.shape) if whole[i]}
        for i, v in found.items():
            total[i] = total.get(i, 0.0) + v * float(y[at])
    low = tuple(min(i[a] for i in total) for a in range(y.ndim))
    high = tuple(max(i[a] for i in total) for a in range(y.ndim))
    image = np.zeros([b - a + 1 for a, b in zip(low, high, strict=True)])
    for i, v in total.items():
        image[tuple(x - a for x, a in zip(i, low, strict=True))] = v
    return image, low


PLACES = [  # chains per axis, input size, origin, pixels of y
    ((MIXED,), None, (0,), (1,)),
    ((MIXED,), None, (-3,), (4,)),
    ((MIXED,), (30,), (0,), (7,)),
    ((MIXED,), (61,), (5,), (2,)),
    ((MIXED, OTHER), None, (2, -1), (2, 3)),
    ((MIXED, OTHER), (30, 13), (0, 2), (3, 4)),
    ((OTHER, MIXED), (13, 47), (4, 2), (1, 1)),
    ((OTHER, OTHER, OTHER), (9, 8, 7), (0, 1, 1), (2, 2, 1)),
]


def roundings(stacked: np.ndarray, y: np.ndarray) -> int:
    """Of a profile per axis, its application to y, and the scale."""
    return int((2 * stacked[:, 0] + 1).sum()) + sum(y.shape) + 40


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("lines", "size", "origin", "pixels"), PLACES)
def test_chains_against_loops(lines: Any, size: Any, origin: Any, pixels: Any, dtype: Any) -> None:
    stacked = np.stack(lines)
    y = values((2, *pixels), dtype)
    gains = np.linspace(0.5, 3, stacked.shape[2])
    found = F.propagate(y, stacked, TAPS, origin=origin, input_size=size, gains=gains)
    assert found.image.dtype == dtype
    for b in range(2):
        expected, low = looped_back(stacked, y[b], origin, size)
        own = found.image[b]
        # A zero tap at an end may leave a border of zeros.
        box = tuple(
            slice(a - o, a - o + n)
            for a, o, n in zip(low, found.origin, expected.shape, strict=True)
        )
        assert own[box].sum() == pytest.approx(own.sum(), rel=1e-6)
        mass = expected.sum()
        bound = gamma(roundings(stacked, y[b]), np.float64) + gamma(2, dtype)
        np.testing.assert_allclose(own[box], expected / mass, rtol=bound, atol=0)
        put = y[b].astype(np.float64).sum()
        wanted = math.log(mass / put) + np.log(gains).sum()
        assert found.log_gain[b] == pytest.approx(wanted, abs=1e-12)
        assert found.lost[b] == pytest.approx(1 - mass / put, abs=1e-13)


def test_a_chain_does_not_depend_on_the_scale_of_the_image() -> None:
    y = values((1, 5), np.float64)
    scales = np.array([1.0, 2.0**-1000, 2.0**1000])[:, None]
    found = F.propagate(y * scales, MIXED, TAPS, input_size=30)
    for b in (1, 2):
        np.testing.assert_array_equal(found.image[b], found.image[0])
        assert found.log_gain[b] == found.log_gain[0]
        assert found.lost[b] == found.lost[0]


def test_ten_thousand_layers_against_binomials() -> None:
    """Kernel 2: the image is C(n, i)/2^n, in whole numbers; no over- or underflow on the way."""
    n = 10_000
    found = F.propagate(np.ones(1), chain(n, 2))
    assert found.origin == (0,)
    assert found.image.shape == (n + 1,)
    assert found.lost == 0
    bound = gamma(5 * n, np.float64)
    assert abs(float(found.log_gain)) < bound
    whole, value = 2**n, 1
    for i in range(n // 2 + 1):
        exact = Fraction(value, whole)
        if exact > Fraction(1, 2**1021):
            assert abs(Fraction(float(found.image[i])) - exact) <= exact * Fraction(bound)
        elif exact < Fraction(1, 2**1023):
            assert found.image[i] == 0
        value = value * (n - i) // (i + 1)
    np.testing.assert_array_equal(F.profiles(chain(n, 2)).profiles[0], found.image)


@pytest.mark.parametrize("pixels", [1, 2])
def test_ten_thousand_layers_that_lose_nearly_all(pixels: int) -> None:
    """On a map of 1 or 2 pixels each of 10,000 layers of 3 equal taps keeps 1/3, or 2/3."""
    n, gain = 10_000, 1.5
    found = F.propagate(
        np.ones((1, pixels)), chain(n, 3, padding=1), input_size=pixels, gains=np.full(n, gain)
    )
    np.testing.assert_allclose(found.image, np.full((1, pixels), 1 / pixels), rtol=1e-15)
    assert found.log_gain[0] == pytest.approx(n * math.log(gain * pixels / 3), rel=1e-13)
    assert found.lost[0] == pytest.approx(1, abs=1e-12)
    one = F.profiles(chain(n, 3, padding=1), sizes=pixels)
    assert one.log_gain[0] == pytest.approx(n * math.log(pixels / 3), rel=1e-13)


def test_a_unit_in_the_padding_does_not_drown_the_others() -> None:
    """Beside it, what arrives of the other is 3^−5000 of what was put in."""
    layers = np.concatenate([chain(5000, 3, padding=1), [[1], [1], [1], [1], [0], [-1]]], axis=1)
    found = F.propagate(np.array([[4.0, 1.0], [1.0, 0.0]]), layers, input_size=1)
    assert found.image.tolist() == [[1], [0]]
    assert found.log_gain[0] == pytest.approx(-math.log(5) - 5000 * math.log(3), rel=1e-13)
    assert found.log_gain[1] == -math.inf
    np.testing.assert_allclose(found.lost, 1, rtol=1e-12)


def test_ten_thousand_layers_on_a_map_against_their_eigenvalues() -> None:
    """On n pixels a layer of 3 equal taps is diagonal in sines: what arrives, in closed form."""
    depth, n, unit = 10_000, 32, 11
    found = F.propagate(np.ones(1), chain(depth, 3, padding=1), origin=unit, input_size=n)
    j = np.arange(1, n + 1)[:, None]
    angle = np.pi * j / (n + 1)
    kept = depth * np.log1p(-(2 - 2 * np.cos(angle)) / 3, where=j < 20, out=np.full((n, 1), -1e9))
    modes = (
        np.exp(kept - kept[0]) * np.sin(angle * (unit + 1)) * np.sin(angle * np.arange(1, n + 1))
    )
    image = 2 / (n + 1) * modes.sum(axis=0)
    # The largest eigenvalue's rounding, 10,000 times over; the image has it no more.
    wanted = float(kept[0, 0]) + math.log(image.sum())
    assert float(found.log_gain) == pytest.approx(wanted, abs=depth * 4e-16)
    np.testing.assert_allclose(found.image, image / image.sum(), rtol=gamma(7 * depth, np.float64))


def test_images_of_nothing_and_of_no_layers() -> None:
    found = F.propagate(np.zeros((2, 3)), MIXED, TAPS)
    assert not found.image.any()
    assert found.log_gain.tolist() == [-math.inf] * 2
    assert found.lost.tolist() == [0, 0]
    y = values((4, 3), np.float32)
    found = F.propagate(y, np.zeros((2, 6, 0), np.int64), origin=(7, -1))
    assert found.origin == (7, -1)
    np.testing.assert_allclose(found.image, y / y.sum(dtype=float), rtol=2e-7)
    assert F.propagate(np.ones((0, 3)), MIXED, TAPS).image.shape[0] == 0
    none = F.profiles(MIXED, [0], TAPS)
    assert (none.profiles.shape, none.log_gain.shape) == ((0, 1), (0,))
    # Each of the taps that reach the map is zero.
    blind = np.array([[3, 1, 1, 2, 0, 0]]).T
    found = F.propagate(np.ones(1), blind, [1, 1, 0], input_size=5)
    assert (found.image.sum(), float(found.log_gain), float(found.lost)) == (0, -math.inf, 1)


def test_chains_fill_out() -> None:
    y = values((3, 4), np.float64)
    expected = F.propagate(y, MIXED, TAPS)
    out = np.full((expected.image.shape[1], 3), np.nan).T
    found = F.propagate(y, MIXED, TAPS, out=out)
    assert found.image is out
    np.testing.assert_array_equal(out, expected.image)
    wide = np.full((2, 99), np.nan)
    two = F.profiles(np.concatenate([MIXED, OTHER], axis=1), [0, 4, 8], TAPS, out=wide)
    assert two.profiles is wide
    for c, line in enumerate((MIXED, OTHER)):
        one = F.profiles(line, taps=TAPS)
        n = int(one.counts[0])
        np.testing.assert_array_equal(wide[c, :n], one.profiles[0])
        assert not wide[c, n:].any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_profiles_against_loops(dtype: Any) -> None:
    """Chains of all kinds in one call."""
    lines = [MIXED, OTHER, chain(5, 3, padding=1), chain(2, 4, 3, 2, 1), chain(1, 1)]
    places = [(-1, 2), (30, 3), (9, 0), (70, 4), (5, 4)]
    offsets = np.cumsum([0, *(line.shape[1] for line in lines)])
    sizes, units = zip(*places, strict=True)
    found = F.profiles(
        np.concatenate(lines, axis=1), offsets, TAPS, sizes=sizes, units=units, dtype=dtype
    )
    assert found.profiles.dtype == dtype
    for c, (line, (size, unit)) in enumerate(zip(lines, places, strict=True)):
        expected, low = looped_back(line[None], np.ones(1), (unit,), None if size < 0 else (size,))
        row = found.profiles[c]
        first = low[0] - int(found.starts[c])
        window = row[first : first + len(expected)]
        bound = gamma(int((2 * line[0] + 1).sum()) + len(expected), dtype)
        np.testing.assert_allclose(window, expected / expected.sum(), rtol=bound, atol=0)
        assert row.sum() == pytest.approx(window.sum())
        assert found.log_gain[c] == pytest.approx(math.log(expected.sum()), abs=bound)
        assert found.lost[c] == pytest.approx(1 - expected.sum(), abs=bound)
        assert not row[int(found.counts[c]) :].any()


def test_profiles_are_those_of_networks() -> None:
    """The default unit is the one of `rf.erf`, on a grid and on an image."""
    net = rf.Sequential(*[rf.Conv(3, padding=1)] * 4, ndim=1)
    for size in (None, 12, 13):
        erf = rf.erf(net, input_size=size)
        found = F.profiles(chain(4, 3, padding=1), sizes=size)
        assert erf.origin == (int(found.starts[0]),)
        np.testing.assert_allclose(erf.image, found.profiles[0], rtol=gamma(40, np.float64))


ONE = np.ones((1, 1))
REFUSED_CHAINS = [
    ({"layers": MIXED * 1.0}, "layers has dtype float64: it must hold whole numbers"),
    ({"layers": MIXED[:5]}, r"layers have shape \(1, 5, 4\)"),
    ({"layers": np.stack([MIXED] * 4)}, r"layers have shape \(4, 6, 4\)"),
    ({"layers": "chain"}, "layers has dtype"),
    ({"layers": chain(2, 0)}, "layers have a kernel of 0; it must be at least 1"),
    ({"layers": chain(2, 1, 0)}, "layers have a stride of 0"),
    ({"layers": chain(2, 1, 1, 0)}, "layers have a dilation of 0"),
    ({"layers": chain(2, 2**40)}, "layers hold numbers beyond"),
    ({"layers": chain(40, 3, 3)}, "layers reach .* beyond"),
    ({"taps": TAPS[:5]}, "layers ask for the taps -1 to 6 of 5"),
    ({"taps": [TAPS]}, r"taps have shape \(1, 7\)"),
    ({"taps": TAPS * 0}, "taps of a layer are all 0"),
    ({"taps": -TAPS}, "taps have values from"),
    ({"layers": chain(3, 3), "input_size": 4}, "input_size=4: layer 1 leaves no pixel"),
    ({"input_size": 30, "origin": 8}, "y has the units 8 to 8 of a map of 8 pixels"),
    ({"input_size": 30, "origin": -1}, "y has the units -1 to -1"),
    ({"input_size": 0}, "input_size=0 must be"),
    ({"origin": 0.5}, "origin=0.5 must be a whole number"),
    ({"gains": [1, 1, 1]}, "gains=.* must be 4 positive numbers"),
    ({"gains": [1, 1, 1, 0]}, "gains=.* must be 4 positive numbers"),
    ({"out": np.ones((1, 1))}, "out has shape"),
    ({"y": np.ones(1, int)}, "y has dtype int64"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED_CHAINS)
def test_what_chains_refuse(options: dict[str, Any], message: str) -> None:
    given = {"y": ONE, "layers": MIXED, "taps": TAPS, **options}
    with pytest.raises(InputError, match=message):
        F.propagate(**given)


def test_a_unit_that_sees_padding_alone() -> None:
    with pytest.raises(InputError, match="y at origin 0 sees only padding of a map of 3 pixels"):
        F.propagate(ONE, np.array([[1, 1, 1, 4, 0, -1]]).T, input_size=3)


REFUSED_PROFILES = [
    ({"offsets": [0, 4, 4]}, r"offsets=\[0, 4, 4\] must rise"),
    ({"offsets": [0, 9]}, "offsets=.* to at most 4"),
    ({"offsets": [[0, 4]]}, "offsets="),
    ({"sizes": [3, 4]}, r"sizes has shape \(2,\) for 1 chains"),
    ({"sizes": 0}, r"sizes=\[0\] must be numbers of pixels"),
    ({"sizes": 30, "units": 8}, "chain 0, size 30, unit 8: the unit must lie on the last map"),
    ({"layers": chain(3, 3), "sizes": 4}, "chain 0, size 4"),
    ({"dtype": "int8"}, "dtype='int8' is unknown"),
    ({"dtype": "nonsense"}, "dtype='nonsense' is unknown"),
    ({"device": "tpu"}, "device='tpu' is unknown"),
    ({"layers": np.zeros((6, 0), int)}, "offsets="),
    ({"layers": MIXED[None]}, r"layers have shape \(1, 6, 4\)"),
    ({"out": np.ones((1, 3))}, "out has shape"),
    ({"out": np.ones(40)}, "out has shape"),
]


@pytest.mark.parametrize(("options", "message"), REFUSED_PROFILES)
def test_what_profiles_refuse(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        F.profiles(**{"layers": MIXED, "taps": TAPS, **options})
