"""`fastrf.erf` and its result: every attribute, option, file and refusal."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrf as rf
from fastrf import kernels, metrics
from fastrf.engine import threads
from fastrf.errors import DeviceError, InputError, PlanError, UnboundedError
from fastrf.metrics import LUO_THRESHOLD

SHARES = ("0.2", "0.3", "0.5", "0.99")


def network(ndim: int) -> rf.Network:
    """Different on every axis, a merge and a stride, of odd symmetric kernels."""
    first = (5, 3, 1)[:ndim]
    second = (3, 1, 3)[:ndim]
    return rf.Sequential(
        rf.Conv(first, padding=tuple(k // 2 for k in first)),
        rf.Residual(rf.Conv(second, padding=tuple(k // 2 for k in second), gain=2)),
        rf.Conv(3, stride=2, padding=1),
        ndim=ndim,
        name="test",
    )


# Along an axis: the stem's variance, 2/3 of the branch's, the last layer's.
VARIANCE = (24 / 12 + 2 / 3 * 8 / 12 + 8 / 12, 8 / 12 + 8 / 12, 2 / 3 * 8 / 12 + 8 / 12)
REACH = (4, 2, 2)  # pixels from the centre to the end of the field


@pytest.fixture(scope="module", params=[1, 2, 3])
def result(request: pytest.FixtureRequest) -> rf.ERF:
    return rf.erf(network(request.param))


@pytest.fixture(scope="module", params=[1, 2, 3])
def clipped(request: pytest.FixtureRequest) -> rf.ERF:
    return rf.erf(network(request.param), unit=1, input_size=10)


# --- attributes -----------------------------------------------------------------------------


def test_image(result: rf.ERF) -> None:
    ndim = result.image.ndim
    assert result.image.dtype == np.float64
    assert result.image.shape == tuple(2 * r + 1 for r in REACH[:ndim])
    assert result.origin == tuple(-r for r in REACH[:ndim])
    assert result.box == tuple((-r, r) for r in REACH[:ndim])
    assert result.image.sum() == pytest.approx(1, abs=1e-15)
    assert result.image.flags.c_contiguous
    assert result.to_numpy() is result.image
    # Mass: gains 1, 1 + 2, 1.
    assert result.log_gain == pytest.approx(math.log(3), abs=1e-15)
    assert result.lost_mass == 0
    assert result.dropped_mass == 0


def test_moments(result: rf.ERF) -> None:
    ndim = result.image.ndim
    assert result.mean == pytest.approx([0] * ndim, abs=1e-15)
    assert result.std == pytest.approx(np.sqrt(VARIANCE[:ndim]), rel=1e-14)
    np.testing.assert_allclose(result.covariance, np.diag(VARIANCE[:ndim]), atol=1e-14)
    position = np.arange(*(lambda low, high: (low, high + 1))(*result.box[0]))
    fourth = result.profile(0) @ position**4
    assert result.kurtosis[0] == pytest.approx(fourth / VARIANCE[0] ** 2 - 3, rel=1e-13)
    assert len(result.kurtosis) == ndim
    for axis in range(ndim):
        others = tuple(a for a in range(ndim) if a != axis)
        np.testing.assert_allclose(result.profile(axis), result.image.sum(others), rtol=1e-14)


def test_sizes(result: rf.ERF) -> None:
    ndim = result.image.ndim
    at = tuple(map(float, REACH[:ndim]))
    assert result.center == (0.0,) * ndim
    assert result.luo_size() == metrics.luo_size(result.image, "amplitude", LUO_THRESHOLD, at)
    assert result.luo_size("variance") == metrics.luo_size(
        result.image, "variance", LUO_THRESHOLD, at
    )
    assert 0 < result.luo_size() <= result.luo_size(threshold=0.01)
    trf = tuple(2 * r + 1 for r in REACH[:ndim])
    for share in (0.2, 0.5, 0.99):
        assert result.area_ratio(share) == metrics.area_ratio(result.image, share, at, trf)
        assert result.radius_of_mass(share) == metrics.radius_of_mass(result.image, share, at)
        assert result.smallest_set(share) == metrics.smallest_set(result.image, share)
    assert result.area_ratio(0.2) <= result.area_ratio(0.99)
    assert len(result.fwhm) == ndim
    assert result.ratio == metrics.trf_ratio(result.luo_size(), trf)
    assert 0 <= result.gaussian_distance < 1


def test_what_was_asked(result: rf.ERF) -> None:
    ndim = result.image.ndim
    assert result.network == network(ndim)
    assert (result.node, result.input) == ("conv2", "input")
    assert result.unit == (0,) * ndim
    assert result.input_size is None
    assert result.exact
    assert result.warnings == ()
    assert result.assumptions == ()
    assert result.field.size == tuple(2 * r + 1 for r in REACH[:ndim])
    assert result.plan.method in ("direct", "factored")
    assert repr(result).startswith("ERF('conv2', unit (0")
    assert "σ = (" in repr(result)
    clipped = rf.erf(network(ndim), unit=1, input_size=10)
    assert clipped.input_size == (10,) * ndim
    assert clipped.unit == (1,) * ndim


def test_borders(clipped: rf.ERF) -> None:
    ndim = clipped.image.ndim
    # Unit 1 lies at pixel 2 and reaches from −2 to 6 along the first axis.
    assert clipped.box == tuple((max(0, 2 - r), 2 + r) for r in REACH[:ndim])
    assert 0 < clipped.lost_mass < 1
    assert math.log1p(-clipped.lost_mass) == pytest.approx(
        clipped.log_gain - math.log(3), abs=1e-14
    )
    assert clipped.field.box(clipped.unit)[0] == (-2, 6)
    assert clipped.center[0] == 2.0
    assert clipped.mean[0] > 2


def test_center_outside_the_image() -> None:
    """The unit's field is centred in the padding: the nearest pixel that holds mass stands in."""
    net = rf.Sequential(rf.Pad(((6, 0),)), rf.Conv(9), ndim=1)
    result = rf.erf(net, unit=0, input_size=20)
    assert result.field.box((0,)) == ((-6, 2),)
    assert result.box == ((0, 2),)
    assert result.center == (0.0,)
    json.dumps(result.to_dict(), allow_nan=False)


