"""Small networks in one description, as a fastrf `Network` and as the nodes of `naive`.

A description is a list of dictionaries as `naive` reads them, in every dimension from 1 to 3,
with four keys more: "channels" (of the input and of convolutions, 1 by default), "groups",
"mode" of a convolution's padding, and nothing else. A concatenation's channels are filled in.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import naive

from fastrf import layers
from fastrf.network import Network

Node = dict[str, Any]

INPUT: Node = {"name": "input", "op": "input"}


@dataclass(frozen=True)
class Graph:
    """A network's description.

    Attributes:
        ndim: number of axes.
        nodes: sources first, the output last.
        size: pixels per axis of an input that fits.
    """

    ndim: int
    nodes: tuple[Node, ...]
    size: tuple[int, ...]

    @property
    def output(self) -> str:
        return self.nodes[-1]["name"]

    def naive(self) -> list[Node]:
        """The nodes for `naive`; a convolution that mirrors becomes a pad and a convolution."""
        channels = self._channels()
        result = []
        for given in self.nodes:
            node = {k: v for k, v in given.items() if k not in ("groups", "channels")}
            if node["op"] == "concat":
                node["channels"] = [channels[i] for i in node["inputs"]]
            if "mode" in node and node["op"] == "conv":
                before = f"{node['name']} padding"
                pads = {k: node.pop(k) for k in ("lo", "hi", "mode")}
                result.append({"name": before, "op": "pad", "inputs": node["inputs"], **pads})
                node["inputs"] = [before]
            result.append(node)
        return result

    def network(self) -> Network:
        """The same as a fastrf network."""
        nodes = {n["name"]: (_layer(n, self.ndim), *n.get("inputs", ())) for n in self.nodes}
        return Network(nodes, self.output, ndim=self.ndim)

    def map_size(self, name: str | None = None) -> tuple[int, ...]:
        return tuple(naive.sizes(self.naive(), self.size)[name or self.output])

    def _channels(self) -> dict[str, int]:
        found: dict[str, int] = {}
        for node in self.nodes:
            before = [found[i] for i in node.get("inputs", ())]
            if node["op"] in ("input", "conv", "conv_transpose"):
                count = node.get("channels", 1)
            elif node["op"] == "concat":
                count = sum(before)
            elif node["op"] == "pixel_shuffle":
                count = before[0] // math.prod(_tuple(node["factor"], self.ndim))
            elif node["op"] == "pixel_unshuffle":
                count = before[0] * math.prod(_tuple(node["factor"], self.ndim))
            else:
                count = before[0]
            found[node["name"]] = count
        return found


def _tuple(value: Any, ndim: int) -> tuple[int, ...]:
    return (value,) * ndim if isinstance(value, int) else tuple(value)


def _layer(node: Node, ndim: int) -> layers.Layer:
    op = node["op"]
    if op == "input":
        return layers.Input(node.get("channels", 1))
    if op in ("add", "identity"):
        return layers.Add() if op == "add" else layers.Identity()
    if op == "concat":
        return layers.Concat()
    if "factor" in node:
        factor = _tuple(node["factor"], ndim)
        if op.startswith("pixel"):
            return (layers.PixelShuffle if op == "pixel_shuffle" else layers.PixelUnshuffle)(factor)
        return layers.Upsample(factor, "nearest" if op == "upsample_nearest" else "linear")
    pads = zip(_tuple(node.get("lo", 0), ndim), _tuple(node.get("hi", 0), ndim), strict=True)
    padding: tuple[Any, ...] = tuple(pads)
    if op == "pad":
        if min(min(p) for p in padding) < 0:
            return layers.Crop(tuple((-lo, -hi) for lo, hi in padding))
        return layers.Pad(padding, node.get("mode", "zeros"))
    kernel, stride = _tuple(node["kernel"], ndim), _tuple(node.get("stride", 1), ndim)
    dilation = _tuple(node.get("dilation", 1), ndim)
    if op in ("maxpool", "avgpool"):
        pool = {"ceil_mode": node.get("ceil_mode", False)}
        if op == "avgpool":
            pool["count_include_pad"] = node.get("count_include_pad", True)
            return layers.AvgPool(kernel, stride, dilation, padding, **pool)
        return layers.MaxPool(kernel, stride, dilation, padding, **pool)
    common = {
        "channels": node.get("channels", 1),
        "groups": node.get("groups", 1),
        "taps": node.get("taps"),
    }
    if op == "conv_transpose":
        extra = _tuple(node.get("output_padding", 0), ndim)
        return layers.ConvTranspose(
            kernel, stride, dilation, padding, output_padding=extra, **common
        )
    mode = node.get("mode", "zeros")
    return layers.Conv(kernel, stride, dilation, padding, padding_mode=mode, **common)


# --- the cases ------------------------------------------------------------------------------


def _node(name: str, op: str, *inputs: str, **values: Any) -> Node:
    return {"name": name, "op": op, "inputs": list(inputs), **values}


def chain(ndim: int, size: int | tuple[int, ...], *steps: tuple[str, dict[str, Any]]) -> Graph:
    """Layers one behind the other, named by their op and place."""
    nodes, at = [INPUT], "input"
    for i, (op, values) in enumerate(steps, 1):
        nodes.append(_node(f"{op}{i}", op, at, **values))
        at = nodes[-1]["name"]
    return Graph(ndim, tuple(nodes), _tuple(size, ndim))


def _conv(kernel: Any, **values: Any) -> tuple[str, dict[str, Any]]:
    return "conv", {"kernel": kernel, **values}


def _step(op: str, **values: Any) -> tuple[str, dict[str, Any]]:
    return op, values


_SAME = {"lo": 1, "hi": 1}


def _residual(ndim: int, size: int) -> Graph:
    nodes = [
        INPUT,
        _node("stem", "conv", "input", kernel=5, stride=2, lo=2, hi=2),
        _node("a1", "conv", "stem", kernel=3, **_SAME),
        _node("a2", "conv", "a1", kernel=3, **_SAME),
        _node("add1", "add", "stem", "a2"),
        _node("short", "conv", "add1", kernel=1, stride=2),
        _node("b1", "conv", "add1", kernel=3, stride=2, **_SAME),
        _node("b2", "conv", "b1", kernel=3, **_SAME),
        _node("add2", "add", "short", "b2"),
    ]
    return Graph(ndim, tuple(nodes), (size,) * ndim)


def _unet(ndim: int, size: int, up: Node) -> Graph:
    nodes = [
        INPUT,
        _node("d0", "conv", "input", kernel=3, **_SAME),
        _node("p1", "maxpool", "d0", kernel=2, stride=2),
        _node("d1", "conv", "p1", kernel=3, **_SAME),
        _node("p2", "maxpool", "d1", kernel=2, stride=2),
        _node("d2", "conv", "p2", kernel=3, **_SAME),
        {**up, "name": "up2", "inputs": ["d2"]},
        _node("cat1", "concat", "up2", "d1"),
        _node("e1", "conv", "cat1", kernel=3, **_SAME),
        {**up, "name": "up1", "inputs": ["e1"]},
        _node("cat0", "concat", "up1", "d0"),
        _node("e0", "conv", "cat0", kernel=3, **_SAME),
    ]
    return Graph(ndim, tuple(nodes), (size,) * ndim)


def misaligned() -> Graph:
    """Distill's misaligned net: {k5 s2 pad (2, 1)} beside {k3; k3}, on the one size that fits."""
    nodes = [
        INPUT,
        _node("left", "conv", "input", kernel=5, stride=2, lo=2, hi=1),
        _node("right1", "conv", "input", kernel=3),
        _node("right2", "conv", "right1", kernel=3),
        _node("add", "add", "left", "right2"),
    ]
    return Graph(1, tuple(nodes), (8,))


