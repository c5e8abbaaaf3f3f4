"""`fastrf.functional` on arrays of a device: the CUDA kernels and the same host code.

On a machine without a GPU the device is `fake_cupy` over the shim; on one with a GPU the same
bodies run on it, too. Tolerances: both devices add nonnegative numbers, so that they differ by at
most twice a result's own bound (`test_functional`).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import fake_cupy
import numpy as np
import pytest
from fastrf.kernels.cuda import _module
from test_functional import LAYERS, MIXED, PLACES, TAPS, chain, gamma, possible, roundings, values

import fastrf as rf
from fastrf import device
from fastrf.arrays import on_host
from fastrf.errors import InputError

F = rf.functional
DTYPES = (np.float32, np.float64)


@pytest.fixture(params=["shim", pytest.param("gpu", marks=pytest.mark.gpu)])
def xp(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The namespace of a device's arrays."""
    if request.param == "shim":
        made = fake_cupy.install(monkeypatch, request.getfixturevalue("standin")())[0]
        monkeypatch.setattr(device, "_look", lambda: device._Found(xp=made, count=1))
        return made
    missing = device.gpu_at_hand()
    if missing is not None:
        pytest.skip(missing)
    monkeypatch.setattr(_module, "backend", None)
    return device.resolve("cuda").xp


def same(found: Any, expected: np.ndarray, xp: ModuleType, bound: float) -> None:
    assert isinstance(found, xp.ndarray)
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(on_host(found), expected, rtol=bound, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["transposed_conv", "strided_gather"])
def test_layers(xp: ModuleType, name: str, dtype: Any) -> None:
    for case in (possible(name, case) for case in LAYERS):
        y, taps = values((2, *case.pixels), dtype), values(case.kernel, np.float64)
        options = case._asdict()
        del options["pixels"], options["kernel"]
        function, there = getattr(F, name), xp.asarray(y)
        for how in ({"taps": taps}, {"kernel": case.kernel}):
            expected = function(y, **how, **options)
            bound = 2 * gamma(taps.size + 2, dtype)
            same(function(there, **how, **options), expected, xp, bound)
            out = xp.asarray(np.full_like(expected, np.nan))
            assert function(there, **how, **options, out=out) is out
            same(out, expected, xp, bound)
        beside = function(there, xp.asarray(taps), **options)
        same(beside, function(y, taps, **options), xp, 2 * gamma(taps.size + 2, dtype))


def test_batch_axes(xp: ModuleType) -> None:
    for ndim in (1, 2, 3):
        y = values((2, 3, 4, 3, 4)[: 2 + ndim], np.float64)
        taps = values((3, 2, 3, 2)[: 1 + ndim], np.float64)
        expected = F.transposed_conv(y, taps, ndim=ndim, stride=2)
        found = F.transposed_conv(xp.asarray(y), xp.asarray(taps), ndim=ndim, stride=2)
        same(found, expected, xp, 2 * gamma(13, np.float64))
        strided = xp.asarray(y)[:, ::2]
        found = F.transposed_conv(strided, kernel=(2,) * ndim)
        same(found, F.transposed_conv(y[:, ::2], kernel=(2,) * ndim), xp, 2 * gamma(9, np.float64))


@pytest.mark.parametrize("dtype", DTYPES)
def test_chains(xp: ModuleType, dtype: Any) -> None:
    for lines, size, origin, pixels in PLACES:
        stacked, y = np.stack(lines), values((2, *pixels), dtype)
        options = {"origin": origin, "input_size": size}
        expected = F.propagate(y, stacked, TAPS, **options)
        found = F.propagate(xp.asarray(y), stacked, TAPS, **options)
        assert found.origin == expected.origin
        bound = 2 * (gamma(roundings(stacked, y[0]), np.float64) + gamma(2, dtype))
        same(found.image, expected.image, xp, bound)
        for own, other in zip(found[2:], expected[2:], strict=True):
            assert isinstance(own, xp.ndarray)
            np.testing.assert_allclose(on_host(own), other, rtol=0, atol=1e-12)


def test_nothing_waits_for_the_device(xp: ModuleType) -> None:
    if xp is not fake_cupy:
        pytest.skip("a GPU does not say")
    y = xp.asarray(values((2, 5, 6), np.float64))
    stacked = np.stack([chain(4, 3, padding=1)] * 2)
    before = fake_cupy.waits
    F.transposed_conv(y, kernel=(3, 3), padding=1)
    F.strided_gather(y, np.ones((3, 3)), padding=1)
    F.propagate(y, stacked, input_size=(5, 6))
    F.profiles(MIXED, taps=TAPS, sizes=30, device="cuda")
    assert fake_cupy.waits == before