def test_one_pixel() -> None:
    """No spread: kurtosis is undefined, which JSON says with null."""
    result = rf.erf(rf.Sequential(rf.Conv(1), ndim=2))
    assert result.image.tolist() == [[1.0]]
    assert result.std == (0, 0)
    text = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert text["kurtosis"] == [None, None]


def test_the_unit_itself() -> None:
    result = rf.erf(network(2), "input", unit=(3, 4), input_size=10)
    assert result.image.tolist() == [[1.0]]
    assert result.origin == (3, 4)
    assert result.log_gain == 0


def test_warnings() -> None:
    full = rf.erf(rf.Sequential(*[rf.Conv(3, padding=1)] * 60, ndim=1), input_size=8)
    assert any("fills the image" in w for w in full.warnings)
    pool = rf.AvgPool(3, 1)
    assert rf.erf(rf.Sequential(pool, pool, ndim=1)).exact
    assert rf.erf(rf.Sequential(pool, rf.Activation("relu"), pool, ndim=1)).exact
    chosen = rf.erf(rf.Sequential(pool, rf.Activation("swoosh"), pool, ndim=1))
    assert not chosen.exact
    assert any(w.startswith("approximate: swoosh1") for w in chosen.warnings)


# --- files and dictionaries -----------------------------------------------------------------


