"""The module that is measured: a copy of it, and where the unit is read.

The module itself is never run or changed. Maps are read off the copy by a forward hook, or off what
it returns; which of them a name means is found out by running it once.
"""

from __future__ import annotations

import copy
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from fastrf.errors import InputError, short
from fastrf.importers.failing import line
from fastrf.importers.torch.tracing import found_in, place

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

Inputs = Mapping[int | str, Any]
"""What `forward` is given: tensors by position or by name."""


@dataclass(frozen=True)
class Spot:
    """Where a map is read.

    Attributes:
        name: what it is called: the path of a module, with "_1" for its second call and so on, or
            the place in what the module returns ("out", "0"; "" for the tensor itself).
        module: the path of the submodule that computes it; None: the module returns it.
        call: which of the submodule's calls; None: the last one.
        shape: of the tensor, with its batch.
        memory: where the tensor lay: what two spots share is one tensor.
        last: whether channels come last.
    """

    name: str
    module: str | None
    call: int | None
    shape: tuple[int, ...]
    memory: int = field(repr=False, default=0)
    last: bool = False

    @property
    def size(self) -> tuple[int, ...]:
        """Pixels of the map per axis."""
        return self.shape[1:-1] if self.last else self.shape[2:]

    @property
    def channels(self) -> int:
        return self.shape[-1] if self.last else self.shape[1]

    def ordered(self, size: tuple[int, ...] | None) -> Spot | None:
        """The same with channels where a map of this size has them; None where none has."""
        if size is None or self.size == size:
            return self
        other = replace(self, last=not self.last)
        return other if other.size == size else None


@dataclass(frozen=True)
class Seen:
    """What one run of the module showed.

    Attributes:
        returned: the maps that it returns.
        inner: the maps that its submodules compute, in the order in which they do.
        saved: bytes that the backward pass keeps for one image, without weights.
    """

    returned: tuple[Spot, ...]
    inner: tuple[Spot, ...]
    saved: int


