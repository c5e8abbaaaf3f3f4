"""What is fuzzed: a function of bytes for every door through which strangers' data come.

Each takes any bytes in bounded time and memory, and raises nothing but a `FastrfError`; where the
bytes are accepted, what they mean is used as users would. `seeds` makes the first inputs, of which
`tests/fuzz/corpus` keeps a copy, with what fuzzing has found since.
"""

from __future__ import annotations

import io
import json
import os
import re
import sqlite3
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import fastrf as rf
from fastrf import netfile, zoo
from fastrf.errors import FastrfError
from fastrf.network import Network
from fastrf.sweep.expressions import Expression
from fastrf.sweep.space import Space
from fastrf.sweep.store import Store

CORPUS = Path(__file__).parent / "corpus"

FEW = 64
"""Networks of more nodes are read and not used: their number is what other tests are about."""


@dataclass(frozen=True)
class Target:
    """One door: `run` gives it bytes, `seeds` makes bytes that it takes."""

    run: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


def _file(suffix: str) -> Path:
    """A file of this process's own, in memory where there is such a folder."""
    shared = "/dev/shm" if os.path.isdir("/dev/shm") else tempfile.gettempdir()
    return Path(shared) / f"fastrf-fuzz-{os.getpid()}{suffix}"


def _use(network: Network) -> None:
    if len(network) > FEW:
        return
    assert netfile.from_dict(netfile.to_dict(network)) == network
    try:
        field = rf.receptive_field(network, ignore_global=True)
        assert len(field.size) == network.bound.ndim
        rf.plan(network, ignore_global=True, memory_limit=1 << 24)
    except FastrfError:
        pass


def _network_file(suffix: str) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        path = _file(suffix)
        path.write_bytes(data)
        _use(rf.load(path))

    return run


_NETWORK = {
    "name": "n",
    "layers": [
        {"type": "Conv", "kernel": [3, 5], "padding": [[1, 2], 0], "taps": "corner"},
        {"type": "Residual", "branch": [{"type": "MaxPool", "kernel": 3, "stride": 1}]},
        {"type": "Parallel", "branches": [[], [{"type": "Upsample", "scale": "3/2"}]], "repeat": 2},
    ],
}
_GRAPH = {
    "ndim": 1,
    "outputs": ["b"],
    "endpoints": {"e": "a"},
    "nodes": [
        {"name": "a", "type": "ConvTranspose", "inputs": ["input"], "kernel": 4, "stride": 2},
        {"name": "b", "type": "Add", "inputs": ["a", "a"]},
    ],
}

_TOML = b"""name = "n"
layers = [
  {type = "Conv", kernel = 7, stride = 2, padding = "same_upper", gain = 0.5, groups = "depthwise"},
  {type = "Sequential", layers = [{type = "AvgPool", kernel = 3}], repeat = 3},
]
"""


def _jsons() -> list[bytes]:
    return [json.dumps(content).encode() for content in (_NETWORK, _GRAPH)]


def _onnx(data: bytes) -> None:
    _use(rf.from_onnx(data, unknown="global", weights="trained" if data[-1:] == b"\0" else None))


def _onnx_seeds() -> list[bytes]:
    from onnx import TensorProto, helper, numpy_helper

    def model(nodes: list[object], tensors: list[object]) -> bytes:
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 8, "w"))
        y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
        graph = helper.make_graph(nodes, "g", [x], [y], tensors)
        opset = [helper.make_opsetid("", 17)]
        found: bytes = helper.make_model(graph, opset_imports=opset).SerializeToString()
        return found

    def tensor(name: str, values: object, dtype: type) -> object:
        return numpy_helper.from_array(np.array(values, dtype), name)

    weights = tensor("w", np.ones((4, 3, 3, 3)), np.float32)
    conv = helper.make_node("Conv", ["x", "w"], ["c"], strides=[2, 2], pads=[1, 1, 1, 1])
    shapes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "i"], ["h"]),
        helper.make_node("Concat", ["k", "h", "m"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["r"]),
        helper.make_node("Slice", ["r", "k", "h"], ["y"]),
    ]
    numbers = [tensor(n, v, np.int64) for n, v in (("i", [2]), ("k", [1]), ("m", [-1]))]
    pool = helper.make_node("AveragePool", ["c"], ["y"], kernel_shape=[2, 2], auto_pad="SAME_UPPER")
    scales = tensor("z", [1, 1, 2, 1.5], np.float32)
    resize = helper.make_node("Resize", ["x", "", "z"], ["y"], mode="linear")
    return [model([conv, pool], [weights]), model(shapes, numbers), model([resize], [scales])]


