"""The spectral and the factored engine, and all measures, on arrays of a device.

On a machine without a GPU the device is `fake_cupy` over the shim: what CuPy refuses is refused,
and the CUDA kernels run unchanged. On one with a GPU the same bodies run on it, too.

Tolerances. The spectral engine is right to `tol` of the peak on either device. The pixels of
factors differ by what their kernels may round, each within its own bound of the specification, and
by what is left out of a block, 2^−58 of each pixel. Measures on a device are those of the host but
for the order of sums: within 1e-12, as in test_metrics.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import fake_cupy
import numpy as np
import pytest
import test_metrics
from fastrf.kernels import KERNELS, load
from fastrf.kernels.cuda import _module
from shim.standin import StandIn
from test_spectral import NETWORKS

import fastrf as rf
from fastrf import device, metrics, zoo
from fastrf.arrays import on_host
from fastrf.engine import spectral, terms, tilted
from fastrf.engine.direct import Propagated
from fastrf.engine.factored import expanded_all, factor_all, propagate_factored
from fastrf.engine.spectral import propagate_all, propagate_spectral
from fastrf.engine.terms import FactoredImage
from fastrf.engine.transfer import Waves, transfer_function
from fastrf.lowering import PlaneGraph, lower
from fastrf.network import as_network

TOL = 1e-12
LEFT_OUT = 2.0**-57

# A pixel this small may be flushed by one kernel and not by the other.
VISIBLE = {d: float(np.finfo(d).smallest_normal) * (1 + 1e-6) for d in ("float64", "float32")}


@dataclass
class Device:
    """Where an engine is to compute: its array namespace; `backend` is the shim's, if it is one."""

    xp: ModuleType
    backend: fake_cupy.Backend | None

    @property
    def options(self) -> dict[str, Any]:
        return {"kernels": load("cuda"), "xp": self.xp}

    def holds(self, array: Any) -> bool:
        return isinstance(array, self.xp.ndarray)


@pytest.fixture(params=["shim", pytest.param("gpu", marks=pytest.mark.gpu)])
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Device:
    if request.param == "shim":
        standin: Callable[..., StandIn] = request.getfixturevalue("standin")
        return Device(*fake_cupy.install(monkeypatch, standin()))
    missing = device.gpu_at_hand()
    if missing is not None:
        pytest.skip(missing)
    monkeypatch.setattr(_module, "backend", None)
    return Device(device.resolve("cuda").xp, None)


Where = tuple[PlaneGraph, str, tuple[int, ...], str]


def where(net: Any, unit: Any = "center", size: Any = None) -> Where:
    graph = lower(as_network(net), size)
    node = graph.output_node(None)
    return graph, node, graph.unit_index(node, unit), graph.input_node(None)


def placed(found: Propagated, expected: Propagated) -> tuple[np.ndarray, np.ndarray]:
    """Both images in the smallest box around them."""
    pair = [(np.asarray(p.origin), on_host(p.image)) for p in (found, expected)]
    low = np.min([origin for origin, _ in pair], axis=0)
    high = np.max([origin + image.shape for origin, image in pair], axis=0)
    boxes = []
    for origin, image in pair:
        box = np.zeros(high - low)
        box[tuple(slice(s, s + n) for s, n in zip(origin - low, image.shape, strict=True))] = image
        boxes.append(box)
    return boxes[0], boxes[1]


def assert_same_but_pixels(found: Propagated, expected: Propagated) -> None:
    assert found.mass == expected.mass
    assert found.lost == expected.lost
    assert found.dropped == pytest.approx(expected.dropped, rel=1e-6, abs=TOL)


def assert_within(found: Propagated, expected: Propagated, tol: float) -> None:
    """Both are right to `tol` of the peak."""
    assert_same_but_pixels(found, expected)
    one, other = placed(found, expected)
    np.testing.assert_allclose(one, other, rtol=0, atol=2 * tol * other.max())


# --- the spectral engine --------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_spectral(gpu: Device, name: str) -> None:
    place = where(NETWORKS[name]())
    found = propagate_spectral(*place, **gpu.options)
    assert gpu.holds(found.image)
    assert found.image.dtype == np.float64
    assert_within(found, propagate_spectral(*place), TOL)