def test_to_dict(result: rf.ERF, clipped: rf.ERF) -> None:
    for one in (result, clipped):
        found = json.loads(json.dumps(one.to_dict(), allow_nan=False))
        for name in (
            "node", "log_gain", "lost_mass", "dropped_mass", "exact", "ratio", "input",
        ):  # fmt: skip
            assert found[name] == getattr(one, name)
        for name in ("unit", "origin", "mean", "std", "fwhm", "warnings", "assumptions"):
            assert found[name] == list(getattr(one, name))
        assert found["shape"] == list(one.image.shape)
        assert found["covariance"] == one.covariance.tolist()
        assert found["luo_size"]["variance"] == one.luo_size("variance")
        assert found["area_ratio"] == {s: one.area_ratio(float(s)) for s in SHARES}
        assert found["fingerprint"] == one.network.fingerprint
        assert found["plan"]["method"] == one.plan.method
        assert found["box"] == [list(ends) for ends in one.box]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_round_trip(dtype: str, tmp_path: Path) -> None:
    path = tmp_path / "field.npz"
    one = rf.erf(network(2), unit=(1, 3), input_size=(9, 12), dtype=dtype)
    one.save(path)
    again = rf.ERF.load(path)
    assert again.image.dtype == dtype
    np.testing.assert_array_equal(again.image, one.image)
    assert again.network == one.network
    first, second = one.to_dict(), again.to_dict()
    assert second.pop("plan") == str(one.plan)
    first.pop("plan")
    assert first == second
    assert again.field.box(again.unit) == one.field.box(one.unit)
    again.save(tmp_path / "again.npz")
    assert rf.ERF.load(tmp_path / "again.npz").to_dict() == again.to_dict()


def test_round_trip_of_what_is_not_plain(tmp_path: Path) -> None:
    """Unbounded, several inputs, reasons and ignored layers."""
    net = rf.Network(
        {
            "x": (rf.Input(2),),
            "y": (rf.Input(2),),
            "p": (rf.AvgPool(3, 1, padding=1), "x"),
            "q": (rf.AvgPool(3, 1, padding=1), "p"),
            "se": (rf.SqueezeExcite(), "q"),
            "d": (rf.Conv(3, stride=2, padding=1, channels=2), "y"),
            "add": (rf.Add(), "se", "d"),
        },
        ndim=1,
    )
    sizes = {"x": 8, "y": 16}
    for options in (
        {"input": "x", "ignore_global": True},
        {"input": "x", "ignore_global": True, "input_size": sizes},
        {"input": "y", "input_size": sizes},
        {"input": "x", "input_size": sizes},
    ):
        one = rf.erf(net, **options)
        one.save(tmp_path / "one.npz")
        again = rf.ERF.load(tmp_path / "one.npz")
        assert again.inexact == one.inexact
        assert again.ignore_global == one.ignore_global
        assert again.input_size == one.input_size
        assert again.field.box(again.unit) == one.field.box(one.unit)
    assert again.input_size == (8,)


def test_files_that_are_none(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(InputError) as caught:
            rf.ERF.load(path)
        message = str(caught.value)
        assert repr(str(path)) in message
        assert "\n" not in message
        return message

    assert "cannot read" in refused(tmp_path / "none.npz")
    text = tmp_path / "text.npz"
    text.write_text("not an archive")
    refused(text)
    other = tmp_path / "other.npz"
    np.savez(other, image=np.ones(3))
    assert "is not a field" in refused(other)
    strange = tmp_path / "strange.npz"
    np.savez(strange, image=np.ones(3), meta=np.array(json.dumps({"format": "else"})))
    refused(strange)
    whole = tmp_path / "whole.npz"
    rf.erf(network(1)).save(whole)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:-200])
    refused(cut)
    with pytest.raises(InputError, match="cannot write"):
        rf.erf(network(1)).save(tmp_path / "no folder" / "field.npz")


# --- options --------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [None, 16])
def test_all_layers(size: Any) -> None:
    net = network(2)
    fields = rf.erf(net, input_size=size, layers="all")
    assert list(fields) == ["conv1", "residual1.conv1", "residual1.add1", "conv2"]
    for name, field in fields.items():
        single = rf.erf(net, name, input_size=size)
        # Sums in another order; test_layers_all derives how much that is.
        np.testing.assert_allclose(field.image, single.image, rtol=1e-13)
        assert field.to_dict().keys() == single.to_dict().keys()
        for attribute in ("node", "unit", "shape", "origin", "trf_size", "exact", "assumptions"):
            assert field.to_dict()[attribute] == single.to_dict()[attribute]
        assert field.node == name


