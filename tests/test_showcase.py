"""The networks that the project promises figures for, each held against formulas.

Mass, mean, variance and kurtosis agree with the analytic module to 1e-12 relative in float64:
the mass itself (its logarithm to 1e-12 absolute), the mean relative to σ, the kurtosis as the
standardised fourth moment m₄/σ⁴ (its excess over 3 goes to 0 with depth, so that no number of
digits of m₄ would give it a relative accuracy). Pixel by pixel each of the at most 2,500 roundings
on a path is within 1.1e-16, which their random signs bring down to about 1e-14.
"""

from __future__ import annotations

import numpy as np
import pytest

import fastrf as rf
from fastrf.analytic.forward import forward_moments
from fastrf.analytic.moments import Moments, moments
from fastrf.lowering import lower

NETWORKS = {
    "plain(1000, 3)": rf.zoo.plain(1000, 3),
    "cifar_resnet(17)": rf.zoo.cifar_resnet(17),
    "resnet50": rf.zoo.resnet50(),
    "unet(4, 2)": rf.zoo.unet(4, 2),
    "wavenet(3)": rf.zoo.wavenet(3),
    "3-D": rf.Sequential(
        rf.Conv((3, 5, 5), stride=(1, 2, 2), padding=(1, 2, 2)),
        rf.MaxPool((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1)),
        *[rf.Residual(rf.Conv(3, padding=1), rf.Conv(3, padding=1))] * 4,
        rf.Conv(3, stride=2, padding=1),
        rf.Conv(3, padding=2, dilation=2),
    ),
}
RTOL = 1e-12


def agree(field: rf.ERF, expected: Moments) -> None:
    assert field.image.sum() == pytest.approx(1, rel=RTOL)
    assert field.image.min() >= 0
    assert np.isfinite(field.image).all()
    assert field.log_gain == pytest.approx(float(expected.log_mass), rel=RTOL, abs=RTOL)
    np.testing.assert_allclose(field.mean, expected.mean, rtol=RTOL, atol=RTOL * expected.std.min())
    np.testing.assert_allclose(field.std, expected.std, rtol=RTOL)
    fourth = np.asarray(field.kurtosis) + 3
    np.testing.assert_allclose(fourth, expected.kurtosis + 3, rtol=RTOL)


REFUSED = {("factored", "wavenet(3)")}
"""Too many terms, along a line."""


@pytest.mark.parametrize("method", ["direct", "factored"])
@pytest.mark.parametrize("name", NETWORKS)
def test_moments_on_the_unbounded_grid(name: str, method: str) -> None:
    net = NETWORKS[name]
    graph = lower(net)
    node = graph.output_node(None)
    if (method, name) in REFUSED:
        with pytest.raises(rf.errors.InputError, match="factored"):
            rf.erf(net, method=method, accuracy="relative")
        return
    field = rf.erf(net, method=method, accuracy="relative")
    assert field.lost_mass == 0
    agree(field, moments(graph, node, "center"))


@pytest.mark.parametrize("unit", ["center", "corner"])
def test_moments_of_resnet50_at_224(unit: str) -> None:
    net = NETWORKS["resnet50"]
    graph = lower(net, 224)
    node = graph.output_node(None)
    index = graph.unit_index(node, "center" if unit == "center" else 0)
    field = rf.erf(net, input_size=224, unit=index)
    agree(field, forward_moments(graph, node, index))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_check_passes(name: str) -> None:
    report = rf.check(NETWORKS[name], input_size=224 if name == "resnet50" else None)
    assert report, str(report)
    assert not report.skipped


@pytest.mark.parametrize("ndim", [1, 2])
def test_ten_thousand_layers(ndim: int) -> None:
    """σ² = n(k²−1)/12 (Luo et al. 2016, eq. 11), with no number below the smallest normal one."""
    field = rf.erf(rf.zoo.plain(10_000, 3, ndim), tail=1e-14 if ndim == 2 else None)
    assert np.isfinite(field.image).all()
    assert field.image[field.image > 0].min() >= np.finfo(np.float64).tiny
    # A tail of 1e-14 beyond 7.7σ takes at most 1e-14·(7.7 + 1)² off the variance.
    np.testing.assert_allclose(field.std, np.sqrt(10_000 * 8 / 12), rtol=RTOL)
