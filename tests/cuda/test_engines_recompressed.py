"""The recompressed engine on arrays of a device: terms, reductions and pixels are made there.

On a machine without a GPU the device is `fake_cupy` over the shim (see test_engines_direct). On one
with a GPU the same bodies run on it, too.

Tolerances. Either result is wrong by no more than the bound that it comes with, relative to its
peak, whatever library has reduced it: two of them differ by at most the sum, and by what casting to
float32 rounds. What is not negative is right pixel by pixel in the same way.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from types import ModuleType
from typing import Any

import fake_cupy
import numpy as np
import pytest
import test_recompressed
from fastrf.kernels import load
from test_engines_direct import free, where
from test_engines_direct import gpu as machine
from test_engines_direct import xp as device_arrays
from test_recompressed import CASES, VOLUMES, Where, residual, units

import fastrf as rf
from fastrf import metrics
from fastrf.arrays import on_host
from fastrf.engine import ENGINES, cost
from fastrf.engine.recompressed import Recompressed, TuckerImage, lowrank, recompress, volumes
from fastrf.engine.recompressed.script import Apply, script
from fastrf.errors import EmptyFieldError, ToleranceError

gpu, xp = machine, device_arrays

EPS = {"float64": 0.0, "float32": 2.0**-24}
TOL = 1e-9


def assert_same(found: Recompressed, expected: Recompressed, dtype: str) -> None:
    """Every pixel, their sum of squares, the mass and what was lost."""
    own, same = found.propagated, expected.propagated
    pixels, reference = on_host(own.pixels()), same.pixels()
    assert pixels.dtype == reference.dtype == dtype
    corners = np.array([own.origin, same.origin])
    stops = corners + np.array([pixels.shape, reference.shape])
    both = []
    for image, corner in zip((pixels, reference), corners - corners.min(axis=0), strict=True):
        whole = np.zeros(stops.max(axis=0) - corners.min(axis=0))
        whole[tuple(slice(c, c + n) for c, n in zip(corner, image.shape, strict=True))] = image
        both.append(whole)
    bound = found.bound + expected.bound + 2 * EPS[dtype]
    peak = both[1].max()
    assert np.abs(both[0] - both[1]).max() <= bound * peak
    assert pixels.min() >= 0
    # Of x² the differences are (x̂ − x)·(x̂ + x), and each image sums to 1.
    squares = [float((image**2).sum()) for image in both]
    assert abs(squares[0] - squares[1]) <= 2.01 * bound * peak
    assert own.mass.log() == pytest.approx(same.mass.log(), rel=1e-15, abs=bound)
    assert own.lost == pytest.approx(same.lost, abs=2 * bound)
    assert own.dropped == pytest.approx(same.dropped, abs=2 * bound)
    assert (found.reductions, found.terms) == (expected.reductions, expected.terms)
    assert found.relative == expected.relative


def on_device(xp: ModuleType, place: Where, **options: Any) -> Recompressed:
    found = recompress(*place, xp=xp, **options)
    assert isinstance(found.propagated.pixels(), xp.ndarray)
    return found


# --- the same as on the CPU -------------------------------------------------------------------


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("grid", ["unbounded", "clipped"])
@pytest.mark.parametrize("name", CASES)
def test_every_kind_of_layer(xp: ModuleType, name: str, grid: str, dtype: str) -> None:
    size = None if grid == "unbounded" else CASES[name].size
    for unit in units(CASES[name], size)[-2:]:
        place = where(CASES[name].network(), unit, size)
        options = {"dtype": dtype, "tol": TOL}
        if test_recompressed.seen(place, dtype) is None:
            with pytest.raises(EmptyFieldError, match="reads nothing of"):
                recompress(*place, xp=xp, **options)
            continue
        assert_same(on_device(xp, place, **options), recompress(*place, **options), dtype)


RING = np.add.outer(np.arange(-2, 3) ** 2, np.arange(-2, 3) ** 2) + 1.0

PLANES: dict[str, tuple[Any, Any]] = {
    "pixels are decomposed": (residual(40, (3, 5)), 60),
    "factors are decomposed": (residual(24, (3, 5)), 120),
    "unbounded": (residual(30, (3, 5)), None),
    "taps that are no product": (rf.Sequential(*[rf.Conv(5, padding=2, taps=RING)] * 6), 40),
    "strided": (rf.Sequential(residual(20, (3, 5)), rf.MaxPool(3, 2), residual(60)), 90),
    "only nonnegative": (rf.zoo.residual(40), 64),
}


@pytest.mark.parametrize("measured", [True, False])
@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("name", PLANES)
def test_planes(
    xp: ModuleType, name: str, dtype: str, measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was changed measured in the pixels, or bounded from the factors."""
    if not measured:
        monkeypatch.setattr(lowrank, "MEASURED", 0)
    place = where(PLANES[name][0], size=PLANES[name][1])
    options = {"dtype": dtype, "tol": TOL}
    expected = recompress(*place, **options)
    assert_same(on_device(xp, place, **options), expected, dtype)