def _shifted(ndim: int) -> Graph:
    """Paths of equal stride whose centres differ, then a stride and an upsampling."""
    nodes = [
        INPUT,
        _node("a", "conv", "input", kernel=3, lo=2, hi=0),
        _node("b", "conv", "input", kernel=2, lo=0, hi=1),
        _node("sum", "concat", "a", "b"),
        _node("down", "conv", "sum", kernel=2, stride=2),
        _node("up", "upsample_nearest", "down", factor=2),
        _node("cat", "concat", "up", "sum"),
        _node("out", "conv", "cat", kernel=3, lo=1, hi=1),
    ]
    return Graph(ndim, tuple(nodes), (8,) * ndim)


def _phases(ndim: int) -> Graph:
    """Transposed convolutions with fewer taps than their stride: units that see nothing."""
    nodes = [
        INPUT,
        _node("gap", "conv_transpose", "input", kernel=2, stride=3, lo=1),
        _node("even", "conv_transpose", "input", kernel=1, stride=3),
        _node("sum", "add", "gap", "even"),
        _node("out", "conv", "sum", kernel=2, dilation=2, stride=2, lo=1),
    ]
    return Graph(ndim, tuple(nodes), (6,) * ndim)


def _diagonal() -> Graph:
    """A unit that reads two pixels on a diagonal, of which rows and columns alone are written."""
    nodes = [
        INPUT,
        _node("even", "conv_transpose", "input", kernel=1, stride=2),
        _node("here", "pad", "even", hi=1),
        _node("beside", "pad", "even", lo=1),
        _node("sum", "add", "here", "beside"),
    ]
    return Graph(2, tuple(nodes), (4, 4))


