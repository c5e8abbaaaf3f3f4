"""Which of a module's maps is meant, and which node of the imported network it is."""

from __future__ import annotations

from fastrf.empirical.subject import Seen, Spot
from fastrf.errors import InputError, short
from fastrf.lowering import PlaneGraph


def choose(seen: Seen, output: str | None, graph: PlaneGraph | None) -> tuple[Spot, str | None]:
    """Where `output` is read, and its node in the graph; None where it has none there.

    By default what the module returns, or the last map before it lost its spatial extent.

    Raises:
        InputError: no map is called so, or several could be meant.
    """
    spot = _default(seen, graph) if output is None else _named(seen, output, graph)
    node = None if graph is None else _node(spot, seen, graph)
    if graph is None or node is None:
        return spot, None
    ordered = spot.ordered(graph.sizes[node])
    return (spot, None) if ordered is None else (ordered, node)


def _default(seen: Seen, graph: PlaneGraph | None) -> Spot:
    if len(seen.returned) > 1:
        raise InputError(
            f"the module returns {len(seen.returned)} maps; give output= one of "
            f"{', '.join(spot.name for spot in seen.returned)}, or the path of a submodule"
        )
    spots = (*seen.inner, *seen.returned)
    if graph is not None and len(graph.network.outputs) == 1:
        node = graph.output_node(None)
        for spot in reversed(spots):
            if _node(spot, seen, graph) == node:
                return spot
    for spot in reversed(spots):
        if any(n > 1 for n in spot.size):
            return spot
    raise InputError(
        "no submodule computes a map of more than one pixel; give output= the path of one that "
        "does, or a larger input"
    )


def _named(seen: Seen, output: str, graph: PlaneGraph | None) -> Spot:
    if not isinstance(output, str):
        raise InputError(f"output={short(output)} must be the name of a map: the path of a module")
    spots = (*seen.returned, *reversed(seen.inner))
    for spot in spots:
        if spot.name == output:
            return spot
    if graph is not None and output in {*graph.network.nodes, *graph.network.endpoints}:
        node = graph.network.resolve(output)
        for spot in spots:
            if _node(spot, seen, graph) == node:
                return spot
    names = list(dict.fromkeys(spot.name for spot in spots if spot.name))
    known = ", ".join(names[:12]) + (", …" if len(names) > 12 else "")
    raise InputError(
        f"output={output!r} is the map of no submodule, nor a map that the module returns; give "
        f"one of {known or 'those that the module has'}"
    )


def _node(spot: Spot, seen: Seen, graph: PlaneGraph) -> str | None:
    """The node that computes a map, by its name or by that of another one for the same tensor
    (dropout that is off, an identity)."""
    network = graph.network
    if spot.module is None:
        if spot.name in network.endpoints:
            return network.endpoints[spot.name]
        number = seen.returned.index(spot)
        same = len(seen.returned) == len(network.outputs)
        return network.outputs[number] if same else None
    shared = (other.name for other in reversed(seen.inner) if other.memory == spot.memory)
    for name in (spot.name, *shared):
        if name in network.nodes or name in network.endpoints:
            return network.resolve(name)
    return None
