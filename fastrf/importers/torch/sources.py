"""What else stands for a module: programs that `torch.export` recorded, and TorchScript."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fastrf.errors import InputError, short
from fastrf.importers.failing import line
from fastrf.importers.torch.tracing import Shapes, quiet

if TYPE_CHECKING:
    from torch import nn


def as_module(given: Any, shapes: Shapes) -> nn.Module:
    """The module that an import follows.

    Raises:
        InputError: there is none.
    """
    import torch

    if isinstance(given, torch.export.ExportedProgram):
        return given.module()
    if isinstance(given, torch.jit.ScriptModule):
        return _unscripted(given, shapes)
    if isinstance(given, torch.nn.Module):
        return given
    remedy = "wrap a function in a module's forward"
    if isinstance(given, type):
        remedy = f"{given.__name__} is a class, give an instance of it"
    raise InputError(f"{short(given)} is no torch.nn.Module; {remedy}")


def _unscripted(module: Any, shapes: Shapes) -> nn.Module:
    """TorchScript as the program of its operators; what called them, Python, is gone.

    Where it chooses by whether it is trained (a scripted BatchNorm does), it is frozen in
    evaluation, which makes constants of its weights; those count as weights all the same.
    """
    import torch

    if isinstance(shapes, Mapping):
        raise InputError(
            "TorchScript takes its inputs by place; give input_shape as a sequence of shapes, not "
            "by name"
        )
    with quiet(), torch.no_grad():
        inputs = tuple(torch.empty(shape) for shape in shapes)
        try:
            program = _converted(module, inputs)
        except Exception:
            try:
                program = _converted(torch.jit.freeze(copy.deepcopy(module).eval()), inputs)
            except Exception as error:
                raise InputError(
                    f"PyTorch cannot turn this TorchScript into a program for inputs of the shapes "
                    f"{list(shapes)} ({line(error)}); import the module that it was made of"
                ) from None
        found: nn.Module = program.module()
    if not program.state_dict:
        for part in found.modules():
            _count_as_weights(part)
    return found


def _count_as_weights(part: nn.Module) -> None:
    import torch

    for name, value in list(vars(part).items()):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            delattr(part, name)
            part.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))


def _converted(module: Any, inputs: tuple[Any, ...]) -> Any:
    from torch._export.converter import TS2EPConverter

    return TS2EPConverter(module, inputs, {}).convert()