def test_all_layers_of_a_classifier() -> None:
    """Maps behind the last one with pixels have no field; other inputs' layers have none here."""
    net = rf.Sequential(rf.Conv(3), rf.MaxPool(2), rf.GlobalPool(), rf.FullyConnected(10))
    assert list(rf.erf(net, layers="all")) == ["conv1", "maxpool1"]
    assert rf.erf(net).node == "maxpool1"
    two = rf.Network(
        {
            "x": (rf.Input(),),
            "y": (rf.Input(),),
            "a": (rf.Conv(3, padding=1), "x"),
            "b": (rf.Conv(3, padding=1), "y"),
            "s": (rf.Add(), "a", "b"),
        }
    )
    assert list(rf.erf(two, layers="all", input="y")) == ["b", "s"]


def test_layers_above_the_output_are_left_out() -> None:
    net = network(1)
    assert list(rf.erf(net, "conv1", layers="all")) == ["conv1"]


@pytest.mark.parametrize("tail", [1e-3, 1e-6, 1e-12])
@pytest.mark.parametrize("method", ["direct", "factored"])
@pytest.mark.parametrize("ndim", [1, 2])
def test_tail(tail: float, method: str, ndim: int) -> None:
    net = rf.Sequential(*[rf.Conv(3, padding=1)] * 80, ndim=ndim)
    whole = rf.erf(net, method=method)
    part = rf.erf(net, method=method, tail=tail)
    assert 0 < part.dropped_mass <= tail
    assert all(a < b for a, b in zip(part.image.shape, whole.image.shape, strict=True))
    assert math.expm1(part.log_gain) == pytest.approx(-part.dropped_mass, abs=1e-13)
    # What is kept is smaller than the truth by what was dropped, and larger by the new total.
    low = [a - b for a, b in zip(part.origin, whole.origin, strict=True)]
    window = tuple(slice(s, s + n) for s, n in zip(low, part.image.shape, strict=True))
    error = np.abs(part.image - whole.image[window]).sum()
    assert error <= 2 * part.dropped_mass + 1e-13


def test_tail_with_borders_and_merges() -> None:
    net = rf.Sequential(*[rf.Residual(rf.Conv(3, padding=1))] * 60, ndim=1)
    whole, part = (rf.erf(net, unit=2, input_size=90, tail=t) for t in (None, 1e-9))
    assert part.dropped_mass <= 1e-9
    assert part.image.size < whole.image.size
    assert part.lost_mass == pytest.approx(whole.lost_mass, abs=1e-9)


def test_float32() -> None:
    single, double = (rf.erf(network(2), dtype=d) for d in (np.float32, "float64"))
    assert single.image.dtype == np.float32
    assert single.plan.dtype == "float32"
    # Three layers of at most 15 taps, twice that with the normalisation: 40 roundings.
    np.testing.assert_allclose(single.image, double.image, rtol=40 * 2.0**-24)
    assert single.std == pytest.approx(double.std, rel=1e-6)


def test_ignore_global() -> None:
    conv = rf.Conv(3, padding=1)
    net = rf.Sequential(conv, ("gate", rf.SqueezeExcite()), conv)
    with pytest.raises(UnboundedError, match="gate") as caught:
        rf.erf(net)
    assert "input_size" in str(caught.value)
    assert "ignore_global=True" in str(caught.value)
    without = rf.erf(net, ignore_global=True)
    np.testing.assert_array_equal(without.image, rf.erf(rf.Sequential(conv, conv)).image)
    assert without.exact
    clipped = rf.erf(net, input_size=12)
    assert clipped.image.shape == (12, 12)
    assert clipped.log_gain > 0
    local = rf.erf(net, input_size=12, ignore_global=True)
    assert local.image.shape == (5, 5)


def test_several_inputs() -> None:
    net = rf.Network(
        {
            "fine": (rf.Input(),),
            "coarse": (rf.Input(),),
            "a": (rf.Conv(3, stride=2, padding=1), "fine"),
            "b": (rf.Conv(5, padding=2), "coarse"),
            "s": (rf.Add(), "a", "b"),
        },
        ndim=1,
    )
    sizes = {"coarse": 8, "fine": 16}
    fine, coarse = (rf.erf(net, input=name, input_size=sizes) for name in ("fine", "coarse"))
    assert (fine.input_size, coarse.input_size) == ((16,), (8,))
    assert (fine.image.size, coarse.image.size) == (3, 5)
    assert fine.area_ratio(0.99) == 3 / 16
    assert coarse.area_ratio(0.99) == 5 / 8
    for given in (None, "other"):
        with pytest.raises(InputError, match="one of fine, coarse"):
            rf.erf(net, input=given)
    for size in ({"fine": 16}, {"fine": 16, "coarse": None}, {"fine": 1, "other": 1}):
        with pytest.raises(InputError, match="fine, coarse"):
            rf.erf(net, input="fine", input_size=size)
    with pytest.raises(InputError, match="no path leads from 'a' to the input 'coarse'"):
        rf.erf(net, "a", input="coarse")


