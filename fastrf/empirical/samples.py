"""What the module is shown: random images of a shape, given ones, or batches of them."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

from fastrf.device import HOST
from fastrf.empirical.subject import Inputs
from fastrf.errors import InputError, PlanError, short
from fastrf.exchange import hosted
from fastrf.layers.checks import is_whole

if TYPE_CHECKING:
    import torch

DRAWS = 100
"""Draws where nothing says how many: a standard error of some 15 % of a pixel and less."""


@dataclass(frozen=True)
class Samples:
    """Images for any number of draws.

    Attributes:
        kind: what they are, for the record.
        first: the inputs of one draw, to look at the module with.
        shared: images of a draw, which go through the module together.
        draws: how many draws there are (without end: `sys.maxsize`); None: as many as are wanted.
        together: whether the images of a draw need a batch of their own.
        alike: whether all draws have one shape, so that several can be stacked.
    """

    kind: str
    first: Inputs
    shared: int
    draws: int | None
    together: bool
    alike: bool
    _more: Any

    def number(self, draws: int | None) -> int:
        """How many draws are taken where `draws` are asked for; all there are by default.

        Raises:
            InputError: there are not so many.
        """
        if draws is None:
            return DRAWS if self.draws is None else self.draws
        if self.draws is not None and draws > self.draws:
            raise InputError(
                f"draws={draws} is more than the {self.draws} images given, each of which is one "
                f"draw; leave draws out, or give more images"
            )
        return draws

    def chunks(self, draws: int, most: int) -> Iterator[tuple[Inputs, int]]:
        """The inputs of so many draws, at most `most` at a time, and how many they are."""
        yield from self._more(draws, most)


def samples_of(
    given: Any,
    *,
    training: bool,
    renewed: bool,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
) -> Samples:
    """Reads what `empirical` was given.

    Args:
        given: see `empirical`.
        training: whether the images of a batch depend on each other (by its statistics).
        renewed: whether every draw has weights of its own. Either way the images that go through
            the module together are one draw; otherwise each of them is.
        dtype, device: of the tensors that are made.
        generator: draws the random images, on the CPU.

    Raises:
        InputError: it is neither shapes nor images.
    """
    shapes = _shapes(given)
    if shapes is not None:
        return _random(shapes, training or renewed, dtype, device, generator)

    def tensors(batch: Any) -> Inputs:
        return {key: _tensor(value, dtype, device) for key, value in _by_key(batch).items()}

    if _is_array(given) or isinstance(given, Mapping):
        images = tensors(given)
        return _one_batch(images) if training else _images(images, renewed)
    if not isinstance(given, Iterable) or isinstance(given, str | bytes):
        raise InputError(
            f"{short(given)} is neither a shape nor images; give (N, C, spatial…), an array of "
            f"images or an iterable of batches"
        )
    return _batches(map(tensors, given), training or renewed)


def _random(
    shapes: Mapping[int | str, tuple[int, ...]],
    together: bool,
    dtype: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
) -> Samples:
    """Standard normal images, new ones for every draw."""
    import torch

    shared = next(iter(shapes.values()))[0] if together else 1
    _check_room(shapes, shared, dtype)

    def drawn(draws: int) -> Inputs:
        sizes = {key: (draws * shared, *shape[1:]) for key, shape in shapes.items()}
        return {
            key: torch.randn(size, generator=generator, dtype=dtype).to(device)
            for key, size in sizes.items()
        }

    def more(draws: int, most: int) -> Iterator[tuple[Inputs, int]]:
        for start in range(0, draws, most):
            count = min(most, draws - start)
            yield drawn(count), count

    return Samples("standard normal", drawn(1), shared, None, together, True, more)


def _check_room(
    shapes: Mapping[int | str, tuple[int, ...]], shared: int, dtype: torch.dtype
) -> None:
    """Raises PlanError where not even the images of one draw fit into what is free, with their
    gradient and the squares of it; what the module takes besides is not known yet."""
    values = sum(shared * math.prod(shape[1:]) for shape in shapes.values())
    needed, free = values * (2 * dtype.itemsize + 8), HOST.free_memory()
    if needed > free:
        given = " and ".join(str(tuple(shape)) for shape in shapes.values())
        raise PlanError(
            f"images of shape {given} need at least {needed / 2**20:.3g} MiB with their gradients, "
            f"more than the {free / 2**20:.3g} MiB that are free; give smaller ones"
        )


def _one_batch(images: Inputs) -> Samples:
    """The same images together for every draw."""
    count = _length(images)

    def more(draws: int, most: int) -> Iterator[tuple[Inputs, int]]:
        yield from ((images, 1) for _ in range(draws))

    return Samples(f"{count} given, together", images, count, None, True, False, more)


def _images(images: Inputs, renewed: bool) -> Samples:
    """One image a draw; they come again where something else is new."""
    count = _length(images)

    def more(draws: int, most: int) -> Iterator[tuple[Inputs, int]]:
        for start in range(0, draws, most):
            places = [place % count for place in range(start, min(start + most, draws))]
            yield {key: value[places] for key, value in images.items()}, len(places)

    there = None if renewed else count
    return Samples(f"{count} given", _part(images, 0, 1), 1, there, renewed, True, more)


def _batches(batches: Iterator[Inputs], together: bool) -> Samples:
    """Batches as they come: each a draw, or each of its images."""
    first = next(batches, None)
    if first is None:
        raise InputError("the iterable of batches is empty; give at least one batch")

    def more(draws: int, most: int) -> Iterator[tuple[Inputs, int]]:
        for batch in chain([first], batches):
            length = 1 if together else min(_length(batch), draws)
            if together:
                yield batch, 1
            for start in range(0, 0 if together else length, most):
                stop = min(start + most, length)
                yield _part(batch, start, stop), stop - start
            draws -= length
            if not draws:
                return

    shared = _length(first) if together else 1
    looked = first if together else _part(first, 0, 1)
    return Samples("given in batches", looked, shared, sys.maxsize, together, False, more)


def _length(images: Inputs) -> int:
    return len(next(iter(images.values())))


def _part(images: Inputs, start: int, stop: int) -> Inputs:
    return {key: value[start:stop] for key, value in images.items()}


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_shape(value: Any) -> bool:
    return (
        isinstance(value, Sequence)
        and not isinstance(value, str)
        and bool(value)
        and all(map(is_whole, value))
    )


def _shapes(given: Any) -> dict[int | str, tuple[int, ...]] | None:
    """Shapes by the places or names of the inputs; None where no shapes are given."""
    if _is_shape(given):
        named: Mapping[Any, Any] = {0: given}
    elif isinstance(given, Mapping) and given and all(map(_is_shape, given.values())):
        named = given
    elif isinstance(given, Sequence) and given and all(map(_is_shape, given)):
        named = dict(enumerate(given))
    else:
        return None
    shapes = {key: tuple(int(n) for n in shape) for key, shape in named.items()}
    if any(n < 1 for shape in shapes.values() for n in shape):
        raise InputError(f"shape {short(given)} must hold whole numbers of at least 1")
    if len({shape[0] for shape in shapes.values()}) > 1:
        raise InputError(
            f"shapes {short(given)} differ in their first number; it counts the images of a "
            f"batch, which all inputs share"
        )
    return shapes


def _by_key(batch: Any) -> dict[int | str, Any]:
    if isinstance(batch, Mapping):
        return dict(batch)
    return dict(enumerate(batch)) if isinstance(batch, tuple | list) else {0: batch}


def _tensor(value: Any, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    import torch

    if not _is_array(value):
        raise InputError(
            f"a batch holds {short(value)}, a {type(value).__name__}; give arrays or tensors of "
            f"shape (N, C, spatial…), several inputs as a tuple or a mapping of them"
        )
    tensor = value if isinstance(value, torch.Tensor) else torch.as_tensor(hosted(value))
    tensor = tensor.detach().to(device)
    if not tensor.ndim or not len(tensor):
        raise InputError(f"a batch has the shape {tuple(tensor.shape)} and holds no image")
    if not bool(torch.isfinite(tensor).all()):
        raise InputError("the images hold NaN or infinity; gradients at them are none")
    # Images of whole numbers (bytes, say) have no gradients.
    return tensor.to(dtype)
