"""`fastrf.check`: passes on every network, and sees a planted fault in each kernel."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from itertools import product
from types import SimpleNamespace
from typing import Any

import graphs
import numpy as np
import pytest

import fastrf as rf
from fastrf import kernels
from fastrf.cli import main
from fastrf.device import Device
from fastrf.engine import ENGINES
from fastrf.engine.cost import CPU
from fastrf.engine.direct import Propagated
from fastrf.errors import InputError

CASES = dict(graphs.cases())
UNBOUNDED = "unbounded"
CHECK = import_module("fastrf.check")

# One network that runs every kernel: equal and unequal taps, both ways, a table and a merge.
MIXED = rf.Sequential(
    rf.Conv(5, padding=2),
    rf.Conv(3, padding=1, taps=[1, 2, 4]),
    rf.ConvTranspose(4, stride=2, padding=1),
    rf.ConvTranspose(3, stride=2, padding=1, taps=[1, 3, 2]),
    rf.Upsample(2, "linear"),
    rf.Residual(rf.Conv(3, padding=1), rf.Conv(7, padding=3)),
    rf.Conv(3, stride=4, padding=1),
    ndim=1,
    name="mixed",
)

# And one that runs the kernels for many layers at once: equal taps, and taps that are no product.
RUNS = rf.Sequential(
    rf.Conv(3, padding=1),
    rf.Conv(3, padding=1),
    *[rf.Conv(2, taps=[[1, 2], [3, 5]])] * 3,
    name="runs",
)

# The kernels that form images from factors: a sum of terms, and a product of two profiles.
TERMS = rf.Sequential(*[rf.Residual(rf.Conv(3, padding=1))] * 6, name="terms")
PROFILES = rf.zoo.plain(6, 3)
LINE = (-1, 4, -1)
SHARPEN = [[a * b for a in LINE] for b in LINE]
# What the engines that carry covariances serve: a chain, of which there is a formula.
POOLED = {
    "correlated": rf.Sequential(*[rf.Conv(3, padding=1), rf.AvgPool(3, 1, padding=1)] * 3),
    "cancelling": rf.Sequential(
        *[rf.Filter(3, padding=1, weights=SHARPEN), rf.Conv(3, padding=1)] * 3
    ),
}
POOLED["projected"] = POOLED["correlated"]


@pytest.mark.parametrize("name", CASES)
def test_every_case_agrees(name: str) -> None:
    graph = CASES[name]
    report = rf.check(graph.network(), input_size=graph.size)
    assert report, str(report)
    # Unit 0 of an unbounded grid may lie in the gaps of a transposed convolution: it is reported.
    empty = [reason for reason in report.skipped if "sees nothing" in reason]
    assert {row.grid for row in report.rows} >= (set() if empty else {"unbounded"})


def test_a_kernel_that_hands_nothing_on_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(*arguments: Any) -> None:
        arguments[-1][...] = 0

    monkeypatch.setattr(kernels.load("cpu"), "box_run", nothing)
    report = rf.check(rf.zoo.cifar_resnet(1))
    assert not report
    assert any(row.quantity == "the field is not empty" for row in report.rows)


@pytest.mark.parametrize(
    "net",
    [
        rf.zoo.plain(50, 3),
        rf.zoo.unet(3, 2),
        rf.zoo.wavenet(1),
        rf.zoo.cifar_resnet(3),
        rf.Sequential(*[rf.Residual(rf.Conv(3, padding=1))] * 5, ndim=1),
        rf.Sequential(rf.Conv([2, 3], taps=np.arange(6).reshape(2, 3)), rf.MaxPool(2)),
        rf.Sequential(rf.Conv((3, 1)), rf.Conv((2, 1))),
        rf.Sequential(rf.Conv((3, 1, 2)), rf.AvgPool((1, 2, 2)), rf.Conv(2)),
        MIXED,
    ],
    ids=lambda net: net.name or repr(net),
)
def test_more_networks_agree(net: rf.Network) -> None:
    report = rf.check(net)
    assert report, str(report)
    assert report.ok
    assert {row.dtype for row in report.rows} == {"float64", "float32"}
    assert all(math.isfinite(row.error) for row in report.rows)


def test_what_is_compared() -> None:
    report = rf.check(rf.zoo.plain(5, 3), input_size=20)
    ways = {"direct, by layers", "direct, at once"}
    engines = {row.engine for row in report.rows if row.grid == "unbounded"}
    assert engines == ways | ENGINES.keys() - {"direct", "channelwise", *POOLED}
    for engine, dtype in product(engines, ("float64", "float32")):
        mine = [r for r in report.rows if (r.engine, r.dtype, r.grid) == (engine, dtype, UNBOUNDED)]
        pixels = [row for row in mine if "against direct, by layers, float64" in row.quantity]
        assert len(pixels) == ((engine, dtype) != ("direct, by layers", "float64"))
        assert len(mine) - len(pixels) >= 5
    words = {row.quantity.split(",")[0].split("/")[0].strip() for row in report.rows}
    assert {"log_gain", "mean", "covariance", "kurtosis", "profiles", "lost_mass"} <= words
    exact = [row for row in report.rows if "exact integers" in row.quantity]
    assert all(row.grid == "unbounded" for row in exact)
    assert "20×20" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True


def test_integers_are_for_chains_alone() -> None:
    """Layers side by side are no product of polynomials."""
    report = rf.check(rf.Sequential(rf.Residual(rf.Conv(3, padding=1)), rf.Conv(3), ndim=1))
    assert report
    assert not [row for row in report.rows if "exact integers" in row.quantity]


def test_a_unit_is_checked_where_it_exists() -> None:
    report = rf.check(rf.Sequential(rf.Conv(3, padding=1), ndim=1), unit=0, input_size=9)
    assert report
    assert {row.grid for row in report.rows} == {"9"}


def test_global_layers() -> None:
    net = rf.Sequential(rf.Conv(3, padding=1), rf.SqueezeExcite(), rf.Conv(3, padding=1), ndim=1)
    report = rf.check(net)
    assert report, str(report)
    assert any("squeezeexcite1" in reason for reason in report.skipped)
    assert {row.grid for row in report.rows} == {"32"}
    assert rf.check(net, ignore_global=True).skipped == ()


@pytest.mark.parametrize("value", [0, "8", (8, 8)])
def test_bad_size(value: Any) -> None:
    with pytest.raises(InputError, match="input_size"):
        rf.check(rf.Sequential(rf.Conv(3), ndim=1), input_size=value)


@pytest.mark.parametrize("option", [{"workers": 0}, {"memory_limit": "lots"}])
def test_bad_options(option: Any) -> None:
    with pytest.raises(InputError, match=next(iter(option))):
        rf.check(rf.Sequential(rf.Conv(3), ndim=1), **option)


# --- planted faults -------------------------------------------------------------------------


def _shifted(kernel: Callable[..., None]) -> Callable[..., None]:
    """Off by one pixel along the tiled axis."""

    def faulty(*arguments: Any) -> None:
        kernel(*arguments)
        out = arguments[-1]
        out[...] = np.roll(out.copy(), 1, axis=1)

    return faulty


def _last_dropped(kernel: Callable[..., None]) -> Callable[..., None]:
    """The last pixel that holds something is missing."""

    def faulty(*arguments: Any) -> None:
        kernel(*arguments)
        out = arguments[-1]
        row = np.flatnonzero(out.any(axis=(0, 2)))
        if row.size > 1:
            out[:, row[-1]] = 0

    return faulty


def _tap_dropped(kernel: Callable[..., None]) -> Callable[..., None]:
    """One tap too few: of a box its last, of given taps the last too."""

    def faulty(y: Any, taps: Any, *arguments: Any) -> None:
        if isinstance(taps, int):
            kernel(y, max(taps - 1, 1), *arguments)
            return
        fewer = taps.copy()
        if fewer.ndim == 3 and fewer.size > 1:
            fewer[..., -1, :] = 0
        kernel(y, fewer, *arguments)

    return faulty


def _inexact(kernel: Callable[..., None]) -> Callable[..., None]:
    """A relative error of 1e-3 in one pixel, far too small to see in a plot."""

    def faulty(*arguments: Any) -> None:
        kernel(*arguments)
        out = arguments[-1]
        out.flat[out.argmax()] *= 1.001

    return faulty


def _halved(kernel: Callable[..., None]) -> Callable[..., None]:
    """Adds half of what it is told to add."""
    return lambda y, factor, out: kernel(y, factor / 2, out)


def _result(**changed: Callable[[Any], Any]) -> Callable[..., Callable[..., Any]]:
    """A fault of the kernel that returns its result: attributes that come out changed."""

    def fault(kernel: Callable[..., Any]) -> Callable[..., Any]:
        def faulty(*arguments: Any) -> Any:
            found = kernel(*arguments)
            return replace(found, **{k: change(getattr(found, k)) for k, change in changed.items()})

        return faulty

    return fault


def _one_pixel_inexact(image: Any) -> Any:
    image = image.copy()
    image.flat[image.argmax()] *= 1.001
    return image


IN_ANOTHER_PLACE = _result(origin=lambda origin: (*origin[:-1], origin[-1] + 1))
LAST_DROPPED = _result(image=lambda image: image[..., :-1])
ONE_PIXEL_INEXACT = _result(image=_one_pixel_inexact)
MASS_HALVED = _result(mass=lambda mass: (mass[0] / 2, mass[1]))
LOSS_HALVED = _result(lost=lambda lost: (lost[0] / 2, lost[1]))

FAULTS = [
    ("transposed_box", _shifted),
    ("transposed_box", _last_dropped),
    ("transposed_box", _tap_dropped),
    ("transposed_box", _inexact),
    ("gather_box", _shifted),
    ("gather_box", _last_dropped),
    ("gather_box", _tap_dropped),
    ("gather_box", _inexact),
    ("transposed_conv", _shifted),
    ("transposed_conv", _tap_dropped),
    ("transposed_conv", _inexact),
    ("strided_gather", _shifted),
    ("strided_gather", _tap_dropped),
    ("strided_gather", _inexact),
    ("transposed_table", _shifted),
    ("transposed_table", _last_dropped),
    ("transposed_table", _inexact),
    ("accumulate", _halved),
    ("accumulate", _inexact),
    ("box_run", _shifted),
    ("box_run", _last_dropped),
    ("box_run", _inexact),
    ("conv_run", _shifted),
    ("conv_run", _last_dropped),
    ("conv_run", _tap_dropped),
    ("conv_run", _inexact),
    ("box_power", _inexact),
    ("outer_product", _shifted),
    ("outer_product", _inexact),
    ("sum_of_terms", _shifted),
    ("sum_of_terms", _inexact),
    ("walk", IN_ANOTHER_PLACE),
    ("walk", LAST_DROPPED),
    ("walk", ONE_PIXEL_INEXACT),
    ("walk", MASS_HALVED),
    ("walk", LOSS_HALVED),
]

# The network that runs a kernel; MIXED runs all others.
RUNS_IT = {
    "box_run": RUNS,
    "conv_run": RUNS,
    "box_power": PROFILES,
    "outer_product": PROFILES,
    "sum_of_terms": TERMS,
    "walk": PROFILES,
}

# Whose rows show a fault of a kernel; "direct, by layers" for all others.
SHOWN_BY = {
    "box_power": "factored",
    "outer_product": "factored",
    "sum_of_terms": "factored",
    "walk": "direct, at once",
}


@pytest.mark.parametrize("net", [MIXED, RUNS, TERMS, PROFILES], ids=lambda net: net.name)
def test_the_networks_are_sound(net: rf.Network) -> None:
    assert rf.check(net, input_size=8)


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_planted_fault(
    name: str, fault: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = kernels.load("cpu")
    monkeypatch.setattr(loaded, name, fault(getattr(loaded, name)))
    report = rf.check(RUNS_IT.get(name, MIXED), input_size=8)
    assert not report
    assert SHOWN_BY.get(name, "direct, by layers") in {r.engine for r in report.rows if not r.ok}
    assert "FAIL" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["ok"] is False


def test_every_kernel_of_the_engines_has_a_fault() -> None:
    used: set[str] = set()
    loaded = kernels.load("cpu")
    with pytest.MonkeyPatch.context() as patch:
        for name in kernels.KERNELS:
            kernel = getattr(loaded, name)

            def watched(*arguments: Any, name: str = name, kernel: Any = kernel) -> Any:
                used.add(name)
                return kernel(*arguments)

            patch.setattr(loaded, name, watched)
        for net in (MIXED, RUNS, TERMS, PROFILES):
            assert rf.check(net)
    # No engine computes one field by the kernels of sweeps.
    sweeps = {"chain_profiles", "grown_profiles", "chain_figures"}
    assert used == {name for name, _ in FAULTS} == kernels.KERNELS.keys() - sweeps


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", [name for name in ENGINES if name != "channelwise"])
def test_every_engine_is_held_to_its_accuracy(
    name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pixel that is wrong by more than the engine's bound is found, in its rows alone.

    What is right pixel by pixel is so in the corner, too: there a factor of 2 is wrong, at 1e-5 of
    the peak. Of an engine that is right to a share of the peak, the peak itself is a tenth off.
    """
    engine = ENGINES[name]

    def wrong(*arguments: Any, **options: Any) -> Propagated:
        found = engine.run(*arguments, **options)
        image = found.pixels().copy()
        if options["dtype"] == dtype:
            if engine.accuracy == "relative":
                image[0, 0] *= 2
            else:
                image.flat[image.argmax()] *= 1.1
        return replace(found, image=image)

    monkeypatch.setattr(CHECK, "ENGINES", {**ENGINES, name: replace(engine, run=wrong)})
    report = rf.check(POOLED.get(name, TERMS))
    assert not report
    failed = {(row.engine.partition(",")[0], row.dtype) for row in report.rows if not row.ok}
    # What the others are compared with.
    first = dtype == "float64" and name in ("direct", "correlated", "cancelling")
    if first:
        assert (name, dtype) in failed  # and all that are compared with it
    else:
        assert failed == {(name, dtype)}


