"""Networks: their graphs, names, axes, equality and what they refuse."""

from __future__ import annotations

import copy
import os
import pickle
import random
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrf.errors import InputError
from fastrf.layers import (
    Activation,
    Add,
    AvgPool,
    Concat,
    Conv,
    ConvTranspose,
    Dropout,
    Identity,
    Input,
    Layer,
    MaxPool,
    Multiply,
    Norm,
    Upsample,
)
from fastrf.network import Builder, Network, Node, Parallel, Residual, Sequential, as_network

C = Conv(3, padding=1)


# --- graphs ----------------------------------------------------------------------------------


def test_order_is_the_given_one_where_it_can_be() -> None:
    given_order = {
        "a": (C, "input"),
        "b": (C, "input"),
        "a2": (C, "a"),
        "b2": (C, "b"),
        "sum": (Add(), "b2", "a2"),
    }
    assert list(Network(given_order).nodes) == ["input", *given_order]
    swapped = dict(reversed(given_order.items()))
    assert list(Network(swapped).nodes) == ["input", "b", "b2", "a", "a2", "sum"]


def test_every_order_puts_sources_first() -> None:
    rng = random.Random(3)
    for _ in range(30):
        nodes: dict[str, Any] = {}
        for i in range(30):
            reads = [f"n{rng.randrange(i)}" for _ in range(rng.randint(1, 3))] if i else ["input"]
            nodes[f"n{i}"] = (Add(), *reads)
        items = list(nodes.items())
        rng.shuffle(items)
        seen: set[str] = set()
        for node in Network(dict(items)).nodes.values():
            assert seen.issuperset(node.inputs)
            seen.add(node.name)
        assert len(seen) == 31


def test_implicit_input_and_outputs() -> None:
    net = Network({"a": (C, "input"), "b": (C, "a"), "c": (C, "a")})
    assert net.inputs == ("input",)
    assert net.outputs == ("b", "c")
    assert len(net) == 3
    assert Network({"a": (C, "input")}, outputs="a").outputs == ("a",)
    named = Network({"x": (Input(3),), "y": Input(), "z": (Concat(), "x", "y")})
    assert named.inputs == ("x", "y")
    assert named.outputs == ("z",)
    assert Network([Node("input", Input()), Node("c", C, ("input",))]).outputs == ("c",)


def test_end_points() -> None:
    net = Network({"a": (C, "input"), "b": (C, "a")}, endpoints={"early": "a", "b": "b"})
    assert net.resolve("early") == "a"
    assert net.resolve("b") == "b"
    assert net.bound.endpoints == net.endpoints
    with pytest.raises(InputError, match=r"no node or end point is called 'erly'; .*'early'"):
        net.resolve("erly")
    with pytest.raises(InputError, match=r"called 'zzzz'; there are 'input', 'a', 'b'"):
        net.resolve("zzzz")
    with pytest.raises(InputError, match="end point 'a' would hide the node"):
        Network({"a": (C, "input"), "b": (C, "a")}, endpoints={"a": "b"})
    with pytest.raises(InputError, match="output 'c' is not a node"):
        Network({"a": (C, "input")}, endpoints={"x": "c"})


