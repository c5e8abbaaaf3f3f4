"""Every number of `python -m bench.paper`, against what was printed or follows from a formula."""

from __future__ import annotations

import math

import pytest

from bench.paper import luo, others
from fastrf import metrics


def table(section, number=0):
    return list(section.tables.values())[number]


def test_growth_of_luo_s_size():
    """0.536 and −0.426 on the amplitude, 0.481 and −0.481 on the variance; printed: 0.56, −0.43."""
    found = table(luo.figure_2())
    assert found.cell("amplitude, pixels counted", "size") == pytest.approx(0.536, abs=5e-4)
    assert found.cell("amplitude, pixels counted", "ratio") == pytest.approx(-0.426, abs=5e-4)
    assert found.cell("variance, pixels counted", "size") == pytest.approx(0.481, abs=5e-4)
    assert found.cell("variance, pixels counted", "ratio") == pytest.approx(-0.481, abs=5e-4)
    trf = metrics.slope_fit(range(5, 45, 5), [2 * n + 1 for n in range(5, 45, 5)])
    for size, ratio in zip(found.column("size"), found.column("ratio"), strict=True):
        assert size - ratio == pytest.approx(trf, abs=1e-12)
        # Neither the printed pair (its difference is 0.99) nor one of ±1/2 lies on this line.
        assert abs(size - 0.56) < 0.1
        assert abs(ratio + 0.43) < 0.1


def test_subsampling_and_dilation_widen():
    found = table(luo.subsampling())
    jumps = [[1] * 15, [1] * 5 + [2] * 4 + [4] * 4 + [8] * 2, [1] * 12 + [2, 4, 8]]
    assert found.column("TRF") == [1 + 2 * sum(j) for j in jumps]
    sigma = [math.sqrt(2 / 3 * sum(h**2 for h in j)) for j in jumps]
    assert found.column("σ") == pytest.approx(sigma, rel=1e-12)
    assert min(found.column("against plain")[1:]) > 1.3
    square = "diagonal / side"
    others = max(found.cell("plain", square), found.cell("subsampled", square))
    assert found.cell("dilated", square) > others + 0.05  # rectangular


def test_residual_networks():
    found = table(luo.residual_networks())
    assert found.column("TRF") == [71, 505]
    size = found.cell("CamVid, 16 blocks, 4 subsamplings", "Luo's size (amplitude)")
    assert 100 / 2 < size < 2 * 100  # "about 100" of a network whose layers are not printed


def test_skips_narrow_by_the_root_of_two():
    found = table(luo.skips())
    assert found.column("ratio") == pytest.approx([math.sqrt(1 / 2)] * 3, rel=1e-12)
    assert found.column("change of the image by dropout, of the peak") == [0.0] * 3


def test_corners_are_the_widest():
    found = table(luo.initialisation())
    for k in (3, 5, 7):
        widest = math.sqrt(3 * (k - 1) / (k + 1))
        corner = found.cell(f"corner, {k} × {k}", "σ against uniform")
        light = found.cell(f"centre-light, {k} × {k}", "σ against uniform")
        assert corner == pytest.approx(widest, rel=1e-12)
        assert 1 < light < corner


def test_depth_weights_and_relu(monkeypatch):
    """Theory is the gradient of equal weights, and what random weights scatter about."""
    monkeypatch.setattr(luo, "DEPTHS", (5, 10))
    found = table(luo.figure_1())
    for n in (5, 10):
        sigma = math.sqrt(2 * n / 3)
        assert found.cell(f"uniform, {n}", "σ theory") == pytest.approx(sigma, rel=1e-12)
        assert found.cell(f"uniform, {n}", "σ measured") == pytest.approx(sigma, rel=1e-12)
        assert found.cell(f"random, {n}", "σ measured") == pytest.approx(sigma, rel=0.1)
        assert found.cell(f"random + ReLU, {n}", "σ measured") == pytest.approx(sigma, rel=0.15)


@pytest.mark.parametrize("experiment", [others.dang, others.distill, others.lines])
def test_published_tables(experiment):
    for found in experiment().tables.values():
        half = len(found.header) // 2
        for row in found.rows:
            if found.header[1].endswith("printed"):
                assert row[1 : half + 1] == row[half + 1 :]
            elif "by formula" in found.header:
                assert row[2] == row[3]
            elif found.header[1] == "printed size":
                assert row[1] == row[2]
            else:
                assert row[2] - row[1] + 1 == row[3]