def test_every_device_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second device, played by the CPU with one wrong kernel: its rows fail, and only they."""
    right = kernels.load("cpu")
    wrong = SimpleNamespace(**{**vars(right), "box_run": _inexact(right.box_run)})
    monkeypatch.setattr(CHECK, "devices", lambda: ("cpu", "cuda:0"))
    monkeypatch.setattr(CHECK, "resolve", lambda name: Device(name, np, "asked for"))
    monkeypatch.setattr(CHECK, "costs_of", lambda device: CPU)
    monkeypatch.setattr(CHECK, "load_kernels", {"cpu": right, "cuda:0": wrong}.get)
    report = rf.check(RUNS)
    assert {row.device for row in report.rows} == {"cpu", "cuda:0"}
    assert {row.device for row in report.rows if not row.ok} == {"cuda:0"}


def test_what_would_take_too_long_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ENGINES["spectral"]

    def slow(*arguments: Any) -> Any:
        return replace(engine.forecast(*arguments), fixed=CHECK.PATIENCE + 1)

    monkeypatch.setattr(CHECK, "ENGINES", {**ENGINES, "spectral": replace(engine, forecast=slow)})
    report = rf.check(PROFILES)
    assert report
    assert "spectral" not in {row.engine for row in report.rows}
    said = [reason for reason in report.skipped if "expected to take 21 s" in reason]
    assert [reason.split(", ")[:2] for reason in said] == [["cpu", "spectral"]] * 2


def test_what_does_not_fit_is_said() -> None:
    report = rf.check(rf.zoo.plain(400, 3), memory_limit=2**24)
    assert report
    assert any("memory_limit" in reason for reason in report.skipped)
    assert not rf.check(rf.zoo.plain(400, 3), memory_limit=1)


def test_fault_through_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "plain(6, 3)", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    loaded = kernels.load("cpu")
    monkeypatch.setattr(loaded, "box_run", _last_dropped(loaded.box_run))
    assert main(["check", "plain(6, 3)", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False
