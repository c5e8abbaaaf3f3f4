"""The effective receptive field of a real PyTorch module, measured by backward passes.

`erf` computes the variance that gradients have with independent random weights; `empirical`
measures it, or that of a trained module on images. Autograd and statistics alone: no engine, no
formula of fastrf's has a part in the image, so that the two can be held against each other
(`compare`). The theoretical receptive field beside it is that of the imported network.

The modules build on each other in this order: `subject` (a copy of the module, run and read),
`choosing` (which map is meant), `theory` (the network beside it), `samples` (images), `schemes`
(weights), `moments` (means and errors), `measuring` (the passes).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrf.empirical.choosing import choose
from fastrf.empirical.measuring import Measuring, check_options, checked_channel
from fastrf.empirical.moments import Moments
from fastrf.empirical.samples import samples_of
from fastrf.empirical.schemes import Initialise, prepared
from fastrf.empirical.subject import Subject
from fastrf.empirical.theory import Theory, beside, imported, input_key, stand_in
from fastrf.erf import ERF
from fastrf.errors import MissingExtra, short
from fastrf.lowering import index_of_unit
from fastrf.network import Network

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import nn

__all__ = ["empirical"]

ENOUGH = 32
"""Effective draws below which standard errors are unsure themselves."""


def empirical(
    module: nn.Module,
    images_or_shape: Sequence[int] | Mapping[str, Any] | Iterable[Any],
    output: str | None = None,
    unit: str | int | Sequence[int] = "center",
    *,
    draws: int | None = None,
    initialise: Initialise = None,
    channel: int | str | None = None,
    cotangents: int = 1,
    seed: int = 0,
    training: bool = False,
    input: str | int | None = None,
    network: Network | None = None,
    memory_limit: int | None = None,
    progress: Callable[[float], None] | None = None,
) -> ERF:
    """The effective receptive field of a unit of a real module, measured by its gradients.

    The image is the mean of the squared gradient over draws and input channels, of sum 1; that
    of random weights is what `erf` computes. `standard_error` says how sure each pixel is.

    Args:
        module: any `torch.nn.Module`, on any device; it is copied, and neither run nor changed.
        images_or_shape: a shape (N, C, spatial…) for standard normal images, or shapes for several
            inputs, as for `from_torch`; or an array or tensor of images, or a mapping of some for
            several inputs; or an iterable of batches (arrays; tuples or mappings of arrays for
            several inputs), which are taken to the device one by one.
        output: the map that the unit is on: the path of a submodule ("layer3"; "layer1.0.relu_1"
            is its second call), or a key or number in what the module returns. Default: what it
            returns, or the last map before it lost its spatial extent.
        unit: "center" (index ⌊n/2⌋) or one index per axis.
        draws: how many independent samples are taken; default: as many as there are images, or
            100. Where the weights stay and the module is in evaluation, every image is a draw;
            otherwise the images that share weights or batch statistics are one: the N of a shape,
            or a batch of an iterable. (Each image of an array is a draw with weights of its own.)
        initialise: None measures the module as it is. Otherwise every draw has new weights: by a
            scheme ("unit", which is what `erf` takes for granted of imported networks; "he",
            "he-fan-out", "lecun", "glorot", "orthogonal", "delta-orthogonal"; "pytorch": every
            `reset_parameters`), by a mapping parameter name → standard deviation of normal
            weights, or by a function that fills the module it is given. Schemes set biases to
            zero and normalising layers to their start.
        channel: None gives the unit's channels independent signs, so that the mean over draws is
            the sum over channels of squared gradients; a number takes that channel; "sum" adds
            the channels up, as scripts for trained networks do (Ding et al. 2022).
        cotangents: backward passes for each image, with signs of their own; more of them average
            out the signs where images are few.
        seed: of images, signs, weights and dropout. PyTorch's own random state stays as it is.
        training: run the module as in training (dropout is active, batch normalisation takes its
            statistics over the batch), whatever mode it is in. Default: as in evaluation.
        input: the input map, by its name or number, where the module has several.
        network: the module's network, where it is at hand; by default it is imported. Where
            that is not possible, one layer that reads the whole map stands in for it: the
            theoretical field is then the whole image, and the result's assumptions say so.
        memory_limit: bytes that what passes at once may take; default: what this machine's cache
            or GPU deals with well.
        progress: called with the share of the draws that is done.

    Returns:
        An `ERF` with `standard_error`, `draws` and `groups`. Its `lost_mass` is NaN, as what falls
        into padding is not measured; `plan` is a record of how it was measured.

    Raises:
        InputError: no module, images that it does not run on, or an output that is no map.
        EmptyFieldError: no gradient reached the input.
        MissingExtra: the package ``torch`` is not installed.
    """
    try:
        import torch
    except ImportError:
        raise MissingExtra(
            'measuring gradients needs the package torch; pip install "fastrf[torch]"'
        ) from None
    check_options(draws, cotangents, seed, memory_limit)
    subject = Subject(module, training)
    gpus = [subject.device] if subject.device.type == "cuda" else []
    with torch.random.fork_rng(gpus), torch.inference_mode(False), torch.enable_grad():
        torch.manual_seed(seed)
        weights = prepared(initialise, subject.module)
        generator = torch.Generator().manual_seed(seed)
        samples = samples_of(
            images_or_shape,
            training=training,
            renewed=weights is not None,
            dtype=subject.dtype,
            device=subject.device,
            generator=generator,
        )
        count = samples.number(draws)
        key = input_key(samples.first, input, network)
        if weights is not None and not isinstance(weights, Mapping):
            weights(subject.module)  # before it is looked at: it may have nothing to show yet
        seen = subject.look(samples.first, key)
        theory: Theory | str
        if network is None:
            theory = imported(module, samples.first, key, training)
        else:
            theory = beside(network, samples.first, key)
        graph = theory.graph if isinstance(theory, Theory) else None
        spot, node = choose(seen, output, graph)
        if not isinstance(theory, Theory) or node is None:
            reason = theory if isinstance(theory, str) else "the imported network has no such map"
            theory = stand_in(spot, samples.first, key, subject.kind, reason)
            node = theory.network.outputs[0]
        index = index_of_unit(node, spot.size, unit)
        measuring = Measuring(
            subject, samples, spot, index, key, weights, checked_channel(channel, spot),
            cotangents, generator, seed, memory_limit, _said(initialise),
        )  # fmt: skip
        moments, record = measuring.run(count, seen.saved, progress)
    log_total, image = moments.log_total, moments.image()
    origin, window = _support(image)
    return ERF(
        values=image[window],
        origin=origin,
        log_gain=log_total + measuring.log_scale,
        lost_mass=math.nan,
        dropped_mass=0.0,
        network=theory.network,
        node=node,
        unit=index,
        input=theory.input,
        input_sizes=theory.sizes,
        ignore_global=False,
        inexact=(_sampled(moments),),
        assumptions=theory.assumptions,
        plan=record,
        standard_error=moments.standard_error()[window],
        draws=moments.draws,
        groups=moments.groups()[(slice(None), *window)],
    )


def _support(image: NDArray[np.float64]) -> tuple[tuple[int, ...], tuple[slice, ...]]:
    """The smallest box that holds all that is not zero: its first pixel, and its extent."""
    spans = []
    for axis in range(image.ndim):
        others = tuple(a for a in range(image.ndim) if a != axis)
        places = np.flatnonzero(image.any(axis=others))
        spans.append(slice(int(places[0]), int(places[-1]) + 1))
    return tuple(span.start for span in spans), tuple(spans)


def _sampled(moments: Moments) -> str:
    """Why the field is approximate."""
    said = f"a sample: the mean of {moments.draws} draws, see standard_error"
    if moments.effective_draws < ENOUGH:
        said += (
            f"; a few of them make it, {moments.effective_draws:.3g} of equal gain would weigh as "
            f"much, so that the errors are unsure, too"
        )
    return said


def _said(initialise: Initialise) -> str:
    """What the weights' distribution is called in the record."""
    if initialise is None:
        return "as they are"
    if isinstance(initialise, str):
        return f"new in each draw, {initialise}"
    if isinstance(initialise, Mapping):
        return "new in each draw, normal with deviations of one's own"
    return f"new in each draw, by {getattr(initialise, '__name__', short(initialise))}"
