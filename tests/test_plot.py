"""Figures: what is drawn where, that nothing overlaps, and the files."""

from __future__ import annotations

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.collections import LineCollection
from matplotlib.patches import Ellipse, FancyBboxPatch, Polygon, Rectangle
from matplotlib.text import Text

import fastrf as rf
from fastrf import plot
from fastrf.erf import erf
from fastrf.errors import InputError, MissingExtra
from fastrf.plot import fields, profiles, scene, stack, style
from fastrf.plot.features import layers_of
from fastrf.plot.graph import collapsed
from fastrf.plot.layout import layered

DEEP = rf.Sequential(*[rf.Residual(rf.Conv(3, padding=1), rf.Conv(3, padding=1))] * 3)
LINE = erf(rf.Sequential(*[rf.Conv(3)] * 4, ndim=1))
PLANE = erf(
    rf.Sequential(rf.Conv(7, stride=2, padding=3), *[rf.Conv(3, padding=1)] * 3),
    unit=(0, 11),
    input_size=(20, 24),
)
SOLID = erf(rf.Sequential(*[rf.Conv((3, 5, 7))] * 2))
POINT = erf(rf.Sequential(rf.Conv(1)))
STRIP = erf(rf.Sequential(*[rf.Conv((3, 31))] * 3))
WIDE = erf(rf.zoo.plain(60, 3))
CAUSAL = rf.Sequential(
    *[rf.Conv(2, dilation=2**i, padding=((2**i, 0),)) for i in range(4)], ndim=1, name="causal"
)
ALEXNET = rf.receptive_field(rf.zoo.alexnet_dang(), input_size=227)
ALL = erf(DEEP, layers="all")


def images(figure):
    return [a for a in figure.axes if a.images]


# --- nothing overlaps -----------------------------------------------------------------------


def texts(figure):
    """The texts that show, with the rectangles that they cover, in dots."""
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    # Axes keep labels of ticks beyond their limits, which they do not draw.
    hidden = set()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not low <= tick.get_loc() <= high or not axis.axes.axison:
                hidden |= {tick.label1, tick.label2}
    found = []
    for text in figure.findobj(Text):
        if text not in hidden and text.get_visible() and text.get_text().strip():
            box = text.get_window_extent(renderer)
            found.append((text.get_text(), box))
    return found


def assert_readable(figure):
    """Every text lies on the paper and on no other one; one dot is left for rounding."""
    found = texts(figure)
    assert found
    for text, box in found:
        assert box.x0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert box.y0 >= -1, text
        assert box.y1 <= figure.bbox.y1 + 1, text
    for (one, a), (two, b) in itertools.combinations(found, 2):
        width = min(a.x1, b.x1) - max(a.x0, b.x0)
        height = min(a.y1, b.y1) - max(a.y0, b.y0)
        # Slanted names cover less than the rectangles about them.
        assert width <= 1 or height <= 1, (one, two)


FIGURES = {
    "erf 1-D": lambda **look: plot.erf_figure(LINE, **look),
    "erf 2-D": lambda **look: plot.erf_figure(PLANE, **look),
    "erf point": lambda **look: plot.erf_figure(POINT, **look),
    "erf strip": lambda **look: plot.erf_figure(STRIP, **look),
    "erf wide": lambda **look: plot.erf_figure(WIDE, **look),
    "erf 3-D": lambda **look: plot.erf_figure(SOLID, **look),
    "sections": lambda **look: plot.sections_figure(SOLID, **look),
    "profile 1-D": lambda **look: plot.profile_figure(LINE, **look),
    "profile 2-D": lambda **look: plot.profile_figure(PLANE, **look),
    "profile 3-D": lambda **look: plot.profile_figure(SOLID, **look),
    "profile point": lambda **look: plot.profile_figure(POINT, **look),
    "features": lambda **look: plot.features_figure(ALEXNET, **look),
    "features 3-D": lambda **look: plot.features_3d_figure(ALEXNET, **look),
    "features 1-D": lambda **look: plot.features_figure(
        rf.receptive_field(CAUSAL, input_size=30), **look
    ),
    "graph": lambda **look: plot.graph_figure(rf.receptive_field(DEEP), ALL, **look),
    "graph resnet50": lambda **look: plot.graph_figure(
        rf.receptive_field(rf.zoo.resnet50()), **look
    ),
    "graph unet": lambda **look: plot.graph_figure(rf.receptive_field(rf.zoo.unet(4, 2)), **look),
    "graph 1": lambda **look: plot.graph_figure(rf.receptive_field(rf.Conv(1)), **look),
    "stack": lambda **look: plot.stack_figure(rf.receptive_field(CAUSAL), **look),
    "stack 1": lambda **look: plot.stack_figure(rf.receptive_field(rf.Conv(1)), **look),
}