@pytest.mark.parametrize(("rows", "blocks"), [(1, 7), (3, 3), (100, 1)])
def test_spectral_in_blocks_of_rows(
    gpu: Device, rows: int, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = where(NETWORKS["dense taps"]())
    expected = propagate_spectral(*place)
    made = []

    def counted(grid: Any, xp: Any) -> Waves:
        made.append([axis.index.size for axis in grid])
        return Waves(grid, xp)

    monkeypatch.setattr(spectral, "Waves", counted)
    monkeypatch.setattr(spectral, "DEVICE_BLOCK", rows * 6)
    assert_within(propagate_spectral(*place, **gpu.options), expected, TOL)
    assert [len(made), *made[0]] == [blocks, min(rows, 7), 6]


def test_spectral_in_single_precision(gpu: Device) -> None:
    place = where(zoo.residual(30))
    found = propagate_spectral(*place, dtype="float32", **gpu.options)
    assert found.image.dtype == np.float32
    # Each is TOL and a rounding away from the same pixel.
    assert_within(found, propagate_spectral(*place, dtype="float32"), TOL + 2.0**-24)


def test_spectral_tail(gpu: Device) -> None:
    place = where(zoo.residual(60), (3, -2))
    found = propagate_spectral(*place, tail=1e-4, **gpu.options)
    expected = propagate_spectral(*place, tail=1e-4)
    assert found.origin == expected.origin
    assert_within(found, expected, TOL)


def test_spectral_pass(gpu: Device) -> None:
    place = where(zoo.resnet18())
    expected = propagate_all(*place)
    found = propagate_all(*place, xp=gpu.xp)
    assert list(found) == list(expected)
    for node, field in found.items():
        assert gpu.holds(field.image)
        assert_within(field, expected[node], TOL)


def test_the_host_waits_no_more_often_for_more_layers(gpu: Device) -> None:
    """What has to be known beforehand is known from bounds, which are the host's."""
    if gpu.backend is None:
        pytest.skip("the shim counts")
    counts = []
    for blocks in (2, 20):
        layers = [rf.Residual(rf.Conv(3, padding=1, gain=1 + i / 9)) for i in range(blocks)]
        before = fake_cupy.waits
        propagate_spectral(*where(rf.Sequential(*layers)), **gpu.options)
        counts.append(fake_cupy.waits - before)
    assert counts[0] == counts[1] > 0


def test_the_grid_is_made_on_the_device(gpu: Device) -> None:
    """Only what belongs to one axis is brought there."""
    if gpu.backend is None:
        pytest.skip("the shim counts")
    taps = 1.0 + np.arange(9).reshape(3, 3) ** 2 % 7
    place = where(rf.Sequential(*[rf.Conv(3, taps=taps, dilation=9)] * 3))
    before = fake_cupy.brought
    image = propagate_spectral(*place, **gpu.options).image
    assert fake_cupy.brought - before < image.size * 16 / 2


# --- the factored engine --------------------------------------------------------------------

FACTORED: dict[str, tuple[Any, Any]] = {
    "line": (lambda: zoo.plain(20, 3, 1), None),
    "sum along a line": (lambda: zoo.residual(10, ndim=1), None),
    "chain": (lambda: zoo.plain(9, 4), None),
    "chain 3-D": (lambda: zoo.plain(3, 4, 3), None),
    "residual": (lambda: zoo.residual(12), None),
    "residual 3-D": (lambda: zoo.residual(4, ndim=3), None),
    "lopsided": (
        lambda: rf.Sequential(*[rf.Residual(rf.Conv((3, 2), padding=1))] * 9),
        None,
    ),
    "many terms": (lambda: zoo.residual(100), None),
    "wide": (lambda: rf.Sequential(rf.Conv(41), rf.Residual(rf.Conv(3, padding=1))), None),
    "clipped": (lambda: rf.Sequential(*[rf.Conv(3, padding=1)] * 9, rf.Upsample(2)), 20),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", FACTORED)
def test_factored(gpu: Device, name: str, dtype: str) -> None:
    make, size = FACTORED[name]
    place = where(make(), size=size)
    expected = propagate_factored(*place, kernels=load("cpu"), dtype=dtype)
    found = propagate_factored(*place, dtype=dtype, **gpu.options)
    assert isinstance(found.image, FactoredImage)
    if gpu.backend is not None:
        assert not gpu.backend.launches  # profiles are the host's
    pixels, reference = found.image.form(), expected.image.form()
    assert gpu.holds(pixels)
    assert pixels.dtype == reference.dtype == dtype
    assert_same_but_pixels(found, expected)
    assert found.origin == expected.origin
    rank = found.image.rank
    # One product an axis beyond the second, and the rounding to single precision.
    kernel = KERNELS["sum_of_terms"].tolerance(np.float64, rank + len(place[2]))
    rounding = float(np.finfo(dtype).eps) * len(place[2])
    one, other = on_host(pixels), reference
    seen = other >= VISIBLE[dtype]
    bound = 2 * (kernel + rounding + LEFT_OUT)
    np.testing.assert_array_less(np.abs(one - other)[seen], bound * other[seen])
    assert one[~seen].max(initial=0) <= VISIBLE[dtype]


@pytest.mark.parametrize(("block", "launches"), [(30, 28), (1024, 1)])
def test_factored_in_blocks(
    gpu: Device, block: int, launches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of 401² pixels in 7² blocks, of which one side of the diagonal is made."""
    place = where(zoo.residual(100))
    expected = propagate_factored(*place, kernels=load("cpu")).image.form()
    monkeypatch.setattr(terms, "DEVICE_BLOCK", block)
    image = propagate_factored(*place, **gpu.options).image
    assert image.rank > terms.FEW_TERMS
    found = on_host(image.form())
    if gpu.backend is not None:
        assert gpu.backend.launches == ["sum_of_terms_f64"] * launches
    kernel = KERNELS["sum_of_terms"].tolerance(np.float64, image.rank)
    seen = expected >= VISIBLE["float64"]
    bound = 2 * (kernel + LEFT_OUT)
    np.testing.assert_array_less(np.abs(found - expected)[seen], bound * expected[seen])


def test_factored_tail(gpu: Device) -> None:
    place = where(zoo.residual(30))
    found = propagate_factored(*place, tail=1e-6, **gpu.options)
    expected = propagate_factored(*place, tail=1e-6, kernels=load("cpu"))
    assert_same_but_pixels(found, expected)
    assert (found.origin, found.image.shape) == (expected.origin, expected.image.shape)


def test_factored_pass(gpu: Device) -> None:
    layers = [rf.Residual(rf.Conv(k, padding=k // 2)) for k in (3, 5, 3, 5)]
    layers.append(rf.Conv(2, taps=np.outer([1, 2], [1, 3])))
    graph, node, unit, source = where(rf.Sequential(*layers))
    function = transfer_function(graph, node, source)
    expanded = expanded_all(function)
    assert not isinstance(expanded, str)
    expected = factor_all(function, expanded, unit, kernels=load("cpu"))
    for name, field in factor_all(function, expanded, unit, **gpu.options).items():
        pixels = field.image.form()
        assert gpu.holds(pixels)
        kernel = KERNELS["sum_of_terms"].tolerance(np.float64, field.image.rank)
        reference = expected[name].image.form()
        np.testing.assert_allclose(on_host(pixels), reference, rtol=2 * (kernel + LEFT_OUT))


def test_a_copy_stays_on_its_device(gpu: Device) -> None:
    image = propagate_factored(*where(zoo.residual(4)), **gpu.options).image
    assert isinstance(image, FactoredImage)
    again = copy.deepcopy(image)
    assert again.xp is gpu.xp
    np.testing.assert_array_equal(on_host(again.form()), on_host(image.form()))


# --- engines of the host --------------------------------------------------------------------


def test_images_of_the_host_are_moved(gpu: Device) -> None:
    place = where(zoo.residual(6))
    found = tilted.propagate_tilted(*place, **gpu.options)
    expected = tilted.propagate_tilted(*place, kernels=load("cpu"))
    assert gpu.holds(found.image)
    np.testing.assert_array_equal(on_host(found.image), expected.image)


def test_pixels_that_no_tilt_lifts_are_made_on_the_device(gpu: Device) -> None:
    narrow = rf.Parallel(rf.Conv(2), rf.Sequential(*[rf.Conv(3)] * 40, rf.Crop(((400, 0),))))
    place = where(rf.Sequential(narrow, ndim=1))
    found = tilted.propagate_tilted(*place, **gpu.options)
    assert gpu.holds(found.image)
    # The direct engine on either device: 41 layers of at most 3 taps, an ulp a tap and layer each.
    expected = tilted.propagate_tilted(*place).image
    np.testing.assert_allclose(on_host(found.image), expected, rtol=2 * 41 * 4 * 2.0**-52)


# --- measures -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", test_metrics.MEASURES)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_measures_of_pixels(gpu: Device, name: str, dtype: str) -> None:
    image = test_metrics.smooth().astype(dtype)
    measure = test_metrics.MEASURES[name]
    found = measure(gpu.xp.asarray(image))
    np.testing.assert_allclose(
        on_host(found) if gpu.holds(found) else found, measure(image), rtol=1e-12
    )


@pytest.mark.parametrize("name", test_metrics.MEASURES)
def test_measures_on_a_second_gpu(gpu: Device, name: str) -> None:
    """An image is measured where it lives, whatever device is current."""
    if gpu.backend is None:
        pytest.skip("only the stand-in has two for certain")
    image, measure = test_metrics.smooth(), test_metrics.MEASURES[name]
    with gpu.xp.cuda.Device(1):
        there = gpu.xp.asarray(image)
    with pytest.raises(ValueError, match="different from the current device"):
        there.sum()
    found = measure(there)
    if gpu.holds(found):
        assert found.device.id == 1
    np.testing.assert_allclose(
        on_host(found) if gpu.holds(found) else found, measure(image), rtol=1e-12
    )
    assert gpu.xp.cuda.runtime.getDevice() == 0


MEASURES: dict[str, Callable[[Any], Any]] = {
    **{name: measure for name, measure in test_metrics.MEASURES.items() if name != "fills"},
    "cut": lambda image: metrics.cut(image, 1),
    "area_ratio_log": lambda image: metrics.area_ratio_log(image, 0.5, (8, 11), (30, 40)),
}


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("net", [zoo.plain(8, 3), zoo.residual(8)], ids=["product", "sum"])
def test_measures_of_factors(gpu: Device, name: str, net: Any) -> None:
    place = where(net)
    found = MEASURES[name](propagate_factored(*place, **gpu.options).image)
    expected = MEASURES[name](propagate_factored(*place, kernels=load("cpu")).image)
    np.testing.assert_allclose(on_host(found) if gpu.holds(found) else found, expected, rtol=1e-12)
