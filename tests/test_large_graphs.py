"""Work in proportion to the graph, by counting calls: twice the nodes, about twice the work.

Seconds say the same for a million nodes, on a machine of one's own: `python -m bench.large_graphs`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest

import fastrf as rf
from bench.large_graphs import chain, from_json, from_onnx, shortcuts, zoo
from fastrf import netfile
from fastrf.lowering import lower
from fastrf.network import Network

FEW = 400

BUILDERS = {"chain": chain, "shortcuts": shortcuts, "zoo": zoo, "json": from_json}


def calls(work: Callable[[], Any]) -> int:
    """Functions that Python calls, built-in ones too."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def grows(work: Callable[[int], Callable[[], Any]]) -> float:
    """How much more is done for twice as many nodes; what is done once is done before."""
    work(FEW)()
    return calls(work(2 * FEW)) / calls(work(FEW))


STEPS: dict[str, Callable[[Network], Any]] = {
    "fingerprint": lambda net: net.fingerprint,
    "file": netfile.to_dict,
    "lower": lambda net: lower(net, 32),
    "field": lambda net: rf.receptive_field(net, input_size=32).size,
    "table": lambda net: len(rf.receptive_field(net, input_size=32).layers),
    "plan": lambda net: rf.plan(net, input_size=32),
    "erf": lambda net: rf.erf(net, input_size=32, method="direct", workers=1).image,
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["chain", "shortcuts"])
def test_steps(name: str, step: str) -> None:
    def work(count: int) -> Callable[[], Any]:
        network = BUILDERS[name](count)
        return lambda: STEPS[step](network)

    assert grows(work) < 2.4


@pytest.mark.parametrize("name", BUILDERS)
def test_reading(name: str) -> None:
    assert grows(lambda count: lambda: BUILDERS[name](count)) < 2.4


def test_reading_onnx() -> None:
    pytest.importorskip("onnx")
    assert grows(lambda count: lambda: from_onnx(count)) < 2.4


@pytest.mark.parametrize("name", BUILDERS)
def test_deeper_than_the_recursion_limit(name: str) -> None:
    count = 2 * sys.getrecursionlimit()
    network = BUILDERS[name](count)
    assert max(rf.receptive_field(network).size) > count // 2
    assert network == BUILDERS[name](count)
    assert rf.erf(network, input_size=9).shape == (9,)


def test_onnx_deeper_than_the_recursion_limit() -> None:
    pytest.importorskip("onnx")
    assert len(from_onnx(2 * sys.getrecursionlimit())) == 2 * sys.getrecursionlimit()