WIDER = ("erf 2-D", "profile 3-D", "features", "features 3-D", "graph unet", "stack")
LOOKS = [(name, "column", "light") for name in FIGURES] + [(n, "full", "dark") for n in WIDER]


@pytest.mark.parametrize(("name", "width", "theme"), LOOKS, ids=map("-".join, LOOKS))
def test_every_figure_is_readable(name, width, theme):
    figure = FIGURES[name](width=width, theme=theme)
    assert figure.get_figwidth() == {"column": style.COLUMN, "full": style.FULL}[width]
    assert figure.get_facecolor()[:3] == pytest.approx(
        (1, 1, 1) if theme == "light" else (0x15 / 255, 0x18 / 255, 0x1D / 255)
    )
    assert_readable(figure)


@pytest.mark.parametrize("name", ["plain(200, 3, 1)", "unet(2, 2)"])
def test_growth_is_readable(name):
    """Names of layers are slanted: the rectangles about them overlap, they do not."""
    found = erf(rf.zoo.get(name), layers="all")
    for width in ("column", "full"):
        figure = plot.growth_figure(found, width=width)
        named = figure.axes[1].get_xticklabels()
        for text in named:
            text.set_visible(False)
        assert_readable(figure)
        places = [figure.axes[1].transData.transform((t.get_position()[0], 0))[0] for t in named]
        assert named[-1].get_text()
        points = np.diff(places) * 72 / figure.dpi
        assert np.all(points > style.SMALL * 1.4)


# --- images ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "scale", "count"),
    [
        (PLANE, "both", 2),
        (PLANE, "linear", 1),
        (SOLID, "both", 6),
        (SOLID, "log", 3),
        (POINT, "both", 2),
        (LINE, "both", 0),
    ],
)
def test_panels(field, scale, count):
    assert len(images(plot.erf_figure(field, scale))) == count


def test_pixels_lie_at_their_input_index():
    panel = images(plot.erf_figure(PLANE, "linear"))[0]
    left, right, bottom, top = panel.images[0].get_extent()
    (y0, y1), (x0, x1) = PLANE.box
    assert (left, right, top, bottom) == (x0 - 0.5, x1 + 0.5, y0 - 0.5, y1 + 0.5)
    shown = np.asarray(panel.images[0].get_array())
    np.testing.assert_allclose(shown, PLANE.image / PLANE.image.max(), rtol=2.0**-50)
    assert panel.get_xlabel() == "x (input pixels)"
    assert panel.get_ylabel() == "y (input pixels)"
    # Rows go down.
    assert panel.get_ylim()[0] > panel.get_ylim()[1]


def test_boxes_and_ellipse_are_the_field_s():
    panel = images(plot.erf_figure(PLANE, "log"))[0]
    frame, border = (p for p in panel.patches if isinstance(p, Rectangle))
    (y0, y1), (x0, x1) = PLANE.field.box(PLANE.unit)
    assert frame.get_bbox().extents.tolist() == [x0 - 0.5, y0 - 0.5, x1 + 0.5, y1 + 0.5]
    assert border.get_bbox().extents.tolist() == [-0.5, -0.5, 23.5, 19.5]
    (ellipse,) = (p for p in panel.patches if isinstance(p, Ellipse))
    assert ellipse.get_center() == (PLANE.mean[1], PLANE.mean[0])
    # The ellipse's matrix, turned back into (y, x), is the covariance.
    angle = np.radians(ellipse.get_angle())
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    halves = np.diag([ellipse.get_width() / 2, ellipse.get_height() / 2]) ** 2
    found = (turn @ halves @ turn.T)[::-1, ::-1]
    # An eigendecomposition is backward stable: a few u of the norm.
    np.testing.assert_allclose(found, PLANE.covariance, atol=1e-14 * np.trace(PLANE.covariance))


def test_linear_scale_shows_a_part_of_a_large_trf():
    linear, log = images(plot.erf_figure(WIDE))
    assert np.ptp(log.get_xlim()) > 121
    assert 9 * WIDE.std[1] < np.ptp(linear.get_xlim()) < 0.5 * np.ptp(log.get_xlim())
    assert np.mean(linear.get_xlim()) == pytest.approx(WIDE.mean[1])


