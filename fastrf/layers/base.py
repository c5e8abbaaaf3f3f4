"""What all layers have in common, and the two that do nothing: `Input` and `Identity`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Self

import numpy as np

from fastrf.layers.checks import channel_count, checked
from fastrf.maps import Size, SpatialMap


@dataclass(frozen=True)
class Layer:
    """Base of all layers. A layer without further fields passes every pixel on."""

    inputs: ClassVar[tuple[int, int | None]] = (1, 1)
    """Least and greatest number of maps that the layer reads (None: no limit)."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # Before `dataclass` makes its own, which fail where a value is an array.
        for name in ("__eq__", "__hash__"):
            if name not in cls.__dict__:
                setattr(cls, name, getattr(Layer, name))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Layer) or type(other) is not type(self):
            return NotImplemented
        return self is other or self._values == other._values

    def __hash__(self) -> int:
        return hash((type(self), self._values))

    @property
    def _values(self) -> tuple[Any, ...]:
        values = tuple([getattr(self, name) for name in self.__dataclass_fields__])
        for value in values:
            if isinstance(value, list) or hasattr(value, "tolist"):
                return tuple(map(_frozen, values))
        return values

    @property
    def kind(self) -> str:
        """The lower-case name used for automatic node names and in tables."""
        return type(self).__name__.lower()

    def bind(self, ndim: int) -> Self:
        """This layer for `ndim` axes: every value checked and spelled out per axis.

        Raises:
            InputError: a value breaks a rule; the message says which and the remedy.
        """
        owner, changes = type(self).__name__, {}
        for f in fields(self):
            if check := f.metadata.get("check"):
                changes[f.name] = check(owner, f.name, getattr(self, f.name), ndim)
        return replace(self, **changes)._bound(ndim)

    def _bound(self, ndim: int) -> Self:
        """Checks and simplifications beyond one field; called by `bind`."""
        return self

    @property
    def implied_ndim(self) -> int | None:
        """The number of axes that a per-axis tuple of this layer implies, if there is one."""
        for f in fields(self):
            value = getattr(self, f.name)
            several = isinstance(value, tuple | list) or (
                isinstance(value, np.ndarray) and value.ndim > 0
            )
            if several and "per_axis" in f.metadata:
                return len(value)
        return None

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        """Channels of the output map, given those of the maps read (None: not known)."""
        return channels[0]

    @property
    def channels_read(self) -> int | None:
        """Channels of the map that the weights of a bound layer are for; None: they do not tell."""
        return None

    def told(self, channels: int | None) -> int | None:
        """Channels of the maps read, as the weights of a bound layer tell, or the number of those
        that it writes (None: not known)."""
        keeps = type(self).output_channels is Layer.output_channels
        return channels if self.channels_read is None and keeps else self.channels_read

    @property
    def fits_fewer(self) -> bool:
        """Whether `channels_read` is the most that the weights fit, of several numbers."""
        return False

    def fits(self, channels: int) -> bool:
        """Whether the weights of a bound layer, if it holds any, are for so many channels read."""
        return self.channels_read in (None, channels)

    def maps(self, size: Size | None, ndim: int) -> tuple[SpatialMap, ...]:
        """The primitive maps from input to output, in forward order; () where nothing moves.

        Args:
            size: size of the map that is read, or None on the unbounded grid.
            ndim: the number of axes that the layer is bound to.
        """
        return ()

    @property
    def pointwise_gain(self) -> float:
        """Gain of a layer that moves nothing: the mean square of its factors."""
        return 1.0

    def initialised(self, scheme: str) -> Self:
        """The layer in a network whose weights are drawn by a scheme."""
        return self

    @property
    def depends_on_network(self) -> bool:
        """Whether its gain follows from the network around it; see `fastrf.meanfield`."""
        return False

    @property
    def mean_factor(self) -> float | None:
        """Mean of the factors whose mean square is `pointwise_gain`; None where it is not known.

        What two pixels' gradients have in common passes with its square, as the factors of
        different pixels count as independent.
        """
        return 1.0


def _frozen(value: Any) -> Any:
    """A value that can be compared and hashed as a whole: lists, arrays and tensors as tuples."""
    if hasattr(value, "tolist"):
        return _frozen(value.tolist())
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


@dataclass(frozen=True)
class Input(Layer):
    """The network's input map, with its number of channels where channels matter."""

    inputs: ClassVar[tuple[int, int | None]] = (0, 0)
    channels: int | None = checked(channel_count, None)

    def output_channels(self, channels: Sequence[int | None]) -> int | None:
        return self.channels


@dataclass(frozen=True)
class Identity(Layer):
    """Passes its input on."""