REFUSED: list[tuple[Callable[[], Any], str]] = [
    (lambda: Network({"a": (C, "b"), "b": (C, "c"), "c": (C, "a")}), r"cycle: .* → .* → .* → "),
    (lambda: Network({"a": (C, "a")}), "cycle: a → a"),
    (
        lambda: Network({"x": (Add(), "input", "z"), "y": (C, "x"), "z": (C, "y"), "w": (C, "z")}),
        "cycle: (x → y → z → x|y → z → x → y|z → x → y → z);",
    ),
    (lambda: Network({"conv1": (C, "input"), "b": (C, "conv2")}), "did you mean 'conv1'"),
    (
        lambda: Network({"a": (C, "input"), "b": (C, "a"), "c": (C, 3)}),
        r"c reads \(3,\); give the names of",
    ),
    (lambda: Network({"a": (C,)}), r"a: Conv reads 1 map\(s\), got 0; name"),
    (lambda: Network({"a": (C, "input", "input")}), r"reads 1 map\(s\), got 2"),
    (lambda: Network({"a": (Add(),)}), r"Add reads at least 1 map\(s\), got 0"),
    (lambda: Network({"a": (Input(), "input")}), "a: Input is a map of its own, and reads none"),
    (lambda: Network([Node("a", Input()), Node("a", Input())]), "two nodes are called 'a'"),
    (lambda: Network({"a": (C, "input")}, outputs=["b"]), "output 'b' is not a node"),
    (lambda: Network({"a": (C, "input")}, outputs=[]), r"outputs=\(\) names no node"),
    (lambda: Network({"a": (C, "input")}, outputs=["a", "a"]), "names a node twice"),
    (lambda: Network({}), "at least one node"),
    (lambda: Network({"a": "conv"}), "a: 'conv' is not"),
    (lambda: Network({"a": ()}), r"a: \(\) is not \(layer"),
    (lambda: Network({"a": ("Conv", "input")}), "a: 'Conv' is not a layer"),
    (lambda: Network({"a": (Conv, "input")}), "is not a layer"),
    (lambda: Network({"": (C, "input")}), "a node is called ''"),
    (lambda: Network({3: (C, "input")}), "a node is called 3"),  # type: ignore[dict-item]
    (lambda: Network([C]), "is not a Node"),  # type: ignore[list-item]
    *(
        (lambda n=n: Network({"a": (C, "input")}, ndim=n), "ndim=.* has 1, 2 or 3 axes")  # type: ignore[misc]
        for n in (0, 4, True, 2.0, "2")
    ),
    (lambda: Sequential(C, "conv"), "'conv' is not a layer"),
    (lambda: Sequential(Conv), "is not a layer"),
    (lambda: Sequential(("a", C), ("a", C)), "two nodes are called 'a'"),
    (lambda: Sequential(C, Input()), "and reads none; put it first"),
    (lambda: Sequential(Network({"a": (C, "input"), "b": (C, "input")})), "needs one output"),
    (Residual, "needs a branch"),
    (Parallel, "at least one branch"),
    (lambda: Parallel(C, C, merge="sum"), "merge='sum' is unknown; choose one of add, concat"),  # type: ignore[arg-type]
    (lambda: as_network(3), "int is not a network"),
    (lambda: as_network("resnet50"), "fastrf.zoo"),
    (lambda: Sequential(Residual(C, ndim=1), Residual(C, ndim=3)), "ndim=1 and ndim=3"),
    (lambda: Sequential(Residual(C, ndim=1), ndim=2), "ndim=2, but a block says ndim=1"),
]


@pytest.mark.parametrize(("build", "message"), REFUSED)
def test_refused_networks(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        build()
    assert "\n" not in str(refusal.value)


def test_a_refused_value_names_its_node() -> None:
    with pytest.raises(InputError, match=r"^stem: Conv: kernel=0 must be"):
        _ = Sequential(("stem", Conv(0))).bound


# --- axes ------------------------------------------------------------------------------------


def test_number_of_axes() -> None:
    assert Sequential(C).bound.ndim == 2
    assert Sequential(C, MaxPool((2,))).bound.ndim == 1
    assert Sequential(C, ndim=3).bound.ndim == 3
    assert Sequential(Residual(Conv((3, 3, 3), padding=1))).bound.ndim == 3
    assert Sequential(Residual(C, ndim=1), C).bound.ndim == 1
    assert Sequential(C, Parallel(Residual(C, ndim=3), None)).bound.ndim == 3
    conflicting = Sequential(Conv((3,)), Conv((3, 3)))
    with pytest.raises(InputError, match=r"different numbers of axes, \[1, 2\]; give ndim="):
        _ = conflicting.bound
    assert repr(conflicting) == "Network(2 layers, conflicting axes, output conv2)"
    with pytest.raises(InputError, match=r"conv1: Conv: kernel=.* has 2 values for 3 axes"):
        _ = Sequential(Conv((3, 3)), ndim=3).bound


def test_bound_networks_are_their_own() -> None:
    net = Sequential(C, MaxPool(2), name="n")
    assert net.bound.bound is net.bound
    assert net.bound.name == "n"
    assert repr(net) == "Network('n', 2 layers, 2-D, output maxpool1)"
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), copy.copy(net.bound)):
        assert twin == net
    assert net != "n"


