"""Graphs of a million nodes: what reading, lowering and following them takes, by number of nodes.

    python -m bench.large_graphs [--record] [NODES ...]

Each row is a process of its own. "read" is a network from Python (a mapping), a JSON file or an
ONNX model; "lower" the planes on an image; "field" the receptive field; "plan" and "erf" that of a
unit on a 32-pixel line or image. Time per node has to stay what it is as graphs grow.
"""

from __future__ import annotations

import json
import resource
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


def nested(count: int) -> Network:
    """Residual blocks within each other, as deep as there are pairs of nodes."""
    block = rf.Sequential(rf.Conv(3, padding=1), ndim=1)
    for _ in range(count // 2):
        block = rf.Residual(block, rf.Conv(3, padding=1))
    return block


def dense(count: int) -> Network:
    """Dense blocks: each of six layers reads all before it in its block."""
    nodes: dict[str, Any] = {}
    at = "input"
    for i in range(count // 13):
        read = [at]
        for j in range(6):
            cat, conv = f"b{i}.cat{j}", f"b{i}.conv{j}"
            nodes[cat] = (rf.Concat(), *read)
            nodes[conv] = (rf.Conv(3, padding=1, channels=4), cat)
            read.append(conv)
        at = f"b{i}.out"
        nodes[at] = (rf.Conv(1, channels=4), read[-1])
    return Network({"input": rf.Input(4), **nodes}, ndim=1)


def unets(count: int) -> Network:
    """U-Nets of two levels one behind the other."""
    layers: list[Any] = []
    conv, up = rf.Conv(3, padding=1), rf.ConvTranspose(2, stride=2)
    inner = rf.Parallel([rf.MaxPool(2), conv, up], None)
    layers = [rf.Parallel([rf.MaxPool(2), conv, inner, conv, up], None)] * (count // 10)
    return rf.Sequential(layers, ndim=1)


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


def from_toml(count: int) -> Network:
    lines = "".join(
        f"[[nodes]]\nname = 'n{i}'\ntype = 'Conv'\nkernel = 3\npadding = 1\n"
        f"inputs = ['{f'n{i - 1}' if i else 'input'}']\n"
        for i in range(count)
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "g.toml"
        path.write_text(f"ndim = 1\n{lines}", encoding="utf-8")
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
    "nested": nested,
    "dense": dense,
    "U-Nets": unets,
    "JSON file": from_json,
    "TOML file": from_toml,
    "ONNX": from_onnx,
}


def measure(name: str, count: int) -> dict[str, float]:
    """Processor seconds of every step, in this process, and its memory at the end in MiB."""
    found: dict[str, float] = {}
    start = time.process_time()

    def note(step: str) -> None:
        nonlocal start
        now = time.process_time()
        found[step], start = now - start, now

    network = BUILT[name](count)
    _ = network.nodes
    note("read")
    lower(network, 32)
    note("lower")
    assert max(rf.receptive_field(network, input_size=32).size) > 1
    note("field")
    rf.plan(network, input_size=32)
    note("plan")
    _ = rf.erf(network, input_size=32).image
    note("erf")
    found["MiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--one"]:
        print(json.dumps(measure(arguments[1], int(arguments[2]))))
        return
    counts = [int(given) for given in arguments if given != "--record"] or COUNTS
    rows = []
    for name in BUILT:
        for count in counts:
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
    if "--record" in arguments:
        write("large_graphs", rows)


if __name__ == "__main__":
    main(sys.argv[1:])
