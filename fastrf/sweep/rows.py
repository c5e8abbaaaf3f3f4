"""Rows of the sweep's table, and what workers are told of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fastrf.sweep.columns import RESULTS
from fastrf.sweep.points import Part

Row: TypeAlias = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is computed of every network.

    Attributes:
        device, dtype: as for `fastrf.erf`.
        layers: also the fields of all layers.
        profiles, images: also what is kept beside the figures.
    """

    device: str
    dtype: str
    layers: bool
    profiles: bool
    images: bool


@dataclass(frozen=True, slots=True)
class Item:
    """A graph whose field is to come: its key, its network's fingerprint, where it comes from."""

    key: str
    fingerprint: str
    point: Part


def error_row(key: str, fingerprint: str | None, error: str, seconds: float = 0.0) -> Row:
    """The row of a network that has no field."""
    found = {"key": key, "fingerprint": fingerprint, "error": error, "seconds": seconds}
    return tuple(found.get(name) for name in RESULTS)


def said(error: BaseException) -> str:
    """An error as the table says it."""
    return f"{type(error).__name__}: {error}"


def packed_profiles(profiles: Sequence[NDArray[Any]]) -> bytes:
    """The profiles along all axes, as the table keeps them."""
    whole = np.concatenate(profiles)
    return whole.astype(whole.dtype.newbyteorder("<"), copy=False).tobytes()
