"""Fields whose factors fit into the memory limit and whose pixels do not.

What is asked of them is held against NumPy on the pixels of the same field without a limit, and
tracemalloc, to which NumPy tells of every array, shows that the pixels were not formed.
"""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrf as rf
from fastrf.cli import main
from fastrf.engine.recompressed.tucker import TuckerImage
from fastrf.errors import InputError, PlanError, ToleranceError
from fastrf.images import Pixels
from fastrf.report.pictures import picture

MIB = 1 << 20
CLOSE = 1.1
"""What a plan promises of its memory. Beside arrays, tracemalloc counts Python's own objects."""


def volume(kernels: Sequence[int] = (3, 5) * 20) -> rf.Network:
    layers = [rf.Conv(k, padding="same") for k in kernels]
    return rf.Sequential(*map(rf.Residual, layers), ndim=3)


Case = tuple[rf.Network, dict[str, Any], float]
"""Network, options, and the error of a pixel, relative to the peak."""

CASES: dict[str, Case] = {
    "chain": (rf.zoo.plain(1000, 3), {}, 1e-13),
    "one float32": (rf.zoo.plain(40, 51), {"dtype": "float32"}, 1e-6),
    "terms": (rf.Sequential(*[rf.Residual(rf.Conv(61, padding=30))] * 30), {}, 1e-13),
    "volume of terms": (
        rf.Sequential(*[rf.Residual(rf.Conv(3, padding=1))] * 70, ndim=3),
        {},
        1e-13,
    ),
    "line by line": (
        rf.Sequential(rf.Conv(3, stride=2, padding=1), *[rf.Conv(3, padding=1)] * 500),
        {"input_size": 1700},
        1e-13,
    ),
    "reduced volume": (
        volume(),
        {"input_size": 122, "method": "factored", "accuracy": "absolute", "tol": 1e-9},
        1e-9,
    ),
}


@cache
def whole_of(name: str) -> rf.ERF:
    network, options, _ = CASES[name]
    return rf.erf(network, device="cpu", **options)


def over(network: rf.Network, options: dict[str, Any]) -> rf.ERF:
    """The field where the limit holds all but the pixels."""
    working = rf.plan(network, device="cpu", **options).working
    return rf.erf(network, device="cpu", workers=1, memory_limit=working, **options)


def traced(ask: Callable[[], Any]) -> int:
    """Bytes at the fullest moment."""
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        ask()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", CASES)
def test_all_but_the_image(name: str, tmp_path: Path) -> None:
    network, options, close = CASES[name]
    whole = whole_of(name)
    assert whole.plan.fits
    assert whole.plan.notes == ()
    image = whole.image.astype(np.float64)
    peak = image.max()
    part = over(network, options)
    assert not part.plan.fits
    assert part.plan.memory == part.plan.working + part.plan.formed > part.plan.memory_limit
    assert part.plan.notes[-1].startswith("all pixels do not fit")
    assert part.plan.notes[-1] in str(part.plan)
    assert (part.shape, part.origin) == (whole.shape, whole.origin)

    for axis in range(image.ndim):
        others = tuple(a for a in range(image.ndim) if a != axis)
        line = image.sum(axis=others)
        np.testing.assert_allclose(part.profile(axis), line, atol=10 * close * line.max())
    center = [round(c - o) for c, o in zip(part.center, part.origin, strict=True)]
    limit = (rf.metrics.LUO_THRESHOLD * np.sqrt(image[tuple(center)])) ** 2
    assert part.luo_size() == pytest.approx((image > limit).sum() ** (1 / image.ndim), rel=1e-3)
    assert part.to_dict()["shape"] == list(image.shape)

    # A window that hangs over the first corner, one in the middle, and one beside the image.
    for first, sides in ((-2, 5), (None, 4), (-9, 3)):
        start = [c if first is None else first for c in center]
        box = [(o + s, o + s + sides - 1) for o, s in zip(part.origin, start, strict=True)]
        padded = np.pad(image, [(9, 0)] * image.ndim)
        expected = padded[tuple(slice(9 + s, 9 + s + sides) for s in start)]
        found = part.window(box)
        assert found.dtype == whole.image.dtype
        np.testing.assert_allclose(found, expected, rtol=0, atol=close * peak)
        np.testing.assert_allclose(whole.window(box), expected, rtol=0, atol=close * peak)

    for refused in (lambda: part.image, part.to_numpy, lambda: part.save(tmp_path / "a.npz")):
        with pytest.raises(PlanError, match=r"image of .* profile\(axis\), .* a window\(box\)$"):
            refused()
    assert not list(tmp_path.iterdir())
    with pytest.raises(PlanError, match=r"window of .* a smaller window\(box\)$"):
        part.window(part.box)
    if close < 1e-9:  # elsewhere only to the tolerance
        np.testing.assert_array_equal(whole.window(whole.box), whole.image)