def test_equal_layers_are_bound_as_one() -> None:
    class Kept(Identity):
        __hash__ = None  # type: ignore[assignment]

    layers = (Conv(3), Conv((3, 3)), Conv(3, gain=2.0), Kept(), Kept())
    _, first, spelled, other, *kept = Sequential(*layers).bound.nodes.values()
    assert first.layer is spelled.layer is not other.layer
    assert kept[0].layer is not kept[1].layer


# --- building --------------------------------------------------------------------------------


def test_automatic_names() -> None:
    net = Sequential(C, Activation(), Activation("gelu"), C, MaxPool(2))
    assert list(net.nodes) == ["input", "conv1", "relu1", "gelu1", "conv2", "maxpool1"]
    net = Sequential(C, Residual(C, C), Residual(C, shortcut=Conv(1), name="down"))
    assert list(net.nodes) == [
        *("input", "conv1", "residual1.conv1", "residual1.conv2", "residual1.add1"),
        *("down1.shortcut.conv1", "down1.conv1", "down1.add1"),
    ]
    net = Sequential(Parallel(C, [C, C], None, merge="concat"))
    assert list(net.nodes) == [
        *("input", "parallel1.branch1.conv1", "parallel1.branch2.conv1"),
        *("parallel1.branch2.conv2", "parallel1.concat1"),
    ]
    assert net.nodes["parallel1.concat1"].inputs[-1] == "input"


def test_unnamed_sequences_join_their_surroundings() -> None:
    """Automatic names count on, also those of blocks in them; given names stay."""
    inner = Sequential(C, Residual(C), ("conv_last", C))
    net = Sequential(C, Residual(C), inner, Residual(C), [C, [inner.nodes["conv1"].layer]])
    assert list(net.nodes) == [
        *("input", "conv1", "residual1.conv1", "residual1.add1"),
        *("conv2", "residual2.conv1", "residual2.add1", "conv_last"),
        *("residual3.conv1", "residual3.add1", "conv3", "conv4"),
    ]
    net = Sequential(Sequential(Residual(C)), Residual(C))
    assert list(net.nodes)[1::2] == ["residual1.conv1", "residual2.conv1"]
    with pytest.raises(InputError, match="two nodes are called 'conv_last'"):
        Sequential(inner, inner)
    named = Sequential(C, ("mid", C), name="stage")
    assert list(Sequential(named, named).nodes)[1:] == [
        *("stage1.conv1", "stage1.mid", "stage2.conv1", "stage2.mid")
    ]


def test_names_have_at_most_sixteen_scopes() -> None:
    """Blocks that nest deeper are numbered side by side in the last scope but one."""
    block = Sequential(("mid", C), name="b")
    for _ in range(19):
        block = Sequential(block, ("mid", C), name="b")
    net = Sequential(block)
    outer = [f"{'b1.' * depth}mid" for depth in range(1, 17)]
    deep = [f"{'b1.' * 15}b{number}.mid" for number in (2, 3, 4, 5)]
    assert list(net.nodes) == ["input", *deep[::-1], *outer[::-1]]
    wide = Parallel(C, None)
    for _ in range(20):
        wide = Parallel(wide, None)
    assert max(name.count(".") for name in wide.nodes) == 16
    assert len(wide.nodes) == 23


def test_errors_in_large_blocks_are_found_when_the_nodes_are_made() -> None:
    large = Sequential(("a", C))
    for _ in range(100):
        large = Sequential(large, C)
    named = Sequential(large, large)
    assert len(named) == 202
    with pytest.raises(InputError, match="two nodes are called 'a'"):
        _ = named.nodes


def test_builder_names_and_prefixes() -> None:
    b = Builder()
    x = b.input(channels=3)
    assert b.add(C, x, name="stem") == "stem"
    assert b.add([C, ("mid", C), C], "stem", name="end", prefix="s.") == "s.end"
    assert b.add(Residual(C), "s.end", name="block", prefix="t.") == "t.block"
    net = b.build("t.block")
    assert list(net.nodes) == [
        *("input", "stem", "s.conv1", "s.mid", "s.end", "t.residual1.conv1", "t.block")
    ]
    assert net.nodes["input"].layer == Input(3)


