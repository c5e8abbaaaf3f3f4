"""The passes: unit after unit backwards, batch after batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastrf.empirical.moments import Moments
from fastrf.empirical.samples import Samples
from fastrf.empirical.subject import Inputs, Spot, Subject
from fastrf.errors import InputError, short
from fastrf.layers.checks import is_whole

if TYPE_CHECKING:
    from torch import Generator, Tensor

AT_ONCE = 128 << 20
"""Bytes of what the backward pass keeps, on the CPU: beyond some 64 draws nothing is gained
(ResNet-18 and chains of 6 layers on one core of an Intel Xeon)."""

MOST = 256
"""Draws that pass at once."""

SMALL = 4 << 20
"""Bytes of weights up to which networks of different weights run side by side (`torch.func.vmap`):
beyond, grouped convolutions are slower than one network after the other (a ResNet-18 of 16
channels, 2.8 MB, takes half the time, one of 64 channels, 45 MB, three times as long)."""


@dataclass(frozen=True)
class Measurement:
    """How a field was measured.

    Attributes:
        module: the module's class.
        device, dtype: where and in which precision it ran.
        training: whether as in training.
        weights: "as they are", or how each draw's were drawn.
        images: what it was shown.
        channels: what was put on the unit's channels.
        draws: independent samples.
        effective_draws: draws of equal gain that would weigh as much; see `Moments`.
        passes: images that went forward and backward, times the cotangents of each.
        at_once: draws that passed side by side.
        seed: of everything random.
    """

    module: str
    device: str
    dtype: str
    training: bool
    weights: str
    images: str
    channels: str
    draws: int
    effective_draws: float
    passes: int
    at_once: int
    seed: int

    def __str__(self) -> str:
        mode = "training" if self.training else "evaluation"
        return (
            f"gradients of {self.module} in {mode}, {self.dtype} on {self.device}\n"
            f"  weights: {self.weights}\n"
            f"  images: {self.images}\n"
            f"  channels of the unit: {self.channels}\n"
            f"  {self.draws} draws (worth {self.effective_draws:.4g} of equal gain), "
            f"{self.passes} backward passes, {self.at_once} draws at once, seed {self.seed}"
        )


@dataclass(frozen=True)
class Measuring:
    """What is measured.

    Attributes:
        subject, samples: the module and what it is shown.
        spot, unit: where the unit is read.
        wrt: the input that gradients are taken of.
        weights: what draws the weights; None: they stay.
        channel, cotangents: see `empirical`.
        generator, seed: what draws the signs, and what it was seeded with.
        memory_limit: bytes; None: `AT_ONCE`, or half of what a GPU has free.
        scheme: what the weights' distribution is called.
    """

    subject: Subject
    samples: Samples
    spot: Spot
    unit: tuple[int, ...]
    wrt: int | str
    weights: Mapping[str, float] | Callable[[Any], Any] | None
    channel: int | str | None
    cotangents: int
    generator: Generator
    seed: int
    memory_limit: int | None
    scheme: str

    def run(
        self, draws: int, saved: int, progress: Callable[[float], None] | None
    ) -> tuple[Moments, Measurement]:
        """The moments of so many draws, and the record; `saved` is what one image takes, in
        bytes."""
        images = 0
        shape = tuple(self.samples.first[self.wrt].shape[2:])
        moments = Moments(shape, self.subject.device)
        with self.subject.reading(self.spot, self.unit):
            most = self._at_once(draws, saved)
            side_by_side = most > 1 and self.weights is not None
            squares = self._side_by_side if side_by_side else self._together
            for inputs, count in self.samples.chunks(draws, most):
                found = squares(inputs, count)
                # (draws, images of each, channels, *pixels)
                found = found.reshape(count, -1, *found.shape[1:])
                images += found.shape[0] * found.shape[1]
                moments.add(found.mean((1, 2)))
                if progress is not None:
                    progress(min(1.0, moments.draws / draws))
        return moments, self._record(moments, most, images)

    def _at_once(self, draws: int, saved: int) -> int:
        """Draws that pass at once."""
        each = max(saved, 1) * self.samples.shared
        if self.weights is not None:
            own = self.subject.weight_bytes
            if own > SMALL or not self.samples.alike or not self._vectorises():
                return 1
            each += 2 * own
        elif self.samples.together:
            return 1
        limit = self.memory_limit
        if limit is None:
            limit = AT_ONCE
            if self.subject.device.type == "cuda":
                import torch

                limit = torch.cuda.mem_get_info(self.subject.device)[0] // 2
        return max(1, min(draws, MOST, limit // each))

    # --- one batch

    def _together(self, inputs: Inputs, count: int) -> Tensor:
        """Σ over cotangents of g²: weights that all images share."""
        import torch

        subject = self.subject
        if self.weights is not None:
            self._draw_weights()
        x = inputs[self.wrt].detach().requires_grad_()
        y = subject.values({**inputs, self.wrt: x})
        self._require(y)
        total = torch.zeros(x.shape, dtype=torch.float64, device=x.device)
        signs = self._signs(len(x))
        for number, sign in enumerate(signs):
            more = number + 1 < len(signs)
            (g,) = torch.autograd.grad(y, x, sign, retain_graph=more, allow_unused=True)
            if g is not None:
                total += g.double().square()
        return total / len(signs)

    def _side_by_side(self, inputs: Inputs, count: int) -> Tensor:
        """The same, each draw with weights of its own."""
        import torch

        shared = self.samples.shared
        apart = {k: v.reshape(count, shared, *v.shape[1:]) for k, v in inputs.items()}
        signs = self._signs(count * shared)
        signs = signs.reshape(len(signs), count, shared, -1).transpose(0, 1)
        g = torch.func.vmap(self._pulled, randomness="different")(
            self._stacked(count), apart, signs
        )
        return g.double().square().mean(1).flatten(0, 1)

    def _pulled(self, state: Mapping[str, Tensor], inputs: Inputs, signs: Tensor) -> Tensor:
        """The gradients of one draw, (cotangents, images, channels, *pixels)."""
        import torch

        def values(x: Tensor) -> Tensor:
            return self.subject.values({**inputs, self.wrt: x}, state)

        _, pull, *_ = torch.func.vjp(values, inputs[self.wrt])
        return torch.stack([pull(sign)[0] for sign in signs])

    def _vectorises(self) -> bool:
        """Whether the module runs side by side with itself; in-place statistics, control flow that
        depends on data and operators of one's own may not."""
        two = {k: v.repeat(2, *[1] * (v.ndim - 1)) for k, v in self.samples.first.items()}
        state = self.generator.get_state()
        try:
            self._side_by_side(two, 2)
        except Exception:
            return False
        finally:
            self.generator.set_state(state)
        return True

    def _require(self, y: Tensor) -> None:
        if not y.requires_grad:
            raise InputError(
                f"no gradient leads from {self.spot.name or 'the output'!r} to the input; look for "
                f"detach, no_grad, argmax or rounding in the module"
            )

    # --- weights and signs

    def _draw_weights(self) -> None:
        import torch

        if isinstance(self.weights, Mapping):
            named = dict(self.subject.module.named_parameters())
            with torch.no_grad():
                for name, deviation in self.weights.items():
                    named[name].normal_(0.0, deviation)
        elif self.weights is not None:
            with torch.no_grad():
                self.weights(self.subject.module)
            self.subject.hold()

    def _stacked(self, count: int) -> dict[str, Tensor]:
        """The weights of so many draws, by name, stacked along a first axis."""
        import torch

        module = self.subject.module
        if isinstance(self.weights, Mapping):
            named = dict(module.named_parameters())
            return {
                name: torch.empty(
                    (count, *named[name].shape), dtype=named[name].dtype, device=named[name].device
                ).normal_(0.0, deviation)
                for name, deviation in self.weights.items()
            }
        states = []
        for _ in range(count):
            self._draw_weights()
            held = {**dict(module.named_parameters()), **dict(module.named_buffers())}
            states.append({name: tensor.clone() for name, tensor in held.items()})
        return {name: torch.stack([state[name] for state in states]) for name in states[0]}

    def _signs(self, images: int) -> Tensor:
        """Cotangents, (cotangents, images, channels): of variance 1 on every channel, but for a
        single one."""
        import torch

        channels = self.spot.channels
        shape = (self.cotangents, images, channels)
        if self.channel is None:
            signs = 2 * torch.randint(0, 2, shape, generator=self.generator) - 1
        elif self.channel == "sum":
            signs = torch.ones(shape)
        else:
            signs = torch.zeros(shape)
            signs[..., int(self.channel)] = 1
        return signs.to(device=self.subject.device, dtype=self.subject.dtype)

    def _record(self, moments: Moments, at_once: int, images: int) -> Measurement:
        subject = self.subject
        channels: dict[Any, str] = {None: "independent signs", "sum": "summed"}
        return Measurement(
            module=subject.kind,
            device=str(subject.device),
            dtype=str(subject.dtype).removeprefix("torch."),
            training=subject.module.training,
            weights=self.scheme,
            images=self.samples.kind,
            channels=channels.get(self.channel, f"{self.channel} alone"),
            draws=moments.draws,
            effective_draws=moments.effective_draws,
            passes=images * self.cotangents,
            at_once=at_once,
            seed=self.seed,
        )

    @property
    def log_scale(self) -> float:
        """Natural logarithm of what the mean over the input's channels is multiplied with, to be
        their sum per unit of variance on the unit, all its channels together."""
        single = isinstance(self.channel, int)
        put = 1 if single else self.spot.channels
        return math.log(self.samples.first[self.wrt].shape[1]) - math.log(put)


def checked_channel(channel: int | str | None, spot: Spot) -> int | str | None:
    """Raises InputError for a channel that the map does not have."""
    if channel is None or channel == "sum":
        return channel
    if not is_whole(channel) or not 0 <= int(channel) < spot.channels:
        raise InputError(
            f"channel={short(channel)} is no channel of {spot.name or 'the output'!r}; give None, "
            f"'sum' or a number of 0 … {spot.channels - 1}"
        )
    return int(channel)


def check_options(draws: int | None, cotangents: int, seed: int, memory_limit: int | None) -> None:
    """Raises InputError for numbers out of range."""
    least = {"draws": 1, "cotangents": 1, "seed": 0, "memory_limit": 1}
    given = {"draws": draws, "cotangents": cotangents, "seed": seed, "memory_limit": memory_limit}
    for name, value in given.items():
        optional = name in ("draws", "memory_limit")
        if optional and value is None:
            continue
        if not is_whole(value) or int(value) < least[name]:
            raise InputError(
                f"{name}={short(value)} must be a whole number of at least {least[name]}"
                + (", or None" if optional else "")
            )
