"""Networks as files: exact round trips, the spelling of values, and one-line errors."""

from __future__ import annotations

import json
import tomllib
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrf import netfile
from fastrf.errors import InputError, NetworkFileError
from fastrf.layers import (
    LAYERS,
    Activation,
    AdaptivePool,
    Add,
    Attention,
    AvgPool,
    ChannelShuffle,
    ChannelSlice,
    Concat,
    Conv,
    ConvTranspose,
    Crop,
    Dropout,
    Filter,
    FullyConnected,
    GlobalPool,
    Identity,
    Input,
    MaxPool,
    Multiply,
    Norm,
    Pad,
    PixelShuffle,
    PixelUnshuffle,
    Scale,
    SqueezeExcite,
    Upsample,
)
from fastrf.netfile import from_dict, load, save, to_dict
from fastrf.network import Network, Parallel, Residual, Sequential

BUILT = {
    "stem": Sequential(Conv(7, stride=2, padding=3), MaxPool(3, 2, padding=1), name="stem"),
    "named": Sequential(
        ("stem", Conv(3)),
        ("last", Activation("gelu", gain=0.1)), GlobalPool("max"),
    ),
    "channels": Sequential(Input(6), ChannelSlice(1, step=2), ChannelShuffle(3), Conv(1, groups=3)),
    "empty": Sequential(),
    "line": Sequential(Conv(3, padding=((0, 2),)), Crop(((1, 0),)), Norm("group"), ndim=1),
    "volume": Sequential(Conv((3, 3, 3)), AvgPool((1, 2, 2), count_include_pad=False)),
    "volume of equals": Sequential(Conv((3, 3, 3), padding=((1, 1),) * 3)),
    "named padding": Sequential(
        Conv(3, padding="same"), MaxPool(3, 2, padding=("same_upper", "same_lower"))
    ),
    "pairs": Sequential(Conv((3, 5), padding=((0, 1), (2, 3))), Pad((1, 2), "reflect"), Identity()),
    "equal pairs": Sequential(Conv(3, padding=((0, 1), (0, 1)))),
    "taps": Sequential(
        Conv(3, taps=np.array([[0.1, 0.2, 0.1], [0.2, 1 / 3, 0.2], [0.1, 0.2, 0.1]])),
        ConvTranspose(2, 2, taps=((1, 2), (3, 4)), output_padding=1, gain=4.0),
    ),
    "fractions": Sequential(
        Upsample(Fraction(3, 2)), Upsample((2, Fraction(7, 3)), "linear"), Upsample(0.3)
    ),
    "filters": Sequential(
        Filter(3, 2, padding=1, padding_mode="reflect"), Filter(2, weights=((1, -1), (1, 0.5))),
        Filter(1, weights=np.array([[0.5]])), Scale(-1.0), Upsample(2, "cubic"),
    ),
    "resized": Sequential(Upsample(size=(7, 7), mode="linear", coordinates="align_corners")),
    "numpy scalars": Sequential(Conv(np.int64(3), gain=float(np.float32(0.1)))),
    "rest": Sequential(
        SqueezeExcite(), Attention(), Dropout(0.1), PixelUnshuffle(2), PixelShuffle((2, 2)),
        AdaptivePool((2, 3), "max"), FullyConnected(10, map_size=7),
    ),
    "residual": Residual(Conv(3, padding=1), Activation(), shortcut=Conv(1)),
    "parallel": Parallel(Conv(1), [Conv(3, padding=1), Norm()], None, merge="concat"),
    "graph": Network(
        {
            "a": (Conv(3, padding=1), "input"),
            "b": (Conv(5, padding=2, groups="depthwise"), "input"),
            "sum": (Add(), "a", "b"),
            "product": (Multiply(), "a", "sum"),
            "both": (Concat(), "sum", "product"),
        },
        ["sum", "both"],
        name='quoted "name" \\ ü\n\t\x7f\x01',
        endpoints={"early": "a", "with space": "sum", "ü": "b"},
    ),
    "two inputs": Network(
        {"left": (Input(3),), "right": (Input(),), "sum": (Add(), "left", "right")}, ndim=2
    ),
}  # fmt: skip


