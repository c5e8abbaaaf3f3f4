"""Activations that models spell out as products are those activations, and nothing else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import fastrf as rf
from fastrf.importers.onnx import from_onnx

onnx = pytest.importorskip("onnx")
torch = pytest.importorskip("torch")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402

ROOT = 2**-0.5


def tanh_gelu(x: Any) -> Any:
    return 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3))))


SPELLED: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "silu": ("silu", lambda x: x * torch.sigmoid(x)),
    "silu, turned": ("silu", lambda x: torch.sigmoid(x).mul(x)),
    "mish": ("mish", lambda x: x * torch.tanh(functional.softplus(x))),
    "hardswish": ("hardswish", lambda x: x * functional.hardsigmoid(x)),
    "hardswish, relu6 first": ("hardswish", lambda x: x * (functional.relu6(x + 3) / 6)),
    "hardswish, relu6 last": ("hardswish", lambda x: x * functional.relu6(x + 3) / 6),
    "gelu, half first": ("gelu", lambda x: 0.5 * x * (1 + torch.erf(x * ROOT))),
    "gelu, half inside": ("gelu", lambda x: x * (0.5 * (1 + torch.erf(x / 2**0.5)))),
    "gelu, half last": ("gelu", lambda x: x * (torch.erf(x * ROOT) + 1) * 0.5),
    "gelu by tanh": ("gelu_tanh", tanh_gelu),
    "gelu by tanh and products": (
        "gelu_tanh",
        lambda x: x * (torch.tanh((x + x * x * x * 0.044715) * 0.7978845608) + 1) * 0.5,
    ),
}

OTHERS: dict[str, Callable[[Any, Any], Any]] = {
    "another map's": lambda x, y: x * torch.sigmoid(y),
    "steeper": lambda x, y: x * torch.sigmoid(1.702 * x),
    "shifted": lambda x, y: x * torch.sigmoid(x + 1),
    "with a residual inside": lambda x, y: x * torch.sigmoid(x + y),
    "two functions": lambda x, y: torch.tanh(x) * torch.sigmoid(x),
    "gate": lambda x, y: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "square": lambda x, y: x * x,
    "relu6, not shifted": lambda x, y: x * functional.relu6(x) / 6,
}


class Between(nn.Module):
    """A function of a convolution's result, which another one reads, and of its input."""

    def __init__(self, function: Callable[..., Any], both: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        self.function, self.both = function, both

    def forward(self, x: Any) -> Any:
        y = self.first(x)
        return self.last(self.function(y, x[..., 1:-1, 1:-1]) if self.both else self.function(y))


def kinds(network: rf.Network) -> list[Any]:
    return [n.layer for n in network.nodes.values() if not isinstance(n.layer, rf.Input | rf.Conv)]


@pytest.mark.parametrize(("name", "function"), SPELLED.values(), ids=SPELLED)
def test_spelled_activations_are_known(name: str, function: Callable[[Any], Any]) -> None:
    x = torch.linspace(-4, 4, 65, dtype=torch.float64)
    wanted = rf.activations.FUNCTIONS[name].value(x.numpy(), 0.0)
    np.testing.assert_allclose(function(x), wanted, atol=2e-7)  # the spelling itself is right
    plain = rf.from_torch(Between(function), (1, 4, 9, 9))
    assert kinds(plain) == [rf.Activation(name, gain=1.0)]
    drawn = rf.from_torch(Between(function), (1, 4, 9, 9), init="he")
    assert kinds(drawn) == [rf.Activation(name)]
    assert plain.initialised("he") == drawn


@pytest.mark.parametrize("function", OTHERS.values(), ids=OTHERS)
def test_other_products_stay_products(function: Callable[..., Any]) -> None:
    network = rf.from_torch(Between(function, both=True), (1, 4, 9, 9))
    assert any(isinstance(layer, rf.Multiply) for layer in kinds(network))
    assert not any(
        isinstance(layer, rf.Activation) and layer.function in ("silu", "hardswish", "gelu")
        for layer in kinds(network)
    )


def test_what_a_spelling_leaves_unread_is_gone_and_what_is_read_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Sigmoid()

        def forward(self, x: Any) -> Any:
            s = torch.sigmoid(x)
            return x * s + s, x * self.gate(x)

    network = rf.from_torch(Twice(), (1, 4, 9, 9))
    functions = [x.function for x in kinds(network) if isinstance(x, rf.Activation)]
    assert sorted(functions) == ["sigmoid", "sigmoid", "silu", "silu"]
    assert {"gate"} <= {*network.nodes, *network.endpoints}


def test_a_file_that_spells_gelu() -> None:
    """As the exporters write it: numbers in a constant each, the half at the end."""
    numbers = {"root": 2**0.5, "one": 1.0, "half": 0.5}
    nodes = [
        helper.make_node("Div", ["x", "root"], ["a"]),
        helper.make_node("Erf", ["a"], ["b"]),
        helper.make_node("Add", ["b", "one"], ["c"]),
        helper.make_node("Cast", ["c"], ["d"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x", "d"], ["e"]),
        helper.make_node("Mul", ["e", "half"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "gelu",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, (1, 4, 9, 9))],
        [helper.make_value_info("y", onnx.TypeProto())],
        [numpy_helper.from_array(np.float32(v), k) for k, v in numbers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    assert kinds(from_onnx(model)) == [rf.Activation("gelu", gain=1.0)]


def test_long_chains_of_functions_are_looked_at_in_bounded_time() -> None:
    """A product at the end of a hundred activations, which none of them explains."""

    def function(x: Any) -> Any:
        y = x
        for _ in range(100):
            y = torch.tanh(y)
        return x * y

    network = rf.from_torch(Between(function), (1, 4, 9, 9))
    assert isinstance(kinds(network)[-1], rf.Multiply)