def test_automatic_names_keep_out_of_scopes_that_are_used() -> None:
    b = Builder()
    b.add(C, b.input(), name="a1.b1.c1.end")
    assert b.scope("", "a") == "a2."
    assert b.scope("a1.", "b") == "a1.b2."
    assert b.scope("a1.b1.", "c") == "a1.b1.c2."
    assert b.scope("a1.b1.c1.", "end") == "a1.b1.c1.end1."


def test_blocks_with_several_inputs() -> None:
    merge = Network({"a": Input(), "b": Input(), "s": (Concat(), "a", "b")}, name="join")
    b = Builder()
    x, y = b.input("x"), b.input("y")
    net = b.build(b.add(merge, y, b.add(C, x)))
    assert net.nodes["join1.s"].inputs == ("y", "conv1")
    with pytest.raises(InputError, match=r"one output and 1 input\(s\), got 1 and 2"):
        Sequential(merge)


def test_sequences_nested_deeper_than_the_stack() -> None:
    nested: Any = C
    for _ in range(5000):
        nested = [nested]
    assert list(Sequential(nested, nested).nodes) == ["input", "conv1", "conv2"]
    assert len(Sequential()) == 0
    assert Sequential([], C, []) == Sequential(C)
    assert Sequential(Input(3), C).nodes["input"].layer == Input(3)


@pytest.mark.parametrize(
    ("net", "same"),
    [(Sequential(C), C), (Sequential(C, C), [C, C]), (Sequential(("a", C)), [("a", C)])],
)
def test_as_network(net: Network, same: Any) -> None:
    assert as_network(net) is net
    assert as_network(same) == net
    assert list(as_network(same).nodes) == list(net.nodes)


# --- equality --------------------------------------------------------------------------------

STEM = {"a": (Conv(3, padding=1), "input"), "b": (Conv(5, padding=2), "input")}
SHARED = {"y": (C, "input"), "sum": (Add(), "y", "y")}
INDEPENDENT = {"y": (C, "input"), "z": (C, "input"), "sum": (Add(), "y", "z")}
# Two equal branches, one of which is read once more: which of them does not matter.
TWINS = {"y": (C, "input"), "z": (C, "input"), "deep": (Conv(5), "z")}

