"""Figures: what is drawn where, in 1-D, 2-D and 3-D, and the files."""

from __future__ import annotations

import sys

import numpy as np
import pytest

import fastrf as rf
from fastrf import plot
from fastrf.erf import erf
from fastrf.errors import InputError, MissingExtra

pytest.importorskip("matplotlib")

LINE = erf(rf.Sequential(*[rf.Conv(3)] * 4, ndim=1))
PLANE = erf(
    rf.Sequential(rf.Conv(7, stride=2, padding=3), *[rf.Conv(3, padding=1)] * 3),
    unit=(0, 11),
    input_size=(20, 24),
)
SOLID = erf(rf.Sequential(*[rf.Conv((3, 5, 7))] * 2))
POINT = erf(rf.Sequential(rf.Conv(1)))


def images(figure):
    return [a for a in figure.axes if a.images]


def profiles(figure):
    return [a for a in figure.axes if a.lines and not a.images]


@pytest.mark.parametrize(
    ("field", "scale", "image_count", "profile_count"),
    [
        (LINE, "both", 0, 2),
        (LINE, "log", 0, 1),
        (PLANE, "both", 2, 4),
        (PLANE, "linear", 1, 2),
        (SOLID, "both", 6, 3),
        (SOLID, "log", 3, 3),
        (POINT, "both", 2, 4),
    ],
)
def test_panels(field, scale, image_count, profile_count):
    figure = plot.erf_figure(field, scale)
    assert len(images(figure)) == image_count
    assert len(profiles(figure)) == profile_count


def test_pixels_lie_at_their_input_index():
    panel = images(plot.erf_figure(PLANE, "linear"))[0]
    left, right, bottom, top = panel.images[0].get_extent()
    (y0, y1), (x0, x1) = PLANE.box
    assert (left, right, top, bottom) == (x0 - 0.5, x1 + 0.5, y0 - 0.5, y1 + 0.5)
    np.testing.assert_array_equal(np.asarray(panel.images[0].get_array()), PLANE.image)


def test_box_and_ellipse_are_the_field_s():
    panel = images(plot.erf_figure(PLANE, "log"))[0]
    frame, ellipse = panel.patches
    (y0, y1), (x0, x1) = PLANE.field.box(PLANE.unit)
    assert (frame.get_x(), frame.get_y()) == (x0 - 0.5, y0 - 0.5)
    assert (frame.get_width(), frame.get_height()) == (x1 - x0 + 1, y1 - y0 + 1)
    assert ellipse.get_center() == (PLANE.mean[1], PLANE.mean[0])
    # The ellipse's matrix, turned back into (y, x), is the covariance.
    angle = np.radians(ellipse.get_angle())
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    halves = np.diag([ellipse.get_width() / 2, ellipse.get_height() / 2]) ** 2
    found = (turn @ halves @ turn.T)[::-1, ::-1]
    # An eigendecomposition is backward stable: a few u of the norm.
    np.testing.assert_allclose(found, PLANE.covariance, atol=1e-14 * np.trace(PLANE.covariance))


def test_profile_and_its_gaussian():
    panel = profiles(plot.erf_figure(LINE, "linear"))[0]
    drawn, gaussian = panel.lines
    np.testing.assert_array_equal(drawn.get_xdata(), np.arange(9) + LINE.origin[0])
    np.testing.assert_array_equal(drawn.get_ydata(), LINE.image)
    x, y = gaussian.get_data()
    # A normal density falls to e^(-1/2) of its peak at one σ from the mean; its peak is
    # 1/(σ·√(2π)). Between its 400 points, h = 0.014 σ apart, the line is
    # read linearly: wrong by (h/σ)²/8 = 2.4e-5 of the peak at most.
    peak = np.interp(LINE.mean[0], x, y)
    assert peak == pytest.approx(1 / (LINE.std[0] * np.sqrt(2 * np.pi)), rel=1e-4)
    side = np.interp(LINE.mean[0] + LINE.std[0], x, y)
    assert side / peak == pytest.approx(np.exp(-0.5), rel=1e-4)


def test_outlines_hold_their_share():
    values = np.array([[1.0, 4.0, 2.0], [8.0, 16.0, 1.0]]) / 32
    assert plot._level(values, 0.5) == 16 / 32
    assert plot._level(values, 0.51) == 8 / 32
    assert plot._level(values, 1.0) == 1 / 32


def test_strides_leave_smooth_outlines():
    field = erf(rf.Sequential(rf.Conv(4, stride=4), *[rf.Conv(3)] * 6))
    # Taps 4 at stride 4 tile without a seam; a window of one stride keeps the image's mass.
    smooth = plot._smoothed(field, field.image)
    rows = smooth[smooth.shape[0] // 2]
    peak = int(rows.argmax())
    assert (np.diff(rows[: peak + 1]) >= 0).all()
    assert (np.diff(rows[peak:]) <= 0).all()


@pytest.mark.parametrize("field", [LINE, PLANE, SOLID, POINT], ids=["1-D", "2-D", "3-D", "1x1"])
def test_nothing_overlaps(field):
    figure = plot.erf_figure(field)
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    boxes = [a.get_tightbbox(renderer) for a in figure.axes]
    boxes.append(figure._suptitle.get_window_extent(renderer))
    # A panel's box holds its labels, its legend and its colour bar. Pixels are shared by none;
    # one pixel is left for rounding.
    for i, a in enumerate(boxes):
        assert a.x0 >= -1
        assert a.x1 <= figure.bbox.x1 + 1
        for b in boxes[i + 1 :]:
            width = min(a.x1, b.x1) - max(a.x0, b.x0)
            height = min(a.y1, b.y1) - max(a.y0, b.y0)
            assert width <= 1 or height <= 1


@pytest.mark.parametrize(
    ("suffix", "begin"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")]
)
def test_files(tmp_path, suffix, begin):
    path = tmp_path / f"field{suffix}"
    plot.save(PLANE, path)
    assert path.read_bytes().startswith(begin)


def test_pyplot_is_not_touched():
    import subprocess

    code = (
        "import sys, fastrf as rf\n"
        "rf.plot.erf_figure(rf.erf(rf.Sequential(rf.Conv(3))))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"'\.gif'.*\.png"):
        plot.save(LINE, tmp_path / "field.gif")
    with pytest.raises(InputError, match="cannot write"):
        plot.save(LINE, tmp_path / "absent" / "field.png")
    with pytest.raises(InputError, match="choose one of both, linear, log"):
        plot.erf_figure(LINE, "cubic")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"fastrf\[plot\]"):
        plot.save(LINE, tmp_path / "field.png")
