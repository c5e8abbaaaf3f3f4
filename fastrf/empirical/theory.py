"""The network beside a measurement: imported, given, or one layer in its place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fastrf.empirical.subject import Inputs, Spot
from fastrf.errors import FastrfError, InputError, UnsupportedOperator, short
from fastrf.importers.failing import line
from fastrf.layers import Attention, Input
from fastrf.lowering import PlaneGraph, lower
from fastrf.network import Network, Node

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Theory:
    """A network that stands beside a measured module.

    Attributes:
        network: as it was given or imported. (That of the graph has gains in the place of
            initialisations, and says no more what they have in common.)
        graph: the same on maps of the images' size.
        sizes: pixels of every input map.
        input: the input map that gradients are taken of.
        assumptions: what had to be assumed.
    """

    network: Network
    graph: PlaneGraph
    sizes: dict[str, tuple[int, ...]]
    input: str
    assumptions: tuple[str, ...] = ()


def imported(module: nn.Module, inputs: Inputs, wrt: int | str, training: bool) -> Theory | str:
    """The network of a module, or why it cannot be imported."""
    from fastrf.importers.torch import from_torch

    by_key = {key: tuple(value.shape) for key, value in inputs.items()}
    shapes: Any = by_key if all(isinstance(k, str) for k in by_key) else list(by_key.values())
    try:
        try:
            network = from_torch(module, shapes, training=training)
        except UnsupportedOperator:
            network = from_torch(module, shapes, training=training, unknown="global")
        return beside(network, inputs, wrt)
    except FastrfError as error:
        return line(error)


def beside(network: Network, inputs: Inputs, wrt: int | str) -> Theory:
    """A network with maps of the images' size.

    Raises:
        InputError: it has other inputs, or does not run on maps of this size.
    """
    keys = map_keys(inputs)
    if len(keys) != len(network.inputs):
        raise InputError(
            f"network= has {len(network.inputs)} input maps and the module is given {len(keys)}; "
            f"give the network of this module, or leave it out"
        )
    named = dict(zip(keys, network.inputs, strict=True))
    if all(key in network.inputs for key in keys):
        named = {key: str(key) for key in keys}
    sizes = {named[key]: tuple(inputs[key].shape[2:]) for key in keys}
    return Theory(network, lower(network, sizes), sizes, named[wrt])


def stand_in(spot: Spot, inputs: Inputs, wrt: int | str, kind: str, reason: str) -> Theory:
    """One layer that reads the whole of every input."""
    names = {
        key: key if isinstance(key, str) else "input" if len(inputs) == 1 else f"input_{key}"
        for key in map_keys(inputs)
    }
    output = spot.name or "output"
    while output in names.values():
        output += "_"
    nodes = [Node(name, Input(int(inputs[key].shape[1]))) for key, name in names.items()]
    network = Network(
        [*nodes, Node(output, Attention(), tuple(names.values())[:1])],
        output,
        ndim=inputs[wrt].ndim - 2,
        name=kind,
    )
    theory = beside(network, inputs, wrt)
    said = (
        f"the theoretical receptive field of {output!r} is not known and counts as the whole "
        f"image: {reason}"
    )
    return replace(theory, assumptions=(said,))


def map_keys(inputs: Inputs) -> list[int | str]:
    """The inputs that are maps, as many axes as the first of them."""
    maps = [key for key, value in inputs.items() if 3 <= value.ndim <= 5]
    return [key for key in maps if inputs[key].ndim == inputs[maps[0]].ndim]


def input_key(inputs: Inputs, input: str | int | None, network: Network | None) -> int | str:
    """The input that `input` names, by its own name or number or by the network's name for it.

    Raises:
        InputError: no input is a map, or none is called so.
    """
    keys = map_keys(inputs)
    if not keys:
        shapes = [tuple(value.shape) for value in inputs.values()]
        raise InputError(
            f"the images' shape {shapes[0] if len(shapes) == 1 else shapes} is that of no map; "
            f"give (N, C, spatial…) with one to three spatial axes, such as (1, 3, 224, 224)"
        )
    if input is None:
        if len(keys) > 1:
            raise InputError(
                f"the module has {len(keys)} input maps; give input= one of "
                f"{', '.join(map(str, keys))}"
            )
        return keys[0]
    if input in keys:
        return input
    if network is not None and input in network.inputs and len(network.inputs) == len(keys):
        return keys[network.inputs.index(str(input))]
    known = [*keys, *(() if network is None else network.inputs)]
    raise InputError(
        f"input={short(input)} is no input map; give one of {', '.join(map(str, known))}"
    )
