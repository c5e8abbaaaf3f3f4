"""The direct engine on arrays of a device, and the planner's choice between devices.

On a machine without a GPU the device is `fake_cupy` over the shim: what CuPy refuses is refused,
and the CUDA kernels run unchanged. On one with a GPU the same bodies run on it, too.

Tolerances. Both devices add nonnegative numbers only, so that each pixel's relative error is at
most N·u/(1 − N·u) for N roundings in sequence (test_engines counts N for its networks); two results
differ by at most twice that.
"""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType
from typing import Any

import fake_cupy
import numpy as np
import pytest
from fastrf.kernels import load
from fastrf.kernels.cuda import _module
from shim.standin import StandIn
from test_engines import CASES, ROUNDINGS, U, units
from test_scaled_in_place import NETWORKS as SCALED
from test_scaled_in_place import assert_in_place

import fastrf as rf
from fastrf import device
from fastrf.arrays import on_host
from fastrf.engine import direct, plan
from fastrf.engine.direct import Propagated, propagate
from fastrf.engine.scaled import Headroom
from fastrf.engine.transfer import transfer_function
from fastrf.engine.upward import propagate_upward
from fastrf.errors import DeviceError, EmptyFieldError, InputError, PlanError, UnboundedError
from fastrf.lowering import PlaneGraph, lower
from fastrf.network import as_network