@pytest.mark.parametrize("name", CASES)
def test_no_image_is_formed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # So little of it is at work at once that a whole image would show.
    monkeypatch.setattr("fastrf.engine.terms.LARGEST_BLOCK", 1 << 14)
    monkeypatch.setattr("fastrf.engine.recompressed.tucker.BLOCK", 1 << 14)
    network, options, _ = CASES[name]
    pixels = whole_of(name).image.nbytes
    assert pixels > 12 * MIB

    found: list[rf.ERF] = []
    peak = traced(lambda: found.append(over(network, options)))
    (field,) = found
    assert peak <= CLOSE * field.plan.working
    if name == "reduced volume":  # the only one whose work, too, takes more than Python's objects
        assert field.plan.working <= CLOSE * peak

    def ask() -> None:
        json.dumps(field.to_dict())
        field.smallest_set(0.5)
        field.window([(round(m), round(m) + 9) for m in field.mean])
        picture(field)
        with pytest.raises(PlanError):
            _ = field.image

    assert traced(ask) < pixels / 2


def test_the_limit_is_kept_to_the_byte() -> None:
    network, _, _ = CASES["terms"]
    options = {"device": "cpu", "method": "factored", "accuracy": "relative"}
    plan = rf.plan(network, **options)
    assert rf.erf(network, memory_limit=plan.memory, **options).image.sum() > 0.99
    assert rf.plan(network, memory_limit=plan.memory, **options).fits
    assert not rf.plan(network, memory_limit=plan.memory - 1, **options).fits
    with pytest.raises(PlanError, match=r"plan needs about .* raise memory_limit, or use"):
        rf.plan(network, memory_limit=plan.working - 1, **options)


def test_all_layers() -> None:
    network, size = rf.Sequential(*[rf.Conv(51, padding=25)] * 20), 4 * MIB
    whole = rf.erf(network, device="cpu", layers="all")
    fields: dict[str, rf.ERF] = {}
    peak = traced(
        lambda: fields.update(rf.erf(network, device="cpu", layers="all", memory_limit=size))
    )
    assert peak < 2 * size < sum(f.image.nbytes for f in whole.values()) / 5
    refused = [name for name, field in fields.items() if not field.plan.fits]
    assert list(fields)[-len(refused) :] == refused
    assert 0 < len(refused) < 20
    for name, field in fields.items():
        if name in refused:
            with pytest.raises(PlanError, match=r"window\(box\)"):
                _ = field.image
        else:
            np.testing.assert_array_equal(field.image, whole[name].image)
        box = [(0, 1), (-1, 0)]
        np.testing.assert_array_equal(field.window(box), whole[name].window(box))
        assert field.std == whole[name].std


