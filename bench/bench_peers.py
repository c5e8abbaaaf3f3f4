"""fastrf against what users would run instead: the same case, in one run, results compared first.

    pytest bench/bench_peers.py --benchmark-group-by=group --benchmark-columns=median,rounds

"fastrf first" is the whole verb on a network that it has not seen, from its nodes to the pixels;
"fastrf" the same again, with what was worked out from the network kept; "fastrf engine" its engine
alone on the lowered network, which is how the peers are timed (see `bench.peers`). A peer
whose image is not ours, to what rounding explains, fails. Read figures as ratios within a group.
"""

from __future__ import annotations

import pytest
from fastrf.kernels import load

import fastrf as rf
from bench.cases import BY_NAME, CASES, network_of, plan_of
from bench.peers import PEERS, SLOW_PEERS, disagreement, flushed
from bench.record import rounds_for
from fastrf.engine import ENGINES
from fastrf.lowering import lower

NEEDS = {"jax": "jax", "opencv": "cv2"}
"""Modules of peers that the test extra does not bring along; without one its rows are skipped."""

WITH_PEERS = [case for case in CASES if case.peers or case.slow_peers]


@pytest.fixture(scope="module")
def ours():
    """Our image of a case, computed once."""
    images = {}

    def image_of(case):
        if case.name not in images:
            field = rf.erf(network_of(case), **case.options)
            images[case.name] = field.image, field.origin
        return images[case.name]

    return image_of


def measure(benchmark, case, who, call):
    benchmark.group = case.name
    benchmark.extra_info |= {"case": case.name, "who": who, "layers": len(network_of(case))}
    benchmark.pedantic(call, rounds=rounds_for(call))


@pytest.mark.parametrize("name", [case.name for case in WITH_PEERS])
def test_fastrf_first(benchmark, name):
    case = BY_NAME[name]
    known = network_of(case)

    def image():
        network = rf.Network(known.nodes.values(), known.outputs, ndim=known.ndim)
        return rf.erf(network, **case.options).image

    measure(benchmark, case, "fastrf first", image)


@pytest.mark.parametrize("name", [case.name for case in WITH_PEERS])
def test_fastrf(benchmark, name):
    case = BY_NAME[name]
    measure(benchmark, case, "fastrf", lambda: rf.erf(network_of(case), **case.options).image)


@pytest.mark.parametrize("name", [case.name for case in WITH_PEERS])
def test_fastrf_engine(benchmark, name):
    case, plan = BY_NAME[name], plan_of(BY_NAME[name])
    graph, kernels = lower(network_of(case), case.input_size), load(plan.device)

    def engine():
        found = ENGINES[plan.engine].run(
            graph, plan.node, plan.unit, plan.input, kernels=kernels, workers=plan.workers
        )
        return found.pixels(plan.workers)

    measure(benchmark, case, "fastrf engine", engine)


@pytest.mark.parametrize(
    ("name", "who"), [(case.name, who) for case in CASES for who in case.slow_peers]
)
def test_slow_peer(benchmark, ours, name, who):
    """Once, without a warm-up: with peers that take up to two minutes and 11 GB."""
    case, peer = BY_NAME[name], SLOW_PEERS[who]
    pytest.importorskip(NEEDS.get(who, "fastrf"))
    with flushed():
        call = peer.prepare(case)
        benchmark.group = case.name
        benchmark.extra_info |= {"case": case.name, "who": who, "layers": len(network_of(case))}
        image = benchmark.pedantic(call, rounds=1)
        assert disagreement(case, peer, image, ours(case)) <= 1


@pytest.mark.parametrize(
    ("name", "who"), [(case.name, who) for case in CASES for who in case.peers]
)
def test_peer(benchmark, ours, name, who):
    case, peer = BY_NAME[name], PEERS[who]
    pytest.importorskip(NEEDS.get(who, "fastrf"))
    with flushed():
        call = peer.prepare(case)
        assert disagreement(case, peer, call(), ours(case)) <= 1
        measure(benchmark, case, who, call)
