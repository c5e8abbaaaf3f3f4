"""A user's own operators and modules: what the importers make of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastrf.errors import InputError
from fastrf.importers.layout import Shape, known
from fastrf.layers import Input
from fastrf.network import Network, as_network


@dataclass(frozen=True)
class Call:
    """One call of a registered operator.

    Attributes:
        name: "namespace::operator".
        inputs: shapes of the tensors that it reads, the weights among them; sizes (and shapes)
            that are not known are None.
        output: shape of its first output, as far as it is known.
        arguments: everything else by name: an ONNX node's attributes, a PyTorch operator's
            arguments.
    """

    name: str
    inputs: tuple[Shape | None, ...]
    output: Shape | None
    arguments: Mapping[str, Any]


Make = Callable[..., Any]
"""From a `Call` or a module to layers."""

F = TypeVar("F", bound=Make)

_OPERATORS: dict[str, Make] = {}
_MODULES: dict[type, Make] = {}


def register(target: str | type) -> Callable[[F], F]:
    """Teaches the importers an operator or a module class; a decorator.

    Args:
        target: "namespace::operator", as PyTorch calls a custom operator
            ("mylib::blur") and ONNX one of a domain ("com.acme::Blur"); or a class of
            `torch.nn.Module`, whose instances then are leaves: their `forward` is not looked at,
            so that it may do what no import can follow.

    The decorated function is called once per use, with a `Call` or with the module, and returns
    what the use is: a layer, a list of layers, or a network (with as many inputs as the use reads
    maps, and one output). A leaf's layers must state their numbers of channels where these change.
    The last registration of a target counts; `unregister` takes it back.

    >>> from fastrf.layers import Conv
    >>> @register("mylib::blur")
    ... def blur(call):
    ...     radius = call.arguments["radius"]
    ...     return Conv(2 * radius + 1, padding=radius, groups="depthwise")
    >>> unregister("mylib::blur")

    Raises:
        InputError: the target is neither.
    """
    _checked(target)

    def remember(make: F) -> F:
        if isinstance(target, str):
            _OPERATORS[target] = make
        else:
            _MODULES[target] = make
        return make

    return remember


def unregister(target: str | type) -> None:
    """Takes back what `register` did; nothing happens where nothing was registered."""
    _checked(target)
    if isinstance(target, str):
        _OPERATORS.pop(target, None)
    else:
        _MODULES.pop(target, None)


def _checked(target: object) -> None:
    if isinstance(target, str):
        namespace, colons, name = target.partition("::")
        if namespace and colons and name:
            return
    elif isinstance(target, type):
        return
    raise InputError(
        f'{target!r} names no operator; give "namespace::operator" or a class of modules'
    )


def of_operator(name: str) -> Make | None:
    """What was registered for an operator."""
    return _OPERATORS.get(name)


def of_module(module: object) -> Make | None:
    """What was registered for a module's class or the nearest class that it derives from."""
    return next((_MODULES[c] for c in type(module).__mro__ if c in _MODULES), None)


def block(what: str, made: Any, reads: int) -> Network:
    """What a registered function returned, as a network that reads so many maps.

    Raises:
        InputError: it returned something else.
    """
    try:
        network = as_network(made)
    except InputError as error:
        raise InputError(f"what is registered for {what} returned no layers: {error}") from None
    if len(network.outputs) != 1 or len(network.inputs) != reads:
        raise InputError(
            f"the network registered for {what} has {len(network.inputs)} input(s) and "
            f"{len(network.outputs)} output(s), and is used on {reads} map(s); give it as many "
            f"inputs and one output"
        )
    return network


def extent_behind(network: Network, extents: Sequence[Shape], ndim: int) -> Shape:
    """Channels and pixels of a block's output, from those of the maps that it reads.

    Raises:
        InputError: a layer refuses its values or a map of that size.
    """
    found = dict(zip(network.inputs, extents, strict=True))
    for node in _with_axes(network, ndim).bound.nodes.values():
        if isinstance(node.layer, Input):
            continue
        read = [found[source] for source in node.inputs]
        pixels = tuple(_widest(axis) for axis in zip(*(e[1:] for e in read), strict=True))
        channels = node.layer.output_channels([e[0] for e in read])
        size = known(pixels)
        maps = node.layer.maps(size, ndim)
        if maps:
            pixels = (None,) * ndim if size is None else maps[-1].size_out or pixels
        found[node.name] = (channels, *pixels)
    return found[network.outputs[0]]


def _widest(counts: Sequence[int | None]) -> int | None:
    return None if None in counts else max(n for n in counts if n is not None)


def _with_axes(network: Network, ndim: int) -> Network:
    """The network with its number of axes fixed."""
    if network.ndim == ndim:
        return network
    return Network(network.nodes.values(), network.outputs, ndim=ndim, name=network.name)