@pytest.fixture(params=["shim", pytest.param("gpu", marks=pytest.mark.gpu)])
def xp(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The namespace of a device's arrays."""
    if request.param == "shim":
        standin: Callable[..., StandIn] = request.getfixturevalue("standin")
        return fake_cupy.install(monkeypatch, standin())[0]
    missing = device.gpu_at_hand()
    if missing is not None:
        pytest.skip(missing)
    monkeypatch.setattr(_module, "backend", None)
    return device.resolve("cuda").xp


Where = tuple[PlaneGraph, str, tuple[int, ...], str]


def where(net: Any, unit: Any = "center", size: Any = None) -> Where:
    graph = lower(as_network(net), size)
    node = graph.output_node(None)
    return graph, node, graph.unit_index(node, unit), "input"


def on_cpu(at: Where, dtype: str, **options: Any) -> Propagated:
    return propagate(*at, kernels=load("cpu"), dtype=dtype, at_once=False, **options)


def on_device(xp: ModuleType, at: Where, dtype: str, **options: Any) -> Propagated:
    found = propagate(*at, kernels=load("cuda"), dtype=dtype, xp=xp, **options)
    assert isinstance(found.image, xp.ndarray)
    return found


def assert_same(found: Propagated, expected: Propagated, bound: float) -> None:
    """Window, dtype, support, every pixel, and what arrived and did not."""
    image = on_host(found.image)
    assert found.origin == expected.origin
    assert image.dtype == expected.image.dtype
    assert image.shape == expected.image.shape
    np.testing.assert_array_equal(image > 0, expected.image > 0)
    np.testing.assert_allclose(image, expected.image, rtol=bound, atol=0)
    assert found.mass.log() == pytest.approx(expected.mass.log(), rel=1e-15, abs=bound)
    assert found.lost == pytest.approx(expected.lost, rel=bound)
    assert found.dropped == pytest.approx(expected.dropped, rel=bound)


def empty(at: Where, dtype: str) -> str | None:
    """What the CPU says of a unit that sees nothing; None of any other."""
    try:
        on_cpu(at, dtype)
    except EmptyFieldError as error:
        return str(error)
    return None


# --- images -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", U)
@pytest.mark.parametrize("grid", ["unbounded", "clipped"])
@pytest.mark.parametrize("name", CASES)
def test_images(xp: ModuleType, name: str, grid: str, dtype: str) -> None:
    graph = CASES[name]
    size = None if grid == "unbounded" else graph.size
    for unit in units(graph, size)[-2:]:
        at = where(graph.network(), unit, size)
        message = empty(at, dtype)
        if message is None:
            expected = on_cpu(at, dtype)
            assert_same(on_device(xp, at, dtype), expected, 2 * ROUNDINGS * U[dtype])
            continue
        with pytest.raises(EmptyFieldError) as caught:
            on_device(xp, at, dtype)
        assert str(caught.value) == message


@pytest.mark.parametrize("tail", [1e-6, 1e-3])
@pytest.mark.parametrize("size", [None, 40])
def test_tails(xp: ModuleType, size: int | None, tail: float) -> None:
    """What is dropped, and where the image then ends."""
    at = where(rf.zoo.plain(24, 3), size=size)
    expected = on_cpu(at, "float64", tail=tail)
    assert expected.dropped > 0
    assert_same(on_device(xp, at, "float64", tail=tail), expected, 2 * ROUNDINGS * U["float64"])


def test_progress(xp: ModuleType) -> None:
    seen: list[float] = []
    on_device(xp, where(rf.zoo.plain(80, 3, 1)), "float64", progress=seen.append)
    assert seen == sorted(seen)
    assert seen[-1] == 1
    assert len(seen) > 1


# --- range, and how often the host waits ------------------------------------------------------


def conv(*layers: rf.Conv, ndim: int = 1) -> rf.Network:
    return rf.Sequential(*layers, ndim=ndim)


_SKEWED = rf.Conv(3, padding=1, taps=[1, 1e-3, 5])
_WEAK = rf.Conv(2, taps=[1, 1e-6], padding=((1, 0),))
_GAPS = rf.ConvTranspose(3, stride=2, padding=1)
_MIRRORED = rf.Conv(3, padding=1, padding_mode="reflect")
_LOUD, _QUIET = rf.Conv(3, gain=2.0**900), rf.Conv(3, gain=2.0**-900)
_WHISPER = rf.Residual(rf.Conv(3, padding=1, taps=[1, 0, 1], gain=2.0**-600))
_THIRD = math.log2(3 / 2)

# Network, unit, input size, roundings of a pixel, by how many powers of two the bounds on an image
# drift apart in all layers, and how often there is no bound at all.
DEEP: dict[str, tuple[rf.Network, Any, Any, int, float, int]] = {
    # No map hands on less than all that it gets: peak and mass rise together.
    "plain": (rf.zoo.plain(300, 3, 1), 0, None, 300 * 3, 0, 0),
    "plain 2-D": (rf.zoo.plain(25, 3, 2), 0, None, 2 * 25 * 3, 0, 0),
    "wide": (rf.zoo.plain(40, 17, 1), 0, None, 40 * 18, 0, 0),
    "taps": (conv(*[_SKEWED] * 150), 0, None, 150 * 4, 0, 0),
    "residual": (rf.zoo.residual(60, 3, 1), 0, None, 60 * 6, 0, 0),
    "gains": (conv(*[_LOUD, _QUIET] * 30), 0, None, 60 * 4, 0, 0),
    # A border may take one tap of three.
    "clipped": (rf.zoo.plain(200, 3, 1), "center", 16, 200 * 3, 200 * _THIRD, 0),
    "clipped 2-D": (rf.zoo.plain(40, 3, 2), "center", 9, 2 * 40 * 3, 2 * 40 * _THIRD, 0),
    "clipped residual": (rf.zoo.residual(60, 3, 1), 0, 12, 60 * 6, 60 * _THIRD, 0),
    # Of 1 and 1e-6 it may leave the weaker one.
    "weak taps": (conv(*[_WEAK] * 30), 0, 8, 30 * 3, 30 * math.log2(1e6 + 1), 0),
    # All but the tail falls into padding, and no bound says how much.
    "padding": (conv(rf.Pad(((120, 60),)), *[rf.Conv(3)] * 60), 0, 240, 60 * 3, 0, 1),
    # A unit meets two taps of three, or one.
    "gaps": (conv(*[_GAPS, rf.Conv(4, stride=2)] * 30), 0, None, 30 * 8, 30 * math.log2(3), 0),
    # A branch far weaker than its shortcut, whose pixels show beside it in float64 alone.
    "weak branch": (conv(_WHISPER, *[rf.Conv(9, padding=4)] * 20), 0, None, 20 * 10, 0, 0),
    "global": (conv(rf.Conv(3, padding=1), rf.SqueezeExcite(), _SKEWED), 5, 12, 12 + 12, 2, 0),
    # A pixel beside a border is read twice.
    "mirrored": (conv(*[_MIRRORED] * 60), 3, 9, 60 * 8, 60, 0),
}


def assert_alike(found: Propagated, expected: Propagated, dtype: str, bound: float) -> None:
    """As `assert_same`, but that the smallest pixels may be there in one and not in the other."""
    image, tiny = on_host(found.image), 2 * float(np.finfo(dtype).smallest_normal)
    low = [min(pair) for pair in zip(found.origin, expected.origin, strict=True)]
    both = []
    for values, origin in ((image, found.origin), (expected.image, expected.origin)):
        before = [o - start for o, start in zip(origin, low, strict=True)]
        both.append((values, before))
    ends = [
        max(n + b for n, b in along)
        for along in zip(*(zip(v.shape, b, strict=True) for v, b in both), strict=True)
    ]
    one, other = (
        np.pad(v, [(b, e - b - n) for n, b, e in zip(v.shape, before, ends, strict=True)])
        for v, before in both
    )
    seen = np.maximum(one, other) > tiny
    np.testing.assert_allclose(one[seen], other[seen], rtol=bound, atol=0)
    assert seen.any()
    assert found.mass.log() == pytest.approx(expected.mass.log(), rel=1e-15, abs=bound)
    assert found.lost == pytest.approx(expected.lost, rel=bound)


@pytest.mark.parametrize("dtype", U)
@pytest.mark.parametrize("name", DEEP)
def test_depth(xp: ModuleType, name: str, dtype: str) -> None:
    """Images whose values would leave the range of their type if nobody scaled them."""
    net, unit, size, roundings, drift, unknown = DEEP[name]
    at = where(net, unit, size)
    before = getattr(xp, "waits", 0)
    found = on_device(xp, at, dtype)
    waited = getattr(xp, "waits", 0) - before
    # The bounds may be as far apart as the headroom's slack, of which the number of pixels (at most
    # 128 where they drift) takes its logarithm; then somebody looks. Once more at the end.
    looks = int(drift / (Headroom.of(dtype).slack - 7)) + unknown
    assert waited <= looks + 1
    assert_alike(found, on_cpu(at, dtype), dtype, 2 * (roundings + 8) * U[dtype])


@pytest.mark.parametrize("dtype", U)
@pytest.mark.parametrize("name", [name for name, (_, _, own) in SCALED.items() if not own])
def test_images_that_planes_hold_are_left_alone(xp: ModuleType, name: str, dtype: str) -> None:
    assert_in_place(name, dtype, "cuda", xp=xp)


@pytest.mark.parametrize(
    ("name", "grid"),
    [*product(CASES, ["unbounded", "clipped"]), *((name, "its own") for name in DEEP)],
)
def test_bounds_hold(xp: ModuleType, name: str, grid: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No value lies above an image's peak, and their sum not below its mass."""
    trim, seen = direct.Walk._trim, []

    def watched(self: Any, image: direct.Image, **rest: bool) -> direct.Image | None:
        array = on_host(image.array).astype(np.float64)
        if array.any():
            # A sum of N numbers is right to N·u; the bounds are sums of a few logarithms.
            room = 1e-9
            assert math.log2(array.max()) <= image.peak + room
            assert math.log2((array / array.max()).sum()) >= (
                image.mass - math.log2(array.max()) - room
            )
            seen.append(image.mass)
        return trim(self, image, **rest)

    monkeypatch.setattr(direct.Walk, "_trim", watched)
    if grid == "its own":
        net, unit, size, *_ = DEEP[name]
        on_device(xp, where(net, unit, size), "float64")
        assert max(seen) > -math.inf
        return
    graph = CASES[name]
    size = None if grid == "unbounded" else graph.size
    for unit in units(graph, size):
        at = where(graph.network(), unit, size)
        if empty(at, "float64") is None:
            on_device(xp, at, "float64")


def test_errors_are_the_cpus(xp: ModuleType) -> None:
    options = {"kernels": load("cuda"), "xp": xp}
    net = rf.Sequential(rf.Conv(3), rf.SqueezeExcite())
    with pytest.raises(UnboundedError, match="reads the whole map"):
        propagate(*where(net), **options)
    assert on_device(xp, where(net, size=9), "float64").lost == 0
    graph, node, unit, _ = where(rf.Conv(3))
    with pytest.raises(InputError, match="no path leads"):
        propagate(graph, "input", unit, node, **options)


# --- all layers in one pass -------------------------------------------------------------------


def obstacle(name: str) -> str | None:
    graph, node, _, source = where(CASES[name].network())
    return transfer_function(graph, node, source).obstacle


@pytest.mark.parametrize("tail", [None, 1e-6])
@pytest.mark.parametrize("dtype", U)
@pytest.mark.parametrize("name", [name for name in CASES if obstacle(name) is None])
def test_upward(xp: ModuleType, name: str, dtype: str, tail: float | None) -> None:
    graph, node, unit, source = where(CASES[name].network())
    function = transfer_function(graph, node, source)
    options: dict[str, Any] = {"dtype": dtype, "tail": tail}
    before = getattr(xp, "waits", 0)
    found = dict(propagate_upward(function, unit, kernels=load("cuda"), xp=xp, **options))
    # Once a result, whose window depends on it; once more where a tail is cut off.
    assert getattr(xp, "waits", 0) - before <= len(found) * (1 if tail is None else 2)
    expected = dict(propagate_upward(function, unit, kernels=load("cpu"), **options))
    assert found.keys() == expected.keys()
    for name in expected:
        assert isinstance(found[name].image, xp.ndarray)
        bound = 2 * ROUNDINGS * U["float64"] + 2 * U[dtype]
        image = on_host(found[name].image)
        assert found[name].origin == expected[name].origin
        np.testing.assert_allclose(image, expected[name].image, rtol=bound, atol=0)
        assert found[name].mass.log() == pytest.approx(expected[name].mass.log(), abs=bound)
        # What is dropped is a difference from 1.
        assert found[name].dropped == pytest.approx(expected[name].dropped, abs=bound)


# --- devices ----------------------------------------------------------------------------------

H200 = {"MemoryClockRate": 3_201_000, "GlobalMemoryBusWidth": 6144}
"""As CUDA says them of an H200: kilohertz and bits."""


@pytest.fixture
def gpu(xp: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A machine with a GPU, of which fastrf finds the one of `xp`."""
    if xp is fake_cupy:
        monkeypatch.setattr(device, "_look", lambda: device._Found(xp=xp, count=1))
        monkeypatch.setattr(fake_cupy._Device, "attributes", H200, raising=False)
        free(monkeypatch, 16 << 30)
    return xp


def free(monkeypatch: pytest.MonkeyPatch, amount: int) -> None:
    """Lets a device have so many bytes left, half of them in CuPy's pool."""

    class Pool:
        def free_bytes(self) -> int:
            return amount // 2

        def free_all_blocks(self) -> None:
            pass

    xp = device.resolve("cuda").xp
    monkeypatch.setattr(xp, "get_default_memory_pool", Pool, raising=False)
    told = (amount - amount // 2, 2 * amount)
    monkeypatch.setattr(xp.cuda.runtime, "memGetInfo", lambda: told, raising=False)


RESIDUAL = rf.Sequential(rf.Conv(3, padding=1), *[rf.Residual(rf.Conv(3, padding=1))] * 3)


@pytest.mark.parametrize("options", [{}, {"layers": "all"}], ids=["last", "all"])
@pytest.mark.parametrize("size", [None, 9])
@pytest.mark.parametrize("method", ["auto", "direct"])
def test_public(gpu: ModuleType, method: str, size: int | None, options: dict[str, Any]) -> None:
    net = RESIDUAL
    choice = {"input_size": size, "method": method, **options}
    found, expected = (rf.erf(net, device=d, **choice) for d in ("cuda", "cpu"))
    if not options:
        found, expected = {"last": found}, {"last": expected}
    assert found.keys() == expected.keys()
    for name, own in found.items():
        assert own.plan.device == "cuda:0"
        assert own.plan.workers == 1
        assert "not measured" in str(own.plan)
        assert isinstance(own.image, gpu.ndarray)
        bound = 2 * ROUNDINGS * U["float64"]
        assert own.origin == expected[name].origin
        assert isinstance(own.to_numpy(), np.ndarray)
        np.testing.assert_allclose(own.to_numpy(), expected[name].image, rtol=bound, atol=0)
        assert own.log_gain == pytest.approx(expected[name].log_gain, abs=bound)
        assert own.lost_mass == pytest.approx(expected[name].lost_mass, abs=bound)


def test_saved(gpu: ModuleType, tmp_path: Path) -> None:
    result = rf.erf(RESIDUAL, device="cuda", method="direct")
    result.save(tmp_path / "field.npz")
    np.testing.assert_array_equal(rf.ERF.load(tmp_path / "field.npz").image, result.to_numpy())


@pytest.mark.parametrize("method", ["direct", "factored", "spectral"])
def test_a_second_gpu(
    gpu: ModuleType, method: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was computed there stays there, is measured there, and saved, from wherever it is
    asked; the first GPU stays the current one."""
    if gpu is not fake_cupy:
        pytest.skip("only the stand-in has two for certain")
    monkeypatch.setattr(device, "_look", lambda: device._Found(xp=gpu, count=2))
    net = rf.Sequential(rf.Residual(rf.Conv(3, padding=1)), rf.Conv(5), ndim=2)
    found, expected = (rf.erf(net, method=method, device=d) for d in ("cuda:1", "cpu"))
    for name in ("mean", "std", "covariance", "kurtosis", "fwhm", "gaussian_distance"):
        own, other = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(own, other, rtol=1e-9, atol=1e-9)
    assert found.warnings == expected.warnings
    assert found.image.device.id == 1
    found.save(tmp_path / "erf.npz")
    np.testing.assert_allclose(rf.ERF.load(tmp_path / "erf.npz").image, expected.image, atol=1e-12)
    assert gpu.cuda.runtime.getDevice() == 0
    every = rf.erf(net, device="cuda:1", layers="all")
    assert {field.image.device.id for field in every.values()} == {1}


def test_taps_of_a_device(xp: ModuleType) -> None:
    taps = np.array([[1.0, 2.0], [3.0, 5.0]])
    assert rf.Conv(2, taps=xp.asarray(taps)).bind(2) == rf.Conv(2, taps=taps).bind(2)


def test_an_engine_that_falls_back_stays_on_its_device(gpu: ModuleType) -> None:
    made = rf.plan(RESIDUAL, device="cuda", method="spectral", accuracy="absolute")
    assert made.instead("direct", "because").device == "cuda:0"


RING = [[1, 2, 1], [2, 1, 2], [1, 2, 1]]


def big(**options: Any) -> Any:
    """Seconds of one CPU core, and hundreds of mebibytes: borders and taps that are no product
    leave no other engine but the direct one."""
    net = rf.Sequential(*[rf.Conv(3, padding=1, taps=RING)] * 3000)
    return rf.plan(net, input_size=3000, **options)


def test_auto_takes_the_gpu_for_big_work(gpu: ModuleType) -> None:
    made = big()
    assert made.device == "cuda:0"
    told = made.notes[0]
    assert told.startswith("auto: cuda:0 ")
    assert f"the CPU {big(device='cpu').seconds:.2g} s" in told
    assert "not measured" in made.notes[1]
    assert made.seconds < big(device="cpu").seconds / 3


def test_plans_of_a_gpu_count_the_buffer_of_its_kernels(gpu: ModuleType) -> None:
    """And what nobody trims, as nobody looks at values on the way."""
    net = rf.zoo.plain(400)
    own, host = (rf.plan(net, method="direct", device=d, workers=1) for d in ("cuda", "cpu"))
    assert own.memory > 1.1 * host.memory


def test_auto_takes_the_cpu_for_small_work(gpu: ModuleType) -> None:
    made = rf.plan(RESIDUAL)
    assert made.device == "cpu"
    (told,) = made.notes
    assert told.startswith("auto: ")
    assert told.endswith("of the CPU is not worth cuda:0")
    result = rf.erf(RESIDUAL)
    assert isinstance(result.image, np.ndarray)
    assert all(own.plan.device == "cpu" for own in rf.erf(RESIDUAL, layers="all").values())


@pytest.mark.parametrize("size", [None, 9])
def test_auto_takes_one_device_for_all_layers(
    gpu: ModuleType, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fields are sums of each other's: were work worth a GPU however small it is, all would be."""
    monkeypatch.setattr(plan, "NOTICEABLE", 0.0)
    monkeypatch.setattr(plan, "UNMEASURED", 0.0)
    found = rf.erf(RESIDUAL, layers="all", input_size=size)
    assert {own.plan.device for own in found.values()} == {"cuda:0"}
    assert all(own.plan.notes[0].startswith("auto: cuda:0 ") for own in found.values())
    assert all(isinstance(own.image, gpu.ndarray) for own in found.values())


class TestMemory:
    """Of the stand-in's memory; a GPU's own is not to be filled by a test."""

    @pytest.fixture(autouse=True)
    def little(self, gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
        free(monkeypatch, 64 << 20)

    def test_a_plan_that_does_not_fit_is_refused(self) -> None:
        with pytest.raises(PlanError, match="32 MiB"):
            big(device="cuda")

    def test_more_than_is_free_is_refused_whatever_the_limit(self) -> None:
        with pytest.raises(PlanError, match="64 MiB"):
            big(device="cuda", memory_limit=1 << 40)

    def test_auto_stays_on_the_cpu(self) -> None:
        made = big()
        assert made.device == "cpu"
        assert "cuda:0 would need" in made.notes[0]

    def test_what_fits_is_computed(self) -> None:
        assert rf.erf(RESIDUAL, device="cuda").plan.device == "cuda:0"


def test_the_gpu_takes_what_the_cpu_has_no_room_for(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "free_on_host", lambda: 64 << 20)
    made = big()
    assert made.device == "cuda:0"
    assert "the CPU would need" in made.notes[0]


def test_bandwidth_by_the_data_sheet(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The H200's is 4.8 TB/s; what its clock and bus come to is a little more."""
    found = device.resolve("cuda").bandwidth()
    assert found is None or found > 0
    if gpu is fake_cupy:
        assert found == pytest.approx(4.8e12, rel=0.03)
        monkeypatch.setattr(fake_cupy._Device, "attributes", {}, raising=False)
        assert device.resolve("cuda").bandwidth() is None
        assert rf.plan(RESIDUAL, device="cuda").seconds > 0
    assert device.resolve("cpu").bandwidth() is None


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "_look", lambda: device._Found("nothing is there", "buy one"))
    with pytest.raises(DeviceError, match="nothing is there; buy one"):
        rf.plan(RESIDUAL, device="cuda")
    made = big()
    assert made.device == "cpu"
    assert made.notes == ("auto: no GPU, nothing is there",)


# Few layers of wide maps, for the shim's sake: images of 300 KiB to 1 MiB in float64.
MEMORY = {
    "wide": (rf.Sequential(*[rf.Conv(101, padding=50)] * 3), None),
    "holes": (rf.Sequential(*[rf.Conv(3, dilation=60)] * 3), None),
    "swept": (rf.Sequential(rf.Conv(201), *[rf.Conv(3)] * 4), None),
    "clipped residual": (
        rf.Sequential(rf.Conv(201, padding=100), *[rf.Residual(rf.Conv(3, padding=1))] * 3),
        250,
    ),
    "dense taps": (rf.Sequential(rf.Conv(201), *[rf.Conv(3, taps=RING)] * 3), None),
    "strided": (rf.Sequential(*[rf.Conv(5, stride=2, padding=2)] * 6), None),
    "3-D": (rf.Sequential(rf.Conv(33), rf.Conv(3), ndim=3), None),
}


@pytest.mark.parametrize("dtype", U)
@pytest.mark.parametrize("name", MEMORY)
def test_memory(
    name: str, dtype: str, standin: Callable[..., StandIn], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the direct engine takes of a device is no more than foretold, and not many times less.

    Held against the stand-in, whose arrays are all that is counted.
    """
    xp, _ = fake_cupy.install(monkeypatch, standin())
    net, size = MEMORY[name]
    monkeypatch.setattr(device, "_look", lambda: device._Found(xp=xp, count=1))
    monkeypatch.setattr(fake_cupy._Device, "attributes", H200, raising=False)
    free(monkeypatch, 16 << 30)
    made = rf.plan(net, input_size=size, device="cuda", method="direct", dtype=dtype)
    at = where(net, size=size)
    on_device(xp, at, dtype)
    tracemalloc.start()
    on_device(xp, at, dtype)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Besides images there are windows, numbers and Python's own objects.
    assert peak <= made.memory + 2**17
    assert made.memory <= 8 * peak