def test_outlines_hold_their_share():
    values = np.array([[1.0, 4.0, 2.0], [8.0, 16.0, 1.0]]) / 32
    assert scene.level(values, 0.5) == 16 / 32
    assert scene.level(values, 0.51) == 8 / 32
    assert scene.level(values, 1.0) == 1 / 32


def test_strides_leave_smooth_outlines():
    field = erf(rf.Sequential(rf.Conv(4, stride=4), *[rf.Conv(3)] * 6))
    # Taps 4 at stride 4 tile without a seam; a window of one stride keeps the image's mass.
    smooth = scene.Scene(field).smooth
    rows = smooth[smooth.shape[0] // 2]
    peak = int(rows.argmax())
    assert (np.diff(rows[: peak + 1]) >= 0).all()
    assert (np.diff(rows[peak:]) <= 0).all()


def test_large_images_are_averaged_over_blocks():
    image = np.arange(7 * 10, dtype=float).reshape(7, 10)
    found, sides = style.blocked(image, 4)
    assert sides == (2, 3)
    expected = [
        [image[a : a + 2, b : b + 3].mean() for b in range(0, 10, 3)] for a in range(0, 7, 2)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-15)


def test_background_lies_under_the_field():
    picture = np.zeros((20, 24, 3), np.uint8)
    panel = images(plot.erf_figure(PLANE, "linear", background=picture))[0]
    under, over = panel.images
    assert tuple(under.get_extent()) == (-0.5, 23.5, 19.5, -0.5)
    # The peak covers it, and what holds nothing does not.
    assert over.get_alpha().max() == pytest.approx(0.85)
    assert over.get_alpha().min() < 0.2
    with pytest.raises(InputError, match=r"\(20, 25\) pixels.*\(20, 24\)"):
        plot.erf_figure(PLANE, background=np.zeros((20, 25)))
    with pytest.raises(InputError, match="shape"):
        plot.erf_figure(PLANE, background=np.zeros(20))
    for field in (LINE, SOLID):
        with pytest.raises(InputError, match="2 axes"):
            plot.erf_figure(field, background=picture)


def test_sections_go_through_the_centre_to_one_scale():
    figure = plot.sections_figure(SOLID)
    by_axes = {(a.get_ylabel()[0], a.get_xlabel()[0]): a for a in images(figure)}
    assert set(by_axes) == {("y", "x"), ("y", "z"), ("z", "x")}
    z, y, x = (round(c) for c in SOLID.center)
    image = SOLID.image / SOLID.image.max()
    expected = {
        ("y", "x"): image[z - SOLID.origin[0]],
        ("y", "z"): image[:, :, x - SOLID.origin[2]].T,
        ("z", "x"): image[:, y - SOLID.origin[1]],
    }
    for pair, panel in by_axes.items():
        shown = np.asarray(panel.images[0].get_array())
        np.testing.assert_allclose(shown, expected[pair], rtol=2.0**-50)
    # A pixel is as large in each of them.
    figure.draw_without_rendering()
    scales = []
    for panel in by_axes.values():
        box = panel.get_window_extent()
        scales += [box.width / np.ptp(panel.get_xlim()), box.height / np.ptp(panel.get_ylim())]
    assert max(scales) / min(scales) == pytest.approx(1, abs=0.1)
    with pytest.raises(InputError, match="erf_figure"):
        plot.sections_figure(PLANE)


# --- profiles -------------------------------------------------------------------------------


def curves(panel):
    return {line.get_label(): line for line in panel.lines}


def test_profile_and_its_gaussian():
    panel = plot.profile_figure(LINE, "linear").axes[0]
    found = curves(panel)
    np.testing.assert_array_equal(found["ERF"].get_xdata(), np.arange(9) + LINE.origin[0])
    np.testing.assert_array_equal(found["ERF"].get_ydata(), LINE.image)
    x, y = found["Gaussian of the same mean and σ"].get_data()
    # A normal density falls to e^(-1/2) of its peak at one σ from the mean; its peak is
    # 1/(σ·√(2π)). Between its 400 points, h = 0.012 σ apart, the line is
    # read linearly: wrong by (h/σ)²/8 = 2e-5 of the peak at most.
    peak = np.interp(LINE.mean[0], x, y)
    assert peak == pytest.approx(1 / (LINE.std[0] * np.sqrt(2 * np.pi)), rel=1e-4)
    side = np.interp(LINE.mean[0] + LINE.std[0], x, y)
    assert side / peak == pytest.approx(np.exp(-0.5), rel=1e-4)


SADDLEPOINT = "saddlepoint approximation"


def test_saddlepoint_follows_the_profile():
    field = erf(rf.Sequential(*[rf.Conv(5, padding=1)] * 12, ndim=1))
    panel = plot.profile_figure(field, "log").axes[0]
    x, p = curves(panel)[SADDLEPOINT].get_data()
    at = np.arange(field.box[0][0], field.box[0][1] + 1)
    # At the ends the value is exact; one pixel from them it is right to 0.2 %, further in better.
    # Between its points, 0.12 apart, the line's chord adds h²/(8σ²) of the value at most, on a
    # logarithmic scale less.
    found = np.exp(np.interp(at, x, np.log(p)))
    np.testing.assert_allclose(found, field.profile(0), rtol=3e-3)


@pytest.mark.parametrize(
    ("net", "options", "drawn"),
    [
        (rf.Sequential(*[rf.Conv(3)] * 5), {}, True),
        (rf.Sequential(rf.Conv(3), rf.AvgPool(2, stride=2), rf.Conv(3)), {}, True),
        (rf.Sequential(rf.Conv(3), rf.AvgPool(3, stride=2), rf.Conv(3)), {}, False),
        (DEEP, {}, False),
        (rf.Sequential(*[rf.Conv(3, padding=1)] * 5), {"input_size": 64}, True),
        (rf.Sequential(*[rf.Conv(3, padding=1)] * 5), {"input_size": 64, "unit": 0}, False),
        (rf.Sequential(rf.Conv(1, stride=2), *[rf.Conv(3)] * 5), {}, False),  # holes
        (rf.Sequential(rf.Conv(3), rf.ConvTranspose(2, stride=2)), {}, False),
    ],
    ids=["chain", "tiles", "overlaps", "ways", "inside", "border", "holes", "transposed"],
)
def test_saddlepoint_is_drawn_where_it_applies(net, options, drawn):
    panel = plot.profile_figure(erf(net, **options), "linear").axes[0]
    assert (SADDLEPOINT in curves(panel)) == drawn


def test_steps_of_a_chain():
    net = rf.Sequential(
        rf.Conv((1, 5), stride=(2, 3)), rf.MaxPool((3, 2), stride=2), rf.Conv(3, dilation=(1, 4))
    )
    field = erf(net)
    found = [profiles.chain_steps(field, axis) for axis in (0, 1)]
    assert [[(s.kernel, s.jump, s.dilation) for s in steps] for steps in found] == [
        [(3, 2, 1), (3, 4, 1)],
        [(5, 1, 1), (2, 3, 1), (3, 6, 4)],
    ]


# --- growth ---------------------------------------------------------------------------------


def test_growth_draws_the_sizes_of_every_layer():
    sizes, ratio = plot.growth_figure(ALL).axes
    found = curves(sizes)
    names = [t.get_text() for t in ratio.get_xticklabels()]
    # Of six convolutions and three sums: all move the image.
    numbers = found["TRF"].get_xdata()
    assert len(numbers) == 9
    layers = list(ALL)
    table = ALL[layers[-1]].field.layers
    for label, measure in {
        "TRF": lambda name: table.named(name).size[0],
        "Luo's size of the ERF": lambda name: ALL[name].luo_size(),
        "full width at half maximum": lambda name: ALL[name].fwhm[0],
        "σ": lambda name: ALL[name].std[0],
    }.items():
        expected = [measure(layers[n - 1]) for n in numbers]
        np.testing.assert_allclose(found[label].get_ydata(), expected, rtol=1e-12)
    (line,) = ratio.lines
    expected = [ALL[layers[n - 1]].ratio for n in numbers]
    np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-12)
    assert names[-1] == layers[-1]
    assert sizes.get_ylabel() == "input pixels"


