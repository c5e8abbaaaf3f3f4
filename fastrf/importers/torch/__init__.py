"""PyTorch modules as networks.

A module is recorded as the graph of PyTorch operators that its `forward` runs (see `tracing`):
without weights, without data, and without changing the module. Every tensor that depends on an
input map is then followed as a `layout.Map`, as in the ONNX importer: reshapes and transposes
move digits of indices, so that channel shuffles, token layouts and channels-last code are
recognised by what they do.

Sizes are those of `input_shape`. Where a module computes with them (a resize to another map's
size, a slice up to half of a map), the network is that of this size; resizes are kept as scales
where these are rational.

Networks count as initialised to keep the variance: activations have gain 1; `init` draws weights
by a scheme instead, and `weights` reads them. Convolutions whose
weights are a buffer (blur-pooling) have the buffer's squares for taps. A detached tensor counts as
read: the region is that of the forward pass. Attention within windows counts as attention over the
whole map; so do tokens that are no grid any more, such as positions with a class token beside them.

The modules build on each other in this order: `tracing` (module → graph), `sources`, `names`, `op`
(one operator; the registry of handlers), `operators` (a handler per operator), `importer` (the
walk).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from fastrf.errors import InputError, MissingExtra, short
from fastrf.importers.policy import Policy, checked_policy
from fastrf.importers.weighting import Detail, Weighting
from fastrf.layers.checks import is_whole
from fastrf.network import Network

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

__all__ = ["from_torch"]


def from_torch(
    module: nn.Module | ExportedProgram,
    input_shape: Sequence[int] | Sequence[Sequence[int]] | Mapping[str, Sequence[int]],
    *,
    unknown: Policy = "error",
    training: bool = False,
    name: str | None = None,
    init: str | None = None,
    weights: Literal["trained"] | None = None,
    channels: Detail = "mean",
) -> Network:
    """The network of a PyTorch module.

    Args:
        module: any `torch.nn.Module`, on any device; it is neither run nor changed. One that was
            made under ``torch.device("meta")`` needs no memory for its weights. Also what
            `torch.export` recorded, with inputs of the shapes and in the mode that it was recorded
            with, and TorchScript, scripted or traced, whose nodes are called like its operators.
        input_shape: (N, C, spatial…) of its input, with one to three spatial axes, or (N, T) of a
            signal that the module gives an axis of channels; for several
            inputs a sequence of shapes, or a mapping from the names of `forward`'s arguments.
            Inputs with another number of axes than the first map's (a time step, say) are no maps,
            and those that no output depends on no inputs of the network.
        unknown: what an operator that fastrf cannot express becomes: "error" raises; "identity"
            passes every pixel on; "global" lets each output read every input.
            `fastrf.importers.register` teaches it new ones.
        training: import the module as in training: batch normalisation then takes its statistics
            over the whole map, so that every unit reads every pixel, and dropout is active.
            Default: as in evaluation, whatever mode the module is in.
        name: the network's name; default: the module's class.
        init: a scheme by which the layers draw their weights, such as "he" or "pytorch" (see
            `fastrf.initialisation`); activations, norms and products then have the gains that the
            mean field gives them (see `fastrf.meanfield`).
        weights: "trained" reads the module's weights: a layer's taps and gain are its mean squared
            weights, and a norm's gain is what its scale and its running statistics multiply by.
        channels: "mean" averages squared weights over channels; "full" keeps them, so that fields
            are followed channel by channel.

    Returns:
        A network whose nodes are called like the modules that compute them ("layer1.0.conv1"), or
        by the operator within its module ("layer1.0.add"). Modules that hold others are end points
        ("layer1"), and so are the keys of a dictionary that `forward` returns. Attention and
        other operators that read everything are `Attention` layers.

    Raises:
        InputError: no module, a shape that it does not run on, or a `forward` that depends on the
            values of its tensors; the message names the line.
        UnsupportedOperator: an operator that fastrf cannot express, with ``unknown="error"``.
        MissingExtra: the package ``torch`` is not installed.
    """
    try:
        import torch  # noqa: F401
    except ImportError:
        raise MissingExtra(
            'reading PyTorch modules needs the package torch; pip install "fastrf[torch]"'
        ) from None
    from fastrf.importers.torch.importer import Importer
    from fastrf.importers.torch.sources import as_module
    from fastrf.importers.torch.tracing import trace

    checked_policy(unknown)
    weighting = Weighting.of(init, weights, channels)
    shapes = _shapes(input_shape)
    own = getattr(module, "original_name", type(module).__name__)
    module = as_module(module, shapes)
    ranks = [len(s) for s in (shapes.values() if isinstance(shapes, Mapping) else shapes)]
    rank = next((n for n in ranks if n > 2), 2)
    if weighting.trained and any(p.is_meta for p in module.parameters()):
        raise InputError(
            f"{own} was made on the meta device, and has no weights for weights='trained' to read; "
            f"make it on another device and load its weights"
        )
    traced = trace(module, shapes, training=training)
    importer = Importer(traced, own, rank, unknown, weighting)
    return importer.network(own if name is None else name)


def _shapes(given: Any) -> list[tuple[int, ...]] | dict[str, tuple[int, ...]]:
    if isinstance(given, Mapping):
        named = {str(name): _shape(shape, given) for name, shape in given.items()}
        listed = list(named.values())
    elif isinstance(given, Sequence) and given and isinstance(given[0], Sequence):
        named, listed = None, [_shape(shape, given) for shape in given]
    else:
        named, listed = None, [_shape(given, given)]
    if not any(2 <= len(shape) <= 5 for shape in listed):
        raise InputError(
            f"input_shape={short(given)} holds no map; give (N, C, spatial…) with one to three "
            f"spatial axes, such as (1, 3, 224, 224), or (N, T) of a signal"
        )
    return listed if named is None else named


def _shape(shape: Any, given: Any) -> tuple[int, ...]:
    whole = isinstance(shape, Sequence) and not isinstance(shape, str)
    if not whole or not all(is_whole(n) and n > 0 for n in shape):
        raise InputError(
            f"input_shape={short(given)} must hold whole numbers of at least 1, such as "
            f"(1, 3, 224, 224), or such shapes for several inputs"
        )
    return tuple(int(n) for n in shape)
