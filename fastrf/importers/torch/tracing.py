"""From a module to the graph of PyTorch operators that it runs, without weights or data.

The module is copied with fake tensors in the place of its parameters and buffers: PyTorch keeps
their shapes on the meta device and allocates nothing. `torch.export` then records what the copy
does with a fake input. What it refuses for reasons of its own (outputs of a class that it does
not know, say) is recorded by `torch.fx` instead, operator by operator, with the module paths from
hooks; both give the same operators.
"""

from __future__ import annotations

import copy
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, fields, is_dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from fastrf.errors import InputError
from fastrf.importers.failing import line
from fastrf.importers.layout import known
from fastrf.importers.registry import block, extent_behind, of_module
from fastrf.layers import Identity, Layer, Norm
from fastrf.network import Network

if TYPE_CHECKING:
    from torch import Tensor, fx, nn

BOUNDARY = "fastrf::boundary"
"""The operator that stands for a leaf."""

Shapes = Sequence[tuple[int, ...]] | Mapping[str, tuple[int, ...]]
"""Shapes of a module's inputs, in order or by name."""


@dataclass(frozen=True)
class Trace:
    """What a module does with its inputs.

    Attributes:
        graph: its operators.
        inputs: the nodes that stand for the inputs.
        constants: the nodes that stand for parameters and buffers: the module's own tensors.
        outputs: the nodes that it returns, each with its place in what is returned ("out").
        leaves: the networks of registered modules, by the keys of their calls.
        containers: the paths of modules that hold others.
    """

    graph: fx.Graph
    inputs: list[fx.Node]
    constants: Mapping[fx.Node, Tensor]
    outputs: list[tuple[str, fx.Node]]
    leaves: Mapping[str, Network]
    containers: frozenset[str]


def trace(module: nn.Module, shapes: Shapes, *, training: bool) -> Trace:
    """Records what a module does with inputs of these shapes.

    Raises:
        InputError: it does not run on them, or what it runs depends on data; the message names
            the line and the remedy.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    mode = FakeTensorMode()
    hollow = _Hollow(module, mode, training)
    floating = (p.dtype for p in module.parameters() if p.dtype.is_floating_point)
    dtype = next(floating, torch.get_default_dtype())
    with mode:
        if isinstance(shapes, Mapping):
            args: tuple[Tensor, ...] = ()
            kwargs = {name: torch.empty(shape, dtype=dtype) for name, shape in shapes.items()}
        else:
            args, kwargs = tuple(torch.empty(shape, dtype=dtype) for shape in shapes), {}
    with quiet(), torch.no_grad():
        try:
            return _exported(hollow, args, kwargs)
        except Exception as error:
            first = error
        try:
            return _recorded(hollow, args, kwargs)
        except Exception:
            raise _explained(first, module, shapes) from None


# --- the copy -------------------------------------------------------------------------------


class _Hollow:
    """A copy of a module without weights, in which registered modules are leaves.

    Attributes:
        module: the copy.
        original: the module's own tensors, by the numbers of the copy's.
        leaves: as in `Trace`.
    """

    def __init__(self, module: nn.Module, mode: Any, training: bool) -> None:
        self.original: dict[int, Tensor] = {}
        self.leaves: dict[str, Network] = {}
        memo: dict[int, Any] = {}
        for tensor in _tensors(module):
            memo[id(tensor)] = self._fake(tensor, mode)
        try:
            with quiet():
                self.module = copy.deepcopy(module, memo).train(training)
        except Exception as error:
            raise InputError(
                f"{type(module).__name__} cannot be copied: {line(error)}; import it before it "
                f"has run, or without what cannot be copied"
            ) from None
        self.containers = frozenset(
            path for path, part in self.module.named_modules() if path and list(part.children())
        )
        self._stand_in_for_leaves(module)

    def _fake(self, tensor: Tensor, mode: Any) -> Tensor:
        import torch

        if torch.nn.parameter.is_lazy(tensor):
            raise InputError(
                "a lazy module has no weights yet; run it once on an input of its real shape"
            )
        with mode:
            fake = torch.empty(tensor.shape, dtype=tensor.dtype)
            if isinstance(tensor, torch.nn.Parameter):
                fake = torch.nn.Parameter(fake, requires_grad=False)
        self.original[id(fake)] = tensor
        return fake

    def _stand_in_for_leaves(self, module: nn.Module) -> None:
        originals = dict(module.named_modules())
        inside: list[str] = []
        for path, part in self.module.named_modules():
            make = of_module(part) or _known_leaf(part)
            if make is None or any(path.startswith(f"{leaf}.") or not leaf for leaf in inside):
                continue
            inside.append(path)
            _define_boundary()
            part.forward = _leaf(path, make(originals[path]), self.leaves)


def _known_leaf(module: nn.Module) -> Callable[[nn.Module], Layer] | None:
    """Modules that PyTorch writes with operators which hide what they do: local response
    normalisation pools over a map of one more axis, and observers look at the values that they
    pass on."""
    import torch

    if any(kind.__name__ in _OBSERVERS for kind in type(module).__mro__):
        return _passed_on
    return _response_norm if isinstance(module, torch.nn.LocalResponseNorm) else None


_OBSERVERS = ("ObserverBase", "FakeQuantizeBase")
"""The classes of quantisation's observers, which move from package to package."""


