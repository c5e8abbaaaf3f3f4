"""Graphs of a million nodes: what reading, lowering and following them takes, by number of nodes.

    python -m bench.large_graphs [NODES ...]

Each row is a process of its own. "read" is a network from Python (a mapping), a JSON file or an
ONNX model; "lower" the planes on an image; "field" the receptive field; "plan" and "erf" that of a
unit on a 32-pixel line or image. Time per node has to stay what it is as graphs grow.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fastrf as rf
from bench.record import duration, table, write
from fastrf.lowering import lower
from fastrf.network import Network

COUNTS = (10_000, 100_000, 1_000_000)


def chain(count: int) -> Network:
    nodes: dict[str, Any] = {"n0": (rf.Conv(3, padding=1), "input")}
    layers = (rf.Conv(3, padding=1), rf.Activation("relu"), rf.Conv(1))
    for i in range(1, count):
        nodes[f"n{i}"] = (layers[i % 3], f"n{i - 1}")
    return Network(nodes, ndim=1)


def shortcuts(count: int) -> Network:
    """Blocks of a convolution and a sum: with every block there are twice as many ways."""
    nodes: dict[str, Any] = {}
    at = "input"
    for i in range(count // 2):
        nodes[f"c{i}"] = (rf.Conv(3, padding=1), at)
        nodes[f"a{i}"] = (rf.Add(), at, f"c{i}")
        at = f"a{i}"
    return Network(nodes, ndim=1)


def zoo(count: int) -> Network:
    return rf.zoo.plain(count, 3, ndim=1)


def from_json(count: int) -> Network:
    nodes = [
        {"name": f"n{i}", "type": "Conv", "kernel": 3, "padding": 1,
         "inputs": [f"n{i - 1}" if i else "input"]}
        for i in range(count)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "g.json"
        path.write_text(json.dumps({"ndim": 1, "nodes": nodes}), encoding="utf-8")
        return rf.load(path)


def from_onnx(count: int) -> Network:
    from onnx import TensorProto, helper

    names = ["x", *(f"n{i}" for i in range(1, count)), "y"]
    nodes = [
        helper.make_node("MaxPool", names[i : i + 1], names[i + 1 : i + 2], kernel_shape=[3],
                         pads=[1, 1])
        for i in range(count)
    ]  # fmt: skip
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 3, 32))
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "g", [x], [y])
    return rf.from_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


BUILT: dict[str, Callable[[int], Network]] = {
    "chain": chain,
    "shortcuts": shortcuts,
    "zoo": zoo,
    "JSON file": from_json,
    "ONNX": from_onnx,
}


def measure(name: str, count: int) -> dict[str, float]:
    """Seconds of every step, in this process."""
    found: dict[str, float] = {}
    start = time.process_time()

    def note(step: str) -> None:
        nonlocal start
        now = time.process_time()
        found[step], start = now - start, now

    network = BUILT[name](count)
    note("read")
    lower(network, 32)
    note("lower")
    assert max(rf.receptive_field(network, input_size=32).size) > 1
    note("field")
    rf.plan(network, input_size=32)
    note("plan")
    _ = rf.erf(network, input_size=32).image
    note("erf")
    return found


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--one"]:
        print(json.dumps(measure(arguments[1], int(arguments[2]))))
        return
    rows = []
    for name in BUILT:
        for count in map(int, arguments or map(str, COUNTS)):
            line = [sys.executable, "-m", "bench.large_graphs", "--one", name, str(count)]
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            last = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
            steps = json.loads(done.stdout) if done.returncode == 0 else {"failed": last[0]}
            rows.append({"graph": name, "nodes": count} | steps)
            print(rows[-1], file=sys.stderr)
    steps = ("read", "lower", "field", "plan", "erf")
    lines = [
        [row["graph"], str(row["nodes"]), *(duration(row[s]) if s in row else "–" for s in steps)]
        for row in rows
    ]
    print(table(["graph", "nodes", *steps], lines))
    if not arguments:
        write("large_graphs", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
