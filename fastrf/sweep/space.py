"""Spaces of networks: what a sweep runs over, from a TOML file or a mapping."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from fastrf.network import Network
from fastrf.sweep.chain import Chain


class Point:
    """One network of a space, not built yet.

    Attributes:
        parameters: the point's columns in the table, name → JSON scalar or list.
    """

    __slots__ = ("parameters",)

    parameters: dict[str, Any]

    @property
    def options(self) -> dict[str, Any]:
        """The keywords of `fastrf.erf` that the space gives (unit, input_size, output, …).

        Raises:
            InputError: the point is invalid.
        """
        raise NotImplementedError

    def network(self) -> Network:
        """The point's network.

        Raises:
            InputError: the point is invalid; the message says where and why.
        """
        raise NotImplementedError

    def chain(self) -> Chain | None:
        """The point's network as a packed chain, or None where it is not a chain.

        Raises:
            InputError: the point is invalid, as `network` would say.
        """
        raise NotImplementedError


class Space:
    """The points of a space, in a fixed order.

    Args:
        content: the content of a space file, see this module's text.
        source: what messages call it, such as its file name.
    """

    def __init__(self, content: Mapping[str, Any], *, source: str = "space") -> None:
        raise NotImplementedError

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Space:
        """Reads a space from a ``.toml`` file."""
        raise NotImplementedError

    def __len__(self) -> int:
        """Number of points."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Point]:
        """The points one by one, in the order of the file: the last parameter varies fastest."""
        raise NotImplementedError
