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
from fastrf.engine import ENGINES
from fastrf.errors import FastrfError

PATIENCE = 2.0


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("method", list(ENGINES))
@pytest.mark.parametrize("name", list(BY_NAME))
def test_engine(benchmark, name, method, dtype):
    case = BY_NAME[name]
    try:
        plan = plan_of(case, method=method, dtype=dtype)
    except FastrfError as error:
        pytest.skip(str(error))
    if plan.seconds > PATIENCE:
        pytest.skip(f"the plan expects {plan.seconds:.0f} s")
    network = network_of(case)

    def field():
        return rf.erf(network, method=method, dtype=dtype, **case.options).image

    benchmark.group = name
    benchmark.extra_info |= {
        "case": name,
        "engine": method,
        "dtype": dtype,
        "layers": len(network),
        "forecast": plan.seconds,
    }
    benchmark.pedantic(field, rounds=rounds_for(field))