def _half_blind() -> Graph:
    """A path that sees nothing along one axis, beside one that sees less along the other."""
    nodes = [
        INPUT,
        _node(
            "even", "conv_transpose", "input", kernel=[1, 3], stride=[2, 1], lo=[0, 1], hi=[0, 1]
        ),
        _node("odd", "pad", "even", lo=[-1, 0]),
        _node("blind", "maxpool", "odd", kernel=1, stride=[2, 1]),
        _node("short", "pad", "input", hi=[-1, 0]),
        _node("sum", "add", "blind", "short"),
    ]
    return Graph(2, tuple(nodes), (5, 4))


def _shuffles(ndim: int) -> Graph:
    """Pixel shuffles whose phases are planes of their own."""
    phases = 2**ndim
    nodes = [
        {**INPUT, "channels": 2},
        _node("apart", "pixel_unshuffle", "input", factor=2),
        _node("mix", "conv", "apart", kernel=3, channels=2 * phases, groups=2, **_SAME),
        _node("together", "pixel_shuffle", "mix", factor=2),
        _node("out", "conv", "together", kernel=2),
    ]
    return Graph(ndim, tuple(nodes), (8,) * ndim)


_TRANSPOSED: Node = {"op": "conv_transpose", "kernel": 2, "stride": 2}
_TRANSPOSED_3: Node = {
    "op": "conv_transpose",
    "kernel": 3,
    "stride": 2,
    "lo": 1,
    "hi": 1,
    "output_padding": 1,
}
_NEAREST: Node = {"op": "upsample_nearest", "factor": 2}
_LINEAR: Node = {"op": "upsample_linear", "factor": 2}


def cases() -> Iterator[tuple[str, Graph]]:
    """(name, description) of networks that meet every kind of layer in 1, 2 and 3 dimensions."""
    yield "pointwise", chain(1, 5, _conv(1), _conv(1))
    yield "strided", chain(1, 17, _conv(3, stride=2, lo=1, hi=1), _conv(5, stride=3, lo=2, hi=2))
    yield "dilated holes", chain(1, 21, _conv(3, dilation=3, lo=3, hi=3), _conv(2, dilation=4))
    yield "even kernels", chain(1, 16, _conv(2, lo=1), _conv(4, stride=2, lo=1, hi=1))
    yield "asymmetric", chain(1, 15, _conv(3, lo=2), _conv(4, dilation=2, lo=0, hi=3))
    yield "all padding", chain(1, 5, _step("pad", lo=4, hi=3), _conv(2), _conv(1, stride=2))
    yield "kernel below stride", chain(1, 20, _conv(1, stride=2), _conv(2, stride=3, lo=1))
    yield "stride and dilation", chain(1, 23, _conv(3, dilation=3, stride=2), _conv(3, dilation=2))
    yield (
        "pools",
        chain(
            1,
            18,
            _step("maxpool", kernel=3, stride=2, lo=1, hi=1, ceil_mode=True),
            _step("avgpool", kernel=4, stride=3, lo=2, hi=2, ceil_mode=True),
        ),
    )
    yield (
        "pools without padding count",
        chain(
            2,
            9,
            _step("avgpool", kernel=3, stride=2, lo=1, hi=1, count_include_pad=False),
            _step("maxpool", kernel=2, stride=1, dilation=2),
        ),
    )
    yield (
        "transposed, output padding",
        chain(
            1,
            6,
            _conv(3, lo=1, hi=1),
            _step("conv_transpose", kernel=3, stride=2, lo=1, hi=1, output_padding=1),
            _step("conv_transpose", kernel=4, stride=3, dilation=2, lo=2, hi=1, output_padding=2),
        ),
    )
    yield (
        "transposed, strided again",
        chain(
            1,
            7,
            _step("conv_transpose", kernel=5, stride=4, lo=1, hi=2),
            _conv(3, stride=3, lo=1),
            _step("conv_transpose", kernel=3, stride=2, dilation=3, lo=2, hi=2),
        ),
    )
    yield "nearest", chain(1, 6, _conv(3, **_SAME), _step("upsample_nearest", factor=3), _conv(2))
    yield "linear", chain(1, 6, _conv(3, **_SAME), _step("upsample_linear", factor=3), _conv(2))
    yield (
        "up and down",
        chain(
            1,
            6,
            _step("upsample_nearest", factor=2),
            _conv(3, stride=3, lo=1, hi=1),
            _step("upsample_linear", factor=2),
            _step("pad", lo=-1, hi=-2),
        ),
    )
    for mode in ("reflect", "replicate", "circular"):
        yield mode, chain(1, 9, _conv(5, lo=3, hi=2, mode=mode), _conv(3, stride=2, lo=1, hi=1))
    yield "reflect 2-D", chain(2, (6, 7), _conv(3, lo=[2, 0], hi=[1, 0], mode="reflect"), _conv(2))
    yield "residual", _residual(1, 24)
    yield "residual 2-D", _residual(2, 12)
    yield "nearest decoder", _unet(1, 16, _NEAREST)
    yield "linear decoder", _unet(1, 16, _LINEAR)
    yield "transposed decoder", _unet(1, 16, _TRANSPOSED)
    yield "shifted decoder", _unet(1, 16, _TRANSPOSED_3)
    yield "linear decoder 2-D", _unet(2, 8, _LINEAR)
    yield "misaligned", misaligned()
    yield "shifted paths", _shifted(1)
    yield "shifted paths 2-D", _shifted(2)
    yield "unread phases", _phases(1)
    yield "unread phases 2-D", _phases(2)
    yield "diagonal phases 2-D", _diagonal()
    yield "half blind 2-D", _half_blind()
    yield "shuffles", _shuffles(1)
    yield "shuffles 2-D", _shuffles(2)
    yield (
        "anisotropic 2-D",
        chain(
            2,
            (9, 14),
            _conv([3, 5], stride=[1, 2], dilation=[2, 1], lo=[2, 1], hi=[1, 3]),
            _step("maxpool", kernel=[2, 3], stride=[2, 1], lo=[1, 0], hi=[0, 1]),
            _step("conv_transpose", kernel=[3, 2], stride=[2, 1], lo=[0, 1], hi=[1, 0]),
        ),
    )
    yield (
        "3-D",
        chain(
            3,
            (5, 6, 7),
            _conv([3, 1, 2], lo=1, hi=[1, 0, 1]),
            _step("maxpool", kernel=2, stride=[1, 2, 2]),
            _step("upsample_nearest", factor=[1, 2, 1]),
        ),
    )
    for seed in range(12):
        yield f"random {seed}", random_graph(seed, 1, 12)
    for seed in range(4):
        yield f"random 2-D {seed}", random_graph(100 + seed, 2, 8)