def same(one: Network, other: Network) -> bool:
    """Equal in meaning, and in the names, order and outputs that equality leaves out."""
    assert list(one.nodes) == list(other.nodes)
    assert [n.inputs for n in one.nodes.values()] == [n.inputs for n in other.nodes.values()]
    assert one.outputs == other.outputs
    assert one.endpoints == other.endpoints
    assert one.name == other.name
    assert one.bound.ndim == other.bound.ndim
    return one == other


@pytest.mark.parametrize("suffix", [".toml", ".json"])
@pytest.mark.parametrize("network", BUILT.values(), ids=BUILT)
def test_file_reads_back_the_same_network(tmp_path, network, suffix):
    path = tmp_path / f"net{suffix}"
    save(network, path)
    assert same(load(path), network)
    text = path.read_bytes()
    save(load(path), path)
    assert path.read_bytes() == text


def test_cases_cover_every_layer():
    used = {type(n.layer).__name__ for net in BUILT.values() for n in net.nodes.values()}
    assert used == set(LAYERS)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.data())
def test_random_graphs_keep_names_and_order(data):
    names = ["input"]
    nodes = {}
    for i in range(data.draw(st.integers(1, 12))):
        reads = data.draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))
        nodes[f"n{i}"] = (Add(), *reads)
        names.append(f"n{i}")
    order = data.draw(st.permutations(list(nodes)))
    network = Network({name: nodes[name] for name in order})
    assert same(from_dict(to_dict(network)), network)