@pytest.mark.parametrize("unit", [3, (3, 3), [3, 3], np.array([3, 3]), np.int64(3), "center"])
def test_forms_of_a_unit(unit: Any) -> None:
    result = rf.erf(network(2), unit=unit, input_size=12)
    assert result.unit == (3, 3)
    assert all(type(u) is int for u in result.unit)


@pytest.mark.parametrize("size", [10, (10, 10), [10, 10], np.array([10, 10]), {"input": (10, 10)}])
def test_forms_of_a_size(size: Any) -> None:
    assert rf.erf(network(2), input_size=size).input_size == (10, 10)


def test_a_unit_on_the_unbounded_grid() -> None:
    """Units far to the left move the field by their stride, and nothing else."""
    here, there = rf.erf(network(2)), rf.erf(network(2), unit=(-7, 2))
    np.testing.assert_array_equal(here.image, there.image)
    assert there.origin == (here.origin[0] - 14, here.origin[1] + 4)


def test_progress() -> None:
    for layers in ("last", "all"):
        seen: list[float] = []
        rf.erf(network(2), input_size=12, method="direct", progress=seen.append, layers=layers)
        assert seen == sorted(seen)
        assert seen[-1] == 1.0


# --- refusals -------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], str]] = [
    ({"unit": "middle"}, "unit='middle'"),
    ({"unit": 1.5}, "unit=1.5"),
    ({"unit": True}, "unit=True"),
    ({"unit": None}, "unit=None"),
    ({"unit": (1,)}, "unit=(1,)"),
    ({"unit": (1, 2, 3)}, "unit=(1, 2, 3)"),
    ({"unit": (0, "1")}, "unit=(0, '1')"),
    ({"unit": -1, "input_size": 8}, "unit=-1"),
    ({"unit": (0, 4), "input_size": 8}, "unit=(0, 4)"),
    ({"input_size": 0}, "input_size=0"),
    ({"input_size": "8"}, "input_size='8'"),
    ({"input_size": 8.0}, "input_size=8.0"),
    ({"input_size": (8,)}, "input_size=(8,)"),
    ({"input_size": (8, -1)}, "input_size=(8, -1)"),
    ({"output": "nothing"}, "'nothing'"),
    ({"output": 3}, "output=3"),
    ({"input": "nothing"}, "input='nothing'"),
    ({"dtype": "float16"}, "dtype='float16'"),
    ({"dtype": "no type"}, "dtype='no type'"),
    ({"dtype": int}, "dtype="),
    ({"method": "fast"}, "method='fast'"),
    ({"method": None}, "method=None"),
    ({"accuracy": "good"}, "accuracy='good'"),
    ({"tol": 0}, "tol=0"),
    ({"tol": float("nan")}, "tol=nan"),
    ({"tol": "1"}, "tol='1'"),
    ({"tail": 0}, "tail=0"),
    ({"tail": 1.0}, "tail=1.0"),
    ({"tail": -1e-9}, "tail=-1e-09"),
    ({"tail": True}, "tail=True"),
    ({"layers": "first"}, "layers='first'"),
    ({"workers": 0}, "workers=0"),
    ({"workers": 1.5}, "workers=1.5"),
    ({"workers": True}, "workers=True"),
    ({"memory_limit": 0}, "memory_limit=0"),
    ({"memory_limit": "1G"}, "memory_limit='1G'"),
    ({"device": "tpu"}, "device='tpu'"),
]


