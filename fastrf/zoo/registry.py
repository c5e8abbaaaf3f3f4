"""The zoo by name: `names` and `get`."""

from __future__ import annotations

import ast
import difflib
import inspect
from collections.abc import Callable, Iterable
from typing import Any

from fastrf.errors import InputError
from fastrf.network import Network
from fastrf.zoo import classic, compact, inceptions, parametric, resnets

LONGEST_SPEC = 1000
"""Characters; longer text is not a name with arguments, and deep nesting could upset the parser."""

NETWORKS: dict[str, Callable[..., Network]] = {
    function.__name__: function
    for function in (
        classic.alexnet,
        classic.alexnet_v2,
        classic.alexnet_dang,
        classic.zfnet,
        classic.vgg11,
        classic.vgg13,
        classic.vgg16,
        classic.vgg19,
        inceptions.googlenet,
        inceptions.inception_v3,
        resnets.resnet18,
        resnets.resnet34,
        resnets.resnet50,
        resnets.resnet101,
        resnets.resnet152,
        resnets.resnet_v1_50_slim,
        resnets.resnet_v1_101_slim,
        resnets.resnet_v1_152_slim,
        resnets.resnet_v1_200_slim,
        compact.mobilenet_v1,
        compact.mobilenet_v2,
        compact.densenet121,
        compact.darknet53,
        parametric.plain,
        parametric.residual,
        parametric.cifar_resnet,
        parametric.unet,
        parametric.wavenet,
        parametric.tcn,
    )
}


def names() -> list[str]:
    """The names of the zoo's networks."""
    return list(NETWORKS)


def get(spec: str) -> Network:
    """The network that a text names: "resnet50", "plain(1000, 3)", "plain(depth=10, ndim=1)".

    Args:
        spec: a name of `names`, with arguments in parentheses where wanted. Arguments are
            Python literals (numbers, texts, tuples, True, False, None), positional or by name;
            nothing is evaluated.

    Raises:
        InputError: the text cannot be read, no network or parameter has that name (the message
            lists close ones), or an argument breaks a rule.
    """
    name, args, kwargs = _parse(spec)
    if name not in NETWORKS:
        raise InputError(f"no zoo network is called {name!r}; {_close(name, NETWORKS)}")
    build = NETWORKS[name]
    signature = inspect.signature(build)
    for keyword in kwargs:
        if keyword not in signature.parameters:
            known = _close(keyword, signature.parameters)
            raise InputError(f"{name} has no parameter {keyword!r}; {known}")
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"{spec!r}: {error}; write {name}({_parameters(signature)})") from None
    return build(*args, **kwargs)


def _parse(spec: str) -> tuple[str, list[Any], dict[str, Any]]:
    if not isinstance(spec, str):
        raise InputError(
            f"a zoo network is named by a text such as 'plain(1000, 3)', not by {spec!r}"
        )
    if len(spec) > LONGEST_SPEC:
        raise InputError(
            f"a text of {len(spec)} characters cannot name a zoo network; "
            f"write at most {LONGEST_SPEC}"
        )
    try:
        tree = ast.parse(spec.strip(), mode="eval").body
        if isinstance(tree, ast.Name):
            return tree.id, [], {}
        if not isinstance(tree, ast.Call) or not isinstance(tree.func, ast.Name):
            raise ValueError("neither a name nor a name with arguments")
        keywords = [keyword.arg for keyword in tree.keywords]
        if None in keywords or len(set(keywords)) < len(keywords):
            raise ValueError("a parameter is given twice, or by **")
        args = [ast.literal_eval(arg) for arg in tree.args]
        kwargs = {str(k.arg): ast.literal_eval(k.value) for k in tree.keywords}
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        raise InputError(
            f"{spec!r} cannot be read as a zoo network; write a name, or a name with literal "
            f"arguments such as 'plain(1000, 3)'; {_close(spec.split('(')[0], NETWORKS)}"
        ) from None
    return tree.func.id, args, kwargs


def _close(name: str, known: Iterable[str]) -> str:
    listed = list(known)
    if not listed:
        return "it takes none"
    close = difflib.get_close_matches(name, listed, n=3, cutoff=0.4)
    names = ", ".join(map(repr, close or listed))
    return f"did you mean {names}?" if close else f"there are {names}"


def _parameters(signature: inspect.Signature) -> str:
    return ", ".join(
        p.name if p.default is p.empty else f"{p.name}={p.default!r}"
        for p in signature.parameters.values()
    )