def _passed_on(module: nn.Module) -> Layer:
    return Identity()


def _response_norm(module: nn.Module) -> Layer:
    return Norm("lrn")


def _leaf(path: str, made: Any, leaves: dict[str, Network]) -> Callable[..., Tensor]:
    """Stands in for the `forward` of a registered module."""
    import torch

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        maps = [a for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        network = block(f"the module {path!r}", made, len(maps))
        key = f"{path} {len(leaves)}"
        leaves[key] = network
        shapes = [tuple(x.shape) for x in maps]
        behind = extent_behind(network, [s[1:] for s in shapes], len(shapes[0]) - 2)
        extent = known(behind)
        if extent is None:
            raise InputError(
                f"the layers registered for {path!r} do not say how many channels they write; "
                f"give channels="
            )
        like = torch.empty((shapes[0][0], *extent), dtype=maps[0].dtype)
        found: Tensor = torch.ops.fastrf.boundary(maps, like, key)
        return found

    return forward


def _define_boundary() -> None:
    import torch

    if hasattr(torch.ops.fastrf, "boundary"):
        return
    library: Any = torch.library.Library("fastrf", "FRAGMENT")  # type: ignore[no-untyped-call]
    library.define("boundary(Tensor[] maps, Tensor like, str key) -> Tensor")
    library.impl("boundary", _copied, "CompositeExplicitAutograd")
    _LIBRARIES.append(library)


def _copied(maps: list[Tensor], like: Tensor, key: str) -> Tensor:
    return like.clone()


_LIBRARIES: list[Any] = []
"""Keeps the library alive, with which its operator would go."""


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Every tensor that a module holds, those among its plain attributes too."""
    import torch

    yield from module.parameters()
    yield from module.buffers()
    for part in module.modules():
        yield from (value for value in vars(part).values() if isinstance(value, torch.Tensor))


# --- recording ------------------------------------------------------------------------------


def _exported(hollow: _Hollow, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Trace:
    import torch
    from torch.utils import _pytree as pytree

    program = torch.export.export(hollow.module, args, kwargs, strict=False)
    signature, graph = program.graph_signature, program.graph
    held: dict[str, str] = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    named = {
        **dict(hollow.module.named_parameters(remove_duplicate=False)),
        **dict(hollow.module.named_buffers(remove_duplicate=False)),
    }
    lifted = signature.inputs_to_lifted_tensor_constants
    constants: dict[fx.Node, Tensor] = {}
    for node in graph.nodes:
        if node.op == "placeholder" and node.name in held:
            fake = named[held[node.name]]
            constants[node] = hollow.original.get(id(fake), fake)
        elif node.op == "placeholder" and node.name in lifted:
            value = program.constants[lifted[node.name]]
            constants[node] = hollow.original.get(id(value), value)
    by_name = {node.name: node for node in graph.nodes}
    inputs = [by_name[name] for name in signature.user_inputs if isinstance(name, str)]
    returned = pytree.tree_unflatten(list(graph.output_node().args[0]), program.call_spec.out_spec)
    outputs = list(found_in(returned, torch.fx.Node))
    return Trace(graph, inputs, constants, outputs, hollow.leaves, hollow.containers)


def _recorded(hollow: _Hollow, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Trace:
    import torch
    from torch.fx import traceback as recorder
    from torch.fx.experimental.proxy_tensor import make_fx

    names: list[str] = []
    paths: list[str] = []

    def entered(path: str) -> Any:
        def hook(*_: Any) -> None:
            paths.append(path)
            note()

        return hook

    def left(*_: Any) -> None:
        paths.pop()
        note()

    def note() -> None:
        recorder.current_meta["nn_module_stack"] = {p: (p, None) for p in ("", *paths)}

    def run(*tensors: Tensor) -> list[Tensor]:
        given = dict(zip(kwargs, tensors[len(args) :], strict=True))
        found = list(found_in(hollow.module(*tensors[: len(args)], **given), torch.Tensor))
        names.extend(name for name, _ in found)
        return [tensor for _, tensor in found]

    hooks = []
    for path, part in hollow.module.named_modules():
        if path:
            hooks.append(part.register_forward_pre_hook(entered(path)))
            hooks.append(part.register_forward_hook(left))
    try:
        with recorder.preserve_node_meta():
            module = make_fx(
                run,
                tracing_mode="fake",
                pre_dispatch=True,
                _allow_non_fake_inputs=True,
                record_stack_traces=True,
            )(*args, *kwargs.values())
    finally:
        for hook in hooks:
            hook.remove()
    constants = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = getattr(module, node.target)
            constants[node] = hollow.original.get(id(value), value)
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    returned: Any = module.graph.output_node().args[0]
    outputs = list(zip(names, returned, strict=True))
    return Trace(module.graph, inputs, constants, outputs, hollow.leaves, hollow.containers)


def found_in(returned: Any, kind: type, name: str = "") -> Iterator[tuple[str, Any]]:
    """What there is of a kind in what a module returns, each with its place there."""
    if isinstance(returned, kind):
        yield name, returned
        return
    parts: dict[str, Any] = {}
    if isinstance(returned, Mapping):
        parts = {str(key): value for key, value in returned.items()}
    elif is_dataclass(returned):
        parts = {f.name: getattr(returned, f.name) for f in fields(returned)}
    elif isinstance(returned, tuple) and hasattr(returned, "_fields"):
        parts = {name: getattr(returned, name) for name in returned._fields}
    elif isinstance(returned, list | tuple):
        parts = {str(i): value for i, value in enumerate(returned)}
    elif hasattr(returned, "__dict__"):
        parts = vars(returned)
    for key, value in parts.items():
        yield from found_in(value, kind, f"{name}.{key}" if name else key)


# --- what can go wrong ----------------------------------------------------------------------


@contextmanager
def quiet() -> Iterator[None]:
    """PyTorch explains a failure at length, in its log and by dumps of the graph on standard error;
    fastrf says it on one line."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _explained(error: Exception, module: nn.Module, shapes: Shapes) -> InputError:
    if isinstance(error, InputError):
        return error
    name = type(module).__name__
    where = place(traceback.extract_tb(error.__traceback__))
    if _depends_on_data(error):
        return InputError(
            f"{name}: {where}: what runs here depends on the values of a tensor, and an import "
            f"has none; decide by shapes or constants, or make the module that holds the line a "
            f"leaf with fastrf.importers.register"
        )
    if "PackedParams" in str(error):
        return InputError(
            f"{name} holds quantised weights that are packed for one processor; import the module "
            f"before its conversion (as prepared), or its ONNX export"
        )
    given = dict(shapes) if isinstance(shapes, Mapping) else list(shapes)
    reason = str(error).partition("\n")[0]
    return InputError(
        f"{name} does not run on inputs of the shapes {given}: {where}: "
        f"{line(reason)}; check input_shape and the module"
    )


def _depends_on_data(error: Exception) -> bool:
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
    )
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    return isinstance(
        error,
        DataDependentOutputException | DynamicOutputShapeException | GuardOnDataDependentSymNode,
    )


def place(frames: Sequence[traceback.FrameSummary]) -> str:
    """The innermost line of code among frames that is neither PyTorch's nor fastrf's."""
    import torch

    import fastrf

    libraries = tuple(os.path.dirname(m.__file__ or "") + os.sep for m in (torch, fastrf))
    for frame in reversed(frames):
        if not frame.filename.startswith((*libraries, "<")):
            return f"{frame.filename}:{frame.lineno}: {frame.line or frame.name}"
    return "in PyTorch's own code"
