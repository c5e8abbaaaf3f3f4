"""Layers that join maps, and layers that pick and reorder channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from fastrf.errors import InputError
from fastrf.layers.base import Layer
from fastrf.layers.checks import checked, flag, whole


@dataclass(frozen=True)
class Add(Layer):
    """Sum of maps (a map of one position or of one channel is broadcast)."""

    inputs: ClassVar[tuple[int, int | None]] = (1, None)

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        known = {c for c in channels if c is not None}
        wide = known - {1}
        if len(wide) > 1:
            raise InputError(
                f"{type(self).__name__}: the maps read have {sorted(known)} channels; "
                f"they must be equal"
            )
        if wide:
            return wide.pop()
        return None if None in channels else 1

    def told(self, channels: int | None) -> int | None:
        return channels


@dataclass(frozen=True)
class Multiply(Add):
    """Product of maps: the gradient of each factor passes with gain 1.

    Args:
        mean_field: whether it passes with the variance of the other factors instead, as far as the
            mean field knows that (see `fastrf.meanfield`).
    """

    mean_field: bool = checked(flag, False, kw_only=True)

    def initialised(self, scheme: str) -> Self:
        return replace(self, mean_field=True)

    @property
    def depends_on_network(self) -> bool:
        return self.mean_field

    @property
    def mean_factor(self) -> float | None:
        return None  # the other factors depend on the data


@dataclass(frozen=True)
class Concat(Layer):
    """Concatenation along the channels."""

    inputs: ClassVar[tuple[int, int | None]] = (1, None)

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        known = [c for c in channels if c is not None]
        return sum(known) if len(known) == len(channels) else None


@dataclass(frozen=True)
class ChannelSlice(Layer):
    """Channels start … stop−1, every `step`-th (a split is one slice per part).

    `start` and `stop` may count from the end, as in Python's slices.
    """

    start: int = checked(whole(None), 0)
    stop: int | None = checked(whole(None), None)
    step: int = checked(whole(1), 1)

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        if channels[0] is None:
            raise InputError(
                "ChannelSlice: the number of channels must be known; "
                "give channels= to Input or to the layers before"
            )
        count = len(range(channels[0])[self.start : self.stop : self.step])
        if not count:
            raise InputError(
                f"ChannelSlice: {self.start}:{self.stop}:{self.step} takes none of the "
                f"{channels[0]} channels"
            )
        return count


@dataclass(frozen=True)
class ChannelShuffle(Layer):
    """ShuffleNet's shuffle: channels as a (groups, C/groups) table, transposed."""

    groups: int = checked(whole(1), 1)

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        if channels[0] is not None and channels[0] % self.groups:
            raise InputError(
                f"ChannelShuffle: groups={self.groups} must divide the {channels[0]} channels"
            )
        return channels[0]

    def told(self, channels: int | None) -> int | None:
        return channels