@given(
    st.floats(min_value=5e-324, max_value=1.7976931348623157e308),
    st.text(st.characters(codec="utf-8")),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_floats_and_strings_are_exact(gain, text):
    network = Sequential(Conv(3, gain=gain), Activation(text), name=text)
    for write, read in (
        (netfile._write_toml, tomllib.loads),
        (netfile._write_json, json.loads),
    ):
        again = from_dict(read(write(to_dict(network))))
        assert again.name == text
        assert again.nodes["conv1"].layer.gain == gain
        assert list(again.nodes.values())[-1].layer.function == text


def test_blocks_are_spelled_as_in_python():
    content = tomllib.loads(
        """
        layers = [
          {type="Conv", kernel=7, stride=2, padding=3, name="stem"},
          {type="MaxPool", kernel=3},
          {type="Residual", branch=[{type="Conv", kernel=3, padding=1}, {type="Norm"}], repeat=3},
          {type="Residual", branch=[{type="Conv", kernel=1}], shortcut={type="Conv", kernel=1},
           name="down"},
          {type="Parallel", branches=[[{type="Conv", kernel=1}], []], merge="concat"},
          {type="Sequential", layers=[{type="Conv", kernel=3}, {type="Activation"}], repeat=2},
          {type="Conv", kernel=1, repeat=2},
        ]
        """.replace("\n           name", " name")
    )
    expected = Sequential(
        ("stem", Conv(7, stride=2, padding=3)),
        MaxPool(3),
        *[Residual(Conv(3, padding=1), Norm())] * 3,
        Residual(Conv(1), shortcut=Conv(1), name="down"),
        Parallel(Conv(1), None, merge="concat"),
        *[Sequential(Conv(3), Activation())] * 2,
        Conv(1),
        Conv(1),
    )
    assert same(from_dict(content), expected)


def test_nodes_may_be_tables_of_their_own():
    content = tomllib.loads(
        """
        outputs = "sum"
        [[nodes]]
        name = "conv"
        type = "Conv"
        inputs = "input"
        kernel = 3
        padding = 1
        [[nodes]]
        name = "sum"
        type = "Add"
        inputs = ["conv", "input"]
        """
    )
    expected = Network({"conv": (Conv(3, padding=1), "input"), "sum": (Add(), "conv", "input")})
    assert same(from_dict(content), expected)


def test_defaults_are_left_out_and_equal_axes_written_once():
    network = Sequential(
        Conv((3, 3), padding=((1, 1), (1, 1)), stride=(1, 2)),
        Conv((3, 3), padding=((0, 1), (0, 1))),
    )
    assert to_dict(network) == {
        "layers": [
            {"type": "Conv", "kernel": 3, "stride": [1, 2], "padding": 1},
            {"type": "Conv", "kernel": 3, "padding": [[0, 1], [0, 1]]},
        ]
    }
    assert to_dict(Sequential(Conv((3, 3, 3))))["ndim"] == 3
    assert to_dict(Sequential(Upsample(Fraction(3, 2))))["layers"][0]["scale"] == "3/2"


def test_a_list_that_means_two_axes_is_not_read_as_a_pair():
    assert from_dict({"layers": [{"type": "Conv", "kernel": 5, "padding": [0, 1]}]}) == Sequential(
        Conv(5, padding=((0, 0), (1, 1)))
    )


CONV = {"type": "Conv", "kernel": 3}

REFUSED = {
    "not a table": ([1], ["must be a table"]),
    "nothing": ({}, ["neither", "layers", "nodes"]),
    "both": ({"layers": [], "nodes": []}, ["both"]),
    "typo at the top": ({"layer": [CONV]}, ["'layer'", "did you mean 'layers'"]),
    "layers no list": ({"layers": CONV}, ["layers", "must be a list"]),
    "layer no table": ({"layers": [3]}, ["layers[0]", "3 must be a table"]),
    "no type": ({"layers": [{"kernel": 3}]}, ["layers[0]", "type is missing"]),
    "unknown type": ({"layers": [CONV, {"type": "Cov"}]}, ["layers[1]", "'Cov'", "mean 'Conv'"]),
    "type no string": ({"layers": [{"type": ["Conv"]}]}, ["layers[0]", "['Conv']"]),
    "typo": ({"layers": [CONV | {"strid": 2}]}, ["layers[0]", "'strid'", "mean 'stride'"]),
    "missing": ({"layers": [{"type": "MaxPool"}]}, ["layers[0]", "needs kernel", "add kernel"]),
    "kernel a string": (
        {"layers": [{"type": "Conv", "kernel": "3"}]},
        ["layers[0]", "'3'", "whole"],
    ),
    "kernel a float": ({"layers": [{"type": "Conv", "kernel": 3.0}]}, ["3.0", "whole"]),
    "kernel a table": ({"layers": [{"type": "Conv", "kernel": {}}]}, ["layers[0]", "{}", "whole"]),
    "kernel of 0": ({"layers": [{"type": "Conv", "kernel": 0}]}, ["kernel=0", "at least 1"]),
    "flag": (
        {"layers": [{"type": "MaxPool", "kernel": 2, "ceil_mode": "no"}]},
        ["'no'", "true or"],
    ),
    "start": ({"layers": [{"type": "ChannelSlice", "start": 1.5}]}, ["start=1.5", "whole number"]),
    "function": ({"layers": [{"type": "Activation", "function": 1}]}, ["function=1", "a string"]),
    "ragged taps": ({"layers": [CONV | {"taps": [[1], [1, 2]]}]}, ["layers[0]", "taps"]),
    "axes": (
        {"ndim": 2, "layers": [CONV | {"stride": [1, 1, 2]}]},
        ["layers[0]", "3 values for 2"],
    ),
    "axes in conflict": (
        {"layers": [CONV | {"stride": [1, 2]}, CONV | {"stride": [1, 2, 1]}]},
        ["[2, 3]", "ndim"],
    ),
    "ndim": ({"ndim": 4, "layers": [CONV]}, ["ndim", "4", "1, 2 or 3"]),
    "ndim a flag": ({"ndim": True, "layers": [CONV]}, ["ndim", "True"]),
    "name": ({"name": 3, "layers": [CONV]}, ["name", "3 must be a string"]),
    "layer name": ({"layers": [CONV | {"name": 3}]}, ["layers[0]", "name=3"]),
    "same name twice": (
        {"layers": [CONV | {"name": "a"}, CONV | {"name": "a"}]},
        ["'a'", "names must differ"],
    ),
    "name of many": ({"layers": [CONV | {"name": "a", "repeat": 2}]}, ["'a'", "2 nodes"]),
    "repeat": ({"layers": [CONV | {"repeat": 0}]}, ["layers[0]", "repeat=0", "at least 1"]),
    "repeat a flag": ({"layers": [CONV | {"repeat": True}]}, ["repeat=True"]),
    "absurd repeat": ({"layers": [CONV | {"repeat": 10**9}]}, ["layers[0]", "1000000"]),
    "absurd nested repeat": (
        {"layers": [{"type": "Sequential", "layers": [CONV | {"repeat": 1001}], "repeat": 1000}]},
        ["layers[0].layers[0]", "1000000"],
    ),
    "absurd sum": (
        {"layers": [CONV | {"repeat": 600_000}, CONV | {"repeat": 600_000}]},
        ["layers[1]", "1000000"],
    ),
    "residual": ({"layers": [{"type": "Residual"}]}, ["layers[0]", "Residual needs branch"]),
    "typo in a block": (
        {"layers": [{"type": "Residual", "branch": [], "shortcuts": []}]},
        ["'shortcuts'", "mean 'shortcut'"],
    ),
    "inside a block": (
        {"layers": [{"type": "Residual", "branch": [CONV, {"type": "Conv"}]}]},
        ["layers[0].branch[1]", "needs kernel"],
    ),
    "inside a shortcut": (
        {"layers": [{"type": "Residual", "branch": [], "shortcut": {"type": "Con"}}]},
        ["layers[0].shortcut[0]", "'Con'"],
    ),
    "inside a branch": (
        {"layers": [{"type": "Parallel", "branches": [[CONV], [{"type": "Conv"}]]}]},
        ["layers[0].branches[1][0]", "needs kernel"],
    ),
    "no branches": ({"layers": [{"type": "Parallel", "branches": []}]}, ["at least one branch"]),
    "merge": (
        {"layers": [{"type": "Parallel", "branches": [[CONV]], "merge": "sum"}]},
        ["layers[0]", "'sum'", "add"],
    ),
    "merge a list": (
        {"layers": [{"type": "Parallel", "branches": [[CONV]], "merge": []}]},
        ["layers[0]", "merge=[]", "a string"],
    ),
    "input in the middle": ({"layers": [CONV, {"type": "Input"}]}, ["reads none", "put it first"]),
    "output": ({"layers": [CONV], "outputs": ["conv"]}, ["'conv'", "conv1"]),
    "outputs a number": ({"layers": [CONV], "outputs": 1}, ["outputs", "1 must be"]),
    "endpoints": ({"layers": [CONV], "endpoints": {"a": "b"}}, ["'b'"]),
    "endpoint a number": ({"layers": [CONV], "endpoints": {"a": 1}}, ["endpoints.a", "1 must"]),
    "node without name": ({"nodes": [CONV]}, ["nodes[0]", "name=None"]),
    "two nodes": (
        {"nodes": [CONV | {"name": "a", "inputs": ["input"]}] * 2},
        ["nodes[1]", "'a'", "nodes[0]"],
    ),
    "block as a node": ({"nodes": [{"name": "a", "type": "Residual"}]}, ["nodes[0]", "'Residual'"]),
    "unknown source": (
        {"nodes": [CONV | {"name": "a", "inputs": ["inptu"]}]},
        ["a reads 'inptu'"],
    ),
    "cycle": ({"nodes": [CONV | {"name": "a", "inputs": ["a"]}]}, ["cycle", "a → a"]),
    "number of inputs": ({"nodes": [CONV | {"name": "a"}]}, ["reads 1 map", "got 0"]),
    "inputs": ({"nodes": [CONV | {"name": "a", "inputs": 3}]}, ["nodes[0] ('a')", "inputs", "3"]),
    "no nodes": ({"nodes": []}, ["at least one node"]),
    "long value": ({"layers": "x" * 10_000}, ["…", "must be a list"]),
}  # fmt: skip


def test_nodes_spelled_alike_are_read_once_and_no_others():
    def node(name, **values):
        return {"name": name, "type": "Conv", "inputs": ["input"], "kernel": 3, **values}

    def taps(last):  # longer than what NumPy's text of an array shows
        return np.r_[np.ones(2000), last, np.ones(2000)]

    same = netfile.from_dict({"nodes": [node("a", stride=1), node("b", stride=1)]}).nodes
    assert same["a"].layer is same["b"].layer
    with pytest.raises(NetworkFileError, match=r"nodes\[1\] \('b'\): Conv: stride=True"):
        netfile.from_dict({"nodes": [node("a", stride=1), node("b", stride=True)]})
    with pytest.raises(NetworkFileError, match=r"nodes\[1\] \('b'\): Conv: stride=1\.0"):
        netfile.from_dict({"nodes": [node("a", stride=1), node("b", stride=1.0)]})
    listed = [node(n, kernel=4001, taps=taps(v)) for n, v in (("a", 5.0), ("b", 6.0))]
    found = netfile.from_dict({"ndim": 1, "nodes": listed}).nodes
    assert [found[n].layer.taps[2000] for n in "ab"] == [5.0, 6.0]


@pytest.mark.parametrize(("content", "words"), REFUSED.values(), ids=REFUSED)
def test_refused_content_says_where_what_and_why(content, words):
    with pytest.raises(NetworkFileError) as caught:
        from_dict(content, source="net.toml")
    message = str(caught.value)
    assert message.startswith("net.toml: ")
    assert "\n" not in message
    assert len(message) <= 620
    for word in words:
        assert word in message


FILES = {
    "toml syntax": ("a.toml", b'layers = [\n {type="Conv" kernel=3}]', ["line 2", "TOML"]),
    "toml twice": ("a.toml", b"ndim=1\nndim=2\n", ["line 2"]),
    "json syntax": ("a.json", b'{"layers": [\n 1,, 2]}', ["line 2 column 4", "JSON"]),
    "json twice": ("a.json", b'{"ndim": 1, "ndim": 2}', ["'ndim'", "twice"]),
    "json NaN": ("a.json", b'{"layers": [{"type":"Conv","kernel":3,"gain":NaN}]}', ["NaN"]),
    "json long integer": ("a.json", b'{"ndim": ' + b"1" * 5000 + b"}", ["JSON"]),
    "toml infinity": (
        "a.toml", b'layers=[{type="Conv",kernel=3,gain=inf}]',
        ["gain=inf", "finite"],
    ),
    "toml date": ("a.toml", b'layers=[{type="Conv",kernel=2026-01-01}]', ["date", "whole number"]),
    "not UTF-8": ("a.toml", b"\xff\xfe", ["UTF-8", "byte 0"]),
    "empty": ("a.json", b"", ["line 1 column 1"]),
    "list": ("a.json", b"[]", ["must be a table"]),
    "deep lists": ("a.json", b'{"layers":' + b"[" * 70 + b"]" * 70 + b"}", ["deeper than 64"]),
    "very deep json": ("a.json", b"[" * 100_000, ["deeper than 64"]),
    "very deep toml": ("a.toml", b"a=" + b"[" * 100_000, ["deeper than 64"]),
    "suffix": ("a.yaml", b"", ["'.yaml'", ".toml"]),
    "missing": ("a.toml", None, ["No such file", "check the path"]),
}  # fmt: skip


@pytest.mark.parametrize(("name", "data", "words"), FILES.values(), ids=FILES)
def test_unreadable_files_say_why(tmp_path, name, data, words):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(NetworkFileError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for word in words:
        assert word in message


def test_large_files_and_folders_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(netfile, "MAX_BYTES", 10)
    (tmp_path / "a.toml").write_text("# 0123456789")
    with pytest.raises(NetworkFileError, match="larger than the 10 bytes"):
        load(tmp_path / "a.toml")
    (tmp_path / "b.toml").mkdir()
    with pytest.raises(NetworkFileError, match="no regular file"):
        load(tmp_path / "b.toml")


def test_deep_blocks_within_the_limit_are_read():
    block: dict[str, object] = dict(CONV)
    for _ in range(30):
        block = {"type": "Sequential", "layers": [block]}
    assert from_dict({"layers": [block]}) == Sequential(Conv(3))
    block = {"type": "Sequential", "layers": [block, block]}
    with pytest.raises(NetworkFileError, match="deeper than 64"):
        from_dict({"layers": [{"type": "Sequential", "layers": [block]}]})


def test_writing_refuses_what_cannot_be_read_back(tmp_path):
    network = Sequential(Conv(3))
    with pytest.raises(NetworkFileError, match=r"\.toml or \.json"):
        save(network, tmp_path / "net.onnx")
    with pytest.raises(NetworkFileError, match="cannot be written"):
        save(network, tmp_path / "no" / "net.toml")
    with pytest.raises(InputError, match="kernel=0"):
        save(Sequential(Conv(0)), tmp_path / "net.toml")
    assert list(tmp_path.iterdir()) == []
