"""Work in proportion to the graph, by counting calls: twice the nodes, about twice the work.

Seconds say the same for a million nodes, on a machine of one's own: `python -m bench.large_graphs`.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest

import fastrf as rf
from bench.large_graphs import (
    chain,
    dense,
    from_json,
    from_onnx,
    from_toml,
    shortcuts,
    unets,
    zoo,
)
from fastrf import netfile
from fastrf.engine import covariance
from fastrf.errors import InputError
from fastrf.lowering import lower
from fastrf.network import Network

FEW = 400

CONV = rf.Conv(3, padding=1)


def nested(hold: Callable[[Network], Network]) -> Callable[[int], Network]:
    """Blocks within blocks, as deep as there are nodes, but for the merges."""

    def build(count: int) -> Network:
        block = rf.Sequential(CONV, ndim=1)
        while len(block) < count:
            block = hold(block)
        return block

    return build


NESTED: dict[str, Callable[[int], Network]] = {
    "residual": nested(lambda block: rf.Residual(block, CONV)),
    "shortcut": nested(lambda block: rf.Residual(CONV, shortcut=block)),
    "sequence": nested(lambda block: rf.Sequential(block, CONV)),
    "named": nested(lambda block: rf.Sequential(CONV, block, name="stage")),
    "parallel": nested(lambda block: rf.Parallel(block, CONV)),
    "unnamed": nested(lambda block: rf.Parallel(CONV, block, name=None)),
}

SIDEWAYS = ("shortcut", "parallel", "unnamed")
"""Those that are deep blocks and no deep networks."""

FILES = {"json": from_json, "toml": from_toml}
GRAPHS = {"chain": chain, "shortcuts": shortcuts, "zoo": zoo, "dense": dense, "unets": unets}
BUILDERS = GRAPHS | FILES | NESTED


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
    "repr": repr,
    "file": netfile.to_dict,
    "lower": lambda net: lower(net, 32),
    "field": lambda net: rf.receptive_field(net, input_size=32).size,
    "table": lambda net: len(rf.receptive_field(net, input_size=32).layers),
    "plan": lambda net: rf.plan(net, input_size=32),
    "erf": lambda net: rf.erf(net, input_size=32, method="direct", workers=1).image,
}


def test_the_fields_of_all_layers() -> None:
    """On an image each is followed by itself, in compiled code: Python does no more for each."""

    def work(count: int) -> Callable[[], Any]:
        network = chain(count)
        return lambda: rf.erf(network, input_size=32, layers="all", workers=1)

    assert grows(work) < 2.4


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ["chain", "shortcuts", "dense", "unets", "residual", "parallel"])
def test_steps(name: str, step: str) -> None:
    def work(count: int) -> Callable[[], Any]:
        network = BUILDERS[name](count)
        assert network.nodes
        return lambda: STEPS[step](network)

    assert grows(work) < 2.4


@pytest.mark.parametrize("name", BUILDERS)
def test_reading(name: str) -> None:
    assert grows(lambda count: lambda: BUILDERS[name](count).nodes) < 2.4


def test_reading_onnx() -> None:
    pytest.importorskip("onnx")
    assert grows(lambda count: lambda: from_onnx(count)) < 2.4


@pytest.mark.parametrize("name", BUILDERS)
def test_deeper_than_the_recursion_limit(name: str) -> None:
    count = 2 * sys.getrecursionlimit()
    network = BUILDERS[name](count)
    assert max(rf.receptive_field(network).size) > (count // 2 if name not in SIDEWAYS else 2)
    assert max(map(len, network.nodes)) < 200
    assert pickle.loads(pickle.dumps(network)) == network
    assert network == BUILDERS[name](count)
    assert rf.erf(network, input_size=16).shape == (16 if name not in SIDEWAYS else 3,)


def test_blocks_that_hold_another_one_twice() -> None:
    """They are counted, and refused before any layer is made."""
    held: list[Network] = [rf.Residual(CONV, CONV)]

    def double() -> None:
        for _ in range(64):
            held.append(rf.Sequential(held[-1], held[-1]))

    def refused() -> None:
        with pytest.raises(InputError, match="more than 1250000 layers; repeat less"):
            double()

    assert calls(refused) < 10_000
    assert len(held[-1]) == 3 * 2**18
    assert "nodes" not in vars(held[-1])
    with pytest.raises(InputError, match="more than 1250000 layers"):
        rf.Parallel(*[held[-1]] * 2)
    nothing = rf.Sequential()
    for _ in range(64):
        nothing = rf.Sequential(nothing, nothing)
    assert list(nothing.nodes) == ["input"]


def test_names_that_are_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is a text of its own for each layer below it."""
    monkeypatch.setattr("fastrf.network.MOST_LETTERS", 100_000)
    fits = rf.Sequential(*[rf.Sequential(CONV, CONV)] * 500, name="x" * 30)
    assert len(rf.Sequential(fits, fits).nodes) == 2001
    block = rf.Sequential(*[rf.Sequential(CONV, CONV)] * 500, name="x" * 60)
    with pytest.raises(InputError, match="layers take more than 100000 characters; give"):
        _ = rf.Sequential(block, block).nodes


def test_ways_from_one_map_that_never_meet() -> None:
    """Many layers read the input, and no two of their ways lead to the same map."""

    def work(count: int) -> Callable[[], Any]:
        graph = lower(NESTED["residual"](count), 32)
        return lambda: covariance.needed(graph, "add1", "input")

    assert grows(work) < 2.4


def test_onnx_deeper_than_the_recursion_limit() -> None:
    pytest.importorskip("onnx")
    assert len(from_onnx(2 * sys.getrecursionlimit())) == 2 * sys.getrecursionlimit()