@pytest.mark.parametrize("measured", [volumes.MEASURED, 0])
@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("name", VOLUMES)
def test_volumes(
    xp: ModuleType, name: str, dtype: str, measured: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(volumes, "MEASURED", measured)
    place = test_recompressed.where(*VOLUMES[name])
    expected = recompress(*place, dtype=dtype, tol=TOL)
    assert_same(on_device(xp, place, dtype=dtype, tol=TOL), expected, dtype)


@pytest.mark.parametrize("planes", [1, 1 << 22])
def test_volumes_of_terms_by_themselves(
    xp: ModuleType, planes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Formed a plane at a time, or all at once."""
    monkeypatch.setattr(lowrank, "DEVICE_PLANES", planes)
    place = where(residual(25, ndim=3), size=(20, 12, 14))
    assert_same(on_device(xp, place), recompress(*place), "float64")


@pytest.mark.parametrize("net", [residual(30, (3, 5)), residual(12, (3, 5), ndim=3)])
def test_tails(xp: ModuleType, net: rf.Network) -> None:
    place = where(net, size=50 if net.ndim == 2 else 24)
    expected = recompress(*place, tail=1e-2, tol=TOL)
    assert expected.propagated.dropped > 0
    assert_same(on_device(xp, place, tail=1e-2, tol=TOL), expected, "float64")


@pytest.mark.parametrize("ndim", [2, 3])
def test_powers(xp: ModuleType, ndim: int) -> None:
    """Each pixel by itself, at a border of the map."""
    place = where(residual(30, ndim=ndim), (0,) * ndim, 40 if ndim == 2 else 12)
    run = ENGINES["powers"].run
    found, expected = (
        run(*place, kernels=load(d), xp=x).pixels() for d, x in (("cuda", xp), ("cpu", np))
    )
    assert isinstance(found, xp.ndarray)
    bound = 2 * recompress(*place).rounding
    np.testing.assert_allclose(on_host(found), expected, rtol=bound, atol=1e-290)


def test_as_a_user_asks(gpu: ModuleType) -> None:
    net = residual(30, (3, 5))
    options: dict[str, Any] = {"input_size": 100, "method": "factored", "tol": TOL}
    found, expected = (rf.erf(net, device=d, **options) for d in ("cuda", "cpu"))
    assert (found.plan.engine, found.plan.device) == ("recompressed", "cuda:0")
    assert isinstance(found.image, gpu.ndarray)
    bound = 2 * TOL * expected.to_numpy().max()
    np.testing.assert_allclose(found.to_numpy(), expected.to_numpy(), rtol=0, atol=bound)


# --- where it is computed ---------------------------------------------------------------------


def counted(xp: ModuleType, place: Where) -> tuple[Recompressed, dict[str, int], list[str]]:
    """A field and its pixels; bytes that crossed, waits, and what was decomposed on the device."""
    if xp is not fake_cupy:
        pytest.skip("the stand-in counts")
    before = fake_cupy.waits, fake_cupy.brought
    fake_cupy.largest_taken = 0
    fake_cupy.solved.clear()
    found = on_device(xp, place, tol=TOL)
    return (
        found,
        {
            "waits": fake_cupy.waits - before[0],
            "brought": fake_cupy.brought - before[1],
            "taken": fake_cupy.largest_taken,
        },
        list(fake_cupy.solved),
    )


LARGE: dict[str, tuple[Any, Any]] = {
    "plane": (residual(30, (9, 15)), 300),
    "volume": (residual(14, (3, 5), ndim=3), 70),
}


@pytest.mark.parametrize("name", LARGE)
def test_no_image_crosses(xp: ModuleType, name: str) -> None:
    place = where(LARGE[name][0], size=LARGE[name][1])
    found, crossed, _ = counted(xp, place)
    image = found.propagated.pixels().nbytes
    # Factors of a volume; else what is of one axis.
    assert 0 < crossed["taken"] < image / (10 if name == "volume" else 50)
    # Matrices of an axis, and of a volume its factors once more, to form it of.
    assert 0 < crossed["brought"] < image


@pytest.mark.parametrize("name", LARGE)
def test_decompositions_are_the_devices(xp: ModuleType, name: str) -> None:
    """Two factors and a core of a plane; three factors of a volume, and its core along each
    axis."""
    found, _, solved = counted(xp, where(LARGE[name][0], size=LARGE[name][1]))
    kinds = [each.partition(" ")[0] for each in solved]
    svd, qr = {"plane": (1, 2), "volume": (3, 3)}[name]
    assert found.reductions > 3
    assert kinds.count("svd") >= svd * found.reductions
    assert kinds.count("qr") >= qr * found.reductions


def test_nothing_is_decomposed_on_the_host(xp: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """But by the stand-in, which is not asked for its own functions here."""
    if xp is not fake_cupy:
        pytest.skip("of a GPU's namespace it is certain")
    own = {name: getattr(np.linalg, name) for name in ("qr", "svd", "norm")}

    def counting(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return own[name](*args, **kwargs)

        return call

    calls: list[str] = []
    place = where(residual(30, (3, 5)), size=60)
    recompress(*place, tol=TOL)  # taps and ranks, which are the host's
    for name in ("qr", "svd"):
        monkeypatch.setattr(np.linalg, name, counting(name))
    fake_cupy.solved.clear()
    recompress(*place, tol=TOL, xp=xp)
    assert len(calls) == len(fake_cupy.solved) > 0


@pytest.mark.parametrize("name", LARGE)
def test_the_host_waits_where_a_reduction_decides(xp: ModuleType, name: str) -> None:
    """Twice a reduction of a plane, for traces and ranks, three times of a volume, once an axis;
    once a map that is applied; and at the end."""
    place = where(LARGE[name][0], size=LARGE[name][1])
    found, crossed, solved = counted(xp, place)
    batches = sum(each.startswith("svd") for each in solved)
    applied = sum(isinstance(step, Apply) for step in script(*place).steps)
    each = batches if name == "volume" else batches + found.reductions
    assert each < crossed["waits"] <= each + applied + 6


def test_waits_grow_with_reductions_alone(xp: ModuleType) -> None:
    """Powers of a map are nothing to wait for, but where they are brought near 1."""
    counts = [counted(xp, where(rf.zoo.residual(n), size=80))[1]["waits"] for n in (8, 16, 24)]
    assert counts[0] == counts[1] == counts[2] <= 6


def test_any_device_takes_the_matrices(xp: ModuleType) -> None:
    """What stays with a network is the host's: another GPU is handed its own."""
    if xp is not fake_cupy:
        pytest.skip("only the stand-in has two for certain")
    place = where(residual(20, (3, 5)), size=50)
    expected = recompress(*place, tol=TOL)
    for number in (0, 1):
        with xp.cuda.Device(number):
            found = on_device(xp, place, tol=TOL)
            assert found.propagated.pixels().device.id == number
            assert_same(found, expected, "float64")


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("net", [residual(30, (3, 5)), residual(14, (3, 5), ndim=3)])
@pytest.mark.parametrize("measured", [True, False])
def test_what_does_not_converge_is_measured(
    xp: ModuleType, net: rf.Network, measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cuSOLVER reports no failure unless it is waited for; the bound tells."""
    if not measured:
        for module in (lowrank, volumes):
            monkeypatch.setattr(module, "MEASURED", 0)
        monkeypatch.setattr(lowrank, "WHOLE", 0)
    right = xp.linalg.svd

    def wrong(*args: Any, **kwargs: Any) -> Any:
        u, s, vt = right(*args, **kwargs)
        turn = u.copy()
        turn[:, 0] = u[:, 0] * 0.9999
        return turn, s, vt

    monkeypatch.setattr(xp.linalg, "svd", wrong)
    with pytest.raises(ToleranceError, match="is finer than"):
        recompress(*where(net, size=60 if net.ndim == 2 else 24), tol=1e-6, xp=xp)


# --- volumes in their factors -----------------------------------------------------------------


@pytest.fixture
def volume(xp: ModuleType) -> tuple[TuckerImage, TuckerImage]:
    """On the device and on the host."""
    place = where(residual(16, (3, 5), ndim=3), size=26)
    pair = [recompress(*place, tol=TOL, xp=x).propagated.image for x in (xp, np)]
    assert all(isinstance(image, TuckerImage) for image in pair)
    return pair[0], pair[1]


MEASURES: dict[str, Callable[[Any], Any]] = {
    "mean": metrics.mean,
    "covariance": metrics.covariance,
    "kurtosis": metrics.kurtosis,
    "profile": lambda image: metrics.profile(image, 1),
    "fwhm": metrics.fwhm,
    "luo amplitude": metrics.luo_size,
    "luo variance": lambda image: metrics.luo_size(image, "variance"),
    "radius_of_mass": lambda image: metrics.radius_of_mass(image, 0.6),
    "smallest_set": lambda image: metrics.smallest_set(image, 0.7),
    "smallest_set_area": lambda image: metrics.smallest_set_area(image, 0.7),
    "gaussian_distance": metrics.gaussian_distance,
    "peak": lambda image: image.peak(),
    "blocks": lambda image: sum(float(block.sum()) for _, block in image.blocks()),
}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("block", [1 << 20, 2000])
def test_measures_of_a_volume(
    volume: tuple[TuckerImage, TuckerImage],
    name: str,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A measure makes of what the images differ by (1e-12 of the peak) no more than a thousand
    times that."""
    monkeypatch.setattr("fastrf.engine.recompressed.tucker.BLOCK", block)
    found, expected = (MEASURES[name](image) for image in volume)
    np.testing.assert_allclose(found, expected, rtol=TOL, atol=TOL)


def test_pixels_of_a_volume(xp: ModuleType, volume: tuple[TuckerImage, TuckerImage]) -> None:
    there, here = volume
    box = [(3, 9), (0, 5), (7, 26)]
    for found, expected in (
        (there.form(), here.form()),
        (there.form(out=xp.empty(there.shape)), here.form()),
        (there.window(box), here.window(box)),
    ):
        assert isinstance(found, xp.ndarray)
        np.testing.assert_allclose(on_host(found), expected, rtol=0, atol=1e-12)


# --- plans ------------------------------------------------------------------------------------

MEMORY: dict[str, tuple[Any, Any]] = {
    "pixels": (residual(20, (3, 5)), 90),
    "factors": (residual(24, (3, 5)), 400),
    "powers": (residual(60), 500),
    "strided": (rf.Sequential(residual(12, (3, 5)), rf.MaxPool(3, 2), residual(60)), 300),
    "taps that are no product": (rf.Sequential(*[rf.Conv(5, padding=2, taps=RING)] * 6), 300),
    "volume": (residual(14, (3, 5), ndim=3), 84),
    "volume of powers": (residual(20, ndim=3), 70),
}


@pytest.mark.parametrize(
    ("name", "dtype"), [*((name, "float64") for name in MEMORY), ("powers", "float32")]
)
def test_memory(gpu: ModuleType, name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is taken of a device is no more than foretold, and not many times less.

    Held against the stand-in, whose arrays are all that is counted; of what cuSOLVER works in it
    has LAPACK's, which is not.
    """
    if gpu is not fake_cupy:
        pytest.skip("a GPU's own memory is not to be filled by a test")
    free(monkeypatch, 16 << 30)
    net, size = MEMORY[name]
    options: dict[str, Any] = {"input_size": size, "method": "factored", "tol": TOL}
    plan = rf.plan(net, device="cuda", dtype=dtype, accuracy="absolute", **options)
    assert plan.engine in ("powers", "recompressed")
    place = where(net, size=size)
    run = ENGINES[plan.engine].run
    options = {"kernels": load("cuda"), "xp": gpu, "dtype": dtype}
    options |= {"tol": TOL} if plan.engine == "recompressed" else {}
    run(*place, **options).pixels()
    tracemalloc.start()
    run(*place, **options).pixels()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Besides, there are Python's own objects.
    assert peak <= plan.memory + 2**18
    assert plan.memory <= 2 * peak


def test_the_forecast_of_a_gpu(gpu: ModuleType) -> None:
    """What depends on sizes goes by bandwidth; calls take longer than on the host."""
    place = where(residual(30, (3, 5)), size=600)
    engine = ENGINES["recompressed"]
    field = (*place, np.dtype(np.float64), None, TOL)
    here = engine.foretold(*field, costs=cost.CPU)
    slow, fast = (engine.foretold(*field, costs=cost.of_gpu(b)) for b in (2e11, 4e12))
    assert here.shared == 0
    assert slow.fixed == fast.fixed
    assert slow.shared == pytest.approx(20 * fast.shared)
    assert slow.memory == fast.memory >= here.memory
    assert (slow.support, slow.operations, slow.cells) == (
        here.support,
        here.operations,
        here.cells,
    )
    plan = rf.plan(residual(30, (3, 5)), input_size=600, method="factored", device="cuda", tol=TOL)
    assert plan.engine == "recompressed"
    assert any("not measured" in note for note in plan.notes)