def _npz(data: bytes) -> None:
    """A whole file, or the description within a sound one, which compression would hide."""
    path = _file(".npz")
    if data[:1] == b"P":
        path.write_bytes(data)
    else:
        meta = np.array(data.decode("utf-8", errors="replace"))
        with path.open("wb") as file:
            np.savez(file, meta=meta, image=np.full((3, 3), 1 / 9))
    found = rf.ERF.load(path, memory_limit=1 << 24)
    if len(found.network) <= FEW:
        found.to_dict()


def _npz_seeds() -> list[bytes]:
    path = _file(".npz")
    rf.erf(rf.Conv(3, padding=1), input_size=9).save(path)
    with np.load(path) as data:
        meta = str(data["meta"])
    whole = io.BytesIO()
    np.savez(whole, meta=np.array(meta), image=np.full((3, 3), 1 / 9))
    return [meta.encode(), whole.getvalue()]


_MEANINGS = {"a": 0.5, "b": (1, 2), "c": "x", "d": True, "i": 9}


def _expression(data: bytes) -> None:
    found = Expression(data.decode("utf-8", errors="replace"), "fuzz")
    names = {n: _MEANINGS.get(n, 3) for n in found.names}
    value = found(names)
    assert value is None or isinstance(value, int | float | str | tuple)


def _expression_seeds() -> list[bytes]:
    texts = (
        "2**i if i % 10 == 9 else kernel // 2",
        "max(1, floor(log2(depth))) + gaussian(kernel, 0.5)[i % kernel] * len(b)",
        "not (a < 1 <= d or c in [1, 2.5, 'x']) and round(sqrt(-a), 3) != binomial(5)[0] + b[1]",
    )
    return [text.encode() for text in texts]


def _zoo(data: bytes) -> None:
    text = data.decode("utf-8", errors="replace")
    if not re.search(r"\d\d|[eExX]\d|\*", text):  # networks of a hundred layers take their time
        _use(zoo.get(text))


def _zoo_seeds() -> list[bytes]:
    return [b"plain(3, kernel=(3, 5))", b"unet(2, 2)", b"wavenet(1)", b"tcn(3)", b"resnet18"]


def _space(data: bytes) -> None:
    path = _file("-space.toml")
    path.write_bytes(data)
    for number, point in enumerate(Space.load(path)):
        try:
            _use(point.network())
            assert isinstance(point.parameters, dict)
        except FastrfError:
            pass
        if number == 3:
            break


def _space_seeds() -> list[bytes]:
    plain = (
        b'name = "s"\nndim = 1\nwhere = ["kernel * dilation <= 9"]\nzip = [["kernel", "gain"]]\n'
        b"[parameters]\ndepth = {from = 1, to = 3}\nkernel = [3, 5]\ngain = [1, 0.5]\n"
        b'dilation = "2**i"\nstride = "2 if i == 1 else 1"\n'
    )
    template = (
        b'seed = 3\nsample = {count = 2, method = "latin", of = ["d"]}\n'
        b'layers = [{type = "Conv", kernel = "{k}", repeat = "{d}"}, {block = "b"}]\n'
        b'[blocks]\nb = [{type = "MaxPool", kernel = 2}]\n'
        b'[parameters]\nd = {from = 1, to = 4, count = 2, scale = "log", whole = true}\nk = 3\n'
        b'[options]\ninput_size = "{k * 9}"\n'
    )
    return [plain, template, b'network = "plain({d}, 3)"\n[parameters]\nd = [1, 2]\n']


def _store(data: bytes) -> None:
    path = _file(".db")
    path.write_bytes(data)
    with Store(path) as store:
        len(store)
        store.query()
        store.top(store.columns[0])
        for (key,) in store.rows("SELECT key FROM results LIMIT 2"):
            if isinstance(key, str):
                store.profiles(key)
                store.image(key)


def _store_seeds() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path, space = Path(folder) / "s.db", Path(folder) / "s.toml"
        space.write_text("ndim = 1\n[parameters]\ndepth = [1, 2]\nkernel = 3\n", encoding="utf-8")
        rf.sweep(space, path, workers=0, progress=False, profiles=True, images=True).close()
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA page_size = 512")
        connection.execute("VACUUM")
        connection.close()
        return [path.read_bytes()]


TARGETS = {
    "netfile-json": Target(_network_file(".json"), _jsons),
    "netfile-toml": Target(_network_file(".toml"), lambda: [_TOML]),
    "onnx": Target(_onnx, _onnx_seeds),
    "npz": Target(_npz, _npz_seeds),
    "expression": Target(_expression, _expression_seeds),
    "zoo": Target(_zoo, _zoo_seeds),
    "space": Target(_space, _space_seeds),
    "store": Target(_store, _store_seeds),
}


def check(name: str, data: bytes) -> None:
    """Gives a door bytes; whatever but a `FastrfError` comes out is a finding."""
    try:
        TARGETS[name].run(data)
    except FastrfError as error:
        text = str(error)
        assert text.isprintable()
        assert len(text) < 2100
