"""The measures of a field: on the factors that an engine left, and on the pixels.

    pytest bench/bench_metrics.py --benchmark-group-by=group --benchmark-columns=min,median

One group a measure; read the two ways of a network as a ratio. A fresh field is measured in every
round, outside of whose timing it is computed and its centre found: what one measure leaves behind
for the next does not count, but what all need, the profiles and the core, is in each.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

import fastrf as rf

NETWORKS = ("plain(1000, 3)", "residual(1000)", "plain(300, 3, ndim=1)", "plain(60, 3, ndim=3)")

MEASURES = {
    "moments": lambda field: (field.mean, field.std, field.covariance, field.kurtosis),
    "profile": lambda field: field.profile(0),
    "fwhm": lambda field: field.fwhm,
    "Luo's size": lambda field: field.luo_size(),
    "area ratio": lambda field: field.area_ratio(0.5),
    "radius of mass": lambda field: field.radius_of_mass(0.5),
    "smallest set": lambda field: field.smallest_set(0.5),
    "Gaussian distance": lambda field: field.gaussian_distance,
    "every figure": lambda field: field.to_dict(),
}


@pytest.mark.parametrize("held", ["factors", "pixels"])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("measure", MEASURES)
def test_measure(benchmark, measure, name, held):
    benchmark.group = f"{measure} of {name}"
    field = rf.erf(rf.zoo.get(name))
    field.to_dict()
    values = field.values if held == "factors" else field.image

    def fresh():
        # A copy of the factors, too, remembers nothing.
        again = replace(field, values=replace(values) if held == "factors" else values)
        assert again.center
        return (again,), {}

    benchmark.pedantic(MEASURES[measure], setup=fresh, rounds=5, warmup_rounds=1)