class Subject:
    """A copy of a module that can be run, initialised and read.

    Attributes:
        module: the copy; its parameters need no gradients.
        device, dtype: those of its weights; half precision became float32.

    Raises:
        InputError: it is no module, has no weights yet or cannot be copied.
    """

    def __init__(self, module: Any, training: bool) -> None:
        import torch

        self.kind = type(module).__name__
        if not isinstance(module, torch.nn.Module):
            raise InputError(
                f"{short(module)} is no torch.nn.Module; "
                + (
                    "it is a class, give an instance of it"
                    if isinstance(module, type)
                    else "wrap a function in a module's forward"
                )
            )
        tensors = [*module.parameters(), *module.buffers()]
        if any(map(torch.nn.parameter.is_lazy, tensors)):
            raise InputError(
                f"{self.kind} is lazy and has no weights yet; run it once on an input of its "
                f"real shape"
            )
        if any(t.device.type == "meta" for t in tensors):
            raise InputError(
                f"{self.kind} has no weights (it is on the meta device), and gradients need some; "
                f"make it on a real device, or call its to_empty and initialise it"
            )
        try:
            self.module: nn.Module = copy.deepcopy(module)
        except Exception as error:
            raise InputError(
                f"{self.kind} cannot be copied: {line(error)}; measure it before it has run, or "
                f"without what cannot be copied"
            ) from None
        self.module.train(training).zero_grad(set_to_none=True)
        self.hold()
        floating = [t.dtype for t in tensors if t.dtype.is_floating_point]
        self.dtype = floating[0] if floating else torch.get_default_dtype()
        if self.dtype in (torch.float16, torch.bfloat16):
            # Squares of gradients leave their range.
            self.module.float()
            self.dtype = torch.float32
        self.device: torch.device = tensors[0].device if tensors else torch.device("cpu")
        self._spot: Spot | None = None
        self._unit: tuple[int, ...] = ()
        self._read: Tensor | None = None
        self._calls = 0

    def hold(self) -> None:
        """Parameters need no gradients of their own."""
        self.module.requires_grad_(False)

    @property
    def weight_bytes(self) -> int:
        """Bytes of the parameters."""
        return sum(p.numel() * p.element_size() for p in self.module.parameters())

    # --- where maps are

    def look(self, inputs: Inputs, wrt: int | str) -> Seen:
        """Runs the module once and notes every map that can be read.

        Raises:
            InputError: it does not run on such inputs.
        """
        import torch

        x: Tensor = inputs[wrt]
        inner: list[Spot] = []
        calls: Counter[str] = Counter()
        containers = {path for path, part in self.module.named_modules() if list(part.children())}

        def noting(path: str) -> Any:
            def hook(_: Any, __: Any, returned: Any) -> None:
                for _, tensor in found_in(returned, torch.Tensor):
                    if _is_map(tensor, x):
                        call = None if path in containers else calls[path]
                        name = f"{path}_{call}" if call else path
                        inner.append(Spot(name, path, call, tuple(tensor.shape), tensor.data_ptr()))
                        calls[path] += 1
                        break

            return hook

        hooks = [
            part.register_forward_hook(noting(path))
            for path, part in self.module.named_modules()
            if path
        ]
        own = {t.data_ptr() for t in (*self.module.parameters(), *self.module.buffers())}
        saved: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            if tensor.data_ptr() not in own:
                saved[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        try:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                returned = self.run({**inputs, wrt: x.detach().requires_grad_()})
        finally:
            for hook in hooks:
                hook.remove()
        spots = [
            Spot(name, None, None, tuple(tensor.shape), tensor.data_ptr())
            for name, tensor in found_in(returned, torch.Tensor)
            if _is_map(tensor, x)
        ]
        return Seen(tuple(spots), tuple(inner), sum(saved.values()) // len(x))

    def run(self, inputs: Inputs) -> Any:
        """What the module returns for inputs.

        Raises:
            InputError: it does not run on them; the message names the line.
        """
        args, kwargs = _spelled(inputs)
        try:
            return self.module(*args, **kwargs)
        except InputError:
            raise
        except Exception as error:
            shapes = [tuple(v.shape) if hasattr(v, "shape") else v for v in inputs.values()]
            where = place(traceback.extract_tb(error.__traceback__))
            raise InputError(
                f"{self.kind} does not run on inputs of the shapes {shapes}: {where}: "
                f"{line(str(error).partition(chr(10))[0])}; check the shape and the module"
            ) from None

    # --- the unit

    @contextmanager
    def reading(self, spot: Spot, unit: tuple[int, ...]) -> Iterator[None]:
        """While it is entered, `values` reads this unit of this map."""
        self._spot, self._unit = spot, unit
        if spot.module is None:
            yield
            return
        handle = self.module.get_submodule(spot.module).register_forward_hook(self._note)
        try:
            yield
        finally:
            handle.remove()
            self._read = None

    def _note(self, _: Any, __: Any, returned: Any) -> None:
        import torch

        assert self._spot is not None
        for _, tensor in found_in(returned, torch.Tensor):
            if tensor.ndim == len(self._spot.shape):
                if self._spot.call in (None, self._calls):
                    # A copy: what follows may write into the map.
                    self._read = self._at_unit(tensor).clone()
                self._calls += 1
                return

    def _at_unit(self, tensor: Tensor) -> Tensor:
        assert self._spot is not None
        batch = (slice(None),) if self._spot.last else (slice(None), slice(None))
        return tensor[(*batch, *self._unit)]

    def values(self, inputs: Inputs, state: Mapping[str, Tensor] | None = None) -> Tensor:
        """All channels of the unit, (images, channels), with other parameters and buffers where
        `state` has some."""
        import torch

        assert self._spot is not None
        self._read, self._calls = None, 0
        if state is None:
            returned = self.run(inputs)
        else:
            args, kwargs = _spelled(inputs)
            returned = torch.func.functional_call(self.module, dict(state), args, kwargs)
        if self._spot.module is None:
            return self._at_unit(dict(found_in(returned, torch.Tensor))[self._spot.name])
        if self._read is None:
            raise InputError(
                f"{self.kind} did not compute {self._spot.name!r} this time, as it did before; "
                f"choose an output that does not depend on the data"
            )
        return self._read


def _is_map(tensor: Tensor, x: Tensor) -> bool:
    return tensor.ndim == x.ndim and tensor.is_floating_point() and len(tensor) == len(x)


def _spelled(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and named arguments."""
    args = tuple(inputs[key] for key in sorted(k for k in inputs if isinstance(k, int)))
    return args, {key: value for key, value in inputs.items() if isinstance(key, str)}
