"""Every engine on every case in both dtypes: the whole verb and the pixels.

The network has been seen before, so what was worked out from it is there.

    pytest bench/bench_engines.py --benchmark-group-by=group --benchmark-columns=median,rounds

Skipped are cases that an engine cannot do (it says why) and those that the plan expects to take
longer than `PATIENCE`. Each row records the plan's own forecast beside the clock.
"""

from __future__ import annotations

import pytest

import fastrf as rf
from bench.cases import BY_NAME, network_of, plan_of
from bench.record import rounds_for
from fastrf.engine import METHODS
from fastrf.errors import FastrfError

PATIENCE = 2.0


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", list(BY_NAME))
def test_engine(benchmark, name, method, dtype, workers):
    case = BY_NAME[name]
    options = {"method": method, "dtype": dtype}
    try:
        plan = plan_of(case, **options)
    except FastrfError as error:
        pytest.skip(str(error))
    if plan.seconds > PATIENCE:
        pytest.skip(f"the plan expects {plan.seconds:.0f} s")
    if workers > plan.workers:
        pytest.skip(f"more than {plan.workers} workers would not pay")
    network = network_of(case)

    def field():
        return rf.erf(network, workers=workers, **options, **case.options).image

    benchmark.group = name
    benchmark.extra_info |= {
        "case": name,
        "engine": plan.engine,
        "dtype": dtype,
        "workers": workers,
        "layers": len(network),
        "forecast": plan.seconds,
    }
    benchmark.pedantic(field, rounds=rounds_for(field))