def test_growth_of_a_deep_network_is_thinned_out():
    found = erf(rf.zoo.plain(200, 3, 1), layers="all")
    line = curves(plot.growth_figure(found).axes[0])["TRF"]
    assert len(line.get_xdata()) == 120
    assert (line.get_xdata()[0], line.get_xdata()[-1]) == (1, 200)
    assert line.get_ydata()[-1] == 401


def test_growth_refuses():
    with pytest.raises(InputError, match="no fields"):
        plot.growth_figure({})
    other = erf(rf.Sequential(rf.Conv(3)), layers="all")
    with pytest.raises(InputError, match="several networks"):
        plot.growth_figure({**ALL, "other": next(iter(other.values()))})


# --- features -------------------------------------------------------------------------------


def test_features_of_dang_s_alexnet():
    """The article's numbers: n, j, r and start of conv1 and pool5, start counted from a corner."""
    figure = plot.features_figure(ALEXNET, ["conv1", "pool5"])
    for panel, (n, j, r, start) in zip(
        figure.axes, [(55, 4, 11, 5.5), (6, 32, 195, 33.5)], strict=True
    ):
        dots, chosen = panel.lines
        expected = start - 0.5 + j * np.arange(n)
        np.testing.assert_array_equal(np.unique(dots.get_xdata()), expected)
        np.testing.assert_array_equal(np.unique(dots.get_ydata()), expected)
        assert len(dots.get_xdata()) == n * n
        middle = expected[n // 2]
        assert (chosen.get_xdata()[0], chosen.get_ydata()[0]) == (middle, middle)
        box = panel.patches[-1].get_bbox()
        assert (box.width, box.height) == (r, r)
        assert (box.x0 + box.x1) / 2 == middle
        # All maps are drawn at one size.
        assert panel.get_xlim() == figure.axes[0].get_xlim()
    boxes = [len(panel.patches) - 3 for panel in figure.axes]
    assert boxes == [0, 36]


def test_features_whose_fields_are_not_evenly_spaced():
    """Distill's misaligned network: unions of 7, 6, 5, 6, 7 pixels."""
    net = rf.Parallel(
        rf.Conv(5, stride=2, padding=((2, 1),)),
        rf.Sequential(rf.Conv(3, padding=0, stride=2), rf.Conv(1)),
        ndim=1,
    )
    field = rf.receptive_field(net, input_size=13)
    assert not field.aligned
    (layer,) = layers_of(field, [field.node], "center", (0,))
    expected = [sum(field.box(i)[0]) / 2 for i in range(len(layer.centers[0]))]
    np.testing.assert_array_equal(layer.centers[0], expected)


def test_features_of_a_decoder_have_their_own_centres():
    field = rf.receptive_field(rf.zoo.unet(2, 1), input_size=24)
    for axes in ((0, 1), (1, 0)):
        for layer in layers_of(field, None, (1, 2), axes):
            own = rf.receptive_field(field.network, layer.row.name, 24)
            for place, axis in enumerate(axes):
                for index in range(layer.row.shape[axis]):
                    unit = [n // 2 for n in layer.row.shape]
                    unit[axis] = index
                    assert layer.centers[place][index] == sum(own.box(tuple(unit))[axis]) / 2
            assert layer.box == tuple(own.box((1, 2))[axis] for axis in axes)


def test_default_layers_are_end_points_or_map_sizes():
    block = [rf.Conv(3, stride=2, padding=1), rf.Conv(3, padding=1), rf.Activation()]
    field = rf.receptive_field(rf.Sequential(*block * 3), input_size=(32, 48))
    rows = [layer.row for layer in layers_of(field, None, "center", (0, 1))]
    assert [row.name for row in rows] == ["relu1", "relu2", "relu3"]
    assert [row.shape for row in rows] == [(16, 24), (8, 12), (4, 6)]
    resnet = rf.receptive_field(rf.zoo.resnet18(), input_size=224)
    names = [layer.row.name for layer in layers_of(resnet, None, "center", (0, 1))]
    assert names == list(resnet.network.endpoints.values())


def test_features_in_three_axes_show_two():
    net = rf.Sequential(*[rf.Conv((3, 5, 3), stride=(1, 2, 2))] * 2)
    field = rf.receptive_field(net, input_size=(9, 31, 45))
    panel = plot.features_figure(field, axes=(0, 2)).axes[0]
    assert (panel.get_ylabel()[0], panel.get_xlabel()[0]) == ("z", "x")
    panel = plot.features_figure(field).axes[0]
    assert (panel.get_ylabel()[0], panel.get_xlabel()[0]) == ("y", "x")


def test_features_stacked():
    figure = plot.features_3d_figure(ALEXNET, ["conv1", "conv5", "pool5"])
    (panel,) = figure.axes
    boxes = [p for p in panel.patches if isinstance(p, Polygon)]
    # The input and a plane and a box a layer; the last one's box is filled too.
    assert len(boxes) == 1 + 2 * 3 + 1
    labels = [t.get_text() for t in figure.legends[0].get_texts()]
    assert labels[0] == "pool5: map 6 × 6, stride 32, TRF 195"
    assert labels[-1] == "lowest plane: the input"


def test_features_refuse():
    with pytest.raises(InputError, match="input_size"):
        plot.features_figure(rf.receptive_field(DEEP))
    with pytest.raises(InputError, match="no node"):
        plot.features_figure(ALEXNET, ["nothing"])
    with pytest.raises(InputError, match="is an input"):
        plot.features_figure(ALEXNET, ["input"])
    with pytest.raises(InputError, match="names none"):
        plot.features_figure(ALEXNET, [])
    with pytest.raises(InputError, match="axes"):
        plot.features_figure(ALEXNET, axes=(0, 2))
    with pytest.raises(InputError, match="features_figure"):
        plot.features_3d_figure(rf.receptive_field(CAUSAL, input_size=30))
    with pytest.raises(InputError, match="outside the map"):
        plot.features_figure(ALEXNET, unit=(60, 0), layers=["conv1"])


# --- the graph ------------------------------------------------------------------------------


def boxes_of(name, depth=None):
    groups, sources = collapsed(rf.zoo.get(name), depth)
    return [g.name for g in groups], sources


def test_residual_blocks_are_boxes():
    names, sources = boxes_of("resnet50")
    blocks = [f"layer{i}.{j}" for i, n in enumerate((3, 4, 6, 3), 1) for j in range(n)]
    assert names == ["input", "conv1", "maxpool", *blocks, "avgpool", "fc"]
    assert sources == [[], *([name] for name in names[:-1])]
    names, _ = boxes_of("resnet50", 1)
    stages = [f"layer{i}" for i in range(1, 5)]
    assert names == ["input", "conv1", "maxpool", *stages, "avgpool", "fc"]
    names, _ = boxes_of("resnet50", 0)
    assert sorted(names) == sorted(rf.zoo.resnet50().nodes)


def test_equal_layers_one_behind_the_other_are_one_box():
    groups, _ = collapsed(rf.zoo.plain(1000, 3), None)
    assert [(g.name, len(g.nodes), g.repeats) for g in groups] == [
        ("input", 1, 1),
        ("conv1", 1000, 1000),
    ]
    groups, _ = collapsed(rf.zoo.residual(1000), None)
    assert [(g.name, len(g.nodes), g.repeats) for g in groups][1:] == [("block1", 3000, 1000)]


@pytest.mark.parametrize("name", ["resnet50", "unet(4, 2)", "wavenet(2)", "inception_v3"])
@pytest.mark.parametrize("depth", [None, 0, 1, 2])
def test_boxes_are_a_partition_that_reads_what_the_nodes_read(name, depth):
    net = rf.zoo.get(name)
    groups, sources = collapsed(net, depth)
    home = {node: g.name for g in groups for node in g.nodes}
    assert sorted(home) == sorted(net.nodes)
    assert sum(len(g.nodes) for g in groups) == len(net.nodes)
    done = set()
    for group, read in zip(groups, sources, strict=True):
        expected = {home[s] for node in group.nodes for s in net.nodes[node].inputs}
        assert set(read) == expected - {group.name}
        assert set(read) <= done
        done.add(group.name)


def test_scopes_that_read_each_other_stay_apart():
    net = rf.Network(
        {
            "a.one": (rf.Conv(3), "input"),
            "b.one": (rf.Conv(3), "a.one"),
            "a.two": (rf.Conv(5), "b.one"),
            "b.two": (rf.Conv(5), "a.two"),
        }
    )
    groups, _ = collapsed(net, 1)
    assert {node for g in groups for node in g.nodes} == set(net.nodes)
    assert all(len(g.nodes) == 1 for g in groups if g.name.startswith("a"))


def test_layout_keeps_order_and_room():
    net = rf.zoo.unet(4, 2)
    groups, sources = collapsed(net, 0)
    layout = layered({g.name: read for g, read in zip(groups, sources, strict=True)})
    rows = {}
    for edge, bends in layout.bends.items():
        upper, lower = (layout.layer[n] for n in edge)
        assert [layer for _, layer in bends] == list(range(upper + 1, lower))
        for x, layer in bends:
            rows.setdefault(layer, []).append((x, 0.3))
    for name, layer in layout.layer.items():
        rows.setdefault(layer, []).append((layout.across[name], 1.0))
    for row in rows.values():
        row.sort()
        for (a, wide), (b, wider) in itertools.pairwise(row):
            assert b - a >= (wide + wider) / 2 - 1e-9
    assert min(layout.across.values()) >= 0
    assert layout.height == max(layout.layer.values()) + 1


def test_a_chain_is_straight():
    layout = layered({0: [], **{n: [n - 1] for n in range(1, 9)}})
    assert set(layout.across.values()) == {0.0}


def test_graph_says_what_each_box_sees():
    figure = plot.graph_figure(rf.receptive_field(DEEP), ALL)
    found = [t for t, _ in texts(figure)]
    last = list(ALL)[-1]
    assert f"TRF 13 · stride 1 · ERF {ALL[last].luo_size():.4g}" in found
    assert found.count("conv 3") == 6
    assert "unbounded grid" in found
    (panel,) = figure.axes
    assert len([p for p in panel.patches if isinstance(p, FancyBboxPatch)]) == 10
    found = [t for t, _ in texts(plot.graph_figure(rf.receptive_field(rf.zoo.resnet50())))]
    assert "TRF 427 · stride 32" in found
    assert "conv 7, stride 2, norm, relu" in found
    assert found.count("TRF everything") == 2


def test_texts_stay_inside_their_boxes():
    figure = plot.graph_figure(rf.receptive_field(rf.zoo.densenet121()), width="column")
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    (panel,) = figure.axes
    boxes = [p.get_window_extent(renderer) for p in panel.patches if isinstance(p, FancyBboxPatch)]
    for text in panel.texts:
        own = text.get_window_extent(renderer)
        inside = [
            b.x0 - 1 <= own.x0 and own.x1 <= b.x1 + 1 and b.y0 - 1 <= own.y0 and own.y1 <= b.y1 + 1
            for b in boxes
        ]
        assert sum(inside) == 1, text.get_text()


def test_graph_refuses():
    with pytest.raises(InputError, match="depth"):
        plot.graph_figure(rf.receptive_field(DEEP), depth=-1)
    with pytest.raises(InputError, match="another network"):
        plot.graph_figure(rf.receptive_field(CAUSAL), ALL)


# --- stacks ---------------------------------------------------------------------------------


def cone_of(field, unit="center", **options):
    """Positions of the lit dots and the bright lines of a stack's figure."""
    (panel,) = plot.stack_figure(field, unit, **options).axes
    lines = [c for c in panel.collections if isinstance(c, LineCollection)]
    faint, bright = ([tuple(map(tuple, s)) for s in c.get_segments()] for c in lines)
    _, lit, _ = panel.lines
    dots = set(zip(lit.get_xdata(), lit.get_ydata(), strict=True))
    return dots, bright, faint, panel


def test_causal_cone_of_wavenet_s_figure():
    """Dilations 1, 2, 4, 8 with kernel 2: unit 0 reads pixels −15 … 0, two of each row's more."""
    dots, bright, faint, panel = cone_of(rf.receptive_field(CAUSAL))
    rows = {row: sorted(x for x, r in dots if r == row) for row in range(5)}
    assert rows == {
        4: [0],
        3: [-8, 0],
        2: [-12, -8, -4, 0],
        1: list(range(-14, 1, 2)),
        0: list(range(-15, 1)),
    }
    assert len(bright) == 2 + 4 + 8 + 16
    assert not set(bright) & set(faint)
    assert [t.get_text() for t in panel.get_yticklabels()] == [
        "input", "conv1", "conv2", "conv3", "conv4",
    ]  # fmt: skip
    assert panel.get_xlabel() == "x (input pixels)"


@pytest.mark.parametrize("align", ["center", "index"])
def test_alignment(align):
    dots, *_ = cone_of(rf.receptive_field(CAUSAL), align=align)
    (top,) = (x for x, row in dots if row == 4)
    assert top == {"center": -7.5, "index": 0}[align]


@pytest.mark.parametrize(
    ("net", "size", "unit"),
    [
        (rf.Sequential(*[rf.Conv(3, stride=2, padding=1)] * 3), 33, 0),
        (rf.Sequential(*[rf.Conv(3, dilation=d, padding=d) for d in (1, 2, 4)]), None, 5),
        (rf.Sequential(rf.Conv(3, stride=2), rf.ConvTranspose(4, stride=2, padding=1)), 21, 3),
        (rf.Sequential(rf.Conv(3), rf.Upsample(2, mode="linear"), rf.Conv(3)), None, 1),
        (rf.Sequential(rf.Conv(3), rf.Upsample(2, mode="linear"), rf.Conv(3)), 9, 0),
        (rf.Sequential(*[rf.Residual(rf.Conv(3, padding=1), rf.Conv(3, padding=1))] * 2), 12, 1),
        (rf.zoo.wavenet(1), None, 0),
    ],
    ids=["strided", "dilated", "transposed", "resized", "clamped", "residual", "wavenet"],
)
def test_cones_end_at_the_pixels_that_the_unit_sees(net, size, unit):
    output = "block1.layer4.add" if net.name == "wavenet" else None
    field = rf.receptive_field(rf.Network(net.nodes.values(), ndim=1), output, size)
    dots, *_ = cone_of(field, unit)
    seen = sorted(int(x) for x, row in dots if row == 0)
    intervals = field.intervals(unit, clip=size is not None)[0]
    assert seen == [i for a, b in intervals for i in range(a, b + 1)]


def test_either_axis_of_a_plane():
    net = rf.Sequential(rf.Conv((3, 7)), rf.Conv((3, 7)))
    for axis, size, name in ((0, 5, "y"), (1, 13, "x"), (-1, 13, "x")):
        dots, _, _, panel = cone_of(rf.receptive_field(net), axis=axis)
        assert len([x for x, row in dots if row == 0]) == size
        assert panel.get_xlabel()[0] == name


def test_stacks_refuse():
    with pytest.raises(InputError, match=r"2001 pixels and 1000 rows.*output="):
        plot.stack_figure(rf.receptive_field(rf.zoo.plain(1000, 3)))
    with pytest.raises(InputError, match="axis=2"):
        plot.stack_figure(rf.receptive_field(DEEP), axis=2)
    with pytest.raises(InputError, match="align"):
        plot.stack_figure(rf.receptive_field(DEEP), align="left")
    with pytest.raises(InputError, match=r"everything, by globalpool1"):
        plot.stack_figure(
            rf.receptive_field(rf.Sequential(rf.Conv(3), rf.GlobalPool()), "globalpool1")
        )
    assert stack.MOST_PIXELS < 2001


# --- files, options -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "begin"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")]
)
def test_files(tmp_path, suffix, begin):
    path = tmp_path / f"field{suffix}"
    plot.save(plot.erf_figure(PLANE, width="column"), path)
    assert path.read_bytes().startswith(begin)


def test_dots_per_inch(tmp_path):
    from matplotlib.image import imread

    figure = plot.erf_figure(LINE, width="column")
    plot.save(figure, tmp_path / "a.png", dpi=100)
    assert imread(tmp_path / "a.png").shape[1] == 340


def test_pyplot_is_not_touched():
    code = (
        "import sys, fastrf as rf, matplotlib\n"
        # Reading the backend through rcParams[…] would load pyplot by itself.
        "before = dict(dict.items(matplotlib.rcParams))\n"
        "net = rf.Sequential(rf.Conv(3), rf.Conv(3), ndim=1)\n"
        "field = rf.receptive_field(net, input_size=9)\n"
        "fields = rf.erf(net, layers='all')\n"
        "rf.plot.erf_figure(fields['conv2']), rf.plot.profile_figure(fields['conv2'])\n"
        "rf.plot.growth_figure(fields), rf.plot.features_figure(field)\n"
        "rf.plot.graph_figure(field), rf.plot.stack_figure(field)\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
        "assert dict(dict.items(matplotlib.rcParams)) == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_of_others_do_not_matter():
    """The sizes of what is drawn are its own, whatever matplotlib's settings are."""
    import matplotlib

    with matplotlib.rc_context({"font.size": 30, "axes.labelsize": 30, "axes.titlesize": 30}):
        assert_readable(plot.erf_figure(PLANE, width="column"))


def test_refused(tmp_path, monkeypatch):
    figure = plot.erf_figure(LINE)
    with pytest.raises(InputError, match=r"'\.gif'.*\.png"):
        plot.save(figure, tmp_path / "field.gif")
    with pytest.raises(InputError, match="cannot write"):
        plot.save(figure, tmp_path / "absent" / "field.png")
    with pytest.raises(InputError, match="draw one first"):
        plot.save(LINE, tmp_path / "field.png")
    for draw in (plot.erf_figure, plot.profile_figure):
        with pytest.raises(InputError, match="choose one of both, linear, log"):
            draw(LINE, "cubic")
    with pytest.raises(InputError, match="choose one of light, dark"):
        plot.erf_figure(LINE, theme="sepia")
    for width in ("wide", 0, True, math.nan):
        with pytest.raises(InputError, match="width="):
            plot.erf_figure(LINE, width=width)
    with pytest.raises(AttributeError, match="no attribute 'pie_figure'"):
        _ = plot.pie_figure
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtra, match=r"fastrf\[plot\]"):
        plot.save(figure, tmp_path / "field.png")


def test_every_figure_is_public():
    named = {name for name in plot.__all__ if name.endswith("_figure")}
    assert len(named) == 9
    for name in named:
        assert getattr(plot, name).__doc__
    assert fields.SCALES.keys() == {"both", "linear", "log"}
