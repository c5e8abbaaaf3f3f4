"""A layer's own weights, channel by channel, as a value that compares and hashes by its content."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastrf.errors import InputError, short
from fastrf.exchange import REFUSED, detached, hosted
from fastrf.layers.checks import LARGEST

MUTED = 2.0**-200
"""The gain that stands for 0, which a layer cannot have: what passes it is below all rounding."""


class Weights:
    """An array of weights that nobody can change.

    Args:
        values: numbers of any shape (float32 stays float32, all else becomes float64), or what
            `packed` made of them.

    Raises:
        InputError: they are no numbers, or not finite.
    """

    def __init__(self, values: Any) -> None:
        if isinstance(values, Mapping):
            values = _unpacked(values)
        try:
            given = hosted(detached(values))
            kept = np.float32 if given.dtype in (np.float16, np.float32) else np.float64
            if given.dtype.kind == "c":
                raise TypeError
            self.array: NDArray[Any] = np.array(given, dtype=kept, order="C")
        except REFUSED:
            raise InputError(f"weights={short(values)} must be an array of numbers") from None
        if not self.array.size or not np.isfinite(self.array).all():
            raise InputError(
                f"weights of shape {self.array.shape} must be finite numbers, and some; check the "
                f"model"
            )
        largest = max(float(self.array.max()), -float(self.array.min()))
        if largest > LARGEST:
            raise InputError(
                f"weights of shape {self.array.shape} reach {largest:.3g}, whose "
                f"squares are beyond all numbers; scale them to at most {LARGEST:g}"
            )
        self.array.flags.writeable = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Numbers per axis."""
        return self.array.shape

    def squares(self) -> NDArray[np.float64]:
        """The variances that the weights stand for."""
        squares: NDArray[np.float64] = np.square(self.array, dtype=np.float64)
        return squares

    def packed(self) -> dict[str, Any]:
        """The array as numbers and text, for a file."""
        dtype = self.array.dtype.newbyteorder("<")
        data = base64.b64encode(self.array.astype(dtype, copy=False).tobytes()).decode()
        return {"shape": list(self.shape), "dtype": dtype.name, "base64": data}

    @cached_property
    def digest(self) -> str:
        """SHA-256 of shape and values, as hexadecimal digits."""
        wide = self.array.astype("<f8", copy=False)
        return hashlib.sha256(repr(self.shape).encode() + wide.tobytes()).hexdigest()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Weights):
            return NotImplemented
        return self is other or self.digest == other.digest

    def __hash__(self) -> int:
        # Without the digest: layers are looked up by their values, and weights may be large.
        ends = (self.array.flat[0], self.array.flat[-1]) if self.array.size else ()
        return hash((self.shape, *ends))

    def __repr__(self) -> str:
        return f"Weights(shape={self.shape}, sha256={self.digest[:8]}…)"


def _unpacked(packed: Mapping[str, Any]) -> NDArray[Any]:
    try:
        data = base64.b64decode(packed["base64"], validate=True)
        dtype = np.dtype(str(packed["dtype"])).newbyteorder("<")
        if dtype.kind != "f":
            raise TypeError(dtype)
        return np.frombuffer(data, dtype).reshape(packed["shape"]).astype(dtype.newbyteorder("="))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"weights={short(packed)} must hold shape, dtype and base64 as a saved network does "
            f"({error})"
        ) from None


def as_weights(values: Any) -> Weights:
    """The values as `Weights`, which they may be already."""
    return values if isinstance(values, Weights) else Weights(values)


def derived(owner: str, stated: float, own: float) -> float:
    """The gain that weights have, where no other one is stated."""
    if stated not in (1.0, own):
        raise InputError(
            f"{owner}: gain={stated} is not that of its weights, {own}; leave out one of the two"
        )
    return own


def check_channels(layer: Any, read: int | None) -> None:
    """Whether the weights that a bound layer holds are for the channels that it reads.

    Raises:
        InputError: they are not.
    """
    if read is None or layer.fits(read):
        return
    raise InputError(
        f"weights of shape {layer.weights.shape} do not fit the {read} channels read; check them"
        + (f" and groups={layer.groups}" if hasattr(layer, "groups") else "")
    )


def weights_of(layer: object) -> Weights | None:
    """The weights that a bound layer holds."""
    found = getattr(layer, "weights", None)
    return found if isinstance(found, Weights) else None