@pytest.mark.parametrize("dtype", DTYPES)
def test_profiles(xp: ModuleType, dtype: Any) -> None:
    layers = np.concatenate([MIXED, chain(5, 3, padding=1)], axis=1)
    options = {"offsets": [0, 4, 9], "taps": TAPS, "sizes": [30, 7], "dtype": dtype}
    expected = F.profiles(layers, **options)
    bound = 2 * gamma(60, dtype)
    for found in (
        F.profiles(layers, **options, device="cuda"),
        F.profiles(xp.asarray(layers), **options),
    ):
        same(found.profiles, expected.profiles, xp, bound)
        np.testing.assert_array_equal(found.starts, expected.starts)
        np.testing.assert_array_equal(found.counts, expected.counts)
        for own, other in ((found.log_gain, expected.log_gain), (found.lost, expected.lost)):
            np.testing.assert_allclose(on_host(own), other, rtol=0, atol=bound)


class Tensor:
    """Another library's array on the device. Its library notes whom it hands memory to."""

    handed: list[Any] = []  # noqa: RUF012 - emptied by the test

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, *, stream: Any = None) -> Any:
        Tensor.handed.append(stream)
        return self.array

    def __array_namespace__(self) -> Any:
        return Library


class Library:
    __name__ = "library"
    received: list[Any] = []  # noqa: RUF012 - emptied by the test

    @staticmethod
    def from_dlpack(array: Any) -> Tensor:
        assert isinstance(array, fake_cupy.ndarray)
        Library.received.append(array)
        return Tensor(array.held)


def test_tensors_of_another_library(xp: ModuleType) -> None:
    """They are exchanged by DLPack, which orders the streams, on the way in and on the way out."""
    if xp is not fake_cupy:
        pytest.skip("that of PyTorch is tested below")
    y, taps = values((4, 5), np.float64), values((2, 2), np.float64)
    expected = F.transposed_conv(y, taps)
    Tensor.handed.clear()
    Library.received.clear()
    found = F.transposed_conv(Tensor(y), Tensor(taps))
    assert type(found) is Tensor
    assert Tensor.handed == [1, 1]
    assert len(Library.received) == 1
    np.testing.assert_allclose(found.array, expected, rtol=2 * gamma(5, np.float64))
    out = Tensor(np.full_like(expected, np.nan))
    assert F.transposed_conv(Tensor(y), taps, out=out) is out
    np.testing.assert_array_equal(out.array, found.array)
    # The library whose memory was written waits for who wrote it.
    assert np.shares_memory(Library.received[-1].held, out.array)
    chained = F.propagate(Tensor(y), np.stack([MIXED] * 2), TAPS)
    assert all(type(v) is Tensor for v in (chained.image, chained.log_gain, chained.lost))


@pytest.mark.gpu
def test_tensors_of_pytorch() -> None:
    torch = pytest.importorskip("torch")
    if device.gpu_at_hand() is not None or not torch.cuda.is_available():
        pytest.skip("PyTorch and CuPy do not both have a GPU")
    y = values((4, 5), np.float64)
    found = F.transposed_conv(torch.from_numpy(y).cuda(), kernel=(3, 3))
    assert found.is_cuda
    expected = F.transposed_conv(y, kernel=(3, 3))
    np.testing.assert_allclose(found.cpu().numpy(), expected, rtol=2 * gamma(11, np.float64))


def test_arrays_on_different_devices(xp: ModuleType) -> None:
    y, taps = values((4, 5), np.float64), values((2, 2), np.float64)
    with pytest.raises(InputError, match="taps lie on cuda:0 and y on cpu"):
        F.transposed_conv(y, xp.asarray(taps))
    with pytest.raises(InputError, match=r"out has .* and lies on cpu; the result .* on cuda:0"):
        F.transposed_conv(xp.asarray(y), taps, out=np.ones((5, 6)))
    with pytest.raises(InputError, match="taps have dtype int64"):
        F.transposed_conv(xp.asarray(y), xp.asarray(np.ones((2, 2), np.int64)))


def test_measures_answer_on_the_device(xp: ModuleType) -> None:
    image = values((5, 6), np.float64)
    for found, expected in (
        (rf.metrics.profile(xp.asarray(image), 0), rf.metrics.profile(image, 0)),
        (rf.metrics.cut(xp.asarray(image), 1), rf.metrics.cut(image, 1)),
    ):
        same(found, expected, xp, gamma(10, np.float64))