def test_layers_that_are_followed_one_by_one() -> None:
    """On a map of known size each field has a plan of its own."""
    network = rf.Sequential(*[rf.Conv(65, padding=32)] * 20)
    options: dict[str, Any] = {"input_size": 1400, "method": "factored", "device": "cpu"}
    needed = sum(rf.plan(network, f"conv{n}", workers=1, **options).working for n in range(1, 21))
    fields = rf.erf(network, layers="all", memory_limit=2 * needed, **options)
    assert sum(field.plan.formed for field in fields.values()) > 2 * needed
    with pytest.raises(PlanError, match="the fields of all 20 layers need"):
        rf.erf(network, layers="all", memory_limit=needed // 10, **options)


def test_another_engine_that_leaves_factors() -> None:
    """The direct engine, which is quickest, holds the volume; terms that are reduced need not."""
    network, size = volume(), 122
    quick = rf.plan(network, input_size=size, device="cpu", method="direct")
    low = rf.plan(network, input_size=size, device="cpu", method="factored", tol=1e-9).working
    assert low < quick.working / 2
    options: dict[str, Any] = {"input_size": size, "device": "cpu", "tol": 1e-9}
    with pytest.raises(PlanError):
        rf.plan(network, memory_limit=low, accuracy="relative", **options)
    plan = rf.plan(network, memory_limit=low, **options)
    assert plan.engine == "recompressed"
    assert "would take" in plan.reason


def test_a_tolerance_that_is_not_kept_is_no_way_to_the_pixels(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Elsewhere the direct engine steps in, whose pixels do not fit here."""
    network, options, _ = CASES["reduced volume"]
    given = options | {"method": "auto", "device": "cpu"}
    low = rf.plan(network, device="cpu", **options).working

    def refuse(*_: Any, **__: Any) -> None:
        raise ToleranceError("not so fine")

    monkeypatch.setattr("fastrf.engine.recompressed.propagation.recompress", refuse)
    with pytest.raises(ToleranceError, match="not so fine"):
        rf.erf(network, memory_limit=low, **given)
    plan = rf.plan(network, device="cpu", **options)
    assert plan.working < plan.memory
    direct = plan.instead("direct", "not so fine")
    assert (direct.engine, direct.method, direct.reason) == ("direct", "direct", "not so fine")
    assert (direct.accuracy, direct.tol) == ("relative", None)
    assert direct.working == direct.memory  # it makes all pixels at once


@pytest.mark.parametrize("block", [2000, 100_000])
def test_bright_pixels_block_by_block(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"method": "factored", "accuracy": "absolute", "tol": 1e-10, "unit": (3, 11, 25)}
    image = rf.erf(volume((3, 5) * 7), input_size=(17, 22, 30), **options).values
    assert isinstance(image, TuckerImage)
    pixels = Pixels(image._formed())
    peak = float(pixels.array.max())
    monkeypatch.setattr("fastrf.engine.recompressed.tucker.BLOCK", block)
    assert image.peak() == pixels.peak()
    assert image.count_above(0.3 * peak) == pixels.count_above(0.3 * peak)
    for goal in (1e-6, 0.1, 0.5, 0.999):
        count, mass, value = image.brightest(goal)
        expected = pixels.brightest(goal)
        assert count == expected[0]
        assert (mass, value) == pytest.approx(expected[1:], rel=1e-9)


@pytest.mark.parametrize(
    "box",
    [[(0, 1)], [(0, 1), (2, 1)], [(0, 1), (0, 1.5)], [(0, 1), (0, 1, 2)], [0, 1], None, "ab"],
)
def test_what_is_no_box(box: Any) -> None:
    with pytest.raises(InputError, match="must be the first and last input pixel"):
        rf.erf(rf.zoo.plain(3, 3)).window(box)


def test_a_window_is_a_copy_and_may_lie_anywhere() -> None:
    field = rf.erf(rf.zoo.plain(3, 3), method="direct")
    found = field.window(field.box)
    np.testing.assert_array_equal(found, field.image)
    found[...] = 0
    assert field.image.sum() == pytest.approx(1)
    assert not field.window([(10**9, 10**9 + 3), (0, 0)]).any()
    with pytest.raises(PlanError, match="window of"):
        field.window([(0, 10**9)] * 2)


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["erf", "plain(10000, 3)", "--memory-limit", "2M"]) == 0
    assert "6047 × 6047 pixels" in capsys.readouterr().out
    assert main(["erf", "plain(10000, 3)", "--memory-limit", "2M", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plan"]["formed"] > 200 * MIB
