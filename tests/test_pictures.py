"""Pictures of a sweep's table: what they draw, read back from the figures."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fastrf as rf
from fastrf import metrics
from fastrf.errors import InputError
from fastrf.sweep import pictures
from fastrf.sweep.pictures import growth_curves, heat_map, image_grid, ratio_curves, records

matplotlib = pytest.importorskip("matplotlib")

TABLE: list[dict[str, Any]] = [
    {
        "depth": n,
        "kernel": k,
        "trf": n * (k - 1) + 1,
        "std_0": (n * (k * k - 1) / 12) ** 0.5,
        "ratio": (k * 0.1) * n**-0.5,
        "error": None,
    }
    for n in (40, 5, 20, 10)
    for k in (3, 5)
]


def drawn(figure: Any) -> dict[str, np.ndarray]:
    """Label → points of every curve with a label."""
    return {
        line.get_label(): np.array(line.get_xydata())
        for line in figure.axes[0].lines
        if not line.get_label().startswith("_")
    }


def test_growth_curves() -> None:
    curves = drawn(growth_curves(TABLE, by="kernel"))
    assert set(curves) == {"kernel 3", "kernel 5"}
    for k in (3, 5):
        expected = [(n, (n * (k * k - 1) / 12) ** 0.5) for n in (5, 10, 20, 40)]
        np.testing.assert_allclose(curves[f"kernel {k}"], expected)
    three = [row for row in TABLE if row["kernel"] == 3]
    assert set(drawn(growth_curves(three, y=["trf", "std_0"]))) == {"trf", "std_0"}
    both = drawn(growth_curves(TABLE, y=["trf", "std_0"], by=["kernel"]))
    assert set(both) == {"kernel 3, trf", "kernel 3, std_0", "kernel 5, trf", "kernel 5, std_0"}


def test_ratio_curves_have_their_slopes() -> None:
    figure = ratio_curves(TABLE, by="kernel")
    assert set(drawn(figure)) == {"kernel 3: slope −0.500", "kernel 5: slope −0.500"}
    assert figure.axes[0].get_xscale() == figure.axes[0].get_yscale() == "log"
    # The fitted lines go through the points, as these lie on one line each.
    fits = [line for line in figure.axes[0].lines if line.get_label().startswith("_")]
    assert len(fits) == 2
    for line, k in zip(fits, (3, 5), strict=True):
        n, values = np.array(line.get_xydata()).T
        np.testing.assert_allclose(values, k * 0.1 * n**-0.5)


def test_the_slope_is_that_of_the_measures() -> None:
    rows = [{"depth": n, "ratio": rf.erf(rf.zoo.plain(n)).ratio} for n in range(5, 41, 5)]
    (label,) = drawn(ratio_curves(rows))
    slope = metrics.slope_fit(*zip(*((r["depth"], r["ratio"]) for r in rows), strict=True))
    assert label == f"ratio: slope {slope:.3f}".replace("-", "−")
    assert slope == pytest.approx(-0.426, abs=5e-4)


def test_heat_map() -> None:
    figure = heat_map(TABLE, "kernel", "depth", "std_0")
    (image,) = figure.axes[0].images
    found = np.asarray(image.get_array())
    expected = [[(n * (k * k - 1) / 12) ** 0.5 for k in (3, 5)] for n in (5, 10, 20, 40)]
    np.testing.assert_allclose(found, expected)
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["5", "10", "20", "40"]
    assert {t.get_text() for t in figure.axes[0].texts} == {f"{v:.3g}" for v in np.ravel(expected)}
    partial = heat_map(TABLE[:3], "kernel", "depth", "std_0", log=True)
    assert np.isnan(np.ma.filled(partial.axes[0].images[0].get_array(), np.nan)).sum() == 1


def test_texts_and_lists_are_axes_too() -> None:
    rows = [
        {"block": b, "pattern": p, "std_0": 1.0 + len(b) + sum(p)}
        for b in ("plain", "residual")
        for p in ([1], [1, 2])
    ]
    figure = heat_map(rows, "block", "pattern", "std_0")
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["plain", "residual"]
    assert figure.axes[0].images[0].get_array().shape == (2, 2)


def test_image_grid_shows_all_at_one_scale() -> None:
    fields = {f"plain({n})": rf.erf(rf.zoo.plain(n)) for n in (2, 6, 20, 3)}
    figure = image_grid(fields, columns=2)
    panels = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title() for axes in panels] == list(fields)
    assert len({axes.get_xlim() for axes in panels}) == 1
    for axes, erf in zip(panels, fields.values(), strict=True):
        image = axes.images[0]
        array = erf.to_numpy()
        np.testing.assert_allclose(image.get_array(), np.sqrt(array / array.max()))
        # Centred: the middle of the image lies on 0.
        left, right, bottom, top = image.get_extent()
        assert (left + right, bottom + top) == pytest.approx((0, 0), abs=1e-9)
        assert right - left == array.shape[1]


def test_tables_of_all_kinds() -> None:
    expected = [{"a": 1, "b": 2.0}, {"a": 3, "b": 4.0}]
    columns = {"a": [1, 3], "b": [2.0, 4.0]}
    assert records(expected) == records(columns) == records(iter(expected)) == expected
    assert records([*expected, {"a": 5, "b": None, "error": "too wide"}]) == expected


def test_frames_are_tables() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"a": [1, 3, 4], "error": [None, None, "no"]})
    assert [row["a"] for row in records(frame)] == [1, 3]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: growth_curves([]), "no rows"),
        (lambda: growth_curves([{"depth": 1, "error": "x"}]), "no rows without an error"),
        (lambda: growth_curves(3), "int is no table"),
        (lambda: growth_curves([3]), "list is no table"),
        (lambda: growth_curves(TABLE, y="sdt_0"), "no column 'sdt_0'; did you mean 'std_0'?"),
        (lambda: growth_curves(TABLE), "name in by= what tells them apart"),
        (lambda: growth_curves([{"depth": 1, "std_0": None}]), "no values"),
        (lambda: growth_curves([{"depth": 1, "k": k, "std_0": k} for k in range(9)], by="k"),
         "9 curves, more than the 8"),
        (lambda: ratio_curves([{"depth": n, "ratio": 0} for n in (1, 2)]), "without a logarithm"),
        (lambda: heat_map(TABLE, "error", "depth", "std_0"), "several rows"),
        (lambda: heat_map([{"a": 1, "b": 1, "c": 0}], "a", "b", "c", log=True), "no positive"),
        (lambda: heat_map([{"a": 1, "b": 1, "c": None}], "a", "b", "c"), "no numbers"),
        (lambda: image_grid([]), "at least one"),
        (lambda: image_grid([np.ones(3)]), "2-D images"),
        (lambda: image_grid([np.zeros((3, 3))]), "not all 0"),
        (lambda: image_grid([np.ones((3, 3))], columns=0), "columns=0"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn(draw: Any, message: str) -> None:
    with pytest.raises(InputError) as refused:
        draw()
    assert message in str(refused.value)


def test_pyplot_is_left_alone(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from fastrf.sweep.pictures import growth_curves, WIDTH\n"
        "figure = growth_curves([{'depth': 1, 'std_0': 2.0}, {'depth': 2, 'std_0': 3.0}])\n"
        f"figure.savefig({str(tmp_path / 'a.png')!r})\n"
        "assert figure.get_size_inches()[0] == WIDTH\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_styles_differ_in_more_than_colour() -> None:
    styles = pictures._STYLES
    assert len(styles) == pictures.MOST_CURVES
    assert len({s["color"] for s in styles}) == len({s["marker"] for s in styles}) == len(styles)


def test_a_store_is_a_table(tmp_path: Path) -> None:
    """Its columns are what is drawn where nothing else is said."""
    space = {"ndim": 2, "parameters": {"depth": [1, 2], "kernel": 3}}
    with rf.sweep(space, tmp_path / "s.db", workers=0, progress=False) as found:
        (points,) = drawn(growth_curves(found)).values()
    np.testing.assert_allclose(points, [(1, (2 / 3) ** 0.5), (2, (4 / 3) ** 0.5)])