@pytest.mark.parametrize(("options", "value"), BAD, ids=[str(o) for o, _ in BAD])
def test_bad_arguments(options: dict[str, Any], value: str) -> None:
    """Each is refused with the value and a remedy, on one line, before anything is computed."""
    with pytest.raises(InputError) as caught:
        rf.erf(network(2), **options)
    message = str(caught.value)
    assert value in message
    assert "\n" not in message
    assert any(
        word in message
        for word in ("give", "choose", "must", "did you mean", "there are", "indices start at 0")
    )


@pytest.mark.parametrize("net", [5, None, "resnet50", {"a": 1}, object()])
def test_what_is_no_network(net: Any) -> None:
    with pytest.raises(InputError, match="is not a network") as caught:
        rf.erf(net)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("net", [rf.Conv(3), [rf.Conv(3)], (rf.Conv(3),)])
def test_what_is_a_network(net: Any) -> None:
    assert rf.erf(net).image.shape == (3, 3)


def test_a_unit_that_sees_padding_alone() -> None:
    net = rf.Sequential(rf.Pad(((4, 0),)), rf.Conv(3), ndim=1)
    with pytest.raises(InputError, match=r"unit=\(0,\) of 'conv1' reads nothing") as caught:
        rf.erf(net, unit=0, input_size=8)
    assert "choose another unit" in str(caught.value)


def _no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = kernels.load("cpu")
    for name in kernels.KERNELS:
        monkeypatch.setattr(loaded, name, lambda *arguments: pytest.fail("a kernel was called"))


def test_refused_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    _no_kernels(monkeypatch)
    with pytest.raises(pytest.fail.Exception):
        rf.erf(network(2), method="direct")  # the trap works
    with pytest.raises(PlanError) as caught:
        rf.erf(network(2), memory_limit=100)
    message = str(caught.value)
    assert "\n" not in message
    assert "memory_limit" in message
    with pytest.raises(PlanError):
        rf.erf(rf.Sequential(rf.Conv(3, stride=10**6), rf.Conv(3)), method="direct")
    with pytest.raises(DeviceError):
        rf.erf(network(2), device="cuda")
    for options, _ in BAD:
        with pytest.raises(InputError):
            rf.erf(network(2), **options)


# --- threads --------------------------------------------------------------------------------


def test_from_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight at once, each with threads of its own, give what one gives."""
    monkeypatch.setattr(threads, "TILE_CELLS", 16)
    net = rf.Sequential(
        *[rf.Residual(rf.Conv(3, padding=1, taps=np.arange(1, 10).reshape(3, 3)))] * 6,
        rf.ConvTranspose(4, stride=2, padding=1),
        rf.MaxPool(3, stride=2, padding=1),
    )
    jobs = [(unit, dtype) for unit in range(4) for dtype in ("float64", "float32")] * 2

    def compute(job: tuple[int, str], workers: int = 2) -> rf.ERF:
        return rf.erf(net, unit=job[0], input_size=14, dtype=job[1], workers=workers)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(compute, jobs))
    for job, one in zip(jobs, found, strict=True):
        alone = compute(job)
        np.testing.assert_array_equal(one.image, alone.image)
        assert (one.log_gain, one.lost_mass) == (alone.log_gain, alone.lost_mass)
        # Tiles are computed alike however many there are.
        np.testing.assert_allclose(
            one.image, compute(job, workers=1).image, rtol=2000 * np.finfo(job[1]).eps
        )


def test_all_layers_in_one_spectral_pass() -> None:
    net = rf.zoo.cifar_resnet(2)
    found = rf.erf(net, method="spectral", layers="all")
    expected = rf.erf(net, method="direct", layers="all")
    assert list(found) == list(expected)
    for node, field in found.items():
        assert (field.node, field.plan.method) == (node, "spectral")
        assert field.log_gain == pytest.approx(expected[node].log_gain, abs=1e-12)
        np.testing.assert_allclose(field.std, expected[node].std, rtol=1e-9)
        window = tuple(
            slice(o - e, o - e + n)
            for o, e, n in zip(field.origin, expected[node].origin, field.shape, strict=True)
        )
        image = expected[node].image
        np.testing.assert_allclose(field.image, image[window], rtol=0, atol=1e-12 * image.max())
