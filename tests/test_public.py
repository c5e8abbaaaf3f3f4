"""The public names: that they exist, are documented, and are the same for type checkers."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import fastrf
from fastrf import errors, layers, maps, network

SOURCE = Path(fastrf.__file__)


def test_every_public_name_resolves() -> None:
    assert len(set(fastrf.__all__)) == len(fastrf.__all__)
    assert dir(fastrf) == sorted(fastrf.__all__)
    for name in fastrf.__all__:
        assert getattr(fastrf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        _ = fastrf.no_such_name


def test_type_checkers_see_the_same_names() -> None:
    """The imports under TYPE_CHECKING are the table that `__getattr__` reads."""
    seen: dict[str, set[str]] = {}
    for statement in ast.parse(SOURCE.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            for line in statement.body:
                assert isinstance(line, ast.ImportFrom)
                assert line.module is not None
                seen[line.module] = {alias.name for alias in line.names}
    assert seen.pop("fastrf") == set(fastrf._MODULES)
    assert seen == {module: set(names) for module, names in fastrf._PUBLIC.items()}


def test_names_live_where_the_table_says() -> None:
    for module, names in fastrf._PUBLIC.items():
        home = importlib.import_module(module)
        for name in names:
            assert getattr(home, name) is getattr(fastrf, name)


def test_every_layer_is_public() -> None:
    assert set(fastrf._PUBLIC["fastrf.layers"]) == set(layers.LAYERS)


def test_verbs_stay_functions_whatever_is_imported() -> None:
    """The modules fastrf.erf and fastrf.check hold functions of the same names."""
    program = (
        "import {0}\nimport fastrf\nfrom fastrf.erf import ERF\nfrom fastrf import erf\n"
        "assert callable(erf) and callable(fastrf.erf) and callable(fastrf.check)\n"
        "assert fastrf.ERF is ERF and fastrf.erf is erf"
    )
    for first in ("fastrf.erf", "fastrf.check", "fastrf.cli", "fastrf"):
        subprocess.run([sys.executable, "-c", program.format(first)], check=True)


def documented(module: ModuleType) -> list[tuple[str, Any]]:
    """Public functions, classes, methods and properties that a module defines."""
    found: list[tuple[str, Any]] = [(module.__name__, module)]
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if not (inspect.isfunction(value) or inspect.isclass(value)) or "<" in value.__qualname__:
            continue
        found.append((f"{module.__name__}.{name}", value))
        for member, part in vars(value).items() if inspect.isclass(value) else ():
            if not member.startswith("_") and (inspect.isfunction(part) or type(part) is property):
                found.append((f"{module.__name__}.{name}.{member}", getattr(value, member)))
    return found


OWN = [errors, layers, maps, network] + [
    importlib.import_module(f"fastrf.layers.{path.stem}")
    for path in sorted(Path(layers.__file__).parent.glob("[!_]*.py"))
]


@pytest.mark.parametrize("module", OWN, ids=lambda module: module.__name__)
def test_everything_public_has_a_docstring(module: ModuleType) -> None:
    missing = [name for name, value in documented(module) if not inspect.getdoc(value)]
    # A property that overrides a documented one means the same.
    base = {name for name, value in vars(layers.Layer).items() if inspect.getdoc(value)}
    assert [name for name in missing if name.rpartition(".")[2] not in base] == []


@pytest.mark.parametrize("name", sorted(set(fastrf.__all__) - {"__version__"}))
def test_public_docstrings(name: str) -> None:
    text = inspect.getdoc(getattr(fastrf, name))
    assert text
    # What dataclasses write by themselves is no docstring.
    assert not text.startswith(f"{name}(")


@pytest.mark.parametrize("module", [fastrf, network], ids=lambda module: module.__name__)
def test_examples(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.failed == 0
    assert result.attempted >= 3


def test_errors_are_what_python_expects_too() -> None:
    kinds = {
        errors.InputError: ValueError,
        errors.NetworkFileError: errors.InputError,
        errors.UnsupportedOperator: errors.InputError,
        errors.UnboundedError: errors.InputError,
        errors.EmptyFieldError: errors.InputError,
        errors.ToleranceError: errors.InputError,
        errors.DeviceError: RuntimeError,
        errors.PlanError: MemoryError,
        errors.Fault: errors.FastrfError,
        errors.OutOfMemoryError: MemoryError,
        errors.DeviceLostError: errors.DeviceError,
        errors.KernelError: RuntimeError,
        errors.StoreError: RuntimeError,
        errors.WorkerError: RuntimeError,
        errors.MissingExtra: ImportError,
    }
    for kind, builtin in kinds.items():
        assert issubclass(kind, builtin)
        assert issubclass(kind, errors.FastrfError)
    own = {
        v for v in vars(errors).values() if inspect.isclass(v) and v.__module__ == errors.__name__
    }
    assert own == {errors.FastrfError, *kinds}
