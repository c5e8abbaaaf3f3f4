"""What nodes are called: by the module that computes them, as its user knows it.

An operator that is all that a module does (a convolution, a ReLU module) is called like the
module, "layer1.0.conv1"; so is the one that uses the module's own weights. Everything else is
called by the operator, inside the module that calls it: "layer1.0.add", "flatten". What runs
again counts on: "layer1.0.relu_1". (These are the names that torchvision's feature extraction
gives.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import fx


def path(node: fx.Node) -> str:
    """The path of the innermost module that a node runs in, "" for the root."""
    stack = node.meta.get("nn_module_stack") or {}
    innermost = next(reversed(stack.values()), ("", None))[0]
    return str(innermost).partition("@")[0]


def operator_name(node: fx.Node) -> str:
    """The name of the operator without its overload and the "_" of the in-place form."""
    target = node.target
    schema = getattr(target, "_schema", None)
    if schema is None:
        return str(getattr(target, "__name__", target))
    name: str = schema.name.rpartition("::")[2]
    return name.rstrip("_") if name.endswith("_") and not name.startswith("__") else name


class Names:
    """Names for the nodes of a graph.

    Args:
        containers: paths of the modules that hold others.
        constants: the nodes that stand for parameters and buffers.
    """

    def __init__(self, containers: Iterable[str], constants: Iterable[fx.Node]) -> None:
        self._containers = frozenset(containers)
        self._constants = frozenset(constants)
        self._taken: set[str] = set()

    def choose(self, node: fx.Node) -> str:
        """What a node would be called; `keep` says that it is."""
        module = path(node)
        own = module and (module not in self._containers or self._uses_weights(node))
        name = module if own else ".".join(filter(None, (module, operator_name(node))))
        return self._free(name)

    def keep(self, name: str) -> str:
        """Gives a name away."""
        self._taken.add(name)
        return name

    def _uses_weights(self, node: fx.Node) -> bool:
        return any(source in self._constants for source in node.all_input_nodes)

    def _free(self, name: str) -> str:
        numbered = (f"{name}_{number}" for number in itertools.count(1))
        return next(n for n in itertools.chain([name], numbered) if n not in self._taken)