EQUAL: list[tuple[Network, Network]] = [
    (Sequential(Conv(3)), Sequential(Conv((3, 3), 1, [1, 1], ((0, 0), 0)))),
    (Sequential(Conv(3)), Sequential(Conv(3, padding="valid"), ndim=2)),
    (Sequential(Conv(3, padding="same")), Sequential(Conv(3, padding=1))),
    (Sequential(Conv(3, gain=1)), Sequential(Conv(3, gain=1.0))),
    (Sequential(Upsample(1.5)), Sequential(Upsample("3/2"))),
    (Sequential(Upsample(Fraction(3, 2))), Sequential(Upsample(("3/2", 1.5)))),
    (Sequential(MaxPool(2)), Sequential(MaxPool(2, 2))),
    (Sequential(C, C), Sequential(Sequential(C), [C])),
    (Sequential(C, C), Sequential(("first", C), ("second", C), name="pair")),
    (Sequential(C, C), Sequential(C, Identity(), C, Identity())),
    (Sequential(Conv(3, taps=[[1] * 3] * 3)), Sequential(Conv(3))),
    (Sequential(Activation("relu")), Sequential(Activation("relu", gain=0.5))),
    (Sequential(Dropout(0)), Sequential(Dropout(0.0))),
    (
        Sequential(Residual(C, Norm())),
        Network({"c": (C, "x"), "n": (Norm(), "c"), "out": (Add(), "n", "x"), "x": Input()}),
    ),
    (Residual(C), Parallel(C, None)),
    (Parallel(C, Conv(5, padding=2)), Parallel(Conv(5, padding=2), C)),
    (Parallel(C, None, merge="multiply"), Parallel(None, C, merge="multiply")),
    (
        Network(STEM | {"s": (Add(), "a", "b")}),
        Network({"s": (Add(), "b", "a")} | dict(reversed(STEM.items()))),
    ),
    (
        Network({"x": Input(), "y": Input(), "p": (C, "x"), "s": (Add(), "p", "y")}),
        Network({"y": Input(), "x": Input(), "p": (C, "x"), "s": (Add(), "y", "p")}),
    ),
    (
        Network(TWINS | {"sum": (Add(), "y", "z")}, outputs=["sum", "deep"]),
        Network(TWINS | {"sum": (Add(), "z", "y")}, outputs=["sum", "deep"]),
    ),
    (
        Network(TWINS | {"sum": (Add(), "y", "z")}, outputs=["sum", "y"]),
        Network(TWINS | {"sum": (Add(), "y", "z")}, outputs=["sum", "z"]),
    ),
    # What no output depends on does not count.
    (Network(STEM, outputs="a"), Network({"a": STEM["a"]})),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_equal_networks(one: Network, other: Network) -> None:
    assert one.fingerprint == other.fingerprint
    assert one == other
    assert hash(one) == hash(other)
    assert len({one, other}) == 1
    assert one == one.bound


UNEQUAL: list[tuple[Network, Network]] = [
    (Sequential(C), Sequential(C, C)),
    (Sequential(C), Sequential(C, ndim=1)),
    (Sequential(Conv(3)), Sequential(Conv((3, 5)))),
    (Sequential(Conv((3, 5))), Sequential(Conv((5, 3)))),
    (Sequential(Conv(3, padding=((1, 0), 0))), Sequential(Conv(3, padding=((0, 1), 0)))),
    (Sequential(Conv(3, 2, padding=1)), Sequential(Conv(3, 2, padding="same_upper"))),
    (Sequential(Conv(3, gain=2)), Sequential(Conv(3))),
    (Sequential(Conv(3, channels=8)), Sequential(Conv(3))),
    (Sequential(Conv(3, channels=8, groups=2)), Sequential(Conv(3, channels=8))),
    (Sequential(Conv(2, taps=[[1, 2], [3, 4]])), Sequential(Conv(2))),
    (Sequential(Conv(3)), Sequential(ConvTranspose(3))),
    (Sequential(MaxPool(2)), Sequential(AvgPool(2))),
    (Sequential(MaxPool(3, 2)), Sequential(MaxPool(3, 2, ceil_mode=True))),
    (Sequential(Input(3), C), Sequential(Input(1), C)),
    (Sequential(Activation("relu")), Sequential(Activation("gelu", gain=0.5))),
    (Sequential(C, Activation()), Sequential(Activation(), C)),
    (Parallel(C, Conv(5), merge="concat"), Parallel(Conv(5), C, merge="concat")),
    (Parallel(C, C, merge="add"), Parallel(C, C, merge="multiply")),
    (Network(SHARED), Network(INDEPENDENT)),
    (
        Network(TWINS | {"sum": (Add(), "y", "z")}, outputs=["sum", "deep"]),
        Network(TWINS | {"sum": (Add(), "z", "z")}, outputs=["sum", "deep"]),
    ),
    # The same layers in the same order, with as many inputs each: only an edge differs.
    (
        Network({"a": (C, "input"), "b": (Conv(5), "a"), "out": (Concat(), "a", "b")}),
        Network({"a": (C, "input"), "b": (Conv(5), "a"), "out": (Concat(), "input", "b")}),
    ),
    (Network(STEM, outputs=["a", "b"]), Network(STEM, outputs=["b", "a"])),
    (Network(STEM, outputs=["a", "b"]), Network(STEM, outputs=["a"])),
    (
        Network({"x": Input(), "y": Input(), "s": (Concat(), "x", "y")}),
        Network({"x": Input(), "s": (Concat(), "x", "x")}),
    ),
]


@pytest.mark.parametrize(("one", "other"), UNEQUAL)
def test_unequal_networks(one: Network, other: Network) -> None:
    assert one.fingerprint != other.fingerprint
    assert one != other


def test_fingerprints_do_not_depend_on_the_process() -> None:
    program = (
        "from fastrf import Conv, Norm, Parallel, Residual, Sequential, Upsample\n"
        "b = Residual(Conv(3, padding=1, taps=[[1, 2, 1], [2, 4, 2], [1, 2, 1]]), Norm())\n"
        "print(Sequential(b, Upsample('3/2', 'linear'), Parallel(Conv(1), b)).fingerprint)"
    )
    block = Residual(Conv(3, padding=1, taps=[[1, 2, 1], [2, 4, 2], [1, 2, 1]]), Norm())
    net = Sequential(block, Upsample("3/2", "linear"), Parallel(Conv(1), block))
    for seed in ("1", "2"):
        run = subprocess.run(
            [sys.executable, "-c", program],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.strip() == net.fingerprint


LAYERS = st.sampled_from(
    [C, Conv(5, padding=2), Conv(1), Norm(), Activation(), MaxPool(3, 1, 1, 1)]
)


@st.composite
def graphs(draw: st.DrawFn) -> list[tuple[Layer, list[int]]]:
    """A graph as (layer, numbers of the nodes read); number 0 is the input."""
    nodes: list[tuple[Layer, list[int]]] = []
    for i in range(draw(st.integers(1, 9))):
        reads = st.integers(0, i)
        merge = draw(st.sampled_from([None, None, Add(), Multiply(), Concat()]))
        if merge is None:
            nodes.append((draw(LAYERS), [draw(reads)]))
        else:
            nodes.append((merge, draw(st.lists(reads, min_size=1, max_size=3))))
    return nodes


def spelled(nodes: list[tuple[Layer, list[int]]], rng: random.Random | None = None) -> Network:
    """The network of a graph; with `rng` under other names, in another order and another spelling,
    with identities between."""
    names = [f"n{i}" for i in range(len(nodes) + 1)]
    if rng is not None:
        rng.shuffle(names)
    items: list[tuple[str, Any]] = [(names[0], Input())]
    for i, (layer, reads) in enumerate(nodes, 1):
        sources = [names[r] for r in reads]
        if rng is not None:
            if isinstance(layer, Add):
                rng.shuffle(sources)
            if rng.random() < 0.3:
                items.append((f"same{i}", (Identity(), sources[0])))
                sources[0] = f"same{i}"
            if rng.random() < 0.5:
                layer = layer.bind(2)  # noqa: PLW2901
        items.append((names[i], (layer, *sources)))
    if rng is not None:
        rng.shuffle(items)
    read = {r for _, reads in nodes for r in reads}
    outputs = [names[i] for i in range(1, len(nodes) + 1) if i not in read]
    return Network(dict(items), outputs)


@settings(derandomize=True, max_examples=150, deadline=None)
@given(graphs(), st.integers(0, 2**16))
def test_another_spelling_is_equal(nodes: list[tuple[Layer, list[int]]], seed: int) -> None:
    assert spelled(nodes, random.Random(seed)).fingerprint == spelled(nodes).fingerprint


@settings(derandomize=True, max_examples=100, deadline=None)
@given(graphs(), st.data())
def test_another_layer_or_edge_is_not_equal(
    nodes: list[tuple[Layer, list[int]]], data: st.DataObject
) -> None:
    """Every node leads to an output, so a layer that occurs nowhere else changes the network."""
    at = data.draw(st.integers(0, len(nodes) - 1))
    changed = list(nodes)
    layer, reads = nodes[at]
    changed[at] = (Conv(7, padding=3), reads[:1]) if len(reads) == 1 else (layer, reads[1:])
    assert spelled(changed).fingerprint != spelled(nodes).fingerprint


# --- size ------------------------------------------------------------------------------------


def test_time_is_linear_and_depth_is_not_limited() -> None:
    """40,000 nodes take seconds even on a slow machine; anything quadratic would take minutes."""
    start = time.process_time()
    chain = Sequential(*[Conv(3, padding=1) for _ in range(20_000)])
    blocks = Sequential(*[Residual(C, C)] * 7_000)
    assert len(chain) == 20_000
    assert len(blocks) == 21_000
    assert chain.fingerprint != blocks.fingerprint
    ladder = Network(
        {f"n{i}": (Add(), f"n{i - 1}", f"n{i - 1}") if i else (C, "input") for i in range(10_000)}
    )
    assert len(ladder.fingerprint) == 64  # 2^10,000 paths
    cycle = {f"n{i}": (C, f"n{(i + 1) % 10_000}") for i in range(10_000)}
    with pytest.raises(InputError, match="cycle"):
        Network(cycle)
    assert time.process_time() - start < 20