def random_graph(seed: int, ndim: int, size: int) -> Graph:
    """A small random graph; maps of equal size merge, aligned or not."""
    rng = random.Random(seed)
    nodes: list[Node] = [INPUT]
    shapes: dict[str, tuple[int, ...]] = {"input": (size,) * ndim}
    while len(nodes) < 8:
        name = f"n{len(nodes)}"
        before = rng.choice(list(shapes)[-3:])
        alike = [other for other, shape in shapes.items() if shape == shapes[before]]
        if len(alike) > 1 and rng.random() < 0.5:
            node = _node(name, rng.choice(("add", "concat")), *rng.sample(alike, 2))
        else:
            node = _random_layer(rng, name, before)
        graph = Graph(ndim, (*nodes, node), (size,) * ndim)
        shape = graph.map_size(name)
        if node["op"] == "add" and len({graph._channels()[i] for i in node["inputs"]}) > 1:
            continue
        if min(shape) >= 2 and max(shape) <= 2 * size:
            nodes.append(node)
            shapes[name] = shape
    return Graph(ndim, tuple(nodes), (size,) * ndim)


def _random_layer(rng: random.Random, name: str, before: str) -> Node:
    op = rng.choice(("conv", "conv", "conv", "conv_transpose", "maxpool", "upsample", "pad"))
    if op == "upsample":
        return _node(name, rng.choice(("upsample_nearest", "upsample_linear")), before, factor=2)
    if op == "pad":
        mode = rng.choice(("zeros", "reflect", "replicate"))
        return _node(name, "pad", before, lo=rng.randrange(2), hi=rng.randrange(2), mode=mode)
    kernel, stride = rng.randint(1, 4), rng.choice((1, 1, 2))
    if op == "maxpool":
        lo, hi = rng.randint(0, kernel // 2), rng.randint(0, kernel // 2)
        ceil = rng.random() < 0.5
        values = {"kernel": kernel, "stride": stride, "lo": lo, "hi": hi, "ceil_mode": ceil}
        return _node(name, op, before, **values)
    lo, hi = rng.randrange(3), rng.randrange(3)
    dilation = rng.randint(1, 2)
    return _node(name, op, before, kernel=kernel, stride=stride, dilation=dilation, lo=lo, hi=hi)
